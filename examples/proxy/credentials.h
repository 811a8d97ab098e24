// Who may register at revdial-proxy: the files with tokens and passwords.
#ifndef REVDIAL_PROXY_CREDENTIALS_H
#define REVDIAL_PROXY_CREDENTIALS_H

#include "quota.h"

typedef struct token_paths {
    const char *tokens, *auth;  // NULL = none
    const char *token;          // for every name, where there is no file
    const char *group;          // that lines without one are in; NULL = none
    const char *peers;          // the secret that peers share; NULL = there are no peers
    const char *hosts;          // comma list, of lines that name none; NULL = none
    revdial_quota quota;        // of lines that have none of a kind
} token_paths;

// Peers are this group, which no file can name: '=' is in no name, and those of the auth file begin
// with "group=". They register as this name and user.
#define PEER_GROUP "=peer"
#define PEER_NAME "peer"

typedef struct token_file token_file;

typedef struct token_table {
    token_file *files;  // what the rows point into
    revdial_credential *rows;
    size_t count;
} token_table;

// Adds what the files hold, or the token. Returns 0, or -1 and the reason. Free the table in either
// case.
int token_table_read(token_table *table, const token_paths *paths, revdial_err *err);
// Adds the secret of peers, who get this quota. Returns as the one before.
int token_table_read_peers(token_table *table, const char *path, const revdial_quota *quota,
                           revdial_err *err);
void token_table_free(token_table *table);
// Reads the secret of peers. Returns 0, or -1 and the reason in err->msg.
int peer_secret_read(const char *path, char *secret, size_t size, revdial_err *err);

#endif  // REVDIAL_PROXY_CREDENTIALS_H
