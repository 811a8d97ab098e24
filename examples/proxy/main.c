// revdial-proxy: agents register here, and each exposed address leads to one of them. See --help.
//
// The library's I/O threads accept clients, dial for them and carry the bytes; this one waits for
// signals.
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "credentials.h"
#include "routes.h"
#include "../program/program.h"

enum {
    ADDRESS_SIZE = 136,  // "unix:" and a sun_path, or an address and a port
    ANNOUNCE_MS = 1000   // for somebody to read what is printed: longer than a busy machine takes
};

typedef struct settings {
    prog_list listens, exposes, origins;
    token_paths credentials;
    int pick, dial_timeout_ms, is_waiting, is_early;
    prog_tls_files tls;
    const prog_common *common;
    revdial_proxy_config cfg;  // what needs no other form than the option's
} settings;

#define AT(field) offsetof(settings, field)
static const prog_option options[] = {
    {"listen", PROG_LIST, AT(listens), "ADDRESS",
     "where agents connect: HOST:PORT or unix:PATH; repeatable. Port 0 takes a\n"
     "free one and prints it: 'listening on ADDRESS'. [::]:PORT takes IPv4, too,\n"
     "unless an IPv4 address or a host name with that PORT is given as well",
     0, 0},
    {"expose", PROG_LIST, AT(exposes), "ADDRESS=NAME[/TARGET]",
     "connections to ADDRESS (HOST:PORT, a PORT of 127.0.0.1, or unix:PATH) go\n"
     "to the agent NAME, and there to TARGET (HOST:PORT or unix:PATH; default:\n"
     "the agent's own target); repeatable. Port 0 takes a free one and prints it:\n"
     "'listening on ADDRESS for NAME'",
     0, 0},
    {"unix-mode", PROG_MODE, AT(cfg.unix_mode), "MODE",
     "mode of all Unix sockets, in octal: with 0660 the users of the socket's\n"
     "group may connect (default: 0777 less the umask)",
     0, 0},
    {"token-file", PROG_TEXT, AT(credentials.tokens), "FILE",
     "who may register, one token per line (see below); default: the environment\n"
     "variable REVDIAL_TOKEN holds one token for every name",
     0, 0},
    {"auth-file", PROG_TEXT, AT(credentials.auth), "FILE",
     "who may register, by users with passwords, tokens or certificates, one per\n"
     "line (see below)",
     0, 0},
    {"tls-cert", PROG_TEXT, AT(tls.cert), "FILE",
     "certificate of this proxy, followed by those that lead to its authority.\n"
     "Agents then connect with TLS (https://); unix: stays plain",
     0, 0},
    {"tls-key", PROG_TEXT, AT(tls.key), "FILE", "key of that certificate, not encrypted", 0, 0},
    {"client-ca", PROG_TEXT, AT(tls.ca), "FILE",
     "certificate authorities of agents, and their revocation lists: only agents\n"
     "with a certificate of these are admitted",
     0, 0},
    {"path", PROG_TEXT, AT(cfg.path), "PATH", "path of the agents' request (default /revdial)", 0,
     0},
    {"origin", PROG_LIST, AT(origins), "ORIGIN",
     "web pages that may register from a browser: https://ops.example or a glob;\n"
     "repeatable (default: none)",
     0, 0},
    {"pick", PROG_CHOICE, AT(pick), "round-robin|least-streams",
     "how to choose between several agents of one name (default round-robin)", 0, 0},
    {"dial-timeout", PROG_DURATION, AT(dial_timeout_ms), "TIME",
     "longest time that a client waits for the agent to reach the target\n"
     "(default 10s)",
     1, 3600000},
    {"wait", PROG_FLAG, AT(is_waiting), NULL,
     "if no agent of the name is connected, wait for one, up to --dial-timeout", 0, 0},
    {"early", PROG_FLAG, AT(is_early), NULL,
     "forward a client's bytes before the target has accepted. A refusal then\n"
     "disconnects the client: no other agent is asked, and --dial-timeout does\n"
     "not apply",
     0, 0},
    {"auth-failures", PROG_NUMBER, AT(cfg.max_auth_failures), "N",
     "wrong credentials that one address may present for one name: N, then one\n"
     "every 5 s (default 10); for all names together 10 N, then one every 0.5 s.\n"
     "Above that it gets 429; 0: no limit",
     0, 1 << 20},
    {"io-threads", PROG_NUMBER, AT(cfg.common.io_threads), "N", "threads for the bytes (default 1)",
     1, 256},
    {"max-sessions", PROG_NUMBER, AT(cfg.max_sessions), "N", "most agents at once (default 65536)",
     1, 1 << 24},
    {"max-per-identity", PROG_NUMBER, AT(cfg.max_sessions_per_identity), "N",
     "most agents of one token, user or certificate at one time (default: no\n"
     "limit)",
     1, 1 << 24},
};

static const char usage[] =
    "revdial-proxy lets agents behind NAT register and opens connections to what they serve.\n"
    "\n"
    "Usage: revdial-proxy --listen ADDRESS --token-file FILE --expose ADDRESS=NAME ...\n"
    "\n"
    "Options:\n";

static const char epilogue[] =
    "\n"
    "TIME is 500ms, 30s, 5m or 2h.\n"
    "\n"
    "A line of the token file is TOKEN, or NAMES TOKEN. NAMES is a comma list of the names that\n"
    "the token may register, globs with * and ? (a TOKEN alone may register any name). TOKEN is\n"
    "the token, or 'sha256:' and its hash in hex. '#' starts a comment. Each token is an identity\n"
    "of its own: while it holds a name, other tokens cannot register that name. Only lines with\n"
    "the same NAMES, unless these are '*', share them, so that a token can be replaced by adding\n"
    "a line.\n"
    "\n"
    "A line of the auth file is [group=GROUP] SCHEMES NAMES USER SECRET:\n"
    "  SCHEMES  a comma list of bearer, basic and digest, or mtls alone\n"
    "  NAMES    as above\n"
    "  USER     the user name ('-' with bearer: as in the token file). With mtls a glob for\n"
    "           what a certificate proves, 'DNS:*.cams.example'\n"
    "  SECRET   the password or token, up to the end of the line. For basic and bearer it may\n"
    "           be 'sha256:' and its hash, for digest 'ha1:' and the SHA-256 of\n"
    "           USER:revdial:PASSWORD, in hex. mtls has none\n"
    "What '*' matched in the certificate of an mtls line is what '*' stands for in its NAMES:\n"
    "'mtls cam-* DNS:*.cams.example' lets 7.cams.example register cam-7 and nothing else. '**'\n"
    "in NAMES is any text. Certificates that one line admits share its names. Lines of one GROUP\n"
    "share their names.\n"
    "\n"
    "TERM and INT accept no new connections and let running ones end; a second signal, at least\n"
    "a second later, ends the program at once. HUP reads all files again: agents whose line is\n"
    "gone or has another secret are disconnected, the others stay, and new ones get the new\n"
    "certificate. If a file is wrong, its old content stays in force. USR1 and USR2 are ignored.\n"
    "\n"
    "Exit codes: 0 stopped, 1 failed, 2 usage, 4 cannot listen on an address.\n"
    "\n"
    "Examples:\n"
    "  Port 8080 here leads to the target of the agent cam-1:\n"
    "    revdial-proxy --listen 0.0.0.0:7000 --tls-cert proxy.pem --tls-key proxy.key \\\n"
    "        --token-file tokens --expose 0.0.0.0:8080=cam-1\n"
    "  Two services behind one agent, the second through a Unix socket:\n"
    "    revdial-proxy --listen 127.0.0.1:7000 --token-file tokens \\\n"
    "        --expose 8080=lab/10.1.0.5:80 --expose unix:/run/lab-ssh=lab/10.1.0.5:22\n";

// ------------------------------------------------------------------------------------------------
// Exposed addresses

typedef struct expose {
    char address[ADDRESS_SIZE];  // as asked for
    char name[ROUTE_NAME_SIZE];
    const char *target;  // NULL = the agent's own
} expose;

typedef struct app {
    settings s;
    prog_log log;
    revdial_proxy *proxy;
    revdial_tls *tls;
    expose *exposes;
    size_t expose_count;
    int wake[2];  // a pipe that a signal writes to
} app;

// Takes "ADDRESS=NAME[/TARGET]" apart. Returns NULL, or what is wrong with it.
static const char *expose_parse(expose *x, const char *spec)
{
    size_t address_len = strcspn(spec, "="), name_len;
    const char *name = spec + address_len + 1;
    const char *local = strspn(spec, "0123456789") == address_len ? "127.0.0.1:" : "";
    if (!spec[address_len] || address_len == 0) return "is not ADDRESS=NAME[/TARGET]";
    if (address_len + strlen(local) >= sizeof x->address) return "the address is too long in";
    name_len = strcspn(name, "/");
    if (!route_is_name(name, name_len)) return "the name must be 1 to 64 of a-z 0-9 . _ - in";
    snprintf(x->address, sizeof x->address, "%s%.*s", local, (int)address_len, spec);
    memcpy(x->name, name, name_len);
    x->target = name[name_len] ? name + name_len + 1 : NULL;
    return NULL;
}

// Is there none left of something that others give back?
static int is_shortage(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

// HUP: what files hold now is for the agents that come from now on, and for those whose line is
// gone. What is wrong changes nothing.
static void app_reload(app *a)
{
    token_table tokens = {0};
    revdial_err err = {0};
    char byte[16];
    int rc;
    if (!prog_hup) return;
    prog_hup = 0;
    while (read(a->wake[0], byte, sizeof byte) > 0) continue;
    if (token_table_read(&tokens, &a->s.credentials, &err) != 0) {
        prog_log_error(&a->log, "tokens.unreadable", &err);
    } else {
        rc = revdial_proxy_replace_credentials(a->proxy, tokens.rows, tokens.count,
                                               REVDIAL_END_STALE, &err);
        prog_logf(&a->log, rc ? REVDIAL_LOG_ERROR : REVDIAL_LOG_INFO, "proxy.reload",
                  "credentials: %s", rc ? err.msg : "replaced");
    }
    token_table_free(&tokens);
    prog_tls_reload(a->tls, &a->log);
}

// Until a signal asks to stop. Returns 0, or -1 with errno.
static int app_wait(app *a)
{
    struct pollfd wake = {.fd = a->wake[0], .events = POLLIN};
    while (!prog_stop) {
        if (poll(&wake, 1, -1) < 0 && errno != EINTR) return -1;
        app_reload(a);
    }
    return 0;
}

// ------------------------------------------------------------------------------------------------
// Start and stop

static void app_expose(const app *a, revdial_expose *exposes)
{
    for (size_t i = 0; i < a->expose_count; i++) {
        revdial_expose *x = &exposes[i];
        x->listen = a->exposes[i].address;
        x->name = a->exposes[i].name;
        x->dial.target = a->exposes[i].target;
        x->dial.timeout_ms = a->s.dial_timeout_ms;
        x->half_closed_ms = prog_or_never(a->s.common->half_closed_ms);
        x->dial.pick = a->s.pick == 0 ? REVDIAL_PICK_ROUND_ROBIN : REVDIAL_PICK_LEAST_STREAMS;
        if (a->s.is_waiting) x->dial.flags |= REVDIAL_DIAL_WAIT;
        if (a->s.is_early) x->dial.flags |= REVDIAL_DIAL_EARLY;
    }
}

static int app_open_proxy(app *a, const token_table *tokens)
{
    revdial_proxy_config cfg = a->s.cfg;
    revdial_err err = {0};
    char *listens = prog_list_join(&a->s.listens), *origins = prog_list_join(&a->s.origins);
    revdial_expose *exposes = calloc(a->expose_count + 1, sizeof *exposes);
    if (exposes) app_expose(a, exposes);
    cfg.exposes = a->expose_count ? exposes : NULL;
    cfg.expose_count = a->expose_count;
    cfg.listen = listens;
    cfg.origins = origins;
    cfg.credentials = tokens->rows;
    cfg.credential_count = tokens->count;
    cfg.max_auth_failures = prog_or_never(cfg.max_auth_failures);
    cfg.common.tls = a->tls;
    prog_configure(a->s.common, &cfg.common);
    prog_log_config(&a->log, &cfg.common);
    if (listens && origins && exposes) a->proxy = revdial_proxy_start(&cfg, &err);
    free(listens);
    free(origins);
    free(exposes);
    if (a->proxy) return 0;
    prog_log_error(&a->log, "proxy.failed", &err);
    if (err.code == REVDIAL_ESYS && !is_shortage(err.sys)) return PROG_CANNOT_BIND;
    return err.code == REVDIAL_EINVAL ? PROG_USAGE : PROG_FAILED;
}

// Says what the system did not do for us; errno has the reason.
static int app_failed(app *a, const char *what)
{
    prog_logf(&a->log, REVDIAL_LOG_ERROR, "proxy.failed", "%s: %s", what, strerror(errno));
    return PROG_FAILED;
}

// Prints a line on stdout, where often the pipe of a log is that nobody reads.
//   returns  1, 0 if it found no room, or -1
static int app_print(app *a, const char *line)
{
    struct pollfd out = {STDOUT_FILENO, POLLOUT, 0};
    size_t len = strlen(line);  // below PIPE_BUF: all of it has room or nothing
    int r;
    do r = poll(&out, 1, ANNOUNCE_MS);
    while (r < 0 && errno == EINTR);
    if (r == 0)
        prog_logf(&a->log, REVDIAL_LOG_WARN, "stdout.full", "stdout is not read: %.*s",
                  (int)len - 1, line);
    if (r == 0) return 0;
    if (r > 0 && write(STDOUT_FILENO, line, len) == (ssize_t)len) return 1;
    app_failed(a, "cannot print the addresses");
    return -1;
}

// Says where we listen, for people and for scripts that gave port 0.
static int app_announce(app *a)
{
    char address[ADDRESS_SIZE], line[ADDRESS_SIZE + ROUTE_NAME_SIZE + 32];
    unsigned i, count = 0;
    int r = 1;
    while (revdial_proxy_address(a->proxy, count, address, sizeof address) >= 0) count++;
    for (i = 0; r > 0 && i < count; i++) {
        size_t at = i + a->expose_count - count;  // those of the exposed ports come last
        revdial_proxy_address(a->proxy, i, address, sizeof address);
        if (i + a->expose_count < count)
            snprintf(line, sizeof line, "listening on %s\n", address);
        else
            snprintf(line, sizeof line, "listening on %s for %s\n", address, a->exposes[at].name);
        r = app_print(a, line);
    }
    return r < 0 ? PROG_FAILED : 0;
}

static int app_open(app *a, const token_table *tokens)
{
    int rc;
    if (prog_wake_open(a->wake) != 0) return app_failed(a, "no pipe for signals");
    if (prog_catch_signals() != 0) return app_failed(a, "cannot catch signals");
    rc = app_open_proxy(a, tokens);
    return rc == 0 ? app_announce(a) : rc;
}

static int app_run(app *a)
{
    int rc = app_wait(a), drain_ms = a->s.common->drain_ms;
    if (rc != 0) app_failed(a, "waiting for signals");
    prog_logf(&a->log, REVDIAL_LOG_INFO, "proxy.draining", "for at most %d ms", drain_ms);
    if (revdial_proxy_drain(a->proxy, drain_ms) != REVDIAL_OK)
        prog_logf(&a->log, REVDIAL_LOG_WARN, "proxy.cut",
                  "some connections were still open when --drain ended");
    prog_log_put(&a->log, REVDIAL_LOG_INFO, "proxy.stopped", "");
    return rc == 0 ? PROG_STOPPED : PROG_FAILED;
}

static void app_free(app *a)
{
    revdial_proxy_stop(a->proxy);  // ends all connections: on_client() has run for each
    prog_tls_free(a->tls);
    prog_wake_close(a->wake);
    free(a->exposes);
    free(a->s.listens.items);
    free(a->s.exposes.items);
    free(a->s.origins.items);
}

// Returns 0 if there should be TLS and there is none.
static int app_open_tls(app *a)
{
    revdial_err err = {0};
    if (!a->s.tls.cert && !a->s.tls.key && !a->s.tls.ca) return 1;
    a->tls = prog_tls_open(&a->s.tls, PROG_TLS_SERVER, &err);
    if (!a->tls) fprintf(stderr, "revdial-proxy: %s\n", err.msg);
    return a->tls != NULL;
}

// Takes the settings apart. Returns 0 or PROG_USAGE.
static int app_prepare(app *a, const prog_cli *cli, token_table *tokens)
{
    revdial_err err = {0};
    const char *problem;
    size_t i;
    if (a->s.listens.count == 0) return prog_usage_error(cli, "listen", "missing", NULL);
    a->exposes = calloc(a->s.exposes.count + 1, sizeof *a->exposes);
    if (!a->exposes) return PROG_FAILED;
    for (i = 0; i < a->s.exposes.count; i++) {
        problem = expose_parse(&a->exposes[i], a->s.exposes.items[i]);
        if (problem) return prog_usage_error(cli, "expose", problem, a->s.exposes.items[i]);
    }
    a->expose_count = i;
    if (!app_open_tls(a)) return PROG_USAGE;
    if (token_table_read(tokens, &a->s.credentials, &err) == 0) return 0;
    return prog_usage_error(cli, a->s.credentials.auth ? "auth-file" : "token-file", err.msg, NULL);
}

// What works, and is not what its operator wants.
static void app_warn(app *a, const prog_cli *cli)
{
    prog_warn_repeated(&a->log, cli);
    prog_warn_readable(&a->log, a->s.credentials.tokens);
    prog_warn_readable(&a->log, a->s.credentials.auth);
    prog_warn_readable(&a->log, a->s.tls.key);
    if (a->expose_count == 0)
        prog_logf(&a->log, REVDIAL_LOG_WARN, "expose.none",
                  "there is no --expose: agents can register, but no client can reach them");
}

int main(int argc, char **argv)
{
    app a = {.wake = {-1, -1}};
    prog_cli cli = {.program = "revdial-proxy", .usage = usage, .epilogue = epilogue};
    cli.extra = prog_tls_version();
    token_table tokens = {0};
    int rc;
    (void)argc;
    prog_standard_streams();
    a.s.dial_timeout_ms = 10000;
    a.s.cfg.max_auth_failures = 10;
    a.s.common = &cli.common;
    cli.options = options;
    cli.option_count = sizeof options / sizeof options[0];
    cli.settings = &a.s;
    rc = prog_parse(&cli, argv);
    prog_log_open_as(&a.log, &cli.common);
    if (rc < 0 && (rc = app_prepare(&a, &cli, &tokens)) == 0) {
        rc = prog_log_start(&a.log) == 0 ? PROG_STOPPED : app_failed(&a, "no thread for the log");
        prog_raise_descriptor_limit(&a.log);
        if (rc == 0) rc = app_open(&a, &tokens);
        token_table_free(&tokens);
        if (rc == 0) app_warn(&a, &cli);
        if (rc == 0) rc = app_run(&a);
    }
    token_table_free(&tokens);
    app_free(&a);
    return prog_log_finish(&a.log, rc);
}
