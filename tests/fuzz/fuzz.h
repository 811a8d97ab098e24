// What a fuzz target needs. It includes this last and defines
//     static void fuzz_one(const uint8_t *data, size_t len)      which aborts if something is wrong
//     static void fuzz_seeds(void)                               which calls fuzz_seed() for each
// With libFuzzer (FUZZ_LIBFUZZER) FUZZ_SEEDS=DIRECTORY writes the seeds there and ends. Without it
// a target is a program that mutates them by itself:     TARGET [-seconds=N] [-seed=N] [FILE...]
// Files are replayed, and nothing else is done then. An input that ends it is left in
// $FUZZ_CRASH, and can be given back to it.
#ifndef REVDIAL_FUZZ_H
#define REVDIAL_FUZZ_H

#include <fcntl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

static void fuzz_one(const uint8_t *data, size_t len);
static void fuzz_seeds(void);

enum { FUZZ_MAX = 4096, FUZZ_SEEDS_MAX = 256 };

#define FUZZ_CHECK(cond) \
    do { \
        if (!(cond)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond); \
            abort(); \
        } \
    } while (0)

static struct {
    uint8_t bytes[FUZZ_MAX];
    size_t len;
} fuzz_known[FUZZ_SEEDS_MAX];
static size_t fuzz_known_count;

static void fuzz_seed(const void *data, size_t len)
{
    if (len > FUZZ_MAX || fuzz_known_count == FUZZ_SEEDS_MAX) abort();
    memcpy(fuzz_known[fuzz_known_count].bytes, data, len);
    fuzz_known[fuzz_known_count++].len = len;
}

static inline void fuzz_seed_text(const char *text)
{
    fuzz_seed(text, strlen(text));
}

static inline void fuzz_seed_after(uint8_t first, const void *data, size_t len)
{
    uint8_t both[FUZZ_MAX];
    if (len >= FUZZ_MAX) abort();
    both[0] = first;
    memcpy(both + 1, data, len);
    fuzz_seed(both, len + 1);
}

#ifdef FUZZ_LIBFUZZER
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    const char *dir = getenv("FUZZ_SEEDS");
    (void)argc, (void)argv;
    if (!dir) return 0;
    fuzz_seeds();
    for (size_t i = 0; i < fuzz_known_count; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/seed-%03zu", dir, i);
        FILE *f = fopen(path, "wb");
        if (!f || fwrite(fuzz_known[i].bytes, 1, fuzz_known[i].len, f) != fuzz_known[i].len ||
            fclose(f) != 0)
            exit(1);
    }
    exit(0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    if (len <= FUZZ_MAX) fuzz_one(data, len);
    return 0;
}
#else
static uint8_t fuzz_input[FUZZ_MAX];
static volatile size_t fuzz_input_len;

static void fuzz_on_crash(int sig)
{
    const char *path = getenv("FUZZ_CRASH");
    int fd = open(path ? path : "build/crash", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd >= 0 && write(fd, fuzz_input, fuzz_input_len) >= 0) close(fd);
    signal(sig, SIG_DFL);
    raise(sig);
}

static void fuzz_run(void)
{
    uint8_t *exact =
        malloc(fuzz_input_len ? fuzz_input_len : 1);  // so that a sanitizer sees its end
    if (!exact) abort();
    memcpy(exact, fuzz_input, fuzz_input_len);
    fuzz_one(exact, fuzz_input_len);
    free(exact);
}

// One of a few small changes, some of which take a piece of another seed.
static void fuzz_mutate(test_rng *rng)
{
    static const uint8_t telling[] = {0, 1, 0x7f, 0x80, 0xff, '\r', '\n', ' ', ':', '"', ',', '='};
    size_t len = fuzz_input_len, at = test_below(rng, len + 1), n = 1 + test_below(rng, 16);
    size_t k = test_below(rng, fuzz_known_count), from = test_below(rng, fuzz_known[k].len + 1);
    switch (test_below(rng, 6)) {
    case 0:
        if (at < len) fuzz_input[at] ^= (uint8_t)(1u << test_below(rng, 8));
        break;
    case 1:
        if (at < len) fuzz_input[at] = telling[test_below(rng, sizeof telling)];
        break;
    case 2:
        if (at < len) fuzz_input[at] = (uint8_t)test_below(rng, 256);
        break;
    case 3:  // remove
        if (n > len - at) n = len - at;
        memmove(fuzz_input + at, fuzz_input + at + n, len - at - n);
        fuzz_input_len = len - n;
        break;
    case 4:  // repeat
        if (n > len - at) n = len - at;
        if (len + n > FUZZ_MAX) break;
        memmove(fuzz_input + at + n, fuzz_input + at, len - at);
        fuzz_input_len = len + n;
        break;
    default:  // insert
        n = test_below(rng, fuzz_known[k].len - from + 1);
        if (len + n > FUZZ_MAX) break;
        memmove(fuzz_input + at + n, fuzz_input + at, len - at);
        memcpy(fuzz_input + at, fuzz_known[k].bytes + from, n);
        fuzz_input_len = len + n;
    }
}

static int fuzz_replay(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f) return 0;
    fuzz_input_len = fread(fuzz_input, 1, sizeof fuzz_input, f);
    fclose(f);
    fuzz_run();
    return 1;
}

int main(int argc, char **argv)
{
    long seconds = 5, files = 0;
    unsigned long runs = 0, seed = 1;
    signal(SIGABRT, fuzz_on_crash);
    signal(SIGSEGV, fuzz_on_crash);
    signal(SIGALRM, fuzz_on_crash);  // a run that does not end
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "-seconds=", 9) == 0)
            seconds = atol(argv[i] + 9);
        else if (strncmp(argv[i], "-seed=", 6) == 0)
            seed = strtoul(argv[i] + 6, NULL, 10);
        else if (!fuzz_replay(argv[i]))
            return 2;
        else
            files++;
    }
    if (files) return 0;
    fuzz_seeds();
    test_rng rng = test_rng_seeded(seed);
    for (time_t until = time(NULL) + seconds; time(NULL) < until; runs++) {
        size_t k = runs % fuzz_known_count;
        size_t changes = runs < fuzz_known_count ? 0 : 1 + test_below(&rng, 8);
        memcpy(fuzz_input, fuzz_known[k].bytes, fuzz_known[k].len);
        fuzz_input_len = fuzz_known[k].len;
        while (changes-- > 0) fuzz_mutate(&rng);
        alarm(10);
        fuzz_run();
    }
    printf("%lu runs\n", runs);
    return 0;
}
#endif
#endif
