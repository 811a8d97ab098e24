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

// Returns the side that a tag stands for, NULL if it is gone.
static http_side *http_tag_side(uintptr_t tag, http_conn **c)
{
    *c = (http_conn *)(tag & ~(uintptr_t)1);
    if ((*c)->phase == HTTP_GONE) return NULL;
    if (tag & 1) return (*c)->up ? &(*c)->up->side : NULL;
    return &(*c)->client;
}

// Notes what may be done with a side now, and has its connection do it.
static void http_happened(uintptr_t tag, int can_read, int can_write, int is_ending)
{
    http_conn *c;
    http_side *s = http_tag_side(tag, &c);
    if (!s) return;
    if (can_read || is_ending) s->can_read = 1;
    if (can_write) s->can_write = 1;
    if (is_ending) s->is_ending = 1;
    http_conn_run(c);
}

static void http_failed(uintptr_t tag)
{
    http_conn *c;
    http_side *s = http_tag_side(tag, &c);
    if (s && !(tag & 1)) s->is_bad = 1;  // of a stream there may still be something to read
}

// Opens the pipe by which other threads wake this one. Returns 0, or -1 with errno.
static int http_wake_open(http_thread *t)
{
    if (pipe(t->wake) != 0) return -1;
    for (int i = 0; i < 2; i++)
        if (fcntl(t->wake[i], F_SETFL, O_NONBLOCK) < 0 ||
            fcntl(t->wake[i], F_SETFD, FD_CLOEXEC) < 0)
            return -1;
    return 0;
}

#ifdef __linux__
enum { HTTP_EVENTS = 256 };

int http_events_open(http_thread *t)
{
    struct epoll_event ev = {.events = EPOLLIN};
    if (http_wake_open(t) != 0) return -1;
    t->ep = epoll_create1(EPOLL_CLOEXEC);
    return t->ep < 0 ? -1 : epoll_ctl(t->ep, EPOLL_CTL_ADD, t->wake[0], &ev);
}

int http_events_watch(http_thread *t, int fd, uintptr_t tag)
{
    struct epoll_event ev = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET};
    ev.data.u64 = tag;
    return epoll_ctl(t->ep, EPOLL_CTL_ADD, fd, &ev);
}

int http_events_wait(http_thread *t, int patience_ms)
{
    struct epoll_event events[HTTP_EVENTS];
    int n = epoll_wait(t->ep, events, HTTP_EVENTS, patience_ms), is_told = 0;
    http_note_time(t);
    for (int i = 0; i < n; i++) {
        uint32_t what = events[i].events;
        uintptr_t tag = (uintptr_t)events[i].data.u64;
        if (!tag) is_told = 1;
        if (tag && what & EPOLLERR) http_failed(tag);
        if (tag)
            http_happened(tag, (what & EPOLLIN) != 0,
                          (what & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0,
                          (what & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0);
    }
    return is_told;
}
#else
int http_events_open(http_thread *t)
{
    return http_wake_open(t);
}

int http_events_watch(http_thread *t, int fd, uintptr_t tag)
{
    (void)t, (void)fd, (void)tag;
    return 0;
}

// Adds what a side waits for; one that ends has nothing more to say. Returns -1 when out of memory.
static int http_ask(http_thread *t, const http_side *s, uintptr_t tag)
{
    short events = (short)((s->can_read ? 0 : POLLIN) | (s->can_write ? 0 : POLLOUT));
    struct pollfd item = {.fd = s->fd, .events = events};
    http_bytes *items = &t->asked, *tags = &t->asked_tags;
    if (s->fd < 0 || (s->is_ending && s->can_write)) return 0;
    if (http_bytes_append(items, (const char *)&item, sizeof item) != 0) return -1;
    return http_bytes_append(tags, (const char *)&tag, sizeof tag);
}

// All connections wait in one of the lists.
static void http_ask_all(http_thread *t)
{
    t->asked.len = t->asked_tags.len = 0;
    for (int i = 0; i < HTTP_WAIT_COUNT; i++) {
        http_link *list = &t->waiting[i];
        for (http_link *l = list->next; l != list; l = l->next) {
            http_conn *c = (http_conn *)(void *)l;
            if (http_ask(t, &c->client, (uintptr_t)c) != 0) return;
            if (c->up && http_ask(t, &c->up->side, (uintptr_t)c | 1) != 0) return;
        }
    }
}

int http_events_wait(http_thread *t, int patience_ms)
{
    struct pollfd *items;
    const uintptr_t *tags;
    size_t count;
    const http_side wake = {.fd = t->wake[0], .can_write = 1};
    int n;
    http_ask_all(t);
    if (http_ask(t, &wake, 0) != 0) return 0;
    items = (struct pollfd *)(void *)t->asked.data;
    tags = (const uintptr_t *)(const void *)t->asked_tags.data;
    count = t->asked.len / sizeof *items;
    n = poll(items, (nfds_t)count, patience_ms);
    http_note_time(t);
    for (size_t i = 0; n > 0 && i + 1 < count; i++) {
        short what = items[i].revents;
        if (what & POLLERR) http_failed(tags[i]);
        if (what)
            http_happened(tags[i], (what & POLLIN) != 0, (what & ~POLLIN) != 0,
                          (what & (POLLHUP | POLLERR)) != 0);
    }
    return n > 0 && items[count - 1].revents;
}
#endif

void http_events_close(http_thread *t)
{
    if (t->ep >= 0) close(t->ep);
    for (int i = 0; i < 2; i++)
        if (t->wake[i] >= 0) close(t->wake[i]);
    http_bytes_free(&t->asked);
    http_bytes_free(&t->asked_tags);
}
