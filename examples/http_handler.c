// A web page served from behind NAT by a handler: no web server, no listening port.
//     revdial-proxy --listen 127.0.0.1:7000 --token-file F --expose 127.0.0.1:8080=web
//     REVDIAL_TOKEN=s3cret ./http_handler http://127.0.0.1:7000
//     curl http://127.0.0.1:8080/             a page
//     curl http://127.0.0.1:8080/bytes/1000   so many bytes
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int send_all(revdial_stream *st, const void *data, size_t len)
{
    return revdial_write(st, data, len) == (ptrdiff_t)len ? 0 : -1;
}

// Reads a request up to its empty line, which must come within 10 s and `size` bytes.
static int read_head(revdial_stream *st, char *head, size_t size)
{
    size_t len = 0;
    head[0] = '\0';
    if (revdial_stream_set_deadline(st, REVDIAL_RD, 10000) < 0) return -1;
    while (!strstr(head, "\r\n\r\n")) {
        ptrdiff_t n = revdial_read(st, head + len, size - 1 - len);
        if (n <= 0) return -1;
        len += (size_t)n;
        head[len] = '\0';
    }
    return 0;
}

static int send_head(revdial_stream *st, const char *status, unsigned long long len)
{
    static const char form[] = "HTTP/1.1 %s\r\nContent-Length: %llu\r\nConnection: close\r\n\r\n";
    char head[128];
    int n = snprintf(head, sizeof head, form, status, len);
    return send_all(st, head, (size_t)n);
}

// Byte i of the body is i * 31 + i / 256, so that a reader can check every one of them.
static int send_bytes(revdial_stream *st, unsigned long long count)
{
    unsigned char buf[65536];
    unsigned long long at, n, i;
    for (at = 0; at < count; at += n) {
        n = count - at < sizeof buf ? count - at : sizeof buf;
        for (i = 0; i < n; i++) buf[i] = (unsigned char)((at + i) * 31 + ((at + i) >> 8));
        if (send_all(st, buf, (size_t)n) != 0) return -1;
    }
    return 0;
}

static void serve(void *ud, revdial_stream *st)
{
    static const char page[] = "<!doctype html><title>revdial</title><p>Hello from behind NAT.\n";
    char head[4096];
    unsigned long long count;
    int rc = read_head(st, head, sizeof head);
    (void)ud;
    if (rc == 0 && sscanf(head, "GET /bytes/%llu ", &count) == 1)
        rc = send_head(st, "200 OK", count) || send_bytes(st, count);
    else if (rc == 0 && strncmp(head, "GET / ", 6) == 0)
        rc = send_head(st, "200 OK", sizeof page - 1) || send_all(st, page, sizeof page - 1);
    else if (rc == 0)
        rc = send_head(st, "404 Not Found", 0);
    if (rc != 0) revdial_reset(st, REVDIAL_RESET_CANCEL);  // half an answer must not look whole
    revdial_close(st);
}

int main(int argc, char **argv)
{
    revdial_agent_config cfg = {.name = "web", .handler = serve};
    revdial_err err = {0};
    cfg.url = argc > 1 ? argv[1] : "http://127.0.0.1:7000";
    cfg.secret = getenv("REVDIAL_TOKEN");
    if (revdial_serve(&cfg, &err) == 0) return 0;
    fprintf(stderr, "%s\n", err.msg);
    return 1;
}
