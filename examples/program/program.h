// What revdial-proxy and revdial-agent share: options, files with secrets, signals, the log, TLS.
#ifndef REVDIAL_PROGRAM_H
#define REVDIAL_PROGRAM_H

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "revdial.h"

enum prog_exit {
    PROG_STOPPED = 0,
    PROG_FAILED = 1,         // at run time, or stopped by a second signal
    PROG_USAGE = 2,          // options or files that they name
    PROG_AUTH_REJECTED = 3,  // the proxy does not accept our token or name
    PROG_CANNOT_BIND = 4
};

enum { PROG_TOKEN_SIZE = 4097 };  // the longest token that the handshake takes, and its NUL

// ------------------------------------------------------------------------------------------------
// log.c: one line per event on stderr. A thread of its own writes, because whatever stderr is, a
// pipe, a terminal, a file on a network disk, may be full or stuck for as long as it likes: I/O
// threads only put lines into a queue. What finds no room there is counted, and so is what a full
// disk does not take. Switching stderr to O_NONBLOCK would not do: other processes that have it
// open share that flag.

enum prog_log_format { PROG_LOG_TEXT, PROG_LOG_LOGFMT, PROG_LOG_JSON };

enum {
    PROG_LINE_SIZE = 4096,        // PIPE_BUF: lines of several writers of a pipe do not mix
    PROG_QUEUE_SIZE = 64 * 1024,  // as much as a pipe holds: a few hundred lines
    PROG_LOG_LAST_MS = 1000,      // at the end, for a reader that does not read
    PROG_ANNOUNCE_MS = 1000       // for a reader of stdout: longer than a busy machine takes
};

typedef struct prog_log {
    int level;   // REVDIAL_LOG_*
    int access;  // where streams begin and end is INFO
    enum prog_log_format format;
    int fd;
    int is_running;  // the thread; else each thread writes its own lines
    pthread_t thread;
    unsigned lost;           // its own: lines that could not be written, since that was last said
    int has_part;            // of the last line only a part was written
    pthread_mutex_t lock;    // guards all below
    pthread_cond_t changed;  // the queue is no longer empty, or the thread is over
    char queue[PROG_QUEUE_SIZE];
    size_t at, len;  // a ring: len bytes from at on, whole lines
    int is_closing, is_over;
    unsigned dropped;  // lines, since that was last said
} prog_log;

// A revdial_log_fn; ud is the prog_log.
void prog_log_put(void *ud, int level, const char *event, const char *msg);
void prog_log_config(prog_log *log, revdial_common *common);
// A line of the program's own, with one field, the reason.
void prog_logf(prog_log *log, int level, const char *event, const char *form, ...)
#ifdef __GNUC__
    __attribute__((format(printf, 4, 5)))
#endif
    ;
void prog_log_error(prog_log *log, const char *event, const revdial_err *err);
// Prints a line on stdout, where often the pipe of a log is that nobody reads.
//   returns  1, 0 if it found no room, which is said, or -1 with errno
int prog_announce(prog_log *log, const char *line);

enum { PROG_RATE = 5 };  // lines a second of an event that others can cause

typedef struct prog_rate {
    atomic_llong second;
    atomic_uint said, left_out;  // since then
} prog_rate;

// Has the log room for another line of that event? Says how many were left out before. Any thread.
int prog_rate_take(prog_rate *r, prog_log *log, const char *event);

void prog_log_open(prog_log *log, int level, enum prog_log_format format);
// Has a thread write from now on. Returns 0, or -1 with errno: each thread writes its own lines.
int prog_log_start(prog_log *log);
// Ends the program, once all is written or nobody has read it for a second. Nobody logs any more.
// Returns rc for main() to return.
int prog_log_finish(prog_log *log, int rc);

// ------------------------------------------------------------------------------------------------
// options.c, config.c: each program has a table of its own; that of prog_common is both programs'.
// A row of a table is an option of the command line (--tls-cert FILE), a key of the configuration
// file (tls-cert = FILE) and a variable of the environment (REVDIAL_TLS_CERT).

enum prog_kind {
    PROG_FLAG,  // yes or no
    PROG_TEXT,
    PROG_PATH,  // of a file; may begin with $CREDENTIALS_DIRECTORY/
    PROG_LIST,
    PROG_NUMBER,
    PROG_DURATION,
    PROG_SPEED,  // bytes per second
    PROG_MODE,   // of a file, in octal
    PROG_CHOICE
};

enum prog_flag {
    PROG_LIVE = 1,    // a change of it takes effect at HUP; without this flag HUP refuses it
    PROG_SECRET = 2,  // is not shown; of a URL, its login is not
    PROG_NO_ARGV = 4,
    PROG_NO_ENV = 8,
    PROG_NO_FILE = 16,
    PROG_ARGV_ONLY = PROG_NO_ENV | PROG_NO_FILE,
    // A PROG_LIST whose items may be sections of the file: "[expose ADDRESS]", then "name = NAME".
    PROG_SECTION = 32,
    // May stand in a section with the same flag, and holds for that item only.
    PROG_IN_EXPOSE = 64,
    PROG_IN_GROUP = 128,
    PROG_IN_ROUTE = 256,
    PROG_IN_ALLOW = 512,
    PROG_IN_ANY = PROG_IN_EXPOSE | PROG_IN_GROUP | PROG_IN_ROUTE | PROG_IN_ALLOW
};

typedef struct prog_option {
    const char *name;  // without the dashes
    enum prog_kind kind;
    size_t at;         // offsetof() in the settings: text, prog_list, uint64_t of a rate, else int
    const char *arg;   // for the help; of a PROG_CHOICE "first|second|…", stored as 0, 1, …
    const char *help;  // may have several lines
    int min, max;      // of a number, or of a duration in milliseconds
    unsigned flags;    // enum prog_flag
} prog_option;

typedef struct prog_list {
    const char **items;  // NULL-terminated
    size_t count;
} prog_list;

typedef struct prog_common {
    int keepalive_ms, dead_after_ms, tcp_keepalive_ms, half_closed_ms, drain_ms, spin_us;
    uint64_t stream_rate, session_rate;
    const char *congestion;
    const char *admin, *admin_token_file;
    int level, format, access, verbose, help, version, is_checking, is_watching;
    prog_list configs, admin_hosts;
} prog_common;

enum prog_source { PROG_FROM_FILE, PROG_FROM_ENV, PROG_FROM_ARGV };  // the later one counts

// A value that somebody has given.
typedef struct prog_setting {
    const prog_option *option;
    const char *value;
    enum prog_source from;
    const char *file;  // PROG_FROM_FILE
    unsigned line;
    size_t item;  // in a section: 1 + the index of the setting that is its item; else 0
} prog_setting;

typedef struct prog_text prog_text;
typedef struct prog_file prog_file;

typedef struct prog_cli {
    const char *program;
    const char *usage, *epilogue;  // before and after the options in the help
    const char *forms;             // between options and epilogue: what values look like; or NULL
    const char *extra;             // what --version says behind the version, or NULL
    const prog_option *options;
    size_t option_count;
    void *settings;
    prog_log *log;  // where to say what is wrong while the program runs; NULL = on stderr
    // The rest is zero before prog_parse().
    prog_common common;
    prog_setting *given;  // in the order in which they were found
    size_t given_count;
    const prog_option *repeated;  // given again in one place: the last one counts
    prog_file *files;             // what values point into
    size_t file_count;
    prog_text *texts;  // and others
} prog_cli;

// Takes the command line, the environment and the configuration files, and stores what they say in
// the settings. Returns -1 to go on, or what to exit with at once. Free the cli in either case.
int prog_parse(prog_cli *cli, char **argv);
// Also frees the lists in the settings.
void prog_cli_free(prog_cli *cli);
// Says what is wrong with an option, and where it was given. Returns PROG_USAGE.
int prog_usage_error(const prog_cli *cli, const char *option, const char *problem,
                     const char *value);
// refused.c: the same of what the library says about its configuration. The option is that of the
// field or the value that msg names; where there is none, this one, which may be NULL.
int prog_refused(const prog_cli *cli, const char *msg, const char *option, const char *value);
// The same where no single option is to blame.
int prog_complain(const prog_cli *cli, const char *form, ...)
#ifdef __GNUC__
    __attribute__((format(printf, 2, 3)))
#endif
    ;
// Has all been printed? Returns PROG_STOPPED, or PROG_FAILED, which is said.
int prog_printed(const char *program);
// What --check prints when all is good. Returns PROG_STOPPED.
int prog_print_checked(const prog_cli *cli);
// Stores what the section of an item says, lists excepted, in a copy of the settings and of
// cli->common. Returns 0 or an exit code.
int prog_item_apply(const prog_cli *cli, const char *item, void *settings, prog_common *common);
// A list of an item's section with commas, for free(3), or NULL: it has none. Returns 0, or -1 when
// out of memory.
int prog_item_join(const prog_cli *cli, const char *item, const char *option, char **all);
// What of an option counts: the last value of the strongest source; NULL: it was not given.
const prog_setting *prog_given(const prog_cli *cli, const char *option);
// Refuses a new configuration where an option differs that is not PROG_LIVE. Returns 0 or an exit
// code.
int prog_refuse_frozen(const prog_cli *now, const prog_cli *next);
// Reads "250", or "250ms", "30s", "5m", "2h" when it is a duration. Returns -1 if it is not one.
int64_t prog_parse_amount(const char *text, int is_duration);
// A number from 1 to max. Returns 0, or -1.
int prog_read_number(const char *text, unsigned max, unsigned *number);
// "500k", "2M", "1G" or a number alone, in powers of 1000. Returns 0, or -1: PROG_RATE_PROBLEM.
int prog_read_rate(const char *text, uint64_t *rate);
#define PROG_SPEED_MAX UINT64_C(100000000000)  // what the library takes
#define PROG_RATE_PROBLEM "not bytes per second like 500k, 2M or 1G, from 1k to 100G"
// Returns 0, or -1 when out of memory.
int prog_list_add(prog_list *list, const char *item);
// The items with commas between them; NULL when out of memory.
char *prog_list_join(const prog_list *list);
// The library's word for never, where an option's is 0.
int prog_or_never(int ms);
// What the options of both programs say to the library, and to the log.
void prog_configure(const prog_common *from, revdial_common *to);
void prog_log_open_as(prog_log *log, const prog_common *common);
// Warns of what was given twice, and of variables REVDIAL_* that mean nothing.
void prog_warn_settings(prog_log *log, const prog_cli *cli);

// ------------------------------------------------------------------------------------------------
// reload.c: the files that options name, for --watch.

enum { PROG_WATCH_MS = 1000 };

typedef struct prog_watch {
    uint64_t taken;        // what the files in force looked like when they were last taken
    uint64_t known, seen;  // all files: when they were last taken; when last looked at
    char *refused;         // the names of more, each with a NUL
    size_t refused_len;
} prog_watch;

// Before files are read again, for they may change meanwhile: then prog_watch_look() finds them
// changed. So it does, once, where other files are named now.
void prog_watch_begin(prog_watch *w, const prog_cli *cli);
// What was read is refused: the files that it names count, too, until something is read again. One
// of them may be all that was missing.
void prog_watch_refuse(prog_watch *w, const prog_cli *refused);
void prog_watch_end(prog_watch *w);
// Every PROG_WATCH_MS. Returns whether they have changed, and are no longer being written.
int prog_watch_look(prog_watch *w, const prog_cli *cli);

// ------------------------------------------------------------------------------------------------
// systemd.c: a supervisor that wants to know how the program is, and passes sockets.

// "READY=1", "RELOADING=1", "STOPPING=1" or "WATCHDOG=1", where there is a NOTIFY_SOCKET.
void prog_notify(prog_log *log, const char *state);
// How often to send WATCHDOG=1; 0 = never.
int prog_watchdog_ms(void);
// Writes the address as the library takes it: "systemd:NAME" becomes "fd:3". With --check, to which
// no supervisor passes a socket, it becomes a port that is always good. Returns NULL, or what is
// wrong with it.
const char *prog_listen_address(const prog_cli *cli, const char *address, char *out, size_t size);

// ------------------------------------------------------------------------------------------------
// files.c: secrets come from a file or from the environment, never from the command line.

struct prog_file {
    char *text, *at;  // all of it, NUL-terminated, and what has not been read
    size_t size;
    unsigned line;  // the number of the line that was read last
};

// Reads a file. Returns 0, or -1 and the reason in err->msg. Close it in either case.
int prog_file_open(prog_file *f, const char *path, revdial_err *err);
// The next line that is neither empty nor a comment, without the blanks around it; NULL at the end.
char *prog_file_next(prog_file *f);
// Wipes and frees.
void prog_file_close(prog_file *f);
// Overwrites a secret that is no longer needed.
void prog_wipe(void *data, size_t size);
// Warns of a file with a secret, NULL = none, that every user of this machine can read.
void prog_warn_readable(prog_log *log, const char *path);

// ------------------------------------------------------------------------------------------------
// signals.c: the first TERM or INT asks to stop, a later one ends the process at once. HUP asks to
// read files again, and USR2 for a line in the log. USR1, which operators send to other servers, is
// ignored.

extern volatile sig_atomic_t prog_hup;
extern volatile sig_atomic_t prog_usr2;
extern atomic_int prog_stop;  // other threads read it, too

// Catches HUP, USR1 and USR2, first thing in main(): they must not end a program that starts. What
// comes before it is up is heeded then.
int prog_catch_requests(void);
// Catches the others.
int prog_catch_signals(void);
// Surround the start of threads that get no signals: they are for the main thread.
void prog_signals_block(sigset_t *before);
void prog_signals_restore(const sigset_t *before);
// Starts a thread that gets no signals. Returns 0, or -1 with errno.
int prog_thread_start(pthread_t *thread, void *(*run)(void *ud), void *ud);
// A condition for prog_cond_wait(). Returns 0 or an error number.
int prog_cond_open(pthread_cond_t *cond);
// Waits for ms, which does not depend on what the wall clock is set to. Returns 0 when woken, also
// for no reason, or ETIMEDOUT.
int prog_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, int ms);
// Each signal writes a byte to this descriptor, so that the main thread's poll(2) returns. There is
// one of them: the last call counts, and -1 is none. Signals that came before it have written, too.
void prog_signals_wake(int fd);
// Returns 0, or -1 with errno. exec(2) closes it then, too.
int prog_nonblocking(int fd);
// Opens a pipe whose ends do not block. Returns 0, or -1 with errno; close it in either case.
int prog_pipe_open(int ends[2]);
void prog_pipe_close(const int ends[2]);
// Where they are closed, a file that is opened would get their numbers, and then what is printed.
void prog_standard_streams(void);
// A tunnel needs a descriptor per connection; the usual soft limit of 1024 protects select(2) only.
void prog_raise_descriptor_limit(prog_log *log);

// ------------------------------------------------------------------------------------------------
// tls.c: files that options name, or a clear word that this program was built without TLS.

typedef struct prog_tls_files {
    const char *ca, *cert, *key;
} prog_tls_files;

enum prog_tls_side { PROG_TLS_CLIENT, PROG_TLS_SERVER };

// Returns NULL and the reason in err->msg.
revdial_tls *prog_tls_open(const prog_tls_files *files, enum prog_tls_side side, revdial_err *err);
// Reads the files again. Returns 0, or REVDIAL_E* and the reason: the old ones stay in force.
int prog_tls_reload(revdial_tls *tls, revdial_err *err);
// New connections get what *next has read of its files, which is freed. Cannot fail; nothing
// happens where either is NULL.
void prog_tls_take(revdial_tls *tls, revdial_tls **next);
void prog_tls_free(revdial_tls *tls);
// The library and its version.
const char *prog_tls_version(void);

#endif  // REVDIAL_PROGRAM_H
