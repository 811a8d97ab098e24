# Limits for operators: clients of a port and of a source, streams and bytes per second of an agent.
# What is refused is counted, so that hardly anything here depends on time.

limits_conf=$dir/limits.conf

# limit LINE...: the configuration; its first section belongs to the port that these lines are about
limit() {
    printf '%s\n' 'max-clients-per-source = 2' "http = $http_at" \
        "route = *=web/${address_of[httpd]}" "[expose $plain_at]" 'name = web' \
        "target = ${address_of[echo]}" "$@" >"$limits_conf.new"
    printf '%s\n' "[expose $small_at]" 'name = web' "target = ${address_of[echo]}" \
        'max-clients = 1' 'max-clients-per-source = 0' \
        "[connect $connect_at]" 'max-clients-per-source = 1' "[socks5 $socks5_at]" \
        'max-clients-per-source = 1' >>"$limits_conf.new"
    mv "$limits_conf.new" "$limits_conf"
}

start_limited() {
    local name
    start_peers peers "$big" && start_nginx httpd || return
    for name in plain small connect socks5 http; do
        printf -v "${name}_at" '127.0.0.1:%s' "$(client port)"
    done
    limit
    start_proxy proxy --config "$limits_conf" --admin 127.0.0.1:0 || return
    admin_at=$(sed -n 's,.*event=admin.listening.*http://\(.*\)/.*,\1,p' "$dir/proxy.log")
    start_agent agent --allow '127.0.0.1:*'
}

# counted METRIC NUMBER
counted() {
    local got
    got=$(curl -sS --max-time 10 "http://$admin_at/metrics" | grep -F "$1 ")
    [ "$got" = "$1 $2" ] || fail "not $2 but $got"
}

refused_clients() { counted "revdial_clients_refused_total{limit=\"$1\"}" "$2"; }

# held NAME ADDRESS COUNT: clients of an echo server that stay
held() {
    hold_client "$1" live "$2" "$3"
    said "$1.out" "^live $3\$" 30
}

plain_ports_close() {
    held two "$plain_at" 2 && new_ones_are_refused "$plain_at" &&
        new_ones_are_refused "$plain_at" && refused_clients max-clients-per-source 2 || return
    held one "$small_at" 1 && new_ones_are_refused "$small_at" && refused_clients max-clients 1 &&
        said proxy.log 'event=client.refused .*reason="the port has' 30 &&
        said proxy.log 'event=client.refused .*reason="the client.s source has' 30 2
}

# The limits of a port change at HUP, and those that are there count.
limits_change() {
    limit 'max-clients-per-source = 3'
    kill -HUP "${pid_of[proxy]}" && said proxy.log 'event=proxy.reload.* 1 changed' 30 || return
    held third "$plain_at" 1 && new_ones_are_refused "$plain_at" || return
    refused_clients max-clients-per-source 3 || return
    let_go third
    said third.out '^still 1$' 30 && until_true 30 said_by "$plain_at"
}

# gets_status WRITE STATUS CURL_OPTION...: what curl writes for that variable
gets_status() {
    local got
    got=$(curl -s --max-time 30 -o "$dir/body" -w "%{$1}" "${@:3}")
    [ "$got" = "$2" ] || fail "curl ${*:3}: $got, not $2: $(cat "$dir/body")"
}

# A client of CONNECT that is connected, as descriptor 8
connect_client() {
    local line
    exec 8<>"/dev/tcp/${connect_at/:/\/}"
    printf 'CONNECT %s HTTP/1.0\r\nProxy-Authorization: Basic d2ViOg==\r\n\r\n' \
        "${address_of[echo]}" >&8
    read -r -t 10 line <&8
    [[ "$line" =~ 200 ]] || fail "it says $line"
}

fronts_say_it() {
    local reply port
    connect_client &&
        gets_status http_connect 429 -p -x "http://web:@$connect_at" \
            "http://${address_of[httpd]}/" || return
    exec 8>&-
    until_true 30 gets_status http_connect 200 -p -x "http://web:@$connect_at" \
        "http://${address_of[httpd]}/" || return
    exec 9<>"/dev/tcp/${socks5_at/:/\/}"
    printf -v port '\\%o\\%o' $((${address_of[echo]##*:} >> 8)) $((${address_of[echo]##*:} & 255))
    printf '\5\1\2\1\3web\1x\5\1\0\1\177\0\0\1%b' "${port//\\/\\0}" >&9
    reply=$(timeout 10 head -c 14 <&9 | od -An -tx1 | tr -d ' \n')
    [[ "$reply" =~ ^050201000500 ]] || { fail "SOCKS5 says $reply"; return; }
    reply=$(curl -sS --max-time 30 --socks5-hostname "$socks5_at" -U web:x \
        "http://${address_of[httpd]}/" 2>&1)
    exec 9>&-
    [[ "$reply" =~ \(2\) ]] || fail "SOCKS5: $reply"
}

# Two keep-alive connections, and one more.
http_says_it() {
    local line fd
    for fd in 5 6; do
        eval "exec $fd<>/dev/tcp/${http_at/:/\/}"
        printf 'GET / HTTP/1.1\r\nHost: web.example\r\n\r\n' >&$fd
        read -r -t 10 line <&$fd
        [[ "$line" =~ 200 ]] || { fail "it says $line"; return; }
    done
    gets_status http_code 429 "http://$http_at/" || return
    exec 5>&- 6>&-
    until_true 30 gets_status http_code 200 "http://$http_at/"
}

totals() {
    local refused
    refused=$(curl -sS "http://$admin_at/metrics" |
        awk '/^revdial_clients_refused_total/ { n += $2 } END { print n }')
    curl -sS "http://$admin_at/status" | grep -q "\"clients_refused\":$refused," ||
        { fail "status does not say $refused"; return; }
    figures="$refused clients were refused"
    let_go one # it has a copy of what holds the others
    said one.out '^still 1$' 30 && let_go two
    said two.out '^still 2$' 30 && stop agent proxy
}

# The agent's own session is limited by the proxy, in both directions.
start_slow() {
    exposing web echo httpd upload
    start_proxy proxy "${exposes[@]}" --session-rate 2M --max-streams 4 --admin 127.0.0.1:0 ||
        return
    admin_at=$(sed -n 's,.*event=admin.listening.*http://\(.*\)/.*,\1,p' "$dir/proxy.log")
    start_agent agent --allow '127.0.0.1:*' --admin "unix:$dir/agent.admin"
}

# Of 4 MB 0.5 may come at once, besides windows. An echo passes meanwhile.
rate_is_kept() {
    local took stalls
    make_file "$www/four" 4 || return
    start download curl -sS --max-time 60 -o "$dir/four" "http://${exposed[1]}/four"
    said_by "${exposed[0]}" || return
    await_end download 60
    [ "$status" -eq 0 ] && cmp "$www/four" "$dir/four" ||
        { fail "the download differs: $(cat "$dir/download.log")"; return; }
    stalls=$(curl -sS --unix-socket "$dir/agent.admin" http://localhost/metrics |
        sed -n 's/^revdial_flow_stalls_total.* //p')
    [ "$stalls" -ge 50 ] || { fail "the agent had to wait for credit $stalls times"; return; }
    took=$(curl -sS --max-time 60 -o /dev/null -w '%{time_total}' -T "$www/four" \
        "http://${exposed[2]}/") || { fail 'the upload failed'; return; }
    awk "BEGIN { exit !($took >= 1.5) }" || { fail "the upload took $took s"; return; }
    figures="the agent waited for credit $stalls times, 4 MB up took $took s"
}

streams_are_limited() {
    held four "${exposed[0]}" 4 && new_ones_are_refused "${exposed[0]}" &&
        counted 'revdial_dials_failed_total{reason="ELIMIT"}' 1 || return
    let_go four
    said four.out '^still 4$' 30 && stop agent proxy
}

# ---- limits that change while connections run

live_conf=$dir/live.conf

# live LINE...: what the configuration says from the next HUP on
live() { printf '%s\n' "$@" >"$live_conf.new" && mv "$live_conf.new" "$live_conf"; }

# hup [PATTERN]: the proxy does it, or says that instead
hup() {
    hups=$((hups + 1))
    kill -HUP "${pid_of[proxy]}"
    said proxy.log 'event=proxy.reload' 30 "$hups" || return
    tail -n 2 "$dir/proxy.log" | grep -Eq "${1:-certificates read}" ||
        fail "HUP: $(tail -n 2 "$dir/proxy.log")"
}

start_live() {
    hups=0
    live 'session-rate = 200k'
    exposing web echo httpd upload
    exposes+=(--expose "127.0.0.1:0=cam/${address_of[echo]}")
    start_proxy proxy "${exposes[@]}" --config "$live_conf" --admin 127.0.0.1:0 || return
    admin_at=$(sed -n 's,.*event=admin.listening.*http://\(.*\)/.*,\1,p' "$dir/proxy.log")
    start_agent agent --allow '127.0.0.1:*'
}

# Bytes of all connections so far, received by the proxy from the agent or sent to it.
moved() {
    curl -sS --max-time 10 "http://$admin_at/metrics" |
        awk -v m="revdial_bytes_total{name=\"web\",direction=\"$1\"}" '$1 == m { print $2 }'
}
has_moved() { [ "$(moved "$1")" -ge "$2" ]; }

# is_slow received|sent BYTES MILLISECONDS: so many more take that long, at least
is_slow() {
    local before since=$EPOCHREALTIME took
    before=$(moved "$1")
    until_true 60 has_moved "$1" $((before + $2)) || { fail "$1 stands at $(moved "$1")"; return; }
    took=$(milliseconds_since "$since")
    [ "$took" -ge "$3" ] || { fail "$2 bytes were $1 in $took ms"; return; }
    figures="$figures $2 bytes $1 in $took ms,"
}

# Both ways begin at 200 kB/s, where 40 MB would take 200 s, and end at a hundred times of that.
rates_change() {
    make_file "$www/forty" 40 || return
    start download curl -sS --max-time 120 -o "$dir/forty" "http://${exposed[1]}/forty"
    until_true 30 has_moved received 300000 && is_slow received 400000 1500 || return
    live 'session-rate = 20M'
    hup && await_end download 60 || return
    [ "$status" -eq 0 ] && cmp "$www/forty" "$dir/forty" ||
        { fail "the download: $(cat "$dir/download.log")"; return; }
    start upload curl -sS --max-time 120 -o /dev/null -T "$www/forty" "http://${exposed[2]}/"
    until_true 30 has_moved sent 4000000 || { fail 'the upload does not begin'; return; }
    live 'session-rate = 200k'
    hup && is_slow sent 600000 2000 || return
    live 'session-rate = 20M'
    hup && await_end upload 60 || return
    [ "$status" -eq 0 ] || { fail "the upload: $(cat "$dir/upload.log")"; return; }
    [ "$(count agent.log session.up)" -eq 1 ] || fail 'the agent was disconnected'
}

# Those that are there stay. What is wrong changes nothing.
streams_change() {
    held four "${exposed[0]}" 4 || return
    live 'max-streams = 2'
    hup && new_ones_are_refused "${exposed[0]}" || return
    live 'max-streams = 9' 'session-rate = 5'
    hup 'nothing was changed' && said proxy.log 'config.refused.*live.conf:2: session-rate' 1 &&
        new_ones_are_refused "${exposed[0]}" || return
    counted 'revdial_streams_refused_total{name="web"}' 2 || return
    live 'max-streams = 5'
    hup && held fifth "${exposed[0]}" 1 && new_ones_are_refused "${exposed[0]}" || return
    let_go fifth # it has a copy of what holds the others
    said fifth.out '^still 1$' 30 && let_go four
    said four.out '^still 4$' 30
}

# ---- limits of a credential, and of those of a group

# The line gets limits while its agent is connected, and others later.
credentials_have_limits() {
    local line
    for line in "max-streams=1 session-rate=2M web $token" "stream-rate=2M max-streams=2 $token"; do
        echo "$line" >"$dir/tokens"
        hup && held few "${exposed[0]}" "$(sed 's/.*max-streams=\([0-9]*\).*/\1/' <<<"$line")" &&
            new_ones_are_refused "${exposed[0]}" || return
        let_go few
        said few.out '^still [12]$' 30 && await_end few 30 || return
    done
    echo "max-streams=none web $token" >"$dir/tokens"
    hup 'nothing was changed' &&
        said proxy.log 'config.refused.*tokens:1: max-streams: it is not a number' 1 || return
    [ "$(count agent.log session.up)" -eq 1 ] || fail 'the agent was disconnected'
}

# A line has one agent at a time; the section of a group gives its lines one stream.
groups_have_limits() {
    local second=second$token
    echo "max-per-identity=1 web $token" >"$dir/tokens"
    echo "cam $second" >"$dir/group.tokens"
    echo "$second" >"$dir/second.token"
    live '[group cams]' "token-file = $dir/group.tokens" 'max-streams = 1' 'stream-rate = 1M'
    hup && start_agent_only surplus --allow '127.0.0.1:*' &&
        said surplus.log 'event=link.retry .*takes no more sessions' 30 || return
    said proxy.log 'event=session.refused .*as many sessions as its credential permits' 10 || return
    end_now surplus
    start_agent second --name cam --token-file "$dir/second.token" --allow '127.0.0.1:*' || return
    held one "${exposed[3]}" 1 && new_ones_are_refused "${exposed[3]}" || return
    held two "${exposed[0]}" 2 || return
    counted 'revdial_streams_refused_total{name="cam"}' 1 || return
    let_go two
    said two.out '^still 2$' 30 && let_go one
    echo "* $token" >"$dir/tokens"
    said one.out '^still 1$' 30 && stop agent second proxy
}

check 'a proxy with limits' start_limited || return
check 'plain ports close, and count it' plain_ports_close
check 'limits change at HUP' limits_change
check 'CONNECT gets 429, SOCKS5 reply 2' fronts_say_it
check '--http gets 429' http_says_it
check 'status and metrics agree' totals
check 'a proxy with --session-rate' start_slow || return
check 'an agent has its bytes per second' rate_is_kept
check 'an agent has its streams' streams_are_limited
check 'a proxy whose limits change' start_live || return
check 'HUP changes bytes per second' rates_change
check 'HUP changes the number of streams' streams_change
check 'a line of the token file has limits' credentials_have_limits
check 'so have the lines of a group' groups_have_limits
