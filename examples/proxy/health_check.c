// One health check: a dial, and for HTTP the first bytes of the answer; and what follows from it.
#include "health_check.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int64_t health_now_ms(void)
{
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void health_wake_locked(health *h)
{
    if (!h->is_woken) h->is_woken = write(h->wake[1], "", 1) == 1;
}

// ------------------------------------------------------------------------------------------------
// What becomes of a check

// Its agent's slot may have to be looked at earlier.
void health_note_due(health *h, const health_agent *a)
{
    int64_t due = INT64_MAX;
    for (unsigned i = 0; i < a->count; i++)
        if (a->checks[i]->step == HEALTH_RESTS && a->checks[i]->due_ms < due)
            due = a->checks[i]->due_ms;
    h->slots[a->at].due_ms = due;
    if (due < h->look_ms) h->look_ms = due;
}

static void flying_remove(health *h, const health_check *c)
{
    for (size_t i = 0; i < h->flying_count; i++)
        if (h->flying[i] == c) h->flying[i--] = h->flying[--h->flying_count];
}

// The next one comes in a tenth more or less than the interval, so that those of agents that came
// together do not stay together.
static void check_rest(health *h, health_check *c)
{
    const int interval_ms = c->row->rule.interval_ms;
    h->seed = h->seed * 6364136223846793005u + 1442695040888963407u;
    flying_remove(h, c);
    revdial_close(c->st);
    c->st = NULL;
    c->step = HEALTH_RESTS;
    c->due_ms = h->now_ms + interval_ms - interval_ms / 10 +
                (int64_t)((h->seed >> 33) % (uint64_t)(interval_ms / 5 + 1));
    health_note_due(h, c->agent);
}

// One line for each change.
static void check_log(health *h, const health_check *c)
{
    revdial_session_info info;
    char msg[1024] = "", id[17];
    revdial_session_get_info(c->agent->session, &info);
    snprintf(id, sizeof id, "%016" PRIx64, info.id);
    revdial_log_field(msg, sizeof msg, "session", id);
    revdial_log_field(msg, sizeof msg, "name", c->agent->name);
    revdial_log_field(msg, sizeof msg, "instance", c->agent->instance);
    revdial_log_field(msg, sizeof msg, "target", c->target);
    revdial_log_field(msg, sizeof msg, "check", c->row->text);
    if (c->is_failing) revdial_log_field(msg, sizeof msg, "reason", c->why);
    prog_log_put(h->log, c->is_failing ? REVDIAL_LOG_WARN : REVDIAL_LOG_INFO,
                 c->is_failing ? "health.down" : "health.up", msg);
}

// Clients are kept from it, or not any more.
static void check_turn(health *h, health_check *c, int is_failing)
{
    const char *target = *c->target ? c->target : NULL;
    if (c->is_failing == is_failing) return;
    c->is_failing = is_failing;
    c->since_ms = h->now_ms;
    h->failing += is_failing ? 1 : (size_t)-1;
    watch_failing(h->w, c->agent->label, is_failing ? 1 : -1);
    revdial_proxy_avoid(h->proxy, c->agent->session, target, is_failing);
    if (is_failing) http_leave(h->http, c->agent->session, c->target);
}

// Its name may have got a label since: what fails counts for that from now on.
static void agent_relabel(health *h, health_agent *a)
{
    const size_t label = a->label ? a->label : watch_label(h->w, a->name);
    int failing = 0;
    if (label == a->label) return;
    for (unsigned i = 0; i < a->count; i++) failing += a->checks[i]->is_failing;
    watch_failing(h->w, a->label, -failing);
    watch_failing(h->w, label, failing);
    a->label = label;
}

// Takes one more result, why is NULL if it is good. The first one counts by itself.
static void check_judge(health *h, health_check *c, const char *why)
{
    const health_rule *rule = &c->row->rule;
    const int is_failing = why != NULL;
    agent_relabel(h, c->agent);
    watch_checked(h->w, c->agent->label, !is_failing);
    if (is_failing) snprintf(c->why, sizeof c->why, "%s", why);
    if (!c->is_known || c->is_failing != is_failing)
        c->streak++;
    else
        c->streak = 0;
    if (c->streak > 0 && (!c->is_known || c->streak >= (is_failing ? rule->fall : rule->rise))) {
        const int has_changed = c->is_failing != is_failing;
        c->streak = 0;
        c->is_known = 1;
        check_turn(h, c, is_failing);
        if (has_changed) check_log(h, c);
    }
    check_rest(h, c);
}

// What the first bytes of a response say.
static void check_judge_head(health *h, health_check *c)
{
    char why[HEALTH_WHY_SIZE];
    const char *status = c->head + 9;
    c->head[HEALTH_HEAD] = '\0';
    if (memcmp(c->head, "HTTP/1.", 7) != 0 || c->head[8] != ' ' ||
        strspn(status, "0123456789") != 3) {
        check_judge(h, c, "the answer is no HTTP");
        return;
    }
    snprintf(why, sizeof why, "the answer is %s", status);
    check_judge(h, c, *status == '2' || *status == '3' ? NULL : why);
}

static int is_interim(const char head[HEALTH_HEAD])
{
    return memcmp(head, "HTTP/1.", 7) == 0 && memcmp(head + 8, " 1", 2) == 0 &&
           memcmp(head + 8, " 101", 4) != 0;
}

// Takes bytes of the answer. Returns whether its status is there. Heads that only announce it are
// passed over, as 103 (RFC 9110 section 15.2).
static int check_take(health_check *c, const char *data, size_t len)
{
    static const char blank[] = "\r\n\r\n";
    c->bytes += len;
    for (size_t i = 0; i < len; i++) {
        if (c->passing > 0) {
            c->passing = data[i] == blank[c->passing - 1] ? c->passing + 1 : 1 + (data[i] == '\r');
            if (c->passing == sizeof blank) c->passing = 0;
            continue;
        }
        c->head[c->got++] = data[i];
        if (c->got < HEALTH_HEAD) continue;
        if (!is_interim(c->head)) return 1;
        c->got = 0;
        c->passing = 1;
    }
    return 0;
}

void health_read(health *h, health_check *c)
{
    char data[512];
    ptrdiff_t n = revdial_read(c->st, data, sizeof data);
    if (n > 0 && check_take(c, data, (size_t)n))
        check_judge_head(h, c);
    else if (c->bytes > HEALTH_BYTES)
        check_judge(h, c, "it announces an answer, and none comes");
    else if (n == 0)
        check_judge(h, c, "it ended before an answer");
    else if (n == REVDIAL_ERESET)
        check_judge(h, c, "it was reset before an answer");
    else if (n < 0 && n != REVDIAL_EAGAIN)
        check_rest(h, c);  // the session is over
    else if (c->due_ms <= h->now_ms)
        check_judge(h, c, "no answer in time");
}

// ------------------------------------------------------------------------------------------------
// Dials

// On an I/O thread.
static void check_on_dial(void *ud, revdial_stream *st, const revdial_err *err)
{
    health_check *c = ud;
    health *h = c->of;
    pthread_mutex_lock(&h->inbox);
    c->dialled = st;
    c->code = st ? REVDIAL_OK : err->code;
    snprintf(c->said, sizeof c->said, "%s", st ? "" : err->msg);
    c->next = h->dialled;
    h->dialled = c;
    health_wake_locked(h);
    pthread_mutex_unlock(&h->inbox);
}

void health_begin(health *h, health_check *c)
{
    char request[HEALTH_REQUEST_SIZE];
    revdial_dial_opts opts = {.timeout_ms = c->row->rule.timeout_ms, .session = c->agent->session};
    if (*c->target) opts.target = c->target;
    opts.early = request;
    opts.early_len = health_request(c->row, c->agent->name, c->target, request);
    c->began_ms = h->now_ms;
    c->got = c->bytes = 0;
    c->passing = 0;
    c->dial = revdial_dial_async(h->proxy, c->agent->name, &opts, check_on_dial, c);
    if (c->dial < 0) {
        check_rest(h, c);
        return;
    }
    c->step = HEALTH_DIALS;
    h->flying[h->flying_count++] = c;
}

// Does the error say something about the target, and not about the session or this proxy?
static int is_verdict(int code)
{
    return code == REVDIAL_EREFUSED || code == REVDIAL_EUNREACH || code == REVDIAL_EDENIED ||
           code == REVDIAL_ETIMEDOUT;
}

void health_heed(health *h, health_check *c)
{
    revdial_stream *st = c->dialled;
    c->dialled = NULL;
    if (c->step == HEALTH_DROPPED) {
        revdial_close(st);
        free(c);
        return;
    }
    c->st = st;
    if (st && strcmp(c->row->text, "tcp") != 0) {
        c->step = HEALTH_READS;
        c->due_ms = c->began_ms + c->row->rule.timeout_ms;
        revdial_stream_set_deadline(st, REVDIAL_RD, 0);
        health_read(h, c);
    } else if (st || is_verdict(c->code)) {
        check_judge(h, c, st ? NULL : c->said);
    } else {
        check_rest(h, c);
    }
}

void health_drop(health *h, health_check *c)
{
    check_turn(h, c, 0);
    flying_remove(h, c);
    revdial_close(c->st);
    if (c->step != HEALTH_DIALS) {
        free(c);
        return;
    }
    c->step = HEALTH_DROPPED;
    revdial_dial_cancel(h->proxy, c->dial);
}
