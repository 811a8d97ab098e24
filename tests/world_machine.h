// Machines of the simulated world, their descriptors, and what a descriptor can be besides a
// connection: an eventfd, a pipe, an epoll set. Each machine is one process with a table of its
// own; the lowest free number is taken, as revdial.h relies on.
#ifndef REVDIAL_TEST_WORLD_MACHINE_H
#define REVDIAL_TEST_WORLD_MACHINE_H

#include <netinet/in.h>
#include <stddef.h>
#include <sys/epoll.h>

#include "world_fiber.h"

enum {
    MACHINES = 12,
    MACHINE_FDS = 256,
    MACHINE_BASE = 0x0A000001  // 10.0.0.1 is the first machine
};

// What a machine may lack for a while.
enum lack { LACK_MEMORY, LACK_FD, LACK_THREAD, LACK_LOCK, LACK_BUFFER, LACKS };

enum file_kind { FILE_SOCKET, FILE_EVENT, FILE_PIPE, FILE_EPOLL };

typedef struct file {
    enum file_kind kind;
    int refs, is_nonblocking;
    struct machine *machine;
    wait_queue waits;
    struct epoll_item *items;  // the sets that it is in
    // FILE_SOCKET
    struct tcp_end *end;            // a connection's
    struct tcp_listener *listener;  // or what is being listened to
    int family;
    struct sockaddr_in own, asked;  // as all addresses of the world, see sim_address()
    int takes_v4, is_mapped;        // an IPv6 listener does; a connection that is IPv4 all the same
    struct dialling *dialling;      // or a connect that is on its way
    int error, is_bound, linger_abort, was_connected;
    int keep_idle_s, keep_each_s, keep_count, keep_on, user_timeout_ms, unsent_low;
    size_t send_room;
    // FILE_EVENT, FILE_PIPE
    uint64_t count;
    struct file *other;  // of a pipe
    int is_writer;
    uint8_t *ring;  // of a pipe's reader: what splice(2) has brought
    size_t at, room;
    // FILE_EPOLL
    struct epoll_item *set, *ready, **ready_end;
} file;

typedef struct epoll_item {
    struct epoll_item *next;                   // of the file
    struct epoll_item *set_next, **set_to_me;  // of the epoll
    struct epoll_item *ready_next;
    int is_ready, fd;
    file *of, *in;
    struct epoll_event want;
} epoll_item;

typedef struct machine {
    const char *name;
    int number;
    uint32_t ip;
    file *fds[MACHINE_FDS];
    int fd_count, fd_limit;
    uint16_t next_port;
    unsigned threads;
    size_t heap_bytes, heap_peak, heap_blocks;
    unsigned lack_one_in[LACKS];  // 0: none
    uint64_t lacked[LACKS];
    wait_queue polls;  // fibers that wait for many descriptors at once
    int is_cut_off;    // no packet comes or goes
    int has_no_route;  // to any IPv6 address
} machine;

static machine machines[MACHINES];
static file machine_standard;  // descriptors 0 to 2

static int machine_lacks(machine *m, enum lack what)
{
    if (!m->lack_one_in[what] || !world_chance(m->lack_one_in[what])) return 0;
    m->lacked[what]++;
    world_note("%s lacks %d", m->name, (int)what);
    return 1;
}

static machine *machine_self(void)
{
    return wd.self->machine;
}

static machine *machine_at(uint32_t ip)
{
    uint32_t i = ip - MACHINE_BASE;
    return i < MACHINES && machines[i].ip ? &machines[i] : NULL;
}

// ---- descriptors

static unsigned file_ready(const file *f);  // EPOLL* bits that hold now
static void socket_close(file *f);

static file *file_new(enum file_kind kind)
{
    file *f = calloc(1, sizeof *f);
    if (!f) abort();
    f->kind = kind;
    f->machine = machine_self();
    f->is_nonblocking = 1;
    f->ready_end = &f->ready;
    return f;
}

// The lowest free number from `least` on, or -EMFILE.
static int fd_take(file *f, int least)
{
    machine *m = f->machine;
    if (machine_lacks(m, LACK_FD)) return world_chance(2) ? -EMFILE : -ENFILE;
    for (int fd = least; fd < m->fd_limit && fd < MACHINE_FDS; fd++) {
        if (m->fds[fd]) continue;
        m->fds[fd] = f;
        m->fd_count++;
        f->refs++;
        return fd;
    }
    return -EMFILE;
}

static file *fd_file(int fd)
{
    file *f = fd >= 0 && fd < MACHINE_FDS ? machine_self()->fds[fd] : NULL;
    if (!f) world_fail("%s uses descriptor %d, which is not open", machine_self()->name, fd);
    return f;
}

static void epoll_forget(epoll_item *item)
{
    epoll_item **at;
    for (at = &item->of->items; *at != item; at = &(*at)->next) {
    }
    *at = item->next;
    *item->set_to_me = item->set_next;
    if (item->set_next) item->set_next->set_to_me = item->set_to_me;
    if (item->is_ready) {
        file *ep = item->in;
        for (at = &ep->ready; *at != item; at = &(*at)->ready_next) {
        }
        *at = item->ready_next;
        if (ep->ready_end == &item->ready_next) ep->ready_end = at;
    }
    free(item);
}

static void file_unref(file *f)
{
    if (--f->refs > 0) return;
    while (f->items) epoll_forget(f->items);
    while (f->set) epoll_forget(f->set);
    if (f->waits.first) wake_all(&f->waits);
    if (f->kind == FILE_SOCKET) socket_close(f);
    if (f->other) f->other->other = NULL;
    free(f->ring);
    free(f);
}

// ---- what becomes ready

static void epoll_push(epoll_item *item)
{
    file *ep = item->in;
    if (!item->is_ready) {
        item->is_ready = 1;
        item->ready_next = NULL;
        *ep->ready_end = item;
        ep->ready_end = &item->ready_next;
    }
    wake_one(&ep->waits);
}

// An edge: those bits of f have just become true, or have become so once more.
static void file_edge(file *f, unsigned bits)
{
    if (!f) return;
    for (epoll_item *i = f->items; i; i = i->next)
        if (bits & (i->want.events | EPOLLERR | EPOLLHUP)) epoll_push(i);
    wake_all(&f->waits);
    if (f->machine->polls.first) wake_all(&f->machine->polls);
}

static int epoll_add(file *ep, file *f, int fd, const struct epoll_event *want)
{
    for (epoll_item *i = f->items; i; i = i->next)
        if (i->in == ep && i->fd == fd) return -EEXIST;
    epoll_item *item = calloc(1, sizeof *item);
    if (!item) abort();
    item->of = f;
    item->in = ep;
    item->fd = fd;
    item->want = *want;
    item->next = f->items;
    f->items = item;
    item->set_next = ep->set;
    item->set_to_me = &ep->set;
    if (ep->set) ep->set->set_to_me = &item->set_next;
    ep->set = item;
    if (file_ready(f) & (want->events | EPOLLERR | EPOLLHUP)) epoll_push(item);
    return 0;
}

static int epoll_change(file *ep, file *f, int fd, const struct epoll_event *want)
{
    for (epoll_item *i = f->items; i; i = i->next) {
        if (i->in != ep || i->fd != fd) continue;
        if (!want) {
            epoll_forget(i);
            return 0;
        }
        i->want = *want;
        if (file_ready(f) & (want->events | EPOLLERR | EPOLLHUP)) epoll_push(i);
        return 0;
    }
    return -ENOENT;
}

// Takes up to max events; edge-triggered ones leave the list.
static int epoll_take(file *ep, struct epoll_event *out, int max)
{
    int n = 0;
    epoll_item *list = ep->ready, *again = NULL, **again_end = &again;
    ep->ready = NULL;
    ep->ready_end = &ep->ready;
    while (list) {
        epoll_item *i = list;
        unsigned bits = file_ready(i->of) & (i->want.events | EPOLLERR | EPOLLHUP);
        if (bits && n == max) break;
        list = i->ready_next;
        i->is_ready = 0;
        if (!bits) continue;
        out[n].events = bits;
        out[n++].data = i->want.data;
        if (i->want.events & EPOLLET) continue;
        i->is_ready = 1;
        *again_end = i;
        again_end = &i->ready_next;
    }
    *again_end = list;
    ep->ready = again;
    for (ep->ready_end = &ep->ready; *ep->ready_end;
         ep->ready_end = &(*ep->ready_end)->ready_next) {
    }
    return n;
}

// An agent may have connected while its proxy was still starting.
static int machine_connections(const machine *m)
{
    int n = 0;
    for (int fd = 3; fd < MACHINE_FDS; fd++) n += m->fds[fd] && m->fds[fd]->end;
    return n;
}

static void machine_init(machine *m, int number, const char *name)
{
    memset(m, 0, sizeof *m);
    m->name = name;
    m->number = number;
    m->ip = MACHINE_BASE + (uint32_t)number;
    m->fd_limit = MACHINE_FDS;
    m->next_port = 32768;
    m->fds[0] = m->fds[1] = m->fds[2] = &machine_standard;
}

// Whatever is still open, when the world is over.
static void machine_end(machine *m)
{
    for (int fd = 3; fd < MACHINE_FDS; fd++)
        if (m->fds[fd]) file_unref(m->fds[fd]);
}

#endif
