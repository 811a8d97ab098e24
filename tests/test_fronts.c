// The front ends of revdial-proxy: what a client says, and where it leads. Parsers get their bytes
// whole, one at a time, and cut short.
#include "revdial.h"

#include "test.h"

#include "../examples/program/log.c"
#include "../examples/program/signals.c"
#include "../examples/proxy/connect.c"
#include "../examples/proxy/front.c"
#include "../examples/proxy/health_rules.c"
#include "../examples/proxy/hosts.c"
#include "../examples/proxy/http_reader.c"
#include "../examples/proxy/http_text.c"
#include "../examples/proxy/pick.c"
#include "../examples/proxy/routes.c"
#include "../examples/proxy/sni.c"
#include "../examples/proxy/socks5.c"

// What --sockets asks of the library: revdial_proxy_expose() has descriptors only at times.
static pthread_mutex_t socket_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t socket_changed = PTHREAD_COND_INITIALIZER;
static int socket_refusals, socket_asked;

static int64_t socket_expose(revdial_proxy *p, const revdial_expose *x, revdial_err *err)
{
    int64_t id = -1;
    (void)p;
    (void)x;
    pthread_mutex_lock(&socket_lock);
    socket_asked++;
    if (socket_refusals-- > 0)
        *err = (revdial_err){.code = REVDIAL_ESYS, .sys = EMFILE, .msg = "none left"};
    else
        id = 7;
    pthread_cond_broadcast(&socket_changed);
    pthread_mutex_unlock(&socket_lock);
    return id;
}

static void socket_info(const revdial_session *s, revdial_session_info *info)
{
    (void)s;
    *info = (revdial_session_info){.id = 1, .name = "cam-1"};
}

#define revdial_proxy_expose socket_expose
#define revdial_session_get_info(s, info) socket_info(s, info)
#include "../examples/proxy/sockets.c"
#undef revdial_proxy_expose
#undef revdial_session_get_info

TEST(a_socket_that_had_no_descriptor_comes_when_there_is_one)
{
    char dir[] = "/tmp/revdial-test-XXXXXX";
    const revdial_expose like = {0};
    static prog_log log;  // says nothing
    sockets s = {0};
    revdial_err err = {0};
    struct timespec until;
    int r = 0;
    if (!CHECK(mkdtemp(dir) != NULL) || !CHECK_INT(sockets_open(&s, dir, &err), 0)) return;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 60;
    socket_refusals = 1;
    socket_asked = 0;
    sockets_note(&s, NULL, REVDIAL_UP);
    CHECK_INT(sockets_start(&s, NULL, &like, &log), 0);
    pthread_mutex_lock(&socket_lock);
    while (socket_asked < 2 && r == 0)
        r = pthread_cond_timedwait(&socket_changed, &socket_lock, &until);
    pthread_mutex_unlock(&socket_lock);
    sockets_stop(&s);
    if (CHECK_INT(s.name_count, 1)) CHECK_INT(s.names[0].id, 7);
    CHECK_INT(s.is_lacking, 0);
    sockets_free(&s);
    rmdir(dir);
}

// ------------------------------------------------------------------------------------------------
// Destinations

// "HOST|PORT" as it was read, or what is wrong.
static const char *host_says(const char *text, char says[ROUTE_TARGET_SIZE])
{
    route_host h;
    const char *problem = route_host_parse(&h, text, strlen(text));
    snprintf(says, ROUTE_TARGET_SIZE, "%s|%d", h.host, h.port);
    return problem ? problem : says;
}

TEST(a_destination_is_a_name_or_an_address_with_a_port_or_without)
{
    static const char *const good[][2] = {{"cam.example", "cam.example|-1"},
                                          {"CAM.Example.:80", "cam.example|80"},
                                          {"a_b-c:0", "a_b-c|0"},
                                          {"10.0.0.1:65535", "10.0.0.1|65535"},
                                          {"[FD00::1]:22", "fd00::1|22"},
                                          {"[::1]", "::1|-1"},
                                          {"x:00080", "x|80"}};
    static const char *const bad[] = {
        "",       ".",          ":80",     "a..b:80",   ".a:80",   "a:",      "a:65536",
        "a:-1",   "a:8x",       "a:80:80", "::1",       "[::1",    "[::1]80", "[::1]x:80",
        "[a]:80", "[10.0.0.1]", "a b:80",  "a/b",       "[::g]:1", "a%b:1",   "a:000080",
        "[]:80",  "user@a:80",  "a\x80:1", "fd00::1:22"};
    char says[ROUTE_TARGET_SIZE], name[300];
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        CHECK_STR(host_says(good[i][0], says), good[i][1]);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (host_says(bad[i], says) == says) test_fail(__FILE__, __LINE__, "takes %s", bad[i]);
    memset(name, 'a', sizeof name);
    name[253] = '\0';
    CHECK(host_says(name, says) == says);
    name[253] = 'a';
    name[254] = '\0';
    CHECK_STR(host_says(name, says), "no host name is that long");
}

TEST(a_byte_that_ends_a_text_is_in_no_host_name)
{
    route_host h;
    CHECK(route_host_parse(&h, "cam\0.evil", 9) != NULL);
    CHECK(route_host_set(&h, "\0", 1, 80) != NULL);
}

TEST(a_destination_is_written_as_a_target_and_port_0_as_none)
{
    char target[ROUTE_TARGET_SIZE];
    route_host h;
    CHECK(!route_host_parse(&h, "[::1]:80", 8));
    route_host_target(&h, target);
    CHECK_STR(target, "[::1]:80");
    CHECK(!route_host_parse(&h, "Cam.:80", 7));
    route_host_target(&h, target);
    CHECK_STR(target, "cam:80");
    h.port = 0;
    route_host_target(&h, target);
    CHECK_STR(target, "");
}

// ------------------------------------------------------------------------------------------------
// Routes

// Fills a table; the test fails where a route is refused.
static void routes_fill(route_table *t, const char *const *specs)
{
    for (; *specs; specs++) {
        const char *problem = route_add(t, *specs);
        if (problem) test_fail(__FILE__, __LINE__, "%s \"%s\"", problem, *specs);
    }
}

// "NAME", "NAME/TARGET", or "none".
static const char *route_says(const route_table *t, const char *to, char says[400])
{
    route_choice c;
    route_host h;
    const char *problem = route_host_parse(&h, to, strlen(to));
    if (problem) return problem;
    if (!route_find(t, &h, &c)) return "none";
    snprintf(says, 400, "%s%s%s", c.name, c.has_target ? "/" : "", c.target);
    return says;
}

TEST(the_most_specific_route_counts_whatever_the_order)
{
    static const char *const specs[] = {"*=rest",
                                        "*.example=other",
                                        "*.cams.example=cams",
                                        "cam.cams.example=one",
                                        "cam.cams.example:22=ssh/127.0.0.1:22",
                                        "10.0.0.0/8=ten",
                                        "10.1.0.0/16=eleven",
                                        "10.1.0.0/16:80-90=web",
                                        "10.1.2.3=host",
                                        "[fd00::]/8:443=six",
                                        "cam-*.lab.example=lab",
                                        "*a=letters",
                                        NULL};
    static const char *const rows[][2] = {{"cam.cams.example:80", "one"},
                                          {"CAM.cams.example.:22", "ssh/127.0.0.1:22"},
                                          {"cam.cams.example", "one"},
                                          {"2.cams.example", "cams"},
                                          {"a.b.cams.example:1", "cams"},
                                          {"cams.example", "other"},
                                          {"example", "rest"},
                                          {"xexample:1", "rest"},
                                          {"cam-7.lab.example", "lab"},
                                          {"cam-.lab.example", "other"},
                                          {"10.9.9.9:80", "ten"},
                                          {"10.1.9.9", "eleven"},
                                          {"10.1.9.9:90", "web"},
                                          {"10.1.9.9:91", "eleven"},
                                          {"10.1.2.3:80", "host"},
                                          {"11.1.2.3:80", "rest"},
                                          {"[fd12::1]:443", "six"},
                                          {"[fd12::1]:444", "rest"},
                                          {"[fd12::a]:444", "rest"}};
    char says[400];
    for (int backwards = 0; backwards < 2; backwards++) {
        route_table t = {0};
        const size_t count = sizeof specs / sizeof *specs - 1;
        for (size_t i = 0; i < count; i++)
            CHECK(!route_add(&t, specs[backwards ? count - 1 - i : i]));
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
            if (strcmp(route_says(&t, rows[i][0], says), rows[i][1]) != 0)
                test_fail(__FILE__, __LINE__, "%s leads to %s", rows[i][0],
                          route_says(&t, rows[i][0], says));
        route_table_free(&t);
    }
}

TEST(a_star_in_a_name_is_one_label_of_the_host)
{
    static const char *const specs[] = {"*.cams.example=*", "*.lab=lab/*.internal:80",
                                        "cam-*.shop=shop-*", "*=*/", NULL};
    static const char *const rows[][2] = {
        {"7.cams.example", "7"},       {"A.CAMS.example:80", "a"},
        {"a.b.cams.example", "none"},  {"printer.lab:443", "lab/printer.internal:80"},
        {"a.printer.lab:443", "none"}, {"cam-12.shop", "shop-12"},
        {"cam-7", "cam-7/"},           {"10.0.0.1:80", "none"},
        {"[::1]:80", "none"}};
    char says[400], host[300];
    route_table t = {0};
    routes_fill(&t, specs);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        CHECK_STR(route_says(&t, rows[i][0], says), rows[i][1]);
    snprintf(host, sizeof host, "%065d.cams.example", 1);  // no agent can have that name
    CHECK_STR(route_says(&t, host, says), "none");
    route_table_free(&t);
}

TEST(a_wrong_route_is_refused_with_what_would_be_right)
{
    static const char *const rows[][2] = {
        {"cam.example", "PATTERN=NAME"},
        {"=web", "PATTERN is missing"},
        {"cam.example=", "1 to 64"},
        {"cam.example=Web", "1 to 64"},
        {"cam.example=a b", "1 to 64"},
        {"a.*.b.*=web", "at most one *"},
        {"cam?.example=web", "at most one *"},
        {"unix:/x=web", "host name"},
        {"fd00::/8=web", "brackets"},
        {"10.0.0.0/33=web", "bits"},
        {"10.0.0.*=web", "NET/BITS"},
        {"a..b=web", "dots"},
        {"a:99999=web", "65535"},
        {"a:0=web", "port 0"},
        {"http://a=web", "scheme"},
        {"cam.example=*", "that has none"},
        {"10.0.0.0/8=*", "that has none"},
        {"*.example=a*b*", "only one *"},
        {"*.example=web/*:*", "only one *"},
        {"cam.example=web/80", "HOST:PORT"},
        {"cam.example=web/x:0", "HOST:PORT"},
        {"cam.example=web/x:1-2", "HOST:PORT"},
        {"cam.example=web/10.0.0.0/8:80", "HOST:PORT"},
        {"cam.example=web/unix:x", "unix:/PATH"},
    };
    route_table t = {0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *problem = route_add(&t, rows[i][0]);
        if (!problem || !strstr(problem, rows[i][1]))
            test_fail(__FILE__, __LINE__, "%s: %s", rows[i][0], problem ? problem : "is taken");
    }
    CHECK_INT(t.count, 0);
    CHECK(!route_add(&t, "cam.example=web/unix:/run/x"));
    CHECK(!route_add(&t, "cam.example:80=web/[::1]:80"));
    CHECK_STR(route_add(&t, "CAM.example=other"), "there are two routes for");
    route_table_free(&t);
}

TEST(a_client_may_name_an_agent_where_no_route_but_the_default_decides)
{
    static const char *const specs[] = {"*=rest", "10.0.0.0/8=ten", "own.example=own/", NULL};
    route_table t = {0}, none = {0};
    route_choice c;
    route_host name = {"x.example", 80}, net = {"10.0.0.1", 22}, own = {"own.example", 22};
    route_host zero = {"web", 0};
    routes_fill(&t, specs);
    CHECK_INT(route_decide(&t, &name, "web", &c), ROUTE_FOUND);
    CHECK_STR(c.name, "web");
    CHECK_STR(c.target, "x.example:80");
    CHECK_INT(route_decide(&t, &name, NULL, &c), ROUTE_FOUND);
    CHECK_STR(c.name, "rest");
    CHECK_STR(c.target, "x.example:80");
    CHECK_INT(route_decide(&t, &net, "web", &c), ROUTE_FOUND);
    CHECK_STR(c.name, "ten");
    CHECK_STR(c.target, "10.0.0.1:22");
    CHECK_INT(route_decide(&t, &own, "", &c), ROUTE_FOUND);
    CHECK_STR(c.name, "own");
    CHECK_STR(c.target, "");  // the agent's own
    CHECK_INT(route_decide(&none, &name, NULL, &c), ROUTE_NEEDS_NAME);
    CHECK_INT(route_decide(&none, &name, "", &c), ROUTE_NEEDS_NAME);
    CHECK_INT(route_decide(&none, &name, "No Name", &c), ROUTE_BAD_NAME);
    CHECK_INT(route_decide(&none, &zero, "web", &c), ROUTE_FOUND);
    CHECK_STR(c.target, "");
    route_table_free(&t);
}

// What a host leads to: "agent target", or "".
static const char *leads_to(const route_table *t, const char *host, char text[400])
{
    route_host where;
    route_choice to;
    text[0] = '\0';
    if (route_host_parse(&where, host, strlen(host)) == NULL && route_find(t, &where, &to))
        snprintf(text, 400, "%s %s", to.name, to.target);
    return text;
}

TEST(the_hosts_of_an_agent_are_routes_to_it_while_it_is_registered)
{
    prog_log log = {0};
    host_table h = {0};
    route_table t = {.hosts = &h};
    revdial_session_info one = {.id = 7, .name = "one"}, two = {.id = 9, .name = "two"};
    char text[400], other[400];
    CHECK_INT(hosts_open(&h, &log), 0);
    CHECK(!route_add(&t, "*=rest") && !route_add(&t, "fixed.example=fixed"));
    CHECK(!route_add(&t, "*.wild.example=wild") && !route_add(&t, "10.0.0.0/8=net"));
    CHECK_STR(leads_to(&t, "a.example", text), "rest ");
    hosts_change(&h, "a.example, *.B.example,fixed.example,*.wild.example,x.wild.example", &one, 1);
    hosts_change(&h, "c.b.example,*.deep.wild.example,a.example", &two, 1);
    hosts_change(&h, "", &two, 1);
    CHECK_STR(leads_to(&t, "x.b.example", text), "one ");
    CHECK_STR(leads_to(&t, "X.y.B.example.:80", text), "one ");
    CHECK_STR(leads_to(&t, "b.example", text), "rest ");
    CHECK_STR(leads_to(&t, "c.b.example", text), "two ");
    CHECK_STR(leads_to(&t, "fixed.example", text), "fixed ");  // the operator's word counts
    CHECK_STR(leads_to(&t, "y.wild.example", text), "wild ");
    CHECK_STR(leads_to(&t, "x.wild.example", text), "one ");
    CHECK_STR(leads_to(&t, "x.deep.wild.example", text), "two ");
    CHECK_STR(leads_to(&t, "10.0.0.1", text), "net ");
    CHECK(strcmp(leads_to(&t, "a.example", text), leads_to(&t, "a.example", other)) != 0);
    hosts_change(&h, "a.example,*.b.example,fixed.example", &one, 0);
    CHECK_STR(leads_to(&t, "a.example", text), "two ");
    CHECK_STR(leads_to(&t, "x.b.example", text), "rest ");
    hosts_change(&h, "a.example,a.example,not.there", &two, 0);
    CHECK_STR(leads_to(&t, "a.example", text), "rest ");
    route_table_free(&t);
    hosts_free(&h);
}

TEST(a_list_of_hosts_that_are_none_is_refused)
{
    static const char *const bad[] = {
        "",     "*",  "*.",        "a*.example", "*.*.example", "a b", "a/b", "a.example:80",
        "a..b", ".a", "*a.example"};
    static const char *const good[] = {"a.example", "*.a.example", "a.example,*.b.example", "a, b"};
    char text[REVDIAL_LABEL_SIZE + 1];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (!hosts_problem(bad[i])) test_fail(__FILE__, __LINE__, "\"%s\" is good", bad[i]);
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        if (hosts_problem(good[i])) test_fail(__FILE__, __LINE__, "\"%s\" is bad", good[i]);
    for (size_t i = 0; i + 2 < sizeof text; i += 2) memcpy(text + i, "a,", 3);
    CHECK(hosts_problem(text) != NULL);
    text[REVDIAL_LABEL_SIZE - 1] = '\0';
    CHECK(hosts_problem(text) == NULL);
}

TEST(routes_are_replaced_while_others_search_them)
{
    route_table t = {0}, fresh = {0};
    char says[400];
    REQUIRE(route_table_share(&t) == 0);
    CHECK(!route_add(&t, "*=old"));
    CHECK(!route_add(&fresh, "x.example=new"));
    route_table_replace(&t, &fresh);
    CHECK_INT(fresh.count, 0);
    CHECK_STR(route_says(&t, "x.example", says), "new");
    CHECK_STR(route_says(&t, "y.example", says), "none");
    route_table_replace(&t, &fresh);
    CHECK_STR(route_says(&t, "x.example", says), "none");
    route_table_free(&t);
}

// ------------------------------------------------------------------------------------------------
// CONNECT

typedef struct script {
    const void *data;
    size_t len, piece;
} script;

// A hook that gets bytes in pieces of that size; everything that it answered is in `said`.
typedef struct told {
    revdial_route r;
    int verdict;
    char said[2048];
    size_t said_len, used;
} told;

static void tell(told *t, const front_kind *kind, route_table *routes, script from)
{
    size_t have = 0;
    memset(t, 0, sizeof *t);
    for (t->verdict = REVDIAL_ROUTE_MORE; t->verdict == REVDIAL_ROUTE_MORE && have < from.len;) {
        have = from.len - have > from.piece ? have + from.piece : from.len;
        t->r.data = from.data;
        t->r.len = have;
        t->r.reply = NULL;
        t->r.reply_len = t->r.used = 0;
        t->r.dial.target = "left from the expose";
        t->verdict = kind->route(routes, &t->r);
        memcpy(t->said + t->said_len, t->r.reply_len ? t->r.reply : "", t->r.reply_len);
        t->said_len += t->r.reply_len;
        t->used = t->r.used;
    }
}

// The dial has ended, and r has nothing left from before but its state.
static void tell_done(told *t, const front_kind *kind, route_table *routes, const revdial_err *why)
{
    revdial_route r = {.state = t->r.state};
    t->said_len = 0;
    kind->done(routes, &r, why);
    if (r.reply_len) memcpy(t->said, r.reply, r.reply_len);
    t->said_len = r.reply_len;
    t->said[t->said_len] = '\0';
}

#define HEAD "CONNECT x.example:22 HTTP/1.1\r\nHost: x.example:22\r\n"

TEST(a_connect_request_is_read_byte_by_byte_as_it_is_at_once)
{
    static const char request[] =
        "CONNECT X.Example.:22 HTTP/1.1\r\nHost: x\r\nUser-Agent:\tcurl \x80\r\n"
        "proxy-authorization:  bAsIc   d2ViOnNlYzpyZXQ=  \r\nContent-Length: 0\r\nTraceParent: "
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\r\nSSH-2.0";
    const size_t len = strlen(request);
    for (size_t cut = 0; cut <= len; cut++) {
        connect_head head;
        CHECK_INT(connect_parse(&head, request, cut), cut < len - 7 ? 0 : 200);
        if (cut < len - 7) continue;
        CHECK_INT(head.len, len - 7);
        CHECK_STR(head.where.host, "x.example");
        CHECK_INT(head.where.port, 22);
        CHECK_STR(head.user, "web");
        CHECK_STR(head.trace, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    }
}

TEST(a_connect_request_that_two_readers_could_understand_differently_is_refused)
{
    static const struct {
        int status;
        const char *request;
    } rows[] = {
        {200, HEAD "\r\n"},
        {200, "CONNECT x:1 HTTP/1.0\r\n\r\n"},
        {200, HEAD "Proxy-Authorization: Negotiate abc\r\n\r\n"},
        {200, HEAD "X:\r\n\r\n"},
        {405, "GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n"},
        {400, "connect x:1 HTTP/1.1\r\nHost: x\r\n\r\n"},
        {200, "\r\n" HEAD "\r\n"},
        {400, "\r\n\r\n" HEAD "\r\n"},
        {400, "CONNECT  x:1 HTTP/1.1\r\nHost: x\r\n\r\n"},
        {400, "CONNECT x:1 HTTP/1.1 \r\nHost: x\r\n\r\n"},
        {505, "CONNECT x:1 HTTP/2.0\r\nHost: x\r\n\r\n"},
        {400, "CONNECT x:1\r\n\r\n"},
        {400, "CONNECT x HTTP/1.1\r\nHost: x\r\n\r\n"},
        {400, "CONNECT http://x:1 HTTP/1.1\r\nHost: x\r\n\r\n"},
        {400, "CONNECT u@x:1 HTTP/1.1\r\nHost: x\r\n\r\n"},
        {400, "CONNECT x:1 HTTP/1.1\r\n\r\n"},
        {400, HEAD "Host: x\r\n\r\n"},
        {400, HEAD "Bad Name: x\r\n\r\n"},
        {400, HEAD "Name : x\r\n\r\n"},
        {400, HEAD "no colon\r\n\r\n"},
        {400, HEAD ": x\r\n\r\n"},
        {400, HEAD "A: b\r\n folded\r\n\r\n"},
        {400, HEAD "A: b\n\r\n"},
        {400, HEAD "A: b\rc\r\n\r\n"},
        {400, HEAD "A: \x01\r\n\r\n"},
        {400, HEAD "A: \x7F\r\n\r\n"},
        {400, HEAD "Transfer-Encoding: chunked\r\n\r\n"},
        {400, HEAD "Content-Length: 1\r\n\r\n"},
        {400, HEAD "Content-Length: 00\r\n\r\n"},
        {400, HEAD "Proxy-Authorization: Basic d2ViOg=\r\n\r\n"},
        {400, HEAD "Proxy-Authorization: Basic d2Vi\r\n\r\n"},
        {400, HEAD "Proxy-Authorization: Basic d2Vi!g==\r\n\r\n"},
        {400, HEAD "Proxy-Authorization: Basic AHdlYjo=\r\n\r\n"},
        {200, HEAD "Proxy-Authorization: Basic \r\n\r\n"},
        {400, HEAD "Proxy-Authorization: Basic d2ViOg==\r\nProxy-Authorization: Basic "
                   "d2ViOg==\r\n\r\n"},
        {400, "\x16\x03\x01"},
        {400, "\n"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        connect_head head;
        int status = connect_parse(&head, rows[i].request, strlen(rows[i].request));
        if (status != rows[i].status || (status != 200 && !head.problem))
            test_fail(__FILE__, __LINE__, "%s: %d", rows[i].request, status);
    }
}

TEST(the_head_of_a_connect_request_has_at_most_16_KiB)
{
    static char request[HTTP_HEAD_MAX + 1];
    connect_head head;
    size_t len = (size_t)snprintf(request, sizeof request, HEAD "A: ");
    memset(request + len, 'a', sizeof request - len);
    memcpy(request + HTTP_HEAD_MAX - 4, "\r\n\r\n", 4);
    CHECK_INT(connect_parse(&head, request, HTTP_HEAD_MAX), 200);
    memset(request + HTTP_HEAD_MAX - 4, 'a', 4);
    CHECK_INT(connect_parse(&head, request, HTTP_HEAD_MAX - 1), 0);
    CHECK_INT(connect_parse(&head, request, HTTP_HEAD_MAX), 431);
}

// What the hook dials, "NAME TARGET", or the status line that it refuses with.
static const char *connect_says(route_table *routes, const char *request, char says[2100])
{
    told t;
    tell(&t, &front_connect, routes, (script){request, strlen(request), 7});
    if (t.verdict == REVDIAL_ROUTE_DIAL)
        snprintf(says, 2100, "%s %s", t.r.name, t.r.dial.target ? t.r.dial.target : "-");
    else
        snprintf(says, 2100, "%.*s", (int)t.said_len, t.said);
    return says;
}

TEST(a_connect_request_leads_to_the_agent_of_a_route_or_of_the_user_name)
{
    route_table routes = {0};
    char says[2100];
    CHECK(!route_add(&routes, "*.cams.example=*/"));
    CHECK_STR(connect_says(&routes, "CONNECT 7.cams.example:22 HTTP/1.0\r\n\r\n", says), "7 -");
    CHECK_STR(connect_says(&routes, HEAD "Proxy-Authorization: Basic d2ViOg==\r\n\r\n", says),
              "web x.example:22");
    CHECK_STR(connect_says(&routes,
                           "CONNECT web:0 HTTP/1.0\r\nProxy-Authorization: Basic "
                           "d2ViOg==\r\n\r\n",
                           says),
              "web -");
    connect_says(&routes, HEAD "\r\n", says);
    CHECK(strstr(says, "HTTP/1.1 407 ") == says && strstr(says, "\r\nProxy-Authenticate: Basic "));
    connect_says(&routes, HEAD "Proxy-Authorization: Basic V2ViOg==\r\n\r\n", says);  // "Web:"
    CHECK(strstr(says, "HTTP/1.1 404 ") == says);
    connect_says(&routes, "GET / HTTP/1.0\r\n\r\n", says);
    CHECK(strstr(says, "HTTP/1.1 405 ") == says && strstr(says, "\r\nAllow: CONNECT\r\n"));
    route_table_free(&routes);
}

TEST(a_dial_that_fails_is_told_to_a_connect_client_with_its_status_and_reason)
{
    static const struct {
        int code, reset, status;
    } rows[] = {{REVDIAL_EDENIED, REVDIAL_RESET_FORBIDDEN, 403},
                {REVDIAL_EUNREACH, REVDIAL_RESET_CONNECT_REFUSED, 502},
                {REVDIAL_EUNREACH, REVDIAL_RESET_NO_SUCH_HOST, 502},
                {REVDIAL_EUNREACH, REVDIAL_RESET_CONNECT_TIMEOUT, 504},
                {REVDIAL_ETIMEDOUT, 0, 504},
                {REVDIAL_ENOBACKEND, 0, 503},
                {REVDIAL_EDRAINING, 0, 503},
                {REVDIAL_EINVAL, 0, 400},
                {REVDIAL_EPROTO, 0, 500}};
    route_table none = {0};
    told t;
    char want[32];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        revdial_err why = {rows[i].code, rows[i].reset, 0, "the reason"};
        memset(&t, 0, sizeof t);
        tell_done(&t, &front_connect, &none, &why);
        snprintf(want, sizeof want, "HTTP/1.1 %d ", rows[i].status);
        if (strncmp(t.said, want, strlen(want)) != 0 || !strstr(t.said, "\r\n\r\nthe reason\n"))
            test_fail(__FILE__, __LINE__, "row %zu: %s", i, t.said);
    }
    tell_done(&t, &front_connect, &none, NULL);
    CHECK_STR(t.said, "HTTP/1.1 200 Connection established\r\n\r\n");
}

// ------------------------------------------------------------------------------------------------
// SOCKS5. Scripts have the client's bytes; a test tells them in pieces of every size.

typedef struct socks5_row {
    const char *bytes;
    size_t len;
    int verdict;
    const char *said;  // in all, before the dial
    size_t said_len;
    const char *dials;  // "NAME TARGET"
} socks5_row;

#define SOCKS5_ROW(bytes, verdict, said, dials) \
    { \
        bytes, sizeof(bytes) - 1, REVDIAL_ROUTE_##verdict, said, sizeof(said) - 1, dials \
    }
#define LOGIN "\5\2\0\2\1\3web\1x"
#define FAIL(reply) "\5" reply "\0\1\0\0\0\0\0\0"

static const socks5_row socks5_rows[] = {
    SOCKS5_ROW("\5\1\0"
               "\5\1\0\3\16"
               "7.cams.example"
               "\0\26",
               DIAL, "\5\0", "7 7.cams.example:22"),
    SOCKS5_ROW(LOGIN "\5\1\0\3\11X.Example"
                     "\0\26",
               DIAL, "\5\2\1\0", "web x.example:22"),
    SOCKS5_ROW(LOGIN "\5\1\0\1\12\0\0\1\1\273", DIAL, "\5\2\1\0", "web 10.0.0.1:443"),
    SOCKS5_ROW(LOGIN "\5\1\0\4\375\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1\0\26", DIAL, "\5\2\1\0",
               "web [fd00::1]:22"),
    SOCKS5_ROW(LOGIN "\5\1\0\3\3web"
                     "\0\0",
               DIAL, "\5\2\1\0", "web -"),
    SOCKS5_ROW("\5\1\0"
               "\5\1\0\3\1x"
               "\0\26",
               REFUSE, "\5\0" FAIL("\2"), NULL),
    SOCKS5_ROW("\5\1\2\1\0\0"
               "\5\1\0\3\1x"
               "\0\26",
               REFUSE, "\5\2\1\0" FAIL("\2"), NULL),
    SOCKS5_ROW("\5\1\2\1\3Web\0"
               "\5\1\0\3\1x"
               "\0\26",
               REFUSE, "\5\2\1\0" FAIL("\2"), NULL),
    SOCKS5_ROW("\5\1\2\1\3w\0b\0", REFUSE, "\5\2\1\1", NULL),
    SOCKS5_ROW("\5\1\2\2", REFUSE, "\5\2\1\1", NULL),
    SOCKS5_ROW("\5\2\1\3", REFUSE, "\5\377", NULL),
    SOCKS5_ROW("\5\0", REFUSE, "\5\377", NULL),
    SOCKS5_ROW("\4\1\0\26", REFUSE, "", NULL),
    SOCKS5_ROW("GET / HTTP/1.1\r\n", REFUSE, "", NULL),
    SOCKS5_ROW(LOGIN "\5\2", REFUSE, "\5\2\1\0" FAIL("\7"), NULL),
    SOCKS5_ROW(LOGIN "\5\1\1", REFUSE, "\5\2\1\0" FAIL("\1"), NULL),
    SOCKS5_ROW(LOGIN "\4", REFUSE, "\5\2\1\0" FAIL("\1"), NULL),
    SOCKS5_ROW(LOGIN "\5\1\0\2\1", REFUSE, "\5\2\1\0" FAIL("\10"), NULL),
    SOCKS5_ROW(LOGIN "\5\1\0\3\0\0\26", REFUSE, "\5\2\1\0" FAIL("\4"), NULL),
    SOCKS5_ROW(LOGIN "\5\1\0\3\3a b\0\26", REFUSE, "\5\2\1\0" FAIL("\4"), NULL),
    SOCKS5_ROW(LOGIN "\5\1\0\3\1x\0", MORE, "\5\2\1\0", NULL),
};

static void socks5_check(route_table *routes, const socks5_row *row, size_t piece)
{
    told t;
    char dials[400] = "";
    tell(&t, &front_socks5, routes, (script){row->bytes, row->len, piece});
    if (t.verdict == REVDIAL_ROUTE_DIAL) {
        snprintf(dials, sizeof dials, "%s %s", t.r.name, t.r.dial.target ? t.r.dial.target : "-");
        CHECK_INT(t.used, row->len);
        tell_done(&t, &front_socks5, routes, NULL);
        // A client that has sent all at once gets all answers now; one that waited got them before.
        CHECK(t.said_len >= 10 && memcmp(t.said + t.said_len - 10, FAIL("\0"), 10) == 0);
        if (piece == 1) CHECK_INT(t.said_len, 10);
        if (piece >= row->len) CHECK(memcmp(t.said, row->said, row->said_len) == 0);
    } else if (t.said_len != row->said_len || memcmp(t.said, row->said, t.said_len) != 0) {
        test_fail(__FILE__, __LINE__, "row %d, pieces of %zu: it said %zu bytes",
                  (int)(row - socks5_rows), piece, t.said_len);
    }
    if (t.verdict != row->verdict || strcmp(dials, row->dials ? row->dials : "") != 0)
        test_fail(__FILE__, __LINE__, "row %d, pieces of %zu: %d, \"%s\"", (int)(row - socks5_rows),
                  piece, t.verdict, dials);
}

TEST(a_socks5_client_gets_the_same_answers_however_its_bytes_arrive)
{
    route_table routes = {0};
    CHECK(!route_add(&routes, "*.cams.example=*"));
    for (size_t i = 0; i < sizeof socks5_rows / sizeof *socks5_rows; i++)
        for (size_t piece = 1; piece <= socks5_rows[i].len; piece++)
            socks5_check(&routes, &socks5_rows[i], piece);
    route_table_free(&routes);
}

TEST(a_socks5_client_may_send_the_longest_name_and_password)
{
    route_table none = {0};
    char bytes[1024] = "\5\1\2\1\377";
    size_t at = 5 + 255;
    told t;
    memset(bytes + 5, 'a', 255);
    bytes[at++] = '\377';
    memset(bytes + at, 'p', 255);
    at += 255;
    memcpy(bytes + at, "\5\1\0\3\1x\0\26", 8);
    tell(&t, &front_socks5, &none, (script){bytes, at + 8, 1});
    CHECK_INT(t.verdict, REVDIAL_ROUTE_REFUSE);  // no agent's name is that long
    CHECK_INT(t.said_len, 14);
    CHECK(memcmp(t.said + 4, FAIL("\2"), 10) == 0);
}

TEST(a_dial_that_fails_is_told_to_a_socks5_client_by_its_reply)
{
    static const struct {
        int code, reset, reply;
    } rows[] = {{REVDIAL_EDENIED, REVDIAL_RESET_FORBIDDEN, 2},
                {REVDIAL_ENOBACKEND, 0, 3},
                {REVDIAL_ELOST, 0, 3},
                {REVDIAL_EUNREACH, REVDIAL_RESET_UNREACHABLE, 4},
                {REVDIAL_EUNREACH, REVDIAL_RESET_NO_SUCH_HOST, 4},
                {REVDIAL_EUNREACH, REVDIAL_RESET_CONNECT_REFUSED, 5},
                {REVDIAL_EUNREACH, REVDIAL_RESET_CONNECT_TIMEOUT, 6},
                {REVDIAL_ETIMEDOUT, 0, 6},
                {REVDIAL_EREFUSED, REVDIAL_RESET_REFUSED, 1},
                {REVDIAL_ENOMEM, 0, 1}};
    route_table none = {0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        revdial_err why = {rows[i].code, rows[i].reset, 0, ""};
        told t = {.verdict = 0};
        tell_done(&t, &front_socks5, &none, &why);
        CHECK_INT(t.said_len, 10);
        CHECK_INT(t.said[1], rows[i].reply);
    }
}

// ------------------------------------------------------------------------------------------------
// SNI

// A ClientHello as openssl sends it, less what nobody here reads. `extensions` are appended as they
// are, `cut` bytes are missing from its end, and records have at most `piece` bytes.
typedef struct hello {
    uint8_t bytes[20000];
    size_t len;
} hello;

static void hello_make(hello *h, const void *extensions, size_t ext_len, size_t piece)
{
    static const uint8_t fixed[] = {3, 3, [34] = 0 /* no session */, 0, 4, 0x13, 1, 0x13, 2, 1, 0};
    uint8_t message[17000] = {CLIENT_HELLO};
    size_t body = sizeof fixed + 2 + ext_len, at = 0, whole = 4 + body;
    message[1] = (uint8_t)(body >> 16);
    message[2] = (uint8_t)(body >> 8);
    message[3] = (uint8_t)body;
    memcpy(message + 4, fixed, sizeof fixed);
    message[4 + sizeof fixed] = (uint8_t)(ext_len >> 8);
    message[5 + sizeof fixed] = (uint8_t)ext_len;
    memcpy(message + 6 + sizeof fixed, extensions, ext_len);
    for (h->len = 0; at < whole;) {
        size_t n = whole - at < piece ? whole - at : piece;
        const uint8_t head[] = {22, 3, 1, (uint8_t)(n >> 8), (uint8_t)n};
        memcpy(h->bytes + h->len, head, 5);
        memcpy(h->bytes + h->len + 5, message + at, n);
        h->len += 5 + n;
        at += n;
    }
}

#define EXTENSIONS(bytes) bytes, sizeof(bytes) - 1
#define NAME_EXTENSION "\0\0\0\20\0\16\0\0\13Cam.Example"
#define OTHER_EXTENSION "\0\53\0\3\2\3\4"

TEST(the_server_name_is_found_however_the_client_hello_is_cut)
{
    hello h;
    route_host where;
    for (size_t piece = 1; piece < 80; piece++) {
        hello_make(&h, EXTENSIONS(OTHER_EXTENSION NAME_EXTENSION OTHER_EXTENSION), piece);
        for (size_t cut = 0; cut < h.len; cut++)
            CHECK_INT(sni_parse(&where, h.bytes, cut), SNI_MORE);
        memcpy(h.bytes + h.len, "\27\3\3\0\1x", 6);  // early data
        CHECK_INT(sni_parse(&where, h.bytes, h.len), SNI_FOUND);
        CHECK_INT(sni_parse(&where, h.bytes, h.len + 6), SNI_FOUND);
        CHECK_STR(where.host, "cam.example");
        CHECK_INT(where.port, -1);
    }
}

TEST(a_client_hello_without_a_server_name_goes_on_without)
{
    hello h;
    route_host where;
    hello_make(&h, EXTENSIONS(OTHER_EXTENSION), 1000);
    CHECK_INT(sni_parse(&where, h.bytes, h.len), SNI_FOUND);
    CHECK_STR(where.host, "");
    hello_make(&h, "", 0, 1000);
    CHECK_INT(sni_parse(&where, h.bytes, h.len), SNI_FOUND);
    h.bytes[4] = (uint8_t)(h.bytes[4] - 2);  // and without extensions at all, as TLS 1.0 allows
    h.bytes[8] = (uint8_t)(h.bytes[8] - 2);
    CHECK_INT(sni_parse(&where, h.bytes, h.len - 2), SNI_FOUND);
}

TEST(a_malformed_client_hello_is_refused)
{
    static const struct {
        const char *bytes;
        size_t len;
    } rows[] = {{EXTENSIONS("\0\0\0\20\0\16\0\0\14Cam.Example")},  // the name's length
                {EXTENSIONS("\0\0\0\20\0\15\0\0\13Cam.Example")},  // the list's
                {EXTENSIONS("\0\0\0\17\0\16\0\0\13Cam.Example")},  // the extension's
                {EXTENSIONS("\0\0\0\20\0\16\1\0\13Cam.Example")},  // no host name
                {EXTENSIONS("\0\0\0\20\0\16\0\0\13Cam Example")},  // not that either
                {EXTENSIONS("\0\0\0\20\0\16\0\0\13Cam\0Example")},
                {EXTENSIONS("\0\0\0\5\0\3\0\0\0")},            // an empty one
                {EXTENSIONS("\0\0\0\2\0\0")},                  // none
                {EXTENSIONS("\0\0\0\12\0\10\0\0\1a\0\0\1b")},  // two
                {EXTENSIONS(NAME_EXTENSION NAME_EXTENSION)},
                {EXTENSIONS(NAME_EXTENSION "\0")}};
    hello h;
    route_host where;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        hello_make(&h, rows[i].bytes, rows[i].len, 16);
        if (sni_parse(&where, h.bytes, h.len) != SNI_BAD)
            test_fail(__FILE__, __LINE__, "row %zu is taken: \"%s\"", i, where.host);
    }
    static const struct {
        size_t at;
        uint8_t byte;
        enum sni_step step;
    } bytes[] = {{0, 21, SNI_STRANGER}, {0, 'G', SNI_STRANGER}, {1, 2, SNI_STRANGER},
                 {3, 0x41, SNI_BAD},    {5, 2, SNI_BAD},        {6, 1, SNI_BAD},
                 {43, 33, SNI_BAD},     {45, 0, SNI_BAD},       {50, 0, SNI_BAD}};
    for (size_t i = 0; i < sizeof bytes / sizeof *bytes; i++) {
        hello_make(&h, EXTENSIONS(NAME_EXTENSION), 1000);
        h.bytes[bytes[i].at] = bytes[i].byte;
        if (sni_parse(&where, h.bytes, h.len) != bytes[i].step)
            test_fail(__FILE__, __LINE__, "byte %zu", bytes[i].at);
    }
    CHECK_INT(sni_parse(&where, (const uint8_t *)"\26\3\1\0\0", 5), SNI_BAD);  // an empty record
    // A session of 33 bytes, and all lengths right.
    hello_make(&h, EXTENSIONS(NAME_EXTENSION), 1000);
    memmove(h.bytes + 44 + 33, h.bytes + 44, h.len - 44);
    h.bytes[43] = 33;
    h.bytes[4] = (uint8_t)(h.bytes[4] + 33);
    h.bytes[8] = (uint8_t)(h.bytes[8] + 33);
    CHECK_INT(sni_parse(&where, h.bytes, h.len + 33), SNI_BAD);
}

TEST(a_client_hello_may_have_16_KiB_and_no_more)
{
    static uint8_t padding[SNI_HELLO_MAX] = {0, 21};
    hello h;
    route_host where;
    size_t fixed = 4 + 43 + 2 + 4, len = SNI_HELLO_MAX - fixed;
    padding[2] = (uint8_t)(len >> 8);
    padding[3] = (uint8_t)len;
    hello_make(&h, padding, len + 4, 9000);
    CHECK_INT(sni_parse(&where, h.bytes, h.len), SNI_FOUND);
    len++;
    padding[2] = (uint8_t)(len >> 8);
    padding[3] = (uint8_t)len;
    hello_make(&h, padding, len + 4, 9000);
    CHECK_INT(sni_parse(&where, h.bytes, 12), SNI_BAD);
}

TEST(tls_goes_where_its_server_name_leads_and_an_unknown_one_gets_an_alert)
{
    static const uint8_t unknown[] = {21, 3, 3, 0, 2, 2, 112}, failed[] = {21, 3, 3, 0, 2, 2, 80};
    route_table routes = {0};
    revdial_err why = {REVDIAL_ENOBACKEND, 0, 0, ""};
    hello h;
    told t;
    CHECK(!route_add(&routes, "cam.example=cam/127.0.0.1:443"));
    hello_make(&h, EXTENSIONS(NAME_EXTENSION), 20);
    tell(&t, &front_sni, &routes, (script){h.bytes, h.len, 1});
    CHECK_INT(t.verdict, REVDIAL_ROUTE_DIAL);
    CHECK_STR(t.r.name, "cam");
    CHECK_STR(t.r.dial.target, "127.0.0.1:443");
    CHECK_INT(t.used, 0);  // all of it is for the target
    tell_done(&t, &front_sni, &routes, NULL);
    CHECK_INT(t.said_len, 0);
    tell_done(&t, &front_sni, &routes, &why);
    CHECK(t.said_len == 7 && memcmp(t.said, failed, 7) == 0);
    hello_make(&h, EXTENSIONS("\0\0\0\6\0\4\0\0\1x"), 1000);
    tell(&t, &front_sni, &routes, (script){h.bytes, h.len, 9});
    CHECK_INT(t.verdict, REVDIAL_ROUTE_REFUSE);
    CHECK(t.said_len == 7 && memcmp(t.said, unknown, 7) == 0);
    hello_make(&h, "", 0, 1000);
    tell(&t, &front_sni, &routes, (script){h.bytes, h.len, 9});
    CHECK_INT(t.verdict, REVDIAL_ROUTE_REFUSE);
    CHECK(!route_add(&routes, "*=rest"));
    tell(&t, &front_sni, &routes, (script){h.bytes, h.len, 9});
    CHECK_INT(t.verdict, REVDIAL_ROUTE_DIAL);
    CHECK_STR(t.r.name, "rest");
    CHECK(!t.r.dial.target);
    route_table_free(&routes);
}

TEST(a_rule_of_pick_is_known_or_refused)
{
    static const char *const good[] = {"round-robin", "least-streams", "client", "host",
                                       "header:X-User"};
    static const char *const bad[] = {"", "best", "header:", "header:a b", "host "};
    revdial_dial_opts dial = {0};
    char longest[PICK_SIZE + 1] = "header:";
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        CHECK(!pick_problem(good[i]));
        pick_set(&dial, good[i]);
        CHECK(!pick_needs_request(good[i]) == !pick_rule(&dial));
    }
    CHECK_STR(pick_rule(&dial), "header:X-User");
    CHECK_STR(pick_header(pick_rule(&dial)), "X-User");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK(pick_problem(bad[i]));
    memset(longest + 7, 'x', PICK_SIZE - 8);
    CHECK(!pick_problem(longest));
    longest[PICK_SIZE - 1] = 'x';
    CHECK(pick_problem(longest));
}

TEST(clients_who_ask_for_one_host_have_one_key_if_the_route_says_so)
{
    route_table routes = {0};
    char says[2100];
    hello h;
    told t;
    CHECK(!route_add(&routes, "*.example=cam"));
    CHECK(!route_add(&routes, "*.test=web"));
    route_pick(&routes, "*.example=cam", "host");
    route_pick(&routes, "*.test=web", "least-streams");
    hello_make(&h, EXTENSIONS(NAME_EXTENSION), 1000);
    tell(&t, &front_sni, &routes, (script){h.bytes, h.len, 1000});
    CHECK_INT(t.r.dial.pick, REVDIAL_PICK_KEY);
    CHECK(t.r.dial.key_len == 11 && memcmp(t.r.dial.key, "cam.example", 11) == 0);
    tell(&t, &front_connect, &routes, (script){"CONNECT X.test:1 HTTP/1.0\r\n\r\n", 30, 1000});
    CHECK_INT(t.verdict, REVDIAL_ROUTE_DIAL);
    CHECK_INT(t.r.dial.pick, REVDIAL_PICK_LEAST_STREAMS);
    route_pick(&routes, "*.example=cam", "header:Host");  // which TLS has not
    tell(&t, &front_sni, &routes, (script){h.bytes, h.len, 1000});
    CHECK_INT(t.r.dial.pick, REVDIAL_PICK_ROUND_ROBIN);
    CHECK(!t.r.dial.key && t.r.dial.key_len == 0);
    CHECK_STR(route_says(&routes, "a.test", says), "web");
    route_table_free(&routes);
}

// ------------------------------------------------------------------------------------------------
// Health checks

TEST(a_rule_for_health_checks_is_known_or_refused)
{
    static const char *const good[] = {
        "none", "tcp", "http:/", "http:/a?b=c", "http://x.test:80/a", "http://[::1]/"};
    static const char *const bad[] = {
        "",          "udp",        "http",        "http:",      "http:a",     "http://x.test",
        "http:/a b", "http:/\x7f", "http://a b/", "https://x/", "http://x:y/"};
    char longest[HEALTH_HOW_SIZE + 1] = "http:/";
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) CHECK(!health_problem(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (!health_problem(bad[i])) test_fail(__FILE__, __LINE__, "\"%s\" is good", bad[i]);
    memset(longest + 6, 'x', HEALTH_HOW_SIZE - 7);
    CHECK(!health_problem(longest));
    longest[HEALTH_HOW_SIZE - 1] = 'x';
    CHECK(health_problem(longest));
}

// The target that a rule has for that agent, or "none".
static const char *health_says(const char *way, const char *name, char target[ROUTE_TARGET_SIZE])
{
    const health_rule rule = {"tcp", 5000, 2000, 2, 3};
    health_table t = {0};
    strcpy(target, "none");
    CHECK_INT(health_add(&t, way, &rule), 0);
    if (t.count && !health_fits(&t.rows[0], name, target)) strcpy(target, "none");
    health_table_free(&t);
    return target;
}

TEST(agents_are_checked_where_a_port_or_a_route_leads)
{
    static const char *const rows[][3] = {{"web", "web", ""},
                                          {"web", "web-1", "none"},
                                          {"web/127.0.0.1:80", "web", "127.0.0.1:80"},
                                          {"web/unix:/run/x", "web", "unix:/run/x"},
                                          {"*", "cam-1", ""},
                                          {"cam-*-x/10.0.0.*:80", "cam-7-x", "10.0.0.7:80"},
                                          {"cam-*-x/10.0.0.*:80", "cam--x", "none"},
                                          {"cam-*-x/10.0.0.*:80", "cam-x", "none"},
                                          {"cam/*.lan:80", "cam", "none"}};
    char target[ROUTE_TARGET_SIZE];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        CHECK_STR(health_says(rows[i][0], rows[i][1], target), rows[i][2]);
}

TEST(a_health_check_by_http_asks_the_host_that_its_rule_names_or_the_target)
{
    static const char *const rows[][3] = {
        {"http:/up", "", "web"},
        {"http:/up", "unix:/run/x", "web"},
        {"http:/up", "10.0.0.7:80", "10.0.0.7:80"},
        {"http://site.test:81/up", "10.0.0.7:80", "site.test:81"}};
    char request[HEALTH_REQUEST_SIZE], host[400];
    health_row row = {.name = "web"};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        strcpy(row.text, rows[i][0]);
        snprintf(host, sizeof host, "\r\nHost: %s\r\n", rows[i][2]);
        CHECK(health_request(&row, "web", rows[i][1], request) == strlen(request));
        CHECK(strncmp(request, "GET /up HTTP/1.1\r\n", 18) == 0);
        CHECK(strstr(request, host) != NULL);
    }
    strcpy(row.text, "tcp");
    CHECK_INT(health_request(&row, "web", "", request), 0);
}

TEST(of_two_rules_for_one_target_the_first_counts)
{
    const health_rule first = {"tcp", 1, 1, 1, 1}, second = {"http:/", 2, 2, 2, 2},
                      none = {"none", 3, 3, 3, 3}, unset = {0};
    health_table t = {0};
    CHECK_INT(health_add(&t, "web/127.0.0.1:80", &first), 0);
    CHECK_INT(health_add(&t, "web/127.0.0.1:80", &second), 0);
    CHECK_INT(health_add(&t, "web", &second), 0);
    CHECK_INT(health_add(&t, "other", &none), 0);
    CHECK_INT(health_add(&t, "other", &unset), 0);
    if (CHECK_INT(t.count, 2)) {
        CHECK_STR(t.rows[0].text, "tcp");
        CHECK_INT(t.rows[0].rule.interval_ms, 1);
        CHECK_STR(t.rows[1].text, "http:/");
    }
    health_table_free(&t);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
