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
        {"session_window", {.session_window = 1000}},
        {"frame_bytes_max", {.frame_bytes_max = 65525}},
        {"frame_bytes_max", {.frame_bytes_max = 511}},
        {"max_streams", {.max_streams = 1u << 25}},
        {"time", {.keepalive_ms = -1}},
        {"time", {.handshake_timeout_ms = -5}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        world w;
        revdial_err err = {0};
        world_init(&w);
        w.pcfg.common.limits = cases[i].limits;
        CHECK(revdial_proxy_open(&w.pcfg, &err) == NULL);
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

// Ends the session that has just come up, from its own callback.
static void kill_what_comes_up(void *ud, revdial_session *s, int state, const revdial_err *why)
{
    util_on_session(ud, s, state, why);
    if (state == REVDIAL_UP) revdial_session_kill(s);
}

TEST(U8_U9_a_callback_may_end_the_session_that_it_is_told_of)
{
    world w;
    world_init(&w);
    w.pcfg.on_session = kill_what_comes_up;
    if (world_open_proxy(&w)) {
        w.acfg.url = w.url;
        w.agents[0] = revdial_agent_start(&w.acfg, NULL);
        CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 3, NULL));
        CHECK(util_log_count(&w.sessions, REVDIAL_UP, NULL) >= 3);
    }
    world_close(&w);
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

TEST(U12_two_readers_share_a_stream_and_each_byte_goes_to_one)
{
    enum { TOTAL = 1000000 };
    world w;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "source", TOTAL, NULL);
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
    world_close(&w);
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

TEST(U13_small_writes_of_two_threads_are_not_mixed)
{
    world w;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
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
    world_close(&w);
}

TEST(U20_a_dial_on_a_session_that_drains_or_is_down_says_which)
{
    world w;
    revdial_err err = {0};
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *held = world_dial(&w, "hold", 0, NULL);
        revdial_session *s = revdial_stream_session(held);
        revdial_session_drain(s, -1);
        CHECK(revdial_session_dial(s, NULL, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_EDRAINING);
        revdial_close(held);
        CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 1, NULL));
        CHECK(revdial_session_dial(s, NULL, &err) == NULL);
        CHECK(err.code == REVDIAL_EDRAINING || err.code == REVDIAL_ECLOSED);
        CHECK(revdial_session_dial(NULL, NULL, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_EINVAL);
        revdial_session_unref(s);
    }
    world_close(&w);
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
    if (x->w->proxy) revdial_proxy_stats(x->w->proxy, &stats);
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

TEST(A71_a_backend_that_does_not_read_its_101_loses_its_name_at_the_end_of_its_session)
{
    world w;
    char head[2048];
    world_init(&w);
    w.pcfg.common.limits.keepalive_ms = 50;
    w.pcfg.common.limits.dead_after_ms = 50;
    if (world_open_proxy(&w)) {
        int fd = raw_connect(w.address);  // asks, and never reads
        raw_request(head, sizeof head, "cam-1", "s3cret", NULL);
        CHECK(raw_say(fd, head));
        CHECK(util_log_wait(&w.sessions, REVDIAL_UP, 1, NULL));
        CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 1, NULL));
        CHECK_INT(revdial_proxy_list(w.proxy, "*", NULL, 0), 0);
        close(fd);
    }
    world_close(&w);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
