// Hostile peers of the simulated world, and faults of its network and its system. Each is one
// operation of a script.
#ifndef REVDIAL_TEST_WORLD_HOSTILE_H
#define REVDIAL_TEST_WORLD_HOSTILE_H

#include "world_people.h"

enum hostile_kind {
    HOSTILE_SILENT,   // connects where backends do, and says nothing
    HOSTILE_TRICKLE,  // a request, one byte at a time
    HOSTILE_GARBAGE,  // bytes at random
    HOSTILE_GUESSER,  // wrong secrets
    HOSTILE_LEAVES,   // half of a request, then FIN or RST
    HOSTILE_FRAMES,   // registers, and sends frames at random
    HOSTILE_OPENS,    // registers, and opens and resets streams as fast as it can
    HOSTILE_DEAF,     // registers, and reads nothing
    HOSTILE_CLIENT,   // a client that sends nothing, or bytes that are no transfer, and vanishes
    HOSTILE_KINDS
};
static const char *const hostile_names[HOSTILE_KINDS] = {
    "silent", "trickle", "garbage", "guesser", "leaves", "frames", "opens", "deaf", "client"};

enum {
    HOSTILE_GONE_US = 14000000,  // a stranger who is not in is disconnected within this
    HOSTILE_LASTS_US = 20000000  // how long one that is in goes on
};

typedef struct hostile {
    enum hostile_kind kind;
    int proxy;
    int has_records;  // what it says is in them
    test_rng rng;
} hostile;

static uint64_t hostile_pick(hostile *h, uint64_t bound)
{
    return test_below(&h->rng, bound);
}

static int hostile_connect(const hostile *h)
{
    return net_connect(AT_PROXY + h->proxy, PORT_LISTEN);
}

// Reads and drops what comes until the connection is over or the time is up.
//   returns  1 it is over
static int hostile_read(int fd, int64_t until_us)
{
    uint8_t buf[2048];
    while (wd.clock.now_us < until_us) {
        struct pollfd p = {fd, POLLIN, 0};
        int left_ms = (int)((until_us - wd.clock.now_us) / 1000) + 1;
        sim_poll(&p, 1, left_ms);
        ssize_t n = sim_recv(fd, buf, sizeof buf, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return 1;
    }
    return 0;
}

// Returns 0 once the connection takes no more.
static int hostile_send(int fd, const void *bytes, size_t len, int64_t until_us)
{
    const uint8_t *at = bytes;
    while (len > 0 && wd.clock.now_us < until_us) {
        ssize_t n = sim_send(fd, at, len, 0);
        struct pollfd p = {fd, POLLOUT, 0};
        if (n < 0 && errno != EAGAIN && errno != EINTR) return 0;
        if (n < 0) sim_poll(&p, 1, 100);
        if (n < 0) continue;
        at += n;
        len -= (size_t)n;
    }
    return len == 0;
}

// Those that mean to get in speak as the port wants it. On a Unix socket there are no records.
static void hostile_greet(hostile *h, int fd)
{
    static const uint8_t hello[300];
    uint8_t record[RECORD_HEAD + sizeof hello];
    char name[60];
    net_name(fd, name);
    int is_in = h->kind == HOSTILE_GUESSER || h->kind >= HOSTILE_FRAMES;
    h->has_records = plan.has_records && is_in && strcmp(name, "unix") != 0;
    if (!h->has_records) return;
    size_t n = record_make(record, RECORD_HELLO, hello, sizeof hello);
    hostile_send(fd, record, n, wd.clock.now_us + 1000000);
}

static int hostile_say(const hostile *h, int fd, const void *bytes, size_t len, int64_t until_us)
{
    uint8_t record[RECORD_HEAD + 600];
    if (!h->has_records) return hostile_send(fd, bytes, len, until_us);
    return hostile_send(fd, record, record_make(record, RECORD_DATA, bytes, len), until_us);
}

static size_t hostile_request(hostile *h, char *out, size_t size)
{
    int n = snprintf(out, size,
                     "GET /revdial HTTP/1.1\r\nHost: p\r\nConnection: Upgrade\r\n"
                     "Upgrade: revdial\r\nRevdial-Upgrade: revdial\r\nRevdial-Version: 1\r\n"
                     "Revdial-Name: evil-%d\r\nRevdial-Instance: e.%03u\r\n"
                     "Revdial-Features: rstcode, preamble, drain, promptack\r\n"
                     "Authorization: Bearer %s\r\n\r\n",
                     (int)hostile_pick(h, 3), (unsigned)hostile_pick(h, 1000),
                     h->kind == HOSTILE_GUESSER ? "wrong" : "evil");
    return (size_t)n;
}

// One who is not let in must not be kept longer than stated.
static void hostile_expect_end(const hostile *h, int fd, int64_t begun_us)
{
    // With few places for pending connections it may have had to wait for one.
    int64_t most_us = HOSTILE_GONE_US * (plan.max_pending ? 4 : 1);
    if (!hostile_read(fd, begun_us + most_us) && !world_is_faulty())
        world_fail("a stranger (%s) is still connected after %.1f s", hostile_names[h->kind],
                   (double)(wd.clock.now_us - begun_us) / 1e6);
}

static void hostile_stranger(hostile *h, int fd)
{
    char text[600];
    uint8_t junk[300];
    int64_t begun = wd.clock.now_us;
    size_t len = hostile_request(h, text, sizeof text);
    if (h->kind == HOSTILE_TRICKLE) {
        for (size_t i = 0; i < len && wd.clock.now_us < begun + HOSTILE_GONE_US; i++) {
            if (!hostile_send(fd, text + i, 1, wd.clock.now_us + 1000000)) break;
            world_sleep_us(400000, "one byte at a time");
        }
    } else if (h->kind == HOSTILE_GARBAGE) {
        for (size_t i = 0; i < sizeof junk; i++) junk[i] = (uint8_t)hostile_pick(h, 256);
        hostile_send(fd, junk, 1 + hostile_pick(h, sizeof junk), wd.clock.now_us + 1000000);
    } else if (h->kind == HOSTILE_GUESSER) {
        hostile_say(h, fd, text, len, wd.clock.now_us + 1000000);
    } else if (h->kind == HOSTILE_LEAVES) {
        hostile_send(fd, text, 1 + hostile_pick(h, len - 1), wd.clock.now_us + 1000000);
        talk_way way = {fd, NULL, 0};
        world_sleep_us((int64_t)hostile_pick(h, 3000000), "a moment");
        way_close(&way, (int)hostile_pick(h, 2));
        return;
    }
    hostile_expect_end(h, fd, begun);
    sim_close(fd);
}

// ---- those that have registered

static void frame_make(uint8_t out[12], unsigned type, unsigned flags, uint32_t id, uint32_t len)
{
    uint8_t f[12] = {0,
                     (uint8_t)type,
                     (uint8_t)(flags >> 8),
                     (uint8_t)flags,
                     (uint8_t)(id >> 24),
                     (uint8_t)(id >> 16),
                     (uint8_t)(id >> 8),
                     (uint8_t)id,
                     (uint8_t)(len >> 24),
                     (uint8_t)(len >> 16),
                     (uint8_t)(len >> 8),
                     (uint8_t)len};
    memcpy(out, f, sizeof f);
}

static int hostile_frames(hostile *h, int fd, int64_t until)
{
    uint8_t f[12 + 64];
    unsigned type = (unsigned)hostile_pick(h, 5), flags = (unsigned)hostile_pick(h, 16);
    uint32_t id = (uint32_t)hostile_pick(h, 8), len = (uint32_t)hostile_pick(h, 64);
    if (hostile_pick(h, 20) == 0) len = UINT32_MAX - (uint32_t)hostile_pick(h, 9);
    frame_make(f, type, flags, id, len);
    for (size_t i = 12; i < sizeof f; i++) f[i] = (uint8_t)hostile_pick(h, 256);
    return hostile_say(h, fd, f, 12 + (type == 0 && len <= 64 ? len : 0), until);
}

// Streams that a backend opens: one for each call, reset at once or left half open.
static int hostile_opens(hostile *h, int fd, uint32_t *id, int64_t until)
{
    uint8_t f[24];
    *id += 2;
    frame_make(f, 1, 1, *id, 0);
    frame_make(f + 12, 1, 8, *id, 2);
    return hostile_say(h, fd, f, hostile_pick(h, 4) ? 24 : 12, until);
}

static void hostile_backend(hostile *h, int fd)
{
    char text[600];
    int64_t until = wd.clock.now_us + HOSTILE_LASTS_US;
    uint32_t id = 0;
    size_t len = hostile_request(h, text, sizeof text);
    int alive = hostile_say(h, fd, text, len, until);
    world_sleep_us(200000, "its registration");
    if (h->has_records && proxies[h->proxy].up[AGENTS]) mark_set(MARK_HOSTILE_IN_RECORDS);
    for (int i = 0; alive && i < 400 && wd.clock.now_us < until; i++) {
        if (h->kind == HOSTILE_FRAMES) alive = hostile_frames(h, fd, until);
        if (h->kind == HOSTILE_OPENS) alive = hostile_opens(h, fd, &id, until);
        if (h->kind == HOSTILE_DEAF) world_sleep_us(100000, "nothing");
        if (i % 8 == 0) world_sleep_us((int64_t)hostile_pick(h, 3000), "a moment");
    }
    if (h->kind != HOSTILE_DEAF) hostile_read(fd, wd.clock.now_us + 2000000);
    talk_way way = {fd, NULL, 0};
    way_close(&way, (int)hostile_pick(h, 2));
}

static void hostile_client(hostile *h)
{
    uint8_t bytes[64] = "EVIL";
    int fd = net_connect(AT_PROXY + h->proxy,
                         PORT_CLIENTS + (int)hostile_pick(h, (uint64_t)plan.agent_count));
    talk_way way = {fd, NULL, 0};
    if (fd < 0) return;
    if (hostile_pick(h, 3))
        hostile_send(fd, bytes, 4 + hostile_pick(h, 60), wd.clock.now_us + 1000000);
    world_sleep_us((int64_t)hostile_pick(h, 5000000), "a moment");
    way_close(&way, (int)hostile_pick(h, 2));
}

static void *hostile_main(void *arg)
{
    hostile *h = arg;
    int fd;
    if (h->kind == HOSTILE_CLIENT) {
        hostile_client(h);
    } else if ((fd = hostile_connect(h)) >= 0) {
        hostile_greet(h, fd);
        if (h->kind < HOSTILE_FRAMES)
            hostile_stranger(h, fd);
        else
            hostile_backend(h, fd);
    }
    clients_running--;
    free(h);
    return NULL;
}

#endif
