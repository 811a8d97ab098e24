# Programs that have too little of something, restart or are told to end while bytes move: a
# transfer arrives whole, or its ends see an error that says what happened. Rows of the list of
# faults by their numbers (F).

keepalive_ms=500
dead_after_ms=3000
notice_ms=$((keepalive_ms + dead_after_ms + 2000)) # two seconds for a busy machine
back_ms=33000                                      # backoff is at most 30 s
liveness=(--keepalive ${keepalive_ms}ms --dead-after ${dead_after_ms}ms)
rate=8000000
sent=$dir/trouble
make_file "$sent" 12 || return
. "$here/transfers.sh"

start_trouble() {
    start_cable && start_peers peers "$sent" 10.77.0.2 || return
    exposing web source sink echo deaf
    start_trouble_proxy && start_trouble_agent
}

start_trouble_proxy() {
    proxy_at=0.0.0.0:7000 start_proxy proxy "${liveness[@]}" "${exposes[@]}" "$@"
}
start_trouble_agent() {
    server_url=http://10.77.0.1:7000 start_agent agent "${liveness[@]}" --insecure-cleartext \
        --allow '10.77.0.0/24:*' "$@"
}

# Nobody reads EOF before the end, nor a byte that was not sent; both transfers have ended.
tell_the_truth() {
    local got size
    size=$(stat -c %s "$sent")
    said reader.out ' (same|different) ' 60 && said writer.out '^[0-9]' 60 || return
    got=$(tail -n 1 "$dir/reader.out")
    [[ "$got" =~ ^([0-9]+)\ same\ (reset|eof)\  ]] &&
        [ "${BASH_REMATCH[2]}" = reset -o "${BASH_REMATCH[1]}" -eq "$size" ] ||
        { fail "the download ended with: $got"; return; }
    got=$(tail -n 1 "$dir/writer.out")
    [[ "$got" =~ \ (reset|BrokenPipeError)$ || "$got" = "$size $(sha256 "$sent") $size" ]] ||
        { fail "the upload ended with: $got"; return; }
    end_now idler
}

# ---- descriptors and memory ----

# F28: strangers have taken all descriptors that the proxy may have. What goes on goes on, the
# proxy does not spin, and when they leave there is room again.
descriptors_run_out() {
    local before
    start_transfers || return
    prlimit --pid "${pid_of[proxy]}" --nofile=$(($(descriptors proxy) + 8)): || return
    hold_client holder hold "${exposed[2]}" 100 pending
    said holder.out '^holding 100' 20 && said proxy.log event=accept.paused 10 &&
        arrive_whole 60 || return
    before=$(ticks proxy)
    sleep 2
    [ $(($(ticks proxy) - before)) -lt 20 ] ||
        { fail "$(($(ticks proxy) - before)) ticks of 200 while nobody could be let in"; return; }
    figures="$(($(ticks proxy) - before)) ticks of 200 meanwhile"
    end_now holder
    until_true 10 is_serving || { fail 'nobody is served when they have left'; return; }
    prlimit --pid "${pid_of[proxy]}" --nofile="$(ulimit -Hn):"
}

# limit_memory PROGRAM KIB: it gets no more than that beyond what it has
limit_memory() {
    local now
    now=$(awk '/^VmData:/ { print $2 }' "/proc/${pid_of[$1]}/status")
    prlimit --pid "${pid_of[$1]}" --data=$(((now + $2) * 1024)):
}
has_memory_again() { prlimit --pid "${pid_of[$1]}" --data=unlimited:; }

has_tried() { has_lines "$1.out" '^holding' 1 || ! is_running "$1"; } # one may have been reset

# F29: a program gets no more memory, and clients that its targets do not read from fill what it
# has. Some streams end; the programs do not, and serve all when there is memory again.
memory_runs_out() {
    local before
    stop agent proxy && start_trouble_proxy && start_trouble_agent || return
    before=$(descriptors "$1") # and nothing that it has had before
    start_transfers && limit_memory "$1" "$2" || return
    hold_client holder stuff "${exposed[3]}" 1000
    until_true 60 has_tried holder || { fail 'clients hang'; return; }
    tell_the_truth || return
    is_running proxy && is_running agent || { fail 'a program has died'; return; }
    end_now holder
    has_memory_again "$1"
    back_within $back_ms "$EPOCHREALTIME" && until_true 10 has_no_more_than "$1" "$before" ||
        { fail "${why:-$(descriptors "$1") descriptors of $before}"; return; }
    figures="$figures, $(grep -c memory "$dir/$1.log") lines of its log say so"
    [[ "$figures" != *', 0 lines'* ]] || fail 'there was memory enough'
}

# ---- restarts ----

# F25: a hundred agents lose their proxy at the same moment.
start_herd() {
    local i
    for i in $(seq 100); do
        start "herd$i" "${agent_in[@]}" "$build/revdial-agent" --server http://10.77.0.1:7000 \
            --insecure-cleartext --name "herd-$i" --target 10.77.0.99:9 \
            --token-file "$dir/token" --log-format logfmt
    done
    herd_is_up 1
}

herd_is_up() { until_true 60 herd_has "$1" || fail "$(herd_ups "$1") of 100 are up"; }
herd_ups() { grep -c event=session.up "$dir"/herd*.log | grep -c ":$1\$"; }
herd_has() { [ "$(herd_ups "$1")" -eq 100 ]; }

# The proxy is away for as long as each of them needs for three attempts. All are back in time, and
# no more than a fifth of them in one tenth of a second.
herd_has_tried() { [ "$(grep -c event=link.retry "$dir"/herd*.log | grep -c ':[0-2]$')" -eq 0 ]; }
herd_comes_back() {
    local since most
    end_now proxy
    until_true 30 herd_has_tried || { fail 'not all have tried three times'; return; }
    start_trouble_proxy || return
    since=$EPOCHREALTIME
    herd_is_up 2 || return
    most=$(for i in $(seq 100); do grep event=session.up "$dir/herd$i.log" | tail -n 1; done |
        sed -n 's/.*ts=[^ ]*T\([0-9:]*\.[0-9]\).*/\1/p' | sort | uniq -c | sort -n | tail -n 1)
    figures="all are back after $(milliseconds_since "$since") ms, at most $most"
    [ "$(awk '{ print $1 }' <<<"$most")" -le 20 ] || { fail "a herd: $most"; return; }
    back_within $back_ms "$since"
}

end_herd() {
    local i herd=()
    for i in $(seq 100); do herd+=("herd$i"); done
    end_now "${herd[@]}"
}

# ---- one name, two hosts ----

other_ns=revdial-$$-other

# A third machine, 10.78.0.2, which the cable of the second one does not touch.
start_other_machine() {
    ip netns add "$other_ns" && namespaces+=("$other_ns") &&
        ip link add v2 netns "$proxy_ns" type veth peer name v3 netns "$other_ns" &&
        ip -n "$proxy_ns" addr add 10.78.0.1/24 dev v2 &&
        ip -n "$other_ns" addr add 10.78.0.2/24 dev v3 &&
        ip -n "$proxy_ns" link set v2 up && ip -n "$other_ns" link set v3 up &&
        ip -n "$other_ns" link set lo up && ip -n "$other_ns" addr add 10.77.0.2/32 dev lo ||
        fail 'no third machine'
}

# Their own targets have the addresses of those that are cut off.
start_agent_there() {
    local name status
    local -A before
    for name in "${!address_of[@]}"; do before[$name]=${address_of[$name]}; done
    agent_in=(ip netns exec "$other_ns")
    start_peers peers_there "$sent" 10.77.0.2 &&
        server_url=http://10.78.0.1:7000 start_agent other "${liveness[@]}" --insecure-cleartext \
            --target "${address_of[echo]}"
    status=$?
    agent_in=(ip netns exec "$agent_ns")
    for name in "${!before[@]}"; do address_of[$name]=${before[$name]}; done
    return $status
}

cable_out() { ip -n "$proxy_ns" link set v0 down; }
cable_in() { ip -n "$proxy_ns" link set v0 up; }

# F34: the first one is cut off, and the proxy does not know it yet when the second one comes.
half_open_and_another() {
    local since
    client echo_once "${exposed[0]}" >/dev/null && cable_out || return
    start_agent_there || return
    since=$EPOCHREALTIME
    until_true 4 serves_now || { fail 'no client is served after 4 s'; return; }
    figures="served $(milliseconds_since "$since") ms after it has come"
    [ "$(milliseconds_since "$since")" -le 3000 ] || { fail "$figures"; return; }
    said proxy.log 'event=session.(down|replaced)' 20 && cable_in &&
        said agent.log event=session.up 40 2 || return
    stop agent && until_true 10 serves_now && stop other
}
serves_now() { [ "$(client echo_once "${exposed[0]}" 2>/dev/null)" = ping ]; }

# ---- another certificate ----

start_with_certificate() {
    local certs=$dir/certs
    [[ "$("$build/revdial-agent" --version)" =~ TLS ]] || { fail 'no TLS'; return; }
    mkdir -p "$certs" && sh "$here/../tls/certs.sh" "$certs" || { fail 'no certificates'; return; }
    cp "$certs/server.pem" "$dir/live.pem" && cp "$certs/server.key" "$dir/live.key" &&
        start_trouble_proxy --tls-cert "$dir/live.pem" --tls-key "$dir/live.key" && start_tls_agent
}

start_tls_agent() {
    local status before=("${agent_in[@]}")
    agent_in=("${proxy_in[@]}") # where "localhost" is the proxy
    server_url=https://localhost:7000 start_agent agent "${liveness[@]}" \
        --tls-ca "$dir/certs/ca.pem" --allow '10.77.0.0/24:*'
    status=$?
    agent_in=("${before[@]}")
    return $status
}

serial_of() { openssl x509 -noout -serial -in "$1"; }
is_shown() {
    [ "$("${proxy_in[@]}" openssl s_client -connect 10.77.0.1:7000 </dev/null 2>/dev/null |
        openssl x509 -noout -serial)" = "$(serial_of "$1")" ]
}

certificate_is_replaced() {
    is_shown "$dir/certs/server.pem" || { fail 'the first one is not shown'; return; }
    cp "$dir/certs/server2.pem" "$dir/live.pem" && cp "$dir/certs/server2.key" "$dir/live.key"
    kill -HUP "${pid_of[proxy]}"
    until_true 10 is_shown "$dir/certs/server2.pem" || fail 'the second one is not shown'
}

next_session_sees_it() {
    stop agent && start_tls_agent && survives true
}

# ---- being told to end ----

# How many streams go on when one of the programs has been told to drain.
begin_drain() {
    hold_client holder live "${exposed[2]}" 100
    said holder.out '^live 100' 20 && kill -TERM "${pid_of[$1]}" || return
    until_true 10 new_ones_are_refused "${exposed[2]}" || fail 'a new stream is taken'
}

# F38: a program is told to end while 100 streams are busy. They go on, and when they have ended it
# does; its peer hears of that once.
drains() {
    begin_drain "$1" || return
    let_go holder
    said holder.out '^still 100' 20 && await_end "$1" 10 || return
    [ "$status" -eq 0 ] || { fail "$1 ended with $status"; return; }
    [ "$(count "$2.log" event=session.draining)" -eq 1 ] ||
        { fail "$(count "$2.log" event=session.draining) times"; return; }
    end_now holder
}

# Those that do not end are cut at the end of --drain, and their ends read no EOF.
drains_for_five_seconds() {
    local since
    start_client idler idle "${exposed[2]}"
    said idler.out '^idle' 10 || return
    since=$EPOCHREALTIME
    kill -TERM "${pid_of[$1]}" && await_end "$1" 15 || return
    figures="ended after $(milliseconds_since "$since") ms with $status"
    said idler.out '^[a-z]+ [0-9]' 10 || return
    [[ "$(tail -n 1 "$dir/idler.out")" =~ ^reset\  ]] ||
        fail "the client saw $(tail -n 1 "$dir/idler.out")"
}

# F40: as many TERMs as there may be in a moment are one.
storm_of_signals() {
    local i
    hold_client holder live "${exposed[2]}" 20
    said holder.out '^live 20' 20 || return
    for i in $(seq 200); do kill -TERM "${pid_of[$1]}" || { fail "$1 died"; return; }; done
    let_go holder
    said holder.out '^still 20' 20 && await_end "$1" 10 || return
    [ "$status" -eq 0 ] || fail "$1 ended with $status"
    end_now holder
}

# F40: one that comes later ends it at once, and it says so in its status.
second_signal() {
    local since
    start_client idler idle "${exposed[2]}"
    said idler.out '^idle' 10 && kill -TERM "${pid_of[$1]}" || return
    sleep 1.2 # one that counts is at least a second later
    since=$EPOCHREALTIME
    kill -TERM "${pid_of[$1]}" && await_end "$1" 3 || return
    figures="ended after $(milliseconds_since "$since") ms with $status"
    said idler.out '^reset ' 10 && end_now idler
}

# F39: it waits for somebody who does not answer; TERM ends it all the same.
ends_at_once() {
    local since=$EPOCHREALTIME
    kill -TERM "${pid_of[$1]}" && await_end "$1" 5 || return
    figures="ended after $(milliseconds_since "$since") ms"
    [ "$status" -eq 0 ] || { fail "$1 ended with $status"; return; }
    [ "$(milliseconds_since "$since")" -le 1000 ] || fail "$figures"
}

# A server that accepts and says nothing.
start_mute() {
    start mute "${proxy_in[@]}" python3 -uc 'import socket
s = socket.create_server(("", 7009))
print("mute", flush=True)
held = []
while True:
    held.append(s.accept()[0])
    print("came", flush=True)'
    said mute.out '^mute' 10
}

# ends_in_handshake SCHEME OPTION...: where "localhost" is that server
ends_in_handshake() {
    local came
    came=$(count mute.out '^came')
    start agent "${proxy_in[@]}" "$build/revdial-agent" --server "$1://localhost:7009" \
        --name web --token-file "$dir/token" --target 10.77.0.2:9 "${@:2}"
    said mute.out '^came' 10 $((came + 1)) && ends_at_once agent
}

ends_in_its_sleep() {
    start agent "${agent_in[@]}" "$build/revdial-agent" --server http://10.77.0.1:7008 \
        --insecure-cleartext --name web --token-file "$dir/token" --target 10.77.0.2:9
    said agent.log event=link.retry 20 3 && ends_at_once agent
}

# The name server is silent, and a lookup takes seconds.
ends_in_a_lookup() {
    echo 'nameserver 10.77.0.2' >"$dir/resolv.conf"
    echo silent >"$dir/names"
    start names "${agent_in[@]}" python3 "$here/names.py" 10.77.0.2 "$dir/names"
    said names.out ready 10 || return
    start agent "${agent_in[@]}" sh -c 'mount --bind "$0" /etc/resolv.conf && exec "$@"' \
        "$dir/resolv.conf" "$build/revdial-agent" --server http://proxy.trouble.test:7000 \
        --insecure-cleartext --name web --token-file "$dir/token" --target 10.77.0.2:9
    said names.out '^silent.*proxy.trouble.test' 20 && ends_at_once agent || return
    end_now names
}

# Fifty connections that have said half of what they must.
proxy_ends_in_handshakes() {
    start_trouble_proxy || return
    start halves "${agent_in[@]}" python3 -uc 'import socket, sys
held = [socket.create_connection(("10.77.0.1", 7000)) for _ in range(50)]
for s in held:
    s.sendall(b"GET /revdial HTTP/1.1\r\nHost: x")
print("halves", flush=True)
sys.stdin.read()
import time; time.sleep(60)'
    said halves.out '^halves' 10 && ends_at_once proxy || return
    end_now halves
}

# ---- all of it in any order ----

rounds=${CHAOS_ROUNDS:-8}
stops_for_a_moment() { kill -STOP "${pid_of[$1]}" && sleep 1 && kill -CONT "${pid_of[$1]}"; }
out_for_a_moment() { cable_out && sleep 1 && cable_in; }
reloads() { kill -HUP "${pid_of[proxy]}" "${pid_of[agent]}"; }
aborted() { ip netns exec "$agent_ns" ss -K state established dport = 7000 >/dev/null 2>&1; }
agent_is_killed() {
    start_transfers && end_now agent && each_end_sees_an_error && start_trouble_agent &&
        back_within $back_ms "$EPOCHREALTIME"
}

threads() { ls "/proc/${pid_of[$1]}/task" | wc -l; }
state_of() { echo "$(descriptors "$1") $(threads "$1")"; }
# is_no_more_than DESCRIPTORS THREADS
is_no_more_than() { [ "$(descriptors proxy)" -le "$1" ] && [ "$(threads proxy)" -le "$2" ]; }

# F41: CHAOS_ROUNDS faults at random by CHAOS_SEED, after which the proxy has no more than before.
faults_at_random() {
    local i before played=
    RANDOM=${CHAOS_SEED:-1}
    survives true || return
    until_true 10 [ "$(is_serving && echo yes)" ] || return
    before=$(state_of proxy)
    for i in $(seq "$rounds"); do
        set -- 'survives stops_for_a_moment agent' 'survives stops_for_a_moment proxy' \
            'survives out_for_a_moment' 'survives reloads' 'ends_truly aborted' agent_is_killed
        shift $((RANDOM % 6))
        played="$played; $1"
        $1 || { fail "in round $i$played: $why"; return; }
    done
    end_now reader writer idler
    until_true 10 is_no_more_than $before ||
        { fail "descriptors and threads: $(state_of proxy), $before before$played"; return; }
    figures="$rounds faults, descriptors and threads $before as before"
}

check 'two machines and a cable are ready' start_trouble || return
check 'F28 no descriptors for more clients' survives descriptors_run_out
check 'F29 the agent gets no more memory' memory_runs_out agent 128
check 'F29 the proxy gets no more memory' memory_runs_out proxy 128
check 'F41 faults at random' faults_at_random
check 'F38 100 streams end, then the agent' drains agent proxy
check 'F38 an agent' start_trouble_agent
check 'F38 100 streams end, then the proxy' drains proxy agent
end_now agent
check 'F40 a proxy and an agent' start_trouble_proxy --drain 5s
check 'F40 an agent' start_trouble_agent --drain 5s
check 'F38 the agent cuts what lasts' drains_for_five_seconds agent
check 'F38 an agent' start_trouble_agent --drain 5s
check 'F40 200 signals to the agent' storm_of_signals agent
check 'F40 an agent' start_trouble_agent --drain 20s
check 'F40 the agent is told twice' second_signal agent
check 'F40 an agent' start_trouble_agent --drain 5s
check 'F38 the proxy cuts what lasts' drains_for_five_seconds proxy
check 'F40 a proxy' start_trouble_proxy
check 'F40 the agent is back' back_within $back_ms "$EPOCHREALTIME"
check 'F40 200 signals to the proxy' storm_of_signals proxy
check 'F40 a proxy' start_trouble_proxy --drain 20s
check 'F40 the agent is back' back_within $back_ms "$EPOCHREALTIME"
check 'F40 the proxy is told twice' second_signal proxy
end_now agent
check 'F39 a server that says nothing' start_mute || return
check 'F39 TERM while the server says nothing' ends_in_handshake http
check 'F39 TERM in a handshake of TLS' ends_in_handshake https
check 'F39 TERM between two attempts' ends_in_its_sleep
check 'F39 TERM in a lookup' ends_in_a_lookup
check 'F39 TERM to a proxy in 50 handshakes' proxy_ends_in_handshakes
end_now mute
check 'F35 programs with TLS' start_with_certificate || return
check 'F35 the certificate is replaced' survives certificate_is_replaced
check 'F35 the next session sees the new one' next_session_sees_it
check 'proxy and agent end well' stop agent proxy
check 'F34 a third machine' start_other_machine
exposes=(--expose 127.0.0.1:0=web)
check 'F34 a proxy' start_trouble_proxy
check 'F34 an agent' start_trouble_agent --target "${address_of[echo]}"
check 'F34 one is cut off, another one comes' half_open_and_another
end_now peers_there
check 'the proxy ends well' stop proxy
exposing web source sink echo deaf
check 'F25 a proxy' start_trouble_proxy && check 'F25 a hundred agents' start_herd &&
    check 'F25 an agent' start_trouble_agent &&
    check 'F25 their proxy restarts, and they come back' herd_comes_back
end_herd
