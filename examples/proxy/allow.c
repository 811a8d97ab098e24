// The forward direction: an agent's client becomes a stream, and here a connection to its target.
// The rules are an agent's, and the library applies them to the addresses that it connects to.
#include "allow.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { ALLOW_CONNECT_MS = 5000 };  // as an agent's --connect-timeout

struct allow_list {
    unsigned refs;        // guarded by the lock of its user
    const char *rules[];  // each allocated; NULL at the end
};

allow_list *allow_list_new(const prog_list *rules)
{
    allow_list *list = calloc(1, sizeof *list + (rules->count + 1) * sizeof *list->rules);
    if (!list) return NULL;
    list->refs = 1;
    for (size_t i = 0; i < rules->count; i++) {
        list->rules[i] = strdup(rules->items[i]);
        if (list->rules[i]) continue;
        allow_list_free(list);
        return NULL;
    }
    return list;
}

void allow_list_free(allow_list *list)
{
    if (!list) return;
    for (size_t i = 0; list->rules[i]; i++) free((void *)(uintptr_t)list->rules[i]);
    free(list);
}

static allow_list *list_ref(allow *a)
{
    allow_list *list;
    pthread_mutex_lock(&a->lock);
    list = a->now;
    if (list) list->refs++;
    pthread_mutex_unlock(&a->lock);
    return list;
}

static void list_unref(allow *a, allow_list *list)
{
    unsigned refs = 1;
    pthread_mutex_lock(&a->lock);
    if (list) refs = --list->refs;
    pthread_mutex_unlock(&a->lock);
    if (refs == 0) allow_list_free(list);
}

void allow_use(allow *a, allow_list *list)
{
    allow_list *old;
    pthread_mutex_lock(&a->lock);
    old = a->now;
    a->now = list;
    pthread_mutex_unlock(&a->lock);
    list_unref(a, old);
}

int allow_open(allow *a, prog_log *log, int half_closed_ms)
{
    errno = pthread_mutex_init(&a->lock, NULL);
    if (errno != 0) return -1;
    a->log = log;
    a->half_closed_ms = half_closed_ms;
    return 0;
}

void allow_close(allow *a)
{
    if (!a->log) return;
    allow_use(a, NULL);
    pthread_mutex_destroy(&a->lock);
    a->log = NULL;
}

// A line about a stream, with the agent's name, its client and the target.
static void say(allow *a, int level, const char *event, revdial_stream *st, const char *reason)
{
    revdial_session *s = revdial_stream_session(st);
    const char *client = revdial_stream_meta(st, "client");
    const char *target = revdial_stream_meta(st, "target");
    revdial_session_info info;
    char msg[1024] = "";
    revdial_session_get_info(s, &info);
    revdial_session_unref(s);
    revdial_log_field(msg, sizeof msg, "name", info.name);
    if (client) revdial_log_field(msg, sizeof msg, "client", client);
    if (target) revdial_log_field(msg, sizeof msg, "target", target);
    if (reason) revdial_log_field(msg, sizeof msg, "reason", reason);
    prog_log_put(a->log, level, event, msg);
}

static void refuse(allow *a, revdial_stream *st, const revdial_err *why)
{
    if (prog_rate_take(&a->rate, a->log, "forward.refused"))
        say(a, REVDIAL_LOG_WARN, "forward.refused", st, why->msg);
    revdial_reset(st, why->reset ? why->reset : REVDIAL_RESET_FORBIDDEN);
    revdial_close(st);
}

void allow_serve(allow *a, revdial_stream *st)
{
    const revdial_relay_opts opts = {.half_closed_ms = a->half_closed_ms};
    const char *target = revdial_stream_meta(st, "target");
    revdial_err err = {.msg = "no target was asked for"};
    allow_list *list = list_ref(a);
    int fd = -1;
    if (target)
        fd = revdial_target_connect(list ? list->rules : NULL, target, ALLOW_CONNECT_MS, &err);
    list_unref(a, list);
    if (fd < 0) {
        refuse(a, st, &err);
        return;
    }
    say(a, a->log->access ? REVDIAL_LOG_INFO : REVDIAL_LOG_DEBUG, "forward.open", st, NULL);
    revdial_relay(st, fd, fd, &opts);
}
