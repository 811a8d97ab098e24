// What of a request picks the agent that it goes to.
#include "http_conn.h"

// FNV-1a; 0 is no key.
static uint64_t key_hash(http_text key)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < key.len; i++) hash = (hash ^ (uint8_t)key.at[i]) * 0x100000001b3u;
    return key.len ? hash | 1 : 0;
}

// The client that a proxy of ours has it from: the last one of the list.
static http_text forwarded_for(const http_head *h)
{
    http_text client = {"", 0}, list;
    for (size_t i = 0; i < h->field_count; i++)
        if (h->fields[i].kind == HTTP_X_FORWARDED_FOR)
            for (list = h->fields[i].value; list.len;) client = http_list_next(&list);
    return client;
}

// By what an agent is picked for the request.
static http_text request_key(const http_conn *c, const http_head *h, const char *rule)
{
    const char *field = rule ? pick_header(rule) : NULL;
    if (!rule) return c->is_trusted ? forwarded_for(h) : (http_text){"", 0};
    for (size_t i = 0; field && i < h->field_count; i++)
        if (http_text_is(h->fields[i].name, field)) return h->fields[i].value;
    return field ? (http_text){"", 0} : h->host;
}

void http_conn_pick(http_conn *c, const http_head *h, const route_choice *to)
{
    revdial_dial_opts dial = {.pick = c->port_pick, .key = c->port_rule};
    const char *rule;
    if (*to->pick) pick_set(&dial, to->pick);
    rule = pick_rule(&dial);
    c->pick = dial.pick;
    c->key = 0;
    if (rule || c->pick == REVDIAL_PICK_CLIENT) c->key = key_hash(request_key(c, h, rule));
    if (rule && !c->key) c->pick = REVDIAL_PICK_ROUND_ROBIN;
    if (c->key) c->pick = REVDIAL_PICK_KEY;
}
