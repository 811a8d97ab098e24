// Every place that compares what was presented with what is secret, with the secret's bytes marked
// as undefined: valgrind reports each branch and each address that depends on them. Run by run.sh.
// P7 of the table of threats. What may depend on a secret is listed in verdicts.supp.
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include <stdio.h>
#include <valgrind/memcheck.h>

#include "test.h"

// `len` bytes of a secret, from `text`.
static void taint(void *secret, size_t len)
{
    (void)VALGRIND_MAKE_MEM_UNDEFINED(secret, len);
}

static int known(int verdict)
{
    (void)VALGRIND_MAKE_MEM_DEFINED(&verdict, sizeof verdict);
    return verdict;
}

// A row's hash as the proxy keeps it: only its prefix is no secret.
static void make_row(char *row, const char *prefix, const char *hex)
{
    snprintf(row, 80, "%s%s", prefix, hex);
    taint(row + strlen(prefix), 64);
}

static void hash_of(const char *secret, char hex[RVD_AUTH_HEX_SIZE])
{
    const char *const parts[] = {secret};
    rvd_auth_hash(parts, 1, hex);
}

TEST(valgrind_looks_on)
{
    CHECK(RUNNING_ON_VALGRIND);
}

TEST(P7_equality_looks_at_every_byte)
{
    for (size_t at = 0; at <= 32; at++) {
        uint8_t a[32] = {0}, b[32] = {0};
        if (at < 32) b[at] = 1;
        taint(a, sizeof a);
        taint(b, sizeof b);
        CHECK_INT(known(rvd_base_equal(a, b, sizeof a)), at == 32);
    }
}

// Wrong in the first byte, in the last, in all, and right.
static const char *const guesses[] = {"x3cret", "s3crex", "", "longer than the secret is",
                                      "s3cret"};

TEST(P7_a_token_or_password_is_judged_without_a_branch_on_it)
{
    static const unsigned schemes[] = {REVDIAL_AUTH_BEARER, REVDIAL_AUTH_BASIC};
    for (int s = 0; s < 2; s++) {
        for (size_t i = 0; i < sizeof guesses / sizeof *guesses; i++) {
            char hex[RVD_AUTH_HEX_SIZE], secret[80];
            revdial_credential row = {secret, "alice", "*", schemes[s]};
            revdial_auth_req req = {0};
            hash_of("s3cret", hex);
            make_row(secret, "sha256:", hex);
            req.secret = guesses[i];
            req.user = "alice";
            req.name = "cam-1";
            req.scheme = schemes[s];
            CHECK_INT(known(revdial_auth_verify(&req, &row, 1, NULL)),
                      strcmp(guesses[i], "s3cret") == 0 ? 0 : REVDIAL_EAUTH);
        }
    }
}

TEST(P7_a_digest_is_judged_without_a_branch_on_the_password)
{
    for (size_t i = 0; i < sizeof guesses / sizeof *guesses; i++) {
        char ha1[RVD_AUTH_HEX_SIZE], response[RVD_AUTH_HEX_SIZE], secret[80], proof[65];
        revdial_credential row = {secret, "alice", "*", REVDIAL_AUTH_DIGEST};
        revdial_digest d = {"revdial", "nonce", "/revdial", "00000001", "cnonce", response};
        revdial_auth_req req = {0};
        rvd_auth_ha1("alice", "revdial", guesses[i], ha1);
        rvd_auth_respond(&d, ha1, "GET", response);
        rvd_auth_ha1("alice", "revdial", "s3cret", ha1);
        make_row(secret, "ha1:", ha1);
        req.secret = "";
        req.user = "alice";
        req.name = "cam-1";
        req.scheme = REVDIAL_AUTH_DIGEST;
        req.digest = &d;
        req.proof = proof;
        CHECK_INT(known(revdial_auth_verify(&req, &row, 1, NULL)),
                  strcmp(guesses[i], "s3cret") == 0 ? 0 : REVDIAL_EAUTH);
    }
}

TEST(P7_a_nonce_is_judged_without_a_branch_on_our_key)
{
    static rvd_auth_guard g;
    char nonce[RVD_AUTH_NONCE_SIZE];
    revdial_digest d = {"revdial", nonce, "/revdial", "00000001", "cnonce", ""};
    rvd_auth_guard_init(&g, NULL, 0);
    for (int i = 0; i < 3; i++) {
        rvd_auth_nonce_make(&g, 0, nonce);
        if (i < 2) nonce[i * 31] = nonce[i * 31] == '0' ? '1' : '0';
        taint(g.key, sizeof g.key);
        int may = known(rvd_auth_nonce_take(&g, &d, 0));
        (void)VALGRIND_MAKE_MEM_DEFINED(g.key, sizeof g.key);
        CHECK_INT(may, i == 2);
    }
}

TEST(P7_a_proxys_proof_is_judged_without_a_branch_on_it)
{
    static revdial_engine e;
    for (int i = 0; i < 3; i++) {
        rvd_http_response r;
        char shown[RVD_AUTH_HEX_SIZE];
        memset(&r, 0, sizeof r);
        e.sent_scheme = REVDIAL_AUTH_DIGEST;
        hash_of("proof", e.proof);
        memcpy(shown, e.proof, sizeof shown);
        if (i < 2) shown[i * 63] ^= 1;
        r.proof.at = shown;
        r.proof.len = sizeof shown - 1;
        taint(e.proof, sizeof e.proof - 1);
        CHECK_INT(known(rvd_engine_is_proved(&e, &r)), i == 2);
    }
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
