// The front end --http: each request goes to the agent that its Host names, whatever connection it
// came on.
#ifndef REVDIAL_PROXY_HTTP_H
#define REVDIAL_PROXY_HTTP_H

#include "front.h"

typedef struct http_config {
    const route_table *routes;
    prog_log *log;
    int half_closed_ms;  // as in revdial_expose
    unsigned threads;
    int has_proxy_header;  // a PROXY header says who the client is, X-Forwarded-For never does
} http_config;

typedef struct http_front http_front;

// Starts the threads. What config points to must stay.
//   returns  NULL with errno
http_front *http_start(const http_config *config);
// Dials go through this proxy. Connections that front_http, whose ud is the front end, has taken
// over before wait for it.
void http_use(http_front *f, revdial_proxy *proxy);
// A session drains, or a target behind it fails ("": the agent's own): streams that lead there are
// used for no further request. target NULL: all of the session.
void http_leave(http_front *f, revdial_session *session, const char *target);
// The comma list of addresses and networks of proxies whose X-Forwarded-For is believed.
void http_trust(http_front *f, const char *trusted);
// Closes what is idle, and each other connection after its response.
void http_drain(http_front *f);
// Ends all connections and the threads; what is on its way to a client has so long to get there.
// Before revdial_proxy_stop(), and when no port leads here. Once more does nothing.
//   returns  whether all of it did
int http_stop(http_front *f, int last_ms);
// After revdial_proxy_stop().
void http_free(http_front *f);

#endif  // REVDIAL_PROXY_HTTP_H
