// An agent that reaches its proxy through an egress proxy: what passes, what fails and who is said
// to have failed, when credentials count as rejected, and what is kept secret.
#include "runtime_util.h"
#include "secret_util.h"

// A system that moves so many bytes one at a time, and is interrupted before each of them. Only
// what is said to the egress proxy: a session takes a short send for a full socket, as on Linux.
static atomic_int trickle, calls, peeks_little;

static int is_interrupted(void)
{
    if (atomic_load(&trickle) <= 0 || atomic_fetch_add(&calls, 1) % 2) return 0;
    errno = EINTR;
    return 1;
}

static ssize_t trickle_send(int fd, const void *buf, size_t len, int flags)
{
    if (is_interrupted()) return -1;
    return send(fd, buf, atomic_fetch_sub(&trickle, 1) > 0 ? 1 : len, flags);
}

static ssize_t trickle_recv(int fd, void *buf, size_t len, int flags)
{
    if (is_interrupted()) return -1;
    return recv(fd, buf, flags & MSG_PEEK && atomic_load(&peeks_little) ? 1 : len, flags);
}

#define SECRET "hunter2hunter2"  // in no log and no error
#define LOGIN "user:" SECRET "@"
#define BASIC "Proxy-Authorization: Basic dXNlcjpodW50ZXIyaHVudGVyMg==\r\n"
#define OK "HTTP/1.1 200 Connection established\r\n\r\n"
#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static atomic_int leaks, logged;

static void listen_in(void *ud, int level, const char *event, const char *msg)
{
    (void)ud;
    (void)level;
    atomic_fetch_add(&logged, 1);
    if (strstr(event, SECRET) || strstr(msg, SECRET)) atomic_fetch_add(&leaks, 1);
}

static void nothing_leaked(world *w)
{
    for (int i = 0; i < w->states.gate.count; i++)
        if (strstr(w->states.items[i].msg, SECRET)) atomic_fetch_add(&leaks, 1);
    CHECK_INT(atomic_load(&leaks), 0);
    CHECK(atomic_load(&logged) > 0);
}

// ------------------------------------------------------------------------------------------------
// An egress proxy that works: one connection after the other, on a thread of its own

typedef struct gate {
    int listener, port, is_socks;
    atomic_int wants_login;  // refuses who comes without, or with another
    atomic_int passed, refused;
    atomic_int fd;  // of the connection that is open, -1
    pthread_t thread;
    char egress[100];
} gate;

// Both ways, until either end is over.
static void gate_pump(int a, int b)
{
    char buf[16384];
    for (;;) {
        struct pollfd p[2] = {{a, POLLIN, 0}, {b, POLLIN, 0}};
        if (poll(p, 2, -1) < 0 && errno != EINTR) return;
        for (int i = 0; i < 2; i++) {
            if (!p[i].revents) continue;
            ssize_t n = recv(p[i].fd, buf, sizeof buf, 0);
            if (n <= 0 || !raw_send(p[1 - i].fd, buf, (size_t)n)) return;
        }
    }
}

// Returns 1 and the address, or 0: refused.
static int gate_http(gate *g, int fd, char *target)
{
    char head[2048];
    int has_target, is_good;
    if (!raw_head(fd, head, sizeof head)) return 0;
    has_target = sscanf(head, "CONNECT %63s HTTP/1.1\r\n", target) == 1;
    is_good = strstr(head, "\r\n" BASIC) != NULL;
    rvd_base_wipe(head, sizeof head);
    if (!has_target) return 0;
    if (atomic_load(&g->wants_login) && !is_good) {
        raw_say(fd, "HTTP/1.1 407 Who?\r\nContent-Length: 0\r\n\r\n");
        return 0;
    }
    raw_say(fd, OK);
    return 1;
}

static int gate_socks(gate *g, int fd, char *target)
{
    uint8_t b[64];
    if (!raw_read_all(fd, b, 2) || b[0] != 5 || !raw_read_all(fd, b + 2, b[1])) return 0;
    int method = b[1] == 2 ? 2 : 0;
    if (atomic_load(&g->wants_login) && method == 0) method = 0xFF;
    uint8_t chosen[2] = {5, (uint8_t)method};
    raw_send(fd, chosen, 2);
    if (method == 0xFF) return 0;
    if (method == 2) {
        static const char login[] = "\1\4user\16" SECRET;
        if (!raw_read_all(fd, b, 2) || !raw_read_all(fd, b + 2, b[1] + 1u)) return 0;
        size_t len = 3u + b[1];
        if (!raw_read_all(fd, b + len, b[len - 1])) return 0;
        int is_good = !atomic_load(&g->wants_login) || memcmp(b, login, sizeof login - 1) == 0;
        rvd_base_wipe(b, sizeof b);
        raw_send(fd, is_good ? "\1\0" : "\1\1", 2);
        if (!is_good) return 0;
    }
    if (!raw_read_all(fd, b, 10) || b[1] != 1 || b[3] != 1) return 0;
    snprintf(target, 64, "%d.%d.%d.%d:%d", b[4], b[5], b[6], b[7], b[8] << 8 | b[9]);
    return raw_send(fd, "\5\0\0\1\0\0\0\0\0\0", 10);
}

static void *gate_run(void *arg)
{
    gate *g = arg;
    for (;;) {
        char target[64];
        int fd = accept4(g->listener, NULL, NULL, SOCK_CLOEXEC), to = -1;
        if (fd < 0) return NULL;
        atomic_store(&g->fd, fd);
        int passes = g->is_socks ? gate_socks(g, fd, target) : gate_http(g, fd, target);
        if (passes) to = raw_connect(target);
        atomic_fetch_add(passes ? &g->passed : &g->refused, 1);
        if (to >= 0) gate_pump(fd, to);
        atomic_store(&g->fd, -1);
        close(to);
        close(fd);
    }
}

static void gate_open(gate *g, int is_socks, const char *login)
{
    memset(g, 0, sizeof *g);
    g->is_socks = is_socks;
    atomic_store(&g->fd, -1);
    g->listener = raw_listen(8, &g->port);
    snprintf(g->egress, sizeof g->egress, "%s://%s127.0.0.1:%d", is_socks ? "socks5" : "http",
             login, g->port);
    g->thread = util_thread(gate_run, g);
}

// Cuts the connection that is open.
static void gate_cut(gate *g)
{
    int fd = atomic_load(&g->fd);
    if (fd >= 0) shutdown(fd, SHUT_RDWR);
}

static void gate_close(gate *g)
{
    shutdown(g->listener, SHUT_RDWR);
    gate_cut(g);
    pthread_join(g->thread, NULL);
    close(g->listener);
}

static void gate_world(world *w, gate *g)
{
    world_init(w);
    w->acfg.egress = g->egress;
    w->acfg.common.log = listen_in;
    w->acfg.common.log_level = REVDIAL_LOG_DEBUG;
    w->acfg.auth_fail_limit = 0;
}

static int echoes(world *w)
{
    static char out[60000], in[60000];  // within a window: nobody reads until all is written
    revdial_err err = {0};
    for (size_t i = 0; i < sizeof out; i++) out[i] = (char)(i * 7);
    revdial_stream *st = world_dial(w, "echo", 0, &err);
    if (!st) return test_fail(__FILE__, __LINE__, "no stream: %s", err.msg);
    int ok = revdial_write(st, out, sizeof out) == (ptrdiff_t)sizeof out &&
             util_read_all(st, in, sizeof in) == (ptrdiff_t)sizeof in &&
             memcmp(in, out, sizeof in) == 0;
    revdial_close(st);
    return ok;
}

TEST(streams_work_through_CONNECT_and_SOCKS5_with_and_without_a_login_and_after_a_cut)
{
    for (int kind = 0; kind < 6; kind++) {  // a login that is not wanted does not hurt
        world w;
        gate g;
        gate_open(&g, kind & 1, kind >= 2 ? LOGIN : "");
        atomic_store(&g.wants_login, kind >= 4);
        gate_world(&w, &g);
        if (CHECK(world_open(&w))) {
            CHECK(echoes(&w));
            gate_cut(&g);
            CHECK(util_log_wait(&w.states, REVDIAL_UP, 2, NULL));
            CHECK(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS) == 1);
            CHECK(echoes(&w));
        }
        CHECK_INT(atomic_load(&g.refused), 0);
        CHECK(atomic_load(&g.passed) >= 2);
        world_close(&w);
        gate_close(&g);
        nothing_leaked(&w);
    }
}

TEST(a_system_that_moves_one_byte_at_a_time_opens_the_way_as_well)
{
    atomic_store(&peeks_little, 1);
    for (int is_socks = 0; is_socks < 2; is_socks++) {
        world w;
        gate g;
        gate_open(&g, is_socks, LOGIN);
        atomic_store(&g.wants_login, 1);
        gate_world(&w, &g);
        atomic_store(&trickle, 30);  // the shorter of the two says 35
        CHECK(world_open(&w) && echoes(&w));
        CHECK(atomic_load(&trickle) <= 0);
        CHECK_INT(atomic_load(&g.passed), 1);
        world_close(&w);
        gate_close(&g);
        nothing_leaked(&w);
    }
    atomic_store(&peeks_little, 0);
    CHECK(atomic_load(&calls) >= 60);
}

TEST(a_login_that_the_egress_proxy_rejects_ends_an_agent_that_was_never_up)
{
    for (int kind = 0; kind < 4; kind++) {
        world w;
        gate g;
        util_state e = {0};
        gate_open(&g, kind & 1, kind >= 2 ? "user:hunter2hunter3@" : "");
        atomic_store(&g.wants_login, 1);
        gate_world(&w, &g);
        revdial_err err = {0};
        w.acfg.url = "http://127.0.0.1:1";
        CHECK_INT(revdial_serve(&w.acfg, &err), REVDIAL_EAUTH);
        CHECK(strncmp(err.msg, "egress proxy 127.0.0.1:", 23) == 0);
        CHECK(strstr(err.msg, kind >= 2 ? "it rejects the user name" : "it wants a user name"));
        CHECK(!strstr(err.msg, "hunter2"));
        CHECK(util_log_wait(&w.states, REVDIAL_STOPPED, 1, &e));
        CHECK_INT(e.code, REVDIAL_EAUTH);
        UTIL_EVENTUALLY(atomic_load(&g.refused) == 1);
        gate_close(&g);
        nothing_leaked(&w);
    }
}

TEST(a_login_that_the_egress_proxy_rejects_later_is_tried_again_slowly)
{
    world w;
    gate g;
    util_state e = {0};
    gate_open(&g, 0, "");
    gate_world(&w, &g);
    w.acfg.backoff_max_ms = 100;
    if (CHECK(world_open(&w))) {
        atomic_store(&g.wants_login, 1);
        gate_cut(&g);
        CHECK(util_log_wait(&w.states, REVDIAL_BACKOFF, 3, &e));
        CHECK_INT(e.code, REVDIAL_EAUTH);
        CHECK(e.retry_ms >= 50 && e.retry_ms <= 100);
        atomic_store(&g.wants_login, 0);
        CHECK(util_log_wait(&w.states, REVDIAL_UP, 2, NULL));
    }
    world_close(&w);
    gate_close(&g);
    nothing_leaked(&w);
}

// ------------------------------------------------------------------------------------------------
// An egress proxy played by the test

typedef struct stage {
    world w;
    int listener, port;
    char egress[100], head[2048];
} stage;

static void stage_open(stage *s, const char *scheme)
{
    world_init(&s->w);
    s->port = raw_quiet_port();
    s->listener = raw_listen(8, &s->port);
    snprintf(s->egress, sizeof s->egress, "%s" LOGIN "127.0.0.1:%d", scheme, s->port);
    s->w.acfg.egress = s->egress;
    s->w.acfg.url = "http://far.invalid:7000";  // nobody here resolves that
    s->w.acfg.allow_cleartext = 1;
    s->w.acfg.auth_fail_limit = -1;
    s->w.acfg.common.log = listen_in;
}

static int stage_agent(stage *s)
{
    revdial_err err = {0};
    s->w.agents[0] = revdial_agent_start(&s->w.acfg, &err);
    return s->w.agents[0] ? 1 : test_fail(__FILE__, __LINE__, "no agent: %s", err.msg);
}

// The next attempt: its descriptor, its CONNECT in s->head.
static int stage_accept(stage *s)
{
    int fd = raw_proxy_accept(s->listener, s->head, sizeof s->head);
    CHECK(fd >= 0);
    CHECK_STR(s->head,
              "CONNECT far.invalid:7000 HTTP/1.1\r\nHost: far.invalid:7000\r\n" BASIC "\r\n");
    return fd;
}

static void stage_close(stage *s)
{
    world_close(&s->w);
    close(s->listener);
    nothing_leaked(&s->w);
}

TEST(an_agent_whose_egress_proxy_is_down_does_not_take_its_own_socket_for_it)
{
    stage s;
    util_state e = {0};
    stage_open(&s, "http://");
    close(s.listener);
    atomic_store(&util_connects_to_itself, 1);
    if (stage_agent(&s) && CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, 1, &e))) {
        CHECK_INT(e.code, REVDIAL_ESYS);
        CHECK(strstr(e.msg, "Connection refused") != NULL);
    }
    CHECK_INT(atomic_load(&util_connects_to_itself), 0);
    s.listener = raw_listen(8, &s.port);
    CHECK(s.listener >= 0);
    stage_close(&s);
}

// Says something and lets the agent end the connection.
static void stage_say(int fd, const char *text)
{
    char buf[64];
    size_t len;
    raw_say(fd, text);
    shutdown(fd, SHUT_WR);
    raw_drain(fd, buf, sizeof buf, &len);
    close(fd);
}

TEST(who_refused_and_why_is_told_and_another_attempt_follows)
{
    static const struct {
        const char *answer;
        int code;
        const char *msg;  // behind "egress proxy 127.0.0.1:PORT", NULL: it was not that one
    } rows[] = {
        {"HTTP/1.1 407 X\r\n\r\n", REVDIAL_EAUTH,
         " refused: 407, it rejects the user name or the password"},
        {"HTTP/1.1 403 X\r\n\r\n", REVDIAL_EUNREACH,
         " refused: 403, its rules forbid this destination"},
        {"HTTP/1.1 503 X\r\n\r\n", REVDIAL_EUNREACH,
         " refused: 503, it cannot serve this now, or cannot reach the destination"},
        {"HTTP/1.1 200 X\r\n\r", REVDIAL_ELOST, ": it closed the connection without an answer"},
        {"", REVDIAL_ELOST, ": it closed the connection without an answer"},
        {"SSH-2.0-x\r\n", REVDIAL_EPROTO, ": its answer is not that of an HTTP proxy"},
        {OK, REVDIAL_ELOST, NULL},
        {OK "HTTP/1.1 407 X\r\n\r\n", REVDIAL_EUPGRADE, NULL},
        {OK "HTTP/1.1 401 X\r\nRevdial-Version: 1\r\n\r\n", REVDIAL_EAUTH, NULL},
        {OK "HTTP/1.1 403 X\r\nRevdial-Version: 1\r\n\r\n", REVDIAL_EDENIED, NULL},
        {OK "HTTP/1.1 200 X\r\n\r\n", REVDIAL_EUPGRADE, NULL},
        {OK RAW_101, REVDIAL_ELOST, NULL},
    };
    stage s;
    stage_open(&s, "http://");
    if (stage_agent(&s)) {
        for (size_t i = 0; i < COUNT(rows); i++) {
            util_state e = {0};
            char msg[240];
            stage_say(stage_accept(&s), rows[i].answer);
            if (!CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, (int)i + 1, &e))) break;
            snprintf(msg, sizeof msg, "egress proxy 127.0.0.1:%d%s", s.port,
                     rows[i].msg ? rows[i].msg : "");
            if (e.code != rows[i].code || !e.msg[0] ||
                (rows[i].msg ? strcmp(e.msg, msg) != 0 : strstr(e.msg, "egress") != NULL))
                test_fail(__FILE__, __LINE__, "\"%.60s\": %d %s", rows[i].answer, e.code, e.msg);
        }
    }
    stage_close(&s);
}

TEST(what_comes_with_the_head_of_the_200_is_the_proxys_however_it_is_cut)
{
    static const char answer[] = OK "HTTP/1.1 403 Forbidden\r\nRevdial-Version: 1\r\n\r\n";
    int attempts = 0;
    stage s;
    util_state e = {0};
    stage_open(&s, "http://");
    if (stage_agent(&s)) {
        for (size_t cut = 1; cut < sizeof answer - 1; cut += 6) {
            int fd = stage_accept(&s);
            raw_send(fd, answer, cut);
            sched_yield();
            stage_say(fd, answer + cut);
            if (!CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, ++attempts, &e))) break;
            CHECK_INT(e.code, REVDIAL_EDENIED);
        }
    }
    stage_close(&s);
}

TEST(no_byte_of_the_handshake_is_sent_before_the_way_is_open)
{
    stage s;
    char buf[4096];
    stage_open(&s, "http://");
    if (stage_agent(&s)) {
        int fd = stage_accept(&s);
        raw_say(fd, "HTTP/1.1 200 OK\r\nX: y\r\n\r");
        CHECK(!raw_wait(fd, POLLIN, 50));
        raw_say(fd, "\n");
        CHECK(raw_head(fd, buf, sizeof buf) > 0);
        CHECK(strncmp(buf, "GET /revdial HTTP/1.1\r\nHost: far.invalid:7000\r\n", 47) == 0);
        CHECK(strstr(buf, "\r\nAuthorization: Bearer s3cret\r\n") != NULL);
        CHECK(strstr(buf, "Proxy-Authorization") == NULL);
        raw_close_reset(fd);
    }
    stage_close(&s);
}

TEST(an_egress_proxy_that_says_when_is_taken_at_its_word_and_no_secret_is_kept_meanwhile)
{
    stage s;
    util_state e = {0};
    stage_open(&s, "http://");
    if (stage_agent(&s)) {
        stage_say(stage_accept(&s), "HTTP/1.1 503 X\r\nRetry-After: 7\r\n\r\n");
        CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, 1, &e));
        CHECK(e.retry_ms >= 7000 && e.retry_ms <= 8750);
        // And nothing is kept until then: the loop does not touch the link, so that we may look.
        const rvd_agent_link *l = s.w.agents[0]->links[0];
        CHECK(l->egress == NULL && l->conn.io.fd < 0);
        for (size_t i = 0; i < sizeof l->secret; i++)
            if (l->secret[i]) test_fail(__FILE__, __LINE__, "byte %zu of the token", i);
    }
    stage_close(&s);
}

static atomic_int hidden_logged;

static void hidden_log(void *ud, int level, const char *event, const char *msg)
{
    (void)level;
    (void)event;
    if (hidden_count((const uint8_t *)msg, strlen(msg), *(int *)ud))
        atomic_fetch_add(&hidden_logged, 1);
}

TEST(the_login_of_an_egress_proxy_is_in_memory_once_for_reconnects_and_nowhere_afterwards)
{
    for (int which = 10; which < 12; which++) {
        world w;
        gate g;
        char login[HIDDEN_LEN + 8] = "alice:";
        hidden_make(login + 6, which);
        strcat(login, "@");
        atomic_store(&hidden_dirty, 0);
        atomic_store(&hidden_logged, 0);
        gate_open(&g, which & 1, login);
        gate_world(&w, &g);
        w.acfg.common.alloc = hidden_alloc;
        w.acfg.common.log = hidden_log;
        w.acfg.common.alloc_ud = w.acfg.common.log_ud = &which;
        rvd_base_wipe(login, sizeof login);
        if (world_open_proxy(&w) && world_open_agent(&w, 0)) {
            rvd_base_wipe(g.egress, sizeof g.egress);
            CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
            gate_cut(&g);
            CHECK(util_log_wait(&w.states, REVDIAL_UP, 2, NULL));
            CHECK_INT(hidden_scan(which), 1);
            for (int i = 0; i < w.states.gate.count; i++) {
                const char *msg = w.states.items[i].msg;
                CHECK_INT(hidden_count((const uint8_t *)msg, strlen(msg), which), 0);
            }
        }
        world_close(&w);
        gate_close(&g);
        CHECK_INT(hidden_scan(which), 0);
        CHECK_INT(atomic_load(&hidden_dirty), 0);
        CHECK_INT(atomic_load(&hidden_logged), 0);
    }
}

TEST(an_egress_proxy_that_says_nothing_or_drips_is_given_up_at_the_deadline)
{
    static const char *const schemes[] = {"http://", "socks5://"};
    for (int i = 0; i < 2; i++) {
        stage s;
        util_state e = {0};
        stage_open(&s, schemes[i]);
        s.w.acfg.common.limits.handshake_timeout_ms = 50;
        if (stage_agent(&s)) {
            int fd = raw_accept(s.listener);
            CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, 1, &e));
            CHECK_INT(e.code, REVDIAL_ETIMEDOUT);
            CHECK(strstr(e.msg, ": the egress proxy did not answer in time") != NULL);
            close(fd);
            fd = raw_accept(s.listener);
            raw_say(fd, i ? "\5" : "HTTP/1.1 200 OK\r\nX: ");
            while (util_log_count(&s.w.states, REVDIAL_BACKOFF, &e) < 2) {
                if (i == 0) raw_say(fd, "a");
                util_nap_ms(1);
            }
            CHECK_INT(e.code, REVDIAL_ETIMEDOUT);
            close(fd);
        }
        stage_close(&s);
    }
}

TEST(a_connection_that_the_egress_proxy_resets_is_its_loss)
{
    stage s;
    util_state e = {0};
    stage_open(&s, "http://");
    if (stage_agent(&s)) {
        raw_close_reset(stage_accept(&s));
        CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, 1, &e));
        CHECK_INT(e.code, REVDIAL_ELOST);
        CHECK(strstr(e.msg, ": the connection to the egress proxy was lost") != NULL);
    }
    stage_close(&s);
}

TEST(an_egress_proxy_that_is_not_there_is_named)
{
    static const struct {
        const char *host, *says;
    } rows[] = {{"127.0.0.1", "cannot connect to the egress proxy"},
                {"none.invalid", "no such egress proxy"}};
    int port = raw_closed_port();
    for (size_t i = 0; i < COUNT(rows); i++) {
        stage s;
        util_state e = {0};
        char hop[80];
        stage_open(&s, "http://");
        snprintf(hop, sizeof hop, "\"%s:%d\": %s", rows[i].host, port, rows[i].says);
        snprintf(s.egress, sizeof s.egress, "http://" LOGIN "%s:%d", rows[i].host, port);
        if (stage_agent(&s)) {
            CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, 1, &e));
            CHECK_INT(e.code, REVDIAL_ESYS);
            if (strncmp(e.msg, hop, strlen(hop)) != 0) CHECK_STR(e.msg, hop);
        }
        stage_close(&s);
    }
}

TEST(each_address_of_the_egress_proxy_is_tried_until_one_takes_the_connection)
{
    stage s;
    stage_open(&s, "http://");
    snprintf(s.egress, sizeof s.egress, "http://" LOGIN "many.test:%d", s.port);
    if (stage_agent(&s)) {  // fifteen addresses, the last is ours
        int fd = stage_accept(&s);
        stage_say(fd, "HTTP/1.1 403 X\r\n\r\n");
        util_state e = {0};
        CHECK(util_log_wait(&s.w.states, REVDIAL_BACKOFF, 1, &e));
        CHECK_INT(e.code, REVDIAL_EUNREACH);
    }
    stage_close(&s);
}

TEST(an_agent_stops_at_once_while_the_egress_proxy_thinks)
{
    int fds = util_fds();
    stage s;
    char c;
    stage_open(&s, "http://");
    if (stage_agent(&s)) {
        int fd = stage_accept(&s);
        CHECK_INT(revdial_agent_stop(s.w.agents[0], -1), 0);
        s.w.agents[0] = NULL;
        CHECK_INT(raw_read(fd, &c, 1), 0);
        close(fd);
    }
    atomic_fetch_add(&logged, 1);  // there was nothing to log
    stage_close(&s);
    CHECK_INT(util_fds(), fds);
}

// ------------------------------------------------------------------------------------------------
// What is refused before anything is sent

TEST(the_token_goes_in_cleartext_to_loopback_only_whatever_the_egress_proxy)
{
    static const struct {
        const char *url;
        int allow, sends;
    } rows[] = {
        {"http://127.0.0.1:9", 0, 1},   {"http://[::1]:9", 0, 1},
        {"http://far.invalid:9", 0, 0}, {"http://10.0.0.1:9", 0, 0},
        {"http://localhost:9", 0, 0},  // the egress proxy would resolve it
        {"http://far.invalid:9", 1, 1},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        stage s;
        util_state e = {0};
        stage_open(&s, "http://");
        s.w.acfg.url = rows[i].url;
        s.w.acfg.allow_cleartext = rows[i].allow;
        if (stage_agent(&s)) {
            if (rows[i].sends) {
                int fd = raw_proxy_accept(s.listener, s.head, sizeof s.head);
                CHECK(fd >= 0);
                stage_say(fd, "HTTP/1.1 503 X\r\n\r\n");
            } else if (CHECK(util_log_wait(&s.w.states, REVDIAL_STOPPED, 1, &e))) {
                CHECK_INT(e.code, REVDIAL_EINVAL);
                CHECK(strstr(e.msg, "cleartext") != NULL);
                CHECK(!raw_wait(s.listener, POLLIN, 0));
            }
        }
        atomic_fetch_add(&logged, 1);
        stage_close(&s);
    }
}

TEST(configurations_that_make_no_sense_are_refused_without_a_secret_in_the_error)
{
    static const struct {
        const char *egress, *url, *says;
        int all_addresses;
    } rows[] = {
        {"https://" LOGIN "h:1", "http://127.0.0.1:9", "egress: there is no TLS", 0},
        {"http://" LOGIN "h", "http://127.0.0.1:9", "egress: not HOST:PORT", 0},
        {"http://" LOGIN "127.1:80", "http://127.0.0.1:9", "neither an IPv4 address nor a name", 0},
        {"http://" LOGIN "h:1", "unix:/run/revdial.sock", "egress: only a server at HOST:PORT", 0},
        {"http://" LOGIN "h:1", "http://127.0.0.1:9,unix:/run/x", "egress: only a server", 0},
        {"http://" LOGIN "h:1", "http://127.0.0.1:9", "all_addresses", 1},
        {"", "http://127.0.0.1:9", "egress: not http://", 0},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        world w;
        revdial_err err = {0};
        world_init(&w);
        w.acfg.egress = rows[i].egress;
        w.acfg.url = rows[i].url;
        w.acfg.all_addresses = rows[i].all_addresses;
        w.agents[0] = revdial_agent_start(&w.acfg, &err);
        CHECK(w.agents[0] == NULL);
        CHECK_INT(err.code, REVDIAL_EINVAL);
        if (!strstr(err.msg, rows[i].says) || strstr(err.msg, SECRET))
            test_fail(__FILE__, __LINE__, "row %zu: %s", i, err.msg);
        world_close(&w);
    }
}

// ------------------------------------------------------------------------------------------------
// Memory

typedef struct locked_heap {
    pthread_mutex_t lock;
    test_heap heap;
} locked_heap;

static void *locked_alloc(void *ud, void *ptr, size_t old_size, size_t new_size)
{
    locked_heap *h = ud;
    pthread_mutex_lock(&h->lock);
    if (ptr)
        for (size_t at = 0; at + sizeof SECRET - 1 <= old_size; at++)
            if (memcmp((char *)ptr + at, SECRET, sizeof SECRET - 1) == 0)
                atomic_fetch_add(&leaks, 1);
    void *p = test_heap_alloc(&h->heap, ptr, old_size, new_size);
    pthread_mutex_unlock(&h->lock);
    return p;
}

TEST(U34_whichever_allocation_of_the_agent_fails_it_comes_up_or_says_so_and_nothing_leaks)
{
    size_t most = 0;
    for (size_t n = 0; n <= most && n < 200 && test_failures < 5; n++) {
        world w;
        gate g;
        locked_heap h;
        revdial_err err = {0};
        memset(&h, 0, sizeof h);
        pthread_mutex_init(&h.lock, NULL);
        h.heap.fail_at = n;
        gate_open(&g, n % 2, LOGIN);
        gate_world(&w, &g);
        if (!CHECK(world_open_proxy(&w))) return;
        w.acfg.url = w.url;
        w.acfg.common.alloc = locked_alloc;
        w.acfg.common.alloc_ud = &h;
        w.agents[0] = revdial_agent_start(&w.acfg, &err);
        if (!w.agents[0])
            CHECK_INT(err.code, REVDIAL_ENOMEM);
        else if (revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS) != 1)
            test_fail(__FILE__, __LINE__, "allocation %zu failed, and nothing goes on", n);
        if (n == 0) most = h.heap.calls;
        world_close(&w);
        gate_close(&g);
        nothing_leaked(&w);
        if (h.heap.live_blocks || h.heap.live_bytes)
            test_fail(__FILE__, __LINE__, "allocation %zu: %zu blocks left", n, h.heap.live_blocks);
    }
    CHECK(most > 15);
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    util_send_instead = trickle_send;
    util_recv_instead = trickle_recv;
    return test_main(argc, argv);
}
