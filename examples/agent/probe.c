// The hops of one attempt to connect.
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "probe.h"

static int64_t probe_now_us(void)
{
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

// ------------------------------------------------------------------------------------------------
// Addresses

int probe_split(const char *text, char *host, size_t host_size, char *port, size_t port_size)
{
    const char *colon = strrchr(text, ':');
    size_t len = colon ? (size_t)(colon - text) : 0;
    if (len > 2 && text[0] == '[' && colon[-1] == ']') {
        text++;
        len -= 2;
    } else if (len && memchr(text, ':', len)) {
        return 0;
    }
    if (!len || len >= host_size || !colon[1] || strlen(colon + 1) >= port_size) return 0;
    memcpy(host, text, len);
    host[len] = '\0';
    memcpy(port, colon + 1, strlen(colon + 1) + 1);
    return strspn(port, "0123456789") == strlen(port);
}

int probe_url_parse(probe_url *u, const char *text, size_t len)
{
    static const struct {
        const char *scheme, *port;
        int is_secure, is_websocket;
    } kinds[] = {{"http://", ":80", 0, 0},
                 {"https://", ":443", 1, 0},
                 {"ws://", ":80", 0, 1},
                 {"wss://", ":443", 1, 1}};
    size_t k = 0, n;
    memset(u, 0, sizeof *u);
    snprintf(u->path, sizeof u->path, "/revdial");
    if (len > 6 && len < sizeof u->endpoint && memcmp(text, "unix:/", 6) == 0) {
        snprintf(u->endpoint, sizeof u->endpoint, "%.*s", (int)len, text);
        snprintf(u->authority, sizeof u->authority, "localhost");
        return u->is_unix = 1;
    }
    while (k < 4 && (len < strlen(kinds[k].scheme) ||
                     strncmp(text, kinds[k].scheme, strlen(kinds[k].scheme)) != 0))
        k++;
    if (k == 4) return 0;
    u->is_secure = kinds[k].is_secure;
    u->is_websocket = kinds[k].is_websocket;
    text += strlen(kinds[k].scheme);
    len -= strlen(kinds[k].scheme);
    for (n = 0; n < len && text[n] != '/';) n++;
    if (n == 0 || n + 8 > sizeof u->endpoint || len - n >= sizeof u->path) return 0;
    snprintf(u->authority, sizeof u->authority, "%.*s", (int)n, text);
    if (n + 1 < len) snprintf(u->path, sizeof u->path, "%.*s", (int)(len - n), text + n);
    text = strchr(u->authority, ']') ? strchr(u->authority, ']') : u->authority;
    snprintf(u->endpoint, sizeof u->endpoint, "%.255s%s", u->authority,
             strchr(text, ':') ? "" : kinds[k].port);
    return probe_split(u->endpoint, u->host, sizeof u->host, u->port, sizeof u->port);
}

int probe_resolve(const char *host, const char *port, struct addrinfo **out)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    *out = NULL;
    return getaddrinfo(host, port, &hints, out);
}

// ------------------------------------------------------------------------------------------------
// Connections

// Waits until the descriptor is ready, at most until then. Returns 0, or -1 with errno.
static int probe_wait(int fd, short events, int64_t until_us)
{
    struct pollfd p = {.fd = fd, .events = events};
    int64_t left = until_us - probe_now_us();
    int r = left > 0 ? poll(&p, 1, (int)(left / 1000) + 1) : 0;
    if (r < 0 && errno == EINTR) return 0;
    if (r == 0) errno = ETIMEDOUT;
    return r > 0 ? 0 : -1;
}

static int probe_connect_one(int family, const struct sockaddr *to, socklen_t len)
{
    int fd = socket(family, SOCK_STREAM, 0), error = 0;
    socklen_t size = sizeof error;
    if (fd < 0) return -1;
    if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0) error = errno;
    if (!error && connect(fd, to, len) != 0) error = errno;
    if (error == EINPROGRESS) {
        error = 0;
        if (probe_wait(fd, POLLOUT, probe_now_us() + PROBE_MS * 1000) != 0 ||
            getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0)
            error = errno;
    }
    if (!error) return fd;
    close(fd);
    errno = error;
    return -1;
}

int probe_connect(const struct addrinfo *list, char *at, size_t size)
{
    int fd = -1;
    errno = EHOSTUNREACH;
    for (; list && fd < 0; list = list->ai_next) {
        char host[64] = "?", port[8] = "?";
        getnameinfo(list->ai_addr, list->ai_addrlen, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV);
        snprintf(at, size, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
        fd = probe_connect_one(list->ai_family, list->ai_addr, list->ai_addrlen);
    }
    return fd;
}

int probe_connect_unix(const char *path)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof un.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(un.sun_path, path, strlen(path));
    return probe_connect_one(AF_UNIX, (const struct sockaddr *)&un, sizeof un);
}

int probe_is_loopback(const struct sockaddr *a)
{
    const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)a;
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)a;
    if (a->sa_family == AF_INET) return ntohl(in->sin_addr.s_addr) >> 24 == 127;
    if (a->sa_family != AF_INET6) return 0;
    if (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr)) return in6->sin6_addr.s6_addr[12] == 127;
    return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
}

void probe_close(probe_conn *c)
{
    if (c->has_tls) c->tls.do_close(c->tls.ctx);
    if (c->fd >= 0) close(c->fd);
    memset(c, 0, sizeof *c);
    c->fd = -1;
}

static int probe_fail(revdial_err *err, int code, const char *text)
{
    err->code = code;
    snprintf(err->msg, sizeof err->msg, "%s", text);
    return code;
}

// What a transport wants, or the socket itself. Returns 0 to try again, or REVDIAL_E*.
static int probe_want(probe_conn *c, ptrdiff_t r, int64_t until_us, revdial_err *err)
{
    const char *reason = c->has_tls && c->tls.do_reason ? c->tls.do_reason(c->tls.ctx) : NULL;
    short events = r == REVDIAL_WANT_READ ? POLLIN : POLLOUT;
    if (r != REVDIAL_WANT_READ && r != REVDIAL_WANT_WRITE)
        return probe_fail(err, (int)r, reason ? reason : revdial_strerror((int)r));
    if (probe_wait(c->fd, events, until_us) == 0) return 0;
    return probe_fail(err, errno == ETIMEDOUT ? REVDIAL_ETIMEDOUT : REVDIAL_ESYS,
                      errno == ETIMEDOUT ? "no answer within 10 s" : strerror(errno));
}

static ptrdiff_t probe_errno(short events)
{
    if (errno == EAGAIN || errno == EINTR)
        return events == POLLIN ? REVDIAL_WANT_READ : REVDIAL_WANT_WRITE;
    return REVDIAL_ELOST;
}

// >0 bytes, 0 the end, or REVDIAL_E*
static ptrdiff_t probe_read(probe_conn *c, void *buf, size_t len, int64_t until_us,
                            revdial_err *err)
{
    for (;;) {
        ptrdiff_t n = c->has_tls ? c->tls.do_read(c->tls.ctx, buf, len) : read(c->fd, buf, len);
        if (!c->has_tls && n < 0) n = probe_errno(POLLIN);
        if (n >= 0) return n;
        n = probe_want(c, n, until_us, err);
        if (n) return n;
    }
}

static int probe_write(probe_conn *c, const void *buf, size_t len, int64_t until_us,
                       revdial_err *err)
{
    const char *at = buf;
    while (len > 0) {
        ptrdiff_t n =
            c->has_tls ? c->tls.do_write(c->tls.ctx, at, len) : send(c->fd, at, len, MSG_NOSIGNAL);
        if (!c->has_tls && n < 0) n = probe_errno(POLLOUT);
        if (n > 0) {
            at += n;
            len -= (size_t)n;
        } else if ((n = probe_want(c, n, until_us, err)) != 0) {
            return (int)n;
        }
    }
    return 0;
}

// One round of the handshake with an egress proxy. Returns its state.
static int probe_egress_step(probe_conn *c, revdial_egress *v, int64_t until_us, revdial_err *err)
{
    const void *data;
    char byte;
    size_t len = revdial_egress_output(v, &data);
    ptrdiff_t n;
    int r = len ? probe_write(c, data, len, until_us, err) : 0;
    if (r) return r;
    revdial_egress_sent(v, len);
    if ((r = revdial_egress_state(v, err, NULL)) != 0) return r;
    if (revdial_egress_output(v, &data)) return 0;
    n = probe_read(c, &byte, 1, until_us, err);  // what comes behind its answer is not its own
    if (n < 0) return (int)n;
    revdial_egress_input(v, &byte, (size_t)n);
    return revdial_egress_state(v, err, NULL);
}

int probe_egress(probe_conn *c, const char *via, const char *endpoint, revdial_err *err)
{
    const int64_t until_us = probe_now_us() + PROBE_MS * 1000;
    revdial_egress *v = revdial_egress_new(via, endpoint, NULL, NULL, err);
    int r = v ? 0 : err->code;
    while (r == 0) r = probe_egress_step(c, v, until_us, err);
    revdial_egress_free(v);
    return r == 1 ? 0 : r;
}

int probe_tls(probe_conn *c, const revdial_tls *tls, const char *host, revdial_err *err)
{
    const int64_t until_us = probe_now_us() + PROBE_MS * 1000;
    int r = tls->wrap(tls->ud, c->fd, host, &c->tls, err);
    if (r) return r;
    c->has_tls = 1;
    while (c->tls.do_handshake && (r = c->tls.do_handshake(c->tls.ctx)) != 0)
        if ((r = probe_want(c, r, until_us, err)) != 0) return r;
    return 0;
}

// ------------------------------------------------------------------------------------------------
// The request to upgrade

// Keeps what may be the Date of the answer.
static void probe_note_date(probe_answer *out, const char *head)
{
    static const char key[] = "\r\ndate: ";
    for (; *head && !out->date[0]; head++)
        if (strncasecmp(head, key, sizeof key - 1) == 0)
            snprintf(out->date, sizeof out->date, "%.*s", (int)strcspn(head + 8, "\r"), head + 8);
}

static int probe_flush(probe_conn *c, revdial_engine *e, int64_t until_us, revdial_err *err)
{
    struct iovec iov[16];
    int n, r = 0;
    while (r == 0 && (n = revdial_engine_output(e, iov, 16)) > 0) {
        size_t sent = 0;
        for (int i = 0; r == 0 && i < n; i++) {
            r = probe_write(c, iov[i].iov_base, iov[i].iov_len, until_us, err);
            if (r == 0) sent += iov[i].iov_len;
        }
        revdial_engine_sent(e, sent);
    }
    return r;
}

// Takes the engine's events. Returns 1 once the answer is known.
static int probe_events(revdial_engine *e, probe_answer *out)
{
    revdial_event ev;
    int is_known = 0;
    while (revdial_engine_event(e, &ev)) {
        if (is_known || (ev.type != REVDIAL_EV_UP && ev.type != REVDIAL_EV_DEAD)) continue;
        is_known = 1;
        out->status = ev.status;
        if (ev.type == REVDIAL_EV_UP) continue;
        out->code = ev.code ? ev.code : REVDIAL_ELOST;
        snprintf(out->text, sizeof out->text, "%s", ev.text ? ev.text : "");
        snprintf(out->challenge, sizeof out->challenge, "%s", ev.challenge ? ev.challenge : "");
    }
    return is_known;
}

// Reads until the answer is known. Returns 0, or REVDIAL_E*.
static int probe_answer_read(probe_conn *c, revdial_engine *e, int64_t until_us, probe_answer *out,
                             revdial_err *err)
{
    char head[4096] = "";
    size_t kept = 0;
    for (;;) {
        char buf[1024];
        int r = probe_flush(c, e, until_us, err);
        ptrdiff_t n = r ? r : probe_read(c, buf, sizeof buf, until_us, err);
        if (n < 0) return (int)n;
        for (ptrdiff_t i = 0; i < n && kept < sizeof head - 1; i++)
            head[kept++] = buf[i] ? buf[i] : ' ';
        for (size_t at = 0; n > 0 && at < (size_t)n;) {
            ptrdiff_t used = revdial_engine_input(e, buf + at, (size_t)n - at, probe_now_us());
            if (probe_events(e, out)) {
                probe_note_date(out, head);
                return 0;
            }
            if (used <= 0) break;
            at += (size_t)used;
        }
        if (n == 0)
            return probe_fail(err, REVDIAL_ELOST, "the connection was closed without an answer");
    }
}

void probe_upgrade(probe_conn *c, const revdial_engine_config *cfg, probe_answer *out)
{
    const int64_t until_us = probe_now_us() + PROBE_MS * 1000;
    revdial_err err = {0};
    revdial_engine *e = revdial_engine_new(cfg, probe_now_us(), &err);
    memset(out, 0, sizeof *out);
    if (e) probe_answer_read(c, e, until_us, out, &err);
    if (err.code) {
        out->code = err.code;
        snprintf(out->text, sizeof out->text, "%s", err.msg);
    }
    if (e && !out->code) {  // nothing is to be dialled here
        revdial_engine_terminate(e);
        probe_flush(c, e, until_us, &err);
    }
    revdial_engine_free(e);
}

long long probe_date(const char *text)
{
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    char month[4] = "";
    int day, year, hour, minute, second;
    const char *at;
    long long m, y, days;
    if (sscanf(text, "%*3s, %2d %3s %4d %2d:%2d:%2d", &day, month, &year, &hour, &minute,
               &second) != 6)
        return -1;
    at = strstr(months, month);
    if (!at || strlen(month) != 3 || year < 1970 || day < 1) return -1;
    // Days before a date, with the year beginning in March, so that a leap day is its last one.
    m = (at - months) / 3 + 1;
    y = m <= 2 ? year - 1 : year;
    m = m <= 2 ? m + 9 : m - 3;
    days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 306 + 5) / 10 + day - 1 - 719468;
    return days * 86400 + hour * 3600 + minute * 60 + second;
}
