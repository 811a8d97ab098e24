// An engine with a hostile peer and an application that does anything: frames that are almost
// right, frames that are not, raw bytes, in either role, raw and in WebSocket frames. What comes
// out is judged as in every test of the engine; the engine checks itself; memory is bounded and
// returned.
#define REVDIAL_NO_RUNTIME
#define REVDIAL_SELF_CHECK
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include <stdarg.h>
#include <stdio.h>

#include "engine_util.h"
#include "fuzz.h"

enum { ENGINE_PROXY = 1, ENGINE_WS = 2, ENGINE_OURS = 4, ENGINE_REFUSES = 8, ENGINE_BYTES = 16 };

typedef struct tape {
    const uint8_t *at;
    size_t left;
} tape;

static unsigned tape_next(tape *t)
{
    if (t->left == 0) return 0;
    t->left--;
    return *t->at++;
}

// Ids that are likely to mean something, and some that are not.
static uint32_t tape_id(tape *t)
{
    unsigned n = tape_next(t);
    return n < 0xF0 ? n % 12 : 0xFFFFFFF0u + n % 16;
}

static uint32_t tape_length(tape *t)
{
    static const uint32_t telling[] = {0,      1,       8192,       65535,      65536,
                                       262144, 1048577, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF};
    unsigned n = tape_next(t);
    return n < 200 ? n : telling[n % 10];
}

static void engine_peer_data(rig *r, tape *t)
{
    uint8_t body[256];
    unsigned flags = tape_next(t) % 16;
    uint32_t id = tape_id(t), n = tape_next(t);
    memset(body, 'd', sizeof body);
    rig_frame(r, WIRE_DATA, flags, id, n);
    if (!r->dead) rig_feed(r, body, n);
}

static void engine_peer_bytes(rig *r, tape *t)
{
    size_t n = tape_next(t) % 64;
    if (n > t->left) n = t->left;
    rig_feed_raw(r, t->at, n);
    t->at += n;
    t->left -= n;
}

static void engine_app(rig *r, tape *t)
{
    static const uint8_t some[3000];
    unsigned what = tape_next(t);
    uint32_t id = tape_id(t);
    uint8_t buf[512];
    revdial_dial_opts opts = {0};
    switch (what % 10) {
    case 0: revdial_engine_accept(r->e, id); break;
    case 1: revdial_engine_read(r->e, id, buf, sizeof buf); break;
    case 2: revdial_engine_write(r->e, id, some, tape_next(t) * 11); break;
    case 3: revdial_engine_end_write(r->e, id); break;
    case 4: revdial_engine_reset(r->e, id, (int)tape_next(t)); break;
    case 5: revdial_engine_close(r->e, id); break;
    case 6: revdial_engine_end_read(r->e, id); break;
    case 7: revdial_engine_open(r->e, &opts, NULL); break;
    case 8: revdial_engine_drain(r->e); break;
    default:
        if (what > 250) revdial_engine_terminate(r->e);
    }
    rig_drain(r);
}

static void engine_step(rig *r, tape *t)
{
    unsigned what = tape_next(t), type, flags;
    uint32_t id;
    switch (what % 8) {
    case 0:
    case 1:
        type = tape_next(t) % 5;
        flags = tape_next(t);
        id = tape_id(t);
        rig_frame(r, type, flags < 0xF0 ? flags % 16 : flags, id, tape_length(t));
        break;
    case 2: engine_peer_data(r, t); break;
    case 3: engine_peer_bytes(r, t); break;
    case 4: rig_tick(r, tape_next(t) * 50); break;
    case 5: r->held = what & 8; break;
    default: engine_app(r, t);
    }
    if (!r->held) rig_flush(r);
}

static void fuzz_one(const uint8_t *data, size_t len)
{
    static const char *const ours = "rstcode, preamble, drain, promptack, pings, "
                                    "window=65536, streams=16";
    tape t = {data, len};
    unsigned how = tape_next(&t);
    rig_options o = {.role = how & ENGINE_PROXY ? REVDIAL_ROLE_PROXY : REVDIAL_ROLE_BACKEND,
                     .features = how & ENGINE_OURS ? ours : NULL,
                     .carrier = how & ENGINE_WS ? REVDIAL_CARRIER_WEBSOCKET : REVDIAL_CARRIER_RAW,
                     .refuse_streams = (how & ENGINE_REFUSES) != 0};
    rig *r = rig_new(&o);
    FUZZ_CHECK(r != NULL);
    r->quiet = 1;
    r->chunk = how & ENGINE_BYTES ? 1 : 0;
    while (t.left && !r->dead) engine_step(r, &t);
    FUZZ_CHECK(r->heap.peak_bytes < 4u << 20);
    if (!rig_end(r) || test_failures) abort();
}

static void fuzz_seeds(void)
{
    // A stream is opened, fed, read, written to, finished; a ping, a reset, credit, GoAway.
    static const uint8_t calm[] = {0, 1, 1, 1, 0, 6, 0, 1, 2, 0, 1, 30, 6, 1, 1, 6, 2, 1, 9,
                                   0, 1, 4, 1, 0, 6, 3, 1, 6, 5, 1, 0,  2, 1, 0, 7, 4, 9, 6,
                                   7, 0, 0, 1, 2, 2, 0, 0, 1, 8, 1, 0,  0, 3, 0, 0, 0};
    static const uint8_t wild[] = {0, 1, 1, 2, 0, 2, 4, 2, 9, 0, 0, 0, 2, 201, 0, 1, 0, 2, 209};
    static const uint8_t frame[] = {3, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0};
    static const uint8_t text[] = {3, 8, 0x81, 2, 'h', 'i', 0x89, 0, 0x88, 0, 3, 6, 0x82, 126, 1};
    for (int how = 0; how < 32; how++) {
        fuzz_seed_after((uint8_t)how, calm, sizeof calm);
        fuzz_seed_after((uint8_t)how, wild, sizeof wild);
        fuzz_seed_after((uint8_t)how, frame, sizeof frame);
        if (how & ENGINE_WS) fuzz_seed_after((uint8_t)how, text, sizeof text);
    }
}
