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
#include "fetch.h"
#include "pages.h"
#include "reload.h"
#include "sockets.h"

typedef struct app {
    live live;
    prog_log log;
    prog_watch watch;
    sockets sockets;
    int wake[2];  // a pipe that a signal writes to
    watch *metrics;
    pages pages;
    prog_admin *admin;
    int64_t until_ms;  // the drain lasts at most
    int is_draining, is_whole;
    atomic_int is_drained;
} app;

// Is there none left of something that others give back?
static int is_shortage(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

// What works, and is not what its operator wants.
static void app_warn(app *a)
{
    const settings *s = &a->live.now->s;
    prog_warn_settings(&a->log, &a->live.now->cli);
    prog_warn_readable(&a->log, s->credentials.tokens);
    prog_warn_readable(&a->log, s->credentials.auth);
    prog_warn_readable(&a->log, s->credentials.peers);
    prog_warn_readable(&a->log, s->tls.key);
    if (a->live.now->expose_count == 0 && !s->sockets)
        prog_logf(&a->log, REVDIAL_LOG_WARN, "expose.none",
                  "there is no --expose: agents can register, but no client can reach them");
}

// What the metrics may be labelled with.
static void app_label(app *a)
{
    const config *c = a->live.now;
    for (size_t i = 0; i < c->expose_count; i++)
        if (c->exposes[i].x.name) watch_name(a->metrics, c->exposes[i].name);
    watch_rows(a->metrics, c->tokens.rows, c->tokens.count);
}

// HUP, or files that have changed.
static void app_reload(app *a)
{
    prog_hup = 0;
    if (!a->is_draining) prog_notify(&a->log, "RELOADING=1");
    prog_watch_begin(&a->watch, &a->live.now->cli);
    if (a->is_draining) {
        live_revoke(&a->live);
        return;
    }
    if (live_reload(&a->live, &a->watch)) {
        prog_admin_renew(a->admin);
        sockets_replace(&a->sockets, &a->live.now->like);
        app_label(a);
        app_warn(a);
    }
    token_table_free(&a->live.now->tokens);
    prog_notify(&a->log, "READY=1");
}

// USR2
static void app_log_status(app *a)
{
    revdial_stats stats;
    prog_usr2 = 0;
    revdial_proxy_get_stats(a->live.proxy, &stats);
    prog_log_status(&a->log, &stats);
}

// How long the main thread may sleep; -1 = until a signal comes.
static int app_pause_ms(const app *a)
{
    int watchdog_ms = a->is_draining ? 0 : prog_watchdog_ms();
    if (!a->live.now->cli.common.is_watching) return watchdog_ms ? watchdog_ms : -1;
    return watchdog_ms && watchdog_ms < PROG_WATCH_MS ? watchdog_ms : PROG_WATCH_MS;
}

// A supervisor that asked for it hears that threads still let go of their locks.
static void app_watchdog(app *a)
{
    revdial_stats stats;
    if (a->is_draining || prog_watchdog_ms() == 0) return;
    revdial_proxy_get_stats(a->live.proxy, &stats);
    prog_notify(&a->log, "WATCHDOG=1");
}

// Heeds signals until that is set. Returns 0, or -1 with errno.
static int app_wait(app *a, atomic_int *is_over)
{
    struct pollfd wake = {.fd = a->wake[0], .events = POLLIN};
    char bytes[16];
    while (!atomic_load(is_over)) {
        if (poll(&wake, 1, app_pause_ms(a)) < 0 && errno != EINTR) return -1;
        while (read(a->wake[0], bytes, sizeof bytes) > 0) continue;
        if (a->live.now->cli.common.is_watching && prog_watch_look(&a->watch, &a->live.now->cli))
            prog_hup = 1;
        if (prog_hup) app_reload(a);
        if (prog_usr2) app_log_status(a);
        app_watchdog(a);
    }
    return 0;
}

// ------------------------------------------------------------------------------------------------
// Start and stop

static void app_on_session(void *ud, revdial_session *s, int state, const revdial_err *why)
{
    app *a = ud;
    watch_session(a->metrics, s, state, why);
    sockets_note(&a->sockets, s, state);
    hosts_note(&a->live.hosts, s, state);
    health_note(a->live.health, s, state);
    if (state == REVDIAL_DRAINING) http_leave(a->live.http, s, NULL);
}

static void app_on_stream(void *ud, revdial_stream *st)
{
    app *a = ud;
    allow_serve(&a->live.allow, st);
}

static int app_open_admin(app *a)
{
    const prog_common *common = &a->live.now->cli.common;
    const prog_admin_config cfg = {common, pages_served, &a->pages, &a->log};
    a->pages = (pages){a->metrics, &a->live};
    return prog_admin_start(&a->admin, &cfg);
}

static int app_open_proxy(app *a)
{
    const config *c = a->live.now;
    revdial_proxy_config cfg = c->proxy;
    revdial_err err = {0};
    cfg.on_session = app_on_session;
    cfg.on_stream = app_on_stream;
    cfg.ud = a;
    cfg.common.tls = a->live.tls;
    cfg.auth = external_use(&a->live.external, a->live.now->external);
    cfg.auth_ud = &a->live.external;
    a->live.now->external = NULL;
    prog_log_config(&a->log, &cfg.common);
    a->live.proxy = revdial_proxy_start(&cfg, &err);
    for (size_t i = 0; i < c->expose_count; i++) c->exposes[i].id = (int64_t)i + 1;
    if (a->live.proxy) return 0;
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
    char address[ADDRESS_SIZE], line[ADDRESS_SIZE + ROUTE_NAME_SIZE + 32];
    unsigned i, count = 0;
    int r = 1;
    while (revdial_proxy_address(a->live.proxy, count, address, sizeof address) >= 0) count++;
    for (i = 0; r > 0 && i < count; i++) {
        size_t at = i + a->live.now->expose_count - count;  // those of the exposed ports come last
        revdial_proxy_address(a->live.proxy, i, address, sizeof address);
        if (i + a->live.now->expose_count < count)
            snprintf(line, sizeof line, "listening on %s\n", address);
        else
            snprintf(line, sizeof line, "listening on %s for %s\n", address,
                     a->live.now->exposes[at].name);
        r = prog_announce(&a->log, line);
    }
    return r < 0 ? app_failed(a, "cannot print the addresses") : 0;
}

// The threads of --http are there before any client or agent can be.
static int app_open_http(app *a)
{
    const config *c = a->live.now;
    http_config cfg = {.routes = &a->live.routes, .log = &a->log};
    for (size_t i = 0; i < c->expose_count; i++) {
        if (c->exposes[i].x.route != front_http.route) continue;
        cfg.half_closed_ms = c->exposes[i].x.half_closed_ms;
        cfg.threads = c->s.cfg.common.io_threads ? c->s.cfg.common.io_threads : 1;
    }
    cfg.has_proxy_header = c->s.has_http_header;
    if (cfg.threads) a->live.http = http_start(&cfg);
    return cfg.threads && !a->live.http ? -1 : 0;
}

static int app_open_peers(app *a)
{
    peers *p = &a->live.peers;
    int rc;
    if (peers_open(p, a->live.first, a->live.proxy, &a->log) != 0)
        return app_failed(a, "no lock for --peer");
    rc = peers_prepare(p, a->live.now);
    if (rc == 0) peers_commit(p, a->live.now);
    return rc;
}

static int app_open_sockets(app *a)
{
    revdial_err err = {0};
    const char *dir = a->live.now->s.sockets;
    if (!dir || sockets_open(&a->sockets, dir, &err) == 0) return 0;
    return prog_usage_error(&a->live.now->cli, "sockets", err.msg, NULL);
}

static int app_open(app *a)
{
    int rc;
    a->live.tls = a->live.now->tls;
    a->live.now->tls = NULL;
    if (app_open_http(a) != 0) return app_failed(a, "no threads for --http");
    if (live_open(&a->live) != 0) return app_failed(a, "no lock for the routes");
    if (external_open(&a->live.external, &a->log) != 0)
        return app_failed(a, "no lock for --auth-url");
    if (allow_open(&a->live.allow, &a->log, a->live.now->like.half_closed_ms) != 0)
        return app_failed(a, "no lock for --allow");
    allow_use(&a->live.allow, a->live.now->allow);
    a->live.now->allow = NULL;
    if (prog_pipe_open(a->wake) != 0) return app_failed(a, "no pipe for signals");
    prog_signals_wake(a->wake[1]);
    if (prog_catch_signals() != 0) return app_failed(a, "cannot catch signals");
    a->metrics = watch_new();
    if (!a->metrics) return app_failed(a, "no memory for the metrics");
    app_label(a);
    a->live.health = health_new(a->metrics, &a->log);
    if (!a->live.health) return app_failed(a, "no memory for health checks");
    if (app_open_sockets(a) != 0) return PROG_USAGE;
    rc = app_open_proxy(a);
    if (rc == 0) http_use(a->live.http, a->live.proxy);
    if (rc == 0 && sockets_start(&a->sockets, a->live.proxy, &a->live.now->like, &a->log) != 0)
        return app_failed(a, "no thread for --sockets");
    if (rc == 0) rc = app_open_peers(a);
    if (rc == 0 &&
        health_set(a->live.health, a->live.proxy, a->live.http, &a->live.now->health) != 0)
        return app_failed(a, "no thread for --health");
    if (rc == 0) rc = app_open_admin(a);
    token_table_free(&a->live.now->tokens);
    if (rc == 0) rc = app_announce(a);
    if (rc == 0) prog_notify(&a->log, "READY=1");
    return rc;
}

static int app_left_ms(const app *a)
{
    int64_t left_ms = a->until_ms - fetch_now_ms();
    return left_ms > 0 ? (int)left_ms : 0;
}

static void *app_drain(void *ud)
{
    app *a = ud;
    a->is_whole = revdial_proxy_drain(a->live.proxy, app_left_ms(a)) == REVDIAL_OK;
    // What backends have brought may still be on its way to clients, who take their time.
    a->is_whole &= http_stop(a->live.http, app_left_ms(a));
    atomic_store(&a->is_drained, 1);
    if (write(a->wake[1], "", 1) < 0) {
        // The pipe is full: then its reader wakes up without this byte.
    }
    return NULL;
}

// Another thread waits for what runs: this one heeds signals also now.
static void app_drain_heeding(app *a)
{
    pthread_t thread;
    a->is_draining = 1;
    if (prog_thread_start(&thread, app_drain, a) != 0) {
        app_drain(a);
        return;
    }
    app_wait(a, &a->is_drained);
    pthread_join(thread, NULL);
}

static int app_run(app *a)
{
    int rc, drain_ms, left_ms;
    rc = app_wait(a, &prog_stop);
    drain_ms = a->live.now->cli.common.drain_ms;
    a->until_ms = fetch_now_ms() + drain_ms;
    if (rc != 0) app_failed(a, "waiting for signals");
    prog_notify(&a->log, "STOPPING=1");
    sockets_stop(&a->sockets);
    health_stop(a->live.health);
    http_drain(a->live.http);
    prog_logf(&a->log, REVDIAL_LOG_INFO, "proxy.draining", "for at most %d ms", drain_ms);
    app_drain_heeding(a);
    if (!a->is_whole)
        prog_logf(&a->log, REVDIAL_LOG_WARN, "proxy.cut",
                  "some connections were still open when --drain ended");
    prog_admin_stop(a->admin);  // its pages look at the peers
    a->admin = NULL;
    left_ms = app_left_ms(a);
    peers_stop(&a->live.peers, left_ms > PEERS_LAST_MS ? left_ms : PEERS_LAST_MS);
    prog_log_put(&a->log, REVDIAL_LOG_INFO, "proxy.stopped", "");
    return rc == 0 ? PROG_STOPPED : PROG_FAILED;
}

static void app_free(app *a)
{
    prog_admin_stop(a->admin);
    sockets_stop(&a->sockets);
    health_stop(a->live.health);
    http_stop(a->live.http, 0);
    peers_stop(&a->live.peers, 0);
    revdial_proxy_stop(a->live.proxy);  // ends all connections: no hook runs any more
    peers_close(&a->live.peers);
    http_free(a->live.http);
    health_free(a->live.health);
    sockets_free(&a->sockets);
    watch_free(a->metrics);
    prog_tls_free(a->live.tls);
    prog_signals_wake(-1);
    prog_pipe_close(a->wake);
    prog_watch_end(&a->watch);
    live_free(&a->live);
}

int main(int argc, char **argv)
{
    app a = {.wake = {-1, -1}};
    config *first;
    int rc;
    prog_standard_streams();
    if (argc > 1 && strcmp(argv[1], "status") == 0)
        return prog_status_main("revdial-proxy", argv + 2);
    if (argc > 1 && strcmp(argv[1], "dial") == 0) return dial_main(argv + 2);
    first = calloc(1, sizeof *first);
    if (!first || prog_catch_requests() != 0) return PROG_FAILED;
    rc = config_open(first, argv, NULL);
    prog_watch_begin(&a.watch, &first->cli);
    a.live = (live){.argv = argv, .log = &a.log, .first = first, .now = first};
    prog_log_open_as(&a.log, &first->cli.common);
    if (rc < 0 && first->cli.common.is_checking) rc = prog_print_checked(&first->cli);
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
