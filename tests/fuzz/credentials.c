// The files with tokens and passwords that revdial-proxy reads. A row that the program takes is one
// that the library takes, and holds nothing that could not be sent.
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include <sys/stat.h>

#include "test.h"

#include "../../examples/program/log.c"
#include "../../examples/program/files.c"
#include "../../examples/program/signals.c"
#include "../../examples/program/values.c"
#include "../../examples/proxy/credentials.c"
#include "../../examples/proxy/hosts.c"
#include "../../examples/proxy/pick.c"
#include "../../examples/proxy/quota.c"
#include "../../examples/proxy/routes.c"

#include "fuzz.h"

static void read_file(const uint8_t *data, size_t len,
                      const char *take(token_table *table, char *line))
{
    token_table table = {.files = calloc(1, sizeof *table.files + 1)};
    prog_file *file = &table.files->file;
    char *line;
    FUZZ_CHECK(table.files != NULL);
    file->text = file->at = malloc(len + 1);
    FUZZ_CHECK(file->text != NULL);
    memcpy(file->text, data, len);
    file->text[len] = '\0';
    file->size = len;
    while ((line = prog_file_next(file)) != NULL) {
        size_t before = table.count;
        const char *problem = take(&table, line);
        FUZZ_CHECK(table.count == before + (problem == NULL));
    }
    FUZZ_CHECK(file->line <= len + 1);
    for (size_t i = 0; i < table.count; i++) {
        const revdial_credential *row = &table.rows[i];
        FUZZ_CHECK(revdial_credential_problem(row) == NULL);
        FUZZ_CHECK(row->names && !strpbrk(row->names, "\r\n \t"));
        FUZZ_CHECK(!row->secret || !strpbrk(row->secret, "\r\n"));
        revdial_auth_req req = {.secret = "nothing like it", .user = row->user, .name = "cam-1"};
        req.scheme = REVDIAL_AUTH_BEARER;
        FUZZ_CHECK(revdial_auth_verify(&req, row, 1, NULL) != REVDIAL_OK);
    }
    token_table_free(&table);
}

static void fuzz_one(const uint8_t *data, size_t len)
{
    read_file(data, len, token_line_take);
    read_file(data, len, auth_line_take);
}

static void fuzz_seeds(void)
{
#define SEED_HASH "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
    fuzz_seed_text("# mine\ns3cret\ncam-*,door t0ken\r\n\n* sha256:" SEED_HASH "\n");
    fuzz_seed_text("digest cam-* alice correct horse\nbasic,digest * bob pass word\n");
    fuzz_seed_text(
        "bearer * - t0ken\nmtls cam-* DNS:*.cams.test\n  basic a,b carol sha256:" SEED_HASH
        "\ndigest [a-c]* dave ha1:" SEED_HASH "\nmtls,basic x eve p");
}
