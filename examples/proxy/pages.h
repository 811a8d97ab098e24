// The pages of --admin.
#ifndef REVDIAL_PROXY_PAGES_H
#define REVDIAL_PROXY_PAGES_H

#include "reload.h"
#include "watch.h"

typedef struct pages {
    watch *w;
    live *live;
} pages;

extern const prog_page pages_served[];  // ud is the pages

#endif  // REVDIAL_PROXY_PAGES_H
