// What the TLS tests share: a world whose proxy and agent speak TLS, and a relay between them that
// delays, cuts and alters bytes. Certificates lie in $REVDIAL_TLS_CERTS (certs.sh made them).
#ifndef REVDIAL_TEST_TLS_UTIL_H
#define REVDIAL_TEST_TLS_UTIL_H

// Included first: it chooses the feature macros of everything.
#include "runtime_util.h"

// Ends by hand are mbedTLS's in any case: under names of their own where the ends that are tested
// are OpenSSL's.
#ifdef PROGRAM_TLS_OPENSSL
#define revdial_tls_config hand_tls_config
#define revdial_tls_client hand_tls_client
#define revdial_tls_server hand_tls_server
#define revdial_tls_reload hand_tls_reload
#define revdial_tls_free hand_tls_free
#define revdial_tls_version hand_tls_version
#endif

static inline int tls_entropy(void *ctx, unsigned char *out, size_t len);
#define RVD_TLS_ENTROPY tls_entropy
#define REVDIAL_TLS_IMPLEMENTATION
#include "revdial_tls.h"

#ifdef PROGRAM_TLS_OPENSSL
#undef revdial_tls_config
#undef revdial_tls_client
#undef revdial_tls_server
#undef revdial_tls_reload
#undef revdial_tls_free
#undef revdial_tls_version
#undef REVDIAL_TLS_H
#define TRANSPORT_OPENSSL_IMPLEMENTATION
#include "examples/transport_openssl.h"

typedef ossl_link tls_link;
enum { TLS_HAS_1_3 = 1, TLS_VERIFIES_IP = 1 };
#else
#define hand_tls_config revdial_tls_config
#define hand_tls_client revdial_tls_client
#define hand_tls_server revdial_tls_server
#define hand_tls_free revdial_tls_free

typedef rvd_tls_link tls_link;
enum { TLS_HAS_1_3 = RVD_TLS_HAS_1_3, TLS_VERIFIES_IP = RVD_TLS_VERIFIES_IP };
#endif

static atomic_int tls_entropy_fails;

static inline int tls_entropy(void *ctx, unsigned char *out, size_t len)
{
    if (atomic_load(&tls_entropy_fails)) return -1;
#if MBEDTLS_VERSION_NUMBER < 0x04000000
    return mbedtls_entropy_func(ctx, out, len);
#else
    (void)ctx;
    (void)out;
    (void)len;
    return -1;
#endif
}

// A file of the certificates' directory. Eight at a time.
static inline const char *tls_file(const char *name)
{
    static char paths[8][300];
    static atomic_uint turn;
    const char *dir = getenv("REVDIAL_TLS_CERTS");
    char *path = paths[atomic_fetch_add(&turn, 1) % 8];
    snprintf(path, sizeof paths[0], "%s/%s", dir ? dir : ".", name);
    return path;
}

// What is in a file, with a NUL behind it. Give it to tls_forget().
static inline char *tls_text(const char *name, size_t *len)
{
    FILE *f = fopen(tls_file(name), "r");
    char *text = calloc(1, 16384);
    if (!f || !text) abort();
    setvbuf(f, NULL, _IONBF, 0);  // a later test looks for keys in memory
    *len = fread(text, 1, 16383, f);
    fclose(f);
    return text;
}

static inline void tls_forget(char *text)
{
    rvd_base_wipe(text, strlen(text));
    free(text);
}

// NAME.pem and NAME.key; ca is a file name.
static inline revdial_tls_config tls_files(const char *name, const char *ca)
{
    revdial_tls_config cfg = {NULL, NULL, NULL};
    char pem[80], key[80];
    if (ca) cfg.ca = tls_file(ca);
    if (!name) return cfg;
    snprintf(pem, sizeof pem, "%s.pem", name);
    snprintf(key, sizeof key, "%s.key", name);
    cfg.cert = tls_file(pem);
    cfg.key = tls_file(key);
    return cfg;
}

static inline revdial_tls *tls_server(const char *name, const char *client_ca)
{
    revdial_tls_config cfg = tls_files(name, client_ca);
    revdial_err err = {0};
    revdial_tls *t = revdial_tls_server(&cfg, &err);
    if (!t) test_fail(__FILE__, __LINE__, "no server %s: %s", name, err.msg);
    return t;
}

static inline revdial_tls *tls_client(const char *name, const char *ca)
{
    revdial_tls_config cfg = tls_files(name, ca);
    revdial_err err = {0};
    revdial_tls *t = revdial_tls_client(&cfg, &err);
    if (!t) test_fail(__FILE__, __LINE__, "no client: %s", err.msg);
    return t;
}

// ------------------------------------------------------------------------------------------------

typedef struct tls_world {
    world w;
    revdial_tls *server, *client;
    util_gate refused;
    char said[512];  // by the proxy's first session.refused
    atomic_int judged;
    int verdict;
    revdial_identity seen;
    int has_seen;
} tls_world;

static inline void tls_log(void *ud, int level, const char *event, const char *msg)
{
    tls_world *tw = ud;
    (void)level;
    if (strcmp(event, "session.refused") != 0) return;
    pthread_mutex_lock(&tw->w.lock);
    if (!tw->said[0]) snprintf(tw->said, sizeof tw->said, "%s", msg);
    pthread_mutex_unlock(&tw->w.lock);
    util_gate_add(&tw->refused, 1);
}

static inline int tls_judge(void *ud, const revdial_auth_req *req, char *identity, size_t size)
{
    tls_world *tw = ud;
    pthread_mutex_lock(&tw->w.lock);
    tw->has_seen = req->tls != NULL;
    if (req->tls) tw->seen = *req->tls;
    pthread_mutex_unlock(&tw->w.lock);
    atomic_fetch_add(&tw->judged, 1);
    snprintf(identity, size, "somebody");
    return tw->verdict;
}

// Takes the makers over.
static inline tls_world *tls_world_new(revdial_tls *server, revdial_tls *client)
{
    tls_world *tw = calloc(1, sizeof *tw);
    if (!tw) abort();
    world_init(&tw->w);
    util_gate_init(&tw->refused);
    tw->server = server;
    tw->client = client;
    tw->w.pcfg.auth = tls_judge;
    tw->w.pcfg.auth_ud = tw;
    tw->w.pcfg.common.tls = server;
    tw->w.pcfg.common.log = tls_log;
    tw->w.pcfg.common.log_ud = tw;
    tw->w.pcfg.common.log_level = REVDIAL_LOG_DEBUG;  // a peer that sends nothing is no warning
    tw->w.acfg.common.tls = client;
    tw->w.acfg.server_name = "localhost";
    return tw;
}

static inline int tls_world_proxy(tls_world *tw)
{
    if (!tw->server || !tw->client || !world_open_proxy(&tw->w)) return 0;
    snprintf(tw->w.url, sizeof tw->w.url, "https://%s", tw->w.address);
    tw->w.acfg.url = tw->w.url;
    return 1;
}

static inline int tls_world_start(tls_world *tw)
{
    revdial_err err = {0};
    tw->w.agents[0] = revdial_agent_start(&tw->w.acfg, &err);
    return tw->w.agents[0] || test_fail(__FILE__, __LINE__, "no agent: %s", err.msg);
}

static inline int tls_world_open(tls_world *tw)
{
    return tls_world_proxy(tw) && world_open_agent(&tw->w, 0) &&
           revdial_proxy_wait(tw->w.proxy, tw->w.acfg.name, 1, UTIL_WAIT_MS) >= 1;
}

static inline void tls_world_free(tls_world *tw)
{
    world_close(&tw->w);
    revdial_tls_free(tw->server);
    revdial_tls_free(tw->client);
    free(tw);
}

// Sends and gets back so many bytes. Returns 1 if they came back as they were.
static inline int tls_echo(tls_world *tw, size_t len)
{
    revdial_err err = {0};
    revdial_stream *st = world_dial(&tw->w, "echo", 0, &err);
    uint8_t out[512], in[512];
    int ok = st != NULL;
    for (size_t at = 0; ok && at < len; at += sizeof out) {
        util_fill(out, sizeof out, at, 1);
        ok = revdial_write(st, out, sizeof out) == (ptrdiff_t)sizeof out &&
             util_read_all(st, in, sizeof in) == (ptrdiff_t)sizeof in &&
             memcmp(in, out, sizeof in) == 0;
    }
    ok = ok && revdial_shutdown(st, REVDIAL_WR) == 0 && revdial_read(st, in, 1) == 0;
    revdial_close(st);
    return ok;
}

// ------------------------------------------------------------------------------------------------
// The relay: [0] agent to proxy, [1] proxy to agent.

typedef struct tls_relay {
    int listener, port, proxy_port, fds[2];
    pthread_t threads[2];
    pthread_t main;
    int chunk;           // bytes per segment; 0 = as they come
    long stop_after[2];  // from then on nothing is handed on; -1 = never
    atomic_int flip[2];  // the middle of what comes next is altered
    atomic_int cut;      // the next byte that comes is dropped, and both ends closed with FIN
    atomic_long moved[2];
} tls_relay;

typedef struct tls_relay_half {
    tls_relay *relay;
    int way;
} tls_relay_half;

static inline void *tls_relay_copy(void *arg)
{
    tls_relay_half half = *(tls_relay_half *)arg;
    tls_relay *r = half.relay;
    unsigned char buf[4096];
    ssize_t n;
    free(arg);
    while ((n = recv(r->fds[half.way], buf, r->chunk ? (size_t)r->chunk : sizeof buf, 0)) > 0) {
        long at = atomic_load(&r->moved[half.way]);
        if (atomic_load(&r->cut)) break;
        if (r->stop_after[half.way] >= 0 && at + n > r->stop_after[half.way]) {
            n = at < r->stop_after[half.way] ? r->stop_after[half.way] - at : 0;
            if (n) raw_send(r->fds[!half.way], buf, (size_t)n);
            atomic_fetch_add(&r->moved[half.way], n);
            while (recv(r->fds[half.way], buf, sizeof buf, 0) > 0) continue;
            break;
        }
        if (atomic_exchange(&r->flip[half.way], 0)) buf[n / 2] ^= 0x10;
        if (!raw_send(r->fds[!half.way], buf, (size_t)n)) break;
        atomic_fetch_add(&r->moved[half.way], n);
    }
    shutdown(r->fds[!half.way], atomic_load(&r->cut) ? SHUT_RDWR : SHUT_WR);
    if (atomic_load(&r->cut)) shutdown(r->fds[half.way], SHUT_RDWR);
    return NULL;
}

static inline void *tls_relay_run(void *arg)
{
    tls_relay *r = arg;
    char address[40];
    int one = 1;
    snprintf(address, sizeof address, "127.0.0.1:%d", r->proxy_port);
    r->fds[0] = raw_accept(r->listener);
    r->fds[1] = raw_connect(address);
    close(r->listener);  // one connection only
    if (r->fds[0] < 0 || r->fds[1] < 0) return NULL;
    setsockopt(r->fds[0], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (int i = 0; i < 2; i++) {
        tls_relay_half *half = malloc(sizeof *half);
        if (!half) abort();
        half->relay = r;
        half->way = i;
        r->threads[i] = util_thread(tls_relay_copy, half);
    }
    for (int i = 0; i < 2; i++) pthread_join(r->threads[i], NULL);
    return NULL;
}

static inline void tls_relay_init(tls_relay *r)
{
    memset(r, 0, sizeof *r);
    r->stop_after[0] = r->stop_after[1] = -1;
}

// Between the world's proxy and the agent that will be started.
static inline void tls_relay_start(tls_relay *r, tls_world *tw)
{
    r->proxy_port = atoi(strrchr(tw->w.address, ':') + 1);
    r->listener = raw_listen(4, &r->port);
    r->main = util_thread(tls_relay_run, r);
    snprintf(tw->w.url, sizeof tw->w.url, "https://127.0.0.1:%d", r->port);
}

static inline void tls_relay_end(tls_relay *r)
{
    pthread_join(r->main, NULL);
    for (int i = 0; i < 2; i++)
        if (r->fds[i] > 0) close(r->fds[i]);
}

#endif
