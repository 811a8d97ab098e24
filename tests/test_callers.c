// Each public function of the runtime is called from each kind of thread and callback that its
// documentation allows, while streams move, sessions die and come back, and ports come and go. What
// it returns is for other suites: here it returns at all, and ThreadSanitizer sees it (make tsan).
#include "runtime_util.h"

// Where a call comes from. Those from CALLER_ON_SESSION on are I/O threads.
#define CALLER_PLACES(X) \
    X(THREAD) \
    X(HANDLER) \
    X(ON_STREAM) X(AUTH) X(CREDENTIAL) X(ON_SESSION) X(ON_STATE) X(ON_CLIENT) X(ROUTE) \
        X(ROUTE_DONE) X(DIALLED) X(RELAYED) X(TARGET) X(TAKE)
enum caller_place {
#define CALLER_X(name) CALLER_##name,
    CALLER_PLACES(CALLER_X)
#undef CALLER_X
        CALLER_PLACE_COUNT
};
static const char *const place_names[] = {
#define CALLER_X(name) #name,
    CALLER_PLACES(CALLER_X)
#undef CALLER_X
};

enum {
    CALLER_SPARE = 64,    // streams for calls that use one up
    CALLER_STARTED = 64,  // proxies and agents that somebody has to stop
    CALLER_BURST = 6,     // calls of one callback
    CALLER_THREADS = 3
};

static struct {
    world w;
    char exposed[80];      // a port that has a route
    char quiet[64];        // where nobody listens
    pthread_mutex_t lock;  // guards all below
    revdial_stream *spare[CALLER_SPARE];
    int spare_count;
    revdial_proxy *proxies[CALLER_STARTED];
    revdial_agent *agents[CALLER_STARTED];
    int proxy_count, agent_count;
    unsigned turn[CALLER_PLACE_COUNT];
    atomic_int is_ready, is_over, inside;  // threads that call
} all;

// What a call may use. Of a place that has a stream of its own, that; else one that all share.
typedef struct caller {
    revdial_stream *st, *one;  // `one` is used up by the call; both may be NULL
    revdial_session *s;        // may be NULL
    revdial_err err;
    char buf[300];
    struct iovec iov;
} caller;

static revdial_stream *spare_take(void)
{
    pthread_mutex_lock(&all.lock);
    revdial_stream *st = all.spare_count ? all.spare[0] : NULL;
    if (st) memmove(all.spare, all.spare + 1, (size_t)--all.spare_count * sizeof *all.spare);
    pthread_mutex_unlock(&all.lock);
    return st;
}

// The oldest makes room.
static void spare_put(revdial_stream *st)
{
    if (!st) return;
    pthread_mutex_lock(&all.lock);
    revdial_stream *old = all.spare_count == CALLER_SPARE ? all.spare[0] : NULL;
    if (old) memmove(all.spare, all.spare + 1, (size_t)--all.spare_count * sizeof *all.spare);
    all.spare[all.spare_count++] = st;
    pthread_mutex_unlock(&all.lock);
    if (old) revdial_close(old);
}

// ---- calls that need more than a line. Each returns 0 if it could not be made.

static int call_unexpose(void)
{
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
    char at[80];
    revdial_err err;
    int64_t id = revdial_proxy_expose(all.w.proxy, &x, &err);
    if (id <= 0) return 0;
    revdial_proxy_expose_address(all.w.proxy, id, at, sizeof at);
    return revdial_proxy_unexpose(all.w.proxy, id, REVDIAL_END_CLIENTS) >= 0;
}

static void on_dialled(void *ud, revdial_stream *st, const revdial_err *err);
static void on_handler(void *ud, revdial_stream *st);

static int64_t call_dial_async(void)
{
    revdial_kv meta = {"do", "echo"};
    revdial_dial_opts opts = {.meta = &meta, .meta_count = 1};
    return revdial_dial_async(all.w.proxy, "cam-1", &opts, on_dialled, NULL);
}

static int call_relay(caller *c)
{
    int fds[2];
    if (!c->one || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) return 0;
    close(fds[1]);
    revdial_relay(c->one, fds[0], fds[0], NULL);
    c->one = NULL;
    return 1;
}

static int call_fd(int fd)
{
    if (fd >= 0) close(fd);
    return 1;
}

static int call_stream_fd(caller *c)
{
    int fd = c->one ? revdial_stream_fd(c->one) : -1;
    int is_made = c->one != NULL;
    if (fd >= 0) c->one = NULL;
    return call_fd(fd) && is_made;
}

static int call_attach(caller *c)
{
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) return 0;
    close(fds[1]);
    revdial_proxy_attach(all.w.proxy, fds[0], NULL, &c->err);
    return 1;
}

static int call_list(caller *c)
{
    revdial_session *list[4];
    size_t n = revdial_proxy_list(all.w.proxy, "*", list, 4);
    for (size_t i = 0; i < n && i < 4; i++) revdial_session_unref(list[i]);
    (void)c;
    return 1;
}

static int call_agent_list(void)
{
    revdial_session *list[4];
    size_t n = revdial_agent_list(all.w.agents[0], list, 4);
    for (size_t i = 0; i < n && i < 4; i++) revdial_session_unref(list[i]);
    return 1;
}

// One that never connects, and calls nobody.
static revdial_agent_config quiet_agent(void)
{
    revdial_agent_config cfg = {.url = all.quiet, .name = "quiet", .secret = "s3cret"};
    cfg.handler = on_handler;
    return cfg;
}

static int call_agent_check(caller *c)
{
    revdial_agent_config cfg = quiet_agent();
    return CHECK_INT(revdial_agent_check(&cfg, &c->err), 0);
}

// What a callback starts somebody else stops.
static int call_proxy_start(void)
{
    revdial_proxy_config cfg = {0};
    pthread_mutex_lock(&all.lock);
    revdial_proxy *p =
        all.proxy_count < CALLER_STARTED ? revdial_proxy_start(&cfg, NULL) : NULL;
    if (p) all.proxies[all.proxy_count++] = p;
    pthread_mutex_unlock(&all.lock);
    return p != NULL;
}

static int call_agent_start(void)
{
    revdial_agent_config cfg = quiet_agent();
    pthread_mutex_lock(&all.lock);
    revdial_agent *a =
        all.agent_count < CALLER_STARTED ? revdial_agent_start(&cfg, NULL) : NULL;
    if (a) all.agents[all.agent_count++] = a;
    pthread_mutex_unlock(&all.lock);
    return a != NULL;
}

static int call_proxy_stop(int drains)
{
    pthread_mutex_lock(&all.lock);
    revdial_proxy *p = all.proxy_count ? all.proxies[--all.proxy_count] : NULL;
    pthread_mutex_unlock(&all.lock);
    if (p && drains) revdial_proxy_drain(p, 10);
    return p && CHECK_INT(revdial_proxy_stop(p), 0);
}

static int call_agent_stop(int drains)
{
    pthread_mutex_lock(&all.lock);
    revdial_agent *a = all.agent_count ? all.agents[--all.agent_count] : NULL;
    pthread_mutex_unlock(&all.lock);
    if (a && drains) revdial_agent_drain(a, 10);
    return a && CHECK_INT(revdial_agent_stop(a, 0), 0);
}

static int call_serve(caller *c)
{
    static const volatile sig_atomic_t stop = 1;
    revdial_agent_config cfg = quiet_agent();
    cfg.stop = &stop;
    return CHECK_INT(revdial_serve(&cfg, &c->err), 0);
}

static int call_pollset(caller *c)
{
    revdial_pollset *set = c->one ? revdial_pollset_new() : NULL;
    if (!set) return 0;
    revdial_pollset_fd(set);
    revdial_pollset_add(set, c->one, c);
    revdial_pollset_next(set);
    revdial_close(c->one);
    c->one = NULL;
    revdial_pollset_free(set);
    return 1;
}

static int call_pollset_alone(void)
{
    revdial_pollset *set = revdial_pollset_new();
    int fd = set ? revdial_pollset_fd(set) : -1;
    revdial_pollset_free(set);
    return fd >= 0;
}

static int call_close(caller *c)
{
    if (!c->one) return 0;
    revdial_close(c->one);
    c->one = NULL;
    return 1;
}

static int call_dial(revdial_stream *st)
{
    spare_put(st);
    return st != NULL;
}

static int call_unref(revdial_session *s)
{
    revdial_session_unref(s);
    return s != NULL;
}

static const char *const no_rules[] = {"127.0.0.1:1", NULL};
static const revdial_credential one_row = {.secret = "s3cret", .user = "alice", .names = "*"};
static int on_auth(void *ud, const revdial_auth_req *req, char *identity, size_t size);

// X(function, where, expression): ANY is any thread; WAITS any but I/O threads; OUTSIDE any but
// callbacks.
#define ANY 1
#define WAITS 2
#define OUTSIDE 3
#define CALLER_CALLS(X) \
    X(revdial_strerror, ANY, revdial_strerror(REVDIAL_ELOST) != NULL) \
    X(revdial_reset_text, ANY, revdial_reset_text(1) != NULL) \
    X(revdial_version, ANY, revdial_version() != NULL) \
    X(revdial_version_number, ANY, revdial_version_number() > 0) \
    X(revdial_target_allowed, ANY, revdial_target_allowed(no_rules, "127.0.0.1:1")) \
    X(revdial_allow_problem, ANY, revdial_allow_problem("10.0.0.0/8:80") == NULL) \
    X(revdial_target_connect, WAITS, \
      revdial_target_connect(no_rules, "127.0.0.1:1", 100, &c->err) < 0) \
    X(revdial_log_field, ANY, (revdial_log_field(c->buf, sizeof c->buf, "key", "value"), 1)) \
    X(revdial_proxy_start, ANY, call_proxy_start()) \
    X(revdial_proxy_check, ANY, revdial_proxy_check(&all.w.pcfg, &c->err) == 0) \
    X(revdial_proxy_address, ANY, revdial_proxy_address(all.w.proxy, 0, c->buf, 80) > 0) \
    X(revdial_proxy_expose, ANY, call_unexpose()) \
    X(revdial_proxy_unexpose, ANY, call_unexpose()) \
    X(revdial_proxy_leave, ANY, (revdial_proxy_leave(all.w.proxy, 0, "127.0.0.1:1"), 1)) \
    X(revdial_proxy_expect, ANY, (revdial_proxy_expect(all.w.proxy, 0), 1)) \
    X(revdial_proxy_expose_address, ANY, \
      (revdial_proxy_expose_address(all.w.proxy, 1, c->buf, 80), 1)) \
    X(revdial_proxy_attach, ANY, call_attach(c)) \
    X(revdial_credential_problem, ANY, revdial_credential_problem(&one_row) == NULL) \
    X(revdial_proxy_replace_credentials, ANY, \
      revdial_proxy_replace_credentials(all.w.proxy, &one_row, 1, 0, &c->err) == 0) \
    X(revdial_proxy_replace_limits, ANY, \
      (revdial_proxy_replace_limits(all.w.proxy, 100, 50, 50), 1)) \
    X(revdial_proxy_replace_session_limits, ANY, \
      revdial_proxy_replace_session_limits(all.w.proxy, &all.w.pcfg.common.limits, &c->err) == 0) \
    X(revdial_proxy_replace_auth, ANY, \
      (revdial_proxy_replace_auth(all.w.proxy, on_auth, NULL), 1)) \
    X(revdial_proxy_wait, WAITS, (revdial_proxy_wait(all.w.proxy, "cam-1", 1, 10), 1)) \
    X(revdial_proxy_list, ANY, call_list(c)) \
    X(revdial_proxy_avoid, ANY, \
      c->s && (revdial_proxy_avoid(all.w.proxy, c->s, "127.0.0.1:1", 0), 1)) \
    X(revdial_proxy_get_stats, ANY, \
      (revdial_proxy_get_stats(all.w.proxy, &(revdial_stats){0}), 1)) \
    X(revdial_proxy_drain, WAITS, call_proxy_stop(1)) \
    X(revdial_proxy_stop, OUTSIDE, call_proxy_stop(0)) \
    X(revdial_dial, WAITS, (call_dial(world_dial(&all.w, "echo", 0, &c->err)), 1)) \
    X(revdial_dial_fd, WAITS, call_fd(revdial_dial_fd(all.w.proxy, "cam-1", NULL, &c->err))) \
    X(revdial_dial_async, ANY, call_dial_async() > 0) \
    X(revdial_dial_cancel, ANY, (revdial_dial_cancel(all.w.proxy, call_dial_async()), 1)) \
    X(revdial_read, WAITS, c->one && (revdial_read(c->one, c->buf, 4), 1)) \
    X(revdial_readv, WAITS, c->one && (revdial_readv(c->one, &c->iov, 1), 1)) \
    X(revdial_write, WAITS, c->one && (revdial_write(c->one, c->buf, 4), 1)) \
    X(revdial_writev, WAITS, c->one && (revdial_writev(c->one, &c->iov, 1), 1)) \
    X(revdial_shutdown, ANY, c->one && (revdial_shutdown(c->one, REVDIAL_WR), 1)) \
    X(revdial_reset, ANY, c->one && (revdial_reset(c->one, 64), 1)) \
    X(revdial_close, ANY, call_close(c)) \
    X(revdial_stream_set_deadline, ANY, \
      c->st && (revdial_stream_set_deadline(c->st, REVDIAL_RDWR, 50), 1)) \
    X(revdial_poll, WAITS, \
      c->one && (revdial_poll(&(revdial_pollfd){c->one, 0, POLLIN, 0}, 1, 1), 1)) \
    X(revdial_pollset_new, ANY, call_pollset_alone()) \
    X(revdial_pollset_free, ANY, call_pollset_alone()) \
    X(revdial_pollset_fd, ANY, call_pollset_alone()) \
    X(revdial_pollset_add, ANY, call_pollset(c)) \
    X(revdial_pollset_next, ANY, call_pollset(c)) \
    X(revdial_stream_fd, ANY, call_stream_fd(c)) \
    X(revdial_relay, ANY, call_relay(c)) \
    X(revdial_stream_error, ANY, c->st && (revdial_stream_error(c->st, NULL), 1)) \
    X(revdial_stream_meta, ANY, c->st && (revdial_stream_meta(c->st, "do"), 1)) \
    X(revdial_stream_session, ANY, c->st &&call_unref(revdial_stream_session(c->st))) \
    X(revdial_stream_get_flow, ANY, \
      c->st && (revdial_stream_get_flow(c->st, &(revdial_flow_info){0}), 1)) \
    X(revdial_session_ref, ANY, c->s &&call_unref(revdial_session_ref(c->s))) \
    X(revdial_session_unref, ANY, c->s &&call_unref(revdial_session_ref(c->s))) \
    X(revdial_session_get_info, ANY, \
      c->s && (revdial_session_get_info(c->s, &(revdial_session_info){0}), 1)) \
    X(revdial_session_get_label, ANY, c->s &&revdial_session_get_label(c->s, c->buf, 80) >= 0) \
    X(revdial_session_list_streams, ANY, \
      c->s && (revdial_session_list_streams(c->s, 0, NULL, 0), 1)) \
    X(revdial_session_find_stream, ANY, \
      c->s && (revdial_session_find_stream(c->s, "1", &(revdial_stream_info){0}), 1)) \
    X(revdial_session_drain, ANY, c->s && (revdial_session_drain(c->s, 5), 1)) \
    X(revdial_session_kill, ANY, c->s && (revdial_session_kill(c->s), 1)) \
    X(revdial_session_dial, WAITS, \
      c->s && (call_dial( \
                   revdial_session_dial(c->s, &(revdial_dial_opts){.timeout_ms = 100}, &c->err)), \
               1)) \
    X(revdial_agent_check, ANY, call_agent_check(c)) \
    X(revdial_serve, WAITS, call_serve(c)) \
    X(revdial_agent_start, ANY, call_agent_start()) \
    X(revdial_agent_wait, WAITS, \
      (call_unref(revdial_agent_wait(all.w.agents[0], 10, &c->err)), 1)) \
    X(revdial_agent_replace_allow, ANY, \
      revdial_agent_replace_allow(all.w.agents[0], no_rules, &c->err) == 0) \
    X(revdial_agent_replace_session_limits, ANY, \
      revdial_agent_replace_session_limits(all.w.agents[0], &all.w.acfg.common.limits, &c->err) == \
          0) \
    X(revdial_agent_list, ANY, call_agent_list()) \
    X(revdial_agent_list_links, ANY, \
      (revdial_agent_list_links(all.w.agents[0], &(revdial_link_info){""}, 1), 1)) \
    X(revdial_agent_get_stats, ANY, \
      (revdial_agent_get_stats(all.w.agents[0], &(revdial_stats){0}), 1)) \
    X(revdial_agent_drain, OUTSIDE, call_agent_stop(1)) \
    X(revdial_agent_stop, OUTSIDE, call_agent_stop(0))

#define CALLER_X(name, where, expression) \
    static int caller_##name(caller *c) \
    { \
        (void)c; \
        return expression; \
    }
CALLER_CALLS(CALLER_X)
#undef CALLER_X

static const struct {
    const char *name;
    int where;
    int (*call)(caller *c);
} calls[] = {
#define CALLER_X(name, where, expression) {#name, where, caller_##name},
    CALLER_CALLS(CALLER_X)
#undef CALLER_X
};
enum { CALLER_CALL_COUNT = sizeof calls / sizeof *calls };
static atomic_uint made[CALLER_CALL_COUNT][CALLER_PLACE_COUNT];

static int is_allowed(int call, enum caller_place place)
{
    if (calls[call].where == OUTSIDE) return place == CALLER_THREAD;
    return calls[call].where == ANY || place < CALLER_ON_SESSION;
}

// The next call of that place that it has not made yet, or any.
static int callers_next(enum caller_place place)
{
    pthread_mutex_lock(&all.lock);
    unsigned turn = all.turn[place]++;
    pthread_mutex_unlock(&all.lock);
    for (unsigned i = 0; i < CALLER_CALL_COUNT; i++) {
        int n = (int)((turn + i) % CALLER_CALL_COUNT);
        if (is_allowed(n, place) && !atomic_load(&made[n][place])) return n;
    }
    return (int)(turn % CALLER_CALL_COUNT);
}

static void callers_call(enum caller_place place, revdial_stream *st, revdial_session *s)
{
    int n = callers_next(place);
    if (!is_allowed(n, place)) return;
    caller c = {.one = spare_take()};
    c.iov.iov_base = c.buf;
    c.iov.iov_len = 4;
    c.st = st ? st : c.one;
    c.s = s ? revdial_session_ref(s) : c.st ? revdial_stream_session(c.st) : NULL;
    if (calls[n].call(&c)) atomic_fetch_add(&made[n][place], 1);
    if (c.s) revdial_session_unref(c.s);
    spare_put(c.one);
}

static void callers_turn(enum caller_place place, revdial_stream *st, revdial_session *s)
{
    atomic_fetch_add(&all.inside, 1);
    for (int i = 0; i < CALLER_BURST; i++)
        if (atomic_load(&all.is_ready) && !atomic_load(&all.is_over)) callers_call(place, st, s);
    atomic_fetch_sub(&all.inside, 1);
}

// A call that some place may make and has not made yet; -1: none.
static int callers_missing(enum caller_place *place)
{
    for (int n = 0; n < CALLER_CALL_COUNT; n++)
        for (int p = 0; p < CALLER_PLACE_COUNT; p++) {
            *place = (enum caller_place)p;
            if (is_allowed(n, *place) && !atomic_load(&made[n][p])) return n;
        }
    return -1;
}

// ---- the places

static void on_session(void *ud, revdial_session *s, int state, const revdial_err *why)
{
    (void)ud, (void)state, (void)why;
    callers_turn(CALLER_ON_SESSION, NULL, s);
}

static void on_state(void *ud, int state, const revdial_err *why, int retry_in_ms)
{
    (void)ud, (void)state, (void)why, (void)retry_in_ms;
    callers_turn(CALLER_ON_STATE, NULL, NULL);
}

static void on_client(void *ud, const revdial_client *client)
{
    (void)ud, (void)client;
    callers_turn(CALLER_ON_CLIENT, NULL, NULL);
}

static int on_route(void *ud, revdial_route *r)
{
    (void)ud;
    callers_turn(CALLER_ROUTE, NULL, NULL);
    return r->is_end ? REVDIAL_ROUTE_REFUSE : REVDIAL_ROUTE_DIAL;
}

static void on_route_done(void *ud, revdial_route *r, const revdial_err *why)
{
    (void)ud, (void)r, (void)why;
    callers_turn(CALLER_ROUTE_DONE, NULL, NULL);
}

static void on_relayed(void *ud, const uint64_t moved[2], const revdial_err *why)
{
    (void)ud, (void)moved, (void)why;
    callers_turn(CALLER_RELAYED, NULL, NULL);
}

static void on_dialled(void *ud, revdial_stream *st, const revdial_err *err)
{
    int fds[2];
    const revdial_relay_opts opts = {.done = on_relayed};
    (void)ud, (void)err;
    callers_turn(CALLER_DIALLED, st, NULL);
    if (!st) return;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) {
        revdial_close(st);
        return;
    }
    close(fds[1]);
    revdial_relay(st, fds[0], fds[0], &opts);
}

static int on_auth(void *ud, const revdial_auth_req *req, char *identity, size_t size)
{
    (void)ud, (void)req;
    callers_turn(CALLER_AUTH, NULL, NULL);
    snprintf(identity, size, "alice");
    return REVDIAL_OK;
}

static int on_credential(void *ud, unsigned attempt, char *secret, size_t size)
{
    (void)ud, (void)attempt;
    callers_turn(CALLER_CREDENTIAL, NULL, NULL);
    snprintf(secret, size, "s3cret");
    return 0;
}

static void on_handler(void *ud, revdial_stream *st)
{
    char buf[100];
    ptrdiff_t n;
    (void)ud;
    revdial_stream_set_deadline(st, REVDIAL_RDWR, 2000);
    callers_turn(CALLER_HANDLER, st, NULL);
    while ((n = revdial_read(st, buf, sizeof buf)) > 0)
        if (revdial_write(st, buf, (size_t)n) < 0) break;
    revdial_close(st);
}

static void on_stream(void *ud, revdial_stream *st)
{
    (void)ud;
    callers_turn(CALLER_ON_STREAM, st, NULL);
    revdial_close(st);
}

static void on_take(void *ud, revdial_stream *st)
{
    (void)ud;
    callers_turn(CALLER_TAKE, st, NULL);
    revdial_close(st);
}

static int on_target(void *ud, revdial_target_request *r)
{
    (void)ud;
    callers_turn(CALLER_TARGET, NULL, r->session);
    r->take = on_take;
    return 0;
}

// ---- who brings them about

// A client of the port with a route: one that sends, or one that only finishes.
static void client_comes(int sends)
{
    int fd = raw_connect(all.exposed);
    char byte;
    if (fd < 0) return;
    if (sends) raw_say(fd, "hello");
    shutdown(fd, SHUT_WR);
    while (raw_wait(fd, POLLIN, 2000) && recv(fd, &byte, 1, 0) > 0) {
    }
    close(fd);
}

// The agent dials, too; now and then its session ends, and it comes back.
static void agent_dials(int is_last)
{
    revdial_err err;
    const revdial_dial_opts opts = {.timeout_ms = 1000};
    revdial_session *s = revdial_agent_wait(all.w.agents[0], 100, &err);
    if (!s) return;
    revdial_close(revdial_session_dial(s, &opts, &err));
    if (is_last) revdial_session_kill(s);
    revdial_session_unref(s);
}

static void *callers_main(void *arg)
{
    unsigned turn = (unsigned)(uintptr_t)arg;
    for (; !atomic_load(&all.is_over); turn++) {
        revdial_err err;
        spare_put(world_dial(&all.w, "echo", 0, &err));
        callers_turn(CALLER_THREAD, NULL, NULL);
        if (turn % 4 == 0) call_dial_async();
        if (turn % 4 == 1) client_comes(turn % 3 > 0);
        if (turn % 4 == 2) revdial_close(revdial_dial(all.w.proxy, "forward", NULL, &err));
        if (turn % 4 == 3) agent_dials(turn % 16 == 3);
    }
    return NULL;
}

static int callers_open(void)
{
    static const revdial_expose x = {.listen = "127.0.0.1:0",
                                     .name = "cam-1",
                                     .dial.timeout_ms = 1000,
                                     .route = on_route,
                                     .route_done = on_route_done};
    world *w = &all.w;
    world_init(w);
    pthread_mutex_init(&all.lock, NULL);
    snprintf(all.quiet, sizeof all.quiet, "http://127.0.0.1:%d", raw_closed_port());
    w->pcfg.auth = on_auth;
    w->pcfg.on_session = on_session;
    w->pcfg.on_stream = on_stream;
    w->pcfg.on_client = on_client;
    w->pcfg.common.io_threads = 2;
    w->acfg.credential_fn = on_credential;
    w->acfg.secret = NULL;
    w->acfg.handler = on_handler;
    w->acfg.on_state = on_state;
    if (!world_open(w)) return 0;
    world_expose(w, &x, all.exposed);
    w->acfg.name = "forward";
    w->acfg.handler = NULL;
    w->acfg.target_fn = on_target;
    w->acfg.default_target = "127.0.0.1:1";
    return world_open_agent(w, 1);
}

static void callers_close(void)
{
    atomic_store(&all.is_over, 1);
    UTIL_EVENTUALLY(atomic_load(&all.inside) == 0);
    while (all.spare_count) revdial_close(all.spare[--all.spare_count]);
    while (all.proxy_count) revdial_proxy_stop(all.proxies[--all.proxy_count]);
    while (all.agent_count) revdial_agent_stop(all.agents[--all.agent_count], 0);
    world_close(&all.w);
}

TEST(each_function_may_be_called_from_each_thread_and_callback_that_it_allows)
{
    pthread_t t[CALLER_THREADS];
    enum caller_place place = CALLER_THREAD;
    if (callers_open()) {
        atomic_store(&all.is_ready, 1);
        for (int i = 0; i < CALLER_THREADS; i++)
            t[i] = util_thread(callers_main, (void *)(uintptr_t)i);
        UTIL_EVENTUALLY(callers_missing(&place) < 0);
        int n = callers_missing(&place);
        if (n >= 0) test_fail(__FILE__, __LINE__, "%s by %s", calls[n].name, place_names[place]);
        atomic_store(&all.is_over, 1);
        for (int i = 0; i < CALLER_THREADS; i++) pthread_join(t[i], NULL);
    }
    callers_close();
}

// Those of the engine and of an egress handshake are calls of one thread at a time.
TEST(each_function_of_the_runtime_is_in_that_table)
{
    FILE *file = fopen("revdial.h", "r");
    char line[200], name[80];
    int found = 0;
    REQUIRE(file != NULL);
    while (fgets(line, sizeof line, file)) {
        const char *at = strstr(line, "revdial_");
        if (strncmp(line, "REVDIAL_API ", 12) != 0) continue;
        for (const char *next = at; next && next < strchr(line, '(');
             next = strstr(at + 1, "revdial_"))
            at = next;
        if (!at || sscanf(at, "%79[a-z_]", name) != 1) continue;
        if (!strncmp(name, "revdial_engine_", 15) || !strncmp(name, "revdial_egress_", 15) ||
            !strcmp(name, "revdial_auth_verify"))
            continue;
        int n = 0;
        while (n < CALLER_CALL_COUNT && strcmp(calls[n].name, name)) n++;
        if (n == CALLER_CALL_COUNT) test_fail(__FILE__, __LINE__, "%s is not called", name);
        found++;
    }
    fclose(file);
    CHECK_INT(found, CALLER_CALL_COUNT);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
