// What the tests of floods share: strangers from addresses of their own, and a thousand of them.
#ifndef REVDIAL_TEST_FLOOD_UTIL_H
#define REVDIAL_TEST_FLOOD_UTIL_H

// Included first: it chooses the feature macros of everything.
#include "runtime_util.h"

// Connects from an address of loopback of its own: 127.0.0.`last`.
static inline int connect_from(const char *address, int last)
{
    struct sockaddr_in at = {.sin_family = AF_INET}, from = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    at.sin_port = htons((uint16_t)atoi(strrchr(address, ':') + 1));
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    from.sin_addr.s_addr = htonl(0x7f000000u + (unsigned)last);
    if (bind(fd, (struct sockaddr *)&from, sizeof from) == 0 &&
        connect(fd, (struct sockaddr *)&at, sizeof at) == 0)
        return fd;
    close(fd);
    return -1;
}

// Connections that have not authenticated yet.
static inline int pending_of(revdial_proxy *p)
{
    int pending;
    pthread_mutex_lock(&p->lock);
    pending = (int)p->pending;
    pthread_mutex_unlock(&p->lock);
    return pending;
}

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
    d->fds[i] = connect_from(d->address, d->from);
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
