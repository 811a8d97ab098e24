// A load generator over plain TCP. It knows nothing of what stands between its two halves.
//     build/bench/load serve                        prints "listening on 127.0.0.1:PORT"
//     build/bench/load JOB PORT [-c CONNECTIONS] [-i IDLE] [-t SECONDS] [-w WARM_SECONDS]
// Jobs, each over -c connections, one line of key=value when done:
//     up down   as many bytes as go; the receiving end counts
//     ping      64 bytes there and back, again and again
//     touch     connects, one byte there and back, closes; so many at a time
//     mixed     up on all connections, and ping on one more
//     idle      opens them, each one byte there and back, says "ready", holds them until stdin ends
//     request   ping with requests of HTTP/1.1 in place of the 64 bytes, to Host bench.test
//     kept      idle with one of them
// `all` is what was done from first to last: megabytes if there are any, else messages. A job lasts
// longer than it was asked to if it has done nothing yet.
// -i opens so many idle connections beside any job. What happens in the warm-up does not count.
//
// The first byte of a connection: 'E' send back, 'S' take and say 8 bytes of total now and then,
// 'D' send without end, 'G' answer each request of HTTP (a GET has no body).
#include "bench.h"

#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <sys/epoll.h>

enum { BUFFER_BYTES = 256 * 1024, SEND_BYTES = 64 * 1024, MESSAGE_BYTES = 64 };
enum { CONNECTING_MAX = 64, SAMPLES_MAX = 1 << 22, SENDS_PER_TURN = 4 };
enum { SOURCES = 8 };  // loopback addresses that clients come from: one has too few ports
#define REPORT_NS (10 * BENCH_NS / 1000)
#define STUCK_NS (20 * BENCH_NS)

static char buffer[BUFFER_BYTES];

static const char request[] = "GET /bench HTTP/1.1\r\nHost: bench.test\r\nUser-Agent: load\r\n"
                              "Accept: */*\r\n\r\n";
static const char response[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
                               "Content-Length: 64\r\n\r\n"
                               "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\n";

// ---- the server ----

typedef struct load_peer {
    int fd;
    char job;        // 0 before the first byte
    uint32_t tail;   // 'G': the last four bytes
    uint64_t total;  // 'S'
    uint64_t told;   // of it
    int64_t told_ns;
    char *rest;  // 'E': what the socket did not take
    size_t rest_len, rest_at;
} load_peer;

static void watch(int ep, int op, int fd, uint32_t events, void *what)
{
    struct epoll_event ev = {.events = events, .data.ptr = what};
    if (epoll_ctl(ep, op, fd, &ev) != 0) bench_die("epoll_ctl");
}

static void peer_end(load_peer *p)
{
    close(p->fd);
    free(p->rest);
    free(p);
}

// These return 0 when the connection is over.
static int peer_echo(load_peer *p, int ep, size_t len)
{
    ssize_t n = send(p->fd, buffer, len, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) return 0;
    if (n < 0) n = 0;
    if ((size_t)n == len) return 1;
    p->rest_len = len - (size_t)n;
    p->rest_at = 0;
    p->rest = bench_alloc(1, p->rest_len);
    memcpy(p->rest, buffer + n, p->rest_len);
    watch(ep, EPOLL_CTL_MOD, p->fd, EPOLLOUT, p);
    return 1;
}

static int peer_echo_rest(load_peer *p, int ep)
{
    ssize_t n = send(p->fd, p->rest + p->rest_at, p->rest_len - p->rest_at, MSG_NOSIGNAL);
    if (n < 0) return errno == EAGAIN;
    p->rest_at += (size_t)n;
    if (p->rest_at < p->rest_len) return 1;
    free(p->rest);
    p->rest = NULL;
    watch(ep, EPOLL_CTL_MOD, p->fd, EPOLLIN, p);
    return 1;
}

static int peer_sink(load_peer *p, size_t len)
{
    uint8_t total[8];
    int64_t now = bench_now_ns();
    p->total += len;
    if (now - p->told_ns < REPORT_NS) return 1;
    p->told_ns = now;
    bench_put64(total, p->total);
    return send(p->fd, total, sizeof total, MSG_NOSIGNAL) == sizeof total;
}

static int peer_answer(load_peer *p, size_t len)
{
    static const uint32_t end = 0x0d0a0d0a;  // of a head
    for (size_t i = 0; i < len; i++) {
        p->tail = p->tail << 8 | (uint8_t)buffer[i];
        if (p->tail != end) continue;
        if (send(p->fd, response, sizeof response - 1, MSG_NOSIGNAL) < 0) return 0;
    }
    return 1;
}

static int peer_source(load_peer *p)
{
    for (int i = 0; i < SENDS_PER_TURN; i++)
        if (send(p->fd, buffer, SEND_BYTES, MSG_NOSIGNAL) < 0) return errno == EAGAIN;
    return 1;
}

static int peer_turn(load_peer *p, int ep, uint32_t events)
{
    if (p->rest) return peer_echo_rest(p, ep);
    if (p->job == 'D' && !(events & (EPOLLERR | EPOLLHUP))) return peer_source(p);
    ssize_t n = recv(p->fd, buffer, p->job ? sizeof buffer : 1, 0);
    if (n <= 0) return n < 0 && errno == EAGAIN;
    if (p->job == 'E') return peer_echo(p, ep, (size_t)n);
    if (p->job == 'S') return peer_sink(p, (size_t)n);
    if (p->job == 'G') return peer_answer(p, (size_t)n);
    p->job = buffer[0];
    if (p->job == 'D') watch(ep, EPOLL_CTL_MOD, p->fd, EPOLLOUT, p);
    return 1;
}

static void serve(void)
{
    uint16_t port = 0;
    int listener = bench_listen(&port), ep = epoll_create1(0), fd;
    struct epoll_event ev[256];
    fcntl(listener, F_SETFL, O_NONBLOCK);
    watch(ep, EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
    printf("listening on 127.0.0.1:%u\n", port);
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(ep, ev, 256, -1);
        for (int i = 0; i < n; i++) {
            load_peer *p = ev[i].data.ptr;
            if (p && !peer_turn(p, ep, ev[i].events)) peer_end(p);
            while (!p && (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                bench_no_delay(fd);
                load_peer *fresh = bench_alloc(1, sizeof *fresh);
                fresh->fd = fd;
                watch(ep, EPOLL_CTL_ADD, fd, EPOLLIN, fresh);
            }
        }
    }
}

// ---- the client ----

typedef enum load_role { ROLE_UP, ROLE_DOWN, ROLE_PING, ROLE_TOUCH, ROLE_IDLE } load_role;

typedef struct load_job {
    const char *name;
    load_role role;
    int with_ping;
    int is_http;
} load_job;

static const load_job jobs[] = {
    {"up", ROLE_UP, 0},           {"down", ROLE_DOWN, 0},    {"ping", ROLE_PING, 0},
    {"touch", ROLE_TOUCH, 0},     {"mixed", ROLE_UP, 1},     {"idle", ROLE_IDLE, 0},
    {"request", ROLE_PING, 0, 1}, {"kept", ROLE_IDLE, 0, 1},
};

typedef struct load_conn {
    int fd;  // -1 before it is connected for the first time
    load_role role;
    int connected;
    int settled;      // idle: its byte has come back
    uint64_t moved;   // bytes that the receiving end has counted
    uint64_t before;  // of them in the warm-up
    uint8_t head[8];  // of a total
    size_t got;       // of a message or a total
    size_t size;      // of the message
    int64_t since;
} load_conn;

// Once all connections are there, the warm-up begins; after it what happens counts.
typedef enum load_phase { PHASE_CONNECTING, PHASE_WARMING, PHASE_COUNTING, PHASE_OVER } load_phase;

typedef struct load_run {
    const load_job *job;
    struct sockaddr_in to;
    unsigned conns, idle;
    double seconds, warm;
    int ep;
    load_conn *all;
    unsigned count, begun, settled;  // idle ones come first
    unsigned connecting;
    load_phase phase;
    int64_t start, end;  // of what counts; 0 before that begins
    bench_samples times;
    uint64_t done, total, fails, sources;  // total: with those that do not count
} load_run;

static int is_counted(const load_run *r, int64_t ns)
{
    return r->phase == PHASE_COUNTING && ns >= r->start;
}

static void conn_begin(load_run *r, load_conn *c)
{
    struct sockaddr_in from = bench_loopback(0);
    int one = 1;
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)(r->sources++ % SOURCES));
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) bench_die("socket");
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    bench_no_delay(c->fd);
    if (bind(c->fd, (struct sockaddr *)&from, sizeof from) != 0) bench_die("bind");
    c->connected = 0;
    c->got = 0;
    c->since = bench_now_ns();
    r->connecting++;
    if (connect(c->fd, (struct sockaddr *)&r->to, sizeof r->to) != 0 && errno != EINPROGRESS)
        bench_die("connect");
    watch(r->ep, EPOLL_CTL_ADD, c->fd, EPOLLOUT, c);
}

// What a bulk connection has under way is of no use to anybody: it is reset.
static void conn_end(load_conn *c)
{
    struct linger none = {1, 0};
    if (c->role == ROLE_UP || c->role == ROLE_DOWN)
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
    close(c->fd);
}

static void conn_fail(load_run *r, load_conn *c)
{
    if (r->fails++ == 0) fprintf(stderr, "load: %s: %s\n", r->job->name, strerror(errno));
    if (!c->connected) r->connecting--;
    close(c->fd);
    if (r->fails > 100) bench_die("load: too many connections fail");
    conn_begin(r, c);
}

static void conn_connected(load_run *r, load_conn *c)
{
    static const uint32_t events[] = {EPOLLIN | EPOLLOUT, EPOLLIN, EPOLLIN, EPOLLIN, EPOLLIN};
    static const char first[] = {'S', 'D', 'E', 'E', 'E'};
    static const size_t bytes[] = {1, 1, 1 + MESSAGE_BYTES, 2, 2};
    char head[1 + MESSAGE_BYTES] = {first[c->role]};
    socklen_t len = sizeof errno;
    if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &errno, &len) != 0 || errno != 0) {
        conn_fail(r, c);
        return;
    }
    c->connected = 1;
    r->connecting--;
    if (c->role == ROLE_PING) c->since = bench_now_ns();
    c->size = c->role == ROLE_PING ? MESSAGE_BYTES : 1;
    if (send(c->fd, r->job->is_http ? request : head,
             r->job->is_http ? sizeof request - 1 : bytes[c->role], MSG_NOSIGNAL) < 0) {
        conn_fail(r, c);
        return;
    }
    watch(r->ep, EPOLL_CTL_MOD, c->fd, events[c->role], c);
}

static void conn_told(load_conn *c, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        c->head[c->got++] = (uint8_t)buffer[i];
        if (c->got < sizeof c->head) continue;
        c->moved = bench_get64(c->head);
        c->got = 0;
    }
}

// How long the response is that begins in the buffer; its head is there.
static size_t response_size(size_t len)
{
    static const char name[] = "content-length: ";
    const char *end = memmem(buffer, len, "\r\n\r\n", 4), *at = buffer;
    if (!end || strncmp(buffer, "HTTP/1.1 200", 12) != 0)
        bench_die("load: another response: %.*s", (int)(len < 200 ? len : 200), buffer);
    while (at < end && strncasecmp(at, name, sizeof name - 1) != 0) at++;
    return (size_t)(end - buffer) + 4 + (at < end ? strtoul(at + sizeof name - 1, NULL, 10) : 0);
}

static void conn_back(load_run *r, load_conn *c, size_t len)
{
    int64_t now = bench_now_ns();
    if (r->job->is_http && c->got == 0) c->size = response_size(len);
    c->got += len;
    if (c->got < c->size) return;
    c->got = 0;
    r->total += c->role != ROLE_IDLE;
    if (is_counted(r, c->since) && is_counted(r, now) && c->role != ROLE_IDLE) {
        r->done++;
        bench_add(&r->times, now - c->since);
    }
    c->since = now;
    if (c->role == ROLE_PING) {
        const char *next = r->job->is_http ? request : buffer;
        size_t size = r->job->is_http ? sizeof request - 1 : MESSAGE_BYTES;
        if (send(c->fd, next, size, MSG_NOSIGNAL) != (ssize_t)size) conn_fail(r, c);
    } else if (c->role == ROLE_TOUCH) {
        close(c->fd);
        conn_begin(r, c);
    } else if (!c->settled) {
        c->settled = 1;
        r->settled++;
    }
}

static void conn_turn(load_run *r, load_conn *c, uint32_t events)
{
    if (!c->connected) {
        conn_connected(r, c);
        return;
    }
    if (events & EPOLLOUT) {
        for (int i = 0; i < SENDS_PER_TURN; i++)
            if (send(c->fd, buffer, SEND_BYTES, MSG_NOSIGNAL) < 0) break;
    }
    if (!(events & ~(uint32_t)EPOLLOUT)) return;
    ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n == 0) errno = 0;
    if (n <= 0)
        conn_fail(r, c);
    else if (c->role == ROLE_UP)
        conn_told(c, (size_t)n);
    else if (c->role == ROLE_DOWN)
        c->moved += (uint64_t)n;
    else
        conn_back(r, c, (size_t)n);
}

// A few at a time, so that nobody's backlog overflows; the idle ones first.
static void begin_more(load_run *r)
{
    unsigned most = r->settled < r->idle ? r->idle : r->count;
    while (r->begun < most && r->connecting < CONNECTING_MAX) conn_begin(r, &r->all[r->begun++]);
}

// Those that connect again and again never are all connected.
static int is_all_there(const load_run *r)
{
    return r->begun == r->count && (r->connecting == 0 || r->job->role == ROLE_TOUCH);
}

// Has anything come back? On a busy machine a short job may begin and end before its turn comes, or
// while the tunnel is still busy with handshakes: it lasts until there is something to count.
static int did_something(const load_run *r)
{
    uint64_t moved = 0;
    for (unsigned i = 0; i < r->count; i++) moved += r->all[i].moved;
    return moved + r->total > 0;
}

static void next_phase(load_run *r, int64_t now)
{
    switch (r->phase) {
    case PHASE_CONNECTING:
        if (r->job->role == ROLE_IDLE && r->settled == r->count) r->phase = PHASE_OVER;
        if (r->job->role == ROLE_IDLE || !is_all_there(r)) return;
        r->phase = PHASE_WARMING;
        r->start = now + (int64_t)(r->warm * 1e9);
        return;
    case PHASE_WARMING:
        if (now < r->start) return;
        for (unsigned i = 0; i < r->count; i++) r->all[i].before = r->all[i].moved;
        r->phase = PHASE_COUNTING;
        r->start = now;
        r->end = now + (int64_t)(r->seconds * 1e9);
        return;
    case PHASE_COUNTING:
        if (now < r->end || !did_something(r)) return;
        r->phase = PHASE_OVER;
        r->end = now;
        return;
    case PHASE_OVER: return;
    }
}

static void run_turns(load_run *r)
{
    struct epoll_event ev[512];
    int64_t moved = bench_now_ns();
    while (r->phase != PHASE_OVER) {
        begin_more(r);
        int n = epoll_wait(r->ep, ev, 512, 10);
        for (int i = 0; i < n; i++) conn_turn(r, ev[i].data.ptr, ev[i].events);
        int64_t now = bench_now_ns();
        if (n > 0) moved = now;
        if (now - moved > STUCK_NS) bench_die("load: %s is stuck", r->job->name);
        next_phase(r, now);
    }
}

static void print_result(load_run *r)
{
    double seconds = (double)(r->end - r->start) / 1e9, total = 0, least = -1, all = 0;
    for (unsigned i = 0; i < r->count; i++) {
        const load_conn *c = &r->all[i];
        if (c->role != ROLE_UP && c->role != ROLE_DOWN) continue;
        double rate = (double)(c->moved - c->before) / BENCH_MB / seconds;
        total += rate;
        all += (double)c->moved / BENCH_MB;
        if (least < 0 || rate < least) least = rate;
    }
    bench_sort(&r->times);
    printf("%s MBps=%.2f fair=%.3f per_s=%.1f p50_us=%.1f p99_us=%.1f all=%.6f fails=%llu\n",
           r->job->name, total, total > 0 ? least * r->conns / total : 1, (double)r->done / seconds,
           bench_quantile_us(&r->times, 0.5), bench_quantile_us(&r->times, 0.99),
           all > 0 ? all : (double)r->total, (unsigned long long)r->fails);
}

static int run(load_run *r)
{
    r->count = r->idle + r->conns + (unsigned)r->job->with_ping;
    r->ep = epoll_create1(0);
    r->all = bench_alloc(r->count, sizeof *r->all);
    r->times.cap = SAMPLES_MAX;
    r->times.ns = bench_alloc(r->times.cap, sizeof *r->times.ns);
    for (unsigned i = 0; i < r->count; i++) {
        load_role role = i < r->idle ? ROLE_IDLE : r->job->role;
        if (r->job->with_ping && i == r->count - 1) role = ROLE_PING;
        r->all[i] = (load_conn){.fd = -1, .role = role};
    }
    int64_t began = bench_now_ns();
    run_turns(r);
    if (r->job->role == ROLE_IDLE) {
        printf("ready seconds=%.3f fails=%llu\n", (double)(bench_now_ns() - began) / 1e9,
               (unsigned long long)r->fails);
        fflush(stdout);
        while (read(STDIN_FILENO, buffer, sizeof buffer) > 0) continue;
    } else {
        print_result(r);
    }
    for (unsigned i = 0; i < r->begun; i++) conn_end(&r->all[i]);
    free(r->all);
    free(r->times.ns);
    return 0;
}

static int usage(void)
{
    fprintf(stderr,
            "usage: load serve\n       load up|down|ping|touch|mixed|idle|request|kept PORT "
            "[-c CONNECTIONS] [-i IDLE] [-t SECONDS] [-w WARM_SECONDS]\n");
    return 2;
}

int main(int argc, char **argv)
{
    load_run r = {.conns = 1, .seconds = 1, .warm = -1};
    bench_raise_limits();
    if (argc > 1 && !strcmp(argv[1], "serve")) serve();
    for (int c; (c = getopt(argc, argv, "c:i:t:w:")) != -1;) {
        switch (c) {
        case 'c': r.conns = (unsigned)atoi(optarg); break;
        case 'i': r.idle = (unsigned)atoi(optarg); break;
        case 't': r.seconds = atof(optarg); break;
        case 'w': r.warm = atof(optarg); break;
        default: return usage();
        }
    }
    if (argc - optind != 2 || r.conns == 0 || r.seconds <= 0) return usage();
    if (r.warm < 0) r.warm = 0.2 * r.seconds;
    r.to = bench_loopback((uint16_t)atoi(argv[optind + 1]));
    for (size_t i = 0; i < sizeof jobs / sizeof jobs[0]; i++)
        if (!strcmp(argv[optind], jobs[i].name)) r.job = &jobs[i];
    return r.job ? run(&r) : usage();
}
