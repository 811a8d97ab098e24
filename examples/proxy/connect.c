// HTTP CONNECT (RFC 9110 section 9.3.6): a request names the destination, and after 200 the
// connection is one to it.
#include "connect.h"

#include <stdio.h>
#include <string.h>

#include "front.h"

// ------------------------------------------------------------------------------------------------
// The request. What two readers could understand differently is refused.

static int refuse(connect_head *out, int status, const char *why)
{
    out->status = status;
    out->problem = why;
    return status;
}

// The value of a character of base64, or -1.
static int base64_value(char c)
{
    static const char set[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(set, c) : NULL;
    return at ? (int)(at - set) : -1;
}

// The user of "user:password" in base64; one that is too long for an agent's name is cut, and is
// none then either. Returns 0 if it is neither.
static int basic_user(http_text credentials, char user[CONNECT_USER_SIZE])
{
    unsigned bits = 0, count = 0;
    size_t len = 0, i;
    int has_colon = 0;
    if (credentials.len % 4 != 0) return 0;
    while (credentials.len > 0 && count < 2 && credentials.at[credentials.len - 1] == '=')
        credentials.len--, count++;
    for (i = 0, count = 0; i < credentials.len; i++) {
        int value = base64_value(credentials.at[i]);
        char c;
        if (value < 0) return 0;
        bits = bits << 6 | (unsigned)value;
        count += 6;
        if (count < 8) continue;
        count -= 8;
        c = (char)(bits >> count & 0xFF);
        if (c == '\0') return 0;
        has_colon |= c == ':';
        if (!has_colon && len + 1 < CONNECT_USER_SIZE) user[len++] = c;
    }
    user[len] = '\0';
    return has_colon;
}

// The agent that the client names, if it does. Returns NULL, or what is wrong.
static const char *user_parse(connect_head *out, const http_head *head)
{
    int is_there = 0;
    for (size_t i = 0; i < head->field_count; i++) {
        http_text value = head->fields[i].value;
        if (!http_text_is(head->fields[i].name, "proxy-authorization")) continue;
        if (is_there++) return "it has several Proxy-Authorizations";
        if (!http_text_begins(value, "basic ")) continue;
        if (!basic_user(http_trim(http_part(value, 6, value.len)), out->user))
            return "Proxy-Authorization is not Basic with the base64 of USER:PASSWORD";
    }
    return NULL;
}

int connect_parse(connect_head *out, const char *data, size_t len)
{
    http_scan scan = {0};
    http_head head;
    int end = http_head_end(&scan, data, len), status;
    const char *problem;
    memset(out, 0, sizeof *out);
    if (end == 0) return 0;
    if (end < 0) return refuse(out, -end, scan.problem);
    out->len = (size_t)end;
    status = http_connect_parse(&head, data, out->len);
    if (status) return refuse(out, status, head.problem);
    problem = route_host_parse(&out->where, head.authority.at, head.authority.len);
    if (!problem && out->where.port < 0) problem = "the port is missing";
    if (!problem) problem = user_parse(out, &head);
    http_trace(&head, out->trace);
    return problem ? refuse(out, 400, problem) : (out->status = 200);
}

// ------------------------------------------------------------------------------------------------
// Answers

static const char *status_text(int status)
{
    static const struct {
        int status;
        const char *text;
    } known[] = {{400, "Bad Request"},
                 {403, "Forbidden"},
                 {404, "Not Found"},
                 {405, "Method Not Allowed"},
                 {407, "Proxy Authentication Required"},
                 {414, "URI Too Long"},
                 {429, "Too Many Requests"},
                 {431, "Request Header Fields Too Large"},
                 {502, "Bad Gateway"},
                 {503, "Service Unavailable"},
                 {504, "Gateway Timeout"},
                 {505, "HTTP Version Not Supported"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].status == status) return known[i].text;
    return "Internal Server Error";
}

// What a status has to say besides its text.
static const char *status_fields(int status)
{
    switch (status) {
    case 405: return "Allow: CONNECT\r\n";
    case 407: return "Proxy-Authenticate: Basic realm=\"the agent's name is the user\"\r\n";
    case 429:
    case 503: return "Retry-After: 1\r\n";
    default: return "";
    }
}

static void answer(revdial_route *r, int status, const char *why)
{
    int n = snprintf(r->text, sizeof r->text,
                     "HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n"
                     "Connection: close\r\n%s\r\n%s\n",
                     status, status_text(status), strlen(why) + 1, status_fields(status), why);
    r->reply = r->text;
    r->reply_len = n < (int)sizeof r->text ? (size_t)n : sizeof r->text - 1;
}

static int connect_route(void *ud, revdial_route *r)
{
    connect_head head;
    route_choice where;
    int status = connect_parse(&head, (const char *)r->data, r->len);
    if (status == 0) return REVDIAL_ROUTE_MORE;
    if (status == 200) {
        r->used = head.len;
        switch (route_decide(ud, &head.where, head.user, &where)) {
        case ROUTE_FOUND:
            front_trace(r, head.trace);
            return front_dial(r, &where, &head.where);
        case ROUTE_NEEDS_NAME:
            status = 407;
            head.problem = "no route leads there: the user name must be the agent's name";
            break;
        case ROUTE_BAD_NAME:
            status = 404;
            head.problem = "no agent can have that name";
            break;
        }
    }
    answer(r, status, head.problem);
    r->why = head.problem;
    return REVDIAL_ROUTE_REFUSE;
}

static void connect_done(void *ud, revdial_route *r, const revdial_err *why)
{
    static const char connected[] = "HTTP/1.1 200 Connection established\r\n\r\n";
    (void)ud;
    if (why) {
        answer(r, front_status(why), why->msg);
        return;
    }
    r->reply = connected;
    r->reply_len = sizeof connected - 1;
}

const front_kind front_connect = {"connect", connect_route, connect_done, HTTP_HEAD_MAX};
