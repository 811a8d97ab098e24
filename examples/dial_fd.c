// A stream as a plain connected socket, for code that wants one: http_get() below knows nothing of
// revdial, and any library that accepts a connected socket does as well (libcurl: return it from
// CURLOPT_OPENSOCKETFUNCTION and say CURL_SOCKOPT_ALREADY_CONNECTED). Needs ./http_handler:
//     REVDIAL_TOKEN=s3cret ./dial_fd 127.0.0.1:7000 web
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int send_all(int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = send(fd, data, len, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        data += n;
        len -= (size_t)n;
    }
    return 0;
}

// Sends a request, says with a half-close that nothing follows, and prints the answer to its end.
static int http_get(int fd, const char *host)
{
    char buf[4096];
    ssize_t n;
    int len =
        snprintf(buf, sizeof buf, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host);
    if (len < 0 || (size_t)len >= sizeof buf || send_all(fd, buf, (size_t)len) != 0) return -1;
    if (shutdown(fd, SHUT_WR) != 0) return -1;
    while ((n = recv(fd, buf, sizeof buf, 0)) != 0) {
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;  // ECONNRESET: the stream failed, what came is not the whole answer
        if (fwrite(buf, 1, (size_t)n, stdout) != (size_t)n) return -1;
    }
    return 0;
}

static int get_from(revdial_proxy *proxy, const char *name)
{
    revdial_dial_opts opts = {.flags = REVDIAL_DIAL_WAIT, .timeout_ms = 60000};
    revdial_err err = {0};
    int rc, fd = revdial_dial_fd(proxy, name, &opts, &err);
    if (fd < 0) {
        fprintf(stderr, "dial %s: %s\n", name, err.msg);
        return -1;
    }
    rc = http_get(fd, name);
    if (rc != 0) fprintf(stderr, "get from %s: %s\n", name, strerror(errno));
    close(fd);
    return rc;
}

int main(int argc, char **argv)
{
    revdial_credential who = {.secret = getenv("REVDIAL_TOKEN"), .names = "*"};
    revdial_proxy_config cfg = {.credentials = &who, .credential_count = 1};
    revdial_err err = {0};
    revdial_proxy *proxy;
    int rc;
    cfg.listen = argc > 1 ? argv[1] : "127.0.0.1:7000";
    proxy = revdial_proxy_start(&cfg, &err);
    if (!proxy) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    rc = get_from(proxy, argc > 2 ? argv[2] : "web");
    revdial_proxy_stop(proxy);
    return rc == 0 ? 0 : 1;
}
