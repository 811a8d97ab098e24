// What has happened to the sockets of a thread: by epoll(7), edge-triggered. Elsewhere poll(2) is
// asked for what each of them waits for.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/epoll.h>
#endif

#include "http_conn.h"

// Notes what may be done with the client's socket now, and has its connection do it.
static void http_happened(http_conn *c, int can_read, int can_write, int is_ending)
{
    http_side *s = &c->client;
    if (c->phase == HTTP_GONE) return;
    if (can_read || is_ending) s->can_read = 1;
    if (can_write) s->can_write = 1;
    if (is_ending) s->is_ending = 1;
    http_conn_run(c);
}

// Opens what other threads wake this one by. Returns 0, or -1 with errno.
static int http_wake_open(http_thread *t)
{
    t->set = revdial_pollset_new();
    return t->set ? prog_pipe_open(t->wake) : -1;
}

#ifdef __linux__
enum { HTTP_EVENTS = 256 };

int http_events_open(http_thread *t)
{
    struct epoll_event told = {.events = EPOLLIN}, moved = told;
    if (http_wake_open(t) != 0) return -1;
    told.data.ptr = t;
    t->ep = epoll_create1(EPOLL_CLOEXEC);
    if (t->ep < 0 || epoll_ctl(t->ep, EPOLL_CTL_ADD, t->wake[0], &told) != 0) return -1;
    return epoll_ctl(t->ep, EPOLL_CTL_ADD, revdial_pollset_fd(t->set), &moved);
}

int http_events_watch(http_thread *t, int fd, http_conn *c)
{
    struct epoll_event ev = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET};
    ev.data.ptr = c;
    return epoll_ctl(t->ep, EPOLL_CTL_ADD, fd, &ev);
}

int http_events_wait(http_thread *t, int patience_ms)
{
    struct epoll_event events[HTTP_EVENTS];
    int n = epoll_wait(t->ep, events, HTTP_EVENTS, patience_ms), is_told = 0;
    http_note_time(t);
    for (int i = 0; i < n; i++) {
        uint32_t what = events[i].events;
        http_conn *c = events[i].data.ptr;
        if ((void *)c == t) is_told = 1;
        if (!c || (void *)c == t) continue;  // no socket: other threads, or streams
        if (what & EPOLLERR) c->client.is_bad = 1;
        http_happened(c, (what & EPOLLIN) != 0, (what & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0,
                      (what & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0);
    }
    return is_told;
}
#else
int http_events_open(http_thread *t)
{
    return http_wake_open(t);
}

int http_events_watch(http_thread *t, int fd, http_conn *c)
{
    (void)t, (void)fd, (void)c;
    return 0;
}

// Adds a descriptor, and whom it is for: a connection or nobody. Returns -1 when out of memory.
static int http_ask(http_thread *t, int fd, int events, const http_conn *c)
{
    struct pollfd item = {.fd = fd, .events = (short)events};
    if (http_bytes_append(&t->asked, (const char *)&item, sizeof item) != 0) return -1;
    return http_bytes_append(&t->asked_by, (const char *)&c, sizeof c);
}

// What the clients wait for; one that ends has nothing more to say. All connections wait in one of
// the lists.
static void http_ask_clients(http_thread *t)
{
    for (int i = 0; i < HTTP_WAIT_COUNT; i++) {
        http_link *list = &t->waiting[i];
        for (http_link *l = list->next; l != list; l = l->next) {
            const http_conn *c = (http_conn *)(void *)l;
            const http_side *s = &c->client;
            int events = (s->can_read ? 0 : POLLIN) | (s->can_write ? 0 : POLLOUT);
            if (s->fd < 0 || (s->is_ending && s->can_write)) continue;
            if (http_ask(t, s->fd, events, c) != 0) return;
        }
    }
}

int http_events_wait(http_thread *t, int patience_ms)
{
    const struct pollfd *items;
    http_conn *const *conns;
    int n;
    t->asked.len = t->asked_by.len = 0;
    if (http_ask(t, t->wake[0], POLLIN, NULL) != 0) return 0;
    if (http_ask(t, revdial_pollset_fd(t->set), POLLIN, NULL) != 0) return 0;
    http_ask_clients(t);
    items = (const struct pollfd *)(void *)t->asked.data;
    conns = (http_conn *const *)(void *)t->asked_by.data;
    n = poll((struct pollfd *)(void *)t->asked.data,
             (nfds_t)(t->asked_by.len / sizeof *conns), patience_ms);
    http_note_time(t);
    for (size_t i = 0; n > 0 && i < t->asked_by.len / sizeof *conns; i++) {
        short what = items[i].revents;
        if (!conns[i] || !what) continue;
        if (what & POLLERR) conns[i]->client.is_bad = 1;
        http_happened(conns[i], (what & POLLIN) != 0, (what & ~POLLIN) != 0,
                      (what & (POLLHUP | POLLERR)) != 0);
    }
    return n > 0 && items[0].revents;
}
#endif

void http_events_close(http_thread *t)
{
    if (t->ep >= 0) close(t->ep);
    prog_pipe_close(t->wake);
    http_bytes_free(&t->asked);
    http_bytes_free(&t->asked_by);
    revdial_pollset_free(t->set);
}
