// Transfers of the simulated world, and the oracle. Each transfer has a plan that is drawn before
// it begins: how many bytes go each way, who waits for whom, who is slow, who gives up and where.
// Every byte is a function of transfer, direction and offset, and both ends check each one. EOF has
// to mean that the other end has finished and that all of its bytes were read.
#ifndef REVDIAL_TEST_WORLD_TALK_H
#define REVDIAL_TEST_WORLD_TALK_H

#include "world_names.h"

enum {
    TALKS = 256,
    TALK_HEAD = 8,
    TALK_PIECE = 16384,
    TALK_PATTERN = 65536,
    TALK_SLOW_US = 20000,
    TALK_PING = 100  // bytes of one question
};

enum talk_mode {
    TALK_DUPLEX,        // both at once
    TALK_CLIENT_FIRST,  // the client sends and finishes; then the target sends
    TALK_TARGET_FIRST,  // the other way round
    TALK_PINGS,         // small questions, each of which waits for its answer
    TALK_MODES,
    TALK_HASTY = TALK_MODES  // one end sends all that it has to say and closes, without reading on
};

typedef struct talk_side {
    size_t written, read;
    int begun, fin, eof, over;
    int error;    // what ended it early, a negative number
    int gave_up;  // by its plan
    int is_cut;   // what it still had to send was refused
    int has_st;   // it is a stream: the other one's end is told as it was
} talk_side;

typedef struct talk {
    uint32_t key;
    enum talk_mode mode;
    size_t plan[2];      // bytes from the client, from the target
    int slow[2];         // this side pauses after each read
    int gives_up;        // 1 the client, 2 the target, 0 nobody
    size_t gives_up_at;  // bytes read and written
    int hasty;           // TALK_HASTY: the side that closes,
    size_t hasty_reads;  //   how much it reads before it does,
    int hasty_fins;      //   and whether it finishes first
    int64_t begun_us, over_us;
    int is_strict;   // nothing may stop it
    int may_refuse;  // before its target has been reached
    int has_unix;    // on its way is a Unix socket: an end that was cut off there looks like EOF
    int has_hop;     // a peer may be on its way, in whose socket a reset can overtake EOF
    int third[2];    // of a side that has several threads: what the third one does, plus one
    int64_t third_us[2];
    talk_side side[2];
    const char *how;
    char client_at[60];  // as the far end is told; "": not known
} talk;

// What moves the bytes of one side.
typedef struct talk_way {
    int fd;
    revdial_stream *st;  // or this
    int is_blocking;     // its calls wait: one direction at a time
} talk_way;

static talk talks[TALKS];
static unsigned talk_count;

// Bytes at random, twice in a row; each 64 KiB of a transfer begin elsewhere in them.
static uint8_t talk_pattern[2 * TALK_PATTERN];

static void talk_fill(const talk *t, int from, size_t at, uint8_t *out, size_t n)
{
    if (!talk_pattern[0]) {
        test_rng r = test_rng_seeded(4711);
        for (size_t i = 0; i < TALK_PATTERN; i++)
            talk_pattern[i] = talk_pattern[i + TALK_PATTERN] = (uint8_t)(test_random(&r) | !i);
    }
    while (n > 0) {
        size_t part = TALK_PATTERN - at % TALK_PATTERN;
        uint32_t turn = t->key * 4u + (uint32_t)from * 2u + (uint32_t)(at / TALK_PATTERN) * 1021u;
        if (part > n) part = n;
        memcpy(out, talk_pattern + (turn * 2654435761u % TALK_PATTERN + at) % TALK_PATTERN, part);
        at += part;
        out += part;
        n -= part;
    }
}

// ---- moving bytes by descriptor or by stream

// The reason of a call that failed, as a negative number; -EAGAIN: not now.
static ptrdiff_t way_verdict(const talk_way *w, ptrdiff_t n)
{
    if (w->st) {
        int is_later = n == REVDIAL_EAGAIN || (n == REVDIAL_ETIMEDOUT && !w->is_blocking);
        return is_later ? -EAGAIN : n < 0 ? n - 1000 : n;
    }
    return n < 0 ? (errno == EINTR ? -EAGAIN : -errno) : n;
}

static ptrdiff_t way_read(const talk_way *w, void *buf, size_t len)
{
    return way_verdict(w, w->st ? revdial_read(w->st, buf, len) : sim_recv(w->fd, buf, len, 0));
}

static ptrdiff_t way_write(const talk_way *w, const void *buf, size_t len)
{
    return way_verdict(w, w->st ? revdial_write(w->st, buf, len) : sim_send(w->fd, buf, len, 0));
}

static void way_finish(const talk_way *w)
{
    if (w->st)
        revdial_shutdown(w->st, REVDIAL_WR);
    else
        sim_shutdown(w->fd, SHUT_WR);
}

static void way_close(const talk_way *w, int is_abort)
{
    if (w->st) {
        if (is_abort) revdial_reset(w->st, 77);
        revdial_close(w->st);
        return;
    }
    struct linger now = {1, 0};
    if (is_abort) sim_setsockopt(w->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    sim_close(w->fd);
}

static void way_wait(const talk_way *w, int wants_read, int wants_write)
{
    short events = (short)((wants_read ? POLLIN : 0) | (wants_write ? POLLOUT : 0));
    if (w->st) {
        revdial_pollfd p = {w->st, -1, events, 0};
        // It fails at once where it lacks a descriptor.
        if (revdial_poll(&p, 1, 5000) < 0) world_sleep_us(1000, "a descriptor");
    } else {
        struct pollfd p = {w->fd, events, 0};
        sim_poll(&p, 1, 5000);
    }
}

// ---- one side of a transfer

static int talk_is_hasty(const talk *t, int x)
{
    return t->mode == TALK_HASTY && t->hasty == x;
}

// How many bytes this side may have written by now.
static size_t talk_may_write(const talk *t, int x)
{
    const talk_side *me = &t->side[x];
    if (me->fin || me->is_cut) return 0;
    if (t->mode == TALK_CLIENT_FIRST && x == 1 && !me->eof) return 0;
    if (t->mode == TALK_TARGET_FIRST && x == 0 && !me->eof) return 0;
    if (t->mode == TALK_PINGS) {
        size_t n = x == 0 ? me->read + TALK_PING : me->read;
        return n < t->plan[x] ? n : t->plan[x];
    }
    return t->plan[x];
}

static int talk_may_read(const talk *t, int x)
{
    const talk_side *me = &t->side[x];
    return !me->eof && !(talk_is_hasty(t, x) && me->read >= t->hasty_reads);
}

static int talk_gives_up(const talk *t, int x)
{
    return t->gives_up == x + 1 && t->side[x].read + t->side[x].written >= t->gives_up_at;
}

static void talk_check(talk *t, int x, const uint8_t *bytes, size_t n)
{
    talk_side *me = &t->side[x];
    static uint8_t want[TALK_PIECE];
    talk_fill(t, 1 - x, me->read, want, n);
    if (memcmp(bytes, want, n) != 0)
        world_fail("transfer %u (%s): bytes %zu to %zu to side %d are wrong", t->key, t->how,
                   me->read, me->read + n, x);
    me->read += n;
    if (me->read > t->side[1 - x].written)
        world_fail("transfer %u (%s): side %d has read more than was written", t->key, t->how, x);
}

// Is EOF no promise here? There is no RST on a Unix socket.
static int talk_is_cut_short(const talk *t, int x)
{
    const talk_side *me = &t->side[x], *peer = &t->side[1 - x];
    if (!t->has_unix || (peer->fin && me->read == peer->written)) return 0;
    return !t->is_strict || (t->may_refuse && !t->side[1].begun);
}

static void talk_check_end(talk *t, int x)
{
    talk_side *me = &t->side[x];
    const talk_side *peer = &t->side[1 - x];
    if (t->third[1 - x] && !peer->over) return;  // it may finish while a call of it goes on
    if (talk_is_cut_short(t, x)) {
        me->error = -ECONNRESET;
        mark_set(MARK_CUT_SHORT);
        return;
    }
    if (!peer->fin || me->read != peer->written)
        world_fail("transfer %u (%s): EOF of side %d is a lie: %zu of %zu bytes read, %s", t->key,
                   t->how, x, me->read, peer->written, peer->fin ? "finished" : "not finished");
}

// Returns 1 if something has moved.
static int talk_read(talk *t, int x, const talk_way *w, uint8_t *buf)
{
    talk_side *me = &t->side[x];
    if (me->error || !talk_may_read(t, x)) return 0;
    ptrdiff_t n = way_read(w, buf, TALK_PIECE);
    if (n == -EAGAIN) return 0;
    if (n == 0 && me->is_cut && !w->st) n = -ECONNRESET;  // which the system told the write
    if (n < 0) {
        me->error = (int)n;
    } else if (n == 0) {
        me->eof = 1;
        talk_check_end(t, x);
    } else {
        talk_check(t, x, buf, (size_t)n);
        if (t->slow[x]) world_sleep_us(TALK_SLOW_US, "a slow reader");
    }
    return 1;
}

static int talk_write(talk *t, int x, const talk_way *w, uint8_t *buf)
{
    talk_side *me = &t->side[x];
    size_t may = talk_may_write(t, x);
    if (me->fin || me->error || me->is_cut) return 0;
    if (me->written < may) {
        size_t n = may - me->written < TALK_PIECE ? may - me->written : TALK_PIECE;
        size_t before = me->written;
        talk_fill(t, x, before, buf, n);
        me->written += n;  // the other side may read before this call returns
        ptrdiff_t done = way_write(w, buf, n);
        me->written = before + (done > 0 ? (size_t)done : 0);
        int is_reset = done == -ECONNRESET || done == -EPIPE || done == REVDIAL_ERESET - 1000;
        if (is_reset && t->mode == TALK_HASTY && !talk_is_hasty(t, x))
            me->is_cut = 1;  // the answer may be there all the same
        else if (done < 0 && done != -EAGAIN)
            me->error = (int)done;
        return done > 0 || me->is_cut;
    }
    if (me->written < t->plan[x] || (t->mode == TALK_CLIENT_FIRST && x == 1 && !me->eof) ||
        (t->mode == TALK_TARGET_FIRST && x == 0 && !me->eof))
        return 0;
    me->fin = 1;
    if (!talk_is_hasty(t, x) || t->hasty_fins) way_finish(w);
    return 1;
}

// The other end has all that a hasty one sent. Between two streams of one session EOF follows.
static int talk_is_hasty_whole(const talk *t)
{
    const talk_side *s = &t->side[t->hasty], *peer = &t->side[1 - t->hasty];
    if (!s->fin || s->written != t->plan[t->hasty] || peer->read != s->written) return 0;
    return peer->eof || !s->has_st || !peer->has_st || t->has_hop;
}

static int talk_is_whole(const talk *t)
{
    if (t->mode == TALK_HASTY) return talk_is_hasty_whole(t);
    for (int x = 0; x < 2; x++) {
        const talk_side *s = &t->side[x];
        if (!s->fin || !s->eof || s->written != t->plan[x] || s->read != t->plan[1 - x]) return 0;
    }
    return 1;
}

// Whoever closes a TCP socket with unread bytes loses what has not arrived.
static void way_settle(const talk_way *w)
{
    while (!w->st && fd_file(w->fd)->end && !fd_file(w->fd)->end->is_dead) {
        const tcp_end *to = tcp_other(fd_file(w->fd)->end);
        if (!to->flying && !to->unsent) break;
        world_sleep_us(1000, "the last bytes to arrive");
    }
}

static int talk_is_done(const talk *t, int x)
{
    const talk_side *me = &t->side[x];
    if (talk_is_hasty(t, x)) return me->fin && (me->read >= t->hasty_reads || me->eof);
    return (me->fin || me->is_cut) && me->eof;
}

static void talk_run(talk *t, int x, const talk_way *w)
{
    talk_side *me = &t->side[x];
    uint8_t *buf = malloc(TALK_PIECE);
    if (!buf) abort();
    me->begun = 1;
    me->has_st = w->st != NULL;
    while (!talk_is_done(t, x) && !me->error && !(me->gave_up = talk_gives_up(t, x))) {
        int moved = talk_write(t, x, w, buf);
        if (!moved || !w->is_blocking) moved |= talk_read(t, x, w, buf);
        if (!moved && !w->is_blocking)
            way_wait(w, talk_may_read(t, x), talk_may_write(t, x) > me->written);
    }
    free(buf);
    if (talk_is_hasty(t, x)) way_settle(w);
    me->over = 1;
    t->over_us = wd.clock.now_us;
    world_note("transfer %u side %d: %zu read, %zu written%s%s, error %d", t->key, x, me->read,
               me->written, me->fin ? ", fin" : "", me->eof ? ", eof" : "", me->error);
    if (me->gave_up) mark_set(MARK_GAVE_UP);
    if (me->error && me->read) mark_set(MARK_RST_IN_MID_TRANSFER);
    if (me->is_cut && talk_is_whole(t)) mark_set(MARK_CUT_BEHIND_AN_ANSWER);
    if (talk_is_whole(t)) mark_set((enum mark)(MARK_WHOLE_DUPLEX + (int)t->mode));
    way_close(w, me->gave_up || me->error);
}

// ---- the first bytes: which transfer this is

static void talk_head(const talk *t, uint8_t head[TALK_HEAD])
{
    memcpy(head, "RVDT", 4);
    memcpy(head + 4, &t->key, 4);
}

// Returns 0 if the connection ended before its first bytes were there.
static int way_exactly(const talk_way *w, uint8_t *buf, size_t len, int is_write)
{
    for (size_t done = 0; done < len;) {
        ptrdiff_t n =
            is_write ? way_write(w, buf + done, len - done) : way_read(w, buf + done, len - done);
        if (n == -EAGAIN)
            way_wait(w, !is_write, is_write);
        else if (n <= 0)
            return 0;
        else
            done += (size_t)n;
    }
    return 1;
}

static void share_run(talk *t, int x, revdial_stream *st);

// The other end of a client: a target's connection, or a handler's stream.
//   client   where it comes from, as this end was told; NULL or "": nothing
static void talk_answer(const talk_way *w, const char *client)
{
    uint8_t head[TALK_HEAD];
    uint32_t key;
    if (!way_exactly(w, head, TALK_HEAD, 0)) {
        way_close(w, 1);
        return;
    }
    memcpy(&key, head + 4, 4);
    if (memcmp(head, "RVDT", 4) != 0 || key >= talk_count) {
        if (memcmp(head, "EVIL", 4) != 0) world_fail("the first bytes of a connection are wrong");
        way_close(w, 1);
        return;
    }
    if (client && client[0] && talks[key].client_at[0] && strcmp(client, talks[key].client_at))
        world_fail("transfer %u is of %s, its target is told %s", key, talks[key].client_at,
                   client);
    if (talks[key].side[1].begun) {
        world_fail("transfer %u (%s) arrives twice", key, talks[key].how);
        way_close(w, 1);
        return;
    }
    if (w->st && talks[key].third[1])
        share_run(&talks[key], 1, w->st);
    else
        talk_run(&talks[key], 1, w);
}

static void talk_ask(talk *t, const talk_way *w)
{
    uint8_t head[TALK_HEAD];
    talk_head(t, head);
    if (way_exactly(w, head, TALK_HEAD, 1)) {
        talk_run(t, 0, w);
        return;
    }
    t->side[0].error = -1;
    t->side[0].over = 1;
    t->over_us = wd.clock.now_us;
    way_close(w, 1);
}

static talk *talk_new(const char *how)
{
    if (talk_count == TALKS) return NULL;
    talk *t = &talks[talk_count];
    memset(t, 0, sizeof *t);
    t->key = talk_count++;
    t->how = how;
    t->begun_us = wd.clock.now_us;
    return t;
}

#endif
