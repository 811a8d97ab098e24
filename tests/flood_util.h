// What the tests of floods share: strangers from addresses of their own, and a thousand of them.
#ifndef REVDIAL_TEST_FLOOD_UTIL_H
#define REVDIAL_TEST_FLOOD_UTIL_H

// Included first: it chooses the feature macros of everything.
#include "runtime_util.h"

// As many descriptors as this machine gives to one process: both ends are here.
static inline void flood_unlimit(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

typedef struct drip {
    const char *address;
    const char *hello;  // what each says first, before it drips
    size_t hello_len;
    int from, count;
    int fds[1000];
    atomic_int stop;
    util_gate going;
    pthread_t thread;
} drip;

static inline void drip_open(drip *d, int i)
{
    d->fds[i] = raw_connect_from(d->address, d->from);
    if (d->fds[i] >= 0) raw_send(d->fds[i], d->hello, d->hello_len);
}

// Keeps so many connections open that send a byte now and then; whoever is cut off comes back.
static inline void *drip_run(void *arg)
{
    drip *d = arg;
    for (int i = 0; i < d->count; i++) drip_open(d, i);
    util_gate_add(&d->going, 1);
    while (!atomic_load(&d->stop)) {
        for (int i = 0; i < d->count && !atomic_load(&d->stop); i++) {
            if (d->fds[i] >= 0 && raw_wait(d->fds[i], POLLIN | POLLHUP, 0)) {
                close(d->fds[i]);
                drip_open(d, i);
            } else if (d->fds[i] >= 0) {
                raw_say(d->fds[i], "x");
            }
        }
        util_nap_ms(20);
        util_gate_add(&d->going, 1);
    }
    for (int i = 0; i < d->count; i++) close(d->fds[i]);
    return NULL;
}

// Returns when all are there, and those that were cut off came back.
static inline int drip_start(drip *d, const char *address, int from)
{
    flood_unlimit();
    memset(d->fds, 0, sizeof d->fds);
    atomic_store(&d->stop, 0);
    util_gate_init(&d->going);
    d->address = address;
    d->from = from;
    d->count = 1000;
    d->thread = util_thread(drip_run, d);
    return util_gate_wait(&d->going, 2);
}

static inline void drip_stop(drip *d)
{
    atomic_store(&d->stop, 1);
    pthread_join(d->thread, NULL);
}

#endif
