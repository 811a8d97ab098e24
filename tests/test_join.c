// Streams as sockets and joined with descriptors, and what is told about a stream.
#include "runtime_util.h"

// ------------------------------------------------------------------------------------------------
// Streams as sockets

// What a socket reads up to its end: bytes, and 0 for FIN or errno.
static int socket_end(int fd, size_t *bytes)
{
    char buf[65536];
    *bytes = 0;
    for (;;) {
        if (!raw_wait(fd, POLLIN, UTIL_WAIT_MS)) return ETIMEDOUT;
        ssize_t n = recv(fd, buf, sizeof buf, 0);
        if (n == 0) return 0;
        if (n < 0) return errno;
        *bytes += (size_t)n;
    }
}

WORLD_TEST(a_stream_as_a_socket_half_closes_both_ways)
{
    size_t bytes;
    char buf[8];
    revdial_stream *st = world_dial(w, "sink", 0, NULL);
    int fd = st ? revdial_stream_fd(st) : -1;
    if (CHECK(fd >= 0)) {
        CHECK_INT(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
        CHECK_INT(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
        uint8_t out[5000];
        util_fill(out, sizeof out, 0, 2);
        CHECK(raw_send(fd, out, sizeof out));
        shutdown(fd, SHUT_WR);
        CHECK(raw_read_all(fd, buf, 2) && memcmp(buf, "ok", 2) == 0);
        CHECK_INT(socket_end(fd, &bytes), 0);
        close(fd);
        CHECK(util_gate_wait(&w->ended, 1));
        CHECK_INT(world_last(w).bytes, 5000);
        CHECK_INT(world_last(w).end, 0);
    }
    st = world_dial(w, "source", 300000, NULL);
    fd = st ? revdial_stream_fd(st) : -1;
    if (CHECK(fd >= 0)) {
        CHECK_INT(socket_end(fd, &bytes), 0);
        CHECK_INT(bytes, 300000);
        CHECK(raw_send(fd, "\0", 1));  // the other direction still works
        close(fd);
        CHECK(util_gate_wait(&w->ended, 2));
        CHECK_INT(world_last(w).bytes, 1);
        CHECK_INT(world_last(w).end, 0);
    }
}

// The program itself has ended a direction before it hands the stream on: the other one works, and
// then all is over.
WORLD_TEST(a_stream_with_one_direction_ended_becomes_a_socket_for_the_other_one)
{
    for (int round = 0; round < 3; round++) {
        revdial_stats stats;
        size_t bytes;
        revdial_stream *st = world_dial(w, "source", 300000, NULL);
        CHECK_INT(revdial_shutdown(st, REVDIAL_WR), 0);
        int fd = revdial_stream_fd(st);
        CHECK_INT(socket_end(fd, &bytes), 0);
        CHECK_INT(bytes, 300000);
        close(fd);
        CHECK(util_gate_wait(&w->ended, 2 * round + 1));
        CHECK_INT(world_last(w).end, 0);
        st = world_dial(w, "sink", 0, NULL);
        CHECK_INT(revdial_shutdown(st, REVDIAL_RD), 0);
        fd = revdial_stream_fd(st);
        CHECK(raw_send(fd, "\0\1\2\3\4", 5));
        CHECK_INT(socket_end(fd, &bytes), 0);
        close(fd);
        CHECK(util_gate_wait(&w->ended, 2 * round + 2));
        CHECK_INT(world_last(w).bytes, 5);
        CHECK_INT(world_last(w).end, 0);
        UTIL_EVENTUALLY((revdial_proxy_get_stats(w->proxy, &stats), stats.streams == 0));
    }
}

WORLD_TEST(a_stream_that_the_program_has_reset_becomes_no_socket)
{
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    CHECK_INT(revdial_reset(st, 70), 0);
    CHECK_INT(revdial_stream_fd(st), REVDIAL_ECLOSED);
    revdial_close(st);
}

WORLD_TEST(a_stream_that_failed_ends_its_socket_with_ECONNRESET_and_never_with_EOF)
{
    size_t bytes;
    revdial_stream *st = world_dial(w, "reset", 67, NULL);
    int fd = st ? revdial_stream_fd(st) : -1;
    if (CHECK(fd >= 0)) {
        CHECK(raw_send(fd, "x", 1));
        CHECK_INT(socket_end(fd, &bytes), ECONNRESET);
        close(fd);
    }
    st = world_dial(w, "hold", 0, NULL);
    revdial_session *s = st ? revdial_stream_session(st) : NULL;
    fd = st ? revdial_stream_fd(st) : -1;
    if (CHECK(fd >= 0)) {
        revdial_session_kill(s);
        CHECK_INT(socket_end(fd, &bytes), ECONNRESET);
        close(fd);
    }
    revdial_session_unref(s);
}

// ------------------------------------------------------------------------------------------------
// Handing a stream on accepts it

// Echoes through a plain socket, where the client speaks first.
static void echo_socket(int fd)
{
    char buf[64];
    ssize_t n;
    if (fd < 0) return;
    while ((n = raw_read(fd, buf, sizeof buf)) > 0)
        if (!raw_send(fd, buf, (size_t)n)) break;
    close(fd);
}

static void taker(void *ud, revdial_stream *st)
{
    const char *how = revdial_stream_meta(st, "do");
    revdial_pollfd item = {.st = st, .events = POLLIN};
    int fds[2];
    (void)ud;
    if (strcmp(how, "fd") == 0) {
        int fd = revdial_stream_fd(st);
        echo_socket(fd);
        if (fd < 0) revdial_close(st);
    } else if (strcmp(how, "join") == 0) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0) abort();
        revdial_relay(st, fds[0], fds[0], NULL);
        echo_socket(fds[1]);
    } else if (strcmp(how, "poll") == 0) {
        if (revdial_poll(&item, 1, UTIL_WAIT_MS) == 1) util_echo(st);
        revdial_close(st);
    } else {
        revdial_shutdown(st, REVDIAL_RD);
        util_gate_wait(&((world *)ud)->go, 1);
        revdial_write(st, "out", 3);
        revdial_close(st);
    }
}

static void check_taken(revdial_stream *st, const char *how, const revdial_err *err)
{
    char buf[3] = "";
    if (!st) test_fail(__FILE__, __LINE__, "%s: %s", how, err->msg);
    if (!st) return;
    if (strcmp(how, "stop") != 0) CHECK_INT(revdial_write(st, "out", 3), 3);
    if (strcmp(how, "stop") != 0) CHECK_INT(revdial_shutdown(st, REVDIAL_WR), 0);
    CHECK_INT(util_read_all(st, buf, 3), 3);
    CHECK(memcmp(buf, "out", 3) == 0);
    CHECK_INT(revdial_read(st, buf, 1), 0);
    revdial_close(st);
}

NEW_WORLD_TEST(a_handler_that_joins_polls_or_shuts_its_stream_has_accepted_it)
{
    static const char *const ways[] = {"fd", "join", "poll", "stop"};
    w->acfg.handler = taker;
    w->pcfg.on_stream = taker;
    REQUIRE(world_open(w));
    for (int i = 0; i < 4; i++) {
        revdial_err err = {0};
        revdial_stream *st = world_dial(w, ways[i], 0, &err);
        util_gate_add(&w->go, 1);
        check_taken(st, ways[i], &err);
    }
    revdial_session *s = revdial_agent_wait(w->agents[0], UTIL_WAIT_MS, NULL);
    for (int i = 0; i < 4 && CHECK(s != NULL); i++) {  // and the other way round
        revdial_kv meta = {"do", ways[i]};
        revdial_dial_opts opts = {.meta = &meta, .meta_count = 1};
        revdial_err err = {0};
        check_taken(revdial_session_dial(s, &opts, &err), ways[i], &err);
    }
    revdial_session_unref(s);
}

WORLD_TEST(a_socket_closed_with_unread_bytes_resets_the_stream)
{
    revdial_stream *st = world_dial(w, "flood", 0, NULL);
    int fd = st ? revdial_stream_fd(st) : -1;
    if (CHECK(fd >= 0)) {
        CHECK(raw_wait(fd, POLLIN, UTIL_WAIT_MS));
        close(fd);
        CHECK(util_gate_wait(&w->ended, 1));
        CHECK_INT(world_last(w).end, REVDIAL_ERESET);
    }
}

// Its descriptor is closed. That comes a moment after its streams have failed.
static int session_is_gone(revdial_session *s)
{
    pthread_mutex_lock(&s->lock);
    int gone = s->state == RVD_STREAM_DOWN;
    pthread_mutex_unlock(&s->lock);
    return gone;
}

WORLD_TEST(a_stream_that_no_socket_could_be_had_for_is_still_the_callers)
{
    char c;
    revdial_stream *st = world_dial(w, "hold", 0, NULL);
    revdial_session *s = st ? revdial_stream_session(st) : NULL;
    if (CHECK(st != NULL)) {
        revdial_session_kill(s);
        CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ECLOSED);
        revdial_agent_stop(w->agents[0], 0);
        w->agents[0] = NULL;
        UTIL_EVENTUALLY(session_is_gone(s));
        int before = util_fds();
        CHECK_INT(revdial_stream_fd(st), REVDIAL_ECLOSED);
        CHECK_INT(util_fds(), before);
        CHECK(revdial_stream_error(st, NULL) < 0);
        revdial_close(st);
    }
    revdial_session_unref(s);
}

WORLD_TEST(dial_fd_gives_a_connected_socket_or_the_dials_error)
{
    revdial_err err;
    revdial_dial_opts opts = {0};
    revdial_kv meta = {"do", "refuse"};
    char buf[4];
    int fd = revdial_dial_fd(w->proxy, "cam-1", NULL, &err);
    if (CHECK(fd >= 0)) {
        CHECK(raw_say(fd, "ping") && raw_read_all(fd, buf, 4));
        CHECK(memcmp(buf, "ping", 4) == 0);
        close(fd);
    }
    opts.meta = &meta;
    opts.meta_count = 1;
    CHECK_INT(revdial_dial_fd(w->proxy, "cam-1", &opts, &err), REVDIAL_EREFUSED);
    CHECK_INT(err.code, REVDIAL_EREFUSED);
    CHECK_INT(revdial_dial_fd(w->proxy, "cam-1", &opts, NULL), REVDIAL_EREFUSED);
    CHECK_INT(revdial_dial_fd(w->proxy, "nobody", NULL, NULL), REVDIAL_ENOBACKEND);
}

// ------------------------------------------------------------------------------------------------
// Joins

typedef struct joined {
    util_gate done;
    uint64_t moved[2];
    revdial_err why;
    int is_failed;
} joined;

static void on_joined(void *ud, const uint64_t moved[2], const revdial_err *why)
{
    joined *j = ud;
    memcpy(j->moved, moved, sizeof j->moved);
    j->is_failed = why != NULL;
    if (why) j->why = *why;
    util_gate_add(&j->done, 1);
}

static revdial_relay_opts joined_opts(joined *j)
{
    revdial_relay_opts o = {0};
    memset(j, 0, sizeof *j);
    util_gate_init(&j->done);
    o.done = on_joined;
    o.ud = j;
    return o;
}

NEW_WORLD_TEST(a_join_sends_the_early_bytes_first_and_tells_once_what_moved)
{
    joined j;
    int fds[2];
    char buf[16];
    size_t bytes;
    REQUIRE(world_open(w) && raw_pair(fds));
    revdial_relay_opts o = joined_opts(&j);
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    o.early = "early";
    o.early_len = 5;
    CHECK(raw_say(fds[0], "-late"));
    CHECK_INT(revdial_relay(st, fds[1], fds[1], &o), 0);
    CHECK(raw_read_all(fds[0], buf, 10) && memcmp(buf, "early-late", 10) == 0);
    shutdown(fds[0], SHUT_WR);
    CHECK_INT(socket_end(fds[0], &bytes), 0);
    CHECK(util_gate_wait(&j.done, 1));
    CHECK_INT(j.moved[0], 10);
    CHECK_INT(j.moved[1], 10);
    CHECK_INT(j.is_failed, 0);
    CHECK_INT(j.done.count, 1);
    close(fds[0]);
}

NEW_WORLD_TEST(a_join_of_two_pipes_half_closes_each)
{
    joined j;
    int in[2], out[2];
    char buf[8];
    REQUIRE(world_open(w) && pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0);
    revdial_relay_opts o = joined_opts(&j);
    revdial_stream *st = world_dial(w, "sink", 0, NULL);
    uint8_t byte = util_byte(0, 2);
    CHECK_INT(revdial_relay(st, in[0], out[1], &o), 0);
    CHECK_INT(write(in[1], &byte, 1), 1);
    close(in[1]);
    CHECK(raw_wait(out[0], POLLIN, UTIL_WAIT_MS));
    CHECK_INT(read(out[0], buf, 2), 2);
    CHECK(memcmp(buf, "ok", 2) == 0);
    CHECK(raw_wait(out[0], POLLIN, UTIL_WAIT_MS));
    CHECK_INT(read(out[0], buf, 1), 0);
    CHECK(util_gate_wait(&j.done, 1));
    CHECK_INT(j.is_failed, 0);
    CHECK_INT(j.moved[0], 1);
    CHECK_INT(j.moved[1], 2);
    close(out[0]);
}

// Sockets take many blocks in one call, pipes do not.
NEW_WORLD_TEST(what_the_reader_of_a_pipe_has_not_taken_arrives_whole)
{
    enum { BYTES = 1 << 20 };
    static uint8_t bytes[BYTES];
    joined j;
    int in[2], out[2];
    uint64_t unread = 0;
    size_t got = 0;
    w->pcfg.common.limits.stream_window = w->acfg.common.limits.stream_window = BYTES;
    REQUIRE(world_open(w) && pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0);
    revdial_relay_opts o = joined_opts(&j);
    revdial_stream *st = world_dial(w, "source", BYTES, NULL);
    REQUIRE(st != NULL);
    revdial_session *s = revdial_stream_session(st);
    CHECK_INT(revdial_relay(st, in[0], out[1], &o), 0);
    UTIL_EVENTUALLY((rvd_stream_lock(s), unread = s->engine->mux.buffered, rvd_stream_unlock(s),
                     unread > BYTES / 2));
    revdial_session_unref(s);
    while (got < BYTES && raw_wait(out[0], POLLIN, UTIL_WAIT_MS)) {
        ssize_t n = read(out[0], bytes + got, BYTES - got);
        if (!CHECK(n > 0)) break;
        got += (size_t)n;
    }
    CHECK_INT(got, BYTES);
    CHECK(util_matches(bytes, BYTES, 0, 1));
    close(in[1]);
    CHECK(util_gate_wait(&j.done, 1));
    CHECK_INT(j.is_failed, 0);
    close(out[0]);
}

NEW_WORLD_TEST(an_idle_join_gives_up_and_both_ends_learn_it)
{
    joined j;
    int fds[2];
    size_t bytes;
    REQUIRE(world_open(w) && raw_pair(fds));
    revdial_relay_opts o = joined_opts(&j);
    o.idle_ms = 20;
    CHECK_INT(revdial_relay(world_dial(w, "hold", 0, NULL), fds[1], fds[1], &o), 0);
    CHECK(util_gate_wait(&j.done, 1));
    CHECK_INT(j.is_failed, 1);
    CHECK_INT(j.why.code, REVDIAL_ETIMEDOUT);
    CHECK_INT(socket_end(fds[0], &bytes), ECONNRESET);
    CHECK(util_gate_wait(&w->ended, 1));
    CHECK_INT(world_last(w).end, REVDIAL_ERESET);
    CHECK_INT(world_last(w).reset, REVDIAL_RESET_TIMEOUT);
    close(fds[0]);
}

NEW_WORLD_TEST(a_client_that_resets_its_socket_resets_the_joined_stream)
{
    joined j;
    int fds[2];
    REQUIRE(world_open(w) && raw_pair(fds));
    revdial_relay_opts o = joined_opts(&j);
    CHECK_INT(revdial_relay(world_dial(w, "hold", 0, NULL), fds[1], fds[1], &o), 0);
    raw_close_reset(fds[0]);
    CHECK(util_gate_wait(&j.done, 1));
    CHECK_INT(j.is_failed, 1);
    CHECK_INT(j.why.code, REVDIAL_ESYS);
    CHECK_INT(j.why.sys, ECONNRESET);
    CHECK(util_gate_wait(&w->ended, 1));
    CHECK_INT(world_last(w).end, REVDIAL_ERESET);
    CHECK_INT(world_last(w).reset, REVDIAL_RESET_CANCEL);
}

WORLD_TEST(a_relay_with_first_bytes_for_a_way_that_has_ended_fails)
{
    joined j;
    int fds[2];
    revdial_relay_opts o = joined_opts(&j);
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    REQUIRE(raw_pair(fds));
    CHECK_INT(revdial_shutdown(st, REVDIAL_WR), 0);
    o.early = "x";
    o.early_len = 1;
    CHECK_INT(revdial_relay(st, fds[1], fds[1], &o), 0);
    CHECK(util_gate_wait(&j.done, 1));
    CHECK_INT(j.why.code, REVDIAL_ECLOSED);
    close(fds[0]);
}

// Nothing comes from the other end that a call could wait for.
WORLD_TEST(a_relay_that_is_refused_closes_a_socket_without_waiting_for_its_other_end)
{
    int fds[2];
    const revdial_relay_opts o = {.idle_ms = -1};
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    CHECK_INT(revdial_relay(world_dial(w, "echo", 0, NULL), fds[1], fds[1], &o), REVDIAL_EINVAL);
    close(fds[0]);
}

// Its relay ends, and not before its last bytes have had their time.
static void joined_ends_late(joined *j)
{
    util_clock_stop();
    CHECK_INT(util_gate_count(&j->done), 0);
    UTIL_EVENTUALLY((util_clock_advance_ms(100), util_gate_count(&j->done) == 1));
    util_clock_run();
    CHECK_INT(j->is_failed, 1);
    CHECK_INT(j->why.code, REVDIAL_ESYS);
}

NEW_WORLD_TEST(a_client_that_goes_away_while_the_stream_has_no_credit_is_noticed)
{
    joined j;
    int fds[2];
    char buf[16384] = "";
    REQUIRE(world_open(w) && raw_pair(fds));
    revdial_relay_opts o = joined_opts(&j);
    CHECK_INT(revdial_relay(world_dial(w, "stop", 0, NULL), fds[1], fds[1], &o), 0);
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    while (raw_wait(fds[0], POLLOUT, 100))
        if (send(fds[0], buf, sizeof buf, MSG_NOSIGNAL) < 0) break;
    raw_close_reset(fds[0]);
    joined_ends_late(&j);
    util_gate_add(&w->go, 1);
    CHECK(util_gate_wait(&w->ended, 1));
    CHECK_INT(world_last(w).end, REVDIAL_ERESET);
}

NEW_WORLD_TEST(a_client_that_goes_away_while_its_early_bytes_wait_for_credit_is_noticed)
{
    static const char bytes[262144];
    joined j;
    int fds[2];
    revdial_flow_info l = {0};
    REQUIRE(world_open(w) && raw_pair(fds));
    revdial_stream *st = world_dial(w, "stop", 0, NULL);
    REQUIRE(st != NULL && revdial_stream_get_flow(st, &l) == 0);
    REQUIRE(l.send_credit <= sizeof bytes);
    CHECK_INT(revdial_write(st, bytes, l.send_credit), l.send_credit);
    revdial_relay_opts o = joined_opts(&j);
    o.early = bytes;
    o.early_len = 65536;
    CHECK_INT(revdial_relay(st, fds[1], fds[1], &o), 0);
    raw_close_reset(fds[0]);
    joined_ends_late(&j);
    util_gate_add(&w->go, 1);
    CHECK(util_gate_wait(&w->ended, 1));
    CHECK_INT(world_last(w).end, REVDIAL_ERESET);
}

// Reads to the end, and never answers.
static void never_answers(void *ud, revdial_stream *st)
{
    world *w = ud;
    util_read r = util_read_payload(st, 2);
    util_gate_add(&w->held, 1);
    UTIL_EVENTUALLY(revdial_stream_error(st, &r.reset) != 0);
    revdial_close(st);
    world_note(w, &r);
}

NEW_WORLD_TEST(a_client_that_has_finished_and_goes_away_before_the_answer_is_noticed)
{
    joined j;
    int fds[2];
    w->acfg.handler = never_answers;
    REQUIRE(world_open(w) && raw_pair(fds));
    revdial_relay_opts o = joined_opts(&j);
    CHECK_INT(revdial_relay(world_dial(w, "wait", 0, NULL), fds[1], fds[1], &o), 0);
    CHECK_INT(shutdown(fds[0], SHUT_WR), 0);
    CHECK(util_gate_wait(&w->held, 1));
    raw_close_reset(fds[0]);
    CHECK(util_gate_wait(&j.done, 1));
    CHECK_INT(j.is_failed, 1);
    CHECK_INT(j.why.code, REVDIAL_ESYS);
    CHECK(util_gate_wait(&w->ended, 1));
    CHECK_INT(world_last(w).reset, REVDIAL_RESET_CANCEL);
}

WORLD_TEST(a_join_that_is_refused_has_closed_all_three_and_calls_nobody)
{
    joined j;
    int fds[2];
    size_t bytes;
    revdial_relay_opts o = joined_opts(&j);
    o.early = "";
    o.early_len = 65537;
    CHECK(raw_pair(fds));
    CHECK_INT(revdial_relay(world_dial(w, "hold", 0, NULL), fds[1], fds[1], &o), REVDIAL_EINVAL);
    CHECK_INT(socket_end(fds[0], &bytes), ECONNRESET);
    close(fds[0]);
    o = joined_opts(&j);
    o.idle_ms = -1;
    CHECK(raw_pair(fds));
    CHECK_INT(revdial_relay(world_dial(w, "hold", 0, NULL), fds[1], fds[1], &o), REVDIAL_EINVAL);
    CHECK_INT(socket_end(fds[0], &bytes), ECONNRESET);
    close(fds[0]);
    o = joined_opts(&j);
    CHECK_INT(revdial_relay(world_dial(w, "hold", 0, NULL), -1, -1, &o), REVDIAL_ESYS);
    CHECK(util_gate_wait(&w->ended, 3));
    CHECK_INT(j.done.count, 0);
}

NEW_WORLD_TEST(a_join_of_a_stream_that_was_reset_after_its_FIN_delivers_all_and_reports_the_failure)
{
    joined j;
    int fds[2];
    raw_frame f = {0};
    size_t bytes;
    REQUIRE(world_open_proxy(w) && raw_pair(fds));
    int fd = raw_backend(w->address, "cam-1", NULL);
    revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS);
    revdial_stream *st = revdial_dial(w->proxy, "cam-1", NULL, NULL);
    if (CHECK(st != NULL) && CHECK(raw_frame_await(fd, RAW_WINDOW, &f))) {
        revdial_relay_opts o = joined_opts(&j);
        raw_frame_send(fd, RAW_DATA, RAW_ACK | RAW_FIN, f.id, 5);
        raw_say(fd, "hello");
        raw_frame_send(fd, RAW_WINDOW, RAW_RST, f.id, 0);
        UTIL_EVENTUALLY(revdial_stream_error(st, NULL) == REVDIAL_ERESET);
        CHECK_INT(revdial_relay(st, fds[1], fds[1], &o), 0);
        CHECK_INT(socket_end(fds[0], &bytes), 0);  // its FIN was true
        CHECK_INT(bytes, 5);
        CHECK(util_gate_wait(&j.done, 1));  // but nobody listens any more
        CHECK_INT(j.is_failed, 1);
        CHECK_INT(j.why.code, REVDIAL_ERESET);
    }
    close(fds[0]);
    close(fd);
}

// ------------------------------------------------------------------------------------------------
// What is told about a stream

static util_gate meta_gate = UTIL_GATE;
static char meta_seen[8][80];

static void meta_handler(void *ud, revdial_stream *st)
{
    static const char *const keys[] = {"target",     "client",      "local", "id",
                                       "timeout_ms", "traceparent", "empty", "absent"};
    (void)ud;
    for (int i = 0; i < 8; i++) {
        const char *value = revdial_stream_meta(st, keys[i]);
        snprintf(meta_seen[i], sizeof meta_seen[i], "%s", value ? value : "(none)");
    }
    util_gate_add(&meta_gate, 1);
    revdial_write(st, "", 0);
    revdial_close(st);
}

NEW_WORLD_TEST(what_came_with_the_dial_can_be_asked_for)
{
    revdial_dial_opts opts = {0};
    revdial_kv meta[2] = {{"traceparent", "00-ab"}, {"empty", ""}};
    w->acfg.handler = meta_handler;
    REQUIRE(world_open(w));
    opts.target = "10.0.0.1:80";
    opts.client_addr = "192.0.2.7:1234";
    opts.local_addr = "198.51.100.1:443";
    opts.meta = meta;
    opts.meta_count = 2;
    opts.timeout_ms = 5000;
    revdial_stream *st = revdial_dial(w->proxy, "cam-1", &opts, NULL);
    CHECK(st != NULL && util_gate_wait(&meta_gate, 1));
    CHECK_STR(meta_seen[0], "10.0.0.1:80");
    CHECK_STR(meta_seen[1], "192.0.2.7:1234");
    CHECK_STR(meta_seen[2], "198.51.100.1:443");
    CHECK(meta_seen[3][0] != '(');
    CHECK(atoi(meta_seen[4]) > 4000 && atoi(meta_seen[4]) <= 5000);
    CHECK_STR(meta_seen[5], "00-ab");
    CHECK_STR(meta_seen[6], "");
    CHECK_STR(meta_seen[7], "(none)");
    revdial_close(st);
    st = revdial_dial(w->proxy, "cam-1", NULL, NULL);
    CHECK(st != NULL && util_gate_wait(&meta_gate, 2));
    CHECK_STR(meta_seen[0], "(none)");
    CHECK_STR(meta_seen[1], "(none)");
    revdial_close(st);
}

WORLD_TEST(the_ledger_says_what_a_stream_waits_for_and_how_much_each_side_may_send)
{
    char buf[70000] = "";
    revdial_stream *st = world_dial(w, "stop", 0, NULL);
    revdial_flow_info l;
    if (CHECK(st != NULL)) {
        CHECK_INT(revdial_stream_get_flow(st, &l), 0);
        CHECK_STR(l.blocked_on, "");
        CHECK_INT(l.send_credit + l.sent, 65536);  // what came with the dial counts
        CHECK_INT(l.recv_credit, 65536);
        CHECK(l.sent < 256);
        // The last few bytes of credit are kept for a moment, for more may follow.
        revdial_stream_set_deadline(st, REVDIAL_WR, 0);
        UTIL_EVENTUALLY(revdial_write(st, buf, sizeof buf) != 0 &&
                        revdial_stream_get_flow(st, &l) == 0 && l.send_credit == 0);
        CHECK_STR(l.blocked_on, "peer's credit");
        CHECK_INT(l.send_credit, 0);
        CHECK_INT(l.sent, 65536);
        revdial_close(st);
    }
    st = world_dial(w, "source", 1000, NULL);
    if (CHECK(st != NULL)) {
        UTIL_EVENTUALLY(revdial_stream_get_flow(st, &l) == 0 && l.received == 1000);
        CHECK_INT(l.buffered, 1000);
        CHECK_INT(l.consumed, 0);
        CHECK_INT(l.recv_credit, 64536);
        CHECK_INT(revdial_read(st, buf, 400), 400);
        CHECK_INT(revdial_stream_get_flow(st, &l), 0);
        CHECK_INT(l.buffered, 600);
        CHECK_INT(l.consumed, 400);
        revdial_close(st);
    }
}

NEW_WORLD_TEST(the_session_of_a_stream_is_the_backend_it_was_dialled_at)
{
    w->acfg.instance = "i-1";
    REQUIRE(world_open(w));
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    if (CHECK(st != NULL)) {
        revdial_session *s = revdial_stream_session(st);
        revdial_session_info info;
        revdial_session_get_info(s, &info);
        CHECK_STR(info.name, "cam-1");
        CHECK_STR(info.instance, "i-1");
        CHECK_STR(info.identity, "alice");
        CHECK(strncmp(info.peer, "127.0.0.1:", 10) == 0);
        CHECK_INT(info.state, REVDIAL_UP);
        CHECK_INT(info.streams, 1);
        CHECK_INT(info.streams_opened, 1);
        CHECK(info.id != 0);
        CHECK(info.age_ms >= 0);
        revdial_write(st, "abc", 3);
        char buf[3];
        util_read_all(st, buf, 3);
        revdial_session_get_info(s, &info);
        CHECK_INT(info.tx_bytes, 3);
        CHECK_INT(info.rx_bytes, 3);
        revdial_close(st);
        revdial_session_get_info(s, &info);
        CHECK_INT(info.streams, 0);
        revdial_session_kill(s);
        UTIL_EVENTUALLY((revdial_session_get_info(s, &info), info.state == REVDIAL_DOWN));
        CHECK_STR(info.name, "cam-1");  // valid memory while it is referenced
        revdial_session_unref(s);
    }
}

WORLD_TEST(streams_and_sessions_that_outlive_the_proxy_stay_valid_and_say_ECLOSED)
{
    char c;
    revdial_stream *st = world_dial(w, "hold", 0, NULL);
    if (CHECK(st != NULL)) {
        revdial_session *s = revdial_stream_session(st);
        revdial_pollfd p = {st, 0, POLLIN, 0};
        revdial_flow_info l;
        revdial_session_info info;
        revdial_err err;
        revdial_proxy_stop(w->proxy);  // first, so that it is what ends the session
        w->proxy = NULL;
        world_close(w);
        CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ECLOSED);
        CHECK_INT(revdial_write(st, &c, 1), REVDIAL_ECLOSED);
        CHECK_INT(revdial_stream_error(st, NULL), REVDIAL_ECLOSED);
        CHECK_INT(revdial_poll(&p, 1, 1000), 1);
        revdial_stream_get_flow(st, &l);
        CHECK(revdial_stream_meta(st, "do") == NULL);
        CHECK_INT(revdial_shutdown(st, REVDIAL_RDWR), REVDIAL_ECLOSED);
        revdial_reset(st, 64);
        revdial_stream_set_deadline(st, REVDIAL_RDWR, 1);
        CHECK_INT(revdial_stream_fd(st), REVDIAL_ECLOSED);
        CHECK(revdial_session_dial(s, NULL, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_ECLOSED);
        revdial_session_get_info(s, &info);
        CHECK_INT(info.state, REVDIAL_DOWN);
        revdial_session_drain(s, 0);
        revdial_session_kill(s);
        revdial_close(st);
        revdial_session_unref(s);
        return;
    }
}

WORLD_TEST(a_session_that_outlives_the_agent_stays_valid_and_says_ECLOSED)
{
    revdial_session *s = revdial_agent_wait(w->agents[0], UTIL_WAIT_MS, NULL);
    if (CHECK(s != NULL)) {
        revdial_session_info info;
        revdial_err err;
        world_close(w);
        CHECK(revdial_session_dial(s, NULL, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_ECLOSED);
        revdial_session_get_info(s, &info);
        CHECK_INT(info.state, REVDIAL_DOWN);
        revdial_session_drain(s, 10);
        revdial_session_kill(s);
        revdial_session_unref(s);
        return;
    }
}

TEST(U1_NULL_is_ignored_by_every_close_free_and_unref)
{
    revdial_close(NULL);
    revdial_proxy_stop(NULL);
    CHECK_INT(revdial_agent_stop(NULL, 0), 0);
    revdial_session_unref(NULL);
    CHECK(revdial_session_ref(NULL) == NULL);
    revdial_session_kill(NULL);
    revdial_engine_free(NULL);
    CHECK_INT(revdial_session_drain(NULL, 0), REVDIAL_EINVAL);
    revdial_err err = {0};
    CHECK(revdial_session_dial(NULL, NULL, &err) == NULL && err.code == REVDIAL_EINVAL);
    CHECK(revdial_session_dial(NULL, NULL, NULL) == NULL);
    CHECK(revdial_dial(NULL, "x", NULL, &err) == NULL && err.code == REVDIAL_EINVAL);
    CHECK(revdial_dial(NULL, "x", NULL, NULL) == NULL);
    CHECK_INT(revdial_dial_fd(NULL, "x", NULL, NULL), REVDIAL_EINVAL);
    CHECK_INT(revdial_dial_async(NULL, "x", NULL, NULL, NULL), REVDIAL_EINVAL);
    CHECK(revdial_proxy_start(NULL, &err) == NULL && err.code == REVDIAL_EINVAL);
    CHECK(revdial_proxy_start(NULL, NULL) == NULL);
    CHECK(revdial_agent_start(NULL, NULL) == NULL);
    CHECK_INT(revdial_serve(NULL, NULL), REVDIAL_EINVAL);
    CHECK_INT(revdial_target_allowed(NULL, NULL), 0);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
