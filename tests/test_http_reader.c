// What revdial-proxy's --http reads: heads and bodies of HTTP/1.1 and 1.0, and what it refuses. It
// needs no runtime: REVDIAL_NO_RUNTIME.
#include "test.h"

#include "../examples/proxy/http_text.c"
#include "../examples/proxy/http_body.c"
#include "../examples/proxy/http_reader.c"

static http_head head;  // of the one that was read last
static const http_scan of_request, of_answer = {.is_answer = 1};

// Looks for the end of a head that comes in pieces. Returns as http_head_end().
static int head_end(const char *data, size_t len, size_t piece, http_scan scan)
{
    for (size_t got = piece < len ? piece : len;; got = got + piece < len ? got + piece : len) {
        char *exact = malloc(got ? got : 1);  // so that a sanitizer sees its end
        int r;
        if (!exact) abort();
        memcpy(exact, data, got);
        r = http_head_end(&scan, exact, got);
        free(exact);
        if (r != 0 || got == len) return r;
    }
}

// The end of a head, however it is cut.
static int same_end(const char *data, size_t len, http_scan scan)
{
    int whole = head_end(data, len, len, scan);
    for (size_t piece = 1; piece < len && piece < 64; piece++)
        if (head_end(data, len, piece, scan) != whole)
            test_fail(__FILE__, __LINE__, "in pieces of %zu bytes the verdict differs: %.60s",
                      piece, data);
    return whole;
}

// Returns 0 and fills `head`, or the status that refuses the request; -1: more is needed.
static int request(const char *data, size_t len)
{
    int end = same_end(data, len, of_request);
    memset(&head, 0xa5, sizeof head);
    if (end <= 0) return end == 0 ? -1 : -end;
    return http_request_parse(&head, data, (size_t)end);
}

static int response(const char *data, int is_head)
{
    int end = same_end(data, strlen(data), of_answer);
    memset(&head, 0xa5, sizeof head);
    if (end <= 0) return end == 0 ? -1 : 502;
    return http_response_parse(&head, is_head, data, (size_t)end);
}

static int text_is(http_text text, const char *want)
{
    return text.len == strlen(want) && memcmp(text.at, want, text.len) == 0;
}

#define GET "GET / HTTP/1.1\r\n"
#define HOST "Host: a.example\r\n"
#define POST "POST / HTTP/1.1\r\n" HOST

typedef struct good_head {
    const char *text, *method, *target, *host;
    int minor, is_kept, body;
} good_head;

static const good_head good_heads[] = {
    {GET HOST "\r\n", "GET", "/", "a.example", 1, 1, HTTP_NO_BODY},
    {"\r\n" GET HOST "\r\n", "GET", "/", "a.example", 1, 1, HTTP_NO_BODY},
    {GET "host:A.example\r\n\r\n", "GET", "/", "A.example", 1, 1, HTTP_NO_BODY},
    {GET "Host: \t a.example \t \r\n\r\n", "GET", "/", "a.example", 1, 1, HTTP_NO_BODY},
    {GET "Host: a.example.:8080\r\n\r\n", "GET", "/", "a.example", 1, 1, HTTP_NO_BODY},
    {GET "Host: [::1]:8080\r\n\r\n", "GET", "/", "[::1]", 1, 1, HTTP_NO_BODY},
    {GET "Host: 10.0.0.1\r\n\r\n", "GET", "/", "10.0.0.1", 1, 1, HTTP_NO_BODY},
    {GET "Host: a_b.example\r\n\r\n", "GET", "/", "a_b.example", 1, 1, HTTP_NO_BODY},
    {"GET /a?b={c}|d^e&f=%20 HTTP/1.1\r\n" HOST "\r\n", "GET", "/a?b={c}|d^e&f=%20", "a.example", 1,
     1, HTTP_NO_BODY},
    {"GET /a/.././b/.../...?/../../.. HTTP/1.1\r\n" HOST "\r\n", "GET",
     "/a/.././b/.../...?/../../..", "a.example", 1, 1, HTTP_NO_BODY},
    {"GET /%61%2F%fF?100% HTTP/1.1\r\n" HOST "\r\n", "GET", "/%61%2F%fF?100%", "a.example", 1, 1,
     HTTP_NO_BODY},
    // Browsers escape these, curl does not.
    {"GET /\xc3\xa9\x80\xa0\xff?\xe9 HTTP/1.1\r\n" HOST "\r\n", "GET",
     "/\xc3\xa9\x80\xa0\xff?\xe9", "a.example", 1, 1, HTTP_NO_BODY},
    {"GET http://a.example/x?y HTTP/1.1\r\n" HOST "\r\n", "GET", "/x?y", "a.example", 1, 1,
     HTTP_NO_BODY},
    {"GET HTTP://A.EXAMPLE HTTP/1.1\r\n" HOST "\r\n", "GET", "", "a.example", 1, 1, HTTP_NO_BODY},
    {"GET http://a.example?y HTTP/1.1\r\n" HOST "\r\n", "GET", "?y", "a.example", 1, 1,
     HTTP_NO_BODY},
    {"OPTIONS * HTTP/1.1\r\n" HOST "\r\n", "OPTIONS", "*", "a.example", 1, 1, HTTP_NO_BODY},
    {"GET / HTTP/1.0\r\n\r\n", "GET", "/", "", 0, 0, HTTP_NO_BODY},
    {"GET http://a.example/ HTTP/1.0\r\n\r\n", "GET", "/", "a.example", 0, 0, HTTP_NO_BODY},
    {"GET / HTTP/1.0\r\n" HOST "Connection: Keep-Alive\r\n\r\n", "GET", "/", "a.example", 0, 1,
     HTTP_NO_BODY},
    {GET HOST "Connection: close\r\n\r\n", "GET", "/", "a.example", 1, 0, HTTP_NO_BODY},
    {GET HOST "Connection: , keep-alive,,CLOSE ,\r\n\r\n", "GET", "/", "a.example", 1, 0,
     HTTP_NO_BODY},
    {GET HOST "Connection: keep-alive\r\nConnection: close\r\n\r\n", "GET", "/", "a.example", 1, 0,
     HTTP_NO_BODY},
    {POST "Content-Length: 0\r\n\r\n", "POST", "/", "a.example", 1, 1, HTTP_NO_BODY},
    {POST "Content-Length: 5\r\n\r\n", "POST", "/", "a.example", 1, 1, HTTP_LENGTH},
    {POST "Transfer-Encoding: chunked\r\n\r\n", "POST", "/", "a.example", 1, 1, HTTP_CHUNKED},
    {POST "transfer-encoding:\tCHUNKED\r\n\r\n", "POST", "/", "a.example", 1, 1, HTTP_CHUNKED},
    {"VERSION-CONTROL / HTTP/1.1\r\n" HOST "\r\n", "VERSION-CONTROL", "/", "a.example", 1, 1,
     HTTP_NO_BODY},
    {GET HOST "X: \x80\xff caf\xc3\xa9\r\n\r\n", "GET", "/", "a.example", 1, 1, HTTP_NO_BODY},
    {GET HOST "X_Y:\r\nEmpty:\r\n\r\n", "GET", "/", "a.example", 1, 1, HTTP_NO_BODY},
};

TEST(a_head_is_read_as_it_was_meant_however_it_is_cut)
{
    for (size_t i = 0; i < sizeof good_heads / sizeof *good_heads; i++) {
        const good_head *g = &good_heads[i];
        int r = request(g->text, strlen(g->text));
        if (r == 0 && text_is(head.method, g->method) && text_is(head.target, g->target) &&
            text_is(head.host, g->host) && head.minor == g->minor && head.is_kept == g->is_kept &&
            (int)head.body == g->body && !head.problem)
            continue;
        test_fail(__FILE__, __LINE__, "row %zu: %d %s", i, r, head.problem ? head.problem : "");
    }
}

typedef struct bad_head {
    int status;
    const char *text;
} bad_head;

static const bad_head bad_heads[] = {
    // request lines (3)
    {400, "get / HTTP/1.1\r\n" HOST "\r\n"},
    {400, "G\x01T / HTTP/1.1\r\n" HOST "\r\n"},
    {400, ":GET / HTTP/1.1\r\n" HOST "\r\n"},
    {400, " GET / HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET  / HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET\t/ HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /\tHTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /  HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET / HTTP/1.1 \r\n" HOST "\r\n"},
    {400, "GET / HTTP/1.1\r\r\n" HOST "\r\n"},
    {400, "GET /\r\n" HOST "\r\n"},
    {400, "GET\r\n" HOST "\r\n"},
    {400, "GET / x HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /\x7f HTTP/1.1\r\n" HOST "\r\n"},
    {400, "G\xe9T / HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /\xc3\xa9 HTTP/1.1 \r\n" HOST "\r\n"},
    {400, "GET \xc3\xa9 HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET http://a\xc3\xa9.example/ HTTP/1.1\r\nHost: a\xc3\xa9.example\r\n\r\n"},
    {400, GET "Host: a\xc3\xa9.example\r\n\r\n"},
    {400, GET HOST "X\xc3\xa9: y\r\n\r\n"},
    {400, "GET /\xc3\xa9/../../x HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /%zz HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /a%4 HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /a%4?b HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /a% HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /a%00 HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET http://a.example/%zz HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /.. HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /../x HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /a/..//../b HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /a/./%2e%2E%2f.%2e?b HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET http://a.example/a/../../b HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /#a HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET x HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET * HTTP/1.1\r\n" HOST "\r\n"},
    {400, "OPTIONS ** HTTP/1.1\r\n" HOST "\r\n"},
    {400, "OPTIONS */ HTTP/1.1\r\n" HOST "\r\n"},
    {400, "OPTIONS * HTTP/1.1\r\n\r\n"},
    {400, "GET ftp://a.example/ HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET http:///x HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET http://u@a.example/ HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET http://b.example/ HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET http://a.example:81/ HTTP/1.1\r\n" HOST "\r\n"},
    {405, "CONNECT a.example:443 HTTP/1.1\r\n" HOST "\r\n"},
    {405, "TRACE / HTTP/1.1\r\n" HOST "\r\n"},
    {400, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA / HTTP/1.1\r\n" HOST "\r\n"},
    // versions (2.3)
    {505, "GET / HTTP/2.0\r\n" HOST "\r\n"},
    {505, "GET / HTTP/1.2\r\n" HOST "\r\n"},
    {505, "GET / HTTP/0.9\r\n" HOST "\r\n"},
    {505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
    {400, "GET / HTTP/1.10\r\n" HOST "\r\n"},
    {400, "GET / HTTP/01.1\r\n" HOST "\r\n"},
    {400, "GET / HTTP/1.\r\n" HOST "\r\n"},
    {400, "GET / http/1.1\r\n" HOST "\r\n"},
    {400, "GET / HTTPS/1.1\r\n" HOST "\r\n"},
    {400, "GET / ICY/1.1\r\n" HOST "\r\n"},
    {400, "GET / HTTP/x.1\r\n" HOST "\r\n"},
    {400, "GET / HTTP/1,1\r\n" HOST "\r\n"},
    // what is no HTTP at all: refused at the first byte
    {400, "\x16\x03\x01\x02"},
    {400, "\r\n\x16"},
    {400, "{}"},
    // ends of lines (2.2)
    {400, "GET / HTTP/1.1\n" HOST "\r\n"},
    {400, GET "Host: a.example\n\r\n"},
    {400, GET HOST "\n"},
    {400, "\n" GET HOST "\r\n"},
    {400, "\r\n\r\n" GET HOST "\r\n"},
    {400, GET "X: a\rb\r\n" HOST "\r\n"},
    {400, GET "X: a\r\r\n" HOST "\r\n"},
    {400, GET HOST "\r\rX\r\n\r\n"},
    // field lines (5)
    {400, GET " " HOST "\r\n"},
    {400, GET HOST "X: a\r\n b\r\n\r\n"},
    {400, GET HOST "X: a\r\n\tb\r\n\r\n"},
    {400, GET HOST "X: a\r\n \r\n\r\n"},
    {400, GET "Host : a.example\r\n\r\n"},
    {400, GET "Host\t: a.example\r\n\r\n"},
    {400, GET HOST ": x\r\n\r\n"},
    {400, GET HOST "X\r\n\r\n"},
    {400, GET HOST "X Y: z\r\n\r\n"},
    {400, GET HOST "X{: z\r\n\r\n"},
    {400, GET HOST "\xa0X: z\r\n\r\n"},
    {400, GET HOST "X: \x01\r\n\r\n"},
    {400, GET HOST "X: \x7f\r\n\r\n"},
    // Host (3.2)
    {400, GET "\r\n"},
    {400, GET HOST HOST "\r\n"},
    {400, GET HOST "HOST: b.example\r\n\r\n"},
    {400, GET "Host:\r\n\r\n"},
    {400, GET "Host: .\r\n\r\n"},
    {400, GET "Host: a,b\r\n\r\n"},
    {400, GET "Host: a b\r\n\r\n"},
    {400, GET "Host: u@h\r\n\r\n"},
    {400, GET "Host: a/b\r\n\r\n"},
    {400, GET "Host: a:\r\n\r\n"},
    {400, GET "Host: a:0x50\r\n\r\n"},
    {400, GET "Host: a:99999\r\n\r\n"},
    {400, GET "Host: a:80:80\r\n\r\n"},
    {400, GET "Host: [::1\r\n\r\n"},
    {400, GET "Host: []\r\n\r\n"},
    {400, GET "Host: [::1]x\r\n\r\n"},
    {400, GET "Host: [fe80::1%25eth0]\r\n\r\n"},
    {400, GET "Host: ::1\r\n\r\n"},
    {400, "GET / HTTP/1.0\r\n" HOST HOST "\r\n"},
    // Content-Length and Transfer-Encoding (6)
    {400, POST "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"},
    {400, POST "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"},
    {400, POST "Content-Length: 5\r\nContent-Length: 5\r\n\r\n"},
    {400, POST "Content-Length: 5\r\nContent-Length: 6\r\n\r\n"},
    {400, POST "Content-Length: 5, 5\r\n\r\n"},
    {400, POST "Content-Length:\r\n\r\n"},
    {400, POST "Content-Length: +5\r\n\r\n"},
    {400, POST "Content-Length: -5\r\n\r\n"},
    {400, POST "Content-Length: 0x5\r\n\r\n"},
    {400, POST "Content-Length: 5 5\r\n\r\n"},
    {400, POST "Content-Length: 5;\r\n\r\n"},
    {400, POST "Content-Length: 1e3\r\n\r\n"},
    {400, POST "Content-Length: 010\r\n\r\n"},
    {400, POST "Content-Length: 00\r\n\r\n"},
    {400, POST "Content-Length: 18446744073709551616\r\n\r\n"},
    {400, POST "Content-Length: 1000000000000000000000000000005\r\n\r\n"},
    {400, POST "Content-Length : 5\r\n\r\n"},
    {400, POST "Content_Length: 5\r\n\r\n"},
    {400, POST "Transfer_Encoding: chunked\r\n\r\n"},
    {400, POST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"},
    {400, POST "Transfer-Encoding: chunked, chunked\r\n\r\n"},
    {400, POST "Transfer-Encoding: gzip, chunked\r\n\r\n"},
    {400, POST "Transfer-Encoding: chunked, identity\r\n\r\n"},
    {400, POST "Transfer-Encoding: identity\r\n\r\n"},
    {400, POST "Transfer-Encoding: xchunked\r\n\r\n"},
    {400, POST "Transfer-Encoding: \"chunked\"\r\n\r\n"},
    {400, POST "Transfer-Encoding: chunked;a=b\r\n\r\n"},
    {400, POST "Transfer-Encoding: ,chunked\r\n\r\n"},
    {400, POST "Transfer-Encoding:\r\n\r\n"},
    {400, POST "Transfer-Encoding: \x0b"
               "chunked\r\n\r\n"},
    {400, "POST / HTTP/1.0\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n"},
    // Connection (9110:7.6.1), Expect
    {400, POST "Content-Length: 5\r\nConnection: Content-Length\r\n\r\n"},
    {400, POST "Transfer-Encoding: chunked\r\nConnection: close, transfer-encoding\r\n\r\n"},
    {400, GET HOST "Connection: Host\r\n\r\n"},
    {400, GET HOST "X-Forwarded-For: 1.2.3.4\r\nConnection: x-forwarded-for\r\n\r\n"},
    {400, GET HOST "Connection: a b\r\n\r\n"},
    {400, GET HOST "X_Forwarded_For: 1.2.3.4\r\n\r\n"},
    {417, GET HOST "Expect: x\r\n\r\n"},
};

TEST(what_two_readers_could_understand_differently_is_refused)
{
    for (size_t i = 0; i < sizeof bad_heads / sizeof *bad_heads; i++) {
        int r = request(bad_heads[i].text, strlen(bad_heads[i].text));
        if (r != bad_heads[i].status)
            test_fail(__FILE__, __LINE__, "row %zu: %d instead of %d: %s", i, r,
                      bad_heads[i].status, bad_heads[i].text);
    }
}

// No byte makes a good request of what was one, except where any may be.
TEST(a_NUL_or_a_line_end_is_refused_wherever_it_is_put)
{
    static const char text[] = "PUT /abc HTTP/1.1\r\nHost: a.example:80\r\nX-Y: z z\r\n\r\n";
    static const char bytes[] = {'\0', '\r', '\n', '\x0b', '\x7f'};
    size_t len = sizeof text - 1;
    for (size_t k = 0; k < sizeof bytes; k++) {
        for (size_t at = 0; at < len; at++) {
            char changed[sizeof text];
            memcpy(changed, text, len);
            if (changed[at] == bytes[k]) continue;
            changed[at] = bytes[k];
            int r = request(changed, len);
            if (r != 400 && r != -1)
                test_fail(__FILE__, __LINE__, "byte %d at %zu: %d", bytes[k], at, r);
        }
    }
}

TEST(every_beginning_of_a_good_head_asks_for_more)
{
    for (size_t i = 0; i < sizeof good_heads / sizeof *good_heads; i++)
        for (size_t len = 0; len < strlen(good_heads[i].text); len++)
            CHECK_INT(head_end(good_heads[i].text, len, len ? len : 1, of_request), 0);
}

// Writes a request whose target, fields and values are that long.
static size_t large_head(char *to, size_t target, unsigned lines, size_t value)
{
    char *at = to;
    at += sprintf(at, "GET /");
    while (target-- > 1) *at++ = 'a';
    at += sprintf(at, " HTTP/1.1\r\n" HOST);
    while (lines-- > 1) {
        at += sprintf(at, "X: ");
        memset(at, ' ', value);  // which must not take quadratic time to trim
        at += value;
        at += sprintf(at, "\r\n");
    }
    at += sprintf(at, "\r\n");
    return (size_t)(at - to);
}

TEST(a_head_has_at_most_16_KiB_and_100_lines_and_its_target_8000_bytes)
{
    static char text[64 * 1024];
    CHECK_INT(request(text, large_head(text, 8000, 100, 10)), 0);
    CHECK_INT(request(text, large_head(text, 8001, 1, 0)), 414);
    CHECK_INT(request(text, large_head(text, 20000, 1, 0)), 414);
    CHECK_INT(request(text, large_head(text, 1, 101, 0)), 431);
    CHECK_INT(request(text, large_head(text, 1, 2, 16000)), 0);
    CHECK_INT(request(text, large_head(text, 1, 2, 17000)), 431);
    CHECK_INT(request(text, large_head(text, 1, 90, 400)), 431);
    size_t rest = 16384 - large_head(text, 1, 2, 0);
    CHECK_INT(request(text, large_head(text, 1, 2, rest)), 0);
    CHECK_INT(request(text, large_head(text, 1, 2, rest + 1)), 431);
    // At the limit, not when the head is complete.
    memset(text, 'a', sizeof text);
    CHECK_INT(head_end("GET /", 5, 5, of_request), 0);
    memcpy(text, "GET /", 5);
    CHECK_INT(head_end(text, 9000, 100, of_request), -414);
}

TEST(fields_for_one_hop_are_known_also_those_that_Connection_names)
{
    CHECK_INT(request(GET HOST
                      "Connection: x-mine, close\r\nX-Mine: 1\r\nProxy-Authorization: x\r\n"
                      "Proxy: x\r\nKeep-Alive: 5\r\nTE: trailers, gzip;q=1\r\n"
                      "X-Forwarded-For: 1\r\nX-Other: 1\r\n\r\n",
                      168),
              -1);
    static const char text[] =
        GET HOST "Connection: x-mine, close\r\nX-Mine: 1\r\nProxy-Authorization: x\r\n"
                 "Proxy: x\r\nKeep-Alive: 5\r\nTE: gzip;q=1, Trailers\r\nX-Forwarded-For: 1\r\n"
                 "X-Real-IP: 1\r\nX-Other: 1\r\n\r\n";
    static const int kinds[] = {HTTP_HOST,      HTTP_CONNECTION, HTTP_NAMED, HTTP_PROXY,
                                HTTP_PROXY,     HTTP_KEEP_ALIVE, HTTP_TE,    HTTP_X_FORWARDED_FOR,
                                HTTP_X_REAL_IP, HTTP_OTHER};
    CHECK_INT(request(text, sizeof text - 1), 0);
    REQUIRE(head.field_count == sizeof kinds / sizeof *kinds);
    for (size_t i = 0; i < head.field_count; i++) CHECK_INT(head.fields[i].kind, kinds[i]);
    CHECK(head.takes_trailers);
    CHECK(text_is(head.fields[6].value, "gzip;q=1, Trailers"));
}

TEST(an_upgrade_is_one_that_Connection_names_and_is_not_HTTP_2)
{
    static const struct {
        const char *text;
        int is_upgrade;
    } rows[] = {
        {GET HOST "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n", 1},
        {GET HOST "Connection: Upgrade\r\n\r\n", 0},
        {GET HOST "Upgrade: websocket\r\n\r\n", 0},
        {GET HOST "Connection: xupgrade\r\nUpgrade: websocket\r\n\r\n", 0},
        {GET HOST "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n", 0},
        {GET HOST "Connection: Upgrade\r\nUpgrade: websocket, H2C\r\n\r\n", 0},
        {GET HOST "Connection: Upgrade\r\nUpgrade: a\r\nUpgrade: b\r\n\r\n", 0},
        {POST "Connection: Upgrade\r\nUpgrade: x\r\nContent-Length: 1\r\n\r\n", 0},
        {"GET / HTTP/1.0\r\n" HOST "Connection: Upgrade\r\nUpgrade: x\r\n\r\n", 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        CHECK_INT(request(rows[i].text, strlen(rows[i].text)), 0);
        if (head.is_upgrade != rows[i].is_upgrade) test_fail(__FILE__, __LINE__, "row %zu", i);
    }
}

TEST(only_what_may_be_repeated_is_idempotent)
{
    static const char *const safe[] = {"GET", "HEAD", "OPTIONS", "PUT", "DELETE"};
    static const char *const not_safe[] = {"POST", "PATCH", "LOCK", "GETX"};
    for (size_t i = 0; i < sizeof safe / sizeof *safe; i++) {
        head.method = (http_text){safe[i], strlen(safe[i])};
        CHECK(http_is_idempotent(&head));
    }
    for (size_t i = 0; i < sizeof not_safe / sizeof *not_safe; i++) {
        head.method = (http_text){not_safe[i], strlen(not_safe[i])};
        CHECK(!http_is_idempotent(&head));
    }
}

#define TRACE "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

TEST(a_traceparent_is_taken_as_W3C_Trace_Context_has_it_and_only_then)
{
    static const char *const good[] = {
        TRACE, "00-00000000000000000000000000000001-0000000000000001-ff",
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what.will:be_there"};
    static const char *const bad[] = {
        "",
        "0",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
        "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-011",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more",
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-m re",
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-\xc3\xa4",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "0g-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00F067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
        "00 4bf92f3577b34da6a3ce929d0e0e4736 00f067aa0ba902b7 01",
        TRACE "," TRACE};
    char text[400], trace[HTTP_TRACE_SIZE];
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        snprintf(text, sizeof text, GET HOST "TraceParent:  %s \r\n\r\n", good[i]);
        CHECK_INT(request(text, strlen(text)), 0);
        http_trace(&head, trace);
        CHECK_STR(trace, good[i]);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(text, sizeof text, GET HOST "traceparent: %s\r\n\r\n", bad[i]);
        CHECK_INT(request(text, strlen(text)), 0);
        http_trace(&head, trace);
        if (*trace) test_fail(__FILE__, __LINE__, "%s", bad[i]);
    }
    snprintf(text, sizeof text, GET HOST "traceparent: %s\r\ntraceparent: %s\r\n\r\n", TRACE,
             TRACE);
    CHECK_INT(request(text, strlen(text)), 0);
    http_trace(&head, trace);  // which of them would count?
    CHECK_STR(trace, "");
    for (int more = 70; more < 74; more++) {  // 127 characters are the most
        snprintf(text, sizeof text, GET HOST "traceparent: 01%s-%0*d\r\n\r\n", &TRACE[2], more, 7);
        CHECK_INT(request(text, strlen(text)), 0);
        http_trace(&head, trace);
        CHECK_INT(strlen(trace), more < 72 ? 56 + more : 0);
    }
}

TEST(the_end_of_a_response_is_where_RFC_9112_has_it)
{
    static const struct {
        const char *text;
        int is_head, status, body, is_kept;
    } rows[] = {
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 0, 200, HTTP_LENGTH, 1},
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 1, 200, HTTP_NO_BODY, 1},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 0, 200, HTTP_CHUNKED, 1},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 1, 200, HTTP_NO_BODY, 1},
        {"HTTP/1.1 200 OK\r\n\r\n", 0, 200, HTTP_UNTIL_CLOSE, 0},
        {"HTTP/1.1 200 OK\r\n\r\n", 1, 200, HTTP_NO_BODY, 1},
        {"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 0, 200, HTTP_NO_BODY, 1},
        {"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", 0, 200, HTTP_NO_BODY, 1},
        {"HTTP/1.1 204 No Content\r\n\r\n", 0, 204, HTTP_NO_BODY, 1},
        {"HTTP/1.1 304 x\r\nContent-Length: 99\r\n\r\n", 0, 304, HTTP_NO_BODY, 1},
        {"HTTP/1.1 100 Continue\r\n\r\n", 0, 100, HTTP_NO_BODY, 1},
        {"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", 0, 200, HTTP_LENGTH, 0},
        {"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n", 0, 200,
         HTTP_LENGTH, 1},
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n", 0, 200, HTTP_LENGTH,
         0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int r = response(rows[i].text, rows[i].is_head);
        if (r != 0 || head.status != rows[i].status || (int)head.body != rows[i].body ||
            head.is_kept != rows[i].is_kept)
            test_fail(__FILE__, __LINE__, "row %zu: %d, %d, %s", i, r, (int)head.body,
                      head.problem ? head.problem : "");
    }
}

TEST(a_response_whose_end_is_not_certain_is_not_passed_on)
{
    static const char *const rows[] = {
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\nContent-Length:\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: \x0b" "5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: \x0b" "chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\rContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\rContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        "HTTP/1.1 200 OK\nX: a\n b\n\n",
        "HTTP/1.1 200 OK\nX : a\n\n",
        "HTTP/1.1 200 O\x01K\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 200X\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
        "SSH-2.0-x\r\n\r\n",
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int r = response(rows[i], 0);
        if (r != 502) test_fail(__FILE__, __LINE__, "row %zu: %d", i, r);
    }
}

// Small servers and CGI programs send such answers, and curl, nginx and HAProxy take them. Only the
// target has a say in them, so that nobody can hide another message there.
TEST(an_answer_that_breaks_rules_is_taken_if_its_end_is_clear)
{
    static const struct {
        const char *text;
        int status, body, is_kept;
    } rows[] = {
        {"HTTP/1.0 200 OK\nContent-Length: 5\nX: y\n\n", 200, HTTP_LENGTH, 0},
        {"HTTP/1.1 200 OK\nContent-Length: 5\r\nX: y\n\r\n", 200, HTTP_LENGTH, 1},
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\n", 200, HTTP_LENGTH, 1},
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", 200, HTTP_LENGTH, 1},
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 05\r\n\r\n", 200, HTTP_LENGTH, 1},
        {"HTTP/1.1 200 OK\r\nContent-Length: 0000000000000000000005\r\n\r\n", 200, HTTP_LENGTH, 1},
        {"HTTP/1.1 200 OK\r\nContent-Length: 000\r\n\r\n", 200, HTTP_NO_BODY, 1},
        {"HTTP/1.1 999 OK\r\nContent-Length: 5\r\n\r\n", 999, HTTP_LENGTH, 1},
        {"HTTP/1.1 600\r\nX: y\r\n\r\n", 600, HTTP_UNTIL_CLOSE, 0},
        {"HTTP/1.1 200 OK\r\nX: a\x01\x1b\x7f\r\nContent-Length: 5\r\n\r\n", 200, HTTP_LENGTH, 1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int r = response(rows[i].text, 0);
        if (r != 0 || head.status != rows[i].status || (int)head.body != rows[i].body ||
            head.is_kept != rows[i].is_kept || (head.body == HTTP_LENGTH && head.length != 5))
            test_fail(__FILE__, __LINE__, "row %zu: %d, %d, %s", i, r, (int)head.body,
                      head.problem ? head.problem : "");
    }
}

// 6.3: the coding counts. Where a next answer would begin is not certain.
TEST(an_answer_with_a_length_and_chunks_has_chunks_and_is_the_last_one)
{
    static const char *const rows[] = {
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n"};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        CHECK_INT(response(rows[i], 0), 0);
        CHECK_INT(head.body, HTTP_CHUNKED);
        CHECK(!head.has_length && !head.is_kept);
        CHECK_INT(response(rows[i], 1), 0);
        CHECK_INT(head.body, HTTP_NO_BODY);
        CHECK(!head.has_length && !head.is_kept);
    }
}

// ------------------------------------------------------------------------------------------------
// Bodies

typedef struct body_end {
    int verdict;  // 1 done, 0 more is needed, -1 malformed
    size_t used, data_len, trailer_len;
    char data[4096];
} body_end;

static int is_answer;  // are bodies read of answers?

// Reads a body that comes in pieces; what is not used is shown again with what follows.
static void body_read(enum http_framing framing, const char *data, size_t len, size_t piece,
                      body_end *out)
{
    http_body b;
    size_t got = 0;
    memset(&head, 0, sizeof head);
    head.is_answer = is_answer;
    head.body = framing;
    head.length = 10;
    http_body_init(&b, &head);
    memset(out, 0, sizeof *out);
    while (b.state != HTTP_BODY_DONE) {
        http_text payload;
        ptrdiff_t n = http_body_read(&b, data + out->used, got - out->used, &payload);
        out->verdict = n < 0 ? -1 : 0;
        if (n < 0 || (n == 0 && got == len)) return;
        if (n == 0) got = got + piece < len ? got + piece : len;
        out->used += (size_t)n;
        if (b.state == HTTP_BODY_DONE && framing == HTTP_CHUNKED) {
            out->trailer_len = payload.len;
        } else {
            memcpy(out->data + out->data_len, payload.at, payload.len);
            out->data_len += payload.len;
        }
    }
    out->verdict = 1;
}

typedef struct body_row {
    int verdict;
    const char *text, *data;
    size_t left;  // bytes behind the end
} body_row;

static const body_row chunked_rows[] = {
    {1, "0\r\n\r\n", "", 0},
    {1, "5\r\nhello\r\n0\r\n\r\n", "hello", 0},
    {1, "5\r\nhello\r\n0\r\n\r\nGET", "hello", 3},
    {1, "a\r\n0123456789\r\n00000\r\n\r\n", "0123456789", 0},
    {1, "A;x;y=z;q=\"a \\\" b;\"\r\n0123456789\r\n0;x\r\n\r\n", "0123456789", 0},
    {1, "1\r\na\r\n1\r\nb\r\n0\r\nX: y\r\nZ: 1\r\n\r\n", "ab", 0},
    {1, "2\r\n\r\n\r\n0\r\n\r\n", "\r\n", 0},
    {0, "5\r\nhello\r\n0\r\n", "hello", 0},
    {0, "5\r\nhel", "hel", 0},
    {0, "0\r\nX: y\r\n", "", 6},
    {-1, "5\nhello\r\n0\r\n\r\n", "", 0},
    {-1, "5\rhello\r\n0\r\n\r\n", "", 0},
    {-1, "5\r\nhello!\r\n0\r\n\r\n", "hello", 0},
    {-1, "5\r\nhello\n0\r\n\r\n", "hello", 0},
    {-1, "5\r\nhello\r0\r\n\r\n", "hello", 0},
    {-1, "5 \r\nhello\r\n0\r\n\r\n", "", 0},
    {-1, " 5\r\nhello\r\n0\r\n\r\n", "", 0},
    {-1, "\t5\r\nhello\r\n", "", 0},
    {-1, "+5\r\nhello\r\n", "", 0},
    {-1, "-1\r\nhello\r\n", "", 0},
    {-1, "0x5\r\nhello\r\n0\r\n\r\n", "", 0},
    {-1, "5h\r\nhello\r\n", "", 0},
    {-1, "\r\nhello\r\n", "", 0},
    {-1, ";x\r\nhello\r\n", "", 0},
    {-1, "g\r\n", "", 0},
    {-1, "10000000000000000\r\n", "", 0},
    {-1, "ffffffffffffffff\r\n", "", 0},
    {-1, "0000000000000005\r\nhello\r\n", "", 0},
    {-1, "5 ;x\r\nhello\r\n", "", 0},
    {-1, "5;x\nhello\r\n", "", 0},
    {-1, "5;x\ry\r\nhello\r\n", "", 0},
    {-1, "5;x=\"a\r\n\"\r\nhello\r\n", "", 0},
    {-1, "5;x\x01\r\nhello\r\n", "", 0},
    {-1, "5;\r\nhello\r\n", "", 0},
    {-1, "5;;x\r\nhello\r\n", "", 0},
    {-1, "5;\"x\"\r\nhello\r\n", "", 0},
    {-1, "5;=x\r\nhello\r\n", "", 0},
    {-1, "5;x=\r\nhello\r\n", "", 0},
    {-1, "5;x=y=z\r\nhello\r\n", "", 0},
    {-1, "5;x=y\"z\"\r\nhello\r\n", "", 0},
    {-1, "5;x=\"y\"z\r\nhello\r\n", "", 0},
    {1, "5;x=\"y\";z=\"\"\r\nhello\r\n0\r\n\r\n", "hello", 0},
    {-1, "0\r\nX: y\n\r\n", "", 0},
    {-1, "0\n\r\n", "", 0},
};

static void check_chunked(const body_row *rows, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const body_row *row = &rows[i];
        size_t len = strlen(row->text);
        for (size_t piece = 1; piece <= len; piece++) {
            body_end end;
            body_read(HTTP_CHUNKED, row->text, len, piece, &end);
            if (end.verdict != row->verdict || end.data_len != strlen(row->data) ||
                memcmp(end.data, row->data, end.data_len) != 0 ||
                (row->verdict >= 0 && len - end.used != row->left))
                test_fail(__FILE__, __LINE__, "row %zu in pieces of %zu: %d, %zu bytes, %zu left",
                          i, piece, end.verdict, end.data_len, len - end.used);
        }
    }
}

TEST(a_chunked_body_ends_in_one_place_or_is_refused_however_it_is_cut)
{
    check_chunked(chunked_rows, sizeof chunked_rows / sizeof *chunked_rows);
}

static const body_row answer_rows[] = {
    {1, "5   \r\nhello\r\n0 \r\n\r\n", "hello", 0},
    {1, "5 \t;x=\"y\"\r\nhello\r\n0\t\r\n\r\n", "hello", 0},
    {1, "5\nhello\n0\n\n", "hello", 0},
    {1, "5 \nhello\r\n0;x\nX: y\n\nGET", "hello", 3},
    {1, "1\n\n\n0\n\n", "\n", 0},
    {0, "5  ", "", 0},
    {-1, " 5\r\nhello\r\n0\r\n\r\n", "", 0},
    {-1, " \r\nhello\r\n0\r\n\r\n", "", 0},
    {-1, "\nhello\n", "", 0},
    {-1, "5 5\r\nhello\r\n", "", 0},
    {-1, "5 h\r\nhello\r\n", "", 0},
    {-1, "5\rhello\r\n0\r\n\r\n", "", 0},
    {-1, "5 \r\r\nhello\r\n", "", 0},
    {-1, "5\nhello!\n", "hello", 0},
    {-1, "5;\nhello\n", "", 0},
    {-1, "5;x=\"\n\"\nhello\n", "", 0},
    {-1, "+5\nhello\n", "", 0},
    {-1, "-1\nhello\n", "", 0},
    {-1, "0x5\nhello\n", "", 0},
    {-1, "10000000000000000\n", "", 0},
};

TEST(an_answers_chunks_may_have_blanks_behind_their_size_and_lines_that_end_with_LF)
{
    is_answer = 1;
    check_chunked(answer_rows, sizeof answer_rows / sizeof *answer_rows);
    is_answer = 0;
}

TEST(a_body_with_a_length_ends_there_and_one_without_at_the_end_of_the_connection)
{
    body_end end;
    for (size_t piece = 1; piece < 16; piece++) {
        body_read(HTTP_LENGTH, "0123456789GET /", 15, piece, &end);
        CHECK_INT(end.verdict, 1);
        CHECK_INT(end.used, 10);
        body_read(HTTP_LENGTH, "0123", 4, piece, &end);
        CHECK_INT(end.verdict, 0);
        body_read(HTTP_UNTIL_CLOSE, "0123456789GET /", 15, piece, &end);
        CHECK_INT(end.verdict, 0);
        CHECK_INT(end.data_len, 15);
    }
    body_read(HTTP_NO_BODY, "x", 1, 1, &end);
    CHECK_INT(end.used, 0);
}

TEST(the_line_of_a_chunk_and_its_trailers_are_bounded)
{
    static char text[32 * 1024];
    body_end end;
    memset(text, 'x', sizeof text);
    memcpy(text, "5;", 2);
    body_read(HTTP_CHUNKED, text, sizeof text, 4096, &end);
    CHECK_INT(end.verdict, -1);
    memcpy(text, "0\r\nX: ", 6);
    body_read(HTTP_CHUNKED, text, sizeof text, 4096, &end);
    CHECK_INT(end.verdict, -1);
}

TEST(trailers_may_not_frame_or_route_a_message)
{
    static const http_scan scan = {.is_trailer = 1};
    static const struct {
        const char *text;
        int status;
    } rows[] = {
        {"\r\n", 0},
        {"X-Checksum: abc\r\nServer-Timing: x\r\n\r\n", 0},
        {"Content-Length: 5\r\n\r\n", 400},
        {"Transfer-Encoding: chunked\r\n\r\n", 400},
        {"Host: b\r\n\r\n", 400},
        {"Connection: close\r\n\r\n", 400},
        {"X-Forwarded-For: 1\r\n\r\n", 400},
        {"X : y\r\n\r\n", 400},
        {" X: y\r\n\r\n", 400},
        {"X\r\n\r\n", 400},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t len = strlen(rows[i].text);
        CHECK_INT(same_end(rows[i].text, len, scan), (int)len);
        if (http_trailer_parse(&head, 0, rows[i].text, len) != rows[i].status ||
            http_trailer_parse(&head, 1, rows[i].text, len) != rows[i].status)
            test_fail(__FILE__, __LINE__, "row %zu", i);
    }
    CHECK_INT(http_trailer_parse(&head, 0, "X: y\n\n", 6), 400);
    CHECK_INT(http_trailer_parse(&head, 1, "X: y\n\n", 6), 0);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
