// How to choose between the agents of one name: --pick.
#ifndef REVDIAL_PROXY_PICK_H
#define REVDIAL_PROXY_PICK_H

#include "revdial.h"

enum { PICK_SIZE = 80 };  // of "header:" and the name of a field

// Checks a rule: round-robin, least-streams, client, host or header:NAME.
//   returns  NULL, or what is wrong with it
const char *pick_problem(const char *rule);
// Does the rule need what a client asks for, which an exposed port does not know?
int pick_needs_request(const char *rule);
// The field of a request that the rule names, or NULL.
const char *pick_header(const char *rule);
// Has a dial follow the rule. One that needs a request is the dial's key until pick_by().
void pick_set(revdial_dial_opts *dial, const char *rule);
// The rule that is the key of a dial; NULL: it needs no request.
const char *pick_rule(const revdial_dial_opts *dial);
// Has a dial keep to the agent of that key; len 0: there is none, and each gets the next agent.
void pick_by(revdial_dial_opts *dial, const void *key, size_t len);

#endif  // REVDIAL_PROXY_PICK_H
