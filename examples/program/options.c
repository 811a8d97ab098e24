// The table of options, and the command line.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"

// Longer than it takes to wake a core on most machines, so that two programs that answer each other
// through a tunnel both stay awake; a thread that waits longer stops polling.
#define PROG_SPIN_US 100

#define PROG_COMMON(field) offsetof(prog_common, field)
static const prog_option prog_common_options[] = {
    {"config", PROG_LIST, PROG_COMMON(configs), "FILE",
     "file with 'key = value' for each option, without the dashes (see below);\n"
     "repeatable, the last one counts. '-' prints what is in force, and where each\n"
     "value came from, and exits",
     0, 0, PROG_NO_FILE},
    {"watch", PROG_FLAG, PROG_COMMON(is_watching), NULL,
     "look every second whether a file that the options name has changed, and do\n"
     "what HUP does",
     0, 0, PROG_LIVE},
    {"check", PROG_FLAG, PROG_COMMON(is_checking), NULL,
     "check all options and the files that they name, and exit: 0 good, 2 wrong", 0, 0,
     PROG_ARGV_ONLY},
    {"drain", PROG_DURATION, PROG_COMMON(drain_ms), "TIME",
     "longest time that TERM waits for connections to end (default 30s)", 0, INT_MAX, PROG_LIVE},
    {"keepalive", PROG_DURATION, PROG_COMMON(keepalive_ms), "TIME",
     "ping the other program after TIME without a byte from it (default 15s, at\n"
     "least 100ms)",
     100, 3600000, PROG_LIVE},
    {"dead-after", PROG_DURATION, PROG_COMMON(dead_after_ms), "TIME",
     "end the session if no byte arrives within TIME after that ping (default\n"
     "15s, at least 100ms)",
     100, 3600000, PROG_LIVE},
    {"tcp-keepalive", PROG_DURATION, PROG_COMMON(tcp_keepalive_ms), "TIME",
     "TCP keepalive of clients and targets: probe after TIME without a byte, and\n"
     "end the connection if no answer comes in another three quarters of TIME\n"
     "(default 60s); 0: never",
     0, 32767000},
    {"stream-rate", PROG_SPEED, PROG_COMMON(stream_rate), "RATE",
     "most bytes per second of each client's connection, each way: 500k, 2M, 1G.\n"
     "What is above waits at its sender (default: no limit)",
     0, 0, PROG_LIVE | PROG_IN_GROUP},
    {"session-rate", PROG_SPEED, PROG_COMMON(session_rate), "RATE",
     "the same of all connections together between the proxy and one agent", 0, 0,
     PROG_LIVE | PROG_IN_GROUP},
    {"congestion", PROG_TEXT, PROG_COMMON(congestion), "NAME",
     "TCP congestion control of the sessions, e.g. bbr where packets get lost\n"
     "(default: the system's)",
     0, 0},
    {"half-closed-timeout", PROG_DURATION, PROG_COMMON(half_closed_ms), "TIME",
     "end a connection when one side has finished and the other has been silent\n"
     "for TIME (default 1h); 0: never",
     0, INT_MAX, PROG_IN_EXPOSE | PROG_IN_ALLOW},
    {"spin-us", PROG_NUMBER, PROG_COMMON(spin_us), "N",
     "busy-wait up to N microseconds for the next byte before sleeping; stops by\n"
     "itself when waits get longer or the core is needed (default 100); 0: never,\n"
     "to save processor time",
     0, 1000},
    {"admin", PROG_TEXT, PROG_COMMON(admin), "ADDRESS",
     "answer to /healthz, /readyz, /metrics and /status, by HTTP at HOST:PORT, a\n"
     "PORT of 127.0.0.1, or unix:PATH. Whatever can connect there can read them",
     0, 0},
    {"admin-token-file", PROG_PATH, PROG_COMMON(admin_token_file), "FILE",
     "file with the token for actions there (default: none are possible)", 0, 0},
    {"admin-host", PROG_LIST, PROG_COMMON(admin_hosts), "HOST",
     "host name by which browsers and scrapers may reach --admin, besides\n"
     "addresses and localhost; repeatable",
     0, 0},
    {"log-level", PROG_CHOICE, PROG_COMMON(level), "error|warn|info|debug", "(default info)", 0, 0},
    {"log-format", PROG_CHOICE, PROG_COMMON(format), "auto|text|logfmt|json",
     "auto: text on a terminal, else logfmt (default auto)", 0, 0},
    {"access-log", PROG_FLAG, PROG_COMMON(access), NULL,
     "log the beginning and the end of each client's connection, which\n"
     "--log-level debug does, too",
     0, 0},
    {"verbose", PROG_FLAG, PROG_COMMON(verbose), NULL, "-v: the same as --log-level debug", 0, 0},
    {"help", PROG_FLAG, PROG_COMMON(help), NULL, "-h: show this and exit", 0, 0, PROG_ARGV_ONLY},
    {"version", PROG_FLAG, PROG_COMMON(version), NULL, "show the version and exit", 0, 0,
     PROG_ARGV_ONLY},
};
enum { PROG_COMMON_COUNT = sizeof prog_common_options / sizeof prog_common_options[0] };

// ------------------------------------------------------------------------------------------------
// What is wrong

int prog_complain(const prog_cli *cli, const char *form, ...)
{
    char text[1024];
    va_list args;
    va_start(args, form);
    vsnprintf(text, sizeof text, form, args);
    va_end(args);
    if (cli->log)
        prog_logf(cli->log, REVDIAL_LOG_ERROR, "config.refused", "%s", text);
    else
        fprintf(stderr, "%s: %s\n", cli->program, text);
    return PROG_USAGE;
}

int prog_out_of_memory(const prog_cli *cli)
{
    prog_complain(cli, "out of memory");
    return PROG_FAILED;
}

// The setting that has this value, or else the one that counts of that option.
static const prog_setting *prog_setting_of(const prog_cli *cli, const char *option,
                                           const char *value)
{
    for (size_t i = 0; value && i < cli->given_count; i++)
        if (cli->given[i].value == value) return &cli->given[i];
    return prog_given(cli, option);
}

int prog_usage_error(const prog_cli *cli, const char *option, const char *problem,
                     const char *value)
{
    const prog_setting *s = prog_setting_of(cli, option, value);
    char name[PROG_NAME_MAX + 16], shown[512] = "";
    size_t len = strlen(option);
    if (strncmp(problem, option, len) == 0 && strncmp(problem + len, ": ", 2) == 0)
        problem += len + 2;  // it is said anyway
    if (value && (!s || !(s->option->flags & PROG_SECRET)))
        snprintf(shown, sizeof shown, " \"%s\"", value);
    if (s && s->from == PROG_FROM_FILE)
        return prog_complain(cli, "%s:%u: %s: %s%s", s->file, s->line, option, problem, shown);
    if (s && s->from == PROG_FROM_ENV) {
        prog_env_name(option, name, sizeof name);
        return prog_complain(cli, "%s: %s%s", name, problem, shown);
    }
    prog_complain(cli, "--%s: %s%s", option, problem, shown);
    if (!cli->log) fprintf(stderr, "Try '%s --help'.\n", cli->program);
    return PROG_USAGE;
}

int prog_printed(const char *program)
{
    if (fflush(stdout) == 0 && !ferror(stdout)) return PROG_STOPPED;
    fprintf(stderr, "%s: stdout has not taken all of it\n", program);
    return PROG_FAILED;
}

// ------------------------------------------------------------------------------------------------
// Values

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
    case PROG_FLAG:
        choice = prog_parse_choice("no|yes|false|true|off|on|0|1", value);
        if (choice < 0) return prog_usage_error(cli, o->name, "not yes or no:", value);
        *(int *)at = choice & 1;
        return 0;
    case PROG_TEXT:
    case PROG_PATH:
        if (!*value) return prog_usage_error(cli, o->name, "must not be empty", NULL);
        *(const char **)at = value;
        return 0;
    case PROG_LIST:
        if (!*value) return prog_usage_error(cli, o->name, "must not be empty", NULL);
        if (prog_list_add(at, value) != 0) return PROG_FAILED;
        return 0;
    case PROG_NUMBER:
    case PROG_DURATION: return prog_set_number(cli, o, at, value);
    case PROG_SPEED:
        if (prog_read_rate(value, at) == 0) return 0;
        return prog_usage_error(cli, o->name, PROG_RATE_PROBLEM ":", value);
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

size_t prog_distance(const char *a, const char *b)
{
    size_t row[PROG_NAME_MAX + 1], len = strlen(b);
    if (strlen(a) > PROG_NAME_MAX || len > PROG_NAME_MAX) return PROG_NAME_MAX;
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

const prog_option *prog_option_at(const prog_cli *cli, size_t i)
{
    if (i < cli->option_count) return &cli->options[i];
    i -= cli->option_count;
    return i < PROG_COMMON_COUNT ? &prog_common_options[i] : NULL;
}

const prog_option *prog_option_find(const prog_cli *cli, const char *name, size_t len)
{
    const prog_option *o;
    size_t i = 0;
    for (; (o = prog_option_at(cli, i)); i++)
        if (strlen(o->name) == len && memcmp(o->name, name, len) == 0) break;
    return o;
}

const prog_option *prog_option_nearest(const prog_cli *cli, const char *name, unsigned not_flags)
{
    const prog_option *o, *nearest = NULL;
    size_t least = (strlen(name) + 2) / 3, distance;
    for (size_t i = 0; (o = prog_option_at(cli, i)); i++) {
        if (o->flags & not_flags) continue;
        distance = strncmp(o->name, name, strlen(name)) == 0 ? 0 : prog_distance(name, o->name);
        if (distance > least || (distance == least && nearest)) continue;
        least = distance;
        nearest = o;
    }
    return nearest;
}

// ------------------------------------------------------------------------------------------------
// Values that were given

// Is there one of that option and that source?
static int prog_is_given(const prog_cli *cli, const prog_option *o, enum prog_source from)
{
    for (size_t i = 0; i < cli->given_count; i++)
        if (cli->given[i].option == o && cli->given[i].from == from && !cli->given[i].item)
            return 1;
    return 0;
}

const prog_setting *prog_given(const prog_cli *cli, const char *option)
{
    const prog_setting *found = NULL;
    for (size_t i = 0; i < cli->given_count; i++) {
        const prog_setting *s = &cli->given[i];
        if (s->item || strcmp(s->option->name, option) != 0) continue;
        if (!found || s->from >= found->from) found = s;
    }
    return found;
}

int prog_give(prog_cli *cli, const prog_setting *s)
{
    prog_setting *all = realloc(cli->given, (cli->given_count + 1) * sizeof *all);
    if (!all) return prog_out_of_memory(cli);
    cli->given = all;
    all[cli->given_count] = *s;
    for (size_t i = cli->given_count++; i-- > 0 && s->option->kind != PROG_LIST;) {
        if (all[i].from != s->from || all[i].file != s->file || all[i].item != s->item) break;
        if (all[i].option == s->option) cli->repeated = s->option;
    }
    return 0;
}

// Is this one of the program's own options?
static int prog_is_own(const prog_cli *cli, const prog_option *o)
{
    return o >= cli->options && o < cli->options + cli->option_count;
}

static void *prog_place(const prog_option *o, const prog_cli *cli, void *settings,
                        prog_common *common)
{
    return (prog_is_own(cli, o) ? (char *)settings : (char *)common) + o->at;
}

const void *prog_value_at(const prog_cli *cli, const prog_option *o)
{
    return (prog_is_own(cli, o) ? (const char *)cli->settings : (const char *)&cli->common) + o->at;
}

// Stores what one source says; its lists replace those of weaker sources.
static int prog_apply(prog_cli *cli, enum prog_source from)
{
    const prog_option *o;
    int rc = 0;
    for (size_t i = 0; (o = prog_option_at(cli, i)); i++) {
        prog_list *list = prog_place(o, cli, cli->settings, &cli->common);
        if (o->kind == PROG_LIST && prog_is_given(cli, o, from)) list->count = 0;
    }
    for (size_t i = 0; rc == 0 && i < cli->given_count; i++) {
        const prog_setting *s = &cli->given[i];
        void *at = prog_place(s->option, cli, cli->settings, &cli->common);
        if (s->from == from && !s->item) rc = prog_set(cli, s->option, at, s->value);
    }
    return rc;
}

// What settings of the item's section call it: 1 + its place; 0: it has no section.
static size_t prog_item_find(const prog_cli *cli, const char *item)
{
    for (size_t i = 0; i < cli->given_count; i++)
        if (cli->given[i].value == item && cli->given[i].option->flags & PROG_SECTION) return i + 1;
    return 0;
}

int prog_item_apply(const prog_cli *cli, const char *item, void *settings, prog_common *common)
{
    size_t of = prog_item_find(cli, item);
    int rc = 0;
    for (size_t i = of; of && rc == 0 && i < cli->given_count && cli->given[i].item == of; i++) {
        const prog_setting *s = &cli->given[i];
        void *at = prog_place(s->option, cli, settings, common);
        if (s->option->kind != PROG_LIST) rc = prog_set(cli, s->option, at, s->value);
    }
    return rc;
}

int prog_item_join(const prog_cli *cli, const char *item, const char *option, char **all)
{
    size_t of = prog_item_find(cli, item);
    prog_list list = {0};
    int rc = 0;
    *all = NULL;
    for (size_t i = of; of && rc == 0 && i < cli->given_count && cli->given[i].item == of; i++)
        if (strcmp(cli->given[i].option->name, option) == 0)
            rc = prog_list_add(&list, cli->given[i].value);
    if (rc == 0 && list.count > 0 && !(*all = prog_list_join(&list))) rc = -1;
    free(list.items);
    return rc;
}

// ------------------------------------------------------------------------------------------------
// The command line

// Says that there is no such option, and which one may be meant.
static int prog_unknown(const prog_cli *cli, const char *name)
{
    const prog_option *nearest = prog_option_nearest(cli, name, PROG_NO_ARGV);
    char problem[PROG_NAME_MAX + 48] = "no such option";
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
    if (strncmp(next, "--", 2) == 0 && prog_option_find(cli, next + 2, strcspn(next + 2, "=")))
        return NULL;
    ++*i;
    return next;
}

// Takes the option at argv[*i], and its value there or in the next word.
static int prog_take_one(prog_cli *cli, char **argv, int *i)
{
    const char *word = argv[*i];
    prog_setting s = {.from = PROG_FROM_ARGV};
    size_t len;
    if (strcmp(word, "-v") == 0) word = "--verbose";
    if (strcmp(word, "-h") == 0) word = "--help";
    if (strncmp(word, "--", 2) != 0 || !word[2]) return prog_stray(cli, word);
    word += 2;
    len = strcspn(word, "=");
    s.option = prog_option_find(cli, word, len);
    if (!s.option) return prog_unknown(cli, word);
    if (s.option->flags & PROG_NO_ARGV)
        return prog_usage_error(cli, s.option->name, "only in the configuration file", NULL);
    if (word[len] == '=') s.value = word + len + 1;
    if (s.option->kind == PROG_FLAG && !s.value) s.value = "yes";
    if (s.option->kind != PROG_FLAG) s.value = prog_value(cli, s.value, argv, i);
    if (!s.value) return prog_usage_error(cli, s.option->name, "needs a value", NULL);
    return prog_give(cli, &s);
}

static void prog_print_options(const prog_option *options, size_t count)
{
    size_t i;
    for (i = 0; i < count; i++) {
        const char *line = options[i].help;
        char head[64];
        if (options[i].flags & PROG_NO_ARGV) continue;
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

static int prog_help(const prog_cli *cli)
{
    fputs(cli->usage, stdout);
    prog_print_options(cli->options, cli->option_count);
    prog_print_options(prog_common_options, PROG_COMMON_COUNT);
    if (cli->forms) fputs(cli->forms, stdout);
    fputs(cli->epilogue, stdout);
    return prog_printed(cli->program);
}

// The files of --config. Returns whether "-" is among them.
static int prog_take_files(prog_cli *cli, int *rc)
{
    const prog_setting *last = prog_given(cli, "config");
    int is_printing = 0;
    size_t count = cli->given_count;
    for (size_t i = 0; *rc == 0 && last && i < count; i++) {
        prog_setting s = cli->given[i];
        if (s.option != last->option || s.from != last->from) continue;
        if (strcmp(s.value, "-") == 0)
            is_printing = 1;
        else
            *rc = prog_take_file(cli, s.value);
        last = prog_given(cli, "config");  // the settings may have moved
    }
    return is_printing;
}

int prog_parse(prog_cli *cli, char **argv)
{
    int i, rc = 0, is_printing;
    cli->common = (prog_common){.tcp_keepalive_ms = 60000,
                                .half_closed_ms = 3600000,
                                .drain_ms = 30000,
                                .spin_us = PROG_SPIN_US,
                                .level = REVDIAL_LOG_INFO - REVDIAL_LOG_ERROR};
    for (i = 1; argv[i] && rc == 0; i++) rc = prog_take_one(cli, argv, &i);
    if (rc == 0 && prog_given(cli, "help")) return prog_help(cli);
    if (rc == 0 && prog_given(cli, "version")) {
        printf("%s %s%s%s\n", cli->program, REVDIAL_VERSION_STRING, cli->extra ? ", " : "",
               cli->extra ? cli->extra : "");
        return prog_printed(cli->program);
    }
    if (rc == 0) rc = prog_take_env(cli);
    is_printing = prog_take_files(cli, &rc);
    for (i = PROG_FROM_FILE; rc == 0 && i <= PROG_FROM_ARGV; i++)
        rc = prog_apply(cli, (enum prog_source)i);
    if (rc != 0 || !is_printing) return rc != 0 ? rc : -1;
    prog_print_config(cli);
    return prog_printed(cli->program);
}

void prog_cli_free(prog_cli *cli)
{
    const prog_option *o;
    for (size_t i = 0; (o = prog_option_at(cli, i)); i++) {
        prog_list *list = prog_place(o, cli, cli->settings, &cli->common);
        if (o->kind != PROG_LIST) continue;
        free(list->items);
        *list = (prog_list){0};
    }
    for (size_t i = 0; i < cli->file_count; i++) prog_file_close(&cli->files[i]);
    free(cli->files);
    free(cli->given);
    prog_texts_free(cli);
    cli->files = NULL;
    cli->given = NULL;
    cli->file_count = cli->given_count = 0;
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
    to->limits.stream_rate = from->stream_rate;
    to->limits.session_rate = from->session_rate;
}

void prog_warn_settings(prog_log *log, const prog_cli *cli)
{
    if (cli->repeated)
        prog_logf(log, REVDIAL_LOG_WARN, "option.repeated",
                  "--%s is given twice: the last one counts", cli->repeated->name);
    prog_warn_env(log, cli);
}
