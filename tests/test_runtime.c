// The calls on a stream, through a proxy and an agent on loopback: reading, writing, half-close,
// reset, deadlines, poll.
#include "runtime_util.h"

// ------------------------------------------------------------------------------------------------
// Bytes

WORLD_TEST(bytes_come_back_as_they_were_sent_and_EOF_comes_after_them)
{
    uint8_t buf[70000], back[70000];
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    if (CHECK(st != NULL)) {
        util_fill(buf, sizeof buf, 0, 7);
        CHECK_INT(revdial_write(st, buf, sizeof buf), sizeof buf);
        CHECK_INT(util_read_all(st, back, sizeof back), sizeof back);
        CHECK(memcmp(buf, back, sizeof buf) == 0);
        CHECK_INT(revdial_shutdown(st, REVDIAL_WR), 0);
        CHECK_INT(revdial_read(st, back, 1), 0);
        CHECK_INT(revdial_read(st, back, 1), 0);  // and again
        CHECK_INT(revdial_stream_error(st, NULL), 0);
        revdial_close(st);
    }
}

WORLD_TEST(readv_and_writev_take_vectors_with_empty_ones_between)
{
    char a[3], b[8] = "", c[64] = "";
    char text[] = "abcdefghij";
    struct iovec out[5] = {{text, 2}, {NULL, 0}, {text + 2, 5}, {text, 0}, {text + 7, 3}};
    struct iovec in[4] = {{a, 3}, {NULL, 0}, {b, 4}, {c, sizeof c}};
    revdial_stream *st = world_dial(w, "sink", 0, NULL);
    if (CHECK(st != NULL)) {
        CHECK_INT(revdial_writev(st, out, 5), 10);
        CHECK_INT(revdial_writev(st, out, 0), 0);
        revdial_reset(st, REVDIAL_RESET_CANCEL);
        revdial_close(st);
    }
    st = world_dial(w, "echo", 0, NULL);
    if (CHECK(st != NULL)) {
        CHECK_INT(revdial_writev(st, out, 5), 10);
        revdial_pollfd p = {st, 0, POLLIN, 0};
        CHECK_INT(revdial_poll(&p, 1, UTIL_WAIT_MS), 1);
        ptrdiff_t n = revdial_readv(st, in, 4);
        while (n > 0 && n < 10) {  // it may come in pieces
            ptrdiff_t more = revdial_read(st,
                                          n < 3   ? a + n
                                          : n < 7 ? b + (n - 3)
                                                  : c + (n - 7),
                                          (size_t)(n < 3   ? 3 - n
                                                   : n < 7 ? 7 - n
                                                           : 10 - n));
            if (more <= 0) break;
            n += more;
        }
        CHECK_INT(n, 10);
        CHECK(memcmp(a, "abc", 3) == 0 && memcmp(b, "defg", 4) == 0 && memcmp(c, "hij", 3) == 0);
        revdial_close(st);
    }
}

WORLD_TEST(lengths_that_cannot_be_are_EINVAL_and_harm_nobody)
{
    char c[4] = "abc";
    size_t half = ((size_t)PTRDIFF_MAX >> 1) + 1;
    struct iovec two[3] = {{c, half}, {c, half}, {c, 1}}, all[3] = {{c, 1}, {c, SIZE_MAX}, {c, 1}};
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    revdial_stream *other = world_dial(w, "echo", 0, NULL);
    if (CHECK(st != NULL && other != NULL)) {
        revdial_pollfd p = {st, 0, POLLIN | POLLOUT, 0};
        struct iovec good = {c, 3};
        CHECK_INT(revdial_writev(st, two, 2), REVDIAL_EINVAL);
        CHECK_INT(revdial_readv(st, two, 2), REVDIAL_EINVAL);
        CHECK_INT(revdial_writev(st, all, 3), REVDIAL_EINVAL);
        CHECK_INT(revdial_readv(st, all, 3), REVDIAL_EINVAL);
        CHECK_INT(revdial_write(st, c, SIZE_MAX), REVDIAL_EINVAL);
        CHECK_INT(revdial_read(st, c, SIZE_MAX), REVDIAL_EINVAL);
        CHECK_INT(revdial_writev(st, &good, -1), REVDIAL_EINVAL);
        CHECK_INT(revdial_readv(st, &good, -1), REVDIAL_EINVAL);
        CHECK_INT(revdial_readv(st, &good, INT_MIN), REVDIAL_EINVAL);
        CHECK_INT(revdial_poll(&p, (size_t)-1, 0), REVDIAL_EINVAL);
        CHECK_INT(revdial_write(st, c, 3), 3);
        CHECK_INT(revdial_write(other, c, 3), 3);
        CHECK_INT(util_read_all(st, c, 3), 3);
        CHECK_INT(util_read_all(other, c, 3), 3);
    }
    revdial_close(st);
    revdial_close(other);
}

WORLD_TEST(U15_a_write_of_nothing_returns_0_at_once_and_a_read_of_nothing_is_EINVAL_not_EOF)
{
    char c;
    revdial_stream *st = world_dial(w, "hold", 0, NULL);  // hold accepts by an empty write
    if (CHECK(st != NULL)) {
        revdial_flow_info before, l;
        CHECK_INT(revdial_stream_get_flow(st, &before), 0);
        struct iovec none[2] = {{&c, 0}, {NULL, 0}};
        CHECK_INT(revdial_read(st, &c, 0), REVDIAL_EINVAL);
        CHECK_INT(revdial_read(st, NULL, 0), REVDIAL_EINVAL);
        CHECK_INT(revdial_readv(st, none, 2), REVDIAL_EINVAL);
        CHECK_INT(revdial_readv(st, none, 0), REVDIAL_EINVAL);
        CHECK_INT(revdial_write(st, NULL, 0), 0);
        CHECK_INT(revdial_writev(st, none, 2), 0);
        CHECK_INT(revdial_stream_get_flow(st, &l), 0);
        CHECK_INT(l.sent, before.sent);
        revdial_close(st);
    }
}

static void accepts_by_no_vector(void *ud, revdial_stream *st)
{
    world *w = ud;
    revdial_writev(st, NULL, 0);
    util_gate_wait(&w->go, 1);
    revdial_close(st);
}

NEW_WORLD_TEST(a_write_of_no_vector_is_a_write_of_nothing)
{
    revdial_err err = {0};
    w->acfg.handler = accepts_by_no_vector;
    REQUIRE(world_open(w));
    revdial_stream *st = world_dial(w, "accept", 0, &err);
    CHECK_INT(err.code, 0);
    if (CHECK(st != NULL)) {
        CHECK_INT(revdial_writev(st, NULL, 0), 0);
        CHECK_INT(revdial_shutdown(st, REVDIAL_WR), 0);
        CHECK_INT(revdial_write(st, NULL, 0), REVDIAL_ECLOSED);
        CHECK_INT(revdial_writev(st, NULL, 0), REVDIAL_ECLOSED);
    }
    revdial_close(st);
}

WORLD_TEST(U16_the_buffer_is_the_callers_again_when_write_returns)
{
    uint8_t buf[4096];
    revdial_stream *st = world_dial(w, "sink", 0, NULL);
    if (CHECK(st != NULL)) {
        for (uint64_t at = 0; at < 1 << 20; at += sizeof buf) {
            util_fill(buf, sizeof buf, at, 2);
            CHECK_INT(revdial_write(st, buf, sizeof buf), sizeof buf);
            memset(buf, 0, sizeof buf);
        }
        revdial_shutdown(st, REVDIAL_WR);
        CHECK_INT(util_read_all(st, buf, 2), 2);
        revdial_close(st);
        CHECK(util_gate_wait(&w->ended, 1));
        CHECK_INT(world_last(w).bytes, 1 << 20);
        CHECK_INT(world_last(w).is_bad, 0);
    }
}

// ------------------------------------------------------------------------------------------------
// Endings

WORLD_TEST(half_close_of_the_dialler_leaves_the_other_direction_open)
{
    char buf[8];
    revdial_stream *st = world_dial(w, "sink", 0, NULL);
    if (CHECK(st != NULL)) {
        CHECK_INT(util_write_payload(st, 1000, 2), 1000);
        CHECK_INT(revdial_shutdown(st, REVDIAL_WR), 0);
        CHECK_INT(util_read_all(st, buf, 2), 2);
        CHECK_INT(revdial_read(st, buf, 1), 0);
        revdial_close(st);
        CHECK(util_gate_wait(&w->ended, 1));
        CHECK_INT(world_last(w).bytes, 1000);
        CHECK_INT(world_last(w).end, 0);
    }
}

WORLD_TEST(half_close_of_the_handler_leaves_the_other_direction_open)
{
    revdial_stream *st = world_dial(w, "source", 100000, NULL);
    if (CHECK(st != NULL)) {
        util_read r = util_read_payload(st, 1);
        CHECK_INT(r.bytes, 100000);
        CHECK_INT(r.end, 0);
        CHECK_INT(r.is_bad, 0);
        CHECK_INT(util_write_payload(st, 50000, 2), 50000);
        revdial_close(st);
        CHECK(util_gate_wait(&w->ended, 1));
        CHECK_INT(world_last(w).bytes, 50000);
        CHECK_INT(world_last(w).end, 0);
    }
}

WORLD_TEST(U19_a_write_after_shutdown_is_ECLOSED_and_a_second_shutdown_is_fine)
{
    revdial_stream *st = world_dial(w, "hold", 0, NULL);
    if (CHECK(st != NULL)) {
        CHECK_INT(revdial_shutdown(st, REVDIAL_WR), 0);
        CHECK_INT(revdial_write(st, "x", 1), REVDIAL_ECLOSED);
        CHECK_INT(revdial_shutdown(st, REVDIAL_WR), 0);
        CHECK_INT(revdial_shutdown(st, REVDIAL_RDWR), 0);
        CHECK_INT(revdial_shutdown(st, 0), REVDIAL_EINVAL);
        CHECK_INT(revdial_shutdown(st, 4), REVDIAL_EINVAL);
        revdial_close(st);
    }
}

WORLD_TEST(who_stops_reading_gets_ECLOSED_and_a_peer_that_goes_on_is_reset)
{
    char c;
    revdial_stream *st = world_dial(w, "flood", 0, NULL);
    if (CHECK(st != NULL)) {
        CHECK_INT(revdial_shutdown(st, REVDIAL_RD), 0);
        CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ECLOSED);
        CHECK(util_gate_wait(&w->ended, 1));
        CHECK_INT(world_last(w).end, REVDIAL_ERESET);
        revdial_close(st);
    }
}

// Both sides at once: the FIN goes before the reset that stops the peer.
WORLD_TEST(shutdown_of_both_sides_ends_writing_although_the_peer_has_used_its_credit_up)
{
    revdial_flow_info flow;
    revdial_stream *st = world_dial(w, "flood", 0, NULL);
    if (CHECK(st != NULL)) {
        UTIL_EVENTUALLY(revdial_stream_get_flow(st, &flow) == 0 && flow.recv_credit == 0);
        CHECK_INT(revdial_shutdown(st, REVDIAL_RDWR), 0);
        CHECK(util_gate_wait(&w->ended, 1));
        CHECK_INT(world_last(w).end, REVDIAL_ERESET);
        CHECK_INT(world_last(w).reset, REVDIAL_RESET_CANCEL);
        revdial_close(st);
    }
}

WORLD_TEST(what_was_written_before_close_is_delivered_with_its_EOF)
{
    revdial_stream *st = world_dial(w, "sink", 0, NULL);
    if (CHECK(st != NULL)) {
        CHECK_INT(util_write_payload(st, 3000000, 2), 3000000);
        revdial_close(st);
        CHECK(util_gate_wait(&w->ended, 1));
        CHECK_INT(world_last(w).bytes, 3000000);
        CHECK_INT(world_last(w).end, 0);
        CHECK_INT(world_last(w).is_bad, 0);
    }
}

WORLD_TEST(a_reset_carries_the_applications_code_to_a_peer_that_reads)
{
    static const int codes[] = {REVDIAL_RESET_CANCEL, REVDIAL_RESET_INTERNAL, 64, 77, 255};
    for (int i = 0; i < 5; i++) {
        revdial_stream *st = world_dial(w, "hold", 0, NULL);
        if (!CHECK(st != NULL)) break;
        CHECK_INT(revdial_reset(st, codes[i]), 0);
        CHECK(util_gate_wait(&w->ended, i + 1));
        CHECK_INT(world_last(w).end, REVDIAL_ERESET);
        CHECK_INT(world_last(w).reset, codes[i]);
        revdial_close(st);
    }
}

WORLD_TEST(a_reset_of_the_handler_is_an_error_with_its_code_for_reader_and_writer)
{
    char c;
    revdial_stream *st = world_dial(w, "hold", 0, NULL);
    revdial_close(st);
    st = world_dial(w, "reset", 99, NULL);
    // "reset" accepts with its first read, so this dial returns.
    if (CHECK(st != NULL)) {
        int reset = 0;
        CHECK_INT(revdial_write(st, "x", 1), 1);
        CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ERESET);
        CHECK_INT(revdial_stream_error(st, &reset), REVDIAL_ERESET);
        CHECK_INT(reset, 99);
        CHECK_INT(revdial_write(st, "x", 1), REVDIAL_ERESET);
        CHECK_INT(revdial_shutdown(st, REVDIAL_WR), REVDIAL_ERESET);
        revdial_close(st);
    }
}

WORLD_TEST(after_our_own_reset_every_call_says_that_it_is_closed_here)
{
    char c;
    revdial_stream *st = world_dial(w, "hold", 0, NULL);
    if (CHECK(st != NULL)) {
        CHECK_INT(revdial_reset(st, 256), REVDIAL_EINVAL);
        CHECK_INT(revdial_reset(st, -1), REVDIAL_EINVAL);
        CHECK_INT(revdial_stream_error(st, NULL), 0);
        CHECK_INT(revdial_reset(st, 70), 0);
        CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ECLOSED);
        CHECK_INT(revdial_write(st, "x", 1), REVDIAL_ECLOSED);
        CHECK_INT(revdial_shutdown(st, REVDIAL_WR), REVDIAL_ECLOSED);
        CHECK_INT(revdial_stream_error(st, NULL), REVDIAL_ECLOSED);
        revdial_close(st);
    }
}

// Each way in which the peer will not read EOF, as a write would tell it.
WORLD_TEST(a_shutdown_says_why_the_peer_will_not_read_EOF)
{
    char c;
    revdial_stream *st = world_dial(w, "reset", 70, NULL);
    revdial_stream *lost = world_dial(w, "stop", 0, NULL);
    revdial_stream *ended = world_dial(w, "stop", 0, NULL);
    if (CHECK(st && lost && ended)) {
        CHECK_INT(revdial_write(st, "x", 1), 1);
        CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ERESET);
        CHECK_INT(revdial_shutdown(st, REVDIAL_WR), REVDIAL_ERESET);
        CHECK_INT(revdial_shutdown(ended, REVDIAL_WR), 0);
        shutdown(lost->session->fd, SHUT_RDWR);
        CHECK_INT(revdial_read(lost, &c, 1), REVDIAL_ELOST);
        CHECK_INT(revdial_write(lost, &c, 1), REVDIAL_ELOST);
        CHECK_INT(revdial_shutdown(lost, REVDIAL_WR), REVDIAL_ELOST);
        CHECK_INT(revdial_shutdown(lost, REVDIAL_RD), 0);
        CHECK_INT(revdial_shutdown(ended, REVDIAL_WR), 0);
    }
    revdial_close(st);
    revdial_close(lost);
    revdial_close(ended);
}

NEW_WORLD_TEST(bytes_that_came_before_a_reset_can_be_read)
{
    char buf[32];
    raw_frame f = {0};
    REQUIRE(world_open_proxy(w));
    int fd = raw_backend(w->address, "cam-1", NULL);
    revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS);
    revdial_stream *st = revdial_dial(w->proxy, "cam-1", NULL, NULL);
    if (CHECK(st != NULL) && CHECK(raw_frame_await(fd, RAW_WINDOW, &f))) {
        raw_frame_send(fd, RAW_DATA, RAW_ACK, f.id, 5);
        raw_say(fd, "hello");
        raw_frame_send(fd, RAW_WINDOW, RAW_RST, f.id, 0);
        UTIL_EVENTUALLY(revdial_stream_error(st, NULL) == REVDIAL_ERESET);
        CHECK_INT(util_read_all(st, buf, 5), 5);
        CHECK(memcmp(buf, "hello", 5) == 0);
        CHECK_INT(revdial_read(st, buf, 1), REVDIAL_ERESET);
        CHECK_INT(revdial_read(st, buf, 1), REVDIAL_ERESET);
    }
    revdial_close(st);
    close(fd);
}

WORLD_TEST(a_handler_that_closes_without_a_touch_has_refused)
{
    revdial_err err;
    CHECK(world_dial(w, "refuse", 0, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_EREFUSED);
    CHECK_INT(err.reset, REVDIAL_RESET_REFUSED);
    CHECK(err.msg[0] != '\0');
    CHECK(world_dial(w, "refuse-code", 99, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_EREFUSED);
    CHECK_INT(err.reset, 99);
}

// ------------------------------------------------------------------------------------------------
// Deadlines

typedef struct blocked {
    revdial_stream *st;
    util_gate began, done;
    ptrdiff_t result;
    int writes;
} blocked;

static void *blocked_run(void *arg)
{
    blocked *b = arg;
    char buf[4096] = "";
    util_gate_add(&b->began, 1);
    if (b->writes) do
            b->result = revdial_write(b->st, buf, sizeof buf);
        while (b->result == (ptrdiff_t)sizeof buf);
    else
        b->result = revdial_read(b->st, buf, sizeof buf);
    util_gate_add(&b->done, 1);
    return NULL;
}

static pthread_t blocked_start(blocked *b, revdial_stream *st, int writes)
{
    memset(b, 0, sizeof *b);
    b->st = st;
    b->writes = writes;
    util_gate_init(&b->began);
    util_gate_init(&b->done);
    pthread_t t = util_thread(blocked_run, b);
    util_gate_wait(&b->began, 1);
    return t;
}

// In a wait that no event tells of: the ledger does not show readers, so it is given a moment. That
// the moment was too short weakens the test, and cannot fail it.
static void blocked_settle(void)
{
    util_nap_ms(20);
}

// A stream in the turns of the writers that does not write holds all others up, for 5 ms each time.
WORLD_TEST(a_poll_for_bytes_to_read_asks_for_no_turn_to_write)
{
    static const char bytes[65536];
    revdial_stream *writer = world_dial(w, "sink", 0, NULL);
    revdial_stream *quiet = world_dial(w, "hold", 0, NULL);
    revdial_flow_info flow;
    if (CHECK(writer != NULL && quiet != NULL)) {
        revdial_session *s = writer->session;
        CHECK_INT(revdial_write(quiet, bytes, 8192), 8192);  // it has used up a part of its turn
        rvd_stream_lock(s);
        while (s->out.is_busy) {
            rvd_stream_unlock(s);
            sched_yield();
            rvd_stream_lock(s);
        }
        s->out.is_busy = 1;  // a thread is at it, so that the output stays full
        while (revdial_engine_write(s->engine, writer->id, bytes, sizeof bytes) > 0) {
        }
        CHECK_INT(rvd_stream_ready_locked(quiet, POLLIN), 0);
        revdial_engine_get_flow(s->engine, quiet->id, &flow);
        CHECK_STR(flow.blocked_on, "");
        CHECK_INT(rvd_stream_ready_locked(quiet, POLLIN | POLLOUT), 0);
        revdial_engine_get_flow(s->engine, quiet->id, &flow);
        CHECK_STR(flow.blocked_on, "socket");
        s->out.is_busy = 0;
        rvd_stream_flush_locked(s);
        rvd_stream_unlock(s);
        revdial_reset(writer, 0);
        revdial_close(writer);
        revdial_close(quiet);
    }
}

WORLD_TEST(U17_a_deadline_of_0_does_not_wait_and_one_that_passed_says_so)
{
    char c;
    revdial_stream *st = world_dial(w, "hold", 0, NULL);
    if (CHECK(st != NULL)) {
        CHECK_INT(revdial_stream_set_deadline(st, REVDIAL_RD, 0), 0);
        CHECK_INT(revdial_read(st, &c, 1), REVDIAL_EAGAIN);
        CHECK_INT(revdial_stream_set_deadline(st, REVDIAL_RD, 1), 0);
        CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ETIMEDOUT);
        CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ETIMEDOUT);  // it has passed
        CHECK_INT(revdial_write(st, "x", 1), 1);                // the other way has none
        CHECK_INT(revdial_stream_set_deadline(st, REVDIAL_WR, 0), 0);
        CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ETIMEDOUT);  // each way keeps its own
        CHECK_INT(revdial_stream_set_deadline(st, REVDIAL_RD, INT32_MAX), 0);
        CHECK_INT(revdial_stream_set_deadline(st, REVDIAL_WR, INT32_MIN), 0);
        CHECK_INT(revdial_write(st, "x", 1), 1);
        CHECK_INT(revdial_stream_set_deadline(st, 0, 5), REVDIAL_EINVAL);
        CHECK_INT(revdial_stream_set_deadline(st, 4, 5), REVDIAL_EINVAL);
        revdial_close(st);
    }
}

WORLD_TEST(a_passed_deadline_does_not_hide_bytes_that_are_there)
{
    char c;
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    if (CHECK(st != NULL)) {
        revdial_pollfd p = {st, 0, POLLIN, 0};
        revdial_write(st, "xy", 2);
        CHECK_INT(revdial_poll(&p, 1, UTIL_WAIT_MS), 1);
        revdial_stream_set_deadline(st, REVDIAL_RD, 0);
        CHECK_INT(revdial_read(st, &c, 1), 1);
        CHECK_INT(c, 'x');
        revdial_close(st);
    }
}

WORLD_TEST(U17_a_deadline_set_from_another_thread_wakes_a_blocked_reader)
{
    static const struct {
        int ms, want;
    } rows[] = {{0, REVDIAL_EAGAIN}, {1, REVDIAL_ETIMEDOUT}};
    for (int i = 0; i < 2; i++) {
        revdial_stream *st = world_dial(w, "hold", 0, NULL);
        if (!CHECK(st != NULL)) break;
        blocked b;
        pthread_t t = blocked_start(&b, st, 0);
        blocked_settle();
        revdial_stream_set_deadline(st, REVDIAL_RD, rows[i].ms);
        CHECK(util_gate_wait(&b.done, 1));
        pthread_join(t, NULL);
        CHECK_INT(b.result, rows[i].want);
        revdial_close(st);
    }
}

WORLD_TEST(a_shutdown_by_another_thread_wakes_whoever_waits_that_way)
{
    for (int writes = 0; writes < 2; writes++) {
        revdial_stream *st = world_dial(w, "hold", 0, NULL);
        if (!CHECK(st != NULL)) break;
        blocked b;
        pthread_t t = blocked_start(&b, st, writes);
        blocked_settle();
        CHECK_INT(revdial_shutdown(st, writes ? REVDIAL_WR : REVDIAL_RD), 0);
        if (!CHECK(util_gate_wait(&b.done, 1))) revdial_reset(st, REVDIAL_RESET_CANCEL);
        pthread_join(t, NULL);
        if (!writes || b.result < 0) CHECK_INT(b.result, REVDIAL_ECLOSED);  // or it wrote a part
        revdial_close(st);
    }
}

WORLD_TEST(U17_a_deadline_that_is_lifted_while_a_reader_waits_no_longer_counts)
{
    int was_lifted = 0;
    for (int ms = 100; ms <= 6400 && !was_lifted; ms *= 2) {
        revdial_stream *st = world_dial(w, "echo", 0, NULL);
        revdial_stream *other = world_dial(w, "echo", 0, NULL);
        if (!CHECK(st && other)) break;
        blocked b, later;
        int64_t before = util_now_ms();
        revdial_stream_set_deadline(st, REVDIAL_RD, ms);
        pthread_t t = blocked_start(&b, st, 0);
        blocked_settle();
        revdial_stream_set_deadline(st, REVDIAL_RD, -1);
        was_lifted = util_now_ms() - before < ms;  // or this machine was too slow: once more
        revdial_stream_set_deadline(other, REVDIAL_RD, ms);
        pthread_t u = blocked_start(&later, other, 0);
        CHECK(util_gate_wait(&later.done, 1));  // the old deadline was before this one
        CHECK_INT(later.result, REVDIAL_ETIMEDOUT);
        CHECK(!was_lifted || util_gate_count(&b.done) == 0);
        revdial_write(st, "x", 1);
        CHECK(util_gate_wait(&b.done, 1));
        pthread_join(t, NULL);
        pthread_join(u, NULL);
        CHECK(!was_lifted || b.result == 1);
        revdial_close(st);
        revdial_close(other);
    }
    CHECK(was_lifted);
}

TEST(a_writer_without_credit_stops_at_its_deadline_and_says_how_much_it_took)
{
    world w;
    uint8_t *buf = calloc(1, 1 << 20);
    world_init(&w);
    w.acfg.common.limits.stream_window = 65536;
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "stop", 0, NULL);
        if (CHECK(st != NULL)) {
            revdial_flow_info l;
            revdial_stream_get_flow(st, &l);
            revdial_stream_set_deadline(st, REVDIAL_WR, 500);
            CHECK_INT(revdial_write(st, buf, 1 << 20), l.send_credit);
            CHECK_INT(revdial_write(st, buf, 1), REVDIAL_ETIMEDOUT);
            revdial_stream_set_deadline(st, REVDIAL_WR, 0);
            CHECK_INT(revdial_write(st, buf, 1), REVDIAL_EAGAIN);
            revdial_stream_set_deadline(st, REVDIAL_WR, -1);
            util_gate_add(&w.go, 1);  // the handler reads
            CHECK_INT(revdial_write(st, buf, 1 << 20), 1 << 20);
            revdial_close(st);
        }
    }
    free(buf);
    world_close(&w);
}

WORLD_TEST(U17_a_deadline_set_from_another_thread_wakes_a_blocked_writer)
{
    revdial_stream *st = world_dial(w, "stop", 0, NULL);
    if (CHECK(st != NULL)) {
        blocked b;
        revdial_flow_info l = {0};
        pthread_t t = blocked_start(&b, st, 1);
        UTIL_EVENTUALLY(revdial_stream_get_flow(st, &l) == 0 &&
                        strcmp(l.blocked_on, "peer's credit") == 0);
        revdial_stream_set_deadline(st, REVDIAL_WR, 0);
        CHECK(util_gate_wait(&b.done, 1));
        pthread_join(t, NULL);
        CHECK(b.result == REVDIAL_EAGAIN || b.result > 0);
        revdial_close(st);
    }
}

WORLD_TEST(a_reset_from_another_thread_wakes_reader_and_writer)
{
    revdial_stream *st = world_dial(w, "stop", 0, NULL);
    if (CHECK(st != NULL)) {
        blocked r, s;
        pthread_t a = blocked_start(&r, st, 0), b = blocked_start(&s, st, 1);
        revdial_flow_info l = {0};
        UTIL_EVENTUALLY(revdial_stream_get_flow(st, &l) == 0 &&
                        strcmp(l.blocked_on, "peer's credit") == 0);
        revdial_reset(st, 80);
        CHECK(util_gate_wait(&r.done, 1) && util_gate_wait(&s.done, 1));
        pthread_join(a, NULL);
        pthread_join(b, NULL);
        CHECK(r.result < 0);
        revdial_close(st);
    }
}

// ------------------------------------------------------------------------------------------------
// poll

NEW_WORLD_TEST(poll_is_level_triggered_over_streams_and_descriptors)
{
    int fds[2];
    char c;
    REQUIRE(world_open(w) && pipe2(fds, O_CLOEXEC) == 0);
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    revdial_pollfd p[3] = {{st, -1, POLLIN, 0}, {NULL, fds[0], POLLIN, 0}, {NULL, -1, POLLIN, 0}};
    if (CHECK(st != NULL)) {
        CHECK_INT(revdial_poll(p, 3, 0), 0);
        CHECK_INT(revdial_poll(p, 3, 5), 0);
        CHECK_INT(write(fds[1], "x", 1), 1);
        CHECK_INT(revdial_poll(p, 3, UTIL_WAIT_MS), 1);
        CHECK_INT(p[0].revents, 0);
        CHECK_INT(p[1].revents, POLLIN);
        revdial_write(st, "yz", 2);
        UTIL_EVENTUALLY(revdial_poll(p, 1, 0) == 1);
        for (int i = 0; i < 2; i++) {
            CHECK_INT(revdial_poll(p, 3, UTIL_WAIT_MS), 2);
            CHECK_INT(p[0].revents, POLLIN);
            CHECK_INT(p[1].revents, POLLIN);
        }
        CHECK_INT(revdial_read(st, &c, 1), 1);
        CHECK_INT(revdial_poll(p, 1, UTIL_WAIT_MS), 1);
        CHECK_INT(revdial_read(st, &c, 1), 1);
        CHECK_INT(revdial_poll(p, 1, 0), 0);
        CHECK_INT(revdial_poll(NULL, 0, 1), 0);
        revdial_close(st);
    }
    close(fds[0]);
    close(fds[1]);
}

// Waits until the set's descriptor tells of something. Returns what has moved, NULL in vain.
static void *set_await(revdial_pollset *set)
{
    struct pollfd p = {.fd = revdial_pollset_fd(set), .events = POLLIN};
    void *ud = revdial_pollset_next(set);
    while (!ud && poll(&p, 1, UTIL_WAIT_MS) == 1) ud = revdial_pollset_next(set);
    return ud;
}

// Reads len bytes of a stream in a set, as they come.
static int set_read(revdial_pollset *set, revdial_stream *st, char *to, size_t len)
{
    size_t got = 0;
    while (got < len) {
        ptrdiff_t n = revdial_read(st, to + got, len - got);
        if (n > 0) got += (size_t)n;
        if (n != REVDIAL_EAGAIN && n <= 0) return (int)n;
        if (n == REVDIAL_EAGAIN && !set_await(set)) return REVDIAL_ETIMEDOUT;
    }
    return 1;
}

WORLD_TEST(a_poll_set_tells_of_each_stream_that_has_moved)
{
    enum { STREAMS = 200 };
    static revdial_stream *st[STREAMS];
    static int moved[STREAMS];
    char c = 0;
    revdial_pollset *set = revdial_pollset_new();
    REQUIRE(set != NULL);
    for (int i = 0; i < STREAMS; i++) {
        st[i] = world_dial(w, "echo", 0, NULL);
        moved[i] = 0;
        if (!CHECK(st[i] != NULL)) return;
        CHECK_INT(revdial_pollset_add(set, st[i], &moved[i]), 0);
        CHECK_INT(revdial_pollset_add(set, st[i], NULL), REVDIAL_EINVAL);
        CHECK_INT(revdial_read(st[i], &c, 1), REVDIAL_EAGAIN);
    }
    CHECK(revdial_pollset_next(set) == NULL);
    for (int i = 0; i < STREAMS; i += 2) CHECK_INT(revdial_write(st[i], "x", 1), 1);
    for (int n = 0; n < STREAMS / 2;) {
        int *which = set_await(set), i = which ? (int)(which - moved) : 0;
        if (!CHECK(which != NULL)) break;
        if (revdial_read(st[i], &c, 1) != 1) continue;  // its write made room
        CHECK(i % 2 == 0 && c == 'x');
        CHECK_INT(moved[i]++, 0);
        n++;
    }
    for (int i = 0; i < STREAMS; i++) {
        CHECK_INT(moved[i], i % 2 == 0);
        revdial_close(st[i]);
    }
    CHECK(revdial_pollset_next(set) == NULL);
    revdial_pollset_free(set);
}

WORLD_TEST(a_stream_in_a_poll_set_takes_what_there_is_room_for_and_tells_of_more)
{
    enum { TOTAL = 8 << 20 };
    static char out[65536], in[65536];
    size_t sent = 0, back = 0;
    ptrdiff_t n = 0;
    revdial_pollset *set = revdial_pollset_new();
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    REQUIRE(set != NULL && st != NULL);
    CHECK_INT(revdial_pollset_add(set, st, st), 0);
    for (size_t i = 0; i < sizeof out; i++) out[i] = (char)(i * 131 % 251);
    while (back < TOTAL && (n >= 0 || n == REVDIAL_EAGAIN)) {
        size_t at = sent % sizeof out, left = sizeof out - at, from = back % sizeof in;
        ptrdiff_t put = sent < TOTAL ? revdial_write(st, out + at, left) : REVDIAL_EAGAIN;
        if (put > 0) sent += (size_t)put;
        n = revdial_read(st, in, sizeof in - from);
        if (n > 0 && memcmp(in, out + from, (size_t)n) != 0) test_fail(__FILE__, __LINE__, "other");
        if (n > 0) back += (size_t)n;
        if (put < 0 && n < 0 && !CHECK(set_await(set) == st)) break;
    }
    CHECK_INT(back, TOTAL);
    revdial_shutdown(st, REVDIAL_WR);
    n = set_read(set, st, in, 1);
    CHECK_INT(n, 0);  // its EOF
    revdial_close(st);
    revdial_pollset_free(set);
}

WORLD_TEST(a_poll_set_tells_of_a_session_that_dies_and_of_no_stream_that_left)
{
    char c;
    int fds[2];
    revdial_pollset *set = revdial_pollset_new();
    revdial_stream *stays = world_dial(w, "echo", 0, NULL), *goes = world_dial(w, "echo", 0, NULL);
    REQUIRE(set != NULL && stays != NULL && goes != NULL);
    CHECK_INT(revdial_pollset_add(set, stays, stays), 0);
    CHECK_INT(revdial_pollset_add(set, goes, goes), 0);
    fds[0] = revdial_stream_fd(goes);
    CHECK(fds[0] >= 0 && raw_say(fds[0], "x") && raw_read_all(fds[0], &c, 1));
    CHECK(revdial_pollset_next(set) == NULL);
    revdial_session *s = revdial_stream_session(stays);
    revdial_session_kill(s);
    revdial_session_unref(s);
    CHECK(set_await(set) == stays);
    CHECK_INT(revdial_read(stays, &c, 1), REVDIAL_ECLOSED);
    CHECK_INT(revdial_write(stays, &c, 1), REVDIAL_ECLOSED);
    revdial_close(stays);
    close(fds[0]);
    CHECK(revdial_pollset_next(set) == NULL);
    revdial_pollset_free(set);
}

WORLD_TEST(poll_tells_room_to_write_and_its_absence)
{
    char buf[4096] = "";
    revdial_stream *st = world_dial(w, "stop", 0, NULL);
    if (CHECK(st != NULL)) {
        revdial_pollfd p = {st, 0, POLLIN | POLLOUT, 0};
        CHECK_INT(revdial_poll(&p, 1, UTIL_WAIT_MS), 1);
        CHECK_INT(p.revents, POLLOUT);
        revdial_stream_set_deadline(st, REVDIAL_WR, 20);
        while (revdial_write(st, buf, sizeof buf) > 0) {
        }
        CHECK_INT(revdial_poll(&p, 1, 1), 0);
        util_gate_add(&w->go, 1);
        CHECK_INT(revdial_poll(&p, 1, UTIL_WAIT_MS), 1);
        CHECK_INT(p.revents, POLLOUT);
        revdial_close(st);
    }
}

WORLD_TEST(poll_tells_the_end_of_a_stream_as_poll_2_does)
{
    char c;
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    if (CHECK(st != NULL)) {
        revdial_pollfd p = {st, 0, POLLIN, 0};
        revdial_shutdown(st, REVDIAL_WR);
        CHECK_INT(revdial_poll(&p, 1, UTIL_WAIT_MS), 1);
        CHECK(p.revents & POLLIN);  // EOF can be read
        CHECK_INT(revdial_read(st, &c, 1), 0);
        p.events = 0;
        CHECK_INT(revdial_poll(&p, 1, 0), 1);
        CHECK_INT(p.revents, POLLHUP);  // both directions are over
        revdial_close(st);
    }
    st = world_dial(w, "reset", 65, NULL);
    if (CHECK(st != NULL)) {
        revdial_pollfd p = {st, 0, 0, 0};
        revdial_write(st, "x", 1);
        CHECK_INT(revdial_poll(&p, 1, UTIL_WAIT_MS), 1);
        CHECK(p.revents & POLLERR);
        revdial_close(st);
    }
}

typedef struct long_write {
    revdial_stream *st;
    ptrdiff_t n;
} long_write;

static void *long_write_run(void *arg)
{
    static char junk[2 * 262144];
    long_write *w = arg;
    w->n = revdial_write(w->st, junk, sizeof junk);
    return NULL;
}

static int is_out_of_credit(revdial_stream *st)
{
    revdial_flow_info l = {0};
    return revdial_stream_get_flow(st, &l) == 0 && strcmp(l.blocked_on, "peer's credit") == 0;
}

// A side that we ended ourselves is no failure; one that the peer or the session ended is, also
// when the other side is over.
WORLD_TEST(poll_for_room_waits_on_though_we_stopped_reading)
{
    static const char junk[4096];
    revdial_stream *st = world_dial(w, "stop", 0, NULL);
    if (CHECK(st != NULL)) {
        revdial_pollfd p = {st, -1, POLLOUT, 0};
        revdial_stream_set_deadline(st, REVDIAL_WR, 0);
        UTIL_EVENTUALLY(revdial_write(st, junk, sizeof junk) == REVDIAL_EAGAIN &&
                        is_out_of_credit(st));
        CHECK_INT(revdial_shutdown(st, REVDIAL_RD), 0);
        CHECK_INT(revdial_poll(&p, 1, 0), 0);
        CHECK_INT(p.revents, 0);
        CHECK_INT(revdial_shutdown(st, REVDIAL_WR), 0);
        CHECK_INT(revdial_poll(&p, 1, 0), 1);
        CHECK_INT(p.revents, POLLOUT | POLLHUP);  // a write would not wait
        revdial_close(st);
    }
}

static void check_poll_tells_loss(revdial_stream *st)
{
    revdial_pollfd p = {st, -1, 0, 0};
    CHECK_INT(revdial_poll(&p, 1, 0), 0);
    shutdown(st->session->fd, SHUT_RDWR);
    CHECK_INT(revdial_poll(&p, 1, UTIL_WAIT_MS), 1);
    CHECK_INT(p.revents, POLLHUP | POLLERR);
}

WORLD_TEST(poll_tells_a_lost_session_though_the_peer_has_finished)
{
    char c;
    revdial_stream *st = world_dial(w, "source", 0, NULL);
    REQUIRE(st != NULL);
    CHECK_INT(revdial_read(st, &c, 1), 0);
    check_poll_tells_loss(st);
    revdial_close(st);
}

WORLD_TEST(poll_tells_a_lost_session_though_we_stopped_reading)
{
    revdial_stream *st = world_dial(w, "stop", 0, NULL);
    REQUIRE(st != NULL);
    CHECK_INT(revdial_shutdown(st, REVDIAL_RD), 0);
    check_poll_tells_loss(st);
    revdial_close(st);
}

// The peer gives credit and reads nothing: what a sleeping writer then has to say waits for the
// socket, and so does the loop.
TEST(the_loop_sleeps_while_the_socket_is_full_and_a_writer_has_more)
{
    static char junk[16384];
    world w;
    world_init(&w);
    REQUIRE(world_open_proxy(&w));
    int fd = raw_backend(w.address, "cam-1", NULL), small = 16384;
    CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    long_write sleeper = {.st = revdial_dial(w.proxy, "cam-1", NULL, NULL)};
    REQUIRE(fd >= 0 && sleeper.st);
    uint64_t before = util_passes(w.proxy->loops[0]);
    pthread_t thread = util_thread(long_write_run, &sleeper);
    revdial_session *s = sleeper.st->session;
    raw_frame f = {0};
    for (uint32_t got = 0; got < 262144 && raw_frame_await(fd, RAW_DATA, &f); got += f.len)
        for (uint32_t left = f.len, n; left; left -= n) {
            n = left < sizeof junk ? left : (uint32_t)sizeof junk;
            if (!CHECK(raw_read_all(fd, junk, n))) break;
        }
    raw_frame_send(fd, RAW_WINDOW, RAW_ACK, f.id, 0);
    UTIL_EVENTUALLY(is_out_of_credit(sleeper.st));
    revdial_stream *others[64] = {NULL};
    for (int i = 0; i < 64 && !util_is_blocked(s); i++) {
        others[i] = revdial_dial(w.proxy, "cam-1", NULL, NULL);
        REQUIRE(others[i] != NULL);
        revdial_stream_set_deadline(others[i], REVDIAL_WR, 0);
        for (int n = 0; n < 60 && !util_is_blocked(s); n++) revdial_write(others[i], junk, 4096);
    }
    CHECK(util_is_blocked(s));
    raw_frame_send(fd, RAW_WINDOW, 0, f.id, 262144);
    UTIL_EVENTUALLY(!is_out_of_credit(sleeper.st));
    util_nap_ms(30);
    CHECK(util_passes(w.proxy->loops[0]) - before < 5000);
    revdial_reset(sleeper.st, 0);
    pthread_join(thread, NULL);
    revdial_close(sleeper.st);
    for (int i = 0; i < 64; i++) revdial_close(others[i]);
    close(fd);
    world_close(&w);
}

// A full socket has carried so many bytes a second; how many may wait unsent from now on?
static int unsent_at(revdial_session *s, uint64_t rate)
{
    int bytes = 0;
    rvd_stream_lock(s);
    s->pace.bytes = rate / 10;
    s->pace.was_blocked = 1;
    rvd_stream_pace_locked(s, s->pace.since_us + 100000);
    bytes = s->pace.queue_bytes;
#ifdef TCP_NOTSENT_LOWAT
    int low = 0;
    socklen_t len = sizeof low;
    CHECK_INT(getsockopt(s->fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &low, &len), 0);
    CHECK_INT(low, bytes);
#endif
    rvd_stream_unlock(s);
    return bytes;
}

// Five milliseconds' worth, at least 16 KiB if that is no more than a tenth of a second's.
WORLD_TEST(what_waits_unsent_is_what_the_link_carries_in_a_moment)
{
    static const struct {
        uint64_t rate;
        int unsent;
    } rows[] = {
        {1000, 4096},      // never less
        {50000, 5000},     // a tenth of a second's
        {160000, 16000},   // likewise
        {1000000, 16384},  // neither a tenth of a second's, nor 5 ms'
        {3200000, 16384},
        {10000000, 50000},     // 5 ms'
        {1000000000, 262144},  // never more
        {100000, 10000},       // and back
    };
    revdial_session *s = revdial_agent_wait(w->agents[0], UTIL_WAIT_MS, NULL);
    REQUIRE(s != NULL);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        CHECK_INT(unsent_at(s, rows[i].rate), rows[i].unsent);
    revdial_session_unref(s);
}

#if defined(__linux__) && defined(TCP_INFO)
// A session has sent so much in 100 ms more. What round trip of TCP does its engine know?
static uint32_t trip_after(revdial_session *s, uint64_t bytes, uint32_t resent, uint32_t rtt_us)
{
    uint32_t trip = 0;
    rvd_stream_lock(s);
    atomic_store(&util_tcp_resent, resent);
    atomic_store(&util_tcp_rtt_us, rtt_us);
    s->pace.bytes = bytes;
    rvd_stream_pace_locked(s, s->pace.since_us + 100000);
    trip = s->engine->mux.pace.link_us;
    rvd_stream_unlock(s);
    return trip;
}

// A packet that is sent again matters for a second, in which TCP's round trip is asked for as long
// as there is something to measure.
WORLD_TEST(the_round_trip_of_tcp_counts_while_bbr_sends_packets_again)
{
    revdial_session *s = revdial_agent_wait(w->agents[0], UTIL_WAIT_MS, NULL);
    REQUIRE(s != NULL);
    atomic_store(&util_tcp_name, "bbr");
    CHECK_INT(trip_after(s, 1000, 1, 40000), 0);    // it sends too little to be asked
    CHECK_INT(trip_after(s, 100000, 0, 40000), 0);  // no packet was sent again
    CHECK_INT(trip_after(s, 100000, 1, 40000), 40000);
    CHECK_INT(trip_after(s, 100000, 1, 50000), 50000);
    int asked = atomic_load(&util_getsockopts);
    CHECK_INT(trip_after(s, 1000, 1, 60000), 50000);
    CHECK_INT(atomic_load(&util_getsockopts), asked);
    for (int i = 0; i < 7; i++) CHECK_INT(trip_after(s, 100000, 1, 60000), 60000);
    CHECK_INT(trip_after(s, 100000, 1, 60000), 0);  // a second ago
    CHECK_INT(trip_after(s, 100000, 2, 60000), 60000);
    atomic_store(&util_tcp_name, NULL);
    revdial_session_unref(s);
}

// CUBIC and Reno slow down for a lost packet: it tells that the link is full.
WORLD_TEST(a_tcp_that_slows_down_for_losses_is_not_asked_for_its_round_trip)
{
    revdial_session *s = revdial_agent_wait(w->agents[0], UTIL_WAIT_MS, NULL);
    REQUIRE(s != NULL);
    atomic_store(&util_tcp_name, "cubic");
    for (uint32_t i = 1; i < 4; i++) CHECK_INT(trip_after(s, 100000, i, 40000), 0);
    atomic_store(&util_tcp_name, NULL);
    revdial_session_unref(s);
}
#endif

WORLD_TEST(poll_that_fails_leaves_nothing_behind)
{
    char c;
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    if (CHECK(st != NULL)) {
        revdial_pollfd p = {st, -1, POLLIN, 0};
        util_poll_fails = 1;
        CHECK_INT(revdial_poll(&p, 1, UTIL_WAIT_MS), REVDIAL_ESYS);
        CHECK(rvd_base_link_is_alone(&st->waiters));
        CHECK_INT(st->session->reader.waiting, 0);
        CHECK_INT(revdial_write(st, "x", 1), 1);
        CHECK_INT(revdial_read(st, &c, 1), 1);
        revdial_close(st);
    }
}

// A few bytes of credit are no room yet, and a small write that uses some of them ends the wait.
TEST(poll_tells_room_after_a_write_into_the_last_of_the_credit)
{
    static char junk[16384];
    world w;
    world_init(&w);
    REQUIRE(world_open_proxy(&w));
    int fd = raw_backend(w.address, "cam-1", NULL);
    CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
    revdial_stream *st = revdial_dial(w.proxy, "cam-1", NULL, NULL);
    if (CHECK(fd >= 0 && st)) {
        revdial_pollfd p = {st, -1, POLLOUT, 0};
        raw_frame f = {0};
        for (size_t left = 262144 - 500, n; left; left -= n) {
            n = left < sizeof junk ? left : sizeof junk;
            CHECK_INT(revdial_write(st, junk, n), (ptrdiff_t)n);
            for (size_t got = 0; got < n; got += f.len)  // in a frame or two
                if (!CHECK(raw_frame_await(fd, RAW_DATA, &f) && f.len <= n - got &&
                           raw_read_all(fd, junk, f.len)))
                    break;
        }
        uint32_t id = f.id;
        raw_frame_send(fd, RAW_WINDOW, RAW_ACK, id, 0);
        raw_frame_send(fd, RAW_PING, RAW_SYN, 0, 1);
        while (raw_frame_await(fd, RAW_PING, &f) && f.flags != RAW_ACK) continue;
        util_clock_stop();  // in time they are used after all
        CHECK_INT(revdial_poll(&p, 1, 0), 0);
        CHECK_INT(revdial_write(st, junk, 100), 100);
        CHECK_INT(revdial_poll(&p, 1, 0), 0);
        util_clock_run();
        raw_frame_send(fd, RAW_WINDOW, 0, id, 262144);
        CHECK_INT(revdial_poll(&p, 1, UTIL_WAIT_MS), 1);
        CHECK_INT(p.revents, POLLOUT);
    }
    revdial_close(st);
    if (fd >= 0) close(fd);
    world_close(&w);
}

// Is all that was written on the wire, and will the loop not look at its clock for `ms`?
static int is_quiet_for(revdial_session *s, int ms)
{
    rvd_stream_lock(s);
    const rvd_mux *m = &s->engine->mux;
    int yes = !s->out.is_blocked && m->out_sent == m->out_added && !m->ping_out &&
              s->armed_us - rvd_sys_now_us() > ms * 1000LL;
    rvd_stream_unlock(s);
    return yes;
}

// The poll begins that moment itself, and nobody else looks at the clock for it.
NEW_WORLD_TEST(a_poll_for_room_tells_of_a_few_bytes_of_credit_after_a_moment)
{
    static const char junk[262144];
    w->pcfg.common.limits.keepalive_ms = w->acfg.common.limits.keepalive_ms = INT32_MAX;
    REQUIRE(world_open(w));
    revdial_stream *st = world_dial(w, "stop", 0, NULL);
    if (CHECK(st != NULL)) {
        revdial_pollfd p = {st, -1, POLLOUT, 0};
        revdial_flow_info l = {0};
        CHECK_INT(revdial_stream_get_flow(st, &l), 0);
        ptrdiff_t n = (ptrdiff_t)l.send_credit - 500;
        CHECK(n > 0 && n < (ptrdiff_t)sizeof junk);
        CHECK_INT(revdial_write(st, junk, (size_t)n), n);
        UTIL_EVENTUALLY(is_quiet_for(st->session, UTIL_WAIT_MS / 3));
        CHECK_INT(revdial_poll(&p, 1, UTIL_WAIT_MS / 3), 1);
        CHECK_INT(p.revents, POLLOUT);
        revdial_close(st);
    }
}

enum { POLLED = 8 };

// Streams of one session, each with a byte to be read, of which a poll has told this thread.
static int polled_open(world *w, revdial_pollfd *items)
{
    for (int i = 0; i < POLLED; i++) {
        items[i] = (revdial_pollfd){world_dial(w, "echo", 0, NULL), -1, POLLIN, 0};
        if (!CHECK(items[i].st != NULL)) return 0;
        CHECK_INT(revdial_write(items[i].st, "x", 1), 1);
    }
    UTIL_EVENTUALLY(revdial_poll(items, POLLED, 0) == POLLED);
    return 1;
}

static void polled_close(world *w, revdial_pollfd *items)
{
    for (int i = 0; i < POLLED; i++) revdial_close(items[i].st);
    world_close(w);
}

// Is there something that has not gone out yet?
static int polled_left(revdial_stream *st)
{
    struct iovec first;
    rvd_stream_lock(st->session);
    int left = revdial_engine_output(st->session->engine, &first, 1) > 0;
    rvd_stream_unlock(st->session);
    return left;
}

TEST(answers_to_streams_that_a_poll_told_of_go_out_together)
{
    world w;
    revdial_pollfd p[POLLED] = {{0}};
    util_held_loop held;
    char c;
    world_init(&w);
    if (world_open(&w) && polled_open(&w, p)) {
        util_loop_hold(&held, w.proxy->loops[0]);
        for (int i = 0; i < POLLED; i++) {
            CHECK_INT(polled_left(p[i].st), i > 0);
            CHECK_INT(revdial_read(p[i].st, &c, 1), 1);
            CHECK_INT(revdial_write(p[i].st, "y", 1), 1);
        }
        CHECK(!polled_left(p[0].st));
        // What a thread does that was told of nothing goes out at once.
        CHECK_INT(revdial_write(p[0].st, "z", 1), 1);
        CHECK(!polled_left(p[0].st));
        util_loop_let_go(&held);
    }
    polled_close(&w, p);
}

TEST(answers_go_out_when_the_thread_polls_again)
{
    world w;
    revdial_pollfd p[POLLED] = {{0}};
    util_held_loop held;
    world_init(&w);
    if (world_open(&w) && polled_open(&w, p)) {
        util_loop_hold(&held, w.proxy->loops[0]);
        CHECK_INT(revdial_write(p[0].st, "y", 1), 1);
        CHECK(polled_left(p[0].st));
        CHECK_INT(revdial_poll(p, POLLED, 0), POLLED);
        CHECK(!polled_left(p[0].st));
        util_loop_let_go(&held);
    }
    polled_close(&w, p);
}

TEST(an_answer_goes_out_though_the_thread_never_polls_again)
{
    world w;
    revdial_pollfd p[POLLED] = {{0}};
    world_init(&w);
    w.pcfg.common.limits.keepalive_ms = w.acfg.common.limits.keepalive_ms = 4 * UTIL_WAIT_MS;
    if (world_open(&w) && polled_open(&w, p)) {
        CHECK_INT(revdial_write(p[0].st, "y", 1), 1);
        UTIL_EVENTUALLY(!polled_left(p[0].st));
    }
    polled_close(&w, p);
}

typedef struct poller {
    revdial_pollfd items[2];
    util_gate began, done;
    int result;
} poller;

static void *poller_run(void *arg)
{
    poller *p = arg;
    util_gate_add(&p->began, 1);
    p->result = revdial_poll(p->items, 2, UTIL_WAIT_MS);
    util_gate_add(&p->done, 1);
    return NULL;
}

TEST(poll_is_woken_by_bytes_by_a_descriptor_by_a_reset_and_by_the_sessions_death)
{
    world w;
    world_init(&w);
    if (!world_open(&w)) goto out;
    for (int how = 0; how < 4; how++) {
        int fds[2];
        poller p;
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        if (!CHECK(st != NULL) || pipe2(fds, O_CLOEXEC) < 0) break;
        memset(&p, 0, sizeof p);
        util_gate_init(&p.began);
        util_gate_init(&p.done);
        p.items[0].st = st;
        p.items[0].events = p.items[1].events = POLLIN;
        p.items[1].fd = fds[0];
        pthread_t t = util_thread(poller_run, &p);
        util_gate_wait(&p.began, 1);
        blocked_settle();
        if (how == 0) revdial_write(st, "x", 1);
        if (how == 1) CHECK_INT(write(fds[1], "x", 1), 1);
        if (how == 2) revdial_reset(st, 66);
        if (how == 3) {
            revdial_session *s = revdial_stream_session(st);
            revdial_session_kill(s);
            revdial_session_unref(s);
        }
        CHECK(util_gate_wait(&p.done, 1));
        pthread_join(t, NULL);
        CHECK_INT(p.result, 1);
        CHECK(p.items[how == 1].revents != 0);
        revdial_close(st);
        close(fds[0]);
        close(fds[1]);
    }
out:
    world_close(&w);
}

// ---- limited rates

enum { SLOW = 2000000, SLOW_BYTES = 1000000 };

// That a busy machine takes longer does not matter.
static int took_its_time(int64_t since_ms)
{
    const int free_bytes = SLOW / 4 + 2 * 65536;  // a burst, and windows
    return util_now_ms() - since_ms >= (SLOW_BYTES - free_bytes) / (SLOW / 1000);
}

NEW_WORLD_TEST(blocking_calls_move_a_limited_stream_at_its_rate_and_whole)
{
    w->pcfg.common.limits.stream_rate = SLOW;
    REQUIRE(world_open(w));
    int64_t since = util_now_ms();
    revdial_stream *st = world_dial(w, "source", SLOW_BYTES, NULL);
    REQUIRE(st != NULL);
    util_read r = util_read_payload(st, 1);
    CHECK_INT(r.bytes, SLOW_BYTES);
    CHECK_INT(r.end, 0);
    CHECK(!r.is_bad);
    CHECK(took_its_time(since));
    since = util_now_ms();
    CHECK_INT(util_write_payload(st, SLOW_BYTES, 2), SLOW_BYTES);
    CHECK(took_its_time(since));
    revdial_shutdown(st, REVDIAL_WR);
    CHECK(util_gate_wait(&w->ended, 1));
    CHECK_INT(world_last(w).bytes, SLOW_BYTES);
    CHECK_INT(world_last(w).end, 0);
    revdial_close(st);
}

// The reader takes its time between two reads, and must not hold up another thread's stream.
NEW_WORLD_TEST(a_thread_that_does_not_sleep_leaves_the_rate_to_others)
{
    char buf[16384];
    w->pcfg.common.limits.session_rate = SLOW;
    REQUIRE(world_open(w));
    revdial_stream *idle = world_dial(w, "source", SLOW_BYTES, NULL);
    revdial_stream *st = world_dial(w, "source", SLOW_BYTES, NULL);
    REQUIRE(idle && st);
    for (int i = 0; i < 4; i++) CHECK(revdial_read(idle, buf, sizeof buf) > 0);
    util_read r = util_read_payload(st, 1);
    CHECK_INT(r.bytes, SLOW_BYTES);
    CHECK_INT(r.end, 0);
    revdial_close(idle);
    revdial_close(st);
}

NEW_WORLD_TEST(a_rate_that_cannot_be_is_refused)
{
    revdial_err err;
    w->pcfg.common.limits.session_rate = 999;
    CHECK(revdial_proxy_start(&w->pcfg, &err) == NULL);
    CHECK(strstr(err.msg, "limits.session_rate: 999 is not in 1000..100000000000") != NULL);
    w->pcfg.common.limits.session_rate = UINT64_MAX;
    CHECK(revdial_proxy_start(&w->pcfg, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_EINVAL);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
