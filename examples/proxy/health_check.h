// What the files of the health checks share.
#ifndef REVDIAL_PROXY_HEALTH_CHECK_H
#define REVDIAL_PROXY_HEALTH_CHECK_H

#include "health.h"

enum {
    HEALTH_FLYING = 64,    // checks at one time; of one name at most as many as are left for others
    HEALTH_TARGETS = 16,   // of one agent: the library avoids as many
    HEALTH_LOOK_MS = 20,   // from one look at what is due to the next
    HEALTH_HEAD = 12,      // "HTTP/1.1 200"
    HEALTH_BYTES = 16384,  // until there is one that is an answer
    HEALTH_WHY_SIZE = 256
};

// RESTS --due--> DIALS --connected, for HTTP--> READS --over--> RESTS
//                  └── over ──▶ RESTS; or DROPPED, until its dial is over
enum health_step { HEALTH_RESTS, HEALTH_DIALS, HEALTH_READS, HEALTH_DROPPED };

typedef struct health_agent health_agent;

typedef struct health_check {
    health *of;
    health_agent *agent;
    const health_row *row;
    enum health_step step;
    int64_t due_ms;    // RESTS: when the next begins; READS: when it is too late
    int64_t began_ms;  // the check
    int64_t since_ms;  // it is as it is
    int is_known, is_failing;
    int streak;  // results in a row that say something else
    int64_t dial;
    revdial_stream *st;
    size_t got, bytes;  // in head; in all
    char head[HEALTH_HEAD + 1];
    unsigned passing;  // 1 + what is there of the empty line that ends a head of 1xx; 0: in none
    char why[HEALTH_WHY_SIZE];  // it fails
    // Guarded by the lock of the inbox: what came of the dial.
    struct health_check *next;
    revdial_stream *dialled;
    int code;
    char said[HEALTH_WHY_SIZE];
    char target[];  // "" = the agent's own
} health_check;

struct health_agent {
    size_t at;  // of its slot
    revdial_session *session;
    char name[ROUTE_NAME_SIZE], instance[ROUTE_NAME_SIZE];
    uint32_t hash;  // of the name
    size_t label;   // in the metrics
    unsigned count;
    health_check *checks[HEALTH_TARGETS];
};

typedef struct health_slot {
    int64_t due_ms;  // of the first of its checks that rests
    uint64_t id;     // of its session
    health_agent *agent;
} health_slot;

typedef struct health_event {
    struct health_event *next;
    revdial_session *session;  // with a reference
    int state;                 // REVDIAL_UP or _DOWN
} health_event;

struct health {
    watch *w;
    prog_log *log;
    // Set before the thread starts, then read-only.
    revdial_proxy *proxy;
    http_front *http;
    pthread_t thread;
    int wake[2];

    pthread_mutex_t inbox;  // guards these: what others have for the thread
    health_event *first, **last;
    health_check *dialled;
    health_table next_table;
    int has_table, is_running, is_stopping, is_woken;

    pthread_mutex_t lock;  // guards these; only the thread changes them
    health_table table;
    health_slot *slots;
    size_t count, room, turn;
    size_t failing;

    // Of the thread.
    health_check *flying[HEALTH_FLYING];  // DIALS or READS
    size_t flying_count;
    int64_t now_ms, look_ms;
    uint64_t seed;
};

// health_check.c
int64_t health_now_ms(void);
// The thread has something to heed.
void health_wake_locked(health *h);
// Begins a check that rests.
void health_begin(health *h, health_check *c);
// Its dial is over. May free it.
void health_heed(health *h, health_check *c);
// Reads what has come of an answer.
void health_read(health *h, health_check *c);
// Ends and frees it, once its dial is over.
void health_drop(health *h, health_check *c);
// One of its agent's checks begins to rest: the agent may have to be looked at earlier.
void health_note_due(health *h, const health_agent *a);

#endif  // REVDIAL_PROXY_HEALTH_CHECK_H
