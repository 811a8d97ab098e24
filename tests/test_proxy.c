// Listeners, draining and closing a proxy, and what it does for many at once.
#include "runtime_util.h"

// ------------------------------------------------------------------------------------------------
// Listeners, draining, closing

TEST(U21_addresses_that_cannot_be_listened_at_are_errors_and_leak_nothing)
{
    char used[80], list[200], dir[] = "/tmp/revdial-test-XXXXXX";
    world w;
    revdial_err err;
    world_init(&w);
    REQUIRE(mkdtemp(dir) != NULL);
    if (world_open_proxy(&w)) {
        int before = util_fds(), threads = util_threads();
        snprintf(used, sizeof used, "%s", w.address);
        snprintf(list, sizeof list, "127.0.0.1:0,%s", used);
        const char *rows[] = {used,
                              list,
                              "127.0.0.1",
                              "127.0.0.1:65536",
                              "nosuch.invalid:80",
                              "unix:relative",
                              "unix:/nosuchdir/x",
                              "[::1",
                              "192.0.2.1:0"};
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            revdial_proxy_config cfg = w.pcfg;
            cfg.listen = rows[i];
            revdial_proxy *p = revdial_proxy_start(&cfg, &err);
            if (p) test_fail(__FILE__, __LINE__, "%s: opened", rows[i]);
            if (!p && (err.code > -1 || !err.msg[0]))
                test_fail(__FILE__, __LINE__, "%s: %d %s", rows[i], err.code, err.msg);
            if (i == 0) CHECK_INT(err.sys, EADDRINUSE);
            revdial_proxy_stop(p);
        }
        CHECK_INT(util_fds(), before);
        UTIL_EVENTUALLY(util_threads() == threads);
    }
    world_close(&w);
    rmdir(dir);
}

TEST(a_proxy_listens_at_several_addresses_and_tells_each)
{
    char dir[] = "/tmp/revdial-test-XXXXXX", list[200], buf[150], path[100];
    world w;
    world_init(&w);
    REQUIRE(mkdtemp(dir) != NULL);
    snprintf(path, sizeof path, "%s/s", dir);
    snprintf(list, sizeof list, "127.0.0.1:0,unix:%s,127.0.0.1:0", path);
    w.pcfg.listen = list;
    if (world_open_proxy(&w)) {
        int n = revdial_proxy_address(w.proxy, 1, buf, sizeof buf);
        CHECK_INT(n, strlen(buf));
        CHECK(strncmp(buf, "unix:", 5) == 0 && strcmp(buf + 5, path) == 0);
        CHECK_INT(revdial_proxy_address(w.proxy, 1, buf, (size_t)n), REVDIAL_EINVAL);
        CHECK_INT(revdial_proxy_address(w.proxy, 1, buf, (size_t)n + 1), n);
        CHECK(revdial_proxy_address(w.proxy, 2, buf, sizeof buf) > 0);
        CHECK(strcmp(buf, w.address) != 0);
        CHECK_INT(revdial_proxy_address(w.proxy, 3, buf, sizeof buf), REVDIAL_EINVAL);
        snprintf(buf, sizeof buf, "unix:%s", path);
        w.acfg.url = buf;
        CHECK(world_open_agent(&w, 0));
        revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS);
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        CHECK(st != NULL);
        revdial_close(st);
    }
    world_close(&w);
    CHECK_INT(access(path, F_OK), -1);
    rmdir(dir);
}

NEW_WORLD_TEST(blanks_and_empty_items_in_lists_of_addresses_mean_nothing)
{
    char urls[2 * sizeof((world *)0)->url];
    revdial_err err = {0};
    w->pcfg.listen = " , ,";
    CHECK(revdial_proxy_start(&w->pcfg, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_EINVAL);
    w->pcfg.listen = "127.0.0.1:0, 127.0.0.1:0,,\t127.0.0.1:0 ,";
    REQUIRE(world_open_proxy(w));
    char buf[150];
    CHECK(revdial_proxy_address(w->proxy, 2, buf, sizeof buf) > 0);
    CHECK_INT(revdial_proxy_address(w->proxy, 3, buf, sizeof buf), REVDIAL_EINVAL);
    snprintf(urls, sizeof urls, ",, %s ,\t", w->url);
    w->acfg.url = urls;
    CHECK(world_open_agent(w, 0));
    w->acfg.url = " ,";
    CHECK(revdial_agent_start(&w->acfg, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_EINVAL);
}

WORLD_TEST(U22_a_proxy_can_be_opened_again_at_once_where_it_was)
{
    char address[80];
    snprintf(address, sizeof address, "%s", w->address);
    revdial_proxy_stop(w->proxy);
    w->pcfg.listen = address;
    if (CHECK(world_open_proxy(w))) {
        // The agent comes back by itself.
        CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
        revdial_stream *st = world_dial(w, "echo", 0, NULL);
        CHECK(st != NULL);
        revdial_close(st);
    }
}

TEST(drain_lets_streams_end_refuses_new_ones_and_then_ends_the_sessions)
{
    world w;
    char buf[4];
    revdial_err err;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        CHECK(st != NULL);
        CHECK_INT(revdial_proxy_drain(w.proxy, 0), REVDIAL_ETIMEDOUT);
        (void)buf;
        revdial_close(st);
    }
    world_close(&w);
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        revdial_session *s = revdial_agent_wait(w.agents[0], UTIL_WAIT_MS, NULL);
        if (CHECK(st != NULL)) {
            revdial_session_unref(s);
            s = revdial_stream_session(st);
            revdial_session_drain(s, -1);
            CHECK(util_log_wait(&w.states, REVDIAL_DRAINING, 1, NULL));
            CHECK(revdial_session_dial(s, NULL, &err) == NULL);
            CHECK_INT(err.code, REVDIAL_EDRAINING);
            CHECK_INT(revdial_write(st, "ping", 4), 4);
            CHECK_INT(util_read_all(st, buf, 4), 4);
            revdial_close(st);
            CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 1, NULL));
        }
        revdial_session_unref(s);
    }
    world_close(&w);
}

WORLD_TEST(a_drain_that_waits_ends_when_the_last_stream_has)
{
    revdial_stream *st = world_dial(w, "source", 4000000, NULL);
    if (CHECK(st != NULL)) {
        util_read r;
        revdial_pollfd p = {st, 0, POLLIN, 0};
        revdial_poll(&p, 1, UTIL_WAIT_MS);
        revdial_session *s = revdial_stream_session(st);
        revdial_session_drain(s, UTIL_WAIT_MS);
        r = util_read_payload(st, 1);
        CHECK_INT(r.bytes, 4000000);
        CHECK_INT(r.end, 0);
        revdial_close(st);
        CHECK_INT(revdial_proxy_drain(w->proxy, UTIL_WAIT_MS), 0);
        revdial_session_unref(s);
    }
}

static void *drain_for_ever(void *arg)
{
    CHECK_INT(revdial_proxy_drain(arg, -1), REVDIAL_ETIMEDOUT);
    return NULL;
}

WORLD_TEST(a_stop_ends_a_drain_that_another_thread_waits_for)
{
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    pthread_t waits;
    char byte;
    if (!CHECK(st != NULL)) return;
    waits = util_thread(drain_for_ever, w->proxy);
    CHECK(util_log_wait(&w->states, REVDIAL_DRAINING, 1, NULL));
    CHECK_INT(revdial_proxy_stop(w->proxy), 0);
    w->proxy = NULL;
    pthread_join(waits, NULL);
    CHECK_INT(revdial_read(st, &byte, 1), REVDIAL_ECLOSED);
    revdial_close(st);
}

typedef struct waiting {
    revdial_proxy *proxy;
    util_gate began, done;
    int result;
} waiting;

static void *waiting_run(void *arg)
{
    waiting *x = arg;
    util_gate_add(&x->began, 1);
    x->result = revdial_proxy_wait(x->proxy, "nobody", 1, -1);
    util_gate_add(&x->done, 1);
    return NULL;
}

WORLD_TEST(U6_closing_the_proxy_wakes_all_who_wait_for_it)
{
    dialling d[2];
    waiting x;
    called c;
    pthread_t t[3];
    revdial_kv meta = {"do", "silent"};
    memset(d, 0, sizeof d);
    memset(&x, 0, sizeof x);
    called_init(&c, w);
    d[0].name = "nobody";
    d[0].opts.flags = REVDIAL_DIAL_WAIT;
    d[0].opts.timeout_ms = -1;
    d[1].opts.meta = &meta;
    d[1].opts.meta_count = 1;
    d[1].opts.timeout_ms = -1;
    for (int i = 0; i < 2; i++) t[i] = dialling_start(&d[i], w);
    CHECK(util_gate_wait(&w->held, 1));
    revdial_dial_opts opts = {.flags = REVDIAL_DIAL_WAIT, .timeout_ms = -1};
    CHECK(revdial_dial_async(w->proxy, "nobody", &opts, on_dial, &c) > 0);
    x.proxy = w->proxy;
    util_gate_init(&x.began);
    util_gate_init(&x.done);
    t[2] = util_thread(waiting_run, &x);
    util_gate_wait(&x.began, 1);
    util_nap_ms(20);
    revdial_proxy *p = w->proxy;
    revdial_proxy_stop(p);
    w->proxy = NULL;
    CHECK(util_gate_wait(&c.done, 1));
    CHECK_INT(c.err.code, REVDIAL_ECLOSED);
    CHECK(util_gate_wait(&x.done, 1));
    for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
    CHECK_INT(x.result, REVDIAL_ECLOSED);
    for (int i = 0; i < 2; i++) {
        CHECK(d[i].st == NULL);
        CHECK_INT(d[i].err.code, REVDIAL_ECLOSED);
    }
}

WORLD_TEST(a_session_keeps_no_text_of_its_request_once_it_is_up)
{
    revdial_session *s;
    if (!CHECK_INT(revdial_proxy_list(w->proxy, NULL, &s, 1), 1)) return;
    const rvd_proxy_member *m = s->member;
    rvd_stream_lock(s);
    CHECK(m->texts.at == NULL && m->auth.secret == NULL && m->auth.name == NULL);
    CHECK_INT(m->auth.scheme, REVDIAL_AUTH_BEARER);
    rvd_stream_unlock(s);
    revdial_session_unref(s);
}

WORLD_TEST(a_session_that_is_drained_for_too_long_is_cut_and_says_so)
{
    util_state e = {0};
    revdial_stream *st = world_dial(w, "hold", 0, NULL);
    if (CHECK(st != NULL)) {
        char c;
        revdial_session *s = revdial_stream_session(st);
        CHECK_INT(revdial_session_drain(s, 20), 0);
        CHECK(revdial_read(st, &c, 1) < 0);
        UTIL_EVENTUALLY(revdial_stream_error(st, NULL) < 0);
        CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, &e));
        CHECK_INT(e.code, REVDIAL_ETIMEDOUT);
        CHECK_INT(revdial_session_drain(s, 20), 0);  // once more, of a dead one
        revdial_session_unref(s);
    }
    revdial_close(st);
}

NEW_WORLD_TEST(an_idle_session_of_two_live_ends_stays_up_and_is_measured)
{
    w->pcfg.common.limits.keepalive_ms = w->acfg.common.limits.keepalive_ms = 100;  // the least
    w->pcfg.common.limits.dead_after_ms = w->acfg.common.limits.dead_after_ms = 5000;
    REQUIRE(world_open(w));
    revdial_session *s;
    revdial_session_info info = {0};
    if (CHECK_INT(revdial_proxy_list(w->proxy, NULL, &s, 1), 1)) {
        UTIL_EVENTUALLY((revdial_session_get_info(s, &info), info.age_ms > 200));
        CHECK(info.rtt_us > 0);
        CHECK_INT(info.state, REVDIAL_UP);
        revdial_session_unref(s);
    }
    CHECK_INT(util_log_count(&w->sessions, 0, NULL), 1);
}

NEW_WORLD_TEST(a_thousand_streams_at_once_each_get_their_own_bytes_back_and_leave_no_memory)
{
    enum { MANY = 1000 };
    static called c[MANY];
    const revdial_dial_opts patient = {.timeout_ms = UTIL_WAIT_MS};  // threads start slowly
    revdial_stats before, stats;
    w->acfg.max_handlers = MANY + 1;  // the first one may not have left its place yet
    REQUIRE(world_open(w));
    revdial_close(world_dial(w, "echo", 0, NULL));
    CHECK(util_gate_wait(&w->ended, 1));
    UTIL_EVENTUALLY((revdial_proxy_get_stats(w->proxy, &before), before.streams == 0));
    int wrong = 0;
    for (int i = 0; i < MANY; i++) {
        called_init(&c[i], w);
        if (revdial_dial_async(w->proxy, "cam-1", &patient, on_dial, &c[i]) <= 0) wrong++;
    }
    for (uint32_t i = 0; i < MANY; i++) {
        CHECK(util_gate_wait(&c[i].done, 1));
        wrong += !c[i].st || revdial_write(c[i].st, &i, sizeof i) != sizeof i;
    }
    CHECK_INT(wrong, 0);
    for (uint32_t i = 0; i < MANY; i++) {
        uint32_t back = 0;
        wrong += !c[i].st || util_read_all(c[i].st, &back, sizeof back) != sizeof back || back != i;
        revdial_close(c[i].st);
    }
    CHECK_INT(wrong, 0);
    UTIL_EVENTUALLY((revdial_proxy_get_stats(w->proxy, &stats), stats.streams == 0));
    CHECK(util_gate_wait(&w->ended, MANY + 1));
    UTIL_EVENTUALLY((revdial_proxy_get_stats(w->proxy, &stats),
                     stats.memory_bytes < before.memory_bytes + 300000));
}

// ------------------------------------------------------------------------------------------------
// Relays at both ends: clients' sockets at the proxy, a target's at the agent

enum { CLIENTS = 40 };

typedef struct target {
    int listener;
    atomic_int serving;
    util_gate ended;
} target;

typedef struct target_client {
    target *t;
    int fd;
} target_client;

static void *target_serve(void *arg)
{
    target_client *c = arg;
    char buf[8192];
    ssize_t n;
    while ((n = recv(c->fd, buf, sizeof buf, 0)) > 0)
        if (!raw_send(c->fd, buf, (size_t)n)) break;
    close(c->fd);
    util_gate_add(&c->t->ended, 1);
    free(c);
    return NULL;
}

static void *target_accept(void *arg)
{
    target *t = arg;
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (;;) {
        int fd = accept4(t->listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) break;
        target_client *c = malloc(sizeof *c);
        pthread_t thread;
        c->t = t;
        c->fd = fd;
        atomic_fetch_add(&t->serving, 1);
        if (pthread_create(&thread, &detached, target_serve, c) != 0) abort();
    }
    pthread_attr_destroy(&detached);
    return NULL;
}

typedef struct client {
    world *w;
    int id, ok;
} client;

// Sends and checks bytes of its own through a socket, half-closing at the end.
static void *client_run(void *arg)
{
    client *c = arg;
    uint8_t out[4096], in[4096];
    size_t total = 20000 + 1000 * (size_t)c->id, got = 0, sent = 0, unused;
    int fd = revdial_dial_fd(c->w->proxy, "cam-1", NULL, NULL);
    c->ok = fd >= 0;
    while (c->ok && got < total) {
        size_t n = total - sent < sizeof out ? total - sent : sizeof out;
        util_fill(out, n, sent, (unsigned)c->id + 10);
        if (n && !raw_send(fd, out, n)) break;
        sent += n;
        if (n && sent == total) shutdown(fd, SHUT_WR);
        ssize_t r = raw_read(fd, in, sizeof in);
        if (r <= 0) break;
        c->ok &= util_matches(in, (size_t)r, got, (unsigned)c->id + 10);
        got += (size_t)r;
    }
    c->ok &= got == total && raw_drain(fd, (char *)in, sizeof in, &unused) == 0 && unused == 0;
    if (fd >= 0) close(fd);
    return NULL;
}

TEST(clients_through_relays_at_both_ends_get_their_own_bytes_back_while_one_does_not_read)
{
    world w;
    target t = {-1, 0, UTIL_GATE};
    client c[CLIENTS];
    pthread_t threads[CLIENTS];
    int port = 0, ok = 0;
    size_t sent = 0, got = 0;
    char address[32], junk[65536] = "";
    t.listener = raw_listen(64, &port);
    pthread_t acceptor = util_thread(target_accept, &t);
    snprintf(address, sizeof address, "127.0.0.1:%d", port);
    world_init(&w);
    w.acfg.handler = NULL;
    w.acfg.default_target = address;
    if (world_open(&w)) {
        int stalled = revdial_dial_fd(w.proxy, "cam-1", NULL, NULL);  // sends, and never reads
        CHECK(stalled >= 0);
        fcntl(stalled, F_SETFL, O_NONBLOCK);
        while (raw_wait(stalled, POLLOUT, 50)) {
            ssize_t n = send(stalled, junk, sizeof junk, MSG_NOSIGNAL);
            if (n > 0) sent += (size_t)n;
        }
        for (int i = 0; i < CLIENTS; i++) {
            c[i] = (client){&w, i, 0};
            threads[i] = util_thread(client_run, &c[i]);
        }
        for (int i = 0; i < CLIENTS; i++) {
            pthread_join(threads[i], NULL);
            ok += c[i].ok;
        }
        CHECK_INT(ok, CLIENTS);
        shutdown(stalled, SHUT_WR);  // and when it reads at last, it has lost nothing
        ssize_t n;
        while ((n = raw_read(stalled, junk, sizeof junk)) > 0) got += (size_t)n;
        CHECK_INT(n, 0);
        CHECK_INT(got, sent);
        close(stalled);
        CHECK(util_gate_wait(&t.ended, CLIENTS + 1));  // each target's socket has ended
    }
    world_close(&w);
    shutdown(t.listener, SHUT_RDWR);
    pthread_join(acceptor, NULL);
    close(t.listener);
}

static void *closing_run(void *arg)
{
    world *w = arg;
    revdial_proxy_stop(w->proxy);
    w->proxy = NULL;
    util_gate_add(&w->go, 1);
    return NULL;
}

TEST(closing_a_proxy_does_not_wait_long_for_clients_that_do_not_read)
{
    world w;
    int port = 0, listener = raw_listen(1, &port), small = 4096, unsent = 0;
    struct sockaddr_in at;
    memset(&at, 0, sizeof at);
    at.sin_family = AF_INET;
    at.sin_port = htons((uint16_t)port);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    CHECK_INT(connect(fd, (struct sockaddr *)&at, sizeof at), 0);
    int ours = raw_accept(listener);
    world_init(&w);
    if (world_open(&w)) {
        CHECK_INT(revdial_relay(world_dial(&w, "flood", 0, NULL), ours, ours, NULL), 0);
        UTIL_EVENTUALLY(ioctl(ours, TIOCOUTQ, &unsent) == 0 && unsent > 0);
        // By a clock that stands until nothing else happens, and then steps.
        int steps = 0;
        util_clock_stop();
        pthread_t closer = util_thread(closing_run, &w);
        CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 1, NULL));
        while (!util_gate_wait_ms(&w.go, 1, 100) && steps++ < 40) util_clock_advance_ms(100);
        CHECK(util_gate_wait(&w.go, 1));
        util_clock_run();
        pthread_join(closer, NULL);
    }
    close(fd);
    close(listener);
    world_close(&w);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
