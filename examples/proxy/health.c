// Makes health checks: a thread dials each agent in turn, some at one time, and tells the library
// which of them fail.
#include "health_check.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// ------------------------------------------------------------------------------------------------
// Agents

static health_check *agent_find(const health_agent *a, const char *target)
{
    for (unsigned i = 0; i < a->count; i++)
        if (strcmp(a->checks[i]->target, target) == 0) return a->checks[i];
    return NULL;
}

// A check of that agent, which is due. Without memory there is none.
static void agent_add(health *h, health_agent *a, const health_row *row, const char *target)
{
    size_t size = strlen(target) + 1;
    health_check *c = calloc(1, sizeof *c + size);
    if (!c) return;
    c->of = h;
    c->agent = a;
    c->row = row;
    c->due_ms = c->since_ms = h->now_ms;
    memcpy(c->target, target, size);
    a->checks[a->count++] = c;
}

// Ends the checks that the table does not have any more. Others stay as they are known, and are
// due.
static void agent_prune(health *h, health_agent *a)
{
    char target[ROUTE_TARGET_SIZE];
    for (unsigned i = 0; i < a->count; i++) a->checks[i]->row = NULL;
    for (size_t i = 0; i < h->table.count; i++) {
        const health_row *row = &h->table.rows[i];
        health_check *c = health_fits(row, a->name, target) ? agent_find(a, target) : NULL;
        if (c && !c->row) c->row = row;
    }
    for (unsigned i = 0; i < a->count; i++) {
        health_check *c = a->checks[i];
        if (c->row && c->step == HEALTH_RESTS) c->due_ms = h->now_ms;
        if (c->row) continue;
        a->checks[i--] = a->checks[--a->count];
        health_drop(h, c);
    }
}

// Has the agent checked as the table says.
static void agent_adopt(health *h, health_agent *a)
{
    char target[ROUTE_TARGET_SIZE];
    agent_prune(h, a);
    for (size_t i = 0; i < h->table.count && a->count < HEALTH_TARGETS; i++) {
        const health_row *row = &h->table.rows[i];
        if (health_fits(row, a->name, target) && !agent_find(a, target))
            agent_add(h, a, row, target);
    }
    health_note_due(h, a);
}

// Returns h->count if there is none.
static size_t slot_find(const health *h, uint64_t id)
{
    size_t i = 0;
    while (i < h->count && h->slots[i].id != id) i++;
    return i;
}

// Returns 0 without memory.
static int slots_grow(health *h)
{
    size_t room = h->room ? 2 * h->room : 16;
    health_slot *slots;
    if (h->count < h->room) return 1;
    slots = realloc(h->slots, room * sizeof *slots);
    if (!slots) return 0;
    h->slots = slots;
    h->room = room;
    return 1;
}

static uint32_t name_hash(const char *name)
{
    uint32_t hash = 0x811c9dc5u;  // FNV-1a
    for (; *name; name++) hash = (hash ^ (unsigned char)*name) * 0x01000193u;
    return hash;
}

static void agent_new(health *h, revdial_session *s)
{
    revdial_session_info info;
    health_agent *a;
    revdial_session_get_info(s, &info);
    if (info.is_peer || info.state == REVDIAL_DOWN || slot_find(h, info.id) < h->count) return;
    a = slots_grow(h) ? calloc(1, sizeof *a) : NULL;
    if (!a) return;
    a->session = revdial_session_ref(s);
    snprintf(a->name, sizeof a->name, "%s", info.name);
    snprintf(a->instance, sizeof a->instance, "%s", info.instance);
    a->hash = name_hash(a->name);
    a->label = watch_label(h->w, info.name);
    a->at = h->count++;
    h->slots[a->at] = (health_slot){INT64_MAX, info.id, a};
    agent_adopt(h, a);
}

static void agent_free(health *h, size_t at)
{
    health_agent *a = h->slots[at].agent;
    while (a->count > 0) health_drop(h, a->checks[--a->count]);
    h->slots[at] = h->slots[--h->count];
    h->slots[at].agent->at = at;
    revdial_session_unref(a->session);
    free(a);
}

static void agent_gone(health *h, revdial_session *s)
{
    revdial_session_info info;
    size_t at;
    revdial_session_get_info(s, &info);
    at = slot_find(h, info.id);
    if (at < h->count) agent_free(h, at);
}

// All that are there already, when the first rule comes.
static void agents_list(health *h)
{
    size_t total = revdial_proxy_list(h->proxy, NULL, NULL, 0), count;
    revdial_session **all = calloc(total + 1, sizeof *all);
    if (!all) return;
    count = revdial_proxy_list(h->proxy, NULL, all, total);
    for (size_t i = 0; i < count && i < total; i++) {
        agent_new(h, all[i]);
        revdial_session_unref(all[i]);
    }
    free(all);
}

// ------------------------------------------------------------------------------------------------
// The thread

static void table_adopt(health *h, health_table *next)
{
    health_table old = h->table;
    h->table = *next;
    for (size_t i = 0; i < h->count; i++) agent_adopt(h, h->slots[i].agent);
    health_table_free(&old);
}

static void events_free(health_event *first)
{
    while (first) {
        health_event *next = first->next;
        revdial_session_unref(first->session);
        free(first);
        first = next;
    }
}

// Returns 0 if the thread is to end.
static int heed_others(health *h)
{
    health_event *events;
    health_check *dialled;
    health_table table;
    char bytes[16];
    int has_table, is_stopping;
    while (read(h->wake[0], bytes, sizeof bytes) > 0) continue;
    pthread_mutex_lock(&h->inbox);
    events = h->first;
    h->first = NULL;
    h->last = &h->first;
    dialled = h->dialled;
    h->dialled = NULL;
    table = h->next_table;
    has_table = h->has_table;
    h->has_table = h->is_woken = 0;
    is_stopping = h->is_stopping;
    pthread_mutex_unlock(&h->inbox);
    while (dialled) {
        health_check *next = dialled->next;
        health_heed(h, dialled);
        dialled = next;
    }
    if (has_table) table_adopt(h, &table);
    for (health_event *e = events; e; e = e->next)
        e->state == REVDIAL_UP ? agent_new(h, e->session) : agent_gone(h, e->session);
    events_free(events);
    return !is_stopping;
}

// Is there room for one more check of that name? It has at most as many as are left for others, so
// that silent targets of a few names do not delay the checks of the rest.
static int has_room(const health *h, const health_agent *a)
{
    size_t own = 0;
    for (size_t i = 0; i < h->flying_count; i++) {
        const health_agent *other = h->flying[i]->agent;
        own += other->hash == a->hash && strcmp(other->name, a->name) == 0;
    }
    return h->flying_count + own < HEALTH_FLYING;
}

static void begin_due(health *h, health_agent *a)
{
    for (unsigned i = 0; i < a->count && has_room(h, a); i++)
        if (a->checks[i]->step == HEALTH_RESTS && a->checks[i]->due_ms <= h->now_ms)
            health_begin(h, a->checks[i]);
    health_note_due(h, a);
}

// Begins what is due, as far as there is room for it.
static void look(health *h)
{
    int64_t next = INT64_MAX;
    size_t looked = 0;
    if (h->now_ms < h->look_ms) return;
    for (; looked < h->count && h->flying_count < HEALTH_FLYING; looked++) {
        const size_t at = (h->turn + looked) % h->count;
        if (h->slots[at].due_ms <= h->now_ms) begin_due(h, h->slots[at].agent);
        if (h->slots[at].due_ms < next) next = h->slots[at].due_ms;
    }
    if (looked < h->count) next = 0;
    h->turn += looked;
    h->look_ms = next < h->now_ms + HEALTH_LOOK_MS ? h->now_ms + HEALTH_LOOK_MS : next;
}

static int patience_ms(const health *h)
{
    int64_t until = h->look_ms;
    for (size_t i = 0; i < h->flying_count; i++)
        if (h->flying[i]->step == HEALTH_READS && h->flying[i]->due_ms < until)
            until = h->flying[i]->due_ms;
    if (until == INT64_MAX) return -1;
    until -= health_now_ms();
    return until < 0 ? 0 : until < 60000 ? (int)until + 1 : 60000;
}

// Sleeps until others have something, an answer comes or a time is over.
static void sleep_until_news(health *h)
{
    revdial_pollfd items[1 + HEALTH_FLYING] = {{.fd = h->wake[0], .events = POLLIN}};
    size_t count = 1;
    for (size_t i = 0; i < h->flying_count; i++)
        if (h->flying[i]->step == HEALTH_READS)
            items[count++] = (revdial_pollfd){.st = h->flying[i]->st, .events = POLLIN};
    if (revdial_poll(items, count, patience_ms(h)) < 0) poll(NULL, 0, HEALTH_LOOK_MS);
}

static void read_all(health *h)
{
    health_check *all[HEALTH_FLYING];
    size_t count = h->flying_count;
    memcpy(all, h->flying, count * sizeof all[0]);
    for (size_t i = 0; i < count; i++)
        if (all[i]->step == HEALTH_READS) health_read(h, all[i]);
}

static void *run(void *ud)
{
    health *h = ud;
    int is_running = 1;
    pthread_mutex_lock(&h->lock);
    agents_list(h);
    while (is_running) {
        pthread_mutex_unlock(&h->lock);
        sleep_until_news(h);
        pthread_mutex_lock(&h->lock);
        h->now_ms = health_now_ms();
        is_running = heed_others(h);
        read_all(h);
        if (is_running) look(h);
    }
    pthread_mutex_unlock(&h->lock);
    return NULL;
}

// ------------------------------------------------------------------------------------------------
// From other threads

health *health_new(watch *w, prog_log *log)
{
    health *h = calloc(1, sizeof *h);
    if (!h) return NULL;
    h->w = w;
    h->log = log;
    h->last = &h->first;
    h->look_ms = INT64_MAX;
    h->now_ms = health_now_ms();
    h->seed = (uint64_t)h->now_ms ^ (uint64_t)getpid() << 32;
    pthread_mutex_init(&h->inbox, NULL);
    pthread_mutex_init(&h->lock, NULL);
    if (prog_pipe_open(h->wake) == 0) return h;
    health_free(h);
    return NULL;
}

int health_set(health *h, revdial_proxy *proxy, http_front *http, health_table *table)
{
    int must_start;
    pthread_mutex_lock(&h->inbox);
    must_start = !h->is_running && table->count > 0;
    if (h->is_running || must_start) {
        if (h->has_table) health_table_free(&h->next_table);
        h->next_table = *table;
        *table = (health_table){0};
        h->has_table = h->is_running = 1;
        health_wake_locked(h);
    }
    pthread_mutex_unlock(&h->inbox);
    if (!must_start) return 0;
    h->proxy = proxy;
    h->http = http;
    if (prog_thread_start(&h->thread, run, h) == 0) return 0;
    pthread_mutex_lock(&h->inbox);
    h->is_running = 0;
    pthread_mutex_unlock(&h->inbox);
    return -1;
}

void health_note(health *h, revdial_session *session, int state)
{
    health_event *e;
    if (state != REVDIAL_UP && state != REVDIAL_DOWN) return;
    pthread_mutex_lock(&h->inbox);
    e = h->is_running ? calloc(1, sizeof *e) : NULL;
    if (e) {
        e->session = revdial_session_ref(session);
        e->state = state;
        *h->last = e;
        h->last = &e->next;
        health_wake_locked(h);
    }
    pthread_mutex_unlock(&h->inbox);
}

void health_stop(health *h)
{
    int was_running;
    if (!h) return;
    pthread_mutex_lock(&h->inbox);
    was_running = h->is_running;
    h->is_running = 0;
    h->is_stopping = 1;
    health_wake_locked(h);
    pthread_mutex_unlock(&h->inbox);
    if (!was_running) return;
    pthread_join(h->thread, NULL);
    pthread_mutex_lock(&h->lock);
    while (h->count > 0) agent_free(h, h->count - 1);
    pthread_mutex_unlock(&h->lock);
}

void health_free(health *h)
{
    if (!h) return;
    for (health_check *c = h->dialled, *next; c; c = next) {  // those that were dropped
        next = c->next;
        revdial_close(c->dialled);
        free(c);
    }
    events_free(h->first);
    health_table_free(&h->table);
    if (h->has_table) health_table_free(&h->next_table);
    prog_pipe_close(h->wake);
    pthread_mutex_destroy(&h->inbox);
    pthread_mutex_destroy(&h->lock);
    free(h->slots);
    free(h);
}
