#!/usr/bin/env bash
# The two programs with real peers: curl, nginx, ssh, nc, stopped readers, killed processes, broken
# networks.     make e2e, or REVDIAL_BUILD=build bash tests/e2e/run.sh [PART...]
#   traffic     bytes through the tunnel are the same at the other end
#   isolation   200 streams whose readers have stopped; 2,000 idle connections
#   truth       an end that is not the peer's EOF never looks like one; dead peers are noticed
#   chaos       processes that stop, links that lose, names that lie, clocks that jump, 1,000 agents
#   trouble     too few descriptors, too little memory, restarts, ends, one name twice
#   refusals    a dial that fails says why, to that client alone
#   fronts      clients that say where they want to go: CONNECT, SOCKS5, TLS, --sockets, dial
#   http        --http: requests by Host, behind nginx and HAProxy, and what must be refused
#   clients     PostgreSQL, redis, a site with HTTP/2, Chromium
#   pool        of two agents of one name one is sick; who gets which client; health checks
#   proxies     several proxies: an agent at all addresses of a name; peers
#   egress      agents that get out through tinyproxy, squid, microsocks, dante, ssh -D
#   forward     --forward of an agent, within --allow of the proxy
#   auth        curl at the proxy's endpoint, files that HUP reads again, where secrets are
#   programs    options, exit codes, signals, PROXY protocol, several agents, secrets
#   config      the configuration file, reloads under load, systemd, upgrades
#   units       systemd's units, a static program in an empty root
#   admin       --admin: health, metrics, status, the page in Chromium
#   doctor      revdial-agent doctor, on what works and on what is broken
#   carriers    Upgrade: revdial and WebSocket through nginx and HAProxy
#   balancers   examples/balancers: three proxies behind HAProxy, nginx and Envoy; one is killed,
#               one added, all restart
#   tls         https:// and wss://, to the proxy and to what terminates TLS before it; certificates
#               as credentials
#   backends    examples/backends: in Python, Go and JavaScript
#   seeds       the pages examples/from-*.md, command by command
#   grpc        gRPC's own test server as a backend, and the channels of examples/grpc
#   networks    four network namespaces: clients, proxy, a router with NAT, a private network
#   limits      clients of a port and of a source, streams and bytes per second of an agent
#   strangers   what balancers pass on from whom they do not know
# Several parts run side by side, as many as there are processors (E2E_JOBS).
# One line for each check; what is missing on this machine is a failed check. Network namespaces
# need root, or sudo without a password. E2E_KEEP=1 keeps logs.
set -u
export LC_ALL=C
if [ "$(id -u)" -ne 0 ] && sudo -n true 2>/dev/null; then
    exec sudo -n REVDIAL_BUILD="${REVDIAL_BUILD:-build}" E2E_KEEP="${E2E_KEEP:-}" bash "$0" "$@"
fi
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
trap clean_up EXIT
trap 'exit 1' HUP INT TERM
rm -rf "$dir"
mkdir -p "$dir" || exit 1

is_here() { command -v "$1" >/dev/null || fail "the package $2 is not installed"; }

PATH=$PATH:/usr/sbin:/sbin
for tool in curl=curl nginx=nginx haproxy=haproxy ssh=openssh-client ssh-keygen=openssh-client \
    sshd=openssh-server rsync=rsync nc=netcat-openbsd ip=iproute2 ss=iproute2 python3=python3 \
    openssl=openssl tinyproxy=tinyproxy microsocks=microsocks squid=squid \
    danted=dante-server; do
    set -- "${tool%=*}" "${tool#*=}" "$@"
    is_here "$1" "$2" || check "$1 is here" is_here "$1" "$2"
    shift 2
done

umask 077
token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
echo "$token" >"$dir/token"
echo "* $token" >"$dir/tokens"

make_files || { echo "FAIL no files to send: is the disk full?"; exit 1; }
parts=("$@")
# All parts: those that the list above names.
[ $# -gt 0 ] || mapfile -t parts < <(sed -n 's/^#   \([a-z]\{1,\}\) .*/\1/p' "$here/run.sh")
# Parts wait more than they work. Each of several is a run of its own, with its own processes, ports
# and directory, and E2E_JOBS of them run side by side.
run_parts() {
    printf '%s\n' "$@" | REVDIAL_BUILD=$build xargs -P "${E2E_JOBS:-$(nproc)}" -I PART \
        bash -c 'bash "$0" "$1" >"$2/$1.part" 2>&1; cat "$2/$1.part"' "$here/run.sh" PART "$dir"
    passed=$(sed -n 's/^\([0-9]*\) passed, [0-9]* failed$/\1 +/p' "$dir"/*.part; echo 0)
    failed=$(sed -n 's/^[0-9]* passed, \([0-9]*\) failed$/\1 +/p' "$dir"/*.part; echo "$failed")
    passed=$((passed))
    failed=$((failed))
    local part
    for part in "$@"; do
        tail -n 1 "$dir/$part.part" | grep -q ' passed, ' && continue
        echo "FAIL the part $part did not finish"
        failed=$((failed + 1))
    done
}

if [ "${#parts[@]}" -gt 1 ]; then
    run_parts "${parts[@]}"
else
    . "$here/${parts[0]}.sh"
    end_now "${!pid_of[@]}"
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
