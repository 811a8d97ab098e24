// Which backend a dial gets, dials with callbacks, draining and closing the proxy.
#include "runtime_util.h"

// ------------------------------------------------------------------------------------------------
// Which backend a dial gets

static const char *const instances[] = {"a", "b", "c"};

static int open_pool(world *w)
{
    if (!world_open_proxy(w)) return 0;
    for (int i = 0; i < 3; i++) {
        w->acfg.instance = instances[i];
        if (!world_open_agent(w, i)) return 0;
    }
    return CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 3, UTIL_WAIT_MS), 3);
}

// The letter of the instance that the stream went to.
static char instance_of(revdial_stream *st)
{
    revdial_session_info info;
    revdial_session *s = revdial_stream_session(st);
    revdial_session_info_get(s, &info);
    revdial_session_unref(s);
    return info.instance[0];
}

static char dial_where(world *w, const revdial_dial_opts *opts)
{
    revdial_stream *st = revdial_dial(w->proxy, "cam-1", opts, NULL);
    char where = st ? instance_of(st) : '?';
    revdial_close(st);
    return where;
}

TEST(round_robin_goes_through_all_backends_in_turn)
{
    world w;
    world_init(&w);
    revdial_dial_opts early = {.flags = REVDIAL_DIAL_EARLY};
    if (open_pool(&w)) {
        char seen[10] = "";
        for (int i = 0; i < 9; i++) seen[i] = dial_where(&w, &early);
        for (int i = 0; i < 6; i++) CHECK_INT(seen[i], seen[i + 3]);
        CHECK(seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[2]);
    }
    world_close(&w);
}

TEST(least_streams_goes_where_the_fewest_are)
{
    world w;
    revdial_dial_opts opts = {.pick = REVDIAL_PICK_LEAST_STREAMS};
    world_init(&w);
    if (open_pool(&w)) {
        revdial_stream *st[7] = {NULL};
        int count[256] = {0};
        for (int i = 0; i < 6; i++) {
            st[i] = revdial_dial(w.proxy, "cam-1", &opts, NULL);
            if (CHECK(st[i] != NULL)) count[(unsigned char)instance_of(st[i])]++;
        }
        CHECK(count['a'] == 2 && count['b'] == 2 && count['c'] == 2);
        char freed = instance_of(st[4]);
        revdial_close(st[4]);
        st[4] = revdial_dial(w.proxy, "cam-1", &opts, NULL);
        if (CHECK(st[4] != NULL)) CHECK_INT(instance_of(st[4]), freed);
        for (int i = 0; i < 6; i++) revdial_close(st[i]);
    }
    world_close(&w);
}

TEST(a_key_keeps_its_backend_and_only_the_keys_of_one_that_leaves_move)
{
    world w;
    char before[60], after[60], back[60];
    int count[256] = {0}, moved = 0;
    world_init(&w);
    if (open_pool(&w)) {
        for (int round = 0; round < 3; round++) {
            char *out = round == 0 ? before : round == 1 ? after : back;
            for (int i = 0; i < 60; i++) {
                revdial_dial_opts opts = {.pick = REVDIAL_PICK_KEY, .key = &i, .key_len = sizeof i};
                out[i] = dial_where(&w, &opts);
                if (round == 0) count[(unsigned char)out[i]]++;
                if (round == 0 && i < 5) CHECK_INT(dial_where(&w, &opts), out[i]);
            }
            if (round == 0) {
                revdial_agent_stop(w.agents[1], 0);
                w.agents[1] = NULL;
                CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 1, NULL));
            } else if (round == 1) {
                w.acfg.instance = "b";
                CHECK(world_open_agent(&w, 1));
                revdial_proxy_wait(w.proxy, "cam-1", 3, UTIL_WAIT_MS);
            }
        }
        CHECK(count['a'] > 5 && count['b'] > 5 && count['c'] > 5);
        for (int i = 0; i < 60; i++) {
            moved += before[i] == 'b';
            if (before[i] != 'b') CHECK_INT(after[i], before[i]);
            CHECK_INT(back[i], before[i]);  // the instance decides, not the session
        }
        CHECK(moved > 0);
    }
    world_close(&w);
}

typedef struct refuser {
    int fd, code, refused;
    util_gate done;
} refuser;

// A backend that answers every SYN with that reset code.
static void *refuser_run(void *arg)
{
    refuser *r = arg;
    raw_frame f = {0};
    uint8_t junk[4096];
    while (raw_frame_read(r->fd, &f)) {
        if (f.type == RAW_DATA && f.len && !raw_read_all(r->fd, junk, f.len)) break;
        if (!(f.flags & RAW_SYN) || f.type == RAW_PING) continue;
        raw_frame_send(r->fd, RAW_WINDOW, RAW_RST, f.id, (uint32_t)r->code);
        r->refused++;
    }
    util_gate_add(&r->done, 1);
    return NULL;
}

TEST(REFUSED_and_DRAINING_are_tried_at_another_backend_and_no_other_code_is)
{
    static const struct {
        int code, want;
    } rows[] = {{REVDIAL_RESET_REFUSED, 0},
                {REVDIAL_RESET_DRAINING, 0},
                {REVDIAL_RESET_INTERNAL, REVDIAL_EREFUSED},
                {REVDIAL_RESET_CALM, REVDIAL_ELIMIT},
                {REVDIAL_RESET_TIMEOUT, REVDIAL_ETIMEDOUT},
                {REVDIAL_RESET_NO_SUCH_HOST, REVDIAL_EUNREACH},
                {REVDIAL_RESET_FORBIDDEN, REVDIAL_EDENIED},
                {77, REVDIAL_EREFUSED}};
    world w;
    world_init(&w);
    w.acfg.instance = "a";
    if (world_open(&w)) {
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            refuser r = {-1, rows[i].code, 0, UTIL_GATE};
            revdial_err err;
            int ok = 0, failed = 0;
            r.fd = raw_backend(w.address, "cam-1",
                               "Revdial-Version: 1\r\nRevdial-Instance: b\r\n"
                               "Revdial-Features: rstcode, promptack, preamble, drain, "
                               "window=65536, streams=100\r\n");
            if (!CHECK(r.fd >= 0)) break;
            revdial_proxy_wait(w.proxy, "cam-1", 2, UTIL_WAIT_MS);
            pthread_t t = util_thread(refuser_run, &r);
            for (int k = 0; k < 4; k++) {
                revdial_stream *st = world_dial(&w, "echo", 0, &err);
                ok += st != NULL;
                failed += !st && err.code == rows[i].want && err.reset == rows[i].code;
                revdial_close(st);
            }
            shutdown(r.fd, SHUT_RDWR);
            pthread_join(t, NULL);
            close(r.fd);
            CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, (int)i + 1, NULL));
            if (ok != (rows[i].want ? 2 : 4) || failed != (rows[i].want ? 2 : 0) || r.refused < 2)
                test_fail(__FILE__, __LINE__,
                          "code %d: %d dials came through, %d failed rightly, "
                          "%d were refused",
                          rows[i].code, ok, failed, r.refused);
        }
    }
    world_close(&w);
}

TEST(a_session_that_was_told_to_drain_is_not_picked_while_another_is_there)
{
    world w;
    world_init(&w);
    if (open_pool(&w)) {
        revdial_session *s[3];
        revdial_err err;
        // Streams that stay keep the drained session alive.
        revdial_stream *held[3], *st;
        for (int i = 0; i < 3; i++) held[i] = world_dial(&w, "hold", 0, NULL);
        CHECK(held[0] && held[1] && held[2]);
        size_t n = revdial_proxy_list(w.proxy, "cam-1", s, 3);
        CHECK_INT(n, 3);
        revdial_session_info info;
        revdial_session_info_get(s[0], &info);
        w.acfg.instance = NULL;
        CHECK_INT(revdial_session_drain(s[0], -1), 0);
        for (int i = 0; i < 6; i++) {
            st = world_dial(&w, "echo", 0, &err);
            if (st) {
                revdial_session *where = revdial_stream_session(st);
                CHECK(where != s[0]);
                revdial_session_unref(where);
            } else {
                test_fail(__FILE__, __LINE__, "dial %d: %s", i, err.msg);
            }
            revdial_close(st);
        }
        revdial_session_info_get(s[0], &info);
        CHECK_INT(info.state, REVDIAL_DRAINING);
        for (int i = 0; i < 3; i++) revdial_close(held[i]);
        for (size_t i = 0; i < n; i++) revdial_session_unref(s[i]);
    }
    world_close(&w);
}

TEST(wait_counts_backends_and_list_takes_a_glob_and_gives_references)
{
    world w;
    revdial_session *s[8];
    revdial_session_info info;
    world_init(&w);
    if (world_open_proxy(&w)) {
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 0, 0), 0);
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, 0), REVDIAL_ETIMEDOUT);
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, 5), REVDIAL_ETIMEDOUT);
        static const char *const names[] = {"cam-1", "cam-2", "door"};
        for (int i = 0; i < 3; i++) {
            w.acfg.name = names[i];
            CHECK(world_open_agent(&w, i));
            CHECK_INT(revdial_proxy_wait(w.proxy, names[i], 1, UTIL_WAIT_MS), 1);
        }
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 2, 5), REVDIAL_ETIMEDOUT);
        CHECK_INT(revdial_proxy_list(w.proxy, "cam-*", NULL, 0), 2);
        CHECK_INT(revdial_proxy_list(w.proxy, "nobody", NULL, 0), 0);
        CHECK_INT(revdial_proxy_list(w.proxy, "d??r", NULL, 0), 1);
        CHECK_INT(revdial_proxy_list(w.proxy, NULL, s, 2), 3);
        revdial_session_unref(s[0]);
        revdial_session_unref(s[1]);
        CHECK_INT(revdial_proxy_list(w.proxy, "door", s, 8), 1);
        revdial_agent_stop(w.agents[2], 0);
        w.agents[2] = NULL;
        CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 1, NULL));
        revdial_session_info_get(s[0], &info);
        CHECK_STR(info.name, "door");
        CHECK_INT(info.state, REVDIAL_DOWN);
        revdial_session_unref(s[0]);
        CHECK_INT(revdial_proxy_list(w.proxy, "door", NULL, 0), 0);
    }
    world_close(&w);
}

TEST(stats_count_sessions_streams_bytes_and_failures)
{
    world w;
    revdial_stats p, a;
    char buf[1000];
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        if (CHECK(st != NULL)) {
            CHECK_INT(util_write_payload(st, 1000, 2), 1000);
            CHECK_INT(util_read_all(st, buf, 1000), 1000);
            revdial_proxy_stats(w.proxy, &p);
            revdial_agent_stats(w.agents[0], &a);
            CHECK_INT(p.sessions, 1);
            CHECK_INT(p.streams, 1);
            CHECK_INT(p.sessions_opened, 1);
            CHECK_INT(p.streams_opened, 1);
            CHECK_INT(p.tx_bytes, 1000);
            CHECK_INT(p.rx_bytes, 1000);
            CHECK(p.memory_bytes > 0);
            CHECK_INT(a.sessions, 1);
            CHECK_INT(a.streams_opened, 1);
            CHECK_INT(a.rx_bytes, 1000);
            CHECK_INT(a.tx_bytes, 1000);
            revdial_close(st);
        }
        CHECK(world_dial(&w, "refuse", 0, NULL) == NULL);
        CHECK(revdial_dial(w.proxy, "nobody", NULL, NULL) == NULL);
        UTIL_EVENTUALLY((revdial_proxy_stats(w.proxy, &p), p.streams == 0));
        CHECK_INT(p.dials_failed, 2);
        CHECK_INT(p.streams_reset, 1);
        revdial_agent_stop(w.agents[0], 0);
        w.agents[0] = NULL;
        CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 1, NULL));
        revdial_proxy_stats(w.proxy, &p);
        CHECK_INT(p.sessions, 0);
        CHECK_INT(p.sessions_closed, 1);
        CHECK_INT(p.tx_bytes, 1000);  // of sessions that are gone, too
    }
    world_close(&w);
}

// ------------------------------------------------------------------------------------------------
// Dials

TEST(a_dial_fails_for_a_name_that_is_not_there_and_says_so)
{
    world w;
    revdial_err err;
    world_init(&w);
    if (world_open(&w)) {
        CHECK(revdial_dial(w.proxy, "nobody", NULL, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_ENOBACKEND);
        CHECK(err.msg[0] != '\0');
        CHECK(revdial_dial(w.proxy, NULL, NULL, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_EINVAL);
        CHECK(revdial_dial(w.proxy, "", NULL, &err) == NULL);
        char big[5000];
        memset(big, 'x', sizeof big - 1);
        big[sizeof big - 1] = '\0';
        revdial_kv meta = {"k", big};
        revdial_dial_opts opts = {.meta = &meta, .meta_count = 1};
        CHECK(revdial_dial(w.proxy, "cam-1", &opts, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_EINVAL);
        memset(&opts, 0, sizeof opts);
        int fd = raw_backend(w.address, "stock", NULL);  // it has never heard of targets
        revdial_proxy_wait(w.proxy, "stock", 1, UTIL_WAIT_MS);
        opts.target = "127.0.0.1:80";
        CHECK(revdial_dial(w.proxy, "stock", &opts, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_EINVAL);
        revdial_stream *st = revdial_dial(w.proxy, "stock", NULL, &err);
        CHECK(st != NULL);
        revdial_close(st);
        close(fd);
    }
    world_close(&w);
}

TEST(a_dial_that_nobody_answers_times_out_and_the_backend_is_told)
{
    world w;
    revdial_err err;
    revdial_kv meta = {"do", "silent"};
    revdial_dial_opts opts = {.meta = &meta, .meta_count = 1, .timeout_ms = 30};
    world_init(&w);
    if (world_open(&w)) {
        CHECK(revdial_dial(w.proxy, "cam-1", &opts, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_ETIMEDOUT);
        util_gate_add(&w.go, 1);
        CHECK(util_gate_wait(&w.ended, 1));
        CHECK_INT(world_last(&w).end, REVDIAL_ERESET);
        CHECK_INT(world_last(&w).reset, REVDIAL_RESET_TIMEOUT);
    }
    world_close(&w);
}

TEST(a_stream_that_the_handler_never_touches_is_refused_after_accept_timeout)
{
    world w;
    revdial_err err;
    world_init(&w);
    w.acfg.common.limits.accept_timeout_ms = 30;
    if (world_open(&w)) {
        CHECK(world_dial(&w, "silent", 0, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_ETIMEDOUT);
        CHECK_INT(err.reset, REVDIAL_RESET_TIMEOUT);
    }
    world_close(&w);
}

TEST(an_early_dial_returns_at_once_and_learns_of_a_refusal_later)
{
    world w;
    revdial_kv meta[2] = {{"do", "silent"}, {"n", "71"}};
    revdial_dial_opts opts = {.meta = meta, .meta_count = 2, .flags = REVDIAL_DIAL_EARLY};
    char c;
    int reset = 0;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = revdial_dial(w.proxy, "cam-1", &opts, NULL);
        if (CHECK(st != NULL)) {
            revdial_ledger l;
            CHECK_INT(revdial_stream_ledger(st, &l), 0);
            CHECK_STR(l.blocked_on, "accept");
            CHECK_INT(revdial_write(st, "x", 1), 1);  // goes along
            revdial_close(st);
        }
        meta[0].value = "refuse-code";
        st = revdial_dial(w.proxy, "cam-1", &opts, NULL);
        if (CHECK(st != NULL)) {
            CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ERESET);
            CHECK_INT(revdial_error(st, &reset), REVDIAL_ERESET);
            CHECK_INT(reset, 71);
            revdial_close(st);
        }
    }
    world_close(&w);
}

typedef struct dialling {
    world *w;
    const char *name;
    revdial_dial_opts opts;
    util_gate began, done;
    revdial_stream *st;
    revdial_err err;
} dialling;

static void *dialling_run(void *arg)
{
    dialling *d = arg;
    util_gate_add(&d->began, 1);
    d->st = revdial_dial(d->w->proxy, d->name, &d->opts, &d->err);
    util_gate_add(&d->done, 1);
    return NULL;
}

static pthread_t dialling_start(dialling *d, world *w)
{
    d->w = w;
    if (!d->name) d->name = "cam-1";
    util_gate_init(&d->began);
    util_gate_init(&d->done);
    pthread_t t = util_thread(dialling_run, d);
    util_gate_wait(&d->began, 1);
    return t;
}

TEST(DIAL_WAIT_waits_for_a_backend_and_no_longer_than_its_time)
{
    world w;
    dialling d;
    revdial_dial_opts opts = {.flags = REVDIAL_DIAL_WAIT, .timeout_ms = 20};
    revdial_err err;
    memset(&d, 0, sizeof d);
    world_init(&w);
    if (world_open_proxy(&w)) {
        CHECK(revdial_dial(w.proxy, "cam-1", &opts, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_ETIMEDOUT);
        d.opts.flags = REVDIAL_DIAL_WAIT;
        pthread_t t = dialling_start(&d, &w);
        util_nap_ms(10);
        CHECK_INT(util_gate_count(&d.done), 0);
        CHECK(world_open_agent(&w, 0));
        CHECK(util_gate_wait(&d.done, 1));
        pthread_join(t, NULL);
        CHECK(d.st != NULL);
        revdial_close(d.st);
    }
    world_close(&w);
}

typedef struct called {
    util_gate done;
    revdial_stream *st;
    revdial_err err;
    world *w;
    int blocking[6];
} called;

static void on_dial(void *ud, revdial_stream *st, const revdial_err *err)
{
    called *c = ud;
    c->st = st;
    if (err) c->err = *err;
    util_gate_add(&c->done, 1);
}

static void called_init(called *c, world *w)
{
    memset(c, 0, sizeof *c);
    util_gate_init(&c->done);
    c->w = w;
}

TEST(an_asynchronous_dial_calls_back_once_with_a_stream_or_an_error)
{
    world w;
    called c;
    char name[16] = "cam-1", what[16] = "echo", buf[2];
    revdial_kv meta = {"do", what};
    revdial_dial_opts opts = {.meta = &meta, .meta_count = 1};
    world_init(&w);
    if (world_open(&w)) {
        called_init(&c, &w);
        CHECK(revdial_dial_async(w.proxy, name, &opts, on_dial, &c) > 0);
        memset(name, 'x', 5);  // all of it was copied
        memset(what, 'x', 4);
        CHECK(util_gate_wait(&c.done, 1));
        if (CHECK(c.st != NULL)) {
            CHECK_INT(revdial_write(c.st, "hi", 2), 2);
            CHECK_INT(util_read_all(c.st, buf, 2), 2);
            revdial_close(c.st);
        }
        called_init(&c, &w);
        strcpy(what, "refuse");
        CHECK(revdial_dial_async(w.proxy, "cam-1", &opts, on_dial, &c) > 0);
        CHECK(util_gate_wait(&c.done, 1));
        CHECK(c.st == NULL);
        CHECK_INT(c.err.code, REVDIAL_EREFUSED);
        called_init(&c, &w);
        CHECK(revdial_dial_async(w.proxy, "nobody", NULL, on_dial, &c) > 0);
        CHECK(util_gate_wait(&c.done, 1));
        CHECK_INT(c.err.code, REVDIAL_ENOBACKEND);
        called_init(&c, &w);
        strcpy(what, "silent");
        opts.timeout_ms = 20;
        CHECK(revdial_dial_async(w.proxy, "cam-1", &opts, on_dial, &c) > 0);
        CHECK(util_gate_wait(&c.done, 1));
        CHECK_INT(c.err.code, REVDIAL_ETIMEDOUT);
        CHECK_INT(c.done.count, 1);
    }
    world_close(&w);
}

TEST(a_cancelled_dial_calls_back_with_ECLOSED_and_the_backend_is_told)
{
    world w;
    called c;
    revdial_kv meta = {"do", "silent"};
    revdial_dial_opts opts = {.meta = &meta, .meta_count = 1};
    world_init(&w);
    if (world_open(&w)) {
        called_init(&c, &w);
        int64_t id = revdial_dial_async(w.proxy, "cam-1", &opts, on_dial, &c);
        CHECK(id > 0 && util_gate_wait(&w.held, 1));
        CHECK_INT(revdial_dial_cancel(w.proxy, id), 0);
        CHECK(util_gate_wait(&c.done, 1));
        CHECK(c.st == NULL);
        CHECK_INT(c.err.code, REVDIAL_ECLOSED);
        CHECK_INT(revdial_dial_cancel(w.proxy, id), REVDIAL_EINVAL);
        CHECK_INT(revdial_dial_cancel(w.proxy, 0), REVDIAL_EINVAL);
        CHECK_INT(revdial_dial_cancel(w.proxy, -1), REVDIAL_EINVAL);
        util_gate_add(&w.go, 1);
        CHECK(util_gate_wait(&w.ended, 1));
        CHECK_INT(world_last(&w).end, REVDIAL_ERESET);
        CHECK_INT(world_last(&w).reset, REVDIAL_RESET_CANCEL);
    }
    world_close(&w);
}

TEST(an_asynchronous_dial_waits_for_a_backend_times_out_and_can_be_cancelled_while_it_waits)
{
    world w;
    called c[3];
    revdial_dial_opts opts = {.flags = REVDIAL_DIAL_WAIT, .timeout_ms = -1};
    world_init(&w);
    w.pcfg.common.io_threads = 2;
    if (world_open_proxy(&w)) {
        for (int i = 0; i < 3; i++) called_init(&c[i], &w);
        int64_t id = revdial_dial_async(w.proxy, "cam-1", &opts, on_dial, &c[0]);
        CHECK(revdial_dial_async(w.proxy, "cam-1", &opts, on_dial, &c[1]) > 0);
        opts.timeout_ms = 20;
        CHECK(revdial_dial_async(w.proxy, "cam-1", &opts, on_dial, &c[2]) > 0);
        CHECK(util_gate_wait(&c[2].done, 1));
        CHECK_INT(c[2].err.code, REVDIAL_ETIMEDOUT);
        CHECK_INT(revdial_dial_cancel(w.proxy, id), 0);
        CHECK(util_gate_wait(&c[0].done, 1));
        CHECK_INT(c[0].err.code, REVDIAL_ECLOSED);
        CHECK_INT(util_gate_count(&c[1].done), 0);
        CHECK(world_open_agent(&w, 0));
        CHECK(util_gate_wait(&c[1].done, 1));
        CHECK(c[1].st != NULL);
        revdial_close(c[1].st);
    }
    world_close(&w);
}

TEST(dials_that_are_cancelled_at_any_moment_call_back_exactly_once)
{
    enum { DIALS = 300 };
    static called c[DIALS];
    world w;
    world_init(&w);
    w.pcfg.common.io_threads = 2;
    if (open_pool(&w)) {
        int streams = 0, closed = 0, other = 0;
        for (int i = 0; i < DIALS; i++) {
            called_init(&c[i], &w);
            int64_t id = revdial_dial_async(w.proxy, "cam-1", NULL, on_dial, &c[i]);
            if (i % 3 == 1) util_gate_wait_ms(&c[i].done, 1, 0);
            if (i % 3 == 2) sched_yield();
            revdial_dial_cancel(w.proxy, id);
        }
        for (int i = 0; i < DIALS; i++) {
            CHECK(util_gate_wait(&c[i].done, 1));
            if (c[i].st)
                streams++;
            else if (c[i].err.code == REVDIAL_ECLOSED)
                closed++;
            else
                other++;
            revdial_close(c[i].st);
        }
        CHECK_INT(other, 0);
        CHECK_INT(streams + closed, DIALS);
    }
    world_close(&w);
    for (int i = 0; i < DIALS; i++) CHECK_INT(c[i].done.count, 1);
}

// What blocks, called where it must not.
static void blocking_calls(called *c, revdial_stream *st)
{
    char byte;
    revdial_err err;
    revdial_pollfd p = {st, 0, POLLIN, 0};
    revdial_dial(c->w->proxy, "cam-1", NULL, &err);
    c->blocking[0] = err.code;
    c->blocking[1] = revdial_dial_fd(c->w->proxy, "cam-1", NULL, NULL);
    c->blocking[2] = revdial_proxy_wait(c->w->proxy, "cam-1", 1, 1000);
    c->blocking[3] = revdial_proxy_drain(c->w->proxy, 1000);
    c->blocking[4] = (int)revdial_read(st, &byte, 1);
    c->blocking[5] = revdial_poll(&p, 1, 1000);
}

static void on_dial_that_blocks(void *ud, revdial_stream *st, const revdial_err *err)
{
    called *c = ud;
    (void)err;
    if (st) blocking_calls(c, st);
    revdial_close(st);  // a callback may close its own stream
    util_gate_add(&c->done, 1);
}

TEST(what_blocks_says_EDEADLK_on_an_IO_thread)
{
    world w;
    called c;
    revdial_kv meta = {"do", "hold"};
    revdial_dial_opts opts = {.meta = &meta, .meta_count = 1};
    world_init(&w);
    if (world_open(&w)) {
        called_init(&c, &w);
        CHECK(revdial_dial_async(w.proxy, "cam-1", &opts, on_dial_that_blocks, &c) > 0);
        CHECK(util_gate_wait(&c.done, 1));
        for (int i = 0; i < 6; i++) CHECK_INT(c.blocking[i], REVDIAL_EDEADLK);
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);  // and nothing is drained
        CHECK(st != NULL);
        revdial_close(st);
    }
    world_close(&w);
}

typedef struct dial_chain {
    world *w;
    int left, failed;
    util_gate done;
} dial_chain;

static void on_chained(void *ud, revdial_stream *st, const revdial_err *err)
{
    dial_chain *chain = ud;
    (void)err;
    chain->failed += st == NULL;
    revdial_close(st);
    if (--chain->left == 0)
        util_gate_add(&chain->done, 1);
    else if (revdial_dial_async(chain->w->proxy, "cam-1", NULL, on_chained, chain) <= 0)
        util_gate_add(&chain->done, 100);
}

TEST(a_callback_may_dial_again)
{
    world w;
    dial_chain chain;
    world_init(&w);
    if (world_open(&w)) {
        memset(&chain, 0, sizeof chain);
        util_gate_init(&chain.done);
        chain.w = &w;
        chain.left = 50;
        CHECK(revdial_dial_async(w.proxy, "cam-1", NULL, on_chained, &chain) > 0);
        CHECK(util_gate_wait(&chain.done, 1));
        CHECK_INT(chain.done.count, 1);
        CHECK_INT(chain.failed, 0);
    }
    world_close(&w);
}

// ------------------------------------------------------------------------------------------------
// Listeners, draining, closing

TEST(U21_addresses_that_cannot_be_listened_at_are_errors_and_leak_nothing)
{
    char used[80], list[200], dir[] = "/tmp/revdial-test-XXXXXX";
    world w;
    revdial_err err;
    world_init(&w);
    REQUIRE(mkdtemp(dir) != NULL);
    if (world_open_proxy(&w)) {
        int before = util_fds(), threads = util_threads();
        snprintf(used, sizeof used, "%s", w.address);
        snprintf(list, sizeof list, "127.0.0.1:0,%s", used);
        const char *rows[] = {used,
                              list,
                              "127.0.0.1",
                              "127.0.0.1:65536",
                              "nosuch.invalid:80",
                              "unix:relative",
                              "unix:/nosuchdir/x",
                              "[::1",
                              "192.0.2.1:0"};
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            revdial_proxy_config cfg = w.pcfg;
            cfg.listen = rows[i];
            revdial_proxy *p = revdial_proxy_open(&cfg, &err);
            if (p) test_fail(__FILE__, __LINE__, "%s: opened", rows[i]);
            if (!p && (err.code > -1 || !err.msg[0]))
                test_fail(__FILE__, __LINE__, "%s: %d %s", rows[i], err.code, err.msg);
            if (i == 0) CHECK_INT(err.sys, EADDRINUSE);
            revdial_proxy_close(p);
        }
        CHECK_INT(util_fds(), before);
        UTIL_EVENTUALLY(util_threads() == threads);
    }
    world_close(&w);
    rmdir(dir);
}

TEST(a_proxy_listens_at_several_addresses_and_tells_each)
{
    char dir[] = "/tmp/revdial-test-XXXXXX", list[200], buf[150], path[100];
    world w;
    world_init(&w);
    REQUIRE(mkdtemp(dir) != NULL);
    snprintf(path, sizeof path, "%s/s", dir);
    snprintf(list, sizeof list, "127.0.0.1:0,unix:%s,127.0.0.1:0", path);
    w.pcfg.listen = list;
    if (world_open_proxy(&w)) {
        int n = revdial_proxy_address(w.proxy, 1, buf, sizeof buf);
        CHECK_INT(n, strlen(buf));
        CHECK(strncmp(buf, "unix:", 5) == 0 && strcmp(buf + 5, path) == 0);
        CHECK_INT(revdial_proxy_address(w.proxy, 1, buf, (size_t)n), REVDIAL_EINVAL);
        CHECK_INT(revdial_proxy_address(w.proxy, 1, buf, (size_t)n + 1), n);
        CHECK(revdial_proxy_address(w.proxy, 2, buf, sizeof buf) > 0);
        CHECK(strcmp(buf, w.address) != 0);
        CHECK_INT(revdial_proxy_address(w.proxy, 3, buf, sizeof buf), REVDIAL_EINVAL);
        snprintf(buf, sizeof buf, "unix:%s", path);
        w.acfg.url = buf;
        CHECK(world_open_agent(&w, 0));
        revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS);
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        CHECK(st != NULL);
        revdial_close(st);
    }
    world_close(&w);
    CHECK_INT(access(path, F_OK), -1);
    rmdir(dir);
}

TEST(U22_a_proxy_can_be_opened_again_at_once_where_it_was)
{
    world w;
    char address[80];
    world_init(&w);
    if (world_open(&w)) {
        snprintf(address, sizeof address, "%s", w.address);
        revdial_proxy_close(w.proxy);
        w.pcfg.listen = address;
        if (CHECK(world_open_proxy(&w))) {
            // The agent comes back by itself.
            CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
            revdial_stream *st = world_dial(&w, "echo", 0, NULL);
            CHECK(st != NULL);
            revdial_close(st);
        }
    }
    world_close(&w);
}

TEST(drain_lets_streams_end_refuses_new_ones_and_then_ends_the_sessions)
{
    world w;
    char buf[4];
    revdial_err err;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        CHECK(st != NULL);
        CHECK_INT(revdial_proxy_drain(w.proxy, 0), REVDIAL_ETIMEDOUT);
        (void)buf;
        revdial_close(st);
    }
    world_close(&w);
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        revdial_session *s = revdial_agent_session(w.agents[0], UTIL_WAIT_MS);
        if (CHECK(st != NULL)) {
            revdial_session_unref(s);
            s = revdial_stream_session(st);
            revdial_session_drain(s, -1);
            CHECK(util_log_wait(&w.states, REVDIAL_DRAINING, 1, NULL));
            CHECK(revdial_session_dial(s, NULL, &err) == NULL);
            CHECK_INT(err.code, REVDIAL_EDRAINING);
            CHECK_INT(revdial_write(st, "ping", 4), 4);
            CHECK_INT(util_read_all(st, buf, 4), 4);
            revdial_close(st);
            CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 1, NULL));
        }
        revdial_session_unref(s);
    }
    world_close(&w);
}

TEST(a_drain_that_waits_ends_when_the_last_stream_has)
{
    world w;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "source", 4000000, NULL);
        if (CHECK(st != NULL)) {
            util_read r;
            revdial_pollfd p = {st, 0, POLLIN, 0};
            revdial_poll(&p, 1, UTIL_WAIT_MS);
            revdial_session *s = revdial_stream_session(st);
            revdial_session_drain(s, UTIL_WAIT_MS);
            r = util_read_payload(st, 1);
            CHECK_INT(r.bytes, 4000000);
            CHECK_INT(r.end, 0);
            revdial_close(st);
            CHECK_INT(revdial_proxy_drain(w.proxy, UTIL_WAIT_MS), 0);
            revdial_session_unref(s);
        }
    }
    world_close(&w);
}

typedef struct waiting {
    revdial_proxy *proxy;
    util_gate began, done;
    int result;
} waiting;

static void *waiting_run(void *arg)
{
    waiting *x = arg;
    util_gate_add(&x->began, 1);
    x->result = revdial_proxy_wait(x->proxy, "nobody", 1, -1);
    util_gate_add(&x->done, 1);
    return NULL;
}

TEST(U6_closing_the_proxy_wakes_all_who_wait_for_it)
{
    world w;
    dialling d[2];
    waiting x;
    called c;
    pthread_t t[3];
    revdial_kv meta = {"do", "silent"};
    memset(d, 0, sizeof d);
    memset(&x, 0, sizeof x);
    world_init(&w);
    if (world_open(&w)) {
        called_init(&c, &w);
        d[0].name = "nobody";
        d[0].opts.flags = REVDIAL_DIAL_WAIT;
        d[0].opts.timeout_ms = -1;
        d[1].opts.meta = &meta;
        d[1].opts.meta_count = 1;
        d[1].opts.timeout_ms = -1;
        for (int i = 0; i < 2; i++) t[i] = dialling_start(&d[i], &w);
        CHECK(util_gate_wait(&w.held, 1));
        revdial_dial_opts opts = {.flags = REVDIAL_DIAL_WAIT, .timeout_ms = -1};
        CHECK(revdial_dial_async(w.proxy, "nobody", &opts, on_dial, &c) > 0);
        x.proxy = w.proxy;
        util_gate_init(&x.began);
        util_gate_init(&x.done);
        t[2] = util_thread(waiting_run, &x);
        util_gate_wait(&x.began, 1);
        util_nap_ms(20);
        revdial_proxy *p = w.proxy;
        revdial_proxy_close(p);
        w.proxy = NULL;
        CHECK(util_gate_wait(&c.done, 1));
        CHECK_INT(c.err.code, REVDIAL_ECLOSED);
        CHECK(util_gate_wait(&x.done, 1));
        for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
        CHECK_INT(x.result, REVDIAL_ECLOSED);
        for (int i = 0; i < 2; i++) {
            CHECK(d[i].st == NULL);
            CHECK_INT(d[i].err.code, REVDIAL_ECLOSED);
        }
    }
    world_close(&w);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
