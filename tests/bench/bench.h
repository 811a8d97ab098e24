// What the benchmark's programs share: clock, samples, sockets on loopback. Every failure of the
// system ends the program with a message: a figure that is half true is worse than none.
#ifndef REVDIAL_BENCH_H
#define REVDIAL_BENCH_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

// 1 MB is a million bytes in everything that is printed.
#define BENCH_MB 1e6
#define BENCH_NS INT64_C(1000000000)

__attribute__((format(printf, 1, 2), noreturn)) static inline void bench_die(const char *format,
                                                                             ...)
{
    va_list args;
    va_start(args, format);
    fflush(stdout);
    vfprintf(stderr, format, args);
    va_end(args);
    if (errno) fprintf(stderr, ": %s", strerror(errno));
    fputc('\n', stderr);
    exit(1);
}

static inline int64_t bench_clock_ns(clockid_t clock)
{
    struct timespec t = {0};
    if (clock_gettime(clock, &t) != 0) bench_die("clock");
    return t.tv_sec * BENCH_NS + t.tv_nsec;
}

static inline int64_t bench_now_ns(void)
{
    return bench_clock_ns(CLOCK_MONOTONIC);
}

static inline void *bench_alloc(size_t count, size_t size)
{
    void *p = calloc(count, size);
    if (!p) bench_die("out of memory");
    return p;
}

// Ten thousand connections want as many descriptors as root may have, others what they are given.
static inline void bench_raise_limits(void)
{
    struct rlimit most = {1 << 18, 1 << 18}, now;
    signal(SIGPIPE, SIG_IGN);
    if (setrlimit(RLIMIT_NOFILE, &most) == 0 || getrlimit(RLIMIT_NOFILE, &now) != 0) return;
    now.rlim_cur = now.rlim_max;
    setrlimit(RLIMIT_NOFILE, &now);
}

// ---- samples: durations, the newest `cap` of them

typedef struct bench_samples {
    uint32_t *ns;
    size_t cap;
    uint64_t count;  // of all that came
} bench_samples;

static inline void bench_add(bench_samples *s, int64_t ns)
{
    s->ns[s->count++ % s->cap] = ns < UINT32_MAX ? (uint32_t)ns : UINT32_MAX;
}

static inline size_t bench_kept(const bench_samples *s)
{
    return s->count < s->cap ? (size_t)s->count : s->cap;
}

static inline int bench_by_size(const void *a, const void *b)
{
    const uint32_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static inline void bench_sort(bench_samples *s)
{
    qsort(s->ns, bench_kept(s), sizeof *s->ns, bench_by_size);
}

// In microseconds; of sorted samples.
static inline double bench_quantile_us(const bench_samples *s, double q)
{
    size_t n = bench_kept(s);
    return n ? s->ns[(size_t)((double)(n - 1) * q)] / 1e3 : 0;
}

// ---- sockets

static inline struct sockaddr_in bench_loopback(uint16_t port)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

// Port 0 is any free one. *port is the one that it became.
static inline int bench_listen(uint16_t *port)
{
    struct sockaddr_in a = bench_loopback(*port);
    socklen_t len = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (fd < 0) bench_die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(fd, 4096) != 0)
        bench_die("listen on port %u", *port);
    if (getsockname(fd, (struct sockaddr *)&a, &len) != 0) bench_die("getsockname");
    *port = ntohs(a.sin_port);
    return fd;
}

static inline void bench_no_delay(int fd)
{
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static inline int bench_connect(uint16_t port)
{
    struct sockaddr_in a = bench_loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a) != 0)
        bench_die("connect to port %u", port);
    bench_no_delay(fd);
    return fd;
}

static inline void bench_put64(uint8_t out[8], uint64_t n)
{
    for (int i = 0; i < 8; i++) out[i] = (uint8_t)(n >> (56 - 8 * i));
}

static inline uint64_t bench_get64(const uint8_t in[8])
{
    uint64_t n = 0;
    for (int i = 0; i < 8; i++) n = n << 8 | in[i];
    return n;
}

#endif
