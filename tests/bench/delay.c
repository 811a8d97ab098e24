// A link that is long, and thin if asked: a TCP relay for kernels without netem.
//     build/bench/delay TARGET_PORT ONE_WAY_MS [MBIT_PER_S [QUEUE_KIB]]
// Prints "listening on 127.0.0.1:PORT". Every byte leaves ONE_WAY_MS after it came, in order, at
// MBIT_PER_S at most each way (0: no limit). The line holds what is under way and QUEUE_KIB more,
// then it pushes back, as a router with such a queue would.
//
// TCP on both sides of it sees no delay: what it shows is the flow control of what runs in it.
#include "bench.h"

#include <poll.h>
#include <pthread.h>

enum { TAKE_BYTES = 256 * 1024, THIN_BUFFER_BYTES = 16 * 1024 };
// Without a rate: more than any window that is tried here.
#define HOLD_BYTES ((size_t)64 << 20)

typedef struct delay_chunk {
    struct delay_chunk *next;
    int64_t due;
    size_t len, at;  // len 0 is the end
    char data[];
} delay_chunk;

typedef struct delay_way {
    int in, out;
    delay_chunk *first, **last;
    size_t held;
    int64_t free_at;  // when the last byte so far has passed the thin place
    int ended;        // nothing more comes
    int passed;       // the end has been handed on, or cannot be
    int full;         // the socket takes no more
} delay_way;

typedef struct delay_line {
    uint16_t target;
    int64_t delay_ns;
    double bytes_per_ns;  // 0 = no limit
    size_t hold;
} delay_line;

typedef struct delay_pair {
    const delay_line *line;
    int fd;
} delay_pair;

static void way_take(const delay_line *l, delay_way *w)
{
    static _Thread_local char bytes[TAKE_BYTES];
    size_t room = l->hold - w->held;
    ssize_t n = recv(w->in, bytes, room < sizeof bytes ? room : sizeof bytes, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    size_t len = n > 0 ? (size_t)n : 0;
    delay_chunk *c = bench_alloc(1, sizeof *c + len);
    int64_t now = bench_now_ns();
    memcpy(c->data, bytes, len);
    c->len = len;
    if (w->free_at < now) w->free_at = now;
    if (l->bytes_per_ns > 0) w->free_at += (int64_t)((double)len / l->bytes_per_ns);
    c->due = w->free_at + l->delay_ns;
    w->held += len;
    w->ended = len == 0;
    *w->last = c;
    w->last = &c->next;
}

static void way_drop_first(delay_way *w)
{
    delay_chunk *c = w->first;
    w->held -= c->len;
    w->first = c->next;
    if (!w->first) w->last = &w->first;
    free(c);
}

// Returns how long until there is more to do, in ns; -1 nothing is under way.
static int64_t way_give(delay_way *w)
{
    w->full = 0;
    while (w->first) {
        delay_chunk *c = w->first;
        int64_t now = bench_now_ns();
        if (c->due > now) return c->due - now;
        if (c->len == 0) {
            shutdown(w->out, SHUT_WR);
            w->passed = 1;
        }
        while (c->at < c->len && !w->passed) {
            ssize_t n = send(w->out, c->data + c->at, c->len - c->at, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (n < 0 && errno == EAGAIN) {
                w->full = 1;
                return -1;
            }
            if (n < 0) w->passed = w->ended = 1;
            c->at += n > 0 ? (size_t)n : 0;
        }
        way_drop_first(w);
    }
    return -1;
}

static short way_events(const delay_line *l, const delay_way *in, const delay_way *out)
{
    int events = !in->ended && in->held < l->hold ? POLLIN : 0;
    return (short)(events | (out->full ? POLLOUT : 0));
}

static void carry(const delay_line *l, delay_way way[2])
{
    while (!(way[0].passed && way[1].passed)) {
        int64_t wait = BENCH_NS;
        for (int i = 0; i < 2; i++) {
            int64_t ns = way_give(&way[i]);
            if (ns >= 0 && ns < wait) wait = ns;
        }
        struct pollfd p[2] = {{way[0].in, way_events(l, &way[0], &way[1]), 0},
                              {way[1].in, way_events(l, &way[1], &way[0]), 0}};
        struct timespec ts = {(time_t)(wait / BENCH_NS), (long)(wait % BENCH_NS)};
        if (ppoll(p, 2, &ts, NULL) < 0 && errno != EINTR) bench_die("poll");
        for (int i = 0; i < 2; i++) {
            int is_readable = p[i].revents & (POLLIN | POLLHUP | POLLERR);
            if (is_readable && !way[i].ended && way[i].held < l->hold) way_take(l, &way[i]);
        }
        // Who has gone in both directions would wake us for ever.
        if ((p[0].revents | p[1].revents) & POLLERR) return;
    }
}

static void make_thin(const delay_line *l, int fd)
{
    int bytes = THIN_BUFFER_BYTES;
    if (l->bytes_per_ns > 0) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
}

static void *serve(void *arg)
{
    delay_pair pair = *(delay_pair *)arg;
    struct sockaddr_in to = bench_loopback(pair.line->target);
    delay_way way[2] = {{.in = pair.fd}, {.out = pair.fd}};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    free(arg);
    if (fd < 0) bench_die("socket");
    make_thin(pair.line, fd);
    bench_no_delay(fd);
    bench_no_delay(pair.fd);
    way[0].out = way[1].in = fd;
    for (int i = 0; i < 2; i++) way[i].last = &way[i].first;
    if (connect(fd, (struct sockaddr *)&to, sizeof to) == 0) carry(pair.line, way);
    for (int i = 0; i < 2; i++)
        while (way[i].first) way_drop_first(&way[i]);
    close(fd);
    close(pair.fd);
    return NULL;
}

int main(int argc, char **argv)
{
    delay_line line = {.hold = HOLD_BYTES};
    uint16_t port = 0;
    if (argc < 3) {
        fprintf(stderr, "usage: delay TARGET_PORT ONE_WAY_MS [MBIT_PER_S [QUEUE_KIB]]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    line.target = (uint16_t)atoi(argv[1]);
    line.delay_ns = (int64_t)(atof(argv[2]) * 1e6);
    if (argc > 3) line.bytes_per_ns = atof(argv[3]) * 1e6 / 8 / 1e9;
    if (argc > 4)
        line.hold =
            (size_t)(line.bytes_per_ns * (double)line.delay_ns) + (size_t)(atof(argv[4]) * 1024);
    int listener = bench_listen(&port);
    make_thin(&line, listener);
    printf("listening on 127.0.0.1:%u\n", port);
    fflush(stdout);
    for (;;) {
        delay_pair *pair = bench_alloc(1, sizeof *pair);
        pthread_t thread;
        *pair = (delay_pair){&line, accept(listener, NULL, NULL)};
        if (pair->fd < 0) bench_die("accept");
        if (pthread_create(&thread, NULL, serve, pair) != 0) bench_die("thread");
        pthread_detach(thread);
    }
}
