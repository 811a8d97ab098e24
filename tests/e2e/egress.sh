# An agent whose network lets it out through an egress proxy only: the proxy listens on the loopback
# of another machine, under a name that only that machine knows. In network namespaces.

egress_login=agent:p%40ss%3Aw0rd-$$
egress_password=p@ss:w0rd-$$
plain_password=pass.w0rd-$$ # tinyproxy takes no other characters
make_file "$dir/part" 16
part_sha=$(sha256 "$dir/part")
ln -sf ../part "$www/part"

# start_egress NAME COMMAND...: with our name server, our hosts, and what others than root may read
# in /mnt
start_egress() {
    start "$1" ip netns exec "$proxy_ns" sh -c \
        'mount --bind "$0/hosts" /etc/hosts && mount --bind "$0/resolv.conf" /etc/resolv.conf &&
        mount -t tmpfs -o mode=755 tmpfs /mnt && install -m 644 "$0/users" /mnt && exec "$@"' \
        "$dir" "${@:2}"
}

answers() { ip netns exec "$agent_ns" nc -z "${1%:*}" "${1##*:}"; }
is_up() { until_true 5 answers "$1" || fail "nobody listens on $1; $(tail -n 2 "$dir/$2.log")"; }

# start_tinyproxy NAME PORT LINE...
start_tinyproxy() {
    printf '%s\n' "Port $2" 'Listen 10.77.0.1' 'Timeout 600' "ConnectPort ${tunnel##*:}" \
        "ConnectPort ${tls_tunnel##*:}" 'ConnectPort 9' "${@:3}" >"$dir/$1.conf"
    start_egress "$1" tinyproxy -d -c "$dir/$1.conf"
    is_up "10.77.0.1:$2" "$1"
}

# Its basic authentication is a helper that does not run as root.
start_squid() {
    cat >"$dir/squid.conf" <<END_OF_CONFIG
http_port 10.77.0.1:3130
auth_param basic program $(dpkg -L squid-common squid | grep 'basic_ncsa_auth$') /mnt/users
acl known proxy_auth REQUIRED
http_access deny !known
http_access allow CONNECT
http_access deny all
pid_filename none
access_log none
cache_log /dev/null
cache deny all
coredump_dir /mnt
netdb_filename none
pinger_enable off
visible_hostname egress
shutdown_lifetime 0 seconds
END_OF_CONFIG
    start_egress squid squid -N -f "$dir/squid.conf"
    is_up 10.77.0.1:3130 squid
}

start_danted() {
    cat >"$dir/danted.conf" <<END_OF_CONFIG
internal: 10.77.0.1 port = 1082
external: 127.0.0.1
clientmethod: none
socksmethod: none
user.privileged: root
user.unprivileged: root
logoutput: stderr
client pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }
socks pass { from: 0.0.0.0/0 to: 127.0.0.1/32 port = ${tunnel##*:} command: connect }
socks pass { from: 0.0.0.0/0 to: 127.0.0.1/32 port = ${tls_tunnel##*:} command: connect }
socks block { from: 0.0.0.0/0 to: 0.0.0.0/0 }
END_OF_CONFIG
    start_egress danted danted -f "$dir/danted.conf"
    is_up 10.77.0.1:1082 danted
}

# ssh -D, from the agent's machine to an sshd on the other one.
start_ssh() {
    sshd_at=10.77.0.1 start_sshd || return
    start ssh ip netns exec "$agent_ns" ssh -N -D 127.0.0.1:1083 -F /dev/null -i "$dir/id" \
        -o IdentitiesOnly=yes -o BatchMode=yes -o LogLevel=ERROR -o StrictHostKeyChecking=no \
        -o UserKnownHostsFile=/dev/null -o ExitOnForwardFailure=yes \
        -p "${address_of[sshd]##*:}" "$(id -un)@10.77.0.1"
    ip netns exec "$agent_ns" ip link set lo up
    is_up 127.0.0.1:1083 ssh
}

# A second proxy, whose certificate is for loop.test: at $tls_tunnel and $tls_exposed[].
start_tls_proxy() {
    mkdir -p "$dir/certs" && sh "$here/../tls/certs.sh" "$dir/certs" || return
    start_proxy tls_proxy --tls-cert "$dir/certs/server.pem" --tls-key "$dir/certs/server.key" \
        "${exposes[@]}" || { fail 'no proxy with TLS: libmbedtls-dev'; return; }
    tls_tunnel=$tunnel
    tls_exposed=("${exposed[@]}")
}

start_behind() {
    start_cable || return
    printf '127.0.0.1 localhost tunnel.example loop.test\n' >"$dir/hosts"
    echo 'nameserver 127.0.0.1' >"$dir/resolv.conf"
    chmod go+r "$dir/hosts" "$dir/resolv.conf"
    echo "agent:$(openssl passwd -apr1 "$egress_password")" >"$dir/users"
    start names ip netns exec "$proxy_ns" python3 "$here/peers.py" names
    said names.out ready 5 || return
    start_peers peers "$dir/part" || return
    exposing web source upload
    start_tls_proxy && start_proxy proxy "${exposes[@]}" || return
    plain_exposed=("${exposed[@]}")
    echo "http://agent:pass%2Ew0rd%2D$$@10.77.0.1:3129" >"$dir/via_http"
    echo "socks5://$egress_login@10.77.0.1:1081" >"$dir/via_socks"
    echo "http://$egress_login@10.77.0.1:3130" >"$dir/via_squid"
    echo "http://agent:wrong-$$@10.77.0.1:3129" >"$dir/via_wrong_http"
    echo "socks5://agent:wrong-$$@10.77.0.1:1081" >"$dir/via_wrong_socks"
    echo "http://agent:wrong-$$@10.77.0.1:3130" >"$dir/via_wrong_squid"
}

start_open_ones() {
    start_tinyproxy tinyproxy 3128 || return
    start_egress microsocks microsocks -i 10.77.0.1 -p 1080 && is_up 10.77.0.1:1080 microsocks
}

start_closed_ones() {
    start_tinyproxy tinyproxy_login 3129 "BasicAuth agent $plain_password" || return
    start_egress microsocks_login microsocks -i 10.77.0.1 -p 1081 -u agent -P "$egress_password" &&
        is_up 10.77.0.1:1081 microsocks_login
}

# via_agent NAME OPTION...: an agent that can reach the proxy in no other way
via_agent() {
    end_now agent
    start "$1" "${agent_in[@]}" "$build/revdial-agent" --name web --verbose \
        --server "${scheme:-http}://${server:-tunnel.example:${tunnel##*:}}" \
        --token-file "$dir/token" \
        --allow '127.0.0.1:*' "${in_cleartext[@]}" "${@:2}"
}
in_cleartext=(--insecure-cleartext)

keeps_its_token() {
    in_cleartext=()
    rejected_by 2 'refusing to send the token in cleartext' --via http://10.77.0.1:3128
    local verdict=$?
    in_cleartext=(--insecure-cleartext)
    return $verdict
}

# works OPTION...: bytes come through, both ways
works() {
    local got
    via_agent agent "$@"
    said agent.log event=session.up 5 || return
    got=$(through "${exposed[0]}" -N -d | sha256sum)
    [ "${got%% *}" = "$part_sha" ] || { fail "another file came"; return; }
    got=$("${proxy_in[@]}" curl -sS --max-time 60 -T "$dir/part" "http://${exposed[1]}/" 2>&1)
    [ "$got" = "$part_sha" ] || { fail "the server saw another file: $got"; return; }
    figures=$(sed -n 's/.*session.up.* \(via=[^ ]*\).*/\1/p' "$dir/agent.log")
    stop agent
}

# rejected_by STATUS PATTERN OPTION...: the agent ends so, and says so
rejected_by() {
    via_agent agent "${@:3}"
    await_end agent 10 || return
    [ "$status" -eq "$1" ] || { fail "it ended with $status, not $1"; return; }
    figures=$(sed -n 's/.*event=agent.failed reason="\(.*\)"$/\1/p' "$dir/agent.log")
    [[ "$figures" =~ $2 ]] || fail "it said $figures"
}

# refused_by PATTERN OPTION...: the agent says so, and tries again
refused_by() {
    via_agent agent "${@:2}"
    said agent.log event=link.retry 10 2 || return
    figures=$(sed -n 's/.*event=link.retry.* reason="\(.*\)"$/\1/p' "$dir/agent.log" | tail -n 1)
    [[ "$figures" =~ $1 ]] || { fail "it said $figures"; return; }
    stop agent
}

# secure SCHEME HOST OPTION...: through TLS, and nothing is allowed in cleartext
secure() {
    local scheme=$1 server=$2:${tls_tunnel##*:} in_cleartext=() verdict
    exposed=("${tls_exposed[@]}")
    works --tls-ca "$dir/certs/ca.pem" "${@:3}"
    verdict=$?
    exposed=("${plain_exposed[@]}")
    return $verdict
}

# The egress proxy is believed in nothing: it has led to somebody else.
is_verified() {
    local scheme=wss server=$1:${tls_tunnel##*:} in_cleartext=()
    refused_by 'TLS: the peer.s certificate is for another name than .*tunnel.example' \
        --tls-ca "$dir/certs/ca.pem" "${@:2}"
}

comes_back() {
    via_agent agent --via http://10.77.0.1:3128 --target "${address_of[ann]}"
    said agent.log event=session.up 5 || return
    end_now tinyproxy
    said agent.log 'event=link.retry.*cannot connect to the egress proxy' 10 || return
    start_tinyproxy tinyproxy 3128 && said agent.log event=session.up 20 2 && stop agent
}

from_the_environment() {
    REVDIAL_VIA=$(cat "$dir/via_http") HTTPS_PROXY=http://10.77.0.1:1 works
}

no_password() {
    local found name
    for name in "w0rd-$$" "w0rd%2D$$" "wrong-$$" \
        "$(printf 'agent:%s' "$egress_password" | base64)"; do
        found=$(grep -lF -- "$name" "$dir"/*agent*.log "$dir"/*agent*.out "$dir/before.log")
        [ -z "$found" ] || { fail "it is in $found"; return; }
    done
    found=$(grep -lF -- "wrong-$$" /proc/[0-9]*/cmdline 2>/dev/null)
    [ -z "$found" ] || fail "ps shows it"
}

squid=http://10.77.0.1:3130
tiny=http://10.77.0.1:3128
micro=socks5://10.77.0.1:1080
check 'namespaces, a proxy and servers are ready' start_behind || return
check 'tinyproxy and microsocks are ready' start_open_ones
check 'tinyproxy and microsocks that want a login are ready' start_closed_ones
check 'squid is ready' start_squid
check 'dante is ready' start_danted
check 'ssh -D is ready' start_ssh
check 'tinyproxy' works --via $tiny
scheme=ws check 'tinyproxy and WebSocket' works --via $tiny
check 'tinyproxy with a login' works --via-file "$dir/via_http"
check 'tinyproxy from the environment' from_the_environment
check 'squid with a login' works --via-file "$dir/via_squid"
check 'microsocks' works --via $micro
check 'microsocks with a login' works --via-file "$dir/via_socks"
server=$tunnel check 'dante' works --via socks5://10.77.0.1:1082
server=$tunnel check 'ssh -D' works --via socks5://127.0.0.1:1083
for way in https wss; do
    check "$way:// and tinyproxy" secure $way loop.test --via $tiny
    check "$way:// and tinyproxy with a login" secure $way loop.test --via-file "$dir/via_http"
    check "$way:// and squid with a login" secure $way loop.test --via-file "$dir/via_squid"
    check "$way:// and microsocks" secure $way loop.test --via $micro
    check "$way:// and microsocks with a login" secure $way loop.test --via-file "$dir/via_socks"
    check "$way:// and dante" secure $way 127.0.0.1 --via socks5://10.77.0.1:1082 \
        --server-name loop.test
done
check 'X4 tinyproxy leads to another' is_verified tunnel.example --via $tiny
check 'X4 microsocks leads to another' is_verified tunnel.example --via $micro
server=$tunnel check 'no token in cleartext, exit code 2' keeps_its_token
check 'tinyproxy rejects a login, exit code 3' rejected_by 3 \
    'egress proxy 10.77.0.1:3129 refused: 401, it rejects' --via-file "$dir/via_wrong_http"
check 'squid rejects a login, exit code 3' rejected_by 3 \
    'egress proxy 10.77.0.1:3130 refused: 407, it rejects' --via-file "$dir/via_wrong_squid"
check 'microsocks rejects a login, exit code 3' rejected_by 3 \
    'egress proxy 10.77.0.1:1081 refused: .*it rejects' --via-file "$dir/via_wrong_socks"
check 'tinyproxy wants a login' rejected_by 3 '407, it wants' --via http://10.77.0.1:3129
check 'squid wants a login' rejected_by 3 '407, it wants' --via $squid
check 'microsocks wants a login' rejected_by 3 'it wants' --via socks5://10.77.0.1:1081
server=tunnel.example:22 check 'tinyproxy has rules' refused_by '403, its rules' --via $tiny
server=127.0.0.1:9 check 'dante has rules' refused_by '2, its rules' \
    --via socks5://10.77.0.1:1082
server=tunnel.example:9 check 'tinyproxy cannot connect' refused_by '50[0-9], ' --via $tiny
server=tunnel.example:9 check 'microsocks cannot connect' refused_by \
    '5, the destination refuses' --via $micro
server=no.such.host:9 check 'tinyproxy finds no such host' refused_by '50[0-9], ' --via $tiny
server=no.such.host:9 check 'microsocks finds no such host' refused_by '[14], ' --via $micro
check 'SOCKS5 to sshd' refused_by 'not that of a SOCKS5 proxy' --via "socks5://${address_of[sshd]}"
check 'HTTP to sshd' refused_by 'not that of an HTTP proxy' --via "http://${address_of[sshd]}"
check 'HTTP to a SOCKS5 proxy' refused_by 'not that of an HTTP proxy|without an answer' \
    --via http://10.77.0.1:1080
check 'an egress proxy that comes back' comes_back
check 'no password in logs and ps' no_password
check 'all end well' stop proxy tls_proxy
pull_the_cable
