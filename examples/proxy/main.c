// revdial-proxy: agents register here, and each exposed address leads to one of them. See --help.
//
// The library's I/O threads accept clients, dial for them and carry the bytes; this one waits for
// signals.
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dial.h"
#include "settings.h"
#include "sockets.h"
#include "watch.h"

enum {
    ANNOUNCE_MS = 1000  // for somebody to read what is printed: longer than a busy machine takes
};

typedef struct app {
    config *now;
    prog_log log;
    revdial_proxy *proxy;
    revdial_tls *tls;
    sockets sockets;
    int wake[2];  // a pipe that a signal writes to
    watch *watch;
    watch_pages_ud pages;
    prog_admin *admin;
} app;

// Is there none left of something that others give back?
static int is_shortage(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

// HUP: what files hold now is for the agents that come from now on, and for those whose line is
// gone. What is wrong changes nothing.
static void app_reload(app *a)
{
    token_table tokens = {0};
    revdial_err err = {0};
    int rc;
    prog_hup = 0;
    if (token_table_read(&tokens, &a->now->s.credentials, &err) != 0) {
        prog_log_error(&a->log, "tokens.unreadable", &err);
    } else {
        rc = revdial_proxy_replace_credentials(a->proxy, tokens.rows, tokens.count,
                                               REVDIAL_END_STALE, &err);
        prog_logf(&a->log, rc ? REVDIAL_LOG_ERROR : REVDIAL_LOG_INFO, "proxy.reload",
                  "credentials: %s", rc ? err.msg : "replaced");
        if (rc == 0) watch_rows(a->watch, tokens.rows, tokens.count);
    }
    token_table_free(&tokens);
    prog_tls_reload(a->tls, &a->log);
}

// USR2
static void app_log_status(app *a)
{
    revdial_stats stats;
    prog_usr2 = 0;
    revdial_proxy_get_stats(a->proxy, &stats);
    prog_log_status(&a->log, &stats);
}

// Until a signal asks to stop. Returns 0, or -1 with errno.
static int app_wait(app *a)
{
    struct pollfd wake = {.fd = a->wake[0], .events = POLLIN};
    char bytes[16];
    while (!prog_stop) {
        int r = poll(&wake, 1, -1);
        if (r < 0 && errno != EINTR) return -1;
        while (r > 0 && read(a->wake[0], bytes, sizeof bytes) > 0) continue;
        if (prog_hup) app_reload(a);
        if (prog_usr2) app_log_status(a);
    }
    return 0;
}

// ------------------------------------------------------------------------------------------------
// Start and stop

static void app_on_session(void *ud, revdial_session *s, int state, const revdial_err *why)
{
    app *a = ud;
    watch_session(a->watch, s, state, why);
    sockets_note(&a->sockets, s, state);
}

// What the metrics may be labelled with.
static int app_open_watch(app *a)
{
    const config *c = a->now;
    a->watch = watch_new();
    if (!a->watch) return -1;
    for (size_t i = 0; i < c->expose_count; i++) watch_name(a->watch, c->exposes[i].name);
    watch_rows(a->watch, c->tokens.rows, c->tokens.count);
    return 0;
}

static int app_open_admin(app *a)
{
    const prog_admin_config cfg = {&a->now->cli.common, watch_pages, &a->pages, &a->log};
    a->pages = (watch_pages_ud){a->watch, a->proxy};
    return prog_admin_start(&a->admin, &cfg);
}

static int app_open_proxy(app *a)
{
    const config *c = a->now;
    revdial_proxy_config cfg = c->s.cfg;
    revdial_err err = {0};
    char *listens = prog_list_join(&c->s.listens), *origins = prog_list_join(&c->s.origins);
    revdial_expose *exposes = calloc(c->expose_count + 1, sizeof *exposes);
    for (size_t i = 0; exposes && i < c->expose_count; i++) exposes[i] = c->exposes[i].x;
    cfg.exposes = c->expose_count ? exposes : NULL;
    cfg.expose_count = c->expose_count;
    cfg.listen = listens;
    cfg.origins = origins;
    cfg.credentials = c->tokens.rows;
    cfg.credential_count = c->tokens.count;
    cfg.max_auth_failures = prog_or_never(cfg.max_auth_failures);
    cfg.on_session = app_on_session;
    cfg.ud = a;
    cfg.common.tls = a->tls;
    prog_configure(&c->cli.common, &cfg.common);
    prog_log_config(&a->log, &cfg.common);
    if (listens && origins && exposes) a->proxy = revdial_proxy_start(&cfg, &err);
    free(listens);
    free(origins);
    free(exposes);
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

// Prints a line on stdout, where often the pipe of a log is that nobody reads.
//   returns  1, 0 if it found no room, or -1
static int app_print(app *a, const char *line)
{
    struct pollfd out = {STDOUT_FILENO, POLLOUT, 0};
    size_t len = strlen(line);  // below PIPE_BUF: all of it has room or nothing
    int r;
    do r = poll(&out, 1, ANNOUNCE_MS);
    while (r < 0 && errno == EINTR);
    if (r == 0)
        prog_logf(&a->log, REVDIAL_LOG_WARN, "stdout.full", "stdout is not read: %.*s",
                  (int)len - 1, line);
    if (r == 0) return 0;
    if (r > 0 && write(STDOUT_FILENO, line, len) == (ssize_t)len) return 1;
    app_failed(a, "cannot print the addresses");
    return -1;
}

// Says where we listen, for people and for scripts that gave port 0.
static int app_announce(app *a)
{
    char address[ADDRESS_SIZE], line[ADDRESS_SIZE + ROUTE_NAME_SIZE + 32];
    unsigned i, count = 0;
    int r = 1;
    while (revdial_proxy_address(a->proxy, count, address, sizeof address) >= 0) count++;
    for (i = 0; r > 0 && i < count; i++) {
        size_t at = i + a->now->expose_count - count;  // those of the exposed ports come last
        revdial_proxy_address(a->proxy, i, address, sizeof address);
        if (i + a->now->expose_count < count)
            snprintf(line, sizeof line, "listening on %s\n", address);
        else
            snprintf(line, sizeof line, "listening on %s for %s\n", address,
                     a->now->exposes[at].name);
        r = app_print(a, line);
    }
    return r < 0 ? PROG_FAILED : 0;
}

static int app_open_sockets(app *a)
{
    revdial_err err = {0};
    const char *dir = a->now->s.sockets;
    if (!dir || sockets_open(&a->sockets, dir, &err) == 0) return 0;
    return prog_usage_error(&a->now->cli, "sockets", err.msg, NULL);
}

static int app_open(app *a)
{
    int rc;
    a->tls = a->now->tls;
    a->now->tls = NULL;
    if (prog_wake_open(a->wake) != 0) return app_failed(a, "no pipe for signals");
    if (prog_catch_signals() != 0) return app_failed(a, "cannot catch signals");
    if (app_open_watch(a) != 0) return app_failed(a, "no memory for the metrics");
    if (app_open_sockets(a) != 0) return PROG_USAGE;
    rc = app_open_proxy(a);
    if (rc == 0 && sockets_start(&a->sockets, a->proxy, &a->now->like, &a->log) != 0)
        return app_failed(a, "no thread for --sockets");
    if (rc == 0) rc = app_open_admin(a);
    token_table_free(&a->now->tokens);
    return rc == 0 ? app_announce(a) : rc;
}

static int app_run(app *a)
{
    int rc = app_wait(a), drain_ms = a->now->cli.common.drain_ms;
    if (rc != 0) app_failed(a, "waiting for signals");
    sockets_stop(&a->sockets);
    prog_logf(&a->log, REVDIAL_LOG_INFO, "proxy.draining", "for at most %d ms", drain_ms);
    if (revdial_proxy_drain(a->proxy, drain_ms) != REVDIAL_OK)
        prog_logf(&a->log, REVDIAL_LOG_WARN, "proxy.cut",
                  "some connections were still open when --drain ended");
    prog_log_put(&a->log, REVDIAL_LOG_INFO, "proxy.stopped", "");
    return rc == 0 ? PROG_STOPPED : PROG_FAILED;
}

static void app_free(app *a)
{
    prog_admin_stop(a->admin);
    sockets_stop(&a->sockets);
    revdial_proxy_stop(a->proxy);  // ends all connections: no hook runs any more
    sockets_free(&a->sockets);
    watch_free(a->watch);
    prog_tls_free(a->tls);
    prog_wake_close(a->wake);
    config_close(a->now);
}

// What works, and is not what its operator wants.
static void app_warn(app *a)
{
    const settings *s = &a->now->s;
    prog_warn_settings(&a->log, &a->now->cli);
    prog_warn_readable(&a->log, s->credentials.tokens);
    prog_warn_readable(&a->log, s->credentials.auth);
    prog_warn_readable(&a->log, s->tls.key);
    if (a->now->expose_count == 0 && !s->sockets)
        prog_logf(&a->log, REVDIAL_LOG_WARN, "expose.none",
                  "there is no --expose: agents can register, but no client can reach them");
}

int main(int argc, char **argv)
{
    config first;
    app a = {.now = &first, .wake = {-1, -1}};
    int rc;
    prog_standard_streams();
    if (argc > 1 && strcmp(argv[1], "status") == 0)
        return prog_status_main("revdial-proxy", argv + 2);
    if (argc > 1 && strcmp(argv[1], "dial") == 0) return dial_main(argv + 2);
    rc = config_open(&first, argv, NULL);
    prog_log_open_as(&a.log, &first.cli.common);
    if (rc < 0 && first.cli.common.is_checking) rc = prog_print_checked(&first.cli);
    if (rc < 0) {
        rc = prog_log_start(&a.log) == 0 ? PROG_STOPPED : app_failed(&a, "no thread for the log");
        prog_raise_descriptor_limit(&a.log);
        if (rc == 0) rc = app_open(&a);
        if (rc == 0) app_warn(&a);
        if (rc == 0) rc = app_run(&a);
    }
    app_free(&a);
    return prog_log_finish(&a.log, rc);
}
