// Reads routes and finds the one for a destination.
#include "routes.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hosts.h"

enum { PORT_MAX = 65535, NO_BITS = 128 };  // an address without bits is a network of one

// ------------------------------------------------------------------------------------------------
// Destinations

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static int is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

static int is_address(const char *host)
{
    unsigned char bytes[16];
    return inet_pton(AF_INET, host, bytes) == 1 || inet_pton(AF_INET6, host, bytes) == 1;
}

// Labels of letters between single dots.
static int is_host_name(const char *host)
{
    int in_label = 0;
    for (; *host; host++) {
        if (*host == '.' ? !in_label : !is_letter(*host)) return 0;
        in_label = *host != '.';
    }
    return in_label;
}

const char *route_host_set(route_host *out, const char *host, size_t len, int port)
{
    out->port = port;
    out->host[0] = '\0';
    if (len > 1 && host[len - 1] == '.') len--;
    if (len == 0) return "the host is missing";
    if (len >= ROUTE_HOST_SIZE - 2) return "no host name is that long";
    for (size_t i = 0; i < len; i++) out->host[i] = lower(host[i]);
    out->host[len] = '\0';
    if (strlen(out->host) == len && (is_host_name(out->host) || is_address(out->host))) return NULL;
    return "no host name or address";
}

// Returns -1 if it is no port.
static int port_parse(const char *text, size_t len)
{
    int port = 0;
    if (len == 0 || len > 5) return -1;
    for (size_t i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9') return -1;
        port = port * 10 + (text[i] - '0');
    }
    return port <= PORT_MAX ? port : -1;
}

// The length of what stands before the port and its colon.
static size_t host_length(const char *text, size_t len)
{
    const char *bracket = len > 0 && text[0] == '[' ? memchr(text, ']', len) : NULL;
    const char *from = bracket ? bracket : text;
    const char *colon = memchr(from, ':', len - (size_t)(from - text));
    return colon ? (size_t)(colon - text) : len;
}

const char *route_host_parse(route_host *out, const char *text, size_t len)
{
    size_t host_len = host_length(text, len);
    int has_port = host_len < len, port = -1;
    int is_v6 = host_len > 1 && text[0] == '[' && text[host_len - 1] == ']';
    const char *problem;
    if (has_port) port = port_parse(text + host_len + 1, len - host_len - 1);
    if (has_port && port < 0) return "a port is a number up to 65535";
    problem = route_host_set(out, text + is_v6, host_len - 2 * (size_t)is_v6, port);
    if (!problem && is_v6 && !strchr(out->host, ':')) return "brackets are for IPv6 addresses";
    return problem;
}

// "host:port", which the library's rules of allow lists and targets are.
static void join(const route_host *where, int port, char target[ROUTE_TARGET_SIZE])
{
    int is_v6 = strchr(where->host, ':') != NULL;
    snprintf(target, ROUTE_TARGET_SIZE, "%s%s%s:%d", is_v6 ? "[" : "", where->host,
             is_v6 ? "]" : "", port);
}

void route_host_target(const route_host *where, char target[ROUTE_TARGET_SIZE])
{
    target[0] = '\0';
    if (where->port > 0) join(where, where->port, target);
}

int route_is_name(const char *name, size_t len)
{
    size_t i = 0;
    while (i < len && (is_letter(name[i]) || name[i] == '.')) i++;
    return len > 0 && len < ROUTE_NAME_SIZE && i == len;
}

const char *route_target_problem(const char *target)
{
    const char *const only[] = {target, NULL};
    if (strlen(target) >= ROUTE_TARGET_SIZE) return "the target is too long in";
    // A target is a rule that allows just this target.
    if (strpbrk(target, "*?") || !revdial_target_allowed(only, target))
        return "a target is HOST:PORT or unix:/PATH in";
    return NULL;
}

// ------------------------------------------------------------------------------------------------
// Routes

enum route_kind { ROUTE_EXACT, ROUTE_WILD, ROUTE_NET, ROUTE_DEFAULT };  // in the order of search

struct route_row {
    enum route_kind kind;
    int weight;                    // within the kind: the letters of a name, the bits of a network
    int has_port;                  // else it fits any port
    size_t star;                   // WILD: where in `host` the * is
    char host[ROUTE_TARGET_SIZE];  // of the pattern, in lower case
    char rule[ROUTE_TARGET_SIZE];  // the pattern, in the form of an allow list
    char name[ROUTE_NAME_SIZE];    // may have a *
    char target[ROUTE_TARGET_SIZE];  // may have a *
    int has_target;
    char pick[PICK_SIZE];
};

static size_t count_of(const char *text, char c)
{
    size_t n = 0;
    for (; *text; text++) n += *text == c;
    return n;
}

// What a name or a target says when the * of the pattern has matched this. The * stands for one
// label of a host name. Returns 0 if it cannot.
static int expand(char *to, size_t size, const char *form, const char *matched, size_t len)
{
    const char *star = strchr(form, '*');
    int n;
    if (star && (len == 0 || memchr(matched, '.', len) || memchr(matched, ':', len))) return 0;
    if (star)
        n = snprintf(to, size, "%.*s%.*s%s", (int)(star - form), form, (int)len, matched, star + 1);
    else
        n = snprintf(to, size, "%s", form);
    return n >= 0 && (size_t)n < size;
}

// The pattern's host and ports. Returns NULL, or what is wrong.
static const char *pattern_parse(route_row *row, const char *pattern, size_t len)
{
    const char *problem, *colon, *bracket, *slash;
    size_t host_len;
    if (len == 0) return "the PATTERN is missing in";
    if (len + 3 > sizeof row->rule) return "the PATTERN is too long in";
    snprintf(row->rule, sizeof row->rule, "%.*s", (int)len, pattern);
    for (size_t i = 0; i < len; i++) row->rule[i] = lower(row->rule[i]);
    colon = strrchr(row->rule, ':');
    bracket = strrchr(row->rule, ']');
    row->has_port = colon && (!bracket || colon > bracket);
    host_len = row->has_port ? (size_t)(colon - row->rule) : len;
    memcpy(row->host, row->rule, host_len);
    row->host[host_len] = '\0';
    if (host_len > 1 && row->host[host_len - 1] == '.') row->host[--host_len] = '\0';
    if (!row->has_port) memcpy(row->rule + len, ":*", 3);
    if (strncmp(row->rule, "unix:", 5) == 0 || strchr(row->host, '?') ||
        count_of(row->host, '*') > 1)
        return "a PATTERN is a host name with at most one *, or a network like 10.0.0.0/8, in";
    problem = revdial_allow_problem(row->rule);
    if (problem) return strncmp(problem, "allow: ", 7) == 0 ? problem + 7 : problem;
    slash = strchr(row->host, '/');
    row->star = strcspn(row->host, "*");
    row->weight = (int)host_len;
    if (strcmp(row->host, "*") == 0)
        row->kind = ROUTE_DEFAULT;
    else if (slash || bracket || is_address(row->host))
        row->kind = ROUTE_NET;
    else
        row->kind = row->host[row->star] ? ROUTE_WILD : ROUTE_EXACT;
    if (row->kind == ROUTE_NET) row->weight = slash ? atoi(slash + 1) : NO_BITS;
    return NULL;
}

// "NAME[/TARGET]". Returns NULL, or what is wrong.
static const char *way_parse(route_row *row, const char *way)
{
    size_t len = strcspn(way, "/");
    int has_star = row->kind == ROUTE_WILD || row->kind == ROUTE_DEFAULT;
    char name[ROUTE_NAME_SIZE], target[ROUTE_TARGET_SIZE];
    if (len >= sizeof row->name) return "a NAME has at most 64 letters in";
    snprintf(row->name, sizeof row->name, "%.*s", (int)len, way);
    row->has_target = way[len] == '/';
    if (row->has_target && strlen(way + len + 1) >= sizeof row->target)
        return "the TARGET is too long in";
    if (row->has_target) strcpy(row->target, way + len + 1);
    if (!has_star && (strchr(row->name, '*') || strchr(row->target, '*')))
        return "a * in NAME or TARGET stands for what the * of PATTERN matched, and that has none:";
    if (count_of(row->name, '*') > 1 || count_of(row->target, '*') > 1)
        return "only one * may be in NAME, and one in TARGET, in";
    if (!expand(name, sizeof name, row->name, "x", 1) || !route_is_name(name, strlen(name)))
        return "the NAME must be 1 to 64 of a-z 0-9 . _ - in";
    if (!expand(target, sizeof target, row->target, "x", 1)) return "the TARGET is too long in";
    return target[0] ? route_target_problem(target) : NULL;
}

// Does a come before b?
static int is_before(const route_row *a, const route_row *b)
{
    if (a->kind != b->kind) return a->kind < b->kind;
    if (a->weight != b->weight) return a->weight > b->weight;
    return a->has_port > b->has_port;
}

const char *route_add(route_table *table, const char *spec)
{
    route_row row = {.kind = ROUTE_EXACT}, *rows;
    size_t len = strcspn(spec, "="), at = table->count;
    const char *problem;
    if (!spec[len]) return "is not PATTERN=NAME[/TARGET]:";
    problem = pattern_parse(&row, spec, len);
    if (!problem) problem = way_parse(&row, spec + len + 1);
    if (problem) return problem;
    for (size_t i = 0; i < table->count; i++)
        if (strcmp(table->rows[i].rule, row.rule) == 0) return "there are two routes for";
    rows = realloc(table->rows, (table->count + 1) * sizeof *rows);
    if (!rows) return "out of memory for";
    table->rows = rows;
    while (at > 0 && is_before(&row, &rows[at - 1])) at--;
    memmove(rows + at + 1, rows + at, (table->count - at) * sizeof *rows);
    rows[at] = row;
    table->count++;
    return NULL;
}

void route_pick(route_table *table, const char *spec, const char *rule)
{
    route_row row = {.kind = ROUTE_EXACT};
    if (pattern_parse(&row, spec, strcspn(spec, "=")) != NULL) return;
    for (size_t i = 0; i < table->count; i++)
        if (strcmp(table->rows[i].rule, row.rule) == 0) strcpy(table->rows[i].pick, rule);
}

void route_table_free(route_table *table)
{
    free(table->rows);
    if (table->lock) pthread_rwlock_destroy(table->lock);
    free(table->lock);
    *table = (route_table){0};
}

int route_table_share(route_table *table)
{
    pthread_rwlock_t *lock = malloc(sizeof *lock);
    errno = lock ? pthread_rwlock_init(lock, NULL) : ENOMEM;
    if (errno == 0)
        table->lock = lock;
    else
        free(lock);
    return table->lock ? 0 : -1;
}

void route_table_replace(route_table *table, route_table *from)
{
    route_row *old = table->rows;
    pthread_rwlock_wrlock(table->lock);
    table->rows = from->rows;
    table->count = from->count;
    pthread_rwlock_unlock(table->lock);
    free(old);
    *from = (route_table){0};
}

// Is the host in place of the pattern's *, and what stands before and behind it there?
static int wild_matches(const route_row *row, const route_host *where, const char **at, size_t *len)
{
    const char *suffix = row->host + row->star + 1;
    size_t suffix_len = strlen(suffix), host_len = strlen(where->host);
    if (host_len <= row->star + suffix_len || is_address(where->host)) return 0;
    *at = where->host + row->star;
    *len = host_len - row->star - suffix_len;
    return memcmp(where->host, row->host, row->star) == 0 && strcmp(*at + *len, suffix) == 0;
}

// The library compares networks and ports, as it does for an agent's allow list.
static int rule_matches(const route_row *row, const route_host *where)
{
    const char *const only[] = {row->rule, NULL};
    const route_host any = {"any", -1};  // which "*" is for, also if the client wants an address
    char target[ROUTE_TARGET_SIZE];
    if (row->has_port && where->port <= 0) return 0;
    join(row->kind == ROUTE_DEFAULT ? &any : where, row->has_port ? where->port : 1, target);
    return revdial_target_allowed(only, target);
}

static int row_matches(const route_row *row, const route_host *where, const char **at, size_t *len)
{
    *at = where->host;
    *len = strlen(where->host);
    switch (row->kind) {
    case ROUTE_EXACT:
        if (strcmp(row->host, where->host) != 0) return 0;
        break;
    case ROUTE_WILD:
        if (!wild_matches(row, where, at, len)) return 0;
        break;
    case ROUTE_NET: return is_address(where->host) && rule_matches(row, where);
    case ROUTE_DEFAULT: break;
    }
    return !row->has_port || rule_matches(row, where);
}

// Returns the row that fits and fills *out, or NULL.
static const route_row *find_locked(const route_table *table, const route_host *where,
                                    route_choice *out)
{
    for (size_t i = 0; i < table->count; i++) {
        const route_row *row = &table->rows[i];
        const char *at;
        size_t len;
        if (!row_matches(row, where, &at, &len) ||
            !expand(out->name, sizeof out->name, row->name, at, len) ||
            !expand(out->target, sizeof out->target, row->target, at, len))
            continue;
        out->has_target = row->has_target;
        out->is_default = row->kind == ROUTE_DEFAULT;
        memcpy(out->pick, row->pick, sizeof out->pick);
        return row;
    }
    return NULL;
}

// Does an agent have that host, by more of its letters than the row has, which may be NULL?
static int find_host_locked(const route_table *table, const route_host *where, const route_row *row,
                            route_choice *out)
{
    char name[ROUTE_NAME_SIZE];
    size_t len;
    if (!table->hosts || (row && row->kind == ROUTE_EXACT)) return 0;
    len = hosts_find(table->hosts, where->host, name);
    if (len == 0 || (row && row->kind == ROUTE_WILD && len <= (size_t)row->weight)) return 0;
    memset(out, 0, sizeof *out);
    strcpy(out->name, name);
    return 1;
}

int route_find(const route_table *table, const route_host *where, route_choice *out)
{
    const route_row *row;
    int is_found;
    if (table->lock) pthread_rwlock_rdlock(table->lock);
    row = find_locked(table, where, out);
    is_found = find_host_locked(table, where, row, out) || row;
    if (table->lock) pthread_rwlock_unlock(table->lock);
    return is_found;
}

enum route_verdict route_decide(const route_table *table, const route_host *where, const char *user,
                                route_choice *out)
{
    int is_found = route_find(table, where, out), is_named = user && *user;
    if (is_named && (!is_found || out->is_default)) {
        if (!route_is_name(user, strlen(user))) return ROUTE_BAD_NAME;
        strcpy(out->name, user);
        out->has_target = out->is_default = 0;
        out->pick[0] = '\0';
    } else if (!is_found) {
        return ROUTE_NEEDS_NAME;
    }
    if (!out->has_target) route_host_target(where, out->target);
    return ROUTE_FOUND;
}
