// What revdial-proxy is told: by its options, the environment and the configuration file.
#ifndef REVDIAL_PROXY_SETTINGS_H
#define REVDIAL_PROXY_SETTINGS_H

#include "credentials.h"
#include "allow.h"
#include "external.h"
#include "health.h"
#include "hosts.h"

enum { ADDRESS_SIZE = 136 };  // "unix:" and a sun_path, or an address and a port

typedef struct settings {
    prog_list listens, exposes, origins, groups, hosts, allow;
    prog_list connects, socks5s, snis, https, routes, allow_from, trusted, peers;
    const char *peer_ca;
    const char *sockets;
    token_paths credentials;
    external_options external;
    const char *pick;
    health_rule health;
    int dial_timeout_ms, is_waiting, is_early, has_http_header;
    unsigned max_clients, max_clients_per_source;
    prog_tls_files tls;
    revdial_proxy_config cfg;  // what needs no other form than the option's
} settings;

typedef struct expose {
    const char *option, *item;   // that gave it
    char address[ADDRESS_SIZE];  // as the library takes it
    char name[ROUTE_NAME_SIZE];  // of the agent; of a front end its option, "--connect"
    revdial_expose x;            // points to these two
    int64_t id;                  // that the library gave it; 0 = not yet
    char *allow_from, *trusted;  // of its section; NULL = those of all
} expose;

// All of it, checked as far as that can be done without listening.
typedef struct config {
    prog_cli cli;
    settings s;
    char *listen;     // addresses for agents, as the library takes them
    expose *exposes;  // those of --expose, then the front ends
    size_t expose_count;
    char *allow_from, *trusted, *hosts;
    route_table routes;
    health_table health;
    revdial_expose like;  // of the sockets of --sockets
    token_table tokens;
    external_set *external;      // NULL: nobody is asked, or its user has it
    allow_list *allow;           // NULL: its user has it
    revdial_tls *tls;            // NULL: there is none, or its user has it
    revdial_tls *peer_tls;       // the same of peers
    revdial_proxy_config proxy;  // made of all that
    char *origins;
    revdial_expose *xs;
} config;

// Says what is wrong on stderr, or in the log of a program that runs. Returns -1 to go on, or what
// to exit with. Close it in either case.
int config_open(config *c, char **argv, prog_log *log);
void config_close(config *c);
// One more port, "ADDRESS=NAME[/TARGET]", with the settings of all. It points into spec and c.
// Returns NULL, or what is wrong with it.
const char *config_expose_one(const config *c, expose *x, const char *spec);
// Gives it the settings of all once more.
void config_expose_set(const config *c, expose *x);

#endif  // REVDIAL_PROXY_SETTINGS_H
