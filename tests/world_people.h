// Who lives in the simulated world: proxies, agents, targets, clients. They use the public calls of
// revdial.h, or sockets.
#ifndef REVDIAL_TEST_WORLD_PEOPLE_H
#define REVDIAL_TEST_WORLD_PEOPLE_H

#include "world_record.h"
#include "world_talk.h"

// Machines by number.
enum {
    AT_PROXY = 0,
    PROXIES = 2,
    AT_AGENT = 2,
    AGENTS = 3,
    AT_TARGET = 5,
    AT_CLIENT = 6,
    AT_HOSTILE = 8,
    HOSTILES = 2,
    PORT_LISTEN = 7000,
    PORT_CLIENTS = 8000,  // and the agent's number
    PORT_MORE = 8100,     // and a number: those that come and go
    PORTS_MORE = 4,
    PORT_FRONT = 8200,  // with a route
    PORT_FAKE = 7001,   // of a hostile proxy
    PORT_TARGET = 80,
    PEOPLE_TRIES = 200  // to start, a second apart, while the system lacks something
};

// How one is reached. NET_BOTH listens for IPv6 and takes IPv4, too.
enum net_kind { NET_V4, NET_V6, NET_BOTH, NET_UNIX, NET_KINDS };

enum agent_serves { SERVES_TARGET, SERVES_HOST, SERVES_HANDLER, SERVES_KINDS };

// What a seed decides before anything runs.
typedef struct world_plan {
    uint64_t seed;
    unsigned io_threads, spin_us;
    int proxy_count, agent_count;
    enum agent_serves serves[AGENTS];
    int is_websocket[AGENTS], is_digest[AGENTS], all_urls[AGENTS];
    revdial_limits limits;
    int handshake_ms, keepalive_ms, dead_ms;
    unsigned max_pending;
    int is_bulk;  // transfers are so large that they go through pipes
    int has_front, proxy_protocol, has_peers;
    int egress[AGENTS];  // 1: through CONNECT, 2: through SOCKS
    int has_records;     // the sessions' transport is that of world_record.h
    int has_fake;        // agents were told of a hostile proxy, too, that does not keep to records
    int has_changes;     // dials wait for backends that are about to come back
    int has_haste;       // ends close while they are still being sent to
    int has_families;    // besides IPv4 there are IPv6 and Unix sockets:
    enum net_kind of_port[AGENTS], of_more[PORTS_MORE], of_front, of_target[AGENTS];
    enum net_kind of_agent[AGENTS];  // how it reaches its first proxy
} world_plan;

static int story_is_calm(void);  // nothing is broken

enum { PEOPLE_EVENTS = 24 };

// What an object may still log, by event.
typedef struct people_log {
    const char *event[PEOPLE_EVENTS];
    int64_t left_us[PEOPLE_EVENTS], at_us[PEOPLE_EVENTS];
} people_log;

typedef struct world_proxy {
    revdial_proxy *p;
    int fds_idle;                                              // descriptors with nobody connected
    unsigned dials;                                            // threads in revdial_dial()
    int is_closing;                                            // nobody may begin to dial
    unsigned life;                                             // how often it has started
    int64_t port_ids[AGENTS];                                  // of the ports that are always there
    int more[PORTS_MORE];                                      // the agent of a port more, plus one
    int is_taken[PORTS_MORE], is_swapped[AGENTS], is_revoked;  // by an operation
    unsigned up[AGENTS + 1];  // sessions by on_session; the last is a stranger's
    people_log log, peer_log;
    revdial_agent *peer;  // of the other proxy, in this process
    unsigned peers_up;
} world_proxy;

typedef struct world_agent {
    revdial_agent *a;
    int number;
    unsigned users;  // threads in a call that needs it
    int is_closing;  // nobody may begin one
    people_log log;
} world_agent;

static world_plan plan;
static world_proxy proxies[PROXIES];
static world_agent agents[AGENTS];
static unsigned handlers_running, clients_running;
static const revdial_tls *people_tls[2];  // of proxies, of agents; NULL: none
static const revdial_tls *people_tls_of(int side)
{
    return plan.has_records ? &record_tls : people_tls[side];
}
static int people_tries;  // to start, a second apart; 0: it may fail
static void (*people_hear)(const char *who, const char *msg);  // errors and lines of logs

static void *world_alloc(void *ud, void *ptr, size_t old_size, size_t new_size)
{
    if (ptr && ((heap_block *)ptr - 1)->size != old_size)
        world_fail("a block of %zu bytes is given back as one of %zu",
                   ((heap_block *)ptr - 1)->size, old_size);
    return fault_resize(ud, ptr, new_size);
}

// However often something happens, its lines are few.
static void log_check(people_log *log, const char *event)
{
    enum { BURST = 60, PER_SECOND = 15 };
    int i = 0;
    while (i < PEOPLE_EVENTS - 1 && log->event[i] && strcmp(log->event[i], event)) i++;
    if (!log->event[i]) {
        log->event[i] = event;
        log->left_us[i] = BURST * 1000000 / PER_SECOND;
    }
    log->left_us[i] += wd.clock.now_us - log->at_us[i];
    log->at_us[i] = wd.clock.now_us;
    if (log->left_us[i] > BURST * 1000000 / PER_SECOND)
        log->left_us[i] = BURST * 1000000 / PER_SECOND;
    log->left_us[i] -= 1000000 / PER_SECOND;
    if (log->left_us[i] < 0) world_fail("the log is flooded: %s", event);
}

static void world_log(void *ud, int level, const char *event, const char *msg)
{
    if (level <= REVDIAL_LOG_INFO) log_check(ud, event);
    world_note("log %s %s", event, msg);
    mark_line(event, msg);
    for (const char *c = msg; *c; c++)
        if ((unsigned char)*c < 0x20) world_fail("a control character in the log: %s", event);
    if (people_hear) people_hear(event, msg);
}

static void world_common(revdial_common *c, machine *m, people_log *log)
{
    c->log = world_log;
    c->log_ud = log;
    c->log_level = REVDIAL_LOG_DEBUG;
    c->alloc = world_alloc;
    c->alloc_ud = m;
    c->limits = plan.limits;
    c->io_threads = plan.io_threads;
    c->spin_us = plan.spin_us;
}

// It did not start. Waits until it may be tried once more.
static int people_try_again(const char *what, const revdial_err *err, int tries)
{
    world_note("%s: %s", what, err->msg);
    if (people_hear) people_hear(what, err->msg);
    if (tries >= people_tries && people_tries) world_fail("no %s: %s", what, err->msg);
    if (tries >= people_tries) return 0;
    world_sleep_us(1000000, what);
    return 1;
}

// ---- proxies

static const char *const agent_names[AGENTS] = {"cam-0", "cam-1", "cam-2"};

static void proxy_on_session(void *ud, revdial_session *s, int state, const revdial_err *why)
{
    world_proxy *w = ud;
    revdial_session_info info;
    (void)why;
    revdial_session_get_info(s, &info);
    int i = 0;
    while (i < AGENTS && strcmp(info.name, agent_names[i])) i++;
    if (info.is_peer && state == REVDIAL_UP) w->peers_up++;
    if (info.is_peer && state == REVDIAL_DOWN) w->peers_up--;
    if (state == REVDIAL_UP) w->up[i]++;
    if (state == REVDIAL_UP && info.peer[0] == 'u') mark_set(MARK_UNIX_SESSION);
    if (state == REVDIAL_UP && info.peer[0] == '[') mark_set(MARK_V6_SESSION);
    if (state == REVDIAL_DOWN && w->up[i]-- == 0)
        world_fail("a session of %s is down that was not up", info.name);
}

enum { PROXY_ROWS = 4 };
static const revdial_credential proxy_rows[PROXY_ROWS] = {
    {.secret = "s3cret", .names = "cam-*", .group = "cams"},
    {.secret = "s3cret",
     .user = "cam",
     .names = "cam-*",
     .schemes = REVDIAL_AUTH_DIGEST,
     .group = "cams"},
    {.secret = "evil", .names = "evil-*"},
    {.secret = "between us",
     .user = "peer",
     .names = "peer",
     .schemes = REVDIAL_AUTH_DIGEST,
     .group = "peers"}};

// An address as revdial.h reads it.
static void net_text(enum net_kind kind, int at, int port, char text[40])
{
    if (kind == NET_V4) snprintf(text, 40, "10.0.0.%d:%d", at + 1, port);
    if (kind == NET_V6) snprintf(text, 40, "[fd00::%x]:%d", (unsigned)at + 1, port);
    if (kind == NET_BOTH) snprintf(text, 40, "[::]:%d", port);
    if (kind == NET_UNIX) snprintf(text, 40, "unix:/run/%d-%d.sock", at, port);
}

static void people_target(int agent, char target[40])
{
    if (plan.serves[agent] == SERVES_HOST)
        snprintf(target, 40, "m%d.sim:%d", AT_TARGET, PORT_TARGET);
    else
        net_text(plan.of_target[agent], AT_TARGET, PORT_TARGET, target);
}

// How a port of a proxy listens.
static enum net_kind net_kind_of(int port)
{
    if (port >= PORT_CLIENTS && port < PORT_CLIENTS + AGENTS)
        return plan.of_port[port - PORT_CLIENTS];
    if (port >= PORT_MORE && port < PORT_MORE + PORTS_MORE) return plan.of_more[port - PORT_MORE];
    return port == PORT_FRONT ? plan.of_front : NET_V4;
}

static void peer_start(int n);  // an agent of the other proxy, if they know each other
static void peer_stop(int n);
static void front_fill(revdial_expose *x, world_proxy *w, char at[40]);

// A port of proxy n for clients of an agent.
static void expose_fill(revdial_expose *x, int agent, char text[2][40], int n, int port)
{
    net_text(net_kind_of(port), n, port, text[0]);
    people_target(agent, text[1]);
    x->listen = text[0];
    x->name = agent_names[agent];
    if (plan.serves[agent] != SERVES_HANDLER) x->dial.target = text[1];
    if (plan.has_changes) x->dial.flags = REVDIAL_DIAL_WAIT;
    if (plan.has_changes) x->dial.timeout_ms = 20000;
}

static void proxy_listens(int n, char *text, size_t size)
{
    char v4[40], v6[40], path[40];
    net_text(NET_V4, n, PORT_LISTEN, v4);
    net_text(NET_V6, n, PORT_LISTEN, v6);
    net_text(NET_UNIX, n, PORT_LISTEN, path);
    snprintf(text, size, plan.has_families ? "%s,%s,%s" : "%s", v4, v6, path);
}

static void *proxy_start(void *arg)
{
    int n = (int)(intptr_t)arg;
    world_proxy *w = &proxies[n];
    char listen_at[130], front_at[40], text[AGENTS][2][40];
    revdial_expose x[AGENTS + 1] = {{0}};
    revdial_proxy_config c = {.credentials = proxy_rows,
                              .credential_count = PROXY_ROWS,
                              .exposes = x,
                              .expose_count = (size_t)(plan.agent_count + plan.has_front),
                              .on_session = proxy_on_session,
                              .ud = w,
                              .max_pending = plan.max_pending,
                              .unix_mode = UNIX_MODE,
                              .peer_group = plan.has_peers ? "peers" : NULL};
    revdial_err err;
    proxy_listens(n, listen_at, sizeof listen_at);
    c.listen = listen_at;
    for (int i = 0; i < plan.agent_count; i++) {
        expose_fill(&x[i], i, text[i], n, PORT_CLIENTS + i);
        w->port_ids[i] = i + 1;
    }
    if (plan.has_front) front_fill(&x[plan.agent_count], w, front_at);
    world_common(&c.common, &machines[AT_PROXY + n], &w->log);
    c.common.tls = people_tls_of(0);
    memset(w->up, 0, sizeof w->up);
    for (int i = 0; !(w->p = revdial_proxy_start(&c, &err)); i++)
        if (!people_try_again("proxy", &err, i)) break;
    // Later a thread may still read from a session of the life before, which has a descriptor.
    if (!w->life++)
        w->fds_idle =
            machines[AT_PROXY + n].fd_count - machine_connections(&machines[AT_PROXY + n]);
    peer_start(n);
    return NULL;
}

static void *proxy_stop(void *arg)
{
    world_proxy *w = &proxies[(intptr_t)arg];
    peer_stop((int)(intptr_t)arg);
    if (w->p && revdial_proxy_stop(w->p) != 0) world_fail("the proxy does not stop");
    w->p = NULL;
    for (int i = 0; i <= AGENTS; i++)
        if (w->up[i]) world_fail("%u sessions are still up when the proxy has stopped", w->up[i]);
    return NULL;
}

// ---- agents

static void agent_handler(void *ud, revdial_stream *st)
{
    talk_way way = {-1, st, 0};
    (void)ud;
    handlers_running++;
    revdial_stream_set_deadline(st, REVDIAL_RDWR, 0);
    talk_answer(&way, revdial_stream_meta(st, "client"));
    handlers_running--;
}

static void *agent_start(void *arg)
{
    int n = (int)(intptr_t)arg;
    world_agent *w = &agents[n];
    static const char *const allow[] = {"10.0.0.0/24:80", "[fd00::]/64:80", "m5.sim:80",
                                        "unix:/run/5-80.sock", NULL};
    char url[120], first[40];
    static const char *const schemes[] = {"http", "https", "ws", "wss"};
    const char *scheme = schemes[2 * plan.is_websocket[n] + (people_tls_of(1) != NULL)];
    revdial_agent_config c = {.url = url,
                              .name = agent_names[n],
                              .secret = "s3cret",
                              .allow_cleartext = 1,
                              .auth_fail_limit = -1};
    revdial_err err;
    net_text(plan.of_agent[n], AT_PROXY, PORT_LISTEN, first);
    int is_unix = plan.of_agent[n] == NET_UNIX, is_more = plan.all_urls[n] && plan.proxy_count > 1;
    snprintf(url, sizeof url, "%s%s%s%s%s%s%s%s%s", is_unix ? "" : scheme, is_unix ? "" : "://",
             first, is_more ? "," : "", is_more ? scheme : "", is_more ? "://m1.sim:7000" : "",
             plan.has_fake ? "," : "", plan.has_fake ? scheme : "",
             plan.has_fake ? "://10.0.0.9:7001" : "");
    if (plan.is_digest[n]) {
        c.user = "cam";
        c.auth_schemes = REVDIAL_AUTH_DIGEST;
    }
    c.proxy_protocol = plan.proxy_protocol;
    if (plan.egress[n])
        c.egress =
            plan.egress[n] == 1 ? "http://u:p@10.0.0.11:3128" : "socks5://u:p@10.0.0.11:1080";
    if (plan.serves[n] == SERVES_HANDLER)
        c.handler = agent_handler;
    else
        c.allow = allow;
    world_common(&c.common, &machines[AT_AGENT + n], &w->log);
    c.common.tls = people_tls_of(1);
    c.server_name = people_tls_of(1) ? "localhost" : NULL;
    w->number = n;
    for (int i = 0; !(w->a = revdial_agent_start(&c, &err)); i++)
        if (!people_try_again("agent", &err, i)) break;
    return NULL;
}

static void *agent_stop(void *arg)
{
    world_agent *w = &agents[(intptr_t)arg];
    if (!w->a) return NULL;
    int rc = revdial_agent_stop(w->a, 0);
    if (rc != 0 && rc != REVDIAL_ETIMEDOUT) world_fail("the agent does not stop: %d", rc);
    w->a = NULL;
    return NULL;
}

// ---- fibers of machines that do not run revdial.h

static fiber *people_new(int at, const char *name, void *(*run)(void *), void *arg)
{
    fiber *f = fiber_new(name, &machines[at], run, arg);
    f->is_detached = 1;
    return f;
}

// Runs that on the machine, and waits until it is done.
static void people_do_with(int at, const char *name, void *(*run)(void *), void *arg)
{
    fiber *f = fiber_new(name, &machines[at], run, arg);
    while (f->state != FIBER_OVER) wait_on(&f->joins, -1, name);
    fiber_free(f);
}

static void people_do(int at, const char *name, void *(*run)(void *), intptr_t arg)
{
    people_do_with(at, name, run, (void *)arg);
}

static int net_family(enum net_kind kind)
{
    return kind == NET_UNIX ? AF_UNIX : kind == NET_V4 ? AF_INET : AF_INET6;
}

static socklen_t net_address(enum net_kind kind, int at, int port, struct sockaddr_storage *to)
{
    struct sockaddr_in a = {.sin_family = (sa_family_t)net_family(kind)};
    char path[40];
    a.sin_port = htons((uint16_t)port);
    a.sin_addr.s_addr = htonl(MACHINE_BASE + (uint32_t)at);
    net_text(NET_UNIX, at, port, path);
    if (kind == NET_UNIX)
        a.sin_port = htons((uint16_t)(unix_path_of(path + strlen("unix:")) - unix_paths + 1));
    return sim_address_out(&a, 0, to);
}

// So that one whose peer has vanished is noticed.
static void net_keep_alive(int fd)
{
    int on = 1, idle_s = 60, each_s = 15, count = 3;
    sim_setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    sim_setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &each_s, sizeof each_s);
    sim_setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
    sim_setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
}

static int net_listen(enum net_kind kind, int port)
{
    struct sockaddr_storage a;
    socklen_t len = net_address(kind, machine_self()->number, port, &a);
    int fd = sim_socket(net_family(kind), SOCK_STREAM, 0);
    if (fd < 0 || sim_bind(fd, (struct sockaddr *)&a, len) || sim_listen(fd, 64)) abort();
    net_keep_alive(fd);
    return fd;
}

// To a Unix socket, which answers at once.
static int net_connect_unix(int fd, const struct sockaddr_storage *a, socklen_t len)
{
    while (sim_connect(fd, (const struct sockaddr *)a, len) < 0) {
        int error = errno;
        if (error == EAGAIN) {
            world_sleep_us(10000, "room in a queue");
            continue;
        }
        sim_close(fd);
        return -error;
    }
    return fd;
}

// Returns a descriptor, or -errno.
static int net_connect_by(enum net_kind kind, int at, int port)
{
    struct sockaddr_storage a;
    socklen_t len = net_address(kind, at, port, &a);
    int error = 0, fd = sim_socket(net_family(kind), SOCK_STREAM, 0);
    if (fd < 0) return -errno;
    if (kind == NET_UNIX) return net_connect_unix(fd, &a, len);
    net_keep_alive(fd);
    sim_connect(fd, (struct sockaddr *)&a, len);
    len = sizeof error;
    struct pollfd p = {fd, POLLOUT, 0};
    while (sim_poll(&p, 1, 200000) < 0) {
    }
    sim_getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len);
    if (!error && p.revents & POLLOUT && !(p.revents & POLLHUP)) return fd;
    sim_close(fd);
    return error ? -error : -ETIMEDOUT;
}

static int net_connect(int at, int port)
{
    enum net_kind kind = net_kind_of(port);
    if (kind == NET_BOTH) kind = world_below(2) ? NET_V6 : NET_V4;
    if (port == PORT_LISTEN && plan.has_families)
        kind = (enum net_kind)(world_below(3) ? world_below(2) : NET_UNIX);
    return net_connect_by(kind, at, port);
}

// Its own address, as the other end sees it.
static void net_name(int fd, char name[60])
{
    struct sockaddr_storage a;
    socklen_t len = sizeof a;
    sim_getsockname(fd, (struct sockaddr *)&a, &len);
    struct sockaddr_in in = sim_address((struct sockaddr *)&a);
    uint32_t ip = ntohl(in.sin_addr.s_addr);
    if (in.sin_family == AF_UNIX)
        snprintf(name, 60, "unix");
    else if (in.sin_family == AF_INET6)
        snprintf(name, 60, "[fd00::%x]:%u", ip & 255, ntohs(in.sin_port));
    else
        snprintf(name, 60, "%u.%u.%u.%u:%u", ip >> 24, ip >> 16 & 255, ip >> 8 & 255, ip & 255,
                 ntohs(in.sin_port));
}

// Targets

// "PROXY TCP4 SOURCE DESTINATION PORT PORT", or TCP6, or UNKNOWN.
static int target_header_1(const talk_way *w, char client[60])
{
    char line[110], source[50], port[8];
    size_t n = 0;
    while (n + 1 < sizeof line && (n < 2 || line[n - 1] != '\n'))
        if (!way_exactly(w, (uint8_t *)line + n++, 1, 0)) return 0;
    line[n] = '\0';
    if (sscanf(line, "PROXY TCP4 %49s %*s %7s", source, port) == 2)
        snprintf(client, 60, "%s:%s", source, port);
    else if (sscanf(line, "PROXY TCP6 %49s %*s %7s", source, port) == 2)
        snprintf(client, 60, "[%s]:%s", source, port);
    else if (strcmp(line, "PROXY UNKNOWN\r\n"))
        world_fail("a target gets the header \"%s\"", line);
    return 1;
}

static int target_header_2(const talk_way *w, char client[60])
{
    uint8_t head[16], rest[4096];
    char source[50];
    if (!way_exactly(w, head, 16, 0)) return 0;
    size_t len = (size_t)head[14] << 8 | head[15];
    int is_v6 = head[13] == 0x21, at = is_v6 ? 32 : 8;
    if (memcmp(head, "\r\n\r\n\0\r\nQUIT\n", 12) || len > sizeof rest)
        world_fail("a target gets no header of version 2");
    else if (!way_exactly(w, rest, len, 0))
        return 0;
    if (head[12] != 0x21 || (head[13] != 0x11 && !is_v6)) return 1;
    inet_ntop(is_v6 ? AF_INET6 : AF_INET, rest, source, sizeof source);
    snprintf(client, 60, is_v6 ? "[%s]:%d" : "%s:%d", source, rest[at] << 8 | rest[at + 1]);
    return 1;
}

static void *target_serve(void *arg)
{
    talk_way way = {(int)(intptr_t)arg, NULL, 0};
    char client[60] = "";
    int is_good = plan.proxy_protocol == 1   ? target_header_1(&way, client)
                  : plan.proxy_protocol == 2 ? target_header_2(&way, client)
                                             : 1;
    if (client[0]) mark_set(MARK_HEADER_FOR_TARGET);
    if (is_good)
        talk_answer(&way, client);
    else
        way_close(&way, 1);
    clients_running--;
    return NULL;
}

// By what way it was reached, and whether that was the second of a name.
static void target_mark(int fd)
{
    const tcp_end *x = fd_file(fd)->end;
    int agent = tcp_other(x)->file ? tcp_other(x)->file->machine->number - AT_AGENT : -1;
    int family = x->conn->family;
    if (family == AF_UNIX) mark_set(MARK_UNIX_TARGET);
    if (family == AF_INET6) mark_set(MARK_V6_TARGET);
    if (agent < 0 || agent >= AGENTS || plan.serves[agent] != SERVES_HOST) return;
    if (dns_families == DNS_V6_DEAD && family == AF_INET) mark_set(MARK_FELL_BACK_TO_V4);
    if (dns_families == DNS_V4_DEAD && family == AF_INET6) mark_set(MARK_FELL_BACK_TO_V6);
}

static void *target_main(void *arg)
{
    int listener = net_listen((enum net_kind)(intptr_t)arg, PORT_TARGET);
    while (!wd.over) {
        struct sockaddr_storage from;
        socklen_t len = sizeof from;
        int fd = sim_accept4(listener, (struct sockaddr *)&from, &len, 0);
        struct pollfd p = {listener, POLLIN, 0};
        if (fd >= 0) {
            clients_running++;
            target_mark(fd);
            people_new(machine_self()->number, "target", target_serve, (void *)(intptr_t)fd);
        } else {
            sim_poll(&p, 1, 1000000);
        }
    }
    return NULL;
}

// Clients

typedef struct client_order {
    talk *t;
    int agent, proxy, is_early, is_blocking, is_fd;
    int port;  // of the proxy
} client_order;

static void client_failed(talk *t, int error)
{
    t->side[0].error = error;
    t->side[0].over = 1;
    t->over_us = wd.clock.now_us;
    world_note("transfer %u: no connection, %d", t->key, error);
}

static void client_mark(talk *t, int agent)
{
    int is_unix = t->client_at[0] == 'u';
    if (is_unix) mark_set(MARK_UNIX_CLIENT);
    if (t->client_at[0] == '[') mark_set(MARK_V6_CLIENT);
    t->has_hop = plan.has_peers;
    t->has_unix =
        is_unix || (plan.serves[agent] == SERVES_TARGET && plan.of_target[agent] == NET_UNIX);
}

// By a port of the proxy.
static void *client_tcp(void *arg)
{
    client_order *o = arg;
    int fd = net_connect(AT_PROXY + o->proxy, o->port ? o->port : PORT_CLIENTS + o->agent);
    talk_way way = {fd, NULL, 0};
    if (fd >= 0) {
        net_name(fd, o->t->client_at);
        client_mark(o->t, o->agent);
    }
    if (fd >= 0)
        talk_ask(o->t, &way);
    else
        client_failed(o->t, fd);
    clients_running--;
    free(o);
    return NULL;
}

static void client_dial_opts(revdial_dial_opts *d, const client_order *o, char target[40],
                             uint8_t *head)
{
    d->flags = REVDIAL_DIAL_WAIT;
    d->timeout_ms = 20000;
    people_target(o->agent, target);
    if (plan.serves[o->agent] != SERVES_HANDLER) d->target = target;
    if (!o->is_early) return;
    talk_head(o->t, head);
    d->early = head;
    d->early_len = TALK_HEAD;
}

// The stream becomes a descriptor of its process. Returns 0 if it cannot: then it is gone.
static int client_take_fd(talk_way *way, revdial_err *err)
{
    way->fd = revdial_stream_fd(way->st);
    err->code = way->fd < 0 ? way->fd : 0;
    if (way->fd < 0) revdial_reset(way->st, 77);
    if (way->fd < 0) revdial_close(way->st);
    way->st = NULL;
    return way->fd >= 0;
}

// By revdial_dial(), in a thread of the proxy's process.
static void *client_dial(void *arg)
{
    client_order *o = arg;
    revdial_dial_opts d = {0};
    revdial_err err;
    uint8_t head[TALK_HEAD];
    char target[40];
    client_mark(o->t, o->agent);
    client_dial_opts(&d, o, target, head);
    revdial_stream *st = revdial_dial(proxies[o->proxy].p, agent_names[o->agent], &d, &err);
    int is_duplex = o->t->mode == TALK_DUPLEX || o->t->mode == TALK_HASTY;
    talk_way way = {-1, st, o->is_blocking && !is_duplex};
    proxies[o->proxy].dials--;
    if (st) revdial_stream_set_deadline(st, REVDIAL_RDWR, way.is_blocking ? 100000 : 0);
    if (!st && people_hear) people_hear("dial", err.msg);
    if (!st || (o->is_fd && !client_take_fd(&way, &err)))
        client_failed(o->t, err.code);
    else if (o->t->third[0])
        share_run(o->t, 0, st);
    else if (o->is_early)
        talk_run(o->t, 0, &way);
    else
        talk_ask(o->t, &way);
    clients_running--;
    free(o);
    return NULL;
}

#endif
