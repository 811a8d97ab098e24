// What the library refuses it says of its own fields. People know the options that fill them.
#include <stdio.h>
#include <string.h>

#include "config.h"

// What is wrong: `FIELD: ` and `"VALUE": ` may come first, in any order.
typedef struct refusal {
    const prog_option *option;  // of the field; NULL: none is named
    char value[sizeof((revdial_err *)0)->msg];
    const char *problem;
} refusal;

// The option that fills a field. NULL: there is none.
static const prog_option *refusal_option(const prog_cli *cli, const char *field, size_t len)
{
    static const char *const others[][2] = {{"common.congestion", "congestion"},
                                            {"default_target", "target"},
                                            {"egress", "via"},
                                            {"egress", "via-file"},
                                            {"origins", "origin"},
                                            {"url", "server"}};
    char name[PROG_NAME_MAX + 1] = "";
    if (len >= sizeof name) return NULL;
    for (size_t i = 0; i < len; i++) name[i] = field[i] == '_' ? '-' : field[i];
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        const prog_setting *s = prog_given(cli, others[i][1]);
        if (s && strlen(others[i][0]) == len && memcmp(others[i][0], field, len) == 0)
            return s->option;
    }
    return prog_option_find(cli, name, len);
}

static void refusal_read(refusal *r, const prog_cli *cli, const char *msg)
{
    for (int i = 0; i < 2; i++) {
        const char *end = *msg == '"' && !r->value[0] ? strstr(msg, "\": ") : NULL;
        size_t len = strspn(msg, "abcdefghijklmnopqrstuvwxyz._");
        if (end) {
            snprintf(r->value, sizeof r->value, "%.*s", (int)(end - msg - 1), msg + 1);
            msg = end + 3;
        } else if (!r->option && strncmp(msg + len, ": ", 2) == 0) {
            r->option = refusal_option(cli, msg, len);
            if (r->option) msg += len + 2;
        }
    }
    r->problem = msg;
}

// Who has given that value? NULL: nobody, as it stands.
static const prog_setting *refusal_setting(const refusal *r, const prog_cli *cli)
{
    for (size_t i = 0; r->value[0] && i < cli->given_count; i++) {
        const prog_setting *s = &cli->given[i];
        if ((!r->option || s->option == r->option) && strcmp(s->value, r->value) == 0) return s;
    }
    return NULL;
}

int prog_refused(const prog_cli *cli, const char *msg, const char *option, const char *value)
{
    refusal r = {0};
    const prog_setting *s;
    char problem[sizeof r.value + 1];
    size_t len;
    refusal_read(&r, cli, msg);
    s = refusal_setting(&r, cli);
    snprintf(problem, sizeof problem, "%s", r.problem);
    len = strlen(problem);
    if (r.value[0] && len > 0 && problem[len - 1] != ':') strcat(problem, ":");
    if (!r.option && option) return prog_usage_error(cli, option, msg, value);
    if (!r.option && !s) return prog_complain(cli, "%s", msg);
    if (s) return prog_usage_error(cli, s->option->name, problem, s->value);
    return prog_usage_error(cli, r.option->name, problem, r.value[0] ? r.value : NULL);
}
