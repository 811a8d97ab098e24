// The log: lines in the form that was asked for, and the thread that writes them.
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "program.h"

typedef struct prog_line {
    char text[PROG_LINE_SIZE];
    size_t len;
} prog_line;

// ------------------------------------------------------------------------------------------------
// Lines

// Appends text if all of it fits beside what ends a line. Returns 0 if it did not.
static int prog_line_put(prog_line *line, const char *text, size_t len)
{
    if (len > sizeof line->text - 3 - line->len) return 0;
    memcpy(line->text + line->len, text, len);
    line->len += len;
    return 1;
}

static void prog_line_time(char text[48])
{
    char day[32];
    struct timespec now = {0};
    struct tm utc = {0};
    text[0] = '\0';
    if (clock_gettime(CLOCK_REALTIME, &now) != 0 || !gmtime_r(&now.tv_sec, &utc)) return;
    if (strftime(day, sizeof day, "%Y-%m-%dT%H:%M:%S", &utc) == 0) return;
    snprintf(text, 48, "%s.%03ldZ", day, now.tv_nsec / 1000000);
}

// The end of the value that begins here: a word, or a string in quotes.
static const char *prog_value_end(const char *at)
{
    if (*at != '"') return at + strcspn(at, " ");
    for (at++; *at && *at != '"'; at++)
        if (*at == '\\' && at[1]) at++;
    return at + (*at == '"');
}

// Is it one of the keys whose value is a number?
static int prog_key_counts(const char *key, size_t len)
{
    static const char *const ends[] = {"_ms", "_bytes", "_count"};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        size_t n = strlen(ends[i]);
        if (len > n && memcmp(key + len - n, ends[i], n) == 0) return 1;
    }
    return 0;
}

// The fields of msg as members of an object: a value in quotes is JSON already.
static void prog_line_put_json(prog_line *line, const char *msg)
{
    while (*msg) {
        char one[PROG_LINE_SIZE];
        size_t key = strcspn(msg, "=");
        const char *value = msg + key + (msg[key] == '='), *end = prog_value_end(value);
        const char *quote = *value == '"' || prog_key_counts(msg, key) ? "" : "\"";
        int n = snprintf(one, sizeof one, ",\"%.*s\":%s%.*s%s", (int)key, msg, quote,
                         (int)(end - value), value, quote);
        if (n < 0 || (size_t)n >= sizeof one || !prog_line_put(line, one, (size_t)n)) return;
        msg = end + (*end == ' ');
    }
}

static void prog_line_make(prog_line *line, enum prog_log_format format, int level,
                           const char *event, const char *msg)
{
    static const char *const names[] = {"", "error", "warn", "info", "debug"};
    static const char *const forms[] = {"%s %s %s%s", "ts=%s level=%s event=%s%s",
                                        "{\"ts\":\"%s\",\"level\":\"%s\",\"event\":\"%s\"%s"};
    char head[256], now[48];
    int n;
    prog_line_time(now);
    line->len = 0;
    n = snprintf(head, sizeof head, forms[format], now, names[level], event,
                 *msg && format == PROG_LOG_TEXT ? ":" : "");
    prog_line_put(line, head, (size_t)n);
    if (format == PROG_LOG_JSON) {
        prog_line_put_json(line, msg);
        line->text[line->len++] = '}';
    } else if (*msg) {
        prog_line_put(line, " ", 1);
        prog_line_put(line, msg, strlen(msg));
    }
    line->text[line->len++] = '\n';
}

// ------------------------------------------------------------------------------------------------
// The queue and its thread

// Writes all of it, however long that takes. Returns how much has been written: what nobody can
// read, or a full disk does not take, is lost.
static size_t prog_write_all(int fd, const char *data, size_t size)
{
    size_t len = size;
    while (len > 0) {
        struct pollfd p = {fd, POLLOUT, 0};
        ssize_t n = write(fd, data, len);
        if (n > 0) {
            data += n;
            len -= (size_t)n;
        } else if (n < 0 && errno == EAGAIN) {  // somebody else has set O_NONBLOCK
            if (poll(&p, 1, -1) < 0 && errno != EINTR) break;
        } else if (n < 0 && errno != EINTR) {
            break;
        }
    }
    return size - len;
}

static void prog_queue_put_locked(prog_log *log, const prog_line *line)
{
    size_t end = (log->at + log->len) % sizeof log->queue;
    size_t first = sizeof log->queue - end < line->len ? sizeof log->queue - end : line->len;
    memcpy(log->queue + end, line->text, first);
    memcpy(log->queue, line->text + first, line->len - first);
    log->len += line->len;
}

// Takes whole lines, as many as one write takes at once.
static size_t prog_queue_take_locked(prog_log *log, char out[PROG_LINE_SIZE])
{
    size_t n = 0, whole = 0;
    while (n < log->len && n < PROG_LINE_SIZE) {
        out[n] = log->queue[(log->at + n) % sizeof log->queue];
        if (out[n++] == '\n') whole = n;
    }
    log->at = (log->at + whole) % sizeof log->queue;
    log->len -= whole;
    return whole;
}

// There is room again: says what was lost meanwhile.
static void prog_queue_confess_locked(prog_log *log)
{
    prog_line line;
    char msg[48];
    if (!log->dropped) return;
    snprintf(msg, sizeof msg, "dropped_count=%u", log->dropped);
    prog_line_make(&line, log->format, REVDIAL_LOG_WARN, "log.dropped", msg);
    log->dropped = 0;
    prog_queue_put_locked(log, &line);
}

// Writes whole lines, and before them what was lost when the disk was full. A line of which it took
// a part is ended first. On the log's thread.
static void prog_log_deliver(prog_log *log, const char *lines, size_t len)
{
    size_t done = 0, lost = 0;
    if (log->lost) {
        prog_line line;
        char msg[48];
        snprintf(msg, sizeof msg, "dropped_count=%u", log->lost);
        prog_line_make(&line, log->format, REVDIAL_LOG_WARN, "log.dropped", msg);
        if (log->has_part && prog_write_all(log->fd, "\n", 1) == 1) log->has_part = 0;
        if (!log->has_part) done = prog_write_all(log->fd, line.text, line.len);
        log->has_part |= done > 0 && done < line.len;
        if (done == line.len) log->lost = 0;
        done = 0;
    }
    if (!log->lost) done = prog_write_all(log->fd, lines, len);
    for (size_t i = done; i < len; i++) lost += lines[i] == '\n';
    log->has_part |= done > 0 && lines[done - 1] != '\n';
    log->lost += (unsigned)lost;
}

static void *prog_log_run(void *ud)
{
    prog_log *log = ud;
    char out[PROG_LINE_SIZE];
    pthread_mutex_lock(&log->lock);
    for (;;) {
        size_t n;
        if (log->len == 0) prog_queue_confess_locked(log);
        if (log->len == 0 && log->is_closing) break;
        if (log->len == 0) {
            pthread_cond_wait(&log->changed, &log->lock);
            continue;
        }
        n = prog_queue_take_locked(log, out);
        pthread_mutex_unlock(&log->lock);
        prog_log_deliver(log, out, n);
        pthread_mutex_lock(&log->lock);
    }
    log->is_over = 1;
    pthread_cond_broadcast(&log->changed);
    pthread_mutex_unlock(&log->lock);
    return NULL;
}

static void prog_log_write(prog_log *log, const prog_line *line)
{
    if (!log->is_running) {
        prog_write_all(log->fd, line->text, line->len);
        return;
    }
    pthread_mutex_lock(&log->lock);
    // What was dropped is said before anything that came later.
    if (log->dropped || log->len + line->len > sizeof log->queue - PROG_LINE_SIZE)
        log->dropped++;
    else
        prog_queue_put_locked(log, line);
    // At the end its thread does not wait any more, but prog_log_finish() does, for a while.
    if (!log->is_closing) pthread_cond_signal(&log->changed);
    pthread_mutex_unlock(&log->lock);
}

void prog_log_put(void *ud, int level, const char *event, const char *msg)
{
    prog_log *log = ud;
    prog_line line;
    if (level > log->level || level < REVDIAL_LOG_ERROR || level > REVDIAL_LOG_DEBUG) return;
    prog_line_make(&line, log->format, level, event, msg);
    prog_log_write(log, &line);
}

void prog_log_config(prog_log *log, revdial_common *common)
{
    common->log = prog_log_put;
    common->log_ud = log;
    common->log_level = log->level;
    common->access_log = log->access;
}

void prog_logf(prog_log *log, int level, const char *event, const char *form, ...)
{
    char text[512], msg[1024] = "";
    va_list args;
    va_start(args, form);
    vsnprintf(text, sizeof text, form, args);
    va_end(args);
    revdial_log_field(msg, sizeof msg, "reason", text);
    prog_log_put(log, level, event, msg);
}

void prog_log_error(prog_log *log, const char *event, const revdial_err *err)
{
    prog_logf(log, REVDIAL_LOG_ERROR, event, "%s", err->msg);
}

int prog_announce(prog_log *log, const char *line)
{
    struct pollfd out = {STDOUT_FILENO, POLLOUT, 0};
    size_t len = strlen(line);  // below PIPE_BUF: all of it has room or nothing
    int r;
    do r = poll(&out, 1, PROG_ANNOUNCE_MS);
    while (r < 0 && errno == EINTR);
    if (r == 0)
        prog_logf(log, REVDIAL_LOG_WARN, "stdout.full", "stdout is not read: %.*s", (int)len - 1,
                  line);
    if (r == 0) return 0;
    return r > 0 && write(STDOUT_FILENO, line, len) == (ssize_t)len ? 1 : -1;
}

int prog_rate_take(prog_rate *r, prog_log *log, const char *event)
{
    long long now = (long long)time(NULL);
    if (atomic_exchange(&r->second, now) != now) {
        unsigned left_out = atomic_exchange(&r->left_out, 0);
        char msg[128];
        snprintf(msg, sizeof msg, "suppressed=%s suppressed_count=%u", event, left_out);
        if (left_out) prog_log_put(log, REVDIAL_LOG_WARN, "log.suppressed", msg);
        atomic_store(&r->said, 0);
    }
    if (atomic_fetch_add(&r->said, 1) < PROG_RATE) return 1;
    atomic_fetch_add(&r->left_out, 1);
    return 0;
}

void prog_log_open(prog_log *log, int level, enum prog_log_format format)
{
    memset(log, 0, sizeof *log);
    log->level = level;
    log->format = format;
    log->fd = STDERR_FILENO;
}

void prog_log_open_as(prog_log *log, const prog_common *common)
{
    static const enum prog_log_format formats[] = {PROG_LOG_LOGFMT, PROG_LOG_TEXT, PROG_LOG_LOGFMT,
                                                   PROG_LOG_JSON};  // of --log-format
    int is_terminal = common->format == 0 && isatty(STDERR_FILENO);
    prog_log_open(log, common->verbose ? REVDIAL_LOG_DEBUG : REVDIAL_LOG_ERROR + common->level,
                  is_terminal ? PROG_LOG_TEXT : formats[common->format]);
    log->access = common->access;
}

int prog_log_start(prog_log *log)
{
    errno = pthread_mutex_init(&log->lock, NULL);
    if (errno == 0) errno = prog_cond_open(&log->changed);
    if (errno != 0) return -1;
    log->is_running = prog_thread_start(&log->thread, prog_log_run, log) == 0;
    return log->is_running ? 0 : -1;
}

int prog_log_finish(prog_log *log, int rc)
{
    int r = 0;
    if (!log->is_running) return rc;
    pthread_mutex_lock(&log->lock);
    log->is_closing = 1;
    pthread_cond_broadcast(&log->changed);
    while (!log->is_over && r == 0) r = prog_cond_wait(&log->changed, &log->lock, PROG_LOG_LAST_MS);
    pthread_mutex_unlock(&log->lock);
    if (r != 0) _exit(rc);  // the thread is in a write that does not end
    pthread_join(log->thread, NULL);
    return rc;
}
