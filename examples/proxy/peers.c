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
    LOOK_MS = 250,   // how often to see whether a peer that has sent bytes has given up
    DIAL_MS = 30000  // a thread waits for a dial, and there are 1024 of them
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

// What the peer has said of its dial is what we say of ours.
static int64_t asking_dial(const peers *p, asking *a)
{
    const char *left = revdial_stream_meta(a->from, "timeout_ms");
    revdial_dial_opts opts = p->dial;
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
    const peers *p = ud;
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
    const peers *p = ud;
    revdial_err err = {0};
    (void)attempt;
    if (peer_secret_read(p->token_file, secret, size, &err) == 0) return REVDIAL_OK;
    prog_log_error(p->log, "token.unreadable", &err);
    return REVDIAL_ESYS;
}

// What the library is given.
static revdial_agent_config peers_config(const config *c)
{
    revdial_agent_config cfg = {.url = c->peer_urls, .name = PEER_NAME, .user = PEER_NAME};
    cfg.auth_schemes = REVDIAL_AUTH_DIGEST;
    cfg.auth_fail_limit = -1;  // a peer may get the secret later than this proxy
    cfg.handler = peers_serve;
    cfg.credential_fn = peers_secret;
    prog_configure(&c->cli.common, &cfg.common);
    cfg.common.tls = c->peer_tls;
    return cfg;
}

int peers_configure(config *c)
{
    const prog_tls_files files = {c->s.peer_ca, c->s.tls.cert, c->s.tls.key};
    revdial_agent_config cfg;
    revdial_err err = {0};
    if (c->s.peers.count == 0) return 0;
    if (!c->s.credentials.peers)
        return prog_usage_error(&c->cli, "peer-token-file", "missing, and --peer needs it", NULL);
    if (c->s.peers.count > PEERS_MAX) return prog_usage_error(&c->cli, "peer", "over 8", NULL);
    c->peer_urls = prog_list_join(&c->s.peers);
    if (!c->peer_urls) return PROG_FAILED;
    if (strstr(c->peer_urls, "https://") || strstr(c->peer_urls, "wss://")) {
        c->peer_tls = prog_tls_open(&files, PROG_TLS_CLIENT, &err);
        if (!c->peer_tls) return prog_complain(&c->cli, "%s", err.msg);
    }
    cfg = peers_config(c);
    if (revdial_agent_check(&cfg, &err) != REVDIAL_EINVAL) return 0;  // the start tells of others
    return prog_usage_error(&c->cli, "peer", err.msg, NULL);
}

int peers_start(peers *p, revdial_proxy *proxy, const config *c, prog_log *log)
{
    revdial_agent_config cfg = peers_config(c);
    revdial_err err = {0};
    if (!c->peer_urls) return 0;
    *p = (peers){.proxy = proxy, .log = log, .token_file = c->s.credentials.peers};
    p->dial = c->like.dial;
    cfg.ud = cfg.credential_ud = p;
    prog_log_config(log, &cfg.common);
    p->agent = revdial_agent_start(&cfg, &err);
    if (!p->agent) prog_log_error(log, "proxy.failed", &err);
    return p->agent ? 0 : PROG_FAILED;
}

void peers_stop(peers *p, int drain_ms)
{
    revdial_agent_stop(p->agent, drain_ms);
    p->agent = NULL;
}

// ------------------------------------------------------------------------------------------------
// For people to look at

static size_t peers_links(const peers *p, revdial_link_info links[PEERS_MAX])
{
    return p->agent ? revdial_agent_list_links(p->agent, links, PEERS_MAX) : 0;
}

void peers_status(const peers *p, prog_out *out)
{
    revdial_link_info links[PEERS_MAX];
    prog_status_links(out, "peers", links, peers_links(p, links));
}

void peers_table(const peers *p, prog_out *out)
{
    revdial_link_info links[PEERS_MAX];
    size_t count = peers_links(p, links);
    if (count) prog_out_add(out, "\n");
    if (count) prog_table_links(out, "ASKED BY", links, count);
}
