#!/bin/sh
# Secrets under valgrind: nothing but a verdict depends on their bytes. And the same with headers in
# which they are compared as one should not: each must be noticed. Then the instructions of checks
# are counted: they must not tell which user has how many rows of which form.     make timing
dir=${REVDIAL_BUILD:-build}/timing
cc=${CC:-cc}
passed=0
failed=0
mkdir -p "$dir" || exit 1
if ! command -v valgrind >/dev/null; then
    echo "valgrind is missing"
    echo "0 passed, 1 failed"
    exit 1
fi

# verdicts OPTIMISATION INCLUDES: functions keep their names, and the compiler puts nothing in place
# of memcmp.
verdicts() {
    $cc -std=c11 -g "$1" -fno-inline -fno-builtin -D_GNU_SOURCE -I"$2" -I. -Itests \
        -o "$dir/verdicts" tests/timing/verdicts.c -pthread || exit 1
    valgrind -q --error-exitcode=9 --suppressions=tests/timing/verdicts.supp "$dir/verdicts" \
        >"$dir/log" 2>&1
}

count() {
    if [ "$2" -eq "$3" ]; then
        passed=$((passed + 1))
    else
        echo "FAIL $1: exit status $2, not $3"
        tail -n 20 "$dir/log" | sed 's/^/    /'
        failed=$((failed + 1))
    fi
}

for level in -O0 -O2; do
    verdicts $level .
    count "secrets at $level" $? 0
done

# noticed FUNCTION FROM TO: with a header in which that function is otherwise
noticed() {
    sed "/^static int $1(/,/^}/s/$2/$3/" revdial.h >"$dir/revdial.h"
    if cmp -s revdial.h "$dir/revdial.h"; then
        echo "FAIL $1 is not what it was: nothing to replace"
        failed=$((failed + 1))
    fi
    verdicts -O0 "$dir"
    count "$1 with $3" $? 9
    rm -f "$dir/revdial.h"
}
noticed rvd_base_equal 'return difference == 0' 'return memcmp(a, b, len) == 0'
noticed rvd_base_equal 'difference |= ' 'if (x[i] != y[i]) return 0; else difference |= '
noticed rvd_auth_proves rvd_base_equal '!memcmp'
noticed rvd_auth_proves_digest rvd_base_equal '!strncmp'
noticed rvd_auth_nonce_take rvd_base_equal '!memcmp'
noticed rvd_engine_is_proved rvd_base_equal '!memcmp'

# instructions SCHEME USER SECRET: of their check alone
instructions() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect=revdial_auth_verify \
        "$dir/work" "$@" 2>&1 | sed -n 's/.*Collected : //p'
}

# same_work SCHEME NAME: users of all kinds, and one that does not exist, within 1 %
same_work() {
    want=$(instructions "$1" nobody wrong)
    for user in plain hashed longer twice thrice plaim; do
        got=$(instructions "$1" "$user" wrong)
        [ "$((got * 100))" -gt "$((want * 99))" ] && [ "$((got * 100))" -lt "$((want * 101))" ]
        count "$2 check of $user: $got instructions, of nobody: $want" $? 0
    done
}
: >"$dir/log"
for level in -O0 -O1 -O2; do
    $cc -std=c11 -g "$level" -Wl,-z,now -I. -o "$dir/work" tests/timing/work.c || exit 1
    same_work 2 BASIC
    same_work 4 DIGEST
    want=$(instructions 1 '' t0kem)
    got=$(instructions 1 '' wrong)
    [ "$want" -gt 0 ] && [ "$((got * 100))" -gt "$((want * 99))" ] &&
        [ "$((got * 100))" -lt "$((want * 101))" ]
    count "BEARER check: $got instructions, nearly right: $want" $? 0
done

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
