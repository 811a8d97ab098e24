#!/bin/sh
# What one frame costs in the engine: instructions, which repeat whatever else the machine does, and
# frames per second, which do not.
#     tests/bench/engine.sh [JOB...]          wants build/bench/engine
# Instructions are those of COUNT frames more, divided by COUNT: two runs of valgrind, subtracted.
# `rep movsb` would count as one for each byte that it copies, so libc is asked not to use it.
program=${REVDIAL_BUILD:-build}/bench/engine
count=${BENCH_FRAMES:-20000}
if [ $# -eq 0 ]; then
    set -- in64 in64-1000 in64-idle in64-peek out64 out64-1000 out64-idle in16k in16k-peek out16k \
        out16k-place
fi

instructions() {
    GLIBC_TUNABLES=glibc.cpu.x86_rep_movsb_threshold=10000000 \
        valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" "$@" 2>&1 >/dev/null |
        sed -n 's/.*Collected *: *//p'
}

"$program" memory 10000 || exit 1
for job in "$@"; do
    line=$("$program" "$job" 2000000) || exit 1
    each=
    if command -v valgrind >/dev/null; then
        few=$(instructions "$job" "$count")
        many=$(instructions "$job" $((2 * count)))
        each=" instructions=$(awk "BEGIN { printf \"%.1f\", ($many - $few) / $count }")"
    fi
    echo "${line%% what=*}$each what=${line#* what=}"
done
