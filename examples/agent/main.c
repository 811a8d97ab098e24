// revdial-agent: makes the services behind a NAT reachable for a revdial-proxy. See --help.
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <stdatomic.h>

#include "doctor.h"
#include "forward.h"
#include "links.h"
#include "settings.h"

static int exit_code(int rc)
{
    if (rc == REVDIAL_OK) return PROG_STOPPED;
    if (rc == REVDIAL_EAUTH || rc == REVDIAL_EDENIED) return PROG_AUTH_REJECTED;
    return rc == REVDIAL_EINVAL ? PROG_USAGE : PROG_FAILED;
}

// The agent at work, as the main thread sees it.
typedef struct running {
    char **argv;
    prog_log *log;
    config *first;  // what the agent was started with, until the end
    config *now;    // what HUP has read last, or the first; the main thread replaces it, under:
    pthread_mutex_t lock;
    prog_watch watch;
    revdial_agent *agent;
    links links;
    forward forward;
    prog_admin *admin;
    int wake[2];
    atomic_int is_over;  // by itself
    int is_draining, drain_ms;
    atomic_int is_drained;
    revdial_err why;     // written before it
} running;

// A byte that ends the wait of the main thread.
static void running_wake(int fd)
{
    if (write(fd, "", 1) < 0) {
        // The pipe is full: then its reader wakes up without this byte.
    }
}

// On the I/O thread.
static void on_state(void *ud, int state, const revdial_err *why, int retry_in_ms)
{
    running *r = ud;
    (void)retry_in_ms;
    links_state(&r->links, state, why);
    if (state != REVDIAL_STOPPED) return;
    if (why) r->why = *why;
    atomic_store(&r->is_over, 1);
    running_wake(r->wake[1]);
}

// On an I/O thread.
static int on_target(void *ud, revdial_target_request *q)
{
    running *r = ud;
    if (prog_stream_is_asked(q)) return 0;
    pthread_mutex_lock(&r->lock);
    config_serve(r->now, q);
    pthread_mutex_unlock(&r->lock);
    return 0;
}

// Tries what files say now. Returns 0 or an exit code: nothing has changed then.
static int running_take(running *r, config *next)
{
    revdial_err err = {0};
    int rc = prog_refuse_frozen(&r->first->cli, &next->cli);
    if (rc != 0) return rc;
    if (strcmp(r->first->via, next->via) != 0)
        return prog_usage_error(&next->cli, "via-file",
                                "cannot change while the program runs: restart it", NULL);
    if (revdial_agent_replace_allow(r->agent, next->agent.allow, &err) != REVDIAL_OK)
        return prog_complain(&next->cli, "%s", err.msg);
    if (revdial_agent_replace_session_limits(r->agent, &next->agent.common.limits, &err))
        prog_log_error(r->log, "limits.unchanged", &err);
    prog_tls_take(r->first->tls, &next->tls);
    return 0;
}

// HUP, or files that have changed: what they say now is for what happens from now on. What is wrong
// changes nothing.
static void running_reload(running *r)
{
    config *next = calloc(1, sizeof *next), *old = r->now;
    int rc;
    prog_hup = 0;  // before anything is read, for the next one may come meanwhile
    if (!r->is_draining) prog_notify(r->log, "RELOADING=1");
    prog_watch_begin(&r->watch, &r->now->cli);
    rc = next ? config_open(next, r->argv, r->log) : PROG_FAILED;
    if (rc < 0) rc = running_take(r, next);
    prog_logf(r->log, rc ? REVDIAL_LOG_ERROR : REVDIAL_LOG_INFO, "agent.reload", "%s",
              rc ? "nothing was changed" : "allow list, limits and certificates read");
    pthread_mutex_lock(&r->lock);
    if (rc == 0) r->now = next;
    pthread_mutex_unlock(&r->lock);
    if (rc == 0) prog_admin_renew(r->admin);
    if (rc != 0 && next) prog_watch_refuse(&r->watch, &next->cli);
    if (rc == 0) next = old == r->first ? NULL : old;
    if (next) config_close(next);
    free(next);
    if (!r->is_draining) prog_notify(r->log, "READY=1");
}

// USR2
static void running_log_status(running *r)
{
    revdial_stats stats;
    prog_usr2 = 0;
    revdial_agent_get_stats(r->agent, &stats);
    prog_log_status(r->log, &stats);
}

// How long the main thread may sleep; -1 = until something happens.
static int running_pause_ms(const running *r)
{
    int watchdog_ms = r->is_draining ? 0 : prog_watchdog_ms();
    if (!r->now->cli.common.is_watching) return watchdog_ms ? watchdog_ms : -1;
    return watchdog_ms && watchdog_ms < PROG_WATCH_MS ? watchdog_ms : PROG_WATCH_MS;
}

// A supervisor that asked for it hears that threads still let go of their locks.
static void running_watchdog(running *r)
{
    revdial_stats stats;
    if (r->is_draining || prog_watchdog_ms() == 0) return;
    revdial_agent_get_stats(r->agent, &stats);
    prog_notify(r->log, "WATCHDOG=1");
}

// Is it time for what comes next: the drain, or after that the end?
static int running_is_done(running *r)
{
    if (r->is_draining) return atomic_load(&r->is_drained);
    return prog_stop || atomic_load(&r->is_over);
}

// Waits for the end, the agent's own or by a signal, and heeds other signals meanwhile.
static void running_wait(running *r)
{
    struct pollfd p = {r->wake[0], POLLIN, 0};
    char bytes[16];
    while (!running_is_done(r)) {
        if (poll(&p, 1, running_pause_ms(r)) > 0)
            while (read(r->wake[0], bytes, sizeof bytes) > 0) continue;
        if (r->now->cli.common.is_watching && prog_watch_look(&r->watch, &r->now->cli))
            prog_hup = 1;
        if (prog_hup) running_reload(r);
        if (prog_usr2) running_log_status(r);
        running_watchdog(r);
    }
}

static void *running_drain_run(void *ud)
{
    running *r = ud;
    revdial_agent_drain(r->agent, r->drain_ms);
    atomic_store(&r->is_drained, 1);
    running_wake(r->wake[1]);
    return NULL;
}

// Another thread waits for what runs: this one heeds signals also now.
static void running_drain(running *r)
{
    pthread_t thread;
    r->is_draining = 1;
    r->drain_ms = r->now->cli.common.drain_ms;
    if (prog_thread_start(&thread, running_drain_run, r) != 0) {
        running_drain_run(r);
        return;
    }
    running_wait(r);
    pthread_join(thread, NULL);
}

// Serves --admin while the agent works, also while it drains. Returns what revdial_serve() would.
static int running_serve(running *r, int *exit_status)
{
    const prog_admin_config cfg = {&r->first->cli.common, links_pages, &r->links, r->log};
    int rc = REVDIAL_OK, half_closed_ms = r->first->agent.half_closed_timeout_ms;
    r->links.agent = r->agent;
    *exit_status = prog_admin_start(&r->admin, &cfg);
    if (!*exit_status && forward_start(&r->forward, r->agent, half_closed_ms) != 0) {
        prog_logf(r->log, REVDIAL_LOG_ERROR, "forward.failed",
                  "there is no pipe or thread for --forward");
        *exit_status = PROG_FAILED;
    }
    if (!*exit_status) prog_notify(r->log, "READY=1");
    if (!*exit_status) running_wait(r);
    if (!*exit_status) rc = r->why.code;
    prog_notify(r->log, "STOPPING=1");
    forward_stop(&r->forward);
    running_drain(r);
    forward_close(&r->forward);
    prog_admin_stop(r->admin);
    revdial_agent_stop(r->agent, 0);
    return rc;
}

// Listens for --forward, and says where. Returns 0 or an exit code.
static int running_listen(running *r)
{
    const prog_list *specs = &r->first->s.forwards;
    revdial_err err = {0};
    int rc = forward_open(&r->forward, specs, r->log, &err);
    if (rc == PROG_USAGE) return prog_usage_error(&r->first->cli, "forward", err.msg, NULL);
    if (rc != 0) prog_logf(r->log, REVDIAL_LOG_ERROR, "forward.failed", "%s", err.msg);
    for (size_t i = 0; rc == 0 && i < r->forward.count; i++) {
        char address[PROG_LISTENER_SIZE], line[PROG_LISTENER_SIZE + 512];
        const char *target = r->forward.ports[i].target;
        prog_listener_text(&r->forward.ports[i].at, address, sizeof address);
        snprintf(line, sizeof line, "listening on %s for %s\n", address, target);
        if (prog_announce(r->log, line) <= 0) break;
    }
    return rc;
}

// Returns an exit code.
static int run(running *r)
{
    sources from = {r->first, r->log};
    revdial_agent_config cfg = r->first->agent;
    int rc = REVDIAL_ESYS, status = PROG_STOPPED;
    sigset_t before;
    cfg.credential_ud = &from;
    cfg.on_state = on_state;
    cfg.target_fn = on_target;
    cfg.ud = r;
    prog_log_config(r->log, &cfg.common);
    if (prog_pipe_open(r->wake) != 0 || links_open(&r->links, cfg.name) != 0) {
        snprintf(r->why.msg, sizeof r->why.msg, "no pipe for signals: %s", strerror(errno));
    } else {
        prog_signals_wake(r->wake[1]);
        status = running_listen(r);
        prog_signals_block(&before);  // its hooks start no programs that signals should reach
        if (!status) r->agent = revdial_agent_start(&cfg, &r->why);
        prog_signals_restore(&before);
        rc = r->agent ? running_serve(r, &status) : r->why.code;
        forward_close(&r->forward);
        links_close(&r->links);
    }
    prog_signals_wake(-1);
    prog_pipe_close(r->wake);
    if (status) return status;
    if (rc != REVDIAL_OK)
        prog_log_error(r->log, "agent.failed", &r->why);
    else
        prog_logf(r->log, REVDIAL_LOG_INFO, "agent.stopped", "%s: stopped", cfg.name);
    return exit_code(rc);
}

static void warn(prog_log *log, const config *c)
{
    prog_warn_settings(log, &c->cli);
    prog_warn_readable(log, c->s.token_file);
    prog_warn_readable(log, c->s.via_file);
    prog_warn_readable(log, c->s.tls.key);
}

int main(int argc, char **argv)
{
    prog_log log;
    running r = {.argv = argv, .log = &log, .wake = {-1, -1}, .lock = PTHREAD_MUTEX_INITIALIZER};
    config *first;
    int rc;
    prog_standard_streams();
    if (argc > 1 && strcmp(argv[1], "status") == 0)
        return prog_status_main("revdial-agent", argv + 2);
    if (argc > 1 && strcmp(argv[1], "doctor") == 0) return doctor_main(argv + 1);
    first = calloc(1, sizeof *first);
    if (!first || prog_catch_requests() != 0) return PROG_FAILED;
    r.first = r.now = first;
    rc = config_open(first, argv, NULL);
    prog_watch_begin(&r.watch, &first->cli);
    prog_log_open_as(&log, &first->cli.common);
    if (rc < 0 && first->cli.common.is_checking) rc = prog_print_checked(&first->cli);
    if (rc < 0 && prog_log_start(&log) == 0 && prog_catch_signals() == 0) {
        warn(&log, first);
        prog_raise_descriptor_limit(&log);
        rc = run(&r);
    } else if (rc < 0) {
        prog_logf(&log, REVDIAL_LOG_ERROR, "agent.failed", "%s", strerror(errno));
        rc = PROG_FAILED;
    }
    prog_watch_end(&r.watch);
    if (r.now != first) config_close(r.now);
    if (r.now != first) free(r.now);
    config_close(first);
    free(first);
    return prog_log_finish(&log, rc);
}
