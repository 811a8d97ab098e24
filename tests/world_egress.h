// An egress proxy of the simulated world: CONNECT and SOCKS5, on a machine between agents and
// proxies. It copies both ways with half-close and back-pressure. Where something may be broken it
// also refuses, lies, falls silent or hangs up.
#ifndef REVDIAL_TEST_WORLD_EGRESS_H
#define REVDIAL_TEST_WORLD_EGRESS_H

#include "world_people.h"

enum {
    AT_EGRESS = 10,
    PORT_CONNECT = 3128,
    PORT_SOCKS = 1080,
    EGRESS_PIECE = 16384,
    EGRESS_SILENT_US = 60000000
};

// What it does with a request.
enum egress_mood { EGRESS_SERVES, EGRESS_REFUSES, EGRESS_DENIES, EGRESS_GARBLES, EGRESS_MOODS };

static unsigned egress_bad_one_in;  // connections,
static int egress_is_bad;           // while this is set

typedef struct egress_pipe {
    int from, to;
    uint8_t buf[EGRESS_PIECE];
    size_t at, len;
    int is_over;
} egress_pipe;

// Returns 1 if something has moved, -1 if the connection failed.
static int egress_move(egress_pipe *p)
{
    if (p->is_over) return 0;
    if (!p->len) {
        ssize_t n = sim_recv(p->from, p->buf, sizeof p->buf, 0);
        if (n < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
        if (n == 0) {
            p->is_over = 1;
            sim_shutdown(p->to, SHUT_WR);
            return 1;
        }
        p->at = 0;
        p->len = (size_t)n;
    }
    ssize_t n = sim_send(p->to, p->buf + p->at, p->len, 0);
    if (n < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
    p->at += (size_t)n;
    p->len -= (size_t)n;
    return 1;
}

// Copies until both have finished. Returns 0 if one of them was reset.
static int egress_copy(int a, int b)
{
    egress_pipe *p = calloc(2, sizeof *p);
    int r = 1;
    unsigned idle = 0;
    if (!p) abort();
    p[0].from = p[1].to = a;
    p[0].to = p[1].from = b;
    while (r > 0 && !(p[0].is_over && p[1].is_over)) {
        int one = egress_move(&p[0]), two = egress_move(&p[1]);
        if (one < 0 || two < 0) r = 0;
        if (one || two) idle = 0;
        if (one || two) continue;
        struct pollfd items[] = {{a, 0, 0}, {b, 0, 0}};
        for (int i = 0; i < 2; i++) {
            if (!p[i].is_over && !p[i].len) items[i].events |= POLLIN;
            if (p[i].len) items[!i].events |= POLLOUT;
        }
        sim_poll(items, 2, 5000);
        if (idle++) world_sleep_us(1000 << (idle < 9 ? idle : 9), "one that is over is ready");
    }
    free(p);
    return r;
}

static int egress_exactly(int fd, const void *bytes, size_t n, int is_write)
{
    talk_way w = {fd, NULL, 0};
    return way_exactly(&w, (uint8_t *)(uintptr_t)bytes, n, is_write);
}

// Where it shall connect to: "10.0.0.N" or "mN.sim". Returns a descriptor or -1.
static int egress_connect(const char *host, int port)
{
    unsigned number;
    int is_address = sscanf(host, "10.0.0.%u", &number) == 1;
    if (!is_address && sscanf(host, "m%u.sim", &number) != 1) return -1;
    number -= (unsigned)is_address;
    return number < MACHINES ? net_connect_by(NET_V4, (int)number, port) : -1;
}

// ---- CONNECT

static int egress_head(int fd, char *head, size_t size)
{
    size_t n = 0;
    while (n + 1 < size) {
        if (!egress_exactly(fd, head + n, 1, 0)) return 0;
        head[++n] = '\0';
        if (n >= 4 && !memcmp(head + n - 4, "\r\n\r\n", 4)) return 1;
    }
    return 0;
}

static int egress_say(int fd, const char *text)
{
    return egress_exactly(fd, text, strlen(text), 1);
}

// Returns what it is connected to, or -1.
static int egress_http(int fd, enum egress_mood mood)
{
    char head[1024], host[100];
    int port;
    if (!egress_head(fd, head, sizeof head)) return -1;
    if (sscanf(head, "CONNECT %99[^: ]:%d HTTP/1.1\r\n", host, &port) != 2 ||
        !strstr(head, "Proxy-Authorization: Basic dTpw")) {
        world_fail("an egress proxy is asked \"%s\"", head);
        return -1;
    }
    if (mood == EGRESS_REFUSES)
        egress_say(fd, "HTTP/1.1 503 Busy\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n");
    if (mood == EGRESS_DENIES)
        egress_say(fd, "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n");
    if (mood == EGRESS_GARBLES) egress_say(fd, "HTTP/1.1 2OO what\r\n\r\n");
    if (mood != EGRESS_SERVES) return -1;
    int to = egress_connect(host, port);
    if (to < 0) egress_say(fd, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nno\n");
    if (to >= 0) egress_say(fd, "HTTP/1.1 200 OK\r\nVia: 1.1 sim\r\n\r\n");
    return to;
}

// ---- SOCKS5, RFC 1928 and 1929: user "u", password "p"

static int egress_login(int fd)
{
    static const uint8_t login[] = {1, 1, 'u', 1, 'p'};
    uint8_t in[260] = {0};
    if (!egress_exactly(fd, in, 2, 0) || !egress_exactly(fd, in + 2, in[1], 0)) return 0;
    if (in[0] != 5 || !memchr(in + 2, 2, in[1])) world_fail("SOCKS without a login");
    if (!egress_exactly(fd, "\5\2", 2, 1)) return 0;
    if (!egress_exactly(fd, in, sizeof login, 0)) return 0;
    if (memcmp(in, login, sizeof login)) world_fail("SOCKS with another login");
    return egress_exactly(fd, "\1\0", 2, 1);
}

static int egress_socks(int fd, enum egress_mood mood)
{
    uint8_t in[262] = {0}, answer[] = {5, 0, 0, 1, 0, 0, 0, 0, 0, 0};
    char host[260];
    int to = -1;
    if (!egress_login(fd) || !egress_exactly(fd, in, 4, 0)) return -1;
    size_t n = 4;  // of an address, which has its first byte where a name has its length
    if (in[3] == 3 && !egress_exactly(fd, in + 4, 1, 0)) return -1;
    if (in[3] == 3) n = in[4];
    if (!egress_exactly(fd, in + 5, n + 2, 0)) return -1;
    int port = in[5 + n] << 8 | in[6 + n];
    if (in[3] == 3)
        snprintf(host, sizeof host, "%.*s", (int)n, in + 5);
    else
        snprintf(host, sizeof host, "%d.%d.%d.%d", in[5], in[6], in[7], in[8]);
    if (mood == EGRESS_SERVES) to = egress_connect(host, port);
    if (to < 0) answer[1] = mood == EGRESS_DENIES ? 2 : 5;
    if (mood == EGRESS_GARBLES) answer[0] = 4;
    egress_exactly(fd, answer, sizeof answer, 1);
    return to;
}

static void *egress_serve(void *arg)
{
    int fd = (int)(intptr_t)arg % 1000, is_socks = (int)(intptr_t)arg >= 1000;
    talk_way near = {fd, NULL, 0};
    enum egress_mood mood = EGRESS_SERVES;
    if (egress_is_bad && world_chance(egress_bad_one_in))
        mood = (enum egress_mood)world_below(EGRESS_MOODS + 1);
    int is_silent = mood == EGRESS_MOODS;
    if (is_silent) world_sleep_us(EGRESS_SILENT_US, "nothing");
    int to = is_silent ? -1 : is_socks ? egress_socks(fd, mood) : egress_http(fd, mood);
    mark_set(to >= 0 ? is_socks ? MARK_EGRESS_SOCKS : MARK_EGRESS_CONNECT : MARK_EGRESS_REFUSED);
    talk_way far = {to, NULL, 0};
    int is_whole = to >= 0 && egress_copy(fd, to);
    if (to >= 0) way_close(&far, !is_whole);
    way_close(&near, to >= 0 && !is_whole);
    return NULL;
}

static void *egress_main(void *arg)
{
    int port = (int)(intptr_t)arg, listener = net_listen(NET_V4, port);
    while (!wd.over) {
        struct sockaddr_storage from;
        socklen_t len = sizeof from;
        int fd = sim_accept4(listener, (struct sockaddr *)&from, &len, 0);
        struct pollfd p = {listener, POLLIN, 0};
        if (fd >= 0)
            people_new(AT_EGRESS, "egress", egress_serve,
                       (void *)(intptr_t)(fd + (port == PORT_SOCKS ? 1000 : 0)));
        else
            sim_poll(&p, 1, 1000000);
    }
    return NULL;
}

#endif
