// The WebSocket carrier: SHA-1 and base64, the byte vectors of its sentences with every rule of RFC
// 6455 that another end may break, the frames we send, and sessions over it when the bytes come in
// any pieces and when memory runs out. Handshakes with Upgrade: websocket are in test_http.c.
#define REVDIAL_NO_RUNTIME
#define REVDIAL_SELF_CHECK  // the mux checks its invariants at each call
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include <ctype.h>

#include "engine_script.h"

#ifndef TEST_VECTORS
#define TEST_VECTORS "tests/vectors/"
#endif

#define OVER_WEBSOCKET .carrier = REVDIAL_CARRIER_WEBSOCKET

// ---- digests and text

TEST(sha1_gives_the_digests_of_fips_180_4)
{
    static const struct {
        size_t len;  // of bytes 7 * i + 3
        const char *digest;
    } rows[] = {{0, "da39a3ee5e6b4b0d3255bfef95601890afd80709"},
                {3, "4201de9f98cb0a9b8cf52398be7802b55d45266a"},
                {55, "ddf57317ef34bfee3b6df83d359098930eb278bc"},
                {56, "a0d492bb0fc889d0eca3bc137066ab6f4f74f369"},
                {63, "c55856749bef509bdfe6bfebfc7bf4e793e82132"},
                {64, "bede92be29c3874e1b54ddc77988d606fc857a8e"},
                {119, "504e27376a6e0f0dba8295b85cb25dc4dfa17d23"},
                {120, "82134b02fb3f702491be9bed581eeab59334acb2"},
                {300, "2b498a2177b181ad0e5eddbd5cb58b8d52cf6941"}};
    static char many[1000000];
    uint8_t data[300], digest[20], want[20];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(7 * i + 3);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        rvd_base_sha1(data, rows[i].len, digest);
        CHECK(rvd_base_hex(want, sizeof want, rows[i].digest));
        if (memcmp(digest, want, sizeof want) != 0)
            test_fail(__FILE__, __LINE__, "sha1 of %zu bytes", rows[i].len);
    }
    memset(many, 'a', sizeof many);
    rvd_base_sha1(many, sizeof many, digest);
    CHECK(rvd_base_hex(want, sizeof want, "34aa973cd4c4daa4f61eeb2bdbad27316534016f"));
    CHECK(memcmp(digest, want, sizeof want) == 0);
    rvd_base_sha1("abc", 3, digest);
    CHECK(rvd_base_hex(want, sizeof want, "a9993e364706816aba3e25717850c26c9cd0d89d"));
    CHECK(memcmp(digest, want, sizeof want) == 0);
}

TEST(base64_is_that_of_rfc_4648_section_10)
{
    static const char *const rows[][2] = {{"", ""},
                                          {"f", "Zg=="},
                                          {"fo", "Zm8="},
                                          {"foo", "Zm9v"},
                                          {"foob", "Zm9vYg=="},
                                          {"fooba", "Zm9vYmE="},
                                          {"foobar", "Zm9vYmFy"},
                                          {"\xff\xef\xbe", "/+++"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[16];
        rvd_base_text t = {text, sizeof text, 0, 0};
        text[0] = '\0';
        rvd_base_text_add_base64(&t, (const uint8_t *)rows[i][0], strlen(rows[i][0]));
        CHECK_STR(text, rows[i][1]);
    }
}

TEST(the_key_of_rfc_6455_has_its_answer)
{
    char accept[RVD_HTTP_ACCEPT_SIZE];
    rvd_http_accept_of(rvd_base_slice_of("dGhlIHNhbXBsZSBub25jZQ=="), accept);
    CHECK_STR(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

// ---- the byte vectors: each sentence is played, and stands in the specification

typedef struct vector {
    char sentence[512], text[256];
    uint8_t bytes[256];
    size_t len;
    int line;
} vector;

static const char *vector_hex(vector *v, const char *at)
{
    v->len = 0;
    for (;;) {
        const char *begin = at;
        unsigned byte;
        for (; isxdigit((unsigned char)at[0]) && isxdigit((unsigned char)at[1]); at += 2) {
            sscanf(at, "%2x", &byte);
            if (v->len < sizeof v->bytes) v->bytes[v->len++] = (uint8_t)byte;
        }
        if (*at != ' ' || at == begin) return begin;
        at++;
    }
}

// Cuts " WORD …" off the text: what follows the word, up to the next one that is cut.
static const char *vector_cut(vector *v, const char *word)
{
    char *at = strstr(v->text, word);
    if (!at) return "";
    *at = '\0';
    at += strlen(word);
    return strcmp(at, "-") ? at : "";
}

static void vector_play(const vector *line, size_t chunk)
{
    vector v = *line;
    const char *seen = vector_cut(&v, " seen"), *answers = vector_cut(&v, " answers ");
    const char *scenario = vector_cut(&v, " after ");
    int sent = !strncmp(v.text, "sent-by", 7);
    rig_options o = {OVER_WEBSOCKET, .limits = {.keepalive_ms = 100000000}};
    o.role = strstr(v.text, "proxy") ? REVDIAL_ROLE_PROXY : REVDIAL_ROLE_BACKEND;
    rig *r = rig_new(&o);
    REQUIRE(r != NULL);
    r->chunk = chunk;
    script_run(r, scenario);
    if (sent) {
        if (r->raw_len < v.len || memcmp(r->raw + r->raw_len - v.len, v.bytes, v.len) != 0)
            test_fail(TEST_VECTORS "websocket.txt", v.line, "not sent at the end of: %s",
                      rig_out(r));
    } else {
        r->log.len = r->out.len = 0;
        r->log.s[0] = r->out.s[0] = '\0';
        rig_feed_raw(r, v.bytes, v.len);
        rig_drain(r);
        rig_flush(r);
        if (strcmp(r->log.s, seen + (*seen == ' ')) != 0)
            test_fail(TEST_VECTORS "websocket.txt", v.line, "saw %s", r->log.s);
        if (strcmp(rig_out(r), answers) != 0)
            test_fail(TEST_VECTORS "websocket.txt", v.line, "answers %s", rig_out(r));
    }
    CHECK(r->heap.peak_bytes < 300000);
    rig_end(r);
}

// The specification with its line breaks and list marks as blanks.
static const char *specification(void)
{
    static char text[200000];
    FILE *f = fopen(TEST_VECTORS "README.md", "r");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f) fclose(f);
    text[n] = '\0';
    for (char *at = text; (at = strchr(at, '\n')); at++) {
        *at = ' ';
        while (at[1] == ' ') memmove(at + 1, at + 2, strlen(at + 1));
    }
    return text;
}

TEST(each_sentence_about_WebSocket_frames_is_true_of_its_bytes)
{
    static char line[1024], sentence[512];
    vector v = {.line = 0};
    int sentences = 0, comment = 1;
    FILE *f = fopen(TEST_VECTORS "websocket.txt", "r");
    REQUIRE(f != NULL);
    while (fgets(line, sizeof line, f)) {
        v.line++;
        line[strcspn(line, "\n")] = '\0';
        if (!line[0]) comment = 0;
        if (line[0] == '#' && !comment) {
            snprintf(sentence, sizeof sentence, "%.500s", line + 2);
            if (!strstr(specification(), sentence))
                test_fail(TEST_VECTORS "websocket.txt", v.line, "not in README.md: %s", sentence);
            sentences++;
        }
        if (!line[0] || line[0] == '#') continue;
        snprintf(v.text, sizeof v.text, "%.250s", vector_hex(&v, line) + 1);
        for (size_t chunk = 0; chunk < 4; chunk++) vector_play(&v, chunk);
    }
    fclose(f);
    CHECK(sentences >= 10);
}

// ---- what comes in

TEST(payload_is_the_same_however_it_is_framed_and_cut)
{
    static const script_case cases[] = {
        {"one message",
         "Wp1+SYN Dp1'hello' Wp1+FIN .acceptp1 .readp1",
         "Wp1+ACK",
         "openp1 readablep1 finp1 p1'hello' eofp1",
         {OVER_WEBSOCKET}},
        {"features over WebSocket",
         "Wp1+SYN .writep1#100000",
         "Wp1+ACK Dp1#65536",
         "openp1 wrotep1=65536",
         {OVER_WEBSOCKET, .features = "window=65536, streams=300"}},
        {"bulk that is read",
         "Wp1+SYN .eager Dp1#100000 Dp1#100000",
         NULL,
         "openp1",
         {OVER_WEBSOCKET}},
        {"bulk that stays",
         "Wp1+SYN Dp1#200000 .readp1",
         NULL,
         "openp1 readablep1 p1#200000",
         {OVER_WEBSOCKET}},
        {"bulk that goes",
         "Wp1+SYN .writep1#200000 .finp1",
         "Wp1+ACK Dp1#200000 Wp1+FIN",
         "openp1",
         {OVER_WEBSOCKET}},
        {"a ping between two pieces of a message",
         "^02!0003 ^00!0000 ^89'x' ^80!0000000000000000",
         "pong'x'",
         "goaway",
         {OVER_WEBSOCKET}},
        {"a pong and an empty message mean nothing",
         "^8a ^8a'x' ^82 ^02 ^80 Wp1+SYN",
         "",
         "openp1",
         {OVER_WEBSOCKET}},
        {"a ping of 125 bytes",
         "^89'"
         "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
         "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' ",
         "pong'"
         "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
         "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'",
         "",
         {OVER_WEBSOCKET}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(the_end_is_told_as_it_is)
{
    static const script_case cases[] = {
        {"EOF without Close", "Wp1+SYN .eof", "", "openp1 dead(ELOST)", {OVER_WEBSOCKET}},
        {"EOF inside a header", "Wp1+SYN ^!82 .eof", "", "openp1 dead(ELOST)", {OVER_WEBSOCKET}},
        {"EOF after GoAway",
         "G0=0 .eof",
         "close(1000)",
         "goaway dead(EDRAINING)",
         {OVER_WEBSOCKET}},
        {"EOF after GoAway inside a header",
         "G0=0 ^!82 .eof",
         "",
         "goaway dead(ELOST)",
         {OVER_WEBSOCKET}},
        {"Close inside a frame of yamux",
         "^82!0001 ^88=1000",
         "close(1000)",
         "dead(ELOST)",
         {OVER_WEBSOCKET}},
        {"Close with a status of the application",
         "^88=4321",
         "close(4321)",
         "dead(ELOST)",
         {OVER_WEBSOCKET}},
        {"nothing after Close is read",
         "^88=1000 ^82!01 ^89'x'",
         "close(1000)",
         "dead(ELOST)",
         {OVER_WEBSOCKET}},
        {"a dead stream is not an EOF",
         "Wp1+SYN .acceptp1 Dp1'ab' ^88=1000 .readp1",
         "Wp1+ACK close(1000)",
         "openp1 readablep1 dead(ELOST) p1'ab' readp1:ELOST",
         {OVER_WEBSOCKET}},
        {"EOF of a stream stays EOF",
         "Wp1+SYN .acceptp1 Dp1'ab' Wp1+FIN ^88=1000 .readp1",
         "Wp1+ACK close(1000)",
         "openp1 readablep1 finp1 dead(ELOST) p1'ab' eofp1",
         {OVER_WEBSOCKET}},
        {"our own end",
         "Wp1+SYN .acceptp1 .writep1'ab' .shutdown",
         "Wp1+ACK Dp1'ab' G0=0 close(1000)",
         "openp1 dead(ECLOSED)",
         {OVER_WEBSOCKET}},
        {"drained", ".drain", "G0=0 close(1000)", "dead(EDRAINING)", {OVER_WEBSOCKET}},
        {"yamux is broken", "!0100", "G0=1 close(1002)", "dead(EPROTO)", {OVER_WEBSOCKET}},
        {"silence", ".silent .tick=16000 .tick=16000", "", "dead(ELOST)", {OVER_WEBSOCKET}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(frames_without_payload_are_forgiven_with_time_and_between_payload)
{
    static const rig_options o = {OVER_WEBSOCKET, .limits = {.keepalive_ms = 100000000}};
    rig *r = rig_new(&o);
    REQUIRE(r != NULL);
    r->quiet = r->eager = 1;
    rig_frame(r, WIRE_CREDIT, WIRE_SYN, rig_id(r, 1, 1), 0);
    revdial_engine_accept(r->e, rig_id(r, 1, 1));
    for (int i = 0; i < 5000; i++) {
        rig_data(r, rig_id(r, 1, 1), 1);
        rig_ws_frame(r, 0x89, "x", 1);
    }
    CHECK(!r->dead);
    for (int i = 0; i < 3000; i++) {
        rig_ws_frame(r, 0x8a, "x", 1);
        if (i % 100 == 0) rig_tick(r, 1000);
    }
    CHECK(!r->dead);
    for (int i = 0; i < 1100; i++) rig_ws_frame(r, 0x8a, "x", 1);
    CHECK(r->dead && r->dead_code == REVDIAL_EPROTO);
    CHECK_STR(r->text, "calm: too many frames without payload");
    rig_end(r);
}

TEST(a_length_allocates_nothing)
{
    static const rig_options o = {OVER_WEBSOCKET};
    rig *r = rig_new(&o);
    static const uint8_t head[] = {0x82, 0x7f, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    REQUIRE(r != NULL);
    size_t calls = r->heap.calls;
    rig_feed_raw(r, head, sizeof head);
    CHECK(!r->dead);
    CHECK_INT(r->heap.calls, calls);
    rig_end(r);
}

TEST(an_idle_session_holds_no_buffer_for_masks)
{
    for (int role = REVDIAL_ROLE_PROXY; role <= REVDIAL_ROLE_BACKEND; role++) {
        rig_options o = {OVER_WEBSOCKET, .role = role, .limits = {.keepalive_ms = 100000000}};
        rig *r = rig_new(&o);
        REQUIRE(r != NULL);
        rig_tick(r, 5000);
        rig_tick(r, 5000);
        size_t idle = r->heap.live_bytes;
        CHECK(idle < 12000);
        script_run(r, "Wp1+SYN Dp1#3000 .readp1 .writep1#3000 .closep1 Wp1+FIN");
        CHECK(r->heap.live_bytes > 65536);
        rig_tick(r, 5000);
        rig_tick(r, 5000);
        CHECK_INT(r->heap.live_bytes, idle);
        rig_end(r);
    }
}

// A reader may receive these bytes where it wants them: they must be payload and nothing else.
TEST(what_is_expected_is_payload_that_is_not_masked_and_ends_with_its_frame)
{
    for (int role = REVDIAL_ROLE_PROXY; role <= REVDIAL_ROLE_BACKEND; role++) {
        rig_options o = {OVER_WEBSOCKET, .role = role};
        rig *r = rig_new(&o);
        REQUIRE(r != NULL);
        uint32_t id = rig_id(r, 1, 1);
        uint8_t head[12] = {0, 0, 0, 0, 0, 0, 0, (uint8_t)id, 0, 0, 3, 0xe8}, frame[20];
        int is_plain = role == REVDIAL_ROLE_BACKEND;
        rig_frame(r, WIRE_CREDIT, WIRE_SYN, id, 0);
        revdial_engine_accept(r->e, id);
        r->eager = 1;
        rig_ws_frame(r, 0x82, head, sizeof head);
        CHECK_INT(revdial_engine_expected(r->e, id), 0);  // a header of WebSocket comes next
        memset(frame, 0, sizeof frame);
        frame[0] = 0x82;
        frame[1] = (uint8_t)(is_plain ? 100 : 100 | 0x80);
        rig_feed_raw(r, frame, is_plain ? 2 : 6);
        CHECK_INT(revdial_engine_expected(r->e, id), is_plain ? 100 : 0);
        rig_feed_raw(r, head, 1);
        CHECK_INT(revdial_engine_expected(r->e, id), is_plain ? 99 : 0);
        rig_end(r);
    }
}

// ---- what goes out

// A carrier that has taken n patterned bytes of output, and the frames that came out.
static size_t frame_of(rvd_ws *w, size_t n, uint8_t *out, size_t size)
{
    static uint8_t bytes[70000];
    struct iovec in = {bytes, n}, iov[4];
    size_t len = 0;
    for (size_t i = 0; i < n; i++) bytes[i] = rig_pattern(1, 0, i);
    rvd_ws_pong_put(w);
    if (w->is_client) CHECK_INT(rvd_ws_gather(w, &in, 1), n);
    rvd_ws_data_put(w, n);
    for (int count; (count = rvd_ws_show(w, iov, 4)) > 0;)
        for (int i = 0; i < count; i++) {
            if (len + iov[i].iov_len > size) abort();
            memcpy(out + len, iov[i].iov_base, iov[i].iov_len);
            len += iov[i].iov_len;
            rvd_ws_sent(w, iov[i].iov_len);
        }
    if (!w->is_client) rvd_ws_sent(w, n);
    return len;
}

TEST(lengths_are_written_in_the_fewest_bytes)
{
    static const struct {
        size_t n, head;
        uint8_t bytes[10];
    } rows[] = {{1, 2, {0x82, 1}},
                {125, 2, {0x82, 125}},
                {126, 4, {0x82, 126, 0, 126}},
                {256, 4, {0x82, 126, 1, 0}},  // RFC 6455 section 5.7, as the next but one
                {65535, 4, {0x82, 126, 255, 255}},
                {65536, 10, {0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0}}};
    static uint8_t out[70000];
    rvd_heap heap = {NULL, NULL, 0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int is_client = 0; is_client < 2; is_client++) {
            rvd_ws *w = rvd_ws_new(&heap, is_client, 7, &(int64_t){0});
            uint8_t want[10];
            memcpy(want, rows[i].bytes, sizeof want);
            if (is_client) want[1] |= 0x80;
            size_t len = frame_of(w, rows[i].n, out, sizeof out), head = rows[i].head;
            CHECK(memcmp(out, want, head) == 0);
            CHECK_INT(len, is_client ? head + 4 + rows[i].n : head);
            for (size_t k = 0; is_client && k < rows[i].n; k++)
                if ((out[head + 4 + k] ^ out[head + k % 4]) != rig_pattern(1, 0, k)) {
                    test_fail(__FILE__, __LINE__, "%zu bytes: byte %zu", rows[i].n, k);
                    break;
                }
            rvd_ws_free(w);
        }
    CHECK_INT(heap.live_bytes, 0);
}

TEST(each_frame_has_a_key_that_only_the_seed_tells)
{
    enum { FRAMES = 4000 };
    static uint32_t keys[2][FRAMES];
    uint8_t out[64];
    unsigned same = 0, bits[32] = {0};
    rvd_heap heap = {NULL, NULL, 0};
    for (int seed = 0; seed < 2; seed++) {
        rvd_ws *w = rvd_ws_new(&heap, 1, (uint64_t)seed, &(int64_t){0});
        for (int i = 0; i < FRAMES; i++) {
            frame_of(w, 1, out, sizeof out);
            memcpy(&keys[seed][i], out + 2, 4);
            for (int b = 0; b < 32; b++) bits[b] += keys[seed][i] >> b & 1;
        }
        rvd_ws_free(w);
    }
    for (int i = 0; i < FRAMES; i++) {
        same += keys[0][i] == keys[1][i];
        for (int k = 0; k < i; k++) same += keys[0][i] == keys[0][k];
    }
    CHECK(same <= 2);  // 4000 of 2^32: a pair of equals once in 500 runs
    for (int b = 0; b < 32; b++) CHECK(bits[b] > FRAMES - 300 && bits[b] < FRAMES + 300);
}

TEST(masking_does_not_mind_where_it_begins)
{
    static const uint8_t key[4] = {0x37, 0xfa, 0x21, 0x3d};
    uint8_t in[64], out[64];
    for (size_t i = 0; i < sizeof in; i++) in[i] = (uint8_t)(i * 5);
    for (size_t at = 0; at < 9; at++)
        for (size_t len = 0; len <= 40; len++)
            for (size_t skew = 0; skew < 8; skew++) {
                rvd_ws_mask(out + skew, in + 3, len, key, at);
                for (size_t i = 0; i < len; i++)
                    if (out[skew + i] != (in[3 + i] ^ key[(at + i) % 4]))
                        test_fail(__FILE__, __LINE__, "at %zu, %zu of %zu", at, i, len);
            }
}

// Sends in pieces of at most `most` bytes through at most `vectors` vectors, while more is written.
static void trickle(rig *r, size_t most, int vectors)
{
    struct iovec iov[8];
    int n;
    for (int i = 0; (n = revdial_engine_output(r->e, iov, vectors)) > 0; i++) {
        size_t take = iov[0].iov_len < most ? iov[0].iov_len : most;
        if (i % 3 == 0) {  // shown, and not taken at all
            revdial_engine_sent(r->e, 0);
            n = revdial_engine_output(r->e, iov, vectors);
            take = n ? (iov[0].iov_len < most ? iov[0].iov_len : most) : 0;
        }
        judge_out(&r->wire, iov[0].iov_base, take);
        revdial_engine_sent(r->e, take);
        rig_drain(r);
        if (i < 20) revdial_engine_write(r->e, rig_id(r, 1, 1), "0123456789", 10);
        if (i == 7) rig_ws_frame(r, 0x89, "ping", 4);
        if (i == 9) revdial_engine_end_write(r->e, rig_id(r, 1, 1));
        if (i == 11) rig_frame(r, WIRE_PING, WIRE_SYN, 0, 5);
    }
}

TEST(a_socket_that_takes_a_few_bytes_at_a_time_gets_whole_frames)
{
    for (int role = REVDIAL_ROLE_PROXY; role <= REVDIAL_ROLE_BACKEND; role++)
        for (size_t most = 1; most < 20; most += 3)
            for (int vectors = 1; vectors < 4; vectors++) {
                rig_options o = {OVER_WEBSOCKET, .role = role};
                rig *r = rig_new(&o);
                REQUIRE(r != NULL);
                rig_frame(r, WIRE_CREDIT, WIRE_SYN, rig_id(r, 1, 1), 0);
                revdial_engine_accept(r->e, rig_id(r, 1, 1));
                r->held = 1;
                trickle(r, most, vectors);
                judge_rest(&r->wire);
                CHECK(strstr(rig_out(r), "pong'ping'") != NULL);
                CHECK(strstr(rig_out(r), "Wp1+FIN") != NULL);
                CHECK(r->wire.pongs == 1);
                rig_end(r);
            }
}

TEST(no_frame_is_over_65536_bytes)
{
    for (int role = REVDIAL_ROLE_PROXY; role <= REVDIAL_ROLE_BACKEND; role++) {
        rig_options o = {OVER_WEBSOCKET, .role = role};
        rig *r = rig_new(&o);
        REQUIRE(r != NULL);
        script_run(r, "Wp1+SYN .hold .writep1#250000 .flow .tick=1");
        CHECK_INT(r->wire.ws_out.largest, 65536);
        CHECK_INT(r->wire.out_data_bytes, 250000);
        rig_end(r);
    }
}

// ---- two ends

static int pair_over_websocket(rig_pair *p, const rig_options *proxy, const rig_options *backend)
{
    rig_options a = *proxy, b = *backend;
    a.carrier = b.carrier = REVDIAL_CARRIER_WEBSOCKET;
    return pair_new(p, &a, &b);
}

TEST(two_engines_talk_over_WebSocket_in_pieces_of_any_size)
{
    static const rig_options plain = {0};
    static uint8_t big[300000];
    for (size_t chunk = 0; chunk < 40; chunk += 13) {
        rig_pair p;
        revdial_dial_opts opts = {.target = "t:1"};
        size_t sent = 0, got = 0;
        REQUIRE(pair_over_websocket(&p, &plain, &plain));
        p.chunk = chunk ? chunk : 0;
        CHECK_INT(revdial_engine_open(p.proxy->e, &opts, NULL), 1);
        pair_pump(&p);
        CHECK_INT(revdial_engine_accept(p.backend->e, 1), 0);
        for (size_t i = 0; i < sizeof big; i++) big[i] = (uint8_t)(i * 7 + i / 251);
        size_t total = chunk ? 20000 : sizeof big;
        while (got < total) {
            uint8_t buf[5000];
            ptrdiff_t n = revdial_engine_write(p.proxy->e, 1, big + sent, total - sent);
            REQUIRE(n >= 0);
            sent += (size_t)n;
            pair_pump(&p);
            while ((n = revdial_engine_read(p.backend->e, 1, buf, sizeof buf)) > 0) {
                CHECK(memcmp(buf, big + got, (size_t)n) == 0);
                CHECK_INT(revdial_engine_write(p.backend->e, 1, buf, (size_t)n), n);
                got += (size_t)n;
                pair_pump(&p);
                while (revdial_engine_read(p.proxy->e, 1, buf, sizeof buf) > 0) {
                }
            }
        }
        revdial_engine_info info;
        revdial_engine_get_info(p.proxy->e, &info);
        CHECK_INT(info.carrier, REVDIAL_CARRIER_WEBSOCKET);
        revdial_engine_terminate(p.backend->e);
        pair_pump(&p);
        CHECK_INT(p.proxy->dead_code, REVDIAL_EDRAINING);
        CHECK(p.backend->wire.ws_out.over && p.proxy->wire.ws_out.over);  // Close both ways
        pair_end(&p);
    }
}

// Returns 1 if a dial and an echo worked.
static int echo_once(rig_pair *p)
{
    char text[64];
    revdial_dial_opts opts = {.target = "t:1"};
    int ok = revdial_engine_open(p->proxy->e, &opts, NULL) == 1;
    ok &= revdial_engine_write(p->proxy->e, 1, "hello", 5) == 5;
    rig_ws_frame(p->backend, 0x89, "x", 1);
    pair_pump(p);
    ok &= revdial_engine_read(p->backend->e, 1, text, sizeof text) == 5;
    ok &= revdial_engine_write(p->backend->e, 1, text, 5) == 5;
    pair_pump(p);
    ok &= revdial_engine_read(p->proxy->e, 1, text, sizeof text) == 5;
    revdial_engine_terminate(p->proxy->e);
    pair_pump(p);
    return ok;
}

TEST(any_allocation_may_fail_at_either_end)
{
    static const rig_options plain = {0};
    size_t calls[2] = {1, 1};
    for (int end = 0; end < 2; end++)
        for (int forever = 0; forever < 2; forever++)
            for (size_t n = 0; n <= calls[end]; n++) {
                rig_options failing = {.fail_at = n, .fail_forever = forever};
                rig_pair p;
                if (!pair_over_websocket(&p, end ? &plain : &failing, end ? &failing : &plain)) {
                    CHECK(n > 0);
                    continue;
                }
                int ok = echo_once(&p);
                if (n == 0) {
                    CHECK(ok);
                    calls[end] = (end ? p.backend : p.proxy)->heap.calls;
                }
                if (!pair_end(&p))
                    test_fail(__FILE__, __LINE__, "end %d, allocation %zu of %zu", end, n,
                              calls[end]);
            }
}

TEST(masks_go_on_in_little_pieces_without_memory_for_large_ones)
{
    for (int role = REVDIAL_ROLE_PROXY; role <= REVDIAL_ROLE_BACKEND; role++) {
        rig_options o = {OVER_WEBSOCKET, .role = role};
        rig *r = rig_new(&o);
        REQUIRE(r != NULL);
        script_run(r, "Wp1+SYN .acceptp1 Dp1#10 .readp1");
        rig_tick(r, 5000);
        rig_tick(r, 5000);  // both buffers have been given back
        r->heap.fail_at = r->heap.calls + 1;
        r->heap.fail_forever = 1;
        r->eager = 1;
        script_run(r, "Dp1#5000 P0+SYN=7");
        CHECK(!r->dead);
        CHECK_INT(r->wire.pongs, 1);
        CHECK_INT(rig_stream_of(r, rig_id(r, 1, 1))->taken, 5010);
        r->heap.fail_at = 0;
        script_run(r, ".writep1#70000");
        judge_rest(&r->wire);
        CHECK_INT(r->wire.out_data_bytes, 70000);
        rig_end(r);
    }
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
