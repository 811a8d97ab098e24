// The head of a request at a proxy's engine and of its answer at a backend's: whole, and cut in two
// kinds of pieces, which must make no difference. Who has no credential gets no 101.
#define REVDIAL_NO_RUNTIME
#define REVDIAL_SELF_CHECK
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include <stdio.h>

#include "test.h"

#include "fuzz.h"

static const revdial_credential rows[] = {{"t0ken-of-many-bytes", "r", "*", REVDIAL_AUTH_BEARER},
                                          {"pass-of-many-bytes", "alice", "*", REVDIAL_AUTH_BASIC},
                                          {"word-of-many-bytes", "bob", "*", REVDIAL_AUTH_DIGEST}};

// What an engine did with its input.
typedef struct outcome {
    int up, dead, code, status;
    char text[200];
    size_t used, said_len;
    char said[4096];
} outcome;

static void engine_take(revdial_engine *e, outcome *out)
{
    struct iovec iov[8];
    int n;
    while ((n = revdial_engine_output(e, iov, 8)) > 0) {
        size_t all = 0;
        for (int i = 0; i < n; i++) {
            for (size_t k = 0; k < iov[i].iov_len && out->said_len < sizeof out->said; k++)
                out->said[out->said_len++] = ((const char *)iov[i].iov_base)[k];
            all += iov[i].iov_len;
        }
        revdial_engine_sent(e, all);
    }
}

static void engine_heed(revdial_engine *e, outcome *out)
{
    revdial_event ev;
    while (revdial_engine_event(e, &ev)) {
        if (ev.type == REVDIAL_EV_UP) out->up = 1;
        if (ev.type == REVDIAL_EV_AUTH)
            revdial_engine_auth(e, revdial_auth_verify(ev.auth, rows, 3, NULL));
        if (ev.type != REVDIAL_EV_DEAD) continue;
        out->dead = 1;
        out->code = ev.code;
        out->status = ev.status;
        snprintf(out->text, sizeof out->text, "%s", ev.text ? ev.text : "");
    }
}

// Up to the end of the handshake.
static void play(int role, const uint8_t *data, size_t len, size_t piece, outcome *out)
{
    test_heap heap = {0};
    revdial_engine_config cfg = {.role = role,
                                 .host = "proxy.test",
                                 .name = "cam-1",
                                 .user = "alice",
                                 .secret = "s3cret-of-the-backend",
                                 .auth_schemes = role == REVDIAL_ROLE_PROXY ? 7 : 4,
                                 .nonce = "00112233445566778899aabbccddeeff",
                                 .seed = 7,
                                 .alloc = test_heap_alloc,
                                 .alloc_ud = &heap};
    cfg.carrier = role == REVDIAL_ROLE_BACKEND && len % 2 ? REVDIAL_CARRIER_WEBSOCKET : 0;
    revdial_engine *e = revdial_engine_new(&cfg, 1, NULL);
    FUZZ_CHECK(e != NULL);
    memset(out, 0, sizeof *out);
    engine_heed(e, out);
    engine_take(e, out);
    while (out->used < len && !out->up && !out->dead) {
        size_t n = len - out->used < piece ? len - out->used : piece;
        ptrdiff_t used = revdial_engine_input(e, data + out->used, n, 2);
        engine_heed(e, out);
        if (used < 0) break;
        out->used += (size_t)used;
    }
    engine_take(e, out);
    FUZZ_CHECK(heap.peak_bytes < 256 * 1024);
    revdial_engine_free(e);
    FUZZ_CHECK(heap.live_blocks == 0 && heap.live_bytes == 0);
}

static int has(const uint8_t *data, size_t len, const char *text)
{
    return memmem(data, len, text, strlen(text)) != NULL;
}

static void fuzz_one(const uint8_t *data, size_t len)
{
    static outcome whole, single, threes;
    for (int role = REVDIAL_ROLE_PROXY; role <= REVDIAL_ROLE_BACKEND; role++) {
        play(role, data, len, SIZE_MAX, &whole);
        play(role, data, len, 1, &single);
        play(role, data, len, 3, &threes);
        // A whole piece may show bytes behind the head, which are refused; single bytes cannot.
        FUZZ_CHECK(whole.up <= single.up && threes.up <= single.up);
        if (whole.up == single.up && !has(data, len, "\r\n\r\n")) {
            FUZZ_CHECK(whole.dead == single.dead && whole.code == single.code);
            FUZZ_CHECK(whole.status == single.status && strcmp(whole.text, single.text) == 0);
            FUZZ_CHECK(whole.said_len == single.said_len);
            FUZZ_CHECK(memcmp(whole.said, single.said, whole.said_len) == 0);
        }
        if (role == REVDIAL_ROLE_PROXY && single.up)
            FUZZ_CHECK(has(data, len, "t0ken-of-many-bytes") ||
                       has(data, len, "YWxpY2U6cGFzcy1vZi1tYW55LWJ5dGVz"));
        if (role == REVDIAL_ROLE_BACKEND) FUZZ_CHECK(!single.up);  // nobody proved the password
    }
}

static void fuzz_seeds(void)
{
#define SEED_ASK \
    "GET /revdial HTTP/1.1\r\nHost: proxy.test\r\nConnection: Upgrade\r\nUpgrade: revdial\r\n"
#define SEED_WS \
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" \
    "Sec-WebSocket-Protocol: revdial\r\n"
    fuzz_seed_text(SEED_ASK "Authorization: Bearer t0ken-of-many-bytes\r\nRevdial-Version: 1\r\n"
                            "Revdial-Name: cam-1\r\nRevdial-Instance: i-1\r\n"
                            "Revdial-Features: rstcode, window=65536, streams=65536\r\n\r\n");
    fuzz_seed_text(SEED_ASK "Authorization: Basic YWxpY2U6cGFzcy1vZi1tYW55LWJ5dGVz\r\n"
                            "Revdial-Name: cam-1\r\n\r\n");
    fuzz_seed_text(SEED_ASK
                   "Authorization: Digest username=\"bob\", realm=\"revdial\", "
                   "nonce=\"00112233445566778899aabbccddeeff\", uri=\"/revdial\", qop=auth, "
                   "nc=00000001, cnonce=\"c\", response=\"0123456789abcdef0123456789abcdef"
                   "0123456789abcdef0123456789abcdef\", algorithm=SHA-256\r\n"
                   "Content-Length: 0\r\nRevdial-Upgrade: revdial\r\nOrigin: http://x\r\n\r\n");
    fuzz_seed_text("GET /revdial HTTP/1.1\r\nHost: h:1\r\nConnection: keep-alive, Upgrade\r\n"
                   "Upgrade: websocket\r\n" SEED_WS "Expect: x\r\nTransfer-Encoding: chunked\r\n"
                   "\r\n\x82\x0c");
    fuzz_seed_text("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
                   "Upgrade: revdial\r\nRevdial-Version: 1\r\nRevdial-Session: 00c0ffee12345678\r\n"
                   "Authentication-Info: rspauth=\"00\", qop=auth\r\n\r\n");
    fuzz_seed_text("HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                   "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
                   "Sec-WebSocket-Protocol: revdial\r\n\r\n");
    fuzz_seed_text("HTTP/1.1 401 Unauthorized\r\nContent-Length: 5\r\nWWW-Authenticate: Digest "
                   "realm=\"r\", nonce=\"n\", algorithm=SHA-256, qop=\"auth,auth-int\", stale=true"
                   "\r\nWWW-Authenticate: Bearer, Basic realm=\"r\"\r\n\r\nnope\n");
    fuzz_seed_text("HTTP/1.1 503 Busy\r\nRetry-After: 17\r\nTransfer-Encoding: chunked\r\n\r\n");
}
