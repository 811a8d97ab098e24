# Four machines: clients, the proxy, a router with NAT, and a private network with a name server of
# its own. The certificates and the way in are those of konnectivity's demo.
#
#   client 10.81.0.2 ── 10.81.0.1 proxy 10.82.0.1 ── 10.82.0.2 router 10.83.0.1 ── 10.83.0.2 private

certs=$dir/networks
at=(ip netns exec)
client_ns=rvd-$$-client
public_ns=rvd-$$-public
router_ns=rvd-$$-router
private_ns=rvd-$$-private

# cable FROM ADDRESS TO ADDRESS: each end has the name of the other machine
cable() {
    local from=${1#rvd-*-} to=${3#rvd-*-}
    ip link add "$to" netns "$1" type veth peer name "$from" netns "$3" &&
        ip -n "$1" addr add "$2/24" dev "$to" && ip -n "$3" addr add "$4/24" dev "$from" &&
        ip -n "$1" link set "$to" up && ip -n "$3" link set "$from" up
}

# The proxy even knows the way to the private network; the router lets nobody in.
start_networks() {
    local ns
    for ns in "$client_ns" "$public_ns" "$router_ns" "$private_ns"; do
        ip netns add "$ns" && namespaces+=("$ns") && ip -n "$ns" link set lo up ||
            { fail 'no network namespaces here'; return; }
    done
    cable "$client_ns" 10.81.0.2 "$public_ns" 10.81.0.1 &&
        cable "$public_ns" 10.82.0.1 "$router_ns" 10.82.0.2 &&
        cable "$router_ns" 10.83.0.1 "$private_ns" 10.83.0.2 &&
        ip -n "$public_ns" route add 10.83.0.0/24 via 10.82.0.2 &&
        ip -n "$private_ns" route add default via 10.83.0.1 || { fail 'no cables'; return; }
    "${at[@]}" "$router_ns" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward' || return
    "${at[@]}" "$router_ns" nft -f - <<'END_OF_RULES' || fail 'nft does not work here'
table ip nat {
    chain out { type nat hook postrouting priority 100; oifname "public" masquerade; }
}
table ip in {
    chain forward {
        type filter hook forward priority 0; policy accept;
        iifname "public" ct state new reject
    }
}
END_OF_RULES
}

# What is started in $private knows the names of the private network, and nobody else does.
start_private() {
    echo 'nameserver 10.83.0.2' >"$dir/resolv.conf"
    private=("${at[@]}" "$private_ns" sh -c 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        "$dir/resolv.conf")
    start names "${private[@]}" dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv \
        --no-hosts --listen-address=10.83.0.2 --bind-interfaces --pid-file= --user=root \
        --log-facility=- --address=/private.test/10.83.0.2
    start kubelet "${private[@]}" python3 -u -m http.server --bind 10.83.0.2 --directory "$www" 8000
    start calls "${private[@]}" "$build/grpc-peer" serve private 10.83.0.2:9000
    said names.log 'started' 10 && said kubelet.out '^Serving HTTP' 10 &&
        said calls.out '^serving on' 10 || return
    until_true 10 knows_name "${private[@]}" || { fail 'the name server does not answer'; return; }
    ! knows_name "${at[@]}" "$public_ns" || fail 'the proxy knows the name, too'
}
knows_name() { [[ "$("$@" getent hosts kubelet.private.test)" =~ ^10.83.0.2 ]]; }

start_both() {
    mkdir -p "$certs" && sh "$here/../tls/certs.sh" "$certs" || { fail 'no certificates'; return; }
    echo 'mtls cam-1 DNS:cam-1.cams.test' >"$certs/auth"
    start proxy "${at[@]}" "$public_ns" "$build/revdial-proxy" --listen 10.82.0.1:7000 \
        --auth-file "$certs/auth" --client-ca "$certs/ca.pem" --tls-cert "$certs/server.pem" \
        --tls-key "$certs/server.key" --connect 10.81.0.1:8090 --connect "unix:$dir/front.sock" \
        --route 10.83.0.0/24=cam-1 --route '*.private.test=cam-1' --keepalive 1s --dead-after 3s
    said proxy.out 'for --connect' 5 2 || return
    front=http://10.81.0.1:8090
}

# private_agent CERTIFICATE
private_agent() {
    start agent "${private[@]}" "$build/revdial-agent" --server https://10.82.0.1:7000 \
        --server-name localhost --tls-ca "$certs/ca.pem" --tls-cert "$certs/$1.pem" \
        --tls-key "$certs/$1.key" --name cam-1 --allow '10.83.0.2:8000-9000' \
        --allow '*.private.test:8000-9000' --keepalive 1s --dead-after 3s
}

strangers_stay_out() {
    private_agent cam_unknown
    said proxy.log 'event=session.refused' 10 && said agent.log 'event=link.retry.*TLS' 10 || return
    end_now agent
}

comes_through_nat() {
    private_agent cam
    said agent.log 'event=session.up' 10 || return
    said proxy.log 'event=session.up.*peer=10.82.0.2:' 5 || return
    figures='seen as 10.82.0.2'
}

# from NAMESPACE CURL_OPTION...
from() { "${at[@]}" "$1" curl -sS --max-time 30 "${@:2}" 2>&1; }

nobody_gets_in() {
    local ns
    for ns in "$client_ns" "$public_ns"; do
        [[ "$(from "$ns" http://10.83.0.2:8000/)" =~ ^curl: ]] ||
            { fail "$ns has a way of its own"; return; }
    done
    until_true 5 [ "$(from "$private_ns" http://10.83.0.2:8000/)" = "$page" ] ||
        fail 'there is no page'
}

page=$(cat "$www/index.html")

# gets_page URL
gets_page() {
    local got
    got=$(from "$client_ns" -p -x "$front" "$1")
    [ "$got" = "$page" ] || fail "curl $1: $got"
}

connect_carries_http() {
    gets_page http://10.83.0.2:8000/ && gets_page http://kubelet.private.test:8000/
}

connect_carries_grpc() {
    local got
    got=$(HTTPS_PROXY=$front timeout 60 "${at[@]}" "$client_ns" "$build/grpc-peer" calls \
        grpc.private.test:9000 2>&1)
    figures=$(echo "$got" | tr '\n' ',')
    [ "$figures" = 'unary,client streaming,server streaming,both ways,cancel,deadline,' ] ||
        fail "$(echo "$got" | tail -n 1)"
}

# status_is STATUS URL: of CONNECT
status_is() {
    status=$(from "$client_ns" -o /dev/null -w '%{http_connect}' -p -x "$front" "$2" | tail -c 3)
    [ "$status" = "$1" ] || fail "$2: $status, not $1"
}

refusals_say_why() {
    status_is 403 http://kubelet.private.test:22/ && status_is 502 http://10.83.0.2:8001/ &&
        status_is 403 http://10.83.0.1:8000/
}

unix_socket_is_a_way_in() {
    local got
    got=$("$build/revdial-proxy" dial cam-1/kubelet.private.test:8000 --through \
        "unix:$dir/front.sock" <<<$'GET / HTTP/1.0\r\n\r' | tail -n 1)
    [ "$got" = "$page" ] || fail "it says $got"
}

# Nobody is told: the cable is out, and the packets are gone.
outlives_an_outage() {
    ip -n "$router_ns" link set public down
    said proxy.log 'event=session.down' 15 || return
    status_is 503 http://10.83.0.2:8000/ || return
    ip -n "$router_ns" link set public up
    said agent.log 'event=session.up' 20 2 && said proxy.log 'event=session.up' 10 2 || return
    gets_page http://kubelet.private.test:8000/
}

killed_agent_is_missed() {
    end_now agent
    said proxy.log 'event=session.down' 10 2 && status_is 503 http://10.83.0.2:8000/ || return
    private_agent cam
    said agent.log 'event=session.up' 10 && said proxy.log 'event=session.up' 10 3 &&
        gets_page http://10.83.0.2:8000/
}

check 'nft is here' is_here nft nftables || return
check 'dnsmasq is here' is_here dnsmasq dnsmasq-base || return
check 'the gRPC server and client build' build_grpc || return
check 'four networks, and NAT between two' start_networks || return
check 'a private network with names of its own' start_private
check 'a proxy that asks for certificates' start_both
check 'nobody gets in' nobody_gets_in
check 'a stranger'"'"'s certificate is refused' strangers_stay_out
check 'an agent comes out through NAT' comes_through_nat
check 'HTTP by CONNECT, by address and private name' connect_carries_http
check 'gRPC by CONNECT' connect_carries_grpc
check 'a Unix socket in front' unix_socket_is_a_way_in
check 'refusals say why' refusals_say_why
check 'the router goes, and comes back' outlives_an_outage
check 'the agent is killed, and started again' killed_agent_is_missed
check 'proxy and agent end well' stop agent proxy
end_now names kubelet calls
pull_the_cable
