// What the command line, the environment and the configuration file say, and which of them counts.
#include "revdial.h"

#include <sys/stat.h>

#include "test.h"

#include "../examples/program/log.c"
#include "../examples/program/files.c"
#include "../examples/program/signals.c"
#include "../examples/program/config.c"
#include "../examples/program/options.c"
#include "../examples/program/reload.c"
#include "../examples/program/values.c"

typedef struct settings {
    prog_list exposes, allow, groups;
    const char *cert, *token, *via;
    int timeout_ms, count, pick, wait, mode;
    uint64_t rate;
} settings;

#define AT(field) offsetof(settings, field)
static const prog_option options[] = {
    {"expose", PROG_LIST, AT(exposes), "ADDRESS=NAME[/TARGET]", "where", 0, 0,
     PROG_LIVE | PROG_SECTION | PROG_IN_EXPOSE},
    {"group", PROG_LIST, AT(groups), "NAME", "who", 0, 0,
     PROG_SECTION | PROG_IN_GROUP | PROG_NO_ARGV | PROG_NO_ENV},
    {"allow", PROG_LIST, AT(allow), "PATTERN", "what", 0, 0, PROG_IN_EXPOSE},
    {"tls-cert", PROG_PATH, AT(cert), "FILE", "certificate", 0, 0, PROG_IN_GROUP},
    {"token", PROG_TEXT, AT(token), "TOKEN", "secret", 0, 0, PROG_SECRET | PROG_NO_ARGV},
    {"via", PROG_TEXT, AT(via), "URL", "through", 0, 0, PROG_SECRET},
    {"timeout", PROG_DURATION, AT(timeout_ms), "TIME", "how long (default 1s,\nat least 100ms)",
     100, 3600000, PROG_IN_EXPOSE},
    {"count", PROG_NUMBER, AT(count), "N", "how many", 1, 9},
    {"pick", PROG_CHOICE, AT(pick), "best|worst", "which", 0, 0, PROG_IN_EXPOSE},
    {"wait", PROG_FLAG, AT(wait), NULL, "whether", 0, 0, PROG_IN_EXPOSE},
    {"mode", PROG_MODE, AT(mode), "MODE", "how", 0, 0},
    {"rate", PROG_SPEED, AT(rate), "RATE", "how fast", 0, 0},
};

// A program that is told something.
typedef struct told {
    prog_cli cli;
    settings s;
    int rc;
    char says[8192];  // on stderr and stdout
} told;

static char config_path[64];

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    if (!f || fputs(text, f) < 0 || fclose(f) != 0) abort();
}

static void write_config(const char *text)
{
    write_file(config_path, text);
}

// Parses with what is printed going to a file, which is then read.
static void told_parse(told *t, char **argv)
{
    FILE *out = tmpfile();
    int saved[2] = {dup(1), dup(2)};
    size_t len;
    if (!out || fflush(stdout) != 0) abort();
    for (int i = 0; i < 2; i++) dup2(fileno(out), i + 1);
    t->rc = prog_parse(&t->cli, argv);
    fflush(stdout);
    for (int i = 0; i < 2; i++) dup2(saved[i], i + 1);
    for (int i = 0; i < 2; i++) close(saved[i]);
    rewind(out);
    len = fread(t->says, 1, sizeof t->says - 1, out);
    t->says[len] = '\0';
    fclose(out);
}

// tell(t, "--wait", "--count", "3", NULL)
static void tell(told *t, const char *words, ...)
{
    const char *argv[16] = {"program"};
    int argc = 1;
    va_list args;
    memset(t, 0, sizeof *t);
    t->cli = (prog_cli){.program = "program", .usage = "", .epilogue = "", .options = options};
    t->cli.option_count = sizeof options / sizeof options[0];
    t->cli.settings = &t->s;
    va_start(args, words);
    for (const char *word = words; word && argc < 15; word = va_arg(args, const char *))
        argv[argc++] = word;
    va_end(args);
    told_parse(t, (char **)(uintptr_t)argv);
}

static void tell_file(told *t, const char *text)
{
    write_config(text);
    tell(t, "--config", config_path, NULL);
}

static void one_line_says(const char *line, const char *says)
{
    char text[512];
    told t;
    snprintf(text, sizeof text, "# first\n%s\n", line);
    tell_file(&t, text);
    if (!says && t.rc == -1 && !t.says[0]) {
        prog_cli_free(&t.cli);
        return;
    }
    if (!says || t.rc != PROG_USAGE || !strstr(t.says, says) || !strstr(t.says, ":2: "))
        test_fail(__FILE__, __LINE__, "\"%s\": %d, %s", line, t.rc, t.says);
    prog_cli_free(&t.cli);
}

TEST(a_line_that_is_wrong_is_named_with_its_file_and_number)
{
    static const char *const lines[][2] = {
        {"wait = yes", NULL},
        {"wait=off", NULL},
        {"wait = yes  # for now", NULL},
        {"  timeout\t=\t5m  ", NULL},
        {"tls-cert = \"a # b\"", NULL},
        {"tls-cert = \"a\" # b", NULL},
        {"[expose [::]:80]  # see [1]\nname = a", NULL},
        {"[group x]\ntls-cert = y", NULL},
        {"wait = maybe", "wait: not yes or no: \"maybe\""},
        {"wait", "not \"key = value\""},
        {"= yes", "not \"key = value\""},
        {"tls-cert =", "tls-cert: must not be empty"},
        {"tls-cert = # none", "tls-cert: must not be empty"},
        {"allow =", "allow: must not be empty"},
        {"tls-cert = \"a", "tls-cert: the quotes do not end"},
        {"tls-cert = \"a\" b", "tls-cert: the quotes do not end"},
        {"timeout = soon", "timeout: not a duration like 500ms, 30s, 5m or 2h: \"soon\""},
        {"timeout = 99ms", "timeout: not a duration from 100 to 3600000 milliseconds: \"99ms\""},
        {"count = 10", "count: not a number from 1 to 9: \"10\""},
        {"pick = good", "pick: not one of best|worst: \"good\""},
        {"mode = 999", "mode: not a mode like 0660"},
        {"rate = 101G",
         "rate: not bytes per second like 500k, 2M or 1G, from 1k to 100G: \"101G\""},
        {"rate = 99999999999999999999999", "rate: not bytes per second"},
        {"rate = 999", "rate: not bytes per second"},
        {"rate = 5kk", "rate: not bytes per second"},
        {"rate = 5K", "rate: not bytes per second"},
        {"rate = M", "rate: not bytes per second"},
        {"tls-crt = x", "no such key \"tls-crt\"; is tls-cert meant?"},
        {"zzzzzzzzzz = x", "no such key \"zzzzzzzzzz\""},
        {"help = yes", "only for the command line: \"help\""},
        {"config = other", "only for the command line: \"config\""},
        {"[expose 80", "not a section"},
        {"[expose 80] name = a", "not a section"},
        {"[expose]", "something must stand behind the word"},
        {"[expose ]", "something must stand behind the word"},
        {"[wait x]", "no section begins like this"},
        {"[]", "no section begins like this"},
        {"[expose 80]", "[expose 80] lacks a line \"name = NAME\""},
        {"[expose 80]\n# nothing\n", "[expose 80] lacks a line \"name = NAME\""},
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        one_line_says(lines[i][0], lines[i][1]);
}

TEST(a_line_without_a_key_and_an_equals_sign_shows_no_secret)
{
    static const char *const lines[] = {"via http://bob:pa55@gw:3128",
                                        "via http://bob:pa55@gw:3128/?x=1", "via pa55=",
                                        "pa55", "pa55 "};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        const char *shown = *lines[i] == 'v' ? "value\": via" : "value\"";
        told t;
        tell_file(&t, lines[i]);
        if (t.rc != PROG_USAGE || !strstr(t.says, shown) || strstr(t.says, "pa55"))
            test_fail(__FILE__, __LINE__, "\"%s\": %d, %s", lines[i], t.rc, t.says);
        prog_cli_free(&t.cli);
    }
}

TEST(a_rate_is_in_powers_of_1000)
{
    static const struct {
        const char *line;
        uint64_t rate;
    } rows[] = {{"rate = 1k", 1000},
                {"rate = 1000", 1000},
                {"rate = 1500k", 1500000},
                {"rate = 2M", 2000000},
                {"rate = 100G", 100000000000}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        told t;
        tell_file(&t, rows[i].line);
        CHECK_INT(t.s.rate, rows[i].rate);
        prog_cli_free(&t.cli);
    }
}

TEST(a_line_that_is_wrong_in_its_section_is_named)
{
    static const char *const lines[][2] = {
        {"count = 3", "not for an [expose]: keys for all stand above the first"},
        {"expose = 80=a", "not for an [expose]"},
        {"tls-cert = x", "not for an [expose]"},
        {"name = a\nname = b", ":4: given twice in this section: \"name\""},
        {"target =", "must not be empty: \"target\""},
        {"name = a\ntimeout = 1", "timeout: not a duration"},
        {"tagret = x", "no such key \"tagret\"; is target meant?"},
        {"name = a\n[group g]\nname = x", ":5: no such key \"name\""},
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        char text[256];
        told t;
        snprintf(text, sizeof text, "# first\n[expose 80]\n%s\n", lines[i][0]);
        tell_file(&t, text);
        if (t.rc == -1) t.rc = prog_item_apply(&t.cli, t.s.exposes.items[0], &t.s, &t.cli.common);
        if (t.rc != PROG_USAGE || (t.says[0] && !strstr(t.says, lines[i][1])))
            test_fail(__FILE__, __LINE__, "\"%s\": %d, %s", lines[i][0], t.rc, t.says);
        prog_cli_free(&t.cli);
    }
}

TEST(a_file_that_cannot_be_read_is_an_error)
{
    told t;
    tell(&t, "--config", "/nowhere/at/all", NULL);
    CHECK_INT(t.rc, PROG_USAGE);
    CHECK(strstr(t.says, "--config: /nowhere/at/all: ") != NULL);
    prog_cli_free(&t.cli);
}

TEST(a_file_that_a_refused_configuration_names_is_watched_until_another_is_read)
{
    char dir[] = "/tmp/revdial-test.XXXXXX", old[40], new[40];
    prog_watch w = {0};
    told now, next;
    REQUIRE(mkdtemp(dir) != NULL);
    snprintf(old, sizeof old, "%s/old", dir);
    snprintf(new, sizeof new, "%s/new", dir);
    write_file(old, "old");
    tell(&now, "--tls-cert", old, NULL);
    tell(&next, "--tls-cert", new, NULL);
    prog_watch_begin(&w, &now.cli);
    prog_watch_refuse(&w, &next.cli);
    CHECK_INT(prog_watch_look(&w, &now.cli), 0);
    write_file(new, "new");
    CHECK_INT(prog_watch_look(&w, &now.cli), 0);  // it may still be written
    CHECK_INT(prog_watch_look(&w, &now.cli), 1);
    CHECK_INT(prog_watch_look(&w, &now.cli), 0);
    prog_watch_begin(&w, &now.cli);
    unlink(new);
    CHECK_INT(prog_watch_look(&w, &now.cli), 0);
    CHECK_INT(prog_watch_look(&w, &now.cli), 0);
    prog_watch_end(&w);
    prog_cli_free(&next.cli);
    prog_cli_free(&now.cli);
    unlink(old);
    rmdir(dir);
}

TEST(a_section_holds_for_its_item_alone)
{
    told t;
    settings s;
    prog_common common;
    tell_file(&t, "timeout = 3s\nexpose = 79=z\n[expose 80]\nname = a\ntarget = unix:/x\n"
                  "wait = yes\ntimeout = 7s\n[expose [::1]:81]\nname = b\n");
    CHECK_INT(t.rc, -1);
    CHECK_INT(t.s.exposes.count, 3);
    REQUIRE(t.s.exposes.count == 3);
    CHECK_STR(t.s.exposes.items[0], "79=z");
    CHECK_STR(t.s.exposes.items[1], "80=a/unix:/x");
    CHECK_STR(t.s.exposes.items[2], "[::1]:81=b");
    for (size_t i = 0; i < 3; i++) {
        s = t.s;
        common = t.cli.common;
        CHECK_INT(prog_item_apply(&t.cli, t.s.exposes.items[i], &s, &common), 0);
        CHECK_INT(s.wait, i == 1);
        CHECK_INT(s.timeout_ms, i == 1 ? 7000 : 3000);
    }
    CHECK_INT(t.s.wait, 0);
    prog_cli_free(&t.cli);
}

TEST(a_section_may_have_a_list_of_its_own)
{
    told t;
    char *all = NULL;
    tell_file(&t, "allow = a\n[expose 80]\nname = a\nallow = b\nwait = yes\nallow = c\n"
                  "[expose 81]\nname = b\n");
    CHECK_INT(t.rc, -1);
    REQUIRE(t.s.exposes.count == 2);
    CHECK_INT(prog_item_join(&t.cli, t.s.exposes.items[0], "allow", &all), 0);
    CHECK_STR(all, "b,c");
    free(all);
    CHECK_INT(prog_item_join(&t.cli, t.s.exposes.items[1], "allow", &all), 0);
    CHECK(all == NULL);
    CHECK_INT(t.s.allow.count, 1);
    prog_cli_free(&t.cli);
}

TEST(an_option_beats_the_environment_which_beats_the_file)
{
    told t;
    write_config("count = 1\ntimeout = 1s\npick = worst\nwait = yes\nallow = a\nallow = b\n"
                 "tls-cert = of-file\n");
    setenv("REVDIAL_COUNT", "2", 1);
    setenv("REVDIAL_TIMEOUT", "2s", 1);
    setenv("REVDIAL_TLS_CERT", "", 1);
    setenv("REVDIAL_ALLOW", "c,,d", 1);
    tell(&t, "--config", config_path, "--count", "3", "--wait=no", NULL);
    CHECK_INT(t.rc, -1);
    CHECK_INT(t.s.count, 3);
    CHECK_INT(t.s.timeout_ms, 2000);
    CHECK_INT(t.s.pick, 1);
    CHECK_INT(t.s.wait, 0);
    CHECK_STR(t.s.cert, "of-file");  // an empty variable says nothing
    CHECK_INT(t.s.allow.count, 2);
    CHECK_STR(t.s.allow.items[1], "d");
    prog_cli_free(&t.cli);
    tell(&t, "--config", config_path, "--allow", "e", NULL);
    CHECK_INT(t.s.allow.count, 1);
    CHECK_STR(t.s.allow.items[0], "e");
    prog_cli_free(&t.cli);
    setenv("REVDIAL_COUNT", "many", 1);
    tell(&t, NULL, NULL);
    CHECK_INT(t.rc, PROG_USAGE);
    CHECK(strstr(t.says, "program: REVDIAL_COUNT: not a number from 1 to 9: \"many\"") != NULL);
    prog_cli_free(&t.cli);
    unsetenv("REVDIAL_COUNT");
    unsetenv("REVDIAL_TIMEOUT");
    unsetenv("REVDIAL_TLS_CERT");
    unsetenv("REVDIAL_ALLOW");
}

TEST(a_secret_is_for_the_file_and_the_environment_and_is_not_shown)
{
    told t;
    setenv("REVDIAL_VIA", "http://user:s3cret@10.0.0.1:3128", 1);
    write_config("token = s3cret\n");
    tell(&t, "--config", config_path, "--config", "-", NULL);
    CHECK_INT(t.rc, PROG_STOPPED);
    CHECK_STR(t.s.token, "s3cret");
    CHECK(strstr(t.says, "token = ********  # ") != NULL);
    CHECK(strstr(t.says, "via = http://********@10.0.0.1:3128  # REVDIAL_VIA\n") != NULL);
    CHECK(strstr(t.says, "s3cret") == NULL);
    prog_cli_free(&t.cli);
    unsetenv("REVDIAL_VIA");
    tell(&t, "--token", "s3cret", NULL);
    CHECK_INT(t.rc, PROG_USAGE);
    CHECK(strstr(t.says, "--token: ") && !strstr(t.says, "s3cret"));
    prog_cli_free(&t.cli);
}

// What is printed can be read again, and says the same then.
TEST(what_is_in_force_is_printed_with_where_it_came_from)
{
    told t;
    char text[8192], where[128];
    write_config("timeout = 3s\nexpose = 79=z\n[expose 80]\nname = a\ntarget = unix:/x\n"
                 "wait = yes\n[expose 81]\nname = b\n");
    tell(&t, "--config", config_path, "--config", "-", "--tls-cert", "a # b", NULL);
    CHECK_INT(t.rc, PROG_STOPPED);
    snprintf(where, sizeof where, "timeout = 3s  # %s:1\n", config_path);
    CHECK(strstr(t.says, where) != NULL);
    snprintf(where, sizeof where, "expose = 81=b  # %s:7\n", config_path);
    CHECK(strstr(t.says, where) != NULL);
    snprintf(where, sizeof where, "\n[expose 80]  # %s:3\nname = a\ntarget = unix:/x\nwait = yes",
             config_path);
    CHECK(strstr(t.says, where) != NULL);
    CHECK(strstr(t.says, "tls-cert = \"a # b\"  # command line\n") != NULL);
    CHECK(strstr(t.says, "# pick: not set\n") != NULL);
    snprintf(text, sizeof text, "%s", t.says);
    prog_cli_free(&t.cli);
    tell_file(&t, text);
    CHECK_INT(t.rc, -1);
    CHECK_STR(t.says, "");
    CHECK_STR(t.s.cert, "a # b");
    CHECK_INT(t.s.exposes.count, 3);
    prog_cli_free(&t.cli);
}

TEST(a_default_is_printed_as_the_help_says_it)
{
    told t;
    tell(&t, "--config", "-", NULL);
    CHECK(strstr(t.says, "# timeout: default 1s, at least 100ms\n") != NULL);
    CHECK(strstr(t.says, "# wait: default no\n") != NULL);
    CHECK(strstr(t.says, "# drain: default 30s\n") != NULL);
    prog_cli_free(&t.cli);
}

TEST(a_credential_of_systemd_is_a_file_of_its_directory)
{
    told t;
    setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x", 1);
    tell_file(&t, "tls-cert = $CREDENTIALS_DIRECTORY/cert\n");
    CHECK_INT(t.rc, -1);
    CHECK_STR(t.s.cert, "/run/credentials/x/cert");
    prog_cli_free(&t.cli);
    unsetenv("CREDENTIALS_DIRECTORY");
    tell_file(&t, "\ntls-cert = $CREDENTIALS_DIRECTORY/cert\n");
    CHECK_INT(t.rc, PROG_USAGE);
    CHECK(strstr(t.says, ":2: tls-cert: ") != NULL);
    prog_cli_free(&t.cli);
}

static void warnings(const prog_cli *cli, char *text, size_t size)
{
    static prog_log log;
    FILE *out = tmpfile();
    size_t len;
    if (!out) abort();
    prog_log_open(&log, REVDIAL_LOG_INFO, PROG_LOG_LOGFMT);
    log.fd = fileno(out);
    prog_warn_settings(&log, cli);
    rewind(out);
    len = fread(text, 1, size - 1, out);
    text[len] = '\0';
    fclose(out);
    pthread_mutex_destroy(&log.lock);
    pthread_cond_destroy(&log.changed);
}

TEST(what_is_given_twice_and_unknown_variables_are_warned_of)
{
    told t;
    char text[4096];
    tell_file(&t, "count = 1\nallow = a\nallow = b\ncount = 2\n[expose 1]\nname = a\nwait = 1\n"
                  "[expose 2]\nname = a\nwait = 1\n");
    setenv("REVDIAL_TLS_CRT", "x", 1);
    setenv("REVDIAL_SERVICE_PORT_HTTP", "80", 1);
    warnings(&t.cli, text, sizeof text);
    CHECK_INT(t.s.count, 2);
    CHECK(strstr(text, "event=option.repeated") && strstr(text, "count is given twice"));
    CHECK(strstr(text, "REVDIAL_TLS_CRT means nothing; is REVDIAL_TLS_CERT meant?") != NULL);
    CHECK(strstr(text, "REVDIAL_SERVICE_PORT_HTTP means nothing\"") != NULL);
    unsetenv("REVDIAL_TLS_CRT");
    unsetenv("REVDIAL_SERVICE_PORT_HTTP");
    prog_cli_free(&t.cli);
    tell_file(&t, "[expose 1]\nname = a\nwait = 1\n[expose 2]\nname = a\nwait = 1\n");
    warnings(&t.cli, text, sizeof text);
    CHECK(strstr(text, "repeated") == NULL);
    prog_cli_free(&t.cli);
}

int main(int argc, char **argv)
{
    int fd, rc;
    snprintf(config_path, sizeof config_path, "/tmp/revdial-test.XXXXXX");
    fd = mkstemp(config_path);
    if (fd < 0) return 1;
    close(fd);
    rc = test_main(argc, argv);
    unlink(config_path);
    return rc;
}
