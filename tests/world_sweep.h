// A sweep: a small but whole scenario of the simulated world, in which the n-th call of a kind
// fails, once, for a while or for ever. A proxy and an agent start; a client of a port and one that
// dials send and receive, with a half-close each way; the session drains; all stop. Nothing may
// crash, leak, lie or last, and where something ended by the failure, a text says of what call.
#ifndef REVDIAL_TEST_WORLD_SWEEP_H
#define REVDIAL_TEST_WORLD_SWEEP_H

#include "world_run.h"

enum {
    SWEEP_CONNECT_US = 60000000,  // until a session is up, or will not be under fire
    SWEEP_TALK_US = 200000000,    // a transfer has ended: silence is noticed after 105 s
    SWEEP_STOP_US = 20000000,     // agent and proxy have stopped
    SWEEP_NTH_MOST = 5000,        // no scenario makes so many calls
    SWEEP_FAILURES = 20           // of one test; no more are looked for
};

// How the agent serves, on what carrier, how the proxy's process uses its stream, and the family of
// addresses, by default IPv4. In SWEEP_BOTH the port takes IPv4 and IPv6, and of the two addresses
// of the target's name the first, of IPv4, is dead.
enum sweep_way {
    SWEEP_TARGET,
    SWEEP_NAME,
    SWEEP_HANDLER,
    SWEEP_BULK,
    SWEEP_RECORDS,
    SWEEP_V6,
    SWEEP_BOTH,
    SWEEP_UNIX,
    SWEEP_WAYS
};
static const char *const sweep_ways[SWEEP_WAYS] = {"target",  "name", "handler", "bulk",
                                                   "records", "v6",   "both",    "unix"};

enum sweep_how {
    SWEEP_ONCE,
    SWEEP_WHILE,  // until something has failed by it; then all must be well again
    SWEEP_EVER,   // also while it stops
    SWEEP_HOWS
};
static const char *const sweep_hows[SWEEP_HOWS] = {"once", "while", "ever"};

typedef struct sweep {
    enum sweep_way way;
    const struct fault_error *error;  // NULL: none
    unsigned nth;
    enum sweep_how how;
    uint64_t seed;
    unsigned interrupts, shorts;  // each such call
    int is_broken;                // the session is gone for the agent alone, after the transfers
    int has_ended, is_told;       // something, by the failure; a text says so
    char told[400];               // the first that was said, for a report
} sweep;
static sweep sw;

// ---- what is said

// One of the words that stand between bars?
static int sweep_has_word(const char *msg, const char *words)
{
    char word[40];
    for (const char *at = words; *at; at += *at == '|') {
        size_t len = strcspn(at, "|");
        snprintf(word, sizeof word, "%.*s", (int)len, at);
        if (strstr(msg, word)) return 1;
        at += len;
    }
    return 0;
}

// The reason is the error, except where there is another way: without getrandom(2) there would be a
// device, and a path of which nothing can be told is taken for one in use.
static int sweep_has_reason(const char *msg)
{
    enum fault_call call = sw.error->call;
    int is_path = call == FAULT_lstat || call == FAULT_connect;
    return call == FAULT_getrandom || strstr(msg, strerror(sw.error->error)) ||
           strstr(msg, "memory") || (is_path && strstr(msg, strerror(EADDRINUSE)));
}

static void sweep_hear(const char *who, const char *msg)
{
    int is_start = !strcmp(who, "proxy") || !strcmp(who, "agent");
    if (!sw.error || !fault.hits) return;
    if (is_start || !strcmp(who, "session.down")) sw.has_ended = 1;
    size_t used = strlen(sw.told);
    snprintf(sw.told + used, sizeof sw.told - used, "%s %s; ", who, msg);
    int is_named = sweep_has_word(msg, fault_calls[sw.error->call].words);
    if (is_named && (!is_start || sweep_has_reason(msg))) sw.is_told = 1;
    if (is_start && sw.how == SWEEP_WHILE) fault.is_off = 1;
}

// What a call of revdial.h returned, or a descriptor of revdial_stream_fd(), tells as well.
static int sweep_is_told_by(const talk_side *side)
{
    return side->error == -1000 + REVDIAL_ENOMEM || side->error == -1000 + REVDIAL_ERESET ||
           side->error == REVDIAL_ENOMEM || side->error == REVDIAL_ESYS ||
           side->error == -ECONNRESET;
}

static void sweep_check_told(void)
{
    for (unsigned i = 0; i < talk_count; i++) {
        if (!talk_is_whole(&talks[i])) sw.has_ended = 1;
        if (sw.way == SWEEP_HANDLER && sweep_is_told_by(&talks[i].side[1])) sw.is_told = 1;
        if (i == 1 && sweep_is_told_by(&talks[i].side[0])) sw.is_told = 1;
    }
    if (!sw.error || !fault.hits || !sw.has_ended || sw.is_told) return;
    // A connection that was gone before it was accepted is nobody's.
    if (sw.error->call == FAULT_accept4 && !fault_is_of_process(sw.error->error)) return;
    if (!fault_calls[sw.error->call].words[0])
        world_fail("it ends what it should not end: %s", sw.told);
    world_fail("no text has one of \"%s\": %s", fault_calls[sw.error->call].words, sw.told);
}

// ---- the scenario

// So slow that a few megabytes show how fast it is.
static void sweep_bulk(void)
{
    tcp_window_least = tcp_window_most = 1 << 20;
    tcp_links[AT_PROXY][AT_AGENT].bytes_per_s = 40000000;
    plan.limits.stream_window = 1 << 20;
}

// The proxy listens for all families. Sockets of a process that died are where it does so.
static void sweep_families(void)
{
    static const enum net_kind kinds[SWEEP_WAYS] = {
        [SWEEP_V6] = NET_V6, [SWEEP_BOTH] = NET_BOTH, [SWEEP_UNIX] = NET_UNIX};
    enum net_kind kind = kinds[sw.way], direct = kind == NET_BOTH ? NET_V6 : kind;
    if (kind == NET_V4) return;
    plan.has_families = 1;
    plan.of_port[0] = kind;
    plan.of_agent[0] = plan.of_target[0] = direct;
    if (kind == NET_BOTH) dns_families = DNS_V4_DEAD;
    people_new(AT_TARGET, "targets", target_main, (void *)(intptr_t)direct);
    path_make_stale(PORT_LISTEN);
    if (kind == NET_UNIX) path_make_stale(PORT_CLIENTS);
}

static void sweep_plan(void)
{
    memset(&plan, 0, sizeof plan);
    plan.io_threads = 1;
    plan.proxy_count = plan.agent_count = 1;
    int has_name = sw.way == SWEEP_NAME || sw.way == SWEEP_BOTH;
    plan.serves[0] = has_name                  ? SERVES_HOST
                     : sw.way == SWEEP_HANDLER ? SERVES_HANDLER
                                               : SERVES_TARGET;
    plan.is_bulk = sw.way == SWEEP_BULK;
    plan.proxy_protocol = sw.way == SWEEP_NAME || sw.way == SWEEP_V6      ? 2
                          : sw.way == SWEEP_BULK || sw.way == SWEEP_UNIX;
    plan.has_records = sw.way == SWEEP_RECORDS;
    plan.egress[0] = sw.way == SWEEP_HANDLER ? 1 : sw.way == SWEEP_RECORDS ? 2 : 0;
    if (plan.is_bulk) sweep_bulk();
    sweep_families();
    plan.is_websocket[0] = plan.is_digest[0] = sw.way == SWEEP_NAME;
    memset(&fault, 0, sizeof fault);
    fault.interrupts = sw.interrupts;
    wd.short_one_in = sw.shorts;
    wd.yield_one_in = sw.seed ? 8 : 0;
    wd.is_fifo = !sw.seed;
    people_hear = sweep_hear;
    if (!sw.error) return;
    fault.call = sw.error->call;
    fault.error = sw.error->error;
    fault.for_ever = sw.how != SWEEP_ONCE;
    fault.nth = sw.nth;
    if (sw.how == SWEEP_EVER) people_tries = 0;
}

// Returns 1 if there is a session within so long.
static int sweep_is_up(int64_t us)
{
    int64_t until = wd.clock.now_us + us;
    while (!proxies[0].up[0] && wd.clock.now_us < until && !wd.failed)
        world_sleep_us(10000, "a session");
    return proxies[0].up[0] > 0;
}

static int sweep_is_over(int64_t us)
{
    int64_t until = wd.clock.now_us + us;
    while (clients_running && wd.clock.now_us < until && !wd.failed)
        world_sleep_us(10000, "transfers");
    return !clients_running;
}

static void sweep_talk(int is_dial)
{
    client_order *c = calloc(1, sizeof *c);
    talk *t = talk_new(is_dial ? "dial" : "client");
    if (!c || !t) abort();
    t->mode = is_dial ? TALK_DUPLEX : TALK_CLIENT_FIRST;
    t->plan[0] = plan.is_bulk ? 4000000 : 3000;
    t->plan[1] = plan.is_bulk ? 4000000 : 30000;
    t->is_strict = !sw.error;
    c->t = t;
    c->is_early = is_dial;
    c->is_fd = is_dial && sw.way == SWEEP_HANDLER;
    clients_running++;
    if (is_dial && proxies[0].p) {
        proxies[0].dials++;
        people_new(AT_PROXY, "dial", client_dial, c);
    } else {
        people_new(AT_CLIENT, "client", client_tcp, c);
    }
}

static void sweep_talks(void)
{
    sweep_talk(0);
    sweep_talk(1);
    if (sweep_is_over(SWEEP_TALK_US)) return;
    if (sw.how == SWEEP_WHILE) fault.is_off = 1;
    if (sw.how == SWEEP_WHILE && sweep_is_over(SWEEP_TALK_US)) return;
    // A client that nobody can accept waits in the queue.
    if (sw.how == SWEEP_EVER && sw.error && sw.error->call == FAULT_accept4) return;
    char waits[400] = "";
    world_tell_waits(waits, sizeof waits);
    world_fail("transfers do not end;%s", waits);
}

// Sessions finish what they have, in the proxy's process; the agent comes back.
static void *sweep_drain(void *arg)
{
    revdial_session *list[4];
    size_t n = revdial_proxy_list(proxies[0].p, NULL, list, 4);
    (void)arg;
    for (size_t i = 0; i < n && i < 4; i++) {
        revdial_session_drain(list[i], 1000);
        revdial_session_unref(list[i]);
    }
    return NULL;
}

// The session's connection is gone for the agent. The proxy hears of it 50 ms later.
static void sweep_break(void)
{
    tcp_links[AT_PROXY][AT_AGENT].delay_us = 50000;
    in_addr_t agent = htonl(MACHINE_BASE + AT_AGENT);
    for (tcp_conn *c = tcp_conns; c; c = c->next)
        for (int i = 0; i < 2; i++)
            if (c->link == &tcp_links[AT_PROXY][AT_AGENT] && c->e[i].own.sin_addr.s_addr == agent)
                tcp_reset(&c->e[i]);
}

// Does the agent's link have the proxy's only session?
static void *sweep_look(void *is_same)
{
    revdial_session *s = NULL;
    revdial_session_info info = {0};
    revdial_link_info link = {0};
    size_t n = revdial_proxy_list(proxies[0].p, NULL, &s, 1);
    if (s) revdial_session_get_info(s, &info);
    if (s) revdial_session_unref(s);
    revdial_agent_list_links(agents[0].a, &link, 1);
    *(int *)is_same = n == 1 && link.state == REVDIAL_UP && link.session_id == info.id;
    return NULL;
}

// Waits until both ends have the same session. A failure that one end has seen takes a while to
// reach the other, which until then sends what its clients begin into a session that is gone.
static void sweep_await_both(void)
{
    int64_t until = wd.clock.now_us + WORLD_UP_US;
    for (int is_same = 0; !is_same && !wd.failed;) {
        if (wd.clock.now_us > until) world_fail("proxy and agent have not the same session");
        world_sleep_us(10000, "both ends of a session");  // who has just seen it acts on it
        people_do_with(AT_PROXY, "look", sweep_look, &is_same);
    }
}

// What the failure has ended is back, and a transfer arrives.
static void sweep_heal(void)
{
    if (sw.how == SWEEP_EVER && sw.error) return;
    fault.is_off = 1;
    world_await_agents();
    sweep_await_both();
    world_probe();
    fault.is_off = sw.how == SWEEP_WHILE;
}

static void sweep_stop(void)
{
    int64_t began = wd.clock.now_us;
    people_do(AT_AGENT, "stop", agent_stop, 0);
    people_do(AT_PROXY, "stop", proxy_stop, 0);
    if (wd.clock.now_us > began + SWEEP_STOP_US)
        world_fail("stopping takes %.1f s", (double)(wd.clock.now_us - began) / 1e6);
    world_sleep_us(1000000, "threads");
    if (clients_running) world_fail("a client waits for a proxy that has stopped");
    // A path that could not be removed is replaced by the next that listens there.
    if (sw.error && sw.error->call == FAULT_unlink && fault.hits) {
        fault.is_off = 1;
        people_do(AT_PROXY, "start", proxy_start, 0);
        people_do(AT_PROXY, "stop", proxy_stop, 0);
    }
    world_check_stopped();
}

static void *sweep_main(void *arg)
{
    (void)arg;
    sweep_plan();
    people_do(AT_PROXY, "start", proxy_start, 0);
    if (proxies[0].p) people_do(AT_AGENT, "start", agent_start, 0);
    if (agents[0].a && !sweep_is_up(SWEEP_CONNECT_US)) {
        sw.has_ended = 1;
        if (sw.how == SWEEP_WHILE) fault.is_off = 1;
    }
    if (proxies[0].p) sweep_talks();
    sweep_check_told();
    if (sw.is_broken) sweep_break();
    sweep_heal();
    if (proxies[0].p && !wd.failed) people_do(AT_PROXY, "drain", sweep_drain, 0);
    if (!sw.error) world_await_agents();
    world_check_talks();
    sweep_stop();
    wd.over = 1;
    return NULL;
}

// ---- all of it

static void sweep_tell(const char *why)
{
    if (!sw.error)
        test_fail(__FILE__, __LINE__, "%s, interrupts %u, shorts %u: %s", sweep_ways[sw.way],
                  sw.interrupts, sw.shorts, why);
    else
        test_fail(__FILE__, __LINE__, "%s %s %u %s %s %llu: %s", fault_calls[sw.error->call].name,
                  sw.error->name, sw.nth, sweep_hows[sw.how], sweep_ways[sw.way],
                  (unsigned long long)sw.seed, why);
}

// Plays one. Returns 1 if all went well.
static int sweep_one(const sweep *s, int trace)
{
    static script none;
    uint64_t hash;
    sw = *s;
    none.seed = s->seed;
    none.is_calm = 1;
    none.simple = SIMPLE_LINKS | SIMPLE_V4;
    int ok = world_play(&none, trace, sweep_main, &hash);
    if (!ok) sweep_tell(wd.why);
    return ok;
}

// A signal does not come each time, and who can never wait for descriptors sees none.
static int sweep_may_last(const struct fault_error *e)
{
    return e->error != EAGAIN && e->error != EINTR && e->call != FAULT_poll;
}

// One kind of failure, at one of `one_in` places. Returns how many runs there were.
static unsigned sweep_error(sweep s, const unsigned *calls, uint64_t one_in)
{
    static uint64_t turn;
    unsigned runs = 0;
    for (s.nth = 1; s.nth < SWEEP_NTH_MOST && test_failures < SWEEP_FAILURES; s.nth++) {
        int has_hit = s.nth <= calls[s.error->call];
        for (int how = 0; how < SWEEP_HOWS; how++) {
            if (how != SWEEP_ONCE && !sweep_may_last(s.error)) continue;
            if (turn++ % one_in) continue;
            s.how = (enum sweep_how)how;
            sweep_one(&s, 0);
            has_hit |= fault.hits > 0;
            runs++;
        }
        if (!has_hit) break;
    }
    return runs;
}

// Nothing fails, but calls are interrupted or move less than they could, rarely or each time.
static void sweep_interrupted(enum sweep_way way)
{
    static const unsigned every[] = {0, 2, 3, 7};
    for (unsigned i = 0; i < 12; i++) {
        sweep s = {.way = way, .interrupts = every[i % 4], .shorts = i / 4};
        sweep_one(&s, 0);
    }
}

// A run with large transfers takes long: only what they need and the others do not. A TCP listener
// whose queue is full says nothing, and there is none without a path.
static int sweep_concerns(enum sweep_way way, const struct fault_error *e)
{
    if (e->call == FAULT_connect && (e->error == EAGAIN || e->error == ENOENT))
        return way == SWEEP_UNIX;
    return way != SWEEP_BULK || e->call == FAULT_splice || e->call == FAULT_pipe2 ||
           e->call == FAULT_pipe_size || e->call == FAULT_memory;
}

// Without a failure it meets what its family is for.
static void sweep_check_family(enum sweep_way way)
{
    static const enum mark marks[][4] = {
        {MARK_V6_SESSION, MARK_V6_CLIENT, MARK_V6_TARGET, MARK_STALE_PATH},
        {MARK_V6_SESSION, MARK_MAPPED, MARK_V6_TARGET, MARK_STALE_PATH},
        {MARK_UNIX_SESSION, MARK_UNIX_CLIENT, MARK_UNIX_TARGET, MARK_STALE_PATH}};
    for (int i = 0; i < 4 && way >= SWEEP_V6; i++)
        if (!marks_hit[marks[way - SWEEP_V6][i]])
            sweep_tell(mark_kinds[marks[way - SWEEP_V6][i]].name);
}

static unsigned sweep_way(enum sweep_way way, uint64_t seed, uint64_t one_in)
{
    sweep s = {.way = way, .seed = seed};
    unsigned calls[FAULTS], runs = 0;
    memset(marks_hit, 0, sizeof marks_hit);
    if (!sweep_one(&s, 0)) return 0;
    sweep_check_family(way);
    memcpy(calls, fault.count, sizeof calls);
    for (int i = 0; i < FAULT_ERROR_COUNT; i++) {
        s.error = &fault_errors[i];
        if (!sweep_concerns(way, s.error)) continue;
        runs += sweep_error(s, calls, one_in);
    }
    return runs;
}

#endif
