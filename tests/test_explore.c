// Every order of events, for a small world: two engines, two streams, windows of two bytes. What
// the two applications and the wire may do is tried in all orders up to a depth, from every state
// that is reached; a state that was seen before with as many steps left is not tried again. In
// each state the applications stop interfering once and the world must come to its right end:
// every byte arrives in order, EOF comes if and only if the writer finished, and nothing is left.
//
//     build/test_explore                  as deep as a few seconds allow
//     build/test_explore --seconds 60     deeper; prints the states visited
#define REVDIAL_NO_RUNTIME
#define REVDIAL_SELF_CHECK  // the mux checks its invariants at each call
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include <math.h>
#include <time.h>

#include "test.h"

enum {
    WINDOW = 2,
    STREAMS = 2,
    BYTES = 3,  // written per direction: more than a window
    PIPE = 1024,
    ARENA = 1 << 18,
    DEPTH_MAX = 24,
    SEEN_BITS = 22,
    TRIES = 64,  // slots of the table that are looked at
    SECONDS = 4
};

enum act {
    OPEN,
    ACCEPT,
    WRITE,
    READ,
    END_WRITE,
    END_READ,
    RESET,
    CLOSE,
    FLUSH,
    DELIVER,
    TICK,
    CUT
};

typedef struct step {
    unsigned char act, side, stream;
} step;

// One end of a stream, as its application sees it.
typedef struct end {
    unsigned char known, accepted, closed, ended, stopped, reset, told_reset, eof, failed;
    unsigned char written, read;
} end;

typedef struct pipe_bytes {
    size_t len;
    uint8_t at[PIPE];
} pipe_bytes;

// All that there is lies in one block, so that a state is saved and brought back by copying it.
typedef struct world {
    revdial_engine *e[2];
    pipe_bytes out[2];
    int64_t now;
    int is_cut, dead[2];
    uint32_t id[STREAMS];
    int opener[STREAMS];  // side + 1, 0 = not opened
    end end[STREAMS][2];
    size_t used, live;      // of the heap
    void *free_blocks[24];  // by size, powers of two
    _Alignas(16) uint8_t heap[ARENA];
} world;

static world w;
static step path[DEPTH_MAX];
static int depth;

static struct {
    uint64_t hash;
    int left;
} seen[1 << SEEN_BITS];
static uint64_t states, steps_done;

// ---- the heap

static int block_class(size_t size)
{
    int c = 4;
    while ((size_t)1 << c < size) c++;
    return c;
}

static void *world_alloc(void *ud, void *ptr, size_t old_size, size_t new_size)
{
    void *fresh = NULL;
    (void)ud;
    if (new_size) {
        int c = block_class(new_size);
        fresh = w.free_blocks[c];
        if (fresh) {
            memcpy(&w.free_blocks[c], fresh, sizeof(void *));
        } else {
            if (w.used + ((size_t)1 << c) > ARENA) return NULL;
            fresh = w.heap + w.used;
            w.used += (size_t)1 << c;
        }
        w.live += new_size;
    }
    if (ptr) {
        int c = block_class(old_size);
        if (fresh) memcpy(fresh, ptr, old_size < new_size ? old_size : new_size);
        memcpy(ptr, &w.free_blocks[c], sizeof(void *));
        w.free_blocks[c] = ptr;
        w.live -= old_size;
    }
    return fresh;
}

// ---- the applications

static const char *const act_names[] = {"open",      "accept",   "write", "read",
                                        "end_write", "end_read", "reset", "close",
                                        "flush",     "deliver",  "tick",  "cut"};

// Fails, with the steps that led here.
static void wrong(const char *what, int x, int k)
{
    char steps[1024];
    size_t len = 0;
    for (int i = 0; i < depth && len + 32 < sizeof steps; i++)
        len += (size_t)snprintf(steps + len, sizeof steps - len, " %s(%d,%d)",
                                act_names[path[i].act], path[i].side, path[i].stream);
    test_fail(__FILE__, __LINE__, "%s, side %d, stream %d, after%s", what, x, k,
              len ? steps : " nothing");
}

static uint8_t byte_of(int k, int from, int at)
{
    return (uint8_t)(100 * k + 50 * from + at + 1);
}

static int stream_of(uint32_t id)
{
    for (int k = 0; k < STREAMS; k++)
        if (w.opener[k] && w.id[k] == id) return k;
    return -1;
}

static void drain(int x)
{
    revdial_event ev;
    while (revdial_engine_event(w.e[x], &ev)) {
        int k = ev.id ? stream_of(ev.id) : -1;
        if (ev.type == REVDIAL_EV_DEAD) {
            w.dead[x] = 1;
            if (!w.is_cut) wrong(ev.text, x, -1);
        }
        if (k < 0) continue;
        if (ev.type == REVDIAL_EV_OPEN) w.end[k][x].known = 1;
        if (ev.type == REVDIAL_EV_RESET) w.end[k][x].told_reset = 1;
        if (w.end[k][x].closed) wrong("an event after close", x, k);
    }
}

static void open_stream(int x, int k)
{
    revdial_dial_opts opts = {0};
    int64_t id = revdial_engine_open(w.e[x], &opts, NULL);
    if (id <= 0) return;
    w.id[k] = (uint32_t)id;
    w.opener[k] = x + 1;
    w.end[k][x].known = w.end[k][x].accepted = 1;
}

// Has side 1 - x finished what it writes?
static int is_finished(int x, int k)
{
    const end *peer = &w.end[k][1 - x];
    return peer->ended || (peer->closed && !peer->reset);
}

static void read_byte(int x, int k)
{
    end *here = &w.end[k][x];
    uint8_t b = 0;
    ptrdiff_t n = revdial_engine_read(w.e[x], w.id[k], &b, 1);
    here->accepted = 1;  // also by a read that finds nothing yet
    if (n == REVDIAL_EAGAIN) return;
    if (n == 1) {
        if (here->eof || here->failed) wrong("a byte after the end", x, k);
        if (here->read >= w.end[k][1 - x].written || b != byte_of(k, 1 - x, here->read))
            wrong("a wrong byte", x, k);
        here->read++;
    } else if (n == 0) {
        if (!is_finished(x, k)) wrong("EOF, and the writer has not finished", x, k);
        if (here->read != w.end[k][1 - x].written) wrong("EOF before the last byte", x, k);
        if (here->reset) wrong("EOF after its own reset", x, k);
        here->eof = 1;
    } else {
        here->failed = 1;
    }
}

static void write_byte(int x, int k)
{
    end *here = &w.end[k][x];
    uint8_t b = byte_of(k, x, here->written);
    if (revdial_engine_write(w.e[x], w.id[k], &b, 1) == 1) here->written++;
    here->accepted = 1;
}

// ---- the wire

static void flush(int x)
{
    struct iovec iov[8];
    int n;
    while ((n = revdial_engine_output(w.e[x], iov, 8)) > 0) {
        size_t total = 0;
        for (int i = 0; i < n; i++) {
            if (w.out[x].len + iov[i].iov_len > PIPE) abort();
            memcpy(w.out[x].at + w.out[x].len, iov[i].iov_base, iov[i].iov_len);
            w.out[x].len += iov[i].iov_len;
            total += iov[i].iov_len;
        }
        revdial_engine_sent(w.e[x], total);
        drain(x);
    }
}

// One frame of side x arrives.
static void deliver(int x)
{
    pipe_bytes *p = &w.out[x];
    uint8_t frame[PIPE];
    size_t len = 12, at = 0;
    if (p->len < len) return;
    if (p->at[1] == 0) len += ((size_t)p->at[10] << 8) + p->at[11];  // yamux data: its length
    memcpy(frame, p->at, len);
    p->len -= len;
    memmove(p->at, p->at + len, p->len);
    while (at < len && !w.dead[1 - x]) {
        ptrdiff_t n = revdial_engine_input(w.e[1 - x], frame + at, len - at, w.now);
        if (n < 0) break;
        at += (size_t)n;
        drain(1 - x);
    }
}

static void tick(int64_t us)
{
    w.now += us;
    for (int x = 0; x < 2; x++) {
        revdial_engine_tick(w.e[x], w.now);
        drain(x);
    }
}

static void cut(void)
{
    w.is_cut = 1;
    for (int x = 0; x < 2; x++) {
        w.out[x].len = 0;
        revdial_engine_input(w.e[x], "", 0, w.now);
        drain(x);
        if (!w.dead[x]) wrong("the connection has ended, and the session lives", x, -1);
    }
}

// ---- steps

static int is_possible(step s)
{
    const end *here = &w.end[s.stream][s.side];
    int is_mine = here->known && !here->closed;
    switch ((enum act)s.act) {
    case OPEN: return !w.opener[s.stream] && !w.is_cut && (s.stream == 0 || w.opener[0]);
    case ACCEPT: return is_mine && !here->accepted;
    case WRITE: return is_mine && !here->ended && !here->reset && here->written < BYTES;
    case READ: return is_mine && !here->eof && !here->failed;
    case END_WRITE: return is_mine && !here->ended;
    case END_READ: return is_mine && !here->stopped;
    case RESET: return is_mine && !here->reset;
    case CLOSE: return is_mine;
    case FLUSH: return s.stream == 0 && !w.is_cut;
    case DELIVER: return s.stream == 0 && w.out[s.side].len > 0;
    case TICK: return s.stream == 0 && s.side == 0;
    case CUT: return s.stream == 0 && s.side == 0 && !w.is_cut;
    }
    return 0;
}

static void take(step s)
{
    revdial_engine *e = w.e[s.side];
    end *here = &w.end[s.stream][s.side];
    uint32_t id = w.id[s.stream];
    switch ((enum act)s.act) {
    case OPEN: open_stream(s.side, s.stream); break;
    case ACCEPT:
        revdial_engine_accept(e, id);
        here->accepted = 1;
        break;
    case WRITE: write_byte(s.side, s.stream); break;
    case READ: read_byte(s.side, s.stream); break;
    case END_WRITE:
        revdial_engine_end_write(e, id);
        here->ended = here->accepted = 1;
        break;
    case END_READ:
        revdial_engine_end_read(e, id);
        here->stopped = here->failed = here->accepted = 1;
        break;
    case RESET:
        revdial_engine_reset(e, id, REVDIAL_RESET_CANCEL);
        here->reset = 1;
        break;
    case CLOSE:
        revdial_engine_close(e, id);
        here->closed = 1;
        // Closing what was not accepted refuses it.
        if (!here->accepted) here->reset = 1;
        break;
    case FLUSH: flush(s.side); break;
    case DELIVER: deliver(s.side); break;
    case TICK: tick(1000000); break;
    case CUT: cut(); break;
    }
    drain(s.side);
}

// ---- the right end

// The world runs by itself: all bytes travel, and whoever can read or write does.
static void settle(int rounds, int64_t round_us)
{
    for (int i = 0; i < rounds; i++) {
        for (int turn = 0; turn < 4 && !w.is_cut; turn++) {
            for (int x = 0; x < 2; x++) {
                flush(x);
                while (w.out[x].len) deliver(x);
            }
        }
        for (int k = 0; k < STREAMS; k++) {
            for (int x = 0; x < 2; x++) {
                const end *here = &w.end[k][x];
                int wants = here->known && !here->ended && !here->reset && !here->told_reset;
                if (!here->known || here->closed) continue;
                for (int n = 0; n < BYTES && wants && here->written < BYTES; n++) write_byte(x, k);
                for (int n = 0; n <= BYTES && !here->eof && !here->failed; n++) read_byte(x, k);
            }
        }
        tick(round_us);
    }
}

// One direction of a stream, side x reading: has it come to where it should be?
static void check_direction(int k, int x)
{
    const end *here = &w.end[k][x], *peer = &w.end[k][1 - x];
    int is_broken = w.is_cut || here->reset || peer->reset || here->told_reset || peer->told_reset;
    if (!w.opener[k]) return;
    if (is_broken) {
        // A reset or a cut can come after the end was read, but nobody waits for ever.
        if (here->known && !here->closed && !here->eof && !here->failed)
            wrong("a reader still waits, and the stream is broken", x, k);
        return;
    }
    if (!here->known) wrong("the stream was never offered", x, k);
    if (here->closed || here->stopped) return;
    if (here->read != peer->written) wrong("bytes are missing", x, k);
    if (!is_finished(x, k) && peer->written < BYTES) wrong("the writer still waits", 1 - x, k);
    if (is_finished(x, k) != here->eof) wrong(here->eof ? "EOF too early" : "no EOF", x, k);
}

// Nobody interferes from here on; then both sides give up everything, and nothing may be left.
static void check_end(void)
{
    settle(12, 1000000);
    for (int k = 0; k < STREAMS; k++)
        for (int x = 0; x < 2; x++) check_direction(k, x);
    for (int k = 0; k < STREAMS; k++) {
        for (int x = 0; x < 2; x++) {
            if (!w.end[k][x].known || w.end[k][x].closed) continue;
            revdial_engine_close(w.e[x], w.id[k]);
            w.end[k][x].closed = 1;
        }
    }
    settle(4, 11000000);
    for (int x = 0; x < 2; x++) {
        revdial_engine_info info;
        revdial_engine_get_info(w.e[x], &info);
        if (info.streams != 0 && !w.is_cut) wrong("a stream is left", x, -1);
        revdial_engine_free(w.e[x]);
    }
    if (w.live != 0) wrong("memory is left", -1, -1);
}

// ---- what makes two states the same

static uint64_t mix(uint64_t h, const void *at, size_t len)
{
    const uint8_t *p = at;
    while (len-- > 0) h = (h ^ *p++) * UINT64_C(0x100000001b3);
    return h;
}

static uint64_t mix_stream(uint64_t h, const rvd_mux_stream *s)
{
    const uint32_t all[] = {
        s->id,       s->phase,       s->tx,        s->rx,         s->wait,        s->timer_kind,
        s->ctl_bits, s->tell_bits,   s->released,  s->after_fin,  s->tiny_ok,     s->fin_sent,
        s->is_past,  s->reset_local, s->stopped,   s->reset_code, s->send_credit, s->recv_credit,
        s->window,   s->buffered,    s->turn_left, s->dropped};
    return mix(h, all, sizeof all);
}

static uint64_t hash_of_world(void)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    h = mix(h, w.end, sizeof w.end);
    h = mix(h, w.opener, sizeof w.opener);
    h = mix(h, &w.is_cut, sizeof w.is_cut);
    h = mix(h, &w.now, sizeof w.now);
    for (int x = 0; x < 2; x++) {
        const rvd_mux *m = &w.e[x]->mux;
        struct iovec iov[8];
        int n = revdial_engine_output(w.e[x], iov, 8);
        h = mix(h, w.out[x].at, w.out[x].len);
        h = mix(h, &w.out[x].len, sizeof w.out[x].len);
        for (int i = 0; i < n; i++) h = mix(h, iov[i].iov_base, iov[i].iov_len);
        revdial_engine_sent(w.e[x], 0);
        for (int k = 0; k < STREAMS; k++) {
            const rvd_mux_stream *s = m->table[0];
            for (uint32_t slot = 0; slot < (uint32_t)1 << m->table_bits; slot++)
                for (s = m->table[slot]; s; s = s->hash_next)
                    if (w.opener[k] && s->id == w.id[k]) h = mix_stream(h, s);
        }
    }
    return h;
}

// Was this state seen before with at least as many steps left? If not, it is noted.
static int was_seen(int left)
{
    uint64_t h = hash_of_world();
    for (size_t i = 0; i < TRIES; i++) {
        size_t slot = (h + i) & (((size_t)1 << SEEN_BITS) - 1);
        if (seen[slot].hash == h && seen[slot].left >= left) return 1;
        if (seen[slot].hash == h || seen[slot].hash == 0) {
            states += seen[slot].hash == 0;
            seen[slot].hash = h;
            seen[slot].left = left;
            return 0;
        }
    }
    return 0;  // the table is full here: better twice than never
}

// ---- exploring

static world saved[DEPTH_MAX + 2];

// Copies what is in use.
static void world_copy(world *to, const world *from)
{
    memcpy(to, from, offsetof(world, heap) + from->used);
}

static void start(int has_codes)
{
    revdial_err err = {0};
    memset(&w, 0, sizeof w);
    w.now = 1000000;
    for (int x = 0; x < 2; x++) {
        revdial_engine_config cfg = {.role = x ? REVDIAL_ROLE_BACKEND : REVDIAL_ROLE_PROXY};
        cfg.upgraded = 1;
        cfg.accept_streams = 1;
        cfg.seed = 7;
        cfg.alloc = world_alloc;
        w.e[x] = revdial_engine_new(&cfg, w.now, &err);
        if (!w.e[x]) abort();
        // Smaller than any peer may ask for: so that credit runs out after two bytes.
        w.e[x]->mux.cfg.send_window = w.e[x]->mux.cfg.recv_window = WINDOW;
        w.e[x]->mux.cfg.limits.stream_window = w.e[x]->mux.cfg.limits.stream_window_max = WINDOW;
        if (has_codes) w.e[x]->mux.cfg.features |= REVDIAL_FEATURE_RSTCODE;
        drain(x);
    }
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

enum { LEAST = 2 };  // steps of which all orders are tried, however long that takes
static double deadline;

// Returns 0 when the time is over or a state is wrong.
static int explore(int left)
{
    if (was_seen(left)) return 1;
    world_copy(&saved[depth], &w);
    if (left == 0) check_end();
    if (test_failures || now_s() > deadline) return 0;
    for (int act = OPEN; left > 0 && act <= CUT; act++) {
        for (int i = 0; i < 2 * STREAMS; i++) {
            step s = {(unsigned char)act, (unsigned char)(i & 1), (unsigned char)(i >> 1)};
            world_copy(&w, &saved[depth]);
            if (!is_possible(s)) continue;
            path[depth++] = s;
            steps_done++;
            take(s);
            if (test_failures || !explore(left - 1)) return 0;
            depth--;
        }
    }
    world_copy(&w, &saved[depth]);
    return 1;
}

// Where exploring begins: what is rare in few steps from a new session is near from these.
static const struct begin {
    const char *name;
    step steps[16];
    size_t count;
} begins[] = {
    {"a new session", {{0, 0, 0}}, 0},
    {"an open stream",
     {{OPEN, 0, 0}, {FLUSH, 0, 0}, {DELIVER, 0, 0}, {ACCEPT, 1, 0}, {FLUSH, 1, 0}, {DELIVER, 1, 0}},
     6},
    {"a stream without credit",
     {{OPEN, 0, 0},
      {WRITE, 0, 0},
      {WRITE, 0, 0},
      {WRITE, 0, 0},
      {FLUSH, 0, 0},
      {DELIVER, 0, 0},
      {DELIVER, 0, 0},
      {READ, 1, 0},
      {READ, 1, 0}},
     9},
};
enum { BEGINS = sizeof begins / sizeof begins[0] };

static int seconds = SECONDS;

static void explore_from(const struct begin *begin, int has_codes)
{
    int whole = 0;
    memset(seen, 0, sizeof seen);
    states = steps_done = 0;
    const double until = now_s() + (double)seconds / (2 * BEGINS);
    for (int most = 1; most + (int)begin->count <= DEPTH_MAX; most++) {
        deadline = most <= LEAST ? HUGE_VAL : until;
        start(has_codes);
        for (depth = 0; depth < (int)begin->count; depth++) {
            path[depth] = begin->steps[depth];
            take(path[depth]);
        }
        if (!explore(most)) break;
        whole = most;
    }
    printf("  %s, from %s: %llu states, %llu steps, all orders of %d\n",
           has_codes ? "reset codes" : "stock", begin->name, (unsigned long long)states,
           (unsigned long long)steps_done, whole);
    CHECK(whole >= LEAST);
}

TEST(any_order_of_events_between_stock_peers_comes_to_its_right_end)
{
    for (size_t i = 0; i < BEGINS; i++) explore_from(&begins[i], 0);
}

TEST(any_order_of_events_between_peers_with_reset_codes_comes_to_its_right_end)
{
    for (size_t i = 0; i < BEGINS; i++) explore_from(&begins[i], 1);
}

int main(int argc, char **argv)
{
    if (argc > 2 && strcmp(argv[1], "--seconds") == 0) {
        seconds = atoi(argv[2]);
        argc -= 2;
        argv += 2;
        argv[0] = argv[-2];
    }
    return test_main(argc, argv);
}
