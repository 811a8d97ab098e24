// What the tests of the runtime share: gates to wait at, a resolver without a network, a world (a
// proxy and agents on loopback), a backend's handler that does what the dialler asks for, and raw
// TCP ends that speak the wire by hand. Nothing here sleeps to let something happen: what is
// awaited opens a gate, and a wait that lasts twenty seconds is a failure.
//
//    wait       util_gate_add, util_gate_wait; util_log_wait for a state of on_session or on_state;
//               UTIL_EVENTUALLY(condition) for what tells nobody
//    time       util_clock_stop, util_clock_advance_ms: the clock of the library, not of the system
//    a world    WORLD_TEST(name) has w, open; NEW_WORLD_TEST changes w->pcfg and w->acfg first, and
//               then calls world_open, or world_open_proxy and world_open_agent
//    streams    world_dial(w, "echo", n, &err): util_handler says what it can be asked for;
//               dialling_start dials in a thread; util_read_payload and util_read_bulk check bytes
//    threads    util_thread; util_loop_hold stops an I/O thread; util_settle waits until it is idle
//    by hand    raw_listen, raw_connect, raw_backend, raw_frame_send, raw_frame_await: the other
//               end as bytes; raw_close_reset ends it with RST
//    leaks      util_fds, util_threads: before and after
#ifndef REVDIAL_TEST_RUNTIME_UTIL_H
#define REVDIAL_TEST_RUNTIME_UTIL_H

#include "hooks.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/epoll.h>
#endif

#include "test.h"

#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

enum { UTIL_WAIT_MS = 60000 };

// ------------------------------------------------------------------------------------------------
// Gates: a count that threads raise and others wait for.

typedef struct util_gate {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int count;
} util_gate;

#define UTIL_GATE \
    { \
        PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0 \
    }

static inline void util_gate_init(util_gate *g)
{
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->changed, NULL);
    g->count = 0;
}

static inline void util_gate_add(util_gate *g, int n)
{
    pthread_mutex_lock(&g->lock);
    g->count += n;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

static inline int util_gate_count(util_gate *g)
{
    pthread_mutex_lock(&g->lock);
    int n = g->count;
    pthread_mutex_unlock(&g->lock);
    return n;
}

static inline struct timespec util_until(int ms)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += ms / 1000;
    t.tv_nsec += ms % 1000 * 1000000L;
    if (t.tv_nsec >= 1000000000L) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000L;
    }
    return t;
}

static inline int util_gate_wait_ms(util_gate *g, int at_least, int ms)
{
    struct timespec until = util_until(ms);
    int r = 0;
    pthread_mutex_lock(&g->lock);
    while (g->count < at_least && r == 0) r = pthread_cond_timedwait(&g->changed, &g->lock, &until);
    r = g->count >= at_least;
    pthread_mutex_unlock(&g->lock);
    return r;
}

static inline int util_gate_wait(util_gate *g, int at_least)
{
    return util_gate_wait_ms(g, at_least, UTIL_WAIT_MS);
}

static inline int64_t util_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static inline void util_nap_ms(int ms)
{
    poll(NULL, 0, ms);
}

// What the library offers no event for is asked again and again.
#define UTIL_EVENTUALLY(cond) \
    do { \
        int64_t until_ = util_now_ms() + UTIL_WAIT_MS; \
        int is_true_; \
        while (!(is_true_ = (cond)) && util_now_ms() < until_) util_nap_ms(1); \
        if (!is_true_) test_fail(__FILE__, __LINE__, "never: %s", #cond); \
    } while (0)

static inline pthread_t util_thread(void *(*run)(void *), void *arg)
{
    pthread_t t;
    if (pthread_create(&t, NULL, run, arg) != 0) abort();
    return t;
}

// ------------------------------------------------------------------------------------------------
// Names resolve here:
//   *.invalid     no such host             *slow.test   no such host, once the gate is open
//   loop.test     127.0.0.1                many.test    127.0.0.2 ... 127.0.0.15, then 127.0.0.1
//   two.test      127.0.0.1, 127.0.0.2     rebind.test  127.0.0.2 when first asked, then 127.0.0.1
//   moving.test   127.0.0.N for each bit N of util_moving, no such host if it is 0. With bit 0 it
//                 is a slow.test. One answer is util_moving_once, if that is not 0
//   else          as the system says

static atomic_int util_rebind_asked;
static atomic_uint util_moving, util_moving_once, util_moving_asked;
static util_gate util_resolver_entered = UTIL_GATE, util_resolver_open = UTIL_GATE;

static inline struct addrinfo *util_numeric(const char *host, const char *port,
                                            const struct addrinfo *hints)
{
    struct addrinfo *list = NULL, h = *hints;
    h.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
    if (getaddrinfo(host, port, &h, &list) != 0) abort();
    return list;
}

int util_getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
                     struct addrinfo **out)
{
    const char *dot = strrchr(host, '.');
    int first = 1, last = 1;
    unsigned moving = 0;
    const char *slow = strstr(host, "slow.test");
    if (strcmp(host, "moving.test") == 0) {
        moving = atomic_exchange(&util_moving_once, 0);
        if (!moving) moving = atomic_load(&util_moving);
        atomic_fetch_add(&util_moving_asked, 1);
        last = 31;
    }
    if ((slow && !slow[9]) || moving & 1) {
        util_gate_add(&util_resolver_entered, 1);
        util_gate_wait(&util_resolver_open, 1);
        return EAI_NONAME;
    }
    if (dot && strcmp(dot, ".invalid") == 0) return EAI_NONAME;
    if (!dot || strcmp(dot, ".test") != 0) return getaddrinfo(host, port, hints, out);
    if (strcmp(host, "two.test") == 0) last = 2;
    if (strcmp(host, "rebind.test") == 0 && atomic_fetch_add(&util_rebind_asked, 1) == 0)
        first = last = 2;
    if (strcmp(host, "many.test") == 0) first = 2, last = 16;
    if (last == 31 && !moving) return EAI_NONAME;
    *out = NULL;
    for (int i = last; i >= first; i--) {
        char text[32];
        if (moving && !(moving >> i & 1)) continue;
        snprintf(text, sizeof text, "127.0.0.%d", i == 16 && !moving ? 1 : i);
        struct addrinfo *one = util_numeric(text, port, hints);
        one->ai_next = *out;
        *out = one;
    }
    return 0;
}

// The library's next threads that cannot be had: so many are spared, so many fail.
static atomic_int util_thread_spare, util_thread_fail;

int util_thread_create(pthread_t *t, const pthread_attr_t *attr, void *(*run)(void *), void *arg)
{
    if (atomic_load(&util_thread_fail) > 0 && atomic_fetch_sub(&util_thread_spare, 1) <= 0 &&
        atomic_fetch_sub(&util_thread_fail, 1) > 0)
        return EAGAIN;
    return pthread_create(t, attr, run, arg);
}

// The library's accepts that failed for want of descriptors.
static atomic_int util_accepts, util_accepts_without_fd;

int util_accept4(int fd, struct sockaddr *from, socklen_t *len, int flags)
{
    int r = accept4(fd, from, len, flags);
    if (r >= 0) atomic_fetch_add(&util_accepts, 1);
    if (r < 0 && errno == EMFILE) atomic_fetch_add(&util_accepts_without_fd, 1);
    return r;
}

// How many descriptors the library believes that it may have; 0: what the system says.
static atomic_int util_fd_limit;

int util_getrlimit(int what, struct rlimit *out)
{
    int r = what == RLIMIT_NOFILE ? getrlimit(RLIMIT_NOFILE, out) : -1;  // its type is the system's
    if (atomic_load(&util_fd_limit)) out->rlim_cur = (rlim_t)atomic_load(&util_fd_limit);
    return r;
}

// So many of the library's next sockets get the very port as their own that they connect to; -1
// when somebody else has it.
static atomic_int util_connects_to_itself;

int util_connect(int fd, const struct sockaddr *to, socklen_t len)
{
    if (atomic_load(&util_connects_to_itself) > 0 && to->sa_family == AF_INET) {
        if (bind(fd, to, len) == 0)
            atomic_fetch_sub(&util_connects_to_itself, 1);
        else
            atomic_store(&util_connects_to_itself, -1);
    }
    return connect(fd, to, len);
}

// How often the library has made calls that move no byte of a connection.
static atomic_int util_getpeernames, util_getsocknames, util_getsockopts, util_setsockopts;
static atomic_int util_epoll_ctls;

int util_getpeername(int fd, struct sockaddr *a, socklen_t *len)
{
    atomic_fetch_add(&util_getpeernames, 1);
    return getpeername(fd, a, len);
}

int util_getsockname(int fd, struct sockaddr *a, socklen_t *len)
{
    atomic_fetch_add(&util_getsocknames, 1);
    return getsockname(fd, a, len);
}

// What TCP says of itself, if a name is set: its congestion control, how many packets it has sent
// again, and its round trip.
static _Atomic(const char *) util_tcp_name;
static atomic_uint util_tcp_resent, util_tcp_rtt_us;

int util_getsockopt(int fd, int level, int option, void *value, socklen_t *len)
{
    const char *name = atomic_load(&util_tcp_name);
    int r = getsockopt(fd, level, option, value, len);
    atomic_fetch_add(&util_getsockopts, 1);
#ifdef TCP_CONGESTION
    if (name && level == IPPROTO_TCP && option == TCP_CONGESTION) {
        memset(value, 0, *len);
        memcpy(value, name, strlen(name));
    }
#endif
#ifdef TCP_INFO
    if (name && level == IPPROTO_TCP && option == TCP_INFO) {
        ((uint32_t *)value)[RVD_SYS_TCP_RESENT] = atomic_load(&util_tcp_resent);
        ((uint32_t *)value)[RVD_SYS_TCP_RTT] = atomic_load(&util_tcp_rtt_us);
    }
#endif
    return r;
}

int util_setsockopt(int fd, int level, int option, const void *value, socklen_t len)
{
    atomic_fetch_add(&util_setsockopts, 1);
    return setsockopt(fd, level, option, value, len);
}

// How often the library has closed the descriptor that it is watched for, or removed it from epoll.
static atomic_int util_close_watched = -1, util_closes;

// So many of the next descriptors find no room in epoll.
static atomic_int util_epoll_refuses;

#ifdef __linux__
int util_epoll_ctl(int epoll, int op, int fd, struct epoll_event *e)
{
    atomic_fetch_add(&util_epoll_ctls, 1);
    if (op == EPOLL_CTL_ADD && atomic_load(&util_epoll_refuses) > 0) {
        atomic_fetch_sub(&util_epoll_refuses, 1);
        errno = ENOSPC;
        return -1;
    }
    if (op == EPOLL_CTL_DEL && fd == atomic_load(&util_close_watched))
        atomic_fetch_add(&util_closes, 1);
    return epoll_ctl(epoll, op, fd, e);
}
#endif

int util_close(int fd)
{
    if (fd == atomic_load(&util_close_watched)) atomic_fetch_add(&util_closes, 1);
    return close(fd);
}

// The library's clock runs as the system's, or stands where a test puts it. It never goes back:
// from where it was put, it runs on, ahead of the system's.
static atomic_llong util_clock_stands_us;  // 0: it runs
static atomic_llong util_clock_ahead_us;
static atomic_int util_other_clocks;  // how often another clock was asked for

static inline struct timespec util_clock_at(long long us)
{
    return (struct timespec){(time_t)(us / 1000000), (long)(us % 1000000 * 1000)};
}
static inline long long util_clock_us(const struct timespec *t)
{
    return (long long)t->tv_sec * 1000000 + t->tv_nsec / 1000;
}

int util_clock_gettime(clockid_t id, struct timespec *t)
{
    long long us = atomic_load(&util_clock_stands_us);
    int r = clock_gettime(id, t);
    if (id != CLOCK_MONOTONIC) atomic_fetch_add(&util_other_clocks, 1);
    *t = util_clock_at(us ? us : util_clock_us(t) + atomic_load(&util_clock_ahead_us));
    return r;
}

// A deadline by the library's clock, on the system's. NULL = none.
const struct timespec *util_real(const struct timespec *until, struct timespec *room)
{
    if (!until) return NULL;
    *room = util_clock_at(util_clock_us(until) - atomic_load(&util_clock_ahead_us));
    return room;
}

static _Thread_local int util_poll_fails;  // the next of this thread's

// As on a system that wipes no page in a child.
static int util_madvise_fails;

int util_madvise(void *at, size_t len, int advice)
{
    if (!util_madvise_fails) return madvise(at, len, advice);
    errno = EINVAL;
    return -1;
}

// What moves bytes, if a suite sets these before it begins.
static ssize_t (*util_send_instead)(int fd, const void *buf, size_t len, int flags);
static ssize_t (*util_recv_instead)(int fd, void *buf, size_t len, int flags);

ssize_t util_send(int fd, const void *buf, size_t len, int flags)
{
    return util_send_instead ? util_send_instead(fd, buf, len, flags) : send(fd, buf, len, flags);
}

ssize_t util_recv(int fd, void *buf, size_t len, int flags)
{
    return util_recv_instead ? util_recv_instead(fd, buf, len, flags) : recv(fd, buf, len, flags);
}

int util_poll(struct pollfd *items, nfds_t count, int timeout_ms)
{
    if (!util_poll_fails) return poll(items, count, timeout_ms);
    util_poll_fails = 0;
    errno = ENOMEM;
    return -1;
}

// Where a thread says that it is about to wait; NULL: nowhere.
static _Thread_local util_gate *util_waits;

int util_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *until)
{
    struct timespec room;
    if (util_waits) util_gate_add(util_waits, 1);
    return pthread_cond_timedwait(c, m, util_real(until, &room));
}

static inline void util_clock_stop(void)
{
    struct timespec now;
    util_clock_gettime(CLOCK_MONOTONIC, &now);
    atomic_store(&util_clock_stands_us, util_clock_us(&now));
}
static inline void util_clock_advance_ms(int ms)
{
    atomic_fetch_add(&util_clock_stands_us, ms * 1000LL);
}
static inline void util_clock_run(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long long ahead = atomic_load(&util_clock_stands_us) - util_clock_us(&now);
    if (ahead > atomic_load(&util_clock_ahead_us)) atomic_store(&util_clock_ahead_us, ahead);
    atomic_store(&util_clock_stands_us, 0);
}

typedef struct util_settling {
    rvd_loop_task task;
    util_gate ran;
} util_settling;

static inline void util_settle_run(rvd_loop_task *task)
{
    util_gate_add(&RVD_BASE_OWNER(task, util_settling, task)->ran, 1);
}

// A loop that stands still until it is let go.
typedef struct util_held_loop {
    rvd_loop_task task;
    util_gate held, goes;
    atomic_int has_left;
} util_held_loop;

static inline void util_loop_hold_run(rvd_loop_task *task)
{
    util_held_loop *h = RVD_BASE_OWNER(task, util_held_loop, task);
    util_gate_add(&h->held, 1);
    util_gate_wait(&h->goes, 1);
    atomic_store(&h->has_left, 1);  // and may be gone
}

static inline void util_loop_hold(util_held_loop *h, rvd_loop *loop)
{
    memset(h, 0, sizeof *h);
    util_gate_init(&h->held);
    util_gate_init(&h->goes);
    h->task.run = util_loop_hold_run;
    rvd_loop_post(loop, &h->task);
    CHECK(util_gate_wait(&h->held, 1));
}

static inline void util_loop_let_go(util_held_loop *h)
{
    util_gate_add(&h->goes, 1);
    while (!atomic_load(&h->has_left)) sched_yield();
}

static inline uint64_t util_passes(rvd_loop *loop)
{
    util_held_loop held;
    util_loop_hold(&held, loop);
    uint64_t passes = rvd_loop_passes(loop);
    util_loop_let_go(&held);
    return passes;
}

static inline int util_is_blocked(revdial_session *s)
{
    rvd_stream_lock(s);
    int is = s->out.is_blocked;
    rvd_stream_unlock(s);
    return is;
}

// Returns when the loop has run the timers that are due by the clock as it stands: a whole pass
// lies behind the one that runs the first task, and at most two tasks are of the same pass.
static inline void util_settle(rvd_loop *loop)
{
    static util_settling s[5];
    for (int i = 0; i < 5; i++) {
        memset(&s[i], 0, sizeof s[i]);
        util_gate_init(&s[i].ran);
        s[i].task.run = util_settle_run;
        rvd_loop_post(loop, &s[i].task);
        util_gate_wait(&s[i].ran, 1);
    }
}

// ------------------------------------------------------------------------------------------------
// Logs of states, as on_session and on_state tell them.

typedef struct util_state {
    int state, code, retry_ms;
    uint64_t id;
    char msg[240];
} util_state;

typedef struct util_log {
    util_gate gate;  // its lock guards all, its count the items
    util_state items[512];
} util_log;

static inline void util_log_add(util_log *l, const util_state *s)
{
    pthread_mutex_lock(&l->gate.lock);
    if (l->gate.count < 512) l->items[l->gate.count++] = *s;
    pthread_cond_broadcast(&l->gate.changed);
    pthread_mutex_unlock(&l->gate.lock);
}

static inline int util_log_count_locked(const util_log *l, int state, util_state *last)
{
    int n = 0;
    for (int i = 0; i < l->gate.count; i++) {
        if (state && l->items[i].state != state) continue;
        n++;
        if (last) *last = l->items[i];
    }
    return n;
}

// How often a state (0: any) was told; *last is the latest of them.
static inline int util_log_count(util_log *l, int state, util_state *last)
{
    pthread_mutex_lock(&l->gate.lock);
    int n = util_log_count_locked(l, state, last);
    pthread_mutex_unlock(&l->gate.lock);
    return n;
}

// Waits until a state was told n times. Returns 1, or 0 if it was not.
static inline int util_log_wait(util_log *l, int state, int n, util_state *last)
{
    struct timespec until = util_until(UTIL_WAIT_MS);
    int r = 0, count;
    pthread_mutex_lock(&l->gate.lock);
    while ((count = util_log_count_locked(l, state, last)) < n && r == 0)
        r = pthread_cond_timedwait(&l->gate.changed, &l->gate.lock, &until);
    pthread_mutex_unlock(&l->gate.lock);
    return count >= n;
}

// ------------------------------------------------------------------------------------------------
// Payload: the byte at an offset of a stream.

static inline uint8_t util_byte(uint64_t offset, unsigned seed)
{
    uint64_t x = (offset / 8 + seed) * 0x9E3779B97F4A7C15u;
    return (uint8_t)(x >> (8 * (offset % 8)));
}

static inline void util_fill(uint8_t *p, size_t len, uint64_t offset, unsigned seed)
{
    for (size_t i = 0; i < len; i++) p[i] = util_byte(offset + i, seed);
}

static inline int util_matches(const uint8_t *p, size_t len, uint64_t offset, unsigned seed)
{
    for (size_t i = 0; i < len; i++)
        if (p[i] != util_byte(offset + i, seed)) return 0;
    return 1;
}

// Writes so many bytes of the payload. Returns how many were taken.
static inline uint64_t util_write_payload(revdial_stream *st, uint64_t len, unsigned seed)
{
    uint8_t buf[16384];
    uint64_t at = 0;
    while (at < len) {
        size_t n = len - at < sizeof buf ? (size_t)(len - at) : sizeof buf;
        util_fill(buf, n, at, seed);
        ptrdiff_t w = revdial_write(st, buf, n);
        if (w > 0) at += (uint64_t)w;
        if (w != (ptrdiff_t)n) break;
    }
    return at;
}

// Bulk is cheap to check: a pattern that repeats with a period no buffer has.
enum { UTIL_PERIOD = 65521, UTIL_BULK = 32768 };

static inline const uint8_t *util_pattern(uint64_t offset)
{
    static uint8_t pattern[UTIL_PERIOD + UTIL_BULK];
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static int is_filled;
    pthread_mutex_lock(&lock);
    if (!is_filled) util_fill(pattern, UTIL_PERIOD, 0, 3);
    if (!is_filled) memcpy(pattern + UTIL_PERIOD, pattern, UTIL_BULK);
    is_filled = 1;
    pthread_mutex_unlock(&lock);
    return pattern + offset % UTIL_PERIOD;
}

static inline uint64_t util_write_bulk(revdial_stream *st, uint64_t len)
{
    uint64_t at = 0;
    while (at < len) {
        size_t n = len - at < UTIL_BULK ? (size_t)(len - at) : UTIL_BULK;
        ptrdiff_t w = revdial_write(st, util_pattern(at), n);
        if (w > 0) at += (uint64_t)w;
        if (w != (ptrdiff_t)n) break;
    }
    return at;
}

typedef struct util_read {
    uint64_t bytes;
    int end;     // 0 EOF, or the error
    int reset;   // its code
    int is_bad;  // a byte was not the one sent
} util_read;

// Reads to the end, whatever that is.
static inline util_read util_read_payload(revdial_stream *st, unsigned seed)
{
    uint8_t buf[16384];
    util_read r = {0, 0, 0, 0};
    ptrdiff_t n;
    while ((n = revdial_read(st, buf, sizeof buf)) > 0) {
        if (!util_matches(buf, (size_t)n, r.bytes, seed)) r.is_bad = 1;
        r.bytes += (uint64_t)n;
    }
    r.end = (int)n;
    revdial_stream_error(st, &r.reset);
    return r;
}

static inline util_read util_read_bulk(revdial_stream *st)
{
    uint8_t buf[UTIL_BULK];
    util_read r = {0, 0, 0, 0};
    ptrdiff_t n;
    while ((n = revdial_read(st, buf, sizeof buf)) > 0) {
        if (memcmp(buf, util_pattern(r.bytes), (size_t)n) != 0) r.is_bad = 1;
        r.bytes += (uint64_t)n;
    }
    r.end = (int)n;
    revdial_stream_error(st, &r.reset);
    return r;
}

static inline ptrdiff_t util_read_all(revdial_stream *st, void *buf, size_t len)
{
    size_t got = 0;
    while (got < len) {
        ptrdiff_t n = revdial_read(st, (char *)buf + got, len - got);
        if (n <= 0) return got ? (ptrdiff_t)got : n;
        got += (size_t)n;
    }
    return (ptrdiff_t)got;
}

// ------------------------------------------------------------------------------------------------
// The world.

enum { WORLD_AGENTS = 4 };

#ifndef WORLD_SCHEME
#define WORLD_SCHEME "http"  // of the agents' URL; ws runs a suite over the WebSocket carrier
#endif

typedef struct world world;
struct world {
    revdial_proxy_config pcfg;
    revdial_agent_config acfg;
    revdial_proxy *proxy;
    revdial_agent *agents[WORLD_AGENTS];
    char address[80], url[100];
    util_log sessions;             // what on_session said
    util_log states;               // what on_state said, of all agents
    util_gate begun, held, ended;  // handlers
    util_gate go;                  // opened: handlers that wait go on
    pthread_mutex_t lock;
    util_read last;  // what the last handler that read to the end has seen
    atomic_int serving;
};

static inline void world_note(world *w, const util_read *r)
{
    pthread_mutex_lock(&w->lock);
    w->last = *r;
    pthread_mutex_unlock(&w->lock);
    util_gate_add(&w->ended, 1);
}

static inline util_read world_last(world *w)
{
    pthread_mutex_lock(&w->lock);
    util_read r = w->last;
    pthread_mutex_unlock(&w->lock);
    return r;
}

static inline void util_echo(revdial_stream *st)
{
    char buf[16384];
    ptrdiff_t n;
    while ((n = revdial_read(st, buf, sizeof buf)) > 0)
        if (revdial_write(st, buf, (size_t)n) != n) return;
    if (n == 0) revdial_shutdown(st, REVDIAL_WR);
}

// What a handler does is the dialler's metadata "do", with the number "n". What it read goes to *r.
typedef struct util_work {
    world *w;
    revdial_stream *st;
    unsigned long n;
    util_read r;
} util_work;

static inline void util_do_nothing(util_work *k)
{
    (void)k;
}
static inline void util_do_echo(util_work *k)
{
    util_echo(k->st);
}
static inline void util_do_refuse_code(util_work *k)
{
    revdial_reset(k->st, (int)k->n);
}
static inline void util_do_reset(util_work *k)
{
    char c;
    revdial_read(k->st, &c, 1);
    revdial_reset(k->st, (int)k->n);
}
static inline void util_do_source(util_work *k)
{
    util_write_payload(k->st, k->n, 1);
    revdial_shutdown(k->st, REVDIAL_WR);
    k->r = util_read_payload(k->st, 2);
}
static inline void util_do_bulk(util_work *k)
{
    util_write_bulk(k->st, k->n);
    revdial_shutdown(k->st, REVDIAL_WR);
    k->r = util_read_bulk(k->st);
}
static inline void util_do_bulk_sink(util_work *k)
{
    k->r = util_read_bulk(k->st);
    if (k->r.end == 0) revdial_write(k->st, k->r.is_bad ? "no" : "ok", 2);
}
static inline void util_do_flood(util_work *k)
{
    revdial_write(k->st, "", 0);  // accepts
    k->r.bytes = util_write_payload(k->st, UINT64_MAX, 1);
    k->r.end = revdial_stream_error(k->st, &k->r.reset);
}
static inline void util_do_sink(util_work *k)
{
    k->r = util_read_payload(k->st, 2);
    if (k->r.end == 0) revdial_write(k->st, "ok", 2);
}
static inline void util_do_hold(util_work *k)
{
    revdial_write(k->st, "", 0);
    util_gate_add(&k->w->held, 1);
    k->r = util_read_payload(k->st, 2);
}
static inline void util_do_silent(util_work *k)
{
    util_gate_add(&k->w->held, 1);
    util_gate_wait(&k->w->go, 1);
    k->r = util_read_payload(k->st, 2);
}
static inline void util_do_stop(util_work *k)
{
    revdial_write(k->st, "", 0);
    util_do_silent(k);
}

static inline void util_handler(void *ud, revdial_stream *st)
{
    static const struct {
        const char *name;
        void (*run)(util_work *k);
    } works[] = {
        {"echo", util_do_echo},                // sends back what comes, then EOF
        {"refuse", util_do_nothing},           // closes without a touch
        {"refuse-code", util_do_refuse_code},  // resets with n before a touch
        {"reset", util_do_reset},              // reads a byte, resets with n
        {"source", util_do_source},            // writes n bytes, EOF, reads to the end
        {"bulk", util_do_bulk},                // the same in bulk
        {"sink", util_do_sink},                // reads to the end, says "ok"
        {"bulk-sink", util_do_bulk_sink},      // the same in bulk
        {"flood", util_do_flood},              // writes until it fails
        {"hold", util_do_hold},                // accepts, reads to the end
        {"stop", util_do_stop},                // accepts, reads after `go`
        {"silent", util_do_silent},            // touches nothing until `go`
    };
    world *w = ud;
    const char *what = revdial_stream_meta(st, "do"), *n = revdial_stream_meta(st, "n");
    util_work k = {w, st, n ? strtoul(n, NULL, 10) : 0, {0, 0, 0, 0}};
    atomic_fetch_add(&w->serving, 1);
    util_gate_add(&w->begun, 1);
    for (size_t i = 0; i < sizeof works / sizeof works[0]; i++)
        if (strcmp(works[i].name, what ? what : "echo") == 0) works[i].run(&k);
    revdial_close(st);
    atomic_fetch_sub(&w->serving, 1);
    world_note(w, &k.r);
}

static inline void util_on_session(void *ud, revdial_session *s, int state, const revdial_err *why)
{
    world *w = ud;
    util_state e = {state, why ? why->code : 0, 0, 0, ""};
    revdial_session_info info;
    revdial_session_get_info(s, &info);
    e.id = info.id;
    if (why) snprintf(e.msg, sizeof e.msg, "%s", why->msg);
    util_log_add(&w->sessions, &e);
}

static inline void util_on_state(void *ud, int state, const revdial_err *why, int retry_in_ms)
{
    world *w = ud;
    util_state e = {state, why ? why->code : 0, retry_in_ms, 0, ""};
    if (why) snprintf(e.msg, sizeof e.msg, "%s", why->msg);
    util_log_add(&w->states, &e);
}

// Fills in what every test wants; a test changes w->pcfg and w->acfg before it opens things.
static inline void world_init(world *w)
{
    static const revdial_credential who = {"s3cret", "alice", "*", 0};
    memset(w, 0, sizeof *w);
    util_gate_init(&w->sessions.gate);
    util_gate_init(&w->states.gate);
    util_gate_init(&w->begun);
    util_gate_init(&w->held);
    util_gate_init(&w->ended);
    util_gate_init(&w->go);
    pthread_mutex_init(&w->lock, NULL);
    w->pcfg.listen = "127.0.0.1:0";
    w->pcfg.credentials = &who;
    w->pcfg.credential_count = 1;
    w->pcfg.on_session = util_on_session;
    w->pcfg.ud = w;
    w->acfg.name = "cam-1";
    w->acfg.secret = "s3cret";
    w->acfg.handler = util_handler;
    w->acfg.on_state = util_on_state;
    w->acfg.ud = w;
    w->acfg.backoff_min_ms = 1;
    w->acfg.backoff_max_ms = 20;
}

static inline int world_open_proxy(world *w)
{
    revdial_err err = {0};
    w->proxy = revdial_proxy_start(&w->pcfg, &err);
    if (!w->proxy) return test_fail(__FILE__, __LINE__, "no proxy: %s", err.msg);
    if (revdial_proxy_address(w->proxy, 0, w->address, sizeof w->address) > 0)
        snprintf(w->url, sizeof w->url, "%s://%s", WORLD_SCHEME, w->address);
    return 1;
}

// Starts agent i as w->acfg says, and waits until it is up.
static inline int world_open_agent(world *w, int i)
{
    revdial_err err = {0};
    if (!w->acfg.url) w->acfg.url = w->url;
    w->agents[i] = revdial_agent_start(&w->acfg, &err);
    if (!w->agents[i]) return test_fail(__FILE__, __LINE__, "no agent: %s", err.msg);
    revdial_session *s = revdial_agent_wait(w->agents[i], UTIL_WAIT_MS, NULL);
    if (!s) return test_fail(__FILE__, __LINE__, "the agent did not come up");
    revdial_session_unref(s);
    return 1;
}

// Both, and the proxy knows it.
static inline int world_open(world *w)
{
    return world_open_proxy(w) && world_open_agent(w, 0) &&
           revdial_proxy_wait(w->proxy, w->acfg.name, 1, UTIL_WAIT_MS) >= 1;
}

static inline void world_close(world *w)
{
    util_gate_add(&w->go, 1);
    for (int i = 0; i < WORLD_AGENTS; i++) {
        revdial_agent_stop(w->agents[i], 0);
        w->agents[i] = NULL;
    }
    revdial_proxy_stop(w->proxy);
    w->proxy = NULL;
}

// A test with a world, w, that is closed behind it: WORLD_TEST finds proxy and agent 0 open, and
// NEW_WORLD_TEST opens what it wants itself.
#define NEW_WORLD_TEST(name) WORLD_TEST_WITH(name, 1)
#define WORLD_TEST(name) WORLD_TEST_WITH(name, CHECK(world_open(&w)))
#define WORLD_TEST_WITH(name, is_open) \
    static void world_test_##name(world *w); \
    TEST(name) \
    { \
        world w; \
        world_init(&w); \
        if (is_open) world_test_##name(&w); \
        world_close(&w); \
    } \
    static void world_test_##name(world *w)

// Exposes a port. Returns its id, and its address in `at`, of 80 bytes.
static inline int64_t world_expose(world *w, const revdial_expose *x, char *at)
{
    revdial_err err = {0};
    int64_t id = revdial_proxy_expose(w->proxy, x, &err);
    if (id <= 0) test_fail(__FILE__, __LINE__, "not exposed: %s", err.msg);
    CHECK(revdial_proxy_expose_address(w->proxy, id, at, 80) > 0);
    return id;
}

// Dials cam-1 for something that util_handler() knows.
static inline revdial_stream *world_dial(world *w, const char *what, unsigned long n,
                                         revdial_err *err)
{
    char number[24];
    revdial_kv meta[2] = {{"do", what}, {"n", number}};
    revdial_dial_opts opts = {0};
    snprintf(number, sizeof number, "%lu", n);
    opts.meta = meta;
    opts.meta_count = 2;
    return revdial_dial(w->proxy, "cam-1", &opts, err);
}

// ------------------------------------------------------------------------------------------------
// Dials: by a thread that blocks, and with a callback.

typedef struct dialling {
    world *w;
    const char *name;
    revdial_dial_opts opts;
    util_gate began, done;
    revdial_stream *st;
    revdial_err err;
} dialling;

static inline void *dialling_run(void *arg)
{
    dialling *d = arg;
    util_gate_add(&d->began, 1);
    d->st = revdial_dial(d->w->proxy, d->name, &d->opts, &d->err);
    util_gate_add(&d->done, 1);
    return NULL;
}

static inline pthread_t dialling_start(dialling *d, world *w)
{
    d->w = w;
    if (!d->name) d->name = "cam-1";
    util_gate_init(&d->began);
    util_gate_init(&d->done);
    pthread_t t = util_thread(dialling_run, d);
    util_gate_wait(&d->began, 1);
    return t;
}

typedef struct called {
    util_gate done;
    revdial_stream *st;
    revdial_err err;
    world *w;
    int blocking[6];
} called;

static inline void on_dial(void *ud, revdial_stream *st, const revdial_err *err)
{
    called *c = ud;
    c->st = st;
    if (err) c->err = *err;
    util_gate_add(&c->done, 1);
}

static inline void called_init(called *c, world *w)
{
    memset(c, 0, sizeof *c);
    util_gate_init(&c->done);
    c->w = w;
}

// ------------------------------------------------------------------------------------------------
// Raw TCP.

// Listens at *port of loopback and returns the descriptor, -1 if somebody else has that port. 0 is
// any port; *port then has it.
static inline int raw_listen(int backlog, int *port)
{
    // bind() may give a port that a connection has, and then listen() fails.
    for (int tries = *port ? 1 : 16; tries > 0; tries--) {
        struct sockaddr_in at;
        socklen_t len = sizeof at;
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
        memset(&at, 0, sizeof at);
        at.sin_family = AF_INET;
        at.sin_port = htons((uint16_t)*port);
        at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(fd, (struct sockaddr *)&at, len) == 0 && listen(fd, backlog) == 0) {
            if (getsockname(fd, (struct sockaddr *)&at, &len) < 0) abort();
            *port = ntohs(at.sin_port);
            return fd;
        }
        close(fd);
    }
    if (*port == 0) abort();
    return -1;
}

// A port of loopback that nobody has, and that the system gives to no outgoing connection: it is
// still free when a test comes back to it. Another one each time.
static inline int raw_quiet_port(void)
{
    static int last;
    int low = 32768, high = 60999;
    FILE *f = fopen("/proc/sys/net/ipv4/ip_local_port_range", "r");
    if (f && fscanf(f, "%d %d", &low, &high) != 2) abort();
    if (f) fclose(f);
    if (!last) last = 10000 + (int)getpid() % 20000;
    for (int i = 0; i < 64000; i++) {
        struct sockaddr_in at;
        last = last < 65535 ? last + 1 : 1024;
        if (last >= low && last <= high) continue;
        memset(&at, 0, sizeof at);
        at.sin_family = AF_INET;
        at.sin_port = htons((uint16_t)last);
        at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        int is_free = bind(fd, (struct sockaddr *)&at, sizeof at) == 0;
        close(fd);
        if (is_free) return last;
    }
    abort();
}

// A port of loopback at which nobody listens, nor will: it stays taken until the program ends.
static inline int raw_closed_port(void)
{
    static int port;
    struct sockaddr_in at;
    socklen_t len = sizeof at;
    if (port) return port;
    memset(&at, 0, sizeof at);
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(fd, (struct sockaddr *)&at, len) < 0) abort();
    if (getsockname(fd, (struct sockaddr *)&at, &len) < 0) abort();
    return port = ntohs(at.sin_port);
}

static inline int raw_wait(int fd, short events, int ms)
{
    struct pollfd p = {fd, events, 0};
    int r;
    do r = poll(&p, 1, ms);
    while (r < 0 && errno == EINTR);
    return r > 0;
}

static inline int raw_accept(int listener)
{
    return raw_wait(listener, POLLIN, UTIL_WAIT_MS) ? accept4(listener, NULL, NULL, SOCK_CLOEXEC)
                                                    : -1;
}

// With small: as a peer at the end of a thin link, whose system takes a little at a time.
static inline int raw_connect_as(const char *address, int small)
{
    struct sockaddr_in at;
    const char *colon = strrchr(address, ':');
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1, segment = 1000, room = 8192;
    if (small) setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment);
    if (small) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    memset(&at, 0, sizeof at);
    at.sin_family = AF_INET;
    at.sin_port = htons((uint16_t)atoi(colon + 1));
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (struct sockaddr *)&at, sizeof at) < 0) {
        close(fd);
        return -1;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static inline int raw_connect(const char *address)
{
    return raw_connect_as(address, 0);
}

// Both ends of a TCP connection on this machine. Returns 0 if there is none.
static inline int raw_pair(int fds[2])
{
    int port = 0, listener = raw_listen(1, &port);
    char address[32];
    snprintf(address, sizeof address, "127.0.0.1:%d", port);
    fds[0] = raw_connect(address);
    fds[1] = raw_accept(listener);
    close(listener);
    return fds[0] >= 0 && fds[1] >= 0;
}

// Connects from an address of loopback of its own: 127.0.0.`last`.
static inline int raw_connect_from(const char *address, int last)
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

static inline int raw_send(int fd, const void *data, size_t len)
{
    size_t at = 0;
    while (at < len) {
        ssize_t n = send(fd, (const char *)data + at, len - at, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return 0;
        at += (size_t)n;
    }
    return 1;
}

static inline int raw_say(int fd, const char *text)
{
    return raw_send(fd, text, strlen(text));
}

// One read, within ten seconds: bytes, 0 EOF, -1 reset or nothing came.
static inline ssize_t raw_read(int fd, void *buf, size_t len)
{
    return raw_wait(fd, POLLIN, UTIL_WAIT_MS) ? recv(fd, buf, len, 0) : -1;
}

static inline int raw_read_all(int fd, void *buf, size_t len)
{
    size_t got = 0;
    while (got < len) {
        ssize_t n = raw_read(fd, (char *)buf + got, len - got);
        if (n <= 0) return 0;
        got += (size_t)n;
    }
    return 1;
}

// Reads a head of HTTP, and not a byte more. Returns its length, 0 if the peer ended before.
static inline size_t raw_head(int fd, char *buf, size_t size)
{
    size_t len = 0;
    buf[0] = '\0';
    while (len + 1 < size && raw_read(fd, buf + len, 1) == 1) {
        buf[++len] = '\0';
        if (len >= 4 && memcmp(buf + len - 4, "\r\n\r\n", 4) == 0) return len;
    }
    return 0;
}

static inline int raw_status(const char *head)
{
    return strncmp(head, "HTTP/1.1 ", 9) == 0 ? atoi(head + 9) : 0;
}

// Reads until the peer ends. Returns 0 if it ended with FIN, -1 with RST or never; *len of size.
static inline int raw_drain(int fd, char *buf, size_t size, size_t *len)
{
    char junk[4096];
    *len = 0;
    for (;;) {
        ssize_t n = raw_read(fd, junk, sizeof junk);
        if (n <= 0) return (int)n;
        for (ssize_t i = 0; i < n && *len + 1 < size; i++) buf[(*len)++] = junk[i];
        if (size) buf[*len] = '\0';
    }
}

// Does an echo come back? 0: the connection ends instead.
static inline int raw_echoes(int fd)
{
    char buf[5] = "";
    return fd >= 0 && raw_say(fd, "ping") && raw_read_all(fd, buf, 4) && strcmp(buf, "ping") == 0;
}

static inline void raw_close_reset(int fd)
{
    struct linger now = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
}

// A registration; `more` is further header lines, each with its CR LF.
static inline void raw_request(char *buf, size_t size, const char *name, const char *token,
                               const char *more)
{
    snprintf(buf, size,
             "GET /revdial HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
             "Upgrade: revdial\r\nAuthorization: Bearer %s\r\nRevdial-Name: %s\r\n%s\r\n",
             token, name, more ? more : "");
}

// Registers by hand as a stock yamux peer. Returns the descriptor, or -1.
static inline int raw_backend_on(int fd, const char *name, const char *more)
{
    char buf[2048];
    if (fd < 0) return -1;
    raw_request(buf, sizeof buf, name, "s3cret", more);
    raw_say(fd, buf);
    if (raw_head(fd, buf, sizeof buf) && raw_status(buf) == 101) return fd;
    close(fd);
    return -1;
}

static inline int raw_backend(const char *address, const char *name, const char *more)
{
    return raw_backend_on(raw_connect(address), name, more);
}

// Connections that wait for a place.
static inline size_t queue_of(revdial_proxy *p)
{
    pthread_mutex_lock(&p->own.lock);
    size_t n = p->queue_count;
    pthread_mutex_unlock(&p->own.lock);
    return n;
}

// Connections that have not authenticated yet.
static inline int pending_of(revdial_proxy *p)
{
    int pending;
    pthread_mutex_lock(&p->own.lock);
    pending = (int)p->pending;
    pthread_mutex_unlock(&p->own.lock);
    return pending;
}

// Frames of yamux, by hand.
enum { RAW_DATA, RAW_WINDOW, RAW_PING, RAW_GOAWAY };
enum { RAW_SYN = 1, RAW_ACK = 2, RAW_FIN = 4, RAW_RST = 8 };

typedef struct raw_frame {
    uint8_t type;
    uint16_t flags;
    uint32_t id, len;
} raw_frame;

static inline void raw_frame_put(uint8_t h[12], uint8_t type, uint16_t flags, uint32_t id,
                                 uint32_t len)
{
    h[0] = 0;
    h[1] = type;
    h[2] = (uint8_t)(flags >> 8);
    h[3] = (uint8_t)flags;
    for (int i = 0; i < 4; i++) {
        h[4 + i] = (uint8_t)(id >> (24 - 8 * i));
        h[8 + i] = (uint8_t)(len >> (24 - 8 * i));
    }
}

static inline int raw_frame_send(int fd, uint8_t type, uint16_t flags, uint32_t id, uint32_t len)
{
    uint8_t h[12];
    raw_frame_put(h, type, flags, id, len);
    return raw_send(fd, h, sizeof h);
}

static inline int raw_frame_read(int fd, raw_frame *f)
{
    uint8_t h[12];
    if (!raw_read_all(fd, h, sizeof h) || h[0] != 0) return 0;
    f->type = h[1];
    f->flags = (uint16_t)(h[2] << 8 | h[3]);
    f->id = (uint32_t)h[4] << 24 | (uint32_t)h[5] << 16 | (uint32_t)h[6] << 8 | h[7];
    f->len = (uint32_t)h[8] << 24 | (uint32_t)h[9] << 16 | (uint32_t)h[10] << 8 | h[11];
    return 1;
}

// The next frame of that type; others, and their payload, are skipped.
static inline int raw_frame_await(int fd, uint8_t type, raw_frame *f)
{
    uint8_t junk[4096];
    while (raw_frame_read(fd, f)) {
        if (f->type == type) return 1;
        for (uint32_t left = f->type == RAW_DATA ? f->len : 0; left;) {
            uint32_t n = left < sizeof junk ? left : (uint32_t)sizeof junk;
            if (!raw_read_all(fd, junk, n)) return 0;
            left -= n;
        }
    }
    return 0;
}

// A proxy by hand: takes one connection and reads its request. Returns the descriptor, or -1.
static inline int raw_proxy_accept(int listener, char *head, size_t size)
{
    int fd = raw_accept(listener);
    if (fd >= 0 && raw_head(fd, head, size)) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

// A listener whose queue is full: a connect to it hangs.
typedef struct hole {
    int listener, port, fds[8], count;
} hole;

static inline int hole_open(hole *h)
{
    char address[32];
    h->port = 0;
    h->listener = raw_listen(0, &h->port);
    snprintf(address, sizeof address, "127.0.0.1:%d", h->port);
    struct sockaddr_in at;
    memset(&at, 0, sizeof at);
    at.sin_family = AF_INET;
    at.sin_port = htons((uint16_t)h->port);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (h->count = 0; h->count < 8;) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        h->fds[h->count++] = fd;
        if (connect(fd, (struct sockaddr *)&at, sizeof at) < 0 && !raw_wait(fd, POLLOUT, 30))
            return 1;
    }
    return test_fail(__FILE__, __LINE__, "the queue of a listener does not fill up");
}

static inline void hole_close(hole *h)
{
    while (h->count) close(h->fds[--h->count]);
    close(h->listener);
}

#define RAW_101 \
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: revdial\r\n\r\n"

// ------------------------------------------------------------------------------------------------
// What the process holds.

static inline int util_entries(const char *path)
{
    DIR *d = opendir(path);
    int n = 0;
    if (!d) return -1;
    while (readdir(d)) n++;
    closedir(d);
    return n;
}

static inline int util_fds(void)
{
    return util_entries("/proc/self/fd");
}
static inline int util_threads(void)
{
    return util_entries("/proc/self/task");
}

#endif
