# The forward direction: clients beside the agent, targets beside the proxy.

# forward_of TARGET: where the agent listens for it
forward_of() { sed -n "s,^listening on \(.*\) for $1\$,\1,p" "$dir/agent.out"; }

open_forward() {
    echo "allow = ${address_of[nginx]}" >"$dir/forward.conf"
    start_proxy proxy --config "$dir/forward.conf" --access-log || return
    start_agent agent --forward "127.0.0.1:0=${address_of[nginx]}" \
        --forward 127.0.0.1:0=127.0.0.1:1 \
        --forward "unix:$dir/forward.sock=${address_of[nginx]}" || return
    said agent.out '^listening on unix' 1
}

pages_come_through() {
    local at
    at=$(forward_of "${address_of[nginx]}" | head -n 1)
    curl -sS -m 20 "http://$at/" | cmp - "$www/index.html" || { fail "no page"; return; }
    curl -sS -m 20 --unix-socket "$dir/forward.sock" http://x/ | cmp - "$www/index.html" ||
        { fail "no page through the Unix socket"; return; }
    said proxy.log "event=forward.open name=web client=127.0.0.1:[0-9]* target=127.0.0.1:" 1
}

# More than dial at one time.
many_at_once() {
    local at
    at=$(forward_of "${address_of[nginx]}" | head -n 1)
    figures=$(curl -sS -m 60 -Z --parallel-max 200 -o /dev/null -w '%{http_code}\n' \
        "http://$at/?[1-200]" 2>"$dir/curl.err" | grep -c 200)
    [ "$figures" -eq 200 ] || fail "$figures of 200: $(tail -n 1 "$dir/curl.err")"
}

# was_refused REASON COUNT: a client of the second port sees an error, and both ends say why
was_refused() {
    curl -sS -m 20 -o /dev/null "http://$(forward_of 127.0.0.1:1)/" 2>"$dir/curl.err" &&
        { fail 'an answer'; return; }
    grep -Eq 'reset|Could' "$dir/curl.err" || { fail "$(cat "$dir/curl.err")"; return; }
    said proxy.log "event=forward.refused name=web client=.* target=127.0.0.1:1 .*$1" 5 "$2" &&
        said agent.log "event=forward.failed client=.* target=127.0.0.1:1 .*$1" 5 "$2"
}

refusals_say_why() {
    was_refused 'allow list' 1 || return
    echo 'allow = 127.0.0.0/8:1-2' >>"$dir/forward.conf"
    kill -HUP "${pid_of[proxy]}"
    said proxy.log 'event=proxy.reload' 5 || return
    was_refused 'target refused' 1 || return
    echo 'allow = 127.0.0.1' >>"$dir/forward.conf"
    kill -HUP "${pid_of[proxy]}"
    said proxy.log 'event=config.refused .*port' 5 || return
    echo >"$dir/forward.conf"
    kill -HUP "${pid_of[proxy]}"
    said proxy.log 'event=proxy.reload' 5 3 || return
    was_refused 'allow list' 2
}

# As many streams as an agent may open are what the flood limits of its session scale with.
streams_are_few() {
    local got
    got=$(curl -si --max-time 1 -H 'Connection: Upgrade' -H 'Upgrade: revdial' \
        -H 'Revdial-Version: 1' -H 'Revdial-Features: rstcode, streams=65536' \
        -H 'Revdial-Name: few' -H "Authorization: Bearer $token" "http://$tunnel/revdial" |
        grep -a '^Revdial-Features')
    [[ "$got" =~ streams=4096 ]] || fail "it says $got"
}

agent_ends() {
    stop agent || return
    [ ! -e "$dir/forward.sock" ] || fail 'the socket has stayed'
}

# forwarding NAME ADDRESS: a proxy
forwarding() {
    start "$1" "$build/revdial-proxy" --listen "$2" --token-file "$dir/tokens" \
        --allow "${address_of[nginx]}"
    said "$1.out" '^listening on' 5
}

# The first proxy has not answered the dial of a client yet.
lost_proxy_is_followed() {
    local second at
    second=127.0.0.1:$(client port)
    forwarding first 127.0.0.1:0 || return
    at=$(sed 's/^listening on //' "$dir/first.out")
    start both "$build/revdial-agent" --server "http://$at" --server "http://$second" --name web \
        --token-file "$dir/token" --target 127.0.0.1:9 --forward "127.0.0.1:0=${address_of[nginx]}"
    said both.log event=session.up 5 || return
    at=$(sed -n 's/^listening on \(.*\) for .*$/\1/p' "$dir/both.out")
    kill -STOP "${pid_of[first]}"
    start page curl -sS -m 20 "http://$at/"
    sleep 0.3
    forwarding second "$second" && said both.log event=session.up 10 2 || return
    end_now first
    await_end page 20
    cmp "$dir/page.out" "$www/index.html" || { fail "no page: $(cat "$dir/page.log")"; return; }
    end_now both second
}

wrong_forwards_are_usage() {
    says agent 2 'ADDRESS=TARGET' --server http://x --name web --token-file "$dir/token" \
        --forward 8080 || return
    says agent 2 'TARGET is HOST:PORT' --server http://x --name web --token-file "$dir/token" \
        --forward 8080=x || return
    says agent 2 'HOST:PORT' --server http://x --name web --token-file "$dir/token" \
        --forward x=x:80 || return
    says agent 4 'in use' --server http://x --name web --token-file "$dir/token" \
        --forward "${address_of[nginx]}=x:80"
}

check 'nginx is ready' start_nginx nginx
check 'a proxy with --allow and an agent with --forward' open_forward
check 'pages come through' pages_come_through
check 'two hundred clients at once' many_at_once
check 'a client that is refused sees an error; both say why' refusals_say_why
check 'an agent may open 4,096 streams' streams_are_few
check 'the agent ends, and its socket goes' agent_ends
check 'a client whose proxy is lost before it answers gets the other one' lost_proxy_is_followed
check 'a --forward that is none is refused' wrong_forwards_are_usage
