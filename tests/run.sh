#!/bin/sh
# Runs test programs, each bounded in time, and adds up what they say.
#     tests/run.sh PROGRAM...        *.sh are run by sh
# RUN_JOBS run at once, by default as many as there are processors. RUN_TIMEOUT, in seconds, is ten
# times what the slowest suite takes alone: other work on the machine is no failure.
# One line per suite, the whole output of those that failed, and a last line "N passed, N failed". A
# suite ends with such a line itself; one that does not, or whose exit status disagrees with it
# (a sanitizer's report at exit, a crash), counts one failure more.
limit=${RUN_TIMEOUT:-300}

# run_one PROGRAM FILE: the line in FILE begins with what it counted.
run_one() {
    name=${1#build/}
    case $1 in
    *.sh) set -- "$2" sh "$1" ;;
    */*) set -- "$2" "$1" ;;
    *) set -- "$2" "./$1" ;;
    esac
    out=$1
    shift
    began=$(date +%s)
    timeout -k 5 "$limit" "$@" >"$out.log" 2>&1 </dev/null
    status=$?
    took=$(($(date +%s) - began))
    last=$(tail -n 1 "$out.log")
    problem=
    ok=0
    bad=0
    if echo "$last" | grep -Eqx '[0-9]+ passed, [0-9]+ failed'; then
        ok=${last%% *}
        bad=${last##*, }
        bad=${bad%% *}
        if [ "$bad" -eq 0 ] && [ "$status" -ne 0 ]; then problem="exit status $status"; fi
    else
        problem="did not finish (exit status $status)"
    fi
    if [ "$status" -eq 124 ]; then problem="stopped after $limit s"; fi
    if [ "$problem" ]; then bad=$((bad + 1)); fi
    {
        if [ "$bad" -ne 0 ]; then sed 's/^/    /' "$out.log"; fi
        printf '%-28s %4d passed, %d failed  %3d s  %s\n' "$name" "$ok" "$bad" "$took" \
            "$problem" | sed 's/ *$//'
    } >"$out.said"
    cat "$out.said"
    echo "$ok $bad" >"$out.sum"
}

if [ "${1-}" = --one ]; then
    run_one "$3" "$2/$(echo "$3" | tr / _)"
    exit
fi

results=$(mktemp -d) || exit 1
trap 'rm -rf "$results"' EXIT
trap 'exit 1' HUP INT TERM
jobs=${RUN_JOBS:-$(nproc 2>/dev/null || echo 2)}
printf '%s\n' "$@" | xargs -P "$jobs" -n 1 sh "$0" --one "$results"
totals=$(find "$results" -name '*.sum' -exec cat {} + |
    awk '{ ok += $1; bad += $2; n++ } END { print ok + 0, bad + 0, n + 0 }')
set -- "$#" $totals
missing=$(($1 - $4))  # a run that was itself cut down
bad=$(($3 + missing))
echo "$2 passed, $bad failed"
[ "$bad" -eq 0 ] && [ "$2" -gt 0 ]
