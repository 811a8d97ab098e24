// The log: fields that nobody can forge, the ids that both ends share, and how much of it there is.
#include "runtime_util.h"

enum { LINES_MAX = 512 };

typedef struct line {
    int level;
    char event[32], msg[RVD_LOG_TEXT];
} line;

// What a log hook was told.
typedef struct lines {
    util_gate told;
    pthread_mutex_t lock;
    line all[LINES_MAX];  // guarded by lock, the first so many
    int count;
} lines;

static lines *lines_new(revdial_common *common, int level)
{
    lines *l = calloc(1, sizeof *l);
    if (!l) abort();
    util_gate_init(&l->told);
    pthread_mutex_init(&l->lock, NULL);
    common->log_ud = l;
    common->log_level = level;
    return l;
}

static void lines_add(void *ud, int level, const char *event, const char *msg)
{
    lines *l = ud;
    pthread_mutex_lock(&l->lock);
    if (l->count < LINES_MAX) {
        line *at = &l->all[l->count++];
        at->level = level;
        snprintf(at->event, sizeof at->event, "%s", event);
        snprintf(at->msg, sizeof at->msg, "%s", msg);
    }
    pthread_mutex_unlock(&l->lock);
    util_gate_add(&l->told, 1);
}

// How many lines of that event there are whose text has `part`; the last one in *out.
static int lines_find(lines *l, const char *event, const char *part, line *out)
{
    int n = 0;
    pthread_mutex_lock(&l->lock);
    for (int i = 0; i < l->count; i++) {
        if (strcmp(l->all[i].event, event) != 0 || !strstr(l->all[i].msg, part)) continue;
        if (out) *out = l->all[i];
        n++;
    }
    pthread_mutex_unlock(&l->lock);
    return n;
}

static int lines_await(lines *l, const char *event, const char *part, line *out)
{
    for (int seen = 0;;) {
        if (lines_find(l, event, part, out)) return 1;
        seen = util_gate_count(&l->told);
        if (lines_find(l, event, part, out)) return 1;
        if (!util_gate_wait(&l->told, seen + 1))
            return test_fail(__FILE__, __LINE__, "no line %s with %s", event, part);
    }
}

// A reader of logfmt: finds the field of that key and takes the quotes and escapes off its value.
// Returns 0 if there is none, or if msg is no logfmt.
static int field_of(const char *msg, const char *key, char *out, size_t size)
{
    size_t n = 0, key_len = strlen(key);
    while (*msg) {
        size_t len = strcspn(msg, "= \"");
        int is_it = len == key_len && memcmp(msg, key, len) == 0, quoted;
        if (len == 0 || msg[len] != '=') return 0;
        msg += len + 1;
        quoted = *msg == '"';
        for (msg += quoted; *msg && *msg != (quoted ? '"' : ' '); msg++) {
            unsigned code = (unsigned char)*msg;
            if (!quoted && strchr("\"=\\", *msg)) return 0;
            if (*msg == '\\') {
                msg++;
                code = (unsigned char)*msg;
                if (strchr("nrt", *msg)) code = *msg == 'n' ? '\n' : *msg == 'r' ? '\r' : '\t';
                if (*msg == 'u' && sscanf(msg + 1, "%4x", &code) != 1) return 0;
                if (*msg == 'u') msg += 4;
            }
            if (is_it && n + 1 < size) out[n++] = (char)(code > 0xFF ? '?' : code);
        }
        if (quoted && *msg++ != '"') return 0;
        if (is_it) {
            out[n] = '\0';
            return 1;
        }
        if (*msg && *msg++ != ' ') return 0;
    }
    return 0;
}

static const char *field(const line *l, const char *key, char out[256])
{
    if (!field_of(l->msg, key, out, 256)) snprintf(out, 256, "(no %s in: %.200s)", key, l->msg);
    return out;
}

// ------------------------------------------------------------------------------------------------
// Fields

TEST(a_value_ends_neither_its_field_nor_its_line_and_steers_no_terminal)
{
    static const char *const cases[][2] = {
        {"cam-1", "k=cam-1"},
        {"127.0.0.1:80", "k=127.0.0.1:80"},
        {"[::1]:80", "k=[::1]:80"},
        {"two words", "k=\"two words\""},
        {"a=b", "k=\"a=b\""},
        {"say \"it\"", "k=\"say \\\"it\\\"\""},
        {"c:\\x", "k=\"c:\\\\x\""},
        {"x\nlevel=error event=forged", "k=\"x\\nlevel=error event=forged\""},
        {"x\r\t\033[31m\177", "k=\"x\\r\\t\\u001b[31m\\u007f\""},
        {"\xc2\x9b!", "k=\"\\u009b!\""},       // C1, as two bytes
        {"\x9b\x80", "k=\"\\ufffd\\ufffd\""},  // C1, as one
        {"\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", "k=\"\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80\""},
        {"\xe2\x80\xae\xe2\x80\xa8\xef\xbb\xbf", "k=\"\\u202e\\u2028\\ufeff\""},
        {"\xc0\xaf\xed\xa0\x80\xf4\x90\x80\x80\xc3", NULL},  // overlong, a half, too large, cut
        {"", ""},
        {NULL, ""}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char msg[256] = "";
        revdial_log_field(msg, sizeof msg, "k", cases[i][0]);
        if (cases[i][1]) CHECK_STR(msg, cases[i][1]);
        for (const char *at = msg; !cases[i][1] && *at; at++) CHECK(*at >= ' ' && *at < 0x7F);
    }
}

TEST(every_value_of_two_bytes_is_read_back)
{
    for (int a = 1; a < 0x80; a++) {
        for (int b = 0; b < 0x80; b++) {
            char value[3] = {(char)a, (char)b, 0}, msg[64] = "before=1", got[8] = "";
            revdial_log_field(msg, sizeof msg, "k", value);
            revdial_log_field(msg, sizeof msg, "after", "2");
            CHECK(field_of(msg, "k", got, sizeof got));
            CHECK_STR(got, value);
            CHECK(field_of(msg, "after", got, sizeof got) && strcmp(got, "2") == 0);
        }
    }
}

TEST(a_long_value_is_cut_and_a_field_that_does_not_fit_is_left_out)
{
    char value[4096], msg[1024] = "", got[512];
    memset(value, '\n', sizeof value - 1);
    value[sizeof value - 1] = '\0';
    revdial_log_field(msg, sizeof msg, "a", value);
    CHECK(strlen(msg) < RVD_LOG_VALUE + 16);
    CHECK(field_of(msg, "a", got, sizeof got));
    CHECK_STR(got + strlen(got) - 4, "\n...");
    for (int i = 0; i < 16; i++) revdial_log_field(msg, sizeof msg, "b", value);
    CHECK(strlen(msg) < sizeof msg);
    CHECK(field_of(msg, "b", got, sizeof got));
    CHECK_INT(field_of(msg, "none", got, sizeof got), 0);
    static const char *const fields[][2] = {{"abcd", "k=abcd"}, {"a b", "k=\"a b\""}};
    for (size_t size = 0; size < 20; size++) {
        for (int i = 0; i < 2; i++) {
            char small[20] = "", more[20] = "a=b";
            revdial_log_field(small, size, "k", fields[i][0]);
            CHECK_STR(small, size > strlen(fields[i][1]) ? fields[i][1] : "");
            revdial_log_field(more, size, "k", fields[i][0]);
            CHECK_STR(more + 3 + (more[3] == ' '),
                      size > strlen(fields[i][1]) + strlen("a=b ") ? fields[i][1] : "");
        }
    }
}

// ------------------------------------------------------------------------------------------------
// What the lines say

// A world whose proxy exposes cam-1 and whose agent forwards to a listener of ours.
typedef struct followed {
    world w;
    revdial_expose x;
    lines *proxy, *agent;
    int target;
    char at[80], to[32];
} followed;

static void followed_init(followed *f, int access_log, int level)
{
    int port = 0;
    world_init(&f->w);
    f->target = raw_listen(16, &port);
    snprintf(f->to, sizeof f->to, "127.0.0.1:%d", port);
    memset(&f->x, 0, sizeof f->x);
    f->x.listen = "127.0.0.1:0";
    f->x.name = "cam-1";
    f->w.pcfg.exposes = &f->x;
    f->w.pcfg.expose_count = 1;
    f->w.acfg.handler = NULL;
    f->w.acfg.default_target = f->to;
    f->proxy = lines_new(&f->w.pcfg.common, level);
    f->agent = lines_new(&f->w.acfg.common, level);
    f->w.pcfg.common.log = f->w.acfg.common.log = lines_add;
    f->w.pcfg.common.access_log = f->w.acfg.common.access_log = access_log;
}

static int followed_start(followed *f)
{
    return world_open(&f->w) && revdial_proxy_address(f->w.proxy, 1, f->at, sizeof f->at) > 0;
}

static int followed_open(followed *f, int access_log, int level)
{
    followed_init(f, access_log, level);
    return followed_start(f);
}

static void followed_close(followed *f)
{
    world_close(&f->w);
    close(f->target);
    free(f->proxy);
    free(f->agent);
}

// A client that says and hears five bytes. Returns its port.
static int followed_client(followed *f)
{
    char buf[8];
    struct sockaddr_in me = {0};
    socklen_t len = sizeof me;
    int c = raw_connect(f->at), t;
    CHECK(raw_say(c, "hello"));
    t = raw_accept(f->target);
    CHECK(raw_read_all(t, buf, 5) && raw_say(t, "world!") && raw_read_all(c, buf, 6));
    CHECK_INT(getsockname(c, (struct sockaddr *)&me, &len), 0);
    shutdown(c, SHUT_WR);
    CHECK_INT(raw_read(t, buf, 1), 0);
    close(t);
    CHECK_INT(raw_read(c, buf, 1), 0);
    close(c);
    return ntohs(me.sin_port);
}

TEST(a_client_is_followed_by_its_ids_through_both_logs)
{
    followed f;
    line up[2], open[2], end[2];
    char a[256], b[256], client[32];
    if (followed_open(&f, 1, REVDIAL_LOG_INFO)) {
        snprintf(client, sizeof client, "127.0.0.1:%d", followed_client(&f));
        for (int i = 0; i < 2; i++) {
            lines *l = i ? f.agent : f.proxy;
            REQUIRE(lines_await(l, "session.up", "", &up[i]));
            REQUIRE(lines_await(l, "stream.open", client, &open[i]));
            REQUIRE(lines_await(l, "stream.end", client, &end[i]));
            CHECK_INT(open[i].level, REVDIAL_LOG_INFO);
            CHECK_STR(field(&open[i], "session", a), field(&up[i], "session", b));
            CHECK_STR(field(&end[i], "session", a), b);
            CHECK_STR(field(&end[i], "dial", a), field(&open[i], "dial", b));
            CHECK_STR(field(&end[i], "name", a), "cam-1");
            CHECK_STR(field(&end[i], "client", a), client);
            CHECK_STR(field(&end[i], "to_target_bytes", a), "5");
            CHECK_STR(field(&end[i], "to_client_bytes", a), "6");
            CHECK_STR(field(&end[i], "reason", a), "EOF");
            CHECK(strspn(field(&end[i], "duration_ms", a), "0123456789") == strlen(a));
        }
        CHECK_STR(field(&end[0], "dial", a), field(&end[1], "dial", b));
        CHECK_STR(field(&end[0], "session", a), field(&end[1], "session", b));
        CHECK_INT(strlen(a), 16);
        CHECK_STR(field(&end[1], "target", a), f.to);
        CHECK_STR(field(&end[0], "listen", a), f.at);
    }
    followed_close(&f);
}

// ud: a traceparent
static int traced_route(void *ud, revdial_route *r)
{
    r->pairs[0] = (revdial_kv){"other", "of the client"};
    r->pairs[1] = (revdial_kv){"traceparent", ud};
    r->dial.meta = r->pairs;
    r->dial.meta_count = 2;
    return r->len ? REVDIAL_ROUTE_DIAL : REVDIAL_ROUTE_MORE;
}

TEST(the_traceparent_of_a_dial_is_in_the_lines_about_it_in_both_logs)
{
    static char trace[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    static const char *const events[] = {"stream.open", "stream.end"};
    followed f;
    line at;
    char a[256];
    followed_init(&f, 1, REVDIAL_LOG_INFO);
    f.x.route = traced_route;
    f.x.route_ud = trace;
    if (followed_start(&f)) {
        followed_client(&f);
        for (int i = 0; i < 4; i++) {
            REQUIRE(lines_await(i < 2 ? f.agent : f.proxy, events[i % 2], "", &at));
            CHECK_STR(field(&at, "traceparent", a), trace);
            CHECK(strstr(at.msg, "of the client") == NULL);
        }
    }
    followed_close(&f);
}

TEST(clients_are_logged_for_debugging_unless_an_access_log_is_asked_for)
{
    for (int level = REVDIAL_LOG_INFO; level <= REVDIAL_LOG_DEBUG; level++) {
        followed f;
        if (followed_open(&f, 0, level)) followed_client(&f);
        revdial_proxy_drain(f.w.proxy, UTIL_WAIT_MS);
        for (int i = 0; i < 2; i++) {
            int n = lines_find(i ? f.agent : f.proxy, "stream.open", "", NULL);
            CHECK_INT(n, level == REVDIAL_LOG_DEBUG);
        }
        followed_close(&f);
    }
}

TEST(a_dial_that_fails_has_one_id_in_both_logs)
{
    followed f;
    line of[2];
    char a[256], b[256], junk[8];
    if (followed_open(&f, 0, 0)) {
        close(f.target);
        int c = raw_connect(f.at);
        CHECK(raw_read(c, junk, 1) < 0);
        REQUIRE(lines_await(f.proxy, "dial.failed", "", &of[0]));
        REQUIRE(lines_await(f.agent, "stream.refused", "", &of[1]));
        CHECK_STR(field(&of[0], "dial", a), field(&of[1], "dial", b));
        CHECK_STR(field(&of[0], "session", a), field(&of[1], "session", b));
        CHECK_STR(field(&of[0], "client", a), field(&of[1], "client", b));
        CHECK_STR(field(&of[1], "target", a), f.to);
        close(c);
        f.target = -1;
    }
    followed_close(&f);
}

TEST(a_refused_backend_is_named_with_what_it_proved)
{
    static const struct {
        const char *name, *token, *identity, *reason;
    } cases[] = {{"cam-7", "wrong", "", "wrong"},
                 {"door-8", "s3cret", "alice", "not allowed"},
                 {"cam-9", "s3cret", "alice", "max_sessions_per_identity"}};
    static const revdial_credential row = {"s3cret", "alice", "cam-*", 0};
    world w;
    line l;
    char buf[1024], got[256];
    world_init(&w);
    w.pcfg.credentials = &row;
    w.pcfg.max_sessions_per_identity = 1;
    lines *log = lines_new(&w.pcfg.common, 0);
    w.pcfg.common.log = lines_add;
    if (world_open_proxy(&w)) {
        int holder = raw_connect(w.address);
        raw_request(buf, sizeof buf, "cam-1", "s3cret", "");
        CHECK(raw_say(holder, buf) && raw_head(holder, buf, sizeof buf));
        for (int i = 0; i < 3; i++) {
            int fd = raw_connect(w.address);
            raw_request(buf, sizeof buf, cases[i].name, cases[i].token,
                        "Revdial-Instance: here\r\n");
            CHECK(raw_say(fd, buf) && raw_head(fd, buf, sizeof buf));
            REQUIRE(lines_await(log, "session.refused", cases[i].name, &l));
            CHECK_INT(l.level, REVDIAL_LOG_WARN);
            CHECK_STR(field(&l, "name", got), cases[i].name);
            CHECK_STR(field(&l, "instance", got), "here");
            if (!field_of(l.msg, "identity", got, sizeof got)) got[0] = '\0';
            CHECK_STR(got, cases[i].identity);
            CHECK(strstr(field(&l, "reason", got), cases[i].reason) != NULL);
            close(fd);
        }
        close(holder);
    }
    world_close(&w);
    free(log);
}

TEST(what_a_dialler_asks_for_is_escaped)
{
    static const char bad[] = "unix:/x reason=ok\nLOG 1 session.up\033[31m\xc2\x9b\x9b\"";
    static const char sig[] = "\r\n\r\n\0\r\nQUIT\n";
    uint8_t preamble[128];
    char head[2048], got[256];
    world w;
    line l;
    int port = 0, listener = raw_listen(4, &port);
    size_t len = sizeof bad - 1;
    world_init(&w);
    lines *log = lines_new(&w.acfg.common, REVDIAL_LOG_DEBUG);
    w.acfg.common.log = lines_add;
    w.acfg.handler = NULL;
    w.acfg.default_target = "127.0.0.1:9";
    snprintf(w.url, sizeof w.url, "http://127.0.0.1:%d", port);
    w.acfg.url = w.url;
    w.agents[0] = revdial_agent_start(&w.acfg, NULL);
    int fd = raw_proxy_accept(listener, head, sizeof head);
    raw_say(fd, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: revdial\r\n"
                "Revdial-Version: 1\r\nRevdial-Session: 00c0ffee12345678\r\n"
                "Revdial-Features: rstcode, preamble, promptack\r\n\r\n");
    memcpy(preamble, sig, 12);
    memcpy(preamble + 12, "\x20\0\0", 3);
    preamble[15] = (uint8_t)(len + 3);
    memcpy(preamble + 16, "\x02\0", 2);
    preamble[18] = (uint8_t)len;
    memcpy(preamble + 19, bad, len);
    CHECK(raw_frame_send(fd, RAW_WINDOW, RAW_SYN, 1, 0));
    CHECK(raw_frame_send(fd, RAW_DATA, 0, 1, (uint32_t)(19 + len)));
    CHECK(raw_send(fd, preamble, 19 + len));
    if (lines_await(log, "stream.refused", "target=", &l)) {
        for (const char *at = l.msg; *at; at++) CHECK(*at >= ' ' && *at < 0x7F);
        CHECK(strncmp(field(&l, "target", got), bad, 39) == 0);
        CHECK_STR(field(&l, "session", got), "00c0ffee12345678");
        CHECK_STR(field(&l, "dial", got), "00c0ffee12345678.1");
        CHECK(strcmp(field(&l, "reason", got), "ok") != 0);
    }
    close(fd);
    close(listener);
    world_close(&w);
    free(log);
}

// ------------------------------------------------------------------------------------------------
// How much there is

// Lines of the event, and those that were suppressed.
static int lines_counted(lines *l, const char *event, int *logged)
{
    int suppressed = 0;
    char got[64];
    *logged = lines_find(l, event, "", NULL);
    pthread_mutex_lock(&l->lock);
    for (int i = 0; i < l->count; i++) {
        const char *msg = l->all[i].msg;
        if (strcmp(l->all[i].event, "log.suppressed") != 0) continue;
        if (!field_of(msg, "suppressed", got, sizeof got) || strcmp(got, event) != 0) continue;
        if (field_of(msg, "suppressed_count", got, sizeof got)) suppressed += atoi(got);
    }
    pthread_mutex_unlock(&l->lock);
    return *logged + suppressed;
}

TEST(who_registers_again_and_again_does_not_fill_the_log)
{
    enum { TIMES = 200 };
    world w;
    int logged;
    world_init(&w);
    lines *log = lines_new(&w.pcfg.common, 0);
    w.pcfg.common.log = lines_add;
    if (world_open_proxy(&w)) {
        int64_t began = util_now_ms();
        for (int i = 0; i < TIMES; i++)
            close(raw_backend(w.address, "cam-1", "Revdial-Instance: here\r\n"));
        CHECK_INT(lines_counted(log, "session.up", &logged) > 0, 1);
        CHECK(logged <= 50 + 10 * ((util_now_ms() - began) / 1000 + 1));
        UTIL_EVENTUALLY(lines_counted(log, "session.up", &logged) == TIMES);
    }
    world_close(&w);
    CHECK_INT(lines_counted(log, "session.down", &logged), TIMES);
    free(log);
}

TEST(refused_streams_do_not_fill_the_log_and_what_is_left_out_is_counted)
{
    enum { TIMES = 300 };
    followed f;
    int logged;
    if (followed_open(&f, 0, 0)) {
        int64_t began = util_now_ms();
        for (int i = 0; i < TIMES; i++) {
            revdial_dial_opts opts = {.target = "10.1.2.3:80"};
            revdial_err err = {0};
            CHECK(!revdial_dial(f.w.proxy, "cam-1", &opts, &err));
            CHECK_INT(err.code, REVDIAL_EDENIED);
        }
        lines_counted(f.agent, "stream.refused", &logged);
        CHECK(logged >= 20 && logged <= 20 + 5 * ((util_now_ms() - began) / 1000 + 1));
        UTIL_EVENTUALLY(lines_counted(f.agent, "stream.refused", &logged) == TIMES);
        CHECK_INT(lines_find(f.proxy, "dial.failed", "", NULL), 0);  // the application was told
    }
    followed_close(&f);
}

TEST(health_checks_are_no_warnings)
{
    static const struct {
        const char *said;
        int level;
    } cases[] = {{"", REVDIAL_LOG_DEBUG},
                 {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", REVDIAL_LOG_DEBUG},
                 {"GET /revdial HTTP/1.1\r\nHost: x\r\n\r\n", REVDIAL_LOG_DEBUG},
                 {"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", REVDIAL_LOG_DEBUG},
                 {"OPTIONS / HTTP/1.0\r\n\r\n", REVDIAL_LOG_DEBUG},
                 {"GET /revdial HTTP/1.0\r\nRevdial-Name: cam-1\r\n\r\n", REVDIAL_LOG_WARN},
                 {"GET /other HTTP/1.1\r\nHost: x\r\nRevdial-Version: 1\r\n\r\n", REVDIAL_LOG_WARN},
                 {"GET /other HTTP/1.1\r\nHost: x\r\nUpgrade: revdial\r\n\r\n", REVDIAL_LOG_WARN},
                 {"\x16\x03\x01", REVDIAL_LOG_WARN},
                 {"G", REVDIAL_LOG_WARN}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int with_reset = 0; with_reset < 2; with_reset++) {
            world w;
            line l = {0};
            int is_answered = strlen(cases[i].said) > 1;
            if (with_reset && cases[i].said[0] && !is_answered) continue;  // it may never be read
            world_init(&w);
            lines *log = lines_new(&w.pcfg.common, REVDIAL_LOG_DEBUG);
            w.pcfg.common.log = lines_add;
            if (world_open_proxy(&w)) {
                int fd = raw_connect(w.address);
                CHECK(raw_say(fd, cases[i].said));
                if (is_answered) lines_await(log, "session.refused", "", NULL);
                if (with_reset)
                    raw_close_reset(fd);
                else
                    close(fd);
                if (lines_await(log, "session.refused", "", &l) && l.level != cases[i].level)
                    test_fail(__FILE__, __LINE__, "%s: %d: %s", cases[i].said, l.level, l.msg);
            }
            world_close(&w);
            free(log);
        }
    }
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
