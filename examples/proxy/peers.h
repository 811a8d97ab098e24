// Other proxies that ask this one for agents that they do not have. This proxy is an agent of
// theirs, to which they send such dials: see peer_group in revdial.h.
#ifndef REVDIAL_PROXY_PEERS_H
#define REVDIAL_PROXY_PEERS_H

#include "../program/admin.h"
#include "settings.h"

enum {
    PEERS_MAX = 8,
    PEERS_LAST_MS = 1000  // for the last bytes, when the proxy has drained
};

typedef struct peers {
    revdial_agent *agent;  // NULL: there is no --peer
    revdial_proxy *proxy;
    prog_log *log;
    const char *token_file;
    revdial_dial_opts dial;  // of all streams, without what a peer says
} peers;

// Checks what the options say. Returns 0 or an exit code.
int peers_configure(config *c);
// Connects to each --peer from now on, and answers what they ask. Returns 0 or an exit code.
int peers_start(peers *p, revdial_proxy *proxy, const config *c, prog_log *log);
// The connections to them: behind "peers" of an object, and as a table, if there are any.
void peers_status(const peers *p, prog_out *out);
void peers_table(const peers *p, prog_out *out);
// Ends the connections to them. Their streams have drain_ms to end.
void peers_stop(peers *p, int drain_ms);

#endif  // REVDIAL_PROXY_PEERS_H
