// Each record that a peer of the simulated world sends, from its handshake to its session, cut at
// each byte, and each other flaw of world_broken.h at each place, followed by silence, FIN and RST:
// towards a proxy, and from a proxy towards an agent. Beside them an agent serves a client.
#ifndef REVDIAL_TEST_WORLD_CUT_H
#define REVDIAL_TEST_WORLD_CUT_H

#include "world_run.h"

enum {
    CUT_MOST = 4000,
    CUT_AT_ONCE = 48,         // that a proxy has at a time
    CUT_PROBE_US = 300000000  // between transfers beside those that an agent gets
};

static broken cut_list[CUT_MOST];
static size_t cut_count;
static int cut_is_fake;

static void cut_add(const broken *b)
{
    if (cut_count == CUT_MOST) abort();
    cut_list[cut_count++] = *b;
}

static void cut_fill(void)
{
    cut_count = 0;
    for (int place = 0; place < PLACES; place++)
        for (int end = 0; end < ENDS; end++) {
            broken b = {.place = (enum broken_place)place, .end = (enum broken_end)end};
            uint8_t out[BROKEN_MOST];
            b.is_fake_proxy = cut_is_fake;
            for (int flaw = 0; flaw < FLAWS; flaw++) {
                b.flaw = (enum broken_flaw)flaw;
                if (flaw != FLAW_CUT) cut_add(&b);
            }
            b.flaw = FLAW_CUT;
            for (size_t n = broken_good(&b, b.place, out); b.cut < n; b.cut++) cut_add(&b);
        }
}

static void cut_begin(void)
{
    memset(&plan, 0, sizeof plan);
    plan.io_threads = 1;
    plan.proxy_count = plan.agent_count = 1;
    plan.has_records = 1;
    plan.has_fake = cut_is_fake;
    wd.is_fifo = 1;
    wd.yield_one_in = wd.short_one_in = wd.signal_one_in = 0;
    if (cut_is_fake) people_new(AT_HOSTILE, "fake proxy", fake_main, NULL);
    people_do(AT_PROXY, "start", proxy_start, 0);
    people_do(AT_AGENT, "start", agent_start, 0);
    world_await_agents();
}

static void cut_at_proxy(void)
{
    for (size_t i = 0; i < cut_count && !wd.failed; i++) {
        broken *b = malloc(sizeof *b);
        if (!b) abort();
        *b = cut_list[i];
        clients_running++;
        people_new(AT_HOSTILE, "broken", broken_main, b);
        world_sleep_us(20000, "the next");
        if (i % CUT_AT_ONCE == CUT_AT_ONCE - 1) world_probe();
    }
}

// An agent comes by itself, again and again.
static void cut_at_agent(void)
{
    fake_list = cut_list;
    fake_count = cut_count;
    fake_at = 0;
    while (fake_at < fake_count && !wd.failed) {
        world_sleep_us(CUT_PROBE_US, "the agent");
        world_probe();
        if (fake_running > 1) world_fail("an agent has %u connections to a proxy", fake_running);
    }
}

static void *cut_main(void *arg)
{
    (void)arg;
    cut_begin();
    if (cut_is_fake)
        cut_at_agent();
    else
        cut_at_proxy();
    world_probe();
    world_sleep_us(20000000, "the end of what they caused");
    people_do(AT_PROXY, "look", proxy_wait_main, 0);
    world_check_talks();
    people_do(AT_AGENT, "stop", agent_stop, 0);
    people_do(AT_PROXY, "stop", proxy_stop, 0);
    world_sleep_us(1000000, "threads");
    world_check_stopped();
    fake_list = NULL;
    wd.over = 1;
    return NULL;
}

// Plays all. Returns how many there were.
static size_t cut_play(int is_fake)
{
    static script none;
    uint64_t hash;
    none.is_calm = 1;
    none.simple = SIMPLE_LINKS | SIMPLE_V4 | SIMPLE_MORE;
    memset(marks_hit, 0, sizeof marks_hit);
    cut_is_fake = is_fake;
    cut_fill();
    if (!world_play(&none, 0, cut_main, &hash)) test_fail(__FILE__, __LINE__, "%s", wd.why);
    fake_list = NULL;
    return cut_count;
}

#endif
