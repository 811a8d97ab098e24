// Other proxies that ask this one for agents that they do not have. This proxy is an agent of
// theirs, to which they send such dials: see peer_group in revdial.h.
#ifndef REVDIAL_PROXY_PEERS_H
#define REVDIAL_PROXY_PEERS_H

#include "../program/admin.h"
#include "settings.h"

enum {
    PEERS_MAX = 8,
    PEERS_LAST_MS = 1000  // least time for the last bytes, once the proxy has drained
};

typedef struct peer peer;

typedef struct peers {
    // Set before start, then read-only.
    revdial_proxy *proxy;
    const prog_common *common;
    prog_log *log;           // NULL: it is not open
    pthread_mutex_t lock;    // guards all below
    pthread_cond_t changed;  // the state of a peer
    peer *first;             // those of --peer, and what is left of others
    revdial_tls *tls;        // NULL: no peer has needed it yet
    const char *token_file;
    revdial_limits limits;   // of the sessions with peers
    revdial_dial_opts dial;  // of all streams, without what a peer says
} peers;

// Checks what the options say. Returns 0 or an exit code.
int peers_configure(config *c);
// Makes the locks. Returns 0, or -1 with errno.
int peers_open(peers *p, const config *first, revdial_proxy *proxy, prog_log *log);
// Gets ready what it takes to answer the peers of a configuration, before peers_commit() or
// peers_undo(). Returns 0, or an exit code: there is nothing to undo then.
int peers_prepare(peers *p, const config *next);
// Connects to these from now on, and to no others: streams of others go on. Cannot fail.
void peers_commit(peers *p, config *next);
void peers_undo(peers *p);
// The connections to them: behind "peers" of an object, and as a table, if there are any.
void peers_status(peers *p, prog_out *out);
void peers_table(peers *p, prog_out *out);
// Ends the connections to them. Their streams have drain_ms to end.
void peers_stop(peers *p, int drain_ms);
// After that, and after the proxy.
void peers_close(peers *p);

#endif  // REVDIAL_PROXY_PEERS_H
