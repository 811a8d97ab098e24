// What the proxy has counted, by names that its configuration mentions.
#ifndef REVDIAL_PROXY_WATCH_H
#define REVDIAL_PROXY_WATCH_H

#include "../program/admin.h"

typedef struct watch watch;

// Returns NULL when out of memory.
watch *watch_new(void);
void watch_free(watch *w);
// Metrics may have this label from now on; names beyond the first 1000 do not get one, so that no
// stranger can fill the memory of what scrapes them. Sessions of the name that are up count for it
// from now on.
void watch_name(watch *w, const char *name);
// The same for the names of a table's rows that are no globs.
void watch_rows(watch *w, const revdial_credential *rows, size_t count);
// From on_session of the proxy.
void watch_session(watch *w, revdial_session *s, int state, const revdial_err *why);
// The label of an agent's name, for:
size_t watch_label(watch *w, const char *name);
// A health check has succeeded or failed.
void watch_checked(watch *w, size_t label, int is_good);
// One more or one less of its targets fails.
void watch_failing(watch *w, size_t label, int change);
// Writes the metrics of a proxy.
void watch_metrics(watch *w, revdial_proxy *p, prog_out *out);

#endif  // REVDIAL_PROXY_WATCH_H
