// What must stay true when connections break: a stream that is cut is a prefix and an error and
// never an EOF, nobody else notices, whoever waits wakes up, memory stays bounded, silence is
// noticed.
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
    int way, how;  // guarded by lock, as `left`
    int64_t left;  // bytes until the cut; -1: none
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
            size_t len =
                cutter_allow(c, i == 0 ? CUT_TO_PROXY : CUT_TO_AGENT, (size_t)n, &cut, &how);
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
        int agent = accept4(c->listener, NULL, NULL, SOCK_CLOEXEC),
            proxy = raw_connect(c->upstream);
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
    return world_open_agent(w, 0) && revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS) == 1 &&
           revdial_proxy_wait(w->proxy, "other", 1, UTIL_WAIT_MS) == 1;
}

static const int64_t cuts[] = {0,     1,     11,    12,    13,    100,   4095,
                               16383, 16384, 16397, 40000, 65536, 180001};

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
            int why = revdial_stream_error(st, NULL);
            if (r.end >= 0 || r.is_bad || r.bytes >= TOTAL || why != REVDIAL_ELOST)
                test_fail(__FILE__, __LINE__, "cut %d: %d bytes%s, then %d; %d", (int)i,
                          (int)r.bytes, r.is_bad ? ", not those sent" : "", r.end, why);
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

WORLD_TEST(a_kill_in_mid_transfer_is_a_prefix_and_an_error_at_both_ends)
{
    for (int side = 0; side < 2; side++) {
        revdial_stream *in = world_dial(w, "source", 50000000, NULL);
        revdial_stream *out = world_dial(w, "hold", 0, NULL);
        revdial_session *s = side ? revdial_agent_wait(w->agents[0], UTIL_WAIT_MS, NULL)
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
        CHECK_INT(revdial_stream_error(out, NULL), side ? REVDIAL_ELOST : REVDIAL_ECLOSED);
        revdial_close(in);
        revdial_close(out);
        CHECK(util_gate_wait(&w->ended, 2 * side + 2));
        CHECK(world_last(w).end < 0);
        CHECK_INT(world_last(w).is_bad, 0);
        revdial_session_unref(s);
        CHECK(util_log_wait(&w->states, REVDIAL_UP, side + 2, NULL));
        CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, side + 1, NULL));
        revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS);
    }
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
        x->result = revdial_stream_error(x->st, NULL);
    }
    if (x->what == WAIT_DIAL) {  // of this session only, so that no other is tried
        revdial_kv meta = {"do", "silent"};
        revdial_dial_opts opts = {.meta = &meta, .meta_count = 1, .timeout_ms = -1};
        revdial_session *s = NULL;
        revdial_proxy_list(x->w->proxy, NULL, &s, 1);
        revdial_session_dial(s, &opts, &err);
        revdial_session_unref(s);
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

TEST(U18_all_who_wait_wake_at_the_death_of_their_session_and_at_the_close_of_the_proxy)
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
                if (i != WAIT_DIAL)
                    x[i].st = world_dial(&w, i == WAIT_WRITE ? "stop" : "hold", 0, NULL);
                x[i].thread = util_thread(waiter_run, &x[i]);
                util_gate_wait(&x[i].began, 1);
            }
            revdial_flow_info l;
            UTIL_EVENTUALLY(revdial_stream_get_flow(x[WAIT_WRITE].st, &l) == 0 &&
                            strcmp(l.blocked_on, "peer's credit") == 0);
            CHECK(util_gate_wait(&w.held, WAITERS));
            util_nap_ms(10);
            revdial_session *s = NULL;
            if (how == KILLED_HERE) revdial_proxy_list(w.proxy, NULL, &s, 1);
            if (how == KILLED_THERE) s = revdial_agent_wait(w.agents[0], UTIL_WAIT_MS, NULL);
            revdial_session_kill(s);
            revdial_session_unref(s);
            if (how == PROXY_CLOSED) {
                revdial_proxy_stop(w.proxy);
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
            // The peer's GoAway makes an unanswered dial one that was not taken.
            CHECK_INT(x[WAIT_DIAL].result,
                      how == KILLED_THERE ? REVDIAL_EDRAINING : REVDIAL_ECLOSED);
            CHECK_INT(x[WAIT_READ].result, how == KILLED_THERE ? REVDIAL_ELOST : REVDIAL_ECLOSED);
            CHECK_INT(x[WAIT_WRITE].result, how == KILLED_THERE ? REVDIAL_ELOST : REVDIAL_ECLOSED);
        }
        world_close(&w);
    }
}

static atomic_int pipe_signals;
static void on_sigpipe(int sig)
{
    atomic_fetch_add(&pipe_signals, sig == SIGPIPE);
}

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
        revdial_stream_set_deadline(st, REVDIAL_WR, UTIL_WAIT_MS);
        while (revdial_write(st, buf, sizeof buf) > 0) {
        }
        CHECK(revdial_write(st, buf, 1) < 0);
        revdial_close(st);
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
        int in[2], out[2];  // a joined pipe whose reader goes away
        if (pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0) {
            CHECK_INT(revdial_relay(world_dial(&w, "flood", 0, NULL), in[0], out[1], NULL), 0);
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

NEW_WORLD_TEST(F17_F18_200_streams_that_nobody_reads_do_not_keep_one_from_moving_64_MB_in)
{
    static revdial_stream *stalled[STALLED];
    revdial_stats stats;
    w->pcfg.common.limits.session_window = 16 << 20;
    REQUIRE(world_open(w));
    revdial_flow_info l;
    for (int i = 0; i < STALLED; i++) stalled[i] = world_dial(w, "flood", 0, NULL);
    for (int i = 0; i < STALLED; i++)
        UTIL_EVENTUALLY(revdial_stream_get_flow(stalled[i], &l) == 0 && l.recv_credit == 0);
    revdial_proxy_get_stats(w->proxy, &stats);
    CHECK_INT(stats.streams, STALLED);
    CHECK(stats.memory_bytes >= STALLED * 65536);
    is_within_budget(&stats, 16 << 20);
    revdial_stream *st = world_dial(w, "bulk", BULK, NULL);
    if (CHECK(st != NULL)) {
        util_read r = util_read_bulk(st);
        CHECK_INT(r.bytes, BULK);
        CHECK_INT(r.end, 0);
        CHECK_INT(r.is_bad, 0);
        revdial_proxy_get_stats(w->proxy, &stats);
        is_within_budget(&stats, 16 << 20);
        revdial_close(st);
    }
    for (int i = 0; i < STALLED; i++) {
        CHECK_INT(revdial_stream_error(stalled[i], NULL), 0);
        revdial_reset(stalled[i], REVDIAL_RESET_CANCEL);
        revdial_close(stalled[i]);
    }
    CHECK(util_gate_wait(&w->ended, STALLED));
    UTIL_EVENTUALLY((revdial_proxy_get_stats(w->proxy, &stats), stats.memory_bytes < 2 << 20));
}

NEW_WORLD_TEST(F17_F18_200_handlers_that_do_not_read_do_not_keep_one_from_moving_64_MB_out)
{
    static revdial_stream *stalled[STALLED];
    revdial_stats stats;
    char buf[2];
    w->acfg.common.limits.session_window = 32 << 20;
    REQUIRE(world_open(w));
    char junk[65536] = "";
    for (int i = 0; i < STALLED; i++) {
        revdial_err err = {0};
        stalled[i] = world_dial(w, "stop", 0, &err);
        if (!stalled[i]) test_fail(__FILE__, __LINE__, "dial %d: %s", i, err.msg);
        if (!CHECK(stalled[i] != NULL)) break;
        revdial_flow_info l;
        revdial_stream_get_flow(stalled[i], &l);
        CHECK_INT(revdial_write(stalled[i], junk, l.send_credit), l.send_credit);
    }
    revdial_stream *st = world_dial(w, "bulk-sink", 0, NULL);
    if (CHECK(st != NULL)) {
        CHECK_INT(util_write_bulk(st, BULK), BULK);
        revdial_shutdown(st, REVDIAL_WR);
        CHECK_INT(util_read_all(st, buf, 2), 2);
        revdial_close(st);
        CHECK(util_gate_wait(&w->ended, 1));
        CHECK_INT(world_last(w).bytes, BULK);
        CHECK_INT(world_last(w).is_bad, 0);
    }
    revdial_agent_get_stats(w->agents[0], &stats);
    CHECK(stats.memory_bytes >= STALLED * 65000);
    is_within_budget(&stats, 32 << 20);
    for (int i = 0; i < STALLED; i++) revdial_close(stalled[i]);
}

NEW_WORLD_TEST(a_session_over_its_window_gives_up_streams_with_CALM_and_lives)
{
    enum { MANY = 120 };
    static revdial_stream *st[MANY];
    revdial_stats stats;
    w->pcfg.common.limits.session_window = 1 << 20;
    REQUIRE(world_open(w));
    int calm = 0, refused = 0;
    for (int i = 0; i < MANY; i++) {
        revdial_err err;
        st[i] = world_dial(w, "flood", 0, &err);
        if (!st[i]) refused++;
    }
    for (int i = 0; i < MANY; i++) {
        revdial_flow_info l;
        int reset = 0;
        if (!st[i]) continue;
        UTIL_EVENTUALLY(revdial_stream_error(st[i], NULL) != 0 ||
                        (revdial_stream_get_flow(st[i], &l) == 0 && l.recv_credit == 0));
        if (revdial_stream_error(st[i], &reset)) calm += CHECK_INT(reset, REVDIAL_RESET_CALM);
    }
    CHECK(calm > 0);
    revdial_proxy_get_stats(w->proxy, &stats);
    is_within_budget(&stats, 1 << 20);
    for (int i = 0; i < MANY; i++) {
        if (st[i]) revdial_reset(st[i], REVDIAL_RESET_CANCEL);
        revdial_close(st[i]);
    }
    CHECK(util_gate_wait(&w->ended, MANY - refused));
    revdial_stream *echo = world_dial(w, "echo", 0, NULL);
    CHECK(echo != NULL);
    revdial_close(echo);
    CHECK_INT(util_log_count(&w->sessions, REVDIAL_DOWN, NULL), 0);
}

// ------------------------------------------------------------------------------------------------
// Liveness

NEW_WORLD_TEST(F3_a_backend_that_goes_silent_is_declared_dead_and_one_that_answers_is_not)
{
    util_state e = {0};
    raw_frame f = {0};
    w->pcfg.common.limits.keepalive_ms = 100;
    w->pcfg.common.limits.dead_after_ms = 200;
    REQUIRE(world_open_proxy(w));
    int alive = raw_backend(w->address, "alive", NULL);
    for (int i = 0; i < 10; i++) {
        if (!CHECK(raw_frame_await(alive, RAW_PING, &f))) break;
        CHECK_INT(f.flags, RAW_SYN);
        raw_frame_send(alive, RAW_PING, RAW_ACK, 0, f.len);
    }
    CHECK_INT(util_log_count(&w->sessions, REVDIAL_DOWN, NULL), 0);
    close(alive);
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, &e));
    int silent = raw_backend(w->address, "silent", NULL);
    revdial_proxy_wait(w->proxy, "silent", 1, UTIL_WAIT_MS);
    revdial_stream *st = revdial_dial(w->proxy, "silent", NULL, NULL);
    CHECK(st != NULL);
    char c;
    CHECK_INT(st ? revdial_read(st, &c, 1) : 0, REVDIAL_ELOST);
    revdial_close(st);
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 2, &e));
    CHECK_INT(e.code, REVDIAL_ELOST);
    close(silent);
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
    w.acfg.common.limits.keepalive_ms = 100;
    w.acfg.common.limits.dead_after_ms = 30;
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

NEW_WORLD_TEST(B2_a_backend_that_takes_no_bytes_is_dead_after_write_stall)
{
    raw_frame f = {0};
    util_state e = {0};
    w->pcfg.common.limits.write_stall_ms = 100;
    REQUIRE(world_open_proxy(w));
    int fd = raw_backend(w->address, "cam-1", NULL);
    revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS);
    revdial_stream *st = revdial_dial(w->proxy, "cam-1", NULL, NULL);
    if (CHECK(st != NULL) && CHECK(raw_frame_await(fd, RAW_WINDOW, &f))) {
        raw_frame_send(fd, RAW_WINDOW, RAW_ACK, f.id, 1u << 30);
        pthread_t t = util_thread(writer_run, st);
        CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, &e));
        CHECK_INT(e.code, REVDIAL_ELOST);
        pthread_join(t, NULL);
        CHECK_INT(revdial_stream_error(st, NULL), REVDIAL_ELOST);
    }
    revdial_close(st);
    close(fd);
}

enum { SIP_STALL_MS = 500, SIP_MS = 10, SIPS = 300 };

// Reads a little after a while.
static ssize_t sip(int fd)
{
    char buf[1024];
    struct timespec pause = {0, SIP_MS * 1000000L};
    nanosleep(&pause, NULL);
    return recv(fd, buf, sizeof buf, 0);
}

// Reads a little, again and again, for several times as long as a peer may take nothing: by the
// library's clock, because on a busy machine a turn may come late.
static void sip_for_long(int fd)
{
    util_clock_stop();
    for (int i = 0; i < SIPS && sip(fd) > 0; i++) util_clock_advance_ms(SIP_MS);
    util_clock_run();
}

// Does the session ask its system by now what the backend has taken?
static int is_looking(revdial_session *s)
{
    rvd_stream_lock(s);
    int is = s->look.next_us > 0;
    rvd_stream_unlock(s);
    return is;
}

static void check_sipping(const revdial_limits *limits, int are_late)
{
    world w;
    raw_frame f = {0};
    world_init(&w);
    if (!are_late) w.pcfg.common.limits = *limits;
    if (world_open_proxy(&w)) {
        int fd = raw_backend_on(raw_connect_as(w.address, 1), "cam-1", NULL);
        revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS);
        revdial_stream *st = revdial_dial(w.proxy, "cam-1", NULL, NULL);
        if (CHECK(st != NULL) && CHECK(raw_frame_await(fd, RAW_WINDOW, &f))) {
            raw_frame_send(fd, RAW_WINDOW, RAW_ACK, f.id, 1u << 30);
            pthread_t t = util_thread(writer_run, st);
            if (are_late) UTIL_EVENTUALLY(is_looking(st->session));
            if (are_late) revdial_proxy_replace_session_limits(w.proxy, limits, NULL);
            sip_for_long(fd);
            CHECK_INT(util_log_count(&w.sessions, REVDIAL_DOWN, NULL), 0);
            CHECK_INT(revdial_stream_error(st, NULL), 0);
            // And now it takes nothing at all.
            CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 1, NULL));
            pthread_join(t, NULL);
            CHECK_INT(revdial_stream_error(st, NULL), REVDIAL_ELOST);
        }
        revdial_close(st);
        close(fd);
    }
    world_close(&w);
}

TEST(a_backend_that_takes_bytes_slowly_keeps_its_session)
{
    static const revdial_limits limits[] = {
        {.write_stall_ms = SIP_STALL_MS}, {.keepalive_ms = 100, .dead_after_ms = SIP_STALL_MS}};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) check_sipping(&limits[i], 0);
}

// From then on its session looks more often what the backend has taken.
TEST(a_backend_that_takes_bytes_slowly_keeps_its_session_when_limits_become_shorter)
{
    static const revdial_limits shorter = {.keepalive_ms = 100, .dead_after_ms = SIP_STALL_MS};
    check_sipping(&shorter, 1);
}

static int send_buffer_of(revdial_stream *st)
{
    int bytes;
    rvd_stream_lock(st->session);
    bytes = st->session->pace.send_buffer;
    rvd_stream_unlock(st->session);
    return bytes;
}

typedef struct sipper {
    int fd;
    atomic_int fast, over;
} sipper;

static void *sipper_run(void *arg)
{
    sipper *s = arg;
    char buf[65536];
    while (!atomic_load(&s->over)) {
        if (!atomic_load(&s->fast))
            sip(s->fd);
        else if (recv(s->fd, buf, sizeof buf, 0) <= 0)
            break;
    }
    return NULL;
}

NEW_WORLD_TEST(a_thin_link_has_a_short_queue_until_it_is_thin_no_more)
{
    raw_frame f = {0};
    sipper s = {.fast = 0};
    REQUIRE(world_open_proxy(w));
    s.fd = raw_backend_on(raw_connect_as(w->address, 1), "cam-1", NULL);
    revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS);
    revdial_stream *st = revdial_dial(w->proxy, "cam-1", NULL, NULL);
    if (CHECK(st != NULL) && CHECK(raw_frame_await(s.fd, RAW_WINDOW, &f))) {
        raw_frame_send(s.fd, RAW_WINDOW, RAW_ACK, f.id, 1u << 31);
        pthread_t reader = util_thread(sipper_run, &s), writer = util_thread(writer_run, st);
        UTIL_EVENTUALLY(send_buffer_of(st) > 0);
        CHECK(send_buffer_of(st) < RVD_STREAM_THIN_BYTES);
        atomic_store(&s.fast, 1);
        UTIL_EVENTUALLY(send_buffer_of(st) == 0);
        CHECK_INT(util_log_count(&w->sessions, REVDIAL_DOWN, NULL), 0);
        atomic_store(&s.over, 1);
        revdial_reset(st, REVDIAL_RESET_CANCEL);
        pthread_join(writer, NULL);
        shutdown(s.fd, SHUT_RDWR);
        pthread_join(reader, NULL);
    }
    revdial_close(st);
    close(s.fd);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
