// What both C ends of the interoperability tests share: the jobs (go/serve.go has the same), the
// bytes that a seed decides, and a SHA-256 that is not the library's own.
#ifndef REVDIAL_INTEROP_JOBS_H
#define REVDIAL_INTEROP_JOBS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

// The first byte of a stream says what to do with it.
enum {
    JOB_ECHO = 'E',    // send back what comes until EOF
    JOB_SINK = 'S',    // u64 count, then so many bytes: answers their SHA-256
    JOB_SOURCE = 'D',  // u64 count: answers so many bytes of pattern(count)
    JOB_COUNT = 'H',   // read to EOF, then answer the number of bytes in decimal
    JOB_ABORT = 'R',   // read a little, then abort the stream
    JOB_RESETS = 'Q'   // answers in decimal how many streams the other end has reset
};

// An endless stream of bytes: xorshift64*, little-endian.
typedef struct pattern {
    uint64_t state, word;
    int left;
} pattern;

static inline pattern pattern_seeded(uint64_t seed)
{
    pattern p = {(seed + 1) * 0x9E3779B97F4A7C15ULL, 0, 0};
    return p;
}

static inline unsigned char pattern_byte(pattern *p)
{
    unsigned char byte;
    if (p->left == 0) {
        p->state ^= p->state >> 12;
        p->state ^= p->state << 25;
        p->state ^= p->state >> 27;
        p->word = p->state * 0x2545F4914F6CDD1DULL;
        p->left = 8;
    }
    byte = (unsigned char)(p->word & 0xff);
    p->word >>= 8;
    p->left--;
    return byte;
}

static inline void pattern_fill(pattern *p, unsigned char *buf, size_t len)
{
    for (size_t i = 0; i < len; i++) buf[i] = pattern_byte(p);
}

static inline int pattern_matches(pattern *p, const unsigned char *buf, size_t len)
{
    int same = 1;
    for (size_t i = 0; i < len; i++) same &= buf[i] == pattern_byte(p);
    return same;
}

static inline uint64_t get_u64(const unsigned char *b)
{
    uint64_t v = 0;
    for (int i = 0; i < 8; i++) v = v << 8 | b[i];
    return v;
}

static inline void put_u64(unsigned char *b, uint64_t v)
{
    for (int i = 7; i >= 0; i--, v >>= 8) b[i] = (unsigned char)(v & 0xff);
}

// FIPS 180-4.
typedef struct sha256 {
    uint32_t h[8];
    uint64_t len;
    unsigned char block[64];
} sha256;

static inline sha256 sha256_begin(void)
{
    sha256 s = {{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab,
                 0x5be0cd19},
                0,
                {0}};
    return s;
}

static inline uint32_t sha256_turn(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

static inline void sha256_block(sha256 *s)
{
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
        0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
        0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
        0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
        0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
        0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
        0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
        0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
        0xc67178f2};
    uint32_t w[64], v[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)(get_u64(s->block + 4 * (i & ~1)) >> (i & 1 ? 0 : 32));
    for (int i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + (sha256_turn(a, 7) ^ sha256_turn(a, 18) ^ a >> 3) + w[i - 7] +
               (sha256_turn(b, 17) ^ sha256_turn(b, 19) ^ b >> 10);
    }
    memcpy(v, s->h, sizeof v);
    for (int i = 0; i < 64; i++) {
        uint32_t e = v[4], a = v[0];
        uint32_t t = v[7] + (sha256_turn(e, 6) ^ sha256_turn(e, 11) ^ sha256_turn(e, 25)) +
                     ((e & v[5]) ^ (~e & v[6])) + k[i] + w[i];
        uint32_t u = (sha256_turn(a, 2) ^ sha256_turn(a, 13) ^ sha256_turn(a, 22)) +
                     ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += t;
        v[0] = t + u;
    }
    for (int i = 0; i < 8; i++) s->h[i] += v[i];
}

static inline void sha256_add(sha256 *s, const unsigned char *buf, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        s->block[s->len++ % 64] = buf[i];
        if (s->len % 64 == 0) sha256_block(s);
    }
}

static inline void sha256_end(sha256 *s, unsigned char out[32])
{
    unsigned char bits[8];
    put_u64(bits, s->len * 8);
    sha256_add(s, (const unsigned char *)"\x80", 1);
    while (s->len % 64 != 56) sha256_add(s, (const unsigned char *)"", 1);
    sha256_add(s, bits, sizeof bits);
    for (int i = 0; i < 32; i++) out[i] = (unsigned char)(s->h[i / 4] >> (24 - 8 * (i % 4)) & 0xff);
}

#endif
