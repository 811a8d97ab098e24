// Which backend a dial gets, and dials with callbacks.
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
    revdial_session_get_info(s, &info);
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

TEST(a_client_keeps_its_backend_whatever_its_port_and_one_without_an_address_goes_on_in_turn)
{
    world w;
    revdial_dial_opts opts = {.pick = REVDIAL_PICK_CLIENT};
    world_init(&w);
    if (open_pool(&w)) {
        int count[256] = {0};
        char seen[4] = "", address[40];
        opts.client_addr = address;
        for (int i = 0; i < 30; i++) {
            snprintf(address, sizeof address, i % 2 ? "10.0.0.%d:1" : "[fd00::%d]:1", i);
            char where = dial_where(&w, &opts);
            count[(unsigned char)where]++;
            address[strlen(address) - 1] = '2';
            CHECK_INT(dial_where(&w, &opts), where);
        }
        CHECK(count['a'] > 2 && count['b'] > 2 && count['c'] > 2);
        opts.client_addr = NULL;
        for (int i = 0; i < 3; i++) seen[i] = dial_where(&w, &opts);
        CHECK(seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[2]);
    }
    world_close(&w);
}

// The session of that instance, with a reference.
static revdial_session *session_of(world *w, char instance)
{
    revdial_session *all[3] = {NULL}, *found = NULL;
    size_t n = revdial_proxy_list(w->proxy, "cam-1", all, 3);
    for (size_t i = 0; i < n && i < 3; i++) {
        revdial_session_info info;
        revdial_session_get_info(all[i], &info);
        if (info.instance[0] == instance)
            found = all[i];
        else
            revdial_session_unref(all[i]);
    }
    return found;
}

TEST(a_dial_to_one_session_asks_no_other_and_does_not_count)
{
    world w;
    revdial_dial_opts opts = {.pick = REVDIAL_PICK_LEAST_STREAMS};
    revdial_stats stats;
    revdial_err err;
    called c;
    world_init(&w);
    if (open_pool(&w)) {
        opts.session = session_of(&w, 'b');
        for (int i = 0; i < 3; i++) CHECK_INT(dial_where(&w, &opts), 'b');
        called_init(&c, &w);
        CHECK(revdial_dial_async(w.proxy, "cam-1", &opts, on_dial, &c) > 0);
        CHECK(util_gate_wait(&c.done, 1));
        if (CHECK(c.st != NULL)) CHECK_INT(instance_of(c.st), 'b');
        revdial_close(c.st);
        revdial_agent_stop(w.agents[1], 0);
        w.agents[1] = NULL;
        CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 1, NULL));
        CHECK(revdial_dial(w.proxy, "cam-1", &opts, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_ENOBACKEND);
        revdial_proxy_get_stats(w.proxy, &stats);
        CHECK_INT(stats.dials, 0);
        CHECK_INT(stats.dials_failed, 0);
        revdial_session_unref(opts.session);
    }
    world_close(&w);
}

TEST(a_session_that_is_avoided_for_a_target_is_asked_last_for_it_and_for_no_other)
{
    world w;
    revdial_dial_opts opts = {.target = "a.test:1"}, key = {.pick = REVDIAL_PICK_KEY, .key = "k"};
    revdial_session *s[3];
    world_init(&w);
    if (open_pool(&w)) {
        int count[256] = {0};
        char home = dial_where(&w, &key), target[32];
        for (int i = 0; i < 3; i++) s[i] = session_of(&w, instances[i][0]);
        CHECK_INT(revdial_proxy_avoid(w.proxy, s[0], "a.test:1", 1), 0);
        CHECK_INT(revdial_proxy_avoid(w.proxy, s[0], "a.test:1", 1), 0);
        CHECK_INT(revdial_proxy_avoid(w.proxy, s[home - 'a'], NULL, 1), 0);
        for (int i = 0; i < 8; i++) count[(unsigned char)dial_where(&w, &opts)]++;
        CHECK(count['a'] == 0 && count['b'] == 4 && count['c'] == 4);
        CHECK(dial_where(&w, &key) != home);
        CHECK_INT(revdial_proxy_avoid(w.proxy, s[home - 'a'], NULL, 0), 0);
        CHECK_INT(dial_where(&w, &key), home);
        for (int i = 1; i < 3; i++)
            CHECK_INT(revdial_proxy_avoid(w.proxy, s[i], opts.target, 1), 0);
        for (int i = 0; i < 3; i++) count[(unsigned char)dial_where(&w, &opts)]++;
        CHECK(count['a'] == 1 && count['b'] == 5 && count['c'] == 5);
        for (int i = 0; i < RVD_PROXY_AVOIDED; i++) {
            snprintf(target, sizeof target, "more.test:%d", i + 1);
            CHECK_INT(revdial_proxy_avoid(w.proxy, s[0], target, 1),
                      i < RVD_PROXY_AVOIDED - 1 ? 0 : REVDIAL_ELIMIT);
        }
        CHECK_INT(revdial_proxy_avoid(w.proxy, s[0], "a.test:1", 0), 0);
        CHECK_INT(revdial_proxy_avoid(w.proxy, s[0], target, 1), 0);
        CHECK_INT(dial_where(&w, &opts), 'a');
        revdial_session_kill(s[0]);
        CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 1, NULL));
        CHECK_INT(revdial_proxy_avoid(w.proxy, s[0], NULL, 1), REVDIAL_EINVAL);
        CHECK_INT(revdial_proxy_avoid(w.proxy, NULL, NULL, 1), REVDIAL_EINVAL);
        for (int i = 0; i < 3; i++) revdial_session_unref(s[i]);
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

NEW_WORLD_TEST(
    a_backend_that_refuses_drains_or_cannot_reach_the_target_has_another_asked_and_no_other_code)
{
    static const struct {
        int code, want, refused;
    } rows[] = {{REVDIAL_RESET_REFUSED, 0, 2},
                {REVDIAL_RESET_DRAINING, 0, 2},
                {REVDIAL_RESET_CONNECT_REFUSED, 0, 1},  // once: then it is asked last
                {REVDIAL_RESET_CONNECT_TIMEOUT, 0, 1},
                {REVDIAL_RESET_UNREACHABLE, 0, 1},
                {REVDIAL_RESET_NO_SUCH_HOST, 0, 1},
                {REVDIAL_RESET_INTERNAL, REVDIAL_EREFUSED, 2},
                {REVDIAL_RESET_CALM, REVDIAL_ELIMIT, 2},
                {REVDIAL_RESET_TIMEOUT, REVDIAL_ETIMEDOUT, 2},
                {REVDIAL_RESET_FORBIDDEN, REVDIAL_EDENIED, 2},
                {77, REVDIAL_EREFUSED, 2}};
    w->acfg.instance = "a";
    REQUIRE(world_open(w));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        refuser r = {-1, rows[i].code, 0, UTIL_GATE};
        revdial_err err;
        int ok = 0, failed = 0;
        r.fd = raw_backend(w->address, "cam-1",
                           "Revdial-Version: 1\r\nRevdial-Instance: b\r\n"
                           "Revdial-Features: rstcode, promptack, preamble, drain, "
                           "window=65536, streams=100\r\n");
        if (!CHECK(r.fd >= 0)) break;
        revdial_proxy_wait(w->proxy, "cam-1", 2, UTIL_WAIT_MS);
        pthread_t t = util_thread(refuser_run, &r);
        for (int k = 0; k < 4; k++) {
            revdial_stream *st = world_dial(w, "echo", 0, &err);
            ok += st != NULL;
            failed += !st && err.code == rows[i].want && err.reset == rows[i].code;
            revdial_close(st);
        }
        shutdown(r.fd, SHUT_RDWR);
        pthread_join(t, NULL);
        close(r.fd);
        CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, (int)i + 1, NULL));
        if (ok != (rows[i].want ? 2 : 4) || failed != (rows[i].want ? 2 : 0) ||
            r.refused < rows[i].refused)
            test_fail(__FILE__, __LINE__,
                      "code %d: %d dials came through, %d failed rightly, "
                      "%d were refused",
                      rows[i].code, ok, failed, r.refused);
    }
}

NEW_WORLD_TEST(a_backend_is_not_avoided_because_the_one_before_it_could_not_reach_the_target)
{
    refuser r = {-1, REVDIAL_RESET_CONNECT_REFUSED, 0, UTIL_GATE};
    revdial_dial_opts opts = {.pick = REVDIAL_PICK_LEAST_STREAMS};
    revdial_err err;
    char byte;
    w->acfg.instance = "a";
    w->pcfg.common.limits.max_own_streams = 1;
    REQUIRE(world_open(w));
    revdial_stream *full = world_dial(w, "echo", 0, NULL);
    CHECK(full != NULL);
    r.fd = raw_backend(w->address, "cam-1",
                       "Revdial-Version: 1\r\nRevdial-Instance: b\r\n"
                       "Revdial-Features: rstcode, promptack, preamble, window=65536\r\n");
    revdial_proxy_wait(w->proxy, "cam-1", 2, UTIL_WAIT_MS);
    pthread_t t = util_thread(refuser_run, &r);
    CHECK(revdial_dial(w->proxy, "cam-1", &opts, &err) == NULL);  // b cannot, and a has no room
    CHECK_INT(err.code, REVDIAL_ELIMIT);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(revdial_shutdown(full, REVDIAL_WR), 0);
        CHECK_INT(revdial_read(full, &byte, 1), 0);
        revdial_close(full);
        full = world_dial(w, "echo", 0, NULL);
        if (!CHECK(full != NULL)) break;
    }
    revdial_close(full);
    shutdown(r.fd, SHUT_RDWR);
    pthread_join(t, NULL);
    close(r.fd);
    CHECK_INT(r.refused, 1);
}

NEW_WORLD_TEST(early_bytes_are_there_at_the_backend_that_takes_the_stream_whoever_refused_it_before)
{
    revdial_kv meta = {"do", "echo"};
    revdial_dial_opts opts = {.meta = &meta, .meta_count = 1, .early = "first", .early_len = 5};
    revdial_err err;
    w->acfg.instance = "a";
    REQUIRE(world_open(w));
    refuser r = {-1, REVDIAL_RESET_REFUSED, 0, UTIL_GATE};
    r.fd = raw_backend(w->address, "cam-1",
                       "Revdial-Version: 1\r\nRevdial-Instance: b\r\n"
                       "Revdial-Features: rstcode, promptack, preamble, window=8192\r\n");
    revdial_proxy_wait(w->proxy, "cam-1", 2, UTIL_WAIT_MS);
    pthread_t t = util_thread(refuser_run, &r);
    for (int i = 0; i < 4; i++) {
        char back[8] = "";
        called c;
        called_init(&c, w);
        if (i % 2)
            CHECK(revdial_dial_async(w->proxy, "cam-1", &opts, on_dial, &c) > 0 &&
                  util_gate_wait(&c.done, 1));
        else
            c.st = revdial_dial(w->proxy, "cam-1", &opts, &err);
        if (!CHECK(c.st != NULL)) continue;
        CHECK_INT(util_read_all(c.st, back, 5), 5);
        CHECK_STR(back, "first");
        revdial_close(c.st);
    }
    for (int i = 0; i < 2; i++) {
        called c;
        called_init(&c, w);
        opts.early_len = i ? SIZE_MAX : REVDIAL_EARLY_MAX + 1;
        CHECK(!revdial_dial(w->proxy, "cam-1", &opts, &err));
        CHECK_INT(err.code, REVDIAL_EINVAL);
        CHECK_STR(err.msg, "early: over 4096 bytes");
        CHECK_INT(revdial_dial_async(w->proxy, "cam-1", &opts, on_dial, &c), REVDIAL_EINVAL);
    }
    shutdown(r.fd, SHUT_RDWR);
    pthread_join(t, NULL);
    close(r.fd);
    CHECK(r.refused >= 2);
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
        revdial_session_get_info(s[0], &info);
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
        revdial_session_get_info(s[0], &info);
        CHECK_INT(info.state, REVDIAL_DRAINING);
        for (int i = 0; i < 3; i++) revdial_close(held[i]);
        for (size_t i = 0; i < n; i++) revdial_session_unref(s[i]);
    }
    world_close(&w);
}

WORLD_TEST(c22_a_session_without_stream_ids_is_replaced_and_its_streams_go_on)
{
    char buf[4];
    revdial_stream *old = world_dial(w, "echo", 0, NULL);
    if (CHECK(old != NULL)) {
        revdial_session *s = revdial_stream_session(old), *t = NULL;
        revdial_dial_opts opts = {.flags = REVDIAL_DIAL_WAIT, .timeout_ms = UTIL_WAIT_MS};
        pthread_mutex_lock(&s->lock);
        s->engine->mux.next_id = RVD_MUX_ID_LAST + 1;
        pthread_mutex_unlock(&s->lock);
        revdial_stream *fresh = revdial_dial(w->proxy, "cam-1", &opts, NULL);
        if (CHECK(fresh != NULL)) t = revdial_stream_session(fresh);
        CHECK(t != s);
        CHECK_INT(revdial_write(old, "ping", 4), 4);
        CHECK_INT(util_read_all(old, buf, 4), 4);
        revdial_close(old);
        CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, NULL));
        revdial_close(fresh);
        revdial_session_unref(s);
        revdial_session_unref(t);
    }
}

NEW_WORLD_TEST(wait_counts_backends_and_list_takes_a_glob_and_gives_references)
{
    revdial_session *s[8];
    revdial_session_info info;
    REQUIRE(world_open_proxy(w));
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 0, 0), 0);
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 1, 0), REVDIAL_ETIMEDOUT);
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 1, 5), REVDIAL_ETIMEDOUT);
    static const char *const names[] = {"cam-1", "cam-2", "door"};
    for (int i = 0; i < 3; i++) {
        w->acfg.name = names[i];
        CHECK(world_open_agent(w, i));
        CHECK_INT(revdial_proxy_wait(w->proxy, names[i], 1, UTIL_WAIT_MS), 1);
    }
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 2, 5), REVDIAL_ETIMEDOUT);
    CHECK_INT(revdial_proxy_list(w->proxy, "cam-*", NULL, 0), 2);
    CHECK_INT(revdial_proxy_list(w->proxy, "nobody", NULL, 0), 0);
    CHECK_INT(revdial_proxy_list(w->proxy, "d??r", NULL, 0), 1);
    CHECK_INT(revdial_proxy_list(w->proxy, NULL, s, 2), 3);
    revdial_session_unref(s[0]);
    revdial_session_unref(s[1]);
    CHECK_INT(revdial_proxy_list(w->proxy, "door", s, 8), 1);
    revdial_agent_stop(w->agents[2], 0);
    w->agents[2] = NULL;
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, NULL));
    revdial_session_get_info(s[0], &info);
    CHECK_STR(info.name, "door");
    CHECK_INT(info.state, REVDIAL_DOWN);
    revdial_session_unref(s[0]);
    CHECK_INT(revdial_proxy_list(w->proxy, "door", NULL, 0), 0);
}

WORLD_TEST(stats_count_sessions_streams_bytes_and_failures)
{
    revdial_stats p, a;
    char buf[1000];
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    if (CHECK(st != NULL)) {
        CHECK_INT(util_write_payload(st, 1000, 2), 1000);
        CHECK_INT(util_read_all(st, buf, 1000), 1000);
        revdial_proxy_get_stats(w->proxy, &p);
        revdial_agent_get_stats(w->agents[0], &a);
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
    CHECK(world_dial(w, "refuse", 0, NULL) == NULL);
    CHECK(revdial_dial(w->proxy, "nobody", NULL, NULL) == NULL);
    UTIL_EVENTUALLY((revdial_proxy_get_stats(w->proxy, &p), p.streams == 0));
    CHECK_INT(p.dials_failed, 2);
    CHECK_INT(p.dials_failed_by[-REVDIAL_EREFUSED], 1);
    CHECK_INT(p.dials_failed_by[-REVDIAL_ENOBACKEND], 1);
    CHECK_INT(p.dials, 3);
    CHECK_INT(p.dials_within[REVDIAL_DIAL_PLACES - 1], 3);
    for (int i = 1; i < REVDIAL_DIAL_PLACES; i++) CHECK(p.dials_within[i] >= p.dials_within[i - 1]);
    CHECK(p.dial_us > 0);
    CHECK_INT(p.streams_reset, 1);
    CHECK_INT(p.resets[REVDIAL_RESET_REFUSED], 1);
    revdial_agent_stop(w->agents[0], 0);
    w->agents[0] = NULL;
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, NULL));
    revdial_proxy_get_stats(w->proxy, &p);
    CHECK_INT(p.sessions, 0);
    CHECK_INT(p.sessions_closed, 1);
    CHECK_INT(p.tx_bytes, 1000);  // of sessions that are gone, too
}

// What the proxy counts, less what its sessions count: zeros but for the memory of its registry.
static revdial_stats stats_elsewhere(world *w)
{
    revdial_session *list[8];
    revdial_session_info info;
    revdial_stats stats;
    revdial_proxy_get_stats(w->proxy, &stats);
    size_t n = revdial_proxy_list(w->proxy, NULL, list, 8);
    for (size_t i = 0; i < n; i++) {
        revdial_session_get_info(list[i], &info);
        stats.sessions--;
        stats.streams -= info.streams;
        stats.streams_opened -= info.streams_opened;
        stats.streams_reset -= info.streams_reset;
        stats.streams_refused -= info.streams_refused;
        stats.credit_waits -= info.credit_waits;
        stats.rx_bytes -= info.rx_bytes;
        stats.tx_bytes -= info.tx_bytes;
        stats.memory_bytes -= info.memory_bytes;
        for (int code = 0; code < REVDIAL_RESET_PLACES; code++)
            stats.resets[code] -= info.resets[code];
        revdial_session_unref(list[i]);
    }
    return stats;
}

static int has_no_counts(const revdial_stats *s)
{
    for (int code = 0; code < REVDIAL_RESET_PLACES; code++)
        if (s->resets[code] != 0) return 0;
    return s->sessions == 0 && s->streams == 0 && s->streams_opened == 0 && s->streams_reset == 0 &&
           s->streams_refused == 0 && s->credit_waits == 0 && s->rx_bytes == 0 && s->tx_bytes == 0;
}

NEW_WORLD_TEST(what_a_proxy_counts_is_what_its_sessions_count)
{
    revdial_stream *st[8];
    char buf[1000];
    if (!open_pool(w)) return;
    revdial_stats before = stats_elsewhere(w), after;
    for (int i = 0; i < 8; i++) {
        st[i] = world_dial(w, "echo", 0, NULL);
        if (!CHECK(st[i] != NULL)) continue;
        CHECK_INT(util_write_payload(st[i], 1000, 2), 1000);
        CHECK_INT(util_read_all(st[i], buf, 1000), 1000);
    }
    for (int i = 0; i < 3; i++) CHECK(world_dial(w, "refuse", 0, NULL) == NULL);
    // An engine gives memory back as time goes by, and what is asked in turn may change meanwhile.
    UTIL_EVENTUALLY((after = stats_elsewhere(w),
                     has_no_counts(&after) && after.memory_bytes == before.memory_bytes));
    CHECK_INT(after.sessions, 0);
    CHECK_INT(after.streams, 0);
    CHECK_INT(after.streams_opened, 0);
    CHECK_INT(after.streams_reset, 0);
    CHECK_INT(after.streams_refused, 0);
    CHECK_INT(after.credit_waits, 0);
    CHECK_INT(after.rx_bytes, 0);
    CHECK_INT(after.tx_bytes, 0);
    for (int code = 0; code < REVDIAL_RESET_PLACES; code++) CHECK_INT(after.resets[code], 0);
    for (int i = 0; i < 8; i++) revdial_close(st[i]);
}

static void *write_for_ever(void *arg)
{
    util_write_payload(arg, UINT64_MAX, 2);
    return NULL;
}

WORLD_TEST(streams_of_a_session_are_listed_with_what_they_wait_for)
{
    revdial_stream *free = world_dial(w, "echo", 0, NULL), *stuck = world_dial(w, "stop", 0, NULL);
    revdial_session *there = revdial_agent_wait(w->agents[0], UTIL_WAIT_MS, NULL);
    revdial_stream_info st[3], peer[1];
    revdial_session_info info;
    if (CHECK(free != NULL && stuck != NULL && there != NULL)) {
        revdial_session *s = revdial_stream_session(stuck);
        pthread_t writer = util_thread(write_for_ever, stuck);
        CHECK_INT(revdial_session_list_streams(s, 0, st, 3), 2);
        CHECK_INT(revdial_session_list_streams(s, 0, NULL, 0), 2);
        UTIL_EVENTUALLY(revdial_session_list_streams(s, 50, st, 3) == 1);
        CHECK_STR(st[0].flow.blocked_on, "peer's credit");
        CHECK(st[0].blocked_ms >= 50);
        CHECK_INT(st[0].is_dialled, 1);
        CHECK_INT(revdial_session_list_streams(s, 3600000, st, 3), 0);
        UTIL_EVENTUALLY(revdial_session_list_streams(there, 50, peer, 1) == 1);
        CHECK_STR(peer[0].flow.blocked_on, "reader");
        CHECK_STR(peer[0].dial, st[0].dial);
        CHECK_INT(peer[0].is_dialled, 0);
        revdial_session_get_info(s, &info);
        CHECK(info.credit_waits > 0 && info.memory_bytes > 0);
        revdial_stats all;
        revdial_proxy_get_stats(w->proxy, &all);
        CHECK_INT(all.credit_waits, info.credit_waits);  // it is the only session
        revdial_session_get_info(there, &info);
        CHECK_INT(info.unread_bytes, peer[0].flow.buffered);
        util_gate_add(&w->go, 1);
        UTIL_EVENTUALLY(revdial_session_list_streams(s, 50, NULL, 0) == 0);
        revdial_stream_set_deadline(stuck, REVDIAL_WR, 0);
        pthread_join(writer, NULL);
        revdial_session_unref(s);
    }
    revdial_close(stuck);
    revdial_close(free);
    revdial_session_unref(there);
}

// ------------------------------------------------------------------------------------------------
// Dials

WORLD_TEST(a_dial_fails_for_a_name_that_is_not_there_and_says_so)
{
    revdial_err err;
    CHECK(revdial_dial(w->proxy, "nobody", NULL, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_ENOBACKEND);
    CHECK(err.msg[0] != '\0');
    CHECK(revdial_dial(w->proxy, NULL, NULL, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_EINVAL);
    CHECK(revdial_dial(w->proxy, "", NULL, &err) == NULL);
    char big[5000];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    revdial_kv meta = {"k", big};
    revdial_dial_opts opts = {.meta = &meta, .meta_count = 1};
    CHECK(revdial_dial(w->proxy, "cam-1", &opts, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_EINVAL);
    memset(&opts, 0, sizeof opts);
    int fd = raw_backend(w->address, "stock", NULL);  // it has never heard of targets
    revdial_proxy_wait(w->proxy, "stock", 1, UTIL_WAIT_MS);
    opts.target = "127.0.0.1:80";
    CHECK(revdial_dial(w->proxy, "stock", &opts, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_EINVAL);
    revdial_stream *st = revdial_dial(w->proxy, "stock", NULL, &err);
    CHECK(st != NULL);
    revdial_close(st);
    close(fd);
}

NEW_WORLD_TEST(a_dial_that_fails_names_the_backend_and_the_target)
{
    static const char *const rules[] = {"127.0.0.1:1", NULL};
    char target[128] = "unix:/", want[200];
    memset(target + 6, 'x', 100);
    w->acfg.handler = NULL;
    w->acfg.allow = rules;
    REQUIRE(world_open(w));
    const struct {
        const char *name, *target, *says;
    } rows[] = {
        {"nobody", NULL, "dial nobody: no backend of that name is connected"},
        {"cam-1", "127.0.0.1:1", "dial cam-1 to 127.0.0.1:1: the target refused the connection"},
        {"cam-1", NULL, "dial cam-1: "},
        {"cam-1", "[fe80::1%nosuchif0]:80", "dial cam-1 to [fe80::1%nosuchif0]:80: "},
        {"cam-1", target, want}};
    snprintf(want, sizeof want, "dial cam-1 to %.80s: the target is not on", target);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        revdial_dial_opts opts = {.target = rows[i].target};
        revdial_err err = {0};
        called c;
        called_init(&c, w);
        CHECK(revdial_dial(w->proxy, rows[i].name, &opts, &err) == NULL);
        CHECK(revdial_dial_async(w->proxy, rows[i].name, &opts, on_dial, &c) > 0);
        CHECK(util_gate_wait(&c.done, 1));
        CHECK_STR(c.err.msg, err.msg);
        if (strncmp(err.msg, rows[i].says, strlen(rows[i].says)) != 0)
            test_fail(__FILE__, __LINE__, "row %zu: %s", i, err.msg);
    }
    revdial_session *s = NULL;
    revdial_dial_opts opts = {.target = "127.0.0.1:1"};
    revdial_err err = {0};
    if (CHECK_INT(revdial_proxy_list(w->proxy, "cam-1", &s, 1), 1))
        CHECK(revdial_session_dial(s, &opts, &err) == NULL);
    CHECK_STR(err.msg, rows[1].says);
    revdial_session_unref(s);
}

WORLD_TEST(a_dial_on_a_session_takes_options_that_choose_among_sessions)
{
    revdial_session *s = NULL;
    revdial_err err = {0};
    REQUIRE(revdial_proxy_list(w->proxy, "cam-1", &s, 1) == 1);
    revdial_dial_opts rows[] = {{.pick = REVDIAL_PICK_KEY},
                                {.pick = REVDIAL_PICK_CLIENT, .key_len = 1},
                                {.flags = REVDIAL_DIAL_WAIT | REVDIAL_DIAL_HERE, .session = s}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        revdial_stream *st = revdial_session_dial(s, &rows[i], &err);
        if (!st) test_fail(__FILE__, __LINE__, "row %zu: %s", i, err.msg);
        revdial_close(st);
    }
    revdial_session_unref(s);
}

WORLD_TEST(what_is_known_of_a_stream_can_be_asked_for_again_in_the_same_place)
{
    revdial_stream *st[2] = {world_dial(w, "echo", 0, NULL), world_dial(w, "echo", 0, NULL)};
    revdial_session *s = NULL;
    revdial_stream_info info[2];
    REQUIRE(revdial_proxy_list(w->proxy, "cam-1", &s, 1) == 1);
    CHECK_INT(revdial_session_list_streams(s, 0, info, 2), 2);
    for (int i = 0; i < 2; i++) {
        char dial[sizeof info->dial];
        snprintf(dial, sizeof dial, "%s", info[i].dial);
        CHECK_INT(revdial_session_find_stream(s, info[i].dial, &info[i]), 0);
        CHECK_STR(info[i].dial, dial);
    }
    CHECK(strcmp(info[0].dial, info[1].dial) != 0);
    revdial_close(st[0]);
    revdial_close(st[1]);
    revdial_session_unref(s);
}

WORLD_TEST(a_dial_that_nobody_answers_times_out_and_the_backend_is_told)
{
    revdial_err err;
    revdial_kv meta = {"do", "silent"};
    revdial_dial_opts opts = {.meta = &meta, .meta_count = 1, .timeout_ms = 30};
    CHECK(revdial_dial(w->proxy, "cam-1", &opts, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_ETIMEDOUT);
    util_gate_add(&w->go, 1);
    CHECK(util_gate_wait(&w->ended, 1));
    CHECK_INT(world_last(w).end, REVDIAL_ERESET);
    CHECK_INT(world_last(w).reset, REVDIAL_RESET_TIMEOUT);
}

NEW_WORLD_TEST(a_stream_that_the_handler_never_touches_is_refused_after_accept_timeout)
{
    revdial_err err;
    w->acfg.common.limits.accept_timeout_ms = 30;
    REQUIRE(world_open(w));
    CHECK(world_dial(w, "silent", 0, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_ETIMEDOUT);
    CHECK_INT(err.reset, REVDIAL_RESET_TIMEOUT);
}

// Queue control measures how long the first bytes take: not from the session's last event on.
WORLD_TEST(what_a_dial_sends_after_a_pause_is_timed_from_then)
{
    static const char first[REVDIAL_EARLY_MAX];
    char back[REVDIAL_EARLY_MAX];
    revdial_kv meta = {"do", "echo"};
    revdial_dial_opts opts = {
        .meta = &meta, .meta_count = 1, .early = first, .early_len = sizeof first};
    util_clock_stop();
    util_clock_advance_ms(9000);  // no timer is due, so that nobody looks at it
    revdial_stream *st = revdial_dial(w->proxy, "cam-1", &opts, NULL);
    if (CHECK(st != NULL)) {
        const rvd_pace *p = &st->session->engine->mux.pace;
        uint32_t pings, missing;
        CHECK_INT(util_read_all(st, back, sizeof back), sizeof back);
        UTIL_EVENTUALLY((rvd_stream_lock(st->session), pings = p->value, missing = p->count,
                         rvd_stream_unlock(st->session), pings && !missing));
        CHECK(p->trip_us < 9000000);
        revdial_close(st);
    }
    util_clock_run();
}

WORLD_TEST(an_early_dial_returns_at_once_and_learns_of_a_refusal_later)
{
    revdial_kv meta[2] = {{"do", "silent"}, {"n", "71"}};
    revdial_dial_opts opts = {.meta = meta, .meta_count = 2, .flags = REVDIAL_DIAL_EARLY};
    char c;
    int reset = 0;
    revdial_stream *st = revdial_dial(w->proxy, "cam-1", &opts, NULL);
    if (CHECK(st != NULL)) {
        revdial_flow_info l;
        CHECK_INT(revdial_stream_get_flow(st, &l), 0);
        CHECK_STR(l.blocked_on, "accept");
        CHECK_INT(revdial_write(st, "x", 1), 1);  // goes along
        revdial_close(st);
    }
    meta[0].value = "refuse-code";
    st = revdial_dial(w->proxy, "cam-1", &opts, NULL);
    if (CHECK(st != NULL)) {
        CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ERESET);
        CHECK_INT(revdial_stream_error(st, &reset), REVDIAL_ERESET);
        CHECK_INT(reset, 71);
        revdial_close(st);
    }
}

NEW_WORLD_TEST(DIAL_WAIT_waits_for_a_backend_and_no_longer_than_its_time)
{
    dialling d;
    revdial_dial_opts opts = {.flags = REVDIAL_DIAL_WAIT, .timeout_ms = 20};
    revdial_err err;
    memset(&d, 0, sizeof d);
    REQUIRE(world_open_proxy(w));
    CHECK(revdial_dial(w->proxy, "cam-1", &opts, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_ETIMEDOUT);
    d.opts.flags = REVDIAL_DIAL_WAIT;
    pthread_t t = dialling_start(&d, w);
    util_nap_ms(10);
    CHECK_INT(util_gate_count(&d.done), 0);
    CHECK(world_open_agent(w, 0));
    CHECK(util_gate_wait(&d.done, 1));
    pthread_join(t, NULL);
    CHECK(d.st != NULL);
    revdial_close(d.st);
}

WORLD_TEST(an_asynchronous_dial_calls_back_once_with_a_stream_or_an_error)
{
    called c;
    char name[16] = "cam-1", what[16] = "echo", buf[2];
    revdial_kv meta = {"do", what};
    revdial_dial_opts opts = {.meta = &meta, .meta_count = 1};
    called_init(&c, w);
    CHECK(revdial_dial_async(w->proxy, name, &opts, on_dial, &c) > 0);
    memset(name, 'x', 5);  // all of it was copied
    memset(what, 'x', 4);
    CHECK(util_gate_wait(&c.done, 1));
    if (CHECK(c.st != NULL)) {
        CHECK_INT(revdial_write(c.st, "hi", 2), 2);
        CHECK_INT(util_read_all(c.st, buf, 2), 2);
        revdial_close(c.st);
    }
    called_init(&c, w);
    strcpy(what, "refuse");
    CHECK(revdial_dial_async(w->proxy, "cam-1", &opts, on_dial, &c) > 0);
    CHECK(util_gate_wait(&c.done, 1));
    CHECK(c.st == NULL);
    CHECK_INT(c.err.code, REVDIAL_EREFUSED);
    called_init(&c, w);
    CHECK(revdial_dial_async(w->proxy, "nobody", NULL, on_dial, &c) > 0);
    CHECK(util_gate_wait(&c.done, 1));
    CHECK_INT(c.err.code, REVDIAL_ENOBACKEND);
    called_init(&c, w);
    strcpy(what, "silent");
    opts.timeout_ms = 20;
    CHECK(revdial_dial_async(w->proxy, "cam-1", &opts, on_dial, &c) > 0);
    CHECK(util_gate_wait(&c.done, 1));
    CHECK_INT(c.err.code, REVDIAL_ETIMEDOUT);
    CHECK_INT(c.done.count, 1);
}

WORLD_TEST(a_cancelled_dial_calls_back_with_ECLOSED_and_the_backend_is_told)
{
    called c;
    revdial_kv meta = {"do", "silent"};
    revdial_dial_opts opts = {.meta = &meta, .meta_count = 1};
    called_init(&c, w);
    int64_t id = revdial_dial_async(w->proxy, "cam-1", &opts, on_dial, &c);
    CHECK(id > 0 && util_gate_wait(&w->held, 1));
    CHECK_INT(revdial_dial_cancel(w->proxy, id), 0);
    CHECK(util_gate_wait(&c.done, 1));
    CHECK(c.st == NULL);
    CHECK_INT(c.err.code, REVDIAL_ECLOSED);
    CHECK_INT(revdial_dial_cancel(w->proxy, id), REVDIAL_EINVAL);
    CHECK_INT(revdial_dial_cancel(w->proxy, 0), REVDIAL_EINVAL);
    CHECK_INT(revdial_dial_cancel(w->proxy, -1), REVDIAL_EINVAL);
    util_gate_add(&w->go, 1);
    CHECK(util_gate_wait(&w->ended, 1));
    CHECK_INT(world_last(w).end, REVDIAL_ERESET);
    CHECK_INT(world_last(w).reset, REVDIAL_RESET_CANCEL);
}

// A backend by hand that accepts nothing. Returns its socket once the dial has come to it.
static int raw_backend_asked(world *w, called *c, const revdial_dial_opts *opts, int64_t *id)
{
    raw_frame f = {0};
    int fd = raw_backend(w->address, "cam-1",
                         "Revdial-Version: 1\r\n"
                         "Revdial-Features: rstcode, promptack, window=65536, streams=100\r\n");
    revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS);
    called_init(c, w);
    *id = revdial_dial_async(w->proxy, "cam-1", opts, on_dial, c);
    CHECK(*id > 0 && raw_frame_await(fd, RAW_WINDOW, &f));
    return fd;
}

NEW_WORLD_TEST(a_dial_that_has_lost_a_session_and_waits_for_another_says_how_the_wait_ended)
{
    revdial_dial_opts opts = {.flags = REVDIAL_DIAL_WAIT, .timeout_ms = -1};
    REQUIRE(world_open_proxy(w));
    for (int is_timed = 0; is_timed < 2; is_timed++) {
        called c;
        int64_t id;
        if (is_timed) opts.timeout_ms = 300;
        int fd = raw_backend_asked(w, &c, &opts, &id);
        close(fd);
        UTIL_EVENTUALLY(revdial_proxy_list(w->proxy, NULL, NULL, 0) == 0);
        if (!is_timed) CHECK_INT(revdial_dial_cancel(w->proxy, id), 0);
        CHECK(util_gate_wait(&c.done, 1));
        CHECK_INT(c.err.code, is_timed ? REVDIAL_ETIMEDOUT : REVDIAL_ECLOSED);
    }
}

NEW_WORLD_TEST(
    an_asynchronous_dial_waits_for_a_backend_times_out_and_can_be_cancelled_while_it_waits)
{
    called c[3];
    revdial_dial_opts opts = {.flags = REVDIAL_DIAL_WAIT, .timeout_ms = -1};
    w->pcfg.common.io_threads = 2;
    REQUIRE(world_open_proxy(w));
    for (int i = 0; i < 3; i++) called_init(&c[i], w);
    int64_t id = revdial_dial_async(w->proxy, "cam-1", &opts, on_dial, &c[0]);
    CHECK(revdial_dial_async(w->proxy, "cam-1", &opts, on_dial, &c[1]) > 0);
    opts.timeout_ms = 20;
    CHECK(revdial_dial_async(w->proxy, "cam-1", &opts, on_dial, &c[2]) > 0);
    CHECK(util_gate_wait(&c[2].done, 1));
    CHECK_INT(c[2].err.code, REVDIAL_ETIMEDOUT);
    CHECK_INT(revdial_dial_cancel(w->proxy, id), 0);
    CHECK(util_gate_wait(&c[0].done, 1));
    CHECK_INT(c[0].err.code, REVDIAL_ECLOSED);
    CHECK_INT(util_gate_count(&c[1].done), 0);
    CHECK(world_open_agent(w, 0));
    CHECK(util_gate_wait(&c[1].done, 1));
    CHECK(c[1].st != NULL);
    revdial_close(c[1].st);
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

WORLD_TEST(what_blocks_says_EDEADLK_on_an_IO_thread)
{
    called c;
    revdial_kv meta = {"do", "hold"};
    revdial_dial_opts opts = {.meta = &meta, .meta_count = 1};
    called_init(&c, w);
    CHECK(revdial_dial_async(w->proxy, "cam-1", &opts, on_dial_that_blocks, &c) > 0);
    CHECK(util_gate_wait(&c.done, 1));
    for (int i = 0; i < 6; i++) CHECK_INT(c.blocking[i], REVDIAL_EDEADLK);
    revdial_stream *st = world_dial(w, "echo", 0, NULL);  // and nothing is drained
    CHECK(st != NULL);
    revdial_close(st);
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

WORLD_TEST(a_callback_may_dial_again)
{
    dial_chain chain;
    memset(&chain, 0, sizeof chain);
    util_gate_init(&chain.done);
    chain.w = w;
    chain.left = 50;
    CHECK(revdial_dial_async(w->proxy, "cam-1", NULL, on_chained, &chain) > 0);
    CHECK(util_gate_wait(&chain.done, 1));
    CHECK_INT(chain.done.count, 1);
    CHECK_INT(chain.failed, 0);
}

// ------------------------------------------------------------------------------------------------
// Dials that have to wait for room

enum { ROOM = 128 };

// A stock backend by hand that has as many unanswered streams as it may.
typedef struct full_backend {
    int fd;
    revdial_stream *st[ROOM];
} full_backend;

static void full_open(full_backend *b, world *w)
{
    b->fd = raw_backend(w->address, "cam-1", NULL);
    revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS);
    for (int i = 0; i < ROOM; i++) {
        b->st[i] = revdial_dial(w->proxy, "cam-1", NULL, NULL);
        CHECK(b->st[i] != NULL);
    }
}

static void full_close(full_backend *b)
{
    for (int i = 0; i < ROOM; i++) revdial_close(b->st[i]);
    close(b->fd);
}

NEW_WORLD_TEST(dials_beyond_what_a_stock_peer_may_leave_unanswered_wait_for_an_answer_to_one)
{
    full_backend b;
    raw_frame f = {0};
    called c;
    dialling d;
    uint32_t first = 0;
    memset(&d, 0, sizeof d);
    REQUIRE(world_open_proxy(w));
    full_open(&b, w);
    called_init(&c, w);
    pthread_t t = dialling_start(&d, w);
    CHECK(revdial_dial_async(w->proxy, "cam-1", NULL, on_dial, &c) > 0);
    revdial_dial_opts opts = {.timeout_ms = 20};
    revdial_err err;
    CHECK(revdial_dial(w->proxy, "cam-1", &opts, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_ETIMEDOUT);
    CHECK_INT(util_gate_count(&c.done) + util_gate_count(&d.done), 0);
    for (int i = 0; i < 2; i++) {
        CHECK(raw_frame_await(b.fd, RAW_WINDOW, &f));
        if (!first) first = f.id;
        raw_frame_send(b.fd, RAW_WINDOW, RAW_ACK, f.id, 0);
    }
    CHECK(util_gate_wait(&c.done, 1) && util_gate_wait(&d.done, 1));
    pthread_join(t, NULL);
    CHECK(c.st && d.st && first == 1);
    revdial_close(c.st);
    revdial_close(d.st);
    full_close(&b);
}

NEW_WORLD_TEST(a_dial_that_waits_for_room_goes_to_another_session_when_its_own_drains)
{
    REQUIRE(world_open_proxy(w));
    for (int is_peers = 0; is_peers < 2; is_peers++) {
        called c;
        full_backend b;
        revdial_session *full = NULL;
        full_open(&b, w);
        CHECK_INT(revdial_proxy_list(w->proxy, NULL, &full, 1), 1);
        called_init(&c, w);
        CHECK(revdial_dial_async(w->proxy, "cam-1", NULL, on_dial, &c) > 0);
        int other = raw_backend(w->address, "cam-1", NULL);
        CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 2, UTIL_WAIT_MS), 2);
        CHECK_INT(util_gate_count(&c.done), 0);
        if (is_peers)
            raw_frame_send(b.fd, RAW_GOAWAY, 0, 0, 0);
        else
            CHECK_INT(revdial_session_drain(full, -1), 0);
        CHECK(util_gate_wait(&c.done, 1));
        CHECK(c.st != NULL);
        revdial_close(c.st);
        revdial_session_unref(full);
        full_close(&b);
        close(other);
        UTIL_EVENTUALLY(revdial_proxy_list(w->proxy, NULL, NULL, 0) == 0);
    }
}

// Whatever has ended the session, a dial that waited there for room says ELOST.
NEW_WORLD_TEST(a_dial_that_waits_for_room_says_ELOST_when_its_session_fails)
{
    called c;
    full_backend b;
    REQUIRE(world_open_proxy(w));
    full_open(&b, w);
    called_init(&c, w);
    CHECK(revdial_dial_async(w->proxy, "cam-1", NULL, on_dial, &c) > 0);
    raw_say(b.fd, "this is no frame of yamux");
    CHECK(util_gate_wait(&c.done, 1));
    CHECK_INT(c.err.code, REVDIAL_ELOST);
    full_close(&b);
}

NEW_WORLD_TEST(a_dial_over_the_peers_stream_limit_is_ELIMIT_until_a_stream_ends)
{
    revdial_err err;
    w->acfg.common.limits.max_streams = 2;
    REQUIRE(world_open(w));
    revdial_stream *a = world_dial(w, "echo", 0, NULL), *b = world_dial(w, "echo", 0, NULL);
    CHECK(a && b);
    CHECK(world_dial(w, "echo", 0, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_ELIMIT);
    revdial_close(a);
    revdial_stream *c = NULL;
    UTIL_EVENTUALLY((c = world_dial(w, "echo", 0, NULL)) != NULL);
    revdial_close(b);
    revdial_close(c);
}

TEST(waiting_dials_that_are_cancelled_while_backends_come_and_go_call_back_exactly_once)
{
    enum { DIALS = 120 };
    static called c[DIALS];
    world w;
    revdial_dial_opts opts = {.flags = REVDIAL_DIAL_WAIT, .timeout_ms = 2000};
    int wrong = 0;
    world_init(&w);
    w.pcfg.common.io_threads = 2;
    if (world_open_proxy(&w)) {
        for (int i = 0; i < DIALS; i++) {
            called_init(&c[i], &w);
            int64_t id = revdial_dial_async(w.proxy, "cam-1", &opts, on_dial, &c[i]);
            int fd = i % 4 == 0 ? raw_backend(w.address, "cam-1", NULL) : -1;
            if (i % 2) revdial_dial_cancel(w.proxy, id);
            if (fd >= 0) close(fd);
        }
        int fd = raw_backend(w.address, "cam-1", NULL);  // for those that still wait
        for (int i = 0; i < DIALS; i++) {
            CHECK(util_gate_wait(&c[i].done, 1));
            wrong += !c[i].st && c[i].err.code == 0;
            revdial_close(c[i].st);
        }
        close(fd);
    }
    world_close(&w);
    for (int i = 0; i < DIALS; i++) wrong += c[i].done.count != 1;
    CHECK_INT(wrong, 0);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
