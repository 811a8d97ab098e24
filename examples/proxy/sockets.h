// --sockets: a Unix socket for each agent that is registered, DIR/NAME.sock.
#ifndef REVDIAL_PROXY_SOCKETS_H
#define REVDIAL_PROXY_SOCKETS_H

#include <pthread.h>

#include "../program/program.h"

typedef struct sockets_event sockets_event;
typedef struct sockets_name sockets_name;

// A thread exposes and unexposes, which may block; I/O threads only tell it which agent has come or
// gone. All zero: --sockets was not given.
typedef struct sockets {
    char *dir;  // allocated
    revdial_proxy *proxy;  // set before the thread starts, then read-only, as `log`
    prog_log *log;
    int is_running;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    sockets_event *first, **last;  // guarded by lock: what has not been done
    revdial_expose like;           // guarded by lock: what exposes have besides address and name
    int is_changed;                // guarded by lock: those that there are have another one
    int is_closing;                // guarded by lock
    sockets_name *names;           // of the thread: sorted
    size_t name_count, name_room;
    int is_lacking;      // of the thread: one of these had no descriptor or memory
    uint64_t *draining;  // of the thread: ids of sessions that take no new client
    size_t draining_count;
} sockets;

// Is it a directory? Returns 0, or -1 and the reason in err->msg.
int sockets_check(const char *dir, revdial_err *err);
// Removes the sockets of a proxy that was killed.
//   returns  0, or -1 and the reason in err->msg
int sockets_open(sockets *s, const char *dir, revdial_err *err);
// A session is up, drains or is down; an on_session hook calls it. May come before sockets_start().
void sockets_note(sockets *s, revdial_session *session, int state);
// Begins to expose. Returns 0, or -1 with errno.
int sockets_start(sockets *s, revdial_proxy *proxy, const revdial_expose *like, prog_log *log);
// Exposes like this from now on, also those that there are: its clients go on.
void sockets_replace(sockets *s, const revdial_expose *like);
// Ends the thread; before the proxy stops, which removes the sockets.
void sockets_stop(sockets *s);
// Frees what is left, when no hook runs any more.
void sockets_free(sockets *s);

#endif  // REVDIAL_PROXY_SOCKETS_H
