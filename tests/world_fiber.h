// Threads of the simulated world: fibers under one scheduler, in virtual time, driven by a seed.
// One runs at a time. A fiber gives way where it waits, and with a probability of the seed's own at
// each call of the system or of pthreads. When none can run, time jumps to the next event.
//
//    events     event_set, event_stop: a function at a point in time
//    waiting    wait_on a queue of waiters until a time; wake_one, wake_all
//    fibers     fiber_new; fiber_may_yield; world_loop runs all until the world is over
//    failures   world_fail keeps the first reason and ends the run
#ifndef REVDIAL_TEST_WORLD_FIBER_H
#define REVDIAL_TEST_WORLD_FIBER_H

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>
#include <time.h>

#include "test.h"

#if !defined(__x86_64__) || defined(__ILP32__)
#define FIBER_UCONTEXT 1
#include <ucontext.h>
#else
#define FIBER_UCONTEXT 0
#endif

#if defined(__SANITIZE_ADDRESS__)
#define FIBER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FIBER_ASAN 1
#endif
#endif
#ifndef FIBER_ASAN
#define FIBER_ASAN 0
#endif
#if defined(__SANITIZE_THREAD__)
#define FIBER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define FIBER_TSAN 1
#endif
#endif
#ifndef FIBER_TSAN
#define FIBER_TSAN 0
#endif
#if FIBER_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if FIBER_TSAN
#include <sanitizer/tsan_interface.h>
#endif

enum {
    FIBER_STACK = 256 * 1024,
    FIBER_MOST = 4096,        // a world with more has lost count of its threads
    FIBER_NODES = 3,          // queues that one fiber waits in
    WORLD_STEPS = 400 * 1000  // switches; a world that needs more runs in circles
};

typedef struct world_event world_event;
struct world_event {
    int64_t at_us;
    uint64_t turn;  // of two at one time the one that was set first
    size_t slot;    // index in the heap plus one, 0 = not set
    void (*run)(world_event *e);
};

typedef struct waiter {
    struct waiter *next, **to_me;
    struct fiber *fiber;
} waiter;

typedef struct wait_queue {
    waiter *first, **last;
} wait_queue;

enum fiber_state { FIBER_READY, FIBER_RUNS, FIBER_WAITS, FIBER_OVER };

typedef struct fiber {
    enum fiber_state state;
    struct fiber *next, **to_me;  // of all
    size_t ready_at;              // index in the ready list
    void *stack;
    size_t stack_size;
#if FIBER_UCONTEXT
    ucontext_t context;
#else
    void *sp;
#endif
    void *shadow;  // of a sanitizer
    void *(*run)(void *);
    void *arg, *result;
    waiter nodes[FIBER_NODES];
    world_event alarm;
    int timed_out, is_detached;
    unsigned looks;     // for descriptors, in vain and without a wait
    const void *futex;  // the word that it sleeps on
    wait_queue joins;
    struct machine *machine;
    const char *name, *waits;  // for people: what it is, and what ends its wait
    unsigned number;
} fiber;

typedef struct world_clock {
    int64_t now_us;
    world_event **heap;
    size_t count, room;
    uint64_t turns;
} world_clock;

// All of one run. Only one world exists at a time.
typedef struct world_state {
    world_clock clock;
    test_rng rng;            // of the scheduler and of the simulated system
    unsigned yield_one_in;   // 0: never by chance
    unsigned short_one_in;   // reads and writes that move less than they could
    unsigned signal_one_in;  // waits that a signal ends
    int is_fifo;             // the scheduler takes turns instead of drawing
    fiber *all, *ready[FIBER_MOST];
    size_t ready_count, fiber_count;
    fiber *self;  // NULL: the scheduler
    fiber scheduler;
    uint64_t hash, steps, calls;
    int64_t jumped_us;  // the clock, in all: time in which nobody could do anything
    unsigned numbers;
    int trace, failed, over;
    char why[600];
} world_state;
static world_state wd;

static void *fiber_stacks[FIBER_MOST];  // of fibers that are over, for others
static size_t fiber_stack_count;

static void world_mix(uint64_t v)
{
    wd.hash = (wd.hash ^ v) * 0x9E3779B97F4A7C15u;
}

static const char *fiber_name(void)
{
    return wd.self ? wd.self->name : "system";
}

__attribute__((format(printf, 1, 2))) static void world_note(const char *format, ...)
{
    va_list args;
    if (!wd.trace) return;
    fprintf(stderr, "%12.6f %-10s %2u  ", (double)wd.clock.now_us / 1e6, fiber_name(),
            wd.self ? wd.self->number : 0);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

__attribute__((format(printf, 1, 2))) static void world_fail(const char *format, ...)
{
    va_list args;
    if (wd.failed) return;
    wd.failed = 1;
    va_start(args, format);
    vsnprintf(wd.why, sizeof wd.why, format, args);
    va_end(args);
    world_note("FAILS: %s", wd.why);
}

static uint64_t world_below(uint64_t bound)
{
    return test_below(&wd.rng, bound);
}
static int world_chance(unsigned one_in)
{
    return one_in && world_below(one_in) == 0;
}

// ---- events: a binary heap

static int event_is_before(const world_event *a, const world_event *b)
{
    return a->at_us != b->at_us ? a->at_us < b->at_us : a->turn < b->turn;
}

static void event_place(size_t i, world_event *e)
{
    wd.clock.heap[i] = e;
    e->slot = i + 1;
}

static void event_settle(size_t i, world_event *e)
{
    world_event **heap = wd.clock.heap;
    for (; i > 0 && event_is_before(e, heap[(i - 1) / 2]); i = (i - 1) / 2)
        event_place(i, heap[(i - 1) / 2]);
    for (size_t c = 2 * i + 1; c < wd.clock.count; c = 2 * i + 1) {
        if (c + 1 < wd.clock.count && event_is_before(heap[c + 1], heap[c])) c++;
        if (!event_is_before(heap[c], e)) break;
        event_place(i, heap[c]);
        i = c;
    }
    event_place(i, e);
}

static void event_stop(world_event *e)
{
    size_t i = e->slot - 1;
    if (!e->slot) return;
    world_event *last = wd.clock.heap[--wd.clock.count];
    e->slot = 0;
    if (last != e) event_settle(i, last);
}

static void event_set(world_event *e, int64_t at_us)
{
    event_stop(e);
    if (wd.clock.count == wd.clock.room) {
        wd.clock.room = wd.clock.room ? 2 * wd.clock.room : 256;
        wd.clock.heap = realloc(wd.clock.heap, wd.clock.room * sizeof *wd.clock.heap);
        if (!wd.clock.heap) abort();
    }
    e->at_us = at_us > wd.clock.now_us ? at_us : wd.clock.now_us;
    e->turn = wd.clock.turns++;
    event_settle(wd.clock.count++, e);
}

// ---- switching

#if !FIBER_UCONTEXT
// What a function must keep by the System V ABI, on the stack that is left.
void fiber_swap(void **save, void *load);
__asm__(".text\n"
        ".p2align 4\n"
        ".globl fiber_swap\n"
        ".type fiber_swap, @function\n"
        "fiber_swap:\n"
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n"
        "    pushq %r13\n    pushq %r14\n    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n"
        "    popq %r12\n    popq %rbx\n    popq %rbp\n"
        "    ret\n"
        ".size fiber_swap, .-fiber_swap\n");
#endif

static void fiber_switch(fiber *from, fiber *to)
{
    int error = errno;
#if FIBER_ASAN
    void *fake = NULL;
    __sanitizer_start_switch_fiber(from->state == FIBER_OVER ? NULL : &fake, to->stack,
                                   to->stack_size);
#endif
#if FIBER_TSAN
    __tsan_switch_to_fiber(to->shadow, 0);
#endif
#if FIBER_UCONTEXT
    swapcontext(&from->context, &to->context);
#else
    fiber_swap(&from->sp, to->sp);
#endif
#if FIBER_ASAN
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
#endif
    errno = error;
}

static void fiber_leave(void)
{
    fiber *self = wd.self;
    fiber_switch(self, &wd.scheduler);
}

static void fiber_push_ready(fiber *f)
{
    f->state = FIBER_READY;
    f->ready_at = wd.ready_count;
    wd.ready[wd.ready_count++] = f;
}

static void fiber_unqueue(fiber *f)
{
    for (int i = 0; i < FIBER_NODES; i++) {
        waiter *n = &f->nodes[i];
        if (!n->to_me) continue;
        *n->to_me = n->next;
        if (n->next) n->next->to_me = n->to_me;
        n->to_me = NULL;
    }
}

static void fiber_wake(fiber *f, int timed_out)
{
    if (f->state != FIBER_WAITS) return;
    fiber_unqueue(f);
    event_stop(&f->alarm);
    f->timed_out = timed_out;
    fiber_push_ready(f);
}

static void fiber_on_alarm(world_event *e)
{
    fiber_wake((fiber *)((char *)e - offsetof(fiber, alarm)), 1);
}

static void wake_one(wait_queue *q)
{
    if (q->first) fiber_wake(q->first->fiber, 0);
}

static void wake_all(wait_queue *q)
{
    while (q->first) fiber_wake(q->first->fiber, 0);
}

static void wait_join(wait_queue *q, int node)
{
    waiter *n = &wd.self->nodes[node], **at = &q->first;
    while (*at) at = &(*at)->next;
    n->next = NULL;
    n->to_me = at;
    n->fiber = wd.self;
    *at = n;
}

// Sleeps until somebody wakes a queue that this fiber has joined; until_us -1: for ever.
//   returns  0, or ETIMEDOUT
static int wait_now(int64_t until_us, const char *what)
{
    fiber *self = wd.self;
    self->state = FIBER_WAITS;
    self->waits = what;
    if (until_us >= 0) event_set(&self->alarm, until_us);
    fiber_leave();
    self->waits = "";
    return self->timed_out ? ETIMEDOUT : 0;
}

static int wait_on(wait_queue *q, int64_t until_us, const char *what)
{
    wait_join(q, 0);
    return wait_now(until_us, what);
}

static void world_sleep_us(int64_t us, const char *what)
{
    wait_now(wd.clock.now_us + us, what);
}

static void fiber_yield(void)
{
    fiber_push_ready(wd.self);
    fiber_leave();
}

// A call of the system: it takes a microsecond, and another thread may run first.
static void fiber_may_yield(void)
{
    wd.calls++;
    wd.clock.now_us++;
    int is_due = wd.clock.count && wd.clock.heap[0]->at_us <= wd.clock.now_us;
    if (wd.self && (is_due || world_chance(wd.yield_one_in))) fiber_yield();
}

static void fiber_main(void)
{
    fiber *self = wd.self;
#if FIBER_ASAN
    const void *bottom;
    __sanitizer_finish_switch_fiber(NULL, &bottom, &wd.scheduler.stack_size);
    wd.scheduler.stack = (void *)(uintptr_t)bottom;
#endif
    self->result = self->run(self->arg);
    self->state = FIBER_OVER;
    wake_all(&self->joins);
    fiber_leave();
    abort();
}

static void *fiber_stack_new(void)
{
    if (fiber_stack_count) {
        void *used = fiber_stacks[--fiber_stack_count];
#if FIBER_ASAN
        __asan_unpoison_memory_region(used, FIBER_STACK);
#endif
        return used;
    }
    char *at = mmap(NULL, FIBER_STACK + 4096, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED || mprotect(at, 4096, PROT_NONE)) abort();
    return at + 4096;
}

static void fiber_prepare(fiber *f)
{
#if FIBER_UCONTEXT
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = FIBER_STACK;
    makecontext(&f->context, fiber_main, 0);
#else
    uint64_t *top = (uint64_t *)(void *)((char *)f->stack + FIBER_STACK);
    *--top = 0;  // where fiber_main would return to: keeps its frame aligned
    *--top = (uint64_t)(uintptr_t)fiber_main;
    for (int i = 0; i < 6; i++) *--top = 0;
    f->sp = top;
#endif
#if FIBER_TSAN
    f->shadow = __tsan_create_fiber(0);
#endif
}

static fiber *fiber_new(const char *name, struct machine *m, void *(*run)(void *), void *arg)
{
    fiber *f = calloc(1, sizeof *f);
    if (!f || wd.fiber_count == FIBER_MOST) abort();
    f->name = name;
    f->waits = "";
    f->machine = m;
    f->run = run;
    f->arg = arg;
    f->alarm.run = fiber_on_alarm;
    f->number = ++wd.numbers;
    f->stack = fiber_stack_new();
    f->stack_size = FIBER_STACK;
    fiber_prepare(f);
    f->next = wd.all;
    f->to_me = &wd.all;
    if (wd.all) wd.all->to_me = &f->next;
    wd.all = f;
    wd.fiber_count++;
    fiber_push_ready(f);
    return f;
}

static void fiber_free(fiber *f)
{
    *f->to_me = f->next;
    if (f->next) f->next->to_me = f->to_me;
#if FIBER_TSAN
    __tsan_destroy_fiber(f->shadow);
#endif
    fiber_stacks[fiber_stack_count++] = f->stack;
    wd.fiber_count--;
    free(f);
}

// Those that wait for ever, when the world is over.
static void fibers_end(void)
{
    while (wd.all) {
        fiber_unqueue(wd.all);
        event_stop(&wd.all->alarm);
        fiber_free(wd.all);
    }
}

static void world_run_events(void)
{
    while (wd.clock.count && wd.clock.heap[0]->at_us <= wd.clock.now_us) {
        world_event *e = wd.clock.heap[0];
        event_stop(e);
        e->run(e);
    }
}

// The next to run: by chance, or the one that has waited longest.
static fiber *world_pick(void)
{
    size_t i = wd.is_fifo ? 0 : (size_t)world_below(wd.ready_count);
    fiber *f = wd.ready[i];
    wd.ready_count--;
    if (wd.is_fifo)
        memmove(wd.ready, wd.ready + 1, wd.ready_count * sizeof *wd.ready);
    else
        wd.ready[i] = wd.ready[wd.ready_count];
    return f;
}

// Who waits for what.
static void world_tell_waits(char *text, size_t size)
{
    size_t n = 0;
    for (fiber *f = wd.all; f && n + 1 < size; f = f->next) {
        if (f->state != FIBER_WAITS) continue;
        int k = snprintf(text + n, size - n, " %s(%u):%s", f->name, f->number, f->waits);
        n += k > 0 ? (size_t)k : 0;
    }
}

static void world_stuck(const char *why)
{
    char waits[400] = "";
    world_tell_waits(waits, sizeof waits);
    world_fail("%s;%s", why, waits);
}

// Runs until the world is over or has failed.
static void world_loop(void)
{
#if FIBER_TSAN
    wd.scheduler.shadow = __tsan_get_current_fiber();
#endif
    while (!wd.over && !wd.failed) {
        world_run_events();
        if (!wd.ready_count) {
            if (!wd.clock.count) {
                world_stuck("nothing can run, and nothing will happen");
                break;
            }
            wd.clock.now_us = wd.clock.heap[0]->at_us;
            continue;
        }
        if (++wd.steps > WORLD_STEPS) {
            world_stuck("the world runs in circles");
            break;
        }
        fiber *f = world_pick();
        world_mix(f->number);
        f->state = FIBER_RUNS;
        wd.self = f;
        fiber_switch(&wd.scheduler, f);
        wd.self = NULL;
        if (f->state == FIBER_OVER && f->is_detached) fiber_free(f);
    }
}

#endif
