// What is said to an egress proxy and what is made of its answers, without a socket. Each script is
// fed whole, split at every byte, and byte by byte, and must come to the same end each time.
#define REVDIAL_NO_RUNTIME
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include "test.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define BYTES(text) text, sizeof(text) - 1
#define SECRET "hunter2hunter2"  // in no text that we make

// ------------------------------------------------------------------------------------------------
// An egress proxy played by a script: what it waits for, and what it says then.

typedef struct line {
    const char *text;
    size_t len;
} line;

typedef struct script {
    const char *url, *target;
    struct {
        line wants, says;
    } steps[4];  // the last ones may be empty
    line tail;   // said together with the last step: not for us
    int code;    // what it comes to
    const char *msg;
} script;

typedef struct outcome {
    int code, retry_after_ms;
    size_t said;  // bytes that were sent to it
    size_t used;  // bytes of its last step that were taken
    char msg[240];
} outcome;

// Every block is looked at when it is given back.
typedef struct careful_heap {
    test_heap heap;
    const char *secret;
} careful_heap;

static int holds(const void *p, size_t size, const char *what)
{
    size_t len = strlen(what);
    for (size_t at = 0; at + len <= size; at++)
        if (memcmp((const char *)p + at, what, len) == 0) return 1;
    return 0;
}

static void *careful_alloc(void *ud, void *ptr, size_t old_size, size_t new_size)
{
    careful_heap *h = ud;
    if (ptr && h->secret && holds(ptr, old_size, h->secret))
        test_fail(__FILE__, __LINE__, "memory that is given back holds a secret");
    return test_heap_alloc(&h->heap, ptr, old_size, new_size);
}

// Sends what the machine wants to say, in pieces of `piece`, and compares. Returns 0 if it said
// something else than `wants`.
static int step_hears(revdial_egress *v, line wants, size_t piece, outcome *out)
{
    const void *data;
    size_t n, got = 0;
    while ((n = revdial_egress_output(v, &data)) > 0) {
        if (n > piece) n = piece;
        if (n > wants.len - got || memcmp(data, wants.text + got, n) != 0) return 0;
        revdial_egress_sent(v, n);
        got += n;
    }
    out->said += got;
    return got == wants.len;
}

// Feeds `first` bytes (0 = no such piece), then pieces of `piece`, as long as the way is not open.
static size_t step_says(revdial_egress *v, const char *text, size_t len, size_t first, size_t piece)
{
    size_t at = 0;
    while (at < len && revdial_egress_state(v, NULL, NULL) == 0) {
        size_t n = at == 0 && first ? first : piece;
        size_t used;
        if (n > len - at) n = len - at;
        used = revdial_egress_input(v, text + at, n);
        CHECK(used <= n);
        at += used;
        if (used < n) break;
    }
    return at;
}

static outcome play(const script *s, size_t first, size_t piece, careful_heap *memory)
{
    outcome out;
    revdial_err err = {0};
    memset(&out, 0, sizeof out);
    revdial_egress *v = revdial_egress_new(s->url, s->target, careful_alloc, memory, &err);
    if (!v) {
        out.code = err.code;
        snprintf(out.msg, sizeof out.msg, "%s", err.msg);
        return out;
    }
    for (size_t i = 0; i < COUNT(s->steps) && revdial_egress_state(v, NULL, NULL) == 0; i++) {
        int is_last = i + 1 == COUNT(s->steps) || !s->steps[i + 1].wants.text;
        char buf[12000];
        size_t len = s->steps[i].says.len;
        if (!s->steps[i].wants.text) break;
        if (!step_hears(v, s->steps[i].wants, piece, &out))
            test_fail(__FILE__, __LINE__, "%s: step %zu says something else", s->url, i);
        memcpy(buf, s->steps[i].says.text, len);
        if (is_last && s->tail.len) memcpy(buf + len, s->tail.text, s->tail.len);
        if (is_last) len += s->tail.len;
        out.used = step_says(v, buf, len, first, piece);
        if (is_last) revdial_egress_input(v, NULL, 0);
    }
    out.code = revdial_egress_state(v, &err, &out.retry_after_ms);
    snprintf(out.msg, sizeof out.msg, "%s", err.msg);
    revdial_egress_free(v);
    return out;
}

static void is_same(const script *s, const outcome *a, const outcome *b, size_t first, size_t piece)
{
    if (a->code != b->code || a->said != b->said || a->used != b->used ||
        a->retry_after_ms != b->retry_after_ms || strcmp(a->msg, b->msg) != 0)
        test_fail(__FILE__, __LINE__, "%s: first %zu, then %zu: %d %s, not %d %s", s->url, first,
                  piece, b->code, b->msg, a->code, a->msg);
}

// Whole, split everywhere, byte by byte.
static outcome perform(const script *s)
{
    careful_heap memory = {{0}, SECRET};
    outcome whole = play(s, 0, SIZE_MAX, &memory), again;
    size_t longest = 0;
    for (size_t i = 0; i < COUNT(s->steps); i++)
        if (s->steps[i].says.len > longest) longest = s->steps[i].says.len;
    for (size_t first = 1; first < longest + s->tail.len; first++) {
        again = play(s, first, SIZE_MAX, &memory);
        is_same(s, &whole, &again, first, SIZE_MAX);
    }
    again = play(s, 0, 1, &memory);
    is_same(s, &whole, &again, 0, 1);
    CHECK_INT(memory.heap.live_blocks, 0);
    CHECK_INT(memory.heap.live_bytes, 0);
    if (whole.code != s->code || (s->msg && strcmp(whole.msg, s->msg) != 0))
        test_fail(__FILE__, __LINE__, "%s %.40s: %d \"%s\", not %d \"%s\"", s->url,
                  s->steps[0].says.text ? s->steps[0].says.text : "", whole.code, whole.msg,
                  s->code, s->msg ? s->msg : "");
    CHECK(!strstr(whole.msg, SECRET));
    return whole;
}

// ------------------------------------------------------------------------------------------------
// CONNECT

#define WEB "http://10.0.0.1:3128"
#define ASK \
    "CONNECT proxy.example:7000 HTTP/1.1\r\n" \
    "Host: proxy.example:7000\r\n\r\n"
#define OK "HTTP/1.1 200 Connection established\r\n\r\n"

TEST(the_example_of_RFC_7617_is_what_a_user_name_and_a_password_become)
{
    static const script s = {
        "http://Aladdin:open%20sesame@[::1]:80",
        "[2001:db8::7]:443",
        {{{BYTES("CONNECT [2001:db8::7]:443 HTTP/1.1\r\n"
                 "Host: [2001:db8::7]:443\r\n"
                 "Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n")},
          {BYTES(OK)}}},
        {BYTES("")},
        1,
        ""};
    perform(&s);
}

TEST(base64_is_that_of_RFC_4648)
{
    static const char *const rows[][2] = {{"", ""},
                                          {"f", "Zg=="},
                                          {"fo", "Zm8="},
                                          {"foo", "Zm9v"},
                                          {"foob", "Zm9vYg=="},
                                          {"fooba", "Zm9vYmE="},
                                          {"foobar", "Zm9vYmFy"},
                                          {"\xFB\xFF\xBF", "+/+/"}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        char buf[16];
        rvd_base_text t = {buf, sizeof buf, 0, 0};
        buf[0] = '\0';
        rvd_base_text_add_base64(&t, rows[i][0], strlen(rows[i][0]));
        CHECK_STR(buf, rows[i][1]);
    }
}

TEST(any_2xx_opens_the_way_and_what_follows_its_head_is_not_touched)
{
    static const char *const rows[] = {
        OK,
        "HTTP/1.0 200 OK\r\nProxy-Agent: old\r\n\r\n",
        "HTTP/1.1 204 \r\nTransfer-Encoding: chunked\r\nContent-Length: 77\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Wait\r\n\r\nHTTP/1.1 200 Yes\r\n\r\n",
        "HTTP/1.1 299 \xE4\xF6\xFC\r\nVia: 1.1 \xE4\r\n\r\n",
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        script s = {WEB, "proxy.example:7000", {{{BYTES(ASK)}, {rows[i], 0}}}, {NULL, 0}, 1, ""};
        s.steps[0].says.len = strlen(rows[i]);
        CHECK_INT(perform(&s).used, strlen(rows[i]));
        s.tail.text = "HTTP/1.1 403 not yours\r\n\r\n";
        s.tail.len = strlen(s.tail.text);
        CHECK_INT(perform(&s).used, strlen(rows[i]));
    }
}

TEST(each_refusal_of_a_CONNECT_names_the_egress_proxy_and_says_why)
{
    static const struct {
        const char *answer;
        int code;
        const char *msg;  // behind "egress proxy 10.0.0.1:3128"
        int retry_after_ms;
    } rows[] = {
        {"HTTP/1.1 407 X\r\nProxy-Authenticate: Basic realm=\"" SECRET "\"\r\n\r\n", REVDIAL_EAUTH,
         " refused: 407, it wants a user name and a password", 0},
        {"HTTP/1.1 400 X\r\n\r\n", REVDIAL_EUNREACH,
         " refused: 400, it considers our CONNECT request malformed", 0},
        {"HTTP/1.1 401 X\r\n\r\n", REVDIAL_EAUTH,
         " refused: 401, it wants a user name and a password", 0},
        {"HTTP/1.1 418 X\r\n\r\n", REVDIAL_EUNREACH, " refused: 418, it gives no reason", 0},
        {"HTTP/1.1 403 " SECRET "\r\n\r\n", REVDIAL_EUNREACH,
         " refused: 403, its rules forbid this destination", 0},
        {"HTTP/1.0 405 X\r\n\r\n", REVDIAL_EUNREACH, " refused: 405, it does not support CONNECT",
         0},
        {"HTTP/1.1 429 X\r\nRetry-After: 9\r\n\r\n", REVDIAL_EUNREACH,
         " refused: 429, too many requests", 9000},
        {"HTTP/1.1 502 X\r\n\r\n", REVDIAL_EUNREACH,
         " refused: 502, it got no connection to the destination", 0},
        {"HTTP/1.1 503 X\r\nRetry-After: 7\r\n\r\nbody", REVDIAL_EUNREACH,
         " refused: 503, it cannot serve this now, or cannot reach the destination", 7000},
        {"HTTP/1.1 504 X\r\n\r\n", REVDIAL_EUNREACH,
         " refused: 504, its connection to the destination timed out", 0},
        {"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1/\r\n\r\n", REVDIAL_EUNREACH,
         " refused: 302, not a valid answer to CONNECT", 0},
        {"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: revdial\r\n\r\n", REVDIAL_EPROTO,
         " refused: 101, not a valid answer to CONNECT", 0},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char msg[240];
        script s = {WEB, "proxy.example:7000", {{{BYTES(ASK)}, {rows[i].answer, 0}}}, {NULL, 0}, 0,
                    msg};
        snprintf(msg, sizeof msg, "egress proxy 10.0.0.1:3128%s", rows[i].msg);
        s.steps[0].says.len = strlen(rows[i].answer);
        s.code = rows[i].code;
        CHECK_INT(perform(&s).retry_after_ms, rows[i].retry_after_ms);
    }
}

TEST(a_407_to_a_login_says_that_it_was_rejected)
{
    static const script s = {
        "http://u:" SECRET "@10.0.0.1:3128",
        "proxy.example:7000",
        {{{BYTES("CONNECT proxy.example:7000 HTTP/1.1\r\nHost: proxy.example:7000\r\n"
                 "Proxy-Authorization: Basic dTpodW50ZXIyaHVudGVyMg==\r\n\r\n")},
          {BYTES("HTTP/1.1 407 X\r\n\r\n")}}},
        {BYTES("")},
        REVDIAL_EAUTH,
        "egress proxy 10.0.0.1:3128 refused: 407, it rejects the user name or the password"};
    perform(&s);
}

TEST(what_is_no_answer_to_a_CONNECT_is_an_error_at_the_first_byte_that_shows_it)
{
    static const struct {
        const char *text;
        size_t used;
    } rows[] = {
        {"SSH-2.0-OpenSSH_9.2\r\n", 1},
        {"\x05\xFF", 1},
        {"HTTP/2 200\r\n\r\n", 6},
        {"HTTP/1.1 200\r\n\r\n", 13},
        {"HTTP/1.1 600 No\r\n\r\n", 10},
        {"HTTP/1.1 200 OK\nX: y\n\n", 16},
        {"HTTP/1.1 200 OK\r\n X: folded\r\n\r\n", 18},
        {"HTTP/1.1 200 OK\r\nX y: z\r\n\r\n", 19},
        {"HTTP/1.1 100 A\r\nContent-Length: 3\r\n\r\nabc", 37},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        script s = {WEB,
                    "proxy.example:7000",
                    {{{BYTES(ASK)}, {rows[i].text, 0}}},
                    {NULL, 0},
                    REVDIAL_EPROTO,
                    "egress proxy 10.0.0.1:3128: its answer is not that of an HTTP proxy"};
        s.steps[0].says.len = strlen(rows[i].text);
        CHECK_INT(perform(&s).used, rows[i].used);
    }
}

TEST(an_answer_that_never_ends_is_bounded)
{
    static char text[9000];
    script s = {WEB,       "proxy.example:7000", {{{BYTES(ASK)}, {text, 0}}},
                {NULL, 0}, REVDIAL_EPROTO,       NULL};
    size_t at = (size_t)snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nX: ");
    memset(text + at, 'a', sizeof text - at);
    s.steps[0].says.len = sizeof text;
    careful_heap memory = {{0}, NULL};
    CHECK_INT(play(&s, 0, SIZE_MAX, &memory).used, 8193);
    CHECK(memory.heap.peak_bytes < 20000);
    for (at = 17; at + 6 < sizeof text; at += 6) memcpy(text + at, "X: a\r\n", 6);
    CHECK_INT(play(&s, 0, SIZE_MAX, &memory).used, 17 + 64 * 6 + 1);
    for (at = 0; at + 25 < sizeof text; at += 25)
        memcpy(text + at, "HTTP/1.1 103 Hints\r\nX: \r\n\r\n", 25);
    CHECK_INT(play(&s, 0, SIZE_MAX, &memory).code, REVDIAL_EPROTO);
    CHECK_INT(memory.heap.live_blocks, 0);
}

TEST(an_end_before_the_answer_is_an_error_wherever_it_comes)
{
    static const char answer[] = OK;
    for (size_t len = 0; len < sizeof answer - 1; len++) {
        script s = {WEB,
                    "proxy.example:7000",
                    {{{BYTES(ASK)}, {answer, len}}},
                    {NULL, 0},
                    REVDIAL_ELOST,
                    "egress proxy 10.0.0.1:3128: it closed the connection without an answer"};
        perform(&s);
    }
}

// ------------------------------------------------------------------------------------------------
// SOCKS5

#define SOCKS "socks5://10.0.0.1:1080"
#define NAME "\5\1\0\3\15proxy.example\x1B\x58"  // port 7000
#define YES "\5\0\0\1\0\0\0\0\0\0"

TEST(a_name_goes_to_the_SOCKS5_proxy_as_a_name_and_an_address_as_an_address)
{
    static const script rows[] = {
        {SOCKS,
         "proxy.example:7000",
         {{{BYTES("\5\1\0")}, {BYTES("\5\0")}}, {{BYTES(NAME)}, {BYTES(YES)}}},
         {BYTES("tail")},
         1,
         ""},
        {"socks5h://[::1]:1080",
         "10.1.2.3:65535",
         {{{BYTES("\5\1\0")}, {BYTES("\5\0")}},
          {{BYTES("\5\1\0\1\12\1\2\3\377\377")}, {BYTES("\5\0\0\3\7seven77\0\0")}}},
         {BYTES("tail")},
         1,
         ""},
        {"socks5://gate:1080/",
         "[2001:db8::7]:1",
         {{{BYTES("\5\1\0")}, {BYTES("\5\0")}},
          {{BYTES("\5\1\0\4\x20\1\xD\xB8\0\0\0\0\0\0\0\0\0\0\0\7\0\1")},
           {BYTES("\5\0\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0")}}},
         {BYTES("tail")},
         1,
         ""},
        {SOCKS,
         "proxy.example:7000",
         {{{BYTES("\5\1\0")}, {BYTES("\5\0")}},
          {{BYTES(NAME)}, {BYTES("\5\0\0\3\0\0\0")}}},  // a name of no bytes
         {BYTES("tail")},
         1,
         ""},
    };
    for (size_t i = 0; i < COUNT(rows); i++)
        CHECK_INT(perform(&rows[i]).used, rows[i].steps[1].says.len);
}

TEST(a_login_is_sent_to_the_SOCKS5_proxy_that_asks_for_it_and_to_no_other)
{
    static const script asked = {"socks5://us%3Aer:" SECRET "@10.0.0.1:1080",
                                 "proxy.example:7000",
                                 {{{BYTES("\5\2\0\2")}, {BYTES("\5\2")}},
                                  {{BYTES("\1\5us:er\16" SECRET)}, {BYTES("\1\0")}},
                                  {{BYTES(NAME)}, {BYTES(YES)}}},
                                 {BYTES("tail")},
                                 1,
                                 ""};
    static const script not_asked = {
        "socks5://user:" SECRET "@10.0.0.1:1080",
        "proxy.example:7000",
        {{{BYTES("\5\2\0\2")}, {BYTES("\5\0")}}, {{BYTES(NAME)}, {BYTES(YES)}}},
        {BYTES("tail")},
        1,
        ""};
    perform(&asked);
    perform(&not_asked);
}

TEST(each_reply_of_a_SOCKS5_proxy_is_its_own_error)
{
    static const char *const texts[] = {
        "it failed, and does not say why",
        "its rules forbid this destination",
        "the network of the destination is unreachable",
        "the destination is unreachable, or has no such name",
        "the destination refuses the connection",
        "the packets to the destination expire on the way",
        "it does not support CONNECT",
        "it cannot reach addresses of this kind",
        "an unknown reply code",
    };
    for (size_t i = 1; i < 256; i++) {
        char reply[] = YES, msg[240];
        script s = {SOCKS,
                    "proxy.example:7000",
                    {{{BYTES("\5\1\0")}, {BYTES("\5\0")}}, {{BYTES(NAME)}, {reply, 10}}},
                    {NULL, 0},
                    REVDIAL_EUNREACH,
                    msg};
        reply[1] = (char)i;
        snprintf(msg, sizeof msg, "egress proxy 10.0.0.1:1080 refused: %zu, %s", i,
                 texts[(i < COUNT(texts) ? i : COUNT(texts)) - 1]);
        CHECK_INT(perform(&s).used, 2);  // a short reply is judged as well
    }
}

TEST(SOCKS5_proxies_that_reject_us_or_break_the_protocol)
{
    static const char rejects[] = "it rejects the user name or the password";
    static const struct {
        const char *login, *greets, *answers;
        size_t len;
        int code;
        const char *msg;
    } rows[] = {
        {"", "\5\xFF", NULL, 0, REVDIAL_EAUTH,
         " refused: 255, it wants a user name and a password"},
        {"u:p@", "\5\xFF", NULL, 0, REVDIAL_EAUTH,
         " refused: 255, it takes no user name and password"},
        {"u:p@", "\5\2", "\1\1", 2, REVDIAL_EAUTH, rejects},
        {"u:p@", "\5\2", "\1\xFF", 2, REVDIAL_EAUTH, rejects},
        {"u:p@", "\5\2", "\5\7", 2, REVDIAL_EAUTH, rejects},
        {"", "\5\2", NULL, 0, REVDIAL_EPROTO, ": it wants a method that it was not offered"},
        {"u:p@", "\5\1", NULL, 0, REVDIAL_EPROTO, ": it wants a method that it was not offered"},
        {"", "\4\132", NULL, 0, REVDIAL_EPROTO, ": its answer is not that of a SOCKS5 proxy"},
        {"", "HTTP/1.1 400 Bad", NULL, 0, REVDIAL_EPROTO,
         ": its answer is not that of a SOCKS5 proxy"},
        {"u:p@", "\5\2", "\1", 1, REVDIAL_ELOST, ": it closed the connection without an answer"},
        {"", "\5", NULL, 0, REVDIAL_ELOST, ": it closed the connection without an answer"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char url[80], msg[240];
        script s = {url,
                    "proxy.example:7000",
                    {{{BYTES("\5\1\0")}, {rows[i].greets, strlen(rows[i].greets)}}},
                    {NULL, 0},
                    rows[i].code,
                    msg};
        if (rows[i].login[0]) s.steps[0].wants = (line){BYTES("\5\2\0\2")};
        if (rows[i].answers) s.steps[1].wants = (line){BYTES("\1\1u\1p")};
        s.steps[1].says.text = rows[i].answers;
        s.steps[1].says.len = rows[i].len;
        snprintf(url, sizeof url, "socks5://%s10.0.0.1:1080", rows[i].login);
        snprintf(msg, sizeof msg, "egress proxy 10.0.0.1:1080%s", rows[i].msg);
        if (rows[i].msg == rejects)
            snprintf(msg, sizeof msg, "egress proxy 10.0.0.1:1080 refused: %d, %s",
                     (unsigned char)rows[i].answers[1], rejects);
        perform(&s);
    }
}

TEST(a_SOCKS5_reply_with_an_address_of_no_known_kind_is_an_error)
{
    static const char last[][11] = {"\5\0\0\2\0\0\0\0\0\0", "\5\0\0\0\0\0\0\0\0\0",
                                    "\4\0\0\1\0\0\0\0\0\0", "\0\0\0\1\0\0\0\0\0\0"};
    for (size_t i = 0; i < COUNT(last); i++) {
        script s = {SOCKS,
                    "proxy.example:7000",
                    {{{BYTES("\5\1\0")}, {BYTES("\5\0")}}, {{BYTES(NAME)}, {last[i], 10}}},
                    {NULL, 0},
                    REVDIAL_EPROTO,
                    NULL};
        careful_heap memory = {{0}, NULL};
        CHECK_INT(play(&s, 0, SIZE_MAX, &memory).code, REVDIAL_EPROTO);
        CHECK_INT(play(&s, 0, 1, &memory).code, REVDIAL_EPROTO);
        CHECK_INT(memory.heap.live_blocks, 0);
    }
}

// ------------------------------------------------------------------------------------------------
// Both

TEST(an_answer_before_the_question_is_an_error)
{
    static const struct {
        const char *url, *answer;
        size_t len;
    } rows[] = {{WEB, BYTES(OK)}, {SOCKS, BYTES("\5\0")}, {"socks5://u:p@h:1", BYTES("\5\2")}};
    for (size_t i = 0; i < COUNT(rows); i++)
        for (size_t sent = 0; sent < 3; sent++) {
            revdial_err err = {0};
            revdial_egress *v =
                revdial_egress_new(rows[i].url, "proxy.example:7000", NULL, NULL, &err);
            REQUIRE(v != NULL);
            revdial_egress_sent(v, sent);
            revdial_egress_input(v, rows[i].answer, rows[i].len);
            CHECK_INT(revdial_egress_state(v, &err, NULL), REVDIAL_EPROTO);
            CHECK(strstr(err.msg, "it sent data before our request") != NULL);
            revdial_egress_free(v);
        }
}

TEST(a_refusal_before_the_whole_question_is_the_refusal)
{
    revdial_err err = {0};
    revdial_egress *v = revdial_egress_new(WEB, "proxy.example:7000", NULL, NULL, &err);
    const void *data;
    REQUIRE(v != NULL);
    revdial_egress_sent(v, 5);
    revdial_egress_input(v, BYTES("HTTP/1.1 403 No\r\n\r\n"));
    CHECK_INT(revdial_egress_state(v, &err, NULL), REVDIAL_EUNREACH);
    CHECK_INT(revdial_egress_output(v, &data), 0);  // nothing more to say
    CHECK_INT(revdial_egress_input(v, "x", 1), 0);
    revdial_egress_input(v, NULL, 0);
    CHECK_INT(revdial_egress_state(v, &err, NULL), REVDIAL_EUNREACH);  // the first cause stays
    revdial_egress_free(v);
}

TEST(urls_and_targets_that_make_no_sense_are_refused_without_being_quoted)
{
    static const struct {
        const char *url, *target, *says;
    } rows[] = {
        {NULL, "h:1", "NULL"},
        {"", "h:1", "not http"},
        {"https://u:" SECRET "@h:1", "h:1", "no TLS"},
        {"socks4://u:" SECRET "@h:1", "h:1", "not http"},
        {"socks5:/u:" SECRET "@h:1", "h:1", "not http"},
        {"HTTP://h:1", "h:1", "not http"},
        {"u:" SECRET "@h:1", "h:1", "not http"},
        {"http://u:" SECRET "@h", "h:1", "not HOST:PORT"},
        {"http://u:" SECRET "@h:", "h:1", "not HOST:PORT"},
        {"http://u:" SECRET "@h:0", "h:1", "not HOST:PORT"},
        {"http://u:" SECRET "@h:65536", "h:1", "not HOST:PORT"},
        {"http://u:" SECRET "@:80", "h:1", "not HOST:PORT"},
        {"http://u:" SECRET "@[::1]", "h:1", "not HOST:PORT"},
        {"http://u:" SECRET "@::1:80", "h:1", "not HOST:PORT"},
        {"http://u:" SECRET "@h:1/path", "h:1", "not HOST:PORT"},
        {"http://u:" SECRET "@h:1?q", "h:1", "not HOST:PORT"},
        {"http://u:" SECRET "@h:1 ", "h:1", "not HOST:PORT"},
        {"http://u:" SECRET "@" SECRET "@h:1", "h:1", "not HOST:PORT"},
        {"http://u:" SECRET "/x@h:1", "h:1", "not in the form"},
        {"http://u:" SECRET "%@h:1", "h:1", "not in the form"},
        {"http://u:" SECRET "%4@h:1", "h:1", "not in the form"},
        {"http://u:" SECRET "%0d%0aX:y@h:1", "h:1", "not in the form"},
        {"http://u:" SECRET "%00@h:1", "h:1", "not in the form"},
        {"http://u%7f:" SECRET "@h:1", "h:1", "not in the form"},
        {"http://u:" SECRET "\xE4@h:1", "h:1", "not in the form"},
        {"http://u:" SECRET "\r\n@h:1", "h:1", "not in the form"},
        {"http://u%3Av:" SECRET "@h:1", "h:1", "must not contain"},
        {"socks5://" SECRET "@h:1", "h:1", "1 to 255"},
        {"socks5://" SECRET ":@h:1", "h:1", "1 to 255"},
        {"socks5://:" SECRET "@h:1", "h:1", "1 to 255"},
        {WEB, NULL, "only a server"},
        {WEB, "", "only a server"},
        {WEB, "h", "only a server"},
        {WEB, "unix:/run/x", "only a server"},
        {WEB, "h:80\r\nX: y", "only a server"},
        {WEB, "[dead]:80", "only a server"},
        {WEB, "u@h:80", "only a server"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        revdial_err err = {0};
        careful_heap memory = {{0}, SECRET};
        revdial_egress *v =
            revdial_egress_new(rows[i].url, rows[i].target, careful_alloc, &memory, &err);
        if (v || err.code != REVDIAL_EINVAL || !strstr(err.msg, rows[i].says) ||
            strstr(err.msg, SECRET))
            test_fail(__FILE__, __LINE__, "row %zu, %s: %d %s", i, rows[i].url, err.code, err.msg);
        revdial_egress_free(v);
        CHECK(revdial_egress_new(rows[i].url, rows[i].target, NULL, NULL, NULL) == NULL);
    }
}

// A URL with a user and a password of such lengths, and a host.
static char *long_url(const char *scheme, size_t user, size_t password, size_t host)
{
    static char url[4000];
    size_t at = (size_t)snprintf(url, sizeof url, "%s", scheme);
    memset(url + at, 'u', user);
    at += user;
    url[at++] = ':';
    for (size_t i = 0; i < password; i++, at += 3) memcpy(url + at, "%70", 3);
    url[at++] = '@';
    memset(url + at, 'h', host);
    memcpy(url + at + host, ":1", 3);
    return url;
}

TEST(the_longest_of_everything_fits_and_one_more_is_refused)
{
    static const struct {
        const char *scheme;
        size_t user, password, host, target;
        int fits;
    } rows[] = {
        {"http://", 255, 1024, 255, 255, 1}, {"http://", 256, 1, 1, 1, 0},
        {"http://", 1, 1025, 1, 1, 0},       {"http://", 1, 1, 256, 1, 0},
        {"http://", 1, 1, 1, 256, 0},        {"socks5://", 255, 255, 255, 255, 1},
        {"socks5://", 256, 1, 1, 1, 0},      {"socks5://", 1, 256, 1, 1, 0},
        {"socks5://", 1, 1, 256, 1, 0},      {"socks5://", 1, 1, 1, 256, 0},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        const char *url = long_url(rows[i].scheme, rows[i].user, rows[i].password, rows[i].host);
        char target[300];
        revdial_err err = {0};
        memset(target, 't', sizeof target);
        memcpy(target + rows[i].target, ":65535", 7);
        revdial_egress *v = revdial_egress_new(url, target, NULL, NULL, &err);
        if ((v != NULL) != rows[i].fits)
            test_fail(__FILE__, __LINE__, "row %zu: %d %s", i, err.code, err.msg);
        if (v) {
            const void *data;
            while (revdial_egress_output(v, &data) > 0) revdial_egress_sent(v, 1);
            revdial_egress_input(v, "?", 1);
            CHECK_INT(revdial_egress_state(v, &err, NULL), REVDIAL_EPROTO);
            CHECK(strlen(err.msg) < sizeof err.msg - 1);  // the reason was not cut
        }
        revdial_egress_free(v);
    }
}

TEST(whichever_allocation_fails_an_error_says_so_and_nothing_leaks)
{
    static char answer[3000];
    script s = {"http://u:" SECRET "@h:1",
                "proxy.example:7000",
                {{{BYTES("CONNECT proxy.example:7000 HTTP/1.1\r\nHost: proxy.example:7000\r\n"
                         "Proxy-Authorization: Basic dTpodW50ZXIyaHVudGVyMg==\r\n\r\n")},
                  {answer, sizeof answer}}},
                {NULL, 0},
                1,
                ""};
    size_t at = (size_t)snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nX: ");
    memset(answer + at, 'a', sizeof answer - at);
    memcpy(answer + sizeof answer - 4, "\r\n\r\n", 4);
    size_t calls = 0;
    for (size_t n = 0; n <= calls; n++) {
        careful_heap memory = {{0}, SECRET};
        memory.heap.fail_at = n;
        outcome out = play(&s, 0, 100, &memory);
        CHECK_INT(out.code, n ? REVDIAL_ENOMEM : 1);
        CHECK(n == 0 || strstr(out.msg, "memory"));
        CHECK_INT(memory.heap.live_blocks, 0);
        if (n == 0) calls = memory.heap.calls;
    }
    CHECK_INT(calls, 4);  // itself; 1, 2 and 4 KiB of head
}

TEST(a_password_that_has_been_sent_is_wiped)
{
    static const char *const urls[] = {"http://u:" SECRET "@h:1", "socks5://u:" SECRET "@h:1"};
    for (size_t i = 0; i < 2; i++) {
        revdial_egress *v = revdial_egress_new(urls[i], "h:1", NULL, NULL, NULL);
        const void *data;
        REQUIRE(v != NULL);
        CHECK(holds(v, sizeof *v, i ? SECRET : "dTpodW50ZXIyaHVudGVyMg=="));
        while (revdial_egress_output(v, &data)) revdial_egress_sent(v, 7);
        revdial_egress_input(v, "\5\2", i ? 2 : 0);
        while (revdial_egress_output(v, &data)) revdial_egress_sent(v, 7);
        CHECK(!holds(v, sizeof *v, SECRET));
        CHECK(!holds(v, sizeof *v, "dTpodW50ZXIyaHVudGVyMg=="));
        revdial_egress_free(v);
    }
}

TEST(a_password_that_is_not_asked_for_is_wiped)
{
    revdial_egress *v = revdial_egress_new("socks5://u:" SECRET "@h:1", "h:1", NULL, NULL, NULL);
    REQUIRE(v != NULL);
    revdial_egress_sent(v, 1 << 20);
    revdial_egress_input(v, BYTES("\5\0"));
    CHECK(!holds(v, sizeof *v, SECRET));
    revdial_egress_free(v);
}

TEST(random_answers_end_or_wait_and_never_take_more_than_there_is)
{
    static const char *const urls[] = {WEB, SOCKS, "socks5://u:p@h:1"};
    static const char *const starts[] = {"HTTP/1.1 ", "\5", "\5\2", "\5\0"};
    for (uint64_t seed = 0; seed < 20000; seed++) {
        test_rng r = test_rng_seeded(seed);
        careful_heap memory = {{0}, NULL};
        revdial_err err = {0};
        revdial_egress *v = revdial_egress_new(urls[seed % 3], "h:1", careful_alloc, &memory, &err);
        REQUIRE(v != NULL);
        const char *start = starts[test_below(&r, COUNT(starts))];
        revdial_egress_sent(v, 1 << 20);
        revdial_egress_input(v, start, strlen(start));
        for (int i = 0; i < 20; i++) {
            uint8_t buf[16];
            size_t len = 1 + (size_t)test_below(&r, sizeof buf);
            for (size_t k = 0; k < len; k++) buf[k] = (uint8_t)(test_random(&r) % 7);
            if (test_below(&r, 2)) revdial_egress_sent(v, 1 << 20);
            CHECK(revdial_egress_input(v, buf, len) <= len);
        }
        int state = revdial_egress_state(v, &err, NULL);
        CHECK(state == 0 || state == 1 || (state < 0 && err.code == state && err.msg[0]));
        revdial_egress_free(v);
        if (memory.heap.live_blocks) test_fail(__FILE__, __LINE__, "seed %d leaks", (int)seed);
    }
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
