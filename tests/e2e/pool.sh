# Of two agents of one name one is sick: the other one serves all clients, and soon. And who of them
# gets which client.

clients=100
patience_ms=1500

# start_pool PICK: the proxy, and two agents with two targets: an echo, and one that speaks first
start_pool() {
    start_peers peers "$big" || return
    exposing web echo ann
    start_proxy proxy "${exposes[@]}" --pick "$1" || return
    start_agent one --instance one --allow '127.0.0.1:*' &&
        start_agent two --instance two --allow '127.0.0.1:*'
}

# all_are_served ADDRESS FIRST: by whom and how soon is in $figures
all_are_served() {
    local served slowest
    read -r served slowest < <(client rush "$1" "$clients" "$2")
    figures="$served of $clients served, the slowest after $slowest ms"
    [ "$served" = "$clients" ] && [ "$slowest" -le "$patience_ms" ] || fail "$figures"
}

one_freezes() {
    local heard
    all_are_served "$1" "$2" || return
    heard=$figures
    kill -STOP "${pid_of[one]}"
    all_are_served "$1" "$2"
    local code=$?
    kill -CONT "${pid_of[one]}"
    figures="before: $heard; while it is frozen: $figures"
    return $code
}

# At one of them nobody listens where it is to connect to.
one_has_no_target() {
    start_peers peers "$big" || return
    start_proxy proxy --expose 127.0.0.1:0=web --pick "$1" || return
    start_agent one --target "127.0.0.1:$(client port)" &&
        start_agent two --target "${address_of[echo]}" || return
    all_are_served "${exposed[0]}" hello
}

for pick in round-robin least-streams; do
    check "$pick: proxy, agents and servers are ready" start_pool "$pick" || return
    check "$pick: one freezes, clients that wait" one_freezes "${exposed[1]}" ''
    check "$pick: one freezes, clients that speak first" one_freezes "${exposed[0]}" hello
    end_now proxy one two peers
    check "$pick: the target of one refuses" one_has_no_target "$pick"
    end_now proxy one two peers
done

# ---- who gets which client ----

# Two web servers that say who they are, and an agent for each.
start_web() {
    local who
    for who in one two; do
        echo well >"$dir/$who.state"
        start "$who-web" python3 "$here/http_peers.py" who "$who" "$dir/$who.state"
        said "$who-web.out" '^http' 10 || return
        address_of[$who]=127.0.0.1:$(sed -n 's/^http //p' "$dir/$who-web.out")
    done
}

start_web_agents() {
    start_agent one --instance one --target "${address_of[one]}" "$@" &&
        start_agent two --instance two --target "${address_of[two]}" "$@"
}

# start_web_proxy LINE...: its file has these lines; $web is its --expose, $http its --http
start_web_proxy() {
    printf '%s\n' "$@" >"$dir/pool.conf"
    start_proxy proxy --config "$dir/pool.conf" --http 127.0.0.1:0 || return
    said proxy.out 'for --http$' 5 || return
    web=${exposed[0]}
    http=${exposed[-1]}
}

start_picks() {
    start_web && start_web_proxy 'trusted-proxies = 127.0.0.9' \
        '[expose 127.0.0.1:0]' 'name = web' 'pick = client' \
        '[route user.test]' 'name = web' 'pick = header:X-User' \
        '[route *.host.test]' 'name = web' 'pick = host' \
        '[route client.test]' 'name = web' 'pick = client' &&
        start_web_agents
}

ask() { curl -sS --max-time 20 "$@"; }

# keeps COMMAND: for each of 1 to 8 it says the same whenever it is asked, and not for all the same
keeps() {
    local i first='' again=''
    for i in 1 2 3 4 5 6 7 8; do first+=$("$@" "$i"); done
    for i in 1 2 3 4 5 6 7 8; do again+=$("$@" "$i"); done
    figures=$first
    [ "$first" = "$again" ] || { fail "$first, then $again"; return; }
    [[ "$first" == *one* && "$first" == *two* ]] || fail "all go to ${first:0:3}"
}

by_client() { ask --interface "127.0.0.$1" "http://$web/"; }
by_header() { ask -H 'Host: user.test' -H "x-user: u$1" "http://$http/"; }
by_forwarded_for() {
    ask --interface 127.0.0.9 -H "X-Forwarded-For: 10.0.0.9, 10.0.0.$1" -H 'Host: client.test' \
        "http://$http/"
}
by_host() { ask -H "Host: $1.host.test" "http://$http/"; }

# On one connection as on many.
header_on_one_connection() {
    local i got want='' all=()
    for i in 1 2 3 4 5 6 7 8; do
        want+=$(by_header "$i")
        all+=(--next -sS --max-time 20 -H 'Host: user.test' -H "X-User: u$i" "http://$http/")
    done
    got=$(curl "${all[@]:1}" | tr -d '\n')
    [ "$got" = "$want" ] || fail "$got, not $want"
}

without_a_header() {
    local got
    got=$(for _ in 1 2 3 4; do ask -H 'Host: user.test' "http://$http/"; done | sort | uniq -c)
    [ "$(echo $got)" = '2 one 2 two' ] || fail "$got"
}

check 'two web servers, and an agent for each' start_picks || return
check 'a client address keeps its agent' keeps by_client
check 'a client behind a balancer keeps its agent' keeps by_forwarded_for
check 'a header keeps its agent' keeps by_header
check 'a header keeps its agent on one connection' header_on_one_connection
check 'a host keeps its agent' keeps by_host
check 'requests without the header go in turn' without_a_header
end_now proxy one two one-web two-web

# ---- health checks ----

start_checked() {
    start_web && start_web_proxy 'health = http:/health' 'health-interval = 200ms' \
        'health-fall = 2' 'health-timeout = 5s' 'admin = 127.0.0.1:0' \
        '[expose 127.0.0.1:0]' 'name = web' \
        'health = http://web.test/health' '[route *.test]' 'name = web' &&
        start_web_agents && said proxy.log 'admin.listening' 5 || return
    admin=$(sed -n 's/.*admin.listening.*reason="\{0,1\}\(http:[^" ]*\)\/.*/\1/p' "$dir/proxy.log")
}

# goes_to WHO: each of 20 clients is served, by these
goes_to() {
    local got i
    got=$(for i in 1 2 3 4 5 6 7 8 9 10; do
        ask -f -H 'Host: a.test' "http://$http/" && ask -f "http://$web/" || echo failed
    done | sort -u)
    [ "$(echo $got)" = "$1" ] || fail "they got: $(echo $got)"
}

status_says() {
    until_true 10 is_in_status "$1" || fail "not '$1': $(curl -sS "$admin/status" | tail -n 3)"
}
is_in_status() { curl -sS "$admin/status" | grep -q "$1"; }

# changes COUNT PATTERN: so many lines of the log are about one, and the last of them says this
changes() {
    local about='event=health\.[a-z]* .*instance=one'
    said proxy.log "$about" 10 "$1" || return
    [ "$(count proxy.log "$about")" = "$1" ] || { fail "more lines than $1"; return; }
    [[ "$(grep 'event=health' "$dir/proxy.log" | tail -n 1)" =~ $2 ]] ||
        fail "the log says $(grep 'event=health' "$dir/proxy.log" | tail -n 1)"
}

gets_unwell() {
    hold_open kept python3 "$here/http_peers.py" keep "$http" a.test one
    said kept.out '^kept' 10 || return
    echo unwell >"$dir/one.state"
    changes 1 'event=health.down .*reason="the answer is 503"' || return
    echo sick >"$dir/one.state"
    goes_to two || return
    echo >&"${fifo_of[kept]}"
    said kept.out '^then 200 two' 10
}

is_shown() {
    local got
    status_says '"checks_total":2,"failing_total":1' &&
        status_says '"instance":"one".*"check":"http://web.test/health".*"the answer is 503"' ||
        return
    got=$(curl -sS "$admin/metrics")
    grep -qx 'revdial_health_failing{name="web"} 1' <<<"$got" &&
        grep -q 'revdial_health_checks_total{name="web",result="passed"} [1-9]' <<<"$got" ||
        { fail "$(grep health <<<"$got")"; return; }
    got=$(curl -sS "$admin/status.txt" | tail -n 1)
    [[ "$got" =~ ^http://web.test/health\ +web\ +one\ .*the\ answer\ is\ 503 ]] || fail "$got"
}

# Its answer to a check is announced by others, and is the one that counts.
gets_well() {
    echo hints >"$dir/one.state"
    changes 2 'event=health.up' && goes_to 'one two'
}

is_ended() {
    end_now one-web
    changes 3 'event=health.down .*refused' && goes_to two
}

none_is_well() {
    local got
    echo unwell >"$dir/two.state"
    status_says '"failing_total":2' || return
    got=$(ask -f -H 'Host: a.test' "http://$http/")
    [ "$got" = two ] || fail "$got"
}

leaves() { stop one && status_says '"checks_total":1,"failing_total":1'; }

is_not_checked_any_more() {
    sed -i '/^health/d' "$dir/pool.conf"
    kill -HUP "${pid_of[proxy]}"
    status_says '"checks_total":0,"failing_total":0'
}

is_checked_again() {
    echo 'health = tcp' >>"$dir/pool.conf"
    kill -HUP "${pid_of[proxy]}"
    status_says '"checks_total":1,"failing_total":0'
}

# An agent that is there before the line that has its name in the metrics.
gets_its_name() {
    sed -i '1i health = tcp\nhealth-interval = 200ms' "$dir/pool.conf"
    printf '%s\n' '[route named.test]' 'name = named' >>"$dir/pool.conf"
    kill -HUP "${pid_of[proxy]}"
    start_agent named --name named --target 127.0.0.1:1 &&
        until_true 10 metrics_have 'revdial_health_failing{name="other"} 1' || return
    printf '%s\n' '[expose 127.0.0.1:0]' 'name = named' >>"$dir/pool.conf"
    kill -HUP "${pid_of[proxy]}"
    until_true 10 metrics_have 'revdial_health_failing{name="named"} 1' &&
        metrics_have 'revdial_health_failing{name="other"} 0' ||
        fail "$(curl -sS "$admin/metrics" | grep health)" || return
    end_now named
}
metrics_have() { curl -sS "$admin/metrics" | grep -qx "$1"; }

# ---- checks of others that get no answer ----

checks_in_flight() {
    curl -sS "$admin/status" | grep -o '"counters":{"sessions":[0-9]*,"streams":[0-9]*' |
        grep -o '[0-9]*$'
}
many_checks_wait() { [ "$(checks_in_flight)" -ge 31 ]; }

# 80 targets of one name take connections and say nothing for ten minutes, which is more than can be
# checked at one time. An agent of another name that comes then is checked all the same.
silent_targets_delay_no_others() {
    local i at lines=()
    start_peers silent "$big" 0.0.0.0 && start_web || return
    at=${address_of[sink]##*:}
    for i in {1..16}; do
        lines+=("[route s$i.test]" 'name = silent' "target = 127.0.0.$i:$at")
    done
    start_web_proxy 'health = http:/health' 'health-interval = 100ms' 'health-timeout = 10m' \
        'admin = 127.0.0.1:0' '[expose 127.0.0.1:0]' 'name = web' "${lines[@]}" || return
    said proxy.log 'admin.listening' 5 || return
    admin=$(sed -n 's/.*admin.listening.*reason="\{0,1\}\(http:[^" ]*\)\/.*/\1/p' "$dir/proxy.log")
    for i in {1..5}; do
        start_agent "silent$i" --name silent --instance "silent$i" --allow '127.0.0.0/8:*' || return
    done
    until_true 20 many_checks_wait || { fail "$(checks_in_flight) checks at one time"; return; }
    start_agent one --instance one --target "${address_of[one]}" || return
    until_true 20 is_checked_often web || { fail 'it is not checked'; return; }
    figures="$(checks_in_flight) others wait"
    end_now silent{1..5} silent one one-web two-web
    stop proxy
}
is_checked_often() {
    curl -sS "$admin/metrics" |
        grep -q "^revdial_health_checks_total{name=\"$1\",result=\"passed\"} [3-9]"
}

check 'silent targets delay no checks of others' silent_targets_delay_no_others
check 'two web servers that are checked' start_checked || return
check 'clients of one that is well' goes_to 'one two'
check 'one fails its checks: all go to the other' gets_unwell
check 'status, metrics and table show it' is_shown
check 'it gets well, and has clients again' gets_well
check 'its server ends: all go to the other' is_ended
check 'where all fail, clients are served all the same' none_is_well
check 'an agent that leaves is checked no more' leaves
check 'HUP ends the checks' is_not_checked_any_more
check 'HUP begins them' is_checked_again
check 'its checks count for a name that HUP brings' gets_its_name
check 'agent and proxy end well' stop two proxy
end_now two-web
