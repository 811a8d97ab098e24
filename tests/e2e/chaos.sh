# What happens to processes, networks, names and clocks while bytes move: a transfer arrives whole,
# or both of its ends see an error. Rows of the list of faults by their numbers (F).

keepalive_ms=500
dead_after_ms=3000
notice_ms=$((keepalive_ms + dead_after_ms + 2000)) # two seconds for a busy machine
back_ms=33000                                      # backoff is at most 30 s
pause=1.5                                          # seconds: shorter than what makes a peer dead
liveness=(--keepalive ${keepalive_ms}ms --dead-after ${dead_after_ms}ms)
rate=8000000
sent=$dir/chaos
make_file "$sent" 12 || return
. "$here/transfers.sh"

build_tools() {
    cc -O1 -D_GNU_SOURCE -o "$dir/link" "$here/link.c" || fail 'link.c does not compile'
}

# ---- two machines and a cable, a name server on the agent's ----

start_names() {
    echo 'nameserver 10.77.0.2' >"$dir/resolv.conf"
    agent_in=(ip netns exec "$agent_ns" sh -c
        'mount --bind "$0" /etc/resolv.conf && exec "$@"' "$dir/resolv.conf")
    names right 10.77.0.1
    start names "${agent_in[@]}" python3 "$here/names.py" 10.77.0.2 "$dir/names"
    said names.out ready 10
}

# names LINE: what the server does from now on
names() {
    echo "$*" >"$dir/names.new"
    mv "$dir/names.new" "$dir/names"
}

start_chaos() {
    start_cable && start_names && start_peers peers "$sent" 10.77.0.2 || return
    exposing web source sink echo 10.77.0.99:9
    start_chaos_proxy && start_chaos_agent
}

start_chaos_proxy() { proxy_at=10.77.0.1:7000 start_proxy proxy "${liveness[@]}" "${exposes[@]}"; }

start_chaos_agent() {
    server_url=http://proxy.chaos.test:7000 start_agent agent "${liveness[@]}" \
        --insecure-cleartext --allow '10.77.0.0/24:*'
}

stops_for_a_moment() {
    kill -STOP "${pid_of[$1]}"
    sleep $pause
    kill -CONT "${pid_of[$1]}"
}

cable_out() { ip -n "$proxy_ns" link set v0 down; }
cable_in() { ip -n "$proxy_ns" link set v0 up; }
out_for_a_moment() { cable_out && sleep $pause && cable_in; }

# One way only: what comes to the machine of the proxy, or of the agent.
way_is_blocked() {
    ip netns exec "$1" nft -f - <<'END_OF_RULES'
table ip gone {
    chain in { type filter hook input priority 0; iifname "v*" drop; }
}
END_OF_RULES
}
way_is_free() { ip netns exec "$1" nft delete table ip gone; }
blocked_for_a_moment() { way_is_blocked "$1" && sleep $pause && way_is_free "$1"; }
proxy_hears_nothing() { way_is_blocked "$proxy_ns"; }
proxy_hears_again() { way_is_free "$proxy_ns"; }
agent_hears_nothing() { way_is_blocked "$agent_ns"; }
agent_hears_again() { way_is_free "$agent_ns"; }

# Both ends get ECONNABORTED or RST in the middle of a frame.
session_is_aborted() { ip netns exec "$1" ss -K state established "${@:2}" >/dev/null 2>&1; }
aborted_at_the_agent() { session_is_aborted "$agent_ns" dport = 7000; }
aborted_at_the_proxy() { session_is_aborted "$proxy_ns" sport = 7000; }

# One target resets: its stream ends with that, and no other one.
target_resets() {
    local got
    start_transfers || return
    session_is_aborted "$agent_ns" sport = "${address_of[source]##*:}" || return
    said reader.out ' (same|different) ' 20 || return
    got=$(tail -n 1 "$dir/reader.out")
    [[ "$got" =~ ^[0-9]+\ same\ reset\  ]] || { fail "the download ended with: $got"; return; }
    said writer.out '^[0-9]' 60 || return
    got=$(tail -n 1 "$dir/writer.out")
    [[ "$got" =~ \ $(sha256 "$sent")\  ]] || fail "the upload ended with: $got"
    end_now idler
}

small_packets() {
    ip -n "$proxy_ns" link set v0 mtu "$1" && ip -n "$agent_ns" link set v1 mtu "$1"
}

# ---- a middlebox ----

# box LINE: what it does with the connections through it from now on
box() {
    echo "$*" >"$dir/box.new"
    mv "$dir/box.new" "$dir/box"
}

# boxed LINE: the same, and it has done so
boxed() {
    local before
    before=$(count box.out "^$*\$")
    box "$@" && said box.out "^$*\$" 20 $((before + 1))
}
box_passes() { box pass; }
box_fins() { boxed fin; }
box_half_proxy() { boxed half proxy; }
box_half_agent() { boxed half agent; }
box_is_late() { boxed late 15; }
box_forgets() { boxed forget; }

start_box() {
    box pass
    start box "${proxy_in[@]}" python3 "$here/box.py" 10.77.0.1:7001 10.77.0.1:7000 "$dir/box"
    said box.out '^listening' 10 && start_chaos_proxy || return
    server_url=http://10.77.0.1:7001 start_agent agent "${liveness[@]}" --insecure-cleartext \
        --allow '10.77.0.0/24:*'
}

# Without TLS nothing notices all of that. Nobody crashes, and the next session is as good as new.
bits_flip() {
    start_transfers && boxed flip || return
    said reader.out ' (same|different) ' 60 && said writer.out '^[0-9]' 60 || return
    end_now idler
    is_running proxy && is_running agent || { fail 'a program has died'; return; }
    box forget
    back_within $back_ms "$EPOCHREALTIME" && box pass && survives true
}

many_reloads() {
    local i
    for i in 1 2 3 4 5 6 7 8 9 10; do
        kill -HUP "${pid_of[proxy]}" "${pid_of[agent]}" || { fail 'a program has died'; return; }
        sleep 0.1
    done
}

# As many busy processes as make eight for each processor.
cores_are_scarce() {
    local i spinners=()
    for i in $(seq $((8 * $(nproc)))); do
        timeout 20 python3 -c 'while True: pass' &
        spinners+=($!)
    done
    said reader.out ' (same|different) ' 60
    kill "${spinners[@]}"
    wait "${spinners[@]}" 2>/dev/null
    return 0
}

# The agent's machine has ten ports for connections to its targets: a client too many gets an
# error, and the session lives.
ports_run_out() {
    local range=/proc/sys/net/ipv4/ip_local_port_range before
    before=$(ip netns exec "$agent_ns" cat $range)
    ip netns exec "$agent_ns" sh -c "echo 40000 40009 >$range" || return
    hold_client holder live "${exposed[2]}" 10
    said holder.out '^live 10' 20 || return
    new_ones_are_refused "${exposed[2]}" || { fail 'there are more ports than ten'; return; }
    let_go holder
    said holder.out '^still 10' 20 || return
    ip netns exec "$agent_ns" sh -c "echo $before >$range"
    is_serving || fail 'no echo when the ports are back'
}

# The session dies while 64 connects wait for a target that is not there.
pending_dials_go() {
    local before down
    before=$(descriptors agent)
    down=$(count proxy.log event=session.down)
    hold_client holder hold "${exposed[3]}" 64 pending
    said holder.out '^holding 64' 20 &&
        until_true 10 has_pending 64 || { fail "$(pending) connects"; return; }
    aborted_at_the_agent && said proxy.log event=session.down 20 $((down + 1)) || return
    until_true 2 has_no_more_than agent "$before" ||
        { fail "$(descriptors agent) descriptors of $before after 2 s"; return; }
    end_now holder
    back_within $back_ms "$EPOCHREALTIME"
}
has_pending() { [ "$(pending)" -ge "$1" ]; }
pending() { ip netns exec "$agent_ns" ss -tnH state syn-sent | wc -l; }

# ---- names ----

# The names go wrong while a session is up, and stay so when it has ended. A new agent has no long
# backoff yet.
names_go_wrong() {
    local asked
    names right 10.77.0.1
    stop agent && start_chaos_agent || return
    names "$@"
    survives true || return
    asked=$(count names.out "^$1.*proxy.chaos.test")
    aborted_at_the_agent && said names.out "^$1.*proxy.chaos.test" 30 $((asked + 1)) || return
    names right 10.77.0.1
    back_within $back_ms "$EPOCHREALTIME"
}

# ---- an agent that comes and goes ----

flaps() {
    local before i
    before=$(descriptors proxy)
    for i in $(seq 30); do
        start flap "${agent_in[@]}" "$build/revdial-agent" --server http://10.77.0.1:7000 \
            --insecure-cleartext --name flap --target 127.0.0.1:9 --token-file "$dir/token"
        said flap.log event=session.up 9 || return
        end_now flap
    done
    until_true 5 has_no_more_than proxy "$before" ||
        fail "$(descriptors proxy) descriptors of the proxy, $before before"
}

# ---- clocks ----

start_both() { start_chaos_proxy && start_chaos_agent; }
start_with_clocks() { with_clocks start_both; }

year=31536000
clock_jumps() {
    local jumps
    for jumps in "$year 0" "-$year 0" '0 0'; do
        jump proxy ${jumps% *} ${jumps#* } && jump agent ${jumps% *} ${jumps#* } || return
        sleep 0.2
    done
}
sleeps_an_hour() { jump "$1" 0 3600; }

# ---- logs that nobody reads ----

start_with_full_logs() {
    local name
    for name in proxy agent; do
        mkfifo "$dir/$name.full"
        exec {fifo}<>"$dir/$name.full"
        dd if=/dev/zero of="$dir/$name.full" bs=4096 count=16 oflag=nonblock 2>/dev/null
    done
    start proxy "${proxy_in[@]}" sh -c 'exec "$@" 2>"$0"' "$dir/proxy.full" "$build/revdial-proxy" \
        --listen 10.77.0.1:7000 --token-file "$dir/tokens" --log-level debug "${exposes[@]}"
    said proxy.out '^listening on' 10 4 || return
    mapfile -t exposed < <(sed -n 's/^listening on \(.*\) for .*$/\1/p' "$dir/proxy.out")
    start agent "${agent_in[@]}" sh -c 'exec "$@" 2>"$0"' "$dir/agent.full" "$build/revdial-agent" \
        --server http://10.77.0.1:7000 --insecure-cleartext --name web --log-level debug \
        --token-file "$dir/token" --allow '10.77.0.2:*'
    back_within $back_ms "$EPOCHREALTIME"
}

full_logs_hold_up_nothing() {
    start_transfers && client crowd "${exposed[2]}" 500 10 5 >/dev/null && arrive_whole 60 ||
        return
    end_now agent
    new_ones_are_refused "${exposed[2]}" || fail 'without an agent a client is served'
}

# ---- links ----

# start_link KBIT DELAY_MS QUEUE_KB LOSS_PERCENT: the same addresses, another device
start_link() {
    ip -n "$proxy_ns" link set v0 down && ip -n "$agent_ns" link set v1 down || return
    ip -n "$proxy_ns" addr flush dev v0 && ip -n "$agent_ns" addr flush dev v1 || return
    start link "$dir/link" "$proxy_ns" 10.77.0.1 "$agent_ns" 10.77.0.2 "$@"
    said link.out '^up' 10
}

end_link() { kill -TERM "${pid_of[link]}" && await_end link 10; }

# whole_over KBIT DELAY_MS QUEUE_KB LOSS_PERCENT
whole_over() {
    start_link "$@" && start_chaos_proxy && start_chaos_agent || return
    start_client reader read "${exposed[0]}" "$sent"
    start_client writer write "${exposed[1]}" "$sent"
    start_client idler idle "${exposed[2]}"
    arrive_whole 90 || return
    [ "$(count proxy.log event=session.down)" -eq 0 ] || { fail 'the session ended'; return; }
    stop agent proxy && end_link || return
    figures=$(tr '\n' ';' <"$dir/link.out")
}

# ---- 1,000 agents over TLS ----

start_many() {
    local certs=$dir/certs
    [[ "$("$build/revdial-agent" --version)" =~ TLS ]] || { fail 'no TLS'; return; }
    mkdir -p "$certs" && sh "$here/../tls/certs.sh" "$certs" || { fail 'no certificates'; return; }
    tls=(--tls-cert "$certs/server.pem" --tls-key "$certs/server.key" --max-sessions 2000)
    start_peers peers "$sent" || return
    exposing web source sink echo
    many_port=$(client port)
    start_tls_proxy || return
    server_url=https://localhost:$many_port start_agent agent --tls-ca "$certs/ca.pem" \
        --allow '127.0.0.1:*' || return
    start many python3 "$here/many_agents.py" "127.0.0.1:$many_port" 1000 "$certs/ca.pem" \
        "$dir/token"
    said many.out '^up 1000' 60
}

start_tls_proxy() { proxy_at=127.0.0.1:$many_port start_proxy proxy "${tls[@]}" "${exposes[@]}"; }

all_leave_and_come_back() {
    local since=$EPOCHREALTIME
    kill -USR1 "${pid_of[many]}"
    said many.out '^up 1000' 30 2 || return
    figures="all are back after $(milliseconds_since "$since") ms"
}

# Their proxy is killed; the ports of the clients are new ones.
proxy_of_many_is_killed() {
    local since ups
    ups=$(count agent.log event=session.up)
    end_now proxy
    start_tls_proxy || return
    since=$EPOCHREALTIME
    said many.out '^up 1000' 60 3 || return
    figures="all are back after $(milliseconds_since "$since") ms"
    said agent.log event=session.up 30 $((ups + 1)) && is_serving
}

check 'nft is here' is_here nft nftables || return
check 'a link and a clock are built' build_tools || return
check 'two machines, a cable and names are ready' start_chaos || return
check 'F4 the agent stops for a moment' survives stops_for_a_moment agent
check 'F4 the proxy stops for a moment' survives stops_for_a_moment proxy
check 'F7 the cable is out for a moment' survives out_for_a_moment
check 'F7 the agent hears nothing for a moment' survives blocked_for_a_moment "$agent_ns"
check 'F7 the proxy hears nothing for a moment' survives blocked_for_a_moment "$proxy_ns"
check 'F5 the cable is out' ends_truly cable_out cable_in
check 'F6 the agent hears nothing any more' ends_truly agent_hears_nothing agent_hears_again
check 'F6 the proxy hears nothing any more' ends_truly proxy_hears_nothing proxy_hears_again
check 'F8 the session is reset at the agent' ends_truly aborted_at_the_agent
check 'F8 the session is reset at the proxy' ends_truly aborted_at_the_proxy
check 'F21 a target resets' target_resets
check 'F43 packets of 200 bytes' survives small_packets 200
check 'packets of 1,500 bytes again' small_packets 1500
check 'ten reloads of both programs' survives many_reloads
check 'F33 eight busy processes for each processor' survives cores_are_scarce
check 'F44 no ports for more targets' ports_run_out
check 'F23 the session is reset while 64 dials wait' pending_dials_go
check 'F24 name server lies' names_go_wrong right 10.77.0.2
check 'F24 name server silent' names_go_wrong silent
check 'F24 no such name' names_go_wrong none
check 'F24 name server fails' names_go_wrong fail
check 'F24 name server sends garbage' names_go_wrong garbage
check 'F27 an agent dies and comes back, 30 times' flaps
check 'proxy and agent end well' stop agent proxy
check 'a middlebox between them' start_box || return
check 'F11 bytes come one by one' survives boxed slices 100000
check 'F12 bytes come in lumps' survives boxed lumps
check 'F14 bytes come a second late' survives boxed late 1
check 'F14 bytes come too late' ends_truly box_is_late box_passes
check 'F9 the connection ends in the middle of a frame' ends_truly box_fins box_passes
check 'F10 the way to the proxy ends' ends_truly box_half_proxy box_passes
check 'F10 the way to the agent ends' ends_truly box_half_agent box_passes
check 'F37 a NAT forgets the connection' ends_truly box_forgets box_passes
check 'F42 bits flip' bits_flip
check 'proxy and agent end well' stop agent proxy
end_now box
check 'programs whose clocks can jump' start_with_clocks || return
check 'F31 the wall clock jumps by a year' survives clock_jumps
check 'F32 the proxy sleeps for an hour' survives sleeps_an_hour proxy
check 'F32 the agent sleeps for an hour' survives sleeps_an_hour agent
check 'proxy and agent end well' stop agent proxy
check 'F30 programs whose logs are full pipes' start_with_full_logs
check 'F30 full logs hold up nothing' full_logs_hold_up_nothing
end_now reader writer idler
check 'the proxy ends well' stop proxy
head -c 1200000 "$big" >"$sent"
check 'F13 20 Mbit/s, 2 x 150 ms' whole_over 20000 150 500 0
end_now link
check 'F13 10 Mbit/s, 2 x 10 ms, 2 % lost' whole_over 10000 10 60 2
end_now link
head -c 300000 "$big" >"$sent"
check 'F13 5 Mbit/s, 2 x 10 ms, 8 % lost' whole_over 5000 10 60 8
end_now link
check 'F15 256 kbit/s behind a queue of 4 s' whole_over 256 40 128 0
end_now link
end_now peers names
pull_the_cable
make_file "$sent" 12
rate=4000000
check 'F26 1,000 agents over TLS' start_many || return
check 'F26 all leave and come back at once' survives all_leave_and_come_back
check 'F26 their proxy is killed, all come back' proxy_of_many_is_killed
end_now many
check 'proxy and agent end well' stop agent proxy
