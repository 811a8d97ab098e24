// Sockets that more than one port, or more than one process, listens on.
#include "runtime_util.h"

static int unix_connect(const char *at)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(to.sun_path, sizeof to.sun_path, "%s", at + 5);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) == 0) return fd;
    close(fd);
    return -1;
}

static int listening_fds(void)
{
    int count = 0;
    for (int fd = 0; fd < 1024; fd++) {
        int listens = 0;
        socklen_t len = sizeof listens;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) == 0) count += listens;
    }
    return count;
}

// ------------------------------------------------------------------------------------------------
// instead_of

typedef struct crowd {
    char at[80];
    atomic_int is_over, served, refused;
} crowd;

static void *crowd_run(void *arg)
{
    crowd *c = arg;
    while (!atomic_load(&c->is_over)) {
        int fd = raw_connect(c->at);
        atomic_fetch_add(raw_echoes(fd) ? &c->served : &c->refused, 1);
        if (fd >= 0) raw_close_reset(fd);
    }
    return NULL;
}

NEW_WORLD_TEST(no_client_is_refused_while_a_port_follows_another)
{
    enum { THREADS = 3, ROUNDS = 100 };
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
    pthread_t threads[THREADS];
    crowd c;
    memset(&c, 0, sizeof c);
    w->pcfg.common.io_threads = 2;
    if (!world_open(w)) return;
    int64_t id = world_expose(w, &x, c.at);
    int runs_on = raw_connect(c.at), before = listening_fds();
    CHECK(raw_echoes(runs_on));
    for (int i = 0; i < THREADS; i++) threads[i] = util_thread(crowd_run, &c);
    for (int i = 0; i < ROUNDS; i++) {
        char at[80];
        int seen = atomic_load(&c.served);
        if (i % 10 == 0) UTIL_EVENTUALLY(atomic_load(&c.served) > seen);
        x.instead_of = id;
        id = world_expose(w, &x, at);
        CHECK_STR(at, c.at);
        CHECK_INT(revdial_proxy_expose_address(w->proxy, x.instead_of, at, 80), REVDIAL_EINVAL);
    }
    atomic_store(&c.is_over, 1);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    CHECK(atomic_load(&c.served) > 0);
    CHECK_INT(atomic_load(&c.refused), 0);
    CHECK(raw_echoes(runs_on));
    CHECK_INT(listening_fds(), before);  // no copy is left
    close(runs_on);
    CHECK_INT(revdial_proxy_unexpose(w->proxy, id, 0), 0);
    CHECK_INT(raw_connect(c.at), -1);  // the last one has closed the socket
}

NEW_WORLD_TEST(a_port_that_follows_another_leads_where_it_says)
{
    char at[80];
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "nobody"};
    if (!world_open(w)) return;
    x.instead_of = world_expose(w, &x, at);
    x.name = "cam-1";
    x.listen = "unused";
    world_expose(w, &x, at);
    int fd = raw_connect(at);
    CHECK(raw_echoes(fd));
    close(fd);
}

// Wants four bytes, and dials what they name.
static int naming_route(void *ud, revdial_route *r)
{
    util_gate_add(ud, 1);
    if (r->len < 4) return REVDIAL_ROUTE_MORE;
    r->name = memcmp(r->data, "late", 4) == 0 ? "cam-2" : "cam-1";
    r->dial.flags = REVDIAL_DIAL_WAIT;
    return REVDIAL_ROUTE_DIAL;
}

static size_t dials_of(world *w)
{
    size_t count = 0;
    pthread_mutex_lock(&w->proxy->own.lock);
    RVD_BASE_EACH (const rvd_proxy_dial, d, &w->proxy->dials, link) count++;
    pthread_mutex_unlock(&w->proxy->own.lock);
    return count;
}

// One has said half of where it goes, and one waits for its backend.
NEW_WORLD_TEST(clients_on_their_way_follow_their_port_to_its_heir_and_end_with_it)
{
    for (int is_over = 0; is_over < 2; is_over++) {
        util_gate asked;
        char at[80], buf[8];
        size_t len;
        revdial_expose x = {.listen = "127.0.0.1:0", .route = naming_route, .route_ud = &asked};
        util_gate_init(&asked);
        REQUIRE(world_open(w));
        x.instead_of = world_expose(w, &x, at);
        int half = raw_connect(at), late = raw_connect(at);
        CHECK(raw_say(half, "pi") && raw_say(late, "late"));
        CHECK(util_gate_wait(&asked, 2));
        UTIL_EVENTUALLY(dials_of(w) == 1);
        x.max_clients = 10;
        x.instead_of = world_expose(w, &x, at);
        int64_t id = world_expose(w, &x, at);
        if (is_over) {
            CHECK_INT(revdial_proxy_unexpose(w->proxy, id, 0), 0);
            CHECK_INT(raw_drain(half, buf, sizeof buf, &len), -1);
            CHECK_INT(raw_drain(late, buf, sizeof buf, &len), -1);
        } else {
            revdial_agent_config cfg = w->acfg;
            cfg.name = "cam-2";
            revdial_agent *other = revdial_agent_start(&cfg, NULL);
            CHECK(raw_say(half, "ng") && raw_read_all(half, buf, 4));
            CHECK(memcmp(buf, "ping", 4) == 0);
            CHECK(raw_read_all(late, buf, 4) && memcmp(buf, "late", 4) == 0);
            revdial_agent_stop(other, 0);
        }
        close(half);
        close(late);
        world_close(w);
    }
}

// Counts the ports that there are, by the size of what is allocated.
static void *counting_alloc(void *ud, void *ptr, size_t old_size, size_t size)
{
    enum { NEAR = 256 };  // with the texts of a port
    atomic_int *ports = ud;
    const size_t port = sizeof(rvd_proxy_listener);
    if (!ptr && size >= port && size < port + NEAR) atomic_fetch_add(ports, 1);
    if (ptr && !size && old_size >= port && old_size < port + NEAR) atomic_fetch_sub(ports, 1);
    if (size) return realloc(ptr, size);
    free(ptr);
    return NULL;
}

NEW_WORLD_TEST(ports_that_a_client_of_the_first_one_outlives_are_freed)
{
    for (int has_route = 0; has_route < 2; has_route++) {
        util_gate asked;
        atomic_int ports = 0;
        char at[80], buf[4];
        revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
        if (has_route) x = (revdial_expose){.listen = "127.0.0.1:0", .route = naming_route};
        x.route_ud = &asked;
        util_gate_init(&asked);
        w->pcfg.common.alloc = counting_alloc;
        w->pcfg.common.alloc_ud = &ports;
        w->acfg.url = NULL;
        REQUIRE(world_open(w));
        int before = atomic_load(&ports);
        x.instead_of = world_expose(w, &x, at);
        CHECK_INT(atomic_load(&ports), before + 1);
        int fd = raw_connect(at);
        CHECK(raw_say(fd, "ping") && raw_read_all(fd, buf, 4));
        for (int i = 0; i < 5; i++) x.instead_of = world_expose(w, &x, at);
        UTIL_EVENTUALLY(atomic_load(&ports) == before + 2);  // the first and the last
        CHECK(raw_say(fd, "pong") && raw_read_all(fd, buf, 4));
        close(fd);
        world_close(w);
        CHECK_INT(atomic_load(&ports), 0);
    }
}

typedef struct followed {
    util_gate over;
    size_t expose;
    int code;
} followed;

static void followed_on_client(void *ud, const revdial_client *client)
{
    followed *f = ud;
    f->expose = client->expose;
    f->code = client->why ? client->why->code : 0;
    util_gate_add(&f->over, 1);
}

static int endless_route(void *ud, revdial_route *r)
{
    (void)r;
    util_gate_add(ud, 1);
    return REVDIAL_ROUTE_MORE;
}

NEW_WORLD_TEST(a_client_that_has_sent_more_than_the_heir_of_its_port_takes_is_over)
{
    util_gate asked;
    char at[80], sent[101] = "";
    followed f = {UTIL_GATE, 0, 0};
    revdial_expose x = {.listen = "127.0.0.1:0", .route = endless_route, .route_ud = &asked};
    util_gate_init(&asked);
    w->pcfg.on_client = followed_on_client;
    w->pcfg.on_session = NULL;
    w->pcfg.ud = &f;
    REQUIRE(world_open(w));
    x.instead_of = world_expose(w, &x, at);
    memset(sent, 'x', sizeof sent - 1);
    int fd = raw_connect(at);
    CHECK(raw_say(fd, sent) && util_gate_wait(&asked, 1));
    x.route_bytes_max = 50;
    world_expose(w, &x, at);
    raw_say(fd, "x");  // it may be over before
    CHECK(util_gate_wait(&f.over, 1));
    CHECK_INT(f.code, REVDIAL_ELIMIT);
    CHECK_INT(asked.count, 1);
    close(fd);
}

// One whose dial ran then: it counts for the limits of its port no longer.
NEW_WORLD_TEST(a_client_that_has_followed_its_port_ends_with_the_heir_and_is_told_of_as_its)
{
    util_gate asked;
    char at[80], buf[8];
    size_t len;
    followed f = {UTIL_GATE, 0, 0};
    revdial_expose x = {.listen = "127.0.0.1:0", .route = naming_route, .route_ud = &asked};
    util_gate_init(&asked);
    w->pcfg.on_client = followed_on_client;
    w->pcfg.on_session = NULL;
    w->pcfg.ud = &f;
    REQUIRE(world_open(w));
    x.max_clients = 1;
    x.instead_of = world_expose(w, &x, at);
    int fd = raw_connect(at);
    CHECK(raw_say(fd, "late") && util_gate_wait(&asked, 1));
    UTIL_EVENTUALLY(dials_of(w) == 1);
    x.max_clients = 0;
    int64_t id = world_expose(w, &x, at);
    revdial_agent_config cfg = w->acfg;
    cfg.name = "cam-2";
    revdial_agent *other = revdial_agent_start(&cfg, NULL);
    CHECK(raw_read_all(fd, buf, 4) && memcmp(buf, "late", 4) == 0);
    CHECK_INT(revdial_proxy_unexpose(w->proxy, id, REVDIAL_END_CLIENTS), 0);
    CHECK_INT(raw_drain(fd, buf, sizeof buf, &len), -1);
    CHECK(util_gate_wait(&f.over, 1));
    CHECK_INT(f.expose, id - 1);
    CHECK_INT(f.code, REVDIAL_ECLOSED);
    close(fd);
    revdial_agent_stop(other, 0);
}

static int say_and_close(void *ud, revdial_route *r)
{
    struct linger how = {1, 0};
    socklen_t len = sizeof how;
    (void)ud;
    CHECK_INT(getsockopt(r->fd, SOL_SOCKET, SO_LINGER, &how, &len), 0);
    CHECK_INT(how.l_onoff, 0);
    CHECK_INT(send(r->fd, "bye", 3, MSG_NOSIGNAL), 3);
    close(r->fd);
    return REVDIAL_ROUTE_TAKE;
}

NEW_WORLD_TEST(who_takes_a_client_of_a_port_that_had_no_route_may_close_it_and_all_arrives)
{
    char at[80], buf[8];
    size_t len;
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
    if (!world_open(w)) return;
    x.instead_of = world_expose(w, &x, at);
    x.route = say_and_close;
    world_expose(w, &x, at);
    int fd = raw_connect(at);
    raw_say(fd, "?");
    CHECK_INT(raw_drain(fd, buf, sizeof buf, &len), 0);
    CHECK_STR(buf, "bye");
    close(fd);
}

NEW_WORLD_TEST(the_path_of_a_unix_socket_goes_with_the_last_port_on_it)
{
    char dir[] = "/tmp/revdial-test-XXXXXX", listen[64], at[80];
    revdial_expose x = {.listen = listen, .name = "cam-1"};
    if (!CHECK(mkdtemp(dir) != NULL) || !world_open(w)) return;
    snprintf(listen, sizeof listen, "unix:%s/s", dir);
    x.instead_of = world_expose(w, &x, at);
    int64_t id = world_expose(w, &x, at);
    CHECK_STR(at, listen);
    int fd = unix_connect(listen);
    CHECK(raw_echoes(fd));
    close(fd);
    CHECK_INT(revdial_proxy_unexpose(w->proxy, id, 0), 0);
    CHECK_INT(access(listen + 5, F_OK), -1);
    CHECK_INT(rmdir(dir), 0);
}

NEW_WORLD_TEST(a_port_cannot_follow_one_that_is_not_there)
{
    char at[80];
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
    revdial_err err = {0};
    if (!world_open(w)) return;
    int64_t id = world_expose(w, &x, at);
    int before = util_fds();
    x.instead_of = id + 1;
    CHECK_INT(revdial_proxy_expose(w->proxy, &x, &err), REVDIAL_EINVAL);
    CHECK(strstr(err.msg, "instead_of") != NULL);
    CHECK_INT(util_fds(), before);
    CHECK_INT(revdial_proxy_unexpose(w->proxy, id, 0), 0);
    x.instead_of = id;
    CHECK_INT(revdial_proxy_expose(w->proxy, &x, &err), REVDIAL_EINVAL);
}

// Holds the thread that allocates the counters of a new port: it has a copy of the socket, and its
// port is not listed yet.
typedef struct holding {
    world *w;
    revdial_expose x;
    int64_t id;
    revdial_err err;
    atomic_int is_armed;
    util_gate held, go;
} holding;

static void *holding_alloc(void *ud, void *ptr, size_t old_size, size_t size)
{
    holding *h = ud;
    (void)old_size;
    if (!ptr && size == sizeof(rvd_proxy_crowd) && atomic_exchange(&h->is_armed, 0)) {
        util_gate_add(&h->held, 1);
        util_gate_wait(&h->go, 1);
    }
    if (size) return realloc(ptr, size);
    free(ptr);
    return NULL;
}

static void *holding_run(void *arg)
{
    holding *h = arg;
    h->id = revdial_proxy_expose(h->w->proxy, &h->x, &h->err);
    return NULL;
}

// The loop shuts the socket of such a port down, and that of its copy with it.
NEW_WORLD_TEST(a_port_cannot_follow_one_that_is_unexposed_meanwhile)
{
    static holding h;
    char at[80];
    h.w = w;
    h.x = (revdial_expose){.listen = "127.0.0.1:0", .name = "cam-1"};
    util_gate_init(&h.held);
    util_gate_init(&h.go);
    w->pcfg.common.alloc = holding_alloc;
    w->pcfg.common.alloc_ud = &h;
    REQUIRE(world_open_proxy(w));
    int before = util_fds();
    h.x.instead_of = world_expose(w, &h.x, at);
    h.x.max_clients = 10;
    atomic_store(&h.is_armed, 1);
    pthread_t follows = util_thread(holding_run, &h);
    CHECK(util_gate_wait(&h.held, 1));
    CHECK_INT(revdial_proxy_unexpose(w->proxy, h.x.instead_of, 0), 0);
    util_gate_add(&h.go, 1);
    pthread_join(follows, NULL);
    CHECK_INT(h.id, REVDIAL_EINVAL);
    CHECK(strstr(h.err.msg, "instead_of") != NULL);
    CHECK_INT(util_fds(), before);
}

// ------------------------------------------------------------------------------------------------
// "fd:3"

static int raw_listen_text(char text[2][80])
{
    int port = 0, fd = raw_listen(16, &port);
    snprintf(text[0], 80, "fd:%d", fd);
    snprintf(text[1], 80, "127.0.0.1:%d", port);
    return fd;
}

// Nobody who connects while no proxy is there is refused: the socket is its holder's.
NEW_WORLD_TEST(a_socket_that_somebody_else_holds_outlives_the_proxy)
{
    char agents[2][80], clients[2][80], at[80];
    int fds[2] = {raw_listen_text(agents), raw_listen_text(clients)};
    revdial_expose x = {.listen = clients[0], .name = "cam-1"};
    w->pcfg.listen = agents[0];
    w->pcfg.exposes = &x;
    w->pcfg.expose_count = 1;
    for (int round = 0; round < 3; round++) {
        int early = raw_connect(clients[1]);  // before the proxy is there
        CHECK(early >= 0);
        if (!CHECK(world_open_proxy(w))) return;
        CHECK(revdial_proxy_address(w->proxy, 0, at, sizeof at) > 0);
        CHECK_STR(at, agents[1]);
        CHECK(revdial_proxy_address(w->proxy, 1, at, sizeof at) > 0);
        CHECK_STR(at, clients[1]);
        close(early);
        if (!CHECK(world_open_agent(w, 0))) return;
        int fd = raw_connect(clients[1]);
        CHECK(raw_echoes(fd));
        close(fd);
        world_close(w);
    }
    for (int i = 0; i < 2; i++) close(fds[i]);
    CHECK_INT(raw_connect(clients[1]), -1);  // now nobody has it
}

NEW_WORLD_TEST(a_number_that_is_no_listening_socket_is_refused)
{
    int pair[2], closed = dup(0);
    close(closed);
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    const int numbers[] = {pair[0], closed, 0};
    if (!world_open_proxy(w)) return;
    int before = util_fds();
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        char text[80];
        revdial_expose x = {.listen = text, .name = "cam-1"};
        revdial_err err = {0};
        snprintf(text, sizeof text, "fd:%d", numbers[i]);
        CHECK_INT(revdial_proxy_expose(w->proxy, &x, &err), REVDIAL_EINVAL);
        CHECK(strstr(err.msg, text) && strstr(err.msg, "not a socket that listens"));
    }
    CHECK_INT(util_fds(), before);
    close(pair[0]);
    close(pair[1]);
}

// ------------------------------------------------------------------------------------------------
// A proxy that drains

typedef struct draining {
    world *w;
    util_gate waits;
    pthread_t thread;
} draining;

static void *draining_run(void *arg)
{
    draining *d = arg;
    util_waits = &d->waits;
    CHECK_INT(revdial_proxy_drain(d->w->proxy, UTIL_WAIT_MS), 0);
    return NULL;
}

// Returns when it has done what it can do, and waits for other threads.
static void draining_start(draining *d, world *w)
{
    d->w = w;
    util_gate_init(&d->waits);
    d->thread = util_thread(draining_run, d);
    CHECK(util_gate_wait(&d->waits, 1));
}

static int64_t world_dials(world *w)
{
    pthread_mutex_lock(&w->proxy->own.lock);
    int64_t count = w->proxy->next_dial;
    pthread_mutex_unlock(&w->proxy->own.lock);
    return count;
}

// Another thread than the one that accepts has yet to ask the session for a stream.
NEW_WORLD_TEST(a_client_that_was_accepted_before_a_drain_is_served)
{
    for (int waits = 0; waits < 2; waits++) {
        util_held_loop held;
        draining d;
        char at[80];
        revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
        x.dial.flags = waits ? REVDIAL_DIAL_WAIT : 0;
        w->acfg.url = NULL;
        w->pcfg.common.io_threads = 2;
        REQUIRE(world_open_proxy(w));
        w->proxy->next_loop = 1;
        REQUIRE(world_open_agent(w, 0));
        CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
        world_expose(w, &x, at);
        util_loop_hold(&held, w->proxy->loops[1]);
        int fd = raw_connect(at);
        UTIL_EVENTUALLY(world_dials(w) == 1);
        draining_start(&d, w);
        util_loop_let_go(&held);
        CHECK(raw_echoes(fd));
        close(fd);
        pthread_join(d.thread, NULL);
        world_close(w);
    }
}

typedef struct coming {
    util_gate comes, goes;
} coming;

static void coming_on_session(void *ud, revdial_session *s, int state, const revdial_err *why)
{
    coming *c = ud;
    (void)s;
    (void)why;
    if (state != REVDIAL_UP) return;
    util_gate_add(&c->comes, 1);
    util_gate_wait(&c->goes, 1);
}

NEW_WORLD_TEST(a_client_that_waits_is_served_by_a_backend_that_registered_before_a_drain)
{
    coming c;
    draining d;
    char at[80];
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
    x.dial.flags = REVDIAL_DIAL_WAIT;
    util_gate_init(&c.comes);
    util_gate_init(&c.goes);
    w->pcfg.common.io_threads = 2;
    w->pcfg.on_session = coming_on_session;
    w->pcfg.ud = &c;
    REQUIRE(world_open_proxy(w));
    world_expose(w, &x, at);
    int fd = raw_connect(at);
    UTIL_EVENTUALLY(world_dials(w) == 1);
    w->proxy->next_loop = 1;
    w->acfg.url = w->url;
    w->agents[0] = revdial_agent_start(&w->acfg, NULL);
    CHECK(w->agents[0] && util_gate_wait(&c.comes, 1));
    draining_start(&d, w);
    util_gate_add(&c.goes, 1);
    CHECK(raw_echoes(fd));
    close(fd);
    pthread_join(d.thread, NULL);
}

static void *dial_that_waits(void *arg)
{
    const revdial_dial_opts opts = {.flags = REVDIAL_DIAL_WAIT, .timeout_ms = -1};
    called *c = arg;
    c->st = revdial_dial(c->w->proxy, "gone", &opts, &c->err);
    util_gate_add(&c->done, 1);
    return NULL;
}

NEW_WORLD_TEST(clients_that_wait_for_a_backend_that_is_not_there_hear_at_once_that_the_proxy_drains)
{
    const revdial_dial_opts opts = {.flags = REVDIAL_DIAL_WAIT, .timeout_ms = -1};
    const revdial_expose x = {.listen = "127.0.0.1:0", .name = "gone", .dial = opts};
    called c[3];
    draining d;
    char at[80], byte;
    size_t len;
    for (int i = 0; i < 3; i++) called_init(&c[i], w);
    REQUIRE(world_open(w));
    revdial_stream *st = world_dial(w, "echo", 0, NULL);  // so that the drain goes on
    world_expose(w, &x, at);
    pthread_t t = util_thread(dial_that_waits, &c[0]);
    CHECK(revdial_dial_async(w->proxy, "gone", &opts, on_dial, &c[1]) > 0);
    int fd = raw_connect(at);
    UTIL_EVENTUALLY(world_dials(w) == 2);
    draining_start(&d, w);
    CHECK(revdial_dial_async(w->proxy, "gone", &opts, on_dial, &c[2]) > 0);
    for (int i = 0; i < 3; i++) {
        CHECK(util_gate_wait(&c[i].done, 1) && !c[i].st);
        CHECK_INT(c[i].err.code, REVDIAL_EDRAINING);
    }
    CHECK_INT(raw_drain(fd, &byte, 1, &len), -1);
    close(fd);
    revdial_close(st);
    pthread_join(t, NULL);
    pthread_join(d.thread, NULL);
}

// Wants four bytes.
static int slow_route(void *ud, revdial_route *r)
{
    util_gate_add(ud, 1);
    if (r->len < 4) return REVDIAL_ROUTE_MORE;
    r->name = "cam-1";
    return REVDIAL_ROUTE_DIAL;
}

NEW_WORLD_TEST(a_client_that_was_accepted_before_a_drain_has_a_second_to_say_where_it_goes)
{
    for (int is_silent = 0; is_silent < 2; is_silent++) {
        util_gate asked;
        draining d;
        char at[80], buf[8];
        size_t len;
        revdial_expose x = {.listen = "127.0.0.1:0", .route = slow_route, .route_ud = &asked};
        util_gate_init(&asked);
        w->acfg.url = NULL;
        REQUIRE(world_open(w));
        world_expose(w, &x, at);
        util_clock_stop();
        int fd = raw_connect(at);
        CHECK(raw_say(fd, "pi"));
        CHECK(util_gate_wait(&asked, 1));
        draining_start(&d, w);
        if (is_silent) {
            util_clock_advance_ms(1000);
            util_settle(w->proxy->loops[0]);
            CHECK_INT(raw_drain(fd, buf, sizeof buf, &len), -1);
        } else {
            CHECK(raw_say(fd, "ng") && raw_read_all(fd, buf, 4) && memcmp(buf, "ping", 4) == 0);
        }
        util_clock_run();
        close(fd);
        pthread_join(d.thread, NULL);
        world_close(w);
    }
}

// Takes the client, and expects to dial for it.
typedef struct taker {
    world *w;
    util_gate taken;
    int fd;
} taker;

static int taking_route(void *ud, revdial_route *r)
{
    taker *t = ud;
    t->fd = r->fd;
    revdial_proxy_expect(t->w->proxy, 1);
    util_gate_add(&t->taken, 1);
    return REVDIAL_ROUTE_TAKE;
}

NEW_WORLD_TEST(a_drain_waits_for_the_dial_of_a_client_that_was_taken_for_a_second)
{
    for (int is_late = 0; is_late < 2; is_late++) {
        taker t = {w, UTIL_GATE, -1};
        draining d;
        char at[80];
        revdial_err err = {0};
        revdial_expose x = {.listen = "127.0.0.1:0", .route = taking_route, .route_ud = &t};
        w->acfg.url = NULL;
        REQUIRE(world_open(w));
        world_expose(w, &x, at);
        int fd = raw_connect(at);
        CHECK(raw_say(fd, "x") && util_gate_wait(&t.taken, 1));
        draining_start(&d, w);
        if (is_late) UTIL_EVENTUALLY(revdial_proxy_list(w->proxy, NULL, NULL, 0) == 0);
        revdial_stream *st = world_dial(w, "echo", 0, &err);
        CHECK((st != NULL) == !is_late);
        revdial_proxy_expect(w->proxy, -1);
        revdial_close(st);
        pthread_join(d.thread, NULL);
        close(t.fd);
        close(fd);
        world_close(w);
    }
}

typedef struct waiting {
    world *w;
    util_gate waits;
    int got;
} waiting;

static void *waiting_run(void *ud)
{
    waiting *wait = ud;
    util_waits = &wait->waits;
    wait->got = revdial_proxy_wait(wait->w->proxy, "cam-1", 2, UTIL_WAIT_MS);
    return NULL;
}

WORLD_TEST(whoever_waits_for_backends_is_told_that_the_proxy_drains)
{
    waiting wait = {w, UTIL_GATE, 0};
    draining d;
    pthread_t t;
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    REQUIRE(st != NULL);
    REQUIRE(pthread_create(&t, NULL, waiting_run, &wait) == 0);
    CHECK(util_gate_wait(&wait.waits, 1));
    draining_start(&d, w);
    pthread_join(t, NULL);
    CHECK_INT(wait.got, REVDIAL_EDRAINING);
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-2", 1, -1), REVDIAL_EDRAINING);
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-2", 0, -1), 0);
    revdial_close(st);
    pthread_join(d.thread, NULL);
}

// The drain that gives up second finds that nothing is expected any more.
WORLD_TEST(two_drains_keep_their_time_when_a_dial_that_is_expected_does_not_come)
{
    draining d[2];
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    REQUIRE(st != NULL);
    revdial_proxy_expect(w->proxy, 1);
    util_clock_stop();
    for (int i = 0; i < 2; i++) draining_start(&d[i], w);
    util_clock_advance_ms(1000);
    for (int i = 0; i < 2; i++) CHECK(util_gate_wait(&d[i].waits, 2));
    util_clock_run();
    CHECK(util_log_wait(&w->states, REVDIAL_DRAINING, 1, NULL));
    CHECK_INT(revdial_write(st, "x", 1), 1);
    revdial_close(st);
    for (int i = 0; i < 2; i++) pthread_join(d[i].thread, NULL);
    revdial_proxy_expect(w->proxy, -1);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
