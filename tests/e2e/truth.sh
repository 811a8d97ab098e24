# An end that is not the peer's EOF never looks like one, and a peer that says nothing any more is
# noticed within keepalive + dead-after, also when no FIN arrives.

keepalive_ms=500
dead_after_ms=1000
notice_ms=$((keepalive_ms + dead_after_ms + 1000)) # one second for a busy machine
back_ms=10000 # after a short outage; backoff is at most 0.5, 1, 2, 4 s in a row
sent=$big
rate=40000000 # bytes a second: 1 GiB takes 26 s, so that a kill comes in the middle
. "$here/transfers.sh"

liveness=(--keepalive ${keepalive_ms}ms --dead-after ${dead_after_ms}ms)

# The same ports after a restart: the agent and the clients know them.
start_truth() {
    [ "${truth_port:-}" ] || truth_port=$(client port)
    [ "${truth_source:-}" ] || truth_source=$(client port)
    [ "${truth_sink:-}" ] || truth_sink=$(client port)
    is_running peers || start_peers peers "$big" || return
    proxy_at=127.0.0.1:$truth_port start_proxy proxy "${liveness[@]}" \
        --expose "$truth_source=web/${address_of[source]}" \
        --expose "$truth_sink=web/${address_of[sink]}" \
        --expose "127.0.0.1:0=web/${address_of[echo]}" || return
    is_running agent || start_truth_agent
}

start_truth_agent() { start_agent agent "${liveness[@]}" --allow '127.0.0.1:*'; }

agent_is_killed() {
    start_transfers || return
    end_now agent
    each_end_sees_an_error
}

proxy_is_killed() {
    start_transfers || return
    end_now proxy
    each_end_sees_an_error
}

proxy_comes_back() {
    local since=$EPOCHREALTIME
    start_truth && back_within $back_ms "$since"
}

# is_stopped NAME OTHER LINE: OTHER says LINE in time; then NAME goes on, and all works again
is_stopped() {
    local before since noticed
    start_transfers || return
    before=$(count "$2.log" "$3")
    since=$EPOCHREALTIME
    kill -STOP "${pid_of[$1]}"
    said "$2.log" "$3" 10 $((before + 1))
    noticed=$(milliseconds_since "$since")
    kill -CONT "${pid_of[$1]}"
    [ "$noticed" -le $notice_ms ] || { fail "${why:-noticed after $noticed ms}"; return; }
    each_end_sees_an_error && back_within $((back_ms + noticed)) "$since" &&
        figures="noticed after $noticed ms, $figures"
}

# ---- the same with a cable between them ----

start_net() {
    start_cable || return
    start_peers peers "$big" || return
    exposing web source sink echo
    proxy_at=10.77.0.1:7000 start_proxy proxy "${liveness[@]}" "${exposes[@]}" || return
    start_agent agent "${liveness[@]}" --insecure-cleartext --allow '127.0.0.1:*'
}

cable_is_out() {
    local down retries since p a
    start_transfers || return
    down=$(count proxy.log event=session.down)
    retries=$(count agent.log event=link.retry)
    since=$EPOCHREALTIME
    ip -n "$proxy_ns" link set v0 down
    said proxy.log event=session.down 10 $((down + 1))
    p=$(milliseconds_since "$since")
    said agent.log event=link.retry 10 $((retries + 1))
    a=$(milliseconds_since "$since")
    [ "$p" -le $notice_ms ] && [ "$a" -le $notice_ms ] ||
        { fail "the proxy noticed after $p ms, the agent after $a ms at most"; return; }
    each_end_sees_an_error || return
    figures="the proxy noticed after $p ms, the agent after $a ms at most"
}

cable_is_in() {
    local since=$EPOCHREALTIME
    ip -n "$proxy_ns" link set v0 up
    back_within $back_ms "$since"
}

check 'proxy, agent and servers are ready' start_truth || return
check 'kill -9 of the agent in mid-transfer' agent_is_killed
check 'another agent serves' start_truth_agent
check 'kill -9 of the proxy in mid-transfer' proxy_is_killed
check 'another proxy, and the agent is back' proxy_comes_back
check 'SIGSTOP of the agent' is_stopped agent proxy event=session.down
check 'SIGSTOP of the proxy' is_stopped proxy agent event=link.retry
check 'proxy and agent end well' stop agent proxy
end_now peers
check 'two network namespaces and a cable are ready' start_net
check 'the cable is pulled out' cable_is_out
check 'the cable is put in, and the agent is back' cable_is_in
check 'proxy and agent end well' stop agent proxy
pull_the_cable
