// Both carriers on one port, and WebSocket clients played by hand: what they get to see of the
// proxy besides the bytes of yamux, of which test_ws.c has every rule.
#include "runtime_util.h"

#define WS_REQUEST(more) \
    "GET /revdial HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\n" \
    "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nAuthorization: Bearer s3cret\r\n" \
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: revdial\r\n" more \
    "\r\n"

// A stock WebSocket client: none of our headers but its name. Returns the descriptor, or -1.
static int ws_connect(world *w)
{
    char head[2048];
    int fd = raw_connect(w->address);
    if (fd < 0) return -1;
    raw_say(fd, WS_REQUEST("Revdial-Name: cam-1\r\n"));
    if (raw_head(fd, head, sizeof head) && raw_status(head) == 101 &&
        strstr(head, "\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n") &&
        strstr(head, "\r\nSec-WebSocket-Protocol: revdial\r\n") && !strstr(head, "Revdial"))
        return fd;
    close(fd);
    return -1;
}

// A frame with a mask, of at most 125 bytes.
static void ws_say(int fd, unsigned first, const void *body, size_t n)
{
    static const uint8_t key[4] = {1, 0x80, 0xff, 7};
    uint8_t frame[131] = {(uint8_t)first, (uint8_t)(0x80 | n)};
    memcpy(frame + 2, key, 4);
    for (size_t i = 0; i < n; i++) frame[6 + i] = ((const uint8_t *)body)[i] ^ key[i % 4];
    raw_send(fd, frame, 6 + n);
}

// The next frame without payload of yamux: its first byte, its body. 0 at the end.
static unsigned ws_hear(int fd, char *body, size_t size, size_t *n)
{
    uint8_t head[2], junk[256];
    *n = 0;
    while (raw_read_all(fd, head, 2)) {
        if (!CHECK(head[1] < 126)) return 0;
        if (!raw_read_all(fd, junk, head[1])) return 0;
        if (head[0] == 0x82) continue;
        *n = head[1] < size ? head[1] : size;
        memcpy(body, junk, *n);
        return head[0];
    }
    return 0;
}

NEW_WORLD_TEST(one_port_takes_both_carriers_into_one_pool)
{
    char raw[100], ws[100];
    REQUIRE(world_open_proxy(w));
    snprintf(raw, sizeof raw, "http://%s", w->address);
    snprintf(ws, sizeof ws, "ws://%s", w->address);
    w->acfg.url = raw;
    world_open_agent(w, 0);
    w->acfg.url = ws;
    world_open_agent(w, 1);
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 2, UTIL_WAIT_MS), 2);
    revdial_session *list[4];
    size_t n = revdial_proxy_list(w->proxy, "cam-1", list, 4);
    int carriers = 0;
    CHECK_INT(n, 2);
    for (size_t i = 0; i < n; i++) {
        revdial_session_info info;
        revdial_session_get_info(list[i], &info);
        carriers += info.carrier == REVDIAL_CARRIER_WEBSOCKET;
        revdial_session_unref(list[i]);
    }
    CHECK_INT(carriers, 1);
    for (int i = 0; i < 4; i++) {
        revdial_err err = {0};
        char text[8] = "";
        revdial_stream *st = world_dial(w, "echo", 0, &err);
        REQUIRE(st != NULL);
        CHECK_INT(revdial_write(st, "hello", 5), 5);
        revdial_shutdown(st, REVDIAL_WR);
        CHECK_INT(revdial_read(st, text, sizeof text), 5);
        CHECK_STR(text, "hello");
        CHECK_INT(revdial_read(st, text, sizeof text), 0);
        revdial_close(st);
    }
}

NEW_WORLD_TEST(a_stock_WebSocket_client_is_a_stock_yamux_peer)
{
    static const uint8_t ack[12] = {0, 1, 0, 2, 0, 0, 0, 1};
    REQUIRE(world_open_proxy(w));
    int fd = ws_connect(w);
    REQUIRE(fd >= 0);
    CHECK_INT(revdial_proxy_wait(w->proxy, "cam-1", 1, UTIL_WAIT_MS), 1);
    revdial_err err = {0};
    revdial_stream *st = revdial_dial(w->proxy, "cam-1", NULL, &err);
    CHECK(st != NULL);
    ws_say(fd, 0x82, ack, sizeof ack);
    static const uint8_t data[14] = {0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 2, 'h', 'i'};
    ws_say(fd, 0x02, data, 5);
    ws_say(fd, 0x80, data + 5, 9);
    char text[8] = "";
    CHECK_INT(revdial_read(st, text, sizeof text), 2);
    CHECK_STR(text, "hi");
    CHECK_INT(revdial_read(st, text, sizeof text), 0);
    revdial_close(st);
    close(fd);
}

NEW_WORLD_TEST(a_ping_is_answered_and_Close_too_before_the_connection_ends)
{
    REQUIRE(world_open_proxy(w));
    int fd = ws_connect(w);
    char body[128];
    size_t n = 0;
    REQUIRE(fd >= 0);
    ws_say(fd, 0x89, "are you there?", 14);
    CHECK_INT(ws_hear(fd, body, sizeof body, &n), 0x8a);
    CHECK(n == 14 && memcmp(body, "are you there?", 14) == 0);
    ws_say(fd, 0x88, "\x03\xe9", 2);
    CHECK_INT(ws_hear(fd, body, sizeof body, &n), 0x88);
    CHECK(n == 2 && memcmp(body, "\x03\xe9", 2) == 0);
    CHECK_INT(raw_drain(fd, body, sizeof body, &n), 0);
    CHECK_INT(n, 0);
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 1, NULL));
    close(fd);
}

TEST(P20_a_page_in_a_browser_registers_only_if_the_proxy_lists_it)
{
    static const char *const own = WS_REQUEST("Revdial-Name: cam-1\r\n"
                                              "Origin: http://localhost\r\n");
    for (int is_listed = 0; is_listed < 2; is_listed++) {
        world w;
        world_init(&w);
        w.pcfg.origins = is_listed ? "https://x.example, http://local*" : NULL;
        if (world_open_proxy(&w)) {
            char head[1024] = "";
            int fd = raw_connect(w.address);
            raw_say(fd, own);
            raw_head(fd, head, sizeof head);
            CHECK_INT(raw_status(head), is_listed ? 101 : 403);
            close(fd);
        }
        world_close(&w);
    }
}

NEW_WORLD_TEST(a_broken_frame_gets_its_Close_and_a_wrong_request_no_session)
{
    static const struct {
        const char *frame;
        size_t len;
        char status;
    } rows[] = {{"\x82\x01x", 3, '\xea'},      // no mask
                {"\x81\x85xxxx", 6, '\xeb'},   // text
                {"\xc2\x80xxxx", 6, '\xea'}};  // a reserved bit
    static const char *const requests[] = {
        "GET /revdial HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        WS_REQUEST("Sec-WebSocket-Version: 12\r\n"), WS_REQUEST("Origin: http://evil.example\r\n")};
    static const int statuses[] = {426, 400, 403};
    REQUIRE(world_open_proxy(w));
    char body[1024];
    size_t n = 0;
    for (size_t i = 0; i < 3; i++) {
        int fd = ws_connect(w);
        REQUIRE(fd >= 0);
        raw_send(fd, rows[i].frame, rows[i].len);
        CHECK_INT(ws_hear(fd, body, sizeof body, &n), 0x88);
        CHECK(n == 2 && body[0] == 3 && body[1] == rows[i].status);
        close(fd);
    }
    for (size_t i = 0; i < 3; i++) {
        int fd = raw_connect(w->address);
        memset(body, 0, sizeof body);
        raw_say(fd, requests[i]);
        raw_drain(fd, body, sizeof body - 1, &n);
        CHECK_INT(raw_status(body), statuses[i]);
        if (i == 0) CHECK(strstr(body, "\r\nSec-WebSocket-Version: 13\r\n") != NULL);
        close(fd);
    }
    CHECK(util_log_wait(&w->sessions, REVDIAL_DOWN, 3, NULL));
    CHECK_INT(util_log_count(&w->sessions, REVDIAL_UP, NULL), 3);
}

TEST(an_agent_takes_no_other_carrier_than_it_asked_for)
{
    int port = 0, listener = raw_listen(8, &port);
    world w;
    char url[64], head[2048];
    world_init(&w);
    snprintf(url, sizeof url, "ws://127.0.0.1:%d", port);
    w.acfg.url = url;
    revdial_err err = {0};
    w.agents[0] = revdial_agent_start(&w.acfg, &err);
    REQUIRE(w.agents[0] != NULL);
    int fd = raw_proxy_accept(listener, head, sizeof head);
    CHECK(strstr(head, "\r\nUpgrade: websocket\r\n") != NULL);
    CHECK(strstr(head, "\r\nRevdial-Upgrade: websocket\r\n") != NULL);
    raw_say(fd, RAW_101);
    CHECK(util_log_wait(&w.states, REVDIAL_BACKOFF, 1, NULL));
    CHECK_INT(util_log_count(&w.states, REVDIAL_UP, NULL), 0);
    close(fd);
    world_close(&w);
    close(listener);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
