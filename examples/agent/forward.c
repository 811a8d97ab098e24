// One thread accepts. Each client has a thread of its own until its dial is over, at most
// FORWARD_DIALS of them; then the agent's I/O thread carries its bytes.
#include "forward.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    FORWARD_DIALS = 128,  // more clients wait in the listener's queue
    FORWARD_BACKLOG = 1024,
    FORWARD_WAIT_MS = 10000,  // for a session
    FORWARD_DIAL_MS = 20000,  // for that and the target, on whatever session
    FORWARD_PAUSE_MS = 100    // before a third dial, or when there is no descriptor for a client
};

// A client whose dial is not over.
typedef struct client {
    forward *owner;
    const char *target;
    int fd;
    char from[PROG_LISTENER_SIZE], local[PROG_LISTENER_SIZE];  // "" = a Unix socket
} client;

const char *forward_problem(const char *spec)
{
    const char *target = strchr(spec, '=');
    const char *only[] = {target ? target + 1 : NULL, NULL};
    char address[PROG_LISTENER_SIZE];
    revdial_err err;
    size_t len = target ? (size_t)(target - spec) : 0;
    if (len == 0) return "is not ADDRESS=TARGET:";
    if (len >= sizeof address) return "the ADDRESS is too long in";
    snprintf(address, sizeof address, "%.*s", (int)len, spec);
    if (prog_address_check(address, &err) != 0)
        return "an ADDRESS is HOST:PORT, a PORT, or unix:/PATH in";
    // A target is a rule that allows just this target.
    if (strpbrk(only[0], "*?") || !revdial_target_allowed(only, only[0]))
        return "a TARGET is HOST:PORT or unix:/PATH in";
    return NULL;
}

// ------------------------------------------------------------------------------------------------
// A client

// Closes the connection so that its client sees an error and no EOF.
static void client_refuse(client *c, const revdial_err *why)
{
    const struct linger now = {.l_onoff = 1};
    forward *f = c->owner;
    char msg[1024] = "";
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(c->fd);
    if (!prog_rate_take(&f->rate, f->log, "forward.failed")) return;
    if (c->from[0]) revdial_log_field(msg, sizeof msg, "client", c->from);
    revdial_log_field(msg, sizeof msg, "target", c->target);
    revdial_log_field(msg, sizeof msg, "reason", why->msg);
    prog_log_put(f->log, REVDIAL_LOG_WARN, "forward.failed", msg);
}

static int forward_is_closing(forward *f)
{
    pthread_mutex_lock(&f->lock);
    int is = f->is_closing;
    pthread_mutex_unlock(&f->lock);
    return is;
}

static int64_t forward_now_ms(void)
{
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

// What is left for the next wait, 0 to FORWARD_WAIT_MS.
static int forward_left_ms(int64_t until_ms)
{
    int64_t left_ms = until_ms - forward_now_ms();
    if (left_ms <= 0) return 0;
    return left_ms < FORWARD_WAIT_MS ? (int)left_ms : FORWARD_WAIT_MS;
}

// Dials on one session after the other, as long as one drains or is lost before it has accepted:
// none of the client's bytes has gone out by then. An agent that drains gets no other session.
static revdial_stream *client_stream(forward *f, revdial_dial_opts *opts, revdial_err *err)
{
    const int64_t until_ms = forward_now_ms() + FORWARD_DIAL_MS;
    revdial_stream *st = NULL;
    int is_over = 0;
    for (int i = 0; !st && !is_over; i++) {
        if (i > 1) poll(NULL, 0, FORWARD_PAUSE_MS);  // a proxy may close each session at once
        revdial_session *s =
            revdial_agent_wait(f->agent, forward_left_ms(until_ms), i ? NULL : err);
        if (!s) break;
        opts->timeout_ms = forward_left_ms(until_ms);
        if (opts->timeout_ms > 0) st = revdial_session_dial(s, opts, err);
        revdial_session_unref(s);
        is_over = opts->timeout_ms == 0 || forward_is_closing(f) ||
                  (err->code != REVDIAL_EDRAINING && err->code != REVDIAL_ELOST);
    }
    return st;
}

static void client_dial(client *c)
{
    forward *f = c->owner;
    revdial_dial_opts opts = {.target = c->target,
                              .client_addr = c->from[0] ? c->from : NULL,
                              .local_addr = c->local[0] ? c->local : NULL};
    const revdial_relay_opts relay = {.half_closed_ms = f->half_closed_ms};
    revdial_err err = {0};
    revdial_stream *st = client_stream(f, &opts, &err);
    if (st)
        revdial_relay(st, c->fd, c->fd, &relay);
    else
        client_refuse(c, &err);
}

// The thread is not counted any more, and touches nothing but the lock.
static void forward_leave(forward *f)
{
    pthread_mutex_lock(&f->lock);
    f->dials--;
    if (write(f->wake[1], "", 1) < 0) {
        // The pipe is full: then its reader wakes up without this byte.
    }
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
}

static void *client_run(void *ud)
{
    client *c = ud;
    forward *f = c->owner;
    client_dial(c);
    free(c);
    forward_leave(f);
    return NULL;
}

// ------------------------------------------------------------------------------------------------
// Accepting

// Begins to dial for a client. Without memory or a thread its connection is closed.
static void client_begin(forward *f, const forward_port *port, int fd)
{
    struct sockaddr_storage from = {0}, local = {0};
    socklen_t from_len = sizeof from, local_len = sizeof local;
    const revdial_err why = {.msg = "no memory or thread for it"};
    client none = {.owner = f, .target = port->target, .fd = fd}, *c = calloc(1, sizeof *c);
    pthread_t thread;
    if (c) *c = none;
    if (c && !port->at.path[0] && getpeername(fd, (struct sockaddr *)&from, &from_len) == 0)
        prog_address_text(&from, from_len, c->from, sizeof c->from);
    if (c && c->from[0] && getsockname(fd, (struct sockaddr *)&local, &local_len) == 0)
        prog_address_text(&local, local_len, c->local, sizeof c->local);
    pthread_mutex_lock(&f->lock);
    f->dials++;
    pthread_mutex_unlock(&f->lock);
    if (c && prog_nonblocking(fd) == 0 && prog_thread_start(&thread, client_run, c) == 0) {
        pthread_detach(thread);
        return;
    }
    free(c);
    client_refuse(&none, &why);
    forward_leave(f);
}

static void forward_accept(forward *f, const forward_port *port)
{
    int fd = accept(port->at.fd, NULL, NULL);
    if (fd >= 0)
        client_begin(f, port, fd);
    else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
        poll(NULL, 0, FORWARD_PAUSE_MS);
}

// Returns whether to go on; *is_full says that no more clients are accepted now.
static int forward_state(forward *f, int *is_full)
{
    char bytes[64];
    int goes_on;
    while (read(f->wake[0], bytes, sizeof bytes) > 0) continue;
    pthread_mutex_lock(&f->lock);
    goes_on = !f->is_closing;
    *is_full = f->dials >= FORWARD_DIALS;
    pthread_mutex_unlock(&f->lock);
    return goes_on;
}

static void *forward_run(void *ud)
{
    forward *f = ud;
    struct pollfd *p = calloc(f->count + 1, sizeof *p);
    int is_full = 0;
    while (p && forward_state(f, &is_full)) {
        p[f->count] = (struct pollfd){.fd = f->wake[0], .events = POLLIN};
        for (size_t i = 0; i < f->count; i++)
            p[i] = (struct pollfd){.fd = is_full ? -1 : f->ports[i].at.fd, .events = POLLIN};
        if (poll(p, (nfds_t)f->count + 1, -1) < 0) continue;
        for (size_t i = 0; i < f->count; i++)
            if (p[i].revents) forward_accept(f, &f->ports[i]);
    }
    if (!p) prog_logf(f->log, REVDIAL_LOG_ERROR, "forward.failed", "out of memory");
    free(p);
    return NULL;
}

// ------------------------------------------------------------------------------------------------
// Start and stop

// Returns 0 or an exit code.
static int forward_listen(forward *f, const char *spec, revdial_err *err)
{
    prog_listener at[PROG_LISTENERS];
    char address[PROG_LISTENER_SIZE];
    size_t len = strcspn(spec, "=");  // as forward_problem() has checked
    int count;
    snprintf(address, sizeof address, "%.*s", (int)len, spec);
    count = prog_listener_open(at, address, FORWARD_BACKLOG, err);
    if (count < 0) return err->code == REVDIAL_EINVAL ? PROG_USAGE : PROG_CANNOT_BIND;
    for (int i = 0; i < count; i++) f->ports[f->count++] = (forward_port){at[i], spec + len + 1};
    return 0;
}

int forward_open(forward *f, const prog_list *specs, prog_log *log, revdial_err *err)
{
    int rc = 0;
    memset(f, 0, sizeof *f);
    f->wake[0] = f->wake[1] = -1;
    f->log = log;
    errno = pthread_mutex_init(&f->lock, NULL);
    if (errno == 0 && (errno = pthread_cond_init(&f->changed, NULL)) != 0)
        pthread_mutex_destroy(&f->lock);
    if (errno == 0) f->ports = calloc(specs->count * PROG_LISTENERS + 1, sizeof *f->ports);
    if (!f->ports) snprintf(err->msg, sizeof err->msg, "%s", strerror(errno));
    if (!f->ports) return PROG_FAILED;
    for (size_t i = 0; rc == 0 && i < specs->count; i++)
        rc = forward_listen(f, specs->items[i], err);
    return rc;
}

int forward_start(forward *f, revdial_agent *agent, int half_closed_ms)
{
    f->agent = agent;
    f->half_closed_ms = half_closed_ms;
    if (f->count == 0) return 0;
    if (prog_pipe_open(f->wake) != 0) return -1;
    f->is_running = prog_thread_start(&f->thread, forward_run, f) == 0;
    return f->is_running ? 0 : -1;
}

void forward_stop(forward *f)
{
    for (; f->is_running; f->is_running = 0) {
        pthread_mutex_lock(&f->lock);
        f->is_closing = 1;
        if (write(f->wake[1], "", 1) < 0) {
            // The pipe is full: then its reader wakes up without this byte.
        }
        pthread_mutex_unlock(&f->lock);
        pthread_join(f->thread, NULL);
    }
    for (size_t i = 0; i < f->count; i++) prog_listener_close(&f->ports[i].at);
}

void forward_close(forward *f)
{
    if (!f->ports) return;
    forward_stop(f);
    pthread_mutex_lock(&f->lock);
    while (f->dials > 0) pthread_cond_wait(&f->changed, &f->lock);
    pthread_mutex_unlock(&f->lock);
    pthread_mutex_destroy(&f->lock);
    pthread_cond_destroy(&f->changed);
    prog_pipe_close(f->wake);
    free(f->ports);
    f->ports = NULL;
}
