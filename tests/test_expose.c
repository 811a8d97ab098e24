// Exposed ports: clients of the proxy that become streams without a thread of their own.
#include "runtime_util.h"

typedef struct told {
    util_gate gate;
    pthread_mutex_t lock;
    revdial_client last;
    revdial_err why;
    char address[80];
} told;

static told clients = {.gate = UTIL_GATE, .lock = PTHREAD_MUTEX_INITIALIZER};

static void on_client(void *ud, const revdial_client *client)
{
    (void)ud;
    pthread_mutex_lock(&clients.lock);
    clients.last = *client;
    memset(&clients.why, 0, sizeof clients.why);
    if (client->why) clients.why = *client->why;
    snprintf(clients.address, sizeof clients.address, "%s", client->address);
    pthread_mutex_unlock(&clients.lock);
    util_gate_add(&clients.gate, 1);
}

// A world whose proxy exposes what x says. Returns its port's address in `at`.
static int exposed_open(world *w, const revdial_expose *x, char *at, size_t size)
{
    util_gate_init(&clients.gate);
    w->pcfg.exposes = x;
    w->pcfg.expose_count = 1;
    w->pcfg.on_client = on_client;
    return world_open(w) && revdial_proxy_address(w->proxy, 1, at, size) > 0;
}

TEST(a_stream_of_a_client_is_listed_with_where_it_comes_from)
{
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1", .dial = {.target = "t:1"}};
    char at[80], byte;
    revdial_stream_info st;
    revdial_session *s = NULL;
    world w;
    world_init(&w);
    if (exposed_open(&w, &x, at, sizeof at)) {
        int fd = raw_connect(at);
        CHECK(raw_say(fd, "h"));
        CHECK_INT(recv(fd, &byte, 1, MSG_WAITALL), 1);
        if (CHECK_INT(revdial_proxy_list(w.proxy, NULL, &s, 1), 1)) {
            CHECK_INT(revdial_session_list_streams(s, 0, &st, 1), 1);
            CHECK(strncmp(st.client, "127.0.0.1:", 10) == 0);
            CHECK_STR(st.target, "t:1");
            close(fd);
            UTIL_EVENTUALLY(revdial_session_list_streams(s, 0, NULL, 0) == 0);
        }
        CHECK(util_gate_wait(&clients.gate, 1));
        CHECK_STR(st.client, clients.address);
        revdial_session_unref(s);
    }
    world_close(&w);
}

TEST(a_client_of_an_exposed_port_reaches_the_backend_and_half_closes)
{
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
    char at[80], buf[64];
    size_t len;
    world w;
    world_init(&w);
    if (exposed_open(&w, &x, at, sizeof at)) {
        int fd = raw_connect(at);
        CHECK(raw_say(fd, "hello"));
        shutdown(fd, SHUT_WR);
        CHECK_INT(raw_drain(fd, buf, sizeof buf, &len), 0);
        CHECK_STR(buf, "hello");
        CHECK(util_gate_wait(&clients.gate, 1));
        CHECK_INT(clients.last.is_relayed, 1);
        CHECK_INT(clients.last.expose, 0);
        CHECK_INT(clients.last.moved[0], 5);
        CHECK_INT(clients.last.moved[1], 5);
        CHECK_INT(clients.why.code, 0);
        CHECK(strncmp(clients.address, "127.0.0.1:", 10) == 0);
        close(fd);
    }
    world_close(&w);
}

TEST(what_a_port_asks_for_goes_with_each_dial)
{
    static const revdial_kv meta[] = {{"do", "source"}, {"n", "1000"}};
    char name[] = "cam-1", listen[] = "127.0.0.1:0", at[80], buf[2000];
    revdial_expose x = {.listen = listen, .name = name};
    size_t len;
    world w;
    world_init(&w);
    x.dial.meta = meta;
    x.dial.meta_count = 2;
    if (exposed_open(&w, &x, at, sizeof at)) {
        memset(name, 'x', 5);  // it has its own copy
        memset(listen, 'x', 5);
        for (int i = 0; i < 3; i++) {
            int fd = raw_connect(at);
            shutdown(fd, SHUT_WR);
            CHECK_INT(raw_drain(fd, buf, sizeof buf, &len), 0);
            CHECK_INT(len, 1000);
            CHECK(util_matches((const uint8_t *)buf, 1000, 0, 1));
            close(fd);
        }
    }
    world_close(&w);
}

TEST(a_client_whose_dial_fails_is_reset_and_why_is_told)
{
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "nobody"};
    char at[80];
    size_t len;
    world w;
    world_init(&w);
    if (exposed_open(&w, &x, at, sizeof at)) {
        int before = util_fds();
        int fd = raw_connect(at);
        CHECK_INT(raw_drain(fd, at, sizeof at, &len), -1);
        CHECK_INT(len, 0);
        CHECK(util_gate_wait(&clients.gate, 1));
        CHECK_INT(clients.last.is_relayed, 0);
        CHECK_INT(clients.why.code, REVDIAL_ENOBACKEND);
        close(fd);
        CHECK_INT(util_fds(), before);
    }
    world_close(&w);
}

// Longer than the moment after which a client is watched, with one I/O thread and with several.
TEST(a_client_that_goes_away_while_it_is_dialled_for_ends_its_dial)
{
    for (unsigned threads = 1; threads <= 3; threads += 2) {
        static const revdial_kv meta[] = {{"do", "silent"}};
        revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
        char at[80];
        world w;
        world_init(&w);
        w.pcfg.common.io_threads = threads;
        x.dial.meta = meta;
        x.dial.meta_count = 1;
        x.dial.timeout_ms = -1;
        if (exposed_open(&w, &x, at, sizeof at)) {
            int fd = raw_connect(at);
            CHECK(util_gate_wait(&w.held, 1));
            raw_close_reset(fd);
            CHECK(util_gate_wait(&clients.gate, 1));
            CHECK_INT(clients.last.is_relayed, 0);
            CHECK_INT(clients.why.code, REVDIAL_ECLOSED);
        }
        world_close(&w);
    }
}

// By then it is watched by the first I/O thread, and its session belongs to another.
TEST(a_client_whose_dial_takes_long_is_joined_or_refused_all_the_same)
{
    for (int refused = 0; refused < 2; refused++) {
        static const revdial_kv meta[] = {{"do", "silent"}};
        revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
        char at[80], buf[64];
        size_t len;
        world w;
        world_init(&w);
        w.pcfg.common.io_threads = 3;
        x.dial.meta = meta;
        x.dial.meta_count = 1;
        x.dial.timeout_ms = refused ? 120 : -1;
        if (exposed_open(&w, &x, at, sizeof at)) {
            int fd = raw_connect(at);
            CHECK(util_gate_wait(&w.held, 1));
            util_nap_ms(60);        // no event tells that it is watched; without it this tests less
            shutdown(fd, SHUT_WR);  // not a reason to give up
            if (!refused) util_gate_add(&w.go, 1);
            CHECK_INT(raw_drain(fd, buf, sizeof buf, &len), refused ? -1 : 0);
            CHECK(util_gate_wait(&clients.gate, 1));
            CHECK_INT(clients.last.is_relayed, !refused);
            CHECK_INT(clients.why.code, refused ? REVDIAL_ETIMEDOUT : 0);
            close(fd);
        }
        world_close(&w);
    }
}

TEST(an_early_port_sends_what_a_client_says_before_the_backend_has_accepted)
{
    for (int early = 0; early < 2; early++) {
        revdial_expose x = {.listen = "127.0.0.1:0", .name = "raw"};
        char at[80], heard[6] = "", said[8];
        raw_frame f = {0};
        size_t len;
        world w;
        world_init(&w);
        if (early) x.dial.flags = REVDIAL_DIAL_EARLY;
        if (!CHECK(exposed_open(&w, &x, at, sizeof at))) break;
        int backend =
            raw_backend(w.address, "raw", "Revdial-Version: 1\r\nRevdial-Features: promptack\r\n");
        CHECK_INT(revdial_proxy_wait(w.proxy, "raw", 1, UTIL_WAIT_MS), 1);
        int fd = raw_connect(at);
        CHECK(raw_say(fd, "hello"));
        CHECK(raw_frame_await(backend, RAW_WINDOW, &f) && f.flags & RAW_SYN);
        if (early) {
            CHECK(raw_frame_await(backend, RAW_DATA, &f) && f.len == 5);
            CHECK(raw_read_all(backend, heard, 5));
            CHECK_STR(heard, "hello");
        }
        raw_frame_send(backend, RAW_WINDOW, RAW_RST, f.id, 0);
        CHECK_INT(raw_drain(fd, said, sizeof said, &len), -1);
        CHECK(util_gate_wait(&clients.gate, 1));
        CHECK_INT(clients.last.is_relayed, early);
        CHECK_INT(clients.last.moved[0], early ? 5 : 0);
        CHECK_INT(clients.why.code, early ? REVDIAL_ERESET : REVDIAL_EREFUSED);
        close(fd);
        close(backend);
        world_close(&w);
    }
}

// One more backend by hand, in a pool that has so many then.
static int raw_pooled(world *w, const char *instance, unsigned pool)
{
    char more[120];
    snprintf(more, sizeof more,
             "Revdial-Version: 1\r\nRevdial-Instance: %s\r\n"
             "Revdial-Features: promptack, rstcode\r\n",
             instance);
    int fd = raw_backend(w->address, "raw", more);
    CHECK_INT(revdial_proxy_wait(w->proxy, "raw", pool, UTIL_WAIT_MS), (int)pool);
    return fd;
}

// Nobody has answered, and here is what the client said. Returns the stream, 0 if it is not.
static uint32_t raw_hears_hello(int fd)
{
    raw_frame f = {0};
    char heard[6] = "";
    if (!CHECK(raw_frame_await(fd, RAW_WINDOW, &f) && f.flags & RAW_SYN)) return 0;
    if (!CHECK(raw_frame_await(fd, RAW_DATA, &f) && f.len == 5)) return 0;
    CHECK(raw_read_all(fd, heard, 5));
    CHECK_STR(heard, "hello");
    return f.id;
}

TEST(what_a_client_says_at_once_goes_with_its_dial_and_to_the_next_backend_if_one_refuses)
{
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "raw"};
    util_held_loop held;
    char at[80], said[8];
    size_t len;
    world w;
    world_init(&w);
    if (exposed_open(&w, &x, at, sizeof at)) {
        int first = raw_pooled(&w, "1", 1);
        util_loop_hold(&held, w.proxy->loops[0]);
        int fd = raw_connect(at);
        CHECK(raw_say(fd, "hello"));
        util_loop_let_go(&held);
        uint32_t id = raw_hears_hello(first);
        int second = raw_pooled(&w, "2", 2);
        raw_frame_send(first, RAW_WINDOW, RAW_RST, id, REVDIAL_RESET_REFUSED);
        id = raw_hears_hello(second);
        raw_frame_send(second, RAW_WINDOW, RAW_ACK, id, 0);
        raw_frame_send(second, RAW_DATA, 0, id, 3);
        CHECK(raw_send(second, "bye", 3));
        raw_frame_send(second, RAW_WINDOW, RAW_FIN, id, 0);
        CHECK_INT(raw_drain(fd, said, sizeof said, &len), 0);
        CHECK_INT(len, 3);
        close(fd);
        CHECK(util_gate_wait(&clients.gate, 1));
        CHECK_INT(clients.last.moved[0], 5);
        CHECK_INT(clients.last.moved[1], 3);
        CHECK_INT(clients.why.code, 0);
        close(first);
        close(second);
    }
    world_close(&w);
}

// More than goes out with the dial, and the end behind it: all of it is there when it is accepted.
TEST(what_a_client_says_before_it_is_accepted_arrives_whole_and_in_order)
{
    static const revdial_kv meta[] = {{"do", "echo"}};
    static const size_t sizes[] = {0, 5, REVDIAL_EARLY_MAX, REVDIAL_EARLY_MAX + 1, 30000};
    static char sent[30000], back[30001];
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
    util_held_loop held;
    char at[80];
    size_t len;
    world w;
    world_init(&w);
    for (size_t i = 0; i < sizeof sent; i++) sent[i] = (char)(i * 31 >> 3);
    x.dial.meta = meta;
    x.dial.meta_count = 1;
    if (exposed_open(&w, &x, at, sizeof at))
        for (int i = 0; i < (int)(sizeof sizes / sizeof *sizes); i++) {
            util_loop_hold(&held, w.proxy->loops[0]);
            int fd = raw_connect(at);
            CHECK(sizes[i] == 0 || raw_send(fd, sent, sizes[i]));
            shutdown(fd, SHUT_WR);
            util_loop_let_go(&held);
            CHECK_INT(raw_drain(fd, back, sizeof back, &len), 0);
            CHECK_INT(len, (long long)sizes[i]);
            CHECK(memcmp(back, sent, sizes[i]) == 0);
            close(fd);
            CHECK(util_gate_wait(&clients.gate, i + 1));
            CHECK_INT(clients.last.moved[0], (long long)sizes[i]);
            CHECK_INT(clients.why.code, 0);
        }
    world_close(&w);
}

TEST(a_client_that_was_gone_before_it_was_accepted_is_not_dialled_for)
{
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
    util_held_loop held;
    char at[80];
    world w;
    world_init(&w);
    if (exposed_open(&w, &x, at, sizeof at)) {
        util_loop_hold(&held, w.proxy->loops[0]);
        raw_close_reset(raw_connect(at));
        util_loop_let_go(&held);
        CHECK(util_gate_wait(&clients.gate, 1));
        CHECK_INT(clients.last.is_relayed, 0);
        CHECK_INT(clients.why.code, REVDIAL_ECLOSED);
        CHECK_INT(clients.why.sys, ECONNRESET);
        CHECK_INT(w.begun.count, 0);
    }
    world_close(&w);
}

// Or those of a backend that is away would take the descriptors that it needs to come back.
TEST(clients_that_wait_are_bounded_and_one_more_is_accepted_when_it_is_its_turn)
{
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "later", .max_waiting = 2};
    struct linger reset = {1, 0};
    char at[80], buf[8];
    int fds[4];
    world w;
    world_init(&w);
    x.dial.flags = REVDIAL_DIAL_WAIT;
    x.dial.timeout_ms = -1;
    if (exposed_open(&w, &x, at, sizeof at)) {
        int before = atomic_load(&util_accepts);
        for (int i = 0; i < 4; i++) fds[i] = raw_connect(at);
        UTIL_EVENTUALLY(atomic_load(&util_accepts) == before + 2);
        util_settle(w.proxy->loops[0]);
        CHECK_INT(atomic_load(&util_accepts), before + 2);
        // One of those that wait goes away: the third has its place, not the fourth.
        setsockopt(fds[0], SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        close(fds[0]);
        CHECK(util_gate_wait(&clients.gate, 1));
        CHECK_INT(clients.why.code, REVDIAL_ECLOSED);
        UTIL_EVENTUALLY(atomic_load(&util_accepts) == before + 3);
        util_settle(w.proxy->loops[0]);
        CHECK_INT(atomic_load(&util_accepts), before + 3);
        w.acfg.name = "later";
        CHECK(world_open_agent(&w, 1));
        for (int i = 1; i < 4; i++) {
            CHECK(raw_say(fds[i], "x"));
            CHECK_INT(raw_read(fds[i], buf, 1), 1);
        }
        for (int i = 1; i < 4; i++) close(fds[i]);
    }
    world_close(&w);
}

// So that the limit leaves `count` more to what may not have those that are kept.
static void leave_descriptors(int count)
{
    int next = dup(0);
    close(next);
    atomic_store(&util_fd_limit, (next + count) * 8 / 7 + 1);
}

TEST(clients_leave_descriptors_for_backends_and_are_accepted_once_there_are_more)
{
    enum { CLIENTS = 40 };
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "later"};
    char at[80];
    int fds[CLIENTS];
    world w;
    world_init(&w);
    x.dial.flags = REVDIAL_DIAL_WAIT;
    x.dial.timeout_ms = -1;
    leave_descriptors(20);
    if (exposed_open(&w, &x, at, sizeof at)) {
        leave_descriptors(20);
        int before = atomic_load(&util_accepts);
        for (int i = 0; i < CLIENTS; i++) fds[i] = raw_connect(at);
        int late = raw_backend(w.address, "late", NULL);
        CHECK(late >= 0);
        util_settle(w.proxy->loops[0]);
        CHECK(atomic_load(&util_accepts) < before + CLIENTS);
        atomic_store(&util_fd_limit, 0);
        UTIL_EVENTUALLY(atomic_load(&util_accepts) == before + CLIENTS + 1);
        for (int i = 0; i < CLIENTS; i++) close(fds[i]);
        close(late);
    }
    atomic_store(&util_fd_limit, 0);
    world_close(&w);
}

enum { UNIX_SIZE = 64 };

// A world whose proxy exposes a backend on a unix socket, in a directory of its own that is to be
// removed. Returns its address in `at`.
static int unix_open(world *w, const char *backend, char *dir, char at[UNIX_SIZE])
{
    char listen[UNIX_SIZE];
    revdial_expose x = {.listen = listen, .name = backend};
    if (!mkdtemp(dir)) return test_fail(__FILE__, __LINE__, "no directory");
    snprintf(listen, sizeof listen, "unix:%s/s", dir);
    if (!exposed_open(w, &x, at, UNIX_SIZE)) return 0;
    CHECK_STR(at, listen);
    return 1;
}

static int unix_connect(const char *at)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(to.sun_path, sizeof to.sun_path, "%s", at + 5);
    CHECK_INT(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

TEST(an_exposed_unix_socket_is_there_while_the_proxy_listens)
{
    char dir[] = "/tmp/revdial-test-XXXXXX", at[UNIX_SIZE] = "", buf[64];
    size_t len;
    world w;
    world_init(&w);
    if (unix_open(&w, "cam-1", dir, at)) {
        int fd = unix_connect(at);
        CHECK(raw_say(fd, "x"));
        shutdown(fd, SHUT_WR);
        CHECK_INT(raw_drain(fd, buf, sizeof buf, &len), 0);
        CHECK_STR(buf, "x");
        CHECK(util_gate_wait(&clients.gate, 1));
        CHECK_STR(clients.address, "unix");
        close(fd);
    }
    world_close(&w);
    CHECK_INT(access(at + 5, F_OK), -1);
    rmdir(dir);
}

// Which it would not be if its bytes had been read: then a unix socket that is closed looks like
// EOF.
TEST(a_client_of_a_unix_socket_that_has_spoken_is_told_that_its_dial_failed)
{
    char dir[] = "/tmp/revdial-test-XXXXXX", at[UNIX_SIZE] = "", buf[64];
    util_held_loop held;
    size_t len;
    world w;
    world_init(&w);
    if (unix_open(&w, "nobody", dir, at)) {
        int fd;
        util_loop_hold(&held, w.proxy->loops[0]);
        fd = unix_connect(at);
        CHECK(raw_say(fd, "hello"));
        util_loop_let_go(&held);
        CHECK_INT(raw_drain(fd, buf, sizeof buf, &len), -1);
        CHECK(util_gate_wait(&clients.gate, 1));
        CHECK_INT(clients.why.code, REVDIAL_ENOBACKEND);
        close(fd);
    }
    world_close(&w);
    rmdir(dir);
}

TEST(closing_the_proxy_tells_of_every_client_it_had)
{
    static const revdial_kv meta[] = {{"do", "silent"}};
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
    enum { CLIENTS = 20 };
    int fds[CLIENTS];
    char at[80];
    size_t len;
    world w;
    world_init(&w);
    x.dial.meta = meta;
    x.dial.meta_count = 1;
    if (exposed_open(&w, &x, at, sizeof at)) {
        for (int i = 0; i < CLIENTS; i++) fds[i] = raw_connect(at);
        CHECK(util_gate_wait(&w.held, CLIENTS));
        revdial_proxy_stop(w.proxy);
        w.proxy = NULL;
        CHECK_INT(util_gate_count(&clients.gate), CLIENTS);
        for (int i = 0; i < CLIENTS; i++) {
            CHECK_INT(raw_drain(fds[i], at, sizeof at, &len), -1);
            close(fds[i]);
        }
    }
    world_close(&w);
}

TEST(a_port_that_makes_no_sense_is_refused_with_a_reason)
{
    static const revdial_expose rows[] = {
        {.listen = NULL, .name = "cam-1"},
        {.listen = "127.0.0.1:0", .name = NULL},
        {.listen = "127.0.0.1:0", .name = "not a name"},
        {.listen = "127.0.0.1:0", .name = "cam-1", .idle_ms = -1},
        {.listen = "127.0.0.1", .name = "cam-1"},
        {.listen = "127.0.0.1:70000", .name = "cam-1"},
    };
    int before = util_fds();
    world w;
    world_init(&w);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        revdial_err err = {0};
        w.pcfg.exposes = &rows[i];
        w.pcfg.expose_count = 1;
        CHECK(revdial_proxy_start(&w.pcfg, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_EINVAL);
        CHECK(err.msg[0]);
    }
    w.pcfg.exposes = NULL;
    CHECK(revdial_proxy_start(&w.pcfg, NULL) == NULL);
    CHECK_INT(util_fds(), before);
    world_close(&w);
}

static pthread_mutex_t heap_lock = PTHREAD_MUTEX_INITIALIZER;

static void *locked_alloc(void *ud, void *ptr, size_t old_size, size_t new_size)
{
    pthread_mutex_lock(&heap_lock);
    void *p = test_heap_alloc(ud, ptr, old_size, new_size);
    pthread_mutex_unlock(&heap_lock);
    return p;
}

// The n-th allocation from now on fails; 0: none.
static void heap_fail(test_heap *h, size_t n)
{
    pthread_mutex_lock(&heap_lock);
    h->fail_at = n ? h->calls + n : 0;
    pthread_mutex_unlock(&heap_lock);
}

// Whatever the n-th allocation was for, the client gets an end and nothing is left behind.
TEST(a_client_that_finds_no_memory_is_reset_or_served)
{
    test_heap heap = {0};
    for (size_t n = 1; n < 10; n++) {
        revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
        char at[80], buf[64];
        size_t len;
        world w;
        world_init(&w);
        w.pcfg.common.alloc = locked_alloc;
        w.pcfg.common.alloc_ud = &heap;
        if (exposed_open(&w, &x, at, sizeof at)) {
            heap_fail(&heap, n);
            int fd = raw_connect(at);
            int said = raw_say(fd, "x");  // or that was where the reset was told
            shutdown(fd, SHUT_WR);
            int end = raw_drain(fd, buf, sizeof buf, &len);
            if (said && end != -1 && len != 1)
                test_fail(__FILE__, __LINE__, "%zu: end %d after %zu bytes", n, end, len);
            close(fd);
            heap_fail(&heap, 0);
        }
        world_close(&w);
        CHECK_INT(heap.live_blocks, 0);
        CHECK_INT(heap.live_bytes, 0);
    }
}

TEST(a_limited_rate_stops_the_client_of_a_port_by_its_own_tcp)
{
    static const revdial_kv meta[2][2] = {{{"do", "source"}, {"n", "1000000"}},
                                          {{"do", "sink"}, {"n", "0"}}};
    for (int up = 0; up < 2; up++) {
        revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
        static char bytes[1000000];
        char at[80], ok[3] = "";
        world w;
        world_init(&w);
        x.dial.meta = meta[up];
        x.dial.meta_count = 2;
        w.pcfg.common.limits.session_rate = 2000000;
        if (exposed_open(&w, &x, at, sizeof at)) {
            int fd = raw_connect(at);
            int64_t since = util_now_ms();
            util_fill((uint8_t *)bytes, sizeof bytes, 0, 2);
            CHECK(up ? raw_send(fd, bytes, sizeof bytes) : raw_read_all(fd, bytes, sizeof bytes));
            CHECK(up || util_matches((const uint8_t *)bytes, sizeof bytes, 0, 1));
            shutdown(fd, SHUT_WR);
            CHECK(!up || (raw_read_all(fd, ok, 2) && strcmp(ok, "ok") == 0));
            CHECK(util_now_ms() - since >= (1000000 - 500000 - 131072) / 2000);
            CHECK(util_gate_wait(&clients.gate, 1));
            CHECK_INT(clients.why.code, 0);
            CHECK_INT(clients.last.moved[!up], sizeof bytes);
            CHECK_INT(world_last(&w).is_bad, 0);
            close(fd);
        }
        world_close(&w);
    }
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
