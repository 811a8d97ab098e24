# Streams whose readers have stopped hold up nobody, and what they hold is bounded.

stopped=200
# What each program may have: 64 MiB that were received and not read (session_window of
# revdial_limits), and 16 MiB for code, stacks, buffers of the loop, 1.5 KiB for each relay.
budget_kib=$((65536 + 16384))


make_file "$dir/sent" 256

start_isolation() {
    start_peers peers "$dir/sent" || return
    exposing web source flood deaf echo
    start_proxy proxy "${exposes[@]}" || return
    start_agent agent --allow '127.0.0.1:*'
}

# Sets $took to the milliseconds of 256 MiB through the tunnel.
move_256_mib() {
    local began=$EPOCHREALTIME size
    size=$(through "${exposed[0]}" -N -d | cmp - "$dir/sent" && echo same)
    took=$(milliseconds_since "$began")
    [ "$size" = same ] || fail "the 256 MiB that came through is not the file"
}

median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }

memory_is_bounded() {
    local p a
    p=$(peak_kib proxy) && a=$(peak_kib agent) || { fail "a program has died"; return; }
    figures="$figures; proxy $((p / 1024)) MiB, agent $((a / 1024)) MiB at most"
    [ "$p" -le $budget_kib ] && [ "$a" -le $budget_kib ] ||
        fail "the proxy had $p KiB and the agent $a KiB, over $budget_kib"
}

# moves_256_mib_beside FUNCTION TIMES: 256 MiB alone and beside what FUNCTION starts, in turn
moves_256_mib_beside() {
    local alone=() beside=() a b
    for _ in $(seq "$2"); do
        move_256_mib || return
        alone+=("$took")
        "$1" || return
        until_quiet 10 proxy agent || return
        move_256_mib || return
        beside+=("$took")
        is_running holder || { fail "they have gone: $(tail -n 1 "$dir/holder.log")"; return; }
        end_now holder
        until_quiet 10 proxy agent || return
    done
    a=$(median "${alone[@]}")
    b=$(median "${beside[@]}")
    figures="alone $a ms (${alone[*]}), beside them $b ms (${beside[*]}), ratio $((b * 100 / a)) %"
    [ "$b" -le $((3 * a)) ] || { fail "three times slower: $figures"; return; }
    memory_is_bounded
}

readers_stop() {
    hold_client holder hold "${exposed[1]}" "$stopped"
    said holder.out "^holding $stopped" 10
}

targets_stop_reading() {
    hold_client holder stuff "${exposed[2]}" "$stopped"
    said holder.out "^holding $stopped" 20
}

# Their bytes fill half of what the agent may hold (session_window). On a slow machine their windows
# grow meanwhile, by another half at most: with more of them the agent would give some up.
newcomers_are_served() {
    local got
    hold_client holder stuff "${exposed[2]}" 500
    said holder.out '^holding 500' 60 || { fail 'not all of them could be filled'; return; }
    got=$(client crowd "${exposed[3]}" 50 50 10 2>&1 | tail -n 1)
    set -- $got
    [ "$1 $2 $3" = "50 500 50" ] || { fail "alive, echoed, alive at the end: $got"; return; }
    memory_is_bounded
}

idle_ones_stay_alive() {
    local got
    got=$(client crowd "${exposed[3]}" 2000 100 100 2>&1 | tail -n 1)
    set -- $got
    [ "$1 $2 $3" = "2000 10000 2000" ] || { fail "alive, echoed, alive at the end: $got"; return; }
    figures="opened in $4 ms, then 100 of them exchanged 64 bytes every $5 us each"
    memory_is_bounded
}

# The clients have aborted, the targets still do not read: what was on its way is given up.
held() { ss -tnH state established dst "${address_of[deaf]}" | wc -l; }
holds_nothing() { [ "$(held)" -eq 0 ]; }
what_is_left_is_given_up() {
    local since=$EPOCHREALTIME
    until_true 15 holds_nothing || { fail "$(held) connections to targets stay"; return; }
    figures="gone after $(milliseconds_since "$since") ms"
}

ulimit -n "$(ulimit -Hn)"
check 'proxy, agent and servers are ready' start_isolation || return
check "256 MiB beside $stopped stopped readers" moves_256_mib_beside readers_stop 3
end_now holder
check "256 MiB beside $stopped targets that do not read" moves_256_mib_beside targets_stop_reading 1
end_now holder
check 'the agent lets go of targets that do not read' what_is_left_is_given_up
check 'new clients beside 500 uploads that stand' newcomers_are_served
end_now holder
check '2,000 idle connections, 100 busy ones' idle_ones_stay_alive
check 'proxy and agent end well' stop agent proxy
