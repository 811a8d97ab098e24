// revdial_tls.h between a proxy and an agent: the rows of the TLS table by their numbers. What
// needs a foreign peer is in peers.sh, what needs no TLS in tests/test_transport.c.
#include "tls_util.h"

#include "flood_util.h"
#include "secret_util.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TLS_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TLS_SANITIZED 1
#endif
#endif
#ifndef TLS_SANITIZED
#define TLS_SANITIZED 0
#endif

// ------------------------------------------------------------------------------------------------
// The clock of mbedTLS and its allocator, in place of libc's. Sanitizers have an allocator already.

static atomic_long tls_clock_offset;

time_t time(time_t *out)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += atomic_load(&tls_clock_offset);
    if (out) *out = t.tv_sec;
    return t.tv_sec;
}

// Every so many allocations of a handshake one fails in a child process, which goes on from there:
// what comes before it is done once for all. The child keeps its parent's number, or its objects
// would refuse to work for it, and gets sockets of its own, with what is under way in them.
static struct {
    long step;  // 0: none does
    int fds[2];
    pid_t parent;
    int is_child;
    long bad;  // the last one whose child ended with a failure, or 0
} tls_split;

#if !TLS_SANITIZED
static atomic_long tls_calloc_left = -1;  // until one fails; -1 = none does
static atomic_long tls_calloc_count;

pid_t getpid(void)
{
    return tls_split.is_child ? tls_split.parent : (pid_t)syscall(SYS_getpid);
}

static void tls_split_sockets(void)
{
    static char buf[65536];
    int own[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, own)) abort();
    for (int i = 0; i < 2; i++) {
        ssize_t n = recv(tls_split.fds[i], buf, sizeof buf, MSG_PEEK);
        if (n > 0 && send(own[!i], buf, (size_t)n, 0) != n) abort();
    }
    for (int i = 0; i < 2; i++)
        if (dup2(own[i], tls_split.fds[i]) < 0 || close(own[i])) abort();
}

static int tls_calloc_splits(long n)
{
    int status = -1;
    if (tls_split.step == 0 || n % tls_split.step) return 0;
    tls_split.parent = getpid();
    pid_t pid = fork();
    if (pid == 0) {
        tls_split.step = 0;
        tls_split.is_child = 1;
        tls_split_sockets();
        return 1;
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status) tls_split.bad = n;
    return 0;
}

#ifdef PROGRAM_TLS_OPENSSL
static void *tls_malloc(size_t size, const char *file, int line)
{
    (void)file;
    (void)line;
    return calloc(1, size);
}

static void *tls_realloc(void *old, size_t size, const char *file, int line)
{
    (void)file;
    (void)line;
    return realloc(old, size);
}

static void tls_free(void *old, const char *file, int line)
{
    (void)file;
    (void)line;
    free(old);
}
#endif

void *__libc_calloc(size_t count, size_t size);
void *calloc(size_t count, size_t size)
{
    long n = atomic_fetch_add(&tls_calloc_count, 1);
    if (atomic_load(&tls_calloc_left) >= 0 && atomic_fetch_sub(&tls_calloc_left, 1) == 0)
        return NULL;
    if (tls_calloc_splits(n)) return NULL;
    return __libc_calloc(count, size);
}
#endif

// ------------------------------------------------------------------------------------------------

static void tls_flow(tls_world *tw)
{
    revdial_err err = {0};
    for (int i = 0; i < 3; i++) {
        revdial_stream *st = world_dial(&tw->w, "bulk", 3000000, &err);
        REQUIRE(st != NULL);
        util_read r = util_read_bulk(st);
        CHECK_INT(r.bytes, 3000000);
        CHECK_INT(r.end, 0);
        CHECK(!r.is_bad);
        revdial_close(st);
    }
}

TEST(streams_flow_over_tls_with_each_kind_of_key)
{
    static const char *const names[] = {"server", "server_rsa"};
    for (int i = 0; i < 2; i++) {
        tls_world *tw = tls_world_new(tls_server(names[i], NULL), tls_client(NULL, "ca.pem"));
        if (tls_world_open(tw)) {
            CHECK(tls_echo(tw, 20000));
            tls_flow(tw);
            CHECK(!tw->has_seen);
        }
        tls_world_free(tw);
    }
}

// The agent's reason for a proxy that has this certificate; nothing secret may have been sent.
static void tls_is_refused(const char *server, const char *name, const char *reason)
{
    tls_world *tw = tls_world_new(tls_server(server, NULL), tls_client(NULL, "ca.pem"));
    util_state last = {0};
    if (tls_world_proxy(tw)) {
        tw->w.acfg.server_name = name;
        if (tls_world_start(tw)) util_log_wait(&tw->w.states, REVDIAL_BACKOFF, 1, &last);
        if (last.code != REVDIAL_ETLS || !strstr(last.msg, reason))
            test_fail(__FILE__, __LINE__, "%s: %d, %s", server, last.code, last.msg);
        CHECK(util_gate_wait(&tw->refused, 1));
        if (!strstr(tw->said, "the peer refuses: ") &&
            (!TLS_HAS_1_3 || !strstr(tw->said, "the peer gave up")))
            test_fail(__FILE__, __LINE__, "%s: the proxy says %s", server, tw->said);
        CHECK_INT(atomic_load(&tw->judged), 0);
    }
    tls_world_free(tw);
}

TEST(D1_a_certificate_that_is_not_good_ends_it_before_any_credential)
{
    tls_is_refused("expired", "localhost", "has expired, by this machine's clock");
    tls_is_refused("future", "localhost", "is not valid yet, by this machine's clock");
    tls_is_refused("self", "localhost", "is self-signed and not one that is trusted");
    tls_is_refused("unknown", "localhost", "is signed by an authority that is not trusted");
}

TEST(D2_only_the_name_that_was_asked_for_will_do)
{
    static const struct {
        const char *server, *name;
        int is_good;
    } rows[] = {
        {"server", "loop.test", 1},     {"server", "a.wild.test", 1}, {"server", "LOCALHOST", 1},
        {"server", "a.b.wild.test", 0}, {"server", "wild.test", 0},   {"server", "localhos", 0},
        {"server", "localhost2", 0},    {"server", "cam-1.test", 0},  {"cn_only", "localhost", 1},
        {"cn_only", "other.test", 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        tls_world *tw;
        if (!rows[i].is_good) {
            tls_is_refused(rows[i].server, rows[i].name, "is for another name than \"");
            continue;
        }
        tw = tls_world_new(tls_server(rows[i].server, NULL), tls_client(NULL, "ca.pem"));
        tw->w.acfg.server_name = rows[i].name;
        if (!tls_world_open(tw)) test_fail(__FILE__, __LINE__, "%s is refused", rows[i].name);
        tls_world_free(tw);
    }
}

TEST(D2_an_address_is_verified_or_refused_before_a_byte_is_sent)
{
    tls_world *tw = tls_world_new(tls_server("address", NULL), tls_client(NULL, "ca.pem"));
    util_state last = {0};
    tw->w.acfg.server_name = NULL;
    if (TLS_VERIFIES_IP) {
        CHECK(tls_world_open(tw));
    } else if (tls_world_proxy(tw) && tls_world_start(tw)) {
        CHECK(util_log_wait(&tw->w.states, REVDIAL_STOPPED, 1, &last));
        CHECK_INT(last.code, REVDIAL_EINVAL);
        CHECK(strstr(last.msg, "cannot verify an address: set server_name") != NULL);
    }
    tls_world_free(tw);
}

// D3, D4: on the factory itself
TEST(D3_D4_a_name_that_is_none_is_refused_by_the_factory)
{
    static char longest[260];
    revdial_tls *client = tls_client(NULL, "ca.pem"), *server = tls_server("server", NULL);
    revdial_transport t;
    revdial_err err = {0};
    memset(longest, 'a', 254);
    for (size_t i = 60; i < 254; i += 60) longest[i] = '.';
    const struct {
        const char *host;
        int code;
    } rows[] = {{NULL, REVDIAL_EINVAL},
                {"", REVDIAL_EINVAL},
                {".", REVDIAL_EINVAL},
                {"loc alhost", REVDIAL_EINVAL},
                {"l\xC3\xB6.test", REVDIAL_EINVAL},
                {longest, REVDIAL_EINVAL},
                {longest + 1, 0},
                {"localhost.", 0}};
    REQUIRE(client && server);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int code = client->wrap(client->ud, 0, rows[i].host, &t, &err);
        if (code != rows[i].code) test_fail(__FILE__, __LINE__, "row %d: %d", (int)i, code);
        if (!code && i + 1 == sizeof rows / sizeof *rows)
            CHECK_STR(((tls_link *)t.ctx)->host, "localhost");
        if (!code) t.do_close(t.ctx);
    }
    CHECK_INT(server->wrap(server->ud, 0, "localhost", &t, &err), REVDIAL_EINVAL);
    revdial_tls_free(client);
    revdial_tls_free(server);
}

// A proxy by hand that answers with an older version.
TEST(D5_a_server_of_an_old_version_is_refused_and_named)
{
    uint8_t hello[5 + 4 + 38] = {22, 3, 2, 0, 42, 2, 0, 0, 38, 3, 2};
    hello[5 + 4 + 35] = 0xC0;  // ECDHE-ECDSA-AES128-SHA
    hello[5 + 4 + 36] = 0x09;
    tls_world *tw = tls_world_new(tls_server("server", NULL), tls_client(NULL, "ca.pem"));
    int port = 0, listener = raw_listen(4, &port);
    util_state last = {0};
    char buf[1024];
    snprintf(tw->w.url, sizeof tw->w.url, "https://127.0.0.1:%d", port);
    tw->w.acfg.url = tw->w.url;
    REQUIRE(tls_world_start(tw));
    int fd = raw_accept(listener);
    CHECK(raw_read(fd, buf, sizeof buf) > 5);
    raw_send(fd, hello, sizeof hello);
    CHECK(util_log_wait(&tw->w.states, REVDIAL_BACKOFF, 1, &last));
    CHECK_INT(last.code, REVDIAL_ETLS);
    if (!strstr(last.msg, "speaks no version that is accepted"))
        test_fail(__FILE__, __LINE__, "it says %s", last.msg);
    close(fd);
    close(listener);
    tls_world_free(tw);
}

static void tls_load(const char *cert, const char *key, const char *ca, const char *reason);

// OpenSSL does not even show them.
TEST(D7_weak_keys_and_hashes_are_refused)
{
#ifdef PROGRAM_TLS_OPENSSL
    tls_load("weak.pem", "weak.key", NULL, "weak.pem: ee key too small");
    tls_load("sha1.pem", "sha1.key", NULL, "sha1.pem: ca md too weak");
#else
    tls_is_refused("weak", "localhost", "is too weak");
    tls_is_refused("sha1", "localhost", "is too weak");
#endif
}

// What a proxy with these authorities says of an agent that shows this certificate, and what the
// agent is told.
static void tls_cam_is_refused_by(const char *ca, const char *cam, const char *reason,
                                  const char *told)
{
    tls_world *tw = tls_world_new(tls_server("server", ca), tls_client(cam, "ca.pem"));
    util_state last = {0};
    if (tls_world_proxy(tw) && tls_world_start(tw)) {
        util_gate_wait(&tw->refused, 1);
        if (!strstr(tw->said, reason))
            test_fail(__FILE__, __LINE__, "%s: the proxy says %s", cam ? cam : "none", tw->said);
        util_log_wait(&tw->w.states, REVDIAL_BACKOFF, 1, &last);
        if (TLS_HAS_1_3 && strstr(last.msg, "the peer gave up")) told = "TLS: ";
        if (!strstr(last.msg, told) || (last.code != REVDIAL_ETLS && last.code != REVDIAL_ELOST))
            test_fail(__FILE__, __LINE__, "%s: the agent says %s", cam ? cam : "none", last.msg);
        CHECK_INT(atomic_load(&tw->judged), 0);
    }
    tls_world_free(tw);
}

static void tls_cam_is_refused(const char *cam, const char *reason, const char *told)
{
    tls_cam_is_refused_by("ca_crl.pem", cam, reason, told);
}

TEST(D8_an_agent_without_a_good_certificate_is_not_heard)
{
    tls_cam_is_refused(NULL, "the peer showed no certificate, and one is required",
                       "wants a certificate from us");
    tls_cam_is_refused("cam_unknown", "is signed by an authority that is not trusted", "TLS: ");
    tls_cam_is_refused("cam_expired", "has expired", "TLS: ");
    tls_cam_is_refused("cam_revoked", "has been revoked", "TLS: ");
    tls_cam_is_refused("cam_server", "is not meant for this use", "TLS: ");
    tls_cam_is_refused("self", "is self-signed and not one that is trusted", "TLS: ");
    tls_cam_is_refused("cam_deep", "TLS: ", "our certificate ");
    tls_cam_is_refused("cam_big", "TLS: ", "TLS: ");
}

TEST(D8_revocation_lists_may_stand_before_and_between_authorities)
{
    static const char *const files[] = {"crl_ca.pem", "ca_crl_other.pem", "ca_crl_note.pem"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        tls_cam_is_refused_by(files[i], "cam_revoked", "has been revoked", "TLS: ");
}

// An authority's own certificate may have no key usage for signatures: then that is the reason.
TEST(D8_an_authority_below_ours_cannot_log_in_as_a_backend)
{
    tls_cam_is_refused("cam_authority", "TLS: the peer's certificate ", "our certificate ");
}

TEST(a_verified_certificate_reaches_the_hook_whole)
{
    tls_world *tw = tls_world_new(tls_server("server", "ca_crl.pem"), tls_client("cam", "ca.pem"));
    uint8_t hash[32];
    size_t len;
    char *der = tls_text("cam.der", &len);
    rvd_base_sha256 h;
    rvd_base_sha256_init(&h);
    rvd_base_sha256_update(&h, der, len);
    rvd_base_sha256_final(&h, hash);
    tls_forget(der);
    if (tls_world_open(tw)) {
        CHECK(tw->has_seen && tw->seen.verified);
        CHECK_STR(tw->seen.subject, "CN=cam-1");
        CHECK_STR(tw->seen.san, "DNS:cam-1.cams.test,URI:spiffe://cams.test/cam-1");
        CHECK(memcmp(hash, tw->seen.cert_sha256, sizeof hash) == 0);
        CHECK(tls_echo(tw, 5000));
    }
    tls_world_free(tw);
}

TEST(D9_a_good_certificate_that_may_not_have_the_name_gets_403)
{
    tls_world *tw = tls_world_new(tls_server("server", "ca.pem"), tls_client("cam", "ca.pem"));
    util_state last = {0};
    tw->verdict = REVDIAL_EDENIED;
    if (tls_world_proxy(tw) && tls_world_start(tw)) {
        CHECK(util_log_wait(&tw->w.states, REVDIAL_STOPPED, 1, &last));
        CHECK_INT(last.code, REVDIAL_EDENIED);
        CHECK_INT(atomic_load(&tw->judged), 1);
    }
    tls_world_free(tw);
}

// cert and key are file names, or text if they begin with a dash.
static void tls_load(const char *cert, const char *key, const char *ca, const char *reason)
{
    revdial_tls_config cfg = {NULL, NULL, NULL};
    revdial_err err = {0};
    if (ca) cfg.ca = tls_file(ca);
    if (cert) cfg.cert = *cert == '-' ? cert : tls_file(cert);
    if (key) cfg.key = *key == '-' ? key : tls_file(key);
    revdial_tls *t = revdial_tls_server(&cfg, &err);
    if (reason ? t || !strstr(err.msg, reason) : !t)
        test_fail(__FILE__, __LINE__, "%s, %s: %s", cert, key, t ? "is taken" : err.msg);
    if (reason) CHECK(err.code < 0);
    revdial_tls_free(t);
}

TEST(D10_files_that_are_not_good_are_named)
{
    tls_load("server.pem", "server.key", NULL, NULL);
    tls_load("server.der", "server.key.der", NULL, NULL);
    tls_load("server.pem", "server2.key", NULL,
             "server2.key: the key does not belong to the certificate, which is the first one");
    tls_load("server.pem", "server_encrypted.key", NULL, "encrypted.key: the key is encrypted");
    tls_load("empty.pem", "server.key", NULL, "empty.pem: is empty");
    tls_load("text.pem", "server.key", NULL, "text.pem: holds no certificate");
    tls_load("server.pem", "text.pem", NULL, "text.pem: holds no key");
    tls_load("", "server.key", NULL, ": is a directory");
    tls_load("not-there.pem", "server.key", NULL, "not-there.pem: No such file");
    tls_load("server.pem", "server.key", "text.pem", "text.pem: not all of it is certificates");
    tls_load("server.pem", "server.key", "ca_crl_cut.pem", "ca_crl_cut.pem: ");
    tls_load("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "server.key", NULL,
             "cert: holds no certificate");
    tls_load("server.pem", NULL, NULL, "belong together");
    tls_load(NULL, "server.key", NULL, "belong together");
    tls_load(NULL, NULL, NULL, "a server needs a certificate");
}

#ifndef PROGRAM_TLS_OPENSSL
TEST(D10_a_certificate_that_mbedtls_does_not_know_is_refused_with_what_it_does_know)
{
    static const char ed25519[] =
        "-----BEGIN CERTIFICATE-----\n"
        "MIIBUzCCAQWgAwIBAgIUJ1EC6wfv/bIVGypfrbdeBIAHk3UwBQYDK2VwMBQxEjAQ\n"
        "BgNVBAMMCWxvY2FsaG9zdDAeFw0yNjEyMDExMDAxMTlaFw0yNjEyMzExMDAxMTla\n"
        "MBQxEjAQBgNVBAMMCWxvY2FsaG9zdDAqMAUGAytlcAMhAL1DiIbeEglXwxST5T8Y\n"
        "OJXwvEgiog2fuemxsmhF9+bGo2kwZzAdBgNVHQ4EFgQUW8u9Lhpreh8mhNQKGF0X\n"
        "9aS+nkIwHwYDVR0jBBgwFoAUW8u9Lhpreh8mhNQKGF0X9aS+nkIwDwYDVR0TAQH/\n"
        "BAUwAwEB/zAUBgNVHREEDTALgglsb2NhbGhvc3QwBQYDK2VwA0EANCRNpU8xcCom\n"
        "rQXnxTxG6ctUNlKHzgcpra4Yx9zl3+Leli/irzishhPOmBrVV0l49zW+LJK5UROk\n"
        "abSs3FLjCA==\n"
        "-----END CERTIFICATE-----\n";
    tls_load(ed25519, "server.key", NULL, "mbedTLS knows RSA and ECDSA (P-256, P-384), and not");
    tls_load("server.pem", "server.key", ed25519, "read: mbedTLS knows RSA and ECDSA");
}
#endif

// Root reads everything, so it is nobody that tries.
TEST(D10_an_unreadable_file_is_named)
{
    size_t len, key_len;
    char *cert = tls_text("server.pem", &len), *key = tls_text("server.key", &key_len);
    revdial_tls_config cfg = {NULL, cert, "unreadable.key"};
    revdial_err err = {0};
    int status = -1, fd;
    pid_t pid = fork();
    if (pid == 0) {
        char dir[] = "/tmp/revdial-XXXXXX";
        if (!mkdtemp(dir) || chmod(dir, 0755) < 0 || chdir(dir) < 0) _exit(1);
        fd = open(cfg.key, O_WRONLY | O_CREAT, 0644);
        if (fd < 0 || write(fd, key, key_len) != (ssize_t)key_len) _exit(2);
        if (getuid() == 0 && setresuid(65534, 65534, 0) < 0) _exit(3);
        revdial_tls *t = revdial_tls_server(&cfg, &err);
        if (!t) _exit(4);
        revdial_tls_free(t);
        if (seteuid(getuid() == 65534 ? 0 : getuid()) < 0 || fchmod(fd, 0) < 0) _exit(5);
        if (getuid() == 65534 && seteuid(65534) < 0) _exit(6);
        if (revdial_tls_server(&cfg, &err)) _exit(7);
        if (strcmp(err.msg, "unreadable.key: Permission denied") != 0) _exit(8);
        if (getuid() == 65534 && seteuid(0) < 0) _exit(9);
        _exit(unlink(cfg.key) < 0 || rmdir(dir) < 0 ? 10 : 0);
    }
    CHECK_INT(waitpid(pid, &status, 0), pid);
    CHECK_INT(status, 0);
    tls_forget(cert);
    tls_forget(key);
}

TEST(certificates_may_be_given_as_text)
{
    size_t len;
    char *cert = tls_text("server.pem", &len), *key = tls_text("server.key", &len);
    char *ca = tls_text("ca.pem", &len);
    revdial_tls_config cfg = {NULL, cert, key};
    revdial_err err = {0};
    revdial_tls *server = revdial_tls_server(&cfg, &err);
    memset(&cfg, 0, sizeof cfg);
    cfg.ca = ca;
    tls_world *tw = tls_world_new(server, revdial_tls_client(&cfg, &err));
    CHECK(tls_world_open(tw));
    tls_world_free(tw);
    tls_forget(cert);
    tls_forget(key);
    tls_forget(ca);
}

// D11: whatever was said before. The other way round too: a proxy that stops in the middle.
TEST(D11_a_stall_anywhere_in_the_handshake_ends_at_the_deadline)
{
    static const long points[] = {0, 1, 4, 5, 6, 60, 150, 250, 300, 350, 400};
    for (size_t i = 0; i < 2 * sizeof points / sizeof *points; i++) {
        size_t n = sizeof points / sizeof *points;
        int way = i >= n;
        tls_world *tw = tls_world_new(tls_server("server", NULL), tls_client(NULL, "ca.pem"));
        tls_relay r;
        util_state last = {0};
        tw->w.pcfg.common.limits.handshake_timeout_ms = way ? 5000 : 150;
        tw->w.acfg.common.limits.handshake_timeout_ms = way ? 150 : 5000;
        tw->w.acfg.backoff_min_ms = tw->w.acfg.backoff_max_ms = 600000;
        REQUIRE(tls_world_proxy(tw));
        tls_relay_init(&r);
        r.stop_after[way] = points[i % n];
        tls_relay_start(&r, tw);
        if (tls_world_start(tw)) {
            CHECK(util_gate_wait(&tw->refused, 1));
            CHECK(util_log_wait(&tw->w.states, REVDIAL_BACKOFF, 1, &last));
            // The last points are behind the handshake of TLS.
            if (!strstr(way ? last.msg : tw->said, "the TLS handshake was not over in time") &&
                (points[i % n] < 200 || !strstr(way ? last.msg : tw->said, "took too long")))
                test_fail(__FILE__, __LINE__, "point %ld: %s", points[i % n],
                          way ? last.msg : tw->said);
        }
        tls_world_free(tw);
        tls_relay_end(&r);
    }
}

// D12, D28
TEST(D12_single_bytes_make_a_handshake_and_streams)
{
    tls_world *tw = tls_world_new(tls_server("server", "ca.pem"), tls_client("cam", "ca.pem"));
    tls_relay r;
    REQUIRE(tls_world_proxy(tw));
    tls_relay_init(&r);
    r.chunk = 1;
    tls_relay_start(&r, tw);
    if (world_open_agent(&tw->w, 0) &&
        revdial_proxy_wait(tw->w.proxy, "cam-1", 1, UTIL_WAIT_MS) >= 1)
        CHECK(tls_echo(tw, 3000));
    tls_world_free(tw);
    tls_relay_end(&r);
}

// D13, D14: bytes of a client that is none. The connection has to be over, without the deadline.
static void tls_is_dropped(const char *what, const void *bytes, size_t len, int times)
{
    tls_world *tw = tls_world_new(tls_server("server", NULL), tls_client(NULL, "ca.pem"));
    char buf[64];
    size_t got;
    tw->w.pcfg.common.limits.handshake_timeout_ms = 60000;
    REQUIRE(tls_world_proxy(tw));
    int fd = raw_connect(tw->w.address);
    for (int i = 0; i < times && raw_send(fd, bytes, len); i++) continue;
    shutdown(fd, SHUT_WR);
    raw_drain(fd, buf, sizeof buf, &got);
    if (!util_gate_wait(&tw->refused, 1) || !strstr(tw->said, "TLS: "))
        test_fail(__FILE__, __LINE__, "%s: %s", what, tw->said);
    CHECK_INT(atomic_load(&tw->judged), 0);
    close(fd);
    tls_world_free(tw);
}

TEST(D13_D14_hellos_and_records_that_are_too_much_are_refused)
{
    static uint8_t big[5 + 16384 + 2048 + 1];
    uint8_t head[] = {22, 3, 1, 0x40, 0, 1, 0, 0xFF, 0xF0, 3, 3};  // a hello of 64 KiB
    uint8_t empty[] = {22, 3, 1, 0, 0}, ssl2[] = {0x80, 0x2E, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10, 1};
    uint8_t alerts[] = {21, 3, 1, 0, 2, 1, 100};
    memcpy(big, head, sizeof head);
    tls_is_dropped("a hello of 64 KiB", big, 5 + 16384, 4);
    big[3] = (uint8_t)((sizeof big - 5) >> 8);
    big[4] = (uint8_t)(sizeof big - 5);
    tls_is_dropped("a record that is too long", big, sizeof big, 1);
    tls_is_dropped("empty records", empty, sizeof empty, 10000);
    tls_is_dropped("SSL 2", ssl2, sizeof ssl2, 1);
    tls_is_dropped("warnings", alerts, sizeof alerts, 10000);
    tls_is_dropped("HTTP", "GET /revdial HTTP/1.1\r\nHost: x\r\n\r\n", 35, 1);
    // 1000 extensions of four bytes each
    uint8_t *p = big;
    size_t body = 2 + 32 + 1 + 4 + 2 + 2 + 4000;
    memset(big, 0, sizeof big);
    p[0] = 22, p[1] = 3, p[2] = 1, p[3] = (uint8_t)((body + 4) >> 8), p[4] = (uint8_t)(body + 4);
    p[5] = 1, p[7] = (uint8_t)(body >> 8), p[8] = (uint8_t)body, p[9] = p[10] = 3;
    p += 11 + 32 + 1;
    p[1] = 2, p[2] = 0xC0, p[3] = 0x2B, p[4] = 1, p[6] = 4000 >> 8, p[7] = 4000 & 0xFF;
    for (int i = 0; i < 1000; i++) p[8 + 4 * i] = 0xFE, p[9 + 4 * i] = (uint8_t)i;
    tls_is_dropped("1000 extensions", big, 5 + 4 + body, 1);
}

TEST(P1_P12_a_thousand_hellos_that_drip_do_not_keep_a_backend_out)
{
    static const char hello[] = {22, 3, 1, 2, 0, 1, 0, 1, (char)0xFC, 3, 3};  // 512 bytes of it
    static drip d = {.hello = hello, .hello_len = sizeof hello};
    for (int from = 1; from <= 2; from++) {  // where the backend is, or elsewhere
        tls_world *tw = tls_world_new(tls_server("server", NULL), tls_client(NULL, "ca.pem"));
        REQUIRE(tls_world_proxy(tw));
        CHECK(drip_start(&d, tw->w.address, from));
        CHECK(world_open_agent(&tw->w, 0));
        // Handshakes that go on are not dropped for a newcomer of their own source, which may have
        // to come a second time. One of another source does not notice them.
        if (from == 2) CHECK_INT(util_log_count(&tw->w.states, REVDIAL_BACKOFF, NULL), 0);
        int seen = util_gate_count(&d.going);
        CHECK(util_gate_wait(&d.going, seen + 2));  // and it stays
        CHECK(tls_echo(tw, 1000));
        CHECK(pending_of(tw->w.proxy) <= 512);
        drip_stop(&d);
        tls_world_free(tw);
    }
}

TEST(D16_a_cut_connection_is_an_error_for_both_and_never_eof)
{
    tls_world *tw = tls_world_new(tls_server("server", NULL), tls_client(NULL, "ca.pem"));
    tls_relay r;
    revdial_err err = {0};
    util_state last = {0};
    REQUIRE(tls_world_proxy(tw));
    tls_relay_init(&r);
    tls_relay_start(&r, tw);
    REQUIRE(world_open_agent(&tw->w, 0));
    REQUIRE(revdial_proxy_wait(tw->w.proxy, "cam-1", 1, UTIL_WAIT_MS) >= 1);
    revdial_stream *st = world_dial(&tw->w, "sink", 0, &err);
    REQUIRE(st != NULL);
    CHECK_INT(util_write_payload(st, 10000, 2), 10000);
    atomic_store(&r.cut, 1);
    util_write_payload(st, 10000, 2);
    CHECK_INT(util_read_payload(st, 1).end, REVDIAL_ELOST);
    revdial_close(st);
    CHECK(util_gate_wait(&tw->w.ended, 1));
    CHECK_INT(world_last(&tw->w).end, REVDIAL_ELOST);
    CHECK(util_log_wait(&tw->w.sessions, REVDIAL_DOWN, 1, &last));
    CHECK_INT(last.code, REVDIAL_ELOST);
    // Who was writing at that moment learns it from the socket.
    if (!strstr(last.msg, "without close_notify: it may have been cut") &&
        !strstr(last.msg, "TLS: the connection was lost: "))
        test_fail(__FILE__, __LINE__, "it says %s", last.msg);
    CHECK(util_log_wait(&tw->w.states, REVDIAL_DOWN, 1, &last));
    CHECK_INT(last.code, REVDIAL_ELOST);
    tls_world_free(tw);
    tls_relay_end(&r);
}

TEST(D17_a_drain_ends_with_close_notify_both_ways)
{
    tls_world *tw = tls_world_new(tls_server("server", NULL), tls_client(NULL, "ca.pem"));
    util_state last = {0};
    REQUIRE(tls_world_open(tw));
    CHECK(tls_echo(tw, 1000));
    CHECK_INT(revdial_agent_stop(tw->w.agents[0], 5000), 0);
    tw->w.agents[0] = NULL;
    CHECK(util_log_wait(&tw->w.sessions, REVDIAL_DOWN, 1, &last));
    CHECK(strstr(last.msg, "cut") == NULL);
    tls_world_free(tw);
}

TEST(D18_an_altered_record_ends_the_session_and_is_not_delivered)
{
    for (int way = 0; way < 2; way++) {
        tls_world *tw = tls_world_new(tls_server("server", NULL), tls_client(NULL, "ca.pem"));
        tls_relay r;
        revdial_err err = {0};
        util_state last = {0};
        char c = 0;
        REQUIRE(tls_world_proxy(tw));
        tls_relay_init(&r);
        tls_relay_start(&r, tw);
        REQUIRE(world_open_agent(&tw->w, 0));
        REQUIRE(revdial_proxy_wait(tw->w.proxy, "cam-1", 1, UTIL_WAIT_MS) >= 1);
        revdial_stream *st = world_dial(&tw->w, "echo", 0, &err);
        REQUIRE(st != NULL);
        CHECK_INT(revdial_write(st, "x", 1), 1);
        CHECK_INT(revdial_read(st, &c, 1), 1);
        atomic_store(&r.flip[way], 1);
        CHECK_INT(revdial_write(st, "yyyyyyyyyyyyyyyyyyyy", 20), 20);
        CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ELOST);
        CHECK(util_log_wait(&tw->w.sessions, REVDIAL_DOWN, 1, &last));
        CHECK_INT(last.code, REVDIAL_ETLS);
        CHECK(strstr(last.msg, "TLS: ") != NULL);
        revdial_close(st);
        tls_world_free(tw);
        tls_relay_end(&r);
    }
}

// Two ends on a pair of sockets that do not block, after their handshake.
static int tls_pair(revdial_transport ends[2], int fds[2])
{
    revdial_tls *makers[2] = {tls_client(NULL, "ca.pem"), tls_server("server", NULL)};
    revdial_err err = {0};
    int is_done[2] = {0, 0};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) != 0) return 0;
    for (int i = 0; i < 2; i++) {
        const char *host = i ? NULL : "localhost";
        if (!makers[i] || makers[i]->wrap(makers[i]->ud, fds[i], host, &ends[i], &err)) return 0;
        revdial_tls_free(makers[i]);
    }
    for (int turn = 0; turn < 100 && (!is_done[0] || !is_done[1]); turn++)
        if (!is_done[turn % 2])
            is_done[turn % 2] = ends[turn % 2].do_handshake(ends[turn % 2].ctx) == 0;
    return is_done[0] && is_done[1];
}

TEST(a_write_of_several_records_is_one)
{
    static uint8_t from[5 * RVD_TLS_RECORD + 1], to[sizeof from];
    revdial_transport ends[2];
    int fds[2];
    size_t got = 0;
    ptrdiff_t n;
    for (size_t i = 0; i < sizeof from; i++) from[i] = (uint8_t)(i * 7 + i / 251);
    REQUIRE(tls_pair(ends, fds));
    CHECK_INT(ends[0].do_write(ends[0].ctx, from, sizeof from), sizeof from);
    while ((n = ends[1].do_read(ends[1].ctx, to + got, sizeof to - got)) > 0) got += (size_t)n;
    CHECK_INT(got, sizeof from);
    CHECK(memcmp(from, to, sizeof from) == 0);
    for (int i = 0; i < 2; i++) {
        ends[i].do_close(ends[i].ctx);
        close(fds[i]);
    }
}

typedef struct tls_busy {
    tls_world *tw;
    util_read got;
    uint64_t sent;
    int kind;
} tls_busy;

static void *tls_busy_run(void *arg)
{
    tls_busy *b = arg;
    revdial_err err = {0};
    revdial_stream *st = world_dial(&b->tw->w, b->kind ? "bulk" : "bulk-sink", 2000000, &err);
    if (!st) return NULL;
    if (b->kind) {
        b->got = util_read_bulk(st);
    } else {
        b->sent = util_write_bulk(st, 2000000);
        revdial_shutdown(st, REVDIAL_WR);
        char ok[2];
        if (util_read_all(st, ok, 2) == 2) b->got.bytes = b->sent;
    }
    revdial_close(st);
    return NULL;
}

TEST(D23_many_threads_read_and_write_at_once)
{
    tls_world *tw = tls_world_new(tls_server("server", NULL), tls_client(NULL, "ca.pem"));
    tls_busy busy[8];
    pthread_t threads[8];
    REQUIRE(tls_world_open(tw));
    memset(busy, 0, sizeof busy);
    for (int i = 0; i < 8; i++) {
        busy[i].tw = tw;
        busy[i].kind = i % 2;
        threads[i] = util_thread(tls_busy_run, &busy[i]);
    }
    for (int i = 0; i < 8; i++) {
        pthread_join(threads[i], NULL);
        CHECK_INT(busy[i].got.bytes, 2000000);
        CHECK(!busy[i].got.is_bad);
    }
    tls_world_free(tw);
}

TEST(D24_without_randomness_there_is_no_tls)
{
#if !defined(PROGRAM_TLS_OPENSSL) && MBEDTLS_VERSION_NUMBER < 0x04000000
    revdial_tls_config cfg = tls_files("server", NULL);
    revdial_err err = {0};
    atomic_store(&tls_entropy_fails, 1);
    CHECK(revdial_tls_server(&cfg, &err) == NULL);
    atomic_store(&tls_entropy_fails, 0);
    CHECK_INT(err.code, REVDIAL_ESYS);
    CHECK(strstr(err.msg, "no randomness") != NULL);
#endif
}

// Two ends in one thread. Returns 1 if both believe that the handshake is over.
static int tls_shake_pair(revdial_tls *server, revdial_tls *client, int is_said)
{
    revdial_transport s, c;
    revdial_err err = {0};
    int fds[2], rs = REVDIAL_WANT_READ, rc = REVDIAL_WANT_READ, ok = 0;
    char buf[16] = "";
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds)) abort();
    memcpy(tls_split.fds, fds, sizeof fds);
    if (client->wrap(client->ud, fds[0], "localhost", &c, &err) == 0) {
        if (server->wrap(server->ud, fds[1], NULL, &s, &err) == 0) {
            for (int i = 0; i < 50; i++) {
                if (rc <= REVDIAL_WANT_READ) rc = c.do_handshake(c.ctx);
                if (rs <= REVDIAL_WANT_READ) rs = s.do_handshake(s.ctx);
            }
            ok = rc == 0 && rs == 0;
            tls_split.step = 0;
            if (ok && is_said) {
                CHECK_INT(c.do_write(c.ctx, "hello", 5), 5);
                CHECK_INT(s.do_read(s.ctx, buf, sizeof buf), 5);
                CHECK_STR(buf, "hello");
            }
            s.do_close(s.ctx);
        }
        c.do_close(c.ctx);
    }
    close(fds[0]);
    close(fds[1]);
    return ok;
}

#if !TLS_SANITIZED
TEST(D25_without_memory_nobody_is_authenticated)
{
    revdial_tls *server = tls_server("server", "ca.pem"), *client = tls_client("cam", "ca.pem");
    REQUIRE(server && client);
    long before = atomic_load(&tls_calloc_count), calls;
    CHECK(tls_shake_pair(server, client, 1));
    calls = atomic_load(&tls_calloc_count) - before;
    CHECK(calls > 100);
    // The objects serve the next handshake as if nothing had been. Every sixteenth child tries.
    atomic_store(&tls_calloc_count, 1);
    tls_split.step = calls / 4000 + 1;
    int ok = tls_shake_pair(server, client, 1);
    if (tls_split.is_child) {
        long nth = atomic_load(&tls_calloc_count);
        _exit(test_failures || (nth % 16 == 0 && !tls_shake_pair(server, client, 1)));
    }
    CHECK(ok);
    CHECK_INT(tls_split.bad, 0);
    CHECK(tls_shake_pair(server, client, 1));
    revdial_tls_free(server);
    revdial_tls_free(client);
}

TEST(D25_without_memory_there_are_no_makers_and_no_leaks)
{
    revdial_tls_config cfg = tls_files("server", "ca_crl.pem");
    revdial_err err = {0};
    long k = 0;
    revdial_tls *t = NULL;
    for (; !t && k < 5000; k++) {
        atomic_store(&tls_calloc_left, k);
        memset(&err, 0, sizeof err);
        t = revdial_tls_server(&cfg, &err);
        if (!t && !err.code) test_fail(__FILE__, __LINE__, "allocation %ld: no reason", k);
        atomic_store(&tls_calloc_left, -1);
    }
    CHECK(t != NULL && k > 10);
    revdial_tls_free(t);
}

#endif

TEST(D26_a_wrong_clock_is_named)
{
    static const long offsets[] = {-50L * 365 * 86400, 75L * 365 * 86400};
    for (int i = 0; i < 2; i++) {
        atomic_store(&tls_clock_offset, offsets[i]);
        tls_is_refused("server", "localhost", "by this machine's clock");
        atomic_store(&tls_clock_offset, 0);
    }
}

TEST(D30_a_child_process_needs_an_object_of_its_own)
{
    revdial_tls *client = tls_client(NULL, "ca.pem");
    revdial_transport before, t;
    revdial_err err = {0};
    int status = -1;
    REQUIRE(client != NULL);
    REQUIRE(client->wrap(client->ud, 0, "localhost", &before, &err) == 0);
    pid_t pid = fork();
    if (pid == 0)
        _exit(client->wrap(client->ud, 0, "localhost", &t, &err) != REVDIAL_EINVAL ||
              before.do_handshake(before.ctx) != REVDIAL_EINVAL);
    REQUIRE(pid > 0);
    CHECK_INT(waitpid(pid, &status, 0), pid);
    CHECK_INT(status, 0);
    before.do_close(before.ctx);
    revdial_tls_free(client);
}

static int tls_copy_file(const char *from, const char *to)
{
    char buf[8192];
    int in = open(tls_file(from), O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ssize_t n = in >= 0 ? read(in, buf, sizeof buf) : -1;
    int ok = n > 0 && out >= 0 && write(out, buf, (size_t)n) == n;
    rvd_base_wipe(buf, sizeof buf);  // a later test looks for keys in memory
    close(in);
    close(out);
    return ok;
}

TEST(a_reload_is_for_new_connections_and_drops_none)
{
    char cert[300], key[300];
    revdial_tls_config cfg = {NULL, cert, key};
    revdial_err err = {0};
    snprintf(cert, sizeof cert, "%s", tls_file("reload.pem"));
    snprintf(key, sizeof key, "%s", tls_file("reload.key"));
    REQUIRE(tls_copy_file("server.pem", cert) && tls_copy_file("server.key", key));
    revdial_tls *server = revdial_tls_server(&cfg, &err), *client = tls_client(NULL, "ca.pem");
    tls_world *tw = tls_world_new(server, client);
    REQUIRE(tls_world_open(tw));
    revdial_stream *st = world_dial(&tw->w, "echo", 0, &err);
    REQUIRE(st != NULL);
    CHECK(tls_shake_pair(server, client, 0));

    REQUIRE(tls_copy_file("unknown.pem", cert));  // its key is still the old one
    CHECK_INT(revdial_tls_reload(server, &err), REVDIAL_EINVAL);
    CHECK(strstr(err.msg, "reload.key: the key does not belong") != NULL);
    CHECK(tls_shake_pair(server, client, 0));

    REQUIRE(tls_copy_file("unknown.key", key));
    CHECK_INT(revdial_tls_reload(server, &err), 0);
    CHECK(!tls_shake_pair(server, client, 0));
    char c = 0;
    CHECK_INT(revdial_write(st, "x", 1), 1);
    CHECK_INT(revdial_read(st, &c, 1), 1);
    CHECK_INT(c, 'x');
    revdial_close(st);
    tls_world_free(tw);
    unlink(cert);
    unlink(key);
}

TEST(connections_may_outlast_their_maker)
{
    revdial_tls *client = tls_client(NULL, "ca.pem");
    revdial_transport t;
    revdial_err err = {0};
    REQUIRE(client != NULL);
    CHECK_INT(client->wrap(client->ud, 0, "localhost", &t, &err), 0);
    CHECK_INT(revdial_tls_reload(client, &err), 0);
    revdial_tls_free(client);
    t.do_close(t.ctx);
}

// ------------------------------------------------------------------------------------------------
// Secrets in memory. Sanitizers keep freed memory as it was.

#if !TLS_SANITIZED
// How often it stands in memory that can be written. `needle` is XORed, so that it is not found
// itself.
static int tls_found(const uint8_t *needle, size_t len)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    int mem = open("/proc/self/mem", O_RDONLY), found = 0;
    char line[512];
    static uint8_t buf[1 << 16];
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long from, to;
        char mode[8];
        if (sscanf(line, "%lx-%lx %7s", &from, &to, mode) != 3 || strncmp(mode, "rw", 2) != 0)
            continue;
        for (unsigned long at = from; at < to; at += sizeof buf - 64) {
            size_t want = to - at < sizeof buf ? to - at : sizeof buf;
            ssize_t n = pread(mem, buf, want, (off_t)at);
            if (n <= 0) break;
            for (size_t i = 0; i + len <= (size_t)n; i++) {
                size_t k = 0;
                unsigned long where = at + i;
                if (where + len > (unsigned long)(uintptr_t)buf &&
                    where < (unsigned long)(uintptr_t)(buf + sizeof buf))
                    continue;
                while (k < len && buf[i + k] == (needle[k] ^ 0xA5)) k++;
                if (k == len) found++;
            }
        }
        memset(buf, 0, sizeof buf);
    }
    if (maps) fclose(maps);
    close(mem);
    return found;
}

// A line in the middle of a key file, XORed.
static size_t tls_key_needle(const char *file, uint8_t *needle, size_t size)
{
    int fd = open(tls_file(file), O_RDONLY);
    char text[200] = "";
    size_t n = 0;
    const char *line;
    if (fd < 0 || read(fd, text, sizeof text - 1) < 0) return 0;
    close(fd);
    line = strchr(text, '\n');
    for (; line && n < size && line[1 + n] != '\n'; n++) needle[n] = (uint8_t)(line[1 + n] ^ 0xA5);
    rvd_base_wipe(text, sizeof text);
    return n;
}

static int tls_fresh_secret(void *ud, unsigned attempt, char *secret, size_t size)
{
    (void)attempt;
    (void)size;
    hidden_make(secret, *(int *)ud);
    return 0;
}

// What both ends log while they are at it.
static void tls_log_secrets(void *ud, int level, const char *event, const char *msg)
{
    (void)level;
    (void)event;
    if (hidden_count((const uint8_t *)msg, strlen(msg), *(int *)ud) || strstr(msg, "PRIVATE"))
        test_fail(__FILE__, __LINE__, "a secret in the log");
}

TEST(D10_a_key_that_is_refused_does_not_stay_in_memory)
{
    uint8_t key[64];
    size_t len = tls_key_needle("server2.key", key, 40);
    tls_load("server.pem", "server2.key", NULL, "the key does not belong to the");
    CHECK(len >= 32);
    CHECK_INT(tls_found(key, len), 0);
}

TEST(secrets_are_not_in_memory_once_a_session_is_up)
{
    static const unsigned schemes[] = {REVDIAL_AUTH_BEARER, REVDIAL_AUTH_BASIC,
                                       REVDIAL_AUTH_DIGEST};
    for (int which = 20; which < 23; which++) {
        tls_world *tw = tls_world_new(tls_server("server", "ca.pem"), tls_client("cam", "ca.pem"));
        char secret[HIDDEN_LEN + 1];
        revdial_credential row = {secret, "alice", "*", schemes[which - 20]};
        uint8_t keys[2][64];
        size_t key_len[2] = {tls_key_needle("server.key", keys[0], 40),
                             tls_key_needle("cam.key", keys[1], 40)};
        hidden_make(secret, which);
        tw->w.pcfg.auth = NULL;
        tw->w.pcfg.credentials = &row;
        tw->w.pcfg.credential_count = 1;
        tw->w.pcfg.common.log = tw->w.acfg.common.log = tls_log_secrets;
        tw->w.pcfg.common.log_ud = tw->w.acfg.common.log_ud = &which;
        tw->w.pcfg.common.log_level = tw->w.acfg.common.log_level = REVDIAL_LOG_DEBUG;
        tw->w.acfg.secret = NULL;
        tw->w.acfg.user = "alice";
        tw->w.acfg.auth_schemes = row.schemes;
        tw->w.acfg.credential_fn = tls_fresh_secret;
        tw->w.acfg.credential_ud = &which;
        REQUIRE(tls_world_proxy(tw));
        CHECK(hidden_scan(which) >= 1);  // it is found where it is
        rvd_base_wipe(secret, sizeof secret);
        CHECK(world_open_agent(&tw->w, 0));
        CHECK(tls_echo(tw, 1000));
        CHECK_INT(hidden_scan(which), 0);
        for (int i = 0; i < 2; i++) {
            CHECK(key_len[i] >= 32);
            CHECK_INT(tls_found(keys[i], key_len[i]), 0);
        }
        tls_world_free(tw);
    }
}
#endif

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_DFL);  // nothing here may raise it
#if defined(PROGRAM_TLS_OPENSSL) && !TLS_SANITIZED
    if (!CRYPTO_set_mem_functions(tls_malloc, tls_realloc, tls_free)) return 1;
#endif
    return test_main(argc, argv);
}
