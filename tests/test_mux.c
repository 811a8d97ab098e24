// What the mux accepts and what it sends: the decision table (yamux study, section 2.2), rows 1 to
// 24, with their numbers in the bad-input catalogue (C..) and among the known bugs of other
// implementations (plain numbers, section 6). Every case runs in both roles, whole, one byte at a
// time and cut in two at every byte, and a strict judge reads all that comes out.
#define REVDIAL_NO_RUNTIME
#define REVDIAL_SELF_CHECK  // the mux checks its invariants at each call
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include "engine_script.h"

// ---- the table, row by row

TEST(row_1_to_3_version_type_and_unknown_flags)
{
    static const script_case cases[] = {
        {"row 1, C1: version 1, else a good ping",
         "!010200010000000000000007",
         "G0=1",
         "dead(EPROTO)",
         {0}},
        {"row 1, C1: version 0x16, as of a TLS record",
         "!160200010000000000000007",
         "G0=1",
         "dead(EPROTO)",
         {0}},
        {"row 1, C1: version 'H', as of a stray HTTP response",
         "!480200010000000000000007",
         "G0=1",
         "dead(EPROTO)",
         {0}},
        {"row 1, C1: version 255", "!ff0200010000000000000007", "G0=1", "dead(EPROTO)", {0}},
        {"row 1, C1: a TLS record", "!160301020001000001fc0303", "G0=1", "dead(EPROTO)", {0}},
        {"row 1, C1: an HTTP response", "!485454502f312e3120343030", "G0=1", "dead(EPROTO)", {0}},
        {"row 1: what follows is not looked at",
         "!010200010000000000000007 P0+SYN=7",
         "G0=1",
         "dead(EPROTO)",
         {0}},
        {"row 2, C2: type 4", "!000400000000000000000000", "G0=1", "dead(EPROTO)", {0}},
        {"row 2, C2: type 127", "!007f00000000000000000000", "G0=1", "dead(EPROTO)", {0}},
        {"row 2, C2: type 255", "!00ff00000000000000000000", "G0=1", "dead(EPROTO)", {0}},
        {"row 3 over C3: unknown flags on SYN", "Wp1+SYN+0x10 .acceptp1", "Wp1+ACK", "openp1", {0}},
        {"row 3 over C3: unknown flags on data",
         "Wp1+SYN .acceptp1 Dp1+0xfff0'abc' .readp1",
         "Wp1+ACK",
         "openp1 readablep1 p1'abc'",
         {0}},
        {"row 3 over C3: unknown flags on FIN",
         "Wp1+SYN .acceptp1 Wp1+FIN+0x20 .readp1",
         "Wp1+ACK",
         "openp1 finp1 eofp1",
         {0}},
        {"row 3 over C3: unknown flags on ping", "P0+SYN+0x8000=9", "P0+ACK=9", "", {0}},
        {"row 3 over C3: unknown flags on GoAway", "G0+0x4000=0", "", "goaway", {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(every_version_and_every_type_that_does_not_exist_ends_the_session)
{
    for (unsigned v = 1; v < 512; v++) {
        rig_options o = {.role = v & 1 ? REVDIAL_ROLE_PROXY : REVDIAL_ROLE_BACKEND};
        rig *r = rig_new(&o);
        REQUIRE(r != NULL);
        uint8_t head[WIRE_HEADER] = {0, 2, 0, 1};  // else a good ping
        head[v < 256 ? 0 : 1] = (uint8_t)v;
        if (v >= 256 && (v & 255) < 4) head[0] = 9;
        rig_feed(r, head, sizeof head);
        rig_flush(r);
        CHECK_STR(rig_out(r), "G0=1");
        CHECK_INT(r->dead_code, REVDIAL_EPROTO);
        rig_free(r);
    }
}

TEST(row_4_to_7_ids_that_must_not_be)
{
    static const script_case cases[] = {
        {"row 4, C7: data on id 0", "D0'x'", "G0=1", "dead(EPROTO)", {0}},
        {"row 4, C7: empty data on id 0", "D0", "G0=1", "dead(EPROTO)", {0}},
        {"row 4, C7: credit on id 0", "W0=1", "G0=1", "dead(EPROTO)", {0}},
        {"row 4, C17: SYN on id 0", "W0+SYN", "G0=1", "dead(EPROTO)", {0}},
        {"row 4: data with SYN on id 0", "D0+SYN'x'", "G0=1", "dead(EPROTO)", {0}},
        {"row 4: RST on id 0", "W0+RST", "G0=1", "dead(EPROTO)", {0}},
        {"row 5 over C8: a ping on a stream is ignored",
         "Pp1+SYN=3 Wp1+SYN Pp1+SYN=4 P0+SYN=5",
         "P0+ACK=5",
         "openp1",
         {0}},
        {"row 5: a ping that is a pong, too", "P0+SYN+ACK=6", "G0=1", "dead(EPROTO)", {0}},
        {"row 5 over C8: GoAway 0 on a stream counts", "Gp1=0", "", "goaway", {0}},
        {"row 5 over C8: GoAway 1 on a stream counts", "Gm4=1", NULL, NULL, {0}},
        {"row 6, C17, 68: SYN on an id of ours", "Wm1+SYN", "G0=1", "dead(EPROTO)", {0}},
        {"row 6: data with SYN on an id of ours", "Dm3+SYN'x'", "G0=1", "dead(EPROTO)", {0}},
        {"row 6: SYN on a live id of ours",
         ".open Wm1+SYN",
         "Wm1+SYN G0=1",
         "m1 dead(EPROTO)",
         {0}},
        {"row 7, C19: SYN on a stream not accepted yet",
         "Wp1+SYN Wp1+SYN",
         "G0=1",
         "openp1 dead(EPROTO)",
         {0}},
        {"row 7, C19: SYN on a live stream, one GoAway",
         "Wp1+SYN .acceptp1 Wp1+SYN Wp1+SYN",
         "Wp1+ACK G0=1",
         "openp1 dead(EPROTO)",
         {0}},
        {"row 7: data with SYN on a live stream",
         "Wp1+SYN .acceptp1 Dp1+SYN'x'",
         "Wp1+ACK G0=1",
         "openp1 dead(EPROTO)",
         {0}},
        {"row 7: SYN where only the peer has finished",
         "Wp1+SYN .acceptp1 Wp1+FIN Wp1+SYN",
         "Wp1+ACK G0=1",
         "openp1 finp1 dead(EPROTO)",
         {0}},
        {"row 7: SYN where only we have finished",
         "Wp1+SYN .finp1 Wp1+SYN",
         "Wp1+ACK Wp1+FIN G0=1",
         "openp1 dead(EPROTO)",
         {0}},
        {"row 7: SYN where we closed and the peer has not finished",
         "Wp1+SYN .closep1 Wp1+SYN",
         NULL,
         NULL,
         {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(row_8_ids_in_any_order_and_again)
{
    static const script_case cases[] = {
        {"row 8, C18, 35: out of order",
         "Wp5+SYN Wp1+SYN Wp3+SYN .acceptp1 .acceptp3 .acceptp5",
         "Wp1+ACK Wp3+ACK Wp5+ACK",
         "openp5 openp1 openp3",
         {0}},
        {"row 8 over C20: an id used before, both finished",
         "Wp1+SYN Dp1'a' .finp1 .readp1 Wp1+FIN .closep1 Wp1+SYN Dp1'b' .acceptp1 .readp1",
         "Wp1+ACK Wp1+FIN Wp1+ACK",
         "openp1 readablep1 p1'a' finp1 openp1 readablep1 p1'b'",
         {0}},
        {"row 8: an id used before, the peer reset it",
         "Wp1+SYN .acceptp1 Wp1+RST .closep1 Wp1+SYN .acceptp1 .writep1'x'",
         "Wp1+ACK Wp1+ACK Dp1'x'",
         "openp1 resetp1(0) openp1",
         {0}},
        {"row 8: an id used before, we reset it",
         "Wp1+SYN .rstp1=2 .closep1 Wp1+SYN Dp1'x' .acceptp1 .readp1",
         "Wp1+RST=2 Wp1+ACK",
         "openp1 openp1 readablep1 p1'x'",
         {0}},
        {"row 8: finished, but the application still has it: refused",
         "Wp1+SYN .finp1 Wp1+FIN Wp1+SYN .readp1",
         "Wp1+ACK Wp1+FIN Wp1+RST=1",
         "openp1 finp1 eofp1",
         {0}},
        {"C21: the largest ids",
         "W0xffffffff+SYN .accept0xffffffff",
         "Wp2147483648+ACK",
         "openp2147483648",
         {.role = REVDIAL_ROLE_BACKEND}},
        {"C21: the largest ids, even",
         "W0xfffffffe+SYN .accept0xfffffffe",
         "Wp2147483647+ACK",
         "openp2147483647",
         {.role = REVDIAL_ROLE_PROXY}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(row_9_what_cannot_be_taken_is_refused)
{
    static const script_case cases[] = {
        {"row 9, C42: too many streams",
         "Wp1+SYN Wp2+SYN Wp3+SYN Dp3#5000 Wp3+FIN Dp1'ok' .readp1 P0+SYN=1",
         "Wp3+RST=1 Wp1+ACK P0+ACK=1",
         NULL,
         {.limits = {.max_streams = 2}}},
        {"row 9: the refused SYN's own body",
         "Wp1+SYN Dp2+SYN#3000 P0+SYN=1",
         NULL,
         "openp1",
         {.limits = {.max_streams = 1}}},
        {"row 9: a place is free again",
         "Wp1+SYN Wp2+SYN .rstp1 .closep1 Wp3+SYN",
         "Wp2+RST=1 Wp1+RST",
         "openp1 openp3",
         {.limits = {.max_streams = 1}}},
        {"row 9: nobody accepts here",
         "Wp1+SYN Dp1#1000 P0+SYN=1",
         NULL,
         "",
         {.role = REVDIAL_ROLE_PROXY, .refuse_streams = 1}},
        {"row 9, C16: draining",
         "Wp1+SYN .acceptp1 .drain Wp2+SYN Dp2'x' Dp1'y' .readp1",
         "Wp1+ACK Wp2+RST=12",
         "openp1 readablep1 p1'y'",
         {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(row_10_to_12_flags_that_come_together)
{
    static const script_case cases[] = {
        {"row 10 over C4: SYN+ACK opens", "Wp1+SYN+ACK .acceptp1", "Wp1+ACK", "openp1", {0}},
        {"row 10, C5: SYN+FIN with a body",
         "Dp1+SYN+FIN'abc' .readp1",
         "Wp1+ACK",
         "openp1 readablep1 finp1 p1'abc' eofp1",
         {0}},
        {"row 10 over C4: SYN+RST is never seen",
         "Wp1+SYN+RST Dp2+SYN+RST'abc' P0+SYN=1",
         "P0+ACK=1",
         "",
         {0}},
        {"row 10: SYN+FIN+RST is never seen", "Wp1+SYN+FIN+RST P0+SYN=1", "P0+ACK=1", "", {0}},
        {"row 10: ACK+FIN",
         ".open Wm1+ACK+FIN .readm1",
         "Wm1+SYN",
         "m1 acceptedm1 finm1 eofm1",
         {0}},
        {"row 10, C5: data, ACK+FIN",
         ".open Dm1+ACK+FIN'ab' .readm1",
         "Wm1+SYN",
         "m1 acceptedm1 readablem1 finm1 m1'ab' eofm1",
         {0}},
        {"row 10 over C6: FIN+RST, the FIN counts",
         ".open Dm1+FIN+RST'ab' .readm1 .writem1'x'",
         "Wm1+SYN",
         NULL,
         {0}},
        {"row 11, C23: SYN with a body",
         "Dp1+SYN'hello' .readp1",
         "Wp1+ACK",
         "openp1 readablep1 p1'hello'",
         {0}},
        {"row 11, C23: a whole window with the SYN",
         "Dp1+SYN#262144 .readp1",
         NULL,
         "openp1 readablep1 p1#262144",
         {0}},
        {"row 11, C23, 38: a byte more: GoAway, and no stream",
         "Dp1+SYN%262145",
         "G0=1",
         "dead(EPROTO)",
         {0}},
        {"row 12: the SYN's delta adds to 256 KiB",
         "Wp1+SYN=10000 .writep1#300000",
         "Wp1+ACK Dp1#272144",
         "openp1 wrotep1=272144",
         {0}},
        {"row 12, C24: it must not overflow", "Wp1+SYN=0xffffffff", "G0=1", "dead(EPROTO)", {0}},
        {"row 12, C24: but may reach the end",
         "Wp1+SYN=4294705151 .acceptp1",
         "Wp1+ACK",
         "openp1",
         {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(row_13_and_14_acknowledgements)
{
    static const script_case cases[] = {
        {"row 13: ACK", ".open Wm1+ACK", "Wm1+SYN", "m1 acceptedm1", {0}},
        {"row 13, C36, 57: only the first counts",
         ".open Wm1+ACK 50*Wm1+ACK",
         "Wm1+SYN",
         "m1 acceptedm1",
         {0}},
        {"row 13: ACK brings credit",
         ".open Wm1+ACK=5000 .writem1#300000",
         "Wm1+SYN Dm1#267144",
         "m1 acceptedm1 wrotem1=267144",
         {0}},
        {"row 13, C38: data counts as ACK",
         ".open Dm1'x' .readm1",
         "Wm1+SYN",
         "m1 acceptedm1 readablem1 m1'x'",
         {0}},
        {"row 13: credit counts as ACK", ".open Wm1=5", "Wm1+SYN", "m1 acceptedm1", {0}},
        {"row 13, C39: FIN counts as ACK, a later ACK is allowed",
         ".open Wm1+FIN Wm1+ACK .readm1",
         "Wm1+SYN",
         "m1 acceptedm1 finm1 eofm1",
         {0}},
        {"row 13: data with ACK",
         ".open Dm1+ACK'hi' .readm1",
         "Wm1+SYN",
         "m1 acceptedm1 readablem1 m1'hi'",
         {0}},
        {"row 14 over C37: ACK on a stream of the peer's",
         "Wp1+SYN .acceptp1 Wp1+ACK Dp1'x' .readp1",
         "Wp1+ACK",
         "openp1 readablep1 p1'x'",
         {0}},
        {"row 14: it brings credit all the same",
         "Wp1+SYN .acceptp1 Wp1+ACK=5000 .writep1#300000",
         "Wp1+ACK Dp1#267144",
         "openp1 wrotep1=267144",
         {0}},
        {"row 14: ACK on an unknown id", "Wp9+ACK P0+SYN=1", "P0+ACK=1", "", {0}},
        {"C35: ACK after we reset an unanswered open",
         ".open .rstm1=2 .closem1 Wm1+ACK P0+SYN=1",
         "Wm1+SYN Wm1+RST=2 P0+ACK=1",
         "m1",
         {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(row_15_to_16_data_within_the_window)
{
    static const script_case cases[] = {
        {"row 15: data",
         "Wp1+SYN .acceptp1 Dp1'ab' Dp1'cd' .readp1",
         "Wp1+ACK",
         "openp1 readablep1 p1'abcd'",
         {0}},
        {"row 15: before the accept",
         "Wp1+SYN Dp1'early' .acceptp1 .readp1",
         "Wp1+ACK",
         "openp1 readablep1 p1'early'",
         {0}},
        {"row 16, C26, 36: exactly the credit, in one frame",
         "Wp1+SYN .acceptp1 Dp1#262144 .readp1",
         NULL,
         "openp1 readablep1 p1#262144",
         {0}},
        {"row 16, C26, 36: a byte more, known from the header",
         "Wp1+SYN .acceptp1 Dp1%262145",
         "Wp1+ACK G0=1",
         "openp1 dead(EPROTO)",
         {0}},
        {"row 16, C27, 55: 4 GiB",
         "Wp1+SYN .acceptp1 Dp1%0xffffffff",
         "Wp1+ACK G0=1",
         "openp1 dead(EPROTO)",
         {0}},
        {"row 16, 36: the same with a larger window",
         "Wp1+SYN .acceptp1 Dp1#400000 .readp1",
         NULL,
         "openp1 readablep1 p1#400000",
         {.limits = {.stream_window = 400000}}},
        {"row 16, 36: and a byte more than that",
         "Wp1+SYN .acceptp1 Dp1%400001",
         "Wp1+ACK=137856 G0=1",
         "openp1 dead(EPROTO)",
         {.limits = {.stream_window = 400000}}},
        {"row 16: before the ACK that announces the larger window",
         "Wp1+SYN Dp1%262145",
         "G0=1",
         "openp1 dead(EPROTO)",
         {.limits = {.stream_window = 400000}}},
        {"row 16: on a stream we opened, before any ACK",
         ".open Dm1%262145",
         "Wm1+SYN G0=1",
         NULL,
         {0}},
        {"row 16: in pieces",
         "Wp1+SYN .acceptp1 Dp1#262000 Dp1#144 .readp1=1 Dp1%1",
         "Wp1+ACK G0=1",
         NULL,
         {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(row_17_what_comes_after_our_close_is_dropped_for_a_while)
{
    static const script_case cases[] = {
        {"row 17: dropped",
         "Wp1+SYN .acceptp1 .closep1 Dp1#65000 P0+SYN=1 Wp1+FIN",
         "Wp1+ACK Wp1+FIN P0+ACK=1",
         "openp1",
         {0}},
        {"row 17: after 64 KiB the stream is reset",
         "Wp1+SYN .acceptp1 .closep1 Dp1#40000 Dp1#40000",
         "Wp1+ACK Wp1+FIN Wp1+RST=2",
         "openp1",
         {0}},
        {"row 17: after 30 s the stream is reset",
         "Wp1+SYN .acceptp1 .closep1 Dp1#10 .tick=29000 "
         "P0+SYN=1 .tick=1001",
         "Wp1+ACK Wp1+FIN P0+ACK=1 Wp1+RST=2",
         "openp1",
         {.limits = {.keepalive_ms = 600000}}},
        {"row 17: we stop reading, and go on writing",
         "Wp1+SYN .acceptp1 .stopp1 Dp1#60000 .writep1'x' .readp1 Wp1+FIN",
         "Wp1+ACK Dp1'x'",
         NULL,
         {0}},
        {"row 17: we stop reading, and much comes",
         "Wp1+SYN .acceptp1 .stopp1 Dp1#40000 Dp1#40000",
         "Wp1+ACK Wp1+RST=2",
         NULL,
         {0}},
        {"row 17: we stop reading, and a stock peer has used its credit up",
         "Wp1+SYN .acceptp1 Dp1#262144 .stopp1 .tick=29000 P0+SYN=1 .tick=1001",
         "Wp1+ACK P0+ACK=1 Wp1+RST=2",
         NULL,
         {.limits = {.keepalive_ms = 600000}}},
        {"row 17: we stop reading, and then it uses it up",
         "Wp1+SYN .acceptp1 Dp1#262000 .stopp1 Dp1#100 .tick=60000 .tick=1 Dp1#44 .tick=29000 "
         "P0+SYN=1 .tick=1001",
         "Wp1+ACK P0+ACK=1 Wp1+RST=2",
         NULL,
         {.limits = {.keepalive_ms = 600000}}},
        {"row 17: it finishes in time",
         "Wp1+SYN .acceptp1 Dp1#262144 .stopp1 .tick=29000 Wp1+FIN .tick=29000 .writep1'x'",
         "Wp1+ACK Dp1'x'",
         NULL,
         {.limits = {.keepalive_ms = 600000}}},
        {"row 17: meanwhile a tiny window is used",
         "Wp1+SYN .acceptp1 .writep1#261744 .writep1#500 Dp1#262144 .stopp1 .writep1#400 "
         "Wp1=100 .writep1#200",
         "Wp1+ACK Dp1#262244",
         "openp1 wrotep1=0 readablep1 wrotep1=100",
         {.limits = {.keepalive_ms = 600000}}},
        {"2.5: both have finished: close says nothing more",
         "Wp1+SYN .acceptp1 Wp1+FIN .finp1 .closep1 .tick=60000",
         "Wp1+ACK Wp1+FIN",
         "openp1 finp1",
         {.limits = {.keepalive_ms = 600000}}},
        {"2.5 over C60: close with unread data finishes, and resets only when more comes",
         "Wp1+SYN .acceptp1 Dp1'abc' .closep1 Wp1+FIN P0+SYN=1",
         "Wp1+ACK Wp1+FIN P0+ACK=1",
         "openp1 readablep1",
         {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(a_peer_of_ours_that_has_finished_may_pause_for_as_long_as_it_likes)
{
    static const script_case cases[] = {
        {"a stock peer that gives no credit for 60 s reads no more: it would not say so",
         "Wp1+SYN .acceptp1 .writep1#262144 .writep1'x' Wp1+FIN .tick=59000 P0+SYN=1 .tick=1001",
         "Wp1+ACK Dp1#262144 P0+ACK=1 Wp1+RST=2",
         NULL,
         {.limits = {.keepalive_ms = 600000}}},
        {"the same where it finishes before it takes no more",
         "Wp1+SYN .acceptp1 Wp1+FIN .writep1#262144 .writep1'x' .tick=59000 P0+SYN=1 .tick=1001",
         "Wp1+ACK Dp1#262144 P0+ACK=1 Wp1+RST=2",
         NULL,
         {.limits = {.keepalive_ms = 600000}}},
        {"one of ours resets what it does not read",
         "Wp1+SYN .acceptp1 .writep1#262144 .writep1'x' Wp1+FIN .tick=59000 P0+SYN=1 .tick=1001 "
         ".tick=500000 Wp1=2000 .writep1'x'",
         "Wp1+ACK Dp1#262144 P0+ACK=1 Dp1#1",
         NULL,
         {.features = "rstcode", .limits = {.keepalive_ms = 600000}}},
        {"also where it finishes first",
         "Wp1+SYN .acceptp1 Wp1+FIN .writep1#262144 .writep1'x' .tick=59000 P0+SYN=1 .tick=1001 "
         ".tick=500000 Wp1=2000 .writep1'x'",
         "Wp1+ACK Dp1#262144 P0+ACK=1 Dp1#1",
         NULL,
         {.features = "rstcode", .limits = {.keepalive_ms = 600000}}},
    };
    SCRIPT_CHECK_ALL(cases);
}

// A reset that stops the peer must not overtake the end of what it reads.
TEST(row_17_whoever_closes_finishes_before_it_resets)
{
    static const script_case cases[] = {
        {"row 17: 64 KiB come before the FIN can go out",
         "Wp1+SYN .acceptp1 .writep1'x' .hold .closep1 Dp1#65536 .flow",
         "Wp1+ACK Dp1'x' Wp1+FIN Wp1+RST=2",
         "openp1",
         {0}},
        {"row 17: the credit is used up before it can",
         "Wp1+SYN .acceptp1 Dp1#3000 .readp1 .writep1'x' .hold .closep1 Dp1#5192 .flow",
         "Wp1+ACK Dp1'x' Wp1+FIN Wp1+RST=2",
         NULL,
         {.features = "rstcode, window=8192", .limits = {.stream_window = 8192}}},
        {"row 17: it was used up when we close",
         "Wp1+SYN .acceptp1 Dp1#8192 .writep1'x' .closep1",
         "Wp1+ACK Dp1'x' Wp1+FIN Wp1+RST=2",
         NULL,
         {.features = "rstcode, window=8192", .limits = {.stream_window = 8192}}},
        {"row 17: and when we close what we have finished",
         "Wp1+SYN .acceptp1 Dp1#8192 .writep1'x' .finp1 .closep1",
         "Wp1+ACK Dp1'x' Wp1+FIN Wp1+RST=2",
         NULL,
         {.features = "rstcode, window=8192", .limits = {.stream_window = 8192}}},
        {"row 17: the application still has the stream",
         "Wp1+SYN .acceptp1 .writep1'x' .hold .finp1 .stopp1 Dp1#65536 .flow .closep1",
         "Wp1+ACK Dp1'x' Wp1+FIN Wp1+RST=2",
         "openp1 resetp1(2)",
         {0}},
        {"row 17: 30 s pass before it can",
         "Wp1+SYN .acceptp1 .hold .writep1'x' .closep1 .tick=29000 .tick=1001 .flow .tick=1",
         "Wp1+ACK Dp1'x' Wp1+FIN Wp1+RST=2",
         "openp1",
         {.limits = {.keepalive_ms = 600000, .write_stall_ms = 600000}}},
        {"row 17: the peer's FIN comes between the two",
         "Wp1+SYN .acceptp1 .writep1'x' .hold .closep1 Dp1#65536 Wp1+FIN .flow",
         "Wp1+ACK Dp1'x' Wp1+FIN",
         "openp1",
         {0}},
        {"row 17: the session ends first",
         "Wp1+SYN .acceptp1 .writep1'x' .hold .closep1 Dp1#65536 .shutdown .flow",
         "Wp1+ACK Dp1'x' Wp1+FIN G0=0",
         "openp1 dead(ECLOSED)",
         {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(row_18_data_after_fin)
{
    static const script_case cases[] = {
        {"row 18: once is ignored",
         "Wp1+SYN .acceptp1 Dp1'a' Wp1+FIN Dp1'bbb' .readp1 .writep1'x'",
         "Wp1+ACK Dp1'x'",
         "openp1 readablep1 finp1 p1'a' eofp1",
         {0}},
        {"row 18: twice resets the stream, not the session",
         "Wp1+SYN .acceptp1 Wp2+SYN .acceptp2 Wp1+FIN Dp1'b' Dp1'c' Dp2'ok' .readp2",
         "Wp1+ACK Wp2+ACK Wp1+RST=4",
         NULL,
         {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(row_19_and_20_data_of_streams_that_are_not_there)
{
    static const script_case cases[] = {
        {"row 19, C32: after our reset, all of the credit is drained",
         "Wp1+SYN .acceptp1 Dp1#144 .rstp1 .closep1 Dp1#200000 Dp1#62000 P0+SYN=1",
         "Wp1+ACK Wp1+RST P0+ACK=1",
         NULL,
         {0}},
        {"row 19, C33: a byte more is too much",
         "Wp1+SYN .acceptp1 Dp1#144 .rstp1 .closep1 Dp1#262000 Dp1%1",
         "Wp1+ACK Wp1+RST G0=1",
         NULL,
         {0}},
        {"row 19: the application need not have closed it",
         "Wp1+SYN .acceptp1 .rstp1 Dp1#1000 P0+SYN=1",
         "Wp1+ACK Wp1+RST P0+ACK=1",
         "openp1",
         {0}},
        {"row 19, C27: 4 GiB after our reset",
         "Wp1+SYN .rstp1 .closep1 Dp1%0xffffffff",
         "Wp1+RST G0=1",
         "openp1 dead(EPROTO)",
         {0}},
        {"row 19, C27, 55, 18: data on an id never opened", "Dp7'x'", "G0=1", "dead(EPROTO)", {0}},
        {"row 19: on a refused stream, within 256 KiB",
         "Wp1+SYN Wp2+SYN Dp2#262144 P0+SYN=1",
         "P0+ACK=1 Wp2+RST=1",
         "openp1",
         {.limits = {.max_streams = 1}}},
        {"row 19: on a refused stream, a byte more",
         "Wp1+SYN Wp2+SYN Dp2%262145",
         NULL,
         "openp1 dead(EPROTO)",
         {.limits = {.max_streams = 1}}},
        {"row 19: on a stream of ours that is over",
         ".open Wm1+ACK .rstm1 .closem1 Dm1#1000 P0+SYN=1",
         "Wm1+SYN Wm1+RST P0+ACK=1",
         "m1 acceptedm1",
         {0}},
        {"row 19: an empty frame on an unknown id costs nothing",
         "Dp7 P0+SYN=1",
         "P0+ACK=1",
         "",
         {0}},
        {"row 20: data on an id of ours never opened", "Dm1'x'", "G0=1", "dead(EPROTO)", {0}},
        {"row 20: empty data there", "Dm1", "G0=1", "dead(EPROTO)", {0}},
        {"row 20: credit there", "Wm1=5", "G0=1", "dead(EPROTO)", {0}},
        {"row 20 over 14: ACK there", "Wm1+ACK", "G0=1", "dead(EPROTO)", {0}},
        {"row 20: beyond the last one opened",
         ".open Wm2=5",
         "Wm1+SYN G0=1",
         "m1 dead(EPROTO)",
         {0}},
        {"row 20: RST there is ignored", "Wm1+RST Dm2+RST P0+SYN=1", "P0+ACK=1", "", {0}},
        {"row 20: FIN there is ignored", "Wm1+FIN Dm2+FIN P0+SYN=1", "P0+ACK=1", "", {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(row_21_to_24_frames_that_say_little)
{
    static const script_case cases[] = {
        {"row 21: empty data",
         "Wp1+SYN .acceptp1 Dp1 Dp1 Dp1'x' .readp1",
         "Wp1+ACK",
         "openp1 readablep1 p1'x'",
         {0}},
        {"row 22: credit of 0",
         "Wp1+SYN .acceptp1 Wp1 Wp1 .writep1'x'",
         "Wp1+ACK Dp1'x'",
         "openp1",
         {0}},
        {"row 23, C25, 37: credit up to 2^32-1",
         "Wp1+SYN .acceptp1 Wp1=4294705151 .writep1'x'",
         "Wp1+ACK Dp1'x'",
         "openp1",
         {0}},
        {"row 23, C25, 37: and one more",
         "Wp1+SYN .acceptp1 Wp1=4294705152",
         "Wp1+ACK G0=1",
         "openp1 dead(EPROTO)",
         {0}},
        {"row 23: one more later",
         "Wp1+SYN .acceptp1 Wp1=4294705151 Wp1=1",
         "Wp1+ACK G0=1",
         "openp1 dead(EPROTO)",
         {0}},
        {"row 23: what was sent makes room",
         "Wp1+SYN .acceptp1 Wp1=4294705151 .writep1'abc' Wp1=3 P0+SYN=1",
         "Wp1+ACK Dp1'abc' P0+ACK=1",
         "openp1",
         {0}},
        {"row 23, 37: 0xffffffff on top of 256 KiB",
         ".open Wm1+ACK Wm1=0xffffffff",
         "Wm1+SYN G0=1",
         "m1 acceptedm1 dead(EPROTO)",
         {0}},
        {"row 23: with the ACK", ".open Wm1+ACK=0xffffffff", "Wm1+SYN G0=1", NULL, {0}},
        {"row 24: credit on an unknown id", "Wp9=5 P0+SYN=1", "P0+ACK=1", "", {0}},
        {"row 24, C54, 16: credit after both have finished",
         ".open Wm1+ACK .finm1 Wm1+FIN .closem1 Wm1=5 P0+SYN=1",
         "Wm1+SYN Wm1+FIN P0+ACK=1",
         "m1 acceptedm1 finm1",
         {0}},
        {"row 24, C54, 16: credit after our FIN",
         ".open Wm1+ACK .finm1 Wm1=5 Dm1'x' .readm1",
         "Wm1+SYN Wm1+FIN",
         "m1 acceptedm1 readablem1 m1'x'",
         {0}},
        {"34: credit from the peer after its own FIN",
         "Wp1+SYN .acceptp1 Wp1+FIN Wp1=5000 .writep1#267144",
         "Wp1+ACK Dp1#267144",
         "openp1 finp1",
         {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

// ---- lengths and counts of callers

TEST(a_read_of_nothing_is_EINVAL_and_only_the_end_is_0)
{
    static const rig_options plain;
    rig *r = rig_new(&plain);
    char c[4];
    uint32_t id;
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .hold");
    id = rig_id(r, 1, 1);
    CHECK_INT(revdial_engine_read(r->e, id, c, 0), REVDIAL_EINVAL);
    CHECK_INT(revdial_engine_read(r->e, id, NULL, 0), REVDIAL_EINVAL);
    CHECK_INT(revdial_engine_read(r->e, id, c, SIZE_MAX), REVDIAL_EINVAL);
    CHECK_INT(revdial_engine_read(r->e, id, c, 1), REVDIAL_EAGAIN);
    script_run(r, "Wp1+FIN");
    CHECK_INT(revdial_engine_read(r->e, id, c, 0), REVDIAL_EINVAL);
    CHECK_INT(revdial_engine_read(r->e, id, c, 1), 0);
    rig_end(r);
}

// Loops pass on what read(2), write(2) and writev(2) return.
TEST(the_minus_one_of_a_failed_call_moves_nothing)
{
    for (int role = REVDIAL_ROLE_PROXY; role <= REVDIAL_ROLE_BACKEND; role++) {
        rig_options o = {.role = role};
        rig *r = rig_new(&o);
        const void *data;
        void *at;
        struct iovec iov[4];
        uint32_t id;
        REQUIRE(r != NULL);
        script_run(r, "Wp1+SYN .hold Dp1'abc'");
        id = rig_id(r, 1, 1);
        CHECK_INT(revdial_engine_input(r->e, "", (size_t)-1, r->now), REVDIAL_EINVAL);
        CHECK_INT(revdial_engine_peek(r->e, id, &data), 3);
        revdial_engine_consume(r->e, id, (size_t)-1);
        CHECK_INT(revdial_engine_peek(r->e, id, &data), 3);
        CHECK_INT(revdial_engine_reserve(r->e, id, &at, 0), REVDIAL_EINVAL);
        CHECK_INT(revdial_engine_reserve(r->e, id, &at, (size_t)-1), REVDIAL_EINVAL);
        CHECK(revdial_engine_reserve(r->e, id, &at, 10) > 0);
        revdial_engine_commit(r->e, id, (size_t)-1);
        CHECK_INT(revdial_engine_write(r->e, id, "x", (size_t)-1), REVDIAL_EINVAL);
        CHECK_INT(revdial_engine_lend(r->e, id, "x", (size_t)-1), REVDIAL_EINVAL);
        CHECK_INT(revdial_engine_write(r->e, id, "xyz", 3), 3);
        CHECK(revdial_engine_output(r->e, iov, 4) > 0);
        revdial_engine_sent(r->e, (size_t)-1);
        CHECK_INT(revdial_engine_output(r->e, iov, -1), 0);
        script_run(r, ".flow");
        CHECK_STR(rig_out(r), "Wp1+ACK Dp1'xyz'");
        rig_end(r);
    }
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
