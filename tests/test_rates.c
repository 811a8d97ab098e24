// Limited rates: what a second carries, what a burst may be, and who waits. Two engines in virtual
// time, which goes from one deadline that they ask for to the next.
#define REVDIAL_NO_RUNTIME
#define REVDIAL_SELF_CHECK  // the mux checks its invariants at each call
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include "engine_script.h"

enum { RATE = 1000000, BURST = RATE / 4, WINDOW = 65536, FLOWS_MAX = 64 };

typedef struct flow {
    uint32_t id;
    int is_up;           // the proxy receives
    uint64_t left, got;  // bytes to write, bytes read
    uint64_t every_us;   // 0: as fast as it goes; else 100 bytes each time
    int64_t next_us, written_us, worst_us;
    int ends, is_over;
} flow;

typedef struct world {
    rig_pair p;
    flow flows[FLOWS_MAX];
    int count;
    uint64_t steps;
} world;

static int world_open(world *w, revdial_limits proxy, revdial_limits backend)
{
    rig_options a = {.limits = proxy}, b = {.limits = backend};
    memset(w, 0, sizeof *w);
    a.limits.keepalive_ms = b.limits.keepalive_ms = 100000000;
    if (!pair_new(&w->p, &a, &b)) return 0;
    w->p.proxy->quiet = w->p.backend->quiet = 1;
    return 1;
}

// A stream that the proxy opens, with so many bytes to move.
static flow *world_flow(world *w, int is_up, uint64_t bytes)
{
    static const revdial_dial_opts opts = {0};
    flow *f = &w->flows[w->count++];
    int64_t id = revdial_engine_open(w->p.proxy->e, &opts, NULL);
    if (id <= 0) return NULL;
    *f = (flow){.id = (uint32_t)id, .is_up = is_up, .left = bytes};
    pair_pump(&w->p);
    revdial_engine_accept(w->p.backend->e, f->id);
    pair_pump(&w->p);
    return f;
}

static void flow_write(world *w, flow *f, int64_t now)
{
    static uint8_t bytes[65536];
    revdial_engine *e = f->is_up ? w->p.backend->e : w->p.proxy->e;
    ptrdiff_t n = 1;
    if (f->every_us && !f->left) {
        if (now < f->next_us || f->written_us) return;
        f->next_us = now + (int64_t)f->every_us;
        f->left = 100;
        f->written_us = now;
    }
    while (f->left && n > 0) {
        n = revdial_engine_write(e, f->id, bytes, f->left < sizeof bytes ? (size_t)f->left : 65536);
        CHECK(n != 1 || f->left == 1);  // what waits for the rate sends no scraps
        if (n > 0) f->left -= (uint64_t)n;
    }
    if (!f->left && f->ends) {
        revdial_engine_end_write(e, f->id);
        f->ends = 0;
    }
}

static void flow_read(world *w, flow *f, int64_t now)
{
    static uint8_t bytes[65536];
    revdial_engine *e = f->is_up ? w->p.proxy->e : w->p.backend->e;
    ptrdiff_t n;
    while ((n = revdial_engine_read(e, f->id, bytes, sizeof bytes)) > 0) f->got += (uint64_t)n;
    if (n == 0) f->is_over = 1;
    if (!f->written_us || f->got % 100 || f->left) return;
    if (now - f->written_us > f->worst_us) f->worst_us = now - f->written_us;
    f->written_us = 0;
}

static uint64_t world_got(const world *w)
{
    uint64_t sum = 0;
    for (int i = 0; i < w->count; i++) sum += w->flows[i].got;
    return sum;
}

// Returns whether there may be more to move at once.
static int world_move(world *w, int64_t now)
{
    uint64_t before = 0;
    for (int round = 0; round < 4; round++) {
        before = world_got(w);
        for (int i = 0; i < w->count; i++) flow_write(w, &w->flows[i], now);
        pair_pump(&w->p);
        for (int i = 0; i < w->count; i++) flow_read(w, &w->flows[i], now);
        pair_pump(&w->p);
    }
    return world_got(w) > before;
}

// One tick of both at a time, and then the one that comes first, on a clock of milliseconds as the
// runtime's is.
static void world_run(world *w, int64_t ms)
{
    rig *ends[2] = {w->p.proxy, w->p.backend};
    int64_t now = ends[0]->now, until = now + ms * 1000;
    for (;;) {
        int64_t next = until;
        w->steps++;
        for (int i = 0; i < 2; i++) {
            ends[i]->now = now;
            revdial_engine_tick(ends[i]->e, now);
            rig_drain(ends[i]);
        }
        if (world_move(w, now)) next = now + 1000;
        for (int i = 0; i < 2; i++) {
            int64_t at = revdial_engine_tick(ends[i]->e, now);
            rig_drain(ends[i]);
            if (at >= 0 && at < next) next = at;
        }
        pair_pump(&w->p);
        for (int i = 0; i < w->count; i++)
            if (w->flows[i].every_us && !w->flows[i].written_us && w->flows[i].next_us < next)
                next = w->flows[i].next_us;
        if (now >= until) return;
        now = next <= now ? now + 1000 : (next + 999) / 1000 * 1000;
        if (now > until) now = until;
    }
}

// got is 98 to 102 % of want.
static void check_near(uint64_t got, uint64_t want, const char *what)
{
    if (got * 100 >= want * 98 && got * 100 <= want * 102) return;
    test_fail(__FILE__, __LINE__, "%s: %llu, not about %llu", what, (unsigned long long)got,
              (unsigned long long)want);
}

static const revdial_limits one = {.stream_rate = RATE}, all = {.session_rate = RATE}, none;

// The proxy gets other limits, which count from now on for all that its streams move.
static void world_limit(world *w, revdial_limits limits)
{
    limits.keepalive_ms = 100000000;
    CHECK_INT(revdial_engine_set_limits(w->p.proxy->e, &limits, NULL), 0);
    rig_drain(w->p.proxy);
    pair_pump(&w->p);
}

TEST(a_stream_moves_at_its_rate_whichever_end_limits_it_and_whichever_sends)
{
    for (int i = 0; i < 4; i++) {
        world w;
        REQUIRE(world_open(&w, i & 1 ? one : none, i & 1 ? none : one));
        flow *f = world_flow(&w, i & 2, UINT64_MAX);
        REQUIRE(f != NULL);
        world_run(&w, 1000);
        CHECK(f->got <= RATE + BURST + 2 * WINDOW);
        uint64_t got = f->got;
        world_run(&w, 5000);
        check_near(f->got - got, 5 * RATE, i & 1 ? "proxy" : "backend");
        CHECK(w.steps < 6 * 1000);  // the engines do not ask for more ticks than they need
        pair_end(&w.p);
    }
}

TEST(streams_have_a_rate_each)
{
    world w;
    REQUIRE(world_open(&w, one, none));
    for (int i = 0; i < 8; i++) REQUIRE(world_flow(&w, i & 1, UINT64_MAX) != NULL);
    world_run(&w, 5000);
    for (int i = 0; i < 8; i++) {
        CHECK(w.flows[i].got >= 5 * (uint64_t)RATE * 98 / 100);
        CHECK(w.flows[i].got <= 5 * (uint64_t)RATE + BURST + 2 * WINDOW);
    }
    pair_end(&w.p);
}

TEST(streams_share_the_rate_of_their_session_evenly)
{
    for (int i = 0; i < 4; i++) {
        world w;
        uint64_t got[8];
        REQUIRE(world_open(&w, i & 1 ? all : none, i & 1 ? none : all));
        for (int k = 0; k < 8; k++) REQUIRE(world_flow(&w, i & 2, UINT64_MAX) != NULL);
        world_run(&w, 2000);
        for (int k = 0; k < 8; k++) got[k] = w.flows[k].got;
        uint64_t sum = world_got(&w);
        world_run(&w, 10000);
        check_near(world_got(&w) - sum, 10 * (uint64_t)RATE, "session");
        for (int k = 0; k < 8; k++) {
            uint64_t part = w.flows[k].got - got[k];
            CHECK(part > 10 * (uint64_t)RATE / 8 * 85 / 100);
            CHECK(part < 10 * (uint64_t)RATE / 8 * 115 / 100);
        }
        pair_end(&w.p);
    }
}

TEST(both_ways_have_the_rate_by_themselves)
{
    world w;
    REQUIRE(world_open(&w, all, none));
    flow *up = world_flow(&w, 1, UINT64_MAX), *down = world_flow(&w, 0, UINT64_MAX);
    REQUIRE(up && down);
    world_run(&w, 1000);
    uint64_t got_up = up->got, got_down = down->got;
    world_run(&w, 5000);
    check_near(up->got - got_up, 5 * RATE, "up");
    check_near(down->got - got_down, 5 * RATE, "down");
    pair_end(&w.p);
}

TEST(a_keystroke_does_not_wait_for_the_bulk_that_uses_up_the_rate_of_its_session)
{
    for (int i = 0; i < 4; i++) {
        world w;
        REQUIRE(world_open(&w, i & 1 ? all : none, i & 1 ? none : all));
        for (int k = 0; k < 8; k++) REQUIRE(world_flow(&w, i & 2, UINT64_MAX) != NULL);
        flow *keys = world_flow(&w, i & 2, 0);
        REQUIRE(keys != NULL);
        keys->every_us = 50000;
        world_run(&w, 5000);
        CHECK(keys->got >= 90 * 100);
        CHECK(keys->worst_us <= 25000);
        pair_end(&w.p);
    }
}

TEST(nothing_is_buffered_for_a_limited_stream)
{
    for (int i = 0; i < 4; i++) {
        world w;
        revdial_engine_info info[2];
        revdial_limits limited = i & 1 ? one : all;
        REQUIRE(world_open(&w, limited, none));
        for (int k = 0; k < 4; k++) REQUIRE(world_flow(&w, i & 2, UINT64_MAX) != NULL);
        for (int k = 0; k < 20; k++) {
            world_run(&w, 100);
            revdial_engine_get_info(w.p.proxy->e, &info[0]);
            revdial_engine_get_info(w.p.backend->e, &info[1]);
            for (int end = 0; end < 2; end++) {
                CHECK_INT(info[end].buffered_bytes, 0);
                CHECK(info[end].output_bytes < 2 * WINDOW);
                CHECK(info[end].memory_bytes < 3000000);
            }
        }
        pair_end(&w.p);
    }
}

// Each WRITABLE is answered by a write, so one that is told although nothing may be written is told
// for ever.
TEST(the_largest_output_limit_there_is_does_not_promise_room_that_a_write_does_not_get)
{
    static uint8_t bytes[1000000];
    revdial_event ev;
    size_t done = 0;
    int events = 0;
    rig_options o = {.limits = {.keepalive_ms = 100000000, .session_rate = 100 * RATE}};
    rig *r = rig_new(&o);
    REQUIRE(r != NULL);
    revdial_engine_set_output_max(r->e, SIZE_MAX);
    script_run(r, "Wp1+SYN .acceptp1 Wp1=1000000 .hold");
    do {
        ptrdiff_t n = revdial_engine_write(r->e, rig_id(r, 1, 1), bytes + done, 1000000 - done);
        if (!CHECK(n >= 0)) break;
        done += (size_t)n;
    } while (done < 1000000 && revdial_engine_event(r->e, &ev) && ++events < 1000);
    CHECK(events < 1000);
    CHECK_INT(done, 1000000);
    r->held = 0;
    rig_flush(r);
    rig_end(r);
}

TEST(a_stream_that_was_idle_has_a_bounded_burst)
{
    for (int i = 0; i < 4; i++) {
        world w;
        REQUIRE(world_open(&w, i & 1 ? all : one, none));
        flow *f = world_flow(&w, i & 2, 0);
        REQUIRE(f != NULL);
        f->left = 10 * RATE;
        world_run(&w, 20000);
        CHECK_INT(f->left, 0);
        world_run(&w, 60000);
        uint64_t got = f->got;
        f->left = 10 * RATE;
        world_run(&w, 1);
        CHECK(f->got - got <= RATE + BURST + 1);  // a window is what a second carries
        pair_end(&w.p);
    }
}

TEST(a_limited_stream_ends_in_time_and_with_all_its_bytes)
{
    static const uint64_t sizes[] = {1, 1023, 65536, 65537, 1234567, 3000001};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        for (int i = 0; i < 4; i++) {
            world w;
            revdial_limits slow = {.stream_rate = 100000}, less = {.session_rate = 100000};
            REQUIRE(world_open(&w, i & 1 ? slow : less, none));
            flow *f = world_flow(&w, i & 2, sizes[k]);
            REQUIRE(f != NULL);
            f->ends = 1;
            world_run(&w, (int64_t)sizes[k] / 100 + 100);
            CHECK_INT(f->got, sizes[k]);
            CHECK(f->is_over);
            CHECK(!w.p.proxy->dead && !w.p.backend->dead);
            pair_end(&w.p);
        }
    }
}

TEST(the_least_rate_still_moves)
{
    world w;
    revdial_limits least = {.stream_rate = 1000, .session_rate = 1000};
    REQUIRE(world_open(&w, least, none));
    flow *up = world_flow(&w, 1, 60000), *down = world_flow(&w, 0, 60000);
    REQUIRE(up && down);
    up->ends = down->ends = 1;
    world_run(&w, 60000);
    CHECK_INT(up->got, 60000);
    CHECK_INT(down->got, 60000);
    CHECK(up->is_over && down->is_over);
    pair_end(&w.p);
}

// Each comes with a first window, which is granted before anything is known.
TEST(many_short_streams_keep_the_rate_of_their_session)
{
    for (int is_up = 0; is_up < 2; is_up++) {
        world w;
        uint64_t got = 0, opened = 0;
        REQUIRE(world_open(&w, all, none));
        for (int ms = 0; ms < 10000; ms += 10) {
            for (int k = 0; k < 20; k++) {
                flow *f;
                w.count = 0;
                f = world_flow(&w, is_up, 20000);
                if (!f) break;
                opened++;
                f->ends = 1;
                world_move(&w, w.p.proxy->now);
                for (int i = 0; i < 100 && !f->is_over; i++) world_run(&w, 10);
                CHECK_INT(f->got, 20000);
                got += f->got;
                revdial_engine_close(w.p.proxy->e, f->id);
                revdial_engine_close(w.p.backend->e, f->id);
                pair_pump(&w.p);
            }
            w.count = 0;
            world_run(&w, 10);
        }
        CHECK(opened > 10);
        int64_t passed_ms = (w.p.proxy->now - RIG_START_US) / 1000;
        CHECK(got <= (uint64_t)passed_ms * (RATE / 1000) + 2 * BURST + WINDOW);
        CHECK(got >= (uint64_t)passed_ms * (RATE / 1000) * 90 / 100);
        pair_end(&w.p);
    }
}

TEST(an_open_that_the_rate_holds_back_is_told_when_it_may_succeed)
{
    world w;
    REQUIRE(world_open(&w, (revdial_limits){.session_rate = 20000}, none));
    flow *f = world_flow(&w, 1, 18000);
    REQUIRE(f != NULL);
    f->ends = 1;
    world_move(&w, w.p.proxy->now);
    CHECK_INT(f->got, 18000);
    revdial_engine_close(w.p.proxy->e, f->id);
    revdial_engine_close(w.p.backend->e, f->id);
    pair_pump(&w.p);
    w.count = 0;
    CHECK(world_flow(&w, 1, 1) == NULL);
    w.count = 0;
    w.p.proxy->counts[REVDIAL_EV_WRITABLE] = 0;
    world_run(&w, 10000);
    CHECK_INT(w.p.proxy->counts[REVDIAL_EV_WRITABLE], 1);
    CHECK(world_flow(&w, 1, 1) != NULL);
    pair_end(&w.p);
}

TEST(a_limited_stream_says_that_it_waits_for_the_rate)
{
    world w;
    revdial_flow_info flow_info;
    REQUIRE(world_open(&w, all, none));
    for (int k = 0; k < 4; k++) REQUIRE(world_flow(&w, k & 1, UINT64_MAX) != NULL);
    world_run(&w, 1000);
    for (int k = 0, seen = 0; k < 4; k++) {
        revdial_engine_get_flow(w.p.proxy->e, w.flows[k].id, &flow_info);
        seen += strcmp(flow_info.blocked_on, "rate") == 0;
        if (k == 3) CHECK(seen >= 3);
    }
    pair_end(&w.p);
}

TEST(a_side_opens_no_more_streams_than_it_may)
{
    world w;
    REQUIRE(world_open(&w, (revdial_limits){.max_own_streams = 2}, none));
    REQUIRE(world_flow(&w, 0, 0) && world_flow(&w, 0, 0));
    static const revdial_dial_opts opts = {0};
    CHECK_INT(revdial_engine_open(w.p.proxy->e, &opts, NULL), REVDIAL_ELIMIT);
    revdial_engine_close(w.p.proxy->e, w.flows[0].id);
    revdial_engine_close(w.p.backend->e, w.flows[0].id);
    pair_pump(&w.p);
    CHECK(revdial_engine_open(w.p.proxy->e, &opts, NULL) > 0);
    CHECK(revdial_engine_open(w.p.backend->e, &opts, NULL) > 0);  // the other side has its own
    pair_end(&w.p);
}

// ---- streams that the peer opens

enum { OFFER = 20000, OFFERS = 32 };

// The backend opens streams as fast as it may, with OFFER bytes in each, up to OFFERS at one time.
// Where `is_hasty` it sends them at once, else when it was accepted.
typedef struct offers {
    world w;
    uint32_t ids[OFFERS];
    uint32_t opened, accepted;
    int is_hasty, stay;
} offers;

static void offer_write(offers *o, uint32_t id)
{
    static uint8_t bytes[OFFER];
    ptrdiff_t left = OFFER, n = 1;
    while (left > 0 && n > 0) {
        n = revdial_engine_write(o->w.p.backend->e, id, bytes, (size_t)left);
        left -= n > 0 ? n : 0;
        pair_pump(&o->w.p);
    }
    CHECK_INT(left, 0);
    revdial_engine_end_write(o->w.p.backend->e, id);
}

static void offer_take(offers *o, uint32_t id)
{
    static uint8_t bytes[2 * OFFER];
    CHECK_INT(revdial_engine_accept(o->w.p.proxy->e, id), 0);
    pair_pump(&o->w.p);
    if (!o->is_hasty) offer_write(o, id);
    pair_pump(&o->w.p);
    CHECK_INT(revdial_engine_read(o->w.p.proxy->e, id, bytes, sizeof bytes), OFFER);
    CHECK_INT(revdial_engine_read(o->w.p.proxy->e, id, bytes, sizeof bytes), 0);
    if (o->stay) return;
    revdial_engine_close(o->w.p.proxy->e, id);
    revdial_engine_close(o->w.p.backend->e, id);
    pair_pump(&o->w.p);
}

static void offers_run(offers *o, int ms)
{
    static const revdial_dial_opts opts = {0};
    for (; ms > 0 && o->opened < 1000; ms--) {  // enough to see that there are too many
        while (o->opened - o->accepted < OFFERS) {
            int64_t id = revdial_engine_open(o->w.p.backend->e, &opts, NULL);
            if (id <= 0) break;
            o->ids[o->opened++ % OFFERS] = (uint32_t)id;
            if (o->is_hasty) offer_write(o, (uint32_t)id);
        }
        pair_pump(&o->w.p);
        while (o->accepted < o->w.p.proxy->counts[REVDIAL_EV_OPEN]) {
            offer_take(o, o->ids[o->accepted % OFFERS]);
            o->accepted++;
        }
        world_run(&o->w, 1);
    }
}

TEST(first_windows_of_the_peers_streams_keep_the_rate_of_their_session)
{
    for (int i = 0; i < 5; i++) {
        const int is_stock = i == 2;  // such a peer waits for nothing
        offers o = {.is_hasty = i % 3 > 0, .stay = i > 2};
        revdial_engine_info info;
        rig_options a = {.limits = all, .stock = is_stock}, b = {.stock = is_stock};
        REQUIRE(pair_new(&o.w.p, &a, &b));
        o.w.p.proxy->quiet = o.w.p.backend->quiet = 1;
        offers_run(&o, 3000);
        revdial_engine_get_info(o.w.p.proxy->e, &info);
        CHECK(info.rx_bytes <= 3 * (uint64_t)RATE + 2 * BURST + OFFER * (o.is_hasty ? OFFERS : 1u));
        CHECK(info.rx_bytes >= 3 * (uint64_t)RATE * 90 / 100);
        CHECK(!o.w.p.proxy->dead && !o.w.p.backend->dead);
        pair_end(&o.w.p);
    }
}

// Opens a stream to that target that is held back, because the session owes bytes.
static uint32_t offer_held(offers *o, const char *target)
{
    unsigned before = o->w.p.proxy->counts[REVDIAL_EV_OPEN];
    int64_t id = revdial_engine_open(o->w.p.backend->e, &(revdial_dial_opts){.target = target}, 0);
    CHECK(id > 0);
    pair_pump(&o->w.p);
    CHECK_INT(o->w.p.proxy->counts[REVDIAL_EV_OPEN], before);
    return (uint32_t)id;
}

static int offers_owe(offers *o, revdial_limits limits)
{
    if (!world_open(&o->w, limits, none)) return 0;
    o->is_hasty = 1;
    offers_run(o, 1);
    while (o->opened > o->accepted)  // those that wait go away
        revdial_engine_reset(o->w.p.backend->e, o->ids[o->accepted++ % OFFERS], 8);
    pair_pump(&o->w.p);
    return 1;
}

TEST(a_stream_that_is_held_back_is_announced_later_with_all_that_came_of_it)
{
    for (int is_lifted = 0; is_lifted < 2; is_lifted++) {
        offers o = {0};
        char bytes[8];
        REQUIRE(offers_owe(&o, all));
        unsigned shown = o.w.p.proxy->counts[REVDIAL_EV_OPEN];
        uint32_t first = offer_held(&o, "t1:1"), second = offer_held(&o, "t2:2");
        uint32_t third = offer_held(&o, "t3:3");
        CHECK_INT(revdial_engine_write(o.w.p.backend->e, first, "hello", 5), 5);
        revdial_engine_end_write(o.w.p.backend->e, first);
        revdial_engine_reset(o.w.p.backend->e, second, 77);
        pair_pump(&o.w.p);
        if (is_lifted) world_limit(&o.w, none);
        world_run(&o.w, is_lifted ? 5 : 5000);
        CHECK_INT(o.w.p.proxy->counts[REVDIAL_EV_OPEN], shown + 2);
        CHECK(strstr(o.w.p.proxy->meta, "target=t3:3;") != NULL);
        CHECK_INT(revdial_engine_read(o.w.p.proxy->e, first, bytes, sizeof bytes), 5);
        CHECK_INT(revdial_engine_read(o.w.p.proxy->e, first, bytes, sizeof bytes), 0);
        CHECK_INT(revdial_engine_accept(o.w.p.proxy->e, third), 0);
        pair_end(&o.w.p);
    }
}

// A preamble stays in memory until its stream is shown.
TEST(preambles_of_streams_that_are_held_back_take_four_megabytes_at_most)
{
    enum { STREAMS = 1100, MOST = (4 << 20) / 4096 };  // one of over 2 KiB has a block of 4 KiB
    offers o = {0};
    char value[3900];
    revdial_kv meta = {"key", value};
    revdial_dial_opts opts = {.target = "t:1", .meta = &meta, .meta_count = 1};
    uint8_t head[4097];
    revdial_engine_info info;
    memset(value, 'v', sizeof value - 1);
    value[sizeof value - 1] = '\0';
    size_t len = rvd_wire_preamble_put(head, sizeof head, &opts, "0");
    REQUIRE(len > 2048 && offers_owe(&o, all));
    rig *r = o.w.p.proxy;
    unsigned shown = r->counts[REVDIAL_EV_OPEN];
    for (uint32_t i = 0; i < STREAMS; i++) {
        rig_frame(r, WIRE_DATA, WIRE_SYN, 100000 + 2 * i, (uint32_t)len);
        rig_feed(r, head, len);
    }
    revdial_engine_get_info(r->e, &info);
    CHECK_INT(r->counts[REVDIAL_EV_OPEN], shown);
    CHECK_INT(info.resets[REVDIAL_RESET_CALM], STREAMS - MOST);
    CHECK(!r->dead);
    pair_end(&o.w.p);
}

// A long frame: may its bytes be read past the engine, and for whom? Until the application knows of
// the stream, its pointer is not there yet.
TEST(the_bytes_of_a_stream_that_is_held_back_are_not_read_past_the_engine)
{
    offers o = {0};
    revdial_dial_opts opts = {.target = "t:1"};
    uint8_t head[100];
    void *ud = &o;
    size_t unread = 1, len = rvd_wire_preamble_put(head, sizeof head, &opts, "0");
    REQUIRE(len > 0 && offers_owe(&o, all));
    rig *r = o.w.p.proxy;
    unsigned shown = r->counts[REVDIAL_EV_OPEN];
    rig_frame(r, WIRE_DATA, WIRE_SYN, 100000, 65536);
    rig_feed(r, head, len);
    rig_feed(r, "ten bytes.", 10);
    CHECK_INT(r->counts[REVDIAL_EV_OPEN], shown);
    CHECK_INT(revdial_engine_coming(r->e, &ud), 0);
    CHECK(ud == NULL);
    ud = &o;
    CHECK_INT(revdial_engine_coming_after(r->e, &ud, &unread), 65536 - len - 10);
    CHECK(ud == NULL);
    CHECK_INT(unread, 0);
    pair_end(&o.w.p);
}

TEST(a_stream_that_is_held_back_for_too_long_is_refused_and_never_announced)
{
    offers o = {0};
    REQUIRE(offers_owe(&o, (revdial_limits){.session_rate = 50000, .accept_timeout_ms = 1000}));
    unsigned shown = o.w.p.proxy->counts[REVDIAL_EV_OPEN];
    unsigned resets = o.w.p.backend->counts[REVDIAL_EV_RESET];
    for (int i = 0; i < 3; i++) offer_held(&o, "t:1");
    world_run(&o.w, 2000);
    CHECK_INT(o.w.p.backend->counts[REVDIAL_EV_RESET], resets + 3);
    CHECK_INT(o.w.p.proxy->counts[REVDIAL_EV_OPEN], shown);
    pair_end(&o.w.p);
}

TEST(streams_that_were_held_back_are_shown_as_fast_as_the_rate_permits)
{
    offers o = {0};
    REQUIRE(offers_owe(&o, all));
    unsigned shown = o.w.p.proxy->counts[REVDIAL_EV_OPEN];
    for (int i = 0; i < 100; i++) offer_held(&o, "t:1");
    for (int ms = 0; ms < 5000 && o.w.p.proxy->counts[REVDIAL_EV_OPEN] == shown; ms++)
        world_run(&o.w, 1);
    world_run(&o.w, 500);
    CHECK_INT(o.w.p.proxy->counts[REVDIAL_EV_OPEN], shown + 100);
    pair_end(&o.w.p);
}

TEST(a_stream_that_is_held_back_is_not_there_for_the_application_and_ends_with_its_session)
{
    offers o = {0};
    revdial_engine_info info;
    char byte;
    REQUIRE(offers_owe(&o, all));
    uint32_t id = 0;
    for (int i = 0; i < 50; i++) id = offer_held(&o, "t:1");
    CHECK_INT(revdial_engine_read(o.w.p.proxy->e, id, &byte, 1), REVDIAL_EINVAL);
    CHECK_INT(revdial_engine_accept(o.w.p.proxy->e, id), REVDIAL_EINVAL);
    revdial_engine_terminate(o.w.p.proxy->e);
    pair_pump(&o.w.p);
    revdial_engine_get_info(o.w.p.proxy->e, &info);
    CHECK_INT(info.streams, 0);
    pair_end(&o.w.p);
}

// ---- limits that change while the session is up

// How much has come within ms, after a second in which what was granted before is used up.
static uint64_t world_measure(world *w, int64_t ms)
{
    world_run(w, 1000);
    uint64_t got = world_got(w);
    world_run(w, ms);
    return world_got(w) - got;
}

TEST(a_rate_that_changes_counts_at_once_for_streams_that_run)
{
    for (int i = 0; i < 8; i++) {
        static const int factors[] = {4, 1, 2};
        const int per_stream = i & 1, streams = i & 4 ? 4 : 1;
        world w;
        REQUIRE(world_open(&w, none, none));
        for (int k = 0; k < streams; k++) REQUIRE(world_flow(&w, i & 2, UINT64_MAX) != NULL);
        for (int k = 0; k < 3; k++) {
            uint64_t rate = (uint64_t)factors[k] * RATE;
            revdial_limits l = {.stream_rate = per_stream ? rate : 0,
                                .session_rate = per_stream ? 0 : rate};
            world_limit(&w, l);
            check_near(world_measure(&w, 5000),
                       5 * rate * (per_stream ? (uint64_t)streams : 1), "changed");
        }
        world_limit(&w, none);
        uint64_t got = world_got(&w);
        for (int ms = 0; ms < 100; ms++) world_run(&w, 1);
        CHECK(world_got(&w) - got > 20 * (uint64_t)RATE);  // in a tenth of a second
        CHECK(!w.p.proxy->dead && !w.p.backend->dead);
        pair_end(&w.p);
    }
}

TEST(what_was_moved_before_there_was_a_rate_is_not_charged_to_it)
{
    for (int way = 0; way < 2; way++) {
        world w;
        REQUIRE(world_open(&w, none, none));
        flow *f = world_flow(&w, way, 20 * RATE);
        REQUIRE(f != NULL);
        for (int ms = 0; ms < 1000; ms++) world_run(&w, 1);
        CHECK_INT(f->got, 20 * RATE);
        world_limit(&w, all);
        f->left = UINT64_MAX;
        world_run(&w, 1000);
        CHECK(f->got - 20 * RATE >= RATE / 2);
        pair_end(&w.p);
    }
}

// What a window has grown to before there was a rate would be the burst of a sender that pauses.
TEST(windows_shrink_to_a_rate_that_comes_later)
{
    world w;
    revdial_flow_info flow_info;
    REQUIRE(world_open(&w, none, none));
    flow *f = world_flow(&w, 1, UINT64_MAX);
    REQUIRE(f != NULL);
    w.p.proxy->now += 20000;  // a round trip that lets windows grow
    for (int ms = 0; ms < 1000; ms++) world_run(&w, 1);
    world_limit(&w, (revdial_limits){.stream_rate = 100000});
    for (int ms = 0; ms < 1000; ms++) world_run(&w, 1);  // what it may send already
    f->left = 0;
    world_run(&w, 100000);
    revdial_engine_get_flow(w.p.proxy->e, f->id, &flow_info);
    CHECK(flow_info.window <= 100000);
    uint64_t got = f->got;
    f->left = 10 * RATE;
    world_run(&w, 1);
    CHECK(f->got - got <= 2 * 100000);
    pair_end(&w.p);
}

// With a stock peer the first size is not what was announced, but what the ACK has given.
TEST(a_rate_that_comes_later_leaves_windows_their_first_size)
{
    revdial_flow_info flow_info;
    rig *r = rig_new(&(rig_options){.limits = {.stream_window = 1 << 20}});
    REQUIRE(r != NULL);
    script_run(r, "Wp1+SYN .acceptp1");
    CHECK_INT(revdial_engine_set_limits(r->e, &one, NULL), 0);
    script_run(r, "Wp2+SYN .acceptp2");
    for (uint32_t n = 1; n <= 2; n++) {
        CHECK_INT(revdial_engine_get_flow(r->e, rig_id(r, 1, n), &flow_info), 0);
        CHECK_INT(flow_info.window, 1 << 20);
    }
    rig_end(r);
}

TEST(streams_that_wait_for_a_rate_end_in_time_when_it_is_lifted)
{
    for (int i = 0; i < 4; i++) {
        world w;
        REQUIRE(world_open(&w, i & 1 ? one : all, none));
        for (int k = 0; k < 4; k++) {
            flow *f = world_flow(&w, i & 2, 20 * RATE);
            REQUIRE(f != NULL);
            f->ends = 1;
        }
        world_run(&w, 1000);
        world_limit(&w, none);
        for (int ms = 0; ms < 1000; ms++) world_run(&w, 1);
        for (int k = 0; k < 4; k++) {
            CHECK_INT(w.flows[k].got, 20 * RATE);
            CHECK(w.flows[k].is_over);
        }
        pair_end(&w.p);
    }
}

TEST(a_rate_for_which_there_is_no_memory_changes_nothing)
{
    world w;
    REQUIRE(world_open(&w, none, none));
    for (int k = 0; k < 8; k++) REQUIRE(world_flow(&w, k & 1, 100000) != NULL);
    for (size_t n = 4; n > 0; n--) {  // of eight that are needed
        w.p.proxy->heap.fail_at = w.p.proxy->heap.calls + n;
        CHECK_INT(revdial_engine_set_limits(w.p.proxy->e, &all, NULL), REVDIAL_ENOMEM);
        if (n == 4) CHECK_INT(revdial_engine_set_limits(w.p.proxy->e, &none, NULL), 0);
    }
    w.p.proxy->heap.fail_at = 0;
    for (int k = 0; k < 8; k++) w.flows[k].ends = 1;
    for (int ms = 0; ms < 10; ms++) world_run(&w, 1);
    for (int k = 0; k < 8; k++) CHECK_INT(w.flows[k].got, 100000);
    pair_end(&w.p);
}

TEST(a_lower_limit_of_streams_ends_none_and_refuses_new_ones)
{
    static const revdial_dial_opts opts = {0};
    world w;
    revdial_engine_info info;
    REQUIRE(world_open(&w, none, none));
    for (int k = 0; k < 4; k++) REQUIRE(world_flow(&w, k & 1, 200000) != NULL);
    world_limit(&w, (revdial_limits){.max_own_streams = 2});
    CHECK_INT(revdial_engine_open(w.p.proxy->e, &opts, NULL), REVDIAL_ELIMIT);
    world_run(&w, 100);
    for (int k = 0; k < 4; k++) CHECK_INT(w.flows[k].got, 200000);
    for (int k = 0; k < 4; k++) {
        CHECK_INT(revdial_engine_open(w.p.proxy->e, &opts, NULL) > 0, k == 3);
        if (k == 3) break;
        revdial_engine_close(w.p.proxy->e, w.flows[k].id);
        revdial_engine_close(w.p.backend->e, w.flows[k].id);
        pair_pump(&w.p);
    }
    revdial_engine_get_info(w.p.proxy->e, &info);
    CHECK_INT(info.streams_refused, 4);
    world_limit(&w, none);
    CHECK(revdial_engine_open(w.p.proxy->e, &opts, NULL) > 0);
    pair_end(&w.p);
}

TEST(a_lower_limit_of_the_peers_streams_ends_none_and_refuses_new_ones)
{
    static const revdial_dial_opts opts = {0};
    world w;
    revdial_engine_info info;
    REQUIRE(world_open(&w, none, none));
    for (int k = 0; k < 3; k++) {
        CHECK(revdial_engine_open(w.p.backend->e, &opts, NULL) > 0);
        pair_pump(&w.p);
    }
    world_limit(&w, (revdial_limits){.max_streams = 2});
    CHECK_INT(w.p.backend->counts[REVDIAL_EV_RESET], 0);
    CHECK(revdial_engine_open(w.p.backend->e, &opts, NULL) > 0);
    pair_pump(&w.p);
    CHECK_INT(w.p.backend->counts[REVDIAL_EV_RESET], 1);
    revdial_engine_get_info(w.p.proxy->e, &info);
    CHECK_INT(info.streams_refused, 1);
    CHECK_INT(info.streams, 3);
    pair_end(&w.p);
}

TEST(times_of_a_session_change_while_it_is_up)
{
    world w;
    revdial_limits l = {.keepalive_ms = 700, .dead_after_ms = 800};
    REQUIRE(world_open(&w, none, none));
    world_run(&w, 40000);
    int64_t now = w.p.proxy->now;
    CHECK(revdial_engine_tick(w.p.proxy->e, now) > now + 10000000);
    CHECK_INT(revdial_engine_set_limits(w.p.proxy->e, &l, NULL), 0);
    revdial_engine_tick(w.p.proxy->e, now + 700000);
    CHECK(revdial_engine_output(w.p.proxy->e, (struct iovec[1]){{NULL, 0}}, 1) == 1);  // a ping
    pair_end(&w.p);
}

TEST(limits_that_cannot_be_change_nothing)
{
    world w;
    revdial_err err;
    REQUIRE(world_open(&w, all, none));
    REQUIRE(world_flow(&w, 1, UINT64_MAX) != NULL);
    CHECK_INT(revdial_engine_set_limits(w.p.proxy->e, &(revdial_limits){.stream_rate = 999}, &err),
              REVDIAL_EINVAL);
    CHECK(strstr(err.msg, "limits.stream_rate: 999 is not in 1000..100000000000") != NULL);
    check_near(world_measure(&w, 5000), 5 * RATE, "as before");
    pair_end(&w.p);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
