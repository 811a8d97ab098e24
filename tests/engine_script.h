// A small language in which a scenario and its outcome are one line each.
//
// A scenario is words. Frames that the peer sends, as `type id flags length-or-body`:
//     Wp1+SYN   Wm1+ACK=100   Dp1'hello'   Dp1#70000   Dp1%300000   P0+SYN=7   G0=0   !0100...
//     p1 p2 ... are the peer's ids in order, m1 m2 ... the engine's: each case runs in both roles.
//     'x' is a body, #n a body of n patterned bytes, %n claims n bytes that do not follow, !.. is
//     raw hex, `30*Wp1` is thirty of it, and `30*Wp1++` counts the id up.
// Over WebSocket all that goes into a frame of its own; frames by hand are ^ and their first byte:
//     ^89'hello'   ^82!0001...   ^88=1000 (a status)   ^8a   and ^!.. is raw hex, in no frame.
// What the application and the world do starts with a dot:
//     .open .acceptp1 .readp1 .readp1=9 .writep1'x' .writep1#9 .finp1 .stopp1 .rstp1=5 .closep1
//     .drain .shutdown .tick=1000 (ms) .eof (the connection ends) .hold .flow (output)
//     .eager (read at once) .silent (our pings get no answer)
// The output is printed in the same words, the data frames of one stream in a row as one, our own
// pings left out. The log has events, and the results of calls that say something.
#ifndef REVDIAL_TEST_ENGINE_SCRIPT_H
#define REVDIAL_TEST_ENGINE_SCRIPT_H

#include "engine_util.h"

typedef struct script_case {
    const char *name;  // number of the row, and what it says
    const char *script;
    const char *out;  // NULL: not looked at
    const char *log;  // NULL: not looked at
    rig_options options;
} script_case;

// Frames that have been written down and not been sent yet.
typedef struct script_bytes {
    uint8_t *at;
    size_t len, size;
} script_bytes;

typedef struct script_word {
    const char *s;  // what is left of the word
    const char *end;
} script_word;

static void script_add(script_bytes *b, const void *p, size_t n)
{
    if (b->len + n > b->size) {
        b->size = (b->len + n) * 2;
        b->at = realloc(b->at, b->size);
        if (!b->at) abort();
    }
    if (n) memcpy(b->at + b->len, p, n);
    b->len += n;
}

static int script_is(script_word *w, const char *text)
{
    size_t n = strlen(text);
    if ((size_t)(w->end - w->s) < n || memcmp(w->s, text, n) != 0) return 0;
    w->s += n;
    return 1;
}

static uint64_t script_number(script_word *w)
{
    char *end;
    uint64_t v = strtoull(w->s, &end, 0);
    if (end == w->s) {
        fprintf(stderr, "script: a number is missing at \"%.20s\"\n", w->s);
        abort();
    }
    w->s = end;
    return v;
}

static uint32_t script_id(const rig *r, script_word *w)
{
    if (script_is(w, "p")) return rig_id(r, 1, (uint32_t)script_number(w));
    if (script_is(w, "m")) return rig_id(r, 0, (uint32_t)script_number(w));
    return (uint32_t)script_number(w);
}

static unsigned script_flags(script_word *w)
{
    unsigned flags = 0;
    for (;;) {
        if (script_is(w, "+SYN"))
            flags |= WIRE_SYN;
        else if (script_is(w, "+ACK"))
            flags |= WIRE_ACK;
        else if (script_is(w, "+FIN"))
            flags |= WIRE_FIN;
        else if (script_is(w, "+RST"))
            flags |= WIRE_RST;
        else if (script_is(w, "+0x")) {
            w->s -= 2;
            flags |= (unsigned)script_number(w);
        } else
            return flags;
    }
}

static void script_text_body(rig_stream *s, script_bytes *b, const char *text, size_t n)
{
    for (size_t i = 0; s && i < n; i++)
        if (s->fed + i < RIG_KEEP) s->fed_text[s->fed + i] = text[i];
    if (s) s->fed += n;
    script_add(b, text, n);
}

static void script_pattern_body(rig_stream *s, script_bytes *b, uint32_t id, size_t n)
{
    uint8_t bytes[4096];
    while (n) {
        size_t part = n < sizeof bytes ? n : sizeof bytes;
        rig_pattern_fill(bytes, part, id, 1, s ? s->fed : 0);
        script_add(b, bytes, part);
        if (s) s->fed += part;
        n -= part;
    }
}

// One frame, from a word such as Wp1+SYN=7.
static void script_frame(rig *r, script_bytes *b, script_word w, uint32_t step)
{
    static const char types[] = "DWPG";
    wire_frame f = {0, 0, 0, 0, 0};
    const char *type = strchr(types, *w.s++), *body = NULL;
    size_t at = b->len, body_len = 0;
    uint8_t head[WIRE_HEADER] = {0};
    if (!type) abort();
    f.type = (unsigned)(type - types);
    f.id = script_id(r, &w) + 2 * step;
    f.flags = script_flags(&w);
    rig_stream *s = f.type == WIRE_DATA && f.id ? rig_stream_of(r, f.id) : NULL;
    if ((f.flags & WIRE_SYN) && f.type <= WIRE_CREDIT && f.id) {
        rig_stream *fresh = rig_stream_of(r, f.id);
        if (fresh) *fresh = (rig_stream){.id = f.id};
    }
    script_add(b, head, sizeof head);
    if (script_is(&w, "=") || script_is(&w, "%")) {
        f.len = (uint32_t)script_number(&w);
    } else if (script_is(&w, "#")) {
        f.len = (uint32_t)script_number(&w);
        script_pattern_body(s, b, f.id, f.len);
    } else if (script_is(&w, "'")) {
        body = w.s;
        while (w.s < w.end && *w.s != '\'') w.s++;
        body_len = (size_t)(w.s - body);
        script_text_body(s, b, body, body_len);
        f.len = (uint32_t)body_len;
    }
    wire_put(b->at + at, &f);
}

static void script_hex(script_bytes *b, script_word w)
{
    for (w.s++; w.s + 1 < w.end; w.s += 2) {
        char two[3] = {w.s[0], w.s[1], 0};
        uint8_t byte = (uint8_t)strtoul(two, NULL, 16);
        script_add(b, &byte, 1);
    }
}

// Flushes what is before it, so that the frames keep their order.
static void script_ws(rig *r, script_bytes *b, script_word w)
{
    script_bytes body = {0};
    char first[3] = {0};
    rig_feed(r, b->at, b->len);
    b->len = 0;
    w.s++;
    if (*w.s != '!') {
        memcpy(first, w.s, 2);
        w.s += 2;
    }
    if (*w.s == '!')
        script_hex(&body, w);
    else if (*w.s == '\'')
        script_add(&body, w.s + 1, (size_t)(w.end - w.s) - 2);
    else if (script_is(&w, "=")) {
        uint64_t status = script_number(&w);
        uint8_t two[2] = {(uint8_t)(status >> 8), (uint8_t)status};
        script_add(&body, two, 2);
    }
    if (first[0])
        rig_ws_frame(r, (unsigned)strtoul(first, NULL, 16), body.at, body.len);
    else
        rig_feed_raw(r, body.at, body.len);
    free(body.at);
}

static void script_send(rig *r, script_bytes *b)
{
    rig_feed(r, b->at, b->len);
    b->len = 0;
    rig_drain(r);
    rig_flush(r);
}

// ---- what the application does

static void script_result(rig *r, const char *what, uint32_t id, ptrdiff_t result)
{
    char name[16];
    if (result < 0)
        rig_say(&r->log, "%s%s:%s", what, id ? rig_id_name(r, id, name) : "",
                rig_error_name(result));
}

static void script_open(rig *r)
{
    revdial_dial_opts opts = {0};
    char name[16];
    int64_t id = revdial_engine_open(r->e, &opts, NULL);
    if (id > 0)
        rig_say(&r->log, "%s", rig_id_name(r, (uint32_t)id, name));
    else
        script_result(r, "open", 0, (ptrdiff_t)id);
}

static void script_read(rig *r, script_word *w)
{
    char name[16];
    uint32_t id = script_id(r, w);
    rig_stream *s = rig_stream_of(r, id);
    uint64_t before = s ? s->taken : 0;
    ptrdiff_t n = rig_read_all(r, id, script_is(w, "=") ? (size_t)script_number(w) : SIZE_MAX);
    rig_show_bytes(r, id);
    if (n == 0)
        rig_say(&r->log, "eof%s", rig_id_name(r, id, name));
    else if (n != REVDIAL_EAGAIN || (s && s->taken == before))
        script_result(r, "read", id, n);
}

// Writes until all is taken, or nothing is for want of credit; the socket takes it along.
static void script_write(rig *r, script_word *w)
{
    uint8_t bytes[8192];
    char name[16];
    uint32_t id = script_id(r, w);
    rig_stream *s = rig_stream_of(r, id);
    uint64_t want, done = 0;
    const char *text = script_is(w, "'") ? w->s : NULL;
    ptrdiff_t n = 0;
    if (text) {
        want = 0;
        while (text[want] != '\'') want++;
        w->s += want + 1;
    } else {
        if (!script_is(w, "#")) abort();
        want = script_number(w);
    }
    while (done < want) {
        size_t part = want - done < sizeof bytes ? (size_t)(want - done) : sizeof bytes;
        if (text)
            memcpy(bytes, text + done, part);
        else
            rig_pattern_fill(bytes, part, id, 0, s ? s->written : 0);
        n = revdial_engine_write(r->e, id, bytes, part);
        if (n <= 0) break;
        done += (uint64_t)n;
        if (s) s->written += (uint64_t)n;
        rig_drain(r);
        rig_flush(r);
    }
    if (n < 0)
        script_result(r, "write", id, n);
    else if (done < want)
        rig_say(&r->log, "wrote%s=%llu", rig_id_name(r, id, name), (unsigned long long)done);
}

static void script_stream_op(rig *r, script_word *w)
{
    uint32_t id;
    if (script_is(w, "accept")) {
        id = script_id(r, w);
        script_result(r, "accept", id, revdial_engine_accept(r->e, id));
    } else if (script_is(w, "fin")) {
        id = script_id(r, w);
        script_result(r, "fin", id, revdial_engine_end_write(r->e, id));
    } else if (script_is(w, "stop")) {
        id = script_id(r, w);
        script_result(r, "stop", id, revdial_engine_end_read(r->e, id));
    } else if (script_is(w, "rst")) {
        id = script_id(r, w);
        int code = script_is(w, "=") ? (int)script_number(w) : 0;
        script_result(r, "rst", id, revdial_engine_reset(r->e, id, code));
    } else if (script_is(w, "close")) {
        revdial_engine_close(r->e, script_id(r, w));
    } else if (script_is(w, "read")) {
        script_read(r, w);
    } else if (script_is(w, "write")) {
        script_write(r, w);
    } else {
        fprintf(stderr, "script: no such word: .%s\n", w->s);
        abort();
    }
}

static void script_op(rig *r, script_word w)
{
    if (script_is(&w, "open"))
        script_open(r);
    else if (script_is(&w, "drain"))
        revdial_engine_drain(r->e);
    else if (script_is(&w, "shutdown"))
        revdial_engine_terminate(r->e);
    else if (script_is(&w, "tick="))
        rig_tick(r, (int64_t)script_number(&w));
    else if (script_is(&w, "eof"))
        revdial_engine_input(r->e, NULL, 0, r->now);
    else if (script_is(&w, "hold"))
        r->held = 1;
    else if (script_is(&w, "flow"))
        r->held = 0;
    else if (script_is(&w, "eager"))
        r->eager = 1;
    else if (script_is(&w, "silent"))
        r->silent = 1;
    else
        script_stream_op(r, &w);
    rig_drain(r);
    rig_flush(r);
}

static void script_run(rig *r, const char *script)
{
    script_bytes bytes = {0};
    for (const char *at = script; *at;) {
        if (*at == ' ') {
            at++;
            continue;
        }
        script_word w = {at, at + strcspn(at, " ")};
        uint64_t count = 1;
        if (*at == '.') {
            script_send(r, &bytes);
            w.s++;
            script_op(r, w);
        } else if (*at == '!') {
            script_hex(&bytes, w);
        } else {
            const char *star = memchr(w.s, '*', (size_t)(w.end - w.s));
            uint32_t step = w.end[-1] == '+';
            if (star) {
                count = script_number(&w);
                w.s++;
            }
            for (uint32_t i = 0; i < count; i++)
                if (*w.s == '^')
                    script_ws(r, &bytes, w);
                else
                    script_frame(r, &bytes, w, step * i);
        }
        at = w.end;
    }
    script_send(r, &bytes);
    rig_end_run(r);
    free(bytes.at);
}

// ---- cases

// Runs a case one way. Returns 1 if all is as it should be, and the bytes fed in *fed.
static int script_try(const script_case *c, int role, size_t chunk, size_t cut, size_t *fed)
{
    rig_options options = c->options;
    int before = test_failures;
    options.role = role;
    rig *r = rig_new(&options);
    if (!r) return test_fail(__FILE__, __LINE__, "%s: no engine", c->name);
    r->chunk = chunk;
    r->cut = cut;
    script_run(r, c->script);
    *fed = r->fed;
    if (!r->held) judge_rest(&r->wire);
    const char *who = role == REVDIAL_ROLE_PROXY ? "proxy" : "backend";
    if (c->out && strcmp(r->out.s, c->out) != 0)
        test_fail(__FILE__, __LINE__,
                  "[%s] %s (chunk %zu, cut %zu): sent\n      %s\n    not\n      %s", c->name, who,
                  chunk, cut, r->out.s, c->out);
    if (c->log && strcmp(r->log.s, c->log) != 0)
        test_fail(__FILE__, __LINE__,
                  "[%s] %s (chunk %zu, cut %zu): saw\n      %s\n    not\n      %s", c->name, who,
                  chunk, cut, r->log.s, c->log);
    if (r->wire.failures)
        test_fail(__FILE__, __LINE__, "[%s] %s (chunk %zu, cut %zu): %s", c->name, who, chunk, cut,
                  r->wire.why);
    if (r->stuck)
        test_fail(__FILE__, __LINE__, "[%s] %s: input took nothing, and no event waited", c->name,
                  who);
    revdial_engine_free(r->e);
    r->e = NULL;
    if (r->heap.live_bytes || r->heap.live_blocks)
        test_fail(__FILE__, __LINE__, "[%s] %s: %zu bytes leaked", c->name, who,
                  r->heap.live_bytes);
    rig_free(r);
    return test_failures == before;
}

// Whole, one byte at a time, and cut in two at every byte, in long rows at some places.
static int script_check_role(const script_case *c, int role)
{
    size_t total, fed;
    if (!script_try(c, role, 0, 0, &total)) return 0;
    if (!script_try(c, role, 1, 0, &fed)) return 0;
    size_t cuts = total < 200 ? total + !total : total < 4096 ? 200 : (size_t)test_share(200);
    size_t step = total / cuts + (total / cuts % 2 == 0);
    for (size_t cut = 1; cut < total; cut += step)
        if (!script_try(c, role, 0, cut, &fed)) return 0;
    return 1;
}

static int script_check(const script_case *c)
{
    if (c->options.role) return script_check_role(c, c->options.role);
    return script_check_role(c, REVDIAL_ROLE_BACKEND) && script_check_role(c, REVDIAL_ROLE_PROXY);
}

static inline int script_check_all(const script_case *cases, size_t count)
{
    int ok = 1;
    for (size_t i = 0; i < count; i++) ok &= script_check(&cases[i]);
    return ok;
}
#define SCRIPT_CHECK_ALL(cases) script_check_all(cases, sizeof(cases) / sizeof *(cases))

#endif
