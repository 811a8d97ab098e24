// The threads of the front end --http, and what wakes them: sockets, time, and other threads. Each
// connection stays with one of them. An I/O thread of the library hands it over, and tells of the
// streams that it uses. These threads do not poll before they sleep, as the library's do: one
// request after the other on one connection took 146 us of both programs instead of 69 when they
// did, and not less time.
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "http_conn.h"

enum {
    HTTP_HEAD_MS = 10000,      // from its first byte; nginx has 60 s, for people with modems
    HTTP_IDLE_MS = 30000,      // until the stream ends; as long again until the connection does
    HTTP_LINGER_MS = 2000,     // a few round trips of any network
    HTTP_CUT_MS = 10,          // between two looks at what is on its way; as the library has it
    HTTP_RESPONSE_MS = 60000,  // until a response begins, as nginx has it
    HTTP_RULE_SIZE = 64        // of an address, a network, and what makes a rule of it
};

struct http_front {
    http_config config;
    _Atomic(revdial_proxy *) proxy;  // NULL: there is none yet
    http_thread **threads;
    unsigned count;
    atomic_uint next;     // thread
    atomic_long clients;  // connections there are
    long clients_max;
    int is_stopped;
    pthread_mutex_t lock;  // guards trusted
    char *trusted;         // NULL: nobody is
};

const http_config *http_config_of(const http_thread *t)
{
    return &t->front->config;
}

revdial_proxy *http_proxy_of(const http_thread *t)
{
    return atomic_load(&t->front->proxy);
}

static int64_t http_now_ms(void)
{
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

// ------------------------------------------------------------------------------------------------
// Lists, and connections in them

static void http_link_init(http_link *l)
{
    l->prev = l->next = l;
}

static void http_link_remove(http_link *l)
{
    l->prev->next = l->next;
    l->next->prev = l->prev;
    http_link_init(l);
}

static void http_link_add(http_link *list, http_link *l)
{
    http_link_remove(l);
    l->prev = list->prev;
    l->next = list;
    list->prev->next = l;
    list->prev = l;
}

static http_conn *http_of_again(http_link *l)
{
    return (http_conn *)(void *)((char *)l - offsetof(http_conn, again));
}

// All of one list wait equally long, so that the first is the first that is due.
void http_wait(http_conn *c, enum http_wait wait)
{
    http_thread *t = c->thread;
    c->wait = wait;
    c->until_ms = t->now_ms + t->wait_ms[wait];
    http_link_add(&t->waiting[wait], &c->link);
}

void http_again(http_conn *c)
{
    http_link_add(&c->thread->again, &c->again);
}

void http_came(http_conn *c)
{
    if (c->is_expected) revdial_proxy_expect(http_proxy_of(c->thread), -1);
    c->is_expected = 0;
}

void http_conn_free(http_conn *c)
{
    http_thread *t = c->thread;
    if (c->phase == HTTP_GONE) return;
    http_came(c);
    http_upstream_drop(c);
    http_side_close(&c->client);
    http_bytes_free(&c->request);
    http_bytes_free(&c->said);
    free(c->port_rule);
    http_link_remove(&c->link);
    http_link_remove(&c->again);
    revdial_proxy_leave(http_proxy_of(t), c->crowd, c->address);
    c->phase = HTTP_GONE;
    c->next = t->dead;  // events of this wait may still name it
    t->dead = c;
    atomic_fetch_sub(&t->front->clients, 1);
}

// ------------------------------------------------------------------------------------------------
// From other threads

// Is the client at that address, or in that network? An allow list has the same rules.
static int http_is_from(const char *client, http_text net)
{
    const char *slash = memchr(net.at, '/', net.len);
    size_t len = slash ? (size_t)(slash - net.at) : net.len;
    int is_v6 = memchr(net.at, ':', len) != NULL && *net.at != '[';
    char rule[HTTP_RULE_SIZE];
    const char *const rules[] = {rule, NULL};
    if (http_text_is(net, "unix:")) return strcmp(client, "unix") == 0;
    snprintf(rule, sizeof rule, "%s%.*s%s%.*s:*", is_v6 ? "[" : "", (int)len, net.at,
             is_v6 ? "]" : "", (int)(net.len - len), net.at + len);
    return revdial_target_allowed(rules, client);
}

// Before the library forgets the client.
static void http_expect(http_conn *c)
{
    revdial_proxy *p = http_proxy_of(c->thread);
    c->is_expected = p != NULL;
    if (p) revdial_proxy_expect(p, 1);
}

static void http_wake_locked(http_thread *t)
{
    if (!t->is_woken) t->is_woken = write(t->wake[1], "", 1) == 1;
}

void http_post_locked(http_upstream *u, const http_news *news)
{
    u->news = *news;
    u->next = u->thread->posted;
    u->thread->posted = u;
    http_wake_locked(u->thread);
}

// Is the client one of our proxies?
static int http_is_trusted(http_front *f, const char *client)
{
    http_text list = {"", 0};
    int is = 0;
    pthread_mutex_lock(&f->lock);
    if (f->trusted && !f->config.has_proxy_header) list.at = f->trusted;
    list.len = strlen(list.at);
    while (list.len && !is) is = http_is_from(client, http_list_next(&list));
    pthread_mutex_unlock(&f->lock);
    return is;
}

void http_trust(http_front *f, const char *trusted)
{
    char *copy = f ? strdup(trusted) : NULL;
    if (!f) return;
    pthread_mutex_lock(&f->lock);
    free(f->trusted);
    f->trusted = copy;  // if there is no memory, nobody is trusted
    pthread_mutex_unlock(&f->lock);
}

// A connection that one of the threads is to serve. NULL: there is no room for it.
static http_conn *http_conn_new(http_front *f, const revdial_route *r)
{
    http_conn *c = NULL;
    if (r->over) return NULL;
    if (atomic_fetch_add(&f->clients, 1) < f->clients_max) c = calloc(1, sizeof *c);
    if (!c || (r->len && http_bytes_append(&c->client.in, (const char *)r->data, r->len) != 0)) {
        atomic_fetch_sub(&f->clients, 1);
        free(c);
        return NULL;
    }
    http_link_init(&c->link);
    http_link_init(&c->again);
    c->client.fd = r->fd;
    c->crowd = r->crowd;
    snprintf(c->address, sizeof c->address, "%s", r->client);
    snprintf(c->local, sizeof c->local, "%s", r->local ? r->local : "");
    c->is_trusted = http_is_trusted(f, c->address);
    c->dial_timeout_ms = r->dial.timeout_ms;
    c->dial_flags = r->dial.flags;
    c->port_pick = r->dial.pick;
    if (pick_rule(&r->dial)) c->port_rule = strdup(pick_rule(&r->dial));
    if (pick_rule(&r->dial) && !c->port_rule) c->port_pick = REVDIAL_PICK_ROUND_ROBIN;
    c->thread = f->threads[atomic_fetch_add(&f->next, 1) % f->count];
    return c;
}

static int http_route(void *ud, revdial_route *r)
{
#define HTTP_FULL "\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    static const char full[] = "HTTP/1.1 503 Service Unavailable" HTTP_FULL;
    static const char too_many[] = "HTTP/1.1 429 Too Many Requests" HTTP_FULL;
    http_conn *c = http_conn_new(ud, r);
    if (!c) {
        int is_full = !r->over || front_status(r->over) == 503;
        r->reply = is_full ? full : too_many;
        r->reply_len = is_full ? sizeof full - 1 : sizeof too_many - 1;
        return REVDIAL_ROUTE_REFUSE;
    }
    http_expect(c);
    pthread_mutex_lock(&c->thread->lock);
    c->next = c->thread->arrived;
    c->thread->arrived = c;
    http_wake_locked(c->thread);
    pthread_mutex_unlock(&c->thread->lock);
    return REVDIAL_ROUTE_TAKE;
}

const front_kind front_http = {"http", http_route, NULL, 0};

int http_is_draining(http_thread *t)
{
    int is;
    pthread_mutex_lock(&t->lock);
    is = t->is_draining;
    pthread_mutex_unlock(&t->lock);
    return is;
}

// Takes the first upstream that there is news of. Returns NULL if there is none.
static http_upstream *http_posted_next(http_thread *t, http_news *news)
{
    http_upstream *u;
    pthread_mutex_lock(&t->lock);
    u = t->posted;
    if (u) {
        t->posted = u->next;
        *news = u->news;
    }
    pthread_mutex_unlock(&t->lock);
    return u;
}

static void http_arrived_start(http_thread *t, http_conn *c)
{
    while (c) {
        http_conn *next = c->next;
        c->next = NULL;
        if (http_side_open(t, &c->client, c->client.fd, c) == 0)
            http_conn_start(c);
        else
            http_conn_free(c);
        c = next;
    }
}

// No stream that leads there is used again.
static void http_leave_all(http_thread *t, const http_left *left)
{
    for (int i = 0; i < HTTP_WAIT_COUNT; i++) {
        http_link *list = &t->waiting[i], *l = list->next, *next;
        for (; l != list; l = next) {
            next = l->next;
            http_conn_leave((http_conn *)(void *)l, left);
        }
    }
}

void http_leave(http_front *f, revdial_session *session, const char *target)
{
    http_left left = {.session = session, .is_all = !target};
    snprintf(left.target, sizeof left.target, "%s", target ? target : "");
    for (unsigned i = 0; f && i < f->count; i++) {
        http_thread *t = f->threads[i];
        pthread_mutex_lock(&t->lock);
        if (t->left_count < HTTP_LEFT_MAX) {
            revdial_session_ref(session);
            t->left[t->left_count++] = left;
        }
        http_wake_locked(t);
        pthread_mutex_unlock(&t->lock);
    }
}

// Takes one of what drains or fails. Returns 0 if there is none.
static int http_left_next(http_thread *t, http_left *left)
{
    int is;
    pthread_mutex_lock(&t->lock);
    is = t->left_count > 0;
    if (is) *left = t->left[--t->left_count];
    pthread_mutex_unlock(&t->lock);
    return is;
}

// Idle connections end when the front end drains. For those whose next request has begun there may
// be dials to come, which are announced before the backends are told.
static void http_end_idle(http_thread *t)
{
    static const enum http_wait idle[] = {HTTP_WAIT_IDLE, HTTP_WAIT_IDLE_LONGER, HTTP_WAIT_HEAD};
    for (size_t i = 0; i < sizeof idle / sizeof *idle; i++) {
        http_link *list = &t->waiting[idle[i]], *l = list->next, *next;
        for (; l != list; l = next) {
            http_conn *c = (http_conn *)(void *)l;
            next = l->next;
            if (http_conn_is_idle(c))
                http_conn_free(c);
            else if (!t->has_drained && !c->is_expected)
                http_expect(c);
        }
    }
    if (t->has_drained) return;
    pthread_mutex_lock(&t->lock);
    t->has_drained = 1;
    pthread_cond_signal(&t->drained);
    pthread_mutex_unlock(&t->lock);
}

static void http_heed_others(http_thread *t)
{
    http_conn *arrived;
    http_upstream *u;
    http_news news;
    http_left left;
    char byte[16];
    while (read(t->wake[0], byte, sizeof byte) > 0) continue;
    pthread_mutex_lock(&t->lock);
    arrived = http_proxy_of(t) ? t->arrived : NULL;
    if (arrived) t->arrived = NULL;
    t->is_woken = 0;
    t->end_ms = t->stop_ms;
    pthread_mutex_unlock(&t->lock);
    http_arrived_start(t, arrived);
    while ((u = http_posted_next(t, &news)) != NULL) http_upstream_heed(u, &news);
    while (http_left_next(t, &left)) {
        http_leave_all(t, &left);
        revdial_session_unref(left.session);
    }
}

// ------------------------------------------------------------------------------------------------
// The loop

static void http_expire(http_thread *t)
{
    for (int i = 0; i < HTTP_WAIT_COUNT; i++) {
        http_link *list = &t->waiting[i];
        while (t->wait_ms[i] && list->next != list) {
            http_conn *c = (http_conn *)(void *)list->next;
            if (c->until_ms > t->now_ms) break;
            http_conn_expire(c);
        }
    }
}

static void http_run_again(http_thread *t)
{
    http_link turn;
    http_link_init(&turn);
    while (t->again.next != &t->again) http_link_add(&turn, t->again.next);
    while (turn.next != &turn) {
        http_conn *c = http_of_again(turn.next);
        http_link_remove(&c->again);
        http_conn_run(c);
    }
}

static void http_free_dead(http_thread *t)
{
    while (t->dead) {
        http_conn *c = t->dead;
        t->dead = c->next;
        free(c);
    }
}

// How long to wait for an event: until the first deadline, -1 = for ever.
static int http_patience_ms(const http_thread *t)
{
    int64_t least = -1;
    if (t->again.next != &t->again) return 0;
    if (t->end_ms) least = t->end_ms - t->now_ms;
    for (int i = 0; i < HTTP_WAIT_COUNT; i++) {
        const http_link *first = t->waiting[i].next;
        int64_t left;
        if (!t->wait_ms[i] || first == &t->waiting[i]) continue;
        left = ((const http_conn *)(const void *)first)->until_ms - t->now_ms;
        if (least < 0 || left < least) least = left;
    }
    return least > 1000 ? 1000 : least < 0 ? -1 : (int)least + 1;
}

void http_note_time(http_thread *t)
{
    t->now_ms = http_now_ms();
}

// Has the connections run whose streams have moved.
static void http_heed_streams(http_thread *t)
{
    http_conn *c;
    while ((c = revdial_pollset_next(t->set)) != NULL) {
        c->up->side.can_read = c->up->side.can_write = 1;
        http_conn_run(c);
    }
}

// Is the thread to go on? To the end it does for what is on its way to clients.
static int http_goes_on(http_thread *t)
{
    if (!t->end_ms) return 1;
    for (int i = 0; i < HTTP_WAIT_COUNT && t->now_ms < t->end_ms; i++)
        if (t->waiting[i].next != &t->waiting[i]) return 1;
    return 0;
}

static void *http_run(void *ud)
{
    http_thread *t = ud;
    do {
        if (http_events_wait(t, http_patience_ms(t))) http_heed_others(t);
        http_heed_streams(t);
        http_run_again(t);
        http_expire(t);
        if (http_is_draining(t)) http_end_idle(t);
        http_free_dead(t);
    } while (http_goes_on(t));
    return NULL;
}

// ------------------------------------------------------------------------------------------------
// Start and stop

static void http_thread_free(http_thread *t)
{
    http_news news;
    http_left left;
    http_upstream *u;
    if (!t) return;
    while ((u = http_posted_next(t, &news)) != NULL) http_upstream_heed(u, &news);
    while (http_left_next(t, &left)) revdial_session_unref(left.session);
    http_events_close(t);
    pthread_mutex_destroy(&t->lock);
    pthread_cond_destroy(&t->drained);
    free(t);
}

// Returns NULL with errno.
static http_thread *http_thread_new(http_front *f)
{
    http_thread *t = calloc(1, sizeof *t);
    sigset_t all, before;
    if (!t) return NULL;
    t->front = f;
    t->wait_ms[HTTP_WAIT_IDLE] = t->wait_ms[HTTP_WAIT_IDLE_LONGER] = HTTP_IDLE_MS;
    t->wait_ms[HTTP_WAIT_HEAD] = HTTP_HEAD_MS;
    t->wait_ms[HTTP_WAIT_RESPONSE] = HTTP_RESPONSE_MS;
    t->wait_ms[HTTP_WAIT_HALF_CLOSED] = f->config.half_closed_ms > 0 ? f->config.half_closed_ms : 0;
    t->wait_ms[HTTP_WAIT_LINGER] = HTTP_LINGER_MS;
    t->wait_ms[HTTP_WAIT_CUT] = HTTP_CUT_MS;
    for (int i = 0; i < HTTP_WAIT_COUNT; i++) http_link_init(&t->waiting[i]);
    http_link_init(&t->again);
    t->now_ms = http_now_ms();
    t->ep = t->wake[0] = t->wake[1] = -1;
    errno = pthread_cond_init(&t->drained, NULL);
    if (errno == 0) errno = pthread_mutex_init(&t->lock, NULL);
    if (errno == 0 && http_events_open(t) == 0) {
        sigfillset(&all);  // signals are for the main thread
        pthread_sigmask(SIG_SETMASK, &all, &before);
        errno = pthread_create(&t->thread, NULL, http_run, t);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (errno == 0) return t;
    }
    http_thread_free(t);
    return NULL;
}

http_front *http_start(const http_config *config)
{
    http_front *f = calloc(1, sizeof *f);
    struct rlimit limit = {1024, 1024};
    if (!f) return NULL;
    f->config = *config;
    pthread_mutex_init(&f->lock, NULL);
    getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur > LONG_MAX) limit.rlim_cur = LONG_MAX;
    f->clients_max = (long)(limit.rlim_cur / 8 * 7);  // a descriptor each
    f->threads = calloc(config->threads, sizeof *f->threads);
    while (f->threads && f->count < config->threads) {
        f->threads[f->count] = http_thread_new(f);
        if (!f->threads[f->count]) break;
        f->count++;
    }
    if (f->count == config->threads) return f;
    http_stop(f, 0);
    http_free(f);
    return NULL;
}

void http_use(http_front *f, revdial_proxy *proxy)
{
    if (!f) return;
    atomic_store(&f->proxy, proxy);
    for (unsigned i = 0; i < f->count; i++) {
        pthread_mutex_lock(&f->threads[i]->lock);
        http_wake_locked(f->threads[i]);
        pthread_mutex_unlock(&f->threads[i]->lock);
    }
}

static void http_tell(http_front *f, int64_t stop_ms)
{
    for (unsigned i = 0; i < f->count; i++) {
        http_thread *t = f->threads[i];
        pthread_mutex_lock(&t->lock);
        t->is_draining = 1;
        t->stop_ms = stop_ms;
        http_wake_locked(t);
        pthread_mutex_unlock(&t->lock);
    }
}

void http_drain(http_front *f)
{
    if (!f) return;
    http_tell(f, 0);
    for (unsigned i = 0; i < f->count; i++) {
        http_thread *t = f->threads[i];
        pthread_mutex_lock(&t->lock);
        while (!t->has_drained) pthread_cond_wait(&t->drained, &t->lock);
        pthread_mutex_unlock(&t->lock);
    }
}

int http_stop(http_front *f, int last_ms)
{
    int is_whole = 1;
    if (!f || f->is_stopped) return 1;
    f->is_stopped = 1;
    http_tell(f, http_now_ms() + last_ms);
    for (unsigned i = 0; i < f->count; i++) {
        http_thread *t = f->threads[i];
        pthread_join(t->thread, NULL);
        for (int k = 0; k < HTTP_WAIT_COUNT; k++)
            while (t->waiting[k].next != &t->waiting[k])
                is_whole &= http_conn_end((http_conn *)(void *)t->waiting[k].next);
        http_free_dead(t);
    }
    return is_whole;
}

void http_free(http_front *f)
{
    if (!f) return;
    for (unsigned i = 0; i < f->count; i++) http_thread_free(f->threads[i]);
    pthread_mutex_destroy(&f->lock);
    free(f->trusted);
    free(f->threads);
    free(f);
}
