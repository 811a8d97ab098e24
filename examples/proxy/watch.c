// Counts sessions by name, for the metrics.
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "watch.h"

enum {
    WATCH_NAMES = 1000,  // names with a label of their own
    WATCH_NAME_SIZE = 65,
    WATCH_SLOTS = 4096  // lists of sessions: short ones, up to the default of --max-sessions
};

// A session that is up.
typedef struct watch_live {
    struct watch_live *next;
    revdial_session *session;
    size_t at;  // of its name in counts
} watch_live;

// Health checks of one name.
typedef struct watch_checks {
    uint64_t good, failed;
    int failing;
} watch_checks;

struct watch {
    pthread_mutex_t writing;  // no session changes its label while metrics are written; taken first
    pthread_mutex_t lock;     // guards all below
    watch_checks checks[1 + WATCH_NAMES];
    size_t count, live_count;
    prog_counts counts[1 + WATCH_NAMES];  // of sessions that are over; the first is of other names
    char names[1 + WATCH_NAMES][WATCH_NAME_SIZE];
    watch_live *slots[WATCH_SLOTS];
};

watch *watch_new(void)
{
    watch *w = calloc(1, sizeof *w);
    if (!w) return NULL;
    if (pthread_mutex_init(&w->writing, NULL) != 0) {
        free(w);
        return NULL;
    }
    if (pthread_mutex_init(&w->lock, NULL) != 0) {
        pthread_mutex_destroy(&w->writing);
        free(w);
        return NULL;
    }
    w->count = 1;
    return w;
}

void watch_free(watch *w)
{
    if (!w) return;
    pthread_mutex_destroy(&w->lock);
    pthread_mutex_destroy(&w->writing);
    free(w);
}

// ------------------------------------------------------------------------------------------------
// Names

static size_t watch_find(const watch *w, const char *name)
{
    for (size_t i = 1; i < w->count; i++)
        if (strcmp(w->names[i], name) == 0) return i;
    return 0;
}

// Sessions of this name that are up. What they have done so far stays with the other names, so that
// no counter goes back.
static void watch_relabel(watch *w, size_t at)
{
    for (size_t i = 0; i < WATCH_SLOTS; i++)
        for (watch_live *l = w->slots[i]; l; l = l->next) {
            revdial_session_info info;
            if (l->at != 0) continue;
            revdial_session_get_info(l->session, &info);
            if (strcmp(info.name, w->names[at]) != 0) continue;
            prog_counts_add(&w->counts[0], &info);
            prog_counts_take(&w->counts[at], &info);
            l->at = at;
        }
}

void watch_name(watch *w, const char *name)
{
    pthread_mutex_lock(&w->writing);
    pthread_mutex_lock(&w->lock);
    // An agent called "other" would have the label of all others: it is counted with them.
    if (!watch_find(w, name) && w->count <= WATCH_NAMES && strlen(name) < WATCH_NAME_SIZE &&
        strcmp(name, "other") != 0) {
        memcpy(w->names[w->count], name, strlen(name) + 1);
        w->counts[w->count].name = w->names[w->count];
        watch_relabel(w, w->count++);
    }
    pthread_mutex_unlock(&w->lock);
    pthread_mutex_unlock(&w->writing);
}

void watch_rows(watch *w, const revdial_credential *rows, size_t count)
{
    char name[WATCH_NAME_SIZE];
    for (size_t i = 0; i < count; i++) {
        const char *at = rows[i].names ? rows[i].names : "";
        while (*at) {
            size_t len = strcspn(at, ","), skip = strspn(at, " \t");
            size_t n = strcspn(at + skip, " \t,*?");
            char end = at[skip + n];
            if (n > 0 && n < sizeof name && end != '*' && end != '?') {
                memcpy(name, at + skip, n);
                name[n] = '\0';
                watch_name(w, name);
            }
            at += len + (at[len] == ',');
        }
    }
}

// ------------------------------------------------------------------------------------------------
// Sessions

static watch_live **watch_slot(watch *w, const revdial_session *s)
{
    watch_live **at = &w->slots[(uintptr_t)s / 64 * 2654435761u % WATCH_SLOTS];
    while (*at && (*at)->session != s) at = &(*at)->next;
    return at;
}

// Without memory a session is not counted.
static void watch_up(watch *w, revdial_session *s)
{
    watch_live *live = calloc(1, sizeof *live);
    revdial_session_info info;
    if (!live) return;
    revdial_session_get_info(s, &info);
    pthread_mutex_lock(&w->lock);
    live->session = revdial_session_ref(s);
    live->at = watch_find(w, info.name);
    *watch_slot(w, s) = live;
    w->counts[live->at].opened++;
    w->live_count++;
    pthread_mutex_unlock(&w->lock);
}

static void watch_down(watch *w, revdial_session *s, const revdial_err *why)
{
    revdial_session_info info;
    watch_live **slot, *live;
    revdial_session_get_info(s, &info);
    pthread_mutex_lock(&w->lock);
    slot = watch_slot(w, s);
    live = *slot;
    if (live) {
        *slot = live->next;
        prog_counts_add(&w->counts[live->at], &info);
        prog_counts_close(&w->counts[live->at], why);
        w->live_count--;
    }
    pthread_mutex_unlock(&w->lock);
    if (live) revdial_session_unref(s);
    free(live);
}

void watch_session(watch *w, revdial_session *s, int state, const revdial_err *why)
{
    if (state == REVDIAL_UP) watch_up(w, s);
    if (state == REVDIAL_DOWN) watch_down(w, s, why);
}

// ------------------------------------------------------------------------------------------------
// Health checks

size_t watch_label(watch *w, const char *name)
{
    size_t label;
    pthread_mutex_lock(&w->lock);
    label = watch_find(w, name);
    pthread_mutex_unlock(&w->lock);
    return label;
}

void watch_checked(watch *w, size_t label, int is_good)
{
    pthread_mutex_lock(&w->lock);
    if (is_good)
        w->checks[label].good++;
    else
        w->checks[label].failed++;
    pthread_mutex_unlock(&w->lock);
}

void watch_failing(watch *w, size_t label, int change)
{
    pthread_mutex_lock(&w->lock);
    w->checks[label].failing += change;
    pthread_mutex_unlock(&w->lock);
}

// Of names that are checked.
static void watch_metrics_checks(watch *w, prog_out *out)
{
    static const char total[] = "revdial_health_checks_total", failing[] = "revdial_health_failing";
    prog_metric(out, total, "counter", "Health checks that agents have passed or failed.");
    pthread_mutex_lock(&w->lock);
    for (size_t i = 0; i < w->count; i++)
        if (w->checks[i].good || w->checks[i].failed)
            prog_out_add(out,
                         "%s{name=\"%s\",result=\"passed\"} %" PRIu64 "\n"
                         "%s{name=\"%s\",result=\"failed\"} %" PRIu64 "\n",
                         total, i ? w->names[i] : "other", w->checks[i].good, total,
                         i ? w->names[i] : "other", w->checks[i].failed);
    prog_metric(out, failing, "gauge", "Targets of agents that clients are kept from.");
    for (size_t i = 0; i < w->count; i++)
        if (w->checks[i].good || w->checks[i].failed)
            prog_out_add(out, "%s{name=\"%s\"} %d\n", failing, i ? w->names[i] : "other",
                         w->checks[i].failing);
    pthread_mutex_unlock(&w->lock);
}

// ------------------------------------------------------------------------------------------------
// Metrics

// What is counted at this time. A session is in the list or in the counts, never in both.
typedef struct watch_snapshot {
    prog_counts *counts;
    size_t count;
    watch_live *live;  // copies, each with a reference
    size_t live_count;
} watch_snapshot;

static int watch_snapshot_open(watch *w, watch_snapshot *now)
{
    memset(now, 0, sizeof *now);
    pthread_mutex_lock(&w->lock);
    now->counts = malloc(w->count * sizeof *now->counts);
    now->live = malloc((w->live_count + 1) * sizeof *now->live);
    if (now->counts && now->live) {
        memcpy(now->counts, w->counts, w->count * sizeof *now->counts);
        now->count = w->count;
        for (size_t i = 0; i < WATCH_SLOTS; i++)
            for (const watch_live *l = w->slots[i]; l; l = l->next) {
                revdial_session_ref(l->session);
                now->live[now->live_count++] = *l;
            }
    }
    pthread_mutex_unlock(&w->lock);
    return now->count > 0;
}

static void watch_snapshot_close(watch_snapshot *now)
{
    for (size_t i = 0; i < now->live_count; i++) revdial_session_unref(now->live[i].session);
    free(now->live);
    free(now->counts);
}

static uint64_t watch_sum(const uint64_t by_scheme[REVDIAL_AUTH_PLACES])
{
    uint64_t sum = 0;
    for (int i = 0; i < REVDIAL_AUTH_PLACES; i++) sum += by_scheme[i];
    return sum;
}

static void watch_metrics_auth(prog_out *out, const revdial_stats *stats)
{
    const struct {
        int status;
        uint64_t count;
    } by[] = {{401, watch_sum(stats->refused_401)},
              {403, watch_sum(stats->refused_403)},
              {409, stats->refused_409},
              {429, stats->refused_429},
              {503, stats->refused_503}};
    uint64_t others = stats->handshakes_refused;
    static const char *const schemes[REVDIAL_AUTH_PLACES] = {"bearer", "basic", "digest", "mtls"};
    static const char name[] = "revdial_auth_failures_total";
    static const char refused[] = "revdial_handshakes_refused_total";
    prog_metric(out, name, "counter", "Credentials that are wrong, or right for another name.");
    for (int i = 0; i < REVDIAL_AUTH_PLACES; i++)
        prog_out_add(out,
                     "%s{scheme=\"%s\",reason=\"credentials\"} %" PRIu64 "\n"
                     "%s{scheme=\"%s\",reason=\"name\"} %" PRIu64 "\n",
                     name, schemes[i], stats->refused_401[i], name, schemes[i],
                     stats->refused_403[i]);
    prog_metric(out, refused, "counter", "Backends that were turned away, by the answer.");
    for (int i = 0; i < 5; i++) {
        prog_out_add(out, "%s{status=\"%d\"} %" PRIu64 "\n", refused, by[i].status, by[i].count);
        others -= by[i].count;
    }
    prog_out_add(out, "%s{status=\"other\"} %" PRIu64 "\n", refused, others);
}

static void watch_metrics_clients(prog_out *out, const revdial_stats *stats)
{
    static const char name[] = "revdial_clients_refused_total";
    prog_metric(out, name, "counter", "Clients above a limit of their port.");
    prog_out_add(out,
                 "%s{limit=\"max-clients\"} %" PRIu64 "\n"
                 "%s{limit=\"max-clients-per-source\"} %" PRIu64 "\n",
                 name, stats->clients_refused, name, stats->clients_refused_per_source);
}

static void watch_metrics_dials(prog_out *out, const revdial_stats *stats)
{
    static const char name[] = "revdial_dial_duration_seconds";
    prog_metric_errors(out, "revdial_dials_failed_total", "Dials that failed.",
                       stats->dials_failed_by);
    prog_metric(out, name, "histogram", "Until the backend accepted or the dial failed.");
    for (int i = 0; i < REVDIAL_DIAL_PLACES; i++)
        prog_out_add(out, "%s_bucket{le=\"%g\"} %" PRIu64 "\n", name, 250e-6 * (double)(1 << i),
                     stats->dials_within[i]);
    prog_out_add(out, "%s_bucket{le=\"+Inf\"} %" PRIu64 "\n%s_sum %.6f\n%s_count %" PRIu64 "\n",
                 name, stats->dials, name, (double)stats->dial_us / 1e6, name, stats->dials);
}

void watch_metrics(watch *w, revdial_proxy *p, prog_out *out)
{
    watch_snapshot now;
    revdial_stats stats;
    revdial_proxy_get_stats(p, &stats);
    prog_metrics_process(out, &stats);
    watch_metrics_auth(out, &stats);
    watch_metrics_clients(out, &stats);
    watch_metrics_dials(out, &stats);
    pthread_mutex_lock(&w->writing);
    out->failed |= !watch_snapshot_open(w, &now);
    for (size_t i = 0; i < now.live_count; i++) {
        revdial_session_info info;
        revdial_session_get_info(now.live[i].session, &info);
        prog_counts_add_live(&now.counts[now.live[i].at], &info);
    }
    pthread_mutex_unlock(&w->writing);
    prog_metrics_sessions(out, now.counts, now.count);
    watch_metrics_checks(w, out);
    watch_snapshot_close(&now);
}
