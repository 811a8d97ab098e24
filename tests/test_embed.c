// The library inside a program of somebody else's: signals, fork, closed standard streams, and
// calls that would wait for themselves.
#include "runtime_util.h"

// ------------------------------------------------------------------------------------------------
// Signals

// In each hook: is TERM open to programs that it starts, and USR1 blocked as for who opened it?
static atomic_int masks_right[6], masks_wrong;

enum { AT_HANDLER, AT_STREAM, AT_SESSION, AT_CLIENT, AT_AUTH, AT_CREDENTIAL };

static void look_at_mask(int where)
{
    sigset_t set;
    pthread_sigmask(SIG_BLOCK, NULL, &set);
    if (sigismember(&set, SIGTERM) == 0 && sigismember(&set, SIGUSR1) == 1)
        atomic_fetch_add(&masks_right[where], 1);
    else
        atomic_fetch_add(&masks_wrong, 1);
}

static void mask_handler(void *ud, revdial_stream *st)
{
    (void)ud;
    look_at_mask(AT_HANDLER);
    util_echo(st);
    revdial_close(st);
}

static void mask_on_stream(void *ud, revdial_stream *st)
{
    (void)ud;
    look_at_mask(AT_STREAM);
    util_echo(st);
    revdial_close(st);
}

static void mask_on_session(void *ud, revdial_session *s, int state, const revdial_err *why)
{
    look_at_mask(AT_SESSION);
    util_on_session(ud, s, state, why);
}

static void mask_on_client(void *ud, const revdial_client *client)
{
    (void)client;
    look_at_mask(AT_CLIENT);
    util_gate_add(&((world *)ud)->ended, 1);
}

static int mask_auth(void *ud, const revdial_auth_req *req, char *identity, size_t size)
{
    (void)ud, (void)req;
    look_at_mask(AT_AUTH);
    snprintf(identity, size, "anybody");
    return 0;
}

static int mask_credential(void *ud, unsigned attempt, char *secret, size_t size)
{
    (void)ud, (void)attempt;
    look_at_mask(AT_CREDENTIAL);
    snprintf(secret, size, "s3cret");
    return 0;
}

static void echo_through_port(const char *at)
{
    char buf[8];
    size_t len;
    int fd = raw_connect(at);
    raw_say(fd, "hello");
    shutdown(fd, SHUT_WR);
    CHECK_INT(raw_drain(fd, buf, sizeof buf, &len), 0);
    CHECK_INT(len, 5);
    close(fd);
}

TEST(hooks_and_handlers_have_the_signal_mask_of_the_thread_that_opened)
{
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
    sigset_t only, before;
    char at[80], c;
    world w;
    sigemptyset(&only);
    sigaddset(&only, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &only, &before);
    world_init(&w);
    w.pcfg.exposes = &x;
    w.pcfg.expose_count = 1;
    w.pcfg.on_client = mask_on_client;
    w.pcfg.on_session = mask_on_session;
    w.pcfg.on_stream = mask_on_stream;
    w.pcfg.auth = mask_auth;
    w.acfg.handler = mask_handler;
    w.acfg.secret = NULL;
    w.acfg.credential_fn = mask_credential;
    if (world_open(&w) && revdial_proxy_address(w.proxy, 1, at, sizeof at) > 0) {
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        revdial_session *s = revdial_agent_wait(w.agents[0], UTIL_WAIT_MS, NULL);
        revdial_stream *st = s ? revdial_session_dial(s, NULL, NULL) : NULL;
        if (CHECK(st != NULL)) {
            CHECK_INT(revdial_shutdown(st, REVDIAL_WR), 0);
            CHECK_INT(revdial_read(st, &c, 1), 0);
        }
        revdial_close(st);
        revdial_session_unref(s);
        echo_through_port(at);
        CHECK(util_gate_wait(&w.ended, 1));
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    world_close(&w);
    for (int i = 0; i < 6; i++) CHECK(atomic_load(&masks_right[i]) > 0);
    CHECK_INT(atomic_load(&masks_wrong), 0);
}

// What a hook sees if the thread that opened had this mask; 1 if the mask was not changed for it.
static int hook_mask(const sigset_t *opened, sigset_t *seen)
{
    sigset_t before, now, all;
    rvd_sys_mask m;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, opened, &before);
    rvd_sys_mask_get(&m);
    pthread_sigmask(SIG_BLOCK, NULL, &now);
    for (int sig = 1; sig < 32; sig++) CHECK_INT(sigismember(&now, sig), sigismember(&m.set, sig));
    pthread_sigmask(SIG_SETMASK, &all, NULL);  // as a thread of ours
    const sigset_t ours = rvd_sys_hook_begin(&m);
    pthread_sigmask(SIG_BLOCK, NULL, seen);
    rvd_sys_hook_end(&m, &ours);
    pthread_sigmask(SIG_BLOCK, NULL, &now);
    CHECK_INT(sigismember(&now, SIGUSR1), 1);
    CHECK_INT(sigismember(&now, SIGTERM), 1);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return m.is_ours;
}

TEST(hooks_of_who_blocks_all_signals_need_no_change_of_the_mask)
{
    sigset_t opened, seen;
    sigfillset(&opened);
    CHECK_INT(hook_mask(&opened, &seen), 1);
    CHECK_INT(sigismember(&seen, SIGTERM), 1);
    sigdelset(&opened, SIGTERM);
    CHECK_INT(hook_mask(&opened, &seen), 0);
    CHECK_INT(sigismember(&seen, SIGTERM), 0);
    CHECK_INT(sigismember(&seen, SIGUSR1), 1);
}

// ------------------------------------------------------------------------------------------------
// Calls that would wait for themselves

static util_gate pointers_known = UTIL_GATE;
static atomic_int verdicts[4];

static void stopping_handler(void *ud, revdial_stream *st)
{
    world *w = ud;
    util_gate_wait(&pointers_known, 1);
    atomic_store(&verdicts[0], revdial_agent_stop(w->agents[0], 0));
    revdial_close(st);
    util_gate_add(&w->ended, 1);
}

static void closing_on_stream(void *ud, revdial_stream *st)
{
    world *w = ud;
    atomic_store(&verdicts[1], revdial_proxy_stop(w->proxy));
    revdial_close(st);
    util_gate_add(&w->ended, 1);
}

static int closing_auth(void *ud, const revdial_auth_req *req, char *identity, size_t size)
{
    world *w = ud;
    (void)req;
    atomic_store(&verdicts[2], revdial_proxy_stop(w->proxy));
    snprintf(identity, size, "anybody");
    return 0;
}

static void closing_on_session(void *ud, revdial_session *s, int state, const revdial_err *why)
{
    world *w = ud;
    if (state == REVDIAL_UP) atomic_store(&verdicts[3], revdial_proxy_stop(w->proxy));
    util_on_session(ud, s, state, why);
}

TEST(stop_and_close_return_EDEADLK_where_they_would_wait_for_themselves)
{
    world w;
    world_init(&w);
    w.acfg.handler = stopping_handler;
    w.pcfg.on_stream = closing_on_stream;
    w.pcfg.on_session = closing_on_session;
    w.pcfg.auth = closing_auth;
    w.pcfg.auth_ud = &w;
    if (world_open(&w)) {
        util_gate_add(&pointers_known, 1);
        revdial_dial_opts early = {.flags = REVDIAL_DIAL_EARLY};
        revdial_session *s = revdial_agent_wait(w.agents[0], UTIL_WAIT_MS, NULL);
        revdial_stream *down = revdial_dial(w.proxy, "cam-1", &early, NULL);
        revdial_stream *up = s ? revdial_session_dial(s, &early, NULL) : NULL;
        CHECK(util_gate_wait(&w.ended, 2));
        revdial_close(down);
        revdial_close(up);
        revdial_session_unref(s);
        for (int i = 0; i < 4; i++) CHECK_INT(atomic_load(&verdicts[i]), REVDIAL_EDEADLK);
    }
    world_close(&w);
}

// ------------------------------------------------------------------------------------------------
// fork

// What a child's call should not have returned is counted.
#define WANT(call, want) (wrong += (call) != (want))

static int calls_on_a_stream(revdial_stream *st)
{
    revdial_pollfd item = {.st = st, .events = POLLIN};
    revdial_flow_info ledger;
    int wrong = 0, reset = 1, fds[2];
    char c = 'x';
    WANT(revdial_read(st, &c, 1), REVDIAL_ECLOSED);
    WANT(revdial_write(st, &c, 1), REVDIAL_ECLOSED);
    WANT(revdial_poll(&item, 1, -1), REVDIAL_ECLOSED);
    WANT(revdial_pollset_add(NULL, st, NULL), REVDIAL_ECLOSED);
    WANT(revdial_shutdown(st, REVDIAL_RDWR), REVDIAL_ECLOSED);
    WANT(revdial_reset(st, 64), REVDIAL_ECLOSED);
    WANT(revdial_stream_set_deadline(st, REVDIAL_RD, 1), REVDIAL_ECLOSED);
    WANT(revdial_stream_error(st, &reset), REVDIAL_ECLOSED);
    WANT(reset, 0);
    WANT(revdial_stream_get_flow(st, &ledger), REVDIAL_ECLOSED);
    WANT(revdial_stream_fd(st), REVDIAL_ECLOSED);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0) return 1;
    WANT(revdial_relay(st, fds[0], fds[0], NULL), REVDIAL_ECLOSED);
    WANT(read(fds[1], &c, 1), 0);  // join has closed its end
    revdial_close(st);
    return wrong;
}

static int calls_on_a_session(revdial_session *s)
{
    revdial_session_info info;
    revdial_err err = {0};
    int wrong = 0;
    revdial_session_get_info(s, &info);
    WANT(info.state, REVDIAL_DOWN);
    WANT(revdial_session_drain(s, 0), REVDIAL_ECLOSED);
    WANT(revdial_session_dial(s, NULL, &err) == NULL, 1);
    WANT(err.code, REVDIAL_ECLOSED);
    revdial_session_kill(s);
    revdial_session_unref(revdial_session_ref(s));
    revdial_session_unref(s);
    return wrong;
}

static void count_close(void *ctx)
{
    ++*(int *)ctx;
}

static int calls_on_a_proxy(revdial_proxy *p)
{
    int closes = 0;
    const revdial_transport transport = {.ctx = &closes, .do_close = count_close};
    const revdial_attach_opts how = {.transport = &transport};
    revdial_stats stats;
    revdial_err err = {0};
    revdial_session *s;
    int wrong = 0;
    WANT(revdial_dial(p, "cam-1", NULL, &err) == NULL, 1);
    WANT(err.code, REVDIAL_ECLOSED);
    WANT(revdial_dial_fd(p, "cam-1", NULL, &err), REVDIAL_ECLOSED);
    WANT(revdial_dial_async(p, "cam-1", NULL, on_dial, NULL), REVDIAL_ECLOSED);
    WANT(revdial_dial_cancel(p, 1), REVDIAL_ECLOSED);
    WANT(revdial_proxy_wait(p, "cam-1", 1, -1), REVDIAL_ECLOSED);
    WANT(revdial_proxy_list(p, NULL, &s, 1), 0);
    WANT(revdial_proxy_attach(p, dup(1), NULL, NULL), REVDIAL_ECLOSED);
    WANT(revdial_proxy_attach(p, dup(1), &how, NULL), REVDIAL_ECLOSED);
    WANT(closes, 1);
    WANT(revdial_proxy_replace_credentials(p, NULL, 0, REVDIAL_END_STALE, NULL), REVDIAL_ECLOSED);
    revdial_proxy_replace_auth(p, NULL, NULL);
    revdial_proxy_get_stats(p, &stats);
    WANT(stats.sessions, 0);
    WANT(revdial_proxy_drain(p, 0), REVDIAL_ECLOSED);
    WANT(revdial_proxy_stop(p), REVDIAL_ECLOSED);
    return wrong;
}

static int calls_on_an_agent(revdial_agent *a)
{
    static const char *const allow[] = {"127.0.0.1:80", NULL};
    revdial_stats stats;
    int wrong = 0;
    WANT(revdial_agent_wait(a, -1, NULL) == NULL, 1);
    WANT(revdial_agent_replace_allow(a, allow, NULL), REVDIAL_ECLOSED);
    revdial_agent_get_stats(a, &stats);
    WANT(stats.sessions, 0);
    WANT(revdial_agent_stop(a, -1), REVDIAL_ECLOSED);
    return wrong;
}

static void echoes(revdial_stream *st)
{
    char buf[4] = "";
    CHECK_INT(revdial_write(st, "ping", 4), 4);
    CHECK_INT(util_read_all(st, buf, 4), 4);
    CHECK(memcmp(buf, "ping", 4) == 0);
}

// The locks are held in the instant of the fork, as another thread may: a child that takes one
// hangs until its alarm.
static void calls_in_a_child(int use_pid)
{
    world w;
    world_init(&w);
    util_madvise_fails = use_pid;
    if (world_open(&w)) {
        revdial_stream *st = revdial_dial(w.proxy, "cam-1", NULL, NULL);
        revdial_session *s = st ? revdial_stream_session(st) : NULL;
        int status = 0;
        CHECK_INT(w.proxy->own.origin->page == NULL, use_pid);
        if (CHECK(st != NULL)) {
            rvd_stream_lock(s);
            pthread_mutex_lock(&w.proxy->own.lock);
            pthread_mutex_lock(&w.agents[0]->own.lock);
            pid_t child = fork();
            if (child == 0) {
                alarm(UTIL_WAIT_MS / 1000);
                int wrong = calls_on_a_stream(st) + calls_on_a_session(s) +
                            calls_on_a_proxy(w.proxy) + calls_on_an_agent(w.agents[0]);
                _exit(wrong);
            }
            pthread_mutex_unlock(&w.agents[0]->own.lock);
            pthread_mutex_unlock(&w.proxy->own.lock);
            rvd_stream_unlock(s);
            CHECK_INT(waitpid(child, &status, 0), child);
            CHECK_INT(status, 0);
            echoes(st);
            CHECK_INT(util_log_count(&w.sessions, REVDIAL_DOWN, NULL), 0);
        }
        revdial_close(st);
        revdial_session_unref(s);
    }
    world_close(&w);
    util_madvise_fails = 0;
}

TEST(in_a_child_every_call_fails_at_once_and_the_parent_goes_on)
{
    calls_in_a_child(0);
}

TEST(so_it_is_where_the_system_wipes_no_page_in_a_child)
{
    calls_in_a_child(1);
}

// A child that has copies of all descriptors, until `fd` is closed.
static pid_t child_with_copies(int *fd)
{
    int fds[2];
    char c;
    if (pipe(fds) < 0) abort();
    pid_t child = fork();
    if (child == 0) {
        close(fds[1]);
        alarm(UTIL_WAIT_MS / 1000);
        while (read(fds[0], &c, 1) > 0) {
        }
        _exit(0);
    }
    close(fds[0]);
    *fd = fds[1];
    return child;
}

// A child that has a world of its own.
static int adds_to_the_parents_set(revdial_pollset *set)
{
    world w;
    int wrong = 0;
    world_init(&w);
    revdial_stream *st = world_open(&w) ? world_dial(&w, "echo", 0, NULL) : NULL;
    WANT(st != NULL, 1);
    if (st) WANT(revdial_pollset_add(set, st, &w), REVDIAL_ECLOSED);
    revdial_close(st);
    world_close(&w);
    return wrong;
}

TEST(a_poll_set_of_the_parent_takes_no_stream_of_its_child)
{
    revdial_pollset *set = revdial_pollset_new();
    int status = 0;
    REQUIRE(set != NULL);
    pid_t child = fork();
    if (child == 0) {
        alarm(UTIL_WAIT_MS / 1000);
        _exit(adds_to_the_parents_set(set));
    }
    CHECK_INT(waitpid(child, &status, 0), child);
    CHECK_INT(status, 0);
    CHECK_INT(raw_wait(revdial_pollset_fd(set), POLLIN, 0), 0);
    revdial_pollset_free(set);
}

TEST(ends_reach_the_peers_though_a_child_has_copies_of_the_sockets)
{
    static const revdial_kv meta[] = {{"do", "reset"}, {"n", "70"}};
    revdial_expose x = {.listen = "127.0.0.1:0", .name = "cam-1"};
    char at[80], c;
    util_state e;
    world w;
    world_init(&w);
    x.dial.meta = meta;
    x.dial.meta_count = 2;
    w.pcfg.exposes = &x;
    w.pcfg.expose_count = 1;
    if (world_open(&w) && revdial_proxy_address(w.proxy, 1, at, sizeof at) > 0) {
        int client = raw_connect(at), hold;
        CHECK(util_gate_wait(&w.begun, 1));
        pid_t child = child_with_copies(&hold);
        raw_say(client, "x");
        CHECK(raw_wait(client, POLLIN, UTIL_WAIT_MS));
        CHECK(recv(client, &c, 1, 0) < 0 && errno == ECONNRESET);
        close(client);
        revdial_proxy_stop(w.proxy);
        w.proxy = NULL;
        CHECK(util_log_wait(&w.states, REVDIAL_DOWN, 1, &e));
        CHECK_INT(raw_connect(at), -1);  // nobody listens any more
        close(hold);
        waitpid(child, NULL, 0);
    }
    world_close(&w);
}

NEW_WORLD_TEST(a_unix_socket_ends_with_its_stream_though_a_child_has_a_copy_of_it)
{
    int fds[2], hold;
    char c;
    REQUIRE(world_open(w) && CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0));
    revdial_stream *st = world_dial(w, "reset", 70, NULL);
    if (CHECK(st != NULL)) {
        CHECK_INT(revdial_relay(st, fds[0], fds[0], NULL), 0);
        pid_t child = child_with_copies(&hold);
        raw_say(fds[1], "x");
        CHECK(raw_wait(fds[1], POLLIN, UTIL_WAIT_MS / 2));  // before the child ends
        CHECK(recv(fds[1], &c, 1, MSG_DONTWAIT) == 0);
        close(hold);
        waitpid(child, NULL, 0);
    }
    close(fds[1]);
}

// ------------------------------------------------------------------------------------------------
// Standard streams

TEST(no_socket_takes_the_number_of_a_standard_stream_that_is_closed)
{
    int saved = fcntl(0, F_DUPFD_CLOEXEC, 10);
    world w;
    if (saved >= 0) close(0);
    world_init(&w);
    if (world_open(&w)) {
        // A new descriptor has that number until another one has been taken for it.
        revdial_stream *st = revdial_dial(w.proxy, "cam-1", NULL, NULL);
        CHECK(st != NULL);
        UTIL_EVENTUALLY(fcntl(0, F_GETFD) < 0);
        int fd = st ? revdial_stream_fd(st) : -1;
        CHECK(fd > 2);
        UTIL_EVENTUALLY(fcntl(0, F_GETFD) < 0);
        if (fd >= 0) close(fd);
    }
    world_close(&w);
    if (saved >= 0) dup2(saved, 0);
    if (saved >= 0) close(saved);
}

// ------------------------------------------------------------------------------------------------
// Clients and targets that vanish, or leave one half open for ever

// Our descriptor of a connection, by its ends: NULL matches any.
static int socket_between(const struct sockaddr_in *mine, const struct sockaddr_in *theirs)
{
    for (int fd = 3; fd < 1024; fd++) {
        struct sockaddr_in a = {0}, b = {0};
        socklen_t a_len = sizeof a, b_len = sizeof b;
        if (getsockname(fd, (struct sockaddr *)&a, &a_len) < 0 || a.sin_family != AF_INET) continue;
        if (getpeername(fd, (struct sockaddr *)&b, &b_len) < 0) continue;
        if (a.sin_port == mine->sin_port && b.sin_port == theirs->sin_port) return fd;
    }
    return -1;
}

static int option(int fd, int level, int name)
{
    int value = -1;
    socklen_t len = sizeof value;
    getsockopt(fd, level, name, &value, &len);
    return value;
}

// The other end of fd asks whether we are still there: after so many seconds, so many apart.
static void check_keepalive(int fd, int idle_s, int gap_s)
{
    struct sockaddr_in mine, theirs;
    socklen_t mine_len = sizeof mine, theirs_len = sizeof theirs;
    getsockname(fd, (struct sockaddr *)&mine, &mine_len);
    getpeername(fd, (struct sockaddr *)&theirs, &theirs_len);
    int other = socket_between(&theirs, &mine);
    // A target's is set once the connection is a second old.
    for (int64_t until = rvd_sys_now_us() + UTIL_WAIT_MS * 1000;
         idle_s > 0 && option(other, IPPROTO_TCP, TCP_KEEPCNT) != 3 && rvd_sys_now_us() < until;)
        usleep(1000);
    CHECK_INT(option(other, SOL_SOCKET, SO_KEEPALIVE), idle_s > 0);
    if (idle_s <= 0) return;
    CHECK_INT(option(other, IPPROTO_TCP, TCP_KEEPIDLE), idle_s);
    CHECK_INT(option(other, IPPROTO_TCP, TCP_KEEPINTVL), gap_s);
    CHECK_INT(option(other, IPPROTO_TCP, TCP_KEEPCNT), 3);
}

// A client of an exposed port, and the target that it reaches.
typedef struct forwarded {
    revdial_expose x;
    world w;
    char target[40];
    int listener, client, at_target;
} forwarded;

static void forwarded_on_client(void *ud, const revdial_client *client)
{
    util_state e = {1, client->why ? client->why->code : 0, 0, 0, ""};
    util_log_add(&((world *)ud)->states, &e);
}

static int forwarded_open(forwarded *f)
{
    char at[80];
    int port = 0;
    f->listener = raw_listen(8, &port);
    f->client = f->at_target = -1;
    snprintf(f->target, sizeof f->target, "127.0.0.1:%d", port);
    f->x.listen = "127.0.0.1:0";
    f->x.name = "cam-1";
    f->w.pcfg.exposes = &f->x;
    f->w.pcfg.expose_count = 1;
    f->w.pcfg.on_client = forwarded_on_client;
    f->w.acfg.handler = NULL;
    f->w.acfg.on_state = NULL;
    f->w.acfg.default_target = f->target;
    if (!world_open(&f->w) || revdial_proxy_address(f->w.proxy, 1, at, sizeof at) <= 0) return 0;
    f->client = raw_connect(at);
    f->at_target = raw_accept(f->listener);
    return CHECK(f->client >= 0 && f->at_target >= 0);
}

static void forwarded_close(forwarded *f)
{
    if (f->client >= 0) close(f->client);
    if (f->at_target >= 0) close(f->at_target);
    world_close(&f->w);
    close(f->listener);
}

TEST(clients_and_targets_are_asked_whether_they_are_still_there)
{
    static const struct {
        int ms, idle_s, gap_s;
    } rows[] = {{0, 60, 15}, {8000, 8, 2}, {-1, 0, 0}, {1, 1, 1}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        forwarded f = {0};
        world_init(&f.w);
        f.w.pcfg.common.tcp_keepalive_ms = f.w.acfg.common.tcp_keepalive_ms = rows[i].ms;
        if (forwarded_open(&f)) {
            char c;
            CHECK(raw_say(f.at_target, "x"));  // by then both sides are joined
            CHECK_INT(raw_read(f.client, &c, 1), 1);
            check_keepalive(f.client, rows[i].idle_s, rows[i].gap_s);
            check_keepalive(f.at_target, rows[i].idle_s, rows[i].gap_s);
        }
        forwarded_close(&f);
    }
}

// Sockets of this process that have that congestion control.
static int count_congestion(const char *name)
{
    int count = 0;
    for (int fd = 3; fd < 256; fd++) {
        char now[32] = "";
        socklen_t len = sizeof now - 1;
        if (getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, now, &len) == 0)
            count += strcmp(now, name) == 0;
    }
    return count;
}

// One that this process may choose and that is not the system's: "" if there is none.
static void other_congestion(char *name, size_t size)
{
    static const char *const names[] = {"reno", "cubic", "bbr"};
    char usual[32] = "";
    socklen_t len = sizeof usual - 1;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    *name = '\0';
    getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, usual, &len);
    for (size_t i = 0; i < sizeof names / sizeof *names && !*name; i++) {
        socklen_t n = (socklen_t)strlen(names[i]);
        if (strcmp(names[i], usual) != 0 &&
            setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, names[i], n) == 0)
            snprintf(name, size, "%s", names[i]);
    }
    close(fd);
}

TEST(the_sockets_of_a_session_have_the_congestion_control_that_was_asked_for)
{
    char name[16];
    other_congestion(name, sizeof name);
    for (int which = 0; which < 3 && *name; which++) {  // the proxy's, the agent's, neither
        forwarded f = {0};
        world_init(&f.w);
        if (which == 0) f.w.pcfg.common.congestion = name;
        if (which == 1) f.w.acfg.common.congestion = name;
        if (forwarded_open(&f)) CHECK_INT(count_congestion(name), which < 2);
        forwarded_close(&f);
    }
}

// Behind a rival's queue CUBIC's slow start would end at once.
TEST(a_socket_of_cubic_that_has_not_sent_yet_can_start_as_reno)
{
    int fds[2], pair[2], is_cubic;
    char name[16] = "";
    socklen_t len = sizeof name;
    REQUIRE(raw_pair(fds));
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    CHECK(!rvd_sys_start_as_reno(pair[0]));
    CHECK(rvd_sys_is_starting(fds[0]) && !rvd_sys_is_starting(pair[0]));
    is_cubic = rvd_sys_set_congestion(fds[0], "cubic") == 0;
    CHECK_INT(rvd_sys_start_as_reno(fds[0]), is_cubic);
    CHECK(!rvd_sys_start_as_reno(fds[0]));
    CHECK_INT(getsockopt(fds[0], IPPROTO_TCP, TCP_CONGESTION, name, &len), 0);
    if (is_cubic) CHECK_STR(name, "reno");
    for (int i = 0; i < 2; i++) {
        close(fds[i]);
        close(pair[i]);
    }
}

TEST(connections_within_this_machine_are_not_paced_by_bbr)
{
    static const char *const away[] = {"192.0.2.1:9", "[2001:db8::1]:9", "0.0.0.0:9"};
    static const char *const here[] = {"127.0.0.1:9", "[::1]:9"};
    rvd_sys_addr to;
    int fd = rvd_sys_socket_tcp(AF_INET);
    REQUIRE(fd >= 0);
    for (size_t i = 0; i < 5 && rvd_sys_set_congestion(fd, "bbr") == 0; i++) {
        CHECK_INT(rvd_sys_addr_parse(i < 3 ? away[i] : here[i - 3], 0, &to, NULL), 0);
        rvd_sys_unpace(fd, &to);
        CHECK_INT(rvd_sys_has_congestion(fd, "bbr"), i < 3);
    }
    close(fd);
}

// The same where there is no BBR, as far as it can be seen there.
TEST(another_congestion_control_stays_and_is_that_of_what_its_listener_accepts)
{
    char name[16], at[32];
    rvd_sys_addr here;
    int port = 0, listener = raw_listen(1, &port), fds[2];
    snprintf(at, sizeof at, "127.0.0.1:%d", port);
    CHECK_INT(rvd_sys_addr_parse(at, 0, &here, NULL), 0);
    other_congestion(name, sizeof name);
    if (*name && strcmp(name, "bbr") != 0) {
        CHECK_INT(rvd_sys_set_congestion(listener, name), 0);
        rvd_sys_unpace(listener, &here);
        CHECK(rvd_sys_has_congestion(listener, name));
        fds[0] = raw_connect(at);
        fds[1] = raw_accept(listener);
        CHECK(rvd_sys_has_congestion(fds[1], name));
        for (int i = 0; i < 2; i++) close(fds[i]);
    }
    close(listener);
}

TEST(a_congestion_control_that_the_system_does_not_have_is_refused_with_those_that_it_has)
{
    revdial_proxy_config p = {.listen = "127.0.0.1:0", .common.congestion = "no-such"};
    revdial_agent_config a = {.url = "http://127.0.0.1:1",
                              .name = "cam-1",
                              .default_target = "127.0.0.1:1",
                              .common.congestion = "no-such"};
    revdial_err err;
    char has[128] = "", *one, *rest = has;
    FILE *file = fopen("/proc/sys/net/ipv4/tcp_available_congestion_control", "r");
    if (file) {
        CHECK(fgets(has, sizeof has, file) != NULL);
        fclose(file);
    }
    CHECK(revdial_proxy_start(&p, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_EINVAL);
    CHECK(strstr(err.msg, "\"no-such\": common.congestion: ") != NULL);
    while ((one = strtok_r(rest, " \n", &rest)) != NULL)
        if (!strstr(err.msg, one)) test_fail(__FILE__, __LINE__, "no %s in: %s", one, err.msg);
    CHECK(revdial_agent_start(&a, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_EINVAL);
}

TEST(a_connection_that_one_side_has_finished_ends_when_the_other_is_silent_for_too_long)
{
    for (int at_agent = 0; at_agent < 2; at_agent++) {
        forwarded f = {0};
        util_state e = {0};
        char buf[8];
        size_t len;
        world_init(&f.w);
        f.x.half_closed_ms = at_agent ? -1 : 20;
        f.w.acfg.half_closed_timeout_ms = at_agent ? 20 : -1;
        if (forwarded_open(&f)) {
            raw_say(f.client, "ask");
            shutdown(f.client, SHUT_WR);
            CHECK_INT(raw_drain(f.at_target, buf, sizeof buf, &len), 0);  // and does not answer
            CHECK(raw_wait(f.at_target, 0, UTIL_WAIT_MS));                // hung up on
            CHECK_INT(raw_drain(f.client, buf, sizeof buf, &len), -1);
            CHECK(util_log_wait(&f.w.states, 1, 1, &e));
            CHECK_INT(e.code, at_agent ? REVDIAL_ERESET : REVDIAL_ETIMEDOUT);
        }
        forwarded_close(&f);
    }
}

TEST(an_answer_to_who_has_finished_may_take_its_time)
{
    forwarded f = {0};
    char buf[8];
    size_t len;
    world_init(&f.w);
    util_clock_stop();
    f.w.pcfg.common.limits.keepalive_ms = f.w.acfg.common.limits.keepalive_ms = 7200000;
    if (forwarded_open(&f)) {
        raw_say(f.client, "ask");
        shutdown(f.client, SHUT_WR);
        CHECK(raw_read_all(f.at_target, buf, 3));
        CHECK_INT(raw_read(f.at_target, buf, 1), 0);
        util_clock_advance_ms(3590000);  // the default is an hour
        util_settle(f.w.proxy->loops[0]);
        util_settle(f.w.agents[0]->loop);
        raw_say(f.at_target, "answer");
        close(f.at_target);
        f.at_target = -1;
        CHECK_INT(raw_drain(f.client, buf, sizeof buf, &len), 0);
        CHECK_STR(buf, "answer");
    }
    util_clock_run();
    forwarded_close(&f);
}

static util_gate half_closed = UTIL_GATE;

static void handler_that_says_nothing(void *ud, revdial_stream *st)
{
    char c;
    revdial_write(st, "", 0);  // accepts
    CHECK_INT(revdial_read(st, &c, 1), 0);
    util_gate_add(&half_closed, 1);
    util_gate_wait(&((world *)ud)->go, 1);
    revdial_close(st);
}

TEST(a_descriptor_that_the_application_got_may_stay_half_closed)
{
    world w;
    char c;
    world_init(&w);
    util_clock_stop();
    w.acfg.handler = handler_that_says_nothing;
    w.pcfg.common.limits.keepalive_ms = w.acfg.common.limits.keepalive_ms = 86400000;
    if (world_open(&w)) {
        int fd = revdial_dial_fd(w.proxy, "cam-1", NULL, NULL);
        shutdown(fd, SHUT_WR);
        CHECK(util_gate_wait(&half_closed, 1));  // nothing is on its way any more
        util_settle(w.proxy->loops[0]);
        util_clock_advance_ms(7200000);
        util_settle(w.proxy->loops[0]);
        CHECK(fd >= 0 && !raw_wait(fd, POLLIN, 0));
        util_gate_add(&w.go, 1);
        CHECK_INT(raw_read(fd, &c, 1), 0);
        close(fd);
    }
    util_clock_run();
    world_close(&w);
}

// ------------------------------------------------------------------------------------------------
// Thread-local variables, of which glibc makes room on each thread's stack: more than an I/O thread
// has of it.

static _Thread_local char locals[1 << 20];

static void use_stack_on_session(void *ud, revdial_session *s, int state, const revdial_err *why)
{
    volatile char deep[96 * 1024];
    for (size_t i = 0; i < sizeof deep; i += 4096) deep[i] = (char)i;
    memset(locals, deep[0] + 1, sizeof locals);
    util_on_session(ud, s, state, why);
}

NEW_WORLD_TEST(thread_local_variables_of_the_program_take_nothing_from_the_stack_of_an_I_O_thread)
{
    w->pcfg.on_session = use_stack_on_session;
    REQUIRE(world_open(w));
    CHECK_INT(locals[0], 0);  // this thread has its own
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
