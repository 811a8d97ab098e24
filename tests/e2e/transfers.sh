# Transfers that something happens to. Sourced by parts that expose a source, a sink and an echo, in
# this order, and set $sent, the file that the source sends, and $rate, bytes a second.

# A download, an upload and an idle connection, all in the middle.
start_transfers() {
    end_now reader writer idler
    start_client reader read "${exposed[0]}" "$sent" $rate
    start_client writer write "${exposed[1]}" "$sent" $rate
    start_client idler idle "${exposed[2]}"
    sinks_before=$(count peers.out '^sink [a-zA-Z]')
    said reader.out '^reading' 10 && said writer.out '^writing' 10 && said idler.out '^idle' 10
}

# What each end saw after the cut: a prefix, then an error.
each_end_sees_an_error() {
    local got sink bytes
    said reader.out ' (same|different) ' 60 && said writer.out '^[0-9]' 60 &&
        said idler.out '^[a-z]+ [0-9]' 60 || return
    got=$(tail -n 1 "$dir/reader.out")
    [[ "$got" =~ ^([0-9]+)\ same\ reset\  ]] || { fail "the download ended with: $got"; return; }
    bytes=${BASH_REMATCH[1]}
    [ "$bytes" -lt "$(stat -c %s "$sent")" ] ||
        { fail "the download was over before the cut"; return; }
    got=$(tail -n 1 "$dir/writer.out")
    [[ "$got" =~ \ (reset|BrokenPipeError)$ ]] || { fail "the upload ended with: $got"; return; }
    got=$(tail -n 1 "$dir/idler.out")
    [[ "$got" =~ ^reset\  ]] || { fail "the idle connection ended with: $got"; return; }
    said peers.out '^sink [a-zA-Z]' 10 $((sinks_before + 1)) || return
    sink=$(grep '^sink [a-zA-Z]' "$dir/peers.out" | tail -n 1)
    [[ "$sink" =~ ^sink\ reset\  ]] || { fail "the target of the upload saw: ${sink% *}"; return; }
    figures="$bytes bytes came, then the error"
}

is_serving() { [ "$(through "${exposed[2]}" -N <<<alive)" = alive ]; }

# back_within MILLISECONDS SINCE
back_within() {
    until_true $(($1 / 1000 + 1)) is_serving || { fail "not serving $1 ms later"; return; }
    took=$(milliseconds_since "$2")
    [ "$took" -le "$1" ] || { fail "serving after $took ms"; return; }
    figures="serving after $took ms"
}

# arrive_whole SECONDS: what start_transfers began
arrive_whole() {
    local got size
    size=$(stat -c %s "$sent")
    said reader.out ' (same|different) ' "$1" && said writer.out '^[0-9]' "$1" || return
    got=$(tail -n 1 "$dir/reader.out")
    [[ "$got" =~ ^$size\ same\ eof\  ]] || { fail "the download ended with: $got"; return; }
    got=$(tail -n 1 "$dir/writer.out")
    [ "$got" = "$size $(sha256 "$sent") $size" ] || { fail "the upload ended with: $got"; return; }
    [ "$(count idler.out '^[a-z]+ [0-9]')" -eq 0 ] ||
        { fail "the idle connection ended with: $(tail -n 1 "$dir/idler.out")"; return; }
    end_now idler
}

descriptors() { ls "/proc/${pid_of[$1]}/fd" | wc -l; }
has_no_more_than() { [ "$(descriptors "$1")" -le "$2" ]; }

# ---- what happens to them. Their agent is "web"; $notice_ms and $back_ms are set ----

web_up='event=session.up .* name=web '
web_down='event=session.down .* name=web '

# survives DISTURBANCE ARGUMENT...: transfers go on through it, in one session
survives() {
    local ups downs
    ups=$(count proxy.log "$web_up")
    downs=$(count proxy.log "$web_down")
    start_transfers && "$@" && arrive_whole 60 || return
    [ "$(count proxy.log "$web_up")" -eq "$ups" ] &&
        [ "$(count proxy.log "$web_down")" -eq "$downs" ] || fail 'the session ended'
}

# ends_truly DISTURBANCE [MEND]: each end sees an error in time; when all is mended, it works again
ends_truly() {
    local down retries since p a
    down=$(count proxy.log event=session.down)
    retries=$(count agent.log event=link.retry)
    start_transfers || return
    since=$EPOCHREALTIME
    "$1" || return
    said proxy.log event=session.down 20 $((down + 1)) || return
    p=$(milliseconds_since "$since")
    said agent.log event=link.retry 20 $((retries + 1)) || return
    a=$(milliseconds_since "$since")
    [ "$p" -le $notice_ms ] && [ "$a" -le $notice_ms ] ||
        { fail "the proxy noticed after $p ms, the agent after $a ms at most"; return; }
    each_end_sees_an_error || return
    ${2:-true} && back_within $back_ms "$EPOCHREALTIME" &&
        figures="noticed after $p and $a ms, $figures"
}
