# Both carriers through nginx and HAProxy.

. "$here/front.sh"

start_carriers() {
    start_nginx nginx && start_peers peers "$big" || return
    exposing web nginx upload sink source
    start_proxy proxy --keepalive 1s --dead-after 5s "${exposes[@]}" || return
    front=127.0.0.1:$(client port)
}

# through_front FRONT SCHEME: an agent comes in by it
through_front() {
    local ups
    start_front "$1" || return
    ups=$(count proxy.log 'event=session.up')
    server_url=$2://$front start_agent agent --keepalive 1s --dead-after 5s \
        --allow '127.0.0.1:*' || return
    said proxy.log 'event=session.up' 5 $((ups + 1)) || return
    figures=$(grep 'event=session.up.*name=web' "$dir/proxy.log" | tail -n 1 |
        grep -o 'carrier=[^ ]*')
    case "$2$figures" in
    ws*carrier=websocket*) ;;
    ws* | *carrier*) fail "it is the other carrier: $figures" ;;
    esac
}

# The front dies in the middle of a transfer: the client is told, and the agent comes back.
front_dies() {
    local ups got
    ups=$(count agent.log 'event=session.up')
    start_client reader read "${exposed[3]}" "$big" 50000000
    said reader.out '^reading' 10 || return
    end_now front
    said reader.out same 10 || return
    got=$(tail -n 1 "$dir/reader.out")
    [[ "$got" =~ ^[0-9]+\ same\ reset\  ]] || { fail "the client saw: $got"; return; }
    start_front "$1" || return
    said agent.log 'event=session.up' 20 $((ups + 1)) || return
    copies
}

# Idle for longer than the front allows: the keepalives are its traffic.
outlives_idleness() {
    local downs
    stop agent && end_now front && start_front "$1" "$2" || return
    server_url=$3://$front start_agent agent --keepalive 1s --allow '127.0.0.1:*' || return
    downs=$(count proxy.log 'event=session.down')
    sleep 4
    [ "$(count proxy.log 'event=session.down')" -eq "$downs" ] || { fail "it went down"; return; }
    curl -sf --max-time 5 -o /dev/null "http://${exposed[0]}/" || fail "no page afterwards"
}

# Without the lines that carry Upgrade on, the agent says what is wrong.
says_stripped() {
    local scheme
    end_now front
    start_front nginx '/proxy_set_header/d' || return
    for scheme in http ws; do
        server_url=$scheme://$front start_agent_only agent --allow '127.0.0.1:*'
        said agent.log 'event=link.retry.*stripped' 5 || return
        stop agent || return
    done
    figures=$(sed -n 's/.*reason="\([^"]*\).*/\1/p' "$dir/agent.log" | head -n 1)
}

declare -A impatient=([haproxy]='s/timeout tunnel 60s/timeout tunnel 2s/'
    [nginx]='s/proxy_pass .*/& proxy_read_timeout 2s; proxy_send_timeout 2s;/')

check 'nginx, servers and a proxy are ready' start_carriers || return
for balancer in haproxy nginx; do
    for scheme in http ws; do
        is="$scheme:// through $balancer"
        check "$is: the agent comes up" through_front $balancer $scheme || continue
        check "$is: 192 MiB down and up" copies
        check "$is: 200 pages at one time" many_pages
        check "$is: a client finishes first" finishes_first
        check "$is: the balancer is killed" front_dies $balancer
        check "$is: an idle session stays" outlives_idleness $balancer \
            "${impatient[$balancer]}" $scheme
        check "$is: the agent ends well" stop agent
        end_now front
    done
done
check 'an Upgrade that got lost is noticed' says_stripped
end_now front
check 'the proxy ends well' stop proxy
