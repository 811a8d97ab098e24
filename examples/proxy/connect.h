// The head of a CONNECT request.
#ifndef REVDIAL_PROXY_CONNECT_H
#define REVDIAL_PROXY_CONNECT_H

#include "http_reader.h"
#include "routes.h"

enum { CONNECT_USER_SIZE = ROUTE_NAME_SIZE + 1 };  // one more, to tell a name that is too long

typedef struct connect_head {
    int status;           // 200, or what the request is refused with
    const char *problem;  // if it is refused
    size_t len;           // of the head; what follows is for the target
    route_host where;
    char user[CONNECT_USER_SIZE];  // of Proxy-Authorization: Basic, "" = none
    char trace[HTTP_TRACE_SIZE];   // the traceparent, "" = none
} connect_head;

// Reads a request from its first byte on.
//   returns  0 if more must come, else out->status
int connect_parse(connect_head *out, const char *data, size_t len);

#endif  // REVDIAL_PROXY_CONNECT_H
