// What both programs tell about themselves: JSON for programs, tables for people.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "admin.h"

enum {
    PROG_STATUS_STREAMS = 8,  // blocked ones that are told of each session
    PROG_BLOCKED_MS = 1000    // a shorter time is how flow control works
};

const char *prog_state_word(int state)
{
    switch (state) {
    case REVDIAL_CONNECTING: return "connecting";
    case REVDIAL_UP: return "up";
    case REVDIAL_DRAINING: return "draining";
    case REVDIAL_DOWN: return "down";
    case REVDIAL_BACKOFF: return "backoff";
    default: return "stopped";
    }
}

void prog_status_stream(prog_out *out, const revdial_stream_info *st)
{
    prog_out_add(out, "{\"dial\":\"%s\",\"client\":", st->dial);
    prog_out_json(out, st->client);
    prog_out_add(out, ",\"target\":");
    prog_out_json(out, st->target);
    prog_out_add(out,
                 ",\"blocked_on\":\"%s\",\"blocked_ms\":%" PRId64 ",\"sent_bytes\":%" PRIu64 ","
                 "\"received_bytes\":%" PRIu64 ",\"unread_bytes\":%u,\"send_credit\":%u,"
                 "\"recv_credit\":%u}",
                 st->flow.blocked_on, st->blocked_ms, st->flow.sent, st->flow.received,
                 (unsigned)st->flow.buffered, (unsigned)st->flow.send_credit,
                 (unsigned)st->flow.recv_credit);
}

// Those of its streams that do not move.
static void prog_status_blocked(prog_out *out, revdial_session *s)
{
    revdial_stream_info st[PROG_STATUS_STREAMS];
    size_t count = revdial_session_list_streams(s, PROG_BLOCKED_MS, st, PROG_STATUS_STREAMS);
    prog_out_add(out, "\"blocked\":%zu,\"blocked_streams\":[", count);
    for (size_t i = 0; i < count && i < PROG_STATUS_STREAMS; i++) {
        if (i > 0) prog_out_add(out, ",");
        prog_status_stream(out, &st[i]);
    }
    prog_out_add(out, "]");
}

static void prog_status_session(prog_out *out, revdial_session *s)
{
    revdial_session_info info;
    revdial_session_get_info(s, &info);
    prog_out_add(out,
                 "{\"id\":\"%016" PRIx64 "\",\"name\":\"%s\",\"is_peer\":%s,\"instance\":", info.id,
                 info.name, info.is_peer ? "true" : "false");
    prog_out_json(out, info.instance);
    prog_out_add(out, ",\"identity\":");
    prog_out_json(out, info.identity);
    prog_out_add(out, ",\"peer\":");
    prog_out_json(out, info.peer);
    prog_out_add(
        out, ",\"state\":\"%s\",\"carrier\":\"%s\",\"age_ms\":%" PRId64 ",\"rtt_us\":%" PRId64 ",",
        prog_state_word(info.state),
        info.carrier == REVDIAL_CARRIER_WEBSOCKET ? "websocket" : "raw", info.age_ms, info.rtt_us);
    prog_out_add(out,
                 "\"streams\":%u,\"streams_opened\":%" PRIu64 ",\"streams_reset\":%" PRIu64 ","
                 "\"rx_bytes\":%" PRIu64 ",\"tx_bytes\":%" PRIu64
                 ",\"queued_bytes\":%zu,\"unread_bytes\":%zu,"
                 "\"memory_bytes\":%zu,\"credit_waits\":%" PRIu64 ",",
                 info.streams, info.streams_opened, info.streams_reset, info.rx_bytes,
                 info.tx_bytes, info.queued_bytes, info.unread_bytes, info.memory_bytes,
                 info.credit_waits);
    prog_status_blocked(out, s);
    prog_out_add(out, "}");
}

void prog_status_sessions(prog_out *out, revdial_session **list, size_t listed, size_t total)
{
    prog_out_add(out, ",\"sessions_total\":%zu,\"sessions\":[", total);
    for (size_t i = 0; i < listed; i++) {
        prog_out_add(out, i > 0 ? ",\n" : "\n");
        prog_status_session(out, list[i]);
    }
    prog_out_add(out, "]");
}

void prog_status_head(prog_out *out, const char *program, const revdial_stats *stats)
{
    prog_out_add(out,
                 "{\"program\":\"%s\",\"version\":\"%s\",\"pid\":%ld,\"draining\":%s,"
                 "\"counters\":{\"sessions\":%u,\"streams\":%u,\"sessions_opened\":%" PRIu64 ","
                 "\"sessions_closed\":%" PRIu64 ",\"auth_failures\":%" PRIu64
                 ",\"handshakes_refused\":%" PRIu64 ",\"clients_refused\":%" PRIu64 ",",
                 program, REVDIAL_VERSION_STRING, (long)getpid(), prog_stop ? "true" : "false",
                 stats->sessions, stats->streams, stats->sessions_opened, stats->sessions_closed,
                 stats->auth_failures, stats->handshakes_refused,
                 stats->clients_refused + stats->clients_refused_per_source);
    prog_out_add(out,
                 "\"streams_opened\":%" PRIu64 ",\"streams_reset\":%" PRIu64
                 ",\"dials_failed\":%" PRIu64 ","
                 "\"reconnects\":%" PRIu64 ",\"rx_bytes\":%" PRIu64 ",\"tx_bytes\":%" PRIu64
                 ",\"memory_bytes\":%zu}",
                 stats->streams_opened, stats->streams_reset, stats->dials_failed,
                 stats->reconnects, stats->rx_bytes, stats->tx_bytes, stats->memory_bytes);
}

// "12.3 MB" and the like, in powers of 1000.
static void prog_table_bytes(prog_table *t, uint64_t bytes)
{
    static const char units[] = "kMGTP";
    double value = (double)bytes;
    int unit = -1;
    for (; value >= 1000 && unit < 4; unit++) value /= 1000;
    if (unit < 0)
        prog_table_cell(t, "%" PRIu64 " B", bytes);
    else
        prog_table_cell(t, "%.1f %cB", value, units[unit]);
}

void prog_table_time(prog_table *t, int64_t ms)
{
    if (ms < 60000)
        prog_table_cell(t, "%.1f s", (double)ms / 1000);
    else if (ms < 3600000)
        prog_table_cell(t, "%" PRId64 " m %" PRId64 " s", ms / 60000, ms / 1000 % 60);
    else
        prog_table_cell(t, "%" PRId64 " h %" PRId64 " m", ms / 3600000, ms / 60000 % 60);
}

static void prog_table_session(prog_table *t, const revdial_session_info *info)
{
    prog_table_cell(t, "%016" PRIx64 "", info->id);
    prog_table_cell(t, "%s%s", info->name, info->is_peer ? " (peer)" : "");
    prog_table_cell(t, "%s", info->instance);
    prog_table_cell(t, "%s", info->identity[0] ? info->identity : "-");
    prog_table_cell(t, "%s", info->peer);
    prog_table_cell(t, "%s", prog_state_word(info->state));
    prog_table_cell(t, "%s", info->carrier == REVDIAL_CARRIER_WEBSOCKET ? "websocket" : "raw");
    prog_table_cell(t, "%.1f ms", (double)info->rtt_us / 1000);
    prog_table_cell(t, "%u", info->streams);
    prog_table_cell(t, "%" PRIu64, info->streams_opened);
    prog_table_cell(t, "%" PRIu64, info->streams_reset);
    prog_table_cell(t, "%" PRIu64, info->credit_waits);
    prog_table_bytes(t, info->rx_bytes);
    prog_table_bytes(t, info->tx_bytes);
    prog_table_bytes(t, info->queued_bytes);
    prog_table_bytes(t, info->unread_bytes);
    prog_table_bytes(t, info->memory_bytes);
    prog_table_time(t, info->age_ms);
}

void prog_table_heads(prog_table *t, const char *const *heads)
{
    for (; *heads; heads++) {
        prog_table_cell(t, "%s", *heads);
        t->columns += 1;
    }
}

void prog_table_stream(prog_table *t, const revdial_stream_info *st)
{
    prog_table_cell(t, "%s", st->flow.blocked_on[0] ? st->flow.blocked_on : "nothing");
    prog_table_time(t, st->blocked_ms);
    prog_table_bytes(t, st->flow.sent);
    prog_table_bytes(t, st->flow.received);
    prog_table_bytes(t, st->flow.buffered);
    prog_table_bytes(t, st->flow.send_credit);
    prog_table_bytes(t, st->flow.recv_credit);
}

// Below the sessions: their streams that do not move.
static void prog_table_blocked(prog_out *out, revdial_session **list, size_t listed)
{
    static const char *const heads[] = {"BLOCKED DIAL", PROG_STREAM_HEADS, "CLIENT", "TARGET",
                                        NULL};
    revdial_stream_info st[PROG_STATUS_STREAMS];
    prog_table t = {0};
    size_t rows = 0, all = 0;
    prog_table_heads(&t, heads);
    for (size_t i = 0; i < listed; i++) {
        size_t count =
            revdial_session_list_streams(list[i], PROG_BLOCKED_MS, st, PROG_STATUS_STREAMS);
        all += count;
        for (size_t k = 0; k < count && k < PROG_STATUS_STREAMS; k++, rows++) {
            prog_table_cell(&t, "%s", st[k].dial);
            prog_table_stream(&t, &st[k]);
            prog_table_cell(&t, "%s", st[k].client);
            prog_table_cell(&t, "%s", st[k].target);
        }
    }
    if (rows) {
        prog_out_add(out, "\n");
        prog_table_end(&t, out);
    }
    if (rows < all) prog_out_add(out, "... and %zu more\n", all - rows);
    prog_out_free(&t.cells);
}

void prog_status_title(prog_out *out, const char *program, const revdial_stats *stats)
{
    prog_out_add(out, "%s %s, pid %ld%s: %u sessions, %u streams\n", program,
                 REVDIAL_VERSION_STRING, (long)getpid(), prog_stop ? ", draining" : "",
                 stats->sessions, stats->streams);
    prog_out_add(out,
                 "sessions: %" PRIu64 " opened, %" PRIu64 " closed, %" PRIu64
                 " reconnects; %" PRIu64 " handshakes refused, %" PRIu64 " wrong credentials\n",
                 stats->sessions_opened, stats->sessions_closed, stats->reconnects,
                 stats->handshakes_refused, stats->auth_failures);
    prog_out_add(out,
                 "streams: %" PRIu64 " opened, %" PRIu64 " reset, %" PRIu64
                 " dials failed, %" PRIu64 " clients refused; %" PRIu64 " bytes received, %" PRIu64
                 " sent, %zu of memory\n\n",
                 stats->streams_opened, stats->streams_reset, stats->dials_failed,
                 stats->clients_refused + stats->clients_refused_per_source, stats->rx_bytes,
                 stats->tx_bytes, stats->memory_bytes);
}

void prog_status_table(prog_out *out, revdial_session **list, size_t listed, size_t total)
{
    static const char *const heads[] = {"SESSION", "NAME",    "INSTANCE", "IDENTITY", "PEER",
                                        "STATE",   "CARRIER", "RTT",      "STREAMS",  "OPENED",
                                        "RESET",   "STALLS",  "RECEIVED", "SENT",     "QUEUED",
                                        "UNREAD",  "MEMORY",  "AGE",      NULL};
    prog_table t = {0};
    prog_table_heads(&t, heads);
    for (size_t i = 0; i < listed; i++) {
        revdial_session_info info;
        revdial_session_get_info(list[i], &info);
        prog_table_session(&t, &info);
    }
    prog_table_end(&t, out);
    if (listed < total) prog_out_add(out, "... and %zu more\n", total - listed);
    prog_table_blocked(out, list, listed);
}

void prog_status_links(prog_out *out, const char *key, const revdial_link_info *links, size_t count)
{
    prog_out_add(out, ",\"%s\":[", key);
    for (size_t i = 0; i < count; i++) {
        const revdial_link_info *k = &links[i];
        prog_out_add(out, "%s\n{\"url\":", i > 0 ? "," : "");
        prog_out_json(out, k->url);
        prog_out_add(out, ",\"address\":\"%s\"", k->address);
        prog_out_add(out,
                     ",\"state\":\"%s\",\"since_ms\":%" PRId64 ",\"retry_in_ms\":%d,"
                     "\"attempts\":%u,\"session\":\"%016" PRIx64 "\",\"reason\":",
                     prog_state_word(k->state), k->since_ms, k->retry_in_ms, k->attempts,
                     k->session_id);
        prog_out_json(out, k->why.msg);
        prog_out_add(out, "}");
    }
    prog_out_add(out, "]");
}

void prog_table_links(prog_out *out, const char *head, const revdial_link_info *links, size_t count)
{
    const char *const heads[] = {head,       "STATE",   "SINCE",        "RETRY IN",
                                 "ATTEMPTS", "SESSION", "LAST FAILURE", NULL};
    prog_table t = {0};
    prog_table_heads(&t, heads);
    for (size_t i = 0; i < count; i++) {
        const revdial_link_info *k = &links[i];
        prog_table_cell(&t, "%s%s%s", k->url, k->address[0] ? " at " : "", k->address);
        prog_table_cell(&t, "%s", prog_state_word(k->state));
        prog_table_time(&t, k->since_ms);
        if (k->state == REVDIAL_BACKOFF)
            prog_table_time(&t, k->retry_in_ms);
        else
            prog_table_cell(&t, "-");
        prog_table_cell(&t, "%u", k->attempts);
        if (k->session_id)
            prog_table_cell(&t, "%016" PRIx64, k->session_id);
        else
            prog_table_cell(&t, "-");
        prog_table_cell(&t, "%s", k->why.msg[0] ? k->why.msg : "-");
    }
    prog_table_end(&t, out);
    prog_out_add(out, "\n");
}

int prog_answer_health(void *ud, const prog_request *r, prog_out *out)
{
    (void)ud;
    (void)r;
    prog_out_add(out, "ok\n");
    return 200;
}

int prog_answer_ready(prog_out *out, int is_ready, unsigned sessions)
{
    int status = is_ready ? 200 : 503;
    prog_out_add(out, "{\"status\":%d,\"sessions\":%u}\n", status, sessions);
    return status;
}

size_t prog_status_limit(const prog_request *r)
{
    char text[8];
    long limit = PROG_STATUS_SESSIONS;
    if (prog_request_query(r, "limit", text, sizeof text)) limit = strtol(text, NULL, 10);
    return limit > 0 && limit < PROG_STATUS_SESSIONS ? (size_t)limit : PROG_STATUS_SESSIONS;
}

void prog_log_status(prog_log *log, const revdial_stats *stats)
{
    char msg[512];
    snprintf(msg, sizeof msg,
             "sessions_count=%u streams_count=%u sessions_opened_count=%" PRIu64 " "
             "streams_opened_count=%" PRIu64 " streams_reset_count=%" PRIu64
             " dials_failed_count=%" PRIu64 " "
             "reconnects_count=%" PRIu64 " received_bytes=%" PRIu64 " sent_bytes=%" PRIu64
             " memory_bytes=%zu",
             stats->sessions, stats->streams, stats->sessions_opened, stats->streams_opened,
             stats->streams_reset, stats->dials_failed, stats->reconnects, stats->rx_bytes,
             stats->tx_bytes, stats->memory_bytes);
    prog_log_put(log, REVDIAL_LOG_INFO, "status", msg);
}
