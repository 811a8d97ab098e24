// Ports for clients that are opened and closed while the proxy runs, at the admin port. They stay
// at a reload, and are gone when the proxy ends: what shall last is for the configuration.
#ifndef REVDIAL_PROXY_PORTS_H
#define REVDIAL_PROXY_PORTS_H

#include "../program/admin.h"
#include "settings.h"

enum { PORTS_MAX = 256 };

typedef struct ports_one {
    expose x;      // its address is the one that it is bound to
    int is_taken;  // the configuration has this address now
    char spec[];   // what x points into
} ports_one;

typedef struct ports {
    pthread_mutex_t lock;  // guards all below, and the configuration in force
    ports_one *list[PORTS_MAX];
    size_t count;
} ports;

// All of these are called under the lock.

// Opens "ADDRESS=NAME[/TARGET]" with the settings of all, for an agent that is connected.
//   returns  200, or the HTTP status of a refusal; what to say is in out either way
int ports_open(ports *p, revdial_proxy *proxy, const config *now, const char *spec, prog_out *out);
// Closes one of them. Its connections go on.
int ports_close(ports *p, revdial_proxy *proxy, const config *now, int64_t id, prog_out *out);
// Finds one for an address that is configured now. Returns its id, or 0.
int64_t ports_take(ports *p, const char *address);
// After a reload: forgets those that were taken if it went well, and gives the others its settings.
void ports_settle(ports *p, revdial_proxy *proxy, const config *now, int is_good, prog_log *log);

// All ports, at most limit of them: as members of an object, and as a table.
void ports_status(const ports *p, revdial_proxy *proxy, const config *now, size_t limit,
                  prog_out *out);
void ports_table(const ports *p, revdial_proxy *proxy, const config *now, size_t limit,
                 prog_out *out);
void ports_free(ports *p);

#endif  // REVDIAL_PROXY_PORTS_H
