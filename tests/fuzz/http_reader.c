// What revdial-proxy's --http reads: a request, a response and a chunked body, whole and in two
// kinds of pieces, which must make no difference. What is accepted is judged again by rules that
// share no code with the reader, and what goes on of it must be the same message.
#include <stdio.h>
#include <string.h>

#include "test.h"

#include "../../examples/proxy/http_text.c"
#include "../../examples/proxy/http_body.c"
#include "../../examples/proxy/http_reader.c"
#include "../../examples/proxy/http_writer.c"

#include "fuzz.h"

static http_head head;

// As http_head_end(), for bytes that come in pieces.
static int end_of(const char *data, size_t len, size_t piece, http_scan scan)
{
    size_t got = 0;
    int r = 0;
    while (r == 0 && got < len) {
        got = piece < len - got ? got + piece : len;
        r = http_head_end(&scan, data, got);
        FUZZ_CHECK(r <= (int)got && (r >= 0 || scan.problem));
    }
    return r;
}

static int same_end(const char *data, size_t len, http_scan scan)
{
    int whole = end_of(data, len, SIZE_MAX, scan);
    FUZZ_CHECK(end_of(data, len, 1, scan) == whole);
    FUZZ_CHECK(end_of(data, len, 3, scan) == whole);
    return whole;
}

static const http_scan of_request, of_answer = {.is_answer = 1};

// Whose lines are they? Requests and what we write have lines that end in CRLF. Only in answers
// there are control characters.
enum { REQUEST, ANSWER, WRITTEN_ANSWER };

// A head has printable ASCII, HTAB and bytes over 127 in lines, none of which is folded.
static void check_lines(const char *data, size_t len, int whose)
{
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)data[i];
        if (c == '\r')
            FUZZ_CHECK(i + 1 < len && data[i + 1] == '\n');
        else if (c == '\n')
            FUZZ_CHECK(whose == ANSWER || (i > 0 && data[i - 1] == '\r'));
        else
            FUZZ_CHECK((c >= ' ' && c != 0x7f) || c == '\t' || (c && whose != REQUEST));
        if (i > 0 && data[i - 1] == '\n') FUZZ_CHECK(c != ' ' && c != '\t');
    }
    FUZZ_CHECK(len > 0 && data[len - 1] == '\n');
}

// How many lines begin with that name and a colon?
static int lines_of(const char *data, size_t len, const char *name)
{
    size_t n = strlen(name);
    int count = 0;
    for (size_t i = 1; i + n < len; i++)
        count += data[i - 1] == '\n' && strncasecmp(data + i, name, n) == 0 && data[i + n] == ':';
    return count;
}

static void check_framing(const char *data, size_t len)
{
    int lengths = lines_of(data, len, "Content-Length");
    int codings = lines_of(data, len, "Transfer-Encoding");
    check_lines(data, len, REQUEST);
    FUZZ_CHECK(lengths + codings <= 1);
    FUZZ_CHECK(lengths == head.has_length);
    if (head.body == HTTP_CHUNKED) FUZZ_CHECK(codings == 1 && head.minor == 1);
    if (head.body == HTTP_LENGTH) FUZZ_CHECK(lengths == 1 && head.length > 0);
}

// Whatever an answer says beside it, its end is that of one coding or of one length.
static void check_answer_framing(const char *data, size_t len)
{
    int lengths = lines_of(data, len, "Content-Length");
    int codings = lines_of(data, len, "Transfer-Encoding");
    check_lines(data, len, ANSWER);
    FUZZ_CHECK(codings <= 1 && (codings == 0 || head.minor == 1));
    FUZZ_CHECK(head.has_length == (lengths > 0 && codings == 0));
    if (head.body == HTTP_CHUNKED) FUZZ_CHECK(codings == 1);
    if (head.body == HTTP_LENGTH) FUZZ_CHECK(head.has_length && head.length > 0);
    if (lengths && codings) FUZZ_CHECK(!head.is_kept);
}

// The request as it goes on is the same to the next reader.
static void check_written(void)
{
    static char out[HTTP_WRITTEN_MAX];
    static http_head again;
    http_source from = {{"192.0.2.7", 9}, 0};
    size_t len = http_request_write(out, &head, &from);
    int is_whole = head.target.len && strchr("/*", *head.target.at);
    if (head.authority.len == 0) return;  // of HTTP/1.0, and then it is not by the book
    FUZZ_CHECK(len <= sizeof out);
    if (len > HTTP_HEAD_MAX || head.field_count + 8 > HTTP_LINES_MAX) return;
    check_lines(out, len, REQUEST);
    FUZZ_CHECK(same_end(out, len, of_request) == (int)len);
    FUZZ_CHECK(http_request_parse(&again, out, len) == 0);
    FUZZ_CHECK(again.body == head.body && again.length == head.length);
    FUZZ_CHECK(again.minor == 1 && again.is_upgrade == head.is_upgrade);
    FUZZ_CHECK(http_texts_equal(again.authority, head.authority));
    FUZZ_CHECK(again.target.len == head.target.len + !is_whole);
    FUZZ_CHECK(lines_of(out, len, "X-Forwarded-For") == 1 && lines_of(out, len, "Host") == 1);
    FUZZ_CHECK(lines_of(out, len, "Proxy-Authorization") == 0);
}

static void fuzz_request(const char *data, size_t len)
{
    int end = same_end(data, len, of_request), status;
    if (end <= 0) return;
    status = http_request_parse(&head, data, (size_t)end);
    FUZZ_CHECK((status == 0) == !head.problem);
    if (status) return;
    check_framing(data, (size_t)end);
    FUZZ_CHECK(lines_of(data, (size_t)end, "Host") == 1 || head.minor == 0);
    FUZZ_CHECK(head.host.len > 0 || head.minor == 0);
    FUZZ_CHECK(!memchr(head.target.at, ' ', head.target.len));
    FUZZ_CHECK(head.body != HTTP_UNTIL_CLOSE);
    check_written();
}

// The same of a response, to a client of HTTP/1.1.
static void check_answer(int is_head)
{
    static char out[HTTP_WRITTEN_MAX];
    static http_head again;
    int is_chunked = head.body == HTTP_CHUNKED || head.body == HTTP_UNTIL_CLOSE;
    http_answer how = {.minor = 1, .is_kept = 1, .is_chunked = is_chunked, .is_head = is_head};
    size_t len = http_response_write(out, &head, &how);
    FUZZ_CHECK(len <= sizeof out);
    if (len > HTTP_HEAD_MAX || head.field_count + 8 > HTTP_LINES_MAX) return;
    check_lines(out, len, WRITTEN_ANSWER);
    FUZZ_CHECK(same_end(out, len, of_request) == (int)len);
    FUZZ_CHECK(http_response_parse(&again, is_head, out, len) == 0);
    FUZZ_CHECK(again.status == head.status && again.is_kept);
    FUZZ_CHECK(again.body == (is_chunked ? HTTP_CHUNKED : head.body));
    if (head.body == HTTP_LENGTH) FUZZ_CHECK(again.length == head.length);
}

static void fuzz_response(const char *data, size_t len)
{
    int end = same_end(data, len, of_answer), status;
    if (end <= 0) return;
    status = http_response_parse(&head, len % 2, data, (size_t)end);
    FUZZ_CHECK(status == 0 || status == 502);
    FUZZ_CHECK((status == 0) == !head.problem);
    if (status) return;
    check_answer_framing(data, (size_t)end);
    FUZZ_CHECK(head.status >= 100 && head.status <= 999);
    if (head.body == HTTP_UNTIL_CLOSE) FUZZ_CHECK(!head.is_kept);
    check_answer(len % 2);
}

typedef struct outcome {
    int verdict;
    size_t used, len;
    char data[FUZZ_MAX];
} outcome;

static void body_play(const char *data, size_t len, size_t piece, int is_answer, outcome *out)
{
    http_body b;
    size_t got = 0;
    memset(&head, 0, sizeof head);
    head.body = HTTP_CHUNKED;
    head.is_answer = is_answer;
    http_body_init(&b, &head);
    memset(out, 0, sizeof *out);
    while (b.state != HTTP_BODY_DONE) {
        http_text payload;
        ptrdiff_t n = http_body_read(&b, data + out->used, got - out->used, &payload);
        FUZZ_CHECK(n <= (ptrdiff_t)(got - out->used));
        out->verdict = n < 0 ? -1 : 0;
        if (n < 0 || (n == 0 && got == len)) return;
        if (n == 0) got = piece < len - got ? got + piece : len;
        out->used += (size_t)n;
        if (b.state == HTTP_BODY_DONE) continue;
        memcpy(out->data + out->len, payload.at, payload.len);
        out->len += payload.len;
    }
    out->verdict = 1;
}

static size_t line_end(const char *text, size_t at)
{
    const char *lf = memchr(text + at, '\n', FUZZ_MAX - at);
    FUZZ_CHECK(lf != NULL);
    return (size_t)(lf - text) + 1;
}

static size_t skip_cr(const char *text, size_t at)
{
    return at + (text[at] == '\r');
}

// Takes a body apart as a reader would that believes everything.
static void check_chunks(const char *data, size_t len, const outcome *got)
{
    size_t at = 0, out = 0;
    char text[FUZZ_MAX + 1];
    memcpy(text, data, len);
    text[len] = '\0';
    for (;;) {
        size_t size = strtoul(text + at, NULL, 16);
        at = line_end(text, at);
        if (size == 0) break;
        FUZZ_CHECK(size <= len - at && out + size <= got->len);
        FUZZ_CHECK(memcmp(text + at, got->data + out, size) == 0);
        out += size;
        at = skip_cr(text, at + size) + 1;
    }
    FUZZ_CHECK(out == got->len);
    while (text[skip_cr(text, at)] != '\n') at = line_end(text, at);
    FUZZ_CHECK(skip_cr(text, at) + 1 == got->used);
}

static void fuzz_body(const char *data, size_t len, int is_answer)
{
    static outcome whole, single, threes;
    body_play(data, len, SIZE_MAX, is_answer, &whole);
    body_play(data, len, 1, is_answer, &single);
    body_play(data, len, 3, is_answer, &threes);
    FUZZ_CHECK(whole.verdict == single.verdict && whole.verdict == threes.verdict);
    if (whole.verdict >= 0) {
        FUZZ_CHECK(whole.used == single.used && whole.used == threes.used);
        FUZZ_CHECK(whole.len == single.len && memcmp(whole.data, single.data, whole.len) == 0);
        FUZZ_CHECK(whole.len == threes.len && memcmp(whole.data, threes.data, whole.len) == 0);
    }
    if (whole.verdict == 1) check_chunks(data, len, &whole);
}

static void fuzz_one(const uint8_t *data, size_t len)
{
    fuzz_request((const char *)data, len);
    fuzz_response((const char *)data, len);
    fuzz_body((const char *)data, len, 0);
    fuzz_body((const char *)data, len, 1);
    int end = same_end((const char *)data, len, (http_scan){.is_trailer = 1});
    if (end > 0 && http_trailer_parse(&head, 0, (const char *)data, (size_t)end) == 0)
        check_framing((const char *)data, (size_t)end);
    end = same_end((const char *)data, len, (http_scan){.is_trailer = 1, .is_answer = 1});
    if (end > 0 && http_trailer_parse(&head, 1, (const char *)data, (size_t)end) == 0)
        check_answer_framing((const char *)data, (size_t)end);
}

static void fuzz_seeds(void)
{
#define SEED_HOST "Host: a.example:80\r\n"
    fuzz_seed_text("GET /a?b=c HTTP/1.1\r\n" SEED_HOST "\r\n");
    fuzz_seed_text("OPTIONS * HTTP/1.1\r\n" SEED_HOST "\r\n");
    fuzz_seed_text("POST http://a.example:80/ HTTP/1.1\r\n" SEED_HOST
                   "Content-Length: 5\r\nExpect: 100-continue\r\n\r\nhello");
    fuzz_seed_text("PUT / HTTP/1.1\r\n" SEED_HOST "Transfer-Encoding: chunked\r\nTE: trailers\r\n"
                   "Connection: TE, x-mine\r\nX-Mine: 1\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    fuzz_seed_text("GET / HTTP/1.0\r\nConnection: keep-alive\r\nProxy-Authorization: x\r\n\r\n");
    fuzz_seed_text("\r\nGET / HTTP/1.1\r\nHost: [::1]:8080\r\nConnection: Upgrade\r\n"
                   "Upgrade: websocket\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n");
    fuzz_seed_text("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nKeep-Alive: timeout=5\r\n\r\nhello");
    fuzz_seed_text("HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    fuzz_seed_text("HTTP/1.0 404 Not Found\r\nConnection: keep-alive\r\n\r\n");
    fuzz_seed_text("HTTP/1.1 101 x\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\n");
    fuzz_seed_text("HTTP/1.0 999 x\nContent-Length: 5\nContent-Length: 05\nX: \x01\n\nhello");
    fuzz_seed_text("HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\nContent-Length: 5\r\n\r\n");
    fuzz_seed_text("5  \nhello\n0;x\nX: y\n\n");
    fuzz_seed_text("5\r\nhello\r\nA;x=\"y\\\"\"\r\n0123456789\r\n0;z\r\n\r\n");
    fuzz_seed_text("1\r\na\r\n0\r\nX-Checksum: abc\r\nServer-Timing: x\r\n\r\n");
}
