// Addresses that a program listens at or connects to by itself.
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
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

static int prog_address_unix(prog_address *all, int max, const char *text, revdial_err *err)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    const char *path = text + strlen("unix:");
    if (*path != '/' || strlen(path) >= sizeof un.sun_path)
        return prog_address_fail(err, text,
                                 "the path of a Unix socket begins with /, with 2 to 107 letters");
    if (max == 0) return 0;
    memcpy(un.sun_path, path, strlen(path));
    memset(all, 0, sizeof *all);
    memcpy(&all->at, &un, sizeof un);
    all->len = sizeof un;
    return 1;
}

static int prog_address_is_new(const prog_address *all, int last)
{
    for (int i = 0; i < last; i++)
        if (memcmp(&all[i].at, &all[last].at, sizeof all[last].at) == 0) return 0;
    return 1;
}

// "127.0.0.1:9000", "[::1]:9000", "localhost:9000", "9000" on this machine, or "unix:PATH".
//   max      that `all` has room for; 0: no name is looked up
//   returns  how many addresses it has, each once, or -1
static int prog_address_parse(prog_address *all, int max, const char *text, revdial_err *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *found, *next;
    char host[PROG_ADDRESS_SIZE] = "127.0.0.1";
    const char *colon = strrchr(text, ':'), *from = text;
    const char *port = colon ? colon + 1 : text;
    size_t len = colon ? (size_t)(colon - text) : 0, digits = strspn(port, "0123456789");
    int count = 0;
    if (strncmp(text, "unix:", 5) == 0) return prog_address_unix(all, max, text, err);
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
    if (max == 0) return 0;
    if (getaddrinfo(host, port, &hints, &found) != 0)
        return prog_address_fail(err, text, "no such host");
    for (next = found; next && count < max; next = next->ai_next) {
        memset(&all[count], 0, sizeof all[count]);
        memcpy(&all[count].at, next->ai_addr, next->ai_addrlen);
        all[count].len = next->ai_addrlen;
        count += prog_address_is_new(all, count);  // /etc/hosts may have a line twice
    }
    freeaddrinfo(found);
    return count;
}

int prog_address_check(const char *address, revdial_err *err)
{
    return prog_address_parse(NULL, 0, address, err);
}

int prog_connect(const char *address, revdial_err *err)
{
    const struct timeval patience = {.tv_sec = PROG_CONNECT_S};
    prog_address all[PROG_LISTENERS];
    int count = prog_address_parse(all, PROG_LISTENERS, address, err);
    if (count < 0) return -1;
    for (int i = 0; i < count; i++) {
        int fd = socket(all[i].at.ss_family, SOCK_STREAM, 0);
        if (fd >= 0) {
            setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
            setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
            if (connect(fd, (const struct sockaddr *)&all[i].at, all[i].len) == 0) return fd;
        }
        err->sys = errno;
        if (fd >= 0) close(fd);
    }
    err->code = REVDIAL_ESYS;
    snprintf(err->msg, sizeof err->msg, "%s: %s", address, strerror(err->sys));
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

// Returns 0, or -1 with errno; close it in either case.
static int prog_listener_bind(prog_listener *l, const prog_address *at, int backlog)
{
    const int yes = 1;
    mode_t before;
    int r;
    l->path[0] = '\0';
    if (at->at.ss_family == AF_UNIX)
        memcpy(l->path, ((const struct sockaddr_un *)&at->at)->sun_path, sizeof l->path);
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

// A port that the system chooses is that of one address.
static int prog_address_has_port(const prog_address *a)
{
    if (a->at.ss_family == AF_INET) return ((const struct sockaddr_in *)&a->at)->sin_port != 0;
    return a->at.ss_family != AF_INET6 || ((const struct sockaddr_in6 *)&a->at)->sin6_port != 0;
}

int prog_listener_open(prog_listener all[PROG_LISTENERS], const char *address, int backlog,
                       revdial_err *err)
{
    prog_address at[PROG_LISTENERS];
    int found = prog_address_parse(at, PROG_LISTENERS, address, err), count = 0, is_bad = 0;
    if (found < 0) return -1;
    for (int i = 0; i < found && !is_bad && (!count || prog_address_has_port(at)); i++) {
        if (prog_listener_bind(&all[count], &at[i], backlog) == 0) {
            count++;
            continue;
        }
        err->sys = errno;
        // "localhost" has ::1 also where the machine has no IPv6.
        is_bad = errno != EADDRNOTAVAIL && errno != EAFNOSUPPORT;
        prog_listener_close(&all[count]);
    }
    if (count && !is_bad) return count;
    while (count > 0) prog_listener_close(&all[--count]);
    err->code = REVDIAL_ESYS;
    snprintf(err->msg, sizeof err->msg, "%s: %s", address, strerror(err->sys));
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
