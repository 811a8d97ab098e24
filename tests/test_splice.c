// Large transfers between two relays, whose bytes go through pipes and are not copied. What arrives
// and what ends is the same as with copies.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

// Bytes that have gone through pipes; those that came from the descriptor `watched`, which is still
// read if that is blocked; pipes that were refused; the most that one call may move; whether a call
// moves a part and then finds the connection broken.
static atomic_llong spliced, from_watched;
static atomic_int refused, is_scarce, piece_max, watched = -1, is_blocked, breaks;

// The most blocks of unread bytes that one call has written.
static atomic_int blocks_max;

static ssize_t seen_sendmsg(int fd, const struct msghdr *m, int flags)
{
    int count = 0;
    while (count < (int)m->msg_iovlen && m->msg_iov[count].iov_len <= 16384) count++;
    if (count == (int)m->msg_iovlen && count > atomic_load(&blocks_max))
        atomic_store(&blocks_max, count);
    return sendmsg(fd, m, flags);
}
#define FAKE_sendmsg , seen_sendmsg

#ifdef SPLICE_F_MORE
static ssize_t seen_splice(int from, int to, size_t len, unsigned flags)
{
    int limit = atomic_load(&piece_max);
    if (limit && len > (size_t)limit) len = (size_t)limit;
    if (from == atomic_load(&watched) && atomic_load(&is_blocked)) {
        errno = EINVAL;
        return -1;
    }
    if (atomic_load(&breaks)) len /= 2;
    ssize_t n = splice(from, NULL, to, NULL, len, flags);
    if (atomic_load(&breaks)) pthread_kill(pthread_self(), SIGPIPE);
    if (n > 0) atomic_fetch_add(&spliced, n);
    if (n > 0 && from == atomic_load(&watched)) atomic_fetch_add(&from_watched, n);
    return n;
}

static ssize_t seen_write(int fd, const void *buf, size_t len)
{
    if (!atomic_load(&breaks)) return write(fd, buf, len);
    pthread_kill(pthread_self(), SIGPIPE);
    return write(fd, buf, len / 2);
}
#define FAKE_write , seen_write

static int scarce_pipe2(int fds[2], int flags)
{
    if (!atomic_load(&is_scarce)) return pipe2(fds, flags);
    atomic_fetch_add(&refused, 1);
    errno = EMFILE;
    return -1;
}
#define FAKE_splice , call_splice
#define call_splice(from, from_at, to, to_at, len, flags) seen_splice(from, to, len, flags)
#define FAKE_pipe2 , scarce_pipe2
#endif
#define REVDIAL_SELF_CHECK
#include "runtime_util.h"

enum { BULK = 24 << 20 };

// A client, a relay at the proxy, one at the agent, a target.
typedef struct line {
    world *w;
    int client, target;
    util_gate done;  // relays
    atomic_int failed;
} line;

static line *wanted;  // by the handler
static util_gate given = UTIL_GATE;

static void on_line_done(void *ud, const uint64_t moved[2], const revdial_err *why)
{
    line *l = ud;
    (void)moved;
    if (why) atomic_fetch_add(&l->failed, 1);
    util_gate_add(&l->done, 1);
}

static void relaying(void *ud, revdial_stream *st)
{
    int fds[2];
    revdial_relay_opts o = {.done = on_line_done, .ud = wanted};
    if (strcmp(revdial_stream_meta(st, "do"), "relay") != 0) {
        util_handler(ud, st);
        return;
    }
    if (!raw_pair(fds)) abort();
    wanted->target = fds[0];
    CHECK_INT(revdial_relay(st, fds[1], fds[1], &o), 0);
    util_gate_add(&given, 1);
}

// As on a link that has been found to be fast. While the clock stands nothing else is found.
static void make_fast(revdial_session *s)
{
    rvd_stream_lock(s);
    rvd_stream_queue_set_locked(s, RVD_STREAM_QUEUE_MAX);
    rvd_stream_unlock(s);
    revdial_session_unref(s);
}

static int line_open(line *l, world *w)
{
    int fds[2], before = util_gate_count(&given);
    revdial_relay_opts o = {.done = on_line_done, .ud = l};
    memset(l, 0, sizeof *l);
    util_gate_init(&l->done);
    l->w = w;
    wanted = l;
    revdial_err err = {0};
    revdial_stream *st = world_dial(w, "relay", 0, &err);
    if (!st) return test_fail(__FILE__, __LINE__, "no stream: %s", err.msg);
    make_fast(revdial_stream_session(st));
    make_fast(revdial_agent_wait(w->agents[0], UTIL_WAIT_MS, NULL));
    if (!raw_pair(fds)) abort();
    l->client = fds[0];
    return CHECK_INT(revdial_relay(st, fds[1], fds[1], &o), 0) &&
           CHECK(util_gate_wait(&given, before + 1));
}

static int splice_world_open(world *w)
{
    w->acfg.handler = relaying;
    atomic_store(&spliced, 0);
    atomic_store(&refused, 0);
    atomic_store(&is_scarce, 0);
    atomic_store(&piece_max, 0);
    atomic_store(&watched, -1);
    return world_open(w);
}

typedef struct transfer {
    int fd;
    uint64_t len;
    int is_whole;
    pthread_t thread;
} transfer;

static void *transfer_run(void *arg)
{
    transfer *t = arg;
    uint64_t at = 0;
    while (at < t->len && raw_send(t->fd, util_pattern(at), UTIL_BULK)) at += UTIL_BULK;
    t->is_whole = at == t->len;
    if (t->is_whole) shutdown(t->fd, SHUT_WR);
    return NULL;
}

static void transfer_begin(transfer *t, int fd, uint64_t len)
{
    *t = (transfer){.fd = fd, .len = len};
    t->thread = util_thread(transfer_run, t);
}

// Reads `len` bytes of the pattern from `at` on. Returns how many were right.
static uint64_t pattern_read(int fd, uint64_t at, uint64_t len)
{
    static uint8_t buf[UTIL_BULK];
    uint64_t got = 0;
    while (got < len) {
        size_t want = len - got < sizeof buf ? (size_t)(len - got) : sizeof buf;
        ssize_t n = raw_read(fd, buf, want);
        if (n <= 0 || memcmp(buf, util_pattern(at + got), (size_t)n) != 0) break;
        got += (uint64_t)n;
    }
    return got;
}

// Bytes in the engine that nobody has read.
static uint64_t session_unread(revdial_session *s)
{
    rvd_stream_lock(s);
    uint64_t n = s->engine->mux.buffered;
    rvd_stream_unlock(s);
    return n;
}

// From one end to the other, up to EOF.
static void check_transfer(int from, int to)
{
    transfer t;
    char byte;
    transfer_begin(&t, from, BULK);
    CHECK_INT(pattern_read(to, 0, BULK), BULK);
    CHECK_INT(raw_read(to, &byte, 1), 0);
    pthread_join(t.thread, NULL);
    CHECK(t.is_whole);
}

static void line_end(line *l, int failed)
{
    close(l->client);
    close(l->target);
    CHECK(util_gate_wait(&l->done, 2));
    CHECK_INT(atomic_load(&l->failed), failed);
}

static void check_echo(world *w)
{
    char byte = 0;
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    if (!CHECK(st != NULL)) return;
    CHECK_INT(revdial_write(st, "!", 1), 1);
    CHECK_INT(revdial_read(st, &byte, 1), 1);
    CHECK_INT(byte, '!');
    revdial_close(st);
}

NEW_WORLD_TEST(a_large_transfer_goes_through_pipes_and_arrives_whole_with_its_half_close)
{
    line l;
    REQUIRE(splice_world_open(w));
    util_clock_stop();
    REQUIRE(line_open(&l, w));
    check_transfer(l.client, l.target);
    long long up = atomic_load(&spliced);
    CHECK(!RVD_SYS_SPLICE || up > 4 << 20);
    check_transfer(l.target, l.client);
    CHECK(!RVD_SYS_SPLICE || atomic_load(&spliced) - up > 4 << 20);
    util_clock_run();
    line_end(&l, 0);
}

NEW_WORLD_TEST(both_directions_at_once_and_in_odd_pieces_arrive_whole)
{
    line l;
    transfer up, down;
    REQUIRE(splice_world_open(w) && line_open(&l, w));
    atomic_store(&piece_max, 7777);
    transfer_begin(&up, l.client, BULK);
    transfer_begin(&down, l.target, BULK);
    for (uint64_t at = 0; at < BULK; at += BULK / 16) {
        if (!CHECK_INT(pattern_read(l.target, at, BULK / 16), BULK / 16)) break;
        if (!CHECK_INT(pattern_read(l.client, at, BULK / 16), BULK / 16)) break;
    }
    pthread_join(up.thread, NULL);
    pthread_join(down.thread, NULL);
    CHECK(up.is_whole && down.is_whole);
    line_end(&l, 0);
}

NEW_WORLD_TEST(a_reader_that_has_stopped_holds_its_own_stream_only_and_gets_all_of_it_later)
{
    line slow, other;
    transfer t;
    REQUIRE(splice_world_open(w) && line_open(&slow, w) && line_open(&other, w));
    transfer_begin(&t, slow.client, BULK);
    CHECK_INT(pattern_read(slow.target, 0, BULK / 4), BULK / 4);  // and no more for now
    check_transfer(other.client, other.target);
    check_echo(w);
    CHECK_INT(pattern_read(slow.target, BULK / 4, BULK / 4 * 3), BULK / 4 * 3);
    pthread_join(t.thread, NULL);
    CHECK(t.is_whole);
    line_end(&slow, 0);
    line_end(&other, 0);
}

// Its unread bytes never become fewer than three megabytes: for what is sent in place of bytes that
// it has read, it waits.
NEW_WORLD_TEST(a_reader_that_lags_behind_gets_what_comes_behind_its_unread_bytes_through_pipes)
{
    line l;
    transfer t;
    revdial_session *s;
    w->pcfg.common.limits.stream_window = w->acfg.common.limits.stream_window = 8 << 20;
    REQUIRE(splice_world_open(w) && line_open(&l, w));
    s = revdial_agent_wait(w->agents[0], UTIL_WAIT_MS, NULL);
    atomic_store(&from_watched, 0);
    atomic_store(&is_blocked, 1);
    atomic_store(&watched, s->fd);
    transfer_begin(&t, l.client, 2 * BULK);
    UTIL_EVENTUALLY(session_unread(s) > 3 << 20);
    CHECK_INT(atomic_load(&from_watched), 0);
    atomic_store(&is_blocked, 0);
    uint64_t at = 0;
    long long behind = 0;  // through pipes while there were unread bytes, before and after
    while (behind < 1 << 18 && at < BULK) {
        long long before = session_unread(s) > 0 ? atomic_load(&from_watched) : LLONG_MAX, now;
        if (!CHECK_INT(pattern_read(l.target, at, 262144), 262144)) break;
        at += 262144;
        UTIL_EVENTUALLY((now = atomic_load(&from_watched)) > before || session_unread(s) > 3 << 20);
        if (now > before && session_unread(s) > 0) behind += now - before;
    }
    CHECK(!RVD_SYS_SPLICE || behind >= 1 << 18);
    CHECK_INT(pattern_read(l.target, at, 2 * BULK - at), 2 * BULK - at);
    pthread_join(t.thread, NULL);
    CHECK(t.is_whole);
    revdial_session_unref(s);
    line_end(&l, 0);
}

NEW_WORLD_TEST(many_large_transfers_at_once_arrive_whole)
{
    enum { LINES = 6 };
    line l[LINES];
    transfer t[LINES];
    REQUIRE(splice_world_open(w));
    util_clock_stop();
    for (int i = 0; i < LINES; i++) REQUIRE(line_open(&l[i], w));
    for (int i = 0; i < LINES; i++) transfer_begin(&t[i], l[i].client, BULK);
    for (uint64_t at = 0; at < BULK; at += BULK / 16)
        for (int i = 0; i < LINES; i++)
            if (!CHECK_INT(pattern_read(l[i].target, at, BULK / 16), BULK / 16)) at = BULK;
    for (int i = 0; i < LINES; i++) {
        pthread_join(t[i].thread, NULL);
        CHECK(t[i].is_whole);
    }
    check_echo(w);
    util_clock_run();
    for (int i = 0; i < LINES; i++) line_end(&l[i], 0);
}

NEW_WORLD_TEST(a_reset_in_the_middle_leaves_the_frames_of_other_streams_whole)
{
    transfer t;
    REQUIRE(splice_world_open(w));
    for (int i = 0; i < 6; i++) {
        line l, other;
        if (!CHECK(line_open(&l, w) && line_open(&other, w))) break;
        transfer_begin(&t, i % 2 ? l.target : l.client, UINT64_MAX / 2);  // until it fails
        pattern_read(i % 2 ? l.client : l.target, 0, (uint64_t)(i + 1) << 20);
        raw_close_reset(i % 2 ? l.client : l.target);
        pthread_join(t.thread, NULL);
        check_transfer(other.client, other.target);
        line_end(&other, 0);
        CHECK(util_gate_wait(&l.done, 2));
        CHECK_INT(atomic_load(&l.failed), 2);
        close(i % 2 ? l.target : l.client);
    }
    check_echo(w);
}

NEW_WORLD_TEST(where_no_pipe_is_to_be_had_a_large_transfer_is_copied)
{
    line l;
    REQUIRE(splice_world_open(w) && line_open(&l, w));
    atomic_store(&is_scarce, 1);
    check_transfer(l.client, l.target);
    check_transfer(l.target, l.client);
    CHECK_INT(atomic_load(&spliced), 0);
    CHECK(!RVD_SYS_SPLICE || atomic_load(&refused) > 0);
    line_end(&l, 0);
}

NEW_WORLD_TEST(what_a_lagging_reader_has_not_taken_is_written_many_blocks_at_a_time)
{
    line l;
    transfer t;
    revdial_session *s;
    w->pcfg.common.limits.stream_window = w->acfg.common.limits.stream_window = 8 << 20;
    REQUIRE(splice_world_open(w) && line_open(&l, w));
    atomic_store(&is_scarce, 1);
    atomic_store(&blocks_max, 0);
    s = revdial_agent_wait(w->agents[0], UTIL_WAIT_MS, NULL);
    transfer_begin(&t, l.client, BULK);
    UTIL_EVENTUALLY(session_unread(s) > 3 << 20);
    CHECK_INT(pattern_read(l.target, 0, BULK), BULK);
    CHECK(atomic_load(&blocks_max) >= 8);
    pthread_join(t.thread, NULL);
    CHECK(t.is_whole);
    revdial_session_unref(s);
    line_end(&l, 0);
}

// Ends of pipes that this process has open. Threads that wait keep other descriptors.
static int open_pipes(void)
{
    int count = 0;
    DIR *d = opendir("/proc/self/fd");
    struct dirent *e;
    if (!d) abort();
    while ((e = readdir(d))) {
        char at[8] = "";
        if (readlinkat(dirfd(d), e->d_name, at, sizeof at - 1) > 0)
            count += strncmp(at, "pipe:", 5) == 0;
    }
    closedir(d);
    return count;
}

NEW_WORLD_TEST(after_large_transfers_no_pipe_stays_and_the_session_lives)
{
    line l;
    REQUIRE(splice_world_open(w));
    check_echo(w);
    int before = open_pipes();
    REQUIRE(line_open(&l, w));
    check_transfer(l.client, l.target);
    check_transfer(l.target, l.client);
    CHECK(!RVD_SYS_SPLICE || atomic_load(&spliced) > 0);
    line_end(&l, 0);
    UTIL_EVENTUALLY(open_pipes() <= before);
    check_echo(w);
}

TEST(a_session_that_is_lost_in_the_middle_gives_all_descriptors_back)
{
    int before = util_fds();
    for (int i = 0; i < 2; i++) {
        world w;
        line l;
        transfer t;
        world_init(&w);
        if (CHECK(splice_world_open(&w) && line_open(&l, &w))) {
            transfer_begin(&t, i ? l.target : l.client, BULK);
            pattern_read(i ? l.client : l.target, 0, 4 << 20);
            revdial_session *s = revdial_agent_wait(w.agents[0], UTIL_WAIT_MS, NULL);
            revdial_session_kill(s);
            revdial_session_unref(s);
            CHECK_INT(raw_wait(i ? l.client : l.target, POLLIN, UTIL_WAIT_MS), 1);
            close(i ? l.client : l.target);
            pthread_join(t.thread, NULL);
            close(i ? l.target : l.client);
            CHECK(util_gate_wait(&l.done, 2));
        }
        world_close(&w);
    }
    CHECK_INT(util_fds(), before);
}

#if RVD_SYS_SPLICE
// The kernel raises the signal although the call succeeds, with the part.
TEST(U24_a_connection_that_breaks_within_a_call_raises_no_SIGPIPE)
{
    sigset_t only, before, pending;
    sigemptyset(&only);
    sigaddset(&only, SIGPIPE);
    signal(SIGPIPE, SIG_DFL);
    for (int blocked = 0; blocked < 2; blocked++) {
        int fds[2], p[2];
        pthread_sigmask(blocked ? SIG_BLOCK : SIG_UNBLOCK, &only, &before);
        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0 && pipe(p) == 0);
        CHECK_INT(write(p[1], "abcd", 4), 4);
        atomic_store(&breaks, 1);
        CHECK_INT(rvd_sys_splice_out(p[0], fds[0], 4, 0), 2);
        CHECK_INT(rvd_sys_write(p[1], "abcd", 4), 2);
        atomic_store(&breaks, 0);
        sigpending(&pending);
        CHECK_INT(sigismember(&pending, SIGPIPE), 0);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        for (int i = 0; i < 2; i++) {
            close(fds[i]);
            close(p[i]);
        }
    }
}
#endif

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
