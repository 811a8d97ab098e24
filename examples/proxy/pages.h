// The pages of --admin.
#ifndef REVDIAL_PROXY_PAGES_H
#define REVDIAL_PROXY_PAGES_H

#include "watch.h"

typedef struct pages {
    watch *w;
    revdial_proxy *proxy;
    int drain_ms;
} pages;

extern const prog_page pages_served[];  // ud is the pages

#endif  // REVDIAL_PROXY_PAGES_H
