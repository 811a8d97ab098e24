// What the front ends share.
#include "front.h"

#include <string.h>

int front_dial(revdial_route *r, const route_choice *where, const route_host *host)
{
    char *name = r->text, *target = name + ROUTE_NAME_SIZE, *key = target + ROUTE_TARGET_SIZE;
    const char *rule;
    memcpy(name, where->name, ROUTE_NAME_SIZE);
    memcpy(target, where->target, ROUTE_TARGET_SIZE);
    memcpy(key, host->host, ROUTE_HOST_SIZE);
    r->name = name;
    r->dial.target = *target ? target : NULL;
    if (*where->pick) pick_set(&r->dial, where->pick);
    rule = pick_rule(&r->dial);
    if (rule) pick_by(&r->dial, key, pick_header(rule) ? 0 : strlen(key));
    return REVDIAL_ROUTE_DIAL;
}

void front_trace(revdial_route *r, const char *trace)
{
    char *at = r->text + ROUTE_NAME_SIZE + ROUTE_TARGET_SIZE + ROUTE_HOST_SIZE;
    if (!*trace) return;
    memcpy(at, trace, strlen(trace) + 1);
    r->pairs[0] = (revdial_kv){"traceparent", at};
    r->dial.meta = r->pairs;
    r->dial.meta_count = 1;
}

int front_status(const revdial_err *why)
{
    switch (why->code) {
    case REVDIAL_EINVAL: return 400;
    case REVDIAL_EDENIED: return 403;
    case REVDIAL_EUNREACH: return why->reset == REVDIAL_RESET_CONNECT_TIMEOUT ? 504 : 502;
    case REVDIAL_EREFUSED:
    case REVDIAL_ERESET:
    case REVDIAL_ELOST: return 502;
    case REVDIAL_ENOBACKEND:
    case REVDIAL_EDRAINING:
    case REVDIAL_ENOMEM:
    case REVDIAL_ECLOSED: return 503;
    case REVDIAL_ELIMIT: return why->reset == REVDIAL_RESET_CALM ? 429 : 503;
    case REVDIAL_ETIMEDOUT: return 504;
    default: return 500;
    }
}
