// Calls of the simulated system that fail on demand: the n-th of its kind that revdial.h makes,
// once or from there on, with each error that its man page lists and that can happen to this code.
// RVD_SYS(call) is fault_call, which is sim_call unless the call has to fail.
#ifndef REVDIAL_TEST_WORLD_FAULTS_H
#define REVDIAL_TEST_WORLD_FAULTS_H

#include "world_calls.h"

// X(call, words): if a failure ends something, an error or a line of the log has one of the words,
// which stand between bars.
#define FAULT_CALLS(X) \
    X(accept4, "accept") \
    X(bind, "listen|I/O loop|receiving") \
    X(close, "") \
    X(connect, "connect|unreachable|refused|timed out|over a budget|listen") \
    X(epoll_create1, "I/O loop") \
    X(epoll_ctl, "watch|I/O loop|connect|unreachable|over a budget") \
    X(epoll_wait, "") \
    X(eventfd, "I/O loop|thread") \
    X(fchmodat, "listen") \
    X(fcntl, "descriptor") \
    X(getaddrinfo, "resolve|no such host|DNS|over a budget|unreachable:") \
    X(getpeername, "connect|gone") \
    X(getrandom, "randomness") \
    X(getrlimit, "") \
    X(getsockname, "connect") \
    X(getsockopt, "connect|gone") \
    X(ioctl, "") \
    X(listen, "listen") \
    X(lstat, "listen") \
    X(memory, "memory|internal error|over a budget") \
    X(open, "randomness") \
    X(pipe2, "I/O loop") \
    X(pipe_size, "") \
    X(poll, "receiving") \
    X(pthread_cond_init, "condition|mutex|memory|pool") \
    X(pthread_create, "thread|over a budget") \
    X(pthread_mutex_init, "mutex|memory|pool") \
    X(read, "") \
    X(readv, "receiving|reading|the connection was lost") \
    X(recv, "receiving|reading|gone|the connection was lost|egress proxy was lost") \
    X(send, "sending|writing|gone|the connection was lost|egress proxy was lost|unreachable|over " \
            "a budget") \
    X(sendmsg, "sending|writing|gone|the connection was lost|egress proxy was lost") \
    X(setsockopt, "listen") \
    X(shutdown, "receiving|sending|reading|writing|gone") \
    X(socket, "socket|listen|connect|over a budget|unreachable") \
    X(splice, \
      "receiving|sending|reading|writing|gone|the connection was lost|egress proxy was lost") \
    X(syscall, "") \
    X(unlink, "listen") \
    X(write, "")

enum fault_call {
    FAULT_none,  // nothing fails
#define FAULT_X(call, words) FAULT_##call,
    FAULT_CALLS(FAULT_X)
#undef FAULT_X
        FAULTS
};
static const struct {
    const char *name, *words;
} fault_calls[FAULTS] = {{"none", ""},
#define FAULT_X(call, words) {#call, words},
                         FAULT_CALLS(FAULT_X)
#undef FAULT_X
};

// The errors of accept(2) are of the process, the system or the one connection. EAGAIN of a socket
// is spurious, and followed by an edge.
#define FAULT_ERRORS(X) \
    X(accept4, EMFILE) \
    X(accept4, ENFILE) \
    X(accept4, ENOBUFS) \
    X(accept4, ENOMEM) \
    X(accept4, ECONNABORTED) \
    X(accept4, EPERM) \
    X(accept4, EHOSTUNREACH) \
    X(bind, EADDRINUSE) \
    X(bind, EACCES) \
    X(bind, EADDRNOTAVAIL) \
    X(bind, ENOENT) \
    X(close, EINTR) \
    X(connect, EADDRNOTAVAIL) \
    X(connect, ECONNREFUSED) \
    X(connect, ENETUNREACH) \
    X(connect, EHOSTUNREACH) \
    X(connect, EACCES) \
    X(connect, ETIMEDOUT) \
    X(connect, EINTR) \
    X(connect, EAGAIN) \
    X(connect, ENOENT) \
    X(epoll_create1, EMFILE) \
    X(epoll_create1, ENFILE) \
    X(epoll_create1, ENOMEM) \
    X(epoll_ctl, ENOMEM) \
    X(epoll_wait, EINTR) \
    X(eventfd, EMFILE) \
    X(eventfd, ENFILE) \
    X(eventfd, ENOMEM) \
    X(eventfd, ENODEV) \
    X(fchmodat, EPERM) \
    X(fchmodat, ENOENT) \
    X(fcntl, EMFILE) \
    X(fcntl, EINTR) \
    X(getaddrinfo, EAI_FAIL) \
    X(getaddrinfo, EAI_NONAME) \
    X(getaddrinfo, EAI_MEMORY) \
    X(getpeername, ENOBUFS) \
    X(getrandom, ENOSYS) \
    X(getrandom, EPERM) \
    X(getrandom, EINTR) \
    X(getsockname, ENOBUFS) \
    X(getsockopt, ENOBUFS) \
    X(getsockopt, ENOPROTOOPT) \
    X(listen, EADDRINUSE) \
    X(lstat, EACCES) \
    X(lstat, ENOENT) \
    X(memory, ENOMEM) \
    X(open, EMFILE) \
    X(open, ENFILE) \
    X(open, EACCES) \
    X(pipe2, ENFILE) \
    X(pipe_size, EPERM) \
    X(pipe_size, EBUSY) \
    X(poll, EINTR) \
    X(poll, ENOMEM) \
    X(poll, EINVAL) \
    X(pthread_create, EAGAIN) \
    X(pthread_mutex_init, ENOMEM) \
    X(read, EINTR) \
    X(readv, ECONNRESET) \
    X(readv, ETIMEDOUT) \
    X(readv, EINTR) \
    X(readv, EAGAIN) \
    X(recv, ECONNRESET) \
    X(recv, ENOMEM) \
    X(recv, ENOBUFS) \
    X(send, ETIMEDOUT) \
    X(send, EHOSTUNREACH) \
    X(send, ENOMEM) \
    X(send, EINTR) \
    X(send, EAGAIN) \
    X(sendmsg, EPIPE) \
    X(sendmsg, EAGAIN) \
    X(setsockopt, EINVAL) \
    X(socket, EMFILE) \
    X(socket, ENFILE) \
    X(socket, EAFNOSUPPORT) \
    X(splice, EAGAIN) \
    X(splice, EINTR) \
    X(splice, EINVAL) \
    X(splice, ENOMEM) \
    X(splice, EPIPE) \
    X(splice, ECONNRESET) \
    X(unlink, EACCES) \
    X(unlink, EBUSY)

static const struct fault_error {
    enum fault_call call;
    int error;
    const char *name;
} fault_errors[] = {
#define FAULT_X(call, error) {FAULT_##call, error, #error},
    FAULT_ERRORS(FAULT_X)
#undef FAULT_X
};
enum { FAULT_ERROR_COUNT = sizeof fault_errors / sizeof *fault_errors };

static struct {
    enum fault_call call;
    int error, for_ever;
    unsigned nth;            // counted from 1
    int is_off;              // for now: neither counts nor fails
    unsigned hits;           // calls that have failed
    unsigned count[FAULTS];  // calls made while it is on
    unsigned interrupts;     // of the calls that a signal may interrupt it does each such one
    unsigned turn;
    int64_t turns_us;  // since when there were so many failures
    unsigned turns;
} fault;

// Those that a signal interrupts: EINTR is in their man page.
static int fault_may_wait(enum fault_call call)
{
    for (int i = 0; i < FAULT_ERROR_COUNT; i++)
        if (fault_errors[i].call == call && fault_errors[i].error == EINTR) return 1;
    return 0;
}

// Nobody tries what fails again and again without a wait. A few threads may try a few times.
static void fault_check_turns(enum fault_call call)
{
    enum { WITHIN_US = 1000, TURNS = 100 };
    if (wd.clock.now_us - fault.turns_us > WITHIN_US) {
        fault.turns_us = wd.clock.now_us;
        fault.turns = 0;
    }
    if (++fault.turns > TURNS)
        world_fail("%s fails %u times within a millisecond", fault_calls[call].name, fault.turns);
}

// Does this call fail? Then errno is set. A failure takes time, as the call itself would.
static int fault_hits(enum fault_call call)
{
    unsigned n;
    if (fault.is_off || wd.over) return 0;
    n = ++fault.count[call];
    if (fault.interrupts && fault_may_wait(call) && ++fault.turn % fault.interrupts == 0) {
        fiber_may_yield();
        errno = EINTR;
        return 1;
    }
    if (call != fault.call || n < fault.nth || (!fault.for_ever && n > fault.nth)) return 0;
    fault.hits++;
    fault_check_turns(call);
    world_note("%s: call %u fails", fault_calls[call].name, n);
    fiber_may_yield();
    errno = fault.error;
    return 1;
}

// ---- what is left of a call that fails

// The descriptor is gone in any case.
static int fault_close(int fd)
{
    int fails = fault_hits(FAULT_close), error = errno, r = sim_close(fd);
    if (!fails || r < 0) return r;
    errno = error;
    return -1;
}

static int fault_is_of_process(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM ||
           error == EINTR;
}

// What is wrong with a connection ends it: it leaves the queue.
static int fault_accept4(int fd, struct sockaddr *from, socklen_t *len, int flags)
{
    if (!fault_hits(FAULT_accept4)) return sim_accept4(fd, from, len, flags);
    int error = errno, is_of_process = fault_is_of_process(error);
    int gone = is_of_process ? -1 : sim_accept4(fd, from, len, flags);
    if (gone >= 0) fd_file(gone)->linger_abort = 1;
    if (gone >= 0) sim_close(gone);
    errno = is_of_process || gone >= 0 ? error : EAGAIN;
    return -1;
}

// One that is interrupted goes on by itself.
static int fault_connect(int fd, const struct sockaddr *to, socklen_t len)
{
    if (!fault_hits(FAULT_connect)) return sim_connect(fd, to, len);
    int error = errno;
    if (error == EINTR) sim_connect(fd, to, len);
    errno = error;
    return -1;
}

// A socket is connected until its connection is gone.
static int fault_shutdown(int fd, int how)
{
    if (!fault_hits(FAULT_shutdown)) return sim_shutdown(fd, how);
    tcp_end *x = fd_file(fd)->end;
    if (x) {
        tcp_conn *c = x->conn;
        tcp_die(&c->e[0], ECONNRESET);
        tcp_die(&c->e[1], ECONNRESET);
        tcp_forget(c);
    }
    errno = ENOTCONN;
    return -1;
}

// EAGAIN is followed by an event, as if bytes or room had come a moment later.
static int fault_moves(enum fault_call call, int fd, unsigned edge)
{
    const file *f = fd_file(fd);
    // There is nothing to wait for at the end of a connection.
    if (fault.error == EAGAIN && f && f->end && (f->end->fin_came || f->end->is_dead)) return 0;
    if (!fault_hits(call)) return 0;
    if (errno == EAGAIN) file_edge(fd_file(fd), edge);
    return 1;
}

// EAGAIN is the socket's, or that of a pipe that is full: one that is empty always takes something.
static ssize_t fault_pass(int from, int to, size_t len)
{
    file *in = fd_file(from), *out = fd_file(to);
    int is_in = in && in->kind == FILE_SOCKET;
    file *socket = is_in ? in : out;
    int is_over = socket && socket->end && (socket->end->fin_came || socket->end->is_dead);
    if ((fault.error == EAGAIN && is_over) || !fault_hits(FAULT_splice))
        return sim_pass(from, to, len);
    if (errno == EAGAIN) file_edge(socket, is_in ? EPOLLIN : EPOLLOUT);
    return -1;
}

static int fault_getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
                             struct addrinfo **out)
{
    if (!fault_hits(FAULT_getaddrinfo)) return sim_getaddrinfo(host, port, hints, out);
    int error = errno == EINTR ? EAI_SYSTEM : fault.error;
    if (error == EAI_SYSTEM && errno != EINTR) errno = EIO;
    return error;
}

// Whole blocks and those that grow.
static void *fault_resize(machine *m, void *ptr, size_t size)
{
    if (size > (ptr ? ((heap_block *)ptr - 1)->size : 0) && fault_hits(FAULT_memory)) return NULL;
    return heap_resize(m, ptr, size);
}

// That an IPv6 listener takes IPv4, too, is a wish, which not all systems grant.
static int fault_setsockopt(int fd, int level, int option, const void *value, socklen_t len)
{
    int is_wish = level == IPPROTO_IPV6 && option == IPV6_V6ONLY && !*(const int *)value;
    if (!is_wish && fault_hits(FAULT_setsockopt)) return -1;
    return sim_setsockopt(fd, level, option, value, len);
}

// Only what can fail of fcntl(2) and epoll_ctl(2): a descriptor more, a larger pipe, an entry more.
static int fault_control(int fd, int what, int value)
{
    if (what == F_DUPFD_CLOEXEC && fault_hits(FAULT_fcntl)) return -1;
    if (what == F_SETPIPE_SZ && fault_hits(FAULT_pipe_size)) return -1;
    return sim_control(fd, what, value);
}
#define fault_fcntl(...) FAULT_FCNTL(__VA_ARGS__, 0, 0)
#define FAULT_FCNTL(fd, what, value, ...) fault_control(fd, what, value)
#define fault_epoll_ctl(epoll, op, fd, e) \
    ((op) == EPOLL_CTL_ADD && fault_hits(FAULT_epoll_ctl) ? -1 : sim_epoll_ctl(epoll, op, fd, e))

#define FAULT_OR(call, ...) (fault_hits(FAULT_##call) ? -1 : sim_##call(__VA_ARGS__))
#define FAULT_CODE_OR(call, ...) (fault_hits(FAULT_##call) ? fault.error : sim_##call(__VA_ARGS__))
#define FAULT_READ_OR(call, fd, ...) \
    (fault_moves(FAULT_##call, fd, EPOLLIN) ? -1 : sim_##call(fd, __VA_ARGS__))
#define FAULT_WRITE_OR(call, fd, ...) \
    (fault_moves(FAULT_##call, fd, EPOLLOUT) ? -1 : sim_##call(fd, __VA_ARGS__))

#define fault_bind(...) FAULT_OR(bind, __VA_ARGS__)
#define fault_clock_gettime sim_clock_gettime
#define fault_epoll_create1(...) FAULT_OR(epoll_create1, __VA_ARGS__)
#define fault_epoll_wait(...) FAULT_OR(epoll_wait, __VA_ARGS__)
#define fault_eventfd(...) FAULT_OR(eventfd, __VA_ARGS__)
#define fault_fchmodat(...) FAULT_OR(fchmodat, __VA_ARGS__)
#define fault_getpeername(...) FAULT_OR(getpeername, __VA_ARGS__)
#define fault_getpid sim_getpid
#define fault_getrandom(...) FAULT_OR(getrandom, __VA_ARGS__)
#define fault_getrlimit(...) FAULT_OR(getrlimit, __VA_ARGS__)
#define fault_getsockname(...) FAULT_OR(getsockname, __VA_ARGS__)
#define fault_getsockopt(...) FAULT_OR(getsockopt, __VA_ARGS__)
#define fault_ioctl(...) FAULT_OR(ioctl, __VA_ARGS__)
#define fault_listen(...) FAULT_OR(listen, __VA_ARGS__)
#define fault_lstat(...) FAULT_OR(lstat, __VA_ARGS__)
#define fault_madvise sim_madvise
#define fault_mmap sim_mmap
#define fault_nanosleep sim_nanosleep
#define fault_open(...) FAULT_OR(open, __VA_ARGS__)
#define fault_pipe2(...) FAULT_OR(pipe2, __VA_ARGS__)
#define fault_poll(...) FAULT_OR(poll, __VA_ARGS__)
#define fault_pthread_cond_init(...) FAULT_CODE_OR(pthread_cond_init, __VA_ARGS__)
#define fault_pthread_cond_timedwait sim_pthread_cond_timedwait
#define fault_pthread_create(...) FAULT_CODE_OR(pthread_create, __VA_ARGS__)
#define fault_pthread_mutex_init(...) FAULT_CODE_OR(pthread_mutex_init, __VA_ARGS__)
#define fault_read(...) FAULT_OR(read, __VA_ARGS__)
#define fault_readv(...) FAULT_READ_OR(readv, __VA_ARGS__)
#define fault_realloc(ptr, size) fault_resize(wd.self->machine, ptr, size)
#define fault_recv(...) FAULT_READ_OR(recv, __VA_ARGS__)
#define fault_send(...) FAULT_WRITE_OR(send, __VA_ARGS__)
#define fault_sendmsg(...) FAULT_WRITE_OR(sendmsg, __VA_ARGS__)
#define fault_socket(...) FAULT_OR(socket, __VA_ARGS__)
#define fault_splice(from, from_at, to, to_at, len, flags) \
    ((void)(flags), fault_pass(from, to, len))
#define fault_syscall(...) FAULT_OR(syscall, __VA_ARGS__)
#define fault_unlink(...) FAULT_OR(unlink, __VA_ARGS__)
#define fault_write(...) FAULT_OR(write, __VA_ARGS__)

#endif
