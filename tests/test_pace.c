// Queue control of a session, impl.pace, in virtual time: on the links of pace_link.h no queue
// stands, the link is used, others are not starved and do not starve us.
#define REVDIAL_NO_RUNTIME
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include "pace_link.h"
#include "test.h"

#define SECOND INT64_C(1000000)
#define COUNT(array) (sizeof(array) / sizeof(array)[0])

typedef struct terms {
    double mbit, trip_ms, buffer_kb;
} terms;

static pace_link *link_new(const terms *t, uint64_t seed)
{
    pace_link *l = (pace_link *)calloc(1, sizeof *l);
    if (!l) abort();
    l->rate = t->mbit * 125000;
    l->delay_us = (int64_t)(t->trip_ms * 500);
    l->buffer = t->buffer_kb * 1000;
    l->seed = seed;
    return l;
}

static void link_free(pace_link *l)
{
    pace_link_free(l);
    free(l);
}

// Runs the link; returns the part of it that the flow had meanwhile.
static double share(pace_link *l, const pace_flow *f, int64_t from_us, int64_t to_us)
{
    uint64_t before;
    double most = l->rate * PACE_MSS / (PACE_MSS + PACE_HEADERS);
    pace_link_run(l, from_us);
    before = f->taken;
    pace_link_run(l, to_us);
    return (double)(f->taken - before) * 1e6 / (double)(to_us - from_us) / most;
}

TEST(no_queue_stands_and_the_link_is_used)
{
    static const struct {
        terms link;
        double trip_ms, used;  // 99 of 100 keystrokes at most; at least
    } rows[] = {
        {{10, 40, 1250}, 57, 0.97},  {{100, 40, 12500}, 50, 0.97}, {{50, 100, 6000}, 120, 0.97},
        {{2, 80, 500}, 125, 0.96},   {{300, 10, 3750}, 16, 0.97},  {{20, 40, 500}, 55, 0.97},
        {{1000, 5, 5000}, 11, 0.97}, {{10, 1, 1000}, 18, 0.95},    {{5, 20, 100}, 45, 0.95},
        {{30, 30, 3000}, 42, 0.97},  {{20, 40, 60}, 55, 0.95},     {{1, 60, 200}, 125, 0.94},
        {{5, 200, 1000}, 255, 0.95}, {{20, 200, 2000}, 250, 0.95}, {{300, 80, 12000}, 92, 0.97},
        {{30, 10, 400}, 21, 0.97},   {{1, 15, 100}, 60, 0.92},     {{0.6, 16, 64}, 100, 0.88},
        {{173.83, 5.6, 83.96}, 12, 0.9}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        pace_link *l = link_new(&rows[i].link, i + 1);
        pace_flow *f = pace_link_add(l, PACE_SESSION, 0);
        double used = share(l, f, 2 * SECOND, 20 * SECOND);
        double trip = pace_trip_ms(f, 2 * SECOND, 20 * SECOND, 0.99);
        if (trip > rows[i].trip_ms || used < rows[i].used)
            test_fail(__FILE__, __LINE__, "%g Mbit/s, %g ms: %.1f ms, %.3f used", rows[i].link.mbit,
                      rows[i].link.trip_ms, trip, used);
        link_free(l);
    }
}

TEST(a_session_starts_as_fast_as_its_tcp_connection)
{
    static const terms links[] = {{10, 40, 1250}, {100, 40, 12500}, {50, 100, 6000}, {2, 80, 500}};
    for (size_t i = 0; i < COUNT(links); i++) {
        int64_t until_us = (int64_t)(links[i].trip_ms * 12000);
        pace_link *l = link_new(&links[i], 1), *today = link_new(&links[i], 1);
        double ours = share(l, pace_link_add(l, PACE_SESSION, 0), 0, until_us);
        double theirs = share(today, pace_link_add(today, PACE_TODAY, 0), 0, until_us);
        if (ours < theirs * 0.70)
            test_fail(__FILE__, __LINE__, "%g Mbit/s: %.2f, without control %.2f", links[i].mbit,
                      ours, theirs);
        link_free(l);
        link_free(today);
    }
}

// Slow start doubles what is on its way, also when that has filled the link already.
TEST(the_start_leaves_no_queue_behind)
{
    static const struct {
        terms link;
        double trip_ms;  // 99 of 100 keystrokes of its first ten seconds, but for half a second
    } rows[] = {{{10, 40, 1250}, 56},  {{100, 40, 12500}, 52}, {{50, 100, 6000}, 150},
                {{2, 80, 500}, 132},   {{1, 60, 200}, 115},    {{300, 80, 12000}, 118},
                {{20, 200, 2000}, 370}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        pace_link *l = link_new(&rows[i].link, i + 1);
        pace_flow *f = pace_link_add(l, PACE_SESSION, 0);
        double trip;
        pace_link_run(l, 10 * SECOND);
        trip = pace_trip_ms(f, SECOND / 2, 10 * SECOND, 0.99);
        if (trip > rows[i].trip_ms)
            test_fail(__FILE__, __LINE__, "%g Mbit/s, %g ms: %.1f ms", rows[i].link.mbit,
                      rows[i].link.trip_ms, trip);
        link_free(l);
    }
}

TEST(a_rate_that_drops_to_a_tenth_or_grows_tenfold_is_followed)
{
    static const struct {
        terms link;
        double factor;
    } rows[] = {{{10, 40, 1250}, 0.1}, {{100, 40, 12500}, 0.1}, {{2, 80, 500}, 10}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        pace_link *l = link_new(&rows[i].link, 1);
        pace_flow *f = pace_link_add(l, PACE_SESSION, 0);
        double used, trip;
        pace_link_run(l, 5 * SECOND);
        l->rate *= rows[i].factor;
        used = share(l, f, 8 * SECOND, 12 * SECOND);
        trip = pace_trip_ms(f, 8 * SECOND, 12 * SECOND, 0.99);
        if (trip > 5 * rows[i].link.trip_ms || used < 0.85)
            test_fail(__FILE__, __LINE__, "%g Mbit/s times %g: %.1f ms, %.3f used",
                      rows[i].link.mbit, rows[i].factor, trip, used);
        link_free(l);
    }
}

TEST(beside_a_tcp_connection_a_session_does_not_starve)
{
    static const terms link = {20, 40, 500};
    for (uint64_t seed = 1; seed <= 40; seed++) {
        pace_link *l = link_new(&link, seed);
        int is_second = seed % 2;
        int64_t other_us = 3 * SECOND + (int64_t)seed * 50000;
        pace_flow *f = pace_link_add(l, PACE_SESSION, is_second ? other_us : 0);
        pace_flow *tcp = pace_link_add(l, PACE_TCP, is_second ? 0 : other_us);
        double had, trip;
        tcp->stop_us = 33 * SECOND;
        had = share(l, f, 8 * SECOND, 33 * SECOND);
        share(l, f, 37 * SECOND, 40 * SECOND);
        trip = pace_trip_ms(f, 37 * SECOND, 40 * SECOND, 0.9);
        if (had < 0.1 || trip > 100)
            test_fail(__FILE__, __LINE__, "seed %d: %.2f of the link, then %.1f ms", (int)seed, had,
                      trip);
        link_free(l);
    }
}

// What a session gets that begins to send beside a TCP connection, in so many seconds.
static double late_share(const terms *link, enum pace_what what, uint64_t seed, int seconds)
{
    pace_link *l = link_new(link, seed);
    int64_t from_us = 2 * SECOND + (int64_t)seed * 37000;
    pace_flow *f;
    double had;
    pace_link_add(l, PACE_TCP, 0);
    f = pace_link_add(l, what, from_us);
    had = share(l, f, from_us, from_us + seconds * SECOND);
    link_free(l);
    return had;
}

// A session that has got little wants more queue than a fast one, but not all that others keep.
TEST(a_session_that_comes_late_does_not_take_a_small_share_for_its_link)
{
    static const terms links[] = {{300, 10, 3750}, {30, 10, 400}, {20, 40, 500}};
    for (size_t i = 0; i < COUNT(links); i++) {
        double had = 0, today = 0;
        for (uint64_t seed = 1; seed <= 6; seed++) {
            had += late_share(&links[i], PACE_SESSION, seed, 40) / 6;
            today += late_share(&links[i], PACE_TODAY, seed, 40) / 6;
        }
        if (had < 0.75 * today)
            test_fail(__FILE__, __LINE__, "%g Mbit/s: %.2f of it, without control %.2f",
                      links[i].mbit, had, today);
    }
}

// Behind a lost packet all waits for a round trip. Where TCP does not take that for a full link, as
// BBR does not, neither do we.
TEST(a_lossy_link_is_used_where_tcp_uses_it)
{
    static const terms links[] = {{100, 40, 12500}, {20, 60, 1000}, {50, 20, 1000}};
    for (size_t i = 0; i < COUNT(links); i++) {
        pace_link *l = link_new(&links[i], i + 1);
        pace_flow *f = pace_link_add(l, PACE_SESSION, 0);
        double used;
        f->is_bbr = 1;
        f->is_slow_start = 0;
        f->cwnd = 2 * l->rate * (double)l->delay_us * 2 / 1e6 / PACE_MSS;
        l->loss = 0.005;
        used = share(l, f, 2 * SECOND, 20 * SECOND);
        if (used < 0.9)
            test_fail(__FILE__, __LINE__, "%g Mbit/s: %.2f used", links[i].mbit, used);
        link_free(l);
    }
}

TEST(two_sessions_share_a_link)
{
    static const terms links[] = {{20, 40, 1000}, {100, 40, 5000}, {2, 80, 500}};
    double sum = 0;
    int unfair = 0;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        pace_link *l = link_new(&links[seed % COUNT(links)], seed);
        pace_flow *a = pace_link_add(l, PACE_SESSION, 0);
        pace_flow *b = pace_link_add(l, PACE_SESSION, 3 * SECOND + (int64_t)seed * 37000);
        uint64_t before;
        double of_a, of_b, less;
        pace_link_run(l, 13 * SECOND);
        before = b->taken;
        of_a = share(l, a, 13 * SECOND, 33 * SECOND);
        of_b = (double)(b->taken - before) / 20 / l->rate;
        less = of_a < of_b ? of_a / of_b : of_b / of_a;
        sum += less;
        unfair += less < 0.5;
        if (of_a + of_b < 0.9)
            test_fail(__FILE__, __LINE__, "seed %d: %.2f and %.2f", (int)seed, of_a, of_b);
        link_free(l);
    }
    // At 2 Mbit/s, 8 of 300 pairs take the start of the other one for a rival, and stay so.
    if (unfair > 1) test_fail(__FILE__, __LINE__, "%d pairs have less than 1 to 0.5", unfair);
    if (sum / 60 < 0.85) test_fail(__FILE__, __LINE__, "on average 1 to %.2f", sum / 60);
}

// With what varies the round trip but is no queue of ours the link is used as without control.
TEST(jitter_and_sleeping_peers_and_loss_take_no_throughput)
{
    static const struct {
        terms link;
        int64_t jitter_us, sleep_every_us, sleep_us;
        double loss, part;
    } rows[] = {
        {{10, 40, 1250}, 5000, 0, 0, 0, 0.95},        {{10, 40, 1250}, 20000, 0, 0, 0, 0.9},
        {{50, 40, 1250}, 20000, 0, 0, 0, 0.85},       {{10, 80, 1250}, 10000, 0, 0, 0, 0.95},
        {{10, 40, 1250}, 0, 700000, 150000, 0, 0.85}, {{10, 40, 1250}, 0, 0, 0, 0.005, 0.9},
        {{100, 40, 12500}, 0, 0, 0, 0.001, 0.9}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        double used[2];
        for (int today = 0; today < 2; today++) {
            pace_link *l = link_new(&rows[i].link, 3);
            l->jitter_us = rows[i].jitter_us;
            l->sleep_every_us = rows[i].sleep_every_us;
            l->sleep_us = rows[i].sleep_us;
            l->loss = rows[i].loss;
            used[today] = share(l, pace_link_add(l, today ? PACE_TODAY : PACE_SESSION, 0), SECOND,
                                20 * SECOND);
            link_free(l);
        }
        if (used[0] < used[1] * rows[i].part)
            test_fail(__FILE__, __LINE__, "row %d: %.2f, without control %.2f", (int)i, used[0],
                      used[1]);
    }
}

// Wi-Fi sends what has gathered in one piece, and a mobile link in its slots. Then round trips tell
// of a queue that has nothing of ours, and less on its way would only leave the link idle.
TEST(links_that_deliver_in_lumps_are_used)
{
    double sum = 0, least = 1;
    int n = (int)test_share(800);
    test_rng rng = test_rng_seeded(14);
    for (int i = 0; i < n; i++) {
        double mbit = (double)(5 + test_below(&rng, 95)), trip = (double)(5 + test_below(&rng, 55));
        terms link = {mbit, trip, mbit * trip / 4 + 100};
        int64_t jitter_us = i % 2 ? 3000 + (int64_t)test_below(&rng, 12000) : 0;
        int64_t lump_us = i % 2 ? 0 : 2000 + (int64_t)test_below(&rng, 12000);
        double used[2], less;
        for (int today = 0; today < 2; today++) {
            pace_link *l = link_new(&link, (uint64_t)i);
            pace_flow *f = pace_link_add(l, today ? PACE_TODAY : PACE_SESSION, 0);
            l->jitter_us = jitter_us;
            l->lump_us = lump_us;
            used[today] = share(l, f, 2 * SECOND, 12 * SECOND);
            link_free(l);
        }
        less = used[0] / used[1];
        sum += less < 1 ? less : 1;
        if (less < least) least = less;
    }
    if (sum / n < 0.9 || least < 0.1)
        test_fail(__FILE__, __LINE__, "on average %.3f, at least %.2f", sum / n, least);
}

// ---- by hand

static void hold(rvd_pace *p, uint32_t rate)
{
    p->last_rate = rate;
    rvd_pace_drain(p);
    rvd_pace_hold(p, rate);
    p->cap = p->target;
}

// A session that always sends, over a link without a queue that pongs after `trip_us`.
typedef struct session {
    rvd_pace p;
    uint32_t added, waiting[RVD_PACE_PINGS], count;
    int64_t now_us;
} session;

static void session_fill(session *s)
{
    uint32_t n;
    while ((n = rvd_pace_room(&s->p, s->added)) > 0 && n < UINT32_MAX) {
        if (rvd_pace_is_due(&s->p, s->added, s->now_us))
            s->waiting[s->count++] = rvd_pace_ping_add(&s->p, s->added, s->now_us);
        s->added += n < 1024 ? n : 1024;
    }
    rvd_pace_wait(&s->p, s->now_us);
}

static void session_answer(session *s, int64_t trip_us)
{
    uint32_t count = s->count;
    s->now_us += trip_us;
    s->count = 0;
    for (uint32_t i = 0; i < count; i++)
        CHECK(rvd_pace_pong(&s->p, s->waiting[i], s->added, s->now_us));
    if (rvd_pace_is_blind(&s->p, s->added))
        s->waiting[s->count++] = rvd_pace_ping_add(&s->p, s->added, s->now_us);
}

// A long frame takes all the room that there is.
TEST(what_is_on_its_way_is_no_more_than_the_cap)
{
    rvd_pace p;
    rvd_pace_init(&p, 1);
    p.taken = UINT32_MAX - 5000;  // positions start again at 0
    CHECK_INT(rvd_pace_room(&p, p.taken), RVD_PACE_START);
    CHECK_INT(rvd_pace_room(&p, p.taken + 20000), RVD_PACE_START - 20000);
    CHECK_INT(rvd_pace_room(&p, p.taken + RVD_PACE_START - RVD_PACE_CRUMB), RVD_PACE_CRUMB);
    CHECK_INT(rvd_pace_room(&p, p.taken + RVD_PACE_START - RVD_PACE_CRUMB + 1), 0);
    CHECK_INT(rvd_pace_room(&p, p.taken + RVD_PACE_START), 0);
    CHECK_INT(rvd_pace_room(&p, p.taken + RVD_PACE_START + 1), 0);
    p.extra = 3000;  // the peer is silent
    CHECK_INT(rvd_pace_room(&p, p.taken + RVD_PACE_START), 3000);
}

TEST(without_pongs_more_is_sent_at_the_rate_and_then_the_cap_ends)
{
    session s = {.now_us = 1};
    uint32_t before;
    rvd_pace_init(&s.p, 1);
    CHECK_INT(rvd_pace_room(&s.p, 0), RVD_PACE_START);
    CHECK(rvd_pace_next_tick(&s.p, 1) == INT64_MAX);
    hold(&s.p, 1000000);
    session_fill(&s);
    before = s.added;
    CHECK_INT(rvd_pace_room(&s.p, s.added), 0);
    rvd_pace_tick(&s.p, rvd_pace_next_tick(&s.p, s.now_us) - 1);
    CHECK_INT(rvd_pace_room(&s.p, s.added), 0);
    while (rvd_pace_room(&s.p, s.added) != UINT32_MAX) {
        int64_t at = rvd_pace_next_tick(&s.p, s.now_us);
        REQUIRE(at > s.now_us && at < 2 * SECOND);
        s.now_us = at;
        rvd_pace_tick(&s.p, at);
        session_fill(&s);
    }
    CHECK(s.added - before > 500000 && s.added - before <= 1100000);
    CHECK(rvd_pace_next_tick(&s.p, s.now_us) == INT64_MAX);
}

TEST(a_peer_whose_first_pong_is_late_is_not_waited_for)
{
    session s = {.now_us = 1};
    rvd_pace_init(&s.p, 1);
    session_fill(&s);
    CHECK_INT(rvd_pace_room(&s.p, s.added), 0);
    s.now_us = rvd_pace_next_tick(&s.p, s.now_us);
    CHECK(s.now_us < 50000);
    rvd_pace_tick(&s.p, s.now_us);
    CHECK(rvd_pace_room(&s.p, s.added) > 100000000);
}

TEST(a_peer_that_was_asked_nothing_is_not_late)
{
    session s = {.now_us = 1};
    rvd_pace_init(&s.p, 1);
    rvd_pace_trip(&s.p, 40000, 1);
    s.now_us = 2 * SECOND;
    s.added = 2 * RVD_PACE_START;  // at once, and only now is a ping behind it
    rvd_pace_ping_add(&s.p, s.added, s.now_us);
    rvd_pace_wait(&s.p, s.now_us);
    CHECK(rvd_pace_next_tick(&s.p, s.now_us) > s.now_us);
    rvd_pace_tick(&s.p, s.now_us + 60000);
    CHECK(rvd_pace_room(&s.p, s.added) < UINT32_MAX);
}

TEST(a_queue_that_an_idle_link_has_is_somebody_elses)
{
    session s = {.now_us = SECOND};
    rvd_pace_init(&s.p, SECOND);
    rvd_pace_trip(&s.p, 40000, SECOND);
    session_fill(&s);
    session_answer(&s, 200000);
    CHECK_INT(rvd_pace_room(&s.p, s.added), UINT32_MAX);
    CHECK(rvd_pace_has_rival(&s.p));
}

TEST(a_queue_that_a_session_like_us_lets_stand_is_no_rivals)
{
    for (uint32_t ms = 40; ms <= 80; ms += 40) {
        rvd_pace p;
        rvd_pace_init(&p, SECOND);
        rvd_pace_trip(&p, 40000, SECOND);
        rvd_pace_free(&p, 1000 * ms);
        CHECK_INT(rvd_pace_room(&p, 1 << 20), UINT32_MAX);
        CHECK_INT(rvd_pace_has_rival(&p), ms == 80);
    }
}

// Pings that are sent while the cap grows do not show the queue of the cap it grows to.
TEST(a_cap_that_still_grows_is_not_judged)
{
    session s = {.now_us = 1};
    uint32_t cap;
    rvd_pace_init(&s.p, 1);
    rvd_pace_trip(&s.p, 40000, 1);
    hold(&s.p, 1000000);
    cap = s.p.cap;
    rvd_pace_target_set(&s.p, 4 * cap);
    for (int i = 0; i < 20 && s.p.cap < s.p.target; i++) {
        CHECK_INT(s.p.samples, 0);
        CHECK_INT(s.p.target, 4 * cap);
        session_fill(&s);
        session_answer(&s, 40000);
    }
    CHECK_INT(s.p.cap, 4 * cap);
    for (int i = 0; i < 4 && s.p.target == 4 * cap; i++) {
        session_fill(&s);
        session_answer(&s, 40000);
    }
    CHECK(s.p.target > 4 * cap);
}

TEST(bursts_behind_which_no_queue_stands_do_not_double_the_steps)
{
    rvd_pace p;
    uint32_t step, cap;
    rvd_pace_init(&p, 1);
    rvd_pace_trip(&p, 40000, 1);
    hold(&p, 1000000);
    p.last_rate = p.round_rate = 1000000;
    cap = p.cap;
    step = rvd_pace_bytes(1000000, rvd_pace_slack(&p, 1000000));
    rvd_pace_hold_judge(&p, 0, 0);
    CHECK_INT(p.target - cap, step);
    rvd_pace_hold_judge(&p, 0, 0);
    CHECK_INT(p.target - cap, rvd_base_min_u32(2 * step, cap / 2));
    rvd_pace_hold_judge(&p, 0, 20000);
    CHECK_INT(p.target - cap, step);
    rvd_pace_hold_judge(&p, 0, rvd_pace_slack(&p, 1000000));
    rvd_pace_hold_judge(&p, 0, 0);
    CHECK_INT(p.target - cap, step);
}

TEST(four_pings_in_a_row_that_are_late_end_a_round)
{
    rvd_pace p;
    rvd_pace_init(&p, 1);
    rvd_pace_trip(&p, 40000, 1);
    hold(&p, 1000000);
    p.gap_us = RVD_PACE_SPACING_US;
    for (int turn = 0; turn < 2; turn++) {
        CHECK_INT(rvd_pace_is_sudden(&p, 40000), 0);
        for (int i = 1; i < RVD_PACE_FAR; i++) CHECK_INT(rvd_pace_is_sudden(&p, 200000), 0);
    }
    CHECK_INT(rvd_pace_is_sudden(&p, 300000), 1);
    CHECK_INT(p.least_us, 200000);
}

TEST(a_full_pipe_without_a_ping_is_looked_at_at_once)
{
    session s = {.now_us = 1};
    rvd_pace_init(&s.p, 1);
    hold(&s.p, 1000000);
    s.added += s.p.cap;  // one frame, with no ping in front of it or behind it
    CHECK(rvd_pace_is_blind(&s.p, s.added));
    CHECK(rvd_pace_next_tick(&s.p, s.now_us) == INT64_MAX);
    rvd_pace_wait(&s.p, s.now_us);
    CHECK_INT(rvd_pace_next_tick(&s.p, s.now_us), s.now_us);
    rvd_pace_ping_add(&s.p, s.added, s.now_us);
    CHECK(!rvd_pace_is_blind(&s.p, s.added));
    CHECK(rvd_pace_next_tick(&s.p, s.now_us) > s.now_us);
    CHECK(s.p.is_full);
    rvd_pace_ping_add(&s.p, s.added - s.p.cap, s.now_us);
    CHECK(!s.p.is_full);  // there is room: nobody waits any more
}

TEST(pongs_that_nobody_asked_for_change_nothing)
{
    session s = {.now_us = 1};
    rvd_pace before;
    rvd_pace_init(&s.p, 1);
    session_fill(&s);
    before = s.p;
    CHECK(!rvd_pace_pong(&s.p, 0, s.added, 50000));
    CHECK(!rvd_pace_pong(&s.p, s.p.value + 1, s.added, 50000));
    CHECK(memcmp(&before, &s.p, sizeof before) == 0);
    session_answer(&s, 40000);
    CHECK(!rvd_pace_pong(&s.p, 1, s.added, 50000));
}

// A ping carries 31 bits of its number: after some weeks they begin again.
TEST(pongs_are_known_when_the_numbers_of_pings_begin_again)
{
    session s = {.now_us = 1};
    rvd_pace_init(&s.p, 1);
    s.p.value = RVD_PACE_VALUES - 3;
    for (int i = 0; i < 8; i++) {
        uint32_t value = rvd_pace_ping_add(&s.p, s.added += 4096, s.now_us);
        s.waiting[s.count++] = value & RVD_PACE_VALUES;
    }
    session_answer(&s, 5000);
    CHECK_INT(s.p.count, 0);
    CHECK_INT(s.p.taken, s.added);
}

// ---- the law in figures

// A session of that round trip whose link carries that many bytes a second.
static rvd_pace pace_at(enum rvd_pace_state state, uint32_t rate, uint32_t min_us)
{
    rvd_pace p;
    rvd_pace_init(&p, 1);
    rvd_pace_trip(&p, min_us, 1);
    rvd_pace_rate_set(&p, rate);
    p.last_rate = p.round_rate = rate;
    p.state = (uint8_t)state;
    return p;
}

TEST(the_wanted_queue_covers_a_time_a_packet_and_noise)
{
    static const struct {
        uint32_t rate, min_us, noise_us, link_us, slack_us;
    } rows[] = {
        {1250000, 40000, 0, 0, 7155 + 1199 + 625},  // the root of 40 ms * 1,600 s / rate
        {12500000, 40000, 0, 0, 2262 + 119 + 625},
        {250000, 40000, 0, 0, 16000 + 5976 + 625},
        {31250, 40000, 0, 0, 18000 + 20000 + 625},     // the most of both
        {125000000, 40000, 0, 0, 2000 + 11 + 625},     // the least
        {1250000, 160000, 0, 0, 14310 + 1199 + 2500},  // a long way
        {0, 40000, 0, 0, 18000 + 20000 + 625},
        {1250000, 40000, 4887, 0, 8979},  // what our own bursts explain: 1/32, 2 ms and a step
        {1250000, 40000, 5887, 0, 8979 + 3000},
        {1250000, 40000, 30000, 0, 8979 + 13333},
        {1250000, 40000, 0, 55000, 8979 + 40000}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        rvd_pace p = pace_at(RVD_PACE_HOLD, rows[i].rate, rows[i].min_us);
        uint32_t slack = rows[i].slack_us, base = rows[i].min_us + rows[i].min_us / 8;
        p.noise_us = rows[i].noise_us;
        p.link_us = rows[i].link_us;
        CHECK_INT(rvd_pace_slack(&p, rows[i].rate), slack);
        CHECK(!rvd_pace_is_long(&p, base + 2 * slack) &&
              rvd_pace_is_long(&p, base + 2 * slack + 1));
        p.state = RVD_PACE_DRAIN;
        CHECK(!rvd_pace_is_long(&p, base + slack) && rvd_pace_is_long(&p, base + slack + 1));
    }
}

TEST(frames_and_steps_between_pings_are_as_long_as_the_link_sends_in_a_moment)
{
    static const struct {
        enum rvd_pace_state state;
        uint32_t rate, cap, frame, step;
    } rows[] = {{RVD_PACE_HOLD, 1250000, 60000, 2500, 3000},     // 2 ms; a twentieth of the cap
                {RVD_PACE_HOLD, 1250000, 40000, 2500, 2500},     //   or 2 ms
                {RVD_PACE_HOLD, 500000, 20000, 1024, 2048},      // the least
                {RVD_PACE_GROW, 10000000, 20000, 20000, 10000},  // 1 ms while it grows
                {RVD_PACE_FREE, 1250000, 1000000, 2500, 2500},   // no cap: what a round trip takes
                {RVD_PACE_FREE, 1250000, 0, 2500, 2500},
                {RVD_PACE_HOLD, 100000000, 0, 65536, 200000},
                {RVD_PACE_NEAR, 1000, 0, 65536, 262144}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        rvd_pace p = pace_at(rows[i].state, rows[i].rate, 40000);
        p.cap = rows[i].cap;
        CHECK_INT(rvd_pace_frame(&p), rows[i].frame);
        CHECK_INT(rvd_pace_step(&p), rows[i].step);
    }
    rvd_pace far = pace_at(RVD_PACE_FREE, 1250000, 400000);
    CHECK_INT(rvd_pace_step(&far), 1250000 / 10 * 4 / 20);
    rvd_pace p = pace_at(RVD_PACE_HOLD, 1250000, 40000);
    p.cap = 80000;
    CHECK(!rvd_pace_is_over(&p, 90000) && rvd_pace_is_over(&p, 90001));
    p.extra = 100;
    CHECK(!rvd_pace_is_over(&p, 90100) && rvd_pace_is_over(&p, 90101));
}

TEST(a_silent_peer_is_waited_for_by_its_round_trip_and_the_links_pace)
{
    static const struct {
        enum rvd_pace_state state;
        uint32_t rate;
        int64_t wait_us;
    } rows[] = {{RVD_PACE_HOLD, 1000000, 15000 + 10000 + 2045},
                {RVD_PACE_HOLD, 0, 15000 + 10000},
                {RVD_PACE_HOLD, 10000, 15000 + 10000 + 50000},
                {RVD_PACE_DRAIN, 1000000, 15000 + 80000 + 2045}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        rvd_pace p = pace_at(rows[i].state, rows[i].rate, 40000);
        int64_t at_us = 2 * SECOND, due_us = at_us + rows[i].wait_us;
        rvd_pace_ping_add(&p, 100000, at_us);
        rvd_pace_ping_add(&p, 200000, at_us + 20000);  // the first unanswered one counts
        rvd_pace_wait(&p, at_us);
        CHECK_INT(rvd_pace_next_tick(&p, at_us + 20000), due_us);
        rvd_pace_tick(&p, due_us - 1);
        CHECK_INT(p.extra, 0);
        rvd_pace_tick(&p, due_us);
        CHECK_INT(p.extra, rows[i].rate ? (int64_t)rows[i].rate * rows[i].wait_us / SECOND
                                        : (int64_t)RVD_PACE_MOST);
        rvd_pace_wait(&p, due_us);  // it is full again
        CHECK_INT(rvd_pace_next_tick(&p, due_us), due_us + RVD_PACE_MORE_US);
        rvd_pace_wait(&p, due_us + 1000);
        CHECK_INT(rvd_pace_next_tick(&p, due_us), due_us + RVD_PACE_MORE_US);
        rvd_pace_tick(&p, at_us + RVD_PACE_WAIT_US + 4 * 40000 - 1);
        CHECK_INT(p.state, rows[i].state);
        rvd_pace_wait(&p, due_us);
        rvd_pace_tick(&p, at_us + RVD_PACE_WAIT_US + 4 * 40000);
        CHECK_INT(p.state, RVD_PACE_FREE);
        CHECK(!rvd_pace_has_rival(&p));
    }
}

TEST(a_queue_over_what_is_wanted_shrinks_the_cap_and_one_that_stays_is_asked_whose_it_is)
{
    rvd_pace p = pace_at(RVD_PACE_HOLD, 1000000, 40000);
    uint32_t slack = rvd_pace_slack(&p, 1000000);
    p.cap = 60000;
    rvd_pace_hold_judge(&p, slack + 10000, slack + 10000);
    CHECK_INT(p.target, 60000 - 10000);
    rvd_pace_hold_judge(&p, 2 * slack + 5000, 0);  // no more than half
    CHECK_INT(p.target, 60000 - slack - 5000);
    p.cap = 20000;
    rvd_pace_hold_judge(&p, 2 * slack + 5000, 0);
    CHECK_INT(p.target, 10000);
    p.cap = 10000;
    rvd_pace_hold_judge(&p, 2 * slack, 0);
    CHECK_INT(p.target, RVD_PACE_LEAST);
    CHECK_INT(p.full, 4);
    rvd_pace_hold_judge(&p, slack + slack / 4, 0);  // it is nearly what is wanted
    CHECK_INT(p.full, 0);
    for (int i = 1; i < RVD_PACE_FULL; i++) rvd_pace_hold_judge(&p, slack + slack / 4 + 1, 0);
    CHECK_INT(p.state, RVD_PACE_HOLD);
    rvd_pace_hold_judge(&p, slack + slack / 4 + 1, 0);
    CHECK_INT(p.state, RVD_PACE_DRAIN);
    CHECK_INT(p.cap, 40000 / 16 * 15);

    p = pace_at(RVD_PACE_HOLD, 1000000, 40000);
    rvd_pace_hold_judge(&p, 2 * slack + 5001, 0);  // a long one
    CHECK_INT(p.state, RVD_PACE_HOLD);
    rvd_pace_hold_judge(&p, 2 * slack + 5001, 0);
    CHECK_INT(p.state, RVD_PACE_DRAIN);
}

TEST(a_least_round_trip_that_is_stale_is_measured_again_where_there_is_a_queue)
{
    for (int i = 0; i < 8; i++) {
        rvd_pace p = pace_at(RVD_PACE_HOLD, 1000000, 40000);
        uint32_t half = rvd_pace_slack(&p, 1000000) / 2;
        int is_old = i & 1, is_queue = i & 2, is_lossy = i & 4;
        p.drain_at = 1000;
        p.now_us = 1000 + RVD_PACE_STALE_US + !!is_old;
        if (is_lossy) p.link_us = 39000;
        rvd_pace_hold_judge(&p, half + !!is_queue, 0);
        CHECK_INT(p.state, is_old && is_queue && !is_lossy ? RVD_PACE_DRAIN : RVD_PACE_HOLD);
    }
    for (int i = 0; i < 4; i++) {  // a near link that is fast has no queue to be held
        uint32_t rate = RVD_PACE_NEAR_RATE + (i & 1), min_us = RVD_PACE_NEAR_US - !!(i & 2);
        rvd_pace p = pace_at(RVD_PACE_HOLD, rate, min_us);
        rvd_pace_hold_judge(&p, 0, 0);
        CHECK_INT(p.state, i == 3 ? RVD_PACE_NEAR : RVD_PACE_HOLD);
    }
}

TEST(somebody_elses_queue_is_looked_at_ever_more_rarely_or_when_it_shrinks)
{
    rvd_pace p = pace_at(RVD_PACE_HOLD, 1000000, 40000);
    static const int64_t waits_us[] = {2 * SECOND, 4 * SECOND, 8 * SECOND, 16 * SECOND,
                                       16 * SECOND};
    rvd_pace_drain(&p);
    for (size_t i = 0; i < COUNT(waits_us); i++) {
        rvd_pace_free(&p, 100000);
        p.now_us += waits_us[i] - 1;
        rvd_pace_free_judge(&p, 100000);
        CHECK_INT(p.state, RVD_PACE_FREE);
        p.now_us++;
        rvd_pace_free_judge(&p, 100000);
        CHECK_INT(p.state, RVD_PACE_DRAIN);
        CHECK_INT(p.drain_at, p.now_us);
    }
    rvd_pace_hold(&p, 1000000);
    CHECK_INT(p.free_us, RVD_PACE_SETTLE_US);

    static const struct {
        uint32_t queue_us, rate;
        enum rvd_pace_state then;
    } rows[] = {
        {74999, 1251000, RVD_PACE_DRAIN},  // less than 3/4 of the queue, over 5/4 of the rate
        {75000, 1251000, RVD_PACE_FREE},
        {74999, 1250000, RVD_PACE_FREE},
        {15000, 1000000, RVD_PACE_FREE},
        {9000, 1000000, RVD_PACE_GROW}};  // what is wanted: there is none
    for (size_t i = 0; i < COUNT(rows); i++) {
        p = pace_at(RVD_PACE_HOLD, 1000000, 40000);
        rvd_pace_free(&p, 100000);
        rvd_pace_free_judge(&p, 100000);
        CHECK_INT(p.free_queue_us, 100000);
        CHECK_INT(p.free_rate, 1000000);
        p.round_rate = rows[i].rate;
        rvd_pace_free_judge(&p, rows[i].queue_us);
        CHECK_INT(p.state, rows[i].then);
        CHECK_INT(p.free_queue_us, 100000 - 100000 / 32);  // it is forgotten slowly
        CHECK_INT(p.free_rate, rows[i].rate > 1000000 ? (7000000 + rows[i].rate) / 8 : 1000000);
    }
    for (int is_free = 0; is_free < 2; is_free++) {  // a rate counts for as many rounds
        p = pace_at(RVD_PACE_GROW, 1000000, 40000);
        if (is_free) rvd_pace_free(&p, 100000);
        for (uint32_t i = 0; i < 2 * RVD_PACE_ROUNDS; i++) {
            CHECK_INT(rvd_pace_rate(&p), i < RVD_PACE_ROUNDS ? 1000000 : 500000 * is_free);
            p.round_rate = 500000;
            p.least_us = 140000;
            rvd_pace_round_end(&p, 0);
        }
    }
    p = pace_at(RVD_PACE_HOLD, 1000000, 40000);
    rvd_pace_free(&p, 100000);
    rvd_pace_free_judge(&p, 100000);
    p.round_rate = 600000;
    for (int i = 0; i < 2; i++, p.now_us += RVD_PACE_SETTLE_US) rvd_pace_free_judge(&p, 90000);
    CHECK_INT(p.free_rate, 1000000);  // it may only be coming back
    p.now_us++;
    rvd_pace_free_judge(&p, 90000);
    CHECK_INT(p.free_rate, 950000);
}

TEST(a_drain_begins_below_the_link_and_is_judged_by_pings_behind_it)
{
    rvd_pace p = pace_at(RVD_PACE_HOLD, 1000000, 40000);
    uint32_t slack = rvd_pace_slack(&p, 1000000), cap = 40000 / 16 * 15;
    for (int is_long = 0; is_long < 2; is_long++) {
        p = pace_at(RVD_PACE_HOLD, 1000000, 40000);
        rvd_pace_drain(&p);
        CHECK_INT(p.cap, cap);
        CHECK(!rvd_pace_is_drained(&p, 1000000, cap + 1));
        CHECK(!rvd_pace_is_drained(&p, 500000, cap + 1));  // the rate was that of a longer trip
        CHECK_INT(p.cap, 20000 / 16 * 15);
        CHECK(!rvd_pace_is_drained(&p, 1000000, p.cap));
        CHECK_INT(p.round_mark, p.cap);
        CHECK(rvd_pace_is_drained(&p, 1000000, cap));
        slack = rvd_pace_slack(&p, 500000);
        p.least_us = 45000 + slack + (uint32_t)is_long;
        rvd_pace_round_end(&p, 50000);
        CHECK_INT(p.state, is_long ? RVD_PACE_FREE : RVD_PACE_HOLD);
        if (!is_long) CHECK_INT(p.target, (40000 + slack) / 2);
    }
    rvd_pace_drain_to(&p, 1000);
    CHECK_INT(p.cap, RVD_PACE_STEP);
}

// Behind a lost packet all waits; TCP's own round trip does not have that.
TEST(a_round_is_judged_by_the_least_round_trip_that_is_a_queue)
{
    static const struct {
        uint32_t link_us, least_us, is;
    } rows[] = {{0, 90000, 90000},     {90000, 90000, 90000}, {95000, 90000, 90000},
                {60000, 90000, 60000}, {30000, 90000, 40000}, {40000, 90000, 40000}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        rvd_pace p = pace_at(RVD_PACE_HOLD, 1000000, 40000);
        p.link_us = rows[i].link_us;
        p.least_us = rows[i].least_us;
        CHECK_INT(rvd_pace_least(&p), rows[i].is);
    }
    rvd_pace p = pace_at(RVD_PACE_HOLD, 1000000, 40000);
    p.noise_us = 4000;
    rvd_pace_note(&p, 41000);
    rvd_pace_note(&p, 49000);
    rvd_pace_round_end(&p, 7000);
    CHECK_INT(p.noise_us, (3 * 4000 + 4000) / 4);  // the mean is 4 ms above the least
    CHECK_INT(p.round_mark, 7000);
    CHECK_INT(p.target, RVD_PACE_START + rvd_pace_slack(&p, 1000000) - 1000);
    CHECK_INT(p.samples, 0);
    rvd_pace_note(&p, 41000);
    rvd_pace_note(&p, 241000);
    rvd_pace_round_end(&p, 7000);
    CHECK_INT(p.noise_us, (3 * 4000 + 40000) / 4);  // a round trip at most
    rvd_pace_note(&p, 41000);
    p.far = 1;
    rvd_pace_round_end(&p, 7000);
    CHECK_INT(p.noise_us, 13000);  // there is a queue, which is no noise

    // A ping behind less than the cap tells nothing of it: a step and an eighth may be missing.
    p = pace_at(RVD_PACE_HOLD, 1000000, 40000);
    p.cap = 80000;
    rvd_pace_ping g = {.mark = 100000 + 80000 - 10000 - rvd_pace_step(&p), .since = 100000};
    CHECK(rvd_pace_is_behind_cap(&p, &g));
    g.mark--;
    CHECK(!rvd_pace_is_behind_cap(&p, &g));
    g.from_us = 5000, g.sent_us = 9000, g.asked_us = 2000;
    CHECK_INT(rvd_pace_span(&g, 10000), 7000);
    CHECK_INT(rvd_pace_span(&g, 14000), 9000);
}

TEST(the_start_ends_behind_a_queue_without_growth_or_by_what_a_train_shows)
{
    rvd_pace p = pace_at(RVD_PACE_GROW, 1000000, 64000);
    uint32_t queue_us = rvd_pace_slack(&p, 1000000) / 2 + 4000;
    p.round = 1;
    for (int i = 0; i < 4; i++) {
        rvd_pace_rate_set(&p, 1000000);
        p.rates[0] = 999999;                     // of the round before
        p.round_rate = 1499997 - 3 * !!(i & 1);  // half as much again is growth
        p.least_us = 64000 + queue_us + !!(i & 2);
        CHECK_INT(rvd_pace_is_grown(&p), i == 3);
    }

    static const struct {
        uint32_t bytes, took_us, rise_us, gap_us, link_us, rate;
    } rows[] = {{8192, 8000, 4000, 1000, 0, 1024000},  {8191, 8000, 4000, 1000, 0, 0},
                {8192, 8000, 3999, 1000, 0, 0},   // 2 ms and a part of the round trip
                {8192, 17000, 4000, 1000, 0, 0},  // a fourth of the time
                {8192, 16000, 4000, 1000, 0, 512000},  {8192, 8000, 4000, 20001, 0, 0},
                {8192, 8000, 4000, 20000, 0, 1024000}, {8192, 8000, 4000, 1000, 70000, 0}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        rvd_pace_ping g = {.mark = 5000};
        p = pace_at(RVD_PACE_GROW, 1000000, 64000);
        p.now_us = 100000;
        CHECK_INT(rvd_pace_train(&p, &g, 65000), 0);  // it begins
        CHECK_INT(p.train_mark, 5000);
        p.now_us += rows[i].took_us;
        p.gap_us = rows[i].gap_us;
        p.link_us = rows[i].link_us;
        g.mark += rows[i].bytes;
        CHECK_INT(rvd_pace_train(&p, &g, 65000 + rows[i].rise_us), rows[i].rate);
        CHECK_INT(rvd_pace_train(&p, &g, 64999), 0);  // a shorter round trip begins one
        CHECK_INT(p.train_trip, 64999);
        CHECK_INT(p.train_us, p.now_us);
    }

    for (int is_slower = 0; is_slower < 2; is_slower++) {
        rvd_pace_ping g = {.mark = 5000};
        uint32_t wall = is_slower ? 1024000 : 4096000;  // more than doubling would reach soon
        p = pace_at(RVD_PACE_GROW, 1000000, 64000);
        p.now_us = 100000;
        rvd_pace_grow(&p, &g, 65000, 9000);
        CHECK_INT(p.samples, 1);
        p.now_us += is_slower ? 8000 : 2000;
        g.mark += 8192;
        rvd_pace_grow(&p, &g, 69000, 30000);
        CHECK_INT(p.state, is_slower ? RVD_PACE_HOLD : RVD_PACE_GROW);
        if (!is_slower) continue;
        CHECK_INT(p.target, wall / 125 * 8 + (uint64_t)wall * rvd_pace_slack(&p, wall) / 1000000);
        CHECK_INT(p.round_mark, 30000);  // what was sent before does not show the new cap
        CHECK_INT(p.samples, 0);
    }

    rvd_pace_ping g = {.mark = 1000};
    p = pace_at(RVD_PACE_GROW, 2000000, 64000);
    rvd_pace_grow(&p, &g, 64000, 1000);  // two and a half round trips, and half of the start
    CHECK_INT(p.cap, 320000 + RVD_PACE_START / 2);
    CHECK_INT(p.target, p.cap);
    p.min_us = RVD_PACE_NEAR_US;
    rvd_pace_grow(&p, &g, RVD_PACE_NEAR_US, 1000);
    CHECK_INT(p.state, RVD_PACE_GROW);
    p.min_us--;
    rvd_pace_grow(&p, &g, RVD_PACE_NEAR_US, 1000);
    CHECK_INT(p.state, RVD_PACE_NEAR);
}

TEST(a_near_peer_is_late_by_five_slow_pongs_in_a_row)
{
    static const struct {
        int64_t trip_us;
        uint32_t bytes;  // in that time
        int is_late;
    } rows[] = {{20001, 100000, 1}, {20000, 100000, 0}, {40000, 1000000, 0}, {40000, 999000, 1}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        session s = {.now_us = 1, .p = pace_at(RVD_PACE_NEAR, 1000000, 100)};
        for (int n = 1; n < 2 * (int)RVD_PACE_LATE_PONGS; n++) {
            int64_t trip_us = n == RVD_PACE_LATE_PONGS ? 100 : rows[i].trip_us;
            CHECK_INT(s.p.state, RVD_PACE_NEAR);
            s.added += rows[i].bytes;
            s.waiting[s.count++] = rvd_pace_ping_add(&s.p, s.added, s.now_us);
            session_answer(&s, trip_us);
        }
        CHECK_INT(s.p.state, RVD_PACE_NEAR);
        s.waiting[s.count++] = rvd_pace_ping_add(&s.p, s.added += rows[i].bytes, s.now_us);
        session_answer(&s, rows[i].trip_us);
        CHECK_INT(s.p.state, rows[i].is_late ? RVD_PACE_DRAIN : RVD_PACE_NEAR);
    }
}

TEST(a_least_round_trip_is_forgotten_after_its_time_and_kept_by_what_is_nearly_as_short)
{
    static const struct {
        enum rvd_pace_state state;
        int64_t old_us;
    } rows[] = {{RVD_PACE_HOLD, RVD_PACE_OLD_US},
                {RVD_PACE_FREE, RVD_PACE_LOST_US},
                {RVD_PACE_DRAIN, RVD_PACE_LOST_US}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        rvd_pace p = pace_at(rows[i].state, 1000000, 32000);
        rvd_pace_trip(&p, 33000, SECOND);  // a part in 32 is nothing
        CHECK_INT(p.min_us, 32000);
        rvd_pace_trip(&p, 40000, SECOND + rows[i].old_us);
        CHECK_INT(p.min_us, 32000);
        rvd_pace_trip(&p, 50000, SECOND + rows[i].old_us + 1);
        CHECK_INT(p.min_us, 40000);
        rvd_pace_trip(&p, 30000, SECOND + rows[i].old_us + 2);
        CHECK_INT(p.min_us, 30000);
        rvd_pace_trip(&p, 30938, 2 * SECOND + rows[i].old_us);  // this is more
        rvd_pace_trip(&p, 31000, SECOND + 2 * rows[i].old_us + 3);
        CHECK_INT(p.min_us, 30938);
    }
}

// Nothing of ours is on the link: the time since then is not its work.
TEST(the_first_ping_after_a_pause_begins_anew)
{
    for (int i = 0; i < 8; i++) {
        rvd_pace p = pace_at(RVD_PACE_HOLD, 1000000, 40000);
        uint32_t value = rvd_pace_ping_add(&p, 5000, SECOND);
        int64_t at_us = SECOND + 80000 + !!(i & 1);
        uint32_t added = i & 2 ? 5000 + p.cap : 9000;
        if (!(i & 4)) CHECK(rvd_pace_pong(&p, value, 5000, SECOND + 40000));
        uint32_t taken = p.taken, last = p.count, is_idle = (i & 7) == 1;
        rvd_pace_ping_add(&p, added, at_us);
        CHECK_INT(p.taken, is_idle ? added : taken);
        CHECK_INT(p.pings[p.first + last].from_us, is_idle ? at_us : p.taken_us);
        CHECK_INT(p.lead == p.value, is_idle);
    }
}

TEST(where_the_round_trip_is_short_pings_are_rare)
{
    session s = {.now_us = 1};
    rvd_pace_init(&s.p, 1);
    for (int i = 0; i < 4; i++) {
        s.waiting[s.count++] = rvd_pace_ping_add(&s.p, s.added += 4096, s.now_us);
        session_answer(&s, 100);
    }
    CHECK_INT(rvd_pace_room(&s.p, s.added), UINT32_MAX);
    CHECK(!rvd_pace_is_due(&s.p, s.added + 1000000, s.now_us + 10000));
    CHECK(rvd_pace_is_due(&s.p, s.added + 1000000, s.now_us + 200000));
}

// A sender whose application gives it a frame every `every_us`, over a way without a queue whose
// round trip is about `trip_us`: how many pings it sends in a second, at most.
static int pings_a_second(uint32_t trip_us, uint32_t frame, int64_t every_us)
{
    rvd_pace p;
    struct {
        int64_t at_us;
        uint32_t value;
    } ways[RVD_PACE_PINGS];
    uint32_t added = 0, first = 0, count = 0;
    int64_t now_us = (int64_t)3600 * SECOND, until_us = now_us + 10 * SECOND;
    int64_t second_us = now_us;
    int sent = 0, most = 0;
    test_rng rng = test_rng_seeded(trip_us * 1000 + frame);
    rvd_pace_init(&p, now_us);
    for (; now_us < until_us; now_us += 10) {
        for (; count && ways[first % RVD_PACE_PINGS].at_us <= now_us; first++, count--)
            CHECK(rvd_pace_pong(&p, ways[first % RVD_PACE_PINGS].value, added, now_us));
        if (now_us - second_us >= SECOND) {
            if (sent > most) most = sent;
            sent = 0;
            second_us = now_us;
        }
        if (now_us % every_us >= 10 || rvd_pace_room(&p, added) < frame) continue;
        if (rvd_pace_is_due(&p, added, now_us)) {
            int64_t at_us = now_us + trip_us + (int64_t)test_below(&rng, 300);
            int64_t last_us = count ? ways[(first + count - 1) % RVD_PACE_PINGS].at_us : 0;
            ways[(first + count) % RVD_PACE_PINGS].at_us = at_us > last_us ? at_us : last_us;
            ways[(first + count++) % RVD_PACE_PINGS].value = rvd_pace_ping_add(&p, added, now_us);
            sent++;
        }
        added += frame;
    }
    return most;
}

// Peers bear 2000 a second. A sender that is slower than the way never sees a queue that would end
// its start.
TEST(a_sender_that_is_slower_than_its_way_sends_about_a_thousand_pings_a_second_at_most)
{
    static const struct {
        uint32_t trip_us, frame;
        int64_t every_us;
    } rows[] = {{2100, 4096, 410}, {2200, 2048, 200}, {2500, 4096, 200}, {3000, 8192, 200},
                {2100, 65524, 330}, {2200, 8192, 130}, {4000, 4096, 100}, {10000, 4096, 100},
                {40000, 1024, 100}, {2200, 16384, 270}, {2050, 1024, 200}, {300000, 8192, 130}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int n = pings_a_second(rows[i].trip_us, rows[i].frame, rows[i].every_us);
        if (n > 1100)
            test_fail(__FILE__, __LINE__, "%u us, %u bytes every %d us: %d pings a second",
                      rows[i].trip_us, rows[i].frame, (int)rows[i].every_us, n);
    }
}

TEST(late_pongs_of_a_near_peer_begin_the_control)
{
    session s = {.now_us = 1};
    int has_begun = 0;
    rvd_pace_init(&s.p, 1);
    for (int i = 0; i < 24; i++) {
        s.waiting[s.count++] = rvd_pace_ping_add(&s.p, s.added += 4096, s.now_us);
        session_answer(&s, i < 4 ? 100 : 30000);
        has_begun |= rvd_pace_room(&s.p, s.added) < UINT32_MAX;
    }
    CHECK(has_begun);
}

TEST(a_near_peer_that_was_late_for_a_while_is_near_again)
{
    session s = {.now_us = 1};
    rvd_pace_init(&s.p, 1);
    for (int i = 0; i < 24; i++) {
        s.waiting[s.count++] = rvd_pace_ping_add(&s.p, s.added += 4096, s.now_us);
        session_answer(&s, i < 4 ? 100 : 30000);
    }
    for (int i = 0; i < 100 && s.p.state != RVD_PACE_NEAR; i++) {
        session_fill(&s);
        session_answer(&s, 1000);
    }
    CHECK_INT(s.p.state, RVD_PACE_NEAR);
    CHECK_INT(rvd_pace_room(&s.p, s.added), UINT32_MAX);
}

TEST(a_longer_way_is_learnt_as_it_is_and_not_from_an_old_queue)
{
    rvd_pace p;
    rvd_pace_init(&p, 1);
    rvd_pace_trip(&p, 40000, 1);
    rvd_pace_trip(&p, 60000, 2 * SECOND);  // behind a queue
    rvd_pace_trip(&p, 40000, 3 * SECOND);
    int i = 4;
    for (; i < 70 && p.min_us < 100000; i++) rvd_pace_trip(&p, 100000, i * (int64_t)SECOND);
    CHECK_INT(p.min_us, 100000);
    for (; i < 140; i++) rvd_pace_trip(&p, 200000, i * (int64_t)SECOND);
    CHECK_INT(p.min_us, 200000);  // and a still longer one after it
}

TEST(keystrokes_are_not_pinged)
{
    rvd_pace p;
    rvd_pace_init(&p, 1);
    CHECK(!rvd_pace_is_due(&p, 1000, SECOND));
    CHECK(rvd_pace_is_due(&p, 4096, SECOND));
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
