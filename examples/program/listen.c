// Addresses that a program listens at or connects to by itself.
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include "admin.h"

enum {
    PROG_CONNECT_S = 10,  // for each read and write
    PROG_ADDRESS_SIZE = 264
};

typedef struct prog_address {
    struct sockaddr_storage at;
    socklen_t len;
} prog_address;

static int prog_address_fail(revdial_err *err, const char *text, const char *why)
{
    err->code = REVDIAL_EINVAL;
    snprintf(err->msg, sizeof err->msg, "\"%s\": %s", text, why);
    return -1;
}

static int prog_address_unix(prog_address *a, const char *text, revdial_err *err)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    const char *path = text + strlen("unix:");
    if (*path != '/' || strlen(path) >= sizeof un.sun_path)
        return prog_address_fail(err, text,
                                 "the path of a Unix socket begins with /, with 2 to 107 letters");
    memcpy(un.sun_path, path, strlen(path));
    memcpy(&a->at, &un, sizeof un);
    a->len = sizeof un;
    return 0;
}

// "127.0.0.1:9000", "[::1]:9000", "localhost:9000", "9000" on this machine, or "unix:PATH".
//   looks_up   0: a host name may lead anywhere
static int prog_address_parse(prog_address *a, const char *text, int looks_up, revdial_err *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *found;
    char host[PROG_ADDRESS_SIZE] = "127.0.0.1";
    const char *colon = strrchr(text, ':'), *from = text;
    const char *port = colon ? colon + 1 : text;
    size_t len = colon ? (size_t)(colon - text) : 0, digits = strspn(port, "0123456789");
    memset(a, 0, sizeof *a);
    if (strncmp(text, "unix:", 5) == 0) return prog_address_unix(a, text, err);
    if (!digits || digits > 5 || port[digits] || strtol(port, NULL, 10) > 65535 || colon == text)
        return prog_address_fail(err, text, "not HOST:PORT, a PORT, or unix:PATH");
    if (len >= sizeof host) return prog_address_fail(err, text, "too long");
    if (len > 2 && *text == '[' && colon[-1] == ']') {
        from++;
        len -= 2;
    } else if (len && memchr(text, ':', len)) {
        return prog_address_fail(err, text, "write [HOST]:PORT for an IPv6 address");
    }
    if (colon) snprintf(host, sizeof host, "%.*s", (int)len, from);
    if (!looks_up) return 0;
    if (getaddrinfo(host, port, &hints, &found) != 0)
        return prog_address_fail(err, text, "no such host");
    memcpy(&a->at, found->ai_addr, found->ai_addrlen);
    a->len = found->ai_addrlen;
    freeaddrinfo(found);
    return 0;
}

int prog_address_check(const char *address, revdial_err *err)
{
    prog_address a;
    return prog_address_parse(&a, address, 0, err);
}

int prog_connect(const char *address, revdial_err *err)
{
    const struct timeval patience = {.tv_sec = PROG_CONNECT_S};
    prog_address a;
    int fd;
    if (prog_address_parse(&a, address, 1, err) != 0) return -1;
    fd = socket(a.at.ss_family, SOCK_STREAM, 0);
    if (fd >= 0) {
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        if (connect(fd, (const struct sockaddr *)&a.at, a.len) == 0) return fd;
    }
    err->code = REVDIAL_ESYS;
    err->sys = errno;
    snprintf(err->msg, sizeof err->msg, "%s: %s", address, strerror(errno));
    if (fd >= 0) close(fd);
    return -1;
}

// A socket file that nobody listens at is left over from a process that died.
static void prog_listener_sweep(const prog_address *a, const char *path)
{
    struct stat st;
    int fd;
    if (lstat(path, &st) != 0 || !S_ISSOCK(st.st_mode)) return;  // connect(2) refuses files, too
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0) return;
    // Somebody who has stopped accepting must not hold us up.
    if (prog_nonblocking(fd) == 0 && connect(fd, (const struct sockaddr *)&a->at, a->len) != 0 &&
        errno == ECONNREFUSED)
        unlink(path);
    close(fd);
}

// Returns 0, or -1 with errno.
static int prog_listener_bind(prog_listener *l, const prog_address *at, int backlog)
{
    const int yes = 1;
    mode_t before;
    int r;
    if (l->path[0]) prog_listener_sweep(at, l->path);
    l->fd = socket(at->at.ss_family, SOCK_STREAM, 0);
    if (l->fd < 0 || prog_nonblocking(l->fd) != 0) {
        l->path[0] = '\0';  // what is there is not ours
        return -1;
    }
    setsockopt(l->fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    before = umask(0177);  // a Unix socket is its owner's, until they chmod it
    r = bind(l->fd, (const struct sockaddr *)&at->at, at->len);
    umask(before);
    if (r != 0) l->path[0] = '\0';
    return r == 0 ? listen(l->fd, backlog) : -1;
}

int prog_listener_open(prog_listener *l, const char *address, int backlog, revdial_err *err)
{
    prog_address at;
    l->fd = -1;
    l->path[0] = '\0';
    if (prog_address_parse(&at, address, 1, err) != 0) return -1;
    if (at.at.ss_family == AF_UNIX)
        memcpy(l->path, ((const struct sockaddr_un *)&at.at)->sun_path, sizeof l->path);
    if (prog_listener_bind(l, &at, backlog) == 0) return 0;
    err->code = REVDIAL_ESYS;
    err->sys = errno;
    snprintf(err->msg, sizeof err->msg, "%s: %s", address, strerror(errno));
    prog_listener_close(l);
    return -1;
}

void prog_listener_close(prog_listener *l)
{
    if (l->fd >= 0) close(l->fd);
    if (l->path[0]) unlink(l->path);
    l->fd = -1;
    l->path[0] = '\0';
}

void prog_address_text(const struct sockaddr_storage *at, socklen_t len, char *text, size_t size)
{
    char host[64] = "", port[16] = "";
    int is_v6;
    getnameinfo((const struct sockaddr *)at, len, host, sizeof host, port, sizeof port,
                NI_NUMERICHOST | NI_NUMERICSERV);
    is_v6 = strchr(host, ':') != NULL;
    snprintf(text, size, "%s%s%s:%s", is_v6 ? "[" : "", host, is_v6 ? "]" : "", port);
}

void prog_listener_text(const prog_listener *l, char *text, size_t size)
{
    struct sockaddr_storage at = {0};
    socklen_t len = sizeof at;
    if (l->path[0])
        snprintf(text, size, "unix:%s", l->path);
    else if (getsockname(l->fd, (struct sockaddr *)&at, &len) == 0)
        prog_address_text(&at, len, text, size);
    else
        snprintf(text, size, "%s", strerror(errno));
}
