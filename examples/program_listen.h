// Addresses that revdial-proxy listens on: "host:port" and "unix:path". Included after program.h.
#ifndef REVDIAL_PROGRAM_LISTEN_H
#define REVDIAL_PROGRAM_LISTEN_H

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

enum { LISTEN_ADDRESS_SIZE = 136 };  // "unix:" and a sun_path, or an address and a port

static int listen_is_unix(const char *address)
{
    return strncmp(address, "unix:", 5) == 0;
}

// Writes "address:port"; nothing for a socket of another family.
static void listen_print(char *to, size_t size, const struct sockaddr *addr)
{
    char host[INET6_ADDRSTRLEN] = "";
    to[0] = '\0';
    if (addr->sa_family == AF_INET) {
        const struct sockaddr_in *v4 = (const void *)addr;
        inet_ntop(AF_INET, &v4->sin_addr, host, sizeof host);
        snprintf(to, size, "%s:%u", host, ntohs(v4->sin_port));
    } else if (addr->sa_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const void *)addr;
        int is_mapped = IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr);
        inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof host);
        if (is_mapped) inet_ntop(AF_INET, v6->sin6_addr.s6_addr + 12, host, sizeof host);
        snprintf(to, size, is_mapped ? "%s:%u" : "[%s]:%u", host, ntohs(v6->sin6_port));
    }
}

// What every descriptor of the program is: non-blocking, and closed in a child.
static int listen_prepare_fd(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) return -1;
    return fcntl(fd, F_SETFD, FD_CLOEXEC);
}

// A socket that listens on that address, or -1 with errno.
static int listen_at(const struct sockaddr *addr, socklen_t len)
{
    int on = 1, saved, fd = socket(addr->sa_family, SOCK_STREAM, 0);
    if (fd < 0) return -1;
    if (listen_prepare_fd(fd) == 0 &&
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 && bind(fd, addr, len) == 0 &&
        listen(fd, SOMAXCONN) == 0)
        return fd;
    saved = errno;
    close(fd);
    errno = saved;
    return -1;
}

// Removes a socket file that a process left behind; one that somebody listens on stays.
static void unix_remove_stale(const struct sockaddr_un *addr)
{
    struct stat st;
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0) return;
    if (connect(fd, (const void *)addr, sizeof *addr) != 0 && errno == ECONNREFUSED &&
        lstat(addr->sun_path, &st) == 0 && S_ISSOCK(st.st_mode) && unlink(addr->sun_path) != 0)
        errno = EADDRINUSE;  // then bind(2) says so
    close(fd);
}

static int listen_unix(const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    if (!*path || strlen(path) >= sizeof addr.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(addr.sun_path, path, strlen(path) + 1);
    unix_remove_stale(&addr);
    return listen_at((const void *)&addr, sizeof addr);
}

// Listens on "host:port" and writes the address that was bound. Returns -1 and the reason in *why.
static int listen_tcp(char *address, size_t size, const char **why)
{
    struct addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM}, *list = NULL, *at;
    struct sockaddr_storage bound;
    socklen_t len = sizeof bound;
    char host[LISTEN_ADDRESS_SIZE], *port, *name = host;
    int rc, fd = -1;
    snprintf(host, sizeof host, "%s", address);
    port = strrchr(host, ':');
    *why = "not HOST:PORT";
    if (!port || port == host || !port[1]) return -1;
    if (*name == '[' && port[-1] == ']') {
        port[-1] = '\0';
        name++;
    }
    *port++ = '\0';
    rc = getaddrinfo(name, port, &hints, &list);
    for (at = list; at && fd < 0; at = at->ai_next) fd = listen_at(at->ai_addr, at->ai_addrlen);
    *why = rc != 0 ? gai_strerror(rc) : strerror(errno);
    if (list) freeaddrinfo(list);
    if (fd < 0) return -1;
    if (getsockname(fd, (struct sockaddr *)&bound, &len) == 0)
        listen_print(address, size, (struct sockaddr *)&bound);
    return fd;
}

// Listens on "host:port" or "unix:path"; the address is replaced by the one that was bound.
// Returns a descriptor, or -1 and the reason in *why.
static int listen_open(char *address, size_t size, const char **why)
{
    int fd;
    if (!listen_is_unix(address)) return listen_tcp(address, size, why);
    fd = listen_unix(address + 5);
    *why = strerror(errno);
    return fd;
}

#endif  // REVDIAL_PROGRAM_LISTEN_H
