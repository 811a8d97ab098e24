// What the agent tells about itself: its links to proxies, their sessions, and metrics.
#ifndef REVDIAL_AGENT_LINKS_H
#define REVDIAL_AGENT_LINKS_H

#include "../program/admin.h"

typedef struct links {
    const char *name;  // set before start, as:
    revdial_agent *agent;
    pthread_mutex_t lock;  // guards all below
    uint64_t closed_by[REVDIAL_ERROR_PLACES], failed_by[REVDIAL_ERROR_PLACES];
} links;

// Returns 0, or -1 with errno.
int links_open(links *l, const char *name);
void links_close(links *l);
// From on_state of the agent.
void links_state(links *l, int state, const revdial_err *why);
// The pages of --admin; ud is the links.
extern const prog_page links_pages[];

#endif  // REVDIAL_AGENT_LINKS_H
