// What happens in a simulated world: a plan and a list of operations, both drawn from a seed
// before anything runs, so that a failing list can be shortened. Each operation has a seed of its
// own: what it draws does not depend on the operations before it.
#ifndef REVDIAL_TEST_WORLD_SCRIPT_H
#define REVDIAL_TEST_WORLD_SCRIPT_H

#include "world_change.h"

static int world_is_faulty(void);
#include "world_egress.h"
#include "world_front.h"
#include "world_peers.h"
#include "world_broken.h"
#include "world_share.h"

enum op_class { OP_USES, OP_CHANGES, OP_BREAKS };

// X(name, weight, class)
#define WORLD_OPS(X) \
    X(CLIENT, 60, USES) \
    X(DIAL, 40, USES) \
    X(FRONT, 40, USES) \
    X(INTRUDER, 5, USES) \
    X(HOSTILE, 20, USES) \
    X(WAIT, 10, USES) \
    X(PORT, 8, CHANGES) \
    X(LIMITS, 6, CHANGES) \
    X(TABLE, 4, CHANGES) \
    X(DRAIN, 6, CHANGES) \
    X(AGENT_FINISHES, 4, CHANGES) \
    X(PROXY_FINISHES, 3, CHANGES) \
    X(REVOKE, 3, BREAKS) \
    X(KILL, 3, BREAKS) \
    X(RESET, 4, BREAKS) \
    X(FORGET, 3, BREAKS) \
    X(STALL, 4, BREAKS) \
    X(CUT_OFF, 2, BREAKS) \
    X(AGENT, 4, BREAKS) \
    X(PROXY, 2, BREAKS) \
    X(MEMORY, 3, BREAKS) \
    X(DESCRIPTORS, 3, BREAKS) \
    X(THREADS, 2, BREAKS) \
    X(BUFFERS, 3, BREAKS) \
    X(RESOLVER, 4, BREAKS) \
    X(JUMP, 2, BREAKS) \
    X(SHARE, 20, USES) \
    X(FAMILY, 3, BREAKS)

enum op_kind {
#define WORLD_X(name, weight, class) OP_##name,
    WORLD_OPS(WORLD_X)
#undef WORLD_X
        OP_KINDS
};
static const struct {
    const char *name;
    unsigned weight;
    enum op_class class;
} op_kinds[OP_KINDS] = {
#define WORLD_X(name, weight, class) {#name, weight, OP_##class},
    WORLD_OPS(WORLD_X)
#undef WORLD_X
};

typedef struct op {
    enum op_kind kind;
    int number;       // as drawn
    int64_t wait_us;  // before it
    uint64_t seed;
} op;

enum { OPS_MOST = 80 };

// What the shrinker tries to do without.
enum {
    SIMPLE_TURNS = 1,  // threads run in turn, and give way only where they wait
    SIMPLE_CALLS = 2,  // no short reads and writes, no signals
    SIMPLE_LINKS = 4,  // fast links
    SIMPLE_PLAN = 8,   // one proxy, one agent, default limits
    SIMPLE_MORE = 16,  // without what plan_draw_more() adds
    SIMPLE_V4 = 32,    // no IPv6, no Unix sockets
    SIMPLE_END = 64,
    SIMPLE_CALM = 128  // of a test: nothing is broken, but a transfer may be refused
};

typedef struct script {
    uint64_t seed;
    int is_calm;     // no faults: nothing may fail
    int may_refuse;  // a port, an agent or a proxy comes and goes
    int drains;      // a session
    unsigned simple;
    op ops[OPS_MOST];
    int count;
} script;

static script story;
static int story_is_calm(void)
{
    return story.is_calm;
}
static int64_t fault_us;  // when the last fault happened or ended; -1: none has
static unsigned faults_running, changes_running;
static int restarts_running;

// May something fail now because of a fault?
static int world_is_faulty(void)
{
    return faults_running || (fault_us >= 0 && wd.clock.now_us < fault_us + 100000000);
}

// ---- drawing

static uint64_t pick(test_rng *r, uint64_t bound)
{
    return test_below(r, bound);
}

static void plan_draw(test_rng *r, uint64_t seed)
{
    memset(&plan, 0, sizeof plan);
    plan.seed = seed;
    plan.io_threads = 1 + (unsigned)(pick(r, 3) == 0) + (unsigned)(pick(r, 6) == 0);
    plan.spin_us = pick(r, 6) ? 0 : 50;
    plan.proxy_count = 1 + (pick(r, 3) == 0);
    plan.agent_count = 1 + (int)pick(r, AGENTS);
    for (int i = 0; i < AGENTS; i++) {
        plan.serves[i] = (enum agent_serves)pick(r, SERVES_KINDS);
        plan.is_websocket[i] = pick(r, 3) == 0;
        plan.is_digest[i] = pick(r, 3) == 0;
        plan.all_urls[i] = pick(r, 2) == 0;
    }
    if (pick(r, 2)) plan.limits.stream_window = 8192u << pick(r, 4);
    if (pick(r, 4) == 0) plan.limits.stream_rate = 200000;
    if (pick(r, 4) == 0) plan.max_pending = 4 + (unsigned)pick(r, 8);
}

static void links_quicken(void)
{
    tcp_link l = {.delay_us = 20, .bytes_per_s = 1000000000};
    for (int i = 0; i < MACHINES * MACHINES; i++) tcp_links[i / MACHINES][i % MACHINES] = l;
}

static int seed_has_front(uint64_t seed)
{
    test_rng r = test_rng_seeded(seed ^ 0x3107D);
    return pick(&r, 4) == 0;
}

static int seed_has_changes(uint64_t seed)
{
    test_rng r = test_rng_seeded(seed ^ 0x3107E);
    return pick(&r, 3) != 0;
}

static void plan_draw_egress(uint64_t seed)
{
    test_rng r = test_rng_seeded(seed ^ 0x3107C);
    if (pick(&r, 4)) return;
    for (int i = 0; i < AGENTS; i++) plan.egress[i] = (int)pick(&r, 3);
    egress_bad_one_in = (unsigned)pick(&r, 5);
}

// Whatever is drawn here leaves the rest of a seed as it is.
static void plan_draw_more(uint64_t seed)
{
    test_rng r = test_rng_seeded(seed ^ 0x3107F);
    plan.has_changes = seed_has_changes(seed);
    plan.has_front = seed_has_front(seed);
    plan.proxy_protocol = (int)pick(&r, 6);
    if (plan.proxy_protocol > 2) plan.proxy_protocol = 0;
    plan.is_bulk = pick(&r, 16) == 0;
    plan.has_records = pick(&r, 5) == 0;
    plan_draw_egress(seed);
    plan.has_haste = seed % 5 < 2;
    plan.has_peers = plan.proxy_count > 1 && seed % 3 == 0;
    plan.has_fake = plan.has_records && seed % 2;
    record_fails_one_in = story.is_calm || pick(&r, 2) ? 0 : 10;
    if (!plan.is_bulk) return;
    tcp_window_least = (size_t)262144 << pick(&r, 3);
    tcp_window_most = 1 << 20;
    plan.limits.stream_window = 262144u << pick(&r, 4);
    plan.limits.stream_rate = 0;
    pipe_denied_one_in = pick(&r, 2) ? 0 : 2;
    // So fast that long frames are worth it, and so slow that a few megabytes show how fast it is.
    links_quicken();
    for (int a = AT_PROXY; a < AT_AGENT; a++)
        for (int b = AT_AGENT; b < AT_TARGET; b++)
            tcp_links[a][b].bytes_per_s = 30000000 + pick(&r, 50000000);
}

static enum net_kind net_kind_draw(test_rng *r)
{
    return pick(r, 3) ? (enum net_kind)pick(r, NET_KINDS) : NET_V4;
}

// A socket that a process left that died: whoever binds there replaces it.
static void path_make_stale(int port)
{
    char text[40];
    net_text(NET_UNIX, AT_PROXY, port, text);
    unix_path_make(unix_path_of(text + strlen("unix:")));
}

static void path_draw_stale(test_rng *r, int port)
{
    if (!pick(r, 2)) path_make_stale(port);
}

static void plan_draw_families(uint64_t seed)
{
    static const enum net_kind direct[] = {NET_V4, NET_V6, NET_UNIX};
    test_rng r = test_rng_seeded(seed ^ 0x31080);
    plan.has_families = pick(&r, 2) == 0;
    if (!plan.has_families) return;
    dns_families = (enum dns_families)pick(&r, DNS_FAMILIES);
    for (int i = 0; i < AGENTS; i++) {
        plan.of_port[i] = net_kind_draw(&r);
        plan.of_target[i] = direct[pick(&r, 3)];
        plan.of_agent[i] = plan.egress[i] ? NET_V4 : direct[pick(&r, 3)];
        if (plan.of_port[i] == NET_UNIX) path_draw_stale(&r, PORT_CLIENTS + i);
    }
    for (int i = 0; i < PORTS_MORE; i++) plan.of_more[i] = net_kind_draw(&r);
    if (pick(&r, 2)) plan.of_front = NET_BOTH;
    path_draw_stale(&r, PORT_LISTEN);
}

static void links_draw(test_rng *r)
{
    static const uint64_t rates[] = {100000000, 10000000, 1000000, 300000};
    uint64_t rate = rates[pick(r, 4)];
    int64_t delay = (int64_t)pick(r, 4) * (int64_t)pick(r, 30000);
    for (int a = 0; a < MACHINES; a++)
        for (int b = a; b < MACHINES; b++) {
            tcp_link l = {.delay_us = 20, .bytes_per_s = 1000000000};
            int is_tunnel = a < AT_AGENT && b >= AT_AGENT && b < AT_TARGET;
            if (is_tunnel) l.delay_us += delay;
            if (is_tunnel) l.bytes_per_s = rate;
            tcp_links[a][b] = l;
        }
    tcp_window_least = (size_t)1024 << pick(r, 4);
    tcp_window_most = tcp_window_least << pick(r, 6);
}

// Swarm: some kinds not at all, some often.
static void script_draw(script *s, test_rng *r)
{
    unsigned weight[OP_KINDS], sum = 0;
    static const unsigned scale[4] = {0, 1, 2, 6};
    s->is_calm = pick(r, 3) == 0;
    for (int k = 0; k < OP_KINDS; k++) {
        weight[k] = op_kinds[k].weight * scale[pick(r, 4)];
        if (op_kinds[k].class == OP_BREAKS && s->is_calm) weight[k] = 0;
        if ((k == OP_FRONT || k == OP_INTRUDER) && !seed_has_front(s->seed)) weight[k] = 0;
        if (op_kinds[k].class == OP_CHANGES && !seed_has_changes(s->seed)) weight[k] = 0;
        if (k == OP_CLIENT) weight[k] += op_kinds[k].weight;
        sum += weight[k];
    }
    s->count = 8 + (int)pick(r, 32);
    for (int i = 0; i < s->count; i++) {
        uint64_t at = pick(r, sum);
        int k = 0;
        while (at >= weight[k]) at -= weight[k++];
        s->ops[i].number = i;
        s->drains |= k == OP_DRAIN;
        s->may_refuse |= k == OP_PORT || k == OP_AGENT_FINISHES || k == OP_PROXY_FINISHES;
        s->ops[i].kind = (enum op_kind)k;
        s->ops[i].wait_us =
            pick(r, 3) ? (int64_t)pick(r, 3000) : (int64_t)pick(r, 1 << pick(r, 23));
        s->ops[i].seed = test_random(r);
    }
}

static inline void script_of(script *s, uint64_t seed)
{
    test_rng r = test_rng_seeded(seed ^ 0x5C219);
    memset(s, 0, sizeof *s);
    s->seed = seed;
    script_draw(s, &r);
}

// ---- doing

// By a port that may be gone at any time.
static void op_talk_by_more(client_order *c, int slot)
{
    if (!proxies[c->proxy].more[slot]) return;
    c->port = PORT_MORE + slot;
    c->agent = proxies[c->proxy].more[slot] - 1;
    c->t->may_refuse = 1;
}

// A proxy that can reach the agent: by a session of its own, or by its peer.
static int op_proxy(int agent, test_rng *r)
{
    int n = (int)pick(r, (uint64_t)plan.proxy_count);
    return plan.all_urls[agent] || plan.has_peers ? n : 0;
}

static void talk_draw(talk *t, test_rng *r)
{
    static const size_t sizes[] = {0, 1, 100, 5000, 70000, 200000};
    t->mode = (enum talk_mode)pick(r, TALK_MODES);
    for (int x = 0; x < 2; x++) {
        t->plan[x] = (size_t)pick(r, sizes[pick(r, 6)] + 1);
        t->slow[x] = pick(r, 12) == 0;
    }
    if (t->mode == TALK_PINGS) t->plan[0] = t->plan[1] = t->plan[0] % 5000;
    if (pick(r, 5) == 0) {
        t->gives_up = 1 + (int)pick(r, 2);
        t->gives_up_at = (size_t)pick(r, t->plan[0] + t->plan[1] + 1);
    }
    t->is_strict = story.is_calm && !t->gives_up;
    // An agent whose session drains comes back when that has ended.
    t->may_refuse = story.may_refuse || story.drains;
}

// As a server does that refuses an upload: it answers and closes. A client that does so has heard
// that its target is there.
static void talk_draw_haste(talk *t, uint64_t seed)
{
    test_rng r = test_rng_seeded(seed ^ 0x31081);
    if (!plan.has_haste || pick(&r, 3) == 0) return;
    t->mode = TALK_HASTY;
    t->hasty = (int)pick(&r, 2);
    t->hasty_fins = pick(&r, 2) == 0;
    t->plan[1 - t->hasty] = 1 + (size_t)pick(&r, 400000);
    t->hasty_reads = t->hasty ? pick(&r, 2) * pick(&r, 3000) : 1;
    t->slow[0] = t->slow[1] = 0;
    t->gives_up = 0;
    t->is_strict = story.is_calm;
}

// By the port whose route decides. A client that is refused there has nothing to transfer.
static void op_front(test_rng *r)
{
    talk *t = talk_new("front");
    front_order *f = calloc(1, sizeof *f);
    if (!t || !f) {
        free(f);
        return;
    }
    talk_draw(t, r);
    f->t = t;
    f->mode = (enum front_mode)pick(r, FRONT_MODES);
    f->agent = (int)pick(r, (uint64_t)plan.agent_count);
    f->proxy = op_proxy(f->agent, r);
    f->is_early = pick(r, 2) == 0;
    f->header = (int)pick(r, 5);
    f->pieces = 1 + (int)pick(r, 4);
    t->is_strict &= f->mode < FRONT_REFUSE;
    clients_running++;
    people_new(AT_CLIENT + (int)pick(r, 2), "front", front_client, f);
}

static void *intruder_main(void *arg)
{
    front_intrude((int)(intptr_t)arg);
    clients_running--;
    return NULL;
}

// Several threads use one end, or both where the other one is a handler. Only those that change
// nothing must be whole.
static void op_share(client_order *c, test_rng *r)
{
    talk *t = c->t;
    int is_both = plan.serves[c->agent] == SERVES_HANDLER && pick(r, 2);
    t->mode = TALK_DUPLEX;
    if (t->gives_up == 1 || is_both) t->gives_up = 0;
    c->is_early = 1;  // else the first bytes would be another call
    for (int x = 0; x < 1 + is_both; x++) {
        t->third[x] = 1 + (int)pick(r, SHARE_KINDS);
        t->third_us[x] = (int64_t)pick(r, 1 << pick(r, 19));
        if (t->third[x] - 1 >= SHARE_STOPS_READING) t->is_strict = 0;
    }
}

static void op_talk(const op *o, test_rng *r)
{
    int is_dial = o->kind == OP_DIAL || o->kind == OP_SHARE;
    talk *t = talk_new(is_dial ? "dial" : "client");
    client_order *c = calloc(1, sizeof *c);
    if (!t || !c) {
        free(c);
        return;
    }
    talk_draw(t, r);
    if (o->kind != OP_SHARE) talk_draw_haste(t, o->seed);
    c->t = t;
    c->agent = (int)pick(r, (uint64_t)plan.agent_count);
    c->proxy = op_proxy(c->agent, r);
    c->is_early = pick(r, 2) == 0;
    c->is_blocking = pick(r, 2) == 0;
    if (plan.is_bulk && t->mode != TALK_PINGS)
        for (int x = 0; x < 2; x++)
            t->plan[x] = pick(r, 3) ? t->plan[x] : 1000000 + (size_t)pick(r, 4000000);
    if (plan.has_changes && pick(r, 3) == 0) op_talk_by_more(c, (int)pick(r, PORTS_MORE));
    is_dial &= proxies[c->proxy].p && !proxies[c->proxy].is_closing;
    if (o->kind == OP_SHARE && is_dial) op_share(c, r);
    clients_running++;
    if (is_dial) {
        proxies[c->proxy].dials++;
        people_new(AT_PROXY + c->proxy, "dial", client_dial, c);
    } else {
        people_new(AT_CLIENT + (int)pick(r, 2), "client", client_tcp, c);
    }
}

// Where there are records, half of the hostile peers know how these look.
static void op_broken(test_rng *r)
{
    broken *b = calloc(1, sizeof *b);
    if (!b) abort();
    broken_draw(b, r);
    b->proxy = (int)pick(r, (uint64_t)plan.proxy_count);
    clients_running++;
    people_new(AT_HOSTILE + (int)pick(r, HOSTILES), "broken", broken_main, b);
}

static void op_hostile(test_rng *r)
{
    hostile *h = calloc(1, sizeof *h);
    if (plan.has_records && pick(r, 2)) {
        op_broken(r);
        free(h);
        return;
    }
    if (!h) abort();
    h->kind = (enum hostile_kind)pick(r, HOSTILE_KINDS);
    h->proxy = (int)pick(r, (uint64_t)plan.proxy_count);
    h->rng = test_rng_seeded(test_random(r));
    clients_running++;
    people_new(AT_HOSTILE + (int)pick(r, HOSTILES), hostile_names[h->kind], hostile_main, h);
}

static void faults_end(void)
{
    for (int m = 0; m < MACHINES; m++) {
        memset(machines[m].lack_one_in, 0, sizeof machines[m].lack_one_in);
        machines[m].fd_limit = MACHINE_FDS;
        machines[m].is_cut_off = machines[m].has_no_route = 0;
        for (int b = 0; b < MACHINES; b++) tcp_links[m][b].is_down = 0;
    }
    dns.mode = DNS_GOOD;
    tcp_family_down = 0;
    egress_is_bad = 0;
    wake_all(&dns.silent);
    tcp_links_up();
}

// A connection between proxies and agents, or of clients: RST at both ends, or it is forgotten.
static void op_break(const op *o, test_rng *r)
{
    unsigned n = 0;
    for (tcp_conn *c = tcp_conns; c; c = c->next) n += c->family != AF_UNIX;
    if (!n) return;
    n = (unsigned)pick(r, n);
    tcp_conn *c = tcp_conns;
    while (c->family == AF_UNIX || n--) c = c->next;
    if (o->kind == OP_FORGET) {
        c->is_lost = 1;
        return;
    }
    tcp_die(&c->e[0], ECONNRESET);
    tcp_die(&c->e[1], ECONNRESET);
    tcp_forget(c);
}

static void op_shortage(const op *o, test_rng *r)
{
    machine *m = &machines[pick(r, AT_TARGET)];
    unsigned one_in = 1u << pick(r, 7);
    int64_t us = (int64_t)pick(r, 5000000);
    world_note("%s: %s fails one in %u for %.1f s", m->name, op_kinds[o->kind].name, one_in,
               (double)us / 1e6);
    if (o->kind == OP_MEMORY) m->lack_one_in[LACK_MEMORY] = one_in < 4 ? 4 : one_in;
    if (o->kind == OP_THREADS) m->lack_one_in[LACK_THREAD] = one_in;
    if (o->kind == OP_BUFFERS) m->lack_one_in[LACK_BUFFER] = one_in < 2 ? 2 : one_in;
    if (o->kind == OP_DESCRIPTORS && one_in < 8) m->fd_limit = m->fd_count + 3 + (int)one_in;
    if (o->kind == OP_DESCRIPTORS && one_in >= 8) m->lack_one_in[LACK_FD] = one_in;
    world_sleep_us(us, "a shortage");
    memset(m->lack_one_in, 0, sizeof m->lack_one_in);
    m->fd_limit = MACHINE_FDS;
}

static void op_network(const op *o, test_rng *r)
{
    int a = (int)pick(r, PROXIES), b = AT_AGENT + (int)pick(r, AGENTS);
    int64_t us = (int64_t)pick(r, pick(r, 4) ? 3000000 : 60000000);
    if (o->kind == OP_STALL) tcp_links[a][b].is_down = 1;
    if (o->kind == OP_CUT_OFF) machines[b].is_cut_off = 1;
    world_note("%s and %s are apart for %.1f s", machines[a].name, machines[b].name,
               (double)us / 1e6);
    world_sleep_us(us, "a broken network");
    tcp_links[a][b].is_down = 0;
    machines[b].is_cut_off = 0;
    tcp_links_up();
}

static void op_restart(const op *o, test_rng *r)
{
    if (o->kind == OP_AGENT) {
        int n = (int)pick(r, (uint64_t)plan.agent_count);
        while (agents[n].users) world_sleep_us(10000, "users of an agent");
        people_do(AT_AGENT + n, "stop", agent_stop, n);
        world_sleep_us((int64_t)pick(r, 3000000), "a restart");
        people_do(AT_AGENT + n, "start", agent_start, n);
        return;
    }
    int n = (int)pick(r, (uint64_t)plan.proxy_count);
    proxies[n].is_closing = 1;
    while (proxies[n].dials) world_sleep_us(10000, "dials");
    people_do(AT_PROXY + n, "stop", proxy_stop, n);
    world_sleep_us((int64_t)pick(r, 3000000), "a restart");
    people_do(AT_PROXY + n, "start", proxy_start, n);
    proxies[n].is_closing = 0;
}

// IPv6 leads nowhere: silently, or agents are told at once that there is no route. Or IPv4 does.
static void op_family(test_rng *r)
{
    int64_t us = (int64_t)pick(r, pick(r, 4) ? 3000000 : 60000000);
    uint64_t how = plan.has_families ? pick(r, 5) : 4;
    if (how < 2)
        for (int i = 0; i < AGENTS; i++) machines[AT_AGENT + i].has_no_route = 1;
    else
        tcp_family_down = how == 4 ? AF_INET : AF_INET6;
    world_sleep_us(us, "a broken family");
    for (int i = 0; i < AGENTS; i++) machines[AT_AGENT + i].has_no_route = 0;
    tcp_family_down = 0;
    tcp_links_up();
}

static void op_jump(int64_t us)
{
    wd.clock.now_us += us;
    wd.jumped_us += us;
}

static void fault_do(const op *o)
{
    test_rng r = test_rng_seeded(o->seed);
    switch ((int)o->kind) {
    case OP_PORT: change_port(&r); break;
    case OP_LIMITS: change_limits(&r); break;
    case OP_TABLE: change_table(&r); break;
    case OP_DRAIN:
    case OP_KILL: change_session(o->kind == OP_KILL, &r); break;
    case OP_AGENT_FINISHES: change_agent(&r); break;
    case OP_PROXY_FINISHES: change_proxy(&r); break;
    case OP_REVOKE: change_revoke(&r); break;
    case OP_RESET:
    case OP_FORGET: op_break(o, &r); break;
    case OP_STALL:
    case OP_CUT_OFF: op_network(o, &r); break;
    case OP_AGENT:
    case OP_PROXY: op_restart(o, &r); break;
    case OP_MEMORY:
    case OP_DESCRIPTORS:
    case OP_THREADS:
    case OP_BUFFERS: op_shortage(o, &r); break;
    case OP_RESOLVER:
        dns.mode = (enum dns_mode)pick(&r, 5);
        dns.delay_us = (int64_t)pick(&r, 1 << pick(&r, 23));
        break;
    case OP_FAMILY: op_family(&r); break;
    case OP_JUMP: op_jump((int64_t)pick(&r, 1 << pick(&r, 27))); break;
    default: break;
    }
}

static void *fault_main(void *arg)
{
    const op *o = arg;
    int is_restart = o->kind == OP_AGENT || o->kind == OP_PROXY || o->kind == OP_AGENT_FINISHES ||
                     o->kind == OP_PROXY_FINISHES;
    while (is_restart && restarts_running) world_sleep_us(100000, "another restart");
    restarts_running += is_restart;
    fault_do(o);
    restarts_running -= is_restart;
    if (op_kinds[o->kind].class == OP_CHANGES) {
        changes_running--;
        return NULL;
    }
    faults_running--;
    fault_us = wd.clock.now_us;
    return NULL;
}

static void op_do(const op *o)
{
    test_rng r = test_rng_seeded(o->seed);
    world_note("op %s", op_kinds[o->kind].name);
    if (op_kinds[o->kind].class != OP_USES) {
        faults_running += op_kinds[o->kind].class == OP_BREAKS;
        changes_running += op_kinds[o->kind].class == OP_CHANGES;
        people_new(AT_CLIENT, op_kinds[o->kind].name, fault_main, (void *)(uintptr_t)o);
    } else if (o->kind == OP_HOSTILE) {
        op_hostile(&r);
    } else if (o->kind == OP_FRONT) {
        op_front(&r);
    } else if (o->kind == OP_INTRUDER) {
        clients_running++;
        people_new(AT_HOSTILE, "intruder", intruder_main,
                   (void *)(intptr_t)pick(&r, (uint64_t)plan.proxy_count));
    } else if (o->kind == OP_WAIT) {
        world_sleep_us((int64_t)pick(&r, 1 << pick(&r, 25)), "an interval");
    } else {
        op_talk(o, &r);
    }
}

#endif
