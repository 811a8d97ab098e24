// --auth-url: endpoints that are asked who may register, after the files.
//
// The request is a GET with the agent's Authorization, and Revdial-Name, Revdial-Instance and
// Revdial-Peer. 200 admits; 401 and 403 refuse. Everything else is an outage, by which nobody gets
// in: the agent is answered 503 and tries again.
#ifndef REVDIAL_PROXY_EXTERNAL_H
#define REVDIAL_PROXY_EXTERNAL_H

#include <pthread.h>

#include "quota.h"

typedef struct external_options {
    const char *url, *ca;
    const char *hosts;    // of those it admits, unless it names some; NULL = none
    revdial_quota quota;  // of those it admits, unless it gives others
    int timeout_ms;
} external_options;

typedef struct external_set external_set;

// Adds an endpoint to a set, which is made if *set is NULL.
//   group    of those it admits, unless it names one; NULL = none. It and the options outlive
//            nothing: they are copied
//   returns  0; or -1 and what is wrong in err->msg
int external_add(external_set **set, const external_options *o, const char *group,
                 revdial_err *err);
// Frees a set that was never used. NULL is ignored.
void external_set_free(external_set *set);

typedef struct external {
    prog_log *log;
    pthread_mutex_t lock;
    external_set *now;  // guarded by lock; NULL = nobody is asked
    prog_rate rate;     // of lines about outages
} external;

// Returns 0, or -1 with errno.
int external_open(external *x, prog_log *log);
// Asks those of this set from now on; takes it over. Returns the hook for the proxy, NULL for none.
revdial_auth_fn *external_use(external *x, external_set *set);
// When no hook runs any more.
void external_close(external *x);

#endif  // REVDIAL_PROXY_EXTERNAL_H
