#!/bin/sh
# A proxy and an agent on this machine with a web server behind them, and traffic through all of it.
#     make demo, or REVDIAL_BUILD=build sh tests/demo.sh
# The web server is python3's where there is one, else examples/http_handler.c, which is a backend
# itself (DEMO_SERVER=handler asks for that). Ends with 0 if every byte was the right one.
build=${REVDIAL_BUILD:-build}
dir=$build/demo.$$
name=web
file_bytes=104857600
connections=200
proxy_pid=
agent_pid=
server_pid=

say() { echo "demo: $*"; }

# Waits until a process has written so many lines to a file.     lines_of PID FILE COUNT
lines_of() {
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
        if [ -f "$2" ] && [ "$(wc -l <"$2")" -ge "$3" ]; then return 0; fi
        kill -0 "$1" 2>/dev/null || return 1
        sleep 0.1 2>/dev/null || sleep 1
    done
    return 1
}

# Whatever still runs is ours: three processes, known by their ids.
clean_up() {
    status=$?
    for pid in $agent_pid $proxy_pid $server_pid; do
        kill -KILL "$pid" 2>/dev/null && wait "$pid" 2>/dev/null
    done
    if [ "$status" -ne 0 ]; then tail -n 20 "$dir"/*.log 2>/dev/null; fi
    rm -rf "$dir"
    exit "$status"
}

give_up() {
    say "FAILED: $*"
    exit 1
}

start_proxy() {
    "$build/revdial-proxy" --listen 127.0.0.1:0 --token-file "$dir/token" --wait --drain 2s \
        --expose "127.0.0.1:0=$name" >"$dir/proxy.out" 2>"$dir/proxy.log" &
    proxy_pid=$!
    lines_of $proxy_pid "$dir/proxy.out" 2 || give_up "the proxy did not start"
    tunnel=$(sed -n '1s/^listening on //p' "$dir/proxy.out")
    exposed=$(sed -n '2s/^listening on \(.*\) for .*$/\1/p' "$dir/proxy.out")
    say "revdial-proxy waits for agents on $tunnel, and for clients of $name on $exposed"
}

# python3 -m http.server, but with a port of its own choice and a queue for all connections.
start_python() {
    cat >"$dir/server.py" <<'END'
import functools, http.server, sys
http.server.ThreadingHTTPServer.request_queue_size = 512
pages = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), pages)
print("127.0.0.1:%d" % server.server_address[1], flush=True)
server.serve_forever()
END
    python3 "$dir/server.py" "$dir/www" >"$dir/server.out" 2>"$dir/server.log" &
    server_pid=$!
    lines_of $server_pid "$dir/server.out" 1 || give_up "python3 did not start"
    target=$(cat "$dir/server.out")
    "$build/revdial-agent" --server "http://$tunnel" --name $name --token-file "$dir/token" \
        --target "$target" --drain 2s >"$dir/agent.log" 2>&1 &
    agent_pid=$!
    say "revdial-agent dials it and leads to $target, the web server of python3"
}

start_handler() {
    target=
    REVDIAL_TOKEN=$(cat "$dir/token") "$build/examples/http_handler" "http://$tunnel" \
        >"$dir/agent.log" 2>&1 &
    agent_pid=$!
    say "build/examples/http_handler dials it and is the web server itself"
}

# Stops a program as its operator would; it must agree.     stop PID NAME
stop() {
    kill -TERM "$1" || give_up "$2 had died"
    wait "$1"
    code=$?
    [ "$code" -eq 0 ] || [ "$code" -eq 143 ] || give_up "$2 ended with $code"
}

checksum() { cksum <"$1"; }

fetch() { timeout 20 "$build/demo_client" get "$1" "$2"; }

trap clean_up EXIT
trap 'exit 1' HUP INT TERM
rm -rf "$dir"
mkdir -p "$dir/www/bytes" || exit 1
${CC:-cc} -std=c11 -O2 -o "$build/demo_client" tests/demo_client.c || give_up "no C compiler"
(umask 077 && od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$dir/token")

"$build/demo_client" make "$dir/www/bytes/$file_bytes" $file_bytes || exit 1
start_proxy
if [ "$DEMO_SERVER" != handler ] && python3 -c 'import http.server' 2>/dev/null; then
    echo "<!doctype html><title>revdial</title><p>Hello from behind the tunnel." \
        >"$dir/www/index.html"
    start_python
else
    start_handler
fi

fetch "$exposed/" "$dir/page" >"$dir/got" || give_up "no page"
grep -q '<title>revdial</title>' "$dir/page" || give_up "not our page"
say "a page through the tunnel: $(sed 's/<[^>]*>/ /g' "$dir/page" | tr -s ' ')"

if [ "$target" ]; then
    fetch "$target/bytes/$file_bytes" "$dir/direct" >"$dir/got" ||
        give_up "no file without the tunnel"
    say "100 MB without the tunnel: $(cat "$dir/got")"
    rm -f "$dir/direct"
fi
fetch "$exposed/bytes/$file_bytes" "$dir/file" >"$dir/got" || give_up "no file"
say "100 MB through the tunnel: $(cat "$dir/got")"
want=$(checksum "$dir/www/bytes/$file_bytes")
[ "$(checksum "$dir/file")" = "$want" ] || give_up "the file is not the same"
say "the checksums agree: $want"

timeout 20 "$build/demo_client" many $connections "$exposed/" "$dir/page" >"$dir/got" ||
    give_up "not all of $connections connections worked"
say "$(cat "$dir/got")"

stop "$agent_pid" "the agent"
agent_pid=
stop "$proxy_pid" "the proxy"
proxy_pid=
say "both have stopped; everything was as it should be"
