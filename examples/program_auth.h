// Who may register at revdial-proxy: the files with tokens and passwords. Included after program.h.
#ifndef REVDIAL_PROGRAM_AUTH_H
#define REVDIAL_PROGRAM_AUTH_H

typedef struct token_paths {
    const char *tokens, *auth;  // NULL = none
} token_paths;

typedef struct token_table {
    prog_file token_file, auth_file;  // what the rows point into
    revdial_credential *rows;
    size_t count;
} token_table;

static void token_table_free(token_table *table)
{
    prog_file_close(&table->token_file);
    prog_file_close(&table->auth_file);
    free(table->rows);
    table->rows = NULL;
    table->count = 0;
}

// Returns NULL, or what is wrong.
static const char *token_table_add(token_table *table, const revdial_credential *row)
{
    revdial_credential *rows = realloc(table->rows, (table->count + 1) * sizeof *rows);
    if (!rows) return "out of memory";
    rows[table->count++] = *row;
    table->rows = rows;
    return NULL;
}

static const char *names_problem(const char *names)
{
    static const char globs[] = "abcdefghijklmnopqrstuvwxyz0123456789._-*?[],";
    return names[strspn(names, globs)] ? "names have a-z 0-9 . _ - and the globs * ? [ ]" : NULL;
}

// Is it that prefix and a hash in hex? Returns -1 if it is the prefix and something else.
static int is_hash(const char *secret, const char *prefix)
{
    static const char hex[] = "0123456789abcdefABCDEF";
    const char *hash = secret + strlen(prefix);
    if (strncmp(secret, prefix, strlen(prefix)) != 0) return 0;
    return strlen(hash) == 64 && strspn(hash, hex) == 64 ? 1 : -1;
}

// Cuts the first word off a line. Returns what is behind it and the blanks.
static char *word_end(char *line)
{
    char *end = line + strcspn(line, " \t");
    if (!*end) return end;
    *end = '\0';
    return end + 1 + strspn(end + 1, " \t");
}

// Tokens of the same names are the same agent with a new token: but who may take any name is not
// the same as all others who may.
static const char *identity_of(const char *names)
{
    return strcmp(names, "*") == 0 ? NULL : names;
}

// A line of the token file. Returns NULL, or what is wrong with it.
static const char *token_line_take(token_table *table, char *line)
{
    char *rest = word_end(line);
    revdial_credential row = {.names = *rest ? line : "*", .secret = *rest ? rest : line};
    const char *problem = names_problem(row.names);
    if (problem) return problem;
    row.user = identity_of(row.names);
    if (is_hash(row.secret, "sha256:") < 0) return "sha256: needs 64 hex digits";
    if (!is_hash(row.secret, "sha256:") && !prog_is_token(row.secret))
        return "a token has letters, digits and -._~+/= only";
    return token_table_add(table, &row);
}

// "digest,basic". Returns 0 for anything else.
static unsigned schemes_parse(const char *text)
{
    static const struct {
        const char *name;
        unsigned bit;
    } known[] = {{"bearer", REVDIAL_AUTH_BEARER},
                 {"basic", REVDIAL_AUTH_BASIC},
                 {"digest", REVDIAL_AUTH_DIGEST},
                 {"mtls", REVDIAL_AUTH_MTLS}};
    unsigned all = 0;
    for (;; text++) {
        size_t len = strcspn(text, ","), i = 0;
        while (i < 4 && (strlen(known[i].name) != len || memcmp(known[i].name, text, len) != 0))
            i++;
        if (i == 4) return 0;
        all |= known[i].bit;
        text += len;
        if (!*text) return all;
    }
}

static const char *auth_secret_problem(const revdial_credential *row)
{
    int sha256 = is_hash(row->secret, "sha256:"), ha1 = is_hash(row->secret, "ha1:");
    if (sha256 < 0 || ha1 < 0) return "sha256: and ha1: need 64 hex digits";
    if (sha256 || ha1) return NULL;
    if (row->schemes & REVDIAL_AUTH_BEARER && !prog_is_token(row->secret))
        return "a token has letters, digits and -._~+/= only";
    return prog_is_password(row->secret) ? NULL : "a password is 1 to 2048 printable characters";
}

// A line of the auth file. Returns NULL, or what is wrong with it.
static const char *auth_line_take(token_table *table, char *line)
{
    char *names = word_end(line), *user = word_end(names), *secret = word_end(user);
    revdial_credential row = {secret, user, names, schemes_parse(line)};
    const char *problem = names_problem(names);
    if (row.schemes == REVDIAL_AUTH_MTLS && *user && !*secret) {
        if (!problem) problem = revdial_credential_problem(&row);
        return problem ? problem : token_table_add(table, &row);
    }
    if (!*secret) return "SCHEMES NAMES USER SECRET are expected";
    if (!row.schemes) return "schemes are bearer, basic, digest and mtls, with commas between";
    if (problem) return problem;
    if (strcmp(user, "-") == 0 && row.schemes == REVDIAL_AUTH_BEARER) row.user = identity_of(names);
    if (strlen(user) > 127 || strpbrk(user, ":\"\\")) return "a user has no : \" or \\";
    problem = auth_secret_problem(&row);
    if (!problem) problem = revdial_credential_problem(&row);
    return problem ? problem : token_table_add(table, &row);
}

// Reads all lines of a file. Returns 0, or -1 and the reason in err->msg.
static int token_table_read_file(token_table *table, const char *path, prog_file *file,
                                 const char *take(token_table *table, char *line), revdial_err *err)
{
    size_t before = table->count;
    const char *problem = NULL;
    char *line;
    if (prog_file_open(file, path, err) != 0) return -1;
    while (!problem && (line = prog_file_next(file))) problem = take(table, line);
    if (!problem && table->count == before) problem = "there is no credential in it";
    if (problem) snprintf(err->msg, sizeof err->msg, "%s:%u: %s", path, file->line, problem);
    return problem ? -1 : 0;
}

// Reads the files, or takes REVDIAL_TOKEN for every name. Returns 0, or -1 and the reason.
static int token_table_read(token_table *table, const token_paths *paths, revdial_err *err)
{
    revdial_credential row = {.names = "*", .user = "*", .secret = getenv("REVDIAL_TOKEN")};
    if (paths->tokens &&
        token_table_read_file(table, paths->tokens, &table->token_file, token_line_take, err) != 0)
        return -1;
    if (paths->auth &&
        token_table_read_file(table, paths->auth, &table->auth_file, auth_line_take, err) != 0)
        return -1;
    if (paths->tokens || paths->auth) return 0;
    if (row.secret && prog_is_token(row.secret) && !token_table_add(table, &row)) return 0;
    snprintf(err->msg, sizeof err->msg, "missing, and so are --auth-file and REVDIAL_TOKEN");
    return -1;
}

#endif  // REVDIAL_PROGRAM_AUTH_H
