// `PROGRAM status`: asks the program that runs for its table and prints it.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "admin.h"

enum { PROG_ANSWER_MAX = 1 << 24 };  // a thousand sessions with their blocked streams are 2 MB

// Reads to the end. Returns 0, or -1 and the reason in err->msg.
static int prog_ask_read(int fd, const char *address, prog_out *answer, revdial_err *err)
{
    char buf[4096];
    ssize_t n;
    while ((n = read(fd, buf, sizeof buf - 1)) != 0) {
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            snprintf(err->msg, sizeof err->msg, "%s: %s", address,
                     errno == EAGAIN ? "no answer for 10 s" : strerror(errno));
            return -1;
        }
        buf[n] = '\0';
        prog_out_add(answer, "%s", buf);
        if (answer->failed || answer->len > PROG_ANSWER_MAX) {
            snprintf(err->msg, sizeof err->msg, "the answer is too long");
            return -1;
        }
    }
    return 0;
}

// Did as much of the body come as the head says, if it says it, as our programs do?
static int prog_ask_is_whole(const char *head, size_t body_len)
{
    static const char key[] = "\r\nContent-Length: ";
    const char *at = strstr(head, key);
    return !at || strtoull(at + sizeof key - 1, NULL, 10) == body_len;
}

// Gets a page. Returns its HTTP status with the body in answer, or -1 and the reason in err->msg.
static int prog_ask(const char *address, const char *path, prog_out *answer, revdial_err *err)
{
    static const char head[] = "HTTP/1.1 ";
    char request[256];
    const char *body;
    int status, fd = prog_connect(address, err);
    if (fd < 0) return -1;
    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path);
    if (send(fd, request, strlen(request), MSG_NOSIGNAL) != (ssize_t)strlen(request))
        snprintf(err->msg, sizeof err->msg, "%s: %s", address, strerror(errno));
    else
        prog_ask_read(fd, address, answer, err);
    close(fd);
    if (err->msg[0]) return -1;
    body = answer->at ? strstr(answer->at, "\r\n\r\n") : NULL;
    if (!body || strncmp(answer->at, head, sizeof head - 1) != 0) {
        snprintf(err->msg, sizeof err->msg, "%s: no HTTP answer", address);
        return -1;
    }
    status = (int)strtol(answer->at + sizeof head - 1, NULL, 10);
    body += 4;
    answer->len -= (size_t)(body - answer->at);
    if (!prog_ask_is_whole(answer->at, answer->len)) {
        snprintf(err->msg, sizeof err->msg, "%s: the answer was cut", address);
        return -1;
    }
    memmove(answer->at, body, answer->len + 1);
    return status;
}

static int prog_status_usage(const char *program, const char *problem)
{
    fprintf(stderr, "%s status: %s\nUsage: %s status [--json] [--dial ID] --admin ADDRESS\n",
            program, problem, program);
    return PROG_USAGE;
}

int prog_status_main(const char *program, char **argv)
{
    const char *address = getenv("REVDIAL_ADMIN"), *dial = "", *suffix = ".txt";
    char path[64];
    prog_out answer = {0};
    revdial_err err = {0};
    int status;
    for (; *argv; argv++) {
        if (strcmp(*argv, "--json") == 0)
            suffix = "";
        else if (strncmp(*argv, "--dial=", 7) == 0)
            dial = *argv + 7;
        else if (strcmp(*argv, "--dial") == 0 && argv[1])
            dial = *++argv;
        else if (strncmp(*argv, "--admin=", 8) == 0)
            address = *argv + 8;
        else if (strcmp(*argv, "--admin") == 0 && argv[1])
            address = *++argv;
        else
            return prog_status_usage(program,
                                     "the only options are --json, --dial ID and --admin ADDRESS");
    }
    if (!address) return prog_status_usage(program, "--admin is missing, and so is REVDIAL_ADMIN");
    if (strspn(dial, "0123456789abcdef.") != strlen(dial) || strlen(dial) > 27)
        return prog_status_usage(program, "--dial is not the id of a dial, as in the log");
    snprintf(path, sizeof path, *dial ? "/stream%s?dial=%s" : "/status%s", suffix, dial);
    status = prog_ask(address, path, &answer, &err);
    if (status == 200)
        fputs(answer.at, stdout);
    else if (status > 0)
        fprintf(stderr, "%s: %d %s", address, status, answer.at);
    else
        fprintf(stderr, "%s status: %s\n", program, err.msg);
    prog_out_free(&answer);
    return status == 200 ? prog_printed(program) : PROG_FAILED;
}
