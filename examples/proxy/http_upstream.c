// Streams to agents. The library's I/O threads move their bytes to and from one end of a pair of
// Unix sockets; the other end is the front end's. TCP, which revdial_stream_fd() takes so that a
// stream that fails can reset it, costs several times as much for each small message. What the pair
// cannot say, whether its end was the backend's FIN, the stream's own end says: HTTP_NEWS_OVER.
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "http_conn.h"

// What happened is for the thread; an I/O thread only notes it.
static void http_upstream_note(http_upstream *u, const http_news *news)
{
    pthread_mutex_lock(&u->thread->lock);
    if (news->what & HTTP_NEWS_DIALLED) u->news.fd = news->fd;
    if (news->code) u->news.code = news->code;
    if (news->code) u->news.reset = news->reset;
    http_post_locked(u, news->what);
    pthread_mutex_unlock(&u->thread->lock);
}

static void http_upstream_on_over(void *ud, const uint64_t moved[2], const revdial_err *why)
{
    http_news news = {.what = HTTP_NEWS_OVER};
    (void)moved;
    if (why) news.code = why->code;
    if (why) news.reset = why->reset;
    http_upstream_note(ud, &news);
}

// Returns our end of a pair whose other end the stream has, or -1.
static int http_upstream_pair(http_upstream *u, revdial_stream *st)
{
    revdial_relay_opts opts = {.done = http_upstream_on_over, .ud = u};
    int fds[2];
    u->session = revdial_stream_session(st);
    opts.half_closed_ms = http_config_of(u->thread)->half_closed_ms;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) {
        revdial_reset(st, REVDIAL_RESET_INTERNAL);
        revdial_close(st);
        return -1;
    }
    for (int i = 0; i < 2; i++) {
        fcntl(fds[i], F_SETFD, FD_CLOEXEC);
        fcntl(fds[i], F_SETFL, O_NONBLOCK);
    }
    if (revdial_relay(st, fds[0], fds[0], &opts) == 0) return fds[1];
    close(fds[1]);
    return -1;
}

static void http_upstream_on_dial(void *ud, revdial_stream *st, const revdial_err *err)
{
    http_upstream *u = ud;
    http_news news = {.what = HTTP_NEWS_DIALLED, .fd = st ? http_upstream_pair(u, st) : -1};
    if (news.fd < 0) news.code = st ? REVDIAL_ESYS : err->code;
    if (!st) news.reset = err->reset;
    http_upstream_note(u, &news);
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
    opts.client_addr = c->address;
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

void http_upstream_drop(http_conn *c)
{
    http_upstream *u = c->up;
    if (!u) return;
    c->up = NULL;
    u->conn = NULL;
    http_side_close(&u->side);
    if (u->dial) revdial_dial_cancel(http_proxy_of(u->thread), u->dial);
    if (u->is_over) http_upstream_free(u);
}

static void http_upstream_dialled(http_upstream *u, int fd)
{
    u->dial = 0;
    if (fd < 0)
        u->is_over = 1;
    else if (!u->conn)
        close(fd);
    else if (http_side_open(u->thread, &u->side, fd, (uintptr_t)u->conn | 1) != 0) {
        u->code = REVDIAL_ESYS;
        http_side_close(&u->side);
    }
}

void http_upstream_heed(http_upstream *u, const http_news *news)
{
    http_conn *c = u->conn;
    if (news->code) u->code = news->code;
    if (news->code) u->reset = news->reset;
    if (news->what & HTTP_NEWS_DIALLED) http_upstream_dialled(u, news->fd);
    if (news->what & HTTP_NEWS_OVER) u->is_over = 1;
    if (!c && u->is_over) http_upstream_free(u);
    if (c && news->what & HTTP_NEWS_DIALLED)
        http_conn_dialled(c);  // which may free u
    else if (c)
        http_conn_run(c);
}
