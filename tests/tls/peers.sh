#!/bin/sh
# The programs with openssl at the other end: what each must refuse, and that it says why. Rows of
# the TLS table by their numbers. Run by run.sh.
build=${REVDIAL_BUILD:-build}
certs=${REVDIAL_TLS_CERTS:-$build/tls/certs}
dir=$build/tls/peers.$$
passed=0
failed=0
pids=
mkdir -p "$dir" || exit 1
trap 'for pid in $pids; do kill -KILL "$pid" 2>/dev/null; done; rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
echo s3cret-of-the-agents >"$dir/token"

# check NAME COMMAND...
check() {
    label=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        echo "FAIL $label"
        failed=$((failed + 1))
        tail -n 3 "$dir"/*.log 2>/dev/null | sed 's/^/    /'
    fi
}

# Waits for a line in a file. said FILE PATTERN
said() {
    tries=0
    until grep -Eq -- "$2" "$dir/$1" 2>/dev/null; do
        tries=$((tries + 1))
        if [ $tries -gt 200 ]; then
            echo "no '$2' in $1"
            return 1
        fi
        sleep 0.05
    done
}

said_not() { ! grep -Eq -- "$2" "$dir/$1"; }

# A stdin that says nothing and does not end: openssl would end with it.
mkfifo "$dir/stdin"
exec 9<>"$dir/stdin"

# start NAME COMMAND...: in the background, with output in NAME.out and NAME.log; its id is $pid
start() {
    who=$1
    shift
    : >"$dir/$who.out" >"$dir/$who.log"  # now: who looks next must not see what was
    "$@" >"$dir/$who.out" 2>"$dir/$who.log" <&9 9<&- &
    pid=$!
    pids="$pids $pid"
}

end() {
    kill "$1" 2>/dev/null
    wait "$1" 2>/dev/null
}

# proxy OPTION...: sets $address
proxy() {
    start proxy "$build/revdial-proxy" --listen 127.0.0.1:0 --token-file "$dir/token" "$@"
    said proxy.out '^listening on' || return
    address=$(sed -n '1s/^listening on //p' "$dir/proxy.out")
}

# client OPTION...: s_client at $address; what it says is in client.log
client() {
    timeout 10 openssl s_client -connect "$address" -CAfile "$certs/ca.pem" "$@" \
        </dev/null >"$dir/client.log" 2>&1
}

# server OPTION...: s_server at 127.0.0.1:$port; its id is $pid
server() {
    start server openssl s_server -accept 127.0.0.1:0 "$@"
    said server.out '^ACCEPT .*:[0-9]+$' || return
    port=$(sed -n 's/^ACCEPT .*:\([0-9]*\)$/\1/p' "$dir/server.out" | tail -n 1)
}

# is_refused PATTERN OPTION...: the proxy closes, and its log says why
is_refused() {
    pattern=$1
    shift
    : >"$dir/proxy.log"
    client "$@"
    said proxy.log "event=session.refused.*$pattern"
}

is_taken() { client "$@" && grep -q 'Verify return code: 0 (ok)' "$dir/client.log"; }

# ---- a proxy, and openssl s_client ----

# With debug, because a peer that has not sent a request is no warning.
proxy --tls-cert "$certs/server.pem" --tls-key "$certs/server.key" --log-level debug || exit 1
check 'a client is taken' is_taken
check 'with forward secrecy' grep -Eq 'Cipher is (ECDHE|TLS_)' "$dir/client.log"
check 'without compression' grep -q 'Compression: NONE' "$dir/client.log"
for version in tls1 tls1_1; do
    check "D5 $version is refused" is_refused 'speaks no version that is accepted' \
        -$version -cipher DEFAULT@SECLEVEL=0
done
for suite in ECDHE-ECDSA-AES128-SHA ECDHE-ECDSA-AES128-SHA256 ECDHE-ECDSA-AES256-CCM; do
    check "D6 $suite is refused" is_refused 'no cipher suite' -tls1_2 -cipher "$suite@SECLEVEL=0"
done
for suite in ECDHE-ECDSA-AES128-GCM-SHA256 ECDHE-ECDSA-CHACHA20-POLY1305 \
    ECDHE-ECDSA-AES256-GCM-SHA384; do
    check "$suite is taken" is_taken -tls1_2 -cipher "$suite"
done

# All that this openssl has beyond what is taken: CBC, CCM, ARIA, Camellia, NULL, DHE, RSA, nobody.
weak=$(openssl ciphers 'ALL:COMPLEMENTOFALL:@SECLEVEL=0' | tr : '\n' | grep -v '^TLS_' | grep -Ev \
    '^ECDHE-(ECDSA|RSA)-(AES(128|256)-GCM-SHA(256|384)|CHACHA20-POLY1305)$' | tr '\n' :)
check 'D6 all other suites at once are refused' is_refused 'no cipher suite' -tls1_2 \
    -cipher "$weak@SECLEVEL=0"

# A request in TLS 1.3's early data, which anybody on the way may send again, is not looked at: the
# first answer is to the request that comes after it. Nothing is taken either where the handshake
# fails: without TLS 1.3, and with mbedTLS 3.6, which cannot skip what it cannot decrypt.
no_early_data() {
    server -cert "$certs/server.pem" -key "$certs/server.key" -tls1_3 -early_data \
        -max_early_data 16384
    served=$pid
    : >"$dir/session.log"
    said session.log 'END SSL SESSION' >&2 | timeout 10 openssl s_client \
        -connect "127.0.0.1:$port" -sess_out "$dir/session.log" >"$dir/client.log" 2>&1
    end "$served"
    openssl sess_id -in "$dir/session.log" -noout -text | grep -q 'Max Early Data: 16384' || return
    printf '%s\r\n' 'GET /revdial HTTP/1.1' 'Host: x' 'Connection: Upgrade' 'Upgrade: revdial' \
        'Revdial-Name: early' "Authorization: Bearer $(cat "$dir/token")" '' >"$dir/early"
    : >"$dir/proxy.log" >"$dir/client.log"
    { said client.log '^Early data was|:error:' && printf 'GET /nothing HTTP/1.1\nHost: x\n\n' &&
        said client.log '^HTTP/1.1 |:error:' >&2; } | timeout 20 openssl s_client -crlf \
        -connect "$address" -sess_in "$dir/session.log" -early_data "$dir/early" \
        >>"$dir/client.log" 2>&1
    said_not proxy.log 'event=session.up' || return
    case $(grep -o '^HTTP/1.1 [0-9]*' "$dir/client.log" | head -n 1) in
    'HTTP/1.1 404') grep -q '^Early data was rejected' "$dir/client.log" ;;
    '') said proxy.log 'event=session.refused' ;;
    *) return 1 ;;
    esac
}
check 'D27 no SNI' is_taken -noservername
check 'D27 another SNI' is_taken -servername other.test

renegotiates() {
    { printf 'R\n' && sleep 0.5; } | timeout 10 openssl s_client -connect "$address" -tls1_2 \
        >"$dir/client.log" 2>&1
    grep -q RENEGOTIATING "$dir/client.log" && ! grep -q 'no renegotiation' "$dir/client.log"
}
check 'D15 renegotiation is refused' eval '! renegotiates'

# resumes VERSION
resumes() {
    rm -f "$dir/session"
    { printf 'GET / HTTP/1.1\r\n\r\n' && sleep 0.3; } | timeout 10 openssl s_client \
        -connect "$address" "$1" -sess_out "$dir/session" -ign_eof >"$dir/client.log" 2>&1
    if [ -s "$dir/session" ]; then client "$1" -sess_in "$dir/session"; fi
    grep -q '^Reused' "$dir/client.log"
}
check 'D19 sessions are not resumed' eval '! resumes -tls1_2'
check 'D19 there are no tickets' eval '! grep -q "TLS session ticket:" "$dir/client.log"'
if client -tls1_3; then
    check 'D19 nor by 1.3' eval '! resumes -tls1_3'
    key_update() {
        : >"$dir/client.log"
        { said client.log 'Verify return code' && printf 'K\n' && said client.log KEYUPDATE &&
            printf 'GET /nothing HTTP/1.1\nHost: x\n\n' && said client.log '^HTTP/1.1 4'; } |
            timeout 10 openssl s_client -connect "$address" -CAfile "$certs/ca.pem" -tls1_3 \
                -crlf >>"$dir/client.log" 2>&1
        grep -q '^HTTP/1.1 4' "$dir/client.log"
    }
    # mbedTLS has none, up to 4.0 at least: then the session ends, and it is said why.
    check 'D21 keys are updated, or it is said that they are not' eval \
        'key_update || said proxy.log "session.refused.*unexpected message"'
fi

proxied=$pid
check 'D20 early data is not taken' no_early_data
pid=$proxied

# A refusal comes whole, and its end is said: openssl minds an end that is not.
answers() {
    printf 'GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n' | timeout 10 openssl s_client \
        -connect "$address" -quiet -ign_eof >"$dir/client.log" 2>&1
    grep -q '^HTTP/1.1 404' "$dir/client.log" && ! grep -q 'unexpected eof' "$dir/client.log"
}
check 'D17 the end is said' answers
end "$pid"

proxy --tls-cert "$certs/server_rsa.pem" --tls-key "$certs/server_rsa.key"
for suite in AES128-SHA AES128-GCM-SHA256 AES256-SHA256 ECDHE-RSA-AES128-SHA \
    DHE-RSA-AES128-GCM-SHA256; do
    check "D6 $suite is refused" is_refused 'no cipher suite' -tls1_2 -cipher "$suite@SECLEVEL=0"
done
check 'RSA is taken' is_taken -tls1_2
end "$pid"

proxy --tls-cert "$certs/server.pem" --tls-key "$certs/server.key" \
    --client-ca "$certs/ca_crl.pem"
check 'D8 no certificate' is_refused 'the peer showed no certificate, and one is required'
while read -r name pattern; do
    check "D8 $name" is_refused "$pattern" -cert "$certs/$name.pem" -key "$certs/$name.key"
done <<'END'
cam_unknown is signed by an authority that is not trusted
cam_expired has expired
cam_revoked has been revoked
cam_server is not meant for this use
self is self-signed and not one that is trusted
END
check 'a good certificate' is_taken -cert "$certs/cam.pem" -key "$certs/cam.key"
end "$pid"

# ---- openssl s_server, and an agent ----

# agent OPTION...: dials $port
agent() {
    start agent "$build/revdial-agent" --server "https://localhost:$port" --name cam-1 \
        --token-file "$dir/token" --tls-ca "$certs/ca.pem" --target 127.0.0.1:9 "$@"
}

# gives_up PATTERN OPTION...: the agent does, says why, and has sent no credential
gives_up() {
    pattern=$1
    shift
    server "$@" || return 1
    served=$pid
    agent $agent_options
    said agent.log "event=link.*$pattern"
    result=$?
    end "$pid"
    end "$served"
    said_not server.out 'Authorization|s3cret' && [ $result -eq 0 ]
}

agent_options=
while read -r name pattern; do
    check "D1 $name" gives_up "$pattern" -cert "$certs/$name.pem" -key "$certs/$name.key"
done <<'END'
expired has expired, by this machine's clock
future is not valid yet, by this machine's clock
self is self-signed and not one that is trusted
unknown is signed by an authority that is not trusted
wrong_use is not meant for this use
cam is for another name than|is not meant for this use
END
weak_key="-cert $certs/weak.pem -key $certs/weak.key -cipher DEFAULT@SECLEVEL=0"
check 'D7 RSA of 1024 bits' gives_up 'is too weak' $weak_key
agent_options='--server-name other.test'
check 'D2 another name' gives_up 'is for another name than .*other.test' \
    -cert "$certs/server.pem" -key "$certs/server.key"
agent_options=
# openssl looks for a suite of 1.1 before it says anything of versions.
check 'D5 a server of TLS 1.1' gives_up 'no version|none of our cipher suites' \
    -cert "$certs/server_rsa.pem" -key "$certs/server_rsa.key" -tls1_1 -cipher DEFAULT@SECLEVEL=0
check 'D6 a server of static RSA' gives_up 'none of our cipher suites' \
    -cert "$certs/server_rsa.pem" -key "$certs/server_rsa.key" -tls1_2 -cipher AES128-GCM-SHA256
check 'D6 a server of all other suites' gives_up 'none of our cipher suites' \
    -cert "$certs/server_rsa.pem" -key "$certs/server_rsa.key" -tls1_2 -cipher "$weak@SECLEVEL=0"
check 'D8 a server that wants a certificate' gives_up 'wants a certificate from us' \
    -cert "$certs/server.pem" -key "$certs/server.key" -Verify 1 -verify_return_error -tls1_2

registers() {
    server -cert "$certs/server.pem" -key "$certs/server.key" -tlsextdebug "$@" || return 1
    served=$pid
    agent
    said server.out '^GET /revdial HTTP/1.1' && said server.out '^Authorization: Bearer s3cret'
}
check 'a good server gets the request' registers
check 'and its tickets are no failure' said_not agent.log 'event=link.retry'
check 'D19 the agent asks for no ticket' eval 'said server.out "server name" &&
    said_not server.out "session ticket"'
kill -KILL "$served"
check 'D16 its end is no clean one' said agent.log 'hung up|may have been cut|connection was lost'
end "$pid"

# ---- both programs ----

: >"$dir/page"
head -c 3000000 /dev/urandom >"$dir/page"
cp "$certs/server.pem" "$dir/live.pem"
cp "$certs/server.key" "$dir/live.key"
start origin python3 -u -m http.server 0 --bind 127.0.0.1 --directory "$dir"
said origin.out 'port [0-9]+'
origin=$(sed -n 's/.*port \([0-9]*\).*/\1/p' "$dir/origin.out")
proxy --tls-cert "$dir/live.pem" --tls-key "$dir/live.key" --client-ca "$certs/ca.pem" \
    --expose 127.0.0.1:0=cam-1
proxied=$pid
exposed=$(sed -n 's/^listening on \(.*\) for .*$/\1/p' "$dir/proxy.out")
port=${address##*:}
agent --tls-cert "$certs/cam.pem" --tls-key "$certs/cam.key" --target "127.0.0.1:$origin"
check 'an agent comes up' said agent.log 'event=session.up'

fetches() { curl -s --max-time 20 "http://$exposed/page" | cmp -s - "$dir/page"; }
check 'bytes are the same at the other end' fetches

serial() { echo | client_cert | openssl x509 -noout -serial 2>/dev/null; }
client_cert() {
    timeout 10 openssl s_client -connect "$address" -cert "$certs/cam.pem" \
        -key "$certs/cam.key" 2>/dev/null
}
before=$(serial)
cp "$certs/server2.pem" "$dir/live.pem"
cp "$certs/server2.key" "$dir/live.key"
kill -HUP "$proxied"
said proxy.log event=proxy.reload
check 'HUP shows the new certificate' eval '[ "$before" ] && [ "$(serial)" ] &&
    [ "$(serial)" != "$before" ]'
echo nonsense >"$dir/live.pem"
kill -HUP "$proxied"
check 'HUP with a bad file is said' said proxy.log 'event=config.refused.*live.pem'
check 'and changes nothing' eval '[ "$(serial)" ]'
check 'and the session is the same' eval 'fetches && said_not proxy.log event=session.down'
check 'no secret in the logs' said_not proxy.log 's3cret|PRIVATE'
end "$pid"
end "$proxied"

usage() {
    pattern=$1
    shift
    "$@" >"$dir/usage.log" 2>&1
    [ $? -eq 2 ] && said usage.log "$pattern"
}
check 'D10 a proxy names the file' usage 'server2.key: the key does not belong' \
    "$build/revdial-proxy" --listen 127.0.0.1:0 --token-file "$dir/token" \
    --tls-cert "$certs/server.pem" --tls-key "$certs/server2.key"
check 'D10 an agent names the file' usage 'not-there.pem: No such file' \
    "$build/revdial-agent" --server https://localhost:1 --name x --token-file "$dir/token" \
    --target 127.0.0.1:9 --tls-ca "$certs/not-there.pem"
${CC:-cc} -I. -c -o "$dir/revdial.o" -DREVDIAL_IMPLEMENTATION -x c revdial.h
${CC:-cc} -I. -o "$dir/plain-agent" examples/agent/*.c examples/program/*.c \
    "$dir/revdial.o" -pthread
check 'D29 without mbedTLS it says so' usage 'built without TLS' "$dir/plain-agent" \
    --server wss://localhost:1 --name x --token-file "$dir/token" --target 127.0.0.1:9

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
