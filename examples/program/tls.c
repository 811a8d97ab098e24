// TLS of the programs. The Makefile sets PROGRAM_TLS where there is a TLS library, and
// PROGRAM_TLS_OPENSSL if that is OpenSSL.
#include <stdio.h>
#include <stdlib.h>

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

// What the library is given, and what it leads to now: the latter can be replaced.
typedef struct prog_tls {
    revdial_tls tls;
    pthread_rwlock_t lock;  // guards `now`
    revdial_tls *now;
} prog_tls;

static int prog_tls_wrap(void *ud, int fd, const char *host, revdial_transport *out,
                         revdial_err *err)
{
    prog_tls *t = ud;
    int r;
    pthread_rwlock_rdlock(&t->lock);
    r = t->now->wrap(t->now->ud, fd, host, out, err);
    pthread_rwlock_unlock(&t->lock);
    return r;
}

// Takes now, also where it fails.
static revdial_tls *prog_tls_holding(revdial_tls *now, revdial_err *err)
{
    prog_tls *t = calloc(1, sizeof *t);
    if (t && pthread_rwlock_init(&t->lock, NULL) == 0) {
        t->tls = (revdial_tls){t, prog_tls_wrap};
        t->now = now;
        return &t->tls;
    }
    free(t);
    revdial_tls_free(now);
    err->code = REVDIAL_ENOMEM;
    snprintf(err->msg, sizeof err->msg, "out of memory");
    return NULL;
}

revdial_tls *prog_tls_open(const prog_tls_files *files, enum prog_tls_side side, revdial_err *err)
{
    revdial_tls_config cfg = {files->ca, files->cert, files->key};
    revdial_tls *now;
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
    now = side == PROG_TLS_SERVER ? revdial_tls_server(&cfg, err) : revdial_tls_client(&cfg, err);
    return now ? prog_tls_holding(now, err) : NULL;
}

int prog_tls_reload(revdial_tls *tls, revdial_err *err)
{
    prog_tls *t = tls ? tls->ud : NULL;
    int r;
    if (!t) return REVDIAL_OK;
    pthread_rwlock_rdlock(&t->lock);
    r = revdial_tls_reload(t->now, err);
    pthread_rwlock_unlock(&t->lock);
    return r;
}

void prog_tls_free(revdial_tls *tls)
{
    prog_tls *t = tls ? tls->ud : NULL;
    if (!t) return;
    revdial_tls_free(t->now);
    pthread_rwlock_destroy(&t->lock);
    free(t);
}

void prog_tls_take(revdial_tls *tls, revdial_tls **next)
{
    prog_tls *t = tls ? tls->ud : NULL, *from = *next ? (*next)->ud : NULL;
    revdial_tls *old;
    if (!t || !from) return;
    pthread_rwlock_wrlock(&t->lock);
    old = t->now;
    t->now = from->now;
    from->now = old;
    pthread_rwlock_unlock(&t->lock);
    prog_tls_free(*next);
    *next = NULL;
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

void prog_tls_take(revdial_tls *tls, revdial_tls **next)
{
    (void)tls;
    (void)next;
}

void prog_tls_free(revdial_tls *tls)
{
    (void)tls;
}

#endif  // PROGRAM_TLS
