// Options of the command line.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "program.h"

// Longer than it takes to wake a core on most machines, so that two programs that answer each other
// through a tunnel both stay awake; a thread that waits longer stops polling.
#define PROG_SPIN_US 100

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

int prog_usage_error(const prog_cli *cli, const char *option, const char *problem,
                     const char *value)
{
    fprintf(stderr, "%s: --%s: %s%s%s%s\nTry '%s --help'.\n", cli->program, option, problem,
            value ? " \"" : "", value ? value : "", value ? "\"" : "", cli->program);
    return PROG_USAGE;
}

int prog_list_add(prog_list *list, const char *item)
{
    const char **items = realloc(list->items, (list->count + 2) * sizeof *items);
    if (!items) return -1;
    items[list->count++] = item;
    items[list->count] = NULL;
    list->items = items;
    return 0;
}

char *prog_list_join(const prog_list *list)
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

int prog_parse(prog_cli *cli, char **argv)
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

int prog_or_never(int ms)
{
    return ms ? ms : -1;
}

void prog_configure(const prog_common *from, revdial_common *to)
{
    to->tcp_keepalive_ms = prog_or_never(from->tcp_keepalive_ms);
    to->congestion = from->congestion;
    to->spin_us = (unsigned)from->spin_us;
    to->limits.keepalive_ms = from->keepalive_ms;
    to->limits.dead_after_ms = from->dead_after_ms;
}

void prog_log_open_as(prog_log *log, const prog_common *common)
{
    static const enum prog_log_format formats[] = {PROG_LOG_LOGFMT, PROG_LOG_TEXT, PROG_LOG_LOGFMT,
                                                   PROG_LOG_JSON};  // of --log-format
    int is_terminal = common->format == 0 && isatty(STDERR_FILENO);
    prog_log_open(log, common->verbose ? REVDIAL_LOG_DEBUG : REVDIAL_LOG_ERROR + common->level,
                  is_terminal ? PROG_LOG_TEXT : formats[common->format]);
    log->access = common->access;
}

void prog_warn_repeated(prog_log *log, const prog_cli *cli)
{
    if (cli->repeated)
        prog_logf(log, REVDIAL_LOG_WARN, "option.repeated",
                  "--%s is given twice: the last one counts", cli->repeated->name);
}
