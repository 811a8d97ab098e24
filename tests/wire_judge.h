// An independent, strict reader of the wire. It sees every byte that an engine took in and every
// byte that it sent, keeps its own ledger of each stream, and complains about any frame that a
// careful sender would not have sent. It shares no code with the library: what it knows is the
// protocol.
#ifndef REVDIAL_TEST_WIRE_JUDGE_H
#define REVDIAL_TEST_WIRE_JUDGE_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ws_reader.h"

enum { WIRE_DATA = 0, WIRE_CREDIT = 1, WIRE_PING = 2, WIRE_GOAWAY = 3 };
enum { WIRE_SYN = 1, WIRE_ACK = 2, WIRE_FIN = 4, WIRE_RST = 8 };
enum {
    WIRE_HEADER = 12,
    WIRE_STOCK_WINDOW = 262144,
    WIRE_DATA_MAX = 65524,  // 64 KiB less the header
    WIRE_WINDOW_MAX = 16 * 1024 * 1024,
    WIRE_PONGS = 32
};

#define WIRE_PACED 0x80000000u  // pings of the queue control have greater values

typedef struct wire_frame {
    unsigned version, type, flags;
    uint32_t id, len;
} wire_frame;

static inline void wire_put(uint8_t at[WIRE_HEADER], const wire_frame *f)
{
    at[0] = (uint8_t)f->version;
    at[1] = (uint8_t)f->type;
    at[2] = (uint8_t)(f->flags >> 8);
    at[3] = (uint8_t)f->flags;
    for (int i = 0; i < 4; i++) {
        at[4 + i] = (uint8_t)(f->id >> (24 - 8 * i));
        at[8 + i] = (uint8_t)(f->len >> (24 - 8 * i));
    }
}

static inline wire_frame wire_get(const uint8_t at[WIRE_HEADER])
{
    wire_frame f = {at[0], at[1], (unsigned)at[2] << 8 | at[3], 0, 0};
    for (int i = 0; i < 4; i++) {
        f.id = f.id << 8 | at[4 + i];
        f.len = f.len << 8 | at[8 + i];
    }
    return f;
}

// One direction: gathers headers, counts bodies down.
typedef struct wire_reader {
    uint8_t head[WIRE_HEADER];
    size_t have;
    uint32_t body_left;
    wire_frame frame;
    int http_matched;  // characters of the blank line seen; 4 = the mux has begun
} wire_reader;

typedef struct judge_stream {
    uint32_t id;
    int used;      // the slot holds a stream
    int is_mixed;  // its id was used again while frames of the one before may have waited
    int ours, acked_out, fin_out, rst_out, fin_in, rst_in;
    uint64_t grace;  // up to here the output had been queued when the peer's FIN or RST was read
    uint64_t data_out, data_in, grants_out, grants_in;
} judge_stream;

typedef struct judge {
    const char *who;
    int odd;          // the engine opens odd ids
    uint64_t queued;  // set by who feeds: output that waits, and may cross the peer's FIN or RST
    uint64_t out_bytes;
    uint32_t window_own, window_peer;  // first credit that the engine gives, that it gets
    uint64_t budget;                   // most credit the engine may have given and not got back
    wire_reader in, out;
    int has_long;  // the engine is given payload that it does not copy, in longer frames
    int framed;  // after the head all is in WebSocket frames
    ws_reader ws_in, ws_out;
    judge_stream *slots;
    size_t slot_count, stream_count;
    uint32_t last_syn;
    uint32_t pings[WIRE_PONGS];  // values waiting for their pong, oldest first
    unsigned ping_count;
    int pings_dropped;
    int ping_out;  // one of the engine's pings is unanswered
    uint32_t ping_value;
    uint32_t paced_out, paced_in;  // pings of the queue control: the last one, the last answered
    int goaway_in, goaway_out;  // code + 1, 0 none
    unsigned goaways_out;
    uint64_t out_frames[4], out_data_bytes, out_rst, out_fin, out_syn, out_ack, pongs, in_frames;
    uint32_t data_min, data_max;  // sizes of data frames sent
    int failures;
    char why[256];                                // the first complaint
    void (*seen)(void *ud, const wire_frame *f);  // every frame the engine sent, at its header
    void (*body)(void *ud, uint32_t id, const uint8_t *bytes, size_t n);
    void (*arrived)(void *ud, uint32_t id, const uint8_t *bytes, size_t n);  // payload it took in
    void *ud;
} judge;

__attribute__((format(printf, 2, 3))) static inline void judge_complain(judge *j,
                                                                        const char *format, ...)
{
    if (j->failures++) return;
    va_list args;
    va_start(args, format);
    int n = snprintf(j->why, sizeof j->why, "%s: ", j->who ? j->who : "wire");
    vsnprintf(j->why + n, sizeof j->why - (size_t)n, format, args);
    va_end(args);
}

static inline void judge_init(judge *j, const char *who, int odd)
{
    memset(j, 0, sizeof *j);
    j->who = who;
    j->odd = odd;
    j->window_own = j->window_peer = WIRE_STOCK_WINDOW;
    j->budget = WIRE_WINDOW_MAX;
    j->in.http_matched = j->out.http_matched = 4;
    j->data_min = UINT32_MAX;
}

static inline void judge_free(judge *j)
{
    free(j->slots);
    j->slots = NULL;
    j->slot_count = j->stream_count = 0;
}

static inline judge_stream *judge_slot(judge_stream *slots, size_t count, uint32_t id)
{
    size_t at = (size_t)(id * 0x9E3779B1u) & (count - 1);
    while (slots[at].used && slots[at].id != id) at = (at + 1) & (count - 1);
    return &slots[at];
}

static inline judge_stream *judge_find(const judge *j, uint32_t id)
{
    if (!j->slot_count) return NULL;
    judge_stream *s = judge_slot(j->slots, j->slot_count, id);
    return s->used ? s : NULL;
}

static inline void judge_grow(judge *j)
{
    size_t count = j->slot_count ? j->slot_count * 2 : 64;
    judge_stream *slots = calloc(count, sizeof *slots);
    if (!slots) abort();
    for (size_t i = 0; i < j->slot_count; i++)
        if (j->slots[i].used) *judge_slot(slots, count, j->slots[i].id) = j->slots[i];
    free(j->slots);
    j->slots = slots;
    j->slot_count = count;
}

// A SYN makes a stream, or a new one of an id that was used before.
static inline judge_stream *judge_begin(judge *j, uint32_t id, int ours)
{
    if (2 * j->stream_count >= j->slot_count) judge_grow(j);
    judge_stream *s = judge_slot(j->slots, j->slot_count, id);
    int is_settled = s->rst_out || (s->fin_out && s->fin_in);
    int is_mixed = s->used && (s->is_mixed || !is_settled);
    if (!s->used) j->stream_count++;
    memset(s, 0, sizeof *s);
    s->is_mixed = is_mixed;
    s->used = 1;
    s->id = id;
    s->ours = ours;
    return s;
}

static inline int judge_is_ours(const judge *j, uint32_t id)
{
    return id && (id & 1) == (unsigned)j->odd;
}

// ---- what the engine took in: only the ledger, no opinion

static inline void judge_in_header(judge *j, const wire_frame *f)
{
    j->in_frames++;
    if (f->type == WIRE_PING && f->id == 0) {
        if (f->flags & WIRE_SYN) {
            if (j->ping_count == WIRE_PONGS) {
                memmove(j->pings, j->pings + 1, sizeof j->pings - sizeof *j->pings);
                j->ping_count--;
                j->pings_dropped++;
            }
            j->pings[j->ping_count++] = f->len;
        } else if ((f->flags & WIRE_ACK) && j->ping_out && f->len == j->ping_value) {
            j->ping_out = 0;
        } else if ((f->flags & WIRE_ACK) && f->len > j->paced_in && f->len <= j->paced_out) {
            j->paced_in = f->len;
        }
    }
    if (f->type == WIRE_GOAWAY) j->goaway_in = f->len < INT32_MAX ? (int)f->len + 1 : INT32_MAX;
    if (f->type > WIRE_CREDIT || f->id == 0) return;
    judge_stream *s = judge_find(j, f->id);
    if ((f->flags & WIRE_SYN) && !judge_is_ours(j, f->id)) s = judge_begin(j, f->id, 0);
    if (!s || s->rst_in) return;
    if (f->type == WIRE_CREDIT && !(f->flags & WIRE_RST)) s->grants_in += f->len;
}

static inline void judge_in_end(judge *j, const wire_frame *f)
{
    if (f->type > WIRE_CREDIT) return;
    judge_stream *s = judge_find(j, f->id);
    if (!s) return;
    if (!(f->flags & (WIRE_FIN | WIRE_RST))) return;
    // What waits may be overtaken by a full buffer of control frames.
    if (!s->rst_in) s->grace = j->queued ? j->out_bytes + j->queued + 8192 : j->out_bytes;
    if (f->flags & WIRE_FIN) s->fin_in = 1;
    if (f->flags & WIRE_RST) s->rst_in = 1;
}

// ---- what the engine sent: every rule of a strict sender

static inline void judge_out_session(judge *j, const wire_frame *f)
{
    if (f->id != 0) judge_complain(j, "type %u on stream %u", f->type, f->id);
    if (f->type == WIRE_GOAWAY) {
        if (f->flags) judge_complain(j, "flags 0x%x on GoAway", f->flags);
        if (f->len > 2) judge_complain(j, "GoAway code %u", f->len);
        if (j->goaway_out && j->goaway_out - 1 >= (int)f->len)
            judge_complain(j, "GoAway %u after GoAway %d", f->len, j->goaway_out - 1);
        j->goaway_out = (int)f->len + 1;
        j->goaways_out++;
        return;
    }
    if (f->flags == WIRE_SYN && f->len > WIRE_PACED) {
        if (j->paced_out && f->len != j->paced_out + 1) judge_complain(j, "ping %u", f->len);
        if (!j->paced_in) j->paced_in = WIRE_PACED;
        if (f->len - j->paced_in > 24) judge_complain(j, "a 25th ping while 24 are unanswered");
        j->paced_out = f->len;
    } else if (f->flags == WIRE_SYN) {
        if (j->ping_out) judge_complain(j, "a second ping while one is unanswered");
        j->ping_out = 1;
        j->ping_value = f->len;
    } else if (f->flags == WIRE_ACK) {
        unsigned at = 0;
        j->pongs++;
        while (at < j->ping_count && j->pings[at] != f->len) at++;
        if (at == j->ping_count || (at && !j->pings_dropped)) {
            if (!(j->queued && j->pings_dropped)) judge_complain(j, "pong %u to no ping", f->len);
            return;
        }
        memmove(j->pings, j->pings + at + 1, (j->ping_count - at - 1) * sizeof *j->pings);
        j->ping_count -= at + 1;
    } else {
        judge_complain(j, "ping with flags 0x%x", f->flags);
    }
}

static inline void judge_out_syn(judge *j, const wire_frame *f)
{
    j->out_syn++;
    if (!judge_is_ours(j, f->id)) judge_complain(j, "SYN on the peer's id %u", f->id);
    if (f->id <= j->last_syn) judge_complain(j, "SYN %u after SYN %u", f->id, j->last_syn);
    if (f->type != WIRE_CREDIT || f->len) judge_complain(j, "SYN %u is not WU+SYN, 0", f->id);
    if (j->goaway_out || (j->goaway_in && !j->queued))
        judge_complain(j, "SYN %u after GoAway", f->id);
    j->last_syn = f->id;
    judge_begin(j, f->id, 1);
}

static inline void judge_out_credit(judge *j, judge_stream *s, const wire_frame *f)
{
    if (f->len == 0 && f->flags == 0) judge_complain(j, "WU 0 on %u", f->id);
    if (s->fin_in && f->flags == 0 && j->out_bytes >= s->grace)
        judge_complain(j, "WU on %u after the peer's FIN", f->id);
    s->grants_out += f->len;
    if (s->grants_out + j->window_own - s->data_in > j->budget)
        judge_complain(j, "credit of %u is over %llu", f->id, (unsigned long long)j->budget);
}

static inline void judge_out_data(judge *j, judge_stream *s, const wire_frame *f)
{
    if (f->len == 0) judge_complain(j, "empty data on %u", f->id);
    if (f->len > WIRE_DATA_MAX && !j->has_long) judge_complain(j, "%u bytes in one frame", f->len);
    if (s->fin_out) judge_complain(j, "data after FIN on %u", f->id);
    s->data_out += f->len;
    if (s->data_out > s->grants_in + j->window_peer)
        judge_complain(j, "data of %u beyond the window", f->id);
    j->out_data_bytes += f->len;
    if (f->len < j->data_min) j->data_min = f->len;
    if (f->len > j->data_max) j->data_max = f->len;
}

static inline void judge_out_stream(judge *j, const wire_frame *f)
{
    judge_stream *s = judge_find(j, f->id);
    if (f->flags & WIRE_SYN) return;
    if (!s) {
        judge_complain(j, "type %u flags %u on unknown stream %u", f->type, f->flags, f->id);
        return;
    }
    if (s->is_mixed) return;
    if (s->rst_out) judge_complain(j, "a frame on %u after our RST", f->id);
    // Resets may cross; nothing else may follow the peer's, unless it was on its way.
    if (s->rst_in && f->flags != WIRE_RST && j->out_bytes >= s->grace)
        judge_complain(j, "a frame on %u after the peer's RST", f->id);
    if (f->flags == WIRE_ACK) {
        j->out_ack++;
        if (s->ours) judge_complain(j, "ACK on our own stream %u", f->id);
        if (s->acked_out) judge_complain(j, "second ACK on %u", f->id);
        s->acked_out = 1;
    } else if (f->flags != WIRE_RST && !s->ours && !s->acked_out && !s->rst_in) {
        judge_complain(j, "type %u flags %u on %u before its ACK", f->type, f->flags, f->id);
    }
    if (f->flags && f->type != WIRE_CREDIT)
        judge_complain(j, "flags %u on a data frame of %u", f->flags, f->id);
    if (f->flags == WIRE_FIN) {
        j->out_fin++;
        if (s->fin_out) judge_complain(j, "second FIN on %u", f->id);
        if (f->len) judge_complain(j, "FIN with length %u", f->len);
        s->fin_out = 1;
    } else if (f->flags == WIRE_RST) {
        j->out_rst++;
        if (f->len > 255) judge_complain(j, "reset code %u", f->len);
        s->rst_out = 1;
    } else if (f->type == WIRE_CREDIT) {
        judge_out_credit(j, s, f);
    } else {
        judge_out_data(j, s, f);
    }
}

static inline void judge_out_header(judge *j, const wire_frame *f)
{
    if (f->version) judge_complain(j, "version %u", f->version);
    if (f->type > WIRE_GOAWAY) {
        judge_complain(j, "type %u", f->type);
        return;
    }
    j->out_frames[f->type]++;
    if (f->flags & (f->flags - 1)) judge_complain(j, "more than one flag: 0x%x", f->flags);
    if (f->flags > WIRE_RST) judge_complain(j, "unknown flags 0x%x", f->flags);
    if (j->goaway_out > 1) judge_complain(j, "type %u after GoAway %d", f->type, j->goaway_out - 1);
    if (f->type > WIRE_CREDIT)
        judge_out_session(j, f);
    else if (f->id == 0)
        judge_complain(j, "data or credit on stream 0");
    else if (f->flags == WIRE_SYN)
        judge_out_syn(j, f);
    else
        judge_out_stream(j, f);
    if (j->seen) j->seen(j->ud, f);
}

// ---- the two doors

// Skips the upgrade's head. Returns bytes eaten.
static inline size_t wire_skip_http(wire_reader *r, const uint8_t *bytes, size_t n)
{
    size_t at = 0;
    while (at < n && r->http_matched < 4) {
        char want = r->http_matched % 2 ? '\n' : '\r';
        if (bytes[at] == (uint8_t)want)
            r->http_matched++;
        else
            r->http_matched = bytes[at] == '\r';
        at++;
    }
    return at;
}

// Takes what belongs to the current header or body; *body is set to payload. Returns bytes eaten,
// and 1 in *headed when this completed a header.
static inline size_t wire_step(wire_reader *r, const uint8_t *bytes, size_t n, int *headed)
{
    *headed = 0;
    if (r->body_left) {
        size_t take = n < r->body_left ? n : r->body_left;
        r->body_left -= (uint32_t)take;
        return take;
    }
    size_t take = WIRE_HEADER - r->have;
    if (take > n) take = n;
    memcpy(r->head + r->have, bytes, take);
    r->have += take;
    if (r->have < WIRE_HEADER) return take;
    r->have = 0;
    r->frame = wire_get(r->head);
    r->body_left = r->frame.type == WIRE_DATA ? r->frame.len : 0;
    *headed = 1;
    return take;
}

static inline void judge_in_frames(void *ud, const uint8_t *bytes, size_t n)
{
    judge *j = ud;
    wire_reader *r = &j->in;
    size_t at = 0;
    while (at < n) {
        int headed;
        size_t took = wire_step(r, bytes + at, n - at, &headed);
        if (headed) {
            judge_in_header(j, &r->frame);
        } else if (!r->have) {
            judge_stream *s = judge_find(j, r->frame.id);
            if (s) s->data_in += took;
            if (j->arrived) j->arrived(j->ud, r->frame.id, bytes + at, took);
        }
        if (!r->have && !r->body_left) judge_in_end(j, &r->frame);
        at += took;
    }
}

static inline void judge_out_frames(void *ud, const uint8_t *bytes, size_t n)
{
    judge *j = ud;
    wire_reader *r = &j->out;
    size_t at = 0;
    while (at < n) {
        int headed;
        size_t took = wire_step(r, bytes + at, n - at, &headed);
        if (headed)
            judge_out_header(j, &r->frame);
        else if (!r->have && j->body)
            j->body(j->ud, r->frame.id, bytes + at, took);
        at += took;
        j->out_bytes += took;
    }
}

static inline void judge_in(judge *j, const void *data, size_t n)
{
    size_t at = wire_skip_http(&j->in, data, n);
    const uint8_t *bytes = (const uint8_t *)data + at;
    if (j->framed)
        ws_read(&j->ws_in, bytes, n - at);
    else
        judge_in_frames(j, bytes, n - at);
}

static inline void judge_out(judge *j, const void *data, size_t n)
{
    size_t at = wire_skip_http(&j->out, data, n);
    const uint8_t *bytes = (const uint8_t *)data + at;
    j->out_bytes += at;
    if (!j->framed) {
        judge_out_frames(j, bytes, n - at);
        return;
    }
    ws_read(&j->ws_out, bytes, n - at);
    if (j->ws_out.wrong) judge_complain(j, "WebSocket: %s", j->ws_out.wrong);
}

// All after the head is in WebSocket frames. The side that opens odd ids is the server.
static inline void judge_frame(judge *j)
{
    j->framed = 1;
    j->ws_in.ud = j->ws_out.ud = j;
    j->ws_in.payload = judge_in_frames;
    j->ws_out.payload = judge_out_frames;
    j->ws_out.strict = 1;
    j->ws_in.masked = j->odd;
    j->ws_out.masked = !j->odd;
}

// Nothing half said: to be asked when all output has been taken.
static inline void judge_rest(judge *j)
{
    if (j->out.have || j->out.body_left) judge_complain(j, "output ends inside a frame");
    if (j->ws_out.have) judge_complain(j, "output ends inside a WebSocket frame");
    if (j->ping_count && !j->goaway_out) judge_complain(j, "%u pings unanswered", j->ping_count);
}

#endif
