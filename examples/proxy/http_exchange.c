// A client's connection: requests, and the responses to them, one after the other.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "http_conn.h"

// The steps below return 1 if there may be more to do now.

enum { GIVE_UP_MS = 5000 };  // on a client that takes nothing, as the library does

static int conn_linger(http_conn *c)
{
    c->is_clean = c->sent.state == HTTP_BODY_DONE && c->client.in.len == 0;
    http_upstream_drop(c);
    http_bytes_free(&c->request);
    c->phase = HTTP_LINGER;
    return 1;
}

// Waits for the next request.
static int conn_next(http_conn *c)
{
    http_bytes_free(&c->request);
    memset(&c->scan, 0, sizeof c->scan);
    c->phase = HTTP_HEAD;
    http_wait(c, HTTP_WAIT_IDLE);
    return 1;
}

// One line for each request, once it is over. why is NULL if its response is complete.
static void conn_log(http_conn *c, const char *why)
{
    prog_log *log = http_config_of(c->thread)->log;
    char msg[1024] = "", number[32];
    if (!c->said.len) return;
    revdial_log_field(msg, sizeof msg, "client", c->address);
    revdial_log_field(msg, sizeof msg, "request", c->said.data);
    if (c->up) revdial_log_field(msg, sizeof msg, "name", c->up->name);
    snprintf(number, sizeof number, "%d", c->status);
    revdial_log_field(msg, sizeof msg, "status", number);
    snprintf(number, sizeof number, "%llu", (unsigned long long)c->moved[0]);
    revdial_log_field(msg, sizeof msg, "sent_bytes", number);
    snprintf(number, sizeof number, "%llu", (unsigned long long)c->moved[1]);
    revdial_log_field(msg, sizeof msg, "received_bytes", number);
    snprintf(number, sizeof number, "%lld", (long long)(c->thread->now_ms - c->began_ms));
    revdial_log_field(msg, sizeof msg, "took_ms", number);
    revdial_log_field(msg, sizeof msg, "traceparent", c->trace);
    revdial_log_field(msg, sizeof msg, "why", why);
    prog_log_put(log, REVDIAL_LOG_INFO, "http.request", msg);
    c->said.len = 0;
}

// The client's connection is reset at once.
static int conn_abort(http_conn *c, const char *why)
{
    struct linger none = {1, 0};
    conn_log(c, why);
    setsockopt(c->client.fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
    http_conn_free(c);
    return 0;
}

// It is reset, and what came before the cut must not be torn up by that: not before it has left,
// nor before its reader comes to it, for whom another 10 ms are left.
static int conn_deliver(http_conn *c)
{
    size_t left = http_side_unsent(&c->client);
    if (left < c->left) c->give_up_ms = c->thread->now_ms + GIVE_UP_MS;
    if (left == 0 && c->left == 0) return conn_abort(c, NULL);
    if (c->thread->now_ms >= c->give_up_ms) return conn_abort(c, NULL);
    c->left = left;
    http_wait(c, HTTP_WAIT_CUT);
    return 0;
}

// The connection ends in the middle of a response, and must not look as if it were complete: in
// HTTP/1.0 and in a tunnel FIN would say so.
static int conn_cut(http_conn *c, const char *why)
{
    int is_reset =
        c->phase == HTTP_TUNNEL || (!c->is_chunked && c->coming.framing != HTTP_LENGTH);
    conn_log(c, why);
    if (!is_reset) return conn_linger(c);
    http_upstream_drop(c);
    http_bytes_free(&c->request);
    c->phase = HTTP_CUT;
    c->left = SIZE_MAX;
    return conn_deliver(c);
}

// Answers instead of the backend, before anything of its response has gone out.
static int conn_refuse(http_conn *c, int status, const char *text)
{
    http_thread *t = c->thread;
    http_answer how = {.minor = c->minor, .is_head = c->is_head};
    if (c->sent.state != HTTP_BODY_DONE) c->is_kept = 0;
    how.is_kept = c->is_kept;
    c->status = status;
    t->piece_count = 0;
    http_add(t, t->written, http_error_write(t->written, status, text, &how));
    http_side_send(t, &c->client);
    conn_log(c, text);
    http_upstream_drop(c);
    return c->is_kept ? conn_next(c) : conn_linger(c);
}

// The same for what is no request. Where it ends nobody knows: no other can follow.
static int conn_reject(http_conn *c, int status, const char *text)
{
    http_head *h = &c->thread->head;
    h->body = HTTP_UNTIL_CLOSE;
    http_body_init(&c->sent, h);
    c->minor = 1;
    c->is_head = 0;
    return conn_refuse(c, status, text);
}

// ------------------------------------------------------------------------------------------------
// Dials

// What a client is told of a dial that failed, which names neither the agent nor its target.
static const struct {
    int code;
    const char *text;
} failures[] = {
    {REVDIAL_EINVAL, "dial: the route of this host gives no name or target that can be dialled"},
    {REVDIAL_ENOBACKEND, "dial: the backend of this host is not connected"},
    {REVDIAL_EDRAINING, "dial: the backend of this host is going away"},
    {REVDIAL_EDENIED, "dial: the backend of this host may not connect to its target"},
    {REVDIAL_EREFUSED, "dial: the backend of this host refused the connection"},
    {REVDIAL_EUNREACH, "dial: the backend of this host could not connect to its target"},
    {REVDIAL_ELOST, "dial: the backend of this host was lost"},
    {REVDIAL_ETIMEDOUT, "dial: the backend of this host did not reach its target in time"},
};

static int conn_dial_failed(http_conn *c, int code, int reset)
{
    const revdial_err why = {.code = code, .reset = reset};
    const char *text = "dial: this proxy could not";
    for (size_t i = 0; i < sizeof failures / sizeof *failures; i++)
        if (failures[i].code == code) text = failures[i].text;
    return conn_refuse(c, front_status(&why), text);
}

static int conn_dial(http_conn *c, const route_choice *to)
{
    int code = http_upstream_dial(c, to);
    if (code != 0) return conn_dial_failed(c, code, 0);
    c->phase = HTTP_DIALLING;
    http_wait(c, HTTP_WAIT_NONE);  // the dial has a timeout of its own
    return 0;
}

void http_conn_dialled(http_conn *c)
{
    int code = c->up->code, reset = c->up->reset;
    c->phase = HTTP_EXCHANGE;
    if (!c->up->side.st) conn_dial_failed(c, code, reset);
    http_conn_run(c);
}

// A stream that was kept from the request before had ended when this one was sent. It is sent once
// more, if nothing of it can have been used, or it may be repeated.
static int conn_retry(http_conn *c)
{
    route_choice to = {.has_target = 1};
    strcpy(to.name, c->up->name);
    strcpy(to.target, c->up->target);
    http_upstream_drop(c);
    c->may_retry = 0;
    return conn_dial(c, &to);
}

// ------------------------------------------------------------------------------------------------
// Requests

// Keeps what the access log says of a request, as a string.
static void conn_describe(http_conn *c, const http_head *h)
{
    const http_text parts[] = {h->method, {" ", 1}, h->host, h->target, {"", 1}};
    c->said.len = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        size_t len = parts[i].len < HTTP_SAID_MAX ? parts[i].len : HTTP_SAID_MAX;
        if (http_bytes_append(&c->said, parts[i].at, len) != 0) {
            c->said.len = 0;
            return;
        }
    }
}

// Which agent is it for? Returns 0 if for none.
static int conn_route(http_conn *c, const http_head *h, route_choice *to)
{
    route_host where = {.port = -1};
    if (h->authority.len && route_host_parse(&where, h->authority.at, h->authority.len) != NULL)
        return 0;
    return route_find(http_config_of(c->thread)->routes, &where, to);
}

// Keeps what has to be known of a request. Returns 0, or -1 when out of memory.
static int conn_keep_request(http_conn *c, const http_head *h)
{
    http_thread *t = c->thread;
    http_source from = {{c->address, strlen(c->address)}, c->is_trusted};
    const char *colon = strrchr(c->address, ':');
    size_t len;
    from.address.len = colon ? (size_t)(colon - c->address) : 0;  // of a Unix socket's client: none
    if (from.address.len > 2 && *from.address.at == '[') from.address.at++, from.address.len -= 2;
    c->minor = h->minor;
    c->is_head = http_text_is(h->method, "HEAD");
    c->is_upgrade = h->is_upgrade;
    c->is_kept = h->is_kept && !http_is_draining(t);
    c->has_response = c->is_answered = c->is_sent = 0;
    c->moved[0] = c->moved[1] = 0;
    c->status = 0;
    c->began_ms = t->now_ms;
    http_body_init(&c->sent, h);
    c->may_retry = c->sent.state == HTTP_BODY_DONE && http_is_idempotent(h);
    memset(&c->scan, 0, sizeof c->scan);
    http_trace(h, c->trace);
    if (http_config_of(t)->log->access) conn_describe(c, h);
    len = http_request_write(t->written, h, &from);
    http_bytes_free(&c->request);
    return http_bytes_append(&c->request, t->written, len);
}

static int conn_is_for(const http_conn *c, const route_choice *to)
{
    const http_upstream *u = c->up;
    return u && u->key == c->key && strcmp(u->name, to->name) == 0 &&
           strcmp(u->target, to->target) == 0;
}

static int conn_request(http_conn *c, http_text in, size_t len)
{
    http_thread *t = c->thread;
    http_head *h = &t->head;
    route_choice to;
    int status = http_request_parse(h, in.at, len), is_known = 0, is_short;
    if (status == 0) is_known = conn_route(c, h, &to);
    if (is_known) http_conn_pick(c, h, &to);
    is_short = status == 0 && conn_keep_request(c, h) != 0;
    if (http_side_used(&c->client, in, len) != 0) is_short = 1;
    if (status) return conn_reject(c, status, h->problem);
    if (is_short) return conn_refuse(c, 503, "this proxy is out of memory");
    if (!is_known) return conn_refuse(c, 404, "no backend serves this host");
    if (conn_is_for(c, &to)) {
        c->phase = HTTP_EXCHANGE;
        return 1;
    }
    http_upstream_drop(c);
    c->may_retry = 0;  // what was never used has not been closed meanwhile
    return conn_dial(c, &to);
}

// Returns 0 if no more can come.
static int conn_may_hear(http_conn *c)
{
    if (!c->client.is_eof && !c->client.is_bad) return 1;
    http_conn_free(c);
    return 0;
}

static int conn_head(http_conn *c)
{
    http_text in;
    int end;
    if (!http_side_flush(&c->client)) {
        http_wait(c, HTTP_WAIT_NONE);  // the response before is still on its way
        return 0;
    }
    if (c->wait == HTTP_WAIT_NONE) http_wait(c, HTTP_WAIT_IDLE);  // and now it has gone
    in = http_side_in(c->thread, &c->client);
    if (in.len == 0) return conn_may_hear(c) && 0;
    end = http_head_end(&c->scan, in.at, in.len);
    if (end > 0) return conn_request(c, in, (size_t)end);
    if (end < 0) return conn_reject(c, -end, c->scan.problem);
    if (http_side_used(&c->client, in, 0) != 0) c->client.is_bad = 1;
    if (c->wait != HTTP_WAIT_HEAD) http_wait(c, HTTP_WAIT_HEAD);
    if (http_side_more(&c->client)) return 1;
    return conn_may_hear(c) && 0;
}

// The request's head and body, as far as the agent takes them.
static int conn_send(http_conn *c)
{
    http_thread *t = c->thread;
    http_side *to = &c->up->side;
    http_text in;
    ptrdiff_t n;
    if (!http_side_flush(to)) return 0;
    if (!c->is_sent) {
        http_add(t, c->request.data + c->request.at, c->request.len);
        c->is_sent = 1;
        if (http_side_send(t, to) != 0) return 0;
        if (!c->may_retry) http_bytes_free(&c->request);
    }
    if (c->sent.state == HTTP_BODY_DONE || to->is_deaf || to->out.len) return 0;
    in = http_side_in(t, &c->client);
    if (in.len == 0) {
        if (c->client.is_eof) c->client.is_bad = 1;  // the request is not complete
        return c->client.is_bad;
    }
    n = http_add_body(t, &c->sent, in, c->sent.framing == HTTP_CHUNKED);
    if (n < 0) {
        t->piece_count = 0;
        return c->has_response ? conn_cut(c, c->sent.problem)
                               : conn_reject(c, 400, c->sent.problem);
    }
    if (n > 0) http_side_send(t, to);
    c->moved[0] += (uint64_t)n;
    if (http_side_used(&c->client, in, (size_t)n) != 0) c->client.is_bad = 1;
    if (n > 0 || http_side_more(&c->client)) return 1;
    if (c->client.is_eof) c->client.is_bad = 1;  // likewise, in the middle of the trailers
    return c->client.is_bad;
}

// ------------------------------------------------------------------------------------------------
// Responses

// The response is complete.
static int conn_answered(http_conn *c)
{
    http_upstream *u = c->up;
    http_side *s = &u->side;
    int is_sent = c->sent.state == HTTP_BODY_DONE && s->out.len == 0 && !s->is_deaf;
    conn_log(c, NULL);
    u->is_used = 1;
    // What it sends beyond its response belongs to nothing: such a stream is not used again.
    if (!u->is_kept || u->is_left || !is_sent || http_side_in(c->thread, s).len || s->is_eof ||
        s->is_bad)
        http_upstream_drop(c);
    return c->is_kept ? conn_next(c) : conn_linger(c);
}

static int conn_bad_response(http_conn *c, const char *problem)
{
    char text[160];
    snprintf(text, sizeof text, "response: %s", problem ? problem : "it is malformed");
    return conn_refuse(c, 502, text);
}

// The end of the stream, where none was due, or where it ends the body.
static int conn_stream_ended(http_conn *c)
{
    http_upstream *u = c->up;
    if (!c->is_answered && c->may_retry && u->is_used) return conn_retry(c);
    if (!c->has_response)
        return conn_refuse(c, 502,
                           c->is_answered
                               ? "response: the connection to the target ended in its head"
                               : "response: the target ended the connection before it");
    if (c->coming.framing != HTTP_UNTIL_CLOSE)
        return conn_cut(c, "the connection to the target ended in the response");
    if (u->side.is_bad) return conn_cut(c, revdial_strerror(u->side.code));
    c->coming.state = HTTP_BODY_DONE;
    if (c->is_chunked) http_add(c->thread, "0\r\n\r\n", 5);
    http_side_send(c->thread, &c->client);
    return conn_answered(c);
}

static void conn_switch(http_conn *c)
{
    c->phase = HTTP_TUNNEL;
    c->is_kept = 0;
    http_bytes_free(&c->request);
}

// Adds a head as it goes on, once it is complete; a final one begins the body. Returns 0 if the
// response cannot be.
static int conn_heed_response(http_conn *c, const http_head *h)
{
    http_answer how = {.minor = c->minor, .is_head = c->is_head, .is_kept = 1};
    if (h->status == 101 && !c->is_upgrade) return 0;
    if (h->status >= 200) {
        if (c->sent.state != HTTP_BODY_DONE || http_is_draining(c->thread)) c->is_kept = 0;
        http_body_init(&c->coming, h);
        c->has_response = 1;
        c->up->is_kept = h->is_kept;
        c->is_chunked = c->minor && (h->body == HTTP_CHUNKED || h->body == HTTP_UNTIL_CLOSE);
        if (!c->is_chunked && (h->body == HTTP_CHUNKED || h->body == HTTP_UNTIL_CLOSE))
            c->is_kept = 0;
        how.is_chunked = c->is_chunked;
        how.is_kept = c->is_kept;
    }
    c->status = h->status;
    memset(&c->scan, 0, sizeof c->scan);
    if (h->status >= 200 || c->minor)  // HTTP/1.0 knows no interim responses (9110:15.2)
        http_add(c->thread, c->thread->written, http_response_write(c->thread->written, h, &how));
    if (h->status == 101) conn_switch(c);
    return 1;
}

// Returns the bytes of the head, 0 more are needed, or -1: the response was refused.
static int conn_response_head(http_conn *c, http_text in)
{
    http_head *h = &c->thread->head;
    int end;
    c->scan.is_answer = c->is_answered = 1;
    end = http_head_end(&c->scan, in.at, in.len);
    if (end == 0) return 0;
    if (end < 0) return conn_bad_response(c, c->scan.problem), -1;
    if (http_response_parse(h, c->is_head, in.at, (size_t)end) != 0)
        return conn_bad_response(c, h->problem), -1;
    if (conn_heed_response(c, h)) return end;
    return conn_bad_response(c, "it switches protocols, and nobody asked for that"), -1;
}

static int conn_receive(http_conn *c)
{
    http_thread *t = c->thread;
    http_side *from = &c->up->side;
    int head = 0;
    ptrdiff_t n = 0;
    http_text in;
    if (!http_side_flush(&c->client)) return 0;
    in = http_side_in(t, from);
    if (in.len == 0) return from->is_eof || from->is_bad ? conn_stream_ended(c) : 0;
    if (!c->has_response) {
        head = conn_response_head(c, in);
        if (head < 0) return 1;
    }
    if (c->has_response) {
        http_text body = {in.at + head, in.len - (size_t)head};
        n = http_add_body(t, &c->coming, body, c->is_chunked);
    }
    if (n > 0) c->moved[1] += (uint64_t)n;
    http_side_send(t, &c->client);
    if (n < 0) return conn_cut(c, c->coming.problem);
    if (http_side_used(from, in, (size_t)head + (size_t)n) != 0) from->is_bad = 1;
    if (c->has_response && c->coming.state == HTTP_BODY_DONE) return conn_answered(c);
    if (head + n > 0 || http_side_more(from)) return 1;
    return from->is_eof || from->is_bad ? conn_stream_ended(c) : 0;
}

// Only the target's silence has an end, and it begins once the target has all of the request.
static enum http_wait conn_waits_for(const http_conn *c)
{
    int is_stuck = c->client.out.len || c->up->side.out.len;
    if (!c->has_response && !is_stuck && c->sent.state == HTTP_BODY_DONE) return HTTP_WAIT_RESPONSE;
    return c->client.is_ending ? HTTP_WAIT_HALF_CLOSED : HTTP_WAIT_NONE;
}

static int conn_exchange(http_conn *c)
{
    int is_more = conn_send(c);
    if (c->phase == HTTP_EXCHANGE && !c->client.is_bad) is_more |= conn_receive(c);
    if (c->phase == HTTP_EXCHANGE && !is_more) http_wait(c, conn_waits_for(c));
    return is_more;
}

// ------------------------------------------------------------------------------------------------
// Tunnels, and the end

// One direction. Returns 1 if something moved.
static int conn_carry(http_conn *c, http_side *from, http_side *to, int way)
{
    http_text in;
    if (!http_side_flush(to) || c->is_shut[way]) return 0;
    in = http_side_in(c->thread, from);
    if (in.len) {
        http_add(c->thread, in.at, in.len);
        http_side_send(c->thread, to);
        c->moved[way ^ 1] += in.len;
        return http_side_used(from, in, in.len) == 0;
    }
    if (!from->is_eof) return 0;
    http_side_finish(to);
    c->is_shut[way] = 1;
    return 1;
}

static int conn_tunnel(http_conn *c)
{
    http_side *up = &c->up->side;
    int is_more;
    is_more = conn_carry(c, &c->client, up, 1);
    is_more |= conn_carry(c, up, &c->client, 0);
    if (up->is_bad) return conn_cut(c, revdial_strerror(up->code));  // no event says so again
    if (c->is_shut[0] && c->is_shut[1]) {
        conn_log(c, NULL);
        http_conn_free(c);
    } else if (!is_more) {
        http_wait(c, c->is_shut[0] || c->is_shut[1] ? HTTP_WAIT_HALF_CLOSED : HTTP_WAIT_NONE);
    }
    return is_more && c->phase == HTTP_TUNNEL;
}

// What the client still sends is read and dropped for a while: closing a socket with unread bytes
// would reset it, and with it what the client has not read of our last response (9.6).
static int conn_drop_rest(http_conn *c)
{
    http_side *s = &c->client;
    if (!http_side_flush(s)) {
        http_wait(c, HTTP_WAIT_NONE);
        return 0;
    }
    if (!c->is_shut[0]) {
        http_wait(c, HTTP_WAIT_LINGER);
        http_side_finish(s);
        c->is_shut[0] = 1;
        http_bytes_free(&s->in);
    }
    if (http_side_in(c->thread, s).len) {
        c->is_clean = 0;
        return 1;
    }
    if (s->is_eof || s->is_bad || c->is_clean) http_conn_free(c);
    return 0;
}

static int conn_step(http_conn *c)
{
    if (c->client.is_bad || c->client.is_deaf) {
        conn_log(c, "the client left");
        http_conn_free(c);
        return 0;
    }
    switch (c->phase) {
    case HTTP_HEAD: return conn_head(c);
    case HTTP_DIALLING: return 0;
    case HTTP_EXCHANGE: return conn_exchange(c);
    case HTTP_TUNNEL: return conn_tunnel(c);
    case HTTP_LINGER: return conn_drop_rest(c);
    case HTTP_CUT: http_side_flush(&c->client); break;
    case HTTP_GONE: break;
    }
    return 0;
}

// A stream that is not in use has nothing to say except that it ends.
static void conn_check_stream(http_conn *c)
{
    http_side *s = c->up ? &c->up->side : NULL;
    if (!s) return;
    if (http_side_in(c->thread, s).len || s->is_eof || s->is_bad) http_upstream_drop(c);
}

void http_conn_run(http_conn *c)
{
    int turns = 0;
    if (c->phase == HTTP_HEAD) conn_check_stream(c);
    while (conn_step(c) && c->phase != HTTP_GONE)
        if (++turns == HTTP_TURNS_MAX) {
            int is_moving = c->phase == HTTP_EXCHANGE || c->phase == HTTP_TUNNEL;
            if (is_moving) http_wait(c, HTTP_WAIT_NONE);
            http_again(c);
            return;
        }
    if (c->phase != HTTP_HEAD) http_came(c);
}

void http_conn_start(http_conn *c)
{
    c->phase = HTTP_HEAD;
    http_wait(c, HTTP_WAIT_HEAD);
    http_conn_run(c);
}

void http_conn_leave(http_conn *c, const http_left *left)
{
    if (!c->up || c->up->session != left->session) return;
    if (!left->is_all && strcmp(c->up->target, left->target) != 0) return;
    c->up->is_left = 1;
    if (c->phase == HTTP_HEAD) http_upstream_drop(c);
}

int http_conn_is_idle(const http_conn *c)
{
    int has_begun = c->client.in.len > 0 && !c->thread->end_ms;
    return c->phase == HTTP_HEAD && !has_begun && c->client.out.len == 0;
}

int http_conn_end(http_conn *c)
{
    int is_over = c->phase == HTTP_HEAD || c->phase == HTTP_LINGER;
    is_over &= c->client.out.len == 0;
    if (!is_over) return conn_abort(c, "the proxy stops");
    http_conn_free(c);
    return 1;
}

static const char silent_target[] = "response: the target did not answer in time";

// One side has finished, and the other has been silent for long.
static void conn_half_closed_for_long(http_conn *c)
{
    if (c->client.out.len)
        conn_abort(c, "timed out");
    else if (c->phase == HTTP_EXCHANGE && !c->has_response)
        conn_refuse(c, 504, silent_target);
    else
        conn_cut(c, "timed out");
}

void http_conn_expire(http_conn *c)
{
    switch (c->wait) {
    case HTTP_WAIT_IDLE:
        http_upstream_drop(c);
        http_wait(c, HTTP_WAIT_IDLE_LONGER);
        return;
    case HTTP_WAIT_HEAD:
        if (c->client.in.len == 0) break;
        conn_reject(c, 408, "request: it did not arrive in time");
        http_conn_run(c);
        return;
    case HTTP_WAIT_RESPONSE:
        conn_refuse(c, 504, silent_target);
        http_conn_run(c);
        return;
    case HTTP_WAIT_HALF_CLOSED:
        conn_half_closed_for_long(c);
        http_conn_run(c);
        return;
    case HTTP_WAIT_CUT: conn_deliver(c); return;
    case HTTP_WAIT_NONE:
    case HTTP_WAIT_IDLE_LONGER:
    case HTTP_WAIT_LINGER:
    case HTTP_WAIT_COUNT: break;
    }
    http_conn_free(c);
}
