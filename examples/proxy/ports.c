// Ports that come and go at the admin port, and all ports as it shows them.
#include "ports.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int ports_refuse(prog_out *out, int status, const char *why)
{
    prog_out_add(out, "%s\n", why);
    return status;
}

// The HTTP status for a port that cannot be had.
static int ports_status_of(const revdial_err *err)
{
    switch (err->code) {
    case REVDIAL_EINVAL: return 400;
    case REVDIAL_EDRAINING:
    case REVDIAL_ECLOSED: return 503;
    case REVDIAL_ESYS: break;
    default: return 500;
    }
    if (err->sys == EADDRINUSE) return 409;
    return err->sys == EACCES || err->sys == EPERM ? 403 : 500;
}

// Takes a spec apart. Returns 200 or the status of a refusal.
static int ports_read(ports_one *one, revdial_proxy *proxy, const config *now, const char *spec,
                      prog_out *out)
{
    const char *problem;
    memcpy(one->spec, spec, strlen(spec) + 1);
    if (strncmp(spec, "fd:", 3) == 0 || strncmp(spec, "systemd:", 8) == 0)
        return ports_refuse(out, 403, "only the configuration takes sockets of a supervisor");
    problem = config_expose_one(now, &one->x, one->spec);
    if (problem) {
        prog_out_add(out, "%s \"%s\"\n", problem, spec);
        return 400;
    }
    if (revdial_proxy_list(proxy, one->x.name, NULL, 0) > 0) return 200;
    prog_out_add(out, "no agent of the name %s is connected\n", one->x.name);
    return 404;
}

static int ports_expose(ports *p, revdial_proxy *proxy, ports_one *one, prog_out *out)
{
    revdial_err err = {0};
    if (p->count == PORTS_MAX)
        return ports_refuse(out, 503, "there are 256 ports that were opened here: close one");
    one->x.id = revdial_proxy_expose(proxy, &one->x.x, &err);
    if (one->x.id <= 0) {
        prog_out_add(out, "%s\n", err.msg);
        return ports_status_of(&err);
    }
    revdial_proxy_expose_address(proxy, one->x.id, one->x.address, sizeof one->x.address);
    p->list[p->count++] = one;
    prog_out_add(out, "{\"id\":%" PRId64 ",\"listen\":", one->x.id);
    prog_out_json(out, one->x.address);
    prog_out_add(out, "}\n");
    return 200;
}

int ports_open(ports *p, revdial_proxy *proxy, const config *now, const char *spec, prog_out *out)
{
    ports_one *one = calloc(1, sizeof *one + strlen(spec) + 1);
    int status = one ? ports_read(one, proxy, now, spec, out) : 500;
    if (status == 200) status = ports_expose(p, proxy, one, out);
    if (status != 200) free(one);
    return status;
}

static void ports_remove(ports *p, size_t i)
{
    free(p->list[i]);
    p->list[i] = p->list[--p->count];
}

int ports_close(ports *p, revdial_proxy *proxy, const config *now, int64_t id, prog_out *out)
{
    for (size_t i = 0; i < p->count; i++) {
        if (p->list[i]->x.id != id) continue;
        revdial_proxy_unexpose(proxy, id, 0);
        ports_remove(p, i);
        prog_out_add(out, "{\"closed\":true}\n");
        return 200;
    }
    for (size_t i = 0; i < now->expose_count; i++)
        if (now->exposes[i].id == id)
            return ports_refuse(out, 403,
                                "the configuration has this port: remove it there, and send HUP");
    return ports_refuse(out, 404, "no such port: it may be closed, or ?id=ID is missing");
}

// ------------------------------------------------------------------------------------------------
// A reload

int64_t ports_take(ports *p, const char *address)
{
    for (size_t i = 0; i < p->count; i++) {
        ports_one *one = p->list[i];
        if (one->is_taken || strcmp(one->x.address, address) != 0) continue;
        one->is_taken = 1;
        return one->x.id;
    }
    return 0;
}

// Limits on who may connect have to hold for all ports.
static void ports_renew(ports_one *one, revdial_proxy *proxy, const config *now, prog_log *log)
{
    revdial_err err = {0};
    int64_t id;
    config_expose_set(now, &one->x);
    one->x.x.instead_of = one->x.id;
    id = revdial_proxy_expose(proxy, &one->x.x, &err);
    if (id > 0) one->x.id = id;
    if (id <= 0) prog_log_error(log, "expose.unchanged", &err);
}

void ports_settle(ports *p, revdial_proxy *proxy, const config *now, int is_good, prog_log *log)
{
    for (size_t i = p->count; i-- > 0;) {
        ports_one *one = p->list[i];
        if (is_good && one->is_taken)
            ports_remove(p, i);
        else if (is_good)
            ports_renew(one, proxy, now, log);
        else
            one->is_taken = 0;
    }
}

void ports_free(ports *p)
{
    while (p->count > 0) ports_remove(p, 0);
}

// ------------------------------------------------------------------------------------------------
// What there is

// The port at that place, those of the configuration first; NULL behind the last.
static const expose *ports_at(const ports *p, const config *now, size_t i)
{
    if (i < now->expose_count) return &now->exposes[i];
    i -= now->expose_count;
    return i < p->count ? &p->list[i]->x : NULL;
}

// Who opened the port at that place.
static const char *ports_origin(const config *now, size_t i)
{
    return i < now->expose_count ? "configuration" : "admin";
}

void ports_status(const ports *p, revdial_proxy *proxy, const config *now, size_t limit,
                  prog_out *out)
{
    const expose *x;
    prog_out_add(out, ",\"ports_total\":%zu,\"ports\":[", now->expose_count + p->count);
    for (size_t i = 0; i < limit && (x = ports_at(p, now, i)); i++) {
        char at[ADDRESS_SIZE] = "";
        revdial_proxy_expose_address(proxy, x->id, at, sizeof at);
        prog_out_add(out, "%s\n{\"id\":%" PRId64 ",\"listen\":", i > 0 ? "," : "", x->id);
        prog_out_json(out, at);
        prog_out_add(out, ",\"option\":\"%s\",\"name\":\"%s\",\"target\":", x->option,
                     x->x.name ? x->name : "");
        prog_out_json(out, x->x.dial.target ? x->x.dial.target : "");
        prog_out_add(out, ",\"from\":\"%s\"}", ports_origin(now, i));
    }
    prog_out_add(out, "]");
}

void ports_table(const ports *p, revdial_proxy *proxy, const config *now, size_t limit,
                 prog_out *out)
{
    static const char *const heads[] = {"PORT",   "LISTENS ON", "OPTION", "NAME",
                                        "TARGET", "FROM",       NULL};
    prog_table t = {0};
    const expose *x;
    if (!ports_at(p, now, 0)) return;
    prog_table_heads(&t, heads);
    for (size_t i = 0; i < limit && (x = ports_at(p, now, i)); i++) {
        char at[ADDRESS_SIZE] = "";
        revdial_proxy_expose_address(proxy, x->id, at, sizeof at);
        prog_table_cell(&t, "%" PRId64, x->id);
        prog_table_cell(&t, "%s", at);
        prog_table_cell(&t, "%s", x->option);
        prog_table_cell(&t, "%s", x->x.name ? x->name : "-");
        prog_table_cell(&t, "%s", x->x.dial.target ? x->x.dial.target : "-");
        prog_table_cell(&t, "%s", ports_origin(now, i));
    }
    prog_out_add(out, "\n");
    prog_table_end(&t, out);
}
