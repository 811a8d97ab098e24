// Who reads the socket: what hand-overs between the loop and threads must not lose.
#include "runtime_util.h"

typedef struct dialler {
    revdial_session *s;
    util_gate go, done;
    ptrdiff_t n;
} dialler;

// Waits for a stream to be read, as any thread may as soon as the session is up.
static void *dialler_run(void *arg)
{
    dialler *d = arg;
    revdial_stream *st;
    char c;
    util_gate_wait(&d->go, 1);
    st = revdial_session_dial(d->s, NULL, NULL);
    if (st) {
        revdial_deadline(st, REVDIAL_RD, UTIL_WAIT_MS);
        d->n = revdial_read(st, &c, 1);
        revdial_close(st);
    }
    util_gate_add(&d->done, 1);
    return NULL;
}

static size_t waiting_on(revdial_session *s, enum rvd_stream_reader *reader)
{
    size_t n;
    pthread_mutex_lock(&s->lock);
    n = s->waiting;
    *reader = s->reader;
    pthread_mutex_unlock(&s->lock);
    return n;
}

// Returns when the thread waits, before the early bytes have been handled.
static void until_a_thread_waits(void *ud, revdial_session *s, int state, const revdial_err *why)
{
    dialler *d = ((world *)ud)->acfg.ud;
    enum rvd_stream_reader reader;
    (void)why;
    if (state != REVDIAL_UP) return;
    d->s = s;
    util_gate_add(&d->go, 1);
    UTIL_EVENTUALLY(waiting_on(s, &reader) == 1);
    CHECK_INT(reader, RVD_STREAM_BY_LOOP);
}

TEST(early_bytes_of_an_adopted_session_are_not_overtaken_by_a_thread_that_reads)
{
    // Half a ping came early; its other half and the answer to the dial follow.
    static const uint8_t wire[] = {0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 42, 0,
                                   0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 'x'};
    world w;
    dialler d = {0};
    raw_frame f = {0};
    pthread_t t;
    int port = 0, listener = raw_listen(1, &port);
    char address[32];
    world_init(&w);
    util_gate_init(&d.go);
    util_gate_init(&d.done);
    w.pcfg.listen = NULL;
    w.pcfg.on_session = until_a_thread_waits;
    w.acfg.ud = &d;
    t = util_thread(dialler_run, &d);
    if (world_open_proxy(&w)) {
        revdial_adopt how = {.early = wire, .early_len = 6, .upgraded = 1, .name = "cam-9"};
        snprintf(address, sizeof address, "127.0.0.1:%d", port);
        int fd = raw_connect(address);
        CHECK_INT(revdial_proxy_adopt(w.proxy, raw_accept(listener), &how), 0);
        CHECK(util_gate_wait(&d.go, 1));
        raw_send(fd, wire + 6, sizeof wire - 6);
        while (CHECK(raw_frame_await(fd, RAW_PING, &f)) && f.flags != RAW_ACK) {
        }
        CHECK_INT(f.len, 42);
        CHECK(util_gate_wait(&d.done, 1));
        CHECK_INT(d.n, 1);
        close(fd);
    }
    pthread_join(t, NULL);
    close(listener);
    world_close(&w);
}

TEST(a_descriptor_closed_behind_a_thread_that_reads_is_a_lost_session)
{
    world w;
    revdial_session *s = NULL;
    world_init(&w);
    if (world_open_proxy(&w)) {
        int fd = raw_backend(w.address, "cam-1", NULL);
        char c;
        CHECK(fd >= 0 && revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS) == 1);
        REQUIRE(revdial_proxy_list(w.proxy, NULL, &s, 1) == 1);
        revdial_stream *st = revdial_session_dial(s, NULL, NULL);
        REQUIRE(st != NULL);
        if (RVD_SYS_EPOLL) {  // poll(2) has the loop read, which notices by itself
            revdial_deadline(st, REVDIAL_RD, 1);  // what a reader needs is opened before
            CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ETIMEDOUT);
            CHECK_INT(close(s->fd), 0);
            revdial_deadline(st, REVDIAL_RD, UTIL_WAIT_MS / 5);
            CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ELOST);
        }
        revdial_close(st);
        revdial_session_unref(s);
        close(fd);
    }
    world_close(&w);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
