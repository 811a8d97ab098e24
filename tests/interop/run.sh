#!/bin/sh
# revdial against hashicorp/yamux, each once as the proxy and once as the backend.
#     tests/interop/run.sh       wants build/interop/drive and build/interop/backend (make interop)
# Prints a line per check and "N passed, N failed" at the end. Leaves nothing running.
build=$(cd "${REVDIAL_BUILD:-build}" && pwd)/interop || exit 1
here=$(cd "$(dirname "$0")" && pwd)
token=interop-token
limit=${RUN_TIMEOUT:-200}
passed=0
failed=0
children=

# TERM lets a backend drain; nothing outlives the second signal.
cleanup() {
    for pid in $children; do kill "$pid" 2>/dev/null; done
    for pid in $children; do
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.3
        done
        kill -9 "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
    done
    children=
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM

# add NAME STATUS OUTPUT: shows what a direction printed and counts it
add() {
    echo "-- $1"
    grep -E '^(ok|FAIL) ' "$3"
    last=$(tail -n 1 "$3")
    bad=1
    if echo "$last" | grep -Eqx '[0-9]+ passed, [0-9]+ failed'; then
        passed=$((passed + ${last%% *}))
        bad=${last##*, }
        bad=${bad%% *}
        if [ "$bad" -eq 0 ] && [ "$2" -ne 0 ]; then bad=1; fi
    fi
    if [ "$bad" -ne 0 ]; then
        echo "FAIL $1: exit status $2; the end of both logs:"
        tail -n 20 "$3" "$build"/*.log | sed 's/^/    /'
    fi
    failed=$((failed + bad))
}

rm -f "$build"/*.log "$build"/*.out
if ! (cd "$here/go" && go build -o "$build/peer" .); then
    echo "interop: the Go peer does not build"
    echo "0 passed, 1 failed"
    exit 1
fi

timeout -k 5 "$limit" "$build/drive" "$build/peer" >"$build/drive.out" 2>"$build/drive.log"
add "revdial as the proxy, hashicorp/yamux as the backend" $? "$build/drive.out"

timeout -k 5 "$limit" "$build/peer" proxy --listen 127.0.0.1:0 --token "$token" \
    >"$build/peer.out" 2>"$build/peer.log" &
peer=$!
children=$peer
address=
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    address=$(sed -n 's/^listening on //p' "$build/peer.out")
    if [ "$address" ]; then break; fi
    sleep 0.1
done
"$build/backend" "http://$address" "$token" 2>"$build/backend.log" &
backend=$!
children="$peer $backend"
wait "$peer"
status=$?
children=$backend
add "hashicorp/yamux as the proxy, revdial as the backend" $status "$build/peer.out"
cleanup

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
