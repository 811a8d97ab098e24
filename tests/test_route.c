// Exposed ports that come and go while the proxy runs.
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

// Exposes a port. Returns its id, and its address in `at`, of 80 bytes.
static int64_t port_open(world *w, const revdial_expose *x, char *at)
{
    revdial_err err = {0};
    int64_t id = revdial_proxy_expose(w->proxy, x, &err);
    if (id <= 0) test_fail(__FILE__, __LINE__, "not exposed: %s", err.msg);
    CHECK(revdial_proxy_expose_address(w->proxy, id, at, 80) > 0);
    return id;
}

// Does an echo come back through this connection?
static int echoes(int fd)
{
    char buf[5] = "";
    return fd >= 0 && raw_say(fd, "ping") && raw_read_all(fd, buf, 4) && strcmp(buf, "ping") == 0;
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
    int64_t id = port_open(w, &x, at);
    memset(name, 'x', 5);  // it has its own copy
    memset(listen, 'x', 5);
    int fd = raw_connect(at);
    CHECK(echoes(fd));
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
    CHECK_INT(port_open(w, &x[0], same), 3);
    CHECK_INT(revdial_proxy_unexpose(w->proxy, 1, 0), 0);
    CHECK_INT(raw_connect(at[0]), -1);
    CHECK_INT(revdial_proxy_address(w->proxy, 1, same, sizeof same), REVDIAL_EINVAL);
    CHECK_INT(revdial_proxy_unexpose(w->proxy, 1, 0), REVDIAL_EINVAL);
    int fd = raw_connect(at[1]);
    CHECK(echoes(fd));
    close(fd);
}

NEW_WORLD_TEST(the_address_of_a_port_can_be_exposed_again_at_once)
{
    char at[80], again[80];
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
    if (!ports_open(w)) return;
    int64_t id = port_open(w, &x, at);
    x.listen = at;
    for (int i = 0; i < 20; i++) {
        int fd = raw_connect(at);
        CHECK(echoes(fd));
        CHECK_INT(revdial_proxy_unexpose(w->proxy, id, 0), 0);
        CHECK_INT(revdial_proxy_expose_address(w->proxy, id, again, 80), REVDIAL_EINVAL);
        int64_t next = port_open(w, &x, again);
        CHECK(next > id);
        CHECK_STR(again, at);
        CHECK(echoes(fd));  // that connection runs on
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
        int64_t id = port_open(w, &x, at);
        CHECK_STR(at, listen);
        int fd = unix_connect(listen);
        CHECK(echoes(fd));
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
    int64_t id = port_open(w, &x, at);
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
    CHECK_INT(revdial_proxy_expose(w->proxy, NULL, &err), REVDIAL_EINVAL);
    CHECK_INT(util_fds(), before);
    x.name = "cam-1";
    CHECK_INT(port_open(w, &x, port), id + 1);
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
        size_t len;
        world w;
        world_init(&w);
        w.pcfg.common.io_threads = threads;
        silent.dial.meta = meta;
        silent.dial.meta_count = 1;
        silent.dial.timeout_ms = -1;
        if (!ports_open(&w)) return;
        for (int i = 1; i < WORLD_AGENTS; i++) CHECK(world_open_agent(&w, i));
        CHECK(revdial_proxy_wait(w.proxy, "cam-1", WORLD_AGENTS, UTIL_WAIT_MS) > 0);
        int64_t id = port_open(&w, &x, at), waits_id = port_open(&w, &silent, waits);
        port_open(&w, &x, keeps);
        for (int i = 0; i < CLIENTS; i++) CHECK(echoes(fds[i] = raw_connect(at)));
        CHECK(echoes(other = raw_connect(keeps)));
        waiting = raw_connect(waits);
        CHECK(util_gate_wait(&w.held, 1));
        CHECK_INT(revdial_proxy_unexpose(w.proxy, waits_id, REVDIAL_END_CLIENTS), 0);
        CHECK_INT(raw_drain(waiting, buf, sizeof buf, &len), -1);
        CHECK(util_gate_wait(&clients.gate, 1));
        CHECK_INT(clients.last.expose, waits_id - 1);
        CHECK_INT(clients.why.code, REVDIAL_ECLOSED);
        CHECK_INT(revdial_proxy_unexpose(w.proxy, id, REVDIAL_END_CLIENTS), 0);
        for (int i = 0; i < CLIENTS; i++) {
            CHECK_INT(raw_drain(fds[i], buf, sizeof buf, &len), -1);
            close(fds[i]);
        }
        CHECK(util_gate_wait(&clients.gate, 1 + CLIENTS));
        CHECK_INT(clients.last.is_relayed, 1);
        CHECK_INT(clients.why.code, REVDIAL_ECLOSED);
        CHECK(echoes(other));
        close(other);
        close(waiting);
        world_close(&w);
    }
}

// The callback runs while the port accepts, and is about its only client.
NEW_WORLD_TEST(a_port_can_be_unexposed_in_a_callback_about_its_own_client)
{
    char at[80], buf[8];
    size_t len;
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "nobody"};
    if (!ports_open(w)) return;
    int64_t id = port_open(w, &x, at);
    atomic_store(&doom_code, 99);
    atomic_store(&doomed, id);
    int fd = raw_connect(at);
    CHECK_INT(raw_drain(fd, buf, sizeof buf, &len), -1);
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
        if (fd >= 0 && echoes(fd)) atomic_fetch_add(&c->served, 1);
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
    int64_t id = port_open(w, &x, c.at);
    x.listen = c.at;
    for (int i = 0; i < THREADS; i++) threads[i] = util_thread(crowd_run, &c);
    for (int i = 0; i < ROUNDS; i++) {
        char at[80];
        int seen = atomic_load(&c.served);
        if (i % 10 == 0) UTIL_EVENTUALLY(atomic_load(&c.served) > seen);
        CHECK_INT(revdial_proxy_unexpose(w->proxy, id, i % 2 ? REVDIAL_END_CLIENTS : 0), 0);
        id = port_open(w, &x, at);
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
    int64_t id = port_open(w, &x, at);
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

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
