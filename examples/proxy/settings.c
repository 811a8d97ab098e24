// The table of revdial-proxy's options, and what becomes of their values.
#include "peers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "help.h"
#include "sockets.h"

// An agent opens a stream for each client of its --forward. With the 65,536 of the library, and the
// rates of floods that scale with them, one agent could open and reset 50,000 streams at once, each
// with a connection to a target, while others waited.
enum { STREAMS_OF_AGENT = 4096 };

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
     0, 0, PROG_LIVE | PROG_SECTION | PROG_IN_EXPOSE},
    {"connect", PROG_LIST, AT(connects), "ADDRESS",
     "HTTP CONNECT, for clients that say where they want to go; repeatable. The\n"
     "agent is that of a --route, or else the user name of Proxy-Authorization",
     0, 0, PROG_LIVE | PROG_SECTION | PROG_IN_EXPOSE},
    {"socks5", PROG_LIST, AT(socks5s), "ADDRESS",
     "SOCKS5 in the same way: the user name is the agent's name, and any password\n"
     "will do. Host names are looked up where the agent is; repeatable",
     0, 0, PROG_LIVE | PROG_SECTION | PROG_IN_EXPOSE},
    {"sni", PROG_LIST, AT(snis), "ADDRESS",
     "TLS, to where a --route leads for the server that the client names; it ends\n"
     "there, not here; repeatable",
     0, 0, PROG_LIVE | PROG_SECTION | PROG_IN_EXPOSE},
    {"http", PROG_LIST, AT(https), "ADDRESS",
     "HTTP/1.1 and 1.0: each request goes to where a --route leads for its Host;\n"
     "repeatable",
     0, 0},
    {"route", PROG_LIST, AT(routes), "PATTERN=NAME[/TARGET]",
     "clients of --connect, --socks5, --sni and --http that want to go to PATTERN\n"
     "go to the agent NAME, and there to TARGET (see below); repeatable",
     0, 0, PROG_LIVE | PROG_SECTION | PROG_IN_ROUTE},
    {"allow-from", PROG_LIST, AT(allow_from), "NET",
     "clients that are accepted: addresses, networks like 10.0.0.0/8, and 'unix:';\n"
     "repeatable (default: all). It does not concern --sockets",
     0, 0, PROG_LIVE | PROG_IN_EXPOSE},
    {"trusted-proxies", PROG_LIST, AT(trusted), "NET",
     "balancers, in the same form, whose connections begin with a PROXY header.\n"
     "Its client is the client from then on. For --http they are proxies whose\n"
     "X-Forwarded-For and its kind are believed; repeatable",
     0, 0, PROG_LIVE | PROG_IN_EXPOSE},
    {"http-proxy-header", PROG_FLAG, AT(has_http_header), NULL,
     "connections of --trusted-proxies to --http begin with a PROXY header, too;\n"
     "X-Forwarded-For is then replaced",
     0, 0},
    {"allow", PROG_LIST, AT(allow), "PATTERN",
     "targets that agents may connect to on this side, by their --forward, checked\n"
     "after resolution; repeatable (default: none): 127.0.0.1:22,\n"
     "10.0.0.0/8:80-90, [fd00::]/8:*, *.svc.local:443, unix:/run/x",
     0, 0, PROG_LIVE},
    {"sockets", PROG_TEXT, AT(sockets), "DIR",
     "a Unix socket for each agent that is registered, DIR/NAME.sock, that leads\n"
     "to the agent's own target",
     0, 0},
    {"unix-mode", PROG_MODE, AT(cfg.unix_mode), "MODE",
     "mode of the Unix sockets for agents and clients, in octal: with 0660 the\n"
     "users of the socket's group may connect (default: 0777 less the umask)",
     0, 0},
    {"token-file", PROG_PATH, AT(credentials.tokens), "FILE",
     "who may register, one token per line (see below); default: one token for\n"
     "every name, from the environment (REVDIAL_TOKEN) or the file (token)",
     0, 0, PROG_LIVE | PROG_IN_GROUP},
    {"auth-file", PROG_PATH, AT(credentials.auth), "FILE",
     "who may register, by users with passwords, tokens or certificates, one per\n"
     "line (see below)",
     0, 0, PROG_LIVE | PROG_IN_GROUP},
    {"auth-url", PROG_TEXT, AT(external.url), "URL",
     "asked about what these files do not know, http:// or https://. It gets the\n"
     "agent's Authorization; 200 admits, 401 and 403 refuse (see below)",
     0, 0, PROG_LIVE | PROG_IN_GROUP},
    {"auth-ca", PROG_PATH, AT(external.ca), "FILE",
     "certificate authorities trusted for --auth-url (default: the system's)", 0, 0,
     PROG_LIVE | PROG_IN_GROUP},
    {"auth-timeout", PROG_DURATION, AT(external.timeout_ms), "TIME",
     "longest time that it may take to answer (default 5s)", 1, 9000, PROG_LIVE | PROG_IN_GROUP},
    {"hosts", PROG_LIST, AT(hosts), "HOST",
     "hosts that agents serve whose line names none: like a --route to them while\n"
     "they are registered; repeatable",
     0, 0, PROG_LIVE | PROG_IN_GROUP},
    {"token", PROG_TEXT, AT(credentials.token), "TOKEN",
     "a token for every name, where there is neither of these files", 0, 0,
     PROG_LIVE | PROG_SECRET | PROG_NO_ARGV},
    {"group", PROG_LIST, AT(groups), "NAME", "identities that share their names", 0, 0,
     PROG_LIVE | PROG_SECTION | PROG_IN_GROUP | PROG_NO_ARGV | PROG_NO_ENV},
    {"peer", PROG_LIST, AT(peers), "URL",
     "where another proxy listens for agents, as an agent's --server has it. That\n"
     "proxy then asks this one for agents that it does not have; each of the two\n"
     "names the other; repeatable, up to 8",
     0, 0, PROG_LIVE},
    {"peer-token-file", PROG_PATH, AT(credentials.peers), "FILE",
     "file with the secret that all peers share; each proves to the other that it\n"
     "knows it, and it is not sent",
     0, 0, PROG_LIVE},
    {"peer-ca", PROG_PATH, AT(peer_ca), "FILE",
     "certificate authorities trusted for peers (default: the system's)", 0, 0, PROG_LIVE},
    {"tls-cert", PROG_PATH, AT(tls.cert), "FILE",
     "certificate of this proxy, followed by those that lead to its authority.\n"
     "Agents then connect with TLS (https://); unix: stays plain",
     0, 0},
    {"tls-key", PROG_PATH, AT(tls.key), "FILE", "key of that certificate, not encrypted", 0, 0},
    {"client-ca", PROG_PATH, AT(tls.ca), "FILE",
     "certificate authorities of agents, and their revocation lists: only agents\n"
     "with a certificate of these are admitted",
     0, 0},
    {"path", PROG_TEXT, AT(cfg.path), "PATH", "path of the agents' request (default /revdial)", 0,
     0},
    {"origin", PROG_LIST, AT(origins), "ORIGIN",
     "web pages that may register from a browser: https://ops.example or a glob;\n"
     "repeatable (default: none)",
     0, 0},
    {"pick", PROG_TEXT, AT(pick), "RULE",
     "how to choose between several agents of one name: round-robin, least-streams,\n"
     "client (its address), host (that it asks for: Host, the server name of TLS,\n"
     "the destination), or header:NAME (of a request to --http). With the latter\n"
     "three, clients that have the same get the same agent while that is well; one\n"
     "that has none gets the next (default round-robin)",
     0, 0, PROG_LIVE | PROG_IN_EXPOSE | PROG_IN_ROUTE},
    {"health", PROG_TEXT, AT(health.how), "CHECK",
     "check what ports and routes lead to, through the tunnel, and let clients go\n"
     "to other agents of the name while it fails: tcp (it accepts a connection),\n"
     "http:/PATH or http://HOST/PATH (it answers with 2xx or 3xx) (default none)",
     0, 0, PROG_LIVE | PROG_IN_EXPOSE | PROG_IN_ROUTE},
    {"health-interval", PROG_DURATION, AT(health.interval_ms), "TIME",
     "time between two checks of one agent (default 5s)", 100, 3600000,
     PROG_LIVE | PROG_IN_EXPOSE | PROG_IN_ROUTE},
    {"health-timeout", PROG_DURATION, AT(health.timeout_ms), "TIME",
     "time until a check has failed (default 2s)", 10, 600000,
     PROG_LIVE | PROG_IN_EXPOSE | PROG_IN_ROUTE},
    {"health-fall", PROG_NUMBER, AT(health.fall), "N",
     "checks in a row that fail until clients go elsewhere (default 3). The first\n"
     "check of an agent counts by itself",
     1, 1000, PROG_LIVE | PROG_IN_EXPOSE | PROG_IN_ROUTE},
    {"health-rise", PROG_NUMBER, AT(health.rise), "N",
     "checks in a row that succeed until they come back (default 2)", 1, 1000,
     PROG_LIVE | PROG_IN_EXPOSE | PROG_IN_ROUTE},
    {"dial-timeout", PROG_DURATION, AT(dial_timeout_ms), "TIME",
     "longest time that a client waits for the agent to reach the target\n"
     "(default 10s)",
     1, 3600000, PROG_LIVE | PROG_IN_EXPOSE},
    {"wait", PROG_FLAG, AT(is_waiting), NULL,
     "if no agent of the name is connected, wait for one, up to --dial-timeout", 0, 0,
     PROG_LIVE | PROG_IN_EXPOSE},
    {"early", PROG_FLAG, AT(is_early), NULL,
     "forward a client's bytes before the target has accepted. A refusal then\n"
     "disconnects the client: no other agent is asked, and --dial-timeout does\n"
     "not apply",
     0, 0, PROG_LIVE | PROG_IN_EXPOSE},
    {"max-clients", PROG_NUMBER, AT(max_clients), "N",
     "most clients of each exposed address at one time; more get 503, a SOCKS5\n"
     "reply, or are disconnected (default 0: no limit)",
     0, 1 << 24, PROG_LIVE | PROG_IN_EXPOSE},
    {"max-clients-per-source", PROG_NUMBER, AT(max_clients_per_source), "N",
     "the same of those that come from one IPv4 address or one IPv6 /64; more get\n"
     "429. Behind --trusted-proxies the source is whom their PROXY header names",
     0, 1 << 24, PROG_LIVE | PROG_IN_EXPOSE},
    {"max-streams", PROG_NUMBER, AT(cfg.common.limits.max_own_streams), "N",
     "most connections through one agent at one time (default: what the agent\n"
     "accepts)",
     1, 1 << 24, PROG_LIVE | PROG_IN_GROUP},
    {"auth-failures", PROG_NUMBER, AT(cfg.max_auth_failures), "N",
     "wrong credentials that one address may present for one name: N, then one\n"
     "every 5 s (default 10); for all names together 10 N, then one every 0.5 s.\n"
     "Above that it gets 429; 0: no limit",
     0, 1 << 20},
    {"io-threads", PROG_NUMBER, AT(cfg.common.io_threads), "N", "threads for the bytes (default 1)",
     1, 256},
    {"max-sessions", PROG_NUMBER, AT(cfg.max_sessions), "N", "most agents at once (default 65536)",
     1, 1 << 24, PROG_LIVE},
    {"max-per-identity", PROG_NUMBER, AT(cfg.max_sessions_per_identity), "N",
     "most agents of one token, user or certificate at one time (default: no\n"
     "limit)",
     1, 1 << 24, PROG_LIVE | PROG_IN_GROUP},
};

// ------------------------------------------------------------------------------------------------
// Exposed addresses

// An address of ours; a number alone is a port of this machine. Returns NULL, or what is wrong.
static const char *expose_listen(const config *c, expose *x, const char *address, size_t len)
{
    const char *local = strspn(address, "0123456789") == len ? "127.0.0.1:" : "";
    char whole[ADDRESS_SIZE];
    if (len + strlen(local) >= sizeof whole) return "the address is too long in";
    snprintf(whole, sizeof whole, "%s%.*s", local, (int)len, address);
    x->x.listen = x->address;
    return prog_listen_address(&c->cli, whole, x->address, sizeof x->address);
}

// Takes "ADDRESS=NAME[/TARGET]" apart. Returns NULL, or what is wrong with it.
static const char *expose_parse(const config *c, expose *x, const char *spec)
{
    size_t address_len = strcspn(spec, "="), name_len;
    const char *name = spec + address_len + 1;
    if (!spec[address_len] || address_len == 0) return "is not ADDRESS=NAME[/TARGET]";
    name_len = strcspn(name, "/");
    if (!route_is_name(name, name_len)) return "the name must be 1 to 64 of a-z 0-9 . _ - in";
    memcpy(x->name, name, name_len);
    x->x.name = x->name;
    x->x.dial.target = name[name_len] ? name + name_len + 1 : NULL;
    return expose_listen(c, x, spec, address_len);
}

// A front end at that address. Returns NULL, or what is wrong with it.
static const char *expose_front(const config *c, expose *x, const front_kind *kind,
                                const char *address)
{
    snprintf(x->name, sizeof x->name, "--%s", kind->option);
    x->x.route = kind->route;
    x->x.route_done = kind->done;
    x->x.route_bytes_max = kind->bytes_max;
    return expose_listen(c, x, address, strlen(address));
}

// What settings say of an exposed address.
static void expose_set(revdial_expose *x, const config *c, const settings *s,
                       const prog_common *common)
{
    x->dial.timeout_ms = s->dial_timeout_ms;
    x->half_closed_ms = prog_or_never(common->half_closed_ms);
    pick_set(&x->dial, s->pick);
    if (!x->route && pick_rule(&x->dial)) pick_by(&x->dial, NULL, 0);
    if (s->is_waiting) x->dial.flags |= REVDIAL_DIAL_WAIT;
    if (s->is_early) x->dial.flags |= REVDIAL_DIAL_EARLY;
    x->allow_from = *c->allow_from ? c->allow_from : NULL;
    x->trusted_proxies = *c->trusted ? c->trusted : NULL;
    x->max_clients = s->max_clients;
    x->max_clients_per_source = s->max_clients_per_source;
}

void config_expose_set(const config *c, expose *x)
{
    x->x.dial.flags = 0;
    expose_set(&x->x, c, &c->s, &c->cli.common);
}

const char *config_expose_one(const config *c, expose *x, const char *spec)
{
    x->option = "expose";
    x->item = spec;
    config_expose_set(c, x);
    return expose_parse(c, x, spec);
}

// Returns 0 or an exit code.
static int config_pick(const config *c, const char *rule)
{
    const char *problem = pick_problem(rule);
    return problem ? prog_usage_error(&c->cli, "pick", problem, rule) : 0;
}

// Has agents of "NAME[/TARGET]" checked; NULL: of none. Returns 0 or an exit code.
static int config_health(config *c, const char *way, const health_rule *rule)
{
    const char *problem = rule->how ? health_problem(rule->how) : NULL;
    if (problem) return prog_usage_error(&c->cli, "health", problem, rule->how);
    return !way || health_add(&c->health, way, rule) == 0 ? 0 : PROG_FAILED;
}

// Is the rule of a section one that its clients can never meet? Returns NULL, or why.
static const char *expose_pick_problem(const expose *x, const char *rule)
{
    if (pick_header(rule)) return "only requests to --http have fields: put it into a [route] of";
    if (!x->x.route && pick_needs_request(rule)) return "clients of an [expose] name no host:";
    return NULL;
}

// What the options say of an exposed address, and its section before them. Returns 0 or an exit
// code.
static int expose_configure(config *c, expose *x)
{
    settings s = c->s;
    prog_common common = c->cli.common;
    int rc = prog_item_apply(&c->cli, x->item, &s, &common);
    const char *problem = s.pick != c->s.pick ? expose_pick_problem(x, s.pick) : NULL;
    if (rc == 0) rc = config_pick(c, s.pick);
    if (rc == 0 && problem) rc = prog_usage_error(&c->cli, "pick", problem, s.pick);
    if (rc == 0 && s.health.how != c->s.health.how && x->x.route)
        rc = prog_usage_error(&c->cli, "health", "no agent is named here: put it into a [route] of",
                              s.health.how);
    if (rc == 0 && !x->x.route) rc = config_health(c, strchr(x->item, '=') + 1, &s.health);
    if (rc != 0) return rc;
    expose_set(&x->x, c, &s, &common);
    if (prog_item_join(&c->cli, x->item, "allow-from", &x->allow_from) != 0 ||
        prog_item_join(&c->cli, x->item, "trusted-proxies", &x->trusted) != 0)
        return PROG_FAILED;
    if (x->allow_from) x->x.allow_from = x->allow_from;
    if (x->trusted) x->x.trusted_proxies = x->trusted;
    return 0;
}

// Do both stand for the same "systemd:NAME"? --check may not know its address.
static int expose_is_passed_twice(const expose *x, const expose *y)
{
    size_t len = strcspn(x->item, "=");
    return strncmp(x->item, "systemd:", 8) == 0 && strcspn(y->item, "=") == len &&
           memcmp(x->item, y->item, len) == 0;
}

// Is its address that of one before it? Each address with the port 0 is another one.
static int expose_is_second(const config *c, const expose *x)
{
    const char *port = strrchr(x->address, ':');
    const int is_any = port && strcmp(port, ":0") == 0;
    for (const expose *y = c->exposes; y < x; y++)
        if (is_any ? expose_is_passed_twice(x, y) : strcmp(y->address, x->address) == 0) return 1;
    return 0;
}

// Exposes all items of an option; front is NULL for --expose. Returns 0 or an exit code.
static int config_add(config *c, const prog_list *list, const front_kind *front)
{
    for (size_t i = 0; i < list->count; i++) {
        expose *x = &c->exposes[c->expose_count++];
        const char *problem;
        int rc;
        x->option = front ? front->option : "expose";
        x->item = list->items[i];
        problem = front ? expose_front(c, x, front, x->item) : expose_parse(c, x, x->item);
        if (!problem && expose_is_second(c, x)) problem = "this address is exposed already:";
        rc = problem ? prog_usage_error(&c->cli, x->option, problem, x->item)
                     : expose_configure(c, x);
        if (rc != 0) return rc;
        // What a front end says of a dial has to be true.
        if (front) x->x.dial.flags &= ~(unsigned)REVDIAL_DIAL_EARLY;
    }
    return 0;
}

// Returns 0 or an exit code.
static int config_expose(config *c)
{
    const settings *s = &c->s;
    const struct {
        const prog_list *list;
        const front_kind *kind;
    } fronts[] = {{&s->connects, &front_connect},
                  {&s->socks5s, &front_socks5},
                  {&s->snis, &front_sni},
                  {&s->https, &front_http}};
    size_t i, most = s->exposes.count;
    int rc;
    c->allow_from = prog_list_join(&s->allow_from);
    c->trusted = prog_list_join(&s->trusted);
    for (i = 0; i < sizeof fronts / sizeof *fronts; i++) most += fronts[i].list->count;
    c->exposes = calloc(most + 1, sizeof *c->exposes);
    if (!c->exposes || !c->allow_from || !c->trusted) return PROG_FAILED;
    expose_set(&c->like, c, s, &c->cli.common);
    c->like.allow_from = NULL;  // the modes of the sockets say who may connect
    rc = config_add(c, &s->exposes, NULL);
    for (i = 0; rc == 0 && i < sizeof fronts / sizeof *fronts; i++)
        rc = config_add(c, fronts[i].list, fronts[i].kind);
    return rc;
}

// What the section of a route says. Returns 0 or an exit code.
static int route_configure(config *c, const char *item)
{
    settings s = c->s;
    prog_common common = c->cli.common;
    int rc = prog_item_apply(&c->cli, item, &s, &common);
    if (rc == 0) rc = config_pick(c, s.pick);
    if (rc == 0 && s.pick != c->s.pick) route_pick(&c->routes, item, s.pick);
    return rc == 0 ? config_health(c, strchr(item, '=') + 1, &s.health) : rc;
}

// Returns 0 or an exit code.
static int config_route(config *c)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < c->s.routes.count; i++) {
        const char *item = c->s.routes.items[i], *problem = route_add(&c->routes, item);
        rc = problem ? prog_usage_error(&c->cli, "route", problem, item) : route_configure(c, item);
    }
    return rc;
}

// Returns 0 or an exit code.
static int config_allow(config *c)
{
    for (size_t i = 0; i < c->s.allow.count; i++) {
        const char *problem = revdial_allow_problem(c->s.allow.items[i]);
        if (problem) return prog_usage_error(&c->cli, "allow", problem, c->s.allow.items[i]);
    }
    c->allow = allow_list_new(&c->s.allow);
    return c->allow ? 0 : PROG_FAILED;
}

// The addresses for agents as the library takes them, with commas between them. Returns 0 or an
// exit code.
static int config_listen(config *c)
{
    enum { FD_SIZE = 16 };  // "127.0.0.1:0" is longer than "systemd:0"
    const prog_list *listens = &c->s.listens;
    size_t size = 1, len = 0;
    if (listens->count == 0) return prog_usage_error(&c->cli, "listen", "missing", NULL);
    for (size_t i = 0; i < listens->count; i++) size += strlen(listens->items[i]) + FD_SIZE;
    c->listen = calloc(1, size);
    if (!c->listen) return PROG_FAILED;
    for (size_t i = 0; i < listens->count; i++) {
        const char *item = listens->items[i], *problem;
        if (i > 0) c->listen[len++] = ',';
        problem = prog_listen_address(&c->cli, item, c->listen + len, size - len);
        if (problem) return prog_usage_error(&c->cli, "listen", problem, item);
        len += strlen(c->listen + len);
    }
    return 0;
}

// ------------------------------------------------------------------------------------------------
// Files

// Reads what the options or the section of a group say about who may register. Returns 0, or -1
// with the reason in err->msg and the option that is to blame.
static int config_read_who(config *c, const token_paths *paths, external_options *asked,
                           const char **option, revdial_err *err)
{
    const char *problem = paths->hosts ? hosts_problem(paths->hosts) : NULL;
    int has_rows = paths->tokens || paths->auth || paths->token;
    asked->hosts = paths->hosts;
    asked->quota = paths->quota;
    *option = "hosts";
    if (problem) {
        snprintf(err->msg, sizeof err->msg, "%s", problem);
        return -1;
    }
    *option = "auth-url";
    if (asked->url && external_add(&c->external, asked, paths->group, err) != 0) return -1;
    *option = paths->auth ? "auth-file" : "token-file";
    if (!has_rows && (c->external || c->s.groups.count > 0)) return 0;
    return token_table_read(&c->tokens, paths, err);
}

// Returns 0 or an exit code.
static int config_read_group(config *c, const char *group)
{
    settings s = {.external = c->s.external};
    prog_common common = {0};
    revdial_err err = {0};
    char *hosts = NULL;
    const char *option;
    int rc;
    s.external.url = NULL;
    rc = prog_item_apply(&c->cli, group, &s, &common);
    if (rc != 0) return rc;
    if (!s.credentials.tokens && !s.credentials.auth && !s.external.url)
        return prog_usage_error(&c->cli, "group",
                                "needs token-file, auth-file or auth-url:", group);
    if (prog_item_join(&c->cli, group, "hosts", &hosts) != 0) return PROG_FAILED;
    s.credentials.group = group;
    s.credentials.hosts = hosts;
    s.credentials.quota = (revdial_quota){.max_sessions = s.cfg.max_sessions_per_identity,
                                          .max_own_streams = s.cfg.common.limits.max_own_streams,
                                          .stream_rate = common.stream_rate,
                                          .session_rate = common.session_rate};
    rc = config_read_who(c, &s.credentials, &s.external, &option, &err);
    free(hosts);
    return rc == 0 ? 0 : prog_usage_error(&c->cli, "group", err.msg, group);
}

// Returns 0 or an exit code.
static int config_read_peers(config *c, const char *path)
{
    // All peers are one identity, and the session of each carries what is for many agents: limits
    // of an agent are not theirs. A session without a rate costs less than one with the greatest.
    const revdial_quota quota = {
        .max_sessions = 1 << 24,
        .max_own_streams = 1 << 24,
        .session_rate = c->cli.common.session_rate ? PROG_SPEED_MAX : 0};
    revdial_err err = {0};
    if (!path || token_table_read_peers(&c->tokens, path, &quota, &err) == 0) return 0;
    return prog_usage_error(&c->cli, "peer-token-file", err.msg, NULL);
}

static int config_read_tokens(config *c)
{
    token_paths *paths = &c->s.credentials;
    const char *option;
    revdial_err err = {0};
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < c->s.groups.count; i++)
        rc = config_read_group(c, c->s.groups.items[i]);
    if (rc == 0) rc = config_read_peers(c, paths->peers);
    if (rc != 0) return rc;
    c->hosts = prog_list_join(&c->s.hosts);
    if (!c->hosts) return PROG_FAILED;
    paths->hosts = *c->hosts ? c->hosts : NULL;
    if (config_read_who(c, paths, &c->s.external, &option, &err) == 0) return 0;
    return prog_usage_error(&c->cli, option, err.msg, NULL);
}

static int config_open_tls(config *c)
{
    revdial_err err = {0};
    if (!c->s.tls.cert && !c->s.tls.key && !c->s.tls.ca) return 0;
    c->tls = prog_tls_open(&c->s.tls, PROG_TLS_SERVER, &err);
    return c->tls ? 0 : prog_complain(&c->cli, "%s", err.msg);
}

// ------------------------------------------------------------------------------------------------
// All of it

// What the library is given. Returns 0 or PROG_FAILED.
static int config_fill(config *c)
{
    revdial_proxy_config *cfg = &c->proxy;
    c->origins = prog_list_join(&c->s.origins);
    c->xs = calloc(c->expose_count + 1, sizeof *c->xs);
    if (!c->origins || !c->xs) return PROG_FAILED;
    for (size_t i = 0; i < c->expose_count; i++) c->xs[i] = c->exposes[i].x;
    *cfg = c->s.cfg;
    cfg->exposes = c->expose_count ? c->xs : NULL;
    cfg->expose_count = c->expose_count;
    cfg->listen = c->listen;
    cfg->origins = c->origins;
    cfg->credentials = c->tokens.rows;
    cfg->credential_count = c->tokens.count;
    cfg->auth_after_table = 1;
    cfg->max_auth_failures = prog_or_never(cfg->max_auth_failures);
    cfg->peer_group = PEER_GROUP;  // which may get a member while the proxy runs
    cfg->common.limits.max_streams = STREAMS_OF_AGENT;
    prog_configure(&c->cli.common, &cfg->common);
    return 0;
}

// What the library would refuse. Returns 0 or PROG_USAGE.
static int config_check(config *c)
{
    revdial_err err = {0};
    int at = 0;
    size_t i;
    if (revdial_proxy_check(&c->proxy, &err) != REVDIAL_EINVAL) return 0;  // else: at the start
    if (sscanf(err.msg, "exposes[%zu].%n", &i, &at) != 1 || i >= c->expose_count)
        return prog_refused(&c->cli, err.msg, NULL, NULL);
    return prog_refused(&c->cli, err.msg + at, c->exposes[i].option, c->exposes[i].item);
}

static int config_sockets(const config *c)
{
    revdial_err err = {0};
    if (!c->s.sockets || sockets_check(c->s.sockets, &err) == 0) return 0;
    return prog_usage_error(&c->cli, "sockets", err.msg, NULL);
}

int config_open(config *c, char **argv, prog_log *log)
{
    int rc;
    memset(c, 0, sizeof *c);
    c->s.dial_timeout_ms = 10000;
    c->s.pick = "round-robin";
    c->s.health = (health_rule){.interval_ms = 5000, .timeout_ms = 2000, .rise = 2, .fall = 3};
    c->s.cfg.max_auth_failures = 10;
    c->s.external.timeout_ms = 5000;
    c->cli = (prog_cli){.program = "revdial-proxy", .usage = help_usage, .epilogue = help_epilogue};
    c->cli.forms = help_forms;
    c->cli.extra = prog_tls_version();
    c->cli.options = options;
    c->cli.option_count = sizeof options / sizeof options[0];
    c->cli.settings = &c->s;
    c->cli.log = log;
    rc = prog_parse(&c->cli, argv);
    if (rc >= 0) return rc;
    rc = config_pick(c, c->s.pick);
    if (rc == 0) rc = config_listen(c);
    if (rc == 0) rc = config_expose(c);
    if (rc == 0) rc = config_route(c);
    if (rc == 0) rc = config_health(c, c->s.sockets ? "*" : NULL, &c->s.health);
    if (rc == 0) rc = config_allow(c);
    if (rc == 0) rc = config_open_tls(c);
    if (rc == 0) rc = config_read_tokens(c);
    if (rc == 0) rc = peers_configure(c);
    if (rc == 0) rc = config_fill(c);
    if (rc == 0) rc = config_check(c);
    if (rc == 0) rc = config_sockets(c);
    if (rc == 0) rc = prog_admin_check(&c->cli);
    return rc == 0 ? -1 : rc;
}

void config_close(config *c)
{
    token_table_free(&c->tokens);
    external_set_free(c->external);
    allow_list_free(c->allow);
    prog_tls_free(c->tls);
    prog_tls_free(c->peer_tls);
    for (size_t i = 0; i < c->expose_count; i++) {
        free(c->exposes[i].allow_from);
        free(c->exposes[i].trusted);
    }
    free(c->exposes);
    free(c->listen);
    free(c->origins);
    free(c->hosts);
    free(c->allow_from);
    free(c->trusted);
    free(c->xs);
    route_table_free(&c->routes);
    health_table_free(&c->health);
    prog_cli_free(&c->cli);
    c->exposes = NULL;
    c->xs = NULL;
    c->external = NULL;
    c->allow = NULL;
    c->listen = c->origins = c->allow_from = c->trusted = c->hosts = NULL;
    c->tls = c->peer_tls = NULL;
}
