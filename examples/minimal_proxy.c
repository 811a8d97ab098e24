// The smallest proxy: waits for the backend "demo", opens one stream to it, prints the answer.
//     REVDIAL_TOKEN=s3cret ./minimal_proxy 127.0.0.1:7000
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    revdial_credential who = {.secret = getenv("REVDIAL_TOKEN"), .names = "demo"};
    revdial_proxy_config cfg = {.credentials = &who, .credential_count = 1};
    revdial_dial_opts opts = {.flags = REVDIAL_DIAL_WAIT, .timeout_ms = 60000};
    revdial_err err = {0};
    char buf[4096];
    ptrdiff_t n = -1;
    cfg.listen = argc > 1 ? argv[1] : "127.0.0.1:7000";
    revdial_proxy *proxy = revdial_proxy_start(&cfg, &err);
    revdial_stream *st = proxy ? revdial_dial(proxy, "demo", &opts, &err) : NULL;
    if (!st) fprintf(stderr, "%s\n", err.msg);
    if (st && revdial_write(st, "hello, backend\n", 15) == 15)
        if (revdial_shutdown(st, REVDIAL_WR) == 0)
            while ((n = revdial_read(st, buf, sizeof buf)) > 0) fwrite(buf, 1, (size_t)n, stdout);
    revdial_close(st);
    revdial_proxy_stop(proxy);
    return n == 0 ? 0 : 1;  // 0 is EOF: the backend has said all that it wanted to say
}
