// Blocking calls with a thread for each stream, over bare sockets and over revdial; and one thread
// with revdial_poll().
#ifndef REVDIAL_BENCH_LIB_THREADS_H
#define REVDIAL_BENCH_LIB_THREADS_H

#include "lib.h"

// A bare socket, or a stream.
typedef struct lib_conn {
    int fd;
    revdial_stream *st;
} lib_conn;

typedef struct lib_link {
    uint16_t port;         // bare
    revdial_proxy *proxy;  // revdial
    size_t bytes;          // that the library has allocated
} lib_link;

static ptrdiff_t conn_read(const lib_conn *c, void *buf, size_t len)
{
    return c->st ? revdial_read(c->st, buf, len) : read(c->fd, buf, len);
}

static void conn_read_all(const lib_conn *c, void *buf, size_t len)
{
    for (size_t at = 0; at < len;) {
        ptrdiff_t n = conn_read(c, (char *)buf + at, len - at);
        if (n <= 0) bench_die("a stream ended with %td", n);
        at += (size_t)n;
    }
}

// Blocking sockets take all of it, unless a signal comes.
static void conn_write(const lib_conn *c, const void *buf, size_t len)
{
    ptrdiff_t n = c->st ? revdial_write(c->st, buf, len) : write(c->fd, buf, len);
    if (n != (ptrdiff_t)len) bench_die("wrote %td of %zu bytes", n, len);
}

static void conn_finish(const lib_conn *c)
{
    if (c->st)
        revdial_shutdown(c->st, REVDIAL_WR);
    else
        shutdown(c->fd, SHUT_WR);
}

// Sockets that this side closes first would hold their ports for a minute: they are reset.
static void conn_close(const lib_conn *c)
{
    struct linger none = {1, 0};
    if (c->st) {
        revdial_close(c->st);
        return;
    }
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
    close(c->fd);
}

// ---- the process that answers ----

static void answer_echo(const lib_conn *c)
{
    char buf[4096];
    ptrdiff_t n;
    while ((n = conn_read(c, buf, sizeof buf)) > 0) conn_write(c, buf, (size_t)n);
}

static void answer_sink(const lib_conn *c)
{
    char *buf = bench_alloc(1, WRITE_BYTES);
    uint8_t answer[8];
    uint64_t total = 0;
    ptrdiff_t n;
    while ((n = conn_read(c, buf, WRITE_BYTES)) > 0) total += (uint64_t)n;
    if (n < 0) bench_die("a stream ended with %td", n);
    bench_put64(answer, total);
    conn_write(c, answer, sizeof answer);
    free(buf);
}

static void answer(const lib_conn *c)
{
    char job = 0;
    if (conn_read(c, &job, 1) != 1 || job == 'I') return;  // it stays open while the process lives
    if (job == 'E')
        answer_echo(c);
    else
        answer_sink(c);
    conn_close(c);
}

static void *bare_thread(void *arg)
{
    const int *listener = arg;
    for (;;) {
        lib_conn c = {.fd = accept(*listener, NULL, NULL)};
        if (c.fd < 0) bench_die("accept");
        bench_no_delay(c.fd);
        answer(&c);
    }
    return NULL;
}

// A thread for each stream of the job, from the beginning: starting one for each connection would
// be what is measured.
static void serve_bare(const lib_run *r, int ctl)
{
    uint16_t port = 0;
    int listener = bench_listen(&port);
    for (unsigned i = 0; i < r->job->streams; i++) lib_thread(bare_thread, &listener, NULL);
    lib_tell(ctl, &port, sizeof port);
    bare_thread(&listener);
}

// One thread answers all: handlers pass streams to it through a pipe.
typedef struct poll_server {
    int in, out;
    revdial_pollfd *items;  // the first is the pipe
    size_t count, cap;
} poll_server;

static void poll_server_add(poll_server *s)
{
    revdial_stream *st;
    if (read(s->in, &st, sizeof st) != sizeof st) bench_die("pipe");
    if (s->count == s->cap) {
        s->cap *= 2;
        s->items = realloc(s->items, s->cap * sizeof *s->items);
        if (!s->items) bench_die("out of memory");
    }
    s->items[s->count++] = (revdial_pollfd){.st = st, .fd = -1, .events = POLLIN};
}

static void *poll_server_run(void *arg)
{
    poll_server *s = arg;
    char buf[4096];
    for (;;) {
        if (revdial_poll(s->items, s->count, -1) < 0) bench_die("poll");
        for (size_t i = s->count; i-- > 1;) {
            revdial_pollfd *item = &s->items[i];
            ptrdiff_t n = item->revents ? revdial_read(item->st, buf, sizeof buf) : -1;
            if (!item->revents) continue;
            if (n > 0 && revdial_write(item->st, buf, (size_t)n) == n) continue;
            revdial_close(item->st);
            *item = s->items[--s->count];
        }
        if (s->items[0].revents) poll_server_add(s);
    }
    return NULL;
}

static poll_server *poll_server_start(void)
{
    poll_server *s = bench_alloc(1, sizeof *s);
    int ends[2];
    if (pipe(ends) != 0) bench_die("pipe");
    s->in = ends[0];
    s->out = ends[1];
    s->cap = 64;
    s->items = bench_alloc(s->cap, sizeof *s->items);
    s->items[0] = (revdial_pollfd){.fd = s->in, .events = POLLIN};
    s->count = 1;
    return lib_thread(poll_server_run, s, NULL);
}

static void handle(void *ud, revdial_stream *st)
{
    lib_conn c = {.st = st};
    poll_server *s = ud;
    char job = 0;
    if (!s) {
        answer(&c);
    } else if (revdial_read(st, &job, 1) == 1) {
        if (write(s->out, &st, sizeof st) != sizeof st) bench_die("pipe");
    }
}

static void common_config(revdial_common *common, const lib_way *way)
{
    common->io_threads = way->sessions;
    common->spin_us = way->spin_us;
}

// Sessions that do nothing, each of a backend of its own.
static void start_others(const revdial_agent_config *like, unsigned count)
{
    revdial_agent_config cfg = *like;
    revdial_err err = {0};
    char name[32];
    cfg.name = name;
    for (unsigned i = 0; i < count; i++) {
        snprintf(name, sizeof name, "other-%u", i);
        if (!revdial_agent_start(&cfg, &err)) bench_die("an agent: %s", err.msg);
    }
}

static void serve_revdial(const lib_run *r, int ctl)
{
    char url[96], address[80] = "";
    revdial_agent_config cfg = {.url = url, .name = "bench", .secret = "bench", .handler = handle};
    revdial_err err = {0};
    lib_hear(ctl, address, sizeof address);
    snprintf(url, sizeof url, "http://%s", address);
    snprintf(address, sizeof address, "bench-%d", getpid());
    cfg.instance = address;
    cfg.max_handlers = 1 << 16;
    common_config(&cfg.common, r->way);
    if (r->way->polls && r->job->kind == KIND_PING) cfg.ud = poll_server_start();
    start_others(&cfg, r->job->others);
    revdial_serve(&cfg, &err);
    bench_die("the agent: %s", err.msg);
}

// ---- the process that asks ----

static void *count_alloc(void *ud, void *ptr, size_t old_size, size_t new_size)
{
    size_t *bytes = ud;
    if (new_size == 0) {
        free(ptr);
        ptr = NULL;
    } else if (!(ptr = realloc(ptr, new_size))) {
        return NULL;
    }
    __atomic_add_fetch(bytes, new_size - old_size, __ATOMIC_RELAXED);
    return ptr;
}

static void link_up(lib_link *l, const lib_run *r)
{
    revdial_credential who = {.secret = "bench", .names = "*"};
    revdial_proxy_config cfg = {
        .listen = "127.0.0.1:0", .credentials = &who, .credential_count = 1};
    revdial_err err = {0};
    char address[80] = "";
    if (r->way->serve == serve_bare) {
        lib_hear(r->ctl[0], &l->port, sizeof l->port);
        return;
    }
    common_config(&cfg.common, r->way);
    if (r->job->idle) {  // counting costs a little, so it is for jobs that ask for it
        cfg.common.alloc = count_alloc;
        cfg.common.alloc_ud = &l->bytes;
    }
    l->proxy = revdial_proxy_start(&cfg, &err);
    if (!l->proxy) bench_die("the proxy: %s", err.msg);
    revdial_proxy_address(l->proxy, 0, address, sizeof address);
    for (unsigned i = 0; i < r->way->sessions; i++) lib_tell(r->ctl[i], address, sizeof address);
    if (revdial_proxy_wait(l->proxy, "bench", r->way->sessions, 10000) < 0)
        bench_die("no agent came");
    for (revdial_stats now = {0}; now.sessions < r->way->sessions + r->job->others;) {
        usleep(1000);
        revdial_proxy_get_stats(l->proxy, &now);
    }
}

// As Go's yamux and a socket's connect() do it: nobody waits until the other side has accepted,
// unless the stream is there to be idle.
static lib_conn link_open(lib_link *l, const char *first, size_t len)
{
    revdial_dial_opts opts = {.flags = first[0] == 'I' ? 0 : REVDIAL_DIAL_EARLY};
    revdial_err err = {0};
    lib_conn c = {.fd = -1};
    if (!l->proxy)
        c.fd = bench_connect(l->port);
    else if (!(c.st = revdial_dial(l->proxy, "bench", &opts, &err)))
        bench_die("dial: %s", err.msg);
    conn_write(&c, first, len);
    return c;
}

typedef struct lib_worker {
    lib_link *link;
    const lib_run *run;
    lib_conn conn;
    uint64_t done, all;
    bench_samples times;
    pthread_t thread;
} lib_worker;

// A thread whose first turn comes when the time is over does its work once nevertheless.
static void work_bulk(lib_worker *w)
{
    char *buf = bench_alloc(1, WRITE_BYTES);
    uint8_t answer[8];
    int64_t now;
    while ((now = bench_now_ns()) < w->run->end || !w->all) {
        conn_write(&w->conn, buf, WRITE_BYTES);
        w->all += WRITE_BYTES;
        if (now >= w->run->start) w->done += WRITE_BYTES;
    }
    conn_finish(&w->conn);
    conn_read_all(&w->conn, answer, sizeof answer);
    if (bench_get64(answer) != w->all) bench_die("bytes are missing");
    free(buf);
}

static void note(lib_worker *w, int64_t from, int64_t to)
{
    w->all++;
    if (from < w->run->start || to > w->run->end) return;
    w->done++;
    bench_add(&w->times, to - from);
}

static void work_ping(lib_worker *w)
{
    char message[MESSAGE_BYTES] = {0};
    for (int64_t then = bench_now_ns(), now; then < w->run->end || !w->all; then = now) {
        conn_write(&w->conn, message, sizeof message);
        conn_read_all(&w->conn, message, sizeof message);
        now = bench_now_ns();
        note(w, then, now);
    }
}

static void work_open(lib_worker *w)
{
    char back;
    for (int64_t then = bench_now_ns(), now; then < w->run->end || !w->all; then = now) {
        lib_conn c = link_open(w->link, "E-", 2);
        conn_read_all(&c, &back, 1);
        conn_close(&c);
        now = bench_now_ns();
        note(w, then, now);
    }
}

static void *work(void *arg)
{
    lib_worker *w = arg;
    switch (w->run->job->kind) {
    case KIND_BULK: work_bulk(w); break;
    case KIND_PING: work_ping(w); break;
    case KIND_OPEN: work_open(w); break;
    case KIND_ASLEEP: break;
    }
    return NULL;
}

// Streams that do nothing while the job runs.
static void open_idle(lib_link *l, lib_run *r)
{
    size_t before = l->bytes;
    for (unsigned i = 0; i < r->job->idle; i++) {
        lib_conn c = link_open(l, "I", 1);
        if (i == 0) {  // the first brings tables that the others share
            usleep(10000);
            before = __atomic_load_n(&l->bytes, __ATOMIC_RELAXED);
        }
        (void)c;  // it lives as long as the proxy
    }
    usleep(300000);
    if (l->proxy && r->job->idle >= IDLE_KNOWN)
        r->memory =
            (double)(__atomic_load_n(&l->bytes, __ATOMIC_RELAXED) - before) / (r->job->idle - 1);
}

static void merge(lib_run *r, const lib_worker *w)
{
    r->done += w->done;
    r->all += w->all;
    for (size_t i = 0; i < bench_kept(&w->times); i++) bench_add(&r->times, w->times.ns[i]);
}

static void drive_threads(lib_run *r)
{
    lib_link link = {0};
    unsigned count = r->job->streams;
    lib_worker *workers = bench_alloc(count + 1, sizeof *workers);
    link_up(&link, r);
    open_idle(&link, r);
    for (unsigned i = 0; i < count; i++) {
        lib_worker *w = &workers[i];
        *w = (lib_worker){.link = &link, .run = r};
        w->times.cap = SAMPLES_MAX / count;
        w->times.ns = bench_alloc(w->times.cap, sizeof *w->times.ns);
        if (r->job->kind == KIND_BULK) w->conn = link_open(&link, "S", 1);
        if (r->job->kind == KIND_PING) w->conn = link_open(&link, "E", 1);
    }
    lib_begin(r);
    for (unsigned i = 0; i < count; i++) lib_thread(work, &workers[i], &workers[i].thread);
    while (r->job->kind == KIND_ASLEEP && bench_now_ns() < r->end) usleep(1000000);
    for (unsigned i = 0; i < count; i++) pthread_join(workers[i].thread, NULL);
    lib_end(r);
    for (unsigned i = 0; i < count; i++) {
        merge(r, &workers[i]);
        if (r->job->kind != KIND_OPEN) conn_close(&workers[i].conn);
        free(workers[i].times.ns);
    }
    free(workers);
    revdial_proxy_stop(link.proxy);
}

// ---- one thread, revdial_poll() ----

typedef struct poll_driver {
    lib_link link;
    lib_run *run;
    revdial_pollfd *items;
    struct {
        int64_t since;
        size_t got;
    } * state;
} poll_driver;

static void poll_driver_ask(poll_driver *d, size_t i, int64_t now)
{
    static const char message[MESSAGE_BYTES];
    lib_conn c = {.st = d->items[i].st};
    d->state[i].since = now;
    d->state[i].got = 0;
    if (d->run->job->kind == KIND_PING) {
        conn_write(&c, message, sizeof message);
        return;
    }
    revdial_close(c.st);
    d->items[i].st = link_open(&d->link, "E-", 2).st;
}

static void poll_driver_take(poll_driver *d, size_t i)
{
    lib_run *r = d->run;
    size_t whole = r->job->kind == KIND_PING ? MESSAGE_BYTES : 1;
    char buf[MESSAGE_BYTES];
    ptrdiff_t n = revdial_read(d->items[i].st, buf, whole - d->state[i].got);
    if (n <= 0) bench_die("a stream ended with %td", n);
    d->state[i].got += (size_t)n;
    if (d->state[i].got < whole) return;
    int64_t now = bench_now_ns();
    r->all++;
    if (d->state[i].since >= r->start && now <= r->end) {
        r->done++;
        bench_add(&r->times, now - d->state[i].since);
    }
    poll_driver_ask(d, i, now);
}

static void drive_poll(lib_run *r)
{
    size_t count = r->job->streams;
    poll_driver d = {.run = r};
    d.items = bench_alloc(count, sizeof *d.items);
    d.state = bench_alloc(count, sizeof *d.state);
    link_up(&d.link, r);
    for (size_t i = 0; i < count; i++)
        d.items[i] =
            (revdial_pollfd){.st = link_open(&d.link, "E", 1).st, .fd = -1, .events = POLLIN};
    lib_begin(r);
    for (size_t i = 0; i < count; i++) poll_driver_ask(&d, i, bench_now_ns());
    while (bench_now_ns() < r->end || !r->all) {
        if (revdial_poll(d.items, count, 10000) <= 0) bench_die("poll: nothing comes");
        for (size_t i = 0; i < count; i++)
            if (d.items[i].revents) poll_driver_take(&d, i);
    }
    lib_end(r);
    for (size_t i = 0; i < count; i++) revdial_close(d.items[i].st);
    revdial_proxy_stop(d.link.proxy);
    free(d.items);
    free(d.state);
}

#endif
