// What revdial-agent is told: by its options, the environment and the configuration file.
#ifndef REVDIAL_AGENT_SETTINGS_H
#define REVDIAL_AGENT_SETTINGS_H

#include "../program/program.h"

enum { VIA_SIZE = 4097 };  // 255 and 1024 bytes of a login as %XX, and a host

typedef struct settings {
    prog_list servers, allow, forwards;
    const char *token_file, *token, *via, *via_file, *allow_file;
    int auth;  // bearer, basic or digest
    prog_tls_files tls;
    revdial_agent_config cfg;  // what needs no other form than the option's
} settings;

// Targets that a section is about.
typedef struct target_row {
    const char *pattern;
    int proxy_protocol, connect_timeout_ms, idle_timeout_ms, half_closed_timeout_ms;
} target_row;

// All of it, checked as far as that can be done without connecting.
typedef struct config {
    prog_cli cli;
    settings s;
    prog_file allow_file;
    prog_list allow;  // the rules of the options and of that file
    target_row *targets;
    size_t target_count;
    char *url, via[VIA_SIZE];
    revdial_tls *tls;            // NULL: there is none
    revdial_agent_config agent;  // made of all that; credential_ud and on_state are still missing
} config;

// Says what is wrong on stderr, or in the log of a program that runs. Returns -1 to go on, or what
// to exit with. Close it in either case.
int config_open(config *c, char **argv, prog_log *log);
void config_close(config *c);
// What the first section that covers the target says of it, or else the options.
void config_serve(const config *c, revdial_target_request *r);

// Where the token or password comes from before each attempt to connect.
typedef struct sources {
    const config *config;
    prog_log *log;
} sources;

// A revdial_credential_fn; ud is the sources.
int sources_fresh(void *ud, unsigned attempt, char *secret, size_t size);

#endif  // REVDIAL_AGENT_SETTINGS_H
