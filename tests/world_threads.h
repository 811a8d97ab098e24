// pthreads, futexes and the heap of the simulated world, as revdial.h calls them. A mistake of the
// caller (a mutex that is unlocked by a stranger, locked twice, or destroyed while it is in use) is
// a failure of the run.
#ifndef REVDIAL_TEST_WORLD_THREADS_H
#define REVDIAL_TEST_WORLD_THREADS_H

#include <signal.h>
#include <sys/syscall.h>

#include "world_machine.h"

typedef fiber *sim_pthread_t;
typedef struct sim_mutex {
    fiber *owner;
    wait_queue waits;
    unsigned alive;  // WORLD_ALIVE while it is
} sim_pthread_mutex_t;
typedef struct sim_cond {
    wait_queue waits;
    unsigned alive;
} sim_pthread_cond_t;

enum { WORLD_ALIVE = 0x5eed5eed, SIM_FUTEX_WAKE = 129 };

// ---- threads

static int sim_pthread_create(sim_pthread_t *t, const pthread_attr_t *attr, void *(*run)(void *),
                              void *arg)
{
    (void)attr;
    fiber_may_yield();
    if (machine_lacks(wd.self->machine, LACK_THREAD)) return EAGAIN;
    *t = fiber_new(wd.self->machine->name, wd.self->machine, run, arg);
    wd.self->machine->threads++;
    return 0;
}

static int sim_pthread_join(sim_pthread_t t, void **result)
{
    fiber_may_yield();
    if (t == wd.self) world_fail("a thread joins itself");
    while (t->state != FIBER_OVER) wait_on(&t->joins, -1, "the end of a thread");
    if (result) *result = t->result;
    t->machine->threads--;
    fiber_free(t);
    return 0;
}

static int sim_pthread_detach(sim_pthread_t t)
{
    t->is_detached = 1;
    t->machine->threads--;
    if (t->state == FIBER_OVER) fiber_free(t);
    return 0;
}

static sim_pthread_t sim_pthread_self(void)
{
    return wd.self;
}
static int sim_pthread_equal(sim_pthread_t a, sim_pthread_t b)
{
    return a == b;
}

static int sim_pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
{
    (void)how, (void)set;
    if (old) sigemptyset(old);
    return 0;
}

// A thread that gives way again and again lets time pass.
static int sim_sched_yield(void)
{
    world_sleep_us(1, "a moment");
    return 0;
}

// ---- mutexes

static int sim_pthread_mutex_init(sim_pthread_mutex_t *m, const pthread_mutexattr_t *attr)
{
    (void)attr;
    if (machine_lacks(wd.self->machine, LACK_LOCK)) return ENOMEM;
    memset(m, 0, sizeof *m);
    m->alive = WORLD_ALIVE;
    return 0;
}

static void mutex_check(const sim_pthread_mutex_t *m)
{
    if (m->alive != WORLD_ALIVE) world_fail("a mutex is used that was destroyed or never made");
}

static int sim_pthread_mutex_destroy(sim_pthread_mutex_t *m)
{
    mutex_check(m);
    if (m->owner || m->waits.first) world_fail("a mutex is destroyed that is in use");
    m->alive = 0;
    return 0;
}

static void mutex_take(sim_pthread_mutex_t *m)
{
    while (m->owner) wait_on(&m->waits, -1, m->owner->name);
    m->owner = wd.self;
}

static int sim_pthread_mutex_lock(sim_pthread_mutex_t *m)
{
    fiber_may_yield();
    mutex_check(m);
    if (m->owner == wd.self) {
        world_fail("a thread locks a mutex twice");
        fiber_yield();
    }
    mutex_take(m);
    return 0;
}

static int sim_pthread_mutex_trylock(sim_pthread_mutex_t *m)
{
    fiber_may_yield();
    mutex_check(m);
    if (m->owner) return EBUSY;
    m->owner = wd.self;
    return 0;
}

static int sim_pthread_mutex_unlock(sim_pthread_mutex_t *m)
{
    mutex_check(m);
    if (m->owner != wd.self) world_fail("a mutex is unlocked by a stranger");
    m->owner = NULL;
    wake_one(&m->waits);
    fiber_may_yield();
    return 0;
}

// ---- conditions: now and then one wakes for no reason

static int sim_pthread_cond_init(sim_pthread_cond_t *c, const pthread_condattr_t *attr)
{
    (void)attr;
    if (machine_lacks(wd.self->machine, LACK_LOCK)) return ENOMEM;
    memset(c, 0, sizeof *c);
    c->alive = WORLD_ALIVE;
    return 0;
}

static int sim_pthread_cond_destroy(sim_pthread_cond_t *c)
{
    if (c->alive != WORLD_ALIVE || c->waits.first)
        world_fail("a condition is destroyed that is in use, or twice");
    c->alive = 0;
    return 0;
}

static int cond_wait(sim_pthread_cond_t *c, sim_pthread_mutex_t *m, int64_t until_us)
{
    int r = 0;
    if (m->owner != wd.self || c->alive != WORLD_ALIVE) world_fail("a wait without its mutex");
    m->owner = NULL;
    wake_one(&m->waits);
    if (until_us < 0 || until_us > wd.clock.now_us) {
        if (world_chance(100))
            fiber_yield();
        else
            r = wait_on(&c->waits, until_us, "a condition");
    } else {
        r = ETIMEDOUT;
    }
    mutex_take(m);
    return r;
}

static int64_t time_of(const struct timespec *t)
{
    return t ? (int64_t)t->tv_sec * 1000000 + (t->tv_nsec + 999) / 1000 : -1;
}

static int sim_pthread_cond_wait(sim_pthread_cond_t *c, sim_pthread_mutex_t *m)
{
    return cond_wait(c, m, -1);
}

static int sim_pthread_cond_timedwait(sim_pthread_cond_t *c, sim_pthread_mutex_t *m,
                                      const struct timespec *until)
{
    return cond_wait(c, m, time_of(until));
}

static inline int sim_pthread_cond_signal(sim_pthread_cond_t *c)
{
    wake_one(&c->waits);
    fiber_may_yield();
    return 0;
}

static int sim_pthread_cond_broadcast(sim_pthread_cond_t *c)
{
    wake_all(&c->waits);
    fiber_may_yield();
    return 0;
}

// ---- futexes

static wait_queue futex_waits;

#define sim_syscall(number, word, op, value, until, ...) sim_futex(word, op, value, until)

static inline long sim_futex(void *word, int op, int value, const struct timespec *until)
{
    fiber_may_yield();
    if (op == SIM_FUTEX_WAKE) {
        for (waiter *n = futex_waits.first; n; n = n->next) {
            if (n->fiber->futex != word) continue;
            fiber_wake(n->fiber, 0);
            return 1;
        }
        return 0;
    }
    if (*(volatile int *)word != value) {
        errno = EAGAIN;
        return -1;
    }
    if (world_chance(100)) {
        fiber_yield();
        errno = EINTR;
        return -1;
    }
    wd.self->futex = word;
    int r = wait_on(&futex_waits, time_of(until), "a latch");
    errno = r;
    return r ? -1 : 0;
}

// ---- the heap

// What revdial.h takes from the system without the allocator of a proxy or an agent, and what those
// take: each block knows its machine.
typedef struct heap_block {
    machine *machine;
    size_t size;
} heap_block;

static void *heap_resize(machine *m, void *ptr, size_t size)
{
    heap_block *old = ptr ? (heap_block *)ptr - 1 : NULL, *fresh;
    if (old) m = old->machine;
    if (size == 0) {
        if (old) {
            m->heap_bytes -= old->size;
            m->heap_blocks--;
            free(old);
        }
        return NULL;
    }
    if ((!old || size > old->size) && machine_lacks(m, LACK_MEMORY)) return NULL;
    fresh = realloc(old, sizeof *fresh + size);
    if (!fresh) abort();
    m->heap_bytes += size - (old ? fresh->size : 0);
    if (m->heap_bytes > m->heap_peak) m->heap_peak = m->heap_bytes;
    m->heap_blocks += !old;
    fresh->machine = m;
    fresh->size = size;
    return fresh + 1;
}

static void sim_free(void *ptr)
{
    heap_resize(NULL, ptr, 0);
}

#endif
