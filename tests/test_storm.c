// A proxy restarts, or dies, and its agents come back: how long until all are, and how many at one
// time. In virtual time, a millisecond at a step, with the agents' own decision when to try again
// (rvd_agent_count_failure, rvd_agent_backoff_ms) and the proxy's own numbers of places. What a
// handshake costs the proxy is a parameter.
//     build/test_storm --report COST_US...    the table of examples/balancers/README.md
#include "runtime_util.h"

enum {
    STORM_MS = 1 << 21,  // the end of the world: 35 minutes
    STORM_PLACES = 512,  // the default of max_pending
    STORM_QUEUE = STORM_PLACES * RVD_PROXY_QUEUE,
    STORM_ONE_SOURCE = STORM_PLACES - STORM_PLACES / 32 * RVD_PROXY_OTHERS,
    STORM_REFUSAL_US = 20,  // to accept a connection and close it
    STORM_BIN_MS = 100
};

typedef struct storm_config {
    int agents, proxies;  // these go to proxy i % proxies
    int until_ms;         // the end of the world
    int down_ms;          // until then nobody listens there
    int cost_us, cores;   // of one handshake, and for them at each proxy
    int has_jitter;       // 0: what must not be: every agent waits for the bound
    int is_steady;        // sessions were up for long: the count of failures begins anew
} storm_config;

typedef struct storm_agent {
    int next;  // in the list of its millisecond; -1: none
    unsigned failures;
    int asked_ms;  // when it connected
    int attempt;   // tells a place that it has left from the one that it has
    char is_up, is_waiting;
} storm_agent;

typedef struct storm_place {
    int agent, attempt;
} storm_place;

typedef struct storm_line {  // of connections, the first comes first
    storm_place *ring;
    int first, count, size;
} storm_line;

typedef struct storm_proxy {
    storm_line pending, queue;
    int64_t budget_us;  // processor time that is left of this millisecond
} storm_proxy;

typedef struct storm {
    storm_config cfg;
    storm_agent *agents;
    storm_proxy *proxies;
    int *due;  // the first agent of each millisecond, -1
    revdial_agent *agent;
    rvd_agent_link *link;
    rvd_loop loop;
    int now_ms, up_count;
    int *tries, *ups;  // of all proxies, in each STORM_BIN_MS
    int up_ms[3];      // when 50, 99 and 100 % were up
    int64_t attempts, dropped;
} storm;

static void storm_line_open(storm_line *l, int size)
{
    l->ring = calloc((size_t)size, sizeof *l->ring);
    l->size = size;
}

static void storm_line_push(storm_line *l, storm_place p)
{
    l->ring[(l->first + l->count++) % l->size] = p;
}

static storm_place storm_line_pop(storm_line *l)
{
    storm_place p = l->ring[l->first];
    l->first = (l->first + 1) % l->size;
    l->count--;
    return p;
}

static storm *storm_open(const storm_config *cfg)
{
    storm *w = calloc(1, sizeof *w);
    w->cfg = *cfg;
    if (!w->cfg.until_ms) w->cfg.until_ms = STORM_MS;
    w->agents = calloc((size_t)cfg->agents, sizeof *w->agents);
    w->proxies = calloc((size_t)cfg->proxies, sizeof *w->proxies);
    w->due = malloc(STORM_MS * sizeof *w->due);
    w->tries = calloc(STORM_MS / STORM_BIN_MS + 1, sizeof *w->tries);
    w->ups = calloc(STORM_MS / STORM_BIN_MS + 1, sizeof *w->ups);
    w->agent = calloc(1, sizeof *w->agent);
    w->link = calloc(1, sizeof *w->link);
    for (int i = 0; i < STORM_MS; i++) w->due[i] = -1;
    for (int i = 0; i < cfg->proxies; i++) {
        storm_line_open(&w->proxies[i].pending, STORM_PLACES);
        storm_line_open(&w->proxies[i].queue, STORM_QUEUE);
    }
    w->agent->loop = &w->loop;
    w->agent->random = 88172645463325252u;
    w->link->agent = w->agent;
    return w;
}

static void storm_close(storm *w)
{
    for (int i = 0; i < w->cfg.proxies; i++) {
        free(w->proxies[i].pending.ring);
        free(w->proxies[i].queue.ring);
    }
    free(w->agents);
    free(w->proxies);
    free(w->due);
    free(w->tries);
    free(w->ups);
    free(w->agent);
    free(w->link);
    free(w);
}

// The agent's attempt or session is over: the library says when it tries again.
static void storm_fail(storm *w, int at, int was_up)
{
    storm_agent *a = &w->agents[at];
    int wait_ms, when;
    w->loop.now_us = (int64_t)w->now_ms * 1000;
    w->link->failures = a->failures;
    w->link->is_up = was_up;
    w->link->up_us = w->loop.now_us - (w->cfg.is_steady ? RVD_AGENT_STEADY_US : 0);
    rvd_agent_count_failure(w->link, RVD_AGENT_STEADY_US);
    wait_ms = rvd_agent_backoff_ms(w->link, 0);
    if (!w->cfg.has_jitter) wait_ms = RVD_AGENT_BACKOFF_MIN_MS;
    a->failures = w->link->failures;
    a->is_waiting = 0;
    a->attempt++;
    when = w->now_ms + wait_ms + 1;
    if (when >= STORM_MS) return;
    a->next = w->due[when];
    w->due[when] = at;
}

static int storm_is_there(const storm *w, storm_place p)
{
    return w->agents[p.agent].is_waiting && w->agents[p.agent].attempt == p.attempt;
}

// Agents give a handshake up after its time.
static void storm_expire(storm *w, storm_line *l)
{
    while (l->count) {
        storm_place p = l->ring[l->first];
        if (storm_is_there(w, p)) {
            if (w->now_ms - w->agents[p.agent].asked_ms < RVD_BASE_HANDSHAKE_MS) return;
            storm_fail(w, p.agent, 0);
        }
        storm_line_pop(l);
    }
}

// As rvd_proxy_accept() does where all come from one source, a balancer. When the queue is full,
// the connection whose last progress is the oldest makes room.
static void storm_connect(storm *w, int at)
{
    storm_proxy *p = &w->proxies[at % w->cfg.proxies];
    storm_place place = {at, w->agents[at].attempt};
    w->attempts++;
    w->tries[w->now_ms / STORM_BIN_MS]++;
    if (w->now_ms < w->cfg.down_ms) {
        storm_fail(w, at, 0);
        return;
    }
    w->agents[at].is_waiting = 1;
    w->agents[at].asked_ms = w->now_ms;
    if (p->pending.count < STORM_ONE_SOURCE && !p->queue.count) {
        storm_line_push(&p->pending, place);
    } else if (p->queue.count < STORM_QUEUE) {
        storm_line_push(&p->queue, place);
    } else {
        storm_place victim = storm_line_pop(&p->pending);
        if (storm_is_there(w, victim)) storm_fail(w, victim.agent, 0);
        p->budget_us -= STORM_REFUSAL_US;
        w->dropped++;
        storm_line_push(&p->pending, place);
    }
}

static void storm_up(storm *w, int at)
{
    static const int percent[3] = {50, 99, 100};
    w->agents[at].is_waiting = 0;
    w->agents[at].is_up = 1;
    w->up_count++;
    w->ups[w->now_ms / STORM_BIN_MS]++;
    for (int i = 0; i < 3; i++)
        if (!w->up_ms[i] && (int64_t)w->up_count * 100 >= (int64_t)w->cfg.agents * percent[i])
            w->up_ms[i] = w->now_ms;
}

// The queue gets the places that are free.
static void storm_admit(storm_proxy *p)
{
    while (p->queue.count && p->pending.count < STORM_ONE_SOURCE)
        storm_line_push(&p->pending, storm_line_pop(&p->queue));
}

// A millisecond of a proxy's processor time.
static void storm_serve(storm *w, storm_proxy *p)
{
    storm_expire(w, &p->pending);
    storm_expire(w, &p->queue);
    p->budget_us += w->cfg.cores * 1000;
    storm_admit(p);
    while (p->budget_us >= w->cfg.cost_us && p->pending.count) {
        storm_place next = storm_line_pop(&p->pending);
        p->budget_us -= storm_is_there(w, next) ? w->cfg.cost_us : STORM_REFUSAL_US;
        if (storm_is_there(w, next)) storm_up(w, next.agent);
        storm_admit(p);
    }
    if (!p->pending.count && p->budget_us > 0) p->budget_us = 0;  // idle time is not saved
}

static void storm_run(storm *w)
{
    for (int i = 0; i < w->cfg.agents; i++) storm_fail(w, i, 1);
    for (; w->now_ms < w->cfg.until_ms - 1 && w->up_count < w->cfg.agents; w->now_ms++) {
        for (int at = w->due[w->now_ms], next; at >= 0; at = next) {
            next = w->agents[at].next;
            storm_connect(w, at);
        }
        for (int i = 0; i < w->cfg.proxies; i++) storm_serve(w, &w->proxies[i]);
    }
}

// The most in any bin from a time on, as a rate per second and proxy.
static int storm_peak(const storm *w, const int *bins, int from_ms)
{
    int most = 0;
    for (int i = from_ms / STORM_BIN_MS; i <= w->now_ms / STORM_BIN_MS; i++)
        if (bins[i] > most) most = bins[i];
    return most * (1000 / STORM_BIN_MS) / w->cfg.proxies;
}

// The most attempts of a bin beside the mean of the ten around it, in percent; for bins in which
// there are enough to say something.
static int storm_unevenness(const storm *w, int from_ms)
{
    int worst = 0;
    for (int i = from_ms / STORM_BIN_MS; i + 10 <= w->now_ms / STORM_BIN_MS; i += 10) {
        int sum = 0, most = 0;
        for (int k = i; k < i + 10; k++) {
            sum += w->tries[k];
            if (w->tries[k] > most) most = w->tries[k];
        }
        if (sum >= 2000 && most * 1000 / sum > worst) worst = most * 1000 / sum;
    }
    return worst;
}

enum { SHARE = 10000, ALL = 100000, DOWN_MS = 5000 };

// One of ten proxies dies, and a balancer sends its 10,000 agents to the nine others.
TEST(the_nine_others_take_the_agents_of_a_proxy_that_died)
{
    storm_config cfg = {SHARE, 9, 0, 0, 1000, 1, 1, 1};
    storm *w = storm_open(&cfg);
    storm_run(w);
    CHECK_INT(w->up_count, SHARE);
    CHECK(w->up_ms[2] < 3000);
    // 10,000 in half a second are 2,222 a second for each, and none is refused.
    CHECK(storm_peak(w, w->tries, 0) < 2600);
    CHECK(storm_peak(w, w->ups, 0) <= 1010);
    CHECK_INT(w->dropped, 0);
    storm_close(w);
}

// It comes back after five seconds to its 10,000 agents.
TEST(a_proxy_that_restarts_gets_its_agents_back)
{
    storm_config cfg = {SHARE, 1, 0, DOWN_MS, 1000, 1, 1, 1};
    storm *w = storm_open(&cfg);
    storm_run(w);
    CHECK_INT(w->up_count, SHARE);
    CHECK(w->up_ms[1] < 30000);
    CHECK(w->up_ms[2] < 60000);
    CHECK(storm_peak(w, w->tries, DOWN_MS) < SHARE / 2);
    CHECK(storm_unevenness(w, DOWN_MS) < 200);
    storm_close(w);
}

// All 100,000 agents have sessions at all ten, and one restarts: ten times what its queue holds.
TEST(a_hundred_thousand_come_back_to_one_proxy)
{
    storm_config cfg = {ALL, 1, 0, DOWN_MS, 1000, 1, 1, 1};
    storm *w = storm_open(&cfg);
    storm_run(w);
    CHECK_INT(w->up_count, ALL);
    CHECK(w->up_ms[2] < 300000);
    CHECK(storm_peak(w, w->tries, 2 * DOWN_MS) < ALL / 5);
    CHECK(storm_unevenness(w, 2 * DOWN_MS) < 200);
    storm_close(w);
}

// Without jitter they would come in step, which the judges above see.
TEST(agents_without_jitter_would_be_noticed)
{
    storm_config cfg = {ALL, 1, 3 * DOWN_MS, DOWN_MS, 1000, 1, 0, 1};
    storm *w = storm_open(&cfg);
    storm_run(w);
    CHECK(storm_unevenness(w, DOWN_MS) > 200 || storm_peak(w, w->tries, 2 * DOWN_MS) > ALL / 5);
    storm_close(w);
}

static void storm_report_row(const char *what, storm_config cfg)
{
    storm *w = storm_open(&cfg);
    storm_run(w);
    printf("| %s | %d | %.1f | %.1f | %.1f | %d | %d | %.1f | %d |\n", what, cfg.cost_us,
           w->up_ms[0] / 1e3, w->up_ms[1] / 1e3, w->up_ms[2] / 1e3,
           storm_peak(w, w->tries, cfg.down_ms), storm_peak(w, w->ups, 0),
           (double)w->attempts / cfg.agents, (int)w->dropped);
    storm_close(w);
}

static void storm_report(int cost_us)
{
    storm_config to_others = {SHARE, 9, 0, 0, cost_us, 1, 1, 1};
    storm_config share = {SHARE, 1, 0, DOWN_MS, cost_us, 1, 1, 1};
    storm_config all = {ALL, 1, 0, DOWN_MS, cost_us, 1, 1, 1};
    storm_report_row("10,000 of one of ten go to the other nine", to_others);
    storm_report_row("10,000 wait 5 s for their proxy", share);
    storm_report_row("100,000 wait 5 s for their proxy", all);
}

int main(int argc, char **argv)
{
    if (argc < 3 || strcmp(argv[1], "--report") != 0) return test_main(argc, argv);
    printf("| agents | handshake, us | half back, s | 99 %%, s | all, s | connections/s | "
           "handshakes/s | attempts of each | dropped |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for (int i = 2; i < argc; i++) storm_report(atoi(argv[i]));
    return 0;
}
