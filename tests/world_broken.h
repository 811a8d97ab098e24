// Peers of the simulated world that do not keep to the records of world_record.h. Some connect to a
// proxy that wants records, one is a proxy that agents connect to. They send plain bytes, or a
// record that is cut, altered, too long or out of turn, in the handshake or at any time after it,
// and then fall silent, finish or reset. Their connections end within a stated time.
#ifndef REVDIAL_TEST_WORLD_BROKEN_H
#define REVDIAL_TEST_WORLD_BROKEN_H

#include "world_hostile.h"

// What is wrong with a record.
enum broken_flaw {
    FLAW_NONE,  // only what comes after it
    FLAW_CUT,
    FLAW_PLAIN,  // its bytes, and no record
    FLAW_SLOW,   // one byte at a time
    FLAW_SUM,
    FLAW_TYPE,
    FLAW_LENGTH,
    FLAW_ORDER,
    FLAWS
};
// Of which record. Those before it are good.
enum broken_place { PLACE_HELLO, PLACE_HEAD, PLACE_FRAME, PLACES };
enum broken_end { END_SILENT, END_FIN, END_RST, ENDS };

enum {
    BROKEN_SESSION_US = 60000000,  // a session that is silent is dead after 30 s
    BROKEN_STEP_US = 500000,       // a record has arrived, and what it causes
    BROKEN_MOST = 700              // bytes of a record
};

typedef struct broken {
    enum broken_flaw flaw;
    enum broken_place place;
    enum broken_end end;
    size_t cut;  // so many bytes are sent
    int is_fake_proxy, fd, proxy;
} broken;

static const char *const broken_flaws[FLAWS] = {"nothing", "cut",  "plain",  "slow",
                                                "sum",     "type", "length", "order"};

static size_t broken_payload(const broken *b, enum broken_place place, uint8_t *out)
{
    static const char answer[] = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
                                 "Upgrade: revdial\r\nRevdial-Version: 1\r\n\r\n";
    test_rng r = test_rng_seeded(b->cut);
    hostile h = {.kind = HOSTILE_FRAMES, .rng = r};
    memset(out, 0, 300);
    if (place == PLACE_HELLO) return 300;
    if (place == PLACE_FRAME) frame_make(out, 2, 1, 0, 4711);  // a ping
    if (place == PLACE_FRAME) return 12;
    if (!b->is_fake_proxy) return hostile_request(&h, (char *)out, BROKEN_MOST - RECORD_HEAD);
    memcpy(out, answer, sizeof answer - 1);
    return sizeof answer - 1;
}

// The record that belongs there.
static size_t broken_good(const broken *b, enum broken_place place, uint8_t *out)
{
    uint8_t payload[BROKEN_MOST];
    size_t n = broken_payload(b, place, payload);
    return record_make(out, place == PLACE_HELLO ? RECORD_HELLO : RECORD_DATA, payload, n);
}

static size_t broken_record(const broken *b, uint8_t *out)
{
    uint8_t payload[BROKEN_MOST];
    size_t n = broken_payload(b, b->place, payload), whole = broken_good(b, b->place, out);
    int is_hello = b->place == PLACE_HELLO;
    switch (b->flaw) {
    case FLAW_NONE: return 0;
    case FLAW_CUT: return b->cut % whole;
    case FLAW_PLAIN: return broken_payload(b, is_hello ? PLACE_HEAD : b->place, out);
    case FLAW_SLOW: break;
    case FLAW_SUM: out[4 + b->cut % (whole - 4)] ^= (uint8_t)(1 << b->cut % 8); break;
    case FLAW_TYPE: return record_make(out, 200, payload, n);
    case FLAW_LENGTH: out[2] = out[3] = 255; break;
    case FLAW_ORDER: return record_make(out, is_hello ? RECORD_DATA : RECORD_HELLO, payload, n);
    case FLAWS: break;
    }
    return whole;
}

// A session that has such a peer is one: the next record is the flawed one.
static void broken_mark(const broken *b)
{
    static const enum mark at_proxy[] = {MARK_BROKEN_HELLO, MARK_BROKEN_HEAD, MARK_BROKEN_SESSION};
    static const enum mark at_agent[] = {MARK_FAKE_HELLO, MARK_FAKE_HEAD, MARK_FAKE_SESSION};
    if (b->place == PLACE_FRAME && !b->is_fake_proxy && !proxies[b->proxy].up[AGENTS]) return;
    mark_set(b->is_fake_proxy ? at_agent[b->place] : at_proxy[b->place]);
}

static void broken_expect_end(const broken *b, int64_t begun_us)
{
    int64_t most_us = b->place == PLACE_FRAME ? BROKEN_SESSION_US
                                              : HOSTILE_GONE_US * (plan.max_pending ? 4 : 1);
    int is_over = hostile_read(b->fd, begun_us + most_us);
    if (is_over && wd.clock.now_us > begun_us + 5000000) mark_set(MARK_BROKEN_WAITED);
    if (!is_over && !world_is_faulty() && !wd.over)
        world_fail("a peer with a bad record (%s, place %d, end %d) still has its %s after %.1f s",
                   broken_flaws[b->flaw], (int)b->place, (int)b->end,
                   b->is_fake_proxy ? "agent" : "proxy",
                   (double)(wd.clock.now_us - begun_us) / 1e6);
}

static void broken_run(const broken *b)
{
    uint8_t out[BROKEN_MOST];
    int64_t begun = wd.clock.now_us;
    int alive = 1;
    for (int p = 0; p < (int)b->place && alive; p++) {
        size_t n = broken_good(b, (enum broken_place)p, out);
        alive = hostile_send(b->fd, out, n, wd.clock.now_us + 1000000);
        world_sleep_us(BROKEN_STEP_US, "a record");
    }
    if (alive) broken_mark(b);
    size_t n = broken_record(b, out);
    size_t piece = b->flaw == FLAW_SLOW ? 1 : n;
    for (size_t at = 0; at < n && alive; at += piece) {
        alive = hostile_send(b->fd, out + at, piece, wd.clock.now_us + 1000000);
        if (b->flaw == FLAW_SLOW) world_sleep_us(400000, "one byte at a time");
        alive &= wd.clock.now_us < begun + HOSTILE_GONE_US;
    }
    if (b->end == END_FIN) sim_shutdown(b->fd, SHUT_WR);
    if (b->end != END_RST) broken_expect_end(b, begun);
    talk_way way = {b->fd, NULL, 0};
    way_close(&way, b->end == END_RST);
}

static void broken_draw(broken *b, test_rng *r)
{
    b->flaw = (enum broken_flaw)test_below(r, FLAWS);
    b->place = (enum broken_place)test_below(r, PLACES);
    b->end = (enum broken_end)test_below(r, ENDS);
    b->cut = (size_t)test_below(r, 10000);
}

static void *broken_main(void *arg)
{
    broken *b = arg;
    // On a Unix socket there are no records.
    enum net_kind kind = plan.has_families && world_below(2) ? NET_V6 : NET_V4;
    b->fd = net_connect_by(kind, AT_PROXY + b->proxy, PORT_LISTEN);
    if (b->fd >= 0) broken_run(b);
    clients_running--;
    free(b);
    return NULL;
}

// ---- a proxy that agents were told of

static broken *fake_list;  // what it does one after the other; NULL: at random
static size_t fake_count, fake_at;
static unsigned fake_running;

static void *fake_serve(void *arg)
{
    broken b = {0};
    test_rng r = test_rng_seeded(world_below(1 << 30));
    broken_draw(&b, &r);
    if (fake_list && fake_at < fake_count) b = fake_list[fake_at++];
    b.is_fake_proxy = 1;
    b.fd = (int)(intptr_t)arg;
    broken_run(&b);
    fake_running--;
    return NULL;
}

static void *fake_main(void *arg)
{
    int listener = net_listen(NET_V4, PORT_FAKE);
    while (!wd.over) {
        struct sockaddr_storage from;
        socklen_t len = sizeof from;
        int fd = sim_accept4(listener, (struct sockaddr *)&from, &len, 0);
        struct pollfd p = {listener, POLLIN, 0};
        if (fd >= 0) fake_running++;
        if (fd >= 0)
            people_new(AT_HOSTILE, "fake proxy", fake_serve, (void *)(intptr_t)fd);
        else
            sim_poll(&p, 1, 1000000);
    }
    (void)arg;
    return NULL;
}

#endif
