// Who reads the socket: what hand-overs between the loop and threads must not lose.
#include "runtime_util.h"

typedef struct dialler {
    revdial_session *s;
    util_gate go, done;
    ptrdiff_t n;
} dialler;

// Waits for a stream to be read, as any thread may as soon as the session is up.
static void *dialler_run(void *arg)
{
    dialler *d = arg;
    revdial_stream *st;
    char c;
    util_gate_wait(&d->go, 1);
    st = revdial_session_dial(d->s, NULL, NULL);
    if (st) {
        revdial_stream_set_deadline(st, REVDIAL_RD, UTIL_WAIT_MS);
        d->n = revdial_read(st, &c, 1);
        revdial_close(st);
    }
    util_gate_add(&d->done, 1);
    return NULL;
}

static size_t waiting_on(revdial_session *s, enum rvd_reader_state *reader)
{
    size_t n;
    pthread_mutex_lock(&s->lock);
    n = s->reader.waiting;
    *reader = s->reader.state;
    pthread_mutex_unlock(&s->lock);
    return n;
}

// Returns when the thread waits, before the early bytes have been handled.
static void until_a_thread_waits(void *ud, revdial_session *s, int state, const revdial_err *why)
{
    dialler *d = ((world *)ud)->acfg.ud;
    enum rvd_reader_state reader;
    (void)why;
    if (state != REVDIAL_UP) return;
    d->s = s;
    util_gate_add(&d->go, 1);
    UTIL_EVENTUALLY(waiting_on(s, &reader) == 1);
    CHECK_INT(reader, RVD_READER_LOOP);
}

TEST(early_bytes_of_an_adopted_session_are_not_overtaken_by_a_thread_that_reads)
{
    // Half a ping came early; its other half and the answer to the dial follow.
    static const uint8_t wire[] = {0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 42, 0,
                                   0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 'x'};
    world w;
    dialler d = {0};
    raw_frame f = {0};
    pthread_t t;
    int port = 0, listener = raw_listen(1, &port);
    char address[32];
    world_init(&w);
    util_gate_init(&d.go);
    util_gate_init(&d.done);
    w.pcfg.listen = NULL;
    w.pcfg.on_session = until_a_thread_waits;
    w.acfg.ud = &d;
    t = util_thread(dialler_run, &d);
    if (world_open_proxy(&w)) {
        revdial_attach_opts how = {.early = wire, .early_len = 6, .upgraded = 1, .name = "cam-9"};
        snprintf(address, sizeof address, "127.0.0.1:%d", port);
        int fd = raw_connect(address);
        CHECK_INT(revdial_proxy_attach(w.proxy, raw_accept(listener), &how, NULL), 0);
        CHECK(util_gate_wait(&d.go, 1));
        raw_send(fd, wire + 6, sizeof wire - 6);
        while (CHECK(raw_frame_await(fd, RAW_PING, &f)) && f.flags != RAW_ACK) {
        }
        CHECK_INT(f.len, 42);
        CHECK(util_gate_wait(&d.done, 1));
        CHECK_INT(d.n, 1);
        close(fd);
    }
    pthread_join(t, NULL);
    close(listener);
    world_close(&w);
}

NEW_WORLD_TEST(a_descriptor_closed_behind_a_thread_that_reads_is_a_lost_session)
{
    revdial_session *s = NULL;
    REQUIRE(world_open_proxy(w));
    int fd = raw_backend(w->address, "cam-1", NULL);
    char c;
    CHECK(fd >= 0 && revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS) == 1);
    REQUIRE(revdial_proxy_list(w->proxy, NULL, &s, 1) == 1);
    revdial_stream *st = revdial_session_dial(s, NULL, NULL);
    REQUIRE(st != NULL);
    if (RVD_SYS_EPOLL) {  // poll(2) has the loop read, which notices by itself
        revdial_stream_set_deadline(st, REVDIAL_RD, 1);  // what a reader needs is opened before
        CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ETIMEDOUT);
        CHECK_INT(close(s->fd), 0);
        revdial_stream_set_deadline(st, REVDIAL_RD, UTIL_WAIT_MS / 5);
        CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ELOST);
    }
    revdial_close(st);
    revdial_session_unref(s);
    close(fd);
}

// ------------------------------------------------------------------------------------------------
// Timers that a thread's reading brings about, and that only the loop can set

// The next frame of data with a payload, which goes to `to`.
static int raw_frame_await_data(int fd, raw_frame *f, uint8_t *to)
{
    while (raw_frame_read(fd, f))
        if (f->type == RAW_DATA && f->len) return raw_read_all(fd, to, f->len);
    return 0;
}

typedef struct tiny {
    revdial_stream *st;
    util_gate go, done;
    ptrdiff_t n;
} tiny;

// All the credit there is, and once that has gone some more: a wait that begins when nothing moves.
static void *tiny_write(void *arg)
{
    static uint8_t bytes[262144];
    tiny *w = arg;
    revdial_stream_set_deadline(w->st, REVDIAL_WR, 2 * UTIL_WAIT_MS);
    w->n = revdial_write(w->st, bytes, sizeof bytes);
    util_gate_wait(&w->go, 1);
    w->n += revdial_write(w->st, bytes, 10);
    util_gate_add(&w->done, 1);
    return NULL;
}

// A few bytes of credit are kept for a moment, for more may follow. The thread that waits for it
// reads the socket itself, and has nothing to send when they come.
TEST(a_few_bytes_of_credit_are_used_after_a_moment)
{
    static uint8_t junk[65536];
    world w;
    world_init(&w);
    REQUIRE(world_open_proxy(&w));
    int fd = raw_backend(w.address, "cam-1", NULL);
    CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
    revdial_stream *st = revdial_dial(w.proxy, "cam-1", NULL, NULL);
    if (CHECK(fd >= 0 && st)) {
        tiny w10 = {.st = st};
        util_gate_init(&w10.go);
        util_gate_init(&w10.done);
        pthread_t t = util_thread(tiny_write, &w10);
        raw_frame f = {0};
        uint32_t got = 0;
        CHECK(raw_frame_read(fd, &f));
        while (f.type == RAW_PING && raw_frame_read(fd, &f)) continue;
        raw_frame_send(fd, RAW_WINDOW, RAW_ACK, f.id, 0);  // or the credit would wake the thread
        while (got < 262144 && raw_frame_await_data(fd, &f, junk)) got += f.len;
        CHECK_INT(got, 262144);
        util_gate_add(&w10.go, 1);
        revdial_session *session = revdial_stream_session(st);
        enum rvd_reader_state reader = RVD_READER_WATCH;
        UTIL_EVENTUALLY(waiting_on(session, &reader) == 1);
        if (RVD_SYS_EPOLL) CHECK_INT(reader, RVD_READER_THREAD);
        revdial_session_unref(session);
        raw_frame_send(fd, RAW_WINDOW, 0, f.id, 10);
        CHECK(raw_frame_await_data(fd, &f, junk));
        CHECK_INT(f.len, 10);
        pthread_join(t, NULL);
        CHECK_INT(w10.n, 262144 + 10);
    }
    revdial_close(st);
    if (fd >= 0) close(fd);
    world_close(&w);
}

// A thread that reads, and what comes for others together with its own bytes.
typedef struct leaver {
    world w;
    int fd;
    uint32_t id;
    revdial_stream *st;
    pthread_t thread;
    ptrdiff_t n;
} leaver;

// Reads a frame within `ms`, and answers a ping, so that the proxy has nothing to wait for.
static int leaver_frame(leaver *r, raw_frame *f, int ms)
{
    static uint8_t junk[65536];
    if (!raw_wait(r->fd, POLLIN, ms) || !raw_frame_read(r->fd, f)) return 0;
    if (f->type == RAW_PING && f->flags == RAW_SYN)
        raw_frame_send(r->fd, RAW_PING, RAW_ACK, 0, f->len);
    return f->type != RAW_DATA || !f->len || raw_read_all(r->fd, junk, f->len);
}

// Do so many threads wait, and will the loop not look at its clock for the third of a wait?
static int leaver_is_quiet(leaver *r, size_t waiting)
{
    revdial_session *s = r->st->session;
    raw_frame f;
    while (leaver_frame(r, &f, 0)) continue;
    rvd_stream_lock(s);
    int yes = s->reader.waiting == waiting && !s->engine->mux.ping_out &&
              s->armed_us - rvd_sys_now_us() > UTIL_WAIT_MS / 3 * 1000LL;
    rvd_stream_unlock(s);
    return yes;
}

static void *leaver_read(void *arg)
{
    leaver *r = arg;
    char c;
    revdial_stream_set_deadline(r->st, REVDIAL_RD, 2 * UTIL_WAIT_MS);
    r->n = revdial_read(r->st, &c, 1);
    return NULL;
}

static revdial_stream *leaver_dial(leaver *r, uint32_t *id)
{
    raw_frame f = {0};
    revdial_stream *st = revdial_dial(r->w.proxy, "cam-1", NULL, NULL);
    while (st && leaver_frame(r, &f, UTIL_WAIT_MS) && f.type != RAW_WINDOW) continue;
    if (!CHECK_INT(f.type, RAW_WINDOW)) return st;
    raw_frame_send(r->fd, RAW_WINDOW, RAW_ACK, *id = f.id, 0);
    return st;
}

// r->w is initialised, and what the test wants otherwise is in its pcfg.
static int leaver_open(leaver *r)
{
    enum rvd_reader_state reader = RVD_READER_WATCH;
    r->w.pcfg.common.limits.keepalive_ms = INT32_MAX;
    if (!world_open_proxy(&r->w)) return 0;
    r->fd = raw_backend(r->w.address, "cam-1", NULL);
    CHECK_INT(revdial_proxy_wait(r->w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
    if (!CHECK(r->fd >= 0)) return 0;
    r->st = leaver_dial(r, &r->id);
    if (!r->st) return 0;
    r->thread = util_thread(leaver_read, r);
    UTIL_EVENTUALLY(waiting_on(r->st->session, &reader) == 1);
    return 1;
}

// A frame for another stream and a byte for the thread, in one segment. The thread leaves.
static void leaver_send(leaver *r, uint16_t flags, uint32_t id, uint32_t n)
{
    uint8_t wire[25] = {0};
    raw_frame_put(wire, RAW_WINDOW, flags, id, n);
    raw_frame_put(wire + 12, RAW_DATA, 0, r->id, 1);
    raw_send(r->fd, wire, sizeof wire);
    pthread_join(r->thread, NULL);
    CHECK_INT(r->n, 1);
}

static void leaver_close(leaver *r)
{
    revdial_close(r->st);
    if (r->fd >= 0) close(r->fd);
    world_close(&r->w);
}

TEST(a_thread_that_leaves_has_the_loop_look_at_the_clock_for_a_writer_that_stays)
{
    leaver r = {.fd = -1};
    world_init(&r.w);
    if (leaver_open(&r)) {
        uint32_t id = 0;
        tiny w10 = {.st = leaver_dial(&r, &id)};
        util_gate_init(&w10.go);
        util_gate_init(&w10.done);
        util_gate_add(&w10.go, 1);
        pthread_t t = util_thread(tiny_write, &w10);
        UTIL_EVENTUALLY(leaver_is_quiet(&r, 2));
        leaver_send(&r, 0, id, 512);
        CHECK(util_gate_wait_ms(&w10.done, 1, UTIL_WAIT_MS / 3));
        pthread_join(t, NULL);
        CHECK_INT(w10.n, 262144 + 10);
        revdial_close(w10.st);
    }
    leaver_close(&r);
}

static void on_stream_to_ignore(void *ud, revdial_stream *st)
{
    util_gate_wait(&((world *)ud)->go, 1);
    revdial_close(st);
}

TEST(a_thread_that_leaves_has_the_loop_look_at_the_clock_for_a_stream_that_nobody_accepts)
{
    leaver r = {.fd = -1};
    world_init(&r.w);
    r.w.pcfg.on_stream = on_stream_to_ignore;
    r.w.pcfg.common.limits.accept_timeout_ms = 100;
    if (leaver_open(&r)) {
        raw_frame f = {0};
        UTIL_EVENTUALLY(leaver_is_quiet(&r, 1));
        leaver_send(&r, RAW_SYN, 2, 0);
        while (leaver_frame(&r, &f, UTIL_WAIT_MS / 3) && f.id != 2) continue;
        CHECK_INT(f.id, 2);
        CHECK_INT(f.flags, RAW_RST);
    }
    leaver_close(&r);
}

// ------------------------------------------------------------------------------------------------
// Everything at once, on one session: threads that read, poll, give up and try again, and relays
// that take the socket back to the loop.

enum { CROWD = 5, CROWD_ROUNDS = 60 };

typedef struct member {
    world *w;
    unsigned seed;
    atomic_int bad;
} member;

// Reads what is there as the round asks for it. Returns bytes, or what ended it.
static ptrdiff_t member_read(revdial_stream *st, int fd, unsigned way, uint8_t *buf, size_t len)
{
    revdial_pollfd item = {st, -1, POLLIN, 0};
    ptrdiff_t n;
    if (way == 1) return raw_read(fd, buf, len);
    if (way == 2 && revdial_poll(&item, 1, UTIL_WAIT_MS) != 1) return REVDIAL_ETIMEDOUT;
    do {
        revdial_stream_set_deadline(st, REVDIAL_RD, way == 3 ? 1 : UTIL_WAIT_MS);
        n = revdial_read(st, buf, len);
    } while (n == REVDIAL_ETIMEDOUT && way == 3);
    return n;
}

static int member_round(member *m, unsigned round)
{
    unsigned way = (m->seed + round) % 4;
    size_t size = 1 + (m->seed * 7919u + round * 104729u) % 40000u, got = 0;
    static _Thread_local uint8_t out[40000], in[40000];
    revdial_stream *st = world_dial(m->w, "echo", 0, NULL);
    int fd = -1, ok;
    if (!st) return 0;
    util_fill(out, size, round, m->seed);
    if (way == 1 && (fd = revdial_stream_fd(st)) < 0) return 0;
    ok = fd >= 0 ? raw_send(fd, out, size) : revdial_write(st, out, size) == (ptrdiff_t)size;
    while (ok && got < size) {
        ptrdiff_t n = member_read(st, fd, way, in + got, size - got);
        if (n <= 0) break;
        got += (size_t)n;
    }
    if (fd >= 0)
        close(fd);
    else
        revdial_close(st);
    return got == size && memcmp(in, out, size) == 0;
}

static void *member_run(void *arg)
{
    member *m = arg;
    for (unsigned round = 0; round < CROWD_ROUNDS; round++)
        if (!member_round(m, round)) atomic_fetch_add(&m->bad, 1);
    return NULL;
}

static void crowd_run(world *w, void *(*run)(void *))
{
    member m[CROWD];
    pthread_t t[CROWD];
    for (unsigned i = 0; i < CROWD; i++) {
        m[i].w = w;
        m[i].seed = i;
        atomic_init(&m[i].bad, 0);
        t[i] = util_thread(run, &m[i]);
    }
    for (int i = 0; i < CROWD; i++) {
        pthread_join(t[i], NULL);
        CHECK_INT(atomic_load(&m[i].bad), 0);
    }
}

TEST(threads_polls_and_relays_share_a_session_and_no_byte_is_lost)
{
    world w;
    world_init(&w);
    w.pcfg.common.spin_us = 20;
    if (world_open(&w)) crowd_run(&w, member_run);
    world_close(&w);
}

WORLD_TEST(large_writes_from_the_callers_memory_arrive_as_they_are)
{
    enum { SIZE = 3000000, ROUNDS = 5 };
    for (unsigned round = 0; round < ROUNDS; round++) {
        revdial_stream *st = world_dial(w, "bulk-sink", 0, NULL);
        char ok[2] = "";
        CHECK_INT(util_write_bulk(st, SIZE), SIZE);
        revdial_shutdown(st, REVDIAL_WR);
        CHECK_INT(util_read_all(st, ok, 2), 2);
        revdial_close(st);
        CHECK(util_gate_wait(&w->ended, (int)round + 1));
        CHECK_INT(world_last(w).bytes, SIZE);
        CHECK_INT(world_last(w).is_bad, 0);
    }
}

enum { CROWD_BYTES = 2000000, CROWD_WRITE = 30000 };

// Writes and gives up after a moment, goes on where that left off, and uses its memory again for
// something else as soon as it has it back.
static void *hasty_write(void *arg)
{
    member *m = arg;
    static _Thread_local uint8_t buf[CROWD_WRITE];
    revdial_stream *st = world_dial(m->w, "bulk-sink", 0, NULL);
    size_t at = 0;
    char answer[3] = "";
    for (unsigned round = m->seed; st && at < CROWD_BYTES; round++) {
        size_t n = CROWD_BYTES - at < CROWD_WRITE ? CROWD_BYTES - at : CROWD_WRITE;
        memcpy(buf, util_pattern(at), n);
        revdial_stream_set_deadline(st, REVDIAL_WR, round % 3 ? UTIL_WAIT_MS : round % 2);
        ptrdiff_t w = revdial_write(st, buf, n);
        memset(buf, 0xEE, n);
        if (w < 0 && w != REVDIAL_ETIMEDOUT && w != REVDIAL_EAGAIN) break;
        at += w > 0 ? (size_t)w : 0;
    }
    revdial_shutdown(st, REVDIAL_WR);
    util_read_all(st, answer, 2);
    if (at < CROWD_BYTES || strcmp(answer, "ok") != 0) atomic_fetch_add(&m->bad, 1);
    revdial_close(st);
    return NULL;
}

TEST(writers_that_sleep_while_others_send_for_them_have_their_memory_back_when_they_return)
{
    world w;
    world_init(&w);
    if (world_open(&w)) crowd_run(&w, hasty_write);
    world_close(&w);
}

typedef struct left {
    revdial_stream *st;
    uint8_t *bytes;
    ptrdiff_t n;
} left;

enum { LEFT_BYTES = 8 << 20, LEFT_READ = 1 << 20, LEFT_PERIOD = 251 };

static void *left_write(void *arg)
{
    left *l = arg;
    l->n = revdial_write(l->st, l->bytes, LEFT_BYTES);
    memset(l->bytes, 0xEE, LEFT_BYTES);
    return NULL;
}

// Reads data to `until` at least. Returns how much there has been, or -1: not what was written.
static ptrdiff_t left_read(int fd, ptrdiff_t at, ptrdiff_t until)
{
    static uint8_t bytes[65536];
    raw_frame f = {0};
    while (at < until) {
        if (!raw_frame_await_data(fd, &f, bytes)) return -1;
        for (uint32_t i = 0; i < f.len; i++, at++)
            if (bytes[i] != at % LEFT_PERIOD) return -1;
    }
    return at;
}

static int is_stuck(revdial_session *s)
{
    int yes;
    pthread_mutex_lock(&s->lock);
    yes = s->reader.waiting == 1 && s->out.is_blocked;
    pthread_mutex_unlock(&s->lock);
    return yes;
}

// A write whose time is over while the socket is full of what it has left there.
TEST(a_write_that_gives_up_has_its_memory_back)
{
    world w;
    left l = {.bytes = calloc(LEFT_BYTES, 1)};
    world_init(&w);
    REQUIRE(l.bytes && world_open_proxy(&w));
    for (size_t i = 0; i < LEFT_BYTES; i++) l.bytes[i] = (uint8_t)(i % LEFT_PERIOD);
    int fd = raw_backend(w.address, "cam-1", NULL);
    CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
    l.st = revdial_dial(w.proxy, "cam-1", NULL, NULL);
    if (CHECK(fd >= 0 && l.st)) {
        raw_frame_send(fd, RAW_WINDOW, RAW_ACK, 1, LEFT_BYTES);
        pthread_t t = util_thread(left_write, &l);
        ptrdiff_t at = left_read(fd, 0, LEFT_READ);
        revdial_session *s = revdial_stream_session(l.st);
        UTIL_EVENTUALLY(is_stuck(s));
        revdial_stream_set_deadline(l.st, REVDIAL_WR, 1);
        pthread_join(t, NULL);
        CHECK(l.n > at && l.n < LEFT_BYTES);
        CHECK_INT(left_read(fd, at, l.n), l.n);
        revdial_session_unref(s);
    }
    revdial_close(l.st);
    if (fd >= 0) close(fd);
    free(l.bytes);
    world_close(&w);
}

// ------------------------------------------------------------------------------------------------
// Large writes to a connection that is broken

enum { BROKEN_BYTES = 65536 };

// The connection breaks in the write, and nobody but this thread can say that the session is over.
static void on_dial_that_breaks(void *ud, revdial_stream *st, const revdial_err *err)
{
    static uint8_t bytes[BROKEN_BYTES];
    called *c = ud;
    (void)err;
    if (st) {
        shutdown(st->session->fd, SHUT_WR);
        revdial_write(st, bytes, sizeof bytes);
    }
    revdial_close(st);
    util_gate_add(&c->done, 1);
}

WORLD_TEST(a_large_write_on_an_IO_thread_returns_though_the_connection_breaks)
{
    called c;
    revdial_kv meta = {"do", "hold"};
    revdial_dial_opts opts = {.meta = &meta, .meta_count = 1};
    called_init(&c, w);
    CHECK(revdial_dial_async(w->proxy, "cam-1", &opts, on_dial_that_breaks, &c) > 0);
    CHECK(util_gate_wait(&c.done, 1));
}

typedef struct broken {
    revdial_stream *st;
    util_gate done;
} broken;

static void *broken_write(void *arg)
{
    static uint8_t bytes[BROKEN_BYTES];
    broken *b = arg;
    revdial_write(b->st, bytes, sizeof bytes);
    util_gate_add(&b->done, 1);
    return NULL;
}

// What the failed send was shown is the writer's again at once, not when the loop has ended the
// session.
WORLD_TEST(a_large_write_has_its_memory_back_as_soon_as_the_connection_breaks)
{
    broken b = {.st = world_dial(w, "hold", 0, NULL)};
    util_held_loop held;
    REQUIRE(b.st != NULL);
    util_gate_init(&b.done);
    revdial_stream_set_deadline(b.st, REVDIAL_WR, 0);
    util_loop_hold(&held, b.st->session->loop);
    shutdown(b.st->session->fd, SHUT_WR);
    pthread_t t = util_thread(broken_write, &b);
    CHECK(util_gate_wait(&b.done, 1));
    util_loop_let_go(&held);
    pthread_join(t, NULL);
    revdial_close(b.st);
}

// Reads that ask for parts; the round says of which shape. Returns bytes, in `to` in their order.
static ptrdiff_t shaped_read(revdial_stream *st, unsigned shape, uint8_t *to, size_t len)
{
    struct iovec iov[5] = {{NULL, 0}, {NULL, 0}, {NULL, 0}, {NULL, 0}, {NULL, 0}};
    size_t first = shape % 3 == 0 ? 1 : shape % 3 == 1 ? len / 2 : len;
    if (first > len) first = len;
    iov[shape & 1].iov_base = to;
    iov[shape & 1].iov_len = first;
    iov[2 + (shape >> 1 & 1)].iov_base = to + first;
    iov[2 + (shape >> 1 & 1)].iov_len = len - first;
    return revdial_readv(st, iov, 5);
}

WORLD_TEST(reads_of_any_shape_and_size_give_the_bytes_in_order)
{
    enum { ASKED = 70000, LONGEST = 9000 };
    static uint8_t out[ASKED], in[ASKED];
    static const size_t sizes[] = {1, 2, 11, 12, 13, 63, 64, 512, 513, 4096, LONGEST};
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    size_t at = 0, got = 0;
    REQUIRE(st != NULL);
    revdial_stream_set_deadline(st, REVDIAL_RDWR, UTIL_WAIT_MS);
    util_fill(out, ASKED, 0, 7);
    for (unsigned round = 0; got < ASKED; round++) {
        size_t more = sizes[round * 7 % 11], asks = sizes[round % 11];
        if (more > ASKED - at) more = ASKED - at;
        if (asks > ASKED - got) asks = ASKED - got;
        CHECK_INT(revdial_write(st, out + at, more), more);
        at += more;
        if (at == got) continue;
        ptrdiff_t n = shaped_read(st, round, in + got, asks);
        if (!CHECK(n > 0 && (size_t)n <= asks)) break;
        got += (size_t)n;
    }
    CHECK(memcmp(in, out, ASKED) == 0);
    revdial_close(st);
}

WORLD_TEST(a_read_into_nothing_does_not_wait_and_takes_nothing)
{
    struct iovec none[2] = {{NULL, 0}, {NULL, 0}};
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    char c = 0;
    REQUIRE(st != NULL);
    revdial_pollfd item = {st, -1, POLLIN, 0};
    CHECK_INT(revdial_readv(st, none, 2), REVDIAL_EINVAL);
    CHECK_INT(revdial_write(st, "x", 1), 1);
    CHECK_INT(revdial_poll(&item, 1, UTIL_WAIT_MS), 1);
    CHECK_INT(revdial_readv(st, none, 2), REVDIAL_EINVAL);
    CHECK_INT(revdial_read(st, &c, 1), 1);
    CHECK_INT(c, 'x');
    revdial_close(st);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
