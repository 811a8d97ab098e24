// What happened, in numbers: counts by name, and the text that Prometheus reads.
#include <inttypes.h>
#include <string.h>

#include "admin.h"

// ------------------------------------------------------------------------------------------------
// Counts

void prog_counts_add(prog_counts *c, const revdial_session_info *info)
{
    c->streams_opened += info->streams_opened;
    c->rx_bytes += info->rx_bytes;
    c->tx_bytes += info->tx_bytes;
    c->credit_waits += info->credit_waits;
    c->streams_refused += info->streams_refused;
    for (int i = 0; i < REVDIAL_RESET_PLACES; i++) c->resets[i] += info->resets[i];
}

void prog_counts_take(prog_counts *c, const revdial_session_info *info)
{
    c->streams_opened -= info->streams_opened;
    c->rx_bytes -= info->rx_bytes;
    c->tx_bytes -= info->tx_bytes;
    c->credit_waits -= info->credit_waits;
    c->streams_refused -= info->streams_refused;
    for (int i = 0; i < REVDIAL_RESET_PLACES; i++) c->resets[i] -= info->resets[i];
}

void prog_counts_add_live(prog_counts *c, const revdial_session_info *info)
{
    prog_counts_add(c, info);
    c->sessions += info->state != REVDIAL_DOWN;
    c->streams += info->streams;
    c->queued_bytes += info->queued_bytes;
    c->unread_bytes += info->unread_bytes;
    if (info->rtt_us > c->rtt_us) c->rtt_us = info->rtt_us;
}

static size_t prog_error_place(int code)
{
    return code <= 0 && code > -REVDIAL_ERROR_PLACES ? (size_t)-code : 0;
}

void prog_counts_close(prog_counts *c, const revdial_err *why)
{
    c->closed_by[prog_error_place(why ? why->code : 0)]++;
}

// ------------------------------------------------------------------------------------------------
// Metrics

void prog_metric(prog_out *out, const char *name, const char *type, const char *help)
{
    prog_out_add(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

// Words for errors and reset codes, which are what their constants are called.
static const char *prog_error_word(size_t place)
{
    switch ((int)place) {
    case 0: return "none";
#define REVDIAL_X(name, value, text) \
    case -(value): return #name;
        REVDIAL_ERRORS(REVDIAL_X)
#undef REVDIAL_X
    }
    return "unknown";
}

static const char *prog_reset_word(int place)
{
    static const char *const words[REVDIAL_RESET_PLACES] = {
#define REVDIAL_X(name, value, text) [value] = #name,
        REVDIAL_RESETS(REVDIAL_X)
#undef REVDIAL_X
            [REVDIAL_RESET_PLACES - 1] = "APPLICATION"};
    return words[place] ? words[place] : "UNKNOWN";
}

void prog_metric_errors(prog_out *out, const char *name, const char *help,
                        const uint64_t by_error[REVDIAL_ERROR_PLACES])
{
    prog_metric(out, name, "counter", help);
    for (size_t i = 1; i < REVDIAL_ERROR_PLACES; i++)
        if (by_error[i])
            prog_out_add(out, "%s{reason=\"%s\"} %" PRIu64 "\n", name, prog_error_word(i),
                         by_error[i]);
}

typedef struct prog_family {
    const char *name, *type, *label, *help;  // label: behind that of the name
    size_t at;
    enum { PROG_OF_UNSIGNED, PROG_OF_U64, PROG_OF_SIZE } kind;
} prog_family;

#define PROG_AT(field) offsetof(prog_counts, field)
static const prog_family prog_families[] = {
    {"revdial_sessions", "gauge", "", "Sessions that are up.", PROG_AT(sessions), PROG_OF_UNSIGNED},
    {"revdial_sessions_opened_total", "counter", "", "Sessions that came up.", PROG_AT(opened),
     PROG_OF_U64},
    {"revdial_streams", "gauge", "", "Streams that are open.", PROG_AT(streams), PROG_OF_UNSIGNED},
    {"revdial_streams_opened_total", "counter", "", "Streams that were opened.",
     PROG_AT(streams_opened), PROG_OF_U64},
    {"revdial_bytes_total", "counter", ",direction=\"received\"", "Payload of streams.",
     PROG_AT(rx_bytes), PROG_OF_U64},
    {"revdial_bytes_total", "counter", ",direction=\"sent\"", "Payload of streams.",
     PROG_AT(tx_bytes), PROG_OF_U64},
    {"revdial_flow_stalls_total", "counter", "",
     "Times that a stream had bytes to send and no credit.", PROG_AT(credit_waits), PROG_OF_U64},
    {"revdial_streams_refused_total", "counter", "",
     "Streams above a limit of their session, of either end.", PROG_AT(streams_refused),
     PROG_OF_U64},
    {"revdial_queue_bytes", "gauge", "", "Bytes that wait to be sent.", PROG_AT(queued_bytes),
     PROG_OF_SIZE},
    {"revdial_unread_bytes", "gauge", "", "Bytes that were received and not yet read.",
     PROG_AT(unread_bytes), PROG_OF_SIZE},
};

static uint64_t prog_family_value(const prog_family *f, const prog_counts *c)
{
    const char *at = (const char *)c + f->at;
    switch (f->kind) {
    case PROG_OF_UNSIGNED: return *(const unsigned *)(const void *)at;
    case PROG_OF_U64: return *(const uint64_t *)(const void *)at;
    case PROG_OF_SIZE: break;
    }
    return *(const size_t *)(const void *)at;
}

static const char *prog_counts_name(const prog_counts *c)
{
    return c->name ? c->name : "other";
}

// The metrics that have a reason, of sessions and streams that ended.
static void prog_metrics_ends(prog_out *out, const prog_counts *counts, size_t count)
{
    static const char closed[] = "revdial_sessions_closed_total";
    static const char reset[] = "revdial_streams_reset_total";
    prog_metric(out, closed, "counter",
                "Sessions that ended, by error; none: this side closed it.");
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < REVDIAL_ERROR_PLACES; k++)
            if (counts[i].closed_by[k] || k == 0)
                prog_out_add(out, "%s{name=\"%s\",reason=\"%s\"} %" PRIu64 "\n", closed,
                             prog_counts_name(&counts[i]), prog_error_word(k),
                             counts[i].closed_by[k]);
    prog_metric(out, reset, "counter", "Streams that either side reset, by code.");
    for (size_t i = 0; i < count; i++)
        for (int k = 0; k < REVDIAL_RESET_PLACES; k++)
            if (counts[i].resets[k])
                prog_out_add(out, "%s{name=\"%s\",reason=\"%s\"} %" PRIu64 "\n", reset,
                             prog_counts_name(&counts[i]), prog_reset_word(k), counts[i].resets[k]);
}

void prog_metrics_sessions(prog_out *out, const prog_counts *counts, size_t count)
{
    static const char rtt[] = "revdial_session_rtt_seconds";
    for (size_t k = 0; k < sizeof prog_families / sizeof *prog_families; k++) {
        const prog_family *f = &prog_families[k];
        if (k == 0 || strcmp(f->name, f[-1].name) != 0) prog_metric(out, f->name, f->type, f->help);
        for (size_t i = 0; i < count; i++)
            prog_out_add(out, "%s{name=\"%s\"%s} %" PRIu64 "\n", f->name,
                         prog_counts_name(&counts[i]), f->label, prog_family_value(f, &counts[i]));
    }
    prog_metric(out, rtt, "gauge", "Least recent round trip, of the slowest session of the name.");
    for (size_t i = 0; i < count; i++)
        if (counts[i].rtt_us)
            prog_out_add(out, "%s{name=\"%s\"} %.6f\n", rtt, prog_counts_name(&counts[i]),
                         (double)counts[i].rtt_us / 1e6);
    prog_metrics_ends(out, counts, count);
}

void prog_metrics_process(prog_out *out, const revdial_stats *stats)
{
    prog_metric(out, "revdial_build_info", "gauge", "Version; always 1.");
    prog_out_add(out, "revdial_build_info{version=\"%s\",tls=\"%s\"} 1\n", REVDIAL_VERSION_STRING,
                 prog_tls_version());
    prog_metric(out, "revdial_draining", "gauge", "1: the program lets what runs end, and stops.");
    prog_out_add(out, "revdial_draining %d\n", prog_stop != 0);
    prog_metric(out, "revdial_memory_bytes", "gauge", "Memory of all sessions.");
    prog_out_add(out, "revdial_memory_bytes %zu\n", stats->memory_bytes);
}
