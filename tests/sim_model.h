// The simulation's applications: what they do to two engines, what they see, and the model of each
// stream that says whether it is true. test_sim.c has the world around them. Include revdial.h
// first.
#ifndef REVDIAL_TEST_SIM_MODEL_H
#define REVDIAL_TEST_SIM_MODEL_H

#include "test.h"
#include "wire_judge.h"

#define SIM_WEBSOCKET (UINT64_C(1) << 32)  // seeds from here on run over the WebSocket carrier

enum {
    SIM_SEEDS = 10000,  // test_share() of them
    SIM_TWICE = 100,
    SIM_STEPS = 4000,
    SIM_STREAMS = 64,     // of one world, so that its models stay small
    SIM_BYTES = 2 << 20,  // written in one world
    SIM_PATTERN = 1 << 16,
    SIM_REST_US = 600000000  // virtual time to finish in, once nothing interferes
};

// What one end of a stream has done and seen.
typedef struct sim_end {
    int known, closed, accepted, fin, reset, stopped;
    int waiting;  // a write took nothing: WRITABLE has to come
    int got_accepted, got_fin, got_reset, got_eof, got_error;
    int gave_up;  // it reset the stream, perhaps after the peer did: what is unread is gone
    int reset_code, got_code;
    uint64_t written, read;
    uint8_t *lent;  // memory that the engine may still need
    size_t lent_len;
} sim_end;

typedef struct sim_stream {
    uint32_t id;
    int opener;
    sim_end end[2];
} sim_stream;

typedef struct sim_pipe {
    uint8_t *bytes;
    size_t len, size, capacity;
    int64_t ready_us;  // nothing arrives before
    int64_t delay_us;
    int policy;  // how it cuts the bytes
    uint64_t carried, cut_at;
    int ended;  // the end has been delivered
} sim_pipe;

typedef struct sim_side {
    revdial_engine *e;
    test_heap heap;
    judge wire;
    sim_pipe out;  // to the other side
    int up, dead, dead_code, draining, peer_draining, shut, auth_waits, refused;
    int64_t tick_us, heard_us;  // the next tick is due; the last bytes came (-1: none yet)
    unsigned events;
    size_t output_max;
} sim_side;

enum sim_op {
    SIM_OPEN,
    SIM_ACCEPT,
    SIM_REFUSE,
    SIM_WRITE,
    SIM_RESERVE,
    SIM_LEND,
    SIM_READ,
    SIM_PEEK,
    SIM_FINISH,
    SIM_RESET,
    SIM_STOP,
    SIM_CLOSE,
    SIM_RECALL,
    SIM_DRAIN,
    SIM_SHUTDOWN,
    SIM_SEND,
    SIM_RECEIVE,
    SIM_TICK,
    SIM_WAIT,
    SIM_JUMP,
    SIM_STALL,
    SIM_CUT,
    SIM_NO_MEMORY,
    SIM_OUTPUT_MAX,
    SIM_OPS
};
static const char *const sim_op_names[SIM_OPS] = {
    "open",    "accept", "refuse", "write", "reserve", "lend",  "read",      "peek",
    "finish",  "reset",  "stop",   "close", "recall",  "drain", "shutdown",  "send",
    "receive", "tick",   "wait",   "jump",  "stall",   "cut",   "no_memory", "output_max"};
static const unsigned sim_op_base[SIM_OPS] = {20, 20, 2, 60,  20,  20, 60, 20, 12, 3, 1, 10,
                                              10, 1,  1, 120, 120, 20, 60, 1,  3,  1, 2, 2};

typedef struct sim {
    test_rng rng;
    uint64_t seed, hash;
    int trace, step, upgraded, websocket;
    int64_t now, began;
    sim_side side[2];  // 0 proxy, 1 backend
    sim_stream streams[SIM_STREAMS];
    size_t count;
    unsigned weight[SIM_OPS], weights;
    uint64_t written;
    int cut, slow, no_memory, small;  // what may explain an end that nobody asked for
    unsigned deaf;                    // bits of the sides that read only every second stream
    int resting;                      // the faults are over: everything has to finish
    int failed;
    char why[400];
} sim;

static uint8_t sim_pattern[2 * SIM_PATTERN];

// What the default run has to have met, or it tests less than it says.
enum sim_mark {
    SIM_MARK_EOF,
    SIM_MARK_RESET,
    SIM_MARK_REFUSED,
    SIM_MARK_RESET_WITH_BYTES,
    SIM_MARK_FIN_BEFORE_ACCEPT,
    SIM_MARK_NO_CREDIT,
    SIM_MARK_OPEN_BLOCKED,
    SIM_MARK_OPEN_NO_MEMORY,
    SIM_MARK_WRITE_NO_MEMORY,
    SIM_MARK_SENT,
    SIM_MARK_RECALLED,
    SIM_MARK_RECALLED_LATE,
    SIM_MARK_RECALL_NO_MEMORY,
    SIM_MARK_LENT_AT_CLOSE,
    SIM_MARK_GOAWAY,
    SIM_MARK_RTT,
    SIM_MARK_CUT,
    SIM_MARK_DRAINED,
    SIM_MARK_SHUT,
    SIM_MARK_DEAD_NO_MEMORY,
    SIM_MARK_DENIED,
    SIM_MARK_LINGER,
    SIM_MARK_DEAF,
    SIM_MARK_TIMEOUT,
    SIM_MARK_RESTED,
    SIM_MARKS
};
static const char *const sim_mark_names[SIM_MARKS] = {"EOF read",
                                                      "RESET told",
                                                      "a refusal told",
                                                      "a reset behind unread bytes",
                                                      "FIN before the accept",
                                                      "a writer without credit",
                                                      "too many opens unanswered",
                                                      "no memory to open",
                                                      "no memory to write",
                                                      "lent bytes that left",
                                                      "lent bytes taken back",
                                                      "lent bytes that were on their way",
                                                      "no memory to take lent bytes back",
                                                      "a close with lent bytes",
                                                      "GOAWAY told",
                                                      "a round trip measured",
                                                      "a connection cut with streams on it",
                                                      "a session drained",
                                                      "a session shut down",
                                                      "a session dead for want of memory",
                                                      "a handshake denied",
                                                      "a stream reset because its reader had gone",
                                                      "a stream closed with a full window unread",
                                                      "a stream nobody accepted in time",
                                                      "a run in which every stream ended"};
static uint64_t sim_marks[SIM_MARKS];
static void sim_mark(enum sim_mark m)
{
    sim_marks[m]++;
}

__attribute__((format(printf, 2, 3))) static void sim_fail(sim *w, const char *format, ...)
{
    if (w->failed++) return;
    va_list args;
    va_start(args, format);
    int n = snprintf(w->why, sizeof w->why, "step %d: ", w->step);
    vsnprintf(w->why + n, sizeof w->why - (size_t)n, format, args);
    va_end(args);
}

__attribute__((format(printf, 2, 3))) static void sim_note(sim *w, const char *format, ...)
{
    if (!w->trace) return;
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%5d %12.6f  ", w->step, (double)w->now / 1e6);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
}

static void sim_mix(sim *w, uint64_t v)
{
    w->hash = (w->hash ^ v) * 0x100000001B3ull;
    w->hash ^= w->hash >> 29;
}

static uint64_t sim_pick(sim *w, uint64_t bound)
{
    return test_below(&w->rng, bound);
}
static int sim_chance(sim *w, unsigned of)
{
    return test_below(&w->rng, of) == 0;
}

// Small as a rule, large now and then.
static size_t sim_size(sim *w, size_t most)
{
    size_t scale = (size_t)1 << sim_pick(w, 17);
    size_t n = (size_t)sim_pick(w, scale) + 1;
    return n < most ? n : most;
}

// Payload of one direction of a stream from position `at`: a window into a table.
static const uint8_t *sim_bytes(uint32_t id, int from, uint64_t at)
{
    return sim_pattern + ((at + id * 7919u + (unsigned)from * 104729u) & (SIM_PATTERN - 1));
}

static sim_stream *sim_find(sim *w, uint32_t id)
{
    for (size_t i = 0; i < w->count; i++)
        if (w->streams[i].id == id) return &w->streams[i];
    return NULL;
}

// A stream that side x may still use, at random. NULL if there is none.
static sim_stream *sim_any(sim *w, int x)
{
    size_t first = (size_t)sim_pick(w, w->count ? w->count : 1);
    for (size_t i = 0; i < w->count; i++) {
        sim_stream *s = &w->streams[(first + i) % w->count];
        if (s->end[x].known && !s->end[x].closed) return s;
    }
    return NULL;
}

// ---- what the application sees

static int sim_code_is_explained(sim *w, const sim_stream *s, int x, int code)
{
    const sim_end *peer = &s->end[1 - x];
    const sim_side *other = &w->side[1 - x];
    if (w->no_memory) return 1;
    if (peer->reset && (code == peer->reset_code || (w->upgraded && code == 0))) return 1;
    switch (code) {
    case REVDIAL_RESET_NONE:
        return w->upgraded &&
               (peer->closed || peer->stopped || w->slow || w->small || other->draining);
    case REVDIAL_RESET_REFUSED: return peer->closed || w->small || other->draining;
    case REVDIAL_RESET_CANCEL: return peer->closed || peer->stopped || s->end[x].stopped || w->slow;
    case REVDIAL_RESET_TIMEOUT: return w->slow;
    case REVDIAL_RESET_CALM: return w->small;
    case REVDIAL_RESET_DRAINING: return other->draining;
    default: return 0;
    }
}

// Has side x a right to all bytes and EOF? The peer has finished or closed the stream in order, and
// nobody has reset it: a reset that comes behind that stops only what x still sends.
static int sim_is_owed_eof(const sim *w, const sim_stream *s, int x)
{
    const sim_end *end = &s->end[x], *peer = &s->end[1 - x];
    if (!peer->fin || peer->gave_up || end->gave_up || end->stopped) return 0;
    if (w->no_memory || w->small || w->side[x].dead) return 0;
    // Our own engine: x accepted too late, or its writer has waited too long for credit.
    if (w->slow && end->got_code == REVDIAL_RESET_TIMEOUT) return 0;
    return !(w->slow && end->got_code == REVDIAL_RESET_CANCEL && end->got_fin && end->waiting);
}

static void sim_on_open(sim *w, int x, const revdial_event *ev)
{
    char want[32];
    sim_stream *s = sim_find(w, ev->id);
    if (!s || s->opener == x || s->end[x].known) {
        sim_fail(w, "side %d: OPEN of %u", x, ev->id);
        return;
    }
    s->end[x].known = 1;
    snprintf(want, sizeof want, "t%u:1", ev->id);
    for (size_t i = 0; i < ev->meta_count; i++)
        if (!strcmp(ev->meta[i].key, "target") && strcmp(ev->meta[i].value, want) != 0)
            sim_fail(w, "side %d: the target of %u is %s", x, ev->id, ev->meta[i].value);
    if (!w->upgraded && ev->meta_count < 2 && !w->no_memory)
        sim_fail(w, "side %d: OPEN of %u without its target", x, ev->id);
}

static void sim_on_dead(sim *w, int x, const revdial_event *ev)
{
    sim_side *side = &w->side[x], *other = &w->side[1 - x];
    int ok = 0;
    if (side->dead) sim_fail(w, "side %d: dead twice", x);
    side->dead = 1;
    side->dead_code = ev->code;
    switch (ev->code) {
    case REVDIAL_ELOST: ok = w->cut || w->slow || other->dead || other->shut; break;
    case REVDIAL_ENOMEM: ok = w->no_memory; break;
    case REVDIAL_ECLOSED: ok = side->shut; break;
    case REVDIAL_EDRAINING: ok = side->draining || side->peer_draining; break;
    case REVDIAL_ETIMEDOUT: ok = !side->up; break;
    case REVDIAL_EUPGRADE: ok = !side->up && (w->cut || w->slow || w->no_memory); break;
    case REVDIAL_EDENIED: ok = !side->up && w->side[0].refused; break;
    default: break;
    }
    if (ev->code == REVDIAL_ELOST && w->cut && w->count) sim_mark(SIM_MARK_CUT);
    if (ev->code == REVDIAL_EDRAINING) sim_mark(SIM_MARK_DRAINED);
    if (ev->code == REVDIAL_ECLOSED) sim_mark(SIM_MARK_SHUT);
    if (ev->code == REVDIAL_ENOMEM) sim_mark(SIM_MARK_DEAD_NO_MEMORY);
    if (ev->code == REVDIAL_EDENIED) sim_mark(SIM_MARK_DENIED);
    if (!ok) sim_fail(w, "side %d: dead by %d: %s", x, ev->code, ev->text ? ev->text : "");
}

// Does side x answer and close stream s without having read what the other end sends?
static int sim_is_deaf(const sim *w, int x, const sim_stream *s)
{
    return w->deaf >> x & (s->id >> 1 ^ (unsigned)x) & 1;  // never both sides: they would wait
}

static ptrdiff_t sim_read(sim *w, int x, sim_stream *s, size_t most, int peek);
static void sim_write(sim *w, int x, sim_stream *s, size_t want, enum sim_op how);

static void sim_on_stream_event(sim *w, int x, const revdial_event *ev)
{
    sim_stream *s = sim_find(w, ev->id);
    sim_end *end = s ? &s->end[x] : NULL;
    if (!end || !end->known || end->closed) {
        sim_fail(w, "side %d: event %d for %u, which it does not have", x, ev->type, ev->id);
        return;
    }
    if (end->got_reset) sim_fail(w, "side %d: event %d for %u after RESET", x, ev->type, ev->id);
    if (ev->ud != s) sim_fail(w, "side %d: the user pointer of %u is wrong", x, ev->id);
    switch (ev->type) {
    case REVDIAL_EV_ACCEPTED:
        if (end->got_accepted++ || s->opener != x) sim_fail(w, "side %d: ACCEPTED %u", x, ev->id);
        break;
    case REVDIAL_EV_READABLE:
        if (w->resting || (!sim_is_deaf(w, x, s) && sim_chance(w, 3)))
            sim_read(w, x, s, sim_size(w, 65536), (int)sim_pick(w, 2));
        break;
    case REVDIAL_EV_WRITABLE:
        end->waiting = 0;
        if (!w->resting && sim_chance(w, 2))
            sim_write(w, x, s, sim_size(w, 65536), (enum sim_op)(SIM_WRITE + (int)sim_pick(w, 3)));
        break;
    case REVDIAL_EV_SENT:
        if (!end->lent || revdial_engine_lent(w->side[x].e, s->id))
            sim_fail(w, "side %d: SENT of %u", x, ev->id);
        sim_mark(SIM_MARK_SENT);
        break;
    case REVDIAL_EV_FIN:
        if (end->got_fin++) sim_fail(w, "side %d: FIN of %u twice", x, ev->id);
        if (!end->accepted) sim_mark(SIM_MARK_FIN_BEFORE_ACCEPT);
        if (!s->end[1 - x].fin) sim_fail(w, "side %d: FIN of %u, which nobody sent", x, ev->id);
        break;
    case REVDIAL_EV_RESET:
        end->got_reset = 1;
        end->got_code = ev->code;
        if (!end->got_fin && sim_is_owed_eof(w, s, x))
            sim_fail(w, "side %d: RESET of %u instead of FIN", x, ev->id);
        end->reset = 0;  // the peer was first, although we heard of it only now
        sim_mark(SIM_MARK_RESET);
        if (ev->code == REVDIAL_RESET_REFUSED) sim_mark(SIM_MARK_REFUSED);
        if (ev->code == REVDIAL_RESET_TIMEOUT) sim_mark(SIM_MARK_TIMEOUT);
        if (s->end[1 - x].closed && ev->code == REVDIAL_RESET_CANCEL) sim_mark(SIM_MARK_LINGER);
        if (end->read < s->end[1 - x].written) sim_mark(SIM_MARK_RESET_WITH_BYTES);
        if (!sim_code_is_explained(w, s, x, ev->code))
            sim_fail(w, "side %d: RESET of %u by code %d", x, ev->id, ev->code);
        break;
    default: break;
    }
}

static void sim_close(sim *w, int x, sim_stream *s);
static void sim_reset(sim *w, int x, sim_stream *s, int code);

// Now and then the application leaves in the middle of the news.
static void sim_leave(sim *w, int x, sim_stream *s)
{
    if (w->resting || !s || s->end[x].closed || !sim_chance(w, 40)) return;
    if (sim_is_deaf(w, 0, s) || sim_is_deaf(w, 1, s)) return;
    sim_note(w, "  side %d: leaves %u", x, s->id);
    if (sim_chance(w, 2)) sim_reset(w, x, s, REVDIAL_RESET_CANCEL);
    if (sim_chance(w, 2)) sim_close(w, x, s);
}

static void sim_drain(sim *w, int x)
{
    sim_side *side = &w->side[x];
    revdial_event ev;
    while (!w->failed && revdial_engine_event(side->e, &ev)) {
        side->events++;
        sim_mix(w, (uint64_t)ev.type << 40 | (uint64_t)ev.id << 8 | (uint64_t)(ev.code & 255));
        sim_note(w, "  side %d: event %d id %u code %d %s", x, ev.type, ev.id, ev.code,
                 ev.text ? ev.text : "");
        if (side->dead) sim_fail(w, "side %d: event %d after DEAD", x, ev.type);  // 28
        switch (ev.type) {
        case REVDIAL_EV_AUTH: side->auth_waits = 1; break;
        case REVDIAL_EV_UP:
            side->up = 1;
            side->heard_us = -1;  // from here on
            break;
        case REVDIAL_EV_GOAWAY:
            side->peer_draining = 1;
            sim_mark(SIM_MARK_GOAWAY);
            break;
        case REVDIAL_EV_DEAD: sim_on_dead(w, x, &ev); break;
        case REVDIAL_EV_RTT: sim_mark(SIM_MARK_RTT); break;
        case REVDIAL_EV_OPEN:
            sim_on_open(w, x, &ev);
            if (!w->failed) revdial_engine_set_ud(side->e, ev.id, sim_find(w, ev.id));
            break;
        default:
            if (ev.id) sim_on_stream_event(w, x, &ev);
        }
        if (ev.id) sim_leave(w, x, sim_find(w, ev.id));
    }
}

// ---- what the application does

static void sim_check_error(sim *w, int x, const sim_stream *s, ptrdiff_t code, const char *what)
{
    const sim_end *end = &s->end[x];
    int ok = 0;
    if (code == REVDIAL_ERESET) ok = end->got_reset || end->reset;
    if (code == REVDIAL_ELOST) ok = w->side[x].dead;
    if (code == REVDIAL_ENOMEM) ok = w->no_memory;
    if (code == REVDIAL_ECLOSED) ok = end->fin || end->stopped || w->side[x].dead;
    if (!ok) sim_fail(w, "side %d: %s of %u returns %td", x, what, s->id, code);
}

static void sim_open(sim *w, int x)
{
    sim_side *side = &w->side[x];
    char target[32];
    revdial_dial_opts opts = {0};
    revdial_engine_info before, after;
    if (w->count == (w->deaf ? SIM_STREAMS / 8 : SIM_STREAMS) || w->resting) return;
    sim_stream *s = &w->streams[w->count];
    revdial_engine_get_info(side->e, &before);
    uint32_t next = side->wire.last_syn;  // a guess that open() corrects
    for (size_t i = 0; i < w->count; i++)
        if (w->streams[i].opener == x && w->streams[i].id > next) next = w->streams[i].id;
    next = next ? next + 2 : (uint32_t)x + 1;
    snprintf(target, sizeof target, "t%u:1", next);
    if (!w->upgraded) opts.target = target;
    if (sim_chance(w, 3)) {
        opts.early_len = sim_size(w, REVDIAL_EARLY_MAX);
        opts.early = sim_bytes(next, x, 0);
    }
    int64_t id = revdial_engine_open(side->e, &opts, s);
    sim_mix(w, (uint64_t)id);
    if (id > 0) {
        if (id != next) sim_fail(w, "side %d: opened %lld, not %u", x, (long long)id, next);  // 11
        memset(s, 0, sizeof *s);
        s->id = (uint32_t)id;
        s->opener = x;
        s->end[x].known = s->end[x].accepted = 1;
        s->end[x].written = opts.early_len;
        w->written += opts.early_len;
        w->count++;
        return;
    }
    revdial_engine_get_info(side->e, &after);
    if (after.streams != before.streams || after.output_bytes != before.output_bytes)
        sim_fail(w, "side %d: an open that failed left something behind", x);  // 32
    if (id == REVDIAL_EAGAIN) sim_mark(SIM_MARK_OPEN_BLOCKED);
    if (id == REVDIAL_ENOMEM) sim_mark(SIM_MARK_OPEN_NO_MEMORY);
    if (id == REVDIAL_EAGAIN || id == REVDIAL_ELIMIT) return;
    if (id == REVDIAL_EDRAINING && (side->draining || side->peer_draining)) return;
    if (id == REVDIAL_ECLOSED && (side->dead || !side->up)) return;
    if (id == REVDIAL_ENOMEM && w->no_memory) return;
    sim_fail(w, "side %d: open returns %lld", x, (long long)id);
}

// The engine needs the lent memory no more: what it would still read there is wrong, or a crash.
static void sim_lent_free(sim_end *end)
{
    if (!end->lent) return;
    memset(end->lent, 0xEE, end->lent_len);
    free(end->lent);
    end->lent = NULL;
}

// Takes back what side x has lent, of one stream.
static void sim_recall(sim *w, int x)
{
    size_t first = (size_t)sim_pick(w, w->count ? w->count : 1);
    for (size_t i = 0; i < w->count; i++) {
        sim_stream *s = &w->streams[(first + i) % w->count];
        sim_end *end = &s->end[x];
        if (!end->lent) continue;
        size_t lent = revdial_engine_lent(w->side[x].e, s->id);
        ptrdiff_t n = revdial_engine_recall(w->side[x].e, s->id);
        sim_note(w, "side %d: recall %zu of %u: %td left", x, lent, s->id, n);
        if (n == 0) sim_mark(SIM_MARK_RECALLED);
        if (n > 0) sim_mark(SIM_MARK_RECALLED_LATE);
        if (n == REVDIAL_ENOMEM) sim_mark(SIM_MARK_RECALL_NO_MEMORY);
        if (n > (ptrdiff_t)lent || (n < 0 && (n != REVDIAL_ENOMEM || !w->no_memory)) ||
            (n >= 0 && (size_t)n != revdial_engine_lent(w->side[x].e, s->id)))
            sim_fail(w, "side %d: recall of %zu of %u returns %td", x, lent, s->id, n);
        if (n == 0) sim_lent_free(end);
        return;
    }
}

static ptrdiff_t sim_lend(sim *w, int x, sim_stream *s, const uint8_t *bytes, size_t want)
{
    sim_end *end = &s->end[x];
    uint8_t *copy = malloc(want);
    if (!copy) abort();
    memcpy(copy, bytes, want);
    ptrdiff_t n = revdial_engine_lend(w->side[x].e, s->id, copy, want);
    if (n <= 0) {
        free(copy);
        return n;
    }
    end->lent = copy;
    end->lent_len = want;
    return n;
}

static ptrdiff_t sim_reserve(sim *w, int x, sim_stream *s, const uint8_t *bytes, size_t want)
{
    void *at = NULL;
    ptrdiff_t n = revdial_engine_reserve(w->side[x].e, s->id, &at, want);
    if (n <= 0) return n;
    if ((size_t)n > want) sim_fail(w, "side %d: %td bytes reserved, %zu wanted", x, n, want);
    n = (ptrdiff_t)sim_pick(w, (uint64_t)n + 1);
    memcpy(at, bytes, (size_t)n);
    revdial_engine_commit(w->side[x].e, s->id, (size_t)n);
    return n;
}

static void sim_write(sim *w, int x, sim_stream *s, size_t want, enum sim_op how)
{
    sim_end *end = &s->end[x];
    revdial_engine *e = w->side[x].e;
    const uint8_t *bytes = sim_bytes(s->id, x, end->written);
    int reserve = how == SIM_RESERVE;
    ptrdiff_t n;
    if (w->written + want > SIM_BYTES) return;
    int can = sim_chance(w, 4) ? revdial_engine_writable(e, s->id) : -100;
    if (reserve)
        n = sim_reserve(w, x, s, bytes, want);
    else if (how == SIM_LEND && !end->lent)
        n = sim_lend(w, x, s, bytes, want);
    else
        n = revdial_engine_write(e, s->id, bytes, want);
    if ((can < 0 && can != -100 && n != can) ||
        (can == 1 && n <= 0 && want <= 1024 && !reserve && !w->no_memory))
        sim_fail(w, "side %d: writable says %d of %u, write %td", x, can, s->id, n);
    sim_mix(w, (uint64_t)n);
    sim_note(w, "side %d: %s %zu to %u: %td", x, sim_op_names[how], want, s->id, n);
    if (n == REVDIAL_ENOMEM) sim_mark(SIM_MARK_WRITE_NO_MEMORY);
    if (n < 0) {
        sim_check_error(w, x, s, n, "write");
        return;
    }
    if (n == 0 && !reserve) sim_mark(SIM_MARK_NO_CREDIT);
    end->waiting = n == 0 && !reserve;
    if ((size_t)n > want) sim_fail(w, "side %d: %td of %zu bytes taken", x, n, want);
    if (n > 0 && (end->fin || end->reset))
        sim_fail(w, "side %d: wrote to %u after its end", x, s->id);
    end->written += (uint64_t)n;
    w->written += (uint64_t)n;
    end->accepted = 1;
}

// EOF, bytes or an error: each is true, or the run has failed. 5, 6, 7
static ptrdiff_t sim_read(sim *w, int x, sim_stream *s, size_t most, int peek)
{
    static uint8_t buf[65536];
    sim_end *end = &s->end[x], *peer = &s->end[1 - x];
    const void *data = buf;
    ptrdiff_t n;
    if (most > sizeof buf) most = sizeof buf;
    if (peek) {
        n = revdial_engine_peek(w->side[x].e, s->id, &data);
        if (n > (ptrdiff_t)most) n = (ptrdiff_t)most;
    } else {
        n = revdial_engine_read(w->side[x].e, s->id, buf, most);
    }
    sim_mix(w, (uint64_t)n);
    sim_note(w, "side %d: %s %zu of %u: %td", x, peek ? "peek" : "read", most, s->id, n);
    if (!peek || n > 0) end->accepted = 1;  // whatever is there to read; or what is consumed
    if (n > 0) {
        if (end->got_eof || end->got_error)
            sim_fail(w, "side %d: bytes of %u after its end", x, s->id);
        // Stop and reset drop what comes; where the peer was first there is nothing to stop.
        int ended = peer->fin || peer->reset || peer->closed || end->got_reset;
        if ((end->reset || end->stopped) && !ended)
            sim_fail(w, "side %d: bytes of %u, which it did not want", x, s->id);
        if (end->read + (uint64_t)n > peer->written)
            sim_fail(w, "side %d: more bytes of %u than were written", x, s->id);
        else if (memcmp(data, sim_bytes(s->id, 1 - x, end->read), (size_t)n) != 0)
            sim_fail(w, "side %d: bytes of %u at %llu are wrong", x, s->id,
                     (unsigned long long)end->read);
        if (peek) revdial_engine_consume(w->side[x].e, s->id, (size_t)n);
        end->read += (uint64_t)n;
    } else if (n == 0 && !peek) {
        end->got_eof = 1;
        sim_mark(SIM_MARK_EOF);
        if (!peer->fin || end->read != peer->written)
            sim_fail(w, "side %d: EOF of %u after %llu of %llu bytes", x, s->id,
                     (unsigned long long)end->read, (unsigned long long)peer->written);
    } else if (n < 0 && n != REVDIAL_EAGAIN) {
        end->got_error = 1;
        if (n == REVDIAL_ERESET && sim_is_owed_eof(w, s, x))
            sim_fail(w, "side %d: %u is reset behind %llu of %llu bytes and FIN", x, s->id,
                     (unsigned long long)end->read, (unsigned long long)peer->written);
        sim_check_error(w, x, s, n, "read");
    }
    return n;
}

static void sim_finish(sim *w, int x, sim_stream *s)
{
    int rc = revdial_engine_end_write(w->side[x].e, s->id);
    if (rc == 0)
        s->end[x].fin = s->end[x].accepted = 1;
    else
        sim_check_error(w, x, s, rc, "finish");
}

static void sim_reset(sim *w, int x, sim_stream *s, int code)
{
    if (revdial_engine_reset(w->side[x].e, s->id, code) != 0)
        sim_fail(w, "side %d: reset of %u fails", x, s->id);
    s->end[x].gave_up = 1;
    if (s->end[x].reset || s->end[x].got_reset) return;
    s->end[x].reset = 1;
    s->end[x].reset_code = code;
}

static void sim_close(sim *w, int x, sim_stream *s)
{
    // Of a stream that it never accepted, close is the refusal.
    if (s->end[x].accepted && !s->end[x].reset && !s->end[x].got_reset) s->end[x].fin = 1;
    s->end[x].closed = 1;
    if (sim_is_deaf(w, x, s) && s->end[x].fin && s->end[1 - x].waiting) sim_mark(SIM_MARK_DEAF);
    if (s->end[x].lent) sim_mark(SIM_MARK_LENT_AT_CLOSE);
    revdial_engine_close(w->side[x].e, s->id);
}

// A stream with a deaf end is left alone until its window is full. Then that end closes it.
static int sim_may(const sim *w, int x, const sim_stream *s, enum sim_op op)
{
    if (!sim_is_deaf(w, 0, s) && !sim_is_deaf(w, 1, s)) return 1;
    if (sim_is_deaf(w, x, s) && (op == SIM_READ || op == SIM_PEEK)) return 0;
    if (sim_is_deaf(w, x, s) && op == SIM_CLOSE) return s->end[1 - x].waiting;
    return op != SIM_REFUSE && (op < SIM_FINISH || op > SIM_CLOSE);
}

static void sim_stream_op(sim *w, int x, enum sim_op op)
{
    sim_stream *s = sim_any(w, x);
    if (!s || !sim_may(w, x, s, op)) return;
    sim_note(w, "side %d: %s %u", x, sim_op_names[op], s->id);
    switch ((int)op) {
    case SIM_ACCEPT:
        if (s->opener == x) return;
        if (revdial_engine_accept(w->side[x].e, s->id) == 0) s->end[x].accepted = 1;
        break;
    case SIM_REFUSE:
        if (s->opener == x || s->end[x].accepted) return;
        sim_reset(w, x, s, REVDIAL_RESET_FORBIDDEN);
        sim_close(w, x, s);
        break;
    case SIM_WRITE:
    case SIM_RESERVE:
    case SIM_LEND:
        sim_write(w, x, s, sim_is_deaf(w, 1 - x, s) ? 65536 : sim_size(w, 65536), op);
        break;
    case SIM_READ: sim_read(w, x, s, sim_size(w, 65536), 0); break;
    case SIM_PEEK: sim_read(w, x, s, sim_size(w, 65536), 1); break;
    case SIM_FINISH: sim_finish(w, x, s); break;
    case SIM_RESET: sim_reset(w, x, s, (int)sim_pick(w, 4) ? 64 + (int)sim_pick(w, 192) : 2); break;
    case SIM_STOP:
        if (revdial_engine_end_read(w->side[x].e, s->id) != 0)
            sim_fail(w, "side %d: stop fails", x);
        s->end[x].stopped = s->end[x].accepted = 1;
        break;
    case SIM_CLOSE: sim_close(w, x, s); break;
    default: break;
    }
}

#endif
