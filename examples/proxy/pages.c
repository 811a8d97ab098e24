// What the admin port of the proxy answers, and what it lets people do there.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "page.h"
#include "pages.h"
#include "routes.h"

static int pages_answer_ready(void *ud, const prog_request *r, prog_out *out)
{
    const pages *all = ud;
    revdial_stats stats;
    (void)r;
    revdial_proxy_get_stats(all->live->proxy, &stats);
    return prog_answer_ready(out, !prog_stop, stats.sessions);
}

static int pages_answer_metrics(void *ud, const prog_request *r, prog_out *out)
{
    const pages *all = ud;
    (void)r;
    watch_metrics(all->w, all->live->proxy, out);
    return 200;
}

// All sessions of that name, each with a reference. NULL without memory.
static revdial_session **pages_all(const pages *all, const char *name, size_t *count)
{
    revdial_proxy *proxy = all->live->proxy;
    size_t cap = revdial_proxy_list(proxy, name, NULL, 0) + 64;  // some may come meanwhile
    revdial_session **list = calloc(cap, sizeof *list);
    *count = list ? revdial_proxy_list(proxy, name, list, cap) : 0;
    if (*count > cap) *count = cap;
    return list;
}

static uint64_t pages_id(revdial_session *s)
{
    revdial_session_info info;
    revdial_session_get_info(s, &info);
    return info.id;
}

// The sessions that a request is about.
typedef struct pages_list {
    revdial_session **sessions;
    size_t total, listed;
    revdial_stats stats;
} pages_list;

typedef struct pages_row {
    uint64_t id;
    revdial_session *session;
} pages_row;

static int pages_by_id(const void *a, const void *b)
{
    const pages_row *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}

// Those with the lowest ids above `after`, so that one page after the other shows each session that
// is there all the time. Returns 0 without memory.
static int pages_list_after(const pages *all, const char *name, uint64_t after, size_t cap,
                            pages_list *l)
{
    revdial_session **list = pages_all(all, name, &l->total);
    pages_row *rows = calloc(l->total + 1, sizeof *rows);
    size_t count = 0;
    for (size_t i = 0; i < l->total; i++) {
        const uint64_t id = pages_id(list[i]);
        if (rows && id > after)
            rows[count++] = (pages_row){id, list[i]};
        else
            revdial_session_unref(list[i]);
    }
    if (rows) qsort(rows, count, sizeof *rows, pages_by_id);
    for (size_t i = 0; i < count; i++) {
        if (i < cap)
            l->sessions[l->listed++] = rows[i].session;
        else
            revdial_session_unref(rows[i].session);
    }
    free(list);
    free(rows);
    return list && rows;
}

static int pages_list_open(const pages *all, const prog_request *r, pages_list *l)
{
    size_t cap = prog_status_limit(r);
    char name[ROUTE_NAME_SIZE] = "*", after[17];
    *l = (pages_list){.sessions = calloc(cap, sizeof *l->sessions)};
    if (!l->sessions) return 0;
    prog_request_query(r, "name", name, sizeof name);
    revdial_proxy_get_stats(all->live->proxy, &l->stats);
    if (prog_request_query(r, "after", after, sizeof after)) {
        if (pages_list_after(all, name, strtoull(after, NULL, 16), cap, l)) return 1;
        free(l->sessions);
        return 0;
    }
    l->total = revdial_proxy_list(all->live->proxy, name, l->sessions, cap);
    l->listed = l->total < cap ? l->total : cap;
    return 1;
}

static void pages_list_close(pages_list *l)
{
    for (size_t i = 0; i < l->listed; i++) revdial_session_unref(l->sessions[i]);
    free(l->sessions);
}

typedef void pages_ports_fn(const ports *p, revdial_proxy *proxy, const config *now, size_t limit,
                            prog_out *out);

static void pages_ports(const pages *all, const prog_request *r, prog_out *out,
                        pages_ports_fn *show)
{
    live *l = all->live;
    pthread_mutex_lock(&l->ports.lock);
    show(&l->ports, l->proxy, l->now, prog_status_limit(r), out);
    pthread_mutex_unlock(&l->ports.lock);
}

static int pages_answer_status(void *ud, const prog_request *r, prog_out *out)
{
    pages_list l;
    if (!pages_list_open(ud, r, &l)) return 500;
    prog_status_head(out, "revdial-proxy", &l.stats);
    prog_status_sessions(out, l.sessions, l.listed, l.total);
    pages_ports(ud, r, out, ports_status);
    peers_status(&((const pages *)ud)->live->peers, out);
    health_status(((const pages *)ud)->live->health, out, prog_status_limit(r));
    prog_out_add(out, "}\n");
    pages_list_close(&l);
    return 200;
}

static int pages_answer_table(void *ud, const prog_request *r, prog_out *out)
{
    pages_list l;
    if (!pages_list_open(ud, r, &l)) return 500;
    prog_status_title(out, "revdial-proxy", &l.stats);
    prog_status_table(out, l.sessions, l.listed, l.total);
    pages_ports(ud, r, out, ports_table);
    peers_table(&((const pages *)ud)->live->peers, out);
    health_status_table(((const pages *)ud)->live->health, out, prog_status_limit(r));
    pages_list_close(&l);
    return 200;
}

// The session with this id, in hexadecimal, with a reference; NULL if it is gone.
static revdial_session *pages_find_id(const pages *all, const char *id)
{
    const uint64_t wanted = strtoull(id, NULL, 16);
    size_t count;
    revdial_session **list = pages_all(all, NULL, &count), *found = NULL;
    for (size_t i = 0; i < count; i++) {
        if (!found && pages_id(list[i]) == wanted)
            found = list[i];
        else
            revdial_session_unref(list[i]);
    }
    free(list);
    return found;
}

// A stream, and the session that it is in.
typedef struct pages_stream {
    revdial_session *session;
    revdial_session_info about;
    revdial_stream_info here, there;
    enum prog_other other;
} pages_stream;

// Asks the other end of the stream that a request names. Returns 0 if there is none. A dial's id
// begins with that of its session.
static int pages_stream_open(const pages *all, const prog_request *r, pages_stream *x)
{
    char dial[sizeof x->here.dial], id[17];
    memset(x, 0, sizeof *x);
    if (!prog_request_query(r, "dial", dial, sizeof dial)) return 0;
    snprintf(id, sizeof id, "%.16s", dial);
    x->session = pages_find_id(all, id);
    if (!x->session) return 0;
    if (revdial_session_find_stream(x->session, dial, &x->here) != 0) {
        revdial_session_unref(x->session);
        return 0;
    }
    revdial_session_get_info(x->session, &x->about);
    x->other = prog_stream_ask(x->session, dial, &x->there);
    memcpy(x->there.dial, x->here.dial, sizeof x->there.dial);
    return 1;
}

static int pages_no_stream(prog_out *out)
{
    prog_out_add(out, "no such stream: it may be over, or ?dial=ID is missing\n");
    return 404;
}

static int pages_answer_stream(void *ud, const prog_request *r, prog_out *out)
{
    pages_stream x;
    if (!pages_stream_open(ud, r, &x)) return pages_no_stream(out);
    prog_out_add(out, "{\"name\":\"%s\",\"here\":", x.about.name);
    prog_status_stream(out, &x.here);
    prog_out_add(out, ",\"other\":\"%s\",", prog_other_word(x.other));
    if (x.other == PROG_OTHER_TOLD) {
        prog_out_add(out, "\"there\":");
        prog_status_stream(out, &x.there);
    } else {
        prog_out_add(out, "\"reason\":\"%s\"", prog_other_text(x.other));
    }
    prog_out_add(out, "}\n");
    revdial_session_unref(x.session);
    return 200;
}

static int pages_answer_stream_table(void *ud, const prog_request *r, prog_out *out)
{
    static const char *const heads[] = {"END", PROG_STREAM_HEADS, NULL};
    pages_stream x;
    prog_table t = {0};
    if (!pages_stream_open(ud, r, &x)) return pages_no_stream(out);
    prog_out_add(out, "dial %s of %s, client %s, target %s\n\n", x.here.dial, x.about.name,
                 x.here.client[0] ? x.here.client : "-", x.here.target[0] ? x.here.target : "-");
    prog_table_heads(&t, heads);
    prog_table_cell(&t, "proxy");
    prog_table_stream(&t, &x.here);
    if (x.other == PROG_OTHER_TOLD) {
        prog_table_cell(&t, "agent");
        prog_table_stream(&t, &x.there);
    }
    prog_table_end(&t, out);
    if (x.other != PROG_OTHER_TOLD) prog_out_add(out, "\n%s\n", prog_other_text(x.other));
    revdial_session_unref(x.session);
    return 200;
}

static int pages_answer_page(void *ud, const prog_request *r, prog_out *out)
{
    (void)ud;
    (void)r;
    for (size_t i = 0; page_lines[i]; i++) prog_out_add(out, "%s", page_lines[i]);
    return 200;
}

// ------------------------------------------------------------------------------------------------
// Actions

// The session that a request names, with a reference; NULL if it is gone.
static revdial_session *pages_find(const pages *all, const prog_request *r)
{
    char id[17];
    return prog_request_query(r, "session", id, sizeof id) ? pages_find_id(all, id) : NULL;
}

static int pages_gone(prog_out *out)
{
    prog_out_add(out, "no such session: it may be over, or ?session=ID is missing\n");
    return 404;
}

static int pages_answer_drain(void *ud, const prog_request *r, prog_out *out)
{
    const pages *all = ud;
    revdial_session *s = pages_find(all, r);
    int drain_ms;
    if (!s) return pages_gone(out);
    pthread_mutex_lock(&all->live->ports.lock);
    drain_ms = all->live->now->cli.common.drain_ms;
    pthread_mutex_unlock(&all->live->ports.lock);
    revdial_session_drain(s, drain_ms);
    revdial_session_unref(s);
    prog_out_add(out, "{\"draining\":true}\n");
    return 200;
}

static int pages_answer_kick(void *ud, const prog_request *r, prog_out *out)
{
    revdial_session *s = pages_find(ud, r);
    if (!s) return pages_gone(out);
    revdial_session_kill(s);
    revdial_session_unref(s);
    prog_out_add(out, "{\"killed\":true}\n");
    return 200;
}

static int pages_answer_expose(void *ud, const prog_request *r, prog_out *out)
{
    const pages *all = ud;
    live *l = all->live;
    char spec[sizeof r->query];
    int status;
    if (!prog_request_query(r, "port", spec, sizeof spec)) spec[0] = '\0';
    pthread_mutex_lock(&l->ports.lock);
    status = ports_open(&l->ports, l->proxy, l->now, spec, out);
    if (status == 200) watch_name(all->w, l->ports.list[l->ports.count - 1]->x.name);
    pthread_mutex_unlock(&l->ports.lock);
    return status;
}

static int pages_answer_unexpose(void *ud, const prog_request *r, prog_out *out)
{
    const pages *all = ud;
    live *l = all->live;
    char id[20];
    int status;
    if (!prog_request_query(r, "id", id, sizeof id)) id[0] = '\0';
    pthread_mutex_lock(&l->ports.lock);
    status = ports_close(&l->ports, l->proxy, l->now, strtoll(id, NULL, 10), out);
    pthread_mutex_unlock(&l->ports.lock);
    return status;
}

const prog_page pages_served[] = {
    {"/", "text/html; charset=utf-8", 0, pages_answer_page},
    {"/healthz", "text/plain; charset=utf-8", PROG_PAGE_OPEN, prog_answer_health},
    {"/readyz", "application/json", PROG_PAGE_OPEN, pages_answer_ready},
    {"/metrics", PROG_METRICS_TYPE, 0, pages_answer_metrics},
    {"/status", "application/json", 0, pages_answer_status},
    {"/status.txt", "text/plain; charset=utf-8", 0, pages_answer_table},
    {"/stream", "application/json", PROG_PAGE_SLOW, pages_answer_stream},
    {"/stream.txt", "text/plain; charset=utf-8", PROG_PAGE_SLOW, pages_answer_stream_table},
    {"/drain", "application/json", PROG_PAGE_ACTION, pages_answer_drain},
    {"/kick", "application/json", PROG_PAGE_ACTION, pages_answer_kick},
    {"/expose", "application/json", PROG_PAGE_ACTION, pages_answer_expose},
    {"/unexpose", "application/json", PROG_PAGE_ACTION, pages_answer_unexpose},
    {NULL, NULL, 0, NULL},
};
