#!/bin/sh
# Compilers, libraries, processors and versions of mbedTLS, each by the target that tests it: a line
# for each, with what it counted.     make matrix, MATRIX="clang s390x" for some
# Needs what .ci/run installs, gcc-aarch64-linux-gnu, and where version 4 of mbedTLS is installed,
# which no registry has: MBEDTLS_4=DIRECTORY, with include/ and lib/.
make="${MAKE:-make} --no-print-directory"
logs=build/matrix
passed=0
failed=0
unset MAKEFLAGS MFLAGS MAKELEVEL # of a make that runs this: the ones below stand for themselves
mkdir -p "$logs" || exit 1
[ $# -gt 0 ] || set -- gcc poll clang m32 s390x aarch64 musl header systems mbedtls mbedtls-2-3 \
    mbedtls-4 openssl

mbedtls_4() {
    [ -d "${MBEDTLS_4-}/include" ] || {
        echo "MBEDTLS_4 names no directory of version 4"
        return 1
    }
    $make BUILD=build/matrix-4 CFLAGS=-g TLS=mbedtls CPPFLAGS="-isystem $MBEDTLS_4/include" \
        LDFLAGS="-L$MBEDTLS_4/lib" TLS_LIBS='-lmbedtls -lmbedx509 -ltfpsacrypto' tls
}

# cell NAME: runs it. What it says last is what it has counted.
cell() {
    case $1 in
    gcc | clang) $make BUILD="build/matrix-$1" CC="$1" all test ;;
    poll) $make BUILD=build/matrix-gcc CC=gcc test-poll ;;
    m32 | musl | s390x | aarch64) $make PORTABLE="$1" portable ;;
    header | systems) $make "$1" ;;
    mbedtls) $make BUILD=build/matrix-gcc CC=gcc TLS=mbedtls tls ;;
    mbedtls-2-3) $make tls-versions ;;
    mbedtls-4) mbedtls_4 ;;
    openssl) $make BUILD=build/matrix-openssl TLS=openssl tls ;;
    *) echo "there is no $1" && return 1 ;;
    esac
}

for name in "$@"; do
    began=$(date +%s)
    cell "$name" >"$logs/$name.log" 2>&1
    status=$?
    sum=$(grep -Ex '[0-9]+ passed, [0-9]+ failed' "$logs/$name.log" | tail -n 1)
    ok=${sum%% *}
    bad=${sum##*, }
    bad=${bad%% *}
    if { [ "$status" -ne 0 ] || [ -z "$sum" ]; } && [ "${bad:-0}" -eq 0 ]; then bad=1; fi
    passed=$((passed + ${ok:-0}))
    failed=$((failed + ${bad:-0}))
    printf '%-12s %5d passed, %d failed  %4d s\n' "$name" "${ok:-0}" "${bad:-0}" \
        $(($(date +%s) - began))
    [ "${bad:-0}" -eq 0 ] || sed 's/^ *//' "$logs/$name.log" |
        grep -aE '^FAIL |error|^[^ ]*:[0-9]+: ' | cut -c1-200 | sed "s/^/    /" | head -n 12
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
