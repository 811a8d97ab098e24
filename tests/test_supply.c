// Payload that the engine does not copy: bytes that the sender keeps until they are on the wire
// (supply, supplied), and bytes that the receiver reads past the engine (coming, take, taken).
#define REVDIAL_NO_RUNTIME
#define REVDIAL_SELF_CHECK  // the mux checks its invariants at each call
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include "engine_script.h"

enum { LONG = 32768, WINDOW = 1 << 20, SUPPLIES = 4096 };

static const rig_options wide = {.limits = {.keepalive_ms = 100000000, .stream_window = WINDOW}};

// The bytes of a stream on their way from the proxy to the backend.
typedef struct way {
    rig_pair p;
    test_rng rng;
    uint32_t id;
    uint64_t supplied_at[SUPPLIES];  // of each supply that has not left: where in the stream it is,
    size_t supplied_len[SUPPLIES];   // and how much of it is left
    unsigned first, count;
    uint64_t written, arrived;
    uint64_t supplied, taken, given_back;
    size_t most_frame;
    int is_eof;
} way;

static size_t way_below(way *w, size_t n)
{
    return (size_t)test_below(&w->rng, n);
}

static size_t supply(rig *r, uint32_t id, size_t want)
{
    size_t n = revdial_engine_supply(r->e, id, want);
    if (n) revdial_engine_supplied(r->e, id, 0);
    return n;
}

static ptrdiff_t reserve(rig *r, uint32_t id, size_t want)
{
    void *at;
    ptrdiff_t n = revdial_engine_reserve(r->e, id, &at, want);
    if (n > 0) revdial_engine_commit(r->e, id, 0);
    return n;
}

static uint8_t way_byte(const way *w, uint64_t at)
{
    return rig_pattern(w->id, 0, at);
}

// Supplies up to `most` bytes. Returns how many.
static size_t way_supply(way *w, size_t most, size_t use)
{
    size_t n = revdial_engine_supply(w->p.proxy->e, w->id, most);
    if (!n) return 0;
    CHECK(n <= most && w->count < SUPPLIES);
    if (n > use) n = use;
    revdial_engine_supplied(w->p.proxy->e, w->id, n);
    if (!n) return 0;
    unsigned i = (w->first + w->count++) % SUPPLIES;
    w->supplied_at[i] = w->written;
    w->supplied_len[i] = n;
    w->written += n;
    w->supplied += n;
    return n;
}

static void way_write(way *w, size_t most)
{
    uint8_t bytes[3000];
    size_t n = most < sizeof bytes ? most : sizeof bytes;
    for (size_t i = 0; i < n; i++) bytes[i] = way_byte(w, w->written + i);
    ptrdiff_t done = revdial_engine_write(w->p.proxy->e, w->id, bytes, n);
    CHECK(done >= 0);
    if (done > 0) w->written += (uint64_t)done;
}

// Up to n bytes of the output, with what belongs where a vector has no base.
static size_t way_output(way *w, uint8_t *to, size_t most)
{
    struct iovec iov[8];
    size_t total = 0;
    int n = revdial_engine_output(w->p.proxy->e, iov, 8);
    for (int i = 0; i < n && total < most; i++) {
        size_t len = iov[i].iov_len < most - total ? iov[i].iov_len : most - total;
        if (iov[i].iov_base) {
            memcpy(to + total, iov[i].iov_base, len);
        } else {
            unsigned k = w->first % SUPPLIES;
            if (!CHECK(w->count > 0)) return total;
            if (len > w->supplied_len[k]) len = w->supplied_len[k];
            for (size_t b = 0; b < len; b++) to[total + b] = way_byte(w, w->supplied_at[k] + b);
            w->supplied_at[k] += len;
            w->supplied_len[k] -= len;
            if (!w->supplied_len[k]) w->first++;
            if (!w->supplied_len[k]) w->count--;
        }
        total += len;
        if (len < iov[i].iov_len) break;
    }
    judge_out(&w->p.proxy->wire, to, total);
    revdial_engine_sent(w->p.proxy->e, total);
    rig_drain(w->p.proxy);
    return total;
}

static void way_check(way *w, const uint8_t *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (bytes[i] != way_byte(w, w->arrived + i)) {
            test_fail(__FILE__, __LINE__, "byte %llu is wrong",
                      (unsigned long long)(w->arrived + i));
            break;
        }
    w->arrived += n;
}

static void way_read(way *w, size_t most)
{
    uint8_t bytes[4096];
    ptrdiff_t n = 1;
    while (most && n > 0) {
        n = revdial_engine_read(w->p.backend->e, w->id, bytes,
                                most < sizeof bytes ? most : sizeof bytes);
        if (n > 0) way_check(w, bytes, (size_t)n);
        if (n > 0) most -= (size_t)n;
        w->is_eof |= n == 0;
    }
}

// The receiver's side of n bytes: past the engine where it says so and `takes`, else into it.
static void way_input(way *w, const uint8_t *bytes, size_t n, int takes)
{
    rig *r = w->p.backend;
    while (n > 0) {
        void *ud = NULL;
        size_t coming = takes ? revdial_engine_coming(r->e, &ud) : 0;
        size_t len = coming ? coming : 1 + way_below(w, 70000);
        if (len > n) len = n;
        if (coming && len > 1 && way_below(w, 2)) len = 1 + way_below(w, len);
        CHECK(!coming == !ud && (!ud || ud == w));
        if (coming) {
            judge_in(&r->wire, bytes, len);
            way_check(w, bytes, len);
            revdial_engine_take(r->e, w->id, len, r->now);
            w->taken += len;
            rig_drain(r);
        } else {
            len = rig_feed_once(r, bytes, len);
            if (way_below(w, 4)) way_read(w, SIZE_MAX);
        }
        bytes += len;
        n -= len;
    }
}

static void way_back(way *w)
{
    rig_carry(w->p.backend, w->p.proxy, SIZE_MAX);
    w->p.proxy->now += 50;
    w->p.backend->now += 50;
    revdial_engine_set_now(w->p.proxy->e, w->p.proxy->now);
}

// Until long frames are worth it: the link has shown that it is near.
static void way_warm(way *w)
{
    uint8_t bytes[3000];
    for (int i = 0; i < 3000 && !supply(w->p.proxy, w->id, 4 * LONG); i++) {
        for (size_t k = 0; k < sizeof bytes; k++) bytes[k] = way_byte(w, w->written + k);
        ptrdiff_t n = revdial_engine_write(w->p.proxy->e, w->id, bytes, sizeof bytes);
        if (n > 0) w->written += (uint64_t)n;
        rig_carry(w->p.proxy, w->p.backend, SIZE_MAX);
        way_read(w, SIZE_MAX);
        way_back(w);
    }
}

// A stream of the proxy that the backend has accepted.
static int way_open_as(way *w, const rig_options *proxy, const rig_options *backend)
{
    memset(w, 0, sizeof *w);
    w->rng = test_rng_seeded(4711);
    if (!CHECK(pair_new(&w->p, proxy, backend))) return 0;
    w->p.proxy->quiet = w->p.backend->quiet = 1;
    w->p.proxy->wire.has_long = 1;
    int64_t id = revdial_engine_open(w->p.proxy->e, NULL, w);
    w->id = (uint32_t)id;
    pair_pump(&w->p);
    CHECK_INT(revdial_engine_accept(w->p.backend->e, w->id), 0);
    CHECK_INT(revdial_engine_set_ud(w->p.backend->e, w->id, w), 0);
    pair_pump(&w->p);
    way_warm(w);
    return CHECK(id > 0);
}

static int way_open(way *w)
{
    return way_open_as(w, &wide, &wide) && CHECK(supply(w->p.proxy, w->id, LONG) == LONG);
}

static void way_give_back(way *w, size_t n)
{
    if (n > w->taken - w->given_back) n = (size_t)(w->taken - w->given_back);
    revdial_engine_taken(w->p.backend->e, w->id, n);
    w->given_back += n;
}

static int way_close(way *w)
{
    return pair_end(&w->p);
}

// ---- in order, whole, at every split

static void way_transfer(way *w, uint64_t bytes, size_t step, int takes)
{
    uint8_t *buf = malloc(step);
    if (!buf) abort();
    for (unsigned turn = 0; !w->is_eof && turn < 4000000; turn++) {
        size_t left = (size_t)(bytes - w->written);
        size_t most = LONG + way_below(w, 4 * LONG);
        if (left && way_below(w, 3))
            way_supply(w, left < most ? left : most, 1 + way_below(w, most));
        else if (left)
            way_write(w, 1 + way_below(w, left));
        if (!left) revdial_engine_end_write(w->p.proxy->e, w->id);
        way_input(w, buf, way_output(w, buf, 1 + way_below(w, step)), takes);
        if (way_below(w, 3) == 0) way_give_back(w, way_below(w, 300000));
        if (turn % 8 == 0) way_read(w, SIZE_MAX);
        if (turn % 8 == 0) way_back(w);
    }
    free(buf);
    CHECK_INT(w->is_eof, 1);
    CHECK_INT(w->written, bytes);
    CHECK_INT(w->arrived, bytes);
}

TEST(bytes_that_are_not_copied_arrive_whole_and_in_order_among_copied_ones_at_every_split)
{
    static const size_t steps[] = {1, 13, 1000, 65537, 1 << 20};
    static const uint64_t bytes[] = {150000, 500000, 3000000, 3000000, 3000000};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        for (int takes = 0; takes < 2; takes++) {
            static way w;
            if (!way_open(&w)) return;
            w.rng = test_rng_seeded(7 * i + (size_t)takes);
            way_transfer(&w, bytes[i], steps[i], takes);
            CHECK(w.supplied > LONG);
            if (takes) CHECK(w.taken > LONG);
            if (!takes) CHECK_INT(w.taken, 0);
            way_close(&w);
        }
}

// ---- frames

TEST(a_frame_has_the_bytes_that_were_supplied_and_only_a_long_one_is_shown_as_coming)
{
    static const size_t sizes[] = {1,     12,    LONG - 1, LONG,     LONG + 1,     65524,
                                   65535, 65536, 65537,    6 * LONG, 8 * LONG + 7, 327680};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        static way w;
        static uint8_t buf[1 << 19];
        void *ud;
        if (!way_open(&w)) return;
        size_t n = way_supply(&w, 327680, sizes[i]);
        if (!CHECK(n == sizes[i] || n >= LONG)) return;
        size_t out = way_output(&w, buf, sizeof buf), head = out - n;
        CHECK(out > n);
        CHECK_INT(buf[head - 12], 0);
        CHECK_INT(buf[head - 11], 0);  // Data
        size_t len = (size_t)buf[head - 4] << 24 | (size_t)buf[head - 3] << 16 |
                     (size_t)buf[head - 2] << 8 | buf[head - 1];
        CHECK_INT(len, n);
        CHECK_INT(revdial_engine_coming(w.p.backend->e, &ud), 0);  // its header has not come
        way_input(&w, buf, head, 0);
        CHECK_INT(revdial_engine_coming(w.p.backend->e, &ud), n < LONG ? 0 : n);
        CHECK(n < LONG ? ud == NULL : ud == &w);
        way_input(&w, buf + head, n, 1);
        CHECK_INT(revdial_engine_coming(w.p.backend->e, &ud), 0);
        way_read(&w, SIZE_MAX);
        CHECK_INT(w.arrived, w.written);
        way_close(&w);
    }
}

TEST(supplied_nothing_gives_the_room_back)
{
    static way w;
    struct iovec iov[8];
    if (!way_open(&w)) return;
    size_t n = revdial_engine_supply(w.p.proxy->e, w.id, 327680);
    CHECK(n >= LONG);
    revdial_engine_supplied(w.p.proxy->e, w.id, 0);
    CHECK_INT(revdial_engine_output(w.p.proxy->e, iov, 8), 0);
    CHECK_INT(revdial_engine_supply(w.p.proxy->e, w.id, 327680), n);
    revdial_engine_supplied(w.p.proxy->e, w.id, 0);
    way_close(&w);
}

// ---- credit

TEST(bytes_past_the_engine_use_up_credit_until_they_are_said_to_have_left)
{
    static way w;
    static uint8_t buf[1 << 21];
    revdial_flow_info f;
    if (!way_open(&w)) return;
    CHECK_INT(revdial_engine_get_flow(w.p.backend->e, w.id, &f), 0);
    uint64_t preamble = f.received - w.arrived;
    for (int i = 0; i < 200; i++) {
        way_supply(&w, 4 * LONG, SIZE_MAX);
        way_input(&w, buf, way_output(&w, buf, sizeof buf), 1);
        way_read(&w, SIZE_MAX);
        way_back(&w);
    }
    CHECK(w.taken > LONG);
    CHECK_INT(revdial_engine_get_flow(w.p.proxy->e, w.id, &f), 0);
    CHECK(f.send_credit < LONG);  // less than a long frame needs
    CHECK_INT(revdial_engine_get_flow(w.p.backend->e, w.id, &f), 0);
    CHECK_INT(f.received, w.arrived + preamble);
    uint32_t before = f.recv_credit;
    revdial_engine_taken(w.p.backend->e, w.id, 0);
    revdial_engine_taken(w.p.backend->e, w.id + 2, 1000000);  // no such stream
    way_back(&w);
    CHECK_INT(revdial_engine_get_flow(w.p.backend->e, w.id, &f), 0);
    CHECK_INT(f.recv_credit, before);
    revdial_engine_taken(w.p.backend->e, w.id, SIZE_MAX);  // as many as there are
    way_back(&w);
    CHECK_INT(revdial_engine_get_flow(w.p.backend->e, w.id, &f), 0);
    CHECK_INT(f.recv_credit, f.window);
    revdial_engine_taken(w.p.backend->e, w.id, SIZE_MAX);  // there are none
    way_back(&w);
    CHECK_INT(revdial_engine_get_flow(w.p.backend->e, w.id, &f), 0);
    CHECK_INT(f.recv_credit, f.window);
    way_back(&w);
    CHECK(revdial_engine_supply(w.p.proxy->e, w.id, LONG) >= LONG);
    revdial_engine_supplied(w.p.proxy->e, w.id, 0);
    way_close(&w);
}

TEST(a_stream_supplies_a_turn_at_a_time_while_others_send)
{
    static way w;
    uint32_t turns[2] = {0};
    if (!way_open(&w)) return;
    CHECK(supply(w.p.proxy, w.id, 8 * LONG) > 65524);
    script_run(w.p.proxy, ".open .writem2#10");
    uint32_t ids[] = {w.id, rig_id(w.p.proxy, 0, 2)};
    for (int i = 0; i < 64; i++) {
        size_t n = revdial_engine_supply(w.p.proxy->e, ids[i % 2], 8 * LONG);
        CHECK(!n || (n >= LONG && n <= 65524));
        revdial_engine_supplied(w.p.proxy->e, ids[i % 2], n);
        turns[i % 2] += n > 0;
    }
    CHECK(turns[0] > 0 && turns[1] > 0 && turns[0] + turns[1] < 64);
    way_close(&w);
}

// ---- where there is none

TEST(supply_is_refused_where_it_is_not_possible_and_reserve_says_why)
{
    static const struct {
        const char *script;  // before it
        uint32_t stream;     // by number
        size_t want;
        ptrdiff_t reserve;
    } cases[] = {
        {"", 9, LONG, REVDIAL_EINVAL},
        {"", 1, 0, REVDIAL_EINVAL},
        {"", 1, SIZE_MAX, REVDIAL_EINVAL},
        {".finm1", 1, LONG, REVDIAL_ECLOSED},
        {".rstm1=5", 1, LONG, REVDIAL_ERESET},
        {"Wm1+RST=5", 1, LONG, REVDIAL_ERESET},
        {".closem1", 1, LONG, REVDIAL_EINVAL},
        {".shutdown", 1, LONG, REVDIAL_ELOST},
        {"", 1, LONG - 1, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static way w;
        if (!way_open(&w)) return;
        script_run(w.p.proxy, cases[i].script);
        uint32_t id = rig_id(w.p.proxy, 0, cases[i].stream);
        CHECK_INT(supply(w.p.proxy, id, cases[i].want), 0);
        ptrdiff_t code = reserve(w.p.proxy, id, cases[i].want);
        if (cases[i].reserve < 0 ? code != cases[i].reserve : code < 1)
            test_fail(__FILE__, __LINE__, "case %zu: reserve says %td", i, code);
        way_close(&w);
    }
}

TEST(a_session_that_cannot_pass_long_frames_is_never_asked_for_them)
{
    static const struct {
        rig_options proxy, backend;
        int supplies;
    } cases[] = {
        {{.limits = {.stream_window = WINDOW}}, {.limits = {.stream_window = WINDOW}}, 1},
        {{.stock = 1}, {.stock = 1}, 0},
        {{.carrier = REVDIAL_CARRIER_WEBSOCKET},
         {.carrier = REVDIAL_CARRIER_WEBSOCKET, .limits = {.stream_window = WINDOW}},
         0},
        {{.limits = {.frame_bytes_max = 16384}}, {.limits = {.stream_window = WINDOW}}, 0},
        {{.limits = {.stream_rate = 1000000}}, {.limits = {.stream_window = WINDOW}}, 0},
        {{.output_max = 4 * LONG - 1}, {.limits = {.stream_window = WINDOW}}, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static way w;
        rig_options proxy = cases[i].proxy, backend = cases[i].backend;
        proxy.limits.keepalive_ms = backend.limits.keepalive_ms = 100000000;
        if (!way_open_as(&w, &proxy, &backend)) return;
        int supplies = supply(w.p.proxy, w.id, LONG) > 0;
        if (supplies != cases[i].supplies || reserve(w.p.proxy, w.id, 100) < 0)
            test_fail(__FILE__, __LINE__, "case %zu: supplies %d", i, supplies);
        way_close(&w);
    }
}

TEST(nothing_is_coming_where_bytes_wait_or_the_stream_takes_none)
{
    static const struct {
        const char *script;
        int64_t coming;
    } cases[] = {
        {"", 0},
        {"Dp1%131072", 131072},
        {"Dp1%32768", 32768},
        {"Dp1%32767", 0},
        {"Dp1#10 Dp1%131072", 0},  // unread bytes come first
        {"Dp1#10 .readp1 Dp1%131072", 131072},
        {".stopp1 Dp1%131072", 0},  // they will be dropped
        {".rstp1=5 Dp1%131072", 0},
        {".closep1 Dp1%131072", 0},
        {"Dp1%131072 .rstp1=5", 0},  // in the middle of it
        {"Dp1%131072 .shutdown", 0},
        {"Dp9%131072", 0},  // nobody's
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        void *ud = &ud;
        rig_options o = wide;
        o.features = "pings, window=1048576";
        rig *r = rig_new(&o);
        REQUIRE(r != NULL);
        script_run(r, "Wp1+SYN .acceptp1");
        script_run(r, cases[i].script);
        size_t n = revdial_engine_coming(r->e, &ud);
        if ((int64_t)n != cases[i].coming)
            test_fail(__FILE__, __LINE__, "case %zu: %zu are coming", i, n);
        CHECK(ud == NULL);  // the stream has none
        uint32_t id = rig_id(r, 1, 1);
        revdial_engine_take(r->e, id + 40, 10, r->now);  // no such stream
        revdial_engine_take(r->e, id, 0, r->now);
        CHECK_INT(revdial_engine_coming(r->e, &ud), cases[i].coming);
        if (n) revdial_engine_take(r->e, id, n - 1, r->now);
        CHECK_INT(revdial_engine_coming(r->e, &ud), n ? 1 : 0);
        rig_end(r);
    }
}

// ---- when it ends

TEST(supplied_bytes_keep_their_place_although_their_stream_has_ended)
{
    static const char *const ends[] = {".rstm1=5", ".closem1", "Wm1+RST=5", ".finm1", ".shutdown"};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        static way w;
        struct iovec iov[8];
        size_t bare = 0;
        if (!way_open(&w)) return;
        size_t n = way_supply(&w, 3 * LONG, SIZE_MAX);
        CHECK(n >= LONG);
        script_run(w.p.proxy, ends[i]);
        int count = revdial_engine_output(w.p.proxy->e, iov, 8);
        for (int k = 0; k < count; k++)
            if (!iov[k].iov_base) bare += iov[k].iov_len;
        CHECK_INT(bare, n);
        revdial_engine_sent(w.p.proxy->e, 0);
        static uint8_t buf[1 << 20];
        way_input(&w, buf, way_output(&w, buf, sizeof buf), 1);
        CHECK_INT(w.count, 0);
        way_give_back(&w, SIZE_MAX);
        way_close(&w);
    }
}

TEST(a_supply_without_memory_ends_the_session_and_leaves_nothing_behind)
{
    unsigned died = 0;
    for (size_t fail = 1; fail < 6; fail++) {
        static way w;
        if (!way_open(&w)) return;
        size_t n = revdial_engine_supply(w.p.proxy->e, w.id, 3 * LONG);
        CHECK(n >= LONG);
        w.p.proxy->heap.fail_at = w.p.proxy->heap.calls + fail;
        revdial_engine_supplied(w.p.proxy->e, w.id, n);
        rig_drain(w.p.proxy);
        if (w.p.proxy->dead) CHECK_INT(w.p.proxy->dead_code, REVDIAL_ENOMEM);
        died += w.p.proxy->dead != 0;
        way_close(&w);
    }
    CHECK(died > 0);
}

TEST(an_engine_may_be_freed_with_supplied_and_with_taken_bytes)
{
    static way w;
    static uint8_t buf[1 << 20];
    if (!way_open(&w)) return;
    CHECK(way_supply(&w, 3 * LONG, SIZE_MAX) >= LONG);
    size_t n = way_output(&w, buf, sizeof buf);
    way_input(&w, buf, n - 1, 1);
    CHECK(w.taken > 0);
    CHECK(way_supply(&w, 3 * LONG, SIZE_MAX) >= LONG);
    way_close(&w);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
