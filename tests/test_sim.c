// A deterministic simulation of the whole protocol: two engines, two byte pipes, two applications
// and a clock, all driven by one seed. Each application keeps a model of what it did; after every
// step the models, the engines' ledgers and a strict reader on each wire have to agree. Numbers in
// comments are the invariants of the reliability study, section 5.3.
//
//     build/test_sim                     500 seeds, 250 over WebSocket, and 100 of them twice;
//                                        twenty times as many if TEST_THOROUGH is set
//     build/test_sim --seed 17 --trace   one seed, every step on stderr
//     build/test_sim --seeds 0 1000000   a range; from 2^32 on all is in WebSocket frames
#define REVDIAL_NO_RUNTIME
#define REVDIAL_SELF_CHECK  // the mux checks its invariants at each call
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include "sim_model.h"

// ---- the world

// How many of n bytes go in one piece.
static size_t sim_segment(sim *w, const sim_pipe *p, size_t n)
{
    static const size_t steps[4] = {12, 11, 13, 1};
    if (w->resting) return n;
    switch (p->policy) {
    case 0: return n;
    case 1: return 1;
    case 2:
        n = sim_pick(w, 2) && n > 12 ? 12 : n;
        return n < steps[w->step & 3] ? n : steps[w->step & 3];
    default: return (size_t)sim_pick(w, n) + 1;
    }
}

// A handshake that failed speaks HTTP only; what a lost session would have sent matters to nobody.
static int sim_is_mute(const sim *w, int x)
{
    const sim_side *side = &w->side[x];
    if (w->side[0].refused || (side->dead && !side->up)) return 1;
    return side->dead && (side->dead_code == REVDIAL_ELOST || side->dead_code == REVDIAL_ENOMEM);
}

// From the engine into the pipe.
static void sim_send(sim *w, int x)
{
    sim_side *side = &w->side[x];
    sim_pipe *p = &side->out;
    struct iovec iov[8];
    size_t total = 0;
    int n = revdial_engine_output(side->e, iov, 1 + (int)sim_pick(w, 8));
    if (sim_chance(w, 8)) sim_recall(w, x);  // what was shown stays
    for (int i = 0; i < n && p->len < p->capacity; i++) {
        size_t room = p->capacity - p->len, take = sim_segment(w, p, iov[i].iov_len);
        if (take > room) take = room;
        if (p->len + take > p->size) {
            p->size = 2 * (p->len + take);
            p->bytes = realloc(p->bytes, p->size);
            if (!p->bytes) abort();
        }
        if (p->len == 0 && p->ready_us < w->now) p->ready_us = w->now + p->delay_us;
        memcpy(p->bytes + p->len, iov[i].iov_base, take);
        if (!sim_is_mute(w, x)) judge_out(&side->wire, iov[i].iov_base, take);
        p->len += take;
        total += take;
        if (take < iov[i].iov_len) break;
    }
    for (size_t i = 0; i < total; i += 1 + total / 8) sim_mix(w, p->bytes[p->len - total + i]);
    sim_mix(w, total);
    sim_note(w, "side %d: sends %zu", x, total);
    revdial_engine_sent(side->e, total);
}

// From the pipe into side x.
static void sim_receive(sim *w, int x)
{
    sim_side *side = &w->side[x], *other = &w->side[1 - x];
    sim_pipe *p = &other->out;
    revdial_engine_info info;
    if (p->ended || (p->ready_us > w->now && !w->resting)) return;
    size_t n = p->len;
    if (p->carried + n > p->cut_at) n = (size_t)(p->cut_at - p->carried);
    if (n == 0) {
        revdial_engine_get_info(other->e, &info);
        int over =
            p->carried == p->cut_at || (other->dead && info.output_bytes == 0 && p->len == 0);
        if (!over) return;
        p->ended = 1;
        sim_note(w, "side %d: the connection ends", x);
        if (revdial_engine_input(side->e, NULL, 0, w->now) > 0)
            sim_fail(w, "side %d: EOF is used", x);
        return;
    }
    n = sim_segment(w, p, n);
    uint8_t *copy = malloc(n);
    if (!copy) abort();
    memcpy(copy, p->bytes, n);
    revdial_engine_get_info(side->e, &info);
    side->wire.queued = info.output_bytes;
    ptrdiff_t used = revdial_engine_input(side->e, copy, n, w->now);
    sim_note(w, "side %d: receives %td of %zu", x, used, n);
    if (used > 0) side->heard_us = w->now;
    if (used > 0 && !sim_is_mute(w, x)) judge_in(&side->wire, copy, (size_t)used);
    if (used == REVDIAL_ECLOSED && side->dead) used = (ptrdiff_t)n;
    sim_mix(w, (uint64_t)used);
    sim_drain(w, x);  // the slice lives until here
    memset(copy, 0xEE, n);
    free(copy);
    if (used < 0 || (size_t)used > n) {
        sim_fail(w, "side %d: input returns %td of %zu", x, used, n);
        return;
    }
    p->carried += (uint64_t)used;
    p->len -= (size_t)used;
    memmove(p->bytes, p->bytes + used, p->len);
}

// A tick before the time that the last one named does nothing. 25
static void sim_tick(sim *w, int x)
{
    sim_side *side = &w->side[x];
    revdial_engine_info before, after;
    int64_t at, next;
    revdial_engine_tick(side->e, w->now);
    sim_drain(w, x);  // which may bring the next one forward
    at = revdial_engine_tick(side->e, w->now);
    if (at < 0 && !side->dead) sim_fail(w, "side %d: no tick is due although it lives", x);
    if (at >= 0 && at <= w->now) sim_fail(w, "side %d: the next tick is due before now", x);
    if (at > w->now + 1 && at < w->now + 2000000 && !w->resting && sim_chance(w, 4)) {
        unsigned events = side->events;
        revdial_engine_get_info(side->e, &before);
        w->now += (int64_t)sim_pick(w, (uint64_t)(at - w->now));
        next = revdial_engine_tick(side->e, w->now);
        sim_drain(w, x);
        revdial_engine_get_info(side->e, &after);
        if (next != at || before.tx_frames != after.tx_frames || side->events != events)
            sim_fail(w, "side %d: a tick before its time did something", x);
    }
    side->tick_us = at < 0 ? INT64_MAX : at;
}

static void sim_wait(sim *w, int64_t us)
{
    w->now += us;
    for (int x = 0; x < 2; x++)
        if (w->side[x].tick_us <= w->now && (w->resting || !sim_chance(w, 8))) {
            if (w->now - w->side[x].tick_us > 1000000) w->slow = 1;
            sim_tick(w, x);
        }
}

static void sim_world_op(sim *w, int x, enum sim_op op)
{
    sim_side *side = &w->side[x];
    sim_pipe *p = &side->out;
    switch ((int)op) {
    case SIM_OPEN: sim_open(w, x); break;
    case SIM_RECALL: sim_recall(w, x); break;
    case SIM_DRAIN:
        side->draining = 1;
        revdial_engine_drain(side->e);
        break;
    case SIM_SHUTDOWN:
        side->shut = 1;
        revdial_engine_terminate(side->e);
        break;
    case SIM_SEND: sim_send(w, x); break;
    case SIM_RECEIVE: sim_receive(w, x); break;
    case SIM_TICK: sim_tick(w, x); break;
    case SIM_WAIT: sim_wait(w, (int64_t)sim_pick(w, (uint64_t)1 << sim_pick(w, 20))); break;
    case SIM_JUMP:
        w->slow = 1;
        sim_wait(w, (int64_t)sim_pick(w, 70000000));
        break;
    case SIM_STALL:
        w->slow = 1;
        p->ready_us = w->now + (int64_t)sim_pick(w, 20000000);
        break;
    case SIM_CUT:
        w->cut = 1;
        p->cut_at = p->carried + sim_pick(w, 30000);
        break;
    case SIM_NO_MEMORY:
        w->no_memory = 1;
        side->heap.fail_at = side->heap.calls + 1 + (size_t)sim_pick(w, 4);
        break;
    case SIM_OUTPUT_MAX:
        side->output_max = (size_t)1024 << sim_pick(w, 9);
        revdial_engine_set_output_max(side->e, side->output_max);
        break;
    default: break;
    }
}

static void sim_auth(sim *w)
{
    sim_side *proxy = &w->side[0];
    if (!proxy->auth_waits || (!w->resting && !sim_chance(w, 4))) return;
    proxy->auth_waits = 0;
    proxy->refused = !w->resting && sim_chance(w, 20);
    int rc = revdial_engine_auth(proxy->e, proxy->refused ? REVDIAL_EDENIED : 0);
    if (rc && !proxy->dead && !w->no_memory && !w->cut && !w->slow)
        sim_fail(w, "the verdict is refused: %d", rc);
    if (rc) proxy->refused = 1;
}

// ---- the invariants

// 1, 2, 3, 4: the engine's ledger against the wire's and the model's.
static void sim_check_stream(sim *w, int x, const sim_stream *s, const revdial_engine_info *info)
{
    const sim_end *end = &s->end[x];
    const judge_stream *j = judge_find(&w->side[x].wire, s->id);
    revdial_flow_info l;
    if (revdial_engine_get_flow(w->side[x].e, s->id, &l) != 0) {
        sim_fail(w, "side %d: no ledger of %u", x, s->id);
        return;
    }
    if (l.received - l.consumed != l.buffered)
        sim_fail(w, "side %d: %u: %llu received, %llu consumed, %u buffered", x, s->id,
                 (unsigned long long)l.received, (unsigned long long)l.consumed, l.buffered);
    if (l.recv_credit > WIRE_WINDOW_MAX) sim_fail(w, "side %d: credit of %u", x, s->id);
    if (!j || end->reset || end->got_reset || w->side[x].dead) return;
    if (l.received != j->data_in)
        sim_fail(w, "side %d: %u: %llu received, the wire says %llu", x, s->id,
                 (unsigned long long)l.received, (unsigned long long)j->data_in);
    uint64_t given = w->side[x].wire.window_own + j->grants_out;
    if (l.recv_credit + l.received < given ||
        (info->output_bytes == 0 && l.recv_credit + l.received != given))
        sim_fail(w, "side %d: %u: credit of %llu given, %llu on the ledger", x, s->id,
                 (unsigned long long)given, (unsigned long long)(l.recv_credit + l.received));
    uint64_t got = w->side[x].wire.window_peer + j->grants_in;
    if (!end->fin && l.send_credit + l.sent != got)
        sim_fail(w, "side %d: %u: credit of %llu got, %llu on the ledger", x, s->id,
                 (unsigned long long)got, (unsigned long long)(l.send_credit + l.sent));
    if (l.sent < j->data_out || l.sent - j->data_out > info->output_bytes)
        sim_fail(w, "side %d: %u: %llu sent, the wire says %llu", x, s->id,
                 (unsigned long long)l.sent, (unsigned long long)j->data_out);
}

// What the engine counts, against the wire and the models: exact, except what depends on bytes or
// streams that the application never got.
static void sim_check_counts(sim *w, int x, const revdial_engine_info *info)
{
    const sim_side *side = &w->side[x];
    const judge *j = &side->wire;
    uint64_t frames = j->out_frames[0] + j->out_frames[1] + j->out_frames[2] + j->out_frames[3];
    uint64_t written = 0, read = 0, sent = 0, resets = 0, told = 0, known = 0, open = 0;
    for (size_t i = 0; i < w->count; i++) {
        const sim_end *end = &w->streams[i].end[x];
        written += end->written;
        read += end->read;
        sent += w->streams[i].end[1 - x].written;
        told += end->reset || end->got_reset;
        known += end->known != 0;
        open += end->known && !end->closed;
    }
    for (int code = 0; code < REVDIAL_RESET_PLACES; code++) resets += info->resets[code];
    if (info->tx_bytes != written || info->rx_bytes < read + info->buffered_bytes ||
        info->rx_bytes > sent)
        sim_fail(w, "side %d: counts %llu bytes of %llu out, %llu of %llu in", x,
                 (unsigned long long)info->tx_bytes, (unsigned long long)written,
                 (unsigned long long)info->rx_bytes, (unsigned long long)sent);
    if (info->streams_reset != resets || resets < told || resets > info->streams_opened)
        sim_fail(w, "side %d: %llu resets by code, counts %llu", x, (unsigned long long)resets,
                 (unsigned long long)info->streams_reset);
    if (info->streams_opened < known || info->streams_opened > w->count || info->streams < open)
        sim_fail(w, "side %d: counts %llu streams", x, (unsigned long long)info->streams_opened);
    if (side->dead) return;
    // After a late tick the engine forgives the peer's silence meanwhile.
    if (info->rx_frames != j->in_frames || info->last_rx_us < side->heard_us ||
        (!w->slow && side->heard_us >= 0 && info->last_rx_us != side->heard_us))
        sim_fail(w, "side %d: counts %llu frames in, at %lld", x,
                 (unsigned long long)info->rx_frames, (long long)info->last_rx_us);
    if (info->tx_frames < frames || (info->output_bytes == 0 && info->tx_frames != frames))
        sim_fail(w, "side %d: counts %llu frames out", x, (unsigned long long)info->tx_frames);
}

static void sim_check(sim *w, int x)
{
    sim_side *side = &w->side[x];
    revdial_engine_info info;
    if (side->wire.failures) sim_fail(w, "%s", side->wire.why);  // 9 to 17, 24
    revdial_engine_get_info(side->e, &info);
    if (info.memory_bytes != side->heap.live_bytes)
        sim_fail(w, "side %d: %zu bytes of memory, the heap says %zu", x, info.memory_bytes,
                 side->heap.live_bytes);  // 19
    if (info.output_bytes > (side->output_max > 262144 ? side->output_max : 262144) + 300000)
        sim_fail(w, "side %d: %zu bytes wait to be sent", x, info.output_bytes);  // 18
    for (size_t i = 0; i < w->count; i++)
        if (!revdial_engine_lent(side->e, w->streams[i].id)) sim_lent_free(&w->streams[i].end[x]);
    if (!side->up) return;
    sim_check_counts(w, x, &info);
    for (size_t i = 0; i < w->count && !w->failed; i++)
        if (w->streams[i].end[x].known && !w->streams[i].end[x].closed)
            sim_check_stream(w, x, &w->streams[i], &info);
}

// ---- a run

static int sim_side_new(sim *w, int x)
{
    sim_side *side = &w->side[x];
    revdial_limits l = {0};
    revdial_engine_config c = {.role = x ? REVDIAL_ROLE_BACKEND : REVDIAL_ROLE_PROXY,
                               .upgraded = w->upgraded,
                               .carrier = w->websocket && (x || w->upgraded),
                               .host = "h",
                               .name = "n",
                               .secret = "s",
                               .peer = "192.0.2.1:1",
                               .session_id = w->seed,
                               .seed = w->seed * 77,
                               .accept_streams = 1,
                               .alloc = test_heap_alloc,
                               .alloc_ud = &side->heap};
    l.stream_window = 8192u << sim_pick(w, 7);
    if (sim_chance(w, 4)) l.stream_window_max = l.stream_window;
    if (w->small && sim_pick(w, 2)) l.session_window = 1 << 20;
    if (w->small && sim_pick(w, 2)) l.max_streams = 1 + (uint32_t)sim_pick(w, 4);
    if (sim_chance(w, 3)) l.frame_bytes_max = 1000 + (uint32_t)sim_pick(w, 60000);
    if (w->seed % 3 == 1) l.stream_rate = 50000u << w->seed / 3 % 9;
    if (w->seed % 4 == 1) l.session_rate = 50000u << (w->seed / 4 + (unsigned)x) % 9;
    c.limits = l;
    judge_init(&side->wire, x ? "backend" : "proxy", !x);
    if (w->websocket) judge_frame(&side->wire);
    side->wire.window_own = w->upgraded ? WIRE_STOCK_WINDOW : l.stream_window;
    if (!w->upgraded) side->wire.in.http_matched = side->wire.out.http_matched = 0;
    side->up = w->upgraded;
    side->output_max = 262144;
    side->out.capacity = (size_t)256 << sim_pick(w, 11);
    side->out.policy = (int)sim_pick(w, 5);
    side->out.delay_us = (int64_t)sim_pick(w, (uint64_t)1 << sim_pick(w, 18));
    side->out.cut_at = UINT64_MAX;
    side->heard_us = w->now;
    side->e = revdial_engine_new(&c, w->now, NULL);
    return side->e != NULL;
}

static void sim_begin(sim *w, uint64_t seed, int trace)
{
    static const int64_t clocks[4] = {0, 4294967296 - 5000000, INT64_MAX / 2, 1000000};
    memset(w, 0, sizeof *w);
    w->seed = seed;
    w->websocket = seed >= SIM_WEBSOCKET;
    w->rng = test_rng_seeded(seed);
    w->trace = trace;
    w->now = w->began = clocks[sim_pick(w, 4)];
    w->upgraded = sim_chance(w, 4);
    w->small = sim_chance(w, 4);
    if (sim_chance(w, 4)) w->deaf = (unsigned)sim_pick(w, 4);
    for (int op = 0; op < SIM_OPS; op++) {
        static const unsigned scale[4] = {0, 1, 2, 8};  // swarm: some ops not at all, some often
        unsigned factor = op >= SIM_SEND && op <= SIM_WAIT ? 2 : scale[sim_pick(w, 4)];
        if (op == SIM_OPEN && !factor) factor = 2;
        if (w->deaf && (op == SIM_WRITE || (op >= SIM_SEND && op <= SIM_WAIT))) factor = 8;
        if ((op == SIM_CUT || op == SIM_NO_MEMORY || op == SIM_SHUTDOWN) && !sim_chance(w, 4))
            factor = 0;
        w->weight[op] = sim_op_base[op] * factor;
        w->weights += w->weight[op];
    }
    if (!sim_side_new(w, 0) || !sim_side_new(w, 1)) {
        sim_fail(w, "no engine");
        return;
    }
    w->side[0].wire.window_peer = w->side[1].wire.window_own;
    w->side[1].wire.window_peer = w->side[0].wire.window_own;
}

static void sim_step(sim *w)
{
    uint64_t at = sim_pick(w, w->weights);
    int x = (int)sim_pick(w, 2), op = 0;
    while (at >= w->weight[op]) at -= w->weight[op++];
    sim_mix(w, (uint64_t)op);
    if (op >= SIM_ACCEPT && op <= SIM_CLOSE) {
        sim_stream_op(w, x, (enum sim_op)op);
    } else {
        sim_note(w, "side %d: %s", x, sim_op_names[op]);
        sim_world_op(w, x, (enum sim_op)op);
    }
    for (int side = 0; side < 2 && !w->failed; side++) {
        sim_drain(w, side);
        sim_check(w, side);
    }
    sim_auth(w);
    if (w->now - w->began > 4000000) w->slow = 1;  // long enough for the first timeout
}

// One round of well-behaved applications. Returns 1 once all streams are over.
static int sim_rest_round(sim *w)
{
    int over = 1;
    sim_auth(w);
    for (int x = 0; x < 2; x++) {
        sim_drain(w, x);
        for (size_t i = 0; i < w->count && !w->failed; i++) {
            sim_stream *s = &w->streams[i];
            sim_end *end = &s->end[x];
            if (!end->known || end->closed) continue;
            if (!end->accepted) revdial_engine_accept(w->side[x].e, s->id);
            end->accepted = 1;
            // A writer that was told to wait does so: WRITABLE has to come.
            if (!end->fin && !end->waiting && !end->reset && !end->got_reset && !w->side[x].dead)
                sim_finish(w, x, s);
            int said = end->fin || end->reset || end->got_reset, deaf = sim_is_deaf(w, x, s);
            while (!w->failed && !deaf && sim_read(w, x, s, 65536, 0) > 0) {
            }
            if (((end->got_eof || deaf) && said) || end->got_error || w->side[x].dead)
                sim_close(w, x, s);
            else
                over = 0;
        }
        sim_send(w, x);
        sim_drain(w, x);
        sim_receive(w, 1 - x);
        sim_drain(w, 1 - x);
        sim_check(w, x);
        sim_check(w, 1 - x);
    }
    return over;
}

// How long nothing happens: until the next tick.
static int64_t sim_idle(const sim *w)
{
    int64_t at = w->now + 1000000;
    for (int x = 0; x < 2; x++)
        if (w->side[x].tick_us < at) at = w->side[x].tick_us;
    return at > w->now ? at - w->now : 1;
}

// Faults are off: every stream that nobody broke must complete, and nothing may stay behind.
static void sim_rest(sim *w)
{
    int64_t until = w->now + SIM_REST_US;
    int over = 0;
    w->resting = 1;
    for (int x = 0; x < 2; x++) {
        w->side[x].out.capacity = 1 << 20;
        w->side[x].heap.fail_at = 0;
        revdial_engine_set_output_max(w->side[x].e, 262144);
    }
    while (!w->failed && w->now < until) {
        over = sim_rest_round(w);
        int moves = 0, left = 0;
        for (int x = 0; x < 2; x++) {
            revdial_engine_info info;
            revdial_engine_get_info(w->side[x].e, &info);
            if (!w->side[x].dead) left += info.streams != 0;
            if (!w->side[1 - x].dead && !w->side[x].out.ended)
                moves += info.output_bytes != 0 || w->side[x].out.len != 0;
        }
        if (over && !left && !moves) break;
        sim_wait(w, moves ? 10 : sim_idle(w));
        w->step++;
    }
    if (w->failed) return;
    for (int x = 0; x < 2; x++) {
        revdial_engine_info info;
        revdial_engine_get_info(w->side[x].e, &info);
        if (!w->side[x].dead && info.streams)
            sim_fail(w, "side %d: %u streams stay", x, info.streams);
    }
    if (over && !w->side[0].dead) sim_mark(SIM_MARK_RESTED);
    for (size_t i = 0; i < w->count; i++) {
        const sim_end *a = &w->streams[i].end[0], *b = &w->streams[i].end[1];
        if (!over) sim_fail(w, "stuck: stream %u and perhaps more", w->streams[i].id);
        if ((a->lent && !w->side[0].dead) || (b->lent && !w->side[1].dead))
            sim_fail(w, "bytes of %u stay lent", w->streams[i].id);
        if (a->got_eof && a->read != b->written)
            sim_fail(w, "EOF of %u is a lie", w->streams[i].id);
        if (b->got_eof && b->read != a->written)
            sim_fail(w, "EOF of %u is a lie", w->streams[i].id);
    }
}

static void sim_end_world(sim *w)
{
    for (int x = 0; x < 2; x++) {
        sim_side *side = &w->side[x];
        revdial_engine_free(side->e);
        for (size_t i = 0; i < w->count; i++) sim_lent_free(&w->streams[i].end[x]);
        if (side->heap.live_bytes || side->heap.live_blocks)
            sim_fail(w, "side %d: %zu bytes leaked", x, side->heap.live_bytes);  // 34
        judge_free(&side->wire);
        free(side->out.bytes);
    }
}

// Returns 1 if all went well; *hash is the trace's.
static int sim_run(uint64_t seed, int trace, uint64_t *hash, char *why, size_t size)
{
    static sim w;
    sim_begin(&w, seed, trace);
    int steps = SIM_STEPS / 4 + (int)sim_pick(&w, SIM_STEPS);
    for (; w.step < steps && !w.failed; w.step++) sim_step(&w);
    if (!w.failed && !sim_chance(&w, 10)) sim_rest(&w);  // else: destroyed in the middle, 34
    sim_end_world(&w);
    *hash = w.hash;
    snprintf(why, size, "%s", w.why);
    return !w.failed;
}

static int sim_seeds(uint64_t first, uint64_t last, int trace)
{
    int failed = 0;
    for (uint64_t seed = first; seed < last; seed++) {
        uint64_t hash;
        char why[400];
        if (sim_run(seed, trace, &hash, why, sizeof why)) continue;
        printf("seed %llu: %s\n  replay: build/test_sim --seed %llu --trace\n",
               (unsigned long long)seed, why, (unsigned long long)seed);
        if (++failed == 10) {
            printf("(no more after ten)\n");
            break;
        }
    }
    return failed;
}

TEST(every_seed_keeps_every_invariant)
{
    memset(sim_marks, 0, sizeof sim_marks);
    CHECK_INT(sim_seeds(0, test_share(SIM_SEEDS), 0), 0);
    for (int m = 0; m < SIM_MARKS && !test_failures; m++)
        if (!sim_marks[m]) test_fail(__FILE__, __LINE__, "no run met: %s", sim_mark_names[m]);
}

TEST(every_seed_over_WebSocket_keeps_every_invariant)
{
    memset(sim_marks, 0, sizeof sim_marks);
    CHECK_INT(sim_seeds(SIM_WEBSOCKET, SIM_WEBSOCKET + test_share(SIM_SEEDS / 2), 0), 0);
    for (int m = 0; m < SIM_MARKS && !test_failures; m++)
        if (!sim_marks[m]) test_fail(__FILE__, __LINE__, "no run met: %s", sim_mark_names[m]);
}

TEST(the_same_seed_is_the_same_run)  // 27
{
    for (uint64_t i = 0; i < SIM_TWICE; i++) {
        uint64_t seed = i % 2 ? i : SIM_WEBSOCKET + i, one, two;
        char why[400];
        sim_run(seed, 0, &one, why, sizeof why);
        sim_run(seed, 0, &two, why, sizeof why);
        if (one != two)
            test_fail(__FILE__, __LINE__, "seed %llu runs in two ways", (unsigned long long)seed);
    }
}

int main(int argc, char **argv)
{
    uint64_t first = 0, last = 0;
    int trace = 0;
    test_rng rng = test_rng_seeded(1);
    for (int i = 0; i < SIM_PATTERN; i++)
        sim_pattern[i] = sim_pattern[i + SIM_PATTERN] = (uint8_t)test_random(&rng);
    if (argc < 2 || argv[1][0] != '-') return test_main(argc, argv);
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--trace")) {
            trace = 1;
        } else if (!strcmp(argv[i], "--seed") && i + 1 < argc) {
            first = strtoull(argv[++i], NULL, 10);
            last = first + 1;
        } else if (!strcmp(argv[i], "--seeds") && i + 2 < argc) {
            first = strtoull(argv[++i], NULL, 10);
            last = strtoull(argv[++i], NULL, 10);
        } else {
            fprintf(stderr, "usage: test_sim [--seed N | --seeds A B] [--trace] | [test...]\n");
            return 2;
        }
    }
    int failed = sim_seeds(first, last, trace);
    printf("%d passed, %d failed\n", failed == 0, failed != 0);
    return failed != 0;
}
