// transport_openssl.h -- the TLS of revdial_tls.h, by OpenSSL 3.     SPDX-License-Identifier: MIT
//
// revdial.h takes any TLS library through revdial_transport; this file shows how one is plugged in.
// It implements the functions that revdial_tls.h declares, with the same configuration, checks and
// messages, so a program chooses the library when it is compiled: TLS 1.2 with forward secrecy and
// authenticated encryption or 1.3, no renegotiation, no resumption, no early data; a client always
// verifies the name.
//
// USE       In exactly one C file, before any other include, define
//           TRANSPORT_OPENSSL_IMPLEMENTATION and include this file; everywhere else include
//           revdial_tls.h. Link with -lssl -lcrypto -pthread.
//
// LIMITS    Kernel TLS is not used: it needs OpenSSL's own socket BIO, which writes without
//           MSG_NOSIGNAL and would raise SIGPIPE in the application.
#if defined(TRANSPORT_OPENSSL_IMPLEMENTATION) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE 1  // as the implementation of revdial.h
#endif

#ifdef TRANSPORT_OPENSSL_IMPLEMENTATION
#define REVDIAL_TLS_WIRE
#endif
#include "revdial_tls.h"

#if defined(TRANSPORT_OPENSSL_IMPLEMENTATION) && !defined(TRANSPORT_OPENSSL_IMPLEMENTED)
#define TRANSPORT_OPENSSL_IMPLEMENTED

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#if OPENSSL_VERSION_NUMBER < 0x30000000L
#error "transport_openssl.h needs OpenSSL 3.0 or later"
#endif

#define OSSL_FILE_MAX (4 << 20)  // a bundle of all public authorities has 0.3 MiB
// A chain that needs more is refused before it is looked at.
enum { OSSL_CHAIN_BYTES_MAX = 64 << 10, OSSL_CHAIN_DEPTH_MAX = 8 };
// One recv() takes four full records of TLS 1.3, so that bulk costs a quarter of the system calls.
// It takes no part of a fifth, for whose rest OpenSSL would make a call of its own. The buffer's
// alignment takes 3 bytes.
#define OSSL_READ_AHEAD (4 * (5 + 16384 + 1 + 16) + 3)

// OpenSSL goes on reading behind tickets, new keys and refused hellos within one call: a peer that
// never stops would keep the I/O thread. So the steps of a call are counted: its state changes and
// alerts. A part of a handshake has 16 at most, and a ticket, of which a server sends a few, has 4.
#define OSSL_STEPS_MAX 128

// What the caller holds. Connections hold the SSL_CTX that they began with.
typedef struct ossl_maker {
    revdial_tls tls;
    // Set before start, then read-only:
    int is_server;
    pid_t process;  // a child has the same descriptors and keys, and none of our threads
    char *ca, *cert, *key;
    pthread_mutex_t lock;  // guards `now`
    SSL_CTX *now;
} ossl_maker;

typedef struct ossl_link {
    SSL *ssl;
    BIO_METHOD *method;
    pid_t process;
    rvd_tls_wire wire;
    int is_server, wants_cert, is_up;
    int is_dry;          // the last read took all that there was
    int steps;           // of the call that goes on: see OSSL_STEPS_MAX
    int is_self_signed;  // the certificate that nobody vouches for
    char host[256];
    char reason[240];
} ossl_link;

// ---- errors ----

// Fills err, which may be NULL: "WHAT: WHY".
static int ossl_fail(revdial_err *err, int code, const char *what, const char *why)
{
    if (!err) return code;
    memset(err, 0, sizeof *err);
    err->code = code;
    if (code == REVDIAL_ESYS) err->sys = errno;
    snprintf(err->msg, sizeof err->msg, "%.*s: %s", (int)(sizeof err->msg / 2), what, why);
    for (char *c = err->msg; *c; c++)
        if ((unsigned char)*c < ' ') *c = '?';
    return code;
}

static const char *ossl_alert_text(int alert, int may_want_cert)
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

// What is wrong with the peer's certificate.
static const char *ossl_flaw_text(long flaw)
{
    switch (flaw) {
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN: return "is self-signed and not one that is trusted";
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
    case X509_V_ERR_INVALID_CA: return "is signed by an authority that is not trusted";
    case X509_V_ERR_CERT_HAS_EXPIRED: return "has expired, by this machine's clock";
    case X509_V_ERR_CERT_NOT_YET_VALID: return "is not valid yet, by this machine's clock";
    case X509_V_ERR_CERT_REVOKED: return "has been revoked";
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH: return "is for another name than";
    case X509_V_ERR_INVALID_PURPOSE: return "is not meant for this use";
    case X509_V_ERR_EE_KEY_TOO_SMALL:
    case X509_V_ERR_CA_KEY_TOO_SMALL:
    case X509_V_ERR_CA_MD_TOO_WEAK: return "has a key or a signature that is too weak";
    case X509_V_ERR_CERT_REJECTED: return "belongs to an authority, not to a backend";
    case X509_V_ERR_CERT_CHAIN_TOO_LONG: return "cannot be verified: its chain is too long";
    case X509_V_ERR_CRL_NOT_YET_VALID:
    case X509_V_ERR_CRL_HAS_EXPIRED:
    case X509_V_ERR_CRL_SIGNATURE_FAILURE:
        return "cannot be looked up: the revocation list is out of date or not good";
    default: return X509_verify_cert_error_string(flaw);
    }
}

static int ossl_say(ossl_link *l, int code, const char *what, const char *why)
{
    snprintf(l->reason, sizeof l->reason, "TLS: %s%s", what, why);
    return code;
}

static int ossl_say_flaw(ossl_link *l)
{
    long flaw = SSL_get_verify_result(l->ssl);
    size_t n;
    ossl_say(l, REVDIAL_ETLS, "the peer's certificate ", ossl_flaw_text(flaw));
    n = strlen(l->reason);
    if (flaw == X509_V_ERR_HOSTNAME_MISMATCH || flaw == X509_V_ERR_IP_ADDRESS_MISMATCH)
        snprintf(l->reason + n, sizeof l->reason - n, " \"%s\"", l->host);
    return REVDIAL_ETLS;
}

static int ossl_say_alert(ossl_link *l, int alert)
{
    // A server that has sent its hello has found a cipher suite.
    int may_want_cert =
        !l->is_server && !SSL_get_certificate(l->ssl) && SSL_get_pending_cipher(l->ssl);
    size_t n;
    ossl_say(l, REVDIAL_ETLS, "the peer refuses: ", ossl_alert_text(alert, may_want_cert));
    n = strlen(l->reason);
    snprintf(l->reason + n, sizeof l->reason - n, " (alert %d)", alert);
    return REVDIAL_ETLS;
}

static int ossl_say_lost(ossl_link *l)
{
    if (l->wire.sys)
        return ossl_say(l, REVDIAL_ELOST, "the connection was lost: ", strerror(l->wire.sys));
    if (!l->is_up) return ossl_say(l, REVDIAL_ELOST, "the peer hung up during the handshake", "");
    return ossl_say(l, REVDIAL_ELOST,
                    "the connection ended without close_notify: it may have been cut", "");
}

static int ossl_say_reason(ossl_link *l, int reason)
{
    switch (reason) {
    case SSL_R_UNEXPECTED_EOF_WHILE_READING: return ossl_say_lost(l);
    case ERR_R_MALLOC_FAILURE: return ossl_say(l, REVDIAL_ENOMEM, "out of memory", "");
    case SSL_R_CERTIFICATE_VERIFY_FAILED: return ossl_say_flaw(l);
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
        return ossl_say(l, REVDIAL_ETLS, "the peer showed no certificate, and one is required", "");
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_VERSION_TOO_LOW:
    case SSL_R_WRONG_SSL_VERSION:
        return ossl_say(l, REVDIAL_ETLS,
                        "the peer speaks no version that is accepted: 1.2 is the oldest", "");
    case SSL_R_WRONG_CIPHER_RETURNED:
    case SSL_R_UNKNOWN_CIPHER_RETURNED:
        return ossl_say(l, REVDIAL_ETLS,
                        "the peer's hello is broken, or chooses what we did not offer", "");
    case SSL_R_NO_SHARED_CIPHER:
    case SSL_R_NO_CIPHERS_SPECIFIED:
        return ossl_say(l, REVDIAL_ETLS, "the peer has no cipher suite that is accepted here", "");
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_HTTP_REQUEST:
    case SSL_R_HTTPS_PROXY_REQUEST:
    case SSL_R_PACKET_LENGTH_TOO_LONG:
        return ossl_say(l, REVDIAL_ETLS, "what the peer says is not TLS", "");
    case SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC:
        return ossl_say(l, REVDIAL_ETLS, "a record was altered on the way", "");
    default: {
        const char *text = ERR_reason_error_string(ERR_peek_error());
        return ossl_say(l, REVDIAL_ETLS, text ? text : "it failed, and OpenSSL does not say why",
                        "");
    }
    }
}

// What a call on the SSL has returned: WANT_*, or an error, for which a reason is left.
static int ossl_result(ossl_link *l, int r)
{
    int reason;
    if (l->steps > OSSL_STEPS_MAX)
        return ossl_say(l, REVDIAL_ETLS, "the peer sends messages without end that carry nothing",
                        "");
    switch (SSL_get_error(l->ssl, r)) {
    case SSL_ERROR_WANT_READ: return REVDIAL_WANT_READ;
    case SSL_ERROR_WANT_WRITE: return REVDIAL_WANT_WRITE;
    case SSL_ERROR_SYSCALL: return ossl_say_lost(l);
    default: break;
    }
    reason = ERR_GET_REASON(ERR_peek_error());
    if (l->wire.sys && !reason) return ossl_say_lost(l);
    if (reason > SSL_AD_REASON_OFFSET && reason < SSL_AD_REASON_OFFSET + 256)
        return ossl_say_alert(l, reason - SSL_AD_REASON_OFFSET);
    return ossl_say_reason(l, reason);
}

// ---- one connection ----

// OpenSSL's own socket BIO would raise SIGPIPE.
static int ossl_send(BIO *b, const char *buf, int len)
{
    ossl_link *l = BIO_get_data(b);
    ptrdiff_t n = rvd_tls_wire_send(&l->wire, buf, (size_t)len);
    BIO_clear_retry_flags(b);
    if (n == REVDIAL_WANT_WRITE) BIO_set_retry_write(b);
    return n < 0 ? -1 : (int)n;
}

static int ossl_recv(BIO *b, char *buf, int len)
{
    ossl_link *l = BIO_get_data(b);
    ptrdiff_t n;
    BIO_clear_retry_flags(b);
    if (l->steps > OSSL_STEPS_MAX) return -1;
    n = rvd_tls_wire_recv(&l->wire, buf, (size_t)len);
    if (n == 0) BIO_set_flags(b, BIO_FLAGS_IN_EOF);
    if (n == REVDIAL_WANT_READ) BIO_set_retry_read(b);
    return n < 0 ? -1 : (int)n;
}

static void ossl_step(const SSL *ssl, int where, int code)
{
    ossl_link *l = BIO_get_data(SSL_get_rbio(ssl));
    (void)where;
    (void)code;
    l->steps++;
}

static long ossl_ctrl(BIO *b, int cmd, long number, void *pointer)
{
    (void)number;
    (void)pointer;
    if (cmd == BIO_CTRL_EOF) return BIO_test_flags(b, BIO_FLAGS_IN_EOF) != 0;
    return cmd == BIO_CTRL_FLUSH;
}

static int ossl_do_handshake(void *ctx)
{
    ossl_link *l = ctx;
    int r;
    if (l->process != getpid())
        return ossl_say(l, REVDIAL_EINVAL,
                        "the process has forked: the child needs an object of its own", "");
    l->steps = 0;
    ERR_clear_error();
    r = SSL_do_handshake(l->ssl);
    if (r != 1) return ossl_result(l, r);
    l->is_up = 1;
    // OpenSSL has checked this, and everything depends on it.
    if (!l->wants_cert) return 0;
    if (!SSL_get0_peer_certificate(l->ssl))
        return ossl_say_reason(l, SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE);
    return SSL_get_verify_result(l->ssl) == X509_V_OK ? 0 : ossl_say_flaw(l);
}

static ptrdiff_t ossl_do_read(void *ctx, void *buf, size_t len)
{
    ossl_link *l = ctx;
    int r;
    l->steps = 0;
    ERR_clear_error();
    r = SSL_read(l->ssl, buf, len > INT_MAX ? INT_MAX : (int)len);
    l->is_dry = r <= 0;
    if (r > 0) return r;
    return SSL_get_error(l->ssl, r) == SSL_ERROR_ZERO_RETURN ? 0 : ossl_result(l, r);
}

static ptrdiff_t ossl_do_write(void *ctx, const void *buf, size_t len)
{
    ossl_link *l = ctx;
    size_t at = 0;
    int r = 1;
    l->steps = 0;
    ERR_clear_error();
    while (at < len && r > 0) {
        size_t n = rvd_tls_wire_next(&l->wire, len - at);
        r = SSL_write(l->ssl, (const char *)buf + at, (int)n);
        if (r > 0) at += (size_t)r;
    }
    l->wire.has_more = 0;
    return at ? (ptrdiff_t)at : ossl_result(l, r);
}

// SSL_has_pending() counts a part of a record, too. A read that has just returned WANT_READ has
// shown that no whole one is left.
static size_t ossl_do_pending(void *ctx)
{
    ossl_link *l = ctx;
    return !l->is_dry && SSL_has_pending(l->ssl);
}

static int ossl_do_finish(void *ctx)
{
    ossl_link *l = ctx;
    int r;
    l->steps = 0;
    ERR_clear_error();
    r = SSL_shutdown(l->ssl);
    return r >= 0 ? 0 : ossl_result(l, r);
}

static void ossl_do_close(void *ctx)
{
    ossl_link *l = ctx;
    SSL_free(l->ssl);
    BIO_meth_free(l->method);
    free(l);
}

static const char *ossl_do_reason(void *ctx)
{
    ossl_link *l = ctx;
    return l->reason;
}

// Adds "KIND:value" if it fits whole and nobody could read it in another way.
static size_t ossl_san_add(revdial_identity *out, size_t n, const char *kind, const ASN1_STRING *s)
{
    const unsigned char *text = ASN1_STRING_get0_data(s);
    size_t len = (size_t)ASN1_STRING_length(s);
    if (n + (n > 0) + strlen(kind) + len >= sizeof out->san) return n;
    for (size_t i = 0; i < len; i++)
        if (text[i] <= ' ' || text[i] > '~' || text[i] == ',') return n;
    return n + (size_t)snprintf(out->san + n, sizeof out->san - n, "%s%s%.*s", n ? "," : "", kind,
                                (int)len, (const char *)text);
}

static void ossl_sans(X509 *cert, revdial_identity *out)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
    size_t n = 0;
    for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
        int type;
        ASN1_STRING *value = GENERAL_NAME_get0_value(sk_GENERAL_NAME_value(names, i), &type);
        if (type == GEN_EMAIL) n = ossl_san_add(out, n, "email:", value);
        if (type == GEN_DNS) n = ossl_san_add(out, n, "DNS:", value);
        if (type == GEN_URI) n = ossl_san_add(out, n, "URI:", value);
    }
    GENERAL_NAMES_free(names);
}

static int ossl_do_peer(void *ctx, revdial_identity *out)
{
    ossl_link *l = ctx;
    X509 *cert = SSL_get0_peer_certificate(l->ssl);
    BIO *b;
    int n;
    memset(out, 0, sizeof *out);
    if (!cert || !l->wants_cert || SSL_get_verify_result(l->ssl) != X509_V_OK)
        return REVDIAL_EINVAL;
    if (!X509_digest(cert, EVP_sha256(), out->cert_sha256, NULL)) return REVDIAL_ETLS;
    b = BIO_new(BIO_s_mem());
    if (!b) return REVDIAL_ENOMEM;
    n = X509_NAME_print_ex(b, X509_get_subject_name(cert), 0,
                           (XN_FLAG_RFC2253 & ~(unsigned long)(XN_FLAG_SEP_MASK | XN_FLAG_DN_REV)) |
                               XN_FLAG_SEP_CPLUS_SPC);
    // One that does not fit, or cannot be printed, is left out: a part of it might be another's.
    if (n >= 0 && n < (int)sizeof out->subject)
        n = BIO_read(b, out->subject, sizeof out->subject - 1);
    else
        n = 0;
    out->subject[n > 0 ? n : 0] = '\0';
    BIO_free(b);
    ossl_sans(cert, out);
    out->verified = 1;
    return 0;
}

// Called for each certificate of the peer's chain, and for what is wrong with it.
static int ossl_look(int is_good, X509_STORE_CTX *store)
{
    SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    int depth = X509_STORE_CTX_get_error_depth(store);
    // An authority without a revocation list revokes nothing.
    if (!is_good && X509_STORE_CTX_get_error(store) == X509_V_ERR_UNABLE_TO_GET_CRL) {
        X509_STORE_CTX_set_error(store, X509_V_OK);
        is_good = 1;
    }
    // An authority below ours must not log in as a backend; one that we trust as it is may.
    if (is_good && SSL_is_server(ssl) && depth == 0 &&
        sk_X509_num(X509_STORE_CTX_get0_chain(store)) > 1 &&
        X509_check_ca(X509_STORE_CTX_get_current_cert(store)) > 0) {
        X509_STORE_CTX_set_error(store, X509_V_ERR_CERT_REJECTED);
        return 0;
    }
    return is_good;
}

// ---- files ----

static BIO *ossl_read_file(int fd, const char *file, revdial_err *err)
{
    struct stat st;
    char buf[4096];
    BIO *b = NULL;
    ssize_t n = -1;
    if (fstat(fd, &st) < 0)
        ossl_fail(err, REVDIAL_ESYS, file, strerror(errno));
    else if (S_ISDIR(st.st_mode))
        ossl_fail(err, REVDIAL_EINVAL, file, "is a directory");
    else if (st.st_size == 0)
        ossl_fail(err, REVDIAL_EINVAL, file, "is empty");
    else if (st.st_size < 0 || st.st_size > OSSL_FILE_MAX)
        ossl_fail(err, REVDIAL_EINVAL, file, "is no file with certificates or a key");
    else if (!(b = BIO_new(BIO_s_mem())))
        ossl_fail(err, REVDIAL_ENOMEM, file, "out of memory");
    while (b && (n = read(fd, buf, sizeof buf)) != 0) {
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            ossl_fail(err, REVDIAL_ESYS, file, strerror(errno));
        else if (BIO_write(b, buf, (int)n) == n)
            continue;
        else
            ossl_fail(err, REVDIAL_ENOMEM, file, "out of memory");
        BIO_free(b);
        b = NULL;
    }
    OPENSSL_cleanse(buf, sizeof buf);
    return b;
}

// The contents of a file, or of text. `name`, for errors, becomes `what` where it is text.
static BIO *ossl_open(const char *file, const char *what, const char **name, revdial_err *err)
{
    BIO *b;
    int fd;
    *name = file;
    if (strstr(file, "-----BEGIN")) {
        *name = what;
        b = BIO_new_mem_buf(file, -1);
        if (!b) ossl_fail(err, REVDIAL_ENOMEM, what, "out of memory");
        return b;
    }
    fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        ossl_fail(err, REVDIAL_ESYS, file, strerror(errno));
        return NULL;
    }
    b = ossl_read_file(fd, file, err);
    close(fd);
    return b;
}

// A key that needs a password is refused, instead of asking for it on the terminal.
static int ossl_no_password(char *buf, int size, int is_writing, void *was_asked)
{
    (void)buf;
    (void)size;
    (void)is_writing;
    *(int *)was_asked = 1;
    return -1;
}

static int ossl_load_authorities(SSL_CTX *c, const char *file, revdial_err *err)
{
    X509_STORE *store = SSL_CTX_get_cert_store(c);
    STACK_OF(X509_INFO) * all;
    const char *name;
    BIO *b = ossl_open(file, "ca", &name, err);
    int certs = 0, lists = 0, is_good = 1;
    if (!b) return REVDIAL_EINVAL;
    all = PEM_X509_INFO_read_bio(b, NULL, NULL, NULL);
    for (int i = 0; i < sk_X509_INFO_num(all); i++) {
        X509_INFO *one = sk_X509_INFO_value(all, i);
        if (one->x509) certs += is_good = is_good && X509_STORE_add_cert(store, one->x509);
        if (one->crl) lists += is_good = is_good && X509_STORE_add_crl(store, one->crl);
        if (one->x509 && SSL_CTX_get_verify_mode(c) & SSL_VERIFY_FAIL_IF_NO_PEER_CERT)
            SSL_CTX_add_client_CA(c, one->x509);  // so that a backend knows which one to show
    }
    sk_X509_INFO_pop_free(all, X509_INFO_free);
    if (!certs) {
        X509 *der = BIO_seek(b, 0) < 0 ? NULL : d2i_X509_bio(b, NULL);
        certs = der && X509_STORE_add_cert(store, der);
        X509_free(der);
    }
    BIO_free(b);
    if (!certs || !is_good)
        return ossl_fail(err, REVDIAL_EINVAL, name,
                         "not all of it is certificates that can be read");
    if (lists) X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK | X509_V_FLAG_CRL_CHECK_ALL);
    return REVDIAL_OK;
}

// The first certificate is ours, the others lead to the authority.
static int ossl_load_cert(SSL_CTX *c, const char *file, revdial_err *err)
{
    const char *name;
    BIO *b = ossl_open(file, "cert", &name, err);
    X509 *cert;
    int count = 0, is_good = 1;
    if (!b) return REVDIAL_EINVAL;
    ERR_clear_error();
    for (; is_good && (cert = PEM_read_bio_X509(b, NULL, NULL, NULL)); count++) {
        is_good = count ? SSL_CTX_add1_chain_cert(c, cert) != 0 : SSL_CTX_use_certificate(c, cert);
        X509_free(cert);
    }
    if (!count && BIO_seek(b, 0) >= 0 && (cert = d2i_X509_bio(b, NULL)) != NULL) {
        count = 1;
        ERR_clear_error();
        is_good = SSL_CTX_use_certificate(c, cert);
        X509_free(cert);
    } else if (is_good && ERR_GET_REASON(ERR_peek_last_error()) != PEM_R_NO_START_LINE) {
        count = 0;
    }
    BIO_free(b);
    if (!count)
        return ossl_fail(err, REVDIAL_EINVAL, name, "holds no certificate that can be read");
    // Security level 2 refuses here what every peer would refuse later.
    return is_good ? REVDIAL_OK
                   : ossl_fail(err, REVDIAL_EINVAL, name,
                               ERR_reason_error_string(ERR_peek_last_error()));
}

static int ossl_load_key(SSL_CTX *c, const char *file, revdial_err *err)
{
    const char *name, *problem = NULL;
    BIO *b = ossl_open(file, "key", &name, err);
    EVP_PKEY *key;
    int was_asked = 0;
    if (!b) return REVDIAL_EINVAL;
    key = PEM_read_bio_PrivateKey(b, NULL, ossl_no_password, &was_asked);
    if (!key && !was_asked && BIO_seek(b, 0) >= 0) key = d2i_PrivateKey_bio(b, NULL);
    if (was_asked)
        problem = "the key is encrypted";
    else if (!key)
        problem = "holds no key that can be read";
    else if (X509_check_private_key(SSL_CTX_get0_certificate(c), key) != 1 ||
             SSL_CTX_use_PrivateKey(c, key) != 1)
        problem = "the key does not belong to the certificate, which is the first one of its file";
    EVP_PKEY_free(key);
    BIO_free(b);
    return problem ? ossl_fail(err, REVDIAL_EINVAL, name, problem) : REVDIAL_OK;
}

// What is accepted: the same as in revdial_tls.h, the fastest cipher first.
static int ossl_accept(SSL_CTX *c, const ossl_maker *m)
{
    static const unsigned char protocols[] = "\x08http/1.1";  // h2 has no upgrade like ours
    static const char suites[] = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:"
                                 "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:"
                                 "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384";
    static const char suites_1_3[] =
        "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384";
    char groups[] = "X25519:P-256:P-384";  // the macro that takes it casts const away
    X509_VERIFY_PARAM *verify = SSL_CTX_get0_param(c);
    int mode = m->is_server && !m->ca ? SSL_VERIFY_NONE
                                      : SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT;
    SSL_CTX_set_security_level(c, 2);  // no RSA under 2048 bits, no SHA-1
    SSL_CTX_set_options(c, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION |
                               SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(c, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE);
    SSL_CTX_set_read_ahead(c, 1);
    SSL_CTX_set_default_read_buffer_len(c, OSSL_READ_AHEAD);
    SSL_CTX_set_verify(c, mode, ossl_look);
    SSL_CTX_set_verify_depth(c, OSSL_CHAIN_DEPTH_MAX);
    SSL_CTX_set_max_cert_list(c, OSSL_CHAIN_BYTES_MAX);
    X509_VERIFY_PARAM_set_flags(verify, X509_V_FLAG_PARTIAL_CHAIN);
    X509_VERIFY_PARAM_set_hostflags(verify, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    return SSL_CTX_set_min_proto_version(c, TLS1_2_VERSION) && SSL_CTX_set_num_tickets(c, 0) &&
           SSL_CTX_set_cipher_list(c, suites) && SSL_CTX_set_ciphersuites(c, suites_1_3) &&
           SSL_CTX_set1_groups_list(c, groups) &&
           (m->is_server || !SSL_CTX_set_alpn_protos(c, protocols, sizeof protocols - 1));
}

static SSL_CTX *ossl_ctx_new(const ossl_maker *m, revdial_err *err)
{
    SSL_CTX *c = SSL_CTX_new(m->is_server ? TLS_server_method() : TLS_client_method());
    int code = REVDIAL_OK;
    if (!c || !ossl_accept(c, m))
        code = ossl_fail(err, REVDIAL_ENOMEM, "TLS", "it cannot be set up");
    if (!code && m->ca) code = ossl_load_authorities(c, m->ca, err);
    if (!code && !m->ca && !m->is_server && !SSL_CTX_set_default_verify_paths(c))
        code = ossl_fail(err, REVDIAL_EINVAL, "ca", "the system's authorities cannot be read");
    if (!code && m->cert) code = ossl_load_cert(c, m->cert, err);
    if (!code && m->key) code = ossl_load_key(c, m->key, err);
    if (!code) return c;
    SSL_CTX_free(c);
    return NULL;
}

// ---- the public functions ----

static int ossl_is_address(const char *host)
{
    return strchr(host, ':') || strspn(host, "0123456789.") == strlen(host);
}

// What is verified and sent as SNI: the host without the dot that ends an absolute name.
static int ossl_link_host(ossl_link *l, const char *host, revdial_err *err)
{
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:";
    size_t len = strlen(host);
    int is_set;
    if (len && host[len - 1] == '.') len--;
    if (!len || len > 253 || strspn(host, letters) < len)
        return ossl_fail(err, REVDIAL_EINVAL, "TLS", "the name to verify is not a host name");
    memcpy(l->host, host, len);
    is_set = ossl_is_address(l->host)
                 ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(l->ssl), l->host)
                 : SSL_set1_host(l->ssl, l->host) && SSL_set_tlsext_host_name(l->ssl, l->host);
    return is_set ? REVDIAL_OK
                  : ossl_fail(err, REVDIAL_EINVAL, l->host, "is no name or address to verify");
}

static int ossl_link_open(ossl_link *l, const char *host, revdial_err *err)
{
    BIO *b = NULL;
    l->method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "revdial");
    if (l->ssl && l->method) {
        BIO_meth_set_write(l->method, ossl_send);
        BIO_meth_set_read(l->method, ossl_recv);
        BIO_meth_set_ctrl(l->method, ossl_ctrl);
        b = BIO_new(l->method);
    }
    if (!b) return ossl_fail(err, REVDIAL_ENOMEM, "TLS", "out of memory");
    BIO_set_data(b, l);
    BIO_set_init(b, 1);
    SSL_set_bio(l->ssl, b, b);  // which owns it now
    SSL_set_info_callback(l->ssl, ossl_step);
    if (l->is_server)
        SSL_set_accept_state(l->ssl);
    else
        SSL_set_connect_state(l->ssl);
    return host ? ossl_link_host(l, host, err) : REVDIAL_OK;
}

static int ossl_wrap(void *ud, int fd, const char *host, revdial_transport *out, revdial_err *err)
{
    ossl_maker *m = ud;
    ossl_link *l;
    int code;
    if (m->process != getpid())
        return ossl_fail(err, REVDIAL_EINVAL, "TLS", "made before a fork, in another process");
    if ((host == NULL) != m->is_server)
        return ossl_fail(err, REVDIAL_EINVAL, "TLS",
                         m->is_server ? "a server's where a client's is needed"
                                      : "a client's where a server's is needed, or no name");
    l = calloc(1, sizeof *l);
    if (!l) return ossl_fail(err, REVDIAL_ENOMEM, "TLS", "out of memory");
    l->wire.fd = fd;
    l->process = m->process;
    l->is_server = m->is_server;
    l->wants_cert = m->ca || !m->is_server;
    pthread_mutex_lock(&m->lock);
    l->ssl = SSL_new(m->now);
    pthread_mutex_unlock(&m->lock);
    code = ossl_link_open(l, host, err);
    if (code) {
        ossl_do_close(l);
        return code;
    }
    memset(out, 0, sizeof *out);
    out->ctx = l;
    out->do_handshake = ossl_do_handshake;
    out->do_read = ossl_do_read;
    out->do_write = ossl_do_write;
    out->do_pending = ossl_do_pending;
    out->do_finish = ossl_do_finish;
    out->do_close = ossl_do_close;
    out->do_reason = ossl_do_reason;
    out->do_peer = ossl_do_peer;
    return REVDIAL_OK;
}

void revdial_tls_free(revdial_tls *t)
{
    ossl_maker *m = t ? t->ud : NULL;
    if (!m) return;
    SSL_CTX_free(m->now);
    free(m->ca);
    free(m->cert);
    if (m->key) OPENSSL_cleanse(m->key, strlen(m->key));
    free(m->key);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

static revdial_tls *ossl_new(const revdial_tls_config *cfg, int is_server, revdial_err *err)
{
    ossl_maker *m;
    if (!cfg || !cfg->cert != !cfg->key || (is_server && !cfg->cert)) {
        ossl_fail(err, REVDIAL_EINVAL, "TLS",
                  !cfg                    ? "config: NULL"
                  : cfg->cert || cfg->key ? "a certificate and its key belong together"
                                          : "a server needs a certificate and its key");
        return NULL;
    }
    m = calloc(1, sizeof *m);
    if (!m || pthread_mutex_init(&m->lock, NULL)) {
        ossl_fail(err, REVDIAL_ENOMEM, "TLS", "out of memory");
        free(m);
        return NULL;
    }
    m->tls.ud = m;
    m->tls.wrap = ossl_wrap;
    m->is_server = is_server;
    m->process = getpid();
    if ((cfg->ca && !(m->ca = strdup(cfg->ca))) || (cfg->cert && !(m->cert = strdup(cfg->cert))) ||
        (cfg->key && !(m->key = strdup(cfg->key))))
        ossl_fail(err, REVDIAL_ENOMEM, "TLS", "out of memory");
    else if ((m->now = ossl_ctx_new(m, err)) != NULL)
        return &m->tls;
    revdial_tls_free(&m->tls);
    return NULL;
}

revdial_tls *revdial_tls_client(const revdial_tls_config *cfg, revdial_err *err)
{
    return ossl_new(cfg, 0, err);
}

revdial_tls *revdial_tls_server(const revdial_tls_config *cfg, revdial_err *err)
{
    return ossl_new(cfg, 1, err);
}

int revdial_tls_reload(revdial_tls *t, revdial_err *err)
{
    ossl_maker *m = t->ud;
    revdial_err own = {0};
    SSL_CTX *fresh = ossl_ctx_new(m, err ? err : (err = &own)), *old;
    if (!fresh) return err->code;
    pthread_mutex_lock(&m->lock);
    old = m->now;
    m->now = fresh;
    pthread_mutex_unlock(&m->lock);
    SSL_CTX_free(old);
    return REVDIAL_OK;
}

const char *revdial_tls_version(void)
{
    return "OpenSSL " OPENSSL_FULL_VERSION_STR;
}

#endif  // TRANSPORT_OPENSSL_IMPLEMENTATION
