// Hosts that come and go with the agents: those that the credential of an agent names, which is
// the label of its session, lead to it while it is registered.
#ifndef REVDIAL_PROXY_HOSTS_H
#define REVDIAL_PROXY_HOSTS_H

#include <pthread.h>
#include <stdatomic.h>

#include "../program/program.h"
#include "routes.h"

typedef struct hosts_row hosts_row;

typedef struct host_table {
    prog_log *log;          // NULL: not open
    pthread_rwlock_t lock;  // guards all below but turn
    hosts_row **rows;       // by host, then by session
    size_t count, room;
    atomic_uint turn;  // where several agents have a host, each gets its turn
} host_table;

// Is this a comma list of host names, each exact or "*." and the rest of one?
//   returns  NULL, or what is wrong with it
const char *hosts_problem(const char *list);

// Returns 0, or -1 with errno.
int hosts_open(host_table *h, prog_log *log);
void hosts_free(host_table *h);
// The agent of that session serves a list of hosts from now on, or no longer.
void hosts_change(host_table *h, const char *list, const revdial_session_info *agent, int is_up);
// A session is up, drains or is down; an on_session hook calls it.
void hosts_note(host_table *h, revdial_session *session, int state);
// Finds the agent that a host leads to. An exact name counts first, then the longest with "*.".
//   returns  the length of what fits, with its "*", ROUTE_HOST_SIZE for an exact name; or 0
size_t hosts_find(host_table *h, const char *host, char name[ROUTE_NAME_SIZE]);

#endif  // REVDIAL_PROXY_HOSTS_H
