// Floods on real sockets, before and after authentication: strangers that wait, drip or storm, a
// hostile backend beside an honest one, a hostile proxy. Rows by the numbers of the tables of
// threats (P, B, X) and of bad input (A).
#include "flood_util.h"

// ------------------------------------------------------------------------------------------------
// Strangers

TEST(P1_P2_a_thousand_connections_that_drip_do_not_keep_a_backend_out)
{
    static const char hello[] = "GET /revdial HTTP/1.1\r\nX: ";
    static drip d = {.hello = hello, .hello_len = sizeof hello - 1};
    for (int from = 1; from <= 2; from++) {  // where the backend is, or elsewhere
        world w;
        world_init(&w);
        if (world_open_proxy(&w) && CHECK(drip_start(&d, w.address, from))) {
            CHECK(world_open_agent(&w, 0));
            CHECK_INT(util_log_count(&w.states, REVDIAL_BACKOFF, NULL), 0);
            int seen = util_gate_count(&d.going);
            CHECK(util_gate_wait(&d.going, seen + 2));  // and it stays
            revdial_stream *st = world_dial(&w, "echo", 0, NULL);
            CHECK(st != NULL);
            revdial_close(st);
            CHECK(pending_of(w.proxy) <= 512);
            drip_stop(&d);
        }
        world_close(&w);
    }
}

NEW_WORLD_TEST(P2_two_thousand_silent_connections_do_not_keep_a_backend_out_and_cost_little)
{
    enum { COUNT = 2000 };
    static int fds[COUNT];
    revdial_stats stats = {0};
    flood_unlimit();
    REQUIRE(world_open_proxy(w));
    for (int i = 0; i < COUNT; i++) fds[i] = raw_connect_from(w->address, 1 + i % 3);
    CHECK(world_open_agent(w, 0));
    CHECK_INT(util_log_count(&w->states, REVDIAL_BACKOFF, NULL), 0);
    UTIL_EVENTUALLY(pending_of(w->proxy) == 511);  // one went for the backend
    revdial_proxy_get_stats(w->proxy, &stats);
    CHECK_INT(stats.sessions, 1);
    CHECK(stats.memory_bytes < 512u * 16384);
    for (int i = 0; i < COUNT; i++) close(fds[i]);
    UTIL_EVENTUALLY(pending_of(w->proxy) == 0);
}

// A page in a browser can ask anything but for what its browser forbids: it sets no Upgrade and no
// Authorization, and a WebSocket says whose page opened it. What the browser knows goes along.
TEST(P20_A40_no_page_in_a_browser_registers_with_what_the_browser_knows)
{
#define PAGE_WS \
    "GET /revdial HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" \
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" \
    "Sec-WebSocket-Protocol: revdial\r\n"
#define PAGE_KNOWS "Authorization: Basic YWxpY2U6czNjcmV0\r\n"  // alice:s3cret
    static const struct {
        int status;
        const char *request;
    } pages[] = {
        {101, PAGE_WS PAGE_KNOWS "Host: proxy.test\r\n\r\n"},  // no page: it is good
        {403, PAGE_WS PAGE_KNOWS "Host: proxy.test\r\nOrigin: https://evil.test\r\n\r\n"},
        {403, PAGE_WS PAGE_KNOWS "Host: proxy.test\r\nOrigin: null\r\n\r\n"},
        {403, PAGE_WS PAGE_KNOWS "Host: proxy.test\r\nOrigin: http://proxy.test.evil.test\r\n\r\n"},
        // A name of the page's own that leads here (DNS rebinding).
        {403, PAGE_WS "Host: evil.test\r\nOrigin: http://evil.test\r\n\r\n"},
        {426, "GET /revdial HTTP/1.1\r\n" PAGE_KNOWS "Host: proxy.test\r\n\r\n"},
        {405, "POST /revdial HTTP/1.1\r\n" PAGE_KNOWS "Host: proxy.test\r\n"
              "Content-Length: 0\r\n\r\n"},
        {405, "OPTIONS /revdial HTTP/1.1\r\nHost: proxy.test\r\nOrigin: https://evil.test\r\n"
              "Access-Control-Request-Method: GET\r\n\r\n"},
    };
    static const revdial_credential row = {"s3cret", "alice", "cam-1", REVDIAL_AUTH_BASIC};
    world w;
    world_init(&w);
    w.pcfg.credentials = &row;
    if (world_open_proxy(&w)) {
        for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) {
            char answer[1024];
            int fd = raw_connect(w.address);
            raw_say(fd, pages[i].request);
            raw_head(fd, answer, sizeof answer);
            if (raw_status(answer) != pages[i].status)
                test_fail(__FILE__, __LINE__, "page %d: %s", (int)i, answer);
            CHECK(strcasestr(answer, "access-control") == NULL);
            close(fd);
        }
        CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 1, NULL));
        CHECK_INT(util_log_count(&w.sessions, REVDIAL_UP, NULL), 1);
    }
    world_close(&w);
}

// ------------------------------------------------------------------------------------------------
// Backends

// What came in answer to a flood.
typedef struct tally {
    int resets, others;
    int goaway;  // its code, -1: none came
} tally;

// Reads what is there; with `to_the_end` until the peer ends.
static void tally_read(tally *t, int fd, int to_the_end)
{
    raw_frame f;
    while ((to_the_end || raw_wait(fd, POLLIN, 0)) && t->goaway < 0 && raw_frame_read(fd, &f)) {
        if (f.type == RAW_GOAWAY)
            t->goaway = (int)f.len;
        else if (f.type == RAW_WINDOW && f.flags & RAW_RST)
            t->resets++;
        else
            t->others++;
    }
}

// Opens `count` streams, `also` with a frame of that flag behind each; returns how many it could.
static int tally_flood(tally *t, int fd, uint32_t first, int count, uint16_t also)
{
    int n = 0;
    for (; n < count && t->goaway < 0; n++) {
        uint32_t id = first + 2 * (uint32_t)n;
        if (!raw_frame_send(fd, RAW_WINDOW, RAW_SYN, id, 0)) break;
        if (also && !raw_frame_send(fd, RAW_WINDOW, also, id, 0)) break;
        if (n % 16 == 0) tally_read(t, fd, 0);
    }
    return n;
}

WORLD_TEST(B1_streams_that_a_backend_opens_are_refused_and_a_flood_of_them_ends_its_session)
{
    tally calm = {0, 0, -1}, wild = {0, 0, -1};
    int threads = util_threads(), fd = raw_backend(w->address, "evil", NULL);
    CHECK_INT(tally_flood(&calm, fd, 2, 900, 0), 900);
    while (calm.resets < 900 && calm.goaway < 0 && raw_wait(fd, POLLIN, UTIL_WAIT_MS))
        tally_read(&calm, fd, 0);
    CHECK_INT(calm.resets, 900);
    CHECK_INT(calm.goaway, -1);
    tally_flood(&wild, fd, 1802, 2000, 0);
    tally_read(&wild, fd, 1);
    CHECK(wild.resets <= 200);
    CHECK_INT(wild.goaway, 1);
    CHECK_INT(util_threads(), threads);
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    CHECK(st != NULL);
    revdial_close(st);
    close(fd);
    UTIL_EVENTUALLY(revdial_proxy_list(w->proxy, "evil", NULL, 0) == 0);
    CHECK_INT(revdial_proxy_list(w->proxy, "cam-1", NULL, 0), 1);
}

static void *honest_run(void *arg)
{
    world *w = arg;
    intptr_t good = 0;
    for (int i = 0; i < 8; i++) {
        revdial_stream *st = world_dial(w, "bulk", 3000000, NULL);
        util_read r = util_read_bulk(st);
        good += r.bytes == 3000000 && r.end == 0 && !r.is_bad;
        revdial_close(st);
    }
    return (void *)good;
}

// What a hostile backend does with a stream that it was asked for; each its own session.
static void hostile_answer(int fd, unsigned round, uint32_t id)
{
    test_rng rng = test_rng_seeded(round);
    uint8_t junk[4096];
    switch (round % 4) {
    case 0: raw_frame_send(fd, RAW_WINDOW, RAW_RST, id, 0); break;
    case 1: raw_frame_send(fd, RAW_DATA, 0, id, 0x7fffffff); break;
    case 2: raw_frame_send(fd, RAW_WINDOW, RAW_ACK, id, 0xffffffff); break;
    default:
        for (size_t i = 0; i < sizeof junk; i++) junk[i] = (uint8_t)test_below(&rng, 256);
        raw_send(fd, junk, sizeof junk);
    }
}

WORLD_TEST(B3_garbage_and_resets_of_one_backend_do_not_reach_the_streams_of_another)
{
    void *good = NULL;
    revdial_session *before = NULL, *after = NULL;
    revdial_proxy_list(w->proxy, "cam-1", &before, 1);
    pthread_t honest = util_thread(honest_run, w);
    for (unsigned round = 0; round < 100; round++) {
        raw_frame f = {0};
        char byte;
        int fd = raw_backend(w->address, "evil", NULL);
        UTIL_EVENTUALLY(revdial_proxy_list(w->proxy, "evil", NULL, 0) == 1);
        revdial_stream *st = revdial_dial(w->proxy, "evil", NULL, NULL);
        CHECK(st != NULL && raw_frame_read(fd, &f) && f.flags & RAW_SYN);
        hostile_answer(fd, round, f.id);
        CHECK(revdial_read(st, &byte, 1) < 0);  // its own stream fails, and not with EOF
        revdial_close(st);
        close(fd);
        UTIL_EVENTUALLY(revdial_proxy_list(w->proxy, "evil", NULL, 0) == 0);
    }
    pthread_join(honest, &good);
    CHECK_INT((intptr_t)good, 8);
    revdial_proxy_list(w->proxy, "cam-1", &after, 1);
    CHECK(before == after);
    revdial_session_unref(before);
    revdial_session_unref(after);
}

enum { STORM_THREADS = 4, STORM_EACH = 250 };

typedef struct storm {
    const char *address;
    int number;
    int fds[STORM_EACH];
    pthread_t thread;
} storm;

// All ask at once; whoever is not heard, as the waiting room is full, asks again.
static void *storm_run(void *arg)
{
    storm *s = arg;
    char name[40], buf[1024];
    for (int i = 0; i < STORM_EACH; i++) {
        s->fds[i] = raw_connect(s->address);
        snprintf(name, sizeof name, "storm-%d", s->number * STORM_EACH + i);
        raw_request(buf, sizeof buf, name, "s3cret", NULL);
        if (s->fds[i] >= 0) raw_say(s->fds[i], buf);
    }
    for (int i = 0; i < STORM_EACH; i++) {
        int is_up =
            s->fds[i] >= 0 && raw_head(s->fds[i], buf, sizeof buf) && raw_status(buf) == 101;
        if (is_up) continue;
        if (s->fds[i] >= 0) close(s->fds[i]);
        snprintf(name, sizeof name, "storm-%d", s->number * STORM_EACH + i);
        s->fds[i] = raw_backend(s->address, name, NULL);
    }
    return NULL;
}

// Would hang if a lock of the proxy were held.
static int storm_judge(void *ud, const revdial_auth_req *req, char *identity, size_t size)
{
    world *w = ud;
    revdial_stats stats;
    if (!w->proxy) return REVDIAL_EAUTH;
    revdial_proxy_get_stats(w->proxy, &stats);
    revdial_proxy_list(w->proxy, req->name, NULL, 0);
    snprintf(identity, size, "%s", req->name);
    return strcmp(req->secret, "s3cret") == 0 ? 0 : REVDIAL_EAUTH;
}

TEST(B7_a_thousand_backends_that_come_back_at_once_are_all_taken_and_nobody_else_waits)
{
    static storm storms[STORM_THREADS];
    flood_unlimit();
    for (int with_hook = 0; with_hook < 2; with_hook++) {
        world w;
        world_init(&w);
        if (with_hook) w.pcfg.auth = storm_judge, w.pcfg.auth_ud = &w;
        if (!world_open(&w)) break;
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        for (int again = 0; again < 2; again++) {
            for (int i = 0; i < STORM_THREADS; i++) {
                storms[i].address = w.address;
                storms[i].number = i;
                storms[i].thread = util_thread(storm_run, &storms[i]);
            }
            char byte = 'a';
            CHECK_INT(revdial_write(st, &byte, 1), 1);
            CHECK_INT(revdial_read(st, &byte, 1), 1);
            for (int i = 0; i < STORM_THREADS; i++) pthread_join(storms[i].thread, NULL);
            UTIL_EVENTUALLY(revdial_proxy_list(w.proxy, "storm-*", NULL, 0) == 1000);
            for (int i = 0; i < STORM_THREADS; i++)
                for (int k = 0; k < STORM_EACH; k++) close(storms[i].fds[k]);
            if (again) UTIL_EVENTUALLY(revdial_proxy_list(w.proxy, NULL, NULL, 0) == 1);
        }
        revdial_close(st);
        world_close(&w);
    }
}

// A transport whose handshake is work: the peer says 'a', we reckon and answer, twice.
typedef struct slow_shake {
    int fd, steps, work_us;
} slow_shake;

static int slow_do_handshake(void *ctx)
{
    slow_shake *t = ctx;
    while (t->steps < 2) {
        char c;
        ssize_t n = recv(t->fd, &c, 1, 0);
        if (n < 0 && errno == EAGAIN) return REVDIAL_WANT_READ;
        if (n <= 0 || c != 'a') return REVDIAL_ETLS;
        int64_t until_us = rvd_sys_now_us() + t->work_us;
        while (rvd_sys_now_us() < until_us) continue;
        if (send(t->fd, "A", 1, MSG_NOSIGNAL) != 1) return REVDIAL_ETLS;
        t->steps++;
    }
    return 0;
}

static ptrdiff_t slow_do_read(void *ctx, void *buf, size_t len)
{
    slow_shake *t = ctx;
    ssize_t n = recv(t->fd, buf, len, 0);
    return n >= 0 ? n : errno == EAGAIN ? REVDIAL_WANT_READ : REVDIAL_ELOST;
}

static ptrdiff_t slow_do_write(void *ctx, const void *buf, size_t len)
{
    slow_shake *t = ctx;
    ssize_t n = send(t->fd, buf, len, MSG_NOSIGNAL);
    return n >= 0 ? n : errno == EAGAIN ? REVDIAL_WANT_WRITE : REVDIAL_ELOST;
}

static size_t slow_do_pending(void *ctx)
{
    (void)ctx;
    return 0;
}

static int slow_do_finish(void *ctx)
{
    (void)ctx;
    return 0;
}

static int slow_wrap(void *ud, int fd, const char *host, revdial_transport *out, revdial_err *err)
{
    slow_shake *t = calloc(1, sizeof *t);
    (void)host, (void)err;
    if (!t) abort();
    t->fd = fd;
    t->work_us = *(int *)ud;
    memset(out, 0, sizeof *out);
    out->ctx = t;
    out->do_handshake = slow_do_handshake;
    out->do_read = slow_do_read;
    out->do_write = slow_do_write;
    out->do_pending = slow_do_pending;
    out->do_finish = slow_do_finish;
    out->do_close = free;
    return 0;
}

// Agents by hand that all come at once, and are driven by one thread.
enum { RUSH = 900 };

typedef struct rush {
    int fds[RUSH], said[RUSH];
    int count, up, cut;
} rush;

static void rush_open(rush *r, const char *address, int from)
{
    r->fds[r->count] = raw_connect_from(address, from);
    raw_say(r->fds[r->count++], "a");
}

// What the peer of one has to say next, when there is something to read.
static void rush_step(rush *r, int i)
{
    char buf[1024], name[40];
    if (r->said[i] < 2) {
        if (raw_read(r->fds[i], buf, 1) != 1) {
            r->cut++;
            r->said[i] = 3;
        } else if (++r->said[i] == 1) {
            raw_say(r->fds[i], "a");
        } else {
            snprintf(name, sizeof name, "rush-%d", i);
            raw_request(buf, sizeof buf, name, "s3cret", NULL);
            raw_say(r->fds[i], buf);
        }
        return;
    }
    int is_up = raw_head(r->fds[i], buf, sizeof buf) && raw_status(buf) == 101;
    r->up += is_up;
    r->cut += !is_up;
    r->said[i] = 3;
}

static void rush_run(rush *r, const char *address, int from)
{
    static struct pollfd polls[RUSH];
    memset(r, 0, sizeof *r);
    while (r->up + r->cut < RUSH) {
        for (int i = 0; i < 50 && r->count < RUSH; i++) rush_open(r, address, from);
        for (int i = 0; i < r->count; i++) {
            polls[i].fd = r->said[i] == 3 ? -1 : r->fds[i];
            polls[i].events = POLLIN;
        }
        int n = poll(polls, (nfds_t)r->count, r->count < RUSH ? 0 : UTIL_WAIT_MS);
        if (!CHECK(n > 0 || r->count < RUSH)) return;
        for (int i = 0; i < r->count; i++)
            if (polls[i].revents) rush_step(r, i);
    }
}

static void rush_close(rush *r)
{
    for (int i = 0; i < r->count; i++) close(r->fds[i]);
}

TEST(B7_of_900_that_shake_hands_at_once_behind_one_address_none_is_dropped)
{
    static rush r;
    revdial_stats stats;
    int work_us = 1000;
    revdial_tls slow = {&work_us, slow_wrap};
    flood_unlimit();
    world w;
    world_init(&w);
    w.pcfg.common.tls = &slow;
    if (world_open_proxy(&w)) {
        rush_run(&r, w.address, 2);
        CHECK_INT(r.up, RUSH);
        revdial_proxy_get_stats(w.proxy, &stats);
        CHECK_INT(stats.handshakes_refused, 0);
        CHECK_INT(queue_of(w.proxy), 0);
        rush_close(&r);
        UTIL_EVENTUALLY(revdial_proxy_list(w.proxy, NULL, NULL, 0) == 0);
    }
    world_close(&w);
}

TEST(B7_time_that_a_handshake_waits_for_the_proxys_own_work_is_not_its_peers_delay)
{
    static rush r;
    int work_us = 3000;
    revdial_tls slow = {&work_us, slow_wrap};
    flood_unlimit();
    world w;
    world_init(&w);
    w.pcfg.common.tls = &slow;
    w.pcfg.common.limits.handshake_timeout_ms = 1000;  // all take five times as long
    if (world_open_proxy(&w)) {
        rush_run(&r, w.address, 2);
        CHECK_INT(r.up, RUSH);
        rush_close(&r);
    }
    world_close(&w);
}

TEST(B7_P2_connections_that_say_nothing_or_stop_give_way_to_those_that_go_on)
{
    enum { SILENT = 700 };
    static rush r;
    static int fds[SILENT];
    int work_us = 0;
    revdial_tls slow = {&work_us, slow_wrap};
    flood_unlimit();
    for (int from = 2; from <= 3; from++) {  // where they are, or elsewhere
        world w;
        world_init(&w);
        w.pcfg.common.tls = &slow;
        if (world_open_proxy(&w)) {
            for (int i = 0; i < SILENT; i++) {
                fds[i] = raw_connect_from(w.address, 2);
                if (i % 2) raw_say(fds[i], "a");
            }
            rush_run(&r, w.address, from);
            CHECK_INT(r.up, RUSH);
            CHECK(pending_of(w.proxy) <= 512);
            rush_close(&r);
            for (int i = 0; i < SILENT; i++) close(fds[i]);
            UTIL_EVENTUALLY(pending_of(w.proxy) == 0 && queue_of(w.proxy) == 0);
        }
        world_close(&w);
    }
}

NEW_WORLD_TEST(B7_a_proxy_that_closes_while_others_wait_for_a_place_closes_them)
{
    static int fds[40];
    char byte;
    w->pcfg.max_pending = 8;
    REQUIRE(world_open_proxy(w));
    int before = util_fds();
    for (int i = 0; i < 40; i++) fds[i] = raw_connect_from(w->address, 2);
    UTIL_EVENTUALLY(queue_of(w->proxy) == 32);
    revdial_proxy_stop(w->proxy);
    w->proxy = NULL;
    for (int i = 0; i < 40; i++) {
        CHECK(raw_read(fds[i], &byte, 1) <= 0);
        close(fds[i]);
    }
    CHECK(util_fds() <= before);
}

// A connection costs little that is dropped for another one before it has said a byte, and those
// that have places keep them.
NEW_WORLD_TEST(P2_in_a_full_queue_whoever_has_been_silent_for_longest_makes_room_for_the_next)
{
    enum { PLACES = 8, ALL = PLACES + 8 * PLACES, MORE = 5 };
    static int fds[ALL + MORE];
    char byte;
    w->pcfg.max_pending = PLACES;
    REQUIRE(world_open_proxy(w));
    for (int i = 0; i < ALL; i++) fds[i] = raw_connect_from(w->address, 2);
    UTIL_EVENTUALLY(queue_of(w->proxy) == ALL - PLACES);
    for (int i = ALL; i < ALL + MORE; i++) {
        fds[i] = raw_connect_from(w->address, 2);
        CHECK(raw_wait(fds[i - ALL + PLACES], POLLIN, UTIL_WAIT_MS));
    }
    UTIL_EVENTUALLY(queue_of(w->proxy) == ALL - PLACES);
    for (int i = 0; i < ALL + MORE; i++) {
        int is_dropped = i >= PLACES && i < PLACES + MORE;
        CHECK_INT(raw_wait(fds[i], POLLIN, 0) && raw_read(fds[i], &byte, 1) <= 0, is_dropped);
        close(fds[i]);
    }
}

NEW_WORLD_TEST(a_connection_that_cannot_wait_for_a_place_gets_one_at_once)
{
    enum { PLACES = 8 };
    int fds[PLACES];
    w->pcfg.max_pending = PLACES;
    REQUIRE(world_open_proxy(w));
    for (int i = 0; i < PLACES; i++) fds[i] = raw_connect_from(w->address, 2);
    UTIL_EVENTUALLY(pending_of(w->proxy) == PLACES);
    atomic_store(&util_epoll_refuses, 1);
    int fd = raw_backend_on(raw_connect_from(w->address, 2), "cam-1", NULL);
    CHECK(fd >= 0);
    atomic_store(&util_epoll_refuses, 0);
    close(fd);
    for (int i = 0; i < PLACES; i++) close(fds[i]);
}

// ------------------------------------------------------------------------------------------------
// A proxy

// An agent that forwards to a target which never answers, and a proxy by hand.
typedef struct trap {
    world w;
    hole target;
    char url[64], address[40];
    int listener, fds;
} trap;

static int trap_open(trap *t)
{
    int port = 0;
    world_init(&t->w);
    t->listener = raw_listen(8, &port);
    snprintf(t->url, sizeof t->url, "http://127.0.0.1:%d", port);
    if (!hole_open(&t->target)) return 0;
    snprintf(t->address, sizeof t->address, "127.0.0.1:%d", t->target.port);
    t->w.acfg.url = t->url;
    t->w.acfg.handler = NULL;
    t->w.acfg.default_target = t->address;
    t->w.acfg.connect_timeout_ms = 60000;
    t->w.agents[0] = revdial_agent_start(&t->w.acfg, NULL);
    return t->w.agents[0] != NULL;
}

static int trap_session(trap *t)
{
    char head[4096];
    int fd = raw_proxy_accept(t->listener, head, sizeof head);
    raw_say(fd, RAW_101);
    t->fds = util_fds();
    return fd;
}

static void trap_close(trap *t)
{
    world_close(&t->w);
    hole_close(&t->target);
    close(t->listener);
}

TEST(X2_a_proxy_that_opens_streams_without_end_gets_no_more_than_the_limit_and_then_a_GoAway)
{
    trap t;
    tally seen = {0, 0, -1};
    if (trap_open(&t)) {
        int fd = trap_session(&t), most = 0, n = 300;
        tally_flood(&seen, fd, 1, n, 0);
        UTIL_EVENTUALLY(util_fds() - t.fds == 256);  // the sockets of targets
        for (; n < 10000 && seen.goaway < 0; n += 100) {
            if (tally_flood(&seen, fd, 1 + 2 * (uint32_t)n, 100, 0) < 100) break;
            int held = util_fds() - t.fds;
            if (held > most) most = held;
        }
        tally_read(&seen, fd, 1);
        CHECK_INT(seen.goaway, 1);
        CHECK_INT(most, 256);
        CHECK(seen.resets >= 3000 && seen.resets <= n);
        close(fd);
        util_state why = {0};
        CHECK(util_log_wait(&t.w.states, REVDIAL_BACKOFF, 1, &why));
        CHECK_INT(why.code, REVDIAL_EPROTO);
        fd = trap_session(&t);  // it comes back, with all of them closed
        UTIL_EVENTUALLY(util_fds() <= t.fds);
        close(fd);
    }
    trap_close(&t);
}

TEST(X3_streams_that_are_reset_at_once_count_until_they_are_gone_and_then_the_session_ends)
{
    trap t;
    tally seen = {0, 0, -1};
    if (trap_open(&t)) {
        int fd = trap_session(&t), most = 0, n = 0, sent = 0;
        for (; n < 100000 && seen.goaway < 0; n += 20) {
            int some = tally_flood(&seen, fd, 1 + 2 * (uint32_t)n, 20, RAW_RST);
            int held = util_fds() - t.fds;
            sent += some;
            if (held > most) most = held;
            if (some < 20) break;
        }
        tally_read(&seen, fd, 1);
        CHECK_INT(seen.goaway, 1);
        CHECK(most <= 256);
        CHECK(sent >= 200);
        CHECK(sent < 100000);
        close(fd);
        util_state why = {0};
        CHECK(util_log_wait(&t.w.states, REVDIAL_BACKOFF, 1, &why));
        CHECK_INT(why.code, REVDIAL_EPROTO);
    }
    trap_close(&t);
}

static atomic_int tiny_sends;

static ssize_t tiny_send(int fd, const void *buf, size_t len, int flags)
{
    atomic_fetch_add(&tiny_sends, 1);
    return send(fd, buf, len, flags);
}

TEST(bytes_that_come_one_by_one_reach_their_target_in_few_writes_and_in_order)
{
    enum { BYTES = 2000 };
    static uint8_t frames[BYTES * 13], got[BYTES];
    char head[4096], url[64], target[40];
    int port = 0, target_port = 0, wrong = 0;
    world w;
    world_init(&w);
    int listener = raw_listen(8, &port), at = raw_listen(8, &target_port);
    snprintf(url, sizeof url, "http://127.0.0.1:%d", port);
    snprintf(target, sizeof target, "127.0.0.1:%d", target_port);
    w.acfg.url = url;
    w.acfg.handler = NULL;
    w.acfg.default_target = target;
    util_send_instead = tiny_send;
    w.agents[0] = revdial_agent_start(&w.acfg, NULL);
    if (CHECK(w.agents[0] != NULL)) {
        int fd = raw_proxy_accept(listener, head, sizeof head);
        raw_say(fd, RAW_101);
        raw_frame_send(fd, RAW_WINDOW, RAW_SYN, 1, 0);
        int end = accept(at, NULL, NULL);
        raw_frame_send(fd, RAW_DATA, 0, 1, 1);
        raw_say(fd, "a");
        CHECK(raw_read_all(end, got, 1));  // the relay runs
        for (int i = 0; i < BYTES; i++) {
            raw_frame_put(frames + i * 13, RAW_DATA, 0, 1, 1);
            frames[i * 13 + 12] = (uint8_t)(i % 251);
        }
        atomic_store(&tiny_sends, 0);
        raw_send(fd, frames, sizeof frames);
        CHECK(raw_read_all(end, got, BYTES));
        CHECK(atomic_load(&tiny_sends) < BYTES / 4);
        for (int i = 0; i < BYTES; i++) wrong += got[i] != i % 251;
        CHECK_INT(wrong, 0);
        close(end);
        close(fd);
    }
    world_close(&w);
    util_send_instead = NULL;
    close(listener);
    close(at);
}

// A proxy by hand, to which an agent of w has connected. Streams begin with preambles.
//   returns  the connection, or -1; world_close() is due either way
static int raw_proxy_open(world *w)
{
    char head[4096], url[64];
    int port = 0, fd = -1, listener = raw_listen(8, &port);
    world_init(w);
    snprintf(url, sizeof url, "http://127.0.0.1:%d", port);
    w->acfg.url = url;
    w->agents[0] = revdial_agent_start(&w->acfg, NULL);
    w->acfg.url = NULL;  // it has a copy
    if (CHECK(w->agents[0] != NULL)) {
        fd = raw_proxy_accept(listener, head, sizeof head);
        raw_say(fd, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
                    "Upgrade: revdial\r\nRevdial-Version: 1\r\n"
                    "Revdial-Features: preamble\r\n\r\n");
    }
    close(listener);
    return fd;
}

// A stream opens, with the shortest preamble.
enum { OPEN = 12 + 16 };
static void put_open(uint8_t out[OPEN], uint32_t id)
{
    static const char local[17] = "\r\n\r\n\0\r\nQUIT\n\x20\0\0";
    raw_frame_put(out, RAW_DATA, RAW_SYN, id, 16);
    memcpy(out + 12, local, 16);
}

static int is_read_by_a_thread(revdial_agent *a)
{
    revdial_session *s = NULL;
    if (revdial_agent_list(a, &s, 1) != 1) return 0;
    rvd_stream_lock(s);
    int is = s->reader.state == RVD_READER_THREAD;
    rvd_stream_unlock(s);
    revdial_session_unref(s);
    return is;
}

// A stream is open already if has_reader, and the handler that waits for its bytes does the reading
// for the session; without epoll the loop does it. Without preambles, the mux itself forgets a
// stream that is reset by then.
static void reset_in_one_read(int has_reader)
{
    enum { RESET = 100, EACH = OPEN + 12 };
    uint8_t many[RESET * EACH + OPEN];
    char byte = 'x';
    uint32_t id = 1;
    world w;
    int fd = raw_proxy_open(&w);
    if (CHECK(fd >= 0)) {
        if (has_reader) {
            put_open(many, id);
            raw_send(fd, many, OPEN);
            CHECK(util_gate_wait(&w.begun, 1));
            if (RVD_SYS_EPOLL) UTIL_EVENTUALLY(is_read_by_a_thread(w.agents[0]));
            id += 2;
        }
        for (uint32_t i = 0; i <= RESET; i++) {
            put_open(many + i * EACH, id + 2 * i);
            if (i == RESET) break;
            raw_frame_put(many + i * EACH + OPEN, RAW_WINDOW, RAW_RST, id + 2 * i, 0);
        }
        raw_send(fd, many, sizeof many);
        CHECK(util_gate_wait(&w.begun, 1 + has_reader));
        for (uint32_t i = 1; i <= id; i += 2) {
            raw_frame_send(fd, RAW_DATA, RAW_FIN, i < id ? i : id + 2 * RESET, 1);
            raw_send(fd, &byte, 1);
        }
        UTIL_EVENTUALLY(atomic_load(&w.serving) == 0);
        CHECK_INT(util_gate_count(&w.begun), 1 + has_reader);
        close(fd);
    }
    world_close(&w);
}

TEST(X3_a_stream_that_is_reset_in_the_read_that_opens_it_costs_no_thread)
{
    reset_in_one_read(0);
    reset_in_one_read(1);
}

static rvd_owner *probed;
static unsigned probe_handlers;
static util_gate probe_over;

static void probe_run(rvd_loop_task *task)
{
    (void)task;
    pthread_mutex_lock(&probed->lock);
    probe_handlers = probed->handler_count;
    pthread_mutex_unlock(&probed->lock);
    util_gate_add(&probe_over, 1);
}

static util_gate owner_held, owner_goes;

// Holds the lock that the start of a handler takes. A thread of its own, because the library takes
// it with a session's lock held, and the test looks at the session meanwhile.
static void *hold_owner(void *arg)
{
    rvd_owner *o = arg;
    pthread_mutex_lock(&o->lock);
    util_gate_add(&owner_held, 1);
    util_gate_wait(&owner_goes, 1);
    pthread_mutex_unlock(&o->lock);
    return NULL;
}

// Has the loop begun to give threads to both streams of the session?
static int is_row_taken(revdial_session *s)
{
    const rvd_owner_member *m = s->member;
    int count = 0;
    rvd_stream_lock(s);
    RVD_BASE_EACH (revdial_stream, st, &s->streams, link) count++;
    int is = count == 2 && !m->calls;
    rvd_stream_unlock(s);
    return is;
}

TEST(X3_handlers_of_one_read_take_no_more_of_the_loops_time_than_tasks_may)
{
    static rvd_loop_task probe = {.run = probe_run};
    uint8_t both[2 * OPEN];
    world w;
    int fd = raw_proxy_open(&w);
    if (CHECK(fd >= 0)) {
        revdial_session *s = revdial_agent_wait(w.agents[0], UTIL_WAIT_MS, NULL);
        REQUIRE(s != NULL);
        probed = &w.agents[0]->own;
        util_gate_init(&probe_over);
        util_gate_init(&owner_held);
        util_gate_init(&owner_goes);
        util_settle(s->loop);  // it takes that lock while it tells that the session is up
        pthread_t holder = util_thread(hold_owner, probed);
        CHECK(util_gate_wait(&owner_held, 1));
        put_open(both, 1);
        put_open(both + OPEN, 3);
        raw_send(fd, both, sizeof both);
        UTIL_EVENTUALLY(is_row_taken(s));
        rvd_loop_post(s->loop, &probe);
        for (int64_t until_us = rvd_sys_now_us() + 2 * RVD_LOOP_TASKS_US;
             rvd_sys_now_us() < until_us;)
            sched_yield();
        util_gate_add(&owner_goes, 1);
        pthread_join(holder, NULL);
        CHECK(util_gate_wait(&probe_over, 1));
        CHECK_INT(probe_handlers, 1);
        CHECK(util_gate_wait(&w.begun, 2));
        revdial_session_unref(s);
        close(fd);
    }
    world_close(&w);
}

// Others wait for a fraction of a millisecond, whatever a session's bytes cost; bulk is read in one
// piece.
TEST(a_read_that_takes_long_is_followed_by_a_shorter_one_and_a_quick_one_by_a_longer_one)
{
    static revdial_session s;
    s.in.most = RVD_LOOP_BUFFER;
    rvd_stream_read_adapt(&s, RVD_LOOP_BUFFER, 20000, 200);
    CHECK_INT(s.in.most, RVD_LOOP_BUFFER / 100);
    rvd_stream_read_adapt(&s, s.in.most, 2000, 200);
    CHECK_INT(s.in.most, RVD_STREAM_READ_MIN);
    rvd_stream_read_adapt(&s, 100, 1, 200);  // it tells nothing of a full one
    CHECK_INT(s.in.most, RVD_STREAM_READ_MIN);
    for (int i = 0; i < 7; i++) rvd_stream_read_adapt(&s, s.in.most, 99, 200);
    CHECK_INT(s.in.most, RVD_LOOP_BUFFER);
}

// The frames of a session's peer that have come since the last look, and how long its turn may be.
static int64_t turn_us_of(world *w, const char *name)
{
    revdial_session *s = NULL;
    int64_t us = -1;
    if (revdial_proxy_list(w->proxy, name, &s, 1) != 1) return -1;
    rvd_stream_lock(s);
    us = rvd_stream_turn_us_locked(s);
    rvd_stream_unlock(s);
    revdial_session_unref(s);
    return us;
}

static void raw_ping_and_pong(int fd, uint32_t value)
{
    raw_frame f;
    raw_frame_send(fd, RAW_PING, RAW_SYN, 0, value);
    while (raw_frame_read(fd, &f))
        if (f.type == RAW_PING && f.flags & RAW_ACK && f.len == value) return;
}

// Frames that raise no event are counted, too: a read full of these passed for bulk.
WORLD_TEST(a_peer_whose_frames_carry_nothing_has_a_tenth_of_the_time_of_others)
{
    static uint8_t many[500 * 12];
    int fd = raw_backend(w->address, "evil", NULL);
    util_clock_stop();  // a read that takes some time makes the loop look, too
    raw_ping_and_pong(fd, 1);
    turn_us_of(w, "evil");
    CHECK_INT(turn_us_of(w, "evil"), RVD_STREAM_TURN_US);  // nothing has come
    for (int i = 0; i < 500; i++) raw_frame_put(many + i * 12, RAW_WINDOW, 0, 2, 0);
    raw_send(fd, many, sizeof many);
    raw_ping_and_pong(fd, 2);
    CHECK_INT(turn_us_of(w, "evil"), RVD_STREAM_TURN_MIN_US);
    util_clock_run();
    close(fd);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
