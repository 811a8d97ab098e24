// What may change while a program runs, and when its files have changed.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "config.h"

#ifdef __APPLE__  // where the fields of POSIX have other names
#define st_mtim st_mtimespec
#define st_ctim st_ctimespec
#endif

// Do two configurations say the same of this option?
static int prog_is_same(const prog_cli *a, const prog_cli *b, const prog_option *o)
{
    const void *in_a = prog_value_at(a, o), *in_b = prog_value_at(b, o);
    if (o->kind == PROG_LIST) {
        const prog_list *la = in_a, *lb = in_b;
        for (size_t i = 0; la->count == lb->count && i < la->count; i++)
            if (strcmp(la->items[i], lb->items[i]) != 0) return 0;
        return la->count == lb->count;
    }
    if (o->kind == PROG_TEXT || o->kind == PROG_PATH) {
        const char *ta = *(const char *const *)in_a, *tb = *(const char *const *)in_b;
        return ta && tb ? strcmp(ta, tb) == 0 : ta == tb;
    }
    if (o->kind == PROG_SPEED) return *(const uint64_t *)in_a == *(const uint64_t *)in_b;
    return *(const int *)in_a == *(const int *)in_b;
}

int prog_refuse_frozen(const prog_cli *now, const prog_cli *next)
{
    const prog_option *o;
    for (size_t i = 0; (o = prog_option_at(now, i)); i++)
        if (!(o->flags & (PROG_LIVE | PROG_NO_FILE)) && !prog_is_same(now, next, o))
            return prog_usage_error(next, o->name,
                                    "cannot change while the program runs: restart it", NULL);
    return 0;
}

// ------------------------------------------------------------------------------------------------
// Files that change. What a stat(2) tells is compared once a second, on every system alike. It
// follows the path anew each time, so that it sees a rename, a symbolic link on the way that leads
// elsewhere (`..data` of Kubernetes) and a file on a network disk. inotify(7) would need a watch on
// each directory and link on the way, a new set after each change, and does not see the last of
// these; what it saves is a few microseconds a second, and only with --watch.

static uint64_t prog_mix(uint64_t hash, uint64_t value)
{
    return (hash ^ value) * 0x100000001b3u;  // FNV-1a, a word at a time
}

static uint64_t prog_mix_time(uint64_t hash, struct timespec t)
{
    return prog_mix(prog_mix(hash, (uint64_t)t.tv_sec), (uint64_t)t.tv_nsec);
}

static uint64_t prog_mix_file(uint64_t hash, const char *path)
{
    struct stat st;
    memset(&st, 0, sizeof st);
    if (stat(path, &st) != 0) st.st_size = -1;
    if (S_ISDIR(st.st_mode)) return hash;  // what comes and goes in it is not what it says
    hash = prog_mix(hash, (uint64_t)st.st_ino);
    hash = prog_mix(hash, (uint64_t)st.st_size);
    hash = prog_mix_time(hash, st.st_mtim);
    return prog_mix_time(hash, st.st_ctim);  // which nobody can set back
}

static int prog_setting_is_file(const prog_setting *s)
{
    return s->option->kind == PROG_PATH || strcmp(s->option->name, "config") == 0;
}

// What all files that the options name look like from outside.
static uint64_t prog_files_hash(const prog_cli *cli)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < cli->given_count; i++)
        if (prog_setting_is_file(&cli->given[i])) hash = prog_mix_file(hash, cli->given[i].value);
    return hash;
}

static uint64_t prog_mix_refused(uint64_t hash, const prog_watch *w)
{
    for (size_t at = 0; at < w->refused_len; at += strlen(w->refused + at) + 1)
        hash = prog_mix_file(hash, w->refused + at);
    return hash;
}

void prog_watch_begin(prog_watch *w, const prog_cli *cli)
{
    prog_watch_end(w);
    w->taken = w->known = w->seen = prog_files_hash(cli);
}

void prog_watch_refuse(prog_watch *w, const prog_cli *refused)
{
    for (size_t i = 0; i < refused->given_count; i++) {
        const char *path = refused->given[i].value;
        size_t size = strlen(path) + 1;
        char *all = NULL;
        if (prog_setting_is_file(&refused->given[i]))
            all = realloc(w->refused, w->refused_len + size);
        if (!all) continue;
        w->refused = all;
        memcpy(all + w->refused_len, path, size);
        w->refused_len += size;
    }
    w->known = w->seen = prog_mix_refused(w->taken, w);
}

void prog_watch_end(prog_watch *w)
{
    free(w->refused);
    w->refused = NULL;
    w->refused_len = 0;
}

int prog_watch_look(prog_watch *w, const prog_cli *cli)
{
    uint64_t hash = prog_mix_refused(prog_files_hash(cli), w);
    int is_still = hash == w->seen;
    w->seen = hash;
    if (!is_still || hash == w->known) return 0;
    w->known = hash;
    return 1;
}
