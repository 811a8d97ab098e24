// One stream as its two ends see it. A proxy asks the agent by a dial to a target that cannot exist
// (".invalid", RFC 6761), with the id in the metadata: an agent that does not know the question
// refuses the target. Clients of a front end may name the target, and cannot set the metadata. The
// answer is about streams of the session that the question comes in, which are all the proxy's own.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "admin.h"

enum { PROG_ASK_MS = 2000, PROG_ASK_SIZE = 256 };

#define PROG_ASK_TARGET "stream.revdial.invalid:1"
#define PROG_ASK_KEY "revdial-stream"

static const char *const prog_waits[] = {"peer's credit", "socket", "turn",   "rate",
                                         "reader",        "accept", "nothing"};
enum { PROG_NO_WAIT = 6 };  // the last one

// ------------------------------------------------------------------------------------------------
// The agent

// On an I/O thread. The answer is shorter than the socket's buffer.
static void prog_stream_tell(void *ud, revdial_stream *st)
{
    revdial_session *s = revdial_stream_session(st);
    revdial_stream_info info;
    char text[PROG_ASK_SIZE] = "no stream\n";
    int fd;
    (void)ud;
    if (revdial_session_find_stream(s, revdial_stream_meta(st, PROG_ASK_KEY), &info) == 0)
        snprintf(text, sizeof text,
                 "stream \"%s\" %" PRId64 " ms %" PRIu64 " %" PRIu64 " %" PRIu32 " %" PRIu32
                 " %" PRIu32 "\n",
                 info.flow.blocked_on[0] ? info.flow.blocked_on : "nothing", info.blocked_ms,
                 info.flow.sent, info.flow.received, info.flow.buffered, info.flow.send_credit,
                 info.flow.recv_credit);
    revdial_session_unref(s);
    fd = revdial_stream_fd(st);
    if (fd < 0) {
        revdial_close(st);
        return;
    }
    if (write(fd, text, strlen(text)) < 0) {
        // The proxy has gone, and reads nothing.
    }
    close(fd);
}

int prog_stream_is_asked(revdial_target_request *r)
{
    if (!r->asked || strcmp(r->asked, PROG_ASK_TARGET) != 0) return 0;
    if (!revdial_stream_meta(r->stream, PROG_ASK_KEY)) return 0;
    r->take = prog_stream_tell;
    return 1;
}

// ------------------------------------------------------------------------------------------------
// The proxy

// Takes an answer apart. Returns 0, or -1: it is none.
static int prog_stream_understand(revdial_stream_info *out, const char *text)
{
    char on[16];
    int end = -1;
    memset(out, 0, sizeof *out);
    if (sscanf(text,
               "stream \"%15[^\"]\" %" SCNd64 " ms %" SCNu64 " %" SCNu64 " %" SCNu32 " %" SCNu32
               " %" SCNu32 "%n",
               on, &out->blocked_ms, &out->flow.sent, &out->flow.received, &out->flow.buffered,
               &out->flow.send_credit, &out->flow.recv_credit, &end) != 7 ||
        end < 0 || strcmp(text + end, "\n") != 0 || out->blocked_ms < 0)
        return -1;
    for (size_t i = 0; i < sizeof prog_waits / sizeof *prog_waits; i++)
        if (strcmp(on, prog_waits[i]) == 0) out->flow.blocked_on = prog_waits[i];
    if (out->flow.blocked_on == prog_waits[PROG_NO_WAIT]) out->flow.blocked_on = "";
    return out->flow.blocked_on ? 0 : -1;
}

static enum prog_other prog_stream_refused(const revdial_err *err)
{
    switch (err->code) {
    case REVDIAL_EINVAL:   // a stock yamux library, to which no target can be named
    case REVDIAL_EDENIED:  // an agent without this question
    case REVDIAL_EREFUSED:
    case REVDIAL_EUNREACH: return PROG_OTHER_UNKNOWN;
    case REVDIAL_EDRAINING: return PROG_OTHER_DRAINING;
    case REVDIAL_ETIMEDOUT: return PROG_OTHER_SILENT;
    default: return PROG_OTHER_LOST;
    }
}

enum prog_other prog_stream_ask(revdial_session *s, const char *dial, revdial_stream_info *out)
{
    const revdial_kv meta[] = {{PROG_ASK_KEY, dial}};
    const revdial_dial_opts opts = {
        .target = PROG_ASK_TARGET, .meta = meta, .meta_count = 1, .timeout_ms = PROG_ASK_MS};
    char text[PROG_ASK_SIZE] = "";
    ptrdiff_t n = 0, len = 0;
    revdial_err err = {0};
    revdial_stream *st = revdial_session_dial(s, &opts, &err);
    if (!st) return prog_stream_refused(&err);
    revdial_stream_set_deadline(st, REVDIAL_RD, PROG_ASK_MS);
    while (len < PROG_ASK_SIZE - 1 &&
           (n = revdial_read(st, text + len, (size_t)(PROG_ASK_SIZE - 1 - len))) > 0)
        len += n;
    revdial_reset(st, REVDIAL_RESET_CANCEL);  // of one who does not stop
    revdial_close(st);
    if (n < 0) return n == REVDIAL_ETIMEDOUT ? PROG_OTHER_SILENT : PROG_OTHER_LOST;
    if (strcmp(text, "no stream\n") == 0) return PROG_OTHER_GONE;
    return prog_stream_understand(out, text) == 0 ? PROG_OTHER_TOLD : PROG_OTHER_UNKNOWN;
}

const char *prog_other_word(enum prog_other other)
{
    static const char *const words[] = {"told", "gone", "unknown", "draining", "silent", "lost"};
    return words[other];
}

const char *prog_other_text(enum prog_other other)
{
    switch (other) {
    case PROG_OTHER_TOLD: break;
    case PROG_OTHER_GONE: return "the other end has no such stream any more";
    case PROG_OTHER_UNKNOWN:
        return "the other end does not know the question: it is no revdial-agent, or an old one";
    case PROG_OTHER_DRAINING: return "the session drains, so that nothing can be asked in it";
    case PROG_OTHER_SILENT: return "the other end has not answered within 2 s";
    case PROG_OTHER_LOST: return "the session was lost";
    }
    return "";
}
