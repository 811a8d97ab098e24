#!/bin/sh
# Runs test programs, each bounded in time, and adds up what they say.
#     tests/run.sh PROGRAM...        *.sh are run by sh
# One line per suite, the whole output of those that failed, and a last line "N passed, N failed". A
# suite ends with such a line itself; one that does not, or whose exit status disagrees with it
# (a sanitizer's report at exit, a crash), counts one failure more.
limit=${RUN_TIMEOUT:-100}
passed=0
failed=0
out=$(mktemp) || exit 1
trap 'rm -f "$out"' EXIT
trap 'exit 1' HUP INT TERM

for program in "$@"; do
    name=${program#build/}
    case $program in
    *.sh) set -- sh "$program" ;;
    */*) set -- "$program" ;;
    *) set -- "./$program" ;;
    esac
    began=$(date +%s)
    timeout -k 5 "$limit" "$@" >"$out" 2>&1 </dev/null
    status=$?
    took=$(($(date +%s) - began))
    last=$(tail -n 1 "$out")
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
    passed=$((passed + ok))
    failed=$((failed + bad))
    if [ "$bad" -ne 0 ]; then sed 's/^/    /' "$out"; fi
    printf '%-28s %4d passed, %d failed  %3d s  %s\n' "$name" "$ok" "$bad" "$took" "$problem" |
        sed 's/ *$//'
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
