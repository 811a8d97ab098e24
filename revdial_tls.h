// revdial_tls.h 0.1.0 -- TLS for revdial.h, by mbedTLS.              SPDX-License-Identifier: MIT
//
// Makes the transports for common.tls of revdial.h: TLS 1.2 with forward secrecy and authenticated
// encryption, and 1.3 where mbedTLS has it. A client always verifies the name; a server may require
// certificates of backends. Runs on mbedTLS 2.28, 3.6 and 4.x.
//
// USE       In exactly one C file, before any other include, define REVDIAL_TLS_IMPLEMENTATION and
//           then include this file; everywhere else just include it. Link with
//           -lmbedtls -lmbedx509 -lmbedcrypto -pthread.
//
// EXAMPLE   A backend that trusts the system's authorities, and has a certificate of its own:
//
//               revdial_tls_config files = {0};
//               revdial_agent_config cfg = {0};
//               files.cert = "cam-1.pem";
//               files.key = "cam-1.key";
//               revdial_tls *tls = revdial_tls_client(&files, &err);
//               cfg.url = "https://proxy.example";
//               cfg.common.tls = tls;
//
// MAP       `grep -n MARK: revdial_tls.h` prints it with line numbers.
//    api.tls       client, server, reload, free
//    impl.wire     records between a TLS library and its socket
//    impl.mbed     all that differs between the versions of mbedTLS
//    impl.files    certificates and keys, from files or from memory
//    impl.setup    a generation: one set of them, and what we accept
//    impl.words    why it failed, for people
//    impl.link     one connection
//    impl.maker    the public functions
//
// MACROS    REVDIAL_TLS_ONE_THREAD  you promise that this and all other users of mbedTLS in the
//                                   process run in one thread. Required for TLS 1.3, and for any
//                                   use of 4.x or with MBEDTLS_USE_PSA_CRYPTO, if mbedTLS was
//                                   built without MBEDTLS_THREADING_C

#if defined(REVDIAL_TLS_IMPLEMENTATION) && defined(__cplusplus)
#error "revdial_tls.h: the implementation is C; define REVDIAL_TLS_IMPLEMENTATION in a C file"
#undef REVDIAL_TLS_IMPLEMENTATION
#endif

#if defined(REVDIAL_TLS_IMPLEMENTATION) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE 1  // as the implementation of revdial.h
#endif

#ifndef REVDIAL_TLS_H
#define REVDIAL_TLS_H

#include "revdial.h"

#if REVDIAL_VERSION_NUMBER != 100  // 0.1.0
#error "revdial_tls.h 0.1.0: revdial.h is of another version; take both from one release"
#endif

#ifdef __cplusplus
extern "C" {
#endif

// ================================================================================================
// MARK: api.tls
// A field takes the name of a file, or PEM text: any string that contains "-----BEGIN". Files are
// PEM or DER; keys must not be encrypted; a file with authorities may also hold their revocation
// lists (all in PEM, in any order).
// ================================================================================================

typedef struct revdial_tls_config {
    // Client: authorities trusted for the proxy's certificate; NULL = the system's.
    // Server: authorities of backends, which then must have a certificate of these; NULL = no
    // certificate is required.
    const char *ca;
    const char *cert;  // our own, then those that lead to its authority; a client may have none
    const char *key;   // of the first certificate in cert
} revdial_tls_config;

// For agents. Always verifies that the peer is the host of revdial_agent_config.url, or
// server_name; if it is not, the error is REVDIAL_ETLS. Before mbedTLS 3.5 an IP address cannot be
// verified and is REVDIAL_EINVAL.
//   returns  NULL: err says which file cannot be used, and why
//   owns     copies cfg; free with revdial_tls_free()
//   thread   any
REVDIAL_API revdial_tls *revdial_tls_client(const revdial_tls_config *cfg, revdial_err *err);

// For proxies. The verified certificate of a backend is in revdial_auth_req.tls.
//   returns  NULL: err says which file cannot be used, and why
//   owns     copies cfg; free with revdial_tls_free()
//   thread   any
REVDIAL_API revdial_tls *revdial_tls_server(const revdial_tls_config *cfg, revdial_err *err);

// Reads the files again, for new connections; those that are up keep what they have. If a file
// cannot be used, nothing changes.
//   returns  0, or REVDIAL_EINVAL, ESYS, ENOMEM, ETLS
//   thread   any
REVDIAL_API int revdial_tls_reload(revdial_tls *t, revdial_err *err);

// Frees it. No new connection may use it; connections that are up may outlast it. NULL is ignored.
//   thread   any
REVDIAL_API void revdial_tls_free(revdial_tls *t);

// X(number, text). What a peer means by the alert that ends a handshake, RFC 8446 section 6 and RFC
// 5246 section 7.2. For transports by other libraries, too.
#define REVDIAL_TLS_ALERTS(X) \
    X(40, "it accepts none of our cipher suites or groups") \
    X(42, "our certificate is bad") \
    X(43, "our certificate is of an unsupported kind") \
    X(44, "our certificate has been revoked") \
    X(45, "our certificate has expired") \
    X(46, "our certificate is not acceptable") \
    X(48, "our certificate is from an authority that it does not trust") \
    X(49, "our certificate has no access") \
    X(70, "it speaks no version of TLS that we accept") \
    X(71, "our cipher suites are not strong enough for it") \
    X(112, "it does not know the name that we asked for") \
    X(116, "it wants a certificate from us") \
    X(120, "it does not speak http/1.1")

// The library underneath, "mbedTLS 2.28.3". Static.
//   thread   any
REVDIAL_API const char *revdial_tls_version(void);

#ifdef __cplusplus
}
#endif
#endif  // REVDIAL_TLS_H

#if defined(REVDIAL_TLS_IMPLEMENTATION) || defined(REVDIAL_TLS_WIRE)
#ifndef RVD_TLS_WIRE_IMPLEMENTED
#define RVD_TLS_WIRE_IMPLEMENTED

// ================================================================================================
// MARK: impl.wire
// Records between a TLS library and its socket. For transports by other libraries, too: they define
// REVDIAL_TLS_WIRE. Results are bytes, REVDIAL_WANT_*, or REVDIAL_ELOST with the errno in `sys`.
// ================================================================================================

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define RVD_TLS_RECORD 16384  // bytes that a record carries at most, RFC 8446 section 5.1

typedef struct rvd_tls_wire {
    int fd;
    int sys;        // errno of the socket's last error
    int has_more;   // the record is not the last one of its write
    int is_corked;  // the kernel waits for more
} rvd_tls_wire;

static ptrdiff_t rvd_tls_wire_result(rvd_tls_wire *w, ssize_t n, int want)
{
    if (n >= 0) return n;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return want;
    w->sys = errno;
    return REVDIAL_ELOST;
}

static ptrdiff_t rvd_tls_wire_recv(rvd_tls_wire *w, void *buf, size_t len)
{
    ssize_t n;
    do n = recv(w->fd, buf, len, 0);
    while (n < 0 && errno == EINTR);
    return rvd_tls_wire_result(w, n, REVDIAL_WANT_READ);
}

// MSG_MORE keeps the records of a write together, so that 64 KiB go out and wake the other end as
// one. They must not wait for a record that finds no room: TCP_NODELAY, set again, sends them.
static ptrdiff_t rvd_tls_wire_send(rvd_tls_wire *w, const void *buf, size_t len)
{
    static const int on = 1;
    ssize_t n;
    do n = send(w->fd, buf, len, w->has_more ? MSG_NOSIGNAL | MSG_MORE : MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0 && w->is_corked) {
        int sys = errno;
        setsockopt(w->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        errno = sys;
    }
    w->is_corked = n > 0 && w->has_more;
    return rvd_tls_wire_result(w, n, REVDIAL_WANT_WRITE);
}

// How much of a write goes into the next record, with `left` bytes of it to go.
static size_t rvd_tls_wire_next(rvd_tls_wire *w, size_t left)
{
    w->has_more = left > RVD_TLS_RECORD;
    return w->has_more ? RVD_TLS_RECORD : left;
}

#endif  // RVD_TLS_WIRE_IMPLEMENTED
#endif

#ifdef REVDIAL_TLS_IMPLEMENTATION
#ifndef REVDIAL_TLS_IMPLEMENTED
#define REVDIAL_TLS_IMPLEMENTED

// ================================================================================================
// MARK: impl.mbed
// Whatever the versions of mbedTLS do in different ways. Below, MBEDTLS_VERSION_NUMBER is not used.
// ================================================================================================

#include <fcntl.h>
#include <limits.h>
#include <mbedtls/error.h>
#include <mbedtls/md.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/pk.h>
#include <mbedtls/platform_util.h>
#include <mbedtls/ssl.h>
#include <mbedtls/ssl_ciphersuites.h>
#include <mbedtls/version.h>
#include <mbedtls/x509_crt.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef O_CLOEXEC
#error "revdial_tls.h: include the implementation before any other header, or use -D_GNU_SOURCE"
#endif

#if MBEDTLS_VERSION_NUMBER < 0x021C0000
#error "revdial_tls.h needs mbedTLS 2.28 or later"
#endif
#if MBEDTLS_VERSION_NUMBER < 0x04000000
#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#endif
#if MBEDTLS_VERSION_NUMBER >= 0x03000000 || defined(MBEDTLS_USE_PSA_CRYPTO)
#include <psa/crypto.h>
#endif
#if MBEDTLS_VERSION_NUMBER >= 0x03000000
#define RVD_TLS_FIELD(name) MBEDTLS_PRIVATE(name)
#else
#define RVD_TLS_FIELD(name) name
#endif

// Without locks of its own mbedTLS must not be in two threads at once. Ours are enough for 1.2
// without PSA; PSA's keys are one store for the whole process.
#if defined(MBEDTLS_THREADING_C) || defined(REVDIAL_TLS_ONE_THREAD)
#define RVD_TLS_THREADS 1
#else
#define RVD_TLS_THREADS 0
#if MBEDTLS_VERSION_NUMBER >= 0x04000000 || defined(MBEDTLS_USE_PSA_CRYPTO)
#error "build mbedTLS with MBEDTLS_THREADING_C, or see REVDIAL_TLS_ONE_THREAD"
#endif
#endif
#if defined(MBEDTLS_SSL_PROTO_TLS1_3) && RVD_TLS_THREADS
#define RVD_TLS_HAS_1_3 1
#else
#define RVD_TLS_HAS_1_3 0
#endif

// 3.5 is the first to look at IP addresses in certificates.
#define RVD_TLS_VERIFIES_IP (MBEDTLS_VERSION_NUMBER >= 0x03050000)

#ifndef RVD_TLS_ENTROPY
#define RVD_TLS_ENTROPY mbedtls_entropy_func
#endif

// The faster first; a proxy chooses by its own order. 16 KiB at a time on one core here, in MB/s:
// AES-128-GCM 319, AES-256-GCM 277, ChaCha20-Poly1305 541 by Debian's 2.28, which leaves the
// processor's carry-less multiplication idle.
static const int rvd_tls_suites[] = {
#if RVD_TLS_HAS_1_3
    MBEDTLS_TLS1_3_AES_128_GCM_SHA256,
    MBEDTLS_TLS1_3_CHACHA20_POLY1305_SHA256,
    MBEDTLS_TLS1_3_AES_256_GCM_SHA384,
#endif
#if MBEDTLS_VERSION_NUMBER >= 0x03050000
    MBEDTLS_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    MBEDTLS_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
#endif
    MBEDTLS_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    MBEDTLS_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
#if MBEDTLS_VERSION_NUMBER < 0x03050000
    MBEDTLS_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    MBEDTLS_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
#endif
    MBEDTLS_TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    MBEDTLS_TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    0};

// A generator for each object; from 4.0 on PSA has the only one.
typedef struct rvd_tls_random {
    pthread_mutex_t lock;
#if MBEDTLS_VERSION_NUMBER < 0x04000000
    mbedtls_entropy_context entropy;
    mbedtls_ctr_drbg_context drbg;
#endif
} rvd_tls_random;

#if MBEDTLS_VERSION_NUMBER < 0x04000000
static int rvd_tls_random_fill(void *ctx, unsigned char *out, size_t len)
{
    rvd_tls_random *r = ctx;
    int code;
    pthread_mutex_lock(&r->lock);
    code = mbedtls_ctr_drbg_random(&r->drbg, out, len);
    pthread_mutex_unlock(&r->lock);
    return code;
}
#endif

// Returns 0 or mbedTLS's error. Close it in either case.
static int rvd_tls_random_open(rvd_tls_random *r)
{
    int code = 0;
#if MBEDTLS_VERSION_NUMBER < 0x04000000
    static const unsigned char who[] = "revdial";
    mbedtls_entropy_init(&r->entropy);
    mbedtls_ctr_drbg_init(&r->drbg);
    code = mbedtls_ctr_drbg_seed(&r->drbg, RVD_TLS_ENTROPY, &r->entropy, who, sizeof who);
#else
    (void)r;
#endif
#if RVD_TLS_HAS_1_3 || MBEDTLS_VERSION_NUMBER >= 0x04000000 || defined(MBEDTLS_USE_PSA_CRYPTO)
    if (!code && psa_crypto_init() != PSA_SUCCESS) code = MBEDTLS_ERR_SSL_INTERNAL_ERROR;
#endif
    return code;
}

static void rvd_tls_random_close(rvd_tls_random *r)
{
#if MBEDTLS_VERSION_NUMBER < 0x04000000
    mbedtls_ctr_drbg_free(&r->drbg);
    mbedtls_entropy_free(&r->entropy);
#else
    (void)r;
#endif
}

// What calls on keys take behind their other arguments.
#if MBEDTLS_VERSION_NUMBER >= 0x03000000 && MBEDTLS_VERSION_NUMBER < 0x04000000
#define RVD_TLS_AND_RANDOM(r) , rvd_tls_random_fill, r
#else
#define RVD_TLS_AND_RANDOM(r)
#endif

// Versions, groups, hashes and the generator.
static void rvd_tls_conf_set(mbedtls_ssl_config *conf, rvd_tls_random *r)
{
#if MBEDTLS_VERSION_NUMBER >= 0x03000000
    static const uint16_t groups[] = {
        MBEDTLS_SSL_IANA_TLS_GROUP_X25519, MBEDTLS_SSL_IANA_TLS_GROUP_SECP256R1,
        MBEDTLS_SSL_IANA_TLS_GROUP_SECP384R1, MBEDTLS_SSL_IANA_TLS_GROUP_NONE};
    mbedtls_ssl_conf_groups(conf, groups);  // of hashes, only SHA-256 and longer are its default
    mbedtls_ssl_conf_min_tls_version(conf, MBEDTLS_SSL_VERSION_TLS1_2);
    if (!RVD_TLS_HAS_1_3) mbedtls_ssl_conf_max_tls_version(conf, MBEDTLS_SSL_VERSION_TLS1_2);
#else
    static const mbedtls_ecp_group_id curves[] = {MBEDTLS_ECP_DP_CURVE25519,
                                                  MBEDTLS_ECP_DP_SECP256R1,
                                                  MBEDTLS_ECP_DP_SECP384R1, MBEDTLS_ECP_DP_NONE};
    static const int hashes[] = {MBEDTLS_MD_SHA256, MBEDTLS_MD_SHA384, MBEDTLS_MD_SHA512,
                                 MBEDTLS_MD_NONE};
    mbedtls_ssl_conf_curves(conf, curves);
    mbedtls_ssl_conf_sig_hashes(conf, hashes);
    mbedtls_ssl_conf_min_version(conf, MBEDTLS_SSL_MAJOR_VERSION_3, MBEDTLS_SSL_MINOR_VERSION_3);
#endif
#if MBEDTLS_VERSION_NUMBER < 0x04000000
    mbedtls_ssl_conf_rng(conf, rvd_tls_random_fill, r);
#else
    (void)r;
#endif
}

// Errors that had another name, or two, before 3.0.
#if MBEDTLS_VERSION_NUMBER >= 0x03000000
#define RVD_TLS_BAD_VERSION MBEDTLS_ERR_SSL_BAD_PROTOCOL_VERSION
#define RVD_TLS_BAD_HELLO MBEDTLS_ERR_SSL_ILLEGAL_PARAMETER  // a server's
#define RVD_TLS_NO_SUITE(r) ((r) == MBEDTLS_ERR_SSL_HANDSHAKE_FAILURE)
#else
#define RVD_TLS_BAD_VERSION MBEDTLS_ERR_SSL_BAD_HS_PROTOCOL_VERSION
#define RVD_TLS_BAD_HELLO MBEDTLS_ERR_SSL_BAD_HS_SERVER_HELLO
#define RVD_TLS_NO_SUITE(r) \
    ((r) == MBEDTLS_ERR_SSL_NO_CIPHER_CHOSEN || (r) == MBEDTLS_ERR_SSL_NO_USABLE_CIPHERSUITE)
#endif

#ifdef MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET
#define RVD_TLS_TICKET MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET
#else
#define RVD_TLS_TICKET INT_MIN  // without 1.3 there is none
#endif

// ================================================================================================
// MARK: impl.files
// Certificates and keys, from files or from memory.
// ================================================================================================

#define RVD_TLS_FILE_MAX (4u << 20)  // a bundle of all the world's authorities has 0.3 MiB

static void rvd_tls_append(char *buf, size_t size, const char *text)
{
    size_t n = strlen(buf);
    for (; *text && n + 1 < size; text++)
        if ((unsigned char)*text >= ' ') buf[n++] = *text;
    buf[n] = '\0';
}

// Fills err, which may be NULL: "WHAT: WHY".
static int rvd_tls_fail(revdial_err *err, int code, const char *what, const char *why)
{
    if (!err) return code;
    memset(err, 0, sizeof *err);
    err->code = code;
    if (what) rvd_tls_append(err->msg, sizeof err->msg / 2, what);
    if (what) rvd_tls_append(err->msg, sizeof err->msg, ": ");
    rvd_tls_append(err->msg, sizeof err->msg, why);
    return code;
}

static int rvd_tls_fail_sys(revdial_err *err, const char *what)
{
    int sys = errno;
    rvd_tls_fail(err, REVDIAL_ESYS, what, strerror(sys));
    if (err) err->sys = sys;
    return REVDIAL_ESYS;
}

// The contents of a file, or a copy of text, with a NUL behind it.
typedef struct rvd_tls_blob {
    const char *name;  // for errors
    unsigned char *data;
    size_t len;
} rvd_tls_blob;

static void rvd_tls_blob_free(rvd_tls_blob *b)
{
    if (b->data) mbedtls_platform_zeroize(b->data, b->len);
    free(b->data);
    b->data = NULL;
}

static int rvd_tls_is_text(const char *file)
{
    return strstr(file, "-----BEGIN") != NULL;
}

static int rvd_tls_blob_read(rvd_tls_blob *b, int fd, revdial_err *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0) return rvd_tls_fail_sys(err, b->name);
    if (S_ISDIR(st.st_mode)) return rvd_tls_fail(err, REVDIAL_EINVAL, b->name, "is a directory");
    if (st.st_size == 0) return rvd_tls_fail(err, REVDIAL_EINVAL, b->name, "is empty");
    if (st.st_size < 0 || st.st_size > (off_t)RVD_TLS_FILE_MAX)
        return rvd_tls_fail(err, REVDIAL_EINVAL, b->name, "is no file with certificates or a key");
    b->data = calloc(1, (size_t)st.st_size + 1);
    if (!b->data) return rvd_tls_fail(err, REVDIAL_ENOMEM, b->name, "out of memory");
    while (b->len < (size_t)st.st_size) {
        ssize_t n = read(fd, b->data + b->len, (size_t)st.st_size - b->len);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return rvd_tls_fail_sys(err, b->name);
        if (n == 0) break;
        b->len += (size_t)n;
    }
    return REVDIAL_OK;
}

// `what` names text. Free the blob in every case.
static int rvd_tls_blob_load(rvd_tls_blob *b, const char *file, const char *what, revdial_err *err)
{
    int fd, code;
    memset(b, 0, sizeof *b);
    b->name = file;
    if (rvd_tls_is_text(file)) {
        b->name = what;
        b->len = strlen(file);
        b->data = calloc(1, b->len + 1);
        if (!b->data) return rvd_tls_fail(err, REVDIAL_ENOMEM, what, "out of memory");
        memcpy(b->data, file, b->len);
        return REVDIAL_OK;
    }
    fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return rvd_tls_fail_sys(err, file);
    code = rvd_tls_blob_read(b, fd, err);
    close(fd);
    return code;
}

// mbedTLS wants the NUL of PEM to be counted, and none with DER.
static size_t rvd_tls_blob_size(const rvd_tls_blob *b)
{
    return b->len + (rvd_tls_is_text((const char *)b->data) ? 1 : 0);
}

// The first bundle that is there.
static const char *rvd_tls_system_bundle(void)
{
    static const char *const places[] = {
        "/etc/ssl/certs/ca-certificates.crt",  // Debian, Alpine
        "/etc/pki/tls/certs/ca-bundle.crt",    // Fedora
        "/etc/ssl/ca-bundle.pem",              // openSUSE
        "/etc/ssl/cert.pem",                   // BSD, macOS
    };
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (access(places[i], R_OK) == 0) return places[i];
    return places[0];
}

// ================================================================================================
// MARK: impl.setup
// One set of certificates and what we accept with it. Connections hold the one they began with.
// ================================================================================================

typedef struct rvd_tls_setup {
    size_t refs;  // guarded by the maker's lock
    mbedtls_ssl_config conf;
    mbedtls_x509_crt ca, own;
    mbedtls_x509_crl revoked;
    mbedtls_pk_context key;
} rvd_tls_setup;

typedef struct rvd_tls_maker {
    revdial_tls tls;  // what the caller holds
    // Set before start, then read-only:
    int is_server;
    char *ca, *cert, *key;  // as given, NULL if not
    pid_t process;          // a child has the same random numbers, and none of our threads
    rvd_tls_random random;
    pthread_mutex_t lock;  // guards all below
    size_t refs;           // the caller's, and one per connection
    rvd_tls_setup *now;
    pthread_mutex_t turn;  // for a handshake, if mbedTLS has no locks of its own
} rvd_tls_maker;

static void rvd_tls_setup_free(rvd_tls_setup *s)
{
    if (!s) return;
    mbedtls_ssl_config_free(&s->conf);
    mbedtls_x509_crt_free(&s->ca);
    mbedtls_x509_crt_free(&s->own);
    mbedtls_x509_crl_free(&s->revoked);
    mbedtls_pk_free(&s->key);
    free(s);
}

// One by one, because mbedTLS takes several lists together only if nothing else follows them.
// Returns 0 if one cannot be read.
static int rvd_tls_load_lists(rvd_tls_setup *s, rvd_tls_blob *b)
{
    static const char last[] = "-----END X509 CRL-----";
    char *at = (char *)b->data, *behind, kept;
    int r = 0;
    while (r == 0 && (at = strstr(at, "-----BEGIN X509 CRL")) != NULL) {
        behind = strstr(at, last);
        if (!behind) return 0;
        behind += strlen(last);
        kept = *behind;
        *behind = '\0';  // which has to be counted
        r = mbedtls_x509_crl_parse(&s->revoked, (unsigned char *)at, (size_t)(behind - at) + 1);
        *behind = kept;
        at = behind;
    }
    return r == 0;
}

// What it may be that mbedTLS cannot read, and what it can.
#define RVD_TLS_KINDS ": mbedTLS knows RSA and ECDSA (P-256, P-384), and not Ed25519"

// What is wrong with a blob, or NULL.
static const char *rvd_tls_take_authorities(rvd_tls_setup *s, rvd_tls_maker *m, rvd_tls_blob *b)
{
    int r = mbedtls_x509_crt_parse(&s->ca, b->data, rvd_tls_blob_size(b));
    // The system's may hold some that this library does not know.
    if (r < 0 || (r > 0 && m->ca))
        return "not all of it is certificates that can be read" RVD_TLS_KINDS;
    return rvd_tls_load_lists(s, b) ? NULL : "a revocation list cannot be read";
}

static const char *rvd_tls_take_cert(rvd_tls_setup *s, rvd_tls_maker *m, rvd_tls_blob *b)
{
    int r = mbedtls_x509_crt_parse(&s->own, b->data, rvd_tls_blob_size(b));
    (void)m;
    return r == 0 ? NULL : "holds no certificate that can be read" RVD_TLS_KINDS;
}

static const char *rvd_tls_take_key(rvd_tls_setup *s, rvd_tls_maker *m, rvd_tls_blob *b)
{
    int r = mbedtls_pk_parse_key(&s->key, b->data, rvd_tls_blob_size(b), NULL,
                                 0 RVD_TLS_AND_RANDOM(&m->random));
    (void)m;  // where no random numbers are wanted
    if (r == MBEDTLS_ERR_PK_PASSWORD_REQUIRED || r == MBEDTLS_ERR_PK_PASSWORD_MISMATCH)
        return "the key is encrypted";
    if (r) return "holds no key that can be read" RVD_TLS_KINDS;
    r = mbedtls_pk_check_pair(&s->own.pk, &s->key RVD_TLS_AND_RANDOM(&m->random));
    return r == 0 ? NULL
                  : "the key does not belong to the certificate, which is the first one of its "
                    "file";
}

typedef struct rvd_tls_source {
    const char *file, *what;
    const char *(*take)(rvd_tls_setup *s, rvd_tls_maker *m, rvd_tls_blob *b);
} rvd_tls_source;

static int rvd_tls_setup_load(rvd_tls_setup *s, rvd_tls_maker *m, revdial_err *err)
{
    const char *ca = m->ca || m->is_server ? m->ca : rvd_tls_system_bundle();
    const rvd_tls_source sources[] = {{ca, "ca", rvd_tls_take_authorities},
                                      {m->cert, "cert", rvd_tls_take_cert},
                                      {m->key, "key", rvd_tls_take_key}};
    int code = REVDIAL_OK;
    for (int i = 0; i < 3 && !code; i++) {
        rvd_tls_blob b;
        if (!sources[i].file) continue;
        code = rvd_tls_blob_load(&b, sources[i].file, sources[i].what, err);
        const char *why = code ? NULL : sources[i].take(s, m, &b);
        if (why) code = rvd_tls_fail(err, REVDIAL_EINVAL, b.name, why);
        rvd_tls_blob_free(&b);
    }
    return code;
}

static int rvd_tls_setup_conf(rvd_tls_setup *s, rvd_tls_maker *m)
{
    static const char *const protocols[] = {"http/1.1", NULL};  // h2 has no upgrade like ours
    mbedtls_ssl_config *c = &s->conf;
    int r =
        mbedtls_ssl_config_defaults(c, m->is_server ? MBEDTLS_SSL_IS_SERVER : MBEDTLS_SSL_IS_CLIENT,
                                    MBEDTLS_SSL_TRANSPORT_STREAM, MBEDTLS_SSL_PRESET_DEFAULT);
    if (r) return r;
    rvd_tls_conf_set(c, &m->random);
    mbedtls_ssl_conf_ciphersuites(c, rvd_tls_suites);
    mbedtls_ssl_conf_cert_profile(c, &mbedtls_x509_crt_profile_next);
    mbedtls_ssl_conf_authmode(c, m->is_server && !m->ca ? MBEDTLS_SSL_VERIFY_NONE
                                                        : MBEDTLS_SSL_VERIFY_REQUIRED);
    mbedtls_ssl_conf_ca_chain(c, &s->ca, s->revoked.version ? &s->revoked : NULL);
#ifdef MBEDTLS_SSL_RENEGOTIATION
    mbedtls_ssl_conf_renegotiation(c, MBEDTLS_SSL_RENEGOTIATION_DISABLED);
#endif
#if defined(MBEDTLS_SSL_SESSION_TICKETS) && defined(MBEDTLS_SSL_CLI_C)
    mbedtls_ssl_conf_session_tickets(c, MBEDTLS_SSL_SESSION_TICKETS_DISABLED);
#endif
#ifdef MBEDTLS_SSL_ALPN
    if (!m->is_server) r = mbedtls_ssl_conf_alpn_protocols(c, (const char **)(uintptr_t)protocols);
#endif
    if (!r && m->cert) r = mbedtls_ssl_conf_own_cert(c, &s->own, &s->key);
    return r;
}

static rvd_tls_setup *rvd_tls_setup_new(rvd_tls_maker *m, revdial_err *err)
{
    rvd_tls_setup *s = calloc(1, sizeof *s);
    int code;
    if (!s) {
        rvd_tls_fail(err, REVDIAL_ENOMEM, "TLS", "out of memory");
        return NULL;
    }
    s->refs = 1;
    mbedtls_ssl_config_init(&s->conf);
    mbedtls_x509_crt_init(&s->ca);
    mbedtls_x509_crt_init(&s->own);
    mbedtls_x509_crl_init(&s->revoked);
    mbedtls_pk_init(&s->key);
    code = rvd_tls_setup_load(s, m, err);
    if (!code && rvd_tls_setup_conf(s, m))
        code = rvd_tls_fail(err, REVDIAL_ENOMEM, "TLS", "it cannot be set up");
    if (!code) return s;
    rvd_tls_setup_free(s);
    return NULL;
}

// ================================================================================================
// MARK: impl.words
// Why it failed, for people.
// ================================================================================================

static const char *rvd_tls_alert_text(unsigned alert, int may_want_cert)
{
    if (alert == 40 && may_want_cert)
        return "it wants a certificate from us, or finds none of our ciphers good";
    switch (alert) {
#define REVDIAL_X(number, text) \
    case number: return text;
        REVDIAL_TLS_ALERTS(REVDIAL_X)
#undef REVDIAL_X
    default: return "no reason that we know";
    }
}

typedef struct rvd_tls_flaw {
    uint32_t flags;
    const char *text;
} rvd_tls_flaw;

// What is wrong with the peer's certificate; the gravest first.
static const char *rvd_tls_flaw_text(uint32_t flags)
{
    static const rvd_tls_flaw flaws[] = {
        {MBEDTLS_X509_BADCERT_MISSING, "is missing"},  // with all others: it was never looked at
        {MBEDTLS_X509_BADCERT_BAD_MD | MBEDTLS_X509_BADCERT_BAD_PK | MBEDTLS_X509_BADCERT_BAD_KEY,
         "has a key or a signature that is too weak"},
        {MBEDTLS_X509_BADCERT_NOT_TRUSTED, "is signed by an authority that is not trusted"},
        {MBEDTLS_X509_BADCERT_REVOKED, "has been revoked"},
        {MBEDTLS_X509_BADCRL_NOT_TRUSTED | MBEDTLS_X509_BADCRL_EXPIRED |
             MBEDTLS_X509_BADCRL_FUTURE | MBEDTLS_X509_BADCRL_BAD_MD | MBEDTLS_X509_BADCRL_BAD_PK |
             MBEDTLS_X509_BADCRL_BAD_KEY,
         "cannot be looked up: the revocation list is out of date or not good"},
        {MBEDTLS_X509_BADCERT_CN_MISMATCH, "is for another name than"},
        {MBEDTLS_X509_BADCERT_EXPIRED, "has expired, by this machine's clock"},
        {MBEDTLS_X509_BADCERT_FUTURE, "is not valid yet, by this machine's clock"},
        {MBEDTLS_X509_BADCERT_KEY_USAGE | MBEDTLS_X509_BADCERT_EXT_KEY_USAGE |
             MBEDTLS_X509_BADCERT_NS_CERT_TYPE,
         "is not meant for this use"},
        {MBEDTLS_X509_BADCERT_OTHER, "belongs to an authority, not to a backend"},
    };
    for (size_t i = 0; i < sizeof flaws / sizeof *flaws; i++)
        if (flags & flaws[i].flags) return flaws[i].text;
    return "is not good";
}

// ================================================================================================
// MARK: impl.link
// One connection: revdial_transport by an mbedtls_ssl_context. Calls never overlap.
// ================================================================================================

typedef struct rvd_tls_link {
    mbedtls_ssl_context ssl;
    rvd_tls_maker *maker;
    rvd_tls_setup *setup;
    rvd_tls_wire wire;
    int is_dry;          // the socket had nothing more to read
    int has_ended;       // the peer's side of the socket
    int steps;           // of the call that goes on: see RVD_TLS_STEPS_MAX
    int is_self_signed;  // the certificate that nobody vouches for
    int depth_max;       // of the certificates that were looked at
    char host[256];
    char reason[240];
} rvd_tls_link;

// mbedTLS ignores warnings, refuses hellos and skips what carries nothing within one call, as long
// as the peer sends more: a peer that never stops would keep the I/O thread. So the steps of a call
// are counted: records that it begins to read, what it sends, and messages that carry nothing. Most
// are in a handshake whose chain of 16 KiB comes in fragments of 512 bytes, RFC 6066 section 4: 50.
#define RVD_TLS_STEPS_MAX 256

static int rvd_tls_send(void *ctx, const unsigned char *buf, size_t len)
{
    rvd_tls_link *l = ctx;
    ptrdiff_t n;
    if (++l->steps > RVD_TLS_STEPS_MAX) return MBEDTLS_ERR_NET_SEND_FAILED;
    n = rvd_tls_wire_send(&l->wire, buf, len);
    if (n == REVDIAL_WANT_WRITE) return MBEDTLS_ERR_SSL_WANT_WRITE;
    return n < 0 ? MBEDTLS_ERR_NET_SEND_FAILED : (int)n;
}

static int rvd_tls_recv(void *ctx, unsigned char *buf, size_t len)
{
    rvd_tls_link *l = ctx;
    int is_record = l->ssl.RVD_TLS_FIELD(in_left) == 0;  // or the rest of one
    ptrdiff_t n;
    if (is_record && ++l->steps > RVD_TLS_STEPS_MAX) return MBEDTLS_ERR_NET_RECV_FAILED;
    n = rvd_tls_wire_recv(&l->wire, buf, len);
    if (n == 0) l->has_ended = 1;
    l->is_dry = n == REVDIAL_WANT_READ;
    if (l->is_dry) return MBEDTLS_ERR_SSL_WANT_READ;
    return n < 0 ? MBEDTLS_ERR_NET_RECV_FAILED : (int)n;
}

// Called for each certificate of the peer's chain, from the authority to the peer's own.
static int rvd_tls_look(void *ctx, mbedtls_x509_crt *cert, int depth, uint32_t *flags)
{
    rvd_tls_link *l = ctx;
    if (depth > l->depth_max) l->depth_max = depth;
    if (*flags & MBEDTLS_X509_BADCERT_NOT_TRUSTED)
        l->is_self_signed =
            cert->issuer_raw.len == cert->subject_raw.len &&
            memcmp(cert->issuer_raw.p, cert->subject_raw.p, cert->issuer_raw.len) == 0;
    // An authority below ours must not log in as a backend; one that we trust as it is may.
    if (l->maker->is_server && depth == 0 && l->depth_max > 0 && cert->RVD_TLS_FIELD(ca_istrue))
        *flags |= MBEDTLS_X509_BADCERT_OTHER;
    return 0;
}

static void rvd_tls_add(rvd_tls_link *l, const char *text)
{
    rvd_tls_append(l->reason, sizeof l->reason, text);
}

static void rvd_tls_say(rvd_tls_link *l, const char *what, const char *why)
{
    l->reason[0] = '\0';
    rvd_tls_add(l, "TLS: ");
    rvd_tls_add(l, what);
    rvd_tls_add(l, why);
}

static int rvd_tls_wants_cert(const rvd_tls_link *l)
{
    return l->maker->ca || !l->maker->is_server;
}

// Was the peer's certificate looked at, and is there something wrong with it?
static int rvd_tls_has_flaw(rvd_tls_link *l)
{
    uint32_t flags = mbedtls_ssl_get_verify_result(&l->ssl);
    return rvd_tls_wants_cert(l) && flags != 0 && flags != 0xFFFFFFFFu;
}

// mbedTLS leaves it to us to tell the peer.
static void rvd_tls_say_missing(rvd_tls_link *l)
{
    mbedtls_ssl_send_alert_message(&l->ssl, MBEDTLS_SSL_ALERT_LEVEL_FATAL,
                                   MBEDTLS_SSL_ALERT_MSG_HANDSHAKE_FAILURE);
    rvd_tls_say(l, "the peer showed no certificate, and one is required", "");
}

static void rvd_tls_say_flaw(rvd_tls_link *l)
{
    const char *text = rvd_tls_flaw_text(mbedtls_ssl_get_verify_result(&l->ssl));
    if (l->is_self_signed && strstr(text, "not trusted"))
        text = "is self-signed and not one that is trusted";
    rvd_tls_say(l, "the peer's certificate ", text);
    if (!strstr(text, "another name")) return;
    rvd_tls_add(l, " \"");
    rvd_tls_add(l, l->host);
    rvd_tls_add(l, "\"");
}

static void rvd_tls_say_alert(rvd_tls_link *l)
{
    unsigned alert = l->ssl.RVD_TLS_FIELD(in_msg) ? l->ssl.RVD_TLS_FIELD(in_msg)[1] : 0;
    // A server that has said its hello has found a suite.
    int may_want_cert = !l->maker->is_server && !l->setup->own.raw.p &&
                        l->ssl.RVD_TLS_FIELD(state) > MBEDTLS_SSL_SERVER_HELLO;
    char digits[4] = {(char)('0' + alert / 100), (char)('0' + alert / 10 % 10),
                      (char)('0' + alert % 10), '\0'};
    rvd_tls_say(l, "the peer refuses: ", rvd_tls_alert_text(alert, may_want_cert));
    rvd_tls_add(l, " (alert ");
    rvd_tls_add(l, digits + (alert < 100) + (alert < 10));
    rvd_tls_add(l, ")");
}

static int rvd_tls_say_lost(rvd_tls_link *l)
{
    int has_answered =
        l->maker->is_server || l->ssl.RVD_TLS_FIELD(state) > MBEDTLS_SSL_SERVER_HELLO;
    if (l->wire.sys)
        rvd_tls_say(l, "the connection was lost: ", strerror(l->wire.sys));
    else if (l->ssl.RVD_TLS_FIELD(state) < MBEDTLS_SSL_HANDSHAKE_OVER)
        rvd_tls_say(l, "the peer hung up during the handshake",
                    has_answered ? "" : ": perhaps that port does not speak TLS");
    else
        rvd_tls_say(l, "the connection ended without close_notify: it may have been cut", "");
    return REVDIAL_ELOST;
}

// What mbedTLS has returned: WANT_*, or an error, for which a reason is left.
static int rvd_tls_result(rvd_tls_link *l, int r)
{
    char text[128];
    if (l->steps > RVD_TLS_STEPS_MAX) {
        rvd_tls_say(l, "the peer sends messages without end that carry nothing", "");
        return REVDIAL_ETLS;
    }
    if (r == MBEDTLS_ERR_SSL_WANT_READ) return REVDIAL_WANT_READ;
    if (r == MBEDTLS_ERR_SSL_WANT_WRITE) return REVDIAL_WANT_WRITE;
    if (r == MBEDTLS_ERR_SSL_CONN_EOF || l->wire.sys) return rvd_tls_say_lost(l);
    if (r == MBEDTLS_ERR_SSL_ALLOC_FAILED || r == MBEDTLS_ERR_X509_ALLOC_FAILED) {
        rvd_tls_say(l, "out of memory", "");
        return REVDIAL_ENOMEM;
    }
    if (r == MBEDTLS_ERR_SSL_FATAL_ALERT_MESSAGE)
        rvd_tls_say_alert(l);
    else if (r == MBEDTLS_ERR_SSL_NO_CLIENT_CERTIFICATE)
        rvd_tls_say_missing(l);
    else if (r == MBEDTLS_ERR_X509_CERT_VERIFY_FAILED || rvd_tls_has_flaw(l))
        rvd_tls_say_flaw(l);
    else if (r == RVD_TLS_BAD_VERSION)
        rvd_tls_say(l, "the peer speaks no version that is accepted: 1.2 is the oldest", "");
    else if (RVD_TLS_NO_SUITE(r))
        rvd_tls_say(l, "the peer has no cipher suite that is accepted here",
                    ", or none for our certificate: P-256, P-384 and RSA suit all");
    else if (l->ssl.RVD_TLS_FIELD(state) <= MBEDTLS_SSL_SERVER_HELLO &&
             r == MBEDTLS_ERR_SSL_INVALID_RECORD)
        rvd_tls_say(l, "what the peer says is not TLS: ",
                    l->maker->is_server ? "an agent needs https:// or wss:// here"
                                        : "that port may be one for http://");
    else if (r == MBEDTLS_ERR_SSL_INVALID_MAC)  // as 3.6 and 4.0 have it, also an alert in 1.3
        rvd_tls_say(l, "a record was altered on the way, or the peer gave up", "");
    else if (l->maker->is_server && l->ssl.RVD_TLS_FIELD(state) == MBEDTLS_SSL_CLIENT_HELLO)
        rvd_tls_say(l, "what the peer says is not TLS, or no hello that can be read", "");
    else if (!l->maker->is_server &&
             (l->ssl.RVD_TLS_FIELD(state) == MBEDTLS_SSL_SERVER_HELLO || r == RVD_TLS_BAD_HELLO))
        rvd_tls_say(l, "the peer's hello is broken, or chooses what we did not offer", "");
    else {
        mbedtls_strerror(r, text, sizeof text);
        rvd_tls_say(l, text, "");
    }
    return REVDIAL_ETLS;
}

static int rvd_tls_do_handshake(void *ctx)
{
    rvd_tls_link *l = ctx;
    int r;
    if (l->maker->process != getpid()) {
        rvd_tls_say(l, "the process has forked: the child needs an object of its own", "");
        return REVDIAL_EINVAL;
    }
    l->steps = 0;
    if (!RVD_TLS_THREADS) pthread_mutex_lock(&l->maker->turn);
    r = mbedtls_ssl_handshake(&l->ssl);
    if (!RVD_TLS_THREADS) pthread_mutex_unlock(&l->maker->turn);
    // Said twice, because everything hangs on it.
    if (r == 0 && rvd_tls_wants_cert(l) &&
        (!mbedtls_ssl_get_peer_cert(&l->ssl) || mbedtls_ssl_get_verify_result(&l->ssl)))
        r = MBEDTLS_ERR_X509_CERT_VERIFY_FAILED;
    return r == 0 ? 0 : rvd_tls_result(l, r);
}

// A ticket is nothing to us. With one in its hands mbedTLS 4.0 also says WANT_READ when the socket
// has more, and a caller that waited for the socket could wait for ever. 0 may be an empty record.
static int rvd_tls_may_go_on(const rvd_tls_link *l, int r)
{
    return r == RVD_TLS_TICKET || (r == MBEDTLS_ERR_SSL_WANT_READ && !l->is_dry) ||
           (r == 0 && !l->has_ended);
}

static ptrdiff_t rvd_tls_do_read(void *ctx, void *buf, size_t len)
{
    rvd_tls_link *l = ctx;
    int r;
    l->is_dry = 0;
    l->steps = 0;
    do r = mbedtls_ssl_read(&l->ssl, buf, len);
    while (rvd_tls_may_go_on(l, r) && ++l->steps <= RVD_TLS_STEPS_MAX);
    if (r > 0) return r;
    if (r == MBEDTLS_ERR_SSL_PEER_CLOSE_NOTIFY) return 0;
    return rvd_tls_result(l, r == 0 ? MBEDTLS_ERR_SSL_CONN_EOF : r);
}

static ptrdiff_t rvd_tls_do_write(void *ctx, const void *buf, size_t len)
{
    rvd_tls_link *l = ctx;
    size_t at = 0;
    int r = 1;
    while (at < len && (r > 0 || r == RVD_TLS_TICKET)) {  // one that a read had begun with
        size_t n = rvd_tls_wire_next(&l->wire, len - at);
        l->steps = 0;
        r = mbedtls_ssl_write(&l->ssl, (const unsigned char *)buf + at, n);
        if (r > 0) at += (size_t)r;
    }
    l->wire.has_more = 0;
    return at ? (ptrdiff_t)at : rvd_tls_result(l, r);
}

static size_t rvd_tls_do_pending(void *ctx)
{
    rvd_tls_link *l = ctx;
    return mbedtls_ssl_get_bytes_avail(&l->ssl);
}

static int rvd_tls_do_finish(void *ctx)
{
    rvd_tls_link *l = ctx;
    int r;
    l->steps = 0;
    r = mbedtls_ssl_close_notify(&l->ssl);
    return r == 0 ? 0 : rvd_tls_result(l, r);
}

// The caller's or a connection's reference to the maker, and a connection's to its setup.
static void rvd_tls_let_go(rvd_tls_maker *m, rvd_tls_setup *s)
{
    int is_last, is_old;
    pthread_mutex_lock(&m->lock);
    is_old = s && --s->refs == 0;
    is_last = --m->refs == 0;
    pthread_mutex_unlock(&m->lock);
    if (is_old) rvd_tls_setup_free(s);
    if (!is_last) return;
    rvd_tls_setup_free(m->now);
    if (m->key) mbedtls_platform_zeroize(m->key, strlen(m->key));
    free(m->ca);
    free(m->cert);
    free(m->key);
    rvd_tls_random_close(&m->random);
    pthread_mutex_destroy(&m->turn);
    pthread_mutex_destroy(&m->random.lock);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

static void rvd_tls_do_close(void *ctx)
{
    rvd_tls_link *l = ctx;
    mbedtls_ssl_free(&l->ssl);
    rvd_tls_let_go(l->maker, l->setup);
    free(l);
}

static const char *rvd_tls_do_reason(void *ctx)
{
    rvd_tls_link *l = ctx;
    return l->reason;
}

// Adds "KIND:value" if it fits whole and nobody could read it in another way.
static size_t rvd_tls_san_add(revdial_identity *out, size_t n, const char *kind,
                              const mbedtls_x509_buf *value)
{
    size_t need = strlen(kind) + value->len + (n ? 1 : 0);
    if (n + need >= sizeof out->san) return n;
    for (size_t i = 0; i < value->len; i++)
        if (value->p[i] <= ' ' || value->p[i] > '~' || value->p[i] == ',') return n;
    if (n) out->san[n++] = ',';
    memcpy(out->san + n, kind, strlen(kind));
    n += strlen(kind);
    memcpy(out->san + n, value->p, value->len);
    n += value->len;
    out->san[n] = '\0';
    return n;
}

static int rvd_tls_do_peer(void *ctx, revdial_identity *out)
{
    rvd_tls_link *l = ctx;
    const mbedtls_x509_crt *cert = mbedtls_ssl_get_peer_cert(&l->ssl);
    size_t n = 0;
    memset(out, 0, sizeof *out);
    if (!cert || !rvd_tls_wants_cert(l) || mbedtls_ssl_get_verify_result(&l->ssl))
        return REVDIAL_EINVAL;
    if (mbedtls_md(mbedtls_md_info_from_type(MBEDTLS_MD_SHA256), cert->raw.p, cert->raw.len,
                   out->cert_sha256))
        return REVDIAL_ETLS;
    if (mbedtls_x509_dn_gets(out->subject, sizeof out->subject, &cert->subject) < 0)
        out->subject[0] = '\0';  // it does not fit, and a part of it might be another's
    for (const mbedtls_x509_sequence *s = &cert->subject_alt_names; s; s = s->next) {
        switch (s->buf.tag & 0x1F) {  // GeneralName, RFC 5280 section 4.2.1.6
        case 1: n = rvd_tls_san_add(out, n, "email:", &s->buf); break;
        case 2: n = rvd_tls_san_add(out, n, "DNS:", &s->buf); break;
        case 6: n = rvd_tls_san_add(out, n, "URI:", &s->buf); break;
        default: break;
        }
    }
    out->verified = 1;
    return 0;
}

// ================================================================================================
// MARK: impl.maker
// The public functions.
// ================================================================================================

static int rvd_tls_is_address(const char *host)
{
    return strchr(host, ':') || strspn(host, "0123456789.") == strlen(host);
}

// What is verified and sent as SNI: the host without the dot that ends an absolute name.
static int rvd_tls_link_host(rvd_tls_link *l, const char *host, revdial_err *err)
{
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:";
    size_t len = strlen(host);
    if (len && host[len - 1] == '.') len--;
    if (!len || len > 253 || strspn(host, letters) < len)
        return rvd_tls_fail(err, REVDIAL_EINVAL, "TLS", "the name to verify is not a host name");
    memcpy(l->host, host, len);
    if (rvd_tls_is_address(l->host) && !RVD_TLS_VERIFIES_IP)
        return rvd_tls_fail(err, REVDIAL_EINVAL, l->host,
                            "this version of mbedTLS cannot verify an address: set server_name");
    if (mbedtls_ssl_set_hostname(&l->ssl, l->host))
        return rvd_tls_fail(err, REVDIAL_ENOMEM, "TLS", "out of memory");
    return REVDIAL_OK;
}

static int rvd_tls_wrap(void *ud, int fd, const char *host, revdial_transport *out,
                        revdial_err *err)
{
    rvd_tls_maker *m = ud;
    rvd_tls_link *l;
    int code = REVDIAL_OK;
    if (m->process != getpid())
        return rvd_tls_fail(err, REVDIAL_EINVAL, "TLS", "made before a fork, in another process");
    if ((host == NULL) != m->is_server)
        return rvd_tls_fail(err, REVDIAL_EINVAL, "TLS",
                            m->is_server ? "a server's where a client's is needed"
                                         : "a client's where a server's is needed, or no name");
    l = calloc(1, sizeof *l);
    if (!l) return rvd_tls_fail(err, REVDIAL_ENOMEM, "TLS", "out of memory");
    l->maker = m;
    l->wire.fd = fd;
    pthread_mutex_lock(&m->lock);
    m->refs++;
    l->setup = m->now;
    l->setup->refs++;
    pthread_mutex_unlock(&m->lock);
    mbedtls_ssl_init(&l->ssl);
    if (mbedtls_ssl_setup(&l->ssl, &l->setup->conf))
        code = rvd_tls_fail(err, REVDIAL_ENOMEM, "TLS", "out of memory");
    if (!code && host) code = rvd_tls_link_host(l, host, err);
    if (code) {
        rvd_tls_do_close(l);
        return code;
    }
    mbedtls_ssl_set_bio(&l->ssl, l, rvd_tls_send, rvd_tls_recv, NULL);
    mbedtls_ssl_set_verify(&l->ssl, rvd_tls_look, l);
    memset(out, 0, sizeof *out);
    out->ctx = l;
    out->do_handshake = rvd_tls_do_handshake;
    out->do_read = rvd_tls_do_read;
    out->do_write = rvd_tls_do_write;
    out->do_pending = rvd_tls_do_pending;
    out->do_finish = rvd_tls_do_finish;
    out->do_close = rvd_tls_do_close;
    out->do_reason = rvd_tls_do_reason;
    out->do_peer = rvd_tls_do_peer;
    return REVDIAL_OK;
}

// Returns 0 without memory. NULL stays NULL.
static int rvd_tls_copy(char **to, const char *text)
{
    if (!text) return 1;
    *to = calloc(1, strlen(text) + 1);
    if (*to) memcpy(*to, text, strlen(text));
    return *to != NULL;
}

static int rvd_tls_maker_fill(rvd_tls_maker *m, const revdial_tls_config *cfg, revdial_err *err)
{
    if (!rvd_tls_copy(&m->ca, cfg->ca) || !rvd_tls_copy(&m->cert, cfg->cert) ||
        !rvd_tls_copy(&m->key, cfg->key))
        return rvd_tls_fail(err, REVDIAL_ENOMEM, "TLS", "out of memory");
    if (rvd_tls_random_open(&m->random))
        return rvd_tls_fail(err, REVDIAL_ESYS, "TLS", "no randomness, so no TLS");
    m->now = rvd_tls_setup_new(m, err);
    return m->now ? REVDIAL_OK : REVDIAL_EINVAL;
}

static revdial_tls *rvd_tls_new(const revdial_tls_config *cfg, int is_server, revdial_err *err)
{
    rvd_tls_maker *m;
    if (!cfg || !cfg->cert != !cfg->key || (is_server && !cfg->cert)) {
        rvd_tls_fail(err, REVDIAL_EINVAL, "TLS",
                     !cfg                    ? "config: NULL"
                     : cfg->cert || cfg->key ? "a certificate and its key belong together"
                                             : "a server needs a certificate and its key");
        return NULL;
    }
    m = calloc(1, sizeof *m);
    if (!m || pthread_mutex_init(&m->lock, NULL)) {
        rvd_tls_fail(err, REVDIAL_ENOMEM, "TLS", "out of memory");
        free(m);
        return NULL;
    }
    pthread_mutex_init(&m->random.lock, NULL);
    pthread_mutex_init(&m->turn, NULL);
    m->tls.ud = m;
    m->tls.wrap = rvd_tls_wrap;
    m->is_server = is_server;
    m->process = getpid();
    m->refs = 1;
    if (rvd_tls_maker_fill(m, cfg, err) == REVDIAL_OK) return &m->tls;
    rvd_tls_let_go(m, NULL);
    return NULL;
}

revdial_tls *revdial_tls_client(const revdial_tls_config *cfg, revdial_err *err)
{
    return rvd_tls_new(cfg, 0, err);
}

revdial_tls *revdial_tls_server(const revdial_tls_config *cfg, revdial_err *err)
{
    return rvd_tls_new(cfg, 1, err);
}

int revdial_tls_reload(revdial_tls *t, revdial_err *err)
{
    rvd_tls_maker *m = t->ud;
    revdial_err own;
    rvd_tls_setup *fresh = rvd_tls_setup_new(m, err ? err : (err = &own)), *old;
    if (!fresh) return err->code;
    pthread_mutex_lock(&m->lock);
    old = m->now;
    m->now = fresh;
    m->refs++;  // which goes with the one to the old setup
    pthread_mutex_unlock(&m->lock);
    rvd_tls_let_go(m, old);
    return REVDIAL_OK;
}

void revdial_tls_free(revdial_tls *t)
{
    if (t) rvd_tls_let_go(t->ud, NULL);
}

const char *revdial_tls_version(void)
{
    return "mbedTLS " MBEDTLS_VERSION_STRING;
}

#endif  // REVDIAL_TLS_IMPLEMENTED
#endif  // REVDIAL_TLS_IMPLEMENTATION

// ================================================================================================
// REVISION HISTORY
//   0.1.0  2026   first version
//
// LICENSE
//   MIT License
//
//   Copyright (c) 2026 the revdial authors
//
//   Permission is hereby granted, free of charge, to any person obtaining a copy
//   of this software and associated documentation files (the "Software"), to deal
//   in the Software without restriction, including without limitation the rights
//   to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
//   copies of the Software, and to permit persons to whom the Software is
//   furnished to do so, subject to the following conditions:
//
//   The above copyright notice and this permission notice shall be included in all
//   copies or substantial portions of the Software.
//
//   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
//   IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
//   FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
//   AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
//   LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
//   OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
//   SOFTWARE.
// ================================================================================================
