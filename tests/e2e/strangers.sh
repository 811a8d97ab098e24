# What comes through a balancer from whom nobody knows: requests inside requests, headers that claim
# to be somebody, other protocols. Rows of the threat model by their numbers.

medium_mb=24
. "$here/front.sh"

registration() {
    printf '%s\r\n' 'GET /revdial HTTP/1.1' 'Host: x' 'Connection: Upgrade' 'Upgrade: revdial' \
        "Revdial-Name: smuggled" "Authorization: Bearer $token" ''
}

# request FILE LINE...: a head; what stdin has is its body
request() {
    { printf '%s\r\n' "${@:2}" '' && cat; } >"$dir/$1"
}

write_requests() {
    local length
    length=$(registration | wc -c)
    request plain 'GET /revdial HTTP/1.1' 'Host: x' </dev/null
    registration | request in_post 'POST /revdial HTTP/1.1' 'Host: x' "Content-Length: $length"
    registration | request in_get 'GET /revdial HTTP/1.1' 'Host: x' "Content-Length: $length"
    registration | request in_upgrade 'GET /revdial HTTP/1.1' 'Host: x' 'Connection: Upgrade' \
        'Upgrade: revdial' "Authorization: Bearer x$token" "Content-Length: $length"
    { printf '0\r\n\r\n' && registration; } | request CL_TE 'POST /revdial HTTP/1.1' 'Host: x' \
        "Content-Length: $((length + 5))" 'Transfer-Encoding: chunked'
    { printf '%x\r\n' "$length" && registration && printf '\r\n0\r\n\r\n'; } |
        request TE_CL 'POST /revdial HTTP/1.1' 'Host: x' 'Content-Length: 4' \
            'Transfer-Encoding: chunked'
    { printf '%x\r\n' "$length" && registration && printf '\r\n0\r\n\r\n'; } |
        request chunks 'POST /revdial HTTP/1.1' 'Host: x' 'Transfer-Encoding: chunked'
    registration | request TE_blank 'POST /revdial HTTP/1.1' 'Host: x' \
        'Transfer-Encoding : chunked' "Content-Length: $length"
    registration | request two_CL 'POST /revdial HTTP/1.1' 'Host: x' 'Content-Length: 0' \
        "Content-Length: $length"
}

start_strangers() {
    start_nginx nginx && start_peers peers "$big" && write_requests || return
    printf '%s\n' "bearer * - $token" 'mtls cam-1 DNS:cam-1.cams.test' >"$dir/guests"
    exposing web nginx upload sink source
    start proxy "$build/revdial-proxy" --listen 127.0.0.1:0 --auth-file "$dir/guests" \
        --auth-failures 3 --origin 'https://*.pages.test' --log-level debug "${exposes[@]}"
    said proxy.out '^listening on .* for' 5 || return
    tunnel=$(sed -n '1s/^listening on //p' "$dir/proxy.out")
    mapfile -t exposed < <(sed -n 's/^listening on \(.*\) for .*$/\1/p' "$dir/proxy.out")
}

declare -A forwards=([haproxy]='s/^frontend public/&\n    option forwardfor/'
    [nginx]='s/proxy_pass .*/& proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;/')

# balances FRONT SED_SCRIPT
balances() {
    front=127.0.0.1:$(client port)
    start_front "$1" "$2"
}

# What is in a body stays one: nobody of that name registers, and the answer to what follows on that
# connection is its own.
nothing_is_smuggled() {
    local kind got
    figures=
    for kind in in_post in_get in_upgrade CL_TE TE_CL chunks TE_blank two_CL; do
        got=$(client talk "$front" "$dir/$kind" "$dir/plain" "$dir/plain" 2>&1)
        [[ "$got" =~ ^4[0-9][0-9](\ 426\ 426|\ closed( closed)?|\ 426\ closed)?$ ]] ||
            { fail "$kind is answered: $got"; return; }
        figures="$figures ${got%% *}"
    done
    said_none 'name=smuggled'
}

said_none() {
    ! grep -q -- "$1" "$dir/proxy.log" || fail "the log has $(grep -- "$1" "$dir/proxy.log")"
}

# The front's connection is kept, ours are not: three requests, three connections.
each_has_its_own() {
    local got
    got=$(client talk "$front" "$dir/plain" "$dir/plain" "$dir/plain" 2>&1)
    [ "$got" = '426 426 426' ] || { fail "the answers are: $got"; return; }
    figures=$(grep 'event=session.refused' "$dir/proxy.log" | tail -n 3 |
        grep -o 'peer=[^ ]*' | sort -u | wc -l)
    [ "$figures" -eq 3 ] || { fail "they came in $figures connections"; return; }
}

# asks STATUS URL OPTION...: what curl gets when it asks to register; after a 101 it would wait
asks() {
    local got
    got=$(curl -sS -m 1 -o /dev/null --http1.1 -H 'Connection: Upgrade' -H 'Upgrade: revdial' \
        -H 'Revdial-Name: cam-1' -w '%{http_code}' "${@:3}" "$2/revdial" 2>/dev/null)
    [ "$got" = "$1" ] || fail "curl ${*:3} gets $got, not $1"
}

claims=(-H 'X-Client-Cert: CN=cam-1' -H 'X-SSL-Client-Verify: SUCCESS' -H 'X-SSL-Client-CN: cam-1'
    -H 'X-SSL-Client-SAN: DNS:cam-1.cams.test' -H 'Ssl-Client-Subject-Dn: CN=cam-1'
    -H 'X-Forwarded-Client-Cert: DNS=cam-1.cams.test' -H 'X-Remote-User: alice')

# Nobody is what a header says: not whom a certificate would prove, and not another address. A token
# that was right there before still is, whatever the others behind that front end present.
claims_mean_nothing() {
    local i good=(-H "Authorization: Bearer $token")
    asks 401 "http://$front" "${claims[@]}" || return
    asks 101 "http://$front" "${claims[@]}" "${good[@]}" -H 'X-Forwarded-For: 192.0.2.1' || return
    for i in 1 2 3; do
        asks 401 "http://$front" -H "Authorization: Bearer wrong$i" -H "X-Real-IP: 192.0.2.$i" \
            -H "X-Forwarded-For: 192.0.2.$i" -H "Forwarded: for=192.0.2.$i" || return
    done
    asks 429 "http://$front" -H 'Authorization: Bearer wrong4' -H 'X-Forwarded-For: 192.0.2.9' ||
        return
    asks 101 "http://$front" "${good[@]}" || return
    asks 101 "http://$tunnel" "${good[@]}" --interface 127.0.0.9 || return
    said_none '192.0.2.'
}

# A page in a browser that knows somebody's password. page_gets STATUS ORIGIN
page_gets() {
    local ws=(-H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13'
        -H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' -H 'Sec-WebSocket-Protocol: revdial')
    local got
    got=$(curl -sS -m 1 -o /dev/null --http1.1 -H 'Connection: Upgrade' "${ws[@]}" \
        -H 'Revdial-Name: cam-1' -H "Authorization: Bearer $token" -H "Origin: $2" \
        -w '%{http_code}' "http://$front/revdial" 2>/dev/null)
    [ "$got" = "$1" ] || fail "curl with origin $2 gets $got"
}

other_origins() {
    page_gets 403 https://evil.test && page_gets 101 https://cams.pages.test &&
        page_gets 403 http://cams.pages.test
}

comes_in() {
    server_url=$1://$front start_agent agent --allow '127.0.0.1:*' && copies && stop agent && return
    end_now agent
    return 1
}

# The header of the PROXY protocol is not ours to read at that port.
proxy_header_is_refused() {
    local kind
    for kind in send-proxy send-proxy-v2; do
        front=127.0.0.1:$(client port)
        readme_block haproxy | sed "s/server proxy .*/& $kind/" >"$dir/haproxy.front"
        start front haproxy -db -f "$dir/haproxy.front"
        until_true 5 asks 400 "http://$front" -H "Authorization: Bearer $token" || return
        server_url=http://$front start_agent_only agent --target 127.0.0.1:9
        said agent.log 'event=link.retry.*answered 400 Bad Request' 5 || return
        end_now agent front
    done
    figures=$(sed -n 's/.*event=link.retry.*reason="\([^"]*\)".*/\1/p' "$dir/agent.log" | head -n 1)
}

# A balancer that asks a hundred times a second whether the proxy is there makes no warnings.
health_checks() {
    local before after
    local send='meth GET uri /revdial ver HTTP/1.1 hdr Host x'
    balances haproxy "s,.*server proxy .*,    option httpchk\n    http-check send $send\n\
    http-check expect status 426\n& check inter 10ms," &&
        comes_in http || return
    before=$(count proxy.log level=warn)
    said proxy.log 'level=debug event=session.refused' 5 50 || return
    after=$(count proxy.log level=warn)
    figures="$((after - before)) warnings"
    [ "$after" -eq "$before" ] || fail "$figures"
}

check 'servers and a proxy are ready' start_strangers || return
for balancer in haproxy nginx; do
    check "$balancer that says X-Forwarded-For" balances $balancer "${forwards[$balancer]}"
    check "P4 $balancer: a request within a request" nothing_is_smuggled
    check "P4 $balancer: each request has its connection" each_has_its_own
    check "P20 $balancer: pages of others" other_origins
    for way in http ws; do check "$balancer: $way:// beside all that" comes_in $way; done
    check "P8 P19 $balancer: headers prove nothing" claims_mean_nothing
    end_now front
    check 'another proxy' stop proxy && start_strangers
done
check 'F36 PROXY headers to the tunnel are refused' proxy_header_is_refused
check 'P16 health checks' health_checks
end_now front
check 'the proxy ends well' stop proxy
unset medium_mb
