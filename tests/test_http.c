// The handshake: every bad input of the tables by number, a second grammar written in another way,
// the bytes of tests/vectors, and the checks of credentials. Each input is fed whole, split at
// every byte, and byte by byte, and must come to the same end each time.
#define REVDIAL_NO_RUNTIME
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include "test.h"

#include <ctype.h>
#include <locale.h>
#include <regex.h>

#ifndef TEST_VECTORS
#define TEST_VECTORS "tests/vectors"
#endif

#define PATH "/revdial"
#define ORIGINS "https://proxy.example:7000, https://*.pages.example"
#define GET "GET /revdial HTTP/1.1\r\n"
#define HOST "Host: proxy.example:7000\r\n"
#define CONN "Connection: Upgrade\r\n"
#define UPGR "Upgrade: revdial\r\n"
#define ASK GET HOST CONN UPGR  // what every legal request says
#define WS_UPGR "Upgrade: websocket\r\n"
#define WS_VERSION "Sec-WebSocket-Version: 13\r\n"
#define WS_KEY "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
#define WS_PROTOCOL "Sec-WebSocket-Protocol: revdial\r\n"
#define WS_ACCEPT_TEXT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  // of that key: RFC 6455 section 1.3
#define WS_ASK GET HOST CONN WS_UPGR WS_VERSION WS_KEY WS_PROTOCOL
#define END "\r\n"
#define SWITCH "HTTP/1.1 101 Switching Protocols\r\n" CONN UPGR
#define BYTES(text) (text), sizeof(text) - 1
#define COUNT(array) (sizeof(array) / sizeof(array)[0])

enum { ACCEPTED = 0, MORE = -1, DROP = -2, NOMEM = -3, BAD = -4 };  // else a status

// ---- Feeding ------------------------------------------------------------------------------------

typedef struct asked {
    int status;
    size_t used;
    char name[80], instance[80], secret[4200];
    char accept[40];
    int is_revdial, is_stripped, carrier;
    unsigned features;
    uint32_t window, streams;
} asked;

static void copy_text(char *to, size_t size, const char *from)
{
    size_t len = strlen(from);
    if (len >= size) len = size - 1;
    memcpy(to, from, len);
    to[len] = '\0';
}

static int status_of(int verdict)
{
    switch (verdict) {
    case RVD_HTTP_MORE: return MORE;
    case RVD_HTTP_DROP: return DROP;
    case RVD_HTTP_NOMEM: return NOMEM;
    case RVD_HTTP_BAD: return BAD;
    default: return verdict;
    }
}

// What to feed, and how: `first` bytes (0 = no such piece), then pieces of `step`.
typedef struct pieces {
    const uint8_t *s;
    size_t len, first, step;
} pieces;

// Feeds as long as the head wants more.
static int feed_pieces(rvd_http_head *h, const pieces *p, size_t *total)
{
    size_t at = 0, used = 0;
    int verdict = RVD_HTTP_MORE;
    while (at < p->len && verdict == RVD_HTTP_MORE) {
        size_t piece = at == 0 && p->first ? p->first : p->step;
        if (piece > p->len - at) piece = p->len - at;
        verdict = rvd_http_head_feed(h, p->s + at, piece, &used);
        at += used;
    }
    if (verdict != RVD_HTTP_MORE) {
        CHECK_INT(rvd_http_head_feed(h, p->s, p->len, &used), verdict);  // it sticks
        CHECK_INT(used, 0);
    }
    *total = at;
    return verdict;
}

static asked ask(const uint8_t *s, size_t len, size_t first, size_t step)
{
    static asked zero;
    asked a = zero;
    const pieces in = {s, len, first, step};
    test_heap memory = {0};
    rvd_heap heap = {test_heap_alloc, &memory, 0};
    rvd_http_head head;
    rvd_http_request request;
    int verdict;
    rvd_http_head_init(&head, &heap, 1);
    verdict = feed_pieces(&head, &in, &a.used);
    a.status = status_of(verdict);
    if (verdict == RVD_HTTP_DONE) {
        a.status = rvd_http_request_read(&head, PATH, ORIGINS, &request);
        copy_text(a.name, sizeof a.name, request.auth.name);
        copy_text(a.instance, sizeof a.instance, request.auth.instance);
        copy_text(a.secret, sizeof a.secret, request.auth.secret);
        copy_text(a.accept, sizeof a.accept, request.accept);
        a.carrier = request.carrier;
        a.is_revdial = request.terms.is_revdial;
        a.is_stripped = request.is_stripped;
        a.features = request.terms.features;
        a.window = request.terms.window;
        a.streams = request.terms.streams;
    }
    rvd_http_head_free(&head);
    rvd_http_head_free(&head);
    CHECK_INT(memory.live_blocks, 0);
    CHECK_INT(heap.live_bytes, 0);
    return a;
}

static int same_asked(const asked *a, const asked *b)
{
    return a->status == b->status && a->used == b->used && strcmp(a->name, b->name) == 0 &&
           strcmp(a->instance, b->instance) == 0 && strcmp(a->secret, b->secret) == 0 &&
           a->carrier == b->carrier && a->is_revdial == b->is_revdial &&
           a->is_stripped == b->is_stripped && a->features == b->features &&
           a->window == b->window && a->streams == b->streams;
}

// Whole, split at every byte, byte by byte. The bytes lie in memory of exactly their size, so that
// reading beyond them is seen.
static asked ask_every_way(const char *row, const char *bytes, size_t len)
{
    uint8_t *s = malloc(len ? len : 1);
    asked whole, other;
    memcpy(s, bytes, len);
    whole = ask(s, len, 0, len ? len : 1);
    for (size_t cut = 1; cut < len; cut++) {
        other = ask(s, len, cut, len);
        if (!same_asked(&whole, &other))
            test_fail(__FILE__, __LINE__, "%s: whole %d, split at %zu %d", row, whole.status, cut,
                      other.status);
    }
    other = ask(s, len, 0, 1);
    if (!same_asked(&whole, &other))
        test_fail(__FILE__, __LINE__, "%s: whole %d, by bytes %d", row, whole.status, other.status);
    free(s);
    return whole;
}

typedef struct ask_case {
    const char *row;
    int want;
    const char *bytes;
    size_t len;
} ask_case;

static void check_case(const ask_case *c)
{
    asked a = ask_every_way(c->row, c->bytes, c->len);
    if (a.status != c->want)
        test_fail(__FILE__, __LINE__, "%s: %d, not %d", c->row, a.status, c->want);
}

#define CHECK_CASES(cases) \
    for (size_t i_ = 0; i_ < COUNT(cases); i_++) check_case(&(cases)[i_])

// Each value in place of the '@' of the frame must come to the same end. NULL ends the list.
static void check_values(const char *row, int want, const char *frame, const char *const *values)
{
    const char *at = strchr(frame, '@');
    for (; *values; values++) {
        char bytes[1024], what[200];
        int len =
            snprintf(bytes, sizeof bytes, "%.*s%s%s", (int)(at - frame), frame, *values, at + 1);
        ask_case c = {what, want, bytes, (size_t)len};
        snprintf(what, sizeof what, "%s \"%s\"", row, *values);
        check_case(&c);
    }
}
#define VALUES(...) ((const char *const[]){__VA_ARGS__, NULL})

// ---- The request: bytes -------------------------------------------------------------------------

TEST(A3_every_proper_prefix_of_a_request_wants_more)
{
    static const char request[] = ASK "Revdial-Name: cam-1\r\n" END;
    for (size_t len = 0; len < sizeof request - 1; len++) {
        asked a = ask((const uint8_t *)request, len, 0, 1);
        CHECK_INT(a.status, MORE);
        CHECK_INT(a.used, len);
    }
}

TEST(A6_a_request_is_accepted_however_it_is_cut)
{
    static const char request[] = ASK "Authorization: Bearer abc\r\nRevdial-Name: cam-1\r\n"
                                      "Revdial-Instance: I_7\r\n" END;
    asked a = ask_every_way("A6", BYTES(request));
    CHECK_INT(a.status, ACCEPTED);
    CHECK_INT(a.used, sizeof request - 1);
    CHECK_STR(a.name, "cam-1");
    CHECK_STR(a.instance, "I_7");
    CHECK_STR(a.secret, "abc");
    CHECK_INT(a.is_revdial, 0);
    CHECK_INT(a.window, 262144);
    CHECK_INT(a.streams, 256);
}

TEST(A7_A8_reading_stops_right_after_the_blank_line)
{
    static const char early[] = ASK END "\0\1\0\1\0\0\0\1\0\0\0\0";
    static const char pipelined[] = ASK END ASK END;
    asked a = ask_every_way("A7", BYTES(early));
    CHECK_INT(a.status, ACCEPTED);
    CHECK_INT(a.used, sizeof(ASK END) - 1);
    a = ask_every_way("A8", BYTES(pipelined));
    CHECK_INT(a.status, ACCEPTED);
    CHECK_INT(a.used, sizeof(ASK END) - 1);
}

TEST(A9_to_A16_line_ends_and_control_bytes_are_400)
{
    static const ask_case cases[] = {
        {"A9 one CRLF first", 400, BYTES("\r\n" ASK END)},
        {"A9 two CRLF first", 400, BYTES("\r\n\r\n" ASK END)},
        {"A9 LF first", 400, BYTES("\n" ASK END)},
        {"A9 blank first", 400, BYTES(" " ASK END)},
        {"A10 LF after request line", 400, BYTES("GET /revdial HTTP/1.1\n" HOST CONN UPGR END)},
        {"A10 LF after field", 400, BYTES(GET "Host: h\n" CONN UPGR END)},
        {"A10 LF as blank line", 400, BYTES(ASK "\n")},
        {"A11 CR in target", 400, BYTES("GET /rev\rdial HTTP/1.1\r\n" HOST CONN UPGR END)},
        {"A11 CR in name", 400, BYTES(ASK "X\rY: z\r\n" END)},
        {"A11 CR in value", 400, BYTES(ASK "X: y\rz\r\n" END)},
        {"A11 CR CR LF", 400, BYTES(ASK "X: y\r\r\n" END)},
        {"A11 CR CR LF ends head", 400, BYTES(ASK "\r\r\n")},
        {"A12 CR LF CR X", 400, BYTES(ASK "\rX")},
        {"A13 NUL in method", 400, BYTES("G\0ET /revdial HTTP/1.1\r\n" HOST CONN UPGR END)},
        {"A13 NUL in target", 400, BYTES("GET /revdial\0 HTTP/1.1\r\n" HOST CONN UPGR END)},
        {"A13 NUL in name", 400, BYTES(ASK "X\0: y\r\n" END)},
        {"A13 NUL after colon", 400, BYTES(ASK "X:\0y\r\n" END)},
        {"A13 NUL in value", 400, BYTES(ASK "X: y\0z\r\n" END)},
        {"A13 NUL ends value", 400, BYTES(ASK "X: y\0\r\n" END)},
        {"A13 NUL before blank line", 400, BYTES(ASK "\0\r\n")},
        {"A14 SOH in value", 400, BYTES(ASK "X: \1\r\n" END)},
        {"A14 VT in value", 400, BYTES(ASK "X: a\vb\r\n" END)},
        {"A14 ESC in value", 400, BYTES(ASK "X: a\033b\r\n" END)},
        {"A14 DEL in value", 400, BYTES(ASK "X: a\177b\r\n" END)},
        {"A14 HTAB in value", ACCEPTED, BYTES(ASK "X:\ta\tb\t\r\n" END)},
        {"A14 HTAB in target", 400, BYTES("GET /rev\tdial HTTP/1.1\r\n" HOST CONN UPGR END)},
        {"A15 obs-fold by blank", 400, BYTES(ASK "X: a\r\n b\r\n" END)},
        {"A15 obs-fold by HTAB", 400, BYTES(ASK "X: a\r\n\tb\r\n" END)},
        {"A15 obs-fold of Host", 400, BYTES(GET "Host:\r\n h\r\n" CONN UPGR END)},
        {"A16 blank before first name", 400, BYTES(GET " " HOST CONN UPGR END)},
    };
    char many[2000 + sizeof(ASK END)];
    CHECK_CASES(cases);
    for (size_t i = 0; i < 2000; i += 2) memcpy(many + i, "\r\n", 2);
    memcpy(many + 2000, ASK END, sizeof(ASK END));
    CHECK_INT(ask_every_way("A9 thousand CRLF", many, sizeof many - 1).status, 400);
}

TEST(A14_every_control_byte_in_a_value_is_400)
{
    char request[] = ASK "X-Other: a?b\r\n" END;
    char *at = strchr(request, '?');
    for (int c = 0; c < 256; c++) {
        int is_legal = c == '\t' || (c >= ' ' && c != 0x7f);
        *at = (char)c;
        CHECK_INT(ask((const uint8_t *)request, sizeof request - 1, 0, 64).status,
                  is_legal ? ACCEPTED : 400);
    }
}

TEST(A17_to_A20_field_lines_follow_the_grammar)
{
    static const ask_case cases[] = {
        {"A17 blank before colon", 400, BYTES(ASK "X : y\r\n" END)},
        {"A17 HTAB before colon", 400, BYTES(ASK "X\t: y\r\n" END)},
        {"A17 blank before colon of Host", 400, BYTES(GET "Host : h\r\n" CONN UPGR END)},
        {"A18 empty name", 400, BYTES(ASK ": x\r\n" END)},
        {"A18 no colon", 400, BYTES(ASK "nonsense\r\n" END)},
        {"A18 no colon, first line", 400, BYTES(GET "Host\r\n" CONN UPGR END)},
        {"A18 empty value is legal", ACCEPTED, BYTES(ASK "X:\r\n" END)},
        {"A18 no blank after colon is legal", ACCEPTED, BYTES(ASK "X:y\r\n" END)},
        {"A20 Host", 400, BYTES(GET "Host: h\x80\r\n" CONN UPGR END)},
        {"A20 Connection", 400, BYTES(GET HOST "Connection: upgrade, \xff\r\n" UPGR END)},
        {"A20 Upgrade", 400, BYTES(GET HOST CONN "Upgrade: revdial, \xe9t\xe9\r\n" END)},
        {"A20 Authorization", 400, BYTES(ASK "Authorization: Bearer \xc3\xa9\r\n" END)},
        {"A20 Revdial-Name", 400, BYTES(ASK "Revdial-Name: \xc3\xa9\r\n" END)},
        {"A20 Revdial-Later", 400, BYTES(ASK "Revdial-Later: \x80\r\n" END)},
        {"A20 any other", ACCEPTED, BYTES(ASK "X-Caf\x65: caf\xc3\xa9\r\n" END)},
        {"A20 Revdial-Later in ASCII", ACCEPTED, BYTES(ASK "Revdial-Later: 7\r\n" END)},
    };
    static const char *const token_marks = "!#$%&'*+-.^_`|~";
    char request[] = ASK "X?Y: z\r\n" END;
    char *at = strchr(request, '?');
    CHECK_CASES(cases);
    for (int c = 0; c < 256; c++) {  // A19
        int is_legal = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
                       (c && strchr(token_marks, c)) || c == ':';
        *at = (char)c;
        CHECK_INT(ask((const uint8_t *)request, sizeof request - 1, 0, 64).status,
                  is_legal ? ACCEPTED : 400);
    }
}

TEST(A21_to_A29_request_line_and_version)
{
#define REST HOST CONN UPGR END
    static const ask_case cases[] = {
        {"A21 two blanks", 400, BYTES("GET  /revdial HTTP/1.1\r\n" REST)},
        {"A21 two blanks before version", 400, BYTES("GET /revdial  HTTP/1.1\r\n" REST)},
        {"A21 HTAB", 400, BYTES("GET\t/revdial HTTP/1.1\r\n" REST)},
        {"A21 HTAB before version", 400, BYTES("GET /revdial\tHTTP/1.1\r\n" REST)},
        {"A21 LF", 400, BYTES("GET\n/revdial HTTP/1.1\r\n" REST)},
        {"A22 blank after version", 400, BYTES("GET /revdial HTTP/1.1 \r\n" REST)},
        {"A22 no version", 400, BYTES("GET /revdial\r\n" REST)},
        {"A22 empty version", 400, BYTES("GET /revdial \r\n" REST)},
        {"A23 1.0", 505, BYTES("GET /revdial HTTP/1.0\r\n" REST)},
        {"A24 1.2", 505, BYTES("GET /revdial HTTP/1.2\r\n" REST)},
        {"A24 2.0", 505, BYTES("GET /revdial HTTP/2.0\r\n" REST)},
        {"A24 0.9", 505, BYTES("GET /revdial HTTP/0.9\r\n" REST)},
        {"A24 1.10", 400, BYTES("GET /revdial HTTP/1.10\r\n" REST)},
        {"A24 01.1", 400, BYTES("GET /revdial HTTP/01.1\r\n" REST)},
        {"A24 257.1", 400, BYTES("GET /revdial HTTP/257.1\r\n" REST)},
        {"A24 lower case", 400, BYTES("GET /revdial http/1.1\r\n" REST)},
        {"A24 1.", 400, BYTES("GET /revdial HTTP/1.\r\n" REST)},
        {"A24 HTTP/2", 400, BYTES("GET /revdial HTTP/2\r\n" REST)},
        {"A24 HTTPS", 400, BYTES("GET /revdial HTTPS/1.1\r\n" REST)},
        {"A24 ICY", 400, BYTES("GET /revdial ICY/1.1\r\n" REST)},
        {"A25 HTTP/2 preface", 505, BYTES("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")},
        {"A26 ClientHello", DROP, BYTES("\x16\x03\x01\x02")},
        {"A28 SSH banner", 400, BYTES("SSH-")},
        {"A28 SOCKS5", DROP, BYTES("\x05\x01")},
        {"A28 SOCKS4", DROP, BYTES("\x04\x01")},
        {"A28 RDP", DROP, BYTES("\x03")},
        {"A28 NUL", DROP, BYTES("\0")},
        {"A28 high byte", DROP, BYTES("\xff")},
        {"A28 DEL", DROP, BYTES("\x7f")},
        {"A29 PROXY v1", 400, BYTES("PROXY TCP4 1")},
        {"A29 PROXY v2", 400, BYTES("\r")},
    };
    CHECK_CASES(cases);
#undef REST
}

TEST(A30_to_A34_method_and_target)
{
#define REST " HTTP/1.1\r\n" HOST CONN UPGR END
#define MANY "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEF"
    static const ask_case cases[] = {
        {"A30 POST", 405, BYTES("POST /revdial" REST)},
        {"A30 PUT", 405, BYTES("PUT /revdial" REST)},
        {"A30 HEAD", 405, BYTES("HEAD /revdial" REST)},
        {"A30 OPTIONS", 405, BYTES("OPTIONS *" REST)},
        {"A30 CONNECT", 405, BYTES("CONNECT proxy.example:7000" REST)},
        {"A30 GE", 405, BYTES("GE /revdial" REST)},
        {"A30 GETX", 405, BYTES("GETX /revdial" REST)},
        {"A30 XET", 405, BYTES("XET /revdial" REST)},
        {"A31 lower case", 400, BYTES("get /revdial" REST)},
        {"A31 32 letters", 405, BYTES(MANY " /revdial" REST)},
        {"A31 33 letters", 400, BYTES(MANY "G /revdial" REST)},
        {"A31 :GET", 400, BYTES(":GET /revdial" REST)},
        {"A31 control byte", 400, BYTES("GET\1 /revdial" REST)},
        {"A32 absolute form", 400, BYTES("GET http://proxy.example:7000/revdial" REST)},
        {"A32 authority form", 400, BYTES("GET proxy.example:7000" REST)},
        {"A32 authority form, IPv6", 400, BYTES("GET [::1]:7000" REST)},
        {"A32 asterisk form", 400, BYTES("GET *" REST)},
        {"A33 /x", 404, BYTES("GET /x" REST)},
        {"A33 /", 404, BYTES("GET /" REST)},
        {"A33 //revdial", 404, BYTES("GET //revdial" REST)},
        {"A33 /revdial/", 404, BYTES("GET /revdial/" REST)},
        {"A33 /./revdial", 404, BYTES("GET /./revdial" REST)},
        {"A33 /revdial%2f", 404, BYTES("GET /revdial%2f" REST)},
        {"A33 /%72evdial", 404, BYTES("GET /%72evdial" REST)},
        {"A33 \\revdial", 404, BYTES("GET \\revdial" REST)},
        {"A33 /revdial?x", 404, BYTES("GET /revdial?x" REST)},
        {"A33 /revdial#f", 404, BYTES("GET /revdial#f" REST)},
        {"A33 /revdial;a", 404, BYTES("GET /revdial;a" REST)},
        {"A33 /REVDIAL", 404, BYTES("GET /REVDIAL" REST)},
        {"A33 prefix", 404, BYTES("GET /revdia" REST)},
        {"A33 high byte", 400, BYTES("GET /revdial\x80" REST)},
    };
    char target[1100];
    asked a;
    CHECK_CASES(cases);
    memcpy(target, "GET /", 5);
    memset(target + 5, 'a', sizeof target - 5);
    a = ask_every_way("A34", target, sizeof target);
    CHECK_INT(a.status, 414);
    CHECK_INT(a.used, 4 + 1025);
    memcpy(target + 4 + 1024, " HTTP/1.1\r\n", 11);
    CHECK_INT(ask_every_way("A34 1024", target, 4 + 1024 + 11).status, MORE);
#undef REST
#undef MANY
}

TEST(A35_a_head_of_8192_bytes_is_read_and_one_byte_more_is_431)
{
    static char request[8300];
    const size_t fixed = sizeof(ASK "X: ") - 1;
    asked a;
    memset(request, 'a', sizeof request);
    memcpy(request, ASK "X: ", fixed);
    memcpy(request + 8188, "\r\n\r\n", 4);
    a = ask_every_way("A35 8192", request, 8192);
    CHECK_INT(a.status, ACCEPTED);
    CHECK_INT(a.used, 8192);
    memcpy(request + 8188, "a\r\n\r\n", 5);
    a = ask((const uint8_t *)request, 8193, 0, 100);
    CHECK_INT(a.status, 431);
    CHECK_INT(a.used, 8193);
    memset(request + 8188, 'a', 5);
    a = ask((const uint8_t *)request, sizeof request, 0, 1);  // a line that never ends
    CHECK_INT(a.status, 431);
    for (size_t at = sizeof(ASK) - 1; at + 4 <= sizeof request; at += 4)
        memcpy(request + at, "x:\r\n", 4);  // header lines that never end
    a = ask_every_way("A36", request, sizeof request);
    CHECK_INT(a.status, 431);
    CHECK(a.used < 8192);
}

TEST(A36_the_65th_header_line_is_431_at_its_first_byte)
{
    char request[sizeof(ASK END) + 64 * 4];
    size_t len = sizeof(ASK) - 1;
    asked a;
    memcpy(request, ASK, len);
    for (int i = 3; i < 64; i++, len += 4) memcpy(request + len, "x:\r\n", 4);
    memcpy(request + len, "\r\n", 2);
    a = ask_every_way("A36 and A38", request, len + 2);
    CHECK_INT(a.status, ACCEPTED);
    memcpy(request + len, "x:\r\n", 4);
    a = ask_every_way("A36", request, len + 4);
    CHECK_INT(a.status, 431);
    CHECK_INT(a.used, len + 1);
}

TEST(A37_a_value_of_blanks_is_read)
{
    static char request[8192];
    size_t len = sizeof(ASK "X:") - 1;
    memset(request, ' ', sizeof request);
    memcpy(request, ASK "X:", len);
    memcpy(request + 8000, "\r\n\r\n", 4);
    CHECK_INT(ask_every_way("A37", request, 8004).status, ACCEPTED);
    memcpy(request, ASK "Upgrade:", sizeof(ASK "Upgrade:") - 1);
    CHECK_INT(ask((const uint8_t *)request, 8004, 0, 500).status, ACCEPTED);
    memset(request + sizeof(ASK "Upgrade:"), ',', 7000);
    CHECK_INT(ask((const uint8_t *)request, 8004, 0, 500).status, ACCEPTED);
}

// ---- The request: meaning -----------------------------------------------------------------------

TEST(A39_A41_host_is_sent_once_and_legal)
{
    static const ask_case cases[] = {{"A39 missing", 400, BYTES(GET CONN UPGR END)},
                                     {"A39 twice", 400, BYTES(ASK HOST END)}};
    static const char frame[] = GET "Host: @\r\n" CONN UPGR END;
    CHECK_CASES(cases);
    check_values("A39", 400, frame,
                 VALUES("", " ", "a,b", "user@h", "h:99999", "h:65536", "h:0", "h:", ":80",
                        "h:0x50", "h:+80", "h:80:80", "h:080", "[::1", "[fe80::1%eth0]", "[]",
                        "[:]", "[::1]x", "[::1]:", "::1", "a b", "h/x", "h%41"));
    check_values("A41", ACCEPTED, frame,
                 VALUES("h", "h:1", "h:65535", "[::1]:8443", "[::ffff:10.0.0.1]", "EXAMPLE.com",
                        "example.com.", "127.0.0.1:80", "under_score"));
}

TEST(A42_to_A45_a_request_has_no_body_and_no_expectations)
{
    check_values("A42", ACCEPTED, ASK "Content-Length: @\r\n" END, VALUES("0", " 0\t"));
    check_values("A43", 400, ASK "Content-Length: @\r\n" END,
                 VALUES("5", "+0", "-1", "0x0", "00", "", " ", "0, 0", "0,", "18446744073709551616",
                        "1000000000000000000000000000000", "0\r\nContent-Length: 0",
                        "0\r\ncontent-length: 5"));
    check_values("A44", 400, ASK "Transfer-Encoding: @\r\n" END,
                 VALUES("chunked", ",chunked", "identity", "x", "",
                        "chunked\r\nTransfer-Encoding: chunked", "chunked\r\nContent-Length: 0",
                        "x\r\nExpect: 100-continue"));
    check_values("A45", 417, ASK "Expect: @\r\n" END, VALUES("100-continue", "miracles"));
}

TEST(A46_to_A50_connection_says_upgrade)
{
    static const ask_case cases[] = {{"A46 no Upgrade", 426, BYTES(GET HOST CONN END)},
                                     {"A46 neither", 426, BYTES(GET HOST END)},
                                     {"A47 no Connection", 426, BYTES(GET HOST UPGR END)}};
    static const char frame[] = GET HOST "Connection: @\r\n" UPGR END;
    CHECK_CASES(cases);
    check_values("A47 A50", 426, frame, VALUES("", "keep-alive", "close", "xupgrade", "upgrades"));
    check_values("A48", ACCEPTED, frame,
                 VALUES("upgrade", "keep-alive, UPGRADE", "keep-alive\r\nConnection: upgrade",
                        ", ,\tupgrade ,", "upgrade, x-own"));
    check_values("A49", 400, frame,
                 VALUES("upgrade, close", "CLOSE,upgrade", "upgrade\r\nConnection: close"));
    check_values("A50", 400, frame,
                 VALUES("upgrade, authorization", "upgrade, Host", "upgrade, revdial-name",
                        "upgrade, Revdial-Later", "upgrade, content-length", "upgrade, a b",
                        "upgrade; x", "\"upgrade\""));
}

TEST(A51_A52_upgrade_lists_revdial)
{
    static const char frame[] = GET HOST CONN "Upgrade: @\r\n" END;
    check_values("A51", 426, frame,
                 VALUES("", "websocket", "revdial/1", "revdial/2", "xrevdial", "revdialx"));
    check_values("A52", ACCEPTED, frame,
                 VALUES("REVDIAL", "h2c, revdial", "h2c/1.0\r\nUpgrade: revdial",
                        "revdial\r\nUpgrade: revdial"));
    check_values("A51", 400, frame, VALUES("revdial revdial", "revdial, \"x\"", "revdial;q=1"));
}

TEST(A51_A52_upgrade_may_list_websocket)
{
    static const ask_case cases[] = {
        {"as RFC 6455 shows it", ACCEPTED, BYTES(WS_ASK END)},
        {"case and order", ACCEPTED,
         BYTES(GET HOST
               "upgrade: WebSocket\r\nconnection: keep-alive, upgrade\r\n" WS_KEY WS_PROTOCOL
               "sec-websocket-version:13\r\n" END)},
        {"with extensions", ACCEPTED,
         BYTES(WS_ASK "Sec-WebSocket-Extensions: permessage-deflate\r\n" END)},
        {"no version", 426, BYTES(GET HOST CONN WS_UPGR WS_KEY WS_PROTOCOL END)},
        {"no key", 400, BYTES(GET HOST CONN WS_UPGR WS_VERSION WS_PROTOCOL END)},
        {"no protocol", 400, BYTES(GET HOST CONN WS_UPGR WS_VERSION WS_KEY END)},
        {"version twice", 400, BYTES(WS_ASK WS_VERSION END)},
        {"key twice", 400, BYTES(WS_ASK WS_KEY END)},
        {"A47 no Connection", 426, BYTES(GET HOST WS_UPGR WS_VERSION WS_KEY WS_PROTOCOL END)},
        {"A50 Connection lists the key", 400,
         BYTES(GET HOST "Connection: upgrade, sec-websocket-key\r\n" WS_UPGR WS_VERSION WS_KEY
                   WS_PROTOCOL END)},
    };
    static const char version[] =
        GET HOST CONN WS_UPGR WS_KEY WS_PROTOCOL "Sec-WebSocket-Version: @\r\n" END;
    static const char key[] =
        GET HOST CONN WS_UPGR WS_VERSION WS_PROTOCOL "Sec-WebSocket-Key: @\r\n" END;
    static const char protocol[] =
        GET HOST CONN WS_UPGR WS_VERSION WS_KEY "Sec-WebSocket-Protocol: @\r\n" END;
    static const char both[] = GET HOST CONN WS_VERSION WS_KEY WS_PROTOCOL "Upgrade: @\r\n" END;
    CHECK_CASES(cases);
    check_values("version", 426, version,
                 VALUES("", "8", "12", "14", "013", "13, 8", "13.0", "+13"));
    check_values("key", 400, key,
                 VALUES("", "dGhlIHNhbXBsZSBub25jZQ=", "dGhlIHNhbXBsZSBub25jZQ===",
                        "dGhlIHNhbXBsZSBub25jZR==", "dGhlIHNhbXBsZSBub25jZQAA",
                        "dGhlIHNhbXBsZSBub25-ZQ==", "dGhlIHNhbXBsZSBub25jZQ= ",
                        "dGhlIHNhbXBsZSBub25jZQ==, x", "dGhl HNhbXBsZSBub25jZQ=="));
    check_values("protocol", 400, protocol,
                 VALUES("", "Revdial", "revdial2", "yamux", "revdial.v1"));
    check_values("protocol", ACCEPTED, protocol,
                 VALUES("revdial", "mqtt, revdial", "mqtt\r\nSec-WebSocket-Protocol: revdial",
                        "revdial, revdial"));
    CHECK_INT(ask_every_way("raw wins", BYTES(WS_ASK UPGR END)).carrier, REVDIAL_CARRIER_RAW);
    check_values("both", ACCEPTED, both, VALUES("h2c, websocket", "websocket, revdial"));
    check_values("neither", 426, both, VALUES("websocket/13", "xwebsocket", "websockets"));
}

TEST(a_WebSocket_request_without_our_fields_is_a_stock_peers)
{
    asked a = ask_every_way("stock", BYTES(WS_ASK END));
    CHECK_INT(a.status, ACCEPTED);
    CHECK_INT(a.carrier, REVDIAL_CARRIER_WEBSOCKET);
    CHECK_STR(a.accept, WS_ACCEPT_TEXT);
    CHECK_INT(a.is_revdial, 0);
    CHECK_INT(a.window, 262144);
    CHECK_INT(a.streams, 256);
    CHECK_INT(ask_every_way("raw", BYTES(ASK END)).carrier, REVDIAL_CARRIER_RAW);
}

// P20: that it comes from the Host means nothing, since a page can have its own name lead here.
TEST(P20_a_browsers_page_may_ask_only_if_it_is_listed)
{
    static const char *const frames[] = {WS_ASK "Origin: @\r\n" END, ASK "Origin: @\r\n" END};
    for (int i = 0; i < 2; i++) {
        check_values("listed", ACCEPTED, frames[i],
                     VALUES("https://proxy.example:7000", "https://a.pages.example"));
        check_values("others", 403, frames[i],
                     VALUES("", "null", "proxy.example:7000", "http://proxy.example:7000",
                            "https://proxy.example", "http://evil.example:7000",
                            "https://proxy.example:7000/", "HTTPS://proxy.example:7000",
                            "https://a.pages.example.evil", "https://pages.example",
                            "https://proxy.example:7000\r\nOrigin: https://proxy.example:7000"));
    }
}

TEST(a_stripped_upgrade_is_told_from_one_never_asked_for)
{
    asked a = ask_every_way("copy", BYTES(GET HOST CONN "Revdial-Upgrade: revdial\r\n" END));
    CHECK_INT(a.status, 426);
    CHECK_INT(a.is_stripped, 1);
    a = ask_every_way("copy", BYTES(GET HOST UPGR "Revdial-Upgrade: revdial\r\n" END));
    CHECK_INT(a.status, 426);
    CHECK_INT(a.is_stripped, 1);
    a = ask_every_way("copy", BYTES(GET HOST CONN "Revdial-Upgrade: websocket\r\n" END));
    CHECK_INT(a.is_stripped, 1);
    a = ask_every_way("no copy", BYTES(GET HOST CONN END));
    CHECK_INT(a.status, 426);
    CHECK_INT(a.is_stripped, 0);
    a = ask_every_way("nothing stripped", BYTES(ASK "Revdial-Upgrade: revdial\r\n" END));
    CHECK_INT(a.status, ACCEPTED);
    CHECK_INT(a.is_stripped, 0);
}

TEST(A53_to_A56_authorization)
{
    static const ask_case absent = {"A53 is for the table to judge", ACCEPTED, BYTES(ASK END)};
    static const char frame[] = ASK "Authorization: @\r\n" END;
    static char request[8192];
    size_t len = sizeof(ASK "Authorization: Bearer ") - 1;
    check_case(&absent);
    check_values("A55", ACCEPTED, frame,
                 VALUES("Bearer abc", "bEaRer abc", "Bearer   abc", "Bearer a-._~+/9Z=="));
    check_values("A54", 400, frame,
                 VALUES("Bearer abc\r\nAuthorization: Bearer abc",
                        "Bearer abc\r\nauthorization: Basic YTpi", "Bearer", "Bearer ", "",
                        "Bearer a b", "Bearer a,b", "Bearer a=b", "Bearer =", "Bearer \"abc\"",
                        "Bearer\tabc", "Bearer \tabc", "Bearer sha256:abc", "\"Bearer\" abc",
                        "Bearer, abc"));
    check_values("A53 another scheme", 401, frame,
                 VALUES("Bearerabc", "Token abc", "abc", "Token \"x\", y=z"));
    CHECK_STR(ask_every_way("A54", BYTES(ASK "Authorization: bEaRer  a=\t \r\n" END)).secret, "a=");
    CHECK_STR(ask_every_way("A53", BYTES(ASK END)).secret, "");
    memset(request, 'a', sizeof request);
    memcpy(request, ASK "Authorization: Bearer ", len);
    memcpy(request + len + 4096, "\r\n\r\n", 4);
    CHECK_INT(ask((const uint8_t *)request, len + 4096 + 4, 0, 4000).status, ACCEPTED);
    CHECK_INT(strlen(ask((const uint8_t *)request, len + 4096 + 4, 0, 4000).secret), 4096);
    memcpy(request + len + 4096, "a\r\n\r\n", 5);
    CHECK_INT(ask_every_way("A54 4097", request, len + 4097 + 4).status, 400);
}

TEST(A64_A65_names_and_instances)
{
#define TEXT64 "a123456789012345678901234567890123456789012345678901234567890.-b"
    static const char named[] = ASK "Revdial-Name: @\r\n" END;
    static const char placed[] = ASK "Revdial-Instance: @\r\n" END;
    asked a;
    check_values("A64", 400, named,
                 VALUES("", " ", "..", "a/b", "a%2fb", "\xc3\xa9", "Cam", "-a", ".a", "a.", "a-",
                        "_a", "a\tb", "a b", "a,b", "*", "a*", TEXT64 "c"));
    check_values("A65", 400, named, VALUES("a\r\nRevdial-Name: a", "a\r\nRevdial-Name: b"));
    check_values("A64", ACCEPTED, named, VALUES("a", "a.b_c-d", "7", TEXT64));
    check_values("A64 instance", 400, placed,
                 VALUES("", "-x", "x-", "a/b", "a\r\nRevdial-Instance: a", TEXT64 "c"));
    check_values("A64 instance", ACCEPTED, placed, VALUES("A", "Host-7.Local_1", TEXT64));
    a = ask_every_way("A64", BYTES(ASK "Revdial-Name: \t" TEXT64 " \t\r\n" END));
    CHECK_STR(a.name, TEXT64);
    CHECK_STR(a.instance, "");
#undef TEXT64
}

TEST(A69_versions_and_numbers)
{
#define OURS ASK "Revdial-Version: 1\r\nRevdial-Features: "
    static const char version[] = ASK "Revdial-Version: @\r\n" END;
    static const char *const frames[] = {OURS "window=@\r\n" END, OURS "x, streams=@\r\n" END,
                                         ASK "Revdial-Features: window=@\r\n" END};
    check_values("version", ACCEPTED, version, VALUES("1", "2", "999"));
    check_values("version", 400, version,
                 VALUES("0", "", "-1", "01", "1.0", "1000", "1, 1", "1\r\nRevdial-Version: 1"));
    for (size_t i = 0; i < COUNT(frames); i++) {
        check_values("A69", ACCEPTED, frames[i], VALUES("8192", "8192 ", "2147483647"));
        check_values("A69", 400, frames[i],
                     VALUES("", "-1", "+1", " 1", "1e3", "0x10", "4294967296", "2147483648",
                            "1000000000000000000000000000000", "08192", "8192=8192", "81 92"));
    }
    check_values("A69", ACCEPTED, OURS "@\r\n" END,
                 VALUES("streams=0", "", ",,", "drain, drain", "windows=x, later, later=7"));
    check_values("A69", 400, OURS "@\r\n" END,
                 VALUES("window=8191", "window=0", "window", "streams", "window=8192, window=8192",
                        "streams=1\r\nRevdial-Features: streams=1", "a b", "\"x\""));
#undef OURS
}

TEST(features_count_only_from_a_peer_that_says_its_version)
{
    static const char list[] = ASK "Revdial-Features: drain, window=8192, later, streams=0\r\n"
                                   "revdial-features: RSTCODE\r\nRevdial-Version: 2\r\n" END;
    asked a = ask_every_way("features", BYTES(list));
    CHECK_INT(a.is_revdial, 1);
    CHECK_INT(a.features, REVDIAL_FEATURE_DRAIN | REVDIAL_FEATURE_RSTCODE);
    CHECK_INT(a.window, 8192);
    CHECK_INT(a.streams, 0);
    a = ask_every_way("no features", BYTES(ASK "Revdial-Version: 1\r\n" END));
    CHECK_INT(a.is_revdial, 1);
    CHECK_INT(a.features, 0);
    CHECK_INT(a.window, 262144);
    CHECK_INT(a.streams, 256);
    a = ask_every_way("stock",
                      BYTES(ASK "Revdial-Features: drain, window=8192, streams=1\r\n" END));
    CHECK_INT(a.status, ACCEPTED);
    CHECK_INT(a.is_revdial, 0);
    CHECK_INT(a.features, 0);
    CHECK_INT(a.window, 262144);
    CHECK_INT(a.streams, 256);
}

TEST(checks_come_in_a_fixed_order)
{
    static const ask_case cases[] = {
        {"grammar before method", 400, BYTES("POST /x HTTP/1.1\r\n: x\r\n" END)},
        {"version before method", 505, BYTES("POST /x HTTP/1.0\r\n" END)},
        {"method before target", 405, BYTES("POST * HTTP/1.1\r\n" END)},
        {"target before Host", 404, BYTES("GET /x HTTP/1.1\r\n" END)},
        {"Host before Expect", 400, BYTES(GET "Expect: x\r\n" END)},
        {"Expect before Upgrade", 417, BYTES(GET HOST "Expect: x\r\n" END)},
        {"Upgrade before name", 426, BYTES(GET HOST "Revdial-Name: *\r\n" END)},
        {"key before name", 400, BYTES(GET HOST CONN WS_UPGR WS_VERSION "Revdial-Name: *\r\n" END)},
        {"origin before scheme", 403, BYTES(WS_ASK "Origin: x\r\nAuthorization: X y\r\n" END)},
        {"name before scheme", 400, BYTES(ASK "Revdial-Name: *\r\nAuthorization: X y\r\n" END)},
    };
    CHECK_CASES(cases);
}

// ---- A second grammar ---------------------------------------------------------------------------

// The reference: reads a complete buffer by spans and regular expressions, where the library reads
// byte by byte with a state machine. Written from RFC 9110, RFC 9112 and the protocol chapter.
typedef struct ref_line {
    char name[200], value[8200];
} ref_line;

typedef struct ref_head {
    const uint8_t *s;
    size_t len, at;
    int status;  // MORE: ran out of bytes
    char method[40], target[1100];
    ref_line lines[64];
    size_t count;
} ref_head;

enum ref_pattern {
    RE_OTHER_FORM,
    RE_HOST,
    RE_OURS,
    RE_TOKEN,
    RE_PROTOCOL,
    RE_NAME,
    RE_INSTANCE,
    RE_VERSION,
    RE_FEATURE,
    RE_NUMBERED,
    RE_NUMBER,
    RE_BEARER,
    RE_SCHEME,
    RE_STATUS,
    RE_SESSION,
    RE_WS_KEY,
    RE_ORIGIN,
    RE_COUNT
};

#define TCHAR "!#$%&'*+.^_`|~0-9A-Za-z-"
static const char *const ref_patterns[RE_COUNT] = {
    "^[[*0-9A-Za-z]",
    "^([0-9A-Za-z._-]+|\\[[0-9A-Fa-f:.]{2,}\\])(:[1-9][0-9]{0,4})?$",
    "^(host|connection|authorization|content-length|transfer-encoding|expect|retry-after|origin|"
    "sec-websocket-(key|version|protocol|accept|extensions)|revdial-.+)$",
    "^[" TCHAR "]+$",
    "^[/" TCHAR "]+$",
    "^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$",
    "^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$",  // compiled without regard to case
    "^[1-9][0-9]{0,2}$",
    "^[=" TCHAR "]+$",
    "^(window|streams)(=.*)?$",
    "^(0|[1-9][0-9]{0,9})$",
    "^bearer +[A-Za-z0-9._~+/-]+=*$",
    "^[" TCHAR "]+( .*)?$",
    "^HTTP/1[.][01] [1-5][0-9][0-9] ",
    "^[0-9a-f]{16}$",
    "^[A-Za-z0-9+/]{21}[AQgw]==$",
    "^https://(proxy[.]example:7000|.*[.]pages[.]example)$",
};
static const int ref_folds[RE_COUNT] = {
    [RE_OURS] = 1, [RE_INSTANCE] = 1, [RE_NUMBERED] = 1, [RE_BEARER] = 1, [RE_SESSION] = 1};

static int ref_matches(enum ref_pattern which, const char *text)
{
    static regex_t compiled[RE_COUNT];
    static int is_compiled[RE_COUNT];
    if (!is_compiled[which]) {
        int flags = REG_EXTENDED | REG_NOSUB | (ref_folds[which] ? REG_ICASE : 0);
        if (regcomp(&compiled[which], ref_patterns[which], flags)) abort();
        is_compiled[which] = 1;
    }
    return regexec(&compiled[which], text, 0, NULL, 0) == 0;
}

static int ref_same(const char *a, const char *b)
{
    for (; *a && *b; a++, b++) {
        int x = *a >= 'A' && *a <= 'Z' ? *a + 32 : *a;
        int y = *b >= 'A' && *b <= 'Z' ? *b + 32 : *b;
        if (x != y) return 0;
    }
    return *a == *b;
}

// Takes bytes while they are in the set, at most max of them.
static size_t ref_span(ref_head *r, const char *set, int above_ascii, size_t max)
{
    size_t n = 0;
    while (n < max && r->at < r->len) {
        uint8_t c = r->s[r->at];
        if (c == 0 || !(c >= 0x80 ? above_ascii : strchr(set, c) != NULL)) break;
        r->at++;
        n++;
    }
    return n;
}

// Takes one byte that must be this one.
static int ref_eat(ref_head *r, char c)
{
    if (r->status) return 0;
    if (r->at == r->len) {
        r->status = MORE;
        return 0;
    }
    if (r->s[r->at] != (uint8_t)c) {
        r->status = 400;
        return 0;
    }
    r->at++;
    return 1;
}

static void ref_copy(char *to, size_t size, const uint8_t *from, size_t len)
{
    if (len >= size) len = size - 1;
    memcpy(to, from, len);
    to[len] = '\0';
}

#define ALPHA_UP "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
#define ALNUM ALPHA_UP "abcdefghijklmnopqrstuvwxyz0123456789"
#define MARKS "!#$%&'*+-.^_`|~"
#define VISIBLE ALNUM MARKS "\"(),/:;<=>?@[\\]{}"

// 0 to go on, else a status.
static void ref_request_line(ref_head *r)
{
    size_t start = 0, n = ref_span(r, ALPHA_UP, 0, 32);
    uint8_t c = r->len ? r->s[0] : 0;
    ref_copy(r->method, sizeof r->method, r->s, n);
    if (n == 0 && r->len) {
        int is_text = c >= 0x20 && c <= 0x7e;
        r->status = is_text || c == '\r' || c == '\n' || c == '\t' ? 400 : DROP;
        return;
    }
    if (!ref_eat(r, ' ')) return;
    start = r->at;
    n = ref_span(r, VISIBLE, 0, 1024);
    ref_copy(r->target, sizeof r->target, r->s + start, n);
    if (n == 1024 && ref_span(r, VISIBLE, 0, 1)) {
        r->at--;
        r->status = 414;
        return;
    }
    if (n == 0 && r->at < r->len) r->status = 400;
    if (!ref_eat(r, ' ')) return;
    start = r->at;
    for (const char *form = "HTTP/#.#"; *form; form++) {
        if (*form != '#') {
            if (!ref_eat(r, *form)) return;
        } else if (!ref_span(r, "0123456789", 0, 1)) {
            r->status = r->at == r->len ? MORE : 400;
            return;
        }
    }
    if (!ref_eat(r, '\r')) return;
    if (memcmp(r->s + start, "HTTP/1.1", 8) != 0) {
        r->at--;
        r->status = 505;
        return;
    }
    ref_eat(r, '\n');
}

static int ref_is_known(const char *name)
{
    return ref_matches(RE_OURS, name) || ref_same(name, "upgrade");
}

static void ref_trim(char *s)
{
    size_t lead = strspn(s, " \t"), len;
    memmove(s, s + lead, strlen(s) - lead + 1);
    for (len = strlen(s); len && strchr(" \t", s[len - 1]); len--) s[len - 1] = '\0';
}

static void ref_lines_read(ref_head *r)
{
    while (!r->status) {
        size_t start = r->at, n;
        ref_line *line = &r->lines[r->count];
        if (r->at < r->len && r->s[r->at] == '\r') {
            r->at++;
            ref_eat(r, '\n');
            return;
        }
        n = ref_span(r, ALNUM MARKS, 0, 8192);
        if (n > 0 && r->count == 64) {
            r->at = start;
            r->status = 431;
            return;
        }
        if (n == 0 && r->at < r->len) r->status = 400;
        if (!ref_eat(r, ':')) return;
        ref_copy(line->name, sizeof line->name, r->s + start, n);
        start = r->at;
        n = ref_span(r, " \t" VISIBLE, !ref_is_known(line->name), 8192);
        ref_copy(line->value, sizeof line->value, r->s + start, n);
        ref_trim(line->value);
        if (!ref_eat(r, '\r')) return;
        ref_eat(r, '\n');
        r->count++;
    }
}

static const char *ref_value(const ref_head *r, const char *name, int *count)
{
    const char *value = NULL;
    *count = 0;
    for (size_t i = 0; i < r->count; i++) {
        if (!ref_same(r->lines[i].name, name)) continue;
        value = r->lines[i].value;
        ++*count;
    }
    return value;
}

// Goes through the items of all lines of a list field.
typedef void ref_item_fn(void *ud, const char *item);
static void ref_each(const ref_head *r, const char *name, ref_item_fn *fn, void *ud)
{
    static char copy[8200];
    for (size_t i = 0; i < r->count; i++) {
        if (!ref_same(r->lines[i].name, name)) continue;
        memcpy(copy, r->lines[i].value, sizeof copy);
        for (char *item = strtok(copy, ","); item; item = strtok(NULL, ",")) {
            ref_trim(item);
            if (*item) fn(ud, item);
        }
    }
}

typedef struct ref_lists {
    int is_bad, upgrade, close, revdial, websocket, other, subprotocol, subprotocols;
    int is_bad_feature, window_seen, streams_seen;
    unsigned features;
    unsigned long window, streams;
} ref_lists;

static void ref_option(void *ud, const char *item)
{
    ref_lists *l = ud;
    l->upgrade |= ref_same(item, "upgrade");
    l->close |= ref_same(item, "close");
    l->is_bad |= !ref_matches(RE_TOKEN, item) || ref_matches(RE_OURS, item);
}

static void ref_protocol(void *ud, const char *item)
{
    ref_lists *l = ud;
    l->is_bad |= !ref_matches(RE_PROTOCOL, item);
    if (ref_same(item, "revdial"))
        l->revdial++;
    else if (ref_same(item, "websocket"))
        l->websocket++;
    else
        l->other++;
}

static void ref_subprotocol(void *ud, const char *item)
{
    ref_lists *l = ud;
    l->subprotocol |= strcmp(item, "revdial") == 0;
    l->subprotocols++;
}

static void ref_feature(void *ud, const char *item)
{
    static const char *const names[] = {"rstcode", "preamble", "drain", "promptack", "pings"};
    ref_lists *l = ud;
    const char *number = strchr(item, '=') ? strchr(item, '=') + 1 : "";
    unsigned long n = strtoul(number, NULL, 10);
    int is_window = *item == 'w' || *item == 'W';
    l->is_bad_feature |= !ref_matches(RE_FEATURE, item);
    for (size_t i = 0; i < COUNT(names); i++)
        if (ref_same(item, names[i])) l->features |= 1u << i;
    if (!ref_matches(RE_NUMBERED, item)) return;
    l->is_bad_feature |= !ref_matches(RE_NUMBER, number) || n > 2147483647;
    if (is_window) {
        l->is_bad_feature |= n < 8192 || l->window_seen++;
        l->window = n;
    } else {
        l->is_bad_feature |= l->streams_seen++ > 0;
        l->streams = n;
    }
}

static ref_lists ref_lists_of(const ref_head *r)
{
    ref_lists l = {.window = 262144, .streams = 256};
    ref_each(r, "connection", ref_option, &l);
    ref_each(r, "upgrade", ref_protocol, &l);
    ref_each(r, "revdial-features", ref_feature, &l);
    ref_each(r, "sec-websocket-protocol", ref_subprotocol, &l);
    return l;
}

// A request that asks for WebSocket and not for revdial.
static int ref_websocket(const ref_head *r, const ref_lists *l)
{
    int keys, versions;
    const char *key = ref_value(r, "sec-websocket-key", &keys);
    const char *version = ref_value(r, "sec-websocket-version", &versions);
    if (versions > 1 || keys > 1) return 400;
    if (!versions || strcmp(version, "13") != 0) return 426;
    return keys && ref_matches(RE_WS_KEY, key) && l->subprotocol ? 0 : 400;
}

static int ref_origin(const ref_head *r)
{
    int origins;
    const char *origin = ref_value(r, "origin", &origins);
    return !origins || (origins == 1 && ref_matches(RE_ORIGIN, origin)) ? 0 : 403;
}

// What the credentials and our own fields come to.
static int ref_ours(const ref_head *r, const ref_lists *l, asked *out)
{
    int names, instances, versions, auths;
    const char *name = ref_value(r, "revdial-name", &names);
    const char *instance = ref_value(r, "revdial-instance", &instances);
    const char *version = ref_value(r, "revdial-version", &versions);
    const char *auth = ref_value(r, "authorization", &auths);
    if (names > 1 || (names && !ref_matches(RE_NAME, name))) return 400;
    if (instances > 1 || (instances && !ref_matches(RE_INSTANCE, instance))) return 400;
    if (versions > 1 || (versions && !ref_matches(RE_VERSION, version))) return 400;
    if (l->is_bad_feature || auths > 1) return 400;
    if (auths && !ref_matches(RE_SCHEME, auth)) return 400;
    if (auths && !ref_matches(RE_BEARER, auth)) {
        char scheme[8200];
        copy_text(scheme, sizeof scheme, auth);
        scheme[strcspn(scheme, " ")] = '\0';
        return ref_same(scheme, "bearer") ? 400 : 401;
    }
    copy_text(out->name, sizeof out->name, names ? name : "");
    copy_text(out->instance, sizeof out->instance, instances ? instance : "");
    copy_text(out->secret, sizeof out->secret, auths ? strrchr(auth, ' ') + 1 : "");
    if (strlen(out->secret) > 4096) return 400;
    out->is_revdial = versions == 1;
    out->features = versions ? l->features : 0;
    out->window = (uint32_t)(versions ? l->window : 262144);
    out->streams = (uint32_t)(versions ? l->streams : 256);
    return ACCEPTED;
}

static int ref_decide(const ref_head *r, asked *out)
{
    int hosts, lengths, codings, expects, copies;
    const char *host = ref_value(r, "host", &hosts);
    const char *length = ref_value(r, "content-length", &lengths);
    const char *copy = ref_value(r, "revdial-upgrade", &copies);
    ref_lists l = ref_lists_of(r);
    const char *port;
    int status;
    ref_value(r, "transfer-encoding", &codings);
    ref_value(r, "expect", &expects);
    if (strcmp(r->method, "GET") != 0) return 405;
    if (ref_matches(RE_OTHER_FORM, r->target)) return 400;
    if (strcmp(r->target, PATH) != 0) return 404;
    if (hosts != 1 || !ref_matches(RE_HOST, host)) return 400;
    port = strrchr(host, ':');
    if (port && !strchr(port, ']') && atoi(port + 1) > 65535) return 400;
    if (codings || lengths > 1 || (lengths && strcmp(length, "0") != 0)) return 400;
    if (expects) return 417;
    if (l.is_bad || (l.upgrade && l.close)) return 400;
    status = l.upgrade && (l.revdial || l.websocket) ? 0 : 426;
    if (!status && !l.revdial) status = ref_websocket(r, &l);
    if (status == 426)
        out->is_stripped = copies && (ref_same(copy, "revdial") || ref_same(copy, "websocket"));
    if (!status) status = ref_origin(r);
    out->carrier = !status && !l.revdial ? REVDIAL_CARRIER_WEBSOCKET : REVDIAL_CARRIER_RAW;
    return status ? status : ref_ours(r, &l, out);
}

static asked ref_ask(const uint8_t *s, size_t len)
{
    static asked zero;
    static ref_head r;
    asked out = zero;
    r.s = s;
    r.len = len < 8192 ? len : 8192;
    r.at = r.count = 0;
    r.status = 0;
    ref_request_line(&r);
    ref_lines_read(&r);
    if (r.status == MORE && len > 8192) {
        out.status = 431;
        out.used = 8193;
        return out;
    }
    out.used = r.at + (r.status != 0 && r.status != MORE);  // with the byte that was illegal
    out.status = r.status ? r.status : ref_decide(&r, &out);
    return out;
}

static void check_against_reference(const uint8_t *s, size_t len, size_t step, const char *how)
{
    asked want = ref_ask(s, len), got = ask(s, len, 0, step);
    if (got.status == ACCEPTED || want.status == ACCEPTED || got.status != want.status) {
        if (same_asked(&got, &want)) return;
    } else if (got.used == want.used && got.is_stripped == want.is_stripped) {
        return;
    }
    test_fail(__FILE__, __LINE__, "%s: %d after %zu bytes, the reference says %d after %zu: %.*s",
              how, got.status, got.used, want.status, want.used, (int)len, (const char *)s);
}

static const char mutated_ws[] = WS_ASK "Origin: https://proxy.example:7000\r\n"
                                        "Revdial-Name: cam-1\r\nRevdial-Upgrade: websocket\r\n" END;
static const char mutated[] =
    ASK "Authorization: Bearer aB3-._~+/==\r\nRevdial-Version: 1\r\nRevdial-Name: cam-1\r\n"
        "Revdial-Instance: I_7.x\r\nX-Any: v\r\nContent-Length: 0\r\nRevdial-Upgrade: revdial\r\n"
        "Revdial-Features: rstcode, preamble, drain, promptack, pings, window=65536, streams=65536"
        "\r\n" END;

static void check_substitutions(const char *legal, size_t len)
{
    uint8_t s[1024];
    memcpy(s, legal, len);
    CHECK_INT(ref_ask(s, len).status, ACCEPTED);
    for (size_t at = 0; at < len && test_failures < 5; at++) {
        for (int c = 0; c < 256; c++) {
            s[at] = (uint8_t)c;
            check_against_reference(s, len, len, "A77 substituted");
        }
        s[at] = (uint8_t)legal[at];
    }
}

TEST(A77_every_byte_at_every_offset_is_judged_as_the_reference_does)
{
    CHECK_INT(ref_ask((const uint8_t *)mutated, sizeof mutated - 1).features, 31);
    check_substitutions(BYTES(mutated));
    check_substitutions(BYTES(mutated_ws));
}

TEST(A77_every_byte_inserted_or_removed_is_judged_as_the_reference_does)
{
    uint8_t s[sizeof mutated];
    const size_t len = sizeof mutated - 1;
    for (size_t at = 0; at < len && test_failures < 5; at++) {
        memcpy(s, mutated, at);
        memcpy(s + at, mutated + at + 1, len - at - 1);
        check_against_reference(s, len - 1, len, "A77 removed");
        memcpy(s + at + 1, mutated + at, len - at);
        for (int c = 0; c < 256; c++) {
            s[at] = (uint8_t)c;
            check_against_reference(s, len + 1, len, "A77 inserted");
        }
    }
}

static const char *const splices[] = {"\r\n",
                                      "\r\n\r\n",
                                      ": ",
                                      ",",
                                      " ",
                                      "\t",
                                      "=",
                                      "Host: x\r\n",
                                      "close",
                                      "upgrade",
                                      "revdial",
                                      "Connection: upgrade\r\n",
                                      "Connection: host\r\n",
                                      "Upgrade: h2c, revdial\r\n",
                                      "HTTP/1.0",
                                      "Transfer-Encoding: x\r\n",
                                      "Content-Length: 0\r\n",
                                      "Expect: x\r\n",
                                      "window=8192",
                                      "streams=0",
                                      "Revdial-Features: drain\r\n",
                                      "Authorization: Basic x\r\n",
                                      "POST ",
                                      "Revdial-Name: a\r\n",
                                      "\x80",
                                      "Revdial-Later: \xff\r\n",
                                      "Bearer ",
                                      "/",
                                      "X: \xff\r\n",
                                      "[::1]:80",
                                      "4294967296",
                                      "-1",
                                      WS_UPGR,
                                      WS_KEY,
                                      WS_VERSION,
                                      WS_PROTOCOL,
                                      "websocket",
                                      "Origin: http://x\r\n"};

// One change: a random byte, bytes cut out, bytes said twice, or a word of the protocol put in.
static size_t mutate(test_rng *rng, uint8_t *s, size_t len, size_t size)
{
    size_t at = (size_t)test_below(rng, len), n = (size_t)test_below(rng, 40);
    const char *word = splices[test_below(rng, COUNT(splices))];
    if (n > len - at) n = len - at;
    switch (test_below(rng, 4)) {
    case 0: s[at] = (uint8_t)test_random(rng); return len;
    case 1: memmove(s + at, s + at + n, len - at - n); return len - n ? len - n : 1;
    case 2:
        if (len + n > size) return len;
        memmove(s + at + n, s + at, len - at);
        return len + n;
    default:
        n = strlen(word);
        if (len + n > size) return len;
        memmove(s + at + n, s + at, len - at);
        memcpy(s + at, word, n);
        return len + n;
    }
}

TEST(A77_random_changes_are_judged_as_the_reference_does)
{
    test_rng rng = test_rng_seeded(77);
    for (int round = 0; round < (int)test_share(60000) && test_failures < 5; round++) {
        uint8_t s[1024];
        size_t len = sizeof mutated - 1, changes = 1 + (size_t)test_below(&rng, 4);
        if (round % 2) len = sizeof mutated_ws - 1;
        memcpy(s, round % 2 ? mutated_ws : mutated, len);
        while (changes--) len = mutate(&rng, s, len, sizeof s);
        check_against_reference(s, len, 1 + (size_t)test_below(&rng, 200), "A77 changed");
    }
}

// ---- The response -------------------------------------------------------------------------------

typedef struct answered {
    int status;  // BAD, MORE or the HTTP status
    size_t used;
    rvd_http_response r;
} answered;

// Feeds heads until the final one.
static const char *asked_ws;  // NULL: raw was asked for; else the right Sec-WebSocket-Accept

static answered listen_for(const uint8_t *s, size_t len, size_t first, size_t step)
{
    static answered zero;
    answered a = zero;
    test_heap memory = {0};
    rvd_heap heap = {test_heap_alloc, &memory, 0};
    rvd_http_head head;
    int verdict = RVD_HTTP_MORE;
    rvd_http_head_init(&head, &heap, 0);
    while (a.used < len && verdict == RVD_HTTP_MORE) {
        size_t piece = a.used == 0 && first ? first : step, used = 0;
        if (piece > len - a.used) piece = len - a.used;
        verdict = rvd_http_head_feed(&head, s + a.used, piece, &used);
        a.used += used;
        if (verdict == RVD_HTTP_DONE)
            verdict = rvd_http_response_read(&head, asked_ws != NULL, asked_ws, &a.r);
    }
    a.status = verdict == RVD_HTTP_DONE ? a.r.status : status_of(verdict);
    rvd_http_head_free(&head);
    CHECK_INT(memory.live_blocks, 0);
    return a;
}

static int same_answered(const answered *a, const answered *b)
{
    const rvd_http_response *x = &a->r, *y = &b->r;
    if (a->status != b->status || a->used != b->used) return 0;
    if (a->status < 0) return 1;
    return memcmp(&x->terms, &y->terms, sizeof x->terms) == 0 && x->session_id == y->session_id &&
           x->retry_after_ms == y->retry_after_ms && x->is_stripped == y->is_stripped;
}

static answered listen_every_way(const char *row, const char *bytes, size_t len)
{
    uint8_t *s = malloc(len ? len : 1);
    answered whole, other;
    memcpy(s, bytes, len);
    whole = listen_for(s, len, 0, len ? len : 1);
    for (size_t cut = 1; cut <= len; cut++) {
        other = cut < len ? listen_for(s, len, cut, len) : listen_for(s, len, 0, 1);
        if (!same_answered(&whole, &other))
            test_fail(__FILE__, __LINE__, "%s: whole %d, split at %zu %d", row, whole.status, cut,
                      other.status);
    }
    free(s);
    return whole;
}

static void check_answer_case(const ask_case *c)
{
    answered a = listen_every_way(c->row, c->bytes, c->len);
    if (a.status != c->want)
        test_fail(__FILE__, __LINE__, "%s: %d, not %d", c->row, a.status, c->want);
}

#define CHECK_ANSWERS(cases) \
    for (size_t i_ = 0; i_ < COUNT(cases); i_++) check_answer_case(&(cases)[i_])

TEST(R1_R2_bytes_after_the_101_are_left_alone)
{
    static const char bytes[] = SWITCH END "\0\2\0\1\0\0\0\0\0\0\0\0HTTP/1.1 101 X\r\n\r\n";
    answered a = listen_every_way("R1", BYTES(bytes));
    CHECK_INT(a.status, 101);
    CHECK_INT(a.used, sizeof(SWITCH END) - 1);
    CHECK_INT(a.r.terms.is_revdial, 0);
    CHECK_INT(a.r.terms.window, 262144);
    CHECK_INT(a.r.terms.streams, 256);
    CHECK(a.r.session_id == 0);
}

TEST(R3_R15_four_interim_responses_are_skipped_and_no_more)
{
#define INTERIM \
    "HTTP/1.1 100 Continue\r\n\r\n" \
    "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    static const ask_case cases[] = {
        {"R3 two", 101, BYTES(INTERIM SWITCH END)},
        {"R3 four", 101, BYTES(INTERIM INTERIM SWITCH END)},
        {"R3 five", BAD, BYTES(INTERIM INTERIM "HTTP/1.1 102 \r\n\r\n" SWITCH END)},
        {"R3 four and a refusal", 503, BYTES(INTERIM INTERIM "HTTP/1.1 503 No\r\n\r\n")},
        {"R3 not in HTTP/1.0", BAD, BYTES("HTTP/1.0 100 Continue\r\n\r\n" SWITCH END)},
        {"R3 with a length", BAD, BYTES("HTTP/1.1 100 C\r\nContent-Length: 0\r\n\r\n" SWITCH END)},
    };
    CHECK_ANSWERS(cases);
#undef INTERIM
}

TEST(R4_to_R7_other_statuses_are_told_as_they_are)
{
    static const int statuses[] = {200, 204, 206, 301, 302, 307, 308, 400, 401, 403,
                                   404, 407, 409, 426, 429, 500, 502, 503, 599};
    char text[64];
    for (size_t i = 0; i < COUNT(statuses); i++) {
        snprintf(text, sizeof text, "HTTP/1.1 %d Why\r\nServer: x\r\n\r\n", statuses[i]);
        answered a = listen_every_way("R4", text, strlen(text));
        CHECK_INT(a.status, statuses[i]);
        CHECK_INT(a.used, strlen(text));
        CHECK_INT(a.r.retry_after_ms, 0);
    }
    CHECK_INT(listen_every_way("1.0", BYTES("HTTP/1.0 503 Service Unavailable\r\n\r\n")).status,
              503);
}

TEST(a_426_that_asks_for_what_was_sent_means_a_middlebox_stripped_it)
{
    answered a = listen_every_way("426", BYTES("HTTP/1.1 426 U\r\n" UPGR "\r\n"));
    CHECK_INT(a.r.is_stripped, 1);
    a = listen_every_way("426", BYTES("HTTP/1.1 426 U\r\nUpgrade: websocket\r\n\r\n"));
    CHECK_INT(a.r.is_stripped, 0);
    a = listen_every_way("400", BYTES("HTTP/1.1 400 U\r\n" UPGR "\r\n"));
    CHECK_INT(a.r.is_stripped, 0);
}

TEST(R8_retry_after_is_clamped_and_nonsense_is_ignored)
{
    static const struct {
        const char *value;
        int want_ms;
    } cases[] = {{"7", 7000},
                 {"1", 1000},
                 {"0", 1000},
                 {"300", 300000},
                 {"301", 300000},
                 {"1000000000", 300000},
                 {"4294967295", 300000},
                 {"4294967296", 0},
                 {"-1", 0},
                 {"1e9", 0},
                 {"", 0},
                 {"7.5", 0},
                 {"7, 7", 0},
                 {"7\r\nRetry-After: 7", 0},
                 {"1000000000000000000000", 0},
                 {"Wed, 21 Oct 2015 07:28:00 GMT", 0}};
    static const int statuses[] = {429, 503, 500};
    char text[128];
    for (size_t i = 0; i < COUNT(cases) * COUNT(statuses); i++) {
        int status = statuses[i % COUNT(statuses)];
        const char *value = cases[i / COUNT(statuses)].value;
        snprintf(text, sizeof text, "HTTP/1.1 %d X\r\nRetry-After: %s\r\n\r\n", status, value);
        answered a = listen_every_way("R8", text, strlen(text));
        CHECK_INT(a.status, status);
        if (a.r.retry_after_ms != (status == 500 ? 0 : cases[i / COUNT(statuses)].want_ms))
            test_fail(__FILE__, __LINE__, "R8 \"%s\": %d", value, a.r.retry_after_ms);
    }
}

TEST(R9_to_R14_a_101_is_taken_only_if_it_is_exact)
{
#define L101 "HTTP/1.1 101 Switching Protocols\r\n"
    static const ask_case cases[] = {
        {"legal", 101, BYTES(SWITCH END)},
        {"legal, other order and case", 101,
         BYTES(L101 "UPGRADE: Revdial\r\nconnection:upgrade\r\n\r\n")},
        {"legal, other options", 101, BYTES(L101 UPGR "Connection: keep-alive, upgrade\r\n\r\n")},
        {"legal, other fields", 101, BYTES(SWITCH "Server: caf\xc3\xa9\r\nX:\r\n" END)},
        {"R9 no Upgrade", BAD, BYTES(L101 CONN END)},
        {"R9 other", BAD, BYTES(L101 CONN "Upgrade: websocket\r\n" END)},
        {"R9 version", BAD, BYTES(L101 CONN "Upgrade: revdial/1\r\n" END)},
        {"R9 list", BAD, BYTES(L101 CONN "Upgrade: revdial, h2c\r\n" END)},
        {"R9 said twice", BAD, BYTES(L101 CONN "Upgrade: revdial, revdial\r\n" END)},
        {"R9 two lines", BAD, BYTES(SWITCH UPGR END)},
        {"R9 empty", BAD, BYTES(L101 CONN "Upgrade:\r\n" END)},
        {"R10 no Connection", BAD, BYTES(L101 UPGR END)},
        {"R10 other option", BAD, BYTES(L101 UPGR "Connection: keep-alive\r\n" END)},
        {"R10 close", BAD, BYTES(L101 UPGR "Connection: upgrade, close\r\n" END)},
        {"R10 malformed", BAD, BYTES(L101 UPGR "Connection: upgrade; x\r\n" END)},
        {"R11 length", BAD, BYTES(SWITCH "Content-Length: 0\r\n" END)},
        {"R11 coding", BAD, BYTES(SWITCH "Transfer-Encoding: chunked\r\n" END)},
        {"R12 1.0", BAD, BYTES("HTTP/1.0 101 X\r\n" CONN UPGR END)},
        {"R12 1.2", BAD, BYTES("HTTP/1.2 101 X\r\n" CONN UPGR END)},
        {"R12 2", BAD, BYTES("HTTP/2 101 X\r\n" CONN UPGR END)},
        {"R12 1011", BAD, BYTES("HTTP/1.1 1011 X\r\n" CONN UPGR END)},
        {"R12 10", BAD, BYTES("HTTP/1.1 10 X\r\n" CONN UPGR END)},
        {"R12 +101", BAD, BYTES("HTTP/1.1 +101 X\r\n" CONN UPGR END)},
        {"R12 101X", BAD, BYTES("HTTP/1.1 101X\r\n" CONN UPGR END)},
        {"R12 two blanks", BAD, BYTES("HTTP/1.1  101 X\r\n" CONN UPGR END)},
        {"R12 no blank after the code", BAD, BYTES("HTTP/1.1 101\r\n" CONN UPGR END)},
        {"R12 empty reason", 101, BYTES("HTTP/1.1 101 \r\n" CONN UPGR END)},
        {"R12 600", BAD, BYTES("HTTP/1.1 600 X\r\n\r\n")},
        {"R12 099", BAD, BYTES("HTTP/1.1 099 X\r\n\r\n")},
        {"R12 not HTTP", BAD, BYTES("SSH-2.0")},
        {"R12 CRLF first", BAD, BYTES("\r\n" SWITCH END)},
        {"R13 control byte", BAD, BYTES("HTTP/1.1 101 a\1b\r\n" CONN UPGR END)},
        {"R13 NUL", BAD, BYTES("HTTP/1.1 101 a\0b\r\n" CONN UPGR END)},
        {"R13 above ASCII is legal", 101, BYTES("HTTP/1.1 101 caf\xe9\r\n" CONN UPGR END)},
        {"R14 LF", BAD, BYTES("HTTP/1.1 101 X\n" CONN UPGR END)},
        {"R14 LF as blank line", BAD, BYTES(SWITCH "\n")},
        {"R14 CR only", BAD, BYTES(SWITCH "X: y\rZ: a\r\n" END)},
        {"R14 obs-fold", BAD, BYTES(SWITCH "X: y\r\n z\r\n" END)},
        {"R14 no colon", BAD, BYTES(SWITCH "nonsense\r\n" END)},
        {"R14 empty name", BAD, BYTES(SWITCH ": x\r\n" END)},
        {"R14 blank before colon", BAD, BYTES(SWITCH "X : y\r\n" END)},
    };
    CHECK_ANSWERS(cases);
#undef L101
}

TEST(R13_R15_a_response_head_is_bounded)
{
    static char text[8300];
    size_t len = sizeof(SWITCH) - 1;
    answered a;
    memset(text, 'a', sizeof text);
    memcpy(text, "HTTP/1.1 101 ", 13);
    a = listen_every_way("R13", text, sizeof text);
    CHECK_INT(a.status, BAD);
    CHECK_INT(a.used, 8193);
    memcpy(text, SWITCH, len);
    for (int i = 2; i < 64; i++, len += 4) memcpy(text + len, "x:\r\n", 4);
    memcpy(text + len, "\r\n", 2);
    CHECK_INT(listen_every_way("R15 64", text, len + 2).status, 101);
    memcpy(text + len, "x:\r\n\r\n", 6);
    CHECK_INT(listen_every_way("R15 65", text, len + 6).status, BAD);
}

TEST(R20_parameters_of_the_101)
{
#define OURS SWITCH "Revdial-Version: 1\r\n"
    static const ask_case cases[] = {
        {"window too small", BAD, BYTES(OURS "Revdial-Features: window=8191\r\n" END)},
        {"window too large", BAD, BYTES(OURS "Revdial-Features: window=2147483648\r\n" END)},
        {"streams twice", BAD, BYTES(OURS "Revdial-Features: streams=1,streams=1\r\n" END)},
        {"streams signed", BAD, BYTES(OURS "Revdial-Features: streams=-1\r\n" END)},
        {"version twice", BAD, BYTES(OURS "Revdial-Version: 1\r\n" END)},
        {"version 0", BAD, BYTES(SWITCH "Revdial-Version: 0\r\n" END)},
        {"a later version", 101, BYTES(SWITCH "Revdial-Version: 2\r\n" END)},
        {"session short", BAD, BYTES(OURS "Revdial-Session: 123\r\n" END)},
        {"session long", BAD, BYTES(OURS "Revdial-Session: 00000000000000001\r\n" END)},
        {"session not hex", BAD, BYTES(OURS "Revdial-Session: 000000000000000g\r\n" END)},
        {"session twice", BAD,
         BYTES(OURS "Revdial-Session: 0000000000000001\r\n"
                    "Revdial-Session: 0000000000000001\r\n" END)},
        {"above ASCII", BAD, BYTES(OURS "Revdial-Later: \x80\r\n" END)},
    };
    static const char full[] = OURS "Revdial-Features: later, drain, window=9000, streams=0\r\n"
                                    "Revdial-Session: fedcba9876543210\r\n" END;
    answered a = listen_every_way("R20", BYTES(full));
    CHECK_ANSWERS(cases);
    CHECK_INT(a.status, 101);
    CHECK_INT(a.r.terms.is_revdial, 1);
    CHECK_INT(a.r.terms.features, REVDIAL_FEATURE_DRAIN);
    CHECK_INT(a.r.terms.window, 9000);
    CHECK_INT(a.r.terms.streams, 0);
    CHECK(a.r.session_id == 0xfedcba9876543210u);
#undef OURS
}

TEST(R23_the_body_of_a_refusal_is_not_read)
{
    static const char head[] = "HTTP/1.1 503 No\r\nContent-Length: 1073741824\r\n\r\n";
    static char text[4096];
    answered a;
    memset(text, 'x', sizeof text);
    memcpy(text, head, sizeof head - 1);
    a = listen_for((const uint8_t *)text, sizeof text, 0, sizeof text);
    CHECK_INT(a.status, 503);
    CHECK_INT(a.used, sizeof head - 1);
}

static int ref_is_ws_answer(const ref_head *r, const ref_lists *l)
{
    int accepts, extensions;
    const char *accept = ref_value(r, "sec-websocket-accept", &accepts);
    ref_value(r, "sec-websocket-extensions", &extensions);
    return accepts == 1 && strcmp(accept, asked_ws) == 0 && !extensions && l->subprotocol &&
           l->subprotocols == 1;
}

// The reference for responses; shares the reading of header lines.
static int ref_answer(const uint8_t *s, size_t len)
{
    static ref_head r;
    char line[14] = "";
    int lengths, codings, sessions, versions, status;
    const char *session, *version;
    ref_lists l;
    memcpy(line, s, len < 13 ? len : 13);
    if (strlen(line) < 13 || !ref_matches(RE_STATUS, line)) return BAD;
    r.s = s;
    r.len = len;
    r.at = 13;
    r.count = 0;
    r.status = 0;
    ref_span(&r, " \t" VISIBLE, 1, len);
    if (ref_eat(&r, '\r')) ref_eat(&r, '\n');
    ref_lines_read(&r);
    if (r.status) return r.status == MORE ? MORE : BAD;
    status = atoi(line + 9);
    if (status >= 200) return status;
    l = ref_lists_of(&r);
    session = ref_value(&r, "revdial-session", &sessions);
    version = ref_value(&r, "revdial-version", &versions);
    ref_value(&r, "content-length", &lengths);
    ref_value(&r, "transfer-encoding", &codings);
    if (lengths || codings || line[7] == '0') return BAD;
    if (status != 101) return MORE;
    if (l.is_bad || !l.upgrade || l.close || l.other) return BAD;
    if (l.revdial != !asked_ws || l.websocket != !!asked_ws) return BAD;
    if (asked_ws && !ref_is_ws_answer(&r, &l)) return BAD;
    if (l.is_bad_feature || versions > 1 || sessions > 1) return BAD;
    if (versions && !ref_matches(RE_VERSION, version)) return BAD;
    return sessions && !ref_matches(RE_SESSION, session) ? BAD : 101;
}

#define WS_SWITCH \
    "HTTP/1.1 101 Switching Protocols\r\n" CONN WS_UPGR "Sec-WebSocket-Accept: " WS_ACCEPT_TEXT \
    "\r\n" WS_PROTOCOL

static void check_answer_bytes(const char *legal, size_t len)
{
    uint8_t s[1024];
    memcpy(s, legal, len);
    CHECK_INT(ref_answer(s, len), 101);
    for (size_t at = 0; at < len && test_failures < 5; at++) {
        for (int c = 0; c < 256; c++) {
            int want, got;
            s[at] = (uint8_t)c;
            want = ref_answer(s, len);
            got = listen_for(s, len, 0, len).status;
            if (got != want)
                test_fail(__FILE__, __LINE__, "byte %d at %zu: %d, not %d", c, at, got, want);
        }
        s[at] = (uint8_t)legal[at];
    }
}

TEST(every_byte_at_every_offset_of_a_101_is_judged_as_the_reference_does)
{
    static const char raw[] =
        SWITCH "Revdial-Version: 1\r\nRevdial-Session: 00c0ffee12345678\r\nX-Any: v\r\n"
               "Revdial-Features: rstcode, drain, window=65536, streams=65536\r\n" END;
    static const char ws[] = WS_SWITCH "Revdial-Version: 1\r\n" END;
    check_answer_bytes(BYTES(raw));
    asked_ws = WS_ACCEPT_TEXT;
    check_answer_bytes(BYTES(ws));
    asked_ws = NULL;
}

TEST(R9_a_101_to_WebSocket_proves_that_the_key_was_read)
{
#define L101 "HTTP/1.1 101 Switching Protocols\r\n"
#define ACCEPT "Sec-WebSocket-Accept: " WS_ACCEPT_TEXT "\r\n"
    static const ask_case cases[] = {
        {"legal", 101, BYTES(WS_SWITCH END)},
        {"legal, stock case", 101,
         BYTES(L101 "upgrade: WebSocket\r\nConnection: upgrade\r\n" ACCEPT WS_PROTOCOL END)},
        {"raw for WebSocket", BAD, BYTES(L101 CONN UPGR ACCEPT WS_PROTOCOL END)},
        {"both", BAD, BYTES(WS_SWITCH UPGR END)},
        {"no accept", BAD, BYTES(L101 CONN WS_UPGR WS_PROTOCOL END)},
        {"accept twice", BAD, BYTES(WS_SWITCH ACCEPT END)},
        {"another accept", BAD,
         BYTES(L101 CONN WS_UPGR WS_PROTOCOL
               "Sec-WebSocket-Accept: S3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" END)},
        {"a longer accept", BAD,
         BYTES(L101 CONN WS_UPGR WS_PROTOCOL "Sec-WebSocket-Accept: " WS_ACCEPT_TEXT "=\r\n" END)},
        {"no protocol", BAD, BYTES(L101 CONN WS_UPGR ACCEPT END)},
        {"another protocol", BAD,
         BYTES(L101 CONN WS_UPGR ACCEPT "Sec-WebSocket-Protocol: mqtt\r\n" END)},
        {"two protocols", BAD,
         BYTES(L101 CONN WS_UPGR ACCEPT "Sec-WebSocket-Protocol: mqtt, revdial\r\n" END)},
        {"an extension", BAD, BYTES(WS_SWITCH "Sec-WebSocket-Extensions: x\r\n" END)},
    };
    asked_ws = WS_ACCEPT_TEXT;
    CHECK_ANSWERS(cases);
    asked_ws = NULL;
    CHECK_INT(listen_every_way("WebSocket for raw", BYTES(WS_SWITCH END)).status, BAD);
#undef ACCEPT
#undef L101
}

// ---- What we send -------------------------------------------------------------------------------

// A file of tests/vectors: lines of "…" are bytes, '#' begins the sentence that they pin down.
typedef struct vector {
    char bytes[4096];
    size_t len, sentences;
} vector;

static int vector_line(vector *v, const char *line)
{
    const char *at = line + 1;
    if (*line == '#') {
        v->sentences++;
        return 1;
    }
    if (*line != '"') return 0;
    for (; *at && *at != '"'; at++) {
        char c = *at;
        if (c == '\\') {
            at++;
            c = (char)(*at == 'r' ? '\r' : *at == 'n' ? '\n' : *at);
            if (!strchr("rn\"\\", *at)) return 0;
        }
        if (v->len + 1 >= sizeof v->bytes) return 0;
        v->bytes[v->len++] = c;
    }
    v->bytes[v->len] = '\0';
    return strcmp(at, "\"\n") == 0;
}

static int vector_load(vector *v, const char *name)
{
    char path[512], line[512];
    FILE *file;
    int ok = 1;
    memset(v, 0, sizeof *v);
    snprintf(path, sizeof path, TEST_VECTORS "/%s.txt", name);
    file = fopen(path, "r");
    if (!file) return test_fail(__FILE__, __LINE__, "cannot open %s", path);
    while (ok && fgets(line, sizeof line, file)) ok = vector_line(v, line);
    fclose(file);
    return ok && v->sentences > 0 && v->len > 0;
}

static const revdial_engine_config good_config = {.name = "cam-1", .instance = "i-7F3a"};
static const rvd_http_offer good_offer = {.cfg = &good_config,
                                          .host = "proxy.example:7000",
                                          .path = "/revdial",
                                          .secret = "s3cret-token",
                                          .terms = {0, 31, 65536, 65536, 0, 0}};

static size_t write_request(char *buf, size_t size, const rvd_http_offer *offer)
{
    rvd_base_text t = {buf, size, 0, 0};
    return rvd_http_request_write(&t, offer) ? 0 : t.len;
}

TEST(the_request_is_the_one_of_the_vector_and_a_proxy_takes_it)
{
    static vector v;
    rvd_http_offer offer = good_offer;
    char buf[8193];
    asked a;
    REQUIRE(vector_load(&v, "handshake-request"));
    CHECK_INT(write_request(buf, sizeof buf, &good_offer), v.len);
    CHECK_STR(buf, v.bytes);
    a = ask_every_way("vector", v.bytes, v.len);
    CHECK_INT(a.status, ACCEPTED);
    CHECK_INT(a.used, v.len);
    CHECK_STR(a.name, "cam-1");
    CHECK_STR(a.instance, "i-7F3a");
    CHECK_STR(a.secret, "s3cret-token");
    CHECK_INT(a.is_revdial, 1);
    CHECK_INT(a.features, 31);
    CHECK_INT(a.window, 65536);
    CHECK_INT(a.streams, 65536);
    REQUIRE(vector_load(&v, "handshake-request-websocket"));
    offer.carrier = REVDIAL_CARRIER_WEBSOCKET;
    offer.ws_key = "dGhlIHNhbXBsZSBub25jZQ==";
    CHECK_INT(write_request(buf, sizeof buf, &offer), v.len);
    CHECK_STR(buf, v.bytes);
    a = ask_every_way("WebSocket vector", v.bytes, v.len);
    CHECK_INT(a.status, ACCEPTED);
    CHECK_INT(a.carrier, REVDIAL_CARRIER_WEBSOCKET);
    CHECK_STR(a.accept, WS_ACCEPT_TEXT);
    CHECK_INT(a.features, 31);
    REQUIRE(vector_load(&v, "handshake-request-stock"));
    a = ask_every_way("stock vector", v.bytes, v.len);
    CHECK_INT(a.status, ACCEPTED);
    CHECK_STR(a.name, "cam-1");
    CHECK_STR(a.secret, "s3cret-token");
    CHECK_INT(a.is_revdial, 0);
}

static void write_answer(char *buf, size_t size, const rvd_http_answer *answer)
{
    rvd_base_text t = {buf, size, 0, 0};
    rvd_http_response_write(&t, answer);
    CHECK_INT(t.overflow, 0);
    CHECK_INT(t.len, strlen(buf));
}

TEST(the_101_is_the_one_of_the_vector_and_a_backend_takes_it)
{
    static vector v;
    rvd_http_answer answer = {
        .status = 101, .terms = {1, 31, 65536, 0, 0, 0}, .session_id = 0x00c0ffee12345678u};
    char buf[RVD_HTTP_ANSWER_SIZE];
    answered a;
    REQUIRE(vector_load(&v, "handshake-101"));
    write_answer(buf, sizeof buf, &answer);
    CHECK_STR(buf, v.bytes);
    a = listen_every_way("101", v.bytes, v.len);
    CHECK_INT(a.status, 101);
    CHECK_INT(a.used, v.len);
    CHECK_INT(a.r.terms.is_revdial, 1);
    CHECK_INT(a.r.terms.features, 31);
    CHECK_INT(a.r.terms.window, 65536);
    CHECK_INT(a.r.terms.streams, 0);
    CHECK(a.r.session_id == 0x00c0ffee12345678u);
    answer.carrier = REVDIAL_CARRIER_WEBSOCKET;
    answer.accept = asked_ws = WS_ACCEPT_TEXT;
    REQUIRE(vector_load(&v, "handshake-101-websocket"));
    write_answer(buf, sizeof buf, &answer);
    CHECK_STR(buf, v.bytes);
    CHECK_INT(listen_every_way("101 WebSocket", v.bytes, v.len).status, 101);
    answer.carrier = REVDIAL_CARRIER_RAW;
    answer.accept = asked_ws = NULL;
    answer.terms.is_revdial = 0;
    REQUIRE(vector_load(&v, "handshake-101-stock"));
    write_answer(buf, sizeof buf, &answer);
    CHECK_STR(buf, v.bytes);
    CHECK_INT(listen_every_way("101 stock", v.bytes, v.len).status, 101);
}

// The head of a 101 as a document shows it, with LF for line ends. Returns 0 if it is not there.
static int document_shows(const char *path, const char *head)
{
    static char text[1 << 18];
    char lines[1024];
    size_t n = 0;
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    text[fread(text, 1, sizeof text - 1, f)] = '\0';
    fclose(f);
    for (; *head && n + 1 < sizeof lines; head++)
        if (*head != '\r') lines[n++] = *head;
    lines[n - 1] = '\0';  // the blank line
    return strstr(text, lines) != NULL;
}

TEST(a_proxy_that_takes_no_streams_answers_as_the_vector_and_the_specification_show)
{
    static vector ask, answer;
    revdial_engine_config cfg = {.role = REVDIAL_ROLE_PROXY, .session_id = 0x00c0ffee12345678u};
    revdial_engine *e = revdial_engine_new(&cfg, 1, NULL);
    revdial_event ev;
    struct iovec iov[1];
    REQUIRE(e && vector_load(&ask, "handshake-request") && vector_load(&answer, "handshake-101"));
    revdial_engine_input(e, ask.bytes, ask.len, 1);
    while (revdial_engine_event(e, &ev))
        if (ev.type == REVDIAL_EV_AUTH) revdial_engine_auth(e, 0);
    CHECK_INT(revdial_engine_output(e, iov, 1), 1);
    CHECK_INT(iov[0].iov_len, answer.len);
    CHECK(iov[0].iov_len == answer.len && memcmp(iov[0].iov_base, answer.bytes, answer.len) == 0);
    revdial_engine_free(e);
    CHECK(document_shows(TEST_VECTORS "/README.md", answer.bytes));
}

TEST(a_verdict_is_answered_with_its_status_and_an_error_with_what_it_means)
{
    static const struct {
        int answer;
        const char *status;
        int code, is_stale;
    } rows[] = {{REVDIAL_VERDICT_ADMIT, "101", 0, 0},
                {REVDIAL_VERDICT_BAD_REQUEST, "400", REVDIAL_EUPGRADE, 0},
                {REVDIAL_VERDICT_UNAUTHORIZED, "401", REVDIAL_EAUTH, 0},
                {REVDIAL_VERDICT_STALE_NONCE, "401", REVDIAL_EAUTH, 1},
                {REVDIAL_VERDICT_FORBIDDEN, "403", REVDIAL_EDENIED, 0},
                {REVDIAL_VERDICT_CONFLICT, "409", REVDIAL_EDUPLICATE, 0},
                {REVDIAL_VERDICT_TOO_MANY, "429", REVDIAL_ELIMIT, 0},
                {REVDIAL_VERDICT_UNAVAILABLE, "503", REVDIAL_ELIMIT, 0},
                {REVDIAL_EAUTH, "401", REVDIAL_EAUTH, 0},
                {REVDIAL_EDENIED, "403", REVDIAL_EDENIED, 0},
                {REVDIAL_EDUPLICATE, "409", REVDIAL_EDUPLICATE, 0},
                {REVDIAL_EAGAIN, "503", REVDIAL_ELIMIT, 0},
                {REVDIAL_ENOMEM, "503", REVDIAL_ELIMIT, 0},
                {1, "503", REVDIAL_ELIMIT, 0},  // what nobody defines lets nobody in
                {200, "503", REVDIAL_ELIMIT, 0},
                {-401, "503", REVDIAL_ELIMIT, 0}};
    static vector ask;
    REQUIRE(vector_load(&ask, "handshake-request"));
    for (size_t i = 0; i < COUNT(rows); i++) {
        revdial_engine_config cfg = {.role = REVDIAL_ROLE_PROXY,
                                     .auth_schemes = REVDIAL_AUTH_BEARER | REVDIAL_AUTH_DIGEST,
                                     .nonce = "n"};
        revdial_engine *e = revdial_engine_new(&cfg, 1, NULL);
        revdial_event ev = {0};
        char said[RVD_HTTP_ANSWER_SIZE] = "";
        struct iovec iov[1] = {{said, 0}};
        REQUIRE(e != NULL);
        revdial_engine_input(e, ask.bytes, ask.len, 1);
        CHECK(revdial_engine_event(e, &ev) && ev.type == REVDIAL_EV_AUTH);
        CHECK_INT(revdial_engine_auth(e, rows[i].answer), 0);
        CHECK_INT(revdial_engine_auth(e, 0), REVDIAL_EINVAL);  // one verdict, and it stays
        CHECK_INT(revdial_engine_output(e, iov, 1), 1);
        memcpy(said, iov[0].iov_base, rvd_base_min(iov[0].iov_len, sizeof said - 1));
        if (strncmp(said + 9, rows[i].status, 3) != 0)
            test_fail(__FILE__, __LINE__, "answer %d: %.20s", rows[i].answer, said);
        CHECK_INT(strstr(said, "stale=true") != NULL, rows[i].is_stale);
        CHECK(revdial_engine_event(e, &ev));
        CHECK_INT(ev.code, rows[i].code);
        revdial_engine_free(e);
    }
}

TEST(a_proxy_says_that_it_was_spoken_to_in_TLS)
{
    revdial_engine_config cfg = {.role = REVDIAL_ROLE_PROXY};
    revdial_engine *e = revdial_engine_new(&cfg, 1, NULL);
    revdial_event ev;
    REQUIRE(e != NULL);
    revdial_engine_input(e, "\x16\x03\x01\x02\x00", 5, 1);
    CHECK_INT(revdial_engine_event(e, &ev), 1);
    CHECK_INT(ev.type, REVDIAL_EV_DEAD);
    CHECK(strstr(ev.text, "the peer speaks TLS") != NULL);
    CHECK_INT(revdial_engine_event(e, &ev), 0);
    revdial_engine_free(e);
}

TEST(P17_every_refusal_is_the_one_of_its_vector)
{
    static const int statuses[] = {400, 401, 403, 404, 405, 408, 409,
                                   414, 417, 426, 429, 431, 503, 505};
    for (size_t i = 0; i < COUNT(statuses); i++) {
        static vector v;
        rvd_http_answer answer = {.status = statuses[i], .terms.is_revdial = 1};
        char buf[RVD_HTTP_ANSWER_SIZE], name[32];
        const char *body;
        answered a;
        snprintf(name, sizeof name, "refusal-%d", statuses[i]);
        if (!CHECK(vector_load(&v, name))) continue;
        write_answer(buf, sizeof buf, &answer);
        CHECK_STR(buf, v.bytes);
        a = listen_every_way(name, v.bytes, v.len);
        CHECK_INT(a.status, statuses[i]);
        CHECK_INT(a.r.retry_after_ms, statuses[i] == 429 || statuses[i] == 503 ? 5000 : 0);
        CHECK_INT(a.r.is_stripped, statuses[i] == 426);
        body = strstr(v.bytes, "\r\n\r\n");
        REQUIRE(body != NULL);
        CHECK_INT(a.used, body + 4 - v.bytes);
        CHECK(strlen(body + 4) <= 64);
        CHECK_INT(atoi(strstr(v.bytes, "Content-Length: ") + 16), strlen(body + 4));
        CHECK(strstr(v.bytes, "close\r\n") != NULL);
    }
    CHECK_INT(COUNT(statuses), RVD_HTTP_REFUSAL_COUNT);
}

TEST(a_request_leaves_out_what_is_not_set_and_appends_the_applications_headers)
{
    static const revdial_kv headers[] = {{"X-Trace", "a b\tc"}, {"Cookie", ""}};
    static const revdial_engine_config cfg = {.name = "", .headers = headers, .header_count = 2};
    rvd_http_offer offer = {.cfg = &cfg, .host = "[::1]:80", .path = "/", .terms.window = 8192};
    char buf[8193];
    CHECK(write_request(buf, sizeof buf, &offer) > 0);
    CHECK_STR(buf, "GET / HTTP/1.1\r\nHost: [::1]:80\r\nConnection: Upgrade\r\nUpgrade: revdial\r\n"
                   "Revdial-Version: 1\r\nRevdial-Features: window=8192, streams=0\r\n"
                   "Revdial-Upgrade: revdial\r\nX-Trace: a b\tc\r\nCookie: \r\n\r\n");
}

TEST(P5_nothing_that_could_break_out_of_its_line_is_sent)
{
    static const char *const hosts[] = {"", "h\r\nX: y", "a b", "h:0", "user@h"};
    static const char *const paths[] = {"", "x", "/a b", "/a\r\n", "/\x80", "/\x7f"};
    static const char *const names[] = {"a\r\nX: y", "A", "-a", "a b", "a\tb"};
    static const char *const secrets[] = {"a\r\nX: y", "a b",       "\x80", "=",
                                          "a=b",       "sha256:00", " a"};
    char buf[8193], long_text[4098];
    revdial_engine_config cfg;
    rvd_http_offer o;
#define REFUSED_WITH(change) \
    cfg = good_config, o = good_offer, o.cfg = &cfg, (change), \
    CHECK(rvd_http_offer_problem(&o) != NULL), CHECK_INT(write_request(buf, sizeof buf, &o), 0)
#define REFUSED(field, value) REFUSED_WITH(o.field = (value))
    CHECK(rvd_http_offer_problem(&good_offer) == NULL);
    for (size_t i = 0; i < COUNT(hosts); i++) REFUSED(host, hosts[i]);
    for (size_t i = 0; i < COUNT(paths); i++) REFUSED(path, paths[i]);
    for (size_t i = 0; i < COUNT(names); i++) REFUSED_WITH(cfg.name = names[i]);
    for (size_t i = 0; i < COUNT(secrets); i++) REFUSED(secret, secrets[i]);
    memset(long_text, 'a', sizeof long_text);
    long_text[4097] = '\0';
    REFUSED(secret, long_text);
    long_text[0] = '/';
    REFUSED(path, long_text);
    REFUSED(host, NULL);
    REFUSED(path, NULL);
    REFUSED_WITH(cfg.instance = "a/b");
    REFUSED(terms.window, 8191);
    REFUSED(terms.window, 0x80000000u);
    REFUSED(terms.streams, 0x80000000u);
#undef REFUSED
#undef REFUSED_WITH
}

TEST(P5_an_applications_header_is_checked)
{
    static const revdial_kv bad[] = {{NULL, "x"},
                                     {"X", NULL},
                                     {"", "x"},
                                     {"X Y", "x"},
                                     {"X:", "x"},
                                     {"X\r\n", "x"},
                                     {"X", "a\r\nY: b"},
                                     {"X", "a\nb"},
                                     {"X", "a\177"},
                                     {"Host", "x"},
                                     {"connection", "x"},
                                     {"Upgrade", "x"},
                                     {"Content-Length", "0"},
                                     {"Transfer-Encoding", "x"},
                                     {"Expect", "x"},
                                     {"Authorization", "Basic x"},
                                     {"Revdial-Name", "x"},
                                     {"REVDIAL-Later", "x"}};
    static char long_value[8200];
    revdial_kv large = {"X", long_value};
    char buf[8193];
    revdial_engine_config cfg = good_config;
    rvd_http_offer o = good_offer;
    o.cfg = &cfg;
    cfg.header_count = 1;
    for (size_t i = 0; i < COUNT(bad); i++) {
        cfg.headers = &bad[i];
        CHECK(rvd_http_offer_problem(&o) != NULL);
        CHECK_INT(write_request(buf, sizeof buf, &o), 0);
    }
    memset(long_value, 'a', sizeof long_value - 1);  // legal, but no proxy would read that much
    cfg.headers = &large;
    CHECK(rvd_http_offer_problem(&o) == NULL);
    CHECK_INT(write_request(buf, sizeof buf, &o), 0);
}

// ---- Memory -------------------------------------------------------------------------------------

TEST(every_allocation_that_fails_is_survived)
{
    static char request[8192];
    memset(request, 'a', sizeof request);
    memcpy(request, ASK "X: ", sizeof(ASK "X: ") - 1);
    memcpy(request + 8188, "\r\n\r\n", 4);
    for (size_t n = 1; n <= 5; n++) {
        for (int is_request = 0; is_request < 2; is_request++) {
            test_heap memory = {.fail_at = n};
            rvd_heap heap = {test_heap_alloc, &memory, 0};
            rvd_http_head head;
            size_t used = 0;
            int want = n <= 4 ? RVD_HTTP_NOMEM : RVD_HTTP_DONE, got;
            rvd_http_head_init(&head, &heap, is_request);
            if (!is_request) memcpy(request, SWITCH "X: ", sizeof(SWITCH "X: ") - 1);
            if (is_request) memcpy(request, ASK "X: ", sizeof(ASK "X: ") - 1);
            got = rvd_http_head_feed(&head, (const uint8_t *)request, sizeof request, &used);
            CHECK_INT(got, want);
            CHECK_INT(used, n <= 4 ? (n == 1 ? 0 : 512u << (n - 1)) : 8192);
            CHECK_INT(rvd_http_head_feed(&head, (const uint8_t *)request, 1, &used), want);
            rvd_http_head_free(&head);
            CHECK_INT(memory.live_blocks, 0);
            CHECK_INT(memory.live_bytes, 0);
        }
    }
}

static int freed_dirty, freed_blocks;
static void *watch_alloc(void *ud, void *ptr, size_t old_size, size_t new_size)
{
    const uint8_t *bytes = ptr;
    if (ptr && new_size == 0) freed_blocks++;
    for (size_t i = 0; ptr && i < old_size; i++) freed_dirty |= bytes[i];
    return test_heap_alloc(ud, ptr, old_size, new_size);
}

TEST(a_head_is_wiped_before_its_memory_is_given_back)
{
    test_heap memory = {0};
    rvd_heap heap = {watch_alloc, &memory, 0};
    rvd_http_head head;
    rvd_http_response response;
    static const char interim[] = "HTTP/1.1 100 Continue\r\nX: secret\r\n\r\n";
    static char request[3000];
    size_t used;
    memset(request, 's', sizeof request);
    memcpy(request, ASK "X: ", sizeof(ASK "X: ") - 1);
    freed_dirty = freed_blocks = 0;
    rvd_http_head_init(&head, &heap, 1);
    CHECK_INT(rvd_http_head_feed(&head, (const uint8_t *)request, sizeof request, &used), 0);
    rvd_http_head_free(&head);
    CHECK_INT(freed_blocks, 3);  // 1024, 2048, 4096
    CHECK_INT(freed_dirty, 0);
    rvd_http_head_init(&head, &heap, 0);  // what an interim response left behind goes too
    CHECK_INT(rvd_http_head_feed(&head, (const uint8_t *)interim, sizeof interim - 1, &used), 1);
    CHECK_INT(rvd_http_response_read(&head, REVDIAL_CARRIER_RAW, NULL, &response), RVD_HTTP_MORE);
    rvd_http_head_free(&head);
    CHECK_INT(freed_blocks, 4);
    CHECK_INT(freed_dirty, 0);
    CHECK_INT(memory.live_blocks, 0);
}

TEST(a_head_takes_no_more_memory_than_came_in)
{
    test_heap memory = {0};
    rvd_heap heap = {test_heap_alloc, &memory, 0};
    rvd_http_head head;
    size_t used;
    rvd_http_head_init(&head, &heap, 1);
    CHECK_INT(memory.live_bytes, 0);
    rvd_http_head_feed(&head, (const uint8_t *)"GET", 3, &used);
    CHECK_INT(memory.live_bytes, 1024);
    rvd_http_head_free(&head);
    CHECK_INT(memory.live_bytes, 0);
}

// ---- Credentials --------------------------------------------------------------------------------

#define HASH_OF_ABC "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

static int verify(const char *secret, const char *name, const revdial_credential *rows,
                  size_t count)
{
    revdial_auth_req req = {.secret = secret, .name = name, .instance = "", .peer = ""};
    size_t row = 99;
    int verdict = revdial_auth_verify(&req, rows, count, &row);
    CHECK_INT(revdial_auth_verify(&req, rows, count, NULL), verdict);
    if (verdict == REVDIAL_EAUTH) CHECK_INT(row, 99);
    if (verdict == REVDIAL_EDENIED) CHECK(row < count && rows[row].secret);  // for the log
    return verdict < 0 ? verdict : (int)row;
}

TEST(A53_A56_A62_only_the_exact_token_is_accepted)
{
    static const revdial_credential rows[] = {{"s3cret", NULL, "cam-*", 0},
                                              {"other", NULL, "door", 0}};
    CHECK_INT(verify("s3cret", "cam-1", rows, 2), 0);
    CHECK_INT(verify("other", "door", rows, 2), 1);
    CHECK_INT(verify("s3cre", "cam-1", rows, 2), REVDIAL_EAUTH);
    CHECK_INT(verify("s3crett", "cam-1", rows, 2), REVDIAL_EAUTH);
    CHECK_INT(verify("S3cret", "cam-1", rows, 2), REVDIAL_EAUTH);
    CHECK_INT(verify("", "cam-1", rows, 2), REVDIAL_EAUTH);
    CHECK_INT(verify(NULL, "cam-1", rows, 2), REVDIAL_EAUTH);
    CHECK_INT(verify("wrong", "nobody", rows, 2), REVDIAL_EAUTH);  // A62
    CHECK_INT(verify("s3cret", "cam-1", NULL, 0), REVDIAL_EAUTH);
}

TEST(A63_a_good_token_does_not_register_a_name_it_does_not_list)
{
    static const revdial_credential rows[] = {{"a", NULL, "cam-*, door", 0},
                                              {"b", NULL, NULL, 0},
                                              {"c", NULL, "", 0},
                                              {"d", NULL, "*", 0},
                                              {"a", NULL, "gate", 0}};
    CHECK_INT(verify("a", "cam-77", rows, 5), 0);
    CHECK_INT(verify("a", "door", rows, 5), 0);
    CHECK_INT(verify("a", "gate", rows, 5), 4);  // a later row with the same token
    CHECK_INT(verify("a", "doors", rows, 5), REVDIAL_EDENIED);
    CHECK_INT(verify("a", "xcam-1", rows, 5), REVDIAL_EDENIED);
    CHECK_INT(verify("b", "cam-1", rows, 5), REVDIAL_EDENIED);
    CHECK_INT(verify("c", "cam-1", rows, 5), REVDIAL_EDENIED);
    CHECK_INT(verify("d", "anything", rows, 5), 3);
    CHECK_INT(verify("d", "../etc", rows, 5), REVDIAL_EDENIED);  // no name at all
}

TEST(a_row_may_hold_the_hash_of_its_token)
{
    static const revdial_credential rows[] = {
        {"sha256:" HASH_OF_ABC, NULL, "a", 0},
        {"sha256:" HASH_OF_ABC "0", NULL, "long", 0},
        {"sha256:ba7816bf", NULL, "short", 0},
        {"sha256:BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD", NULL, "upper",
         0},
        {"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", NULL, "empty",
         0},
        {"", NULL, "none", 0},
        {NULL, NULL, "null", 0}};
    CHECK_INT(verify("abc", "a", rows, COUNT(rows)), 0);
    CHECK_INT(verify("abc", "upper", rows, COUNT(rows)), 3);
    CHECK_INT(verify("abc", "long", rows, COUNT(rows)), REVDIAL_EDENIED);
    CHECK_INT(verify("abc", "short", rows, COUNT(rows)), REVDIAL_EDENIED);
    CHECK_INT(verify(HASH_OF_ABC, "a", rows, COUNT(rows)), REVDIAL_EAUTH);
    CHECK_INT(verify("sha256:" HASH_OF_ABC, "a", rows, COUNT(rows)), REVDIAL_EAUTH);
    CHECK_INT(verify("", "empty", rows, COUNT(rows)), REVDIAL_EAUTH);
    CHECK_INT(verify("", "none", rows, COUNT(rows)), REVDIAL_EAUTH);
    CHECK_INT(verify("", "null", rows, COUNT(rows)), REVDIAL_EAUTH);
}

TEST(a_backend_without_a_name_gets_the_only_one_its_credential_lists)
{
    static const struct {
        const char *names, *want;
    } cases[] = {{"cam-1", "cam-1"},
                 {" cam-1 ,", "cam-1"},
                 {",\tcam-1\t", "cam-1"},
                 {"cam-*", ""},
                 {"cam-?", ""},
                 {"a,b", ""},
                 {"a,a", ""},
                 {"", ""},
                 {NULL, ""},
                 {"Cam", ""},
                 {",", ""},
                 {"*", ""}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        revdial_credential row = {"abc", NULL, cases[i].names, 0};
        const char *name = "";
        size_t len = rvd_auth_sole_name(cases[i].names, &name);
        CHECK_INT(len, strlen(cases[i].want));
        CHECK(len == 0 || memcmp(name, cases[i].want, len) == 0);
        CHECK_INT(verify("abc", "", &row, 1), cases[i].want[0] ? 0 : REVDIAL_EDENIED);
        CHECK_INT(verify("abd", "", &row, 1), REVDIAL_EAUTH);
        CHECK_INT(verify("abc", NULL, &row, 1), cases[i].want[0] ? 0 : REVDIAL_EDENIED);
    }
}

// ---- The helpers below it -----------------------------------------------------------------------

static void check_digest(const char *what, const uint8_t digest[32], const char *want)
{
    char hex[65];
    for (size_t i = 0; i < 32; i++) snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    if (strcmp(hex, want) != 0) test_fail(__FILE__, __LINE__, "SHA-256 of %s is %s", what, hex);
}

TEST(sha256_gives_the_digests_of_fips_180_4)
{
    static const char *const cases[][2] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", HASH_OF_ABC},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
        {"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrl"
         "mnopqrsmnopqrstnopqrstu",
         "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"}};
    static char many[1000000];
    uint8_t digest[32];
    rvd_base_sha256 s;
    for (size_t i = 0; i < COUNT(cases); i++) {
        rvd_base_sha256_init(&s);
        rvd_base_sha256_update(&s, cases[i][0], strlen(cases[i][0]));
        rvd_base_sha256_final(&s, digest);
        check_digest(cases[i][0], digest, cases[i][1]);
    }
    memset(many, 'a', sizeof many);
    rvd_base_sha256_init(&s);
    rvd_base_sha256_update(&s, many, sizeof many);
    rvd_base_sha256_final(&s, digest);
    check_digest("a million a", digest,
                 "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(sha256_does_not_mind_how_its_input_is_cut)
{
    uint8_t data[300], whole[32], cut[32];
    test_rng rng = test_rng_seeded(256);
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)test_random(&rng);
    for (size_t len = 0; len <= sizeof data; len++) {
        rvd_base_sha256 s;
        rvd_base_sha256_init(&s);
        rvd_base_sha256_update(&s, data, len);
        rvd_base_sha256_final(&s, whole);
        rvd_base_sha256_init(&s);
        for (size_t at = 0; at < len;) {
            size_t n = 1 + (size_t)test_below(&rng, 70);
            if (n > len - at) n = len - at;
            rvd_base_sha256_update(&s, data + at, n);
            at += n;
        }
        rvd_base_sha256_final(&s, cut);
        CHECK(rvd_base_equal(whole, cut, 32));
        for (size_t i = 0; i < sizeof s; i++) CHECK_INT(((const uint8_t *)&s)[i], 0);
    }
}

TEST(equal_looks_at_every_byte_and_wipe_leaves_none)
{
    uint8_t a[64], b[64];
    for (size_t i = 0; i < sizeof a; i++) a[i] = b[i] = (uint8_t)(i + 1);
    CHECK_INT(rvd_base_equal(a, b, sizeof a), 1);
    CHECK_INT(rvd_base_equal(a, b, 0), 1);
    for (size_t i = 0; i < 64 * 8; i++) {
        b[i / 8] ^= (uint8_t)(1u << i % 8);
        CHECK_INT(rvd_base_equal(a, b, sizeof a), 0);
        b[i / 8] ^= (uint8_t)(1u << i % 8);
    }
    rvd_base_wipe(a + 1, 62);
    CHECK_INT(a[0], 1);
    CHECK_INT(a[63], 64);
    for (size_t i = 1; i < 63; i++) CHECK_INT(a[i], 0);
}

TEST(hex_and_decimal_take_all_or_nothing)
{
    static const struct {
        const char *text;
        uint64_t max;
        long long want;  // -1 = refused
    } cases[] = {{"0", 9, 0},          {"9", 9, 9},
                 {"10", 9, -1},        {"10", 10, 10},
                 {"11", 10, -1},       {"", 9, -1},
                 {"00", 9, -1},        {"01", 9, -1},
                 {"-1", 9, -1},        {"+1", 9, -1},
                 {" 1", 9, -1},        {"1 ", 9, -1},
                 {"1x", 99, -1},       {"0", 0, 0},
                 {"1", 0, -1},         {"65535", 65535, 65535},
                 {"65536", 65535, -1}, {"99999999999999999999", 9, -1}};
    uint8_t bytes[2] = {0};
    uint64_t n = 0;
    for (size_t i = 0; i < COUNT(cases); i++) {
        int ok = rvd_base_decimal(cases[i].text, strlen(cases[i].text), cases[i].max, &n);
        CHECK_INT(ok ? (long long)n : -1, cases[i].want);
    }
    CHECK(rvd_base_decimal(BYTES("18446744073709551615"), UINT64_MAX, &n) && n == UINT64_MAX);
    CHECK(!rvd_base_decimal(BYTES("18446744073709551616"), UINT64_MAX, &n));
    CHECK(rvd_base_hex(bytes, 2, "aF09") && bytes[0] == 0xaf && bytes[1] == 0x09);
    CHECK(!rvd_base_hex(bytes, 2, "aF0"));
    CHECK(!rvd_base_hex(bytes, 2, "aF0g"));
    CHECK(!rvd_base_hex(bytes, 2, "aF0 "));
}

static int glob(const char *pattern, const char *text)
{
    return rvd_base_glob(pattern, strlen(pattern), text, strlen(text));
}

TEST(globs_match_all_of_a_name)
{
    static const struct {
        const char *pattern, *text;
        int want;
    } cases[] = {{"", "", 1},
                 {"", "a", 0},
                 {"a", "", 0},
                 {"*", "", 1},
                 {"*", "abc", 1},
                 {"**", "abc", 1},
                 {"?", "", 0},
                 {"?", "a", 1},
                 {"?", "ab", 0},
                 {"a*", "a", 1},
                 {"a*", "ba", 0},
                 {"*a", "ba", 1},
                 {"*a", "ab", 0},
                 {"a*b*c", "aXbYc", 1},
                 {"a*b*c", "aXbY", 0},
                 {"a?c", "abc", 1},
                 {"*ab", "aab", 1},
                 {"*aab", "aaab", 1},
                 {"a*?b", "ab", 0},
                 {"a*?b", "axb", 1},
                 {"cam-[1]", "cam-1", 0},
                 {"cam-1", "cam-10", 0},
                 {"*.*", "a.b", 1},
                 {"*?", "", 0},
                 {"a", "A", 0},
                 {"*x*y*", "ayxb", 0},
                 {"*x*y*", "axyb", 1}};
    char text[65], pattern[65];
    for (size_t i = 0; i < COUNT(cases); i++)
        if (glob(cases[i].pattern, cases[i].text) != cases[i].want)
            test_fail(__FILE__, __LINE__, "\"%s\" on \"%s\"", cases[i].pattern, cases[i].text);
    memset(text, 'a', 64);
    text[64] = pattern[64] = '\0';
    for (size_t i = 0; i < 64; i += 2) memcpy(pattern + i, "*a", 2);
    CHECK_INT(glob(pattern, text), 1);
    pattern[63] = 'b';  // the worst case ends, and soon
    CHECK_INT(glob(pattern, text), 0);
}

TEST(names_follow_their_grammar_at_every_length)
{
    char name[80];
    memset(name, 'a', sizeof name);
    for (size_t len = 0; len < sizeof name; len++)
        CHECK_INT(rvd_base_is_name(name, len), len >= 1 && len <= 64);
    for (int c = 0; c < 256; c++) {
        int is_plain = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
        int is_inner = is_plain || c == '.' || c == '_' || c == '-';
        name[0] = (char)c;
        CHECK_INT(rvd_base_is_name(name, 1), is_plain);
        CHECK_INT(rvd_base_is_name(name, 3), is_plain);
        CHECK_INT(rvd_base_is_label(name, 3, 1), is_plain || (c >= 'A' && c <= 'Z'));
        name[0] = 'a';
        name[1] = (char)c;
        CHECK_INT(rvd_base_is_name(name, 3), is_inner);
        CHECK_INT(rvd_base_is_name(name, 2), is_plain);
        name[1] = 'a';
    }
}

TEST(text_is_cut_off_and_says_so)
{
    char buf[12];
    rvd_base_text t = {buf, sizeof buf, 0, 0};
    rvd_base_text_add(&t, "n=");
    RVD_BASE_ADD(&t, RVD_BASE_NUMBER(0));
    rvd_base_text_add(&t, ",");
    RVD_BASE_ADD(&t, RVD_BASE_NUMBER(1234567));
    CHECK_STR(buf, "n=0,1234567");
    CHECK_INT(t.overflow, 0);
    rvd_base_text_add(&t, "");
    CHECK_INT(t.overflow, 0);
    rvd_base_text_add(&t, "8");
    CHECK_STR(buf, "n=0,1234567");
    CHECK_INT(t.overflow, 1);
    t.len = 0;
    RVD_BASE_ADD(&t, RVD_BASE_NUMBER(UINT64_MAX));
    CHECK_STR(buf, "18446744073");
    char wide[24];
    rvd_base_text w = {wide, sizeof wide, 0, 0};
    rvd_base_text_add_hex16(&w, 0x00c0ffee12345678u);
    CHECK_STR(wide, "00c0ffee12345678");
    w.len = 0;
    RVD_BASE_ADD(&w, RVD_BASE_NUMBER(UINT64_MAX));
    CHECK_STR(wide, "18446744073709551615");
}

// ---- Ways to authenticate -----------------------------------------------------------------------

#define DIGEST_OF(more) \
    "Digest username=\"alice\", realm=\"revdial\", nonce=\"n\", uri=\"/revdial\", qop=auth, " \
    "nc=00000001, cnonce=\"c\", response=\"" RESPONSE "\", algorithm=SHA-256" more
#define RESPONSE "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

TEST(A57_basic_is_decoded_strictly_or_proves_nothing)
{
    static const char frame[] = ASK "Authorization: @\r\n" END;
    static const char start[] = ASK "Authorization: Basic ";
    char long_pair[4400];
    size_t len = sizeof start - 1;
    rvd_http_head head;
    rvd_http_request request;
    rvd_heap heap = {NULL, NULL, 0};
    size_t used;
    static const char good[] = ASK "Authorization: bAsIc  dXNlcjpwYTpzcw==\r\n" END;
    check_values("A57", ACCEPTED, frame,
                 VALUES("Basic dXNlcjpwYTpzcw==", "Basic Og==", "Basic dTo=", "Basic w6k6w6k="));
    check_values("A57", 401, frame,
                 VALUES("Basic", "Basic ", "Basic dXNlcjpwYTpzcw", "Basic dXNlcjpwYTpzcw=",
                        "Basic dXNlcjpwYTpzcw===", "Basic dXNlcjpwYTpzcx==", "Basic dXNl cjpw",
                        "Basic dXNlcg==", "Basic dX*lcjpw", "Basic dQA6cA==", "Basic dTpwAA==",
                        "Basic dTpwCg==", "Basic dTpwfw==", "Basic ====", "Basic =",
                        "Basic dXNl-zpw", "Basic dXNlcjpw, Basic dXNlcjpw"));
    memcpy(long_pair, start, len);
    memset(long_pair + len, 'a', 4096);  // no ':' in 3 KiB
    memcpy(long_pair + len + 4096, "\r\n\r\n", 5);
    CHECK_INT(ask((const uint8_t *)long_pair, len + 4100, 0, 4100).status, 401);
    memcpy(long_pair + len, "YTpB", 4);
    CHECK_INT(ask((const uint8_t *)long_pair, len + 4100, 0, 4100).status, ACCEPTED);
    memcpy(long_pair + len + 4096, "aaaa\r\n\r\n", 9);
    CHECK_INT(ask((const uint8_t *)long_pair, len + 4104, 0, 4104).status, 401);
    rvd_http_head_init(&head, &heap, 1);
    CHECK_INT(rvd_http_head_feed(&head, (const uint8_t *)good, sizeof good - 1, &used), 1);
    CHECK_INT(rvd_http_request_read(&head, PATH, ORIGINS, &request), 0);
    CHECK_INT(request.auth.scheme, REVDIAL_AUTH_BASIC);
    CHECK_STR(request.auth.user, "user");
    CHECK_STR(request.auth.secret, "pa:ss");
    rvd_http_head_free(&head);
}

TEST(A58_to_A61_digest_has_all_of_its_parameters_once)
{
    static const char *const names[] = {"username", "realm", "nonce",  "uri",
                                        "qop",      "nc",    "cnonce", "response"};
    static const char frame[] = ASK "Authorization: @\r\n" END;
    static char many[8000], request[8192];
    ask_case c = {"A58", 400, request, 0};
    size_t len;
    check_values("A58", ACCEPTED, frame,
                 VALUES(DIGEST_OF(""), DIGEST_OF(", opaque=\"o\", later=\"x\""), DIGEST_OF(",,  ,"),
                        DIGEST_OF(", userhash=false")));
    for (size_t i = 0; i < COUNT(names); i++) {  // without one of them, and with one twice
        static const char whole[] = DIGEST_OF("");
        char what[20];
        const char *at, *end;
        snprintf(what, sizeof what, "%s=", names[i]);
        at = strstr(whole, what);
        end = strchr(at, ',');
        snprintf(request, sizeof request, ASK "Authorization: %.*s%s\r\n\r\n", (int)(at - whole),
                 whole, end + 1);
        c.len = strlen(request);
        check_case(&c);
        snprintf(request, sizeof request, ASK "Authorization: %s, %.*s\r\n\r\n", whole,
                 (int)(end - at), at);
        c.len = strlen(request);
        check_case(&c);
    }
    check_values("A59 A60", 401, frame,
                 VALUES(DIGEST_OF("-sess"), DIGEST_OF("x"), DIGEST_OF(", userhash=true")));
    check_values("A61", 400, frame,
                 VALUES("Digest", "Digest ", "Digest x", "Digest x=", "Digest =x", "Digest x=\"",
                        DIGEST_OF(", opaque=\"x"), DIGEST_OF(", opaque=\"x\\\"y\""),
                        DIGEST_OF(", opaque=\"x\" y=z"), DIGEST_OF(", opaque=x y"),
                        DIGEST_OF(", x=\"a\\b\""), DIGEST_OF(", algorithm=SHA-256"),
                        DIGEST_OF(", opaque=a, OPAQUE=b"), DIGEST_OF(" opaque=a"), DIGEST_OF(", x"),
                        DIGEST_OF(", x=y;")));
    len = (size_t)snprintf(many, sizeof many, ASK "Authorization: " DIGEST_OF(""));
    for (int i = 0; i < 1000 && len < 7900; i++)
        len += (size_t)snprintf(many + len, sizeof many - len, ", x=y");
    memcpy(many + len, "\r\n\r\n", 4);
    CHECK_INT(ask((const uint8_t *)many, len + 4, 0, len + 4).status, 400);
}

TEST(A61_values_of_digest_are_bounded)
{
    static const struct {
        const char *name;
        int max;
    } rows[] = {{"username", 127}, {"realm", 64}, {"nonce", 256}, {"uri", 1024}, {"cnonce", 256}};
    for (size_t i = 0; i < COUNT(rows); i++)
        for (int more = 0; more < 2; more++) {
            static const char whole[] = DIGEST_OF("");
            static char request[8192];
            char what[20], value[1100];
            const char *at, *end;
            int len;
            memset(value, 'v', sizeof value);
            value[rows[i].max + more] = '\0';
            snprintf(what, sizeof what, "%s=\"", rows[i].name);
            at = strstr(whole, what) + strlen(what);
            end = strchr(at, '"');
            len = snprintf(request, sizeof request, ASK "Authorization: %.*s%s%s\r\n\r\n",
                           (int)(at - whole), whole, value, end);
            CHECK_INT(ask((const uint8_t *)request, (size_t)len, 0, 4096).status,
                      more ? 400 : ACCEPTED);
        }
}

TEST(the_example_of_RFC_7616_section_3_9_1_comes_out)
{
    static const revdial_digest d = {"http-auth@example.org",
                                     "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",
                                     "/dir/index.html",
                                     "00000001",
                                     "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
                                     NULL};
    char ha1[RVD_AUTH_HEX_SIZE], response[RVD_AUTH_HEX_SIZE];
    rvd_auth_ha1("Mufasa", d.realm, "Circle of Life", ha1);
    CHECK_STR(ha1, "7987c64c30e25f1b74be53f966b49b90f2808aa92faf9a00262392d7b4794232");
    rvd_auth_respond(&d, ha1, "GET", response);
    CHECK_STR(response, "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1");
}

TEST(hmac_gives_the_codes_of_RFC_4231)
{
    uint8_t key[32] = {0}, mac[32];
    memset(key, 0x0b, 20);  // the rest is what shorter keys are filled up with
    rvd_base_hmac(key, "Hi There", 8, mac);
    check_digest("Hi There", mac,
                 "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    memset(key, 0, sizeof key);
    memcpy(key, "Jefe", 4);
    rvd_base_hmac(key, BYTES("what do ya want for nothing?"), mac);
    check_digest("Jefe", mac, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
}

TEST(base64_is_that_of_RFC_4648_and_nothing_else_is_read)
{
    static const char *const pairs[][2] = {{"", ""},
                                           {"f", "Zg=="},
                                           {"fo", "Zm8="},
                                           {"foo", "Zm9v"},
                                           {"foob", "Zm9vYg=="},
                                           {"fooba", "Zm9vYmE="},
                                           {"foobar", "Zm9vYmFy"}};
    static const char *const bad[] = {"Z",    "Zg",       "Zg=",   "Zh==", "Zm9=", "Z===", "====",
                                      "=Zg=", "Zg==Zg==", "Zm8\n", "Zm9-", "Zm9 ", "Zg=a", "Zm9v="};
    uint8_t out[64], all[256];
    char text[400];
    for (size_t i = 0; i < COUNT(pairs); i++) {
        rvd_base_text t = {text, sizeof text, 0, 0};
        text[0] = '\0';
        rvd_base_text_add_base64(&t, pairs[i][0], strlen(pairs[i][0]));
        CHECK_STR(text, pairs[i][1]);
        ptrdiff_t n = rvd_base_base64_read((uint8_t *)text, text, strlen(text));  // in place
        CHECK_INT(n, strlen(pairs[i][0]));
        if (n >= 0) CHECK(memcmp(text, pairs[i][0], (size_t)n) == 0);
    }
    for (size_t i = 0; i < COUNT(bad); i++)
        CHECK_INT(rvd_base_base64_read(out, bad[i], strlen(bad[i])), -1);
    for (size_t i = 0; i < sizeof all; i++) all[i] = (uint8_t)(i * 7);
    rvd_base_text t = {text, sizeof text, 0, 0};
    rvd_base_text_add_base64(&t, all, sizeof all);
    CHECK_INT(rvd_base_base64_read((uint8_t *)text, text, t.len), sizeof all);
    CHECK(memcmp(text, all, sizeof all) == 0);
}

TEST(A68_B5_a_certificate_registers_what_its_row_says_and_nothing_else)
{
    static const revdial_identity peer = {
        .verified = 1,
        .subject = "CN=cam-1, O=Cams",
        .san = "DNS:cam-1.cams.example,URI:spiffe://cams/cam-1,email:a@b"};
    static const revdial_identity unverified = {.san = "DNS:cam-1.cams.example"};
    enum { MTLS = REVDIAL_AUTH_MTLS, OK = REVDIAL_OK };
    static const struct {
        const char *user, *names, *name;
        int want, is_known;
    } cases[] = {{"DNS:cam-1.cams.example", "cam-1", "cam-1", OK, 0},
                 {"DNS:cam-1.cams.example", "cam-*", "cam-2", OK, 0},
                 {"DNS:*.cams.example", "*", "cam-1", OK, 0},
                 {"DNS:cam-*.cams.example", "door, dog-*, cam-*", "cam-1", OK, 0},
                 {"DNS:cam-*.cams.example", "c*", "c1", OK, 0},
                 {"DNS:*.cams.example", "c**", "cam-1", OK, 0},
                 {"DNS:*.cams.example", "door", "door", OK, 0},
                 {"URI:spiffe://cams/*", "*", "cam-1", OK, 0},
                 {"*", "URI*", "cam-1", REVDIAL_EDENIED, 1},
                 {"DNS:*.cams.example", "*", "cam-2", REVDIAL_EDENIED, 1},
                 {"DNS:*.cams.example", "*", "cam-11", REVDIAL_EDENIED, 1},
                 {"DNS:*.cams.example", "cam-*", "cam-1", REVDIAL_EDENIED, 1},
                 {"DNS:cam-*.cams.example", "*", "cam-1", REVDIAL_EDENIED, 1},
                 {"DNS:cam-*.cams.example", "cam-*", "cam-", REVDIAL_EDENIED, 1},
                 {"DNS:cam-?.cams.example", "cam-*", "cam-1", REVDIAL_EDENIED, 1},
                 {"DNS:cam-*.cams.example", "cam-?", "cam-1", REVDIAL_EDENIED, 1},
                 {"*:cam-*.cams.example", "cam-*", "cam-1", REVDIAL_EDENIED, 1},
                 {"CN=cam-1, O=Cams", "cam-1", "cam-1", OK, 0},
                 {"CN=cam-?, *", "cam-1", "", OK, 0},
                 {"DNS:cam-1.cams.example", "cam-2", "cam-1", REVDIAL_EDENIED, 1},
                 {"DNS:cam-1.cams.example", NULL, "cam-1", REVDIAL_EDENIED, 1},
                 {"DNS:cam-2.cams.example", "*", "cam-1", REVDIAL_EDENIED, 0},
                 {"cam-1.cams.example", "*", "cam-1", REVDIAL_EDENIED, 0},
                 {"DNS:cam-1.cams.example,URI:*", "*", "cam-1", REVDIAL_EDENIED, 0},
                 {"DNS:cam-1.cams.exampl", "*", "cam-1", REVDIAL_EDENIED, 0},
                 {"DNS:CAM-1.cams.example", "*", "cam-1", REVDIAL_EDENIED, 0},
                 {"CN=cam-1", "*", "cam-1", REVDIAL_EDENIED, 0},
                 {"", "*", "cam-1", REVDIAL_EDENIED, 0},
                 {NULL, "*", "cam-1", REVDIAL_EDENIED, 0}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        revdial_credential rows[2] = {{NULL, cases[i].user, cases[i].names, MTLS},
                                      {"t", "bob", "*", REVDIAL_AUTH_BEARER}};
        revdial_auth_req req = {.secret = "", .name = cases[i].name, .tls = &peer};
        int others = cases[i].want == OK || cases[i].is_known ? cases[i].want : REVDIAL_EAUTH;
        size_t row = 9;
        CHECK_INT(revdial_auth_verify(&req, rows, 1, &row), cases[i].want);
        CHECK_INT(row, cases[i].want == OK ? 0 : 9);
        CHECK_INT(revdial_auth_verify(&req, rows, 2, NULL), others);  // it may still send a token
        req.tls = &unverified;
        CHECK_INT(revdial_auth_verify(&req, rows, 1, NULL), REVDIAL_EAUTH);
        req.tls = NULL;
        CHECK_INT(revdial_auth_verify(&req, rows, 1, NULL), REVDIAL_EAUTH);
        req.tls = &peer;
        req.scheme = REVDIAL_AUTH_BEARER;  // what was sent counts, the certificate does not help
        req.secret = "x";
        CHECK_INT(revdial_auth_verify(&req, rows, 2, NULL), REVDIAL_EAUTH);
        req.secret = "t";
        req.name = "any";
        CHECK_INT(revdial_auth_verify(&req, rows, 2, &row), OK);
        CHECK_INT(row, 1);
    }
}

// A proxy's engine and a backend's, and what either said last.
typedef struct shaking {
    test_heap memory;
    revdial_engine_config proxy, backend;
    revdial_credential row;
    char said[2][4096];  // by the proxy, by the backend
    char challenge[1024];
    int code, status, is_up[2];
} shaking;

static size_t shake_move(revdial_engine *from, revdial_engine *to, char *said)
{
    struct iovec iov[4];
    size_t total = 0;
    int n;
    while ((n = revdial_engine_output(from, iov, 4)) > 0) {
        size_t len = iov[0].iov_len;
        if (total + len < 4096) memcpy(said + total, iov[0].iov_base, len);
        revdial_engine_input(to, iov[0].iov_base, len, 2);
        revdial_engine_sent(from, len);
        total += len;
    }
    if (total) said[total < 4095 ? total : 4095] = '\0';
    return total;
}

static void shake_events(shaking *s, revdial_engine *e, int who)
{
    revdial_event ev;
    while (revdial_engine_event(e, &ev)) {
        if (ev.type == REVDIAL_EV_UP) s->is_up[who] = 1;
        if (ev.type == REVDIAL_EV_AUTH)
            revdial_engine_auth(e, revdial_auth_verify(ev.auth, &s->row, 1, NULL));
        if (ev.type == REVDIAL_EV_DEAD && who == 1) {
            s->code = ev.code;
            s->status = ev.status;
            if (ev.challenge) copy_text(s->challenge, sizeof s->challenge, ev.challenge);
        }
    }
}

// One connection.
static void shake(shaking *s)
{
    revdial_engine *p, *b;
    s->proxy.role = REVDIAL_ROLE_PROXY;
    s->backend.role = REVDIAL_ROLE_BACKEND;
    s->proxy.alloc = s->backend.alloc = test_heap_alloc;
    s->proxy.alloc_ud = s->backend.alloc_ud = &s->memory;
    s->backend.challenge = s->challenge[0] ? s->challenge : NULL;
    s->code = s->status = s->is_up[0] = s->is_up[1] = 0;
    p = revdial_engine_new(&s->proxy, 1, NULL);
    b = revdial_engine_new(&s->backend, 1, NULL);
    s->challenge[0] = '\0';
    for (int i = 0; p && b && i < 4; i++) {
        shake_move(b, p, s->said[1]);
        shake_events(s, p, 0);
        if (s->is_up[1] || s->is_up[0]) break;
        shake_move(p, b, s->said[0]);
        shake_events(s, b, 1);
    }
    if (p && b && s->is_up[0]) {
        shake_move(p, b, s->said[0]);
        shake_events(s, b, 1);
    }
    revdial_engine_free(p);
    revdial_engine_free(b);
}

static void shake_init(shaking *s)
{
    memset(s, 0, sizeof *s);
    s->row = (revdial_credential){"s3cret", "alice", "cam-1", REVDIAL_AUTH_DIGEST};
    s->proxy.auth_schemes = REVDIAL_AUTH_DIGEST;
    s->proxy.nonce = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    s->proxy.session_id = 0x00c0ffee12345678u;
    s->backend.host = "proxy.example:7000";
    s->backend.name = "cam-1";
    s->backend.instance = "i-7F3a";
    s->backend.user = "alice";
    s->backend.secret = "s3cret";
    s->backend.auth_schemes = REVDIAL_AUTH_DIGEST;
    s->backend.seed = 7;
}

TEST(a_handshake_with_digest_is_the_one_of_the_vectors)
{
    static shaking s;
    static vector v;
    static const char *const names[2][2] = {{"handshake-digest-401", "handshake-digest-first"},
                                            {"handshake-digest-101", "handshake-digest-answer"}};
    shake_init(&s);
    for (int i = 0; i < 2; i++) {
        shake(&s);
        for (int who = 0; who < 2; who++)
            if (CHECK(vector_load(&v, names[i][who]))) CHECK_STR(s.said[who], v.bytes);
        CHECK_INT(s.is_up[1], i);
        CHECK_INT(s.status, i ? 0 : 401);
    }
    CHECK(!strstr(s.said[1], "s3cret"));
    CHECK_INT(s.memory.live_blocks, 0);
}

TEST(without_memory_nobody_is_let_in_who_proved_nothing_and_nothing_leaks)
{
    static shaking s;
    for (int wrong = 0; wrong < 2; wrong++)
        for (int forever = 0; forever < 2; forever++)
            for (size_t n = 1; n < 40; n++) {
                shake_init(&s);
                if (wrong) s.backend.secret = "s3cret2";
                s.memory.fail_at = n;
                s.memory.fail_forever = forever;
                shake(&s);
                CHECK_INT(s.is_up[0] || s.is_up[1], 0);
                if (s.challenge[0]) shake(&s);
                if (wrong) CHECK_INT(s.is_up[0] || s.is_up[1], 0);
                CHECK_INT(s.memory.live_blocks, 0);
                CHECK_INT(s.memory.live_bytes, 0);
            }
}

TEST(an_engine_refuses_a_realm_a_nonce_or_a_challenge_that_it_could_not_send)
{
    static const char *const bad[] = {"a\"b", "a\\b", "a\r\nb", "\x80", ""};
    static const char *const challenges[] = {
        "", "Digest", "Basic",
        "Digest realm=\"r\", nonce=\"n\r\nX: y\", algorithm=SHA-256, qop=auth",
        "Digest realm=\"r\", nonce=\"n\", algorithm=MD5, qop=auth"};
    static shaking s;
    revdial_err err;
    for (size_t i = 0; i < COUNT(bad); i++) {
        shake_init(&s);
        s.proxy.role = REVDIAL_ROLE_PROXY;
        s.proxy.realm = bad[i];
        CHECK(revdial_engine_new(&s.proxy, 1, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_EINVAL);
        s.proxy.realm = NULL;
        s.proxy.nonce = i ? bad[i] : NULL;
        CHECK(revdial_engine_new(&s.proxy, 1, &err) == NULL);
        shake_init(&s);
        s.backend.role = REVDIAL_ROLE_BACKEND;
        s.backend.challenge = challenges[i];
        CHECK(revdial_engine_new(&s.backend, 1, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_EINVAL);
        s.backend.challenge = NULL;
        s.backend.user = bad[i];
        CHECK(revdial_engine_new(&s.backend, 1, &err) == NULL);
    }
    s.proxy.auth_schemes = 64;
    CHECK(revdial_engine_new(&s.proxy, 1, &err) == NULL);
}

// ------------------------------------------------------------------------------------------------
// The same where letters and numbers are others: in Turkish, the lower case of I is not i.

static void locale_command(const char *form, const char *dir)
{
    char command[300];
    snprintf(command, sizeof command, form, dir);
    if (system(command) != 0) return;  // no such tool here: tests/header.sh looks at the calls
}

TEST(U47_in_a_Turkish_locale_everything_above_is_as_it_was)
{
    char dir[] = "/tmp/revdial-test.XXXXXX";
    REQUIRE(mkdtemp(dir) != NULL);
    locale_command("localedef -i tr_TR -f ISO-8859-9 %s/tr_TR >/dev/null 2>&1", dir);
    setenv("LOCPATH", dir, 1);
    if (setlocale(LC_ALL, "tr_TR")) {
#ifdef __GLIBC__  // musl takes any name and stays with C
        CHECK(tolower('I') != 'i');
        CHECK_STR(localeconv()->decimal_point, ",");
#endif
        for (test_case *c = test_first; strncmp(c->name, "U47", 3) != 0; c = c->next)
            if (!strstr(c->name, "the_reference"))
                c->run();  // which is made of regular expressions
    }
    setlocale(LC_ALL, "C");
    unsetenv("LOCPATH");
    locale_command("rm -r %s", dir);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
