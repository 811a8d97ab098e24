// Reads a rule of --pick, and tells the library of it.
#include "pick.h"

#include <string.h>

static const char pick_prefix[] = "header:";

static const struct {
    const char *rule;
    int pick;
} pick_rules[] = {{"round-robin", REVDIAL_PICK_ROUND_ROBIN},
                  {"least-streams", REVDIAL_PICK_LEAST_STREAMS},
                  {"client", REVDIAL_PICK_CLIENT},
                  {"host", REVDIAL_PICK_KEY}};

const char *pick_header(const char *rule)
{
    size_t len = sizeof pick_prefix - 1;
    return strncmp(rule, pick_prefix, len) == 0 ? rule + len : NULL;
}

// The REVDIAL_PICK_* of a rule, or -1.
static int pick_of(const char *rule)
{
    static const char token[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~";
    const char *field = pick_header(rule);
    if (field && *field && strspn(field, token) == strlen(field)) return REVDIAL_PICK_KEY;
    for (size_t i = 0; i < sizeof pick_rules / sizeof *pick_rules; i++)
        if (strcmp(pick_rules[i].rule, rule) == 0) return pick_rules[i].pick;
    return -1;
}

const char *pick_problem(const char *rule)
{
    if (strlen(rule) >= PICK_SIZE) return "the name of the field is too long in";
    if (pick_of(rule) >= 0) return NULL;
    return "not one of round-robin|least-streams|client|host|header:NAME:";
}

int pick_needs_request(const char *rule)
{
    return pick_of(rule) == REVDIAL_PICK_KEY;
}

void pick_set(revdial_dial_opts *dial, const char *rule)
{
    dial->pick = pick_of(rule);
    dial->key = dial->pick == REVDIAL_PICK_KEY ? rule : NULL;
    dial->key_len = dial->key ? strlen(rule) + 1 : 0;
}

const char *pick_rule(const revdial_dial_opts *dial)
{
    return dial->pick == REVDIAL_PICK_KEY ? dial->key : NULL;
}

void pick_by(revdial_dial_opts *dial, const void *key, size_t len)
{
    dial->pick = len ? REVDIAL_PICK_KEY : REVDIAL_PICK_ROUND_ROBIN;
    dial->key = len ? key : NULL;
    dial->key_len = len;
}
