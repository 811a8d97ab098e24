// The C backend of the interoperability tests: serves the jobs of jobs.h to whatever proxy answers.
//     backend URL TOKEN
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include "jobs.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

enum { BUF_BYTES = 65536 };

static volatile sig_atomic_t stop;
static pthread_mutex_t resets_lock = PTHREAD_MUTEX_INITIALIZER;
static int resets;  // guarded by resets_lock: streams that ended because the peer reset them

static void on_term(int sig)
{
    (void)sig;
    stop = 1;
}

// Reads exactly len bytes. Returns 1, 0 for EOF before them, or REVDIAL_E*.
static int read_all(revdial_stream *st, unsigned char *buf, size_t len)
{
    while (len > 0) {
        ptrdiff_t n = revdial_read(st, buf, len);
        if (n <= 0) return (int)n;
        buf += n;
        len -= (size_t)n;
    }
    return 1;
}

// Writes all of it. Returns 0 or REVDIAL_E*.
static int write_all(revdial_stream *st, const unsigned char *buf, size_t len)
{
    ptrdiff_t n = revdial_write(st, buf, len);
    if (n >= 0 && (size_t)n < len) return revdial_stream_error(st, NULL);
    return n < 0 ? (int)n : 0;
}

static int answer_number(revdial_stream *st, unsigned long long number)
{
    char text[32];
    int len = snprintf(text, sizeof text, "%llu", number);
    return write_all(st, (const unsigned char *)text, (size_t)len);
}

static int do_echo(revdial_stream *st, unsigned char *buf)
{
    ptrdiff_t n;
    while ((n = revdial_read(st, buf, BUF_BYTES)) > 0) {
        int failed = write_all(st, buf, (size_t)n);
        if (failed) return failed;
    }
    return (int)n;
}

static int do_count(revdial_stream *st, unsigned char *buf)
{
    unsigned long long total = 0;
    ptrdiff_t n;
    while ((n = revdial_read(st, buf, BUF_BYTES)) > 0) total += (unsigned long long)n;
    return n < 0 ? (int)n : answer_number(st, total);
}

static int do_sink(revdial_stream *st, unsigned char *buf)
{
    unsigned char sum[32];
    sha256 sha = sha256_begin();
    uint64_t left;
    if (read_all(st, buf, 8) != 1) return REVDIAL_EPROTO;
    for (left = get_u64(buf); left > 0;) {
        ptrdiff_t n = revdial_read(st, buf, left < BUF_BYTES ? (size_t)left : BUF_BYTES);
        if (n <= 0) return (int)n;
        sha256_add(&sha, buf, (size_t)n);
        left -= (uint64_t)n;
    }
    sha256_end(&sha, sum);
    return write_all(st, sum, sizeof sum);
}

static int do_source(revdial_stream *st, unsigned char *buf)
{
    uint64_t left;
    pattern p;
    if (read_all(st, buf, 8) != 1) return REVDIAL_EPROTO;
    left = get_u64(buf);
    p = pattern_seeded(left);
    while (left > 0) {
        size_t n = left < BUF_BYTES ? (size_t)left : BUF_BYTES;
        int failed;
        pattern_fill(&p, buf, n);
        failed = write_all(st, buf, n);
        if (failed) return failed;
        left -= n;
    }
    return 0;
}

static int do_resets(revdial_stream *st)
{
    int count;
    pthread_mutex_lock(&resets_lock);
    count = resets;
    pthread_mutex_unlock(&resets_lock);
    return answer_number(st, (unsigned long long)count);
}

static int do_job(revdial_stream *st, unsigned char *buf)
{
    int got = read_all(st, buf, 1);
    if (got != 1) return got;
    switch (buf[0]) {
    case JOB_ECHO: return do_echo(st, buf);
    case JOB_SINK: return do_sink(st, buf);
    case JOB_SOURCE: return do_source(st, buf);
    case JOB_COUNT: return do_count(st, buf);
    case JOB_RESETS: return do_resets(st);
    case JOB_ABORT:
        got = read_all(st, buf, 16);
        return got == 1 ? revdial_reset(st, REVDIAL_RESET_CANCEL) : got;
    default: return revdial_reset(st, REVDIAL_RESET_APPLICATION);
    }
}

static void handler(void *ud, revdial_stream *st)
{
    unsigned char *buf = malloc(BUF_BYTES);
    (void)ud;
    if (buf && do_job(st, buf) == REVDIAL_ERESET) {
        pthread_mutex_lock(&resets_lock);
        resets++;
        pthread_mutex_unlock(&resets_lock);
    }
    free(buf);
    revdial_close(st);
}

static void log_line(void *ud, int level, const char *event, const char *msg)
{
    (void)ud;
    fprintf(stderr, "backend: %d %s: %s\n", level, event, msg);
}

int main(int argc, char **argv)
{
    struct sigaction term = {0};
    revdial_agent_config cfg = {0};
    revdial_err err = {0};
    if (argc != 3) {
        fprintf(stderr, "usage: backend URL TOKEN\n");
        return 2;
    }
    term.sa_handler = on_term;
    if (sigaction(SIGTERM, &term, NULL) != 0) return 1;
    cfg.url = argv[1];
    cfg.name = "peer";
    cfg.secret = argv[2];
    cfg.handler = handler;
    cfg.stop = &stop;
    cfg.drain_ms = 1000;
    cfg.common.log = log_line;
    if (revdial_serve(&cfg, &err) == 0) return 0;
    fprintf(stderr, "backend: %s\n", err.msg);
    return 1;
}
