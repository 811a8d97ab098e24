// Asks endpoints who may register. Hooks run on threads of their own, of which the library has a
// fixed number and gives one source at most half, so requests in flight are bounded by these.
#include "external.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "fetch.h"
#include "hosts.h"

enum {
    GROUP_SIZE = 128,  // as in the library, which also bounds the rest of what an agent sends
    REQUEST_SIZE = 16384,
    AUTHORIZATION_SIZE = 8192,
    OUTAGE_MS = 60000  // for how long an endpoint that could not say is asked last
};

typedef struct endpoint {
    fetch_url url;
    revdial_tls *tls;  // of https
    int timeout_ms;
    revdial_quota quota;
    atomic_llong outage_ms;          // when it could not say, by fetch_now_ms(); 0 = it has said
    char group[GROUP_SIZE];          // "group=cams", as those of the files; "" = none
    char hosts[REVDIAL_LABEL_SIZE];  // "" = none
    char text[];                     // the URL, which `url` points into
} endpoint;

struct external_set {
    endpoint **all;
    size_t count;
    unsigned refs;  // guarded by the lock of its user
};

// ------------------------------------------------------------------------------------------------
// Sets

static void endpoint_free(endpoint *e)
{
    if (e) prog_tls_free(e->tls);
    free(e);
}

void external_set_free(external_set *set)
{
    if (!set) return;
    for (size_t i = 0; i < set->count; i++) endpoint_free(set->all[i]);
    free(set->all);
    free(set);
}

static int complain(revdial_err *err, const char *problem, const char *what)
{
    snprintf(err->msg, sizeof err->msg, "%s%s%.120s", problem, *what ? " " : "", what);
    return -1;
}

// Returns 0, or -1 and the reason in err->msg.
static int endpoint_open(endpoint *e, const external_options *o, const char *group,
                         revdial_err *err)
{
    const prog_tls_files files = {.ca = o->ca};
    const char *problem;
    strcpy(e->text, o->url);
    e->timeout_ms = o->timeout_ms;
    e->quota = o->quota;
    if (group && strlen(group) + sizeof "group=" > sizeof e->group)
        return complain(err, "the name of the group is too long:", group);
    if (group) snprintf(e->group, sizeof e->group, "group=%s", group);
    if (o->hosts) snprintf(e->hosts, sizeof e->hosts, "%s", o->hosts);
    problem = fetch_url_parse(&e->url, e->text);
    if (problem) return complain(err, problem, o->url);
    if (!e->url.is_tls) return 0;
    e->tls = prog_tls_open(&files, PROG_TLS_CLIENT, err);
    return e->tls ? 0 : -1;
}

int external_add(external_set **set, const external_options *o, const char *group, revdial_err *err)
{
    endpoint *e = calloc(1, sizeof *e + strlen(o->url) + 1), **all;
    if (!*set) *set = calloc(1, sizeof **set);
    if (!e || !*set) {
        free(e);
        return complain(err, "out of memory", "");
    }
    all = realloc((*set)->all, ((*set)->count + 1) * sizeof *all);
    if (all) (*set)->all = all;
    if (!all || endpoint_open(e, o, group, err) != 0) {
        endpoint_free(e);
        return all ? -1 : complain(err, "out of memory", "");
    }
    all[(*set)->count++] = e;
    return 0;
}

// ------------------------------------------------------------------------------------------------
// One question. It holds a secret, so it is wiped.

typedef struct question {
    const endpoint *to;
    const revdial_auth_req *req;
    char authorization[AUTHORIZATION_SIZE];
    char request[REQUEST_SIZE];
    char head[FETCH_HEAD_SIZE];  // of the answer
    revdial_err err;
} question;

// Writes the Authorization anew, as the library has taken it apart. Returns 0 if it has no room.
static int question_authorize(question *q)
{
    const revdial_auth_req *req = q->req;
    char *at = q->authorization, login[AUTHORIZATION_SIZE / 2];
    int n;
    if (req->scheme == REVDIAL_AUTH_BEARER) {
        n = snprintf(at, sizeof q->authorization, "Bearer %s", req->secret);
        return n > 0 && (size_t)n < sizeof q->authorization;
    }
    n = snprintf(login, sizeof login, "%s:%s", req->user, req->secret);
    if (n > 0 && (size_t)n < sizeof login && (size_t)n < sizeof q->authorization * 3 / 4 - 16) {
        strcpy(at, "Basic ");
        fetch_base64(at + strlen(at), login);
    }
    prog_wipe(login, sizeof login);
    return *at != '\0';
}

// Returns the length of the request; 0: it has no room.
static size_t question_write(question *q)
{
    const fetch_url *url = &q->to->url;
    const revdial_auth_req *req = q->req;
    int n;
    if (!question_authorize(q)) return 0;
    n = snprintf(q->request, sizeof q->request,
                 "GET %s HTTP/1.1\r\nHost: %.*s\r\nConnection: close\r\n"
                 "User-Agent: revdial-proxy\r\nAuthorization: %s\r\nRevdial-Name: %s\r\n"
                 "Revdial-Instance: %s\r\nRevdial-Peer: %s\r\n\r\n",
                 *url->path ? url->path : "/", (int)url->authority_len, url->authority,
                 q->authorization, req->name, req->instance, req->peer);
    return n > 0 && (size_t)n < sizeof q->request ? (size_t)n : 0;
}

static int outage(question *q, const char *why)
{
    snprintf(q->err.msg, sizeof q->err.msg, "%s", why);
    return REVDIAL_VERDICT_UNAVAILABLE;
}

// For how long, in seconds. Returns 0 if the field makes no sense.
static int take_expiry(const char *seconds, int64_t *ms)
{
    size_t len = strlen(seconds);
    if (len == 0 || len > 10 || strspn(seconds, "0123456789") != len) return 0;
    *ms = strtoll(seconds, NULL, 10) * 1000;
    if (*ms == 0) *ms = -1;  // it is over, where the library takes 0 for no end
    return 1;
}

// Limits, in fields that are called as the options: Revdial-Stream-Rate. Returns a verdict.
static int question_take_quota(question *q)
{
    *q->req->quota = q->to->quota;
    for (int i = 0; i < QUOTA_COUNT; i++) {
        char name[64], value[32], why[128];
        const char *problem = "it is not one number";
        int r;
        snprintf(name, sizeof name, "Revdial-%s", quota_name(i));
        r = fetch_field(q->head, name, value, sizeof value);
        if (r == 0) continue;
        if (r > 0) problem = quota_set(q->req->quota, i, value);
        snprintf(why, sizeof why, "%s: %s", name, problem ? problem : "");
        if (problem) return outage(q, why);
    }
    return REVDIAL_VERDICT_ADMIT;
}

// What the answer says of an agent that it admits. Returns a verdict.
static int question_take(question *q, char *identity, size_t size)
{
    char group[GROUP_SIZE - sizeof "group="], seconds[16];
    int r;
    *q->req->expires_ms = 0;
    r = fetch_field(q->head, "Revdial-Identity", identity, size);
    if (r == 0) identity[0] = '\0';  // what another endpoint may have left there
    if (r < 0) return outage(q, "Revdial-Identity is not one printable text of at most 127 bytes");
    r = fetch_field(q->head, "Revdial-Group", group, sizeof group);
    if (r < 0) return outage(q, "Revdial-Group is not one printable text of at most 120 bytes");
    if (r > 0 && group[0])
        snprintf(q->req->group, GROUP_SIZE, "group=%s", group);
    else
        strcpy(q->req->group, q->to->group);
    r = fetch_field(q->head, "Revdial-Hosts", q->req->label, REVDIAL_LABEL_SIZE);
    if (r < 0 || (r > 0 && *q->req->label && hosts_problem(q->req->label)))
        return outage(q, "Revdial-Hosts is not one list of host names");
    if (r == 0) strcpy(q->req->label, q->to->hosts);
    r = fetch_field(q->head, "Revdial-Expires", seconds, sizeof seconds);
    if (r < 0 || (r > 0 && !take_expiry(seconds, q->req->expires_ms)))
        return outage(q, "Revdial-Expires is not one number of seconds");
    return question_take_quota(q);
}

// Returns a verdict; an outage has its reason in q->err.
static int question_ask(question *q, char *identity, size_t size)
{
    const fetch_request r = {&q->to->url, q->to->tls, q->request, question_write(q),
                             fetch_now_ms() + q->to->timeout_ms};
    char why[64];
    int status;
    if (r.head_len == 0) return REVDIAL_VERDICT_UNAUTHORIZED;  // no secret is that long
    status = fetch_head(&r, q->head, &q->err);
    switch (status) {
    case -1: return REVDIAL_VERDICT_UNAVAILABLE;
    case 200: return question_take(q, identity, size);
    case 401: return REVDIAL_VERDICT_UNAUTHORIZED;
    case 403: return REVDIAL_VERDICT_FORBIDDEN;
    default: snprintf(why, sizeof why, "it answers %d, not 200, 401 or 403", status);
    }
    return outage(q, why);
}

// The query of the URL may be a secret: logs have what is before it.
static int shown_len(const endpoint *e)
{
    return (int)strcspn(e->text, "?");
}

// Asks one endpoint. Returns a verdict.
static int endpoint_ask(external *x, endpoint *e, const revdial_auth_req *req, char *identity,
                        size_t size)
{
    question *q = calloc(1, sizeof *q);
    int verdict;
    if (!q) return REVDIAL_VERDICT_UNAVAILABLE;
    q->to = e;
    q->req = req;
    verdict = question_ask(q, identity, size);
    atomic_store(&e->outage_ms, verdict == REVDIAL_VERDICT_UNAVAILABLE ? fetch_now_ms() : 0);
    if (verdict == REVDIAL_VERDICT_UNAVAILABLE && !prog_stop &&
        prog_rate_take(&x->rate, x->log, "auth.outage"))
        prog_logf(x->log, REVDIAL_LOG_WARN, "auth.outage", "%.*s cannot say who may register: %s",
                  shown_len(e), e->text, q->err.msg);
    prog_wipe(q, sizeof *q);
    free(q);
    return verdict;
}

// ------------------------------------------------------------------------------------------------
// The hook

static external_set *set_ref(external *x)
{
    external_set *set;
    pthread_mutex_lock(&x->lock);
    set = x->now;
    if (set) set->refs++;
    pthread_mutex_unlock(&x->lock);
    return set;
}

static void set_unref(external *x, external_set *set)
{
    unsigned refs = 1;
    pthread_mutex_lock(&x->lock);
    if (set) refs = --set->refs;
    pthread_mutex_unlock(&x->lock);
    if (refs == 0) external_set_free(set);
}

// Which of them could not say lately; NULL without memory.
static char *set_outages(const external_set *set)
{
    char *is_out = calloc(1, set->count + 1);
    const int64_t since_ms = fetch_now_ms() - OUTAGE_MS;
    for (size_t i = 0; is_out && i < set->count; i++) {
        int64_t at_ms = atomic_load(&set->all[i]->outage_ms);
        is_out[i] = at_ms != 0 && at_ms > since_ms;
    }
    return is_out;
}

// The first endpoint that admits counts. Where none does and one could not say, nobody knows. Those
// that could not say lately come last: silent ones take longer than the agent's connection has.
static int set_judge(external *x, const external_set *set, const revdial_auth_req *req,
                     char *identity, size_t size)
{
    char *is_out = set_outages(set);
    int best = is_out ? REVDIAL_VERDICT_UNAUTHORIZED : REVDIAL_VERDICT_UNAVAILABLE;
    for (size_t k = 0; is_out && k < 2 * set->count && best != REVDIAL_VERDICT_ADMIT; k++) {
        size_t i = k % set->count;
        int verdict = best;
        if (is_out[i] == (k >= set->count))
            verdict = endpoint_ask(x, set->all[i], req, identity, size);
        if (verdict > best || verdict == REVDIAL_VERDICT_ADMIT) best = verdict;
    }
    free(is_out);
    return best;
}

static int judge(void *ud, const revdial_auth_req *req, char *identity, size_t size)
{
    external *x = ud;
    external_set *set = set_ref(x);
    int verdict = REVDIAL_VERDICT_UNAUTHORIZED;
    // A proof of Digest cannot be passed on.
    if (set && (req->scheme == REVDIAL_AUTH_BEARER || req->scheme == REVDIAL_AUTH_BASIC))
        verdict = set_judge(x, set, req, identity, size);
    set_unref(x, set);
    return verdict;
}

int external_open(external *x, prog_log *log)
{
    x->log = log;
    errno = pthread_mutex_init(&x->lock, NULL);
    return errno == 0 ? 0 : -1;
}

static int is_here(const endpoint *e)
{
    const char *host = e->url.at.host;
    struct in_addr ip4;
    if (inet_pton(AF_INET, host, &ip4) == 1) return strncmp(host, "127.", 4) == 0;
    return strcmp(host, "localhost") == 0 || strcmp(host, "::1") == 0;
}

revdial_auth_fn *external_use(external *x, external_set *set)
{
    external_set *old;
    for (size_t i = 0; set && i < set->count; i++)
        if (!set->all[i]->url.is_tls && !is_here(set->all[i]))
            prog_logf(x->log, REVDIAL_LOG_WARN, "auth.cleartext",
                      "%.*s: any machine on the way can read all tokens and admit agents",
                      shown_len(set->all[i]), set->all[i]->text);
    pthread_mutex_lock(&x->lock);
    old = x->now;
    x->now = set;
    if (set) set->refs = 1;
    pthread_mutex_unlock(&x->lock);
    set_unref(x, old);
    return set ? judge : NULL;
}

void external_close(external *x)
{
    if (!x->log) return;
    set_unref(x, x->now);
    x->now = NULL;
    pthread_mutex_destroy(&x->lock);
    x->log = NULL;
}
