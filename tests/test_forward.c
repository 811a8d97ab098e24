// Which targets an agent connects to, and how it forwards streams to them.
#include "runtime_util.h"

// ------------------------------------------------------------------------------------------------
// Targets

static const char *const nets[] = {"10.0.0.0/8:80-90",
                                   "[fd00::]/8:*",
                                   "192.168.1.5:443",
                                   "*.svc.local:443",
                                   "unix:/run/x",
                                   "db.example:5432",
                                   NULL};
static const char *const names[] = {"*:*", NULL};
static const char *const loopback[] = {"127.0.0.1:22", NULL};
static const char *const everything[] = {"0.0.0.0/0:*", "[::]/0:*", NULL};
static const struct {
    const char *const *allow;
    const char *target;
    int want;
} allow_rows[] = {
    {nets, "10.1.2.3:80", 1},
    {nets, "10.1.2.3:90", 1},
    {nets, "10.1.2.3:91", 0},
    {nets, "10.1.2.3:79", 0},
    {nets, "11.0.0.1:80", 0},
    {nets, "[::ffff:10.1.2.3]:80", 1},
    {nets, "[fd12::1]:9", 1},
    {nets, "[fe80::1]:9", 0},
    {nets, "[fc00::1]:9", 0},
    {nets, "192.168.1.5:443", 1},
    {nets, "192.168.1.5:80", 0},
    {nets, "192.168.1.6:443", 0},
    {nets, "a.svc.local:443", 1},
    {nets, "A.SVC.LOCAL:443", 1},
    {nets, "a.svc.local.:443", 1},
    {nets, "svc.local:443", 0},
    {nets, "a.svc.local.evil:443", 0},
    {nets, "a.svc.local:80", 0},
    {nets, "db.example:5432", 1},
    {nets, "db.example:5433", 0},
    {nets, "xdb.example:5432", 0},
    {nets, "unix:/run/x", 1},
    {nets, "unix:/run/y", 0},
    {nets, "unix:/run/x/", 0},
    {nets, "unix:/run/../run/x", 0},
    {nets, "/run/x", 0},
    {loopback, "127.0.0.1:22", 1},
    {loopback, "127.1:22", 0},
    {loopback, "0x7f000001:22", 0},
    {loopback, "2130706433:22", 0},
    {loopback, "0177.0.0.1:22", 0},
    {loopback, "127.0.0.1:022", 0},
    {loopback, "[::ffff:127.0.0.1]:22", 1},
    {loopback, "[::1]:22", 0},
    {loopback, "localhost:22", 0},
    {loopback, "localhost.:22", 0},
    {loopback, "127.0.0.1:0", 0},
    {loopback, "127.0.0.1:65536", 0},
    {loopback, "127.0.0.1:-1", 0},
    {loopback, "127.0.0.1", 0},
    {loopback, "", 0},
    {loopback, ":22", 0},
    {loopback, "127.0.0.1:22 ", 0},
    {loopback, " 127.0.0.1:22", 0},
    {loopback, "0.0.0.0:22", 0},
    {loopback, "[::]:22", 0},
    {loopback, "127.0.0.2:22", 0},
    {loopback, "169.254.169.254:80", 0},
    {names, "any.host:1", 1},
    {names, "10.0.0.1:80", 0},
    {names, "[::1]:80", 0},
    {names, "unix:/run/x", 0},
    {everything, "8.8.8.8:53", 1},
    {everything, "[2001:db8::1]:53", 1},
    {everything, "any.host:53", 0},
    {everything, "unix:/run/x", 0},
    {NULL, "10.1.2.3:80", 0},
};

TEST(X1_the_allow_list_matches_what_it_names_and_no_spelling_of_anything_else)
{
    for (size_t i = 0; i < sizeof allow_rows / sizeof *allow_rows; i++)
        if (revdial_target_allowed(allow_rows[i].allow, allow_rows[i].target) != allow_rows[i].want)
            test_fail(__FILE__, __LINE__, "%s with %s...: not %d", allow_rows[i].target,
                      allow_rows[i].allow ? allow_rows[i].allow[0] : "nothing", allow_rows[i].want);
    CHECK_INT(revdial_target_allowed(nets, NULL), 0);
}

TEST(a_rule_that_can_match_nothing_is_refused_and_shows_the_right_form)
{
    static const char *const rows[][3] = {
        // the rule, what it looks like, what the message shows
        {"10.0.0.*:80", "10.0.0.5:80", "10.0.0.0/24:80"},
        {"10.0.0.*:80", "10.0.0.evil.example:80", "10.0.0.0/24:80"},
        {"192.168.*.*:22", "192.168.1.attacker.example:22", "10.0.0.0/24:80"},
        {"10.*:80", "10.evil.example:80", "10.0.0.0/24:80"},
        {"10.0.0/8:80", "10.0.0.1:80", "10.0.0.0/8:80"},
        {"10.0.0.256/8:80", "10.0.0.1:80", "10.0.0.0/8:80"},
        {"10.0.0.0/33:80", "10.0.0.1:80", "10.0.0.0/8:80"},
        {"10.0.0.0/255.0.0.0:80", "10.0.0.1:80", "10.0.0.0/8:80"},
        {"example.com/24:80", "example.com:80", "10.0.0.0/8:80"},
        {"*/0:80", "1.1.1.1:80", "10.0.0.0/8:80"},
        {"127.1:80", "127.0.0.1:80", "IPv4"},
        {"010.0.0.1:80", "10.0.0.1:80", "IPv4"},
        {"10.0.0.1-10.0.0.9:80", "10.0.0.3:80", "10.0.0.0/24:80"},
        {"10.0.0.1-9:80", "10.0.0.3:80", "10.0.0.0/24:80"},
        {"[::ffff:10.0.0.0]/24:80", "10.0.0.1:80", "10.0.0.0/8:80"},
        {"[zz]:80", "[::1]:80", "IPv6"},
        {"[10.0.0.1]:80", "10.0.0.1:80", "IPv6"},
        {"::1:80", "[::1]:80", "[::1]:80"},
        {"[::1]", "[::1]:80", "port"},
        {"10.0.0.0/8", "10.0.0.1:80", "10.0.0.0/8:*"},
        {"10.0.0.1 :80", "10.0.0.1:80", "letters"},
        {" 10.0.0.1:80", "10.0.0.1:80", "letters"},
        {"a[12].example:80", "a1.example:80", "letters"},
        {"!db.example:80", "db.example:80", "letters"},
        {".example.com:80", "a.example.com:80", "*.example.com:80"},
        {"a..b:80", "a.b:80", "dots"},
        {"a.1:80", "a.1:80", "number"},
        {"http://db.example:80", "db.example:80", "scheme"},
        {"db.example:http", "db.example:80", "80-90"},
        {"db.example:80,443", "db.example:80", "80-90"},
        {"127.0.0.1:22,10.0.0.0/8:80", "127.0.0.1:22", "comma"},
        {"db.example:90-80", "db.example:80", "80-90"},
        {"db.example:0", "db.example:80", "*"},
        {"unix:/run/*", "unix:/run/a", "in full"},
        {"unix:/run/", "unix:/run/a", "directory"},
        {"unix:run/a", "unix:/run/a", "/"},
        {"", "db.example:80", "port"},
    };
    static const char *const good[][2] = {
        {"DB.Example:80", "db.example:80"}, {"db.example.:80", "db.example:80"},
        {"10.0.0.5/8:80", "10.0.0.1:80"},   {"[::ffff:10.0.0.0]/104:80", "10.1.1.1:80"},
        {"[fd00::/8]:80", "[fd00::1]:80"},  {"0.0.0.0/0:80", "1.1.1.1:80"},
        {"*:80-81", "db.example:81"},       {"10-*.example:80", "10-0-0-1.example:80"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *allow[2] = {rows[i][0], NULL};
        const char *problem = revdial_allow_problem(rows[i][0]);
        if (!problem || !strstr(problem, rows[i][2]))
            test_fail(__FILE__, __LINE__, "\"%s\": %s", rows[i][0], problem ? problem : "taken");
        if (revdial_target_allowed(allow, rows[i][1]))
            test_fail(__FILE__, __LINE__, "\"%s\" lets %s through", rows[i][0], rows[i][1]);
    }
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        const char *allow[2] = {good[i][0], NULL};
        const char *problem = revdial_allow_problem(good[i][0]);
        if (problem) test_fail(__FILE__, __LINE__, "\"%s\": %s", good[i][0], problem);
        if (!revdial_target_allowed(allow, good[i][1]))
            test_fail(__FILE__, __LINE__, "\"%s\" does not allow %s", good[i][0], good[i][1]);
    }
}

static const char *const loopback_allowed[] = {"127.0.0.1:*", "nosuch.invalid:*", "loop.test:*",
                                               "two.test:*",  "*.test:*",         "slow.test:*",
                                               NULL};

static int open_forwarder(world *w)
{
    w->acfg.handler = NULL;
    if (!w->acfg.allow) w->acfg.allow = loopback_allowed;
    return world_open(w);
}

static revdial_stream *dial_target(world *w, const char *target, revdial_err *err)
{
    revdial_dial_opts opts = {.target = target};
    return revdial_dial(w->proxy, "cam-1", &opts, err);
}

static int dial_port(world *w, int port, revdial_stream **st)
{
    char target[32];
    snprintf(target, sizeof target, "127.0.0.1:%d", port);
    revdial_err err = {0};
    *st = dial_target(w, target, &err);
    return *st ? 1 : test_fail(__FILE__, __LINE__, "%s: %s", target, err.msg);
}

// The port of a target that is down may be among those that the system gives to outgoing
// connections, and then to this very one.
TEST(a_connection_to_itself_counts_as_refused_and_leaves_the_port_free)
{
    world w;
    int port = raw_quiet_port();
    char target[32];
    revdial_err err = {0};
    snprintf(target, sizeof target, "127.0.0.1:%d", port);
    world_init(&w);
    if (open_forwarder(&w)) {
        atomic_store(&util_connects_to_itself, 1);
        CHECK(dial_target(&w, target, &err) == NULL);
        CHECK_INT(err.reset, REVDIAL_RESET_CONNECT_REFUSED);
        CHECK_INT(atomic_load(&util_connects_to_itself), 0);
        int listener = raw_listen(1, &port);  // the target finds its port free
        CHECK(listener >= 0);
        close(listener);
    }
    world_close(&w);
}

TEST(an_agent_without_a_handler_forwards_to_targets_with_half_close)
{
    world w;
    int port = 0, listener = raw_listen(4, &port);
    char buf[16];
    revdial_stream *st;
    world_init(&w);
    if (open_forwarder(&w) && dial_port(&w, port, &st)) {
        int fd = raw_accept(listener);
        CHECK_INT(revdial_write(st, "request", 7), 7);
        revdial_shutdown(st, REVDIAL_WR);
        CHECK(raw_read_all(fd, buf, 7) && memcmp(buf, "request", 7) == 0);
        CHECK_INT(raw_read(fd, buf, 1), 0);
        raw_say(fd, "response");
        close(fd);
        CHECK_INT(util_read_all(st, buf, 8), 8);
        CHECK(memcmp(buf, "response", 8) == 0);
        CHECK_INT(revdial_read(st, buf, 1), 0);
        revdial_close(st);
    }
    close(listener);
    world_close(&w);
}

typedef struct judge {
    world *w;
    char target[80];  // what "swap" becomes
    char asked[80], client[80], why[80];
    atomic_int calls;
} judge;

static int judge_target(void *ud, revdial_target_request *r)
{
    judge *j = ud;
    const char *why = revdial_stream_meta(r->stream, "why");
    revdial_session_info info;
    revdial_session_get_info(r->session, &info);
    CHECK_STR(info.name, "cam-1");
    snprintf(j->asked, sizeof j->asked, "%s", r->asked ? r->asked : "none");
    snprintf(j->client, sizeof j->client, "%s", r->client ? r->client : "none");
    snprintf(j->why, sizeof j->why, "%s", why ? why : "none");
    atomic_fetch_add(&j->calls, 1);
    if (r->asked && strcmp(r->asked, "refused.test:80") == 0) return REVDIAL_RESET_FORBIDDEN;
    if (r->asked && strcmp(r->asked, "odd.test:80") == 0) return 77;
    if (r->asked && strcmp(r->asked, "nonsense.test:80") == 0) return -1;
    if (r->asked && strcmp(r->asked, "outside.test:80") == 0) r->target = "10.0.0.1:80";
    if (r->asked && strcmp(r->asked, "broken.test:80") == 0) r->target = "no address";
    if (r->asked && strcmp(r->asked, "nothing.test:80") == 0) r->target = NULL;
    if (!r->asked || strcmp(r->asked, "swap.test:80") == 0) {
        snprintf(r->text, sizeof r->text, "%s", j->target);
        r->target = r->text;
    }
    return 0;
}

TEST(an_application_refuses_or_replaces_a_target_before_the_rules_see_it)
{
    static const revdial_kv meta[] = {{"why", "because"}};
    static const struct {
        const char *target;
        int code, reset;
    } rows[] = {
        {"refused.test:80", REVDIAL_EDENIED, REVDIAL_RESET_FORBIDDEN},
        {"odd.test:80", REVDIAL_EREFUSED, 77},
        {"nonsense.test:80", REVDIAL_EDENIED, REVDIAL_RESET_FORBIDDEN},
        {"outside.test:80", REVDIAL_EDENIED, REVDIAL_RESET_FORBIDDEN},
        {"broken.test:80", REVDIAL_EDENIED, REVDIAL_RESET_FORBIDDEN},
        {"nothing.test:80", REVDIAL_EDENIED, REVDIAL_RESET_FORBIDDEN},
        {"swap.test:80", 0, 0},
        {NULL, 0, 0},
    };
    static judge j;
    int port = 0, listener = raw_listen(4, &port);
    world w;
    world_init(&w);
    memset(&j, 0, sizeof j);
    snprintf(j.target, sizeof j.target, "127.0.0.1:%d", port);
    w.acfg.target_fn = judge_target;
    w.acfg.handler = NULL;
    w.acfg.ud = &j;
    w.acfg.on_state = NULL;
    w.acfg.allow = (const char *const[]){"127.0.0.1:*", NULL};
    if (CHECK(world_open(&w)))
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            revdial_dial_opts opts = {.target = rows[i].target,
                                      .client_addr = "192.0.2.7:9",
                                      .meta = meta,
                                      .meta_count = 1};
            revdial_err err = {0};
            revdial_stream *st = revdial_dial(w.proxy, "cam-1", &opts, &err);
            if (err.code != rows[i].code || err.reset != rows[i].reset)
                test_fail(__FILE__, __LINE__, "%s: %d, reset %d: %s",
                          rows[i].target ? rows[i].target : "none", err.code, err.reset, err.msg);
            CHECK_STR(j.asked, rows[i].target ? rows[i].target : "none");
            CHECK_STR(j.client, "192.0.2.7:9");
            CHECK_STR(j.why, "because");
            CHECK_INT(atomic_load(&j.calls), (int)i + 1);
            if (st) close(raw_accept(listener));
            revdial_close(st);
        }
    close(listener);
    world_close(&w);
}

// Answers about the stream whose dial id is in the metadata.
static void tell_stream(void *ud, revdial_stream *st)
{
    revdial_session *s = revdial_stream_session(st);
    revdial_stream_info info;
    char text[400];
    int fd, found = revdial_session_find_stream(s, revdial_stream_meta(st, "about"), &info);
    snprintf(text, sizeof text, "%d %s %d", found, info.dial, info.is_dialled);
    CHECK(ud != NULL);
    fd = revdial_stream_fd(st);
    if (CHECK(fd >= 0)) {
        CHECK_INT(write(fd, text, strlen(text)), (ptrdiff_t)strlen(text));
        close(fd);
    } else {
        revdial_close(st);
    }
    revdial_session_unref(s);
}

static int judge_taker(void *ud, revdial_target_request *r)
{
    (void)ud;
    CHECK_INT(r->proxy_protocol, 0);
    CHECK_INT(r->connect_timeout_ms, 1234);
    if (strcmp(r->asked, "tell.test:1") == 0) r->take = tell_stream;
    if (strcmp(r->asked, "refused.test:1") == 0) r->take = tell_stream;
    if (strcmp(r->asked, "nonsense.test:1") == 0) r->proxy_protocol = 3;
    if (strncmp(r->asked, "127.0.0.1:", 10) == 0) r->proxy_protocol = 1;
    return strcmp(r->asked, "refused.test:1") == 0 ? REVDIAL_RESET_REFUSED : 0;
}

static void expect_told(world *w, const char *about, const char *want)
{
    const revdial_kv meta[] = {{"about", about}};
    revdial_dial_opts opts = {.target = "tell.test:1", .meta = meta, .meta_count = 1};
    revdial_stream *st = revdial_dial(w->proxy, "cam-1", &opts, NULL);
    char got[128] = "";
    if (!CHECK(st != NULL)) return;
    CHECK_INT(util_read_all(st, got, strlen(want)), (ptrdiff_t)strlen(want));
    CHECK_STR(got, want);
    CHECK_INT(revdial_read(st, got, 1), 0);
    revdial_close(st);
}

TEST(an_application_takes_a_stream_in_place_of_a_target_or_says_how_that_is_served)
{
    int port = 0, listener = raw_listen(4, &port);
    char to[32], buf[64] = "", want[128];
    revdial_dial_opts opts = {
        .target = to, .client_addr = "192.0.2.7:9", .local_addr = "192.0.2.8:80"};
    revdial_session *s = NULL;
    revdial_stream_info info;
    revdial_err err;
    world w;
    world_init(&w);
    snprintf(to, sizeof to, "127.0.0.1:%d", port);
    w.acfg.target_fn = judge_taker;
    w.acfg.handler = NULL;
    w.acfg.connect_timeout_ms = 1234;
    w.acfg.allow = (const char *const[]){"127.0.0.1:*", NULL};
    if (CHECK(world_open(&w))) {
        revdial_stream *st = revdial_dial(w.proxy, "cam-1", &opts, &err);
        REQUIRE(st != NULL);
        int fd = raw_accept(listener);
        static const char header[] = "PROXY TCP4 192.0.2.7 192.0.2.8 9 80\r\n";
        CHECK(raw_read_all(fd, buf, sizeof header - 1));
        CHECK_STR(buf, header);
        REQUIRE(revdial_proxy_list(w.proxy, "cam-1", &s, 1) == 1);
        REQUIRE(revdial_session_list_streams(s, 0, &info, 1) == 1);
        snprintf(want, sizeof want, "0 %s 0", info.dial);  // the other end of the same
        expect_told(&w, info.dial, want);
        CHECK_INT(revdial_session_find_stream(s, info.dial, &info), 0);
        CHECK_INT(info.is_dialled, 1);
        CHECK_INT(revdial_session_find_stream(s, "0.1", &info), REVDIAL_EINVAL);
        expect_told(&w, "nobody's", "-16  0");
        opts.target = "nonsense.test:1";
        CHECK(revdial_dial(w.proxy, "cam-1", &opts, &err) == NULL);
        CHECK_INT(err.reset, REVDIAL_RESET_INTERNAL);
        opts.target = "refused.test:1";
        CHECK(revdial_dial(w.proxy, "cam-1", &opts, &err) == NULL);
        CHECK_INT(err.reset, REVDIAL_RESET_REFUSED);
        revdial_session_unref(s);
        revdial_close(st);
        close(fd);
    }
    close(listener);
    world_close(&w);
}

TEST(F21_a_target_that_resets_resets_the_stream_after_its_bytes)
{
    world w;
    int port = 0, listener = raw_listen(4, &port), reset = 0;
    char buf[16];
    revdial_stream *st;
    world_init(&w);
    if (open_forwarder(&w) && dial_port(&w, port, &st)) {
        int fd = raw_accept(listener);
        raw_say(fd, "some");
        CHECK_INT(util_read_all(st, buf, 4), 4);
        raw_close_reset(fd);
        CHECK_INT(revdial_read(st, buf, 1), REVDIAL_ERESET);
        CHECK_INT(revdial_stream_error(st, &reset), REVDIAL_ERESET);
        CHECK_INT(reset, REVDIAL_RESET_CANCEL);
        revdial_close(st);
    }
    close(listener);
    world_close(&w);
}

// As somebody else's proxy would, which does not look at the target.
static revdial_stream *dial_unchecked(world *w, const char *target, revdial_err *err)
{
    revdial_dial_opts opts = {.target = target};
    rvd_stream_dial d = {.opts = &opts, .deadline_us = INT64_MAX};
    revdial_session *s = NULL;
    if (!CHECK_INT(revdial_proxy_list(w->proxy, "cam-1", &s, 1), 1)) return NULL;
    rvd_stream_dial_blocking(s, &d);
    revdial_session_unref(s);
    rvd_stream_dial_tell(&d, "cam-1", err);
    return d.st;
}

TEST(a_dial_that_the_agent_cannot_connect_says_why_and_hurts_nobody_else)
{
    char closed[32], black[32];
    hole h;
    REQUIRE(hole_open(&h));
    snprintf(closed, sizeof closed, "127.0.0.1:%d", raw_closed_port());
    snprintf(black, sizeof black, "127.0.0.1:%d", h.port);
    const struct {
        const char *target;
        int code, reset;
    } rows[] = {
        {closed, REVDIAL_EUNREACH, REVDIAL_RESET_CONNECT_REFUSED},
        {"nosuch.invalid:80", REVDIAL_EUNREACH, REVDIAL_RESET_NO_SUCH_HOST},
        {"127.0.0.2:80", REVDIAL_EDENIED, REVDIAL_RESET_FORBIDDEN},
        {"10.0.0.1:80", REVDIAL_EDENIED, REVDIAL_RESET_FORBIDDEN},
        {"127.1:80", REVDIAL_EDENIED, REVDIAL_RESET_FORBIDDEN},
        {"unix:/run/x", REVDIAL_EDENIED, REVDIAL_RESET_FORBIDDEN},
        {"nonsense", REVDIAL_EDENIED, REVDIAL_RESET_FORBIDDEN},
        {NULL, REVDIAL_EDENIED, REVDIAL_RESET_FORBIDDEN},  // there is no default
        {black, REVDIAL_EUNREACH, REVDIAL_RESET_CONNECT_TIMEOUT},
    };
    world w;
    int port = 0, listener = raw_listen(4, &port);
    revdial_stream *other, *st;
    char buf[4];
    world_init(&w);
    w.acfg.connect_timeout_ms = 60;
    if (open_forwarder(&w) && dial_port(&w, port, &other)) {
        int fd = raw_accept(listener);
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            revdial_err err = {0};
            st = dial_unchecked(&w, rows[i].target, &err);
            if (st || err.code != rows[i].code || err.reset != rows[i].reset)
                test_fail(__FILE__, __LINE__, "%s: %d, reset %d: %s", rows[i].target, err.code,
                          err.reset, err.msg);
            revdial_close(st);
        }
        CHECK_INT(revdial_write(other, "ping", 4), 4);
        CHECK(raw_read_all(fd, buf, 4));
        revdial_close(other);
        close(fd);
    }
    close(listener);
    world_close(&w);
    hole_close(&h);
}

// The reasons of the last stream that was refused.
typedef struct refusal {
    pthread_mutex_t lock;
    char text[600];  // guarded by lock
    util_gate count;
} refusal;

static void on_refusal(void *ud, int level, const char *event, const char *msg)
{
    refusal *r = ud;
    (void)level;
    if (strcmp(event, "stream.refused") != 0) return;
    pthread_mutex_lock(&r->lock);
    snprintf(r->text, sizeof r->text, "%s", msg);
    pthread_mutex_unlock(&r->lock);
    util_gate_add(&r->count, 1);
}

TEST(the_agents_log_says_why_a_target_is_not_connected_to_and_a_dialler_that_it_named_none)
{
    static const char *const wild[] = {"*.test:80", "10.0.0.0/8:80", NULL};
    static const struct {
        const char *target, *logged, *told;
    } rows[] = {
        {NULL, "no target was asked for, and there is no default", "no target was named"},
        {"loop.test:80", "the name leads to 127.0.0.1:80, which no rule allows", "allow list"},
        {"127.0.0.1:80", "allow list", "allow list"},
    };
    refusal r = {.lock = PTHREAD_MUTEX_INITIALIZER, .count = UTIL_GATE};
    world w;
    world_init(&w);
    w.acfg.allow = wild;
    w.acfg.common.log = on_refusal;
    w.acfg.common.log_ud = &r;
    if (open_forwarder(&w)) {
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            revdial_err err = {0};
            CHECK(dial_unchecked(&w, rows[i].target, &err) == NULL);
            CHECK_INT(err.reset, REVDIAL_RESET_FORBIDDEN);
            CHECK(util_gate_wait(&r.count, (int)i + 1));
            pthread_mutex_lock(&r.lock);
            if (!strstr(r.text, rows[i].logged) || !strstr(err.msg, rows[i].told))
                test_fail(__FILE__, __LINE__, "row %zu: %s; %s", i, r.text, err.msg);
            pthread_mutex_unlock(&r.lock);
        }
    }
    world_close(&w);
}

static int service_fn(void *ud, revdial_target_request *r)
{
    r->target = revdial_stream_meta(r->stream, "service");
    (void)ud;
    return 0;
}

TEST(a_target_fn_that_leaves_no_target_or_a_malformed_one_has_the_stream_refused)
{
    static const char *const rows[][2] = {{NULL, "target_fn named no target"},
                                          {"printer", "the port is missing"},
                                          {"10.0.0.1:80", "allow list"}};
    refusal r = {.lock = PTHREAD_MUTEX_INITIALIZER, .count = UTIL_GATE};
    world w;
    world_init(&w);
    w.acfg.target_fn = service_fn;
    w.acfg.default_target = "127.0.0.1:1";
    w.acfg.common.log = on_refusal;
    w.acfg.common.log_ud = &r;
    for (int i = 0, is_open = open_forwarder(&w); is_open && i < 3; i++) {
        revdial_kv service = {"service", rows[i][0]};
        revdial_dial_opts opts = {.meta = &service, .meta_count = rows[i][0] != NULL};
        revdial_err err = {0};
        CHECK(revdial_dial(w.proxy, "cam-1", &opts, &err) == NULL);
        CHECK_INT(err.reset, REVDIAL_RESET_FORBIDDEN);
        CHECK(util_gate_wait(&r.count, i + 1));
        pthread_mutex_lock(&r.lock);
        if (!strstr(r.text, rows[i][1])) test_fail(__FILE__, __LINE__, "it says %s", r.text);
        pthread_mutex_unlock(&r.lock);
    }
    world_close(&w);
}

TEST(a_name_is_judged_by_the_address_it_resolves_to)
{
    static const char *const wild[] = {"*.test:*", NULL};
    static const char *const second[] = {"127.0.0.2:*", "nobody:1", NULL};
    world w;
    int port = 0, listener = raw_listen(4, &port);
    char target[40];
    revdial_err err = {0};
    snprintf(target, sizeof target, "loop.test:%d", port);
    world_init(&w);
    w.acfg.allow = wild;  // a rule for names does not reach loopback
    if (open_forwarder(&w)) {
        CHECK(dial_target(&w, target, &err) == NULL);
        CHECK_INT(err.reset, REVDIAL_RESET_FORBIDDEN);
    }
    world_close(&w);
    world_init(&w);
    if (open_forwarder(&w)) {  // a rule for the address does
        revdial_stream *st = dial_target(&w, target, &err);
        CHECK(st != NULL);
        revdial_close(st);
    }
    world_close(&w);
    world_init(&w);
    w.acfg.allow = second;  // of two addresses only the second may be connected to
    if (open_forwarder(&w)) {
        snprintf(target, sizeof target, "two.test:%d", port);
        CHECK(dial_target(&w, target, &err) == NULL);
        CHECK_INT(err.reset, REVDIAL_RESET_CONNECT_REFUSED);  // nobody listens there
        int fd = raw_wait(listener, POLLIN, 0) ? accept(listener, NULL, NULL) : -1;
        CHECK(fd >= 0);  // the one stream of before
        close(fd);
        CHECK(!raw_wait(listener, POLLIN, 0));
    }
    close(listener);
    world_close(&w);
}

// The same rules, for a thread that connects by itself.
TEST(a_target_that_a_program_connects_to_is_judged_as_an_agents)
{
    static const char *const wild[] = {"*.test:*", NULL}, *const second[] = {"127.0.0.2:*", NULL};
    static const char *const first[] = {"127.0.0.1:*", NULL};
    static const struct {
        const char *const *allow;
        const char *host;
        int code, reset;
    } rows[] = {{first, "127.0.0.1", 0, 0},
                {first, "loop.test", 0, 0},
                {first, "two.test", 0, 0},
                {wild, "loop.test", REVDIAL_EDENIED, REVDIAL_RESET_FORBIDDEN},
                {second, "127.0.0.1", REVDIAL_EDENIED, REVDIAL_RESET_FORBIDDEN},
                {second, "two.test", REVDIAL_EUNREACH, REVDIAL_RESET_CONNECT_REFUSED},
                {NULL, "127.0.0.1", REVDIAL_EDENIED, REVDIAL_RESET_FORBIDDEN},
                {wild, "nosuch.invalid", REVDIAL_EDENIED, REVDIAL_RESET_FORBIDDEN},
                {loopback_allowed, "nosuch.invalid", REVDIAL_EUNREACH, REVDIAL_RESET_NO_SUCH_HOST},
                {first, "nonsense:", REVDIAL_EINVAL, 0}};
    int port = 0, listener = raw_listen(8, &port);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char target[40];
        revdial_err err = {0};
        snprintf(target, sizeof target, "%s:%d", rows[i].host, port);
        int fd = revdial_target_connect(rows[i].allow, target, -1, &err);
        if (rows[i].code ? fd != rows[i].code || err.reset != rows[i].reset : fd < 0)
            test_fail(__FILE__, __LINE__, "row %zu: %d %s", i, fd, err.msg);
        if (fd >= 0) CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK && fcntl(fd, F_GETFD) & FD_CLOEXEC);
        if (fd >= 0) close(fd);
    }
    close(listener);
}

// A listener whose queue is full answers nothing.
TEST(a_target_that_answers_nothing_is_waited_for_as_long_as_was_said)
{
    static const char *const allow[] = {"127.0.0.1:*", NULL};
    int port = 0, listener = raw_listen(0, &port), fd = 0, kept[4], count = 0;
    char target[40];
    revdial_err err = {0};
    snprintf(target, sizeof target, "127.0.0.1:%d", port);
    while (count < 4 && (fd = revdial_target_connect(allow, target, 100, &err)) >= 0)
        kept[count++] = fd;
    CHECK_INT(fd, REVDIAL_EUNREACH);
    CHECK_INT(err.reset, REVDIAL_RESET_CONNECT_TIMEOUT);
    while (count > 0) close(kept[--count]);
    close(listener);
}

// What is judged is what is connected to: the name is asked for once, and a name server that then
// answers otherwise changes nothing.
TEST(X1_a_name_that_is_redirected_between_check_and_use_leads_nowhere_else)
{
    static const char *const other[] = {"127.0.0.2:*", NULL};
    static const char *const wild[] = {"*.test:*", "127.0.0.2:*", NULL};
    for (int i = 0; i < 2; i++) {
        world w;
        int port = 0, listener = raw_listen(4, &port);
        char target[40];
        revdial_err err = {0};
        snprintf(target, sizeof target, "rebind.test:%d", port);
        atomic_store(&util_rebind_asked, 0);
        world_init(&w);
        w.acfg.allow = i ? wild : other;
        if (open_forwarder(&w)) {
            CHECK(dial_target(&w, target, &err) == NULL);
            CHECK_INT(err.reset, REVDIAL_RESET_CONNECT_REFUSED);  // at 127.0.0.2
            CHECK_INT(atomic_load(&util_rebind_asked), 1);
            CHECK(dial_target(&w, target, &err) == NULL);
            CHECK_INT(err.reset, REVDIAL_RESET_FORBIDDEN);  // 127.0.0.1
            CHECK_INT(atomic_load(&util_rebind_asked), 2);
            CHECK(!raw_wait(listener, POLLIN, 0));
        }
        close(listener);
        world_close(&w);
    }
}

// Which addresses a name that is allowed may lead to, when no rule lists them.
// Asks a list of rules that is taken apart for it.
static int may_connect(const char *const *allow, const rvd_sys_addr *a, const char *host)
{
    rvd_heap heap = {NULL, NULL, 0};
    rvd_agent_rules rules;
    int may = rvd_agent_rules_open(&rules, &heap, allow) && rvd_agent_may_connect(&rules, a, host);
    rvd_base_arena_free(&rules.texts, &heap);
    return may;
}

TEST(X1_a_name_that_is_allowed_leads_to_no_special_address_however_it_is_written)
{
    static const char *const exact[] = {"db.example:80", NULL}, *const wild[] = {"*.example:80",
                                                                                 NULL};
    static const char *const both[] = {"db.example:80", "0.0.0.0/0:80", "[::]/0:80", NULL};
    static const char *const special[] = {"127.0.0.1:80",
                                          "127.8.8.8:80",
                                          "0.0.0.0:80",
                                          "0.1.2.3:80",
                                          "169.254.169.254:80",
                                          "169.254.0.1:80",
                                          "100.64.0.1:80",
                                          "100.100.100.200:80",
                                          "100.127.255.255:80",
                                          "224.0.0.1:80",
                                          "255.255.255.255:80",
                                          "240.0.0.1:80",
                                          "192.0.0.192:80",
                                          "168.63.129.16:80",
                                          "[::]:80",
                                          "[::1]:80",
                                          "[::7f00:1]:80",
                                          "[::ffff:127.0.0.1]:80",
                                          "[::ffff:a9fe:a9fe]:80",
                                          "[64:ff9b::7f00:1]:80",
                                          "[64:ff9b::169.254.169.254]:80",
                                          "[64:ff9b::6440:1]:80",
                                          "[64:ff9b:1::a00:1]:80",
                                          "[2002:7f00:1::1]:80",
                                          "[2002:a9fe:a9fe::1]:80",
                                          "[2001:0:5ef5::1]:80",
                                          "[fe80::1]:80",
                                          "[febf::1]:80",
                                          "[ff02::1]:80",
                                          "[fd00:ec2::254]:80",
                                          "[fd20:ce::254]:80",
                                          "[fd00:42::42]:80",
                                          "[fd00:c1::a9fe:a9fe]:80",
                                          "[fd00:a9fe:a9fe::1]:80",
                                          "[fd00:100::100:200]:80",
                                          "[fe80::a9fe:a9fe]:80",
                                          "[fd12:3456::a9fe:a9fe]:80",
                                          "[2001:db8:64::a9fe:a9fe]:80",
                                          "[2001:db8:64::6464:64c8]:80",
                                          "[::ffff:0:169.254.169.254]:80",
                                          "[::ffff:0:127.0.0.1]:80",
                                          "[2001:db8::5efe:127.0.0.1]:80",
                                          "[64:ff9b::a83f:8110]:80",
                                          "[2002:6464:64c8::]:80",
                                          "[2002:a83f:8110::1]:80",
                                          "[::ffff:100.100.100.200]:80",
                                          "[::ffff:168.63.129.16]:80"};
    static const char *const usual[] = {
        "8.8.8.8:80",    "10.1.2.3:80",           "192.168.1.1:80",       "172.16.0.1:80",
        "100.63.0.1:80", "100.128.0.1:80",        "169.253.0.1:80",       "[2001:db8::1]:80",
        "[fd12::1]:80",  "[64:ff9b::808:808]:80", "[2002:808:808::1]:80", "[2606:4700::1]:80",
        "[fd00::1]:80",  "[fd00:10:96::1]:80",    "[fd42:42::42]:80",     "[2001:db8::a9fe:1]:80"};
    rvd_sys_addr a;
    for (size_t i = 0; i < sizeof special / sizeof *special; i++) {
        CHECK_INT(rvd_sys_addr_parse(special[i], 1, &a, NULL), 0);
        if (may_connect(exact, &a, "db.example") ||
            may_connect(wild, &a, "db.example"))
            test_fail(__FILE__, __LINE__, "a name leads to %s", special[i]);
        if (!may_connect(both, &a, "db.example"))
            test_fail(__FILE__, __LINE__, "%s has a rule and is not reached", special[i]);
    }
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++) {
        CHECK_INT(rvd_sys_addr_parse(usual[i], 1, &a, NULL), 0);
        if (!may_connect(exact, &a, "db.example") ||
            !may_connect(wild, &a, "db.example"))
            test_fail(__FILE__, __LINE__, "no name leads to %s", usual[i]);
    }
}

TEST(X1_localhost_is_loopback_where_it_is_allowed_and_nothing_else)
{
    static const char *const local[] = {"localhost:80", NULL}, *const wild[] = {"*:80", NULL};
    static const struct {
        const char *const *allow;
        const char *address;
        int want;
    } rows[] = {{local, "127.0.0.1:80", 1}, {local, "[::1]:80", 1},
                {local, "127.0.0.1:81", 0}, {local, "169.254.169.254:80", 0},
                {local, "10.0.0.1:80", 0},  {wild, "127.0.0.1:80", 0}};
    rvd_sys_addr a;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        CHECK_INT(rvd_sys_addr_parse(rows[i].address, 1, &a, NULL), 0);
        if (may_connect(rows[i].allow, &a, "localhost") != rows[i].want)
            test_fail(__FILE__, __LINE__, "localhost at %s: not %d", rows[i].address, rows[i].want);
    }
}

TEST(X1_an_exact_name_that_leads_to_loopback_is_refused_unless_it_is_the_default_target)
{
    static const char *const named[] = {"loop.test:*", NULL};
    world w;
    int port = 0, listener = raw_listen(4, &port);
    char target[40];
    revdial_err err = {0};
    snprintf(target, sizeof target, "loop.test:%d", port);
    for (int is_default = 0; is_default < 2; is_default++) {
        world_init(&w);
        w.acfg.allow = named;
        w.acfg.default_target = is_default ? target : NULL;
        if (open_forwarder(&w)) {
            revdial_stream *st = dial_target(&w, target, &err);
            CHECK_INT(st != NULL, is_default);
            if (!st) CHECK_INT(err.reset, REVDIAL_RESET_FORBIDDEN);
            revdial_close(st);
        }
        world_close(&w);
    }
    close(listener);
}

TEST(an_allow_list_that_is_replaced_rules_at_once_and_leaves_what_runs)
{
    static const char *const none[] = {NULL};
    static const char *const bad[] = {"127.0.0.1:*", "nonsense", NULL};
    static const char *const back[] = {"127.0.0.1:*", NULL};
    world w;
    int port = 0, listener = raw_listen(4, &port);
    char target[32], byte;
    revdial_err err = {0};
    revdial_stream *st;
    snprintf(target, sizeof target, "127.0.0.1:%d", port);
    world_init(&w);
    if (open_forwarder(&w) && dial_port(&w, port, &st)) {
        int fd = raw_accept(listener);
        CHECK_INT(revdial_agent_replace_allow(w.agents[0], bad, NULL), REVDIAL_EINVAL);
        revdial_stream *more = dial_target(&w, target, &err);
        CHECK(more != NULL);
        revdial_close(more);
        CHECK_INT(revdial_agent_replace_allow(w.agents[0], none, NULL), 0);
        CHECK(dial_target(&w, target, &err) == NULL);
        CHECK_INT(err.reset, REVDIAL_RESET_FORBIDDEN);
        CHECK_INT(revdial_agent_replace_allow(w.agents[0], NULL, NULL), 0);
        CHECK(dial_target(&w, "loop.test:1", &err) == NULL);
        CHECK_INT(err.reset, REVDIAL_RESET_FORBIDDEN);
        raw_say(fd, "x");
        CHECK_INT(util_read_all(st, &byte, 1), 1);
        CHECK_INT(revdial_agent_replace_allow(w.agents[0], back, NULL), 0);
        more = dial_target(&w, target, &err);
        CHECK(more != NULL);
        revdial_close(more);
        revdial_close(st);
        close(fd);
    }
    close(listener);
    world_close(&w);
}

TEST(the_default_target_is_used_when_none_is_named_and_needs_no_rule)
{
    static const char *const none[] = {NULL};
    world w;
    int port = 0, listener = raw_listen(4, &port);
    char target[32];
    snprintf(target, sizeof target, "127.0.0.1:%d", port);
    world_init(&w);
    w.acfg.default_target = target;
    w.acfg.allow = none;
    if (open_forwarder(&w)) {
        revdial_err err;
        revdial_stream *a = dial_target(&w, NULL, &err), *b = dial_target(&w, target, &err);
        CHECK(a && b);
        CHECK(dial_target(&w, "127.0.0.1:1", &err) == NULL);
        CHECK_INT(err.reset, REVDIAL_RESET_FORBIDDEN);
        revdial_close(a);
        revdial_close(b);
    }
    close(listener);
    world_close(&w);
}

// A client of an exposed port that asks one thing, is answered and goes. Afterwards the process has
// so many descriptors.
static void short_connection(const char *at, int listener, char ask, int fds)
{
    char c = 0;
    int client = raw_connect(at), target = raw_accept(listener);
    raw_say(client, (char[]){ask, '\0'});
    CHECK(raw_read_all(target, &c, 1) && c == ask);
    raw_say(target, "!");
    CHECK(raw_read_all(client, &c, 1) && c == '!');
    close(client);
    CHECK_INT(raw_read(target, &c, 1), 0);
    close(target);
    UTIL_EVENTUALLY(util_fds() == fds);
}

// A client that goes with a reset, before it has said anything.
static void broken_connection(const char *at, int listener)
{
    char c;
    int client = raw_connect(at), target = raw_accept(listener);
    raw_close_reset(client);
    CHECK(raw_wait(target, POLLIN, UTIL_WAIT_MS));
    CHECK(recv(target, &c, 1, 0) < 0 && errno == ECONNRESET);
    close(target);
}

static int is_bbr_the_default(void)
{
    int fd = rvd_sys_socket_tcp(AF_INET), is = rvd_sys_has_congestion(fd, "bbr");
    close(fd);
    return is;
}

// While the clock stands, no end gets old enough for what only longer connections need, and a
// socket that was kept stays.
TEST(short_connections_cost_few_calls_that_move_none_of_their_bytes)
{
    enum { COUNT = 4, IS_KEPT = RVD_SYS_EPOLL };
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
    char at[80], target[32];
    int port = 0, listener = raw_listen(4, &port), made = IS_KEPT ? 1 : COUNT;
    int is_paced = is_bbr_the_default();
    world w;
    snprintf(target, sizeof target, "127.0.0.1:%d", port);
    world_init(&w);
    w.pcfg.exposes = &x;
    w.pcfg.expose_count = 1;
    w.acfg.default_target = target;
    if (open_forwarder(&w) && revdial_proxy_address(w.proxy, 1, at, sizeof at) > 0) {
        int fds = util_fds();
        util_clock_stop();
        atomic_store(&util_setsockopts, 0);
        atomic_store(&util_getsockopts, 0);
        atomic_store(&util_getsocknames, 0);
        atomic_store(&util_getpeernames, 0);
        atomic_store(&util_epoll_ctls, 0);
        for (int i = 0; i < COUNT; i++)
            short_connection(at, listener, (char)('a' + i), fds + IS_KEPT);
        // A target's socket is made to end with a reset, and as a client's not to before it ends.
        CHECK_INT(atomic_load(&util_setsockopts),
                  COUNT * (RVD_SYS_INHERITS ? 1 : 1 + 7) + made * ((IS_KEPT ? 1 : 2) + is_paced));
        CHECK_INT(atomic_load(&util_getsocknames), COUNT);  // is it connected to itself?
        CHECK_INT(atomic_load(&util_epoll_ctls), RVD_SYS_EPOLL ? COUNT + made : 0);
        // May it be used again? And is a new one paced?
        CHECK_INT(atomic_load(&util_getsockopts), COUNT);
        CHECK_INT(atomic_load(&util_getpeernames), 0);
        broken_connection(at, listener);  // on a socket that was used before
        util_clock_run();
        UTIL_EVENTUALLY(util_fds() == fds);
    }
    close(listener);
    world_close(&w);
}

// A world with a port whose clients reach a target of the test. Returns a client, *target is its
// other end; both have said a byte.
static int joined_open(world *w, revdial_expose *x, int listener, int port, int *target)
{
    static char text[32];
    char at[80], c;
    snprintf(text, sizeof text, "127.0.0.1:%d", port);
    world_init(w);
    w->pcfg.exposes = x;
    w->pcfg.expose_count = 1;
    w->acfg.default_target = text;
    if (!open_forwarder(w) || !CHECK(revdial_proxy_address(w->proxy, 1, at, sizeof at) > 0))
        return -1;
    int client = raw_connect(at);
    *target = raw_accept(listener);
    raw_say(client, "x");
    raw_say(*target, "y");
    CHECK(raw_read_all(*target, &c, 1) && raw_read_all(client, &c, 1));
    return client;
}

// Says so many bytes, and goes with a reset.
static void last_words(int fd, size_t size)
{
    char *bytes = calloc(1, size);
    CHECK(bytes && send(fd, bytes, size, MSG_NOSIGNAL) == (ssize_t)size);
    free(bytes);
    raw_close_reset(fd);
}

// One end has sent all that it has to say, and closes its socket while bytes come in that it has
// not read, as a server does that refuses an upload: the other end reads all of it, then the reset.
TEST(what_a_side_has_sent_arrives_although_it_closes_while_the_other_side_is_sending)
{
    enum { SAID = 50000 };
    static char buf[SAID + 2];
    for (int i = 0; i < 4; i++) {
        const int is_client = i % 2, is_unread = i / 2;
        revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
        int port = 0, listener = raw_listen(4, &port), target = -1;
        size_t len = 0;
        util_held_loop held;
        world w;
        int client = joined_open(&w, &x, listener, port, &target);
        if (client >= 0) {
            util_loop_hold(&held, is_client ? w.proxy->loops[0] : w.agents[0]->loop);
            int goes = is_client ? client : target, stays = is_client ? target : client;
            if (!is_unread) CHECK(raw_say(stays, "more"));
            last_words(goes, SAID);
            util_loop_let_go(&held);
            CHECK_INT(raw_drain(stays, buf, sizeof buf, &len), -1);
            CHECK_INT(errno, ECONNRESET);
            CHECK_INT(len, SAID);
            close(stays);
        }
        close(listener);
        world_close(&w);
    }
}

TEST(unix_targets_are_connected_to_where_they_are_listed)
{
    char dir[] = "/tmp/revdial-test-XXXXXX", target[64];
    const char *allow[] = {target, NULL};
    struct sockaddr_un at;
    world w;
    char buf[4];
    REQUIRE(mkdtemp(dir) != NULL);
    snprintf(target, sizeof target, "unix:%s/s", dir);
    memset(&at, 0, sizeof at);
    at.sun_family = AF_UNIX;
    snprintf(at.sun_path, sizeof at.sun_path, "%s", target + 5);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_INT(bind(listener, (struct sockaddr *)&at, sizeof at), 0);
    CHECK_INT(listen(listener, 4), 0);
    world_init(&w);
    w.acfg.allow = allow;
    if (open_forwarder(&w)) {
        revdial_err err = {0};
        revdial_stream *st = dial_target(&w, target, &err);
        if (CHECK(st != NULL)) {
            int fd = raw_accept(listener);
            raw_say(fd, "ping");
            CHECK_INT(util_read_all(st, buf, 4), 4);
            close(fd);
            revdial_close(st);
        }
        unlink(at.sun_path);
        CHECK(dial_target(&w, target, &err) == NULL);
        CHECK_INT(err.reset, REVDIAL_RESET_CONNECT_REFUSED);
    }
    close(listener);
    unlink(at.sun_path);
    rmdir(dir);
    world_close(&w);
}

TEST(the_target_is_told_the_client_in_PROXY_v1_or_v2)
{
    static const uint8_t v2[28] =
        "\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C\xC0\0\2\7\xC6\x33\x64\1\x04\xD2\1"
        "\xBB";
    static const uint8_t v2_local[16] = "\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    static const struct {
        int version;
        const char *client, *local;
        const void *want;
        size_t len;
    } rows[] = {
        {1, "192.0.2.7:1234", "198.51.100.1:443", "PROXY TCP4 192.0.2.7 198.51.100.1 1234 443\r\n",
         44},
        {1, "[2001:db8::7]:1234", "[2001:db8::1]:443",
         "PROXY TCP6 2001:db8::7 2001:db8::1 1234 443\r\n", 45},
        {1, NULL, NULL, "PROXY UNKNOWN\r\n", 15},
        {2, "192.0.2.7:1234", "198.51.100.1:443", v2, 28},
        {2, NULL, NULL, v2_local, 16},
    };
    int port = 0, listener = raw_listen(4, &port);
    char target[32], buf[128];
    snprintf(target, sizeof target, "127.0.0.1:%d", port);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        world w;
        world_init(&w);
        w.acfg.proxy_protocol = rows[i].version;
        if (open_forwarder(&w)) {
            revdial_dial_opts opts = {
                .target = target, .client_addr = rows[i].client, .local_addr = rows[i].local};
            revdial_stream *st = revdial_dial(w.proxy, "cam-1", &opts, NULL);
            int fd = raw_accept(listener);
            if (CHECK(st && fd >= 0) && CHECK_INT(revdial_write(st, "!", 1), 1) &&
                CHECK(raw_read_all(fd, buf, rows[i].len + 1))) {
                if (memcmp(buf, rows[i].want, rows[i].len) != 0 || buf[rows[i].len] != '!')
                    test_fail(__FILE__, __LINE__, "row %zu: %.60s", i, buf);
            }
            revdial_close(st);
            close(fd);
        }
        world_close(&w);
    }
    close(listener);
}

static void on_cancelled(void *ud, revdial_stream *st, const revdial_err *err)
{
    (void)err;
    revdial_close(st);
    util_gate_add(ud, 1);
}

TEST(F22_F23_a_dial_that_is_given_up_aborts_the_agents_connect)
{
    enum { CANCELLED, TIMED_OUT, SESSION_DIED };
    hole h;
    char target[32];
    REQUIRE(hole_open(&h));
    snprintf(target, sizeof target, "127.0.0.1:%d", h.port);
    for (int how = CANCELLED; how <= SESSION_DIED; how++) {
        world w;
        util_gate done = UTIL_GATE;
        revdial_dial_opts opts = {.target = target};
        world_init(&w);
        w.acfg.connect_timeout_ms = 60000;
        if (open_forwarder(&w)) {
            int before = util_fds();
            int64_t id[10];
            opts.timeout_ms = how == TIMED_OUT ? 40 : 60000;
            for (int i = 0; i < 10; i++)
                id[i] = revdial_dial_async(w.proxy, "cam-1", &opts, on_cancelled, &done);
            UTIL_EVENTUALLY(util_fds() == before + 10 || how == TIMED_OUT);
            if (how == CANCELLED)
                for (int i = 0; i < 10; i++) CHECK_INT(revdial_dial_cancel(w.proxy, id[i]), 0);
            if (how == SESSION_DIED) {
                revdial_session *s;
                revdial_proxy_list(w.proxy, NULL, &s, 1);
                revdial_session_kill(s);
                revdial_session_unref(s);
            }
            CHECK(util_gate_wait(&done, 10));
            UTIL_EVENTUALLY(util_fds() == before);
        }
        world_close(&w);
        CHECK_INT(done.count, 10);
    }
    hole_close(&h);
}

TEST(a_session_that_takes_all_descriptors_it_can_leaves_some_to_the_others)
{
    enum { DIALS = 40 };
    world w, other;
    revdial_stream *st[DIALS] = {NULL}, *one;
    revdial_err err = {0};
    int port = 0, listener = raw_listen(128, &port), count = 0;
    char target[32], url[300];
    snprintf(target, sizeof target, "127.0.0.1:%d", port);
    world_init(&w);
    world_init(&other);
    if (world_open_proxy(&other) && world_open_proxy(&w)) {
        snprintf(url, sizeof url, "%s,%s", other.url, w.url);
        w.acfg.url = url;
        w.acfg.handler = NULL;
        w.acfg.allow = loopback_allowed;
        int next = dup(listener);
        close(next);
        atomic_store(&util_fd_limit, (next + DIALS) * 8 / 7 + 1);
        w.agents[0] = revdial_agent_start(&w.acfg, NULL);
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
        CHECK_INT(revdial_proxy_wait(other.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
        while (count < DIALS && (st[count] = dial_target(&w, target, &err)) != NULL) count++;
        CHECK(count > 0 && count < DIALS);
        CHECK_INT(err.reset, REVDIAL_RESET_CALM);
        one = dial_target(&other, target, &err);
        CHECK(one != NULL);
        revdial_close(one);
        while (count > 0) revdial_close(st[--count]);
    }
    atomic_store(&util_fd_limit, 0);
    close(listener);
    world_close(&w);
    world_close(&other);
}

TEST(a_dial_that_is_given_up_while_its_name_resolves_ends_without_waiting_for_the_resolver)
{
    world w;
    revdial_err err = {0};
    revdial_dial_opts opts = {.target = "slow.test:80", .timeout_ms = 40};
    util_resolver_open.count = 0;
    int entered = util_gate_count(&util_resolver_entered);
    world_init(&w);
    if (open_forwarder(&w)) {
        CHECK(revdial_dial(w.proxy, "cam-1", &opts, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_ETIMEDOUT);
        CHECK(util_gate_wait(&util_resolver_entered, entered + 1));
        // Others resolve and connect meanwhile.
        int port = 0, listener = raw_listen(1, &port);
        char target[32];
        snprintf(target, sizeof target, "loop.test:%d", port);
        revdial_stream *st = dial_target(&w, target, &err);
        CHECK(st != NULL);
        revdial_close(st);
        close(listener);
    }
    world_close(&w);  // nor does the agent wait for it
    util_gate_add(&util_resolver_open, 1);
}

TEST(an_idle_forwarded_stream_ends_when_idle_timeout_says_so)
{
    world w;
    int port = 0, listener = raw_listen(4, &port), reset = 0;
    revdial_stream *st;
    char c;
    world_init(&w);
    w.acfg.idle_timeout_ms = 30;
    if (open_forwarder(&w) && dial_port(&w, port, &st)) {
        CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ERESET);
        revdial_stream_error(st, &reset);
        CHECK_INT(reset, REVDIAL_RESET_TIMEOUT);
        revdial_close(st);
    }
    close(listener);
    world_close(&w);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
