// Several sessions of one name: a member that is sick, and what of its dials is made elsewhere.
#include "runtime_util.h"

#define MEMBER \
    "Revdial-Version: 1\r\nRevdial-Instance: raw\r\n" \
    "Revdial-Features: rstcode, promptack, preamble, drain, window=65536, streams=100\r\n"

// ------------------------------------------------------------------------------------------------
// A pool of two: an agent that serves, instance "a", and a member by hand.

typedef struct pool {
    world w;
    int fd;            // of the member by hand
    raw_frame pinged;  // the last ping that it has read
} pool;

// Reads frames up to the next of that kind; the payload of others is dropped.
static int member_await(pool *p, uint8_t type, uint16_t flags, raw_frame *f)
{
    uint8_t junk[8192];
    while (raw_frame_read(p->fd, f)) {
        if (f->type == RAW_DATA && f->len && !raw_read_all(p->fd, junk, f->len)) return 0;
        if (f->type == RAW_PING && f->flags & RAW_SYN) p->pinged = *f;
        if (f->type == type && (f->flags & flags) == flags) return 1;
    }
    return 0;
}

static int pool_try(pool *p)
{
    raw_frame f = {0};
    memset(p, 0, sizeof *p);
    world_init(&p->w);
    p->w.acfg.instance = "a";
    p->fd = -1;
    if (!world_open(&p->w)) return 0;
    p->fd = raw_backend(p->w.address, "cam-1", MEMBER);
    if (!CHECK(p->fd >= 0) || !CHECK(member_await(p, RAW_PING, RAW_SYN, &f))) return 0;
    raw_frame_send(p->fd, RAW_PING, RAW_ACK, 0, f.len);
    return CHECK_INT(revdial_proxy_wait(p->w.proxy, "cam-1", 2, UTIL_WAIT_MS), 2);
}

static void pool_close(pool *p)
{
    if (p->fd >= 0) close(p->fd);
    world_close(&p->w);
}

// The longer of the two members' round trips; 0 until both have answered a ping.
static int64_t farthest_us(pool *p)
{
    revdial_session *all[2];
    size_t n = revdial_proxy_list(p->w.proxy, "cam-1", all, 2);
    int64_t most = 0, least = INT64_MAX;
    for (size_t i = 0; i < n && i < 2; i++) {
        revdial_session_info info;
        revdial_session_get_info(all[i], &info);
        if (info.rtt_us > most) most = info.rtt_us;
        if (info.rtt_us < least) least = info.rtt_us;
        revdial_session_unref(all[i]);
    }
    return n == 2 && least ? most : 0;
}

// Are both members so near that early bytes wait for their answers? On a busy machine one may have
// answered its only ping late.
static int is_near(pool *p)
{
    UTIL_EVENTUALLY(farthest_us(p) > 0);
    return farthest_us(p) < RVD_STREAM_NEAR_US;
}

static int pool_open(pool *p)
{
    for (int tries = 0; tries < 20; tries++) {
        if (!pool_try(p)) return 0;
        if (is_near(p)) return 1;
        pool_close(p);
    }
    test_fail(__FILE__, __LINE__, "no ping was answered in time");
    return 0;
}

static int is_silent(pool *p)
{
    revdial_session *all[4];
    size_t n = revdial_proxy_list(p->w.proxy, NULL, all, 4);
    int is = 0;
    for (size_t i = 0; i < n && i < 4; i++) {
        is |= atomic_load(&all[i]->is_silent);
        revdial_session_unref(all[i]);
    }
    return is;
}

// Dials of every kind, by callback and by threads that wait.
enum { KINDS = 3, DIALS = 8 };

typedef struct many {
    called async[KINDS][DIALS];
    dialling sync[KINDS][DIALS];
    pthread_t threads[KINDS][DIALS];
    int keys[DIALS];
} many;

static void many_start(many *m, pool *p, const revdial_dial_opts *base)
{
    static const int picks[KINDS] = {REVDIAL_PICK_ROUND_ROBIN, REVDIAL_PICK_LEAST_STREAMS,
                                     REVDIAL_PICK_KEY};
    for (int k = 0; k < KINDS; k++) {
        for (int i = 0; i < DIALS; i++) {
            revdial_dial_opts opts = *base;
            m->keys[i] = i;
            opts.pick = picks[k];
            opts.key = &m->keys[i];
            opts.key_len = sizeof m->keys[i];
            called_init(&m->async[k][i], &p->w);
            CHECK(revdial_dial_async(p->w.proxy, "cam-1", &opts, on_dial, &m->async[k][i]) > 0);
            m->sync[k][i].opts = opts;
            m->threads[k][i] = dialling_start(&m->sync[k][i], &p->w);
        }
    }
}

static void served_end(revdial_stream *st, const revdial_err *err)
{
    char back[8] = "";
    if (!st) {
        test_fail(__FILE__, __LINE__, "not served: %s", err->msg);
        return;
    }
    CHECK_INT(revdial_write(st, "12", 2), 2);
    CHECK_INT(util_read_all(st, back, 7), 7);
    CHECK_STR(back, "first12");
    revdial_close(st);
}

static void many_end(many *m)
{
    for (int k = 0; k < KINDS; k++) {
        for (int i = 0; i < DIALS; i++) {
            CHECK(util_gate_wait(&m->async[k][i].done, 1));
            pthread_join(m->threads[k][i], NULL);
            served_end(m->async[k][i].st, &m->async[k][i].err);
            served_end(m->sync[k][i].st, &m->sync[k][i].err);
        }
    }
}

static const revdial_dial_opts speaks_first = {.early = "first", .early_len = 5};

TEST(dials_that_a_frozen_backend_does_not_answer_are_made_elsewhere_and_it_is_told)
{
    static many m;
    static pool p;
    raw_frame f = {0};
    if (pool_open(&p)) {
        memset(&m, 0, sizeof m);
        many_start(&m, &p, &speaks_first);
        many_end(&m);
        CHECK(member_await(&p, RAW_WINDOW, RAW_SYN, &f));
        CHECK(member_await(&p, RAW_PING, RAW_SYN, &f));
        if (CHECK(member_await(&p, RAW_WINDOW, RAW_RST, &f)))
            CHECK_INT(f.len, REVDIAL_RESET_CANCEL);
    }
    pool_close(&p);
}

TEST(a_backend_that_does_not_answer_is_asked_last_until_a_byte_of_it_comes)
{
    static pool p;
    raw_frame f = {0};
    called c[2];
    if (pool_open(&p)) {
        for (int i = 0; i < 20 && !is_silent(&p); i++)
            revdial_close(world_dial(&p.w, "echo", 0, NULL));
        CHECK(is_silent(&p));
        CHECK(member_await(&p, RAW_WINDOW, RAW_RST, &f));
        uint32_t last = f.id;
        for (int i = 0; i < 6; i++) {
            revdial_stream *st = world_dial(&p.w, "echo", 0, NULL);
            CHECK(st != NULL);
            revdial_close(st);
        }
        raw_frame_send(p.fd, RAW_PING, RAW_ACK, 0, p.pinged.len);
        UTIL_EVENTUALLY(!is_silent(&p));
        for (int i = 0; i < 2; i++) {
            called_init(&c[i], &p.w);
            CHECK(revdial_dial_async(p.w.proxy, "cam-1", NULL, on_dial, &c[i]) > 0);
        }
        if (CHECK(member_await(&p, RAW_WINDOW, RAW_SYN, &f))) CHECK_INT(f.id, last + 2);
        raw_frame_send(p.fd, RAW_WINDOW, RAW_ACK, f.id, 0);
        for (int i = 0; i < 2; i++) {
            CHECK(util_gate_wait(&c[i].done, 1));
            CHECK(c[i].st != NULL);
            revdial_close(c[i].st);
        }
    }
    pool_close(&p);
}

TEST(a_backend_without_another_of_its_name_may_take_as_long_as_the_dial_has)
{
    static pool p;
    raw_frame f = {0};
    called c;
    if (pool_open(&p)) {
        revdial_agent_stop(p.w.agents[0], 0);
        p.w.agents[0] = NULL;
        CHECK(util_log_wait(&p.w.sessions, REVDIAL_DOWN, 1, NULL));
        called_init(&c, &p.w);
        CHECK(revdial_dial_async(p.w.proxy, "cam-1", &speaks_first, on_dial, &c) > 0);
        CHECK(member_await(&p, RAW_WINDOW, RAW_SYN, &f));
        UTIL_EVENTUALLY(is_silent(&p));
        raw_frame_send(p.fd, RAW_WINDOW, RAW_ACK, f.id, 0);
        CHECK(util_gate_wait(&c.done, 1));
        CHECK(c.st != NULL);
        CHECK(!is_silent(&p));
        revdial_close(c.st);
    }
    pool_close(&p);
}

// The payload of the next data frame of that stream. Returns its length, -1 for the end.
static int member_data(pool *p, uint32_t id, char *text, size_t size)
{
    raw_frame f;
    uint8_t junk[8192];
    while (raw_frame_read(p->fd, &f)) {
        if (f.type != RAW_DATA || !f.len) continue;
        if (!raw_read_all(p->fd, junk, f.len)) return -1;
        if (f.id != id || f.len >= size) continue;
        memcpy(text, junk, f.len);
        text[f.len] = '\0';
        return (int)f.len;
    }
    return -1;
}

TEST(where_another_could_be_asked_a_clients_first_bytes_wait_for_the_ACK)
{
    static pool p;
    char text[200];
    raw_frame f = {0};
    called c[2];
    if (pool_open(&p)) {
        for (int i = 0; i < 2; i++) {  // one of them goes to the member by hand
            called_init(&c[i], &p.w);
            CHECK(revdial_dial_async(p.w.proxy, "cam-1", &speaks_first, on_dial, &c[i]) > 0);
        }
        CHECK(member_await(&p, RAW_WINDOW, RAW_SYN, &f));
        CHECK(member_data(&p, f.id, text, sizeof text) > 5);  // the preamble
        CHECK_INT(raw_wait(p.fd, POLLIN, 20), 0);
        raw_frame_send(p.fd, RAW_WINDOW, RAW_ACK, f.id, 0);
        CHECK_INT(member_data(&p, f.id, text, sizeof text), 5);
        CHECK_STR(text, "first");
        for (int i = 0; i < 2; i++) {
            CHECK(util_gate_wait(&c[i].done, 1));
            CHECK(c[i].st != NULL);
            revdial_close(c[i].st);
        }
    }
    pool_close(&p);
}

TEST(a_dial_whose_session_dies_is_made_elsewhere_unless_bytes_of_the_client_have_gone_out)
{
    static pool p;
    raw_frame f = {0};
    dialling d = {.opts = speaks_first};
    called c[2];
    if (pool_open(&p)) {
        for (int i = 0; i < 2; i++) {
            called_init(&c[i], &p.w);
            CHECK(revdial_dial_async(p.w.proxy, "cam-1", &speaks_first, on_dial, &c[i]) > 0);
        }
        CHECK(member_await(&p, RAW_WINDOW, RAW_SYN, &f));
        close(p.fd);
        for (int i = 0; i < 2; i++) {
            CHECK(util_gate_wait(&c[i].done, 1));
            served_end(c[i].st, &c[i].err);
        }
        revdial_agent_stop(p.w.agents[0], 0);  // and now one without another beside it
        p.w.agents[0] = NULL;
        CHECK(util_log_wait(&p.w.sessions, REVDIAL_DOWN, 2, NULL));
        p.fd = raw_backend(p.w.address, "cam-1", MEMBER);
        revdial_proxy_wait(p.w.proxy, "cam-1", 1, UTIL_WAIT_MS);
        d.opts.flags = REVDIAL_DIAL_WAIT;
        pthread_t t = dialling_start(&d, &p.w);
        CHECK(member_await(&p, RAW_WINDOW, RAW_SYN, &f));
        close(p.fd);
        p.fd = -1;
        CHECK(util_gate_wait(&d.done, 1));
        pthread_join(t, NULL);
        CHECK(d.st == NULL);
        CHECK_INT(d.err.code, REVDIAL_ELOST);
    }
    pool_close(&p);
}

// ------------------------------------------------------------------------------------------------
// Targets that cannot be reached

typedef struct refuser {
    pool *p;
    atomic_int refused;
    util_gate go;  // it waits for this after `held`
    atomic_int held;
} refuser;

// Answers every SYN with "the target refused the connection", and pings.
static void *refuser_run(void *arg)
{
    refuser *r = arg;
    raw_frame f = {0};
    uint8_t junk[8192];
    while (raw_frame_read(r->p->fd, &f)) {
        if (f.type == RAW_DATA && f.len && !raw_read_all(r->p->fd, junk, f.len)) break;
        if (f.type == RAW_PING && f.flags & RAW_SYN)
            raw_frame_send(r->p->fd, RAW_PING, RAW_ACK, 0, f.len);
        if (f.type == RAW_PING || !(f.flags & RAW_SYN)) continue;
        atomic_fetch_add(&r->refused, 1);
        if (atomic_load(&r->held)) util_gate_wait(&r->go, 1);
        raw_frame_send(r->p->fd, RAW_WINDOW, RAW_RST, f.id, REVDIAL_RESET_CONNECT_REFUSED);
    }
    return NULL;
}

// So many dials for a target: how many were refused first. All must be served.
static int refusals_of(refuser *r, const char *target, int dials, int pick)
{
    revdial_dial_opts opts = {.target = target, .pick = pick};
    int before = atomic_load(&r->refused);
    for (int i = 0; i < dials; i++) {
        revdial_err err = {0};
        called c;
        called_init(&c, &r->p->w);
        if (i % 2 == 0)
            c.st = revdial_dial(r->p->w.proxy, "cam-1", &opts, &err);
        else if (CHECK(revdial_dial_async(r->p->w.proxy, "cam-1", &opts, on_dial, &c) > 0))
            util_gate_wait(&c.done, 1);
        if (!c.st) test_fail(__FILE__, __LINE__, "dial %d: %s", i, i % 2 ? c.err.msg : err.msg);
        revdial_close(c.st);
    }
    return atomic_load(&r->refused) - before;
}

TEST(a_backend_that_could_not_reach_a_target_is_asked_last_for_that_target_and_for_a_while)
{
    static pool p;
    refuser r = {&p, 0, UTIL_GATE, 0};
    if (pool_open(&p)) {
        pthread_t t = util_thread(refuser_run, &r);
        CHECK_INT(refusals_of(&r, "a.test:1", 8, REVDIAL_PICK_ROUND_ROBIN), 1);
        CHECK_INT(refusals_of(&r, "a.test:1", 8, REVDIAL_PICK_LEAST_STREAMS), 0);
        CHECK_INT(refusals_of(&r, "b.test:1", 8, REVDIAL_PICK_ROUND_ROBIN), 1);
        for (int i = 0; i < 3; i++) {  // 5 s, and then twice as long each time
            util_clock_stop();
            util_clock_advance_ms((5000 << i) + 1);
            util_clock_run();
            CHECK_INT(refusals_of(&r, "a.test:1", 8, REVDIAL_PICK_ROUND_ROBIN), 1);
        }
        // The time is over again: one dial finds out, and nobody else waits for what it finds.
        static const revdial_dial_opts to_a = {.target = "a.test:1"};
        int before = atomic_load(&r.refused);
        called first;
        util_clock_stop();
        util_clock_advance_ms(40001);
        util_clock_run();
        atomic_store(&r.held, 1);
        for (int i = 0; i < 8 && atomic_load(&r.refused) == before; i++) {
            if (i) revdial_close(first.st);
            called_init(&first, &p.w);
            CHECK(revdial_dial_async(p.w.proxy, "cam-1", &to_a, on_dial, &first) > 0);
            UTIL_EVENTUALLY(atomic_load(&r.refused) > before || util_gate_count(&first.done) > 0);
        }
        refusals_of(&r, "a.test:1", 8, REVDIAL_PICK_ROUND_ROBIN);
        util_gate_add(&r.go, 1);
        CHECK(util_gate_wait(&first.done, 1));
        CHECK(first.st != NULL);  // another one serves it
        revdial_close(first.st);
        shutdown(p.fd, SHUT_RDWR);
        pthread_join(t, NULL);
        CHECK_INT(atomic_load(&r.refused), before + 1);
    }
    pool_close(&p);
}

// ------------------------------------------------------------------------------------------------
// Who is in a pool

WORLD_TEST(two_agents_of_one_name_on_one_machine_both_serve)
{
    CHECK(world_open_agent(w, 1));
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 2, UTIL_WAIT_MS), 2);
    CHECK_INT(util_log_count(&w->sessions, REVDIAL_DOWN, NULL), 0);
}

NEW_WORLD_TEST(a_session_that_a_process_has_left_behind_is_dropped_when_its_machine_connects_again)
{
    util_state up = {0}, down = {0};
    REQUIRE(world_open_proxy(w));
    int fds[3];
    fds[0] = raw_backend(w->address, "cam-1", "Revdial-Instance: far.1\r\n");
    CHECK(util_log_wait(&w->sessions, REVDIAL_UP, 1, NULL));
    fds[1] = raw_backend(w->address, "cam-1", "Revdial-Instance: near.1\r\n");
    CHECK(util_log_wait(&w->sessions, REVDIAL_UP, 2, &up));
    fds[2] = raw_backend(w->address, "cam-1", "Revdial-Instance: near.2\r\n");
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, &down));
    CHECK(down.id == up.id);
    CHECK_INT(down.code, REVDIAL_ELOST);
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 2, UTIL_WAIT_MS), 2);
    for (int i = 0; i < 3; i++) close(fds[i]);
}

static int64_t rtt_of_first(world *w)
{
    revdial_session *s = NULL;
    revdial_session_info info = {0};
    revdial_proxy_list(w->proxy, NULL, &s, 1);
    if (s) revdial_session_get_info(s, &info);
    revdial_session_unref(s);
    return info.rtt_us;
}

// The clock stands, so that no time passes but what the test lets pass.
NEW_WORLD_TEST(a_session_far_away_that_was_left_behind_is_dropped_after_two_round_trips)
{
    raw_frame f;
    util_state down = {0};
    util_clock_stop();
    REQUIRE(world_open_proxy(w));
    int old = raw_backend(w->address, "cam-1", "Revdial-Instance: far.1\r\n");
    CHECK(raw_frame_await(old, RAW_PING, &f));
    util_clock_advance_ms(700);
    raw_frame_send(old, RAW_PING, RAW_ACK, 0, f.len);
    UTIL_EVENTUALLY(rtt_of_first(w) >= 700000);
    int fresh = raw_backend(w->address, "cam-1", "Revdial-Instance: far.2\r\n");
    CHECK(raw_frame_await(old, RAW_PING, &f));
    for (int ms = 0; ms < 1600; ms += 50) {  // a tick that is later than 100 ms judges nobody
        for (unsigned i = 0; i < w->proxy->loop_count; i++) util_settle(w->proxy->loops[i]);
        if (ms < 1400) CHECK_INT(util_log_count(&w->sessions, REVDIAL_DOWN, NULL), 0);
        util_clock_advance_ms(50);
    }
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, &down));
    CHECK_INT(down.code, REVDIAL_ELOST);
    util_clock_run();
    close(old);
    close(fresh);
}

typedef struct warnings {
    util_gate gate;
} warnings;

static void note_warning(void *ud, int level, const char *event, const char *msg)
{
    warnings *n = ud;
    if (level == REVDIAL_LOG_WARN && strcmp(event, "session.replaced") == 0 &&
        strstr(msg, "give each its own"))
        util_gate_add(&n->gate, 1);
}

TEST(an_agent_whose_instance_another_one_uses_is_told_and_waits_and_the_proxy_warns)
{
    world w;
    warnings n = {UTIL_GATE};
    util_state down = {0}, wait = {0};
    int fd;
    world_init(&w);
    w.acfg.instance = "one";
    w.acfg.backoff_max_ms = 60000;
    w.pcfg.common.log = note_warning;
    w.pcfg.common.log_ud = &n;
    if (world_open(&w)) {
        fd = raw_backend(w.address, "cam-1", "Revdial-Instance: one\r\n");
        CHECK(util_log_wait(&w.states, REVDIAL_DOWN, 1, &down));
        CHECK_INT(down.code, REVDIAL_EDUPLICATE);
        CHECK(util_log_wait(&w.states, REVDIAL_BACKOFF, 1, &wait));
        CHECK_STR(wait.msg, "another agent uses --instance one; give each its own");
        CHECK(wait.retry_ms >= 30000);
        CHECK_INT(util_gate_count(&n.gate), 0);
        int again = raw_backend(w.address, "cam-1", "Revdial-Instance: one\r\n");
        CHECK(again >= 0);
        CHECK_INT(util_gate_count(&n.gate), 1);
        close(fd);
        close(again);
    }
    world_close(&w);
}

// Registers as cam-1 with that token; the descriptor is kept. Returns the status.
static int knock(world *w, const char *token, const char *instance, int *fd)
{
    char buf[1024], more[80];
    *fd = raw_connect(w->address);
    snprintf(more, sizeof more, "Revdial-Instance: %s\r\n", instance);
    raw_request(buf, sizeof buf, "cam-1", token, more);
    raw_say(*fd, buf);
    raw_head(*fd, buf, sizeof buf);
    return raw_status(buf);
}

static int hook_with_groups(void *ud, const revdial_auth_req *req, char *identity, size_t size)
{
    (void)ud;
    snprintf(identity, size, "%s", req->secret);
    if (req->secret[0] != 'x') snprintf(req->group, 128, "pool");
    return 0;
}

TEST(identities_of_one_group_share_a_name_and_others_do_not)
{
    static const revdial_credential rows[] = {{"a-token", "alice", "cam-1", 0, "pool"},
                                              {"b-token", "bob", "cam-1", 0, "pool"},
                                              {"c-token", "pool", "cam-1", 0, NULL}};
    static const revdial_credential later[] = {{"a-token", "alice", "cam-1", 0, "all"},
                                               {"b-token", "bob", "cam-1", 0, "all"},
                                               {"c-token", "pool", "cam-1", 0, "all"}};
    for (int with_hook = 0; with_hook < 2; with_hook++) {
        world w;
        int fds[5];
        world_init(&w);
        w.pcfg.credentials = rows;
        w.pcfg.credential_count = 3;
        if (with_hook) w.pcfg.auth = hook_with_groups;
        if (world_open_proxy(&w)) {
            CHECK_INT(knock(&w, "a-token", "1", &fds[0]), 101);
            CHECK_INT(knock(&w, "b-token", "2", &fds[1]), 101);
            CHECK_INT(knock(&w, "b-token", "1", &fds[2]), 101);  // is not alice: replaces nobody
            CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 3, UTIL_WAIT_MS), 3);
            CHECK_INT(knock(&w, with_hook ? "x-token" : "c-token", "3", &fds[3]), 409);
            if (!with_hook)
                CHECK_INT(
                    revdial_proxy_replace_credentials(w.proxy, later, 3, REVDIAL_END_STALE, NULL),
                    0);
            CHECK_INT(knock(&w, "c-token", "3", &fds[4]), 101);
            CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 4, UTIL_WAIT_MS), 4);
            for (int i = 0; i < 5; i++) close(fds[i]);
        }
        world_close(&w);
    }
}

NEW_WORLD_TEST(who_comes_again_after_its_group_was_parted_is_refused_and_replaces_nobody)
{
    static const revdial_credential rows[] = {{"a-token", "alice", "cam-1", 0, "pool"},
                                              {"b-token", "bob", "cam-1", 0, "pool"}};
    static const revdial_credential parted[] = {{"a-token", "alice", "cam-1", 0, "pool"},
                                                {"b-token", "bob", "cam-1", 0, "other"}};
    int fds[3];
    w->pcfg.credentials = rows;
    w->pcfg.credential_count = 2;
    REQUIRE(world_open_proxy(w));
    CHECK_INT(knock(w, "a-token", "1", &fds[0]), 101);
    CHECK_INT(knock(w, "b-token", "2", &fds[1]), 101);
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 2, UTIL_WAIT_MS), 2);
    CHECK_INT(revdial_proxy_replace_credentials(w->proxy, parted, 2, 0, NULL), 0);
    CHECK_INT(knock(w, "a-token", "1", &fds[2]), 409);
    CHECK_INT(util_log_count(&w->sessions, REVDIAL_DOWN, NULL), 0);
    for (int i = 0; i < 3; i++) close(fds[i]);
}

TEST(certificates_that_one_row_admits_share_a_name_and_a_user_called_like_one_does_not)
{
    static const revdial_credential rows[] = {
        {NULL, "DNS:*.web.example", "web", REVDIAL_AUTH_MTLS, NULL},
        {"s3cret", "DNS:w1.web.example", "web", 0, NULL}};
    static const revdial_identity certificates[2] = {{.verified = 1, .san = "DNS:w1.web.example"},
                                                     {.verified = 1, .san = "DNS:w2.web.example"}};
    static rvd_auth_guard guard;
    rvd_heap heap = {0};
    rvd_auth_holder holder[3];
    char name[65] = "", identity[3][128] = {"", "", ""};
    size_t row;
    rvd_auth_guard_init(&guard, &heap, 0);
    rvd_auth_table *t = rvd_auth_table_new(&guard, "revdial", rows, 2);
    for (int i = 0; i < 3; i++) {
        revdial_auth_req req = {.secret = "", .name = "web"};
        if (i < 2)
            req.tls = &certificates[i];
        else
            req.scheme = REVDIAL_AUTH_BEARER, req.secret = "s3cret";
        CHECK_INT(rvd_auth_table_check(t, &req, &row, name, identity[i]), 0);
        holder[i] = rvd_auth_row_holder(&guard, &t->rows[row], identity[i]);
    }
    CHECK(holder[0].who != holder[1].who);
    CHECK(rvd_auth_shares(holder[0], holder[1]));
    CHECK_STR(identity[0], identity[2]);
    CHECK(!rvd_auth_shares(holder[0], holder[2]));
    rvd_auth_table_free(t);
    rvd_auth_guard_end(&guard);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
