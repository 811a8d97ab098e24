# Clients that say where they want to go: curl, ssh and nc through CONNECT and SOCKS5, TLS by its
# server name, a Unix socket for each agent, and standard input.

start_tls_server() {
    local port
    port=$(client port)
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 \
        -subj /CN=web.cams.example -keyout "$dir/tls.key" -out "$dir/tls.pem" \
        2>"$dir/openssl.log" ||
        { fail "openssl req: $(tail -n 1 "$dir/openssl.log")"; return; }
    start tls env -C "$www" openssl s_server -accept "127.0.0.1:$port" -key "$dir/tls.key" \
        -cert "$dir/tls.pem" -WWW
    said tls.out '^ACCEPT' 5 || return
    address_of[tls]=127.0.0.1:$port
}

start_fronts() {
    sockets=$dir/sockets
    mkdir -p "$sockets"
    echo 'max-clients = 100' >"$dir/fronts.conf"
    start_proxy proxy --config "$dir/fronts.conf" \
        --connect 127.0.0.1:0 --connect "unix:$dir/connect" --socks5 127.0.0.1:0 \
        --sni 127.0.0.1:0 --sockets "$sockets" --unix-mode 0660 --access-log \
        --route "web.cams.example=web/${address_of[tls]}" --route '*.cams.example=*/' \
        --route '10.99.0.0/16=nobody' --route "${address_of[sshd]}=web" "$@" || return
    said proxy.out 'for --sni$' 5 || return
    connect=$(front_at connect)
    socks5=$(front_at socks5)
    sni=$(front_at sni)
}

start_behind() {
    start_agent web --target "${address_of[httpd]}" --allow '127.0.0.1:*' --allow 'localhost:*' \
        --allow '*.invalid:80' --connect-timeout 500ms --access-log
}

connect_works() {
    gets "$page" -p -x "http://web:@$connect" "http://${address_of[httpd]}/" &&
        gets "$page" -p -x "http://web:@$connect" "http://localhost:${address_of[httpd]##*:}/"
}

connect_is_traced() {
    local trace=00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 log
    gets "$page" -p -x "http://web:@$connect" --proxy-header "traceparent: $trace" \
        "http://${address_of[httpd]}/" || return
    TRACEPARENT=${trace/b7-/b8-} "$build/revdial-proxy" dial web --through "$connect" </dev/null &&
        gets "$page" -p -x "http://web:@$connect" --proxy-header "traceparent: 00-x" \
            "http://${address_of[httpd]}/" || return
    for log in proxy.log web.log; do
        said "$log" "event=stream.open .* traceparent=$trace" 5 &&
            said "$log" "event=stream.end .* traceparent=$trace" 5 &&
            said "$log" "event=stream.open .* traceparent=${trace/b7-/b8-}" 5 || return
        ! grep -q 'traceparent=00-x' "$dir/$log" || fail 'a malformed one is logged'
    done
}

# connect_status STATUS CURL_OPTION...: curl gets that instead of a connection
connect_status() {
    local got want=$1
    shift
    got=$(curl -s --max-time 30 -o /dev/null -w '%{http_connect}' -p -x "http://$connect" "$@")
    [ "$got" = "$want" ] || fail "curl $*: $got, not $want"
}

connect_refuses() {
    connect_status 407 http://x.example/ &&
        connect_status 404 -U Web: http://x.example/ &&
        connect_status 503 -U nobody: http://x.example/ &&
        connect_status 503 http://10.99.1.1/ &&
        connect_status 403 -U web: http://192.0.2.1/ &&
        connect_status 502 -U web: http://127.0.0.1:9/ &&
        connect_status 504 -U web: "http://${address_of[full]}/" || return
    [ "$(curl -s -o /dev/null -w '%{http_code}' -x "http://$connect" http://x.example/)" = 405 ] ||
        fail 'a GET got another answer than 405'
}

says_why() {
    local got
    got=$(printf 'CONNECT 127.0.0.1:9 HTTP/1.0\r\nProxy-Authorization: Basic d2ViOg==\r\n\r\n' |
        through "$connect")
    [[ "$got" =~ ^HTTP/1.1\ 502\ .*refused ]] || fail "it says $got"
}

# The first bytes for the target come with the request.
early_bytes_arrive() {
    local got
    got=$(printf '%s\r\n' "CONNECT ${address_of[httpd]} HTTP/1.0" \
        'Proxy-Authorization: Basic d2ViOg==' '' 'GET / HTTP/1.0' '' | through "$connect" -N |
        tail -n 1)
    [ "$got" = "$page" ] || fail "it says $got"
}

socks5_works() {
    gets "$page" -x "socks5h://web:@$socks5" "http://${address_of[httpd]}/" &&
        gets "$page" --socks5-hostname "$socks5" -U web:x \
            "http://localhost:${address_of[httpd]##*:}/"
}

# socks5_reply REPLY CURL_OPTION...: curl names the reply
socks5_reply() {
    local got want=$1
    shift
    got=$(curl -sS --max-time 30 -o /dev/null --socks5-hostname "$socks5" "$@" 2>&1)
    [[ "$got" =~ "($want)" ]] || fail "curl $*: $got, not reply $want"
}

socks5_refuses() {
    socks5_reply 2 http://x.example/ && socks5_reply 2 -U web:x http://192.0.2.1/ &&
        socks5_reply 3 -U nobody:x http://x.example/ &&
        socks5_reply 4 -U web:x http://no.such.host.invalid/ &&
        socks5_reply 5 -U web:x http://127.0.0.1:9/ &&
        socks5_reply 6 -U web:x "http://${address_of[full]}/" &&
        said proxy.log 'event=client.refused .*reason="no route leads there' 5
}

sni_works() {
    local port=${sni##*:}
    gets "$page" -k --resolve "web.cams.example:$port:127.0.0.1" \
        "https://web.cams.example:$port/index.html"
}

sni_refuses() {
    local got
    got=$(openssl s_client -connect "$sni" -servername other.example </dev/null 2>&1)
    [[ "$got" =~ unrecognized\ name ]] || { fail "openssl says ${got:0:300}"; return; }
    got=$(openssl s_client -connect "$sni" -noservername </dev/null 2>&1)
    [[ "$got" =~ unrecognized\ name ]] || { fail "openssl says ${got:0:300}"; return; }
    got=$(openssl s_client -connect "$sni" -servername nobody.cams.example </dev/null 2>&1)
    [[ "$got" =~ internal\ error ]] || { fail "openssl says ${got:0:300}"; return; }
    said proxy.log 'event=client.refused .*reason="no route leads to the server name' 5 &&
        said proxy.log 'event=client.refused .*reason="it sent no server name' 5
}

# Everything but the way there.
configure_ssh() {
    printf '%s\n' "IdentityFile $dir/id" 'BatchMode yes' 'StrictHostKeyChecking no' \
        'UserKnownHostsFile /dev/null' 'LogLevel ERROR' >"$dir/ssh_config"
}

ssh_through() {
    local got
    got=$(ssh -F "$dir/ssh_config" -o "ProxyCommand=$1" "$(id -un)@behind" \
        'echo from $(cat)' <<<'the other side' 2>&1)
    [ "$got" = 'from the other side' ] || fail "ssh says $got"
}

scp_through() {
    rm -f "$dir/copy"
    scp -O -q -F "$dir/ssh_config" -o "ProxyCommand=$1" "$dir/file" \
        "$(id -un)@behind:$dir/copy" || { fail "scp ended with $?"; return; }
    [ "$(sha256 "$dir/copy")" = "$file_sha" ] || fail 'the copy is another file'
}

# rsync_tree PROXY_COMMAND: what it has changed at the other end is in $figures.
rsync_tree() {
    figures=$(rsync -a --delete --no-whole-file --out-format='%o %n' -e \
        "ssh -F '$dir/ssh_config' -o 'ProxyCommand=$1'" "$dir/tree/" \
        "$(id -un)@behind:$dir/tree.copy/" 2>&1 | grep -v '/$' | sort | tr '\n' ' ') &&
        diff -r "$dir/tree" "$dir/tree.copy" >"$dir/diff.out" ||
        fail "rsync says $figures; $(tail -n 1 "$dir/diff.out")"
}

# The second time only what is different goes.
rsync_through() {
    rm -rf "$dir/tree" "$dir/tree.copy"
    mkdir "$dir/tree" && cp "$dir/file" "$dir/tree/big" && echo old >"$dir/tree/old" &&
        mkdir "$dir/tree/sub" && seq 1000 >"$dir/tree/sub/numbers" || return
    rsync_tree "$1" || return
    rm "$dir/tree/old" && seq 1001 >"$dir/tree/sub/numbers" && rsync_tree "$1" || return
    [ "$figures" = 'del. old send sub/numbers ' ] || fail "it has done: $figures"
}

# A file each way, and each end finishes by itself.
dial_carries() {
    local got
    got=$("$build/revdial-proxy" dial "web/${address_of[sink]}" --through "$connect" <"$dir/file")
    [ "$got" = "$file_sha $(stat -c %s "$dir/file")" ] || { fail "sent: $got"; return; }
    got=$("$build/revdial-proxy" dial "web/${address_of[source]}" --through "unix:$dir/connect" \
        </dev/null | sha256sum)
    [ "${got%% *}" = "$file_sha" ] || { fail "received: $got"; return; }
    got=$(printf 'GET / HTTP/1.0\r\n\r\n' |
        "$build/revdial-proxy" dial web --through "unix:$sockets" | tail -n 1)
    [ "$got" = "$page" ] || fail "the agent's own target, through its socket: $got"
}

# An input that breaks is no end of it: the target sees a reset.
dial_cuts() {
    local got
    got=$(python3 - "$build/revdial-proxy" dial "web/${address_of[sink]}" --through "$connect" \
        2>&1 <<'END_OF_PYTHON'
import socket, struct, subprocess, sys
listener = socket.create_server(("127.0.0.1", 0))
peer = socket.create_connection(listener.getsockname())
stdin, _ = listener.accept()
dial = subprocess.Popen(sys.argv[1:], stdin=stdin)
stdin.close()
peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
peer.close()
sys.exit(dial.wait(20))
END_OF_PYTHON
    )
    [ $? -eq 1 ] && [[ "$got" = *'was cut'* ]] || { fail "dial says $got"; return; }
    said web.log "event=stream.end .*target=${address_of[sink]} .*reason=cancelled" 10
}

# dial_ends STATUS PATTERN WORD...
dial_ends() {
    local got want=$1 pattern=$2
    shift 2
    got=$(timeout 20 "$build/revdial-proxy" dial "$@" 2>&1 </dev/null)
    status=$?
    [ "$status" -eq "$want" ] && [[ "$got" =~ $pattern ]] ||
        fail "dial $*: ends with $status and says $got"
}

dial_says_why() {
    dial_ends 0 '^Usage: ' --help &&
        dial_ends 2 'NAME: missing' &&
        dial_ends 2 'through: missing' web &&
        dial_ends 2 'UPPER.*a-z' UPPER --through 1 &&
        dial_ends 2 'TARGET is HOST:PORT' web/80 --through 1 &&
        dial_ends 2 'no TARGET' web/127.0.0.1:80 --through "unix:$sockets" &&
        dial_ends 5 'refused' web --through 127.0.0.1:9 &&
        dial_ends 5 'nobody.sock' nobody --through "unix:$sockets" &&
        dial_ends 6 '503 .*nobody' nobody --through "$connect" &&
        dial_ends 6 '403 .*allow list' web/192.0.2.1:1 --through "$connect" &&
        dial_ends 6 'not answer as a --connect' web --through "$sni"
}

is_socket() { [ -S "$1" ]; }
is_gone() { [ ! -e "$1" ]; }

late_agent_is_reached() {
    start_agent late --name late --target "${address_of[httpd]}" || return
    gets "$page" -p -x "http://$connect" http://late.cams.example/ &&
        gets "$page" -x "socks5h://$socks5" http://late.cams.example/ || return
    until_true 5 is_socket "$sockets/late.sock" || { fail "no late.sock"; return; }
    gets "$page" --unix-socket "$sockets/late.sock" http://late/ || return
    [ "$(stat -c %a "$sockets/late.sock")" = 660 ] || fail "mode $(stat -c %a "$sockets/late.sock")"
}

# An agent that drains takes no new client, and goes on with those that it has.
socket_goes_with_the_agent() {
    local opened='event=stream.open.*name=late .*sockets/late.sock' before
    before=$(count proxy.log "$opened")
    hold_open held "$build/revdial-proxy" dial late --through "unix:$sockets"
    said proxy.log "$opened" 5 $((before + 1)) || return
    kill -TERM "${pid_of[late]}"
    until_true 5 is_gone "$sockets/late.sock" || { fail "late.sock stays while it drains"; return; }
    is_running late && is_running held || { fail "it has not waited for its client"; return; }
    let_go held
    await_end late 10 || return
    until_true 5 is_gone "$sockets/late.sock" || { fail "late.sock is still there"; return; }
    is_socket "$sockets/web.sock" || fail "so is no web.sock"
}

reload_fronts() {
    local before
    before=$(count proxy.log event=proxy.reload)
    echo "$1" >"$dir/fronts.conf"
    kill -HUP "${pid_of[proxy]}"
    said proxy.log event=proxy.reload 10 $((before + 1))
}

web_socket_says() { gets "$page" --unix-socket "$sockets/web.sock" http://web/; }
web_socket_is_full() { ! web_socket_says; }

# What HUP says of all addresses holds for the sockets that there are.
sockets_are_reloaded() {
    local opened='event=stream.open.*name=web .*sockets/web.sock' before
    before=$(count proxy.log "$opened")
    hold_open held "$build/revdial-proxy" dial web --through "unix:$sockets"
    said proxy.log "$opened" 5 $((before + 1)) && web_socket_says || return
    reload_fronts 'max-clients = 1' || return
    until_true 5 web_socket_is_full || { fail 'it takes a second client'; return; }
    reload_fronts 'max-clients = 100' || return
    until_true 5 web_socket_says || return
    is_running held || { fail 'the first one was cut'; return; }
    let_go held
    await_end held 10
}

# Their directory is removed and made again. What could not be opened meanwhile is tried again; HUP
# opens those that there were, whose clients go on.
sockets_return() {
    local opened='event=stream.open.*name=web .*sockets/web.sock' before
    before=$(count proxy.log "$opened")
    hold_open held "$build/revdial-proxy" dial web --through "unix:$sockets"
    said proxy.log "$opened" 5 $((before + 1)) && rm -r "$sockets" || return
    start_agent more --name more --target "${address_of[httpd]}" &&
        said proxy.log 'event=socket.failed.*more.sock' 5 && mkdir "$sockets" || return
    until_true 10 is_socket "$sockets/more.sock" || { fail 'no more.sock'; return; }
    reload_fronts 'max-clients = 100' || return
    until_true 5 web_socket_says && until_true 5 is_socket "$sockets/late.sock" || return
    is_running held || { fail 'a client was cut'; return; }
    stop more || return  # it has the held one's input open, too
    let_go held
    await_end held 10 || return
    [ "$(count proxy.log 'event=socket.failed')" = 1 ] || fail 'it says so again and again'
}

sockets_of_a_killed_proxy_are_replaced() {
    start_agent late --name late --target "${address_of[httpd]}" || return
    until_true 5 is_socket "$sockets/late.sock" || { fail "no late.sock"; return; }
    end_now proxy late
    touch "$sockets/file.sock"
    python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' \
        "$sockets/OTHERS.sock"
    is_socket "$sockets/late.sock" && is_socket "$sockets/web.sock" ||
        { fail "the sockets are gone already"; return; }
    proxy_at=$tunnel start_fronts || return
    is_gone "$sockets/late.sock" || { fail "late.sock is still there"; return; }
    [ -f "$sockets/file.sock" ] && is_socket "$sockets/OTHERS.sock" ||
        { fail "a file of somebody else was removed"; return; }
    said web.log event=session.up 15 2 || return
    until_true 5 is_socket "$sockets/web.sock" || { fail "no web.sock"; return; }
    gets "$page" --unix-socket "$sockets/web.sock" http://web/
}

clients_are_limited() {
    proxy_at=127.0.0.1:0 start_proxy limited --connect 127.0.0.1:0 --allow-from 10.0.0.0/8 \
        --trusted-proxies 127.0.0.2 || return
    local at got
    at=$(sed -n 's/^listening on \(.*\) for --connect$/\1/p' "$dir/limited.out")
    got=$(curl -sS --max-time 10 -p -x "http://web:@$at" http://x.example/ 2>&1)
    [[ "$got" =~ ^curl: ]] || { fail "a stranger got: $got"; return; }
    said limited.log 'event=client.refused client=127.0.0.1.*allow_from' 5
}

balancer_names_the_client() {
    proxy_at=127.0.0.1:0 start_proxy behind --connect 127.0.0.1:0 --allow-from 203.0.113.0/24 \
        --trusted-proxies 127.0.0.1 --access-log || return
    local at got
    at=$(sed -n 's/^listening on \(.*\) for --connect$/\1/p' "$dir/behind.out")
    got=$(printf '%s\r\n' 'PROXY TCP4 203.0.113.9 192.0.2.1 4711 80' \
        'CONNECT x.example:80 HTTP/1.0' 'Proxy-Authorization: Basic d2ViOg==' '' | through "$at")
    [[ "$got" =~ ^HTTP/1.1\ 503 ]] || { fail "the client got: $got"; return; }
    said behind.log 'event=dial.failed.*client=203.0.113.9:4711' 5
}

# Without a route the answer is 407, with one to an agent that is not there 503.
routes_are_reloaded() {
    printf '%s\n' 'connect = 127.0.0.1:0' 'route = old.example=nobody' >"$dir/fronts.conf"
    proxy_at=127.0.0.1:0 start_proxy reloaded --config "$dir/fronts.conf" || return
    local connect
    connect=$(sed -n 's/^listening on \(.*\) for --connect$/\1/p' "$dir/reloaded.out")
    connect_status 503 http://old.example/ && connect_status 407 http://new.example/ || return
    sed -i s/old/new/ "$dir/fronts.conf"
    kill -HUP "${pid_of[reloaded]}"
    said reloaded.log 'event=proxy.reload.*0 ports opened, 0 changed, 0 closed' 5 || return
    connect_status 407 http://old.example/ && connect_status 503 http://new.example/
}

bad_front_options() {
    local pattern words
    while read -r pattern words; do
        eval "says proxy 2 '$pattern' --listen 127.0.0.1:0 --token-file '$dir/tokens' $words" ||
            return
    done <<'END_OF_LIST'
route.*PATTERN=NAME --route nonsense
route.*brackets --route fd00::/8=web
route.*two.routes --route a=b --route a=c
sockets.*nowhere --sockets /nowhere/at/all
allow.from.*nonsense --connect 127.0.0.1:0 --allow-from nonsense
trusted.proxies.*nonsense --connect 127.0.0.1:0 --trusted-proxies nonsense
nonsense.*port.is.missing --connect nonsense
END_OF_LIST
}

says() {
    local out program=$1 want=$2 pattern=$3
    shift 3
    out=$(timeout 10 "$build/revdial-$program" "$@" 2>&1 </dev/null)
    status=$?
    [ "$status" -eq "$want" ] || { fail "$program $*: ends with $status, not $want: $out"; return; }
    [[ "$out" =~ $pattern ]] || fail "$program $*: says $out"
}

make_file "$dir/file" 24
file_sha=$(sha256 "$dir/file")
check 'HTTP server is up' start_http_server
check 'TLS server is up' start_tls_server
check 'sshd is up' start_sshd
configure_ssh
check 'a server that does not answer is up' start_full
check 'servers are up' start_peers peers "$dir/file"
check 'fronts are up' start_fronts
check 'an agent registers' start_behind
check 'CONNECT by user name' connect_works
check 'CONNECT with a traceparent' connect_is_traced
check 'CONNECT refuses by status' connect_refuses
check 'CONNECT says why' says_why
check 'CONNECT with bytes for the target' early_bytes_arrive
check 'an agent that comes later is reached at once' late_agent_is_reached
check 'SOCKS5' socks5_works
check 'SOCKS5 refuses by reply' socks5_refuses
check 'TLS by server name' sni_works
check 'TLS refuses by alert' sni_refuses
check 'dial carries both directions' dial_carries
check 'an input of dial that breaks is no end' dial_cuts
check 'dial says why it failed' dial_says_why
check 'ssh by dial' ssh_through \
    "$build/revdial-proxy dial web/${address_of[sshd]} --through $connect"
check 'ssh by nc and CONNECT' ssh_through "nc -X connect -x $connect ${address_of[sshd]/:/ }"
check 'scp by dial' scp_through \
    "$build/revdial-proxy dial web/${address_of[sshd]} --through unix:$dir/connect"
check 'rsync by dial' rsync_through \
    "$build/revdial-proxy dial web/${address_of[sshd]} --through $connect"
check 'HUP is for sockets, too' sockets_are_reloaded
check 'a directory of sockets that is made again' sockets_return
check 'a socket goes with its agent' socket_goes_with_the_agent
check 'sockets of a killed proxy are replaced' sockets_of_a_killed_proxy_are_replaced
check 'strangers are kept out' clients_are_limited
check 'a balancer names the client' balancer_names_the_client
check 'HUP replaces routes' routes_are_reloaded
check 'wrong options are refused' bad_front_options
