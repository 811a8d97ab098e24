# revdial-agent doctor: set-ups that work, and broken ones, of which each must name the hop and what
# to do.

certs=$dir/certs

start_patient() {
    start_peers peers "$big" && mkdir -p "$certs" && sh "$here/../tls/certs.sh" "$certs" || return
    printf '%s\n' "web $token" "other other-token-of-somebody" >"$dir/doctor_tokens"
    echo other-token-of-somebody >"$dir/other_token"
    start_proxy proxy --token-file "$dir/doctor_tokens" || return
    plain=$tunnel
    start_proxy secure --token-file "$dir/doctor_tokens" --tls-cert "$certs/server.pem" \
        --tls-key "$certs/server.key" || return
    secured=localhost:${tunnel##*:}
    start_proxy stale --token-file "$dir/doctor_tokens" --tls-cert "$certs/expired.pem" \
        --tls-key "$certs/expired.key" || return
    expired=localhost:${tunnel##*:}
}

# start_broken MODE: $broken is its address
start_broken() {
    start "broken-$1" python3 "$here/broken.py" "$1" "$plain"
    said "broken-$1.out" '^listening' 5 || return
    broken=127.0.0.1:$(sed -n 's/^listening //p' "$dir/broken-$1.out")
}

# doctor STATUS OPTION...: what it says goes to $heard
doctor() {
    local want=$1
    shift
    heard=$("${agent_in[@]}" timeout 60 "$build/revdial-agent" doctor "$@" \
        --name "${doctor_name:-web}" --token-file "${doctor_token:-$dir/token}" 2>&1)
    status=$?
    [ "$status" -eq "$want" ] || { fail "it ends with $status, not $want: $heard"; return; }
}

# finds HOP PATTERN FIX OPTION...: that hop alone is to be mended
finds() {
    local hop=$1 pattern=$2 fix=$3
    shift 3
    doctor 1 "$@" --target "${target:-${address_of[echo]}}" || return
    grep -A1 -E "^FAIL  $hop +.*$pattern" <<<"$heard" | grep -Eq "^ +do: +.*$fix" ||
        { fail "no $hop $pattern $fix in: $heard"; return; }
    [ "$(grep -c '^FAIL' <<<"$heard")" -eq 1 ] || { fail "more than one hop: $heard"; return; }
    figures=$(grep -A1 '^FAIL' <<<"$heard" | tr -s ' \n' ' ' | head -c 150)
}

all_is_well() {
    doctor 0 "${address_of[echo]}" --server "http://$plain" --server "wss://$secured" \
        --tls-ca "$certs/ca.pem" --allow '127.0.0.1:*' --allow "${address_of[echo]}" || return
    [ "$(grep -Ec '^ok +(dns|tcp|tls|upgrade|websocket|credential|name) ' <<<"$heard")" -eq 13 ] ||
        { fail "$heard"; return; }
    [ "$(grep -c '^ok    target' <<<"$heard")" -eq 2 ] || { fail "$heard"; return; }
    figures="$(grep -c '^ok' <<<"$heard") hops"
}

wants_login() {
    start_broken 407 && finds via 407 '--via-file.*USER:PASSWORD' --server "http://$plain" \
        --via "http://$broken" || return
    finds tcp refused 'start the egress proxy.*--via' --server "http://$plain" \
        --via http://127.0.0.1:1 || return
}

stripped() {
    start_broken "$1" && finds upgrade stripped "$2" --server "http://$broken"
}

other_clock() {
    start_broken late && finds clock '36[0-9][0-9] s ahead of' 'clock' --server "http://$broken"
}

held_by_another() {
    printf '%s\n' "* $token" "web other-token-of-somebody" >"$dir/two_tokens"
    start_proxy two --token-file "$dir/two_tokens" || return
    start_agent first --target 127.0.0.1:9 || return
    doctor_token=$dir/other_token finds name another 'another --name.*group' \
        --server "http://$tunnel"
}

wrong_token() { doctor_token=$dir/wrong finds credential 'wrong' '--token-file' "$@"; }

wrong_name() { doctor_name=other finds name 'is not allowed' NAMES "$@"; }

no_rule() {
    finds target 'no rule of --allow covers' "--allow '127.0.0.1:22'" 127.0.0.1:22 \
        --server "http://$plain"
}

refused_target() {
    target=127.0.0.1:$(client port) finds target refused 'start the service' \
        --server "http://$plain"
}

# In a network of its own, where 192.0.2.1 is another machine for all that the doctor can know.
keeps_the_token_from_an_egress_proxy() {
    local ns=rvd-doctor-$$ result there
    ip netns add "$ns" && namespaces+=("$ns") && ip -n "$ns" link set lo up &&
        ip -n "$ns" address add 192.0.2.1/32 dev lo || { fail 'no network namespaces'; return; }
    agent_in=(ip netns exec "$ns")
    start open "${agent_in[@]}" python3 "$here/broken.py" open '' 192.0.2.1
    said open.out '^listening' 5 && there=192.0.2.1:$(sed -n 's/^listening //p' "$dir/open.out") &&
        target=$there finds credential 'not sent to 127.0.0.1 .*through the egress proxy' \
            'https://' --server http://127.0.0.1:7000 --via "http://$there"
    result=$?
    agent_in=()
    return $result
}

knows_this_machine() {
    proxy_at=[::1]:0 start_proxy sixth || return
    doctor 0 "${address_of[echo]}" --allow "${address_of[echo]}" \
        --server "http://[0:0:0:0:0:0:0:1]:${tunnel##*:}"
}

wrong_usage() {
    says agent 2 'server: missing' doctor --name web --target x:1 &&
        says agent 2 'frob' doctor --frob
}

echo "not-$token" >"$dir/wrong"
check 'proxies to look at' start_patient || return
check 'all is well' all_is_well
check '1. the egress proxy wants a login' wants_login
check '2. Upgrade is stripped, WebSocket passes' stripped strip 'use .*ws://'
check '2. Upgrade is stripped' stripped strip-all 'pass Upgrade'
check '3. an expired certificate' finds tls expired 'renew' --server "https://$expired" \
    --tls-ca "$certs/ca.pem"
check '4. a certificate for another name' finds tls 'another name' --server-name \
    --server "https://$secured" --tls-ca "$certs/ca.pem" --server-name proxy.example
check '5. a wrong token (401)' wrong_token --server "http://$plain"
check '6. a name that the token may not register (403)' wrong_name --server "http://$plain"
check '7. a name that another identity holds (409)' held_by_another
check '8. no rule allows a target' no_rule
check '9. a target that refuses' refused_target
check '10. a name that no name server knows' finds dns nosuch resolv.conf \
    --server http://nosuch.invalid:7000
check '11. no proxy is there' finds tcp refused 'start revdial-proxy' \
    --server "http://127.0.0.1:$(client port)"
check '12. an authority that is not trusted' finds tls trusted --tls-ca --server "https://$secured"
check '13. TLS to a port without it' finds tls 'TLS' 'http://' \
    --server "https://localhost:${plain##*:}"
check '14. a clock that is an hour off' other_clock
check '15. a token would go to an egress proxy in cleartext' keeps_the_token_from_an_egress_proxy
check 'an address of this machine, however it is written' knows_this_machine
check 'wrong options' wrong_usage
