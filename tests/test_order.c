// The order of what is sent, and how streams and sessions end. Numbers C.. are rows of the
// bad-input catalogue, plain numbers in comments are known bugs of other implementations (yamux
// study, section 6).
#define REVDIAL_NO_RUNTIME
#define REVDIAL_SELF_CHECK  // the mux checks its invariants at each call
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

// ---- scheduling and output

TEST(control_overtakes_queued_data_but_never_splits_a_frame)
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .acceptp1 .hold .writep1#100000");
    struct iovec iov[4];
    for (int i = 0; i < 30; i++) {  // in the middle of the first frame
        REQUIRE(revdial_engine_output(r->e, iov, 4) > 0);
        judge_out(&r->wire, iov[0].iov_base, 1);
        revdial_engine_sent(r->e, 1);
    }
    uint32_t first = r->wire.out.frame.len;
    script_run(r, "P0+SYN=5 Wp2+SYN .acceptp2 .flow .tick=1");
    rig_stream *s = rig_stream_of(r, rig_id(r, 1, 1));
    REQUIRE(s != NULL);
    CHECK_INT(s->sent, 100000);
    CHECK(!r->wire.failures);
    CHECK(strstr(rig_out(r), "P0+ACK=5 Wp2+ACK Dp1#") != NULL ||
          strstr(rig_out(r), "P0+ACK=5 Wp2+ACK D") != NULL);
    CHECK(first > 0 && first < 100000);
    rig_end(r);
}

TEST(fin_and_reset_come_behind_the_streams_own_data)
{
    static const script_case cases[] = {
        {"FIN",
         "Wp1+SYN .acceptp1 .hold .writep1#30000 .finp1 .flow .tick=1",
         "Wp1+ACK Dp1#30000 Wp1+FIN",
         "openp1",
         {0}},
        {"FIN, then RST",
         "Wp1+SYN .acceptp1 .hold .writep1'abc' .finp1 .rstp1=2 .flow .tick=1",
         NULL,
         "openp1",
         {0}},
        {"close after the peer's FIN",
         "Wp1+SYN Wp1+FIN .acceptp1 .hold .writep1#30000 .closep1 .flow "
         ".tick=1 P0+SYN=1",
         "Wp1+ACK Dp1#30000 Wp1+FIN P0+ACK=1",
         "openp1 finp1",
         {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(a_thousand_accepts_at_once_each_precede_their_data)
{
    rig *r = rig_with((revdial_limits){.max_streams = 1000});
    REQUIRE(r != NULL);
    r->quiet = 1;
    for (uint32_t n = 1; n <= 1000; n++) rig_frame(r, WIRE_CREDIT, WIRE_SYN, rig_id(r, 1, n), 0);
    for (uint32_t n = 1; n <= 1000; n++)
        CHECK_INT(revdial_engine_write(r->e, rig_id(r, 1, n), "x", 1), 1);
    rig_flush(r);
    CHECK_INT(r->wire.out_ack, 1000);
    CHECK_INT(r->wire.out_data_bytes, 1000);
    rig_end(r);
}

TEST(a_reset_does_not_overtake_the_fin_before_it)
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .acceptp1 .hold .writep1'abc' .finp1");
    for (int i = 0; i < WIRE_HEADER + 3; i++) rig_take(r, 1);  // the data is out, the FIN is not
    script_run(r, ".rstp1=2 .flow .tick=1");
    CHECK(!r->wire.failures);
    rig_end(r);
}

TEST(a_reset_does_not_lose_the_ack_of_data_that_goes_out_before_it)
{
    static const script_case cases[] = {
        {"write, reset", "Wp1+SYN .hold .writep1'abc' .rstp1=2 .flow .tick=1", NULL, "openp1", {0}},
        {"read, reset", "Wp1+SYN Dp1'abc' .hold .readp1 .rstp1=2 .flow .tick=1", NULL, NULL, {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(what_is_over_is_not_reset)
{
    static const script_case cases[] = {
        {"both ends have finished",
         "Wp1+SYN .acceptp1 Dp1'abc' Wp1+FIN .writep1'x' .finp1 .rstp1=2 .readp1 .tick=1",
         "Wp1+ACK Dp1'x' Wp1+FIN",
         "openp1 readablep1 finp1 readp1:ERESET",
         {0}},
        {"the peer has not",
         "Wp1+SYN .acceptp1 .finp1 .rstp1=2 .tick=1",
         "Wp1+ACK Wp1+FIN Wp1+RST=2",
         NULL,
         {0}},
        {"the peer finishes while our reset waits",
         "Wp1+SYN .acceptp1 .finp1 .hold .rstp1=2 Wp1+FIN Wp1+SYN .flow .tick=1",
         "Wp1+ACK Wp1+FIN Wp1+RST=1",
         NULL,
         {0}},
        {"the same, closed",
         "Wp1+SYN .acceptp1 .finp1 .hold .rstp1=2 .closep1 Wp1+FIN Wp1+SYN .flow .tick=1",
         "Wp1+ACK Wp1+FIN",
         NULL,
         {0}},
        {"resets cross before the ACK is sent",
         "Wp1+SYN .hold .acceptp1 .rstp1=2 Wp1+RST=9 .flow .tick=1 .closep1",
         "",
         NULL,
         {0}},
        {"the same, closed",  // and the table forgets it: rvd_mux_check()
         "Wp1+SYN .hold .acceptp1 .rstp1=2 .closep1 Wp1+RST=9 .flow .tick=1",
         "",
         NULL,
         {0}},
        {"what comes for an id that was used again and refused is not charged to its last owner",
         "Wp1+SYN .acceptp1 Dp1#200000 Wp1+FIN .finp1 .tick=1 Wp1+SYN Dp1#100000 Wp1+FIN Wp1+RST=2 "
         ".tick=1 P0+SYN=7",
         "Wp1+ACK Wp1+FIN Wp1+RST=1 P0+ACK=7",
         NULL,
         {0}},
        {"a flood of resets", "Wp1+SYN .acceptp1 2000*Wp1+RST=9", "Wp1+ACK G0=1", NULL, {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

// Or whoever dialled would give the same bytes to another backend, too.
TEST(who_has_read_and_then_resets_has_not_refused)
{
    static const script_case cases[] = {
        {"read, reset with REFUSED",
         "Wp1+SYN Dp1'abc' .hold .readp1 .rstp1=1 .flow .tick=1",
         "Wp1+ACK Wp1+RST=1",
         NULL,
         {0}},
        {"not read, reset with REFUSED",
         "Wp1+SYN Dp1'abc' .hold .rstp1=1 .flow .tick=1",
         "Wp1+RST=1",
         NULL,
         {0}},
    };
    SCRIPT_CHECK_ALL(cases);
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    const void *data;
    r->held = 1;
    script_run(r, "Wp1+SYN Dp1'abc'");
    CHECK_INT(revdial_engine_peek(r->e, rig_id(r, 1, 1), &data), 3);
    revdial_engine_consume(r->e, rig_id(r, 1, 1), 3);
    script_run(r, ".rstp1=1 .flow .tick=1");
    CHECK_STR(rig_out(r), "Wp1+ACK Wp1+RST=1");
    rig_end(r);
}

TEST(a_writer_without_credit_behind_the_peers_fin_is_not_left_hanging)  // 2.3
{
    static const script_case cases[] = {
        {"FIN, then the end of the credit",
         "Wp1+SYN .acceptp1 Wp1+FIN .writep1#300000 .tick=59000 P0+SYN=1 .tick=1001",
         "Wp1+ACK Dp1#262144 P0+ACK=1 Wp1+RST=2",
         "openp1 finp1 wrotep1=262144 resetp1(2)",
         {0}},
        {"the end of the credit, then FIN",
         "Wp1+SYN .acceptp1 .writep1#300000 Wp1+FIN .tick=59000 P0+SYN=1 .tick=1001",
         "Wp1+ACK Dp1#262144 P0+ACK=1 Wp1+RST=2",
         "openp1 wrotep1=262144 finp1 resetp1(2)",
         {0}},
        {"without FIN a pause is legitimate",
         "Wp1+SYN .acceptp1 .writep1#300000 .tick=14000 .tick=14000 .tick=14000 .tick=14000 "
         ".tick=14000 .tick=14000 P0+SYN=1",
         "Wp1+ACK Dp1#262144 P0+ACK=1",
         NULL,
         {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

// What crosses our reset is the peer's honest work: credit, the ACK, data, FIN, RST.
TEST(what_was_in_flight_when_we_reset_a_stream_is_never_a_flood)  // 4, 22, row 19, 29
{
    for (int role = REVDIAL_ROLE_PROXY; role <= REVDIAL_ROLE_BACKEND; role++) {
        rig_options o = {.role = role, .limits = {.keepalive_ms = 100000000}};
        rig *r = rig_new(&o);
        REQUIRE(r != NULL);
        r->quiet = 1;
        revdial_dial_opts opts = {0};
        int n = 0;
        for (; n < 5000 && !r->dead; n++) {
            int64_t id = revdial_engine_open(r->e, &opts, NULL);
            REQUIRE(id > 0);
            rig_flush(r);
            revdial_engine_reset(r->e, (uint32_t)id, REVDIAL_RESET_CANCEL);
            revdial_engine_close(r->e, (uint32_t)id);
            rig_flush(r);
            rig_frame(r, WIRE_CREDIT, WIRE_ACK, (uint32_t)id, 0);
            rig_data(r, (uint32_t)id, 100);
            rig_frame(r, WIRE_CREDIT, WIRE_FIN, (uint32_t)id, 0);
            rig_tick(r, 2);  // 500 a second
        }
        if (r->dead)
            test_fail(__FILE__, __LINE__, "%s: dead after %d cancelled dials: %s",
                      role == REVDIAL_ROLE_PROXY ? "proxy" : "backend", n, r->text);
        rig_end(r);
    }
}

TEST(the_output_limit_holds_from_the_start)
{
    for (int early = 0; early < 2; early++) {
        rig_options o = {.features = "window=1000000", .output_max = early ? 8192 : 0};
        rig *r = rig_new(&o);
        REQUIRE(r != NULL);
        if (!early) revdial_engine_set_output_max(r->e, 8192);
        script_run(r, "Wp1+SYN .acceptp1 .hold");
        static uint8_t bytes[262144];
        size_t took = 0;
        for (int i = 0; i < 100; i++) {
            ptrdiff_t n = revdial_engine_write(r->e, rig_id(r, 1, 1), bytes, sizeof bytes);
            REQUIRE(n >= 0);
            took += (size_t)n;
        }
        if (took > 8192 + 65524)
            test_fail(__FILE__, __LINE__, "%zu bytes taken, limit set %s", took,
                      early ? "before the handshake" : "after it");
        rig_end(r);
    }
}

// Several streams write all they can while the output's limit is `output_max`: each gets its share
// to within two turns.
static void shares_are_equal(size_t output_max, uint64_t turn)
{
    enum { STREAMS = 16 };
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    revdial_engine_set_output_max(r->e, output_max);
    r->quiet = 1;
    uint64_t wrote[STREAMS] = {0};
    static uint8_t bytes[65536];
    for (uint32_t n = 1; n <= STREAMS; n++)
        rig_frame(r, WIRE_CREDIT, WIRE_SYN, rig_id(r, 1, n), 8u << 20);
    rig_drain(r);
    for (uint32_t n = 1; n <= STREAMS; n++)
        while (revdial_engine_write(r->e, rig_id(r, 1, n), bytes, sizeof bytes) > 0) {
        }
    for (int round = 0; round < 400; round++) {
        rig_take(r, 50000);
        // The first stream does not wait to be told.
        ptrdiff_t took = revdial_engine_write(r->e, rig_id(r, 1, 1), bytes, sizeof bytes);
        if (took > 0) wrote[0] += (uint64_t)took;
        revdial_event ev;
        while (revdial_engine_event(r->e, &ev)) {
            if (ev.type != REVDIAL_EV_WRITABLE) continue;
            uint32_t at = ev.id / 2 + (ev.id & 1) - 1;
            REQUIRE(at < STREAMS);
            while ((took = revdial_engine_write(r->e, ev.id, bytes, sizeof bytes)) > 0)
                wrote[at] += (uint64_t)took;
        }
    }
    uint64_t least = UINT64_MAX, most = 0;
    for (int i = 0; i < STREAMS; i++) {
        if (wrote[i] < least) least = wrote[i];
        if (wrote[i] > most) most = wrote[i];
    }
    if (least == 0 || most - least > 2 * turn)
        test_fail(__FILE__, __LINE__, "shares from %llu to %llu", (unsigned long long)least,
                  (unsigned long long)most);
    rig_end(r);
}

TEST(busy_streams_get_equal_shares)  // C59, 62
{
    shares_are_equal(16384, 16372);
    shares_are_equal(262144, 65524);
}

// Bytes of the longest frame that a stream may write when told that it is its turn, while another
// waits for its own.
static ptrdiff_t longest_turn(const revdial_limits *limits, size_t output_max)
{
    static uint8_t bytes[65536];
    ptrdiff_t longest = 0;
    void *at;
    rig *r = rig_with(*limits);
    if (!r) return 0;
    r->quiet = 1;
    revdial_engine_set_output_max(r->e, output_max);
    for (uint32_t n = 1; n <= 2; n++)
        rig_frame(r, WIRE_CREDIT, WIRE_SYN, rig_id(r, 1, n), 8u << 20);
    rig_drain(r);
    for (uint32_t n = 1; n <= 2; n++)
        while (revdial_engine_write(r->e, rig_id(r, 1, n), bytes, sizeof bytes) > 0) {
        }
    for (int round = 0; round < 100; round++) {
        rig_take(r, 20000);
        revdial_event ev;
        while (revdial_engine_event(r->e, &ev)) {
            if (ev.type != REVDIAL_EV_WRITABLE) continue;
            ptrdiff_t room = revdial_engine_reserve(r->e, ev.id, &at, sizeof bytes);
            if (room > longest) longest = room;
            if (room > 0) memset(at, 0, (size_t)room);
            if (room > 0) revdial_engine_commit(r->e, ev.id, (size_t)room);
            while (revdial_engine_write(r->e, ev.id, bytes, sizeof bytes) > 0) {
            }
        }
    }
    rig_end(r);
    return longest;
}

TEST(turns_are_long_where_the_link_is_fast)  // 64 KiB on a slow one would be a long wait
{
    revdial_limits small = {.frame_bytes_max = 1000, .keepalive_ms = 100000000};
    CHECK_INT(longest_turn(&no_keepalive, 16384), 16372);
    CHECK_INT(longest_turn(&no_keepalive, 131072), 32768);
    CHECK_INT(longest_turn(&no_keepalive, 262144), 65524);
    CHECK_INT(longest_turn(&small, 262144), 1000);
}

TEST(a_turn_is_cut_when_the_link_turns_out_to_be_slow)
{
    enum { STREAMS = 16 };
    static uint8_t bytes[65536];
    revdial_event ev;
    void *at;
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    r->quiet = r->held = 1;
    for (uint32_t n = 1; n <= STREAMS; n++)
        rig_frame(r, WIRE_CREDIT, WIRE_SYN, rig_id(r, 1, n), 8u << 20);
    rig_drain(r);
    for (uint32_t n = 1; n <= STREAMS; n++)
        while (revdial_engine_write(r->e, rig_id(r, 1, n), bytes, sizeof bytes) > 0) {
        }
    rig_take(r, 1u << 20);
    REQUIRE(revdial_engine_event(r->e, &ev) && ev.type == REVDIAL_EV_WRITABLE);
    CHECK_INT(revdial_engine_reserve(r->e, ev.id, &at, sizeof bytes), 65524);
    CHECK_INT(revdial_engine_record_max(r->e), 65536);
    CHECK_INT(revdial_engine_write(r->e, ev.id, bytes, 100), 100);
    revdial_engine_set_output_max(r->e, 16384);
    CHECK_INT(revdial_engine_reserve(r->e, ev.id, &at, sizeof bytes), 16372);
    revdial_engine_set_output_max(r->e, 8192);
    CHECK_INT(revdial_engine_record_max(r->e), 8192 + WIRE_HEADER);
    rig_end(r);
}

enum { HERD = 500, HERD_OUTPUT = 65536 };

// HERD streams of the peer's, each of which waits for its turn behind a full output.
static rig *herd_new(void)
{
    static const uint8_t bytes[65536];
    rig *r = rig_with((revdial_limits){.max_streams = HERD, .keepalive_ms = 100000000});
    if (!r) return NULL;
    r->quiet = 1;
    for (uint32_t n = 1; n <= HERD; n++)
        rig_frame(r, WIRE_CREDIT, WIRE_SYN, rig_id(r, 1, n), 8u << 20);
    revdial_engine_set_output_max(r->e, HERD_OUTPUT);
    for (uint32_t n = 1; n <= HERD; n++) revdial_engine_accept(r->e, rig_id(r, 1, n));
    rig_flush(r);
    r->held = 1;
    for (uint32_t n = 1; n <= HERD; n++)
        while (revdial_engine_write(r->e, rig_id(r, 1, n), bytes, sizeof bytes) > 0) {
        }
    return r;
}

// Drains the events. Returns how many were told to write; the last HERD of them are in `ids`.
static int herd_told(rig *r, uint32_t ids[HERD])
{
    revdial_event ev;
    int n = 0;
    while (revdial_engine_event(r->e, &ev))
        if (ev.type == REVDIAL_EV_WRITABLE) ids[n++ % HERD] = ev.id;
    return n;
}

TEST(as_many_writers_are_woken_as_there_is_room_for)
{
    static const uint8_t bytes[65536];
    uint32_t ids[HERD];
    uint64_t told = 0, empty = 0;
    rig *r = herd_new();
    REQUIRE(r != NULL);
    for (int round = 0; round < 1000; round++) {
        rig_take(r, 30000);
        int n = herd_told(r, ids);
        for (int i = 0; i < n; i++)  // all are awake before the first of them writes
            empty += revdial_engine_write(r->e, ids[i], bytes, 16000) <= 0;
        for (int i = 0; i < n; i++)
            while (revdial_engine_write(r->e, ids[i], bytes, 16000) > 0) {
            }
        told += (uint64_t)n;
    }
    CHECK(told >= 1500);
    if (empty)
        test_fail(__FILE__, __LINE__, "%llu of %llu were woken for nothing",
                  (unsigned long long)empty, (unsigned long long)told);
    rig_end(r);
}

TEST(who_is_woken_and_does_not_write_keeps_nobody_else_waiting)
{
    uint32_t ids[HERD];
    rig *r = herd_new();
    REQUIRE(r != NULL);
    int total = 0;
    for (int i = 0; i < 100; i++) rig_take(r, 1 << 20);
    for (int i = 0; i < HERD && total < HERD - 50; i++) {
        int n = herd_told(r, ids);
        total += n;
        if (n > HERD_OUTPUT / 16372 + 1) test_fail(__FILE__, __LINE__, "%d at once", n);
        int64_t at = revdial_engine_tick(r->e, r->now);
        if (!CHECK(at > r->now && at <= r->now + 10000)) break;
        if (i % 3 == 0) revdial_engine_reset(r->e, ids[0], REVDIAL_RESET_CANCEL);
        if (i % 3 == 1) revdial_engine_end_write(r->e, ids[0]);
        r->now = at;
        revdial_engine_tick(r->e, r->now);
    }
    CHECK(total >= HERD - 50);
    rig_end(r);
}

TEST(a_keystroke_does_not_wait_behind_everything_that_bulk_has_to_send)  // 62
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    static uint8_t bytes[65536];
    script_run(r, "Wp1+SYN=8000000 .acceptp1 Wp2+SYN .acceptp2 .hold");
    revdial_engine_set_output_max(r->e, 65536);
    size_t queued = 0;
    for (int i = 0; i < 50; i++) {
        ptrdiff_t n = revdial_engine_write(r->e, rig_id(r, 1, 1), bytes, sizeof bytes);
        REQUIRE(n >= 0);
        queued += (size_t)n;
    }
    CHECK(queued <= 2 * 65536 + 65524);
    CHECK_INT(revdial_engine_write(r->e, rig_id(r, 1, 2), bytes, 1), 1);
    rig_end(r);
}

TEST(a_writer_that_waits_is_told_when_there_is_room)
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    static uint8_t bytes[262144];
    script_run(r, "Wp1+SYN .acceptp1");
    uint32_t id = rig_id(r, 1, 1);
    size_t wrote = 0;
    while (wrote < 262144) {
        ptrdiff_t n = revdial_engine_write(r->e, id, bytes, 262144 - wrote);
        REQUIRE(n >= 0);
        wrote += (size_t)n;
        if (!n) rig_flush(r);
    }
    rig_flush(r);
    CHECK_INT(revdial_engine_write(r->e, id, bytes, 1), 0);
    unsigned before = r->counts[REVDIAL_EV_WRITABLE];
    script_run(r, "Wp1=5000");
    CHECK_INT(r->counts[REVDIAL_EV_WRITABLE], before + 1);
    CHECK_INT(revdial_engine_write(r->e, id, bytes, 5000), 5000);
    rig_end(r);
}

TEST(reserve_and_commit_make_the_frame_that_write_makes)
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .acceptp1");
    uint32_t id = rig_id(r, 1, 1);
    void *at = NULL;
    ptrdiff_t room = revdial_engine_reserve(r->e, id, &at, 1000);
    REQUIRE(room > 0 && room <= 1000 && at);
    memset(at, 'x', (size_t)room);
    revdial_engine_commit(r->e, id, 0);
    rig_flush(r);
    CHECK_STR(rig_out(r), "Wp1+ACK");
    room = revdial_engine_reserve(r->e, id, &at, 3);
    REQUIRE(room == 3);
    memcpy(at, "abc", 3);
    revdial_engine_commit(r->e, id, 2);
    rig_flush(r);
    CHECK_STR(rig_out(r), "Wp1+ACK Dp1'ab'");
    CHECK_INT(revdial_engine_reserve(r->e, rig_id(r, 1, 7), &at, 3), REVDIAL_EINVAL);
    script_run(r, ".finp1");
    CHECK_INT(revdial_engine_reserve(r->e, id, &at, 3), REVDIAL_ECLOSED);
    rig_end(r);
}

// Data frames that came out since the last call.
static uint64_t frames_out(rig *r)
{
    static uint64_t before;
    uint64_t now = r->wire.out_frames[WIRE_DATA], n = now > before ? now - before : now;
    before = now;
    return n;
}

TEST(small_writes_in_a_row_share_a_frame_until_it_has_been_seen)
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    uint32_t one = rig_id(r, 1, 1);
    struct iovec iov[4];
    void *at = NULL;
    script_run(r, "Wp1+SYN .acceptp1 Wp2+SYN .acceptp2 .hold");
    frames_out(r);
    script_run(r, ".writep1'abc' .writep1'def' .writep1'ghi' .flow .hold");
    CHECK_INT(frames_out(r), 1);
    script_run(r, ".writep1'1' .writep2'2' .writep1'3' .writep1'4' .flow .hold");
    CHECK_INT(frames_out(r), 3);
    script_run(r, ".writep1'5'");
    CHECK(revdial_engine_output(r->e, iov, 4) > 0);  // somebody may be sending it now
    script_run(r, ".writep1'6' .flow .hold");
    CHECK_INT(frames_out(r), 2);
    script_run(r, ".writep2#58000 .writep1'7'");
    CHECK(revdial_engine_reserve(r->e, one, &at, 60000) > 0);  // in a chunk of its own
    revdial_engine_commit(r->e, one, 0);
    script_run(r, ".writep1'8' .flow .hold .writep1'9' .finp1 .flow");
    CHECK_STR(rig_out(r), "Wp1+ACK Wp2+ACK Dp1'abcdefghi' Dp1'1' Dp2'2' Dp1'34' Dp1'56' "
                          "Dp2#58000 Dp1'789' Wp1+FIN");
    rig_end(r);
}

TEST(a_shared_frame_grows_no_longer_than_frames_are)
{
    rig *r = rig_with((revdial_limits){.frame_bytes_max = 1000, .keepalive_ms = 100000000});
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .acceptp1 .hold");
    frames_out(r);
    for (int i = 0; i < 100; i++) script_run(r, ".writep1#100");
    script_run(r, ".flow");
    CHECK_INT(frames_out(r), 10);
    rig_check_out(r, rig_id(r, 1, 1), 10000);
    rig_end(r);
}

TEST(peek_and_consume_are_a_read_without_the_copy)
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .acceptp1 Dp1'abcdef' Wp1+FIN");
    uint32_t id = rig_id(r, 1, 1);
    const void *data = NULL;
    CHECK_INT(revdial_engine_peek(r->e, id, &data), 6);
    revdial_engine_consume(r->e, id, 2);
    CHECK_INT(revdial_engine_peek(r->e, id, &data), 4);
    CHECK(data && !memcmp(data, "cdef", 4));
    char two[2];
    CHECK_INT(revdial_engine_read(r->e, id, two, 2), 2);
    CHECK(!memcmp(two, "cd", 2));
    revdial_engine_consume(r->e, id, 2);
    CHECK_INT(revdial_engine_peek(r->e, id, &data), 0);
    CHECK_INT(revdial_engine_read(r->e, id, two, 2), 0);  // EOF
    rig_end(r);
}

// The caller has given the bytes away and comes back, and meanwhile the stream has lost them.
TEST(consume_of_bytes_that_a_stream_has_lost_meanwhile_changes_nothing)
{
    static const char *const ends[] = {".rstp1=9", ".stopp1", "Wp2+SYN .acceptp2"};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        rig *r = rig_with((revdial_limits){.session_window = 1 << 20});
        REQUIRE(r != NULL);
        script_run(r, "Wp1+SYN .acceptp1 Dp1#200000");
        uint32_t id = rig_id(r, 1, 1);
        const void *data = NULL;
        ptrdiff_t n = revdial_engine_peek(r->e, id, &data);
        CHECK(n > 0);
        script_run(r, ends[i]);
        for (uint32_t k = 2; i == 2 && k <= 7; k++) {  // the session's budget runs out
            rig_frame(r, WIRE_CREDIT, WIRE_SYN, rig_id(r, 1, k + 1), 0);
            rig_data(r, rig_id(r, 1, k), 200000);
        }
        CHECK(revdial_engine_peek(r->e, id, &data) < 0);
        revdial_engine_consume(r->e, id, (size_t)n);
        CHECK(revdial_engine_peek(r->e, id, &data) < 0);
        CHECK(!r->dead);
        rig_end(r);
    }
}

TEST(all_that_is_unread_is_shown_in_pieces_and_in_its_order)
{
    struct iovec iov[16];
    int count = 16;
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    uint32_t id = rig_id(r, 1, 1);
    script_run(r, "Wp1+SYN .acceptp1");
    CHECK_INT(revdial_engine_peekv(r->e, id, iov, &count), REVDIAL_EAGAIN);
    script_run(r, "Dp1#40000 Dp1#40000 Dp1#40000 Wp1+FIN");
    for (uint64_t at = 0; at < 120000;) {
        size_t sum = 0;
        count = at ? 16 : 2;
        ptrdiff_t n = revdial_engine_peekv(r->e, id, iov, &count);
        CHECK(at ? n == 120000 - (ptrdiff_t)at : count == 2 && n > 16384 && n < 40000);
        for (int i = 0; i < count; i++)
            for (size_t k = 0; k < iov[i].iov_len; k++, sum++)
                if (((const uint8_t *)iov[i].iov_base)[k] != rig_pattern(id, 1, at + sum))
                    n = REVDIAL_EPROTO;
        if (!CHECK_INT(sum, n)) break;
        revdial_engine_consume(r->e, id, sum);
        at += sum;
    }
    CHECK_INT(revdial_engine_peekv(r->e, id, iov, &count), 0);
    count = 0;
    CHECK_INT(revdial_engine_peekv(r->e, id, iov, &count), REVDIAL_EINVAL);
    CHECK_INT(revdial_engine_peekv(r->e, id + 2, iov, &count), REVDIAL_EINVAL);
    rig_end(r);
}

TEST(payload_is_shown_where_it_lies_until_the_events_are_drained)
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .acceptp1");
    uint32_t id = rig_id(r, 1, 1);
    uint8_t frame[WIRE_HEADER + 5];
    wire_frame f = {0, WIRE_DATA, 0, id, 5};
    wire_put(frame, &f);
    memcpy(frame + WIRE_HEADER, "hello", 5);
    CHECK_INT(revdial_engine_input(r->e, frame, sizeof frame, r->now), sizeof frame);
    revdial_event ev;
    const void *data = NULL;
    REQUIRE(revdial_engine_event(r->e, &ev) && ev.type == REVDIAL_EV_READABLE);
    CHECK_INT(revdial_engine_peek(r->e, id, &data), 5);
    CHECK(data == frame + WIRE_HEADER);
    revdial_engine_consume(r->e, id, 2);
    CHECK_INT(revdial_engine_event(r->e, &ev), 0);
    memset(frame, 0xEE, sizeof frame);
    CHECK_INT(revdial_engine_peek(r->e, id, &data), 3);
    CHECK(!memcmp(data, "llo", 3));
    rig_end(r);
}

TEST(the_user_pointer_comes_back_with_each_event)
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    int one = 1, two = 2;
    script_run(r, "Wp1+SYN");
    CHECK(r->last.ud == NULL);
    CHECK_INT(revdial_engine_set_ud(r->e, rig_id(r, 1, 1), &one), 0);
    script_run(r, "Dp1'x'");
    CHECK(r->last.ud == &one);
    CHECK_INT(revdial_engine_set_ud(r->e, rig_id(r, 1, 2), &two), REVDIAL_EINVAL);
    revdial_dial_opts opts = {0};
    CHECK(revdial_engine_open(r->e, &opts, &two) > 0);
    script_run(r, "Wm1+ACK");
    CHECK(r->last.ud == &two);
    rig_end(r);
}

// ---- the end of streams and sessions

TEST(streams_finished_by_both_leave_the_table_whoever_was_first)  // 66c
{
    static const char *const scripts[] = {
        ".open Wm1+ACK .finm1 Wm1+FIN .closem1",
        ".open Wm1+ACK Wm1+FIN .finm1 .closem1",
        ".open Wm1+ACK Wm1+FIN .closem1",
        ".open Wm1+ACK .closem1 Wm1+FIN",
        "Wp1+SYN .acceptp1 Wp1+FIN .finp1 .closep1",
        "Wp1+SYN .acceptp1 .finp1 Wp1+FIN .closep1",
        "Wp1+SYN .acceptp1 .closep1 Dp1'x' Wp1+FIN",
        "Wp1+SYN .rstp1 .closep1",
        "Wp1+SYN Wp1+RST .closep1",
        ".open Wm1+RST .closem1",
        ".open .rstm1 .closem1",
        "Wp1+SYN Dp1'x' Wp1+FIN .closep1",
    };
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++)
        for (int role = REVDIAL_ROLE_PROXY; role <= REVDIAL_ROLE_BACKEND; role++) {
            rig_options o = {.role = role};
            rig *r = rig_new(&o);
            REQUIRE(r != NULL);
            size_t before = r->heap.live_bytes;
            script_run(r, scripts[i]);
            if (live_streams(r) || r->heap.live_bytes > before + 70000)
                test_fail(__FILE__, __LINE__, "%s: %zu streams, %zu bytes", scripts[i],
                          live_streams(r), r->heap.live_bytes - before);
            rig_end(r);
        }
}

TEST(a_closed_stream_waits_for_the_peers_fin_but_not_for_ever)  // 3, C60
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    script_run(r, ".open Wm1+ACK .writem1'x' .closem1 .tick=29000");
    CHECK_INT(live_streams(r), 1);
    script_run(r, ".tick=2000");
    CHECK_INT(live_streams(r), 0);
    CHECK_STR(rig_out(r), "Wm1+SYN Dm1'x' Wm1+FIN Wm1+RST=2");
    rig_end(r);
}

TEST(graceful_close_delivers_everything)  // C61, 25c
{
    static const rig_options plain = {0};
    for (size_t chunk = 0; chunk <= 3; chunk += 3) {
        rig_pair p;
        REQUIRE(pair_new(&p, &plain, &plain));
        p.chunk = chunk;
        uint64_t want = chunk ? 200000 : 10000000, wrote = 0;
        script_run(p.proxy, ".open");
        pair_pump(&p);
        static uint8_t bytes[65536];
        while (wrote < want) {
            size_t n = want - wrote < sizeof bytes ? (size_t)(want - wrote) : sizeof bytes;
            for (size_t k = 0; k < n; k++) bytes[k] = rig_pattern(1, 1, wrote + k);
            ptrdiff_t took = revdial_engine_write(p.proxy->e, 1, bytes, n);
            REQUIRE(took >= 0);
            wrote += (uint64_t)took;
            pair_pump(&p);
            rig_read_all(p.backend, 1, SIZE_MAX);
            pair_pump(&p);
        }
        revdial_engine_close(p.proxy->e, 1);
        revdial_engine_drain(p.proxy->e);
        pair_pump(&p);
        CHECK_INT(rig_read_all(p.backend, 1, SIZE_MAX), 0);
        rig_stream *s = rig_stream_of(p.backend, 1);
        CHECK(s && s->taken == want && !s->bad);
        CHECK_INT(p.backend->counts[REVDIAL_EV_GOAWAY], 1);
        revdial_engine_close(p.backend->e, 1);
        pair_pump(&p);
        CHECK_INT(live_streams(p.proxy) + live_streams(p.backend), 0);
        pair_end(&p);
    }
}

TEST(c51_a_goaway_does_not_overtake_what_is_queued)
{
    static const script_case cases[] = {
        {"shutdown",
         "Wp1+SYN=2000000 .acceptp1 .hold .writep1#100000 .shutdown .flow .tick=1",
         "Wp1+ACK Dp1#100000 G0=0",
         NULL,
         {0}},
        {"shutdown is the end", ".shutdown .open", "G0=0", "dead(ECLOSED) open:ECLOSED", {0}},
        {"shutdown, twice", ".shutdown .shutdown", "G0=0", "dead(ECLOSED)", {0}},
        {"a protocol error",
         "Wp1+SYN .acceptp1 .hold .writep1#1000 D0 .flow .tick=1",
         "Wp1+ACK Dp1#1000 G0=1",
         NULL,
         {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(a_stream_that_is_closed_after_the_session_died_gets_no_FIN)  // it would make a cut look whole
{
    static const script_case cases[] = {
        {"shutdown, close",
         "Wp1+SYN .acceptp1 .writep1'x' .hold .shutdown .finp1 .closep1 .flow .tick=1",
         "Wp1+ACK Dp1'x' G0=0",
         NULL,
         {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

TEST(shutdown_still_says_what_was_accepted_and_finished)
{
    static const script_case cases[] = {
        {"FIN",
         "Wp1+SYN .acceptp1 .writep1'x' .hold .finp1 .shutdown .flow .tick=1",
         "Wp1+ACK Dp1'x' Wp1+FIN G0=0",
         "openp1 dead(ECLOSED)",
         {0}},
        {"ACK",
         "Wp1+SYN .hold .writep1'x' .shutdown .flow .tick=1",
         "Wp1+ACK Dp1'x' G0=0",
         "openp1 dead(ECLOSED)",
         {0}},
        {"RST",
         "Wp1+SYN .acceptp1 .hold .rstp1=9 .shutdown .flow .tick=1",
         "Wp1+ACK Wp1+RST=9 G0=0",
         "openp1 dead(ECLOSED)",
         {0}},
    };
    SCRIPT_CHECK_ALL(cases);
}

// A reset of ours drops what was not read: whatever the peer had finished, that is no EOF.
TEST(bytes_lost_by_our_own_reset_are_never_followed_by_eof)
{
    static const char *const scripts[] = {
        "Wp1+SYN Dp1'abc' Wp1+FIN .rstp1=2 .readp1",
        "Wp1+SYN .acceptp1 Dp1'abc' Wp1+FIN Dp1'x' Dp1'y' .readp1",  // row 18
        "Wp1+SYN Dp1'abc' Wp1+FIN .tick=31000 .readp1",              // nobody accepted
        "Wp1+SYN .acceptp1 Dp1'abc' Wp1+FIN .writep1#300000 .tick=61000 .readp1",  // row 2.3
    };
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++) {
        rig *r = rig_with(no_keepalive);
        REQUIRE(r != NULL);
        script_run(r, scripts[i]);
        if (strstr(r->log.s, "eofp1") && !strstr(r->log.s, "p1'abc'"))
            test_fail(__FILE__, __LINE__, "%s: %s", scripts[i], r->log.s);
        CHECK_INT(r->wire.out_rst, 1);
        rig_end(r);
    }
    rig *r = rig_with((revdial_limits){.session_window = 1 << 20});
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN Wp2+SYN Wp3+SYN Wp4+SYN Wp5+SYN");
    for (uint32_t n = 1; n <= 5; n++) {
        revdial_engine_accept(r->e, rig_id(r, 1, n));
        rig_data(r, rig_id(r, 1, n), n == 1 ? 250000 : 200000);
        if (n == 1) rig_frame(r, WIRE_CREDIT, WIRE_FIN, rig_id(r, 1, 1), 0);
    }
    rig_flush(r);
    CHECK(strstr(r->log.s, "resetp1(6)") != NULL);
    CHECK(rig_read_all(r, rig_id(r, 1, 1), SIZE_MAX) < 0);
    rig_end(r);
}

TEST(nothing_happens_after_death)  // 28
{
    rig *r = rig_with(no_keepalive);
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .acceptp1 D0");
    CHECK(r->dead);
    uint8_t byte = 0;
    revdial_event ev;
    CHECK_INT(revdial_engine_input(r->e, &byte, 1, r->now), REVDIAL_ECLOSED);
    CHECK_INT(revdial_engine_input(r->e, &byte, 0, r->now), REVDIAL_ECLOSED);
    CHECK_INT(revdial_engine_event(r->e, &ev), 0);
    CHECK(revdial_engine_write(r->e, rig_id(r, 1, 1), &byte, 1) < 0);
    revdial_engine_drain(r->e);
    revdial_engine_terminate(r->e);
    CHECK_INT(revdial_engine_event(r->e, &ev), 0);
    CHECK_INT(revdial_engine_tick(r->e, r->now + 1000000000), -1);
    CHECK_INT(revdial_engine_event(r->e, &ev), 0);
    struct iovec iov[2];
    CHECK_INT(revdial_engine_output(r->e, iov, 2), 0);
    revdial_engine_close(r->e, rig_id(r, 1, 1));
    rig_end(r);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
