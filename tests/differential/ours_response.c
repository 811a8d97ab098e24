// What an agent reads in the answer to its upgrade, and to its CONNECT by an egress proxy, for
// tests/differential/responses.py. The words "upgrade", "websocket" and "connect" say which.
// Input as that of ours.c; for each head that was taken its status, and where it ends.
#define REVDIAL_NO_RUNTIME
#define REVDIAL_IMPLEMENTATION
#include "../../revdial.h"

#include <stdio.h>

enum { MOST = 1 << 20, REFUSED = -1, GOES_ON = 0 };

static unsigned char data[MOST];

// Of a head that is complete. An interim one has been reset: its bytes are still there.
static int status_of(const rvd_http_head *h)
{
    return (h->buf[9] - '0') * 100 + (h->buf[10] - '0') * 10 + (h->buf[11] - '0');
}

// ---- two doors: each takes a byte, and says REFUSED, GOES_ON or the status that ends it

static revdial_engine *engine_open(int carrier)
{
    revdial_engine_config cfg = {.role = REVDIAL_ROLE_BACKEND,
                                 .host = "proxy.test",
                                 .name = "cam-1",
                                 .secret = "s3cret",
                                 .carrier = carrier,
                                 .seed = 7};
    struct iovec iov[8];
    revdial_engine *e = revdial_engine_new(&cfg, 1, NULL);
    if (!e) exit(1);
    for (int count; (count = revdial_engine_output(e, iov, 8)) > 0;)
        for (int i = 0; i < count; i++) revdial_engine_sent(e, iov[i].iov_len);
    // The key of RFC 6455 section 1.3 in place of a random one.
    if (e->accept[0]) memcpy(e->accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", sizeof e->accept);
    return e;
}

static int engine_take(revdial_engine *e, const unsigned char *byte)
{
    revdial_event ev;
    int verdict = GOES_ON;
    if (revdial_engine_input(e, byte, 1, 2) < 0) exit(1);
    while (revdial_engine_event(e, &ev)) {
        if (ev.type == REVDIAL_EV_UP) verdict = 101;
        if (ev.type == REVDIAL_EV_DEAD) verdict = ev.status >= 200 ? ev.status : REFUSED;
    }
    return verdict;
}

static revdial_egress *egress_open(void)
{
    const void *out;
    revdial_egress *v =
        revdial_egress_new("http://u:p@egress.test:3128", "proxy.test:443", NULL, NULL, NULL);
    if (!v) exit(1);
    for (size_t n; (n = revdial_egress_output(v, &out)) > 0;) revdial_egress_sent(v, n);
    return v;
}

static int egress_take(revdial_egress *v, const unsigned char *byte)
{
    revdial_err err;
    if (revdial_egress_input(v, byte, 1) != 1) exit(1);
    int state = revdial_egress_state(v, &err, NULL);
    if (!state) return GOES_ON;
    return state == REVDIAL_EPROTO ? REFUSED : status_of(&v->head);
}

// ---- a message

static const char *judge(size_t len, int is_connect, int carrier)
{
    revdial_engine *e = is_connect ? NULL : engine_open(carrier);
    revdial_egress *v = is_connect ? egress_open() : NULL;
    const rvd_http_head *h = is_connect ? &v->head : &e->head;
    unsigned interims = 0;
    int verdict = GOES_ON;
    for (size_t at = 0; at < len && verdict == GOES_ON; at++) {
        verdict = is_connect ? egress_take(v, data + at) : engine_take(e, data + at);
        if (verdict == GOES_ON && h->interims > interims) printf("%d %zu ", status_of(h), at + 1);
        interims = h->interims;
        if (verdict > 0) printf("%d %zu ", verdict, at + 1);
    }
    revdial_engine_free(e);
    revdial_egress_free(v);
    return verdict == REFUSED ? "refused" : verdict == GOES_ON ? "more" : "over";
}

int main(int argc, char **argv)
{
    unsigned char size[4];
    const char *door = argc == 2 ? argv[1] : "";
    int is_connect = !strcmp(door, "connect");
    int carrier = strcmp(door, "websocket") ? REVDIAL_CARRIER_RAW : REVDIAL_CARRIER_WEBSOCKET;
    while (fread(size, 1, sizeof size, stdin) == sizeof size) {
        size_t len = (size_t)size[0] << 24 | size[1] << 16 | size[2] << 8 | size[3];
        if (len > MOST || fread(data, 1, len, stdin) != len) return 1;
        printf("%s\n", judge(len, is_connect, carrier));
        fflush(stdout);
    }
    return 0;
}
