// Two proxies of the simulated world that know each other: in the process of each runs an agent of
// the other, which dials here what that one was asked for and does not have.
#ifndef REVDIAL_TEST_WORLD_PEERS_H
#define REVDIAL_TEST_WORLD_PEERS_H

#include "world_people.h"

enum { PEER_FDS = 8 };  // of the agent in the process of a proxy: its loop and its session

static void peer_refuse(revdial_stream *st, const revdial_err *why)
{
    int reset = why->reset ? why->reset : REVDIAL_RESET_INTERNAL;
    if (why->code == REVDIAL_ENOBACKEND) reset = REVDIAL_RESET_NO_BACKEND;
    if (why->code == REVDIAL_ETIMEDOUT) reset = REVDIAL_RESET_TIMEOUT;
    if (why->code == REVDIAL_EDRAINING) reset = REVDIAL_RESET_DRAINING;
    revdial_reset(st, reset);
    revdial_close(st);
}

// What it was asked for, dialled here and joined to the stream that asks.
static void peer_handler(void *ud, revdial_stream *st)
{
    world_proxy *w = ud;
    const char *name = revdial_stream_meta(st, "revdial-name");
    const char *left = revdial_stream_meta(st, "timeout_ms");
    revdial_dial_opts d = {.flags = REVDIAL_DIAL_HERE, .timeout_ms = left ? atoi(left) : 5000};
    revdial_err err = {.code = REVDIAL_EDRAINING};
    int fd = -1;
    d.target = revdial_stream_meta(st, "target");
    d.client_addr = revdial_stream_meta(st, "client");
    d.local_addr = revdial_stream_meta(st, "local");
    if (w->p && !w->is_closing && name) {
        w->dials++;
        revdial_stream *to = revdial_dial(w->p, name, &d, &err);
        w->dials--;
        fd = to ? revdial_stream_fd(to) : -1;
        if (to && fd < 0) err.code = fd;
        if (to && fd < 0) revdial_close(to);
    }
    if (fd < 0) {
        peer_refuse(st, &err);
    } else {
        mark_set(MARK_PEER_ASKED);
        revdial_relay(st, fd, fd, NULL);
    }
}

static void peer_start(int n)
{
    world_proxy *w = &proxies[n];
    char url[60];
    revdial_agent_config c = {.url = url,
                              .name = "peer",
                              .user = "peer",
                              .secret = "between us",
                              .auth_schemes = REVDIAL_AUTH_DIGEST,
                              .auth_fail_limit = -1,
                              .handler = peer_handler,
                              .ud = w};
    revdial_err err;
    if (!plan.has_peers || !w->p) return;
    snprintf(url, sizeof url, "%s://10.0.0.%d:%d", people_tls_of(1) ? "https" : "http", 2 - n,
             PORT_LISTEN);
    world_common(&c.common, &machines[AT_PROXY + n], &w->peer_log);
    c.common.tls = people_tls_of(1);
    c.server_name = people_tls_of(1) ? "localhost" : NULL;
    for (int i = 0; !(w->peer = revdial_agent_start(&c, &err)); i++)
        if (!people_try_again("peer", &err, i)) break;
}

static void peer_stop(int n)
{
    if (!proxies[n].peer) return;
    revdial_agent_stop(proxies[n].peer, 0);
    proxies[n].peer = NULL;
}

#endif
