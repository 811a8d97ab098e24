// Changes of a simulated world that runs: ports that come and go, limits and credentials that are
// replaced, sessions, agents and proxies that finish what they have. Each is one operation of a
// script. Where nothing is broken they end no transfer that has reached its target.
#ifndef REVDIAL_TEST_WORLD_CHANGE_H
#define REVDIAL_TEST_WORLD_CHANGE_H

#include "world_people.h"

enum {
    CHANGE_DRAIN_MS = 900000,   // all transfers have ended by then, where nothing is broken
    CHANGE_SLACK_US = 6000000,  // a stop takes no longer than its time to drain, and this
    CHANGE_GONE_US = 40000000   // sessions of a revoked credential are gone after this
};

// One thread more in the process of a proxy, whose proxy is not stopped meanwhile. Returns 0 if
// there is none now.
static int proxy_enter(int n)
{
    if (!proxies[n].p || proxies[n].is_closing) return 0;
    proxies[n].dials++;
    return 1;
}

static void proxy_leave(int n)
{
    proxies[n].dials--;
}

static int agent_enter(int n)
{
    if (!agents[n].a || agents[n].is_closing) return 0;
    agents[n].users++;
    return 1;
}

static void agent_leave(int n)
{
    agents[n].users--;
}

static int restarts_running;

// What it takes, besides success, where the system lacks something or a proxy has begun to drain.
static void change_check(const char *what, int code)
{
    int is_lack = code == REVDIAL_ENOMEM || code == REVDIAL_ESYS;
    if (code >= 0 || (is_lack && !story_is_calm())) return;
    if (code == REVDIAL_EDRAINING && restarts_running) return;
    world_fail("%s gives %d", what, code);
}

// ---- ports

typedef struct port_order {
    int proxy, agent, slot;
    int is_swap;  // of the port that is always there
    unsigned flags, max_clients;
    int64_t lasts_us;
} port_order;

static void port_fill(const port_order *o, revdial_expose *x, char text[2][40])
{
    memset(x, 0, sizeof *x);
    expose_fill(x, o->agent, text, o->proxy,
                o->is_swap ? PORT_CLIENTS + o->agent : PORT_MORE + o->slot);
    x->max_clients = o->max_clients;
}

// The port of an agent is taken over by one with the same settings.
static void port_swap(const port_order *o)
{
    world_proxy *w = &proxies[o->proxy];
    revdial_expose x;
    revdial_err err;
    char text[2][40];
    if (w->is_swapped[o->agent]) return;
    w->is_swapped[o->agent] = 1;
    port_fill(o, &x, text);
    x.instead_of = w->port_ids[o->agent];
    int64_t id = revdial_proxy_expose(w->p, &x, &err);
    change_check("a port that takes another one over", (int)(id < 0 ? id : 0));
    if (id > 0) w->port_ids[o->agent] = id;
    if (id > 0) mark_set(MARK_PORT_SWAPPED);
    w->is_swapped[o->agent] = 0;
}

// It can be had again at once; else the address was not free.
static void port_again(const port_order *o, const revdial_expose *x)
{
    revdial_err err;
    int64_t id = revdial_proxy_expose(proxies[o->proxy].p, x, &err);
    change_check("a port that was unexposed, exposed again,", (int)(id < 0 ? id : 0));
    if (id > 0) change_check("unexpose", revdial_proxy_unexpose(proxies[o->proxy].p, id, 0));
}

static void port_come_and_go(const port_order *o)
{
    world_proxy *w = &proxies[o->proxy];
    revdial_expose x;
    revdial_err err;
    char text[2][40];
    unsigned life = w->life;
    port_fill(o, &x, text);
    int64_t id = revdial_proxy_expose(w->p, &x, &err);
    change_check("expose", (int)(id < 0 ? id : 0));
    if (id < 0) return;
    w->more[o->slot] = o->agent + 1;
    proxy_leave(o->proxy);
    world_sleep_us(o->lasts_us, "a port");
    while (w->is_closing) world_sleep_us(10000, "a restart");
    w->dials++;
    w->more[o->slot] = 0;
    if (w->life != life || !w->p) return;
    change_check("unexpose", revdial_proxy_unexpose(w->p, id, o->flags));
    mark_set(MARK_PORT_GONE);
    port_again(o, &x);
}

static void *port_main(void *arg)
{
    const port_order *o = arg;
    if (!proxy_enter(o->proxy)) return NULL;
    if (o->is_swap)
        port_swap(o);
    else
        port_come_and_go(o);
    proxy_leave(o->proxy);
    return NULL;
}

static void change_port(test_rng *r)
{
    port_order *o = calloc(1, sizeof *o);
    if (!o) abort();
    o->proxy = (int)test_below(r, (uint64_t)plan.proxy_count);
    o->agent = (int)test_below(r, (uint64_t)plan.agent_count);
    o->is_swap = test_below(r, 3) == 0;
    o->lasts_us = (int64_t)test_below(r, 1 << test_below(r, 24));
    o->flags = test_below(r, 2) && !story_is_calm() ? REVDIAL_END_CLIENTS : 0;
    o->max_clients = test_below(r, 4) ? 0 : 1 + (unsigned)test_below(r, 3);
    o->slot = (int)test_below(r, PORTS_MORE);
    if (o->is_swap) o->max_clients = 0;
    int *is_taken = &proxies[o->proxy].is_taken[o->slot], was_taken = *is_taken;
    *is_taken = 1;
    if (!was_taken) people_do_with(AT_PROXY + o->proxy, "port", port_main, o);
    if (!was_taken) *is_taken = 0;
    free(o);
}

// ---- limits and credentials

static revdial_limits limits_draw(test_rng *r)
{
    revdial_limits l = plan.limits;
    l.keepalive_ms = 5000 + (int)test_below(r, 20000);
    l.stream_rate = test_below(r, 2) ? 200000 + test_below(r, 5000000) : 0;
    l.session_rate = test_below(r, 3) ? 0 : 4000000 + test_below(r, 5000000);
    l.max_streams = test_below(r, 2) ? 1000 + (unsigned)test_below(r, 1000) : 0;
    return l;
}

typedef struct limits_order {
    int at_agent, number;
    revdial_limits limits;
} limits_order;

static void *limits_main(void *arg)
{
    limits_order *o = arg;
    revdial_err err;
    if (o->at_agent ? !agent_enter(o->number) : !proxy_enter(o->number)) return NULL;
    int code = o->at_agent
                   ? revdial_agent_replace_session_limits(agents[o->number].a, &o->limits, &err)
                   : revdial_proxy_replace_session_limits(proxies[o->number].p, &o->limits, &err);
    if (o->at_agent)
        agent_leave(o->number);
    else
        proxy_leave(o->number);
    change_check("limits that are replaced", code);
    mark_set(MARK_LIMITS_CHANGED);
    return NULL;
}

static void change_limits(test_rng *r)
{
    limits_order o = {.at_agent = (int)test_below(r, 2)};
    o.number = (int)test_below(r, (uint64_t)(o.at_agent ? plan.agent_count : plan.proxy_count));
    o.limits = limits_draw(r);
    people_do_with((o.at_agent ? AT_AGENT : AT_PROXY) + o.number, "limits", limits_main, &o);
}

typedef struct table_order {
    int proxy;
    int without;  // row that is missing, -1: none
    unsigned flags;
    int code;
} table_order;

static void *table_main(void *arg)
{
    table_order *o = arg;
    revdial_credential rows[PROXY_ROWS + 1];
    revdial_err err;
    size_t n = 0;
    o->code = REVDIAL_ECLOSED;
    if (!proxy_enter(o->proxy)) return NULL;
    for (int i = PROXY_ROWS; i-- > 0;)  // their order means nothing
        if (i != o->without) rows[n++] = proxy_rows[i];
    o->code = revdial_proxy_replace_credentials(proxies[o->proxy].p, rows, n, o->flags, &err);
    proxy_leave(o->proxy);
    change_check("credentials that are replaced", o->code);
    return NULL;
}

// The same rows in another order: nobody notices.
static void change_table(test_rng *r)
{
    table_order o = {.without = -1, .flags = test_below(r, 2) ? REVDIAL_END_STALE : 0};
    o.proxy = (int)test_below(r, (uint64_t)plan.proxy_count);
    if (proxies[o.proxy].is_revoked) return;
    people_do_with(AT_PROXY + o.proxy, "table", table_main, &o);
    mark_set(MARK_TABLE_REPLACED);
}

// A credential is gone, and with it the sessions that it admitted; later it is back.
static void change_revoke(test_rng *r)
{
    table_order o = {.flags = REVDIAL_END_STALE};
    o.proxy = (int)test_below(r, (uint64_t)plan.proxy_count);
    o.without = (int)test_below(r, 2);
    world_proxy *w = &proxies[o.proxy];
    if (w->is_revoked) return;
    w->is_revoked = 1;
    unsigned life = w->life;
    people_do_with(AT_PROXY + o.proxy, "revoke", table_main, &o);
    int is_long = test_below(r, 2) != 0;
    world_sleep_us(is_long ? CHANGE_GONE_US : (int64_t)test_below(r, 3000000), "a revocation");
    int is_same = w->life == life && w->p && !w->is_closing;
    for (int a = 0; a < plan.agent_count && is_long && is_same && o.code == 0; a++)
        if (plan.is_digest[a] == (o.without == 1) && w->up[a])
            world_fail("%s has a session although its credential was revoked", agent_names[a]);
    if (is_long && is_same && o.code == 0) mark_set(MARK_REVOKED);
    o.without = -1;
    for (int i = 0; i < 100 && w->life == life && !wd.failed; i++) {
        people_do_with(AT_PROXY + o.proxy, "restore", table_main, &o);
        if (o.code == 0) break;
        world_sleep_us(1000000, "memory for the credentials");
    }
    w->is_revoked = 0;
}

// ---- sessions that drain or are killed

typedef struct session_order {
    int at_agent, number, is_kill, timeout_ms;
    uint64_t which;
} session_order;

static void *session_main(void *arg)
{
    enum { SESSIONS = 16 };
    const session_order *o = arg;
    revdial_session *list[SESSIONS];
    if (o->at_agent ? !agent_enter(o->number) : !proxy_enter(o->number)) return NULL;
    size_t n = o->at_agent ? revdial_agent_list(agents[o->number].a, list, SESSIONS)
                           : revdial_proxy_list(proxies[o->number].p, "cam-*", list, SESSIONS);
    if (n > SESSIONS) n = SESSIONS;
    if (n && o->is_kill) revdial_session_kill(list[o->which % n]);
    if (n && !o->is_kill) revdial_session_drain(list[o->which % n], o->timeout_ms);
    if (n) mark_set(o->is_kill ? MARK_SESSION_KILLED : MARK_SESSION_DRAINED);
    for (size_t i = 0; i < n; i++) revdial_session_unref(list[i]);
    if (o->at_agent)
        agent_leave(o->number);
    else
        proxy_leave(o->number);
    return NULL;
}

static void change_session(int is_kill, test_rng *r)
{
    session_order o = {.at_agent = (int)test_below(r, 2), .is_kill = is_kill};
    o.number = (int)test_below(r, (uint64_t)(o.at_agent ? plan.agent_count : plan.proxy_count));
    o.timeout_ms = story_is_calm() ? -1 : (int)test_below(r, 1 << test_below(r, 16));
    o.which = test_random(r);
    people_do_with((o.at_agent ? AT_AGENT : AT_PROXY) + o.number, "session", session_main, &o);
}

// ---- agents and proxies that finish what they have, and start again

typedef struct stop_order {
    int number, drain_ms;
} stop_order;

static void change_check_stop(const char *who, int code, int64_t began_us, int drain_ms)
{
    int64_t took = wd.clock.now_us - wd.jumped_us - began_us;
    if (code != 0 && code != REVDIAL_ETIMEDOUT && (code != REVDIAL_ENOMEM || story_is_calm()))
        world_fail("%s does not drain: %d", who, code);
    if (code && story_is_calm()) world_fail("%s has drained for %.1f s", who, (double)took / 1e6);
    if (took > (int64_t)drain_ms * 1000 + CHANGE_SLACK_US)
        world_fail("%s takes %.1f s to drain for %d ms", who, (double)took / 1e6, drain_ms);
    mark_set(code ? MARK_DRAIN_TIMED_OUT : MARK_DRAINED);
}

static void *agent_drain_main(void *arg)
{
    const stop_order *o = arg;
    world_agent *w = &agents[o->number];
    int64_t began = wd.clock.now_us - wd.jumped_us;
    if (!w->a) return NULL;
    int code = revdial_agent_stop(w->a, o->drain_ms);
    w->a = NULL;
    change_check_stop("an agent", code, began, o->drain_ms);
    return NULL;
}

static void *proxy_drain_main(void *arg)
{
    const stop_order *o = arg;
    int64_t began = wd.clock.now_us - wd.jumped_us;
    if (!proxies[o->number].p) return NULL;
    int code = revdial_proxy_drain(proxies[o->number].p, o->drain_ms);
    change_check_stop("a proxy", code, began, o->drain_ms);
    // What it has brought may still be on its way to clients of the other proxy.
    if (!proxies[o->number].peer) return NULL;
    began = wd.clock.now_us - wd.jumped_us;
    code = revdial_agent_drain(proxies[o->number].peer, o->drain_ms);
    change_check_stop("a peer", code, began, o->drain_ms);
    return NULL;
}

static int change_drain_ms(test_rng *r)
{
    return story_is_calm() ? CHANGE_DRAIN_MS : (int)test_below(r, 1 << test_below(r, 14));
}

static void change_agent(test_rng *r)
{
    stop_order o = {.number = (int)test_below(r, (uint64_t)plan.agent_count)};
    o.drain_ms = change_drain_ms(r);
    int64_t pause_us = (int64_t)test_below(r, 2000000);
    agents[o.number].is_closing = 1;
    while (agents[o.number].users) world_sleep_us(10000, "users of an agent");
    people_do_with(AT_AGENT + o.number, "drain", agent_drain_main, &o);
    world_sleep_us(pause_us, "a restart");
    people_do(AT_AGENT + o.number, "start", agent_start, o.number);
    agents[o.number].is_closing = 0;
}

static void change_proxy(test_rng *r)
{
    stop_order o = {.number = (int)test_below(r, (uint64_t)plan.proxy_count)};
    o.drain_ms = change_drain_ms(r);
    int64_t pause_us = (int64_t)test_below(r, 2000000);
    proxies[o.number].is_closing = 1;
    people_do_with(AT_PROXY + o.number, "drain", proxy_drain_main, &o);
    while (proxies[o.number].dials) world_sleep_us(10000, "dials");
    people_do(AT_PROXY + o.number, "stop", proxy_stop, o.number);
    world_sleep_us(pause_us, "a restart");
    people_do(AT_PROXY + o.number, "start", proxy_start, o.number);
    proxies[o.number].is_closing = 0;
}

#endif
