// TLS of revdial-proxy and revdial-agent: files that options name, or a clear word that this
// program was built without it. Included once by each, after program.h. The Makefile sets
// PROGRAM_TLS where there is a TLS library, and PROGRAM_TLS_OPENSSL if that is OpenSSL.
#ifndef REVDIAL_PROGRAM_TLS_H
#define REVDIAL_PROGRAM_TLS_H

#ifdef PROGRAM_TLS_OPENSSL
#define TRANSPORT_OPENSSL_IMPLEMENTATION
#include "transport_openssl.h"
#elif defined(PROGRAM_TLS)
#define REVDIAL_TLS_IMPLEMENTATION
#include "revdial_tls.h"
#endif

typedef struct prog_tls_files {
    const char *ca, *cert, *key;
} prog_tls_files;

enum prog_tls_side { PROG_TLS_CLIENT, PROG_TLS_SERVER };

#ifdef PROGRAM_TLS

#define PROG_TLS_VERSION revdial_tls_version()

// Returns NULL and the reason in err->msg.
static revdial_tls *prog_tls_open(const prog_tls_files *files, enum prog_tls_side side,
                                  revdial_err *err)
{
    revdial_tls_config cfg = {files->ca, files->cert, files->key};
    const char *lacks = files->cert                             ? (files->key ? NULL : "--tls-key")
                        : files->key || side == PROG_TLS_SERVER ? "--tls-cert"
                                                                : NULL;
    if (lacks) {
        err->code = REVDIAL_EINVAL;
        snprintf(err->msg, sizeof err->msg, "%s: missing, and %s needs it", lacks,
                 files->cert  ? "--tls-cert"
                 : files->key ? "--tls-key"
                              : "--client-ca");
        return NULL;
    }
    return side == PROG_TLS_SERVER ? revdial_tls_server(&cfg, err) : revdial_tls_client(&cfg, err);
}

// Reads the files again. What cannot be read now changes nothing, and is said.
static void prog_tls_reload(revdial_tls *tls, prog_log *log)
{
    revdial_err err = {0};
    if (tls && revdial_tls_reload(tls, &err) != REVDIAL_OK)
        prog_log_error(log, "tls.unreadable", &err);
}

static void prog_tls_free(revdial_tls *tls)
{
    revdial_tls_free(tls);
}

#else

#define PROG_TLS_VERSION "no TLS"

static revdial_tls *prog_tls_open(const prog_tls_files *files, enum prog_tls_side side,
                                  revdial_err *err)
{
    (void)files;
    (void)side;
    err->code = REVDIAL_EINVAL;
    snprintf(err->msg, sizeof err->msg,
             "this program was built without TLS (mbedTLS was not found)");
    return NULL;
}

static void prog_tls_reload(revdial_tls *tls, prog_log *log)
{
    (void)tls;
    (void)log;
}

static void prog_tls_free(revdial_tls *tls)
{
    (void)tls;
}

#endif  // PROGRAM_TLS
#endif  // REVDIAL_PROGRAM_TLS_H
