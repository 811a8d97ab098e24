// The table of revdial-agent's options, and what becomes of their values.
#include "settings.h"

#include "../program/admin.h"
#include "forward.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum auth { AUTH_BEARER, AUTH_BASIC, AUTH_DIGEST };  // in the order of the option

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
     0, 0, PROG_LIVE | PROG_SECTION | PROG_IN_ALLOW},
    {"allow-file", PROG_PATH, AT(allow_file), "FILE",
     "file with more patterns, one per line; HUP reads it again", 0, 0, PROG_LIVE},
    {"forward", PROG_LIST, AT(forwards), "ADDRESS=TARGET",
     "the other way round: connections to ADDRESS (HOST:PORT, a PORT of 127.0.0.1,\n"
     "or unix:PATH) go through the tunnel to TARGET on the proxy's side, if its\n"
     "--allow permits that; repeatable. Port 0 takes a free one and prints it",
     0, 0},
    {"proxy-protocol", PROG_CHOICE, AT(cfg.proxy_protocol), "0|1|2",
     "send targets the client's address in a PROXY header of this version", 0, 0,
     PROG_LIVE | PROG_IN_ALLOW},
    {"connect-timeout", PROG_DURATION, AT(cfg.connect_timeout_ms), "TIME",
     "longest time to connect to a target (default 5s)", 1, 3600000, PROG_LIVE | PROG_IN_ALLOW},
    {"idle-timeout", PROG_DURATION, AT(cfg.idle_timeout_ms), "TIME",
     "end streams that carry no byte for TIME (default 0: never)", 0, INT_MAX,
     PROG_LIVE | PROG_IN_ALLOW},
    {"all-addresses", PROG_FLAG, AT(cfg.all_addresses), NULL,
     "connect to every address of the server's host name, not just to one. The\n"
     "name is looked up again and again: a new address gets a session, and that\n"
     "to one that is gone drains",
     0, 0},
    {"resolve-interval", PROG_DURATION, AT(cfg.resolve_ms), "TIME",
     "time between these lookups, give or take a quarter (default 30s)", 1000, 3600000},
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
    "TIME is 500ms, 30s, 5m or 2h. RATE is bytes per second: 500k, 2M or 1G.\n"
    "\n"
    "Each option may also stand in a configuration file, 'tls-ca = FILE', and in the environment,\n"
    "REVDIAL_TLS_CA=FILE. The command line beats the environment, which beats the file. Lists\n"
    "repeat the line, or have commas in the environment. Options without a value are yes or no.\n"
    "'[allow PATTERN]' in the file is a section: proxy-protocol, connect-timeout, idle-timeout "
    "and\n"
    "half-closed-timeout in it are for targets that PATTERN covers as they are asked for.\n"
    "\n"
    "After a lost connection the agent reconnects. Each wait is random, at first up to 0.5 s,\n"
    "later up to 30 s, and 15 to 30 s after the proxy has rejected it. It reads the token and\n"
    "the certificates again before each attempt. On TERM or INT it accepts no new streams and\n"
    "waits for running ones, up to --drain; a second signal, at least a second later, ends the\n"
    "program at once. HUP reads all files again; if anything is wrong, nothing changes. USR2\n"
    "writes a line about sessions and streams to the log. USR1 is ignored.\n"
    "\n"
    "'revdial-agent doctor [TARGET ...] OPTIONS' looks at each hop to the proxy, and at the "
    "targets,\n"
    "and says which of them work, and of those that do not what to do.\n"
    "\n"
    "'revdial-agent status --admin ADDRESS' prints a table of the links and sessions of an agent\n"
    "that runs with that --admin, and with --json the same for programs.\n"
    "\n"
    "Exit codes: 0 stopped, 1 failed, 2 usage, 3 the proxy has rejected the token or the name, or\n"
    "the egress proxy the login, before the first session, 4 cannot listen on an address.\n"
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

// Reads the one token or password that a file holds. Returns 0, or -1 and the reason in err->msg.
static int token_read(const settings *s, char *secret, size_t size, revdial_err *err)
{
    prog_file file;
    const char *path = s->token_file, *problem = NULL;
    const char *token = prog_file_open(&file, path, err) == 0 ? prog_file_next(&file) : NULL;
    if (!err->msg[0] && (!token || strlen(token) >= size || prog_file_next(&file)))
        problem = "one line is expected, with a token or password";
    if (!err->msg[0] && !problem) problem = secret_problem(token, s->cfg.user, s->auth);
    if (problem) snprintf(err->msg, sizeof err->msg, "%s:%u: %s", path, file.line, problem);
    if (!err->msg[0]) memcpy(secret, token, strlen(token) + 1);
    prog_file_close(&file);
    return err->msg[0] ? -1 : 0;
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
    char token[PROG_TOKEN_SIZE];
    revdial_err err = {0};
    int rc;
    if (s->servers.count == 0) return prog_usage_error(cli, "server", "missing", NULL);
    if (!s->cfg.name) return prog_usage_error(cli, "name", "missing", NULL);
    for (size_t i = 0; i < s->forwards.count; i++) {
        const char *problem = forward_problem(s->forwards.items[i]);
        if (problem) return prog_usage_error(cli, "forward", problem, s->forwards.items[i]);
    }
    if (!s->cfg.default_target && s->allow.count + s->forwards.count == 0 && !s->allow_file)
        return prog_usage_error(cli, "target",
                                "missing: give --target, --allow, --allow-file or --forward", NULL);
    if (!s->token_file && !s->token && !s->tls.cert)
        return prog_usage_error(cli, "token-file", "missing, and so is REVDIAL_TOKEN", NULL);
    if (s->auth == AUTH_BEARER && s->cfg.user)
        return prog_usage_error(cli, "user", "needs --auth basic or --auth digest:", s->cfg.user);
    if (s->auth != AUTH_BEARER && !s->cfg.user)
        return prog_usage_error(cli, "user", "missing: --auth basic and digest need it", NULL);
    if (s->cfg.user && strpbrk(s->cfg.user, ":\"\\"))
        return prog_usage_error(cli, "user", "must have no : \" or \\ in it:", s->cfg.user);
    if (s->token_file) {
        rc = token_read(s, token, sizeof token, &err);
        prog_wipe(token, sizeof token);
        return rc == 0 ? 0 : prog_usage_error(cli, "token-file", err.msg, NULL);
    }
    if (!s->token || !secret_problem(s->token, s->cfg.user, s->auth)) return 0;
    return prog_usage_error(cli, "token", secret_problem(s->token, s->cfg.user, s->auth), NULL);
}

// A revdial_credential_fn: what cannot be read now may be there at the next attempt.
int sources_fresh(void *ud, unsigned attempt, char *secret, size_t size)
{
    const sources *from = ud;
    const settings *s = &from->config->s;
    revdial_err err = {0};
    int rc = 0;
    if (attempt > 1 && prog_tls_reload(from->config->tls, &err) != REVDIAL_OK)
        prog_log_error(from->log, "tls.unreadable", &err);
    if (s->token_file)
        rc = token_read(s, secret, size, &err);
    else
        snprintf(secret, size, "%s", s->token ? s->token : "");
    if (rc < 0) prog_log_error(from->log, "token.unreadable", &err);
    return rc < 0 ? REVDIAL_ESYS : REVDIAL_OK;
}

// What the agent may connect to: the options and the file. Returns 0 or an exit code.
static int config_allow(config *c)
{
    revdial_err err = {0};
    const char *line, *problem = NULL;
    for (size_t i = 0; i < c->s.allow.count; i++) {
        const char *rule = c->s.allow.items[i];
        problem = revdial_allow_problem(rule);
        if (problem) return prog_usage_error(&c->cli, "allow", problem, rule);
        if (prog_list_add(&c->allow, rule) != 0) return PROG_FAILED;
    }
    if (!c->s.allow_file) return 0;
    if (prog_file_open(&c->allow_file, c->s.allow_file, &err) != 0)
        return prog_usage_error(&c->cli, "allow-file", err.msg, NULL);
    while ((line = prog_file_next(&c->allow_file))) {
        problem = revdial_allow_problem(line);
        if (problem)
            return prog_complain(&c->cli, "%s:%u: %s: \"%s\"", c->s.allow_file, c->allow_file.line,
                                 problem, line);
        if (prog_list_add(&c->allow, line) != 0) return PROG_FAILED;
    }
    return 0;
}

// What the sections of [allow] say. Returns 0 or an exit code.
static int config_targets(config *c)
{
    c->targets = calloc(c->s.allow.count + 1, sizeof *c->targets);
    if (!c->targets) return PROG_FAILED;
    for (size_t i = 0; i < c->s.allow.count; i++) {
        target_row *row = &c->targets[c->target_count];
        settings s = c->s;
        prog_common common = c->cli.common;
        int rc = prog_item_apply(&c->cli, c->s.allow.items[i], &s, &common);
        if (rc != 0) return rc;
        *row = (target_row){c->s.allow.items[i], s.cfg.proxy_protocol, s.cfg.connect_timeout_ms,
                            s.cfg.idle_timeout_ms, prog_or_never(common.half_closed_ms)};
        c->target_count += row->proxy_protocol != c->s.cfg.proxy_protocol ||
                           row->connect_timeout_ms != c->s.cfg.connect_timeout_ms ||
                           row->idle_timeout_ms != c->s.cfg.idle_timeout_ms ||
                           common.half_closed_ms != c->cli.common.half_closed_ms;
    }
    return 0;
}

void config_serve(const config *c, revdial_target_request *r)
{
    r->proxy_protocol = c->agent.proxy_protocol;
    r->connect_timeout_ms = c->agent.connect_timeout_ms;
    r->idle_timeout_ms = c->agent.idle_timeout_ms;
    for (size_t i = 0; r->target && i < c->target_count; i++) {
        const target_row *row = &c->targets[i];
        if (!revdial_target_allowed((const char *const[]){row->pattern, NULL}, r->target)) continue;
        r->proxy_protocol = row->proxy_protocol;
        r->connect_timeout_ms = row->connect_timeout_ms;
        r->idle_timeout_ms = row->idle_timeout_ms;
        r->half_closed_timeout_ms = row->half_closed_timeout_ms;
        return;
    }
}

// With https:// or wss:// among the servers. Returns 0 or an exit code.
static int config_open_tls(config *c)
{
    revdial_err err = {0};
    if (!c->s.tls.ca && !c->s.tls.cert && !strstr(c->url, "https://") && !strstr(c->url, "wss://"))
        return 0;
    c->tls = prog_tls_open(&c->s.tls, PROG_TLS_CLIENT, &err);
    return c->tls ? 0 : prog_complain(&c->cli, "%s", err.msg);
}

// What the library is given, and would refuse. Returns 0 or an exit code.
static int config_fill(config *c)
{
    static const char *const no_rules[] = {NULL};
    revdial_agent_config *cfg = &c->agent;
    revdial_err err = {0};
    *cfg = c->s.cfg;
    cfg->url = c->url;
    cfg->credential_fn = sources_fresh;
    cfg->auth_schemes = auth_schemes[c->s.auth];
    cfg->egress = c->via[0] ? c->via : NULL;
    cfg->half_closed_timeout_ms = prog_or_never(c->cli.common.half_closed_ms);
    cfg->allow = c->allow.items ? c->allow.items : no_rules;  // HUP may bring some
    cfg->common.tls = c->tls;
    prog_configure(&c->cli.common, &cfg->common);
    if (revdial_agent_check(cfg, &err) != REVDIAL_EINVAL) return 0;  // the start tells of others
    return prog_refused(&c->cli, err.msg, NULL, NULL);
}

int config_open(config *c, char **argv, prog_log *log)
{
    int rc;
    memset(c, 0, sizeof *c);
    c->cli = (prog_cli){.program = "revdial-agent", .usage = usage, .epilogue = epilogue};
    c->cli.extra = prog_tls_version();
    c->cli.options = options;
    c->cli.option_count = sizeof options / sizeof options[0];
    c->cli.settings = &c->s;
    c->cli.log = log;
    rc = prog_parse(&c->cli, argv);
    if (rc >= 0) return rc;
    rc = settings_check(&c->cli, &c->s);
    if (rc == 0) rc = via_find(&c->cli, &c->s, c->via, sizeof c->via);
    if (rc == 0) rc = config_allow(c);
    if (rc == 0) rc = config_targets(c);
    if (rc == 0 && !(c->url = prog_list_join(&c->s.servers))) rc = PROG_FAILED;
    if (rc == 0) rc = config_open_tls(c);
    if (rc == 0) rc = config_fill(c);
    if (rc == 0) rc = prog_admin_check(&c->cli);
    return rc == 0 ? -1 : rc;
}

void config_close(config *c)
{
    free(c->allow.items);
    free(c->targets);
    prog_file_close(&c->allow_file);
    prog_tls_free(c->tls);
    free(c->url);
    prog_wipe(c->via, sizeof c->via);
    prog_cli_free(&c->cli);
    memset(c, 0, sizeof *c);
}
