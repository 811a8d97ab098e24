// Ways to authenticate, at both ends and against ends that cheat: schemes, challenges, replays,
// tables and hooks that are replaced, limits before authentication, and where secrets are left.
// Rows by the numbers of the tables of bad input (A, R) and of threats (P, B, X).
#include "flood_util.h"
#include "secret_util.h"

enum { BEARER = REVDIAL_AUTH_BEARER, BASIC = REVDIAL_AUTH_BASIC, DIGEST = REVDIAL_AUTH_DIGEST };

// ------------------------------------------------------------------------------------------------
// Clients by hand

// Asks for cam-1 with that value of Authorization, NULL = none, and leaves what came in `answer`.
// Returns the status; *kept, if asked for, is the connection after a 101.
typedef struct asking {
    const char *authorization, *name, *more;
    int from;
    char answer[2048];
    int kept;
} asking;

static int ask(const char *address, asking *a)
{
    char head[4096];
    size_t len = 0;
    int fd = raw_connect_from(address, a->from ? a->from : 1);
    a->kept = -1;
    a->answer[0] = '\0';
    if (!CHECK(fd >= 0)) return 0;
    snprintf(
        head, sizeof head,
        "GET /revdial HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: revdial\r\n"
        "Revdial-Name: %s\r\n%s%s%s%s\r\n",
        a->name ? a->name : "cam-1", a->authorization ? "Authorization: " : "",
        a->authorization ? a->authorization : "", a->authorization ? "\r\n" : "",
        a->more ? a->more : "");
    raw_say(fd, head);
    raw_head(fd, a->answer, sizeof a->answer);
    if (raw_status(a->answer) == 101) {
        a->kept = fd;
        return 101;
    }
    len = strlen(a->answer);
    raw_drain(fd, a->answer + len, sizeof a->answer - len, &len);
    close(fd);
    return raw_status(a->answer);
}

// The value between quotes behind `key=`, of an answer.
static const char *quoted(const char *answer, const char *key, char *out, size_t size)
{
    char what[40];
    const char *at;
    snprintf(what, sizeof what, "%s=\"", key);
    at = strstr(answer, what);
    out[0] = '\0';
    if (at) snprintf(out, size, "%.*s", (int)strcspn(at + strlen(what), "\""), at + strlen(what));
    return out;
}

// What a client of Digest knows and sends; a test changes what it wants to be wrong.
typedef struct knowing {
    const char *user, *password, *realm, *uri, *nc, *cnonce, *more;
    char nonce[300], ha1[65], authorization[2048];
} knowing;

static void fetch_nonce(const char *address, knowing *k)
{
    asking a = {0};
    CHECK_INT(ask(address, &a), 401);
    quoted(a.answer, "nonce", k->nonce, sizeof k->nonce);
    CHECK(k->nonce[0]);
}

static const char *digest_of(knowing *k)
{
    char response[65];
    revdial_digest d = {0};
    if (!k->user) k->user = "alice";
    if (!k->password) k->password = "s3cret";
    if (!k->realm) k->realm = "revdial";
    if (!k->uri) k->uri = "/revdial";
    if (!k->nc) k->nc = "00000001";
    if (!k->cnonce) k->cnonce = "0a4f113b";
    d.realm = k->realm;
    d.nonce = k->nonce;
    d.uri = k->uri;
    d.nc = k->nc;
    d.cnonce = k->cnonce;
    rvd_auth_ha1(k->user, k->realm, k->password, k->ha1);
    rvd_auth_respond(&d, k->ha1, "GET", response);
    snprintf(k->authorization, sizeof k->authorization,
             "Digest username=\"%s\", realm=\"%s\", nonce=\"%s\", uri=\"%s\", qop=auth, nc=%s, "
             "cnonce=\"%s\", response=\"%s\", %s",
             k->user, k->realm, k->nonce, k->uri, k->nc, k->cnonce, response,
             k->more ? k->more : "algorithm=SHA-256");
    return k->authorization;
}

static int ask_digest(const char *address, knowing *k, asking *a)
{
    a->authorization = digest_of(k);
    return ask(address, a);
}

// One row of each kind, and the same password for all.
static const revdial_credential all_kinds[] = {{"s3cret", "alice", "*", DIGEST},
                                               {"t0ken", "robot", "*", BEARER},
                                               {"s3cret", "basil", "*", BASIC}};

static int open_with(world *w, const revdial_credential *rows, size_t count)
{
    world_init(w);
    w->pcfg.credentials = rows;
    w->pcfg.credential_count = count;
    w->pcfg.max_auth_failures = -1;
    return world_open_proxy(w);
}

// What a proxy keeps of those who ask, without the proxy.
static rvd_auth_guard guard;
static rvd_heap guard_heap;

static void guard_open(test_heap *memory)
{
    guard_heap = (rvd_heap){memory ? test_heap_alloc : NULL, memory, 0};
    rvd_auth_guard_init(&guard, &guard_heap, 0);
}

static int session_identity(world *w, const char *name, const char *want)
{
    revdial_session *s = NULL;
    revdial_session_info info = {0};
    if (revdial_proxy_list(w->proxy, name, &s, 1) >= 1) revdial_session_get_info(s, &info);
    revdial_session_unref(s);
    return CHECK_STR(info.identity, want);
}

// ------------------------------------------------------------------------------------------------
// Schemes, end to end

TEST(an_agent_authenticates_by_each_scheme_and_its_challenge_is_no_failure)
{
    static const struct {
        unsigned schemes;
        const char *secret, *user, *identity;
    } rows[] = {{DIGEST, "s3cret", "alice", "alice"},
                {BASIC, "s3cret", "basil", "basil"},
                {BEARER, "t0ken", NULL, "robot"},
                {0, "t0ken", NULL, "robot"},
                {DIGEST | BASIC, "s3cret", "alice", "alice"},
                {BASIC | BEARER, "t0ken", "basil", "robot"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        world w;
        revdial_stats stats;
        if (open_with(&w, all_kinds, 3)) {
            w.acfg.secret = rows[i].secret;
            w.acfg.user = rows[i].user;
            w.acfg.auth_schemes = rows[i].schemes;
            CHECK(world_open_agent(&w, 0));
            CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
            session_identity(&w, "cam-1", rows[i].identity);
            revdial_proxy_get_stats(w.proxy, &stats);
            CHECK_INT(stats.auth_failures, 0);
            CHECK_INT(util_log_count(&w.states, REVDIAL_BACKOFF, NULL), 0);
            CHECK_INT(util_log_count(&w.states, REVDIAL_CONNECTING, NULL), 1);
            revdial_agent_get_stats(w.agents[0], &stats);
            CHECK_INT(stats.reconnects, 0);
            revdial_stream *st = world_dial(&w, "echo", 0, NULL);
            CHECK(st != NULL);
            revdial_close(st);
        }
        world_close(&w);
    }
}

TEST(a_wrong_password_or_user_is_rejected_by_each_scheme)
{
    static const struct {
        unsigned schemes;
        const char *secret, *user;
    } rows[] = {{DIGEST, "s3cre", "alice"},  {DIGEST, "s3cret", "nobody"},
                {DIGEST, "s3cret", "basil"}, {BASIC, "s3crets", "basil"},
                {BASIC, "s3cret", "alice"},  {BEARER, "s3cret", NULL}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        world w;
        revdial_err err = {0};
        revdial_stats stats;
        if (open_with(&w, all_kinds, 3)) {
            w.acfg.url = w.url;
            w.acfg.secret = rows[i].secret;
            w.acfg.user = rows[i].user;
            w.acfg.auth_schemes = rows[i].schemes;
            CHECK_INT(revdial_serve(&w.acfg, &err), REVDIAL_EAUTH);
            revdial_proxy_get_stats(w.proxy, &stats);
            CHECK_INT(stats.auth_failures, 1);
        }
        world_close(&w);
    }
}

TEST(a_401_asks_for_each_scheme_of_the_table_on_a_line_of_its_own_strongest_first)
{
    static const revdial_credential both = {"s3cret", "alice", "*", BASIC | BEARER};
    world w;
    asking a = {0};
    if (open_with(&w, all_kinds, 3)) {
        CHECK_INT(ask(w.address, &a), 401);
        const char *digest = strstr(a.answer, "\r\nWWW-Authenticate: Digest realm=\"revdial\"");
        const char *bearer = strstr(a.answer, "\r\nWWW-Authenticate: Bearer realm=\"revdial\"\r\n");
        const char *basic = strstr(a.answer, "\r\nWWW-Authenticate: Basic realm=\"revdial\"\r\n");
        CHECK(digest && bearer && basic && digest < bearer && bearer < basic);
        CHECK(strstr(a.answer, "algorithm=SHA-256") && strstr(a.answer, "qop=\"auth\""));
        CHECK(!strstr(a.answer, "stale"));
    }
    world_close(&w);
    if (open_with(&w, &both, 1)) {
        CHECK_INT(ask(w.address, &a), 401);
        CHECK(!strstr(a.answer, "Digest") && strstr(a.answer, "Basic"));
    }
    world_close(&w);
}

TEST(A57_a_password_may_hold_colons_and_bytes_above_ASCII)
{
    static const revdial_credential row = {"pa:ss:\xc3\xa9", "user", "*", BASIC | DIGEST};
    for (int i = 0; i < 2; i++) {
        world w;
        if (open_with(&w, &row, 1)) {
            w.acfg.secret = row.secret;
            w.acfg.user = row.user;
            w.acfg.auth_schemes = i ? DIGEST : BASIC;
            CHECK(world_open_agent(&w, 0));
        }
        world_close(&w);
    }
}

TEST(a_table_may_hold_hashes_and_rows_that_cannot_work_are_refused)
{
    static const revdial_credential bad[] = {{NULL, "u", "*", BASIC},
                                             {"", "u", "*", BASIC},
                                             {"p", NULL, "*", BASIC},
                                             {"p", "", "*", DIGEST},
                                             {"p", "u", "*", 64},
                                             {"sha256:00", "u", "*", DIGEST},
                                             {"ha1:00", "u", "*", BASIC},
                                             {"ha1:00", "u", "*", BASIC | DIGEST},
                                             {"sha256:00", "u", "*", BASIC | DIGEST}};
    revdial_credential good[2] = {{NULL, "alice", "*", DIGEST}, {NULL, "alice", "*", BASIC}};
    char ha1[80] = "ha1:", hash[80] = "sha256:";
    const char *const secret[] = {"s3cret"};
    world w;
    rvd_auth_ha1("alice", "here", "s3cret", ha1 + 4);
    rvd_auth_hash(secret, 1, hash + 7);
    good[0].secret = ha1;
    good[1].secret = hash;
    world_init(&w);
    w.pcfg.credentials = good;
    w.pcfg.credential_count = 2;
    w.pcfg.realm = "here";
    if (world_open_proxy(&w)) {
        w.acfg.user = "alice";
        w.acfg.auth_schemes = DIGEST;
        CHECK(world_open_agent(&w, 0));
        w.acfg.auth_schemes = BASIC;
        w.acfg.instance = "other";
        CHECK(world_open_agent(&w, 1));
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
            CHECK_INT(revdial_proxy_replace_credentials(w.proxy, &bad[i], 1, 0, NULL),
                      REVDIAL_EINVAL);
        CHECK_INT(revdial_proxy_replace_credentials(w.proxy, NULL, 1, 0, NULL), REVDIAL_EINVAL);
    }
    world_close(&w);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char *problem = revdial_credential_problem(&bad[i]);
        revdial_credential rows[2] = {good[0], bad[i]};
        revdial_err err = {0};
        world_init(&w);
        w.pcfg.credentials = rows;
        w.pcfg.credential_count = 2;
        CHECK(revdial_proxy_start(&w.pcfg, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_EINVAL);
        CHECK(strncmp(err.msg, "credentials[1]: ", 16) == 0);
        if (CHECK(problem != NULL)) CHECK_STR(err.msg + 16, problem);
    }
    CHECK(revdial_credential_problem(&good[0]) == NULL);
}

// A row that nobody could ever come in by is refused, and says which of its fields is wrong.
TEST(a_row_that_lets_nobody_in_is_refused)
{
#define HASH64 "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeFF"
#define NAME64 "n123456789n123456789n123456789n123456789n123456789n123456789n123"
    enum { MTLS = REVDIAL_AUTH_MTLS };
    static const struct {
        const char *says;  // NULL: it is a good row
        revdial_credential row;
    } rows[] = {{NULL, {"tok-._~+/en==", NULL, "cam-1", 0}},
                {NULL, {"sha256:" HASH64, "cams", " cam-*,\tdoor?\t,,", BEARER}},
                {NULL, {"p\xc3\xa4 ss:w", "j\xc3\xb6rg", "*", BASIC | DIGEST}},
                {NULL, {"ha1:" HASH64, "u", "*a", DIGEST}},
                {NULL, {"tok", NULL, "a*._-*z," NAME64 ",*" NAME64 "*", 0}},
                {NULL, {NULL, "DNS:*.cams.example", "cam-*,**", MTLS}},
                {NULL, {"tok", "nobody", NULL, 0}},
                {"token", {"has blank", NULL, "*", 0}},
                {"token", {"has blank", "u", "*", BEARER | BASIC}},
                {"token", {"tok\ten", NULL, "*", 0}},
                {"token", {"tok\xc3\xa4", NULL, "*", 0}},
                {"token", {"a=b", NULL, "*", 0}},
                {"64 hex digits", {"sha256:00", NULL, "*", 0}},
                {"64 hex digits", {"sha256:" HASH64 "0", "u", "*", BASIC}},
                {"64 hex digits", {"ha1:zz", "u", "*", DIGEST}},
                {"secret", {"pass\nword", "u", "*", BASIC}},
                {"secret", {"s3cret", "CN=cam-1", "cam-1", MTLS}},
                {"user", {"p", "a:b", "*", BASIC}},
                {"user", {"p", "a\"b", "*", DIGEST}},
                {"user", {"p", "a\x7f", "*", BASIC}},
                {"user", {"p", NAME64 NAME64, "*", DIGEST}},
                {"user", {"tok", "", "*", BEARER}},
                {"user", {"tok", "a\nb", "*", BEARER}},
                {"names", {"tok", NULL, " , ,", 0}},
                {"names", {"tok", NULL, "Cam-*", 0}},
                {"names", {"tok", NULL, "*,Cam", 0}},
                {"[ ]", {"tok", NULL, "cam-[12]", 0}},
                {"names", {"tok", NULL, "cam 1", 0}},
                {"names", {"tok", NULL, "-*", 0}},
                {"names", {"tok", NULL, "cam-", 0}},
                {"names", {"tok", NULL, "*.", 0}},
                {"names", {"tok", NULL, NAME64 "*?", 0}},
                {"user", {NULL, "CN=*" NAME64 NAME64, "cam-1", MTLS}},
                {"DNS:", {NULL, "cam-1.example", "cam-1", MTLS}},
                {NULL, {"pass", "alice", "cam-1", MTLS | REVDIAL_AUTH_BASIC}},
                {"names", {NULL, "CN=cam", "cam/1", MTLS}}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *problem = revdial_credential_problem(&rows[i].row);
        if (rows[i].says ? problem && strstr(problem, rows[i].says) : !problem) continue;
        test_fail(__FILE__, __LINE__, "row %zu: %s", i, problem ? problem : "taken");
    }
}

TEST(a_table_whose_count_was_forgotten_is_refused)
{
    static const revdial_credential row = {.secret = "s3cret", .names = "*"};
    revdial_err err = {0};
    world w;
    world_init(&w);
    w.pcfg.credentials = &row;
    w.pcfg.credential_count = 0;
    CHECK(revdial_proxy_start(&w.pcfg, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_EINVAL);
    CHECK(strstr(err.msg, "credentials") != NULL);
    w.pcfg.credentials = NULL;
    w.pcfg.credential_count = 1;
    CHECK(revdial_proxy_start(&w.pcfg, &err) == NULL);
    CHECK_INT(err.code, REVDIAL_EINVAL);
    if (open_with(&w, &row, 1)) {
        CHECK_INT(revdial_proxy_replace_credentials(w.proxy, &row, 0, REVDIAL_END_STALE, NULL),
                  REVDIAL_EINVAL);
        CHECK(world_open_agent(&w, 0));  // the old table is in force
    }
    world_close(&w);
}

TEST(a_backend_without_a_name_is_registered_under_the_only_one_of_its_row)
{
    static const char *const names[] = {"cam-1", "cam-1,", " cam-1", "\tcam-1", ",,cam-1\t ,"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        revdial_credential row = {.secret = "s3cret-s3cret", .names = names[i]};
        revdial_session *s = NULL;
        revdial_session_info info;
        world w;
        if (open_with(&w, &row, 1)) {
            w.acfg.name = NULL;
            w.acfg.secret = row.secret;
            CHECK(world_open_agent(&w, 0));
            CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
            if (CHECK_INT(revdial_proxy_list(w.proxy, NULL, &s, 1), 1)) {
                revdial_session_get_info(s, &info);
                CHECK_STR(info.name, "cam-1");
            }
            revdial_session_unref(s);
        }
        world_close(&w);
    }
}

TEST(A68_a_certificate_is_an_identity_by_itself)
{
    static const revdial_credential rows[] = {{NULL, "DNS:*.cams.example", "*", REVDIAL_AUTH_MTLS},
                                              {NULL, "CN=door", "door", REVDIAL_AUTH_MTLS}};
    static const revdial_identity cam = {
        .verified = 1, .san = "email:x@y,DNS:cam-1.cams.example,DNS:cam-2.cams.example"};
    static const revdial_identity door = {.verified = 1, .subject = "CN=door"};
    static const revdial_credential bad[] = {{NULL, NULL, "*", REVDIAL_AUTH_MTLS},
                                             {NULL, "DNS:*.*", "*", REVDIAL_AUTH_MTLS},
                                             {NULL, "DNS:?", "*", REVDIAL_AUTH_MTLS},
                                             {NULL, "DNS:*", "a, b-?", REVDIAL_AUTH_MTLS}};
    static const revdial_credential other = {NULL, "DNS:*.cams.example", "x*", REVDIAL_AUTH_MTLS};
    static const struct {
        const revdial_identity *tls;
        const char *wanted;
        int want;
        const char *name, *identity;
    } asks[] = {{&cam, "cam-1", 0, "cam-1", "DNS:cam-1.cams.example"},
                {&cam, "cam-2", 0, "cam-2", "DNS:cam-2.cams.example"},
                {&cam, "cam-3", REVDIAL_EDENIED, "", ""},
                {&cam, "door", REVDIAL_EDENIED, "", ""},
                {&door, "", 0, "door", "CN=door"}};
    guard_open(NULL);
    rvd_auth_table *t = rvd_auth_table_new(&guard, "revdial", rows, 2);
    rvd_auth_table *later = rvd_auth_table_new(&guard, "revdial", &other, 1);
    for (size_t i = 0; i < sizeof asks / sizeof *asks; i++) {
        revdial_auth_req req = {.secret = "", .name = asks[i].wanted, .tls = asks[i].tls};
        char name[65] = "", identity[128] = "";
        size_t row;
        CHECK_INT(rvd_auth_table_check(t, &req, &row, name, identity), asks[i].want);
        CHECK_STR(name, asks[i].name);
        CHECK_STR(identity, asks[i].identity);
        if (asks[i].want) continue;
        CHECK(rvd_auth_table_row(t, t->marks[row], name, identity, NULL) == &t->rows[row]);
        CHECK(rvd_auth_table_row(later, t->marks[row], name, identity, NULL) == NULL);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(revdial_credential_problem(&bad[i]) != NULL);
    rvd_auth_table_free(later);
    rvd_auth_table_free(t);
    rvd_auth_guard_end(&guard);
    world w;
    asking a = {0};
    if (open_with(&w, rows, 2)) CHECK_INT(ask(w.address, &a), 401);  // nobody has one here
    world_close(&w);
}

// A certificate's row says who may come with a certificate, and not who may stay without one.
TEST(a_session_whose_secret_was_withdrawn_is_not_that_of_a_row_for_certificates)
{
    static const revdial_credential
        rows[] = {{"tok", "alice", "cam-1", REVDIAL_AUTH_BEARER},
                  {NULL, "*", "**", REVDIAL_AUTH_MTLS}},
        rotated = {"new", "alice", "cam-1", REVDIAL_AUTH_BASIC | REVDIAL_AUTH_MTLS},
        before = {"old", "alice", "cam-1", REVDIAL_AUTH_BASIC | REVDIAL_AUTH_MTLS};
    guard_open(NULL);
    rvd_auth_table *all = rvd_auth_table_new(&guard, "revdial", rows, 2);
    rvd_auth_table *later = rvd_auth_table_new(&guard, "revdial", &rows[1], 1);
    rvd_auth_table *old = rvd_auth_table_new(&guard, "revdial", &before, 1);
    rvd_auth_table *new = rvd_auth_table_new(&guard, "revdial", &rotated, 1);
    CHECK(rvd_auth_table_row(later, all->marks[0], "cam-1", "alice", NULL) == NULL);
    CHECK(rvd_auth_table_row(later, all->marks[1], "cam-1", "alice", NULL) != NULL);
    for (size_t i = 0; i < old->count; i++) {
        const int by_certificate = old->rows[i].schemes == REVDIAL_AUTH_MTLS;
        CHECK(rvd_auth_table_row(old, old->marks[i], "cam-1", "alice", NULL) != NULL);
        CHECK_INT(rvd_auth_table_row(new, old->marks[i], "cam-1", "alice", NULL) != NULL,
                  by_certificate);
    }
    rvd_auth_holder of_row = rvd_auth_row_holder(&guard, &(revdial_credential){
        NULL, "CN=a", "**", REVDIAL_AUTH_MTLS, .group = ""}, "CN=a");
    rvd_auth_holder of_user = rvd_auth_row_holder(&guard, &(revdial_credential){
        "tok", "CN=a", "**", REVDIAL_AUTH_BEARER}, "CN=a");
    CHECK(of_row.group != of_user.group);  // "" is no group, too
    rvd_auth_table_free(all);
    rvd_auth_table_free(later);
    rvd_auth_table_free(old);
    rvd_auth_table_free(new);
    rvd_auth_guard_end(&guard);
}

// ------------------------------------------------------------------------------------------------
// Digest at the proxy

TEST(P9_A60_a_nonce_is_answered_once_and_a_replay_is_refused)
{
    static const char *const wrong_nc[] = {"00000002", "00000000", "ffffffff"};
    world w;
    knowing k = {0};
    asking a = {0};
    char proof[80], want[65];
    if (open_with(&w, all_kinds, 3)) {
        fetch_nonce(w.address, &k);
        CHECK_INT(ask_digest(w.address, &k, &a), 101);
        revdial_digest d = {.nonce = k.nonce, .uri = k.uri, .nc = k.nc, .cnonce = k.cnonce};
        rvd_auth_respond(&d, k.ha1, "", want);
        CHECK_STR(quoted(a.answer, "rspauth", proof, sizeof proof), want);
        CHECK_STR(quoted(a.answer, ", cnonce", proof, sizeof proof), k.cnonce);
        int first = a.kept;
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
        CHECK_INT(ask(w.address, &a), 401);  // the same bytes again
        CHECK(strstr(a.answer, ", stale=true\r\n") != NULL);
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, 0), 1);  // its session was not replaced
        CHECK_INT(util_log_count(&w.sessions, 0, NULL), 1);
        close(first);
        for (int i = 0; i < 3; i++) {
            k.nc = wrong_nc[i];
            fetch_nonce(w.address, &k);
            CHECK_INT(ask_digest(w.address, &k, &a), 401);
            CHECK(strstr(a.answer, "stale=true") != NULL);
        }
        k.nc = NULL;
        fetch_nonce(w.address, &k);
        k.password = "wrong";
        CHECK_INT(ask_digest(w.address, &k, &a), 401);
        CHECK(!strstr(a.answer, "stale"));
        k.password = NULL;  // a wrong answer has used the nonce up
        CHECK_INT(ask_digest(w.address, &k, &a), 401);
        CHECK(strstr(a.answer, "stale=true") != NULL);
    }
    world_close(&w);
}

TEST(A60_a_nonce_that_is_forged_old_or_from_the_future_is_stale)
{
    const int64_t now = 1000000000;
    static const struct {
        uint64_t number;  // beside those that were given
        int64_t age_us;
        int flip, want;  // that digit is another one, -1: none
    } rows[] = {{0, 0, 0, 0},
                {0, 0, 31, 0},
                {0, 0, 32, 0},
                {0, 0, 63, 0},
                {0, 60000001, -1, 0},
                {0, -1, -1, 0},
                {1, 0, -1, 0},                 // not given yet
                {(uint64_t)-65536, 0, -1, 0},  // so many challenges later
                {0, 60000000, -1, 1},
                {(uint64_t)-65535, 0, -1, 1}};  // and this is how it works
    guard_open(NULL);
    guard.nonces = 100000;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char nonce[RVD_AUTH_NONCE_SIZE];
        revdial_digest d = {.nonce = nonce, .nc = "00000001"};
        rvd_auth_nonce_seal(&guard, guard.nonces - 1 + rows[i].number, now - rows[i].age_us, nonce);
        if (rows[i].flip >= 0) nonce[rows[i].flip] = nonce[rows[i].flip] == '0' ? '1' : '0';
        CHECK_INT(rvd_auth_nonce_take(&guard, &d, now), rows[i].want);
        CHECK_INT(rvd_auth_nonce_take(&guard, &d, now), 0);  // at most once
    }
    rvd_auth_guard_end(&guard);
}

TEST(A59_A60_digest_for_another_place_or_by_another_algorithm_is_401)
{
    static const knowing rows[] = {
        {.realm = "elsewhere"},
        {.uri = "/revdial2"},
        {.more = "algorithm=MD5"},
        {.more = "algorithm=SHA-256-sess"},
        {.more = "algorithm=MD5-sess"},
        {.more = "algorithm=SHA-512-256"},
        {.more = "opaque=\"x\""},  // no algorithm means MD5
        {.more = "algorithm=SHA-256, userhash=true"},
    };
    world w;
    asking a = {0};
    if (open_with(&w, all_kinds, 3)) {
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            knowing k = rows[i];
            fetch_nonce(w.address, &k);
            int status = ask_digest(w.address, &k, &a);
            if (status != 401) test_fail(__FILE__, __LINE__, "row %zu: %d", i, status);
        }
        knowing k = {.more = "algorithm=sha-256, userhash=false, opaque=\"\", later=1"};
        fetch_nonce(w.address, &k);
        CHECK_INT(ask_digest(w.address, &k, &a), 101);
        close(a.kept);
    }
    world_close(&w);
}

// All 401s of a proxy, with the nonce cut out.
static const char *without_nonce(char *answer)
{
    char *at = strstr(answer, "nonce=\"");
    if (at) memset(at + 7, '-', strcspn(at + 7, "\""));
    return answer;
}

TEST(P7_P17_A62_every_401_is_the_same_whoever_asked_for_whatever)
{
    static const char *const presented[] = {
        NULL,
        "Bearer wrong",
        "Bearer s3cret",
        "Basic YWxpY2U6d3Jvbmc=",  // alice:wrong
        "Basic bm9ib2R5OndYb25n",
        "Basic !",
        "Token t0ken",
    };
    world w;
    char first[2048] = "";
    if (open_with(&w, all_kinds, 3)) {
        for (size_t i = 0; i < sizeof presented / sizeof *presented + 3; i++) {
            asking a = {0};
            knowing k = {.user = i % 2 ? "nobody" : "alice", .password = "wrong"};
            if (i < sizeof presented / sizeof *presented)
                a.authorization = presented[i];
            else
                fetch_nonce(w.address, &k);
            a.name = i % 2 ? "cam-1" : "dog";
            if (!a.authorization && i) a.authorization = digest_of(&k);
            CHECK_INT(ask(w.address, &a), 401);
            without_nonce(a.answer);
            if (i == 0) strcpy(first, a.answer);
            CHECK_STR(a.answer, first);
        }
        CHECK(!strstr(first, "Server:") && !strstr(first, "alice") && !strstr(first, "cam"));
    }
    world_close(&w);
}

TEST(who_proves_nothing_gets_no_proof_of_ours)
{
    static const revdial_credential rows[] = {{"s3cret", "alice", "a", DIGEST},
                                              {"other", "alice", "*", DIGEST}};
    knowing k = {.nonce = "n"};
    char proof[65] = "", want[65];
    revdial_digest d = {"revdial", "n", "/revdial", "00000001", "c", NULL};
    revdial_auth_req req = {.secret = "", .name = "b", .scheme = DIGEST, .digest = &d};
    size_t row = 9;
    char response[65];
    req.proof = proof;
    d.response = response;
    for (int i = 0; i < 3; i++) {
        req.user = i == 2 ? "nobody" : "alice";
        rvd_auth_ha1("alice", "revdial", i == 1 ? "wrong" : "s3cret", k.ha1);
        rvd_auth_respond(&d, k.ha1, "GET", response);
        CHECK_INT(revdial_auth_verify(&req, rows, 2, &row), i ? REVDIAL_EAUTH : REVDIAL_EDENIED);
        CHECK_STR(proof, "");
    }
    req.user = "alice";
    rvd_auth_ha1("alice", "revdial", "other", k.ha1);  // the second row of that user
    rvd_auth_respond(&d, k.ha1, "GET", response);
    rvd_auth_respond(&d, k.ha1, "", want);
    CHECK_INT(revdial_auth_verify(&req, rows, 2, &row), 0);
    CHECK_INT(row, 1);
    CHECK_STR(proof, want);
    req.digest = NULL;
    CHECK_INT(revdial_auth_verify(&req, rows, 2, NULL), REVDIAL_EAUTH);
}

// A proxy refuses such rows; an application's hook may hand them over all the same.
TEST(a_row_with_the_hash_of_another_scheme_proves_nothing_and_its_check_ends)
{
    static const revdial_credential rows[] = {{"ha1:" HASH64, "alice", "*", BASIC},
                                              {"sha256:" HASH64, "alice", "*", DIGEST}};
    char response[65];
    const revdial_digest d = {"revdial", "n", "/revdial", "00000001", "c", response};
    memset(response, '0', 64);
    response[64] = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        revdial_auth_req req = {.secret = HASH64, .name = "a", .user = "alice"};
        req.scheme = rows[i].schemes;
        if (i == 1) req.digest = &d;
        CHECK_INT(revdial_auth_verify(&req, &rows[i], 1, NULL), REVDIAL_EAUTH);
    }
}

// ------------------------------------------------------------------------------------------------
// Digest at the agent, against a proxy by hand

typedef struct cheat {
    world w;
    int listener, fd;
    char head[4096];
} cheat;

static void cheat_open(cheat *c, unsigned schemes)
{
    int port = 0;
    world_init(&c->w);
    c->listener = raw_listen(8, &port);
    snprintf(c->w.url, sizeof c->w.url, "http://127.0.0.1:%d", port);
    c->w.acfg.url = c->w.url;
    c->w.acfg.user = "alice";
    c->w.acfg.auth_schemes = schemes;
    c->w.agents[0] = revdial_agent_start(&c->w.acfg, NULL);
}

// Reads a request and answers it.
static void cheat_answer(cheat *c, const char *answer)
{
    c->fd = raw_proxy_accept(c->listener, c->head, sizeof c->head);
    CHECK(c->fd >= 0);
    raw_say(c->fd, answer);
    shutdown(c->fd, SHUT_WR);
    raw_read(c->fd, c->head + sizeof c->head - 1, 1);
    close(c->fd);
}

static void cheat_close(cheat *c)
{
    world_close(&c->w);
    close(c->listener);
}

// The agent ended with that code, and never showed what it knows.
static void cheat_ended(cheat *c, const char *row, int code)
{
    util_state e = {0};
    if (!util_log_wait(&c->w.states, REVDIAL_STOPPED, 1, &e) || e.code != code)
        test_fail(__FILE__, __LINE__, "%s: %d, not %d: %s", row, e.code, code, e.msg);
    if (strstr(e.msg, "s3cret")) test_fail(__FILE__, __LINE__, "%s: %s", row, e.msg);
}

#define PROVES(what) \
    "HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: revdial\r\n" \
    "Authentication-Info: rspauth=" what "\r\n\r\n"
#define OURS "Revdial-Version: 1\r\n"  // or it would be the answer of a front end
#define ASKS(challenge) "HTTP/1.1 401 No\r\n" OURS challenge "Content-Length: 0\r\n\r\n"
#define GOOD \
    "WWW-Authenticate: Digest realm=\"r\", nonce=\"n1\", qop=\"auth\", algorithm=SHA-256\r\n"

TEST(P10_R21_a_proxy_that_asks_for_less_than_digest_gets_nothing)
{
    static const char *const rows[] = {
        ASKS("WWW-Authenticate: Basic realm=\"r\"\r\n"),
        ASKS("WWW-Authenticate: Bearer\r\nWWW-Authenticate: Basic realm=\"r\"\r\n"),
        ASKS("WWW-Authenticate: Digest realm=\"r\", nonce=\"n\", qop=\"auth\"\r\n"),
        ASKS("WWW-Authenticate: Digest realm=\"r\", nonce=\"n\", qop=\"auth\", algorithm=MD5\r\n"),
        ASKS("WWW-Authenticate: Digest realm=\"r\", nonce=\"n\", algorithm=SHA-256\r\n"),
        ASKS("WWW-Authenticate: Digest realm=\"r\", nonce=\"n\", qop=\"auth-int\", "
             "algorithm=SHA-256\r\n"),
        ASKS("WWW-Authenticate: Negotiate\r\n"),
        ASKS(""),
        RAW_101,
        PROVES("\"\""),
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        cheat c;
        cheat_open(&c, DIGEST);
        cheat_answer(&c, rows[i]);
        CHECK(!strstr(c.head, "Authorization"));
        cheat_ended(&c, rows[i], REVDIAL_EAUTH);
        CHECK_INT(util_log_count(&c.w.states, REVDIAL_UP, NULL), 0);
        cheat_close(&c);
    }
}

TEST(R22_a_malformed_challenge_is_an_error_of_its_own_and_nothing_is_sent)
{
    static char huge[8192], many[8000];
    const char *const rows[] = {
        ASKS("WWW-Authenticate: Digest realm=\"r\", qop=\"auth\", algorithm=SHA-256\r\n"),
        ASKS("WWW-Authenticate: Digest realm=\"r\", nonce=\"\", qop=\"auth\", "
             "algorithm=SHA-256\r\n"),
        ASKS("WWW-Authenticate: Digest nonce=\"n\", qop=\"auth\", algorithm=SHA-256\r\n"),
        ASKS("WWW-Authenticate: Digest realm=\"r, nonce=\"n\"\r\n"),
        ASKS("WWW-Authenticate: Digest realm=\"r\\\"\", nonce=\"n\"\r\n"),
        ASKS("WWW-Authenticate: Digest realm=\"r\", realm=\"r\", nonce=\"n\"\r\n"),
        ASKS("WWW-Authenticate: Digest realm=\"r\" nonce=\"n\"\r\n"),
        ASKS("WWW-Authenticate: Digest realm=, nonce=\"n\"\r\n"),
        ASKS("WWW-Authenticate: \"Digest\"\r\n"),
        huge,
        many,
    };
    size_t len =
        (size_t)snprintf(huge, sizeof huge,
                         "HTTP/1.1 401 No\r\n" OURS "WWW-Authenticate: Digest realm=\"r\", "
                         "qop=\"auth\", algorithm=SHA-256, nonce=\"");
    memset(huge + len, 'n', 7000);
    strcpy(huge + len + 7000, "\"\r\n\r\n");
    len = (size_t)snprintf(many, sizeof many,
                           "HTTP/1.1 401 No\r\n" OURS "WWW-Authenticate: Digest a=b");
    for (int i = 0; i < 100; i++) len += (size_t)snprintf(many + len, sizeof many - len, ", a=b");
    strcpy(many + len, "\r\n\r\n");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        cheat c;
        util_state e = {0};
        cheat_open(&c, DIGEST);
        cheat_answer(&c, rows[i]);
        CHECK(!strstr(c.head, "Authorization"));
        CHECK(util_log_wait(&c.w.states, REVDIAL_BACKOFF, 1, &e));
        if (e.code != REVDIAL_EUPGRADE)
            test_fail(__FILE__, __LINE__, "\"%.80s\": %d %s", rows[i], e.code, e.msg);
        cheat_close(&c);
    }
}

TEST(R22_of_a_hundred_challenges_the_first_that_can_be_answered_is)
{
    static char answer[8000];
    char nonce[40];
    size_t len =
        (size_t)snprintf(answer, sizeof answer, "HTTP/1.1 401 No\r\n" OURS "WWW-Authenticate: A");
    cheat c;
    for (int i = 0; i < 97; i++)
        len += (size_t)snprintf(answer + len, sizeof answer - len, "%s",
                                i % 2 ? ", Digest realm=\"x\", nonce=m, algorithm=MD5" : ",B c=d");
    snprintf(answer + len, sizeof answer - len,
             "\r\n" GOOD "WWW-Authenticate: Digest realm=\"r\", nonce=\"n2\", qop=\"auth\", "
             "algorithm=SHA-256\r\nWWW-Authenticate: Negotiate abc==\r\n\r\n");
    cheat_open(&c, DIGEST | BASIC);
    cheat_answer(&c, answer);
    cheat_answer(&c, "HTTP/1.1 403 No\r\nRevdial-Version: 1\r\n\r\n");
    CHECK_STR(quoted(c.head, ", nonce", nonce, sizeof nonce), "n1");
    CHECK(strstr(c.head, "Authorization: Digest username=\"alice\"") != NULL);
    cheat_ended(&c, "403", REVDIAL_EDENIED);
    cheat_close(&c);
}

TEST(P10_a_proxy_that_cannot_prove_the_password_is_left)
{
    static const char *const rows[] = {
        RAW_101,
        PROVES("\"753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1\""),
        PROVES(""),
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        cheat c;
        cheat_open(&c, DIGEST | BASIC);
        cheat_answer(&c, ASKS(GOOD));
        cheat_answer(&c, rows[i]);
        CHECK(strstr(c.head, "Authorization: Digest ") && !strstr(c.head, "s3cret"));
        cheat_ended(&c, rows[i], REVDIAL_EAUTH);
        CHECK_INT(util_log_count(&c.w.states, REVDIAL_UP, NULL), 0);
        cheat_close(&c);
    }
}

TEST(a_stale_nonce_is_answered_again_at_once_but_not_for_ever)
{
    cheat c;
    util_state e = {0};
    char cnonces[2][40];
    cheat_open(&c, DIGEST);
    for (int i = 0; i < 2; i++) {
        cheat_answer(&c, i ? ASKS("WWW-Authenticate: Digest realm=\"r\", nonce=\"n2\", stale=TRUE, "
                                  "qop=\"auth\", algorithm=SHA-256\r\n")
                           : ASKS(GOOD));
    }
    cheat_answer(&c, ASKS("WWW-Authenticate: Digest realm=\"r\", nonce=\"n2\", stale=true, "
                          "qop=\"auth\", algorithm=SHA-256\r\n"));
    CHECK(strstr(c.head, "nonce=\"n2\"") != NULL);
    quoted(c.head, "cnonce", cnonces[0], sizeof cnonces[0]);
    CHECK_INT(util_log_count(&c.w.states, REVDIAL_BACKOFF, NULL), 0);
    cheat_answer(&c, ASKS("WWW-Authenticate: Digest realm=\"r\", nonce=\"n2\", stale=true, "
                          "qop=\"auth\", algorithm=SHA-256\r\n"));
    quoted(c.head, "cnonce", cnonces[1], sizeof cnonces[1]);
    CHECK(strlen(cnonces[0]) == 32 && strcmp(cnonces[0], cnonces[1]) != 0);
    CHECK(util_log_wait(&c.w.states, REVDIAL_BACKOFF, 1, &e));  // the proxy is broken, not we
    CHECK_INT(e.code, REVDIAL_EUPGRADE);
    cheat_answer(&c, ASKS(GOOD));  // a new attempt knows no nonce
    CHECK(!strstr(c.head, "Authorization"));
    cheat_answer(&c, ASKS(GOOD));  // not stale: rejected
    cheat_ended(&c, "401", REVDIAL_EAUTH);
    cheat_close(&c);
}

static int count_credentials(void *ud, unsigned attempt, char *secret, size_t size)
{
    util_gate_add(ud, 1);
    (void)attempt;
    snprintf(secret, size, "s3cret");
    return 0;
}

TEST(credential_fn_is_asked_once_for_both_requests_of_an_attempt)
{
    world w;
    util_gate asked = UTIL_GATE;
    if (open_with(&w, all_kinds, 3)) {
        w.acfg.secret = NULL;
        w.acfg.credential_fn = count_credentials;
        w.acfg.credential_ud = &asked;
        w.acfg.user = "alice";
        w.acfg.auth_schemes = DIGEST;
        CHECK(world_open_agent(&w, 0));
        CHECK_INT(util_gate_count(&asked), 1);
    }
    world_close(&w);
}

TEST(P11_what_would_show_the_secret_is_not_sent_in_cleartext_beyond_loopback)
{
    static const unsigned sets[] = {BASIC, BASIC | BEARER};
    for (size_t i = 0; i < 2; i++) {
        world w;
        revdial_err err = {0};
        world_init(&w);
        w.acfg.url = "http://192.0.2.1:7000";
        w.acfg.user = "alice";
        w.acfg.auth_schemes = sets[i];
        CHECK_INT(revdial_serve(&w.acfg, &err), REVDIAL_EINVAL);
        CHECK(strstr(err.msg, "cleartext") != NULL);
    }
    // Of a set, only what is safe there is left.
    revdial_agent a;
    rvd_agent_link l;
    rvd_sys_addr far, near;
    memset(&a, 0, sizeof a);
    memset(&l, 0, sizeof l);
    l.agent = &a;
    CHECK_INT(rvd_sys_addr_parse("192.0.2.1:1", 1, &far, NULL), 0);
    CHECK_INT(rvd_sys_addr_parse("127.0.0.1:1", 1, &near, NULL), 0);
    a.cfg.auth_schemes = DIGEST | BASIC | BEARER;
    CHECK_INT(rvd_agent_schemes(&l, &far), DIGEST);
    CHECK_INT(rvd_agent_schemes(&l, &near), DIGEST | BASIC | BEARER);
    l.secure = 1;
    CHECK_INT(rvd_agent_schemes(&l, &far), DIGEST | BASIC | BEARER);
    l.secure = 0;
    a.cfg.allow_cleartext = 1;
    CHECK_INT(rvd_agent_schemes(&l, &far), DIGEST | BASIC | BEARER);
    a.cfg.allow_cleartext = 0;
    a.cfg.auth_schemes = 0;
    CHECK_INT(rvd_agent_schemes(&l, &far), 0);
}

TEST(U41_users_and_passwords_that_cannot_be_sent_are_refused_at_the_start)
{
    static const struct {
        const char *user, *secret;
    } rows[] = {{NULL, "x"},     {"", "x"},         {"a:b", "x"},    {"a\"b", "x"},  {"a\\b", "x"},
                {"a\r\nb", "x"}, {"\xc3\xa9", "x"}, {"a", "x\r\ny"}, {"a", "x\x7f"}, {"a", "\x01"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (unsigned scheme = BASIC; scheme <= DIGEST; scheme *= 2) {
            world w;
            revdial_err err = {0};
            world_init(&w);
            w.acfg.url = "http://127.0.0.1:1";
            w.acfg.user = rows[i].user;
            w.acfg.secret = rows[i].secret;
            w.acfg.auth_schemes = scheme;
            w.agents[0] = revdial_agent_start(&w.acfg, &err);
            CHECK(w.agents[0] == NULL);
            CHECK_INT(err.code, REVDIAL_EINVAL);
            CHECK(!strstr(err.msg, rows[i].secret) || !rows[i].secret[1]);
            world_close(&w);
        }
}

// ------------------------------------------------------------------------------------------------
// Hooks and tables

typedef struct hooked {
    util_gate called, go;
    revdial_auth_req seen;
    char user[64], secret[64];
    revdial_credential row;
} hooked;

static int hook_with_row(void *ud, const revdial_auth_req *req, char *identity, size_t size)
{
    hooked *h = ud;
    h->seen = *req;
    snprintf(h->user, sizeof h->user, "%s", req->user);
    snprintf(h->secret, sizeof h->secret, "%s", req->secret);
    util_gate_add(&h->called, 1);
    util_gate_wait(&h->go, 1);
    snprintf(identity, size, "hook:%s", req->user);
    return revdial_auth_verify(req, &h->row, 1, NULL);
}

// Of many at a time.
static int hook_that_waits(void *ud, const revdial_auth_req *req, char *identity, size_t size)
{
    hooked *h = ud;
    (void)req;
    util_gate_add(&h->called, 1);
    util_gate_wait(&h->go, 1);
    snprintf(identity, size, "nobody");
    return REVDIAL_EAUTH;
}

static int hook_that_accepts(void *ud, const revdial_auth_req *req, char *identity, size_t size)
{
    (void)ud, (void)req;
    snprintf(identity, size, "anybody");
    return 0;
}

TEST(a_hook_judges_each_scheme_and_may_answer_later)
{
    static const unsigned schemes[] = {DIGEST, BASIC};
    for (int i = 0; i < 2; i++) {
        world w;
        hooked h = {.called = UTIL_GATE, .go = UTIL_GATE};
        h.row = (revdial_credential){"s3cret", "alice", "*", DIGEST | BASIC};
        world_init(&w);
        w.pcfg.credentials = NULL;
        w.pcfg.credential_count = 0;
        w.pcfg.auth = hook_with_row;
        w.pcfg.auth_ud = &h;
        w.pcfg.auth_schemes = DIGEST | BASIC;
        if (world_open_proxy(&w)) {
            w.acfg.url = w.url;
            w.acfg.user = "alice";
            w.acfg.auth_schemes = schemes[i];
            w.agents[0] = revdial_agent_start(&w.acfg, NULL);
            CHECK(util_gate_wait(&h.called, 1));
            util_gate_add(&h.go, 1);
            CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
            CHECK_INT(h.seen.scheme, schemes[i]);
            CHECK_STR(h.user, "alice");
            CHECK_STR(h.secret, i ? "s3cret" : "");
            session_identity(&w, "cam-1", "hook:alice");
        }
        world_close(&w);
    }
}

// Static in each test: an agent whose session ends may ask again until its world is closed.
typedef struct lender {
    atomic_int calls;
    int64_t expires_ms;
    char headers[1024];
} lender;

static int hook_that_lends(void *ud, const revdial_auth_req *req, char *identity, size_t size)
{
    lender *h = ud;
    size_t len = 0;
    for (size_t i = 0; i < req->header_count; i++)
        len += (size_t)snprintf(h->headers + len, sizeof h->headers - len, "%s=%s\n",
                                req->headers[i].key, req->headers[i].value);
    CHECK_STR(req->secret, "s3cret");
    CHECK_INT(*req->expires_ms, 0);
    *req->expires_ms = h->expires_ms;
    snprintf(identity, size, "somebody");
    atomic_fetch_add(&h->calls, 1);
    return 0;
}

NEW_WORLD_TEST(a_hook_sees_the_fields_of_the_request_except_the_authorization)
{
    char answer[512];
    static lender h;
    h = (lender){0};
    w->pcfg.auth = hook_that_lends;
    w->pcfg.auth_ud = &h;
    REQUIRE(world_open_proxy(w));
    int fd = raw_connect(w->address);
    CHECK(raw_say(fd, "GET /revdial HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
                      "X-Site:  \t north east \r\nUpgrade: revdial\r\nX-None:\r\n"
                      "Authorization: Bearer s3cret\r\nx-site: south\r\n"
                      "Revdial-Name: cam-1\r\n\r\n"));
    CHECK(raw_head(fd, answer, sizeof answer) && raw_status(answer) == 101);
    CHECK_STR(h.headers, "Host=localhost\nConnection=Upgrade\nX-Site=north east\nUpgrade=revdial\n"
                         "X-None=\nx-site=south\nRevdial-Name=cam-1\n");
    close(fd);
}

// The clock stands, so that no time passes but what the test lets pass.
NEW_WORLD_TEST(a_session_whose_credential_expires_drains_and_its_agent_comes_back)
{
    util_state e = {0};
    static lender h;
    h = (lender){.expires_ms = 5000};
    w->pcfg.auth = hook_that_lends;
    w->pcfg.auth_ud = &h;
    util_clock_stop();
    REQUIRE(world_open(w));
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    util_clock_advance_ms(4900);
    for (unsigned i = 0; i < w->proxy->loop_count; i++) util_settle(w->proxy->loops[i]);
    CHECK_INT(util_log_count(&w->sessions, REVDIAL_DRAINING, NULL), 0);
    util_clock_advance_ms(200);
    CHECK(util_log_wait(&w->sessions, REVDIAL_DRAINING, 1, &e));
    CHECK_INT(e.code, REVDIAL_EAUTH);
    util_clock_run();
    CHECK(util_log_wait(&w->sessions, REVDIAL_UP, 2, NULL));
    CHECK_INT(util_log_count(&w->sessions, REVDIAL_DOWN, NULL), 0);  // the stream still runs
    CHECK_INT(revdial_write(st, "x", 1), 1);
    revdial_close(st);
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, NULL));
    CHECK(atomic_load(&h.calls) >= 2);
}

NEW_WORLD_TEST(a_credential_that_expires_during_a_drain_gives_its_streams_no_more_time)
{
    util_state e = {0};
    static lender h;
    h = (lender){.expires_ms = 300};
    w->pcfg.auth = hook_that_lends;
    w->pcfg.auth_ud = &h;
    util_clock_stop();
    REQUIRE(world_open(w));
    revdial_stream *st = world_dial(w, "hold", 0, NULL);
    revdial_session *s = revdial_stream_session(st);
    CHECK_INT(revdial_session_drain(s, 500), 0);
    CHECK_INT(revdial_session_drain(s, -1), 0);  // as when it came up after the others
    util_clock_advance_ms(400);
    CHECK(util_log_wait(&w->sessions, REVDIAL_DRAINING, 1, &e));
    CHECK_INT(e.code, REVDIAL_EAUTH);
    util_clock_advance_ms(200);
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, &e));
    CHECK_INT(e.code, REVDIAL_ETIMEDOUT);
    util_clock_run();
    revdial_session_unref(s);
    revdial_close(st);
}

NEW_WORLD_TEST(a_drain_gives_no_more_time_to_a_session_whose_credential_has_expired)
{
    util_state e = {0};
    static lender h;
    h = (lender){.expires_ms = 300};
    w->pcfg.auth = hook_that_lends;
    w->pcfg.auth_ud = &h;
    w->acfg.backoff_min_ms = w->acfg.backoff_max_ms = 1000000000;  // no second session expires
    util_clock_stop();
    REQUIRE(world_open(w));
    revdial_stream *st = world_dial(w, "hold", 0, NULL);
    revdial_session *s = revdial_stream_session(st);
    util_clock_advance_ms(400);
    CHECK(util_log_wait(&w->sessions, REVDIAL_DRAINING, 1, NULL));
    for (unsigned i = 0; i < w->proxy->loop_count; i++) util_settle(w->proxy->loops[i]);
    CHECK_INT(revdial_session_drain(s, 600000), 0);
    util_clock_advance_ms(RVD_PROXY_EXPIRED_MS);
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, &e));
    CHECK_INT(e.code, REVDIAL_ETIMEDOUT);
    util_clock_run();
    revdial_session_unref(s);
    revdial_close(st);
}

NEW_WORLD_TEST(what_has_expired_already_admits_nobody)
{
    asking a = {.authorization = "Bearer s3cret"};
    static lender h;
    h = (lender){.expires_ms = -1};
    w->pcfg.auth = hook_that_lends;
    w->pcfg.auth_ud = &h;
    REQUIRE(world_open_proxy(w));
    CHECK_INT(ask(w->address, &a), 401);
}

// Admits tokens that begin with "ext-", and says no more about them.
static int hook_for_the_rest(void *ud, const revdial_auth_req *req, char *identity, size_t size)
{
    (void)identity;
    (void)size;
    atomic_fetch_add((atomic_int *)ud, 1);
    return strncmp(req->secret, "ext-", 4) == 0 ? REVDIAL_VERDICT_ADMIT : REVDIAL_EAUTH;
}

NEW_WORLD_TEST(a_hook_after_the_table_judges_what_no_row_has_and_nothing_else)
{
    static const struct {
        const char *authorization, *name;
        int status, is_asked;
    } rows[] = {{"Bearer t0ken", "cam-1", 101, 0},
                {"Bearer t0ken", "dog-1", 403, 0},
                {"Bearer ext-1", "cam-2", 101, 1},
                {"Bearer ext-1", "cam-1", 409, 1},  // the table's token has it
                {"Bearer ext-2", "cam-2", 409, 1},  // and that name another one's
                {"Bearer nobody", "cam-3", 401, 1},
                {"Basic YWxpY2U6ZXh0LTM=", "cam-4", 101, 1},  // alice:ext-3
                {NULL, "cam-3", 401, 0}};
    static const revdial_credential row = {"t0ken", "robot", "cam-*", BEARER};
    int kept[sizeof rows / sizeof *rows];
    atomic_int calls = 0;
    w->pcfg.credentials = &row;
    w->pcfg.credential_count = 1;
    w->pcfg.max_auth_failures = -1;
    w->pcfg.auth = hook_for_the_rest;
    w->pcfg.auth_ud = &calls;
    w->pcfg.auth_after_table = 1;
    REQUIRE(world_open_proxy(w));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        asking a = {.authorization = rows[i].authorization, .name = rows[i].name};
        int before = atomic_load(&calls);
        if (ask(w->address, &a) != rows[i].status ||
            atomic_load(&calls) - before != rows[i].is_asked)
            test_fail(__FILE__, __LINE__, "row %zu: %s", i, a.answer);
        kept[i] = a.kept;
        if (a.kept >= 0) CHECK(util_log_wait(&w->sessions, REVDIAL_UP, 1, NULL));
    }
    session_identity(w, "cam-1", "robot");
    session_identity(w, "cam-4", "alice");
    // Without the hook the table is alone, and its 401 asks for what it has.
    revdial_proxy_replace_auth(w->proxy, NULL, NULL);
    asking a = {.authorization = "Bearer ext-9", .name = "cam-9"};
    CHECK_INT(ask(w->address, &a), 401);
    CHECK(strstr(a.answer, "Bearer") && !strstr(a.answer, "Basic"));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (kept[i] >= 0) close(kept[i]);
}

// Admits everybody to one group, with a label that the token says.
static int hook_that_labels(void *ud, const revdial_auth_req *req, char *identity, size_t size)
{
    (void)ud;
    snprintf(identity, size, "%.20s", req->secret);
    strcpy(req->group, "all");
    snprintf(req->label, REVDIAL_LABEL_SIZE, "%s", req->secret + strcspn(req->secret, "."));
    return REVDIAL_VERDICT_ADMIT;
}

// The label of the session of that name.
static int session_label(world *w, const char *name, const char *want)
{
    revdial_session *s = NULL;
    char label[REVDIAL_LABEL_SIZE] = "";
    if (revdial_proxy_list(w->proxy, name, &s, 1) >= 1)
        CHECK_INT(revdial_session_get_label(s, label, sizeof label), (int)strlen(want));
    if (s && *want) CHECK_INT(revdial_session_get_label(s, label, strlen(want)), REVDIAL_EINVAL);
    if (s) revdial_session_get_label(s, label, sizeof label);
    revdial_session_unref(s);
    return CHECK_STR(label, want);
}

NEW_WORLD_TEST(of_a_request_that_was_answered_no_pointer_is_kept)
{
    revdial_session *s = NULL;
    w->pcfg.auth = hook_that_labels;
    REQUIRE(world_open_proxy(w));
    asking a = {.authorization = "Bearer x.y", .name = "cam-3"};
    CHECK_INT(ask(w->address, &a), 101);
    CHECK(util_log_wait(&w->sessions, REVDIAL_UP, 1, NULL));
    REQUIRE(revdial_proxy_list(w->proxy, "cam-3", &s, 1) == 1);
    rvd_stream_lock(s);
    const revdial_auth_req auth = ((const rvd_proxy_member *)s->member)->auth;
    rvd_stream_unlock(s);
    CHECK(!auth.secret && !auth.name && !auth.peer && !auth.digest && !auth.proof);
    CHECK(!auth.headers && !auth.header_count);
    CHECK(!auth.group && !auth.expires_ms && !auth.label && !auth.quota);
    CHECK_INT(auth.scheme, REVDIAL_AUTH_BEARER);  // the counters need it
    revdial_session_unref(s);
    close(a.kept);
}

NEW_WORLD_TEST(sessions_have_the_label_of_their_row_and_no_name_has_two_labels)
{
    static const revdial_credential rows[] = {{"t0ken", NULL, "*", BEARER, "g", "a.example"},
                                              {"other", NULL, "*", BEARER, "g", "b.example"},
                                              {"plain", NULL, "*", BEARER, "g", NULL},
                                              {"again", NULL, "*", BEARER, "g", "a.example"}};
    static const struct {
        const char *authorization, *name;
        int status;
    } asks[] = {{"Bearer t0ken", "cam-1", 101}, {"Bearer other", "cam-1", 409},
                {"Bearer plain", "cam-1", 409}, {"Bearer again", "cam-1", 101},
                {"Bearer plain", "cam-2", 101}, {"Bearer other", "cam-2", 409}};
    int kept[sizeof asks / sizeof *asks], up = 0;
    w->pcfg.credentials = rows;
    w->pcfg.credential_count = 4;
    REQUIRE(world_open_proxy(w));
    for (size_t i = 0; i < sizeof asks / sizeof *asks; i++) {
        asking a = {.authorization = asks[i].authorization, .name = asks[i].name};
        CHECK_INT(ask(w->address, &a), asks[i].status);
        kept[i] = a.kept;
        if (a.kept >= 0) CHECK(util_log_wait(&w->sessions, REVDIAL_UP, ++up, NULL));
    }
    session_label(w, "cam-1", "a.example");
    session_label(w, "cam-2", "");
    // A row with another label is another row.
    revdial_credential changed[4];
    memcpy(changed, rows, sizeof rows);
    changed[0].label = "c.example";
    CHECK_INT(revdial_proxy_replace_credentials(w->proxy, changed, 4, REVDIAL_END_STALE, NULL), 0);
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, NULL));
    revdial_proxy_replace_auth(w->proxy, hook_that_labels, NULL);
    asking a = {.authorization = "Bearer x.y", .name = "cam-3"};
    CHECK_INT(ask(w->address, &a), 101);
    CHECK(util_log_wait(&w->sessions, REVDIAL_UP, ++up, NULL));
    session_label(w, "cam-3", ".y");
    CHECK_INT(util_log_count(&w->sessions, REVDIAL_DOWN, NULL), 1);
    close(a.kept);
    for (size_t i = 0; i < sizeof asks / sizeof *asks; i++)
        if (kept[i] >= 0) close(kept[i]);
}

NEW_WORLD_TEST(a_hook_that_accepts_digest_unseen_has_no_proof_for_the_backend)
{
    revdial_err err = {0};
    w->pcfg.auth = hook_that_accepts;
    w->pcfg.auth_schemes = DIGEST;
    REQUIRE(world_open_proxy(w));
    w->acfg.url = w->url;
    w->acfg.user = "alice";
    w->acfg.auth_schemes = DIGEST;
    CHECK_INT(revdial_serve(&w->acfg, &err), REVDIAL_EAUTH);
}

NEW_WORLD_TEST(credentials_of_a_kind_that_was_not_asked_for_never_reach_the_hook)
{
    w->pcfg.auth = hook_that_accepts;
    REQUIRE(world_open_proxy(w));
    asking a = {.authorization = "Basic YWxpY2U6czNjcmV0"};
    CHECK_INT(ask(w->address, &a), 401);
    a.authorization = "Bearer x";
    CHECK_INT(ask(w->address, &a), 101);
    close(a.kept);
}

TEST(who_presents_nothing_gets_401_unseen_unless_the_hook_wants_to_hear_of_it)
{
    for (int wants = 0; wants < 2; wants++) {
        world w;
        hooked h = {.called = UTIL_GATE, .go = UTIL_GATE};
        util_gate_add(&h.go, 1);
        world_init(&w);
        w.pcfg.auth = hook_with_row;  // refuses all
        w.pcfg.auth_ud = &h;
        w.pcfg.auth_anonymous = wants;
        w.pcfg.auth_schemes = DIGEST | BEARER;
        if (world_open_proxy(&w)) {
            asking none = {0}, some = {.authorization = "Bearer x"};
            for (int i = 0; i < 20; i++)
                CHECK_INT(ask(w.address, &none), 401);  // no penalty either
            CHECK(strstr(none.answer, "WWW-Authenticate: Digest ") != NULL);
            CHECK(strstr(none.answer, "WWW-Authenticate: Bearer ") != NULL);
            CHECK_INT(util_gate_count(&h.called), wants ? 20 : 0);
            CHECK_INT(ask(w.address, &some), 401);
            CHECK_INT(util_gate_count(&h.called), wants ? 21 : 1);
        }
        world_close(&w);
    }
}

enum { CROWD = RVD_AUTH_HOOKS + 20 };

typedef struct crowd {
    int fds[CROWD];
    char answer[2048];
} crowd;

static int crowd_join(const char *address, int from)
{
    int fd = raw_connect_from(address, from);
    raw_say(fd, "GET /revdial HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
                "Upgrade: revdial\r\nRevdial-Name: cam-1\r\nAuthorization: Bearer x\r\n\r\n");
    return fd;
}

static int queue_has(revdial_proxy *p)
{
    int has;
    pthread_mutex_lock(&p->own.lock);
    has = !rvd_base_link_is_alone(&p->guard.queue);
    pthread_mutex_unlock(&p->own.lock);
    return has;
}

// Opens more than the hook is asked about at one time, and waits until it is.
static void crowd_open(crowd *c, world *w, hooked *h)
{
    for (int i = 0; i < CROWD; i++) {
        c->fds[i] = crowd_join(w->address, 2);
        if (i + 1 == RVD_AUTH_HOOKS) CHECK(util_gate_wait(&h->called, RVD_AUTH_HOOKS));
        if (i == RVD_AUTH_HOOKS) UTIL_EVENTUALLY(queue_has(w->proxy));  // the oldest that waits
    }
    UTIL_EVENTUALLY(pending_of(w->proxy) == CROWD);
}

static int hook_world(world *w, hooked *h)
{
    world_init(w);
    util_gate_init(&h->called);
    util_gate_init(&h->go);
    w->pcfg.auth = hook_that_waits;
    w->pcfg.auth_ud = h;
    return world_open_proxy(w);
}

static void hook_world_close(world *w, hooked *h)
{
    util_gate_add(&h->go, 1);
    UTIL_EVENTUALLY(pending_of(w->proxy) == 0);
    CHECK(rvd_base_link_is_alone(&w->proxy->guard.queue));
    CHECK(rvd_base_link_is_alone(&w->proxy->waiting));
    for (int i = 0; i < RVD_AUTH_BUCKETS; i++) CHECK_INT(w->proxy->guard.hooks_of[i], 0);
    world_close(w);
}

TEST(one_source_keeps_no_more_than_half_of_the_threads_for_hooks_busy)
{
    world w;
    crowd c;
    hooked h = {0};
    int refused = 0;
    if (hook_world(&w, &h)) {
        crowd_open(&c, &w, &h);
        close(c.fds[0]);          // who has gone still has its thread
        close(c.fds[CROWD - 1]);  // and who goes while it waits is not asked about
        UTIL_EVENTUALLY(pending_of(w.proxy) == CROWD - 1);
        CHECK_INT(util_gate_count(&h.called), RVD_AUTH_HOOKS);
        int other = crowd_join(w.address, 3);
        CHECK(util_gate_wait(&h.called, RVD_AUTH_HOOKS + 1));  // another source is
        util_gate_add(&h.go, 1);
        CHECK(raw_head(other, c.answer, sizeof c.answer) > 0);
        close(other);
        for (int i = 1; i < CROWD - 1; i++) {
            raw_head(c.fds[i], c.answer, sizeof c.answer);
            refused += raw_status(c.answer) == 429;
            close(c.fds[i]);
        }
        CHECK(refused >= 2);  // by then it had failed ten times
        CHECK(util_gate_count(&h.called) < CROWD);
    }
    hook_world_close(&w, &h);
}

TEST(P2_requests_that_wait_for_their_turn_with_the_hook_give_way_to_newcomers)
{
    world w;
    crowd c;
    hooked h = {0};
    if (hook_world(&w, &h)) {
        w.proxy->cfg.max_pending = CROWD;
        crowd_open(&c, &w, &h);
        int other = crowd_join(w.address, 3);
        CHECK_INT(raw_read(c.fds[RVD_AUTH_HOOKS], c.answer, 1), 0);  // the oldest that waits
        CHECK(util_gate_wait(&h.called, RVD_AUTH_HOOKS + 1));
        for (int i = 0; i < CROWD; i++) close(c.fds[i]);
        close(other);
    }
    hook_world_close(&w, &h);
}

TEST(B8_a_new_table_rules_at_once_and_drops_only_who_is_no_longer_in_it)
{
    static const revdial_credential fresh[] = {{"new", "alice", "cam-*", BEARER},
                                               {"s3cret", "alice", "cam-*", DIGEST},
                                               {"t0ken", "robot", "dog", BEARER}};
    world w;
    asking a = {.authorization = "Bearer t0ken"}, b = {.authorization = "Bearer new"};
    util_state e = {0};
    if (open_with(&w, all_kinds, 3)) {
        knowing k = {0};
        asking d = {.name = "cam-2"};
        fetch_nonce(w.address, &k);
        CHECK_INT(ask_digest(w.address, &k, &d), 101);
        CHECK_INT(ask(w.address, &a), 101);
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
        CHECK_INT(revdial_proxy_replace_credentials(w.proxy, NULL, 0, 0, NULL),
                  0);  // nobody, from now on
        asking c = a;
        CHECK_INT(ask(w.address, &c), 401);
        CHECK(!strstr(c.answer, "Digest"));
        CHECK_INT(util_log_count(&w.sessions, REVDIAL_DOWN, NULL), 0);
        CHECK_INT(revdial_proxy_replace_credentials(w.proxy, fresh, 3, REVDIAL_END_STALE, NULL), 0);
        CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 1, &e));  // robot has lost cam-1
        CHECK_INT(e.code, REVDIAL_EAUTH);
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-2", 1, 0), 1);
        CHECK_INT(ask(w.address, &b), 101);
        CHECK_INT(util_log_count(&w.sessions, REVDIAL_DOWN, NULL), 1);
        close(a.kept);
        close(b.kept);
        close(d.kept);
    }
    world_close(&w);
}

// The memory of one thread: its allocation number `left` from now on fails.
typedef struct short_of_memory {
    pthread_t who;
    int left;
} short_of_memory;

static void *short_alloc(void *ud, void *ptr, size_t old_size, size_t new_size)
{
    short_of_memory *m = ud;
    (void)old_size;
    if (new_size && pthread_equal(m->who, pthread_self()) && m->left > 0 && --m->left == 0)
        return NULL;
    if (new_size) return realloc(ptr, new_size);
    free(ptr);
    return NULL;
}

// The memory of all threads: allocation number `left` from now on fails.
static void *once_short_alloc(void *ud, void *ptr, size_t old_size, size_t new_size)
{
    atomic_int *left = ud;
    (void)old_size;
    if (new_size && atomic_fetch_sub(left, 1) == 1) return NULL;
    if (new_size) return realloc(ptr, new_size);
    free(ptr);
    return NULL;
}

// Each allocation on the way to the hook and behind it fails once.
TEST(a_request_that_memory_is_short_for_is_answered_or_its_connection_ends_at_once)
{
    atomic_int left = 0;
    int told = 0, n = 0, was_short = 1;
    world w;
    world_init(&w);
    w.pcfg.auth = hook_that_accepts;
    w.pcfg.common.alloc = once_short_alloc;
    w.pcfg.common.alloc_ud = &left;
    if (world_open_proxy(&w)) {
        while (was_short && n++ < 200) {
            asking a = {.authorization = "Bearer x"};
            atomic_store(&left, n);
            int status = ask(w.address, &a);
            was_short = atomic_exchange(&left, 0) <= 0;
            if (status != 101 && status != 503 && status != 0)
                test_fail(__FILE__, __LINE__, "allocation %d failed: status %d", n, status);
            told += status == 503;
            if (status == 101) close(a.kept);
        }
        CHECK(n > 10 && !was_short);
        CHECK(told > 1);
    }
    world_close(&w);
}

TEST(a_new_table_for_which_memory_is_short_changes_nothing)
{
    static const revdial_credential fresh[] = {{"new", "alice", "cam-*", BEARER}};
    short_of_memory m = {.who = pthread_self()};
    asking a = {.authorization = "Bearer t0ken"}, b = {.authorization = "Bearer new"};
    util_state e = {0};
    int code = 0, failed = 0;
    world w;
    world_init(&w);
    w.pcfg.credentials = all_kinds;
    w.pcfg.credential_count = 3;
    w.pcfg.max_auth_failures = -1;
    w.pcfg.common.alloc = short_alloc;
    w.pcfg.common.alloc_ud = &m;
    if (world_open_proxy(&w) && CHECK_INT(ask(w.address, &a), 101) &&
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1)) {
        for (int n = 1; n < 100; n++, failed++) {
            asking c = b;
            m.left = n;
            code = revdial_proxy_replace_credentials(w.proxy, fresh, 1, REVDIAL_END_STALE, NULL);
            m.left = 0;
            if (code != REVDIAL_ENOMEM) break;
            CHECK_INT(ask(w.address, &c), 401);
            CHECK_INT(util_log_count(&w.sessions, REVDIAL_DOWN, NULL), 0);
        }
        CHECK_INT(code, 0);
        CHECK(failed > 2);
        CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 1, &e));
        CHECK_INT(ask(w.address, &b), 101);
        close(a.kept);
        close(b.kept);
    }
    world_close(&w);
}

// Registers a name by that, and leaves the connection in *fd.
static void hold(world *w, const char *authorization, const char *name, int *fd)
{
    asking a = {.authorization = authorization, .name = name};
    CHECK_INT(ask(w->address, &a), 101);
    CHECK_INT(revdial_proxy_wait(w->proxy, name, 1, UTIL_WAIT_MS), 1);
    *fd = a.kept;
}

TEST(B8_a_session_ends_with_the_secret_that_admitted_it)
{
    static const revdial_credential fresh[] = {{"other", "robot", "*", BEARER},
                                               {"s3cret", "basil", "*", BASIC},
                                               {"s3cret2", "alice", "*", DIGEST},
                                               {"s3cret", "alice", "*", BASIC | BEARER}};
    char hash[80] = "sha256:";
    const char *const secret[] = {"t0ken"};
    revdial_credential same[] = {all_kinds[2], all_kinds[0], {hash, "robot", "*", BEARER}};
    world w;
    rvd_auth_hash(secret, 1, hash + 7);
    if (open_with(&w, all_kinds, 3)) {
        int fds[3];
        knowing k = {0};
        fetch_nonce(w.address, &k);
        hold(&w, digest_of(&k), "cam-1", &fds[0]);
        hold(&w, "Bearer t0ken", "cam-2", &fds[1]);
        hold(&w, "Basic YmFzaWw6czNjcmV0", "cam-3", &fds[2]);
        CHECK_INT(revdial_proxy_replace_credentials(w.proxy, same, 3, REVDIAL_END_STALE, NULL),
                  0);  // in another order
        CHECK_INT(revdial_proxy_replace_credentials(w.proxy, fresh, 4, 0, NULL),
                  0);  // and without dropping
        CHECK_INT(util_log_count(&w.sessions, REVDIAL_DOWN, NULL), 0);
        CHECK_INT(revdial_proxy_replace_credentials(w.proxy, fresh, 4, REVDIAL_END_STALE, NULL), 0);
        CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 2, NULL));
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-3", 1, 0), 1);
        CHECK_INT(util_log_count(&w.sessions, REVDIAL_DOWN, NULL), 2);
        for (int i = 0; i < 3; i++) close(fds[i]);
    }
    world_close(&w);
}

TEST(B4_tokens_without_a_user_are_an_identity_each_wherever_they_stand_in_the_table)
{
    static const revdial_credential rows[] = {{"one", NULL, "*", 0}, {"two", NULL, "*", 0}};
    static const revdial_credential moved[] = {
        {"new", NULL, "*", 0}, {"two", NULL, "*", 0}, {"one", NULL, "*", 0}};
    world w;
    revdial_session *s = NULL;
    revdial_session_info info[2] = {{0}};
    if (open_with(&w, rows, 2)) {
        int fds[2];
        hold(&w, "Bearer one", "cam-1", &fds[0]);
        hold(&w, "Bearer two", "cam-2", &fds[1]);
        asking other = {.authorization = "Bearer two", .more = "Revdial-Instance: i\r\n"};
        CHECK_INT(ask(w.address, &other), 409);
        CHECK_INT(revdial_proxy_replace_credentials(w.proxy, moved, 3, REVDIAL_END_STALE, NULL), 0);
        other.authorization = "Bearer new";
        CHECK_INT(ask(w.address, &other), 409);
        for (int i = 0; i < 2; i++) {
            CHECK_INT(revdial_proxy_list(w.proxy, i ? "cam-2" : "cam-1", &s, 1), 1);
            revdial_session_get_info(s, &info[i]);
            revdial_session_unref(s);
            CHECK_INT(strlen(info[i].identity), 22);
            CHECK(strncmp(info[i].identity, "token ", 6) == 0);
        }
        CHECK(strcmp(info[0].identity, info[1].identity) != 0);
        other.authorization = "Bearer one";  // the same backend, in another instance
        CHECK_INT(ask(w.address, &other), 101);
        CHECK_INT(util_log_count(&w.sessions, REVDIAL_DOWN, NULL), 0);
        CHECK_INT(revdial_proxy_replace_credentials(w.proxy, moved, 2, REVDIAL_END_STALE, NULL), 0);
        CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 2, NULL));
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-2", 1, 0), 1);
        for (int i = 0; i < 2; i++) close(fds[i]);
        close(other.kept);
    }
    world_close(&w);
}

TEST(B8_sessions_that_did_not_come_by_the_table_are_not_dropped_by_it)
{
    world w;
    if (open_with(&w, all_kinds, 3)) {
        asking a = {.authorization = "Bearer x"};
        revdial_attach_opts how = {.upgraded = 1, .name = "cam-2", .identity = "vouched"};
        int pair[2];
        revdial_proxy_replace_auth(w.proxy, hook_that_accepts, NULL);
        CHECK_INT(ask(w.address, &a), 101);
        CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
        CHECK_INT(revdial_proxy_attach(w.proxy, pair[0], &how, NULL), 0);
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-2", 1, UTIL_WAIT_MS), 1);
        CHECK_INT(revdial_proxy_replace_credentials(w.proxy, NULL, 0, REVDIAL_END_STALE, NULL), 0);
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, 0), 1);
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-2", 1, 0), 1);
        close(a.kept);
        close(pair[1]);
    }
    world_close(&w);
}

TEST(a_hook_can_take_over_from_the_table_and_give_back)
{
    world w;
    if (open_with(&w, all_kinds, 3)) {
        asking a = {.authorization = "Bearer anything"};
        CHECK_INT(ask(w.address, &a), 401);
        revdial_proxy_replace_auth(w.proxy, hook_that_accepts, NULL);
        CHECK_INT(ask(w.address, &a), 101);
        close(a.kept);
        revdial_proxy_replace_auth(w.proxy, NULL, NULL);
        CHECK_INT(ask(w.address, &a), 401);
    }
    world_close(&w);
}

typedef struct reloading {
    world *w;
    atomic_int stop;
} reloading;

static void *reload_run(void *arg)
{
    reloading *r = arg;
    for (int i = 0; !atomic_load(&r->stop); i++) {
        CHECK_INT(
            revdial_proxy_replace_credentials(r->w->proxy, all_kinds, 3, (unsigned)i % 2, NULL), 0);
        sched_yield();
    }
    return NULL;
}

TEST(a_table_may_be_replaced_while_backends_register)
{
    world w;
    reloading r = {.w = &w};
    if (open_with(&w, all_kinds, 3)) {
        pthread_t t = util_thread(reload_run, &r);
        for (int i = 0; i < 40; i++) {
            knowing k = {0};
            asking a = {0};
            int status;
            fetch_nonce(w.address, &k);
            status = ask_digest(w.address, &k, &a);
            CHECK(status == 101 || status == 503);  // 503: the table changed under the check
            if (a.kept >= 0) close(a.kept);
        }
        atomic_store(&r.stop, 1);
        pthread_join(t, NULL);
    }
    world_close(&w);
}

// ------------------------------------------------------------------------------------------------
// Limits before authentication

TEST(P8_who_presents_wrong_credentials_again_and_again_gets_429_and_its_neighbours_do_not)
{
    world w;
    revdial_stats stats;
    if (open_with(&w, all_kinds, 3)) {
        w.proxy->guard.credit_us = 10 * RVD_AUTH_FAILURE_US;  // the default
        asking bad = {.authorization = "Bearer wrong", .from = 2};
        asking good = {.authorization = "Bearer t0ken", .from = 2};
        asking near = {.authorization = "Bearer t0ken", .from = 3}, none = {.from = 2};
        for (int i = 0; i < 10; i++) CHECK_INT(ask(w.address, &bad), 401);
        for (int i = 0; i < 3; i++) CHECK_INT(ask(w.address, &bad), 429);
        CHECK(strstr(bad.answer, "Retry-After: 5\r\n") != NULL);
        CHECK_INT(ask(w.address, &good), 429);  // unseen, or it would tell a guess from a hit
        CHECK_INT(ask(w.address, &none), 401);
        CHECK_INT(ask(w.address, &near), 101);
        close(near.kept);
        revdial_proxy_get_stats(w.proxy, &stats);
        CHECK_INT(stats.auth_failures, 10);
        // Time pays off. What is owed is bounded, so it does not take for ever.
        pthread_mutex_lock(&w.proxy->own.lock);
        for (int i = 0; i < RVD_AUTH_DEBTORS; i++)
            w.proxy->guard.debtors.entries[i].at_us -= 5000000;
        pthread_mutex_unlock(&w.proxy->own.lock);
        CHECK_INT(ask(w.address, &bad), 401);
        CHECK_INT(ask(w.address, &bad), 429);
    }
    world_close(&w);
}

// Guesses from address 2 until they are no longer looked at, each with a name of its own, or with
// that name. Returns how many were.
static int guess_until_429(world *w, const char *name)
{
    for (int i = 0; i < 1000; i++) {
        char own[40];
        asking bad = {.authorization = "Bearer wrong", .from = 2, .name = name ? name : own};
        snprintf(own, sizeof own, "any-%d", i);
        if (ask(w->address, &bad) == 429) return i;
    }
    return -1;
}

TEST(P8_guesses_at_one_name_do_not_lock_out_the_other_names_of_their_source)
{
    world w;
    if (open_with(&w, all_kinds, 3)) {
        w.proxy->guard.credit_us = 2 * RVD_AUTH_FAILURE_US;
        asking good = {.authorization = "Bearer t0ken", .from = 2, .name = "cam-2"};
        CHECK_INT(guess_until_429(&w, "cam-1"), 2);
        for (int i = 0; i < 50; i++) CHECK_INT(guess_until_429(&w, "cam-1"), 0);
        CHECK_INT(ask(w.address, &good), 101);  // never seen before
        close(good.kept);
    }
    world_close(&w);
}

// Also whoever comes again and again without ever having been right pays, and for nobody else.
TEST(P8_guesses_at_many_names_are_bounded_for_their_source_and_are_no_neighbours_debt)
{
    world w;
    if (open_with(&w, all_kinds, 3)) {
        w.proxy->guard.credit_us = 2 * RVD_AUTH_FAILURE_US;
        asking good = {.authorization = "Bearer t0ken", .from = 2, .name = "cam-2"};
        asking near = {.authorization = "Bearer t0ken", .from = 3, .name = "cam-2"};
        int64_t begun_us = rvd_sys_now_us();
        int seen = guess_until_429(&w, NULL);
        CHECK(seen >= 20 && seen <= 20 + (rvd_sys_now_us() - begun_us) / 500000);
        pthread_mutex_lock(&w.proxy->own.lock);  // time stands still
        for (int i = 0; i < RVD_AUTH_DEBTORS; i++)
            w.proxy->guard.debtors.entries[i].at_us += 600000000;
        pthread_mutex_unlock(&w.proxy->own.lock);
        CHECK_INT(ask(w.address, &good), 429);
        CHECK_INT(ask(w.address, &near), 101);
        close(near.kept);
    }
    world_close(&w);
}

// All that an address may owe, for a long time.
static void owe_all(world *w)
{
    CHECK(guess_until_429(w, NULL) >= 10);
    for (int i = 0; i < 30; i++) guess_until_429(w, "any-1");
    pthread_mutex_lock(&w->proxy->own.lock);
    for (int i = 0; i < RVD_AUTH_DEBTORS; i++)
        if (w->proxy->guard.debtors.entries[i].key)
            w->proxy->guard.debtors.entries[i].at_us += 600000000;
    pthread_mutex_unlock(&w->proxy->own.lock);
}

static int ask_by(world *w, unsigned scheme, const char *password, const char *instance)
{
    char basic[64], more[64];
    knowing k = {.password = password};
    asking a = {.from = 2, .more = more};
    int status;
    snprintf(more, sizeof more, "Revdial-Instance: %s\r\n", instance);
    if (scheme == DIGEST) fetch_nonce(w->address, &k);
    // basil:s3cret, basil:wrong
    snprintf(basic, sizeof basic, "Basic %s",
             strcmp(password, "s3cret") == 0 ? "YmFzaWw6czNjcmV0" : "YmFzaWw6d3Jvbmc=");
    a.authorization = scheme == DIGEST                  ? digest_of(&k)
                      : scheme == BASIC                 ? basic
                      : strcmp(password, "s3cret") == 0 ? "Bearer t0ken"
                                                        : "Bearer wrong";
    status = ask(w->address, &a);
    if (a.kept >= 0) close(a.kept);
    return status;
}

TEST(P8_an_agent_that_was_right_comes_back_whatever_its_neighbours_present)
{
    static const unsigned schemes[] = {BEARER, BASIC, DIGEST};
    for (int i = 0; i < 3; i++) {
        world w;
        if (open_with(&w, all_kinds, 3)) {
            w.proxy->guard.credit_us = 2 * RVD_AUTH_FAILURE_US;
            CHECK_INT(ask_by(&w, schemes[i], "s3cret", "a"), 101);
            CHECK(util_log_wait(&w.sessions, REVDIAL_DOWN, 1, NULL));
            owe_all(&w);
            for (int k = 0; k < 3; k++) CHECK_INT(ask_by(&w, schemes[i], "s3cret", "a"), 101);
            // Another instance of it is as good as a stranger now; and who knows the instance of
            // one can guess no more than who knows a name.
            CHECK_INT(ask_by(&w, schemes[i], "s3cret", "b"), 429);
            CHECK_INT(ask_by(&w, schemes[i], "wrong", "b"), 429);
            for (int k = 0; k < 2; k++) CHECK_INT(ask_by(&w, schemes[i], "wrong", "a"), 401);
            CHECK_INT(ask_by(&w, schemes[i], "wrong", "a"), 429);
            CHECK_INT(ask_by(&w, schemes[i], "s3cret", "a"), 429);
        }
        world_close(&w);
    }
}

TEST(P8_a_credential_that_was_right_lets_another_instance_in_unless_guesses_at_it_are_many)
{
    static const unsigned schemes[] = {BEARER, BASIC, DIGEST};
    for (int i = 0; i < 3; i++) {
        world w;
        if (open_with(&w, all_kinds, 3)) {
            w.proxy->guard.credit_us = 2 * RVD_AUTH_FAILURE_US;
            CHECK_INT(ask_by(&w, schemes[i], "s3cret", "a"), 101);
            for (int k = 0; k < 2; k++) CHECK_INT(ask_by(&w, schemes[i], "wrong", "x"), 401);
            // Of Digest only the user is known before it is looked at.
            CHECK_INT(ask_by(&w, schemes[i], "wrong", "x"), schemes[i] == DIGEST ? 401 : 429);
            CHECK_INT(ask_by(&w, schemes[i], "s3cret", "b"), 101);
            // What is presented beside it counts: 20 at once, and no more.
            owe_all(&w);
            CHECK_INT(ask_by(&w, schemes[i], "s3cret", "c"), 429);
        }
        world_close(&w);
    }
}

TEST(P8_a_hook_is_asked_about_who_was_right_before_and_not_about_other_guesses)
{
    world w;
    world_init(&w);
    w.pcfg.auth = hook_with_row;
    hooked h = {.called = UTIL_GATE, .go = UTIL_GATE, .row = all_kinds[0]};
    util_gate_add(&h.go, 1);
    w.pcfg.auth_ud = &h;
    w.pcfg.auth_schemes = BEARER | BASIC | DIGEST;
    w.pcfg.max_auth_failures = 2;
    if (world_open_proxy(&w)) {
        CHECK_INT(ask_by(&w, DIGEST, "s3cret", "a"), 101);
        owe_all(&w);
        int asked = util_gate_count(&h.called);
        CHECK_INT(ask_by(&w, BEARER, "wrong", "c"), 429);
        CHECK_INT(util_gate_count(&h.called), asked);
        CHECK_INT(ask_by(&w, DIGEST, "s3cret", "a"), 101);
    }
    world_close(&w);
}

static rvd_auth_guess guess_of(uint64_t peer, uint64_t name)
{
    rvd_auth_guess g = {peer, rvd_auth_peer_block(peer), name, 0, 0, ~peer, RVD_AUTH_BY_NAME};
    return g;
}

static void guess_fails(uint64_t peer, uint64_t name)
{
    rvd_auth_guess g = guess_of(peer, name);
    rvd_auth_charge(&guard, &g, 0);
}

static int guess_may(uint64_t peer, uint64_t name)
{
    rvd_auth_guess g = guess_of(peer, name);
    return rvd_auth_may_check(&guard, &g, 0);
}

TEST(P8_the_memory_of_debts_is_bounded_and_the_worst_are_kept)
{
    test_heap memory = {0};
    guard_open(&memory);
    for (uint64_t i = 0; i < 11; i++) guess_fails(7, 9);
    for (uint64_t i = 1000; i < 101000; i++) guess_fails(i << 16, i);
    CHECK_INT(memory.live_bytes, 65536);
    CHECK_INT(guess_may(7, 9), 0);
    CHECK_INT(guess_may(8, 10), 1);
    rvd_auth_guard_end(&guard);
    CHECK_INT(memory.live_bytes, 0);
}

TEST(P8_the_memory_of_who_was_right_is_bounded_lasts_a_day_and_keeps_the_latest)
{
    const int64_t minute = 60000000;
    rvd_auth_guess right = {.name = 1};
    test_heap memory = {0};
    guard_open(&memory);
    for (uint64_t i = 1; i <= 100000; i++) {
        right.agent = i << 24 | i;
        right.secret = (i + 100001) << 24 | i;
        rvd_auth_remember(&guard, &right, 0);
    }
    CHECK_INT(memory.live_bytes, 262144);
    CHECK_INT(rvd_auth_is_proven(&guard, right.agent, 0), 1);
    CHECK_INT(rvd_auth_is_proven(&guard, right.secret, 1439 * minute), 1);
    CHECK_INT(rvd_auth_is_proven(&guard, right.secret, 1440 * minute), 0);
    CHECK_INT(rvd_auth_is_proven(&guard, 0, 0), 0);
    CHECK_INT(rvd_auth_is_proven(&guard, 300000ull << 24, 0), 0);
    rvd_auth_guard_end(&guard);
    CHECK_INT(memory.live_bytes, 0);
}

TEST(a_turn_with_the_hook_passes_to_the_oldest_of_the_same_block)
{
    static rvd_auth_turn turns[RVD_AUTH_HOOKS + 3], other, local[RVD_AUTH_HOOKS + 1];
    const uint64_t block = rvd_auth_peer_block(1ull << 32 | 7);
    guard_open(NULL);
    for (int i = 0; i < RVD_AUTH_HOOKS + 3; i++)
        CHECK_INT(rvd_auth_turn_begin(&guard, &turns[i], block), i < RVD_AUTH_HOOKS);
    CHECK_INT(rvd_auth_turn_begin(&guard, &other, block + 1), 1);
    for (int i = 0; i < RVD_AUTH_HOOKS + 1; i++)  // nobody's wait for nobody
        CHECK_INT(rvd_auth_turn_begin(&guard, &local[i], 0), 1);
    CHECK(!rvd_auth_turn_end(&guard, &turns[RVD_AUTH_HOOKS]));  // the oldest that waits has gone
    CHECK(!rvd_auth_turn_end(&guard, &other));
    CHECK(rvd_auth_turn_end(&guard, &turns[3]) == &turns[RVD_AUTH_HOOKS + 1]);
    CHECK(rvd_auth_turn_end(&guard, &turns[RVD_AUTH_HOOKS + 1]) == &turns[RVD_AUTH_HOOKS + 2]);
    for (int i = 0; i < RVD_AUTH_HOOKS; i++)
        if (i != 3) CHECK(!rvd_auth_turn_end(&guard, &turns[i]));
    CHECK(!rvd_auth_turn_end(&guard, &turns[RVD_AUTH_HOOKS + 2]));
    CHECK(rvd_base_link_is_alone(&guard.queue));
    for (int i = 0; i < RVD_AUTH_BUCKETS; i++) CHECK_INT(guard.hooks_of[i], 0);
    rvd_auth_guard_end(&guard);
}

TEST(P8_a_source_is_an_IPv4_address_or_an_IPv6_64)
{
    static const struct {
        const char *a, *b;
        int same;
    } rows[] = {{"192.0.2.1:1", "192.0.2.1:2", 1},
                {"192.0.2.1:1", "192.0.2.2:1", 0},
                {"192.0.2.1:1", "[::ffff:192.0.2.1]:9", 1},
                {"[2001:db8::1]:1", "[2001:db8::ffff:ffff:ffff:ffff]:1", 1},
                {"[2001:db8::1]:1", "[2001:db8:0:1::1]:1", 0},
                {"[::1]:1", "[::2]:1", 1}};
    rvd_sys_addr a, b;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        CHECK_INT(rvd_sys_addr_parse(rows[i].a, 1, &a, NULL), 0);
        CHECK_INT(rvd_sys_addr_parse(rows[i].b, 1, &b, NULL), 0);
        CHECK_INT(rvd_proxy_peer_key(&a) == rvd_proxy_peer_key(&b), rows[i].same);
        CHECK(rvd_proxy_peer_key(&a) != 0);
    }
    CHECK_INT(rvd_sys_addr_parse("unix:/x", 1, &a, NULL), 0);
    CHECK_INT(rvd_proxy_peer_key(&a), 0);
}

static uint64_t peer_of(const char *address)
{
    rvd_sys_addr a;
    CHECK_INT(rvd_sys_addr_parse(address, 1, &a, NULL), 0);
    return rvd_proxy_peer_key(&a);
}

TEST(P8_an_IPv6_48_pays_for_its_64s_and_one_of_them_does_not_lock_out_the_others)
{
    uint64_t one = peer_of("[2001:db8:7::1]:1"), next = peer_of("[2001:db8:7:1::1]:1");
    uint64_t other = peer_of("[2001:db8:8::1]:1"), four = peer_of("192.0.2.1:1");
    uint64_t name = 1000;  // each guess has its own
    guard_open(NULL);
    for (int i = 0; i < 1000; i++) guess_fails(four, ++name);
    CHECK_INT(guess_may(four, 1), 0);
    CHECK_INT(guess_may(peer_of("192.0.2.2:1"), 1), 1);
    for (int i = 0; i < 110; i++) guess_fails(one, ++name);
    CHECK_INT(guess_may(one, 1), 0);
    CHECK_INT(guess_may(next, 1), 1);
    for (uint64_t i = 2; i < 900; i++) guess_fails(one + i, ++name);  // each its first
    CHECK_INT(guess_may(next, 1), 0);
    CHECK_INT(guess_may(other, 1), 1);
    rvd_auth_guard_end(&guard);
}

TEST(P2_P8_a_block_is_a_48_of_IPv6_and_an_address_of_IPv4)
{
    uint64_t six = peer_of("[2001:db8:7::1]:1"), four = peer_of("192.0.2.1:1");
    CHECK(rvd_auth_peer_block(six) == rvd_auth_peer_block(peer_of("[2001:db8:7:ffff::1]:1")));
    CHECK(rvd_auth_peer_block(six) != rvd_auth_peer_block(peer_of("[2001:db8:8::1]:1")));
    CHECK(rvd_auth_peer_block(six) != six);  // the block is not its first /64
    CHECK(rvd_auth_peer_block(four) == four);
    CHECK_INT(rvd_auth_peer_block(0), 0);
}

TEST(a_429_makes_the_agent_wait_and_is_no_rejection)
{
    world w;
    util_state e = {0};
    if (open_with(&w, all_kinds, 3)) {
        w.proxy->guard.credit_us = 1 * RVD_AUTH_FAILURE_US;
        asking bad = {.authorization = "Bearer wrong"};
        CHECK_INT(ask(w.address, &bad), 401);
        w.acfg.url = w.url;
        w.acfg.secret = "t0ken";
        w.agents[0] = revdial_agent_start(&w.acfg, NULL);
        CHECK(util_log_wait(&w.states, REVDIAL_BACKOFF, 1, &e));
        CHECK_INT(e.code, REVDIAL_ELIMIT);
        CHECK(e.retry_ms >= 5000 && e.retry_ms <= 7000);
    }
    world_close(&w);
}

TEST(P14_a_peer_that_goes_away_anywhere_in_its_request_leaves_nothing)
{
    world w;
    knowing k = {0}, last = {0};
    char request[3000];
    if (open_with(&w, all_kinds, 3)) {
        int fds = util_fds(), threads = util_threads();
        fetch_nonce(w.address, &k);
        snprintf(request, sizeof request,
                 "GET /revdial HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: revdial\r\n"
                 "Authorization: %s\r\nRevdial-Name: cam-1\r\n\r\n",
                 digest_of(&k));
        for (size_t len = 0; len < strlen(request); len += 1 + len / 40)
            for (int reset = 0; reset < 2; reset++) {
                int fd = raw_connect(w.address);
                raw_send(fd, request, len);
                if (reset)
                    raw_close_reset(fd);
                else
                    close(fd);
            }
        fetch_nonce(w.address, &last);  // whoever came before has been let in by then
        UTIL_EVENTUALLY(util_fds() == fds);
        UTIL_EVENTUALLY(pending_of(w.proxy) == 0);
        CHECK_INT(util_threads(), threads);
        CHECK(rvd_base_link_is_alone(&w.proxy->waiting));
        for (int i = 0; i < RVD_PROXY_BUCKETS; i++) CHECK_INT(w.proxy->waiting_of[i], 0);
        CHECK_INT(util_log_count(&w.sessions, 0, NULL), 0);
        asking a = {.authorization = digest_of(&k)};
        CHECK_INT(ask(w.address, &a), 101);  // nobody has used the nonce up
        close(a.kept);
    }
    world_close(&w);
}

NEW_WORLD_TEST(a_block_of_which_65536_connections_wait_is_still_the_busiest_one)
{
    REQUIRE(world_open_proxy(w));
    pthread_mutex_lock(&w->proxy->own.lock);
    for (int i = 0; i < 65536; i++) rvd_proxy_waiting_count_locked(w->proxy, 1, 1);
    rvd_proxy_waiting_count_locked(w->proxy, 2, 1);
    CHECK(rvd_proxy_is_busiest_locked(w->proxy, 1));
    CHECK(!rvd_proxy_is_busiest_locked(w->proxy, 2));
    for (int i = 0; i < 65536; i++) rvd_proxy_waiting_count_locked(w->proxy, 1, -1);
    CHECK(rvd_proxy_is_busiest_locked(w->proxy, 2));
    rvd_proxy_waiting_count_locked(w->proxy, 2, -1);
    pthread_mutex_unlock(&w->proxy->own.lock);
}

NEW_WORLD_TEST(P2_a_full_waiting_room_drops_the_oldest_of_who_has_the_most)
{
    int fds[6];
    char byte;
    w->pcfg.max_pending = 5;
    REQUIRE(world_open_proxy(w));
    fds[0] = raw_connect_from(w->address, 2);  // the oldest of all, but one of two
    for (int i = 1; i < 5; i++) fds[i] = raw_connect_from(w->address, i == 4 ? 2 : 3);
    UTIL_EVENTUALLY(pending_of(w->proxy) == 5);
    fds[5] = raw_connect_from(w->address, 4);
    CHECK_INT(raw_read(fds[1], &byte, 1), 0);  // the oldest of three
    for (int i = 0; i < 6; i++) {
        if (i == 1) continue;
        raw_say(fds[i], "GET /x HTTP/1.1\r\nHost: h\r\n\r\n");
        char answer[512] = "";
        CHECK(raw_head(fds[i], answer, sizeof answer) > 0);
        CHECK_INT(raw_status(answer), 404);
    }
    for (int i = 0; i < 6; i++) close(fds[i]);
}

typedef struct lines {
    util_gate all, refused;
    char secret[64];
    int hidden;  // 1 + which of the hidden ones
    atomic_int leaked;
} lines;

static void log_lines(void *ud, int level, const char *event, const char *msg)
{
    lines *l = ud;
    (void)level;
    util_gate_add(&l->all, 1);
    if (strcmp(event, "session.refused") == 0) util_gate_add(&l->refused, 1);
    if (l->secret[0] && (strstr(msg, l->secret) || strstr(event, l->secret)))
        atomic_store(&l->leaked, 1);
    if (l->hidden && hidden_count((const uint8_t *)msg, strlen(msg), l->hidden - 1))
        atomic_store(&l->leaked, 1);
}

TEST(P16_strangers_do_not_fill_the_log)
{
    world w;
    lines l;
    memset(&l, 0, sizeof l);
    util_gate_init(&l.all);
    util_gate_init(&l.refused);
    world_init(&w);
    w.pcfg.common.log = log_lines;
    w.pcfg.common.log_ud = &l;
    w.pcfg.common.log_level = REVDIAL_LOG_INFO;
    w.pcfg.max_auth_failures = -1;
    if (world_open_proxy(&w)) {
        int64_t began = util_now_ms();
        revdial_stats stats;
        for (int i = 0; i < 300; i++) {
            asking bad = {.authorization = "Bearer wrong"};
            CHECK_INT(ask(w.address, &bad), 401);
        }
        UTIL_EVENTUALLY(
            (revdial_proxy_get_stats(w.proxy, &stats), stats.handshakes_refused == 300));
        int64_t seconds = (util_now_ms() - began) / 1000 + 1;
        CHECK(util_gate_count(&l.refused) <= 20 + 5 * seconds);
        CHECK(util_gate_count(&l.refused) >= 1);
    }
    world_close(&w);
}

// ------------------------------------------------------------------------------------------------
// Backends that share a proxy

TEST(B4_B5_a_credential_cannot_take_see_or_reset_the_name_of_another)
{
    static const revdial_credential rows[] = {{"a-pass", "alice", "cam-*", DIGEST | BASIC},
                                              {"b-pass", "bob", "door, cam-9", DIGEST | BASIC},
                                              {"c-tok", "carol", "*", BEARER}};
    static const char *const confused[] = {"cam-1", "cam", "doors", "door.a", "cam-99"};
    world w;
    if (open_with(&w, rows, 3)) {
        w.acfg.user = "alice";
        w.acfg.secret = "a-pass";
        w.acfg.auth_schemes = DIGEST;
        w.acfg.instance = "I-1";
        CHECK(world_open_agent(&w, 0));
        revdial_stream *held = world_dial(&w, "hold", 0, NULL);
        CHECK(held != NULL);
        for (size_t i = 0; i < sizeof confused / sizeof *confused; i++) {
            asking b = {.authorization = "Basic Ym9iOmItcGFzcw==",
                        .name = confused[i],
                        .more = "Revdial-Instance: I-1\r\n"};
            char live[2048];
            CHECK_INT(ask(w.address, &b), 403);
            strcpy(live, b.answer);
            b.name = "cam-404";  // and whether a name is in use does not show
            CHECK_INT(ask(w.address, &b), 403);
            CHECK_STR(b.answer, live);
        }
        // A user of the other, by each scheme; with the other's nonce; with one's own password.
        knowing k = {.user = "alice", .password = "b-pass"};
        asking d = {.more = "Revdial-Instance: I-1\r\n"};
        fetch_nonce(w.address, &k);
        CHECK_INT(ask_digest(w.address, &k, &d), 401);
        asking basic = {.authorization = "Basic YWxpY2U6Yi1wYXNz"};  // alice:b-pass
        CHECK_INT(ask(w.address, &basic), 401);
        // Who may register any name still does not get one that is held, whatever its instance.
        asking c = {.authorization = "Bearer c-tok", .more = "Revdial-Instance: I-1\r\n"};
        CHECK_INT(ask(w.address, &c), 409);
        CHECK_INT(util_log_count(&w.sessions, 0, NULL), 1);  // UP of alice, and nothing since
        CHECK_INT(revdial_write(held, "x", 1), 1);
        revdial_close(held);
        session_identity(&w, "*", "alice");
    }
    world_close(&w);
}

NEW_WORLD_TEST(B9_an_identity_registers_no_more_names_than_it_may_and_leaves_room_for_others)
{
    int fds[4];
    w->pcfg.credentials = all_kinds;
    w->pcfg.credential_count = 3;
    w->pcfg.max_sessions_per_identity = 4;
    REQUIRE(world_open_proxy(w));
    asking a = {.authorization = "Bearer t0ken", .more = "Revdial-Instance: i\r\n"};
    for (int i = 0; i < 4; i++) {
        static const char *const names[] = {"a", "b", "c", "d"};
        a.name = names[i];
        CHECK_INT(ask(w->address, &a), 101);
        fds[i] = a.kept;
    }
    a.name = "e";
    CHECK_INT(ask(w->address, &a), 503);
    asking b = {.authorization = "Basic YmFzaWw6czNjcmV0", .name = "e"};  // basil:s3cret
    CHECK_INT(ask(w->address, &b), 101);
    a.name = "d";  // its own place
    CHECK_INT(ask(w->address, &a), 101);
    close(fds[0]);
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 2, NULL));
    close(a.kept);
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 3, NULL));
    a.name = "f";
    CHECK_INT(ask(w->address, &a), 101);
    close(a.kept);
    close(b.kept);
    for (int i = 1; i < 4; i++) close(fds[i]);
}

// All that a backend sent in a session, sent again.
TEST(a_recorded_session_that_is_played_again_is_refused)
{
    world w;
    char request[4096], answer[2048];
    size_t len;
    if (open_with(&w, all_kinds, 3)) {
        int port = 0, tap = raw_listen(4, &port);
        char url[64];
        snprintf(url, sizeof url, "http://127.0.0.1:%d", port);
        w.acfg.url = url;
        w.acfg.user = "alice";
        w.acfg.auth_schemes = DIGEST;
        w.agents[0] = revdial_agent_start(&w.acfg, NULL);
        int inside = -1, outside = -1;
        for (int i = 0; i < 2; i++) {  // in the middle, and listening
            inside = raw_proxy_accept(tap, request, sizeof request);
            outside = raw_connect(w.address);
            raw_say(outside, request);
            len = raw_head(outside, answer, sizeof answer);
            raw_send(inside, answer, len);
            if (i == 0) close(inside), close(outside);
        }
        CHECK_INT(raw_status(answer), 101);
        CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
        int again = raw_connect(w.address);
        raw_say(again, request);
        raw_head(again, answer, sizeof answer);
        CHECK_INT(raw_status(answer), 401);
        CHECK(strstr(answer, "stale=true") != NULL);
        CHECK_INT(util_log_count(&w.sessions, 0, NULL), 1);
        close(again);
        close(inside);
        close(outside);
        close(tap);
    }
    world_close(&w);
}

// ------------------------------------------------------------------------------------------------
// Secrets

static int hidden_credential(void *ud, unsigned attempt, char *secret, size_t size)
{
    (void)attempt, (void)size;
    hidden_make(secret, *(int *)ud);
    return 0;
}

TEST(no_secret_is_left_in_memory_logs_or_errors_once_the_handshake_is_over)
{
    static const unsigned schemes[] = {BEARER, BASIC, DIGEST};
    for (int which = 0; which < 5; which++) {  // a hook for Digest needs a row of its own
        world w;
        lines l;
        char secret[HIDDEN_LEN + 1];
        revdial_credential row = {secret, "alice", "*", schemes[which % 3]};
        int with_hook = which >= 3;
        memset(&l, 0, sizeof l);
        util_gate_init(&l.all);
        util_gate_init(&l.refused);
        l.hidden = 1 + which;
        atomic_store(&hidden_dirty, 0);
        hidden_make(secret, which);
        CHECK(hidden_scan(which) >= 1);  // the scan finds what is there
        world_init(&w);
        w.pcfg.credentials = &row;
        w.pcfg.common.alloc = w.acfg.common.alloc = hidden_alloc;
        w.pcfg.common.alloc_ud = w.acfg.common.alloc_ud = &which;
        w.pcfg.common.log = w.acfg.common.log = log_lines;
        w.pcfg.common.log_ud = w.acfg.common.log_ud = &l;
        w.pcfg.common.log_level = w.acfg.common.log_level = REVDIAL_LOG_DEBUG;
        w.pcfg.auth = with_hook ? hook_that_accepts : NULL;
        w.pcfg.auth_schemes = schemes[which % 3];
        w.acfg.secret = NULL;
        w.acfg.credential_fn = hidden_credential;
        w.acfg.credential_ud = &which;
        w.acfg.user = "alice";
        w.acfg.auth_schemes = schemes[which % 3];
        if (world_open_proxy(&w)) {
            rvd_base_wipe(secret, sizeof secret);
            CHECK(world_open_agent(&w, 0));
            CHECK_INT(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
            int left = hidden_scan(which);
            if (left) test_fail(__FILE__, __LINE__, "scheme %u: %d copies left", row.schemes, left);
            CHECK(util_gate_count(&l.all) >= 2);
        }
        world_close(&w);
        CHECK_INT(atomic_load(&l.leaked), 0);
        CHECK_INT(atomic_load(&hidden_dirty), 0);
    }
}

TEST(no_wrong_secret_is_left_in_memory_logs_or_errors_when_it_is_refused)
{
    static const unsigned schemes[] = {BEARER, BASIC, DIGEST};
    for (int which = 6; which < 9; which++) {
        world w;
        lines l;
        revdial_err err = {0};
        memset(&l, 0, sizeof l);
        util_gate_init(&l.all);
        util_gate_init(&l.refused);
        l.hidden = 1 + which;
        atomic_store(&hidden_dirty, 0);
        world_init(&w);
        w.pcfg.credentials = all_kinds;
        w.pcfg.credential_count = 3;
        w.pcfg.common.log = w.acfg.common.log = log_lines;
        w.pcfg.common.log_ud = w.acfg.common.log_ud = &l;
        w.pcfg.common.log_level = w.acfg.common.log_level = REVDIAL_LOG_DEBUG;
        if (world_open_proxy(&w)) {
            w.acfg.url = w.url;
            w.acfg.secret = NULL;
            w.acfg.credential_fn = hidden_credential;
            w.acfg.credential_ud = &which;
            w.acfg.user = "alice";
            w.acfg.auth_schemes = schemes[which - 6];
            w.acfg.common.alloc = hidden_alloc;
            w.acfg.common.alloc_ud = &which;
            CHECK_INT(revdial_serve(&w.acfg, &err), REVDIAL_EAUTH);
            CHECK_INT(hidden_count((const uint8_t *)&err, sizeof err, which), 0);
            int left = hidden_scan(which);
            if (left) test_fail(__FILE__, __LINE__, "scheme %d: %d copies left", which, left);
            CHECK(util_gate_count(&l.all) >= 2);
        }
        world_close(&w);
        CHECK_INT(atomic_load(&l.leaked), 0);
        CHECK_INT(atomic_load(&hidden_dirty), 0);
    }
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
