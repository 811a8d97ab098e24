// What is to be checked: the rules of ports and routes, and the agents that they are about.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "health.h"

static const char health_prefix[] = "http:";

// The path of an HTTP check, or NULL. Its host is in *host, len 0 = none.
static const char *path_of(const char *how, const char **host, size_t *len)
{
    const char *rest;
    *host = "";
    *len = 0;
    if (strncmp(how, health_prefix, sizeof health_prefix - 1) != 0) return NULL;
    rest = how + sizeof health_prefix - 1;
    if (strncmp(rest, "//", 2) != 0) return rest;
    *host = rest + 2;
    *len = strcspn(*host, "/");
    return *host + *len;
}

static int is_path(const char *path)
{
    size_t i = 0;
    while (path[i] > ' ' && path[i] < 0x7f) i++;
    return path[0] == '/' && !path[i];
}

const char *health_problem(const char *how)
{
    route_host where;
    const char *host, *path;
    size_t len;
    if (strlen(how) >= HEALTH_HOW_SIZE) return "too long:";
    if (strcmp(how, "none") == 0 || strcmp(how, "tcp") == 0) return NULL;
    path = path_of(how, &host, &len);
    if (!path) return "not one of none|tcp|http:/PATH|http://HOST/PATH:";
    if (!is_path(path)) return "the path must begin with / and have no blanks:";
    return len ? route_host_parse(&where, host, len) : NULL;
}

// Finds the * of a form; NULL: it has none.
static const char *star_of(const char *form)
{
    return strchr(form, '*');
}

int health_add(health_table *table, const char *way, const health_rule *rule)
{
    health_row row = {.rule = *rule}, *rows;
    size_t len = strcspn(way, "/");
    if (!rule->how || strcmp(rule->how, "none") == 0) return 0;
    snprintf(row.name, sizeof row.name, "%.*s", (int)len, way);
    snprintf(row.target, sizeof row.target, "%s", way[len] ? way + len + 1 : "");
    snprintf(row.text, sizeof row.text, "%s", rule->how);
    row.rule.how = NULL;
    if (star_of(row.target) && !star_of(row.name)) return 0;  // only a client knows where it leads
    for (size_t i = 0; i < table->count; i++)
        if (strcmp(table->rows[i].name, row.name) == 0 &&
            strcmp(table->rows[i].target, row.target) == 0)
            return 0;
    rows = realloc(table->rows, (table->count + 1) * sizeof *rows);
    if (!rows) return -1;
    rows[table->count++] = row;
    table->rows = rows;
    return 0;
}

void health_table_free(health_table *table)
{
    free(table->rows);
    *table = (health_table){0};
}

int health_fits(const health_row *row, const char *name, char target[ROUTE_TARGET_SIZE])
{
    const char *star = star_of(row->name), *to = star_of(row->target);
    size_t before = star ? (size_t)(star - row->name) : 0, after = star ? strlen(star + 1) : 0;
    size_t len = strlen(name);
    if (!star && strcmp(row->name, name) != 0) return 0;
    if (star && (len <= before + after || strncmp(name, row->name, before) != 0 ||
                 strcmp(name + len - after, star + 1) != 0))
        return 0;
    if (!to) {
        strcpy(target, row->target);
        return 1;
    }
    return snprintf(target, ROUTE_TARGET_SIZE, "%.*s%.*s%s", (int)(to - row->target), row->target,
                    (int)(len - before - after), name + before, to + 1) < ROUTE_TARGET_SIZE;
}

size_t health_request(const health_row *row, const char *name, const char *target,
                      char request[HEALTH_REQUEST_SIZE])
{
    const char *host, *path;
    size_t len;
    int n;
    path = path_of(row->text, &host, &len);
    if (!path) return 0;
    if (len == 0) {
        host = *target && strncmp(target, "unix:", 5) != 0 ? target : name;
        len = strlen(host);
    }
    n = snprintf(request, HEALTH_REQUEST_SIZE,
                 "GET %s HTTP/1.1\r\nHost: %.*s\r\nUser-Agent: revdial-proxy\r\nAccept: */*\r\n"
                 "Connection: close\r\n\r\n",
                 path, (int)len, host);
    return n > 0 && n < HEALTH_REQUEST_SIZE ? (size_t)n : 0;
}
