// What an agent makes of a proxy's answers, how it comes back, and how it stops. The rows R.. are
// those of the table of bad answers that need a socket.
#include "runtime_util.h"

// ------------------------------------------------------------------------------------------------
// A proxy played by the test

typedef struct stage {
    world w;
    int listener, port;
    char url[64], head[2048];
} stage;

static void stage_open(stage *s)
{
    world_init(&s->w);
    s->port = raw_quiet_port();
    s->listener = raw_listen(8, &s->port);
    snprintf(s->url, sizeof s->url, "http://127.0.0.1:%d", s->port);
    s->w.acfg.url = s->url;
}

static int stage_agent(stage *s)
{
    revdial_err err = {0};
    s->w.agents[0] = revdial_agent_start(&s->w.acfg, &err);
    return s->w.agents[0] ? 1 : test_fail(__FILE__, __LINE__, "no agent: %s", err.msg);
}

// The next attempt: its descriptor, its request in s->head.
static int stage_accept(stage *s)
{
    int fd = raw_proxy_accept(s->listener, s->head, sizeof s->head);
    CHECK(fd >= 0);
    return fd;
}

static void stage_close(stage *s)
{
    world_close(&s->w);
    close(s->listener);
}

// Answers one attempt and closes.
static void stage_answer(stage *s, const char *answer)
{
    int fd = stage_accept(s);
    raw_say(fd, answer);
    shutdown(fd, SHUT_WR);
    char buf[64];
    size_t len;
    raw_drain(fd, buf, sizeof buf, &len);
    close(fd);
}

TEST(R1_R2_frames_that_come_with_the_101_are_not_lost_however_it_is_cut)
{
    static const char ping[] = "\0\2\0\1\0\0\0\0\0\0\0\x2A";
    char answer[sizeof RAW_101 + 12];
    size_t len = sizeof RAW_101 - 1 + 12;
    raw_frame f = {0};
    stage s;
    memcpy(answer, RAW_101, sizeof RAW_101 - 1);
    memcpy(answer + sizeof RAW_101 - 1, ping, 12);
    stage_open(&s);
    if (stage_agent(&s)) {
        for (size_t cut = 0; cut < len; cut += 7) {
            int fd = stage_accept(&s);
            raw_send(fd, answer, cut);
            sched_yield();
            raw_send(fd, answer + cut, len - cut);
            CHECK(raw_frame_await(fd, RAW_PING, &f));
            while (f.flags != RAW_ACK && raw_frame_await(fd, RAW_PING, &f)) {
            }
            CHECK_INT(f.len, 42);
            raw_close_reset(fd);
        }
    }
    stage_close(&s);
}

TEST(R4_to_R9_R23_each_refusal_is_its_own_error_and_is_followed_by_another_attempt)
{
    static const struct {
        const char *answer;
        int code;
    } rows[] = {
        {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", REVDIAL_EUPGRADE},  // R4
        {"HTTP/1.1 204 No Content\r\n\r\n", REVDIAL_EUPGRADE},
        {"HTTP/1.1 401 Unauthorized\r\nRevdial-Version: 1\r\n\r\n", REVDIAL_EAUTH},  // R5
        {"HTTP/1.1 403 Forbidden\r\nRevdial-Version: 1\r\n\r\n", REVDIAL_EDENIED},
        {"HTTP/1.1 401 Unauthorized\r\n\r\n", REVDIAL_EUPGRADE},  // of a front end
        {"HTTP/1.1 401 Who\r\nWWW-Authenticate: Basic realm=\"x\"\r\n\r\n", REVDIAL_EUPGRADE},
        {"HTTP/1.1 403 Forbidden\r\n\r\n", REVDIAL_EUPGRADE},
        {"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\n\r\n", REVDIAL_EUPGRADE},  // R6
        {"HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:1/\r\n\r\n", REVDIAL_EUPGRADE},
        {"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic\r\n\r\n", REVDIAL_EUPGRADE},
        {"HTTP/1.1 404 Not Found\r\n\r\n", REVDIAL_EUPGRADE},  // R7
        {"HTTP/1.1 409 Conflict\r\n\r\n", REVDIAL_EDUPLICATE},
        {"HTTP/1.1 426 Upgrade Required\r\n\r\n", REVDIAL_EUPGRADE},
        {"HTTP/1.1 429 Slow\r\n\r\n", REVDIAL_ELIMIT},  // R8
        {"HTTP/1.1 503 Full\r\n\r\n", REVDIAL_ELIMIT},
        {"HTTP/1.1 503 Full\r\nRetry-After: -1\r\n\r\n", REVDIAL_ELIMIT},
        {"HTTP/1.1 503 Full\r\nRetry-After: soon\r\n\r\n", REVDIAL_ELIMIT},
        {"HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\n\r\n", REVDIAL_EUPGRADE},  // R9
        {"HTTP/1.1 101 Yes\r\nUpgrade: revdial\r\n\r\n", REVDIAL_EUPGRADE},     // R10
        {"HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", REVDIAL_EUPGRADE},
        {"SSH-2.0-OpenSSH_9.2\r\n\r\n", REVDIAL_EUPGRADE},
        {"", REVDIAL_ELOST},  // R17
        {"HTTP/1.1 101 Yes\r\nConn", REVDIAL_ELOST},
        {RAW_101, REVDIAL_ELOST},
        {RAW_101 "HTTP/1.1 200 OK\r\n\r\n", REVDIAL_EPROTO},  // R19
    };
    stage s;
    util_state e = {0};
    stage_open(&s);
    s.w.acfg.auth_fail_limit = -1;
    if (stage_agent(&s)) {
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            stage_answer(&s, rows[i].answer);
            CHECK(strncmp(s.head, "GET /revdial HTTP/1.1\r\n", 23) == 0);
            if (!CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, (int)i + 1, &e))) break;
            if (e.code != rows[i].code || !e.msg[0])
                test_fail(__FILE__, __LINE__, "\"%.30s\": %d %s", rows[i].answer, e.code, e.msg);
        }
    }
    stage_close(&s);
}

// The last line of that event.
typedef struct logged {
    pthread_mutex_t lock;
    char text[600];  // guarded by lock
} logged;

static void on_retry(void *ud, int level, const char *event, const char *msg)
{
    logged *l = ud;
    (void)level;
    if (strcmp(event, "link.retry") != 0) return;
    pthread_mutex_lock(&l->lock);
    snprintf(l->text, sizeof l->text, "%s", msg);
    pthread_mutex_unlock(&l->lock);
}

TEST(a_server_that_speaks_TLS_or_hangs_up_is_said_to_want_https_and_when_it_is_tried_again)
{
    static const char *const answers[] = {"\x15\x03\x01\r\n\r\n", "\x16\x03\x01\r\n\r\n", ""};
    logged l = {.lock = PTHREAD_MUTEX_INITIALIZER};
    stage s;
    util_state e = {0};
    char again[40];
    stage_open(&s);
    s.w.acfg.common.log = on_retry;
    s.w.acfg.common.log_ud = &l;
    if (stage_agent(&s)) {
        for (int i = 0; i < 3; i++) {
            stage_answer(&s, answers[i]);
            if (!CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, i + 1, &e))) break;
            CHECK(strstr(e.msg, "https://") != NULL);
            snprintf(again, sizeof again, "retry_in_ms=%d ", e.retry_ms);
            pthread_mutex_lock(&l.lock);
            if (!strstr(l.text, again)) test_fail(__FILE__, __LINE__, "%s: %s", again, l.text);
            pthread_mutex_unlock(&l.lock);
        }
    }
    stage_close(&s);
}

TEST(a_front_end_that_answers_is_named_with_what_it_said)
{
    static const struct {
        const char *answer, *want;
    } rows[] = {
        {"HTTP/1.1 502 Bad Gateway\r\n\r\n", "the front end answered 502 Bad Gateway"},
        {"HTTP/1.1 504 Gateway Timeout\r\n\r\n", "the front end answered 504 Gateway Timeout"},
        {"HTTP/1.1 200 OK\r\n\r\n", "the front end answered 200 OK"},
        {"HTTP/1.1 404 Not Found\r\n\r\n", "the front end answered 404 Not Found"},
        {"HTTP/1.1 403 Forbidden\r\n\r\n", "the front end answered 403 Forbidden"},
        {"HTTP/1.1 599 \r\n\r\n", "the front end answered 599"},
        {"HTTP/1.1 301 Moved Permanently\r\nLocation: https://other.example/a\r\n\r\n",
         "301 Moved Permanently and points to \"https://other.example/a\""},
        {"HTTP/1.1 307 Go\r\nLocation: /a\"c\r\n\r\n", "307 Go and points to \"/a?c\""},
        {"HTTP/1.1 503 Full\r\nRevdial-Version: 1\r\n\r\n", "the proxy takes no more sessions"},
    };
    stage s;
    util_state e = {0};
    stage_open(&s);
    if (stage_agent(&s)) {
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            stage_answer(&s, rows[i].answer);
            if (!CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, (int)i + 1, &e))) break;
            if (!strstr(e.msg, rows[i].want))
                test_fail(__FILE__, __LINE__, "\"%.30s\": %s", rows[i].answer, e.msg);
        }
    }
    stage_close(&s);
}

// "two.test" is 127.0.0.1, where the stage is, and 127.0.0.2, where *second listens. Somebody else
// on this machine may have that port there; then another one is taken.
static void stage_open_two(stage *s, int *second)
{
    struct sockaddr_in at = {.sin_family = AF_INET};
    at.sin_addr.s_addr = htonl(0x7F000002);
    for (int i = 0; i < 100; i++) {
        stage_open(s);
        at.sin_port = htons((uint16_t)s->port);
        *second = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        snprintf(s->url, sizeof s->url, "http://two.test:%d", s->port);
        if (bind(*second, (struct sockaddr *)&at, sizeof at) == 0 && listen(*second, 8) == 0)
            return;
        close(*second);
        stage_close(s);
    }
    abort();
}

TEST(an_address_whose_front_end_fails_is_followed_by_the_next_one_of_the_name)
{
    static const char *const answers[] = {"HTTP/1.1 502 Bad Gateway\r\n\r\n",
                                          "HTTP/1.1 403 Forbidden\r\n\r\n",
                                          "HTTP/1.1 503 Full\r\nRetry-After: 60\r\n\r\n",
                                          "HTTP/1.1 200 OK\r\n\r\n",
                                          "\x15\x03\x01\x00\x02\x02\x28",  // a TLS alert
                                          ""};
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        stage s;
        char head[2048];
        int second;
        stage_open_two(&s, &second);
        if (stage_agent(&s)) {
            stage_answer(&s, answers[i]);
            int fd = raw_proxy_accept(second, head, sizeof head);
            CHECK(fd >= 0);
            raw_say(fd, RAW_101);
            CHECK(util_log_wait(&s.w.states, REVDIAL_UP, 1, NULL));
            CHECK_INT(util_log_count(&s.w.states, REVDIAL_BACKOFF, NULL), 0);
            close(fd);
        }
        close(second);
        stage_close(&s);
    }
}

TEST(a_verdict_of_the_proxy_is_not_asked_for_again_at_the_next_address)
{
    stage s;
    util_state e = {0};
    int second;
    stage_open_two(&s, &second);
    if (stage_agent(&s)) {
        stage_answer(&s, "HTTP/1.1 401 Who\r\nRevdial-Version: 1\r\n\r\n");
        CHECK(util_log_wait(&s.w.states, REVDIAL_STOPPED, 1, &e));
        CHECK_INT(e.code, REVDIAL_EAUTH);
        CHECK(!raw_wait(second, POLLIN, 0));
    }
    close(second);
    stage_close(&s);
}

TEST(R8_Retry_After_is_waited_for_within_reason)
{
    static const struct {
        const char *answer;
        int least, most;
    } rows[] = {
        {"HTTP/1.1 503 Full\r\nRetry-After: 1\r\n\r\n", 1000, 1250},
        {"HTTP/1.1 429 Slow\r\nRetry-After: 7\r\n\r\n", 7000, 8750},
        {"HTTP/1.1 503 Full\r\nRetry-After: 1000000000\r\n\r\n", 0, 375000},
        {"HTTP/1.1 503 Full\r\nRetry-After: 99999999999999999999\r\n\r\n", 0, 375000},
        {"HTTP/1.1 503 Full\r\nRetry-After: 0\r\n\r\n", 0, 1250},
        {"HTTP/1.1 404 No\r\nRetry-After: 7\r\n\r\n", 0, 20},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        stage s;
        util_state e = {0};
        stage_open(&s);
        if (stage_agent(&s)) {
            stage_answer(&s, rows[i].answer);
            CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, 1, &e));
            if (e.retry_ms < rows[i].least || e.retry_ms > rows[i].most)
                test_fail(__FILE__, __LINE__, "\"%s\": %d ms", rows[i].answer, e.retry_ms);
        }
        stage_close(&s);
    }
}

TEST(R8_the_next_attempt_comes_when_BACKOFF_said_and_not_before)
{
    stage s;
    util_state e = {0};
    stage_open(&s);
    util_clock_stop();
    if (stage_agent(&s)) {
        rvd_loop *loop = s.w.agents[0]->loop;
        stage_answer(&s, "HTTP/1.1 503 Full\r\nRetry-After: 100\r\n\r\n");
        CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, 1, &e));
        util_clock_advance_ms(e.retry_ms - 1);
        util_settle(loop);
        CHECK_INT(util_log_count(&s.w.states, REVDIAL_CONNECTING, NULL), 1);
        util_clock_advance_ms(2);
        util_settle(loop);
        CHECK_INT(util_log_count(&s.w.states, REVDIAL_CONNECTING, NULL), 2);
        stage_answer(&s, "HTTP/1.1 503 Full\r\n\r\n");
    }
    util_clock_run();
    stage_close(&s);
}

TEST(R8_a_proxy_that_says_when_to_come_back_does_not_make_the_backoff_grow)
{
    enum { ANSWERS = 20 };
    stage s;
    util_state e = {0};
    stage_open(&s);
    s.w.acfg.backoff_min_ms = 1;
    s.w.acfg.backoff_max_ms = 1 << ANSWERS;
    util_clock_stop();
    if (stage_agent(&s)) {
        for (int i = 1; i <= ANSWERS; i++) {
            stage_answer(&s, "HTTP/1.1 503 Full\r\nRetry-After: 5\r\n\r\n");
            CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, i, &e));
            CHECK(e.retry_ms >= 5000 && e.retry_ms <= 6250);
            util_settle(s.w.agents[0]->loop);  // its timer is set
            util_clock_advance_ms(e.retry_ms + 1);
            util_settle(s.w.agents[0]->loop);
        }
        stage_answer(&s, "HTTP/1.1 500 No\r\n\r\n");  // the first failure
        CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, ANSWERS + 1, &e));
        CHECK(e.retry_ms <= 1);
    }
    util_clock_run();
    stage_close(&s);
}

TEST(R16_a_proxy_that_says_nothing_or_drips_is_given_up_at_the_deadline)
{
    stage s;
    util_state e = {0};
    stage_open(&s);
    s.w.acfg.common.limits.handshake_timeout_ms = 50;
    if (stage_agent(&s)) {
        int fd = stage_accept(&s);
        CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, 1, &e));
        CHECK_INT(e.code, REVDIAL_ETIMEDOUT);
        close(fd);
        fd = stage_accept(&s);
        raw_say(fd, "HTTP/1.1 101 Yes\r\nX: ");
        while (!raw_wait(fd, POLLIN, 5)) raw_say(fd, "a");
        CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, 2, &e));
        CHECK_INT(e.code, REVDIAL_ETIMEDOUT);
        close(fd);
        // Attempts that timed out are no streams that were cut.
        CHECK_INT(revdial_agent_stop(s.w.agents[0], 1000), 0);
        s.w.agents[0] = NULL;
    }
    stage_close(&s);
}

TEST(R18_an_answer_that_comes_before_the_request_is_read_is_reported)
{
    stage s;
    util_state e = {0};
    stage_open(&s);
    s.w.acfg.auth_fail_limit = -1;
    if (stage_agent(&s)) {
        int fd = raw_accept(s.listener);
        raw_say(fd, "HTTP/1.1 403 Forbidden\r\nRevdial-Version: 1\r\n\r\n");
        shutdown(fd, SHUT_WR);
        CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, 1, &e));
        CHECK_INT(e.code, REVDIAL_EDENIED);
        close(fd);
    }
    stage_close(&s);
}

TEST(R23_the_body_of_a_refusal_is_not_read_to_its_end)
{
    stage s;
    util_state e = {0};
    char junk[65536];
    memset(junk, 'x', sizeof junk);
    stage_open(&s);
    if (stage_agent(&s)) {
        int fd = stage_accept(&s);
        raw_say(fd, "HTTP/1.1 404 No\r\nContent-Length: 1073741824\r\n\r\n");
        size_t sent = 0;
        while (sent < 64u << 20 && raw_send(fd, junk, sizeof junk)) sent += sizeof junk;
        CHECK(sent < 64u << 20);
        CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, 1, &e));
        CHECK_INT(e.code, REVDIAL_EUPGRADE);
        close(fd);
    }
    stage_close(&s);
}

TEST(R27_a_proxy_that_opens_even_streams_breaks_the_protocol)
{
    stage s;
    raw_frame f = {0};
    util_state e = {0};
    stage_open(&s);
    if (stage_agent(&s)) {
        int fd = stage_accept(&s);
        raw_say(fd, RAW_101);
        raw_frame_send(fd, RAW_WINDOW, RAW_SYN, 2, 0);
        CHECK(raw_frame_await(fd, RAW_GOAWAY, &f));
        CHECK_INT(f.len, 1);
        CHECK(util_log_wait(&s.w.states, REVDIAL_DOWN, 1, &e));
        CHECK_INT(e.code, REVDIAL_EPROTO);
        close(fd);
    }
    stage_close(&s);
}

// ------------------------------------------------------------------------------------------------
// Credentials

TEST(rejected_credentials_end_an_agent_that_was_never_up)
{
    static const struct {
        const char *secret, *name;
        int code;
    } rows[] = {{"wrong", "cam-1", REVDIAL_EAUTH}, {"s3cret", "dog", REVDIAL_EDENIED}};
    static const revdial_credential who = {"s3cret", "alice", "cam-*", 0};
    for (int i = 0; i < 2; i++) {
        world w;
        revdial_err err = {0};
        util_state e = {0};
        world_init(&w);
        w.pcfg.credentials = &who;
        if (world_open_proxy(&w)) {
            w.acfg.url = w.url;
            w.acfg.secret = rows[i].secret;
            w.acfg.name = rows[i].name;
            CHECK_INT(revdial_serve(&w.acfg, &err), rows[i].code);
            CHECK_INT(err.code, rows[i].code);
            CHECK(err.msg[0] != '\0');
            CHECK_INT(util_log_count(&w.states, REVDIAL_CONNECTING, NULL), 1);
            CHECK(util_log_wait(&w.states, REVDIAL_STOPPED, 1, &e));
            CHECK_INT(e.code, rows[i].code);
            w.agents[0] = revdial_agent_start(&w.acfg, &err);
            CHECK(util_log_wait(&w.states, REVDIAL_STOPPED, 2, &e));
            CHECK_INT(e.code, rows[i].code);
            CHECK(revdial_agent_wait(w.agents[0], UTIL_WAIT_MS, NULL) == NULL);
        }
        world_close(&w);
    }
}

// Whoever is on the way can ask for anything.
TEST(a_challenge_that_cannot_be_answered_does_not_end_an_agent)
{
    static const char *const challenges[] = {
        "Digest realm=\"a\tb\", qop=\"auth\", algorithm=SHA-256, nonce=\"n\"",
        "Digest realm=\"ab\", qop=\"auth\", algorithm=SHA-256, nonce=\"n\"\t", "Bearer"};
    stage s;
    util_state e = {0};
    stage_open(&s);
    s.w.acfg.user = "alice";
    s.w.acfg.secret = "no token: it has blanks";
    s.w.acfg.auth_schemes = REVDIAL_AUTH_DIGEST | REVDIAL_AUTH_BEARER;
    s.w.acfg.auth_fail_limit = -1;
    s.w.acfg.allow_cleartext = 1;
    if (stage_agent(&s)) {
        for (int i = 0; i < 3; i++) {
            char answer[200];
            snprintf(answer, sizeof answer,
                     "HTTP/1.1 401 x\r\nWWW-Authenticate: %s\r\nContent-Length: 0\r\n\r\n",
                     challenges[i]);
            stage_answer(&s, answer);
            if (i == 1) stage_answer(&s, answer);  // an agent answers this one, at once and in vain
            CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, i + 1, &e));
        }
        CHECK_INT(util_log_count(&s.w.states, REVDIAL_STOPPED, NULL), 0);
    }
    stage_close(&s);
}

TEST(auth_fail_limit_counts_rejections_in_a_row_and_BACKOFF_says_why)
{
    stage s;
    util_state e = {0};
    stage_open(&s);
    s.w.acfg.auth_fail_limit = 3;
    if (stage_agent(&s)) {
        stage_answer(&s, "HTTP/1.1 401 No\r\nRevdial-Version: 1\r\n\r\n");
        CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, 1, &e));
        CHECK_INT(e.code, REVDIAL_EAUTH);
        stage_answer(&s, "HTTP/1.1 403 No\r\nRevdial-Version: 1\r\n\r\n");
        CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, 2, &e));
        CHECK_INT(e.code, REVDIAL_EDENIED);
        stage_answer(&s, "HTTP/1.1 500 No\r\n\r\n");  // not a rejection: counted anew
        stage_answer(&s, "HTTP/1.1 401 No\r\nRevdial-Version: 1\r\n\r\n");
        stage_answer(&s, "HTTP/1.1 401 No\r\nRevdial-Version: 1\r\n\r\n");
        CHECK_INT(util_log_count(&s.w.states, REVDIAL_STOPPED, NULL), 0);
        stage_answer(&s, "HTTP/1.1 401 No\r\nRevdial-Version: 1\r\n\r\n");
        CHECK(util_log_wait(&s.w.states, REVDIAL_STOPPED, 1, &e));
        CHECK_INT(e.code, REVDIAL_EAUTH);
    }
    stage_close(&s);
}

TEST(after_the_first_success_rejections_do_not_end_an_agent)
{
    stage s;
    stage_open(&s);
    if (stage_agent(&s)) {
        stage_answer(&s, RAW_101);
        for (int i = 0; i < 3; i++)
            stage_answer(&s, "HTTP/1.1 401 No\r\nRevdial-Version: 1\r\n\r\n");
        CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, 4, NULL));
        CHECK_INT(util_log_count(&s.w.states, REVDIAL_STOPPED, NULL), 0);
    }
    stage_close(&s);
}

static atomic_uint fresh_last;

static int fresh_credential(void *ud, unsigned attempt, char *secret, size_t size)
{
    (void)ud;
    atomic_store(&fresh_last, attempt);
    if (attempt == 2) return REVDIAL_EAUTH;
    snprintf(secret, size, "token-%u", attempt);
    return 0;
}

TEST(every_attempt_gets_a_fresh_credential)
{
    stage s;
    util_state e = {0};
    stage_open(&s);
    s.w.acfg.secret = NULL;
    s.w.acfg.credential_fn = fresh_credential;
    s.w.acfg.auth_fail_limit = -1;
    if (stage_agent(&s)) {
        stage_answer(&s, "HTTP/1.1 500 No\r\n\r\n");
        CHECK(strstr(s.head, "Authorization: Bearer token-1\r\n") != NULL);
        CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, 2, &e));  // the second had none
        CHECK_INT(e.code, REVDIAL_EAUTH);
        stage_answer(&s, "HTTP/1.1 500 No\r\n\r\n");
        CHECK(strstr(s.head, "Authorization: Bearer token-3\r\n") != NULL);
    }
    stage_close(&s);
    CHECK(atomic_load(&fresh_last) >= 3);
}

TEST(a_token_is_not_sent_in_cleartext_beyond_loopback_and_nothing_is_connected)
{
    static const char *const urls[] = {"http://192.0.2.1:7000", "http://0.0.0.0:7000"};
    for (int i = 0; i < 2; i++) {
        world w;
        revdial_err err = {0};
        world_init(&w);
        w.acfg.url = urls[i];
        CHECK_INT(revdial_serve(&w.acfg, &err), REVDIAL_EINVAL);
        CHECK(strstr(err.msg, "cleartext") != NULL);
        CHECK_INT(util_log_count(&w.states, REVDIAL_BACKOFF, NULL), 0);
        CHECK_INT(util_log_count(&w.states, REVDIAL_STOPPED, NULL), 1);
    }
}

TEST(a_URL_says_whether_TLS_is_used_and_what_the_bytes_ride_in)
{
    static const struct {
        const char *url, *endpoint, *host, *path;
        int secure, carrier;
    } rows[] = {
        {"http://h", "h:80", "h", "/revdial", 0, REVDIAL_CARRIER_RAW},
        {"http://h:8080/", "h:8080", "h:8080", "/revdial", 0, REVDIAL_CARRIER_RAW},
        {"https://h/p", "h:443", "h", "/p", 1, REVDIAL_CARRIER_RAW},
        {"https://[::1]:9", "[::1]:9", "[::1]:9", "/revdial", 1, REVDIAL_CARRIER_RAW},
        {"ws://[::1]/a/b", "[::1]:80", "[::1]", "/a/b", 0, REVDIAL_CARRIER_WEBSOCKET},
        {"wss://h:80", "h:80", "h:80", "/revdial", 1, REVDIAL_CARRIER_WEBSOCKET},
        {"wss://h", "h:443", "h", "/revdial", 1, REVDIAL_CARRIER_WEBSOCKET},
        {"unix:/run/p", "unix:/run/p", "localhost", "/revdial", 0, REVDIAL_CARRIER_RAW},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        rvd_agent_link l = {0};
        CHECK(rvd_agent_url_parse(&l, rows[i].url) == NULL);
        CHECK_STR(l.endpoint, rows[i].endpoint);
        CHECK_STR(l.host, rows[i].host);
        CHECK_STR(l.path, rows[i].path);
        CHECK_INT(l.secure, rows[i].secure);
        CHECK_INT(l.carrier, rows[i].carrier);
    }
}

TEST(a_URL_that_needs_TLS_says_so_where_there_is_none)
{
    static const char *const urls[] = {"https://host:443", "wss://host/revdial"};
    for (int i = 0; i < 2; i++) {
        world w;
        revdial_err err = {0};
        world_init(&w);
        w.acfg.url = urls[i];
        CHECK(!revdial_agent_start(&w.acfg, &err));
        CHECK_INT(err.code, REVDIAL_EINVAL);
        CHECK(strstr(err.msg, "TLS") != NULL);
    }
}

TEST(U39_a_URL_is_taken_apart_exactly)
{
    static const struct {
        const char *url, *host, *endpoint, *path;
    } rows[] = {
        {"http://host", "host", "host:80", "/revdial"},
        {"http://host/", "host", "host:80", "/revdial"},
        {"http://HOST:7000/a/b?c=d", "HOST:7000", "HOST:7000", "/a/b?c=d"},
        {"http://1.2.3.4:1/%2e%00", "1.2.3.4:1", "1.2.3.4:1", "/%2e%00"},
        {"http://[::1]", "[::1]", "[::1]:80", "/revdial"},
        {"http://[::1]:65535/x", "[::1]:65535", "[::1]:65535", "/x"},
        {"http://[fe80::1%1]:7000", "[fe80::1]:7000", "[fe80::1%1]:7000", "/revdial"},
        {"unix:/run/x.sock", "localhost", "unix:/run/x.sock", "/revdial"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        rvd_agent_link *l = calloc(1, sizeof *l);
        REQUIRE(l != NULL);
        const char *problem = rvd_agent_url_parse(l, rows[i].url);
        if (problem) test_fail(__FILE__, __LINE__, "%s: %s", rows[i].url, problem);
        CHECK_STR(l->host, rows[i].host);
        CHECK_STR(l->endpoint, rows[i].endpoint);
        CHECK_STR(l->path, rows[i].path);
        free(l);
    }
}

TEST(U39_a_URL_or_field_that_makes_no_sense_is_refused_at_the_start)
{
    static const char *const urls[] = {
        "",
        "127.0.0.1:80",
        "http://",
        "http://:80",
        "http://a b:80",
        "http://u:p@host:80",
        "ws://",
        "ws:/x",
        "WS://host",
        "ws://host:",
        "wss://u@host",
        "ftp://host",
        "http://host:0",
        "http://host:65536",
        "http://[::1",
        "http://host:80/a b",
        "http://host:",
        "http://host:80x",
        "http://host:80/a\x01",
        "http://host:80/a#b",
        "http://host#b",
        "http://ho%00st",
        "HTTP://host",
        "http:/host",
        "ws:/x",
        "unix:relative",
        "HTTP//x",
        "http://ok:80,bad",
    };
    static const char *const names[] = {"A", "a/b", "-a", "a.", "a\r\nX: y", " a"};
    static const char *const secrets[] = {"a\r\nX: y", "a b\n", "\xff"};
    static const char *const allows[] = {"nohost",  "1.2.3.4", "1.2.3.4/33:80",
                                         "[::1:80", "host:0",  "host:9-1"};
    world w;
    revdial_err err;
    for (size_t i = 0; i < sizeof urls / sizeof *urls; i++) {
        world_init(&w);
        memset(&err, 0, sizeof err);
        w.acfg.url = urls[i];
        revdial_agent *a = revdial_agent_start(&w.acfg, &err);
        if (a || err.code != REVDIAL_EINVAL || !err.msg[0])
            test_fail(__FILE__, __LINE__, "\"%s\": %d %s", urls[i], err.code, err.msg);
        revdial_agent_stop(a, 0);
    }
    for (int i = 0; i < 6 + 3 + 6 + 4; i++) {
        const char *allow[2] = {NULL, NULL};
        world_init(&w);
        memset(&err, 0, sizeof err);
        w.acfg.url = "http://127.0.0.1:1";
        if (i < 6)
            w.acfg.name = names[i];
        else if (i < 9)
            w.acfg.secret = secrets[i - 6];
        else if (i < 15) {
            allow[0] = allows[i - 9];
            w.acfg.allow = allow;
        } else if (i == 15)
            w.acfg.instance = "a b";
        else if (i == 16)
            w.acfg.proxy_protocol = 3;
        else if (i == 17)
            w.acfg.default_target = "nohost";
        else
            w.acfg.connect_timeout_ms = -1;
        revdial_agent *a = revdial_agent_start(&w.acfg, &err);
        if (a || err.code != REVDIAL_EINVAL)
            test_fail(__FILE__, __LINE__, "field %d: %d %s", i, err.code, err.msg);
        revdial_agent_stop(a, 0);
    }
}

TEST(extra_headers_the_name_and_the_instance_are_in_the_request)
{
    stage s;
    revdial_kv headers[2] = {{"X-One", "1"}, {"X-Two", "zwei"}};
    char url[80];
    stage_open(&s);
    snprintf(url, sizeof url, "%s/some/path", s.url);
    s.w.acfg.url = url;
    s.w.acfg.headers = headers;
    s.w.acfg.header_count = 2;
    s.w.acfg.instance = "slot-1";
    if (stage_agent(&s)) {
        stage_answer(&s, RAW_101);
        CHECK(strncmp(s.head, "GET /some/path HTTP/1.1\r\n", 25) == 0);
        CHECK(strstr(s.head, "X-One: 1\r\n") && strstr(s.head, "X-Two: zwei\r\n"));
        CHECK(strstr(s.head, "Revdial-Name: cam-1\r\n") != NULL);
        CHECK(strstr(s.head, "Revdial-Instance: slot-1\r\n") != NULL);
        CHECK(strstr(s.head, "Revdial-Version: 1\r\n") != NULL);
    }
    stage_close(&s);
}

// ------------------------------------------------------------------------------------------------
// Coming back

static void links_are_listed(revdial_agent *a, const char *first, const char *second)
{
    revdial_link_info links[3];
    revdial_session *sessions[3];
    revdial_session_info info;
    CHECK_INT(revdial_agent_list_links(a, NULL, 0), 2);
    CHECK_INT(revdial_agent_list_links(a, links, 3), 2);
    CHECK_STR(links[0].url, first);
    CHECK_STR(links[1].url, second);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(links[i].state, REVDIAL_UP);
        CHECK_INT(links[i].attempts, 1);
        CHECK_INT(links[i].why.code, 0);
    }
    CHECK_INT(revdial_agent_list(a, NULL, 0), 2);
    if (!CHECK_INT(revdial_agent_list(a, sessions, 3), 2)) return;
    for (int i = 0; i < 2; i++) {
        revdial_session_get_info(sessions[i], &info);
        CHECK(info.id == links[0].session_id || info.id == links[1].session_id);
        revdial_session_unref(sessions[i]);
    }
}

static void link_is_lost(revdial_agent *a)
{
    revdial_link_info links[2];
    UTIL_EVENTUALLY(revdial_agent_list_links(a, links, 2) == 2 && links[1].attempts > 2);
    CHECK_INT(links[0].state, REVDIAL_UP);
    CHECK_INT(links[0].attempts, 1);
    CHECK(links[1].state == REVDIAL_BACKOFF || links[1].state == REVDIAL_CONNECTING);
    CHECK_INT(links[1].session_id, 0);
    CHECK(links[1].why.code != 0 && links[1].why.msg[0]);
    CHECK_INT(revdial_agent_list(a, NULL, 0), 1);
}

TEST(U43_an_agent_keeps_a_session_to_each_of_two_proxies_that_share_nothing)
{
    world a, b;
    char urls[300];
    revdial_stats stats;
    world_init(&a);
    world_init(&b);
    if (world_open_proxy(&a) && world_open_proxy(&b)) {
        snprintf(urls, sizeof urls, "%s,%s", a.url, b.url);
        a.acfg.url = urls;
        CHECK(world_open_agent(&a, 0));
        CHECK_INT(revdial_proxy_wait(a.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
        CHECK_INT(revdial_proxy_wait(b.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
        CHECK(util_log_wait(&a.states, REVDIAL_UP, 2, NULL));
        revdial_agent_get_stats(a.agents[0], &stats);
        CHECK_INT(stats.sessions, 2);
        links_are_listed(a.agents[0], a.url, b.url);
        revdial_proxy_stop(b.proxy);  // the other does not notice
        b.proxy = NULL;
        revdial_stream *st = world_dial(&a, "echo", 0, NULL);
        CHECK(st != NULL);
        revdial_close(st);
        link_is_lost(a.agents[0]);
    }
    world_close(&a);
    world_close(&b);
}

TEST(a_proxy_that_rejects_the_agent_is_asked_again_while_another_one_has_it)
{
    static const revdial_credential none = {.secret = "another", .names = "dog"};
    static const revdial_credential who = {.secret = "s3cret", .user = "alice", .names = "cam-*"};
    for (int is_first = 0; is_first < 2; is_first++) {
        world a, b;
        char urls[300];
        world_init(&a);
        world_init(&b);
        b.pcfg.credentials = &none;
        if (world_open_proxy(&a) && world_open_proxy(&b)) {
            const char *one = is_first ? b.url : a.url, *two = is_first ? a.url : b.url;
            snprintf(urls, sizeof urls, "%s,%s", one, two);
            a.acfg.url = urls;
            CHECK(world_open_agent(&a, 0));
            CHECK(util_log_wait(&a.states, REVDIAL_BACKOFF, 2, NULL));
            CHECK_INT(revdial_proxy_wait(a.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
            CHECK_INT(revdial_proxy_replace_credentials(b.proxy, &who, 1, 0, NULL), 0);
            CHECK_INT(revdial_proxy_wait(b.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
            CHECK_INT(util_log_count(&a.states, REVDIAL_STOPPED, NULL), 0);
        }
        world_close(&a);
        world_close(&b);
    }
}

TEST(an_agent_that_all_its_proxies_reject_ends)
{
    static const revdial_credential none = {.secret = "another", .names = "dog"};
    world a, b;
    char urls[300];
    util_state e = {0};
    world_init(&a);
    world_init(&b);
    a.pcfg.credentials = b.pcfg.credentials = &none;
    if (world_open_proxy(&a) && world_open_proxy(&b)) {
        snprintf(urls, sizeof urls, "%s,%s", a.url, b.url);
        a.acfg.url = urls;
        a.acfg.backoff_max_ms = 100000000;  // who is rejected first does not ask again
        a.agents[0] = revdial_agent_start(&a.acfg, NULL);
        CHECK(util_log_wait(&a.states, REVDIAL_STOPPED, 1, &e));
        CHECK_INT(e.code, REVDIAL_EAUTH);
    }
    world_close(&a);
    world_close(&b);
}

static void *drain_for_ever(void *arg)
{
    world *w = arg;
    CHECK_INT(revdial_agent_drain(w->agents[0], -1), REVDIAL_ETIMEDOUT);
    return NULL;
}

WORLD_TEST(a_stop_without_a_wait_ends_a_drain_that_another_thread_waits_for)
{
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    pthread_t waits;
    char byte;
    if (!CHECK(st != NULL)) return;
    waits = util_thread(drain_for_ever, w);
    CHECK(util_log_wait(&w->sessions, REVDIAL_DRAINING, 1, NULL));
    CHECK_INT(revdial_agent_stop(w->agents[0], 0), REVDIAL_ETIMEDOUT);
    pthread_join(waits, NULL);
    w->agents[0] = NULL;
    CHECK_INT(revdial_read(st, &byte, 1), REVDIAL_ELOST);
    revdial_close(st);
}

typedef struct draining {
    revdial_agent *agent;
    int drain_ms;
    util_gate done;
} draining;

static void *drain_run(void *arg)
{
    draining *d = arg;
    CHECK_INT(revdial_agent_drain(d->agent, d->drain_ms), REVDIAL_ETIMEDOUT);
    util_gate_add(&d->done, 1);
    return NULL;
}

// Threads that wait in a call at the agent.
static int callers_of(revdial_agent *a)
{
    pthread_mutex_lock(&a->own.lock);
    int count = (int)a->waiting;
    pthread_mutex_unlock(&a->own.lock);
    return count;
}

WORLD_TEST(of_two_drains_that_the_agent_sees_at_once_the_shorter_one_counts)
{
    draining d[2] = {{w->agents[0], 1, UTIL_GATE}, {w->agents[0], -1, UTIL_GATE}};
    pthread_t waits[2];
    util_held_loop held;
    revdial_stream *st = world_dial(w, "hold", 0, NULL);
    util_loop_hold(&held, w->agents[0]->loop);
    for (int i = 0; i < 2; i++) {
        waits[i] = util_thread(drain_run, &d[i]);
        UTIL_EVENTUALLY(callers_of(w->agents[0]) == i + 1);
    }
    util_loop_let_go(&held);
    CHECK(util_gate_wait(&d[0].done, 1));
    CHECK(util_gate_wait(&d[1].done, 1));
    revdial_close(st);  // ends them if nothing else has
    for (int i = 0; i < 2; i++) pthread_join(waits[i], NULL);
}

static void *wait_for_ever(void *arg)
{
    revdial_err err = {0};
    CHECK(revdial_agent_wait(arg, -1, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_ECLOSED);
    return NULL;
}

// AddressSanitizer sees a thread that uses the agent after it was freed.
NEW_WORLD_TEST(a_stop_lets_threads_that_wait_for_a_session_return_before_it_frees_the_agent)
{
    char url[64];
    pthread_t waits[4];
    snprintf(url, sizeof url, "http://127.0.0.1:%d", raw_closed_port());
    w->acfg.url = url;
    revdial_agent *a = revdial_agent_start(&w->acfg, NULL);
    REQUIRE(a != NULL);
    for (int i = 0; i < 4; i++) waits[i] = util_thread(wait_for_ever, a);
    UTIL_EVENTUALLY(callers_of(a) == 4);
    CHECK_INT(revdial_agent_stop(a, 0), 0);
    for (int i = 0; i < 4; i++) pthread_join(waits[i], NULL);
}

WORLD_TEST(an_agent_that_drains_lets_streams_end_and_is_still_there)
{
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    revdial_link_info link;
    revdial_stats stats;
    char byte;
    if (!CHECK(st != NULL)) return;
    CHECK_INT(revdial_agent_drain(w->agents[0], 1), REVDIAL_ETIMEDOUT);
    CHECK(revdial_read(st, &byte, 1) < 0);
    revdial_close(st);
    revdial_agent_get_stats(w->agents[0], &stats);
    CHECK_INT(stats.sessions, 0);
    CHECK_INT(stats.sessions_closed, 1);
    CHECK_INT(revdial_agent_list_links(w->agents[0], &link, 1), 1);
    CHECK_INT(link.state, REVDIAL_STOPPED);
    CHECK_INT(revdial_agent_drain(w->agents[0], 1), REVDIAL_ETIMEDOUT);
    CHECK_INT(revdial_agent_drain(NULL, 1), 0);
}

TEST(an_agent_can_reach_one_proxy_through_two_URLs_or_all_addresses_of_a_name)
{
    world w;
    char urls[300];
    for (int all = 0; all < 2; all++) {
        world_init(&w);
        if (all) w.pcfg.listen = "0.0.0.0:0";
        if (world_open_proxy(&w)) {
            const char *port = strrchr(w.address, ':');
            if (all)
                snprintf(urls, sizeof urls, "http://two.test%s", port);
            else
                snprintf(urls, sizeof urls, "%s,%s", w.url, w.url);
            w.acfg.url = urls;
            w.acfg.all_addresses = all;
            w.acfg.instance = "the-longest-instance-of-several-links-has-61-characters-here1";
            CHECK(world_open_agent(&w, 0));
            CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 2, UTIL_WAIT_MS), 2);
        }
        world_close(&w);
    }
}

// ---- all addresses of a name that moves ----

// The addresses that the agent has a session to, as bits. Gives the session of one of them.
static unsigned sessions_to(revdial_agent *a, int address, uint64_t *session)
{
    revdial_link_info links[64];
    size_t count = revdial_agent_list_links(a, links, 64);
    unsigned bits = 0;
    for (size_t i = 0; i < count; i++) {
        int at = strncmp(links[i].address, "127.0.0.", 8) == 0 ? atoi(links[i].address + 8) : 0;
        if (links[i].state == REVDIAL_UP) bits |= 1u << at;
        if (session && at == address) *session = links[i].session_id;
    }
    return bits;
}

// An agent at all addresses of moving.test, where these lead to one proxy.
static int open_moving(world *w, unsigned addresses)
{
    static char url[64];
    atomic_store(&util_moving, addresses);
    w->pcfg.listen = "0.0.0.0:0";
    if (!world_open_proxy(w)) return 0;
    snprintf(url, sizeof url, "http://moving.test%s", strrchr(w->address, ':'));
    w->acfg.url = url;
    w->acfg.all_addresses = 1;
    w->acfg.resolve_ms = 100;
    if (!world_open_agent(w, 0)) return 0;
    UTIL_EVENTUALLY(sessions_to(w->agents[0], 0, NULL) == addresses);
    return 1;
}

static void await_lookups(unsigned count)
{
    unsigned before = atomic_load(&util_moving_asked);
    UTIL_EVENTUALLY(atomic_load(&util_moving_asked) - before >= count);
}

static revdial_session *proxy_session(world *w, uint64_t id)
{
    revdial_session *list[64], *found = NULL;
    size_t count = revdial_proxy_list(w->proxy, NULL, list, 64);
    for (size_t i = 0; i < count; i++) {
        revdial_session_info info;
        revdial_session_get_info(list[i], &info);
        if (info.id == id)
            found = list[i];
        else
            revdial_session_unref(list[i]);
    }
    return found;
}

static int echoes(revdial_stream *st)
{
    char buf[4] = "";
    return st && revdial_write(st, "ping", 4) == 4 && util_read_all(st, buf, 4) == 4 &&
           memcmp(buf, "ping", 4) == 0;
}

NEW_WORLD_TEST(a_new_address_of_a_name_gets_a_session_and_one_that_is_gone_drains)
{
    revdial_kv meta = {"do", "echo"};
    revdial_dial_opts opts = {.meta = &meta, .meta_count = 1};
    uint64_t gone = 0;
    REQUIRE(open_moving(w, 1 << 1 | 1 << 2));
    sessions_to(w->agents[0], 1, &gone);
    revdial_session *s = proxy_session(w, gone);
    revdial_stream *st = s ? revdial_session_dial(s, &opts, NULL) : NULL;
    CHECK(echoes(st));
    atomic_store(&util_moving, 1 << 2 | 1 << 3);
    UTIL_EVENTUALLY(sessions_to(w->agents[0], 0, NULL) == (1 << 2 | 1 << 3));
    CHECK(util_log_wait(&w->sessions, REVDIAL_DRAINING, 1, NULL));
    for (int i = 0; i < 4; i++) {
        revdial_stream *other = world_dial(w, "echo", 0, NULL);
        revdial_session *of = other ? revdial_stream_session(other) : NULL;
        CHECK(echoes(other) && of != s);
        revdial_session_unref(of);
        revdial_close(other);
    }
    CHECK(echoes(st));  // it goes on
    CHECK_INT(util_log_count(&w->sessions, REVDIAL_DOWN, NULL), 0);
    revdial_close(st);
    revdial_session_unref(s);
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, NULL));
    CHECK_INT(revdial_agent_list_links(w->agents[0], NULL, 0), 2);
    atomic_store(&util_moving, 1 << 1 | 1 << 2 | 1 << 3);  // it comes back
    UTIL_EVENTUALLY(sessions_to(w->agents[0], 0, NULL) == (1 << 1 | 1 << 2 | 1 << 3));
    CHECK_INT(w->agents[0]->link_count, 3);
}

NEW_WORLD_TEST(an_answer_without_an_address_counts_only_if_the_next_one_lacks_it_too)
{
    REQUIRE(open_moving(w, 1 << 1 | 1 << 2));
    for (int i = 0; i < 3; i++) {
        atomic_store(&util_moving_once, 1 << 2);
        UTIL_EVENTUALLY(atomic_load(&util_moving_once) == 0);
        await_lookups(2);  // so that its answer was heeded, and that of the next one
    }
    CHECK_INT(util_log_count(&w->sessions, REVDIAL_DRAINING, NULL), 0);
    CHECK_INT(sessions_to(w->agents[0], 0, NULL), 1 << 1 | 1 << 2);
}

static size_t links_to(revdial_agent *a, const char *address, int state, revdial_link_info *out)
{
    revdial_link_info links[64];
    size_t count = revdial_agent_list_links(a, links, 64), found = 0;
    for (size_t i = 0; i < count; i++) {
        if (strncmp(links[i].address, address, strlen(address)) != 0) continue;
        if (links[i].state != state) continue;
        *out = links[i];
        found++;
    }
    return found == 1 ? count : 0;
}

NEW_WORLD_TEST(a_new_address_has_no_attempt_and_no_error_of_one_that_is_gone)
{
    char url[64];
    revdial_link_info link = {0};
    revdial_stats stats;
    w->pcfg.listen = "127.0.0.4:0";  // nobody listens at 127.0.0.2 and 127.0.0.3
    REQUIRE(world_open_proxy(w));
    snprintf(url, sizeof url, "http://moving.test%s", strrchr(w->address, ':'));
    w->acfg.url = url;
    w->acfg.all_addresses = 1;
    w->acfg.resolve_ms = 100;
    w->acfg.backoff_min_ms = w->acfg.backoff_max_ms = 3600000;
    atomic_store(&util_moving, 1 << 2);
    revdial_agent *a = w->agents[0] = revdial_agent_start(&w->acfg, NULL);
    REQUIRE(a != NULL);
    UTIL_EVENTUALLY(links_to(a, "127.0.0.2:", REVDIAL_BACKOFF, &link) == 1);
    CHECK(link.why.code != 0);
    atomic_store(&util_moving, 1 << 3);
    UTIL_EVENTUALLY(links_to(a, "127.0.0.3:", REVDIAL_BACKOFF, &link) == 1);
    atomic_store(&util_moving, 1 << 3 | 1 << 4);
    UTIL_EVENTUALLY(links_to(a, "127.0.0.4:", REVDIAL_UP, &link) == 2);
    CHECK_INT(a->link_count, 2);  // it has the link of the first address
    CHECK_INT(link.attempts, 1);
    CHECK_INT(link.why.code, 0);
    revdial_agent_get_stats(a, &stats);
    CHECK_INT(stats.reconnects, 0);
}

NEW_WORLD_TEST(a_lookup_that_fails_hangs_or_is_cut_short_ends_no_session)
{
    int threads = util_threads();
    REQUIRE(open_moving(w, 1 << 1 | 1 << 2));
    atomic_store(&util_moving, 0);  // no such host
    await_lookups(3);
    atomic_store(&util_moving, 0x1FFFE);  // 16 addresses: there may be more
    UTIL_EVENTUALLY(sessions_to(w->agents[0], 0, NULL) == 0x1FFFE);
    atomic_store(&util_moving, 0x3FFFC);
    await_lookups(3);
    UTIL_EVENTUALLY(sessions_to(w->agents[0], 0, NULL) == 0x3FFFE);
    atomic_store(&util_moving, 1);  // hangs
    CHECK(util_gate_wait(&util_resolver_entered, 1));
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    CHECK(echoes(st));
    revdial_close(st);
    CHECK_INT(util_log_count(&w->sessions, REVDIAL_DRAINING, NULL), 0);
    CHECK_INT(util_log_count(&w->sessions, REVDIAL_DOWN, NULL), 0);
    revdial_agent_stop(w->agents[0], 0);  // does not wait for the resolver
    w->agents[0] = NULL;
    util_gate_add(&util_resolver_open, 1);
    revdial_proxy_stop(w->proxy);
    w->proxy = NULL;
    UTIL_EVENTUALLY(util_threads() <= threads);
    util_gate_add(&util_resolver_entered, -util_gate_count(&util_resolver_entered));
    util_gate_add(&util_resolver_open, -util_gate_count(&util_resolver_open));
}

NEW_WORLD_TEST(R25_R26_addresses_are_tried_in_turn_until_one_answers)
{
    char url[100];
    REQUIRE(world_open_proxy(w));
    snprintf(url, sizeof url, "http://many.test%s", strrchr(w->address, ':'));
    w->acfg.url = url;
    CHECK(world_open_agent(w, 0));
    CHECK_INT(util_log_count(&w->states, REVDIAL_BACKOFF, NULL), 0);
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
}

TEST(an_agent_whose_proxy_is_down_does_not_take_its_own_socket_for_it)
{
    stage s;
    util_state e = {0};
    stage_open(&s);
    close(s.listener);
    atomic_store(&util_connects_to_itself, 1);
    if (stage_agent(&s) && CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, 1, &e))) {
        CHECK_INT(e.code, REVDIAL_ESYS);
        CHECK(strstr(e.msg, "Connection refused") != NULL);
        CHECK_INT(atomic_load(&util_connects_to_itself), 0);
    }
    s.listener = raw_listen(8, &s.port);
    CHECK(s.listener >= 0);
    stage_close(&s);
}

TEST(R25_U53_a_name_that_does_not_resolve_or_a_closed_port_is_tried_again_with_backoff)
{
    char closed[64];
    const char *urls[] = {"http://nosuch.invalid:80", closed};
    snprintf(closed, sizeof closed, "http://127.0.0.1:%d", raw_closed_port());
    for (int i = 0; i < 2; i++) {
        world w;
        util_state e = {0};
        world_init(&w);
        w.acfg.url = urls[i];
        w.agents[0] = revdial_agent_start(&w.acfg, NULL);
        CHECK(util_log_wait(&w.states, REVDIAL_BACKOFF, 5, &e));
        CHECK_INT(e.code, REVDIAL_ESYS);
        CHECK(strstr(e.msg, i ? "127.0.0.1" : "nosuch.invalid") != NULL);
        CHECK(e.retry_ms >= 0 && e.retry_ms <= 20);
        revdial_stats stats;
        revdial_agent_get_stats(w.agents[0], &stats);
        CHECK(stats.reconnects >= 4);
        CHECK_INT(stats.sessions, 0);
        world_close(&w);
    }
}

TEST(U53_backoff_is_never_above_its_bound_and_grows_from_its_least)
{
    world w;
    char url[64];
    snprintf(url, sizeof url, "http://127.0.0.1:%d", raw_closed_port());
    world_init(&w);
    w.acfg.url = url;
    w.acfg.backoff_min_ms = 2;
    w.acfg.backoff_max_ms = 16;
    w.agents[0] = revdial_agent_start(&w.acfg, NULL);
    CHECK(util_log_wait(&w.states, REVDIAL_BACKOFF, 12, NULL));
    int n = 0, most = 0;
    pthread_mutex_lock(&w.states.gate.lock);
    for (int i = 0; i < w.states.gate.count; i++) {
        const util_state *e = &w.states.items[i];
        if (e->state != REVDIAL_BACKOFF) continue;
        int bound = n < 3 ? 2 << n : 16;
        n++;
        if (e->retry_ms > bound)
            test_fail(__FILE__, __LINE__, "failure %d waits %d ms", n, e->retry_ms);
        if (e->retry_ms > most) most = e->retry_ms;
    }
    pthread_mutex_unlock(&w.states.gate.lock);
    CHECK(most > 2);  // in twelve draws
    world_close(&w);
}

static atomic_int memory_is_short;

static void *short_alloc(void *ud, void *ptr, size_t old_size, size_t new_size)
{
    (void)ud;
    if (new_size > old_size && atomic_load(&memory_is_short)) return NULL;
    if (new_size) return realloc(ptr, new_size);
    free(ptr);
    return NULL;
}

static void on_state_memory_ends(void *ud, int state, const revdial_err *why, int retry_in_ms)
{
    world *w = ud;
    if (util_log_count(&w->states, 0, NULL) == 0) atomic_store(&memory_is_short, 1);
    util_on_state(ud, state, why, retry_in_ms);
}

NEW_WORLD_TEST(U34_a_link_goes_on_trying_while_there_is_no_memory_at_all)
{
    w->acfg.common.alloc = short_alloc;
    w->acfg.on_state = on_state_memory_ends;
    REQUIRE(world_open_proxy(w));
    w->acfg.url = w->url;
    w->agents[0] = revdial_agent_start(&w->acfg, NULL);
    CHECK(w->agents[0] && util_log_wait(&w->states, REVDIAL_BACKOFF, 5, NULL));
    atomic_store(&memory_is_short, 0);
    CHECK(util_log_wait(&w->states, REVDIAL_UP, 1, NULL));
    CHECK_INT(util_log_count(&w->states, REVDIAL_STOPPED, NULL), 0);
}

TEST(R17_a_proxy_that_takes_sessions_and_drops_them_is_backed_off_from)
{
    stage s;
    int bound_seen = 0;
    stage_open(&s);
    s.w.acfg.backoff_min_ms = 1;
    s.w.acfg.backoff_max_ms = 200;
    if (stage_agent(&s)) {
        for (int i = 0; i < 12; i++) {
            util_state e = {0};
            stage_answer(&s, RAW_101);
            if (!CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, i + 1, &e))) break;
            CHECK(e.retry_ms <= 1 << i);
            if (e.retry_ms > bound_seen) bound_seen = e.retry_ms;
        }
        CHECK(bound_seen > 8);  // had each been a first failure, it would be 1
    }
    stage_close(&s);
}

// Lets the next session in, ends it with GoAway, and says how long the agent waits then.
static int stage_goaway(stage *s, int n, int held_ms)
{
    static const char both[] = RAW_101 "\0\3\0\0\0\0\0\0\0\0\0\0";
    revdial_link_info l = {0};
    int fd = stage_accept(s);
    raw_send(fd, both, held_ms ? sizeof RAW_101 - 1 : sizeof both - 1);
    CHECK(util_log_wait(&s->w.states, REVDIAL_UP, n, NULL));
    if (held_ms) {
        util_nap_ms(held_ms);
        raw_frame_send(fd, RAW_GOAWAY, 0, 0, 0);
    }
    CHECK(util_log_wait(&s->w.states, REVDIAL_DRAINING, n, NULL));
    UTIL_EVENTUALLY(revdial_agent_list_links(s->w.agents[0], &l, 1) == 1 && l.state != REVDIAL_UP);
    close(fd);
    return l.retry_in_ms;
}

TEST(R17_a_proxy_that_goes_away_at_once_is_backed_off_from_and_one_that_held_sessions_is_not)
{
    for (int was_held = 0; was_held < 2; was_held++) {
        int most_ms = 0;
        stage s;
        stage_open(&s);
        s.w.acfg.backoff_min_ms = 50;
        s.w.acfg.backoff_max_ms = 800;
        if (stage_agent(&s)) {
            for (int i = 1; i <= 7; i++) {
                int ms = stage_goaway(&s, i, was_held ? 50 : 0);
                if (ms > most_ms) most_ms = ms;
            }
            if (was_held ? most_ms > 50 : most_ms <= 50)
                test_fail(__FILE__, __LINE__, "held %d: it waited %d ms", was_held, most_ms);
        }
        stage_close(&s);
    }
}

WORLD_TEST(U53_an_agent_comes_back_when_the_proxy_does)
{
    char address[80];
    snprintf(address, sizeof address, "%s", w->address);
    for (int i = 0; i < 3; i++) {
        revdial_proxy_stop(w->proxy);
        CHECK(util_log_wait(&w->states, REVDIAL_DOWN, i + 1, NULL));
        w->pcfg.listen = address;
        // Somebody else's connection may have got that port for a while.
        UTIL_EVENTUALLY((w->proxy = revdial_proxy_start(&w->pcfg, NULL)) != NULL);
        if (!w->proxy) break;
        CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
        CHECK(util_log_wait(&w->states, REVDIAL_UP, i + 2, NULL));
        revdial_stream *st = world_dial(w, "echo", 0, NULL);
        CHECK(st != NULL);
        revdial_close(st);
    }
}

WORLD_TEST(when_the_proxy_drains_a_session_a_new_one_comes_and_the_streams_of_the_old_go_on)
{
    char buf[4];
    revdial_stream *old = world_dial(w, "echo", 0, NULL);
    if (CHECK(old != NULL)) {
        revdial_session *s = revdial_stream_session(old);
        revdial_session_info info;
        util_state e = {0};
        CHECK_INT(revdial_session_drain(s, -1), 0);
        CHECK(util_log_wait(&w->states, REVDIAL_UP, 2, NULL));
        CHECK(util_log_wait(&w->sessions, REVDIAL_UP, 2, &e));
        CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
        revdial_stream *fresh = world_dial(w, "echo", 0, NULL);
        if (CHECK(fresh != NULL)) {
            revdial_session *t = revdial_stream_session(fresh);
            CHECK(t != s);
            revdial_session_unref(t);
        }
        CHECK_INT(revdial_write(old, "ping", 4), 4);
        CHECK_INT(util_read_all(old, buf, 4), 4);
        revdial_session_get_info(s, &info);
        CHECK_INT(info.state, REVDIAL_DRAINING);
        revdial_close(old);
        CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, NULL));  // with its last stream
        CHECK(util_log_wait(&w->states, REVDIAL_DOWN, 1, NULL));
        CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 1, 0), 1);
        revdial_close(fresh);
        revdial_session_unref(s);
    }
}

// ------------------------------------------------------------------------------------------------
// Stopping

// The flag is meant for signal handlers: a plain store, of which a race detector would complain.
#if defined(__clang__) || defined(__GNUC__)
__attribute__((no_sanitize("thread"), noinline))
#endif
static void
raise_flag(volatile sig_atomic_t *flag)
{
    *flag = 1;
}

typedef struct serving {
    world *w;
    util_gate done;
    int result;
} serving;

static void *serving_run(void *arg)
{
    serving *s = arg;
    s->result = revdial_serve(&s->w->acfg, NULL);
    util_gate_add(&s->done, 1);
    return NULL;
}

TEST(the_stop_flag_drains_and_ends_serve_with_0)
{
    static volatile sig_atomic_t stop;
    world w;
    serving s = {&w, UTIL_GATE, 0};
    char buf[4];
    world_init(&w);
    if (world_open_proxy(&w)) {
        w.acfg.url = w.url;
        w.acfg.stop = &stop;
        pthread_t t = util_thread(serving_run, &s);
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        raise_flag(&stop);
        CHECK(util_log_wait(&w.sessions, REVDIAL_DRAINING, 1, NULL));
        CHECK_INT(util_gate_count(&s.done), 0);  // a stream is still there
        revdial_err err;
        CHECK(world_dial(&w, "echo", 0, &err) == NULL);
        CHECK(err.code == REVDIAL_EDRAINING || err.code == REVDIAL_ENOBACKEND);
        if (CHECK(st != NULL)) {
            CHECK_INT(revdial_write(st, "ping", 4), 4);
            CHECK_INT(util_read_all(st, buf, 4), 4);
        }
        revdial_close(st);
        CHECK(util_gate_wait(&s.done, 1));
        pthread_join(t, NULL);
        CHECK_INT(s.result, 0);
        CHECK(util_log_wait(&w.states, REVDIAL_STOPPED, 1, NULL));
    }
    world_close(&w);
}

WORLD_TEST(agent_stop_waits_for_streams_as_long_as_it_was_told_and_says_whether_they_ended)
{
    revdial_stream *st = world_dial(w, "hold", 0, NULL);
    CHECK(st != NULL);
    CHECK_INT(revdial_agent_stop(w->agents[0], 30), REVDIAL_ETIMEDOUT);
    w->agents[0] = NULL;
    CHECK(util_gate_wait(&w->ended, 1));
    CHECK(world_last(w).end < 0);
    revdial_close(st);
    CHECK(world_open_agent(w, 0));
    revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS);
    st = world_dial(w, "hold", 0, NULL);
    CHECK(st != NULL);
    CHECK_INT(revdial_agent_stop(w->agents[0], 0), REVDIAL_ETIMEDOUT);
    w->agents[0] = NULL;
    revdial_close(st);
    CHECK(world_open_agent(w, 0));
    CHECK_INT(revdial_agent_stop(w->agents[0], UTIL_WAIT_MS), 0);
    w->agents[0] = NULL;
}

TEST(F39_U18_an_agent_stops_at_once_while_it_connects_shakes_hands_or_waits)
{
    enum { CONNECTS, SHAKES_HANDS, WAITS, RESOLVES };
    hole h;
    if (!hole_open(&h)) return;
    for (int what = CONNECTS; what <= RESOLVES; what++) {
        stage s;
        char url[64];
        int fd = -1;
        stage_open(&s);
        s.w.acfg.common.limits.handshake_timeout_ms = 3600000;
        if (what == CONNECTS) {
            snprintf(url, sizeof url, "http://127.0.0.1:%d", h.port);
            s.w.acfg.url = url;
        }
        if (what == RESOLVES) s.w.acfg.url = "http://slow.test:80";
        if (what == WAITS) s.w.acfg.backoff_min_ms = s.w.acfg.backoff_max_ms = 3600000;
        if (stage_agent(&s)) {
            CHECK(util_log_wait(&s.w.states, REVDIAL_CONNECTING, 1, NULL));
            if (what == SHAKES_HANDS) fd = stage_accept(&s);
            if (what == WAITS) {
                stage_answer(&s, "HTTP/1.1 500 No\r\n\r\n");
                CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, 1, NULL));
            }
            if (what == RESOLVES) CHECK(util_gate_wait(&util_resolver_entered, 1));
            // Were it to wait for anything, it would wait until the harness ends it.
            CHECK_INT(revdial_agent_stop(s.w.agents[0], -1), 0);
            s.w.agents[0] = NULL;
            CHECK_INT(util_log_count(&s.w.states, REVDIAL_STOPPED, NULL), 1);
        }
        if (fd >= 0) close(fd);
        stage_close(&s);
    }
    // The resolver cannot be interrupted. Its thread has outlived the agent, and ends by itself.
    int threads = util_threads();
    util_gate_add(&util_resolver_open, 1);
    UTIL_EVENTUALLY(util_threads() == threads - 1);
    hole_close(&h);
}

static void on_state_that_blocks(void *ud, int state, const revdial_err *why, int retry_in_ms)
{
    world *w = ud;
    if (state == REVDIAL_UP) {
        util_state e = {100, 0, 0, 0, ""};
        e.code = revdial_agent_stop(w->agents[0], 0);
        e.retry_ms = revdial_agent_wait(w->agents[0], 1000, NULL) != NULL;
        util_log_add(&w->states, &e);
    }
    util_on_state(ud, state, why, retry_in_ms);
}

TEST(U7_stopping_an_agent_in_its_own_callback_is_EDEADLK)
{
    stage s;
    util_state e = {0};
    stage_open(&s);
    s.w.acfg.on_state = on_state_that_blocks;
    if (stage_agent(&s)) {  // s.w.agents[0] is set before the 101
        int fd = stage_accept(&s);
        raw_say(fd, RAW_101);
        CHECK(util_log_wait(&s.w.states, 100, 1, &e));
        CHECK_INT(e.code, REVDIAL_EDEADLK);
        CHECK_INT(e.retry_ms, 0);
        close(fd);
    }
    stage_close(&s);
}

NEW_WORLD_TEST(more_streams_than_max_handlers_are_refused_and_others_are_served_again_later)
{
    revdial_err err;
    w->acfg.max_handlers = 2;
    REQUIRE(world_open(w));
    revdial_stream *a = world_dial(w, "hold", 0, NULL), *b = world_dial(w, "hold", 0, NULL);
    CHECK(a && b);
    CHECK(world_dial(w, "echo", 0, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_ELIMIT);
    CHECK_INT(err.reset, REVDIAL_RESET_CALM);
    revdial_close(a);
    CHECK(util_gate_wait(&w->ended, 1));
    revdial_stream *c = NULL;
    UTIL_EVENTUALLY(c || (c = world_dial(w, "echo", 0, NULL)) != NULL);
    revdial_close(b);
    revdial_close(c);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
