// Lent payload: frames whose bytes stay with the caller until they have left.
#define REVDIAL_NO_RUNTIME
#define REVDIAL_SELF_CHECK  // the mux checks its invariants at each call
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include "engine_script.h"

static const rig_options calm = {.limits = {.keepalive_ms = 100000000}};

// A rig with the peer's streams p1 and p2, accepted, and the output held.
static rig *rig_ready(void)
{
    rig *r = rig_new(&calm);
    if (r) script_run(r, "Wp1+SYN .acceptp1 Wp2+SYN .acceptp2 .hold");
    return r;
}

// Memory to lend, of its own block so that a use after free is seen.
static uint8_t *pattern_new(rig *r, uint32_t id, size_t n)
{
    uint8_t *bytes = malloc(n);
    rig_stream *s = rig_stream_of(r, id);
    if (!bytes || !s) abort();
    for (size_t i = 0; i < n; i++) bytes[i] = rig_pattern(id, 0, s->written + i);
    s->written += n;
    return bytes;
}

static void scribble(uint8_t *bytes, size_t n)
{
    memset(bytes, 0xEE, n);
    free(bytes);
}

TEST(lent_bytes_are_shown_where_they_lie)
{
    rig *r = rig_ready();
    REQUIRE(r != NULL);
    uint32_t id = rig_id(r, 1, 1);
    uint8_t *bytes = pattern_new(r, id, 5000);
    CHECK_INT(revdial_engine_lend(r->e, id, bytes, 5000), 5000);
    CHECK_INT(revdial_engine_lent(r->e, id), 5000);
    struct iovec iov[8];
    int found = 0, n = revdial_engine_output(r->e, iov, 8);
    for (int i = 0; i < n; i++) found += iov[i].iov_base == bytes && iov[i].iov_len == 5000;
    CHECK_INT(found, 1);
    CHECK_INT(r->counts[REVDIAL_EV_SENT], 0);
    script_run(r, ".flow");
    CHECK_INT(r->counts[REVDIAL_EV_SENT], 1);
    CHECK_INT(revdial_engine_lent(r->e, id), 0);
    scribble(bytes, 5000);
    CHECK_STR(rig_out(r), "Wp1+ACK Wp2+ACK Dp1#5000");
    rig_check_out(r, id, 5000);
    rig_end(r);
}

TEST(lent_and_copied_bytes_keep_their_order)
{
    for (size_t step = 1; step <= 70000; step = step * 7 + 1) {
        rig *r = rig_ready();
        REQUIRE(r != NULL);
        uint32_t one = rig_id(r, 1, 1), two = rig_id(r, 1, 2);
        uint8_t *bytes[6];
        for (int i = 0; i < 6; i++) {
            script_run(r, ".writep1#100");
            bytes[i] = pattern_new(r, i & 1 ? two : one, 3000);
            CHECK_INT(revdial_engine_lend(r->e, i & 1 ? two : one, bytes[i], 3000), 3000);
            script_run(r, ".writep2#50");
        }
        script_run(r, ".finp1");
        for (int i = 0; i < 3; i++) rig_take(r, step);
        script_run(r, "P0+SYN=7");  // overtakes what is queued, splits no frame
        for (int i = 0; i < 100000 && !r->wire.out_fin; i++) rig_take(r, step);
        script_run(r, ".flow");
        rig_check_out(r, one, 600 + 9000);
        rig_check_out(r, two, 300 + 9000);
        CHECK(r->counts[REVDIAL_EV_SENT] >= 2);
        CHECK_INT(revdial_engine_lent(r->e, one) + revdial_engine_lent(r->e, two), 0);
        for (int i = 0; i < 6; i++) scribble(bytes[i], 3000);
        rig_end(r);
    }
}

TEST(a_large_loan_is_cut_into_frames_within_credit_and_turn)
{
    rig *r = rig_ready();
    REQUIRE(r != NULL);
    uint32_t id = rig_id(r, 1, 1);
    uint8_t *bytes = pattern_new(r, id, 300000);
    revdial_flow_info l;
    script_run(r, "Wp1=30000");
    ptrdiff_t n = revdial_engine_lend(r->e, id, bytes, 300000);
    CHECK_INT(n, 4 * 65524);  // the output's limit, 256 KiB
    CHECK_INT(revdial_engine_lend(r->e, id, bytes + n, 300000 - (size_t)n), 0);
    CHECK_INT(revdial_engine_get_flow(r->e, id, &l), 0);
    CHECK_STR(l.blocked_on, "socket");
    script_run(r, ".flow .hold");
    n += revdial_engine_lend(r->e, id, bytes + n, 300000 - (size_t)n);
    CHECK_INT(n, 262144 + 30000);
    CHECK_INT(revdial_engine_lend(r->e, id, bytes + n, 300000 - (size_t)n), 0);
    CHECK_INT(revdial_engine_get_flow(r->e, id, &l), 0);
    CHECK_STR(l.blocked_on, "peer's credit");
    CHECK_INT(l.sent, n);
    script_run(r, "Wp1=100000");
    CHECK_INT(revdial_engine_lend(r->e, id, bytes + n, 300000 - (size_t)n), 300000 - n);
    script_run(r, ".flow");
    rig_check_out(r, id, 300000);
    CHECK_INT(r->counts[REVDIAL_EV_SENT], 2);
    scribble(bytes, 300000);
    rig_end(r);
}

TEST(a_loan_accepts_the_stream_and_its_ack_goes_first)
{
    rig *r = rig_new(&calm);
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .hold");
    CHECK_INT(revdial_engine_lend(r->e, rig_id(r, 1, 1), "abc", 3), 3);
    script_run(r, ".flow");
    CHECK_STR(rig_out(r), "Wp1+ACK Dp1'abc'");
    CHECK_INT(revdial_engine_lend(r->e, rig_id(r, 1, 9), "abc", 3), REVDIAL_EINVAL);
    CHECK_INT(revdial_engine_lend(r->e, rig_id(r, 1, 1), NULL, 0), 0);
    script_run(r, ".finp1");
    CHECK_INT(revdial_engine_lend(r->e, rig_id(r, 1, 1), "abc", 3), REVDIAL_ECLOSED);
    rig_end(r);
}

TEST(recalled_bytes_go_out_although_their_memory_is_gone)
{
    for (size_t sent = 0; sent < 9000; sent = sent * 3 + 1) {
        rig *r = rig_ready();
        REQUIRE(r != NULL);
        uint32_t id = rig_id(r, 1, 1);
        uint8_t *bytes = pattern_new(r, id, 4000);
        script_run(r, ".writep2#100");
        CHECK_INT(revdial_engine_lend(r->e, id, bytes, 4000), 4000);
        script_run(r, ".writep2#100");
        rig_take(r, sent);
        CHECK_INT(revdial_engine_recall(r->e, id), 0);
        CHECK_INT(revdial_engine_recall(r->e, id), 0);
        CHECK_INT(revdial_engine_lent(r->e, id), 0);
        scribble(bytes, 4000);
        script_run(r, ".flow .writep1#10");
        rig_check_out(r, id, 4010);
        CHECK_INT(r->counts[REVDIAL_EV_SENT], sent > 4300);  // nothing to tell who took it back
        rig_end(r);
    }
}

TEST(what_is_on_its_way_cannot_be_recalled_before_sent)
{
    rig *r = rig_ready();
    REQUIRE(r != NULL);
    uint32_t id = rig_id(r, 1, 1);
    uint8_t *first = pattern_new(r, id, 3000), *second = pattern_new(r, id, 2000);
    struct iovec iov[8];
    CHECK_INT(revdial_engine_lend(r->e, id, first, 3000), 3000);
    CHECK(revdial_engine_output(r->e, iov, 8) > 0);
    CHECK_INT(revdial_engine_lend(r->e, id, second, 2000), 2000);
    CHECK_INT(revdial_engine_recall(r->e, id), 3000);  // the second was not shown
    scribble(second, 2000);
    rig_take(r, 12 + 1000);  // the header and a third of it
    CHECK_INT(revdial_engine_lent(r->e, id), 2000);
    CHECK_INT(revdial_engine_recall(r->e, id), 0);
    scribble(first, 3000);
    script_run(r, ".flow");
    rig_check_out(r, id, 5000);
    CHECK(revdial_engine_output(r->e, iov, 8) == 0);

    first = pattern_new(r, id, 100);
    CHECK_INT(revdial_engine_lend(r->e, id, first, 100), 100);
    CHECK(revdial_engine_output(r->e, iov, 8) > 0);
    CHECK_INT(revdial_engine_recall(r->e, id), 100);
    revdial_engine_sent(r->e, 0);  // the socket took nothing
    CHECK_INT(revdial_engine_recall(r->e, id), 0);
    scribble(first, 100);
    script_run(r, ".flow");
    rig_check_out(r, id, 5100);
    rig_end(r);
}

TEST(a_reset_does_not_end_the_need_for_lent_bytes)
{
    static const char *const resets[] = {".rstp1=2", "Wp1+RST", ".rstp1=2 .closep1",
                                         "Wp1+RST .closep1", ".closep1 Wp1+FIN"};
    for (size_t i = 0; i < sizeof resets / sizeof *resets; i++)
        for (size_t sent = 0; sent < 3000; sent = sent * 5 + 20) {
            rig *r = rig_ready();
            REQUIRE(r != NULL);
            uint32_t id = rig_id(r, 1, 1);
            uint8_t *bytes = pattern_new(r, id, 2000);
            CHECK_INT(revdial_engine_lend(r->e, id, bytes, 2000), 2000);
            rig_take(r, sent);
            script_run(r, resets[i]);
            size_t lent = revdial_engine_lent(r->e, id);
            CHECK_INT(lent, sent < 12 ? 2000 : sent < 2012 ? 2012 - sent : 0);
            if (i & 1) {
                CHECK_INT(revdial_engine_recall(r->e, id), 0);
                scribble(bytes, 2000);
            }
            script_run(r, ".flow");
            CHECK_INT(revdial_engine_lent(r->e, id), 0);
            CHECK_INT(r->counts[REVDIAL_EV_SENT], sent >= 2012);
            rig_check_out(r, id, 2000);
            if (!(i & 1)) scribble(bytes, 2000);
            rig_end(r);
        }
}

TEST(a_dead_session_shows_its_loans_until_they_are_recalled)
{
    for (int recall = 0; recall < 2; recall++) {
        rig *r = rig_ready();
        REQUIRE(r != NULL);
        uint32_t id = rig_id(r, 1, 1);
        uint8_t *bytes = pattern_new(r, id, 2000);
        CHECK_INT(revdial_engine_lend(r->e, id, bytes, 2000), 2000);
        script_run(r, ".shutdown");
        CHECK_INT(revdial_engine_lend(r->e, id, bytes, 2000), REVDIAL_ELOST);
        CHECK_INT(revdial_engine_lent(r->e, id), 2000);
        if (recall) {
            CHECK_INT(revdial_engine_recall(r->e, id), 0);
            memset(bytes, 0xEE, 2000);
        }
        script_run(r, ".flow");
        CHECK_STR(rig_out(r), "Wp1+ACK Wp2+ACK Dp1#2000 G0=0");
        rig_check_out(r, id, 2000);
        CHECK_INT(r->counts[REVDIAL_EV_SENT], 0);
        CHECK_INT(revdial_engine_lent(r->e, id), 0);
        free(bytes);
        rig_end(r);
    }
}

TEST(an_engine_may_be_freed_with_loans)
{
    rig *r = rig_ready();
    REQUIRE(r != NULL);
    uint8_t *bytes = pattern_new(r, rig_id(r, 1, 1), 200);
    CHECK_INT(revdial_engine_lend(r->e, rig_id(r, 1, 1), bytes, 100), 100);
    CHECK_INT(revdial_engine_lend(r->e, rig_id(r, 1, 2), bytes, 100), 100);
    CHECK_INT(revdial_engine_recall(r->e, rig_id(r, 1, 2)), 0);
    scribble(bytes, 200);
    rig_end(r);
}

TEST(a_loan_without_memory_leaves_nothing_behind)
{
    for (size_t fail = 1; fail < 20; fail++) {
        rig *r = rig_ready();
        REQUIRE(r != NULL);
        uint32_t id = rig_id(r, 1, 1);
        uint8_t *bytes = pattern_new(r, id, 60000);
        uint64_t lent = 0;
        r->heap.fail_at = r->heap.calls + fail;
        for (size_t at = 0; at < 60000; at += 12000) {
            ptrdiff_t n = revdial_engine_lend(r->e, id, bytes + at, 12000);
            if (n == REVDIAL_ENOMEM) n = revdial_engine_lend(r->e, id, bytes + at, 12000);
            CHECK_INT(n, 12000);
            lent += 12000;
            script_run(r, ".writep2#10");
        }
        CHECK_INT(revdial_engine_lent(r->e, id), lent);
        ptrdiff_t n = revdial_engine_recall(r->e, id);
        if (n == REVDIAL_ENOMEM) {
            CHECK(revdial_engine_lent(r->e, id) > 0);
            n = revdial_engine_recall(r->e, id);
        }
        CHECK_INT(n, 0);
        scribble(bytes, 60000);
        script_run(r, ".flow");
        rig_check_out(r, id, 60000);
        rig_end(r);
    }
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
