// The table of limits that a credential may have.
#include "quota.h"

#include <string.h>

#define AT(field) offsetof(revdial_quota, field)
static const struct {
    const char *name;
    size_t at;
    int is_rate;
} limits[QUOTA_COUNT] = {{"max-streams", AT(max_own_streams), 0},
                         {"max-per-identity", AT(max_sessions), 0},
                         {"stream-rate", AT(stream_rate), 1},
                         {"session-rate", AT(session_rate), 1}};

const char *quota_name(int i)
{
    return limits[i].name;
}

int quota_find(const char *word)
{
    for (int i = 0; i < QUOTA_COUNT; i++) {
        size_t len = strlen(limits[i].name);
        if (strncmp(word, limits[i].name, len) == 0 && word[len] == '=') return i;
    }
    return -1;
}

const char *quota_set(revdial_quota *q, int i, const char *value)
{
    void *at = (char *)q + limits[i].at;
    if (limits[i].is_rate && prog_read_rate(value, at) != 0) return "it is " PROG_RATE_PROBLEM;
    if (!limits[i].is_rate && prog_read_number(value, 1 << 24, at) != 0)
        return "it is not a number from 1 to 16777216";
    return NULL;
}
