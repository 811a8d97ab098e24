#!/bin/sh
# What `make install` leaves is what others can build with, and `make uninstall` takes it away.
#     make package, or REVDIAL_BUILD=build sh tests/package.sh
# pkg-config and cmake are left out where they are not installed, unless CI=true.
build=${REVDIAL_BUILD:-build}
cc=${CC:-cc}
make=${MAKE:-make}
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
unset MAKEFLAGS MFLAGS MAKELEVEL
usr=$tmp/dest/usr
passed=0
failed=0

# check NAME COMMAND...
check() {
    name=$1
    shift
    if "$@" >"$tmp/said" 2>&1; then
        passed=$((passed + 1))
    else
        echo "FAIL $name"
        tail -n 20 "$tmp/said" | sed 's/^/    /'
        failed=$((failed + 1))
    fi
}

here() { [ "$CI" = true ] || command -v "$1" >/dev/null; }
make_to() { (umask 077 && $make -s BUILD="$build" CC="$cc" DESTDIR="$tmp/dest" PREFIX=/usr "$@"); }

# All files, and only these, with a mode that lets everybody use them.
is_complete() {
    (cd "$usr" && find . -type f | sort) >"$tmp/files"
    printf './%s\n' bin/revdial-agent bin/revdial-proxy include/revdial.h include/revdial_tls.h \
        share/man/man1/revdial-agent.1 share/man/man1/revdial-proxy.1 \
        share/pkgconfig/revdial.pc | diff - "$tmp/files" &&
        ! find "$usr" \( -type d ! -perm 755 -o -path '*/bin/*' ! -perm 755 -o -type f \
            ! -path '*/bin/*' ! -perm 644 \) | grep .
}
programs_run() { "$usr/bin/revdial-proxy" --version && "$usr/bin/revdial-agent" --version; }

# Each option of --help has its paragraph.
is_man_page() {
    options=$("$usr/bin/$1" --help | grep -c '^  --')
    [ "$(grep -c '^\.B \\-\\-' "$usr/share/man/man1/$1.1")" -eq "$options" ] &&
        grep -q '^\.SH EXIT STATUS' "$usr/share/man/man1/$1.1" &&
        grep -q '^\.SH EXAMPLES' "$usr/share/man/man1/$1.1"
}

pkg() {
    PKG_CONFIG_PATH=$usr/share/pkgconfig PKG_CONFIG_SYSROOT_DIR=$tmp/dest \
        PKG_CONFIG_ALLOW_SYSTEM_CFLAGS=1 pkg-config "$@" revdial
}
compiles() {
    printf '%s\n' '#define REVDIAL_IMPLEMENTATION' '#include <revdial.h>' \
        'int main(void) { return revdial_version()[0] == 0; }' >"$tmp/main.c" &&
        $cc $(pkg --cflags) -o "$tmp/main" "$tmp/main.c" $(pkg --libs) && "$tmp/main" &&
        [ "$(pkg --modversion)" = "$("$usr/bin/revdial-proxy" --version | cut -d ' ' -f 2 |
            tr -d ,)" ]
}
compiles_with_cmake() {
    cmake -S examples/cmake -B "$tmp/cmake" -DCMAKE_C_COMPILER="$cc" \
        -DFETCHCONTENT_SOURCE_DIR_REVDIAL="$PWD" && cmake --build "$tmp/cmake" &&
        [ -x "$tmp/cmake/backend" ]
}
is_gone() { [ -z "$(find "$usr" -type f)" ]; }
headers_only() { [ "$(find "$usr" -type f | wc -l)" -eq 3 ] && [ -e "$usr/include/revdial.h" ]; }

check 'make install' make_to install
check 'what is installed, and that everybody may use it' is_complete
check 'the programs run' programs_run
for program in revdial-proxy revdial-agent; do
    check "the man page of $program" is_man_page $program
done
if here pkg-config; then check 'pkg-config' compiles; fi
if here cmake; then check 'cmake' compiles_with_cmake; fi
check 'make uninstall' make_to uninstall
check 'nothing is left' is_gone
check 'make install-headers' make_to install-headers
check 'it installs nothing else' headers_only
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
