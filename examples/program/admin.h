// The admin port of both programs: who they are connected to, as JSON, as a table and as metrics.
#ifndef REVDIAL_PROGRAM_ADMIN_H
#define REVDIAL_PROGRAM_ADMIN_H

#include <sys/socket.h>
#include <sys/un.h>

#include "program.h"

// ------------------------------------------------------------------------------------------------
// text.c: a text that grows. Without memory it stays as it was, and `failed` says so.

typedef struct prog_out {
    char *at;  // NUL-terminated; NULL while it is empty
    size_t len, size;
    int failed;
} prog_out;

void prog_out_add(prog_out *t, const char *form, ...)
#ifdef __GNUC__
    __attribute__((format(printf, 2, 3)))
#endif
    ;
// As a JSON string with its quotes, whatever bytes it has.
void prog_out_json(prog_out *t, const char *value);
void prog_out_free(prog_out *t);

// A table for people: columns as wide as their longest cell. What is no printable ASCII becomes
// '?', because a terminal obeys control characters.
typedef struct prog_table {
    prog_out cells;  // each ends in a NUL
    size_t count, columns;
} prog_table;

void prog_table_cell(prog_table *t, const char *form, ...)
#ifdef __GNUC__
    __attribute__((format(printf, 2, 3)))
#endif
    ;
// Writes it, and empties t.
void prog_table_end(prog_table *t, prog_out *out);

// ------------------------------------------------------------------------------------------------
// request.c: the head of an HTTP request. Pure.

enum { PROG_HEAD_SIZE = 8192 };

typedef struct prog_request {
    enum prog_method { PROG_GET, PROG_HEAD, PROG_POST } method;
    char path[128], query[512];
    char host[264], origin[272], site[32];  // Host, Origin, Sec-Fetch-Site; "" = not sent
    char token[PROG_TOKEN_SIZE];            // of Authorization: Bearer
} prog_request;

// How long the head at the beginning of buf is.
//   returns  its length with the empty line; 0 if more has to come; -1 if it gets too long
int prog_request_len(const char *buf, size_t len);
// Takes a head apart, whose length prog_request_len() has told.
//   returns  200, or the status to answer with, and *problem for people
int prog_request_parse(prog_request *r, const char *head, size_t len, const char **problem);
// Copies the value of a query's key ("name" in "name=cam-1&limit=9"). Nothing is decoded.
//   returns  1, or 0 if there is none or it is too long
int prog_request_query(const prog_request *r, const char *key, char *value, size_t size);
// Is the Host an address or localhost, or one of names, a comma list? A page of a stranger whose
// name suddenly leads here (DNS rebinding) has a host name of its own.
int prog_request_is_ours(const prog_request *r, const char *names);
// Does it come from a page of this server, or from no page at all?
int prog_request_is_same_origin(const prog_request *r);
// "Not Found" and the like.
const char *prog_status_text(int status);

// ------------------------------------------------------------------------------------------------
// listen.c: addresses HOST:PORT, a PORT of 127.0.0.1, or unix:PATH.

enum {
    PROG_LISTENER_SIZE = 136,  // the text of an address
    PROG_LISTENERS = 4         // addresses of a name that are used: localhost has 2
};

typedef struct prog_listener {
    int fd;                                                // non-blocking
    char path[sizeof((struct sockaddr_un *)0)->sun_path];  // "" = TCP
} prog_listener;

// Is it an address? Looks no name up. Returns 0, or -1 and the reason.
int prog_address_check(const char *address, revdial_err *err);
// Listens at each address that the host has here; with port 0, at the first one.
//   returns  how many are open; or -1 and the reason: REVDIAL_EINVAL if it is no address
int prog_listener_open(prog_listener all[PROG_LISTENERS], const char *address, int backlog,
                       revdial_err *err);
// Closes it, if it is open, and removes its Unix socket.
void prog_listener_close(prog_listener *l);
// Where it listens, "127.0.0.1:9000".
void prog_listener_text(const prog_listener *l, char *text, size_t size);
void prog_address_text(const struct sockaddr_storage *at, socklen_t len, char *text, size_t size);
// Connects to the first address that takes it. Returns a descriptor, or -1 and the reason in
// err->msg.
int prog_connect(const char *address, revdial_err *err);

// ------------------------------------------------------------------------------------------------
// admin.c: the server, a thread of its own. One request for each connection, 10 s for each.

typedef struct prog_admin prog_admin;

enum {
    PROG_PAGE_OPEN = 1,    // for every Host: it says nothing about anybody
    PROG_PAGE_ACTION = 2,  // POST alone, and with the token
    PROG_PAGE_SLOW = 4     // asks others: on a thread of its own
};

typedef struct prog_page {
    const char *path, *type;
    unsigned flags;  // PROG_PAGE_*
    // Writes the answer. Returns the status. On the thread of the server, or one of its own.
    int (*answer)(void *ud, const prog_request *r, prog_out *out);
} prog_page;

typedef struct prog_admin_config {
    const prog_common *common;  // --admin and its kind; read at the start only
    const prog_page *pages;     // until path is NULL
    void *ud;
    prog_log *log;
} prog_admin_config;

// Returns 0 with *out NULL if there is no --admin; or PROG_USAGE or PROG_CANNOT_BIND, which is
// said.
int prog_admin_start(prog_admin **out, const prog_admin_config *cfg);
void prog_admin_stop(prog_admin *a);
// Checks what the options say. Returns 0 or an exit code.
int prog_admin_check(const prog_cli *cli);
// Reads the token again, which has been checked; NULL is ignored. The path is that of the start.
void prog_admin_renew(prog_admin *a);

// ------------------------------------------------------------------------------------------------
// status.c: what both programs say there.

// What the sessions of one name have done; those that are over are counted, too.
typedef struct prog_counts {
    const char *name;  // NULL: of all names that the configuration does not mention
    unsigned sessions, streams;
    uint64_t opened, closed_by[REVDIAL_ERROR_PLACES];  // by error, 0: this side closed it
    uint64_t streams_opened, rx_bytes, tx_bytes, credit_waits, streams_refused;
    uint64_t resets[REVDIAL_RESET_PLACES];
    size_t queued_bytes, unread_bytes;
    int64_t rtt_us;  // the longest
} prog_counts;

// What a session has counted so far.
void prog_counts_add(prog_counts *c, const revdial_session_info *info);
// The opposite. What is below zero then wraps, until the same session is added, with more.
void prog_counts_take(prog_counts *c, const revdial_session_info *info);
// And what it has at this time.
void prog_counts_add_live(prog_counts *c, const revdial_session_info *info);
void prog_counts_close(prog_counts *c, const revdial_err *why);

// The beginning of a metric: its help and its type.
void prog_metric(prog_out *out, const char *name, const char *type, const char *help);
// A metric with the label reason, for errors that have happened.
void prog_metric_errors(prog_out *out, const char *name, const char *help,
                        const uint64_t by_error[REVDIAL_ERROR_PLACES]);
// What is known of sessions, by name.
void prog_metrics_sessions(prog_out *out, const prog_counts *counts, size_t count);
// What is known of the process. is_draining: --drain has begun
void prog_metrics_process(prog_out *out, const revdial_stats *stats);

#define PROG_METRICS_TYPE "text/plain; version=0.0.4; charset=utf-8"

enum { PROG_STATUS_SESSIONS = 1000 };  // that one answer lists unless asked for fewer

// Sessions, of which the list holds `listed`, as members of an object ("sessions_total": …).
void prog_status_sessions(prog_out *out, revdial_session **list, size_t listed, size_t total);
void prog_status_head(prog_out *out, const char *program, const revdial_stats *stats);
// The same for people.
void prog_status_title(prog_out *out, const char *program, const revdial_stats *stats);
void prog_status_table(prog_out *out, revdial_session **list, size_t listed, size_t total);
// Links of an agent: behind this key of an object, and as a table whose first column has this head.
void prog_status_links(prog_out *out, const char *key, const revdial_link_info *links,
                       size_t count);
void prog_table_links(prog_out *out, const char *head, const revdial_link_info *links,
                      size_t count);
// One stream, as an object.
void prog_status_stream(prog_out *out, const revdial_stream_info *st);
// Its cells: what it waits for, since when, and its bytes; and what they are called.
void prog_table_stream(prog_table *t, const revdial_stream_info *st);
#define PROG_STREAM_HEADS \
    "WAITS FOR", "SINCE", "SENT", "RECEIVED", "UNREAD", "MAY SEND", "MAY RECEIVE"
// GET /healthz
int prog_answer_health(void *ud, const prog_request *r, prog_out *out);
int prog_answer_ready(prog_out *out, int is_ready, unsigned sessions);
// The most sessions that the request wants to see.
size_t prog_status_limit(const prog_request *r);
// Names of columns, the last one NULL.
void prog_table_heads(prog_table *t, const char *const *heads);
void prog_table_time(prog_table *t, int64_t ms);
const char *prog_state_word(int state);
// USR2: one line in the log.
void prog_log_status(prog_log *log, const revdial_stats *stats);
// `PROGRAM status [--admin ADDRESS]`: prints what that program answers. Returns an exit code.
int prog_status_main(const char *program, char **argv);

// ------------------------------------------------------------------------------------------------
// stream.c: a stream as the other end sees it.

enum prog_other {
    PROG_OTHER_TOLD,
    PROG_OTHER_GONE,      // it has no such stream
    PROG_OTHER_UNKNOWN,   // it does not know the question
    PROG_OTHER_DRAINING,  // nothing can be asked in this session
    PROG_OTHER_SILENT,
    PROG_OTHER_LOST
};

// For the agent's target_fn. Returns 1 if the request is such a question, which is answered then.
int prog_stream_is_asked(revdial_target_request *r);
// For the proxy: what the other end of this dial waits for. Blocks for up to 4 s.
enum prog_other prog_stream_ask(revdial_session *s, const char *dial, revdial_stream_info *out);
// For programs, and for people.
const char *prog_other_word(enum prog_other other);
const char *prog_other_text(enum prog_other other);

#endif  // REVDIAL_PROGRAM_ADMIN_H
