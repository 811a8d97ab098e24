// Budgets, keepalive, credit and memory. Numbers C.. are rows of the bad-input catalogue, plain
// numbers in comments are known bugs of other implementations (yamux study, section 6).
#define REVDIAL_NO_RUNTIME
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include "engine_script.h"

static const revdial_limits no_keepalive = {.keepalive_ms = 100000000};

static size_t live_streams(const rig *r)
{
    revdial_engine_info info;
    revdial_engine_get_info(r->e, &info);
    return info.streams;
}

static rig *rig_with(revdial_limits limits)
{
    rig_options o = {.limits = limits};
    if (!o.limits.keepalive_ms) o.limits.keepalive_ms = no_keepalive.keepalive_ms;
    return rig_new(&o);
}

// ---- budgets: each lets a burst pass and ends the session at the first frame beyond it

typedef struct flood {
    const char *name, *setup, *frames;
    int allowed;     // times `frames` that pass at once
    int per_second;  // and after it
    uint32_t max_streams;
} flood;

// Sends `frames` so many times, with a fresh id for each '?'. Returns how many times passed.
static int flood_times(rig *r, const flood *f, int first, int times)
{
    r->quiet = 1;
    for (int i = 0; i < times; i++) {
        char script[200], *to = script;
        for (const char *at = f->frames; *at; at++) {
            if (*at == '?')
                to += sprintf(to, "%d", first + i);
            else
                *to++ = *at;
        }
        *to = '\0';
        script_run(r, script);
        if (r->dead) return i;
    }
    return times;
}

static void flood_check(const flood *f)
{
    for (int role = REVDIAL_ROLE_PROXY; role <= REVDIAL_ROLE_BACKEND; role++) {
        rig_options o = {.role = role,
                         .limits = {.max_streams = f->max_streams, .keepalive_ms = 100000000}};
        rig *r = rig_new(&o);
        REQUIRE(r != NULL);
        script_run(r, f->setup);
        size_t memory = r->heap.live_bytes;
        int passed = flood_times(r, f, 1000, f->allowed + 20);
        // A stream that was just reset earns a few late frames.
        if (passed < f->allowed || passed > f->allowed + (strstr(f->setup, ".rst") ? 16 : 0))
            test_fail(__FILE__, __LINE__, "%s: %d passed, not %d", f->name, passed, f->allowed);
        CHECK_INT(r->dead_code, REVDIAL_EPROTO);
        CHECK_INT(r->wire.goaway_out, 2);  // GoAway(1)
        CHECK(r->heap.peak_bytes < memory + 512 * 1024);
        rig_end(r);

        r = rig_new(&o);
        REQUIRE(r != NULL);
        script_run(r, f->setup);
        flood_times(r, f, 1000, f->allowed);
        CHECK(!r->dead);
        rig_tick(r, 2000);
        passed = flood_times(r, f, 9000, 2 * f->per_second);
        if (r->dead) test_fail(__FILE__, __LINE__, "%s: dead at the allowed rate", f->name);
        rig_end(r);
    }
}

TEST(floods_end_the_session_and_honest_rates_do_not)
{
    static const flood floods[] = {
        {"30, C12: pings", "", "P0+SYN=3", 32, 10, 0},
        {"21, C28, 51: empty data on a live stream", "Wp1+SYN .acceptp1", "Dp1", 1000, 100, 0},
        {"21, C28, 51: empty data on an unknown stream", "", "Dp9", 1000, 100, 0},
        {"21, C28, 51: empty data on a stream that is over", "Wp1+SYN .rstp1 .closep1", "Dp1", 1000,
         100, 0},
        {"22, C29, 52: credit of 0", "Wp1+SYN .acceptp1", "Wp1", 66, 30, 0},
        {"C29, C31, 52: credit of 1", "Wp1+SYN .acceptp1", "Wp1=1", 66, 30, 0},
        {"3, C29: credit of 1 behind an unknown flag", "Wp1+SYN .acceptp1", "Wp1+0x40=1", 66, 30,
         0},
        {"3, C28: empty data behind an unknown flag", "Wp1+SYN .acceptp1", "Dp1+0x40", 1000, 100,
         0},
        {"3, C28: empty data behind an ACK", "Wp1+SYN .acceptp1", "Dp1+ACK", 1000, 100, 0},
        {"3, C29: credit of 1 behind an ACK", "Wp1+SYN .acceptp1", "Wp1+ACK=1", 66, 30, 0},
        {"21: empty data with the ACK of a stream of ours, again", ".open Dm1+ACK", "Dm1+ACK", 1000,
         100, 0},
        {"25: FIN again and again after our reset", "Wp1+SYN .acceptp1 .rstp1", "Wp1+FIN", 1000,
         100, 0},
        {"25: RST again and again after our reset", "Wp1+SYN .acceptp1 .rstp1", "Wp1+RST", 1000,
         100, 0},
        {"25: FIN again and again after the peer's reset", "Wp1+SYN .acceptp1 Wp1+RST", "Wp1+FIN",
         1000, 100, 0},
        {"25: FIN again and again", "Wp1+SYN .acceptp1 Wp1+FIN", "Wp1+FIN", 1000, 100, 0},
        {"29: RST of a stream that never was", "", "Wp9+RST=3", 1000, 100, 0},
        {"29: FIN of a stream that never was", "", "Wp9+FIN", 1000, 100, 0},
        {"29: credit of 0 for a stream that never was", "", "Wp9", 1000, 100, 0},
        {"29: credit of 1 for a stream that never was", "", "Wp9=1", 64, 30, 0},
        {"32, C11: pings with neither flag", "", "P0=1", 1000, 100, 0},
        {"C43, 48: rapid reset", "", "Wp?+SYN Wp?+RST", 200, 33, 0},
        {"C43, 48: rapid reset in one frame", "", "Wp?+SYN+RST", 200, 33, 0},
        {"C43, 48: twice as many streams, twice as much", "", "Wp?+SYN Wp?+RST", 400, 66, 512},
        {"49: resets provoked by data after FIN", "",
         "Wp?+SYN .acceptp? Wp?+FIN Dp?'a' Dp?'b' .closep?", 200, 33, 0},
        {"49: twice as many streams, twice as many", "",
         "Wp?+SYN .acceptp? Wp?+FIN Dp?'a' Dp?'b' .closep?", 400, 66, 512},
        {"21: twice as many streams, twice as much empty data", "", "Dp9", 2000, 200, 512},
        {"22: twice as many streams, credit of 0", "Wp1+SYN .acceptp1", "Wp1", 130, 60, 512},
    };
    for (size_t i = 0; i < sizeof floods / sizeof *floods; i++) flood_check(&floods[i]);
}

TEST(c42_53_58_opens_beyond_the_limit_are_refused_and_then_the_session_ends)
{
    rig *r = rig_with((revdial_limits){.max_streams = 256});
    REQUIRE(r != NULL);
    r->quiet = 1;
    size_t memory = 0;
    uint32_t n = 1;
    for (; n <= 4000; n++) {
        rig_frame(r, WIRE_CREDIT, WIRE_SYN, rig_id(r, 1, n), 0);
        rig_flush(r);
        if (n == 300) memory = r->heap.live_bytes;  // with room for refusals
    }
    CHECK(!r->dead);
    CHECK_INT(r->counts[REVDIAL_EV_OPEN], 256);  // C41
    CHECK_INT(r->wire.out_rst, 4000 - 256);
    CHECK_INT(r->heap.live_bytes, memory);  // a refused stream leaves nothing behind
    for (; n < 4100 && !r->dead; n++) rig_frame(r, WIRE_CREDIT, WIRE_SYN, rig_id(r, 1, n), 0);
    CHECK(r->dead);
    CHECK(n <= 4003);
    CHECK_INT(r->dead_code, REVDIAL_EPROTO);
    rig_end(r);
}

TEST(refusals_that_nobody_reads_are_bounded)
{
    rig *r = rig_with((revdial_limits){
        .max_streams = 1, .write_stall_ms = 100000000, .keepalive_ms = 100000000});
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .acceptp1 .hold");
    size_t before = r->heap.live_bytes;
    uint32_t n = 2;
    for (; n <= 100000 && !r->dead; n++) {
        rig_frame(r, WIRE_CREDIT, WIRE_SYN, rig_id(r, 1, n), 0);
        rig_tick(r, 40);
    }
    CHECK_INT(r->dead_code, REVDIAL_EPROTO);
    CHECK(r->heap.peak_bytes - before < 1 << 20);
    rig_end(r);
}

TEST(honest_churn_of_streams_is_never_punished)
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    r->quiet = 1;
    size_t memory = r->heap.live_bytes;
    for (uint32_t n = 1; n <= 20000 && !r->dead; n++) {
        uint32_t id = rig_id(r, 1, n);
        rig_frame(r, WIRE_CREDIT, WIRE_SYN, id, 0);
        revdial_engine_accept(r->e, id);
        rig_flush(r);
        rig_data(r, id, 10);
        CHECK_INT(rig_read_all(r, id, SIZE_MAX), REVDIAL_EAGAIN);
        revdial_engine_end_write(r->e, id);
        rig_frame(r, WIRE_CREDIT, WIRE_FIN, id, 0);
        revdial_engine_close(r->e, id);
        rig_flush(r);
        if (n % 400 == 0) rig_tick(r, 100);
    }
    CHECK(!r->dead);
    CHECK_INT(live_streams(r), 0);
    CHECK(r->heap.live_bytes <= memory + 200 * 1024);
    rig_end(r);
}

// Some of it is kept for what comes next.
TEST(memory_of_bytes_that_were_read_is_given_back)
{
    enum { STREAMS = 24, BYTES = 200000 };
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    r->quiet = 1;
    for (uint32_t n = 1; n <= STREAMS; n++) {
        rig_frame(r, WIRE_CREDIT, WIRE_SYN, rig_id(r, 1, n), 0);
        revdial_engine_accept(r->e, rig_id(r, 1, n));
    }
    rig_flush(r);
    size_t memory = r->heap.live_bytes;
    for (uint32_t n = 1; n <= STREAMS; n++) {
        rig_data(r, rig_id(r, 1, n), 100);  // not in step with the blocks, so that these get large
        rig_data(r, rig_id(r, 1, n), BYTES);
    }
    CHECK(r->heap.live_bytes >= memory + STREAMS * BYTES);
    for (uint32_t n = 1; n <= STREAMS; n++)
        CHECK_INT(rig_read_all(r, rig_id(r, 1, n), SIZE_MAX), REVDIAL_EAGAIN);
    CHECK(r->heap.live_bytes <= memory + 2 * RVD_MUX_SPARES);
    rig_tick(r, 2000);
    rig_flush(r);
    CHECK(r->heap.live_bytes <= memory);
    CHECK(!r->dead);
    rig_end(r);
}

// Of many streams that we reset at once, and have not closed, each may have what crosses the reset.
TEST(what_crosses_our_resets_is_never_punished)
{
    enum { STREAMS = 3000 };
    rig *r = rig_new(&(rig_options){.features = "rstcode, window=65536, streams=65536",
                                    .limits = {.max_streams = 256, .keepalive_ms = 100000000}});
    REQUIRE(r != NULL);
    r->quiet = 1;
    for (uint32_t n = 1; n <= STREAMS; n++) {
        CHECK_INT(revdial_engine_open(r->e, NULL, NULL), rig_id(r, 0, n));
        rig_flush(r);
        rig_frame(r, WIRE_CREDIT, WIRE_ACK, rig_id(r, 0, n), 0);
    }
    for (uint32_t n = 1; n <= STREAMS; n++) revdial_engine_reset(r->e, rig_id(r, 0, n), 2);
    for (uint32_t n = 1; n <= STREAMS; n++) {
        rig_frame(r, WIRE_CREDIT, WIRE_FIN, rig_id(r, 0, n), 0);
        rig_frame(r, WIRE_CREDIT, WIRE_RST, rig_id(r, 0, n), 2);
    }
    CHECK(!r->dead);
    for (uint32_t n = 1; n <= STREAMS; n++) revdial_engine_close(r->e, rig_id(r, 0, n));
    rig_flush(r);
    CHECK_INT(live_streams(r), 0);
    rig_end(r);
}

TEST(resets_of_streams_we_opened_are_never_counted)  // 5
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    r->quiet = 1;
    revdial_dial_opts opts = {0};
    size_t after_ten = 0;
    for (uint32_t n = 1; n <= 100000 && !r->dead; n++) {
        int64_t id = revdial_engine_open(r->e, &opts, NULL);
        if (!CHECK(id > 0)) break;
        rig_flush(r);
        rig_frame(r, WIRE_CREDIT, WIRE_RST, (uint32_t)id, 1);
        revdial_engine_close(r->e, (uint32_t)id);
        rig_flush(r);
        if (n == 10) after_ten = r->heap.live_bytes;
    }
    CHECK(!r->dead);
    CHECK_INT(live_streams(r), 0);
    CHECK_INT(r->heap.live_bytes, after_ten);
    rig_end(r);
}

TEST(unanswered_opens_are_limited_and_the_slots_do_not_leak)  // C44, 4
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    r->quiet = 1;
    revdial_dial_opts opts = {0};
    for (int i = 0; i < 128; i++) CHECK(revdial_engine_open(r->e, &opts, NULL) > 0);
    rig_flush(r);
    CHECK_INT(revdial_engine_open(r->e, &opts, NULL), REVDIAL_EAGAIN);
    r->quiet = 0;
    script_run(r, "Wm1+ACK .open .open Wm1+ACK .open");  // a second ACK frees no second slot
    CHECK_STR(r->log.s, "acceptedm1 openable m129 open:EAGAIN open:EAGAIN");
    r->quiet = 1;
    for (int i = 0; i < 128; i++) {
        revdial_engine_reset(r->e, rig_id(r, 0, (uint32_t)i + 2), REVDIAL_RESET_CANCEL);
        revdial_engine_close(r->e, rig_id(r, 0, (uint32_t)i + 2));
    }
    rig_flush(r);
    for (int i = 0; i < 10000; i++) {
        int64_t id = revdial_engine_open(r->e, &opts, NULL);
        if (!CHECK(id > 0)) break;
        if (i & 1) rig_flush(r);
        revdial_engine_reset(r->e, (uint32_t)id, REVDIAL_RESET_CANCEL);
        revdial_engine_close(r->e, (uint32_t)id);
        rig_flush(r);
    }
    CHECK_INT(live_streams(r), 1);
    rig_end(r);
}

TEST(opens_closed_at_once_come_free_when_the_linger_ends)  // 3, 4
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    r->quiet = 1;
    revdial_dial_opts opts = {0};
    for (int round = 0; round < 20; round++) {
        for (;;) {
            int64_t id = revdial_engine_open(r->e, &opts, NULL);
            if (id < 0) break;
            revdial_engine_close(r->e, (uint32_t)id);
            rig_flush(r);
        }
        CHECK(live_streams(r) <= 256);
        rig_tick(r, 31000);
        rig_tick(r, 31000);
        CHECK_INT(live_streams(r), 0);
    }
    CHECK(!r->dead);
    rig_end(r);
}

// ---- control for streams that nobody looks at

TEST(control_for_a_stream_not_accepted_fills_nothing)  // 24
{
    static const char *const frames[] = {"Wp1+ACK", "Wp1+FIN", "Dp1+ACK", "Wm1+ACK", "P0+ACK=9"};
    for (size_t f = 0; f < 5; f++) {
        rig *r = rig_with(no_keepalive);
        REQUIRE(r != NULL);
        script_run(r, "Wp1+SYN .open");
        size_t memory = r->heap.live_bytes;
        r->quiet = 1;
        for (int i = 0; i < 100000 && !r->dead; i++) {
            script_run(r, frames[f]);
            if (i % 64 == 0) rig_tick(r, 1000);
        }
        CHECK(!r->dead);  // at 64 a second none of it is a flood
        CHECK(r->heap.live_bytes <= memory + 1024);
        rig_end(r);
    }
}

TEST(stray_answers_are_ignored)  // C10, C36, 57
{
    static const char *const frames[] = {"P0+ACK=9", "Wp7+ACK", "Wm1+ACK"};
    for (size_t f = 0; f < 3; f++) {
        rig *r = rig_with(no_keepalive);
        REQUIRE(r != NULL);
        script_run(r, ".open Wm1+ACK");
        for (int i = 0; i < 900; i++) script_run(r, frames[f]);
        script_run(r, "Wp1+SYN .acceptp1 Dp1'ok' .readp1");
        CHECK_STR(r->log.s, "m1 acceptedm1 openp1 readablep1 p1'ok'");
        rig_end(r);
    }
}

TEST(a_peer_that_does_not_read_does_not_stop_our_reading)  // 10, 54
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .acceptp1 .eager .hold");
    r->quiet = 1;
    size_t memory = r->heap.live_bytes;
    for (int i = 0; i < 200; i++) {
        if (i < 20) rig_frame(r, WIRE_PING, WIRE_SYN, 0, (uint32_t)i);
        rig_data(r, rig_id(r, 1, 1), 1000);
        rig_tick(r, 100);
    }
    rig_stream *s = rig_stream_of(r, rig_id(r, 1, 1));
    CHECK(s && s->taken == 200000 && !s->bad);
    CHECK(!r->dead);
    CHECK(r->heap.live_bytes < memory + 100000);
    rig_end(r);
}

TEST(output_that_does_not_move_for_write_stall_ms_ends_the_session)  // C52, 13, 54
{
    rig *r = rig_with((revdial_limits){.write_stall_ms = 5000});
    REQUIRE(r != NULL);
    script_run(r, ".tick=0 Wp1+SYN .acceptp1 .hold .writep1'x' .tick=4900");
    CHECK(!r->dead);
    script_run(r, "P0+SYN=1 .tick=200");
    CHECK(r->dead);
    CHECK_INT(r->dead_code, REVDIAL_ELOST);
    rig_end(r);
}

TEST(output_that_moves_a_byte_now_and_then_does_not)  // C53
{
    rig *r = rig_with((revdial_limits){.write_stall_ms = 5000, .dead_after_ms = 100000000});
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .acceptp1 .hold .writep1#1000");
    for (int i = 0; i < 100; i++) {
        struct iovec iov[1];
        REQUIRE(revdial_engine_output(r->e, iov, 1) == 1);
        judge_out(&r->wire, iov[0].iov_base, 1);
        revdial_engine_sent(r->e, 1);
        rig_tick(r, 4000);
    }
    CHECK(!r->dead);
    rig_end(r);
}

// The socket has taken it, or takes no more, and the peer's system acknowledges a little of it.
TEST(a_slow_peer_is_not_dead_and_one_that_acknowledges_nothing_is_in_time)
{
    static const struct {
        const char *script;
        revdial_limits limits;
    } cases[] = {
        {"Wp1+SYN .acceptp1 .hold .writep1#1000",
         {.write_stall_ms = 5000, .dead_after_ms = 1 << 30}},
        {".silent .tick=0", {.keepalive_ms = 1000, .dead_after_ms = 5000}},
        {"Wp1+SYN .acceptp1 .hold .writep1#1000 .tick=1001",
         {.keepalive_ms = 1000, .dead_after_ms = 5000, .write_stall_ms = 1 << 30}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rig *r = rig_with(cases[i].limits);
        REQUIRE(r != NULL);
        script_run(r, cases[i].script);
        CHECK_INT(revdial_engine_is_waiting(r->e), 1);
        for (int n = 0; n < 50; n++) {
            rig_tick(r, 4000);
            revdial_engine_acked(r->e, r->now);
            rig_tick(r, 0);
        }
        if (r->dead) test_fail(__FILE__, __LINE__, "case %zu: dead while bytes moved", i);
        rig_tick(r, 4900);
        CHECK(!r->dead);
        rig_tick(r, 200);
        CHECK(r->dead);
        CHECK_INT(r->dead_code, REVDIAL_ELOST);
        CHECK_INT(revdial_engine_is_waiting(r->e), 0);
        rig_end(r);
    }
}

TEST(what_is_acknowledged_counts_from_when_it_was)
{
    rig *r = rig_with((revdial_limits){.write_stall_ms = 5000, .dead_after_ms = 1 << 30});
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .acceptp1 .hold .writep1#1000 .tick=4000");
    revdial_engine_acked(r->e, r->now - 1000000);
    revdial_engine_acked(r->e, r->now - 2000000);
    rig_tick(r, 0);
    rig_tick(r, 3900);
    CHECK(!r->dead);
    rig_tick(r, 200);
    CHECK(r->dead);
    rig_end(r);
}

TEST(credit_shows_that_bytes_are_taken_and_a_ping_does_not)
{
    for (int credit = 0; credit < 2; credit++) {
        rig *r = rig_with((revdial_limits){.write_stall_ms = 5000});
        REQUIRE(r != NULL);
        script_run(r, "Wp1+SYN .acceptp1 .hold .writep1#1000");
        for (int i = 0; i < 20 && !r->dead; i++) {
            rig_tick(r, 4000);
            if (credit)
                rig_frame(r, WIRE_CREDIT, 0, rig_id(r, 1, 1), 100);
            else
                rig_frame(r, WIRE_PING, WIRE_SYN, 0, 7);
            rig_tick(r, 0);
        }
        CHECK_INT(r->dead, !credit);
        rig_end(r);
    }
}

TEST(a_peer_that_sends_slowly_hears_now_and_then_that_its_bytes_are_taken)
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .acceptp1 .eager");
    uint64_t before = r->wire.out_frames[WIRE_CREDIT];
    for (int i = 0; i < 60; i++) {
        rig_data(r, rig_id(r, 1, 1), 250);
        rig_tick(r, 1000);
    }
    uint64_t told = r->wire.out_frames[WIRE_CREDIT] - before;
    if (told < 6 || told > 12) test_fail(__FILE__, __LINE__, "%d times in a minute", (int)told);
    for (int i = 0; i < 60; i++) {  // keystrokes do not
        rig_data(r, rig_id(r, 1, 1), 10);
        rig_tick(r, 1000);
    }
    CHECK(r->wire.out_frames[WIRE_CREDIT] - before <= told + 1);  // for what was left
    rig_end(r);
}

// ---- keepalive

TEST(silence_is_answered_by_one_ping_and_then_by_the_end)  // C10, C30, row 31
{
    rig *r = rig_with((revdial_limits){.keepalive_ms = 15000, .dead_after_ms = 15000});
    REQUIRE(r != NULL);
    script_run(
        r, ".tick=0 .silent Wp1+SYN .acceptp1 Dp1'x' .readp1");  // the first ping is for the RTT
    uint64_t pings = r->wire.out_frames[WIRE_PING];
    memset(r->counts, 0, sizeof r->counts);
    rig_tick(r, 15001);
    CHECK_INT(r->wire.out_frames[WIRE_PING], pings + 1);
    CHECK(r->wire.ping_out);
    rig_frame(r, WIRE_PING, WIRE_ACK, 0,
              r->wire.ping_value + 5);  // wrong value: a glitch, but bytes
    CHECK_INT(r->counts[REVDIAL_EV_RTT], 0);
    rig_frame(r, WIRE_PING, WIRE_ACK, 0, r->wire.ping_value);
    CHECK_INT(r->counts[REVDIAL_EV_RTT], 1);
    rig_frame(r, WIRE_PING, WIRE_ACK, 0, r->wire.ping_value);
    CHECK_INT(r->counts[REVDIAL_EV_RTT], 1);
    for (int i = 0; i < 60 && !r->dead; i++) rig_tick(r, 1000);
    CHECK(r->dead);
    CHECK_INT(r->dead_code, REVDIAL_ELOST);
    CHECK(r->wire.out_frames[WIRE_PING] <= pings + 3);
    rig_end(r);
}

TEST(an_idle_session_sends_no_ping_but_those_of_keepalive_ms)
{
    rig *r = rig_with((revdial_limits){.keepalive_ms = 600000});
    REQUIRE(r != NULL);
    script_run(r, ".tick=0");
    uint64_t pings = r->wire.out_frames[WIRE_PING];
    CHECK_INT(pings, 1);  // for the round trip
    for (int i = 0; i < 500; i++) rig_tick(r, 1000);
    CHECK_INT(r->wire.out_frames[WIRE_PING], pings);
    for (int i = 0; i < 2; i++) {  // bytes of either side: the round trip may have changed
        script_run(r, i ? ".writep1'y'" : "Wp1+SYN .acceptp1 Dp1'x' .readp1");
        rig_tick(r, 1);
        CHECK_INT(r->wire.out_frames[WIRE_PING], ++pings);
        rig_tick(r, 30001);
        CHECK_INT(r->wire.out_frames[WIRE_PING], pings);
    }
    rig_end(r);
}

TEST(a_stream_that_is_not_answered_is_followed_by_a_ping_and_no_answer_to_that_is_told)
{
    rig *r = rig_with((revdial_limits){.keepalive_ms = 15000, .dead_after_ms = 15000});
    REQUIRE(r != NULL);
    script_run(r, ".tick=0 .silent .open");  // the first ping is for the round trip
    uint64_t pings = r->wire.out_frames[WIRE_PING];
    rig_tick(r, 1);
    rig_tick(r, 500);
    CHECK_INT(r->wire.out_frames[WIRE_PING], pings);
    rig_tick(r, 1);
    CHECK_INT(r->wire.out_frames[WIRE_PING], pings + 1);
    rig_tick(r, 399);
    CHECK_INT(r->counts[REVDIAL_EV_SILENT], 0);
    rig_tick(r, 1);
    CHECK_INT(r->counts[REVDIAL_EV_SILENT], 1);
    CHECK_INT(r->last.code, 1);
    rig_frame(r, WIRE_PING, WIRE_ACK, 0, r->wire.ping_value + 5);  // any byte will do
    CHECK_INT(r->counts[REVDIAL_EV_SILENT], 2);
    CHECK_INT(r->last.code, 0);
    CHECK(!r->dead);
    rig_end(r);
}

TEST(who_comes_late_to_a_tick_reads_before_it_calls_a_peer_silent)
{
    rig *r = rig_with((revdial_limits){.keepalive_ms = 15000, .dead_after_ms = 15000});
    REQUIRE(r != NULL);
    script_run(r, ".silent .tick=0");  // the first ping is out
    rig_tick(r, 900);
    CHECK_INT(r->counts[REVDIAL_EV_SILENT], 0);
    rig_tick(r, 1);
    CHECK_INT(r->counts[REVDIAL_EV_SILENT], 1);
    rig_end(r);
}

TEST(any_byte_is_a_sign_of_life)  // 19
{
    rig *r = rig_with((revdial_limits){.keepalive_ms = 15000, .dead_after_ms = 15000});
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .acceptp1 .eager");
    for (int i = 0; i < 40; i++) {
        rig_data(r, rig_id(r, 1, 1), 10);
        rig_tick(r, 10000);
    }
    CHECK(!r->dead);
    rig_end(r);
}

TEST(tick_is_due_when_it_says_and_does_nothing_before)
{
    rig *r = rig_with((revdial_limits){.keepalive_ms = 15000, .dead_after_ms = 15000});
    REQUIRE(r != NULL);
    script_run(r, ".silent Wp1+SYN Wp2+SYN .acceptp2 .tick=0");
    int64_t at = revdial_engine_tick(r->e, r->now);
    while (!r->dead) {
        REQUIRE(at > r->now);
        uint64_t frames = r->wire.out_frames[0] + r->wire.out_frames[1] + r->wire.out_frames[2];
        r->log.len = 0;
        for (int64_t t = r->now; t < at; t += (at - r->now) / 7 + 1) {
            int64_t again = revdial_engine_tick(r->e, t);
            CHECK(again >= at);
            rig_drain(r);
            rig_flush(r);
        }
        CHECK_INT(r->log.len, 0);
        CHECK_INT(r->wire.out_frames[0] + r->wire.out_frames[1] + r->wire.out_frames[2], frames);
        r->now = at;
        at = revdial_engine_tick(r->e, r->now);
        rig_drain(r);
        rig_flush(r);
        if (!r->dead) at = revdial_engine_tick(r->e, r->now);
    }
    CHECK(r->now < RIG_START_US + 120 * (int64_t)1000000);
    rig_end(r);
}

TEST(a_stream_nobody_accepts_is_reset_in_time)  // 2.3, 53
{
    rig *r = rig_with((revdial_limits){.accept_timeout_ms = 30000});
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN Wp2+SYN Dp1'abc' .acceptp2 .tick=29000");
    CHECK_STR(rig_out(r), "Wp2+ACK");
    script_run(r, ".tick=1001 .readp1");
    CHECK_STR(rig_out(r), "Wp2+ACK Wp1+RST=5");
    CHECK(strstr(r->log.s, "resetp1(5)") != NULL);
    rig_end(r);
}

// ---- credit

TEST(credit_returns_when_bytes_are_read_and_not_before)  // 45
{
    rig *r = rig_with((revdial_limits){.keepalive_ms = 100000000, .stream_window_max = 262144});
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .acceptp1 Dp1#262144 .tick=5000");
    CHECK_STR(rig_out(r), "Wp1+ACK");
    script_run(r, ".readp1");
    CHECK_STR(rig_out(r), "Wp1+ACK Wp1=262144");
    script_run(r, "Dp1#262144 .readp1");
    CHECK_STR(rig_out(r), "Wp1+ACK Wp1=262144 Wp1=262144");
    rig_end(r);
}

TEST(reading_a_byte_at_a_time_does_not_send_a_window_update_for_each)  // 41
{
    rig *r = rig_with((revdial_limits){.keepalive_ms = 100000000, .stream_window_max = 262144});
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .acceptp1 Dp1#262144");
    uint8_t byte;
    for (int i = 0; i < 262144; i++) {
        CHECK_INT(revdial_engine_read(r->e, rig_id(r, 1, 1), &byte, 1), 1);
        rig_flush(r);
    }
    CHECK(r->wire.out_frames[WIRE_CREDIT] <= 1 + 262144 / 16384 + 1);
    CHECK(r->wire.out_frames[WIRE_CREDIT] >= 2);
    rig_end(r);
}

TEST(a_message_larger_than_the_window_goes_through)  // 15, 9
{
    static const rig_options plain = {.stock = 1};
    rig_pair p;
    REQUIRE(pair_new(&p, &plain, &plain));
    script_run(p.proxy, ".open");
    pair_pump(&p);
    uint32_t id = 1;
    uint64_t wrote[2] = {0, 0}, want = 10000000;
    rig *ends[2] = {p.proxy, p.backend};
    static uint8_t bytes[65536];
    for (int round = 0; round < 100000 && (wrote[0] < want || wrote[1] < want); round++) {
        for (int i = 0; i < 2; i++) {  // both write before either reads
            size_t n = want - wrote[i] < sizeof bytes ? (size_t)(want - wrote[i]) : sizeof bytes;
            rig_pattern_fill(bytes, n, id, 1, wrote[i]);
            ptrdiff_t took = n ? revdial_engine_write(ends[i]->e, id, bytes, n) : 0;
            REQUIRE(took >= 0);
            wrote[i] += (uint64_t)took;
        }
        pair_pump(&p);
        for (int i = 0; i < 2 && round % 8 == 7; i++) rig_read_all(ends[i], id, SIZE_MAX);
        pair_pump(&p);
    }
    for (int i = 0; i < 2; i++) {
        rig_read_all(ends[i], id, SIZE_MAX);
        rig_stream *s = rig_stream_of(ends[i], id);
        CHECK_INT(wrote[i], want);
        CHECK(s && s->taken == want && !s->bad);
    }
    pair_end(&p);
}

TEST(a_huge_length_takes_what_fits_and_no_more)  // 32
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    static const uint8_t bytes[262144];
    script_run(r, "Wp1+SYN .acceptp1");
    ptrdiff_t took = revdial_engine_write(r->e, rig_id(r, 1, 1), bytes, SIZE_MAX / 8);
    CHECK(took > 0 && took <= 262144);
    rig_flush(r);
    took = revdial_engine_write(r->e, rig_id(r, 1, 1), bytes, PTRDIFF_MAX);
    CHECK(took >= 0 && took <= 262144);
    CHECK_INT(revdial_engine_write(r->e, rig_id(r, 1, 1), bytes, SIZE_MAX), REVDIAL_EINVAL);
    rig_flush(r);
    rig_end(r);
}

TEST(credit_in_crumbs_does_not_make_crumbs_of_data)  // C31
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .acceptp1 .writep1#262144");
    r->quiet = 1;
    uint32_t id = rig_id(r, 1, 1);
    uint64_t before = r->wire.out_frames[WIRE_DATA], wrote = 0;
    static uint8_t bytes[262144];
    for (int i = 0; i < 4096 && !r->dead; i++) {
        rig_frame(r, WIRE_CREDIT, 0, id, 64);
        rig_tick(r, 10);
        ptrdiff_t n = revdial_engine_write(r->e, id, bytes, sizeof bytes - (size_t)wrote);
        REQUIRE(n >= 0);
        wrote += (uint64_t)n;
        rig_flush(r);
    }
    CHECK(!r->dead);
    rig_tick(r, 100);
    ptrdiff_t n = revdial_engine_write(r->e, id, bytes, sizeof bytes - (size_t)wrote);
    CHECK_INT(wrote + (uint64_t)(n > 0 ? n : 0), 262144);
    rig_flush(r);
    CHECK(r->wire.out_frames[WIRE_DATA] - before <= 1100);  // one per 40 ms at the most
    rig_end(r);
}

TEST(a_tiny_window_is_used_after_all_when_no_more_comes)
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    script_run(r, ".tick=0 Wp1+SYN .acceptp1 .writep1#300000 Wp1=100");
    uint32_t id = rig_id(r, 1, 1);
    static const uint8_t bytes[5000];
    CHECK_INT(revdial_engine_write(r->e, id, bytes, sizeof bytes), 0);
    unsigned told = r->counts[REVDIAL_EV_WRITABLE];
    CHECK(revdial_engine_tick(r->e, r->now) <= r->now + 50000);
    rig_tick(r, 50);
    CHECK_INT(r->counts[REVDIAL_EV_WRITABLE], told + 1);
    CHECK_INT(revdial_engine_write(r->e, id, bytes, sizeof bytes), 100);
    CHECK_INT(revdial_engine_write(r->e, id, bytes, sizeof bytes), 0);
    rig_end(r);
}

// A path: how long a round trip takes, and what it carries in that time.
typedef struct path {
    uint32_t trip_ms;
    uint64_t bytes;
} path;

// Each round trip, the peer sends what it may, up to what the path carries in that time, and it is
// read or not. Returns the largest credit seen in so many round trips.
static uint64_t window_of(rig *r, uint32_t id, path on, int round_trips, int is_read)
{
    uint64_t most = 0;
    r->quiet = 1;
    for (int rtt = 0; rtt < round_trips; rtt++) {
        judge_stream *s = judge_find(&r->wire, id);
        uint64_t credit = s->grants_out + r->wire.window_own - s->data_in;
        int asked = r->wire.ping_out;
        uint32_t value = r->wire.ping_value, paced = r->wire.paced_out;
        if (credit > most) most = credit;
        if (credit > on.bytes) credit = on.bytes;
        rig_tick(r, on.trip_ms);
        if (asked) rig_frame(r, WIRE_PING, WIRE_ACK, 0, value);
        if (paced > r->wire.paced_in) rig_frame(r, WIRE_PING, WIRE_ACK, 0, paced);
        while (credit) {
            uint32_t part = credit < 16384 ? (uint32_t)credit : 16384;
            rig_data(r, id, part);
            if (is_read) rig_read_all(r, id, SIZE_MAX);
            credit -= part;
        }
        rig_flush(r);
    }
    CHECK(!r->dead);
    rig_end(r);
    return most;
}

static uint64_t window_after(int round_trips, uint64_t bytes, int is_read)
{
    rig *r = rig_with((revdial_limits){.keepalive_ms = 1000, .stream_window_max = 16u << 20});
    if (!CHECK(r != NULL)) return 0;
    script_run(r, ".silent .tick=0 Wp1+SYN .acceptp1");
    return window_of(r, rig_id(r, 1, 1), (path){100, bytes}, round_trips, is_read);
}

TEST(the_window_grows_to_what_the_round_trip_needs_and_not_far_beyond)  // 43
{
    static const uint64_t paths[] = {512 << 10, 2 << 20, 4 << 20};  // 5, 20 and 40 MB/s
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        uint64_t soon = window_after(10, paths[i], 1), later = window_after(30, paths[i], 1);
        if (soon < paths[i] || later > 4 * paths[i])
            test_fail(__FILE__, __LINE__, "path of %llu: window %llu after 10, %llu after 30",
                      (unsigned long long)paths[i], (unsigned long long)soon,
                      (unsigned long long)later);
    }
}

// The peer is in the same room: larger windows would only make a queue, as the processor is slower
// than the way.
TEST(the_window_of_a_near_peer_stays_small)
{
    rig *r = rig_with((revdial_limits){.keepalive_ms = 1000, .stream_window_max = 16u << 20});
    REQUIRE(r != NULL);
    script_run(r, ".tick=0 .open Wm1+ACK .silent");
    CHECK_INT(window_of(r, rig_id(r, 0, 1), (path){0, 4 << 20}, 40, 1), RVD_MUX_NEAR_WINDOW);
}

// A round trip of 10 ms becomes one of 300 ms. If the peer controls its queue, that is somebody
// else's, which nothing of ours makes shorter.
TEST(the_window_grows_with_a_queue_that_is_not_the_peers)
{
    static const char *const features[] = {"window=65536", "window=65536, pings"};
    for (int has = 0; has < 2; has++) {
        rig *r = rig_new(&(rig_options){.role = REVDIAL_ROLE_PROXY, .features = features[has]});
        uint64_t most;
        REQUIRE(r != NULL);
        script_run(r, ".tick=10 .open Wm1+ACK .silent");
        most = window_of(r, rig_id(r, 0, 1), (path){300, 1 << 20}, 40, 1);
        if (has ? most < 1 << 20 || most > 4 << 20 : most > 65536)
            test_fail(__FILE__, __LINE__, "%s: %d", features[has], (int)most);
    }
}

// While bytes of all streams fill more than half of the session's budget, each window update halves
// its window. One that does not fit yet is none.
TEST(a_window_is_not_halved_again_for_each_try_to_send_its_update)
{
    enum { WINDOW = 4 << 20, ACKS = RVD_MUX_CONTROL / RVD_WIRE_HEADER };
    struct iovec iov[4];
    revdial_flow_info flow;
    rig *r = rig_with((revdial_limits){
        .max_streams = 1 + ACKS, .session_window = WINDOW, .stream_window = WINDOW});
    REQUIRE(r != NULL);
    uint32_t id = rig_id(r, 1, 1);
    script_run(r, "Wp1+SYN .acceptp1 .tick=1");
    r->quiet = r->held = 1;
    rig_data(r, id, WINDOW);
    for (uint32_t n = 2; n < 2 + ACKS; n++) {
        rig_frame(r, WIRE_CREDIT, WIRE_SYN, rig_id(r, 1, n), 0);
        revdial_engine_accept(r->e, rig_id(r, 1, n));
    }
    CHECK_INT(rig_read_all(r, id, WINDOW / 4), REVDIAL_EAGAIN);
    for (int i = 0; i < 5; i++) {
        CHECK(revdial_engine_output(r->e, iov, 4) > 0);
        revdial_engine_sent(r->e, 0);
        CHECK_INT(revdial_engine_get_flow(r->e, id, &flow), 0);
        CHECK_INT(flow.window, WINDOW);
    }
    r->held = 0;
    rig_flush(r);
    CHECK_INT(revdial_engine_get_flow(r->e, id, &flow), 0);
    CHECK_INT(flow.window, WINDOW / 2);
    rig_end(r);
}

TEST(the_window_does_not_grow_by_bytes_that_nobody_reads)  // 45
{
    CHECK_INT(window_after(24, UINT64_MAX, 0), WIRE_STOCK_WINDOW);
}

// A link in virtual time: so many bytes per millisecond, behind a queue without end, and a sender
// that uses all the credit it has. Pongs wait in the queue like everything else.
typedef struct bottleneck {
    rig *r;
    uint32_t id;
    uint32_t bytes_per_ms, delay_ms;
    uint64_t queued, most;  // bytes; the largest credit seen
    int64_t pong_ms;        // when the pong is through, 0 = none on its way
    uint32_t pong;
    int is_read;
} bottleneck;

static uint64_t bottleneck_credit(const bottleneck *b)
{
    judge_stream *s = judge_find(&b->r->wire, b->id);
    return s->grants_out + b->r->wire.window_own - s->data_in;
}

static void bottleneck_step(bottleneck *b, int64_t now_ms, uint32_t step_ms)
{
    rig *r = b->r;
    uint64_t credit = bottleneck_credit(b), through = (uint64_t)b->bytes_per_ms * step_ms;
    b->queued = credit;  // all that may be sent has been
    if (credit > b->most) b->most = credit;
    if (r->wire.ping_out && !b->pong_ms) {
        b->pong = r->wire.ping_value;
        b->pong_ms = now_ms + b->delay_ms + (int64_t)(b->queued / b->bytes_per_ms);
    }
    if (b->pong_ms && b->pong_ms <= now_ms) {
        rig_frame(r, WIRE_PING, WIRE_ACK, 0, b->pong);
        b->pong_ms = 0;
    }
    rig_tick(r, step_ms);
    if (through > b->queued) through = b->queued;
    while (through && !r->dead) {
        uint32_t part = through < 16384 ? (uint32_t)through : 16384;
        rig_data(r, b->id, part);
        if (b->is_read) rig_read_all(r, b->id, SIZE_MAX);
        through -= part;
    }
    rig_flush(r);
}

static uint64_t bottleneck_run(uint32_t bytes_per_ms, uint32_t delay_ms, uint32_t step_ms,
                               uint32_t minutes)
{
    rig *r = rig_with((revdial_limits){.keepalive_ms = 100000000});
    bottleneck b = {.r = r, .bytes_per_ms = bytes_per_ms, .delay_ms = delay_ms, .is_read = 1};
    if (!CHECK(r != NULL)) return 0;
    script_run(r, ".tick=0");
    script_run(r, ".silent Wp1+SYN .acceptp1");
    r->quiet = 1;
    b.id = rig_id(r, 1, 1);
    for (int64_t now = 1; now <= minutes * 60000 && !r->dead; now += step_ms)
        bottleneck_step(&b, now, step_ms);
    CHECK(!r->dead);
    rig_end(r);
    return b.most;
}

TEST(a_queue_in_the_path_does_not_make_the_window_grow_for_ever)  // 44
{
    // 20 ms without load; a window of 4 MiB would make it 16 seconds.
    CHECK(bottleneck_run(256, 20, 100, 10) <= 2 * WIRE_STOCK_WINDOW);
}

// A long link in virtual time, a millisecond a step: what enters it in a step arrives together.
enum { LINK_STEPS = 256, LINK_STEP_US = 1000 };

typedef struct link_way {
    rig *from, *to;
    uint8_t *bytes[LINK_STEPS];
    size_t len[LINK_STEPS], size[LINK_STEPS];
    size_t most;  // that it carries in a step
} link_way;

typedef struct link_sim {
    rig_pair ends;
    link_way down, up;  // down: from the proxy, who writes
    uint32_t id, step, delay;
    uint64_t read;
} link_sim;

static void link_carry(link_way *w, uint32_t slot, const uint8_t *bytes, size_t n)
{
    if (n == 0) return;
    if (w->size[slot] < w->len[slot] + n) {
        w->size[slot] = 2 * (w->len[slot] + n);
        w->bytes[slot] = realloc(w->bytes[slot], w->size[slot]);
        if (!w->bytes[slot]) abort();
    }
    memcpy(w->bytes[slot] + w->len[slot], bytes, n);
    w->len[slot] += n;
}

// Bytes enter the link, behind those of this step that have. Returns how many left the engine.
static size_t link_enter(link_way *w, uint32_t slot)
{
    struct iovec iov[16];
    size_t total = 0;
    int n = revdial_engine_output(w->from->e, iov, 16);
    for (int i = 0; i < n; i++) {
        size_t room = w->most - w->len[slot];
        size_t take = iov[i].iov_len < room ? iov[i].iov_len : room;
        link_carry(w, slot, iov[i].iov_base, take);
        total += take;
    }
    revdial_engine_sent(w->from->e, total);
    return total;
}

static void link_read(link_sim *l, uint32_t id)
{
    static uint8_t sink[65536];
    ptrdiff_t n;
    while ((n = revdial_engine_read(l->ends.backend->e, id, sink, sizeof sink)) > 0)
        l->read += (uint64_t)n;
}

static void link_events(link_sim *l, rig *r)
{
    revdial_event ev;
    while (revdial_engine_event(r->e, &ev))
        if (ev.type == REVDIAL_EV_READABLE) link_read(l, ev.id);
}

static void link_leave(link_sim *l, link_way *w, int64_t now_us)
{
    uint32_t slot = (l->step - l->delay) % LINK_STEPS;
    for (size_t at = 0; at < w->len[slot];) {
        ptrdiff_t used =
            revdial_engine_input(w->to->e, w->bytes[slot] + at, w->len[slot] - at, now_us);
        link_events(l, w->to);
        if (!CHECK(used >= 0)) break;
        at += (size_t)used;
    }
    w->len[slot] = 0;
    revdial_engine_tick(w->to->e, now_us);
    link_events(l, w->to);
}

// Both ends do all they can for so many milliseconds. Returns bytes read.
static uint64_t link_run(link_sim *l, uint32_t steps)
{
    static const uint8_t bytes[65536];
    uint64_t before = l->read;
    for (uint32_t end = l->step + steps; l->step != end; l->step++) {
        int64_t now_us = RIG_START_US + (int64_t)l->step * LINK_STEP_US;
        uint32_t slot = l->step % LINK_STEPS;
        size_t entered;
        link_leave(l, &l->down, now_us);
        link_leave(l, &l->up, now_us);
        link_enter(&l->up, slot);
        do {
            while (revdial_engine_write(l->ends.proxy->e, l->id, bytes, sizeof bytes) > 0) {
            }
            entered = link_enter(&l->down, slot);
            link_events(l, l->ends.proxy);
        } while (entered);
    }
    return l->read - before;
}

// Opens a stream, once the round trip has been measured.
static void link_new(link_sim *l, uint32_t rtt_ms, size_t bytes_per_ms)
{
    static const rig_options plain = {0};
    memset(l, 0, sizeof *l);
    if (!pair_new(&l->ends, &plain, &plain)) abort();
    l->down.from = l->up.to = l->ends.proxy;
    l->up.from = l->down.to = l->ends.backend;
    l->down.most = bytes_per_ms;
    l->up.most = SIZE_MAX;
    l->delay = rtt_ms / 2;
    link_run(l, 2 * rtt_ms);
    int64_t id = revdial_engine_open(l->ends.proxy->e, NULL, NULL);
    l->id = id > 0 ? (uint32_t)id : 0;
}

static void link_end(link_sim *l)
{
    rig_end(l->ends.proxy);
    rig_end(l->ends.backend);
    for (int i = 0; i < LINK_STEPS; i++) {
        free(l->down.bytes[i]);
        free(l->up.bytes[i]);
    }
}

TEST(a_long_link_is_full_within_ten_round_trips)  // 43, 47
{
    static const struct {
        uint32_t rtt_ms;
        size_t bytes_per_ms;
    } links[] = {{100, SIZE_MAX}, {100, 100000}, {100, 20000}, {100, 1000}, {20, 200000},
                 {20, SIZE_MAX},  {50, 100000},  {200, 50000}, {4, 1000000}};
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        static link_sim l;
        uint32_t rtt_ms = links[i].rtt_ms;
        uint64_t full = 16u << 20, least = UINT64_MAX;
        if (full / rtt_ms > links[i].bytes_per_ms) full = rtt_ms * links[i].bytes_per_ms;
        link_new(&l, rtt_ms, links[i].bytes_per_ms);
        link_run(&l, 9 * rtt_ms);
        for (int rtt = 9; rtt < 20; rtt++) {
            uint64_t n = link_run(&l, rtt_ms);
            if (n < least) least = n;
        }
        if (least < full / 5 * 4)
            test_fail(__FILE__, __LINE__, "%u ms: %llu of %llu bytes in a round trip", rtt_ms,
                      (unsigned long long)least, (unsigned long long)full);
        link_end(&l);
    }
}

// Bytes that wait in the proxy's engine for the link are a queue, as if they stood in front of it.
static size_t link_queue(const link_sim *l)
{
    revdial_engine_info info;
    revdial_engine_get_info(l->ends.proxy->e, &info);
    return info.output_bytes;
}

TEST(a_busy_stream_keeps_no_queue)
{
    static const struct {
        uint32_t rtt_ms;
        size_t bytes_per_ms;
    } links[] = {{40, 1250}, {40, 12500}, {100, 6250}, {80, 250}, {10, 20000}};
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        static link_sim l;
        uint32_t rtt_ms = links[i].rtt_ms;
        size_t bytes = links[i].bytes_per_ms * 1000, most = 0;
        uint64_t n;
        link_new(&l, rtt_ms, links[i].bytes_per_ms);
        link_run(&l, 3000);
        n = link_run(&l, 1000);
        for (int ms = 0; ms < 1000; ms++) {
            link_run(&l, 1);
            if (link_queue(&l) > most) most = link_queue(&l);
        }
        if (n < bytes / 10 * 9 || most > links[i].bytes_per_ms * (20 + rtt_ms / 2))
            test_fail(__FILE__, __LINE__, "%u ms: %llu of %zu bytes in a second, %zu in the queue",
                      rtt_ms, (unsigned long long)n, bytes, most);
        link_end(&l);
    }
}

TEST(many_pings_go_only_to_a_peer_that_bears_them)
{
    static uint8_t bytes[200000];
    static const char *const features[] = {"rstcode", "rstcode, pings"};
    for (int has = 0; has < 2; has++) {
        rig *r = rig_new(&(rig_options){.role = REVDIAL_ROLE_PROXY, .features = features[has]});
        uint64_t before;
        REQUIRE(r != NULL);
        before = r->wire.out_frames[WIRE_PING];
        script_run(r, ".open Wm1+ACK");
        for (int i = 0; i < 20; i++) {
            revdial_engine_write(r->e, rig_id(r, 0, 1), bytes + i * 10000, 10000);
            rig_flush(r);
        }
        CHECK((r->wire.out_frames[WIRE_PING] - before > 1) == has);
        rig_end(r);
    }
}

// The answer to a keystroke may be here before the pong of a ping that was sent after it.
TEST(a_stream_that_got_its_answer_goes_before_those_that_always_send)
{
    rig *r = rig_new(&(rig_options){.role = REVDIAL_ROLE_PROXY, .features = "pings"});
    REQUIRE(r != NULL);
    script_run(r, ".open Wm1+ACK .writem1'x'");
    rvd_mux *m = &r->e->mux;
    rvd_mux_stream *s = rvd_mux_find(m, rig_id(r, 0, 1));
    REQUIRE(s != NULL);
    m->pace.taken = (uint32_t)s->out_mark - rvd_pace_step(&m->pace);
    CHECK(rvd_mux_is_new(m, s));
    m->pace.taken -= 2 * rvd_pace_step(&m->pace);
    CHECK(!rvd_mux_is_new(m, s));
    rig_end(r);
}

// A ping-pong beside bulk streams, on a slow link: none of its writes waits for a turn while the
// cap is reached, until such writes have exceeded it by an eighth. It reads into what it reserves.
TEST(a_keystroke_does_not_wait_for_the_cap_of_the_queue_control)
{
    rig *r = rig_new(&(rig_options){.role = REVDIAL_ROLE_PROXY, .features = "pings"});
    REQUIRE(r != NULL);
    script_run(r, ".open Wm1+ACK .writem1'x'");
    rvd_mux *m = &r->e->mux;
    rvd_pace *p = &m->pace;
    uint32_t id = rig_id(r, 0, 1);
    rvd_mux_stream *s = rvd_mux_find(m, id);
    REQUIRE(s != NULL);
    p->state = RVD_PACE_HOLD;
    p->cap = p->target = 20000;
    for (int i = 0; i < 80; i++) {
        void *at;
        m->quantum = m->frame_max = i < 40 ? RVD_MUX_SPARSE_BYTES : 2500;
        p->taken = (uint32_t)m->out_added - p->cap;
        s->out_mark = p->taken;
        CHECK_INT(rvd_mux_pace_room(m), 0);
        CHECK_INT(revdial_engine_reserve(r->e, id, &at, 16384), RVD_MUX_SPARSE_BYTES);
        if (r->dead || s->wait != RVD_MUX_WAIT_NONE) break;
        memset(at, 'x', 64);
        revdial_engine_commit(r->e, id, 64);
        rig_flush(r);
    }
    s->turn_left = 0;  // its last bytes are on their way
    CHECK_INT(rvd_mux_allowed(m, s, 64), 0);
    rvd_mux_turn_leave(m, s);
    p->taken = (uint32_t)m->out_added - p->cap / 8 * 9 - 1;
    s->out_mark = p->taken;
    CHECK_INT(rvd_mux_allowed(m, s, 64), 0);
    rig_end(r);
}

// On a near link the cap is hardly more than what goes between two pings. Small frames do not reach
// that, and the next one fills the cap: without a ping behind it, no pong would ever make room.
TEST(a_frame_that_fills_the_cap_of_the_queue_control_is_followed_by_a_ping)
{
    static const uint8_t bytes[65536];
    rig *r = rig_new(&(rig_options){.role = REVDIAL_ROLE_PROXY, .features = "pings"});
    REQUIRE(r != NULL);
    script_run(r, ".open Wm1+ACK");
    rvd_mux *m = &r->e->mux;
    rvd_pace *p = &m->pace;
    uint32_t id = rig_id(r, 0, 1), rate = 20000000;
    p->state = RVD_PACE_HOLD;
    p->min_us = 100;
    rvd_pace_rate_set(p, rate);
    p->cap = p->target = rvd_pace_bytes(rate, p->min_us + rvd_pace_slack(p, rate));
    p->taken = p->ping_mark = (uint32_t)m->out_added;
    rvd_mux_turns_set(m);
    for (int i = 0; i < 38; i++) {
        CHECK_INT(revdial_engine_write(r->e, id, bytes, 1000), 1000);
        rig_flush(r);
    }
    CHECK_INT(p->count, 0);
    CHECK(revdial_engine_write(r->e, id, bytes, sizeof bytes) > 1000);
    CHECK_INT(revdial_engine_write(r->e, id, bytes, sizeof bytes), 0);
    CHECK_INT(p->count, 1);
    CHECK(revdial_engine_tick(r->e, r->now) > r->now);
    rig_end(r);
}

// Early bytes pass the queue control's cap, but it has to learn when they have arrived.
TEST(early_bytes_are_followed_by_pings)
{
    static uint8_t bytes[REVDIAL_EARLY_MAX];
    revdial_dial_opts o = {.early = bytes, .early_len = sizeof bytes};
    for (int late = 0; late < 2; late++) {
        rig *r = rig_new(&(rig_options){.role = REVDIAL_ROLE_PROXY, .features = "pings"});
        uint64_t before;
        REQUIRE(r != NULL);
        before = r->wire.out_frames[WIRE_PING];
        if (late) o.early_len = 0;
        for (int i = 0; i < 8; i++) {
            int64_t id = revdial_engine_open(r->e, &o, NULL);
            CHECK(id > 0);
            if (late)
                CHECK_INT(revdial_engine_early(r->e, (uint32_t)id, bytes, sizeof bytes), 0);
        }
        rig_flush(r);
        CHECK(r->wire.out_frames[WIRE_PING] - before >= 6);
        rig_end(r);
    }
}

// With and without a preamble, which is not the application's.
TEST(early_bytes_come_first_and_once)
{
    static const char *const features[] = {"preamble", ""};
    for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
        rig *r = rig_new(&(rig_options){.role = REVDIAL_ROLE_PROXY, .features = features[i]});
        REQUIRE(r != NULL);
        for (int before = 0; before < 3; before++) {
            revdial_dial_opts o = {.early = "1", .early_len = before == 2};
            int64_t id = revdial_engine_open(r->e, &o, NULL);
            CHECK(id > 0);
            if (before == 1) CHECK_INT(revdial_engine_write(r->e, (uint32_t)id, "1", 1), 1);
            CHECK_INT(revdial_engine_early(r->e, (uint32_t)id, "2", 1),
                      before ? REVDIAL_EINVAL : 0);
            CHECK_INT(revdial_engine_early(r->e, (uint32_t)id, "3", 1), REVDIAL_EINVAL);
            CHECK_INT(revdial_engine_write(r->e, (uint32_t)id, "4", 1), 1);
        }
        rig_end(r);
    }
}

TEST(the_ledger_adds_up)
{
    rig *r = rig_with((revdial_limits){.keepalive_ms = 100000000, .stream_window_max = 262144});
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN=100 .acceptp1 Dp1#5000 .readp1=2000 .writep1#700");
    revdial_flow_info l;
    CHECK_INT(revdial_engine_get_flow(r->e, rig_id(r, 1, 1), &l), 0);
    CHECK_INT(l.received, 5000);
    CHECK_INT(l.consumed, 2000);
    CHECK_INT(l.buffered, 3000);
    CHECK_INT(l.sent, 700);
    CHECK_INT(l.send_credit, 262144 + 100 - 700);
    CHECK_INT(l.recv_credit, 262144 - 5000);
    CHECK_STR(l.blocked_on, "");
    script_run(r, ".readp1 .writep1#262144");
    CHECK_INT(revdial_engine_get_flow(r->e, rig_id(r, 1, 1), &l), 0);
    CHECK_INT(l.send_credit, 0);
    CHECK_STR(l.blocked_on, "peer's credit");
    CHECK_INT(revdial_engine_get_flow(r->e, rig_id(r, 1, 9), &l), REVDIAL_EINVAL);
    rig_end(r);
}

// How long a stream has been blocked, in ms; -1: it is not.
static int64_t blocked_ms(rig *r, uint32_t id, const char *on)
{
    revdial_flow_info l;
    revdial_engine_get_flow(r->e, id, &l);
    CHECK_STR(l.blocked_on, on);
    return l.blocked_since_us ? (r->now - l.blocked_since_us) / 1000 : -1;
}

TEST(the_ledger_says_since_when_a_stream_is_blocked)
{
    revdial_engine_info info;
    rig *r = rig_with((revdial_limits){.keepalive_ms = 100000000, .stream_window_max = 262144});
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .tick=700");
    CHECK_INT(blocked_ms(r, rig_id(r, 1, 1), "accept"), 700);
    script_run(r, ".acceptp1 .writep1#262144");
    CHECK_INT(blocked_ms(r, rig_id(r, 1, 1), ""), -1);
    script_run(r, ".tick=1000 .writep1#1 .tick=12000");
    CHECK_INT(blocked_ms(r, rig_id(r, 1, 1), "peer's credit"), 12000);
    script_run(r, ".writep1#1 .tick=1000 Dp1'x' .readp1");
    CHECK_INT(blocked_ms(r, rig_id(r, 1, 1), "peer's credit"), 13000);
    revdial_engine_get_info(r->e, &info);
    CHECK_INT(info.credit_waits, 1);
    script_run(r, "Wp1=262144 .writep1#1");
    CHECK_INT(blocked_ms(r, rig_id(r, 1, 1), ""), -1);
    script_run(r, "Dp1#200000 .tick=100 Dp1#62143 .tick=4000");
    CHECK_INT(blocked_ms(r, rig_id(r, 1, 1), "reader"), 4100);
    script_run(r, ".open .tick=300");
    CHECK_INT(blocked_ms(r, rig_id(r, 0, 1), "accept"), 300);
    rig_end(r);
}

TEST(resets_of_either_side_are_counted_by_code)
{
    rig_options o = {.features = "rstcode"};
    revdial_engine_info info;
    rig *r = rig_new(&o);
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .rstp1=6 Wp2+SYN .rstp2=42 Wp3+SYN .rstp3=64 Wp4+SYN Wp4+RST=13 .open "
                  "Wm1+RST=255");
    revdial_engine_get_info(r->e, &info);
    CHECK_INT(info.streams_reset, 5);
    CHECK_INT(info.resets[6], 1);
    CHECK_INT(info.resets[13], 1);
    CHECK_INT(info.resets[14], 1);
    CHECK_INT(info.resets[15], 2);
    rig_end(r);
}

// ---- memory

TEST(an_idle_stream_costs_at_most_512_bytes)
{
    for (int ours = 0; ours < 2; ours++) {
        rig_options o = {.features = "rstcode, streams=65536",
                         .limits = {.keepalive_ms = 100000000, .max_streams = 65536}};
        rig *r = rig_new(&o);
        REQUIRE(r != NULL);
        r->quiet = 1;
        revdial_dial_opts opts = {0};
        size_t before = r->heap.live_bytes;
        uint32_t count = 4096;
        for (uint32_t n = 1; n <= count; n++) {
            if (ours) {
                REQUIRE(revdial_engine_open(r->e, &opts, NULL) > 0);
                rig_flush(r);
                rig_frame(r, WIRE_CREDIT, WIRE_ACK, rig_id(r, 0, n), 0);
            } else {
                rig_frame(r, WIRE_CREDIT, WIRE_SYN, rig_id(r, 1, n), 0);
                CHECK_INT(revdial_engine_accept(r->e, rig_id(r, 1, n)), 0);
            }
            rig_flush(r);
        }
        size_t each = (r->heap.live_bytes - before) / count;
        if (each > 512) test_fail(__FILE__, __LINE__, "%zu bytes per idle stream", each);
        rig_end(r);
    }
}

TEST(bytes_that_come_one_by_one_are_kept_together)  // C30, 56
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    r->quiet = 1;
    enum { STREAMS = 4, EACH = 262144 };
    size_t before = r->heap.live_bytes;
    for (uint32_t n = 1; n <= STREAMS; n++) {
        rig_frame(r, WIRE_CREDIT, WIRE_SYN, rig_id(r, 1, n), 0);
        for (int i = 0; i < EACH; i++) rig_data(r, rig_id(r, 1, n), 1);
    }
    CHECK(r->heap.peak_bytes - before <= STREAMS * EACH * 3 / 2);
    for (uint32_t n = 1; n <= STREAMS; n++) {
        uint32_t id = rig_id(r, 1, n);
        rig_read_all(r, id, SIZE_MAX);
        rig_stream *s = rig_stream_of(r, id);
        CHECK(s && s->taken == EACH && !s->bad);
    }
    rig_flush(r);
    rig_tick(r, 2000);  // what was kept for more of the same is given back
    CHECK(r->heap.live_bytes - before <= STREAMS * 600 + 200 * 1024);
    rig_end(r);
}

static void feed_header(rig *r, uint32_t id, uint8_t len)
{
    uint8_t h[12] = {
        0, 0, 0, 0,  (uint8_t)(id >> 24), (uint8_t)(id >> 16), (uint8_t)(id >> 8), (uint8_t)id,
        0, 0, 0, len};
    revdial_event ev;
    CHECK_INT(revdial_engine_input(r->e, h, sizeof h, r->now), sizeof h);
    while (revdial_engine_event(r->e, &ev)) continue;
}

TEST(what_is_expected_is_read_where_it_was_received)
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    r->quiet = 1;
    uint32_t id = rig_id(r, 1, 1);
    uint8_t buf[100], other[100];
    revdial_event ev;
    rig_frame(r, WIRE_CREDIT, WIRE_SYN, id, 0);
    CHECK_INT(revdial_engine_accept(r->e, id), 0);
    CHECK_INT(revdial_engine_expected(r->e, id), 0);
    feed_header(r, id, 100);
    CHECK_INT(revdial_engine_expected(r->e, id), 100);
    CHECK_INT(revdial_engine_expected(r->e, id + 2), 0);
    for (int i = 0; i < 100; i++) buf[i] = (uint8_t)i;
    CHECK_INT(revdial_engine_input(r->e, buf, 40, r->now), 40);
    CHECK(revdial_engine_event(r->e, &ev) && ev.type == REVDIAL_EV_READABLE && ev.id == id);
    CHECK_INT(revdial_engine_read(r->e, id, buf, sizeof buf), 40);
    for (int i = 0; i < 40; i++) CHECK_INT(buf[i], i);
    while (revdial_engine_event(r->e, &ev)) continue;
    CHECK_INT(revdial_engine_expected(r->e, id), 60);
    CHECK_INT(revdial_engine_input(r->e, buf + 40, 60, r->now), 60);
    while (revdial_engine_event(r->e, &ev)) continue;
    feed_header(r, id, 10);
    CHECK_INT(revdial_engine_expected(r->e, id), 0);  // 60 unread bytes come first
    CHECK_INT(revdial_engine_read(r->e, id, other, sizeof other), 60);
    CHECK(memcmp(other, buf + 40, 60) == 0);
    CHECK_INT(revdial_engine_expected(r->e, id), 10);
    CHECK_INT(revdial_engine_reset(r->e, id, 0), 0);
    CHECK_INT(revdial_engine_expected(r->e, id), 0);
    rig_end(r);
}

TEST(an_unread_byte_does_not_cost_a_page)
{
    enum { STREAMS = 1000 };
    rig *r = rig_with((revdial_limits){.max_streams = STREAMS});
    REQUIRE(r != NULL);
    r->quiet = 1;
    size_t before = r->heap.live_bytes;
    for (uint32_t n = 1; n <= STREAMS; n++) {
        rig_frame(r, WIRE_CREDIT, WIRE_SYN, rig_id(r, 1, n), 0);
        rig_data(r, rig_id(r, 1, n), 1);
    }
    CHECK((r->heap.live_bytes - before) / STREAMS <= 1024);
    rig_end(r);
}

TEST(memory_returns_to_where_it_was_after_a_thousand_bursts)  // 42
{
    rig *r = rig_with((revdial_limits){.keepalive_ms = 100000000, .stream_window_max = 262144});
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .acceptp1");
    r->quiet = 1;
    size_t before = 0;
    for (int i = 0; i < 300; i++) {
        rig_data(r, rig_id(r, 1, 1), 262144);
        rig_read_all(r, rig_id(r, 1, 1), SIZE_MAX);
        rig_flush(r);
        if (i == 2) before = r->heap.live_bytes;
    }
    CHECK_INT(r->heap.live_bytes, before);
    rig_end(r);
}

TEST(over_the_session_budget_one_stream_pays_and_the_others_live)
{
    rig *r = rig_with((revdial_limits){
        .session_window = 1 << 20, .stream_window_max = 262144, .keepalive_ms = 100000000});
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN Wp2+SYN Wp3+SYN Wp4+SYN Wp5+SYN Wp6+SYN "
                  ".acceptp1 .acceptp2 .acceptp3 .acceptp4 .acceptp5 .acceptp6");
    for (uint32_t n = 1; n <= 5; n++) rig_data(r, rig_id(r, 1, n), n == 4 ? 220000 : 190000);
    rig_data(r, rig_id(r, 1, 6), 10);
    CHECK(!strstr(r->log.s, "reset"));
    rig_data(r, rig_id(r, 1, 1), 72000);
    rig_flush(r);
    CHECK(strstr(r->log.s, "reset") != NULL);
    CHECK(strstr(r->log.s, "resetp1(6)") || strstr(r->log.s, "resetp4(6)"));
    CHECK_INT(r->wire.out_rst, r->counts[REVDIAL_EV_RESET]);
    CHECK(r->counts[REVDIAL_EV_RESET] <= 2);
    r->log.len = 0;
    script_run(r, ".readp2 .readp3 .readp5 .readp6");
    CHECK_STR(r->log.s, "p2#190000 p3#190000 p5#190000 p6#10");
    CHECK(!r->dead);
    rig_end(r);
}

TEST(the_session_budget_counts_what_comes_in_one_large_piece_too)
{
    rig *r = rig_with((revdial_limits){.session_window = 1 << 20});
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN Wp2+SYN Wp3+SYN Wp4+SYN Wp5+SYN .acceptp1 .acceptp2 .acceptp3 .acceptp4 "
                  ".acceptp5 Dp1#260000 Dp2#250000 Dp3#240000 Dp4#230000");
    CHECK(!strstr(r->log.s, "reset"));
    script_run(r, "Dp5#150000");
    CHECK_STR(rig_out(r), "Wp1+ACK Wp2+ACK Wp3+ACK Wp4+ACK Wp5+ACK Wp1+RST=6");
    rig_end(r);
}

TEST(over_the_budget_a_stream_that_its_peer_has_reset_pays_too_and_has_no_eof)
{
    rig *r = rig_with((revdial_limits){.session_window = 1 << 20});
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN Wp2+SYN Wp3+SYN Wp4+SYN Wp5+SYN .acceptp1 .acceptp2 .acceptp3 .acceptp4 "
                  ".acceptp5 Dp1#260000 Wp1+RST Dp2#250000 Dp3#240000 Dp4#230000");
    r->log.len = 0;
    script_run(r, "Dp5#150000 .readp1 .readp5");
    CHECK_STR(r->log.s, "readablep5 readp1:ERESET p5#150000");
    CHECK_INT(r->wire.out_rst, 0);  // its peer knows
    rig_end(r);
}

TEST(a_thousand_stalled_streams_stay_within_the_budget)  // 11, 55
{
    enum { STREAMS = 1000, BUDGET = 8 << 20 };
    rig *r = rig_with((revdial_limits){
        .session_window = BUDGET, .max_streams = STREAMS + 1, .keepalive_ms = 100000000});
    REQUIRE(r != NULL);
    r->quiet = 1;
    uint32_t good = rig_id(r, 1, STREAMS + 1);
    rig_frame(r, WIRE_CREDIT, WIRE_SYN, good, 0);
    revdial_engine_accept(r->e, good);
    for (uint32_t n = 1; n <= STREAMS; n++) {
        rig_frame(r, WIRE_CREDIT, WIRE_SYN, rig_id(r, 1, n), 0);
        revdial_engine_accept(r->e, rig_id(r, 1, n));
        rig_flush(r);
    }
    rig_stream *s = rig_stream_of(r, good);
    REQUIRE(s != NULL);
    uint64_t sent = 0;
    for (uint32_t piece = 0; piece < 20 && !r->dead; piece++)
        for (uint32_t n = 1; n <= STREAMS && !r->dead; n++) {
            judge_stream *j = judge_find(&r->wire, rig_id(r, 1, n));
            if (!j->rst_out) rig_data(r, rig_id(r, 1, n), 3000);
            rig_flush(r);
            if (n % 100) continue;
            rig_data(r, good, 5000);
            sent += 5000;
            rig_read_all(r, good, SIZE_MAX);
            rig_flush(r);
        }
    CHECK(!r->dead);
    CHECK(s->taken == sent && !s->bad);
    CHECK(r->wire.out_rst > 0);
    // A stream's last chunk is half empty at the worst, and chunks double.
    if (r->heap.peak_bytes > (size_t)BUDGET * 2 + STREAMS * 1024 + 512 * 1024)
        test_fail(__FILE__, __LINE__, "%zu bytes at the peak", r->heap.peak_bytes);
    rig_end(r);
}

// Opens stream n, which is accepted, and gives it bytes that nobody reads.
static uint32_t open_and_stuff(rig *r, uint32_t n, uint32_t bytes)
{
    uint32_t id = rig_id(r, 1, n);
    rig_frame(r, WIRE_CREDIT, WIRE_SYN, id, 0);
    revdial_engine_accept(r->e, id);
    rig_flush(r);
    if (bytes) rig_data(r, id, bytes);
    rig_flush(r);
    return id;
}

static int is_reset(rig *r, uint32_t id)
{
    const judge_stream *j = judge_find(&r->wire, id);
    return !j || j->rst_out;
}

TEST(newcomers_are_served_however_many_streams_are_stuck)  // 11, 55
{
    for (int role = REVDIAL_ROLE_PROXY; role <= REVDIAL_ROLE_BACKEND; role++) {
        rig_options o = {.role = role,
                         .limits = {.session_window = 1 << 20, .keepalive_ms = 100000000}};
        rig *r = rig_new(&o);
        char text[6] = "";
        REQUIRE(r != NULL);
        r->quiet = 1;
        for (uint32_t n = 1; n <= 4; n++) open_and_stuff(r, n, 262144);  // the budget, exactly
        CHECK_INT(r->wire.out_rst, 0);
        for (uint32_t n = 5; n <= 50; n++) {
            uint32_t id = open_and_stuff(r, n, 5);
            CHECK_INT(revdial_engine_read(r->e, id, text, sizeof text), 5);
            CHECK(!is_reset(r, id));
            rig_tick(r, 1000);
        }
        CHECK(is_reset(r, rig_id(r, 1, 1)));  // the oldest of the four, and no other
        CHECK_INT(r->wire.out_rst, 1);
        CHECK(!r->dead);
        rig_end(r);
    }
}

TEST(over_the_budget_those_pay_that_have_been_stuck_longest)
{
    rig *r = rig_with((revdial_limits){.session_window = 1 << 20});
    char some[20000];
    REQUIRE(r != NULL);
    r->quiet = 1;
    uint32_t slow = open_and_stuff(r, 1, 200000);
    for (uint32_t n = 2; n <= 5; n++) {
        rig_tick(r, 2000);
        open_and_stuff(r, n, 200000);
        CHECK_INT(revdial_engine_read(r->e, slow, some, sizeof some), sizeof some);
    }
    CHECK_INT(r->wire.out_rst, 0);
    for (uint32_t n = 6; n <= 9; n++) {
        rig_tick(r, 2000);
        open_and_stuff(r, n, 200000);
        CHECK(is_reset(r, rig_id(r, 1, n - 4)));  // in the order in which they got stuck
        CHECK_INT(r->wire.out_rst, n - 5);
        CHECK_INT(revdial_engine_read(r->e, slow, some, sizeof some), sizeof some);
    }
    CHECK(!is_reset(r, slow));
    rig_end(r);
}

TEST(a_flood_that_nobody_reads_pays_itself_and_not_the_slow_reader)
{
    enum { FLOOD = 300 };
    rig *r = rig_with((revdial_limits){.session_window = 1 << 20, .max_streams = 2 * FLOOD});
    char some[5000];
    REQUIRE(r != NULL);
    r->quiet = 1;
    uint32_t slow = open_and_stuff(r, 1, 200000);
    rig_tick(r, 3000);
    CHECK_INT(revdial_engine_read(r->e, slow, some, sizeof some), sizeof some);
    rig_tick(r, 3000);  // so long it has not been read from when they come, all at once
    for (uint32_t n = 2; n <= FLOOD; n++) open_and_stuff(r, n, 20000);
    CHECK(r->wire.out_rst > 0);
    CHECK(!is_reset(r, slow));
    CHECK(!is_reset(r, rig_id(r, 1, FLOOD)));
    rig_tick(r, 20000);  // now it has stopped as well, and first of all
    open_and_stuff(r, FLOOD + 1, 20000);
    CHECK(is_reset(r, slow));
    rig_end(r);
}

TEST(many_slow_readers_do_not_make_the_newcomer_pay)
{
    enum { SLOW = 10 };
    rig *r = rig_with((revdial_limits){.session_window = 1 << 20});
    char some[2000];
    REQUIRE(r != NULL);
    r->quiet = 1;
    for (uint32_t n = 1; n <= SLOW; n++) open_and_stuff(r, n, 104000);
    for (int second = 0; second < 3; second++) {
        rig_tick(r, 1000);
        for (uint32_t n = 1; n <= SLOW; n++)
            CHECK_INT(revdial_engine_read(r->e, rig_id(r, 1, n), some, sizeof some), sizeof some);
    }
    for (uint32_t n = SLOW + 1; n <= SLOW + 4; n++) {
        uint32_t id = open_and_stuff(r, n, 80000);
        CHECK(!is_reset(r, id));
    }
    CHECK(is_reset(r, rig_id(r, 1, 1)));
    CHECK_INT(r->wire.out_rst, 3);
    rig_end(r);
}

TEST(a_byte_left_in_each_chunk_cannot_hold_more_memory_than_the_budget_allows)
{
    enum { STREAMS = 2000, BUDGET = 1 << 20 };
    rig *r = rig_with((revdial_limits){
        .session_window = BUDGET, .max_streams = STREAMS, .keepalive_ms = 100000000});
    static char some[16384];
    REQUIRE(r != NULL);
    r->quiet = 1;
    for (uint32_t n = 1; n <= STREAMS && !r->dead; n++) {
        uint32_t id = open_and_stuff(r, n, 16384);
        revdial_engine_read(r->e, id, some, sizeof some - 1);
        rig_tick(r, 10);
    }
    CHECK(!r->dead);
    if (r->heap.live_bytes > 2 * BUDGET + STREAMS * 1024 + 512 * 1024)
        test_fail(__FILE__, __LINE__, "%zu bytes", r->heap.live_bytes);
    rig_end(r);
}

TEST(streams_that_end_give_their_bytes_back_to_the_session)  // 46
{
    rig *r = rig_with((revdial_limits){.session_window = 1 << 20});
    REQUIRE(r != NULL);
    r->quiet = 1;
    for (uint32_t n = 1; n <= 3000 && !r->dead; n++) {
        uint32_t id = rig_id(r, 1, n);
        rig_frame(r, WIRE_CREDIT, WIRE_SYN, id, 0);
        revdial_engine_accept(r->e, id);
        rig_data(r, id, 3000);
        if (n % 3 == 0) revdial_engine_reset(r->e, id, REVDIAL_RESET_CANCEL);
        if (n % 3 == 1) rig_frame(r, WIRE_CREDIT, WIRE_RST, id, 0);
        if (n % 3 == 2) rig_frame(r, WIRE_CREDIT, WIRE_FIN, id, 0);
        revdial_engine_close(r->e, id);
        rig_tick(r, 10);
    }
    revdial_engine_info info;
    revdial_engine_get_info(r->e, &info);
    CHECK_INT(info.buffered_bytes, 0);
    CHECK_INT(info.streams, 0);
    CHECK_INT(r->counts[REVDIAL_EV_OPEN], 3000);
    CHECK(!r->dead);
    rig_end(r);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
