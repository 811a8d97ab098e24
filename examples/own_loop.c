// A backend on its own epoll loop: echoes every stream.   REVDIAL_TOKEN=s3cret ./own_loop 7000
#define _POSIX_C_SOURCE 200809L
#define REVDIAL_IMPLEMENTATION
#define REVDIAL_NO_RUNTIME  // the protocol alone: no thread, clock or descriptor comes with it
#include "revdial.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>

static int64_t now_us(void)
{
    struct timespec t = {0};
    return clock_gettime(CLOCK_MONOTONIC, &t) ? 0 : t.tv_sec * INT64_C(1000000) + t.tv_nsec / 1000;
}

// Takes only what can be written back: the rest keeps its credit from the peer.
static void echo(revdial_engine *e, uint32_t id)
{
    const void *data;
    ptrdiff_t n, taken = 1;
    while (taken > 0 && (n = revdial_engine_peek(e, id, &data)) > 0)
        if ((taken = revdial_engine_write(e, id, data, (size_t)n)) > 0)
            revdial_engine_consume(e, id, (size_t)taken);
    if (taken > 0 && revdial_engine_read(e, id, &(char){0}, 1) == 0) revdial_engine_close(e, id);
}

static void handle_events(revdial_engine *e)
{
    revdial_event ev;
    while (revdial_engine_event(e, &ev)) {
        if (ev.type == REVDIAL_EV_UP || ev.type == REVDIAL_EV_DEAD) puts(ev.text);
        if (ev.type == REVDIAL_EV_OPEN && revdial_engine_accept(e, ev.id) != 0) continue;
        if (ev.type == REVDIAL_EV_RESET) revdial_engine_close(e, ev.id);
        if (ev.id != 0) echo(e, ev.id);  // finds nothing to do on one that was reset
    }
}

// Moves what the socket has and takes. Returns how many ms to wait, -1 when the session is over.
static int turn(revdial_engine *e, int fd)
{
    static char buf[65536];
    struct msghdr msg = {.msg_iov = (struct iovec[16]){{0}}};
    int64_t due_us;
    ssize_t n, at, used = 0, sent;
    while (used >= 0 && ((n = recv(fd, buf, sizeof buf, MSG_DONTWAIT)) >= 0 || errno != EAGAIN)) {
        at = 0;
        do {  // len 0 is the end of the connection
            used = revdial_engine_input(e, buf + at, n > 0 ? (size_t)(n - at) : 0, now_us());
            handle_events(e);
        } while (used >= 0 && (at += used) < n);
    }
    do {
        due_us = revdial_engine_tick(e, now_us());
        handle_events(e);
        msg.msg_iovlen = (size_t)revdial_engine_output(e, msg.msg_iov, 16);
        sent = msg.msg_iovlen > 0 ? sendmsg(fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
        if (sent > 0) revdial_engine_sent(e, (size_t)sent);
    } while (sent > 0);
    if (due_us < 0) return -1;
    return due_us > now_us() ? (int)((due_us - now_us()) / 1000) + 1 : 0;
}

int main(int argc, char **argv)
{
    revdial_engine_config cfg = {.role = REVDIAL_ROLE_BACKEND, .host = "localhost", .name = "demo"};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event ev = {.events = EPOLLIN | EPOLLOUT | EPOLLET};
    int fd = socket(AF_INET, SOCK_STREAM, 0), ep = epoll_create1(0), wait_ms = 0;
    to.sin_port = htons((uint16_t)(argc > 1 ? atoi(argv[1]) : 7000));
    cfg.secret = getenv("REVDIAL_TOKEN");
    revdial_engine *e = revdial_engine_new(&cfg, now_us(), NULL);
    if (!e || connect(fd, (void *)&to, sizeof to) || epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev))
        return 1;
    while (wait_ms >= 0 && epoll_wait(ep, &ev, 1, wait_ms) >= 0) wait_ms = turn(e, fd);
    revdial_engine_free(e);
}
