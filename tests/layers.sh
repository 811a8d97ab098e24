#!/bin/sh
# Proves that the sections of revdial.h are layers.     tests/layers.sh [HEADER]
#   names     a section names only what itself and the sections in its banner's "uses:" define
#   prefix    each section compiles with nothing but what stands above it
#   core      REVDIAL_NO_RUNTIME needs no thread, clock, descriptor or stdio
#   skip      the runtime compiles without the core but impl.wire and impl.auth, whose functions
#             are pure: it goes through the core's public door only
#   symbols   nothing but revdial_* leaves the object; nothing at all with REVDIAL_API=static
header=${1:-revdial.h}
here=$(dirname "$0")
CC=${CC:-cc}
core='pace mux http egress ws engine'
tmp=build/layers
passed=0
failed=0
mkdir -p "$tmp" || exit 1
if [ ! -r "$header" ]; then
    echo "$header:1: cannot be read"
    echo "0 passed, 1 failed"
    exit 1
fi

# Counts a check; its findings are in $tmp/found.
verdict() {
    if [ -s "$tmp/found" ]; then
        awk '!seen[$0]++' "$tmp/found"
        echo "FAIL $1"
        failed=$((failed + 1))
    else
        echo "ok $1"
        passed=$((passed + 1))
    fi
}

# compile OUT FILE FLAGS...: what the compiler minds goes to $tmp/found. Every static function is
# kept, so that what it calls shows in the object.
compile() {
    object=$1
    source=$2
    shift 2
    rm -f "$object"
    $CC -std=c11 -Werror=implicit-function-declaration -I. -DREVDIAL_IMPLEMENTATION "$@" \
        '-Dstatic=__attribute__((used)) static' -x c -c -o "$object" "$source" 2>"$tmp/diagnostics"
    if [ ! -f "$object" ]; then grep 'error:' "$tmp/diagnostics" >>"$tmp/found"; fi
}

# undefined OBJECT PATTERN: the names the object needs and that match
undefined() {
    if [ -f "$1" ]; then nm -u "$1" | awk '{ print $NF }' | grep -E "$2"; fi
}

# where NAME [SECTION]: "file:line" of its first use, in that section
where() {
    awk -v name="$1" -v want="${2:+impl.$2}" -v file="$header" '
        /^\/\/ MARK: / { here = $3 }
        (want == "" || here == want) && match($0, "(^|[^A-Za-z0-9_])" name "[^A-Za-z0-9_]") {
            line = FNR
            exit
        }
        END { print file ":" (line ? line : 1) }' "$header"
}

: >"$tmp/found"
LC_ALL=C awk -f "$here/layers.awk" "$header" "$header" "$header" >"$tmp/found"
verdict names

: >"$tmp/found"
sections=$(sed -n 's,^// MARK: impl\.\([a-z0-9]*\).*,\1,p' "$header")
if [ -z "$sections" ]; then echo "$header:1: no section impl.*" >"$tmp/found"; fi
# Compilers name a static function that is used and not defined, without making code.
for section in $sections; do
    slice=$tmp/upto_$section.h
    LC_ALL=C awk -v last="$section" -f "$here/slice.awk" "$header" >"$slice"
    LC_ALL=C $CC -std=c11 -fsyntax-only -Werror=implicit-function-declaration -I. \
        -DREVDIAL_IMPLEMENTATION -DREVDIAL_API=static -x c "$slice" 2>"$tmp/diagnostics"
    grep 'error:' "$tmp/diagnostics" >>"$tmp/found"
    for name in $(sed -n "s/.*warning: .*'\(.*\)'.* \(never\|not\) defined.*/\1/p" \
        "$tmp/diagnostics" | sort -u); do
        echo "$(where "$name" "$section"): [$section] needs $name from further down"
    done >>"$tmp/found"
done
verdict prefix

: >"$tmp/found"
compile "$tmp/core.o" "$header" -DREVDIAL_NO_RUNTIME -fno-builtin
allowed='memcpy|memmove|memset|memcmp|memchr|strlen|strcmp|strncmp|strchr|realloc|free'
allowed="$allowed|__stack_chk_fail|__assert_fail|_GLOBAL_OFFSET_TABLE_|__u?(div|mod)[dt]i3"
for name in $(undefined "$tmp/core.o" . | grep -Evx "$allowed"); do
    line=$(grep -nE "(^|[^A-Za-z0-9_])$name *\(" "$header" | head -n 1 | cut -d: -f1)
    echo "$header:${line:-1}: the core needs $name"
done >>"$tmp/found"
$CC -std=c11 -I. -DREVDIAL_IMPLEMENTATION -DREVDIAL_NO_RUNTIME -x c -M "$header" 2>/dev/null |
    tr ' ' '\n' >"$tmp/includes"
for name in pthread.h sys/epoll.h sys/socket.h unistd.h stdio.h time.h; do
    if grep -Eq "include/([a-z0-9_]+-[a-z0-9_-]+/)?$name\$" "$tmp/includes"; then
        line=$(grep -n "include <$name>" "$header" | head -n 1 | cut -d: -f1)
        echo "$header:${line:-1}: the core includes <$name>"
    fi
done >>"$tmp/found"
verdict core

: >"$tmp/found"
LC_ALL=C awk -v cut="$core" -f "$here/slice.awk" "$header" >"$tmp/skip.h"
compile "$tmp/skip.o" "$tmp/skip.h"
for name in $(undefined "$tmp/skip.o" '^rvd_'); do
    echo "$header:1: the runtime needs $name, which is the core's own"
done >>"$tmp/found"
verdict skip

: >"$tmp/found"
$CC -std=c11 -w -I. -DREVDIAL_IMPLEMENTATION -x c -c -o "$tmp/all.o" "$header" 2>>"$tmp/found"
if [ -f "$tmp/all.o" ]; then
    for name in $(nm -g --defined-only "$tmp/all.o" | awk '{ print $NF }' | grep -v '^revdial_'); do
        echo "$(where "$name"): $name leaves the object"
    done >>"$tmp/found"
fi
$CC -std=c11 -w -I. -DREVDIAL_IMPLEMENTATION -DREVDIAL_API=static -x c -c -o "$tmp/static.o" \
    "$header" 2>>"$tmp/found"
if [ -f "$tmp/static.o" ]; then
    for name in $(nm -g --defined-only "$tmp/static.o" | awk '{ print $NF }'); do
        echo "$header:1: $name leaves the object with REVDIAL_API=static"
    done >>"$tmp/found"
fi
verdict symbols

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
