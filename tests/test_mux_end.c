// How streams and sessions end, as the mux sees it: rows 25 to 36 of the decision table (yamux
// study, section 2.2), and each frame in each state. Every case runs in both roles, whole, one byte
// at a time and cut in two at every byte, and a strict judge reads all that comes out.
#define REVDIAL_NO_RUNTIME
#define REVDIAL_SELF_CHECK  // the mux checks its invariants at each call
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include "engine_script.h"

TEST(row_25_fin)
{
    static const script_case cases[] = {
        {"row 25, 17: EOF after the bytes",
         "Wp1+SYN .acceptp1 Dp1'abc' Wp1+FIN .readp1",
         "Wp1+ACK",
         "openp1 readablep1 finp1 p1'abc' eofp1",
         {0}},
        {"row 25, 26: FIN on the data frame",
         "Wp1+SYN .acceptp1 Dp1+FIN'abc' .readp1",
         "Wp1+ACK",
         "openp1 readablep1 finp1 p1'abc' eofp1",
         {0}},
        {"row 25: FIN on an empty data frame",
         "Wp1+SYN .acceptp1 Dp1'abc' Dp1+FIN .readp1",
         "Wp1+ACK",
         "openp1 readablep1 finp1 p1'abc' eofp1",
         {0}},
        {"row 25 over the matrix: FIN again",
         "Wp1+SYN .acceptp1 20*Wp1+FIN .readp1 .writep1'x'",
         "Wp1+ACK Dp1'x'",
         "openp1 finp1 eofp1",
         {0}},
        {"row 25, 31: FIN on a window update with credit",
         "Wp1+SYN .acceptp1 Wp1+FIN=5000 .readp1 .writep1#300000",
         "Wp1+ACK Dp1#267144",
         "openp1 finp1 eofp1 wrotep1=267144",
         {0}},
        {"row 25: before the accept",
         "Wp1+SYN Dp1'x' Wp1+FIN .readp1",
         "Wp1+ACK",
         "openp1 readablep1 finp1 p1'x' eofp1",
         {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(row_26_to_28_reset)
{
    static const script_case cases[] = {
        {"row 26, 27: RST after FIN: all bytes, and EOF",
         "Wp1+SYN .acceptp1 Dp1'abc' Wp1+FIN Wp1+RST .readp1 .writep1'x'",
         "Wp1+ACK",
         "openp1 readablep1 finp1 resetp1(0) p1'abc' eofp1 writep1:ERESET",
         {0}},
        {"row 27, 28: RST without FIN: the bytes, then the error",
         "Wp1+SYN .acceptp1 Dp1'abc' Wp1+RST .readp1 .readp1 .writep1'x'",
         "Wp1+ACK",
         "openp1 readablep1 resetp1(0) p1'abc' readp1:ERESET readp1:ERESET writep1:ERESET",
         {0}},
        {"row 27, C56: RST on a data frame: its bytes count",
         "Wp1+SYN .acceptp1 Dp1+RST'ab' .readp1",
         "Wp1+ACK",
         "openp1 readablep1 resetp1(0) p1'ab' readp1:ERESET",
         {0}},
        {"row 27, C56: and its length",
         "Wp1+SYN .acceptp1 Dp1+RST%262145",
         "Wp1+ACK G0=1",
         "openp1 dead(EPROTO)",
         {0}},
        {"row 28, C40: RST before the ACK",
         ".open Wm1+RST .readm1 .closem1 .open",
         "Wm1+SYN Wm2+SYN",
         "m1 resetm1(0) readm1:ERESET m2",
         {0}},
        {"row 28: RST without anything to read, before the accept",
         "Wp1+SYN Wp1+RST .readp1",
         "",
         NULL,
         {0}},
        {"C55: the code of a stock peer is not interpreted",
         ".open Wm1+RST=7",
         "Wm1+SYN",
         "m1 resetm1(0)",
         {0}},
        {"C55: the code of ours is",
         ".open Wm1+RST=7",
         "Wm1+SYN",
         "m1 resetm1(7)",
         {.features = "rstcode"}},
        {"C55: an application's too, and never as credit",
         "Wp1+SYN .acceptp1 Wp1+RST=200",
         "Wp1+ACK",
         "openp1 resetp1(200)",
         {.features = "rstcode"}},
        {"C55: the length of Data+RST is no code",
         "Wp1+SYN .acceptp1 Dp1+RST'abc' .readp1",
         "Wp1+ACK",
         "openp1 readablep1 resetp1(0) p1'abc' readp1:ERESET",
         {.features = "rstcode"}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(row_29_frames_for_streams_that_are_over)
{
    static const script_case cases[] = {
        {"row 29: RST, FIN, credit on ids never opened by the peer",
         "Wp3+RST Wp3+FIN Wp5=9 Dp7+RST Dp7+FIN P0+SYN=1",
         "P0+ACK=1",
         "",
         {0}},
        {"row 29, C34: RST crossing our FIN",
         ".open Wm1+ACK .finm1 Wm1+RST .closem1 P0+SYN=1",
         "Wm1+SYN Wm1+FIN P0+ACK=1",
         "m1 acceptedm1 resetm1(0)",
         {0}},
        {"row 29, C34: FIN crossing our RST",
         ".open Wm1+ACK .rstm1=2 Wm1+FIN .closem1 P0+SYN=1",
         "Wm1+SYN Wm1+RST=2 P0+ACK=1",
         "m1 acceptedm1",
         {0}},
        {"row 29, C34: both RST",
         ".open Wm1+ACK .rstm1=2 Wm1+RST Wm1+RST .closem1 Wm1+RST P0+SYN=1",
         "Wm1+SYN Wm1+RST=2 P0+ACK=1",
         "m1 acceptedm1",
         {0}},
        {"row 29: anything after the peer's own RST",
         "Wp1+SYN .acceptp1 Wp1+RST Wp1=5 Wp1+FIN Wp1+RST P0+SYN=1",
         "Wp1+ACK P0+ACK=1",
         "openp1 resetp1(0)",
         {0}},
        {"60: RST in the segment of the SYN",
         "Wp1+SYN Wp1+RST Wp2+SYN .acceptp2",
         "Wp2+ACK",
         NULL,
         {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(row_30_to_32_pings)
{
    static const rig_options patient = {.limits = {.keepalive_ms = 5000, .dead_after_ms = 5000}};
    static const rig_options lazy = {.limits = {.keepalive_ms = 600000}};
    const script_case cases[] = {
        {"row 30, C9: any value comes back",
         "P0+SYN P0+SYN=0xffffffff P0+SYN=1",
         "P0+ACK P0+ACK=4294967295 P0+ACK=1",
         "",
         {0}},
        {"row 30, C9: ahead of data",
         "Wp1+SYN .acceptp1 .hold .writep1#40000 P0+SYN=5 .flow .tick=1",
         "Wp1+ACK P0+ACK=5 Dp1#40000",
         "openp1",
         {0}},
        {"row 30, C12, 50: 37 pings while nothing is taken: the last 32 are answered",
         ".hold 32*P0+SYN=1 .tick=1000 5*P0+SYN=2 .flow .tick=1",
         "P0+ACK=1 P0+ACK=1 P0+ACK=1 P0+ACK=1 P0+ACK=1 P0+ACK=1 P0+ACK=1 P0+ACK=1 P0+ACK=1 "
         "P0+ACK=1 "
         "P0+ACK=1 P0+ACK=1 P0+ACK=1 P0+ACK=1 P0+ACK=1 P0+ACK=1 P0+ACK=1 P0+ACK=1 P0+ACK=1 "
         "P0+ACK=1 "
         "P0+ACK=1 P0+ACK=1 P0+ACK=1 P0+ACK=1 P0+ACK=1 P0+ACK=1 P0+ACK=1 P0+ACK=2 P0+ACK=2 "
         "P0+ACK=2 "
         "P0+ACK=2 P0+ACK=2",
         "", lazy},
        {"row 31, C10, 57: pongs that nobody asked for",
         "P0+ACK P0+ACK=9 P0+ACK=0xffffffff P0+SYN=1",
         "P0+ACK=1",
         "",
         {0}},
        {"row 32 over C11: a ping with neither flag",
         "P0=5 P0+FIN=6 P0+RST=7 P0+SYN=1",
         "P0+ACK=1",
         "",
         {0}},
        {"silence: a ping, and then the end",
         ".silent .tick=0 .tick=4999 .tick=1 .tick=4999 .tick=2", NULL, "dead(ELOST)", patient},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(row_33_and_34_goaway)
{
    static const script_case cases[] = {
        {"row 33, C13: no new streams from here", "G0=0 .open", "", "goaway open:EDRAINING", {0}},
        {"row 33, C13, 64: what runs goes on",
         ".open Wm1+ACK Wp1+SYN .acceptp1 G0=0 Dm1'a' Dp1'b' .readm1 .readp1 .writem1'c' "
         ".writep1'd'",
         "Wm1+SYN Wp1+ACK Dm1'c' Dp1'd'",
         "m1 acceptedm1 openp1 goaway readablem1 readablep1 m1'a' p1'b'",
         {0}},
        {"row 33, C15: the peer may still open",
         "G0=0 Wp1+SYN .acceptp1",
         "Wp1+ACK",
         "goaway openp1",
         {0}},
        {"row 33, C15: twice is once",
         "G0=0 G0=0 Wp1+SYN .acceptp1",
         "Wp1+ACK",
         "goaway openp1",
         {0}},
        {"row 34, 61: what follows a GoAway 1 is not looked at",
         "G0=1 P0+SYN=1 Wp1+SYN",
         "",
         NULL,
         {0}},
        {"row 33, 61: what follows a GoAway 0 is", "G0=0 P0+SYN=1", "P0+ACK=1", "goaway", {0}},
        {"row 33: a GoAway in front of the answer to our SYN",
         ".open G0=0 Wm1+ACK .writem1'x'",
         "Wm1+SYN Dm1'x'",
         "m1 goaway acceptedm1",
         {0}},
        {"C57: nothing is processed after our own GoAway",
         "D0 P0+SYN=1 Wp1+SYN",
         "G0=1",
         "dead(EPROTO)",
         {0}},
    };
    SCRIPT_CHECK_ALL(cases);
    static const char *const codes[] = {"G0=1 .open", "G0=2 .open", "G0=3 .open",
                                        "G0=0xffffffff .open"};
    for (size_t i = 0; i < 4; i++) {
        rig_options o = {0};
        rig *r = rig_new(&o);
        REQUIRE(r != NULL);
        script_run(r, "Wp1+SYN .acceptp1 Dp1'abc' Wp2+SYN .acceptp2 Dp2'x' Wp2+FIN");
        script_run(r, codes[i]);
        CHECK(r->dead);  // row 34, C14
        CHECK(r->dead_code < 0);
        CHECK(strstr(r->log.s, "open:") != NULL);
        r->log.len = 0;
        script_run(r, ".readp1 .readp2 .readp2");
        CHECK(strstr(r->log.s, "p1'abc' readp1:E") != NULL);  // row 27 for a session's end
        CHECK(strstr(r->log.s, "p2'x' eofp2") != NULL);       // row 26
        rig_free(r);
    }
}

TEST(row_35_the_connection_ends)
{
    static const script_case cases[] = {
        {"row 35, C46, 29: live streams get an error, never EOF",
         "Wp1+SYN .acceptp1 Dp1'abc' .eof .readp1",
         NULL,
         "openp1 readablep1 dead(ELOST) p1'abc' readp1:ELOST",
         {0}},
        {"row 35, C45: in the middle of a header",
         "Wp1+SYN .acceptp1 Dp1'abc' !0000000000 .eof .readp1",
         NULL,
         "openp1 readablep1 dead(ELOST) p1'abc' readp1:ELOST",
         {0}},
        {"row 35, C45: in the middle of a body",
         "Wp1+SYN .acceptp1 Dp1%100 !616263 .eof .readp1=0",
         NULL,
         NULL,
         {0}},
        {"row 35, C48: a FIN came before: EOF",
         "Wp1+SYN .acceptp1 Dp1'abc' Wp1+FIN .eof .readp1",
         NULL,
         "openp1 readablep1 finp1 dead(ELOST) p1'abc' eofp1",
         {0}},
        {"C47: no streams", ".eof", NULL, "dead(ELOST)", {0}},
        {"row 33: after a GoAway", "G0=0 .eof", NULL, NULL, {0}},
        {"28, row 35: nothing can be done afterwards",
         "Wp1+SYN .acceptp1 .eof .writep1'x' .open .eof",
         NULL,
         NULL,
         {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

// Not even a peer that drains may leave a frame half said.
TEST(row_35_a_connection_that_ends_inside_a_frame_is_lost_at_each_of_its_bytes)
{
    for (size_t cut = 0; cut <= WIRE_HEADER + 3; cut++) {
        rig_options o = {.role = cut % 2 ? REVDIAL_ROLE_PROXY : REVDIAL_ROLE_BACKEND};
        rig *r = rig_new(&o);
        REQUIRE(r != NULL);
        uint8_t frame[WIRE_HEADER + 3] = {0};
        wire_put(frame, &(wire_frame){0, WIRE_DATA, 0, rig_id(r, 1, 1), 3});
        script_run(r, "Wp1+SYN .acceptp1 G0=0");
        rig_feed(r, frame, cut);
        script_run(r, ".eof");
        CHECK_INT(r->dead_code, cut % sizeof frame == 0 ? REVDIAL_EDRAINING : REVDIAL_ELOST);
        rig_free(r);
    }
}

// ---- C50: row 36 on a large scale; 25: a thousand frames in one read

TEST(row_36_a_million_frames_in_one_buffer_and_one_frame_in_a_million_reads)
{
    enum { FRAMES = 250000 };
    static uint8_t bytes[FRAMES][WIRE_HEADER + 1];
    rig_options o = {.limits = {.keepalive_ms = 600000}};
    rig *r = rig_new(&o);
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .acceptp1 .eager");
    uint32_t id = rig_id(r, 1, 1);
    for (uint32_t i = 0; i < FRAMES; i++) {
        wire_frame f = {0, WIRE_DATA, 0, id, 1};
        wire_put(bytes[i], &f);
        bytes[i][WIRE_HEADER] = rig_pattern(id, 1, i);
    }
    size_t at = 0;
    while (at < sizeof bytes && !r->dead) {
        ptrdiff_t used = revdial_engine_input(r->e, &bytes[0][0] + at, sizeof bytes - at, r->now);
        REQUIRE(used >= 0);
        at += (size_t)used;
        rig_drain(r);
        if (at % 65536 < 13) rig_flush(r);
    }
    rig_stream *s = rig_stream_of(r, id);
    CHECK(s && s->taken == FRAMES && !s->bad);
    script_run(r, "Wp2+SYN .acceptp2");
    r->chunk = 1;
    for (int i = 0; i < 4; i++) rig_data(r, rig_id(r, 1, 2), 65536);
    s = rig_stream_of(r, rig_id(r, 1, 2));
    CHECK(s && s->taken == 262144 && !s->bad);
    CHECK(!r->wire.failures);
    rig_free(r);
}

// ---- the state matrix: each frame in each state, decided by the rows of 2.2

typedef struct matrix_state {
    const char *name, *id, *setup;
} matrix_state;

static const matrix_state matrix_states[] = {
    {"fut", "p1", ""},
    {"ours", "m1", ""},
    {"syn", "m1", ".open "},
    {"est", "m1", ".open Wm1+ACK "},
    {"est by the peer", "p1", "Wp1+SYN .acceptp1 "},
    {"lfin", "m1", ".open Wm1+ACK .finm1 "},
    {"rfin", "m1", ".open Wm1+ACK Wm1+FIN "},
    {"tomb", "p1", "Wp1+SYN .acceptp1 .rstp1 .closep1 "},
    {"old", "p1", "Wp1+SYN .finp1 Wp1+FIN .closep1 "},
};
enum { MATRIX_STATES = 9, MATRIX_FRAMES = 12 };
static const char *const matrix_frames[MATRIX_FRAMES] = {
    "D@'x'",    "D@+SYN'x'", "D@+ACK'x'", "D@+FIN'x'", "D@+RST'x'", "W@=9",
    "W@+SYN=9", "W@+ACK=9",  "W@+FIN",    "W@+RST=3",  "D@",        "W@",
};

// What is expected, one letter per state in the order of matrix_states:
//   G  the session ends (row 6, 7, 16, 19 or 20)     .  nothing happens to the application
//   O  a stream opens    D  bytes arrive    A  the open is accepted, or it was already
//   F  the peer finishes (with D's bytes if there were any)    R  the stream is reset
static const char *const matrix_wanted[MATRIX_FRAMES] = {
    // fut ours syn est peer lfin rfin tomb old
    "GGDDDD...",  // row 15, 18, 19, 20
    "OGGGGGGOO",  // row 6, 7, 8
    "GGDDDD...",  // row 14: ACK changes nothing
    "GGFFFF...",  // row 20 spares FIN only where it has no body
    "GGRRRRR..",
    ".GA......",  // row 23, 24
    "OGGGGGGOO",  // row 8 over C20
    ".GA......",
    "..FFFF...",  // row 20, 25, 29
    "..RRRRR..",  // row 20, 29
    ".GA......",  // row 21, 19, 20
    ".GA......",  // row 22
};

static char matrix_saw(const rig *r)
{
    if (r->counts[REVDIAL_EV_DEAD]) return 'G';
    if (r->counts[REVDIAL_EV_OPEN]) return 'O';
    if (r->counts[REVDIAL_EV_RESET]) return 'R';
    if (r->counts[REVDIAL_EV_FIN]) return 'F';
    if (r->counts[REVDIAL_EV_READABLE]) return 'D';
    if (r->counts[REVDIAL_EV_ACCEPTED]) return 'A';
    return '.';
}

static void matrix_cell(int role, size_t f, size_t st, size_t chunk)
{
    char frame[64], *to = frame;
    rig_options o = {.role = role};
    rig *r = rig_new(&o);
    REQUIRE(r != NULL);
    for (const char *at = matrix_frames[f]; *at; at++) {
        if (*at != '@') {
            *to++ = *at;
            continue;
        }
        to += sprintf(to, "%s", matrix_states[st].id);
    }
    *to = '\0';
    r->chunk = chunk;
    script_run(r, matrix_states[st].setup);
    memset(r->counts, 0, sizeof r->counts);
    script_run(r, frame);
    char saw = matrix_saw(r), want = matrix_wanted[f][st];
    if (saw != want)
        test_fail(__FILE__, __LINE__, "%s in state %s: %c, not %c (sent %s, saw %s)", frame,
                  matrix_states[st].name, saw, want, r->out.s, r->log.s);
    if (saw == 'G') CHECK(r->wire.goaways_out == 1);
    if (r->wire.failures)
        test_fail(__FILE__, __LINE__, "%s in state %s: %s", frame, matrix_states[st].name,
                  r->wire.why);
    rig_free(r);
}

TEST(each_frame_in_each_state)
{
    for (size_t f = 0; f < MATRIX_FRAMES; f++)
        for (size_t st = 0; st < MATRIX_STATES; st++)
            for (int role = REVDIAL_ROLE_PROXY; role <= REVDIAL_ROLE_BACKEND; role++) {
                matrix_cell(role, f, st, 0);
                matrix_cell(role, f, st, 1);
            }
}

// 59: every type, every combination of the four flags, with lengths that matter, in every state.
// What must hold: no crash, at most one GoAway, nothing improper is sent, and nothing leaks.
TEST(every_header_in_every_state_leaves_a_well_behaved_engine)
{
    static const uint32_t lengths[] = {0,      1,          255,        262144,
                                       262145, 0x7fffffff, 0x80000000, 0xffffffff};
    for (size_t st = 0; st < MATRIX_STATES; st++)
        for (unsigned code = 0; code < 6 * 32 * 8; code++) {
            rig_options o = {.role = code & 1 ? REVDIAL_ROLE_PROXY : REVDIAL_ROLE_BACKEND};
            rig *r = rig_new(&o);
            REQUIRE(r != NULL);
            script_run(r, matrix_states[st].setup);
            uint32_t id = rig_id(r, matrix_states[st].id[0] == 'p', 1);
            unsigned flags = (code >> 3) & 31;
            rig_frame(r, code / 256, flags & 16 ? flags << 4 : flags, id, lengths[code & 7]);
            rig_flush(r);
            rig_frame(r, WIRE_PING, WIRE_SYN, 0, 77);
            rig_flush(r);
            if (r->wire.failures)
                test_fail(__FILE__, __LINE__, "state %s, code %u: %s", matrix_states[st].name, code,
                          r->wire.why);
            CHECK(r->wire.goaways_out <= 1);
            revdial_engine_free(r->e);
            r->e = NULL;
            CHECK_INT(r->heap.live_bytes, 0);
            rig_free(r);
        }
}

// ---- ids and roles

TEST(ids_of_ours_have_our_parity_and_grow)
{
    static const script_case cases[] = {
        {"odd for the yamux client, even for the server",
         ".open .open .open Wm1+ACK Wm2+RST .closem2 .open",
         "Wm1+SYN Wm2+SYN Wm3+SYN Wm4+SYN",
         "m1 m2 m3 acceptedm1 resetm2(0) m4",
         {0}},
        {"C35: a stream reset before its SYN left",
         ".hold .open .rstm1 .closem1 .flow Wm1+ACK P0+SYN=1",
         NULL,
         "m1",
         {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(c22_when_our_ids_run_out_the_session_drains_and_what_runs_goes_on)  // 66
{
    static const revdial_dial_opts none;
    for (int role = REVDIAL_ROLE_PROXY; role <= REVDIAL_ROLE_BACKEND; role++) {
        rig_options o = {.role = role, .features = "rstcode, drain, streams=65536"};
        rig *r = rig_new(&o);
        REQUIRE(r != NULL);
        uint32_t last = RVD_MUX_ID_LAST - (role == REVDIAL_ROLE_PROXY);
        r->e->mux.next_id = last - 2;
        CHECK_INT(revdial_engine_open(r->e, &none, NULL), last - 2);
        CHECK_INT(revdial_engine_open(r->e, &none, NULL), last);
        CHECK_INT(revdial_engine_open(r->e, &none, NULL), REVDIAL_EDRAINING);
        CHECK_INT(revdial_engine_open(r->e, &none, NULL), REVDIAL_EDRAINING);
        rig_flush(r);
        CHECK(strstr(rig_out(r), "G0=0") != NULL);  // once, behind the SYNs
        rig_frame(r, WIRE_CREDIT, WIRE_ACK, last, 0);
        CHECK_INT(revdial_engine_write(r->e, last, "on", 2), 2);
        rig_flush(r);
        CHECK(!r->dead);
        revdial_engine_reset(r->e, last, 0);
        revdial_engine_reset(r->e, last - 2, 0);
        revdial_engine_close(r->e, last);
        revdial_engine_close(r->e, last - 2);
        rig_flush(r);
        rig_tick(r, 60000);
        CHECK(r->dead);
        CHECK_INT(r->dead_code, REVDIAL_EDRAINING);
        rig_end(r);
    }
}

TEST(c62_two_clients_notice_at_the_first_syn)  // 68
{
    static const script_case c = {"both open odd ids", "Wm1+SYN", "G0=1", "dead(EPROTO)", {0}};
    script_check(&c);
}

// ---- calls that are wrong, on streams in every state

TEST(U5_calls_on_ids_that_do_not_exist_are_refused)
{
    static const script_case cases[] = {
        {"unknown",
         ".acceptp1 .readp1 .writep1'x' .finp1 .rstp1 .closep1",
         "",
         "acceptp1:EINVAL readp1:EINVAL writep1:EINVAL finp1:EINVAL rstp1:EINVAL",
         {0}},
        {"closed",
         "Wp1+SYN .acceptp1 .closep1 .readp1 .writep1'x' .finp1 .rstp1 .closep1",
         "Wp1+ACK Wp1+FIN",
         "openp1 readp1:EINVAL writep1:EINVAL finp1:EINVAL rstp1:EINVAL",
         {0}},
        {"after our own FIN",
         "Wp1+SYN .finp1 .writep1'x' .finp1",
         "Wp1+ACK Wp1+FIN",
         "openp1 writep1:ECLOSED",
         {0}},
        {"after our own RST",
         "Wp1+SYN Dp1'x' .rstp1=9 .readp1 .writep1'x'",
         "Wp1+RST=9",
         NULL,
         {0}},
        {"accept again", "Wp1+SYN .acceptp1 .acceptp1", "Wp1+ACK", NULL, {0}},
        {"accept our own", ".open .acceptm1", "Wm1+SYN", "m1 acceptm1:EINVAL", {0}},
        {"an empty write is nothing", "Wp1+SYN .acceptp1 .writep1''", "Wp1+ACK", "openp1", {0}},
        {"reading accepts", "Wp1+SYN Dp1'x' .readp1", "Wp1+ACK", "openp1 readablep1 p1'x'", {0}},
        {"writing accepts", "Wp1+SYN .writep1'x'", "Wp1+ACK Dp1'x'", "openp1", {0}},
        {"finishing accepts", "Wp1+SYN .finp1", "Wp1+ACK Wp1+FIN", "openp1", {0}},
        {"closing what was never accepted", "Wp1+SYN .closep1 Wp1+FIN", NULL, "openp1", {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(a_reset_after_the_end_leaves_the_ACK_before_the_data_that_is_queued)
{
    static const rig_options plain = {0};
    rig *r = rig_new(&plain);
    REQUIRE(r != NULL);
    r->held = 1;
    script_run(r, "Wp1+SYN .acceptp1 .writep1'x'");
    revdial_engine_terminate(r->e);
    CHECK_INT(revdial_engine_reset(r->e, rig_id(r, 1, 1), REVDIAL_RESET_CANCEL), 0);
    rig_drain(r);
    r->held = 0;
    rig_flush(r);
    CHECK_STR(rig_out(r), "Wp1+ACK Dp1'x' G0=0");
    rig_end(r);
}

TEST(what_was_said_to_a_stream_that_is_closed_goes_out_before_the_end_of_its_session)
{
    static const rig_options plain = {0};
    rig *r = rig_new(&plain);
    REQUIRE(r != NULL);
    r->held = 1;
    script_run(r, "Wp1+SYN .acceptp1 .rstp1=9 .closep1");
    revdial_engine_terminate(r->e);
    rig_drain(r);
    r->held = 0;
    rig_flush(r);
    CHECK_STR(rig_out(r), "Wp1+ACK Wp1+RST=9 G0=0");
    rig_end(r);
}

TEST(a_dead_session_takes_no_early_bytes)
{
    static const rig_options plain = {0};
    rig *r = rig_new(&plain);
    REQUIRE(r != NULL);
    script_run(r, ".open");
    revdial_engine_terminate(r->e);
    rig_drain(r);
    CHECK_INT(revdial_engine_early(r->e, rig_id(r, 0, 1), "x", 1), REVDIAL_ELOST);
    rig_flush(r);
    CHECK_INT(revdial_engine_early(r->e, rig_id(r, 0, 1), "x", 1), REVDIAL_ELOST);
    rig_flush(r);
    CHECK_STR(rig_out(r), "Wm1+SYN G0=0");
    rig_end(r);
}

TEST(early_bytes_come_before_the_FIN_or_not_at_all)
{
    static const rig_options plain = {0};
    rig *r = rig_new(&plain);
    REQUIRE(r != NULL);
    script_run(r, ".open .finm1");
    CHECK_INT(revdial_engine_early(r->e, rig_id(r, 0, 1), "x", 1), REVDIAL_ECLOSED);
    rig_flush(r);
    CHECK_STR(rig_out(r), "Wm1+SYN Wm1+FIN");
    rig_end(r);
}

TEST(a_connection_that_ends_right_behind_a_refused_stream_ends_between_two_frames)
{
    static const char *const opens[] = {"Wp1+SYN Wp2+SYN .eof", "Wp1+SYN Dp2+SYN .eof"};
    for (size_t i = 0; i < sizeof opens / sizeof *opens; i++) {
        rig *r = rig_new(&(rig_options){.limits = {.max_streams = 1}});
        REQUIRE(r != NULL);
        script_run(r, opens[i]);
        CHECK_STR(rig_out(r), "Wp2+RST=1");
        CHECK_STR(r->text, "the peer closed the connection");
        rig_end(r);
    }
}

// A peer that opens as many streams as it may, breaks the protocol, and comes back, finds no memory
// taken by those of its last session, whose socket lingers.
TEST(a_dead_session_keeps_nothing_of_streams_that_nobody_has)
{
    static const rig_options offers = {.features = "preamble, window=65536, streams=65536"};
    revdial_engine_info before, full, after;
    rig *r = rig_new(&offers);
    REQUIRE(r != NULL);
    r->held = 1;
    revdial_engine_get_info(r->e, &before);
    for (uint32_t n = 1; n <= 4000; n++) rig_frame(r, WIRE_CREDIT, WIRE_SYN, rig_id(r, 1, n), 0);
    revdial_engine_get_info(r->e, &full);
    CHECK_INT(full.streams, 4000);
    rig_frame(r, 9, 0, 0, 0);
    CHECK_INT(r->dead_code, REVDIAL_EPROTO);
    revdial_engine_get_info(r->e, &after);
    CHECK_INT(after.streams, 0);
    CHECK(after.memory_bytes - before.memory_bytes < (full.memory_bytes - before.memory_bytes) / 4);
    rig_end(r);
}

TEST(a_stream_that_is_closed_after_the_peer_broke_the_protocol_is_gone)
{
    static const rig_options plain = {0};
    revdial_engine_info info;
    rig *r = rig_new(&plain);
    REQUIRE(r != NULL);
    r->held = 1;
    script_run(r, "Wp1+SYN .acceptp1 Dp1'abc' .writep1'x'");
    rig_frame(r, 9, 0, 0, 0);
    revdial_engine_get_info(r->e, &info);
    CHECK_INT(info.streams, 1);  // what has arrived can still be read
    script_run(r, ".readp1 .closep1");
    revdial_engine_get_info(r->e, &info);
    CHECK_INT(info.streams, 0);
    rig_end(r);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
