// The negotiated extensions (reset codes, preamble, prompt ACK, drain, windows and stream limits),
// the byte vectors that pin the protocol's sentences, and what happens when memory runs out.
#define REVDIAL_NO_RUNTIME
#define REVDIAL_SELF_CHECK  // the mux checks its invariants at each call
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include <ctype.h>

#include "engine_script.h"

static const revdial_limits no_keepalive = {.keepalive_ms = 100000000};

static size_t live_streams(const rig *r)
{
    revdial_engine_info info;
    revdial_engine_get_info(r->e, &info);
    return info.streams;
}

// ---- extensions

TEST(the_negotiated_window_replaces_the_stock_one)
{
    static const script_case cases[] = {
        {"what we may send",
         "Wp1+SYN .writep1#100000",
         "Wp1+ACK Dp1#65536",
         "openp1 wrotep1=65536",
         {.features = "window=65536, streams=300"}},
        {"what we may send, more",
         "Wp1+SYN .writep1#600000",
         "Wp1+ACK Dp1#524288",
         "openp1 wrotep1=524288",
         {.features = "window=524288"}},
        {"what we take: ours is 65536",
         "Wp1+SYN .acceptp1 Dp1%65537",
         "Wp1+ACK G0=1",
         "openp1 dead(EPROTO)",
         {.features = "window=8192"}},
        {"what we take: ours is 8192",
         "Wp1+SYN .acceptp1 Dp1#8192 .readp1",
         "Wp1+ACK Wp1=8192",
         "openp1 readablep1 p1#8192",
         {.features = "window=262144",
          .limits = {.stream_window = 8192, .stream_window_max = 8192}}},
        {"no window= from the peer: stock",
         "Wp1+SYN .acceptp1 Dp1#262144 .readp1",
         NULL,
         "openp1 readablep1 p1#262144",
         {.features = "rstcode"}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(the_peers_stream_limit_is_kept)
{
    struct {
        const char *features;
        int want;
    } cases[] = {
        {"streams=5", 5}, {"streams=200, promptack", 200}, {NULL, 128}, {"streams=1000", 1000}};
    for (size_t i = 0; i < 4; i++) {
        rig_options o = {.features = cases[i].features, .limits = {.keepalive_ms = 100000000}};
        rig *r = rig_new(&o);
        REQUIRE(r != NULL);
        r->quiet = 1;
        revdial_dial_opts opts = {0};
        int opened = 0;
        while (opened < 3000 && revdial_engine_open(r->e, &opts, NULL) > 0) {
            rig_flush(r);
            opened++;
        }
        if (opened > cases[i].want || opened < (cases[i].want < 128 ? cases[i].want : 128))
            test_fail(__FILE__, __LINE__, "%s: %d opened",
                      cases[i].features ? cases[i].features : "-", opened);
        rig_end(r);
    }
}

// ---- the byte vectors: each sentence of the protocol is played

#ifndef TEST_VECTORS
#define TEST_VECTORS "tests/vectors/"
#endif

typedef struct vector {
    char sentence[512];
    char text[512];  // what stands behind the bytes
    uint8_t bytes[256];
    size_t len;
    int line;
} vector;

// Bytes in hex, in groups. Returns where they end.
static const char *vector_hex(vector *v, const char *at)
{
    v->len = 0;
    for (;;) {
        const char *begin = at;
        unsigned byte;
        while (isxdigit((unsigned char)at[0]) && isxdigit((unsigned char)at[1]) &&
               v->len < sizeof v->bytes) {
            sscanf(at, "%2x", &byte);
            v->bytes[v->len++] = (uint8_t)byte;
            at += 2;
        }
        if (*at != ' ' || at == begin) return begin;
        at++;
    }
}

// The next vector of a file. Returns 0 at its end.
static int vector_next(FILE *f, vector *v)
{
    char line[1024];
    while (fgets(line, sizeof line, f)) {
        v->line++;
        line[strcspn(line, "\n")] = '\0';
        if (line[0] == '#') snprintf(v->sentence, sizeof v->sentence, "%.500s", line + 1);
        if (line[0] == '#' || line[0] == '\0') continue;
        const char *rest = vector_hex(v, line);
        while (*rest == ' ') rest++;
        snprintf(v->text, sizeof v->text, "%.500s", rest);
        return 1;
    }
    return 0;
}

// What stands between two brackets at *at, which moves behind them. NULL if there is none.
static const char *vector_bracket(const char **at, char open, char close, char out[64])
{
    if (**at != open) return NULL;
    const char *end = strchr(*at, close);
    if (!end) return NULL;
    snprintf(out, 64, "%.*s", (int)(end - *at - 1), *at + 1);
    *at = end + 1;
    while (**at == ' ') (*at)++;
    return out;
}

static void frame_vector_play(const vector *v, size_t chunk)
{
    char script[512], features[64], window[64];
    int sent = !strncmp(v->text, "sent-by ", 8);
    const char *at = v->text + (sent ? 8 : 9), *after = strstr(at, " after "), *seen;
    REQUIRE(after != NULL);
    rig_options o = {.role = !strncmp(at, "proxy", 5) ? REVDIAL_ROLE_PROXY : REVDIAL_ROLE_BACKEND,
                     .limits = {.keepalive_ms = 100000000, .stream_window_max = 393216}};
    after += 7;
    o.features = vector_bracket(&after, '[', ']', features);
    if (vector_bracket(&after, '{', '}', window))
        o.limits.stream_window = (uint32_t)atoi(window);
    else
        o.limits.stream_window_max = 262144;
    seen = strstr(after, " seen");
    snprintf(script, sizeof script, "%.*s", seen ? (int)(seen - after) : 500, after);
    rig *r = rig_new(&o);
    REQUIRE(r != NULL);
    r->chunk = chunk;
    script_run(r, strcmp(script, "-") ? script : "");
    if (sent) {
        if (r->raw_len < v->len || memcmp(r->raw + r->raw_len - v->len, v->bytes, v->len) != 0)
            test_fail(TEST_VECTORS "frames.txt", v->line, "not sent at the end of: %s", rig_out(r));
    } else {
        REQUIRE(seen != NULL);
        const char *want = seen + 5 + (seen[5] == ' ');
        r->log.len = 0;
        r->log.s[0] = '\0';
        rig_feed(r, v->bytes, v->len);
        rig_drain(r);
        rig_flush(r);
        if (strcmp(r->log.s, want) != 0)
            test_fail(TEST_VECTORS "frames.txt", v->line, "saw %s", r->log.s);
        CHECK_INT(r->dead && r->dead_code == REVDIAL_EPROTO && r->wire.goaway_out != 2 &&
                      !r->wire.goaway_in,
                  0);
    }
    rig_end(r);
}

TEST(each_sentence_about_frames_is_true_of_its_bytes)
{
    static vector v;
    FILE *f = fopen(TEST_VECTORS "frames.txt", "r");
    int count = 0;
    REQUIRE(f != NULL);
    memset(&v, 0, sizeof v);
    for (; vector_next(f, &v); count++)
        for (size_t chunk = 0; chunk < 4; chunk++) frame_vector_play(&v, chunk);
    fclose(f);
    CHECK(count >= 35);
}

static void feed_body(rig *r, uint32_t id, const void *bytes, size_t n)
{
    rig_frame(r, WIRE_DATA, 0, id, (uint32_t)n);
    rig_feed(r, bytes, n);
    rig_flush(r);
}

// The preamble as the peer's: with or without the stream's first bytes in the same frame.
static void preamble_vector_take(const vector *v, size_t chunk, int with_payload)
{
    rig_options o = {.features = "preamble, rstcode, window=65536"};
    rig *r = rig_new(&o);
    REQUIRE(r != NULL);
    uint8_t bytes[sizeof v->bytes + 2];
    memcpy(bytes, v->bytes, v->len);
    if (with_payload) memcpy(bytes + v->len, "hi", 2);
    r->chunk = chunk;
    uint32_t id = rig_id(r, 1, 1);
    rig_frame(r, WIRE_CREDIT, WIRE_SYN, id, 0);
    feed_body(r, id, bytes, v->len + (with_payload ? 2 : 0));
    rig_stream *s = rig_stream_of(r, id);
    if (s) memcpy(s->fed_text, "hi", 2);
    const char *file = TEST_VECTORS "preamble.txt";
    if (!strncmp(v->text, "means", 5)) {
        const char *want = v->text + 5 + (v->text[5] == ' ');
        script_run(r, ".acceptp1 .readp1");
        if (strcmp(r->meta, want) != 0) test_fail(file, v->line, "it means %s", r->meta);
        if (strcmp(rig_out(r), "Wp1+ACK") != 0) test_fail(file, v->line, "sent %s", rig_out(r));
        CHECK_STR(r->log.s, with_payload ? "openp1 readablep1 p1'hi'" : "openp1 readp1:EAGAIN");
    } else {
        if (strcmp(rig_out(r), "Wp1+RST=4") != 0) test_fail(file, v->line, "sent %s", rig_out(r));
        CHECK_STR(r->log.s, "");
    }
    feed_body(r, id, "rest", 4);  // in flight already: it must not hurt
    CHECK(!r->dead);
    rig_end(r);
}

// The dial that `fields` describes ("target=a:1;timeout_ms=3;k=v;").
static void preamble_vector_send(const vector *v, const char *fields)
{
    static char text[512];
    rig_options o = {.features = "preamble, rstcode"};
    revdial_dial_opts opts = {.timeout_ms = -1};
    revdial_kv meta[8];
    rig *r = rig_new(&o);
    REQUIRE(r != NULL);
    snprintf(text, sizeof text, "%s", fields);
    for (char *at = text, *end; (end = strchr(at, ';')) != NULL; at = end + 1) {
        char *value = strchr(at, '=');
        REQUIRE(value != NULL);
        *end = *value++ = '\0';
        if (!strcmp(at, "target"))
            opts.target = value;
        else if (!strcmp(at, "client"))
            opts.client_addr = value;
        else if (!strcmp(at, "local"))
            opts.local_addr = value;
        else if (!strcmp(at, "timeout_ms"))
            opts.timeout_ms = atoi(value);
        else if (!strcmp(at, "revdial-name"))
            opts.peer_name = value;
        else
            meta[opts.meta_count++] = (revdial_kv){at, value};
    }
    opts.meta = meta;
    CHECK_INT(revdial_engine_open(r->e, &opts, NULL), 2);
    rig_flush(r);
    size_t all = 2 * WIRE_HEADER + v->len;
    uint8_t head[2 * WIRE_HEADER];
    wire_put(head, &(wire_frame){0, WIRE_CREDIT, WIRE_SYN, 2, 0});
    wire_put(head + WIRE_HEADER, &(wire_frame){0, WIRE_DATA, 0, 2, (uint32_t)v->len});
    if (r->raw_len < all || memcmp(r->raw + r->raw_len - all, head, sizeof head) != 0 ||
        memcmp(r->raw + r->raw_len - v->len, v->bytes, v->len) != 0) {
        test_fail(TEST_VECTORS "preamble.txt", v->line, "it was not sent so");
        for (size_t i = 0; i < v->len && r->raw_len >= all; i++)
            fprintf(stderr, "%02x", r->raw[r->raw_len - v->len + i]);
        fputc('\n', stderr);
    }
    rig_end(r);
}

TEST(each_sentence_about_preambles_is_true_of_its_bytes)
{
    static vector v;
    FILE *f = fopen(TEST_VECTORS "preamble.txt", "r");
    int count = 0;
    REQUIRE(f != NULL);
    memset(&v, 0, sizeof v);
    for (; vector_next(f, &v); count++) {
        const char *dialling = strstr(v.text, "dialling ");
        int before = test_failures;
        if (dialling) preamble_vector_send(&v, dialling + 9);
        for (size_t way = 0; !dialling && way < 8 && test_failures == before; way++)
            preamble_vector_take(&v, way / 2, way & 1);
    }
    fclose(f);
    CHECK(count >= 25);
}

TEST(U49_bytes_may_lie_at_any_address)
{
    for (size_t off = 0; off < 8; off++) {
        uint64_t room[64];
        uint8_t *at = (uint8_t *)room + off;
        rig *r = rig_new(&(rig_options){0});
        REQUIRE(r != NULL);
        uint32_t id = rig_id(r, 1, 1);
        wire_put(at, &(wire_frame){0, WIRE_CREDIT, WIRE_SYN, id, 0});
        wire_put(at + WIRE_HEADER, &(wire_frame){0, WIRE_DATA, 0, id, 9});
        memcpy(at + 2 * WIRE_HEADER, "unaligned", 9);
        rig_feed(r, at, 2 * WIRE_HEADER + 9);
        memset(room, 0, sizeof room);
        CHECK_INT(revdial_engine_read(r->e, id, at, 9), 9);
        CHECK(memcmp(at, "unaligned", 9) == 0);
        CHECK_INT(revdial_engine_write(r->e, id, at, 9), 9);
        rig_flush(r);
        judge_stream *s = judge_find(&r->wire, id);
        CHECK(s && s->data_out == 9);
        rig_end(r);
    }
}

TEST(a_preamble_may_come_in_many_frames)
{
    rig_options o = {.features = "preamble, rstcode"};
    rig *r = rig_new(&o);
    REQUIRE(r != NULL);
    static const char text[] = "\r\n\r\n\0\r\nQUIT\n\x20\0\0\x0d\2\0\3a:1\xe0\0\4\0\0\1\x2c";
    const char *bytes = text;
    size_t n = sizeof text - 1;
    uint32_t id = rig_id(r, 1, 1);
    rig_frame(r, WIRE_CREDIT, WIRE_SYN, id, 0);
    for (size_t i = 0; i < n; i++) {
        CHECK_INT(r->counts[REVDIAL_EV_OPEN], 0);
        feed_body(r, id, bytes + i, 1);
    }
    CHECK_INT(r->counts[REVDIAL_EV_OPEN], 1);
    CHECK_STR(r->meta, "target=a:1;timeout_ms=300;");
    rig_end(r);
}

TEST(a_preamble_with_all_its_room_is_read)
{
    rig_options o = {.features = "preamble, rstcode"};
    rig *r = rig_new(&o);
    REQUIRE(r != NULL);
    static uint8_t bytes[4096] = "\r\n\r\n\0\r\nQUIT\n\x20";
    bytes[14] = 4080 >> 8;
    bytes[15] = 4080 & 255;
    bytes[16] = 0xE1;
    bytes[17] = (4080 - 3) >> 8;
    bytes[18] = (4080 - 3) & 255;
    memset(bytes + 19, 'v', sizeof bytes - 19);
    bytes[20] = '=';
    uint32_t id = rig_id(r, 1, 1);
    rig_frame(r, WIRE_CREDIT, WIRE_SYN, id, 0);
    feed_body(r, id, bytes, sizeof bytes);
    CHECK_STR(r->log.s, "openp1");
    rig_end(r);
}

TEST(a_preamble_that_does_not_come_is_not_waited_for)
{
    rig_options o = {.features = "preamble, rstcode"};
    rig *r = rig_new(&o);
    REQUIRE(r != NULL);
    uint32_t id = rig_id(r, 1, 1);
    rig_frame(r, WIRE_CREDIT, WIRE_SYN, id, 0);
    feed_body(r, id, "\r\n\r\n", 4);
    rig_tick(r, 4900);
    CHECK_STR(rig_out(r), "");
    rig_tick(r, 101);
    CHECK_STR(rig_out(r), "Wp1+RST=5");
    CHECK_STR(r->log.s, "");  // the application never heard of it
    CHECK(!r->dead);
    CHECK_INT(live_streams(r), 0);
    rig_end(r);
}

TEST(fin_or_reset_before_the_preamble_is_whole)
{
    static const char *const scripts[] = {"Wp1+SYN Wp1+FIN", "Wp1+SYN Wp1+RST",
                                          "Wp1+SYN Dp1+FIN'ab'", "Wp1+SYN+FIN"};
    for (size_t i = 0; i < 4; i++) {
        rig_options o = {.features = "preamble, rstcode"};
        rig *r = rig_new(&o);
        REQUIRE(r != NULL);
        script_run(r, scripts[i]);
        rig_tick(r, 6000);
        CHECK_INT(r->counts[REVDIAL_EV_OPEN], 0);
        CHECK_INT(live_streams(r), 0);
        CHECK(!r->dead);
        rig_end(r);
    }
}

TEST(a_preamble_has_a_frame_to_itself)
{
    rig_options o = {.features = "preamble", .limits = {.keepalive_ms = 100000000}};
    rig *r = rig_new(&o);
    REQUIRE(r != NULL);
    script_run(r, ".hold .open .writem1'ab' .writem1'cd' .flow");
    CHECK_INT(r->wire.out_frames[WIRE_DATA], 2);
    rig_end(r);
}

// 4 MiB of them may be unfinished at a time.
TEST(unfinished_preambles_do_not_keep_newcomers_out)
{
    enum { FLOOD = 1200, WHOLE = 4096, CUT = 3000 };
    static const uint8_t head[16] = "\r\n\r\n\0\r\nQUIT\n\x20\0\x0f\xf0";
    static uint8_t bytes[WHOLE];
    rig_options o = {.features = "preamble, rstcode, window=65536",
                     .limits = {.max_streams = 2 * FLOOD, .keepalive_ms = 100000000}};
    rig *r = rig_new(&o);
    REQUIRE(r != NULL);
    r->quiet = 1;
    memcpy(bytes, head, sizeof head);
    for (uint32_t n = 1; n <= FLOOD; n++) {
        rig_frame(r, WIRE_CREDIT, WIRE_SYN, rig_id(r, 1, n), 0);
        feed_body(r, rig_id(r, 1, n), bytes, CUT);
    }
    CHECK(r->wire.out_rst > 0);
    CHECK(judge_find(&r->wire, rig_id(r, 1, 1))->rst_out);
    CHECK(!judge_find(&r->wire, rig_id(r, 1, FLOOD))->rst_out);
    CHECK(r->heap.live_bytes < (6 << 20));
    CHECK(!r->dead);
    rig_end(r);
}

TEST(what_a_dial_says_arrives_at_the_other_end)
{
    static const rig_options plain = {0};
    rig_pair p;
    REQUIRE(pair_new(&p, &plain, &plain));
    revdial_kv meta[] = {{"traceparent", "00-abc-1"}, {"empty", ""}};
    revdial_dial_opts opts = {.target = "db.internal:5432",
                              .client_addr = "192.0.2.7:4711",
                              .local_addr = "198.51.100.1:443",
                              .meta = meta,
                              .meta_count = 2,
                              .timeout_ms = 2500};
    int64_t id = revdial_engine_open(p.proxy->e, &opts, NULL);
    CHECK_INT(id, 1);
    CHECK_INT(revdial_engine_write(p.proxy->e, 1, "GET", 3), 3);
    pair_pump(&p);
    CHECK(strstr(p.backend->meta, "target=db.internal:5432;") != NULL);
    CHECK(strstr(p.backend->meta, "client=192.0.2.7:4711;") != NULL);
    CHECK(strstr(p.backend->meta, "local=198.51.100.1:443;") != NULL);
    CHECK(strstr(p.backend->meta, "traceparent=00-abc-1;") != NULL);
    CHECK(strstr(p.backend->meta, "empty=;") != NULL);
    CHECK(strstr(p.backend->meta, "id=") != NULL);
    CHECK(strstr(p.backend->meta, "timeout_ms=") != NULL);
    char text[8];
    CHECK_INT(revdial_engine_read(p.backend->e, 1, text, sizeof text), 3);
    CHECK_INT(p.proxy->counts[REVDIAL_EV_ACCEPTED], 0);
    pair_pump(&p);
    CHECK_INT(p.proxy->counts[REVDIAL_EV_ACCEPTED], 1);
    pair_end(&p);
}

// Behind the preamble, which has a frame to itself.
TEST(early_bytes_go_out_with_the_opening_and_are_there_before_the_answer)
{
    static const rig_options plain = {0};
    static uint8_t bytes[REVDIAL_EARLY_MAX + 1], got[REVDIAL_EARLY_MAX];
    rig_pair p;
    REQUIRE(pair_new(&p, &plain, &plain));
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)(i * 7);
    revdial_dial_opts opts = {.target = "a:1", .early = bytes, .early_len = REVDIAL_EARLY_MAX};
    CHECK_INT(revdial_engine_open(p.proxy->e, &opts, NULL), 1);
    revdial_flow_info ledger;
    CHECK_INT(revdial_engine_get_flow(p.proxy->e, 1, &ledger), 0);
    CHECK(ledger.sent >= REVDIAL_EARLY_MAX);
    CHECK_INT(revdial_engine_write(p.proxy->e, 1, "more", 4), 4);
    pair_pump(&p);
    CHECK_INT(p.proxy->counts[REVDIAL_EV_ACCEPTED], 0);
    CHECK_INT(revdial_engine_read(p.backend->e, 1, got, sizeof got), REVDIAL_EARLY_MAX);
    CHECK(memcmp(got, bytes, sizeof got) == 0);
    CHECK_INT(revdial_engine_read(p.backend->e, 1, got, sizeof got), 4);
    opts.early_len++;
    CHECK_INT(revdial_engine_open(p.proxy->e, &opts, NULL), REVDIAL_EINVAL);
    opts = (revdial_dial_opts){.early_len = 1};
    CHECK_INT(revdial_engine_open(p.proxy->e, &opts, NULL), REVDIAL_EINVAL);
    CHECK_INT(live_streams(p.proxy), 1);
    pair_end(&p);
}

TEST(the_largest_preamble_and_the_most_early_bytes_fit_in_the_least_window)
{
    static uint8_t bytes[REVDIAL_EARLY_MAX], got[REVDIAL_EARLY_MAX];
    static char value[4000];
    rig_options proxy = {0}, backend = {.limits = {.stream_window = 8192}};
    rig_pair p;
    REQUIRE(pair_new(&p, &proxy, &backend));
    memset(value, 'v', sizeof value - 1);
    revdial_kv meta = {"k", value};
    revdial_dial_opts opts = {
        .meta = &meta, .meta_count = 1, .early = bytes, .early_len = sizeof bytes};
    memset(bytes, 'e', sizeof bytes);
    CHECK_INT(revdial_engine_open(p.proxy->e, &opts, NULL), 1);
    revdial_flow_info ledger;
    CHECK_INT(revdial_engine_get_flow(p.proxy->e, 1, &ledger), 0);
    CHECK(ledger.send_credit < 128);
    pair_pump(&p);
    CHECK_INT(revdial_engine_read(p.backend->e, 1, got, sizeof got), REVDIAL_EARLY_MAX);
    CHECK(memcmp(got, bytes, sizeof got) == 0);
    pair_pump(&p);
    CHECK_INT(p.proxy->counts[REVDIAL_EV_ACCEPTED], 1);
    pair_end(&p);
}

TEST(a_dial_that_does_not_fit_or_cannot_be_said_is_refused_here)
{
    static const rig_options plain = {0};
    rig_pair p;
    REQUIRE(pair_new(&p, &plain, &plain));
    static char big[5000];
    memset(big, 'x', sizeof big - 1);
    revdial_dial_opts opts = {.target = big};
    CHECK_INT(revdial_engine_open(p.proxy->e, &opts, NULL), REVDIAL_EINVAL);
    revdial_kv meta = {"k", big};
    opts = (revdial_dial_opts){.meta = &meta, .meta_count = 1};
    CHECK_INT(revdial_engine_open(p.proxy->e, &opts, NULL), REVDIAL_EINVAL);
    meta.value = "v";
    opts.meta_count = (size_t)-1;
    CHECK_INT(revdial_engine_open(p.proxy->e, &opts, NULL), REVDIAL_EINVAL);
    CHECK_INT(live_streams(p.proxy), 0);
    pair_end(&p);
    rig_options plain_rig = {.limits = no_keepalive};
    rig *r = rig_new(&plain_rig);
    REQUIRE(r != NULL);
    opts = (revdial_dial_opts){.target = "a:1"};
    CHECK_INT(revdial_engine_open(r->e, &opts, NULL), REVDIAL_EINVAL);
    CHECK_STR(rig_out(r), "");
    rig_end(r);
}

TEST(drain_with_a_stock_peer_says_goaway_when_the_last_stream_has_ended)
{
    static const script_case cases[] = {
        {"none running", ".drain .open", "G0=0", "dead(EDRAINING) open:ECLOSED", {0}},
        {"none may open",
         ".open Wm1+ACK .drain .open",
         "Wm1+SYN",
         "m1 acceptedm1 open:EDRAINING",
         {0}},
        {"one running",
         "Wp1+SYN .acceptp1 .drain Dp1'x' .readp1 .writep1'y' .finp1 Wp1+FIN .closep1",
         "Wp1+ACK Dp1'y' Wp1+FIN G0=0",
         "openp1 readablep1 p1'x' finp1 dead(EDRAINING)",
         {0}},
        {"drain, twice", ".drain .drain", "G0=0", "dead(EDRAINING)", {0}},
        {"with the feature: at once",
         "Wp1+SYN .acceptp1 .drain Dp1'x' .readp1 .writep1'y'",
         "Wp1+ACK G0=0 Dp1'y'",
         "openp1 readablep1 p1'x'",
         {.features = "drain"}},
        {"63: streams in flight are refused in a way that is safe to retry",
         ".open .drain Wp1+SYN Wp2+SYN",
         "Wm1+SYN G0=0 Wp1+RST=12 Wp2+RST=12",
         "m1",
         {.features = "drain, rstcode"}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(promptack_means_accepted)
{
    static const script_case cases[] = {
        {"only accept says ACK",
         "Wp1+SYN P0+SYN=1 .acceptp1",
         "P0+ACK=1 Wp1+ACK",
         "openp1",
         {.features = "promptack, rstcode"}},
        {"a refusal says why",
         "Wp1+SYN .rstp1=7 .closep1",
         "Wp1+RST=7",
         "openp1",
         {.features = "promptack, rstcode"}},
        {"and arrives",
         ".open Wm1+RST=11",
         "Wm1+SYN",
         "m1 resetm1(11)",
         {.features = "promptack, rstcode"}},
    };
    SCRIPT_CHECK_ALL(cases);
}

// ---- memory runs out: the n-th request fails, once or from there on, for every n

static const char *const sweep_scripts[] = {
    ".open .open Wm1+ACK Dm1#3000 .writem1#3000 .readm1 .finm1 Wm1+FIN .readm1 .closem1 Wm2+RST "
    ".closem2",
    "Wp1+SYN Dp1#20000 .acceptp1 .writep1#70000 .readp1=10000 Wp2+SYN Dp2'abc' Wp2+FIN .readp2 "
    ".writep2#100 .closep2 .closep1 Wp1+FIN P0+SYN=1 G0=0 .open",
    "Wp1+SYN .hold .writep1#200000 .rstp1=2 .flow .tick=10 .closep1 .drain Wp2+SYN .shutdown",
    "100*Wp1++ 60*Wp1+SYN++ .acceptp1 .acceptp2 .acceptp60 Dp1'x' Dp2'y' Dp60'z' .tick=40000",
};

static void sweep_run(rig *r, int which)
{
    r->quiet = 1;
    if (which < 4) script_run(r, sweep_scripts[which]);
}

static void sweep_one(int which, const char *features, size_t chunk)
{
    size_t calls = 1;
    for (int forever = 0; forever < 2; forever++)
        for (size_t n = 0; n <= calls; n++) {
            rig_options o = {.role = which & 1 ? REVDIAL_ROLE_PROXY : REVDIAL_ROLE_BACKEND,
                             .features = features,
                             .fail_at = n,
                             .fail_forever = forever};
            rig *r = rig_new(&o);
            if (!r) {
                CHECK(n > 0);
                continue;  // rig_new() has freed what there was
            }
            r->chunk = chunk;
            sweep_run(r, which);
            if (n == 0) calls = r->heap.calls;
            CHECK(n > 0 || !r->dead || which == 2);
            // In the first scenario the peer answers an open that may have failed here.
            if (r->dead && which != 2 && which != 0) CHECK_INT(r->dead_code, REVDIAL_ENOMEM);
            if (!rig_end(r))
                test_fail(__FILE__, __LINE__, "scenario %d, allocation %zu of %zu fails%s", which,
                          n, calls, forever ? " and all after it" : "");
        }
}

TEST(when_any_allocation_fails_the_stream_or_the_session_fails_cleanly)
{
    for (int which = 0; which < 4; which++)
        for (size_t chunk = 0; chunk < 2; chunk++) {
            sweep_one(which, NULL, chunk);
            if (which != 3) sweep_one(which, "rstcode, drain, promptack, window=65536", chunk);
        }
}

// A dial from proxy to backend with a preamble, an echo, half-close both ways, a refused stream.
// Returns 1 if all of it worked.
static int sweep_pair_scenario(rig_pair *p)
{
    revdial_kv meta = {"k", "v"};
    revdial_dial_opts opts = {.target = "t:1", .meta = &meta, .meta_count = 1};
    char text[64];
    int ok = revdial_engine_open(p->proxy->e, &opts, NULL) == 1;
    ok &= revdial_engine_write(p->proxy->e, 1, "hello", 5) == 5;
    pair_pump(p);
    ok &= revdial_engine_read(p->backend->e, 1, text, sizeof text) == 5;
    ok &= revdial_engine_write(p->backend->e, 1, text, 5) == 5;
    revdial_engine_end_write(p->proxy->e, 1);
    pair_pump(p);
    ok &= revdial_engine_read(p->proxy->e, 1, text, sizeof text) == 5;
    ok &= revdial_engine_read(p->backend->e, 1, text, sizeof text) == 0;
    revdial_engine_close(p->backend->e, 1);
    pair_pump(p);
    ok &= revdial_engine_read(p->proxy->e, 1, text, sizeof text) == 0;
    revdial_engine_close(p->proxy->e, 1);
    ok &= revdial_engine_open(p->proxy->e, &opts, NULL) == 3;
    pair_pump(p);
    revdial_engine_reset(p->backend->e, 3, REVDIAL_RESET_FORBIDDEN);
    revdial_engine_close(p->backend->e, 3);
    pair_pump(p);
    ok &= p->proxy->counts[REVDIAL_EV_RESET] == 1 && p->proxy->last.code == REVDIAL_RESET_FORBIDDEN;
    revdial_engine_close(p->proxy->e, 3);
    revdial_engine_drain(p->proxy->e);
    pair_pump(p);
    revdial_engine_terminate(p->backend->e);
    pair_pump(p);
    return ok && !p->proxy->wire.failures && !p->backend->wire.failures;
}

TEST(a_handshake_and_a_dial_survive_any_failing_allocation_at_either_end)
{
    static const rig_options plain = {0};
    size_t calls[2] = {1, 1};
    for (int end = 0; end < 2; end++)
        for (int forever = 0; forever < 2; forever++)
            for (size_t n = 0; n <= calls[end]; n++) {
                rig_options failing = {.fail_at = n, .fail_forever = forever};
                rig_pair p;
                if (!pair_new(&p, end ? &plain : &failing, end ? &failing : &plain)) {
                    CHECK(n > 0);
                    continue;
                }
                int ok = sweep_pair_scenario(&p);
                if (n == 0) {
                    CHECK(ok);
                    calls[end] = (end ? p.backend : p.proxy)->heap.calls;
                }
                if (!pair_end(&p))
                    test_fail(__FILE__, __LINE__, "end %d, allocation %zu of %zu", end, n,
                              calls[end]);
            }
    rig_pair again;
    REQUIRE(pair_new(&again, &plain, &plain));
    CHECK(sweep_pair_scenario(&again));
    pair_end(&again);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
