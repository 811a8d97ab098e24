// Counts what becomes of the agent's sessions, and serves the pages of --admin.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "links.h"

enum { LINKS_MAX = 64 };  // that an agent has, and about as many sessions

int links_open(links *l, const char *name)
{
    memset(l, 0, sizeof *l);
    l->name = name;
    errno = pthread_mutex_init(&l->lock, NULL);
    return errno == 0 ? 0 : -1;
}

void links_close(links *l)
{
    pthread_mutex_destroy(&l->lock);
}

void links_state(links *l, int state, const revdial_err *why)
{
    int place = why ? -why->code : 0;
    if (place < 0 || place >= REVDIAL_ERROR_PLACES) return;
    pthread_mutex_lock(&l->lock);
    if (state == REVDIAL_DOWN) l->closed_by[place]++;
    if (state == REVDIAL_BACKOFF) l->failed_by[place]++;
    pthread_mutex_unlock(&l->lock);
}

// ------------------------------------------------------------------------------------------------
// What there is at this time

typedef struct links_now {
    revdial_stats stats;
    revdial_session *sessions[2 * LINKS_MAX];
    revdial_link_info links[LINKS_MAX];
    size_t total, listed, count;
} links_now;

static links_now *links_now_open(const links *l)
{
    const size_t cap = sizeof((links_now *)0)->sessions / sizeof(revdial_session *);
    links_now *now = calloc(1, sizeof *now);
    if (!now) return NULL;
    revdial_agent_get_stats(l->agent, &now->stats);
    now->total = revdial_agent_list(l->agent, now->sessions, cap);
    now->listed = now->total < cap ? now->total : cap;
    now->count = revdial_agent_list_links(l->agent, now->links, LINKS_MAX);
    return now;
}

static void links_now_close(links_now *now)
{
    for (size_t i = 0; i < now->listed; i++) revdial_session_unref(now->sessions[i]);
    free(now);
}

// ------------------------------------------------------------------------------------------------
// Pages

static int links_answer_ready(void *ud, const prog_request *r, prog_out *out)
{
    const links *l = ud;
    revdial_stats stats;
    (void)r;
    revdial_agent_get_stats(l->agent, &stats);
    return prog_answer_ready(out, stats.sessions > 0 && !prog_stop, stats.sessions);
}

// All sessions of an agent have its name.
static void links_count(links *l, const links_now *now, prog_counts *c,
                        uint64_t failed_by[REVDIAL_ERROR_PLACES])
{
    memset(c, 0, sizeof *c);
    for (size_t i = 0; i < now->listed; i++) {
        revdial_session_info info;
        revdial_session_get_info(now->sessions[i], &info);
        prog_counts_add_live(c, &info);
    }
    c->name = l->name;
    c->sessions = now->stats.sessions;
    c->streams = now->stats.streams;
    c->opened = now->stats.sessions_opened;
    c->streams_opened = now->stats.streams_opened;
    c->rx_bytes = now->stats.rx_bytes;
    c->tx_bytes = now->stats.tx_bytes;
    c->credit_waits = now->stats.credit_waits;
    c->streams_refused = now->stats.streams_refused;
    memcpy(c->resets, now->stats.resets, sizeof c->resets);
    pthread_mutex_lock(&l->lock);
    memcpy(c->closed_by, l->closed_by, sizeof c->closed_by);
    memcpy(failed_by, l->failed_by, sizeof l->failed_by);
    pthread_mutex_unlock(&l->lock);
}

static int links_answer_metrics(void *ud, const prog_request *r, prog_out *out)
{
    links_now *now = links_now_open(ud);
    uint64_t failed_by[REVDIAL_ERROR_PLACES];
    prog_counts counts;
    (void)r;
    if (!now) return 500;
    links_count(ud, now, &counts, failed_by);
    prog_metrics_process(out, &now->stats);
    prog_metric(out, "revdial_reconnects_total", "counter", "Attempts to connect after the first.");
    prog_out_add(out, "revdial_reconnects_total %" PRIu64 "\n", now->stats.reconnects);
    prog_metric_errors(out, "revdial_retries_total",
                       "Attempts and sessions that failed and are tried again, by error.",
                       failed_by);
    prog_metrics_sessions(out, &counts, 1);
    links_now_close(now);
    return 200;
}

static int links_answer_status(void *ud, const prog_request *r, prog_out *out)
{
    links_now *now = links_now_open(ud);
    (void)r;
    if (!now) return 500;
    prog_status_head(out, "revdial-agent", &now->stats);
    prog_status_links(out, "links", now->links, now->count);
    prog_status_sessions(out, now->sessions, now->listed, now->total);
    prog_out_add(out, "}\n");
    links_now_close(now);
    return 200;
}

static int links_answer_table(void *ud, const prog_request *r, prog_out *out)
{
    links_now *now = links_now_open(ud);
    (void)r;
    if (!now) return 500;
    prog_status_title(out, "revdial-agent", &now->stats);
    prog_table_links(out, "SERVER", now->links, now->count);
    prog_status_table(out, now->sessions, now->listed, now->total);
    links_now_close(now);
    return 200;
}

const prog_page links_pages[] = {
    {"/healthz", "text/plain; charset=utf-8", PROG_PAGE_OPEN, prog_answer_health},
    {"/readyz", "application/json", PROG_PAGE_OPEN, links_answer_ready},
    {"/metrics", PROG_METRICS_TYPE, 0, links_answer_metrics},
    {"/status", "application/json", 0, links_answer_status},
    {"/status.txt", "text/plain; charset=utf-8", 0, links_answer_table},
    {NULL, NULL, 0, NULL},
};
