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
