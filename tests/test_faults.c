// What must stay true when things break: a stream that is cut is a prefix and an error and never an
// EOF, nobody else notices, whoever waits wakes up, memory stays bounded, and nothing is left behind
// by failures of memory, threads, descriptors and signals.
#include "runtime_util.h"

// ------------------------------------------------------------------------------------------------
// A cut: a TCP relay between agent and proxy that ends the connection after so many bytes.

enum { CUT_TO_PROXY, CUT_TO_AGENT };
enum { CUT_RST, CUT_FIN };

typedef struct cutter {
    int listener, port, wake[2];
    char upstream[80], url[64];
    pthread_t thread;
    pthread_mutex_t lock;
    int way, how;    // guarded by lock, as `left`
    int64_t left;    // bytes until the cut; -1: none
    util_gate cuts;
} cutter;

static void cutter_arm(cutter *c, int way, int how, int64_t left)
{
    pthread_mutex_lock(&c->lock);
    c->way = way;
    c->how = how;
    c->left = left;
    pthread_mutex_unlock(&c->lock);
}

// How many of n bytes may pass; *cut is set when the connection has to end after them.
static size_t cutter_allow(cutter *c, int way, size_t n, int *cut, int *how)
{
    pthread_mutex_lock(&c->lock);
    if (c->left >= 0 && c->way == way) {
        if ((int64_t)n >= c->left) {
            n = (size_t)c->left;
            *cut = 1;
            *how = c->how;
            c->left = -1;
        } else {
            c->left -= (int64_t)n;
        }
    }
    pthread_mutex_unlock(&c->lock);
    return n;
}

// One connection, until it ends or the cutter is closed. Returns 0 when closed.
static int cutter_serve(cutter *c, int agent, int proxy)
{
    struct pollfd p[3] = {{agent, POLLIN, 0}, {proxy, POLLIN, 0}, {c->wake[0], POLLIN, 0}};
    char buf[16384];
    for (;;) {
        if (poll(p, 3, -1) < 0) continue;
        if (p[2].revents) return 0;
        for (int i = 0; i < 2; i++) {
            int cut = 0, how = CUT_FIN;
            if (!p[i].revents) continue;
            ssize_t n = recv(p[i].fd, buf, sizeof buf, 0);
            if (n <= 0) return 1;
            size_t len = cutter_allow(c, i == 0 ? CUT_TO_PROXY : CUT_TO_AGENT, (size_t)n, &cut, &how);
            if (!raw_send(p[1 - i].fd, buf, len)) return 1;
            if (!cut) continue;
            struct linger now = {how == CUT_RST, 0};
            for (int k = 0; k < 2; k++)
                setsockopt(p[k].fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
            return 2;
        }
    }
}

static void *cutter_run(void *arg)
{
    cutter *c = arg;
    int open = 1;
    while (open) {
        struct pollfd p[2] = {{c->listener, POLLIN, 0}, {c->wake[0], POLLIN, 0}};
        if (poll(p, 2, -1) < 0) continue;
        if (p[1].revents) break;
        int agent = accept4(c->listener, NULL, NULL, SOCK_CLOEXEC), proxy = raw_connect(c->upstream);
        if (agent >= 0 && proxy >= 0) open = cutter_serve(c, agent, proxy);
        if (agent >= 0) close(agent);
        if (proxy >= 0) close(proxy);
        if (open == 2) util_gate_add(&c->cuts, 1);
    }
    return NULL;
}

static void cutter_open(cutter *c, const char *upstream)
{
    memset(c, 0, sizeof *c);
    pthread_mutex_init(&c->lock, NULL);
    util_gate_init(&c->cuts);
    c->left = -1;
    c->listener = raw_listen(8, &c->port);
    snprintf(c->url, sizeof c->url, "http://127.0.0.1:%d", c->port);
    snprintf(c->upstream, sizeof c->upstream, "%s", upstream);
    if (pipe2(c->wake, O_CLOEXEC) < 0) abort();
    c->thread = util_thread(cutter_run, c);
}

static void cutter_close(cutter *c)
{
    if (write(c->wake[1], "", 1) != 1) abort();
    pthread_join(c->thread, NULL);
    close(c->wake[0]);
    close(c->wake[1]);
    close(c->listener);
}

// A world whose agent 0 comes through a cutter, and whose agent 1, "other", comes directly.
static int open_cut_world(world *w, cutter *c)
{
    world_init(w);
    if (!world_open_proxy(w)) return 0;
    cutter_open(c, w->address);
    w->acfg.url = w->url;
    w->acfg.name = "other";
    if (!world_open_agent(w, 1)) return 0;
    w->acfg.url = c->url;
    w->acfg.name = "cam-1";
    return world_open_agent(w, 0) &&
           revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS) == 1 &&
           revdial_proxy_wait(w->proxy, "other", 1, UTIL_WAIT_MS) == 1;
}

static const int64_t cuts[] = {0, 1, 11, 12, 13, 100, 4095, 16383, 16384, 16397, 40000, 65536, 180001};

TEST(F8_F9_a_reader_gets_a_true_prefix_and_an_error_wherever_the_connection_is_cut)
{
    enum { TOTAL = 1000000 };
    world w;
    cutter c;
    char buf[4];
    if (open_cut_world(&w, &c)) {
        revdial_stream *other = revdial_dial(w.proxy, "other", NULL, NULL);
        CHECK(other != NULL);
        int lost = 0;
        for (size_t i = 0; i < 2 * sizeof cuts / sizeof *cuts; i++) {
            revdial_err err = {0};
            revdial_stream *st = world_dial(&w, "source", TOTAL, &err);
            if (!CHECK(st != NULL)) break;
            cutter_arm(&c, CUT_TO_PROXY, i % 2 ? CUT_FIN : CUT_RST, cuts[i / 2]);
            util_read r = util_read_payload(st, 1);
            int why = revdial_error(st, NULL);
            if (r.end >= 0 || r.is_bad || r.bytes >= TOTAL || why != REVDIAL_ELOST)
                test_fail(__FILE__, __LINE__, "cut %d: %d bytes%s, then %d; %d", (int)i, (int)r.bytes,
                          r.is_bad ? ", not those sent" : "", r.end, why);
            revdial_close(st);
            CHECK(util_gate_wait(&c.cuts, (int)i + 1));
            CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, ++lost, NULL));
            CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
        }
        if (other) {  // has not noticed
            CHECK_INT(revdial_write(other, "ping", 4), 4);
            CHECK_INT(util_read_all(other, buf, 4), 4);
        }
        revdial_close(other);
    }
    world_close(&w);
    cutter_close(&c);
}

TEST(F8_F9_a_handler_gets_a_true_prefix_and_an_error_wherever_the_connection_is_cut)
{
    enum { TOTAL = 1000000 };
    world w;
    cutter c;
    if (open_cut_world(&w, &c)) {
        for (size_t i = 0; i < 2 * sizeof cuts / sizeof *cuts; i++) {
            revdial_stream *st = world_dial(&w, "hold", 0, NULL);
            if (!CHECK(st != NULL)) break;
            cutter_arm(&c, CUT_TO_AGENT, i % 2 ? CUT_FIN : CUT_RST, cuts[i / 2]);
            util_write_payload(st, TOTAL, 2);
            revdial_close(st);  // its FIN never arrives
            CHECK(util_gate_wait(&w.ended, (int)i + 1));
            util_read r = world_last(&w);
            if (r.end >= 0 || r.is_bad || r.bytes >= TOTAL)
                test_fail(__FILE__, __LINE__, "cut %d: %d bytes%s, then %d", (int)i, (int)r.bytes,
                          r.is_bad ? ", not those sent" : "", r.end);
            CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, (int)i + 1, NULL));
            CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
        }
    }
    world_close(&w);
    cutter_close(&c);
}

TEST(a_kill_in_mid_transfer_is_a_prefix_and_an_error_at_both_ends)
{
    world w;
    world_init(&w);
    if (world_open(&w)) {
        for (int side = 0; side < 2; side++) {
            revdial_stream *in = world_dial(&w, "source", 50000000, NULL);
            revdial_stream *out = world_dial(&w, "hold", 0, NULL);
            revdial_session *s = side ? revdial_agent_session(w.agents[0], UTIL_WAIT_MS)
                                      : revdial_stream_session(in);
            uint8_t buf[50000];
            if (!CHECK(in && out && s)) break;
            CHECK_INT(util_read_all(in, buf, sizeof buf), sizeof buf);
            CHECK_INT(util_write_payload(out, 50000, 2), 50000);
            revdial_session_kill(s);
            uint64_t got = sizeof buf;
            ptrdiff_t n;
            while ((n = revdial_read(in, buf, sizeof buf)) > 0) {
                CHECK(util_matches(buf, (size_t)n, got, 1));
                got += (uint64_t)n;
            }
            CHECK_INT(n, side ? REVDIAL_ELOST : REVDIAL_ECLOSED);
            CHECK(revdial_write(out, "x", 1) < 0);
            CHECK_INT(revdial_error(out, NULL), side ? REVDIAL_ELOST : REVDIAL_ECLOSED);
            revdial_close(in);
            revdial_close(out);
            CHECK(util_gate_wait(&w.ended, 2 * side + 2));
            CHECK(world_last(&w).end < 0);
            CHECK_INT(world_last(&w).is_bad, 0);
            revdial_session_unref(s);
            CHECK(util_log_wait(&w.states, REVDIAL_UP, side + 2, NULL));
            CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, side + 1, NULL));
            revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS);
        }
    }
    world_close(&w);
}

// ------------------------------------------------------------------------------------------------
// Whoever waits wakes up

enum { WAIT_READ, WAIT_WRITE, WAIT_DIAL, WAIT_POLL, WAIT_FD, WAITERS };

typedef struct waiter {
    world *w;
    int what;
    revdial_stream *st;
    pthread_t thread;
    util_gate began, done;
    int result;
} waiter;

static void *waiter_run(void *arg)
{
    waiter *x = arg;
    char buf[4096] = "";
    revdial_err err = {0};
    revdial_pollfd p = {x->st, 0, POLLIN, 0};
    util_gate_add(&x->began, 1);
    if (x->what == WAIT_READ) x->result = (int)revdial_read(x->st, buf, 1);
    if (x->what == WAIT_WRITE) {
        while (revdial_write(x->st, buf, sizeof buf) == (ptrdiff_t)sizeof buf) {
        }
        x->result = revdial_error(x->st, NULL);
    }
    if (x->what == WAIT_DIAL) {
        world_dial(x->w, "silent", 0, &err);
        x->result = err.code;
    }
    if (x->what == WAIT_POLL) {
        revdial_poll(&p, 1, -1);
        x->result = -(p.revents & POLLERR);
    }
    if (x->what == WAIT_FD) {
        int fd = revdial_stream_fd(x->st);
        x->result = fd < 0 || recv(fd, buf, 1, 0) >= 0 ? 0 : -errno;
        close(fd);
        x->st = NULL;
    }
    util_gate_add(&x->done, 1);
    return NULL;
}

TEST(all_who_wait_wake_at_the_death_of_their_session_and_at_the_close_of_the_proxy)
{
    enum { KILLED_HERE, KILLED_THERE, PROXY_CLOSED };
    for (int how = KILLED_HERE; how <= PROXY_CLOSED; how++) {
        world w;
        waiter x[WAITERS];
        world_init(&w);
        if (world_open(&w)) {
            for (int i = 0; i < WAITERS; i++) {
                memset(&x[i], 0, sizeof x[i]);
                util_gate_init(&x[i].began);
                util_gate_init(&x[i].done);
                x[i].w = &w;
                x[i].what = i;
                if (i != WAIT_DIAL) x[i].st = world_dial(&w, i == WAIT_WRITE ? "stop" : "hold", 0, NULL);
                x[i].thread = util_thread(waiter_run, &x[i]);
                util_gate_wait(&x[i].began, 1);
            }
            revdial_ledger l;
            UTIL_EVENTUALLY(revdial_stream_ledger(x[WAIT_WRITE].st, &l) == 0 &&
                            strcmp(l.blocked_on, "peer's credit") == 0);
            CHECK(util_gate_wait(&w.held, WAITERS));
            util_nap_ms(10);
            revdial_session *s = NULL;
            if (how == KILLED_HERE) revdial_proxy_list(w.proxy, NULL, &s, 1);
            if (how == KILLED_THERE) s = revdial_agent_session(w.agents[0], UTIL_WAIT_MS);
            revdial_session_kill(s);
            revdial_session_unref(s);
            if (how == PROXY_CLOSED) {
                revdial_proxy_close(w.proxy);
                w.proxy = NULL;
            }
            for (int i = 0; i < WAITERS; i++) {
                if (!util_gate_wait(&x[i].done, 1))
                    test_fail(__FILE__, __LINE__, "waiter %d sleeps on, end %d", i, how);
                pthread_join(x[i].thread, NULL);
                if (x[i].result >= 0) test_fail(__FILE__, __LINE__, "waiter %d: no error", i);
                revdial_close(x[i].st);
            }
            CHECK_INT(x[WAIT_FD].result, -ECONNRESET);
            CHECK_INT(x[WAIT_DIAL].result, how == KILLED_THERE ? REVDIAL_ELOST : REVDIAL_ECLOSED);
            CHECK_INT(x[WAIT_READ].result, how == KILLED_THERE ? REVDIAL_ELOST : REVDIAL_ECLOSED);
            CHECK_INT(x[WAIT_WRITE].result, how == KILLED_THERE ? REVDIAL_ELOST : REVDIAL_ECLOSED);
        }
        world_close(&w);
    }
}

static atomic_int pipe_signals;
static void on_sigpipe(int sig) { atomic_fetch_add(&pipe_signals, sig == SIGPIPE); }

TEST(U24_nothing_that_breaks_raises_SIGPIPE)
{
    struct sigaction ours, before;
    world w;
    cutter c;
    char buf[65536] = "";
    memset(&ours, 0, sizeof ours);
    ours.sa_handler = on_sigpipe;
    sigaction(SIGPIPE, &ours, &before);
    if (open_cut_world(&w, &c)) {
        revdial_stream *st = world_dial(&w, "hold", 0, NULL);
        CHECK(st != NULL);
        cutter_arm(&c, CUT_TO_PROXY, CUT_RST, 0);
        revdial_deadline(st, REVDIAL_WR, UTIL_WAIT_MS);
        while (revdial_write(st, buf, sizeof buf) > 0) {
        }
        CHECK(revdial_write(st, buf, 1) < 0);
        revdial_close(st);
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
        int in[2], out[2];  // a joined pipe whose reader goes away
        if (pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0) {
            CHECK_INT(revdial_join(world_dial(&w, "flood", 0, NULL), in[0], out[1], NULL), 0);
            CHECK_INT(read(out[0], buf, 100), 100);
            close(out[0]);
            int ended = util_gate_count(&w.ended);
            CHECK(ended >= 2 || util_gate_wait(&w.ended, 2));
            close(in[1]);
        }
    }
    world_close(&w);
    cutter_close(&c);
    sigaction(SIGPIPE, &before, NULL);
    CHECK_INT(atomic_load(&pipe_signals), 0);
}

// ------------------------------------------------------------------------------------------------
// Isolation and memory

enum { STALLED = 200, BULK = 64 << 20 };

// What one session may hold: unread bytes up to its window, streams at 2 KiB with what belongs to
// them, and its own buffers.
static int is_within_budget(const revdial_stats *stats, size_t session_window)
{
    size_t most = session_window + STALLED * 2048 + (3 << 20);
    if (stats->memory_bytes <= most) return 1;
    return test_fail(__FILE__, __LINE__, "%zu bytes, more than %zu", stats->memory_bytes, most);
}

TEST(F17_F18_200_streams_that_nobody_reads_do_not_keep_one_from_moving_64_MB_in)
{
    static revdial_stream *stalled[STALLED];
    world w;
    revdial_stats stats;
    world_init(&w);
    w.pcfg.common.limits.session_window = 16 << 20;
    if (world_open(&w)) {
        revdial_ledger l;
        for (int i = 0; i < STALLED; i++) stalled[i] = world_dial(&w, "flood", 0, NULL);
        for (int i = 0; i < STALLED; i++)
            UTIL_EVENTUALLY(revdial_stream_ledger(stalled[i], &l) == 0 && l.recv_credit == 0);
        revdial_proxy_stats(w.proxy, &stats);
        CHECK_INT(stats.streams, STALLED);
        CHECK(stats.memory_bytes >= STALLED * 65536);
        is_within_budget(&stats, 16 << 20);
        revdial_stream *st = world_dial(&w, "bulk", BULK, NULL);
        if (CHECK(st != NULL)) {
            util_read r = util_read_bulk(st);
            CHECK_INT(r.bytes, BULK);
            CHECK_INT(r.end, 0);
            CHECK_INT(r.is_bad, 0);
            revdial_proxy_stats(w.proxy, &stats);
            is_within_budget(&stats, 16 << 20);
            revdial_close(st);
        }
        for (int i = 0; i < STALLED; i++) {
            CHECK_INT(revdial_error(stalled[i], NULL), 0);
            revdial_reset(stalled[i], REVDIAL_RESET_CANCEL);
            revdial_close(stalled[i]);
        }
        CHECK(util_gate_wait(&w.ended, STALLED));
        UTIL_EVENTUALLY((revdial_proxy_stats(w.proxy, &stats), stats.memory_bytes < 2 << 20));
    }
    world_close(&w);
}

TEST(F17_F18_200_handlers_that_do_not_read_do_not_keep_one_from_moving_64_MB_out)
{
    static revdial_stream *stalled[STALLED];
    world w;
    revdial_stats stats;
    char buf[2];
    world_init(&w);
    w.acfg.common.limits.session_window = 32 << 20;
    if (world_open(&w)) {
        char junk[65536] = "";
        for (int i = 0; i < STALLED; i++) {
            revdial_err err = {0};
            stalled[i] = world_dial(&w, "stop", 0, &err);
            if (!stalled[i]) test_fail(__FILE__, __LINE__, "dial %d: %s", i, err.msg);
            if (!CHECK(stalled[i] != NULL)) break;
            revdial_ledger l;
            revdial_stream_ledger(stalled[i], &l);
            CHECK_INT(revdial_write(stalled[i], junk, l.send_credit), l.send_credit);
        }
        revdial_stream *st = world_dial(&w, "bulk-sink", 0, NULL);
        if (CHECK(st != NULL)) {
            CHECK_INT(util_write_bulk(st, BULK), BULK);
            revdial_shutdown(st, REVDIAL_WR);
            CHECK_INT(util_read_all(st, buf, 2), 2);
            revdial_close(st);
            CHECK(util_gate_wait(&w.ended, 1));
            CHECK_INT(world_last(&w).bytes, BULK);
            CHECK_INT(world_last(&w).is_bad, 0);
        }
        revdial_agent_stats(w.agents[0], &stats);
        CHECK(stats.memory_bytes >= STALLED * 65000);
        is_within_budget(&stats, 32 << 20);
        for (int i = 0; i < STALLED; i++) revdial_close(stalled[i]);
    }
    world_close(&w);
}

TEST(a_session_over_its_window_gives_up_streams_with_CALM_and_lives)
{
    enum { MANY = 120 };
    static revdial_stream *st[MANY];
    world w;
    revdial_stats stats;
    world_init(&w);
    w.pcfg.common.limits.session_window = 1 << 20;
    if (world_open(&w)) {
        int calm = 0, refused = 0;
        for (int i = 0; i < MANY; i++) {
            revdial_err err;
            st[i] = world_dial(&w, "flood", 0, &err);
            if (!st[i]) refused++;
        }
        for (int i = 0; i < MANY; i++) {
            revdial_ledger l;
            int reset = 0;
            if (!st[i]) continue;
            UTIL_EVENTUALLY(revdial_error(st[i], NULL) != 0 ||
                            (revdial_stream_ledger(st[i], &l) == 0 && l.recv_credit == 0));
            if (revdial_error(st[i], &reset)) calm += CHECK_INT(reset, REVDIAL_RESET_CALM);
        }
        CHECK(calm > 0);
        revdial_proxy_stats(w.proxy, &stats);
        is_within_budget(&stats, 1 << 20);
        for (int i = 0; i < MANY; i++) {
            if (st[i]) revdial_reset(st[i], REVDIAL_RESET_CANCEL);
            revdial_close(st[i]);
        }
        CHECK(util_gate_wait(&w.ended, MANY - refused));
        revdial_stream *echo = world_dial(&w, "echo", 0, NULL);
        CHECK(echo != NULL);
        revdial_close(echo);
        CHECK_INT(util_log_count(&w.sessions, REVDIAL_DOWN, NULL), 0);
    }
    world_close(&w);
}

// ------------------------------------------------------------------------------------------------
// Liveness

TEST(F3_a_backend_that_goes_silent_is_declared_dead_and_one_that_answers_is_not)
{
    world w;
    util_state e = {0};
    raw_frame f = {0};
    world_init(&w);
    w.pcfg.common.limits.keepalive_ms = 20;
    w.pcfg.common.limits.dead_after_ms = 200;
    if (world_open_proxy(&w)) {
        int alive = raw_backend(w.address, "alive", NULL);
        for (int i = 0; i < 10; i++) {
            if (!CHECK(raw_frame_await(alive, RAW_PING, &f))) break;
            CHECK_INT(f.flags, RAW_SYN);
            raw_frame_send(alive, RAW_PING, RAW_ACK, 0, f.len);
        }
        CHECK_INT(util_log_count(&w.sessions, REVDIAL_DOWN, NULL), 0);
        close(alive);
        CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 1, &e));
        int silent = raw_backend(w.address, "silent", NULL);
        revdial_proxy_wait(w.proxy, "silent", 1, UTIL_WAIT_MS);
        revdial_stream *st = revdial_dial(w.proxy, "silent", NULL, NULL);
        CHECK(st != NULL);
        char c;
        CHECK_INT(st ? revdial_read(st, &c, 1) : 0, REVDIAL_ELOST);
        revdial_close(st);
        CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 2, &e));
        CHECK_INT(e.code, REVDIAL_ELOST);
        close(silent);
    }
    world_close(&w);
}

TEST(F5_an_agent_notices_a_proxy_that_goes_silent_without_any_stream_and_comes_back)
{
    world w;
    int port = 0, listener = raw_listen(4, &port);
    char url[64], head[2048];
    util_state e = {0};
    world_init(&w);
    snprintf(url, sizeof url, "http://127.0.0.1:%d", port);
    w.acfg.url = url;
    w.acfg.common.limits.keepalive_ms = w.acfg.common.limits.dead_after_ms = 30;
    w.agents[0] = revdial_agent_start(&w.acfg, NULL);
    for (int i = 0; i < 2; i++) {
        int fd = raw_proxy_accept(listener, head, sizeof head);
        CHECK(fd >= 0);
        raw_say(fd, RAW_101);
        CHECK(util_log_wait(&w.states, REVDIAL_DOWN, i + 1, &e));
        CHECK_INT(e.code, REVDIAL_ELOST);
        close(fd);
    }
    world_close(&w);
    close(listener);
}

static void *writer_run(void *arg)
{
    char buf[65536] = "";
    while (revdial_write(arg, buf, sizeof buf) > 0) {
    }
    return NULL;
}

TEST(B2_a_backend_that_takes_no_bytes_is_dead_after_write_stall)
{
    world w;
    raw_frame f = {0};
    util_state e = {0};
    world_init(&w);
    w.pcfg.common.limits.write_stall_ms = 100;
    if (world_open_proxy(&w)) {
        int fd = raw_backend(w.address, "cam-1", NULL);
        revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS);
        revdial_stream *st = revdial_dial(w.proxy, "cam-1", NULL, NULL);
        if (CHECK(st != NULL) && CHECK(raw_frame_await(fd, RAW_WINDOW, &f))) {
            raw_frame_send(fd, RAW_WINDOW, RAW_ACK, f.id, 1u << 30);
            pthread_t t = util_thread(writer_run, st);
            CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 1, &e));
            CHECK_INT(e.code, REVDIAL_ELOST);
            pthread_join(t, NULL);
            CHECK_INT(revdial_error(st, NULL), REVDIAL_ELOST);
        }
        revdial_close(st);
        close(fd);
    }
    world_close(&w);
}

// ------------------------------------------------------------------------------------------------
// Memory that cannot be had

typedef struct locked_heap {
    pthread_mutex_t lock;
    test_heap heap;
} locked_heap;

static void *locked_alloc(void *ud, void *ptr, size_t old_size, size_t new_size)
{
    locked_heap *h = ud;
    pthread_mutex_lock(&h->lock);
    void *p = test_heap_alloc(&h->heap, ptr, old_size, new_size);
    pthread_mutex_unlock(&h->lock);
    return p;
}

static void heap_world(world *w, locked_heap *h, size_t fail_at, int for_ever)
{
    world_init(w);
    memset(h, 0, sizeof *h);
    pthread_mutex_init(&h->lock, NULL);
    h->heap.fail_at = fail_at;
    h->heap.fail_forever = for_ever;
    w->pcfg.common.alloc = w->acfg.common.alloc = locked_alloc;
    w->pcfg.common.alloc_ud = w->acfg.common.alloc_ud = h;
}

static void heap_is_empty(const locked_heap *h, size_t n)
{
    if (h->heap.live_blocks || h->heap.live_bytes)
        test_fail(__FILE__, __LINE__, "allocation %zu failed: %zu blocks, %zu bytes are left", n,
                  h->heap.live_blocks, h->heap.live_bytes);
}

// Everything once, with retries. Returns 1 if all went well in the end, -1 if it could not start.
static int heap_story(world *w)
{
    revdial_err err = {0};
    char buf[4];
    w->proxy = revdial_proxy_open(&w->pcfg, &err);
    if (!w->proxy) return CHECK_INT(err.code, REVDIAL_ENOMEM) ? -1 : 0;
    revdial_proxy_address(w->proxy, 0, w->address, sizeof w->address);
    snprintf(w->url, sizeof w->url, "http://%s", w->address);
    w->acfg.url = w->url;
    w->agents[0] = revdial_agent_start(&w->acfg, &err);
    if (!w->agents[0]) return CHECK_INT(err.code, REVDIAL_ENOMEM) ? -1 : 0;
    for (int tries = 0; tries < 4; tries++) {
        util_state e = {0};
        int wait_ms = 0, is_up;
        do {  // one that was told to wait by Retry-After is not waited for
            is_up = revdial_proxy_wait(w->proxy, "cam-1", 1, 20) == 1;
            if (util_log_count(&w->states, REVDIAL_BACKOFF, &e) && e.retry_ms >= 1000) return 1;
            wait_ms += 20;
        } while (!is_up && wait_ms < UTIL_WAIT_MS);
        if (!is_up) return 0;
        revdial_stream *st = world_dial(w, "echo", 0, &err);
        int ok = st && revdial_write(st, "ping", 4) == 4 && util_read_all(st, buf, 4) == 4;
        revdial_close(st);
        if (ok) return 1;
    }
    return 0;
}

TEST(U34_whichever_allocation_fails_once_an_error_says_so_or_it_is_tried_again_and_nothing_leaks)
{
    size_t most = 0;  // allocations of a story without failures, the first
    for (size_t n = 0; n <= most && n < 300 && test_failures < 5; n++) {
        world w;
        locked_heap h;
        heap_world(&w, &h, n, 0);
        int result = heap_story(&w);
        if (!result) test_fail(__FILE__, __LINE__, "allocation %zu failed, and nothing goes on", n);
        if (n == 0) most = h.heap.calls;
        world_close(&w);
        heap_is_empty(&h, n);
    }
    CHECK(most > 20);
}

TEST(U34_from_whichever_allocation_on_all_fail_all_calls_return_and_nothing_leaks)
{
    for (size_t n = 1; n < 80 && test_failures < 5; n++) {
        world w;
        locked_heap h;
        revdial_err err = {0};
        heap_world(&w, &h, n, 1);
        w.proxy = revdial_proxy_open(&w.pcfg, &err);
        if (w.proxy) {
            revdial_proxy_address(w.proxy, 0, w.address, sizeof w.address);
            snprintf(w.url, sizeof w.url, "http://%s", w.address);
            w.acfg.url = w.url;
            w.agents[0] = revdial_agent_start(&w.acfg, &err);
            if (w.agents[0] && revdial_proxy_wait(w.proxy, "cam-1", 1, 20) == 1)
                revdial_close(world_dial(&w, "echo", 0, &err));
        }
        world_close(&w);
        heap_is_empty(&h, n);
    }
}

// ------------------------------------------------------------------------------------------------
// Threads, descriptors, signals

TEST(U33_a_thread_that_cannot_be_had_is_an_error_and_nothing_is_left_of_the_attempt)
{
    world w;
    revdial_err err;
    world_init(&w);
    w.pcfg.common.io_threads = 3;
    int fds = util_fds(), threads = util_threads();
    for (int spare = 0; spare < 3; spare++) {
        atomic_store(&util_thread_spare, spare);
        atomic_store(&util_thread_fail, 1);
        CHECK(revdial_proxy_open(&w.pcfg, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_ESYS);
        CHECK_INT(err.sys, EAGAIN);
        CHECK_INT(util_fds(), fds);
        UTIL_EVENTUALLY(util_threads() == threads);
    }
    atomic_store(&util_thread_fail, 0);
    w.pcfg.common.io_threads = 1;
    if (world_open_proxy(&w)) {
        w.acfg.url = w.url;
        atomic_store(&util_thread_spare, 0);
        atomic_store(&util_thread_fail, 1);
        CHECK(revdial_agent_start(&w.acfg, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_ESYS);
        atomic_store(&util_thread_spare, 1);  // the loop has one, the resolver has none at first
        atomic_store(&util_thread_fail, 1);
        CHECK(world_open_agent(&w, 0));
        revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS);
        atomic_store(&util_thread_spare, 0);
        atomic_store(&util_thread_fail, 1);
        CHECK(world_dial(&w, "echo", 0, &err) == NULL);  // no thread for its handler
        CHECK_INT(err.code, REVDIAL_ELIMIT);
        revdial_stream *st = world_dial(&w, "echo", 0, &err);
        CHECK(st != NULL);
        revdial_close(st);
    }
    atomic_store(&util_thread_fail, 0);
    world_close(&w);
}

TEST(U30_a_proxy_without_descriptors_lets_connections_wait_and_its_sessions_live)
{
    world w;
    struct rlimit before, low;
    char buf[1024];
    getrlimit(RLIMIT_NOFILE, &before);
    world_init(&w);
    if (world_open(&w)) {
        int fd = raw_connect(w.address);
        int next = dup(fd);
        close(next);
        low = before;
        low.rlim_cur = (rlim_t)next;
        // The connection above has been accepted, or is accepted with the last descriptor.
        raw_request(buf, sizeof buf, "late", "s3cret", NULL);
        raw_say(fd, buf);
        CHECK(raw_head(fd, buf, sizeof buf) > 0);
        int late = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        next = dup(late);
        close(next);
        low.rlim_cur = (rlim_t)next;
        CHECK_INT(setrlimit(RLIMIT_NOFILE, &low), 0);
        struct sockaddr_in at;
        memset(&at, 0, sizeof at);
        at.sin_family = AF_INET;
        at.sin_port = htons((uint16_t)atoi(strrchr(w.address, ':') + 1));
        at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        CHECK_INT(connect(late, (struct sockaddr *)&at, sizeof at), 0);
        raw_request(buf, sizeof buf, "later", "s3cret", NULL);
        raw_say(late, buf);
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        if (CHECK(st != NULL)) {
            CHECK_INT(revdial_write(st, "ping", 4), 4);
            CHECK_INT(util_read_all(st, buf, 4), 4);
        }
        revdial_close(st);
        CHECK(!raw_wait(late, POLLIN, 150));  // longer than the proxy's pause
        setrlimit(RLIMIT_NOFILE, &before);
        CHECK(raw_head(late, buf, sizeof buf) > 0);
        CHECK_INT(raw_status(buf), 101);
        close(late);
        close(fd);
    }
    setrlimit(RLIMIT_NOFILE, &before);
    world_close(&w);
}

static void on_alarm(int sig) { (void)sig; }

TEST(U25_a_storm_of_signals_interrupts_nothing)
{
    struct sigaction ours, before;
    struct itimerval storm = {{0, 100}, {0, 100}}, calm = {{0, 0}, {0, 0}};
    world w;
    memset(&ours, 0, sizeof ours);
    ours.sa_handler = on_alarm;  // no SA_RESTART
    sigaction(SIGALRM, &ours, &before);
    setitimer(ITIMER_REAL, &storm, NULL);
    world_init(&w);
    if (world_open(&w)) {
        for (int i = 0; i < 20; i++) {
            revdial_stream *st = world_dial(&w, "echo", 0, NULL);
            uint8_t out[4096], in[4096];
            if (!CHECK(st != NULL)) break;
            for (uint64_t at = 0; at < 40960; at += sizeof out) {
                util_fill(out, sizeof out, at, 5);
                CHECK_INT(revdial_write(st, out, sizeof out), sizeof out);
                revdial_pollfd p = {st, 0, POLLIN, 0};
                CHECK_INT(revdial_poll(&p, 1, UTIL_WAIT_MS), 1);
                CHECK_INT(util_read_all(st, in, sizeof in), sizeof in);
                CHECK(memcmp(out, in, sizeof in) == 0);
            }
            revdial_deadline(st, REVDIAL_RD, 10);
            CHECK_INT(revdial_read(st, in, 1), REVDIAL_ETIMEDOUT);
            int fd = revdial_stream_fd(st);
            if (CHECK(fd >= 0)) close(fd);
        }
    }
    world_close(&w);
    setitimer(ITIMER_REAL, &calm, NULL);
    sigaction(SIGALRM, &before, NULL);
}

TEST(U31_a_world_works_as_it_is_in_a_process_of_its_own)
{
    world w;
    char buf[4];
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        if (CHECK(st != NULL)) {
            CHECK_INT(revdial_write(st, "ping", 4), 4);
            CHECK_INT(util_read_all(st, buf, 4), 4);
            int fd = revdial_stream_fd(st);
            CHECK(fd >= 0 && raw_say(fd, "ping") && raw_read_all(fd, buf, 4));
            close(fd);
        }
    }
    world_close(&w);
}

TEST(U31_it_works_with_descriptors_0_1_and_2_closed)
{
    char self[4096];
    int status = -1;
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    REQUIRE(n > 0);
    self[n] = '\0';
    pid_t pid = fork();
    if (pid == 0) {
        close(0);
        close(1);
        close(2);
        execl(self, self, "U31_a_world_works", (char *)NULL);
        _exit(99);
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(U23_no_descriptor_of_ours_survives_exec_and_a_child_that_exits_hurts_nothing)
{
    world w;
    char was_open[1024];
    for (int fd = 0; fd < 1024; fd++) was_open[fd] = fcntl(fd, F_GETFD) >= 0;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        revdial_stream *other = world_dial(&w, "echo", 0, NULL);
        int fd = other ? revdial_stream_fd(other) : -1, ours = 0;
        for (int i = 0; i < 1024; i++) {
            int flags = was_open[i] ? -1 : fcntl(i, F_GETFD);
            ours += flags >= 0;
            if (flags >= 0 && !(flags & FD_CLOEXEC))
                test_fail(__FILE__, __LINE__, "descriptor %d survives exec", i);
        }
        CHECK(ours > 5);
        int status = -1;
        pid_t pid = fork();
        if (pid == 0) _exit(0);
        waitpid(pid, &status, 0);
        char buf[4];
        if (CHECK(st != NULL)) {
            CHECK_INT(revdial_write(st, "ping", 4), 4);
            CHECK_INT(util_read_all(st, buf, 4), 4);
        }
        revdial_close(st);
        close(fd);
    }
    world_close(&w);
}

TEST(U45_cycles_of_opening_and_closing_leave_no_descriptor_and_no_thread)
{
    int fds = util_fds(), threads = util_threads();
    for (int i = 0; i < 30; i++) {
        world w;
        world_init(&w);
        w.pcfg.common.io_threads = 1 + (unsigned)i % 3;
        if (world_open(&w)) {
            revdial_stream *st = world_dial(&w, i % 2 ? "echo" : "hold", 0, NULL);
            CHECK(st != NULL);
            if (i % 3) revdial_close(st);
            world_close(&w);
            if (i % 3 == 0) revdial_close(st);
        }
        CHECK_INT(util_fds(), fds);
        UTIL_EVENTUALLY(util_threads() == threads);
    }
}

// ------------------------------------------------------------------------------------------------
// All at once

typedef struct churn {
    world *w;
    atomic_int *stop;
    unsigned seed;
    int turns;
} churn;

static void *churn_dial(void *arg)
{
    churn *c = arg;
    test_rng rng = test_rng_seeded(c->seed);
    static const char *const what[] = {"echo", "hold", "refuse", "reset", "source", "flood"};
    char buf[2000];
    for (int i = 0; i < c->turns; i++) {
        revdial_err err;
        revdial_stream *st = world_dial(c->w, what[test_below(&rng, 6)], 3000, &err);
        if (!st) continue;
        revdial_deadline(st, REVDIAL_RDWR, 5);
        revdial_write(st, buf, test_below(&rng, sizeof buf));
        revdial_read(st, buf, sizeof buf);
        if (test_below(&rng, 3) == 0) revdial_reset(st, 64);
        if (test_below(&rng, 4) == 0) {
            int fd = revdial_stream_fd(st);
            if (fd >= 0) {
                close(fd);
                continue;
            }
        }
        revdial_close(st);
    }
    return NULL;
}

static void *churn_watch(void *arg)
{
    churn *c = arg;
    while (!atomic_load(c->stop)) {
        revdial_session *s[8];
        revdial_stats stats;
        revdial_session_info info;
        size_t n = revdial_proxy_list(c->w->proxy, "*", s, 8);
        for (size_t i = 0; i < n && i < 8; i++) {
            revdial_session_info_get(s[i], &info);
            revdial_session_unref(s[i]);
        }
        revdial_proxy_stats(c->w->proxy, &stats);
        revdial_agent_stats(c->w->agents[0], &stats);
        sched_yield();
    }
    return NULL;
}

TEST(U14_U51_dials_resets_kills_and_questions_from_many_threads_end_well)
{
    world w;
    atomic_int stop = 0;
    churn c[5];
    pthread_t t[5];
    world_init(&w);
    w.pcfg.common.io_threads = 2;
    if (world_open(&w)) {
        w.acfg.instance = "second";
        CHECK(world_open_agent(&w, 1));
        for (int i = 0; i < 5; i++) {
            c[i] = (churn){&w, &stop, (unsigned)i + 1, 60};
            t[i] = util_thread(i == 4 ? churn_watch : churn_dial, &c[i]);
        }
        for (int i = 0; i < 10; i++) {
            revdial_session *s = revdial_agent_session(w.agents[i % 2], UTIL_WAIT_MS);
            if (i % 3 == 2) revdial_session_drain(s, 5);
            else revdial_session_kill(s);
            revdial_session_unref(s);
            util_nap_ms(3);
        }
        for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
        atomic_store(&stop, 1);
        pthread_join(t[4], NULL);
        CHECK(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS) >= 1);
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        CHECK(st != NULL);
        revdial_close(st);
    }
    world_close(&w);
    CHECK_INT(util_log_count(&w.sessions, REVDIAL_UP, NULL),
              util_log_count(&w.sessions, REVDIAL_DOWN, NULL));
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
