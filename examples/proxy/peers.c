// Streams of peers: each asks for an agent of ours, is dialled on, and becomes one connection with
// that. A thread waits for the dial; then the library's I/O threads have both ends.
#include "peers.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    LOOK_MS = 250,      // how often to see whether a peer that has sent bytes has given up
    DIAL_MS = 30000,    // a thread waits for a dial, and there are 1024 of them for each peer
    AGAIN_MS = 1000,    // after which a connection that had no thread or memory gets another try
    PEER_SESSIONS = 4,  // of one URL: the one that is up, and those that it has left behind
    HURRY_MS = 50       // how often to look at those that are being left, when the proxy ends
};

// NEW --it is in force--> RUNS --the next configuration lacks it--> LEAVES --> OVER
//  └──────────── its configuration is refused ───────────────────────▲
enum peer_state { PEER_NEW, PEER_RUNS, PEER_LEAVES, PEER_OVER };

// One --peer. Its thread is there before anything changes, so that nothing can fail then, and
// leaving, which takes as long as the streams do, holds nobody up.
struct peer {
    peers *of;
    pthread_t thread;
    // Guarded by the lock of peers.
    peer *next;
    enum peer_state state;
    int is_wanted;         // the next configuration has it
    int drain_ms;          // LEAVES: time for its streams, -1 = no limit
    revdial_agent *agent;  // RUNS, LEAVES: NULL before it could be started, and at the end
    char url[];
};

typedef struct asking {
    revdial_stream *from, *to;
    revdial_err why;  // to is NULL
    int wake[2];      // a byte comes when the dial is over
} asking;

// The reason that the peer gets, so that its client is told what one of ours would be told.
static int reset_of(const revdial_err *why)
{
    if (why->reset) return why->reset;  // the agent's
    switch (why->code) {
    case REVDIAL_ENOBACKEND: return REVDIAL_RESET_NO_BACKEND;
    case REVDIAL_EDRAINING:
    case REVDIAL_ECLOSED: return REVDIAL_RESET_DRAINING;
    case REVDIAL_ETIMEDOUT: return REVDIAL_RESET_TIMEOUT;
    case REVDIAL_ELIMIT:
    case REVDIAL_ENOMEM: return REVDIAL_RESET_CALM;
    default: return REVDIAL_RESET_INTERNAL;
    }
}

static void asking_log(const peers *p, const asking *a)
{
    char msg[1024] = "";
    revdial_log_field(msg, sizeof msg, "dial", revdial_stream_meta(a->from, "id"));
    revdial_log_field(msg, sizeof msg, "name", revdial_stream_meta(a->from, "revdial-name"));
    revdial_log_field(msg, sizeof msg, "client", revdial_stream_meta(a->from, "client"));
    revdial_log_field(msg, sizeof msg, "target", revdial_stream_meta(a->from, "target"));
    if (!a->to) revdial_log_field(msg, sizeof msg, "reason", a->why.msg);
    prog_log_put(p->log, REVDIAL_LOG_DEBUG, a->to ? "peer.connected" : "peer.refused", msg);
}

static void on_dialled(void *ud, revdial_stream *st, const revdial_err *err)
{
    asking *a = ud;
    a->to = st;
    if (err) a->why = *err;
    while (write(a->wake[1], "", 1) < 0 && errno == EINTR) continue;
}

static revdial_dial_opts peers_dial(peers *p)
{
    revdial_dial_opts dial;
    pthread_mutex_lock(&p->lock);
    dial = p->dial;
    pthread_mutex_unlock(&p->lock);
    return dial;
}

// What the peer has said of its dial is what we say of ours.
static int64_t asking_dial(peers *p, asking *a)
{
    const char *left = revdial_stream_meta(a->from, "timeout_ms");
    revdial_dial_opts opts = peers_dial(p);
    const char *name = revdial_stream_meta(a->from, "revdial-name");
    const revdial_kv trace = {"traceparent", revdial_stream_meta(a->from, "traceparent")};
    if (!name) return REVDIAL_ENOBACKEND;  // it takes us for an agent
    opts.target = revdial_stream_meta(a->from, "target");
    opts.client_addr = revdial_stream_meta(a->from, "client");
    opts.local_addr = revdial_stream_meta(a->from, "local");
    opts.flags = REVDIAL_DIAL_HERE;
    opts.timeout_ms = left ? (int)strtol(left, NULL, 10) : -1;
    if (opts.timeout_ms < 0 || opts.timeout_ms > DIAL_MS) opts.timeout_ms = DIAL_MS;
    opts.meta = trace.value ? &trace : NULL;
    opts.meta_count = trace.value ? 1 : 0;
    return revdial_dial_async(p->proxy, name, &opts, on_dialled, a);
}

// Waits for the dial, or until the peer gives it up.
static void asking_wait(const peers *p, asking *a, int64_t dial)
{
    revdial_pollfd items[2] = {{a->from, -1, 0, 0}, {NULL, a->wake[0], POLLIN, 0}};
    char byte;
    while (items[1].revents == 0) {
        if (revdial_poll(items, 2, LOOK_MS) < 0 || revdial_stream_error(a->from, NULL)) {
            revdial_dial_cancel(p->proxy, dial);
            break;
        }
    }
    while (read(a->wake[0], &byte, 1) < 0 && errno == EINTR) continue;
}

// Both streams are one connection from now on.
static void asking_join(asking *a)
{
    const revdial_relay_opts opts = {.half_closed_ms = -1};  // the ends have times of their own
    int fd = revdial_stream_fd(a->to);
    if (fd < 0) {
        revdial_reset(a->to, REVDIAL_RESET_INTERNAL);
        revdial_close(a->to);
        revdial_reset(a->from, REVDIAL_RESET_INTERNAL);
        revdial_close(a->from);
    } else {
        revdial_relay(a->from, fd, fd, &opts);
    }
}

// On a thread of its own.
static void peers_serve(void *ud, revdial_stream *st)
{
    peers *p = ud;
    asking a = {.from = st};
    int64_t dial = REVDIAL_ENOMEM;
    if (pipe(a.wake) == 0) {
        dial = asking_dial(p, &a);
        if (dial > 0) asking_wait(p, &a, dial);
        close(a.wake[0]);
        close(a.wake[1]);
    }
    if (dial < 0) {
        a.why.code = (int)dial;
        snprintf(a.why.msg, sizeof a.why.msg, "%s", revdial_strerror(a.why.code));
    }
    asking_log(p, &a);
    if (a.to) {
        asking_join(&a);
    } else {
        revdial_reset(st, reset_of(&a.why));
        revdial_close(st);
    }
}

// A revdial_credential_fn
static int peers_secret(void *ud, unsigned attempt, char *secret, size_t size)
{
    peers *p = ud;
    char path[PATH_MAX];
    revdial_err err = {0};
    (void)attempt;
    pthread_mutex_lock(&p->lock);
    snprintf(path, sizeof path, "%s", p->token_file ? p->token_file : "");
    pthread_mutex_unlock(&p->lock);
    if (peer_secret_read(path, secret, size, &err) == 0) return REVDIAL_OK;
    prog_log_error(p->log, "token.unreadable", &err);
    return REVDIAL_ESYS;
}

// ------------------------------------------------------------------------------------------------
// Peers come and go

// What the library is given.
static revdial_agent_config peer_config(const prog_common *common, const char *url)
{
    revdial_agent_config cfg = {.url = url, .name = PEER_NAME, .user = PEER_NAME};
    cfg.auth_schemes = REVDIAL_AUTH_DIGEST;
    cfg.auth_fail_limit = -1;  // a peer may get the secret later than this proxy
    cfg.handler = peers_serve;
    cfg.credential_fn = peers_secret;
    prog_configure(common, &cfg.common);
    // Rates are kept on the way to an agent; this session carries what is of many.
    cfg.common.limits.stream_rate = cfg.common.limits.session_rate = 0;
    return cfg;
}

// Returns 0 or an exit code.
static int peer_check(const config *c, const char *url)
{
    revdial_agent_config cfg = peer_config(&c->cli.common, url);
    revdial_err err = {0};
    cfg.common.tls = c->peer_tls;
    if (strchr(url, ',')) return prog_usage_error(&c->cli, "peer", "more than one URL:", url);
    if (revdial_agent_check(&cfg, &err) != REVDIAL_EINVAL) return 0;  // the start tells of others
    return prog_usage_error(&c->cli, "peer", err.msg, url);
}

int peers_configure(config *c)
{
    const prog_tls_files files = {c->s.peer_ca, c->s.tls.cert, c->s.tls.key};
    const prog_list *urls = &c->s.peers;
    revdial_err err = {0};
    int rc = 0, needs_tls = 0;
    if (urls->count == 0) return 0;
    if (!c->s.credentials.peers)
        return prog_usage_error(&c->cli, "peer-token-file", "missing, and --peer needs it", NULL);
    if (urls->count > PEERS_MAX) return prog_usage_error(&c->cli, "peer", "over 8", NULL);
    for (size_t i = 0; i < urls->count; i++)
        needs_tls |= strstr(urls->items[i], "https://") || strstr(urls->items[i], "wss://");
    if (needs_tls) {
        c->peer_tls = prog_tls_open(&files, PROG_TLS_CLIENT, &err);
        if (!c->peer_tls) return prog_complain(&c->cli, "%s", err.msg);
    }
    for (size_t i = 0; rc == 0 && i < urls->count; i++) rc = peer_check(c, urls->items[i]);
    return rc;
}

int peers_open(peers *p, const config *first, revdial_proxy *proxy, prog_log *log)
{
    errno = pthread_mutex_init(&p->lock, NULL);
    if (errno == 0) errno = prog_cond_open(&p->changed);
    if (errno != 0) return -1;
    p->proxy = proxy;
    p->common = &first->cli.common;
    p->log = log;
    return 0;
}

// Connects to it from now on.
static void peer_start_locked(peer *one)
{
    peers *p = one->of;
    revdial_agent_config cfg = peer_config(p->common, one->url);
    revdial_err err = {0};
    cfg.common.tls = p->tls;
    cfg.common.limits = p->limits;
    cfg.ud = cfg.credential_ud = p;
    prog_log_config(p->log, &cfg.common);
    one->agent = revdial_agent_start(&cfg, &err);
    if (!one->agent) prog_log_error(p->log, "peer.failed", &err);
}

// Ends its connection when its streams have ended.
static void peer_leave(peer *one)
{
    peers *p = one->of;
    revdial_agent *agent;
    int drain_ms;
    pthread_mutex_lock(&p->lock);
    agent = one->agent;
    drain_ms = one->drain_ms;
    pthread_mutex_unlock(&p->lock);
    revdial_agent_drain(agent, drain_ms);
    pthread_mutex_lock(&p->lock);
    one->agent = NULL;
    pthread_mutex_unlock(&p->lock);
    revdial_agent_stop(agent, 0);
    pthread_mutex_lock(&p->lock);
    one->state = PEER_OVER;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

static void *peer_run(void *ud)
{
    peer *one = ud;
    peers *p = one->of;
    pthread_mutex_lock(&p->lock);
    while (one->state == PEER_NEW || one->state == PEER_RUNS) {
        if (one->state == PEER_RUNS && !one->agent) peer_start_locked(one);
        if (one->state == PEER_RUNS && !one->agent)
            prog_cond_wait(&p->changed, &p->lock, AGAIN_MS);
        else
            pthread_cond_wait(&p->changed, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    peer_leave(one);
    return NULL;
}

static peer *peer_new(peers *p, const char *url)
{
    size_t size = strlen(url) + 1;
    peer *one = calloc(1, sizeof *one + size);
    if (!one) return NULL;
    one->of = p;
    one->is_wanted = 1;
    memcpy(one->url, url, size);
    if (prog_thread_start(&one->thread, peer_run, one) == 0) return one;
    free(one);
    return NULL;
}

// Frees those that are over. Only the main thread changes the list.
static void peers_reap_locked(peers *p)
{
    for (peer **at = &p->first, *one; (one = *at) != NULL;) {
        if (one->state != PEER_OVER) {
            at = &one->next;
            continue;
        }
        *at = one->next;
        pthread_join(one->thread, NULL);
        free(one);
    }
}

// Finds the one of that URL, or makes it. Returns 0 without memory or a thread.
static int peers_want_locked(peers *p, const char *url)
{
    peer **at = &p->first;
    for (; *at; at = &(*at)->next) {
        peer *one = *at;
        if (one->state != PEER_RUNS || one->is_wanted || strcmp(one->url, url) != 0) continue;
        one->is_wanted = 1;
        return 1;
    }
    *at = peer_new(p, url);
    return *at != NULL;
}

int peers_prepare(peers *p, const config *next)
{
    int is_good = 1;
    pthread_mutex_lock(&p->lock);
    peers_reap_locked(p);
    for (peer *one = p->first; one; one = one->next) one->is_wanted = 0;
    for (size_t i = 0; is_good && i < next->s.peers.count; i++)
        is_good = peers_want_locked(p, next->s.peers.items[i]);
    pthread_mutex_unlock(&p->lock);
    if (is_good) return 0;
    peers_undo(p);
    prog_complain(&next->cli, "peer: no thread or memory for it");
    return PROG_FAILED;
}

static void peer_begin_leaving(peer *one, int drain_ms)
{
    one->state = PEER_LEAVES;
    one->drain_ms = drain_ms;
}

void peers_undo(peers *p)
{
    pthread_mutex_lock(&p->lock);
    for (peer *one = p->first; one; one = one->next)
        if (one->state == PEER_NEW) peer_begin_leaving(one, 0);
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

// Their connections get these from now on.
static void peers_limit_locked(peers *p, const revdial_limits *limits)
{
    revdial_err err = {0};
    p->limits = *limits;
    for (peer *one = p->first; one; one = one->next)
        if (one->agent && revdial_agent_replace_session_limits(one->agent, limits, &err))
            prog_log_error(p->log, "limits.unchanged", &err);
}

void peers_commit(peers *p, config *next)
{
    const revdial_agent_config cfg = peer_config(&next->cli.common, NULL);
    pthread_mutex_lock(&p->lock);
    p->token_file = next->s.credentials.peers;
    peers_limit_locked(p, &cfg.common.limits);
    p->dial = next->like.dial;
    if (p->tls) {
        prog_tls_take(p->tls, &next->peer_tls);
    } else {
        p->tls = next->peer_tls;
        next->peer_tls = NULL;
    }
    for (peer *one = p->first; one; one = one->next) {
        if (one->state == PEER_RUNS && !one->is_wanted) peer_begin_leaving(one, -1);
        if (one->state == PEER_NEW) one->state = PEER_RUNS;
    }
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

// Gives the streams of one that is being left so long.
static void peer_hurry_locked(peer *one, int drain_ms)
{
    revdial_session *all[PEER_SESSIONS];
    size_t count = one->agent ? revdial_agent_list(one->agent, all, PEER_SESSIONS) : 0;
    for (size_t i = 0; i < count && i < PEER_SESSIONS; i++) {
        revdial_session_drain(all[i], drain_ms);
        revdial_session_unref(all[i]);
    }
}

void peers_stop(peers *p, int drain_ms)
{
    if (!p->log) return;
    pthread_mutex_lock(&p->lock);
    for (peer *one = p->first; one; one = one->next)
        if (one->state == PEER_RUNS) peer_begin_leaving(one, drain_ms);
    pthread_cond_broadcast(&p->changed);
    for (peer *one = p->first; one; one = one->next) {
        while (one->state != PEER_OVER) {
            peer_hurry_locked(one, drain_ms);
            if (prog_cond_wait(&p->changed, &p->lock, HURRY_MS) == 0) continue;
            drain_ms -= drain_ms < HURRY_MS ? drain_ms : HURRY_MS;
        }
    }
    peers_reap_locked(p);
    pthread_mutex_unlock(&p->lock);
}

void peers_close(peers *p)
{
    if (!p->log) return;
    prog_tls_free(p->tls);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
    p->log = NULL;
}

// ------------------------------------------------------------------------------------------------
// For people to look at

// A --peer is one link: its URL.
static size_t peers_links(peers *p, revdial_link_info links[PEERS_MAX])
{
    size_t count = 0;
    pthread_mutex_lock(&p->lock);
    for (peer *one = p->first; one && count < PEERS_MAX; one = one->next)
        if (one->state == PEER_RUNS && one->agent)
            count += revdial_agent_list_links(one->agent, links + count, 1) ? 1 : 0;
    pthread_mutex_unlock(&p->lock);
    return count;
}

void peers_status(peers *p, prog_out *out)
{
    revdial_link_info links[PEERS_MAX];
    prog_status_links(out, "peers", links, peers_links(p, links));
}

void peers_table(peers *p, prog_out *out)
{
    revdial_link_info links[PEERS_MAX];
    size_t count = peers_links(p, links);
    if (count) prog_out_add(out, "\n");
    if (count) prog_table_links(out, "ASKED BY", links, count);
}
