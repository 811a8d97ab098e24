// What the files of the front end --http share: clients' connections, the streams to agents that
// they use, and the threads that move the bytes. All of it belongs to one thread, except what is
// marked as guarded.
#ifndef REVDIAL_PROXY_HTTP_CONN_H
#define REVDIAL_PROXY_HTTP_CONN_H

#include <sys/uio.h>

#include "http.h"
#include "http_writer.h"

enum {
    HTTP_SCRATCH_SIZE = 64 * 1024,  // bytes of a read
    HTTP_PIECES_MAX = 96,           // of one write
    HTTP_TURNS_MAX = 16,            // reads of a connection before others have their turn
    HTTP_SAID_MAX = 200,            // bytes of a target in the access log
    HTTP_LEFT_MAX = 64,             // more that drain or fail at one time wait for idle streams
    HTTP_ADDRESS_SIZE = 72          // of revdial_client
};

// ------------------------------------------------------------------------------------------------
// http_io.c: sockets and streams that are read and written as far as they go.

// len bytes from data + at on.
typedef struct http_bytes {
    char *data;
    size_t at, len, size;
} http_bytes;

// One socket or one stream, watched edge-triggered.
typedef struct http_side {
    int fd;              // -1 = none
    revdial_stream *st;  // in its place; NULL: none
    int can_read;        // an event said so, and no read has found it empty since
    int is_ending;       // an event said that its end is there, or comes after the bytes that are
    int can_write;       // likewise
    int is_eof, is_bad;  // the other end has finished; reading has failed
    int code;            // why, REVDIAL_E*, of a stream
    int is_deaf;         // writing has failed: there may still be something to read
    http_bytes in;       // read and not used yet
    http_bytes out;      // not taken by the socket yet
} http_side;

typedef struct http_conn http_conn;
typedef struct http_upstream http_upstream;

// Why a connection waits, and how long it may.
//
// IDLE ─▶ IDLE_LONGER ─▶ closed     its stream ends first, then it does
enum http_wait {
    // For bytes that the client or the agent is to send or to take, as long as both live: a player
    // that is paused may take none for an hour. TCP keepalive notices a client that has vanished,
    // and the session an agent that has.
    HTTP_WAIT_NONE,
    HTTP_WAIT_IDLE,
    HTTP_WAIT_IDLE_LONGER,
    HTTP_WAIT_HEAD,
    HTTP_WAIT_RESPONSE,
    HTTP_WAIT_HALF_CLOSED,  // for one side, while the other sends no more
    HTTP_WAIT_LINGER,
    HTTP_WAIT_CUT,  // for what is on its way to the client
    HTTP_WAIT_COUNT
};

typedef struct http_link {
    struct http_link *prev, *next;
} http_link;

// What no further request goes to.
typedef struct http_left {
    revdial_session *session;  // with a reference
    int is_all;                // else one target
    char target[ROUTE_TARGET_SIZE];
} http_left;

typedef struct http_thread {
    http_front *front;
    pthread_t thread;
    int ep, wake[2];                     // epoll(7), if there is one; a pipe
    revdial_pollset *set;                // of the streams
    http_bytes asked, asked_by;          // of poll(2), where there is none
    int64_t now_ms;                      // since the last wait
    int64_t end_ms;                      // when it ends at the latest; 0: it is not to end
    http_link waiting[HTTP_WAIT_COUNT];  // connections, the first deadline first
    int wait_ms[HTTP_WAIT_COUNT];
    http_link again;  // connections that have had their turn
    http_conn *dead;  // freed after the events of this wait
    http_head head;   // that was read last
    struct iovec pieces[HTTP_PIECES_MAX];
    int piece_count;
    char chunk_heads[HTTP_PIECES_MAX][HTTP_CHUNK_HEAD_MAX];
    char scratch[HTTP_SCRATCH_SIZE];
    char written[2 * HTTP_WRITTEN_MAX];  // a head; and trailers, which may go with it

    pthread_mutex_t lock;  // guards all below
    http_conn *arrived;
    http_left left[HTTP_LEFT_MAX];
    int left_count;
    http_upstream *posted;
    int is_woken, is_draining;
    int has_drained;  // idle connections have ended since; signals:
    pthread_cond_t drained;
    int64_t stop_ms;  // as end_ms
} http_thread;

// The socket is watched from now on; the connection runs after its events. Returns 0, or -1.
int http_side_open(http_thread *t, http_side *s, int fd, http_conn *c);
// The same with a stream, which is closed if that fails; the connection runs when it moves.
int http_side_join(http_thread *t, http_side *s, revdial_stream *st, http_conn *c);
void http_side_close(http_side *s);
// Nothing more is written.
void http_side_finish(http_side *s);
// What has been read and not used; reads if there is nothing. len 0: there is nothing now.
http_text http_side_in(http_thread *t, http_side *s);
// Reads more behind bytes that http_side_in() returned and that do not do. Returns 0 if there is
// nothing now.
int http_side_more(http_side *s);
// The first bytes of what http_side_in() returned are used up; the rest is kept.
//   returns  0, or -1 when out of memory
int http_side_used(http_side *s, http_text in, size_t used);
// Sends what the socket did not take before. Returns 1 if nothing is left of it.
int http_side_flush(http_side *s);
// How many bytes have yet to reach the other end's system, as far as ours tells.
size_t http_side_unsent(const http_side *s);
// Sends the pieces that were added; keeps what the socket does not take. Returns 0 or -1.
int http_side_send(http_thread *t, http_side *s);
void http_add(http_thread *t, const char *at, size_t len);
// Adds the body's bytes of `in` as they go on, and takes the body further.
//   returns  how many were used, or -1: it is malformed
ptrdiff_t http_add_body(http_thread *t, http_body *b, http_text in, int is_chunked);
// Adds bytes that must be copied. Returns 0, or -1 when out of memory.
int http_bytes_append(http_bytes *b, const char *at, size_t len);
void http_bytes_free(http_bytes *b);

// ------------------------------------------------------------------------------------------------
// http_upstream.c: streams to agents. Each belongs to one client, so that nothing that one client
// leaves behind in it can reach another.
//
// How a dial has ended, as an I/O thread says.
typedef struct http_news {
    revdial_stream *st;  // NULL: it failed
    int code, reset;     // why: REVDIAL_E*
} http_news;

struct http_upstream {
    http_conn *conn;  // NULL: it is no longer wanted
    http_thread *thread;
    http_side side;
    revdial_session *session;  // it is on, with a reference; NULL while it is dialled
    int64_t dial;              // its id while it runs, then 0
    uint64_t key;              // of the requests that it is for
    int is_used;               // a request has been answered on it
    int is_kept;               // it persists after the response that comes
    int is_left;               // its session drains: it is not used again
    int code, reset;           // why it failed, as in http_news
    const char *name, *target;  // behind the struct

    // Guarded by the thread's lock:
    http_upstream *next;  // posted
    http_news news;
};

// Dials for the connection's request, whose head travels along if it is short enough.
//   returns  0, or REVDIAL_E*
int http_upstream_dial(http_conn *c, const route_choice *to);
// Lets go of the connection's stream, if it has one.
void http_upstream_drop(http_conn *c);
// The thread has taken the news of it.
void http_upstream_heed(http_upstream *u, const http_news *news);

// ------------------------------------------------------------------------------------------------
// http_exchange.c: a client's connection.
//
//           ┌────────────────── the response is over ◀──────────────────┐
//           ▼                                                           │
//         HEAD ──a request──▶ DIALLING ──connected──▶ EXCHANGE ─────────┤
//           │ └──its stream is there──────────────────▶│ └──101──▶ TUNNEL
//           └─refused──▶ LINGER ◀──it does not persist─┘ └─a reset─▶ CUT ◀─┘
enum http_phase {
    HTTP_HEAD,      // waits for a request
    HTTP_DIALLING,  // for a stream
    HTTP_EXCHANGE,  // the request goes, the response comes, both at the same time
    HTTP_TUNNEL,    // after 101: bytes go both ways
    HTTP_LINGER,    // ended by us: what still comes is dropped, for it could reset what we sent
    HTTP_CUT,       // to be reset, as soon as what came before has reached the client
    HTTP_GONE
};

struct http_conn {
    http_link link;   // in waiting[]; first
    http_link again;  // in the thread's list, or empty
    http_thread *thread;
    http_conn *next;  // arrived or dead
    http_upstream *up;
    http_side client;
    enum http_phase phase;
    enum http_wait wait;
    int64_t until_ms;
    http_scan scan;                  // of the head or the response's head
    http_body sent, coming;          // the request's body and the response's
    http_bytes request;              // its head, as long as it may have to be sent again
    int minor, is_head, is_upgrade;  // of the request
    int is_kept;                     // the client's connection persists
    int has_response;                // its head has come
    int is_answered;                 // a byte of it has
    int is_chunked;                  // it goes on in chunks
    int may_retry, is_sent;          // the request, once more; its head has been
    int is_trusted;                  // the client: a proxy of ours
    int is_expected;                 // a drain waits for its first dial
    int dial_timeout_ms;             // of its port, as:
    unsigned dial_flags;
    int port_pick;
    char *port_rule;  // what pick_rule() says of the port, allocated
    int pick;         // REVDIAL_PICK_*, for this request
    uint64_t key;     // PICK_KEY: a hash of it; else 0
    int is_clean;     // LINGER: nothing that it sent has been left unread
    int is_shut[2];   // LINGER, TUNNEL: our FIN has gone to the client, to the agent
    size_t left;      // CUT: bytes that had yet to reach the client, and
    int64_t give_up_ms;  // until when one of them has to
    // For the access log:
    int64_t began_ms;
    uint64_t moved[2];  // bytes of bodies to the agent, and back
    int status;
    http_bytes said;  // "GET host/path", if there is such a log
    char trace[HTTP_TRACE_SIZE];
    char address[HTTP_ADDRESS_SIZE], local[HTTP_ADDRESS_SIZE];
    int64_t crowd;  // that it counts in
};

// The client's first bytes may be there.
void http_conn_start(http_conn *c);
// Goes on as far as it can, after an event.
void http_conn_run(http_conn *c);
void http_conn_free(http_conn *c);
void http_conn_expire(http_conn *c);
// The dial of its stream has ended: up->code says how. The stream is over.
void http_conn_dialled(http_conn *c);
// The session drains, or the target fails.
void http_conn_leave(http_conn *c, const http_left *left);
// No request runs on it, and nothing is on its way; at the end half a request is nothing, too.
int http_conn_is_idle(const http_conn *c);
// The front end is over: what is not complete must not look as if it were. Returns whether it is.
int http_conn_end(http_conn *c);

// http_pick.c: how an agent is picked for the request, as its route has it, or else the port.
void http_conn_pick(http_conn *c, const http_head *h, const route_choice *to);

// ------------------------------------------------------------------------------------------------
// http_events.c

// Returns 0, or -1 with errno. Close it in either case.
int http_events_open(http_thread *t);
void http_events_close(http_thread *t);
// What happens to the socket, until it is closed, is for the connection. Returns 0, or -1 with
// errno.
int http_events_watch(http_thread *t, int fd, http_conn *c);
// Waits, and has the connections run to which something has happened.
//   returns  whether other threads have woken this one
int http_events_wait(http_thread *t, int patience_ms);

// http.c
// The time is a new one.
void http_note_time(http_thread *t);
// The connection's first request has been dialled for, or never will be.
void http_came(http_conn *c);
// Has the connection run again, after others have.
void http_again(http_conn *c);
void http_wait(http_conn *c, enum http_wait wait);
const http_config *http_config_of(const http_thread *t);
revdial_proxy *http_proxy_of(const http_thread *t);
int http_is_draining(http_thread *t);
// There is news of it for its thread.
void http_post_locked(http_upstream *u, const http_news *news);

#endif  // REVDIAL_PROXY_HTTP_CONN_H
