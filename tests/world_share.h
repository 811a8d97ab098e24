// Several threads on one stream of the simulated world: one reads, one writes, and a third one
// watches, moves the deadlines, finishes a direction or aborts meanwhile. Calls that wait return
// once it has ended them, and both ends see what it did.
#ifndef REVDIAL_TEST_WORLD_SHARE_H
#define REVDIAL_TEST_WORLD_SHARE_H

#include "world_people.h"

enum share_third {
    SHARE_WATCHES,
    SHARE_HURRIES,
    SHARE_FINISHES,
    SHARE_STOPS_READING,
    SHARE_ABORTS,
    SHARE_KINDS
};

enum { SHARE_RETURN_US = 2000000 };  // a call that was ended returns within this

typedef struct share {
    talk *t;
    int x, threads, working, is_reading, is_writing;
    revdial_stream *st;
    enum share_third third;
    int64_t acted_us;  // by a clock that does not jump; 0: not yet
    ptrdiff_t read_error, write_error;
    test_rng rng;
} share;

static int64_t share_now_us(void)
{
    return wd.clock.now_us - wd.jumped_us;
}

// Is it a deadline that has ended the call? Nobody else sets one.
static int share_is_later(const share *s, ptrdiff_t n)
{
    if (n != REVDIAL_EAGAIN && n != REVDIAL_ETIMEDOUT) return 0;
    if (s->third != SHARE_HURRIES) world_fail("a call without a deadline returns %td", n);
    world_sleep_us(1000, "a deadline");
    return 1;
}

static void share_done(share *s, const char *what, ptrdiff_t error)
{
    int ends = s->third == SHARE_ABORTS || (s->third == SHARE_FINISHES && *what == 'w') ||
               (s->third == SHARE_STOPS_READING && *what == 'r');
    s->working--;
    if (!s->acted_us || !ends) return;
    if (share_now_us() - s->acted_us > SHARE_RETURN_US)
        world_fail("transfer %u: a %s goes on for %.1f s after its end", s->t->key, what,
                   (double)(share_now_us() - s->acted_us) / 1e6);
    if (error && error != REVDIAL_ECLOSED && s->t->is_strict)
        world_fail("transfer %u: a %s that this end has ended returns %td", s->t->key, what, error);
}

static void *share_read(void *arg)
{
    share *s = arg;
    talk_side *me = &s->t->side[s->x];
    uint8_t *buf = malloc(TALK_PIECE);
    if (!buf) abort();
    while (!me->eof && !s->read_error) {
        s->is_reading = 1;
        ptrdiff_t n = revdial_read(s->st, buf, 1 + (size_t)test_below(&s->rng, TALK_PIECE));
        s->is_reading = 0;
        if (share_is_later(s, n)) continue;
        if (n < 0) s->read_error = n;
        if (n > 0) talk_check(s->t, s->x, buf, (size_t)n);
        if (n != 0) continue;
        me->eof = 1;
        talk_check_end(s->t, s->x);
    }
    free(buf);
    share_done(s, "read", s->read_error);
    s->threads--;
    return NULL;
}

static void *share_write(void *arg)
{
    share *s = arg;
    talk *t = s->t;
    talk_side *me = &t->side[s->x];
    uint8_t *buf = malloc(TALK_PIECE);
    if (!buf) abort();
    while (me->written < t->plan[s->x] && !s->write_error) {
        size_t n = 1 + (size_t)test_below(&s->rng, TALK_PIECE), before = me->written;
        if (n > t->plan[s->x] - before) n = t->plan[s->x] - before;
        talk_fill(t, s->x, before, buf, n);
        me->written += n;  // the other side may read before this call returns
        s->is_writing = 1;
        ptrdiff_t done = revdial_write(s->st, buf, n);
        s->is_writing = 0;
        me->written = before + (done > 0 ? (size_t)done : 0);
        if (!share_is_later(s, done) && done < 0) s->write_error = done;
    }
    free(buf);
    if (!s->write_error && !me->fin) {
        me->fin = 1;
        revdial_shutdown(s->st, REVDIAL_WR);
    }
    share_done(s, "write", s->write_error);
    s->threads--;
    return NULL;
}

// ---- the third thread

static int share_pick(share *s, uint64_t bound)
{
    return (int)test_below(&s->rng, bound);
}

static void share_watch(share *s)
{
    revdial_flow_info flow;
    revdial_pollfd p = {s->st, -1, POLLIN | POLLOUT, 0};
    int reset;
    revdial_stream_get_flow(s->st, &flow);
    revdial_stream_error(s->st, &reset);
    if (revdial_poll(&p, 1, share_pick(s, 3) ? 0 : share_pick(s, 20)) < 0 && story_is_calm())
        world_fail("transfer %u: a third thread cannot poll", s->t->key);
    world_sleep_us(1 + share_pick(s, 20000), "what others do");
}

static void share_hurry(share *s)
{
    static const int ms[] = {0, 1, 20, -1};
    revdial_stream_set_deadline(s->st, 1 + share_pick(s, 3), ms[share_pick(s, 4)]);
    world_sleep_us(1 + share_pick(s, 20000), "what others do");
}

static void share_act(share *s)
{
    static const enum mark marks[] = {MARK_SHARE_WATCHED, MARK_SHARE_HURRIED, MARK_SHARE_FINISHED,
                                      MARK_SHARE_STOPPED, MARK_SHARE_ABORTED};
    if (s->is_reading && s->is_writing) mark_set(marks[s->third]);
    s->acted_us = share_now_us();
    world_note("transfer %u side %d: a third thread acts: %d", s->t->key, s->x, (int)s->third);
    if (s->third == SHARE_FINISHES) s->t->side[s->x].fin = 1;
    if (s->third == SHARE_FINISHES) revdial_shutdown(s->st, REVDIAL_WR);
    if (s->third == SHARE_STOPS_READING) revdial_shutdown(s->st, REVDIAL_RD);
    if (s->third == SHARE_ABORTS) revdial_reset(s->st, 77);
}

static void *share_disturb(void *arg)
{
    share *s = arg;
    int64_t at = wd.clock.now_us + s->t->third_us[s->x];
    while (s->working && wd.clock.now_us < at) world_sleep_us(at - wd.clock.now_us, "its turn");
    if (s->working) share_act(s);
    while (s->working && s->third == SHARE_WATCHES) share_watch(s);
    for (int i = 0; i < 50 && s->working && s->third == SHARE_HURRIES; i++) share_hurry(s);
    if (s->third == SHARE_HURRIES) revdial_stream_set_deadline(s->st, REVDIAL_RDWR, -1);
    s->threads--;
    return NULL;
}

// ---- all of it

// What the third one has done is this end's plan from now on.
static void share_settle(share *s)
{
    talk_side *me = &s->t->side[s->x];
    if (s->third == SHARE_FINISHES && s->acted_us && s->write_error == REVDIAL_ECLOSED) {
        s->write_error = 0;
        s->t->plan[s->x] = me->written;
    }
    ptrdiff_t error = s->read_error ? s->read_error : s->write_error;
    if (error) me->error = (int)error - 1000;
    me->over = 1;
    s->t->over_us = wd.clock.now_us;
    if (talk_is_whole(s->t)) mark_set(MARK_SHARE_WHOLE);
    world_note("transfer %u side %d: %zu read, %zu written%s%s, errors %td %td", s->t->key, s->x,
               me->read, me->written, me->fin ? ", fin" : "", me->eof ? ", eof" : "", s->read_error,
               s->write_error);
}

// One side of a transfer, by a stream of which it disposes.
static void share_run(talk *t, int x, revdial_stream *st)
{
    share s = {.t = t, .x = x, .threads = 2, .working = 2, .st = st};
    int home = machine_self()->number;
    uint8_t head[TALK_HEAD];
    talk_head(t, head);
    s.third = (enum share_third)(t->third[x] - 1);
    s.rng = test_rng_seeded(t->key * 2u + (unsigned)x);
    t->side[x].begun = 1;
    revdial_stream_set_deadline(st, REVDIAL_RDWR, -1);
    people_new(home, "writes", share_write, &s);
    people_new(home, "disturbs", share_disturb, &s);
    s.threads++;
    share_read(&s);
    while (s.threads) world_sleep_us(1000, "threads on its stream");
    share_settle(&s);
    talk_way way = {-1, st, 0};
    way_close(&way, t->side[x].error != 0);
}

#endif
