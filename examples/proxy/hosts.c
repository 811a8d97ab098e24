// Which agents serve a host now.
#include "hosts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct hosts_row {
    uint64_t session;  // id
    char name[ROUTE_NAME_SIZE];
    char host[];  // in lower case, also "*.example"
};

// ------------------------------------------------------------------------------------------------
// Lists

// The next item of a comma list without the blanks around it; NULL at the end.
static const char *item_next(const char **list, size_t *len)
{
    const char *at = *list + strspn(*list, " \t");
    *len = strcspn(at, ",");
    *list = at + *len + (at[*len] == ',');
    while (*len > 0 && (at[*len - 1] == ' ' || at[*len - 1] == '\t')) --*len;
    return *len > 0 || at[*len] ? at : NULL;
}

// Writes an item in lower case. Returns NULL, or what is wrong with it.
static const char *item_parse(const char *item, size_t len, char host[ROUTE_HOST_SIZE])
{
    size_t star = len > 2 && item[0] == '*' && item[1] == '.' ? 2 : 0;
    route_host where;
    const char *problem = route_host_set(&where, item + star, len - star, -1);
    if (problem || strlen(where.host) + star >= ROUTE_HOST_SIZE)
        return "hosts: each is a host name, or *. and one, with commas between them";
    memcpy(host, item, star);
    strcpy(host + star, where.host);
    return NULL;
}

const char *hosts_problem(const char *list)
{
    char host[ROUTE_HOST_SIZE];
    const char *item, *problem = *list ? NULL : "hosts: there is none";
    size_t len;
    if (strlen(list) >= REVDIAL_LABEL_SIZE) return "hosts: over 1023 bytes";
    while (!problem && (item = item_next(&list, &len))) problem = item_parse(item, len, host);
    return problem;
}

// ------------------------------------------------------------------------------------------------
// The rows

// The first row that is not before this host and session.
static size_t first_from_locked(const host_table *h, const char *host, uint64_t session)
{
    size_t from = 0, to = h->count;
    while (from < to) {
        size_t middle = from + (to - from) / 2;
        const hosts_row *row = h->rows[middle];
        int order = strcmp(row->host, host);
        if (order < 0 || (order == 0 && row->session < session))
            from = middle + 1;
        else
            to = middle;
    }
    return from;
}

// Is there such a row at that place?
static int is_at_locked(const host_table *h, size_t at, const char *host, uint64_t session)
{
    return at < h->count && h->rows[at]->session == session && strcmp(h->rows[at]->host, host) == 0;
}

// Returns 0 without memory.
static int room_locked(host_table *h)
{
    size_t room = h->room ? 2 * h->room : 16;
    hosts_row **rows;
    if (h->count < h->room) return 1;
    rows = realloc(h->rows, room * sizeof *rows);
    if (!rows) return 0;
    h->rows = rows;
    h->room = room;
    return 1;
}

// Returns 0 without memory.
static int add_locked(host_table *h, const char *host, const revdial_session_info *info)
{
    size_t at = first_from_locked(h, host, info->id);
    hosts_row *row;
    if (is_at_locked(h, at, host, info->id)) return 1;  // the list has it twice
    row = room_locked(h) ? malloc(sizeof *row + strlen(host) + 1) : NULL;
    if (!row) return 0;
    row->session = info->id;
    strcpy(row->name, info->name);
    strcpy(row->host, host);
    memmove(h->rows + at + 1, h->rows + at, (h->count - at) * sizeof *h->rows);
    h->rows[at] = row;
    h->count++;
    return 1;
}

static void remove_locked(host_table *h, const char *host, uint64_t session)
{
    size_t at = first_from_locked(h, host, session);
    if (!is_at_locked(h, at, host, session)) return;
    free(h->rows[at]);
    h->count--;
    memmove(h->rows + at, h->rows + at + 1, (h->count - at) * sizeof *h->rows);
}

void hosts_change(host_table *h, const char *list, const revdial_session_info *agent, int is_up)
{
    char host[ROUTE_HOST_SIZE];
    const char *item;
    size_t len;
    int is_whole = 1;
    pthread_rwlock_wrlock(&h->lock);
    while ((item = item_next(&list, &len))) {
        if (item_parse(item, len, host)) continue;
        if (is_up)
            is_whole &= add_locked(h, host, agent);
        else
            remove_locked(h, host, agent->id);
    }
    pthread_rwlock_unlock(&h->lock);
    if (!is_whole)
        prog_logf(h->log, REVDIAL_LOG_ERROR, "host.failed", "no memory for the hosts of %s",
                  agent->name);
}

void hosts_note(host_table *h, revdial_session *session, int state)
{
    char label[REVDIAL_LABEL_SIZE];
    revdial_session_info info;
    if (revdial_session_get_label(session, label, sizeof label) <= 0) return;
    revdial_session_get_info(session, &info);
    hosts_change(h, label, &info, state == REVDIAL_UP);
}

// ------------------------------------------------------------------------------------------------
// The search

static int pick_locked(host_table *h, const char *host, char name[ROUTE_NAME_SIZE])
{
    size_t first = first_from_locked(h, host, 0);
    size_t count = first_from_locked(h, host, UINT64_MAX) - first;
    if (count == 0) return 0;
    strcpy(name, h->rows[first + atomic_fetch_add(&h->turn, 1) % count]->name);
    return 1;
}

size_t hosts_find(host_table *h, const char *host, char name[ROUTE_NAME_SIZE])
{
    char wild[ROUTE_HOST_SIZE + 1] = "*";
    size_t found = 0;
    pthread_rwlock_rdlock(&h->lock);
    if (h->count > 0 && pick_locked(h, host, name)) found = ROUTE_HOST_SIZE;
    for (const char *dot = host; h->count > 0 && !found && (dot = strchr(dot, '.')); dot++) {
        strcpy(wild + 1, dot);
        if (pick_locked(h, wild, name)) found = strlen(wild);
    }
    pthread_rwlock_unlock(&h->lock);
    return found;
}

int hosts_open(host_table *h, prog_log *log)
{
    errno = pthread_rwlock_init(&h->lock, NULL);
    if (errno == 0) h->log = log;
    return errno == 0 ? 0 : -1;
}

void hosts_free(host_table *h)
{
    if (!h->log) return;
    for (size_t i = 0; i < h->count; i++) free(h->rows[i]);
    free(h->rows);
    pthread_rwlock_destroy(&h->lock);
    h->log = NULL;
}
