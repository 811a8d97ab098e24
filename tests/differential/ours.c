// What revdial-proxy's --http reads in a connection's bytes, for tests/differential/run.py: reads
// messages from stdin, each behind its length in four bytes, and prints a line for each.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../examples/proxy/http_text.c"
#include "../../examples/proxy/http_body.c"
#include "../../examples/proxy/http_reader.c"

enum { MOST = 1 << 20 };

static http_head head, trailers;
static char data[MOST], body[MOST];
static size_t body_len;

static void print_hex(const char *at, size_t len)
{
    for (size_t i = 0; i < len; i++) printf("%02x", (unsigned char)at[i]);
}

static void print_text(http_text text)
{
    printf("=");
    print_hex(text.at, text.len);
    printf(" ");
}

// As it stands in the first line: head.target lacks what an absolute-form has before the path.
static http_text whole_target(size_t end)
{
    const char *at = head.method.at + head.method.len + 1;
    const char *blank = memchr(at, ' ', end);
    http_text target = {at, blank ? (size_t)(blank - at) : 0};
    return target;
}

static void print_request(size_t from, size_t end, size_t next)
{
    http_text payload = {body, body_len};
    print_text(head.method);
    print_text(whole_target(end - from));
    print_text(head.authority);
    print_text(payload);
    printf("%zu =", next);
    for (size_t i = 0; i < head.field_count; i++) {
        print_hex(head.fields[i].name.at, head.fields[i].name.len);
        printf("3a");
        print_hex(head.fields[i].value.at, head.fields[i].value.len);
        printf("0a");
    }
    printf(" ");
}

// Takes a body from `at` on. Returns where it ends, 0: more is needed, -1: refused.
static ptrdiff_t read_body(size_t at, size_t len)
{
    http_body b;
    http_body_init(&b, &head);
    body_len = 0;
    while (b.state != HTTP_BODY_DONE) {
        http_text payload;
        ptrdiff_t n = http_body_read(&b, data + at, len - at, &payload);
        if (n <= 0) return n;
        at += (size_t)n;
        if (b.state == HTTP_BODY_DONE && b.framing == HTTP_CHUNKED)
            return http_trailer_parse(&trailers, 0, payload.at, payload.len) ? -1 : (ptrdiff_t)at;
        memcpy(body + body_len, payload.at, payload.len);
        body_len += payload.len;
    }
    return (ptrdiff_t)at;
}

// Returns what becomes of the connection behind its requests.
static const char *judge(size_t len)
{
    size_t at = 0;
    while (at < len) {
        http_scan scan = {0};
        int end = http_head_end(&scan, data + at, len - at);
        ptrdiff_t next;
        if (end < 0 || (end > 0 && http_request_parse(&head, data + at, (size_t)end)))
            return "refused";
        if (end == 0) return "more";
        next = read_body(at + (size_t)end, len);
        if (next <= 0) return next ? "refused" : "more";
        print_request(at, at + (size_t)end, (size_t)next);
        at = (size_t)next;
        if (head.is_upgrade || !head.is_kept) return "over";
    }
    return "more";
}

int main(void)
{
    unsigned char size[4];
    while (fread(size, 1, sizeof size, stdin) == sizeof size) {
        size_t len = (size_t)size[0] << 24 | size[1] << 16 | size[2] << 8 | size[3];
        if (len > MOST || fread(data, 1, len, stdin) != len) return 1;
        printf("%s\n", judge(len));
        fflush(stdout);
    }
    return 0;
}
