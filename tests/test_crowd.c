// How many clients a port may have, in all and from one source.
#include "runtime_util.h"

typedef struct told {
    util_gate gate;
    pthread_mutex_t lock;
    revdial_err why;
    int seen;  // by the test
} told;

static told clients = {.gate = UTIL_GATE, .lock = PTHREAD_MUTEX_INITIALIZER};

static void on_client(void *ud, const revdial_client *client)
{
    (void)ud;
    pthread_mutex_lock(&clients.lock);
    memset(&clients.why, 0, sizeof clients.why);
    if (client->why) clients.why = *client->why;
    pthread_mutex_unlock(&clients.lock);
    util_gate_add(&clients.gate, 1);
}

// A world with that port. Returns its id, and its address in `at`, of 80 bytes.
static int64_t crowd_open(world *w, revdial_expose *x, char *at)
{
    if (!x->listen) x->listen = "127.0.0.1:0";
    if (!x->name) x->name = "cam-1";
    util_gate_init(&clients.gate);
    clients.seen = 0;
    w->pcfg.on_client = on_client;
    return world_open(w) ? world_expose(w, x, at) : 0;
}

// A new client that is refused. Returns why.
static revdial_err refused(int fd)
{
    char byte;
    size_t len;
    revdial_err why;
    CHECK_INT(raw_drain(fd, &byte, 1, &len), -1);
    CHECK(util_gate_wait(&clients.gate, ++clients.seen));
    close(fd);
    pthread_mutex_lock(&clients.lock);
    why = clients.why;
    pthread_mutex_unlock(&clients.lock);
    CHECK_INT(why.code, REVDIAL_ELIMIT);
    return why;
}

// It ends, and counts no longer.
static void leave(int fd)
{
    close(fd);
    CHECK(util_gate_wait(&clients.gate, ++clients.seen));
}

NEW_WORLD_TEST(a_port_with_as_many_clients_as_it_may_have_refuses_more_until_one_leaves)
{
    revdial_expose x = {.max_clients = 2};
    revdial_stats stats;
    char at[80];
    REQUIRE(crowd_open(w, &x, at));
    int one = raw_connect(at), two = raw_connect(at), three;
    CHECK(raw_echoes(one) && raw_echoes(two));
    for (int i = 0; i < 3; i++) {
        revdial_err why = refused(raw_connect(at));
        CHECK_INT(why.reset, 0);
        CHECK_STR(why.msg, "the port has as many clients as it may");
    }
    CHECK(raw_echoes(one) && raw_echoes(two));
    revdial_proxy_get_stats(w->proxy, &stats);
    CHECK_INT(stats.clients_refused, 3);
    CHECK_INT(stats.clients_refused_per_source, 0);
    leave(one);
    three = raw_connect(at);
    CHECK(raw_echoes(three) && raw_echoes(two));
    close(two);
    close(three);
}

NEW_WORLD_TEST(one_source_does_not_keep_others_out)
{
    revdial_expose x = {.max_clients_per_source = 2, .max_clients = 5};
    revdial_stats stats;
    char at[80];
    int fds[5];
    REQUIRE(crowd_open(w, &x, at));
    for (int i = 0; i < 4; i++) {
        fds[i] = raw_connect_from(at, 2 + i / 2);
        CHECK(raw_echoes(fds[i]));
    }
    CHECK_INT(refused(raw_connect_from(at, 2)).reset, REVDIAL_RESET_CALM);
    CHECK_INT(refused(raw_connect_from(at, 3)).reset, REVDIAL_RESET_CALM);
    fds[4] = raw_connect_from(at, 4);
    CHECK(raw_echoes(fds[4]));
    CHECK_INT(refused(raw_connect_from(at, 5)).reset, 0);  // the port is full
    revdial_proxy_get_stats(w->proxy, &stats);
    CHECK_INT(stats.clients_refused, 1);
    CHECK_INT(stats.clients_refused_per_source, 2);
    leave(fds[0]);
    fds[0] = raw_connect_from(at, 2);
    CHECK(raw_echoes(fds[0]));
    for (int i = 0; i < 5; i++) close(fds[i]);
}

// A client of a balancer, from there.
static int behind(const char *at, const char *from)
{
    char header[120];
    int fd = raw_connect(at);
    snprintf(header, sizeof header, "PROXY TCP%d %s %s 5 80\r\n", strchr(from, ':') ? 6 : 4, from,
             from);
    CHECK(raw_say(fd, header));
    return fd;
}

NEW_WORLD_TEST(the_source_is_whom_a_trusted_balancer_names_and_a_network_of_ipv6_is_one)
{
    static const char *const others[] = {"2001:db8:0:1::1", "192.0.2.7", "192.0.2.8",
                                         "::ffff:192.0.2.9"};
    revdial_expose x = {.max_clients_per_source = 1, .trusted_proxies = "127.0.0.0/8"};
    char at[80];
    int fds[5];
    REQUIRE(crowd_open(w, &x, at));
    fds[4] = behind(at, "2001:db8::1");
    CHECK(raw_echoes(fds[4]));
    CHECK_INT(refused(behind(at, "2001:db8::ffff:2")).reset, REVDIAL_RESET_CALM);
    for (int i = 0; i < 4; i++) {
        fds[i] = behind(at, others[i]);
        CHECK(raw_echoes(fds[i]));
        CHECK_INT(refused(behind(at, others[i])).reset, REVDIAL_RESET_CALM);
    }
    CHECK_INT(refused(behind(at, "192.0.2.9")).reset, REVDIAL_RESET_CALM);
    for (int i = 0; i < 5; i++) close(fds[i]);
}

NEW_WORLD_TEST(a_thousand_sources_that_have_left_are_forgotten)
{
    revdial_expose x = {.max_clients_per_source = 1, .trusted_proxies = "127.0.0.0/8"};
    revdial_stats before, after;
    char at[80], from[40];
    REQUIRE(crowd_open(w, &x, at));
    leave(behind(at, "192.0.2.7"));
    revdial_proxy_get_stats(w->proxy, &before);
    for (int i = 0; i < 1000; i++) {
        snprintf(from, sizeof from, "2001:db8:%x::1", i);
        leave(behind(at, from));
    }
    int fd = behind(at, from);
    CHECK(raw_echoes(fd));
    close(fd);
    revdial_proxy_get_stats(w->proxy, &after);
    CHECK_INT(after.clients_refused_per_source, before.clients_refused_per_source);
}

NEW_WORLD_TEST(a_port_that_takes_a_socket_over_counts_on)
{
    revdial_expose x = {.max_clients = 2};
    revdial_err err = {0};
    char at[80];
    int64_t id = crowd_open(w, &x, at);
    REQUIRE(id);
    int one = raw_connect(at), two = raw_connect(at);
    CHECK(raw_echoes(one) && raw_echoes(two));
    x.instead_of = id;
    x.max_clients = 3;
    id = revdial_proxy_expose(w->proxy, &x, &err);
    REQUIRE(id > 0);
    int three = raw_connect(at);
    CHECK(raw_echoes(three));
    refused(raw_connect(at));
    leave(one);
    one = raw_connect(at);
    CHECK(raw_echoes(one));
    x.instead_of = id;
    x.max_clients = 0;  // no limit any more
    REQUIRE(revdial_proxy_expose(w->proxy, &x, &err) > 0);
    int four = raw_connect(at);
    CHECK(raw_echoes(four));
    close(one);
    close(two);
    close(three);
    close(four);
}

NEW_WORLD_TEST(clients_of_a_unix_socket_have_no_source)
{
    char path[64], listen[80], at[80];
    revdial_expose x = {.listen = listen, .max_clients = 3, .max_clients_per_source = 1};
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int fds[4];
    snprintf(path, sizeof path, "/tmp/revdial-crowd-%ld", (long)getpid());
    snprintf(listen, sizeof listen, "unix:%s", path);
    snprintf(to.sun_path, sizeof to.sun_path, "%s", path);
    REQUIRE(crowd_open(w, &x, at));
    for (int i = 0; i < 4; i++) {
        fds[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK_INT(connect(fds[i], (struct sockaddr *)&to, sizeof to), 0);
        CHECK_INT(raw_echoes(fds[i]), i < 3);
    }
    for (int i = 0; i < 4; i++) close(fds[i]);
}

// ------------------------------------------------------------------------------------------------
// With a route: "d" dials, "t" takes, "r" is refused with a reply if there is no room.

typedef struct hook {
    atomic_int overs, dones;
    atomic_int done_code, done_reset, over_reset;
    int fd, ends_early;  // of the client that was taken: is it over before the hook returns?
    int64_t crowd;
    char client[80];
    revdial_proxy *proxy;
    util_gate taken;
} hook;

static int hook_route(void *ud, revdial_route *r)
{
    hook *h = ud;
    char what = r->len ? (char)r->data[0] : 'r';
    r->used = r->len > 0;
    if (r->over) {
        atomic_store(&h->over_reset, r->over->reset);
        atomic_fetch_add(&h->overs, 1);
    }
    if (what == 'r' && r->over) {
        r->reply = "full";
        r->reply_len = 4;
        return REVDIAL_ROUTE_REFUSE;
    }
    if (what == 'd') return REVDIAL_ROUTE_DIAL;
    h->fd = r->fd;
    h->crowd = r->crowd;
    snprintf(h->client, sizeof h->client, "%s", r->client);
    if (h->ends_early) revdial_proxy_leave(h->proxy, r->crowd, r->client);
    util_gate_add(&h->taken, 1);
    return REVDIAL_ROUTE_TAKE;
}

static void hook_done(void *ud, revdial_route *r, const revdial_err *why)
{
    hook *h = ud;
    atomic_store(&h->done_code, why ? why->code : 0);
    atomic_store(&h->done_reset, why ? why->reset : 0);
    r->reply = why ? "no" : "ok";
    r->reply_len = 2;
    atomic_fetch_add(&h->dones, 1);
}

static int64_t hook_open(world *w, hook *h, revdial_expose *x, char *at)
{
    memset(h, 0, sizeof *h);
    util_gate_init(&h->taken);
    x->route = hook_route;
    x->route_done = hook_done;
    x->route_ud = h;
    int64_t id = crowd_open(w, x, at);
    h->proxy = w->proxy;
    return id;
}

static int says(const char *at, const char *what, const char *answer)
{
    char buf[8] = "";
    int fd = raw_connect(at);
    CHECK(raw_say(fd, what));
    CHECK(raw_read_all(fd, buf, strlen(answer)));
    CHECK_STR(buf, answer);
    return fd;
}

NEW_WORLD_TEST(a_route_answers_a_client_for_whom_there_is_no_room)
{
    revdial_expose x = {.max_clients_per_source = 2};
    revdial_stats stats;
    hook h;
    char at[80];
    REQUIRE(hook_open(w, &h, &x, at));
    int one = says(at, "d", "ok"), two = says(at, "d", "ok");
    int three = says(at, "d", "no"), four = says(at, "r", "full");
    CHECK_INT(atomic_load(&h.done_code), REVDIAL_ELIMIT);
    CHECK_INT(atomic_load(&h.done_reset), REVDIAL_RESET_CALM);
    CHECK_INT(atomic_load(&h.overs), 2);
    CHECK_INT(atomic_load(&h.over_reset), REVDIAL_RESET_CALM);
    CHECK_INT(atomic_load(&h.dones), 3);
    revdial_proxy_get_stats(w->proxy, &stats);
    CHECK_INT(stats.clients_refused_per_source, 2);
    leave(three);
    leave(four);
    leave(one);
    one = says(at, "d", "ok");
    close(one);
    close(two);
}

NEW_WORLD_TEST(a_client_that_was_refused_and_does_not_close_counts_no_longer)
{
    revdial_expose x = {.name = "nobody", .max_clients = 1};
    hook h;
    char at[80];
    REQUIRE(hook_open(w, &h, &x, at));
    int one = says(at, "d", "no"), two = says(at, "d", "no");
    CHECK_INT(atomic_load(&h.done_code), REVDIAL_ENOBACKEND);
    CHECK_INT(atomic_load(&h.overs), 0);
    leave(one);
    leave(two);
}

NEW_WORLD_TEST(clients_that_were_refused_and_do_not_close_make_room_for_others)
{
    revdial_expose x = {.name = "nobody", .max_waiting = 2};
    hook h;
    char at[80], buf[4] = "";
    REQUIRE(hook_open(w, &h, &x, at));
    util_clock_stop();
    int one = says(at, "d", "no"), two = says(at, "d", "no"), three = raw_connect(at);
    CHECK(raw_say(three, "d"));
    for (int s = 0; s < 4 && !raw_wait(three, POLLIN, 100); s++) util_clock_advance_ms(1000);
    CHECK(raw_read_all(three, buf, 2));  // the others have 5 s to close
    CHECK_STR(buf, "no");
    util_clock_run();
    close(one);
    close(two);
    close(three);
}

NEW_WORLD_TEST(a_client_that_was_taken_counts_until_it_leaves)
{
    revdial_expose x = {.max_clients = 1};
    hook h;
    char at[80];
    int64_t id = hook_open(w, &h, &x, at);
    REQUIRE(id);
    int one = raw_connect(at);
    CHECK(raw_say(one, "t"));
    CHECK(util_gate_wait(&h.taken, 1));
    CHECK_INT(h.crowd, id);
    close(says(at, "d", "no"));
    x.instead_of = id;  // the crowd stays the same
    REQUIRE(revdial_proxy_expose(w->proxy, &x, NULL) > 0);
    close(says(at, "d", "no"));
    revdial_proxy_leave(w->proxy, h.crowd, h.client);
    revdial_proxy_leave(w->proxy, h.crowd, h.client);  // once more means nothing
    int two = says(at, "d", "ok");
    close(says(at, "d", "no"));
    close(two);
    close(one);
    close(h.fd);
}

NEW_WORLD_TEST(a_client_that_was_taken_may_be_over_before_its_hook_returns)
{
    revdial_expose x = {.max_clients = 1};
    hook h;
    char at[80];
    REQUIRE(hook_open(w, &h, &x, at));
    h.ends_early = 1;
    for (int i = 0; i < 3; i++) {
        int fd = raw_connect(at);
        CHECK(raw_say(fd, "t"));
        CHECK(util_gate_wait(&h.taken, i + 1));
        close(fd);
        close(h.fd);
    }
    CHECK_INT(atomic_load(&h.overs), 0);
    close(says(at, "d", "ok"));
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
