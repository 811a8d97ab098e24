// Health checks: what agents lead to is tried through the tunnel, and clients go elsewhere while it
// fails.
#ifndef REVDIAL_PROXY_HEALTH_H
#define REVDIAL_PROXY_HEALTH_H

#include "http.h"
#include "watch.h"

// ------------------------------------------------------------------------------------------------
// health_rules.c: what is to be checked, and how.

enum { HEALTH_HOW_SIZE = 256, HEALTH_REQUEST_SIZE = 1024 };

typedef struct health_rule {
    const char *how;  // tcp, http:/PATH, http://HOST/PATH; none or NULL: not at all
    int interval_ms, timeout_ms;
    int rise, fall;  // checks in a row that must succeed or fail
} health_rule;

typedef struct health_row {
    char name[ROUTE_NAME_SIZE];  // of agents, may have a *
    char target
        [ROUTE_TARGET_SIZE];  // may have a *, for what that of the name matches; "": their own
    char text[HEALTH_HOW_SIZE];      // `how` of its rule
    health_rule rule;                // without `how`
} health_row;

typedef struct health_table {
    health_row *rows;
    size_t count;
} health_table;

// Checks the text of a rule.
//   returns  NULL, or what is wrong with it
const char *health_problem(const char *how);
// Has agents of "NAME[/TARGET]" checked, as a route or a port leads to them. Of two rules for the
// same the first counts.
//   returns  0, or -1 when out of memory
int health_add(health_table *table, const char *way, const health_rule *rule);
void health_table_free(health_table *table);
// Is the row about an agent of that name? If so, writes the target that is to be checked.
int health_fits(const health_row *row, const char *name, char target[ROUTE_TARGET_SIZE]);
// Writes the request of an HTTP check. Returns its length; 0: to connect is all.
size_t health_request(const health_row *row, const char *name, const char *target,
                      char request[HEALTH_REQUEST_SIZE]);

// ------------------------------------------------------------------------------------------------
// health.c: a thread that makes the checks, once there is a rule.

typedef struct health health;

// Returns NULL with errno. Agents are counted in w, and what happens to them is logged.
health *health_new(watch *w, prog_log *log);
// From now on the table's rules hold; takes its rows. What is still checked stays as it is known.
// http: whose idle streams end where a check fails, or NULL.
//   returns  0, or -1 with errno
int health_set(health *h, revdial_proxy *proxy, http_front *http, health_table *table);
// From on_session.
void health_note(health *h, revdial_session *session, int state);
// Makes no more checks. Before revdial_proxy_stop().
void health_stop(health *h);
// After revdial_proxy_stop().
void health_free(health *h);
// What fails, at most `limit` of it, as a member of an object ("health": …), or for people.
void health_status(health *h, prog_out *out, size_t limit);
void health_status_table(health *h, prog_out *out, size_t limit);

#endif  // REVDIAL_PROXY_HEALTH_H
