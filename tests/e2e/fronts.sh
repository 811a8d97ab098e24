# Clients that say where they want to go: through a Unix socket for each agent, and on standard
# input.

start_fronts() {
    sockets=$dir/sockets
    mkdir -p "$sockets"
    start_proxy proxy --sockets "$sockets" --unix-mode 0660 --access-log "$@"
}

start_behind() { start_agent web --target "${address_of[httpd]}"; }

# gets WANT CURL_OPTION...: curl prints that
gets() {
    local got want=$1
    shift
    got=$(curl -sS --max-time 30 "$@" 2>&1)
    [ "$got" = "$want" ] || fail "curl $*: $got"
}

page='hello from behind the tunnel'

dial_carries() {
    local got
    got=$(printf 'GET / HTTP/1.0\r\n\r\n' |
        "$build/revdial-proxy" dial web --through "unix:$sockets" | tail -n 1)
    [ "$got" = "$page" ] || { fail "the agent's own target: $got"; return; }
    # A file each way, and each end finishes by itself.
    got=$("$build/revdial-proxy" dial sink --through "unix:$sockets" <"$dir/file")
    [ "$got" = "$file_sha $(stat -c %s "$dir/file")" ] || { fail "sent: $got"; return; }
    got=$("$build/revdial-proxy" dial source --through "unix:$sockets" </dev/null | sha256sum)
    [ "${got%% *}" = "$file_sha" ] || fail "received: $got"
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
        dial_ends 5 'nobody.sock' nobody --through "unix:$sockets"
}

ssh_at() {
    ssh -F /dev/null -i "$dir/id" -o BatchMode=yes -o StrictHostKeyChecking=no \
        -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o "ProxyCommand=$1" \
        "$(id -un)@behind" "${@:2}"
}

ssh_through() {
    local got
    got=$(ssh_at "$1" 'echo from $(cat)' <<<'the other side' 2>&1)
    [ "$got" = 'from the other side' ] || fail "ssh says $got"
}

is_socket() { [ -S "$1" ]; }
is_gone() { [ ! -e "$1" ]; }

start_more() {
    start_agent sink --name sink --target "${address_of[sink]}" &&
        start_agent source --name source --target "${address_of[source]}" &&
        start_agent shell --name shell --target "${address_of[sshd]}" || return
    until_true 5 is_socket "$sockets/shell.sock" || fail "no shell.sock"
}

late_agent_is_reached() {
    start_agent late --name late --target "${address_of[httpd]}" || return
    until_true 5 is_socket "$sockets/late.sock" || { fail "no late.sock"; return; }
    gets "$page" --unix-socket "$sockets/late.sock" http://late/ || return
    [ "$(stat -c %a "$sockets/late.sock")" = 660 ] || fail "mode $(stat -c %a "$sockets/late.sock")"
}

socket_goes_with_the_agent() {
    stop late || return
    until_true 5 is_gone "$sockets/late.sock" || { fail "late.sock is still there"; return; }
    is_socket "$sockets/web.sock" || fail "so is no web.sock"
}

sockets_of_a_killed_proxy_are_replaced() {
    start_agent late --name late --target "${address_of[httpd]}" || return
    until_true 5 is_socket "$sockets/late.sock" || { fail "no late.sock"; return; }
    end_now late proxy
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

no_directory() {
    local got
    got=$("$build/revdial-proxy" --listen 127.0.0.1:0 --token-file "$dir/tokens" \
        --sockets /nowhere/at/all 2>&1)
    status=$?
    [ "$status" -eq 2 ] && [[ "$got" =~ --sockets:\ /nowhere/at/all ]] || fail "$status: $got"
}

make_file "$dir/file" 24
file_sha=$(sha256 "$dir/file")
check 'HTTP server is up' start_http_server
check 'sshd is up' start_sshd
check 'servers are up' start_peers peers "$dir/file"
check 'the proxy is up' start_fronts
check 'an agent registers' start_behind
check 'an agent that comes later is reached at once' late_agent_is_reached
check 'more agents' start_more
check 'dial carries both directions' dial_carries
check 'dial says why it failed' dial_says_why
check 'ssh by dial' ssh_through "$build/revdial-proxy dial shell --through unix:$sockets"
check 'a socket goes with its agent' socket_goes_with_the_agent
check 'sockets of a killed proxy are replaced' sockets_of_a_killed_proxy_are_replaced
check 'a directory that is missing is refused' no_directory
