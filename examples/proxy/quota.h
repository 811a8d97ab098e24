// Limits of one credential: words of its line, options of its [group], or fields of the answer of
// --auth-url. All of them are called as the options that they are instead of.
#ifndef REVDIAL_PROXY_QUOTA_H
#define REVDIAL_PROXY_QUOTA_H

#include "../program/program.h"

enum { QUOTA_COUNT = 4 };

// What number i is called: "stream-rate".
const char *quota_name(int i);
// The number of the limit that a word "stream-rate=..." is about; -1: it is none.
int quota_find(const char *word);
// Returns NULL, or what is wrong with the value.
const char *quota_set(revdial_quota *q, int i, const char *value);

#endif  // REVDIAL_PROXY_QUOTA_H
