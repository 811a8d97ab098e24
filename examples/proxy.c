// revdial-proxy: agents register here, and each exposed address leads to one of them. See --help.
//
// One thread accepts clients and starts a dial for each; when the dial has succeeded, the library's
// I/O thread carries the bytes. No thread waits for anybody.
#define _POSIX_C_SOURCE 200809L
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include "program.h"
#include "program_auth.h"
#include "program_listen.h"

#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#ifdef __linux__
#include <sys/epoll.h>
#endif

enum {
    ACCEPT_BATCH = 64,       // clients taken from one listener before the others have their turn
    ACCEPT_PAUSE_MS = 100,   // when descriptors have run out: some will be closed meanwhile
    FAILURES_PER_SECOND = 5  // lines in the log; a flood of failures must not become one of lines
};

typedef struct settings {
    prog_list listens, exposes;
    token_paths credentials;
    const char *path;
    int pick, dial_timeout_ms, is_waiting, drain_ms, io_threads, max_sessions;
    int keepalive_ms, dead_after_ms, auth_failures;
} settings;

#define AT(field) offsetof(settings, field)
static const prog_option options[] = {
    {"listen", PROG_LIST, AT(listens), "ADDRESS",
     "where agents connect: HOST:PORT or unix:PATH; port 0 = any free one,\n"
     "printed as 'listening on ADDRESS'; repeatable",
     0, 0},
    {"expose", PROG_LIST, AT(exposes), "ADDRESS=NAME[/TARGET]",
     "connections to ADDRESS (HOST:PORT, a PORT of 127.0.0.1, or unix:PATH) go\n"
     "to the agent NAME, there to TARGET (HOST:PORT or unix:PATH) or to where\n"
     "the agent sends them; port 0 = any free one, printed as 'listening on\n"
     "ADDRESS for NAME'; repeatable",
     0, 0},
    {"token-file", PROG_TEXT, AT(credentials.tokens), "FILE",
     "who may register, one line each (see below); default: the environment\n"
     "variable REVDIAL_TOKEN holds a token that is good for every name",
     0, 0},
    {"auth-file", PROG_TEXT, AT(credentials.auth), "FILE",
     "the same for users with passwords, one line each (see below)", 0, 0},
    {"path", PROG_TEXT, AT(path), "PATH", "of the agents' HTTP request (default /revdial)", 0, 0},
    {"pick", PROG_CHOICE, AT(pick), "round-robin|least-streams",
     "how to choose between several agents of one name (default round-robin)", 0, 0},
    {"dial-timeout", PROG_DURATION, AT(dial_timeout_ms), "TIME",
     "how long a client may wait until the agent has reached the target\n"
     "(default 10s)",
     1, 3600000},
    {"wait", PROG_FLAG, AT(is_waiting), NULL,
     "when no agent of the name is there, wait for one up to --dial-timeout", 0, 0},
    {"drain", PROG_DURATION, AT(drain_ms), "TIME",
     "how long TERM waits for connections to end (default 30s)", 0, INT_MAX},
    {"keepalive", PROG_DURATION, AT(keepalive_ms), "TIME",
     "asks an agent that has been silent for so long for a sign of life (default\n"
     "15s)",
     1, 3600000},
    {"dead-after", PROG_DURATION, AT(dead_after_ms), "TIME",
     "gives it up so long after that (default 15s)", 1, 3600000},
    {"auth-failures", PROG_NUMBER, AT(auth_failures), "N",
     "wrong credentials in a row that one address may present before it gets\n"
     "429, then one every 5 s (default 10); 0: no limit, for when all agents\n"
     "come through one load balancer",
     0, 1 << 20},
    {"io-threads", PROG_NUMBER, AT(io_threads), "N", "that carry the bytes (default 1)", 1, 256},
    {"max-sessions", PROG_NUMBER, AT(max_sessions), "N", "agents at one time (default 65536)", 1,
     1 << 24},
};

static const char usage[] =
    "revdial-proxy lets agents behind NAT register and opens connections to what they serve.\n"
    "\n"
    "Usage: revdial-proxy --listen ADDRESS --token-file FILE --expose ADDRESS=NAME ...\n"
    "\n"
    "Options:\n";

static const char epilogue[] =
    "\n"
    "A line of the token file is TOKEN, or NAMES TOKEN: a comma list of globs that the token may\n"
    "register ('*' if it stands alone), and the token or 'sha256:' and its hash in hex. '#'\n"
    "starts a comment. Lines with the same NAMES are one identity, so that a token can be\n"
    "replaced by adding a line; a name that one identity holds is refused to the others.\n"
    "\n"
    "A line of the auth file is SCHEMES NAMES USER SECRET: a comma list of bearer, basic and\n"
    "digest; the names as above; who it is ('-' with bearer: as in the token file); and the\n"
    "password or token, up to the end of the line. For basic and bearer it may be 'sha256:' and\n"
    "its hash, for digest 'ha1:' and the SHA-256 of USER:revdial:PASSWORD, in hex.\n"
    "\n"
    "The first TERM or INT accepts nobody new and lets connections end; a second one ends the\n"
    "program at once. HUP reads both files again: agents whose line is gone are disconnected,\n"
    "all others stay. If a file is wrong, what it said before stays in force.\n"
    "\n"
    "Exit codes: 0 stopped, 1 failed, 2 usage, 4 cannot listen on an address.\n"
    "\n"
    "Examples:\n"
    "  Port 8080 here is what the agent cam-1 calls its target:\n"
    "    revdial-proxy --listen 0.0.0.0:7000 --token-file tokens --expose 0.0.0.0:8080=cam-1\n"
    "  Two services behind one agent, the second through a Unix socket:\n"
    "    revdial-proxy --listen 127.0.0.1:7000 --token-file tokens \\\n"
    "        --expose 8080=lab/10.1.0.5:80 --expose unix:/run/lab-ssh=lab/10.1.0.5:22\n";

// ------------------------------------------------------------------------------------------------
// Exposed addresses

typedef struct app app;

typedef struct expose {
    app *app;
    char address[LISTEN_ADDRESS_SIZE];  // as asked for, then as bound
    char name[65];
    const char *target;  // NULL = the agent's own
    int fd;
} expose;

struct app {
    settings s;
    prog_log log;
    revdial_proxy *proxy;
    expose *exposes;
    size_t expose_count;
    struct pollfd *polls;  // one for each, the pipe that a signal writes to, and `gone`
    int wake[2];
    int gone;              // an epoll of the clients that are being dialled for, or -1
    pthread_mutex_t lock;  // of what follows, and of which clients `gone` has
    time_t failure_second;
    unsigned failures;  // in that second
};

// Takes "ADDRESS=NAME[/TARGET]" apart. Returns NULL, or what is wrong with it.
static const char *expose_parse(expose *x, const char *spec)
{
    static const char set[] = "abcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t address_len = strcspn(spec, "="), name_len;
    const char *name = spec + address_len + 1;
    const char *local = strspn(spec, "0123456789") == address_len ? "127.0.0.1:" : "";
    if (!spec[address_len] || address_len == 0) return "is not ADDRESS=NAME[/TARGET]";
    if (address_len + strlen(local) >= sizeof x->address) return "the address is too long in";
    name_len = strcspn(name, "/");
    if (name_len == 0 || name_len >= sizeof x->name || strspn(name, set) != name_len)
        return "the name must be 1 to 64 of a-z 0-9 . _ - in";
    snprintf(x->address, sizeof x->address, "%s%.*s", local, (int)address_len, spec);
    memcpy(x->name, name, name_len);
    x->target = name[name_len] ? name + name_len + 1 : NULL;
    if (x->target && !prog_is_target(x->target))
        return "the target is not HOST:PORT or unix:PATH in";
    return NULL;
}

static int expose_listen(expose *x)
{
    const char *why;
    x->fd = listen_open(x->address, sizeof x->address, &why);
    if (x->fd >= 0) return 0;
    prog_logf(&x->app->log, REVDIAL_LOG_ERROR, "expose.failed", "cannot listen on %s: %s",
              x->address, why);
    return PROG_CANNOT_BIND;
}

// ------------------------------------------------------------------------------------------------
// Clients: accepted here, dialled for, and handed to the I/O threads

// One client from accept(2) to the end of its connection.
typedef struct client {
    const expose *via;
    char address[LISTEN_ADDRESS_SIZE];
    int fd;  // -1 once the library owns it
} client;

static void client_free(client *c)
{
    if (c->fd >= 0) close(c->fd);
    free(c);
}

// With this on, a client reads ECONNRESET when we close it or are killed, not EOF: an end that
// looks like a normal one could be taken for an empty answer.
static void client_abort_at_close(const client *c, int on)
{
    struct linger now = {on, 0};
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
}

// ---- clients that go away before the agent has reached the target: nobody needs their dial ----
// RST tells. FIN does not: a client may have finished sending and wait for the answer.

static void gone_open(app *a)
{
#ifdef __linux__
    a->gone = epoll_create1(EPOLL_CLOEXEC);
    if (a->gone < 0)
        prog_logf(&a->log, REVDIAL_LOG_WARN, "epoll.failed",
                  "%s: a client that leaves does not end its dial", strerror(errno));
#endif
    a->polls[a->expose_count + 1].fd = a->gone;  // poll(2) passes over -1
    a->polls[a->expose_count + 1].events = POLLIN;
}

static void gone_add_locked(app *a, int fd, int64_t dial)
{
#ifdef __linux__
    struct epoll_event ev = {.events = EPOLLET, .data.u64 = (uint64_t)dial};  // and HUP, as always
    if (a->gone >= 0) epoll_ctl(a->gone, EPOLL_CTL_ADD, fd, &ev);
#else
    (void)a, (void)fd, (void)dial;
#endif
}

static void gone_remove(app *a, int fd)
{
#ifdef __linux__
    struct epoll_event unused;
    pthread_mutex_lock(&a->lock);  // client_start() may not have added it yet
    if (a->gone >= 0) epoll_ctl(a->gone, EPOLL_CTL_DEL, fd, &unused);
    pthread_mutex_unlock(&a->lock);
#else
    (void)a, (void)fd;
#endif
}

static void gone_cancel(app *a)
{
#ifdef __linux__
    struct epoll_event events[ACCEPT_BATCH];
    int i, count = epoll_wait(a->gone, events, ACCEPT_BATCH, 0);
    for (i = 0; i < count; i++) revdial_dial_cancel(a->proxy, (int64_t)events[i].data.u64);
#else
    (void)a;
#endif
}

// Logs a failure that clients can cause, but only the first few times in a second.
static void log_failure(app *a, const char *event, const char *msg)
{
    unsigned skipped = 0;
    int is_logged;
    time_t now = time(NULL);
    pthread_mutex_lock(&a->lock);
    if (a->failure_second != now) {
        skipped = a->failures > FAILURES_PER_SECOND ? a->failures - FAILURES_PER_SECOND : 0;
        a->failure_second = now;
        a->failures = 0;
    }
    is_logged = ++a->failures <= FAILURES_PER_SECOND;
    pthread_mutex_unlock(&a->lock);
    if (skipped > 0)
        prog_logf(&a->log, REVDIAL_LOG_WARN, "log.skipped", "%u failures not logged", skipped);
    if (is_logged) prog_log_put(&a->log, REVDIAL_LOG_WARN, event, msg);
}

static void client_failed(client *c, const char *event, const char *why)
{
    const expose *x = c->via;
    char msg[512];
    snprintf(msg, sizeof msg, "%s for %s on %s: %s", x->name, c->address, x->address, why);
    log_failure(x->app, event, msg);
    client_free(c);
}

static void on_joined_end(void *ud, const uint64_t moved[2], const revdial_err *why)
{
    client *c = ud;
    prog_logf(&c->via->app->log, REVDIAL_LOG_DEBUG, "client.closed",
              "%s for %s: %llu bytes there, %llu back, %s", c->via->name, c->address,
              (unsigned long long)moved[0], (unsigned long long)moved[1], why ? why->msg : "EOF");
    client_free(c);
}

// On an I/O thread: the backend has accepted, or it is known why not.
static void on_dialled(void *ud, revdial_stream *st, const revdial_err *err)
{
    client *c = ud;
    revdial_join_opts opts = {.done = on_joined_end, .ud = c};
    int rc, fd = c->fd;
    gone_remove(c->via->app, fd);
    if (!st) {
        client_failed(c, "dial.failed", err->msg);
        return;
    }
    client_abort_at_close(c, 0);
    c->fd = -1;
    rc = revdial_join(st, fd, fd, &opts);
    if (rc != REVDIAL_OK) client_failed(c, "join.failed", revdial_strerror(rc));
}

static void client_start(const expose *x, int fd, const struct sockaddr *from)
{
    app *a = x->app;
    const settings *s = &a->s;
    revdial_dial_opts opts = {.target = x->target, .timeout_ms = s->dial_timeout_ms};
    struct sockaddr_storage local;
    socklen_t len = sizeof local;
    char local_text[LISTEN_ADDRESS_SIZE] = "";
    client *c = calloc(1, sizeof *c);
    int64_t rc;
    int on = 1;
    if (!c) {
        close(fd);
        return;
    }
    c->via = x;
    c->fd = fd;
    client_abort_at_close(c, 1);
    listen_print(c->address, sizeof c->address, from);
    if (getsockname(fd, (struct sockaddr *)&local, &len) == 0)
        listen_print(local_text, sizeof local_text, (struct sockaddr *)&local);
    if (c->address[0]) {
        opts.client_addr = c->address;
        opts.local_addr = local_text;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    } else {
        strcpy(c->address, "unix");
    }
    opts.pick = s->pick == 0 ? REVDIAL_PICK_ROUND_ROBIN : REVDIAL_PICK_LEAST_STREAMS;
    opts.flags = s->is_waiting ? REVDIAL_DIAL_WAIT : 0;
    pthread_mutex_lock(&a->lock);
    rc = revdial_dial_async(a->proxy, x->name, &opts, on_dialled, c);
    if (rc > 0) gone_add_locked(a, fd, rc);
    pthread_mutex_unlock(&a->lock);
    if (rc < 0) client_failed(c, "dial.failed", revdial_strerror((int)rc));
}

// Is there none left of something that others give back?
static int is_shortage(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

// Returns 0, or errno when descriptors or memory have run out, so that accepting must pause.
static int accept_batch(const expose *x)
{
    struct sockaddr_storage from;
    int i, fd;
    for (i = 0; i < ACCEPT_BATCH; i++) {
        socklen_t len = sizeof from;
        memset(&from, 0, sizeof from);
        fd = accept(x->fd, (struct sockaddr *)&from, &len);
        if (fd < 0 && is_shortage(errno)) return errno;
        if (fd < 0) return 0;
        if (listen_prepare_fd(fd) != 0)
            close(fd);
        else
            client_start(x, fd, (struct sockaddr *)&from);
    }
    return 0;
}

// HUP: what files hold now is for the agents that come from now on, and for those whose line is
// gone. What is wrong changes nothing.
static void app_reload(app *a)
{
    token_table tokens = {0};
    revdial_err err = {0};
    char byte[16];
    int rc;
    if (!prog_hup) return;
    prog_hup = 0;
    while (read(a->wake[0], byte, sizeof byte) > 0) continue;
    if (token_table_read(&tokens, &a->s.credentials, &err) != 0) {
        prog_log_error(&a->log, "tokens.unreadable", &err);
    } else {
        rc = revdial_proxy_set_credentials(a->proxy, tokens.rows, tokens.count, 1);
        prog_logf(&a->log, rc ? REVDIAL_LOG_ERROR : REVDIAL_LOG_INFO, "proxy.reload",
                  "credentials: %s", revdial_strerror(rc));
    }
    token_table_free(&tokens);
}

// Accepts until a signal asks to stop. Returns 0, or -1 with errno.
static int accept_loop(app *a)
{
    size_t i;
    while (!prog_stop) {
        int shortage = 0, rc;
        if (poll(a->polls, (nfds_t)a->expose_count + 2, -1) < 0 && errno != EINTR) return -1;
        app_reload(a);
        if (a->polls[a->expose_count + 1].revents) gone_cancel(a);
        for (i = 0; i < a->expose_count && !prog_stop; i++) {
            rc = a->polls[i].revents ? accept_batch(&a->exposes[i]) : 0;
            if (rc != 0) shortage = rc;
        }
        if (shortage == 0) continue;
        // The listeners stay readable, so without a pause this would spin. A signal ends it.
        log_failure(a, "accept.paused", strerror(shortage));
        if (poll(&a->polls[a->expose_count], 1, ACCEPT_PAUSE_MS) < 0 && errno != EINTR) return -1;
    }
    return 0;
}

// ------------------------------------------------------------------------------------------------
// Start and stop

static int app_open_proxy(app *a, const token_table *tokens)
{
    revdial_proxy_config cfg = {0};
    revdial_err err = {0};
    char *listens = prog_list_join(&a->s.listens);
    cfg.listen = listens;
    cfg.path = a->s.path;
    cfg.credentials = tokens->rows;
    cfg.credential_count = tokens->count;
    cfg.max_sessions = (unsigned)a->s.max_sessions;
    cfg.max_auth_failures = a->s.auth_failures ? a->s.auth_failures : -1;
    cfg.common.io_threads = (unsigned)a->s.io_threads;
    cfg.common.limits.keepalive_ms = a->s.keepalive_ms;
    cfg.common.limits.dead_after_ms = a->s.dead_after_ms;
    cfg.common.log = prog_log_put;
    cfg.common.log_ud = &a->log;
    cfg.common.log_level = a->log.level;
    if (listens) a->proxy = revdial_proxy_open(&cfg, &err);
    free(listens);
    if (a->proxy) return 0;
    prog_log_error(&a->log, "proxy.failed", &err);
    if (err.code == REVDIAL_ESYS && !is_shortage(err.sys)) return PROG_CANNOT_BIND;
    return err.code == REVDIAL_EINVAL ? PROG_USAGE : PROG_FAILED;
}

// Says what the system did not do for us; errno has the reason.
static int app_failed(app *a, const char *what)
{
    prog_logf(&a->log, REVDIAL_LOG_ERROR, "proxy.failed", "%s: %s", what, strerror(errno));
    return PROG_FAILED;
}

// Says where we listen, for people and for scripts that gave port 0.
static int app_announce(app *a)
{
    char address[LISTEN_ADDRESS_SIZE];
    unsigned i;
    for (i = 0; revdial_proxy_address(a->proxy, i, address, sizeof address) >= 0; i++)
        printf("listening on %s\n", address);
    for (i = 0; i < a->expose_count; i++)
        printf("listening on %s for %s\n", a->exposes[i].address, a->exposes[i].name);
    return fflush(stdout) == 0 ? 0 : app_failed(a, "cannot print the addresses");
}

static int app_open(app *a, const token_table *tokens)
{
    size_t i;
    int rc = 0;
    a->polls = calloc(a->expose_count + 2, sizeof *a->polls);
    if (!a->polls || pipe(a->wake) != 0 || listen_prepare_fd(a->wake[0]) != 0 ||
        listen_prepare_fd(a->wake[1]) != 0)
        return app_failed(a, "no pipe for signals");
    prog_wake_fd = a->wake[1];
    if (prog_catch_signals() != 0) return app_failed(a, "cannot catch signals");
    for (i = 0; i < a->expose_count && rc == 0; i++) {
        rc = expose_listen(&a->exposes[i]);
        a->polls[i].fd = a->exposes[i].fd;
        a->polls[i].events = POLLIN;
    }
    a->polls[a->expose_count].fd = a->wake[0];
    a->polls[a->expose_count].events = POLLIN;
    gone_open(a);
    if (rc == 0) rc = app_open_proxy(a, tokens);
    return rc == 0 ? app_announce(a) : rc;
}

static void app_stop_accepting(app *a)
{
    size_t i;
    for (i = 0; i < a->expose_count; i++) {
        expose *x = &a->exposes[i];
        if (x->fd < 0) continue;
        close(x->fd);
        x->fd = -1;
        if (listen_is_unix(x->address) && unlink(x->address + 5) != 0)
            prog_logf(&a->log, REVDIAL_LOG_WARN, "unlink.failed", "%s", x->address);
    }
}

static int app_run(app *a)
{
    int rc = accept_loop(a);
    if (rc != 0) prog_logf(&a->log, REVDIAL_LOG_ERROR, "proxy.failed", "%s", strerror(errno));
    app_stop_accepting(a);
    prog_logf(&a->log, REVDIAL_LOG_INFO, "proxy.draining", "for at most %d ms", a->s.drain_ms);
    if (revdial_proxy_drain(a->proxy, a->s.drain_ms) != REVDIAL_OK)
        prog_logf(&a->log, REVDIAL_LOG_WARN, "proxy.cut", "some connections had not ended");
    prog_logf(&a->log, REVDIAL_LOG_INFO, "proxy.stopped", "stopped");
    return rc == 0 ? PROG_STOPPED : PROG_FAILED;
}

static void app_free(app *a)
{
    revdial_proxy_close(a->proxy);  // ends all connections: on_joined_end() has run for each
    app_stop_accepting(a);
    prog_wake_fd = -1;
    if (a->gone >= 0) close(a->gone);
    if (a->wake[0] >= 0) close(a->wake[0]);
    if (a->wake[1] >= 0) close(a->wake[1]);
    free(a->polls);
    free(a->exposes);
    free(a->s.listens.items);
    free(a->s.exposes.items);
}

// Takes the settings apart. Returns 0 or PROG_USAGE.
static int app_prepare(app *a, const prog_cli *cli, token_table *tokens)
{
    revdial_err err = {0};
    const char *problem;
    size_t i;
    if (a->s.listens.count == 0) return prog_usage_error(cli, "listen", "missing", NULL);
    a->exposes = calloc(a->s.exposes.count + 1, sizeof *a->exposes);
    if (!a->exposes) return PROG_FAILED;
    for (i = 0; i < a->s.exposes.count; i++) {
        a->exposes[i].app = a;
        a->exposes[i].fd = -1;
        problem = expose_parse(&a->exposes[i], a->s.exposes.items[i]);
        if (problem) return prog_usage_error(cli, "expose", problem, a->s.exposes.items[i]);
    }
    a->expose_count = i;
    if (token_table_read(tokens, &a->s.credentials, &err) == 0) return 0;
    return prog_usage_error(cli, a->s.credentials.auth ? "auth-file" : "token-file", err.msg, NULL);
}

int main(int argc, char **argv)
{
    app a = {.wake = {-1, -1}, .gone = -1, .lock = PTHREAD_MUTEX_INITIALIZER};
    prog_cli cli = {.program = "revdial-proxy", .usage = usage, .epilogue = epilogue};
    token_table tokens = {0};
    int rc;
    (void)argc;
    a.s.drain_ms = 30000;
    a.s.dial_timeout_ms = 10000;
    a.s.auth_failures = 10;
    cli.options = options;
    cli.option_count = sizeof options / sizeof options[0];
    cli.settings = &a.s;
    rc = prog_parse(&cli, argv);
    a.log = prog_log_of(&cli.common);
    if (rc < 0 && (rc = app_prepare(&a, &cli, &tokens)) == 0) {
        prog_raise_descriptor_limit(&a.log);
        rc = app_open(&a, &tokens);
        token_table_free(&tokens);
        if (rc == 0) rc = app_run(&a);
    }
    token_table_free(&tokens);
    app_free(&a);
    return rc;
}
