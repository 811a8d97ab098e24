// revdial-agent: makes the services behind a NAT reachable for a revdial-proxy. See --help.
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <stdatomic.h>

#include "links.h"
#include "../program/program.h"

enum auth { AUTH_BEARER, AUTH_BASIC, AUTH_DIGEST };  // in the order of the option

enum { VIA_SIZE = 4097 };  // 255 and 1024 bytes of a login as %XX, and a host

typedef struct settings {
    prog_list servers, allow;
    const char *token_file, *token, *via, *via_file, *allow_file;
    int auth;
    prog_tls_files tls;
    const prog_common *common;
    revdial_agent_config cfg;  // what needs no other form than the option's
} settings;

#define AT(field) offsetof(settings, field)
static const prog_option options[] = {
    {"server", PROG_LIST, AT(servers), "URL",
     "where the proxy listens: https://HOST[:PORT][/PATH], http:// without TLS,\n"
     "wss:// and ws:// through WebSocket, or unix:PATH. Repeat it, or separate\n"
     "with commas, to serve several proxies at the same time",
     0, 0},
    {"name", PROG_TEXT, AT(cfg.name), "NAME", "the name to register: a-z 0-9 . _ - (up to 64)", 0,
     0},
    {"instance", PROG_TEXT, AT(cfg.instance), "ID",
     "tells agents of one name apart: a new agent replaces the one that has the\n"
     "same ID, so each needs an ID of its own (default: a new one per process)",
     0, 0},
    {"token-file", PROG_PATH, AT(token_file), "FILE",
     "file with the token or password, read again before each attempt to\n"
     "connect (default: the environment variable REVDIAL_TOKEN, or token = TOKEN in\n"
     "the configuration file)",
     0, 0},
    {"token", PROG_TEXT, AT(token), "TOKEN", "the token or password, where there is no such file",
     0, 0, PROG_SECRET | PROG_NO_ARGV},
    {"auth", PROG_CHOICE, AT(auth), "bearer|basic|digest",
     "how to present it (default bearer). digest keeps the password secret even\n"
     "without TLS, and makes the proxy prove that it knows it, too",
     0, 0},
    {"user", PROG_TEXT, AT(cfg.user), "USER", "user name of the password, for basic and digest", 0,
     0},
    {"via", PROG_TEXT, AT(via), "URL",
     "egress proxy to connect through: http://HOST:PORT (CONNECT) or\n"
     "socks5://HOST:PORT; it resolves the names of the servers",
     0, 0, PROG_SECRET},
    {"via-file", PROG_PATH, AT(via_file), "FILE",
     "file with such a URL, which may have a login: http://USER:PASSWORD@...\n"
     "(default: the environment variable REVDIAL_VIA; HTTPS_PROXY is ignored)",
     0, 0},
    {"tls-ca", PROG_PATH, AT(tls.ca), "FILE",
     "certificate authorities trusted for the proxy (default: the system's)", 0, 0},
    {"tls-cert", PROG_PATH, AT(tls.cert), "FILE",
     "certificate of this agent, for a proxy that asks for one", 0, 0},
    {"tls-key", PROG_PATH, AT(tls.key), "FILE", "key of that certificate, not encrypted", 0, 0},
    {"server-name", PROG_TEXT, AT(cfg.server_name), "HOST",
     "name that the proxy's certificate must have (default: host of the URL)", 0, 0},
    {"target", PROG_TEXT, AT(cfg.default_target), "HOST:PORT",
     "where to connect streams that ask for no target; also unix:PATH", 0, 0},
    {"allow", PROG_LIST, AT(allow), "PATTERN",
     "other targets that streams may ask for, checked after resolution;\n"
     "repeatable: 127.0.0.1:22, 10.0.0.0/8:80-90, [fd00::]/8:*,\n"
     "*.svc.local:443, unix:/run/x. A host name that resolves to a loopback\n"
     "(except localhost), link-local, carrier NAT (100.64.0.0/10) or cloud\n"
     "metadata address is refused unless an address pattern allows it",
     0, 0, PROG_LIVE},
    {"allow-file", PROG_PATH, AT(allow_file), "FILE",
     "file with more patterns, one per line; HUP reads it again", 0, 0, PROG_LIVE},
    {"proxy-protocol", PROG_CHOICE, AT(cfg.proxy_protocol), "0|1|2",
     "send targets the client's address in a PROXY header of this version", 0, 0},
    {"connect-timeout", PROG_DURATION, AT(cfg.connect_timeout_ms), "TIME",
     "longest time to connect to a target (default 5s)", 1, 3600000},
    {"idle-timeout", PROG_DURATION, AT(cfg.idle_timeout_ms), "TIME",
     "end streams that carry no byte for TIME (default 0: never)", 0, INT_MAX},
    {"all-addresses", PROG_FLAG, AT(cfg.all_addresses), NULL,
     "connect to every address of the server's host name, not just to one", 0, 0},
    {"insecure-cleartext", PROG_FLAG, AT(cfg.allow_cleartext), NULL,
     "send the token over plain TCP to another machine, where anybody on the way\n"
     "can read and use it",
     0, 0},
};

static const char usage[] =
    "revdial-agent dials a revdial-proxy and lets it open connections to services on this side.\n"
    "Nothing here needs to be reachable from outside.\n"
    "\n"
    "Usage: revdial-agent --server URL --name NAME [--token-file FILE] --target HOST:PORT ...\n"
    "\n"
    "Options:\n";

static const char epilogue[] =
    "\n"
    "TIME is 500ms, 30s, 5m or 2h.\n"
    "\n"
    "Each option may also stand in a configuration file, 'tls-ca = FILE', and in the environment,\n"
    "REVDIAL_TLS_CA=FILE. The command line beats the environment, which beats the file. Lists\n"
    "repeat the line, or have commas in the environment. Options without a value are yes or no.\n"
    "\n"
    "After a lost connection the agent reconnects, with waits of 0.5 s to 30 s. It reads the\n"
    "token and the certificates again before each attempt. TERM and INT let running streams end;\n"
    "a second signal, at least a second later, ends the program at once. HUP reads --allow-file\n"
    "and the certificates again; if a file is wrong, its old content stays in force. USR2 writes\n"
    "a line about sessions and streams to the log. USR1 is ignored.\n"
    "\n"
    "'revdial-agent status --admin ADDRESS' prints a table of the links and sessions of an agent\n"
    "that runs with that --admin; --json instead what programs want.\n"
    "\n"
    "Exit codes: 0 stopped, 1 failed, 2 usage, 3 the proxy rejects the token or the name, or the\n"
    "egress proxy rejects the login.\n"
    "\n"
    "Examples:\n"
    "  The web server of this machine, as cam-1:\n"
    "    revdial-agent --server https://proxy.example:7000 --name cam-1 \\\n"
    "        --token-file /etc/revdial.token --target 127.0.0.1:80\n"
    "  No target by default; the proxy may name any ssh server of a network:\n"
    "    revdial-agent --server unix:/run/revdial.sock --name lab --allow 10.1.0.0/16:22\n";

static const unsigned auth_schemes[] = {REVDIAL_AUTH_BEARER, REVDIAL_AUTH_BASIC,
                                        REVDIAL_AUTH_DIGEST};

// Why it cannot be sent as a token or password; NULL if it can.
static const char *secret_problem(const char *secret, const char *user, int auth)
{
    revdial_credential row = {.secret = secret, .user = user, .names = "*"};
    row.schemes = auth_schemes[auth];
    if (strncmp(secret, "sha256:", 7) == 0 || strncmp(secret, "ha1:", 4) == 0)
        return "a hash is for the proxy's file: the agent needs the token or password itself";
    return revdial_credential_problem(&row);
}

typedef struct sources {
    const char *token_file, *token, *user;
    int auth;
    revdial_tls *tls;
    prog_log *log;
} sources;

// Reads the one token or password that a file holds. Returns 0, or -1 and the reason in err->msg.
static int token_read(const sources *from, char *secret, size_t size, revdial_err *err)
{
    prog_file file;
    const char *path = from->token_file, *problem = NULL;
    const char *token = prog_file_open(&file, path, err) == 0 ? prog_file_next(&file) : NULL;
    if (!err->msg[0] && (!token || strlen(token) >= size || prog_file_next(&file)))
        problem = "one line is expected, with a token or password";
    if (!err->msg[0] && !problem) problem = secret_problem(token, from->user, from->auth);
    if (problem) snprintf(err->msg, sizeof err->msg, "%s:%u: %s", path, file.line, problem);
    if (!err->msg[0]) memcpy(secret, token, strlen(token) + 1);
    prog_file_close(&file);
    return err->msg[0] ? -1 : 0;
}

// A revdial_credential_fn: what cannot be read now may be there at the next attempt.
static int sources_fresh(void *ud, unsigned attempt, char *secret, size_t size)
{
    const sources *source = ud;
    revdial_err err = {0};
    int rc = 0;
    if (attempt > 1) prog_tls_reload(source->tls, source->log);
    if (source->token_file)
        rc = token_read(source, secret, size, &err);
    else
        snprintf(secret, size, "%s", source->token ? source->token : "");
    if (rc < 0) prog_log_error(source->log, "token.unreadable", &err);
    return rc < 0 ? REVDIAL_ESYS : REVDIAL_OK;
}

// Finds the egress proxy's URL and copies it; leaves "" if there is none. A command line is read by
// everybody on the machine, so no password may come from there. Returns 0 or PROG_USAGE.
static int via_find(const prog_cli *cli, const settings *s, char *url, size_t size)
{
    revdial_err err = {0};
    const prog_setting *via = prog_given(cli, "via"), *via_file = prog_given(cli, "via-file");
    const char *found = s->via;
    prog_file file = {0};
    int rc = 0;
    url[0] = '\0';
    if (via && via_file && via->from == via_file->from)
        return prog_usage_error(cli, "via", "not with --via-file", NULL);
    if (via && via->from == PROG_FROM_ARGV && strchr(s->via, '@'))
        return prog_usage_error(cli, "via", "a login belongs in --via-file or REVDIAL_VIA", NULL);
    if (via_file && (!via || via_file->from > via->from)) {
        found = prog_file_open(&file, s->via_file, &err) == 0 ? prog_file_next(&file) : NULL;
        if (!found || prog_file_next(&file))
            rc = prog_usage_error(cli, "via-file",
                                  err.msg[0] ? err.msg : "one line is expected, a URL", NULL);
    }
    if (rc == 0 && found && strlen(found) < size) memcpy(url, found, strlen(found) + 1);
    if (rc == 0 && found && strlen(found) >= size)
        rc = prog_usage_error(cli, s->via_file ? "via-file" : "via", "too long", NULL);
    prog_file_close(&file);
    return rc;
}

// Finds what the options lack. Returns 0 or PROG_USAGE.
static int settings_check(const prog_cli *cli, const settings *s)
{
    sources from = {.token_file = s->token_file, .user = s->cfg.user, .auth = s->auth};
    char token[PROG_TOKEN_SIZE];
    revdial_err err = {0};
    int rc;
    if (s->servers.count == 0) return prog_usage_error(cli, "server", "missing", NULL);
    if (!s->cfg.name) return prog_usage_error(cli, "name", "missing", NULL);
    if (!s->cfg.default_target && s->allow.count == 0 && !s->allow_file)
        return prog_usage_error(cli, "target", "missing: give --target, --allow or --allow-file",
                                NULL);
    if (!s->token_file && !s->token && !s->tls.cert)
        return prog_usage_error(cli, "token-file", "missing, and so is REVDIAL_TOKEN", NULL);
    if (s->auth == AUTH_BEARER && s->cfg.user)
        return prog_usage_error(cli, "user", "needs --auth basic or --auth digest:", s->cfg.user);
    if (s->auth != AUTH_BEARER && !s->cfg.user)
        return prog_usage_error(cli, "user", "missing: --auth basic and digest need it", NULL);
    if (s->cfg.user && strpbrk(s->cfg.user, ":\"\\"))
        return prog_usage_error(cli, "user", "must have no : \" or \\ in it:", s->cfg.user);
    if (s->token_file) {
        rc = token_read(&from, token, sizeof token, &err);
        prog_wipe(token, sizeof token);
        return rc == 0 ? 0 : prog_usage_error(cli, "token-file", err.msg, NULL);
    }
    if (!s->token || !secret_problem(s->token, s->cfg.user, s->auth)) return 0;
    return prog_usage_error(cli, "token", secret_problem(s->token, s->cfg.user, s->auth), NULL);
}

static int exit_code(int rc)
{
    if (rc == REVDIAL_OK) return PROG_STOPPED;
    if (rc == REVDIAL_EAUTH || rc == REVDIAL_EDENIED) return PROG_AUTH_REJECTED;
    return rc == REVDIAL_EINVAL ? PROG_USAGE : PROG_FAILED;
}

// What the agent may connect to: the options and the file. Returns 0, or -1 and the reason.
static int allow_read(const settings *s, prog_file *file, prog_list *list, revdial_err *err)
{
    char *line;
    size_t i;
    for (i = 0; i < s->allow.count; i++)
        if (prog_list_add(list, s->allow.items[i]) != 0) return -1;
    if (!s->allow_file) return 0;
    if (prog_file_open(file, s->allow_file, err) != 0) return -1;
    while ((line = prog_file_next(file)))
        if (prog_list_add(list, line) != 0) return -1;
    return 0;
}

// The agent at work, as the main thread sees it.
typedef struct running {
    const settings *s;
    prog_log *log;
    revdial_tls *tls;
    revdial_agent *agent;
    links links;
    prog_admin *admin;
    int wake[2];
    atomic_int is_over;  // by itself
    revdial_err why;     // written before it
} running;

// A byte that ends the wait of the main thread.
static void running_wake(int fd)
{
    if (write(fd, "", 1) < 0) {
        // The pipe is full: then its reader wakes up without this byte.
    }
}

// On the I/O thread.
static void on_state(void *ud, int state, const revdial_err *why, int retry_in_ms)
{
    running *r = ud;
    (void)retry_in_ms;
    links_state(&r->links, state, why);
    if (state != REVDIAL_STOPPED) return;
    if (why) r->why = *why;
    atomic_store(&r->is_over, 1);
    running_wake(r->wake[1]);
}

// HUP: what files say now is for what happens from now on. What is wrong changes nothing.
static void running_reload(running *r)
{
    revdial_err err = {0};
    prog_file file = {0};
    prog_list list = {0};
    int rc = REVDIAL_OK;
    prog_hup = 0;
    if (allow_read(r->s, &file, &list, &err) != 0) {
        if (!err.msg[0]) snprintf(err.msg, sizeof err.msg, "out of memory");
        prog_log_error(r->log, "allow.unreadable", &err);
    } else {
        rc = revdial_agent_replace_allow(r->agent, list.items, &err);
        prog_logf(r->log, rc ? REVDIAL_LOG_ERROR : REVDIAL_LOG_INFO, "agent.reload",
                  "allow list: %s", rc ? err.msg : "replaced");
    }
    free(list.items);
    prog_file_close(&file);
    prog_tls_reload(r->tls, r->log);
}

// USR2
static void running_log_status(running *r)
{
    revdial_stats stats;
    prog_usr2 = 0;
    revdial_agent_get_stats(r->agent, &stats);
    prog_log_status(r->log, &stats);
}

// Waits for the end, the agent's own or by a signal. Returns what revdial_serve() would.
static int running_wait(running *r)
{
    struct pollfd p = {r->wake[0], POLLIN, 0};
    char bytes[16];
    while (!prog_stop && !atomic_load(&r->is_over)) {
        if (poll(&p, 1, -1) > 0)
            while (read(r->wake[0], bytes, sizeof bytes) > 0) continue;
        if (prog_hup) running_reload(r);
        if (prog_usr2) running_log_status(r);
    }
    return r->why.code;
}

// Serves --admin while the agent works, also while it drains. Returns what revdial_serve() would.
static int running_serve(running *r, int *exit_status)
{
    const prog_admin_config cfg = {r->s->common, links_pages, &r->links, r->log};
    int rc = REVDIAL_OK;
    r->links.agent = r->agent;
    *exit_status = prog_admin_start(&r->admin, &cfg);
    if (!*exit_status) rc = running_wait(r);
    revdial_agent_drain(r->agent, r->s->common->drain_ms);
    prog_admin_stop(r->admin);
    revdial_agent_stop(r->agent, 0);
    return rc;
}

static int run(running *r, const revdial_agent_config *cfg)
{
    int rc = REVDIAL_ESYS, status = PROG_STOPPED;
    if (prog_wake_open(r->wake) != 0 || links_open(&r->links, r->s->cfg.name) != 0) {
        snprintf(r->why.msg, sizeof r->why.msg, "no pipe for signals: %s", strerror(errno));
    } else {
        r->agent = revdial_agent_start(cfg, &r->why);
        rc = r->agent ? running_serve(r, &status) : r->why.code;
        links_close(&r->links);
    }
    prog_wake_close(r->wake);
    if (status) return status;
    if (rc != REVDIAL_OK)
        prog_log_error(r->log, "agent.failed", &r->why);
    else
        prog_logf(r->log, REVDIAL_LOG_INFO, "agent.stopped", "%s: stopped", r->s->cfg.name);
    return exit_code(rc);
}

static int serve(const settings *s, const char *url, const char *via, revdial_tls *tls,
                 prog_log *log)
{
    sources source = {s->token_file, s->token, s->cfg.user, s->auth, tls, log};
    running r = {.s = s, .log = log, .tls = tls, .wake = {-1, -1}};
    revdial_agent_config cfg = s->cfg;
    static const char *const no_rules[] = {NULL};
    prog_file allow_file = {0};
    prog_list allow = {0};
    int rc = PROG_USAGE;
    cfg.url = url;
    cfg.credential_fn = sources_fresh;
    cfg.credential_ud = &source;
    cfg.auth_schemes = auth_schemes[s->auth];
    cfg.egress = via[0] ? via : NULL;
    cfg.half_closed_timeout_ms = prog_or_never(s->common->half_closed_ms);
    cfg.on_state = on_state;
    cfg.ud = &r;
    cfg.common.tls = tls;
    prog_configure(s->common, &cfg.common);
    prog_log_config(log, &cfg.common);
    if (allow_read(s, &allow_file, &allow, &r.why) == 0) {
        cfg.allow = allow.items ? allow.items : no_rules;  // HUP may bring some
        rc = run(&r, &cfg);
    } else {
        prog_log_error(log, "allow.unreadable", &r.why);
    }
    free(allow.items);
    prog_file_close(&allow_file);
    return rc;
}

// With https:// or wss:// among the servers. Returns 0 if there is no TLS then.
static int open_tls(const settings *s, const char *url, revdial_tls **tls)
{
    revdial_err err = {0};
    if (!s->tls.ca && !s->tls.cert && !strstr(url, "https://") && !strstr(url, "wss://")) return 1;
    *tls = prog_tls_open(&s->tls, PROG_TLS_CLIENT, &err);
    if (!*tls) fprintf(stderr, "revdial-agent: %s\n", err.msg);
    return *tls != NULL;
}

int main(int argc, char **argv)
{
    settings s = {0};
    prog_cli cli = {.program = "revdial-agent", .usage = usage, .epilogue = epilogue};
    revdial_tls *tls = NULL;
    prog_log log;
    char *url, via[VIA_SIZE];
    int rc;
    prog_standard_streams();
    if (argc > 1 && strcmp(argv[1], "status") == 0) return prog_status_main(cli.program, argv + 2);
    cli.extra = prog_tls_version();
    cli.options = options;
    cli.option_count = sizeof options / sizeof options[0];
    cli.settings = &s;
    s.common = &cli.common;
    rc = prog_parse(&cli, argv);
    prog_log_open_as(&log, &cli.common);
    if (rc < 0 && (rc = settings_check(&cli, &s)) == 0 &&
        (rc = via_find(&cli, &s, via, sizeof via)) == 0) {
        url = prog_list_join(&s.servers);
        rc = PROG_FAILED;
        if (url && !open_tls(&s, url, &tls)) {
            rc = PROG_USAGE;
        } else if (url && cli.common.is_checking) {
            rc = prog_print_checked(&cli);
        } else if (url && prog_log_start(&log) == 0 && prog_catch_signals() == 0) {
            prog_warn_settings(&log, &cli);
            prog_warn_readable(&log, s.token_file);
            prog_warn_readable(&log, s.via_file);
            prog_warn_readable(&log, s.tls.key);
            prog_raise_descriptor_limit(&log);
            rc = serve(&s, url, via, tls, &log);
        } else {
            prog_logf(&log, REVDIAL_LOG_ERROR, "agent.failed", "%s", strerror(errno));
        }
        prog_tls_free(tls);
        free(url);
        prog_wipe(via, sizeof via);
    }
    prog_cli_free(&cli);
    return prog_log_finish(&log, rc);
}
