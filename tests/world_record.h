// A transport of the simulated world, by the hook that TLS uses: records with a mask and a checksum
// after a handshake of two flights. It is as awkward as the hook allows. A read may have to write
// first, and a write to read; a record that was not sent whole is asked for again with the same
// bytes; received records wait where the socket does not show them. It checks its caller, too:
// calls never overlap, and after an error there are only do_reason and do_close.
#ifndef REVDIAL_TEST_WORLD_RECORD_H
#define REVDIAL_TEST_WORLD_RECORD_H

#include "world_names.h"

enum {
    RECORD_HEAD = 8,  // type, 0, length, checksum
    RECORD_MOST = 4096,
    RECORD_KEYS = 7  // data records, after which the keys change
};

enum record_type { RECORD_HELLO = 1, RECORD_DATA, RECORD_NEW_KEY, RECORD_KEY_OK, RECORD_CLOSE };

// HELLO --sent and received--> OPEN --an error--> BROKEN
enum record_state { RECORD_STARTS, RECORD_OPEN, RECORD_BROKEN };

typedef struct record_way {
    int fd, is_server, is_busy;
    enum record_state state;
    machine *machine;
    uint8_t in[RECORD_HEAD + RECORD_MOST], out[4 * (RECORD_HEAD + RECORD_MOST)];
    uint8_t plain[RECORD_MOST];
    size_t in_len, out_len, plain_at, plain_len;
    const void *asked;  // by the last do_write(), which has to come again
    size_t asked_len, asked_taken;
    int hello_sent, hello_came, close_sent, close_came;
    // The client has changed its keys: the server reads nothing before that is answered, and the
    // client writes nothing. Only it does that: else both could wait for the other to read.
    int owes_ok, is_answering, awaits_ok;
    unsigned count;  // of data records sent
    const char *why;
} record_way;

static unsigned record_fails_one_in;  // handshakes

static uint32_t record_sum(const uint8_t *bytes, size_t n, unsigned type)
{
    uint32_t sum = type * 0x9E3779B9u + (uint32_t)n;
    for (size_t i = 0; i < n; i++) sum = sum * 33 + bytes[i];
    return sum;
}

static int record_break(record_way *w, int code, const char *why)
{
    w->state = RECORD_BROKEN;
    w->why = why;
    return code;
}

// What the peer has sent is no record, or not one that belongs there.
static int record_refuse(record_way *w, enum mark m, const char *why)
{
    mark_set(m);
    return record_break(w, REVDIAL_ETLS, why);
}

static void record_enter(record_way *w)
{
    if (w->is_busy) world_fail("calls of a transport overlap");
    if (w->state == RECORD_BROKEN) world_fail("a transport is used after its error");
    w->is_busy = 1;
}

static ptrdiff_t record_leave(record_way *w, ptrdiff_t result)
{
    w->is_busy = 0;
    return result;
}

static size_t record_make(uint8_t *to, unsigned type, const uint8_t *bytes, size_t n)
{
    uint32_t sum = record_sum(bytes, n, type);
    to[0] = (uint8_t)type;
    to[1] = 0;
    to[2] = (uint8_t)(n >> 8);
    to[3] = (uint8_t)n;
    for (int i = 0; i < 4; i++) to[4 + i] = (uint8_t)(sum >> (8 * i));
    for (size_t i = 0; i < n; i++) to[RECORD_HEAD + i] = (uint8_t)(bytes[i] ^ 0x5A);
    return RECORD_HEAD + n;
}

static int record_put(record_way *w, unsigned type, const uint8_t *bytes, size_t n)
{
    if (w->out_len + RECORD_HEAD + n > sizeof w->out) return 0;
    w->out_len += record_make(w->out + w->out_len, type, bytes, n);
    return 1;
}

// Returns 0 when all has been sent, REVDIAL_WANT_WRITE, or an error.
static int record_flush(record_way *w)
{
    while (w->out_len > 0) {
        ssize_t n = fault_send(w->fd, w->out, w->out_len, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return REVDIAL_WANT_WRITE;
        if (n < 0) return record_break(w, REVDIAL_ELOST, "sending failed");
        w->out_len -= (size_t)n;
        memmove(w->out, w->out + n, w->out_len);
    }
    return 0;
}

static size_t record_wants(const record_way *w)
{
    if (w->in_len < RECORD_HEAD) return RECORD_HEAD - w->in_len;
    return RECORD_HEAD + ((size_t)w->in[2] << 8 | w->in[3]) - w->in_len;
}

static int record_take(record_way *w)
{
    unsigned type = w->in[0];
    size_t n = w->in_len - RECORD_HEAD;
    uint32_t sum = 0;
    for (size_t i = 0; i < n; i++) w->in[RECORD_HEAD + i] ^= 0x5A;
    for (int i = 0; i < 4; i++) sum |= (uint32_t)w->in[4 + i] << (8 * i);
    w->in_len = 0;
    if (w->in[1] || sum != record_sum(w->in + RECORD_HEAD, n, type))
        return record_refuse(w, MARK_RECORD_BAD_SUM, "a record has the wrong checksum");
    if (type < RECORD_HELLO || type > RECORD_CLOSE)
        return record_refuse(w, MARK_RECORD_BAD_TYPE, "a record of an unknown type");
    if ((type == RECORD_HELLO) == w->hello_came)
        return record_refuse(w, MARK_RECORD_OUT_OF_TURN, "a record out of order");
    w->hello_came = 1;
    if (type == RECORD_DATA) {
        memcpy(w->plain, w->in + RECORD_HEAD, n);
        w->plain_at = 0;
        w->plain_len = n;
    }
    w->owes_ok |= type == RECORD_NEW_KEY;
    w->awaits_ok &= type != RECORD_KEY_OK;
    w->close_came |= type == RECORD_CLOSE;
    return 0;
}

// Reads one record, if there is room for it. Returns 0, REVDIAL_WANT_READ, or an error.
static int record_fill(record_way *w)
{
    for (size_t want = record_wants(w); want > 0; want = record_wants(w)) {
        if (want > sizeof w->in - w->in_len)
            return record_refuse(w, MARK_RECORD_TOO_LONG, "a record is too long");
        ssize_t n = fault_recv(w->fd, w->in + w->in_len, want, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return REVDIAL_WANT_READ;
        if (n <= 0) {
            mark_set(MARK_RECORD_CUT_OFF);
            return record_break(w, REVDIAL_ELOST, n ? "receiving failed" : "cut off");
        }
        w->in_len += (size_t)n;
    }
    return record_take(w);
}

static int record_answer(record_way *w)
{
    if (w->owes_ok && record_put(w, RECORD_KEY_OK, NULL, 0)) w->owes_ok = 0;
    w->is_answering = 1;
    int code = record_flush(w);
    if (code == REVDIAL_WANT_WRITE) mark_set(MARK_READ_WANTS_WRITE);
    if (!code) w->is_answering = w->owes_ok;
    return code;
}

// ---- the hook

static int record_shake(record_way *w)
{
    static const uint8_t hello[300] = "hello";
    int code = 0;
    // The server speaks second.
    while (!code && !(w->hello_sent && w->hello_came)) {
        if (!w->hello_sent && (w->hello_came || !w->is_server))
            w->hello_sent = record_put(w, RECORD_HELLO, hello, sizeof hello);
        code = record_flush(w);
        if (!code && !w->hello_came) code = record_fill(w);
    }
    if (!code) code = record_flush(w);
    if (!code && world_chance(record_fails_one_in)) {
        mark_set(MARK_RECORD_REFUSED);
        return record_break(w, REVDIAL_ETLS, "the certificate is not good");
    }
    if (!code) w->state = RECORD_OPEN;
    return code;
}

static int record_handshake(void *ctx)
{
    record_way *w = ctx;
    record_enter(w);
    if (w->state != RECORD_STARTS) world_fail("a second handshake");
    return (int)record_leave(w, record_shake(w));
}

static ptrdiff_t record_read_some(record_way *w, void *buf, size_t len)
{
    while (w->plain_len == 0) {
        int code = w->owes_ok || w->is_answering ? record_answer(w) : 0;
        if (code) return code;
        if (w->close_came) return 0;
        code = record_fill(w);
        if (code) return code;
    }
    size_t n = len < w->plain_len ? len : w->plain_len;
    memcpy(buf, w->plain + w->plain_at, n);
    w->plain_at += n;
    w->plain_len -= n;
    return (ptrdiff_t)n;
}

static ptrdiff_t record_read(void *ctx, void *buf, size_t len)
{
    record_way *w = ctx;
    record_enter(w);
    if (w->state != RECORD_OPEN || !len) world_fail("a read before the handshake, or of nothing");
    return record_leave(w, record_read_some(w, buf, len));
}

static ptrdiff_t record_write_some(record_way *w, const void *buf, size_t len)
{
    int code = record_flush(w);
    // A data record that came meanwhile waits for its reader: this side goes on writing.
    while (!code && w->awaits_ok && !w->plain_len) code = record_fill(w);
    if (code == REVDIAL_WANT_READ) mark_set(MARK_WRITE_WANTS_READ);
    if (!code && !w->asked_taken) {
        w->asked_taken = len < RECORD_MOST ? len : RECORD_MOST;
        record_put(w, RECORD_DATA, buf, w->asked_taken);
        if (++w->count % RECORD_KEYS == 0 && !w->is_server)
            w->awaits_ok = record_put(w, RECORD_NEW_KEY, NULL, 0);
        code = record_flush(w);
    }
    if (code) return code;
    size_t n = w->asked_taken;
    w->asked_taken = 0;
    return (ptrdiff_t)n;
}

static ptrdiff_t record_write(void *ctx, const void *buf, size_t len)
{
    record_way *w = ctx;
    record_enter(w);
    if (w->state != RECORD_OPEN || !len) world_fail("a write before the handshake, or of nothing");
    if (w->close_sent) world_fail("a write after the end was announced");
    if (w->asked && (w->asked != buf || w->asked_len != len))
        world_fail("a write that did not finish comes again with other bytes");
    ptrdiff_t n = record_write_some(w, buf, len);
    int is_again = n == REVDIAL_WANT_READ || n == REVDIAL_WANT_WRITE;
    w->asked = is_again ? buf : NULL;
    w->asked_len = len;
    return record_leave(w, n);
}

static size_t record_pending(void *ctx)
{
    const record_way *w = ctx;
    return w->plain_len;
}

static int record_finish(void *ctx)
{
    record_way *w = ctx;
    record_enter(w);
    if (!w->close_sent) w->close_sent = record_put(w, RECORD_CLOSE, NULL, 0);
    int code = record_flush(w);
    if (!code && w->close_sent) mark_set(MARK_RECORD_CLOSED);
    return (int)record_leave(w, code || w->close_sent ? code : REVDIAL_WANT_WRITE);
}

static void record_close(void *ctx)
{
    record_way *w = ctx;
    if (w->is_busy) world_fail("a transport is closed while it is in use");
    heap_resize(w->machine, w, 0);
}

static const char *record_reason(void *ctx)
{
    const record_way *w = ctx;
    return w->why;
}

static int record_wrap(void *ud, int fd, const char *host, revdial_transport *out, revdial_err *err)
{
    record_way *w = fault_resize(machine_self(), NULL, sizeof *w);
    (void)ud;
    if (!w) {
        err->code = REVDIAL_ENOMEM;
        snprintf(err->msg, sizeof err->msg, "out of memory");
        return REVDIAL_ENOMEM;
    }
    memset(w, 0, sizeof *w);
    w->fd = fd;
    w->is_server = host == NULL;
    w->machine = machine_self();
    revdial_transport t = {.ctx = w,
                           .do_handshake = record_handshake,
                           .do_read = record_read,
                           .do_write = record_write,
                           .do_pending = record_pending,
                           .do_finish = record_finish,
                           .do_close = record_close,
                           .do_reason = record_reason};
    *out = t;
    return 0;
}

static const revdial_tls record_tls = {NULL, record_wrap};

#endif
