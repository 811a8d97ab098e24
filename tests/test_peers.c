// Proxies that ask each other for backends that they do not have.
#include "runtime_util.h"

enum { SIDES = 4 };

// A proxy of its own, with an agent of the test at each of the others that it answers.
typedef struct side {
    world w;
    revdial_agent *asked_by[SIDES];
    atomic_int asked;  // how often
} side;

static void say_no(revdial_stream *st, const revdial_err *why)
{
    int reset = why->reset ? why->reset : REVDIAL_RESET_INTERNAL;
    if (why->code == REVDIAL_ENOBACKEND) reset = REVDIAL_RESET_NO_BACKEND;
    if (why->code == REVDIAL_ETIMEDOUT) reset = REVDIAL_RESET_TIMEOUT;
    revdial_reset(st, reset);
    revdial_close(st);
}

// What a peer is asked: it dials its own backend, and joins the two.
static void be_asked(void *ud, revdial_stream *st)
{
    side *s = ud;
    revdial_err err = {0};
    const char *left = revdial_stream_meta(st, "timeout_ms"), *what = revdial_stream_meta(st, "do");
    const char *name = revdial_stream_meta(st, "revdial-name"), *n = revdial_stream_meta(st, "n");
    revdial_kv meta[] = {{"do", what}, {"n", n ? n : "0"}};
    revdial_dial_opts opts = {.flags = REVDIAL_DIAL_HERE, .meta = meta};
    opts.meta_count = what ? 2 : 0;
    opts.timeout_ms = left ? atoi(left) : -1;
    atomic_fetch_add(&s->asked, 1);
    revdial_stream *to = name ? revdial_dial(s->w.proxy, name, &opts, &err) : NULL;
    int fd = to ? revdial_stream_fd(to) : -1;
    if (!name) err.code = REVDIAL_ENOBACKEND;
    if (fd < 0)
        say_no(st, &err);
    else
        revdial_relay(st, fd, fd, NULL);
}

static const revdial_credential rows[] = {{.secret = "s3cret", .user = "alice", .names = "*"},
                                          {.secret = "peer secret",
                                           .user = "peer",
                                           .names = "peer",
                                           .schemes = REVDIAL_AUTH_DIGEST,
                                           .group = "peers"}};

static int side_open(side *s)
{
    memset(s, 0, sizeof *s);
    world_init(&s->w);
    s->w.pcfg.credentials = rows;
    s->w.pcfg.credential_count = 2;
    s->w.pcfg.peer_group = "peers";
    return world_open_proxy(&s->w);
}

// How many peers may be asked by the proxy?
static size_t peers_of(side *s)
{
    revdial_session *list[16];
    size_t count = revdial_proxy_list(s->w.proxy, NULL, list, 16), peers = 0;
    for (size_t i = 0; i < count && i < 16; i++) {
        revdial_session_info info;
        revdial_session_get_info(list[i], &info);
        peers += info.is_peer && info.state == REVDIAL_UP;
        revdial_session_unref(list[i]);
    }
    return peers;
}

// The proxy of `asks` may ask that of s from now on.
static int answers(side *s, int i, side *asks)
{
    revdial_agent_config cfg = {.url = asks->w.url, .name = "peer", .user = "peer"};
    size_t before = peers_of(asks);
    cfg.secret = "peer secret";
    cfg.auth_schemes = REVDIAL_AUTH_DIGEST;
    cfg.handler = be_asked;
    cfg.ud = s;
    cfg.backoff_min_ms = 1;
    cfg.backoff_max_ms = 20;
    s->asked_by[i] = revdial_agent_start(&cfg, NULL);
    if (!CHECK(s->asked_by[i] != NULL)) return 0;
    UTIL_EVENTUALLY(peers_of(asks) == before + 1);
    return 1;
}

static void side_close(side *s)
{
    util_gate_add(&s->w.go, 1);
    for (int i = 0; i < SIDES; i++) revdial_agent_stop(s->asked_by[i], 0);
    world_close(&s->w);
}

// Sides 1 and up answer side 0. The test opens agents where it wants them.
static int sides_open(side *s, int count)
{
    int good = 1;
    for (int i = 0; i < count; i++) good &= side_open(&s[i]);
    for (int i = 1; good && i < count; i++) good &= answers(&s[i], 0, &s[0]);
    return good;
}

static void sides_close(side *s, int count)
{
    for (int i = 0; i < count; i++)
        for (int k = 0; k < SIDES; k++) {
            revdial_agent_stop(s[i].asked_by[k], 0);
            s[i].asked_by[k] = NULL;
        }
    for (int i = 0; i < count; i++) side_close(&s[i]);
}

#define SIDES_TEST(count, name) \
    static void sides_test_##name(side *s); \
    TEST(name) \
    { \
        static side s[count]; \
        if (sides_open(s, count)) sides_test_##name(s); \
        sides_close(s, count); \
    } \
    static void sides_test_##name(side *s)

// How many sessions are up that are backends.
static size_t backends_of(side *s)
{
    return revdial_proxy_list(s->w.proxy, NULL, NULL, 0) - peers_of(s);
}

SIDES_TEST(2, a_row_that_no_longer_makes_a_peer_ends_the_session_which_comes_back_as_a_backend)
{
    revdial_credential changed[2] = {rows[0], rows[1]};
    revdial_err err = {0};
    changed[1].group = NULL;
    CHECK_INT(peers_of(&s[0]), 1);
    CHECK_INT(revdial_proxy_replace_credentials(s[0].w.proxy, changed, 2, 0, &err), 0);
    CHECK_INT(peers_of(&s[0]), 1);  // until it reconnects
    CHECK_INT(revdial_proxy_replace_credentials(s[0].w.proxy, changed, 2, REVDIAL_END_STALE, &err),
              0);
    UTIL_EVENTUALLY(peers_of(&s[0]) == 0 && backends_of(&s[0]) == 1);
    CHECK_INT(revdial_proxy_wait(s[0].w.proxy, "peer", 1, UTIL_WAIT_MS), 1);
    CHECK_INT(revdial_proxy_replace_credentials(s[0].w.proxy, rows, 2, REVDIAL_END_STALE, &err), 0);
    UTIL_EVENTUALLY(peers_of(&s[0]) == 1 && backends_of(&s[0]) == 0);
}

static int asked(const side *s, int count)
{
    int all = 0;
    for (int i = 1; i < count; i++) all += atomic_load(&s[i].asked);
    return all;
}

SIDES_TEST(3, a_backend_that_is_not_here_is_reached_through_the_peer_that_has_it)
{
    revdial_err err = {0};
    CHECK(world_open_agent(&s[2].w, 0));
    for (int i = 0; i < 4; i++) {  // whichever is asked first
        revdial_stream *st = world_dial(&s[0].w, "bulk", 3000000, &err);
        if (!CHECK(st != NULL)) return;
        revdial_shutdown(st, REVDIAL_WR);
        util_read r = util_read_bulk(st);
        CHECK_INT(r.bytes, 3000000);
        CHECK_INT(r.end, 0);
        revdial_close(st);
    }
    CHECK(atomic_load(&s[2].asked) == 4);
    CHECK(atomic_load(&s[1].asked) <= 4);
    CHECK(world_open_agent(&s[0].w, 0));  // now it is here
    CHECK_INT(revdial_proxy_wait(s[0].w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
    int before = asked(s, 3);
    revdial_stream *st = world_dial(&s[0].w, "echo", 0, &err);
    CHECK(st != NULL);
    revdial_close(st);
    CHECK_INT(asked(s, 3), before);
}

SIDES_TEST(3, what_a_client_sends_and_how_a_stream_ends_crosses_a_peer)
{
    revdial_err err = {0};
    int reset = 0;
    CHECK(world_open_agent(&s[1].w, 0));
    revdial_stream *st = world_dial(&s[0].w, "bulk-sink", 0, &err);
    if (!CHECK(st != NULL)) return;
    CHECK_INT(util_write_bulk(st, 3000000), 3000000);
    revdial_shutdown(st, REVDIAL_WR);
    CHECK(util_gate_wait(&s[1].w.ended, 1));
    CHECK_INT(world_last(&s[1].w).bytes, 3000000);
    CHECK_INT(world_last(&s[1].w).end, 0);
    revdial_close(st);
    st = world_dial(&s[0].w, "reset", 77, &err);
    if (!CHECK(st != NULL)) return;
    char byte = 0;
    CHECK_INT(revdial_write(st, &byte, 1), 1);
    CHECK_INT(revdial_read(st, &byte, 1), REVDIAL_ERESET);  // and not EOF
    CHECK_INT(revdial_stream_error(st, &reset), REVDIAL_ERESET);
    revdial_close(st);
}

SIDES_TEST(3, what_no_peer_has_is_no_backend_and_what_one_refuses_is_refused)
{
    revdial_err err = {0};
    CHECK(revdial_dial(s[0].w.proxy, "cam-9", NULL, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_ENOBACKEND);
    CHECK_INT(asked(s, 3), 2);
    CHECK(world_open_agent(&s[1].w, 0));
    for (int i = 0; i < 3; i++) {  // whichever is asked last
        CHECK(world_dial(&s[0].w, "refuse-code", 42, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_EREFUSED);
        CHECK_INT(err.reset, 42);
        CHECK(world_dial(&s[0].w, "refuse-code", REVDIAL_RESET_UNREACHABLE, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_EUNREACH);
        CHECK_INT(err.reset, REVDIAL_RESET_UNREACHABLE);
        CHECK(world_dial(&s[0].w, "refuse-code", REVDIAL_RESET_FORBIDDEN, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_EDENIED);
    }
    revdial_dial_opts brief = {.timeout_ms = 200};
    revdial_kv meta = {"do", "silent"};
    brief.meta = &meta;
    brief.meta_count = 1;
    CHECK(revdial_dial(s[0].w.proxy, "cam-1", &brief, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_ETIMEDOUT);
}

// Three in a ring, each of which asks and is asked by the others.
SIDES_TEST(3, a_name_that_none_of_a_ring_has_is_asked_for_once)
{
    revdial_err err = {0};
    CHECK(answers(&s[0], 1, &s[1]) && answers(&s[2], 1, &s[1]));
    CHECK(answers(&s[0], 2, &s[2]) && answers(&s[1], 2, &s[2]));
    for (int i = 0; i < 3; i++) {
        int before = atomic_load(&s[0].asked) + asked(s, 3);
        CHECK(revdial_dial(s[i].w.proxy, "cam-9", NULL, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_ENOBACKEND);
        CHECK_INT(atomic_load(&s[0].asked) + asked(s, 3), before + 2);
    }
    revdial_dial_opts here = {.flags = REVDIAL_DIAL_HERE};
    int before = asked(s, 3);
    CHECK(revdial_dial(s[0].w.proxy, "cam-9", &here, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_ENOBACKEND);
    CHECK_INT(asked(s, 3), before);
}

SIDES_TEST(2, a_peer_is_no_backend_of_the_name_that_it_registers)
{
    revdial_err err = {0};
    CHECK_INT(revdial_proxy_wait(s[0].w.proxy, "peer", 1, 0), REVDIAL_ETIMEDOUT);
    CHECK(revdial_dial(s[0].w.proxy, "peer", NULL, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_ENOBACKEND);
    s[0].w.acfg.name = "peer";  // another identity may have it
    CHECK(world_open_agent(&s[0].w, 0));
    CHECK_INT(revdial_proxy_wait(s[0].w.proxy, "peer", 1, UTIL_WAIT_MS), 1);
    revdial_stream *st = revdial_dial(s[0].w.proxy, "peer", NULL, &err);
    CHECK(st != NULL);
    revdial_close(st);
    CHECK_INT(peers_of(&s[0]), 1);
}

SIDES_TEST(1, a_proxy_has_eight_peers_at_most)
{
    revdial_agent *a[9];
    revdial_agent_config cfg = {.url = s[0].w.url, .name = "peer", .user = "peer"};
    cfg.secret = "peer secret";
    cfg.auth_schemes = REVDIAL_AUTH_DIGEST;
    cfg.handler = be_asked;
    cfg.backoff_min_ms = 1;
    cfg.backoff_max_ms = 20;
    cfg.on_state = util_on_state;
    cfg.ud = &s[0].w;
    for (int i = 0; i < 9; i++) {
        a[i] = revdial_agent_start(&cfg, NULL);
        if (i < 8) UTIL_EVENTUALLY(peers_of(&s[0]) == (size_t)i + 1);
    }
    util_state why = {0};
    CHECK(util_log_wait(&s[0].w.states, REVDIAL_BACKOFF, 1, &why));
    CHECK_INT(why.code, REVDIAL_ELIMIT);
    CHECK_INT(peers_of(&s[0]), 8);
    for (int i = 0; i < 9; i++) revdial_agent_stop(a[i], 0);
}

SIDES_TEST(2, a_dial_that_waits_finds_a_backend_that_comes_up_at_a_peer)
{
    called c;
    revdial_kv meta = {"do", "echo"};
    revdial_dial_opts opts = {.flags = REVDIAL_DIAL_WAIT, .timeout_ms = UTIL_WAIT_MS};
    opts.meta = &meta;
    opts.meta_count = 1;
    called_init(&c, &s[0].w);
    CHECK(revdial_dial_async(s[0].w.proxy, "cam-1", &opts, on_dial, &c) > 0);
    UTIL_EVENTUALLY(asked(s, 2) >= 2);  // it has asked again
    dialling d = {.name = "cam-1", .opts = opts};
    pthread_t t = dialling_start(&d, &s[0].w);
    UTIL_EVENTUALLY(asked(s, 2) >= 4);
    CHECK(world_open_agent(&s[1].w, 0));
    pthread_join(t, NULL);
    CHECK(d.st != NULL);
    revdial_close(d.st);
    CHECK(util_gate_wait(&c.done, 1));
    CHECK(c.st != NULL);
    revdial_close(c.st);
    opts.timeout_ms = 1;
    revdial_err err = {0};
    CHECK(revdial_dial(s[0].w.proxy, "cam-9", &opts, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_ETIMEDOUT);
}

SIDES_TEST(3, a_dial_that_returns_early_finds_the_peer_that_has_the_backend)
{
    revdial_err err = {0};
    revdial_kv meta = {"do", "echo"};
    revdial_dial_opts opts = {.flags = REVDIAL_DIAL_EARLY, .meta = &meta, .meta_count = 1};
    char byte = 0;
    CHECK(world_open_agent(&s[2].w, 0));
    for (int i = 0; i < 4; i++) {  // whichever is asked first
        revdial_stream *st = revdial_dial(s[0].w.proxy, "cam-1", &opts, &err);
        if (!CHECK(st != NULL)) return;
        CHECK_INT(revdial_write(st, "x", 1), 1);
        CHECK_INT(revdial_read(st, &byte, 1), 1);
        CHECK_INT(byte, 'x');
        revdial_close(st);
    }
    CHECK_INT(atomic_load(&s[2].asked), 4);
}

// A peer that was stopped, as a machine that has vanished: it takes bytes and answers none.
SIDES_TEST(2, a_peer_that_falls_silent_delays_one_dial_and_is_not_asked_again)
{
    revdial_err err = {0};
    util_held_loop h;
    CHECK(world_open_agent(&s[1].w, 0));
    static side dead;
    if (!CHECK(side_open(&dead)) || !CHECK(answers(&dead, 0, &s[0]))) return;
    util_loop_hold(&h, dead.asked_by[0]->loop);
    for (int i = 0; i < 4; i++) {
        revdial_stream *st = world_dial(&s[0].w, "echo", 0, &err);
        CHECK(st != NULL);
        revdial_close(st);
    }
    CHECK(util_log_count(&s[0].w.sessions, REVDIAL_DOWN, NULL) == 0);
    CHECK(revdial_dial(s[0].w.proxy, "cam-9", NULL, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_ENOBACKEND);  // and not a timeout
    CHECK_INT(atomic_load(&dead.asked), 0);
    util_loop_let_go(&h);
    revdial_agent_stop(dead.asked_by[0], 0);
    dead.asked_by[0] = NULL;
    side_close(&dead);
}

TEST(without_a_group_of_peers_nobody_is_asked)
{
    static side s[1], other;
    revdial_err err = {0};
    memset(s, 0, sizeof s);
    world_init(&s->w);
    s->w.pcfg.credentials = rows;
    s->w.pcfg.credential_count = 2;
    if (CHECK(world_open_proxy(&s->w)) && CHECK(side_open(&other))) {
        CHECK(world_open_agent(&other.w, 0));
        revdial_agent_config cfg = {.url = s->w.url, .name = "peer", .user = "peer"};
        cfg.secret = "peer secret";
        cfg.auth_schemes = REVDIAL_AUTH_DIGEST;
        cfg.handler = be_asked;
        cfg.ud = &other;
        other.asked_by[0] = revdial_agent_start(&cfg, NULL);
        CHECK_INT(revdial_proxy_wait(s->w.proxy, "peer", 1, UTIL_WAIT_MS), 1);
        CHECK_INT(peers_of(s), 0);
        CHECK(world_dial(&s->w, "echo", 0, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_ENOBACKEND);
        CHECK_INT(atomic_load(&other.asked), 0);
        side_close(&other);
    }
    side_close(s);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
