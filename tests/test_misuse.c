// What callers do wrong, or at the wrong time: rows U of the table of misuse that no other suite
// has, and A71. The answer is an error that says what, or what was meant; no hang and no crash.
#include "runtime_util.h"

TEST(U2_limits_that_make_no_sense_are_refused_and_named)
{
    static const struct {
        const char *field;
        revdial_limits limits;
    } cases[] = {
        {"stream_window", {.stream_window = 8191}},
        {"stream_window", {.stream_window = (16u << 20) + 1}},
        {"stream_window_max", {.stream_window_max = (16u << 20) + 1}},
        {"stream_window_max: 8191 is not in 8192..16777216", {.stream_window_max = 8191}},
        {"session_window", {.session_window = 1000}},
        {"frame_bytes_max", {.frame_bytes_max = 65525}},
        {"frame_bytes_max", {.frame_bytes_max = 511}},
        {"max_streams", {.max_streams = 1u << 25}},
        {"time", {.keepalive_ms = -1}},
        {"time", {.handshake_timeout_ms = -5}},
        {"dead_after_ms", {.dead_after_ms = -1}},
        {"accept_timeout_ms", {.accept_timeout_ms = -1}},
        {"write_stall_ms: time -2147483648 is not in 1..2147483647", {.write_stall_ms = INT_MIN}},
        {"keepalive_ms: time 99 is not in 100..2147483647", {.keepalive_ms = 99}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        world w;
        revdial_err err = {0};
        world_init(&w);
        w.pcfg.common.limits = cases[i].limits;
        CHECK(revdial_proxy_start(&w.pcfg, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_EINVAL);
        if (!strstr(err.msg, cases[i].field))
            test_fail(__FILE__, __LINE__, "case %d: \"%s\"", (int)i, err.msg);
        w.acfg.url = "http://127.0.0.1:1";
        w.acfg.common.limits = cases[i].limits;
        memset(&err, 0, sizeof err);
        CHECK_INT(revdial_serve(&w.acfg, &err), REVDIAL_EINVAL);
        CHECK(strstr(err.msg, cases[i].field) != NULL);
    }
}

static int no_credential(void *ud, unsigned attempt, char *secret, size_t size)
{
    (void)ud;
    (void)attempt;
    (void)secret;
    (void)size;
    return REVDIAL_EAUTH;
}

#define SIXTY "is-sixty-characters-long-is-sixty-characters-long-is-sixty-c"
#define TWO_URLS "http://127.0.0.1:1,http://127.0.0.1:1"

static void no_stream(void *ud, revdial_stream *st)
{
    (void)ud;
    revdial_close(st);
}

static int no_target(void *ud, revdial_target_request *r)
{
    (void)ud;
    (void)r;
    return 0;
}

TEST(an_agents_config_that_cannot_work_is_refused_and_the_field_is_named)
{
    static const revdial_tls no_wrap = {0};
    static const revdial_kv header = {"X-A", "b"}, no_value = {.key = "X-A"};
    static const char *const no_rules[] = {NULL}, *const no_range[] = {"127.0.0.1:80-x", NULL};
    static const struct {
        const char *field;
        int works;
        revdial_agent_config cfg;
    } agents[] = {
        {"handler", 0, {.name = "cam-1"}},
        {"handler", 1, {.allow = no_rules}},
        {"target_fn", 0, {.handler = no_stream, .target_fn = no_target}},
        {"a range of ports is written 80-90", 0, {.allow = no_range}},
        {"default_target: ", 0, {.default_target = "http://a:80"}},
        {"default_target: ", 0, {.default_target = "10.0.0.1"}},
        {"default_target: ", 1, {.default_target = "unix:/run/x"}},
        {"\"Cam-1\": a name", 0, {.name = "Cam-1", .allow = no_rules}},
        {"\"\": a name", 0, {.name = "", .allow = no_rules}},
        {"instance", 0, {.instance = "a b", .allow = no_rules}},
        {"at most 61", 0, {.url = TWO_URLS, .instance = SIXTY "62", .allow = no_rules}},
        {"at most 61", 0, {.all_addresses = 1, .instance = SIXTY "62", .allow = no_rules}},
        {"61 and a suffix", 1, {.url = TWO_URLS, .instance = SIXTY "1", .allow = no_rules}},
        {"64 characters", 1, {.instance = SIXTY "1234", .allow = no_rules}},
        {"headers", 0, {.headers = &header, .allow = no_rules}},
        {"headers", 0, {.header_count = 1, .allow = no_rules}},
        {"headers", 0, {.headers = &no_value, .header_count = 1, .allow = no_rules}},
        {"user", 0, {.auth_schemes = REVDIAL_AUTH_BASIC, .secret = "p", .allow = no_rules}},
        {"user",
         0,
         {.auth_schemes = REVDIAL_AUTH_DIGEST, .credential_fn = no_credential, .allow = no_rules}},
        {"user",
         0,
         {.auth_schemes = REVDIAL_AUTH_DIGEST,
          .credential_fn = no_credential,
          .user = "a:b",
          .allow = no_rules}},
        {"\"http://127.0.0.1:1/a b\": path: write a blank as %20",
         0,
         {.url = "http://127.0.0.1:1,http://127.0.0.1:1/a b", .allow = no_rules}},
        {"\"http://::1:80\": an IPv6 address needs brackets",
         0,
         {.url = "http://::1:80", .allow = no_rules}},
        {"a link with an interface", 1, {.url = "http://[fe80::1%1]:7000", .allow = no_rules}},
        {"egress: there is no TLS", 0, {.egress = "https://127.0.0.1:1", .allow = no_rules}},
        {"\"a b\": server_name", 0, {.server_name = "a b", .allow = no_rules}},
        {"connect_timeout_ms", 0, {.connect_timeout_ms = -1, .allow = no_rules}},
        {"idle_timeout_ms", 0, {.idle_timeout_ms = -1, .allow = no_rules}},
        {"half_closed_timeout_ms", 0, {.half_closed_timeout_ms = -2, .allow = no_rules}},
        {"server_name", 0, {.server_name = "host:443", .allow = no_rules}},
        {"server_name", 1, {.server_name = "::1", .allow = no_rules}},
        {"backoff_min_ms", 0, {.backoff_min_ms = 30001, .allow = no_rules}},
        {"backoff_min_ms", 0, {.backoff_min_ms = 2, .backoff_max_ms = 1, .allow = no_rules}},
        {"drain_ms", 0, {.drain_ms = -2, .allow = no_rules}},
        {"auth_fail_limit", 0, {.auth_fail_limit = -2, .allow = no_rules}},
        {"resolve_ms", 0, {.resolve_ms = 99, .allow = no_rules}},
        {"common.log_level", 0, {.common.log_level = 9, .allow = no_rules}},
        {"common.tls", 0, {.common.tls = &no_wrap, .allow = no_rules}},
    };
    for (size_t i = 0; i < sizeof agents / sizeof *agents; i++) {
        revdial_agent_config cfg = agents[i].cfg;
        revdial_err err = {0}, same = {0};
        if (!cfg.url) cfg.url = "http://127.0.0.1:1";
        revdial_agent *a = revdial_agent_start(&cfg, &err);
        int is_named = err.code == REVDIAL_EINVAL && strstr(err.msg, agents[i].field);
        if (agents[i].works ? !a : a || !is_named)
            test_fail(__FILE__, __LINE__, "agent %zu, %s: %s", i, agents[i].field, err.msg);
        revdial_agent_stop(a, 0);
        CHECK_INT(revdial_agent_check(&cfg, &same), err.code);
        CHECK_STR(same.msg, err.msg);
    }
}

TEST(a_proxys_config_that_cannot_work_is_refused_and_the_field_is_named)
{
    static char long_list[400];
    snprintf(long_list, sizeof long_list, "127.0.0.1:0, %0300d:80", 0);
    static const revdial_tls no_wrap = {0};
    static const revdial_expose port = {.listen = "127.0.0.1:0", .name = "cam-1"};
    static const revdial_expose bad_address = {.listen = "tcp://a:1", .name = "cam-1"};
    static const revdial_expose bad_name = {.listen = "127.0.0.1:0", .name = "Cam-1"};
    static const revdial_expose bad_target = {
        .listen = "127.0.0.1:0", .name = "cam-1", .dial = {.target = "a:b:c"}};
    static const revdial_expose bad_flags = {
        .listen = "127.0.0.1:0", .name = "cam-1", .dial = {.flags = 64}};
    static const struct {
        const char *field;
        int works;
        revdial_proxy_config cfg;
    } proxies[] = {
        {"exposes", 0, {.exposes = &port}},
        {"io_threads", 0, {.common.io_threads = 257, .unix_mode = 01000}},  // the first is told
        {"exposes", 0, {.expose_count = 1}},
        {"exposes", 1, {.exposes = &port, .expose_count = 1}},
        {"exposes[0].name: \"Cam-1\"", 0, {.exposes = &bad_name, .expose_count = 1}},
        {"exposes[0].target: \"a:b:c\"", 0, {.exposes = &bad_target, .expose_count = 1}},
        {"exposes[0].flags", 0, {.exposes = &bad_flags, .expose_count = 1}},
        {"\"7000\": the host is missing", 0, {.listen = "7000"}},
        {"listen: an address over 262 bytes", 0, {.listen = long_list}},
        {"\"tcp://a:1\"", 0, {.exposes = &bad_address, .expose_count = 1}},
        {"max_auth_failures", 0, {.max_auth_failures = -2}},
        {"common.log_level", 0, {.common.log_level = -1}},
        {"common.tls", 0, {.common.tls = &no_wrap}},
        {"\"revdial\": path: must begin with '/'", 0, {.path = "revdial"}},
        {"path", 0, {.path = "/a#b"}},
        {"\"https://ops.example/\": origins: ", 0, {.origins = "https://ops.example/"}},
        {"origins", 0, {.origins = "https://*.pages.example, ops.example"}},
        {"origins", 0, {.origins = "https://Ops.example"}},
        {"origins", 1, {.origins = "https://ops.example:8443,, http://[::1]:80 ,null,*.example"}},
    };
    for (size_t i = 0; i < sizeof proxies / sizeof *proxies; i++) {
        revdial_err err = {0}, same = {0};
        revdial_proxy *p = revdial_proxy_start(&proxies[i].cfg, &err);
        int is_named = err.code == REVDIAL_EINVAL && strstr(err.msg, proxies[i].field);
        if (proxies[i].works ? !p : p || !is_named)
            test_fail(__FILE__, __LINE__, "proxy %zu, %s: %s", i, proxies[i].field, err.msg);
        revdial_proxy_stop(p);
        CHECK_INT(revdial_proxy_check(&proxies[i].cfg, &same), err.code);
        CHECK(strstr(same.msg, err.msg) != NULL);  // it may say more, which of the ports
    }
}

NEW_WORLD_TEST(a_dial_to_what_cannot_exist_is_refused_at_once)
{
    static const revdial_kv reserved = {"target", "x"}, name = {"revdial-name", "x"};
    static const revdial_kv half = {"key", NULL};
    static const struct {
        const char *says, *name;
        revdial_dial_opts opts;
    } rows[] = {
        {"name: \"\"", "", {0}},
        {"name: \"Nobody\"", "Nobody", {0}},
        {"name: \"a b\"", "a b", {0}},
        {"name", "-a", {0}},
        {"target: \"nonsense\"", "cam-1", {.target = "nonsense"}},
        {"target", "cam-1", {.target = "http://a:80"}},
        {"target", "cam-1", {.target = "10.0.0.1"}},
        {"target", "cam-1", {.target = "host:0"}},
        {"target", "cam-1", {.target = "host:65536"}},
        {"target", "cam-1", {.target = "unix:relative"}},
        {"target", "cam-1", {.target = ""}},
        {"target", "cam-1", {.target = "[fe80::1%]:80"}},
        {"target", "cam-1", {.target = "[fe80::g%eth0]:80"}},
        {"client_addr", "cam-1", {.client_addr = "host:80"}},
        {"local_addr", "cam-1", {.local_addr = "10.0.0.1"}},
        {"meta", "cam-1", {.meta = &reserved, .meta_count = 1}},
        {"meta", "cam-1", {.meta = &name, .meta_count = 1}},
        {"meta", "cam-1", {.meta = &half, .meta_count = 1}},
        {"meta", "cam-1", {.meta_count = 1}},
        {"meta", "cam-1", {.meta = &reserved, .meta_count = SIZE_MAX}},
        {"pick", "cam-1", {.pick = 4}},
        {"flags", "cam-1", {.flags = 8}},
        {"peer_name", "cam-1", {.peer_name = "Nobody"}},
        {"key", "cam-1", {.pick = REVDIAL_PICK_KEY}},
        {"key", "cam-1", {.key_len = 1}},
        {"early", "cam-1", {.early_len = 1}},
        {"timeout_ms", "cam-1", {.timeout_ms = -2}},
    };
    REQUIRE(world_open_proxy(w));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        revdial_dial_opts opts = rows[i].opts;
        revdial_err err = {0};
        opts.flags |= REVDIAL_DIAL_WAIT;  // there is no backend, and nobody waits for one
        if (!opts.timeout_ms) opts.timeout_ms = -1;
        CHECK(revdial_dial(w->proxy, rows[i].name, &opts, &err) == NULL);
        if (err.code != REVDIAL_EINVAL || strncmp(err.msg, rows[i].says, strlen(rows[i].says)))
            test_fail(__FILE__, __LINE__, "row %zu: %d %s", i, err.code, err.msg);
        CHECK_INT(revdial_dial_async(w->proxy, rows[i].name, &opts, on_dial, NULL), REVDIAL_EINVAL);
    }
    CHECK_INT(revdial_proxy_wait(w->proxy, "Nobody", 1, -1), REVDIAL_EINVAL);
    CHECK_INT(revdial_proxy_wait(w->proxy, NULL, 1, -1), REVDIAL_EINVAL);
    if (world_open_agent(w, 0)) {
        revdial_session *s = revdial_agent_wait(w->agents[0], UTIL_WAIT_MS, NULL);
        revdial_dial_opts opts = {.target = "nonsense"};
        revdial_err err = {0};
        CHECK(revdial_session_dial(s, &opts, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_EINVAL);
        CHECK(revdial_session_dial(s, NULL, &err) == NULL);  // the proxy takes no streams
        CHECK(strncmp(err.msg, "dial 127.0.0.1:", 15) == 0);
        revdial_session_unref(s);
    }
}

NEW_WORLD_TEST(what_is_adopted_must_be_a_connected_stream_socket)
{
    enum { CLOSED, PIPE, DATAGRAMS, UNCONNECTED, NO_EARLY, NEGATIVE, BAD_INSTANCE, KINDS };
    REQUIRE(world_open_proxy(w));
    int before = util_fds();
    for (int kind = CLOSED; kind < KINDS; kind++) {
        revdial_attach_opts how = {.upgraded = 1, .name = "cam-1"};
        int fds[2] = {-1, -1};
        if (kind == PIPE) CHECK_INT(pipe(fds), 0);
        if (kind == DATAGRAMS) CHECK_INT(socketpair(AF_UNIX, SOCK_DGRAM, 0, fds), 0);
        if (kind == UNCONNECTED) fds[0] = socket(AF_INET, SOCK_STREAM, 0);
        if (kind >= NO_EARLY) CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
        if (kind == NO_EARLY) how.early_len = 1;
        if (kind == NEGATIVE) how.early = "", how.early_len = (size_t)-1;
        if (kind == BAD_INSTANCE) how.instance = "a b";
        CHECK_INT(revdial_proxy_attach(w->proxy, kind == CLOSED ? 99999 : fds[0], &how, NULL),
                  kind == UNCONNECTED ? REVDIAL_ELOST : REVDIAL_EINVAL);
        if (fds[1] >= 0) close(fds[1]);
    }
    CHECK_INT(util_fds(), before);
    CHECK_INT(revdial_proxy_list(w->proxy, NULL, NULL, 0), 0);
}

// Ends the session that has just come up, from its own callback.
static void kill_what_comes_up(void *ud, revdial_session *s, int state, const revdial_err *why)
{
    util_on_session(ud, s, state, why);
    if (state == REVDIAL_UP) revdial_session_kill(s);
}

NEW_WORLD_TEST(U8_U9_a_callback_may_end_the_session_that_it_is_told_of)
{
    w->pcfg.on_session = kill_what_comes_up;
    REQUIRE(world_open_proxy(w));
    w->acfg.url = w->url;
    w->agents[0] = revdial_agent_start(&w->acfg, NULL);
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 3, NULL));
    CHECK(util_log_count(&w->sessions, REVDIAL_UP, NULL) >= 3);
}

typedef struct reader {
    revdial_stream *st;
    uint64_t bytes, sum;
    ptrdiff_t end;
} reader;

static void *reader_run(void *arg)
{
    reader *r = arg;
    uint8_t buf[1000];
    while ((r->end = revdial_read(r->st, buf, sizeof buf)) > 0)
        for (ptrdiff_t i = 0; i < r->end; i++, r->bytes++) r->sum += buf[i];
    return NULL;
}

WORLD_TEST(U12_two_readers_share_a_stream_and_each_byte_goes_to_one)
{
    enum { TOTAL = 1000000 };
    revdial_stream *st = world_dial(w, "source", TOTAL, NULL);
    reader r[2] = {{st, 0, 0, -1}, {st, 0, 0, -1}};
    uint64_t sum = 0;
    pthread_t t[2];
    for (uint64_t i = 0; i < TOTAL; i++) sum += util_byte(i, 1);
    for (int i = 0; i < 2; i++) t[i] = util_thread(reader_run, &r[i]);
    for (int i = 0; i < 2; i++) pthread_join(t[i], NULL);
    CHECK_INT(r[0].bytes + r[1].bytes, TOTAL);
    CHECK_INT(r[0].sum + r[1].sum, sum);
    CHECK(r[0].end == 0 && r[1].end == 0);
    revdial_close(st);
}

typedef struct writer {
    revdial_stream *st;
    char letter;
} writer;

enum { RECORD = 512, RECORDS = 2000 };  // far more than a window: both have to wait

static void *writer_run(void *arg)
{
    writer *x = arg;
    char record[RECORD];
    memset(record, x->letter, sizeof record);
    for (int i = 0; i < RECORDS; i++)
        if (revdial_write(x->st, record, sizeof record) != RECORD) break;
    return NULL;
}

WORLD_TEST(U13_small_writes_of_two_threads_are_not_mixed)
{
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    writer x[2] = {{st, 'a'}, {st, 'b'}};
    pthread_t t[2];
    int mixed = 0, seen = 0;
    char record[RECORD];
    for (int i = 0; i < 2; i++) t[i] = util_thread(writer_run, &x[i]);
    while (seen < 2 * RECORDS && util_read_all(st, record, RECORD) == RECORD) {
        for (int i = 1; i < RECORD; i++) mixed += record[i] != record[0];
        seen++;
    }
    for (int i = 0; i < 2; i++) pthread_join(t[i], NULL);
    CHECK_INT(seen, 2 * RECORDS);
    CHECK_INT(mixed, 0);
    revdial_close(st);
}

WORLD_TEST(U20_a_dial_on_a_session_that_drains_or_is_down_says_which)
{
    revdial_err err = {0};
    revdial_stream *held = world_dial(w, "hold", 0, NULL);
    revdial_session *s = revdial_stream_session(held);
    revdial_session_drain(s, -1);
    CHECK(revdial_session_dial(s, NULL, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_EDRAINING);
    revdial_close(held);
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, NULL));
    CHECK(revdial_session_dial(s, NULL, &err) == NULL);
    CHECK(err.code == REVDIAL_EDRAINING || err.code == REVDIAL_ECLOSED);
    CHECK(revdial_session_dial(NULL, NULL, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_EINVAL);
    revdial_session_unref(s);
}

// A session's descriptor is closed by the application, or taken by a pipe. From then on the number
// is the application's, to the end of the proxy.
static void world_steal_descriptor(world *w, int is_taken)
{
    int pipes[2], unread = -1;
    revdial_session *s = NULL;
    util_state e = {0};
    CHECK_INT(pipe(pipes), 0);
    int fd = raw_backend(w->address, "cam-1", NULL);
    CHECK(fd >= 0 && revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS) == 1);
    REQUIRE(revdial_proxy_list(w->proxy, NULL, &s, 1) == 1);
    int stolen = s->fd;
    atomic_store(&util_close_watched, stolen);
    if (is_taken)
        CHECK_INT(dup2(pipes[1], stolen), stolen);
    else
        CHECK_INT(close(stolen), 0);
    revdial_close(revdial_session_dial(s, NULL, NULL));  // has it send something
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, &e));
    CHECK_INT(e.code, REVDIAL_ELOST);
    CHECK(strstr(e.msg, strerror(is_taken ? ENOTSOCK : EBADF)) != NULL);
    CHECK_INT(dup2(pipes[1], stolen), stolen);
    revdial_session_unref(s);
    world_close(w);
    CHECK_INT(atomic_load(&util_closes), 0);
    CHECK(fcntl(stolen, F_GETFD) >= 0);
    CHECK_INT(ioctl(pipes[0], FIONREAD, &unread), 0);
    CHECK_INT(unread, 0);
    atomic_store(&util_close_watched, -1);
    close(stolen);
    close(pipes[0]);
    close(pipes[1]);
    close(fd);
}

TEST(U32_a_descriptor_closed_behind_our_back_ends_its_session_and_is_left_alone)
{
    for (int is_taken = 0; is_taken < 2; is_taken++) {
        world w;
        world_init(&w);
        atomic_store(&util_closes, 0);
        if (world_open_proxy(&w))
            world_steal_descriptor(&w, is_taken);
        else
            world_close(&w);
    }
}

TEST(U10_a_handler_that_blocks_holds_up_neither_other_streams_nor_pings)
{
    static const char ping[] = "\0\2\0\1\0\0\0\0\0\0\0\x2A";
    world w;
    char buf[4];
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *blocked = world_dial(&w, "stop", 0, NULL);
        CHECK(blocked && util_gate_wait(&w.held, 1));  // its handler waits at a gate
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        if (CHECK(st != NULL)) {
            CHECK_INT(revdial_write(st, "ping", 4), 4);
            CHECK_INT(util_read_all(st, buf, 4), 4);
        }
        revdial_close(st);
        revdial_close(blocked);
    }
    world_close(&w);
    // The same by hand: what answers a ping is not the thread that serves a stream.
    int port = 0, listener = raw_listen(1, &port);
    char url[64], head[2048];
    raw_frame f = {0};
    snprintf(url, sizeof url, "http://127.0.0.1:%d", port);
    world_init(&w);
    w.acfg.url = url;
    w.agents[0] = revdial_agent_start(&w.acfg, NULL);
    int fd = raw_proxy_accept(listener, head, sizeof head);
    raw_say(fd, RAW_101);
    raw_frame_send(fd, RAW_WINDOW, RAW_SYN, 1, 0);
    CHECK(util_gate_wait(&w.begun, 1));  // it reads, and there is nothing
    raw_send(fd, ping, sizeof ping - 1);
    while (raw_frame_await(fd, RAW_PING, &f) && f.flags != RAW_ACK) {
    }
    CHECK_INT(f.len, 42);
    close(fd);
    close(listener);
    world_close(&w);
}

static util_gate stall_entered = UTIL_GATE, stall_open = UTIL_GATE;

static void on_session_that_stalls(void *ud, revdial_session *s, int state, const revdial_err *why)
{
    revdial_session_info info;
    util_on_session(ud, s, state, why);
    revdial_session_get_info(s, &info);
    if (state != REVDIAL_UP || strcmp(info.name, "stalled") != 0) return;
    util_gate_add(&stall_entered, 1);
    util_gate_wait(&stall_open, 1);
}

TEST(U10_a_callback_that_blocks_stalls_the_sessions_of_its_thread_and_no_other)
{
    world w;
    world_init(&w);
    w.pcfg.common.io_threads = 2;
    w.pcfg.on_session = on_session_that_stalls;
    if (world_open(&w)) {
        w.acfg.name = "stalled";
        w.agents[1] = revdial_agent_start(&w.acfg, NULL);
        CHECK(util_gate_wait(&stall_entered, 1));
        for (int i = 0; i < 3; i++) {
            revdial_stream *st = world_dial(&w, "echo", 0, NULL);
            CHECK(st != NULL);
            revdial_close(st);
        }
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, 0), 1);
        util_gate_add(&stall_open, 1);
        CHECK_INT(revdial_proxy_wait(w.proxy, "stalled", 1, UTIL_WAIT_MS), 1);
        revdial_stream *st = NULL;
        UTIL_EVENTUALLY((st = revdial_dial(w.proxy, "stalled", NULL, NULL)) != NULL);
        revdial_close(st);
    }
    util_gate_add(&stall_open, 1);
    world_close(&w);
}

// Every hook looks whether it could take the locks that its library could hold.
typedef struct lock_watch {
    world w;
    _Atomic(revdial_proxy *) proxy;
    _Atomic(revdial_agent *) agent;
    atomic_int hooks, held;  // hooks that looked: a bit each
} lock_watch;

enum {
    HOOK_SESSION = 1,
    HOOK_STATE = 2,
    HOOK_LOG = 4,
    HOOK_AUTH = 8,
    HOOK_CREDENTIAL = 16,
    HOOK_HANDLER = 32,
    HOOK_DIAL = 64,
    HOOK_JOIN = 128,
    HOOKS = 255
};

static void lock_try(lock_watch *x, pthread_mutex_t *lock)
{
    struct timespec until = util_until(UTIL_WAIT_MS);
    if (pthread_mutex_timedlock(lock, &until) == 0)
        pthread_mutex_unlock(lock);
    else
        atomic_fetch_add(&x->held, 1);
}

static void lock_try_session(lock_watch *x, revdial_session *s)
{
    lock_try(x, &s->lock);
    lock_try(x, &s->loop->lock);
}

static void lock_try_all(lock_watch *x, int hook)
{
    revdial_proxy *p = atomic_load(&x->proxy);
    revdial_agent *a = atomic_load(&x->agent);
    revdial_session *s[2];
    if (p) lock_try(x, &p->own.lock);
    if (a) lock_try(x, &a->own.lock);
    size_t n = p ? revdial_proxy_list(p, NULL, s, 2) : 0;
    for (size_t i = 0; i < n && i < 2; i++) {
        lock_try_session(x, s[i]);
        revdial_session_unref(s[i]);
    }
    atomic_fetch_or(&x->hooks, p && a ? hook : 0);
}

static void lock_on_session(void *ud, revdial_session *s, int state, const revdial_err *why)
{
    lock_watch *x = ud;
    lock_try_session(x, s);
    lock_try_all(x, HOOK_SESSION);
    util_on_session(&x->w, s, state, why);
}
static void lock_on_state(void *ud, int state, const revdial_err *why, int retry_in_ms)
{
    lock_watch *x = ud;
    lock_try_all(x, HOOK_STATE);
    util_on_state(&x->w, state, why, retry_in_ms);
}
static void lock_log(void *ud, int level, const char *event, const char *msg)
{
    (void)level, (void)event, (void)msg;
    lock_try_all(ud, HOOK_LOG);
}
static int lock_auth(void *ud, const revdial_auth_req *req, char *identity, size_t size)
{
    lock_try_all(ud, HOOK_AUTH);
    snprintf(identity, size, "%s", req->name);
    return 0;
}
static int lock_credential(void *ud, unsigned attempt, char *secret, size_t size)
{
    (void)attempt;
    lock_try_all(ud, HOOK_CREDENTIAL);
    snprintf(secret, size, "any");
    return 0;
}
static void lock_handler(void *ud, revdial_stream *st)
{
    lock_watch *x = ud;
    lock_try_session(x, st->session);
    lock_try_all(x, HOOK_HANDLER);
    util_handler(&x->w, st);
}
static void lock_on_dial(void *ud, revdial_stream *st, const revdial_err *err)
{
    lock_watch *x = ud;
    (void)err;
    if (st) lock_try_session(x, st->session);
    lock_try_all(x, HOOK_DIAL);
    revdial_close(st);
    util_gate_add(&x->w.held, 1);
}
static void lock_joined(void *ud, const uint64_t moved[2], const revdial_err *why)
{
    lock_watch *x = ud;
    (void)moved, (void)why;
    lock_try_all(x, HOOK_JOIN);
    util_gate_add(&x->w.held, 1);
}

TEST(U11_no_lock_is_held_while_a_hook_runs)
{
    lock_watch *x = calloc(1, sizeof *x);
    REQUIRE(x != NULL);
    world *w = &x->w;
    world_init(w);
    w->pcfg.on_session = lock_on_session;
    w->pcfg.auth = lock_auth;
    w->pcfg.credentials = NULL;
    w->pcfg.credential_count = 0;
    w->acfg.on_state = lock_on_state;
    w->acfg.credential_fn = lock_credential;
    w->acfg.handler = lock_handler;
    w->pcfg.ud = w->pcfg.auth_ud = w->acfg.ud = w->acfg.credential_ud = x;
    w->pcfg.common.log = w->acfg.common.log = lock_log;
    w->pcfg.common.log_ud = w->acfg.common.log_ud = x;
    w->pcfg.common.log_level = w->acfg.common.log_level = REVDIAL_LOG_DEBUG;
    if (world_open(w)) {
        atomic_store(&x->proxy, w->proxy);
        atomic_store(&x->agent, w->agents[0]);
        revdial_session *s = revdial_agent_wait(w->agents[0], UTIL_WAIT_MS, NULL);
        revdial_session_kill(s);  // all of it once more, now that all is known
        revdial_session_unref(s);
        CHECK(util_log_wait(&w->states, REVDIAL_UP, 2, NULL));
        CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, NULL));
        CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
        CHECK(revdial_dial_async(w->proxy, "cam-1", NULL, lock_on_dial, x) > 0);
        CHECK(util_gate_wait(&w->held, 1));
        revdial_stream *st = world_dial(w, "echo", 0, NULL);
        int pair[2];
        CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
        revdial_relay_opts join = {.done = lock_joined, .ud = x};
        CHECK_INT(revdial_relay(st, pair[0], pair[0], &join), 0);
        close(pair[1]);
        CHECK(util_gate_wait(&w->held, 2));
    }
    atomic_store(&x->proxy, NULL);
    atomic_store(&x->agent, NULL);
    world_close(w);
    CHECK_INT(atomic_load(&x->held), 0);
    CHECK_INT(atomic_load(&x->hooks), HOOKS);
    free(x);
}

TEST(U35_only_the_monotonic_clock_is_asked_and_waits_are_by_it)
{
    world w;
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t cond;
    atomic_store(&util_other_clocks, 0);
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        revdial_pollfd p = {st, 0, POLLIN, 0};
        char c;
        CHECK(st != NULL);
        revdial_stream_set_deadline(st, REVDIAL_RD, 1);
        CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ETIMEDOUT);
        CHECK_INT(revdial_poll(&p, 1, 1), 0);
        CHECK_INT(revdial_proxy_wait(w.proxy, "nobody", 1, 1), REVDIAL_ETIMEDOUT);
        revdial_close(st);
    }
    world_close(&w);
    CHECK_INT(atomic_load(&util_other_clocks), 0);
    // A condition by the wall clock would take a time since boot as one long past.
    REQUIRE(rvd_sys_cond_open(&cond) == 0);
    pthread_mutex_lock(&lock);
    int64_t at = rvd_sys_now_us() + 2000;
    while (rvd_sys_cond_wait(&cond, &lock, at) != -ETIMEDOUT) {
    }
    CHECK(rvd_sys_now_us() >= at);
    pthread_mutex_unlock(&lock);
    pthread_cond_destroy(&cond);
}

// A text of so many letters.
static const char *letters(size_t n)
{
    static char text[(1 << 20) + 1];
    memset(text, 'a', n);
    text[n] = '\0';
    return text;
}

static int agent_takes(const revdial_agent_config *cfg)
{
    revdial_err err = {0};
    revdial_agent *a = revdial_agent_start(cfg, &err);
    if (!a && (err.code != REVDIAL_EINVAL || !err.msg[0]))
        test_fail(__FILE__, __LINE__, "%d %s", err.code, err.msg);
    revdial_agent_stop(a, 0);
    return a != NULL;
}

TEST(U40_names_tokens_and_paths_are_taken_up_to_their_limit)
{
    enum { NAME, INSTANCE, TOKEN, HEADER, FIELDS };
    static const size_t limits[FIELDS] = {64, 64, 4096, 0};
    char url[64];
    snprintf(url, sizeof url, "http://127.0.0.1:%d", raw_closed_port());
    for (int field = NAME; field < FIELDS; field++) {
        const size_t sizes[] = {1, limits[field], limits[field] + 1, 1 << 20};
        for (int i = 0; i < 4; i++) {
            world w;
            world_init(&w);
            w.acfg.url = url;
            revdial_kv header = {"X-Long", letters(sizes[i])};
            if (field == NAME) w.acfg.name = header.value;
            if (field == INSTANCE) w.acfg.instance = header.value;
            if (field == TOKEN) w.acfg.secret = header.value;
            if (field == HEADER) {  // no limit of its own: the head has one
                if (i == 1 || i == 2) continue;
                w.acfg.headers = &header;
                w.acfg.header_count = 1;
            }
            if (agent_takes(&w.acfg) != (i < 2))
                test_fail(__FILE__, __LINE__, "field %d with %zu bytes", field, sizes[i]);
        }
    }
    for (int i = 0; i < 2; i++) {  // a URL is bounded before its path is
        world w;
        char *long_url = malloc((1 << 20) + 100);
        if (!long_url) abort();
        sprintf(long_url, "%s/%s", url, letters(i ? (size_t)1 << 20 : 299 - strlen(url) - 1));
        world_init(&w);
        w.acfg.url = long_url;
        CHECK_INT(agent_takes(&w.acfg), !i);
        free(long_url);
    }
}

WORLD_TEST(U40_what_a_dial_says_is_refused_beyond_its_limit_and_the_session_lives)
{
    static const size_t sizes[] = {64, 65, 5000, 1 << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        revdial_err err = {0};
        revdial_kv meta = {"k", letters(sizes[i])};
        revdial_dial_opts opts = {.meta = &meta, .meta_count = 1};
        CHECK(revdial_dial(w->proxy, meta.value, NULL, &err) == NULL);
        CHECK(err.code == REVDIAL_ENOBACKEND || err.code == REVDIAL_EINVAL);
        revdial_stream *st = revdial_dial(w->proxy, "cam-1", &opts, &err);
        CHECK((st != NULL) == (i < 2));
        CHECK(st || err.code == REVDIAL_EINVAL);
        revdial_close(st);
    }
}

WORLD_TEST(a_dial_says_34_pairs_and_one_more_is_refused_here_and_costs_the_session_nothing)
{
    char keys[35][4];
    revdial_kv meta[35] = {{"do", "echo"}};
    revdial_err err = {0};
    for (int i = 1; i < 35; i++) {
        snprintf(keys[i], sizeof keys[i], "k%d", i);
        meta[i] = (revdial_kv){keys[i], "v"};
    }
    for (int i = 0; i < 200; i++) {  // more than a peer forgives
        revdial_dial_opts opts = {.meta = meta, .meta_count = 35};
        REQUIRE(revdial_dial(w->proxy, "cam-1", &opts, &err) == NULL);
        REQUIRE(err.code == REVDIAL_EINVAL && err.reset == 0);
    }
    CHECK_STR(err.msg, "meta: over 34 pairs");
    revdial_dial_opts opts = {.target = "t:1",
                              .client_addr = "192.0.2.1:1",
                              .local_addr = "192.0.2.2:2",
                              .peer_name = "cam-1",
                              .timeout_ms = UTIL_WAIT_MS,
                              .meta = meta,
                              .meta_count = 34};
    revdial_stream *st = revdial_dial(w->proxy, "cam-1", &opts, &err);
    CHECK(st != NULL);
    revdial_close(st);
    CHECK_INT(util_log_count(&w->sessions, REVDIAL_DOWN, NULL), 0);
}

TEST(U41_a_token_that_could_break_out_of_its_line_is_refused)
{
    static const char *const bad[] = {"a\r\nX: y", "a\r",  "a\nb",  "a b",  " a", "a ",
                                      "a\tb",      "\xff", "a\x7f", "a\"b", "a=b"};
    char url[64];
    snprintf(url, sizeof url, "http://127.0.0.1:%d", raw_closed_port());
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        world w;
        world_init(&w);
        w.acfg.url = url;
        w.acfg.secret = bad[i];
        if (agent_takes(&w.acfg)) test_fail(__FILE__, __LINE__, "token %d is taken", (int)i);
    }
}

typedef struct small {
    world *w;
    int ok;
} small;

static void *small_run(void *arg)
{
    small *x = arg;
    char buf[4];
    revdial_err err;
    revdial_stream *st = world_dial(x->w, "echo", 0, &err);
    revdial_pollfd p = {st, 0, POLLIN, 0};
    x->ok = st && revdial_write(st, "ping", 4) == 4 && revdial_poll(&p, 1, UTIL_WAIT_MS) == 1 &&
            util_read_all(st, buf, 4) == 4;
    int fd = st ? revdial_stream_fd(st) : -1;
    x->ok = x->ok && fd >= 0;
    close(fd);
    return NULL;
}

WORLD_TEST(U48_a_thread_with_a_stack_of_64_KiB_is_enough)
{
    size_t size = 65536;
    pthread_attr_t attr;
    pthread_t t;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    size *= 8;  // their frames are larger
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
    size *= 8;
#endif
#endif
    small x = {w, 0};
    pthread_attr_init(&attr);
    CHECK_INT(pthread_attr_setstacksize(&attr, size), 0);
    CHECK_INT(pthread_create(&t, &attr, small_run, &x), 0);
    pthread_join(t, NULL);
    CHECK(x.ok);
    pthread_attr_destroy(&attr);
}

// Cancelling leaves the frame by no way that AddressSanitizer watches.
__attribute__((no_sanitize_address)) static void *cancelled_run(void *arg)
{
    reader *r = arg;
    int before;
    char c;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
    r->end = revdial_read(r->st, &c, 1);
    r->bytes = 1;
    pthread_setcancelstate(before, &before);
    pthread_testcancel();
    r->bytes = 2;
    return NULL;
}

WORLD_TEST(U52_a_thread_that_is_cancelled_with_cancelling_disabled_ends_after_the_call)
{
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    if (CHECK(st != NULL)) {
        reader r = {st, 0, 0, -1};
        void *result = NULL;
        pthread_t t = util_thread(cancelled_run, &r);
        pthread_cancel(t);
        CHECK_INT(revdial_write(st, "x", 1), 1);
        pthread_join(t, &result);
        CHECK(result == PTHREAD_CANCELED);
        CHECK(r.bytes == 0 || (r.bytes == 1 && r.end == 1));
        // Whether it was cancelled before or after its call: the session is as it was.
        revdial_stream *next = world_dial(w, "echo", 0, NULL);
        CHECK(next != NULL);
        revdial_close(next);
        revdial_close(st);
    }
}

TEST(U37_a_clock_near_its_end_works_like_any_other)
{
    static const int64_t starts[] = {0, INT64_C(4294967290000), INT64_MAX - INT64_C(3600000000)};
    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
        revdial_engine_config cfg = {.role = REVDIAL_ROLE_PROXY, .upgraded = 1};
        revdial_event ev;
        struct iovec iov[4];
        int64_t at = starts[i], next;
        int dead = 0;
        revdial_engine *e = revdial_engine_new(&cfg, at, NULL);
        REQUIRE(e != NULL);
        for (int rounds = 0; rounds < 10 && !dead; rounds++) {  // nobody answers its ping
            next = revdial_engine_tick(e, at);
            for (int n; (n = revdial_engine_output(e, iov, 4)) > 0;) {
                size_t sum = 0;
                for (int k = 0; k < n; k++) sum += iov[k].iov_len;
                revdial_engine_sent(e, sum);
            }
            while (revdial_engine_event(e, &ev)) dead |= ev.type == REVDIAL_EV_DEAD;
            next = dead ? at : revdial_engine_tick(e, at);
            CHECK(next >= at && next - at <= INT64_C(30000000));
            at = next;
        }
        CHECK(dead);
        CHECK(at - starts[i] <= INT64_C(31000000));
        revdial_engine_free(e);
    }
}

typedef struct talker {
    world *w;
    atomic_int lines;
} talker;

// A log hook that uses the library.
static void log_and_ask(void *ud, int level, const char *event, const char *msg)
{
    talker *x = ud;
    revdial_stats stats;
    (void)level;
    (void)event;
    (void)msg;
    if (x->w->proxy) revdial_proxy_get_stats(x->w->proxy, &stats);
    atomic_fetch_add(&x->lines, 1);
}

TEST(U50_a_log_hook_may_ask_the_library)
{
    world w;
    talker x = {&w, 0};
    world_init(&w);
    w.pcfg.common.log = log_and_ask;
    w.pcfg.common.log_ud = &x;
    w.pcfg.common.log_level = REVDIAL_LOG_DEBUG;
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        CHECK(st != NULL);
        revdial_close(st);
    }
    world_close(&w);
    CHECK(atomic_load(&x.lines) >= 2);
}

NEW_WORLD_TEST(A71_a_backend_that_does_not_read_its_101_loses_its_name_at_the_end_of_its_session)
{
    char head[2048];
    w->pcfg.common.limits.keepalive_ms = 100;
    w->pcfg.common.limits.dead_after_ms = 50;
    REQUIRE(world_open_proxy(w));
    int fd = raw_connect(w->address);  // asks, and never reads
    raw_request(head, sizeof head, "cam-1", "s3cret", NULL);
    CHECK(raw_say(fd, head));
    CHECK(util_log_wait(&w->sessions, REVDIAL_UP, 1, NULL));
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, NULL));
    CHECK_INT(revdial_proxy_list(w->proxy, "*", NULL, 0), 0);
    close(fd);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
