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
// Copies rules. Returns NULL when out of memory.
allow_list *allow_list_new(const prog_list *rules);
void allow_list_free(allow_list *list);
// Takes a list, for connections to come; NULL allows nothing.
void allow_use(allow *a, allow_list *list);
// When nothing is served any more.
void allow_close(allow *a);
// Connects a stream that an agent has opened to the target that it asks for. On a thread that may
// wait; takes the stream.
void allow_serve(allow *a, revdial_stream *st);

#endif  // REVDIAL_PROXY_ALLOW_H
