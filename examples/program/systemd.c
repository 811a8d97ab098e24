// What a program and systemd tell each other: sd_notify(3) and sd_listen_fds(3) as their manuals
// give them, without its library. Other supervisors speak the same.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "program.h"

enum { PROG_LISTEN_FIRST = 3 };  // the descriptor that is passed first

// Sends one datagram. NOTIFY_SOCKET is a path, or '@' and the name of an abstract socket (Linux).
static int prog_notify_send(const char *to, const char *text, size_t len)
{
    struct sockaddr_un at;
    size_t to_len = strlen(to);
    ssize_t n = -1;
    int fd;
    memset(&at, 0, sizeof at);
    at.sun_family = AF_UNIX;
    if ((to[0] != '/' && to[0] != '@') || to_len >= sizeof at.sun_path) {
        errno = EINVAL;
        return -1;
    }
    memcpy(at.sun_path, to, to_len);
    if (to[0] == '@') at.sun_path[0] = '\0';
    fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    if (fd < 0) return -1;
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) == 0)
        n = sendto(fd, text, len, 0, (struct sockaddr *)&at,
                   (socklen_t)(offsetof(struct sockaddr_un, sun_path) + to_len));
    close(fd);
    return n == (ssize_t)len ? 0 : -1;
}

void prog_notify(prog_log *log, const char *state)
{
    const char *to = getenv("NOTIFY_SOCKET");
    char more[64] = "", text[128];
    struct timespec now = {0, 0};
    int len;
    if (!to || !*to) return;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (strcmp(state, "RELOADING=1") == 0)
        snprintf(more, sizeof more, "\nMONOTONIC_USEC=%lld%06ld", (long long)now.tv_sec,
                 now.tv_nsec / 1000);
    // A drain may last longer than the watchdog waits. TimeoutStopSec= bounds it.
    if (strcmp(state, "STOPPING=1") == 0) strcpy(more, "\nWATCHDOG_USEC=0");
    len = snprintf(text, sizeof text, "%s%s", state, more);
    if (prog_notify_send(to, text, (size_t)len) != 0)
        prog_logf(log, REVDIAL_LOG_WARN, "notify.failed", "NOTIFY_SOCKET %s: %s", to,
                  strerror(errno));
}

// A number of the environment; 0 if it is none.
static long long prog_env_number(const char *name)
{
    const char *text = getenv(name);
    return text ? strtoll(text, NULL, 10) : 0;
}

int prog_watchdog_ms(void)
{
    long long us = prog_env_number("WATCHDOG_USEC"), pid = prog_env_number("WATCHDOG_PID");
    if (us <= 0 || (pid != 0 && pid != (long long)getpid())) return 0;
    return us / 2000 > INT_MAX ? INT_MAX : us < 2000 ? 1 : (int)(us / 2000);
}

// Where the descriptor of that name or place is among those that were passed; -1: nowhere.
static int prog_listen_find(const char *name, int count)
{
    const char *names = getenv("LISTEN_FDNAMES");
    size_t len;
    for (int i = 0; names && i < count; i++, names += len + (names[len] == ':')) {
        len = strcspn(names, ":");
        if (len == strlen(name) && memcmp(names, name, len) == 0) return i;
    }
    for (int i = 0; i < count; i++) {
        char place[16];
        snprintf(place, sizeof place, "%d", i);
        if (strcmp(place, name) == 0) return i;
    }
    return -1;
}

const char *prog_listen_address(const prog_cli *cli, const char *address, char *out, size_t size)
{
    static const char scheme[] = "systemd:";
    int count = (int)prog_env_number("LISTEN_FDS"), i;
    snprintf(out, size, "%s", address);
    if (strncmp(address, scheme, strlen(scheme)) != 0) return NULL;
    if (count <= 0 || prog_env_number("LISTEN_PID") != (long long)getpid()) {
        snprintf(out, size, "127.0.0.1:0");
        return cli->common.is_checking
                   ? NULL
                   : "no socket was passed to this process (LISTEN_FDS, LISTEN_PID), for";
    }
    i = prog_listen_find(address + strlen(scheme), count);
    if (i < 0) return "no socket with this name was passed (LISTEN_FDNAMES):";
    fcntl(PROG_LISTEN_FIRST + i, F_SETFD, FD_CLOEXEC);
    snprintf(out, size, "fd:%d", PROG_LISTEN_FIRST + i);
    return NULL;
}
