// HUP: what is said now, compared with what is in force. The order is such that each step can be
// undone until all those that may fail are done.
#include "reload.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int is_same_text(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

// Do they differ in nothing?
static int is_same_expose(const expose *a, const expose *b)
{
    const revdial_expose *x = &a->x, *y = &b->x;
    return strcmp(a->address, b->address) == 0 && strcmp(a->name, b->name) == 0 &&
           is_same_text(x->dial.target, y->dial.target) && x->dial.pick == y->dial.pick &&
           is_same_text(x->dial.key, y->dial.key) &&
           is_same_text(x->trusted_proxies, y->trusted_proxies) &&
           is_same_text(x->allow_from, y->allow_from) && x->route == y->route &&
           x->dial.timeout_ms == y->dial.timeout_ms && x->dial.flags == y->dial.flags &&
           x->half_closed_ms == y->half_closed_ms && x->max_clients == y->max_clients &&
           x->max_clients_per_source == y->max_clients_per_source;
}

static int is_same_address(const expose *a, const expose *b)
{
    return strcmp(a->address, b->address) == 0;
}

// What becomes of the ports.
typedef struct plan {
    config *now, *next;
    char *is_kept;  // of each of now->exposes: the new configuration has it, too
    char *is_new;   // of each of next->exposes: it is opened in this plan
    size_t opened, changed, closed;
} plan;

// Finds a port of now for each of next that has none yet. Its id is the new one's, too.
static void plan_match(plan *p, int is_match(const expose *a, const expose *b))
{
    for (size_t k = 0; k < p->next->expose_count; k++) {
        expose *x = &p->next->exposes[k];
        for (size_t i = 0; x->id == 0 && i < p->now->expose_count; i++) {
            const expose *old = &p->now->exposes[i];
            if (p->is_kept[i] || !is_match(old, x)) continue;
            p->is_kept[i] = 1;
            x->id = old->id;
            if (is_match == is_same_address) x->x.instead_of = old->id;
        }
    }
}

// A port that was opened by hand, and is configured now.
static void plan_take(plan *p, ports *by_hand)
{
    for (size_t k = 0; k < p->next->expose_count; k++) {
        expose *x = &p->next->exposes[k];
        if (x->id == 0) x->id = x->x.instead_of = ports_take(by_hand, x->address);
    }
}

static int plan_make(plan *p, ports *by_hand)
{
    p->is_kept = calloc(1, p->now->expose_count + 1);
    p->is_new = calloc(1, p->next->expose_count + 1);
    if (!p->is_kept || !p->is_new) {
        prog_complain(&p->next->cli, "out of memory");
        return PROG_FAILED;
    }
    plan_match(p, is_same_expose);
    plan_match(p, is_same_address);
    plan_take(p, by_hand);
    return 0;
}

// Takes new ports back.
static void plan_undo(plan *p, revdial_proxy *proxy)
{
    for (size_t k = 0; k < p->next->expose_count; k++)
        if (p->is_new[k]) revdial_proxy_unexpose(proxy, p->next->exposes[k].id, 0);
}

// Opens new ports. Returns 0 or an exit code.
static int plan_open(plan *p, revdial_proxy *proxy)
{
    for (size_t k = 0; k < p->next->expose_count; k++) {
        expose *x = &p->next->exposes[k];
        revdial_err err = {0};
        if (x->id != 0) continue;
        x->id = revdial_proxy_expose(proxy, &x->x, &err);
        if (x->id < 0) {
            plan_undo(p, proxy);
            return prog_usage_error(&p->next->cli, x->option, err.msg, x->item);
        }
        p->is_new[k] = 1;
        p->opened++;
    }
    return 0;
}

// Ports that stay and lead elsewhere get their new settings. What cannot be changed now, for want
// of memory or descriptors, keeps its old ones.
static void plan_change(plan *p, const live *l)
{
    for (size_t k = 0; k < p->next->expose_count; k++) {
        expose *x = &p->next->exposes[k];
        revdial_err err = {0};
        int64_t id;
        if (!x->x.instead_of) continue;
        id = revdial_proxy_expose(l->proxy, &x->x, &err);
        x->x.instead_of = 0;
        if (id <= 0) {
            prog_log_error(l->log, "expose.unchanged", &err);
            continue;
        }
        x->id = id;
        p->changed++;
    }
}

static void plan_close(plan *p, revdial_proxy *proxy)
{
    for (size_t i = 0; i < p->now->expose_count; i++) {
        if (p->is_kept[i]) continue;
        revdial_proxy_unexpose(proxy, p->now->exposes[i].id, 0);
        p->closed++;
    }
}

// All that may fail, and can be undone until the last of it is done. Returns 0 or an exit code:
// nothing has changed then.
static int live_prepare(live *l, plan *p)
{
    const token_table *tokens = &p->next->tokens;
    revdial_err err = {0};
    int rc = plan_make(p, &l->ports);
    if (rc == 0) rc = plan_open(p, l->proxy);
    if (rc != 0) return rc;
    rc = peers_prepare(&l->peers, p->next);
    if (rc == 0 && revdial_proxy_replace_credentials(l->proxy, tokens->rows, tokens->count,
                                                     REVDIAL_END_STALE, &err) != REVDIAL_OK) {
        peers_undo(&l->peers);
        prog_complain(&p->next->cli, "%s", err.msg);
        rc = PROG_FAILED;
    }
    if (rc != 0) plan_undo(p, l->proxy);
    return rc;
}

// All that cannot fail.
static void live_commit(live *l, plan *p)
{
    config *next = p->next;
    revdial_err err = {0};
    prog_tls_take(l->tls, &next->tls);
    peers_commit(&l->peers, next);
    allow_use(&l->allow, next->allow);
    next->allow = NULL;
    revdial_proxy_replace_auth(l->proxy, external_use(&l->external, next->external), &l->external);
    next->external = NULL;
    route_table_replace(&l->routes, &next->routes);
    http_trust(l->http, next->trusted);
    if (health_set(l->health, l->proxy, l->http, &next->health) != 0)
        prog_logf(l->log, REVDIAL_LOG_ERROR, "health.failed", "no thread for health checks");
    revdial_proxy_replace_limits(l->proxy, next->proxy.max_sessions,
                                 next->proxy.max_sessions_per_name,
                                 next->proxy.max_sessions_per_identity);
    if (revdial_proxy_replace_session_limits(l->proxy, &next->proxy.common.limits, &err))
        prog_log_error(l->log, "limits.unchanged", &err);
    plan_change(p, l);
    plan_close(p, l->proxy);
}

static void config_free(config *c)
{
    if (c) config_close(c);
    free(c);
}

// Takes the next configuration, if there is one, and frees the one that is over.
static void live_swap(live *l, config *next, config *over)
{
    if (next) l->now = next;
    if (over != l->first) config_free(over);
}

// The hooks of its ports look at the routes that are in force. Connections to --http have a PROXY
// header only if its option says so; the list of proxies was checked as that of all ports.
static void live_adopt(live *l, config *c)
{
    for (size_t i = 0; i < c->expose_count; i++) {
        revdial_expose *x = &c->exposes[i].x;
        int is_http = x->route == front_http.route;
        x->route_ud = is_http ? (void *)l->http : &l->routes;
        if (is_http && !c->s.has_http_header) x->trusted_proxies = NULL;
        c->xs[i] = *x;
    }
}

int live_open(live *l)
{
    errno = pthread_mutex_init(&l->ports.lock, NULL);
    if (errno != 0) return -1;
    live_adopt(l, l->first);
    http_trust(l->http, l->first->trusted);
    if (hosts_open(&l->hosts, l->log) != 0) return -1;
    l->routes.hosts = &l->hosts;
    if (route_table_share(&l->routes) != 0) return -1;
    route_table_replace(&l->routes, &l->first->routes);
    return 0;
}

void live_free(live *l)
{
    ports_free(&l->ports);
    route_table_free(&l->routes);
    hosts_free(&l->hosts);
    external_close(&l->external);
    allow_close(&l->allow);
    if (l->now != l->first) config_free(l->now);
    config_free(l->first);
}

int live_reload(live *l, prog_watch *w)
{
    config *next = calloc(1, sizeof *next);
    plan p = {.now = l->now, .next = next};
    int rc = next ? config_open(next, l->argv, l->log) : PROG_FAILED;
    if (rc < 0) live_adopt(l, next);
    if (rc < 0) rc = prog_refuse_frozen(&l->now->cli, &next->cli);
    pthread_mutex_lock(&l->ports.lock);
    if (rc == 0) rc = live_prepare(l, &p);
    if (rc == 0) live_commit(l, &p);
    ports_settle(&l->ports, l->proxy, next, rc == 0, l->log);
    if (rc != 0 && next) prog_watch_refuse(w, &next->cli);
    live_swap(l, rc == 0 ? next : NULL, rc == 0 ? l->now : next);
    pthread_mutex_unlock(&l->ports.lock);
    if (rc == 0)
        prog_logf(l->log, REVDIAL_LOG_INFO, "proxy.reload",
                  "%zu ports opened, %zu changed, %zu closed; credentials and certificates read",
                  p.opened, p.changed, p.closed);
    else
        prog_logf(l->log, REVDIAL_LOG_ERROR, "proxy.reload", "nothing was changed");
    free(p.is_kept);
    free(p.is_new);
    return rc == 0;
}

void live_revoke(live *l)
{
    config *next = calloc(1, sizeof *next);
    revdial_err err = {0};
    int rc = next ? config_open(next, l->argv, l->log) : PROG_FAILED;
    if (rc < 0) rc = prog_refuse_frozen(&l->now->cli, &next->cli);
    if (rc == 0 && revdial_proxy_replace_credentials(l->proxy, next->tokens.rows,
                                                     next->tokens.count, REVDIAL_END_STALE, &err))
        rc = prog_complain(&next->cli, "%s", err.msg);
    prog_logf(l->log, rc ? REVDIAL_LOG_ERROR : REVDIAL_LOG_INFO, "proxy.reload", "%s",
              rc ? "nothing was changed" : "it drains: credentials read, and nothing else");
    config_free(next);
}
