// The server of the admin port: a thread that answers one request for each connection and closes
// it. What may connect is the operator's choice of an address; who may change anything has a token.
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "admin.h"

enum {
    PROG_ADMIN_CONNECTIONS = 32,
    PROG_ADMIN_REQUEST_MS = 10000,  // from accept to the last byte of the answer
    PROG_ADMIN_LINGER_MS = 1000,    // then, for a client to read it: our close must not destroy it
    PROG_ADMIN_LOOK_MS = 20,        // how often to look whether a slow page is there
    PROG_ADMIN_PAUSE_MS = 100       // when there is no descriptor for a connection that waits
};

// READING --the head is here, or wrong--> WRITING --all is written--> LINGERING
// READING --a slow page is asked for--> ANSWERING --its thread is done--> WRITING
// any but ANSWERING --an error, or time is up--> FREE
enum prog_conn_state {
    PROG_CONN_FREE,
    PROG_CONN_READING,
    PROG_CONN_ANSWERING,
    PROG_CONN_WRITING,
    PROG_CONN_LINGERING
};

typedef struct prog_conn {
    enum prog_conn_state state;
    int fd;
    int64_t until_ms;
    size_t in_len, head_len, out_at;
    prog_admin *admin;
    pthread_t thread;  // ANSWERING: it has `in` and `out` until:
    atomic_int is_answered;
    prog_out out;
    char in[PROG_HEAD_SIZE];
} prog_conn;

struct prog_admin {
    prog_admin_config cfg;
    prog_listener at[PROG_LISTENERS];
    int at_count;
    char *hosts;  // a comma list
    int wake[2];  // closed to end the thread
    prog_rate refused;  // of lines about actions
    pthread_mutex_t lock;
    char token[PROG_TOKEN_SIZE];  // guarded by lock; "" = no actions
    pthread_t thread;
    prog_conn conns[PROG_ADMIN_CONNECTIONS];
};

static int64_t prog_clock_ms(void)
{
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void prog_admin_announce(const prog_admin *a, const prog_listener *at)
{
    char text[PROG_LISTENER_SIZE];
    int is_unix = at->path[0] != '\0';
    prog_listener_text(at, text, sizeof text);
    if (!is_unix && strncmp(text, "127.", 4) != 0 && strncmp(text, "[::1]:", 6) != 0)
        prog_logf(
            a->cfg.log, REVDIAL_LOG_WARN, "admin.public",
            "other machines may read it: let a firewall or a proxy with a login decide which");
    prog_logf(a->cfg.log, REVDIAL_LOG_INFO, "admin.listening", "%s%s%s", is_unix ? "" : "http://",
              text, is_unix ? "" : "/");
}

// ------------------------------------------------------------------------------------------------
// Answers

// Compares all of both, whatever the first difference is; there are zeros behind each.
static int prog_is_token_right(const char *given, const char *token)
{
    unsigned wrong = 0;
    for (size_t i = 0; i < PROG_TOKEN_SIZE; i++)
        wrong |= (unsigned)(unsigned char)given[i] ^ (unsigned)(unsigned char)token[i];
    return !wrong;
}

// May the request do something? Returns 200, or the status to answer with.
static int prog_admin_permit(prog_admin *a, const prog_request *r, const char **problem)
{
    int has_token, is_right;
    if (r->method != PROG_POST) {
        *problem = "this is an action: POST it";
        return 405;
    }
    if (!prog_request_is_same_origin(r)) {
        *problem = "the request comes from a page of another site";
        return 403;
    }
    pthread_mutex_lock(&a->lock);
    has_token = a->token[0] != '\0';
    is_right = prog_is_token_right(r->token, a->token);
    pthread_mutex_unlock(&a->lock);
    if (has_token && is_right) return 200;
    *problem = has_token ? "the token of --admin-token-file is needed: Authorization: Bearer TOKEN"
                         : "there is no --admin-token-file, so nothing can be changed here";
    return has_token ? 401 : 403;
}

// Finds the page and has it answer. Returns the status.
static int prog_admin_route(prog_admin *a, const prog_request *r, prog_out *body, const char **type,
                            const char **problem)
{
    const prog_page *page = a->cfg.pages;
    int status = 200;
    while (page->path && strcmp(page->path, r->path) != 0) page++;
    if (!a->at[0].path[0] && !(page->path && page->flags & PROG_PAGE_OPEN) &&
        !prog_request_is_ours(r, a->hosts)) {
        *problem = "this server is not for that Host: use an address, or allow it by --admin-host";
        return 421;
    }
    if (!page->path) {
        *problem = "there is no such page";
        return 404;
    }
    if (page->flags & PROG_PAGE_ACTION) {
        status = prog_admin_permit(a, r, problem);
    } else if (r->method == PROG_POST) {
        *problem = "this page can be read only";
        status = 405;
    }
    if (status != 200) return status;
    *type = page->type;
    status = page->answer(a->cfg.ud, r, body);
    if (!body->failed) return status;
    *problem = "out of memory";
    return 500;
}

// The page asks for nothing from elsewhere and may be put into no frame.
static const char prog_admin_headers[] =
    "Cache-Control: no-store\r\n"
    "X-Content-Type-Options: nosniff\r\n"
    "X-Frame-Options: DENY\r\n"
    "Cross-Origin-Resource-Policy: same-origin\r\n"
    "Referrer-Policy: no-referrer\r\n"
    "Content-Security-Policy: default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
    "Connection: close\r\n";

static void prog_admin_compose(prog_out *out, int status, const char *type, const prog_out *body,
                               int is_head)
{
    prog_out_add(out, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n", status,
                 prog_status_text(status), type, body->len);
    if (status == 401) prog_out_add(out, "WWW-Authenticate: Bearer realm=\"revdial admin\"\r\n");
    if (status == 405) prog_out_add(out, "Allow: GET, HEAD, POST\r\n");
    prog_out_add(out, "%s\r\n", prog_admin_headers);
    if (!is_head && body->at) prog_out_add(out, "%s", body->at);
}

static void prog_conn_become(prog_conn *c, enum prog_conn_state to, int64_t until_ms)
{
    c->state = to;
    c->until_ms = until_ms;
}

// Answers what has been read. refusal: a status, or 0 if the head is len bytes long.
static void prog_conn_answer(prog_admin *a, prog_conn *c, size_t len, int refusal,
                             const char *problem)
{
    prog_request *r = calloc(1, sizeof *r);
    prog_out body = {0};
    const char *type = "text/plain; charset=utf-8";
    int status = refusal;
    if (!r) status = 500;
    if (!status) status = prog_request_parse(r, c->in, len, &problem);
    if (status == 200) {
        problem = "";
        status = prog_admin_route(a, r, &body, &type, &problem);
        // Anybody that can connect may be refused as often as it likes.
        if (status == 200 ? r->method == PROG_POST
                          : (r->method == PROG_POST || status == 401 || status == 403) &&
                                prog_rate_take(&a->refused, a->cfg.log, "admin.action"))
            prog_logf(a->cfg.log, status == 200 ? REVDIAL_LOG_INFO : REVDIAL_LOG_WARN,
                      "admin.action", "%s?%s: %d %s", r->path, r->query, status, problem);
    }
    if (*problem) {
        prog_out_free(&body);
        type = "text/plain; charset=utf-8";
        prog_out_add(&body, "%s\n", problem);
    }
    prog_admin_compose(&c->out, status, type, &body, r && r->method == PROG_HEAD);
    if (r) prog_wipe(r, sizeof *r);
    free(r);
    prog_out_free(&body);
}

// ------------------------------------------------------------------------------------------------
// Connections

static void prog_conn_close(prog_conn *c)
{
    close(c->fd);
    prog_out_free(&c->out);
    prog_wipe(c->in, sizeof c->in);  // there may be a token in it
    memset(c, 0, sizeof *c);
}

static int prog_conn_is_slow(const prog_admin *a, const prog_conn *c)
{
    const int is_head = memcmp(c->in, "HEAD ", 5) == 0;
    const size_t method = is_head ? 5 : memcmp(c->in, "GET ", 4) == 0 ? 4 : 0;
    for (const prog_page *page = a->cfg.pages; method && page->path; page++) {
        size_t len = strlen(page->path);
        if (page->flags & PROG_PAGE_SLOW && c->head_len > method + len &&
            memcmp(c->in + method, page->path, len) == 0)
            return 1;
    }
    return 0;
}

static void *prog_conn_answer_slowly(void *ud)
{
    prog_conn *c = ud;
    prog_conn_answer(c->admin, c, c->head_len, 0, "");
    atomic_store(&c->is_answered, 1);
    return NULL;
}

// A head is complete.
static void prog_conn_heed(prog_admin *a, prog_conn *c)
{
    c->admin = a;
    atomic_store(&c->is_answered, 0);
    if (prog_conn_is_slow(a, c) && prog_thread_start(&c->thread, prog_conn_answer_slowly, c) == 0) {
        prog_conn_become(c, PROG_CONN_ANSWERING, c->until_ms);
        return;
    }
    prog_conn_answer(a, c, c->head_len, 0, "");
    prog_conn_become(c, PROG_CONN_WRITING, c->until_ms);
}

static void prog_conn_read(prog_admin *a, prog_conn *c)
{
    ssize_t n = read(c->fd, c->in + c->in_len, sizeof c->in - c->in_len);
    int len;
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        prog_conn_close(c);
        return;
    }
    c->in_len += (size_t)n;
    len = prog_request_len(c->in, c->in_len);
    if (len == 0) return;
    c->head_len = len > 0 ? (size_t)len : 0;
    if (len > 0) {
        prog_conn_heed(a, c);
        return;
    }
    prog_conn_answer(a, c, 0, 431, "the head of the request is over 8 KiB");
    prog_conn_become(c, PROG_CONN_WRITING, c->until_ms);
}

static void prog_conn_write(prog_conn *c)
{
    ssize_t n = 0;
    if (c->out_at < c->out.len)
        n = send(c->fd, c->out.at + c->out_at, c->out.len - c->out_at, MSG_NOSIGNAL);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n < 0) {
        prog_conn_close(c);
        return;
    }
    c->out_at += (size_t)n;
    if (c->out_at < c->out.len) return;
    shutdown(c->fd, SHUT_WR);
    prog_conn_become(c, PROG_CONN_LINGERING, prog_clock_ms() + PROG_ADMIN_LINGER_MS);
}

// Drops what still comes, until the client has read all and closes.
static void prog_conn_linger(prog_conn *c)
{
    ssize_t n = read(c->fd, c->in, sizeof c->in);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) prog_conn_close(c);
}

static void prog_conn_run(prog_admin *a, prog_conn *c)
{
    switch (c->state) {
    case PROG_CONN_FREE: break;
    case PROG_CONN_ANSWERING: break;
    case PROG_CONN_READING:
        prog_conn_read(a, c);
        if (c->state == PROG_CONN_WRITING) prog_conn_write(c);
        break;
    case PROG_CONN_WRITING: prog_conn_write(c); break;
    case PROG_CONN_LINGERING: prog_conn_linger(c); break;
    }
}

// What happens without a byte from the client.
static void prog_conn_look(prog_admin *a, prog_conn *c, int64_t now_ms)
{
    if (c->state == PROG_CONN_ANSWERING && atomic_load(&c->is_answered)) {
        pthread_join(c->thread, NULL);
        prog_conn_become(c, PROG_CONN_WRITING, c->until_ms);
        prog_conn_write(c);
    }
    if (c->state == PROG_CONN_FREE || c->state == PROG_CONN_ANSWERING || now_ms < c->until_ms)
        return;
    if (c->state != PROG_CONN_READING || c->in_len == 0) {
        prog_conn_close(c);
        return;
    }
    prog_conn_answer(a, c, 0, 408, "the head of the request has not come within 10 s");
    prog_conn_become(c, PROG_CONN_WRITING, now_ms + PROG_ADMIN_LINGER_MS);
    prog_conn_write(c);
}

static void prog_admin_accept(prog_admin *a, const prog_listener *at)
{
    for (int i = 0; i < PROG_ADMIN_CONNECTIONS; i++) {
        prog_conn *c = &a->conns[i];
        if (c->state != PROG_CONN_FREE) continue;
        c->fd = accept(at->fd, NULL, NULL);
        if (c->fd < 0 && errno != EAGAIN) poll(NULL, 0, PROG_ADMIN_PAUSE_MS);
        if (c->fd < 0) return;
        if (prog_nonblocking(c->fd) != 0) {
            prog_conn_close(c);
            return;
        }
        prog_conn_become(c, PROG_CONN_READING, prog_clock_ms() + PROG_ADMIN_REQUEST_MS);
    }
}

// Fills what to poll: the wake-up, the connections, then the listeners while there is room.
static int prog_admin_prepare(const prog_admin *a, struct pollfd *p, int *timeout_ms)
{
    int64_t now = prog_clock_ms(), first = INT64_MAX;
    int used = 0;
    for (int i = 0; i < PROG_ADMIN_CONNECTIONS; i++) {
        const prog_conn *c = &a->conns[i];
        p[1 + i] = (struct pollfd){.fd = -1};
        if (c->state == PROG_CONN_FREE) continue;
        used++;
        if (c->state == PROG_CONN_ANSWERING) {
            if (now + PROG_ADMIN_LOOK_MS < first) first = now + PROG_ADMIN_LOOK_MS;
            continue;
        }
        p[1 + i].fd = c->fd;
        p[1 + i].events = c->state == PROG_CONN_WRITING ? POLLOUT : POLLIN;
        if (c->until_ms < first) first = c->until_ms;
    }
    p[0] = (struct pollfd){.fd = a->wake[0], .events = POLLIN};
    for (int i = 0; i < a->at_count; i++)
        p[1 + PROG_ADMIN_CONNECTIONS + i] = (struct pollfd){
            .fd = used < PROG_ADMIN_CONNECTIONS ? a->at[i].fd : -1, .events = POLLIN};
    *timeout_ms = first == INT64_MAX ? -1 : first > now ? (int)(first - now) : 0;
    return 1 + PROG_ADMIN_CONNECTIONS + a->at_count;
}

static void *prog_admin_run(void *ud)
{
    prog_admin *a = ud;
    struct pollfd p[1 + PROG_ADMIN_CONNECTIONS + PROG_LISTENERS];
    int count, timeout_ms;
    for (;;) {
        int64_t now_ms;
        count = prog_admin_prepare(a, p, &timeout_ms);
        if (poll(p, (nfds_t)count, timeout_ms) < 0 && errno != EINTR) break;
        if (p[0].revents) break;
        now_ms = prog_clock_ms();
        for (int i = 0; i < PROG_ADMIN_CONNECTIONS; i++) {
            if (p[1 + i].fd >= 0 && p[1 + i].revents) prog_conn_run(a, &a->conns[i]);
            prog_conn_look(a, &a->conns[i], now_ms);
        }
        for (int i = 0; i < a->at_count; i++)
            if (p[1 + PROG_ADMIN_CONNECTIONS + i].revents) prog_admin_accept(a, &a->at[i]);
    }
    for (int i = 0; i < PROG_ADMIN_CONNECTIONS; i++) {
        if (a->conns[i].state == PROG_CONN_ANSWERING) pthread_join(a->conns[i].thread, NULL);
        if (a->conns[i].state != PROG_CONN_FREE) prog_conn_close(&a->conns[i]);
    }
    return NULL;
}

// ------------------------------------------------------------------------------------------------
// Start and stop

static void prog_admin_free(prog_admin *a)
{
    for (int i = 0; i < a->at_count; i++) prog_listener_close(&a->at[i]);
    prog_pipe_close(a->wake);
    prog_wipe(a->token, sizeof a->token);
    pthread_mutex_destroy(&a->lock);
    free(a->hosts);
    free(a);
}

static int prog_admin_failed(prog_admin *a, int rc, const char *option, const char *why)
{
    prog_logf(a->cfg.log, REVDIAL_LOG_ERROR, "admin.failed", "--%s: %s", option, why);
    prog_admin_free(a);
    return rc;
}

// Returns 0, or -1 and the reason in err->msg.
static int prog_admin_token(const char *path, char token[PROG_TOKEN_SIZE], revdial_err *err)
{
    prog_file file;
    const char *line = prog_file_open(&file, path, err) == 0 ? prog_file_next(&file) : NULL;
    if (!err->msg[0] && (!line || strlen(line) < 16 || strlen(line) >= PROG_TOKEN_SIZE))
        snprintf(err->msg, sizeof err->msg,
                 "%s: a line with a token of at least 16 letters is expected", path);
    if (!err->msg[0]) snprintf(token, PROG_TOKEN_SIZE, "%s", line);
    prog_file_close(&file);
    return err->msg[0] ? -1 : 0;
}

int prog_admin_check(const prog_cli *cli)
{
    const char *path = cli->common.admin_token_file;
    char token[PROG_TOKEN_SIZE];
    revdial_err err = {0};
    int is_bad = path && prog_admin_token(path, token, &err) != 0;
    prog_wipe(token, sizeof token);
    if (is_bad) return prog_usage_error(cli, "admin-token-file", err.msg, NULL);
    if (!cli->common.admin || prog_address_check(cli->common.admin, &err) == 0) return 0;
    return prog_usage_error(cli, "admin", err.msg, NULL);
}

void prog_admin_renew(prog_admin *a)
{
    const char *path = a ? a->cfg.common->admin_token_file : NULL;
    char token[PROG_TOKEN_SIZE] = "";
    revdial_err err = {0};
    if (!path) return;
    if (prog_admin_token(path, token, &err) == 0) {
        pthread_mutex_lock(&a->lock);
        memcpy(a->token, token, sizeof token);
        pthread_mutex_unlock(&a->lock);
    } else {
        prog_log_error(a->cfg.log, "token.unreadable", &err);
    }
    prog_wipe(token, sizeof token);
}

int prog_admin_start(prog_admin **out, const prog_admin_config *cfg)
{
    const prog_common *common = cfg->common;
    prog_admin *a;
    revdial_err err = {0};
    int count;
    *out = NULL;
    if (!common->admin) return 0;
    a = calloc(1, sizeof *a);
    if (!a) return PROG_FAILED;
    a->cfg = *cfg;
    a->wake[0] = a->wake[1] = -1;
    pthread_mutex_init(&a->lock, NULL);
    a->hosts = prog_list_join(&common->admin_hosts);
    if (!a->hosts) return prog_admin_failed(a, PROG_FAILED, "admin", "out of memory");
    prog_admin_renew(a);
    prog_warn_readable(cfg->log, common->admin_token_file);
    count = prog_listener_open(a->at, common->admin, PROG_ADMIN_CONNECTIONS, &err);
    if (count < 0)
        return prog_admin_failed(a, err.code == REVDIAL_EINVAL ? PROG_USAGE : PROG_CANNOT_BIND,
                                 "admin", err.msg);
    a->at_count = count;
    if (prog_pipe_open(a->wake) != 0 || prog_thread_start(&a->thread, prog_admin_run, a) != 0)
        return prog_admin_failed(a, PROG_FAILED, "admin", strerror(errno));
    for (int i = 0; i < count; i++) prog_admin_announce(a, &a->at[i]);
    *out = a;
    return 0;
}

void prog_admin_stop(prog_admin *a)
{
    if (!a) return;
    close(a->wake[1]);
    a->wake[1] = -1;
    pthread_join(a->thread, NULL);
    prog_admin_free(a);
}
