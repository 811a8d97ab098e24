// What --admin says of health checks.
#include <inttypes.h>

#include "health_check.h"

static void check_status(prog_out *out, const health_check *c, uint64_t session)
{
    prog_out_add(out, "{\"session\":\"%016" PRIx64 "\",\"name\":", session);
    prog_out_json(out, c->agent->name);
    prog_out_add(out, ",\"instance\":");
    prog_out_json(out, c->agent->instance);
    prog_out_add(out, ",\"target\":");
    prog_out_json(out, c->target);
    prog_out_add(out, ",\"check\":");
    prog_out_json(out, c->row->text);
    prog_out_add(out, ",\"since_ms\":%" PRId64 ",\"reason\":", health_now_ms() - c->since_ms);
    prog_out_json(out, c->why);
    prog_out_add(out, "}");
}

void health_status(health *h, prog_out *out, size_t limit)
{
    size_t checks = 0, shown = 0;
    pthread_mutex_lock(&h->lock);
    for (size_t i = 0; i < h->count; i++) checks += h->slots[i].agent->count;
    prog_out_add(out, ",\"health\":{\"checks_total\":%zu,\"failing_total\":%zu,\"failing\":[",
                 checks, h->failing);
    for (size_t i = 0; i < h->count && shown < h->failing && shown < limit; i++) {
        const health_agent *a = h->slots[i].agent;
        for (unsigned k = 0; k < a->count && shown < limit; k++) {
            if (!a->checks[k]->is_failing) continue;
            prog_out_add(out, shown++ > 0 ? ",\n" : "\n");
            check_status(out, a->checks[k], h->slots[i].id);
        }
    }
    prog_out_add(out, "]}");
    pthread_mutex_unlock(&h->lock);
}

void health_status_table(health *h, prog_out *out, size_t limit)
{
    static const char *const heads[] = {"FAILING CHECK", "NAME",   "INSTANCE", "TARGET",
                                        "SINCE",         "REASON", NULL};
    prog_table t = {0};
    size_t shown = 0;
    pthread_mutex_lock(&h->lock);
    prog_table_heads(&t, heads);
    for (size_t i = 0; i < h->count && shown < h->failing && shown < limit; i++) {
        const health_agent *a = h->slots[i].agent;
        for (unsigned k = 0; k < a->count && shown < limit; k++) {
            const health_check *c = a->checks[k];
            if (!c->is_failing) continue;
            prog_table_cell(&t, "%s", c->row->text);
            prog_table_cell(&t, "%s", a->name);
            prog_table_cell(&t, "%s", a->instance);
            prog_table_cell(&t, "%s", *c->target ? c->target : "-");
            prog_table_time(&t, health_now_ms() - c->since_ms);
            prog_table_cell(&t, "%s", c->why);
            shown++;
        }
    }
    pthread_mutex_unlock(&h->lock);
    if (shown) {
        prog_out_add(out, "\n");
        prog_table_end(&t, out);
    }
    prog_out_free(&t.cells);
}
