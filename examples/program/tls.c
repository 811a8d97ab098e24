// TLS of the programs. The Makefile sets PROGRAM_TLS where there is a TLS library, and
// PROGRAM_TLS_OPENSSL if that is OpenSSL.
#include <stdio.h>

#include "program.h"

#ifdef PROGRAM_TLS_OPENSSL
#define TRANSPORT_OPENSSL_IMPLEMENTATION
#include "../transport_openssl.h"
#elif defined(PROGRAM_TLS)
#define REVDIAL_TLS_IMPLEMENTATION
#include "revdial_tls.h"
#endif

#ifdef PROGRAM_TLS

const char *prog_tls_version(void)
{
    return revdial_tls_version();
}

revdial_tls *prog_tls_open(const prog_tls_files *files, enum prog_tls_side side, revdial_err *err)
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

int prog_tls_reload(revdial_tls *tls, revdial_err *err)
{
    return tls ? revdial_tls_reload(tls, err) : REVDIAL_OK;
}

void prog_tls_free(revdial_tls *tls)
{
    revdial_tls_free(tls);
}

#else

const char *prog_tls_version(void)
{
    return "no TLS";
}

revdial_tls *prog_tls_open(const prog_tls_files *files, enum prog_tls_side side, revdial_err *err)
{
    (void)files;
    (void)side;
    err->code = REVDIAL_EINVAL;
    snprintf(err->msg, sizeof err->msg,
             "this program was built without TLS (mbedTLS was not found)");
    return NULL;
}

int prog_tls_reload(revdial_tls *tls, revdial_err *err)
{
    (void)tls;
    (void)err;
    return REVDIAL_OK;
}

void prog_tls_free(revdial_tls *tls)
{
    (void)tls;
}

#endif  // PROGRAM_TLS
