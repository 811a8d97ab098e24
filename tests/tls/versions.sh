#!/bin/sh
# The TLS tests on other versions of mbedTLS than the system's, which cargo downloads: their whole
# sources come inside crates that bind them. Built with threads and all else as it comes.
#     make tls-versions, or REVDIAL_BUILD=build sh tests/tls/versions.sh [VERSION...]
# For a version that no crate has, make tls CPPFLAGS=-I... LDFLAGS=-L... TLS_LIBS='-l...'.
build=${REVDIAL_BUILD:-build}
jobs=$(nproc 2>/dev/null || echo 2)
passed=0
failed=0

# version, crate, its version, where the sources are in it
known='
3.6.5 mbedtls-rs-sys 0.3.1 mbedtls
2.28.10 mbedtls-sys-auto 2.28.15 vendor
'

# sources CRATE VERSION DIRECTORY: prints where they are. Its own project for each, for cargo takes
# only one crate that binds a library.
sources() (
    mkdir -p "$3/src" && cd "$3" && : >src/lib.rs && printf '%s\n' '[package]' \
        'name = "sources"' 'version = "0.0.0"' 'edition = "2021"' '[workspace]' '[dependencies]' \
        "$1 = { version = \"=$2\", default-features = false }" >Cargo.toml || return
    cargo metadata --format-version 1 --filter-platform x86_64-unknown-linux-gnu >metadata || return
    grep -o '"manifest_path":"[^"]*"' metadata | cut -d '"' -f 4 | grep "/$1-$2/" | xargs dirname
)

# library SOURCES DIRECTORY: libmbedtls.a, with all three parts in it
library() {
    if [ -e "$2/libmbedtls.a" ]; then return 0; fi
    rm -rf "$2/objects" && mkdir -p "$2/objects" &&
        (cd "$2/objects" && printf '%s\n' "$1"/library/*.c |
            xargs -P "$jobs" -n 8 ${CC:-cc} -O1 -w -c $threads -I"$1/include" \
                -I"$1/library") &&
        ar rc "$2/libmbedtls.a" "$2/objects"/*.o
}
threads='-DMBEDTLS_THREADING_C -DMBEDTLS_THREADING_PTHREAD'

# run VERSION CRATE CRATE-VERSION DIRECTORY: what was counted is the last such line of $log
run() {
    log=$build/tls-$1/log
    mkdir -p "$build/tls-$1" && here=$(cd "$build/tls-$1" && pwd) || return
    tree=$(sources "$2" "$3" "$here/crate" 2>"$log") && [ -d "$tree/$4/library" ] || return
    library "$tree/$4" "$here" >>"$log" 2>&1 || return
    made="${MAKE:-make} --no-print-directory BUILD=$build/tls-$1 TLS=mbedtls TLS_LIBS=-lmbedtls"
    $made CFLAGS=-g CPPFLAGS="$threads -isystem $tree/$4/include" LDFLAGS="-L$here" tls \
        >"$log" 2>&1
    "$here/revdial-proxy" --version | grep -q "mbedTLS $1\$"
}

if [ "${1-}" = --one ]; then
    set -- $(echo "$known" | grep "^$2 ")
    [ $# -eq 4 ] && run "$@"
    exit
fi
[ $# -gt 0 ] || set -- $(echo "$known" | cut -d ' ' -f 1)
# Side by side: they wait more than they work.
for version in "$@"; do sh "$0" --one "$version" & done
wait
for version in "$@"; do
    log=$build/tls-$version/log
    sum=$(grep -Ex '[0-9]+ passed, [0-9]+ failed' "$log" | tail -n 1)
    "$build/tls-$version/revdial-proxy" --version | grep -q "mbedTLS $version\$" || sum=
    if [ "$sum" ]; then
        sed -n "/passed, [0-9]* failed\|^ *FAIL/s/^/$version: /p" "$log"
        set -- $(echo "$sum" | tr -cd '0-9 ')
    else
        echo "$version: not to be had, not to be built, or not what was linked"
        tail -n 5 "$log" 2>/dev/null | sed 's/^/    /'
        set -- 0 1
    fi
    passed=$((passed + $1))
    failed=$((failed + $2))
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
