// The value of Authorization at a proxy, and of a challenge at a backend. Only who shows the secret
// is let in; no challenge makes a backend say a second line, or its password.
#define REVDIAL_NO_RUNTIME
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include <stdio.h>

#include "test.h"

#include "fuzz.h"

static const revdial_credential rows[] = {
    {"t0ken-of-many-bytes", "r", "*", REVDIAL_AUTH_BEARER},
    {"pass-of-many-bytes", "alice", "*", REVDIAL_AUTH_BASIC | REVDIAL_AUTH_DIGEST}};

static int has(const void *data, size_t len, const char *text)
{
    return memmem(data, len, text, strlen(text)) != NULL;
}

// Returns 1 if the proxy would let it in.
static int judge_value(const uint8_t *value, size_t len)
{
    char head[FUZZ_MAX + 200];
    revdial_engine_config cfg = {.role = REVDIAL_ROLE_PROXY, .auth_schemes = 7, .seed = 1};
    revdial_event ev;
    int verdict = REVDIAL_EAUTH;
    cfg.nonce = "00112233445566778899aabbccddeeff";
    revdial_engine *e = revdial_engine_new(&cfg, 1, NULL);
    int n = snprintf(head, sizeof head,
                     "GET /revdial HTTP/1.1\r\nHost: h\r\nConnection: Upgrade"
                     "\r\nUpgrade: revdial\r\nAuthorization: ");
    memcpy(head + n, value, len);
    memcpy(head + n + (int)len, "\r\n\r\n", 4);
    FUZZ_CHECK(e != NULL);
    revdial_engine_input(e, head, (size_t)n + len + 4, 2);
    while (revdial_engine_event(e, &ev)) {
        if (ev.type != REVDIAL_EV_AUTH) continue;
        FUZZ_CHECK(ev.auth->secret && ev.auth->user && ev.auth->name);
        FUZZ_CHECK((ev.auth->scheme == REVDIAL_AUTH_DIGEST) == (ev.auth->digest != NULL));
        verdict = revdial_auth_verify(ev.auth, rows, 2, NULL);
    }
    revdial_engine_free(e);
    return verdict == REVDIAL_OK;
}

// What a backend says to that challenge.
static void answer_challenge(const char *challenge)
{
    revdial_engine_config cfg = {.role = REVDIAL_ROLE_BACKEND,
                                 .host = "h",
                                 .name = "cam-1",
                                 .user = "alice",
                                 .secret = "pass-of-many-bytes",
                                 .auth_schemes = REVDIAL_AUTH_DIGEST,
                                 .seed = 1};
    struct iovec iov[4];
    char said[16384];
    size_t len = 0, lines = 0;
    cfg.challenge = challenge;
    revdial_engine *e = revdial_engine_new(&cfg, 1, NULL);
    if (!e) return;  // it makes no sense
    int n = revdial_engine_output(e, iov, 4);
    for (int i = 0; i < n; i++) {
        FUZZ_CHECK(len + iov[i].iov_len < sizeof said);
        memcpy(said + len, iov[i].iov_base, iov[i].iov_len);
        len += iov[i].iov_len;
    }
    for (size_t i = 0; i < len; i++) lines += said[i] == '\n';
    FUZZ_CHECK(lines <= 12);
    if (!strstr(challenge, "pass-of")) FUZZ_CHECK(!has(said, len, "pass-of-many-bytes"));
    FUZZ_CHECK(!has(said, len, "\nAuthorization: Basic"));
    FUZZ_CHECK(len < 4 || !memmem(said, len - 1, "\r\n\r\n", 4));  // at the end only
    revdial_engine_free(e);
}

static void fuzz_one(const uint8_t *data, size_t len)
{
    char text[FUZZ_MAX + 1];
    memcpy(text, data, len);
    text[len] = '\0';
    if (judge_value(data, len))
        FUZZ_CHECK(has(data, len, "t0ken-of-many-bytes") ||
                   has(data, len, "YWxpY2U6cGFzcy1vZi1tYW55LWJ5dGVz") || has(data, len, "igest"));
    answer_challenge(text);
}

static void fuzz_seeds(void)
{
    fuzz_seed_text("Bearer t0ken-of-many-bytes");
    fuzz_seed_text("Basic YWxpY2U6cGFzcy1vZi1tYW55LWJ5dGVz");
    fuzz_seed_text("bAsIc  YWxpY2U=");
    fuzz_seed_text(
        "Digest username=\"alice\", realm=\"revdial\", nonce=\"00112233445566778899aabbccddeeff\", "
        "uri=\"/revdial\", qop=auth, nc=00000001, cnonce=\"0a\\\"b\", response=\"0123456789abcdef"
        "0123456789abcdef0123456789abcdef0123456789abcdef\", algorithm=SHA-256, opaque=\"x\", "
        "userhash=false");
    fuzz_seed_text("Digest realm=\"r\", nonce=\"n\", algorithm=SHA-256, qop=\"auth\"");
    fuzz_seed_text("Digest realm=\"a\\\\b\", nonce=\"n\", qop=\"auth-int, auth\", stale=TRUE, "
                   "domain=\"/ http://x\", algorithm=SHA-256, charset=UTF-8");
    fuzz_seed_text("Basic realm=\"x\", Digest nonce=n, realm=r, algorithm=MD5");
}
