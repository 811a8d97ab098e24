// What revdial-proxy's --http passes on: heads of requests and of responses. It needs no runtime:
// REVDIAL_NO_RUNTIME.
#include "test.h"

#include "../examples/proxy/http_text.c"
#include "../examples/proxy/http_body.c"
#include "../examples/proxy/http_reader.c"
#include "../examples/proxy/http_writer.c"

static http_head head;
static char written[HTTP_WRITTEN_MAX];

#define HOST "Host: a.example:80\r\n"
#define ADDED \
    "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a.example:80\r\n"

// What becomes of a request of 192.0.2.7.
static const char *request(const char *text, int is_trusted)
{
    http_source from = {{"192.0.2.7", 9}, is_trusted};
    size_t len;
    if (http_request_parse(&head, text, strlen(text)) != 0) return head.problem;
    len = http_request_write(written, &head, &from);
    written[len] = '\0';
    return written;
}

static const char *response(const char *text, const http_answer *how)
{
    size_t len;
    if (http_response_parse(&head, how->is_head, text, strlen(text)) != 0) return head.problem;
    len = http_response_write(written, &head, how);
    written[len] = '\0';
    return written;
}

TEST(a_request_goes_on_without_what_was_for_this_hop)
{
    static const struct {
        const char *in, *out;
    } rows[] = {
        {"GET /a?b HTTP/1.1\r\n" HOST "Accept: */*\r\n\r\n",
         "GET /a?b HTTP/1.1\r\n" HOST "Accept: */*\r\n" ADDED "\r\n"},
        {"OPTIONS * HTTP/1.1\r\n" HOST "\r\n", "OPTIONS * HTTP/1.1\r\n" HOST ADDED "\r\n"},
        {"GET / HTTP/1.0\r\n" HOST "Connection: keep-alive\r\n\r\n",
         "GET / HTTP/1.1\r\n" HOST ADDED "\r\n"},
        {"GET http://a.example:80?b HTTP/1.1\r\n" HOST "\r\n",
         "GET /?b HTTP/1.1\r\n" HOST ADDED "\r\n"},
        {"GET http://a.example:80/ HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\n" HOST ADDED "\r\n"},
        {"GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nHost: \r\nX-Forwarded-For: 192.0.2.7\r\n"
                                   "X-Forwarded-Proto: http\r\n\r\n"},
        {"GET / HTTP/1.1\r\n" HOST "Connection: x-mine, close\r\nX-Mine: 1\r\nKeep-Alive: 5\r\n"
         "Proxy-Authorization: x\r\nProxy-Connection: close\r\nProxy: http://evil\r\n"
         "Upgrade: h2c\r\nTE: gzip\r\nX-Other: 1\r\n\r\n",
         "GET / HTTP/1.1\r\n" HOST "X-Other: 1\r\n" ADDED "\r\n"},
        {"GET / HTTP/1.1\r\n" HOST "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
         "GET / HTTP/1.1\r\n" HOST ADDED "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"},
        {"GET / HTTP/1.1\r\n" HOST "TE: trailers\r\nConnection: TE\r\n\r\n",
         "GET / HTTP/1.1\r\n" HOST ADDED "Connection: TE\r\nTE: trailers\r\n\r\n"},
        {"PUT / HTTP/1.1\r\n" HOST "Content-Length:  5\r\nExpect: 100-Continue\r\n\r\n",
         "PUT / HTTP/1.1\r\n" HOST "Expect: 100-Continue\r\n" ADDED "Content-Length: 5\r\n\r\n"},
        {"PUT / HTTP/1.1\r\n" HOST "transfer-encoding:CHUNKED\r\nX:y\r\n\r\n",
         "PUT / HTTP/1.1\r\n" HOST "X: y\r\n" ADDED "Transfer-Encoding: chunked\r\n\r\n"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        CHECK_STR(request(rows[i].in, 0), rows[i].out);
}

TEST(who_the_client_is_says_the_connection_unless_a_proxy_of_ours_knows_better)
{
    static const char claims[] =
        "GET / HTTP/1.1\r\n" HOST "X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\n"
        "X-Forwarded-Proto: https\r\nX-Forwarded-Host: b\r\n"
        "Forwarded: for=1.1.1.1\r\nX-Real-IP: 1.1.1.1\r\n\r\n";
    CHECK_STR(request(claims, 0), "GET / HTTP/1.1\r\n" HOST ADDED "\r\n");
    CHECK_STR(request(claims, 1),
              "GET / HTTP/1.1\r\n" HOST "X-Forwarded-Proto: https\r\nX-Forwarded-Host: b\r\n"
              "Forwarded: for=1.1.1.1\r\nX-Real-IP: 1.1.1.1\r\n"
              "X-Forwarded-For: 1.1.1.1, 2.2.2.2, 192.0.2.7\r\n\r\n");
    CHECK_STR(request("GET / HTTP/1.1\r\n" HOST "\r\n", 1), "GET / HTTP/1.1\r\n" HOST ADDED "\r\n");
}

TEST(a_response_says_where_it_ends_in_the_way_that_its_client_understands)
{
    static const struct {
        const char *in;
        http_answer how;
        const char *out;
    } rows[] = {
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\nKeep-Alive: 1\r\n\r\n",
         {.minor = 1, .is_kept = 1},
         "HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 5\r\n\r\n"},
        {"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n",
         {.minor = 0, .is_kept = 1},
         "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n"},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n",
         {.minor = 1, .is_kept = 0, .is_chunked = 1},
         "HTTP/1.1 200 OK\r\nTrailer: X\r\nTransfer-Encoding: chunked\r\nConnection: "
         "close\r\n\r\n"},
        {"HTTP/1.1 200\r\nConnection: close\r\n\r\n",
         {.minor = 0},
         "HTTP/1.1 200 \r\nConnection: close\r\n\r\n"},
        {"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
         {.minor = 1, .is_kept = 1, .is_head = 1},
         "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"},
        {"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
         {.minor = 1, .is_kept = 1},
         "HTTP/1.1 204 No Content\r\n\r\n"},
        {"HTTP/1.1 103 x\r\nLink: a\r\nConnection: close\r\n\r\n",
         {.minor = 1},
         "HTTP/1.1 103 x\r\nLink: a\r\n\r\n"},
        {"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
         {.minor = 1, .is_kept = 1},
         "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"},
        {"HTTP/1.1 999 Odd\nContent-Length: 5\nContent-Length: 005\nX: y\n\n",
         {.minor = 1, .is_kept = 1},
         "HTTP/1.1 999 Odd\r\nX: y\r\nContent-Length: 5\r\n\r\n"},
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
         {.minor = 1, .is_kept = 1, .is_chunked = 1},
         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"},
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
         {.minor = 0},
         "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"},
        {"HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n",
         {.minor = 1, .is_kept = 1},
         "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        CHECK_STR(response(rows[i].in, &rows[i].how), rows[i].out);
}

TEST(an_answer_of_our_own_has_its_length_and_no_body_for_HEAD)
{
    http_answer how = {.minor = 1};
    written[http_error_write(written, 503, "why", &how)] = '\0';
    CHECK_STR(written, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\n"
                       "Content-Length: 4\r\nRetry-After: 1\r\nConnection: close\r\n\r\nwhy\n");
    how.is_head = how.is_kept = 1;
    written[http_error_write(written, 404, "why", &how)] = '\0';
    CHECK_STR(written, "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\n"
                       "Content-Length: 4\r\n\r\n");
}

// The largest head that is read has room for what is added to it.
TEST(what_is_added_to_the_largest_head_fits)
{
    static char text[HTTP_HEAD_MAX + 1];
    char name[HTTP_HOST_MAX + 1];
    http_source from = {{"ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255", 45}, 0};
    size_t len, least;
    memset(name, 'a', HTTP_HOST_MAX);
    name[HTTP_HOST_MAX] = '\0';
    len = (size_t)sprintf(text, "GET http://%s:65535 HTTP/1.0\r\n", name);
    for (int i = 0; i < HTTP_LINES_MAX - 1; i++) len += (size_t)sprintf(text + len, "X:y\r\n");
    least = len + 4 + 4;
    len += (size_t)sprintf(text + len, "Z:");
    while (len < HTTP_HEAD_MAX - 4) text[len++] = 'z';
    CHECK(len > least);
    memcpy(text + len, "\r\n\r\n", 4);
    CHECK_INT(http_request_parse(&head, text, HTTP_HEAD_MAX), 0);
    head.takes_trailers = head.has_length = 1;
    head.length = UINT64_MAX;
    head.body = HTTP_CHUNKED;
    len = http_request_write(written, &head, &from);
    CHECK(len > HTTP_HEAD_MAX && len <= HTTP_WRITTEN_MAX);
}

TEST(trailers_end_the_last_chunk)
{
    static const char text[] = "X-Sum:1\r\n\r\n";
    CHECK_INT(http_trailer_parse(&head, 1, text, sizeof text - 1), 0);
    written[http_trailer_write(written, &head)] = '\0';
    CHECK_STR(written, "0\r\nX-Sum: 1\r\n\r\n");
    written[http_trailer_write(written, NULL)] = '\0';
    CHECK_STR(written, "0\r\n\r\n");
    written[http_chunk_write(written, 65535)] = '\0';
    CHECK_STR(written, "ffff\r\n");
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
