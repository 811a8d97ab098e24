#!/bin/sh
# Builds suites with a sanitizer and runs them.     make asan, tsan, yields
#     sanitize.sh KIND FLAGS COMPILER SUITES [COMPILER SUITES]...
# Each compiler builds its suites in build/KIND-COMPILER; but for asan the first one that can is
# enough.
# A compiler that is not here or that lacks the runtime is passed over, unless CI=true. Suites with
# threads are not optimised: compiling would take longer than they do. Reports need lines alone.
kind=$1
flags=$2
shift 2
built=
programs=
while [ $# -ge 2 ]; do
    cc=$1
    suites=$2
    shift 2
    if [ "$kind" != asan ] && [ "$built" ]; then break; fi
    if ! echo 'int main(void) { return 0; }' | $cc $flags -o /dev/null -x c - 2>/dev/null; then
        echo "$cc cannot link with $flags"
        if [ "$CI" = true ]; then exit 1; else continue; fi
    fi
    dir=build/$kind-$cc
    goals=
    for suite in $suites; do goals="$goals $dir/$suite"; done
    ${MAKE:-make} --no-print-directory BUILD="$dir" CC="$cc" \
        CFLAGS="-g1 -fno-omit-frame-pointer $flags" \
        TEST_CFLAGS="-O1 -g1 -fno-omit-frame-pointer $flags" $goals || exit 1
    built="$built $cc"
    programs="$programs $goals"
done
if [ -z "$built" ]; then exit 1; fi
RUN_TIMEOUT=900 exec sh tests/run.sh $programs
