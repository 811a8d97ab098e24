// A port of the simulated world whose route decides where each client goes, by a line that the
// client sends first: to an agent at once, after one more line, into the hands of the application,
// or nowhere. Clients of one machine are behind a trusted proxy and begin with a PROXY header;
// whoever is hostile is not let in at all.
#ifndef REVDIAL_TEST_WORLD_FRONT_H
#define REVDIAL_TEST_WORLD_FRONT_H

#include "world_people.h"

enum { FRONT_LINE = 40, FRONT_SECOND_LINE = 16, FRONT_END_US = 6000000 };

// What a client asks for.
enum front_mode { FRONT_DIAL, FRONT_TWO_LINES, FRONT_TAKE, FRONT_REFUSE, FRONT_RESET, FRONT_MODES };
static const char front_letters[] = "dmtrq";

// ---- the proxy's side

typedef struct front_taken {
    int fd, proxy;
    unsigned life;
    int64_t crowd;
    char client[80];
} front_taken;

// The connection is the application's now. It answers as a target does.
static void *front_serve(void *arg)
{
    front_taken *f = arg;
    world_proxy *w = &proxies[f->proxy];
    talk_way way = {f->fd, NULL, 0};
    if (way_exactly(&way, (uint8_t *)(uintptr_t) "TAKEN\n", 6, 1))
        talk_answer(&way, f->client);
    else
        way_close(&way, 1);
    if (w->life == f->life && w->p && !w->is_closing) {
        w->dials++;
        revdial_proxy_leave(w->p, f->crowd, f->client);
        w->dials--;
    }
    clients_running--;
    free(f);
    return NULL;
}

static int front_take(world_proxy *w, const revdial_route *r)
{
    front_taken *f = calloc(1, sizeof *f);
    if (!f) abort();
    f->fd = r->fd;
    f->proxy = (int)(w - proxies);
    f->life = w->life;
    f->crowd = r->crowd;
    snprintf(f->client, sizeof f->client, "%s", r->client);
    clients_running++;
    mark_set(MARK_ROUTE_TAKES);
    people_new(AT_PROXY + f->proxy, "taken", front_serve, f);
    return REVDIAL_ROUTE_TAKE;
}

static int front_dial(revdial_route *r, int agent)
{
    if (agent < 0 || agent >= plan.agent_count) return REVDIAL_ROUTE_REFUSE;
    r->name = agent_names[agent];
    r->dial.flags = REVDIAL_DIAL_WAIT;
    r->dial.timeout_ms = 20000;
    if (plan.serves[agent] != SERVES_HANDLER) {
        people_target(agent, r->text);
        r->dial.target = r->text;
    }
    mark_set(MARK_ROUTE_DIALS);
    return REVDIAL_ROUTE_DIAL;
}

static int front_refuse(revdial_route *r)
{
    r->reply = "NO\n";
    r->reply_len = 3;
    mark_set(MARK_ROUTE_REFUSES);
    return REVDIAL_ROUTE_REFUSE;
}

// "F agent mode key\n". The client has to be the one that says so.
static int front_first_line(world_proxy *w, revdial_route *r, const char *line)
{
    unsigned agent, key;
    char mode;
    if (sscanf(line, "F %u %c %u", &agent, &mode, &key) != 3 || key >= talk_count) {
        world_fail("a route gets the line \"%s\"", line);
        return REVDIAL_ROUTE_REFUSE;
    }
    if (strcmp(r->client, talks[key].client_at))
        world_fail("transfer %u is of %s, its route says %s", key, talks[key].client_at, r->client);
    switch ((enum front_mode)(strchr(front_letters, mode) - front_letters)) {
    case FRONT_DIAL: return front_dial(r, (int)agent);
    case FRONT_TAKE: return front_take(w, r);
    case FRONT_REFUSE: return front_refuse(r);
    case FRONT_RESET:
    case FRONT_MODES: return REVDIAL_ROUTE_REFUSE;
    case FRONT_TWO_LINES: break;
    }
    r->state = FRONT_SECOND_LINE + (int)agent;
    r->reply = "HELLO\n";
    r->reply_len = 6;
    mark_set(MARK_ROUTE_MORE);
    return REVDIAL_ROUTE_MORE;
}

static int front_route(void *ud, revdial_route *r)
{
    const uint8_t *end = memchr(r->data, '\n', r->len);
    char line[FRONT_LINE];
    if (!end && r->len < FRONT_LINE) return REVDIAL_ROUTE_MORE;
    size_t n = end ? (size_t)(end - r->data) : FRONT_LINE;
    if (n >= FRONT_LINE) {
        world_fail("a route gets %zu bytes without a line", r->len);
        return REVDIAL_ROUTE_REFUSE;
    }
    memcpy(line, r->data, n);
    line[n] = '\0';
    r->used = n + 1;
    if (r->state >= FRONT_SECOND_LINE) return front_dial(r, r->state - FRONT_SECOND_LINE);
    return front_first_line(ud, r, line);
}

static void front_done(void *ud, revdial_route *r, const revdial_err *why)
{
    (void)ud;
    r->reply = why ? "FAIL\n" : "OK\n";
    r->reply_len = why ? 5 : 3;
}

static void front_fill(revdial_expose *x, world_proxy *w, char at[40])
{
    net_text(plan.of_front, (int)(w - proxies), PORT_FRONT, at);
    x->listen = at;
    x->route = front_route;
    x->route_done = front_done;
    x->route_ud = w;
    x->trusted_proxies = "10.0.0.7, fd00::7";
    x->allow_from = "10.0.0.0/29, 10.0.0.8, fd00::/125, fd00::8, 192.0.2.0/24, 2001:db8::/32";
}

// ---- the client's side

typedef struct front_order {
    talk *t;
    int agent, proxy, is_early, header, pieces;
    enum front_mode mode;
} front_order;

static const uint8_t front_v2[12] = {13, 10, 13, 10, 0, 13, 10, 'Q', 'U', 'I', 'T', 10};

// A PROXY header for a client that is named after its transfer. Returns its length.
static size_t front_header(const front_order *o, uint8_t out[120])
{
    talk *t = o->t;
    unsigned port = 1000 + t->key;
    if (o->header == 0) return (size_t)snprintf((char *)out, 120, "PROXY UNKNOWN\r\n");
    if (o->header == 1) {
        snprintf(t->client_at, sizeof t->client_at, "192.0.2.9:%u", port);
        return (size_t)snprintf((char *)out, 120, "PROXY TCP4 192.0.2.9 10.0.0.1 %u %d\r\n", port,
                                PORT_FRONT);
    }
    if (o->header == 2) {
        snprintf(t->client_at, sizeof t->client_at, "[2001:db8::9]:%u", port);
        return (size_t)snprintf((char *)out, 120, "PROXY TCP6 2001:db8::9 2001:db8::1 %u %d\r\n",
                                port, PORT_FRONT);
    }
    memcpy(out, front_v2, 12);
    uint8_t rest[] = {0x21,          0x11, 0, 12, 192, 0, 2, 7, 10, 0, 0, 1, (uint8_t)(port >> 8),
                      (uint8_t)port, 32,   8};
    if (o->header == 3) {  // LOCAL
        rest[0] = 0x20;
        rest[1] = 0;
    } else {
        snprintf(t->client_at, sizeof t->client_at, "192.0.2.7:%u", port);
    }
    memcpy(out + 12, rest, sizeof rest);
    return 12 + sizeof rest;
}

// In a few pieces, with pauses. Returns 0 if the connection ended.
static int front_send(const front_order *o, const talk_way *w, uint8_t *bytes, size_t n)
{
    size_t step = n / (size_t)o->pieces + 1;
    for (size_t at = 0; at < n; at += step) {
        if (!way_exactly(w, bytes + at, n - at < step ? n - at : step, 1)) return 0;
        if (o->pieces > 1) world_sleep_us(1000, "the next piece");
    }
    return 1;
}

static int front_expect(const front_order *o, const talk_way *w, const char *what)
{
    uint8_t got[8];
    size_t n = strlen(what);
    if (!way_exactly(w, got, n, 0)) return 0;
    if (memcmp(got, what, n)) {
        world_fail("transfer %u: \"%.*s\" in place of \"%s\"", o->t->key, (int)n, got, what);
        return 0;
    }
    return 1;
}

// OK, or FAIL and the end. Returns 1 if the transfer may begin.
static int front_verdict(const front_order *o, const talk_way *w)
{
    uint8_t first;
    if (o->mode == FRONT_TAKE) return front_expect(o, w, "TAKEN\n");
    if (!way_exactly(w, &first, 1, 0)) return 0;
    if (first == 'O') return front_expect(o, w, "K\n");
    if (first != 'F') world_fail("transfer %u: a route says %d", o->t->key, first);
    return 0;
}

static int front_is_sure(const front_order *o)
{
    return story_is_calm() && !o->t->may_refuse;
}

// A refused client gets the whole reply and EOF, or is reset.
static void front_refused(const front_order *o, const talk_way *w)
{
    uint8_t more;
    int is_told = o->mode == FRONT_RESET || front_expect(o, w, "NO\n");
    if (front_is_sure(o) && !is_told)
        world_fail("transfer %u: the reply of a refusal does not arrive", o->t->key);
    ptrdiff_t n = -EAGAIN;
    int64_t until = wd.clock.now_us + FRONT_END_US;
    while (is_told && n == -EAGAIN && wd.clock.now_us < until) {
        n = way_read(w, &more, 1);
        if (n == -EAGAIN) way_wait(w, 1, 0);
    }
    if (n > 0) world_fail("transfer %u: bytes after a refusal", o->t->key);
    if (is_told && n == -EAGAIN && front_is_sure(o))
        world_fail("transfer %u: a refused client is still connected", o->t->key);
    if (o->mode == FRONT_REFUSE && is_told && n < 0 && front_is_sure(o))
        world_fail("transfer %u: a refusal ends in %td", o->t->key, n);
    if (o->mode == FRONT_RESET && n == 0) world_fail("transfer %u: a reset is EOF", o->t->key);
    o->t->side[0].error = -1;
    o->t->side[0].over = 1;
    o->t->over_us = wd.clock.now_us;
    way_close(w, 1);
}

static int front_begin(const front_order *o, const talk_way *w, int is_trusted)
{
    uint8_t header[120], line[FRONT_LINE], head[TALK_HEAD];
    size_t n = is_trusted ? front_header(o, header) : 0;
    int len = snprintf((char *)line, sizeof line, "F %d %c %u\n", o->agent, front_letters[o->mode],
                       o->t->key);
    talk_head(o->t, head);
    if (n && !front_send(o, w, header, n)) return 0;
    if (!front_send(o, w, line, (size_t)len)) return 0;
    if (o->mode >= FRONT_REFUSE) return 1;
    if (o->mode == FRONT_TWO_LINES && !front_expect(o, w, "HELLO\n")) return 0;
    if (o->mode == FRONT_TWO_LINES && !way_exactly(w, (uint8_t *)(uintptr_t) "GO\n", 3, 1))
        return 0;
    if (o->mode != FRONT_TAKE && o->is_early && !way_exactly(w, head, TALK_HEAD, 1)) return 0;
    if (!front_verdict(o, w)) return 0;
    return (o->mode != FRONT_TAKE && o->is_early) || way_exactly(w, head, TALK_HEAD, 1);
}

static void *front_client(void *arg)
{
    front_order *o = arg;
    int is_trusted = machine_self()->number == AT_CLIENT;
    int fd = net_connect(AT_PROXY + o->proxy, PORT_FRONT);
    talk_way way = {fd, NULL, 0};
    if (fd < 0) {
        client_failed(o->t, fd);
    } else {
        net_name(fd, o->t->client_at);
        client_mark(o->t, o->agent);
        int is_good = front_begin(o, &way, is_trusted);
        if (o->mode >= FRONT_REFUSE && is_good) {
            front_refused(o, &way);
        } else if (is_good) {
            talk_run(o->t, 0, &way);
        } else {
            client_failed(o->t, -ECONNABORTED);
            way_close(&way, 1);
        }
    }
    clients_running--;
    free(o);
    return NULL;
}

// One who is not let in is disconnected at once.
static void front_intrude(int proxy)
{
    uint8_t byte;
    int64_t began = wd.clock.now_us;
    int fd = net_connect(AT_PROXY + proxy, PORT_FRONT);
    talk_way way = {fd, NULL, 0};
    if (fd < 0) return;
    ptrdiff_t n = -EAGAIN;
    while (n == -EAGAIN && wd.clock.now_us < began + FRONT_END_US) {
        n = way_read(&way, &byte, 1);
        if (n == -EAGAIN) way_wait(&way, 1, 0);
    }
    if (n > 0) world_fail("a stranger is told something");
    if (n == -EAGAIN && story_is_calm()) world_fail("a client that is not allowed stays");
    mark_set(MARK_NOT_ALLOWED);
    way_close(&way, 0);
}

#endif
