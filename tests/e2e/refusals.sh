# A dial that fails says why: in the proxy's log, and to its client, by RST. Another transfer on the
# same session does not notice. In network namespaces, where a black hole and a name server are
# ours.

connect_timeout_ms=700
dial_timeout_ms=4000

# The agent's side has a name server that knows no name, and a neighbour that does not exist.
start_refusals() {
    start_cable || return
    start names "${agent_in[@]}" python3 "$here/peers.py" names
    said names.out ready 5 || return
    echo 'nameserver 127.0.0.1' >"$dir/resolv.conf"
    ip -n "$agent_ns" neigh add 10.77.0.66 lladdr 02:00:00:00:00:66 dev v1 nud permanent
    ip -n "$agent_ns" neigh add 10.77.0.67 lladdr "$(mac_of v0)" dev v1 nud permanent
    agent_in+=(sh -c 'mount --bind "$0" /etc/resolv.conf && exec "$@"' "$dir/resolv.conf")
    start_peers peers "$big" || return
    exposing web source 127.0.0.1:9 no.such.host:80 127.0.0.2:80 10.77.0.66:80 10.99.0.1:80
    proxy_at=10.77.0.1:7000 start_proxy proxy --dial-timeout ${dial_timeout_ms}ms --drain 2s \
        --log-level debug "${exposes[@]}" --expose 127.0.0.1:0=nobody \
        --expose 127.0.0.1:0=slow/10.77.0.66:80 --expose 127.0.0.1:0=slow/10.77.0.67:80 || return
    start_agent agent --insecure-cleartext --connect-timeout ${connect_timeout_ms}ms \
        --allow '127.0.0.1:*' --allow '*.such.host:80' --allow '10.77.0.66:80' \
        --allow '10.99.0.0/16:80' || return
    start_agent patient --name slow --insecure-cleartext --connect-timeout 20s \
        --allow '10.77.0.0/24:80' || return
    start_client reader read "${exposed[0]}" "$big" 40000000
    said reader.out '^reading' 10
}

mac_of() { ip -n "$proxy_ns" -o link show "$1" | sed 's/.*link.ether \([^ ]*\).*/\1/'; }

# is_refused ADDRESS PATTERN: the client gets RST, the log has the reason
is_refused() {
    local got lines
    lines=$(count proxy.log "event=dial.failed.*$1")
    got=$(client refused "$1" 2>&1)
    said proxy.log "event=dial.failed.*$1" 2 $((lines + 1)) || return
    figures=$(sed -n "s/.*event=dial.failed.* listen=$1 .*reason=\"\(.*\)\"/\1/p" \
        "$dir/proxy.log" | tail -n 1)
    [[ "$got" =~ ^reset\  ]] || { fail "the client got: $got ($figures)"; return; }
    [[ "$figures" =~ $2 ]] || { fail "the log says: $figures"; return; }
    figures="$figures, after ${got#* } ms"
}

refusals_are_local() {
    is_running reader || { fail "the transfer ended: $(tail -n 1 "$dir/reader.out")"; return; }
    [ "$(count proxy.log event=session.down)" -eq 0 ] || fail "a session went down"
}

# Connections of the agent's side that wait for an answer to SYN. syn_sent ADDRESS
syn_sent() { ip netns exec "$agent_ns" ss -tnH state syn-sent dst "$1" | wc -l; }
connects() { [ "$(syn_sent "$1")" -eq "$2" ]; }

abort_is_passed_on() {
    local since failed
    failed=$(count proxy.log event=dial.failed)
    hold_client leaver hold "${exposed[7]}" 5 pending
    until_true 5 connects 10.77.0.66 5 || { fail "$(syn_sent 10.77.0.66) of 5 connect"; return; }
    since=$EPOCHREALTIME
    let_go leaver
    until_true 2 connects 10.77.0.66 0 ||
        { fail "$(syn_sent 10.77.0.66) still connect 2 s later"; return; }
    said proxy.log "level=debug event=client.gone.*${exposed[7]}" 2 5 ||
        { fail "$(count proxy.log event=client.gone) of 5 are logged as gone"; return; }
    [ "$(count proxy.log event=dial.failed)" -eq "$failed" ] ||
        { fail "who left is logged as a failure"; return; }
    figures="gone $(milliseconds_since "$since") ms later"
}

dial_timeout_is_passed_on() {
    is_refused "${exposed[7]}" 'timed out' || return
    until_true 1 connects 10.77.0.66 0 || fail "the agent still connects 1 s later"
}

# A client that has finished sending still waits for its answer: the connect succeeds late, once
# somebody has the address.
finish_is_not_an_abort() {
    local got
    start asker "${proxy_in[@]}" bash -c 'exec nc -N -w 20 "$0" "$1" <<<question' \
        "${exposed[8]%:*}" "${exposed[8]##*:}"
    until_true 5 connects 10.77.0.67 1 || { fail "nobody connects"; return; }
    start answerer ip netns exec "$proxy_ns" python3 "$here/clients.py" answer 80 \
        "ip addr add 10.77.0.67/32 dev v0"
    said asker.out . 10 || return
    got=$(cat "$dir/asker.out")
    [ "$got" = "answer to question" ] || fail "the client got '$got'"
}

waiting_client_sees_an_error() {
    start_client waiter refused "${exposed[7]}"
    until_true 5 connects 10.77.0.66 1 || { fail "nobody connects"; return; }
    end_now proxy
    said waiter.out . 5 || return
    [[ "$(cat "$dir/waiter.out")" =~ ^reset\  ]] || fail "it saw $(cat "$dir/waiter.out")"
}

check 'the namespaces, a name server and servers are ready' start_refusals || return
check 'nobody listens' is_refused "${exposed[1]}" 'refused the connection'
check 'no such host' is_refused "${exposed[2]}" 'does not resolve'
check 'not on the allow list' is_refused "${exposed[3]}" 'allow list'
check 'no answer' is_refused "${exposed[4]}" 'connecting to the target timed out'
check 'no route' is_refused "${exposed[5]}" 'unreachable'
check 'no agent' is_refused "${exposed[6]}" 'no backend of that name'
check 'the dial times out before the connect' dial_timeout_is_passed_on
check 'a client that aborts ends its connect' abort_is_passed_on
check 'a client that finishes sending does not' finish_is_not_an_abort
check 'the transfer beside them goes on' refusals_are_local
end_now reader
check 'kill -9 of the proxy while a client waits' waiting_client_sees_an_error
check 'the agents end well' stop agent patient
pull_the_cable
