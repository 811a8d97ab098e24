// The system calls that the tests of the runtime replace. runtime_util.h has the functions; the
// implementation that all of these suites link with calls them.
#ifndef REVDIAL_TEST_HOOKS_H
#define REVDIAL_TEST_HOOKS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

int util_getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
                     struct addrinfo **out);
int util_thread_create(pthread_t *t, const pthread_attr_t *attr, void *(*run)(void *), void *arg);
int util_accept(int fd, struct sockaddr *from, socklen_t *len);
int util_clock_gettime(clockid_t id, struct timespec *t);
int util_close(int fd);
int util_connect(int fd, const struct sockaddr *to, socklen_t len);
int util_getrlimit(int what, struct rlimit *out);
int util_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *until);
int util_poll(struct pollfd *items, nfds_t count, int timeout_ms);
int util_getpeername(int fd, struct sockaddr *a, socklen_t *len);
const struct timespec *util_real(const struct timespec *until, struct timespec *room);
#define RVD_SYS_ACCEPT util_accept
#define RVD_SYS_CLOCK_GETTIME util_clock_gettime
#define RVD_SYS_CLOSE util_close
#define RVD_SYS_CONNECT util_connect
#define RVD_SYS_COND_TIMEDWAIT util_cond_timedwait
#define RVD_SYS_FUTEX(word, op, value, until, word2, mask) \
    syscall(SYS_futex, word, op, value, util_real(until, &(struct timespec){0, 0}), word2, mask)
#define RVD_SYS_GETADDRINFO util_getaddrinfo
#define RVD_SYS_GETRLIMIT util_getrlimit
#define RVD_SYS_GETPEERNAME util_getpeername
#define RVD_SYS_POLL util_poll
#define RVD_SYS_THREAD_CREATE util_thread_create

#endif
