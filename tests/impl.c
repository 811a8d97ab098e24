// The implementation as suites link with it, compiled once for all of them: the core alone, or all
// of it, with the system calls that tests replace.
#ifndef REVDIAL_NO_RUNTIME
#include "hooks.h"
#endif
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"
