# What is configured, and changed while traffic runs; what a supervisor is told, and hands over.

conf=$dir/proxy.conf

# Writes the proxy's configuration file: these lines, and what each test needs.
configure() {
    { printf '%s\n' "listen = ${config_at:-127.0.0.1:0}" "token-file = $dir/tokens" 'drain = 20s'
        printf '%s\n' "$@"; } >"$conf.new" && mv "$conf.new" "$conf"
}

# A line for the proxy: what --check must say of it. The line is the fourth of the file.
verdicts() {
    local line want count=0
    while IFS='|' read -r want line; do
        configure "$(printf '%b' "$line")"
        if [ "$want" = good ]; then
            says proxy 0 'configuration is good' --config "$conf" --check || return
        else
            says proxy 2 "proxy.conf:$want" --config "$conf" --check || return
        fi
        count=$((count + 1))
    done <<'END_OF_LIST'
good|wait = yes
good|expose = 127.0.0.1:0=web/127.0.0.1:80
good|[expose unix:/tmp/x]\nname = web\ntarget = unix:/y\nwait = yes\nearly = no\ndial-timeout = 5s
good|expose = fd:3=web
good|listen = systemd:agents\nexpose = systemd:web=web\n[expose systemd:ssh]\nname = web
6: expose: this address is exposed|[expose systemd:a]\nname = web\n[expose systemd:a]\nname = ssh
5: socks5: this address is exposed already|expose = systemd:web=web\nsocks5 = systemd:web
4: wait: not yes or no|wait = perhaps
4: admin-token-file: /dev/null: not a regular|admin-token-file = /dev/null
4: no such key "exposes"; is expose meant|exposes = 127.0.0.1:0=web
4: expose: the name must be|expose = 127.0.0.1:0=WEB
4: expose: .*host is missing|expose = :80=web
4: expose: .*a:b|expose = 127.0.0.1:0=web/a:b:c
5: no such key "nmae"; is name meant|[expose 127.0.0.1:0]\nnmae = web
4: .expose 127.0.0.1:0. lacks|[expose 127.0.0.1:0]\nwait = yes
5: not for an .expose.|[expose 127.0.0.1:0]\nio-threads = 2\nname = web
6: dial-timeout: not a duration|[expose 127.0.0.1:0]\nname = web\ndial-timeout = 5
4: token-file: /nowhere|token-file = /nowhere
4: group: needs token-file, auth-file or auth-url|[group x]
4: group: /nowhere|[group x]\nauth-file = /nowhere
6: stream-rate: not bytes per second|[group x]\nauth-file = /nowhere\nstream-rate = 5
good|[connect 127.0.0.1:0]\nallow-from = 10.0.0.0/8\nallow-from = unix:\nwait = yes
good|[route *.cams.example]\nname = *
5: not for an .route.|[route *]\nwait = yes\nname = web
good|[route *]\nname = web\npick = header:X-User
6: pick: not one of round-robin.*header:NAME: .best|[route *]\nname = web\npick = best
good|[route *]\nname = web\nhealth = http://web.test/health\nhealth-interval = 1s
6: health: not one of none.tcp.http:.PATH|[route *]\nname = web\nhealth = https://web.test/
4: health: the path must begin with|health = http:health
5: health: no agent is named here|[connect 127.0.0.1:0]\nhealth = tcp
5: health-fall: not a number from 1|[expose 127.0.0.1:0]\nhealth-fall = 0\nname = web
5: pick: .*put it into a .route|[connect 127.0.0.1:0]\npick = header:X-User
6: pick: clients of an .expose. name no host|[expose 127.0.0.1:0]\nname = web\npick = host
4: route: .*BAD|[route *]\nname = BAD
5: allow-from: .*10.0.0.0/99|[connect 127.0.0.1:0]\nallow-from = 10.0.0.0/99
END_OF_LIST
    configure "origin = https://ops.example/"
    says proxy 2 'ops.example/' --config "$conf" --check || return
    says proxy 2 'nowhere' --config /nowhere --check || return
    says agent 2 'target.*port' --check --server http://127.0.0.1:1 --name web \
        --token-file "$dir/token" --target x:0 || return
    says agent 2 'allow.*nonsense' --check --server http://127.0.0.1:1 --name web \
        --token-file "$dir/token" --allow nonsense || return
    says agent 0 'good' --check --server http://127.0.0.1:1 --name web \
        --token-file "$dir/token" --target x:1 || return
    configure 'expose = 0=web'
    says proxy 2 'admin: "nonsense"' --config "$conf" --check --admin nonsense || return
    says proxy 2 'admin: .*70000' --config "$conf" --check --admin '[::1]:70000' || return
    says proxy 2 'sockets: .*nowhere' --config "$conf" --check --sockets "$dir/nowhere" || return
    says agent 2 'admin: "unix:a"' --check --server http://127.0.0.1:1 --name web \
        --token-file "$dir/token" --target x:1 --admin unix:a || return
    says agent 2 'forward: an ADDRESS is' --check --server http://127.0.0.1:1 --name web \
        --token-file "$dir/token" --forward x=127.0.0.1:1 || return
    figures="$((count + 10)) verdicts"
}

prints_what_counts() {
    local out
    configure 'wait = yes' 'dial-timeout = 5s'
    out=$(REVDIAL_DIAL_TIMEOUT=7s REVDIAL_TOKEN=$token "$build/revdial-proxy" --config "$conf" \
        --pick least-streams --config - 2>&1) || { fail "$out"; return; }
    grep -qx "wait = yes  # $conf:4" <<<"$out" &&
        grep -qx 'dial-timeout = 7s  # REVDIAL_DIAL_TIMEOUT' <<<"$out" &&
        grep -qx 'pick = least-streams  # command line' <<<"$out" &&
        grep -qx 'token = \*\*\*\*\*\*\*\*  # REVDIAL_TOKEN' <<<"$out" &&
        grep -qx '# early: default no' <<<"$out" || { fail "$out"; return; }
    ! grep -q "$token" <<<"$out" || fail 'the token is shown'
}

# What --config - prints is a file that says the same, also where a value has quotes in it.
prints_what_it_reads() {
    local value="$dir/to\"k\"ens" out
    cp "$dir/tokens" "$value" && cp "$dir/tokens" "$dir/to #kens" && cp "$dir/tokens" "$dir/\" #"
    for value in "$value" "$dir/to #kens"; do
        "$build/revdial-proxy" --listen 127.0.0.1:0 --token-file "$value" --config - >"$dir/printed"
        says proxy 0 'good' --config "$dir/printed" --check || return
        out=$("$build/revdial-proxy" --config "$dir/printed" --config - | grep '^token-file = ')
        [[ "$out" = *"$value"* ]] || { fail "$value became $out"; return; }
    done
    out=$("$build/revdial-proxy" --listen 127.0.0.1:0 --token-file "$dir/\" #" --config -)
    grep -q '^# no file can say: token-file = ' <<<"$out" || fail "$out"
}

# --config - begins with the options that HUP applies, and has a line for each of them.
live_options_are_named() {
    local program out names name
    for program in proxy agent; do
        out=$("$build/revdial-$program" --config -)
        names=$(sed -n '2s/^# HUP applies changes of//p' <<<"$out")
        [ "$(wc -w <<<"$names")" -ge 10 ] || { fail "$program: '$names'"; return; }
        for name in $names; do
            grep -q "^# $name: " <<<"$out" || { fail "$program: $name is none"; return; }
        done
    done
}

# Each option that the table for operators names is one of either program.
operators_page_has_true_options() {
    local page=$here/../../examples/operation.md option
    for option in $(grep -o '`--[a-z0-9-]*' "$page" | tr -d '`' | sort -u); do
        { "$build/revdial-proxy" --help; "$build/revdial-agent" --help; } | grep -q "^  $option" ||
            { fail "$option is none"; return; }
    done
}

# ---- reloads ----

reloads() { kill -HUP "${pid_of[configured]}" && said configured.log event=proxy.reload 5 "$1"; }

start_configured() {
    config_at=127.0.0.1:$(client port)
    address_of[a]=127.0.0.1:$(client port)
    address_of[b]=127.0.0.1:$(client port)
    address_of[c]=127.0.0.1:$(client port)
    configure "expose = ${address_of[a]}=web/${address_of[echo]}" \
        "expose = ${address_of[b]}=web/${address_of[source]}" \
        "[expose unix:$dir/c.sock]" 'name = web' "target = ${address_of[echo]}"
    start configured "$build/revdial-proxy" --config "$conf" "$@"
    said configured.out 'c.sock for web' 5 || return
    start agent "$build/revdial-agent" --server "http://$config_at" --name web \
        --token-file "$dir/token" --allow '127.0.0.1:*' --drain 20s
    said agent.log event=session.up 5
}

# 1,000 connections and a download run on, while ports come, change and go, also those that they
# came through; and no client of a port that changes is refused.
reload_under_load() {
    hold_client lives live "${address_of[a]}" 1000
    said lives.out '^live 1000$' 20 || return
    start_client download read "${address_of[b]}" "$big" 500000000
    said download.out '^reading' 10 || return
    hold_client dials steady "${address_of[a]}"
    said dials.out '^dialling' 10 || return
    # a is another backend's target by name, b is gone, c is new, and the Unix socket is early
    configure "[expose ${address_of[a]}]" 'name = web' "target = ${address_of[echo]}" \
        'dial-timeout = 3s' \
        "[expose ${address_of[c]}]" 'name = web' "target = ${address_of[echo]}" \
        "[expose unix:$dir/c.sock]" 'name = web' "target = ${address_of[echo]}" 'early = yes'
    reloads 1 || return
    said configured.log 'proxy.reload.*1 ports opened, 2 changed, 1 closed' 1 || return
    new_ones_are_refused "${address_of[b]}" || { fail "a port that is gone is there"; return; }
    said_by "${address_of[c]}" && said_by "${address_of[a]}" && said_by "unix:$dir/c.sock" || return
    is_running download || { fail "the download has ended"; return; }
    let_go dials
    said dials.out '^good' 10 || return
    figures=$(tail -n 1 "$dir/dials.out")
    [[ "$figures" =~ \ bad\ 0$ ]] || { fail "$figures"; return; }
    download_is_whole || return
    let_go lives
    said lives.out '^still 1000$' 20
}

# Everything is wrong in one place only, and right in another.
wrong_file_changes_nothing() {
    local before=$token
    configure "expose = ${address_of[a]}=web/${address_of[echo]}" \
        "expose = ${address_of[b]}=web/${address_of[echo]}" 'nonsense = 1'
    echo "* x$token" >"$dir/tokens"
    reloads 2 || return
    said configured.log "config.refused.*$conf:6: no such key" 1 || return
    echo "* $token" >"$dir/tokens"
    said_by "${address_of[c]}" && said_by "${address_of[a]}" || return
    new_ones_are_refused "${address_of[b]}" || { fail "a new port is there"; return; }
    [ "$(count agent.log session.up)" -eq 1 ] || fail 'the agent was disconnected'
}

# A new port whose address somebody else has: the other new port is taken back.
address_in_use_changes_nothing() {
    local taken=${address_of[echo]}
    configure "expose = ${address_of[b]}=web/${address_of[echo]}" "expose = $taken=web"
    reloads 3 || return
    said configured.log "config.refused.*$conf:5: expose:.*in use" 1 || return
    said_by "${address_of[c]}" && said_by "${address_of[a]}" || return
    new_ones_are_refused "${address_of[b]}" || fail "a new port is there"
}

frozen_option_is_refused() {
    configure "expose = ${address_of[a]}=web/${address_of[echo]}" 'io-threads = 2'
    reloads 4 || return
    said configured.log "config.refused.*$conf:5: io-threads: cannot change" 1 || return
    said_by "${address_of[c]}"
}

# through_connect ADDRESS URL OPTION...: the status that curl gets from the proxy
through_connect() {
    curl -s -o /dev/null --max-time 5 -p -x "http://$1" -w '%{http_connect}' "${@:3}" "$2"
}

# Routes and who may come change while the port stays.
routes_and_allow_lists_change() {
    local got
    address_of[d]=127.0.0.1:$(client port)
    configure "[connect ${address_of[d]}]" 'allow-from = 127.0.0.2' \
        '[route page.example]' 'name = web' "target = ${address_of[echo]}"
    reloads 5 || return
    got=$(through_connect "${address_of[d]}" http://page.example/ --interface 127.0.0.2)
    [ "$got" = 200 ] || { fail "the route leads to $got"; return; }
    got=$(through_connect "${address_of[d]}" http://page.example/)
    [ "$got" = 000 ] || { fail "another address gets $got"; return; }
    configure "[connect ${address_of[d]}]" 'allow-from = 127.0.0.0/8' \
        '[route other.example]' 'name = web' "target = ${address_of[echo]}"
    reloads 6 || return
    said configured.log 'proxy.reload.*0 ports opened, 1 changed, 0 closed' 1 || return
    got=$(through_connect "${address_of[d]}" http://page.example/)
    [ "$got" = 407 ] || { fail "the old route leads to $got"; return; }
    got=$(through_connect "${address_of[d]}" http://other.example/)
    [ "$got" = 200 ] || fail "the new route leads to $got"
}

end_of_configured() { stop agent configured; }

# Without a signal; a file that is replaced, and one that it names.
watch_applies() {
    start_configured --watch || return
    configure "expose = ${address_of[c]}=web/${address_of[echo]}"
    said configured.log 'proxy.reload.*1 ports opened, 0 changed, 3 closed' 10 || return
    said_by "${address_of[c]}" || return
    echo "* x$token" >"$dir/tokens.new" && mv "$dir/tokens.new" "$dir/tokens"
    said configured.log event=proxy.reload 10 2 || return
    said configured.log 'event=session.revoked' 10 || return
    echo "* $token" >"$dir/tokens"
    stop agent configured
}

# An edit in place that leaves size and second as they were, and one that sets the time back.
watch_sees_small_edits() {
    local edit
    echo "* xx$token" >"$dir/small" && touch -d '2020-01-01 00:00:00.1' "$dir/small" || return
    start small "$build/revdial-proxy" --listen 127.0.0.1:0 --token-file "$dir/small" --watch
    said small.out '^listening' 5 || return
    for edit in 1 2; do
        echo "* y$edit$token" >"$dir/small" && touch -d '2020-01-01 00:00:00.2' "$dir/small" &&
            said small.log event=proxy.reload 10 $edit || return
    done
    stop small
}

# Has the proxy with that admin port do something. Prints the status and the answer.
post() {
    curl -gsS --max-time 5 --unix-socket "$dir/admin" -X POST -w '%{http_code}' \
        -H "Authorization: Bearer ${token}admin" "http://localhost/$1"
}

# Which port listens at ADDRESS.
port_id() {
    curl -sS --unix-socket "$dir/admin" http://localhost/status |
        sed -n "s/.*\"id\":\([0-9]*\),\"listen\":\"$1\".*/\1/p"
}

# A port that was opened at the admin port stays at a reload, for those who may come now, and is the
# configuration's once that has it.
port_opened_by_hand_stays() {
    local at got
    at=127.0.0.1:$(client port)
    (umask 077 && echo "${token}other" >"$dir/admin_token")
    start_configured --admin "unix:$dir/admin" --admin-token-file "$dir/admin_token" || return
    got=$(post "expose?port=$at=web/${address_of[echo]}")
    [[ "$got" =~ 401$ ]] || { fail "$got by the next token"; return; }
    echo "${token}admin" >"$dir/admin_token" && reloads 1 || return
    got=$(post "expose?port=$at=web/${address_of[echo]}")
    [[ "$got" =~ 200$ ]] || { fail "$got"; return; }
    said_by "$at" && configure 'allow-from = 10.0.0.1' && reloads 2 || return
    new_ones_are_refused "$at" || { fail 'allow-from does not hold for it'; return; }
    configure "expose = $at=web/${address_of[echo]}" && reloads 3 || return
    said configured.log 'proxy.reload.*0 ports opened, 1 changed, 0 closed' 1 || return
    said_by "$at" || return
    got=$(post "unexpose?id=$(port_id "$at")")
    [[ "$got" =~ 'the configuration has'.*403$ ]] || { fail "$got"; return; }
    configure && reloads 4 && new_ones_are_refused "$at" || { fail 'it is still there'; return; }
    stop agent configured
}

# The drain that the admin port asks for is the one that is configured now.
drain_changes() {
    local id got
    echo "${token}admin" >"$dir/admin_token"
    start_configured --admin "unix:$dir/admin" --admin-token-file "$dir/admin_token" || return
    hold_client lives live "${address_of[a]}" 1
    said lives.out '^live 1$' 20 || return
    configure "expose = ${address_of[a]}=web/${address_of[echo]}" 'drain = 100ms' && reloads 1 ||
        return
    id=$(sed -n 's/.*event=session.up session=\([0-9a-f]*\).*/\1/p' "$dir/configured.log")
    got=$(post "drain?session=$id")
    [[ "$got" =~ 200$ ]] && said configured.log "event=session.down session=$id" 10 ||
        fail "$got: ${why:-}" || return
    end_now lives
    stop agent configured
}

agent_conf=$dir/agent.conf

configure_agent() {
    { printf '%s\n' "server = http://$config_at" 'name = web' "token-file = $dir/token"
        printf '%s\n' "$@"; } >"$agent_conf.new" && mv "$agent_conf.new" "$agent_conf"
}

# What comes back first from an echo at ADDRESS matches PATTERN.
echo_begins() {
    local line=
    exec 8<>"/dev/tcp/${1/:/\/}" && echo ping >&8 && read -r -t 10 line <&8
    exec 8>&-
    [[ "$line" =~ $2 ]] || fail "the echo says '$line'"
}

# What a section of the agent says of a target, at the start and after HUP.
agent_has_sections() {
    start_configured && stop agent || return
    configure_agent 'idle-timeout = 1h' "[allow ${address_of[echo]}]" 'proxy-protocol = 1' \
        'connect-timeout = 2s' 'idle-timeout = 30s' 'half-closed-timeout = 1m'
    start agent "$build/revdial-agent" --config "$agent_conf"
    said agent.log event=session.up 5 &&
        echo_begins "${address_of[a]}" '^PROXY TCP4 127\.0\.0\.1 127\.0\.0\.1 ' || return
    configure_agent 'idle-timeout = 1h' "allow = ${address_of[echo]}"
    kill -HUP "${pid_of[agent]}"
    said agent.log event=agent.reload 5 && echo_begins "${address_of[a]}" '^ping$' || return
    configure_agent "[allow ${address_of[echo]}]" 'proxy-protocol = 3'
    says agent 2 'agent.conf:5: proxy-protocol: not one of' --config "$agent_conf" --check &&
        configure_agent '[allow nonsense]' &&
        says agent 2 'agent.conf:4: allow: ' --config "$agent_conf" --check &&
        configure_agent '[allow 127.0.0.1:1]' 'target = 127.0.0.1:1' &&
        says agent 2 'agent.conf:5: not for an .allow.' --config "$agent_conf" --check || return
    stop agent configured
}

# A program whose file takes a while to understand. slow_begins PROGRAM OPTION...
slow_begins() {
    slow=("listen = 127.0.0.1:0" "token-file = $dir/tokens" "$(seq -f 'route = a%.0f.x=web' 5000)")
    [ "$1" = proxy ] || slow=('server = http://127.0.0.1:1' 'name = web' 'target = 127.0.0.1:9'
        "token-file = $dir/token" "$(seq -f 'allow = 10.0.0.1:%.0f' 5000)")
    printf '%s\n' "${slow[@]}" >"$dir/slow.conf"
    start slow "$build/revdial-$1" --config "$dir/slow.conf" --admin 127.0.0.1:0 "${@:2}"
}

slow_starts() { slow_begins "$@" && said slow.log event=admin.listening 10; }

# Signals that come while it understands its file, which is another one by then.
early_signals_count() {
    slow_begins "$1"
    while is_running slow && [ "$(slow_has_read)" -lt "$(stat -c %s "$dir/slow.conf")" ]; do :; done
    echo nonsense >"$dir/slow.new" && mv "$dir/slow.new" "$dir/slow.conf"
    kill -USR1 "${pid_of[slow]}" && kill -USR2 "${pid_of[slow]}" && kill -HUP "${pid_of[slow]}"
    said slow.log "$1.reload.*nothing was changed" 10 && said slow.log event=status 5 || return
    stop slow
}

# How many bytes it has read.
slow_has_read() { sed -n 's/^rchar: //p' "/proc/${pid_of[slow]}/io"; }

# Its file changes after HUP has had it read, and before all is done that it says.
slow_changes_meanwhile() {
    local enough
    enough=$(($(slow_has_read) + $(stat -c %s "$dir/slow.conf")))
    echo nonsense >"$dir/slow.new"
    kill -HUP "${pid_of[slow]}"
    while is_running slow && [ "$(slow_has_read)" -lt $enough ]; do :; done
    mv "$dir/slow.new" "$dir/slow.conf"
}

# HUP comes once more then.
both_hups_count() {
    local i
    slow_starts "$1" || return
    for i in 1 2 3; do
        printf '%s\n' "${slow[@]}" >"$dir/slow.conf"
        slow_changes_meanwhile
        kill -HUP "${pid_of[slow]}"
        said slow.log "$1.reload.*nothing was changed" 10 "$i" || return
    done
    stop slow
}

watch_misses_nothing() {
    slow_starts "$1" --watch || return
    slow_changes_meanwhile
    said slow.log "$1.reload.*nothing was changed" 10 && stop slow
}

# The file of --via-file has another URL at HUP.
via_cannot_change() {
    echo http://127.0.0.1:1 >"$dir/via"
    start viaed "$build/revdial-agent" --server http://127.0.0.1:1 --name web \
        --token-file "$dir/token" --target 127.0.0.1:9 --via-file "$dir/via"
    said viaed.log event=link.retry 10 && kill -HUP "${pid_of[viaed]}" &&
        said viaed.log 'agent.reload.*certificates read' 5 || return
    echo http://127.0.0.1:2 >"$dir/via" && kill -HUP "${pid_of[viaed]}" &&
        said viaed.log 'config.refused.*--via-file: cannot change' 5 && stop viaed
}

# ---- systemd ----

# A supervisor by the protocols of systemd. Its answers are in supervisor.out.
supervised() {
    local kind=$1 at
    at=$dir/notify
    [ "$kind" = abstract ] && at=@revdial-$$-notify
    config_at=
    configure "expose = 127.0.0.1:0=web"
    start supervisor python3 "$here/supervisor.py" listen "$at"
    said supervisor.out '^listening' 5 || return
    start configured env NOTIFY_SOCKET="$at" WATCHDOG_USEC=400000 \
        "$build/revdial-proxy" --config "$conf"
    said supervisor.out '^READY=1$' 5 && said supervisor.out '^WATCHDOG=1$' 5 3 || return
    kill -HUP "${pid_of[configured]}"
    said supervisor.out '^RELOADING=1 MONOTONIC_USEC=[0-9]*$' 5 &&
        said supervisor.out '^READY=1$' 5 2 || return
    kill -TERM "${pid_of[configured]}"
    said supervisor.out '^STOPPING=1 WATCHDOG_USEC=0$' 5 && await_end configured 5 || return
    end_now supervisor
}

agent_is_supervised() {
    start supervisor python3 "$here/supervisor.py" listen "$dir/notify2"
    said supervisor.out '^listening' 5 || return
    start agent env NOTIFY_SOCKET="$dir/notify2" WATCHDOG_USEC=400000 "$build/revdial-agent" \
        --server http://127.0.0.1:1 --name web --token-file "$dir/token" --target 127.0.0.1:9
    said supervisor.out '^READY=1$' 5 && said supervisor.out '^WATCHDOG=1$' 5 2 || return
    kill -HUP "${pid_of[agent]}"
    said supervisor.out '^RELOADING=1 ' 5 && said supervisor.out '^READY=1$' 5 2 || return
    kill -TERM "${pid_of[agent]}"
    said supervisor.out '^STOPPING=1 WATCHDOG_USEC=0$' 5 && await_end agent 5 || return
    end_now supervisor
}

# A supervisor holds the sockets. The new proxy begins on them, the old one ends, and no client was
# refused, nor did one wait in vain.
upgrade_loses_nothing() {
    config_at=systemd:agents
    configure 'expose = systemd:web=web' 'wait = yes' 'dial-timeout = 20s'
    hold_open supervisor python3 "$here/supervisor.py" sockets agents,web \
        "$build/revdial-proxy" --config "$conf"
    said supervisor.out '^sockets' 5 || return
    read -r _ address_of[agents] address_of[web] < <(grep '^sockets' "$dir/supervisor.out")
    said supervisor.out '^new ready' 10 || return
    start agent "$build/revdial-agent" --server "http://${address_of[agents]}" --name web \
        --token-file "$dir/token" --target "${address_of[echo]}" --allow '127.0.0.1:*'
    said agent.log event=session.up 5 || return
    hold_client dials steady "${address_of[web]}"
    said dials.out '^dialling' 10 || return
    for _ in 1 2 3; do
        kill -USR1 "${pid_of[supervisor]}"
        said supervisor.out '^old ended 0' 30 $((upgrades += 1)) &&
            said agent.log event=session.up 10 $((upgrades + 1)) || return
    done
    said_by "${address_of[web]}" || return
    let_go dials
    said dials.out '^good' 10 || return
    figures="3 upgrades: $(tail -n 1 "$dir/dials.out")"
    [[ "$figures" =~ \ bad\ 0$ ]] || { fail "$figures"; return; }
    stop agent
    let_go supervisor
    await_end supervisor 10
}
upgrades=0

check '--check names the file, the line and the key' verdicts
check '--config - shows what counts, and where it came from' prints_what_counts
check '--config - prints what a file can say' prints_what_it_reads
check 'the options that HUP applies are named' live_options_are_named
check 'the page for operators has true options' operators_page_has_true_options
check 'peers' start_peers peers "$big" || return
check 'a proxy by its configuration file' start_configured || return
check 'a reload under 1,000 connections and a download' reload_under_load
check 'a wrong file changes nothing' wrong_file_changes_nothing
check 'nor does an address that is in use' address_in_use_changes_nothing
check 'an option that cannot change is refused' frozen_option_is_refused
check 'routes and allow lists change' routes_and_allow_lists_change
check 'it ends well' end_of_configured
check '--watch sees files that change' watch_applies
check '--watch sees edits within a second' watch_sees_small_edits
for program in proxy agent; do
    check "a HUP to the $program before it is up" early_signals_count $program
    check "a HUP to the $program while it heeds another one" both_hups_count $program
    check "--watch of the $program, for what changes meanwhile" watch_misses_nothing $program
done
check 'a port that was opened by hand stays' port_opened_by_hand_stays
check 'a drain by the admin port is as long as configured now' drain_changes
check 'sections of an agent are about targets' agent_has_sections
check 'another --via-file needs a restart, and HUP says so' via_cannot_change
check 'a supervisor is told, at a path' supervised path
check 'a supervisor is told, by an abstract name' supervised abstract
check "an agent's supervisor is told, too" agent_is_supervised
check 'no client is lost when the proxy is replaced' upgrade_loses_nothing
config_at=
