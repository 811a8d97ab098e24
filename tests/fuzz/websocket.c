// The bytes of the WebSocket carrier, without anything that makes them likely: in any pieces, with
// the same result, and what comes out are frames.
#define REVDIAL_NO_RUNTIME
#define REVDIAL_SELF_CHECK
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include <stdarg.h>
#include <stdio.h>

#include "engine_util.h"
#include "fuzz.h"

typedef struct outcome {
    int dead, code;
    char text[256];
    uint64_t rx_frames;
} outcome;

static void play(int role, const uint8_t *data, size_t len, size_t chunk, outcome *out)
{
    rig_options o = {.role = role, .carrier = REVDIAL_CARRIER_WEBSOCKET};
    revdial_engine_info info;
    rig *r = rig_new(&o);
    FUZZ_CHECK(r != NULL);
    r->chunk = chunk;
    rig_feed_raw(r, data, len);
    rig_flush(r);
    revdial_engine_get_info(r->e, &info);
    memset(out, 0, sizeof *out);
    out->dead = r->dead;
    out->code = r->dead_code;
    snprintf(out->text, sizeof out->text, "%s", r->text);
    out->rx_frames = info.rx_frames;
    FUZZ_CHECK(r->heap.peak_bytes < 4u << 20);
    if (!rig_end(r) || test_failures) abort();
}

// What yamux says depends on what was answered meanwhile: an id may be used again once its stream
// has ended on both sides, and bytes for a stream that has ended are not counted. What WebSocket
// says does not.
static int is_of_yamux(const outcome *o)
{
    return o->dead && strncmp(o->text, "WebSocket", 9) != 0;
}

static int is_same(const outcome *a, const outcome *b)
{
    return is_of_yamux(a) || is_of_yamux(b) || memcmp(a, b, sizeof *a) == 0;
}

static void fuzz_one(const uint8_t *data, size_t len)
{
    static outcome whole, single, odd;
    for (int role = REVDIAL_ROLE_PROXY; role <= REVDIAL_ROLE_BACKEND; role++) {
        play(role, data, len, 0, &whole);
        play(role, data, len, 1, &single);
        play(role, data, len, 7, &odd);
        FUZZ_CHECK(is_same(&whole, &single));
        FUZZ_CHECK(is_same(&whole, &odd));
    }
}

// A frame with an empty mask, or none, around bytes of yamux.
static void seed_frame(unsigned first, int is_masked, const void *body, size_t len)
{
    uint8_t frame[140] = {(uint8_t)first, (uint8_t)(len | (is_masked ? 0x80 : 0))};
    size_t at = is_masked ? 6 : 2;
    if (len > 125) abort();
    memcpy(frame + at, body, len);
    fuzz_seed(frame, at + len);
}

static void fuzz_seeds(void)
{
    static const uint8_t ping[12] = {0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7};
    static const uint8_t stream[26] = {0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0,   0,
                                       0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 'h', 'i'};
    for (int is_masked = 0; is_masked < 2; is_masked++) {
        seed_frame(0x82, is_masked, ping, sizeof ping);
        seed_frame(0x82, is_masked, stream, sizeof stream);
        seed_frame(0x02, is_masked, stream, 5);
        seed_frame(0x80, is_masked, stream + 5, 10);
        seed_frame(0x89, is_masked, "ping", 4);
        seed_frame(0x88, is_masked, "\3\350bye", 5);
        seed_frame(0x81, is_masked, "text", 4);
    }
    fuzz_seed("\x82\xfe\x01\x00\0\0\0\0", 8);
    fuzz_seed("\x82\x7f\0\0\0\0\0\1\0\0", 10);
}
