// A bottleneck between senders and receivers, in virtual time: packets, one queue that drops what
// does not fit, a delay, jitter, lumps, loss, and receivers that sleep. The senders are TCP
// connections with the growth of CUBIC (RFC 9438). Some belong to a session, whose output impl.pace
// controls; the others always send.
//
//     pace_link l = {.rate = 1250000, .delay_us = 20000, .buffer = 1250000};
//     pace_flow *f = pace_link_add(&l, 1, 0);  // a session that sends from 0 s on
//     pace_link_run(&l, 10000000);
//     pace_link_free(&l);
#ifndef REVDIAL_PACE_LINK_H
#define REVDIAL_PACE_LINK_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    PACE_MSS = 1448,
    PACE_HEADERS = 52,
    PACE_FLOWS = 4,
    PACE_PINGS = 64,
    PACE_KEYS = 4096,  // keystrokes on their way
    PACE_TICK_US = 5000,
    PACE_KEY_US = 20000,  // one is pressed this often
    PACE_UNSENT = 16384,  // what the system takes beyond what it may send
    PACE_FRAME = 16384    // what a sender without queue control writes at a time
};

enum pace_kind { PACE_TAKEN, PACE_LOST, PACE_KEY, PACE_TICK };

typedef struct pace_event {
    int64_t at_us;
    enum pace_kind kind;
    uint32_t flow, packet;
} pace_event;

typedef struct pace_packet {
    uint64_t end;  // in the flow's bytes
    int64_t sent_us;
    int is_taken;
} pace_packet;

typedef struct pace_mark {
    uint64_t end;
    int64_t at_us;
    uint32_t value;
} pace_mark;

typedef struct pace_flow {
    int is_session, is_paced;
    int is_bbr;  // its window stays as it is: no loss is a signal
    int is_old;  // it and its TCP have measured the round trip while nobody sent
    int64_t start_us, stop_us;
    uint64_t written, sent, taken;  // bytes given to TCP, sent by it, taken by the receiver
    uint64_t window;                // most bytes that the receiver lets be on their way; 0: any
    pace_packet *packets;
    uint32_t packet_count, packet_room, first;  // packets before `first` are taken
    uint32_t flight;                            // packets on their way
    // TCP
    int is_slow_start;
    double cwnd, most, reno;
    double origin;  // of the cubic function: seconds from the cut to where it is `most`
    int64_t epoch_us, cut_us, least_us, back_us, mean_us;
    uint32_t round_end, round_samples;  // of slow start, in packets
    int64_t round_us;                   // least round trip of its first samples
    // the session
    rvd_pace pace;
    int is_started;
    pace_mark pings[PACE_PINGS], keys[PACE_KEYS];
    uint32_t ping_first, ping_count, key_first, key_count;
    pace_mark *trips;  // round trips of keystrokes: at_us when, value how long
    uint32_t trip_count, trip_room;
} pace_flow;

typedef struct pace_link {
    double rate;                       // bytes a second
    int64_t delay_us;                  // each way
    double buffer;                     // bytes
    double loss;                       // of 1
    int64_t jitter_us;                 // at most, on the way back; another one every 10 ms
    int64_t lump_us;                   // what arrives in this time arrives at its end
    int64_t sleep_every_us, sleep_us;  // receivers of sessions take nothing at the start of each
    uint64_t seed;
    int64_t now_us, jitter_slot, jitter_now_us;
    double free_at_us;  // when the link has sent all it was given
    pace_event *heap;
    uint32_t heap_count, heap_room, flow_count, drops;
    pace_flow flows[PACE_FLOWS];
} pace_link;

// What the sessions' clock shows: it has run for an hour.
static int64_t pace_clock(const pace_link *l)
{
    return l->now_us + (int64_t)3600 * 1000000;
}

static double pace_random(pace_link *l)
{
    l->seed = l->seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(l->seed >> 33) / 2147483648.0;
}

// ---- events, the earliest first ----

static void pace_push(pace_link *l, int64_t at_us, enum pace_kind kind, const pace_flow *f,
                      uint32_t packet)
{
    pace_event e = {at_us, kind, (uint32_t)(f - l->flows), packet};
    uint32_t i = l->heap_count++;
    if (l->heap_count > l->heap_room) {
        l->heap_room = l->heap_room ? 2 * l->heap_room : 1024;
        l->heap = (pace_event *)realloc(l->heap, l->heap_room * sizeof *l->heap);
        if (!l->heap) abort();
    }
    for (; i && l->heap[(i - 1) / 2].at_us > at_us; i = (i - 1) / 2)
        l->heap[i] = l->heap[(i - 1) / 2];
    l->heap[i] = e;
}

static pace_event pace_pop(pace_link *l)
{
    pace_event first = l->heap[0], last = l->heap[--l->heap_count];
    uint32_t i = 0, child;
    while ((child = 2 * i + 1) < l->heap_count) {
        if (child + 1 < l->heap_count && l->heap[child + 1].at_us < l->heap[child].at_us) child++;
        if (l->heap[child].at_us >= last.at_us) break;
        l->heap[i] = l->heap[child];
        i = child;
    }
    l->heap[i] = last;
    return first;
}

// ---- the link ----

static int64_t pace_jitter(pace_link *l, int64_t at_us)
{
    if (!l->jitter_us) return 0;
    if (at_us / 10000 != l->jitter_slot) {
        l->jitter_slot = at_us / 10000;
        l->jitter_now_us = (int64_t)(pace_random(l) * (double)l->jitter_us);
    }
    return l->jitter_now_us;
}

// When a packet that arrives then is taken.
static int64_t pace_awake(const pace_link *l, const pace_flow *f, int64_t at_us)
{
    if (!l->sleep_every_us || !f->is_session || at_us % l->sleep_every_us >= l->sleep_us)
        return at_us;
    return at_us + l->sleep_us - at_us % l->sleep_every_us;
}

static void pace_transmit(pace_link *l, pace_flow *f, uint32_t k)
{
    pace_packet *p = &f->packets[k];
    double from = l->free_at_us > (double)l->now_us ? l->free_at_us : (double)l->now_us;
    double waits = from - (double)l->now_us;
    double len = (double)(p->end - (k ? f->packets[k - 1].end : 0)) + PACE_HEADERS;
    int64_t back, lost_us = l->now_us + (int64_t)waits + 2 * l->delay_us;
    p->sent_us = l->now_us;
    f->flight++;
    if (waits * l->rate / 1e6 > l->buffer) {
        l->drops++;
        pace_push(l, lost_us, PACE_LOST, f, k);
        return;
    }
    l->free_at_us = from + len * 1e6 / l->rate;
    if (l->loss > 0 && pace_random(l) < l->loss) {
        pace_push(l, lost_us, PACE_LOST, f, k);
        return;
    }
    back = (int64_t)l->free_at_us + l->delay_us;
    if (l->lump_us) back += l->lump_us - 1 - back % l->lump_us;
    back = pace_awake(l, f, back) + l->delay_us;
    back += pace_jitter(l, back);
    if (back < f->back_us) back = f->back_us;  // in order
    f->back_us = back;
    pace_push(l, back, PACE_TAKEN, f, k);
}

// ---- TCP ----

static void pace_tcp_send(pace_link *l, pace_flow *f)
{
    while (f->sent < f->written && f->flight < f->cwnd) {
        uint64_t n = f->written - f->sent;
        if (f->packet_count == f->packet_room) {
            f->packet_room = f->packet_room ? 2 * f->packet_room : 4096;
            f->packets = (pace_packet *)realloc(f->packets, f->packet_room * sizeof *f->packets);
            if (!f->packets) abort();
        }
        f->sent += n < PACE_MSS ? n : PACE_MSS;
        f->packets[f->packet_count] = (pace_packet){.end = f->sent};
        pace_transmit(l, f, f->packet_count++);
    }
}

static double pace_cube_root(double x)
{
    double root = x < 1 ? 1 : x;
    if (x <= 0) return 0;
    for (int i = 0; i < 40; i++) root -= (root - x / (root * root)) / 3;
    return root;
}

// RFC 9438: the window is a cubic function of the time since it was cut, but at least Reno's.
static void pace_tcp_cubic(const pace_link *l, pace_flow *f, int64_t trip_us)
{
    double t, want, step;
    if (!f->epoch_us) {
        f->epoch_us = l->now_us;
        f->reno = f->cwnd;
        if (f->most < f->cwnd) f->most = f->cwnd;
        f->origin = pace_cube_root((f->most - f->cwnd) / 0.4);
    }
    t = (double)(l->now_us - f->epoch_us + trip_us) / 1e6 - f->origin;
    want = f->most + 0.4 * t * t * t;
    f->reno += 0.53 / f->cwnd;
    if (want < f->reno) want = f->reno;
    step = (want - f->cwnd) / f->cwnd;
    if (step > 0) f->cwnd += step < 0.5 ? step : 0.5;
}

// Slow start ends early when the delay grows, as HyStart does (RFC 9406): the least of the first
// eight samples of a round counts, because bursts queue behind themselves, and there is one for
// each second packet. A session that sees a rival starts as Reno, until a loss.
static void pace_tcp_slow_start(const pace_link *l, pace_flow *f, uint32_t packet, int64_t trip_us)
{
    int64_t rise = f->least_us / 8;
    if (rise < 4000) rise = 4000;
    if (rise > 16000) rise = 16000;
    if (packet >= f->round_end) {
        f->round_end = f->packet_count;
        f->round_samples = 0;
        f->round_us = INT64_MAX;
    }
    if (trip_us < f->round_us) f->round_us = trip_us;
    if (f->cwnd < 2 * f->flight) f->cwnd += 1;
    if (f->is_paced && rvd_pace_has_rival(&f->pace)) return;
    if (++f->round_samples != 16 || f->cwnd < 16 || f->round_us <= f->least_us + rise) return;
    f->is_slow_start = 0;
    f->most = f->cwnd;
    pace_tcp_cubic(l, f, trip_us);  // Linux counts its time from here, also while little is sent
}

static void pace_tcp_grow(const pace_link *l, pace_flow *f, uint32_t packet, int64_t trip_us)
{
    if (f->is_slow_start)
        pace_tcp_slow_start(l, f, packet, trip_us);
    else if (f->flight >= f->cwnd - 1)
        pace_tcp_cubic(l, f, trip_us);
}

static void pace_tcp_cut(const pace_link *l, pace_flow *f)
{
    if (f->is_bbr) return;
    f->most = f->cwnd < f->most ? f->cwnd * 0.85 : f->cwnd;
    f->cwnd = f->cwnd * 0.7 < 2 ? 2 : f->cwnd * 0.7;
    f->is_slow_start = 0;
    f->epoch_us = 0;
    f->cut_us = l->now_us;
}

// ---- the session ----

static void pace_ping(const pace_link *l, pace_flow *f)
{
    pace_mark *p = &f->pings[(f->ping_first + f->ping_count++) % PACE_PINGS];
    f->written += 12;
    p->end = f->written;
    p->value = rvd_pace_ping_add(&f->pace, (uint32_t)f->written, pace_clock(l));
}

// How much the flow writes now, as the mux would.
static uint32_t pace_share(const pace_link *l, pace_flow *f)
{
    uint32_t room, frame;
    if (f->written - f->sent >= PACE_UNSENT) return 0;
    if (f->window && f->written - f->taken >= f->window) return 0;
    if (!f->is_paced) return PACE_FRAME;
    room = rvd_pace_room(&f->pace, (uint32_t)f->written);
    frame = rvd_pace_frame(&f->pace);
    if (!room) {
        rvd_pace_wait(&f->pace, pace_clock(l));
        if (rvd_pace_is_blind(&f->pace, (uint32_t)f->written)) pace_ping(l, f);
        return 0;
    }
    if (rvd_pace_is_due(&f->pace, (uint32_t)f->written, pace_clock(l))) pace_ping(l, f);
    if (frame > PACE_FRAME) frame = PACE_FRAME;
    return frame < room ? frame : room;
}

static void pace_write(pace_link *l, pace_flow *f)
{
    uint32_t n;
    pace_tcp_send(l, f);
    if (l->now_us < f->start_us || l->now_us >= f->stop_us) return;
    while ((n = pace_share(l, f)) > 0) {
        f->written += n;
        pace_tcp_send(l, f);
    }
}

static void pace_key(pace_link *l, pace_flow *f)
{
    pace_mark *k = &f->keys[(f->key_first + f->key_count) % PACE_KEYS];
    if (l->now_us >= f->stop_us) return;
    if (!f->is_started) {
        rvd_pace_init(&f->pace, pace_clock(l));
        if (f->is_old) {
            f->least_us = 2 * l->delay_us;
            rvd_pace_trip(&f->pace, (uint32_t)f->least_us, pace_clock(l));
        }
        if (f->is_paced) pace_push(l, l->now_us, PACE_TICK, f, 0);
    }
    f->is_started = 1;
    if (f->is_session && f->key_count < PACE_KEYS) {
        f->written += 76;
        *k = (pace_mark){f->written, l->now_us, 0};
        f->key_count++;
        pace_push(l, l->now_us + PACE_KEY_US + (int64_t)(pace_random(l) * 2000), PACE_KEY, f, 0);
    }
    pace_write(l, f);
}

// A loop's timer, coarser than what asks for it.
static void pace_tick(pace_link *l, pace_flow *f)
{
    if (l->now_us >= f->stop_us) return;
    rvd_pace_tick(&f->pace, pace_clock(l));
    pace_write(l, f);
    pace_push(l, l->now_us + PACE_TICK_US, PACE_TICK, f, 0);
}

static void pace_keys_done(const pace_link *l, pace_flow *f)
{
    for (; f->key_count && f->keys[f->key_first % PACE_KEYS].end <= f->taken; f->key_count--) {
        const pace_mark *k = &f->keys[f->key_first++ % PACE_KEYS];
        if (f->trip_count == f->trip_room) {
            f->trip_room = f->trip_room ? 2 * f->trip_room : 1024;
            f->trips = (pace_mark *)realloc(f->trips, f->trip_room * sizeof *f->trips);
            if (!f->trips) abort();
        }
        f->trips[f->trip_count++] = (pace_mark){0, l->now_us, (uint32_t)(l->now_us - k->at_us)};
    }
}

static void pace_taken(pace_link *l, pace_flow *f, uint32_t k)
{
    int64_t trip_us = l->now_us - f->packets[k].sent_us;
    f->packets[k].is_taken = 1;
    if (!f->least_us || trip_us < f->least_us) f->least_us = trip_us;
    if (!f->is_bbr) pace_tcp_grow(l, f, k, trip_us);
    f->mean_us += (trip_us - f->mean_us) / 8;
    if (l->loss > 0 && f->is_bbr) f->pace.link_us = (uint32_t)f->mean_us;
    f->flight--;
    while (f->first < f->packet_count && f->packets[f->first].is_taken)
        f->taken = f->packets[f->first++].end;
    for (; f->ping_count && f->pings[f->ping_first % PACE_PINGS].end <= f->taken; f->ping_count--) {
        uint32_t value = f->pings[f->ping_first++ % PACE_PINGS].value;
        rvd_pace_pong(&f->pace, value, (uint32_t)f->written, pace_clock(l));
    }
    if (f->is_paced && rvd_pace_is_blind(&f->pace, (uint32_t)f->written)) pace_ping(l, f);
    pace_keys_done(l, f);
    pace_write(l, f);
}

static void pace_lost(pace_link *l, pace_flow *f, uint32_t k)
{
    f->flight--;
    if (f->packets[k].sent_us >= f->cut_us) pace_tcp_cut(l, f);
    pace_transmit(l, f, k);
    pace_write(l, f);
}

// ---- the model's door ----

enum pace_what { PACE_TCP, PACE_SESSION, PACE_TODAY };  // TODAY: a session without queue control

static pace_flow *pace_link_add(pace_link *l, enum pace_what what, int64_t start_us)
{
    pace_flow *f = &l->flows[l->flow_count++];
    *f = (pace_flow){.is_session = what != PACE_TCP,
                     .is_paced = what == PACE_SESSION,
                     .is_old = what != PACE_TCP,
                     .start_us = start_us,
                     .stop_us = INT64_MAX,
                     .is_slow_start = 1,
                     .cwnd = 10};
    pace_push(l, start_us, PACE_KEY, f, 0);
    return f;
}

static void pace_link_run(pace_link *l, int64_t until_us)
{
    while (l->heap_count && l->heap[0].at_us <= until_us) {
        pace_event e = pace_pop(l);
        pace_flow *f = &l->flows[e.flow];
        if (e.at_us > l->now_us) l->now_us = e.at_us;
        switch (e.kind) {
        case PACE_TAKEN: pace_taken(l, f, e.packet); break;
        case PACE_LOST: pace_lost(l, f, e.packet); break;
        case PACE_KEY: pace_key(l, f); break;
        case PACE_TICK: pace_tick(l, f); break;
        }
    }
    l->now_us = until_us;
}

static void pace_link_free(pace_link *l)
{
    for (uint32_t i = 0; i < l->flow_count; i++) {
        free(l->flows[i].packets);
        free(l->flows[i].trips);
    }
    free(l->heap);
}

static int pace_compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

// The round trip that `part` of the keystrokes between two times had at most, in ms.
static double pace_trip_ms(const pace_flow *f, int64_t from_us, int64_t to_us, double part)
{
    uint32_t n = 0, *v = (uint32_t *)malloc((f->trip_count + 1) * sizeof *v), found;
    if (!v) abort();
    for (uint32_t i = 0; i < f->trip_count; i++)
        if (f->trips[i].at_us >= from_us && f->trips[i].at_us < to_us) v[n++] = f->trips[i].value;
    if (n) qsort(v, n, sizeof *v, pace_compare);
    found = n ? v[(uint32_t)((n - 1) * part)] : UINT32_MAX;
    free(v);
    return found / 1000.0;
}

#endif
