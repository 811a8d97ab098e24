// The page that people look at: the Makefile makes it from page.html.
#ifndef REVDIAL_PROXY_PAGE_H
#define REVDIAL_PROXY_PAGE_H

extern const char *const page_lines[];  // NULL-terminated

#endif  // REVDIAL_PROXY_PAGE_H
