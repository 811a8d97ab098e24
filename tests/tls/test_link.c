// Ends by hand over real TLS: what no well-behaved peer does. And what a transport between two real
// ends sees of its session: who calls it, and with what. Rows of the TLS table by their numbers.
#include "tls_util.h"

// ------------------------------------------------------------------------------------------------
// An end by hand. It blocks, for ten seconds at most.

typedef struct hand {
    int fd;
    size_t record;  // bytes of what is said; 0 = all in one
    revdial_transport t;
} hand;

static rvd_tls_link *hand_link(hand *h)
{
    return h->t.ctx;
}

// It shows the certificate NAME. host NULL: it is the server. The handshake is still to come.
static int hand_wrap(hand *h, const char *name, int fd, const char *host)
{
    struct timeval limit = {UTIL_WAIT_MS / 1000, 0};
    revdial_tls_config files = tls_files(name, "ca.pem");
    hand_tls_config cfg = {files.ca, files.cert, files.key};
    revdial_err err = {0};
    revdial_tls *maker = host ? hand_tls_client(&cfg, &err) : hand_tls_server(&cfg, &err);
    memset(h, 0, sizeof *h);
    h->fd = fd;
    if (fd < 0 || !maker) {
        hand_tls_free(maker);
        return test_fail(__FILE__, __LINE__, "no connection, or no maker: %s", err.msg);
    }
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (maker->wrap(maker->ud, fd, host, &h->t, &err)) h->t.ctx = NULL;
    hand_tls_free(maker);  // which the connection outlasts
    return h->t.ctx || test_fail(__FILE__, __LINE__, "no transport: %s", err.msg);
}

static int hand_shake(hand *h)
{
    if (h->t.do_handshake(h->t.ctx) == 0) return 1;
    return test_fail(__FILE__, __LINE__, "no handshake: %s", h->t.do_reason(h->t.ctx));
}

static void hand_close(hand *h)
{
    if (h->t.ctx) h->t.do_close(h->t.ctx);
    if (h->fd >= 0) close(h->fd);
}

static int hand_send(hand *h, const void *data, size_t len)
{
    for (size_t at = 0; at < len;) {
        size_t n = h->record && h->record < len - at ? h->record : len - at;
        if (h->t.do_write(h->t.ctx, (const char *)data + at, n) != (ptrdiff_t)n) return 0;
        at += n;
    }
    return 1;
}

static int hand_read_all(hand *h, void *buf, size_t len)
{
    int waits = 0;
    for (size_t got = 0; got < len;) {
        ptrdiff_t n = h->t.do_read(h->t.ctx, (char *)buf + got, len - got);
        if (n == REVDIAL_WANT_READ && waits++ == 0) continue;  // a warning came
        if (n <= 0) return 0;
        got += (size_t)n;
    }
    return 1;
}

// Reads a head of HTTP. Returns its length, 0 if there is none.
static size_t hand_head(hand *h, char *buf, size_t size)
{
    size_t len = 0;
    while (len + 1 < size && hand_read_all(h, buf + len, 1)) {
        buf[++len] = '\0';
        if (len >= 4 && memcmp(buf + len - 4, "\r\n\r\n", 4) == 0) return len;
    }
    return 0;
}

static size_t hand_frame(uint8_t *out, uint8_t type, uint16_t flags, uint32_t id, uint32_t len)
{
    const uint8_t head[4] = {0, type, (uint8_t)(flags >> 8), (uint8_t)flags};
    memcpy(out, head, sizeof head);
    for (int i = 0; i < 4; i++) {
        out[4 + i] = (uint8_t)(id >> (24 - 8 * i));
        out[8 + i] = (uint8_t)(len >> (24 - 8 * i));
    }
    return 12;
}

static int hand_frame_send(hand *h, uint8_t type, uint16_t flags, uint32_t id, uint32_t len)
{
    uint8_t f[12];
    return hand_send(h, f, hand_frame(f, type, flags, id, len));
}

// The next frame of that type and those flags. Its body, up to 16 bytes, goes to `body`.
static int hand_frame_await(hand *h, uint8_t type, uint16_t flags, raw_frame *f, char *body)
{
    uint8_t b[12];
    char junk[16];
    while (hand_read_all(h, b, sizeof b)) {
        f->type = b[1];
        f->flags = (uint16_t)(b[2] << 8 | b[3]);
        f->id = (uint32_t)b[4] << 24 | (uint32_t)b[5] << 16 | (uint32_t)b[6] << 8 | b[7];
        f->len = (uint32_t)b[8] << 24 | (uint32_t)b[9] << 16 | (uint32_t)b[10] << 8 | b[11];
        memset(junk, 0, sizeof junk);
        if (f->type == RAW_DATA && (f->len >= sizeof junk || !hand_read_all(h, junk, f->len)))
            return 0;
        if (f->type != type || (f->flags & flags) != flags) continue;
        if (body) memcpy(body, junk, sizeof junk);
        return 1;
    }
    return 0;
}

static int hand_is_alive(hand *h)
{
    raw_frame f;
    return hand_frame_send(h, RAW_PING, RAW_SYN, 0, 77) &&
           hand_frame_await(h, RAW_PING, RAW_ACK, &f, NULL) && f.len == 77;
}

// A backend by hand, a stock yamux peer, in a world whose proxy is open.
static int hand_register_as(hand *h, tls_world *tw, const char *name, size_t record)
{
    char buf[2048];
    if (!hand_wrap(h, name, raw_connect(tw->w.address), "localhost") || !hand_shake(h)) return 0;
    h->record = record;
    raw_request(buf, sizeof buf, "cam-1", "s3cret", NULL);
    if (hand_send(h, buf, strlen(buf)) && hand_head(h, buf, sizeof buf) && raw_status(buf) == 101)
        return 1;
    return test_fail(__FILE__, __LINE__, "not registered: %s", tw->said);
}

static int hand_register(hand *h, tls_world *tw, size_t record)
{
    return hand_register_as(h, tw, "cam", record);
}

// A proxy by hand, to which the world's agent comes; its request is read.
static int hand_accept(hand *h, tls_world *tw)
{
    char buf[2048];
    int port = 0, listener = raw_listen(4, &port);
    snprintf(tw->w.url, sizeof tw->w.url, "https://127.0.0.1:%d", port);
    tw->w.acfg.url = tw->w.url;
    h->fd = -1;
    h->t.ctx = NULL;
    int ok = tls_world_start(tw) && hand_wrap(h, "server", raw_accept(listener), NULL) &&
             hand_shake(h) && hand_head(h, buf, sizeof buf);
    close(listener);
    return ok && strncmp(buf, "GET /revdial HTTP/1.1\r\n", 23) == 0;
}

static const char hand_101[] =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: revdial\r\n\r\n";

static tls_world *hand_world(void)
{
    return tls_world_new(tls_server("server", "ca.pem"), tls_client("cam", "ca.pem"));
}

// ------------------------------------------------------------------------------------------------

// A stream that the proxy opens to a backend by hand, and what its reader gets.
static void hand_answers(tls_world *tw, hand *h, const char *text, uint16_t flags)
{
    dialling d = {0};
    raw_frame f;
    char buf[16] = "";
    size_t len = strlen(text);
    pthread_t t = dialling_start(&d, &tw->w);
    CHECK(hand_frame_await(h, RAW_WINDOW, RAW_SYN, &f, NULL));
    CHECK(hand_frame_send(h, RAW_WINDOW, RAW_ACK, f.id, 0));
    CHECK(hand_frame_send(h, RAW_DATA, flags, f.id, (uint32_t)len));
    CHECK(hand_send(h, text, len));
    pthread_join(t, NULL);
    REQUIRE(d.st != NULL);
    CHECK_INT(util_read_all(d.st, buf, len), len);
    CHECK_STR(buf, text);
    if (flags & RAW_FIN) CHECK_INT(revdial_read(d.st, buf, 1), 0);
    revdial_close(d.st);
}

TEST(D12_D28_a_backend_may_say_all_in_records_of_one_byte)
{
    static const size_t records[] = {1, 7, 0};
    for (size_t i = 0; i < sizeof records / sizeof *records; i++) {
        tls_world *tw = hand_world();
        hand h = {.fd = -1};
        if (tls_world_proxy(tw) && hand_register(&h, tw, records[i])) {
            CHECK(hand_is_alive(&h));
            hand_answers(tw, &h, "byte by byte", RAW_FIN);
            CHECK(tw->has_seen && tw->seen.verified);
        }
        hand_close(&h);
        tls_world_free(tw);
    }
}

// 101, a SYN, a byte of data and its FIN: the agent's echo must come back however they are cut.
TEST(D12_D28_a_101_and_frames_may_share_a_record_or_be_cut_anywhere)
{
    static const size_t records[] = {0, 1, 5, sizeof hand_101 - 1, sizeof hand_101 + 5};
    for (size_t i = 0; i < sizeof records / sizeof *records; i++) {
        tls_world *tw = hand_world();
        hand h;
        raw_frame f = {0};
        uint8_t all[sizeof hand_101 + 64];
        char body[16] = "";
        size_t len = sizeof hand_101 - 1;
        memcpy(all, hand_101, len);
        len += hand_frame(all + len, RAW_WINDOW, RAW_SYN, 1, 0);
        len += hand_frame(all + len, RAW_DATA, 0, 1, 1);
        all[len++] = 'x';
        len += hand_frame(all + len, RAW_WINDOW, RAW_FIN, 1, 0);
        if (CHECK(hand_accept(&h, tw))) {
            h.record = records[i];
            CHECK(hand_send(&h, all, len));
            CHECK(hand_frame_await(&h, RAW_DATA, 0, &f, body));
            CHECK_INT(f.len, 1);
            CHECK_STR(body, "x");
            CHECK(hand_frame_await(&h, RAW_WINDOW, RAW_FIN, &f, NULL));
        }
        hand_close(&h);
        tls_world_free(tw);
    }
}

// D13: what is missing of a hello comes in the next record. mbedTLS up to 3.6.2 refuses that.
TEST(D13_a_hello_in_two_records_is_taken_or_refused_and_never_waited_for)
{
    static const uint8_t hello[] = {22, 3, 1, 0, 4, 1, 0, 0, 40, 22, 3, 1, 0, 6, 3, 3, 0, 0, 0, 0};
    tls_world *tw = hand_world();
    char buf[64];
    size_t got;
    tw->w.pcfg.common.limits.handshake_timeout_ms = 60000;
    REQUIRE(tls_world_proxy(tw));
    int fd = raw_connect(tw->w.address);
    raw_send(fd, hello, sizeof hello);
    shutdown(fd, SHUT_WR);
    raw_drain(fd, buf, sizeof buf, &got);
    CHECK(util_gate_wait(&tw->refused, 1));
    CHECK(strstr(tw->said, "TLS: ") != NULL);
    CHECK_INT(atomic_load(&tw->judged), 0);
    close(fd);
    tls_world_free(tw);
}

// The reason for which a peer is left that sends what carries nothing.
static void hand_is_endless(const char *said)
{
    if (!strstr(said, "the peer sends messages without end that carry nothing"))
        test_fail(__FILE__, __LINE__, "it says %s", said);
}

static int hand_says_nothing(hand *h, int times)
{
    int r = 0;
    while (r == 0 && times-- > 0)
        r = mbedtls_ssl_write(&hand_link(h)->ssl, (const unsigned char *)"", 0);
    return r;
}

TEST(D14_a_few_empty_records_are_nothing_and_many_end_a_session)
{
    tls_world *tw = hand_world();
    hand h = {.fd = -1};
    util_state last = {0};
    if (tls_world_proxy(tw) && hand_register(&h, tw, 0)) {
        for (int i = 0; i < 20; i++) {
            CHECK_INT(hand_says_nothing(&h, 1 + i % 3), 0);
            CHECK(hand_is_alive(&h));
        }
        hand_says_nothing(&h, 1000000);
        CHECK(util_log_wait(&tw->w.sessions, REVDIAL_DOWN, 1, &last));
        if (last.code != REVDIAL_ETLS || !strstr(last.msg, "TLS: "))
            test_fail(__FILE__, __LINE__, "it ended with %d, %s", last.code, last.msg);
    }
    hand_close(&h);
    tls_world_free(tw);
}

// D15, D19: nobody becomes another in the middle of a session.
#if defined(MBEDTLS_SSL_RENEGOTIATION) && MBEDTLS_VERSION_NUMBER < 0x03000000
#include <mbedtls/ssl_internal.h>

static void hand_may_renegotiate(hand *h)
{
    mbedtls_ssl_config *conf = &hand_link(h)->setup->conf;
    mbedtls_ssl_conf_renegotiation(conf, MBEDTLS_SSL_RENEGOTIATION_ENABLED);
    mbedtls_ssl_conf_renegotiation_enforced(conf, MBEDTLS_SSL_RENEGOTIATION_NOT_ENFORCED);
}

TEST(D15_D19_a_backend_cannot_renegotiate_its_certificate)
{
    tls_world *tw = hand_world();
    hand h = {.fd = -1};
    int r = 0;
    if (tls_world_proxy(tw) && hand_register(&h, tw, 0)) {
        CHECK(hand_is_alive(&h));
        hand_may_renegotiate(&h);
        r = mbedtls_ssl_renegotiate(&hand_link(&h)->ssl);
        CHECK_INT(r, MBEDTLS_ERR_SSL_WAITING_SERVER_HELLO_RENEGO);  // in its place came "no"
        CHECK_INT(atomic_load(&tw->judged), 1);
    }
    hand_close(&h);
    tls_world_free(tw);
}

// Hellos without a body: so many to a record, in so many records that leave together.
static int hand_hellos_send(hand *h, size_t in_record, int records)
{
    static const uint8_t hello[] = {1, 0, 0, 0};
    mbedtls_ssl_context *ssl = &hand_link(h)->ssl;
    int r = 0;
    for (int i = 0; i < records && r == 0; i++) {
        for (size_t k = 0; k < in_record * sizeof hello; k++)
            ssl->out_msg[k] = hello[k % sizeof hello];
        ssl->out_msgtype = MBEDTLS_SSL_MSG_HANDSHAKE;
        ssl->out_msglen = in_record * sizeof hello;
        hand_link(h)->steps = 0;
        hand_link(h)->wire.has_more = i + 1 < records;
        r = mbedtls_ssl_write_record(ssl, 1);
    }
    return r == 0;
}

// OpenSSL looks at the first hello of a record, and leaves the others.
TEST(D14_D15_a_backend_that_asks_to_renegotiate_without_end_is_left)
{
#ifdef PROGRAM_TLS_OPENSSL
    static const size_t in_record[] = {1};
#else
    static const size_t in_record[] = {1, 1000};
#endif
    for (size_t i = 0; i < sizeof in_record / sizeof *in_record; i++) {
        tls_world *tw = hand_world();
        hand h = {.fd = -1};
        util_state last = {0};
        if (tls_world_proxy(tw) && hand_register(&h, tw, 0)) {
            CHECK(hand_is_alive(&h));
            CHECK(hand_hellos_send(&h, in_record[i], 1000 / (int)in_record[i]));
            CHECK(util_log_wait(&tw->w.sessions, REVDIAL_DOWN, 1, &last));
            CHECK_INT(last.code, REVDIAL_ETLS);
            hand_is_endless(last.msg);
        }
        hand_close(&h);
        tls_world_free(tw);
    }
}

TEST(D15_D19_an_agent_that_is_asked_to_renegotiate_goes_on_as_it_was)
{
    tls_world *tw = hand_world();
    hand h;
    if (CHECK(hand_accept(&h, tw))) {
        CHECK(hand_send(&h, hand_101, sizeof hand_101 - 1));
        CHECK(hand_is_alive(&h));
        hand_may_renegotiate(&h);
        CHECK_INT(mbedtls_ssl_renegotiate(&hand_link(&h)->ssl), 0);  // it has only been asked
        CHECK(hand_is_alive(&h));
        CHECK_INT(hand_link(&h)->ssl.state, MBEDTLS_SSL_HANDSHAKE_OVER);
    }
    hand_close(&h);
    tls_world_free(tw);
}
#endif

// A new session has the identity of its own certificate, not of the one before it.
TEST(D19_a_backend_that_comes_back_with_another_certificate_is_another)
{
    tls_world *tw = hand_world();
    hand h[2] = {{.fd = -1}, {.fd = -1}};
    uint8_t hash[32];
    if (tls_world_proxy(tw) && hand_register(&h[0], tw, 0)) {
        CHECK_STR(tw->seen.subject, "CN=cam-1");
        memcpy(hash, tw->seen.cert_sha256, sizeof hash);
        hand_close(&h[0]);
        if (hand_register_as(&h[1], tw, "cam2", 0)) {
            CHECK_STR(tw->seen.subject, "CN=cam-2");
            CHECK_STR(tw->seen.san, "DNS:cam-2.cams.test");
            CHECK(memcmp(hash, tw->seen.cert_sha256, sizeof hash) != 0);
        }
        hand_close(&h[1]);
    }
    tls_world_free(tw);
}

// D16, D17: the ends of TLS and of TCP are not the end of a stream, in whatever order they come;
// and a stream that has ended stays so, whatever becomes of the connection.
TEST(D16_D17_only_a_FIN_of_the_stream_is_EOF)
{
    static const struct {
        const char *label;
        int has_fin, has_notify, code;
    } rows[] = {{"cut", 0, 0, REVDIAL_ELOST},
                {"close_notify", 0, 1, REVDIAL_ELOST},
                {"FIN, cut", 1, 0, 0},
                {"FIN, close_notify", 1, 1, 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        tls_world *tw = hand_world();
        hand h = {.fd = -1};
        dialling d = {0};
        raw_frame f;
        util_state last = {0};
        char buf[8] = "";
        REQUIRE(tls_world_proxy(tw));
        REQUIRE(hand_register(&h, tw, 0));
        pthread_t t = dialling_start(&d, &tw->w);
        CHECK(hand_frame_await(&h, RAW_WINDOW, RAW_SYN, &f, NULL));
        CHECK(hand_frame_send(&h, RAW_WINDOW, RAW_ACK, f.id, 0));
        CHECK(hand_frame_send(&h, RAW_DATA, rows[i].has_fin ? RAW_FIN : 0, f.id, 5));
        CHECK(hand_send(&h, "bytes", 5));
        if (rows[i].has_notify) CHECK_INT(h.t.do_finish(h.t.ctx), 0);
        hand_close(&h);
        pthread_join(t, NULL);
        REQUIRE(d.st != NULL);
        CHECK(util_log_wait(&tw->w.sessions, REVDIAL_DOWN, 1, &last));
        if ((strstr(last.msg, "without close_notify") == NULL) != rows[i].has_notify)
            test_fail(__FILE__, __LINE__, "%s: %s", rows[i].label, last.msg);
        CHECK_INT(util_read_all(d.st, buf, 5), 5);
        CHECK_STR(buf, "bytes");
        if (revdial_read(d.st, buf, 1) != rows[i].code)
            test_fail(__FILE__, __LINE__, "%s: is another end", rows[i].label);
        revdial_close(d.st);
        tls_world_free(tw);
    }
}

TEST(D18_a_fatal_alert_within_a_session_ends_it_and_is_named)
{
    for (int is_agent = 0; is_agent < 2; is_agent++) {
        tls_world *tw = hand_world();
        hand h = {.fd = -1};
        util_state last = {0};
        int ok = is_agent ? hand_accept(&h, tw) && hand_send(&h, hand_101, sizeof hand_101 - 1)
                          : tls_world_proxy(tw) && hand_register(&h, tw, 0);
        if (CHECK(ok) && CHECK(hand_is_alive(&h))) {
            mbedtls_ssl_send_alert_message(&hand_link(&h)->ssl, MBEDTLS_SSL_ALERT_LEVEL_FATAL,
                                           MBEDTLS_SSL_ALERT_MSG_ACCESS_DENIED);
            CHECK(
                util_log_wait(is_agent ? &tw->w.states : &tw->w.sessions, REVDIAL_DOWN, 1, &last));
            CHECK_INT(last.code, REVDIAL_ETLS);
            if (!strstr(last.msg, "the peer refuses: our certificate has no access (alert 49)"))
                test_fail(__FILE__, __LINE__, "it says %s", last.msg);
        }
        hand_close(&h);
        tls_world_free(tw);
    }
}

#ifdef PROGRAM_TLS_OPENSSL
enum { HAND_UPDATES = 2000 };  // all in one read of the proxy, or in two

// The new keys of TLS 1.3, again and again: all that a client sends behind its handshake.
static int hand_updates_send(int fd, SSL *ssl)
{
    BIO *all = BIO_new(BIO_s_mem());
    char *bytes;
    int ok = all != NULL;
    SSL_set0_wbio(ssl, all);
    for (int i = 0; ok && i < HAND_UPDATES; i++)
        ok = SSL_key_update(ssl, SSL_KEY_UPDATE_NOT_REQUESTED) && SSL_do_handshake(ssl) == 1;
    long len = ok ? BIO_get_mem_data(all, &bytes) : 0;
    return len > 0 && raw_send(fd, bytes, (size_t)len);
}

TEST(D14_a_client_that_changes_its_keys_without_end_is_left)
{
    tls_world *tw = tls_world_new(tls_server("server", NULL), tls_client(NULL, "ca.pem"));
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    SSL *ssl = ctx ? SSL_new(ctx) : NULL;
    tw->w.pcfg.common.limits.handshake_timeout_ms = 60000;
    REQUIRE(ssl && tls_world_proxy(tw));
    int fd = raw_connect(tw->w.address);
    SSL_set_fd(ssl, fd);
    if (CHECK_INT(SSL_connect(ssl), 1) && CHECK(hand_updates_send(fd, ssl))) {
        shutdown(fd, SHUT_WR);
        CHECK(util_gate_wait(&tw->refused, 1));
        hand_is_endless(tw->said);
    }
    SSL_free(ssl);
    SSL_CTX_free(ctx);
    close(fd);
    tls_world_free(tw);
}
#endif

// ------------------------------------------------------------------------------------------------
// D6: suites that no library at hand will speak any more, by hand. RFC 5246 A.5, RFC 4492, 5487.

static const struct {
    uint16_t id;
    const char *name;
} hand_suites[] = {
    {0x0000, "NULL_NULL"},        {0x0002, "RSA_NULL_SHA"},       {0x0003, "RSA_EXPORT_RC4_40_MD5"},
    {0x0004, "RSA_RC4_128_MD5"},  {0x0005, "RSA_RC4_128_SHA"},    {0x0009, "RSA_DES_CBC_SHA"},
    {0x000A, "RSA_3DES_CBC_SHA"}, {0x0016, "DHE_RSA_3DES_SHA"},   {0x0018, "DH_anon_RC4_MD5"},
    {0x0034, "DH_anon_AES_SHA"},  {0x002F, "RSA_AES_128_SHA"},    {0x009C, "RSA_AES_128_GCM"},
    {0x009E, "DHE_RSA_AES_GCM"},  {0x00A8, "PSK_AES_128_GCM"},    {0xC006, "ECDHE_ECDSA_NULL_SHA"},
    {0xC007, "ECDHE_ECDSA_RC4"},  {0xC008, "ECDHE_ECDSA_3DES"},   {0xC011, "ECDHE_RSA_RC4"},
    {0xC012, "ECDHE_RSA_3DES"},   {0xC009, "ECDHE_ECDSA_AES_SHA"}};

// A hello of TLS 1.2 with one suite, and all else that an ECDHE handshake wants.
static size_t hand_hello(uint8_t *out, uint16_t suite)
{
    static const uint8_t extensions[] = {0, 10, 0, 4, 0, 2, 0, 23,  // groups: P-256
                                         0, 11, 0, 2, 1, 0,         // points: uncompressed
                                         0, 13, 0, 6, 0, 4, 4, 3,
                                         4, 1};  // signatures: SHA-256 with ECDSA, RSA
    uint8_t *p = out;
    size_t body = 2 + 32 + 1 + 4 + 2 + 2 + sizeof extensions;
    memset(out, 0, 5 + 4 + body);
    *p++ = 22, *p++ = 3, *p++ = 1, *p++ = 0, *p++ = (uint8_t)(body + 4);
    *p++ = 1, *p++ = 0, *p++ = 0, *p++ = (uint8_t)body;
    *p++ = 3, *p++ = 3;
    p += 32 + 1;
    *p++ = 0, *p++ = 2, *p++ = (uint8_t)(suite >> 8), *p++ = (uint8_t)suite;
    *p++ = 1, *p++ = 0;
    *p++ = 0, *p++ = sizeof extensions;
    memcpy(p, extensions, sizeof extensions);
    return 5 + 4 + body;
}

TEST(D6_a_client_of_weak_suites_is_refused_and_told)
{
    static const char *const certs[] = {"server", "server_rsa"};
    for (size_t i = 0; i < 2 * sizeof hand_suites / sizeof *hand_suites; i++) {
        uint8_t hello[128], alert[7] = {0};
        tls_world *tw = tls_world_new(tls_server(certs[i % 2], NULL), tls_client(NULL, "ca.pem"));
        REQUIRE(tls_world_proxy(tw));
        int fd = raw_connect(tw->w.address);
        raw_send(fd, hello, hand_hello(hello, hand_suites[i / 2].id));
        // Handshake_failure, RFC 5246 section 7.2.2.
        if (!raw_read_all(fd, alert, sizeof alert) || alert[0] != 21 || alert[6] != 40)
            test_fail(__FILE__, __LINE__, "%s: no alert", hand_suites[i / 2].name);
        CHECK(util_gate_wait(&tw->refused, 1));
        if (!strstr(tw->said, "the peer has no cipher suite that is accepted here"))
            test_fail(__FILE__, __LINE__, "%s: %s", hand_suites[i / 2].name, tw->said);
        close(fd);
        tls_world_free(tw);
    }
}

// The control: the same hello with a good suite is answered.
TEST(D6_a_client_of_a_good_suite_gets_a_hello_back)
{
    static const uint16_t good[] = {0xC02B, 0xCCA9, 0xC02C};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        uint8_t hello[128], answer[6] = {0};
        tls_world *tw = tls_world_new(tls_server("server", NULL), tls_client(NULL, "ca.pem"));
        REQUIRE(tls_world_proxy(tw));
        int fd = raw_connect(tw->w.address);
        raw_send(fd, hello, hand_hello(hello, good[i]));
        CHECK(raw_read_all(fd, answer, sizeof answer) && answer[0] == 22 && answer[5] == 2);
        close(fd);
        tls_world_free(tw);
    }
}

typedef struct hand_flood {
    int fd;
    atomic_int is_over;
} hand_flood;

// Warnings (user_canceled, RFC 5246 section 7.2), until nobody takes them any more.
static void *hand_flood_run(void *arg)
{
    static const uint8_t warning[] = {21, 3, 3, 0, 2, 1, 90};
    hand_flood *f = arg;
    uint8_t many[1000 * sizeof warning];
    for (size_t i = 0; i < sizeof many; i++) many[i] = warning[i % sizeof warning];
    while (!atomic_load(&f->is_over) && raw_send(f->fd, many, sizeof many)) continue;
    return NULL;
}

TEST(D14_a_client_that_warns_without_end_in_its_handshake_does_not_keep_a_backend_out)
{
    tls_world *tw = tls_world_new(tls_server("server", NULL), tls_client(NULL, "ca.pem"));
    uint8_t hello[128], answer[6] = {0};
    hand_flood flood = {.fd = -1};
    tw->w.pcfg.common.limits.handshake_timeout_ms = 60000;
    REQUIRE(tls_world_proxy(tw));
    flood.fd = raw_connect(tw->w.address);
    raw_send(flood.fd, hello, hand_hello(hello, 0xC02B));
    REQUIRE(raw_read_all(flood.fd, answer, sizeof answer) && answer[5] == 2);
    pthread_t t = util_thread(hand_flood_run, &flood);
    if (CHECK(world_open_agent(&tw->w, 0)) && CHECK(util_gate_wait(&tw->refused, 1))) {
#ifdef PROGRAM_TLS_OPENSSL
        CHECK(strstr(tw->said, "TLS: too many warn alerts") != NULL);  // a limit of its own
#else
        hand_is_endless(tw->said);
#endif
    }
    atomic_store(&flood.is_over, 1);
    shutdown(flood.fd, SHUT_RDWR);
    pthread_join(t, NULL);
    close(flood.fd);
    tls_world_free(tw);
}

TEST(D6_a_server_that_takes_a_weak_suite_is_left)
{
    for (size_t i = 0; i < sizeof hand_suites / sizeof *hand_suites; i++) {
        uint8_t hello[5 + 4 + 38] = {22, 3, 3, 0, 42, 2, 0, 0, 38, 3, 3};
        tls_world *tw = tls_world_new(tls_server("server", NULL), tls_client(NULL, "ca.pem"));
        int port = 0, listener = raw_listen(4, &port);
        util_state last = {0};
        char buf[1024];
        hello[5 + 4 + 35] = (uint8_t)(hand_suites[i].id >> 8);
        hello[5 + 4 + 36] = (uint8_t)hand_suites[i].id;
        snprintf(tw->w.url, sizeof tw->w.url, "https://127.0.0.1:%d", port);
        tw->w.acfg.url = tw->w.url;
        REQUIRE(tls_world_start(tw));
        int fd = raw_accept(listener);
        CHECK(raw_read(fd, buf, sizeof buf) > 5);
        raw_send(fd, hello, sizeof hello);
        CHECK(util_log_wait(&tw->w.states, REVDIAL_BACKOFF, 1, &last));
        CHECK_INT(last.code, REVDIAL_ETLS);
        if (!strstr(last.msg, "hello is broken, or chooses what we did not offer"))
            test_fail(__FILE__, __LINE__, "%s: it says %s", hand_suites[i].name, last.msg);
        close(fd);
        close(listener);
        tls_world_free(tw);
    }
}

// ------------------------------------------------------------------------------------------------
// A spy between a session and its transport.

typedef struct spy {
    revdial_tls maker;
    revdial_tls *real;
    int is_narrow;                    // little room in the socket, so that writes do stop
    atomic_int overlaps;              // two calls at one time
    atomic_int changed;               // a write that was not repeated as it was
    atomic_int write_waits;           // a write that had to be
    atomic_int reads, foreign_reads;  // the latter by another thread than the handshake's
} spy;

typedef struct spy_link {
    revdial_transport real;
    spy *spy;
    atomic_int busy;
    pthread_t loop;
    const void *held;  // NULL: the last write was done
    uint8_t copy[RVD_TRANSPORT_BULK];
    size_t held_len;
} spy_link;

static revdial_transport *spy_enter(spy_link *l)
{
    if (atomic_exchange(&l->busy, 1)) atomic_fetch_add(&l->spy->overlaps, 1);
    return &l->real;
}

static ptrdiff_t spy_leave(spy_link *l, ptrdiff_t r)
{
    atomic_store(&l->busy, 0);
    return r;
}

static int spy_do_handshake(void *ctx)
{
    spy_link *l = ctx;
    spy_enter(l);
    l->loop = pthread_self();
    return (int)spy_leave(l, l->real.do_handshake(l->real.ctx));
}

static ptrdiff_t spy_do_read(void *ctx, void *buf, size_t len)
{
    spy_link *l = ctx;
    spy_enter(l);
    atomic_fetch_add(&l->spy->reads, 1);
    if (!pthread_equal(l->loop, pthread_self())) atomic_fetch_add(&l->spy->foreign_reads, 1);
    return spy_leave(l, l->real.do_read(l->real.ctx, buf, len));
}

static ptrdiff_t spy_do_write(void *ctx, const void *buf, size_t len)
{
    spy_link *l = ctx;
    ptrdiff_t r;
    spy_enter(l);
    if (l->held && (buf != l->held || len != l->held_len ||
                    (len <= sizeof l->copy && memcmp(buf, l->copy, len) != 0)))
        atomic_fetch_add(&l->spy->changed, 1);
    r = l->real.do_write(l->real.ctx, buf, len);
    l->held = r == REVDIAL_WANT_READ || r == REVDIAL_WANT_WRITE ? buf : NULL;
    l->held_len = len;
    if (l->held && len <= sizeof l->copy) memcpy(l->copy, buf, len);
    if (l->held) atomic_fetch_add(&l->spy->write_waits, 1);
    return spy_leave(l, r);
}

static size_t spy_do_pending(void *ctx)
{
    spy_link *l = ctx;
    spy_enter(l);
    return (size_t)spy_leave(l, (ptrdiff_t)l->real.do_pending(l->real.ctx));
}

static int spy_do_finish(void *ctx)
{
    spy_link *l = ctx;
    spy_enter(l);
    return (int)spy_leave(l, l->real.do_finish(l->real.ctx));
}

static void spy_do_close(void *ctx)
{
    spy_link *l = ctx;
    spy_enter(l);
    l->real.do_close(l->real.ctx);
    free(l);
}

static const char *spy_do_reason(void *ctx)
{
    spy_link *l = ctx;
    return l->real.do_reason(l->real.ctx);
}

static int spy_do_peer(void *ctx, revdial_identity *out)
{
    spy_link *l = ctx;
    spy_enter(l);
    return (int)spy_leave(l, l->real.do_peer(l->real.ctx, out));
}

static int spy_wrap(void *ud, int fd, const char *host, revdial_transport *out, revdial_err *err)
{
    spy *s = ud;
    spy_link *l = calloc(1, sizeof *l);
    int little = 4096, code;
    if (!l) abort();
    l->spy = s;
    if (s->is_narrow) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &little, sizeof little);
    code = s->real->wrap(s->real->ud, fd, host, &l->real, err);
    if (code) {
        free(l);
        return code;
    }
    memset(out, 0, sizeof *out);
    out->ctx = l;
    out->do_handshake = spy_do_handshake;
    out->do_read = spy_do_read;
    out->do_write = spy_do_write;
    out->do_pending = spy_do_pending;
    out->do_finish = spy_do_finish;
    out->do_close = spy_do_close;
    out->do_reason = spy_do_reason;
    out->do_peer = spy_do_peer;
    return 0;
}

// [0] the proxy's, [1] the agent's.
static tls_world *spy_world(spy *spies, int is_narrow)
{
    tls_world *tw = hand_world();
    memset(spies, 0, 2 * sizeof *spies);
    for (int i = 0; i < 2; i++) {
        spies[i].maker.ud = &spies[i];
        spies[i].maker.wrap = spy_wrap;
        spies[i].is_narrow = is_narrow;
    }
    spies[0].real = tw->server;
    spies[1].real = tw->client;
    tw->w.pcfg.common.tls = &spies[0].maker;
    tw->w.acfg.common.tls = &spies[1].maker;
    return tw;
}

enum { SPY_THREADS = 6, SPY_BULK = 400000, SPY_PINGS = 300 };

typedef struct spy_user {
    tls_world *tw;
    int kind, is_good;
} spy_user;

// A byte, and a byte back.
static int spy_pings(revdial_stream *st)
{
    for (int i = 0; i < SPY_PINGS; i++) {
        char c = (char)i, got = 0;
        if (revdial_write(st, &c, 1) != 1 || revdial_read(st, &got, 1) != 1 || got != c) return 0;
    }
    return revdial_shutdown(st, REVDIAL_WR) == 0 && revdial_read(st, &(char){0}, 1) == 0;
}

static void *spy_user_run(void *arg)
{
    static const char *const kinds[] = {"echo", "bulk", "bulk-sink"};
    spy_user *u = arg;
    revdial_err err = {0};
    char ok[2];
    util_read r;
    revdial_stream *st = world_dial(&u->tw->w, kinds[u->kind], SPY_BULK, &err);
    if (!st) return NULL;
    switch (u->kind) {
    case 0: u->is_good = spy_pings(st); break;
    case 1:
        r = util_read_bulk(st);
        u->is_good = r.bytes == SPY_BULK && r.end == 0 && !r.is_bad;
        break;
    default:
        u->is_good = util_write_bulk(st, SPY_BULK) == SPY_BULK &&
                     revdial_shutdown(st, REVDIAL_WR) == 0 && util_read_all(st, ok, 2) == 2;
    }
    revdial_close(st);
    return NULL;
}

// Threads that block in reads and writes, all at once: pings, bulk one way and the other.
static void spy_use(tls_world *tw)
{
    spy_user users[SPY_THREADS];
    pthread_t threads[SPY_THREADS];
    for (int i = 0; i < SPY_THREADS; i++) {
        users[i] = (spy_user){tw, i % 3, 0};
        threads[i] = util_thread(spy_user_run, &users[i]);
    }
    for (int i = 0; i < SPY_THREADS; i++) {
        pthread_join(threads[i], NULL);
        if (!users[i].is_good) test_fail(__FILE__, __LINE__, "user %d did not get all", i);
    }
}

// E8: pongs, credit and other streams' data become ready while a record waits for room.
TEST(D22_a_write_that_has_to_wait_is_repeated_as_it_was)
{
    spy spies[2];
    tls_world *tw = spy_world(spies, 1);
    if (tls_world_open(tw)) spy_use(tw);
    tls_world_free(tw);
    for (int i = 0; i < 2; i++) {
        CHECK(atomic_load(&spies[i].write_waits) > 10);
        CHECK_INT(atomic_load(&spies[i].changed), 0);
        CHECK_INT(atomic_load(&spies[i].overlaps), 0);
    }
}

// A connection over loopback, neither end of which blocks.
static int wire_open(rvd_tls_wire *w, int *peer)
{
    int on = 1, port = 0, listener = raw_listen(4, &port);
    char address[80];
    memset(w, 0, sizeof *w);
    snprintf(address, sizeof address, "127.0.0.1:%d", port);
    w->fd = raw_connect(address);
    *peer = raw_accept(listener);
    close(listener);
    if (w->fd < 0 || *peer < 0) return 0;
    setsockopt(w->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fcntl(w->fd, F_SETFL, O_NONBLOCK) == 0 && fcntl(*peer, F_SETFL, O_NONBLOCK) == 0;
}

TEST(records_of_one_write_leave_together)
{
    static char record[1000], got[3 * sizeof record];
    rvd_tls_wire w;
    int fd;
    REQUIRE(wire_open(&w, &fd));
    CHECK_INT(rvd_tls_wire_next(&w, RVD_TLS_RECORD + 1), RVD_TLS_RECORD);
    CHECK_INT(rvd_tls_wire_send(&w, record, sizeof record), sizeof record);
    CHECK(recv(fd, got, sizeof got, 0) < 0);
    CHECK_INT(rvd_tls_wire_next(&w, 1), 1);
    CHECK_INT(rvd_tls_wire_send(&w, record, 10), 10);
    CHECK_INT(recv(fd, got, sizeof got, 0), sizeof record + 10);
    close(fd);
    close(w.fd);
}

// The kernel holds the pieces of a segment in 17 places at most, and pieces of two connections,
// taken in turn, lie apart. So a segment is full that is not as long as one may be, and with this
// limit there is no room for a second one.
TEST(records_do_not_wait_for_one_that_finds_no_room)
{
    rvd_tls_wire w, other;
    int fd, other_fd, limit = 1;
    ptrdiff_t n = 1, sent = 0;
    char got[200];
    REQUIRE(wire_open(&w, &fd) && wire_open(&other, &other_fd));
    setsockopt(w.fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &limit, sizeof limit);
    rvd_tls_wire_next(&w, RVD_TLS_RECORD + 1);
    while (sent < 100 && (n = rvd_tls_wire_send(&w, "x", 1)) == 1) {
        sent++;
        rvd_tls_wire_send(&other, "y", 1);
    }
    CHECK_INT(n, REVDIAL_WANT_WRITE);
    CHECK_INT(recv(fd, got, sizeof got, 0), sent);
    CHECK_INT(w.sys, 0);
    close(fd);
    close(w.fd);
    close(other_fd);
    close(other.fd);
}

// Where there is no transport a thread that waits reads the socket itself. Here only the loop does:
// one context is never in two threads, and no thread takes bytes past it.
TEST(D23_threads_that_block_in_reads_leave_the_reading_to_the_loop)
{
    spy spies[2];
    tls_world *tw = spy_world(spies, 0);
    if (tls_world_open(tw)) {
        spy_user alone = {tw, 0, 0};
        spy_user_run(&alone);  // who is alone would be the one to read
        CHECK(alone.is_good);
        spy_use(tw);
    }
    tls_world_free(tw);
    for (int i = 0; i < 2; i++) {
        CHECK(atomic_load(&spies[i].reads) > SPY_PINGS);
        CHECK_INT(atomic_load(&spies[i].foreign_reads), 0);
        CHECK_INT(atomic_load(&spies[i].changed), 0);
        CHECK_INT(atomic_load(&spies[i].overlaps), 0);
    }
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_DFL);  // nothing here may raise it
    return test_main(argc, argv);
}
