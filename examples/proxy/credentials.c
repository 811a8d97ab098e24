// Reads the files with tokens and passwords.
#include "credentials.h"

#include "hosts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct token_file {
    token_file *next;
    prog_file file;
    char *hosts;   // of lines that name none; NULL = none
    revdial_quota quota;
    char problem[96];  // of a line
    char group[];      // of lines that name none, as these would: "group=cams"; or ""
};

void token_table_free(token_table *table)
{
    while (table->files) {
        token_file *f = table->files;
        table->files = f->next;
        prog_file_close(&f->file);
        free(f->hosts);
        free(f);
    }
    free(table->rows);
    table->rows = NULL;
    table->count = 0;
}

// Returns NULL, or what is wrong.
static const char *token_table_add(token_table *table, const revdial_credential *row)
{
    const char *problem = revdial_credential_problem(row);
    revdial_credential *rows =
        problem ? NULL : realloc(table->rows, (table->count + 1) * sizeof *rows);
    if (!rows) return problem ? problem : "out of memory";
    rows[table->count++] = *row;
    table->rows = rows;
    return NULL;
}

// Cuts the first word off a line. Returns what is behind it and the blanks.
static char *word_end(char *line)
{
    char *end = line + strcspn(line, " \t");
    if (!*end) return end;
    *end = '\0';
    return end + 1 + strspn(end + 1, " \t");
}

// Does a list go on behind the blank that ends it here?
static int is_cut(const char *list, const char *rest)
{
    size_t len = strlen(list);
    return *rest == ',' || (len > 0 && list[len - 1] == ',');
}

static const char cut_list[] = "a list ends at the first blank: write no blanks around its commas";

// "stream-rate=1M"; its line is named with what is wrong, and it names the limit.
static const char *limit_take(token_file *f, int limit, const char *word, revdial_quota *quota)
{
    const char *problem = quota_set(quota, limit, strchr(word, '=') + 1);
    if (!problem) return NULL;
    snprintf(f->problem, sizeof f->problem, "%s: %s", quota_name(limit), problem);
    return f->problem;
}

// Takes "hosts=a.example,*.b.example" and limits, in any order, off the beginning of a line.
// Returns NULL, or what is wrong.
static const char *words_take(token_file *f, char **line, revdial_credential *row)
{
    const char *problem = NULL;
    row->label = f->hosts;
    row->quota = f->quota;
    while (!problem) {
        char *word = *line;
        int limit = quota_find(word);
        if (limit < 0 && strncmp(word, "hosts=", 6) != 0) return NULL;
        *line = word_end(word);
        if (limit >= 0) {
            problem = limit_take(f, limit, word, &row->quota);
            continue;
        }
        row->label = word + 6;
        problem = is_cut(word, *line) ? cut_list : hosts_problem(row->label);
    }
    return problem;
}

// Tokens of the same names share them, so that an agent can get a new token: but who may take any
// name does not share it with all others who may. No group of the auth file is called so: those
// are "group=" and more, and '=' is in no name.
static const char *group_of(const char *names)
{
    return strcmp(names, "*") == 0 ? NULL : names;
}

// A line of the token file. Returns NULL, or what is wrong with it.
static const char *token_line_take(token_table *table, char *line)
{
    revdial_credential row = {0};
    const char *problem = words_take(table->files, &line, &row);
    char *rest;
    if (problem) return problem;
    rest = word_end(line);
    row.names = *rest ? line : "*";
    row.secret = *rest ? rest : line;
    if (*rest && is_cut(line, rest)) return cut_list;
    row.group = table->files->group[0] ? table->files->group : group_of(row.names);
    return token_table_add(table, &row);
}

// "digest,basic". Returns 0 for anything else.
static unsigned schemes_parse(char *list)
{
    static const struct {
        const char *name;
        unsigned bit;
    } known[] = {{"bearer", REVDIAL_AUTH_BEARER},
                 {"basic", REVDIAL_AUTH_BASIC},
                 {"digest", REVDIAL_AUTH_DIGEST},
                 {"mtls", REVDIAL_AUTH_MTLS}};
    unsigned all = 0;
    char *rest = NULL;
    for (char *one = strtok_r(list, ",", &rest); one; one = strtok_r(NULL, ",", &rest)) {
        size_t i = 0;
        while (i < 4 && strcmp(known[i].name, one) != 0) i++;
        if (i == 4) return 0;
        all |= known[i].bit;
    }
    return all;
}

// A line of the auth file. Returns NULL, or what is wrong with it.
static const char *auth_line_take(token_table *table, char *line)
{
    revdial_credential row = {0};
    char *group = strncmp(line, "group=", 6) == 0 ? line : NULL;
    char *schemes = group ? word_end(line) : line, *names, *user, *secret;
    const char *problem = words_take(table->files, &schemes, &row);
    if (group && !group[6]) return "group= needs a name behind it";
    if (problem) return problem;
    names = word_end(schemes);
    row.names = names;
    row.user = user = word_end(names);
    row.secret = secret = word_end(user);
    row.group = group || !table->files->group[0] ? group : table->files->group;
    if (is_cut(schemes, names) || is_cut(names, user)) return cut_list;
    row.schemes = schemes_parse(schemes);
    if (!*user || (!*secret && row.schemes != REVDIAL_AUTH_MTLS))
        return "[group=GROUP] [hosts=HOSTS] [LIMITS] SCHEMES NAMES USER SECRET are expected";
    if (!row.schemes) return "SCHEMES must be a comma list of bearer, basic, digest and mtls";
    if (strcmp(user, "-") == 0 && row.schemes == REVDIAL_AUTH_BEARER) {
        row.user = NULL;
        if (!row.group) row.group = group_of(names);
    }
    return token_table_add(table, &row);
}

// The line of a file for peers, who both present the secret and check it. Returns NULL, or what is
// wrong with it.
static const char *peer_line_take(token_table *table, char *line)
{
    revdial_credential row = {.secret = line, .user = PEER_NAME, .names = PEER_NAME};
    row.schemes = REVDIAL_AUTH_DIGEST;  // needs no TLS, and each of the two proves itself
    row.group = PEER_GROUP;
    row.quota = table->files->quota;
    if (strncmp(line, "ha1:", 4) == 0) return "peers need the secret itself, not a hash of it";
    for (size_t i = 0; i < table->count; i++)
        if (table->rows[i].group && strcmp(table->rows[i].group, PEER_GROUP) == 0)
            return "one line is expected, the secret that all peers share";
    return token_table_add(table, &row);
}

int peer_secret_read(const char *path, char *secret, size_t size, revdial_err *err)
{
    prog_file file;
    const char *line = prog_file_open(&file, path, err) == 0 ? prog_file_next(&file) : NULL;
    int is_good = line && strlen(line) < size;
    if (is_good) strcpy(secret, line);
    if (!is_good && !err->msg[0]) snprintf(err->msg, sizeof err->msg, "%s: no secret in it", path);
    prog_file_close(&file);
    return is_good ? 0 : -1;
}

// Reads all lines of a file. Returns 0, or -1 and the reason in err->msg.
static int token_table_read_file(token_table *table, const char *path, const token_paths *of,
                                 const char *take(token_table *table, char *line), revdial_err *err)
{
    const char *group = of->group;
    size_t before = table->count, size = group ? strlen("group=") + strlen(group) + 1 : 1;
    token_file *f = calloc(1, sizeof *f + size);
    const char *problem = NULL;
    char *line;
    if (!f) snprintf(err->msg, sizeof err->msg, "out of memory");
    if (!f) return -1;
    if (group) snprintf(f->group, size, "group=%s", group);
    f->next = table->files;
    table->files = f;
    f->quota = of->quota;
    if (of->hosts) f->hosts = strdup(of->hosts);
    if (of->hosts && !f->hosts) problem = "out of memory";
    if (prog_file_open(&f->file, path, err) != 0) return -1;
    while (!problem && (line = prog_file_next(&f->file))) problem = take(table, line);
    if (!problem && table->count == before) problem = "there is no credential in it";
    if (problem) snprintf(err->msg, sizeof err->msg, "%s:%u: %s", path, f->file.line, problem);
    return problem ? -1 : 0;
}

int token_table_read_peers(token_table *table, const char *path, const revdial_quota *quota,
                           revdial_err *err)
{
    const token_paths paths = {.quota = *quota};
    return token_table_read_file(table, path, &paths, peer_line_take, err);
}

int token_table_read(token_table *table, const token_paths *paths, revdial_err *err)
{
    revdial_credential row = {.names = "*", .secret = paths->token, .label = paths->hosts};
    const char *problem = NULL;
    if (paths->tokens &&
        token_table_read_file(table, paths->tokens, paths, token_line_take, err) != 0)
        return -1;
    if (paths->auth && token_table_read_file(table, paths->auth, paths, auth_line_take, err) != 0)
        return -1;
    if (paths->tokens || paths->auth || (paths->peers && !paths->token)) return 0;
    if (!row.secret) problem = "missing, and so are --auth-file and REVDIAL_TOKEN";
    if (!problem && !(problem = token_table_add(table, &row))) return 0;
    snprintf(err->msg, sizeof err->msg, "%s%s", row.secret ? "REVDIAL_TOKEN: " : "", problem);
    return -1;
}
