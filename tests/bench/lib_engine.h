// The engine on both ends, each in an epoll loop of one thread over the one connection.
#ifndef REVDIAL_BENCH_LIB_ENGINE_H
#define REVDIAL_BENCH_LIB_ENGINE_H

#include "lib.h"

typedef struct engine_stream {
    uint32_t id;
    char job;  // 'E', 'S', 'I'; 0 before the first byte
    int blocked;
    uint64_t total;
    int64_t since;
} engine_stream;

typedef struct engine_loop {
    revdial_engine *e;
    int fd, ep, up;
    int hungry;  // a stream may be written again: there is something to do before waiting
    void (*on_event)(struct engine_loop *l, const revdial_event *ev);
    uint8_t in[WRITE_BYTES * 4];
    // of the one that asks
    lib_run *run;
    engine_stream *streams;
    unsigned open;  // streams of a bulk job whose answer has not come
} engine_loop;

static void engine_events(engine_loop *l)
{
    revdial_event ev;
    while (revdial_engine_event(l->e, &ev)) {
        if (ev.type == REVDIAL_EV_AUTH) revdial_engine_auth(l->e, 0);
        if (ev.type == REVDIAL_EV_UP) l->up = 1;
        if (ev.type == REVDIAL_EV_DEAD) bench_die("the session is dead: %s", ev.text);
        if (ev.id != 0) l->on_event(l, &ev);
    }
}

// Level-triggered reading, as there is one descriptor: a short read means that it is empty.
static void engine_receive(engine_loop *l)
{
    ssize_t n;
    do {
        n = recv(l->fd, l->in, sizeof l->in, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) return;
        if (n == 0 && !l->run) exit(0);  // the job is over
        if (n <= 0) bench_die("the connection has gone");
        for (ssize_t at = 0; at < n;) {
            ptrdiff_t used =
                revdial_engine_input(l->e, l->in + at, (size_t)(n - at), bench_now_ns() / 1000);
            if (used < 0) bench_die("input: %s", revdial_strerror((int)used));
            at += used;
            engine_events(l);
        }
    } while (n == (ssize_t)sizeof l->in);
}

static void engine_send(engine_loop *l)
{
    struct iovec iov[64];
    struct msghdr msg = {.msg_iov = iov};
    int n;
    while ((n = revdial_engine_output(l->e, iov, 64)) > 0) {
        msg.msg_iovlen = (size_t)n;
        ssize_t sent = sendmsg(l->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) return;
        if (sent < 0) bench_die("send");
        revdial_engine_sent(l->e, (size_t)sent);
        engine_events(l);
    }
}

// Sends what there is, waits for the socket, takes what came.
static void engine_turn(engine_loop *l)
{
    struct epoll_event ev;
    int64_t now = bench_now_ns() / 1000, due = revdial_engine_tick(l->e, now);
    engine_events(l);
    engine_send(l);
    int wait_ms = due < 0 ? 1000 : due > now ? (int)((due - now) / 1000) + 1 : 0;
    if (l->hungry) wait_ms = 0;
    l->hungry = 0;
    if (epoll_wait(l->ep, &ev, 1, wait_ms) > 0 && ev.events & ~(uint32_t)EPOLLOUT)
        engine_receive(l);
}

static engine_loop *engine_start(int role, int fd)
{
    engine_loop *l = bench_alloc(1, sizeof *l);
    revdial_engine_config cfg = {.role = role, .host = "bench", .name = "bench", .secret = "bench"};
    struct epoll_event ev = {.events = EPOLLIN | EPOLLOUT | EPOLLET};
    revdial_err err = {0};
    l->fd = fd;
    bench_no_delay(fd);
    l->ep = epoll_create1(0);
    if (l->ep < 0 || epoll_ctl(l->ep, EPOLL_CTL_ADD, fd, &ev) != 0) bench_die("epoll");
    l->e = revdial_engine_new(&cfg, bench_now_ns() / 1000, &err);
    if (!l->e) bench_die("%s", err.msg);
    return l;
}

// ---- the process that answers ----

static void engine_answer_end(engine_loop *l, engine_stream *s)
{
    uint8_t answer[8];
    bench_put64(answer, s->total);
    if (s->job == 'S' && revdial_engine_write(l->e, s->id, answer, sizeof answer) != sizeof answer)
        bench_die("no room for an answer");
    revdial_engine_close(l->e, s->id);
    free(s);
}

static void engine_answer(engine_loop *l, engine_stream *s)
{
    const void *data;
    ptrdiff_t n, taken = 1;
    if (s->job == 0 && revdial_engine_read(l->e, s->id, &s->job, 1) != 1) return;
    while (taken > 0 && (n = revdial_engine_peek(l->e, s->id, &data)) > 0) {
        taken = s->job == 'E' ? revdial_engine_write(l->e, s->id, data, (size_t)n) : n;
        if (taken > 0) revdial_engine_consume(l->e, s->id, (size_t)taken);
        s->total += taken > 0 ? (uint64_t)taken : 0;
    }
    if (taken > 0 && revdial_engine_read(l->e, s->id, &(char){0}, 1) == 0) engine_answer_end(l, s);
}

static void engine_on_answer(engine_loop *l, const revdial_event *ev)
{
    engine_stream *s = ev->ud;
    if (ev->type == REVDIAL_EV_OPEN) {
        s = bench_alloc(1, sizeof *s);
        s->id = ev->id;
        revdial_engine_accept(l->e, s->id);
        revdial_engine_set_ud(l->e, s->id, s);
    } else if (ev->type == REVDIAL_EV_RESET) {
        bench_die("a stream was reset with %d", ev->code);
    } else if (s) {
        engine_answer(l, s);
    }
}

static void serve_engine(const lib_run *r, int ctl)
{
    uint16_t port;
    (void)r;
    lib_hear(ctl, &port, sizeof port);
    engine_loop *l = engine_start(REVDIAL_ROLE_BACKEND, bench_connect(port));
    l->on_event = engine_on_answer;
    for (;;) engine_turn(l);
}

// ---- the process that asks ----

static void engine_write(engine_loop *l, const engine_stream *s, const void *bytes, size_t len)
{
    ptrdiff_t n = revdial_engine_write(l->e, s->id, bytes, len);
    if (n != (ptrdiff_t)len) bench_die("wrote %td of %zu bytes", n, len);
}

// s->id is 0 when too many streams are unanswered.
static void engine_open(engine_loop *l, engine_stream *s, const char *first, size_t len)
{
    int64_t id = revdial_engine_open(l->e, NULL, s);
    if (id < 0 && id != REVDIAL_EAGAIN) bench_die("open: %s", revdial_strerror((int)id));
    s->id = id > 0 ? (uint32_t)id : 0;
    s->job = first[0];
    s->total = 0;
    if (s->id) engine_write(l, s, first, len);
}

static void engine_fill(engine_loop *l, engine_stream *s, int64_t now)
{
    static const char bytes[WRITE_BYTES];
    while (!s->blocked) {
        ptrdiff_t n = revdial_engine_write(l->e, s->id, bytes, sizeof bytes);
        if (n < 0) bench_die("write: %s", revdial_strerror((int)n));
        s->blocked = n < (ptrdiff_t)sizeof bytes;
        l->run->all += (uint64_t)n;
        if (now >= l->run->start) l->run->done += (uint64_t)n;
    }
}

static void engine_count(engine_loop *l, engine_stream *s, size_t whole)
{
    static const char message[MESSAGE_BYTES];
    char buf[MESSAGE_BYTES];
    ptrdiff_t n = revdial_engine_read(l->e, s->id, buf, sizeof buf);
    if (n < 0 && n != REVDIAL_EAGAIN) bench_die("read: %s", revdial_strerror((int)n));
    s->total += n > 0 ? (uint64_t)n : 0;
    if (s->total < whole) return;
    int64_t now = bench_now_ns();
    l->run->all++;
    if (s->since >= l->run->start && now <= l->run->end) {
        l->run->done++;
        bench_add(&l->run->times, now - s->since);
    }
    s->since = now;
    s->total = 0;
    if (l->run->job->kind == KIND_PING) {
        engine_write(l, s, message, sizeof message);
    } else {
        revdial_engine_close(l->e, s->id);
        engine_open(l, s, "E-", 2);
    }
}

static void engine_on_ask(engine_loop *l, const revdial_event *ev)
{
    engine_stream *s = ev->ud;
    char answer[8];
    if (ev->type == REVDIAL_EV_RESET) bench_die("a stream was reset with %d", ev->code);
    if (ev->type == REVDIAL_EV_WRITABLE && s) {
        s->blocked = 0;
        l->hungry = l->run->job->kind == KIND_BULK;
    }
    if (ev->type != REVDIAL_EV_READABLE || !s) return;
    switch (l->run->job->kind) {
    case KIND_BULK:
        if (revdial_engine_read(l->e, s->id, answer, sizeof answer) == sizeof answer) l->open--;
        break;
    case KIND_PING: engine_count(l, s, MESSAGE_BYTES); break;
    case KIND_OPEN: engine_count(l, s, 1); break;
    case KIND_ASLEEP: break;
    }
}

static engine_loop *engine_link(lib_run *r)
{
    uint16_t port = 0;
    int listener = bench_listen(&port), fd;
    lib_tell(r->ctl[0], &port, sizeof port);
    fd = accept(listener, NULL, NULL);
    if (fd < 0) bench_die("accept");
    close(listener);
    engine_loop *l = engine_start(REVDIAL_ROLE_PROXY, fd);
    l->on_event = engine_on_ask;
    l->run = r;
    while (!l->up) engine_turn(l);
    return l;
}

static void engine_open_idle(engine_loop *l)
{
    revdial_engine_info before, after;
    unsigned count = l->run->job->idle;
    revdial_engine_get_info(l->e, &before);
    for (unsigned i = 0; i < count; i++) {
        engine_stream s = {0};
        while (engine_open(l, &s, "I", 1), s.id == 0) engine_turn(l);
        revdial_engine_set_ud(l->e, s.id, NULL);
        engine_send(l);
    }
    revdial_engine_get_info(l->e, &after);
    if (count > 1) l->run->memory = (double)(after.memory_bytes - before.memory_bytes) / count;
}

static void engine_run(engine_loop *l)
{
    lib_run *r = l->run;
    unsigned count = r->job->streams;
    for (int64_t now; (now = bench_now_ns()) < r->end || !r->all; engine_turn(l)) {
        for (unsigned i = 0; i < count; i++) {
            engine_stream *s = &l->streams[i];
            if (r->job->kind == KIND_BULK) engine_fill(l, s, now);
            if (s->id == 0) engine_open(l, s, "E-", 2);
        }
    }
    if (r->job->kind != KIND_BULK) return;
    l->open = count;
    for (unsigned i = 0; i < count; i++) revdial_engine_end_write(l->e, l->streams[i].id);
    while (l->open > 0) engine_turn(l);
}

static void drive_engine(lib_run *r)
{
    static const char message[MESSAGE_BYTES];
    engine_loop *l = engine_link(r);
    l->streams = bench_alloc(r->job->streams + 1, sizeof *l->streams);
    engine_open_idle(l);
    lib_begin(r);
    for (unsigned i = 0; i < r->job->streams; i++) {
        engine_stream *s = &l->streams[i];
        s->since = bench_now_ns();
        if (r->job->kind == KIND_OPEN) continue;
        engine_open(l, s, r->job->kind == KIND_BULK ? "S" : "E", 1);
        if (s->id && r->job->kind == KIND_PING) engine_write(l, s, message, sizeof message);
    }
    engine_run(l);
    lib_end(r);
    revdial_engine_free(l->e);
    close(l->fd);
    close(l->ep);
    free(l->streams);
    free(l);
}

#endif
