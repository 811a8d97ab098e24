#!/bin/sh
# revdial.h in every way that a program may take it, without a warning.
#     tests/header.sh [PART...]
# Parts are gcc, clang, musl, cxx and make; they run side by side. Compilers that are not here are
# left out, unless CI=true. U.. are rows of the table of misuse.
header=revdial.h
if [ $# -ne 1 ]; then
    [ $# -gt 0 ] || set -- gcc clang musl cxx make
    mkdir -p build/header || exit 1
    printf '%s\n' "$@" | xargs -P "$(nproc 2>/dev/null || echo 2)" -I '{}' \
        sh -c 'sh "$0" "{}" >build/header/{}.said 2>&1' "$0"
    for part in "$@"; do sed '$d' "build/header/$part.said"; done
    for part in "$@"; do tail -n 1 "build/header/$part.said"; done | awk -v n=$# '
        /^[0-9]+ passed, [0-9]+ failed$/ { passed += $1; failed += $3; n-- }
        END { printf "%d passed, %d failed\n", passed, failed + n; exit failed + n != 0 }'
    exit
fi
part=$1
tmp=build/header/$part
unset MAKEFLAGS MFLAGS MAKELEVEL  # of a make that runs this: the ones below stand for themselves
passed=0
failed=0
warnings='-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wcast-qual -Wstrict-prototypes
    -Wmissing-prototypes -Wundef -Wswitch-enum -Wvla -Wwrite-strings -Werror'
rm -rf "$tmp"
mkdir -p "$tmp" || exit 1

# try NAME COMMAND...: must succeed and say nothing
try() {
    name=$1
    shift
    "$@" >"$tmp/said" 2>&1
    status=$?
    if [ "$status" -eq 0 ] && [ ! -s "$tmp/said" ]; then
        echo "ok $name"
        passed=$((passed + 1))
    else
        head -n 20 "$tmp/said"
        echo "$header:1: $name: exit status $status"
        failed=$((failed + 1))
    fi
}

# fails NAME PATTERN COMMAND...: must fail, and say something that matches
fails() {
    name=$1
    pattern=$2
    shift 2
    if ! "$@" >"$tmp/said" 2>&1 && grep -Eq "$pattern" "$tmp/said"; then
        echo "ok $name"
        passed=$((passed + 1))
    else
        head -n 20 "$tmp/said"
        echo "$header:1: $name: does not fail with \"$pattern\""
        failed=$((failed + 1))
    fi
}

# says NAME PATTERN COMMAND...: must fail with one error, an #error that matches
says() {
    fails "$@"
    n=$(grep -c ' error: ' "$tmp/said")
    if [ "$n" -ne 1 ]; then try "$1: $n errors" false; fi
}

# here COMPILER: is it on this machine?
here() {
    if command -v "$1" >/dev/null; then return 0; fi
    if [ "$CI" = true ]; then try "$1 is installed" false; fi
    return 1
}

printf '#define REVDIAL_IMPLEMENTATION\n#include "revdial.h"\n' >"$tmp/impl.c"
cat >"$tmp/uses.c" <<'END'
#include "revdial.h"
#include "revdial.h"
int main(void) { return revdial_version()[0] == 0 || revdial_strerror(REVDIAL_OK)[0] == 0; }
END
cat "$tmp/uses.c" "$tmp/impl.c" >"$tmp/late.c" # the implementation after the public half
{
    cat "$tmp/impl.c"
    tail -n 1 "$tmp/uses.c"
} >"$tmp/both.c"
cat >"$tmp/core.c" <<'END'
#define REVDIAL_IMPLEMENTATION
#define REVDIAL_NO_RUNTIME
#include "revdial.h"
int main(int argc, char **argv)
{
    revdial_engine_config cfg = {0};
    revdial_engine *e;
    (void)argv;
    cfg.role = argc > 1 ? REVDIAL_ROLE_BACKEND : REVDIAL_ROLE_PROXY;
    e = revdial_engine_new(&cfg, 0, NULL);
    revdial_engine_free(e);
    return e == NULL;
}
END
cp "$tmp/uses.c" "$tmp/uses.cc"
cp "$tmp/impl.c" "$tmp/impl.cc"
printf '#include <stdio.h>\n#include <sys/socket.h>\n' | cat - "$tmp/impl.c" >"$tmp/behind.c"
echo '#include "revdial_tls.h"' >"$tmp/tls.cc" # its public half needs no mbedTLS
cat "$tmp/impl.c" "$tmp/impl.c" "$tmp/uses.c" >"$tmp/twice.c"
cat >"$tmp/wrong.c" <<'END'
#include "revdial.h"
void wrong(revdial_session *s);
void wrong(revdial_session *s) { revdial_close(s); }
END
# What depends on the locale, or on a clock that people set.
moody='(__ctype_.*|_?_?(is|to)(alnum|alpha|cntrl|digit|graph|lower|print|punct|space|upper|xdigit)'
moody="$moody|ato[fil]+|strto[a-z]+|[a-z_]*(printf|scanf)[a-z_]*|strn?casecmp|str(coll|xfrm)"
moody="$moody|setlocale|localeconv|mb[a-z]+|wc[a-z]+|time|gettimeofday|(local|gm)time(_r)?)"

# steady CC: does the implementation need none of those?
steady() {
    $1 -std=c11 -O0 -fno-builtin -I. -c -o "$tmp/steady.o" "$tmp/impl.c" &&
        ! nm -u "$tmp/steady.o" | awk '{ print $NF }' | grep -Ex "$moody"
}

# c_compiler CC: of gcc's warnings some come from its optimiser, of clang's none. Both make code at
# -O0, which is linked below. That clang -O2 can make code of it, the part clang of .ci/run shows.
c_compiler() {
    cc=$1
    stack=
    made=-fsyntax-only
    if [ "$cc" = gcc ]; then
        stack='-Wstack-usage=4096' # no frame over 4 KiB (U48)
        made="-c -o $tmp/impl.o"
    fi
    try "$cc -O0" $cc -std=c11 $warnings $stack -O0 -I. -pthread -c -o "$tmp/impl-O0.o" \
        "$tmp/impl.c"
    warnings="$warnings -Wno-misleading-indentation" # once is enough: gcc takes 1.4 s to look
    for flags in "-O2${stack:+ $stack}" '-O2 -DNDEBUG' '-O1 -DREVDIAL_POLL' -Os \
        '-O0 -fshort-enums -funsigned-char -DREVDIAL_NO_PROXY'; do # U43
        try "$cc $flags" $cc -std=c11 $warnings $flags -I. -pthread $made "$tmp/impl.c"
    done
    try "$cc core alone" $cc -std=c11 $warnings -O0 -I. -o "$tmp/core" "$tmp/core.c"
    try "$cc core alone runs" "$tmp/core"
    try "$cc core without proxy" $cc -std=c11 $warnings -O0 -DREVDIAL_NO_PROXY -I. \
        -o "$tmp/less" "$tmp/core.c"
    try "$cc core without proxy runs as a backend" "$tmp/less" backend
    try "$cc core without proxy is no proxy" sh -c '! "$0"' "$tmp/less"
    try "$cc two units" $cc -std=c11 $warnings -I. -pthread -o "$tmp/two" "$tmp/impl-O0.o" \
        "$tmp/uses.c"
    try "$cc two units run" "$tmp/two"
    try "$cc public half first" $cc -std=gnu11 $warnings -D_GNU_SOURCE -I. -pthread \
        -fsyntax-only "$tmp/late.c"
    try "$cc public half as C99 (U43)" $cc -std=c99 $warnings -I. -c -o "$tmp/uses.o" \
        "$tmp/uses.c"
    try "$cc implementation twice in one unit (U44)" $cc -std=c11 $warnings -I. -pthread \
        -fsyntax-only "$tmp/twice.c"
    cp "$tmp/impl-O0.o" "$tmp/impl-too.o"
    fails "$cc implementation in two units (U44)" '(multiple|duplicate).*revdial_' \
        $cc -std=c11 -I. -pthread -o "$tmp/both" "$tmp/impl-O0.o" "$tmp/impl-too.o" "$tmp/uses.c"
    fails "$cc a handle of another type (U5)" incompatible $cc -std=c11 -Werror -I. -c \
        -o "$tmp/wrong.o" "$tmp/wrong.c"
    for std in c11 gnu17; do
        says "$cc -std=$std implementation behind a system header" \
            'error.*before any other header' \
            $cc -std=$std -I. -c -o "$tmp/behind.o" "$tmp/behind.c"
        try "$cc -std=$std behind a system header with -D_GNU_SOURCE" \
            $cc -std=$std $warnings -D_GNU_SOURCE -I. -fsyntax-only "$tmp/behind.c"
    done
    try "$cc neither locale nor wall clock (U35, U47)" steady "$cc"
    # The headers of the kernel are the same for both; a library for 32 bits may not be here.
    echo '#include <gnu/stubs.h>' >"$tmp/stubs.c"
    if [ "$CI" = true ] || $cc -m32 -E -o /dev/null "$tmp/stubs.c" 2>/dev/null; then
        try "$cc -m32 (U43)" $cc -std=c11 $warnings -O0 -m32 -I. \
            -idirafter "/usr/include/$(uname -m)-linux-gnu" -c -o "$tmp/impl.o" "$tmp/impl.c"
    fi
    try "$cc REVDIAL_API=static" $cc -std=c11 $warnings -Wno-unused-function -I. -pthread \
        -DREVDIAL_API=static -o "$tmp/static" "$tmp/both.c"
}

# It has libc's own headers and none of the kernel's.
musl() {
    for flags in -O0 '-O0 -DREVDIAL_POLL'; do
        try "musl-gcc $flags" musl-gcc -std=c11 $warnings $flags -I. -c -o "$tmp/musl.o" \
            "$tmp/impl.c"
    done
}

cxx_compiler() {
    cxx=$1
    try "$cxx public half as C++11" $cxx -std=c++11 -Wall -Wextra -Wpedantic -Werror -I. -c \
        -o "$tmp/uses.o" "$tmp/uses.cc"
    try "$cxx revdial_tls.h as C++11" $cxx -std=c++11 -Wall -Wextra -Wpedantic -Werror -I. -c \
        -o "$tmp/tls.o" "$tmp/tls.cc"
    says "$cxx implementation as C++" 'error.*implementation is C;' $cxx -I. -c \
        -o "$tmp/cxx.o" "$tmp/impl.cc"
    if [ ! -e "$tmp/impl.o" ]; then cc -std=c11 -I. -c -o "$tmp/impl.o" "$tmp/impl.c"; fi
    try "$cxx links with C" $cxx -pthread -o "$tmp/mixed" "$tmp/uses.o" "$tmp/impl.o"
}

printf '#!/bin/sh\ncase "$*" in *mbedtls*) exit 1 ;; esac\nexec cc "$@"\n' >"$tmp/cc"
chmod +x "$tmp/cc"

# tells TLS-LINE MAKE-ARGUMENT...: does a build without TLS say so in one line?
tells() {
    line=$1
    shift
    [ "$(make -n all "$@" | grep -c "^echo '$line")" -eq 1 ]
}
make_says() {
    try 'make without mbedTLS says that TLS is left out' tells 'Without TLS: mbedTLS' CC="$tmp/cc"
    fails 'make refuses a TLS library that it does not know' 'TLS=nss: it must be' make -n TLS=nss
    mkdir -p "$tmp/other" && cp revdial_tls.h "$tmp/other" &&
        sed 's/^#define REVDIAL_VERSION_PATCH .*/#define REVDIAL_VERSION_PATCH 99/' revdial.h \
            >"$tmp/other/revdial.h"
    fails 'revdial_tls.h refuses a revdial.h of another version' 'error.*of another version' \
        ${CC:-cc} -fsyntax-only -x c "$tmp/other/revdial_tls.h"
    for tls in yes mbedtls; do
        fails "make TLS=$tls without mbedTLS fails and says why" \
            "TLS=$tls: mbedTLS does not compile or link" make -n all TLS=$tls CC="$tmp/cc"
    done
    try 'make TLS=no says that TLS is left out' tells 'Without TLS: TLS=no' TLS=no
}

case $part in
gcc | clang) if here "$part"; then c_compiler "$part"; fi ;;
musl) if here musl-gcc; then musl; fi ;;
cxx) for cxx in g++ clang++; do if here "$cxx"; then cxx_compiler "$cxx"; fi; done ;;
make) make_says ;;
*) try "part $part" false ;;
esac

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
