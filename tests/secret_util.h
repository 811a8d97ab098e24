// Secrets that tests look for in memory, in logs and in errors.
#ifndef REVDIAL_TEST_SECRET_UTIL_H
#define REVDIAL_TEST_SECRET_UTIL_H

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

// A secret that this file can make and recognise, byte by byte, without ever holding it.
enum { HIDDEN_LEN = 24 };
static const uint8_t hidden_mask[HIDDEN_LEN] = {0x51, 0x13, 0x22, 0x7a, 0x4c, 0x05, 0x61, 0x18,
                                                0x33, 0x42, 0x0f, 0x71, 0x2a, 0x5d, 0x66, 0x1b,
                                                0x07, 0x39, 0x44, 0x58, 0x12, 0x6e, 0x23, 0x70};

static inline char hidden_letter(int which, size_t i)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz012345";
    return letters[(hidden_mask[i] * 7 + (int)i * 13 + which * 5) % 32];
}

// The same in base64, as it stands behind "alice:".
static inline char hidden_digit(int which, size_t i)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t n = 0;
    for (size_t k = 0; k < 3; k++) n = n << 8 | (uint8_t)hidden_letter(which, i / 4 * 3 + k);
    return digits[n >> (18 - 6 * (i % 4)) & 63];
}

static inline void hidden_make(char *secret, int which)
{
    for (size_t i = 0; i < HIDDEN_LEN; i++) secret[i] = hidden_letter(which, i);
    secret[HIDDEN_LEN] = '\0';
}

// How often it is in that memory, as it is or as digits of base64.
static inline int hidden_count_as(char form(int which, size_t i), size_t size, const uint8_t *at,
                                  size_t len, int which)
{
    const uint8_t *end = at + len;
    int found = 0;
    while ((size_t)(end - at) >= size) {
        at = memchr(at, form(which, 0), (size_t)(end - at) - size + 1);
        if (!at) break;
        size_t k = 0;
        while (k < size && at[k] == (uint8_t)form(which, k)) k++;
        found += k == size;
        at++;
    }
    return found;
}

static inline int hidden_count(const uint8_t *at, size_t len, int which)
{
    return hidden_count_as(hidden_letter, HIDDEN_LEN, at, len, which) +
           hidden_count_as(hidden_digit, HIDDEN_LEN / 3 * 4, at, len, which);
}

// Looks through all of the process that can be written to, but for the block it reads into.
static inline int hidden_scan(int which)
{
    static uint8_t block[1 << 16];
    int found = 0, memory = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long from, to;
        char rights[8];
        if (sscanf(line, "%lx-%lx %7s", &from, &to, rights) != 3 || rights[1] != 'w') continue;
        if (to - from > 1ul << 28) continue;  // of a sanitizer
        for (unsigned long at = from; at < to;) {
            uintptr_t own = (uintptr_t)block;
            size_t want = to - at < sizeof block ? to - at : sizeof block;
            ssize_t n = at + want > own && at < own + sizeof block
                            ? -1
                            : pread(memory, block, want, (off_t)at);
            if (n > 0) found += hidden_count(block, (size_t)n, which);
            memset(block, 0, sizeof block);
            at += want == sizeof block && at + want < to ? want - 2 * HIDDEN_LEN : want;
        }
    }
    if (maps) fclose(maps);
    close(memory);
    return found;
}

static atomic_int hidden_dirty;  // blocks that were given back with the secret in them

static inline void *hidden_alloc(void *ud, void *ptr, size_t old_size, size_t new_size)
{
    if (ptr && hidden_count(ptr, old_size, *(int *)ud)) atomic_fetch_add(&hidden_dirty, 1);
    if (new_size == 0) {
        free(ptr);
        return NULL;
    }
    void *fresh = malloc(new_size);
    if (fresh && ptr) memcpy(fresh, ptr, old_size < new_size ? old_size : new_size);
    free(ptr);
    return fresh;
}

#endif
