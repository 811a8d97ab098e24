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
int util_accept4(int fd, struct sockaddr *from, socklen_t *len, int flags);
int util_clock_gettime(clockid_t id, struct timespec *t);
int util_close(int fd);
int util_connect(int fd, const struct sockaddr *to, socklen_t len);
int util_getrlimit(int what, struct rlimit *out);
int util_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *until);
int util_poll(struct pollfd *items, nfds_t count, int timeout_ms);
int util_getpeername(int fd, struct sockaddr *a, socklen_t *len);
int util_getsockname(int fd, struct sockaddr *a, socklen_t *len);
int util_getsockopt(int fd, int level, int option, void *value, socklen_t *len);
ssize_t util_send(int fd, const void *buf, size_t len, int flags);
ssize_t util_recv(int fd, void *buf, size_t len, int flags);
int util_madvise(void *at, size_t len, int advice);
int util_setsockopt(int fd, int level, int option, const void *value, socklen_t len);
struct epoll_event;
int util_epoll_ctl(int epoll, int op, int fd, struct epoll_event *e);
const struct timespec *util_real(const struct timespec *until, struct timespec *room);

// The library calls send(2) by another name if FAKE_send is defined as a comma and that name.
#define RVD_SYS(call) FAKE_CHOOSE(FAKE_##call, call, )
#define FAKE_CHOOSE(...) FAKE_SECOND(__VA_ARGS__)
#define FAKE_SECOND(first, second, ...) second
#define FAKE_accept4 , util_accept4
#define FAKE_clock_gettime , util_clock_gettime
#define FAKE_close , util_close
#define FAKE_connect , util_connect
#define FAKE_epoll_ctl , util_epoll_ctl
#define FAKE_getaddrinfo , util_getaddrinfo
#define FAKE_getpeername , util_getpeername
#define FAKE_getrlimit , util_getrlimit
#define FAKE_getsockname , util_getsockname
#define FAKE_getsockopt , util_getsockopt
#define FAKE_madvise , util_madvise
#define FAKE_poll , util_poll
#define FAKE_pthread_cond_timedwait , util_cond_timedwait
#define FAKE_pthread_create , util_thread_create
#define FAKE_recv , util_recv
#define FAKE_send , util_send
#define FAKE_setsockopt , util_setsockopt
#define FAKE_syscall , util_futex
#define util_futex(number, word, op, value, until, word2, mask) \
    syscall(number, word, op, value, util_real(until, &(struct timespec){0, 0}), word2, mask)

// Other builds of the same tests: what the implementation and its tests call is replaced.
#ifdef TEST_YIELDS
#include "yields.h"
#endif
#ifdef TEST_HELGRIND
#include "helgrind.h"
#endif

#endif
