// What revdial-proxy and revdial-agent share: options, files with secrets, logs, signals. Included
// once by each, after revdial.h.
#ifndef REVDIAL_PROGRAM_H
#define REVDIAL_PROGRAM_H

#include "program_log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum prog_exit {
    PROG_STOPPED = 0,
    PROG_FAILED = 1,         // at run time, or stopped by a second signal
    PROG_USAGE = 2,          // options or files that they name
    PROG_AUTH_REJECTED = 3,  // the proxy does not accept our token or name
    PROG_CANNOT_BIND = 4
};

enum { PROG_TOKEN_SIZE = 4097 };  // the longest token that the handshake takes, and its NUL

// ------------------------------------------------------------------------------------------------
// Options: each program has a table of its own; these are understood by both.

// Longer than it takes to wake a core on most machines, so that two programs that answer each other
// through a tunnel both stay awake; a thread that waits longer stops polling.
#define PROG_SPIN_US 100

enum prog_kind {
    PROG_FLAG,
    PROG_TEXT,
    PROG_LIST,
    PROG_NUMBER,
    PROG_DURATION,
    PROG_MODE,  // of a file, in octal
    PROG_CHOICE
};

typedef struct prog_option {
    const char *name;  // without the dashes
    enum prog_kind kind;
    size_t at;         // offsetof() in the settings: const char *, prog_list, else int
    const char *arg;   // for the help; of a PROG_CHOICE "first|second|…", stored as 0, 1, …
    const char *help;  // may have several lines
    int min, max;      // of a number, or of a duration in milliseconds
} prog_option;

typedef struct prog_list {
    const char **items;  // NULL-terminated
    size_t count;
} prog_list;

typedef struct prog_common {
    int keepalive_ms, dead_after_ms, tcp_keepalive_ms, half_closed_ms, drain_ms, spin_us;
    const char *congestion;
    int level, format, access, verbose, help, version;
} prog_common;

typedef struct prog_cli {
    const char *program;
    const char *usage, *epilogue;  // before and after the options in the help
    const char *extra;             // what --version says behind the version, or NULL
    const prog_option *options;
    size_t option_count;
    void *settings;
    prog_common common;
    uint64_t seen;                // a bit for each option; those of both programs come last
    const prog_option *repeated;  // given again: the last one counts
} prog_cli;

#define PROG_COMMON(field) offsetof(prog_common, field)
static const prog_option prog_common_options[] = {
    {"drain", PROG_DURATION, PROG_COMMON(drain_ms), "TIME",
     "longest time that TERM waits for connections to end (default 30s)", 0, INT_MAX},
    {"keepalive", PROG_DURATION, PROG_COMMON(keepalive_ms), "TIME",
     "ping the other program after TIME without a byte from it (default 15s, at\n"
     "least 100ms)",
     100, 3600000},
    {"dead-after", PROG_DURATION, PROG_COMMON(dead_after_ms), "TIME",
     "end the session if no byte arrives within TIME after that ping (default\n"
     "15s, at least 100ms)",
     100, 3600000},
    {"tcp-keepalive", PROG_DURATION, PROG_COMMON(tcp_keepalive_ms), "TIME",
     "TCP keepalive of clients and targets: probe after TIME without a byte, and\n"
     "end the connection if no answer comes in another three quarters of TIME\n"
     "(default 60s); 0: never",
     0, 32767000},
    {"congestion", PROG_TEXT, PROG_COMMON(congestion), "NAME",
     "TCP congestion control of the sessions, e.g. bbr where packets get lost\n"
     "(default: the system's)",
     0, 0},
    {"half-closed-timeout", PROG_DURATION, PROG_COMMON(half_closed_ms), "TIME",
     "end a connection when one side has finished and the other has been silent\n"
     "for TIME (default 1h); 0: never",
     0, INT_MAX},
    {"spin-us", PROG_NUMBER, PROG_COMMON(spin_us), "N",
     "busy-wait up to N microseconds for the next byte before sleeping; stops by\n"
     "itself when waits get longer or the core is needed (default 100); 0: never,\n"
     "to save processor time",
     0, 1000},
    {"log-level", PROG_CHOICE, PROG_COMMON(level), "error|warn|info|debug", "default info", 0, 0},
    {"log-format", PROG_CHOICE, PROG_COMMON(format), "auto|text|logfmt|json",
     "auto: text on a terminal, else logfmt", 0, 0},
    {"access-log", PROG_FLAG, PROG_COMMON(access), NULL,
     "log the beginning and the end of each client's connection, which\n"
     "--log-level debug does, too",
     0, 0},
    {"verbose", PROG_FLAG, PROG_COMMON(verbose), NULL, "-v: the same as --log-level debug", 0, 0},
    {"help", PROG_FLAG, PROG_COMMON(help), NULL, "-h: show this and exit", 0, 0},
    {"version", PROG_FLAG, PROG_COMMON(version), NULL, "show the version and exit", 0, 0},
};
enum {
    PROG_COMMON_COUNT = sizeof prog_common_options / sizeof prog_common_options[0],
    PROG_OPTION_MAX = 64  // letters of a name; longer ones are nobody's
};

// Says what is wrong with an option and how to get help. Returns PROG_USAGE.
static int prog_usage_error(const prog_cli *cli, const char *option, const char *problem,
                            const char *value)
{
    fprintf(stderr, "%s: --%s: %s%s%s%s\nTry '%s --help'.\n", cli->program, option, problem,
            value ? " \"" : "", value ? value : "", value ? "\"" : "", cli->program);
    return PROG_USAGE;
}

static int prog_list_add(prog_list *list, const char *item)
{
    const char **items = realloc(list->items, (list->count + 2) * sizeof *items);
    if (!items) return -1;
    items[list->count++] = item;
    items[list->count] = NULL;
    list->items = items;
    return 0;
}

// The items with commas between them; NULL when out of memory.
static char *prog_list_join(const prog_list *list)
{
    size_t i, size = 1;
    char *all;
    for (i = 0; i < list->count; i++) size += strlen(list->items[i]) + 1;
    all = calloc(1, size);
    for (i = 0; all && i < list->count; i++) {
        if (i > 0) strcat(all, ",");
        strcat(all, list->items[i]);
    }
    return all;
}

// Reads "250", or "250ms", "30s", "5m", "2h" when it is a duration. Returns -1 if it is not one.
static int64_t prog_parse_amount(const char *text, int is_duration)
{
    static const struct {
        const char *unit;
        int64_t ms;
    } units[] = {{"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}};
    int64_t value = 0;
    size_t i;
    const char *unit = text;
    for (; *unit >= '0' && *unit <= '9' && value <= INT_MAX; unit++)
        value = value * 10 + (*unit - '0');
    if (unit == text || value > INT_MAX) return -1;
    if (!is_duration || (value == 0 && !*unit)) return *unit ? -1 : value;
    for (i = 0; i < sizeof units / sizeof units[0]; i++)
        if (strcmp(unit, units[i].unit) == 0) return value * units[i].ms;
    return -1;
}

// "0660". Returns -1 if it is not a mode.
static int prog_parse_mode(const char *text)
{
    size_t len = strspn(text, "01234567");
    long mode = strtol(text, NULL, 8);
    return len > 0 && len <= 4 && !text[len] && mode > 0 && mode <= 0777 ? (int)mode : -1;
}

static int prog_parse_choice(const char *choices, const char *value)
{
    size_t len = strlen(value);
    int index = 0;
    for (;; index++) {
        size_t n = strcspn(choices, "|");
        if (n == len && memcmp(choices, value, n) == 0) return index;
        if (!choices[n]) return -1;
        choices += n + 1;
    }
}

static int prog_set_number(const prog_cli *cli, const prog_option *o, int *to, const char *value)
{
    char range[96];
    int64_t number = prog_parse_amount(value, o->kind == PROG_DURATION);
    if (number >= o->min && number <= o->max) {
        *to = (int)number;
        return 0;
    }
    if (o->kind == PROG_DURATION && number < 0)
        return prog_usage_error(cli, o->name, "not a duration like 500ms, 30s, 5m or 2h:", value);
    snprintf(range, sizeof range,
             "not a %s from %d to %d%s:", o->kind == PROG_DURATION ? "duration" : "number", o->min,
             o->max, o->kind == PROG_DURATION ? " milliseconds" : "");
    return prog_usage_error(cli, o->name, range, value);
}

static int prog_set(const prog_cli *cli, const prog_option *o, void *at, const char *value)
{
    char problem[96];
    int choice;
    switch (o->kind) {
    case PROG_FLAG: *(int *)at = 1; return 0;
    case PROG_TEXT:
        if (!*value) return prog_usage_error(cli, o->name, "must not be empty", NULL);
        *(const char **)at = value;
        return 0;
    case PROG_LIST:
        if (!*value) return prog_usage_error(cli, o->name, "must not be empty", NULL);
        if (prog_list_add(at, value) != 0) return PROG_FAILED;
        return 0;
    case PROG_NUMBER:
    case PROG_DURATION: return prog_set_number(cli, o, at, value);
    case PROG_MODE:
        choice = prog_parse_mode(value);
        if (choice < 0) return prog_usage_error(cli, o->name, "not a mode like 0660:", value);
        *(int *)at = choice;
        return 0;
    case PROG_CHOICE:
        choice = prog_parse_choice(o->arg, value);
        snprintf(problem, sizeof problem, "not one of %s:", o->arg);
        if (choice < 0) return prog_usage_error(cli, o->name, problem, value);
        *(int *)at = choice;
        return 0;
    }
    return PROG_FAILED;
}

// How many letters must be added, removed or changed to make one word of the other (Levenshtein).
static size_t prog_distance(const char *a, const char *b)
{
    size_t row[PROG_OPTION_MAX + 1], len = strlen(b);
    if (strlen(a) > PROG_OPTION_MAX || len > PROG_OPTION_MAX) return PROG_OPTION_MAX;
    for (size_t i = 0; i <= len; i++) row[i] = i;
    for (; *a; a++) {
        size_t corner = row[0]++;
        for (size_t i = 1; i <= len; i++) {
            size_t changed = corner + (*a != b[i - 1]);
            corner = row[i];
            if (row[i - 1] < row[i]) row[i] = row[i - 1];
            row[i] = changed <= row[i] ? changed : row[i] + 1;
        }
    }
    return row[len];
}

// The option of both tables at that place; NULL behind the last.
static const prog_option *prog_option_at(const prog_cli *cli, size_t i)
{
    if (i < cli->option_count) return &cli->options[i];
    i -= cli->option_count;
    return i < PROG_COMMON_COUNT ? &prog_common_options[i] : NULL;
}

// Returns option_count + PROG_COMMON_COUNT if there is no option of that name.
static size_t prog_find(const prog_cli *cli, const char *name, size_t len)
{
    const prog_option *o;
    size_t i = 0;
    for (; (o = prog_option_at(cli, i)); i++)
        if (strlen(o->name) == len && memcmp(o->name, name, len) == 0) break;
    return i;
}

// Says that there is no such option, and which one may be meant.
static int prog_unknown(const prog_cli *cli, const char *name)
{
    const prog_option *o, *nearest = NULL;
    size_t least = (strlen(name) + 2) / 3, distance;
    char problem[PROG_OPTION_MAX + 48] = "no such option";
    for (size_t i = 0; (o = prog_option_at(cli, i)); i++) {
        distance = strncmp(o->name, name, strlen(name)) == 0 ? 0 : prog_distance(name, o->name);
        if (distance > least || (distance == least && nearest)) continue;
        least = distance;
        nearest = o;
    }
    if (nearest) snprintf(problem, sizeof problem, "no such option; is --%s meant?", nearest->name);
    return prog_usage_error(cli, name, problem, NULL);
}

// A word that is no option, where one is expected.
static int prog_stray(const prog_cli *cli, const char *word)
{
    fprintf(stderr, "%s: unexpected argument \"%s\"%s\nTry '%s --help'.\n", cli->program, word,
            word[0] == '-' && word[1] ? ": options begin with two dashes" : "", cli->program);
    return PROG_USAGE;
}

// The value of an option, in its word or the next one. NULL: there is none.
static const char *prog_value(const prog_cli *cli, const char *in_word, char **argv, int *i)
{
    const char *next = argv[*i + 1];
    if (in_word) return in_word;
    if (!next) return NULL;
    if (strncmp(next, "--", 2) == 0 &&
        prog_option_at(cli, prog_find(cli, next + 2, strcspn(next + 2, "="))))
        return NULL;
    ++*i;
    return next;
}

// Takes the option at argv[*i], and its value there or in the next word.
static int prog_parse_one(prog_cli *cli, char **argv, int *i)
{
    const char *word = argv[*i], *value = NULL;
    const prog_option *o;
    size_t len, index;
    char *at;
    if (strcmp(word, "-v") == 0) word = "--verbose";
    if (strcmp(word, "-h") == 0) word = "--help";
    if (strncmp(word, "--", 2) != 0 || !word[2]) return prog_stray(cli, word);
    word += 2;
    len = strcspn(word, "=");
    index = prog_find(cli, word, len);
    o = prog_option_at(cli, index);
    if (!o) return prog_unknown(cli, word);
    at = index < cli->option_count ? cli->settings : (char *)&cli->common;
    if (word[len] == '=') value = word + len + 1;
    if (o->kind == PROG_FLAG)
        return value ? prog_usage_error(cli, o->name, "takes no value:", value)
                     : prog_set(cli, o, at + o->at, "");
    value = prog_value(cli, value, argv, i);
    if (!value) return prog_usage_error(cli, o->name, "needs a value", NULL);
    if (o->kind != PROG_LIST && cli->seen & (uint64_t)1 << index) cli->repeated = o;
    cli->seen |= (uint64_t)1 << index;
    return prog_set(cli, o, at + o->at, value);
}

static void prog_print_options(const prog_option *options, size_t count)
{
    size_t i;
    for (i = 0; i < count; i++) {
        const char *line = options[i].help;
        char head[64];
        const char *arg = options[i].arg;
        snprintf(head, sizeof head, "--%s%s%s", options[i].name, arg ? " " : "", arg ? arg : "");
        if (strlen(head) > 24) printf("  %s\n", head);
        if (strlen(head) > 24) head[0] = '\0';
        while (*line) {
            int len = (int)strcspn(line, "\n");
            printf("  %-24s  %.*s\n", head, len, line);
            line += len + (line[len] == '\n');
            head[0] = '\0';
        }
    }
}

// Parses the command line. Returns -1 to go on, or what to exit with at once.
static int prog_parse(prog_cli *cli, char **argv)
{
    int i, rc = 0;
    cli->common = (prog_common){.tcp_keepalive_ms = 60000,
                                .half_closed_ms = 3600000,
                                .drain_ms = 30000,
                                .spin_us = PROG_SPIN_US,
                                .level = REVDIAL_LOG_INFO - REVDIAL_LOG_ERROR};
    for (i = 1; argv[i] && rc == 0; i++) rc = prog_parse_one(cli, argv, &i);
    if (rc != 0) return rc;
    if (cli->common.help) {
        fputs(cli->usage, stdout);
        prog_print_options(cli->options, cli->option_count);
        prog_print_options(prog_common_options, PROG_COMMON_COUNT);
        fputs(cli->epilogue, stdout);
        return PROG_STOPPED;
    }
    if (!cli->common.version) return -1;
    printf("%s %s%s%s\n", cli->program, REVDIAL_VERSION_STRING, cli->extra ? ", " : "",
           cli->extra ? cli->extra : "");
    return PROG_STOPPED;
}

// The library's word for never, where an option's is 0.
static int prog_or_never(int ms)
{
    return ms ? ms : -1;
}

// What the options of both programs say to the library.
static void prog_configure(const prog_common *from, revdial_common *to)
{
    to->tcp_keepalive_ms = prog_or_never(from->tcp_keepalive_ms);
    to->congestion = from->congestion;
    to->spin_us = (unsigned)from->spin_us;
    to->limits.keepalive_ms = from->keepalive_ms;
    to->limits.dead_after_ms = from->dead_after_ms;
}

static void prog_log_open_as(prog_log *log, const prog_common *common)
{
    static const enum prog_log_format formats[] = {PROG_LOG_LOGFMT, PROG_LOG_TEXT, PROG_LOG_LOGFMT,
                                                   PROG_LOG_JSON};  // of --log-format
    int is_terminal = common->format == 0 && isatty(STDERR_FILENO);
    prog_log_open(log, common->verbose ? REVDIAL_LOG_DEBUG : REVDIAL_LOG_ERROR + common->level,
                  is_terminal ? PROG_LOG_TEXT : formats[common->format]);
    log->access = common->access;
}

// ------------------------------------------------------------------------------------------------
// Secrets come from a file or from the environment, never from the command line.

// Overwrites a secret that is no longer needed.
static void prog_wipe(void *data, size_t size)
{
    volatile unsigned char *at = data;
    while (size-- > 0) *at++ = 0;
}

enum { PROG_FILE_SIZE_MAX = 1 << 20 };  // ten thousand tokens; protects against a wrong path

typedef struct prog_file {
    char *text, *at;  // all of it, NUL-terminated, and what has not been read
    size_t size;
    unsigned line;  // the number of the line that was read last
} prog_file;

static void prog_file_close(prog_file *f)
{
    if (f->text) prog_wipe(f->text, f->size);
    free(f->text);
    memset(f, 0, sizeof *f);
}

// Reads a file. Returns 0, or -1 and the reason in err->msg. Close it in either case.
static int prog_file_open(prog_file *f, const char *path, revdial_err *err)
{
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);  // so that a FIFO cannot hang us
    struct stat kind;
    ssize_t n = -1;
    memset(f, 0, sizeof *f);
    if (fd >= 0) f->at = f->text = calloc(1, PROG_FILE_SIZE_MAX + 1);
    if (f->text) n = read(fd, f->text, PROG_FILE_SIZE_MAX);
    if (n >= 0) f->size = (size_t)n;
    err->msg[0] = '\0';
    if (n < 0 || fstat(fd, &kind) < 0)
        snprintf(err->msg, sizeof err->msg, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(kind.st_mode))
        snprintf(err->msg, sizeof err->msg, "%s: not a regular file", path);
    else if (n == PROG_FILE_SIZE_MAX)
        snprintf(err->msg, sizeof err->msg, "%s: over 1 MiB, the wrong file?", path);
    else if (strlen(f->text) != f->size)
        snprintf(err->msg, sizeof err->msg, "%s: has a NUL byte, the wrong file?", path);
    if (fd >= 0) close(fd);
    return err->msg[0] ? -1 : 0;
}

// The next line that is neither empty nor a comment, without the blanks around it; NULL at the end.
static char *prog_file_next(prog_file *f)
{
    while (*f->at) {
        char *line = f->at, *end = line + strcspn(line, "\n");
        f->at = *end ? end + 1 : end;
        f->line++;
        *end = '\0';
        while (end > line && strchr(" \t\r", end[-1])) *--end = '\0';
        line += strspn(line, " \t");
        if (*line && *line != '#') return line;
    }
    return NULL;
}

// Warns of a file with a secret, NULL = none, that every user of this machine can read.
static void prog_warn_readable(prog_log *log, const char *path)
{
    struct stat st;
    if (!path || stat(path, &st) != 0 || !S_ISREG(st.st_mode) || !(st.st_mode & S_IROTH)) return;
    prog_logf(log, REVDIAL_LOG_WARN, "secret.readable",
              "%s holds secrets, and every user of this machine can read it: chmod 600", path);
}

static void prog_warn_repeated(prog_log *log, const prog_cli *cli)
{
    if (cli->repeated)
        prog_logf(log, REVDIAL_LOG_WARN, "option.repeated",
                  "--%s is given twice: the last one counts", cli->repeated->name);
}

// ------------------------------------------------------------------------------------------------
// Signals: the first TERM or INT asks to stop, a later one ends the process at once. HUP asks to
// read files again. USR1 and USR2, which operators send to other servers, are ignored.

// timeout(1) and some supervisors send TERM to a process and then to its group: two signals that
// come within this time are one.
enum { PROG_ONE_SIGNAL_MS = 1000 };

static volatile sig_atomic_t prog_hup;
static volatile sig_atomic_t prog_stop;          // read by revdial_serve() and the proxy's loop
static volatile sig_atomic_t prog_stop_ms;       // when it was set
static volatile sig_atomic_t prog_wake_fd = -1;  // written to, so that a poll(2) returns

// Where they are closed, a file that is opened would get their numbers, and then what is printed.
static void prog_standard_streams(void)
{
    int fd;
    do fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= 2);
    if (fd > 2) close(fd);
}

// A clock in milliseconds that wraps after 24 days: only differences mean something.
static int prog_now_ms(void)
{
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int)(((uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000) & INT_MAX);
}

static void prog_on_signal(int sig)
{
    int saved = errno;
    if (sig == SIGHUP) {
        prog_hup = 1;
    } else if (!prog_stop) {
        prog_stop_ms = prog_now_ms();
        prog_stop = 1;
    } else if (((prog_now_ms() - prog_stop_ms) & INT_MAX) >= PROG_ONE_SIGNAL_MS) {
        _exit(PROG_FAILED);
    }
    if (prog_wake_fd >= 0 && write(prog_wake_fd, "", 1) < 0) {
        // The pipe is full: then its reader wakes up without this byte.
    }
    errno = saved;
}

static int prog_catch_signals(void)
{
    struct sigaction act;
    memset(&act, 0, sizeof act);
    sigemptyset(&act.sa_mask);
    act.sa_handler = prog_on_signal;
    if (sigaction(SIGTERM, &act, NULL) != 0 || sigaction(SIGINT, &act, NULL) != 0) return -1;
    if (sigaction(SIGHUP, &act, NULL) != 0) return -1;
    act.sa_handler = SIG_IGN;
    if (sigaction(SIGUSR1, &act, NULL) != 0 || sigaction(SIGUSR2, &act, NULL) != 0) return -1;
    return sigaction(SIGPIPE, &act, NULL);  // the reader of our stdout may go away
}

// Opens a pipe that signals write to. Returns 0, or -1 with errno; close it in either case.
static int prog_wake_open(int wake[2])
{
    if (pipe(wake) != 0) return -1;
    for (int i = 0; i < 2; i++)
        if (fcntl(wake[i], F_SETFL, O_NONBLOCK) < 0 || fcntl(wake[i], F_SETFD, FD_CLOEXEC) < 0)
            return -1;
    prog_wake_fd = wake[1];
    return 0;
}

static void prog_wake_close(const int wake[2])
{
    prog_wake_fd = -1;
    for (int i = 0; i < 2; i++)
        if (wake[i] >= 0) close(wake[i]);
}

// A tunnel needs a descriptor per connection; the usual soft limit of 1024 protects select(2) only.
static void prog_raise_descriptor_limit(prog_log *log)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        prog_logf(log, REVDIAL_LOG_WARN, "limit.nofile", "cannot raise it: %s", strerror(errno));
}

#endif  // REVDIAL_PROGRAM_H
