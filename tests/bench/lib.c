// The library alone: two processes, one TCP connection on loopback, in turn with bare sockets that
// do the same.
//     build/bench/lib [-r ROUNDS] [-s FIRST] [-t SECONDS] [-w WAY,...] [-m] [JOB...]
// Prints medians: what was done in a second and its ratio to the first way (bare sockets), the
// median and the 99th percentile of one, and the processor time that both processes spent on one.
// -m prints a line of key=value for each measurement instead. Rounds are numbered from FIRST, who
// begins depends on the number.
//
// The ways:
//   bare      blocking sockets, one for each stream, a thread for each on both sides
//   revdial   revdial_read() and revdial_write(), a thread for each stream on both sides
//   spin      the same, and who waits polls for a while before it sleeps
//   two       as revdial, with two sessions on two I/O threads
//   poll      one thread on each side, revdial_poll()
//   engine    revdial_engine_*() in an epoll loop of the application, one thread on each side
#define REVDIAL_IMPLEMENTATION
#include "../../revdial.h"

#include "lib.h"
#include "lib_engine.h"
#include "lib_threads.h"

#include <getopt.h>

static const lib_job jobs[] = {
    {"bulk1", KIND_BULK, 1, 0, 0},           {"bulk16", KIND_BULK, 16, 0, 0},
    {"ping1", KIND_PING, 1, 0, 0},           {"ping1000", KIND_PING, 1000, 0, 0},
    {"open1", KIND_OPEN, 1, 0, 0},           {"open64", KIND_OPEN, 64, 0, 0},
    {"idle10", KIND_PING, 1, 10, 0},         {"idle100", KIND_PING, 1, 100, 0},
    {"idle1000", KIND_PING, 1, 1000, 0},     {"idle10000", KIND_PING, 1, 10000, 0},
    {"asleep", KIND_ASLEEP, 0, 100, 0},      {"others1000", KIND_PING, 1, 0, 1000},
    {"asleep1000", KIND_ASLEEP, 0, 0, 1000},
};

enum { ALL_KINDS = 1 << KIND_BULK | 1 << KIND_PING | 1 << KIND_OPEN | 1 << KIND_ASLEEP };
enum { BUSY = 1 << KIND_BULK | 1 << KIND_PING };
enum { ANSWERS = 1 << KIND_PING | 1 << KIND_OPEN };
#define LIB_SPIN_US 50

static const lib_way ways[] = {
    {"bare", serve_bare, drive_threads, ALL_KINDS, 0, 1, 0, 0},
    {"revdial", serve_revdial, drive_threads, ALL_KINDS, 0, 1, 0, 0},
    {"spin", serve_revdial, drive_threads, ALL_KINDS, 0, 1, LIB_SPIN_US, 0},
    {"two", serve_revdial, drive_threads, BUSY, 16, 2, 0, 0},
    {"poll", serve_revdial, drive_poll, ANSWERS, 64, 1, 0, 1},
    {"engine", serve_engine, drive_engine, BUSY | ANSWERS, 0, 1, 0, 0},
};
enum { JOB_COUNT = sizeof jobs / sizeof jobs[0], WAY_COUNT = sizeof ways / sizeof ways[0] };

typedef struct lib_options {
    int rounds;
    int first;  // number of the first of them
    double seconds;
    const char *ways;  // NULL = all
    int lines;
} lib_options;

// Of one measurement. Rates are per second, MB for bulk; `all` has what came before it counted.
typedef struct lib_figures {
    double rate, p50_us, p99_us, cpu_us, memory, all;
} lib_figures;
enum { FIGURES = sizeof(lib_figures) / sizeof(double), ROUNDS_MAX = 99 };

static void start_servers(lib_run *r)
{
    for (unsigned i = 0; i < r->way->sessions; i++) {
        int ends[2];
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) bench_die("socketpair");
        fflush(stdout);
        r->servers[i] = fork();
        if (r->servers[i] < 0) bench_die("fork");
        if (r->servers[i] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            close(ends[0]);
            r->way->serve(r, ends[1]);
            _exit(1);
        }
        close(ends[1]);
        r->ctl[i] = ends[0];
    }
}

static void end_servers(lib_run *r)
{
    for (unsigned i = 0; i < r->way->sessions; i++) {
        kill(r->servers[i], SIGKILL);
        waitpid(r->servers[i], NULL, 0);
        close(r->ctl[i]);
    }
}

static lib_figures figures_of(lib_run *r)
{
    lib_figures f = {.memory = r->memory};
    double seconds = r->job->kind == KIND_BULK ? (double)(r->last - r->start) / 1e9 : r->seconds;
    double unit = r->job->kind == KIND_BULK ? BENCH_MB : 1;
    bench_sort(&r->times);
    f.rate = (double)r->done / unit / seconds;
    f.p50_us = bench_quantile_us(&r->times, 0.5);
    f.p99_us = bench_quantile_us(&r->times, 0.99);
    // Asleep there is nothing to divide by but the second.
    double slept = (double)(r->last - r->begun) / 1e9;
    f.all = r->job->kind == KIND_ASLEEP ? slept : (double)r->all / unit;
    f.cpu_us = f.all > 0 ? (double)r->cpu / 1e3 / f.all : 0;
    return f;
}

static lib_figures measure(const lib_way *way, const lib_job *job, double seconds)
{
    lib_run r = {.job = job, .way = way, .seconds = seconds, .memory = -1};
    r.times.cap = SAMPLES_MAX;
    r.times.ns = bench_alloc(r.times.cap, sizeof *r.times.ns);
    start_servers(&r);
    way->drive(&r);
    end_servers(&r);
    lib_figures f = figures_of(&r);
    free(r.times.ns);
    return f;
}

static int is_listed(const char *list, const char *name)
{
    size_t len = strlen(name);
    for (const char *at = list; at && (at = strstr(at, name)); at += len)
        if ((at == list || at[-1] == ',') && (at[len] == ',' || at[len] == '\0')) return 1;
    return 0;
}

static int is_wanted(const lib_options *o, const lib_way *way, const lib_job *job)
{
    if (o->ways && !is_listed(o->ways, way->name)) return 0;
    if (job->others && way->serve != serve_revdial) return 0;
    return way->kinds & 1U << job->kind && job->streams >= way->streams_min;
}

static int by_size(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

// Each figure by itself.
static lib_figures median(const lib_figures *of, int count)
{
    double result[FIGURES], column[ROUNDS_MAX];
    lib_figures f;
    for (size_t i = 0; i < FIGURES; i++) {
        for (int k = 0; k < count; k++) column[k] = ((const double *)&of[k])[i];
        qsort(column, (size_t)count, sizeof *column, by_size);
        result[i] = (column[(count - 1) / 2] + column[count / 2]) / 2;
    }
    memcpy(&f, result, sizeof f);
    return f;
}

static void print_line(const lib_job *job, const lib_way *way, const lib_figures *f)
{
    printf("%s way=%s rate=%.2f p50_us=%.2f p99_us=%.2f cpu_us=%.3f memory=%.1f all=%.3f\n",
           job->name, way->name, f->rate, f->p50_us, f->p99_us, f->cpu_us, f->memory, f->all);
    fflush(stdout);
}

static void print_row(const lib_job *job, const lib_way *way, const lib_figures *f, double first)
{
    static const char *const units[] = {"MB/s", "messages/s", "opens/s", ""};
    printf("%-10s %-8s %10.0f %-10s", job->name, way->name, f->rate, units[job->kind]);
    if (first > 0) printf(" %6.2f x", f->rate / first);
    if (f->p50_us > 0) printf("  p50 %8.1f us  p99 %8.1f us", f->p50_us, f->p99_us);
    printf("  cpu %8.2f us", f->cpu_us);
    if (f->memory >= 0) printf("  %6.0f bytes each", f->memory);
    putchar('\n');
    fflush(stdout);
}

// Every way once in each round; who begins changes.
static void run_job(const lib_options *o, const lib_job *job)
{
    static lib_figures all[WAY_COUNT][ROUNDS_MAX];
    double first = 0;
    for (int round = 0; round < o->rounds; round++) {
        for (int i = 0; i < WAY_COUNT; i++) {
            int w = (o->first + round + i) % WAY_COUNT;
            if (!is_wanted(o, &ways[w], job)) continue;
            all[w][round] = measure(&ways[w], job, o->seconds);
            if (o->lines) print_line(job, &ways[w], &all[w][round]);
        }
    }
    for (int w = 0; w < WAY_COUNT && !o->lines; w++) {
        if (!is_wanted(o, &ways[w], job)) continue;
        lib_figures f = median(all[w], o->rounds);
        if (first <= 0) first = f.rate;
        print_row(job, &ways[w], &f, first);
    }
}

static int usage(void)
{
    fprintf(stderr,
            "usage: lib [-r ROUNDS] [-s FIRST] [-t SECONDS] [-w WAY,...] [-m] [JOB...]\njobs:");
    for (int i = 0; i < JOB_COUNT; i++) fprintf(stderr, " %s", jobs[i].name);
    fprintf(stderr, "\nways:");
    for (int i = 0; i < WAY_COUNT; i++) fprintf(stderr, " %s", ways[i].name);
    fputc('\n', stderr);
    return 2;
}

static const lib_job *find_job(const char *name)
{
    for (int i = 0; i < JOB_COUNT; i++)
        if (!strcmp(jobs[i].name, name)) return &jobs[i];
    return NULL;
}

int main(int argc, char **argv)
{
    lib_options o = {.rounds = 5, .seconds = 1};
    for (int c; (c = getopt(argc, argv, "r:s:t:w:m")) != -1;) {
        switch (c) {
        case 'r': o.rounds = atoi(optarg); break;
        case 's': o.first = atoi(optarg); break;
        case 't': o.seconds = atof(optarg); break;
        case 'w': o.ways = optarg; break;
        case 'm': o.lines = 1; break;
        default: return usage();
        }
    }
    if (o.rounds < 1 || o.rounds > ROUNDS_MAX || o.first < 0 || o.seconds <= 0) return usage();
    bench_raise_limits();
    for (int i = optind; i < argc; i++)
        if (!find_job(argv[i])) return usage();
    for (int i = optind; i < argc; i++) run_job(&o, find_job(argv[i]));
    for (int i = 0; i < JOB_COUNT && optind == argc; i++) run_job(&o, &jobs[i]);
    return 0;
}
