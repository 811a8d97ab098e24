// Who may register at a proxy and who may not, sessions that come and go, adopted connections. The
// rows A.. are those of the table of bad registrations that need a socket.
#include "runtime_util.h"

// ------------------------------------------------------------------------------------------------
// Registering, by hand

// Bytes for a fresh connection, and what has to come of them.
typedef struct knock {
    const char *text;
    int finish;  // 1: FIN after it, 2: RST
    int status;  // expected answer, 0: none
} knock;

static void knock_at(const char *address, const knock *k)
{
    char answer[1024] = "";
    size_t len = 0;
    int fd = raw_connect(address);
    if (!CHECK(fd >= 0)) return;
    raw_say(fd, k->text);
    if (k->finish == 2) {
        raw_close_reset(fd);
        return;
    }
    if (k->finish) shutdown(fd, SHUT_WR);
    int end = raw_drain(fd, answer, sizeof answer, &len);
    int status = raw_status(answer);
    if (status != k->status)
        test_fail(__FILE__, __LINE__, "\"%.40s\": %d, not %d", k->text, status, k->status);
    if (end != 0) test_fail(__FILE__, __LINE__, "\"%.40s\": no FIN at the end", k->text);
    close(fd);
}

#define REQUEST_START "GET /revdial HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
#define REQUEST_REST(token, name) \
    "Upgrade: revdial\r\nAuthorization: Bearer " token "\r\nRevdial-Name: " name "\r\n\r\n"
#define REQUEST(token, name) REQUEST_START REQUEST_REST(token, name)

TEST(A1_to_A4_A7_what_does_not_ask_rightly_is_answered_or_dropped_and_leaves_nothing)
{
    static const knock rows[] = {
        {"", 0, 0},     // A1
        {"", 1, 0},     // A2
        {"", 2, 0},     // A2
        {"G", 0, 408},  // A3
        {"GET /revdial HTTP/1.1\r\nHost:", 0, 408},
        {REQUEST_START "Upgrade: revdial\r\n", 0, 408},
        {"GET /rev", 1, 0},  // A4
        {REQUEST_START "Upgrade: revdial\r\n", 1, 0},
        {REQUEST_START "Upgrade: revdial\r\n", 2, 0},
        {REQUEST("s3cret", "cam-1") "\0\2\0\1", 0, 101},  // all before the NUL: a good one
        {REQUEST("s3cret", "cam-1") "GET ", 0, 400},      // A7
        {REQUEST("wrong", "cam-1"), 0, 401},
        {REQUEST("s3cret", "dog-1"), 0, 403},
        {"SSH-2.0-OpenSSH\r\n", 0, 400},
    };
    static const revdial_credential who = {"s3cret", "alice", "cam-*", 0};
    world w;
    revdial_stats stats;
    world_init(&w);
    w.pcfg.credentials = &who;
    w.pcfg.common.limits.handshake_timeout_ms = 60;
    w.pcfg.common.limits.keepalive_ms = 100;
    w.pcfg.common.limits.dead_after_ms = 50;
    if (world_open_proxy(&w)) {
        int before = util_fds();
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) knock_at(w.address, &rows[i]);
        UTIL_EVENTUALLY(util_fds() == before);
        UTIL_EVENTUALLY((revdial_proxy_get_stats(w.proxy, &stats), stats.sessions == 0));
        CHECK_INT(stats.auth_failures, 2);
        CHECK_INT(util_log_count(&w.sessions, REVDIAL_UP, NULL), 1);  // the good one
        CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 1, NULL));
    }
    world_close(&w);
}

NEW_WORLD_TEST(A5_activity_does_not_extend_the_deadline_of_the_handshake)
{
    char answer[512];
    size_t len;
    w->pcfg.common.limits.handshake_timeout_ms = 60;
    REQUIRE(world_open_proxy(w));
    int fd = raw_connect(w->address);
    raw_say(fd, "GET /revdial HTTP/1.1\r\nX: ");
    while (!raw_wait(fd, POLLIN, 5)) raw_say(fd, "a");  // without an end it would be 431
    raw_drain(fd, answer, sizeof answer, &len);
    CHECK_INT(raw_status(answer), 408);
    close(fd);
}

NEW_WORLD_TEST(A6_a_request_in_segments_of_one_byte_is_answered_with_101)
{
    char buf[1024];
    REQUIRE(world_open_proxy(w));
    int fd = raw_connect(w->address);
    raw_request(buf, sizeof buf, "cam-1", "s3cret", NULL);
    for (size_t i = 0; buf[i]; i++) raw_send(fd, buf + i, 1);
    CHECK(raw_head(fd, buf, sizeof buf) > 0);
    CHECK_INT(raw_status(buf), 101);
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
    close(fd);
}

NEW_WORLD_TEST(A66_a_name_that_another_identity_holds_is_409_after_authentication_only)
{
    static const revdial_credential who[] = {{"s3cret", "alice", "*", 0}, {"other", "bob", "*", 0}};
    static const knock rows[] = {{REQUEST("other", "cam-1"), 0, 409},
                                 {REQUEST("wrong", "cam-1"), 0, 401}};
    w->pcfg.credentials = who;
    w->pcfg.credential_count = 2;
    REQUIRE(world_open(w));
    knock_at(w->address, &rows[0]);
    knock_at(w->address, &rows[1]);
    revdial_stream *st = world_dial(w, "echo", 0, NULL);  // who held it was not disturbed
    CHECK(st != NULL);
    revdial_close(st);
    CHECK_INT(util_log_count(&w->sessions, 0, NULL), 1);
}

TEST(A67_a_full_proxy_answers_503_with_Retry_After_and_only_to_those_it_knows)
{
    static const knock wrong = {REQUEST("wrong", "cam-9"), 0, 401};
    world w;
    char buf[1024];
    size_t len;
    for (int per_name = 0; per_name < 2; per_name++) {
        world_init(&w);
        if (per_name)
            w.pcfg.max_sessions_per_name = 1;
        else
            w.pcfg.max_sessions = 1;
        w.acfg.instance = "one";
        if (world_open(&w)) {
            int fd = raw_connect(w.address);
            raw_request(buf, sizeof buf, "cam-1", "s3cret", "Revdial-Instance: two\r\n");
            raw_say(fd, buf);
            raw_drain(fd, buf, sizeof buf, &len);
            CHECK_INT(raw_status(buf), 503);
            CHECK(strstr(buf, "Retry-After: ") != NULL);
            close(fd);
            knock_at(w.address, &wrong);
            fd = raw_backend(w.address, "cam-1", "Revdial-Instance: one\r\n");  // its own place
            CHECK(fd >= 0);
            close(fd);
        }
        world_close(&w);
    }
}

NEW_WORLD_TEST(limits_can_be_replaced_while_sessions_run)
{
    w->pcfg.max_sessions = 1;
    if (!world_open(w)) return;
    CHECK_INT(raw_backend(w->address, "cam-2", ""), -1);
    revdial_proxy_replace_limits(w->proxy, 3, 1, 0);
    int fd = raw_backend(w->address, "cam-2", "");
    CHECK(fd >= 0);
    CHECK_INT(raw_backend(w->address, "cam-2", "Revdial-Instance: two\r\n"), -1);
    revdial_proxy_replace_limits(w->proxy, 1, 1, 0);  // those that are up stay
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    CHECK(st != NULL);
    revdial_close(st);
    close(fd);
}

// Counts connections that have come to their end.
static void on_log(void *ud, int level, const char *event, const char *msg)
{
    (void)level;
    (void)msg;
    if (strcmp(event, "session.down") == 0 || strcmp(event, "session.refused") == 0)
        util_gate_add(ud, 1);
}

TEST(A70_to_A72_a_peer_that_goes_away_around_the_101_leaves_pairs_of_callbacks_and_a_free_name)
{
    world w;
    util_gate over = UTIL_GATE;
    char buf[1024], junk[1024];
    size_t len;
    revdial_stats stats;
    world_init(&w);
    w.pcfg.common.log = on_log;
    w.pcfg.common.log_ud = &over;
    if (world_open_proxy(&w)) {
        int before = util_fds();
        raw_request(buf, sizeof buf, "cam-1", "s3cret", NULL);
        for (int i = 0; i < 20; i++) {
            int fd = raw_connect(w.address);
            raw_say(fd, buf);
            if (i % 2) {
                raw_close_reset(fd);  // A72
            } else {
                shutdown(fd, SHUT_WR);  // A70
                raw_drain(fd, junk, sizeof junk, &len);
                close(fd);
            }
        }
        CHECK(util_gate_wait(&over, 20));
        UTIL_EVENTUALLY(util_fds() == before);
        revdial_proxy_get_stats(w.proxy, &stats);
        CHECK_INT(stats.sessions, 0);
        UTIL_EVENTUALLY(util_log_count(&w.sessions, REVDIAL_UP, NULL) ==
                        util_log_count(&w.sessions, REVDIAL_DOWN, NULL));
        CHECK_INT(revdial_proxy_list(w.proxy, NULL, NULL, 0), 0);
    }
    world_close(&w);
}

// The identity is the token, so that each of many is somebody else.
static int auth_by_token(void *ud, const revdial_auth_req *req, char *identity, size_t size)
{
    (void)ud;
    snprintf(identity, size, "%s", req->secret);
    return strncmp(req->secret, "id-", 3) == 0 ? 0 : REVDIAL_EAUTH;
}

NEW_WORLD_TEST(A73_of_100_parallel_registrations_of_one_name_by_different_identities_one_gets_it)
{
    int fds[100], got[600] = {0};
    char buf[1024], token[16];
    w->pcfg.credentials = NULL;
    w->pcfg.credential_count = 0;
    w->pcfg.auth = auth_by_token;
    w->pcfg.common.io_threads = 2;
    REQUIRE(world_open_proxy(w));
    for (int i = 0; i < 100; i++) {
        fds[i] = raw_connect(w->address);
        snprintf(token, sizeof token, "id-%d", i);
        raw_request(buf, sizeof buf, "cam-1", token, NULL);
        raw_say(fds[i], buf);
    }
    for (int i = 0; i < 100; i++) {
        raw_head(fds[i], buf, sizeof buf);
        got[raw_status(buf) % 600]++;
    }
    CHECK_INT(got[101], 1);
    CHECK_INT(got[409], 99);
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
    for (int i = 0; i < 100; i++) close(fds[i]);
}

NEW_WORLD_TEST(of_100_parallel_registrations_of_one_instance_one_is_left)
{
    int fds[100], ended = 0;
    char buf[1024];
    w->pcfg.common.io_threads = 2;
    REQUIRE(world_open_proxy(w));
    raw_request(buf, sizeof buf, "cam-1", "s3cret", "Revdial-Instance: one\r\n");
    for (int i = 0; i < 100; i++) {
        fds[i] = raw_connect(w->address);
        raw_say(fds[i], buf);
    }
    for (int i = 0; i < 100; i++) raw_head(fds[i], buf, sizeof buf);
    UTIL_EVENTUALLY(util_log_count(&w->sessions, REVDIAL_DOWN, NULL) ==
                    util_log_count(&w->sessions, REVDIAL_UP, NULL) - 1);
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
    for (int i = 0; i < 100; i++) {
        ssize_t n = 1;
        while (n > 0 && raw_wait(fds[i], POLLIN, 0)) n = recv(fds[i], buf, sizeof buf, 0);
        ended += n <= 0;
    }
    CHECK_INT(ended, 99);
    for (int i = 0; i < 100; i++) close(fds[i]);
}

typedef struct slow_auth {
    util_gate entered, open;
    revdial_proxy *proxy;
    int listed, waited;
} slow_auth;

static int auth_that_blocks(void *ud, const revdial_auth_req *req, char *identity, size_t size)
{
    slow_auth *a = ud;
    snprintf(identity, size, "alice");
    if (strcmp(req->name, "slow") == 0) {
        util_gate_add(&a->entered, 1);
        util_gate_wait(&a->open, 1);
    }
    if (strcmp(req->name, "denied") == 0) return REVDIAL_EDENIED;
    return strcmp(req->secret, "s3cret") == 0 ? 0 : REVDIAL_EAUTH;
}

TEST(A74_a_hook_that_blocks_holds_up_nobody_else_and_its_peer_only_until_the_deadline)
{
    static const knock denied = {REQUEST("s3cret", "denied"), 0, 403};
    static const knock wrong = {REQUEST("wrong", "cam-1"), 0, 401};
    world w;
    slow_auth a;
    char buf[1024];
    size_t len;
    world_init(&w);
    memset(&a, 0, sizeof a);
    util_gate_init(&a.entered);
    util_gate_init(&a.open);
    w.pcfg.credentials = NULL;
    w.pcfg.credential_count = 0;
    w.pcfg.auth = auth_that_blocks;
    w.pcfg.auth_ud = &a;
    w.pcfg.common.limits.handshake_timeout_ms = 300;
    if (world_open_proxy(&w)) {
        int fd = raw_connect(w.address);
        raw_request(buf, sizeof buf, "slow", "s3cret", NULL);
        raw_say(fd, buf);
        CHECK(util_gate_wait(&a.entered, 1));
        CHECK(world_open_agent(&w, 0));  // others come in meanwhile
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        CHECK(st != NULL);
        revdial_close(st);
        knock_at(w.address, &denied);
        knock_at(w.address, &wrong);
        raw_drain(fd, buf, sizeof buf, &len);
        CHECK_INT(raw_status(buf), 408);
        close(fd);
        util_gate_add(&a.open, 1);  // a verdict that nobody waits for
        CHECK_INT(revdial_proxy_wait(w.proxy, "slow", 1, 50), REVDIAL_ETIMEDOUT);
    }
    util_gate_add(&a.open, 1);
    world_close(&w);
}

static int auth_that_calls(void *ud, const revdial_auth_req *req, char *identity, size_t size)
{
    slow_auth *a = ud;
    revdial_session *s[4];
    revdial_stats stats;
    util_gate_wait(&a->open, 1);
    a->listed = (int)revdial_proxy_list(a->proxy, NULL, s, 4);
    for (int i = 0; i < a->listed && i < 4; i++) revdial_session_unref(s[i]);
    revdial_proxy_get_stats(a->proxy, &stats);
    a->waited = revdial_proxy_wait(a->proxy, "nobody", 1, 1);
    revdial_err err;
    if (revdial_dial(a->proxy, "nobody", NULL, &err) || err.code != REVDIAL_ENOBACKEND) return -1;
    snprintf(identity, size, "%s", req->name);
    return 0;
}

TEST(A75_a_hook_may_call_the_proxy)
{
    world w;
    slow_auth a;
    world_init(&w);
    memset(&a, 0, sizeof a);
    util_gate_init(&a.open);
    w.pcfg.credentials = NULL;
    w.pcfg.credential_count = 0;
    w.pcfg.auth = auth_that_calls;
    w.pcfg.auth_ud = &a;
    if (world_open_proxy(&w)) {
        a.proxy = w.proxy;
        util_gate_add(&a.open, 1);
        CHECK(world_open_agent(&w, 0));
        CHECK_INT(a.listed, 0);
        CHECK_INT(a.waited, REVDIAL_ETIMEDOUT);
        revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS);
        revdial_session *s;
        if (CHECK_INT(revdial_proxy_list(w.proxy, "cam-*", &s, 1), 1)) {
            revdial_session_info info;
            revdial_session_get_info(s, &info);
            CHECK_STR(info.identity, "cam-1");
            revdial_session_unref(s);
        }
    }
    world_close(&w);
}

NEW_WORLD_TEST(A76_a_forwarded_address_is_not_believed)
{
    revdial_session *s;
    REQUIRE(world_open_proxy(w));
    int fd = raw_backend(w->address, "cam-1",
                         "X-Forwarded-For: 198.51.100.7\r\nForwarded: for=198.51.100.7\r\n");
    revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS);
    if (CHECK_INT(revdial_proxy_list(w->proxy, NULL, &s, 1), 1)) {
        revdial_session_info info;
        revdial_session_get_info(s, &info);
        CHECK(strncmp(info.peer, "127.0.0.1:", 10) == 0);
        revdial_session_unref(s);
    }
    close(fd);
}

NEW_WORLD_TEST(a_credential_registers_the_names_it_lists_and_no_other)
{
    static const revdial_credential who[] = {{"t1", "alice", "cam-*,door", 0},
                                             {"t2", "bob", NULL, 0},
                                             {"t3", NULL, "only", 0},
                                             {"sha256:"
                                              "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e1"
                                              "61936f031589",
                                              "carol", "*", 0}};  // of "abcd"
    static const knock rows[] = {
        {REQUEST("t1", "cam-7"), 0, 101}, {REQUEST("t1", "door"), 0, 101},
        {REQUEST("t1", "doors"), 0, 403}, {REQUEST("t1", "cam"), 0, 403},
        {REQUEST("t2", "cam-8"), 0, 403}, {REQUEST("t3", "only"), 0, 101},
        {REQUEST("t3", "cam-9"), 0, 403}, {REQUEST("t4", "cam-9"), 0, 401},
        {REQUEST("abcd", "x"), 0, 101},   {REQUEST("abc", "x"), 0, 401},
        {REQUEST("t1", "Cam-7"), 0, 400}, {REQUEST("t1", "cam-7."), 0, 400},
    };
    revdial_stats stats;
    w->pcfg.credentials = who;
    w->pcfg.credential_count = 4;
    w->pcfg.common.limits.keepalive_ms = 100;
    w->pcfg.common.limits.dead_after_ms = 40;
    REQUIRE(world_open_proxy(w));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) knock_at(w->address, &rows[i]);
    revdial_proxy_get_stats(w->proxy, &stats);
    CHECK_INT(stats.auth_failures, 6);
    CHECK_INT(stats.handshakes_refused, 6);
    CHECK_INT(stats.sessions_opened, 4);
}

TEST(with_neither_table_nor_hook_everybody_is_refused)
{
    static const knock row = {REQUEST("s3cret", "cam-1"), 0, 401};
    world w;
    world_init(&w);
    w.pcfg.credentials = NULL;
    w.pcfg.credential_count = 0;
    if (world_open_proxy(&w)) knock_at(w.address, &row);
    world_close(&w);
}

NEW_WORLD_TEST(beyond_max_pending_the_oldest_connection_gives_way_to_the_newest)
{
    char buf[64];
    size_t len;
    w->pcfg.max_pending = 3;
    REQUIRE(world_open_proxy(w));
    int fds[4];
    for (int i = 0; i < 3; i++) {
        fds[i] = raw_connect(w->address);
        raw_say(fds[i], "GET ");
    }
    fds[3] = raw_backend(w->address, "cam-1", NULL);
    CHECK(fds[3] >= 0);
    raw_drain(fds[0], buf, sizeof buf, &len);  // closed without a word
    CHECK_INT(len, 0);
    for (int i = 1; i < 3; i++) {
        raw_say(fds[i], "/x HTTP/1.1\r\nHost: h\r\n\r\n");
        CHECK(raw_wait(fds[i], POLLIN, UTIL_WAIT_MS) && raw_read(fds[i], buf, 12) == 12);
        CHECK(memcmp(buf, "HTTP/1.1 404", 12) == 0);
    }
    for (int i = 0; i < 4; i++) close(fds[i]);
}

// ------------------------------------------------------------------------------------------------
// Sessions that come and go

NEW_WORLD_TEST(the_same_instance_replaces_its_old_session_and_another_joins_the_pool)
{
    revdial_session *s[4];
    revdial_session_info info;
    REQUIRE(world_open_proxy(w));
    int old = raw_backend(w->address, "cam-1", "Revdial-Instance: one\r\n");
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
    util_state up = {0}, down = {0};
    CHECK(util_log_wait(&w->sessions, REVDIAL_UP, 1, &up));
    int fresh = raw_backend(w->address, "cam-1", "Revdial-Instance: one\r\n");
    CHECK(old >= 0 && fresh >= 0);
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, &down));
    CHECK(down.id == up.id);
    char buf[64];
    size_t len;
    CHECK_INT(raw_drain(old, buf, sizeof buf, &len), 0);
    CHECK_INT(revdial_proxy_list(w->proxy, NULL, s, 4), 1);
    revdial_session_get_info(s[0], &info);
    CHECK(info.id != up.id);
    revdial_session_unref(s[0]);
    int other = raw_backend(w->address, "cam-1", "Revdial-Instance: two\r\n");
    CHECK(other >= 0);
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 2, UTIL_WAIT_MS), 2);
    int nameless = raw_backend(w->address, "cam-1", NULL);  // no instance: nothing to replace
    CHECK(nameless >= 0);
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 3, UTIL_WAIT_MS), 3);
    close(old);
    close(fresh);
    close(other);
    close(nameless);
}

NEW_WORLD_TEST(a_replaced_session_is_gone_before_the_new_one_can_be_dialled)
{
    REQUIRE(world_open_proxy(w));
    int fds[20];
    for (int i = 0; i < 20; i++) {
        fds[i] = raw_backend(w->address, "cam-1", "Revdial-Instance: one\r\n");
        CHECK(fds[i] >= 0);
        CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
        CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 2, 0), REVDIAL_ETIMEDOUT);
    }
    for (int i = 0; i < 20; i++) close(fds[i]);
}

WORLD_TEST(on_session_tells_UP_then_DOWN_with_a_reason_unless_we_closed_it)
{
    util_state e = {0};
    CHECK_INT(util_log_count(&w->sessions, REVDIAL_UP, NULL), 1);
    int fd = raw_backend(w->address, "raw", NULL);
    CHECK(util_log_wait(&w->sessions, REVDIAL_UP, 2, &e));
    uint64_t id = e.id;
    raw_close_reset(fd);
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, &e));
    CHECK(e.id == id);
    CHECK_INT(e.code, REVDIAL_ELOST);
    CHECK(e.msg[0] != '\0');
    fd = raw_backend(w->address, "raw", NULL);
    CHECK(util_log_wait(&w->sessions, REVDIAL_UP, 3, &e));
    raw_frame_send(fd, RAW_DATA, 0, 2, 4);  // for a stream that is not there: garbage follows
    raw_say(fd, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff");
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 2, &e));
    CHECK_INT(e.code, REVDIAL_EPROTO);
    close(fd);
    revdial_session *s;
    CHECK_INT(revdial_proxy_list(w->proxy, "cam-1", &s, 1), 1);
    revdial_session_kill(s);
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 3, &e));
    CHECK_INT(e.code, 0);
    revdial_session_unref(s);
}

static void on_session_that_kills(void *ud, revdial_session *s, int state, const revdial_err *why)
{
    util_on_session(ud, s, state, why);
    if (state == REVDIAL_UP) revdial_session_kill(s);
}

NEW_WORLD_TEST(callbacks_may_kill_the_session_they_are_told_of)
{
    char buf[64];
    size_t len;
    w->pcfg.on_session = on_session_that_kills;
    REQUIRE(world_open_proxy(w));
    int fd = raw_backend(w->address, "cam-1", NULL);
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, NULL));
    CHECK_INT(raw_drain(fd, buf, sizeof buf, &len), 0);
    close(fd);
    CHECK_INT(revdial_proxy_list(w->proxy, NULL, NULL, 0), 0);
}

NEW_WORLD_TEST(a_session_can_be_dialled_from_either_end_if_the_other_serves)
{
    char buf[4];
    revdial_err err;
    w->pcfg.on_stream = util_handler;
    REQUIRE(world_open(w));
    revdial_session *s[2] = {revdial_agent_wait(w->agents[0], UTIL_WAIT_MS, NULL), NULL};
    CHECK_INT(revdial_proxy_list(w->proxy, "cam-1", &s[1], 1), 1);
    for (int i = 0; i < 2; i++) {
        revdial_stream *st = revdial_session_dial(s[i], NULL, &err);
        if (CHECK(st != NULL)) {
            CHECK_INT(revdial_write(st, "ping", 4), 4);
            CHECK_INT(util_read_all(st, buf, 4), 4);
            revdial_shutdown(st, REVDIAL_WR);
            CHECK_INT(revdial_read(st, buf, 1), 0);
            revdial_close(st);
        }
        revdial_session_unref(s[i]);
    }
}

WORLD_TEST(a_proxy_without_on_stream_refuses_the_backends_streams_and_the_session_lives)
{
    revdial_err err;
    revdial_session *s = revdial_agent_wait(w->agents[0], UTIL_WAIT_MS, NULL);
    revdial_dial_opts opts = {.timeout_ms = 2000};
    CHECK(revdial_session_dial(s, &opts, &err) == NULL);
    CHECK(err.code == REVDIAL_EREFUSED || err.code == REVDIAL_ELIMIT);
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    CHECK(st != NULL);
    revdial_close(st);
    revdial_session_unref(s);
}

// ------------------------------------------------------------------------------------------------
// Adopted connections

static int adopt_pair(world *w, int fds[2], const revdial_attach_opts *how)
{
    if (!raw_pair(fds)) abort();
    return revdial_proxy_attach(w->proxy, fds[1], how, NULL);
}

NEW_WORLD_TEST(a_proxy_without_listeners_adopts_connections_with_what_was_read_from_them)
{
    char buf[1024];
    int fds[2];
    w->pcfg.listen = NULL;
    REQUIRE(world_open_proxy(w));
    CHECK_INT(revdial_proxy_address(w->proxy, 0, buf, sizeof buf), REVDIAL_EINVAL);
    raw_request(buf, sizeof buf, "cam-1", "s3cret", NULL);
    for (size_t cut = 0; cut <= strlen(buf); cut += 50) {  // in early, and still to come
        revdial_attach_opts how = {.early = buf, .early_len = cut};
        char head[1024];
        CHECK_INT(adopt_pair(w, fds, &how), 0);
        raw_say(fds[0], buf + cut);
        CHECK(raw_head(fds[0], head, sizeof head) > 0);
        CHECK_INT(raw_status(head), 101);
        close(fds[0]);
    }
    CHECK_INT(adopt_pair(w, fds, NULL), 0);
    raw_say(fds[0], buf);
    CHECK(raw_head(fds[0], buf, sizeof buf) > 0);
    CHECK_INT(raw_status(buf), 101);
    close(fds[0]);
}

NEW_WORLD_TEST(an_upgraded_connection_is_a_session_at_once_and_its_early_bytes_are_frames)
{
    static const uint8_t ping[12] = {0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 42};
    int fds[2];
    raw_frame f = {0};
    revdial_session *s;
    w->pcfg.listen = NULL;
    REQUIRE(world_open_proxy(w));
    revdial_attach_opts how = {ping, sizeof ping, 1, "cam-9", "i9", "mallory", NULL};
    CHECK_INT(adopt_pair(w, fds, &how), 0);
    CHECK(raw_frame_await(fds[0], RAW_PING, &f));
    CHECK_INT(f.len, 42);
    CHECK_INT(f.flags, RAW_ACK);
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-9", 1, UTIL_WAIT_MS), 1);
    if (CHECK_INT(revdial_proxy_list(w->proxy, NULL, &s, 1), 1)) {
        revdial_session_info info;
        revdial_session_get_info(s, &info);
        CHECK_STR(info.name, "cam-9");
        CHECK_STR(info.instance, "i9");
        CHECK_STR(info.identity, "mallory");
        revdial_session_unref(s);
    }
    revdial_stream *st = revdial_dial(w->proxy, "cam-9", NULL, NULL);
    CHECK(st != NULL && raw_frame_await(fds[0], RAW_WINDOW, &f));
    CHECK_INT(f.flags, RAW_SYN);
    revdial_close(st);
    // Another identity does not get the name: the connection is closed.
    int more[2];
    char buf[64];
    size_t len;
    how.identity = "eve";
    CHECK_INT(adopt_pair(w, more, &how), 0);
    raw_drain(more[0], buf, sizeof buf, &len);
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-9", 1, 0), 1);
    close(more[0]);
    close(fds[0]);
}

// Waits for a line that tells of a connection that was refused, and keeps its text.
typedef struct refusal {
    util_gate told;
    char msg[1024];
} refusal;

static void on_refusal(void *ud, int level, const char *event, const char *msg)
{
    refusal *r = ud;
    if (strcmp(event, "session.refused") != 0 || level != REVDIAL_LOG_WARN) return;
    snprintf(r->msg, sizeof r->msg, "%s", msg);
    util_gate_add(&r->told, 1);
}

NEW_WORLD_TEST(an_adopted_connection_whose_name_is_taken_is_logged_and_counted)
{
    static const revdial_attach_opts alice = {.upgraded = 1, .name = "cam-1", .identity = "alice"};
    static const revdial_attach_opts eve = {.upgraded = 1, .name = "cam-1", .identity = "eve"};
    refusal r = {.told = UTIL_GATE};
    revdial_stats stats;
    int first[2], second[2];
    w->pcfg.common.log = on_refusal;
    w->pcfg.common.log_ud = &r;
    REQUIRE(world_open_proxy(w));
    CHECK_INT(adopt_pair(w, first, &alice), 0);
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
    CHECK_INT(adopt_pair(w, second, &eve), 0);
    if (CHECK(util_gate_wait(&r.told, 1))) {
        CHECK(strstr(r.msg, "name=cam-1") != NULL);
        CHECK(strstr(r.msg, "another identity holds this name") != NULL);
    }
    UTIL_EVENTUALLY((revdial_proxy_get_stats(w->proxy, &stats), stats.refused_409 == 1));
    CHECK_INT(stats.handshakes_refused, 1);
    close(first[0]);
    close(second[0]);
}

NEW_WORLD_TEST(an_adoption_that_is_refused_has_closed_the_descriptor)
{
    int fds[2], before;
    REQUIRE(world_open_proxy(w));
    static const char *const bad[] = {NULL, "", "UPPER", "a/b"};
    before = util_fds();
    for (int i = 0; i < 4; i++) {
        revdial_attach_opts how = {.upgraded = 1, .name = bad[i]};
        CHECK_INT(adopt_pair(w, fds, &how), REVDIAL_EINVAL);
        close(fds[0]);
    }
    char identity[129] = "";
    memset(identity, 'x', 128);
    CHECK_INT(adopt_pair(w, fds,
                         &(revdial_attach_opts){
                             .upgraded = 1, .name = "cam-1", .identity = identity}),
              REVDIAL_EINVAL);
    close(fds[0]);
    CHECK_INT(util_fds(), before);
    revdial_proxy_drain(w->proxy, 0);
    CHECK_INT(adopt_pair(w, fds, NULL), REVDIAL_ECLOSED);
    close(fds[0]);
    revdial_attach_opts how = {.upgraded = 1, .name = "cam-1"};
    CHECK_INT(revdial_proxy_attach(w->proxy, -1, &how, NULL), REVDIAL_EINVAL);  // at any time
}

// Memory, except for the next connection of a backend on its way to its loop.
static void *arrival_alloc(void *ud, void *ptr, size_t old_size, size_t size)
{
    (void)old_size;
    if (!ptr && size == sizeof(rvd_proxy_arrival) && atomic_exchange((atomic_int *)ud, 0))
        return NULL;
    if (size) return realloc(ptr, size);
    free(ptr);
    return NULL;
}

static atomic_int refusals_logged;

static void count_refusals(void *ud, int level, const char *event, const char *msg)
{
    (void)ud;
    (void)msg;
    if (level == REVDIAL_LOG_WARN && strcmp(event, "session.refused") == 0)
        atomic_fetch_add(&refusals_logged, 1);
}

NEW_WORLD_TEST(a_connection_for_which_there_is_no_memory_is_closed_logged_and_counted)
{
    atomic_int fails = 1;
    revdial_stats stats;
    char byte;
    w->pcfg.common.alloc = arrival_alloc;
    w->pcfg.common.alloc_ud = &fails;
    w->pcfg.common.log = count_refusals;
    REQUIRE(world_open_proxy(w));
    int fd = raw_connect(w->address);
    CHECK_INT(raw_read(fd, &byte, 1), 0);
    UTIL_EVENTUALLY(pending_of(w->proxy) == 0);
    CHECK_INT(atomic_load(&refusals_logged), 1);
    revdial_proxy_get_stats(w->proxy, &stats);
    CHECK_INT(stats.handshakes_refused, 1);
    CHECK_INT(stats.refused_503, 1);
    close(fd);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
