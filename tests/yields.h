// With -DTEST_YIELDS a thread gives way by chance wherever it takes or leaves a lock or wakes
// another one: so threads meet in orders that an idle machine hardly shows.    make yields
// $TEST_YIELDS_SEED chooses other places.
#ifndef REVDIAL_TEST_YIELDS_H
#define REVDIAL_TEST_YIELDS_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

enum { YIELDS_ONE_IN = 8 };

// Each thread draws by itself (xorshift64): a generator that all share would put them in step.
static inline void yields_maybe(void)
{
    static atomic_uint threads;
    static _Thread_local uint64_t state;
    if (!state) {
        const char *seed = getenv("TEST_YIELDS_SEED");
        state = (seed ? strtoull(seed, NULL, 10) : 0) << 32 | atomic_fetch_add(&threads, 1);
        state = (state + 1) * 0x9E3779B97F4A7C15u;
    }
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    if ((state >> 32) % YIELDS_ONE_IN == 0) sched_yield();
}

// The names are not replaced in here: these are the real calls.
static inline int yields_lock(pthread_mutex_t *m)
{
    yields_maybe();
    int r = pthread_mutex_lock(m);
    yields_maybe();
    return r;
}

static inline int yields_trylock(pthread_mutex_t *m)
{
    yields_maybe();
    return pthread_mutex_trylock(m);
}

static inline int yields_unlock(pthread_mutex_t *m)
{
    yields_maybe();
    int r = pthread_mutex_unlock(m);
    yields_maybe();
    return r;
}

static inline int yields_wait(pthread_cond_t *c, pthread_mutex_t *m)
{
    yields_maybe();
    return pthread_cond_wait(c, m);
}

static inline int yields_signal(pthread_cond_t *c)
{
    yields_maybe();
    int r = pthread_cond_signal(c);
    yields_maybe();
    return r;
}

static inline int yields_broadcast(pthread_cond_t *c)
{
    yields_maybe();
    int r = pthread_cond_broadcast(c);
    yields_maybe();
    return r;
}

#define pthread_mutex_lock yields_lock
#define pthread_mutex_trylock yields_trylock
#define pthread_mutex_unlock yields_unlock
#define pthread_cond_wait yields_wait
#define pthread_cond_signal yields_signal
#define pthread_cond_broadcast yields_broadcast

#endif
