// One HTTP GET whose answer is its head: for a thread that may wait, but not for long.
#ifndef REVDIAL_PROXY_FETCH_H
#define REVDIAL_PROXY_FETCH_H

#include "../program/program.h"
#include "routes.h"

enum { FETCH_HEAD_SIZE = 16384 };  // of an answer; servers send a few hundred bytes

typedef struct fetch_url {
    int is_tls;
    route_host at;          // with a port
    const char *authority;  // "host" or "host:port", as long as:
    size_t authority_len;
    const char *path;  // "" = "/"
} fetch_url;

// Takes "http://HOST[:PORT][/PATH]" or https:// apart; *url points into the text.
//   returns  NULL, or what is wrong with it
const char *fetch_url_parse(fetch_url *url, const char *text);

typedef struct fetch_request {
    const fetch_url *url;
    const revdial_tls *tls;  // of https
    const char *head;        // of the request, whole
    size_t head_len;
    int64_t until_ms;  // by fetch_now_ms()
} fetch_request;

int64_t fetch_now_ms(void);

// Asks, and reads the answer's head; whatever body follows is not read.
//   blocks   until until_ms, and while the system's resolver looks the host up. When the program is
//            to stop, it fails
//   returns  the status, with the head NUL-terminated in head; or -1 and the reason in err->msg
int fetch_head(const fetch_request *q, char head[FETCH_HEAD_SIZE], revdial_err *err);

// Copies the value of a field of the answer's head.
//   returns  1; 0: there is none; -1: there are two, or it has no room or is not printable
int fetch_field(const char *head, const char *name, char *value, size_t size);

// Writes 4 letters for each 3 bytes or fewer, and a NUL.
void fetch_base64(char *to, const char *from);

#endif  // REVDIAL_PROXY_FETCH_H
