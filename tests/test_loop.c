// impl.sys and impl.loop: system calls that fail in every way they can, and the I/O loop with real
// sockets, pipes and threads. Built twice, with epoll and with -DREVDIAL_POLL.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE  // accept4, pipe2: the calls below are the real ones
#endif

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "test.h"

// ------------------------------------------------------------------------------------------------
// The system calls, replaced. Each one counts, and fails when told to.

enum fault_call {
    ACCEPT,
    BIND,
    CLOSE,
    CONNECT,
    EPOLL_CREATE,
    EPOLL_CTL_,
    EPOLL_WAIT,
    EVENTFD,
    FCNTL,
    GETADDRINFO,
    GETRANDOM,
    GETSOCKNAME,
    GETSOCKOPT,
    LISTEN,
    OPEN,
    PIPE,
    POLL,
    READ,
    RECV,
    SEND,
    SENDMSG,
    SETSOCKOPT,
    SHUTDOWN,
    SOCKET,
    THREAD_CREATE,
    TIMEDWAIT,
    WRITE,
    FAULT_CALLS
};

static atomic_int fault_error[FAULT_CALLS];  // errno to fail with
static atomic_int fault_times[FAULT_CALLS];  // how often still
static atomic_int fault_skip[FAULT_CALLS];   // calls to spare before that
static atomic_int fault_count[FAULT_CALLS];  // calls made
static atomic_int fault_eintr;               // every other call fails with EINTR
static atomic_uint fault_turn;
static atomic_int fault_short;     // bytes move one by one
static atomic_llong fault_now_us;  // the clock stands here, 0 = it runs

static int fault(enum fault_call call)
{
    int left = atomic_load(&fault_times[call]);
    atomic_fetch_add(&fault_count[call], 1);
    if (left > 0 && atomic_fetch_sub(&fault_skip[call], 1) > 0) return 0;
    while (left > 0 && !atomic_compare_exchange_weak(&fault_times[call], &left, left - 1)) {
    }
    if (left > 0) {
        errno = atomic_load(&fault_error[call]);
        return 1;
    }
    if (!atomic_load(&fault_eintr) || atomic_fetch_add(&fault_turn, 1) % 2 == 0) return 0;
    errno = EINTR;
    return 1;
}

static void fault_set(enum fault_call call, int error, int times)
{
    atomic_store(&fault_error[call], error);
    atomic_store(&fault_skip[call], 0);
    atomic_store(&fault_times[call], times);
}

static void fault_clear(void)
{
    for (int i = 0; i < FAULT_CALLS; i++) {
        atomic_store(&fault_times[i], 0);
        atomic_store(&fault_count[i], 0);
    }
    atomic_store(&fault_eintr, 0);
    atomic_store(&fault_short, 0);
    atomic_store(&fault_now_us, 0);
}

static int calls_of(enum fault_call call)
{
    return atomic_load(&fault_count[call]);
}

static size_t fault_len(size_t len)
{
    return atomic_load(&fault_short) && len > 1 ? 1 : len;
}

static int fault_clock_gettime(clockid_t id, struct timespec *t)
{
    long long now_us = atomic_load(&fault_now_us);
    if (now_us == 0) return clock_gettime(id, t);
    t->tv_sec = (time_t)((now_us - 1) / 1000000);
    t->tv_nsec = (long)((now_us - 1) % 1000000 * 1000);
    return 0;
}

// Whoever connects while the mode of a unix socket is being set is refused.
static atomic_int mode_strangers;

static int fault_fchmodat(int dir, const char *path, mode_t mode, int flags)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(at.sun_path, sizeof at.sun_path, "%s", path);
    if (connect(fd, (struct sockaddr *)&at, sizeof at) == 0) atomic_fetch_add(&mode_strangers, 1);
    close(fd);
    return fchmodat(dir, path, mode, flags);
}

// A close that says EINTR has closed, as on Linux.
static int fault_close(int fd)
{
    int r = close(fd);
    return r < 0 || !fault(CLOSE) ? r : -1;
}

static ssize_t fault_sendmsg(int fd, const struct msghdr *all, int flags)
{
    struct msghdr m = *all;
    struct iovec one = m.msg_iov[0];
    if (fault(SENDMSG)) return -1;
    if (atomic_load(&fault_short)) {
        one.iov_len = fault_len(one.iov_len);
        m.msg_iov = &one;
        m.msg_iovlen = 1;
    }
    return sendmsg(fd, &m, flags);
}

// What happens while a thread finds that its deadline has passed.
typedef void fault_act(void);
static _Atomic(fault_act *) fault_meanwhile;

static int fault_late(pthread_mutex_t *held)
{
    fault_act *act = atomic_exchange(&fault_meanwhile, NULL);
    if (act && held) pthread_mutex_unlock(held);
    if (act) act();
    if (act && held) pthread_mutex_lock(held);
    return errno = ETIMEDOUT;
}

#define RVD_SYS(call) fault_##call
#define fault_accept(fd, to, len) (fault(ACCEPT) ? -1 : accept(fd, to, len))
#define fault_accept4(fd, to, len, flags) (fault(ACCEPT) ? -1 : accept4(fd, to, len, flags))
#define fault_pipe(fds) (fault(PIPE) ? -1 : pipe(fds))
#define fault_nanosleep nanosleep
#define fault_pipe2(fds, flags) (fault(PIPE) ? -1 : pipe2(fds, flags))
#define fault_bind(fd, at, len) (fault(BIND) ? -1 : bind(fd, at, len))
#define fault_pthread_cond_timedwait(c, m, t) \
    (fault(TIMEDWAIT) && errno == ETIMEDOUT ? fault_late(m) : pthread_cond_timedwait(c, m, t))
#define fault_connect(fd, to, len) (fault(CONNECT) ? -1 : connect(fd, to, len))
#define fault_epoll_create1(flags) (fault(EPOLL_CREATE) ? -1 : epoll_create1(flags))
#define fault_epoll_ctl(ep, op, fd, e) (fault(EPOLL_CTL_) ? -1 : epoll_ctl(ep, op, fd, e))
#define fault_epoll_wait(ep, e, n, ms) (fault(EPOLL_WAIT) ? -1 : epoll_wait(ep, e, n, ms))
#define fault_eventfd(n, flags) (fault(EVENTFD) ? -1 : eventfd(n, flags))
#define fault_fcntl(...) (fault(FCNTL) ? -1 : fcntl(__VA_ARGS__))
#define fault_getaddrinfo(host, port, hints, list) \
    (fault(GETADDRINFO) ? fault_eai() : getaddrinfo(host, port, hints, list))
#define fault_getrandom(buf, len, flags) \
    (fault(GETRANDOM) ? -1 : getrandom(buf, fault_len(len), flags))
#define fault_getpeername(fd, a, len) (fault(GETSOCKNAME) ? -1 : getpeername(fd, a, len))
#define fault_getsockname(fd, a, len) (fault(GETSOCKNAME) ? -1 : getsockname(fd, a, len))
#define fault_getsockopt(fd, l, o, v, n) (fault(GETSOCKOPT) ? -1 : getsockopt(fd, l, o, v, n))
#define fault_listen(fd, n) (fault(LISTEN) ? -1 : listen(fd, n))
#define fault_open(path, flags) (fault(OPEN) ? -1 : open(path, flags))
#define fault_poll(items, n, ms) (fault(POLL) ? -1 : poll(items, n, ms))
#define fault_read(fd, buf, len) (fault(READ) ? -1 : read(fd, buf, fault_len(len)))
#define fault_recv(fd, buf, len, flags) (fault(RECV) ? -1 : recv(fd, buf, fault_len(len), flags))
#define fault_send(fd, buf, len, flags) (fault(SEND) ? -1 : send(fd, buf, fault_len(len), flags))
#define fault_setsockopt(fd, l, o, v, n) (fault(SETSOCKOPT) ? -1 : setsockopt(fd, l, o, v, n))
#define fault_shutdown(fd, how) (fault(SHUTDOWN) ? -1 : shutdown(fd, how))
#define fault_socket(f, t, p) (fault(SOCKET) ? -1 : socket(f, t, p))
#define fault_pthread_create(t, a, run, arg) \
    (fault(THREAD_CREATE) ? errno : pthread_create(t, a, run, arg))
// A futex call. One without a deadline is not TIMEDWAIT.
#define fault_syscall(n, at, op, v, t, ...) \
    ((t) != NULL && fault(TIMEDWAIT) && errno == ETIMEDOUT \
         ? (fault_late(NULL), -1) \
         : syscall(n, at, op, v, t, __VA_ARGS__))
#define fault_write(fd, buf, len) (fault(WRITE) ? -1 : write(fd, buf, fault_len(len)))
// As they are.
#define fault_getpid getpid
#define fault_getrlimit getrlimit
#define fault_ioctl ioctl
#define fault_lstat lstat
#define fault_madvise madvise
#define fault_mmap mmap
#define fault_readv readv
#define fault_splice splice
#define fault_unlink unlink

// fault_error of GETADDRINFO is an EAI_* code; an EINTR comes as EAI_SYSTEM.
static int fault_eai(void)
{
    return errno == EINTR ? EAI_SYSTEM : errno;
}

#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

// ------------------------------------------------------------------------------------------------
// Helpers.

// One pass that does not wait: a stop that is posted ends the run after it.
static void one_pass(rvd_loop *loop)
{
    rvd_loop_stop(loop);
    CHECK_INT(rvd_loop_run(loop), 0);
}

static rvd_loop *new_loop(void)
{
    revdial_err err;
    rvd_loop *loop = rvd_loop_new(NULL, NULL, &err);
    if (!CHECK(loop != NULL)) abort();  // without a loop no test makes sense
    return loop;
}

// A unix pair delivers within the call that writes, so that a pass right after it sees the event.
static void new_pair(int fds[2])
{
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) < 0) abort();
}

static void put_bytes(int fd, size_t n)
{
    char junk[256] = {0};
    if (write(fd, junk, n) != (ssize_t)n) abort();
}

typedef struct watcher {
    rvd_loop_io io;
    rvd_loop *loop;
    int runs, drain, again;
    int *turn, at;  // if it is set: counts runs of all; the number of the last run
    unsigned seen;  // the ready bits of the last run
} watcher;

static void watcher_run(rvd_loop_io *io)
{
    watcher *w = (watcher *)io;
    char buf[64];
    w->runs++;
    if (w->turn) w->at = ++*w->turn;
    w->seen = io->ready;
    while (w->drain && (io->ready & RVD_LOOP_READ)) {
        ptrdiff_t n = rvd_sys_read(io->fd, buf, sizeof buf);
        if (n == -EAGAIN) io->ready &= ~(unsigned)RVD_LOOP_READ;
        if (n <= 0) break;
    }
    if (w->again > 0) {
        w->again--;
        rvd_loop_again(w->loop, io);
        rvd_loop_again(w->loop, io);
    }
}

static void watcher_open(watcher *w, rvd_loop *loop, int fd)
{
    memset(w, 0, sizeof *w);
    w->io.fd = fd;
    w->io.run = watcher_run;
    w->loop = loop;
    CHECK_INT(rvd_loop_add(loop, &w->io), 0);
}

static int has_flags(int fd, int nonblocking)
{
    int cloexec = fcntl(fd, F_GETFD) & FD_CLOEXEC;
    return cloexec && ((fcntl(fd, F_GETFL) & O_NONBLOCK) != 0) == nonblocking;
}

static rvd_sys_addr address(const char *text)
{
    rvd_sys_addr a;
    revdial_err err;
    if (rvd_sys_addr_parse(text, 0, &a, &err) < 0) test_fail(__FILE__, __LINE__, "%s", err.msg);
    return a;
}

// Waits until a descriptor is ready, at most ten seconds.
static void await(int fd, short events)
{
    struct pollfd p = {fd, events, 0};
    CHECK_INT(poll(&p, 1, 10000), 1);
}

// ------------------------------------------------------------------------------------------------
// Addresses.

// what: 'p' parses as an address, 'n' is a name, '0' needs port 0 allowed, 'x' is refused.
static const struct address_row {
    const char *text;
    char what;
    const char *canonical;  // NULL = the same
} address_rows[] = {
    {"1.2.3.4:80", 'p', NULL},
    {"0.0.0.0:65535", 'p', NULL},
    {"[::1]:80", 'p', NULL},
    {"[::]:1", 'p', NULL},
    {"[2001:DB8:0:0::1]:443", 'p', "[2001:db8::1]:443"},
    {"[::ffff:1.2.3.4]:80", 'p', NULL},
    {"[fe80::1%1]:80", 'p', NULL},
    {"[fe80::1%lo]:80", 'p', "[fe80::1%1]:80"},
    {"unix:/run/x.sock", 'p', NULL},
    {"unix:/a:80", 'p', NULL},
    {"1.2.3.4:0", '0', NULL},
    {"[::]:0", '0', NULL},
    {"localhost:80", 'n', NULL},
    {"a-b_c.Example.com.:80", 'n', NULL},
    {"4chan.org:80", 'n', NULL},
    {"1.2.3.4.com:80", 'n', NULL},
    {"0xyz:80", 'n', NULL},
    {"4f2a9c1b3d7e:80", 'n', NULL},
    {"db.1a:80", 'n', NULL},
    {"", 'x', NULL},
    {":", 'x', NULL},
    {":80", 'x', NULL},
    {"host", 'x', NULL},
    {"host:", 'x', NULL},
    {"1.2.3.4", 'x', NULL},
    {"[::1]", 'x', NULL},
    {"[::1]:", 'x', NULL},
    {"[::1]80", 'x', NULL},
    {"[::1]:80:90", 'x', NULL},
    {"[::1:80", 'x', NULL},
    {"[]:80", 'x', NULL},
    {"[1.2.3.4]:80", 'x', NULL},
    {"[host]:80", 'x', NULL},
    {"::1:80", 'x', NULL},
    {"2001:db8::1:80", 'x', NULL},
    {"[::1%1]:80", 'x', NULL},
    {"[fe80::1%]:80", 'x', NULL},
    {"[fe80::1%0]:80", 'x', NULL},
    {"[fe80::1%nosuchif0]:80", 'x', NULL},
    {"[fe80::1%4294967296]:80", 'x', NULL},
    {"1.2.3.4:65536", 'x', NULL},
    {"1.2.3.4:99999999999999999999", 'x', NULL},
    {"1.2.3.4:-1", 'x', NULL},
    {"1.2.3.4:+80", 'x', NULL},
    {"1.2.3.4: 80", 'x', NULL},
    {"1.2.3.4:80 ", 'x', NULL},
    {" 1.2.3.4:80", 'x', NULL},
    {"1.2.3.4:080", 'x', NULL},
    {"1.2.3.4:0x50", 'x', NULL},
    {"1.2.3.4:http", 'x', NULL},
    {"1.2.3:80", 'x', NULL},
    {"127.1:80", 'x', NULL},
    {"1.2.3.256:80", 'x', NULL},
    {"01.2.3.4:80", 'x', NULL},
    {"0x7f.1:80", 'x', NULL},
    {"0x7f000001:80", 'x', NULL},
    {"2130706433:80", 'x', NULL},
    {"127.1.:80", 'x', NULL},
    {"0X:80", 'x', NULL},
    {"a..b:80", 'x', NULL},
    {".a:80", 'x', NULL},
    {".:80", 'x', NULL},
    {"a b:80", 'x', NULL},
    {"a/b:80", 'x', NULL},
    {"a%00b:80", 'x', NULL},
    {"u@host:80", 'x', NULL},
    {"a\x01\xff:80", 'x', NULL},
    {"http://host:80", 'x', NULL},
    {"unix:", 'x', NULL},
    {"unix:x.sock", 'x', NULL},
    {"UNIX:/x", 'x', NULL},
};

TEST(U38_every_spelling_of_an_address_is_taken_or_refused_as_the_table_says)
{
    for (size_t i = 0; i < sizeof address_rows / sizeof *address_rows; i++) {
        const struct address_row *row = &address_rows[i];
        char text[RVD_SYS_TEXT_MAX];
        rvd_sys_endpoint e;
        rvd_sys_addr a;
        revdial_err err = {0};
        int split0 = rvd_sys_addr_split(row->text, 0, &e, NULL);
        int split = rvd_sys_addr_split(row->text, 1, &e, &err);
        int parse = rvd_sys_addr_parse(row->text, row->what == '0' ? 0 : 1, &a, NULL);
        int good = row->what != 'x';
        if ((split0 == 0) != good || (split == 0) != (good && row->what != '0'))
            test_fail(__FILE__, __LINE__, "U38.%zu \"%s\": split is %d", i, row->text, split);
        if ((parse == 0) != (row->what == 'p' || row->what == '0'))
            test_fail(__FILE__, __LINE__, "U38.%zu \"%s\": parse is %d", i, row->text, parse);
        if (split < 0 && (err.code != REVDIAL_EINVAL || err.msg[0] != '"'))
            test_fail(__FILE__, __LINE__, "U38.%zu err.msg is %s", i, err.msg);
        if (row->what == 'n') CHECK_INT(e.kind, RVD_SYS_NAME);
        if (parse < 0) continue;
        CHECK(rvd_sys_addr_format(&a, text, sizeof text) < sizeof text);
        CHECK_STR(text, row->canonical ? row->canonical : row->text);
    }
}

TEST(whatever_parses_is_formatted_as_a_text_that_parses_to_the_same)
{
    static const char alphabet[] = "01239abf::::..[]%/x-unix:";
    test_rng rng = test_rng_seeded(38);
    int parsed = 0;
    for (int i = 0; i < 200000; i++) {
        char text[40] = "", once[RVD_SYS_TEXT_MAX], twice[RVD_SYS_TEXT_MAX];
        size_t len = 1 + test_below(&rng, 14), n = i % 2 ? 1 : 0;
        rvd_sys_addr a;
        text[0] = '[';
        while (n < len) text[n++] = alphabet[test_below(&rng, sizeof alphabet - 1)];
        snprintf(text + n, sizeof text - n, "%s", i % 2 ? "]:8" : ".1:8");
        if (rvd_sys_addr_parse(text, 1, &a, NULL) < 0) continue;
        parsed++;
        rvd_sys_addr_format(&a, once, sizeof once);
        if (!CHECK_INT(rvd_sys_addr_parse(once, 1, &a, NULL), 0)) continue;
        rvd_sys_addr_format(&a, twice, sizeof twice);
        CHECK_STR(twice, once);
    }
    CHECK(parsed > 100);
}

TEST(an_address_error_quotes_the_text_printably_and_says_why)
{
    char text[2000];
    revdial_err err;
    rvd_sys_endpoint e;
    CHECK_INT(rvd_sys_addr_split("h\n\"\x7f:70000", 1, &e, &err), -EINVAL);
    CHECK_STR(err.msg, "\"h???:70000\": the host is neither an IPv4 address nor a name");
    CHECK_INT(rvd_sys_addr_split("h:70000", 1, &e, &err), -EINVAL);
    CHECK_STR(err.msg, "\"h:70000\": the port must be from 1 to 65535");
    memset(text, 'a', sizeof text);
    memcpy(text + sizeof text - 4, ":80", 4);
    CHECK_INT(rvd_sys_addr_split(text, 1, &e, &err), -EINVAL);
    CHECK(strlen(err.msg) < sizeof err.msg && strstr(err.msg, "\": the host is too long"));
    CHECK_INT(rvd_sys_addr_split(text, 1, &e, NULL), -EINVAL);
}

TEST(what_people_write_for_an_address_is_refused_with_the_form_that_is_right)
{
    static const struct {
        const char *text, *why;
    } rows[] = {
        {"7000", "the host is missing: write HOST:PORT"},
        {":7000", "the host is missing: write HOST:PORT"},
        {"example", "the port is missing: write HOST:PORT"},
        {"[::1]", "an IPv6 address is written [::1]:80"},
        {"/run/x.sock", "a unix socket is written unix:/path"},
        {"tcp://127.0.0.1:7000", "not a URL: write HOST:PORT without the scheme"},
        {"http://localhost:80", "not a URL: write HOST:PORT without the scheme"},
        {"::1:80", "an IPv6 address needs brackets"},
        {"x:y:80", "write HOST:PORT, with one colon"},
        {"unix:x.sock", "must start with /"},
        {"h:port", "the port must be from 1 to 65535"},
    };
    char path[RVD_SYS_PATH_MAX + 50] = "unix:/", most[16];
    revdial_err err;
    rvd_sys_endpoint e;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        memset(&err, 0, sizeof err);
        if (rvd_sys_addr_split(rows[i].text, 1, &e, &err) >= 0 || !strstr(err.msg, rows[i].text) ||
            !strstr(err.msg, rows[i].why))
            test_fail(__FILE__, __LINE__, "%s: %s", rows[i].text, err.msg);
    }
    memset(path + 6, 'p', sizeof path - 7);
    CHECK_INT(rvd_sys_addr_split(path, 1, &e, &err), -ENAMETOOLONG);
    snprintf(most, sizeof most, "%d bytes", (int)RVD_SYS_PATH_MAX - 1);
    CHECK(strstr(err.msg, most) != NULL);
}

TEST(a_lookup_that_fails_says_whether_the_name_or_the_name_server_is_missing)
{
    revdial_err err;
    rvd_sys_resolve_fail(&err, -ENOENT, "x.invalid:80", "no such host");
    CHECK_STR(err.msg, "\"x.invalid:80\": no such host");
    rvd_sys_resolve_fail(&err, -EAGAIN, "x.example:80", "no such host");
    CHECK(strstr(err.msg, "x.example:80") && strstr(err.msg, "no name server gives an answer"));
}

TEST(a_host_of_255_bytes_fits_and_256_do_not)
{
    char text[300];
    rvd_sys_endpoint e;
    memset(text, 'a', sizeof text);
    memcpy(text + 255, ":80", 4);
    CHECK_INT(rvd_sys_addr_split(text, 1, &e, NULL), 0);
    CHECK_INT(strlen(e.host), 255);
    text[255] = 'a';
    memcpy(text + 256, ":80", 4);
    CHECK_INT(rvd_sys_addr_split(text, 1, &e, NULL), -EINVAL);
}

TEST(U21_a_unix_path_of_107_bytes_fits_and_108_are_too_long)
{
    char path[200] = "unix:/", text[RVD_SYS_TEXT_MAX];
    rvd_sys_addr a;
    revdial_err err;
    memset(path + 6, 'p', RVD_SYS_PATH_MAX - 2);
    CHECK_INT(rvd_sys_addr_parse(path, 1, &a, NULL), 0);
    CHECK_INT(rvd_sys_addr_format(&a, text, sizeof text), 5 + RVD_SYS_PATH_MAX - 1);
    CHECK_STR(text, path);
    path[6 + RVD_SYS_PATH_MAX - 2] = 'p';
    CHECK_INT(rvd_sys_addr_parse(path, 1, &a, &err), -ENAMETOOLONG);
    CHECK_INT(err.code, REVDIAL_EINVAL);
}

TEST(loopback_is_127_slash_8_v6_one_their_mapped_forms_and_unix)
{
    static const struct {
        const char *text;
        int loopback;
    } rows[] = {{"127.0.0.1:1", 1},     {"127.255.255.254:1", 1},
                {"[::1]:1", 1},         {"[::ffff:127.9.9.9]:1", 1},
                {"unix:/x", 1},         {"126.0.0.1:1", 0},
                {"128.0.0.1:1", 0},     {"[::ffff:128.0.0.1]:1", 0},
                {"[::]:1", 0},          {"0.0.0.0:1", 0},
                {"[::127.0.0.1]:1", 0}, {"[fe80::1]:1", 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        rvd_sys_addr a = address(rows[i].text);
        if (rvd_sys_addr_is_loopback(&a) != rows[i].loopback)
            test_fail(__FILE__, __LINE__, "%s is misjudged", rows[i].text);
    }
}

TEST(an_address_text_that_is_cut_is_terminated_and_tells_its_length)
{
    rvd_sys_addr a = address("1.2.3.4:80");
    char text[5];
    CHECK_INT(rvd_sys_addr_format(&a, text, sizeof text), 10);
    CHECK_STR(text, "1.2.");
    CHECK_INT(rvd_sys_addr_format(&a, text, 0), 10);
}

TEST(a_unix_peer_without_a_name_is_called_unix)
{
    int fds[2];
    char text[RVD_SYS_TEXT_MAX];
    rvd_sys_addr a;
    new_pair(fds);
    CHECK_INT(rvd_sys_getpeername(fds[0], &a), 0);
    rvd_sys_addr_format(&a, text, sizeof text);
    CHECK_STR(text, "unix");
    close(fds[0]);
    close(fds[1]);
    CHECK_INT(rvd_sys_getsockname(fds[0], &a), -EBADF);
}

TEST(the_resolver_tells_no_such_host_from_nobody_knows)
{
    static const struct {
        int eai, want;
    } rows[] = {
        {EAI_NONAME, -ENOENT}, {EAI_AGAIN, -EAGAIN}, {EAI_FAIL, -EAGAIN}, {EAI_MEMORY, -ENOMEM}};
    rvd_sys_addr out[4];
    char text[RVD_SYS_TEXT_MAX];
    fault_clear();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        fault_set(GETADDRINFO, rows[i].eai, 1);
        CHECK_INT(rvd_sys_resolve("host", 80, out, 4), rows[i].want);
    }
    atomic_store(&fault_eintr, 1);
    CHECK_INT(rvd_sys_resolve("127.0.0.1", 8080, out, 4), 1);
    rvd_sys_addr_format(&out[0], text, sizeof text);
    CHECK_STR(text, "127.0.0.1:8080");
    fault_clear();
}

// ------------------------------------------------------------------------------------------------
// Descriptors and connections.

static int connected_pair(rvd_sys_addr at, int fds[2])
{
    rvd_sys_addr peer;
    int r, listener = rvd_sys_listen(&at, 16);
    fds[0] = fds[1] = -1;
    if (!CHECK(listener >= 0)) return listener;
    CHECK_INT(rvd_sys_getsockname(listener, &at), 0);
    fds[0] = rvd_sys_socket_tcp(at.ss.ss_family);
    r = rvd_sys_connect_start(fds[0], &at);
    CHECK(r == 0 || r == -EINPROGRESS);
    await(listener, POLLIN);
    do fds[1] = rvd_sys_accept(listener, &peer);
    while (fds[1] == -ECONNABORTED);
    await(fds[0], POLLOUT);
    CHECK_INT(rvd_sys_connect_result(fds[0]), 0);
    CHECK(has_flags(listener, 1) && has_flags(fds[0], 1) && has_flags(fds[1], 1));
    CHECK_INT(rvd_sys_close(listener), 0);
    return fds[1] < 0 ? fds[1] : 0;
}

TEST(every_descriptor_is_nonblocking_and_close_on_exec_even_when_every_other_call_is_interrupted)
{
    int fds[2];
    for (int eintr = 0; eintr < 2; eintr++) {
        fault_clear();
        atomic_store(&fault_eintr, eintr);
        REQUIRE(connected_pair(address("127.0.0.1:0"), fds) == 0);
        rvd_sys_tune_session(fds[0], 30000, "");
        rvd_sys_tune_client(fds[1]);
        CHECK_INT(rvd_sys_set_notsent_lowat(fds[0], 16384), 0);
        CHECK_INT(rvd_sys_shutdown_wr(fds[0]), 0);
        CHECK_INT(rvd_sys_close(fds[0]), 0);
        CHECK_INT(rvd_sys_close(fds[1]), 0);
    }
    fault_clear();
}

TEST(a_session_socket_has_keepalive_60_15_3_user_timeout_30_and_no_nagle)
{
#ifdef __linux__
    static const struct {
        int level, option, want;
    } rows[] = {{IPPROTO_TCP, TCP_NODELAY, 1},   {SOL_SOCKET, SO_KEEPALIVE, 1},
                {IPPROTO_TCP, TCP_KEEPIDLE, 60}, {IPPROTO_TCP, TCP_KEEPINTVL, 15},
                {IPPROTO_TCP, TCP_KEEPCNT, 3},   {IPPROTO_TCP, TCP_USER_TIMEOUT, 30000}};
    int fd = rvd_sys_socket_tcp(AF_INET);
    rvd_sys_tune_session(fd, 30000, "");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int value = -1;
        socklen_t len = sizeof value;
        CHECK_INT(getsockopt(fd, rows[i].level, rows[i].option, &value, &len), 0);
        CHECK_INT(value, rows[i].want);
    }
    rvd_sys_close(fd);
#endif
}

TEST(a_connection_to_a_closed_port_says_refused)
{
    rvd_sys_addr at = address("127.0.0.1:0");
    int r, fd, listener = rvd_sys_listen(&at, 1);
    CHECK_INT(rvd_sys_getsockname(listener, &at), 0);
    rvd_sys_close(listener);
    fd = rvd_sys_socket_tcp(AF_INET);
    r = rvd_sys_connect_start(fd, &at);
    if (r == -EINPROGRESS) {
        await(fd, POLLOUT);
        r = rvd_sys_connect_result(fd);
    }
    CHECK_INT(r, -ECONNREFUSED);
    rvd_sys_close(fd);
}

TEST(U27_a_connect_that_has_not_finished_is_not_taken_for_done)
{
    int fd = rvd_sys_socket_tcp(AF_INET);
    CHECK_INT(rvd_sys_connect_result(fd), -EINPROGRESS);
    rvd_sys_close(fd);
}

TEST(v4_and_v6_wildcards_share_a_port_in_either_order)
{
    for (int order = 0, tries = 0; order < 2; order++) {
        rvd_sys_addr first = address(order ? "[::]:0" : "0.0.0.0:0"), second, bound;
        int a = rvd_sys_listen(&first, 1), b;
        if (a == -EAFNOSUPPORT || a == -EADDRNOTAVAIL) return;  // a host without IPv6
        CHECK_INT(rvd_sys_getsockname(a, &bound), 0);
        second = address(order ? "0.0.0.0:0" : "[::]:0");
        // The port is at the same place in both kinds of address.
        ((struct sockaddr_in *)&second.ss)->sin_port = ((struct sockaddr_in *)&bound.ss)->sin_port;
        b = rvd_sys_listen(&second, 1);
        rvd_sys_close(a);
        rvd_sys_close(b);
        if (b == -EADDRINUSE && tries++ < 20)
            order--;  // by somebody else, it may be: with another port
        else
            CHECK(b >= 0 || b == -EAFNOSUPPORT || b == -EADDRNOTAVAIL);
    }
}

// A socket that has the listener's port in IPv4, so that nobody else does; -1: somebody else does.
static int keep_v4_port(int listener)
{
    rvd_sys_addr at;
    struct sockaddr_in four = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_INT(rvd_sys_getsockname(listener, &at), 0);
    four.sin_port = ((struct sockaddr_in *)&at.ss)->sin_port;
    if (bind(fd, (struct sockaddr *)&four, sizeof four) == 0) return fd;
    rvd_sys_close(fd);
    return -1;
}

// What accept says of a client of 127.0.0.1 that connects to that listener.
static void client_seen(int listener, char text[RVD_SYS_TEXT_MAX])
{
    rvd_sys_addr at, peer, local;
    struct sockaddr_in to = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM, 0), got;
    text[0] = '\0';
    CHECK_INT(rvd_sys_getsockname(listener, &at), 0);
    to.sin_port = ((struct sockaddr_in *)&at.ss)->sin_port;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) == 0) {
        await(listener, POLLIN);
        got = rvd_sys_accept(listener, &peer);
        CHECK_INT(rvd_sys_getsockname(got, &local), 0);
        CHECK_INT(local.ss.ss_family, AF_INET);
        CHECK_INT(rvd_sys_getpeername(got, &local), 0);
        CHECK_INT(local.ss.ss_family, AF_INET);
        rvd_sys_addr_format(&peer, text, RVD_SYS_TEXT_MAX);
        rvd_sys_close(got);
    }
    rvd_sys_close(fd);
}

TEST(the_v6_wildcard_takes_v4_clients_by_their_v4_addresses_when_it_is_told_to)
{
    char text[RVD_SYS_TEXT_MAX];
    rvd_sys_addr any = address("[::]:0");
    rvd_sys_listen_how both = {.takes_ipv4 = 1}, six = {.takes_ipv4 = 0};
    int fd = rvd_sys_listen_as(&any, 1, both);
    if (fd == -EAFNOSUPPORT || fd == -EADDRNOTAVAIL) return;  // a host without IPv6
    client_seen(fd, text);
    CHECK_INT(strncmp(text, "127.0.0.1:", 10), 0);
    rvd_sys_close(fd);
    for (int tries = 0, four = -1; four < 0 && CHECK(tries < 20); tries++) {
        fd = rvd_sys_listen_as(&any, 1, six);
        four = keep_v4_port(fd);
        if (four >= 0) {
            client_seen(fd, text);
            CHECK_STR(text, "");
            rvd_sys_close(four);
        }
        rvd_sys_close(fd);
    }
}

TEST(a_unix_socket_has_its_mode_before_anybody_can_connect_whatever_the_umask)
{
    static const struct {
        mode_t mask;
        unsigned mode, result;
    } rows[] = {{077, 0660, 0660}, {0, 0600, 0600}, {022, 0, 0755}, {077, 0777, 0777}};
    char dir[] = "/tmp/revdial-test.XXXXXX", text[64];
    struct stat st;
    mode_t before = umask(0);
    REQUIRE(mkdtemp(dir) != NULL);
    snprintf(text, sizeof text, "unix:%s/s", dir);
    rvd_sys_addr at = address(text);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        rvd_sys_listen_how how = {.mode = rows[i].mode};
        umask(rows[i].mask);
        int fd = rvd_sys_listen_as(&at, 1, how);
        CHECK(fd >= 0);
        CHECK_INT(stat(text + 5, &st), 0);
        CHECK_INT(st.st_mode & 0777, rows[i].result);
        unlink(text + 5);
        rvd_sys_close(fd);
    }
    CHECK_INT(atomic_load(&mode_strangers), 0);
    umask(before);
    rmdir(dir);
}

TEST(U21_a_port_in_use_is_an_error_and_leaks_nothing)
{
    rvd_sys_addr at = address("127.0.0.1:0");
    int a = rvd_sys_listen(&at, 1);
    CHECK_INT(rvd_sys_getsockname(a, &at), 0);
    fault_clear();
    CHECK_INT(rvd_sys_listen(&at, 1), -EADDRINUSE);
    CHECK_INT(calls_of(SOCKET), calls_of(CLOSE));
    rvd_sys_close(a);
}

TEST(U30_no_shortage_of_descriptors_is_retried)
{
    static const int errors[] = {EMFILE, ENFILE, ENOBUFS, ENOMEM};
    rvd_sys_addr at = address("127.0.0.1:0");
    int listener = rvd_sys_listen(&at, 1), fds[2];
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        fault_clear();
        fault_set(ACCEPT, errors[i], 1000000);
        CHECK_INT(rvd_sys_accept(listener, NULL), -errors[i]);
        CHECK_INT(calls_of(ACCEPT), 1);
        fault_set(SOCKET, errors[i], 1000000);
        CHECK_INT(rvd_sys_socket_tcp(AF_INET), -errors[i]);
        CHECK_INT(rvd_sys_listen(&at, 1), -errors[i]);
        CHECK_INT(rvd_sys_socketpair(fds), -errors[i]);
    }
    fault_clear();
    CHECK_INT(rvd_sys_accept(listener, NULL), -EAGAIN);
    rvd_sys_close(listener);
}

TEST(U29_a_connection_that_died_in_the_queue_is_told_from_a_shortage)
{
    static const int errors[] = {ECONNABORTED, EPROTO, ENETDOWN, EHOSTUNREACH, EPERM};
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        fault_clear();
        fault_set(ACCEPT, errors[i], 1);
        CHECK_INT(rvd_sys_accept(0, NULL), -ECONNABORTED);
    }
    fault_clear();
}

TEST(a_reset_close_reads_as_ECONNRESET_at_the_other_end_of_the_pair)
{
    char byte;
    int fds[2];
    fault_clear();
    REQUIRE(rvd_sys_socketpair(fds) == 0);
    CHECK(has_flags(fds[0], 1) && has_flags(fds[1], 0));
    CHECK_INT(rvd_sys_close_reset(fds[0]), 0);
    CHECK_INT(rvd_sys_read(fds[1], &byte, 1), -ECONNRESET);
    rvd_sys_close(fds[1]);
    REQUIRE(rvd_sys_socketpair(fds) == 0);
    CHECK_INT(rvd_sys_close(fds[0]), 0);
    CHECK_INT(rvd_sys_read(fds[1], &byte, 1), 0);
    rvd_sys_close(fds[1]);
}

static int open_descriptors(void)
{
    int n = 0;
    for (int fd = 0; fd < 256; fd++) n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

TEST(what_the_other_end_has_not_taken_counts_as_unsent)
{
#ifdef __linux__
    static char block[65536];
    int fds[2], p[2];
    int64_t until_us = rvd_sys_now_us() + 10000000;
    REQUIRE(rvd_sys_socketpair(fds) == 0);
    CHECK_INT(rvd_sys_unsent(fds[0]), 0);
    while (rvd_sys_write(fds[0], block, sizeof block) > 0) {
    }
    CHECK(rvd_sys_unsent(fds[0]) > 0);
    CHECK_INT(rvd_sys_set_nonblocking(fds[1]), 0);
    // The acknowledgements are on their way by themselves.
    while (rvd_sys_unsent(fds[0]) > 0 && rvd_sys_now_us() < until_us)
        if (rvd_sys_read(fds[1], block, sizeof block) == -EAGAIN) sched_yield();
    CHECK_INT(rvd_sys_unsent(fds[0]), 0);
    rvd_sys_close(fds[0]);
    rvd_sys_close(fds[1]);
    CHECK_INT(rvd_sys_unsent(fds[0]), -EBADF);
    if (pipe(p) < 0) abort();
    CHECK_INT(rvd_sys_unsent(p[1]), 0);
    close(p[0]);
    close(p[1]);
#endif
}

TEST(a_pair_is_made_or_every_descriptor_is_closed_whichever_call_fails)
{
    static const enum fault_call each[] = {SOCKET, BIND, LISTEN,     CONNECT,    ACCEPT,
                                           FCNTL,  POLL, GETSOCKOPT, GETSOCKNAME};
    int fds[2];
    for (size_t i = 0; i < sizeof each / sizeof *each; i++) {
        for (int skip = 0; skip < 6; skip++) {
            int made, before = open_descriptors();
            fault_clear();
            fault_set(each[i], EIO, 1);
            atomic_store(&fault_skip[each[i]], skip);
            made = rvd_sys_socketpair(fds) == 0;
            CHECK_INT(open_descriptors() - before, 2 * made);
            CHECK(made == (fds[0] >= 0) && made == (fds[1] >= 0));
            if (!made) continue;
            rvd_sys_close(fds[0]);
            rvd_sys_close(fds[1]);
        }
    }
    fault_clear();
    atomic_store(&fault_eintr, 1);
    REQUIRE(rvd_sys_socketpair(fds) == 0);
    rvd_sys_close(fds[0]);
    rvd_sys_close(fds[1]);
    fault_clear();
}

static void unix_path(char *text, size_t size)
{
    snprintf(text, size, "unix:/tmp/revdial-test-%ld.sock", (long)getpid());
    unlink(text + 5);
}

TEST(a_dead_unix_socket_is_replaced_and_a_live_one_is_not)
{
    char text[64];
    rvd_sys_addr at;
    int a, b, c;
    struct stat st;
    unix_path(text, sizeof text);
    at = address(text);
    a = rvd_sys_listen(&at, 16);
    REQUIRE(a >= 0);
    CHECK_INT(rvd_sys_listen(&at, 16), -EADDRINUSE);
    c = rvd_sys_socket_tcp(AF_UNIX);
    CHECK_INT(rvd_sys_connect_start(c, &at), 0);
    rvd_sys_close(c);
    rvd_sys_close(a);
    b = rvd_sys_listen(&at, 16);
    CHECK(b >= 0);
    c = rvd_sys_socket_tcp(AF_UNIX);
    CHECK_INT(rvd_sys_connect_start(c, &at), 0);
    rvd_sys_close(c);
    CHECK_INT(rvd_sys_unlink(text + 5), 0);
    CHECK_INT(rvd_sys_unlink(text + 5), -ENOENT);
    rvd_sys_close(b);
    a = open(text + 5, O_CREAT | O_WRONLY, 0600);
    close(a);
    CHECK_INT(rvd_sys_listen(&at, 16), -EADDRINUSE);
    CHECK(stat(text + 5, &st) == 0 && S_ISREG(st.st_mode));
    unlink(text + 5);
}

TEST(a_unix_listener_with_a_full_queue_counts_as_alive)
{
    char text[64];
    int fds[64], n = 0, a, r = 0;
    rvd_sys_addr at;
    unix_path(text, sizeof text);
    at = address(text);
    a = rvd_sys_listen(&at, 0);
    REQUIRE(a >= 0);
    while (n < 64 && r == 0) {
        fds[n] = rvd_sys_socket_tcp(AF_UNIX);
        r = rvd_sys_connect_start(fds[n++], &at);
    }
    CHECK_INT(r, -EAGAIN);
    CHECK_INT(rvd_sys_listen(&at, 16), -EADDRINUSE);
    while (n > 0) rvd_sys_close(fds[--n]);
    rvd_sys_close(a);
    unlink(text + 5);
}

TEST(random_bytes_come_without_getrandom_and_their_absence_is_an_error)
{
    unsigned char a[64] = {0}, b[64] = {0};
    fault_clear();
    atomic_store(&fault_eintr, 1);
    atomic_store(&fault_short, 1);
    CHECK_INT(rvd_sys_random(a, sizeof a), 0);
    fault_set(GETRANDOM, ENOSYS, 1);
    CHECK_INT(rvd_sys_random(b, sizeof b), 0);
    CHECK(memcmp(a, b, sizeof a) != 0);
    fault_clear();
    fault_set(GETRANDOM, ENOSYS, 1);
    fault_set(OPEN, EMFILE, 1);
    CHECK_INT(rvd_sys_random(b, sizeof b), -EMFILE);
    fault_set(GETRANDOM, EPERM, 1);
    fault_set(READ, EIO, 1);
    CHECK_INT(rvd_sys_random(b, sizeof b), -EIO);
    fault_clear();
}

// ------------------------------------------------------------------------------------------------
// Moving bytes.

enum { PAYLOAD = 3000 };

// Sends PAYLOAD bytes from out to in, by write and writev in turn, and compares.
static void move_payload(int out, int in)
{
    unsigned char sent[PAYLOAD], got[PAYLOAD];
    size_t s = 0, g = 0, turn = 0;
    for (size_t i = 0; i < PAYLOAD; i++) sent[i] = (unsigned char)(i * 7);
    while (g < PAYLOAD) {
        struct iovec iov[2] = {{sent + s, (PAYLOAD - s) / 2},
                               {sent + s + (PAYLOAD - s) / 2, (PAYLOAD - s + 1) / 2}};
        ptrdiff_t n =
            turn++ % 2 ? rvd_sys_write(out, sent + s, PAYLOAD - s) : rvd_sys_writev(out, iov, 2);
        if (!CHECK(n >= 0 || n == -EAGAIN || n == -ENOTSOCK)) return;
        if (n > 0) s += (size_t)n;
        n = rvd_sys_read(in, got + g, PAYLOAD - g);
        if (!CHECK(n > 0 || n == -EAGAIN)) return;
        if (n > 0) g += (size_t)n;
    }
    CHECK(memcmp(sent, got, PAYLOAD) == 0);
}

TEST(U26_U28_bytes_arrive_whole_through_EINTR_and_one_byte_calls_on_sockets_and_pipes)
{
    for (int how = 0; how < 4; how++) {
        int fds[2], p[2];
        new_pair(fds);
        if (pipe2(p, O_NONBLOCK) < 0) abort();
        fault_clear();
        atomic_store(&fault_eintr, how & 1);
        atomic_store(&fault_short, how >> 1);
        move_payload(fds[0], fds[1]);
        move_payload(p[1], p[0]);
        fault_clear();
        for (int i = 0; i < 2; i++) {
            close(fds[i]);
            close(p[i]);
        }
    }
}

TEST(U29_errors_of_sending_and_receiving_come_back_as_they_are)
{
    struct iovec iov[2] = {{(void *)(uintptr_t) "x", 1}, {(void *)(uintptr_t) "y", 1}};
    char byte;
    int fds[2];
    new_pair(fds);
    fault_clear();
    fault_set(SEND, ENOBUFS, 1);
    CHECK_INT(rvd_sys_write(fds[0], "x", 1), -ENOBUFS);
    fault_set(SEND, ENOBUFS, 1);
    CHECK_INT(rvd_sys_writev(fds[0], iov, 1), -ENOBUFS);
    fault_set(SENDMSG, ENOMEM, 1);
    CHECK_INT(rvd_sys_writev(fds[0], iov, 2), -ENOMEM);
    fault_set(RECV, ETIMEDOUT, 1);
    CHECK_INT(rvd_sys_read(fds[0], &byte, 1), -ETIMEDOUT);
    CHECK_INT(rvd_sys_read(fds[0], &byte, 1), -EAGAIN);
    CHECK_INT(rvd_sys_writev(fds[0], iov, 1), 1);
    CHECK_INT(rvd_sys_read(fds[1], &byte, 1), 1);
    close(fds[0]);
    close(fds[1]);
    CHECK_INT(rvd_sys_read(fds[0], &byte, 1), -EBADF);
}

TEST(more_vectors_than_the_system_takes_are_a_short_write)
{
    struct iovec iov[RVD_SYS_IOV_MAX + 5];
    int fds[2];
    new_pair(fds);
    for (int i = 0; i < RVD_SYS_IOV_MAX + 5; i++)
        iov[i] = (struct iovec){(void *)(uintptr_t) "x", 1};
    CHECK_INT(rvd_sys_writev(fds[0], iov, RVD_SYS_IOV_MAX + 5), RVD_SYS_IOV_MAX);
    close(fds[0]);
    close(fds[1]);
}

static int sigpipe_is_pending(void)
{
    sigset_t set;
    sigpending(&set);
    return sigismember(&set, SIGPIPE) == 1;
}

TEST(U24_a_broken_socket_or_pipe_raises_no_SIGPIPE_and_leaves_none_behind)
{
    sigset_t only, before, after;
    sigemptyset(&only);
    sigaddset(&only, SIGPIPE);
    signal(SIGPIPE, SIG_DFL);
    for (int blocked = 0; blocked < 2; blocked++) {
        struct iovec iov[2] = {{(void *)(uintptr_t) "x", 1}, {(void *)(uintptr_t) "y", 1}};
        int fds[2], p[2];
        pthread_sigmask(blocked ? SIG_BLOCK : SIG_UNBLOCK, &only, &before);
        new_pair(fds);
        if (pipe(p) < 0) abort();
        close(fds[1]);
        close(p[0]);
        CHECK_INT(rvd_sys_write(fds[0], "x", 1), -EPIPE);
        CHECK_INT(rvd_sys_writev(fds[0], iov, 2), -EPIPE);
        CHECK_INT(rvd_sys_write(p[1], "x", 1), -EPIPE);
        CHECK_INT(rvd_sys_writev(p[1], iov, 2), -ENOTSOCK);
        CHECK(!sigpipe_is_pending());
        pthread_sigmask(SIG_BLOCK, NULL, &after);
        CHECK_INT(sigismember(&after, SIGPIPE), blocked);
        close(fds[0]);
        close(p[1]);
    }
    pthread_sigmask(SIG_UNBLOCK, &only, NULL);
}

TEST(a_SIGPIPE_that_was_pending_before_stays_pending)
{
    sigset_t only;
    int p[2], taken = 0;
    if (pipe(p) < 0) abort();
    close(p[0]);
    sigemptyset(&only);
    sigaddset(&only, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &only, NULL);
    pthread_kill(pthread_self(), SIGPIPE);
    CHECK_INT(rvd_sys_write(p[1], "x", 1), -EPIPE);
    CHECK(sigpipe_is_pending());
    sigwait(&only, &taken);
    CHECK_INT(taken, SIGPIPE);
    CHECK(!sigpipe_is_pending());
    pthread_sigmask(SIG_UNBLOCK, &only, NULL);
    close(p[1]);
}

TEST(U24_an_ignored_SIGPIPE_hangs_no_write_to_a_broken_pipe)
{
    int p[2];
    if (pipe(p) < 0) abort();
    close(p[0]);
    signal(SIGPIPE, SIG_IGN);
    CHECK_INT(rvd_sys_write(p[1], "x", 1), -EPIPE);
    signal(SIGPIPE, SIG_DFL);
    CHECK(!sigpipe_is_pending());
    close(p[1]);
}

// ------------------------------------------------------------------------------------------------
// The loop: descriptors.

TEST(an_edge_runs_once_until_the_owner_clears_the_bit)
{
    rvd_loop *loop = new_loop();
    watcher w;
    char buf[64];
    int fds[2];
    new_pair(fds);
    watcher_open(&w, loop, fds[0]);
    one_pass(loop);
    CHECK(w.runs == 1 && w.seen == RVD_LOOP_WRITE);
    put_bytes(fds[1], 1);
    one_pass(loop);
    CHECK(w.runs == 2 && w.seen == (RVD_LOOP_READ | RVD_LOOP_WRITE));
    put_bytes(fds[1], 1);  // news of what is known already
    one_pass(loop);
    CHECK_INT(w.runs, 2);
    CHECK_INT(rvd_sys_read(fds[0], buf, sizeof buf), 2);
    CHECK_INT(rvd_sys_read(fds[0], buf, sizeof buf), -EAGAIN);
    w.io.ready &= ~(unsigned)RVD_LOOP_READ;
    one_pass(loop);
    CHECK_INT(w.runs, 2);
    put_bytes(fds[1], 1);
    one_pass(loop);
    CHECK_INT(w.runs, 3);
    close(fds[1]);
    one_pass(loop);
    CHECK(w.runs == 4 && (w.seen & RVD_LOOP_HUP));
    one_pass(loop);
    CHECK_INT(w.runs, 4);
    rvd_loop_remove(loop, &w.io);
    close(fds[0]);
    rvd_loop_free(loop);
}

// For owners that clear READ after a short read: no order of the bytes and the end loses the end.
TEST(an_end_is_seen_after_a_short_read_whenever_it_came)
{
    enum { WITH_THE_BYTES, AFTER_THE_PASS, AFTER_THE_READ, ORDERS };
    for (int order = 0; order < ORDERS; order++) {
        rvd_loop *loop = new_loop();
        watcher w;
        char buf[64];
        int fds[2];
        new_pair(fds);
        watcher_open(&w, loop, fds[0]);
        one_pass(loop);
        put_bytes(fds[1], 3);
        if (order == WITH_THE_BYTES) shutdown(fds[1], SHUT_WR);
        one_pass(loop);
        CHECK(w.runs == 2 && (w.seen & RVD_LOOP_READ) && !(w.seen & RVD_LOOP_HUP));
        if (order == AFTER_THE_PASS) shutdown(fds[1], SHUT_WR);
        CHECK_INT(rvd_sys_read(fds[0], buf, sizeof buf), 3);
        if (!(w.io.ready & RVD_LOOP_EOF)) w.io.ready &= ~(unsigned)RVD_LOOP_READ;
        if (order == AFTER_THE_READ) shutdown(fds[1], SHUT_WR);
        one_pass(loop);
        CHECK(w.io.ready & RVD_LOOP_READ);
        CHECK_INT(rvd_sys_read(fds[0], buf, sizeof buf), 0);
        rvd_loop_remove(loop, &w.io);
        rvd_loop_free(loop);
        close(fds[0]);
        close(fds[1]);
    }
}

TEST(a_full_socket_becomes_writable_with_one_run_when_the_peer_has_read)
{
    static char block[65536];
    rvd_loop *loop = new_loop();
    watcher w;
    int fds[2];
    new_pair(fds);
    watcher_open(&w, loop, fds[0]);
    one_pass(loop);
    while (rvd_sys_write(fds[0], block, sizeof block) > 0) {
    }
    w.io.ready &= ~(unsigned)RVD_LOOP_WRITE;
    one_pass(loop);
    CHECK_INT(w.runs, 1);
    while (rvd_sys_read(fds[1], block, sizeof block) > 0) {
    }
    one_pass(loop);
    CHECK(w.runs == 2 && w.seen == RVD_LOOP_WRITE);
    rvd_loop_remove(loop, &w.io);
    rvd_loop_free(loop);
    close(fds[0]);
    close(fds[1]);
}

// As when a child of the application has a copy of the descriptor.
TEST(what_happens_to_a_copy_of_a_descriptor_that_was_closed_runs_nothing)
{
    rvd_loop *loop = new_loop();
    watcher w[2];
    int fds[2], others[2], copy;
    new_pair(fds);
    new_pair(others);
    copy = dup(fds[0]);
    watcher_open(&w[0], loop, fds[0]);
    one_pass(loop);
    rvd_loop_forget(loop, &w[0].io);
    close(fds[0]);
    watcher_open(&w[1], loop, others[0]);  // in the same place
    one_pass(loop);
    put_bytes(fds[1], 1);
    one_pass(loop);
    CHECK(w[0].runs == 1 && w[1].runs == 1 && w[1].seen == RVD_LOOP_WRITE);
    rvd_loop_forget(loop, &w[1].io);
    put_bytes(fds[1], 1);
    one_pass(loop);  // the place is free
    CHECK(w[0].runs == 1 && w[1].runs == 1);
    close(others[0]);
    rvd_loop_free(loop);
    close(copy);
    close(fds[1]);
    close(others[1]);
}

TEST(an_owner_that_replaces_another_gets_what_is_ready_and_its_turn_without_a_system_call)
{
    rvd_loop *loop = new_loop();
    watcher w[2] = {0};
    int fds[2];
    new_pair(fds);
    fault_clear();
    watcher_open(&w[0], loop, fds[0]);
    put_bytes(fds[1], 1);
    one_pass(loop);
    CHECK_INT(w[0].runs, 1);
    rvd_loop_again(loop, &w[0].io);
    w[1].io.run = watcher_run;
    w[1].loop = loop;
    rvd_loop_replace(loop, &w[0].io, &w[1].io);
    CHECK(!w[0].io.slot && w[1].io.fd == fds[0]);
    one_pass(loop);
    CHECK(w[1].runs == 1 && w[1].seen == (RVD_LOOP_READ | RVD_LOOP_WRITE));
    close(fds[1]);
    one_pass(loop);
    CHECK(w[0].runs == 1 && w[1].runs == 2 && (w[1].seen & RVD_LOOP_HUP));
    CHECK_INT(calls_of(EPOLL_CTL_), RVD_SYS_EPOLL);
    rvd_loop_forget(loop, &w[1].io);
    rvd_loop_free(loop);
    close(fds[0]);
}

TEST(changing_what_one_waits_for_costs_no_system_call)
{
    rvd_loop *loop = new_loop();
    watcher w;
    int fds[2];
    new_pair(fds);
    fault_clear();
    watcher_open(&w, loop, fds[0]);
    w.drain = 1;
    for (int i = 0; i < 50; i++) {
        put_bytes(fds[1], 1);
        one_pass(loop);
    }
    CHECK_INT(w.runs, 51 - 1);  // the first run found both directions ready
    CHECK_INT(calls_of(EPOLL_CTL_), RVD_SYS_EPOLL);
    CHECK_INT(calls_of(EPOLL_WAIT) + calls_of(POLL), 50);
    rvd_loop_remove(loop, &w.io);
    rvd_loop_free(loop);
    close(fds[0]);
    close(fds[1]);
}

TEST(U27_a_readiness_that_proves_false_is_waited_for_again)
{
    rvd_loop *loop = new_loop();
    watcher w;
    char buf[8];
    int fds[2];
    new_pair(fds);
    fault_clear();
    watcher_open(&w, loop, fds[0]);
    one_pass(loop);
    w.drain = 1;
    fault_set(RECV, EAGAIN, 1);
    put_bytes(fds[1], 1);
    one_pass(loop);  // told it is readable, EAGAIN: the byte stays, and the bit is cleared
    CHECK(!(w.io.ready & RVD_LOOP_READ));
    put_bytes(fds[1], 1);
    w.drain = 0;
    one_pass(loop);
    CHECK(w.runs == 3 && (w.seen & RVD_LOOP_READ));
    CHECK_INT(rvd_sys_read(fds[0], buf, sizeof buf), 2);
    rvd_loop_remove(loop, &w.io);
    rvd_loop_free(loop);
    close(fds[0]);
    close(fds[1]);
}

enum { BATCH = 20 };

typedef struct batch_item {
    rvd_loop_io io;
    struct batch *owner;
    int other;
} batch_item;

typedef struct batch {
    rvd_loop *loop;
    batch_item *items[BATCH];
    int runs;
} batch;

// The first of the batch that runs removes and frees them all, itself included.
static void batch_run(rvd_loop_io *io)
{
    batch *b = ((batch_item *)io)->owner;
    b->runs++;
    for (int i = 0; i < BATCH; i++) {
        batch_item *item = b->items[i];
        rvd_loop_remove(b->loop, &item->io);
        rvd_loop_remove(b->loop, &item->io);
        CHECK_INT(rvd_sys_close(item->io.fd), 0);
        close(item->other);
        free(item);
    }
}

TEST(a_removed_descriptor_does_not_run_even_if_its_event_is_in_the_same_batch)
{
    for (int queued = 0; queued < 2; queued++) {
        batch b = {.loop = new_loop()};
        for (int i = 0; i < BATCH; i++) {
            batch_item *item = calloc(1, sizeof *item);
            int fds[2];
            if (!item) abort();
            new_pair(fds);
            item->io.fd = fds[0];
            item->io.run = batch_run;
            item->owner = &b;
            item->other = fds[1];
            b.items[i] = item;
            CHECK_INT(rvd_loop_add(b.loop, &item->io), 0);
            if (queued) rvd_loop_again(b.loop, &item->io);
            put_bytes(fds[1], 1);
        }
        one_pass(b.loop);
        CHECK_INT(b.runs, 1);
        one_pass(b.loop);
        CHECK_INT(b.runs, 1);
        rvd_loop_free(b.loop);
    }
}

TEST(a_descriptor_that_is_removed_and_added_again_starts_anew)
{
    rvd_loop *loop = new_loop();
    watcher w[3];
    int fds[2];
    for (int i = 0; i < 3; i++) {
        new_pair(fds);
        watcher_open(&w[i], loop, fds[0]);
        close(fds[1]);
    }
    one_pass(loop);
    CHECK(w[0].runs == 1 && (w[0].io.ready & RVD_LOOP_HUP));
    rvd_loop_remove(loop, &w[0].io);
    CHECK_INT(rvd_loop_add(loop, &w[0].io), 0);
    CHECK_INT(w[0].io.ready, 0);
    one_pass(loop);
    CHECK(w[0].runs == 2 && w[1].runs == 1 && w[2].runs == 1);
    for (int i = 0; i < 3; i++) {
        rvd_loop_remove(loop, &w[i].io);
        close(w[i].io.fd);
    }
    rvd_loop_free(loop);
}

TEST(again_runs_once_in_each_next_pass_without_waiting)
{
    rvd_loop *loop = new_loop();
    watcher w, other;
    int fds[2];
    new_pair(fds);
    watcher_open(&w, loop, fds[0]);
    watcher_open(&other, loop, fds[1]);
    w.again = 3;
    for (int pass = 1; pass <= 4; pass++) {
        CHECK_INT(rvd_loop_pass(loop), 0);  // would hang if it waited
        CHECK_INT(w.runs, pass);
    }
    CHECK_INT(other.runs, 1);
    rvd_loop_again(loop, &w.io);
    rvd_loop_remove(loop, &w.io);
    one_pass(loop);
    CHECK_INT(w.runs, 4);
    rvd_loop_remove(loop, &other.io);
    rvd_loop_free(loop);
    close(fds[0]);
    close(fds[1]);
}

TEST(what_has_become_ready_comes_before_what_goes_on_from_the_last_pass)
{
    rvd_loop *loop = new_loop();
    watcher hog, other;
    int fds[4], turn = 0;
    new_pair(fds);
    new_pair(fds + 2);
    watcher_open(&hog, loop, fds[0]);
    watcher_open(&other, loop, fds[2]);
    hog.turn = other.turn = &turn;
    one_pass(loop);
    put_bytes(fds[1], 1);
    hog.again = 2;
    one_pass(loop);
    CHECK_INT(turn, 3);
    put_bytes(fds[3], 1);
    one_pass(loop);
    CHECK_INT(turn, 5);
    CHECK(other.at == 4 && hog.at == 5);
    one_pass(loop);
    CHECK_INT(hog.at, 6);
    rvd_loop_remove(loop, &hog.io);
    rvd_loop_remove(loop, &other.io);
    for (int i = 0; i < 4; i++) close(fds[i]);
    rvd_loop_free(loop);
}

TEST(a_regular_file_is_always_ready)
{
    rvd_loop *loop = new_loop();
    watcher w;
    char path[] = "/tmp/revdial-test-XXXXXX";
    int fd = mkstemp(path);
    REQUIRE(fd >= 0);
    unlink(path);
    watcher_open(&w, loop, fd);
    one_pass(loop);
    CHECK(w.runs == 1 && (w.seen & ~(unsigned)RVD_LOOP_EOF) == (RVD_LOOP_READ | RVD_LOOP_WRITE));
    one_pass(loop);
    CHECK_INT(w.runs, 1);
    rvd_loop_remove(loop, &w.io);
    rvd_loop_free(loop);
    close(fd);
}

TEST(a_pipe_tells_its_data_its_end_and_its_broken_reader)
{
    rvd_loop *loop = new_loop();
    watcher in, out;
    int p[2], q[2];
    if (pipe2(p, O_NONBLOCK) < 0 || pipe2(q, O_NONBLOCK) < 0) abort();
    watcher_open(&in, loop, p[0]);
    watcher_open(&out, loop, q[1]);
    in.drain = 1;
    one_pass(loop);
    CHECK(in.runs == 0 && out.runs == 1 && out.seen == RVD_LOOP_WRITE);
    put_bytes(p[1], 10);
    one_pass(loop);
    CHECK(in.runs == 1 && in.seen == RVD_LOOP_READ && in.io.ready == 0);
    close(p[1]);
    close(q[0]);
    one_pass(loop);
    CHECK(in.runs == 2 && (in.seen & RVD_LOOP_HUP));
    CHECK(out.runs == 2 && (out.seen & RVD_LOOP_HUP));
    one_pass(loop);
    CHECK(in.runs == 2 && out.runs == 2);
    rvd_loop_remove(loop, &in.io);
    rvd_loop_remove(loop, &out.io);
    rvd_loop_free(loop);
    close(p[0]);
    close(q[1]);
}

TEST(U31_descriptors_from_1024_on_and_the_first_three_work)
{
    struct rlimit limit;
    watcher w;
    rvd_loop *loop;
    int fds[2], high, saved;
    REQUIRE(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (limit.rlim_cur < 3000 && limit.rlim_max >= 3000) {
        limit.rlim_cur = 3000;
        REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    }
    saved = fcntl(0, F_DUPFD_CLOEXEC, 100);
    close(0);
    loop = new_loop();  // takes 0
    new_pair(fds);
    high = fcntl(fds[0], F_DUPFD_CLOEXEC, 2000);
    REQUIRE(high >= 2000);
    watcher_open(&w, loop, high);
    put_bytes(fds[1], 1);
    one_pass(loop);
    CHECK(w.runs == 1 && (w.seen & RVD_LOOP_READ));
    rvd_loop_remove(loop, &w.io);
    rvd_loop_free(loop);
    close(high);
    close(fds[0]);
    close(fds[1]);
    CHECK_INT(fcntl(0, F_GETFD), -1);
    if (saved >= 0) {
        dup2(saved, 0);
        close(saved);
    }
}

TEST(U26_U28_the_loop_moves_bytes_through_EINTR_and_one_byte_reads)
{
    rvd_loop *loop;
    watcher w;
    int fds[2];
    fault_clear();
    atomic_store(&fault_eintr, 1);
    atomic_store(&fault_short, 1);
    loop = new_loop();
    new_pair(fds);
    watcher_open(&w, loop, fds[0]);
    w.drain = 1;
    put_bytes(fds[1], 100);
    // An interrupted wait is a pass without events.
    for (int i = 0; i < 4; i++) one_pass(loop);
    CHECK_INT(w.runs, 1);
    CHECK_INT(w.io.ready, RVD_LOOP_WRITE);
    rvd_loop_remove(loop, &w.io);
    rvd_loop_free(loop);
    fault_clear();
    close(fds[0]);
    close(fds[1]);
}

// ------------------------------------------------------------------------------------------------
// The loop: birth and memory.

TEST(U30_a_loop_without_descriptors_is_refused_and_leaks_nothing)
{
    static const enum fault_call each[] = {EPOLL_CREATE, EVENTFD, EPOLL_CTL_, PIPE};
    for (size_t i = 0; i < sizeof each / sizeof *each; i++) {
        test_heap heap = {0};
        revdial_err err = {0};
        rvd_loop *loop;
        fault_clear();
        fault_set(each[i], EMFILE, 1);
        loop = rvd_loop_new(test_heap_alloc, &heap, &err);
        CHECK_INT(loop == NULL, (each[i] == PIPE) != RVD_SYS_EPOLL);
        if (!loop) {
            CHECK_INT(err.code, REVDIAL_ESYS);
            CHECK_INT(err.sys, EMFILE);
            CHECK(err.msg[0] != 0);
        }
        rvd_loop_free(loop);
        CHECK_INT(heap.live_bytes, 0);
        CHECK_INT(heap.live_blocks, 0);
    }
    fault_clear();
}

TEST(U34_a_loop_survives_the_failure_of_any_allocation)
{
    int made = 0;
    for (size_t n = 1; n < 50 && !made; n++) {
        test_heap heap = {.fail_at = n, .fail_forever = n % 2 == 0};
        revdial_err err = {0};
        rvd_loop *loop = rvd_loop_new(test_heap_alloc, &heap, &err);
        made = loop != NULL;
        if (!made) CHECK_INT(err.code, REVDIAL_ENOMEM);
        if (made) CHECK_INT(loop->heap.live_bytes, heap.live_bytes);
        rvd_loop_free(loop);
        CHECK_INT(heap.live_bytes, 0);
        CHECK_INT(heap.live_blocks, 0);
    }
    CHECK(made);
    rvd_loop_free(NULL);
}

static void timer_ignore(rvd_loop_timer *t)
{
    (void)t;
}

TEST(U34_a_timer_or_descriptor_that_finds_no_memory_is_not_set_and_hurts_no_other)
{
    static rvd_loop_timer timers[100];
    static watcher watchers[40];
    test_heap heap = {0};
    rvd_loop *loop = rvd_loop_new(test_heap_alloc, &heap, NULL);
    size_t set = 0;
    REQUIRE(loop != NULL);
    memset(timers, 0, sizeof timers);
    for (int i = 0; i < 100; i++) {
        int r;
        heap.fail_at = heap.calls + 1;
        timers[i].run = timer_ignore;
        r = rvd_loop_timer_set(loop, &timers[i], 1000 - i);
        CHECK(r == 0 || r == -ENOMEM);
        CHECK_INT(timers[i].slot != 0, r == 0);
        CHECK_INT(loop->timer_count, set + (r == 0));
        heap.fail_at = 0;
        CHECK_INT(rvd_loop_timer_set(loop, &timers[i], 1000 - i), 0);
        set++;
    }
    heap.fail_at = heap.calls + 1;
    heap.fail_forever = 1;
    for (int i = 0; i < 100; i++) CHECK_INT(rvd_loop_timer_set(loop, &timers[i], i), 0);
    for (int i = 0; i < 100; i++) rvd_loop_timer_stop(loop, &timers[i]);
    CHECK_INT(loop->timer_count, 0);
    memset(watchers, 0, sizeof watchers);
    for (int i = 0; i < 40; i++) {
        rvd_loop_io *io = &watchers[i].io;
        int r, fds[2];
        new_pair(fds);
        close(fds[1]);
        io->fd = fds[0];
        io->run = watcher_run;
        heap.fail_at = heap.calls + 1;
        r = rvd_loop_add(loop, io);
        CHECK(r == 0 || (r == -ENOMEM && !io->slot));
        heap.fail_at = 0;
        if (r < 0) CHECK_INT(rvd_loop_add(loop, io), 0);
    }
    one_pass(loop);
    for (int i = 0; i < 40; i++) {
        CHECK_INT(watchers[i].runs, 1);
        rvd_loop_remove(loop, &watchers[i].io);
        close(watchers[i].io.fd);
    }
    rvd_loop_free(loop);
    CHECK_INT(heap.live_bytes, 0);
}

// ------------------------------------------------------------------------------------------------
// Timers, with a clock that stands still.

typedef struct alarm_clock {
    rvd_loop_timer timer;
    rvd_loop *loop;
    int *log, *count, id;
    struct alarm_clock *victim;  // stopped by this one
    int64_t rearm_us;
} alarm_clock;

static void alarm_run(rvd_loop_timer *t)
{
    alarm_clock *a = (alarm_clock *)t;
    CHECK_INT(t->slot, 0);
    a->log[(*a->count)++] = a->id;
    if (a->victim) rvd_loop_timer_stop(a->loop, &a->victim->timer);
    if (a->rearm_us) CHECK_INT(rvd_loop_timer_set(a->loop, t, a->rearm_us), 0);
}

TEST(timers_run_in_the_order_of_their_times_and_can_be_moved_and_stopped)
{
    rvd_loop *loop;
    alarm_clock a[6];
    int log[32], count = 0;
    atomic_store(&fault_now_us, 1000000);
    loop = new_loop();
    for (int i = 0; i < 6; i++) {
        a[i] = (alarm_clock){{0, alarm_run, 0}, loop, log, &count, i, NULL, 0};
        CHECK_INT(rvd_loop_timer_set(loop, &a[i].timer, 1001000 + i * 10), 0);
    }
    rvd_loop_timer_set(loop, &a[0].timer, 1001100);  // first to last
    rvd_loop_timer_set(loop, &a[5].timer, 1000999);  // last to first
    rvd_loop_timer_stop(loop, &a[3].timer);
    rvd_loop_timer_stop(loop, &a[3].timer);
    a[1].victim = &a[2];  // due in the same pass
    one_pass(loop);
    CHECK_INT(count, 0);
    atomic_store(&fault_now_us, 1001040);
    one_pass(loop);
    CHECK(count == 3 && log[0] == 5 && log[1] == 1 && log[2] == 4);
    CHECK_INT(rvd_loop_now(loop), 1001040);
    atomic_store(&fault_now_us, 1001100);
    one_pass(loop);
    CHECK(count == 4 && log[3] == 0);
    CHECK_INT(loop->timer_count, 0);
    rvd_loop_free(loop);
    fault_clear();
}

static void slow_run(rvd_loop_timer *t)
{
    alarm_clock *a = (alarm_clock *)t;
    ++*a->count;
    atomic_fetch_add(&fault_now_us, 50);
    if (a->id == 0) put_bytes(*a->log, 1);
}

TEST(a_thousand_timers_that_are_due_let_descriptors_have_their_turn_meanwhile)
{
    enum { MANY = 1000 };
    static alarm_clock a[MANY];
    watcher w;
    int fds[2], count = 0, passes = 0;
    atomic_store(&fault_now_us, 1000000);
    rvd_loop *loop = new_loop();
    new_pair(fds);
    watcher_open(&w, loop, fds[0]);
    one_pass(loop);
    int runs = w.runs;
    for (int i = 0; i < MANY; i++) {
        a[i] = (alarm_clock){{0, slow_run, 0}, loop, &fds[1], &count, i, NULL, 0};
        CHECK_INT(rvd_loop_timer_set(loop, &a[i].timer, 1000500 + i / 100), 0);
    }
    atomic_store(&fault_now_us, 1001000);
    CHECK_INT(rvd_loop_pass(loop), 0);  // the first timer makes the descriptor ready
    CHECK_INT(rvd_loop_pass(loop), 0);
    CHECK_INT(w.runs, runs + 1);
    CHECK(count < 50);
    while (count < MANY && passes++ < MANY) CHECK_INT(rvd_loop_pass(loop), 0);
    CHECK_INT(count, MANY);
    CHECK_INT(loop->timer_count, 0);
    rvd_loop_remove(loop, &w.io);
    rvd_loop_free(loop);
    close(fds[0]);
    close(fds[1]);
    fault_clear();
}

TEST(U36_after_a_jump_of_the_clock_a_periodic_timer_runs_once_a_pass)
{
    rvd_loop *loop;
    alarm_clock a;
    int log[32], count = 0;
    atomic_store(&fault_now_us, 1000000);
    loop = new_loop();
    a = (alarm_clock){{0, alarm_run, 0}, loop, log, &count, 7, NULL, 1};  // for ever in the past
    CHECK_INT(rvd_loop_timer_set(loop, &a.timer, 1000500), 0);
    atomic_store(&fault_now_us, 1000000 + 3600000000LL);
    for (int pass = 1; pass <= 3; pass++) {
        atomic_fetch_add(&fault_now_us, 1);
        CHECK_INT(rvd_loop_pass(loop), 0);
        CHECK_INT(count, pass);
    }
    rvd_loop_timer_stop(loop, &a.timer);
    rvd_loop_free(loop);
    fault_clear();
}

TEST(polling_stops_when_it_does_not_pay_and_comes_back_when_waits_are_short)
{
    rvd_loop_spin p = {.limit_us = 50};
    int waits = 0;
    CHECK(rvd_loop_spin_pays(&p));
    for (int i = 0; i < 1000; i++) rvd_loop_spin_learn(&p, 50);
    CHECK_INT(p.score, RVD_LOOP_SPIN_MOST);  // a good past is soon outweighed
    for (; rvd_loop_spin_pays(&p); waits++) rvd_loop_spin_learn(&p, 51);
    CHECK_INT(waits, RVD_LOOP_SPIN_MOST / 2 + 1);
    for (int i = 0; i < 1000; i++) rvd_loop_spin_learn(&p, 3600000000LL);
    CHECK_INT(p.score, RVD_LOOP_SPIN_LEAST);  // and so is a bad one
    for (waits = 0; !rvd_loop_spin_pays(&p); waits++) rvd_loop_spin_learn(&p, 0);
    CHECK_INT(waits, -RVD_LOOP_SPIN_LEAST);
    p.limit_us = 0;
    CHECK(!rvd_loop_spin_pays(&p));
}

static void spin_pause(int us)
{
    atomic_fetch_add(&fault_now_us, us);
}

TEST(polling_ends_with_its_time_and_gives_way_to_whoever_wants_the_core)
{
    rvd_loop_spin p = {.limit_us = 50};
    rvd_loop_look look = {999999, 999999, 0};
    for (int us = 10; us < 50; us += 10) {
        atomic_store(&fault_now_us, 1000000 + us);
        CHECK(rvd_loop_spin_on(&p, &look));
    }
    atomic_store(&fault_now_us, 1000050);
    CHECK(!rvd_loop_spin_on(&p, &look));
    CHECK_INT(p.score, 0);  // the time is up; that is no sign of a crowd
    look = rvd_loop_look_begin();
    spin_pause(RVD_LOOP_SPIN_PAUSE_US + 1);
    CHECK(rvd_loop_spin_on(&p, &look));  // it may have been who answers
    CHECK(!rvd_loop_spin_on(&p, &look));
    CHECK_INT(p.score, -RVD_LOOP_SPIN_REST_MIN);
    p.score = 0;
    look = rvd_loop_look_begin();
    spin_pause(p.limit_us + 1);
    CHECK(!rvd_loop_spin_on(&p, &look));
    CHECK_INT(p.score, -2 * RVD_LOOP_SPIN_REST_MIN);
    rvd_loop_spin_learn(&p, 1000);
    CHECK_INT(p.score, -2 * RVD_LOOP_SPIN_REST_MIN);  // long waits make it no worse
    for (int i = 0; i < 2 * RVD_LOOP_SPIN_REST_MIN; i++) {
        CHECK(!rvd_loop_spin_pays(&p));
        rvd_loop_spin_learn(&p, 0);
    }
    CHECK(rvd_loop_spin_pays(&p));
    fault_clear();
}

TEST(polling_is_tried_less_and_less_often_where_cores_are_scarce)
{
    rvd_loop_spin p = {.limit_us = 50};
    int waits = 0, tries = 0;
    while (waits < 100000) {
        for (; !rvd_loop_spin_pays(&p); waits++) rvd_loop_spin_learn(&p, 0);
        tries++;
        rvd_loop_spin_rest(&p);
    }
    CHECK(tries < 100000 / RVD_LOOP_SPIN_REST_MAX + 10);
    rvd_loop_look at_once = {1000, 1000, 0}, late = {1000, 1030, 1}, soon = {1000, 1002, 0};
    for (int i = 0; i < 1000; i++) {
        rvd_loop_spin_hit(&p, &at_once);  // it had come already
        rvd_loop_spin_hit(&p, &late);     // it came while somebody else had this core
    }
    for (int i = 1; i < RVD_LOOP_SPIN_HITS; i++) rvd_loop_spin_hit(&p, &soon);
    rvd_loop_spin_rest(&p);
    CHECK_INT(-p.score, RVD_LOOP_SPIN_REST_MAX);
    for (int i = 0; i < RVD_LOOP_SPIN_HITS; i++) rvd_loop_spin_hit(&p, &soon);
    rvd_loop_spin_rest(&p);
    CHECK_INT(-p.score, RVD_LOOP_SPIN_REST_MIN);
}

TEST(the_wait_is_rounded_up_and_bounded)
{
    static const struct {
        int64_t in_us;
        int want_ms;
    } rows[] = {{-5, 0},
                {0, 0},
                {1, 1},
                {999, 1},
                {1000, 1},
                {1001, 2},
                {3600000001LL, 3600000},
                {INT64_MAX - 1000000, 3600000}};
    rvd_loop *loop;
    rvd_loop_timer t = {0, timer_ignore, 0};
    atomic_store(&fault_now_us, 1000000);
    loop = new_loop();
    CHECK_INT(rvd_loop_timeout_ms(loop), RVD_LOOP_WAIT_MS);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        rvd_loop_timer_set(loop, &t, 1000000 + rows[i].in_us);
        CHECK_INT(rvd_loop_timeout_ms(loop), rows[i].want_ms);
    }
    rvd_loop_timer_stop(loop, &t);
    rvd_loop_free(loop);
    fault_clear();
}

enum { MANY = 10000 };

typedef struct counted_timer {
    rvd_loop_timer timer;
    int64_t model_us;  // 0 = not set
    int runs;
} counted_timer;

static int64_t counted_last_us;

static void counted_run(rvd_loop_timer *t)
{
    counted_timer *c = (counted_timer *)t;
    if (t->at_us < counted_last_us || c->model_us != t->at_us)
        test_fail(__FILE__, __LINE__, "timer of %lld ran wrongly", (long long)t->at_us);
    counted_last_us = t->at_us;
    c->model_us = 0;
    c->runs++;
}

TEST(ten_thousand_random_timers_agree_with_a_model)
{
    static counted_timer all[MANY];
    test_rng rng = test_rng_seeded(42);
    rvd_loop *loop;
    int64_t now_us = 1000000;
    size_t set = 0;
    atomic_store(&fault_now_us, now_us);
    loop = new_loop();
    memset(all, 0, sizeof all);
    for (int step = 0; step < 20 * MANY; step++) {
        counted_timer *c = &all[test_below(&rng, MANY)];
        c->timer.run = counted_run;
        if (test_below(&rng, 4) == 0) {
            rvd_loop_timer_stop(loop, &c->timer);
            c->model_us = 0;
        } else {
            c->model_us = now_us + (int64_t)test_below(&rng, 100000);
            if (rvd_loop_timer_set(loop, &c->timer, c->model_us) < 0) abort();
        }
        if (step % MANY != MANY - 1) continue;
        now_us += 20000;
        atomic_store(&fault_now_us, now_us);
        counted_last_us = 0;
        one_pass(loop);
        set = 0;
        for (int i = 0; i < MANY; i++) {
            set += all[i].model_us != 0;
            if (all[i].model_us && all[i].model_us <= now_us)
                test_fail(__FILE__, __LINE__, "timer %d did not run", i);
        }
        CHECK_INT(loop->timer_count, set);
    }
    rvd_loop_free(loop);
    fault_clear();
}

// ------------------------------------------------------------------------------------------------
// Flushes.

typedef struct flusher {
    rvd_loop_flush flush;
    rvd_loop *loop;
    struct flusher *more;
    int runs, io_runs;
    watcher *w;
} flusher;

static void flusher_run(rvd_loop_flush *f)
{
    flusher *me = (flusher *)f;
    me->runs++;
    if (me->w) me->io_runs = me->w[0].runs + me->w[1].runs;
    if (me->more) rvd_loop_flush_later(me->loop, &me->more->flush);
}

typedef struct flush_poster {
    rvd_loop_task task;
    flusher *f;
} flush_poster;

static void flush_poster_run(rvd_loop_task *t)
{
    flusher *f = ((flush_poster *)t)->f;
    rvd_loop_flush_later(f->loop, &f->flush);
    rvd_loop_flush_later(f->loop, &f->flush);
}

TEST(a_flush_runs_once_after_all_events_of_the_pass)
{
    rvd_loop *loop = new_loop();
    watcher w[2];
    flusher f = {{NULL, flusher_run, 0}, loop, NULL, 0, 0, w};
    flush_poster p[2] = {{{NULL, flush_poster_run, 0}, &f}, {{NULL, flush_poster_run, 0}, &f}};
    int fds[2];
    new_pair(fds);
    watcher_open(&w[0], loop, fds[0]);
    watcher_open(&w[1], loop, fds[1]);
    rvd_loop_post(loop, &p[0].task);
    rvd_loop_post(loop, &p[1].task);
    rvd_loop_flush_later(loop, &f.flush);
    one_pass(loop);
    CHECK(f.runs == 1 && f.io_runs == 2);
    one_pass(loop);
    CHECK_INT(f.runs, 1);
    for (int i = 0; i < 2; i++) {
        rvd_loop_remove(loop, &w[i].io);
        close(fds[i]);
    }
    rvd_loop_free(loop);
}

TEST(what_a_flush_queues_runs_in_the_next_pass_which_does_not_wait)
{
    rvd_loop *loop = new_loop();
    flusher f = {{NULL, flusher_run, 0}, loop, &f, 0, 0, NULL};
    rvd_loop_flush_later(loop, &f.flush);
    for (int pass = 1; pass <= 3; pass++) {
        CHECK_INT(rvd_loop_pass(loop), 0);
        CHECK_INT(f.runs, pass);
    }
    rvd_loop_free(loop);
}

// ------------------------------------------------------------------------------------------------
// Tasks and threads.

enum { POSTERS = 8, POSTS = 2000 };

typedef struct poster {
    rvd_loop *loop;
    struct posted *tasks;
    int next;  // loop thread only: the task that must come next
    int wrong;
} poster;

typedef struct posted {
    rvd_loop_task task;
    poster *from;
    int index;
} posted;

static void posted_run(rvd_loop_task *t)
{
    posted *p = (posted *)t;
    p->from->wrong += p->from->next++ != p->index || !rvd_loop_is_owner(p->from->loop);
}

static void *poster_thread(void *arg)
{
    poster *p = arg;
    for (int i = 0; i < POSTS; i++) {
        rvd_loop_post(p->loop, &p->tasks[i].task);
        if (i % 64 == 0) sched_yield();
    }
    return NULL;
}

TEST(posts_of_eight_threads_all_run_once_in_the_order_of_each_thread)
{
    static posted tasks[POSTERS][POSTS];
    poster p[POSTERS];
    pthread_t threads[POSTERS];
    rvd_loop *loop = new_loop();
    fault_clear();
    memset(tasks, 0, sizeof tasks);
    CHECK_INT(rvd_loop_start(loop), 0);
    for (int i = 0; i < POSTERS; i++) {
        p[i] = (poster){loop, tasks[i], 0, 0};
        for (int j = 0; j < POSTS; j++) {
            tasks[i][j].task.run = posted_run;
            tasks[i][j].from = &p[i];
            tasks[i][j].index = j;
        }
    }
    for (int i = 0; i < POSTERS; i++)
        if (pthread_create(&threads[i], NULL, poster_thread, &p[i])) abort();
    for (int i = 0; i < POSTERS; i++) pthread_join(threads[i], NULL);
    rvd_loop_stop(loop);  // runs after all that was posted before
    CHECK_INT(rvd_loop_join(loop), 0);
    for (int i = 0; i < POSTERS; i++) {
        CHECK_INT(p[i].next, POSTS);
        CHECK_INT(p[i].wrong, 0);
    }
    rvd_loop_free(loop);
}

typedef struct signaller {
    rvd_loop_task task;
    rvd_loop *loop;
    sem_t done;
    int runs, repost;
} signaller;

static void signaller_run(rvd_loop_task *t)
{
    signaller *s = (signaller *)t;
    s->runs++;
    if (s->repost > 0) {
        s->repost--;
        rvd_loop_post(s->loop, t);
        return;
    }
    sem_post(&s->done);
}

static void wait_for(sem_t *sem)
{
    while (sem_wait(sem) < 0 && errno == EINTR) {
    }
}

TEST(a_post_wakes_a_loop_that_sleeps_every_time)
{
    rvd_loop *loop = new_loop();
    signaller s = {.task = {NULL, signaller_run, 0}, .loop = loop};
    fault_clear();
    sem_init(&s.done, 0, 0);
    CHECK_INT(rvd_loop_start(loop), 0);
    CHECK(!rvd_loop_is_owner(loop));
    for (int i = 0; i < 3000; i++) {
        // Every third waits for a loop that is about to sleep, the others catch it anywhere.
        while (i % 3 == 0 && !atomic_load(&loop->asleep)) sched_yield();
        rvd_loop_post(loop, &s.task);
        wait_for(&s.done);
    }
    atomic_store(&fault_eintr, 1);
    for (int i = 0; i < 300; i++) {
        rvd_loop_post(loop, &s.task);
        wait_for(&s.done);
    }
    rvd_loop_stop(loop);
    CHECK_INT(rvd_loop_join(loop), 0);
    CHECK_INT(s.runs, 3300);
    rvd_loop_free(loop);
    sem_destroy(&s.done);
    fault_clear();
}

TEST(many_posts_to_a_sleeping_loop_are_one_wake_and_to_a_busy_one_none)
{
    rvd_loop *loop = new_loop();
    static signaller s[100];
    memset(s, 0, sizeof s);
    fault_clear();
    for (int i = 0; i < 100; i++) {
        sem_init(&s[i].done, 0, 0);
        s[i].task.run = signaller_run;
        s[i].loop = loop;
        if (i == 50) atomic_store(&loop->asleep, 1);  // as in the wait
        rvd_loop_post(loop, &s[i].task);
        CHECK_INT(calls_of(WRITE), i >= 50);
    }
    one_pass(loop);
    for (int i = 0; i < 100; i++) {
        CHECK_INT(s[i].runs, 1);
        sem_destroy(&s[i].done);
    }
    rvd_loop_free(loop);
}

TEST(posting_a_queued_task_does_nothing_and_a_task_may_post_itself)
{
    rvd_loop *loop = new_loop();
    signaller s = {.task = {NULL, signaller_run, 0}, .loop = loop};
    sem_init(&s.done, 0, 0);
    rvd_loop_post(loop, &s.task);
    rvd_loop_post(loop, &s.task);
    one_pass(loop);
    CHECK_INT(s.runs, 1);
    s.repost = 2;
    rvd_loop_post(loop, &s.task);
    CHECK_INT(rvd_loop_pass(loop), 0);  // and what that posted; the last has to wait
    CHECK_INT(s.runs, 3);
    CHECK_INT(rvd_loop_pass(loop), 0);
    CHECK_INT(s.runs, 4);
    rvd_loop_free(loop);
    sem_destroy(&s.done);
}

// A task that takes a tenth of a millisecond.
typedef struct labour {
    rvd_loop_task task;
    int *order, *count, number;
} labour;

static void labour_run(rvd_loop_task *t)
{
    labour *l = (labour *)t;
    l->order[(*l->count)++] = l->number;
    atomic_fetch_add(&fault_now_us, 100);
}

TEST(a_thousand_tasks_run_in_their_order_and_let_descriptors_have_their_turn_meanwhile)
{
    enum { TASKS = 1000, MOST = RVD_LOOP_TASKS + RVD_LOOP_TASKS_US / 100 + RVD_LOOP_TASKS };
    static labour tasks[TASKS + 1];
    static int order[TASKS + 1];
    rvd_loop *loop = new_loop();
    watcher w;
    int fds[2], count = 0, passes = 0;
    new_pair(fds);
    watcher_open(&w, loop, fds[0]);
    fault_clear();
    atomic_store(&fault_now_us, 1000000);
    for (int i = 0; i <= TASKS; i++)
        tasks[i] = (labour){.task = {.run = labour_run}, order, &count, i};
    for (int i = 0; i < TASKS; i++) rvd_loop_post(loop, &tasks[i].task);
    CHECK_INT(rvd_loop_pass(loop), 0);
    CHECK(count > 0 && count <= MOST);
    put_bytes(fds[1], 1);
    rvd_loop_post(loop, &tasks[TASKS].task);  // behind those that wait
    CHECK_INT(rvd_loop_pass(loop), 0);
    CHECK(w.seen & RVD_LOOP_READ);
    for (; count <= TASKS && passes <= TASKS; passes++) {
        int before = count;
        CHECK_INT(rvd_loop_pass(loop), 0);
        CHECK(count > before && count - before <= MOST);
    }
    for (int i = 0; i <= TASKS; i++) CHECK_INT(order[i], i);
    atomic_store(&fault_now_us, 0);
    rvd_loop_remove(loop, &w.io);
    close(fds[0]);
    close(fds[1]);
    rvd_loop_free(loop);
}

TEST(the_poster_has_left_the_loop_when_the_task_runs)
{
    // The task ends the run and the loop is freed at once, while the poster may still be on its way
    // out of rvd_loop_post(): a tool that sees races would say so.
    for (int i = 0; i < 300; i++) {
        rvd_loop *loop = new_loop();
        CHECK_INT(rvd_loop_start(loop), 0);
        rvd_loop_stop(loop);
        CHECK_INT(rvd_loop_join(loop), 0);
        rvd_loop_free(loop);
    }
}

static void *stopper_thread(void *arg)
{
    rvd_loop_stop(arg);
    return NULL;
}

TEST(a_loop_may_be_freed_as_soon_as_its_run_has_ended)
{
    for (int i = 0; i < 300; i++) {
        rvd_loop *loop = new_loop();
        pthread_t t;
        if (pthread_create(&t, NULL, stopper_thread, loop)) abort();
        CHECK_INT(rvd_loop_run(loop), 0);
        rvd_loop_free(loop);  // the stopper is not joined yet
        pthread_join(t, NULL);
    }
}

typedef struct mask_probe {
    rvd_loop_task task;
    rvd_loop_job job;
    sem_t done;
    int blocked;
} mask_probe;

static int all_signals_are_blocked(void)
{
    sigset_t set;
    pthread_sigmask(SIG_BLOCK, NULL, &set);
    return sigismember(&set, SIGINT) == 1 && sigismember(&set, SIGTERM) == 1 &&
           sigismember(&set, SIGPIPE) == 1 && sigismember(&set, SIGALRM) == 1;
}

static void mask_probe_task(rvd_loop_task *t)
{
    ((mask_probe *)t)->blocked = all_signals_are_blocked();
}

TEST(U25_the_loops_thread_blocks_all_signals_and_the_caller_keeps_its_mask)
{
    rvd_loop *loop = new_loop();
    mask_probe m = {.task = {NULL, mask_probe_task, 0}};
    CHECK_INT(rvd_loop_start(loop), 0);
    rvd_loop_post(loop, &m.task);
    rvd_loop_stop(loop);
    CHECK_INT(rvd_loop_join(loop), 0);
    CHECK_INT(m.blocked, 1);
    CHECK(!all_signals_are_blocked());
    rvd_loop_free(loop);
}

TEST(U33_a_loop_whose_thread_cannot_start_says_so)
{
    rvd_loop *loop = new_loop();
    fault_clear();
    fault_set(THREAD_CREATE, EAGAIN, 1);
    CHECK_INT(rvd_loop_start(loop), -EAGAIN);
    CHECK_INT(rvd_loop_join(loop), 0);
    CHECK_INT(rvd_loop_start(loop), 0);
    rvd_loop_stop(loop);
    CHECK_INT(rvd_loop_join(loop), 0);
    rvd_loop_free(loop);
}

TEST(a_wait_that_fails_ends_the_run_with_its_error)
{
    rvd_loop *loop = new_loop();
    fault_clear();
    fault_set(RVD_SYS_EPOLL ? EPOLL_WAIT : POLL, RVD_SYS_EPOLL ? EBADF : ENOMEM, 1);
    CHECK_INT(rvd_loop_start(loop), 0);
    if (!RVD_SYS_EPOLL) rvd_loop_stop(loop);  // poll fails for want of something, and goes on
    CHECK_INT(rvd_loop_join(loop), RVD_SYS_EPOLL ? -EBADF : 0);
    CHECK(!rvd_loop_is_owner(loop));
    rvd_loop_free(loop);
    fault_clear();
}

// ------------------------------------------------------------------------------------------------
// The pool.

typedef struct pool_job {
    rvd_loop_job job;
    sem_t *started, *go, *done;
    atomic_int runs;
} pool_job;

static void pool_job_run(rvd_loop_job *j)
{
    pool_job *p = (pool_job *)j;
    sem_t *done = p->done;
    if (p->started) sem_post(p->started);
    if (p->go) wait_for(p->go);
    atomic_fetch_add(&p->runs, 1);
    if (done) sem_post(done);
}

// Waits until no job runs or waits; the threads are idle then.
static void pool_settle(rvd_loop_pool *pool)
{
    size_t jobs;
    do {
        sched_yield();
        pthread_mutex_lock(&pool->lock);
        jobs = pool->job_count;
        pthread_mutex_unlock(&pool->lock);
    } while (jobs > 0);
}

static unsigned pool_threads(rvd_loop_pool *pool)
{
    unsigned n;
    pthread_mutex_lock(&pool->lock);
    n = pool->thread_count;
    pthread_mutex_unlock(&pool->lock);
    return n;
}

TEST(a_pool_makes_threads_up_to_its_limit_then_queues_or_refuses)
{
    rvd_loop_pool pool;
    sem_t started, go;
    pool_job jobs[5];
    fault_clear();
    sem_init(&started, 0, 0);
    sem_init(&go, 0, 0);
    CHECK_INT(rvd_loop_pool_open(&pool, 2), 0);
    memset(jobs, 0, sizeof jobs);
    for (int i = 0; i < 5; i++) {
        jobs[i].job.run = pool_job_run;
        jobs[i].started = &started;
        jobs[i].go = &go;
    }
    CHECK_INT(rvd_loop_pool_submit(&pool, &jobs[0].job, RVD_LOOP_NO_QUEUE), 0);
    CHECK_INT(rvd_loop_pool_submit(&pool, &jobs[1].job, RVD_LOOP_NO_QUEUE), 0);
    CHECK_INT(rvd_loop_pool_submit(&pool, &jobs[4].job, RVD_LOOP_NO_QUEUE), -EAGAIN);
    wait_for(&started);
    wait_for(&started);
    CHECK_INT(rvd_loop_pool_submit(&pool, &jobs[4].job, RVD_LOOP_NO_QUEUE), -EAGAIN);
    CHECK_INT(rvd_loop_pool_submit(&pool, &jobs[2].job, 0), 0);
    CHECK_INT(rvd_loop_pool_submit(&pool, &jobs[3].job, 0), 0);
    CHECK_INT(calls_of(THREAD_CREATE), 2);
    for (int i = 0; i < 4; i++) sem_post(&go);
    rvd_loop_pool_close(&pool);  // runs what waits
    for (int i = 0; i < 5; i++) CHECK_INT(jobs[i].runs, i < 4);
    sem_destroy(&started);
    sem_destroy(&go);
}

TEST(idle_threads_are_used_again)
{
    rvd_loop_pool pool;
    sem_t done;
    pool_job j = {.job = {NULL, pool_job_run}, .done = &done};
    fault_clear();
    sem_init(&done, 0, 0);
    CHECK_INT(rvd_loop_pool_open(&pool, 8), 0);
    for (int i = 0; i < 200; i++) {
        CHECK_INT(rvd_loop_pool_submit(&pool, &j.job, 0), 0);
        wait_for(&done);
        pool_settle(&pool);
    }
    CHECK_INT(calls_of(THREAD_CREATE), 1);
    CHECK_INT(j.runs, 200);
    rvd_loop_pool_close(&pool);
    sem_destroy(&done);
}

TEST(threads_that_idled_long_enough_end_and_new_ones_come_when_needed)
{
    rvd_loop_pool pool;
    sem_t done;
    pool_job j = {.job = {NULL, pool_job_run}, .done = &done};
    fault_clear();
    sem_init(&done, 0, 0);
    CHECK_INT(rvd_loop_pool_open(&pool, 8), 0);
    fault_set(TIMEDWAIT, ETIMEDOUT, 1000000);
    for (int i = 0; i < 50; i++) {
        CHECK_INT(rvd_loop_pool_submit(&pool, &j.job, 0), 0);
        wait_for(&done);
        while (pool_threads(&pool) > 0) sched_yield();
    }
    CHECK_INT(calls_of(THREAD_CREATE), 50);
    rvd_loop_pool_close(&pool);
    sem_destroy(&done);
    fault_clear();
}

static rvd_loop_pool *given_late_pool;
static rvd_loop_job *given_late_job;

static void give_late(void)
{
    CHECK_INT(rvd_loop_pool_submit(given_late_pool, given_late_job, RVD_LOOP_NO_QUEUE), 0);
}

TEST(a_thread_that_is_given_a_job_as_its_time_to_idle_ends_runs_it)
{
    rvd_loop_pool pool;
    sem_t done;
    pool_job first = {.job = {NULL, pool_job_run}}, late = {.job = {NULL, pool_job_run}};
    fault_clear();
    sem_init(&done, 0, 0);
    late.done = &done;
    CHECK_INT(rvd_loop_pool_open(&pool, 8), 0);
    given_late_pool = &pool;
    given_late_job = &late.job;
    atomic_store(&fault_meanwhile, give_late);
    fault_set(TIMEDWAIT, ETIMEDOUT, 1);
    CHECK_INT(rvd_loop_pool_submit(&pool, &first.job, 0), 0);
    wait_for(&done);
    CHECK_INT(calls_of(THREAD_CREATE), 1);
    rvd_loop_pool_close(&pool);
    CHECK(first.runs == 1 && late.runs == 1);
    sem_destroy(&done);
    fault_clear();
}

TEST(U33_a_job_is_refused_without_any_thread_and_waits_for_one_that_exists)
{
    rvd_loop_pool pool;
    sem_t started, go;
    pool_job a = {.job = {NULL, pool_job_run}, .started = &started, .go = &go};
    pool_job b = {.job = {NULL, pool_job_run}};
    fault_clear();
    sem_init(&started, 0, 0);
    sem_init(&go, 0, 0);
    CHECK_INT(rvd_loop_pool_open(&pool, 4), 0);
    fault_set(THREAD_CREATE, EAGAIN, 1);
    CHECK_INT(rvd_loop_pool_submit(&pool, &a.job, 0), -EAGAIN);
    CHECK_INT(rvd_loop_pool_submit(&pool, &a.job, 0), 0);
    wait_for(&started);
    fault_set(THREAD_CREATE, ENOMEM, 2);
    CHECK_INT(rvd_loop_pool_submit(&pool, &b.job, RVD_LOOP_NO_QUEUE), -ENOMEM);
    CHECK_INT(rvd_loop_pool_submit(&pool, &b.job, 0), 0);
    CHECK_INT(b.runs, 0);
    sem_post(&go);
    rvd_loop_pool_close(&pool);
    CHECK(a.runs == 1 && b.runs == 1);
    sem_destroy(&started);
    sem_destroy(&go);
}

static void mask_probe_job(rvd_loop_job *j)
{
    mask_probe *m = (mask_probe *)((char *)j - offsetof(mask_probe, job));
    m->blocked = all_signals_are_blocked();
}

TEST(U25_the_pools_threads_block_all_signals)
{
    rvd_loop_pool pool;
    mask_probe m = {.job = {NULL, mask_probe_job}};
    CHECK_INT(rvd_loop_pool_open(&pool, 1), 0);
    CHECK_INT(rvd_loop_pool_submit(&pool, &m.job, 0), 0);
    rvd_loop_pool_close(&pool);
    CHECK_INT(m.blocked, 1);
}

typedef struct late_job {
    rvd_loop_job job;
    rvd_loop_pool *pool;
    pool_job *late;
    sem_t *started, *go;
    int result;
} late_job;

static void late_job_run(rvd_loop_job *j)
{
    late_job *l = (late_job *)j;
    sem_post(l->started);
    wait_for(l->go);
    for (;;) {  // until close has begun
        int closed;
        pthread_mutex_lock(&l->pool->lock);
        closed = l->pool->closed;
        pthread_mutex_unlock(&l->pool->lock);
        if (closed) break;
        sched_yield();
    }
    l->result = rvd_loop_pool_submit(l->pool, &l->late->job, 0);
}

TEST(a_pool_that_closes_takes_no_more_jobs)
{
    rvd_loop_pool pool;
    sem_t started, go;
    pool_job late = {.job = {NULL, pool_job_run}};
    late_job l = {{NULL, late_job_run}, &pool, &late, &started, &go, 0};
    sem_init(&started, 0, 0);
    sem_init(&go, 0, 0);
    CHECK_INT(rvd_loop_pool_open(&pool, 2), 0);
    CHECK_INT(rvd_loop_pool_submit(&pool, &l.job, 0), 0);
    wait_for(&started);
    sem_post(&go);
    rvd_loop_pool_close(&pool);
    CHECK_INT(l.result, -ESHUTDOWN);
    CHECK_INT(late.runs, 0);
    sem_destroy(&started);
    sem_destroy(&go);
}

// A job that comes home to its loop, as the resolver's do.
typedef struct round_trip {
    rvd_loop_job job;
    rvd_loop_task task;
    rvd_loop *loop;
    int *left;
} round_trip;

static void round_trip_job(rvd_loop_job *j)
{
    round_trip *r = (round_trip *)j;
    rvd_loop_post(r->loop, &r->task);
}

static void round_trip_task(rvd_loop_task *t)
{
    round_trip *r = (round_trip *)((char *)t - offsetof(round_trip, task));
    if (--*r->left == 0) rvd_loop_stop(r->loop);
    free(r);
}

TEST(a_thousand_jobs_post_back_to_their_loop)
{
    rvd_loop_pool pool;
    rvd_loop *loop = new_loop();
    int left = 1000;
    CHECK_INT(rvd_loop_pool_open(&pool, 4), 0);
    for (int i = 0; i < 1000; i++) {
        round_trip *r = calloc(1, sizeof *r);
        if (!r) abort();
        r->job.run = round_trip_job;
        r->task.run = round_trip_task;
        r->loop = loop;
        r->left = &left;
        CHECK_INT(rvd_loop_pool_submit(&pool, &r->job, 0), 0);
    }
    CHECK_INT(rvd_loop_run(loop), 0);
    CHECK_INT(left, 0);
    rvd_loop_pool_close(&pool);
    rvd_loop_free(loop);
}

int main(int argc, char **argv)
{
    alarm(120);  // a test that hangs is a test that fails
    return test_main(argc, argv);
}
