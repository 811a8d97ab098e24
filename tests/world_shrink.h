// Shortens the script of a seed that fails. Each try runs in a child process, so that a crash is a
// way to fail like any other.
#ifndef REVDIAL_TEST_WORLD_SHRINK_H
#define REVDIAL_TEST_WORLD_SHRINK_H

#include <sys/wait.h>

#include "world_run.h"

enum { SHRINK_TRIES = 300, SHRINK_SECONDS = 20 };

// The first words of a reason, without its numbers: what tells one way to fail from another.
static void shrink_kind(const char *why, char *kind, size_t size)
{
    size_t n = 0;
    for (; *why && n + 1 < size && n < 60 && *why != ';'; why++)
        if (*why < '0' || *why > '9') kind[n++] = *why;
    kind[n] = '\0';
}

// Returns 1 and the reason if the script fails.
static int shrink_try(const script *s, char *why, size_t size)
{
    static char *shared;
    int status;
    if (!shared)
        shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) abort();
    shared[0] = '\0';
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        uint64_t hash;
        alarm(SHRINK_SECONDS);
        _exit(!world_run(s, 0, &hash, shared, 600));
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid) abort();
    if (WIFSIGNALED(status)) snprintf(shared, 600, "killed by signal %d", WTERMSIG(status));
    snprintf(why, size, "%s", shared);
    return status != 0;
}

static void shrink_cut(const script *from, int at, int count, script *to)
{
    *to = *from;
    memmove(to->ops + at, to->ops + at + count,
            (size_t)(from->count - at - count) * sizeof *to->ops);
    to->count -= count;
}

// Does the shorter script fail in the same way? Then it is taken.
static int shrink_take(script *s, const script *shorter, const char *kind)
{
    char why[600], now[80];
    if (!shrink_try(shorter, why, sizeof why)) return 0;
    shrink_kind(why, now, sizeof now);
    if (strcmp(now, kind)) return 0;
    *s = *shorter;
    return 1;
}

// Leaves out halves, quarters and so on down to single operations, and then what makes a run less
// simple, as long as it fails.
static void shrink(script *s, const char *why)
{
    char kind[80];
    int tries = 0;
    script shorter;
    shrink_kind(why, kind, sizeof kind);
    for (int size = s->count; size >= 1; size = size == 1 ? 0 : (size + 1) / 2)
        for (int at = 0; at < s->count && tries < SHRINK_TRIES; tries++) {
            int n = at + size > s->count ? s->count - at : size;
            shrink_cut(s, at, n, &shorter);
            if (!shrink_take(s, &shorter, kind)) at += n;
        }
    for (unsigned bit = 1; bit < SIMPLE_END; bit <<= 1) {
        shorter = *s;
        shorter.simple |= bit;
        shrink_take(s, &shorter, kind);
    }
}

static void script_print(const script *s)
{
    printf("  play again: build/test_world --seed %llu --keep ", (unsigned long long)s->seed);
    for (int i = 0; i < s->count; i++) printf("%s%d", i ? "," : "", s->ops[i].number);
    printf("%s --simple %u --trace\n", s->count ? "" : "none", s->simple);
    for (int i = 0; i < s->count; i++)
        printf("    {OP_%s, %d, %lld, %lluu},\n", op_kinds[s->ops[i].kind].name, s->ops[i].number,
               (long long)s->ops[i].wait_us, (unsigned long long)s->ops[i].seed);
}

#endif
