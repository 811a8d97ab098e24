// An HTTP client that trusts its server as little as any other peer.
#include "fetch.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    INTERIMS_MAX = 8,  // heads before that of the answer
    LOOK_MS = 100      // from one look at whether the program is to stop to the next
};

int64_t fetch_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

// ------------------------------------------------------------------------------------------------
// URLs

static int is_printable(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (text[i] <= ' ' || text[i] > '~') return 0;
    return 1;
}

const char *fetch_url_parse(fetch_url *url, const char *text)
{
    const char *problem;
    memset(url, 0, sizeof *url);
    url->is_tls = strncmp(text, "https://", 8) == 0;
    if (!url->is_tls && strncmp(text, "http://", 7) != 0) return "is not http:// or https://:";
    if (!is_printable(text, strlen(text))) return "has a byte that no URL has:";
    url->authority = text + 7 + url->is_tls;
    url->authority_len = strcspn(url->authority, "/?#");
    url->path = url->authority + url->authority_len;
    if (strchr(url->path, '#')) return "has a #, which is not for servers:";
    if (*url->path == '?') return "needs a / before the ?:";
    if (memchr(url->authority, '@', url->authority_len)) return "has a login, which is not sent:";
    problem = route_host_parse(&url->at, url->authority, url->authority_len);
    if (problem) return problem;
    if (url->at.port < 0) url->at.port = url->is_tls ? 443 : 80;
    return url->at.port == 0 ? "has no server behind port 0:" : NULL;
}

// ------------------------------------------------------------------------------------------------
// The connection

typedef struct connection {
    int fd;
    int is_tls;
    revdial_transport tls;
    int64_t until_ms;
    revdial_err *err;
} connection;

static int failed(connection *c, const char *why)
{
    const char *more = c->is_tls && c->tls.do_reason ? c->tls.do_reason(c->tls.ctx) : NULL;
    snprintf(c->err->msg, sizeof c->err->msg, "%s%s%.150s", why, more ? ": " : "",
             more ? more : "");
    return -1;
}

// Waits as the last call wants. Returns 0, or -1: it has failed, or there is no time left.
static int wait_for(connection *c, ptrdiff_t want)
{
    struct pollfd p = {c->fd, want == REVDIAL_WANT_WRITE ? POLLOUT : POLLIN, 0};
    int64_t left_ms = c->until_ms - fetch_now_ms();
    int r;
    if (want != REVDIAL_WANT_READ && want != REVDIAL_WANT_WRITE) return failed(c, "it was cut");
    if (prog_stop) return failed(c, "the program stops");  // who waits for it would hold it up
    if (left_ms <= 0) return failed(c, "no answer in time");
    r = poll(&p, 1, left_ms < LOOK_MS ? (int)left_ms : LOOK_MS);
    return r < 0 && errno != EINTR ? failed(c, strerror(errno)) : 0;
}

static ptrdiff_t want_of(ssize_t n, int want)
{
    if (n >= 0) return n;
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? want : REVDIAL_ELOST;
}

static int send_all(connection *c, const char *data, size_t len)
{
    while (len > 0) {
        ptrdiff_t n = c->is_tls ? c->tls.do_write(c->tls.ctx, data, len)
                                : want_of(send(c->fd, data, len, MSG_NOSIGNAL), REVDIAL_WANT_WRITE);
        if (n < 0 && wait_for(c, n) != 0) return -1;
        if (n < 0) continue;
        data += n;
        len -= (size_t)n;
    }
    return 0;
}

static int handshake(connection *c)
{
    int r = c->tls.do_handshake ? c->tls.do_handshake(c->tls.ctx) : 0;
    while (r != 0) {
        if (r != REVDIAL_WANT_READ && r != REVDIAL_WANT_WRITE) return failed(c, "TLS");
        if (wait_for(c, r) != 0) return -1;
        r = c->tls.do_handshake(c->tls.ctx);
    }
    return 0;
}

// Returns 0, or -1 and why; c->fd is open in either case, unless there is no socket.
static int connect_one(connection *c, const struct addrinfo *to)
{
    struct pollfd p = {.events = POLLOUT};
    int error = 0;
    socklen_t len = sizeof error;
    p.fd = c->fd = socket(to->ai_family, SOCK_STREAM, 0);
    if (c->fd < 0 || prog_nonblocking(c->fd) != 0) return failed(c, strerror(errno));
    if (connect(c->fd, to->ai_addr, to->ai_addrlen) == 0) return 0;
    if (errno != EINPROGRESS && errno != EINTR) return failed(c, strerror(errno));
    while (poll(&p, 1, 0) == 0)
        if (wait_for(c, REVDIAL_WANT_WRITE) != 0) return -1;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &len);
    return error ? failed(c, strerror(error)) : 0;
}

// Tries one address after the other, each for its share of the time that is left. Not by
// revdial_target_connect(), which does not end when the program is to stop.
static int connect_any(connection *c, const route_host *at)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    const int64_t until_ms = c->until_ms;
    struct addrinfo *all, *to;
    char port[16];
    int left = 0, r;
    if (prog_stop) return failed(c, "the program stops");  // a look-up may take long
    snprintf(port, sizeof port, "%d", at->port);
    r = getaddrinfo(at->host, port, &hints, &all);
    if (r != 0) return failed(c, gai_strerror(r));
    for (to = all; to; to = to->ai_next) left++;
    for (to = all, r = -1; to && r != 0 && !prog_stop; to = to->ai_next) {
        int64_t now_ms = fetch_now_ms();
        c->until_ms = now_ms + (until_ms - now_ms) / left--;
        if (c->fd >= 0) close(c->fd);
        r = connect_one(c, to);
    }
    freeaddrinfo(all);
    c->until_ms = until_ms;
    return r;
}

static int connection_open(connection *c, const fetch_request *q)
{
    if (connect_any(c, &q->url->at) != 0) return -1;
    if (!q->url->is_tls) return 0;
    if (q->tls->wrap(q->tls->ud, c->fd, q->url->at.host, &c->tls, c->err) != 0) return -1;
    c->is_tls = 1;
    return handshake(c);
}

static void connection_close(connection *c)
{
    if (c->is_tls) c->tls.do_close(c->tls.ctx);
    if (c->fd >= 0) close(c->fd);
}

// ------------------------------------------------------------------------------------------------
// The answer

// Returns -1 if it is none of HTTP/1.
static int status_of(const char *head)
{
    int status = 0;
    if (strncmp(head, "HTTP/1.", 7) != 0 || head[7] < '0' || head[7] > '9' || head[8] != ' ')
        return -1;
    for (int i = 9; i < 12; i++) {
        if (head[i] < '0' || head[i] > '9') return -1;
        status = status * 10 + (head[i] - '0');
    }
    return head[12] == ' ' || head[12] == '\r' ? status : -1;
}

// Drops heads that only announce the answer, as 103 does (RFC 9110 section 15.2). Returns how many.
static int drop_interims(char *head, size_t *len)
{
    const char *end;
    int count = 0, status;
    while ((end = strstr(head, "\r\n\r\n")) != NULL) {
        status = status_of(head);
        if (status < 100 || status == 101 || status > 199) break;
        *len -= (size_t)(end + 4 - head);
        memmove(head, end + 4, *len + 1);
        count++;
    }
    return count;
}

// Reads until the empty line.
static int read_head(connection *c, char head[FETCH_HEAD_SIZE])
{
    size_t len = 0;
    int interims = 0;
    const char *end;
    for (;;) {
        size_t room = FETCH_HEAD_SIZE - 1 - len;
        ptrdiff_t n;
        if (room == 0) return failed(c, "the head of the answer is too long");
        n = c->is_tls ? c->tls.do_read(c->tls.ctx, head + len, room)
                      : want_of(recv(c->fd, head + len, room, 0), REVDIAL_WANT_READ);
        if (n == 0) return failed(c, "it ended before the head of its answer did");
        if (n < 0 && wait_for(c, n) != 0) return -1;
        if (n < 0) continue;
        if (memchr(head + len, '\0', (size_t)n)) return failed(c, "no HTTP answer");
        len += (size_t)n;
        head[len] = '\0';
        interims += drop_interims(head, &len);
        if (interims > INTERIMS_MAX) return failed(c, "it announces an answer again and again");
        end = strstr(head, "\r\n\r\n");
        if (!end) continue;
        head[end + 2 - head] = '\0';
        return 0;
    }
}

// Is each line of the head's fields NAME: VALUE?
static int has_good_lines(const char *head)
{
    const char *line = head + strcspn(head, "\r\n");
    if (line[0] != '\r' || line[1] != '\n') return 0;
    for (line += 2; *line; line += strcspn(line, "\r\n") + 2) {
        size_t len = strcspn(line, "\r\n"), name = strcspn(line, ":");
        if (line[len] != '\r' || line[len + 1] != '\n') return 0;
        if (name == 0 || name >= len || !is_printable(line, name)) return 0;
    }
    return 1;
}

int fetch_head(const fetch_request *q, char head[FETCH_HEAD_SIZE], revdial_err *err)
{
    connection c = {.fd = -1, .until_ms = q->until_ms, .err = err};
    int status = -1;
    err->msg[0] = '\0';
    if (connection_open(&c, q) == 0 && send_all(&c, q->head, q->head_len) == 0 &&
        read_head(&c, head) == 0) {
        status = status_of(head);
        if (status >= 0 && !has_good_lines(head)) status = -1;
        if (status < 0) failed(&c, "no HTTP answer");
    }
    connection_close(&c);
    return status;
}

int fetch_field(const char *head, const char *name, char *value, size_t size)
{
    size_t name_len = strlen(name), len;
    const char *line = strstr(head, "\r\n") + 2, *at = NULL;
    for (; *line; line += strcspn(line, "\r") + 2) {
        if (strncasecmp(line, name, name_len) != 0 || line[name_len] != ':') continue;
        if (at) return -1;
        at = line + name_len + 1;
    }
    if (!at) return 0;
    at += strspn(at, " \t");
    len = strcspn(at, "\r");
    while (len > 0 && (at[len - 1] == ' ' || at[len - 1] == '\t')) len--;
    if (len >= size) return -1;
    for (size_t i = 0; i < len; i++)
        if (at[i] < ' ' || at[i] > '~') return -1;
    memcpy(value, at, len);
    value[len] = '\0';
    return 1;
}

void fetch_base64(char *to, const char *from)
{
    static const char set[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t len = strlen(from);
    for (size_t i = 0; i < len; i += 3) {
        unsigned bits = (unsigned)(unsigned char)from[i] << 16;
        if (i + 1 < len) bits |= (unsigned)(unsigned char)from[i + 1] << 8;
        if (i + 2 < len) bits |= (unsigned char)from[i + 2];
        *to++ = set[bits >> 18];
        *to++ = set[bits >> 12 & 63];
        *to++ = (char)(i + 1 < len ? set[bits >> 6 & 63] : '=');
        *to++ = (char)(i + 2 < len ? set[bits & 63] : '=');
    }
    *to = '\0';
}
