// --allow: what agents may connect to on this side, by their --forward.
#ifndef REVDIAL_PROXY_ALLOW_H
#define REVDIAL_PROXY_ALLOW_H

#include <pthread.h>

#include "../program/program.h"

typedef struct allow_list allow_list;

typedef struct allow {
    prog_log *log;  // NULL: not open
    int half_closed_ms;
    pthread_mutex_t lock;
    allow_list *now;  // guarded by lock; NULL = nothing is allowed
    prog_rate rate;   // of lines about refusals
} allow;

// Returns 0, or -1 with errno.
int allow_open(allow *a, prog_log *log, int half_closed_ms);
// Copies the rules of a list, for connections to come. Returns 0, or -1 when out of memory: the old
// ones are in force.
int allow_use(allow *a, const prog_list *rules);
// When nothing is served any more.
void allow_close(allow *a);
// Connects a stream that an agent has opened to the target that it asks for. On a thread that may
// wait; takes the stream.
void allow_serve(allow *a, revdial_stream *st);

#endif  // REVDIAL_PROXY_ALLOW_H
