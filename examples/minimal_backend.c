// The smallest backend: registers as "demo" and answers each stream in upper case.
//     REVDIAL_TOKEN=s3cret ./minimal_backend http://127.0.0.1:7000
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

static void shout(void *ud, revdial_stream *st)
{
    char buf[4096];
    ptrdiff_t n, i;
    (void)ud;
    while ((n = revdial_read(st, buf, sizeof buf)) > 0) {
        for (i = 0; i < n; i++) buf[i] = (char)toupper((unsigned char)buf[i]);
        if (revdial_write(st, buf, (size_t)n) != n) break;
    }
    revdial_close(st);
}

int main(int argc, char **argv)
{
    revdial_agent_config cfg = {.name = "demo", .handler = shout};
    revdial_err err = {0};
    cfg.url = argc > 1 ? argv[1] : "http://127.0.0.1:7000";
    cfg.secret = getenv("REVDIAL_TOKEN");
    if (revdial_serve(&cfg, &err) == 0) return 0;
    fprintf(stderr, "%s\n", err.msg);
    return 1;
}
