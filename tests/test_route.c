// Exposed ports that come and go while the proxy runs, that ask a hook where a client goes, and
// that know whom to let in.
#include "runtime_util.h"

// What on_client told last.
typedef struct told {
    util_gate gate;
    pthread_mutex_t lock;
    revdial_client last;
    revdial_err why;
    char address[80];
} told;

static told clients = {.gate = UTIL_GATE, .lock = PTHREAD_MUTEX_INITIALIZER};

// A port that the next on_client unexposes, with the answer. 0: none.
static _Atomic(int64_t) doomed;
static atomic_int doom_code;

static void on_client(void *ud, const revdial_client *client)
{
    world *w = ud;
    int64_t id = atomic_exchange(&doomed, 0);
    if (id) atomic_store(&doom_code, revdial_proxy_unexpose(w->proxy, id, REVDIAL_END_CLIENTS));
    pthread_mutex_lock(&clients.lock);
    clients.last = *client;
    memset(&clients.why, 0, sizeof clients.why);
    if (client->why) clients.why = *client->why;
    snprintf(clients.address, sizeof clients.address, "%s", client->address);
    pthread_mutex_unlock(&clients.lock);
    util_gate_add(&clients.gate, 1);
}

static int ports_open(world *w)
{
    util_gate_init(&clients.gate);
    w->pcfg.on_client = on_client;
    return world_open(w);
}

// How a connection ends: 0 with FIN, -1 with RST, -2 not in time. buf has what came before, cut.
static int end_of(int fd, char *buf, size_t size)
{
    char junk[4096];
    size_t len = 0;
    buf[0] = '\0';
    while (raw_wait(fd, POLLIN, UTIL_WAIT_MS)) {
        ssize_t n = recv(fd, junk, sizeof junk, 0);
        if (n <= 0) return (int)n;
        for (ssize_t i = 0; i < n && len + 1 < size; i++) buf[len++] = junk[i];
        buf[len] = '\0';
    }
    return -2;
}

static int unix_connect(const char *at)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(to.sun_path, sizeof to.sun_path, "%s", at + 5);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) == 0) return fd;
    close(fd);
    return -1;
}

NEW_WORLD_TEST(a_port_that_is_exposed_while_the_proxy_runs_serves_its_clients)
{
    char name[] = "cam-1", listen[] = "127.0.0.1:0", at[80];
    revdial_expose x = {.listen = listen, .name = name};
    if (!ports_open(w)) return;
    int64_t id = world_expose(w, &x, at);
    memset(name, 'x', 5);  // it has its own copy
    memset(listen, 'x', 5);
    int fd = raw_connect(at);
    CHECK(raw_echoes(fd));
    close(fd);
    CHECK(util_gate_wait(&clients.gate, 1));
    CHECK_INT(clients.last.expose, id - 1);
    CHECK_INT(clients.last.is_relayed, 1);
    CHECK_INT(clients.last.moved[0], 4);
}

NEW_WORLD_TEST(ports_of_the_config_have_the_first_ids_and_can_be_unexposed_too)
{
    revdial_expose x[2] = {{.listen = "127.0.0.1:0", .name = "cam-1"},
                           {.listen = "127.0.0.1:0", .name = "cam-1"}};
    char at[2][80], same[80];
    w->pcfg.exposes = x;
    w->pcfg.expose_count = 2;
    if (!ports_open(w)) return;
    for (unsigned i = 0; i < 2; i++) {
        CHECK(revdial_proxy_address(w->proxy, i + 1, at[i], sizeof at[i]) > 0);
        CHECK(revdial_proxy_expose_address(w->proxy, i + 1, same, sizeof same) > 0);
        CHECK_STR(same, at[i]);
    }
    CHECK_INT(world_expose(w, &x[0], same), 3);
    CHECK_INT(revdial_proxy_unexpose(w->proxy, 1, 0), 0);
    CHECK_INT(raw_connect(at[0]), -1);
    CHECK_INT(revdial_proxy_address(w->proxy, 1, same, sizeof same), REVDIAL_EINVAL);
    CHECK_INT(revdial_proxy_unexpose(w->proxy, 1, 0), REVDIAL_EINVAL);
    int fd = raw_connect(at[1]);
    CHECK(raw_echoes(fd));
    close(fd);
}

NEW_WORLD_TEST(the_address_of_a_port_can_be_exposed_again_at_once)
{
    char at[80], again[80];
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
    if (!ports_open(w)) return;
    int64_t id = world_expose(w, &x, at);
    x.listen = at;
    for (int i = 0; i < 20; i++) {
        int fd = raw_connect(at);
        CHECK(raw_echoes(fd));
        CHECK_INT(revdial_proxy_unexpose(w->proxy, id, 0), 0);
        CHECK_INT(revdial_proxy_expose_address(w->proxy, id, again, 80), REVDIAL_EINVAL);
        int64_t next = world_expose(w, &x, again);
        CHECK(next > id);
        CHECK_STR(again, at);
        CHECK(raw_echoes(fd));  // that connection runs on
        close(fd);
        id = next;
    }
}

NEW_WORLD_TEST(a_unix_socket_comes_and_goes_with_its_port)
{
    char dir[] = "/tmp/revdial-test-XXXXXX", listen[64], at[80];
    revdial_expose x = {.listen = listen, .name = "cam-1"};
    if (!CHECK(mkdtemp(dir) != NULL) || !ports_open(w)) return;
    snprintf(listen, sizeof listen, "unix:%s/s", dir);
    for (int i = 0; i < 3; i++) {
        int64_t id = world_expose(w, &x, at);
        CHECK_STR(at, listen);
        int fd = unix_connect(listen);
        CHECK(raw_echoes(fd));
        close(fd);
        CHECK_INT(revdial_proxy_unexpose(w->proxy, id, 0), 0);
        CHECK_INT(access(listen + 5, F_OK), -1);
    }
    CHECK_INT(rmdir(dir), 0);
}

NEW_WORLD_TEST(an_address_that_cannot_be_had_is_refused_by_name_and_changes_nothing)
{
    char at[80], bad[80], port[80];
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
    revdial_err err = {0};
    if (!ports_open(w)) return;
    int64_t id = world_expose(w, &x, at);
    int before = util_fds();
    x.listen = at;
    CHECK_INT(revdial_proxy_expose(w->proxy, &x, &err), REVDIAL_ESYS);
    CHECK_INT(err.code, REVDIAL_ESYS);
    CHECK_INT(err.sys, EADDRINUSE);
    CHECK(strstr(err.msg, at) != NULL);
    x.listen = "unix:/no/such/directory/s";
    CHECK_INT(revdial_proxy_expose(w->proxy, &x, &err), REVDIAL_ESYS);
    CHECK_INT(err.sys, ENOENT);
    x.listen = "no.invalid:80";
    CHECK_INT(revdial_proxy_expose(w->proxy, &x, &err), REVDIAL_ESYS);
    CHECK(strstr(err.msg, "no.invalid") != NULL);
    x.listen = "127.0.0.1";
    CHECK_INT(revdial_proxy_expose(w->proxy, &x, &err), REVDIAL_EINVAL);
    x.listen = "127.0.0.1:0";
    x.name = "not a name";
    CHECK_INT(revdial_proxy_expose(w->proxy, &x, &err), REVDIAL_EINVAL);
    CHECK_INT(err.reset, 0);  // no peer has given a code
    CHECK_INT(revdial_proxy_expose(w->proxy, NULL, &err), REVDIAL_EINVAL);
    CHECK_INT(err.reset, 0);
    CHECK_INT(revdial_proxy_expose(NULL, &x, &err), REVDIAL_EINVAL);
    CHECK_INT(util_fds(), before);
    x.name = "cam-1";
    CHECK_INT(world_expose(w, &x, port), id + 1);
    CHECK_INT(revdial_proxy_expose_address(w->proxy, id + 2, bad, sizeof bad), REVDIAL_EINVAL);
    CHECK_INT(revdial_proxy_unexpose(w->proxy, id + 2, 0), REVDIAL_EINVAL);
    CHECK_INT(revdial_proxy_unexpose(w->proxy, 0, 0), REVDIAL_EINVAL);
    CHECK_INT(revdial_proxy_unexpose(w->proxy, -1, 0), REVDIAL_EINVAL);
}

// With one I/O thread and with several, on which their sessions' relays run.
TEST(connections_of_an_unexposed_port_end_if_that_is_asked_for)
{
    for (unsigned threads = 1; threads <= 3; threads += 2) {
        enum { CLIENTS = 12 };
        static const revdial_kv meta[] = {{"do", "silent"}};
        revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"}, silent = x;
        char at[80], waits[80], keeps[80], buf[8];
        int fds[CLIENTS], waiting, other;
        world w;
        world_init(&w);
        w.pcfg.common.io_threads = threads;
        silent.dial.meta = meta;
        silent.dial.meta_count = 1;
        silent.dial.timeout_ms = -1;
        if (!ports_open(&w)) return;
        for (int i = 1; i < WORLD_AGENTS; i++) CHECK(world_open_agent(&w, i));
        CHECK(revdial_proxy_wait(w.proxy, "cam-1", WORLD_AGENTS, UTIL_WAIT_MS) > 0);
        int64_t id = world_expose(&w, &x, at), waits_id = world_expose(&w, &silent, waits);
        world_expose(&w, &x, keeps);
        for (int i = 0; i < CLIENTS; i++) CHECK(raw_echoes(fds[i] = raw_connect(at)));
        CHECK(raw_echoes(other = raw_connect(keeps)));
        waiting = raw_connect(waits);
        CHECK(util_gate_wait(&w.held, 1));
        CHECK_INT(revdial_proxy_unexpose(w.proxy, waits_id, REVDIAL_END_CLIENTS), 0);
        CHECK_INT(end_of(waiting, buf, sizeof buf), -1);
        CHECK(util_gate_wait(&clients.gate, 1));
        CHECK_INT(clients.last.expose, waits_id - 1);
        CHECK_INT(clients.why.code, REVDIAL_ECLOSED);
        CHECK_INT(revdial_proxy_unexpose(w.proxy, id, REVDIAL_END_CLIENTS), 0);
        for (int i = 0; i < CLIENTS; i++) {
            CHECK_INT(end_of(fds[i], buf, sizeof buf), -1);
            close(fds[i]);
        }
        CHECK(util_gate_wait(&clients.gate, 1 + CLIENTS));
        CHECK_INT(clients.last.is_relayed, 1);
        CHECK_INT(clients.why.code, REVDIAL_ECLOSED);
        CHECK(raw_echoes(other));
        close(other);
        close(waiting);
        world_close(&w);
    }
}

// The callback runs while the port accepts, and is about its only client.
NEW_WORLD_TEST(a_port_can_be_unexposed_in_a_callback_about_its_own_client)
{
    char at[80], buf[8];
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "nobody"};
    if (!ports_open(w)) return;
    int64_t id = world_expose(w, &x, at);
    atomic_store(&doom_code, 99);
    atomic_store(&doomed, id);
    int fd = raw_connect(at);
    CHECK_INT(end_of(fd, buf, sizeof buf), -1);
    CHECK(util_gate_wait(&clients.gate, 1));
    CHECK_INT(clients.why.code, REVDIAL_ENOBACKEND);
    CHECK_INT(atomic_load(&doom_code), 0);
    CHECK_INT(raw_connect(at), -1);
    close(fd);
}

typedef struct crowd {
    char at[80];
    atomic_int is_over, served;
} crowd;

static void *crowd_run(void *arg)
{
    crowd *c = arg;
    while (!atomic_load(&c->is_over)) {
        int fd = raw_connect(c->at);  // which fails while nobody listens
        if (fd >= 0 && raw_echoes(fd)) atomic_fetch_add(&c->served, 1);
        if (fd >= 0) raw_close_reset(fd);
    }
    return NULL;
}

NEW_WORLD_TEST(ports_come_and_go_while_clients_connect)
{
    enum { THREADS = 3, ROUNDS = 150 };
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
    pthread_t threads[THREADS];
    crowd c;
    memset(&c, 0, sizeof c);
    w->pcfg.common.io_threads = 2;
    if (!ports_open(w)) return;
    int64_t id = world_expose(w, &x, c.at);
    x.listen = c.at;
    for (int i = 0; i < THREADS; i++) threads[i] = util_thread(crowd_run, &c);
    for (int i = 0; i < ROUNDS; i++) {
        char at[80];
        int seen = atomic_load(&c.served);
        if (i % 10 == 0) UTIL_EVENTUALLY(atomic_load(&c.served) > seen);
        CHECK_INT(revdial_proxy_unexpose(w->proxy, id, i % 2 ? REVDIAL_END_CLIENTS : 0), 0);
        id = world_expose(w, &x, at);
    }
    atomic_store(&c.is_over, 1);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    CHECK(atomic_load(&c.served) > 0);
}

NEW_WORLD_TEST(a_proxy_that_drains_takes_no_new_ports)
{
    char at[80];
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
    revdial_err err = {0};
    if (!ports_open(w)) return;
    int64_t id = world_expose(w, &x, at);
    revdial_proxy_drain(w->proxy, 0);
    CHECK_INT(raw_connect(at), -1);
    CHECK_INT(revdial_proxy_expose(w->proxy, &x, &err), REVDIAL_EDRAINING);
    CHECK_INT(err.code, REVDIAL_EDRAINING);
    CHECK_INT(revdial_proxy_unexpose(w->proxy, id, 0), 0);
}

static void exposes_in_a_callback(void *ud, revdial_stream *st, const revdial_err *why)
{
    called *c = ud;
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
    revdial_err err = {0};
    (void)why;
    revdial_close(st);
    for (int i = 0; i < 3; i++) c->blocking[i] = (int)revdial_proxy_expose(c->w->proxy, &x, &err);
    x.listen = "localhost:0";
    c->blocking[3] = (int)revdial_proxy_expose(c->w->proxy, &x, &err);
    c->blocking[4] = revdial_proxy_unexpose(c->w->proxy, c->blocking[0], 0);
    util_gate_add(&c->done, 1);
}

// Sessions are up and down in callbacks, and a port for each of them comes and goes there.
TEST(ports_come_and_go_in_callbacks_of_each_io_thread)
{
    for (unsigned threads = 1; threads <= 2; threads++) {
        world w;
        called c;
        world_init(&w);
        w.pcfg.common.io_threads = threads;
        if (!ports_open(&w)) return;
        CHECK(world_open_agent(&w, 1));
        CHECK(revdial_proxy_wait(w.proxy, "cam-1", 2, UTIL_WAIT_MS) > 0);
        called_init(&c, &w);
        for (int i = 0; i < 4; i++) {  // of two sessions, in turn
            CHECK(revdial_dial_async(w.proxy, "cam-1", NULL, exposes_in_a_callback, &c) > 0);
            CHECK(util_gate_wait(&c.done, i + 1));
            for (int k = 0; k < 3; k++) CHECK(c.blocking[k] > 0);
            CHECK_INT(c.blocking[3], REVDIAL_EDEADLK);
            CHECK(c.blocking[4] == 0 || (threads > 1 && c.blocking[4] == 1));
        }
        world_close(&w);
    }
}

// ------------------------------------------------------------------------------------------------
// Ports with a route. The clients of these tests speak in lines:
//   hello            MORE, with the reply "hi N", where N counts the calls of this client
//   dial NAME        DIAL; the backend does what the port's metadata says, or echoes
//   source, hold     DIAL of cam-1, which sends 70,000 bytes, or reads to the end
//   refuse TEXT      REFUSE, with TEXT as the reply
//   take             TAKE

typedef struct hook {
    world *w;
    atomic_int calls, dones, ends;
    atomic_int strays;                 // calls on another thread than the first I/O thread
    atomic_int done_code, done_state;  // of the last dial
    atomic_int refused_by;             // what `nonsense` answers
    _Atomic(int64_t) dooms;            // a port that the next call unexposes
    util_gate taken, called;
    int fd;  // that was taken
    char rest[64];
    pthread_mutex_t lock;
    char client[80], local[80];
    const char *greeting, *farewell;  // replies of route_done
    size_t greeting_len;
} hook;

static int hook_take(hook *h, revdial_route *r)
{
    h->fd = r->fd;
    snprintf(h->rest, sizeof h->rest, "%.*s", (int)(r->len - r->used),
             (const char *)r->data + r->used);
    util_gate_add(&h->taken, 1);
    return REVDIAL_ROUTE_TAKE;
}

static int hook_route(void *ud, revdial_route *r)
{
    static const revdial_kv source[] = {{"do", "source"}, {"n", "70000"}};
    static const revdial_kv hold[] = {{"do", "hold"}, {"n", "0"}};
    hook *h = ud;
    const char *end = memchr(r->data, '\n', r->len), *line = (const char *)r->data;
    int64_t doomed_id = atomic_exchange(&h->dooms, 0);
    if (doomed_id) CHECK_INT(revdial_proxy_unexpose(h->w->proxy, doomed_id, 0), 0);
    atomic_fetch_add(&h->calls, 1);
    atomic_fetch_add(&h->strays, !rvd_loop_is_owner(h->w->proxy->loops[0]));
    atomic_fetch_add(&h->ends, r->is_end);
    pthread_mutex_lock(&h->lock);
    snprintf(h->client, sizeof h->client, "%s", r->client);
    snprintf(h->local, sizeof h->local, "%s", r->local ? r->local : "none");
    pthread_mutex_unlock(&h->lock);
    util_gate_add(&h->called, 1);
    if (!end) return REVDIAL_ROUTE_MORE;
    r->used = (size_t)(end - line) + 1;
    r->state++;
    r->reply = r->text;
    if (strncmp(line, "hello", 5) == 0) {
        r->reply_len = (size_t)snprintf(r->text, sizeof r->text, "hi %d\n", r->state);
        return REVDIAL_ROUTE_MORE;
    }
    if (strncmp(line, "refuse ", 7) == 0) {
        r->reply_len =
            (size_t)snprintf(r->text, sizeof r->text, "%.*s", (int)(end - line - 7), line + 7);
        r->why = r->reply_len ? "it asked\nfor it" : NULL;
        return REVDIAL_ROUTE_REFUSE;
    }
    if (strncmp(line, "take", 4) == 0) return hook_take(h, r);
    if (strncmp(line, "nonsense", 8) == 0) return atomic_load(&h->refused_by);
    if (strncmp(line, "source", 6) == 0 || strncmp(line, "hold", 4) == 0) {
        r->name = "cam-1";
        r->dial.meta = line[0] == 's' ? source : hold;
        r->dial.meta_count = 2;
        return REVDIAL_ROUTE_DIAL;
    }
    snprintf(r->text, sizeof r->text, "%.*s", (int)(end - line - 5), line + 5);
    r->name = r->text;
    r->reply = NULL;
    return REVDIAL_ROUTE_DIAL;
}

static void hook_done(void *ud, revdial_route *r, const revdial_err *why)
{
    hook *h = ud;
    atomic_fetch_add(&h->strays, !rvd_loop_is_owner(h->w->proxy->loops[0]));
    atomic_store(&h->done_code, why ? why->code : 0);
    atomic_store(&h->done_state, r->state);
    r->reply = why ? h->farewell : h->greeting;
    r->reply_len = why ? (h->farewell ? strlen(h->farewell) : 0) : h->greeting_len;
    atomic_fetch_add(&h->dones, 1);
}

// A world whose port has the hook. Returns the port's id, 0 if it has none.
static int64_t route_open(world *w, hook *h, revdial_expose *x, char *at)
{
    memset(h, 0, sizeof *h);
    util_gate_init(&h->taken);
    util_gate_init(&h->called);
    pthread_mutex_init(&h->lock, NULL);
    h->w = w;
    h->fd = -1;
    x->listen = "127.0.0.1:0";
    x->route = hook_route;
    x->route_done = hook_done;
    x->route_ud = h;
    return ports_open(w) ? world_expose(w, x, at) : 0;
}

static void expect_text(int fd, const char *text)
{
    char buf[256] = "";
    CHECK(raw_read_all(fd, buf, strlen(text)));
    CHECK_STR(buf, text);
}

NEW_WORLD_TEST(a_route_decides_by_the_first_bytes_and_the_rest_goes_to_the_target_first)
{
    char at[80], buf[64];
    revdial_expose x = {0};
    static hook h;
    if (!route_open(w, &h, &x, at)) return;
    h.greeting = "OK\n";
    h.greeting_len = 3;
    int fd = raw_connect(at);
    CHECK(raw_say(fd, "dial cam-1\npipelined"));
    expect_text(fd, "OK\npipelined");
    CHECK(raw_say(fd, " and more"));
    expect_text(fd, " and more");
    shutdown(fd, SHUT_WR);
    CHECK_INT(end_of(fd, buf, sizeof buf), 0);
    CHECK_STR(buf, "");
    close(fd);
    CHECK(util_gate_wait(&clients.gate, 1));
    CHECK_INT(clients.last.is_relayed, 1);
    CHECK_INT(clients.last.moved[0], 18);
    CHECK_INT(clients.last.moved[1], 18);
    CHECK_INT(atomic_load(&h.done_state), 1);
    CHECK_STR(h.local, at);
    CHECK_STR(h.client, clients.address);
}

NEW_WORLD_TEST(a_route_sees_a_client_that_sends_byte_by_byte_and_may_answer_in_between)
{
    static const char text[] = "hello\nhello\ndial cam-1\nxyz";
    char at[80];
    revdial_expose x = {0};
    static hook h;
    if (!route_open(w, &h, &x, at)) return;
    int fd = raw_connect(at);
    for (int i = 0; text[i]; i++) {
        int seen = util_gate_count(&h.called);
        CHECK(raw_send(fd, &text[i], 1));
        if (i < 23) CHECK(util_gate_wait(&h.called, seen + 1));
    }
    expect_text(fd, "hi 1\nhi 2\nxyz");
    CHECK_INT(atomic_load(&h.calls), 23);
    CHECK_INT(atomic_load(&h.done_state), 3);
    close(fd);
}

// A client of SOCKS5 may do that, although it ought to wait.
NEW_WORLD_TEST(a_route_is_called_again_for_bytes_that_are_there_already)
{
    char at[80];
    revdial_expose x = {0};
    static hook h;
    if (!route_open(w, &h, &x, at)) return;
    int fd = raw_connect(at);
    CHECK(raw_say(fd, "hello\nhello\nhello\ndial cam-1\nxyz"));
    expect_text(fd, "hi 1\nhi 2\nhi 3\nxyz");
    close(fd);
}

// More than goes with the dial: 4096 bytes go there, and the relay has the others.
NEW_WORLD_TEST(all_that_a_client_sent_before_the_decision_arrives_in_order)
{
    enum { MOST = 16000 };
    static char sent[MOST + 12], back[MOST];
    static const size_t sizes[] = {1, REVDIAL_EARLY_MAX, REVDIAL_EARLY_MAX + 1, MOST};
    char at[80];
    revdial_expose x = {0};
    static hook h;
    if (!route_open(w, &h, &x, at)) return;
    memcpy(sent, "dial cam-1\n", 11);
    util_fill((uint8_t *)sent + 11, MOST, 0, 7);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        util_held_loop held;
        util_loop_hold(&held, w->proxy->loops[0]);
        int fd = raw_connect(at);
        CHECK(raw_send(fd, sent, 11 + sizes[i]));
        shutdown(fd, SHUT_WR);
        util_loop_let_go(&held);
        CHECK(raw_read_all(fd, back, sizes[i]));
        CHECK(memcmp(back, sent + 11, sizes[i]) == 0);
        CHECK_INT(raw_read(fd, back, 1), 0);
        close(fd);
        CHECK(util_gate_wait(&clients.gate, (int)i + 1));
        CHECK_INT(clients.last.moved[0], (long long)sizes[i]);
        CHECK_INT(clients.why.code, 0);
    }
}

// Its socket is full: the reply comes whole, and before the first byte of the target.
NEW_WORLD_TEST(a_reply_is_sent_whole_before_the_relay_begins_however_slowly_it_is_read)
{
    enum { REPLY = 6000000, SOURCE = 70000 };
    static uint8_t reply[REPLY], back[REPLY + SOURCE];
    char at[80];
    revdial_expose x = {0};
    static hook h;
    if (!route_open(w, &h, &x, at)) return;
    util_fill(reply, REPLY, 0, 9);
    h.greeting = (const char *)reply;
    h.greeting_len = REPLY;
    int fd = raw_connect_as(at, 1);
    CHECK(raw_say(fd, "source\n"));
    UTIL_EVENTUALLY(atomic_load(&h.dones) == 1);
    util_settle(w->proxy->loops[0]);
    CHECK(raw_read_all(fd, back, sizeof back));
    CHECK(util_matches(back, REPLY, 0, 9));
    CHECK(util_matches(back + REPLY, SOURCE, 0, 1));
    close(fd);
}

NEW_WORLD_TEST(a_refusal_arrives_although_the_client_keeps_sending)
{
    static char flood[65536];
    char at[80], buf[64];
    revdial_expose x = {0};
    static hook h;
    if (!route_open(w, &h, &x, at)) return;
    for (int i = 0; i < 20; i++) {
        int fd = raw_connect(at);
        CHECK(raw_say(fd, "refuse not today\n"));
        for (int k = 0; k < 30; k++) CHECK(raw_send(fd, flood, sizeof flood));
        CHECK_INT(end_of(fd, buf, sizeof buf), 0);
        CHECK_STR(buf, "not today");
        CHECK(raw_send(fd, flood, sizeof flood));  // it is read to its end
        close(fd);
        CHECK(util_gate_wait(&clients.gate, i + 1));
        CHECK_INT(clients.why.code, REVDIAL_EREFUSED);
        CHECK_STR(clients.why.msg, "it asked?for it");
        CHECK_INT(clients.last.is_relayed, 0);
    }
}

// The library's clock stands, so that no time passes but what the test lets pass.
NEW_WORLD_TEST(a_refused_client_that_does_not_close_is_closed_after_a_while)
{
    char at[80], buf[64];
    revdial_expose x = {0};
    static hook h;
    if (!route_open(w, &h, &x, at)) return;
    util_clock_stop();
    int fd = raw_connect(at);
    CHECK(raw_say(fd, "refuse no\n"));
    CHECK_INT(end_of(fd, buf, sizeof buf), 0);
    CHECK_STR(buf, "no");
    util_settle(w->proxy->loops[0]);
    CHECK_INT(util_gate_count(&clients.gate), 0);
    util_clock_advance_ms(5100);
    util_settle(w->proxy->loops[0]);
    CHECK(util_gate_wait(&clients.gate, 1));
    CHECK_INT(clients.why.code, REVDIAL_EREFUSED);
    util_clock_run();
    close(fd);
}

NEW_WORLD_TEST(a_refusal_without_a_reply_resets_the_connection)
{
    char at[80], buf[64];
    revdial_expose x = {0};
    static hook h;
    if (!route_open(w, &h, &x, at)) return;
    int fd = raw_connect(at);
    CHECK(raw_say(fd, "refuse \n"));
    CHECK_INT(end_of(fd, buf, sizeof buf), -1);
    CHECK(util_gate_wait(&clients.gate, 1));
    CHECK_STR(clients.why.msg, "refused by the route hook");
    close(fd);
    fd = raw_connect(at);
    atomic_store(&h.refused_by, 77);  // no verdict at all
    CHECK(raw_say(fd, "nonsense\n"));
    CHECK_INT(end_of(fd, buf, sizeof buf), -1);
    close(fd);
    CHECK(util_gate_wait(&clients.gate, 2));
    CHECK_INT(clients.why.code, REVDIAL_EINVAL);
}

NEW_WORLD_TEST(a_client_that_finishes_before_a_decision_is_refused_and_the_hook_knows)
{
    char at[80], buf[64];
    revdial_expose x = {0};
    static hook h;
    if (!route_open(w, &h, &x, at)) return;
    int fd = raw_connect(at);
    CHECK(raw_say(fd, "hel"));
    shutdown(fd, SHUT_WR);
    CHECK_INT(end_of(fd, buf, sizeof buf), -1);
    CHECK_STR(buf, "");
    CHECK(util_gate_wait(&clients.gate, 1));
    CHECK_INT(clients.why.code, REVDIAL_EREFUSED);
    CHECK_INT(atomic_load(&h.ends), 1);
    close(fd);
    close(raw_connect(at));  // says nothing: nobody is asked
    CHECK(util_gate_wait(&clients.gate, 2));
    CHECK_INT(clients.why.code, REVDIAL_ECLOSED);
    CHECK_INT(atomic_load(&h.ends), 1);
    fd = raw_connect(at);  // an end behind the decision is the target's
    CHECK(raw_say(fd, "dial cam-1\nbye"));
    shutdown(fd, SHUT_WR);
    CHECK_INT(end_of(fd, buf, sizeof buf), 0);
    CHECK_STR(buf, "bye");
    close(fd);
}

NEW_WORLD_TEST(the_time_for_a_decision_is_absolute)
{
    char at[80], buf[64];
    revdial_expose x = {.route_timeout_ms = 3000};
    static hook h;
    if (!route_open(w, &h, &x, at)) return;
    util_clock_stop();
    int fd = raw_connect(at);
    for (int i = 0; i < 3; i++) {
        CHECK(raw_say(fd, "x"));
        CHECK(util_gate_wait(&h.called, i + 1));
        util_clock_advance_ms(900);
        util_settle(w->proxy->loops[0]);
    }
    CHECK_INT(util_gate_count(&clients.gate), 0);
    util_clock_advance_ms(400);
    util_settle(w->proxy->loops[0]);
    CHECK_INT(end_of(fd, buf, sizeof buf), -1);
    CHECK(util_gate_wait(&clients.gate, 1));
    CHECK_INT(clients.why.code, REVDIAL_ETIMEDOUT);
    util_clock_run();
    close(fd);
}

NEW_WORLD_TEST(a_client_that_sends_too_much_without_a_decision_is_refused)
{
    static char much[20000];
    char at[80], buf[64];
    revdial_expose x = {.route_bytes_max = 100};
    static hook h;
    if (!route_open(w, &h, &x, at)) return;
    memset(much, 'x', sizeof much);
    for (int i = 0; i < 3; i++) {
        int fd = raw_connect(at);
        CHECK(raw_send(fd, much, i == 0 ? 100 : i == 1 ? 99 : 20000));
        if (i == 1) CHECK(raw_say(fd, "\n"));
        if (i == 1) shutdown(fd, SHUT_WR);
        CHECK_INT(end_of(fd, buf, sizeof buf), -1);
        close(fd);
        CHECK(util_gate_wait(&clients.gate, i + 1));
        if (i != 1) CHECK_INT(clients.why.code, REVDIAL_ELIMIT);
        if (i == 1) CHECK_INT(clients.why.code, REVDIAL_EINVAL);  // "xxx..." is no name
    }
    int fd = raw_connect(at);
    CHECK(raw_say(fd, "dial cam-1\n"));
    CHECK(raw_send(fd, much, 1000));
    CHECK(raw_read_all(fd, much, 1000));  // behind a decision there is no limit
    close(fd);
}

static void count_failed_dials(void *ud, int level, const char *event, const char *msg)
{
    (void)level;
    if (!strcmp(event, "dial.failed") && strstr(msg, " client=127.0.0.1:"))
        atomic_fetch_add((atomic_int *)ud, 1);
}

NEW_WORLD_TEST(a_dial_that_fails_is_logged_and_told_to_the_client_in_the_hooks_words)
{
    char at[80], buf[64];
    revdial_expose x = {0};
    static hook h;
    static atomic_int logged;
    atomic_init(&logged, 0);
    w->pcfg.common.log = count_failed_dials;
    w->pcfg.common.log_ud = &logged;
    w->pcfg.common.log_level = REVDIAL_LOG_DEBUG;
    if (!route_open(w, &h, &x, at)) return;
    for (int i = 0; i < 3; i++) {
        static const struct {
            const char *say;
            int code;
        } rows[] = {{"dial nobody\nand more", REVDIAL_ENOBACKEND},
                    {"dial not a name\n", REVDIAL_EINVAL},
                    {"dial nobody\n", REVDIAL_ENOBACKEND}};
        h.farewell = i < 2 ? "sorry\n" : NULL;
        int fd = raw_connect(at);
        CHECK(raw_say(fd, rows[i].say));
        CHECK_INT(end_of(fd, buf, sizeof buf), i < 2 ? 0 : -1);
        if (i < 2) CHECK_STR(buf, "sorry\n");
        close(fd);
        CHECK(util_gate_wait(&clients.gate, i + 1));
        CHECK_INT(atomic_load(&h.done_code), rows[i].code);
        CHECK_INT(clients.why.code, rows[i].code);
        CHECK_INT(clients.last.is_relayed, 0);
        CHECK_INT(atomic_load(&logged), i + 1);
    }
}

NEW_WORLD_TEST(a_hook_can_take_the_connection_with_what_was_read_of_it)
{
    char at[80], buf[8] = "";
    revdial_expose x = {0};
    static hook h;
    if (!route_open(w, &h, &x, at)) return;
    int before = util_fds(), fd = raw_connect(at);
    CHECK(raw_say(fd, "hello\ntake\nrest"));
    expect_text(fd, "hi 1\n");
    CHECK(util_gate_wait(&h.taken, 1));
    util_settle(w->proxy->loops[0]);
    CHECK_STR(h.rest, "rest");
    CHECK(raw_say(fd, "more"));
    CHECK(raw_read_all(h.fd, buf, 4));
    CHECK_STR(buf, "more");
    CHECK(raw_say(h.fd, "back"));
    close(h.fd);  // which is no reset
    expect_text(fd, "back");
    CHECK_INT(raw_read(fd, buf, 1), 0);
    close(fd);
    CHECK_INT(util_fds(), before);
    CHECK_INT(util_gate_count(&clients.gate), 0);
}

// With one I/O thread and with several: the hooks run on the first one.
TEST(clients_of_a_route_are_dialled_on_any_io_thread)
{
    for (unsigned threads = 1; threads <= 3; threads += 2) {
        enum { CLIENTS = 30 };
        char at[80];
        revdial_expose x = {0};
        int fds[CLIENTS];
        world w;
        static hook h;
        world_init(&w);
        w.pcfg.common.io_threads = threads;
        if (!route_open(&w, &h, &x, at)) return;
        h.greeting = "OK\n";
        h.greeting_len = 3;
        h.farewell = "no\n";
        for (int i = 1; i < WORLD_AGENTS; i++) CHECK(world_open_agent(&w, i));
        CHECK(revdial_proxy_wait(w.proxy, "cam-1", WORLD_AGENTS, UTIL_WAIT_MS) > 0);
        for (int i = 0; i < CLIENTS; i++) {
            fds[i] = raw_connect(at);
            CHECK(raw_say(fds[i], i % 3 ? "dial cam-1\nhi" : "dial nobody\nhi"));
        }
        for (int i = 0; i < CLIENTS; i++) {
            expect_text(fds[i], i % 3 ? "OK\nhi" : "no\n");
            close(fds[i]);
        }
        CHECK(util_gate_wait(&clients.gate, CLIENTS));
        CHECK_INT(atomic_load(&h.strays), 0);
        world_close(&w);
    }
}

NEW_WORLD_TEST(a_client_that_leaves_during_its_dial_ends_it)
{
    static const revdial_kv meta[] = {{"do", "silent"}};
    char at[80];
    revdial_expose x = {.dial = {.meta = meta, .meta_count = 1, .timeout_ms = -1}};
    static hook h;
    if (!route_open(w, &h, &x, at)) return;
    int fd = raw_connect(at);
    CHECK(raw_say(fd, "dial cam-1\n"));
    CHECK(util_gate_wait(&w->held, 1));
    raw_close_reset(fd);
    CHECK(util_gate_wait(&clients.gate, 1));
    CHECK_INT(clients.why.code, REVDIAL_ECLOSED);
    CHECK_INT(atomic_load(&h.done_code), REVDIAL_ECLOSED);
}

// One that waits for a decision, one that lingers, one whose dial runs, one that is relayed.
static void four_clients(const char *at, hook *h, world *w, int fds[4])
{
    char buf[8] = "";
    for (int i = 0; i < 4; i++) fds[i] = raw_connect(at);
    CHECK(raw_say(fds[0], "hel"));
    CHECK(util_gate_wait(&h->called, 1));
    CHECK(raw_say(fds[1], "refuse no\n"));
    CHECK(raw_read_all(fds[1], buf, 2));
    CHECK(raw_say(fds[2], "dial cam-1\n"));
    CHECK(util_gate_wait(&w->held, 1));
    CHECK(raw_say(fds[3], "hold\n"));
    CHECK(util_gate_wait(&w->held, 2));
    expect_text(fds[3], "OK\n");
}

TEST(clients_of_a_route_end_when_their_port_is_unexposed_or_the_proxy_stops)
{
    static const revdial_kv meta[] = {{"do", "silent"}};
    for (int how = 0; how < 3; how++) {
        char at[80], buf[64];
        revdial_expose x = {.dial = {.meta = meta, .meta_count = 1, .timeout_ms = -1}};
        int fds[4];
        world w;
        static hook h;
        world_init(&w);
        w.pcfg.common.io_threads = 1 + (unsigned)how;
        int64_t id = route_open(&w, &h, &x, at);
        if (!id) return;
        h.farewell = "sorry";
        h.greeting = "OK\n";
        h.greeting_len = 3;
        four_clients(at, &h, &w, fds);
        if (how == 2) {
            revdial_proxy_stop(w.proxy);
            w.proxy = NULL;
        } else {
            CHECK_INT(revdial_proxy_unexpose(w.proxy, id, how ? REVDIAL_END_CLIENTS : 0), 0);
        }
        int calls = atomic_load(&h.calls), dones = atomic_load(&h.dones);
        CHECK(util_gate_wait(&clients.gate, how ? 4 : 3));
        CHECK_INT(end_of(fds[0], buf, sizeof buf), -1);
        CHECK(end_of(fds[1], buf, sizeof buf) >= -1);
        CHECK_INT(end_of(fds[2], buf, sizeof buf), -1);
        CHECK_STR(buf, "");
        if (how) CHECK_INT(end_of(fds[3], buf, sizeof buf), -1);
        if (!how) shutdown(fds[3], SHUT_WR);
        if (!how) CHECK_INT(end_of(fds[3], buf, sizeof buf), 0);
        CHECK_INT(atomic_load(&h.calls), calls);
        CHECK_INT(atomic_load(&h.dones), dones);
        for (int i = 0; i < 4; i++) close(fds[i]);
        world_close(&w);
    }
}

// What it says about its client does not matter any more.
TEST(a_hook_can_unexpose_its_own_port)
{
    static const char *const rows[] = {"dial cam-1\n", "hello\n", "hel", "refuse no\n"};
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        char at[80], buf[64];
        revdial_expose x = {0};
        int fds[2];
        static hook h;
        world w;
        world_init(&w);
        int64_t id = route_open(&w, &h, &x, at);
        if (!id) return;
        fds[0] = raw_connect(at);
        CHECK(raw_say(fds[0], "hel"));
        CHECK(util_gate_wait(&h.called, 1));
        atomic_store(&h.dooms, id);
        fds[1] = raw_connect(at);
        CHECK(raw_say(fds[1], rows[k]));
        for (int i = 0; i < 2; i++) {
            CHECK_INT(end_of(fds[i], buf, sizeof buf), -1);
            CHECK_STR(buf, "");
            close(fds[i]);
        }
        CHECK(util_gate_wait(&clients.gate, 2));
        CHECK_INT(clients.why.code, REVDIAL_ECLOSED);
        CHECK_INT(raw_connect(at), -1);
        world_close(&w);
    }
}

static pthread_mutex_t heap_lock = PTHREAD_MUTEX_INITIALIZER;

static void *locked_alloc(void *ud, void *ptr, size_t old_size, size_t new_size)
{
    pthread_mutex_lock(&heap_lock);
    void *p = test_heap_alloc(ud, ptr, old_size, new_size);
    pthread_mutex_unlock(&heap_lock);
    return p;
}

static size_t heap_bytes(test_heap *heap)
{
    pthread_mutex_lock(&heap_lock);
    size_t n = heap->live_bytes;
    pthread_mutex_unlock(&heap_lock);
    return n;
}

enum { SILENT_CLIENTS = 10000, SILENT_STEP = 100 };

// Clients of a port whose address comes through the pipe `in`. They begin a line, say through `out`
// that all are there, and when told to go on some of them finish it. Returns how many failed.
static int silent_clients(int in, int out)
{
    static int fds[SILENT_CLIENTS];
    char at[80] = "", answer[2], go_on;
    int wrong = 0;
    if (read(in, at, sizeof at) != sizeof at) return 1;
    for (int i = 0; i < SILENT_CLIENTS; i++) {
        fds[i] = raw_connect(at);
        wrong += !raw_say(fds[i], "dial cam");
    }
    if (write(out, "", 1) != 1 || read(in, &go_on, 1) != 1) return 1;
    for (int i = 0; i < SILENT_CLIENTS; i += SILENT_STEP) {
        memset(answer, 0, sizeof answer);
        wrong += !raw_say(fds[i], "-1\nx") || !raw_read_all(fds[i], answer, 1) || *answer != 'x';
    }
    return wrong;
}

// They are another process, because each of them needs a descriptor, too.
static pid_t silent_clients_start(int *to, int *from)
{
    int down[2], up[2];
    if (!CHECK(pipe(down) == 0 && pipe(up) == 0)) return -1;
    pid_t pid = fork();
    if (pid == 0) {
        alarm(UTIL_WAIT_MS / 1000);
        close(down[1]);
        _exit(silent_clients(down[0], up[1]) != 0);
    }
    close(down[0]);
    close(up[1]);
    *to = down[1];
    *from = up[0];
    return pid;
}

NEW_WORLD_TEST(ten_thousand_clients_without_a_decision_cost_no_thread_and_little_memory)
{
    const rlim_t most = SILENT_CLIENTS + SILENT_CLIENTS / 4;
    test_heap heap = {0};
    struct rlimit limit;
    char at[80] = "", ready;
    revdial_expose x = {.max_waiting = SILENT_CLIENTS};
    static hook h;
    int to = -1, from = -1, status = -1;
    w->pcfg.common.alloc = locked_alloc;
    w->pcfg.common.alloc_ud = &heap;
    if (!CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0)) return;
    if (limit.rlim_cur < most && limit.rlim_max >= most) limit.rlim_cur = most;
    if (!CHECK(limit.rlim_cur >= most) || setrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    pid_t pid = silent_clients_start(&to, &from);
    if (!CHECK(pid > 0) || !route_open(w, &h, &x, at)) return;
    int threads = util_threads();
    size_t before = heap_bytes(&heap);
    CHECK(write(to, at, sizeof at) == sizeof at && read(from, &ready, 1) == 1);
    CHECK(util_gate_wait(&h.called, SILENT_CLIENTS));
    CHECK_INT(util_threads(), threads);
    size_t each = (heap_bytes(&heap) - before) / SILENT_CLIENTS;
    printf("  %d silent clients: %zu bytes each, %d more threads\n", SILENT_CLIENTS, each,
           util_threads() - threads);
    CHECK(each > 100 && each <= 500);
    CHECK(write(to, "", 1) == 1);
    CHECK_INT(waitpid(pid, &status, 0), pid);
    CHECK_INT(status, 0);
    CHECK(util_gate_wait(&clients.gate, SILENT_CLIENTS));
    close(to);
    close(from);
    world_close(w);
    CHECK_INT(heap.live_bytes, 0);
}

NEW_WORLD_TEST(a_client_that_was_taken_and_never_left_is_forgotten_with_the_proxy)
{
    test_heap heap = {0};
    char at[80];
    revdial_expose x = {.max_clients_per_source = 2};
    static hook h;
    w->pcfg.common.alloc = locked_alloc;
    w->pcfg.common.alloc_ud = &heap;
    if (!route_open(w, &h, &x, at)) return;
    int fd = raw_connect(at);
    CHECK(raw_say(fd, "take\n") && util_gate_wait(&h.taken, 1));
    close(fd);
    close(h.fd);
    world_close(w);
    CHECK_INT(heap.live_bytes, 0);
}

// Whatever the n-th allocation was for, the client gets an end and nothing is left behind.
TEST(a_routed_client_that_finds_no_memory_is_ended_or_served)
{
    for (size_t n = 1; n < 24; n++) {
        test_heap heap = {0};
        char at[80], buf[64];
        revdial_expose x = {0};
        world w;
        static hook h;
        world_init(&w);
        w.pcfg.common.alloc = locked_alloc;
        w.pcfg.common.alloc_ud = &heap;
        if (!route_open(&w, &h, &x, at)) return;
        h.greeting = "OK\n";
        h.greeting_len = 3;
        pthread_mutex_lock(&heap_lock);
        heap.fail_at = heap.calls + n;
        pthread_mutex_unlock(&heap_lock);
        int fd = raw_connect(at);
        int said = raw_say(fd, "hello\ndial cam-1\nx");
        shutdown(fd, SHUT_WR);
        int end = end_of(fd, buf, sizeof buf);
        if (said && end == 0 && strcmp(buf, "hi 1\nOK\nx") != 0)
            test_fail(__FILE__, __LINE__, "%zu: end %d after \"%s\"", n, end, buf);
        close(fd);
        pthread_mutex_lock(&heap_lock);
        heap.fail_at = 0;
        pthread_mutex_unlock(&heap_lock);
        world_close(&w);
        CHECK_INT(heap.live_blocks, 0);
        CHECK_INT(heap.live_bytes, 0);
    }
}

NEW_WORLD_TEST(clients_that_wait_for_a_decision_count_for_max_waiting)
{
    char at[80];
    revdial_expose x = {.max_waiting = 2};
    int fds[3];
    static hook h;
    if (!route_open(w, &h, &x, at)) return;
    util_clock_stop();
    for (int i = 0; i < 3; i++) CHECK(raw_say(fds[i] = raw_connect(at), "x"));
    CHECK(util_gate_wait(&h.called, 2));
    util_settle(w->proxy->loops[0]);
    CHECK_INT(atomic_load(&h.calls), 2);
    close(fds[0]);
    CHECK(util_gate_wait(&h.called, 4));  // the end of the first, and the third
    util_clock_run();
    close(fds[1]);
    close(fds[2]);
}

NEW_WORLD_TEST(silent_clients_make_room_for_others_on_a_full_port)
{
    char at[80], buf[8];
    revdial_expose x = {.max_waiting = 3};
    int fds[4];
    static hook h;
    if (!route_open(w, &h, &x, at)) return;
    util_clock_stop();
    for (int i = 0; i < 3; i++) {
        CHECK(raw_say(fds[i] = raw_connect(at), "x"));
        CHECK(util_gate_wait(&h.called, i + 1));
        if (i == 1) util_clock_advance_ms(1100);
    }
    util_settle(w->proxy->loops[0]);
    CHECK_INT(util_gate_count(&clients.gate), 0);  // nobody else waits
    CHECK(raw_say(fds[0], "x"));                   // so the second has been silent for longest
    CHECK(util_gate_wait(&h.called, 4));
    fds[3] = raw_connect(at);
    CHECK(raw_say(fds[3], "dial cam-1\nhi"));
    expect_text(fds[3], "hi");
    CHECK_INT(end_of(fds[1], buf, sizeof buf), -1);
    CHECK(util_gate_wait(&clients.gate, 1));
    CHECK_INT(clients.why.code, REVDIAL_ELIMIT);
    util_clock_run();
    for (int i = 0; i < 4; i++) close(fds[i]);
}

// ------------------------------------------------------------------------------------------------
// Balancers, and who may come.

// What the last handler was told of its client.
static struct {
    pthread_mutex_t lock;
    char client[80], local[80];
} heard = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void hearing(void *ud, revdial_stream *st)
{
    const char *client = revdial_stream_meta(st, "client");
    const char *local = revdial_stream_meta(st, "local");
    pthread_mutex_lock(&heard.lock);
    snprintf(heard.client, sizeof heard.client, "%s", client ? client : "none");
    snprintf(heard.local, sizeof heard.local, "%s", local ? local : "none");
    pthread_mutex_unlock(&heard.lock);
    util_handler(ud, st);
}

static void expect_heard(const char *client, const char *local)
{
    pthread_mutex_lock(&heard.lock);
    CHECK_STR(heard.client, client);
    CHECK_STR(heard.local, local);
    pthread_mutex_unlock(&heard.lock);
}

// What a header makes of a client's address, with a hook and without.
static void header_test(world *w, const void *header, size_t len, const char *client,
                        const char *local)
{
    char at[80], own[80];
    revdial_expose x = {.trusted_proxies = "10.0.0.0/8, 127.0.0.0/8"};
    static hook h;
    struct sockaddr_in from;
    socklen_t from_len = sizeof from;
    w->acfg.handler = hearing;
    int64_t id = route_open(w, &h, &x, at);
    if (!id) return;
    int fd = raw_connect(at);
    getsockname(fd, (struct sockaddr *)&from, &from_len);
    snprintf(own, sizeof own, "127.0.0.1:%d", ntohs(from.sin_port));
    CHECK(raw_send(fd, header, len));
    CHECK(raw_say(fd, "dial cam-1\nhi"));
    expect_text(fd, "hi");
    CHECK_STR(h.client, client ? client : own);
    CHECK_STR(h.local, local ? local : at);
    expect_heard(client ? client : own, local ? local : at);
    close(fd);
    CHECK(util_gate_wait(&clients.gate, 1));
    CHECK_STR(clients.address, client ? client : own);
    x.route = NULL;
    x.route_done = NULL;
    x.name = "cam-1";
    world_expose(w, &x, at);
    fd = raw_connect(at);
    getsockname(fd, (struct sockaddr *)&from, &from_len);
    snprintf(own, sizeof own, "127.0.0.1:%d", ntohs(from.sin_port));
    for (size_t i = 0; i < len; i++) CHECK(raw_send(fd, (const char *)header + i, 1));
    CHECK(raw_echoes(fd));
    expect_heard(client ? client : own, local ? local : at);
    close(fd);
    CHECK(util_gate_wait(&clients.gate, 2));
    CHECK_INT(clients.last.moved[0], 4);
    CHECK_STR(clients.address, client ? client : own);
    world_close(w);
}

TEST(a_trusted_balancer_says_who_its_client_is)
{
    static const struct {
        const char *header;
        size_t len;
        const char *client, *local;
    } rows[] = {
        {"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n", 0, "192.0.2.7:56324",
         "198.51.100.1:443"},
        {"PROXY TCP6 2001:db8:: 2001:db8::1 56324 443\r\n", 0, "[2001:db8::]:56324",
         "[2001:db8::1]:443"},
        {"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:192.0.2.8 1 2\r\n", 0, "192.0.2.7:1", "192.0.2.8:2"},
        {"PROXY UNKNOWN\r\n", 0, NULL, NULL},
        {"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", 0, NULL, NULL},
        {"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C\xC0\0\2\7\xC6\x33\x64\1\xDC\4\1\xBB", 28,
         "192.0.2.7:56324", "198.51.100.1:443"},
        // With TLVs, of which none is of interest here.
        {"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x12\xC0\0\2\7\xC6\x33\x64\1\xDC\4\1\xBB\1\0\3abc", 34,
         "192.0.2.7:56324", "198.51.100.1:443"},
        {"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", 16, NULL, NULL},  // LOCAL
        {"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0", 16, NULL, NULL},  // UNSPEC
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        world w;
        world_init(&w);
        header_test(&w, rows[i].header, rows[i].len ? rows[i].len : strlen(rows[i].header),
                    rows[i].client, rows[i].local);
    }
}

NEW_WORLD_TEST(a_header_that_is_malformed_ends_the_connection)
{
    static const char *const rows[] = {
        "GET / HTTP/1.1\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443 \r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443 9\r\n",
        "PROXY TCP4  192.0.2.7 198.51.100.1 56324 443\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 056324 443\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 +1 443\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 1 65536\r\n",
        "PROXY TCP4 192.0.2.256 198.51.100.1 1 443\r\n",
        "PROXY TCP4 192.0.2.7 ::1 1 443\r\n",
        "PROXY TCP6 192.0.2.7 192.0.2.8 1 443\r\n",
        "PROXY TCP5 192.0.2.7 192.0.2.8 1 443\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 1 443\rx",
        "PROXY TCP4 192.0.2.7 198.51.100.1 1 443\n\r\n",
        "PROXY UNKNOWNX\r\n",
        "PROXY \r\n",
        // the parentheses say that no comma is missing
        ("PROXY UNKNOWN 0123456789012345678901234567890123456789012345678901234567890123456789"
         "01234567890123456789012345678901234567890123456789"),
        "\r\n\r\nx",
        "proxy TCP4 192.0.2.7 198.51.100.1 56324 443\r\n",
    };
    char at[80], buf[64];
    revdial_expose x = {.trusted_proxies = "127.0.0.1"};
    size_t count = sizeof rows / sizeof *rows;
    static hook h;
    if (!route_open(w, &h, &x, at)) return;
    for (size_t i = 0; i < count; i++) {
        int fd = raw_connect(at);
        raw_say(fd, rows[i]);
        if (end_of(fd, buf, sizeof buf) != -1) test_fail(__FILE__, __LINE__, "row %zu is taken", i);
        close(fd);
        CHECK(util_gate_wait(&clients.gate, (int)i + 1));
        CHECK_INT(clients.why.code, REVDIAL_EPROTO);
    }
    // Of version 2: another version, another command, a datagram, too short for its addresses, too
    // long, and one that ends early.
    static const struct {
        const char *bytes;
        size_t len;
    } binary[] = {{"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0C\xC0\0\2\7\xC6\x33\x64\1\xDC\4\1\xBB", 28},
                  {"\r\n\r\n\0\r\nQUIT\n\x22\x11\0\x0C\xC0\0\2\7\xC6\x33\x64\1\xDC\4\1\xBB", 28},
                  {"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0C\xC0\0\2\7\xC6\x33\x64\1\xDC\4\1\xBB", 28},
                  {"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0B\xC0\0\2\7\xC6\x33\x64\1\xDC\4\1\xBB", 28},
                  {"\r\n\r\n\0\r\nQUIT\n\x21\x11\xFF\xFF", 16},
                  {"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C\xC0\0", 18}};
    for (size_t i = 0; i < sizeof binary / sizeof *binary; i++) {
        int fd = raw_connect(at);
        raw_send(fd, binary[i].bytes, binary[i].len);
        shutdown(fd, SHUT_WR);
        if (end_of(fd, buf, sizeof buf) != -1)
            test_fail(__FILE__, __LINE__, "row %zu of version 2 is taken", i);
        close(fd);
        CHECK(util_gate_wait(&clients.gate, (int)(count + i) + 1));
        CHECK_INT(clients.why.code, REVDIAL_EPROTO);
    }
    CHECK_INT(atomic_load(&h.calls), 0);
}

// Or anybody could say who he is.
NEW_WORLD_TEST(a_header_from_a_stranger_is_payload)
{
    char at[80], buf[64] = "";
    static const char header[] = "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n";
    revdial_expose x = {
        .listen = "127.0.0.1:0", .name = "cam-1", .trusted_proxies = "127.0.0.2,::1,unix:"};
    if (!ports_open(w)) return;
    world_expose(w, &x, at);
    int fd = raw_connect(at);
    CHECK(raw_say(fd, header));
    CHECK(raw_read_all(fd, buf, strlen(header)));
    CHECK_STR(buf, header);
    close(fd);
    CHECK(util_gate_wait(&clients.gate, 1));
    CHECK(strncmp(clients.address, "127.0.0.1:", 10) == 0);
}

NEW_WORLD_TEST(only_clients_from_allowed_addresses_come_in)
{
    char at[80], buf[64];
    revdial_expose x = {.listen = "127.0.0.1:0",
                        .name = "cam-1",
                        .allow_from = "127.0.0.4/31, 10.0.0.0/8, fd00::/8",
                        .trusted_proxies = "127.0.0.9"};
    if (!ports_open(w)) return;
    world_expose(w, &x, at);
    for (int last = 3; last <= 6; last++) {
        int fd = raw_connect_from(at, last), is_in = last == 4 || last == 5;
        CHECK_INT(is_in ? raw_echoes(fd) : end_of(fd, buf, sizeof buf), is_in ? 1 : -1);
        close(fd);
    }
    // A balancer's clients are judged by their own addresses, and itself by its own.
    for (int i = 0; i < 4; i++) {
        static const char *const headers[] = {
            "PROXY TCP4 10.1.2.3 10.0.0.1 1 2\r\n", "PROXY TCP4 11.1.2.3 10.0.0.1 1 2\r\n",
            "PROXY TCP6 fd00::7 fd00::1 1 2\r\n", "PROXY UNKNOWN\r\n"};
        int fd = raw_connect_from(at, 9), is_in = i % 2 == 0;
        CHECK(raw_say(fd, headers[i]));
        CHECK_INT(is_in ? raw_echoes(fd) : end_of(fd, buf, sizeof buf), is_in ? 1 : -1);
        close(fd);
    }
}

NEW_WORLD_TEST(unix_sockets_can_be_allowed_and_trusted)
{
    char dir[] = "/tmp/revdial-test-XXXXXX", listen[64], at[80], buf[8];
    revdial_expose x = {.listen = listen, .name = "cam-1", .allow_from = "0.0.0.0/0"};
    if (!CHECK(mkdtemp(dir) != NULL) || !ports_open(w)) return;
    snprintf(listen, sizeof listen, "unix:%s/s", dir);
    for (int i = 0; i < 3; i++) {
        if (i == 1) x.allow_from = "unix:";
        if (i == 2) x.trusted_proxies = "unix:", x.allow_from = "192.0.2.0/24";
        int64_t id = world_expose(w, &x, at);
        int fd = unix_connect(at);
        if (i == 2) CHECK(raw_say(fd, "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"));
        CHECK_INT(i ? raw_echoes(fd) : end_of(fd, buf, sizeof buf) >= -1, 1);
        close(fd);
        if (i) CHECK(util_gate_wait(&clients.gate, i));
        if (i) CHECK_STR(clients.address, i == 2 ? "192.0.2.7:56324" : "unix");
        CHECK_INT(revdial_proxy_unexpose(w->proxy, id, 0), 0);
    }
    CHECK_INT(rmdir(dir), 0);
}

NEW_WORLD_TEST(a_route_that_makes_no_sense_is_refused_with_the_field)
{
    static const struct {
        revdial_expose x;
        const char *field;
    } rows[] = {
        {{.name = NULL}, "name"},
        {{.name = "a", .route_done = hook_done}, "route_done"},
        {{.name = "a", .route = hook_route, .route_bytes_max = 65537}, "route_bytes_max"},
        {{.name = "a", .route = hook_route, .route_timeout_ms = -1}, "route_timeout_ms"},
        {{.name = "a", .dial = {.session = (revdial_session *)1}}, "session"},
        {{.name = "a", .trusted_proxies = "10.0.0.0/33"}, "trusted_proxies: \"10.0.0.0/33\""},
        {{.name = "a", .trusted_proxies = " ,"}, "trusted_proxies"},
        {{.name = "a", .allow_from = "::1, localhost"}, "allow_from: \"localhost\""},
        {{.name = "a", .allow_from = "10.0.0"}, "allow_from"},
        {{.name = "a", .allow_from = ""}, "allow_from"},
        {{.name = "a", .allow_from = "fe80::/129"}, "allow_from"},
    };
    if (!CHECK(world_open(w))) return;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        revdial_expose x = rows[i].x;
        revdial_err err = {0};
        x.listen = "127.0.0.1:0";
        CHECK_INT(revdial_proxy_expose(w->proxy, &x, &err), REVDIAL_EINVAL);
        if (!strstr(err.msg, rows[i].field))
            test_fail(__FILE__, __LINE__, "row %zu: %s", i, err.msg);
    }
}

// Does the agent answer a client that connects to that port by IPv4?
static int is_served(const char *at)
{
    int fd = raw_connect(at), serves = raw_echoes(fd);
    close(fd);
    return serves;
}

NEW_WORLD_TEST(the_v6_wildcard_takes_v4_clients_unless_another_port_of_ours_does)
{
    revdial_expose six = {.listen = "[::]:0", .name = "cam-1"};
    revdial_expose four = {.listen = "0.0.0.0:0", .name = "nobody"};
    char at[80], text[80];
    revdial_err err = {0};
    if (!CHECK(world_open(w))) return;
    int64_t id = revdial_proxy_expose(w->proxy, &six, &err);
    if (err.sys == EAFNOSUPPORT || err.sys == EADDRNOTAVAIL) return;  // no IPv6 here
    CHECK(id > 0 && revdial_proxy_expose_address(w->proxy, id, at, sizeof at) > 0);
    CHECK(is_served(at));
    for (int tries = 0; tries < 20; tries++) {  // somebody else may have the port in IPv6
        int64_t other = world_expose(w, &four, at);
        snprintf(text, sizeof text, "[::]%s", strrchr(at, ':'));
        six.listen = text;
        id = revdial_proxy_expose(w->proxy, &six, &err);
        if (id > 0) break;
        revdial_proxy_unexpose(w->proxy, other, 0);
    }
    CHECK(id > 0);
    CHECK(!is_served(at));
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
