// The calls on a stream, through a proxy and an agent on loopback: reading, writing, half-close,
// reset, deadlines, poll, sockets, joins, and what is told about a stream.
#include "runtime_util.h"

// ------------------------------------------------------------------------------------------------
// Bytes

TEST(bytes_come_back_as_they_were_sent_and_EOF_comes_after_them)
{
    world w;
    uint8_t buf[70000], back[70000];
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        if (CHECK(st != NULL)) {
            util_fill(buf, sizeof buf, 0, 7);
            CHECK_INT(revdial_write(st, buf, sizeof buf), sizeof buf);
            CHECK_INT(util_read_all(st, back, sizeof back), sizeof back);
            CHECK(memcmp(buf, back, sizeof buf) == 0);
            CHECK_INT(revdial_shutdown(st, REVDIAL_WR), 0);
            CHECK_INT(revdial_read(st, back, 1), 0);
            CHECK_INT(revdial_read(st, back, 1), 0);  // and again
            CHECK_INT(revdial_error(st, NULL), 0);
            revdial_close(st);
        }
    }
    world_close(&w);
}

TEST(readv_and_writev_take_vectors_with_empty_ones_between)
{
    world w;
    char a[3], b[8] = "", c[64] = "";
    char text[] = "abcdefghij";
    struct iovec out[5] = {{text, 2}, {NULL, 0}, {text + 2, 5}, {text, 0}, {text + 7, 3}};
    struct iovec in[4] = {{a, 3}, {NULL, 0}, {b, 4}, {c, sizeof c}};
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "sink", 0, NULL);
        if (CHECK(st != NULL)) {
            CHECK_INT(revdial_writev(st, out, 5), 10);
            CHECK_INT(revdial_writev(st, out, 0), 0);
            revdial_reset(st, REVDIAL_RESET_CANCEL);
            revdial_close(st);
        }
        st = world_dial(&w, "echo", 0, NULL);
        if (CHECK(st != NULL)) {
            CHECK_INT(revdial_writev(st, out, 5), 10);
            revdial_pollfd p = {st, 0, POLLIN, 0};
            CHECK_INT(revdial_poll(&p, 1, UTIL_WAIT_MS), 1);
            ptrdiff_t n = revdial_readv(st, in, 4);
            while (n > 0 && n < 10) {  // it may come in pieces
                ptrdiff_t more = revdial_read(st, n < 3 ? a + n : n < 7 ? b + (n - 3) : c + (n - 7),
                                              (size_t)(n < 3 ? 3 - n : n < 7 ? 7 - n : 10 - n));
                if (more <= 0) break;
                n += more;
            }
            CHECK_INT(n, 10);
            CHECK(memcmp(a, "abc", 3) == 0 && memcmp(b, "defg", 4) == 0 && memcmp(c, "hij", 3) == 0);
            revdial_close(st);
        }
    }
    world_close(&w);
}

TEST(U15_a_read_or_write_of_nothing_returns_0_at_once_and_accepts)
{
    world w;
    char c;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "hold", 0, NULL);  // hold accepts by an empty write
        if (CHECK(st != NULL)) {
            revdial_ledger before, l;
            CHECK_INT(revdial_stream_ledger(st, &before), 0);
            CHECK_INT(revdial_read(st, &c, 0), 0);
            CHECK_INT(revdial_read(st, NULL, 0), 0);
            CHECK_INT(revdial_write(st, NULL, 0), 0);
            CHECK_INT(revdial_stream_ledger(st, &l), 0);
            CHECK_INT(l.sent, before.sent);
            revdial_close(st);
        }
    }
    world_close(&w);
}

TEST(U16_the_buffer_is_the_callers_again_when_write_returns)
{
    world w;
    uint8_t buf[4096];
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "sink", 0, NULL);
        if (CHECK(st != NULL)) {
            for (uint64_t at = 0; at < 1 << 20; at += sizeof buf) {
                util_fill(buf, sizeof buf, at, 2);
                CHECK_INT(revdial_write(st, buf, sizeof buf), sizeof buf);
                memset(buf, 0, sizeof buf);
            }
            revdial_shutdown(st, REVDIAL_WR);
            CHECK_INT(util_read_all(st, buf, 2), 2);
            revdial_close(st);
            CHECK(util_gate_wait(&w.ended, 1));
            CHECK_INT(world_last(&w).bytes, 1 << 20);
            CHECK_INT(world_last(&w).is_bad, 0);
        }
    }
    world_close(&w);
}

// ------------------------------------------------------------------------------------------------
// Endings

TEST(half_close_of_the_dialler_leaves_the_other_direction_open)
{
    world w;
    char buf[8];
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "sink", 0, NULL);
        if (CHECK(st != NULL)) {
            CHECK_INT(util_write_payload(st, 1000, 2), 1000);
            CHECK_INT(revdial_shutdown(st, REVDIAL_WR), 0);
            CHECK_INT(util_read_all(st, buf, 2), 2);
            CHECK_INT(revdial_read(st, buf, 1), 0);
            revdial_close(st);
            CHECK(util_gate_wait(&w.ended, 1));
            CHECK_INT(world_last(&w).bytes, 1000);
            CHECK_INT(world_last(&w).end, 0);
        }
    }
    world_close(&w);
}

TEST(half_close_of_the_handler_leaves_the_other_direction_open)
{
    world w;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "source", 100000, NULL);
        if (CHECK(st != NULL)) {
            util_read r = util_read_payload(st, 1);
            CHECK_INT(r.bytes, 100000);
            CHECK_INT(r.end, 0);
            CHECK_INT(r.is_bad, 0);
            CHECK_INT(util_write_payload(st, 50000, 2), 50000);
            revdial_close(st);
            CHECK(util_gate_wait(&w.ended, 1));
            CHECK_INT(world_last(&w).bytes, 50000);
            CHECK_INT(world_last(&w).end, 0);
        }
    }
    world_close(&w);
}

TEST(U19_a_write_after_shutdown_is_ECLOSED_and_a_second_shutdown_is_fine)
{
    world w;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "hold", 0, NULL);
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
    world_close(&w);
}

TEST(who_stops_reading_gets_ECLOSED_and_a_peer_that_goes_on_is_reset)
{
    world w;
    char c;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "flood", 0, NULL);
        if (CHECK(st != NULL)) {
            CHECK_INT(revdial_shutdown(st, REVDIAL_RD), 0);
            CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ECLOSED);
            CHECK(util_gate_wait(&w.ended, 1));
            CHECK_INT(world_last(&w).end, REVDIAL_ERESET);
            revdial_close(st);
        }
    }
    world_close(&w);
}

TEST(what_was_written_before_close_is_delivered_with_its_EOF)
{
    world w;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "sink", 0, NULL);
        if (CHECK(st != NULL)) {
            CHECK_INT(util_write_payload(st, 3000000, 2), 3000000);
            revdial_close(st);
            CHECK(util_gate_wait(&w.ended, 1));
            CHECK_INT(world_last(&w).bytes, 3000000);
            CHECK_INT(world_last(&w).end, 0);
            CHECK_INT(world_last(&w).is_bad, 0);
        }
    }
    world_close(&w);
}

TEST(a_reset_carries_the_applications_code_to_a_peer_that_reads)
{
    static const int codes[] = {REVDIAL_RESET_CANCEL, REVDIAL_RESET_INTERNAL, 64, 77, 255};
    world w;
    world_init(&w);
    if (world_open(&w)) {
        for (int i = 0; i < 5; i++) {
            revdial_stream *st = world_dial(&w, "hold", 0, NULL);
            if (!CHECK(st != NULL)) break;
            CHECK_INT(revdial_reset(st, codes[i]), 0);
            CHECK(util_gate_wait(&w.ended, i + 1));
            CHECK_INT(world_last(&w).end, REVDIAL_ERESET);
            CHECK_INT(world_last(&w).reset, codes[i]);
            revdial_close(st);
        }
    }
    world_close(&w);
}

TEST(a_reset_of_the_handler_is_an_error_with_its_code_for_reader_and_writer)
{
    world w;
    char c;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "hold", 0, NULL);
        revdial_close(st);
        st = world_dial(&w, "reset", 99, NULL);
        // "reset" accepts with its first read, so this dial returns.
        if (CHECK(st != NULL)) {
            int reset = 0;
            CHECK_INT(revdial_write(st, "x", 1), 1);
            CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ERESET);
            CHECK_INT(revdial_error(st, &reset), REVDIAL_ERESET);
            CHECK_INT(reset, 99);
            CHECK_INT(revdial_write(st, "x", 1), REVDIAL_ERESET);
            CHECK_INT(revdial_shutdown(st, REVDIAL_WR), REVDIAL_ERESET);
            revdial_close(st);
        }
    }
    world_close(&w);
}

TEST(after_our_own_reset_every_call_says_that_it_is_closed_here)
{
    world w;
    char c;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "hold", 0, NULL);
        if (CHECK(st != NULL)) {
            CHECK_INT(revdial_reset(st, 256), REVDIAL_EINVAL);
            CHECK_INT(revdial_reset(st, -1), REVDIAL_EINVAL);
            CHECK_INT(revdial_error(st, NULL), 0);
            CHECK_INT(revdial_reset(st, 70), 0);
            CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ECLOSED);
            CHECK_INT(revdial_write(st, "x", 1), REVDIAL_ECLOSED);
            CHECK_INT(revdial_error(st, NULL), REVDIAL_ECLOSED);
            revdial_close(st);
        }
    }
    world_close(&w);
}

TEST(bytes_that_came_before_a_reset_can_be_read)
{
    world w;
    char buf[32];
    raw_frame f = {0};
    world_init(&w);
    if (world_open_proxy(&w)) {
        int fd = raw_backend(w.address, "cam-1", NULL);
        revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS);
        revdial_stream *st = revdial_dial(w.proxy, "cam-1", NULL, NULL);
        if (CHECK(st != NULL) && CHECK(raw_frame_await(fd, RAW_WINDOW, &f))) {
            raw_frame_send(fd, RAW_DATA, RAW_ACK, f.id, 5);
            raw_say(fd, "hello");
            raw_frame_send(fd, RAW_WINDOW, RAW_RST, f.id, 0);
            UTIL_EVENTUALLY(revdial_error(st, NULL) == REVDIAL_ERESET);
            CHECK_INT(util_read_all(st, buf, 5), 5);
            CHECK(memcmp(buf, "hello", 5) == 0);
            CHECK_INT(revdial_read(st, buf, 1), REVDIAL_ERESET);
            CHECK_INT(revdial_read(st, buf, 1), REVDIAL_ERESET);
        }
        revdial_close(st);
        close(fd);
    }
    world_close(&w);
}

TEST(a_handler_that_closes_without_a_touch_has_refused)
{
    world w;
    revdial_err err;
    world_init(&w);
    if (world_open(&w)) {
        CHECK(world_dial(&w, "refuse", 0, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_EREFUSED);
        CHECK_INT(err.reset, REVDIAL_RESET_REFUSED);
        CHECK(err.msg[0] != '\0');
        CHECK(world_dial(&w, "refuse-code", 99, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_EREFUSED);
        CHECK_INT(err.reset, 99);
    }
    world_close(&w);
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
    if (b->writes)
        do b->result = revdial_write(b->st, buf, sizeof buf);
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
static void blocked_settle(void) { util_nap_ms(20); }

TEST(U17_a_deadline_of_0_does_not_wait_and_one_that_passed_says_so)
{
    world w;
    char c;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "hold", 0, NULL);
        if (CHECK(st != NULL)) {
            CHECK_INT(revdial_deadline(st, REVDIAL_RD, 0), 0);
            CHECK_INT(revdial_read(st, &c, 1), REVDIAL_EAGAIN);
            CHECK_INT(revdial_deadline(st, REVDIAL_RD, 1), 0);
            CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ETIMEDOUT);
            CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ETIMEDOUT);  // it has passed
            CHECK_INT(revdial_write(st, "x", 1), 1);                // the other way has none
            CHECK_INT(revdial_deadline(st, REVDIAL_RD, INT32_MAX), 0);
            CHECK_INT(revdial_deadline(st, REVDIAL_WR, INT32_MIN), 0);
            CHECK_INT(revdial_write(st, "x", 1), 1);
            CHECK_INT(revdial_deadline(st, 0, 5), REVDIAL_EINVAL);
            CHECK_INT(revdial_deadline(st, 4, 5), REVDIAL_EINVAL);
            revdial_close(st);
        }
    }
    world_close(&w);
}

TEST(a_passed_deadline_does_not_hide_bytes_that_are_there)
{
    world w;
    char c;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        if (CHECK(st != NULL)) {
            revdial_pollfd p = {st, 0, POLLIN, 0};
            revdial_write(st, "xy", 2);
            CHECK_INT(revdial_poll(&p, 1, UTIL_WAIT_MS), 1);
            revdial_deadline(st, REVDIAL_RD, 0);
            CHECK_INT(revdial_read(st, &c, 1), 1);
            CHECK_INT(c, 'x');
            revdial_close(st);
        }
    }
    world_close(&w);
}

TEST(U17_a_deadline_set_from_another_thread_wakes_a_blocked_reader)
{
    static const struct {
        int ms, want;
    } rows[] = {{0, REVDIAL_EAGAIN}, {1, REVDIAL_ETIMEDOUT}};
    world w;
    world_init(&w);
    if (world_open(&w)) {
        for (int i = 0; i < 2; i++) {
            revdial_stream *st = world_dial(&w, "hold", 0, NULL);
            if (!CHECK(st != NULL)) break;
            blocked b;
            pthread_t t = blocked_start(&b, st, 0);
            blocked_settle();
            revdial_deadline(st, REVDIAL_RD, rows[i].ms);
            CHECK(util_gate_wait(&b.done, 1));
            pthread_join(t, NULL);
            CHECK_INT(b.result, rows[i].want);
            revdial_close(st);
        }
    }
    world_close(&w);
}

TEST(U17_a_deadline_that_is_lifted_while_a_reader_waits_no_longer_counts)
{
    world w;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        if (CHECK(st != NULL)) {
            blocked b;
            revdial_deadline(st, REVDIAL_RD, 200);
            pthread_t t = blocked_start(&b, st, 0);
            blocked_settle();
            revdial_deadline(st, REVDIAL_RD, -1);
            util_nap_ms(250);  // beyond the old one
            CHECK_INT(util_gate_count(&b.done), 0);
            revdial_write(st, "x", 1);
            CHECK(util_gate_wait(&b.done, 1));
            pthread_join(t, NULL);
            CHECK_INT(b.result, 1);
            revdial_close(st);
        }
    }
    world_close(&w);
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
            revdial_ledger l;
            revdial_stream_ledger(st, &l);
            revdial_deadline(st, REVDIAL_WR, 50);
            CHECK_INT(revdial_write(st, buf, 1 << 20), l.send_credit);
            CHECK_INT(revdial_write(st, buf, 1), REVDIAL_ETIMEDOUT);
            revdial_deadline(st, REVDIAL_WR, 0);
            CHECK_INT(revdial_write(st, buf, 1), REVDIAL_EAGAIN);
            revdial_deadline(st, REVDIAL_WR, -1);
            util_gate_add(&w.go, 1);  // the handler reads
            CHECK_INT(revdial_write(st, buf, 1 << 20), 1 << 20);
            revdial_close(st);
        }
    }
    free(buf);
    world_close(&w);
}

TEST(U17_a_deadline_set_from_another_thread_wakes_a_blocked_writer)
{
    world w;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "stop", 0, NULL);
        if (CHECK(st != NULL)) {
            blocked b;
            revdial_ledger l = {0};
            pthread_t t = blocked_start(&b, st, 1);
            UTIL_EVENTUALLY(revdial_stream_ledger(st, &l) == 0 &&
                            strcmp(l.blocked_on, "peer's credit") == 0);
            revdial_deadline(st, REVDIAL_WR, 0);
            CHECK(util_gate_wait(&b.done, 1));
            pthread_join(t, NULL);
            CHECK(b.result == REVDIAL_EAGAIN || b.result > 0);
            revdial_close(st);
        }
    }
    world_close(&w);
}

TEST(a_reset_from_another_thread_wakes_reader_and_writer)
{
    world w;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "stop", 0, NULL);
        if (CHECK(st != NULL)) {
            blocked r, s;
            pthread_t a = blocked_start(&r, st, 0), b = blocked_start(&s, st, 1);
            revdial_ledger l = {0};
            UTIL_EVENTUALLY(revdial_stream_ledger(st, &l) == 0 &&
                            strcmp(l.blocked_on, "peer's credit") == 0);
            revdial_reset(st, 80);
            CHECK(util_gate_wait(&r.done, 1) && util_gate_wait(&s.done, 1));
            pthread_join(a, NULL);
            pthread_join(b, NULL);
            CHECK(r.result < 0);
            revdial_close(st);
        }
    }
    world_close(&w);
}

// ------------------------------------------------------------------------------------------------
// poll

TEST(poll_is_level_triggered_over_streams_and_descriptors)
{
    world w;
    int fds[2];
    char c;
    world_init(&w);
    if (world_open(&w) && pipe2(fds, O_CLOEXEC) == 0) {
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
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
    world_close(&w);
}

TEST(poll_tells_room_to_write_and_its_absence)
{
    world w;
    char buf[4096] = "";
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "stop", 0, NULL);
        if (CHECK(st != NULL)) {
            revdial_pollfd p = {st, 0, POLLIN | POLLOUT, 0};
            CHECK_INT(revdial_poll(&p, 1, UTIL_WAIT_MS), 1);
            CHECK_INT(p.revents, POLLOUT);
            revdial_deadline(st, REVDIAL_WR, 20);
            while (revdial_write(st, buf, sizeof buf) > 0) {
            }
            CHECK_INT(revdial_poll(&p, 1, 1), 0);
            util_gate_add(&w.go, 1);
            CHECK_INT(revdial_poll(&p, 1, UTIL_WAIT_MS), 1);
            CHECK_INT(p.revents, POLLOUT);
            revdial_close(st);
        }
    }
    world_close(&w);
}

TEST(poll_tells_the_end_of_a_stream_as_poll_2_does)
{
    world w;
    char c;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
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
        st = world_dial(&w, "reset", 65, NULL);
        if (CHECK(st != NULL)) {
            revdial_pollfd p = {st, 0, 0, 0};
            revdial_write(st, "x", 1);
            CHECK_INT(revdial_poll(&p, 1, UTIL_WAIT_MS), 1);
            CHECK(p.revents & POLLERR);
            revdial_close(st);
        }
    }
    world_close(&w);
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

TEST(a_stream_as_a_socket_half_closes_both_ways)
{
    world w;
    size_t bytes;
    char buf[8];
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "sink", 0, NULL);
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
            CHECK(util_gate_wait(&w.ended, 1));
            CHECK_INT(world_last(&w).bytes, 5000);
            CHECK_INT(world_last(&w).end, 0);
        }
        st = world_dial(&w, "source", 300000, NULL);
        fd = st ? revdial_stream_fd(st) : -1;
        if (CHECK(fd >= 0)) {
            CHECK_INT(socket_end(fd, &bytes), 0);
            CHECK_INT(bytes, 300000);
            CHECK(raw_send(fd, "\0", 1));  // the other direction still works
            close(fd);
            CHECK(util_gate_wait(&w.ended, 2));
            CHECK_INT(world_last(&w).bytes, 1);
            CHECK_INT(world_last(&w).end, 0);
        }
    }
    world_close(&w);
}

TEST(a_stream_that_failed_ends_its_socket_with_ECONNRESET_and_never_with_EOF)
{
    world w;
    size_t bytes;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "reset", 67, NULL);
        int fd = st ? revdial_stream_fd(st) : -1;
        if (CHECK(fd >= 0)) {
            CHECK(raw_send(fd, "x", 1));
            CHECK_INT(socket_end(fd, &bytes), ECONNRESET);
            close(fd);
        }
        st = world_dial(&w, "hold", 0, NULL);
        revdial_session *s = st ? revdial_stream_session(st) : NULL;
        fd = st ? revdial_stream_fd(st) : -1;
        if (CHECK(fd >= 0)) {
            revdial_session_kill(s);
            CHECK_INT(socket_end(fd, &bytes), ECONNRESET);
            close(fd);
        }
        revdial_session_unref(s);
    }
    world_close(&w);
}

TEST(a_socket_closed_with_unread_bytes_resets_the_stream)
{
    world w;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "flood", 0, NULL);
        int fd = st ? revdial_stream_fd(st) : -1;
        if (CHECK(fd >= 0)) {
            CHECK(raw_wait(fd, POLLIN, UTIL_WAIT_MS));
            close(fd);
            CHECK(util_gate_wait(&w.ended, 1));
            CHECK_INT(world_last(&w).end, REVDIAL_ERESET);
        }
    }
    world_close(&w);
}

// Its descriptor is closed. That comes a moment after its streams have failed.
static int session_is_gone(revdial_session *s)
{
    pthread_mutex_lock(&s->lock);
    int gone = s->state == RVD_STREAM_DOWN;
    pthread_mutex_unlock(&s->lock);
    return gone;
}

TEST(a_stream_that_no_socket_could_be_had_for_is_still_the_callers)
{
    world w;
    char c;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "hold", 0, NULL);
        revdial_session *s = st ? revdial_stream_session(st) : NULL;
        if (CHECK(st != NULL)) {
            revdial_session_kill(s);
            CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ECLOSED);
            revdial_agent_stop(w.agents[0], 0);
            w.agents[0] = NULL;
            UTIL_EVENTUALLY(session_is_gone(s));
            int before = util_fds();
            CHECK_INT(revdial_stream_fd(st), REVDIAL_ECLOSED);
            CHECK_INT(util_fds(), before);
            CHECK(revdial_error(st, NULL) < 0);
            revdial_close(st);
        }
        revdial_session_unref(s);
    }
    world_close(&w);
}

TEST(dial_fd_gives_a_connected_socket_or_the_dials_error)
{
    world w;
    revdial_err err;
    revdial_dial_opts opts = {0};
    revdial_kv meta = {"do", "refuse"};
    char buf[4];
    world_init(&w);
    if (world_open(&w)) {
        int fd = revdial_dial_fd(w.proxy, "cam-1", NULL, &err);
        if (CHECK(fd >= 0)) {
            CHECK(raw_say(fd, "ping") && raw_read_all(fd, buf, 4));
            CHECK(memcmp(buf, "ping", 4) == 0);
            close(fd);
        }
        opts.meta = &meta;
        opts.meta_count = 1;
        CHECK_INT(revdial_dial_fd(w.proxy, "cam-1", &opts, &err), REVDIAL_EREFUSED);
        CHECK_INT(err.code, REVDIAL_EREFUSED);
        CHECK_INT(revdial_dial_fd(w.proxy, "cam-1", &opts, NULL), REVDIAL_EREFUSED);
        CHECK_INT(revdial_dial_fd(w.proxy, "nobody", NULL, NULL), REVDIAL_ENOBACKEND);
    }
    world_close(&w);
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

static revdial_join_opts joined_opts(joined *j)
{
    revdial_join_opts o = {0};
    memset(j, 0, sizeof *j);
    util_gate_init(&j->done);
    o.done = on_joined;
    o.ud = j;
    return o;
}

static int tcp_pair(int fds[2])
{
    int port = 0, listener = raw_listen(1, &port);
    char address[32];
    snprintf(address, sizeof address, "127.0.0.1:%d", port);
    fds[0] = raw_connect(address);
    fds[1] = raw_accept(listener);
    close(listener);
    return fds[0] >= 0 && fds[1] >= 0;
}

TEST(a_join_sends_the_early_bytes_first_and_tells_once_what_moved)
{
    world w;
    joined j;
    int fds[2];
    char buf[16];
    size_t bytes;
    world_init(&w);
    if (world_open(&w) && tcp_pair(fds)) {
        revdial_join_opts o = joined_opts(&j);
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        o.early = "early";
        o.early_len = 5;
        CHECK(raw_say(fds[0], "-late"));
        CHECK_INT(revdial_join(st, fds[1], fds[1], &o), 0);
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
    world_close(&w);
}

TEST(a_join_of_two_pipes_half_closes_each)
{
    world w;
    joined j;
    int in[2], out[2];
    char buf[8];
    world_init(&w);
    if (world_open(&w) && pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0) {
        revdial_join_opts o = joined_opts(&j);
        revdial_stream *st = world_dial(&w, "sink", 0, NULL);
        uint8_t byte = util_byte(0, 2);
        CHECK_INT(revdial_join(st, in[0], out[1], &o), 0);
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
    world_close(&w);
}

TEST(an_idle_join_gives_up_and_both_ends_learn_it)
{
    world w;
    joined j;
    int fds[2];
    size_t bytes;
    world_init(&w);
    if (world_open(&w) && tcp_pair(fds)) {
        revdial_join_opts o = joined_opts(&j);
        o.idle_ms = 20;
        CHECK_INT(revdial_join(world_dial(&w, "hold", 0, NULL), fds[1], fds[1], &o), 0);
        CHECK(util_gate_wait(&j.done, 1));
        CHECK_INT(j.is_failed, 1);
        CHECK_INT(j.why.code, REVDIAL_ETIMEDOUT);
        CHECK_INT(socket_end(fds[0], &bytes), ECONNRESET);
        CHECK(util_gate_wait(&w.ended, 1));
        CHECK_INT(world_last(&w).end, REVDIAL_ERESET);
        CHECK_INT(world_last(&w).reset, REVDIAL_RESET_TIMEOUT);
        close(fds[0]);
    }
    world_close(&w);
}

TEST(a_client_that_resets_its_socket_resets_the_joined_stream)
{
    world w;
    joined j;
    int fds[2];
    world_init(&w);
    if (world_open(&w) && tcp_pair(fds)) {
        revdial_join_opts o = joined_opts(&j);
        CHECK_INT(revdial_join(world_dial(&w, "hold", 0, NULL), fds[1], fds[1], &o), 0);
        raw_close_reset(fds[0]);
        CHECK(util_gate_wait(&j.done, 1));
        CHECK_INT(j.is_failed, 1);
        CHECK_INT(j.why.code, REVDIAL_ESYS);
        CHECK_INT(j.why.sys, ECONNRESET);
        CHECK(util_gate_wait(&w.ended, 1));
        CHECK_INT(world_last(&w).end, REVDIAL_ERESET);
        CHECK_INT(world_last(&w).reset, REVDIAL_RESET_CANCEL);
    }
    world_close(&w);
}

TEST(a_client_that_goes_away_while_the_stream_has_no_credit_is_noticed)
{
    world w;
    joined j;
    int fds[2];
    char buf[16384] = "";
    world_init(&w);
    if (world_open(&w) && tcp_pair(fds)) {
        revdial_join_opts o = joined_opts(&j);
        CHECK_INT(revdial_join(world_dial(&w, "stop", 0, NULL), fds[1], fds[1], &o), 0);
        fcntl(fds[0], F_SETFL, O_NONBLOCK);
        while (raw_wait(fds[0], POLLOUT, 100))
            if (send(fds[0], buf, sizeof buf, MSG_NOSIGNAL) < 0) break;
        raw_close_reset(fds[0]);
        CHECK(util_gate_wait(&j.done, 1));
        CHECK_INT(j.is_failed, 1);
        util_gate_add(&w.go, 1);
        CHECK(util_gate_wait(&w.ended, 1));
        CHECK_INT(world_last(&w).end, REVDIAL_ERESET);
    }
    world_close(&w);
}

TEST(a_join_that_is_refused_has_closed_all_three_and_calls_nobody)
{
    world w;
    joined j;
    int fds[2], before;
    size_t bytes;
    world_init(&w);
    if (world_open(&w)) {
        revdial_join_opts o = joined_opts(&j);
        before = util_fds();
        o.early = "";
        o.early_len = 65537;
        CHECK(tcp_pair(fds));
        CHECK_INT(revdial_join(world_dial(&w, "hold", 0, NULL), fds[1], fds[1], &o), REVDIAL_EINVAL);
        CHECK_INT(socket_end(fds[0], &bytes), ECONNRESET);
        close(fds[0]);
        o = joined_opts(&j);
        o.idle_ms = -1;
        CHECK(tcp_pair(fds));
        CHECK_INT(revdial_join(world_dial(&w, "hold", 0, NULL), fds[1], fds[1], &o), REVDIAL_EINVAL);
        close(fds[0]);
        o = joined_opts(&j);
        CHECK_INT(revdial_join(world_dial(&w, "hold", 0, NULL), -1, -1, &o), REVDIAL_ESYS);
        CHECK(util_gate_wait(&w.ended, 3));
        CHECK_INT(util_fds(), before);
        CHECK_INT(j.done.count, 0);
    }
    world_close(&w);
}

TEST(a_join_of_a_stream_that_was_reset_after_its_FIN_delivers_all_and_reports_the_failure)
{
    world w;
    joined j;
    int fds[2];
    raw_frame f = {0};
    size_t bytes;
    world_init(&w);
    if (world_open_proxy(&w) && tcp_pair(fds)) {
        int fd = raw_backend(w.address, "cam-1", NULL);
        revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS);
        revdial_stream *st = revdial_dial(w.proxy, "cam-1", NULL, NULL);
        if (CHECK(st != NULL) && CHECK(raw_frame_await(fd, RAW_WINDOW, &f))) {
            revdial_join_opts o = joined_opts(&j);
            raw_frame_send(fd, RAW_DATA, RAW_ACK | RAW_FIN, f.id, 5);
            raw_say(fd, "hello");
            raw_frame_send(fd, RAW_WINDOW, RAW_RST, f.id, 0);
            UTIL_EVENTUALLY(revdial_error(st, NULL) == REVDIAL_ERESET);
            CHECK_INT(revdial_join(st, fds[1], fds[1], &o), 0);
            CHECK_INT(socket_end(fds[0], &bytes), 0);  // its FIN was true
            CHECK_INT(bytes, 5);
            CHECK(util_gate_wait(&j.done, 1));  // but nobody listens any more
            CHECK_INT(j.is_failed, 1);
            CHECK_INT(j.why.code, REVDIAL_ERESET);
        }
        close(fds[0]);
        close(fd);
    }
    world_close(&w);
}

// ------------------------------------------------------------------------------------------------
// What is told about a stream

static util_gate meta_gate = UTIL_GATE;
static char meta_seen[8][80];

static void meta_handler(void *ud, revdial_stream *st)
{
    static const char *const keys[] = {"target", "client",      "local", "id",
                                       "timeout_ms", "traceparent", "empty", "absent"};
    (void)ud;
    for (int i = 0; i < 8; i++) {
        const char *value = revdial_meta(st, keys[i]);
        snprintf(meta_seen[i], sizeof meta_seen[i], "%s", value ? value : "(none)");
    }
    util_gate_add(&meta_gate, 1);
    revdial_write(st, "", 0);
    revdial_close(st);
}

TEST(what_came_with_the_dial_can_be_asked_for)
{
    world w;
    revdial_dial_opts opts = {0};
    revdial_kv meta[2] = {{"traceparent", "00-ab"}, {"empty", ""}};
    world_init(&w);
    w.acfg.handler = meta_handler;
    if (world_open(&w)) {
        opts.target = "10.0.0.1:80";
        opts.client_addr = "192.0.2.7:1234";
        opts.local_addr = "198.51.100.1:443";
        opts.meta = meta;
        opts.meta_count = 2;
        opts.timeout_ms = 5000;
        revdial_stream *st = revdial_dial(w.proxy, "cam-1", &opts, NULL);
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
        st = revdial_dial(w.proxy, "cam-1", NULL, NULL);
        CHECK(st != NULL && util_gate_wait(&meta_gate, 2));
        CHECK_STR(meta_seen[0], "(none)");
        CHECK_STR(meta_seen[1], "(none)");
        revdial_close(st);
    }
    world_close(&w);
}

TEST(the_ledger_says_what_a_stream_waits_for_and_how_much_each_side_may_send)
{
    world w;
    char buf[70000] = "";
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "stop", 0, NULL);
        revdial_ledger l;
        if (CHECK(st != NULL)) {
            CHECK_INT(revdial_stream_ledger(st, &l), 0);
            CHECK_STR(l.blocked_on, "");
            CHECK_INT(l.send_credit + l.sent, 65536);  // what came with the dial counts
            CHECK_INT(l.recv_credit, 65536);
            CHECK(l.sent < 256);
            revdial_deadline(st, REVDIAL_WR, 20);
            CHECK_INT(revdial_write(st, buf, sizeof buf), l.send_credit);
            CHECK_INT(revdial_stream_ledger(st, &l), 0);
            CHECK_STR(l.blocked_on, "peer's credit");
            CHECK_INT(l.send_credit, 0);
            CHECK_INT(l.sent, 65536);
            revdial_close(st);
        }
        st = world_dial(&w, "source", 1000, NULL);
        if (CHECK(st != NULL)) {
            UTIL_EVENTUALLY(revdial_stream_ledger(st, &l) == 0 && l.received == 1000);
            CHECK_INT(l.buffered, 1000);
            CHECK_INT(l.consumed, 0);
            CHECK_INT(l.recv_credit, 64536);
            CHECK_INT(revdial_read(st, buf, 400), 400);
            CHECK_INT(revdial_stream_ledger(st, &l), 0);
            CHECK_INT(l.buffered, 600);
            CHECK_INT(l.consumed, 400);
            revdial_close(st);
        }
    }
    world_close(&w);
}

TEST(the_session_of_a_stream_is_the_backend_it_was_dialled_at)
{
    world w;
    world_init(&w);
    w.acfg.instance = "i-1";
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        if (CHECK(st != NULL)) {
            revdial_session *s = revdial_stream_session(st);
            revdial_session_info info;
            revdial_session_info_get(s, &info);
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
            revdial_session_info_get(s, &info);
            CHECK_INT(info.tx_bytes, 3);
            CHECK_INT(info.rx_bytes, 3);
            revdial_close(st);
            revdial_session_info_get(s, &info);
            CHECK_INT(info.streams, 0);
            revdial_session_kill(s);
            UTIL_EVENTUALLY((revdial_session_info_get(s, &info), info.state == REVDIAL_DOWN));
            CHECK_STR(info.name, "cam-1");  // valid memory while it is referenced
            revdial_session_unref(s);
        }
    }
    world_close(&w);
}

TEST(streams_and_sessions_that_outlive_the_proxy_stay_valid_and_say_ECLOSED)
{
    world w;
    char c;
    world_init(&w);
    if (world_open(&w)) {
        revdial_stream *st = world_dial(&w, "hold", 0, NULL);
        if (CHECK(st != NULL)) {
            revdial_session *s = revdial_stream_session(st);
            revdial_pollfd p = {st, 0, POLLIN, 0};
            revdial_ledger l;
            revdial_session_info info;
            revdial_err err;
            revdial_proxy_close(w.proxy);  // first, so that it is what ends the session
            w.proxy = NULL;
            world_close(&w);
            CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ECLOSED);
            CHECK_INT(revdial_write(st, &c, 1), REVDIAL_ECLOSED);
            CHECK_INT(revdial_error(st, NULL), REVDIAL_ECLOSED);
            CHECK_INT(revdial_poll(&p, 1, 1000), 1);
            revdial_stream_ledger(st, &l);
            CHECK(revdial_meta(st, "do") == NULL);
            revdial_shutdown(st, REVDIAL_RDWR);
            revdial_reset(st, 64);
            revdial_deadline(st, REVDIAL_RDWR, 1);
            CHECK_INT(revdial_stream_fd(st), REVDIAL_ECLOSED);
            CHECK(revdial_session_dial(s, NULL, &err) == NULL);
            CHECK_INT(err.code, REVDIAL_ECLOSED);
            revdial_session_info_get(s, &info);
            CHECK_INT(info.state, REVDIAL_DOWN);
            revdial_session_drain(s, 0);
            revdial_session_kill(s);
            revdial_close(st);
            revdial_session_unref(s);
            return;
        }
    }
    world_close(&w);
}

TEST(a_session_that_outlives_the_agent_stays_valid_and_says_ECLOSED)
{
    world w;
    world_init(&w);
    if (world_open(&w)) {
        revdial_session *s = revdial_agent_session(w.agents[0], UTIL_WAIT_MS);
        if (CHECK(s != NULL)) {
            revdial_session_info info;
            revdial_err err;
            world_close(&w);
            CHECK(revdial_session_dial(s, NULL, &err) == NULL);
            CHECK_INT(err.code, REVDIAL_ECLOSED);
            revdial_session_info_get(s, &info);
            CHECK_INT(info.state, REVDIAL_DOWN);
            revdial_session_drain(s, 10);
            revdial_session_kill(s);
            revdial_session_unref(s);
            return;
        }
    }
    world_close(&w);
}

TEST(U1_NULL_is_ignored_by_every_close_free_and_unref)
{
    revdial_close(NULL);
    revdial_proxy_close(NULL);
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
    CHECK(revdial_proxy_open(NULL, &err) == NULL && err.code == REVDIAL_EINVAL);
    CHECK(revdial_proxy_open(NULL, NULL) == NULL);
    CHECK(revdial_agent_start(NULL, NULL) == NULL);
    CHECK_INT(revdial_serve(NULL, NULL), REVDIAL_EINVAL);
    CHECK_INT(revdial_target_allowed(NULL, NULL), 0);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
