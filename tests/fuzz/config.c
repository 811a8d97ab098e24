// The configuration file of the two programs. A file that is taken has a value for every key, and
// every section has its item.
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include <sys/stat.h>

#include "test.h"

#include "../../examples/program/log.c"
#include "../../examples/program/files.c"
#include "../../examples/program/signals.c"
#include "../../examples/program/config.c"
#include "../../examples/program/options.c"
#include "../../examples/program/values.c"

#include "fuzz.h"

typedef struct settings {
    prog_list exposes, groups, allow;
    const char *cert, *token;
    int timeout_ms, pick, wait, mode;
} settings;

#define AT(field) offsetof(settings, field)
static const prog_option options[] = {
    {"expose", PROG_LIST, AT(exposes), "ADDRESS=NAME[/TARGET]", "where", 0, 0,
     PROG_SECTION | PROG_IN_EXPOSE},
    {"group", PROG_LIST, AT(groups), "NAME", "who", 0, 0, PROG_SECTION | PROG_IN_GROUP},
    {"allow", PROG_LIST, AT(allow), "PATTERN", "what", 0, 0, PROG_IN_EXPOSE},
    {"tls-cert", PROG_PATH, AT(cert), "FILE", "certificate", 0, 0, PROG_IN_GROUP},
    {"token", PROG_TEXT, AT(token), "TOKEN", "secret", 0, 0, PROG_SECRET | PROG_NO_ARGV},
    {"timeout", PROG_DURATION, AT(timeout_ms), "TIME", "how long", 1, 3600000, PROG_IN_EXPOSE},
    {"pick", PROG_CHOICE, AT(pick), "best|worst", "which", 0, 0, PROG_IN_EXPOSE},
    {"wait", PROG_FLAG, AT(wait), NULL, "whether", 0, 0, PROG_IN_EXPOSE},
    {"mode", PROG_MODE, AT(mode), "MODE", "how", 0, 0},
};

static prog_log quiet;  // its level is below all

// Each item of a list, with what its section says.
static void check_items(const prog_cli *cli, const prog_list *list, const settings *of)
{
    for (size_t i = 0; i < list->count; i++) {
        settings s = *of;
        prog_common common = cli->common;
        char *all = NULL;
        int rc = prog_item_apply(cli, list->items[i], &s, &common);
        FUZZ_CHECK(rc == 0 || rc == PROG_USAGE);
        FUZZ_CHECK(prog_item_join(cli, list->items[i], "allow", &all) == 0);
        free(all);
    }
}

static void fuzz_one(const uint8_t *data, size_t len)
{
    settings s = {0};
    prog_cli cli = {.program = "fuzz", .options = options, .settings = &s, .log = &quiet};
    prog_file file = {0};
    prog_reader r = {.cli = &cli, .path = "file", .file = &file};
    char *line;
    int rc = 0;
    cli.option_count = sizeof options / sizeof options[0];
    file.text = file.at = malloc(len + 1);
    FUZZ_CHECK(file.text != NULL);
    memcpy(file.text, data, len);
    file.text[len] = '\0';
    file.size = len;
    while (rc == 0 && (line = prog_file_next(&file))) rc = prog_take_line(&r, line);
    if (rc == 0) rc = prog_section_end(&r);
    if (rc == 0) rc = prog_apply(&cli, PROG_FROM_FILE);
    FUZZ_CHECK(rc == 0 || rc == PROG_USAGE);
    for (size_t i = 0; rc == 0 && i < cli.given_count; i++) {
        const prog_setting *given = &cli.given[i];
        FUZZ_CHECK(given->value && given->line > 0 && given->item <= i);
    }
    if (rc == 0) check_items(&cli, &s.exposes, &s);
    if (rc == 0) check_items(&cli, &s.groups, &s);
    prog_file_close(&file);
    prog_cli_free(&cli);
}

static void fuzz_seeds(void)
{
    fuzz_seed_text("# mine\ntimeout = 5s  # long\ntls-cert = \"a # b\"\nwait=yes\nmode = 0660\n");
    fuzz_seed_text("token = x\npick = best\nallow = a\nallow = b\nexpose = 80=a/b\n");
    fuzz_seed_text("[expose [::1]:80] # six\nname = a\ntarget = unix:/x\nwait = no\nallow = c\n"
                   "[group g]\ntls-cert = $CREDENTIALS_DIRECTORY/x\n");
}
