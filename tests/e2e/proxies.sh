# Several proxies: an agent that follows the addresses of a name, and proxies that ask each other
# for agents.

# What proxies.test leads to, for the agent alone. hosts ADDRESS...
hosts() { printf '%s proxies.test\n' "$@" >"$dir/hosts"; }

# One proxy on each address, and an agent of all that the name has: the first two.
start_everywhere() {
    local n
    port=$(client port)
    hosts 127.0.0.2 127.0.0.3
    for n in 2 3 4; do
        proxy_at=127.0.0.$n:$port start_proxy "proxy$n" --expose "127.0.0.1:0=web" || return
        address_of[proxy$n]=${exposed[0]}
    done
    agent_in=(unshare -m sh -c 'mount --bind "$0" /etc/hosts && exec "$@"' "$dir/hosts")
    server_url=http://proxies.test:$port start_agent_only agent --all-addresses \
        --resolve-interval 1s --target "${address_of[echo]}"
    agent_in=()
    said agent.log 'event=session.up' 10 2 && is_served proxy2 && is_served proxy3 &&
        is_not_served proxy4
}

is_served() {
    [ "$(client echo_once "${address_of[$1]}")" = ping ] || fail "no echo through $1"
}

is_not_served() {
    [[ "$(client refused "${address_of[$1]}")" =~ ^reset ]] || fail "a client of $1 is not reset"
}

# The address of proxy2 goes, and that of proxy4 comes. A connection through proxy2 goes on.
follows_the_name() {
    hold_client held live "${address_of[proxy2]}" 1
    said held.out '^live 1$' 10 || return
    hosts 127.0.0.3 127.0.0.4
    said agent.log "event=session.up .*address=127.0.0.4:$port" 20 &&
        said agent.log "event=session.draining .*address=127.0.0.2:$port" 20 &&
        said proxy2.log 'event=session.draining' 20 || return
    is_not_served proxy2 && is_served proxy3 && is_served proxy4 || return
    let_go held
    said held.out '^still 1$' 10 && await_end held 10 &&
        said proxy2.log 'event=session.down' 20
}

# ---- peers ----

certs=$dir/certs

# start_mesh_proxy NAME OPTION...: a proxy at port_of[NAME] that names the others as its peers
start_mesh_proxy() {
    local name=$1 other peer_options=()
    shift
    for other in a b c; do
        [ "$other" = "$name" ] || peer_options+=(--peer "http://127.0.0.1:${port_of[$other]}")
    done
    proxy_at=127.0.0.1:${port_of[$name]} start_proxy "$name" "${peer_options[@]}" \
        --peer-token-file "$dir/peer-token" --log-level debug "$@"
}
declare -A port_of

# Three proxies, each a peer of the others; "web" is at b alone, "cam" at c alone. All clients are
# at a.
start_mesh() {
    local name
    od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$dir/peer-token"
    for name in a b c; do port_of[$name]=$(client port); done
    exposing web echo sink source little
    mkdir -p "$dir/sockets"
    start_mesh_proxy b && start_mesh_proxy c &&
        start_mesh_proxy a "${exposes[@]}" --connect 127.0.0.1:0 --socks5 127.0.0.1:0 \
            --http 127.0.0.1:0 --sni 127.0.0.1:0 --route '*.cams.example=*/' \
            --sockets "$dir/sockets" --admin "unix:$dir/admin" || return
    said a.out 'for --sni$' 5 || return
    ports=("${exposed[@]}")
    for name in connect socks5 http sni; do address_of[$name]=$(front_at "$name" a); done
    for name in a b c; do said "$name.log" 'event=session.up .*role=peer' 10 2 || return; done
    server_url=http://127.0.0.1:${port_of[b]} start_agent web "${web_options[@]}" &&
        server_url=http://127.0.0.1:${port_of[c]} start_agent cam --name cam \
            --target "${address_of[httpd]}"
}

every_way_in_works() {
    local got sni=${address_of[sni]}
    local trace=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
    gets "$page" -p -x "http://web:@${address_of[connect]}" "http://${address_of[httpd]}/" &&
        gets "$page" -x "socks5h://web:@${address_of[socks5]}" "http://${address_of[httpd]}/" &&
        gets "$page" -H 'Host: cam.cams.example' "http://${address_of[http]}/" &&
        gets "$page" -H 'Host: web.cams.example' -H "traceparent: $trace" \
            "http://${address_of[http]}/" && said web.log "traceparent=$trace" 5 || return
    got=$(printf 'GET / HTTP/1.0\r\n\r\n' |
        timeout 30 "$build/revdial-proxy" dial "web/${address_of[httpd]}" \
            --through "${address_of[connect]}" 2>&1 | tail -n 1)
    [ "$got" = "$page" ] || { fail "dial prints $got"; return; }
    # A server name leads to the agent's own target, which speaks no TLS and says so.
    got=$(openssl s_client -connect "$sni" -servername web.cams.example </dev/null 2>&1)
    [[ "$got" =~ wrong\ version|packet\ length|record\ layer ]] ||
        fail "openssl says ${got:0:300}"
}

# Both ways at one time, and each end finishes by itself.
bulk_is_the_same() {
    local bytes sha
    bytes=$(stat -c %s "$dir/part") && sha=$(sha256 "$dir/part")
    start_client download read "${ports[2]}" "$dir/part"
    start_client upload write "${ports[1]}" "$dir/part"
    said upload.out "^$bytes $sha $bytes\$" 60 && said download.out "^$bytes same eof " 60
}

# The status of a request to --connect and to --http, and the reply of SOCKS5.
# refused CONNECT HTTP SOCKS5 NAME TARGET
refused() {
    local got
    got=$(curl -s --max-time 30 -o /dev/null -w '%{http_connect}' -p \
        -x "http://$4:@${address_of[connect]}" "http://$5/")
    [ "$got" = "$1" ] || { fail "CONNECT to $5 gets $got, not $1"; return; }
    got=$(curl -s --max-time 30 -o /dev/null -w '%{http_code}' -H "Host: $4.cams.example" \
        "http://${address_of[http]}/")
    [ "$got" = "$2" ] || { fail "--http for $4 gets $got, not $2"; return; }
    got=$(curl -sS --max-time 30 -o /dev/null --socks5-hostname "${address_of[socks5]}" \
        -U "$4:x" "http://$5/" 2>&1)
    [[ "$got" =~ "($3)" ]] || fail "SOCKS5 to $5: $got, not reply $3"
}

errors_cross() {
    refused 503 503 3 nobody 127.0.0.1:80 && refused 403 200 2 web 192.0.2.1:80 &&
        refused 502 200 5 web 127.0.0.1:9 && refused 502 200 4 web no.such.host.invalid:80 &&
        refused 504 200 6 web "${address_of[full]}"
}

# A name that none has is asked for once at each, and not passed on.
a_ring_ends() {
    local name
    gets 503 -o /dev/null -w '%{http_code}' -H 'Host: nowhere.cams.example' \
        "http://${address_of[http]}/" || return
    for name in b c; do
        said "$name.log" 'event=peer.refused .*name=nowhere' 5 || return
        [ "$(count "$name.log" 'event=peer.refused .*name=nowhere')" -eq 1 ] ||
            { fail "$name was asked more than once"; return; }
    done
    [ "$(count a.log 'event=peer.refused .*name=nowhere')" -eq 0 ] || fail 'a was asked, too'
}

peers_are_shown() {
    local got
    got=$(curl -s --unix-socket "$dir/admin" http://localhost/status | python3 -c 'import json, sys
s = json.load(sys.stdin)
print(sum(x["is_peer"] for x in s["sessions"]), *sorted(p["state"] for p in s["peers"]))')
    [ "$got" = '2 up up' ] || { fail "/status says $got"; return; }
    "$build/revdial-proxy" status --admin "unix:$dir/admin" >"$dir/table"
    grep -q '^ASKED BY' "$dir/table" && [ "$(grep -c 'peer (peer)' "$dir/table")" -eq 2 ] ||
        { fail "the table: $(cat "$dir/table")"; return; }
    got=$(curl -s --unix-socket "$dir/admin" http://localhost/metrics |
        sed -n 's/^revdial_sessions{name="peer"[^}]*} //p')
    [ "$got" = 2 ] || { fail "/metrics says $got"; return; }
    [ -z "$(ls "$dir/sockets")" ] || fail "--sockets has $(ls "$dir/sockets")"
}

# The machine of b goes: its agent is gone with it, that of c is not, and nobody has to be told when
# b is back.
one_is_killed() {
    local before
    before=$(count a.log 'event=session.up .*role=peer')
    end_now b
    said a.log 'event=session.down .*role=peer' 10 || return
    refused 503 503 3 web 127.0.0.1:80 || return
    gets "$page" -H 'Host: cam.cams.example' "http://${address_of[http]}/" || return
    start_mesh_proxy b && said a.log 'event=session.up .*role=peer' 20 $((before + 1)) &&
        said b.log 'event=session.up .*name=web' 20 || return
    gets "$page" -H 'Host: web.cams.example' "http://${address_of[http]}/" && is_served_by_a
}

# Who was refused tries again after half a minute at most.
back_within=60

# b ends while a client of a, which has finished, still takes what b's agent has sent. It gets all.
one_ends() {
    local before bytes
    before=$(count a.log 'event=session.up .*role=peer')
    bytes=$(stat -c %s "$dir/little")
    start_client slow read "${ports[3]}" "$dir/little" 300000 finish
    said slow.out '^reading' 10 || return
    kill -TERM "${pid_of[b]}"
    await_end b 40 || return
    [ "$status" -eq 0 ] || { fail "b ended with $status"; return; }
    said slow.out "^$bytes same eof " 20 || return
    start_mesh_proxy b && said a.log 'event=session.up .*role=peer' $back_within $((before + 1)) &&
        said b.log 'event=session.up .*name=web' $back_within &&
        said b.log 'event=session.up .*role=peer' $back_within 2
}

is_served_by_a() {
    [ "$(client echo_once "${ports[0]}")" = ping ] || fail 'no echo through a'
}

# A peer that is stopped, and not dead: others are asked after 0.9 s.
one_freezes() {
    kill -STOP "${pid_of[b]}"
    gets "$page" -H 'Host: cam.cams.example' "http://${address_of[http]}/" &&
        gets "$page" -H 'Host: cam.cams.example' "http://${address_of[http]}/" &&
        said a.log 'event=session.silent .*role=peer' 10
    local code=$?
    kill -CONT "${pid_of[b]}"
    return $code
}

# Two proxies are peers of a third, all with limits for agents, of which only the agents themselves
# are free. At 10 kB/s a file would take five minutes.
peers_have_no_limits_of_agents() {
    local name bytes options=(--max-per-identity 1 --max-streams 1 --session-rate 10k)
    options+=(--token-file "$dir/free" --peer-token-file "$dir/peer-token")
    bytes=$(stat -c %s "$dir/little")
    echo "max-per-identity=9 max-streams=9 session-rate=1G * $token" >"$dir/free"
    port_of[k]=$(client port)
    proxy_at=127.0.0.1:${port_of[k]} start_proxy k "${options[@]}" --expose 127.0.0.1:0=web-l \
        --expose 127.0.0.1:0=web-m || return
    ports_k=("${exposed[@]}")
    for name in l m; do
        start_proxy $name "${options[@]}" --peer "http://127.0.0.1:${port_of[k]}" &&
            server_url= start_agent web-$name --name web-$name \
                --target "${address_of[little]}" || return
    done
    said k.log 'event=session.up .*role=peer' 10 2 || return
    for name in 0 1 2; do
        start_client read$name read "${ports_k[name % 2]}" "$dir/little"
    done
    for name in 0 1 2; do said read$name.out "^$bytes same eof " 60 || return; done
}

# One that does not know the secret is no peer, in neither direction.
a_wrong_secret_is_refused() {
    echo wrong >"$dir/wrong-token"
    port_of[d]=$(client port)
    proxy_at=127.0.0.1:${port_of[d]} start_proxy d --peer "http://127.0.0.1:${port_of[a]}" \
        --peer-token-file "$dir/wrong-token" || return
    said d.log 'event=link.retry .*credentials' 10 &&
        said a.log 'event=session.refused .*name=peer' 10 || return
    server_url=http://127.0.0.1:${port_of[d]} start_agent stranger --name stranger \
        --target "${address_of[httpd]}" || return
    gets 503 -o /dev/null -w '%{http_code}' -H 'Host: stranger.cams.example' \
        "http://${address_of[http]}/" || return
    # The token of agents makes no peer either.
    printf '%s\n' "$token" >"$dir/wrong-token"
    end_now d stranger
    proxy_at=127.0.0.1:${port_of[d]} start_proxy d --peer "http://127.0.0.1:${port_of[a]}" \
        --peer-token-file "$dir/wrong-token" && said d.log 'event=link.retry .*credentials' 10
}

# A new secret is in the file of each before the first one reads it again.
a_new_secret_is_taken() {
    local name before=()
    od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$dir/peer-token"
    for name in a b c; do
        before=$(count "$name.log" 'event=session.up .*role=peer')
        kill -HUP "${pid_of[$name]}"
        said "$name.log" 'event=session.up .*role=peer' $back_within $((before + 2)) || return
    done
    is_served_by_a
}

# Two proxies with TLS that want certificates, also from each other: theirs are of one authority.
peers_over_tls() {
    local name other options
    mkdir -p "$certs" && sh "$here/../tls/certs.sh" "$certs" || return
    port_of[e]=$(client port)
    port_of[f]=$(client port)
    for name in e f; do
        other=$([ $name = e ] && echo f || echo e)
        options=(--peer "https://localhost:${port_of[$other]}" --peer-ca "$certs/ca.pem"
            --tls-cert "$certs/both.pem" --tls-key "$certs/both.key"
            --client-ca "$certs/ca.pem" --peer-token-file "$dir/peer-token")
        proxy_at=127.0.0.1:${port_of[$name]} start_proxy $name "${options[@]}" \
            --expose "127.0.0.1:0=tls" || return
    done
    server_url=https://localhost:${port_of[e]} start_agent tls --name tls \
        --tls-ca "$certs/ca.pem" --tls-cert "$certs/cam.pem" \
        --tls-key "$certs/cam.key" --target "${address_of[httpd]}" || return
    said f.log 'event=session.up .*role=peer' 20 && gets "$page" "http://${exposed[0]}/"
}

shown_at() {
    openssl s_client -connect "$1" </dev/null 2>/dev/null | openssl x509 -noout -fingerprint
}

# The authorities of peers can be read at some moments, and not at others, while the proxy gets
# another certificate by each of 30 HUPs: it shows the new one if it says that all was read, and the
# one before if it says that nothing was changed.
reload_is_all_or_nothing() {
    local i name before now at refused=0
    at=127.0.0.1:$(client port)
    cp "$certs/server.pem" "$dir/shown.pem" && cp "$certs/server.key" "$dir/shown.key"
    ln -s "$certs/ca.pem" "$dir/some-ca" && : >"$dir/no-ca"
    start whole "$build/revdial-proxy" --listen "$at" --token-file "$dir/tokens" --tls-cert \
        "$dir/shown.pem" --tls-key "$dir/shown.key" --peer "https://localhost:$(client port)" \
        --peer-ca "$dir/some-ca" --peer-token-file "$dir/peer-token"
    said whole.out '^listening' 10 || return
    start flips python3 "$here/flips.py" "$dir/some-ca" "$certs/ca.pem" "$dir/no-ca"
    said flips.out '^flips' 10 && before=$(shown_at "$at") || return
    for i in {1..30}; do
        name=$([ $((i % 2)) -eq 1 ] && echo both || echo server)
        cp "$certs/$name.pem" "$dir/shown.pem" && cp "$certs/$name.key" "$dir/shown.key"
        kill -HUP "${pid_of[whole]}"
        said whole.log event=proxy.reload 10 "$i" && now=$(shown_at "$at") || return
        if [[ "$(grep event=proxy.reload "$dir/whole.log" | tail -n 1)" =~ nothing ]]; then
            [ "$now" = "$before" ] || { fail "reload $i says that nothing was changed"; return; }
            refused=$((refused + 1))
        else
            before=$(openssl x509 -noout -fingerprint -in "$certs/$name.pem")
            [ "$now" = "$before" ] || { fail "reload $i: the old certificate is shown"; return; }
        fi
    done
    figures="$refused of 30 refused"
    end_now flips && stop whole
}

# ---- peers at HUP ----

# peers_now NAME [PEER]: the configuration of that proxy, with this peer; with "-" it has the secret
# of peers, and none of them
peers_now() {
    {
        printf '%s\n' "listen = 127.0.0.1:${port_of[$1]}" "token-file = $dir/tokens" \
            "${lines_of[$1]:-}"
        [ -z "${2:-}" ] || printf '%s\n' "peer-token-file = $dir/peer-token"
        [ "${2:--}" = - ] || printf '%s\n' "peer = http://127.0.0.1:${port_of[$2]}"
    } >"$dir/$1.conf.new" && mv "$dir/$1.conf.new" "$dir/$1.conf"
}
declare -A lines_of

# hup NAME [PEER]: the same, for a proxy that runs
hup() {
    local before
    before=$(count "$1.log" event=proxy.reload)
    peers_now "$@" && kill -HUP "${pid_of[$1]}" &&
        said "$1.log" 'event=proxy.reload .*0 ports opened' 10 $((before + 1))
}

# Two proxies that know of no peer: the agent is at h, its client at g.
start_two_alone() {
    local name
    for name in g h; do port_of[$name]=$(client port); done
    lines_of[g]="expose = 127.0.0.1:0=late/${address_of[echo]}"
    for name in g h; do
        peers_now $name && start $name "$build/revdial-proxy" --config "$dir/$name.conf" &&
            said $name.out '^listening on' 5 || return
    done
    said g.out 'for late$' 5 || return
    late=$(sed -n 's/^listening on \(.*\) for late$/\1/p' "$dir/g.out")
    server_url=http://127.0.0.1:${port_of[h]} start_agent late --name late --allow '127.0.0.1:*' &&
        new_ones_are_refused "$late" || fail 'g has the agent without a peer'
}

# Each of the two gets to know the secret, and then the other one.
peers_are_added() {
    hup g - && hup h - && hup g h && hup h g && said g.log 'event=session.up .*role=peer' 10 &&
        said h.log 'event=session.up .*role=peer' 10 && said_by "$late"
}

# h leaves g: what runs through it goes on, and what is new is refused.
a_peer_is_removed() {
    hold_client held live "$late" 20
    said held.out '^live 20$' 10 && hup h - && said g.log 'event=session.draining .*role=peer' 10 &&
        new_ones_are_refused "$late" || { fail "${why:-h is still asked}"; return; }
    [ "$(count g.log 'event=session.down .*role=peer')" -eq 0 ] || { fail 'it was cut'; return; }
    let_go held
    said held.out '^still 20$' 10 && await_end held 10 &&
        said g.log 'event=session.down .*role=peer' 10
}

# It comes back; and a proxy ends while it still leaves a peer.
a_peer_is_added_again() {
    hup h g && said g.log 'event=session.up .*role=peer' 10 2 && said_by "$late" || return
    hold_client held live "$late" 20
    said held.out '^live 20$' 10 && hup h - &&
        said g.log 'event=session.draining .*role=peer' 10 2 || return
    kill -TERM "${pid_of[h]}"
    kill -TERM "${pid_of[late]}"
    let_go held
    await_end h 20 || return
    [ "$status" -eq 0 ] || fail "h ended with $status"
}

# A wrong line changes nothing of the peers either.
wrong_peers_change_nothing() {
    local before
    before=$(count g.log 'event=session.down .*role=peer')
    printf '%s\n' 'peer = 127.0.0.1:1' >>"$dir/g.conf"
    kill -HUP "${pid_of[g]}"
    said g.log 'event=config.refused .*peer' 10 && said g.log 'nothing was changed' 10 &&
        said_by "$late" || return
    [ "$(count g.log 'event=session.down .*role=peer')" -eq "$before" ] || fail 'a peer was cut'
}

# A peer that freezes is noticed in the time that the last HUP says, and not after half a minute.
times_of_peers_change() {
    local name code
    for name in n o; do
        port_of[$name]=$(client port)
        peers_now $name "$([ $name = o ] && echo n || echo -)" &&
            start $name "$build/revdial-proxy" --config "$dir/$name.conf" &&
            said $name.out '^listening on' 5 || return
    done
    lines_of[o]=$'keepalive = 200ms\ndead-after = 200ms'
    said o.log 'event=session.up .*name=peer' 10 && hup o n || return
    kill -STOP "${pid_of[n]}"
    said o.log 'event=link.retry .*name=peer' 15
    code=$?
    kill -CONT "${pid_of[n]}"
    end_now n o
    return $code
}

wrong_options_are_refused() {
    printf 'a\nb\n' >"$dir/wrong-token"
    says proxy 2 'peer-token-file: missing' --listen 127.0.0.1:0 --token-file "$dir/tokens" \
        --peer http://127.0.0.1:1 &&
        says proxy 2 'peer: .*http://' --listen 127.0.0.1:0 --token-file "$dir/tokens" \
            --peer-token-file "$dir/peer-token" --peer 127.0.0.1:1 &&
        says proxy 2 'peer-token-file: .*one line' --listen 127.0.0.1:0 \
            --token-file "$dir/tokens" --peer-token-file "$dir/wrong-token"
}

start_servers() {
    make_file "$dir/part" 64 && make_file "$dir/little" 3 &&
        start_peers others "$dir/little" || return
    address_of[little]=${address_of[source]}
    start_peers peers "$dir/part" && start_http_server && start_full
}

check 'servers for the agents' start_servers || return 0
if check 'an agent at all addresses of a name' start_everywhere; then
    check 'one address goes, another one comes' follows_the_name
fi
end_now agent proxy2 proxy3 proxy4
web_options=(--target "${address_of[httpd]}" --allow '127.0.0.1:*' --allow '*.invalid:80'
    --connect-timeout 500ms --access-log)
if check 'three proxies that are peers' start_mesh; then
    check 'every way in leads through a peer' every_way_in_works
    check '64 MB each way through a peer' bulk_is_the_same
    check 'errors cross a peer' errors_cross
    check 'a name that none has ends in a ring' a_ring_ends
    check 'peers in status, metrics and --sockets' peers_are_shown
    check 'a peer freezes' one_freezes
    check 'a peer is killed and comes back' one_is_killed
    check 'a peer ends, slow clients of another get all' one_ends
    check 'a peer with a wrong secret' a_wrong_secret_is_refused
    check 'peers get a new secret' a_new_secret_is_taken
    check 'peers with TLS and certificates' peers_over_tls
    check 'a reload is for all certificates or for none' reload_is_all_or_nothing
    check 'limits of agents are not those of peers' peers_have_no_limits_of_agents
fi
if check 'two proxies without peers' start_two_alone; then
    check 'HUP adds peers' peers_are_added
    check 'HUP with a wrong peer changes nothing' wrong_peers_change_nothing
    check 'HUP removes a peer, streams go on' a_peer_is_removed
    check 'HUP adds it again, and it ends while it leaves' a_peer_is_added_again
fi
check 'HUP changes the times of connections to peers' times_of_peers_change
check 'wrong options for peers' wrong_options_are_refused
