// A run of the simulated world: who begins when, what must hold at its end.
#ifndef REVDIAL_TEST_WORLD_RUN_H
#define REVDIAL_TEST_WORLD_RUN_H

#include "world_script.h"

enum {
    WORLD_UP_US = 90000000,      // an agent is connected within this, once nothing interferes
    WORLD_DONE_US = 1300000000,  // the longest wait in it is TCP's own, of 15 minutes
    WORLD_SETTLE_US = 100000000
};

static const char *const machine_names[MACHINES] = {"proxy-0", "proxy-1",   "agent-0", "agent-1",
                                                    "agent-2", "targets",   "client",  "client-2",
                                                    "hostile", "hostile-2", "egress"};

// ---- what must hold

// Every agent has its sessions. Waits for that.
static void world_await_agents(void)
{
    int64_t until = wd.clock.now_us + WORLD_UP_US;
    for (int p = 0; p < plan.proxy_count && plan.has_peers; p++)
        while (!proxies[p].peers_up && !wd.failed) {
            if (wd.clock.now_us > until) world_fail("proxy %d has no peer", p);
            world_sleep_us(100000, "a peer");
        }
    for (int p = 0; p < plan.proxy_count; p++)
        for (int a = 0; a < plan.agent_count; a++)
            while ((p == 0 || plan.all_urls[a]) && !proxies[p].up[a] && !wd.failed) {
                if (wd.clock.now_us > until)
                    world_fail("%s has no session to proxy %d", agent_names[a], p);
                world_sleep_us(100000, "a session");
            }
}

static void world_await_people(void)
{
    int64_t until = wd.clock.now_us + WORLD_DONE_US;
    while ((clients_running || faults_running || changes_running) && !wd.failed) {
        if (wd.clock.now_us > until) {
            char waits[400] = "";
            world_tell_waits(waits, sizeof waits);
            world_fail("%u clients and targets are not done;%s", clients_running, waits);
        }
        world_sleep_us(1000000, "clients");
    }
}

// How long a transfer may take at most, where nothing is broken, whatever hostile peers do: all
// that was ever to be sent at the slowest rate, each pause of a slow reader, each question and its
// answer.
static int64_t world_talk_bound_us(const talk *t)
{
    enum { SLOWEST = 200000, DIAL_US = 20000000, PING_US = 300000, SLOW_PIECE = 500 };
    int64_t bytes = 0, own = (int64_t)(t->plan[0] + t->plan[1]);
    int64_t round_us = 2 * tcp_links[AT_PROXY][AT_AGENT].delay_us + 1000;
    int64_t rate = (int64_t)tcp_window_least * 1000000 / round_us;  // what one window carries
    if (rate > SLOWEST) rate = SLOWEST;
    for (unsigned i = 0; i < talk_count; i++)
        bytes += (int64_t)(talks[i].plan[0] + talks[i].plan[1]);
    int64_t us = DIAL_US + 2 * bytes * 1000000 / rate;
    if (t->slow[0] || t->slow[1]) us += own / SLOW_PIECE * TALK_SLOW_US;
    if (t->mode == TALK_PINGS) us += own / TALK_PING * PING_US;
    return us;
}

static void world_check_talk_time(const talk *t)
{
    int64_t took = t->over_us - t->begun_us;
    if (took > world_talk_bound_us(t))
        world_fail("transfer %u (%s, mode %d) took %.1f s", t->key, t->how, (int)t->mode,
                   (double)took / 1e6);
}

// EOF was no lie either where it came before the threads of the other end were done.
static void world_check_shared(const talk *t)
{
    for (int x = 0; x < 2; x++) {
        const talk_side *me = &t->side[x], *peer = &t->side[1 - x];
        if (!t->third[1 - x] || !me->eof || (t->has_unix && !t->is_strict)) continue;
        if (!peer->fin || me->read != peer->written)
            world_fail("transfer %u (%s): EOF of side %d was a lie: %zu of %zu bytes", t->key,
                       t->how, x, me->read, peer->written);
    }
}

static void world_check_talks(void)
{
    for (unsigned i = 0; i < talk_count; i++) {
        const talk *t = &talks[i];
        world_check_shared(t);
        if (!t->is_strict) continue;
        if (t->may_refuse && !t->side[1].begun) {
            if (t->side[0].error) mark_set(MARK_REFUSED_BY_CHANGE);
            if (!t->side[0].error) world_fail("transfer %u (%s) is refused as EOF", t->key, t->how);
            continue;
        }
        world_check_talk_time(t);
        if (talk_is_whole(t)) continue;
        world_fail("transfer %u (%s, mode %d) is not whole: client %zu of %zu written, %zu of %zu "
                   "read, error %d; target %zu written, %zu read, error %d",
                   t->key, t->how, (int)t->mode, t->side[0].written, t->plan[0], t->side[0].read,
                   t->plan[1], t->side[0].error, t->side[1].written, t->side[1].read,
                   t->side[1].error);
    }
}

// One transfer by each port, in which nothing may fail.
static void world_probe(void)
{
    for (int p = 0; p < plan.proxy_count; p++)
        for (int a = 0; a < plan.agent_count; a++) {
            client_order *c = calloc(1, sizeof *c);
            talk *t = talk_new("probe");
            if (!c || !t) abort();
            t->plan[0] = 1000;
            t->plan[1] = 20000;
            t->is_strict = 1;
            c->t = t;
            c->agent = a;
            c->proxy = plan.all_urls[a] || plan.has_peers ? p : 0;
            clients_running++;
            people_new(AT_CLIENT, "probe", client_tcp, c);
        }
    world_await_people();
}

// What a session keeps for others is bounded, at any time.
static void world_check_queues(int p)
{
    enum { SESSIONS = 64, QUEUED_MOST = 600000, MEMORY_MOST = 24 << 20 };
    revdial_session *list[SESSIONS];
    machine *home = wd.self->machine;
    if (!proxies[p].p || proxies[p].is_closing) return;
    proxies[p].dials++;
    wd.self->machine = &machines[AT_PROXY + p];  // a thread of that process
    size_t n = revdial_proxy_list(proxies[p].p, NULL, list, SESSIONS);
    for (size_t i = 0; i < n && i < SESSIONS; i++) {
        revdial_session_info info;
        revdial_session_get_info(list[i], &info);
        if (info.queued_bytes > QUEUED_MOST || info.memory_bytes > MEMORY_MOST)
            world_fail("session of %s: %zu bytes are queued, %zu in memory", info.name,
                       info.queued_bytes, info.memory_bytes);
        revdial_session_unref(list[i]);
    }
    wd.self->machine = home;
    proxies[p].dials--;
}

// Nothing that a client or a stranger has caused is left.
static void world_check_gone(void)
{
    for (int p = 0; p < plan.proxy_count && !wd.failed; p++) {
        revdial_stats s;
        revdial_proxy_get_stats(proxies[p].p, &s);
        machine *m = &machines[AT_PROXY + p];
        if (s.streams) world_fail("proxy %d has %u streams that nobody uses", p, s.streams);
        // A session whose socket a thread of the application has read has a descriptor to wake it.
        int most = proxies[p].fds_idle + 2 * (int)s.sessions + (plan.has_peers ? PEER_FDS : 0);
        if (m->fd_count > most || m->fd_count < proxies[p].fds_idle + (int)s.sessions)
            world_fail("proxy %d has %d descriptors: %d and %u sessions", p, m->fd_count,
                       proxies[p].fds_idle, s.sessions);
    }
}

static void world_check_stopped(void)
{
    for (int i = 0; i < AT_TARGET; i++) {
        machine *m = &machines[i];
        if (m->fd_count) world_fail("%s has left %d descriptors open", m->name, m->fd_count);
        if (m->heap_blocks)
            world_fail("%s has left %zu bytes in %zu blocks", m->name, m->heap_bytes,
                       m->heap_blocks);
        if (m->threads) world_fail("%s has left %u threads", m->name, m->threads);
    }
    for (unsigned i = 0; i < unix_path_count; i++)
        if (unix_paths[i].exists && unix_paths[i].is_ours)
            world_fail("%s is still there", unix_paths[i].path);
}

// ---- a run

static void *proxy_wait_main(void *arg)
{
    world_check_gone();
    (void)arg;
    return NULL;
}

static void *director_main(void *arg)
{
    (void)arg;
    for (int i = 0; i < plan.proxy_count; i++) people_do(AT_PROXY + i, "start", proxy_start, i);
    for (int i = 0; i < plan.agent_count; i++) people_do(AT_AGENT + i, "start", agent_start, i);
    world_await_agents();
    egress_is_bad = !story.is_calm;
    for (int i = 0; i < story.count && !wd.failed; i++) {
        world_sleep_us(story.ops[i].wait_us, "the next operation");
        op_do(&story.ops[i]);
        world_check_queues(i % plan.proxy_count);
    }
    world_await_people();
    faults_end();
    if (!story.is_calm) world_sleep_us(WORLD_SETTLE_US, "the faults to be over");
    world_await_agents();
    world_probe();
    world_sleep_us(20000000, "the end of what clients caused");
    people_do(AT_PROXY, "look", proxy_wait_main, 0);
    world_check_talks();
    for (int i = 0; i < plan.agent_count; i++) people_do(AT_AGENT + i, "stop", agent_stop, i);
    for (int i = 0; i < plan.proxy_count; i++) people_do(AT_PROXY + i, "stop", proxy_stop, i);
    world_sleep_us(31000000, "the resolver");
    world_check_stopped();
    wd.over = 1;
    return NULL;
}

static void world_simplify(unsigned simple)
{
    if (simple & SIMPLE_TURNS) {
        wd.is_fifo = 1;
        wd.yield_one_in = 0;
    }
    if (simple & SIMPLE_CALLS) wd.short_one_in = wd.signal_one_in = 0;
    if (simple & SIMPLE_LINKS) links_quicken();
    if (simple & SIMPLE_PLAN) {
        plan.agent_count = plan.proxy_count = 1;
        plan.has_peers = 0;
        plan.spin_us = 0;
        memset(&plan.limits, 0, sizeof plan.limits);
    }
}

static void world_begin(const script *s, int trace)
{
    test_rng r = test_rng_seeded(s->seed);
    memset(&wd, 0, sizeof wd);
    memset(&dns, 0, sizeof dns);
    memset(proxies, 0, sizeof proxies);
    memset(agents, 0, sizeof agents);
    memset(&futex_waits, 0, sizeof futex_waits);
    wd.trace = trace;
    people_tries = PEOPLE_TRIES;
    egress_is_bad = 0;
    record_fails_one_in = egress_bad_one_in = pipe_denied_one_in = 0;
    people_hear = NULL;
    wd.clock.now_us = (int64_t)1 << pick(&r, 48);
    talk_count = handlers_running = clients_running = faults_running = changes_running = 0;
    restarts_running = 0;
    fake_running = 0;
    fault_us = -1;
    for (int i = 0; i < MACHINES; i++) machine_init(&machines[i], i, machine_names[i]);
    plan_draw(&r, s->seed);
    links_draw(&r);
    if (!(s->simple & SIMPLE_MORE)) plan_draw_more(s->seed);
    dns_families = DNS_V4;
    unix_path_count = 0;
    tcp_family_down = 0;
    if (!(s->simple & SIMPLE_V4)) plan_draw_families(s->seed);
    wd.is_fifo = pick(&r, 4) == 0;
    wd.yield_one_in = pick(&r, 3) ? 4u << pick(&r, 6) : 0;
    wd.short_one_in = pick(&r, 3) ? 0 : 2u << pick(&r, 5);
    wd.signal_one_in = pick(&r, 3) ? 0 : 4u << pick(&r, 5);
    wd.rng = test_rng_seeded(test_random(&r));
    world_simplify(s->simple);
}

static void world_count_marks(void)
{
    static const enum mark of[LACKS] = {MARK_NO_MEMORY, MARK_NO_DESCRIPTOR, MARK_NO_THREAD, MARKS,
                                        MARK_NO_BUFFER};
    for (int i = 0; i < MACHINES; i++)
        for (int k = 0; k < LACKS; k++)
            if (of[k] != MARKS) marks_hit[of[k]] += machines[i].lacked[k];
    marks_hit[MARK_RST_OF_OUR_OWN] += tcp_resets;
    marks_hit[MARK_TCP_TIMED_OUT] += tcp_timeouts;
    marks_hit[MARK_RESOLVER_SILENT] += dns.asked[DNS_SILENT];
    marks_hit[MARK_RESOLVER_LIED] += dns.asked[DNS_LIES];
    marks_hit[story.is_calm ? MARK_CALM : MARK_SETTLED_AFTER_FAULTS] += !wd.failed;
    tcp_resets = tcp_timeouts = tcp_bytes = 0;
}

static void world_end(void)
{
    world_count_marks();
    if (!wd.failed) {
        for (int i = 0; i < MACHINES; i++) machine_end(&machines[i]);
        while (tcp_conns) tcp_free(tcp_conns);
        fibers_end();
    }
    for (int i = 0; i < TCP_LISTENERS; i++) tcp_listeners[i] = NULL;
    tcp_conns = NULL;
    free(wd.clock.heap);
    memset(&wd.clock, 0, sizeof wd.clock);
}

// Plays a script, or what another director does of it. Returns 1 if all went well; else wd.why says
// what did not.
static int world_play(const script *s, int trace, void *(*director)(void *), uint64_t *hash)
{
    story = *s;
    world_begin(s, trace);
    for (int kind = NET_V4; kind < NET_KINDS; kind++)
        if (kind == NET_V4 || (plan.has_families && kind != NET_BOTH))
            people_new(AT_TARGET, "targets", target_main, (void *)(intptr_t)kind);
    if (plan.has_fake) people_new(AT_HOSTILE, "fake proxy", fake_main, NULL);
    people_new(AT_EGRESS, "egress", egress_main, (void *)(intptr_t)PORT_CONNECT);
    people_new(AT_EGRESS, "egress", egress_main, (void *)(intptr_t)PORT_SOCKS);
    people_new(AT_CLIENT, "director", director, NULL);
    world_loop();
    *hash = wd.hash;
    int ok = !wd.failed;
    world_end();
    return ok;
}

static inline int world_run(const script *s, int trace, uint64_t *hash, char *why, size_t size)
{
    int ok = world_play(s, trace, director_main, hash);
    snprintf(why, size, "%s", wd.why);
    return ok;
}

#endif
