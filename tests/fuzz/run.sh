#!/bin/sh
# Fuzzes what reads bytes of strangers.    make fuzz, FUZZ_SECONDS=60 make fuzz FUZZ="engine egress"
# FUZZ_SECONDS is for each target, FUZZ_SEED is libFuzzer's, 0 = any. With clang's libFuzzer where
# it is, else the targets mutate their seeds themselves; with sanitizers where they link. What was
# found once and lies in tests/fuzz/found/TARGET-* is replayed first. An input that ends a target is
# left in build/fuzz/TARGET.crash*: move it there with what repairs it. Corpora stay in build/fuzz.
dir=${REVDIAL_BUILD:-build}/fuzz
each=${FUZZ_SECONDS:-20}
jobs=$(nproc 2>/dev/null || echo 2)
if [ $# -eq 0 ]; then
    set -- engine head authorization credentials config egress websocket http_reader fronts admin
fi
flags='-std=c11 -O1 -g1 -Wall -Wextra -Wno-unused-function -D_GNU_SOURCE -I. -Itests'
checks='-fsanitize=address,undefined -fno-sanitize-recover=all'
main='int LLVMFuzzerTestOneInput(const char *p, long n) { return !p && n; }'

links() { echo "$1" | $2 $3 -w -x c -o /dev/null - 2>/dev/null; }

cc=${FUZZ_CC:-clang}
fuzzer=yes
if links "$main" "$cc" "-fsanitize=fuzzer $checks"; then
    flags="$flags -DFUZZ_LIBFUZZER -fsanitize=fuzzer $checks"
else
    cc=${CC:-cc}
    fuzzer=
    if links 'int main(void) { return 0; }' "$cc" "$checks"; then flags="$flags $checks"; fi
fi

# fuzz TARGET: one line
fuzz() {
    here=$dir/$1
    mkdir -p "$here/corpus" "$here/seeds"
    object=$dir/impl.o
    if grep -q REVDIAL_NO_RUNTIME "tests/fuzz/$1.c"; then object=$dir/impl-core.o; fi
    $cc -I"$dir/hollow" $flags -o "$here/fuzz" "tests/fuzz/$1.c" "$object" -pthread \
        >"$here/log" 2>&1 || return
    for file in tests/fuzz/found/"$1"-*; do
        if [ -e "$file" ]; then "$here/fuzz" "$file" >"$here/log" 2>&1 || return; fi
    done
    if [ "$fuzzer" ]; then
        FUZZ_SEEDS=$here/seeds "$here/fuzz" >"$here/log" 2>&1 || return
        "$here/fuzz" -max_total_time="$each" -max_len=4096 -timeout=10 -rss_limit_mb=1024 \
            -seed="${FUZZ_SEED:-0}" \
            -artifact_prefix="$dir/$1." -print_final_stats=1 "$here/corpus" "$here/seeds" \
            >"$here/log" 2>&1 || return
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$here/log")
    else
        FUZZ_CRASH=$dir/$1.crash "$here/fuzz" -seconds="$each" >"$here/log" 2>&1 || return
        runs=$(sed -n 's/ runs$//p' "$here/log")
    fi
    echo "ok $1: $runs runs in $each s"
}

if [ "${1-}" = --one ]; then
    each=$3
    fuzz "$2" && exit
    echo "FAIL $2"
    # what was wrong, where (our own frames of the stack), and the input
    grep -v '^ *#.*fuzzer::' "$dir/$2/log" | tail -n 30 | cut -c1-900 | sed 's/^/    /'
    exit
fi
# The implementation is compiled once for all targets, the core alone once more (see the Makefile).
mkdir -p "$dir/open" "$dir/hollow" || exit 1
LC_ALL=C awk -v open=1 -f tests/hollow.awk revdial.h >"$dir/open/revdial.h"
LC_ALL=C awk -f tests/hollow.awk revdial.h >"$dir/hollow/revdial.h"
compile="$cc $flags -DREVDIAL_IMPLEMENTATION -c -x c $dir/open/revdial.h"
$compile -DREVDIAL_NO_RUNTIME -DREVDIAL_SELF_CHECK -o "$dir/impl-core.o" &
$compile -o "$dir/impl.o" || exit 1
wait $! || exit 1
printf '%s\n' "$@" | xargs -P "$jobs" -I '{}' sh "$0" --one '{}' "$each" | tee "$dir/said"
passed=$(grep -c '^ok ' "$dir/said")
echo "$passed passed, $(($# - passed)) failed"
[ "$passed" -eq $# ]
