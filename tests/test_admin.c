// The admin port of the two programs: its reader of requests, what it lets whom do, and its texts.
#include "revdial.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "test.h"

// many.test has two addresses of this machine, one of them twice, and one that the machine does not
// have: behind those, so that nobody sends anything there. At far.test one more such comes first.
static int many_getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
                            struct addrinfo **found)
{
    static const char *const addresses[] = {"203.0.113.1", "127.0.0.1", "127.0.0.1", "127.0.0.2",
                                            "203.0.113.1"};
    const size_t is_many = strcmp(host, "many.test") == 0;
    int r = 0;
    if (!is_many && strcmp(host, "far.test") != 0) return getaddrinfo(host, port, hints, found);
    *found = NULL;
    for (size_t i = is_many; r == 0 && i < sizeof addresses / sizeof *addresses; i++) {
        struct addrinfo **end = found;
        while (*end) end = &(*end)->ai_next;
        r = getaddrinfo(addresses[i], port, hints, end);
    }
    return r;
}

#define getaddrinfo many_getaddrinfo

#include "../examples/program/admin.c"
#include "../examples/program/config.c"
#include "../examples/program/files.c"
#include "../examples/program/listen.c"
#include "../examples/program/log.c"
#include "../examples/program/metrics.c"
#include "../examples/program/options.c"
#include "../examples/program/request.c"
#include "../examples/program/signals.c"
#include "../examples/program/text.c"
#include "../examples/program/values.c"
#include "../examples/proxy/watch.c"

const char *prog_tls_version(void)
{
    return "no TLS";
}

// ------------------------------------------------------------------------------------------------
// Requests

static int parsed(prog_request *r, const char *head, const char **problem)
{
    size_t len = strlen(head);
    CHECK_INT(prog_request_len(head, len), len);
    return prog_request_parse(r, head, len, problem);
}

TEST(a_request_is_understood)
{
    prog_request r;
    const char *problem;
    char value[16];
    CHECK_INT(parsed(&r,
                     "POST /drain?session=00ff&x=&name=cam-1 HTTP/1.1\r\nhost: 127.0.0.1:9000\r\n"
                     "Authorization:bearer s3cret \r\nORIGIN: http://127.0.0.1:9000\r\n"
                     "Sec-Fetch-Site:\tsame-origin\r\nContent-Length: 0\r\nX-Other: \xff\r\n\r\n",
                     &problem),
              200);
    CHECK_INT(r.method, PROG_POST);
    CHECK_STR(r.path, "/drain");
    CHECK_STR(r.host, "127.0.0.1:9000");
    CHECK_STR(r.token, "s3cret");
    CHECK_STR(r.site, "same-origin");
    CHECK_INT(prog_request_query(&r, "session", value, sizeof value), 1);
    CHECK_STR(value, "00ff");
    CHECK_INT(prog_request_query(&r, "name", value, sizeof value), 1);
    CHECK_STR(value, "cam-1");
    CHECK_INT(prog_request_query(&r, "name", value, 5), 0);
    CHECK_INT(prog_request_query(&r, "sess", value, sizeof value), 0);
    CHECK_INT(prog_request_query(&r, "x", value, sizeof value), 0);
    CHECK_INT(parsed(&r, "GET /? HTTP/1.0\r\n\r\n", &problem), 200);
    CHECK_STR(r.path, "/");
    CHECK_STR(r.query, "");
}

TEST(a_request_that_can_be_read_in_two_ways_is_refused)
{
    static const struct {
        int status;
        const char *head;
    } rows[] = {
        {400, "GET  / HTTP/1.1\r\n\r\n"},
        {400, "GET / x HTTP/1.1\r\n\r\n"},
        {400, "GET /\tx HTTP/1.1\r\n\r\n"},
        {400, "GET /\xc3\xa4 HTTP/1.1\r\n\r\n"},
        {400, "GET http://a/ HTTP/1.1\r\n\r\n"},
        {400, "GET * HTTP/1.1\r\n\r\n"},
        {400, "GET HTTP/1.1\r\n\r\n"},
        {400, "\r\n\r\n"},
        {400, " GET / HTTP/1.1\r\n\r\n"},
        {405, "get / HTTP/1.1\r\n\r\n"},
        {405, "OPTIONS / HTTP/1.1\r\n\r\n"},
        {505, "GET / HTTP/2.0\r\n\r\n"},
        {505, "GET / HTTP/1.11\r\n\r\n"},
        {505, "GET / http/1.1\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nHost : a\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\n: a\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nHost\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nHost: a\x01\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nHost: a\r\nHOST: a\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n"},
        {413, "POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n"},
        {413, "POST / HTTP/1.1\r\nContent-Length: 00\r\n\r\n"},
        {501, "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        prog_request r;
        const char *problem;
        int status = parsed(&r, rows[i].head, &problem);
        if (status != rows[i].status || !*problem)
            test_fail(__FILE__, __LINE__, "%d \"%s\" for %s", status, problem, rows[i].head);
    }
}

TEST(a_head_ends_with_an_empty_line_and_has_at_most_8_KiB)
{
    static char big[PROG_HEAD_SIZE];
    static const char head[] = "GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n";
    prog_request r;
    const char *problem;
    for (int i = 0; i < 18; i++) CHECK_INT(prog_request_len(head, (size_t)i), 0);
    for (int i = 18; i < 36; i++) CHECK_INT(prog_request_len(head, (size_t)i), 18);
    memset(big, 'x', sizeof big);
    CHECK_INT(prog_request_len(big, sizeof big - 1), 0);
    CHECK_INT(prog_request_len(big, sizeof big), -1);
    memcpy(big, "GET /", 5);
    memcpy(big + 300, " HTTP/1.1\r\n\r\n", 13);
    CHECK_INT(prog_request_parse(&r, big, 313, &problem), 414);
    big[100] = '?';
    CHECK_INT(prog_request_parse(&r, big, 313, &problem), 200);
    memcpy(big + 1000, " HTTP/1.1\r\n\r\n", 13);
    memset(big + 300, 'x', 700);
    CHECK_INT(prog_request_parse(&r, big, 1013, &problem), 414);
}

TEST(a_Host_is_ours_if_no_name_server_could_have_led_it_here)
{
    static const char *const ours[] = {"127.0.0.1",      "127.0.0.1:9000", "10.0.0.7:80",
                                       "[::1]",          "[fe80::1]:9000", "localhost",
                                       "LocalHost:9000", "Ops.example",    "ops.example:9000"};
    static const char *const others[] = {"",
                                         "evil.example",
                                         "evil.example:9000",
                                         "127.0.0.1.evil",
                                         "localhost.evil.example",
                                         "1.evil",
                                         "[::1",
                                         "[::1]x",
                                         "127.0.0.1:x",
                                         "[evil]",
                                         "ops.example.evil",
                                         "xops.example",
                                         "::1"};
    static const char names[] = "a.example,ops.example,b.example";
    prog_request r = {0};
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++) {
        snprintf(r.host, sizeof r.host, "%s", ours[i]);
        if (!prog_request_is_ours(&r, names)) test_fail(__FILE__, __LINE__, "%s", r.host);
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        snprintf(r.host, sizeof r.host, "%s", others[i]);
        if (prog_request_is_ours(&r, names)) test_fail(__FILE__, __LINE__, "%s", r.host);
    }
}

TEST(a_page_of_another_site_is_told_by_what_browsers_say)
{
    static const struct {
        int is_same;
        const char *origin, *site;
    } rows[] = {{1, "", ""},
                {1, "", "none"},
                {1, "http://h:1", ""},
                {1, "https://h:1", "same-origin"},
                {1, "http://H:1", "same-origin"},
                {0, "http://h:2", ""},
                {0, "http://h:1.evil", ""},
                {0, "null", ""},
                {0, "ftp://h:1", ""},
                {0, "", "cross-site"},
                {0, "", "same-site"},
                {0, "http://h:1", "cross-site"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        prog_request r = {.host = "h:1"};
        snprintf(r.origin, sizeof r.origin, "%s", rows[i].origin);
        snprintf(r.site, sizeof r.site, "%s", rows[i].site);
        if (prog_request_is_same_origin(&r) != rows[i].is_same)
            test_fail(__FILE__, __LINE__, "%s %s", r.origin, r.site);
    }
}

// ------------------------------------------------------------------------------------------------
// Texts

TEST(a_JSON_string_is_one_whatever_bytes_it_has)
{
    static const struct {
        const char *value, *json;
    } rows[] = {{"", "\"\""},
                {"cam-1", "\"cam-1\""},
                {"a b", "\"a b\""},
                {"\"\\", "\"\\\"\\\\\""},
                {"a\nb", "\"a\\nb\""},
                {"</script>", "\"</script>\""},
                {"\xc3\xa4", "\"\xc3\xa4\""}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        prog_out t = {0};
        prog_out_json(&t, rows[i].value);
        CHECK_STR(t.at, rows[i].json);
        prog_out_free(&t);
    }
    prog_out t = {0};
    prog_out_json(&t, "\xff\xfe\x1b[2J");
    CHECK(t.at[0] == '"' && !strchr(t.at, '\xff') && !strchr(t.at, '\x1b'));
    prog_out_free(&t);
}

// A scraper refuses two samples of one series.
TEST(an_agent_with_the_name_other_is_counted_with_all_others)
{
    static const char series[] = "revdial_sessions{name=\"other\"}";
    watch *w = watch_new();
    watch_snapshot now;
    prog_out out = {0};
    REQUIRE(w != NULL);
    watch_name(w, "other");
    watch_name(w, "cam-1");
    REQUIRE(watch_snapshot_open(w, &now));
    prog_metrics_sessions(&out, now.counts, now.count);
    const char *first = strstr(out.at, series);
    CHECK(first && !strstr(first + 1, series));
    CHECK(strstr(out.at, "revdial_sessions{name=\"cam-1\"}") != NULL);
    watch_snapshot_close(&now);
    prog_out_free(&out);
    watch_free(w);
}

TEST(a_table_has_columns_and_no_control_characters)
{
    prog_table t = {.columns = 3};
    prog_out out = {0};
    static const char *const cells[] = {"NAME",      "A", "B", "cam-1", "longer",
                                        "x\x1b[2Jy", "",  "-", ""};
    for (int i = 0; i < 9; i++) prog_table_cell(&t, "%s", cells[i]);
    prog_table_end(&t, &out);
    CHECK_STR(out.at, "NAME   A       B\n"
                      "cam-1  longer  x?[2Jy\n"
                      "       -       \n");
    prog_out_free(&out);
}

// ------------------------------------------------------------------------------------------------
// The server

static int answer_hello(void *ud, const prog_request *r, prog_out *out)
{
    atomic_int *count = ud;
    (void)r;
    atomic_fetch_add(count, 1);
    prog_out_add(out, "hello\n");
    return 200;
}

static int answer_much(void *ud, const prog_request *r, prog_out *out)
{
    (void)ud;
    (void)r;
    for (int i = 0; i < 1 << 18; i++) prog_out_add(out, "%015d\n", i);
    return 200;
}

static const prog_page pages[] = {{"/open", "text/plain", PROG_PAGE_OPEN, answer_hello},
                                  {"/read", "text/plain", 0, answer_hello},
                                  {"/much", "text/plain", 0, answer_much},
                                  {"/act", "text/plain", PROG_PAGE_ACTION, answer_hello},
                                  {NULL, NULL, 0, NULL}};

typedef struct server {
    prog_admin *admin;
    prog_common common;
    prog_log log;
    atomic_int answers;
    char dir[32], token_file[64], address[80];
} server;

// Starts it with a token, at an address of that kind.
static int server_open(server *s, const char *at)
{
    const prog_admin_config cfg = {&s->common, pages, &s->answers, &s->log};
    prog_address bound = {.len = sizeof bound.at};
    FILE *f;
    strcpy(s->dir, "/tmp/revdial-test.XXXXXX");
    if (!mkdtemp(s->dir)) abort();
    snprintf(s->token_file, sizeof s->token_file, "%s/token", s->dir);
    f = fopen(s->token_file, "w");
    if (!f || chmod(s->token_file, 0600) != 0) abort();
    fputs("0123456789abcdef\n", f);
    fclose(f);
    prog_log_open(&s->log, 0, PROG_LOG_TEXT);
    snprintf(s->address, sizeof s->address, at, s->dir);
    s->common.admin = s->address;
    s->common.admin_token_file = s->token_file;
    if (!CHECK_INT(prog_admin_start(&s->admin, &cfg), 0)) return 0;
    if (s->admin->at[0].path[0]) return 1;
    getsockname(s->admin->at[0].fd, (struct sockaddr *)&bound.at, &bound.len);
    snprintf(s->address, sizeof s->address, "127.0.0.1:%d",
             ntohs(((struct sockaddr_in *)&bound.at)->sin_port));
    return 1;
}

static void server_close(server *s)
{
    prog_admin_stop(s->admin);
    unlink(s->token_file);
    CHECK_INT(rmdir(s->dir), 0);  // a Unix socket's file is gone
}

static int server_connect(const server *s)
{
    revdial_err err = {0};
    int fd = prog_connect(s->address, &err);
    if (fd < 0) test_fail(__FILE__, __LINE__, "%s", err.msg);
    return fd;
}

// Sends a request and reads all of the answer. Returns its status.
static int server_ask(const server *s, const char *request, char *answer, size_t size)
{
    int fd = server_connect(s);
    size_t len = 0;
    ssize_t n;
    if (send(fd, request, strlen(request), MSG_NOSIGNAL) < 0) return -1;
    while (len < size - 1 && (n = read(fd, answer + len, size - 1 - len)) > 0) len += (size_t)n;
    answer[len] = '\0';
    close(fd);
    return len > 12 ? atoi(answer + 9) : -1;
}

TEST(what_may_be_read_and_done_depends_on_host_origin_and_token)
{
#define AT "Host: 127.0.0.1:1\r\n"
#define TOKEN "Authorization: Bearer 0123456789abcdef\r\n"
    static const struct {
        int status;
        const char *request;
    } rows[] = {
        {200, "GET /open HTTP/1.1\r\nHost: pod.example\r\n\r\n"},
        {200, "GET /open HTTP/1.0\r\n\r\n"},
        {200, "GET /read HTTP/1.1\r\n" AT "\r\n"},
        {421, "GET /read HTTP/1.1\r\nHost: evil.example\r\n\r\n"},
        {421, "GET /nowhere HTTP/1.1\r\nHost: evil.example\r\n\r\n"},
        {421, "GET /read HTTP/1.0\r\n\r\n"},
        {404, "GET /nowhere HTTP/1.1\r\n" AT "\r\n"},
        {404, "GET /read/ HTTP/1.1\r\n" AT "\r\n"},
        {405, "POST /read HTTP/1.1\r\n" AT TOKEN "\r\n"},
        {405, "GET /act HTTP/1.1\r\n" AT TOKEN "\r\n"},
        {405, "OPTIONS /act HTTP/1.1\r\n" AT "\r\n"},
        {401, "POST /act HTTP/1.1\r\n" AT "\r\n"},
        {401, "POST /act HTTP/1.1\r\n" AT "Authorization: Bearer 0123456789abcde\r\n\r\n"},
        {401, "POST /act HTTP/1.1\r\n" AT "Authorization: Bearer 0123456789abcdef0\r\n\r\n"},
        {401, "POST /act HTTP/1.1\r\n" AT "Authorization: Basic 0123456789abcdef\r\n\r\n"},
        {403, "POST /act HTTP/1.1\r\n" AT TOKEN "Origin: http://evil.example\r\n\r\n"},
        {403, "POST /act HTTP/1.1\r\n" AT TOKEN "Sec-Fetch-Site: cross-site\r\n\r\n"},
        {421, "POST /act HTTP/1.1\r\nHost: evil.example\r\n" TOKEN "\r\n"},
        {200, "POST /act HTTP/1.1\r\n" AT TOKEN "Origin: http://127.0.0.1:1\r\n\r\n"},
    };
    server s = {0};
    char answer[4096];
    if (server_open(&s, "127.0.0.1:0")) {
        int answers = 0;
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            int status = server_ask(&s, rows[i].request, answer, sizeof answer);
            if (status != rows[i].status)
                test_fail(__FILE__, __LINE__, "%d for %s", status, rows[i].request);
            CHECK(strstr(answer, "\r\nX-Content-Type-Options: nosniff\r\n") != NULL);
            answers += status == 200;
        }
        CHECK_INT(atomic_load(&s.answers), answers);
        CHECK_INT(server_ask(&s, "HEAD /read HTTP/1.1\r\n" AT "\r\n", answer, sizeof answer), 200);
        CHECK(strstr(answer, "\r\nContent-Length: 6\r\n") != NULL);
        CHECK(strstr(answer, "hello") == NULL);
    }
    server_close(&s);
}

TEST(an_action_needs_a_token_that_was_configured)
{
    server s = {0};
    char answer[4096];
    if (server_open(&s, "127.0.0.1:0")) {
        memset(s.admin->token, 0, sizeof s.admin->token);
        CHECK_INT(server_ask(&s, "POST /act HTTP/1.1\r\n" AT "Authorization: Bearer \r\n\r\n",
                             answer, sizeof answer),
                  403);
        CHECK(strstr(answer, "--admin-token-file") != NULL);
    }
    server_close(&s);
}

TEST(a_Unix_socket_is_its_owner_s_and_gone_afterwards)
{
    server s = {0};
    char answer[4096];
    struct stat st;
    if (server_open(&s, "unix:%s/sock")) {
        CHECK_INT(stat(s.address + 5, &st), 0);
        CHECK_INT(st.st_mode & 0777, 0600);
        CHECK_INT(server_ask(&s, "GET /read HTTP/1.1\r\nHost: x\r\n\r\n", answer, sizeof answer),
                  200);
    }
    server_close(&s);
}

TEST(a_host_name_is_listened_at_with_all_addresses_that_this_machine_has)
{
    prog_listener one[PROG_LISTENERS], all[PROG_LISTENERS], more[PROG_LISTENERS];
    char at[PROG_LISTENER_SIZE], name[PROG_LISTENER_SIZE], text[PROG_LISTENER_SIZE];
    revdial_err err = {0};
    int count = -1;
    for (int tries = 0; count < 0 && tries < 20; tries++) {  // others may have a port, too
        REQUIRE(prog_listener_open(one, "many.test:0", 4, &err) == 1);
        prog_listener_text(&one[0], at, sizeof at);
        prog_listener_close(&one[0]);
        snprintf(name, sizeof name, "many.test%s", strchr(at, ':'));
        count = prog_listener_open(all, name, 4, &err);
    }
    REQUIRE(count == 2);
    prog_listener_text(&all[0], text, sizeof text);
    CHECK_STR(text, at);
    prog_listener_text(&all[1], text, sizeof text);
    CHECK(strncmp(text, "127.0.0.2:", 10) == 0);
    // What connects to the name finds the address that is left.
    prog_listener_close(&all[0]);
    int fd = prog_connect(name, &err);
    CHECK(fd >= 0);
    close(fd);
    // One that is in use is no address that the machine has not.
    CHECK_INT(prog_listener_open(more, name, 4, &err), -1);
    CHECK(strstr(err.msg, "in use") != NULL);
    prog_listener_close(&all[1]);
}

TEST(a_port_that_the_system_chooses_is_that_of_the_first_address_that_this_machine_has)
{
    prog_listener l[PROG_LISTENERS];
    char text[PROG_LISTENER_SIZE];
    revdial_err err = {0};
    REQUIRE(prog_listener_open(l, "far.test:0", 4, &err) == 1);
    prog_listener_text(&l[0], text, sizeof text);
    CHECK(strncmp(text, "127.0.0.1:", 10) == 0);
    prog_listener_close(&l[0]);
}

TEST(actions_that_are_refused_do_not_fill_the_log)
{
    server s = {0};
    char answer[4096], text[16384] = "";
    int p[2], lines = 0;
    REQUIRE(pipe(p) == 0);
    if (server_open(&s, "127.0.0.1:0")) {
        s.log.level = REVDIAL_LOG_INFO;
        s.log.fd = p[1];
        for (int i = 0; i < 40; i++)
            CHECK_INT(server_ask(&s, "POST /act HTTP/1.1\r\n" AT "\r\n", answer, sizeof answer),
                      401);
        for (int i = 0; i < 40; i++)
            CHECK_INT(server_ask(&s,
                                 "POST /act HTTP/1.1\r\n" AT
                                 "Authorization: Bearer 0123456789abcdef\r\n\r\n",
                                 answer, sizeof answer),
                      200);
        CHECK(read(p[0], text, sizeof text - 1) > 0);
        for (const char *at = text; (at = strstr(at, ": 401")) != NULL; at++) lines++;
        CHECK(lines >= 5 && lines < 40);
        for (const char *at = text; (at = strstr(at, ": 200")) != NULL; at++) lines++;
        CHECK(lines >= 45);
    }
    server_close(&s);
    close(p[0]);
    close(p[1]);
}

TEST(a_Unix_socket_whose_owner_has_stopped_accepting_is_in_use)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    char dir[] = "/tmp/revdial-test.XXXXXX", address[PROG_LISTENER_SIZE];
    int owner, clients[4], i = 0, r = 0;
    prog_listener l[PROG_LISTENERS];
    revdial_err err = {0};
    REQUIRE(mkdtemp(dir) != NULL);
    snprintf(at.sun_path, sizeof at.sun_path, "%s/s", dir);
    snprintf(address, sizeof address, "unix:%s", at.sun_path);
    owner = socket(AF_UNIX, SOCK_STREAM, 0);
    REQUIRE(owner >= 0 && bind(owner, (struct sockaddr *)&at, sizeof at) == 0);
    CHECK_INT(listen(owner, 0), 0);
    for (; r == 0 && i < 4; i++) {  // until its queue is full
        clients[i] = socket(AF_UNIX, SOCK_STREAM, 0);
        REQUIRE(clients[i] >= 0 && prog_nonblocking(clients[i]) == 0);
        r = connect(clients[i], (struct sockaddr *)&at, sizeof at);
    }
    CHECK(r != 0 && errno == EAGAIN);
    CHECK_INT(prog_listener_open(l, address, 4, &err), -1);
    CHECK(strstr(err.msg, "in use") != NULL);
    CHECK_INT(access(at.sun_path, F_OK), 0);
    while (i > 0) close(clients[--i]);
    close(owner);
    unlink(at.sun_path);
    rmdir(dir);
}

TEST(heads_that_are_too_long_and_connections_that_say_nothing_harm_nobody)
{
    enum { MANY = PROG_ADMIN_CONNECTIONS + 8 };
    static char big[PROG_HEAD_SIZE + 5000];
    server s = {0};
    char answer[4096];
    int fds[MANY];
    if (server_open(&s, "127.0.0.1:0")) {
        memset(big, 'x', sizeof big - 1);
        memcpy(big, "GET /read HTTP/1.1\r\nX: ", 23);
        CHECK_INT(server_ask(&s, big, answer, sizeof answer), 431);
        CHECK(strstr(answer, "8 KiB") != NULL);
        for (int i = 0; i < MANY; i++) fds[i] = server_connect(&s);
        for (int i = 0; i < MANY; i++) CHECK_INT(send(fds[i], "GET ", 4, MSG_NOSIGNAL), 4);
        for (int i = 0; i < MANY; i++) close(fds[i]);
        CHECK_INT(server_ask(&s, "GET /read HTTP/1.1\r\n" AT "\r\n", answer, sizeof answer), 200);
    }
    server_close(&s);
}

TEST(a_long_answer_comes_whole)
{
    enum { SIZE = 16 << 18 };
    static char answer[SIZE + 4096];
    server s = {0};
    if (server_open(&s, "127.0.0.1:0")) {
        CHECK_INT(server_ask(&s, "GET /much HTTP/1.1\r\n" AT "\r\n", answer, sizeof answer), 200);
        const char *body = strstr(answer, "\r\n\r\n");
        CHECK(body != NULL && strlen(body + 4) == SIZE);
        CHECK(strstr(answer, "\r\nContent-Length: 4194304\r\n") != NULL);
    }
    server_close(&s);
}

TEST(an_address_that_is_none_is_refused_with_what_would_be_one)
{
    static const char *const bad[] = {
        "x:y:9", ":9", "127.0.0.1:", "unix:", "127.0.0.1:99999", "", "no.such.host.invalid:9"};
    static const char *const good[] = {"9000", "127.0.0.1:9000", "[::1]:9000", "localhost:9000"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        prog_address a;
        revdial_err err = {0};
        if (prog_address_parse(&a, 1, bad[i], &err) >= 0 || !strstr(err.msg, bad[i]))
            test_fail(__FILE__, __LINE__, "\"%s\": \"%s\"", bad[i], err.msg);
    }
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        prog_address a;
        revdial_err err = {0};
        if (prog_address_parse(&a, 1, good[i], &err) != 1)
            test_fail(__FILE__, __LINE__, "%s", err.msg);
    }
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
