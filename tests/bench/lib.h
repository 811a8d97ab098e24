// What the ways of carrying streams share in tests/bench/lib.c: a job, a measurement, and the link
// to the process that answers. Include revdial.h first.
//
// A stream's first byte says what the other end does with the rest:
//   'E' sends back what comes     'S' counts to EOF and answers with 8 bytes     'I' keeps it open
#ifndef REVDIAL_BENCH_LIB_H
#define REVDIAL_BENCH_LIB_H

#include "bench.h"

#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { MESSAGE_BYTES = 64, WRITE_BYTES = 65536, SAMPLES_MAX = 1 << 20, SERVERS_MAX = 2 };
enum { IDLE_KNOWN = 1000 };  // so many idle streams hide what the first of them brought

typedef enum lib_kind {
    KIND_BULK,   // writes as fast as it can
    KIND_PING,   // writes a message, waits for it to come back
    KIND_OPEN,   // opens a stream, one byte there and back, closes it
    KIND_ASLEEP  // does nothing
} lib_kind;

typedef struct lib_job {
    const char *name;
    lib_kind kind;
    unsigned streams;  // at one time
    unsigned idle;     // and so many more that do nothing
    unsigned others;   // sessions that do nothing beside the one that works
} lib_job;

struct lib_run;
typedef struct lib_way {
    const char *name;
    void (*serve)(const struct lib_run *r, int ctl);  // the process that answers; no return
    void (*drive)(struct lib_run *r);
    unsigned kinds;        // 1 << KIND_*
    unsigned streams_min;  // jobs with fewer say nothing about this way
    unsigned sessions;     // and I/O threads
    unsigned spin_us;
    int polls;
} lib_way;

// One measurement. Times are those of bench_now_ns(); what happens before `start` is not counted.
typedef struct lib_run {
    const lib_job *job;
    const lib_way *way;
    double seconds;
    int64_t begun, start, end;  // it goes on after the end if nothing has been done by then
    int64_t last;   // when the last byte was known to have arrived
    int64_t cpu;    // of all processes, from start to the end of the job
    uint64_t done;  // messages or opens between start and end; bytes from start to last
    uint64_t all;   // the same before start, too
    double memory;  // bytes of one idle stream on our side, < 0 = not known
    bench_samples times;
    pid_t servers[SERVERS_MAX];
    int ctl[SERVERS_MAX];  // to each of them: ports are told
} lib_run;

static inline int64_t lib_cpu_ns(const lib_run *r)
{
    int64_t ns = bench_clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    clockid_t clock;
    for (unsigned i = 0; i < r->way->sessions; i++)
        if (clock_getcpuclockid(r->servers[i], &clock) == 0) ns += bench_clock_ns(clock);
    return ns;
}

// A fifth of the time goes by before anything counts, and not less than a tenth of a second:
// windows grow, threads start.
static inline void lib_begin(lib_run *r)
{
    double warm = r->seconds > 0.5 ? 0.2 * r->seconds : 0.1;
    r->begun = bench_now_ns();
    r->start = r->begun + (int64_t)(warm * 1e9);
    r->end = r->start + (int64_t)(r->seconds * 1e9);
    r->cpu = -lib_cpu_ns(r);
}

static inline void lib_end(lib_run *r)
{
    r->last = bench_now_ns();
    r->cpu += lib_cpu_ns(r);
}

static inline void lib_tell(int ctl, const void *bytes, size_t len)
{
    if (write(ctl, bytes, len) != (ssize_t)len) bench_die("the other process has gone");
}

static inline void lib_hear(int ctl, void *bytes, size_t len)
{
    if (recv(ctl, bytes, len, MSG_WAITALL) != (ssize_t)len) bench_die("the other process has gone");
}

static inline void *lib_thread(void *(*run)(void *), void *arg, pthread_t *thread)
{
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 256 * 1024);
    if (!thread) pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_t ignored;
    errno = pthread_create(thread ? thread : &ignored, &attr, run, arg);
    if (errno) bench_die("thread");
    pthread_attr_destroy(&attr);
    return arg;
}

#endif
