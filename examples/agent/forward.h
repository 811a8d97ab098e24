// --forward: addresses of this machine whose connections go through the tunnel to a target of the
// proxy's side.
#ifndef REVDIAL_AGENT_FORWARD_H
#define REVDIAL_AGENT_FORWARD_H

#include <pthread.h>

#include "../program/admin.h"

typedef struct forward_port {
    prog_listener at;
    const char *target;
} forward_port;

typedef struct forward {
    prog_log *log;
    revdial_agent *agent;  // set before the thread starts, then read-only
    int half_closed_ms;
    forward_port *ports;
    size_t count;
    int wake[2];  // a dial is over, or all of it is
    int is_running;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned dials;  // guarded by lock: threads at work
    int is_closing;  // guarded by lock
    prog_rate rate;  // of lines about dials that failed
} forward;

// Is it "ADDRESS=TARGET"? Returns NULL, or what is wrong with it.
const char *forward_problem(const char *spec);
// Listens. Returns 0, or an exit code, and the reason in err->msg. Close it in either case.
int forward_open(forward *f, const prog_list *specs, prog_log *log, revdial_err *err);
// Accepts clients for that agent. Returns 0, or -1 with errno.
int forward_start(forward *f, revdial_agent *agent, int half_closed_ms);
// Accepts no more clients: before the agent drains. Those that are connected stay.
void forward_stop(forward *f);
// Waits for the threads that still dial, which end when the agent has drained: before it is freed.
void forward_close(forward *f);

#endif  // REVDIAL_AGENT_FORWARD_H
