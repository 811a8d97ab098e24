// The client of the demo: makes files with known bytes and fetches them over HTTP.
//     demo_client make FILE BYTES   byte i is i * 31 + i / 256, as examples/http_handler.c has it
//     demo_client get HOST:PORT/PATH FILE      one request; prints bytes, seconds and MB/s
//     demo_client many N HOST:PORT/PATH FILE   N connections, all open before the first one asks;
//                                              every answer must be what is in FILE
// Exits with 0, or with 1 and a line that says what is wrong.
#define _POSIX_C_SOURCE 200809L
#include <netdb.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum {
    TIMEOUT_SECONDS = 20,  // of one call on a socket
    CHUNK_SIZE = 1 << 16,  // read at a time; a head must fit
    COUNT_MAX = 1000       // connections at one time: descriptors are limited to 1024 by default
};

typedef struct url {
    char host[128], port[8];
    const char *path;
} url;

static int fail(const char *what, const char *why)
{
    fprintf(stderr, "demo_client: %s: %s\n", what, why);
    return 1;
}

static double now(void)
{
    struct timespec t = {0};
    return clock_gettime(CLOCK_MONOTONIC, &t) == 0 ? (double)t.tv_sec + (double)t.tv_nsec / 1e9 : 0;
}

static int url_parse(url *u, const char *text)
{
    size_t host_len = strcspn(text, ":/"), port_len;
    if (text[host_len] != ':' || host_len == 0 || host_len >= sizeof u->host) return -1;
    port_len = strcspn(text + host_len + 1, "/");
    u->path = text + host_len + 1 + port_len;
    if (port_len == 0 || port_len >= sizeof u->port || *u->path != '/') return -1;
    snprintf(u->host, sizeof u->host, "%.*s", (int)host_len, text);
    snprintf(u->port, sizeof u->port, "%.*s", (int)port_len, text + host_len + 1);
    return 0;
}

// A connected socket whose calls give up in time, or -1.
static int url_connect(const url *u)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL, *at;
    struct timeval limit = {.tv_sec = TIMEOUT_SECONDS};
    int fd = -1;
    if (getaddrinfo(u->host, u->port, &hints, &list) != 0) return -1;
    for (at = list; at && fd < 0; at = at->ai_next) {
        fd = socket(at->ai_family, at->ai_socktype, 0);
        if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0 &&
            setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) == 0 &&
            connect(fd, at->ai_addr, at->ai_addrlen) == 0)
            break;
        if (fd >= 0) close(fd);
        fd = -1;
    }
    freeaddrinfo(list);
    return fd;
}

static int url_ask(const url *u, int fd)
{
    static const char form[] = "GET %s HTTP/1.1\r\nHost: %s:%s\r\nConnection: close\r\n\r\n";
    char head[1024];
    int len = snprintf(head, sizeof head, form, u->path, u->host, u->port);
    if (len < 0 || len >= (int)sizeof head) return -1;
    return send(fd, head, (size_t)len, MSG_NOSIGNAL) == len ? 0 : -1;
}

// Finds the body behind a head. Returns its offset, 0 to wait for more, -1 if it is not a 200.
static ptrdiff_t head_parse(char *head, size_t len, long long *content_len)
{
    char *end, *field;
    head[len] = '\0';
    end = strstr(head, "\r\n\r\n");
    if (!end) return len + 1 < CHUNK_SIZE ? 0 : -1;
    if (strncmp(head, "HTTP/1.", 7) != 0 || strncmp(head + 8, " 200", 4) != 0) return -1;
    *end = '\0';
    *content_len = -1;
    for (field = head; (field = strchr(field, '\n')) != NULL;)
        if (strncasecmp(++field, "content-length:", 15) == 0) *content_len = atoll(field + 15);
    return *content_len >= 0 ? end - head + 4 : -1;
}

// Takes one answer to its EOF. The body goes to `out` if there is one, and is compared with what
// `same` holds if there is one. Returns the length of the body, or -1 and what is wrong.
static long long answer_take(int fd, FILE *out, FILE *same, const char **why)
{
    static char buf[CHUNK_SIZE], expected[CHUNK_SIZE];
    long long want = 0, got = 0;
    size_t len = 0;
    ptrdiff_t at = 0;
    ssize_t n;
    *why = "the answer is not a whole 200 with a Content-Length";
    while (at == 0) {
        n = recv(fd, buf + len, CHUNK_SIZE - 1 - len, 0);
        if (n <= 0) return -1;
        len += (size_t)n;
        at = head_parse(buf, len, &want);
        if (at < 0) return -1;
    }
    n = (ssize_t)len - at;
    memmove(buf, buf + at, (size_t)n);
    do {
        got += n;
        *why = "the body is not what it should be";
        if (same && fread(expected, 1, (size_t)n, same) != (size_t)n) return -1;
        if (same && memcmp(expected, buf, (size_t)n) != 0) return -1;
        *why = "cannot write";
        if (out && fwrite(buf, 1, (size_t)n, out) != (size_t)n) return -1;
    } while ((n = recv(fd, buf, CHUNK_SIZE, 0)) > 0);
    *why = n < 0 ? "the connection failed" : "the body is shorter or longer than Content-Length";
    if (n < 0 || got != want) return -1;
    return got;
}

static int make(const char *path, long long count)
{
    FILE *file = fopen(path, "wb");
    long long i;
    int ok = file != NULL;
    if (!file) return fail(path, "cannot create it");
    for (i = 0; i < count && ok; i++) ok = putc((unsigned char)(i * 31 + (i >> 8)), file) != EOF;
    return fclose(file) == 0 && ok ? 0 : fail(path, "cannot write");
}

static int get(const char *from, const char *path)
{
    const char *why = "cannot connect";
    double began = now(), took;
    long long count = -1;
    FILE *file = fopen(path, "wb");
    url u;
    int fd = file && url_parse(&u, from) == 0 ? url_connect(&u) : -1;
    if (fd >= 0 && url_ask(&u, fd) == 0) count = answer_take(fd, file, NULL, &why);
    if (fd >= 0) close(fd);
    if (file && fclose(file) != 0) count = -1;
    if (count < 0) return fail(from, why);
    took = now() - began;
    printf("%lld bytes in %.2f s, %.0f MB/s\n", count, took, (double)count / 1e6 / took);
    return 0;
}

static int many(int count, const char *from, const char *path)
{
    static int fds[COUNT_MAX];
    FILE *file = fopen(path, "rb");
    const char *why = "cannot connect";
    double began = now();
    int i, opened = 0, done = 0;
    url u;
    if (!file || count < 1 || count > COUNT_MAX || url_parse(&u, from) != 0)
        return fail("many", "bad arguments");
    while (opened < count && (fds[opened] = url_connect(&u)) >= 0) opened++;
    for (i = 0; i < opened && opened == count; i++)
        if (url_ask(&u, fds[i]) != 0) break;
    while (done < count && i == count && answer_take(fds[done], NULL, file, &why) >= 0) {
        done++;
        rewind(file);
    }
    for (i = 0; i < opened; i++) close(fds[i]);
    fclose(file);
    if (done < count) return fail(from, why);
    printf("%d connections at one time, each with its answer, in %.2f s\n", count, now() - began);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "make") == 0) return make(argv[2], atoll(argv[3]));
    if (argc == 4 && strcmp(argv[1], "get") == 0) return get(argv[2], argv[3]);
    if (argc == 5 && strcmp(argv[1], "many") == 0) return many(atoi(argv[2]), argv[3], argv[4]);
    return fail("usage", "make FILE BYTES | get HOST:PORT/PATH FILE | many N HOST:PORT/PATH FILE");
}
