// What clients of --connect, --socks5 and --sni send before it is known where they want to go. What
// is decided on some bytes does not change with those that follow.
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include "test.h"

#include "../../examples/program/log.c"
#include "../../examples/program/signals.c"
#include "../../examples/proxy/connect.c"
#include "../../examples/proxy/front.c"
#include "../../examples/proxy/hosts.c"
#include "../../examples/proxy/http_reader.c"
#include "../../examples/proxy/http_text.c"
#include "../../examples/proxy/pick.c"
#include "../../examples/proxy/routes.c"
#include "../../examples/proxy/sni.c"
#include "../../examples/proxy/socks5.c"

#include "fuzz.h"

// A destination is one that can be written and read again.
static void check_host(const route_host *where)
{
    char target[ROUTE_TARGET_SIZE];
    route_host again;
    FUZZ_CHECK(strlen(where->host) < ROUTE_HOST_SIZE && where->port <= PORT_MAX);
    if (where->port <= 0) return;
    route_host_target(where, target);
    FUZZ_CHECK(!route_host_parse(&again, target, strlen(target)));
    FUZZ_CHECK(strcmp(again.host, where->host) == 0 && again.port == where->port);
}

static void fuzz_connect(const uint8_t *data, size_t len)
{
    const char *text = (const char *)data;
    connect_head part, whole;
    int status = 0;
    for (size_t n = 0; n <= len && status == 0; n++) status = connect_parse(&part, text, n);
    FUZZ_CHECK(connect_parse(&whole, text, len) == status);
    FUZZ_CHECK(status == 0 || status == 200 || whole.problem);
    if (status != 200) return;
    FUZZ_CHECK(part.len == whole.len && strcmp(part.user, whole.user) == 0);
    FUZZ_CHECK(whole.len <= len && memcmp(data + whole.len - 4, "\r\n\r\n", 4) == 0);
    check_host(&whole.where);
}

static void fuzz_socks5(const uint8_t *data, size_t len)
{
    socks5_hello part, whole;
    size_t n = 0;
    do socks5_parse(&part, data, n);
    while (part.step == SOCKS5_MORE && n++ < len);
    FUZZ_CHECK(socks5_parse(&whole, data, len) == part.step);
    if (whole.step != SOCKS5_REQUEST) return;
    FUZZ_CHECK(part.len == whole.len && whole.len <= len && whole.answers > 0);
    check_host(&whole.where);
}

static void fuzz_sni(const uint8_t *data, size_t len)
{
    route_host part, whole;
    enum sni_step step = SNI_MORE;
    for (size_t n = 0; n <= len && step == SNI_MORE; n++) step = sni_parse(&part, data, n);
    FUZZ_CHECK(sni_parse(&whole, data, len) == step);
    FUZZ_CHECK(step != SNI_FOUND || strcmp(part.host, whole.host) == 0);
    check_host(&whole);
}

static void fuzz_route(const uint8_t *data, size_t len)
{
    char spec[256];
    route_table table = {0};
    route_choice choice;
    route_host where = {"7.cams.example", 80};
    if (len >= sizeof spec) return;
    memcpy(spec, data, len);
    spec[len] = '\0';
    if (!route_add(&table, spec) && route_find(&table, &where, &choice))
        FUZZ_CHECK(route_is_name(choice.name, strlen(choice.name)));
    route_table_free(&table);
}

static void fuzz_one(const uint8_t *data, size_t len)
{
    fuzz_connect(data, len);
    fuzz_socks5(data, len);
    fuzz_sni(data, len);
    fuzz_route(data, len);
}

static void fuzz_seeds(void)
{
    fuzz_seed_text("CONNECT x.example:22 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic "
                   "d2ViOg==\r\nContent-Length: 0\r\n\r\nSSH-2.0");
    fuzz_seed_text("GET http://x/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n");
    fuzz_seed_text("*.cams.example:80=lab-*/*.lan:80");
    fuzz_seed_text("[fd00::]/8:80-90=web/unix:/run/x");
    fuzz_seed((const uint8_t *)"\5\2\0\2\1\3web\1x\5\1\0\3\1x\0\26", 18);
    fuzz_seed((const uint8_t *)"\5\1\0\5\1\0\1\12\0\0\1\1\273", 13);
    fuzz_seed((const uint8_t *)"\26\3\1\0\77\1\0\0\73\3\3"
                               "0123456789abcdef0123456789abcdef"
                               "\0\0\2\23\1\1\0\0\20\0\0\0\14\0\12\0\0\7cam.lab",
              68);
}
