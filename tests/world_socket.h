// Sockets of the simulated world, as the system calls of world_calls.h use them: connect, listen,
// accept, send, receive, close. All return -errno.
#ifndef REVDIAL_TEST_WORLD_SOCKET_H
#define REVDIAL_TEST_WORLD_SOCKET_H

#include "world_tcp.h"

// ---- connecting

static void dial_free(dialling *d)
{
    event_stop(&d->arrival);
    if (d->file) d->file->dialling = NULL;
    free(d);
}

static void dial_answer(dialling *d, int answer, tcp_conn *c)
{
    d->is_back = 1;
    d->answer = answer;
    d->conn = c;
    event_set(
        &d->arrival,
        wd.clock.now_us +
            tcp_link_of(d->file->machine, machine_at(ntohl(d->to.sin_addr.s_addr)))->delay_us);
}

// The SYN is lost: it is sent again after twice the time, for two minutes.
static void dial_again(dialling *d)
{
    if (wd.clock.now_us - d->begun_us >= TCP_SYN_MS * 1000LL) {
        d->is_back = 1;
        d->answer = ETIMEDOUT;
        event_set(&d->arrival, wd.clock.now_us);
        return;
    }
    d->wait_us *= 2;
    event_set(&d->arrival, wd.clock.now_us + d->wait_us);
}

static void dial_accepted(dialling *d, tcp_listener *l)
{
    tcp_conn *c = tcp_conn_new(d->file->machine, l->machine);
    c->e[0].own = c->e[1].peer = d->file->own;
    c->e[1].own = c->e[0].peer = d->to;
    c->family = d->to.sin_family;
    c->e[0].waits_accept = c->e[1].waits_accept = 1;
    l->queue[l->count++] = c;
    file_edge(l->file, EPOLLIN);
    dial_answer(d, 0, c);
    // Within one machine nobody can accept it before it is connected.
    if (l->machine == d->file->machine) event_set(&d->arrival, wd.clock.now_us);
}

static void dial_arrives(dialling *d)
{
    machine *to = machine_at(ntohl(d->to.sin_addr.s_addr));
    tcp_link *link = to ? tcp_link_of(d->file->machine, to) : NULL;
    tcp_listener *l = to ? tcp_listener_at(&d->to, to) : NULL;
    int is_lost = d->to.sin_family == tcp_family_down && to != d->file->machine;
    if (!to || link->is_down || to->is_cut_off || d->file->machine->is_cut_off || is_lost) {
        dial_again(d);
        return;
    }
    if (!l)
        dial_answer(d, ECONNREFUSED, NULL);
    else if (l->count >= l->backlog || l->count == 64)
        dial_again(d);
    else
        dial_accepted(d, l);
}

static void dial_comes_back(dialling *d)
{
    file *f = d->file;
    tcp_conn *c = d->conn;
    if (d->answer) {
        f->error = d->answer;
    } else {
        tcp_end *x = &c->e[0];
        x->waits_accept = 0;
        x->file = f;
        f->end = x;
        f->was_connected = 1;
        if (x->is_dead) f->error = ECONNRESET;
        tcp_keep_set(x);
    }
    dial_free(d);
    file_edge(f, f->error ? EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP : EPOLLOUT);
}

static void dial_on_arrival(world_event *e)
{
    dialling *d = (dialling *)((char *)e - offsetof(dialling, arrival));
    if (d->is_back)
        dial_comes_back(d);
    else
        dial_arrives(d);
}

static void socket_bind_any(file *f)
{
    f->own.sin_family = (sa_family_t)f->family;
    if (!f->own.sin_port) f->own.sin_port = htons(f->machine->next_port++);
    if (f->machine->next_port < 32768) f->machine->next_port = 32768;
}

// Back to a socket that was never connected. The peer of a connection gets RST.
static int socket_dissolve(file *f)
{
    tcp_end *x = f->end;
    if (f->dialling) dial_free(f->dialling);
    if (x) {
        tcp_conn *c = x->conn;
        if (!x->is_dead) tcp_reset(x);
        x->file = NULL;
        f->end = NULL;
        tcp_forget(c);
    }
    f->error = 0;
    f->was_connected = 0;
    memset(&f->own, 0, sizeof f->own);
    return 0;
}

// ---- Unix sockets: their paths are of all machines, like a directory that they share

enum {
    UNIX_PATHS = 64,
    UNIX_OURS = 5,    // machines from here on do not run revdial.h
    UNIX_MODE = 0660  // of those of a proxy
};

typedef struct unix_path {
    char path[108];
    int exists, is_ours;  // a process has bound it
    unsigned mode;
    uint32_t ino;  // of the last that was bound there
} unix_path;

static unix_path unix_paths[UNIX_PATHS];
static unsigned unix_path_count;

static unix_path *unix_path_of(const char *path)
{
    for (unsigned i = 0; i < unix_path_count; i++)
        if (!strcmp(unix_paths[i].path, path)) return &unix_paths[i];
    if (unix_path_count == UNIX_PATHS) abort();
    unix_path *p = &unix_paths[unix_path_count++];
    memset(p, 0, sizeof *p);
    snprintf(p->path, sizeof p->path, "%s", path);
    return p;
}

static unix_path *unix_path_at(const struct sockaddr_in *at)
{
    return &unix_paths[ntohs(at->sin_port) - 1];
}

static void unix_path_make(unix_path *p)
{
    static uint32_t inos;
    p->exists = 1;
    p->mode = 0777;
    p->ino = ++inos;
}

static int unix_bind(file *f, const struct sockaddr_in *at)
{
    unix_path *p = unix_path_at(at);
    if (p->exists) return -EADDRINUSE;
    unix_path_make(p);
    p->is_ours = f->machine->number < UNIX_OURS;
    f->own = *at;
    f->own.sin_addr.s_addr = p->ino;
    f->is_bound = 1;
    return 0;
}

static tcp_listener *unix_listener(const unix_path *p)
{
    for (int i = 0; i < TCP_LISTENERS; i++) {
        tcp_listener *l = tcp_listeners[i];
        if (l && l->at.sin_family == AF_UNIX && unix_path_at(&l->at) == p &&
            l->at.sin_addr.s_addr == p->ino)
            return l;
    }
    return NULL;
}

// At once, or never. A socket that is connected cannot be dissolved.
static int unix_connect(file *f, const struct sockaddr_in *to)
{
    if (to->sin_family != AF_UNIX) return -EINVAL;
    unix_path *p = unix_path_at(to);
    tcp_listener *l = unix_listener(p);
    if (f->end) return -EISCONN;
    if (!p->exists) return -ENOENT;
    if (!l) return -ECONNREFUSED;
    if (l->count >= l->backlog || l->count == 64) return -EAGAIN;
    if (machine_lacks(f->machine, LACK_BUFFER)) return -ENOMEM;
    tcp_conn *c = tcp_conn_new(f->machine, l->machine);
    c->family = AF_UNIX;
    c->e[0].peer = c->e[1].own = l->at;
    c->e[0].own.sin_family = c->e[1].peer.sin_family = AF_UNIX;
    c->e[0].file = f;
    c->e[1].waits_accept = 1;
    f->end = &c->e[0];
    f->own.sin_family = AF_UNIX;
    f->was_connected = 1;
    l->queue[l->count++] = c;
    file_edge(l->file, EPOLLIN);
    file_edge(f, EPOLLOUT);
    return 0;
}

static int socket_connect(file *f, const struct sockaddr_in *to)
{
    machine *m = f->machine, *far;
    if (f->family == AF_UNIX) return unix_connect(f, to);
    if (to->sin_family == AF_UNSPEC) return socket_dissolve(f);
    if (to->sin_family != f->family) return -EAFNOSUPPORT;
    if (to->sin_family == AF_INET6 && m->has_no_route) {
        mark_set(MARK_NO_ROUTE);
        return -ENETUNREACH;
    }
    if (f->dialling) return -EALREADY;
    if (f->end) return -EISCONN;
    if (machine_lacks(m, LACK_BUFFER)) return world_chance(2) ? -EADDRNOTAVAIL : -ENOBUFS;
    dialling *d = calloc(1, sizeof *d);
    if (!d) abort();
    d->file = f;
    d->to = *to;
    uint32_t ip = ntohl(to->sin_addr.s_addr);
    if (ip == INADDR_ANY || ip >> 24 == 127) ip = m->ip;
    d->to.sin_addr.s_addr = htonl(ip);
    d->begun_us = wd.clock.now_us;
    d->wait_us = 500000;
    d->arrival.run = dial_on_arrival;
    f->dialling = d;
    f->asked = *to;
    f->error = 0;
    socket_bind_any(f);
    f->own.sin_addr.s_addr = htonl(m->ip);
    far = machine_at(ip);
    event_set(&d->arrival, wd.clock.now_us + (far ? tcp_link_of(m, far)->delay_us : 1000));
    return -EINPROGRESS;
}

// ---- listening

static int socket_listen(file *f, int backlog)
{
    if (f->listener) return 0;
    if (f->family != AF_UNIX)
        socket_bind_any(f);
    else if (unix_path_at(&f->own)->is_ours && unix_path_at(&f->own)->mode != UNIX_MODE)
        world_fail("%s listens at a path of mode %o", f->machine->name,
                   unix_path_at(&f->own)->mode);
    tcp_listener *l = calloc(1, sizeof *l);
    if (!l) abort();
    l->file = f;
    l->machine = f->machine;
    l->at = f->own;
    l->backlog = backlog > 64 || backlog < 1 ? 64 : backlog;
    f->listener = l;
    for (int i = 0; i < TCP_LISTENERS; i++) {
        if (tcp_listeners[i]) continue;
        tcp_listeners[i] = l;
        return 0;
    }
    abort();
}

static int socket_bind(file *f, const struct sockaddr_in *at)
{
    if (f->family == AF_UNIX) return unix_bind(f, at);
    f->own = *at;
    if (!at->sin_port) socket_bind_any(f);
    f->is_bound = 1;
    struct sockaddr_in probe = f->own;
    if (probe.sin_addr.s_addr == htonl(INADDR_ANY)) probe.sin_addr.s_addr = htonl(f->machine->ip);
    return tcp_listener_at(&probe, f->machine) ? -EADDRINUSE : 0;
}

static void listener_free(tcp_listener *l)
{
    for (int i = 0; i < TCP_LISTENERS; i++)
        if (tcp_listeners[i] == l) tcp_listeners[i] = NULL;
    for (int i = 0; i < l->count; i++) {
        tcp_conn *c = l->queue[i];
        c->e[1].waits_accept = 0;
        if (c->family == AF_UNIX)
            unix_part(&c->e[1], 1);
        else
            tcp_reset(&c->e[1]);
        tcp_forget(c);
    }
    free(l);
}

static int socket_accept(file *f, struct sockaddr_in *peer)
{
    tcp_listener *l = f->listener;
    if (!l) return -EINVAL;
    if (!l->count) return -EAGAIN;
    if (machine_lacks(f->machine, LACK_BUFFER)) return world_chance(2) ? -ECONNABORTED : -ENOBUFS;
    file *got = file_new(FILE_SOCKET);
    int fd = fd_take(got, 0);
    if (fd < 0) {
        free(got);
        return fd;
    }
    tcp_conn *c = l->queue[0];
    memmove(l->queue, l->queue + 1, (size_t)--l->count * sizeof *l->queue);
    tcp_end *x = &c->e[1];
    x->waits_accept = 0;
    x->file = got;
    got->end = x;
    got->own = x->own;
    got->family = f->family;
    got->is_mapped = f->family != c->family;
    if (got->is_mapped) mark_set(MARK_MAPPED);
    got->was_connected = 1;
    if (x->is_dead) got->error = ECONNRESET;
    got->keep_on = f->keep_on;
    got->keep_idle_s = f->keep_idle_s;
    got->keep_each_s = f->keep_each_s;
    got->keep_count = f->keep_count;
    *peer = x->peer;
    tcp_keep_set(x);
    return fd;
}

// ---- moving bytes

static ptrdiff_t socket_error(file *f)
{
    int error = f->error;
    f->error = 0;
    return -error;
}

// Bytes that this end may read, in up to two pieces.
static size_t ring_copy_out(const tcp_end *x, uint8_t *to, size_t n)
{
    size_t first = x->room - x->at < n ? x->room - x->at : n;
    memcpy(to, x->ring + x->at, first);
    memcpy(to + first, x->ring, n - first);
    return n;
}

static ptrdiff_t socket_receive(file *f, uint8_t *to, size_t len, int is_peek)
{
    tcp_end *x = f->end;
    if (!x) return f->error ? socket_error(f) : -ENOTCONN;
    if (!x->readable) {
        if (f->error) return socket_error(f);
        if (x->fin_came || x->is_dead || x->is_shut_rd || len == 0) return 0;
        return -EAGAIN;
    }
    size_t n = len < x->readable ? len : x->readable;
    int is_short = n > 1 && world_chance(wd.short_one_in);
    if (is_short) n = 1 + (size_t)world_below(n);
    ring_copy_out(x, to, n);
    if (is_short) file_edge(f, EPOLLIN);  // as if the rest had come a moment later
    if (is_peek) return (ptrdiff_t)n;
    x->at = (x->at + n) % x->room;
    x->readable -= n;
    tcp_pump(x);
    return (ptrdiff_t)n;
}

static ptrdiff_t socket_send(file *f, const uint8_t *from, size_t len)
{
    tcp_end *x = f->end, *to;
    if (f->error) return socket_error(f);
    if (!x) return f->dialling ? -EAGAIN : -EPIPE;
    to = tcp_other(x);
    if (x->is_dead || to->fin_sent) return -EPIPE;
    size_t used = tcp_held(to);
    size_t low = f->unsent_low ? (size_t)f->unsent_low : SIZE_MAX;
    if (used >= to->send_room || to->unsent >= low) {
        x->is_tight = 1;
        return -EAGAIN;
    }
    if (machine_lacks(f->machine, LACK_BUFFER)) {
        x->is_tight = 1;
        file_edge(f, EPOLLOUT);
        return -EAGAIN;
    }
    size_t n = to->send_room - used < len ? to->send_room - used : len;
    if (low != SIZE_MAX && n > low + 16384 - to->unsent) n = low + 16384 - to->unsent;
    int is_short = n > 1 && world_chance(wd.short_one_in);
    if (is_short) n = 1 + (size_t)world_below(n);
    x->is_tight |= n < len;
    size_t at = (to->at + to->readable + to->flying + to->unsent) % to->room;
    size_t first = to->room - at < n ? to->room - at : n;
    memcpy(to->ring + at, from, first);
    memcpy(to->ring, from + first, n - first);
    to->unsent += n;
    if (!used) {
        to->progress_us = wd.clock.now_us;
        tcp_keep_set(x);
    }
    tcp_pump(to);
    if (is_short) tcp_tell_room(x);
    return (ptrdiff_t)n;
}

static void socket_finish(tcp_end *x)
{
    tcp_end *to = tcp_other(x);
    if (to->fin_sent || x->is_dead) return;
    to->fin_sent = 1;
    to->progress_us = wd.clock.now_us;
    tcp_pump(to);
    tcp_keep_set(x);
}

static int socket_shutdown(file *f, int how)
{
    tcp_end *x = f->end;
    if (f->listener) return 0;
    if (!x || x->is_dead) return -ENOTCONN;
    if (how != SHUT_RD) socket_finish(x);
    if (how != SHUT_WR) x->is_shut_rd = 1;
    if (how != SHUT_WR && f->family == AF_UNIX) {
        x->fin_sent = x->fin_came = 1;  // the peer can send no more
        file_edge(tcp_other(x)->file, EPOLLOUT | (tcp_other(x)->fin_came ? EPOLLHUP : 0));
    }
    file_edge(f, EPOLLIN | EPOLLOUT | EPOLLRDHUP | (x->fin_came ? EPOLLHUP : 0));
    return 0;
}

// The last descriptor of a socket is closed.
static void socket_close(file *f)
{
    tcp_end *x = f->end;
    if (f->dialling) {
        tcp_conn *c = f->dialling->conn;
        if (c) {
            c->e[0].waits_accept = 0;
            tcp_reset(&c->e[0]);
            tcp_forget(c);
        }
        dial_free(f->dialling);
    }
    if (f->listener) listener_free(f->listener);
    if (!x) return;
    tcp_conn *c = x->conn;
    if (!x->is_dead && c->family == AF_UNIX) unix_part(x, x->readable > 0);
    if (!x->is_dead && (x->readable || f->linger_abort)) tcp_reset(x);
    x->file = NULL;
    if (!x->is_dead) {
        socket_finish(x);
        tcp_keep_set(x);
    }
    tcp_forget(c);
}

static unsigned file_ready(const file *f)
{
    unsigned bits = 0;
    switch (f->kind) {
    case FILE_EVENT: return (f->count ? EPOLLIN : 0) | EPOLLOUT;
    case FILE_PIPE:
        if (f->is_writer) return EPOLLOUT | (f->other ? 0 : EPOLLERR);
        return (f->count ? EPOLLIN : 0) | (f->other ? 0 : EPOLLHUP);
    case FILE_EPOLL: return f->ready ? EPOLLIN : 0;
    case FILE_SOCKET: break;
    }
    if (f->end) return tcp_ready(f->end);
    if (f->listener) return f->listener->count ? EPOLLIN : 0;
    if (f->error) bits |= EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP;
    if (!f->dialling && !f->error) bits |= EPOLLOUT | EPOLLHUP;
    return bits;
}

#endif
