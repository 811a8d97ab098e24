// Unix sockets that come and go with the agents.
#include "sockets.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "routes.h"

enum { RETRY_MS = 1000 };  // until a socket that could not be opened is tried again

static const char suffix[] = ".sock";

struct sockets_event {
    sockets_event *next;
    int state;         // REVDIAL_UP, _DRAINING or _DOWN
    uint64_t session;  // id
    char name[ROUTE_NAME_SIZE];
};

struct sockets_name {
    char name[ROUTE_NAME_SIZE];
    unsigned sessions;
    int64_t id;          // of the expose, 0 = none
    int has_failed;      // that was said
    int is_tried_again;  // after a while
};

// ------------------------------------------------------------------------------------------------
// The directory

// Is this a socket that nobody listens on?
static int is_dead(const char *path)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    struct stat kind;
    int fd, is_refused;
    if (strlen(path) >= sizeof at.sun_path || lstat(path, &kind) < 0 || !S_ISSOCK(kind.st_mode))
        return 0;
    strcpy(at.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0) return 0;
    fcntl(fd, F_SETFL, O_NONBLOCK);
    is_refused = connect(fd, (const struct sockaddr *)&at, sizeof at) < 0 && errno == ECONNREFUSED;
    close(fd);
    return is_refused;
}

// Is this file called as ours are?
static int is_ours(const char *file)
{
    size_t len = strlen(file), end = sizeof suffix - 1;
    return len > end && strcmp(file + len - end, suffix) == 0 && route_is_name(file, len - end);
}

// The path of a socket must be absolute. Allocated; NULL with errno.
static char *absolute(const char *dir)
{
    char here[4096];
    size_t size;
    char *path;
    if (!getcwd(here, sizeof here)) return NULL;
    if (dir[0] == '/') here[0] = '\0';
    size = strlen(here) + strlen(dir) + 2;
    path = malloc(size);
    if (path) snprintf(path, size, "%s%s%s", here, here[0] ? "/" : "", dir);
    return path;
}

int sockets_check(const char *dir, revdial_err *err)
{
    DIR *all = opendir(dir);
    if (!all) snprintf(err->msg, sizeof err->msg, "%s: %s", dir, strerror(errno));
    return all ? closedir(all) : -1;
}

int sockets_open(sockets *s, const char *dir, revdial_err *err)
{
    char path[sizeof((struct sockaddr_un *)0)->sun_path];
    const struct dirent *entry;
    DIR *all = opendir(dir);
    if (!all) {
        snprintf(err->msg, sizeof err->msg, "%s: %s", dir, strerror(errno));
        return -1;
    }
    while ((entry = readdir(all))) {
        int n = snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
        if (n < (int)sizeof path && is_ours(entry->d_name) && is_dead(path)) unlink(path);
    }
    closedir(all);
    s->dir = absolute(dir);
    if (!s->dir) {
        snprintf(err->msg, sizeof err->msg, "%s: %s", dir, strerror(errno));
        return -1;
    }
    s->last = &s->first;
    pthread_mutex_init(&s->lock, NULL);
    prog_cond_open(&s->changed);
    return 0;
}

// ------------------------------------------------------------------------------------------------
// The thread

// Where the name is or would be.
static size_t find(const sockets *s, const char *name)
{
    size_t from = 0, to = s->name_count;
    while (from < to) {
        size_t middle = from + (to - from) / 2;
        if (strcmp(s->names[middle].name, name) < 0)
            from = middle + 1;
        else
            to = middle;
    }
    return from;
}

// Returns NULL when out of memory.
static sockets_name *find_or_add(sockets *s, const char *name)
{
    size_t at = find(s, name);
    if (at < s->name_count && strcmp(s->names[at].name, name) == 0) return &s->names[at];
    if (s->name_count == s->name_room) {
        size_t room = s->name_room ? 2 * s->name_room : 16;
        sockets_name *names = realloc(s->names, room * sizeof *names);
        if (!names) return NULL;
        s->names = names;
        s->name_room = room;
    }
    memmove(s->names + at + 1, s->names + at, (s->name_count - at) * sizeof *s->names);
    s->name_count++;
    memset(&s->names[at], 0, sizeof s->names[at]);
    strcpy(s->names[at].name, name);
    return &s->names[at];
}

// Is the file gone, as when the directory was made anew? Then nobody reaches the socket.
static int is_gone(const char *path)
{
    struct stat kind;
    return lstat(path, &kind) != 0 && errno == ENOENT;
}

// Exposes it, or gives it other settings if it is exposed already.
static void expose(sockets *s, sockets_name *n)
{
    char address[4096];
    revdial_expose x;
    revdial_err err = {0};
    int64_t id;
    pthread_mutex_lock(&s->lock);
    x = s->like;
    pthread_mutex_unlock(&s->lock);
    snprintf(address, sizeof address, "unix:%s/%s%s", s->dir, n->name, suffix);
    if (n->id && is_gone(address + strlen("unix:"))) {
        revdial_proxy_unexpose(s->proxy, n->id, 0);
        n->id = 0;
    }
    x.listen = address;
    x.name = n->name;
    x.instead_of = n->id;
    id = revdial_proxy_expose(s->proxy, &x, &err);
    if (id > 0)
        n->id = id;
    else if (!n->has_failed)
        prog_log_error(s->log, n->id ? "socket.unchanged" : "socket.failed", &err);
    n->has_failed = id <= 0;
    // Where somebody else listens, each attempt would be a connection to them.
    n->is_tried_again = n->id == 0 && err.code == REVDIAL_ESYS && err.sys != EADDRINUSE;
}

// Those that the system did not give, and at HUP all.
static void expose_again(sockets *s, int is_changed)
{
    for (size_t i = 0; i < s->name_count; i++) {
        sockets_name *n = &s->names[i];
        if (is_changed) n->has_failed = 0;
        if (is_changed || n->is_tried_again) expose(s, n);
    }
}

// Takes the session out of those that drain. Returns 0 if it is not one of them.
static int forget_draining(sockets *s, uint64_t session)
{
    size_t i = 0;
    while (i < s->draining_count && s->draining[i] != session) i++;
    if (i == s->draining_count) return 0;
    s->draining[i] = s->draining[--s->draining_count];
    return 1;
}

// Returns 0 without memory.
static int note_draining(sockets *s, uint64_t session)
{
    uint64_t *all = realloc(s->draining, (s->draining_count + 1) * sizeof *all);
    if (!all) return 0;
    s->draining = all;
    all[s->draining_count++] = session;
    return 1;
}

// How the number of sessions that can be dialled changes: one that drains takes no new client.
static int change_of(sockets *s, const sockets_event *e)
{
    if (e->state == REVDIAL_UP) return 1;
    if (e->state == REVDIAL_DRAINING) return note_draining(s, e->session) ? -1 : 0;
    return forget_draining(s, e->session) ? 0 : -1;
}

static void apply(sockets *s, const sockets_event *e)
{
    const int change = change_of(s, e);
    sockets_name *n = find_or_add(s, e->name);
    if (!n) {
        prog_logf(s->log, REVDIAL_LOG_ERROR, "socket.failed", "no memory for the socket of %s",
                  e->name);
        return;
    }
    if (change > 0) n->sessions++;
    if (change < 0 && n->sessions > 0) n->sessions--;
    if (n->sessions > 0 && !n->id) expose(s, n);
    if (n->sessions > 0) return;
    if (n->id) revdial_proxy_unexpose(s->proxy, n->id, 0);
    s->name_count--;
    memmove(n, n + 1, (size_t)(s->names + s->name_count - n) * sizeof *n);
}

static sockets_event *take_all_locked(sockets *s)
{
    sockets_event *all = s->first;
    s->first = NULL;
    s->last = &s->first;
    return all;
}

static void apply_all(sockets *s, sockets_event *all)
{
    while (all) {
        sockets_event *next = all->next;
        apply(s, all);
        free(all);
        all = next;
    }
}

// Until there is something to do.
static void wait_locked(sockets *s)
{
    int r = 0, is_late = 0;
    for (size_t i = 0; i < s->name_count; i++) is_late |= s->names[i].is_tried_again;
    while (!s->first && !s->is_changed && !s->is_closing && r == 0)
        r = is_late ? prog_cond_wait(&s->changed, &s->lock, RETRY_MS)
                    : pthread_cond_wait(&s->changed, &s->lock);
}

static void *run(void *ud)
{
    sockets *s = ud;
    pthread_mutex_lock(&s->lock);
    while (!s->is_closing) {
        sockets_event *all = take_all_locked(s);
        int is_changed = s->is_changed;
        s->is_changed = 0;
        pthread_mutex_unlock(&s->lock);
        expose_again(s, is_changed);
        apply_all(s, all);
        pthread_mutex_lock(&s->lock);
        wait_locked(s);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

void sockets_note(sockets *s, revdial_session *session, int state)
{
    revdial_session_info info;
    sockets_event *e;
    if (!s->dir) return;
    revdial_session_get_info(session, &info);
    e = info.is_peer ? NULL : calloc(1, sizeof *e);
    if (!e) return;
    snprintf(e->name, sizeof e->name, "%s", info.name);
    e->state = state;
    e->session = info.id;
    pthread_mutex_lock(&s->lock);
    *s->last = e;
    s->last = &e->next;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

int sockets_start(sockets *s, revdial_proxy *proxy, const revdial_expose *like, prog_log *log)
{
    if (!s->dir) return 0;
    s->proxy = proxy;
    s->like = *like;
    s->log = log;
    errno = pthread_create(&s->thread, NULL, run, s);
    s->is_running = errno == 0;
    return s->is_running ? 0 : -1;
}

void sockets_replace(sockets *s, const revdial_expose *like)
{
    if (!s->is_running) return;
    pthread_mutex_lock(&s->lock);
    s->like = *like;
    s->is_changed = 1;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

void sockets_stop(sockets *s)
{
    if (!s->is_running) return;
    pthread_mutex_lock(&s->lock);
    s->is_closing = 1;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    s->is_running = 0;
}

void sockets_free(sockets *s)
{
    sockets_event *next;
    if (!s->dir) return;
    for (; s->first; s->first = next) {
        next = s->first->next;
        free(s->first);
    }
    free(s->names);
    free(s->draining);
    free(s->dir);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->changed);
}
