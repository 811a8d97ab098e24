// Writes heads as they go on: see http_writer.h.
#include "http_writer.h"

#include <stdio.h>
#include <string.h>

// What is put here always fits: see HTTP_WRITTEN_MAX.
typedef struct http_paper {
    char *to;
    size_t len;
} http_paper;

static void http_put(http_paper *p, http_text text)
{
    if (text.len) memcpy(p->to + p->len, text.at, text.len);
    p->len += text.len;
}

static void http_puts(http_paper *p, const char *text)
{
    http_text all = {text, strlen(text)};
    http_put(p, all);
}

static void http_put_number(http_paper *p, uint64_t number)
{
    char digits[24];
    size_t at = sizeof digits;
    do digits[--at] = (char)('0' + number % 10);
    while (number /= 10);
    http_text text = {digits + at, sizeof digits - at};
    http_put(p, text);
}

static void http_put_field(http_paper *p, const http_field *f)
{
    http_put(p, f->name);
    http_puts(p, ": ");
    http_put(p, f->value);
    http_puts(p, "\r\n");
}

static void http_put_length(http_paper *p, uint64_t length)
{
    http_puts(p, "Content-Length: ");
    http_put_number(p, length);
    http_puts(p, "\r\n");
}

// ------------------------------------------------------------------------------------------------
// Requests

// Does a field of a request go on as it is? One that claims to know where a request comes from does
// if our proxy says it.
static int http_goes_on(const http_head *h, const http_field *f, const http_source *from)
{
    switch (f->kind) {
    case HTTP_OTHER:
    case HTTP_HOST: return 1;
    case HTTP_EXPECT: return h->has_expect;
    case HTTP_X_FORWARDED_PROTO:
    case HTTP_X_FORWARDED_HOST:
    case HTTP_FORWARDED:
    case HTTP_X_REAL_IP: return from->is_trusted;
    case HTTP_CONTENT_LENGTH:
    case HTTP_TRANSFER_ENCODING:
    case HTTP_X_FORWARDED_FOR:  // joined below
    case HTTP_CONNECTION:
    case HTTP_KEEP_ALIVE:
    case HTTP_TE:
    case HTTP_UPGRADE:
    case HTTP_PROXY:
    case HTTP_NAMED: break;
    }
    return 0;
}

static int http_has_field(const http_head *h, enum http_kind kind)
{
    for (size_t i = 0; i < h->field_count; i++)
        if (h->fields[i].kind == kind) return 1;
    return 0;
}

// Behind a proxy that is trusted its word goes first, and its own address is added.
static void http_put_source(http_paper *p, const http_head *h, const http_source *from)
{
    const char *before = "X-Forwarded-For: ";
    for (size_t i = 0; from->is_trusted && i < h->field_count; i++) {
        if (h->fields[i].kind != HTTP_X_FORWARDED_FOR || h->fields[i].value.len == 0) continue;
        http_puts(p, before);
        http_put(p, h->fields[i].value);
        before = ", ";
    }
    if (from->address.len) http_puts(p, before);
    http_put(p, from->address);
    if (from->address.len || *before == ',') http_puts(p, "\r\n");
    if (!from->is_trusted || !http_has_field(h, HTTP_X_FORWARDED_PROTO))
        http_puts(p, "X-Forwarded-Proto: http\r\n");
    if (h->authority.len && (!from->is_trusted || !http_has_field(h, HTTP_X_FORWARDED_HOST))) {
        http_puts(p, "X-Forwarded-Host: ");
        http_put(p, h->authority);
        http_puts(p, "\r\n");
    }
}

// What is for the next hop alone (9110:7.6.1).
static void http_put_hop(http_paper *p, const http_head *h)
{
    if (h->is_upgrade) {
        http_puts(p, "Connection: Upgrade\r\n");
        for (size_t i = 0; i < h->field_count; i++)
            if (h->fields[i].kind == HTTP_UPGRADE) http_put_field(p, &h->fields[i]);
    } else if (h->takes_trailers) {
        http_puts(p, "Connection: TE\r\nTE: trailers\r\n");
    }
    if (h->body == HTTP_CHUNKED) http_puts(p, "Transfer-Encoding: chunked\r\n");
    if (h->has_length) http_put_length(p, h->length);
}

size_t http_request_write(char *to, const http_head *h, const http_source *from)
{
    http_paper p = {to, 0};
    http_put(&p, h->method);
    http_puts(&p, h->target.len && strchr("/*", *h->target.at) ? " " : " /");  // 3.2.1
    http_put(&p, h->target);
    http_puts(&p, " HTTP/1.1\r\n");
    if (!http_has_field(h, HTTP_HOST)) {
        http_puts(&p, "Host: ");
        http_put(&p, h->authority);
        http_puts(&p, "\r\n");
    }
    for (size_t i = 0; i < h->field_count; i++)
        if (http_goes_on(h, &h->fields[i], from)) http_put_field(&p, &h->fields[i]);
    http_put_source(&p, h, from);
    http_put_hop(&p, h);
    http_puts(&p, "\r\n");
    return p.len;
}

// ------------------------------------------------------------------------------------------------
// Responses

static int http_is_for_this_hop(const http_field *f)
{
    return f->kind >= HTTP_CONNECTION || f->kind == HTTP_CONTENT_LENGTH ||
           f->kind == HTTP_TRANSFER_ENCODING;
}

static void http_put_status(http_paper *p, int status, http_text reason)
{
    http_puts(p, "HTTP/1.1 ");
    http_put_number(p, (uint64_t)status);
    http_puts(p, " ");
    http_put(p, reason);
    http_puts(p, "\r\n");
}

static void http_put_persistence(http_paper *p, const http_answer *how)
{
    if (!how->is_kept)
        http_puts(p, "Connection: close\r\n");
    else if (how->minor == 0)
        http_puts(p, "Connection: keep-alive\r\n");
}

size_t http_response_write(char *to, const http_head *h, const http_answer *how)
{
    http_paper p = {to, 0};
    int has_upgrade = h->status == 101 || h->status == 426;  // 9110:7.8 and 15.5.22
    http_put_status(&p, h->status, h->reason);
    for (size_t i = 0; i < h->field_count; i++) {
        const http_field *f = &h->fields[i];
        if (!http_is_for_this_hop(f) || (f->kind == HTTP_UPGRADE && has_upgrade))
            http_put_field(&p, f);
    }
    if (h->has_length && h->status >= 200 && h->status != 204 && !how->is_chunked)
        http_put_length(&p, h->length);
    if (how->is_chunked) http_puts(&p, "Transfer-Encoding: chunked\r\n");
    if (has_upgrade)
        http_puts(&p, how->is_kept || h->status == 101 ? "Connection: Upgrade\r\n"
                                                       : "Connection: Upgrade, close\r\n");
    else if (h->status >= 200)
        http_put_persistence(&p, how);
    http_puts(&p, "\r\n");
    return p.len;
}

size_t http_trailer_write(char *to, const http_head *h)
{
    http_paper p = {to, 0};
    http_puts(&p, "0\r\n");
    for (size_t i = 0; h && i < h->field_count; i++) http_put_field(&p, &h->fields[i]);
    http_puts(&p, "\r\n");
    return p.len;
}

static const char *http_reason(int status)
{
    static const struct {
        int status;
        const char *reason;
    } rows[] = {{400, "Bad Request"},        {403, "Forbidden"},
                {404, "Not Found"},          {405, "Method Not Allowed"},
                {408, "Request Timeout"},    {414, "URI Too Long"},
                {417, "Expectation Failed"}, {431, "Request Header Fields Too Large"},
                {502, "Bad Gateway"},        {503, "Service Unavailable"},
                {504, "Gateway Timeout"},    {505, "HTTP Version Not Supported"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].status == status) return rows[i].reason;
    return "Internal Server Error";
}

size_t http_error_write(char *to, int status, const char *text, const http_answer *how)
{
    http_paper p = {to, 0};
    const char *reason = http_reason(status);
    http_text words = {reason, strlen(reason)};
    http_put_status(&p, status, words);
    http_puts(&p, "Content-Type: text/plain\r\n");
    http_put_length(&p, strlen(text) + 1);
    if (status == 405) http_puts(&p, "Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n");
    if (status == 503) http_puts(&p, "Retry-After: 1\r\n");
    http_put_persistence(&p, how);
    http_puts(&p, "\r\n");
    if (how->is_head) return p.len;
    http_puts(&p, text);
    http_puts(&p, "\n");
    return p.len;
}

size_t http_chunk_write(char to[HTTP_CHUNK_HEAD_MAX], uint64_t size)
{
    return (size_t)snprintf(to, HTTP_CHUNK_HEAD_MAX, "%llx\r\n", (unsigned long long)size);
}
