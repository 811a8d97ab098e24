// One attempt to connect, hop by hop, each with its outcome. Blocks; nothing else runs meanwhile.
#ifndef REVDIAL_AGENT_PROBE_H
#define REVDIAL_AGENT_PROBE_H

#include <netdb.h>

#include "../program/program.h"

enum { PROBE_MS = 10000, PROBE_HOST = 264, PROBE_PATH = 1032, PROBE_CHALLENGE = 1024 };

// A URL of --server, taken apart.
typedef struct probe_url {
    char host[PROBE_HOST];       // a name or an address, without brackets
    char authority[PROBE_HOST];  // of the request: host and, unless it is the default, port
    char endpoint[PROBE_HOST];   // "host:port", or "unix:/path"
    char port[8];
    char path[PROBE_PATH];
    int is_secure, is_websocket, is_unix;
} probe_url;

// Returns 0 if it is no URL of a server; the library says why at the start.
int probe_url_parse(probe_url *u, const char *text, size_t len);
// Takes "host:port" or "[host]:port" apart. Returns 0 if it is neither.
int probe_split(const char *text, char *host, size_t host_size, char *port, size_t port_size);

// Finds addresses. Returns 0, or what getaddrinfo() returned; free them with freeaddrinfo().
int probe_resolve(const char *host, const char *port, struct addrinfo **out);
// Connects to the first address that takes it, or to unix:/path. *at is that address, or the last
// one that was tried.
//   returns  a non-blocking descriptor, or -1 with errno
int probe_connect(const struct addrinfo *list, char *at, size_t size);
int probe_connect_unix(const char *path);
// Does what is sent to that address stay on this machine?
int probe_is_loopback(const struct sockaddr *a);

// What a connection is made of.
typedef struct probe_conn {
    int fd;
    int has_tls;
    revdial_transport tls;
} probe_conn;

void probe_close(probe_conn *c);
// Through an egress proxy. Returns 0, or REVDIAL_E* and the reason in err.
int probe_egress(probe_conn *c, const char *via, const char *endpoint, revdial_err *err);
int probe_tls(probe_conn *c, const revdial_tls *tls, const char *host, revdial_err *err);

// How the proxy, or what stands before it, answered the request to upgrade.
typedef struct probe_answer {
    int code;    // 0: it was admitted; or REVDIAL_E*
    int status;  // of HTTP, 0 = there was none
    char text[240];
    char challenge[PROBE_CHALLENGE];  // not "": try again with it
    char date[40];                    // of the answer, "" = it had none
} probe_answer;

void probe_upgrade(probe_conn *c, const revdial_engine_config *cfg, probe_answer *out);
// A date of HTTP as seconds since 1970, -1 if it is none.
long long probe_date(const char *text);

#endif  // REVDIAL_AGENT_PROBE_H
