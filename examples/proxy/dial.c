// Connects standard input and output to an agent, through a front end of a proxy that runs: what
// ssh calls a ProxyCommand.
#include "dial.h"

#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "fetch.h"
#include "http_reader.h"

enum dial_exit {
    DIAL_NO_PROXY = 5,  // the front end cannot be reached
    DIAL_REFUSED = 6    // it did not connect us
};

enum { HEAD_MAX = 16384, COPY_SIZE = 65536, PATH_SIZE = sizeof((struct sockaddr_un *)0)->sun_path };

static const char help[] =
    "Usage: revdial-proxy dial NAME[/TARGET] --through ADDRESS\n"
    "\n"
    "Connects standard input and output to the agent NAME, and there to TARGET (HOST:PORT; "
    "default:\n"
    "the agent's own target), through a revdial-proxy that runs. ADDRESS is\n"
    "  HOST:PORT, or a PORT of 127.0.0.1   its --connect\n"
    "  unix:PATH                           its --connect on a Unix socket\n"
    "  unix:DIRECTORY                      its --sockets; there is no TARGET then\n"
    "A --route of that proxy for TARGET counts before NAME. Each direction ends by itself: the "
    "end\n"
    "of standard input is sent on, and what still comes is printed. TRACEPARENT of the\n"
    "environment goes to the --connect, which has it logged.\n"
    "\n"
    "Exit codes: 0 both directions ended, 1 the connection was cut, 2 usage, 5 the proxy cannot "
    "be\n"
    "reached, 6 it did not connect (standard error says why).\n"
    "\n"
    "Example:\n"
    "  ssh -o ProxyCommand='revdial-proxy dial cam-1/127.0.0.1:22 --through 3128' cam-1\n";

typedef struct dial {
    const char *through;
    char name[ROUTE_NAME_SIZE];
    char target[ROUTE_TARGET_SIZE];  // "" = the agent's own
    int fd;
} dial;

// Says what is wrong, in one line without what a terminal would obey. Returns code.
static int failed(int code, const char *what, const char *why)
{
    char line[512];
    snprintf(line, sizeof line, "%.100s: %.400s", what, why);
    for (char *c = line; *c; c++)
        if (*c < ' ' || *c == 127) *c = '?';
    fprintf(stderr, "revdial-proxy dial: %s\n", line);
    return code;
}

static int usage_error(const char *what, const char *why)
{
    failed(PROG_USAGE, what, why);
    fprintf(stderr, "Try 'revdial-proxy dial --help'.\n");
    return PROG_USAGE;
}

// ------------------------------------------------------------------------------------------------
// The command line

// "NAME[/TARGET]". Returns 0 or PROG_USAGE.
static int way_parse(dial *d, const char *way)
{
    size_t len = strcspn(way, "/");
    route_host where;
    if (d->name[0]) return usage_error(way, "one NAME[/TARGET] is expected");
    if (!route_is_name(way, len)) return usage_error(way, "a NAME is 1 to 64 of a-z 0-9 . _ -");
    memcpy(d->name, way, len);
    if (!way[len]) return 0;
    way += len + 1;
    if (route_host_parse(&where, way, strlen(way)) || where.port <= 0)
        return usage_error(way, "a TARGET is HOST:PORT");
    route_host_target(&where, d->target);
    return 0;
}

// Returns -1 to go on, or what to exit with.
static int words_parse(dial *d, char **argv)
{
    for (; *argv; argv++) {
        if (strcmp(*argv, "--help") == 0 || strcmp(*argv, "-h") == 0) {
            fputs(help, stdout);
            return PROG_STOPPED;
        }
        if (strncmp(*argv, "--through=", 10) == 0)
            d->through = *argv + 10;
        else if (strcmp(*argv, "--through") == 0 && argv[1])
            d->through = *++argv;
        else if (strcmp(*argv, "--through") == 0)
            return usage_error(*argv, "needs a value");
        else if (**argv == '-')
            return usage_error(*argv, "no such option");
        else if (way_parse(d, *argv) != 0)
            return PROG_USAGE;
    }
    if (!d->name[0]) return usage_error("NAME", "missing");
    if (!d->through) return usage_error("--through", "missing");
    return -1;
}

// ------------------------------------------------------------------------------------------------
// Connecting

static int connect_unix(dial *d, const char *path)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof at.sun_path)
        return failed(DIAL_NO_PROXY, path, "the path is too long for a socket");
    strcpy(at.sun_path, path);
    d->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (d->fd >= 0 && connect(d->fd, (const struct sockaddr *)&at, sizeof at) == 0) return 0;
    return failed(DIAL_NO_PROXY, path, strerror(errno));
}

// Tries each address of the host.
static int connect_tcp(dial *d)
{
    const char *colon = strrchr(d->through, ':'), *port = colon ? colon + 1 : d->through;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *all = NULL;
    route_host where = {"127.0.0.1", -1};
    int r;
    if (colon && (route_host_parse(&where, d->through, strlen(d->through)) || where.port <= 0))
        return usage_error(d->through, "--through is HOST:PORT or unix:PATH");
    r = getaddrinfo(where.host, port, &hints, &all);
    if (r != 0) return failed(DIAL_NO_PROXY, d->through, gai_strerror(r));
    errno = EINVAL;
    for (const struct addrinfo *a = all; a && d->fd < 0; a = a->ai_next) {
        d->fd = socket(a->ai_family, a->ai_socktype, a->ai_protocol);
        if (d->fd < 0 || connect(d->fd, a->ai_addr, a->ai_addrlen) == 0) continue;
        close(d->fd);
        d->fd = -1;
    }
    freeaddrinfo(all);
    return d->fd >= 0 ? 0 : failed(DIAL_NO_PROXY, d->through, strerror(errno));
}

static int write_all(int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno != EINTR) return -1;
        data += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
    return 0;
}

// Reads one byte at a time, because those behind the head are not ours. Returns what was read.
static size_t read_until(int fd, char *buf, size_t size, const char *end)
{
    size_t len = 0, end_len = strlen(end);
    ssize_t n;
    while (len + 1 < size) {
        do n = read(fd, buf + len, 1);
        while (n < 0 && errno == EINTR);
        if (n <= 0) break;
        len++;
        if (end_len && len >= end_len && memcmp(buf + len - end_len, end, end_len) == 0) break;
    }
    buf[len] = '\0';
    return len;
}

// Asks a --connect. Port 0 is how one asks it for the agent's own target.
static int ask(dial *d)
{
    char where[ROUTE_TARGET_SIZE + 8], user[ROUTE_NAME_SIZE + 1], login[2 * ROUTE_NAME_SIZE];
    const char *trace = getenv("TRACEPARENT");
    char request[1024], head[HEAD_MAX], why[256];
    size_t len;
    if (!trace || strlen(trace) >= HTTP_TRACE_SIZE || strcspn(trace, " \t\r\n") != strlen(trace))
        trace = "";
    snprintf(where, sizeof where, "%s%s", d->target[0] ? d->target : d->name,
             d->target[0] ? "" : ":0");
    snprintf(user, sizeof user, "%s:", d->name);
    fetch_base64(login, user);
    snprintf(request, sizeof request,
             "CONNECT %s HTTP/1.1\r\nHost: %s\r\nProxy-Authorization: Basic %s\r\n%s%s%s\r\n",
             where, where, login, *trace ? "traceparent: " : "", trace, *trace ? "\r\n" : "");
    if (write_all(d->fd, request, strlen(request)) != 0)
        return failed(DIAL_NO_PROXY, d->through, strerror(errno));
    len = read_until(d->fd, head, sizeof head, "\r\n\r\n");
    if (len < 12 || strncmp(head, "HTTP/1.", 7) != 0 || strcmp(head + len - 4, "\r\n\r\n") != 0)
        return failed(DIAL_REFUSED, d->through, "it does not answer as a --connect does");
    if (strncmp(head + 8, " 2", 2) == 0) return 0;
    head[strcspn(head, "\r")] = '\0';
    read_until(d->fd, why, sizeof why, "\n");
    why[strcspn(why, "\n")] = '\0';
    return failed(DIAL_REFUSED, head + 9, why);
}

// Returns 0 with a connection in d->fd, or what to exit with.
static int dial_connect(dial *d)
{
    const char *path = strncmp(d->through, "unix:", 5) == 0 ? d->through + 5 : NULL;
    char in_directory[PATH_SIZE + ROUTE_NAME_SIZE + 8];
    struct stat kind;
    int r, is_directory = path && stat(path, &kind) == 0 && S_ISDIR(kind.st_mode);
    if (is_directory && d->target[0])
        return usage_error(d->target, "through a directory there is no TARGET");
    if (is_directory) {
        snprintf(in_directory, sizeof in_directory, "%s/%s.sock", path, d->name);
        return connect_unix(d, in_directory);
    }
    r = path ? connect_unix(d, path) : connect_tcp(d);
    return r == 0 ? ask(d) : r;
}

// ------------------------------------------------------------------------------------------------
// Both directions, a thread each: standard input and output may not be switched to non-blocking,
// because other processes have them open, too.

// Copies until EOF. Returns 0, or -1 with errno.
static int copy(int from, int to)
{
    char buf[COPY_SIZE];
    ssize_t n;
    for (;;) {
        do n = read(from, buf, sizeof buf);
        while (n < 0 && errno == EINTR);
        if (n <= 0) return n == 0 ? 0 : -1;
        if (write_all(to, buf, (size_t)n) != 0) return -1;
    }
}

// What is cut must not look like an end at the other side: the connection ends with a reset.
static void cut(const dial *d)
{
    const struct linger none = {1, 0};
    setsockopt(d->fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
}

static void *send_input(void *ud)
{
    const dial *d = ud;
    if (copy(STDIN_FILENO, d->fd) == 0) {
        shutdown(d->fd, SHUT_WR);
        return NULL;
    }
    cut(d);
    shutdown(d->fd, SHUT_RD);  // ends the other direction here, and tells nobody
    return ud;
}

static int relay(dial *d)
{
    pthread_t sender;
    void *is_cut;
    errno = pthread_create(&sender, NULL, send_input, d);
    if (errno) return failed(PROG_FAILED, "no thread", strerror(errno));
    if (copy(d->fd, STDOUT_FILENO) != 0) {
        failed(PROG_FAILED, "the connection was cut", strerror(errno));
        cut(d);
        return PROG_FAILED;
    }
    close(STDOUT_FILENO);
    pthread_join(sender, &is_cut);
    if (is_cut) return failed(PROG_FAILED, "the connection was cut", "not all was sent");
    return PROG_STOPPED;
}

int dial_main(char **argv)
{
    dial d = {.fd = -1};
    int rc = words_parse(&d, argv);
    if (rc >= 0) return rc;
    signal(SIGPIPE, SIG_IGN);
    rc = dial_connect(&d);
    return rc == 0 ? relay(&d) : rc;
}
