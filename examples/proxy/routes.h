// Routes of revdial-proxy: where a client wants to go, and which agent leads there.
#ifndef REVDIAL_PROXY_ROUTES_H
#define REVDIAL_PROXY_ROUTES_H

#include <pthread.h>
#include <stddef.h>

#include "pick.h"

enum {
    ROUTE_HOST_SIZE = 256,   // a host name has at most 253 letters
    ROUTE_NAME_SIZE = 65,    // of an agent
    ROUTE_TARGET_SIZE = 280  // "[host]:port"
};

// A destination as a client names it.
typedef struct route_host {
    char host[ROUTE_HOST_SIZE];  // lower case, without an IPv6 address's brackets and a final dot
    int port;                    // -1 = none was given
} route_host;

// Reads "HOST" or "HOST:PORT": a name of letters, digits, - _ and dots, or an address, IPv6 in
// brackets. Port 0 is good, and asks for the agent's own target.
//   returns  NULL, or what is wrong with it
const char *route_host_parse(route_host *out, const char *text, size_t len);
// The same for a host alone, an IPv6 address without brackets.
const char *route_host_set(route_host *out, const char *host, size_t len, int port);
// Writes it as the target of a dial; "" for port 0 or none.
void route_host_target(const route_host *where, char target[ROUTE_TARGET_SIZE]);

// May an agent have this name? 1 to 64 of a-z 0-9 . _ -
int route_is_name(const char *name, size_t len);
// Returns NULL, or what is wrong with a target of a dial.
const char *route_target_problem(const char *target);

typedef struct route_row route_row;
typedef struct route_table {
    route_row *rows;  // the most specific one first
    size_t count;
    pthread_rwlock_t *lock;  // guards both; NULL until it is shared
    struct host_table
        *hosts;  // of the agents that are registered, or NULL; set before it is shared
} route_table;

// Adds the route "PATTERN=NAME[/TARGET]".
//   returns  NULL, or what is wrong with it
const char *route_add(route_table *table, const char *spec);
// How clients of the route that was added with this spec get one of its agents; without it as the
// port has it. The rule is one that pick_problem() lets pass.
void route_pick(route_table *table, const char *spec, const char *rule);
void route_table_free(route_table *table);
// Other threads may search the table from now on, while it is replaced. Returns 0, or -1 and errno.
int route_table_share(route_table *table);
// Takes the routes of another table, which is empty then.
void route_table_replace(route_table *table, route_table *from);

// What a destination leads to.
typedef struct route_choice {
    char name[ROUTE_NAME_SIZE];
    char target[ROUTE_TARGET_SIZE];  // "" = the agent's own
    int has_target;                  // the route says where to go from the agent
    int is_default;                  // only the route "*" fits
    char pick[PICK_SIZE];            // "" = as the port has it
} route_choice;

// The most specific route for that destination: a host name, then a pattern with * by the number
// of its letters, a network by its bits, and "*". Of two that differ in nothing else, the one with
// a port. A route with a port does not fit a destination without one. The hosts of agents are
// like routes to them; of two that are the same the route counts.
//   returns  1 and *out, or 0
int route_find(const route_table *table, const route_host *where, route_choice *out);

enum route_verdict {
    ROUTE_FOUND,
    ROUTE_NEEDS_NAME,  // no route fits, and the client has not named an agent
    ROUTE_BAD_NAME     // what the client has named is no name of an agent
};

// The same for a client that may name an agent: a route for its destination counts first, then that
// name, then the route "*". Where the route has no target, the agent is asked for the destination.
//   user     NULL or "" = the client names no agent
enum route_verdict route_decide(const route_table *table, const route_host *where, const char *user,
                                route_choice *out);

#endif  // REVDIAL_PROXY_ROUTES_H
