// Bulk through TLS: a stream of revdial beside mbedTLS alone, which writes 16 KiB records from one
// socket to another. Two processes over loopback in both cases, one sends, one receives; the two
// take turns, so that both see the same machine.     tls CERT.pem KEY.pem CA.pem [SECONDS [ROUNDS]]
#define _GNU_SOURCE
#define REVDIAL_IMPLEMENTATION
#define REVDIAL_TLS_IMPLEMENTATION
#include "revdial_tls.h"

#include "bench.h"

#include <sys/wait.h>

enum { TLS_RECORD = 16384, TLS_WRITE = 65536 };

typedef struct tls_bench {
    const char *cert, *key, *ca;
    double seconds;
} tls_bench;

typedef struct tls_result {
    double rate;    // MB/s
    double cpu_us;  // of both processes, for a MB
    uint64_t bytes;
} tls_result;

static void tls_report(int fd, uint64_t bytes, int64_t began_ns)
{
    tls_result r = {0, 0, bytes};
    r.rate = (double)bytes / ((double)(bench_now_ns() - began_ns) / 1e9) / BENCH_MB;
    if (write(fd, &r, sizeof r) != sizeof r) bench_die("report");
}

static double tls_cpu_ns(void)
{
    double ns = 0;
    for (int i = 0; i < 2; i++) {
        struct rusage u;
        getrusage(i ? RUSAGE_SELF : RUSAGE_CHILDREN, &u);
        ns += (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e9 +
              (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e3;
    }
    return ns;
}

// The receiver's report, and what both have cost since then.
static tls_result tls_collect(int fd, pid_t pid, double cpu_ns)
{
    tls_result r;
    if (read(fd, &r, sizeof r) != sizeof r) bench_die("no report");
    waitpid(pid, NULL, 0);
    r.cpu_us = (tls_cpu_ns() - cpu_ns) / 1e3 / ((double)r.bytes / BENCH_MB);
    return r;
}

// ---- mbedTLS alone: the makers and BIO of revdial_tls.h, blocking

static revdial_transport tls_end(const tls_bench *b, int fd, int is_server)
{
    revdial_tls_config cfg = {is_server ? NULL : b->ca, is_server ? b->cert : NULL,
                              is_server ? b->key : NULL};
    revdial_err err = {0};
    revdial_transport t;
    revdial_tls *tls = is_server ? revdial_tls_server(&cfg, &err) : revdial_tls_client(&cfg, &err);
    errno = 0;
    if (!tls || tls->wrap(tls->ud, fd, is_server ? NULL : "localhost", &t, &err))
        bench_die("%s", err.msg);
    if (t.do_handshake(t.ctx)) bench_die("%s", t.do_reason(t.ctx));
    revdial_tls_free(tls);
    return t;
}

static void tls_alone_receive(const tls_bench *b, int fd, int report)
{
    static char buf[TLS_RECORD];
    revdial_transport t = tls_end(b, fd, 1);
    mbedtls_ssl_context *ssl = &((rvd_tls_link *)t.ctx)->ssl;
    int64_t began = bench_now_ns();
    uint64_t bytes = 0;
    int n;
    while ((n = mbedtls_ssl_read(ssl, (unsigned char *)buf, sizeof buf)) > 0) bytes += (uint64_t)n;
    tls_report(report, bytes, began);
}

static void tls_alone_send(const tls_bench *b, int fd)
{
    static unsigned char buf[TLS_RECORD];
    revdial_transport t = tls_end(b, fd, 0);
    mbedtls_ssl_context *ssl = &((rvd_tls_link *)t.ctx)->ssl;
    int64_t until = bench_now_ns() + (int64_t)(b->seconds * 1e9);
    while (bench_now_ns() < until)
        if (mbedtls_ssl_write(ssl, buf, sizeof buf) != TLS_RECORD) bench_die("write");
    mbedtls_ssl_close_notify(ssl);
    close(fd);
}

static tls_result tls_alone(const tls_bench *b)
{
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t len = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM, 0), fds[2], fd, one = 1;
    double cpu_ns = tls_cpu_ns();
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&at, len) || listen(listener, 1) || pipe(fds) ||
        getsockname(listener, (struct sockaddr *)&at, &len))
        bench_die("listen");
    pid_t pid = fork();
    if (pid == 0) {
        fd = accept(listener, NULL, NULL);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        tls_alone_receive(b, fd, fds[1]);
        _exit(0);
    }
    fd = socket(AF_INET, SOCK_STREAM, 0);
    if (pid < 0 || connect(fd, (struct sockaddr *)&at, len)) bench_die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    tls_alone_send(b, fd);
    tls_result r = tls_collect(fds[0], pid, cpu_ns);
    close(listener);
    close(fds[0]);
    close(fds[1]);
    return r;
}

// ---- a stream of revdial

static int tls_report_fd;

static void tls_sink(void *ud, revdial_stream *st)
{
    static char buf[TLS_WRITE];
    volatile sig_atomic_t *stop = ud;
    int64_t began = 0;
    uint64_t bytes = 0;
    ptrdiff_t n;
    while ((n = revdial_read(st, buf, sizeof buf)) > 0) {
        if (!began) began = bench_now_ns();
        bytes += (uint64_t)n;
    }
    tls_report(tls_report_fd, bytes, began);
    revdial_close(st);
    *stop = 1;
}

static void tls_backend(const tls_bench *b, const char *address)
{
    static volatile sig_atomic_t stop;
    revdial_tls_config files = {b->ca, NULL, NULL};
    revdial_agent_config cfg = {0};
    revdial_err err = {0};
    revdial_tls *tls = revdial_tls_client(&files, &err);
    char url[100];
    if (!tls) bench_die("%s", err.msg);
    snprintf(url, sizeof url, "https://%s", address);
    cfg.url = url;
    cfg.server_name = "localhost";
    cfg.name = "sink";
    cfg.secret = "s3cret";
    cfg.handler = tls_sink;
    cfg.ud = (void *)(uintptr_t)&stop;
    cfg.stop = &stop;
    cfg.common.tls = tls;
    errno = 0;
    if (revdial_serve(&cfg, &err)) bench_die("%s", err.msg);
    revdial_tls_free(tls);
}

static void tls_source(const tls_bench *b, revdial_proxy *p)
{
    static char buf[TLS_WRITE];
    revdial_err err = {0};
    revdial_dial_opts opts = {0};
    opts.flags = REVDIAL_DIAL_WAIT;
    revdial_stream *st = revdial_dial(p, "sink", &opts, &err);
    int64_t until = bench_now_ns() + (int64_t)(b->seconds * 1e9);
    char byte;
    errno = 0;
    if (!st) bench_die("%s", err.msg);
    while (bench_now_ns() < until)
        if (revdial_write(st, buf, sizeof buf) != TLS_WRITE) bench_die("write");
    revdial_shutdown(st, REVDIAL_WR);
    revdial_read(st, &byte, 1);
    revdial_close(st);
}

static tls_result tls_stream(const tls_bench *b)
{
    revdial_tls_config files = {NULL, b->cert, b->key};
    revdial_credential who = {.secret = "s3cret", .names = "sink"};
    revdial_proxy_config cfg = {0};
    revdial_err err = {0};
    char address[80] = "";
    int fds[2], up[2];
    double cpu_ns = tls_cpu_ns();
    if (pipe(fds) || pipe(up)) bench_die("pipe");
    pid_t pid = fork();
    if (pid == 0) {  // before there are threads
        tls_report_fd = fds[1];
        if (read(up[0], address, sizeof address) <= 0) _exit(1);
        tls_backend(b, address);
        _exit(0);
    }
    revdial_tls *tls = revdial_tls_server(&files, &err);
    cfg.listen = "127.0.0.1:0";
    cfg.credentials = &who;
    cfg.credential_count = 1;
    cfg.common.tls = tls;
    revdial_proxy *p = tls ? revdial_proxy_start(&cfg, &err) : NULL;
    errno = 0;
    if (!p) bench_die("%s", err.msg);
    revdial_proxy_address(p, 0, address, sizeof address);
    if (write(up[1], address, sizeof address) < 0) bench_die("address");
    tls_source(b, p);
    tls_result r = tls_collect(fds[0], pid, cpu_ns);
    revdial_proxy_stop(p);
    revdial_tls_free(tls);
    close(fds[0]);
    close(fds[1]);
    close(up[0]);
    close(up[1]);
    return r;
}

static void tls_print(const char *way, tls_result r)
{
    printf("way=%s all=%.3f MBps=%.1f cpu_us=%.1f\n", way, (double)r.bytes / BENCH_MB, r.rate,
           r.cpu_us);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    tls_bench b = {NULL, NULL, NULL, 1.5};
    int rounds = argc > 5 ? atoi(argv[5]) : 5;
    if (argc < 4) {
        fprintf(stderr, "usage: tls CERT.pem KEY.pem CA.pem [SECONDS [ROUNDS]]\n");
        return 2;
    }
    b.cert = argv[1];
    b.key = argv[2];
    b.ca = argv[3];
    if (argc > 4) b.seconds = atof(argv[4]);
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < rounds; i++) {
        tls_print("alone", tls_alone(&b));
        tls_print("stream", tls_stream(&b));
    }
    return 0;
}
