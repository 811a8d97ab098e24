// What an egress proxy answers, and the URL of one: in any pieces, with the same result, and never
// with the password in what is said of it.
#define REVDIAL_NO_RUNTIME
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include <stdio.h>

#include "test.h"

#include "fuzz.h"

static const char *const urls[] = {"http://user:p4ssw0rd@egress.test:3128",
                                   "socks5://user:p4ssw0rd@egress.test:1080",
                                   "http://egress.test:3128", "socks5://egress.test:1080"};

typedef struct outcome {
    int state, retry_after_ms;
    size_t used, said;
    revdial_err err;
} outcome;

static outcome play(const char *url, const uint8_t *data, size_t len, size_t piece)
{
    test_heap heap = {0};
    outcome out;
    memset(&out, 0, sizeof out);
    revdial_egress *v = revdial_egress_new(url, "proxy.test:443", test_heap_alloc, &heap, NULL);
    FUZZ_CHECK(v != NULL);
    while (revdial_egress_state(v, NULL, NULL) == 0) {
        const void *data_out;
        size_t n;
        while ((n = revdial_egress_output(v, &data_out)) > 0) {
            out.said += n;
            revdial_egress_sent(v, n);
        }
        n = len - out.used < piece ? len - out.used : piece;
        size_t used = revdial_egress_input(v, data + out.used, n);
        FUZZ_CHECK(used <= n);
        out.used += used;
        if (n == 0) break;
    }
    out.state = revdial_egress_state(v, &out.err, &out.retry_after_ms);
    FUZZ_CHECK(out.state != 0);
    FUZZ_CHECK(!strstr(out.err.msg, "p4ssw0rd"));
    revdial_egress_free(v);
    FUZZ_CHECK(heap.live_blocks == 0 && heap.live_bytes == 0);
    FUZZ_CHECK(heap.peak_bytes < 64 * 1024);
    return out;
}

static void read_url(const uint8_t *data, size_t len)
{
    char url[FUZZ_MAX + 1];
    revdial_err err = {0};
    memcpy(url, data, len);
    url[len] = '\0';
    revdial_egress *v = revdial_egress_new(url, "proxy.test:443", NULL, NULL, &err);
    if (!v) FUZZ_CHECK(!strstr(err.msg, "p4ssw0rd"));
    if (v)
        FUZZ_CHECK(strchr(revdial_egress_address(v), ':') &&
                   !strchr(revdial_egress_address(v), '@'));
    revdial_egress_free(v);
}

static void fuzz_one(const uint8_t *data, size_t len)
{
    for (size_t i = 0; i < sizeof urls / sizeof *urls; i++) {
        outcome whole = play(urls[i], data, len, SIZE_MAX), single = play(urls[i], data, len, 1);
        if (strstr(whole.err.msg, "before our request")) continue;  // in pieces it was not
        FUZZ_CHECK(whole.state == single.state && whole.used == single.used);
        FUZZ_CHECK(whole.said == single.said || whole.state != 1);
        FUZZ_CHECK(whole.retry_after_ms == single.retry_after_ms);
        FUZZ_CHECK(strcmp(whole.err.msg, single.err.msg) == 0);
    }
    read_url(data, len);
}

static void fuzz_seeds(void)
{
    fuzz_seed_text("HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n\x16\x03");
    fuzz_seed_text("HTTP/1.0 200 OK\r\n\r\n");
    fuzz_seed_text("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 3\r\n"
                   "Proxy-Authenticate: Basic realm=\"x\"\r\n\r\nno\n");
    fuzz_seed_text("HTTP/1.1 503 Busy\r\nRetry-After: 9\r\n\r\n");
    fuzz_seed("\5\2\1\0\5\0\0\1\0\0\0\0\0\0hello", 19);
    fuzz_seed("\5\0\5\0\0\3\4host\0\120", 14);
    fuzz_seed("\5\0\5\5\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24);
    fuzz_seed("\5\377", 2);
    fuzz_seed_text("http://user:p4ssw0rd@[::1]:3128");
    fuzz_seed_text("socks5h://us%20er:p4ssw0rd%40@host.test:1080/");
}
