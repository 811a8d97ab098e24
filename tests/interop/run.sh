#!/bin/sh
# revdial against other implementations, each once as the proxy and once as the backend:
#   go    hashicorp/yamux on the raw carrier
#   js    libp2p's yamux on WebSockets of the package ws; npm fetches both into build/interop/js
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

# missing NAME WHAT: counts a peer that is not to be had
missing() {
    echo "FAIL $1: $2"
    failed=$((failed + 1))
}

# backend_of NAME PROGRAM OPTION...: their backend, our proxy
backend_of() {
    name=$1
    shift
    timeout -k 5 "$limit" "$build/drive" "$@" >"$build/drive.out" 2>"$build/drive.log"
    add "revdial as the proxy, $name as the backend" $? "$build/drive.out"
}

# proxy_of NAME SCHEME PROGRAM OPTION...: their proxy, our backend
proxy_of() {
    name=$1
    scheme=$2
    shift 2
    timeout -k 5 "$limit" "$@" --token "$token" >"$build/peer.out" 2>"$build/peer.log" &
    peer=$!
    children=$peer
    address=
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        address=$(sed -n 's/^listening on //p' "$build/peer.out")
        if [ "$address" ]; then break; fi
        sleep 0.1
    done
    "$build/backend" "$scheme://$address" "$token" 2>"$build/backend.log" &
    backend=$!
    children="$peer $backend"
    wait "$peer"
    status=$?
    children=$backend
    add "$name as the proxy, revdial as the backend" $status "$build/peer.out"
    cleanup
}

# What npm fetches stays in build/; the versions are those of package.json.
install_js() {
    mkdir -p "$build/js" && cp "$here"/js/* "$build/js/" || return 1
    printf '#!/bin/sh\nexec node "%s/js/peer.mjs" "$@"\n' "$build" >"$build/js/peer"
    chmod +x "$build/js/peer"
    (cd "$build/js" && npm install --no-package-lock --no-audit --no-fund) \
        >"$build/npm.log" 2>&1
}

rm -f "$build"/*.log "$build"/*.out
if (cd "$here/go" && go build -o "$build/peer" .); then
    backend_of hashicorp/yamux "$build/peer"
    proxy_of hashicorp/yamux http "$build/peer" proxy --listen 127.0.0.1:0
else
    missing go 'the Go peer does not build'
fi
if install_js; then
    backend_of 'libp2p-yamux on ws' "$build/js/peer" abrupt
    proxy_of 'libp2p-yamux on ws' ws "$build/js/peer" proxy
else
    missing js "npm cannot install what package.json names: $(tail -n 1 "$build/npm.log")"
fi

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
