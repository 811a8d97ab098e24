// What HUP and --watch change of a proxy that runs.
#ifndef REVDIAL_PROXY_RELOAD_H
#define REVDIAL_PROXY_RELOAD_H

#include "allow.h"
#include "health.h"
#include "hosts.h"
#include "peers.h"
#include "ports.h"

typedef struct live {
    char **argv;
    prog_log *log;
    revdial_proxy *proxy;
    revdial_tls *tls;
    route_table routes;  // of all front ends
    host_table hosts;    // of the agents: they are routes, too
    external external;   // who is asked
    allow allow;         // what agents may connect to here
    http_front *http;    // NULL: there is none
    health *health;
    peers peers;
    config *first;  // what the proxy was started with, until the end: threads point into it
    config *now;    // in force; may be the first. Replaced by the main thread, under:
    ports ports;    // those of the admin port; other threads lock them
} live;

// Reads everything again and does what differs. Connections stay, except those of agents whose
// credentials are gone. If anything is wrong, nothing changes, and the log says what and where.
// Returns whether l->now is another one; its tokens are still there.
//   w        watches the files of one that is refused, too
int live_reload(live *l, prog_watch *w);
// The same while the proxy drains: agents whose credentials are gone are disconnected. The rest is
// for what begins, and nothing does.
void live_revoke(live *l);
// Makes the locks, and takes the routes of the first configuration, before the proxy starts.
// Returns 0, or -1 and errno.
int live_open(live *l);
// Frees the configurations and the routes.
void live_free(live *l);

#endif  // REVDIAL_PROXY_RELOAD_H
