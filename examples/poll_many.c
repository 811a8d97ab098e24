// One thread, many streams: opens 100 to ./minimal_backend, writes a line on each, and takes the
// answers as they come with revdial_poll().
//     REVDIAL_TOKEN=s3cret ./poll_many 127.0.0.1:7000
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

enum { STREAM_COUNT = 100 };

static int ask(revdial_proxy *proxy, revdial_pollfd *item, unsigned index)
{
    revdial_dial_opts opts = {.flags = REVDIAL_DIAL_WAIT, .timeout_ms = 60000};
    revdial_err err = {0};
    char line[32];
    int len = snprintf(line, sizeof line, "question %u\n", index);
    item->st = revdial_dial(proxy, "demo", &opts, &err);
    item->fd = -1;
    item->events = POLLIN;
    if (!item->st) {
        fprintf(stderr, "dial: %s\n", err.msg);
        return -1;
    }
    if (revdial_write(item->st, line, (size_t)len) != len) return -1;
    return revdial_shutdown(item->st, REVDIAL_WR);
}

// Reads what is there without waiting. Returns 1 at EOF, 0 if more may come, -1 on failure.
static int take(revdial_stream *st)
{
    char buf[256];
    ptrdiff_t n = revdial_read(st, buf, sizeof buf);
    if (n > 0) return fwrite(buf, 1, (size_t)n, stdout) == (size_t)n ? 0 : -1;
    return n == 0 ? 1 : -1;
}

static int run(revdial_proxy *proxy, revdial_pollfd *items, size_t count)
{
    size_t left = count, i;
    for (i = 0; i < count; i++)
        if (ask(proxy, &items[i], (unsigned)i) < 0) return -1;
    while (left > 0) {
        if (revdial_poll(items, left, 10000) <= 0) return -1;
        for (i = left; i-- > 0;) {
            int rc = items[i].revents ? take(items[i].st) : 0;
            if (rc < 0) return -1;
            if (rc == 0) continue;
            revdial_close(items[i].st);
            items[i] = items[--left];  // order does not matter: the last one fills the gap
            items[left].st = NULL;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    revdial_credential who = {.secret = getenv("REVDIAL_TOKEN"), .names = "demo"};
    revdial_proxy_config cfg = {.credentials = &who, .credential_count = 1};
    revdial_pollfd items[STREAM_COUNT] = {0};
    revdial_err err = {0};
    revdial_proxy *proxy;
    int rc, i;
    cfg.listen = argc > 1 ? argv[1] : "127.0.0.1:7000";
    proxy = revdial_proxy_start(&cfg, &err);
    if (!proxy) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    rc = run(proxy, items, STREAM_COUNT);
    for (i = 0; i < STREAM_COUNT; i++) revdial_close(items[i].st);
    revdial_proxy_stop(proxy);
    return rc == 0 ? 0 : 1;
}
