// The system calls of revdial.h in the simulated world. RVD_SYS(call) is sim_call, by way of
// world_faults.h; what the header calls directly is renamed, too, and a call of the system that is
// not simulated does not link. Include this before revdial.h with REVDIAL_IMPLEMENTATION.
#ifndef REVDIAL_TEST_WORLD_CALLS_H
#define REVDIAL_TEST_WORLD_CALLS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <arpa/inet.h>
#include <assert.h>
#include <fcntl.h>
#include <net/if.h>
#include <netdb.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "world_marks.h"
#include "world_socket.h"
#include "world_threads.h"

// As the C library says it: -1 and errno, or the result.
static ptrdiff_t sim_result(ptrdiff_t r)
{
    if (r >= 0) return r;
    errno = (int)-r;
    return -1;
}

// Now and then a signal interrupts a call that may be interrupted.
static int sim_signal(void)
{
    return world_chance(wd.signal_one_in);
}

static file *sim_file(int fd, enum file_kind kind, int *error)
{
    file *f;
    fiber_may_yield();
    f = fd_file(fd);
    *error = !f ? EBADF : f->kind != kind ? ENOTSOCK : 0;
    return *error ? NULL : f;
}

// ---- time, randomness, the process

static int sim_clock_gettime(clockid_t id, struct timespec *t)
{
    int64_t us = wd.clock.now_us;
    (void)id;
    t->tv_sec = (time_t)(us / 1000000);
    t->tv_nsec = (long)(us % 1000000) * 1000;
    return 0;
}

static inline int sim_nanosleep(const struct timespec *t, struct timespec *left)
{
    (void)left;
    world_sleep_us((int64_t)t->tv_sec * 1000000 + t->tv_nsec / 1000, "a nap");
    return 0;
}

static ssize_t sim_getrandom(void *buf, size_t len, unsigned flags)
{
    uint8_t *to = buf;
    (void)flags;
    for (size_t i = 0; i < len; i++) to[i] = (uint8_t)(test_random(&wd.rng) >> 32);
    return (ssize_t)len;
}

static pid_t sim_getpid(void)
{
    return 4711;
}

// Without a page that fork() fills with zeros, the process id is compared.
#define sim_mmap(...) MAP_FAILED
static int sim_madvise(void *at, size_t len, int advice)
{
    (void)at, (void)len, (void)advice;
    return -1;
}
static int sim_munmap(void *at, size_t len)
{
    (void)at, (void)len;
    return 0;
}

static int sim_getrlimit(int what, struct rlimit *out)
{
    (void)what;
    out->rlim_cur = out->rlim_max = (rlim_t)machine_self()->fd_limit;
    return 0;
}

static int sim_gethostname(char *buf, size_t size)
{
    snprintf(buf, size, "%s", machine_self()->name);
    return 0;
}

// There are no files besides Unix sockets.
static int sim_open(const char *path, int flags, ...)
{
    (void)path, (void)flags;
    return (int)sim_result(-ENOENT);
}
static int sim_lstat(const char *path, struct stat *st)
{
    const unix_path *p = unix_path_of(path);
    fiber_may_yield();
    memset(st, 0, sizeof *st);
    st->st_mode = S_IFSOCK | p->mode;
    st->st_ino = p->ino;
    return (int)sim_result(p->exists ? 0 : -ENOENT);
}
static int sim_unlink(const char *path)
{
    unix_path *p = unix_path_of(path);
    fiber_may_yield();
    if (!p->exists) return (int)sim_result(-ENOENT);
    if (!unix_listener(p)) mark_set(MARK_STALE_PATH);
    p->exists = 0;
    return 0;
}
static int sim_fchmodat(int at, const char *path, mode_t mode, int flags)
{
    unix_path *p = unix_path_of(path);
    (void)at;
    fiber_may_yield();
    if (flags) return (int)sim_result(-EOPNOTSUPP);  // as Linux until 6.6
    p->mode = mode;
    return (int)sim_result(p->exists ? 0 : -ENOENT);
}

// ---- descriptors

static int sim_close(int fd)
{
    fiber_may_yield();
    file *f = fd_file(fd);
    if (!f) return (int)sim_result(-EBADF);
    machine_self()->fds[fd] = NULL;
    machine_self()->fd_count--;
    world_note("close %d", fd);
    file_unref(f);
    return (int)sim_result(sim_signal() ? -EINTR : 0);
}

// A user may have so many large pipes only.
static unsigned pipe_denied_one_in;
static ptrdiff_t pipe_resize(file *f, int size)
{
    if (f->kind != FILE_PIPE || !f->other) return -EBADF;
    if (world_chance(pipe_denied_one_in) || machine_lacks(f->machine, LACK_BUFFER)) {
        mark_set(MARK_NO_PIPE);
        return world_chance(2) ? -EPERM : -ENOMEM;
    }
    file *to = f->is_writer ? f->other : f;
    to->room = (size_t)size;
    to->ring = realloc(to->ring, to->room);
    if (!to->ring) abort();
    return size;
}

static int sim_control(int fd, int what, int value)
{
    file *f;
    fiber_may_yield();
    f = fd_file(fd);
    if (!f) return (int)sim_result(-EBADF);
    switch (what) {
    case F_DUPFD_CLOEXEC: {  // it needs a number, but no file
        int copy = fd_take(f, value);
        return (int)sim_result(copy == -ENFILE ? -EMFILE : copy);
    }
    case F_GETFL: return O_RDWR | (f->is_nonblocking ? O_NONBLOCK : 0);
    case F_SETFL: f->is_nonblocking = (value & O_NONBLOCK) != 0; return 0;
    case F_SETFD: return 0;
    case F_SETPIPE_SZ: return (int)sim_result(pipe_resize(f, value));
    default: world_fail("fcntl %d is not simulated", what); return -1;
    }
}

static int sim_open_file(file *f)
{
    int fd = fd_take(f, 0);
    if (fd < 0) free(f);
    return (int)sim_result(fd);
}

static int sim_socket(int family, int type, int protocol)
{
    (void)type, (void)protocol;
    fiber_may_yield();
    file *f = file_new(FILE_SOCKET);
    f->family = family;
    return sim_open_file(f);
}

static inline int sim_eventfd(unsigned count, int flags)
{
    (void)flags;
    fiber_may_yield();
    file *f = file_new(FILE_EVENT);
    f->count = count;
    return sim_open_file(f);
}

static inline int sim_pipe2(int fds[2], int flags)
{
    (void)flags;
    fiber_may_yield();
    file *r = file_new(FILE_PIPE), *w = file_new(FILE_PIPE);
    int ends[2];  // a call that fails leaves the caller's as they are
    w->is_writer = 1;
    ends[0] = sim_open_file(r);
    if (ends[0] < 0) {
        free(w);
        return -1;
    }
    ends[1] = sim_open_file(w);
    if (ends[1] < 0) {
        int error = errno;
        sim_close(ends[0]);
        errno = error;
        return -1;
    }
    memcpy(fds, ends, sizeof ends);
    r->other = w;
    w->other = r;
    return 0;
}

// ---- sockets: names and options

// Within the world an address is a sockaddr_in. 10.0.0.N with AF_INET6 stands for fd00::N; with
// AF_UNIX the port is the number of a path plus one, 0 = none.
static const uint8_t sim_prefix[12] = {0xfd}, sim_mapped[12] = {[10] = 0xff, [11] = 0xff};

static struct sockaddr_in sim_address(const struct sockaddr *a)
{
    struct sockaddr_in in = {.sin_family = a->sa_family};
    struct sockaddr_in6 in6;
    uint32_t last;
    if (a->sa_family == AF_INET) memcpy(&in, a, sizeof in);
    if (a->sa_family == AF_UNIX) {
        const unix_path *p = unix_path_of(((const struct sockaddr_un *)(const void *)a)->sun_path);
        in.sin_port = htons((uint16_t)(p - unix_paths + 1));
    }
    if (a->sa_family != AF_INET6) return in;
    memcpy(&in6, a, sizeof in6);
    memcpy(&last, in6.sin6_addr.s6_addr + 12, 4);
    in.sin_port = in6.sin6_port;
    if (IN6_IS_ADDR_LOOPBACK(&in6.sin6_addr)) last = htonl(INADDR_LOOPBACK);
    if (IN6_IS_ADDR_V4MAPPED(&in6.sin6_addr)) in.sin_family = AF_INET;
    if (!memcmp(in6.sin6_addr.s6_addr, sim_prefix, 12))
        last = htonl(MACHINE_BASE - 1 + ntohl(last));
    in.sin_addr.s_addr = last;
    return in;
}

//   is_mapped  an IPv4 address as an IPv6 socket tells it
static socklen_t sim_address_out(const struct sockaddr_in *from, int is_mapped,
                                 struct sockaddr_storage *to)
{
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)to;
    struct sockaddr_un *un = (struct sockaddr_un *)to;
    memset(to, 0, sizeof *to);
    if (from->sin_family == AF_UNIX) {
        un->sun_family = AF_UNIX;
        if (!from->sin_port) return offsetof(struct sockaddr_un, sun_path);
        strcpy(un->sun_path, unix_path_at(from)->path);
        return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(un->sun_path) + 1);
    }
    if (from->sin_family == AF_INET && !is_mapped) {
        memcpy(to, from, sizeof *from);
        return sizeof *from;
    }
    uint32_t ip = ntohl(from->sin_addr.s_addr), last = htonl(ip & 255);
    in6->sin6_family = AF_INET6;
    in6->sin6_port = from->sin_port;
    if (is_mapped) last = from->sin_addr.s_addr;
    if (ip != INADDR_ANY) memcpy(in6->sin6_addr.s6_addr, is_mapped ? sim_mapped : sim_prefix, 12);
    if (ip != INADDR_ANY) memcpy(in6->sin6_addr.s6_addr + 12, &last, 4);
    return sizeof *in6;
}

static int sim_name(const struct sockaddr_in *from, int is_mapped, struct sockaddr *to,
                    socklen_t *len)
{
    struct sockaddr_storage ss;
    socklen_t size = sim_address_out(from, is_mapped, &ss);
    memcpy(to, &ss, *len < size ? *len : size);
    *len = size;
    return 0;
}

static int sim_getsockname(int fd, struct sockaddr *a, socklen_t *len)
{
    int error;
    file *f = sim_file(fd, FILE_SOCKET, &error);
    if (!f) return (int)sim_result(-error);
    struct sockaddr_in none = {.sin_family = (sa_family_t)f->family};
    return sim_name(f->own.sin_family ? &f->own : &none, f->is_mapped, a, len);
}

static int sim_getpeername(int fd, struct sockaddr *a, socklen_t *len)
{
    int error;
    file *f = sim_file(fd, FILE_SOCKET, &error);
    if (!f) return (int)sim_result(-error);
    if (!f->end || f->end->is_dead) return (int)sim_result(-ENOTCONN);
    return sim_name(&f->end->peer, f->is_mapped, a, len);
}

static int sim_getsockopt(int fd, int level, int option, void *value, socklen_t *len)
{
    int error, v = 0;
    file *f = sim_file(fd, FILE_SOCKET, &error);
    if (!f) return (int)sim_result(-error);
    if (level == IPPROTO_TCP && f->family == AF_UNIX) return (int)sim_result(-EOPNOTSUPP);
    if (level == IPPROTO_TCP && option == TCP_INFO) {
        tcp_end *x = f->end;
        int over = !x || x->is_dead ||
                   (x->fin_came && tcp_other(x)->fin_sent && tcp_is_quiet(tcp_other(x)));
        *(uint8_t *)value = over ? TCP_CLOSED : 1;
        *len = 1;
        return 0;
    }
    if (level != SOL_SOCKET) return (int)sim_result(-ENOPROTOOPT);
    if (option == SO_ERROR) v = (int)-socket_error(f);
    if (option == SO_TYPE) v = SOCK_STREAM;
    if (option == SO_ACCEPTCONN) v = f->listener != NULL;
    memcpy(value, &v, sizeof v);
    *len = sizeof v;
    return 0;
}

static int sim_setsockopt(int fd, int level, int option, const void *value, socklen_t len)
{
    int error, v = 0;
    file *f = sim_file(fd, FILE_SOCKET, &error);
    if (!f) return (int)sim_result(-error);
    memcpy(&v, value, len < sizeof v ? len : sizeof v);
    if (level == IPPROTO_TCP && f->family == AF_UNIX) return (int)sim_result(-EOPNOTSUPP);
    if (level == IPPROTO_IPV6 && option == IPV6_V6ONLY) f->takes_v4 = !v;
    if (level == SOL_SOCKET) {
        if (option == SO_KEEPALIVE) f->keep_on = v;
        if (option == SO_LINGER) f->linger_abort = ((const struct linger *)value)->l_onoff;
    } else if (level == IPPROTO_TCP) {
        if (option == TCP_KEEPIDLE) f->keep_idle_s = v;
        if (option == TCP_KEEPINTVL) f->keep_each_s = v;
        if (option == TCP_KEEPCNT) f->keep_count = v;
        if (option == TCP_USER_TIMEOUT) f->user_timeout_ms = v;
        if (option == TCP_NOTSENT_LOWAT) {
            f->unsent_low = v;
            if (f->end) tcp_tell_room(f->end);
        }
    }
    if (f->end) tcp_keep_set(f->end);
    return 0;
}

static inline int sim_ioctl(int fd, unsigned long what, int *bytes)
{
    int error;
    file *f = sim_file(fd, FILE_SOCKET, &error);
    if (!f || what != TIOCOUTQ) return (int)sim_result(f ? -EINVAL : -ENOTTY);
    const tcp_end *to = f->end ? tcp_other(f->end) : NULL;
    *bytes = to && !to->is_dead ? (int)tcp_held(to) : 0;
    return 0;
}

static int sim_connect(int fd, const struct sockaddr *to, socklen_t len)
{
    int error;
    file *f = sim_file(fd, FILE_SOCKET, &error);
    struct sockaddr_in in = sim_address(to);
    (void)len;
    if (!f) return (int)sim_result(-error);
    return (int)sim_result(socket_connect(f, &in));
}

static int sim_bind(int fd, const struct sockaddr *at, socklen_t len)
{
    int error;
    file *f = sim_file(fd, FILE_SOCKET, &error);
    struct sockaddr_in in = sim_address(at);
    (void)len;
    return (int)sim_result(f ? socket_bind(f, &in) : -error);
}

static int sim_listen(int fd, int backlog)
{
    int error;
    file *f = sim_file(fd, FILE_SOCKET, &error);
    return (int)sim_result(f ? socket_listen(f, backlog) : -error);
}

static int sim_accept4(int fd, struct sockaddr *from, socklen_t *len, int flags)
{
    int error;
    file *f = sim_file(fd, FILE_SOCKET, &error);
    struct sockaddr_in peer = {.sin_family = AF_INET};
    (void)flags;
    if (!f) return (int)sim_result(-error);
    int got = socket_accept(f, &peer);
    world_note("accept %d -> %d", fd, got);
    if (got >= 0) sim_name(&peer, fd_file(got)->is_mapped, from, len);
    return (int)sim_result(got);
}

static int sim_shutdown(int fd, int how)
{
    int error;
    file *f = sim_file(fd, FILE_SOCKET, &error);
    return (int)sim_result(f ? socket_shutdown(f, how) : -error);
}

// ---- moving bytes

static ssize_t sim_recv(int fd, void *buf, size_t len, int flags)
{
    int error;
    file *f = sim_file(fd, FILE_SOCKET, &error);
    if (!f) return sim_result(-error);
    if (sim_signal()) return sim_result(-EINTR);
    ptrdiff_t n = socket_receive(f, buf, len, flags & MSG_PEEK);
    if (n != -EAGAIN) world_note("recv %d -> %td", fd, n);
    return sim_result(n);
}

static ssize_t sim_readv(int fd, const struct iovec *iov, int count)
{
    size_t got = 0;
    for (int i = 0; i < count; i++) {
        ssize_t n = sim_recv(fd, iov[i].iov_base, iov[i].iov_len, 0);
        if (n < 0) return got ? (ssize_t)got : n;
        got += (size_t)n;
        if ((size_t)n < iov[i].iov_len) break;
    }
    return (ssize_t)got;
}

static ssize_t sim_send(int fd, const void *buf, size_t len, int flags)
{
    int error;
    file *f = sim_file(fd, FILE_SOCKET, &error);
    (void)flags;
    if (!f) return sim_result(-error);
    if (sim_signal()) return sim_result(-EINTR);
    ptrdiff_t n = socket_send(f, buf, len);
    world_note("send %d %zu -> %td", fd, len, n);
    return sim_result(n);
}

static ssize_t sim_sendmsg(int fd, const struct msghdr *m, int flags)
{
    size_t sent = 0;
    for (size_t i = 0; i < (size_t)m->msg_iovlen; i++) {
        ssize_t n = sim_send(fd, m->msg_iov[i].iov_base, m->msg_iov[i].iov_len, flags);
        if (n < 0) return sent ? (ssize_t)sent : n;
        sent += (size_t)n;
        if ((size_t)n < m->msg_iov[i].iov_len) break;
    }
    return (ssize_t)sent;
}

// Of eventfds and pipes only how much is in them matters.
static ssize_t sim_read(int fd, void *buf, size_t len)
{
    file *f;
    fiber_may_yield();
    f = fd_file(fd);
    if (!f) return sim_result(-EBADF);
    if (f->kind == FILE_SOCKET) return sim_recv(fd, buf, len, 0);
    if (!f->count) return sim_result(f->kind == FILE_PIPE && !f->other ? 0 : -EAGAIN);
    size_t n = f->kind == FILE_EVENT ? 8 : f->count < len ? (size_t)f->count : len;
    f->count = f->kind == FILE_EVENT ? 0 : f->count - n;
    memset(buf, 0, n);
    return (ssize_t)n;
}

static ssize_t sim_write(int fd, const void *buf, size_t len)
{
    file *f;
    fiber_may_yield();
    f = fd_file(fd);
    if (!f) return sim_result(-EBADF);
    if (f->kind == FILE_SOCKET) return sim_send(fd, buf, len, 0);
    if (f->kind == FILE_PIPE && !f->other) return sim_result(-EPIPE);
    if (f->kind == FILE_PIPE && f->other->count + len > 4096) return sim_result(-EAGAIN);
    file *to = f->kind == FILE_PIPE ? f->other : f;
    to->count += f->kind == FILE_PIPE ? len : 1;
    file_edge(to, EPOLLIN);
    return (ssize_t)len;
}

// ---- moving bytes by a pipe

// A pipe has places, and a small piece may take a whole one: so it can be full with little in it,
// but never when it is empty.
static size_t pipe_free(const file *to)
{
    if (to->count && world_chance(wd.short_one_in)) return 0;
    return to->room - (size_t)to->count;
}

static void pipe_push(file *to, const uint8_t *from, size_t n)
{
    size_t at = (to->at + (size_t)to->count) % to->room;
    size_t first = to->room - at < n ? to->room - at : n;
    memcpy(to->ring + at, from, first);
    memcpy(to->ring, from + first, n - first);
    to->count += n;
}

static const uint8_t *pipe_front(const file *from, size_t *n)
{
    if (*n > from->room - from->at) *n = from->room - from->at;
    return from->ring + from->at;
}

static void pipe_pop(file *from, size_t n)
{
    from->at = (from->at + n) % from->room;
    from->count -= n;
}

static ptrdiff_t pipe_fill(file *to, file *from, size_t len)
{
    static uint8_t buf[1 << 20];
    size_t most = pipe_free(to);
    if (len > most) len = most;
    if (len > sizeof buf) len = sizeof buf;
    if (!len) return -EAGAIN;
    ptrdiff_t n = socket_receive(from, buf, len, 0);
    if (n > 0) pipe_push(to, buf, (size_t)n);
    return n;
}

// The two pieces of a ring that is full round its end, one after the other.
static ptrdiff_t pipe_empty(file *from, file *to, size_t len)
{
    size_t sent = 0;
    while (from->count && sent < len) {
        size_t n = from->count < len - sent ? (size_t)from->count : len - sent;
        const uint8_t *at = pipe_front(from, &n);
        ptrdiff_t done = socket_send(to, at, n);
        if (done < 0) return sent ? (ptrdiff_t)sent : done;
        pipe_pop(from, (size_t)done);
        sent += (size_t)done;
        if ((size_t)done < n) break;
    }
    return sent ? (ptrdiff_t)sent : -EAGAIN;
}

static ssize_t sim_pass(int from, int to, size_t len)
{
    ptrdiff_t n = -EINVAL;
    fiber_may_yield();
    file *in = fd_file(from), *out = fd_file(to);
    if (!in || !out) return sim_result(-EBADF);
    if (sim_signal()) return sim_result(-EINTR);
    if (in->kind == FILE_SOCKET && out->kind == FILE_PIPE && out->other && out->other->ring)
        n = pipe_fill(out->other, in, len);
    else if (in->kind == FILE_PIPE && in->ring && out->kind == FILE_SOCKET)
        n = pipe_empty(in, out, len);
    world_note("splice %d -> %d %zu -> %td", from, to, len, n);
    if (n > 0) mark_set(in->kind == FILE_SOCKET ? MARK_SPLICED_IN : MARK_SPLICED_OUT);
    if (n == -EAGAIN && out->kind == FILE_PIPE && in->end && in->end->readable)
        mark_set(MARK_PIPE_FULL);
    return sim_result(n);
}

// ---- waiting

static inline int sim_epoll_create1(int flags)
{
    (void)flags;
    fiber_may_yield();
    return sim_open_file(file_new(FILE_EPOLL));
}

static inline int sim_epoll_ctl(int epoll, int op, int fd, struct epoll_event *e)
{
    int error;
    file *ep = sim_file(epoll, FILE_EPOLL, &error), *f = fd_file(fd);
    if (!ep || !f) return (int)sim_result(-EBADF);
    if (op == EPOLL_CTL_ADD && machine_lacks(ep->machine, LACK_LOCK))
        return (int)sim_result(-ENOMEM);
    if (op == EPOLL_CTL_ADD) return (int)sim_result(epoll_add(ep, f, fd, e));
    return (int)sim_result(epoll_change(ep, f, fd, op == EPOLL_CTL_MOD ? e : NULL));
}

enum { SIM_LOOKS = 500 };  // in vain, and without a wait in between

static int64_t sim_until(int timeout_ms)
{
    return timeout_ms < 0 ? -1 : wd.clock.now_us + (int64_t)timeout_ms * 1000;
}

static inline int sim_epoll_wait(int epoll, struct epoll_event *events, int max, int timeout_ms)
{
    int error, n;
    file *ep = sim_file(epoll, FILE_EPOLL, &error);
    int64_t until = sim_until(timeout_ms);
    if (!ep) return (int)sim_result(-EBADF);
    if (timeout_ms && sim_signal()) return (int)sim_result(-EINTR);
    while ((n = epoll_take(ep, events, max)) == 0 && timeout_ms != 0) {
        wd.self->looks = 0;
        if (wait_on(&ep->waits, until, "descriptors")) break;
    }
    wd.self->looks = n ? 0 : wd.self->looks + 1;
    if (wd.self->looks > SIM_LOOKS) world_fail("a loop does not wait although nothing happens");
    return n;
}

static int sim_poll_look(struct pollfd *items, nfds_t count)
{
    int n = 0;
    for (nfds_t i = 0; i < count; i++) {
        items[i].revents = 0;
        if (items[i].fd < 0) continue;
        file *f = fd_file(items[i].fd);
        unsigned bits = f ? file_ready(f) : EPOLLERR;
        if (bits & EPOLLIN) items[i].revents |= POLLIN;
        if (bits & EPOLLOUT) items[i].revents |= POLLOUT;
        items[i].revents &= items[i].events;
        if (bits & EPOLLERR) items[i].revents |= POLLERR;
        if (bits & EPOLLHUP) items[i].revents |= POLLHUP;
        n += items[i].revents != 0;
    }
    return n;
}

static int sim_poll(struct pollfd *items, nfds_t count, int timeout_ms)
{
    int n;
    int64_t until = sim_until(timeout_ms);
    fiber_may_yield();
    if (timeout_ms && sim_signal()) return (int)sim_result(-EINTR);
    while ((n = sim_poll_look(items, count)) == 0 && timeout_ms != 0 && !wd.failed) {
        if (count <= FIBER_NODES)
            for (nfds_t i = 0; i < count; i++) {
                file *f = items[i].fd >= 0 ? fd_file(items[i].fd) : NULL;
                if (f) wait_join(&f->waits, (int)i);
            }
        else
            wait_join(&machine_self()->polls, 0);
        if (wait_now(until, "poll")) return 0;
    }
    return n;
}

// ---- the resolver

enum dns_mode { DNS_GOOD, DNS_NO_NAME, DNS_FAILS, DNS_SILENT, DNS_LIES };

static struct {
    enum dns_mode mode;
    int64_t delay_us;
    wait_queue silent;
    unsigned asked[DNS_LIES + 1];
} dns;

// What is said of a host that has addresses of both families. A dead one is silent.
enum dns_families { DNS_V4, DNS_BOTH, DNS_V6_DEAD, DNS_V4_DEAD, DNS_V6, DNS_FAMILIES };
static enum dns_families dns_families;

typedef struct dns_answer {
    struct addrinfo info;
    struct sockaddr_storage at;
} dns_answer;

static void dns_say(dns_answer *a, int family, unsigned number, const char *port)
{
    struct sockaddr_in in = {.sin_family = (sa_family_t)family};
    in.sin_port = htons((uint16_t)strtoul(port, NULL, 10));
    in.sin_addr.s_addr = htonl(MACHINE_BASE + number);
    a->info.ai_addrlen = sim_address_out(&in, 0, &a->at);
    a->info.ai_family = family;
    a->info.ai_addr = (struct sockaddr *)&a->at;
}

// "m3.sim" is machine 3. One that lies says 10.0.0.200, where nobody is.
static int sim_getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
                           struct addrinfo **out)
{
    enum { NOBODY = 199 };
    unsigned number = 0;
    enum dns_mode mode = dns.mode;
    (void)hints;
    dns.asked[mode]++;
    fiber_may_yield();
    if (mode == DNS_SILENT)
        wait_on(&dns.silent, wd.clock.now_us + 30000000, "the resolver");
    else
        world_sleep_us(dns.delay_us, "the resolver");
    if (mode == DNS_SILENT || mode == DNS_FAILS) return EAI_AGAIN;
    if (mode == DNS_NO_NAME || sscanf(host, "m%u.sim", &number) != 1) return EAI_NONAME;
    dns_answer *a = calloc(2, sizeof *a);
    if (!a) abort();
    enum dns_families f = mode == DNS_LIES ? DNS_V4 : dns_families;
    int is_v6_first = f == DNS_BOTH || f == DNS_V6_DEAD || f == DNS_V6;
    int is_first_dead = mode == DNS_LIES || f == DNS_V6_DEAD || f == DNS_V4_DEAD;
    dns_say(&a[0], is_v6_first ? AF_INET6 : AF_INET, is_first_dead ? NOBODY : number, port);
    dns_say(&a[1], is_v6_first ? AF_INET : AF_INET6, number, port);
    if (f != DNS_V4 && f != DNS_V6) a[0].info.ai_next = &a[1].info;
    *out = &a[0].info;
    return 0;
}

static void sim_freeaddrinfo(struct addrinfo *a)
{
    free(a);
}

#endif
