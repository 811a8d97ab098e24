// What the front ends of revdial-proxy share. Each is a pair of hooks on an exposed address, whose
// ud is the table of routes, and a parser of its own. That of --http takes the connections over:
// see http.h.
#ifndef REVDIAL_PROXY_FRONT_H
#define REVDIAL_PROXY_FRONT_H

#include "../program/program.h"
#include "routes.h"

typedef struct front_kind {
    const char *option;  // without the dashes
    revdial_route_fn *route;
    revdial_route_done_fn *done;
    size_t bytes_max;  // that a client may send before it is decided, 0 = 16384
} front_kind;

extern const front_kind front_connect, front_socks5, front_sni, front_http;

// Answers that this agent and target are to be dialled for a client that asked for `host`; r->text
// is used for all three.
//   returns  REVDIAL_ROUTE_DIAL
int front_dial(revdial_route *r, const route_choice *where, const route_host *host);
// Has the agent told of the client's traceparent; "" = it has none.
void front_trace(revdial_route *r, const char *trace);
// The HTTP status of a gateway for a dial that failed.
int front_status(const revdial_err *why);

#endif  // REVDIAL_PROXY_FRONT_H
