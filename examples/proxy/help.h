// The texts of revdial-proxy --help.
#ifndef REVDIAL_PROXY_HELP_H
#define REVDIAL_PROXY_HELP_H

extern const char help_usage[];
extern const char help_forms[];  // of files, and of values
extern const char help_epilogue[];

#endif  // REVDIAL_PROXY_HELP_H
