// The C proxy of the interoperability tests: starts the peer's backend as a child, gives it the
// jobs of jobs.h, and prints a line per check.
//     drive PEER [abrupt]
// runs PEER backend --url http://127.0.0.1:PORT/revdial --name peer --token T
// An abrupt peer aborts a stream by RST alone, another one by FIN and then RST.
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include "jobs.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    BULK_BYTES = 64 << 20,
    BUF_BYTES = 65536,
    STREAMS = 200,  // at once; a stock peer takes 256
    IN_A_ROW = 1000,
    PATIENCE_MS = 60000,  // for anything: only a bug waits so long
};

static const char *const token = "interop-token";
static revdial_proxy *proxy;
static int is_abrupt;
static char why[512];  // the reason of the first failure of a check
static pthread_mutex_t why_lock = PTHREAD_MUTEX_INITIALIZER;

// Notes why a check fails, the first time. Returns 0, so that a check can return it.
__attribute__((format(printf, 1, 2))) static int fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    pthread_mutex_lock(&why_lock);
    if (!why[0]) vsnprintf(why, sizeof why, format, args);
    pthread_mutex_unlock(&why_lock);
    va_end(args);
    return 0;
}

// Opens a stream for a job; count < 0 sends none.
static revdial_stream *start(char job, int64_t count)
{
    unsigned char head[9] = {(unsigned char)job};
    size_t len = count < 0 ? 1 : sizeof head;
    revdial_err err = {0};
    revdial_stream *st = revdial_dial(proxy, "peer", NULL, &err);
    if (!st) {
        fail("dial: %s (%s)", revdial_strerror(err.code), err.msg);
        return NULL;
    }
    if (count >= 0) put_u64(head + 1, (uint64_t)count);
    revdial_stream_set_deadline(st, REVDIAL_RDWR, PATIENCE_MS);
    if (revdial_write(st, head, len) != (ptrdiff_t)len) {
        fail("writing the job failed: %s", revdial_strerror(revdial_stream_error(st, NULL)));
        revdial_close(st);
        return NULL;
    }
    return st;
}

// What a thread sends on a stream: count bytes of pattern(count), then FIN.
typedef struct sending {
    revdial_stream *st;
    uint64_t count;
    sha256 *sum;  // of what was sent, or NULL
    int ok;
} sending;

static void *send_pattern(void *arg)
{
    sending *job = arg;
    unsigned char *buf = malloc(BUF_BYTES);
    pattern p = pattern_seeded(job->count);
    uint64_t left = job->count;
    job->ok = buf != NULL;
    while (job->ok && left > 0) {
        size_t n = left < BUF_BYTES ? (size_t)left : BUF_BYTES;
        pattern_fill(&p, buf, n);
        if (job->sum) sha256_add(job->sum, buf, n);
        job->ok = revdial_write(job->st, buf, n) == (ptrdiff_t)n;
        left -= n;
    }
    free(buf);
    if (job->ok) job->ok = revdial_shutdown(job->st, REVDIAL_WR) == 0;
    if (!job->ok) fail("write failed: %s", revdial_strerror(revdial_stream_error(job->st, NULL)));
    return NULL;
}

// Expects count bytes of pattern(count) and EOF after them.
static int expect_pattern(revdial_stream *st, uint64_t count)
{
    unsigned char *buf = malloc(BUF_BYTES);
    pattern p = pattern_seeded(count);
    uint64_t total = 0;
    ptrdiff_t n = REVDIAL_ENOMEM;
    int ok = 1;
    while (buf && ok && (n = revdial_read(st, buf, BUF_BYTES)) > 0) {
        ok = pattern_matches(&p, buf, (size_t)n);
        total += (uint64_t)n;
    }
    free(buf);
    if (!ok) return fail("wrong byte before byte %llu", (unsigned long long)total);
    if (n < 0) return fail("read: %s", revdial_strerror((int)n));
    if (total == count) return 1;
    return fail("EOF after %llu of %llu bytes", (unsigned long long)total,
                (unsigned long long)count);
}

// Reads a short text up to EOF.
static int expect_text(revdial_stream *st, char *text, size_t size)
{
    size_t len = 0;
    ptrdiff_t n = 1;
    while (len + 1 < size && (n = revdial_read(st, text + len, size - 1 - len)) > 0)
        len += (size_t)n;
    text[len] = '\0';
    return n == 0 ? 1 : fail("read: %s", revdial_strerror((int)n));
}

static int echo_on(revdial_stream *st, uint64_t count)
{
    sending job = {st, count, NULL, 0};
    pthread_t sender;
    int ok;
    if (pthread_create(&sender, NULL, send_pattern, &job) != 0) return fail("no thread");
    ok = expect_pattern(st, count);
    if (!ok) revdial_reset(st, REVDIAL_RESET_CANCEL);  // lets the sender go
    pthread_join(sender, NULL);
    return ok && job.ok;
}

static int echo(uint64_t count)
{
    revdial_stream *st = start(JOB_ECHO, -1);
    int ok = st && echo_on(st, count);
    revdial_close(st);
    return ok;
}

static int check_echo(void)
{
    return echo(BUF_BYTES);
}
static int check_empty_echo(void)
{
    return echo(0);
}
static int check_both_ways(void)
{
    return echo(BULK_BYTES);
}

// One of many streams: small enough to be sent before anything is read.
typedef struct one_of_many {
    revdial_stream *st;
    pthread_t thread;
    uint64_t count;
    int running, ok;
} one_of_many;

static void *echo_one(void *arg)
{
    one_of_many *one = arg;
    sending job = {one->st, one->count, NULL, 0};
    send_pattern(&job);
    one->ok = job.ok && expect_pattern(one->st, one->count);
    return NULL;
}

static int check_many_at_once(void)
{
    static one_of_many many[STREAMS];
    int ok = 1;
    for (int i = 0; i < STREAMS; i++) {
        many[i].count = (uint64_t)i * 1000;
        many[i].st = start(JOB_ECHO, -1);
        if (!many[i].st) ok = 0;
    }
    for (int i = 0; ok && i < STREAMS; i++)
        many[i].running = pthread_create(&many[i].thread, NULL, echo_one, &many[i]) == 0;
    for (int i = 0; i < STREAMS; i++) {
        if (many[i].running) pthread_join(many[i].thread, NULL);
        if (!many[i].ok) ok = fail("stream %d of %d failed", i, STREAMS);
        revdial_close(many[i].st);
    }
    return ok;
}

static int check_in_a_row(void)
{
    for (int i = 0; i < IN_A_ROW; i++) {
        revdial_stream *st = start(JOB_ECHO, -1);
        sending job = {st, 10, NULL, 0};
        int ok = 0;
        if (st) send_pattern(&job);
        if (job.ok) ok = expect_pattern(st, 10);
        revdial_close(st);
        if (!ok) return fail("stream %d of %d failed", i, IN_A_ROW);
    }
    return 1;
}

static int check_upload(void)
{
    sha256 sha = sha256_begin();
    sending job = {start(JOB_SINK, BULK_BYTES), BULK_BYTES, &sha, 0};
    unsigned char want[32], got[33];
    size_t len = 0;
    ptrdiff_t n = 0;
    if (!job.st) return 0;
    send_pattern(&job);
    while (job.ok && len < sizeof got &&
           (n = revdial_read(job.st, got + len, sizeof got - len)) > 0)
        len += (size_t)n;
    revdial_close(job.st);
    sha256_end(&sha, want);
    if (!job.ok) return 0;
    if (n < 0) return fail("reading the checksum: %s", revdial_strerror((int)n));
    return (len == 32 && memcmp(want, got, 32) == 0) || fail("checksums differ (%zu bytes)", len);
}

static int check_download(void)
{
    revdial_stream *st = start(JOB_SOURCE, BULK_BYTES);
    int ok = st && expect_pattern(st, BULK_BYTES);
    revdial_close(st);
    return ok;
}

static int check_half_close(void)
{
    sending job = {start(JOB_COUNT, -1), 100000, NULL, 0};
    char text[32] = "";
    int ok;
    if (!job.st) return 0;
    send_pattern(&job);
    ok = job.ok && expect_text(job.st, text, sizeof text);
    revdial_close(job.st);
    return ok && (strcmp(text, "100000") == 0 || fail("the peer counted \"%s\"", text));
}

// How many streams the peer saw reset, or -1.
static int ask_resets(void)
{
    revdial_stream *st = start(JOB_RESETS, -1);
    char text[32] = "";
    int ok = st && expect_text(st, text, sizeof text);
    revdial_close(st);
    return ok ? atoi(text) : -1;
}

static int check_reset_by_us(void)
{
    const struct timespec pause = {0, 20 * 1000 * 1000};
    int before = ask_resets(), after = -1;
    revdial_stream *st = start(JOB_ECHO, -1);
    char back[5];
    int reset = -1;
    if (before < 0 || !st) return 0;
    if (revdial_write(st, "hello", 5) == 5 && revdial_read(st, back, sizeof back) > 0)
        reset = revdial_reset(st, REVDIAL_RESET_CANCEL);
    if (revdial_read(st, back, sizeof back) > 0) reset = -1;
    revdial_close(st);
    if (reset != 0) return fail("no echo before the reset, or bytes after it");
    for (int i = 0; i < 500; i++) {  // the peer's thread has to get there: 10 s at most
        after = ask_resets();
        if (after != before) break;
        nanosleep(&pause, NULL);
    }
    return after == before + 1 || fail("the peer saw %d resets, then %d", before, after);
}

// The peer closes with bytes unread, and resets the stream when we do not close as well: reading
// gives EOF if its FIN came first, and writing fails when the RST has come.
static int check_reset_by_peer(void)
{
    static unsigned char zeros[4096];
    const struct timespec pause = {0, 50 * 1000 * 1000};
    revdial_stream *st = start(JOB_ABORT, -1);
    ptrdiff_t n = 0;
    if (!st) return 0;
    if (revdial_write(st, zeros, 64) != 64) fail("write failed before the reset");
    n = revdial_read(st, zeros, sizeof zeros);
    if (n != (is_abrupt ? REVDIAL_ERESET : 0)) fail("reading gave %td", n);
    n = 0;
    for (int i = 0; i < 400 && n >= 0; i++) {  // 20 s at most, far less than the peer's window
        n = revdial_write(st, zeros, 16);
        nanosleep(&pause, NULL);
    }
    revdial_close(st);
    if (n != REVDIAL_ERESET) return fail("writing gave %td", n);
    return why[0] == '\0';
}

static pid_t peer_pid;

// Last: the peer is killed in mid-transfer. The reader must see an error, never EOF.
static int check_killed_peer(void)
{
    static unsigned char buf[BUF_BYTES];
    revdial_stream *st = start(JOB_SOURCE, (int64_t)1 << 40);
    ptrdiff_t n = 1;
    if (!st) return 0;
    for (uint64_t total = 0; n > 0; total += (uint64_t)n) {
        if (total > 1 << 20 && peer_pid > 0) {
            kill(peer_pid, SIGKILL);
            waitpid(peer_pid, NULL, 0);
            peer_pid = 0;
        }
        n = revdial_read(st, buf, sizeof buf);
        if (n < 0) break;
    }
    revdial_close(st);
    if (n == 0) return fail("EOF after a kill: a truncated stream looks whole");
    return n == REVDIAL_ELOST || n == REVDIAL_ERESET || fail("reading gave %td", n);
}

typedef struct check {
    const char *name;
    int (*run)(void);
} check;

static const check checks[] = {
    {"echo", check_echo},
    {"empty_echo", check_empty_echo},
    {"200_streams_at_once", check_many_at_once},
    {"64_MB_to_the_backend", check_upload},
    {"64_MB_from_the_backend", check_download},
    {"64_MB_both_ways_on_one_stream", check_both_ways},
    {"half_close", check_half_close},
    {"reset_by_us_reaches_the_backend", check_reset_by_us},
    {"reset_by_the_backend_fails_our_writes", check_reset_by_peer},
    {"1000_streams_in_a_row", check_in_a_row},
    {"killed_backend_is_an_error_not_EOF", check_killed_peer},
};

static int run_checks(void)
{
    int passed = 0, failed = 0;
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        why[0] = '\0';
        if (checks[i].run()) {
            passed++;
            printf("ok %s\n", checks[i].name);
        } else {
            failed++;
            printf("FAIL %s: %s\n", checks[i].name, why);
        }
        fflush(stdout);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed;
}

static void log_line(void *ud, int level, const char *event, const char *msg)
{
    (void)ud;
    fprintf(stderr, "drive: %d %s: %s\n", level, event, msg);
}

static revdial_proxy *open_proxy(char *url, size_t size)
{
    const revdial_credential credential = {token, "peer", "peer", 0};
    revdial_proxy_config cfg = {0};
    revdial_err err = {0};
    revdial_proxy *p;
    char address[64];
    cfg.listen = "127.0.0.1:0";
    cfg.credentials = &credential;
    cfg.credential_count = 1;
    cfg.common.log = log_line;
    p = revdial_proxy_start(&cfg, &err);
    if (!p) {
        fprintf(stderr, "drive: %s\n", err.msg);
        return NULL;
    }
    if (revdial_proxy_address(p, 0, address, sizeof address) < 0) address[0] = '\0';
    snprintf(url, size, "http://%s/revdial", address);
    return p;
}

int main(int argc, char **argv)
{
    char url[128];
    int failed = 1;
    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: drive PEER [abrupt]\n");
        return 2;
    }
    is_abrupt = argc == 3;
    proxy = open_proxy(url, sizeof url);
    if (!proxy) return 1;
    peer_pid = fork();
    if (peer_pid == 0) {
        execl(argv[1], argv[1], "backend", "--url", url, "--name", "peer", "--token", token,
              (char *)NULL);
        _exit(127);
    }
    if (peer_pid < 0)
        fprintf(stderr, "drive: fork: %s\n", strerror(errno));
    else if (revdial_proxy_wait(proxy, "peer", 1, PATIENCE_MS) < 1)
        fprintf(stderr, "drive: the peer did not come\n");
    else
        failed = run_checks();
    if (peer_pid > 0) {
        kill(peer_pid, SIGTERM);
        waitpid(peer_pid, NULL, 0);
    }
    revdial_proxy_stop(proxy);
    return failed != 0;
}
