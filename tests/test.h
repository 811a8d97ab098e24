// The tests' own harness: a test is a promise, named as one.
//
//     TEST(window_update_wakes_a_blocked_writer)
//     {
//         REQUIRE(stream != NULL);   // ends this test
//         CHECK_INT(taken, 64);      // notes the failure and goes on
//     }
//
// test_share(10000) is how many of 10000 cases to try: a twentieth, or all if TEST_THOROUGH is set.
//
// Run a test program with words to run only the tests whose names contain one of them, or with
// words behind a '-' to leave out those. The last line is "N passed, N failed".
#ifndef REVDIAL_TEST_H
#define REVDIAL_TEST_H

#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef void test_fn(void);
typedef struct test_case {
    const char *name;
    test_fn *run;
    struct test_case *next;
} test_case;

static test_case *test_first, **test_last = &test_first;
static int test_failures;  // of the test that runs now

static void test_register(test_case *c)
{
    *test_last = c;
    test_last = &c->next;
}

#define TEST(name) \
    static void test_##name(void); \
    __attribute__((constructor)) static void test_register_##name(void) \
    { \
        static test_case c = {#name, test_##name, NULL}; \
        test_register(&c); \
    } \
    static void test_##name(void)

__attribute__((format(printf, 3, 4))) static int test_fail(const char *file, int line,
                                                           const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "  %s:%d: ", file, line);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    test_failures++;
    return 0;
}

static inline uint64_t test_share(uint64_t all)
{
    return getenv("TEST_THOROUGH") || all < 20 ? all : all / 20;
}

#define CHECK(cond) ((cond) ? 1 : test_fail(__FILE__, __LINE__, "%s", #cond))
#define REQUIRE(cond) \
    do { \
        if (!CHECK(cond)) return; \
    } while (0)

static int test_check_int(const char *file, int line, const char *what, long long got,
                          long long want)
{
    return got == want ? 1 : test_fail(file, line, "%s is %lld, not %lld", what, got, want);
}
#define CHECK_INT(got, want) \
    test_check_int(__FILE__, __LINE__, #got, (long long)(got), (long long)(want))

static int test_check_str(const char *file, int line, const char *what, const char *got,
                          const char *want)
{
    if (got && strcmp(got, want) == 0) return 1;
    return test_fail(file, line, "%s is \"%s\", not \"%s\"", what, got ? got : "(null)", want);
}
#define CHECK_STR(got, want) test_check_str(__FILE__, __LINE__, #got, (got), (want))

// Gives access to the helpers a test file may not use without a warning.
static inline void test_use_all(void)
{
    (void)test_check_int;
    (void)test_check_str;
}

// Whoever stops a suite that hangs is told where.
static const char *volatile test_running = "";

static void test_on_term(int sig)
{
    static const char hangs[] = "  stopped in ";
    ssize_t n = write(STDERR_FILENO, hangs, sizeof hangs - 1);
    n += write(STDERR_FILENO, test_running, strlen(test_running));
    n += write(STDERR_FILENO, "\n", 1);
    _exit(n > 0 ? 128 + sig : 1);
}

static int test_is_wanted(const char *name, int argc, char **argv)
{
    int some = 0, named = 0;
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] == '-' && strstr(name, argv[i] + 1)) return 0;
        if (argv[i][0] == '-') continue;
        some = 1;
        named |= strstr(name, argv[i]) != NULL;
    }
    return named || !some;
}

static int test_main(int argc, char **argv)
{
    int passed = 0, failed = 0;
    test_use_all();
    signal(SIGTERM, test_on_term);
    for (test_case *c = test_first; c; c = c->next) {
        if (!test_is_wanted(c->name, argc, argv)) continue;
        test_failures = 0;
        test_running = c->name;
        c->run();
        if (test_failures) {
            failed++;
            printf("FAIL %s\n", c->name);
        } else {
            passed++;
        }
        fflush(stdout);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0 || passed == 0;
}

// An allocator that counts, and that fails the n-th call (once, or from there on).
typedef struct test_heap {
    size_t live_bytes, peak_bytes, live_blocks;
    size_t calls;      // allocations and growths asked for
    size_t fail_at;    // 1 = the first call fails; 0 = none
    int fail_forever;  // every call from fail_at on
} test_heap;

static void *test_heap_alloc(void *ud, void *ptr, size_t old_size, size_t new_size)
{
    test_heap *h = ud;
    if (new_size > old_size) {
        h->calls++;
        if (h->fail_at && (h->calls == h->fail_at || (h->fail_forever && h->calls > h->fail_at)))
            return NULL;
    }
    if (new_size == 0) {
        free(ptr);
        if (ptr) h->live_blocks--;
        h->live_bytes -= old_size;
        return NULL;
    }
    void *fresh = realloc(ptr, new_size);
    if (!fresh) abort();  // the machine itself is out of memory
    if (!ptr) h->live_blocks++;
    h->live_bytes += new_size - old_size;
    if (h->live_bytes > h->peak_bytes) h->peak_bytes = h->live_bytes;
    return fresh;
}

// A small, fast generator with a seed (xorshift64*), so that a failing run can be replayed.
typedef struct test_rng {
    uint64_t state;
} test_rng;

static inline uint64_t test_random(test_rng *r)
{
    r->state ^= r->state >> 12;
    r->state ^= r->state << 25;
    r->state ^= r->state >> 27;
    return r->state * 0x2545F4914F6CDD1DULL;
}
static inline uint64_t test_below(test_rng *r, uint64_t bound)
{
    return bound ? test_random(r) % bound : 0;
}
static inline test_rng test_rng_seeded(uint64_t seed)
{
    test_rng r = {(seed + 1) * 0x9E3779B97F4A7C15ULL};
    test_random(&r);
    return r;
}
static inline void test_heap_use(void)
{
    (void)test_heap_alloc;
}

#endif
