// What the doctor looks at, and what it advises.
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "doctor.h"
#include "probe.h"
#include "settings.h"

enum {
    DOCTOR_ATTEMPTS = 3,  // a challenge, and a nonce that became stale
    DOCTOR_CLOCK_S = 300  // TLS certificates that are new, and logs, tolerate this much
};

typedef struct doctor {
    const revdial_agent_config *cfg;
    const revdial_tls *tls;
    const char *via;  // "" = none
    const char *secret;
    int failed;
} doctor;

static void doctor_say(const char *verdict, const char *hop, const char *form, va_list args)
{
    printf("%-5s %-10s ", verdict, hop);
    vprintf(form, args);
    printf("\n");
}

static void doctor_ok(const char *hop, const char *form, ...)
#ifdef __GNUC__
    __attribute__((format(printf, 2, 3)))
#endif
    ;
static void doctor_ok(const char *hop, const char *form, ...)
{
    va_list args;
    va_start(args, form);
    doctor_say("ok", hop, form, args);
    va_end(args);
}

// Something that cannot be looked at, or that is not needed.
static void doctor_skip(const char *hop, const char *form, ...)
#ifdef __GNUC__
    __attribute__((format(printf, 2, 3)))
#endif
    ;
static void doctor_skip(const char *hop, const char *form, ...)
{
    va_list args;
    va_start(args, form);
    doctor_say("skip", hop, form, args);
    va_end(args);
}

static void doctor_bad(doctor *d, const char *hop, const char *fix, const char *form, ...)
#ifdef __GNUC__
    __attribute__((format(printf, 4, 5)))
#endif
    ;
static void doctor_bad(doctor *d, const char *hop, const char *fix, const char *form, ...)
{
    va_list args;
    va_start(args, form);
    doctor_say("FAIL", hop, form, args);
    va_end(args);
    printf("      %-10s %s\n", "do:", fix);
    d->failed++;
}

// ------------------------------------------------------------------------------------------------
// DNS, TCP, the egress proxy, TLS

// Finds the addresses of a host, which "DNS" stands for even where it is a number.
static struct addrinfo *doctor_resolve(doctor *d, const char *host, const char *port)
{
    struct addrinfo *found;
    int r = probe_resolve(host, port, &found);
    if (r == 0) {
        doctor_ok("dns", "%s has an address", host);
        return found;
    }
    doctor_bad(d, "dns",
               r == EAI_AGAIN ? "the name server does not answer: look at /etc/resolv.conf, and "
                                "whether a firewall stops port 53"
                              : "no name server knows it: look at its spelling, and at "
                                "/etc/resolv.conf if it is a name of your own network",
               "%s: %s", host, gai_strerror(r));
    return NULL;
}

//   is_via   it is the egress proxy that cannot be reached
static const char *doctor_connect_fix(int error, int is_via)
{
    if (is_via && error == ECONNREFUSED)
        return "nothing listens there: start the egress proxy, or correct the port of --via";
    if (is_via) return "look whether --via is right, and at the network up to the egress proxy";
    switch (error) {
    case ECONNREFUSED:
        return "nothing listens there: start revdial-proxy, or correct the port of --server";
    case ETIMEDOUT:
        return "a firewall drops it: let this machine connect to that port, or use --via";
    case ENOENT: return "there is no such socket: start revdial-proxy, or correct --server";
    case EACCES: return "this user may not: look at --unix-mode of the proxy, or at a firewall";
    default: return "there is no route: look at this machine's network, or use --via";
    }
}

// The way to the proxy, or to the egress proxy before it. Returns 0 if there is none.
static int doctor_tcp(doctor *d, const probe_url *u, probe_conn *c)
{
    const char *via = u->is_unix ? "" : d->via;
    char host[PROBE_HOST], port[8], at[96] = "";
    struct addrinfo *list;
    if (u->is_unix) {
        c->fd = probe_connect_unix(u->endpoint + strlen("unix:"));
        snprintf(at, sizeof at, "%.90s", u->endpoint);
    } else {
        const char *login = strrchr(via, '@'), *scheme = strstr(via, "://");
        const char *hop = login ? login + 1 : scheme ? scheme + 3 : via;
        if (!via[0]) {
            snprintf(host, sizeof host, "%s", u->host);
            snprintf(port, sizeof port, "%s", u->port);
        } else if (!probe_split(hop, host, sizeof host, port, sizeof port)) {
            doctor_bad(d, "via", "write http://HOST:PORT or socks5://HOST:PORT",
                       "no host and port");
            return 0;
        }
        list = doctor_resolve(d, host, port);
        if (!list) return 0;
        c->fd = probe_connect(list, at, sizeof at);
        freeaddrinfo(list);
    }
    if (c->fd < 0)
        doctor_bad(d, "tcp", doctor_connect_fix(errno, via[0] != '\0'), "%s: %s", at,
                   strerror(errno));
    else
        doctor_ok("tcp", "connected to %s%s", at, via[0] ? ", the egress proxy" : "");
    return c->fd >= 0;
}

static int doctor_via(doctor *d, const probe_url *u, probe_conn *c)
{
    revdial_err err = {0};
    int code;
    if (!d->via[0] || u->is_unix) return 1;
    code = probe_egress(c, d->via, u->endpoint, &err);
    if (code == 0)
        doctor_ok("via", "the egress proxy lets us through to %s", u->endpoint);
    else
        doctor_bad(d, "via",
                   code == REVDIAL_EAUTH
                       ? "put its login into --via-file, as http://USER:PASSWORD@HOST:PORT"
                   : code == REVDIAL_EUNREACH
                       ? "ask its operator to allow CONNECT to that host and port"
                       : "look whether --via names an egress proxy of that kind",
                   "%s", err.msg);
    return code == 0;
}

// By the words of the reason, which the TLS libraries have in common.
static const char *doctor_tls_fix(const char *reason)
{
    if (strstr(reason, "our certificate") || strstr(reason, "wants a certificate"))
        return "give a certificate that the proxy's --client-ca knows: --tls-cert, --tls-key";
    if (strstr(reason, "expired"))
        return "renew the proxy's certificate; or, if it is new, set this machine's clock";
    if (strstr(reason, "this machine's clock")) return "set this machine's clock";
    if (strstr(reason, "another name"))
        return "use a name of its certificate in --server, or tell it by --server-name";
    if (strstr(reason, "trusted")) return "give the authority of its certificate by --tls-ca";
    return "look whether that port speaks TLS: else use http:// or ws://";
}

static int doctor_tls(doctor *d, const probe_url *u, probe_conn *c)
{
    const char *host = d->cfg->server_name ? d->cfg->server_name : u->host;
    revdial_err err = {0};
    if (!u->is_secure) return 1;
    if (probe_tls(c, d->tls, host, &err) == 0) {
        doctor_ok("tls", "a trusted certificate for %s", host);
        return 1;
    }
    doctor_bad(d, "tls", doctor_tls_fix(err.msg), "%s", err.msg);
    return 0;
}

// ------------------------------------------------------------------------------------------------
// The upgrade

// Does no other machine see what is sent there? An egress proxy on this one may pass it on.
static int doctor_is_here(const doctor *d, const probe_url *u, const probe_conn *c)
{
    const struct addrinfo hints = {.ai_flags = AI_NUMERICHOST};
    struct sockaddr_storage peer = {0};
    socklen_t size = sizeof peer;
    struct addrinfo *server = NULL;
    int is_here;
    if (u->is_unix) return 1;
    if (getpeername(c->fd, (struct sockaddr *)&peer, &size) != 0) return 0;
    if (!probe_is_loopback((struct sockaddr *)&peer)) return 0;
    if (!d->via[0]) return 1;
    is_here = getaddrinfo(u->host, NULL, &hints, &server) == 0 &&
              probe_is_loopback(server->ai_addr);
    if (server) freeaddrinfo(server);
    return is_here;
}

// May the secret go there? As the agent does it: never in cleartext beyond this machine.
static int doctor_may_send(const doctor *d, const probe_url *u, const probe_conn *c)
{
    return u->is_secure || d->cfg->allow_cleartext || !d->secret[0] ||
           d->cfg->auth_schemes == REVDIAL_AUTH_DIGEST || doctor_is_here(d, u, c);
}

// Connects again, saying nothing of hops that have worked before.
static int doctor_again(const doctor *d, const probe_url *u, probe_conn *c)
{
    char host[PROBE_HOST], port[8], at[96];
    const char *login = strrchr(d->via, '@'), *scheme = strstr(d->via, "://");
    const char *hop = login ? login + 1 : scheme ? scheme + 3 : u->endpoint;
    struct addrinfo *list = NULL;
    revdial_err err = {0};
    memset(c, 0, sizeof *c);
    c->fd = -1;
    if (u->is_unix) {
        c->fd = probe_connect_unix(u->endpoint + strlen("unix:"));
    } else if (probe_split(hop, host, sizeof host, port, sizeof port) &&
               probe_resolve(host, port, &list) == 0) {
        c->fd = probe_connect(list, at, sizeof at);
        freeaddrinfo(list);
    }
    if (c->fd < 0 || !doctor_may_send(d, u, c)) return 0;
    if (d->via[0] && !u->is_unix && probe_egress(c, d->via, u->endpoint, &err) != 0) return 0;
    return !u->is_secure ||
           probe_tls(c, d->tls, d->cfg->server_name ? d->cfg->server_name : u->host, &err) == 0;
}

// Asks for the upgrade by one carrier, on connections of its own but for the first.
static void doctor_ask(const doctor *d, const probe_url *u, int carrier, probe_conn *first,
                       probe_answer *out)
{
    char instance[32], challenge[PROBE_CHALLENGE] = "";
    revdial_engine_config e = {.role = REVDIAL_ROLE_BACKEND, .carrier = carrier};
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_REALTIME, &now);
    snprintf(instance, sizeof instance, "doctor-%ld", (long)getpid());
    e.host = u->authority;
    e.path = u->path;
    e.name = d->cfg->name;
    e.instance = instance;
    e.secret = d->secret;
    e.user = d->cfg->user;
    e.auth_schemes = d->cfg->auth_schemes;
    e.seed = (uint64_t)now.tv_nsec * 2654435761u ^ (uint64_t)now.tv_sec ^ (uint64_t)getpid();
    for (int i = 0; i < DOCTOR_ATTEMPTS; i++) {
        probe_conn c = {.fd = -1};
        e.challenge = challenge[0] ? challenge : NULL;
        if (first && first->fd >= 0) {
            c = *first;
            first->fd = -1;
            first->has_tls = 0;
        } else if (!doctor_again(d, u, &c)) {
            memset(out, 0, sizeof *out);
            out->code = REVDIAL_ELOST;
            snprintf(out->text, sizeof out->text, "cannot connect again");
            probe_close(&c);
            return;
        }
        probe_upgrade(&c, &e, out);
        probe_close(&c);
        if (!out->challenge[0]) return;
        memcpy(challenge, out->challenge, sizeof challenge);
    }
}

// Did a revdial-proxy judge the request, whatever its verdict?
static int doctor_passed(const probe_answer *a)
{
    return a->code == 0 || a->code == REVDIAL_EAUTH || a->code == REVDIAL_EDENIED ||
           a->code == REVDIAL_EDUPLICATE;
}

static const char *doctor_upgrade_fix(const probe_answer *a, const char *other)
{
    if (other) return other;
    if (a->status == 404) return "correct the path of --server, or --path of the proxy";
    if (a->status == 429 || a->status == 503)
        return "wait: the proxy has no room, or was asked too often";
    if (a->status == 426 || strstr(a->text, "stripped"))
        return "have what stands before the proxy pass Upgrade and Connection on";
    return "look whether --server is the proxy's --listen, and what stands between";
}

// Both ways to ask, of which the URL wants one.
static void doctor_carriers(doctor *d, const probe_url *u, probe_conn *c, probe_answer *a)
{
    static const char *const hops[] = {"upgrade", "websocket"};
    static const char *const fixes[] = {
        "raw passes, WebSocket does not: use https:// for wss:// in --server, http:// for ws://",
        "WebSocket passes: use wss:// for https:// in --server, ws:// for http://"};
    const int mine = u->is_websocket, other = !mine;
    probe_answer b;
    doctor_ask(d, u, mine ? REVDIAL_CARRIER_WEBSOCKET : REVDIAL_CARRIER_RAW, c, a);
    doctor_ask(d, u, other ? REVDIAL_CARRIER_WEBSOCKET : REVDIAL_CARRIER_RAW, NULL, &b);
    if (doctor_passed(a))
        doctor_ok(hops[mine], "the proxy has answered the request to upgrade");
    else
        doctor_bad(d, hops[mine], doctor_upgrade_fix(a, doctor_passed(&b) ? fixes[other] : NULL),
                   "%s", a->text[0] ? a->text : revdial_strerror(a->code));
    if (doctor_passed(&b))
        doctor_ok(hops[other], "passes, too");
    else
        doctor_skip(hops[other], "does not pass, and is not needed: %s",
                    b.text[0] ? b.text : revdial_strerror(b.code));
}

static void doctor_verdict(doctor *d, const probe_answer *a)
{
    const char *name = d->cfg->name;
    if (a->code == REVDIAL_EAUTH) {
        doctor_bad(
            d, "credential",
            d->cfg->auth_schemes == REVDIAL_AUTH_DIGEST
                ? "compare --user and the password with the proxy's --auth-file"
                : "compare the token with the proxy's --token-file or --auth-file, and --auth "
                  "with the scheme of its line",
            "%s", a->text);
        return;
    }
    doctor_ok("credential", "the proxy accepts it");
    if (a->code == REVDIAL_EDENIED)
        doctor_bad(d, "name", "add it to NAMES of the credential's line, or use another --name",
                   "%s: %s", name, a->text);
    else if (a->code == REVDIAL_EDUPLICATE)
        doctor_bad(
            d, "name",
            "end the agent that has it, use another --name, or give both credentials one group",
            "%s: %s", name, a->text);
    else
        doctor_ok("name", "%s can be registered", name);
}

static void doctor_clock(doctor *d, const probe_answer *a)
{
    long long there = a->date[0] ? probe_date(a->date) : -1;
    long long off = there < 0 ? 0 : (long long)time(NULL) - there;
    if (there < 0)
        doctor_skip("clock", "the answer has no Date");
    else if (off > DOCTOR_CLOCK_S || off < -DOCTOR_CLOCK_S)
        doctor_bad(d, "clock", "set this machine's clock, e.g. by NTP: certificates depend on it",
                   "%lld s %s the proxy's", off < 0 ? -off : off,
                   off < 0 ? "behind" : "ahead of");
    else
        doctor_ok("clock", "within %lld s of the proxy's", off < 0 ? -off : off);
}

static int doctor_may_ask(doctor *d, const probe_url *u, const probe_conn *c)
{
    if (doctor_may_send(d, u, c)) return 1;
    doctor_bad(d, "credential", "use https://, or --auth digest, or --insecure-cleartext",
               "it is not sent to %s in cleartext%s", u->host,
               d->via[0] ? " through the egress proxy" : "");
    return 0;
}

static void doctor_server(doctor *d, const char *text, size_t len)
{
    probe_url u;
    probe_conn c = {.fd = -1};
    probe_answer a;
    printf("%.*s\n", (int)len, text);
    if (!probe_url_parse(&u, text, len)) {
        doctor_bad(d, "url", "write https://HOST:PORT", "not understood");
        return;
    }
    if (doctor_tcp(d, &u, &c) && doctor_via(d, &u, &c) && doctor_tls(d, &u, &c) &&
        doctor_may_ask(d, &u, &c)) {
        doctor_carriers(d, &u, &c, &a);
        if (doctor_passed(&a)) doctor_verdict(d, &a);
        doctor_clock(d, &a);
    }
    probe_close(&c);
}

// ------------------------------------------------------------------------------------------------
// Targets

static const char *doctor_target_fix(int error)
{
    switch (error) {
    case ECONNREFUSED: return "nothing listens there: start the service, or correct the target";
    case ENOENT: return "there is no such socket: start the service, or correct the path";
    case EACCES: return "this user may not connect: look at the socket's mode";
    case ETIMEDOUT: return "no answer: look at the target's machine, and at firewalls";
    default: return "look at the network between this machine and the target";
    }
}

static void doctor_probe_target(doctor *d, const char *target)
{
    char host[PROBE_HOST], port[8], at[96] = "";
    struct addrinfo *list = NULL;
    int fd, r;
    if (strncmp(target, "unix:", 5) == 0) {
        fd = probe_connect_unix(target + 5);
    } else if (!probe_split(target, host, sizeof host, port, sizeof port)) {
        doctor_bad(d, "target", "write HOST:PORT or unix:PATH", "%s", target);
        return;
    } else if ((r = probe_resolve(host, port, &list)) != 0) {
        doctor_bad(d, "target", "correct the name, or look at /etc/resolv.conf", "%s: %s", target,
                   gai_strerror(r));
        return;
    } else {
        fd = probe_connect(list, at, sizeof at);
    }
    if (fd < 0)
        doctor_bad(d, "target", doctor_target_fix(errno), "%s: %s", target, strerror(errno));
    else
        doctor_ok("target", "%s accepts connections", target);
    if (list) freeaddrinfo(list);
    if (fd >= 0) close(fd);
}

// Does a rule name exactly one target?
static int doctor_is_one(const char *rule)
{
    char host[PROBE_HOST], port[8];
    if (strncmp(rule, "unix:", 5) == 0) return !strchr(rule, '*');
    return !strpbrk(rule, "*/") && probe_split(rule, host, sizeof host, port, sizeof port);
}

static void doctor_targets(doctor *d)
{
    const revdial_agent_config *cfg = d->cfg;
    printf("targets\n");
    if (cfg->default_target) doctor_probe_target(d, cfg->default_target);
    for (size_t i = 0; cfg->allow[i]; i++) {
        if (doctor_is_one(cfg->allow[i]))
            doctor_probe_target(d, cfg->allow[i]);
        else
            doctor_skip("target", "%s: a rule for many", cfg->allow[i]);
    }
}

// Targets that the operator asks about.
static void doctor_asked(doctor *d, const prog_list *asked)
{
    const revdial_agent_config *cfg = d->cfg;
    for (size_t i = 0; i < asked->count; i++) {
        char fix[400];
        const char *target = asked->items[i];
        int is_default = cfg->default_target && strcmp(target, cfg->default_target) == 0;
        snprintf(fix, sizeof fix, "add --allow '%.250s'", target);
        if (is_default || revdial_target_allowed(cfg->allow, target))
            doctor_probe_target(d, target);
        else
            doctor_bad(d, "target", fix, "%s: no rule of --allow covers it", target);
    }
}

static int doctor_run(doctor *d, const prog_list *asked)
{
    const char *at = d->cfg->url;
    while (*at) {
        size_t skip = strspn(at, ", "), len = strcspn(at + skip, ", ");
        if (len) doctor_server(d, at + skip, len);
        at += skip + len;
    }
    doctor_targets(d);
    doctor_asked(d, asked);
    if (d->failed)
        printf("%d %s to be mended\n", d->failed, d->failed == 1 ? "hop has" : "hops have");
    else
        printf("all hops work\n");
    return d->failed ? PROG_FAILED : PROG_STOPPED;
}

int doctor_main(char **argv)
{
    config *c = calloc(1, sizeof *c);
    char secret[PROG_TOKEN_SIZE] = "";
    prog_list asked = {0};
    prog_log log;
    int rc;
    if (!c) return PROG_FAILED;
    while (argv[1] && argv[1][0] != '-' && prog_list_add(&asked, argv[1]) == 0) argv++;
    rc = config_open(c, argv, NULL);
    prog_log_open_as(&log, &c->cli.common);
    if (rc < 0) {
        sources from = {c, &log};
        doctor d = {&c->agent, c->tls, c->via, secret, 0};
        rc = sources_fresh(&from, 1, secret, sizeof secret) == 0 ? doctor_run(&d, &asked)
                                                                 : PROG_USAGE;
    }
    prog_wipe(secret, sizeof secret);
    free(asked.items);
    config_close(c);
    free(c);
    return rc;
}
