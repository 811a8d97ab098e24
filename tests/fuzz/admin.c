// What may come to the admin port of the programs, and what an answer's Date may look like.
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include "test.h"

#include "../../examples/agent/probe.c"
#include "../../examples/program/request.c"

#include "fuzz.h"

static void fuzz_one(const uint8_t *data, size_t len)
{
    const char *text = (const char *)data, *problem;
    char value[64], copy[4097];
    prog_request r;
    probe_url u;
    int head = prog_request_len(text, len), status;
    memcpy(copy, data, len < sizeof copy ? len : sizeof copy - 1);
    copy[len < sizeof copy ? len : sizeof copy - 1] = '\0';
    FUZZ_CHECK(probe_date(copy) >= -1);
    if (probe_url_parse(&u, copy, strlen(copy))) FUZZ_CHECK(u.endpoint[0] && u.path[0] == '/');
    if (head <= 0) return;
    FUZZ_CHECK((size_t)head <= len && memcmp(text + head - 4, "\r\n\r\n", 4) == 0);
    status = prog_request_parse(&r, text, (size_t)head, &problem);
    FUZZ_CHECK((status == 200) == (*problem == '\0'));
    if (status != 200) return;
    FUZZ_CHECK(r.path[0] == '/' && !strpbrk(r.path, "? \r\n"));
    if (prog_request_query(&r, "session", value, sizeof value))
        FUZZ_CHECK(value[0] && !strpbrk(value, "&\r\n"));
    // What a browser was led to by a name of somebody else is never ours.
    if (prog_request_is_ours(&r, "")) FUZZ_CHECK(!strstr(r.host, ".evil"));
    prog_request_is_same_origin(&r);
}

static void fuzz_seeds(void)
{
    fuzz_seed_text("GET /status?name=cam-*&limit=9 HTTP/1.1\r\nHost: 127.0.0.1:9000\r\n\r\n");
    fuzz_seed_text("POST /kick?session=00ff HTTP/1.1\r\nHost: [::1]\r\nOrigin: http://[::1]\r\n"
                   "Authorization: Bearer x\r\nSec-Fetch-Site: same-origin\r\n"
                   "Content-Length: 0\r\n\r\n");
    fuzz_seed_text("HEAD / HTTP/1.0\r\nHost: ops.evil\r\n\r\n");
    fuzz_seed_text("Sun, 06 Nov 1994 08:49:37 GMT");
    fuzz_seed_text("wss://[fd00::1]:8443/x?y");
}
