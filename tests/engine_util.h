// What the engine's tests share: a rig, which is an engine, a counting heap, a virtual clock and a
// judge on its wire. It logs what the application sees and prints what comes out, in the words of
// engine_script.h. Include revdial.h first.
#ifndef REVDIAL_TEST_ENGINE_UTIL_H
#define REVDIAL_TEST_ENGINE_UTIL_H

#include "test.h"
#include "wire_judge.h"

enum { RIG_TEXT = 1 << 14, RIG_STREAMS = 64, RIG_KEEP = 64 };
enum { RIG_START_US = 1000000 };

// Text that is built up and compared.
typedef struct rig_text {
    char s[RIG_TEXT];
    size_t len;
    size_t word;  // where the last word begins
} rig_text;

// What a test's peer and application know of one stream.
typedef struct rig_stream {
    uint32_t id;
    uint64_t fed;      // payload bytes that the peer has sent
    uint64_t written;  // that the application has written
    uint64_t taken;    // that the application has read
    uint64_t sent;     // that came out
    uint64_t shown;    // of `taken`, logged already
    int bad;           // a byte read was not the one sent
    uint64_t out_bad;  // 1 + the first byte that came out and is not the pattern's, 0 = none
    char text[RIG_KEEP + 1], out_text[RIG_KEEP + 1];  // the first bytes
    char fed_text[RIG_KEEP + 1];
} rig_stream;

typedef struct rig_options {
    int role;              // REVDIAL_ROLE_*; 0 = backend
    const char *features;  // NULL: upgraded elsewhere; else the peer's Revdial-Features
    revdial_limits limits;
    int refuse_streams;  // proxy: accept_streams = 0
    int bare;            // the handshake is the test's own affair
    int carrier;         // REVDIAL_CARRIER_*; what the test feeds is put into frames
    int paired;          // fed by another engine: in frames already
    int stock;           // of a pair: no handshake, stock rules
    size_t output_max;   // set at once, 0 = not at all
    size_t fail_at;      // allocation that fails
    int fail_forever;
} rig_options;

typedef struct rig {
    revdial_engine *e;
    test_heap heap;
    int64_t now;
    int role;
    int upgraded;
    judge wire;
    rig_text out, log;
    int dead, dead_code;
    int held;    // output is not taken
    int eager;   // READABLE is answered by a read
    int stuck;   // input() took nothing although no event waited
    int quiet;   // no text
    int silent;  // our pings get no answer
    int wraps;   // what is fed goes into WebSocket frames
    unsigned wrapped;
    size_t chunk;     // feed at most so many bytes at once, 0 = all
    size_t cut;       // and one cut after so many bytes of all, 0 = none
    size_t fed;       // bytes of all
    uint32_t run_id;  // output: data frames of this stream go on
    uint64_t run_bytes;
    rig_stream streams[RIG_STREAMS];
    size_t stream_count;
    unsigned counts[16];  // events by type
    revdial_event last;   // the last event of interest, without its pointers
    char meta[1024];      // of the last OPEN, "key=value;"
    char text[256];       // of the last DEAD or UP
    uint8_t raw[8192];    // the last of what came out
    size_t raw_len;
} rig;

static void rig_drain(rig *r);
static void rig_flush(rig *r);

// ---- text

__attribute__((format(printf, 2, 3))) static void rig_say(rig_text *t, const char *format, ...)
{
    va_list args;
    char word[256];
    va_start(args, format);
    int n = vsnprintf(word, sizeof word, format, args);
    va_end(args);
    if (n < 0 || t->len + (size_t)n + 2 > sizeof t->s) return;
    if (t->len && t->len - t->word == (size_t)n && !memcmp(t->s + t->word, word, (size_t)n) &&
        !strncmp(word, "readable", 8))
        return;  // told twice, because it came in pieces
    if (t->len) t->s[t->len++] = ' ';
    t->word = t->len;
    memcpy(t->s + t->len, word, (size_t)n + 1);
    t->len += (size_t)n;
}

static uint32_t rig_id(const rig *r, int peers, uint32_t n)
{
    int odd = (r->role == REVDIAL_ROLE_PROXY) != peers;
    return odd ? 2 * n - 1 : 2 * n;
}

static const char *rig_id_name(const rig *r, uint32_t id, char name[16])
{
    int odd = id & 1;
    if (id == 0)
        snprintf(name, 16, "0");
    else
        snprintf(name, 16, "%c%u", (r->role == REVDIAL_ROLE_PROXY) == odd ? 'm' : 'p',
                 id / 2 + (unsigned)odd);
    return name;
}

static const char *rig_error_name(ptrdiff_t code)
{
    switch (code) {
#define REVDIAL_X(name, value, text) \
    case value: return #name;
        REVDIAL_ERRORS(REVDIAL_X)
#undef REVDIAL_X
    default: return "?";
    }
}

// The byte at `at` of one direction of a stream. 251 is prime, so that a shift is always noticed.
static inline uint8_t rig_pattern(uint32_t id, int inward, uint64_t at)
{
    return (uint8_t)((at * 7 + at / 251 + id * 31 + (inward ? 97 : 0)) % 251);
}

// The next RIG_RUN of them, in a table for each first byte: they begin anew after 251 * 251.
enum { RIG_PERIOD = 251 * 251, RIG_RUN = 8192 };
static inline const uint8_t *rig_patterns(uint32_t id, int inward, uint64_t at)
{
    static uint8_t *tables[251];
    uint8_t **table = &tables[rig_pattern(id, inward, 0)];
    if (!*table) {
        *table = (uint8_t *)malloc(RIG_PERIOD + RIG_RUN);
        if (!*table) abort();
        for (size_t i = 0; i < RIG_PERIOD + RIG_RUN; i++) (*table)[i] = rig_pattern(id, inward, i);
    }
    return *table + at % RIG_PERIOD;
}

static inline void rig_pattern_fill(uint8_t *out, size_t n, uint32_t id, int inward, uint64_t at)
{
    for (size_t done = 0, part; done < n; done += part) {
        part = n - done < RIG_RUN ? n - done : RIG_RUN;
        memcpy(out + done, rig_patterns(id, inward, at + done), part);
    }
}

// How many of n bytes are as they should be.
static inline size_t rig_pattern_good(const uint8_t *bytes, size_t n, uint32_t id, int inward,
                                      uint64_t at)
{
    for (size_t done = 0, part; done < n; done += part) {
        const uint8_t *good = rig_patterns(id, inward, at + done);
        part = n - done < RIG_RUN ? n - done : RIG_RUN;
        if (memcmp(bytes + done, good, part) == 0) continue;
        while (bytes[done] == *good++) done++;
        return done;
    }
    return n;
}

static rig_stream *rig_stream_of(rig *r, uint32_t id)
{
    for (size_t i = 0; i < r->stream_count; i++)
        if (r->streams[i].id == id) return &r->streams[i];
    if (r->stream_count == RIG_STREAMS) return NULL;
    rig_stream *s = &r->streams[r->stream_count++];
    memset(s, 0, sizeof *s);
    s->id = id;
    return s;
}

// Notes bytes that came out at one end: text if they are the first and printable.
static void rig_note_bytes(char text[RIG_KEEP + 1], uint64_t at, const uint8_t *bytes, size_t n)
{
    for (size_t i = 0; i < n && at + i < RIG_KEEP; i++) {
        text[at + i] = bytes[i] >= 33 && bytes[i] < 127 ? (char)bytes[i] : '?';
        text[at + i + 1] = '\0';
    }
}

static int rig_is_text(const char *text, uint64_t from, uint64_t to)
{
    if (to > RIG_KEEP || from >= to) return 0;
    for (uint64_t i = from; i < to; i++)
        if (text[i] == '?' || text[i] == '\0') return 0;
    return 1;
}

// ---- output

static void rig_end_run(rig *r)
{
    char name[16];
    if (!r->run_bytes) return;
    rig_stream *s = rig_stream_of(r, r->run_id);
    rig_id_name(r, r->run_id, name);
    if (s && rig_is_text(s->out_text, s->sent - r->run_bytes, s->sent))
        rig_say(&r->out, "D%s'%.*s'", name, (int)r->run_bytes,
                s->out_text + (s->sent - r->run_bytes));
    else
        rig_say(&r->out, "D%s#%llu", name, (unsigned long long)r->run_bytes);
    r->run_bytes = 0;
}

static void rig_seen(void *ud, const wire_frame *f)
{
    static const char *const names[16] = {"",         "+SYN",     "+ACK",    "+SYN+ACK", "+FIN",
                                          "+SYN+FIN", "+ACK+FIN", "?",       "+RST",     "?",
                                          "+ACK+RST", "?",        "+FIN+RST"};
    rig *r = ud;
    char name[16], len[16] = "";
    if (r->quiet) return;
    if (f->type == WIRE_DATA && f->flags == 0) {
        if (r->run_id != f->id) rig_end_run(r);
        r->run_id = f->id;
        return;
    }
    if (f->type == WIRE_PING && f->flags == WIRE_SYN) return;  // ours come when they are due
    rig_end_run(r);
    if (f->len || f->type == WIRE_GOAWAY) snprintf(len, sizeof len, "=%u", f->len);
    rig_say(&r->out, "%c%s%s%s", "DWPG"[f->type & 3], rig_id_name(r, f->id, name),
            names[f->flags & 15], len);
}

// Control frames of WebSocket: pong'Hello', close(1000), close().
static void rig_ws_seen(void *ud, int opcode, const uint8_t *bytes, size_t n)
{
    judge *j = ud;
    rig *r = j->ud;
    unsigned status = n >= 2 ? (unsigned)bytes[0] << 8 | bytes[1] : 0;
    rig_end_run(r);
    if (opcode == WS_CLOSE && n)
        rig_say(&r->out, "close(%u)", status);
    else if (opcode == WS_CLOSE)
        rig_say(&r->out, "close()");
    else
        rig_say(&r->out, "%s'%.*s'", opcode == WS_PONG ? "pong" : "ping", (int)n,
                (const char *)bytes);
}

static void rig_body(void *ud, uint32_t id, const uint8_t *bytes, size_t n)
{
    rig *r = ud;
    rig_stream *s = rig_stream_of(r, id);
    if (!s || r->quiet) return;
    rig_note_bytes(s->out_text, s->sent, bytes, n);
    if (!s->out_bad) {
        size_t good = rig_pattern_good(bytes, n, id, 0, s->sent);
        if (good < n) s->out_bad = s->sent + good + 1;
    }
    s->sent += n;
    r->run_bytes += n;
}

static void rig_keep_raw(rig *r, const uint8_t *bytes, size_t n)
{
    if (n > sizeof r->raw) {
        bytes += n - sizeof r->raw;
        n = sizeof r->raw;
    }
    size_t old = sizeof r->raw - n < r->raw_len ? sizeof r->raw - n : r->raw_len;
    memmove(r->raw, r->raw + (r->raw_len - old), old);
    memcpy(r->raw + old, bytes, n);
    r->raw_len = old + n;
}

// Takes all output, as a socket that never blocks would.
static void rig_flush(rig *r)
{
    struct iovec iov[8];
    int n;
    while (!r->held && (n = revdial_engine_output(r->e, iov, 8)) > 0) {
        size_t total = 0;
        for (int i = 0; i < n; i++) {
            judge_out(&r->wire, iov[i].iov_base, iov[i].iov_len);
            rig_keep_raw(r, iov[i].iov_base, iov[i].iov_len);
            total += iov[i].iov_len;
        }
        revdial_engine_sent(r->e, total);
        rig_drain(r);
    }
}

// A socket that takes a little: at most `left` bytes of one output.
static inline void rig_take(rig *r, size_t left)
{
    struct iovec iov[8];
    int n = revdial_engine_output(r->e, iov, 8);
    size_t total = 0;
    for (int i = 0; i < n && left; i++) {
        size_t take = iov[i].iov_len < left ? iov[i].iov_len : left;
        judge_out(&r->wire, iov[i].iov_base, take);
        left -= take;
        total += take;
    }
    revdial_engine_sent(r->e, total);
}

// ---- events

// Reads all there is. Returns what the last read returned: 0 EOF or an error.
static ptrdiff_t rig_read_all(rig *r, uint32_t id, size_t most)
{
    uint8_t buf[4096];
    rig_stream *s = rig_stream_of(r, id);
    for (;;) {
        size_t want = most < sizeof buf ? most : sizeof buf;
        ptrdiff_t n = want ? revdial_engine_read(r->e, id, buf, want) : REVDIAL_EAGAIN;
        if (n <= 0) return n;
        if (!s) continue;
        int text = 1;
        size_t i = 0, len = (size_t)n;
        for (; i < len && s->taken + i < RIG_KEEP; i++) {
            uint64_t at = s->taken + i;
            if (!s->fed_text[at]) text = 0;
            uint8_t byte = s->fed_text[at] ? (uint8_t)s->fed_text[at] : rig_pattern(id, 1, at);
            if (buf[i] != byte) s->bad = 1;
        }
        if (i < len) {
            text = 0;
            size_t good = rig_pattern_good(buf + i, len - i, id, 1, s->taken + i);
            if (good < len - i) s->bad = 1;
        }
        if (text) rig_note_bytes(s->text, s->taken, buf, (size_t)n);
        s->taken += (uint64_t)n;
        most -= (size_t)n;
    }
}

static void rig_show_bytes(rig *r, uint32_t id)
{
    char name[16];
    rig_stream *s = rig_stream_of(r, id);
    if (!s || s->taken == s->shown) return;
    rig_id_name(r, id, name);
    if (s->bad)
        rig_say(&r->log, "%s:BAD", name);
    else if (rig_is_text(s->text, s->shown, s->taken))
        rig_say(&r->log, "%s'%.*s'", name, (int)(s->taken - s->shown), s->text + s->shown);
    else
        rig_say(&r->log, "%s#%llu", name, (unsigned long long)(s->taken - s->shown));
    s->shown = s->taken;
}

static void rig_note_open(rig *r, const revdial_event *ev)
{
    size_t at = 0;
    r->meta[0] = '\0';
    for (size_t i = 0; i < ev->meta_count && at < sizeof r->meta; i++)
        at += (size_t)snprintf(r->meta + at, sizeof r->meta - at, "%s=%s;", ev->meta[i].key,
                               ev->meta[i].value);
    rig_stream *s = rig_stream_of(r, ev->id);
    if (s) s->taken = s->shown = 0;  // the id may have been used before
}

static void rig_log_event(rig *r, const revdial_event *ev)
{
    static const char *const names[] = {"none",     "auth",     "up",   "open", "accepted",
                                        "readable", "writable", "sent", "fin",  "reset",
                                        "goaway",   "rtt",      "dead"};
    char name[16];
    const char *what = ev->type >= 0 && ev->type < 13 ? names[ev->type] : "?";
    if (ev->type == REVDIAL_EV_DEAD)
        rig_say(&r->log, "dead(%s)", rig_error_name(ev->code));
    else if (ev->type == REVDIAL_EV_RESET)
        rig_say(&r->log, "reset%s(%d)", rig_id_name(r, ev->id, name), ev->code);
    else if (ev->type == REVDIAL_EV_WRITABLE && ev->id == 0)
        rig_say(&r->log, "openable");
    else if (ev->id)
        rig_say(&r->log, "%s%s", what, rig_id_name(r, ev->id, name));
    else
        rig_say(&r->log, "%s", what);
}

static void rig_on_event(rig *r, const revdial_event *ev)
{
    r->counts[ev->type & 15]++;
    r->last = *ev;
    if (ev->text) snprintf(r->text, sizeof r->text, "%s", ev->text);
    switch ((enum revdial_event_type)ev->type) {
    case REVDIAL_EV_AUTH: revdial_engine_auth(r->e, 0); return;
    case REVDIAL_EV_OPEN: rig_note_open(r, ev); break;
    case REVDIAL_EV_DEAD:
        if (r->dead++) judge_complain(&r->wire, "dead twice");
        r->dead_code = ev->code;
        break;
    case REVDIAL_EV_UP:
    case REVDIAL_EV_RTT:
    case REVDIAL_EV_SILENT: return;
    case REVDIAL_EV_WRITABLE:
        if (ev->id) return;
        break;
    case REVDIAL_EV_READABLE:
        if (!r->eager) break;
        rig_read_all(r, ev->id, SIZE_MAX);
        return;
    case REVDIAL_EV_NONE:
    case REVDIAL_EV_ACCEPTED:
    case REVDIAL_EV_SENT:
    case REVDIAL_EV_FIN:
    case REVDIAL_EV_RESET:
    case REVDIAL_EV_GOAWAY: break;
    }
    if (r->dead > 1 || (r->dead && ev->type != REVDIAL_EV_DEAD && ev->type != REVDIAL_EV_RESET))
        judge_complain(&r->wire, "event %d after DEAD", ev->type);
    if (!r->quiet) rig_log_event(r, ev);
}

static void rig_drain(rig *r)
{
    revdial_event ev;
    memset(&ev, 0, sizeof ev);
    while (revdial_engine_event(r->e, &ev)) rig_on_event(r, &ev);
}

// ---- input

// One call's worth: a copy of its own, so that a slice used too late is noticed.
static size_t rig_feed_once(rig *r, const uint8_t *bytes, size_t n)
{
    uint8_t *copy = malloc(n ? n : 1);
    if (!copy) abort();
    memcpy(copy, bytes, n);
    revdial_engine_info info;
    revdial_engine_get_info(r->e, &info);
    r->wire.queued = info.output_bytes;
    ptrdiff_t used = revdial_engine_input(r->e, copy, n, r->now);
    if (used > 0) judge_in(&r->wire, copy, (size_t)used);
    unsigned before = 0, after = 0;
    for (int i = 0; i < 16; i++) before += r->counts[i];
    rig_drain(r);
    for (int i = 0; i < 16; i++) after += r->counts[i];
    memset(copy, 0xEE, n);
    free(copy);
    if (used < 0) return n;
    if (used == 0 && before == after) {
        r->stuck = 1;
        return n;
    }
    return (size_t)used;
}

static void rig_feed_raw(rig *r, const void *data, size_t n)
{
    const uint8_t *bytes = data;
    size_t at = 0;
    while (at < n && !r->dead) {
        size_t step = n - at;
        if (r->chunk && step > r->chunk) step = r->chunk;
        if (r->cut > r->fed && step > r->cut - r->fed) step = r->cut - r->fed;
        size_t used = rig_feed_once(r, bytes + at, step);
        at += used;
        r->fed += used;
    }
    if (at < n) r->fed += n - at;
}

// A WebSocket frame from the peer, with a mask if it has to have one.
static void rig_ws_frame(rig *r, unsigned first, const void *body, size_t n)
{
    uint8_t *frame = calloc(1, n + 14), *p = frame, key[4] = {0};
    if (!frame) abort();
    *p++ = (uint8_t)first;
    *p++ = (uint8_t)(n < 126 ? n : n < 65536 ? 126 : 127);
    if (n >= 65536) p += 4;
    if (n >= 65536) *p++ = (uint8_t)(n >> 24);
    if (n >= 65536) *p++ = (uint8_t)(n >> 16);
    if (n >= 126) *p++ = (uint8_t)(n >> 8);
    if (n >= 126) *p++ = (uint8_t)n;
    if (r->role == REVDIAL_ROLE_PROXY) {
        frame[1] |= 0x80;
        for (int i = 0; i < 4; i++) *p++ = key[i] = (uint8_t)(++r->wrapped * 0x9Du + 0x5Au);
    }
    for (size_t i = 0; i < n; i++) *p++ = (uint8_t)(((const uint8_t *)body)[i] ^ key[i % 4]);
    rig_feed_raw(r, frame, (size_t)(p - frame));
    free(frame);
}

static void rig_feed(rig *r, const void *data, size_t n)
{
    if (!n) return;
    if (r->wraps)
        rig_ws_frame(r, 0x82, data, n);
    else
        rig_feed_raw(r, data, n);
}

// A frame from the peer, by hand.
static void rig_frame(rig *r, unsigned type, unsigned flags, uint32_t id, uint32_t len)
{
    uint8_t head[WIRE_HEADER];
    wire_frame f = {0, type, flags, id, len};
    wire_put(head, &f);
    rig_feed(r, head, sizeof head);
}

// Time passes. A live peer answers our ping.
static void rig_tick(rig *r, int64_t ms)
{
    r->now += ms * 1000;
    revdial_engine_tick(r->e, r->now);
    rig_drain(r);
    rig_flush(r);
    if (r->wire.ping_out && !r->silent) rig_frame(r, WIRE_PING, WIRE_ACK, 0, r->wire.ping_value);
}

// What came out so far, in words.
static inline const char *rig_out(rig *r)
{
    rig_end_run(r);
    return r->out.s;
}

static inline void rig_data(rig *r, uint32_t id, uint32_t len)
{
    uint8_t bytes[4096];
    rig_stream *s = rig_stream_of(r, id);
    rig_frame(r, WIRE_DATA, 0, id, len);
    while (len && !r->dead) {
        uint32_t n = len < sizeof bytes ? len : (uint32_t)sizeof bytes;
        rig_pattern_fill(bytes, n, id, 1, s ? s->fed : 0);
        if (s) s->fed += n;
        rig_feed(r, bytes, n);
        len -= n;
    }
}

// ---- life

static void rig_ws_handshake(rig *r, const char *features)
{
    static const char name[] = "Sec-WebSocket-Key: ";
    char text[512], accept[RVD_HTTP_ACCEPT_SIZE] = "";
    rvd_base_slice key;
    rig_flush(r);
    r->raw[r->raw_len < sizeof r->raw ? r->raw_len : sizeof r->raw - 1] = 0;
    key.at = strstr((const char *)r->raw, name);
    key.len = 24;
    if (key.at) key.at += sizeof name - 1;
    if (key.at) rvd_http_accept_of(key, accept);
    if (r->role == REVDIAL_ROLE_PROXY)
        snprintf(text, sizeof text,
                 "GET /revdial HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
                 "Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                 "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: revdial\r\n"
                 "Authorization: Bearer t\r\nRevdial-Version: 1\r\nRevdial-Name: n\r\n"
                 "Revdial-Features: %s\r\n\r\n",
                 features);
    else
        snprintf(text, sizeof text,
                 "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
                 "Upgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n"
                 "Sec-WebSocket-Protocol: revdial\r\nRevdial-Version: 1\r\n"
                 "Revdial-Features: %s\r\n\r\n",
                 accept, features);
    rig_feed_raw(r, text, strlen(text));
    rig_flush(r);
    r->fed = 0;
}

static void rig_handshake(rig *r, const char *features)
{
    char text[512];
    r->wire.in.http_matched = r->wire.out.http_matched = 0;
    if (r->wire.framed) {
        rig_ws_handshake(r, features);
        return;
    }
    if (r->role == REVDIAL_ROLE_PROXY)
        snprintf(text, sizeof text,
                 "GET /revdial HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: revdial\r\n"
                 "Authorization: Bearer t\r\nRevdial-Version: 1\r\nRevdial-Name: n\r\n"
                 "Revdial-Features: %s\r\n\r\n",
                 features);
    else
        snprintf(text, sizeof text,
                 "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: revdial\r\n"
                 "Revdial-Version: 1\r\nRevdial-Session: 0123456789abcdef\r\n"
                 "Revdial-Features: %s\r\n\r\n",
                 features);
    rig_flush(r);
    r->chunk = 0;
    rig_feed(r, text, strlen(text));
    rig_flush(r);
    r->fed = 0;
}

// The bytes of a stream that came out: so many, each the one that was written.
static inline void rig_check_out(rig *r, uint32_t id, uint64_t count)
{
    const rig_stream *s = rig_stream_of(r, id);
    CHECK_INT(s ? s->sent : 0, count);
    if (s && s->out_bad)
        test_fail(__FILE__, __LINE__, "byte %llu is wrong", (unsigned long long)s->out_bad - 1);
}

// The peer's window when a feature list names one.
static uint32_t rig_feature(const char *features, const char *key, uint32_t otherwise)
{
    const char *at = features ? strstr(features, key) : NULL;
    return at ? (uint32_t)strtoul(at + strlen(key), NULL, 10) : otherwise;
}

static void rig_free(rig *r)
{
    if (!r) return;
    revdial_engine_free(r->e);
    judge_free(&r->wire);
    free(r);
}

// What the two ends believe a window is before the first word about it.
static void rig_windows(rig *r, const rig_options *o)
{
    uint32_t own = o->limits.stream_window;
    int told = o->bare || (o->features && strstr(o->features, "window="));
    if (told) r->wire.window_own = own ? own : 65536;
    if (o->bare)
        r->wire.window_peer = 65536;
    else
        r->wire.window_peer = rig_feature(o->features, "window=", WIRE_STOCK_WINDOW);
}

// NULL: out of memory, or a bad configuration.
static rig *rig_new(const rig_options *o)
{
    revdial_err err = {0};
    rig *r = calloc(1, sizeof *r);
    if (!r) abort();
    r->role = o->role ? o->role : REVDIAL_ROLE_BACKEND;
    r->now = RIG_START_US;
    r->heap.fail_at = o->fail_at;
    r->heap.fail_forever = o->fail_forever;
    r->upgraded = !o->features && !o->bare;
    revdial_engine_config c = {.role = r->role,
                               .upgraded = r->upgraded,
                               .carrier = o->carrier,
                               .host = "x",
                               .name = "n",
                               .secret = "t",
                               .peer = "192.0.2.1:5",
                               .seed = 0x5eed,
                               .accept_streams = !o->refuse_streams,
                               .limits = o->limits,
                               .alloc = test_heap_alloc,
                               .alloc_ud = &r->heap};
    judge_init(&r->wire, r->role == REVDIAL_ROLE_PROXY ? "proxy" : "backend",
               r->role == REVDIAL_ROLE_PROXY);
    if (o->carrier == REVDIAL_CARRIER_WEBSOCKET) judge_frame(&r->wire);
    r->wire.ws_out.seen = rig_ws_seen;
    r->wire.seen = rig_seen;
    r->wire.body = rig_body;
    r->wire.ud = r;
    rig_windows(r, o);
    r->e = revdial_engine_new(&c, r->now, &err);
    if (!r->e) {
        rig_free(r);
        return NULL;
    }
    if (o->output_max) revdial_engine_set_output_max(r->e, o->output_max);
    rig_drain(r);
    if (o->features) rig_handshake(r, o->features);
    r->wraps = r->wire.framed && !o->bare && !o->paired;
    if (o->bare) r->wire.in.http_matched = r->wire.out.http_matched = 0;
    if (!o->bare) rig_flush(r);
    r->out.len = r->log.len = 0;
    r->out.s[0] = r->log.s[0] = '\0';
    memset(r->counts, 0, sizeof r->counts);
    return r;
}

// Frees the engine and says whether it gave everything back.
static inline int rig_end(rig *r)
{
    int ok = 1;
    revdial_engine_free(r->e);
    r->e = NULL;
    if (r->heap.live_bytes || r->heap.live_blocks)
        ok = test_fail(__FILE__, __LINE__, "%zu bytes in %zu blocks leaked", r->heap.live_bytes,
                       r->heap.live_blocks);
    if (r->wire.failures) ok = test_fail(__FILE__, __LINE__, "%s", r->wire.why);
    if (r->stuck) ok = test_fail(__FILE__, __LINE__, "input took nothing and told nothing");
    rig_free(r);
    return ok;
}

// ---- two engines, proxy and backend, with a wire between them

typedef struct rig_pair {
    rig *proxy, *backend;
    size_t chunk;  // bytes carried at once, 0 = all there is
} rig_pair;

// Carries some output across. Returns bytes carried.
static size_t rig_carry(rig *from, rig *to, size_t most)
{
    struct iovec iov[8];
    size_t total = 0;
    int n = from->held == 2 ? 0 : revdial_engine_output(from->e, iov, 8);
    for (int i = 0; i < n && total < most; i++) {
        size_t take = iov[i].iov_len < most - total ? iov[i].iov_len : most - total;
        uint8_t *copy = malloc(take);
        if (!copy) abort();
        memcpy(copy, iov[i].iov_base, take);
        judge_out(&from->wire, copy, take);
        rig_feed(to, copy, take);
        free(copy);
        total += take;
    }
    revdial_engine_sent(from->e, total);
    rig_drain(from);
    return total;
}

// Until nothing moves any more.
static inline void pair_pump(rig_pair *p)
{
    size_t most = p->chunk ? p->chunk : SIZE_MAX;
    while (rig_carry(p->proxy, p->backend, most) + rig_carry(p->backend, p->proxy, most) > 0) {
    }
}

static inline void pair_tick(rig_pair *p, int64_t ms)
{
    rig_tick(p->proxy, ms);
    rig_tick(p->backend, ms);
    pair_pump(p);
}

static inline int pair_new(rig_pair *p, const rig_options *proxy, const rig_options *backend)
{
    rig_options a = *proxy, b = *backend;
    a.role = REVDIAL_ROLE_PROXY;
    b.role = REVDIAL_ROLE_BACKEND;
    a.bare = b.bare = !a.stock;
    a.paired = b.paired = 1;
    memset(p, 0, sizeof *p);
    p->proxy = rig_new(&a);
    p->backend = rig_new(&b);
    if (!p->proxy || !p->backend) {
        rig_free(p->proxy);
        rig_free(p->backend);
        return 0;
    }
    if (a.bare) {
        p->proxy->wire.window_peer = p->backend->wire.window_own;
        p->backend->wire.window_peer = p->proxy->wire.window_own;
    }
    p->proxy->held = p->backend->held = 1;  // output goes across, not away
    pair_pump(p);
    p->proxy->out.len = p->proxy->log.len = p->backend->out.len = p->backend->log.len = 0;
    return 1;
}

static inline int pair_end(rig_pair *p)
{
    int ok = rig_end(p->proxy);
    return rig_end(p->backend) && ok;
}

#endif
