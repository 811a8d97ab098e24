// Who may register at revdial-proxy: the files with tokens and passwords.
#ifndef REVDIAL_PROXY_CREDENTIALS_H
#define REVDIAL_PROXY_CREDENTIALS_H

#include "../program/program.h"

typedef struct token_paths {
    const char *tokens, *auth;  // NULL = none
} token_paths;

typedef struct token_table {
    prog_file token_file, auth_file;  // what the rows point into
    revdial_credential *rows;
    size_t count;
} token_table;

// Reads the files, or takes REVDIAL_TOKEN for every name. Returns 0, or -1 and the reason. Free the
// table in either case.
int token_table_read(token_table *table, const token_paths *paths, revdial_err *err);
void token_table_free(token_table *table);

#endif  // REVDIAL_PROXY_CREDENTIALS_H
