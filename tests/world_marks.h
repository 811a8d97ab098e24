// What the seeds of a simulated world have to meet: a range of seeds in which one of these never
// happens does not show what it claims.
#ifndef REVDIAL_TEST_WORLD_MARKS_H
#define REVDIAL_TEST_WORLD_MARKS_H

#include "test.h"

// X(name, event, text): a line of the log that has the text in it; or "", and mark_set() is called.
#define WORLD_MARKS(X) \
    X(SESSION_UP, "session.up", "") \
    X(SESSION_LOST, "session.down", "") \
    X(SESSION_SILENT, "session.silent", "") \
    X(SESSION_REFUSED, "session.refused", "") \
    X(WRONG_SECRET, "session.refused", "name=evil") \
    X(CHALLENGED, "link.challenged", "") \
    X(RETRY, "link.retry", "") \
    X(DIAL_FAILED, "dial.failed", "") \
    X(CLIENT_GONE, "client.gone", "") \
    X(STREAM_REFUSED, "stream.refused", "") \
    X(ACCEPT_PAUSED, "accept.paused", "") \
    X(CLIENT_REFUSED, "client.refused", "") \
    X(LINK_STOPPED, "link.stopped", "") \
    X(AGENT_DRAINING, "session.draining", "peer=") \
    X(PROXY_DRAINING, "session.draining", "server=") \
    X(SESSION_REPLACED, "session.replaced", "") \
    X(SESSION_REVOKED, "session.revoked", "") \
    X(STREAM_OPENED, "stream.open", "") \
    X(STREAM_ENDED, "stream.end", "") \
    X(WHOLE_DUPLEX, "", "") \
    X(WHOLE_CLIENT_FIRST, "", "") \
    X(WHOLE_TARGET_FIRST, "", "") \
    X(WHOLE_PINGS, "", "") \
    X(WHOLE_HASTY, "", "") \
    X(CUT_BEHIND_AN_ANSWER, "", "") \
    X(RST_IN_MID_TRANSFER, "", "") \
    X(RST_OF_OUR_OWN, "", "") \
    X(GAVE_UP, "", "") \
    X(NO_MEMORY, "", "") \
    X(NO_DESCRIPTOR, "", "") \
    X(NO_THREAD, "", "") \
    X(NO_BUFFER, "", "") \
    X(TCP_TIMED_OUT, "", "") \
    X(RESOLVER_SILENT, "", "") \
    X(RESOLVER_LIED, "", "") \
    X(SPLICED_IN, "", "") \
    X(SPLICED_OUT, "", "") \
    X(PIPE_FULL, "", "") \
    X(NO_PIPE, "", "") \
    X(PORT_SWAPPED, "", "") \
    X(PORT_GONE, "", "") \
    X(LIMITS_CHANGED, "", "") \
    X(TABLE_REPLACED, "", "") \
    X(REVOKED, "", "") \
    X(SESSION_DRAINED, "", "") \
    X(SESSION_KILLED, "", "") \
    X(DRAINED, "", "") \
    X(DRAIN_TIMED_OUT, "", "") \
    X(REFUSED_BY_CHANGE, "", "") \
    X(READ_WANTS_WRITE, "", "") \
    X(WRITE_WANTS_READ, "", "") \
    X(RECORD_REFUSED, "", "") \
    X(RECORD_CUT_OFF, "", "") \
    X(RECORD_CLOSED, "", "") \
    X(RECORD_BAD_SUM, "", "") \
    X(RECORD_BAD_TYPE, "", "") \
    X(RECORD_TOO_LONG, "", "") \
    X(RECORD_OUT_OF_TURN, "", "") \
    X(HOSTILE_IN_RECORDS, "", "") \
    X(BROKEN_HELLO, "", "") \
    X(BROKEN_HEAD, "", "") \
    X(BROKEN_SESSION, "", "") \
    X(BROKEN_WAITED, "", "") \
    X(FAKE_HELLO, "", "") \
    X(FAKE_HEAD, "", "") \
    X(FAKE_SESSION, "", "") \
    X(FAKE_SESSION_UP, "session.up", "server=https://10.0.0.9:") \
    X(ROUTE_DIALS, "", "") \
    X(ROUTE_MORE, "", "") \
    X(ROUTE_TAKES, "", "") \
    X(ROUTE_REFUSES, "", "") \
    X(NOT_ALLOWED, "", "") \
    X(HEADER_FOR_TARGET, "", "") \
    X(EGRESS_CONNECT, "", "") \
    X(EGRESS_SOCKS, "", "") \
    X(EGRESS_REFUSED, "", "") \
    X(PEER_ASKED, "", "") \
    X(NO_ROUTE, "", "") \
    X(MAPPED, "", "") \
    X(STALE_PATH, "", "") \
    X(V6_CLIENT, "", "") \
    X(V6_TARGET, "", "") \
    X(V6_SESSION, "", "") \
    X(UNIX_CLIENT, "", "") \
    X(UNIX_TARGET, "", "") \
    X(UNIX_SESSION, "", "") \
    X(CUT_SHORT, "", "") \
    X(SHARE_WATCHED, "", "") \
    X(SHARE_HURRIED, "", "") \
    X(SHARE_FINISHED, "", "") \
    X(SHARE_STOPPED, "", "") \
    X(SHARE_ABORTED, "", "") \
    X(SHARE_WHOLE, "", "") \
    X(FELL_BACK_TO_V4, "", "") \
    X(FELL_BACK_TO_V6, "", "") \
    X(CALM, "", "") \
    X(SETTLED_AFTER_FAULTS, "", "")

enum mark {
#define WORLD_X(name, event, text) MARK_##name,
    WORLD_MARKS(WORLD_X)
#undef WORLD_X
        MARKS
};
static const struct {
    const char *name, *event, *text;
} mark_kinds[MARKS] = {
#define WORLD_X(name, event, text) {#name, event, text},
    WORLD_MARKS(WORLD_X)
#undef WORLD_X
};

static uint64_t marks_hit[MARKS];

static void mark_set(enum mark m)
{
    marks_hit[m]++;
}

static void mark_line(const char *event, const char *msg)
{
    for (int i = 0; i < MARKS; i++)
        if (mark_kinds[i].event[0] && !strcmp(mark_kinds[i].event, event) &&
            strstr(msg, mark_kinds[i].text))
            marks_hit[i]++;
}

#endif
