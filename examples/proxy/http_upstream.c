// Streams to agents. An I/O thread of the library dials; from then on the stream belongs to the
// front end's thread, which reads and writes it itself, as a member of its poll set. So a stream
// takes no descriptor, and says itself whether its end was the backend's FIN.
#include <stdlib.h>
#include <string.h>

#include "http_conn.h"

static void http_upstream_on_dial(void *ud, revdial_stream *st, const revdial_err *err)
{
    http_upstream *u = ud;
    http_news news = {.st = st};
    if (!st) news.code = err->code;
    if (!st) news.reset = err->reset;
    pthread_mutex_lock(&u->thread->lock);
    http_post_locked(u, &news);
    pthread_mutex_unlock(&u->thread->lock);
}

int http_upstream_dial(http_conn *c, const route_choice *to)
{
    revdial_dial_opts opts = {.timeout_ms = c->dial_timeout_ms, .flags = c->dial_flags};
    const revdial_kv trace = {"traceparent", c->trace};
    size_t name_size = strlen(to->name) + 1, target_size = strlen(to->target) + 1;
    http_upstream *u = calloc(1, sizeof *u + name_size + target_size);
    if (!u) return REVDIAL_ENOMEM;
    opts.pick = c->pick;
    opts.key = &c->key;
    opts.key_len = sizeof c->key;
    u->thread = c->thread;
    u->conn = c;
    u->key = c->key;
    u->side.fd = -1;
    u->name = memcpy(u + 1, to->name, name_size);
    u->target = memcpy((char *)(u + 1) + name_size, to->target, target_size);
    if (*u->target) opts.target = u->target;
    opts.client_addr = strchr(c->address, ':') ? c->address : NULL;  // of a Unix socket: none
    opts.local_addr = *c->local ? c->local : NULL;
    opts.meta = &trace;
    opts.meta_count = *c->trace != '\0';
    c->is_sent = c->request.len <= REVDIAL_EARLY_MAX;
    if (c->is_sent) opts.early = c->request.data + c->request.at;
    if (c->is_sent) opts.early_len = c->request.len;
    u->dial =
        revdial_dial_async(http_proxy_of(c->thread), u->name, &opts, http_upstream_on_dial, u);
    if (u->dial < 0) {
        int code = (int)u->dial;
        free(u);
        return code;
    }
    c->up = u;
    return 0;
}

static void http_upstream_free(http_upstream *u)
{
    revdial_session_unref(u->session);
    free(u);
}

// Have both ends got all that they were to get? What is cut must not look like an end to the
// target, nor go on for a client that has left.
static int http_upstream_is_over(const http_conn *c)
{
    int has_answered = c->has_response && c->coming.state == HTTP_BODY_DONE;
    if (c->phase == HTTP_TUNNEL) return c->is_shut[0] && c->is_shut[1];
    return c->phase != HTTP_EXCHANGE || (c->sent.state == HTTP_BODY_DONE && has_answered);
}

void http_upstream_drop(http_conn *c)
{
    http_upstream *u = c->up;
    if (!u) return;
    if (u->side.st && !http_upstream_is_over(c)) revdial_reset(u->side.st, REVDIAL_RESET_CANCEL);
    c->up = NULL;
    u->conn = NULL;
    http_side_close(&u->side);
    if (u->dial)
        revdial_dial_cancel(http_proxy_of(u->thread), u->dial);  // its end is news, too
    else
        http_upstream_free(u);
}

void http_upstream_heed(http_upstream *u, const http_news *news)
{
    http_conn *c = u->conn;
    u->dial = 0;
    u->code = news->code;
    u->reset = news->reset;
    if (!c) {
        revdial_close(news->st);
        http_upstream_free(u);
        return;
    }
    if (news->st) {
        u->session = revdial_stream_session(news->st);
        if (http_side_join(u->thread, &u->side, news->st, c) != 0) u->code = REVDIAL_ENOMEM;
    }
    http_conn_dialled(c);  // which may free u
}
