// Limits of sessions in the runtime: those of one credential, and those that change while sessions
// are up. What a rate does to streams is in test_rates.c, in virtual time.
#include "runtime_util.h"

enum { SLOW = 2000000, SLOW_BYTES = 1000000, DIALS_MAX = 8 };

// ------------------------------------------------------------------------------------------------
// Streams that stay

typedef struct dials {
    revdial_stream *st[DIALS_MAX];
    int up, refused;
} dials;

static revdial_stream *dial_to(world *w, const char *name, const char *what, revdial_err *err)
{
    revdial_kv meta = {"do", what};
    revdial_dial_opts opts = {.meta = &meta, .meta_count = 1};
    return revdial_dial(w->proxy, name, &opts, err);
}

// Opens n more. Those above a limit are counted, others have failed.
static void dials_open(dials *d, world *w, const char *name, int n)
{
    for (int i = 0; i < n; i++) {
        revdial_err err = {0};
        revdial_stream *st = dial_to(w, name, "echo", &err);
        if (st)
            d->st[d->up++] = st;
        else if (CHECK_INT(err.code, REVDIAL_ELIMIT))
            d->refused++;
    }
}

// Each of them still answers.
static void dials_answer(const dials *d)
{
    for (int i = 0; i < d->up; i++) {
        char c = 0;
        CHECK_INT(revdial_write(d->st[i], "x", 1), 1);
        CHECK_INT(revdial_read(d->st[i], &c, 1), 1);
    }
}

static void dials_close(dials *d)
{
    while (d->up > 0) revdial_close(d->st[--d->up]);
}

// cam-1 and cam-2, each by a row of its own.
static const revdial_credential alice = {.secret = "s3cret", .user = "alice", .names = "cam-1"};
static const revdial_credential bob = {.secret = "0ther", .user = "bob", .names = "cam-2"};

static int open_both(world *w, revdial_credential rows[2])
{
    w->pcfg.credentials = rows;
    w->pcfg.credential_count = 2;
    if (!world_open(w)) return 0;
    w->acfg.name = "cam-2";
    w->acfg.secret = "0ther";
    return world_open_agent(w, 1) && revdial_proxy_wait(w->proxy, "cam-2", 1, UTIL_WAIT_MS) == 1;
}

// Streams that the session of a name has refused.
static uint64_t refused_by(world *w, const char *name)
{
    revdial_session *s = NULL;
    revdial_session_info info = {0};
    CHECK_INT(revdial_proxy_list(w->proxy, name, &s, 1), 1);
    if (s) revdial_session_get_info(s, &info);
    revdial_session_unref(s);
    return info.streams_refused;
}

// ------------------------------------------------------------------------------------------------
// Of one credential

NEW_WORLD_TEST(a_row_limits_the_streams_of_each_of_its_sessions_and_of_no_other)
{
    revdial_credential rows[2] = {alice, bob};
    revdial_stats stats;
    dials one = {0}, two = {0};
    rows[0].quota.max_own_streams = 2;
    REQUIRE(open_both(w, rows));
    dials_open(&one, w, "cam-1", 4);
    dials_open(&two, w, "cam-2", 4);
    CHECK_INT(one.up, 2);
    CHECK_INT(two.up, 4);
    CHECK_INT(refused_by(w, "cam-1"), 2);
    CHECK_INT(refused_by(w, "cam-2"), 0);
    revdial_proxy_get_stats(w->proxy, &stats);
    CHECK_INT(stats.streams_refused, 2);
    dials_answer(&one);
    dials_close(&one);
    dials_close(&two);
}

NEW_WORLD_TEST(a_row_that_changes_limits_sessions_that_are_up_and_ends_no_stream)
{
    static const unsigned most[] = {3, 1, 4, 0};  // 0: as the proxy's config
    static const int may[] = {3, 0, 1, 2};        // of two more each time, except at first
    revdial_credential rows[2] = {alice, bob};
    dials d = {0};
    w->pcfg.common.limits.max_own_streams = 6;
    rows[0].quota.max_own_streams = most[0];
    REQUIRE(open_both(w, rows));
    for (int i = 0; i < 4; i++) {
        int before = d.up;
        rows[0].quota.max_own_streams = most[i];
        CHECK_INT(revdial_proxy_replace_credentials(w->proxy, rows, 2, REVDIAL_END_STALE, NULL), 0);
        dials_open(&d, w, "cam-1", i == 0 ? 4 : 2);
        CHECK_INT(d.up - before, may[i]);
        dials_answer(&d);
    }
    CHECK_INT(util_log_count(&w->sessions, REVDIAL_DOWN, NULL), 0);
    dials_close(&d);
}

// Holds the thread that frees a table: its successor is in force, and no session knows of it yet.
typedef struct replacing {
    revdial_proxy *proxy;
    const revdial_credential *rows;
    atomic_int is_armed;
    util_gate held, go;
} replacing;

static void *replacing_alloc(void *ud, void *ptr, size_t old_size, size_t size)
{
    replacing *r = ud;
    if (!size && old_size == sizeof(rvd_auth_table) && atomic_exchange(&r->is_armed, 0)) {
        util_gate_add(&r->held, 1);
        util_gate_wait(&r->go, 1);
    }
    if (size) return realloc(ptr, size);
    free(ptr);
    return NULL;
}

static void *replacing_run(void *arg)
{
    replacing *r = arg;
    CHECK_INT(revdial_proxy_replace_credentials(r->proxy, r->rows, 2, 0, NULL), 0);
    return NULL;
}

NEW_WORLD_TEST(of_two_tables_that_are_replaced_at_once_the_one_in_force_limits_sessions)
{
    static replacing r;
    revdial_credential before[2] = {alice, bob}, after[2] = {alice, bob};
    dials d = {0};
    util_gate_init(&r.held);
    util_gate_init(&r.go);
    before[0].quota.max_own_streams = 1;
    after[0].quota.max_own_streams = 3;
    w->pcfg.common.alloc = replacing_alloc;
    w->pcfg.common.alloc_ud = &r;
    REQUIRE(open_both(w, before));
    r.proxy = w->proxy;
    r.rows = before;
    atomic_store(&r.is_armed, 1);
    pthread_t slow = util_thread(replacing_run, &r);
    CHECK(util_gate_wait(&r.held, 1));
    CHECK_INT(revdial_proxy_replace_credentials(w->proxy, after, 2, 0, NULL), 0);
    util_gate_add(&r.go, 1);
    pthread_join(slow, NULL);
    dials_open(&d, w, "cam-1", 4);
    CHECK_INT(d.up, 3);
    dials_close(&d);
}

TEST(a_row_has_a_number_of_sessions_of_its_own)
{
    static const unsigned most[] = {1, 3};  // below and above that of the config
    for (int i = 0; i < 2; i++) {
        world v;
        util_state why = {0};
        revdial_credential row = alice;
        world_init(&v);
        row.quota.max_sessions = most[i];
        v.pcfg.credentials = &row;
        v.pcfg.max_sessions_per_identity = 2;
        if (world_open(&v)) {
            for (unsigned k = 1; k < most[i]; k++) CHECK(world_open_agent(&v, (int)k));
            revdial_agent *more = revdial_agent_start(&v.acfg, NULL);
            CHECK(util_log_wait(&v.states, REVDIAL_BACKOFF, 1, &why));
            CHECK_INT(why.code, REVDIAL_ELIMIT);
            CHECK_INT(util_log_count(&v.sessions, REVDIAL_UP, NULL), most[i]);
            revdial_agent_stop(more, 0);
        }
        world_close(&v);
    }
}

// The window of a stream is what a second of its rate carries.
NEW_WORLD_TEST(a_row_has_rates_of_its_own)
{
    revdial_credential rows[2] = {alice, bob};
    static const char *const names[] = {"cam-1", "cam-2"};
    static const unsigned windows[] = {20000, 65536};
    rows[0].quota.stream_rate = 20000;
    REQUIRE(open_both(w, rows));
    for (int i = 0; i < 2; i++) {
        revdial_stream_info info = {.client = ""};
        revdial_stream *st = dial_to(w, names[i], "hold", NULL);
        revdial_session *s = NULL;
        REQUIRE(st != NULL);
        CHECK_INT(revdial_proxy_list(w->proxy, names[i], &s, 1), 1);
        if (s) CHECK_INT(revdial_session_list_streams(s, 0, &info, 1), 1);
        CHECK_INT(info.flow.window, windows[i]);
        revdial_session_unref(s);
        revdial_close(st);
    }
}

typedef struct judging {
    revdial_quota quota;
    int calls;
} judging;

static int judge(void *ud, const revdial_auth_req *req, char *identity, size_t size)
{
    judging *j = ud;
    j->calls++;
    CHECK_INT(req->quota->max_own_streams, 0);
    *req->quota = j->quota;
    snprintf(identity, size, "somebody");
    return REVDIAL_VERDICT_ADMIT;
}

NEW_WORLD_TEST(a_hook_gives_limits_to_what_it_admits)
{
    judging j = {.quota = {.max_own_streams = 2, .session_rate = 50000}};
    dials d = {0};
    w->pcfg.auth = judge;
    w->pcfg.auth_ud = &j;
    REQUIRE(world_open(w));
    dials_open(&d, w, "cam-1", 3);
    CHECK_INT(d.up, 2);
    CHECK_INT(d.refused, 1);
    CHECK_INT(j.calls, 1);
    dials_close(&d);
}

NEW_WORLD_TEST(limits_of_a_hook_or_a_row_that_cannot_be_admit_nobody)
{
    judging j = {.quota = {.stream_rate = 999}};
    util_state why = {0};
    revdial_credential bad = alice;
    w->pcfg.auth = judge;
    w->pcfg.auth_ud = &j;
    REQUIRE(world_open_proxy(w));
    w->acfg.url = w->url;
    w->agents[0] = revdial_agent_start(&w->acfg, NULL);
    CHECK(util_log_wait(&w->states, REVDIAL_BACKOFF, 1, &why));
    CHECK_INT(why.code, REVDIAL_ELIMIT);
    CHECK_INT(util_log_count(&w->sessions, 0, NULL), 0);
    bad.quota.session_rate = 100000000001;
    CHECK_STR(revdial_credential_problem(&bad), "quota: a rate is not in 1000..100000000000");
    bad.quota = (revdial_quota){.max_streams = (1 << 24) + 1};
    CHECK_STR(revdial_credential_problem(&bad), "quota: over 16777216 streams");
    CHECK_INT(revdial_proxy_replace_credentials(w->proxy, &bad, 1, 0, NULL), REVDIAL_EINVAL);
}

// ------------------------------------------------------------------------------------------------
// Of all sessions

NEW_WORLD_TEST(new_limits_of_a_proxy_are_for_sessions_that_are_up_and_for_those_to_come)
{
    revdial_credential rows[2] = {alice, bob};
    revdial_limits limits = {.max_own_streams = 2};
    dials one = {0}, two = {0};
    rows[1].quota.max_own_streams = 4;
    REQUIRE(open_both(w, rows));
    dials_open(&one, w, "cam-1", 3);
    CHECK_INT(revdial_proxy_replace_session_limits(w->proxy, &limits, NULL), 0);
    dials_open(&one, w, "cam-1", 1);
    dials_open(&two, w, "cam-2", 5);  // what its row says counts
    CHECK_INT(one.up, 3);
    CHECK_INT(two.up, 4);
    dials_answer(&one);
    dials_close(&one);
    dials_close(&two);
    revdial_session *s = NULL;
    CHECK_INT(revdial_proxy_list(w->proxy, "cam-1", &s, 1), 1);
    if (s) revdial_session_kill(s);
    revdial_session_unref(s);
    CHECK(util_log_wait(&w->sessions, REVDIAL_UP, 3, NULL));
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
    dials_open(&one, w, "cam-1", 3);
    CHECK_INT(one.up, 2);
    dials_close(&one);
}

#ifdef TCP_USER_TIMEOUT
static int user_timeout_of(revdial_session *s)
{
    int ms = -1;
    socklen_t len = sizeof ms;
    CHECK_INT(getsockopt(s->fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, &len), 0);
    return ms;
}

// Four times the longer of write_stall, and of keepalive and dead_after.
NEW_WORLD_TEST(the_socket_of_a_session_that_gets_more_time_is_given_more_time_too)
{
    revdial_limits limits = {.write_stall_ms = 1000000};
    REQUIRE(world_open(w));
    revdial_session *s = revdial_agent_wait(w->agents[0], UTIL_WAIT_MS, NULL);
    REQUIRE(s != NULL);
    UTIL_EVENTUALLY(user_timeout_of(s) == 4 * (15000 + 15000));
    CHECK_INT(revdial_agent_replace_session_limits(w->agents[0], &limits, NULL), 0);
    CHECK_INT(user_timeout_of(s), 4 * 1000000);
    limits = (revdial_limits){.keepalive_ms = 5000, .dead_after_ms = 4000, .write_stall_ms = 1};
    CHECK_INT(revdial_agent_replace_session_limits(w->agents[0], &limits, NULL), 0);
    CHECK_INT(user_timeout_of(s), 4 * (5000 + 4000));
    revdial_session_unref(s);
}
#endif

NEW_WORLD_TEST(new_limits_that_cannot_be_change_nothing)
{
    revdial_limits limits = {.max_own_streams = 1, .session_rate = 999};
    revdial_err err = {0};
    dials d = {0};
    REQUIRE(world_open(w));
    CHECK_INT(revdial_proxy_replace_session_limits(w->proxy, &limits, &err), REVDIAL_EINVAL);
    CHECK(strstr(err.msg, "limits.session_rate: 999 is not in") != NULL);
    CHECK_INT(revdial_agent_replace_session_limits(w->agents[0], &limits, &err), REVDIAL_EINVAL);
    dials_open(&d, w, "cam-1", 2);
    CHECK_INT(d.up, 2);
    dials_close(&d);
}

NEW_WORLD_TEST(new_limits_of_an_agent_are_for_the_session_that_is_up)
{
    revdial_kv meta = {"do", "hold"};
    revdial_dial_opts opts = {.meta = &meta, .meta_count = 1};
    revdial_stream *st[3];
    revdial_err err = {0};
    w->pcfg.on_stream = util_handler;
    REQUIRE(world_open(w));
    revdial_session *s = revdial_agent_wait(w->agents[0], UTIL_WAIT_MS, NULL);
    REQUIRE(s != NULL);
    for (int i = 0; i < 2; i++) CHECK((st[i] = revdial_session_dial(s, &opts, NULL)) != NULL);
    revdial_limits limits = {.max_own_streams = 2};
    CHECK_INT(revdial_agent_replace_session_limits(w->agents[0], &limits, NULL), 0);
    CHECK(revdial_session_dial(s, &opts, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_ELIMIT);
    limits.max_own_streams = 3;
    CHECK_INT(revdial_agent_replace_session_limits(w->agents[0], &limits, NULL), 0);
    CHECK((st[2] = revdial_session_dial(s, &opts, NULL)) != NULL);
    for (int i = 0; i < 3; i++) revdial_close(st[i]);
    revdial_session_unref(s);
}

// ------------------------------------------------------------------------------------------------
// Handlers

// Opens streams that keep their handlers until one is refused. Returns how many.
static int fill_handlers(revdial_session *s, revdial_stream *st[], int most)
{
    revdial_kv meta = {"do", "hold"};
    revdial_dial_opts opts = {.meta = &meta, .meta_count = 1};
    revdial_err err = {0};
    int count = 0;
    while (count < most && (st[count] = revdial_session_dial(s, &opts, &err)) != NULL) count++;
    CHECK_INT(err.reset, REVDIAL_RESET_CALM);
    return count;
}

// Of a proxy's 1024.
NEW_WORLD_TEST(an_agent_that_keeps_its_handlers_leaves_half_of_them_to_the_others)
{
    enum { MOST = 1025 };
    static revdial_stream *st[2][MOST];
    static const int shares[] = {512, 256};
    revdial_credential rows[2] = {alice, bob};
    revdial_session *s[2];
    revdial_kv meta = {"do", "hold"};
    revdial_dial_opts opts = {.meta = &meta, .meta_count = 1};
    int count[2];
    w->pcfg.on_stream = util_handler;
    REQUIRE(open_both(w, rows));
    for (int i = 0; i < 2; i++) {
        s[i] = revdial_agent_wait(w->agents[i], UTIL_WAIT_MS, NULL);
        REQUIRE(s[i] != NULL);
        count[i] = fill_handlers(s[i], st[i], MOST);
        CHECK_INT(count[i], shares[i]);
    }
    // What one gives back, it may have again.
    for (int k = 0; k < 3; k++) revdial_close(st[1][--count[1]]);
    for (int k = 0; k < 3; k++, count[1]++)
        UTIL_EVENTUALLY((st[1][count[1]] = revdial_session_dial(s[1], &opts, NULL)) != NULL);
    CHECK_INT(fill_handlers(s[1], st[1] + count[1], 1), 0);
    for (int i = 0; i < 2; i++) {
        while (count[i] > 0) revdial_close(st[i][--count[i]]);
        revdial_session_unref(s[i]);
    }
}

// An agent with one proxy has all its handlers for it, one with two shares them.
TEST(a_proxy_that_keeps_handlers_of_an_agent_leaves_some_to_other_proxies)
{
    static const int may[] = {8, 4};
    for (int i = 0; i < 2; i++) {
        world w, other;
        char both[200];
        revdial_stream *st[9];
        revdial_session *s = NULL;
        world_init(&w);
        world_init(&other);
        if (world_open_proxy(&w) && world_open_proxy(&other)) {
            snprintf(both, sizeof both, "%s,%s", w.url, other.url);
            w.acfg.url = i ? both : w.url;
            w.acfg.max_handlers = 8;
            CHECK(world_open_agent(&w, 0));
            CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
            CHECK_INT(revdial_proxy_list(w.proxy, "cam-1", &s, 1), 1);
            int count = fill_handlers(s, st, 9);
            CHECK_INT(count, may[i]);
            if (i) {
                CHECK_INT(revdial_proxy_wait(other.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
                revdial_stream *echo = world_dial(&other, "echo", 0, NULL);
                CHECK(echo != NULL);
                revdial_close(echo);
            }
            while (count > 0) revdial_close(st[--count]);
            revdial_session_unref(s);
        }
        world_close(&w);
        world_close(&other);
    }
}

// ------------------------------------------------------------------------------------------------
// Rates

// That a busy machine takes longer does not matter.
static int took_its_time(int64_t since_ms)
{
    const int free_bytes = SLOW / 4 + 2 * 65536;  // a burst, and windows
    return util_now_ms() - since_ms >= (SLOW_BYTES - free_bytes) / (SLOW / 1000);
}

NEW_WORLD_TEST(a_new_rate_is_for_streams_that_run_and_ends_with_the_next_one)
{
    char first;
    REQUIRE(world_open(w));
    revdial_stream *down = world_dial(w, "source", 2 * SLOW_BYTES, NULL);
    revdial_stream *up = world_dial(w, "sink", 0, NULL);
    REQUIRE(down && up);
    CHECK_INT(revdial_read(down, &first, 1), 1);
    CHECK_INT(util_write_payload(up, 1000, 2), 1000);
    revdial_limits limits = {.session_rate = SLOW};
    CHECK_INT(revdial_proxy_replace_session_limits(w->proxy, &limits, NULL), 0);
    int64_t since = util_now_ms();
    static uint8_t bytes[2 * SLOW_BYTES];
    util_fill(bytes, SLOW_BYTES, 1000, 2);
    CHECK_INT(revdial_write(up, bytes, SLOW_BYTES), SLOW_BYTES);
    CHECK(took_its_time(since));
    since = util_now_ms();
    CHECK_INT(util_read_all(down, bytes, 2 * SLOW_BYTES - 1), 2 * SLOW_BYTES - 1);
    CHECK(took_its_time(since));
    CHECK(util_matches(bytes, 2 * SLOW_BYTES - 1, 1, 1));
    // A megabyte at the least rate would take a quarter of an hour.
    limits.session_rate = 1000;
    CHECK_INT(revdial_proxy_replace_session_limits(w->proxy, &limits, NULL), 0);
    revdial_stream_set_deadline(up, REVDIAL_WR, 10);
    CHECK(revdial_write(up, bytes, SLOW_BYTES) < SLOW_BYTES);
    revdial_stream_set_deadline(up, REVDIAL_WR, -1);
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    CHECK_INT(revdial_proxy_replace_session_limits(w->proxy, &(revdial_limits){0}, NULL), 0);
    if (!st) st = world_dial(w, "echo", 0, NULL);
    REQUIRE(st != NULL);
    CHECK_INT(revdial_write(st, "x", 1), 1);
    CHECK_INT(revdial_read(st, &first, 1), 1);
    CHECK_INT(util_write_payload(up, SLOW_BYTES, 2), SLOW_BYTES);
    revdial_close(st);
    revdial_close(down);
    revdial_close(up);
}

typedef struct poor {
    atomic_int is_armed;
    util_gate said;
} poor;

// Has no memory for what a stream of a session with a rate needs.
static void *poor_alloc(void *ud, void *ptr, size_t old_size, size_t size)
{
    poor *p = ud;
    (void)old_size;
    if (!ptr && size == sizeof(rvd_mux_share) && atomic_load(&p->is_armed)) return NULL;
    if (size) return realloc(ptr, size);
    free(ptr);
    return NULL;
}

static void poor_log(void *ud, int level, const char *event, const char *msg)
{
    poor *p = ud;
    if (strcmp(event, "session.limits") != 0) return;
    CHECK_INT(level, REVDIAL_LOG_WARN);
    CHECK(strstr(msg, "name=cam-1") && strstr(msg, "memory"));
    util_gate_add(&p->said, 1);
}

NEW_WORLD_TEST(the_log_says_which_session_had_no_memory_for_its_new_rate)
{
    static poor p;
    revdial_credential rows[2] = {alice, bob};
    dials d = {0};
    util_gate_init(&p.said);
    w->pcfg.common.alloc = poor_alloc;
    w->pcfg.common.alloc_ud = &p;
    w->pcfg.common.log = poor_log;
    w->pcfg.common.log_ud = &p;
    REQUIRE(open_both(w, rows));
    dials_open(&d, w, "cam-1", 1);
    for (int has_memory = 0; has_memory < 2; has_memory++) {
        atomic_store(&p.is_armed, !has_memory);
        rows[0].quota.session_rate = 1000000;
        CHECK_INT(revdial_proxy_replace_credentials(w->proxy, rows, 2, 0, NULL), 0);
        CHECK_INT(util_gate_count(&p.said), 1);
    }
    dials_answer(&d);
    dials_close(&d);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
