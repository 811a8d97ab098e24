# What the end-to-end checks share: processes known by their ids, waiting for what they say, and one
# line for each check. Sourced by run.sh.

build=$(cd "${REVDIAL_BUILD:-build}" && pwd) || exit 1
export -n REVDIAL_BUILD # the programs warn of variables that are not theirs
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=$build/e2e.$$
passed=0
failed=0
declare -A pid_of     # of the processes that have a name
declare -A address_of # where the exposed addresses and peers.py listen, by name
namespaces=()

# Clients are where the proxy is.
client() { "${proxy_in[@]}" python3 "$here/clients.py" "$@"; }
start_client() { start "$1" "${proxy_in[@]}" python3 "$here/clients.py" "${@:2}"; }
hold_client() { hold_open "$1" "${proxy_in[@]}" python3 "$here/clients.py" "${@:2}"; }

# fail WHY: what a check that fails returns with
fail() {
    why="$*"
    return 1
}

# check NAME FUNCTION ARGUMENT...
# The function leaves its figures in $figures, or says why it failed in $why and returns 1.
check() {
    local name=$1 began=$EPOCHREALTIME took
    shift
    figures=
    why=
    if "$@"; then
        took=$(milliseconds_since "$began")
        printf 'ok   %-48s %6d ms  %s\n' "$name" "$took" "$figures"
        passed=$((passed + 1))
        return 0
    fi
    printf 'FAIL %s: %s\n' "$name" "${why:-$* failed}"
    for name in "${!pid_of[@]}"; do tail -n 3 "$dir/$name.log" | sed "s/^/    $name: /"; done
    failed=$((failed + 1))
    return 1
}

milliseconds_since() { echo $(((${EPOCHREALTIME/[.,]/} - ${1/[.,]/}) / 1000)); }

# ---- processes ----

# What the one before of that name said is in $dir/before.log.
new_output() {
    cat "$dir/$1.out" "$dir/$1.log" >>"$dir/before.log" 2>/dev/null
    : >"$dir/$1.out" >"$dir/$1.log"
}

# start NAME COMMAND...: in the background; its output is $dir/NAME.out, its errors $dir/NAME.log
start() {
    local name=$1
    shift
    new_output "$name"
    "$@" >"$dir/$name.out" 2>"$dir/$name.log" </dev/null &
    pid_of[$name]=$!
}

# hold_open NAME COMMAND...: the same, with a stdin that lets go when let_go NAME is called
hold_open() {
    local name=$1
    shift
    rm -f "$dir/$name.in"
    new_output "$name"
    mkfifo "$dir/$name.in" || return 1
    "$@" >"$dir/$name.out" 2>"$dir/$name.log" <"$dir/$name.in" &
    pid_of[$name]=$!
    exec {fifo}>"$dir/$name.in"
    fifo_of[$name]=$fifo
}
declare -A fifo_of

let_go() {
    local fd=${fifo_of[$1]:-}
    if [ "$fd" ]; then exec {fd}>&-; fi
    unset "fifo_of[$1]"
}

# A process that has ended may have left its id to somebody else's.
is_ours() { jobs -pr | grep -qx "$1"; }

is_running() { [ "${pid_of[$1]:-}" ] && kill -0 "${pid_of[$1]}" 2>/dev/null; }

# nap COUNT: for 20 ms, each time for longer, up to 100 ms, and without a process of its own: a
# question that starts some may be asked for minutes.
exec {never}<> <(:)
nap() {
    local ms=$((1010 + 10 * $1))
    [ $ms -lt 1100 ] || ms=1100
    read -rt "0.${ms:1}" -u "$never" || :
}

# Waits until a process has ended and leaves its exit status in $status. await_end NAME SECONDS
await_end() {
    local pid=${pid_of[$1]} until=$((${EPOCHREALTIME/[.,]/} + $2 * 1000000)) naps=0
    while kill -0 "$pid" 2>/dev/null; do
        if [ "${EPOCHREALTIME/[.,]/}" -gt "$until" ]; then
            fail "$1 (pid $pid) still runs after $2 s"
            return
        fi
        nap $((naps += 1))
    done
    wait "$pid"
    status=$?
    unset "pid_of[$1]"
}

# Ends processes at once, whatever they do.
end_now() {
    local name
    for name in "$@"; do
        [ "${pid_of[$name]:-}" ] || continue
        is_ours "${pid_of[$name]}" && kill -KILL "${pid_of[$name]}" 2>/dev/null
        wait "${pid_of[$name]}" 2>/dev/null
        unset "pid_of[$name]"
        let_go "$name"
    done
}

# Asks processes to end, as their operator would; each must end well. stop NAME...
stop() {
    local name
    for name in "$@"; do
        kill -TERM "${pid_of[$name]}" 2>/dev/null || { fail "$name had died"; return; }
        await_end "$name" 10 || return
        [ "$status" -eq 0 ] || { fail "$name ended with $status"; return; }
    done
}

clean_up() {
    local code=$? pid ns running
    trap - EXIT
    mapfile -t running < <(jobs -pr)
    for pid in "${running[@]}"; do kill -KILL "$pid" 2>/dev/null; done
    for pid in "${running[@]}"; do wait "$pid" 2>/dev/null; done
    for ns in "${namespaces[@]}"; do ip netns del "$ns" 2>/dev/null; done
    if [ "${E2E_KEEP:-}" ]; then echo "kept: $dir"; else rm -rf "$dir"; fi
    exit "$code"
}

# ---- waiting ----

ticks() {
    local name total=0 words
    for name in "$@"; do
        read -ra words <"/proc/${pid_of[$name]}/stat"
        total=$((total + words[13] + words[14]))
    done
    echo "$total"
}

# Waits until processes have used no processor time for a while. until_quiet SECONDS NAME...
until_quiet() {
    local until=$((${EPOCHREALTIME/[.,]/} + $1 * 1000000)) before=-1 now=
    shift
    while now=$(ticks "$@") && [ "$now" != "$before" ]; do
        [ "${EPOCHREALTIME/[.,]/}" -gt "$until" ] && { fail "$* are still busy"; return; }
        before=$now
        sleep 0.3
    done
}

# until_true SECONDS COMMAND...
until_true() {
    local until=$((${EPOCHREALTIME/[.,]/} + $1 * 1000000)) naps=0
    shift
    until "$@"; do
        [ "${EPOCHREALTIME/[.,]/}" -gt "$until" ] && return 1
        nap $((naps += 1))
    done
}

count() { grep -Ec -- "$2" "$dir/$1"; }
has_lines() { [ "$(count "$1" "$2")" -ge "$3" ]; }

# said FILE PATTERN SECONDS [COUNT]: waits until a file has so many such lines
said() {
    if until_true "$3" has_lines "$1" "$2" "${4:-1}"; then return 0; fi
    fail "no '$2' in $1 after $3 s; it ends: $(tail -n 2 "$dir/$1" | tr '\n' ' ')"
}

# ---- the two programs ----

# start_proxy NAME OPTION...: sets $tunnel, and $exposed[] in the order of --expose. A network
# namespace to be in is $proxy_in.
start_proxy() {
    local name=$1
    shift
    start "$name" "${proxy_in[@]}" "$build/revdial-proxy" --listen "${proxy_at:-127.0.0.1:0}" \
        --token-file "$dir/tokens" "$@"
    said "$name.out" '^listening on' 5 || return
    tunnel=$(sed -n '1s/^listening on //p' "$dir/$name.out")
    mapfile -t exposed < <(sed -n 's/^listening on \(.*\) for .*$/\1/p' "$dir/$name.out")
}
proxy_in=()
agent_in=()

# with_clocks COMMAND...: the programs that it starts have clocks that jump
with_clocks() {
    local build_before=$build name
    cc -O1 -D_GNU_SOURCE -shared -fPIC -o "$dir/clock.so" "$here/clock.c" ||
        { fail 'clock.c does not compile'; return; }
    for name in proxy agent; do
        head -c 16 /dev/zero >"$dir/$name.clock"
        printf '#!/bin/sh\nLD_PRELOAD=%s JUMPING_CLOCK=%s exec %s "$@"\n' "$dir/clock.so" \
            "$dir/$name.clock" "$build/revdial-$name" >"$dir/revdial-$name"
        chmod +x "$dir/revdial-$name"
    done
    build=$dir
    "$@"
    status=$?
    build=$build_before
    return $status
}

# jump PROGRAM WALL_SECONDS OTHER_SECONDS: how far its clocks are ahead now
jump() {
    python3 -c 'import struct, sys
with open(sys.argv[1], "r+b") as f:
    f.write(struct.pack("qq", *(int(s) * 10**9 for s in sys.argv[2:])))' "$dir/$1.clock" "$2" "$3"
}

# exposing NAME TARGET...: fills $exposes with options for free ports. A target may be the name of a
# server that was started.
exposing() {
    local name=$1 target
    shift
    exposes=()
    for target in "$@"; do
        exposes+=(--expose "127.0.0.1:0=$name/${address_of[$target]:-$target}")
    done
}

# through ADDRESS OPTION...: nc, where the clients are
through() { "${proxy_in[@]}" timeout 60 nc "${@:2}" "${1%:*}" "${1##*:}"; }

# start_agent NAME OPTION...: registers as "web" unless told otherwise, and waits until it is up.
# It dials $server_url if that is set, else the proxy.
start_agent() {
    start_agent_only "$@" && said "$1.log" 'event=session.up' 5
}

start_agent_only() {
    local name=$1
    shift
    start "$name" "${agent_in[@]}" "$build/revdial-agent" \
        --server "${server_url:-http://$tunnel}" --name web --token-file "$dir/token" "$@"
}

# says PROGRAM STATUS PATTERN OPTION...: it ends with that status and says that
says() {
    local out program=$1 want=$2 pattern=$3
    shift 3
    out=$(timeout 10 "$build/revdial-$program" "$@" 2>&1 </dev/null)
    status=$?
    [ "$status" -eq "$want" ] || { fail "$program $*: ends with $status, not $want: $out"; return; }
    [[ "$out" =~ $pattern ]] || { fail "$program $*: says $out"; return; }
}

# The highest resident set that a process has had, in KiB.
peak_kib() { awk '/^VmHWM:/ { print $2 }' "/proc/${pid_of[$1]}/status"; }

# start_peers NAME FILE [ADDRESS]: fills address_of[]
start_peers() {
    local peer port
    start "$1" "${agent_in[@]}" python3 "$here/peers.py" "$2" ${3:+"$3"}
    said "$1.out" '^upload' 10 || return
    while read -r peer port; do address_of[$peer]=${3:-127.0.0.1}:$port; done <"$dir/$1.out"
}

# What "client read" has put into download.out.
download_is_whole() {
    said download.out '[0-9] (same|different) ' 60 || return
    [[ "$(tail -n 1 "$dir/download.out")" =~ ^$big_bytes\ same\ eof\  ]] ||
        fail "the download ended with: $(tail -n 1 "$dir/download.out")"
}

new_ones_are_refused() { [[ "$(client refused "$1" 2>&1)" =~ ^(reset|ConnectionRefusedError)\  ]]; }

# An echo answers at ADDRESS.
said_by() {
    local got
    got=$(client echo_once "$1" 2>&1)
    [ "$got" = ping ] || fail "$1 says $got"
}

sha256() { sha256sum "$1" | cut -d ' ' -f 1; }

# make_file PATH MEGABYTES: nothing in it repeats, and it takes no longer than to write it
make_file() {
    python3 - "$1" "$2" <<'END_OF_PYTHON'
import os, sys
block = os.urandom(1 << 20)
with open(sys.argv[1], "wb") as f:
    for i in range(int(sys.argv[2])):
        at = i * 1021 % len(block)
        f.write(i.to_bytes(8, "big") + block[at + 8:] + block[:at])
END_OF_PYTHON
}

# start_nginx NAME OPTION...: serves $www, on a port of its own with these options to "listen", and
# logs the client that a PROXY header named. address_of[NAME]
start_nginx() {
    local name=$1 port
    port=$(client port)
    shift
    rm -f "$dir/$name.sock"
    cat >"$dir/$name.conf" <<END_OF_CONFIG
daemon off;
master_process off;
pid $dir/$name.pid;
error_log stderr;
user $(id -un) $(id -gn);
events { worker_connections 4096; }
http {
    log_format client '\$proxy_protocol_addr:\$proxy_protocol_port \$uri';
    access_log $dir/$name.access client;
    sendfile on;
    client_body_temp_path $dir/$name.body;
    proxy_temp_path $dir/$name.proxy;
    fastcgi_temp_path $dir/$name.fastcgi;
    uwsgi_temp_path $dir/$name.uwsgi;
    scgi_temp_path $dir/$name.scgi;
    server {
        listen 127.0.0.1:$port backlog=4096 $*;
        listen unix:$dir/$name.sock;
        root $www;
    }
}
END_OF_CONFIG
    start "$name" nginx -e stderr -c "$dir/$name.conf"
    until_true 5 curl -sf -o /dev/null --unix-socket "$dir/$name.sock" http://x/ ||
        { fail "nginx: $(tail -n 1 "$dir/$name.log")"; return; }
    address_of[$name]=127.0.0.1:$port
}

# start_sshd: on a port of its own at $sshd_at, for who has $dir/id. address_of[sshd]
start_sshd() {
    local port at=${sshd_at:-127.0.0.1}
    port=$(client port)
    rm -f "$dir/host_key" "$dir/id"
    ssh-keygen -q -t ed25519 -N '' -f "$dir/host_key" &&
        ssh-keygen -q -t ed25519 -N '' -f "$dir/id" || { fail "ssh-keygen failed"; return; }
    cp "$dir/id.pub" "$dir/authorized_keys"
    cat >"$dir/sshd_config" <<END_OF_CONFIG
ListenAddress $at:$port
HostKey $dir/host_key
AuthorizedKeysFile $dir/authorized_keys
PidFile none
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
UsePAM no
END_OF_CONFIG
    # sshd wants /run/sshd when it is root; it gets one that only it can see.
    if [ "$(id -u)" -eq 0 ]; then
        start sshd "${proxy_in[@]}" unshare -m sh -c \
            'mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && exec "$@"' \
            sh "$(command -v sshd)" -D -e -f "$dir/sshd_config"
    else
        start sshd "${proxy_in[@]}" "$(command -v sshd)" -D -e -f "$dir/sshd_config"
    fi
    said sshd.log 'Server listening' 5 || return
    address_of[sshd]=$at:$port
}

www=$dir/www
big=$www/big
page='hello from behind the tunnel'
# A page and a big file, whose bytes are known. Runs of one part have the file of the whole run.
make_files() {
    mkdir -p "$www/small" || return
    if [ "${E2E_BIG:-}" ]; then
        ln "$E2E_BIG" "$big" || return
    else
        make_file "$big" 1024 || return
        export E2E_BIG=$big E2E_BIG_SHA
        E2E_BIG_SHA=$(sha256 "$big")
    fi
    big_bytes=$(stat -c %s "$big")
    big_sha=$E2E_BIG_SHA
    echo "$page" >"$www/index.html"
}

# A server whose queue is full: it does not answer those who connect.
start_full() {
    start full python3 -uc 'import signal, socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
s.listen(0)
waiting = [socket.socket() for _ in range(2)]
for c in waiting:
    c.setblocking(False)
    c.connect_ex(s.getsockname())
print("full", s.getsockname()[1])
signal.pause()'
    said full.out '^full' 20 || return
    address_of[full]=127.0.0.1:$(sed 's/^full //' "$dir/full.out")
}

# What an --OPTION of a proxy listens on. front_at OPTION [PROXY]
front_at() { sed -n "s/^listening on \(.*\) for --$1\$/\1/p" "$dir/${2:-proxy}.out" | head -n 1; }

# gets WANT CURL_OPTION...: curl prints that
gets() {
    local got want=$1
    shift
    got=$(curl -sS --max-time 30 "$@" 2>&1)
    [ "$got" = "$want" ] || fail "curl $*: $got"
}

start_http_server() {
    start httpd python3 -u -m http.server --bind 127.0.0.1 --directory "$www" 0
    said httpd.out '^Serving HTTP' 20 || return
    address_of[httpd]=127.0.0.1:$(sed -n 's/.* port \([0-9]*\) .*/\1/p' "$dir/httpd.out")
}

# gRPC's own test server and client: $build/grpc-peer
build_grpc() {
    (cd "$here/grpc" && go build -o "$build/grpc-peer" .) >"$dir/got.log" 2>&1 ||
        fail "$(tail -n 1 "$dir/got.log")"
}

# ---- two machines with a cable ----

proxy_ns=revdial-$$-proxy
agent_ns=revdial-$$-agent

# The proxy's side is 10.77.0.1 on v0, the agent's 10.77.0.2 on v1. What is started from now on by
# start_proxy, start_agent and start_peers is there.
start_cable() {
    [ "$(id -u)" -eq 0 ] || { fail "network namespaces need root"; return; }
    ip netns add "$proxy_ns" && namespaces+=("$proxy_ns") && ip netns add "$agent_ns" &&
        namespaces+=("$agent_ns") &&
        ip link add v0 netns "$proxy_ns" type veth peer name v1 netns "$agent_ns" &&
        ip -n "$proxy_ns" addr add 10.77.0.1/24 dev v0 &&
        ip -n "$agent_ns" addr add 10.77.0.2/24 dev v1 &&
        ip -n "$proxy_ns" link set lo up && ip -n "$agent_ns" link set lo up &&
        ip -n "$proxy_ns" link set v0 up && ip -n "$agent_ns" link set v1 up ||
        { fail "no network namespaces here"; return; }
    proxy_in=(ip netns exec "$proxy_ns")
    agent_in=(ip netns exec "$agent_ns")
}

pull_the_cable() {
    local ns
    for ns in "${namespaces[@]}"; do ip netns del "$ns"; done
    namespaces=()
    proxy_in=()
    agent_in=()
}
