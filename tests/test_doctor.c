// What the agent's doctor takes apart: URLs, addresses and dates. Its hops are looked at in
// tests/e2e/doctor.sh.
#include "revdial.h"

#include "test.h"

#include "../examples/agent/probe.c"

TEST(a_URL_of_a_server_is_taken_apart_as_the_agent_does)
{
    static const struct {
        const char *url, *host, *authority, *endpoint, *path;
        int is_secure, is_websocket;
    } rows[] = {
        {"http://a.example", "a.example", "a.example", "a.example:80", "/revdial", 0, 0},
        {"https://a.example/", "a.example", "a.example", "a.example:443", "/revdial", 1, 0},
        {"wss://a:8443/x/y?z", "a", "a:8443", "a:8443", "/x/y?z", 1, 1},
        {"ws://[fd00::1]:81", "fd00::1", "[fd00::1]:81", "[fd00::1]:81", "/revdial", 0, 1},
        {"https://[::1]", "::1", "[::1]", "[::1]:443", "/revdial", 1, 0},
        {"unix:/run/x", "", "localhost", "unix:/run/x", "/revdial", 0, 0},
    };
    static const char *const bad[] = {"", "a:80", "ftp://a", "http://", "http:///x", "unix:x"};
    probe_url u;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[64];
        snprintf(text, sizeof text, "%s,next", rows[i].url);
        if (!CHECK_INT(probe_url_parse(&u, text, strlen(rows[i].url)), 1)) continue;
        CHECK_STR(u.host, rows[i].host);
        CHECK_STR(u.authority, rows[i].authority);
        CHECK_STR(u.endpoint, rows[i].endpoint);
        CHECK_STR(u.path, rows[i].path);
        CHECK_INT(u.is_secure, rows[i].is_secure);
        CHECK_INT(u.is_websocket, rows[i].is_websocket);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (probe_url_parse(&u, bad[i], strlen(bad[i])))
            test_fail(__FILE__, __LINE__, "%s", bad[i]);
}

TEST(an_address_of_this_machine_alone_is_known_however_it_is_written)
{
    static const struct {
        const char *text;
        int is_loopback;
    } rows[] = {{"127.0.0.1", 1},          {"127.9.8.7", 1}, {"::1", 1}, {"0:0:0:0:0:0:0:1", 1},
                {"::ffff:127.0.0.1", 1},   {"128.0.0.1", 0}, {"::2", 0}, {"192.0.2.1", 0},
                {"::ffff:192.0.2.127", 0}, {"fe80::1", 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct addrinfo *list = NULL;
        CHECK_INT(probe_resolve(rows[i].text, "1", &list), 0);
        if (list && probe_is_loopback(list->ai_addr) != rows[i].is_loopback)
            test_fail(__FILE__, __LINE__, "%s", rows[i].text);
        if (list) freeaddrinfo(list);
    }
}

TEST(a_date_of_HTTP_is_a_time)
{
    static const char *const bad[] = {"", "x", "Sun, 06 Nov", "Sun, 06 Noo 1994 08:49:37 GMT",
                                      "Sunday, 06-Nov-94 08:49:37 GMT"};
    CHECK_INT(probe_date("Sun, 06 Nov 1994 08:49:37 GMT"), 784111777);
    CHECK_INT(probe_date("Thu, 01 Jan 1970 00:00:00 GMT"), 0);
    CHECK_INT(probe_date("Tue, 29 Feb 2000 23:59:59 GMT"), 951868799);
    CHECK_INT(probe_date("Mon, 01 Mar 2100 00:00:00 GMT"), 4107542400);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK_INT(probe_date(bad[i]), -1);
}

TEST(the_Date_of_an_answer_is_found_however_it_is_spelled)
{
    probe_answer a = {0};
    probe_note_date(&a, "HTTP/1.1 101 x\r\nX-Date: no\r\n\r\n");
    CHECK_STR(a.date, "");
    probe_note_date(&a, "HTTP/1.1 101 x\r\nA: b\r\nDATE: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n");
    CHECK_STR(a.date, "Sun, 06 Nov 1994 08:49:37 GMT");
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
