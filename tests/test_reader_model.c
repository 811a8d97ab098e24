// What reads a session's socket: every interleaving of the algorithm of impl.reader, for the loop
// and two threads that read, each its own stream, of one session.
//
// A step is what happens under one hold of the session's lock, or one system call without it. The
// comment at each step names the function it stands for. The search is breadth first over all
// states, so that the trace to a broken invariant is a shortest one. Each mutation leaves out one
// thing that the algorithm does, and the search has to find what that breaks. No thread runs here,
// as in the suites with REVDIAL_NO_RUNTIME.
#include "test.h"

enum { THREADS = 2, ARRIVALS = 3 };

// LOOP is both RVD_READER_WATCH and, with loop_reads, RVD_READER_LOOP.
typedef enum reader { LOOP, THREAD, LEASE } reader;
typedef enum loop_at { ASLEEP, RUN, CLAIMED, READ } loop_at;
typedef enum thread_at { AWAY, POLLS, RECEIVES, HAS_READ, SLEEPS, HURRIES } thread_at;

// Sets of streams are bits: 1 << thread.
typedef struct thread_state {
    unsigned at;
    unsigned waits;        // its waiter is known to the session
    unsigned woken;        // rvd_stream_waiter.woken
    unsigned is_released;  // .is_released
    unsigned latch;        // open
    unsigned holds;        // what a thread that reads has received
} thread_state;

typedef struct state {
    thread_state t[THREADS];
    unsigned socket;    // streams for which bytes are in the socket
    unsigned unread;    // streams with bytes in their chunks
    unsigned arrivals;  // still to come
    unsigned reader;
    unsigned edge;  // epoll has something to report to the loop
    unsigned muted;
    unsigned loop;
    unsigned loop_reads;
    unsigned loop_holds;
    unsigned roused;  // waiters collected, to be let go when the lock is released
    unsigned going;   // the same once it has been
    unsigned held;    // collected, to be let go at the end of the loop's pass
    unsigned polling;
    unsigned notified;  // the interrupt's eventfd
    unsigned kick;
    unsigned lease_armed;
    unsigned lease_timer;
    unsigned drove;   // since the lease began
    unsigned sinks;   // a relay runs: the session needs the loop
    unsigned rouses;  // somebody may still wake a thread for another reason
} state;

enum mutation {
    NONE,
    UNMUTE_WITHOUT_EDGE,    // EPOLL_CTL_MOD did not report what is there already
    DRIVE_BESIDE_THE_LOOP,  // may_begin() does not look at LOOP
    LOOP_BESIDE_A_THREAD,   // loop_begin() does not look at the state
    LOSE_THE_ROUSED,        // somebody releases the lock without rvd_stream_unlock()
    LOSE_THE_HELD,          // on_io() lets go whom it has held back only if it has read something
    NO_INTERRUPT,           // who wakes a thread that polls does not write to its eventfd
    LEASE_WITHOUT_TIMER,    // rvd_reader_end() asks for no lease
    LEASE_FOR_SEVERAL,      // rvd_reader_end() does not look whether others wait
    SLEEP_IN_A_LEASE,       // sleep() does not give the socket back to the loop
    LEAVE_BEFORE_LATCH,     // sleep() does not wait for a latch that is yet to be opened
    RELAY_WITHOUT_WATCH,    // sink_set() does not end a lease
    MUTATIONS
};

static const char *const mutation_names[MUTATIONS] = {"none",
                                                      "unmute without edge",
                                                      "drive beside the loop",
                                                      "loop beside a thread",
                                                      "lose the roused",
                                                      "lose the held",
                                                      "no interrupt",
                                                      "lease without timer",
                                                      "lease for several",
                                                      "sleep in a lease",
                                                      "leave before latch",
                                                      "relay without watch"};

static enum mutation mutated;

// ------------------------------------------------------------------------------------------------
// The algorithm

static unsigned waiting(const state *s)
{
    return s->t[0].waits + s->t[1].waits;
}

// rvd_reader_watch()
static void watch(state *s)
{
    if (s->reader == LOOP) return;
    s->reader = LOOP;
    s->muted = 0;
    if (s->socket && mutated != UNMUTE_WITHOUT_EDGE) s->edge = 1;
}

// rvd_reader_interrupt()
static void interrupt(state *s)
{
    if (!s->polling || mutated == NO_INTERRUPT) return;
    s->polling = 0;
    s->notified = 1;
}

static int is_driving(const thread_state *t)
{
    return t->at == POLLS || t->at == RECEIVES || t->at == HAS_READ;
}

// rvd_stream_wake_waiter_locked()
static void rouse(state *s, int k)
{
    thread_state *t = &s->t[k];
    if (t->woken) return;
    t->woken = 1;
    if (is_driving(t)) {
        interrupt(s);
        return;
    }
    t->is_released = 1;
    s->roused |= 1u << k;
}

// rvd_stream_unlock(), the end of each step. Who has the lock goes on before all are let go here,
// which is more than can happen.
static void unlock(state *s)
{
    s->going |= s->roused;
    s->roused = 0;
}

// The engine's events of what was received: rvd_stream_deliver_locked()
static void deliver(state *s, unsigned streams)
{
    for (int k = 0; k < THREADS; k++) {
        if (!(streams & 1u << k)) continue;
        if (s->t[k].waits)
            rouse(s, k);
        else
            s->unread |= 1u << k;
    }
}

// rvd_reader_may_begin(); whether there is memory is a choice of the search
static int may_drive(const state *s)
{
    if (s->reader == THREAD || s->sinks || waiting(s) > 1) return 0;
    return !s->loop_reads || mutated == DRIVE_BESIDE_THE_LOOP;
}

// rvd_reader_begin() and the first half of rvd_stream_drive_step_locked()
static void drive(state *s, int k)
{
    s->muted = 1;
    s->reader = THREAD;
    s->drove = 1;
    s->polling = 1;
    s->t[k].at = POLLS;
}

// rvd_reader_end(); is_hot is a choice of the search
static void drive_end(state *s, int is_hot)
{
    s->reader = LEASE;
    if (!is_hot || s->sinks || (waiting(s) > 1 && mutated != LEASE_FOR_SEVERAL)) {
        watch(s);
    } else if (!s->lease_armed && mutated != LEASE_WITHOUT_TIMER) {
        s->lease_armed = 1;
        s->kick = 1;
    }
}

static void forget(state *s, int k)
{
    thread_state none = {0};
    s->t[k] = none;
}

// rvd_stream_sleep_locked(), where it does not drive
static void sleep_on(state *s, int k)
{
    if (s->reader == LEASE && mutated != SLEEP_IN_A_LEASE) watch(s);
    s->t[k].at = SLEEPS;
}

// The same at its end
static void sleep_end(state *s, int k)
{
    thread_state *t = &s->t[k];
    if (t->is_released && !t->latch && mutated != LEAVE_BEFORE_LATCH)
        t->at = HURRIES;
    else
        forget(s, k);
}

// ------------------------------------------------------------------------------------------------
// The search

typedef struct node {
    state s;
    uint32_t from;  // index of the node before, itself at the start
    const char *step;
} node;

enum { NODES = 1 << 21, TABLE = 1 << 22 };
static node *nodes;
static uint32_t *table;
static uint32_t count, here;
static int internal;  // steps out of this state that need nothing from outside
static const char *broken;

static uint64_t hash(const state *s)
{
    uint64_t h = 1469598103934665603u;
    const unsigned char *p = (const unsigned char *)s;
    for (size_t i = 0; i < sizeof *s; i++) h = (h ^ p[i]) * 1099511628211u;
    return h ^ h >> 29;
}

static void reach(const state *s, const char *step)
{
    uint64_t at = hash(s) % TABLE;
    while (table[at]) {
        if (memcmp(&nodes[table[at] - 1].s, s, sizeof *s) == 0) return;
        at = (at + 1) % TABLE;
    }
    if (count == NODES) {
        broken = "more states than there is room for";
        return;
    }
    nodes[count].s = *s;
    nodes[count].from = here;
    nodes[count].step = step;
    table[at] = ++count;
}

#define STEP(name, ...) \
    do { \
        state s = *from; \
        __VA_ARGS__ \
        unlock(&s); \
        internal++; \
        reach(&s, name); \
    } while (0)

// rvd_stream_release_held(); let go as by rvd_stream_unlock()
static void let_held_go(state *s)
{
    s->going |= s->held;
    s->held = 0;
}

// rvd_loop_pass(), rvd_stream_on_io(), read_once(), on_kick(), on_lease()
static void loop_steps(const state *from)
{
    if (from->loop == ASLEEP && from->edge)
        STEP("loop: woken by the socket", {
            s.edge = 0;
            s.loop = RUN;
        });
    if (from->loop == ASLEEP && from->kick)
        STEP("loop: kicked", {
            s.kick = 0;
            if (s.lease_armed && !s.lease_timer) {
                s.lease_timer = 1;
                s.drove = 0;
            }
        });
    if (from->loop == ASLEEP && from->lease_timer)
        STEP("loop: the lease ends", {
            s.lease_armed = s.reader != LOOP && s.drove;
            if (s.reader == LEASE && !s.lease_armed) watch(&s);
            s.lease_timer = s.lease_armed;
            s.drove = 0;
        });
    if (from->loop == RUN)
        STEP("loop: claims", {
            s.loop_reads = s.reader == LOOP || mutated == LOOP_BESIDE_A_THREAD;
            s.loop = s.loop_reads ? CLAIMED : ASLEEP;
            if (s.loop == ASLEEP) let_held_go(&s);
        });
    if (from->loop == CLAIMED)
        STEP("loop: reads", {
            s.loop_holds = s.socket;
            s.socket = 0;
            s.loop = READ;
        });
    for (int holds = 0; holds < 2 && from->loop == READ; holds++)
        STEP("loop: handles what it has read", {
            unsigned had = s.loop_holds;
            s.loop_holds = 0;
            deliver(&s, had);
            s.loop_reads = 0;
            s.loop = had && holds ? RUN : ASLEEP;
            if (s.loop == RUN) {
                s.held |= s.roused;
                s.roused = 0;
            } else if (had || mutated != LOSE_THE_HELD) {
                let_held_go(&s);
            }
        });
}

static void thread_steps(const state *from, int k)
{
    const thread_state *t = &from->t[k];
    if (from->going & 1u << k)
        STEP("thread: its latch is opened", {
            if (!s.t[k].waits) broken = "a waiter that is gone was let go";
            s.going &= ~(1u << k) & 3;
            s.t[k].latch = 1;
        });
    if (t->at == POLLS && (from->socket || from->notified))
        STEP("thread: poll returns", { s.t[k].at = from->socket ? RECEIVES : HAS_READ; });
    if (t->at == RECEIVES)
        STEP("thread: receives", {
            s.t[k].holds = s.socket;
            s.socket = 0;
            s.t[k].at = HAS_READ;
        });
    for (int is_hot = 0; is_hot < 2 && t->at == HAS_READ; is_hot++)
        STEP("thread: handles it", {
            unsigned had = s.t[k].holds;
            s.t[k].holds = 0;
            if (!s.polling) s.notified = 0;
            s.polling = 0;
            deliver(&s, had);
            if (!s.t[k].woken && !s.sinks) {
                drive(&s, k);
            } else {
                drive_end(&s, is_hot);
                if (s.t[k].woken)
                    sleep_end(&s, k);
                else
                    sleep_on(&s, k);
            }
        });
    if (t->at == SLEEPS && t->latch) STEP("thread: was let go", { sleep_end(&s, k); });
    if (t->at == HURRIES && t->latch) STEP("thread: was let go late", { forget(&s, k); });
}

// What comes from outside, and may or may not.
static void outer_steps(const state *from)
{
    int before = internal;
    for (int k = 0; k < THREADS; k++) {
        const thread_state *t = &from->t[k];
        if (from->arrivals)
            STEP("bytes arrive", {
                s.arrivals--;
                s.socket |= 1u << k;
                if (!s.muted) s.edge = 1;
            });
        for (int is_short = 0; is_short < 2 && t->at == AWAY; is_short++)
            STEP("thread: reads", {
                if (s.unread & 1u << k) {
                    s.unread &= ~(1u << k) & 3;
                } else {
                    s.t[k].waits = 1;
                    if (!is_short && may_drive(&s))
                        drive(&s, k);
                    else
                        sleep_on(&s, k);
                }
            });
        for (int is_hot = 0; is_hot < 2 && t->at == POLLS; is_hot++)
            STEP("thread: its deadline passes in poll", {
                if (!s.polling) s.notified = 0;
                s.polling = 0;
                drive_end(&s, is_hot);
                sleep_end(&s, k);
            });
        if (t->at == SLEEPS && !t->latch)
            STEP("thread: its deadline passes", {
                s.t[k].woken = 1;
                sleep_end(&s, k);
            });
        if (from->rouses && t->waits)
            STEP("somebody wakes the thread", {
                s.rouses = 0;
                rouse(&s, k);
                if (mutated == LOSE_THE_ROUSED) s.roused = 0;
            });
    }
    if (!from->sinks)
        STEP("a relay begins", {
            s.sinks = 1;
            if (s.reader == THREAD)
                interrupt(&s);
            else if (mutated != RELAY_WITHOUT_WATCH)
                watch(&s);
        });
    internal = before;
}

static void judge(const state *s)
{
    int reads = s->loop == CLAIMED;
    for (int k = 0; k < THREADS; k++) {
        const thread_state *t = &s->t[k];
        reads += t->at == RECEIVES;
        if (t->waits && !t->woken && s->unread & 1u << k)
            broken = "a thread waits for what is in its chunks";
        if (!internal && t->woken) broken = "a thread was woken and sleeps for ever";
        if (s->reader == LEASE && t->at == SLEEPS && !t->woken)
            broken = "a thread waits while nobody looks at the socket";
    }
    if (reads > 1) broken = "two read at one time";
    if (!internal && s->socket) broken = "bytes wait in the socket and nobody will look";
    if (s->sinks && s->reader == LEASE) broken = "a relay runs while nobody looks at the socket";
    if (!internal && s->sinks && s->reader != LOOP) broken = "a relay runs beside a thread";
}

static void trace(uint32_t at, int depth)
{
    if (nodes[at].from != at && depth < 60) trace(nodes[at].from, depth + 1);
    printf("      %s\n", nodes[at].step);
}

// Returns what is broken, or NULL.
static const char *search(enum mutation m)
{
    state start;
    memset(&start, 0, sizeof start);
    start.arrivals = ARRIVALS;
    start.rouses = 1;
    mutated = m;
    broken = NULL;
    memset(table, 0, TABLE * sizeof *table);
    count = here = 0;
    reach(&start, "start");
    for (here = 0; here < count && !broken; here++) {
        internal = 0;
        loop_steps(&nodes[here].s);
        for (int k = 0; k < THREADS; k++) thread_steps(&nodes[here].s, k);
        outer_steps(&nodes[here].s);
        if (!broken) judge(&nodes[here].s);
        if (broken && m == NONE) trace(here, 0);
    }
    return broken;
}

TEST(whoever_reads_no_byte_and_no_thread_is_left_behind)
{
    const char *what = search(NONE);
    if (what) test_fail(__FILE__, __LINE__, "%s, after %u states", what, count);
    CHECK(count > 10000);
    printf("      %u states\n", count);
}

TEST(each_thing_that_the_algorithm_does_is_needed)
{
    for (int m = NONE + 1; m < MUTATIONS; m++) {
        const char *what = search((enum mutation)m);
        if (!what) test_fail(__FILE__, __LINE__, "%s: nothing breaks", mutation_names[m]);
    }
}

int main(int argc, char **argv)
{
    nodes = calloc(NODES, sizeof *nodes);
    table = calloc(TABLE, sizeof *table);
    if (!nodes || !table) return 1;
    return test_main(argc, argv);
}
