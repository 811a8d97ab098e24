// Sessions on a transport that is not TLS but behaves as badly as one may: both directions want
// both directions, bytes come one by one, reads hide bytes from the socket, peers stall, lie and
// are cut off. Rows D11 to D28 of the TLS table that are ours and not the TLS library's.
#include "runtime_util.h"

// ------------------------------------------------------------------------------------------------
// The toy: records of type, length (2 bytes) and payload, XORed. A hello each way comes first.
//   D payload    K "answer me before I write on"    A the answer    F I have finished

enum { TOY_RECORD = 4096, TOY_HEAD = 3, TOY_KEY = 0x5A };

typedef struct toy_rules {
    int byte_wise;      // one byte per system call
    int ask_every;      // a K after so many records; 0 = never
    int read_ahead;     // a read decodes all that the socket has
    int is_mute;        // never says hello
    int refuses;        // the handshake fails
    int fails_wrap;     // REVDIAL_E* of wrap
    int knows_peer;     // do_peer proves something
    int unsent;         // bytes of SO_SNDBUF, so that writes do stop
    atomic_int cut;     // 1: the next call shuts the connection down without F
    atomic_int break_;  // 1: the next record that comes is not good
} toy_rules;

// How many steps of handshakes a pass of the loop has, if each takes a millisecond. Set while the
// loop stands still, its own from then on.
typedef struct shake_watch {
    rvd_loop *loop;  // NULL: nobody counts
    uint64_t pass;
    int steps;
    atomic_int most;
} shake_watch;

typedef struct toy_count {
    atomic_int alive, overlaps, changed, late, finished, wants_back, hidden;
    char host[300];
    util_gate shaken;
    shake_watch watch;
} toy_count;

typedef struct toy {
    const toy_rules *rules;
    toy_count *count;
    int fd, said_hello, heard_hello, asked, answers, is_over, has_failed;
    const char *reason;
    atomic_int busy;
    const void *held;  // a write that wants to be repeated
    size_t held_len;
    int is_encoded, records;
    uint8_t out[2 * TOY_RECORD];
    size_t out_at, out_len;
    uint8_t in[TOY_HEAD + TOY_RECORD];
    size_t in_len;
    uint8_t *plain;
    size_t plain_at, plain_len, plain_size;
} toy;

static void toy_enter(toy *t)
{
    if (atomic_exchange(&t->busy, 1)) atomic_fetch_add(&t->count->overlaps, 1);
    if (t->has_failed) atomic_fetch_add(&t->count->late, 1);
    if (atomic_exchange((atomic_int *)(uintptr_t)&t->rules->cut, 0)) shutdown(t->fd, SHUT_RDWR);
}

static int toy_leave(toy *t, int r)
{
    if (r < 0 && r > REVDIAL_WANT_READ) t->has_failed = 1;
    atomic_store(&t->busy, 0);
    return r;
}

static int toy_fail(toy *t, int code, const char *reason)
{
    t->reason = reason;
    return code;
}

static int toy_flush(toy *t)
{
    while (t->out_len) {
        size_t len = t->rules->byte_wise ? 1 : t->out_len;
        ssize_t n = send(t->fd, t->out + t->out_at, len, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) return REVDIAL_WANT_WRITE;
        if (n < 0) return toy_fail(t, REVDIAL_ELOST, "toy: cannot send");
        t->out_at += (size_t)n;
        t->out_len -= (size_t)n;
    }
    t->out_at = 0;
    t->answers = 0;
    return 0;
}

static void toy_put(toy *t, char type, const void *payload, size_t len)
{
    uint8_t *at = t->out + t->out_at + t->out_len;
    if (t->out_at + t->out_len + TOY_HEAD + len > sizeof t->out) abort();
    at[0] = (uint8_t)type;
    at[1] = (uint8_t)(len >> 8);
    at[2] = (uint8_t)len;
    for (size_t i = 0; i < len; i++) at[TOY_HEAD + i] = ((const uint8_t *)payload)[i] ^ TOY_KEY;
    t->out_len += TOY_HEAD + len;
}

static int toy_take(toy *t, const uint8_t *payload, size_t len)
{
    if (atomic_exchange((atomic_int *)(uintptr_t)&t->rules->break_, 0))
        return toy_fail(t, REVDIAL_ETLS, "toy: a record is not good");
    if (t->plain_at == t->plain_len) t->plain_at = t->plain_len = 0;
    if (t->plain_len + len > t->plain_size) {
        t->plain_size = 2 * (t->plain_len + len);
        t->plain = realloc(t->plain, t->plain_size);
        if (!t->plain) abort();
    }
    for (size_t i = 0; i < len; i++) t->plain[t->plain_len + i] = payload[i] ^ TOY_KEY;
    t->plain_len += len;
    return 0;
}

static int toy_record(toy *t)
{
    size_t len = (size_t)t->in[1] << 8 | t->in[2];
    t->in_len = 0;
    switch (t->in[0]) {
    case 'H': t->heard_hello = 1; return 0;
    case 'D': return toy_take(t, t->in + TOY_HEAD, len);
    case 'K':
        if (t->out_at + t->out_len + TOY_HEAD > sizeof t->out) abort();
        toy_put(t, 'A', NULL, 0);
        t->answers = 1;
        return 0;
    case 'A': t->asked = 0; return 0;
    case 'F': t->is_over = 1; return 0;
    default: return toy_fail(t, REVDIAL_ETLS, "toy: not a record");
    }
}

// Reads up to the end of one record. Returns 1 for a record, or what stopped it.
static int toy_pump(toy *t)
{
    for (;;) {
        size_t need =
            t->in_len < TOY_HEAD ? TOY_HEAD : TOY_HEAD + ((size_t)t->in[1] << 8 | (size_t)t->in[2]);
        ssize_t n;
        if (need > sizeof t->in) return toy_fail(t, REVDIAL_ETLS, "toy: too long a record");
        if (t->in_len == need) {
            int r = toy_record(t);
            return r < 0 ? r : 1;
        }
        n = recv(t->fd, t->in + t->in_len, t->rules->byte_wise ? 1 : need - t->in_len, 0);
        if (n < 0 && errno == EAGAIN) return REVDIAL_WANT_READ;
        if (n < 0) return toy_fail(t, REVDIAL_ELOST, "toy: cannot receive");
        if (n == 0) return toy_fail(t, REVDIAL_ELOST, "toy: cut off");
        t->in_len += (size_t)n;
    }
}

static int toy_shake(toy *t)
{
    int r;
    if (t->rules->refuses) return toy_fail(t, REVDIAL_ETLS, "toy: refused");
    if (!t->rules->is_mute && !t->said_hello) toy_put(t, 'H', NULL, 0);
    t->said_hello = 1;
    r = toy_flush(t);
    while (r == 0 && !t->heard_hello) {
        r = toy_pump(t);
        if (r > 0) r = 0;
    }
    return r;
}

static void shake_watch_step(shake_watch *watch)
{
    if (!watch->loop) return;
    if (watch->pass != rvd_loop_passes(watch->loop)) watch->steps = 0;
    watch->pass = rvd_loop_passes(watch->loop);
    watch->steps++;
    util_clock_advance_ms(1);  // that is what it takes
    if (watch->steps > atomic_load(&watch->most)) atomic_store(&watch->most, watch->steps);
}

static int toy_do_handshake(void *ctx)
{
    toy *t = ctx;
    toy_enter(t);
    shake_watch_step(&t->count->watch);
    int r = toy_shake(t);
    if (r == 0) util_gate_add(&t->count->shaken, 1);
    return toy_leave(t, r);
}

static ptrdiff_t toy_read(toy *t, void *buf, size_t len)
{
    for (;;) {
        int r = toy_flush(t);
        // An answer that the peer waits for. Not if both wait, or neither would ever read.
        if (r == REVDIAL_WANT_WRITE && t->answers && !t->asked) {
            atomic_fetch_add(&t->count->wants_back, 1);
            return r;
        }
        if (r < 0 && r != REVDIAL_WANT_WRITE) return r;
        r = 0;
        if (t->plain_len > t->plain_at && (!t->rules->read_ahead || (r = toy_pump(t)) <= 0)) {
            size_t n = t->plain_len - t->plain_at;
            if (r < 0 && r != REVDIAL_WANT_READ) return r;
            if (n > len) n = len;
            memcpy(buf, t->plain + t->plain_at, n);
            t->plain_at += n;
            return (ptrdiff_t)n;
        }
        if (t->is_over) return 0;
        if (r == 0) r = toy_pump(t);
        if (r < 0) return r;
    }
}

static ptrdiff_t toy_do_read(void *ctx, void *buf, size_t len)
{
    toy_enter(ctx);
    return toy_leave(ctx, (int)toy_read(ctx, buf, len));
}

static ptrdiff_t toy_write(toy *t, const void *buf, size_t len)
{
    int r;
    if (t->held && (t->held != buf || t->held_len != len)) atomic_fetch_add(&t->count->changed, 1);
    if (len > TOY_RECORD) len = TOY_RECORD;
    if (!t->is_encoded) {
        if ((r = toy_flush(t)) < 0) return r;
        if (t->rules->ask_every && ++t->records % t->rules->ask_every == 0) {
            toy_put(t, 'K', NULL, 0);
            t->asked = 1;
        }
        toy_put(t, 'D', buf, len);
        t->is_encoded = 1;
    }
    if ((r = toy_flush(t)) < 0) return r;
    while (t->asked) {
        if ((r = toy_pump(t)) < 0) {
            if (r == REVDIAL_WANT_READ) atomic_fetch_add(&t->count->wants_back, 1);
            return r;
        }
        if ((r = toy_flush(t)) < 0) return r;
    }
    if (t->plain_len > t->plain_at) atomic_fetch_add(&t->count->hidden, 1);
    t->is_encoded = 0;
    return (ptrdiff_t)len;
}

static ptrdiff_t toy_do_write(void *ctx, const void *buf, size_t len)
{
    toy *t = ctx;
    toy_enter(t);
    ptrdiff_t n = toy_write(t, buf, len);
    t->held = n < 0 ? buf : NULL;
    t->held_len = len;
    return toy_leave(t, (int)n);
}

static size_t toy_do_pending(void *ctx)
{
    toy *t = ctx;
    toy_enter(t);
    return (size_t)toy_leave(t, (int)(t->plain_len - t->plain_at));
}

static int toy_do_finish(void *ctx)
{
    toy *t = ctx;
    toy_enter(t);
    if (t->is_encoded) atomic_fetch_add(&t->count->changed, 1);
    int r = toy_flush(t);
    if (r == 0 && !t->asked) {
        toy_put(t, 'F', NULL, 0);
        t->asked = 1;  // once
        r = toy_flush(t);
    }
    if (r == 0) atomic_fetch_add(&t->count->finished, 1);
    return toy_leave(t, r);
}

static void toy_do_close(void *ctx)
{
    toy *t = ctx;
    if (atomic_exchange(&t->busy, 1)) atomic_fetch_add(&t->count->overlaps, 1);
    atomic_fetch_sub(&t->count->alive, 1);
    free(t->plain);
    free(t);
}

static const char *toy_do_reason(void *ctx)
{
    return ((toy *)ctx)->reason;
}

static int toy_do_peer(void *ctx, revdial_identity *out)
{
    toy *t = ctx;
    if (!t->rules->knows_peer) return REVDIAL_EINVAL;
    out->verified = 1;
    snprintf(out->subject, sizeof out->subject, "CN=toy");
    return 0;
}

typedef struct toy_maker {
    revdial_tls tls;
    toy_rules rules;
    toy_count count;
} toy_maker;

static int toy_wrap(void *ud, int fd, const char *host, revdial_transport *out, revdial_err *err)
{
    toy_maker *m = ud;
    toy *t = calloc(1, sizeof *t);
    if (!t) abort();
    if (m->rules.fails_wrap) {
        free(t);
        err->code = m->rules.fails_wrap;
        snprintf(err->msg, sizeof err->msg, "toy: not today");
        return err->code;
    }
    if (host) snprintf(m->count.host, sizeof m->count.host, "%s", host);
    if (m->rules.unsent)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &m->rules.unsent, sizeof m->rules.unsent);
    atomic_fetch_add(&m->count.alive, 1);
    t->rules = &m->rules;
    t->count = &m->count;
    t->fd = fd;
    memset(out, 0, sizeof *out);
    out->ctx = t;
    out->do_handshake = toy_do_handshake;
    out->do_read = toy_do_read;
    out->do_write = toy_do_write;
    out->do_pending = toy_do_pending;
    out->do_finish = toy_do_finish;
    out->do_close = toy_do_close;
    out->do_reason = toy_do_reason;
    out->do_peer = toy_do_peer;
    return 0;
}

// ------------------------------------------------------------------------------------------------
// A world on toys: one for each side.

typedef struct toy_world {
    world w;
    toy_maker proxy, agent;
    util_gate refused;
    char said[512];  // by the proxy's first session.refused, and its level
    int level;
} toy_world;

static void toy_log(void *ud, int level, const char *event, const char *msg)
{
    toy_world *tw = ud;
    if (strcmp(event, "session.refused") != 0) return;
    pthread_mutex_lock(&tw->w.lock);
    if (!tw->said[0]) tw->level = level;
    if (!tw->said[0]) snprintf(tw->said, sizeof tw->said, "%s", msg);
    pthread_mutex_unlock(&tw->w.lock);
    util_gate_add(&tw->refused, 1);
}

static void toy_maker_init(toy_maker *m)
{
    memset(m, 0, sizeof *m);
    m->tls.ud = m;
    m->tls.wrap = toy_wrap;
    util_gate_init(&m->count.shaken);
}

static toy_world *toy_world_new(void)
{
    toy_world *tw = calloc(1, sizeof *tw);
    if (!tw) abort();
    world_init(&tw->w);
    util_gate_init(&tw->refused);
    toy_maker_init(&tw->proxy);
    toy_maker_init(&tw->agent);
    tw->w.pcfg.common.tls = &tw->proxy.tls;
    tw->w.pcfg.common.log = toy_log;
    tw->w.pcfg.common.log_ud = tw;
    tw->w.acfg.common.tls = &tw->agent.tls;
    return tw;
}

static int toy_world_proxy(toy_world *tw)
{
    if (!world_open_proxy(&tw->w)) return 0;
    snprintf(tw->w.url, sizeof tw->w.url, "https://%s", tw->w.address);
    return 1;
}

static int toy_world_open(toy_world *tw)
{
    return toy_world_proxy(tw) && world_open_agent(&tw->w, 0) &&
           revdial_proxy_wait(tw->w.proxy, tw->w.acfg.name, 1, UTIL_WAIT_MS) >= 1;
}

static void toy_check(const toy_count *c)
{
    CHECK_INT(atomic_load(&c->alive), 0);
    CHECK_INT(atomic_load(&c->overlaps), 0);
    CHECK_INT(atomic_load(&c->changed), 0);
    CHECK_INT(atomic_load(&c->late), 0);
}

static void toy_world_free(toy_world *tw)
{
    world_close(&tw->w);
    toy_check(&tw->proxy.count);
    toy_check(&tw->agent.count);
    free(tw);
}

// Both ways at once, in several streams.
typedef struct toy_flow {
    world *w;
    uint64_t bytes;
    util_read got;
    uint64_t sent;
} toy_flow;

static void *toy_flow_write(void *arg)
{
    struct {
        toy_flow *f;
        revdial_stream *st;
    } *job = arg;
    job->f->sent = util_write_payload(job->st, job->f->bytes, 1);
    revdial_shutdown(job->st, REVDIAL_WR);
    return NULL;
}

static void *toy_flow_run(void *arg)
{
    toy_flow *f = arg;
    revdial_err err = {0};
    struct {
        toy_flow *f;
        revdial_stream *st;
    } job = {f, world_dial(f->w, "echo", 0, &err)};
    if (!job.st) return NULL;
    pthread_t t = util_thread(toy_flow_write, &job);
    f->got = util_read_payload(job.st, 1);
    pthread_join(t, NULL);
    revdial_close(job.st);
    return NULL;
}

static void toy_flows(world *w, int count, uint64_t bytes)
{
    toy_flow flows[8];
    pthread_t threads[8];
    memset(flows, 0, sizeof flows);
    for (int i = 0; i < count; i++) {
        flows[i].w = w;
        flows[i].bytes = bytes + (uint64_t)i;
        threads[i] = util_thread(toy_flow_run, &flows[i]);
    }
    for (int i = 0; i < count; i++) {
        pthread_join(threads[i], NULL);
        CHECK_INT(flows[i].sent, flows[i].bytes);
        CHECK_INT(flows[i].got.bytes, flows[i].bytes);
        CHECK_INT(flows[i].got.end, 0);
        CHECK(!flows[i].got.is_bad);
    }
}

// ------------------------------------------------------------------------------------------------

TEST(a_session_moves_through_its_transport_and_both_sides_say_that_they_have_finished)
{
    toy_world *tw = toy_world_new();
    if (toy_world_open(tw)) toy_flows(&tw->w, 4, 300000);
    CHECK_STR(tw->agent.count.host, "127.0.0.1");
    revdial_agent_stop(tw->w.agents[0], 1000);
    tw->w.agents[0] = NULL;
    UTIL_EVENTUALLY(atomic_load(&tw->proxy.count.alive) == 0);
    CHECK_INT(atomic_load(&tw->agent.count.finished), 1);  // D17
    CHECK_INT(atomic_load(&tw->proxy.count.finished), 1);
    toy_world_free(tw);
}

// D22
TEST(a_write_that_wants_a_read_and_a_read_that_wants_a_write_are_repeated_as_they_were)
{
    toy_world *tw = toy_world_new();
    toy_maker *both[2] = {&tw->proxy, &tw->agent};
    for (int i = 0; i < 2; i++) {
        both[i]->rules.ask_every = 2 + i;
        both[i]->rules.unsent = 4096;
    }
    if (toy_world_open(tw)) toy_flows(&tw->w, 6, 200000);
    CHECK(atomic_load(&tw->proxy.count.wants_back) > 0);
    CHECK(atomic_load(&tw->agent.count.wants_back) > 0);
    toy_world_free(tw);
}

// There is room in the socket all the while, which wakes nobody.
TEST(the_loop_sleeps_while_a_write_waits_for_a_read)
{
    toy_world *tw = toy_world_new();
    util_held_loop held;
    char c = 0;
    tw->proxy.rules.ask_every = 1;
    REQUIRE(toy_world_open(tw));
    rvd_loop *loop = tw->w.proxy->loops[0];
    revdial_stream *st = world_dial(&tw->w, "echo", 0, NULL);
    REQUIRE(st != NULL);
    util_loop_hold(&held, tw->w.agents[0]->loop);
    CHECK_INT(revdial_write(st, "x", 1), 1);
    UTIL_EVENTUALLY(util_is_blocked(st->session));
    uint64_t before = util_passes(loop);
    util_nap_ms(30);
    CHECK(util_passes(loop) - before < 100);
    util_loop_let_go(&held);
    CHECK_INT(util_read_all(st, &c, 1), 1);
    revdial_close(st);
    toy_world_free(tw);
}

static int toy_has_hidden(toy_world *tw)
{
    return atomic_load(&tw->proxy.count.hidden) || atomic_load(&tw->agent.count.hidden);
}

// A write takes in what the peer sent meanwhile: the socket will not tell of it again.
TEST(bytes_that_the_socket_does_not_show_are_read)
{
    toy_world *tw = toy_world_new();
    tw->proxy.rules.ask_every = tw->agent.rules.ask_every = 1;
    tw->proxy.rules.read_ahead = tw->agent.rules.read_ahead = 1;
    if (toy_world_open(tw))
        for (int i = 0; i < 100 && !toy_has_hidden(tw); i++) toy_flows(&tw->w, 6, 200000);
    CHECK(toy_has_hidden(tw));
    toy_world_free(tw);
}

// D12, D28
TEST(handshake_and_streams_survive_single_bytes)
{
    toy_world *tw = toy_world_new();
    tw->proxy.rules.byte_wise = tw->agent.rules.byte_wise = 1;
    if (toy_world_open(tw)) toy_flows(&tw->w, 2, 20000);
    toy_world_free(tw);
}

// D11
TEST(a_stalled_handshake_ends_at_its_deadline_and_holds_up_nobody)
{
    toy_world *tw = toy_world_new();
    tw->w.pcfg.common.limits.handshake_timeout_ms = 400;
    REQUIRE(toy_world_proxy(tw));
    int fd = raw_connect(tw->w.address);  // says nothing at all
    CHECK(world_open_agent(&tw->w, 0));
    CHECK(util_gate_wait(&tw->refused, 1));
    CHECK(strstr(tw->said, "the TLS handshake was not over in time") != NULL);
    char buf[64];
    size_t len;
    CHECK_INT(raw_drain(fd, buf, sizeof buf, &len), 0);
    close(fd);
    revdial_stream *st = world_dial(&tw->w, "echo", 0, NULL);
    CHECK(st != NULL);
    revdial_close(st);
    toy_world_free(tw);
}

// All say hello while the loop is busy, and the proxy finds them at once.
TEST(P12_in_a_storm_handshakes_leave_time_for_the_bytes_of_others)
{
    toy_world *tw = toy_world_new();
    shake_watch *watch = &tw->proxy.count.watch;
    util_held_loop held;
    int fds[40];
    REQUIRE(toy_world_proxy(tw));
    util_clock_stop();
    util_loop_hold(&held, tw->w.proxy->loops[0]);
    watch->loop = tw->w.proxy->loops[0];
    for (int i = 0; i < 40; i++) {
        fds[i] = raw_connect_from(tw->w.address, 2 + i % 20);
        raw_send(fds[i], "H\0\0", TOY_HEAD);
    }
    util_loop_let_go(&held);
    CHECK(util_gate_wait(&tw->proxy.count.shaken, 40));
    util_clock_run();
    CHECK_INT(atomic_load(&watch->most), 2);
    for (int i = 0; i < 40; i++) close(fds[i]);
    toy_world_free(tw);
}

TEST(an_agent_whose_proxy_says_no_hello_is_told_why_it_gave_up)
{
    toy_world *tw = toy_world_new();
    util_state last = {0};
    tw->proxy.rules.is_mute = 1;
    tw->w.acfg.common.limits.handshake_timeout_ms = 200;
    revdial_err err = {0};
    REQUIRE(toy_world_proxy(tw));
    tw->w.acfg.url = tw->w.url;
    tw->w.agents[0] = revdial_agent_start(&tw->w.acfg, &err);
    CHECK(util_log_wait(&tw->w.states, REVDIAL_BACKOFF, 1, &last));
    CHECK_INT(last.code, REVDIAL_ETIMEDOUT);
    CHECK(strstr(last.msg, "TLS handshake") != NULL);
    toy_world_free(tw);
}

TEST(a_handshake_that_fails_is_etls_with_its_reason_on_both_sides)
{
    for (int i = 0; i < 2; i++) {
        toy_world *tw = toy_world_new();
        util_state last = {0};
        revdial_err err = {0};
        (i ? &tw->proxy : &tw->agent)->rules.refuses = 1;
        tw->w.pcfg.common.log_level = REVDIAL_LOG_DEBUG;  // one that leaves unheard is no warning
        REQUIRE(toy_world_proxy(tw));
        tw->w.acfg.url = tw->w.url;
        tw->w.agents[0] = revdial_agent_start(&tw->w.acfg, &err);
        CHECK(util_log_wait(&tw->w.states, REVDIAL_BACKOFF, 1, &last));
        CHECK(util_gate_wait(&tw->refused, 1));
        CHECK_INT(last.code, i ? REVDIAL_ELOST : REVDIAL_ETLS);
        CHECK_STR(last.msg, i ? "toy: cut off" : "toy: refused");
        CHECK(strstr(tw->said, i ? "toy: refused" : "toy: cut off") != NULL);
        CHECK_INT(tw->level, i ? REVDIAL_LOG_WARN : REVDIAL_LOG_DEBUG);
        toy_world_free(tw);
    }
}

TEST(a_peer_that_leaves_in_its_handshake_is_a_warning_unless_it_said_nothing)
{
    for (size_t said = 0; said < 2; said++) {
        toy_world *tw = toy_world_new();
        tw->w.pcfg.common.log_level = REVDIAL_LOG_DEBUG;
        REQUIRE(toy_world_proxy(tw));
        int fd = raw_connect(tw->w.address);
        CHECK(raw_send(fd, "H", said));  // a part of its hello
        CHECK_INT(shutdown(fd, SHUT_WR), 0);
        CHECK(util_gate_wait(&tw->refused, 1));
        CHECK(strstr(tw->said, "toy: cut off") != NULL);
        CHECK_INT(tw->level, said ? REVDIAL_LOG_WARN : REVDIAL_LOG_DEBUG);
        close(fd);
        toy_world_free(tw);
    }
}

TEST(a_transport_that_cannot_be_made_is_a_failed_attempt)
{
    toy_world *tw = toy_world_new();
    util_state last = {0};
    revdial_err err = {0};
    tw->agent.rules.fails_wrap = REVDIAL_EINVAL;
    REQUIRE(toy_world_proxy(tw));
    tw->w.acfg.url = tw->w.url;
    tw->w.agents[0] = revdial_agent_start(&tw->w.acfg, &err);
    CHECK(util_log_wait(&tw->w.states, REVDIAL_STOPPED, 1, &last));
    CHECK_INT(last.code, REVDIAL_EINVAL);
    CHECK_STR(last.msg, "toy: not today");
    toy_world_free(tw);
}

// D16
TEST(a_connection_that_is_cut_is_never_eof_on_either_side)
{
    for (int i = 0; i < 2; i++) {
        toy_world *tw = toy_world_new();
        revdial_err err = {0};
        util_state last = {0};
        // A new session would replace the one that is cut, and end it for another reason.
        tw->w.acfg.backoff_min_ms = tw->w.acfg.backoff_max_ms = 60000;
        REQUIRE(toy_world_open(tw));
        revdial_stream *st = world_dial(&tw->w, "sink", 0, &err);
        REQUIRE(st != NULL);
        CHECK_INT(util_write_payload(st, 50000, 2), 50000);
        atomic_store(&(i ? &tw->proxy : &tw->agent)->rules.cut, 1);
        util_write_payload(st, 50000, 2);
        util_read mine = util_read_payload(st, 1);
        CHECK_INT(mine.end, REVDIAL_ELOST);
        revdial_close(st);
        CHECK(util_gate_wait(&tw->w.ended, 1));
        CHECK(world_last(&tw->w).end < 0);
        CHECK(util_log_wait(&tw->w.sessions, REVDIAL_DOWN, 1, &last));
        CHECK_INT(last.code, REVDIAL_ELOST);
        CHECK_INT(atomic_load(&tw->proxy.count.finished), 0);
        toy_world_free(tw);
    }
}

// D18
TEST(a_bad_record_ends_the_session_and_none_of_it_is_delivered)
{
    toy_world *tw = toy_world_new();
    revdial_err err = {0};
    util_state last = {0};
    REQUIRE(toy_world_open(tw));
    revdial_stream *st = world_dial(&tw->w, "echo", 0, &err);
    REQUIRE(st != NULL);
    char c;
    CHECK_INT(revdial_write(st, "x", 1), 1);
    CHECK_INT(revdial_read(st, &c, 1), 1);
    atomic_store(&tw->proxy.rules.break_, 1);
    CHECK_INT(revdial_write(st, "y", 1), 1);
    CHECK_INT(revdial_read(st, &c, 1), REVDIAL_ELOST);
    CHECK(util_log_wait(&tw->w.sessions, REVDIAL_DOWN, 1, &last));
    CHECK_INT(last.code, REVDIAL_ETLS);
    CHECK_STR(last.msg, "toy: a record is not good");
    revdial_close(st);
    toy_world_free(tw);
}

typedef struct judged {
    int calls, has_tls;
    char subject[256];
} judged;

static int judge(void *ud, const revdial_auth_req *req, char *identity, size_t size)
{
    judged *j = ud;
    j->calls++;
    j->has_tls = req->tls != NULL;
    if (req->tls) snprintf(j->subject, sizeof j->subject, "%s", req->tls->subject);
    snprintf(identity, size, "somebody");
    return 0;
}

TEST(a_verified_identity_reaches_the_check_and_an_unverified_one_does_not)
{
    for (int i = 0; i < 2; i++) {
        toy_world *tw = toy_world_new();
        judged j = {0, 0, ""};
        tw->proxy.rules.knows_peer = i;
        tw->w.pcfg.auth = judge;
        tw->w.pcfg.auth_ud = &j;
        CHECK(toy_world_open(tw));
        CHECK_INT(j.calls, 1);
        CHECK_INT(j.has_tls, i);
        CHECK_STR(j.subject, i ? "CN=toy" : "");
        toy_world_free(tw);
    }
}

TEST(an_adopted_connection_brings_its_own_transport)
{
    toy_world *tw = toy_world_new();
    int port = 0, listener = raw_listen(4, &port);
    revdial_err err = {0};
    revdial_attach_opts how = {0};
    revdial_transport t;
    REQUIRE(toy_world_proxy(tw));
    snprintf(tw->w.url, sizeof tw->w.url, "https://localhost:%d", port);
    tw->w.acfg.url = tw->w.url;
    tw->w.agents[0] = revdial_agent_start(&tw->w.acfg, &err);
    int fd = raw_accept(listener);
    REQUIRE(fd >= 0);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    CHECK_INT(toy_wrap(&tw->proxy, fd, NULL, &t, &err), 0);
    how.transport = &t;
    CHECK_INT(revdial_proxy_attach(tw->w.proxy, fd, &how, NULL), 0);
    CHECK(revdial_proxy_wait(tw->w.proxy, "cam-1", 1, UTIL_WAIT_MS) >= 1);
    toy_flows(&tw->w, 2, 50000);
    CHECK_STR(tw->agent.count.host, "localhost");
    close(listener);
    toy_world_free(tw);
}

TEST(an_adopted_transport_is_closed_when_the_connection_is_not_wanted)
{
    toy_world *tw = toy_world_new();
    revdial_err err = {0};
    revdial_attach_opts how = {0};
    revdial_transport t;
    int fds[2];
    REQUIRE(toy_world_proxy(tw));
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    CHECK_INT(toy_wrap(&tw->proxy, fds[0], NULL, &t, &err), 0);
    how.transport = &t;
    how.upgraded = 1;
    how.name = "Not A Name";
    CHECK_INT(revdial_proxy_attach(tw->w.proxy, fds[0], &how, NULL), REVDIAL_EINVAL);
    CHECK_INT(atomic_load(&tw->proxy.count.alive), 0);
    close(fds[1]);
    toy_world_free(tw);
}

TEST(unix_listeners_and_adopted_sockets_stay_plain)
{
    toy_world *tw = toy_world_new();
    char path[64], listen[80];
    snprintf(path, sizeof path, "/tmp/revdial-toy-%d.sock", (int)getpid());
    snprintf(listen, sizeof listen, "unix:%s", path);
    tw->w.pcfg.listen = listen;
    REQUIRE(world_open_proxy(&tw->w));
    snprintf(tw->w.url, sizeof tw->w.url, "%s", listen);
    CHECK(world_open_agent(&tw->w, 0));
    CHECK_INT(util_gate_count(&tw->proxy.count.shaken), 0);
    toy_world_free(tw);
}

TEST(server_name_is_what_the_peer_must_prove)
{
    static const struct {
        const char *url, *server_name, *host;
    } rows[] = {{"https://127.0.0.1:%d", NULL, "127.0.0.1"},
                {"https://loop.test:%d", NULL, "loop.test"},
                {"https://LOOP.test:%d/x", "cam.example", "cam.example"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        toy_world *tw = toy_world_new();
        revdial_err err = {0};
        REQUIRE(toy_world_proxy(tw));
        snprintf(tw->w.url, sizeof tw->w.url, rows[i].url, atoi(strchr(tw->w.address, ':') + 1));
        tw->w.acfg.url = tw->w.url;
        tw->w.acfg.server_name = rows[i].server_name;
        tw->w.agents[0] = revdial_agent_start(&tw->w.acfg, &err);
        CHECK(util_gate_wait(&tw->agent.count.shaken, 1));
        CHECK_STR(tw->agent.count.host, rows[i].host);
        toy_world_free(tw);
    }
}

TEST(plain_http_at_a_tls_listener_gets_nothing_and_is_named)
{
    toy_world *tw = toy_world_new();
    char request[512];
    size_t len;
    REQUIRE(toy_world_proxy(tw));
    int fd = raw_connect(tw->w.address);
    raw_request(request, sizeof request, "cam-1", "s3cret", NULL);
    raw_say(fd, request);
    char buf[256];
    raw_drain(fd, buf, sizeof buf, &len);
    CHECK(strstr(buf, "HTTP") == NULL);
    CHECK(util_gate_wait(&tw->refused, 1));
    CHECK(strstr(tw->said, "toy: ") != NULL);
    close(fd);
    toy_world_free(tw);
}

// ------------------------------------------------------------------------------------------------
// What a transport is given to write, without a session.

typedef struct tape {
    uint8_t bytes[4 * RVD_TRANSPORT_BULK];
    size_t len, longest;
    ptrdiff_t most;  // that a write takes; or what it returns
} tape;

static ptrdiff_t tape_do_write(void *ctx, const void *buf, size_t len)
{
    tape *t = ctx;
    if (len > t->longest) t->longest = len;
    if (t->most <= 0) return t->most;
    if (len > (size_t)t->most) len = (size_t)t->most;
    memcpy(t->bytes + t->len, buf, len);
    t->len += len;
    return (ptrdiff_t)len;
}

static void tape_do_close(void *ctx)
{
    (void)ctx;
}

// realloc(), except that it has nothing larger than *ud.
static void *tape_alloc(void *ud, void *p, size_t old_size, size_t new_size)
{
    (void)old_size;
    if (new_size) return new_size > *(size_t *)ud ? NULL : realloc(p, new_size);
    free(p);
    return NULL;
}

// Three frames of header and payload, 102,436 bytes in all.
static void tape_frames(struct iovec iov[6], uint8_t *from)
{
    static const size_t sizes[6] = {12, 50000, 12, 50000, 12, 2400};
    for (int i = 0; i < 6; i++) {
        iov[i].iov_base = from;
        iov[i].iov_len = sizes[i];
        from += sizes[i];
    }
}

enum { TAPE_BYTES = 102436 };

TEST(frames_that_wait_together_are_given_to_the_transport_together)
{
    static const struct {
        size_t largest;  // block of memory that there is
        ptrdiff_t most;
        size_t longest;
    } rows[] = {
        {1u << 20, 1 << 20, RVD_TRANSPORT_BULK},  // all that one write may have
        {1u << 20, 16384, RVD_TRANSPORT_BULK},    // a record of each write is taken
        {40000, 1 << 20, RVD_TRANSPORT_RECORD},   // without memory for more
        {40000, 5000, RVD_TRANSPORT_RECORD},
    };
    static uint8_t from[TAPE_BYTES];
    static tape t;
    for (int i = 0; i < TAPE_BYTES; i++) from[i] = (uint8_t)(i * 7 + i / 251);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t largest = rows[i].largest, sent = 0;
        rvd_heap heap = {tape_alloc, &largest, 0};
        revdial_transport hook = {.ctx = &t, .do_write = tape_do_write, .do_close = tape_do_close};
        revdial_err err = {0};
        struct iovec iov[6], rest = {NULL, 0};
        memset(&t, 0, sizeof t);
        t.most = rows[i].most;
        rvd_transport *w = rvd_transport_new(&heap, &hook, &err);
        REQUIRE(w != NULL);
        tape_frames(iov, from);
        ptrdiff_t n = rvd_transport_write(w, iov, 6, RVD_TRANSPORT_BULK, &err);
        CHECK_INT(n, RVD_TRANSPORT_BULK);
        CHECK_INT(t.longest, rows[i].longest);
        for (sent = (size_t)n; sent < TAPE_BYTES && n > 0; sent += (size_t)n) {
            rest.iov_base = from + sent;
            rest.iov_len = TAPE_BYTES - sent;
            n = rvd_transport_write(w, &rest, 1, RVD_TRANSPORT_BULK, &err);
        }
        CHECK_INT(t.len, TAPE_BYTES);
        CHECK(memcmp(t.bytes, from, TAPE_BYTES) == 0);
        rest.iov_len = 12;  // a short frame needs no memory
        CHECK_INT(rvd_transport_write(w, &rest, 1, RVD_TRANSPORT_BULK, &err), 12);
        CHECK(w->bulk == NULL);
        rvd_transport_free(&heap, w);
        CHECK_INT(heap.live_bytes, 0);
    }
}

TEST(what_a_transport_did_not_take_is_held_and_goes_first)
{
    static uint8_t from[TAPE_BYTES];
    static tape t;
    size_t largest = 1u << 20;
    rvd_heap heap = {tape_alloc, &largest, 0};
    revdial_transport hook = {.ctx = &t, .do_write = tape_do_write, .do_close = tape_do_close};
    revdial_err err = {0};
    struct iovec iov[6], none = {NULL, 0};
    for (int i = 0; i < TAPE_BYTES; i++) from[i] = (uint8_t)(i * 7 + i / 251);
    memset(&t, 0, sizeof t);
    t.most = REVDIAL_WANT_WRITE;
    rvd_transport *w = rvd_transport_new(&heap, &hook, &err);
    REQUIRE(w != NULL);
    tape_frames(iov, from);
    CHECK_INT(rvd_transport_write(w, iov, 6, RVD_TRANSPORT_BULK, &err), RVD_TRANSPORT_BULK);
    CHECK_INT(rvd_transport_holds(w), RVD_TRANSPORT_BULK);
    CHECK_INT(rvd_transport_write(w, iov, 1, RVD_TRANSPORT_BULK, &err), REVDIAL_WANT_WRITE);
    memset(from, 0, RVD_TRANSPORT_BULK);  // the frames are the engine's again
    t.most = 1 << 20;
    CHECK_INT(rvd_transport_write(w, &none, 1, RVD_TRANSPORT_BULK, &err), 0);
    CHECK_INT(t.len, RVD_TRANSPORT_BULK);
    CHECK_INT(t.bytes[RVD_TRANSPORT_BULK - 1],
              (uint8_t)((RVD_TRANSPORT_BULK - 1) * 7 + (RVD_TRANSPORT_BULK - 1) / 251));
    CHECK_INT(rvd_transport_holds(w), 0);
    rvd_transport_free(&heap, w);
    CHECK_INT(heap.live_bytes, 0);
}

// As TLS libraries do: of a write that fails, or takes a part, the rest is a record already. The
// next write has to end where that one did.
typedef struct retape {
    tape t;
    const uint8_t *end;  // NULL: nothing is left of the last write
    int calls, changed;
} retape;

static ptrdiff_t retape_do_write(void *ctx, const void *buf, size_t len)
{
    retape *r = ctx;
    const uint8_t *end = (const uint8_t *)buf + len;
    ptrdiff_t n = REVDIAL_WANT_WRITE;
    r->changed += r->end && r->end != end;
    if (r->calls++ % 2) n = tape_do_write(&r->t, buf, len);
    r->end = n == (ptrdiff_t)len ? NULL : end;
    return n;
}

TEST(a_slow_link_gets_short_records_which_are_tried_again_as_they_were)
{
    static const struct {
        size_t piece, longest;
        ptrdiff_t most;
    } rows[] = {{1036, 1036, 1 << 20},
                {5000, 5000, 3000},
                {16383, 16383, 1 << 20},
                {16384, RVD_TRANSPORT_BULK, 16384}};
    static uint8_t from[TAPE_BYTES];
    static retape r;
    for (int i = 0; i < TAPE_BYTES; i++) from[i] = (uint8_t)(i * 7 + i / 251);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t largest = 1u << 20, piece = rows[i].piece, sent = 0;
        rvd_heap heap = {tape_alloc, &largest, 0};
        revdial_transport hook = {
            .ctx = &r, .do_write = retape_do_write, .do_close = tape_do_close};
        revdial_err err = {0};
        memset(&r, 0, sizeof r);
        r.t.most = rows[i].most;
        rvd_transport *w = rvd_transport_new(&heap, &hook, &err);
        REQUIRE(w != NULL);
        for (int calls = 0; calls < 1000 && r.t.len < TAPE_BYTES; calls++) {
            struct iovec rest = {from + sent, TAPE_BYTES - sent};
            ptrdiff_t n = rvd_transport_write(w, &rest, 1, piece, &err);
            if (n > 0) sent += (size_t)n;
            piece = rows[i].piece - (size_t)(calls % 7);  // the link's rate is measured again
        }
        CHECK_INT(r.t.len, TAPE_BYTES);
        CHECK(memcmp(r.t.bytes, from, TAPE_BYTES) == 0);
        CHECK_INT(r.t.longest, rows[i].longest);
        CHECK_INT(r.changed, 0);
        rvd_transport_free(&heap, w);
    }
}

static size_t tape_do_pending(void *ctx)
{
    (void)ctx;
    return 0;
}

enum { FULL_PIECES = RVD_STREAM_IOV * 3 / 4, FULL_PIECE = 200 };

// Its socket is full once it has what fits into a first write: each piece has a header.
static ptrdiff_t full_do_write(void *ctx, const void *buf, size_t len)
{
    tape *t = ctx;
    const size_t first = RVD_STREAM_IOV / 2 * (RVD_WIRE_HEADER + FULL_PIECE);
    return t->len >= first ? REVDIAL_WANT_WRITE : tape_do_write(t, buf, len);
}

// A flush writes twice: as many vectors as one write may have, and the rest. No event is to come
// from a socket that nobody has found full.
WORLD_TEST(what_a_transport_holds_after_the_last_write_of_a_flush_is_left_to_the_loop)
{
    static uint8_t bytes[FULL_PIECES * FULL_PIECE];
    static tape t;
    util_held_loop held;
    revdial_err err = {0};
    revdial_stream *st = world_dial(w, "sink", 0, NULL);
    REQUIRE(st != NULL);
    revdial_session *s = st->session;
    const revdial_transport hook = {.ctx = &t,
                                    .do_write = full_do_write,
                                    .do_close = tape_do_close,
                                    .do_pending = tape_do_pending};
    util_loop_hold(&held, s->loop);
    rvd_stream_lock(s);
    s->transport = rvd_transport_new(&s->heap, &hook, &err);
    t.most = 1 << 20;
    for (int i = 0; i < FULL_PIECES; i++)
        CHECK_INT(revdial_engine_lend(s->engine, st->id, bytes + i * FULL_PIECE, FULL_PIECE),
                  FULL_PIECE);
    CHECK(!atomic_load(&s->kick.queued));
    rvd_stream_flush_locked(s);
    CHECK(rvd_transport_holds(s->transport) > 0);
    CHECK_INT(revdial_engine_output(s->engine, &(struct iovec){0}, 1), 0);
    CHECK(!s->out.is_blocked && atomic_load(&s->kick.queued));
    rvd_transport_free(&s->heap, s->transport);
    s->transport = NULL;
    rvd_stream_unlock(s);
    util_loop_let_go(&held);
    revdial_close(st);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
