// The configuration file and the environment, which say the same as options of the command line.
//
//     key = value                 an option without its dashes; lists repeat the line
//     wait = yes                  an option without a value is yes or no
//     cert = "a # b"              quotes keep a value as it is; else " #" begins a comment
//     [expose 0.0.0.0:8080]       the same as expose = 0.0.0.0:8080=cam-1/10.0.0.7:80, with options
//     name = cam-1                for this address alone. A section goes on to the next one, so
//     target = 10.0.0.7:80        that keys for all stand above the first
//     wait = no
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"

extern char **environ;

#define PROG_ENV_PREFIX "REVDIAL_"
static const char prog_credentials[] = "$CREDENTIALS_DIRECTORY/";

// ------------------------------------------------------------------------------------------------
// Texts that are kept

struct prog_text {
    prog_text *next;
    size_t len;
    char text[];
};

// Room for a text of that length.
static char *prog_text_new(prog_cli *cli, size_t len)
{
    prog_text *kept = calloc(1, sizeof *kept + len + 1);
    if (!kept) return NULL;
    kept->len = len;
    kept->next = cli->texts;
    cli->texts = kept;
    return kept->text;
}

void prog_texts_free(prog_cli *cli)
{
    while (cli->texts) {
        prog_text *kept = cli->texts;
        cli->texts = kept->next;
        prog_wipe(kept->text, kept->len);
        free(kept);
    }
}

// Has the setting point to a copy of a and b. Returns 0 or PROG_FAILED.
static int prog_value_join(prog_cli *cli, prog_setting *s, const char *a, const char *b)
{
    size_t a_len = strlen(a), b_len = strlen(b);
    char *all = prog_text_new(cli, a_len + b_len);
    if (!all) return prog_out_of_memory(cli);
    memcpy(all, a, a_len);
    memcpy(all + a_len, b, b_len);
    s->value = all;
    return 0;
}

// Gives a value that may begin with $CREDENTIALS_DIRECTORY/, where systemd's LoadCredential= puts
// files. Returns 0 or an exit code.
static int prog_give_expanded(prog_cli *cli, prog_setting *s)
{
    size_t len = sizeof prog_credentials - 2;  // without the slash
    const char *directory = getenv("CREDENTIALS_DIRECTORY");
    int rc = 0,
        is_one = s->option->kind == PROG_PATH && strncmp(s->value, prog_credentials, len + 1) == 0;
    if (is_one && directory) rc = prog_value_join(cli, s, directory, s->value + len);
    if (rc == 0) rc = prog_give(cli, s);
    if (rc != 0 || !is_one || directory) return rc;
    return prog_usage_error(cli, s->option->name,
                            "CREDENTIALS_DIRECTORY is not in the environment:", s->value);
}

// ------------------------------------------------------------------------------------------------
// The environment

void prog_env_name(const char *option, char *name, size_t size)
{
    snprintf(name, size, PROG_ENV_PREFIX "%s", option);
    for (; *name; name++) *name = *name == '-' ? '_' : (char)toupper((unsigned char)*name);
}

// The items of a list are separated by commas.
static int prog_give_items(prog_cli *cli, prog_setting *s, const char *list)
{
    int rc = 0;
    while (rc == 0 && *list) {
        size_t len = strcspn(list, ",");
        char *item = prog_text_new(cli, len);
        if (!item) return prog_out_of_memory(cli);
        memcpy(item, list, len);
        s->value = item;
        if (len > 0) rc = prog_give_expanded(cli, s);
        list += len + (list[len] == ',');
    }
    return rc;
}

int prog_take_env(prog_cli *cli)
{
    prog_setting s = {.from = PROG_FROM_ENV};
    int rc = 0;
    for (size_t i = 0; rc == 0 && (s.option = prog_option_at(cli, i)); i++) {
        char name[PROG_NAME_MAX + 16];
        prog_env_name(s.option->name, name, sizeof name);
        s.value = getenv(name);
        if (s.option->flags & PROG_NO_ENV || !s.value || !*s.value) continue;
        rc = s.option->kind == PROG_LIST ? prog_give_items(cli, &s, s.value)
                                         : prog_give_expanded(cli, &s);
    }
    return rc;
}

// A variable of ours that no option has. Variables of others may begin like ours.
static void prog_warn_variable(prog_log *log, const prog_cli *cli, const char *variable)
{
    char name[PROG_NAME_MAX + 1], meant[PROG_NAME_MAX + 16];
    int len = (int)strcspn(variable, "=");
    size_t i = 0;
    const prog_option *o;
    for (const char *at = variable + strlen(PROG_ENV_PREFIX); *at != '=' && i < PROG_NAME_MAX; at++)
        name[i++] = *at == '_' ? '-' : (char)tolower((unsigned char)*at);
    name[i] = '\0';
    o = prog_option_find(cli, name, i);
    if (o && !(o->flags & PROG_NO_ENV)) return;
    o = prog_option_nearest(cli, name, PROG_NO_ENV);
    if (o) prog_env_name(o->name, meant, sizeof meant);
    prog_logf(log, REVDIAL_LOG_WARN, "environment.unknown", "%.*s means nothing%s%s%s", len,
              variable, o ? "; is " : "", o ? meant : "", o ? " meant?" : "");
}

void prog_warn_env(prog_log *log, const prog_cli *cli)
{
    for (char **at = environ; at && *at; at++)
        if (strncmp(*at, PROG_ENV_PREFIX, strlen(PROG_ENV_PREFIX)) == 0 && strchr(*at, '='))
            prog_warn_variable(log, cli, *at);
}

// ------------------------------------------------------------------------------------------------
// The file

// A file that is being read, and the section that the line is in.
typedef struct prog_reader {
    prog_cli *cli;
    const char *path;
    prog_file *file;
    const prog_option *section;  // NULL: above the first
    size_t item;                 // 1 + the index of its setting
    char *about;                 // what stands behind its key
    const char *name, *target;
} prog_reader;

static int prog_reader_fail(const prog_reader *r, const char *problem, const char *text)
{
    return prog_complain(r->cli, "%s:%u: %s \"%s\"", r->path, r->file->line, problem, text);
}

// Cuts a comment off, and the blanks before it. Returns NULL if a quote is not closed.
static char *prog_value_cut(char *value)
{
    size_t len = 0;
    if (*value == '"') {
        char *end = strchr(value + 1, '"');
        const char *rest = end ? end + 1 + strspn(end + 1, " \t") : "?";
        if (*rest && *rest != '#') return NULL;
        *end = '\0';
        return value + 1;
    }
    while (value[len] && !(value[len] == '#' && (len == 0 || strchr(" \t", value[len - 1])))) len++;
    while (len > 0 && strchr(" \t", value[len - 1])) len--;
    value[len] = '\0';
    return value;
}

// Does the item of this section lead to a name, "ADDRESS=NAME[/TARGET]"?
static int prog_section_is_named(const prog_option *o)
{
    return o->arg && strchr(o->arg, '=') != NULL;
}

// At the end of a section its item is known. Returns 0 or an exit code.
static int prog_section_end(prog_reader *r)
{
    prog_setting *item = r->section ? &r->cli->given[r->item - 1] : NULL;
    int rc;
    if (!item || !prog_section_is_named(r->section)) return 0;
    if (!r->name)
        return prog_complain(r->cli, "%s:%u: [%s %s] lacks a line \"name = NAME\"", r->path,
                             item->line, r->section->name, r->about);
    rc = prog_value_join(r->cli, item, r->about, "=");
    if (rc == 0) rc = prog_value_join(r->cli, item, item->value, r->name);
    if (rc == 0 && r->target) rc = prog_value_join(r->cli, item, item->value, "/");
    if (rc == 0 && r->target) rc = prog_value_join(r->cli, item, item->value, r->target);
    return rc;
}

// "[expose 0.0.0.0:8080]". Returns 0 or an exit code.
static int prog_section_begin(prog_reader *r, char *line)
{
    prog_setting s = {.from = PROG_FROM_FILE, .file = r->path, .line = r->file->line};
    char *end = strrchr(prog_value_cut(line), ']'), *about = line + 1 + strcspn(line + 1, " \t]");
    int rc = prog_section_end(r);
    if (rc != 0) return rc;
    if (!end || end[1]) return prog_reader_fail(r, "not a section like [expose ADDRESS]:", line);
    s.option = prog_option_find(r->cli, line + 1, (size_t)(about - line - 1));
    if (!s.option || !(s.option->flags & PROG_SECTION))
        return prog_reader_fail(r, "no section begins like this:", line);
    while (end > about && strchr(" \t", end[-1])) end--;
    *end = '\0';
    about += strspn(about, " \t");
    if (!*about) return prog_reader_fail(r, "something must stand behind the word in", line);
    r->section = s.option;
    r->about = about;
    r->name = r->target = NULL;
    s.value = about;
    rc = prog_give(r->cli, &s);
    r->item = r->cli->given_count;
    return rc;
}

// No option, or one that may not stand here. Returns PROG_USAGE.
static int prog_wrong_key(const prog_reader *r, const prog_option *o, const char *key)
{
    const prog_option *nearest = prog_option_nearest(r->cli, key, PROG_NO_FILE);
    int is_named = r->section && prog_section_is_named(r->section);
    const char *part = !is_named                           ? NULL
                       : prog_distance(key, "name") <= 2   ? "name"
                       : prog_distance(key, "target") <= 2 ? "target"
                                                           : NULL;
    char where[PROG_NAME_MAX + 32];
    if (o && o->flags & PROG_NO_FILE) return prog_reader_fail(r, "only for the command line:", key);
    if (o && r->section) {
        snprintf(where, sizeof where,
                 "not for an [%s]: keys for all stand above the first [ ]:", r->section->name);
        return prog_reader_fail(r, where, key);
    }
    if (part || nearest)
        return prog_complain(r->cli, "%s:%u: no such key \"%s\"; is %s meant?", r->path,
                             r->file->line, key, part ? part : nearest->name);
    return prog_reader_fail(r, "no such key", key);
}

// Takes a key and its value. Returns 0 or an exit code.
static int prog_take_key(prog_reader *r, const char *key, const char *value)
{
    prog_setting s = {.from = PROG_FROM_FILE, .file = r->path, .line = r->file->line};
    const char **part = NULL;
    if (r->section && prog_section_is_named(r->section)) {
        if (strcmp(key, "name") == 0) part = &r->name;
        if (strcmp(key, "target") == 0) part = &r->target;
    }
    if (part && *part) return prog_reader_fail(r, "given twice in this section:", key);
    if (part) *part = value;
    if (part) return *value ? 0 : prog_reader_fail(r, "must not be empty:", key);
    s.option = prog_option_find(r->cli, key, strlen(key));
    if (!s.option || s.option->flags & PROG_NO_FILE ||
        (r->section && !(s.option->flags & r->section->flags & PROG_IN_ANY)) ||
        (r->section && s.option->flags & PROG_SECTION))
        return prog_wrong_key(r, s.option, key);
    s.value = value;
    s.item = r->section ? r->item : 0;
    return prog_give_expanded(r->cli, &s);
}

// Only a key is shown: behind it, or in the file of tokens that this may be, is a secret.
static int prog_wrong_line(const prog_reader *r, const char *line)
{
    size_t len = strcspn(line, " \t=");
    int is_key = prog_option_find(r->cli, line, len) != NULL;
    return prog_complain(r->cli, "%s:%u: not \"key = value\"%s%.*s", r->path, r->file->line,
                         is_key ? ": " : "", is_key ? (int)len : 0, line);
}

static int prog_take_line(prog_reader *r, char *line)
{
    char *equal = strchr(line, '='), *end = equal, *value;
    if (*line == '[') return prog_section_begin(r, line);
    while (end && end > line && strchr(" \t", end[-1])) end--;
    if (end == NULL || end == line || strcspn(line, " \t") < (size_t)(end - line))
        return prog_wrong_line(r, line);
    *end = '\0';
    value = prog_value_cut(equal + 1 + strspn(equal + 1, " \t"));
    if (!value)
        return prog_complain(r->cli, "%s:%u: %s: the quotes do not end where the value ends",
                             r->path, r->file->line, line);
    return prog_take_key(r, line, value);
}

int prog_take_file(prog_cli *cli, const char *path)
{
    prog_file *files = realloc(cli->files, (cli->file_count + 1) * sizeof *files);
    prog_reader r = {.cli = cli, .path = path};
    revdial_err err = {0};
    char *line;
    int rc = 0;
    if (!files) return prog_out_of_memory(cli);
    cli->files = files;
    r.file = &files[cli->file_count++];
    if (prog_file_open(r.file, path, &err) != 0)
        return prog_usage_error(cli, "config", err.msg, NULL);
    while (rc == 0 && (line = prog_file_next(r.file))) rc = prog_take_line(&r, line);
    return rc ? rc : prog_section_end(&r);
}

// ------------------------------------------------------------------------------------------------
// What is in force

// Would a file that has the value without quotes say something else?
static int prog_needs_quotes(const char *value)
{
    size_t len = strlen(value);
    return len == 0 || strchr("\" \t", *value) || strchr(" \t", value[len - 1]) ||
           strchr(value, '#');
}

// Prints a value as a file may have it, without what is secret in it.
static void prog_print_value(const prog_setting *s, const char *value)
{
    const char *at = strrchr(value, '@'), *slashes = strstr(value, "://");
    int is_login = slashes && at > slashes;
    const char *quote = prog_needs_quotes(value) ? "\"" : "";
    if (!(s->option->flags & PROG_SECRET) || (slashes && !is_login))
        printf("%s%s%s", quote, value, quote);
    else if (is_login)
        printf("%.*s********%s", (int)(slashes + 3 - value), value, at);
    else
        printf("********");
}

static void prog_print_source(const prog_setting *s)
{
    char name[PROG_NAME_MAX + 16];
    prog_env_name(s->option->name, name, sizeof name);
    if (s->from == PROG_FROM_FILE)
        printf("  # %s:%u\n", s->file, s->line);
    else
        printf("  # %s\n", s->from == PROG_FROM_ENV ? name : "command line");
}

// Nobody has given it: what its help says of the default.
static void prog_print_default(const prog_option *o)
{
    const char *at = strstr(o->help, "(default");
    int len;
    printf("# %s: ", o->name);
    if (!at) printf("%s", o->kind == PROG_FLAG ? "default no" : "not set");
    for (at = at ? at + 1 : ""; (len = (int)strcspn(at, "\n)")) > 0;
         at += len + (at[len] == '\n')) {
        printf("%.*s%s", len, at, at[len] == '\n' ? " " : "");
        if (at[len] != '\n') break;
    }
    printf("\n");
}

// Does a section say more of this item than what its value holds?
static int prog_has_section(const prog_cli *cli, size_t i)
{
    for (size_t k = i + 1; k < cli->given_count && cli->given[k].item; k++)
        if (cli->given[k].item == i + 1) return 1;
    return 0;
}

static void prog_print_setting(const prog_setting *s)
{
    // A quote cannot be written within quotes.
    if (strchr(s->value, '"') && prog_needs_quotes(s->value)) printf("# no file can say: ");
    printf("%s = ", s->option->name);
    prog_print_value(s, s->value);
    prog_print_source(s);
}

static void prog_print_section(const prog_cli *cli, size_t i)
{
    const prog_setting *s = &cli->given[i];
    int is_named = prog_section_is_named(s->option);
    const char *name = is_named ? strchr(s->value, '=') : NULL;
    const char *target = name ? strchr(name, '/') : NULL;
    int about = name ? (int)(name - s->value) : (int)strlen(s->value);
    printf("\n[%s %.*s]", s->option->name, about, s->value);
    prog_print_source(s);
    if (name) printf("name = %.*s\n", target ? (int)(target - name - 1) : INT_MAX, name + 1);
    if (target) {
        printf("target = ");
        prog_print_value(s, target + 1);
        printf("\n");
    }
    for (size_t k = i + 1; k < cli->given_count && cli->given[k].item == i + 1; k++)
        prog_print_setting(&cli->given[k]);
}

void prog_print_config(const prog_cli *cli)
{
    const prog_option *o;
    printf("# %s %s\n# HUP applies changes of", cli->program, REVDIAL_VERSION_STRING);
    for (size_t i = 0; (o = prog_option_at(cli, i)); i++)
        if (o->flags & PROG_LIVE) printf(" %s", o->name);
    printf("\n");
    for (size_t i = 0; (o = prog_option_at(cli, i)); i++) {
        const prog_setting *last = prog_given(cli, o->name);
        if (o->flags & PROG_NO_FILE) continue;
        if (!last) prog_print_default(o);
        for (size_t k = 0; last && k < cli->given_count; k++) {
            const prog_setting *s = &cli->given[k];
            if (s->option != o || s->item || s->from != last->from) continue;
            if (o->kind == PROG_LIST ? !prog_has_section(cli, k) : s == last) prog_print_setting(s);
        }
    }
    for (size_t k = 0; k < cli->given_count; k++) {
        const prog_setting *s = &cli->given[k], *last = prog_given(cli, s->option->name);
        if (!s->item && last && last->from == s->from && prog_has_section(cli, k))
            prog_print_section(cli, k);
    }
}

int prog_print_checked(const prog_cli *cli)
{
    printf("%s: the configuration is good\n", cli->program);
    return PROG_STOPPED;
}
