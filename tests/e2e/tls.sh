# TLS from end to end: to the proxy itself, to balancers that terminate it, pass it on or begin it
# anew, and with certificates for credentials. Rows of the TLS table by their numbers.

medium_mb=24
. "$here/front.sh"
certs=$dir/certs

has_tls() {
    [[ "$("$build/revdial-agent" --version)" =~ mbedTLS ]] ||
        { fail 'the programs are built without TLS: libmbedtls-dev'; return; }
    mkdir -p "$certs" && sh "$here/../tls/certs.sh" "$certs" &&
        cat "$certs/server.pem" "$certs/server.key" >"$certs/both.pem"
}

serves() {
    start_nginx nginx && start_peers peers "$big" || return
    exposing web nginx upload sink source
}

shows=(--tls-cert "$certs/server.pem" --tls-key "$certs/server.key")

# tls_agent NAME URL OPTION...: waits until it is up
tls_agent() {
    server_url=$2 start_agent "$1" --tls-ca "$certs/ca.pem" --allow '127.0.0.1:*' "${@:3}"
}

# comes_up SCHEME ADDRESS: and the proxy says which carrier it is
comes_up() {
    local ups
    ups=$(count proxy.log 'event=session.up')
    tls_agent agent "$1://localhost:${2##*:}" || return
    said proxy.log 'event=session.up' 5 $((ups + 1)) || return
    figures=$(grep 'event=session.up' "$dir/proxy.log" | tail -n 1 | grep -o 'carrier=websocket')
    case "$1$figures" in
    https | wss?*) ;;
    *) fail "it is another carrier" ;;
    esac
}

# A process is killed in the middle of a download: a prefix, then an error, never EOF.
ends_truly() {
    local got
    start_client reader read "${exposed[3]}" "$big" 50000000
    said reader.out '^reading' 10 || return
    end_now "$1"
    said reader.out same 10 || return
    got=$(tail -n 1 "$dir/reader.out")
    [[ "$got" =~ ^[0-9]+\ same\ reset\  ]] || { fail "the client saw: $got"; return; }
    figures="${got%% *} bytes, then an error"
}

# goes_through WHAT SCHEME ADDRESS VICTIM
goes_through() {
    check "$1: the agent comes up" comes_up "$2" "$3" || { end_now agent; return; }
    check "$1: $medium_mb MiB down and up" copies
    check "$1: 200 pages at one time" many_pages
    check "$1: a client finishes first" finishes_first
    check "$1: $4 is killed" ends_truly "$4"
    end_now agent
}

# What a balancer needs for TLS, as a sed script. http2 is there for others: an agent takes 1.1.
declare -A terminates=(
    [haproxy]="s,bind .*,& ssl crt $certs/both.pem alpn h2\,http/1.1,"
    [nginx]="s,listen .*;,listen FRONT ssl http2; ssl_certificate $certs/server.pem;
        ssl_certificate_key $certs/server.key;,")
# On to the proxy by TLS of its own, which it verifies.
declare -A again=(
    [haproxy]="s,server proxy .*,& ssl verify required ca-file $certs/ca.pem sni str(localhost),"
    [nginx]="s,proxy_pass http:.*,proxy_pass https://TUNNEL; proxy_ssl_verify on; proxy_ssl_name
        localhost; proxy_ssl_server_name on; proxy_ssl_trusted_certificate $certs/ca.pem;,")

# script LINE...: of the tables
script() {
    local line all=
    for line in "$@"; do
        line=${line//$'\n'/ }
        line=${line//FRONT/$front}
        all="$all${line//TUNNEL/$tunnel}"$'\n'
    done
    printf %s "$all"
}

# balances FRONT LINE...
balances() {
    front=127.0.0.1:$(client port)
    front_scheme=https start_front "$1" "$(script "${@:2}")"
}

# The agent must not come in by a certificate of somebody else.
front_is_verified() {
    server_url=https://localhost:${front##*:} start_agent_only agent --tls-ca "$certs/other.pem" \
        --target 127.0.0.1:9
    said agent.log 'event=link.retry.*signed by an authority that is not trusted' 5 || return
    end_now agent
    server_url=https://localhost:${front##*:} start_agent_only agent --tls-ca "$certs/ca.pem" \
        --server-name other.test --target 127.0.0.1:9
    said agent.log 'event=link.retry.*for another name than .*other.test' 5
}

# http:// to a port of TLS, and the other way round: neither waits, neither shows a token.
mixed_up() {
    server_url=http://$tunnel start_agent_only agent --target 127.0.0.1:9
    said proxy.log 'event=session.refused.*is not TLS' 5 || return
    said agent.log 'event=link.retry' 5 || return
    end_now agent
    start_http_server || return
    server_url=https://localhost:${address_of[httpd]##*:} start_agent_only agent \
        --tls-ca "$certs/ca.pem" --target 127.0.0.1:9
    said agent.log 'event=link.retry.*TLS: ' 10 || return
    figures=$(sed -n 's/.*event=link.retry.*reason="\([^"]*\)".*/\1/p' "$dir/agent.log" | head -n 1)
    end_now agent httpd
}

# ---- certificates as credentials ----

mtls_rows() {
    printf '%s\n' 'mtls cam-1,gate DNS:cam-1.cams.test' 'mtls door-* DNS:*.doors.test' \
        'mtls uri URI:spiffe://cams.test/cam-1'
}

start_mtls() {
    mtls_rows >"$dir/mtls"
    exposing gate nginx upload sink source
    start proxy "$build/revdial-proxy" --listen 127.0.0.1:0 --auth-file "$dir/mtls" \
        "${shows[@]}" --client-ca "$certs/ca_crl.pem" "${exposes[@]}"
    said proxy.out '^listening on .* for' 5 || return
    tunnel=$(sed -n '1s/^listening on //p' "$dir/proxy.out")
    mapfile -t exposed < <(sed -n 's/^listening on \(.*\) for .*$/\1/p' "$dir/proxy.out")
    front=$tunnel
}

# mtls_agent CERTIFICATE NAME OPTION...: no token anywhere; "none" shows none
mtls_agent() {
    local shown=(--tls-cert "$certs/$1.pem" --tls-key "$certs/$1.key")
    if [ "$1" = none ]; then shown=(--token-file "$dir/token"); fi
    start agent "$build/revdial-agent" --server "${mtls_scheme:-https}://localhost:${front##*:}" \
        --name "$2" --tls-ca "$certs/ca.pem" "${shown[@]}" --allow '127.0.0.1:*' "${@:3}"
}

# is_admitted CERTIFICATE NAME IDENTITY
is_admitted() {
    local ups
    ups=$(count proxy.log 'event=session.up')
    mtls_agent "$1" "$2"
    said agent.log 'event=session.up' 5 && said proxy.log 'event=session.up' 5 $((ups + 1)) ||
        return
    figures=$(grep 'event=session.up' "$dir/proxy.log" | tail -n 1 |
        sed 's/.*identity=\([^" ]*\).*/\1/')
    [ "$figures" = "$3" ] || { fail "it is $figures"; return; }
    stop agent
}

# Bytes for who has shown nothing but a certificate.
serves_by_certificate() {
    mtls_scheme=$1 mtls_agent cam gate
    said agent.log 'event=session.up' 5 || return
    copies && finishes_first && stop agent
}

# A certificate that is good, of somebody who may not have that name: that is for good.
is_denied() {
    mtls_agent "$1" "$2"
    await_end agent 5 || return
    [ "$status" -eq 3 ] || { fail "it ended with $status"; return; }
    said agent.log 'this name is not allowed with these credentials' 1 &&
        said proxy.log 'event=session.refused.*this name is not allowed' 5
}

# is_refused CERTIFICATE PROXY-SAYS AGENT-SAYS: by TLS, before there is a request
is_refused() {
    local refusals
    refusals=$(count proxy.log "event=session.refused.*$2")
    mtls_agent "$1" cam-1
    said proxy.log "event=session.refused.*$2" 5 $((refusals + 1)) &&
        said agent.log "event=link.retry.*$3" 5 || return
    figures=$(sed -n 's/.*event=link.retry.*reason="\([^"]*\)".*/\1/p' "$dir/agent.log" | head -n 1)
    end_now agent
}

# A row that HUP takes out ends its sessions; the certificate that the agent has meanwhile got comes
# in by another row. What cannot be read is said by both programs, and changes nothing.
changes_certificate() {
    cp "$certs/cam.pem" "$dir/live.pem" && cp "$certs/cam.key" "$dir/live.key"
    mtls_agent cam gate --tls-cert "$dir/live.pem" --tls-key "$dir/live.key"
    said agent.log 'event=session.up' 5 || return
    echo nonsense >"$dir/live.pem"
    kill -HUP "${pid_of[agent]}"
    said agent.log 'event=config.refused.*live.pem: holds no certificate' 5 || return
    copies || return
    cp "$certs/cam2.pem" "$dir/live.pem" && cp "$certs/cam2.key" "$dir/live.key"
    echo 'mtls gate DNS:cam-2.cams.test' >"$dir/mtls"
    kill -HUP "${pid_of[proxy]}"
    said proxy.log 'event=session.revoked.*name=gate' 5 || return
    said proxy.log 'event=session.up.*name=gate.*identity=DNS:cam-2.cams.test' 10 || return
    copies || return
    mtls_rows >"$dir/mtls"
    kill -HUP "${pid_of[proxy]}"
    end_now agent
}

# The balancer reads no byte of it: what the proxy sees is the agent's own certificate.
passes_on() {
    front=127.0.0.1:$(client port)
    cat >"$dir/haproxy.pass" <<END_OF_CONFIG
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s

listen pass
    bind $front
    server proxy $tunnel
END_OF_CONFIG
    start front haproxy -db -f "$dir/haproxy.pass"
    is_admitted cam gate DNS:cam-1.cams.test || return
    serves_by_certificate wss && end_now front
}

check 'the programs have TLS, and certificates are made' has_tls || return
check 'servers are ready' serves
check 'a proxy with TLS' start_proxy proxy "${shows[@]}" "${exposes[@]}"
for way in https wss; do goes_through "$way://" $way "$tunnel" agent; done
check 'http:// to https, and the other way round' mixed_up
for balancer in haproxy nginx; do
    check "$balancer with TLS to agents and to the proxy" balances $balancer \
        "${terminates[$balancer]}" \
        "${again[$balancer]}"
    for way in https wss; do
        goes_through "$way:// through $balancer and https" $way "$front" agent
    done
    end_now front
done
check 'the proxy ends well' stop proxy
check 'a proxy without TLS' start_proxy proxy "${exposes[@]}"
for balancer in haproxy nginx; do
    for way in https wss; do
        check "$balancer with TLS" balances $balancer "${terminates[$balancer]}"
        goes_through "$way:// to $balancer" $way "$front" front
    done
    check "$balancer again" balances $balancer "${terminates[$balancer]}"
    check "D1 D2 a certificate of $balancer that is not good" front_is_verified
    end_now agent front
done
check 'the proxy ends well' stop proxy
check 'a proxy that asks for certificates' start_mtls
check 'A68 a name of the SANs, one of two' is_admitted cam cam-1 DNS:cam-1.cams.test
check 'A68 another name of that row' is_admitted cam gate DNS:cam-1.cams.test
check 'A68 a URI of the SANs' is_admitted cam uri URI:spiffe://cams.test/cam-1
check 'D9 B5 a name of another row' is_denied cam door-1
check 'D9 B5 a certificate of no row' is_denied cam2 cam-1
while IFS=: read -r cert proxy_says agent_says; do
    check "D8 P13 $cert" is_refused "$cert" "$proxy_says" "$agent_says"
done <<'END'
none:showed no certificate:it wants a certificate from us
cam_unknown:signed by an authority that is not trusted:from an authority that it does not trust
cam_expired:has expired:our certificate has expired
cam_revoked:has been revoked:our certificate has been revoked
cam_server:is not meant for this use:our certificate is of an unsupported kind
self:is self-signed:from an authority that it does not trust
END
for way in https wss; do
    check "$way:// with a certificate and nothing else" serves_by_certificate $way
done
check 'D19 B8 another certificate, another identity' changes_certificate
check 'a balancer that passes TLS on' passes_on
check 'the proxy ends well' stop proxy
unset medium_mb
