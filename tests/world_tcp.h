// TCP of the simulated world: connections over links with a rate, a delay and a queue. What is
// sent is in one ring per direction: bytes that the receiver may read, bytes on their way, and
// bytes that wait for room or for the link. FIN comes after the bytes. RST destroys what is on its
// way; the receiver may still read what has arrived. A link that is down loses what is sent on it,
// and the sender's system sends it again when the link is up.
#ifndef REVDIAL_TEST_WORLD_TCP_H
#define REVDIAL_TEST_WORLD_TCP_H

#include <netinet/tcp.h>

#include "world_machine.h"

enum {
    TCP_FLIGHTS = 16,         // packets of one direction on their way
    TCP_RETRIES_MS = 924000,  // what Linux gives bytes that nobody acknowledges
    TCP_SYN_MS = 127000,      // and a connection that nobody answers
    TCP_LISTENERS = 64,
    TCP_CLOSED = 7  // as in netinet/tcp.h, of struct tcp_info
};

// Between two machines; of the two directions each has its queue.
typedef struct tcp_link {
    int64_t delay_us;
    uint64_t bytes_per_s;
    int is_down;
    int64_t free_us[2];
} tcp_link;

enum flight_kind { FLIGHT_BYTES, FLIGHT_FIN, FLIGHT_RST };

typedef struct tcp_flight {
    enum flight_kind kind;
    size_t bytes;
    int64_t at_us;
} tcp_flight;

// One end of a connection, and the bytes on their way to it.
typedef struct tcp_end {
    struct tcp_conn *conn;
    file *file;  // NULL: closed, or not accepted yet
    struct sockaddr_in own, peer;
    uint8_t *ring;
    size_t at, room, readable, flying, unsent;  // in this order in the ring
    size_t window;                              // how much may be readable or flying
    size_t send_room;                           // of the sender, for flying and unsent
    tcp_flight flights[TCP_FLIGHTS];
    unsigned flight_first, flight_count;
    int fin_sent, fin_flies, fin_came;  // by the peer, towards this end
    int is_dead, is_shut_rd;            // RST was sent or came, or the connection timed out
    int is_tight;                       // this end's last send found no room
    int waits_accept;
    int64_t progress_us, heard_us;  // bytes towards here moved; something came from the peer
    world_event arrival, keep;
} tcp_end;

typedef struct tcp_conn {
    tcp_end e[2];
    int family;
    tcp_link *link;
    int way;      // e[1] is reached by free_us[way], e[0] by the other
    int is_lost;  // the way forgets it: nothing arrives any more, in either direction
    struct tcp_conn *next, **to_me;
} tcp_conn;

typedef struct tcp_listener {
    file *file;
    machine *machine;
    struct sockaddr_in at;
    int backlog, count;
    tcp_conn *queue[64];
} tcp_listener;

// A SYN that has no answer yet.
typedef struct dialling {
    file *file;
    struct sockaddr_in to;
    int64_t begun_us, wait_us;
    int is_back;  // the answer is on its way
    int answer;   // 0 or an errno
    tcp_conn *conn;
    world_event arrival;
} dialling;

static tcp_listener *tcp_listeners[TCP_LISTENERS];
static tcp_link tcp_links[MACHINES][MACHINES];  // [lower][higher]
static tcp_conn *tcp_conns;
static uint64_t tcp_resets, tcp_timeouts, tcp_bytes;
static int tcp_family_down;  // no packet of this family comes to another machine

static tcp_link *tcp_link_of(const machine *a, const machine *b)
{
    return a->number < b->number ? &tcp_links[a->number][b->number]
                                 : &tcp_links[b->number][a->number];
}

static int tcp_is_down(const tcp_conn *c)
{
    machine *a = machine_at(ntohl(c->e[0].own.sin_addr.s_addr));
    machine *b = machine_at(ntohl(c->e[1].own.sin_addr.s_addr));
    if (c->family == AF_UNIX) return 0;
    if (c->family == tcp_family_down && a != b) return 1;
    return c->is_lost || c->link->is_down || (a && a->is_cut_off) || (b && b->is_cut_off);
}

static tcp_end *tcp_other(const tcp_end *x)
{
    return &x->conn->e[x == &x->conn->e[0]];
}

// What the sender's system holds. What goes to a Unix socket counts until it is read.
static size_t tcp_held(const tcp_end *to)
{
    return to->flying + to->unsent + (to->conn->family == AF_UNIX ? to->readable : 0);
}

static unsigned tcp_ready(tcp_end *x)
{
    const tcp_end *to = tcp_other(x);  // what this end sends goes there
    unsigned bits = 0;
    size_t sent = tcp_held(to);
    if (x->readable || x->fin_came || x->is_dead || x->is_shut_rd) bits |= EPOLLIN;
    if (x->fin_came || x->is_dead || x->is_shut_rd) bits |= EPOLLRDHUP;
    if (x->is_dead || (x->fin_came && to->fin_sent)) bits |= EPOLLHUP;
    if (x->file && x->file->error) bits |= EPOLLERR;
    size_t low = x->file && x->file->unsent_low ? (size_t)x->file->unsent_low : SIZE_MAX;
    if (x->is_dead || to->fin_sent || (sent <= to->send_room / 3 * 2 && to->unsent < low))
        bits |= EPOLLOUT;
    x->is_tight = !(bits & EPOLLOUT);
    return bits;
}

static void tcp_free(tcp_conn *c)
{
    *c->to_me = c->next;
    if (c->next) c->next->to_me = c->to_me;
    for (int i = 0; i < 2; i++) {
        event_stop(&c->e[i].arrival);
        event_stop(&c->e[i].keep);
        free(c->e[i].ring);
    }
    free(c);
}

// Both ends are closed, and nothing that was sent is on its way: the connection is forgotten.
static int tcp_is_quiet(const tcp_end *x)
{
    return x->is_dead || (!x->flight_count && !x->unsent && (!x->fin_sent || x->fin_came));
}

static void tcp_forget(tcp_conn *c)
{
    for (int i = 0; i < 2; i++)
        if (c->e[i].file || c->e[i].waits_accept) return;
    if (tcp_is_down(c) || (tcp_is_quiet(&c->e[0]) && tcp_is_quiet(&c->e[1]))) tcp_free(c);
}

// The connection is over for this end: RST came, or nobody answered.
static void tcp_die(tcp_end *x, int error)
{
    tcp_end *to = tcp_other(x);
    if (x->is_dead) return;
    x->is_dead = 1;
    x->flying = x->unsent = 0;
    x->flight_count = 0;
    event_stop(&x->arrival);
    event_stop(&x->keep);
    to->unsent = 0;  // what this end had to send
    if (!x->file) return;
    x->file->error = error;
    file_edge(x->file, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLHUP | EPOLLERR);
}

static void tcp_fly(tcp_end *to, enum flight_kind kind, size_t bytes)
{
    tcp_link *l = to->conn->link;
    int64_t *free_us = &l->free_us[to == &to->conn->e[1] ? to->conn->way : !to->conn->way];
    int64_t at = *free_us > wd.clock.now_us ? *free_us : wd.clock.now_us;
    tcp_flight *last = to->flight_count
                           ? &to->flights[(to->flight_first + to->flight_count - 1) % TCP_FLIGHTS]
                           : NULL;
    at += (int64_t)((bytes + 60) * 1000000 / l->bytes_per_s);
    *free_us = at;
    at += l->delay_us;
    if (last && at < last->at_us) at = last->at_us;
    tcp_flight f = {kind, bytes, at};
    to->flights[(to->flight_first + to->flight_count++) % TCP_FLIGHTS] = f;
    if (to->flight_count == 1) event_set(&to->arrival, at);
}

// The sender that found no room is told when there is some.
static void tcp_tell_room(tcp_end *from)
{
    if (from->file && from->is_tight && (tcp_ready(from) & EPOLLOUT))
        file_edge(from->file, EPOLLOUT);
}

// Between Unix sockets nothing is ever on its way.
static void unix_pump(tcp_end *to)
{
    unsigned bits = to->unsent ? EPOLLIN : 0;
    to->readable += to->unsent;
    to->unsent = 0;
    if (to->fin_sent && !to->fin_came)
        bits |= EPOLLIN | EPOLLRDHUP | (tcp_other(to)->fin_sent ? EPOLLHUP : 0);
    to->fin_came = to->fin_sent;
    if (bits) file_edge(to->file, bits);
    tcp_tell_room(tcp_other(to));
}

// One is closed. There is no RST: its peer has what was sent, and then EOF, or an error if
// something was not read.
static void unix_part(tcp_end *x, int is_error)
{
    tcp_end *to = tcp_other(x);
    x->is_dead = x->fin_sent = x->fin_came = 1;
    to->fin_sent = to->fin_came = 1;
    if (!to->file) return;
    if (is_error) to->file->error = ECONNRESET;
    file_edge(to->file, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLHUP | (is_error ? EPOLLERR : 0));
}

// Sends what waits as far as the receiver's window and the link allow.
static void tcp_pump(tcp_end *to)
{
    int64_t now = wd.clock.now_us;
    if (to->conn->family == AF_UNIX) {
        unix_pump(to);
        return;
    }
    if (to->is_dead || tcp_other(to)->is_dead) return;
    while (to->unsent && to->flight_count < TCP_FLIGHTS - 2) {
        size_t used = to->readable + to->flying, n = to->unsent;
        size_t most = to->conn->link->bytes_per_s / 100 + 1460;  // 10 ms at most in one piece
        if (!to->file && !to->waits_accept) used = 0;            // it will be answered with RST
        if (used >= to->window) break;
        if (n > to->window - used) n = to->window - used;
        if (n > most) n = most;
        if (!to->flying) to->progress_us = now;
        to->unsent -= n;
        to->flying += n;
        tcp_fly(to, FLIGHT_BYTES, n);
    }
    if (to->fin_sent && !to->fin_flies && !to->unsent && to->flight_count < TCP_FLIGHTS - 1) {
        to->fin_flies = 1;
        tcp_fly(to, FLIGHT_FIN, 0);
    }
    tcp_tell_room(tcp_other(to));
}

// RST from x to its peer. x itself is done.
static void tcp_reset(tcp_end *x)
{
    tcp_end *to = tcp_other(x);
    tcp_die(x, ECONNRESET);
    if (to->is_dead) return;
    to->unsent = 0;
    if (to->flight_count == TCP_FLIGHTS) to->flight_count--;
    tcp_fly(to, FLIGHT_RST, 0);
    tcp_resets++;
}

static void tcp_arrive(tcp_end *to, const tcp_flight *f)
{
    tcp_end *from = tcp_other(to);
    to->heard_us = from->heard_us = to->progress_us = wd.clock.now_us;
    if (f->kind == FLIGHT_RST) {
        tcp_die(to, ECONNRESET);
        return;
    }
    if (!to->file && !to->waits_accept && f->kind == FLIGHT_BYTES) {
        to->flying = to->unsent = 0;
        tcp_reset(to);  // nobody is there
        return;
    }
    if (f->kind == FLIGHT_BYTES) {
        to->flying -= f->bytes;
        to->readable += f->bytes;
        tcp_bytes += f->bytes;
        file_edge(to->file, EPOLLIN);
    } else {
        to->fin_came = 1;
        file_edge(to->file, EPOLLIN | EPOLLRDHUP | (from->fin_sent ? EPOLLHUP : 0));
        if (from->file && from->fin_came) file_edge(from->file, EPOLLHUP);
    }
    tcp_pump(to);
}

static void tcp_on_arrival(world_event *e)
{
    tcp_end *to = (tcp_end *)((char *)e - offsetof(tcp_end, arrival));
    tcp_conn *c = to->conn;
    if (tcp_is_down(c)) return;  // lost; see tcp_links_up()
    while (to->flight_count && to->flights[to->flight_first].at_us <= wd.clock.now_us) {
        tcp_flight f = to->flights[to->flight_first];
        to->flight_first = (to->flight_first + 1) % TCP_FLIGHTS;
        to->flight_count--;
        tcp_arrive(to, &f);
    }
    if (to->flight_count && !to->is_dead)
        event_set(&to->arrival, to->flights[to->flight_first].at_us);
    tcp_forget(c);
}

// The link is up again: what was lost is sent once more, after the time that retransmission takes.
static void tcp_links_up(void)
{
    for (tcp_conn *c = tcp_conns; c; c = c->next) {
        if (tcp_is_down(c)) continue;
        for (int i = 0; i < 2; i++) {
            tcp_end *x = &c->e[i];
            if (!x->flight_count || x->arrival.slot) continue;
            int64_t at = wd.clock.now_us + 200000 + c->link->delay_us;
            for (unsigned k = 0; k < x->flight_count; k++) {
                tcp_flight *f = &x->flights[(x->flight_first + k) % TCP_FLIGHTS];
                if (f->at_us < at) f->at_us = at;
            }
            event_set(&x->arrival, at);
        }
    }
}

// ---- timers of the system: keepalive, and bytes that nobody acknowledges

static void tcp_keep_set(tcp_end *x)
{
    const tcp_end *to = tcp_other(x);
    int64_t at = INT64_MAX;
    if (x->conn->family == AF_UNIX) return;
    if (x->file && x->file->keep_on)
        at = x->heard_us +
             1000000LL * (x->file->keep_idle_s + x->file->keep_each_s * x->file->keep_count);
    if (to->flying || to->unsent || (to->fin_sent && !to->fin_came)) {
        int64_t ms = x->file && x->file->user_timeout_ms ? x->file->user_timeout_ms
                     : x->file                           ? TCP_RETRIES_MS
                                                         : 60000;
        if (to->progress_us + ms * 1000 < at) at = to->progress_us + ms * 1000;
    }
    if (at != INT64_MAX && !x->is_dead) event_set(&x->keep, at + 1);
}

static void tcp_on_keep(world_event *e)
{
    tcp_end *x = (tcp_end *)((char *)e - offsetof(tcp_end, keep)), *to = tcp_other(x);
    int64_t now = wd.clock.now_us;
    if (!tcp_is_down(x->conn) && !to->is_dead) {  // the peer's system answers the probe
        x->heard_us = now;
        // A window that stays closed is silence for who has set a limit, and for nobody else.
        if (to->readable < to->window || !x->file || !x->file->user_timeout_ms)
            to->progress_us = now;
    }
    tcp_keep_set(x);
    if (x->keep.at_us > now && x->keep.slot) return;
    event_stop(&x->keep);
    world_note("%s: a connection times out", x->file ? x->file->machine->name : "nobody");
    tcp_timeouts++;
    tcp_conn *c = x->conn;
    tcp_die(x, ETIMEDOUT);
    tcp_forget(c);
}

// ---- connections come

static void tcp_ring(tcp_end *x, size_t window, size_t send_room)
{
    x->window = window;
    x->send_room = send_room;
    x->room = window + send_room;
    x->ring = malloc(x->room);
    if (!x->ring) abort();
}

static size_t tcp_window_least = 4096, tcp_window_most = 262144;

static size_t tcp_draw(void)
{
    size_t n = tcp_window_least;
    while (n < tcp_window_most && world_below(4)) n *= 2;
    return n;
}

static tcp_conn *tcp_conn_new(machine *a, machine *b)
{
    tcp_conn *c = calloc(1, sizeof *c);
    if (!c) abort();
    c->link = tcp_link_of(a, b);
    c->way = a->number < b->number;
    for (int i = 0; i < 2; i++) {
        tcp_end *x = &c->e[i];
        x->conn = c;
        x->arrival.run = tcp_on_arrival;
        x->keep.run = tcp_on_keep;
        x->progress_us = x->heard_us = wd.clock.now_us;
        tcp_ring(x, tcp_draw(), tcp_draw());
    }
    c->next = tcp_conns;
    c->to_me = &tcp_conns;
    if (tcp_conns) tcp_conns->to_me = &c->next;
    tcp_conns = c;
    return c;
}

static tcp_listener *tcp_listener_at(const struct sockaddr_in *at, const machine *m)
{
    for (int i = 0; i < TCP_LISTENERS; i++) {
        tcp_listener *l = tcp_listeners[i];
        if (!l || l->machine != m || l->at.sin_port != at->sin_port) continue;
        if (l->at.sin_family != at->sin_family && !(l->file->takes_v4 && at->sin_family == AF_INET))
            continue;
        uint32_t ip = ntohl(l->at.sin_addr.s_addr), to = ntohl(at->sin_addr.s_addr);
        int is_loopback = to == m->ip && ip >> 24 == 127;  // connect has made it the machine's
        if (ip == INADDR_ANY || ip == to || is_loopback) return l;
    }
    return NULL;
}

#endif
