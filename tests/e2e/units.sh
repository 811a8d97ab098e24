# What the programs run in: systemd's units with what they take away, as a systemd of our own runs
# them, and a root with nothing else.

units=$here/../../examples/systemd

# systemd's own verdict, from 0 (nothing to take away) to 10, in tenths.
units_are_hardened() {
    local unit out
    for unit in "$units"/*.service; do
        out=$(systemd-analyze security --offline=true --threshold=20 "$unit" 2>&1) ||
            { fail "$unit: ${out##*→}"; return; }
        [[ "$out" =~ exposure\ level.*:\ ([0-9.]+\ (OK|SAFE|PERFECT)) ]] ||
            { fail "$unit: ${out##*→}"; return; }
        figures="$figures ${unit##*/} ${BASH_REMATCH[1]}"
    done
}

# With the programs where they are built, systemd has nothing to say of the units.
units_are_well_formed() {
    local out
    mkdir -p "$dir/units"
    cp "$units"/* "$dir/units/"
    sed -i "s,/usr/local/bin/,$build/," "$dir"/units/*.service
    out=$(systemd-analyze verify --man=no "$dir"/units/* 2>&1)
    [ -z "$out" ] || fail "$out"
}

# calls_of SET: the system calls of a set of systemd's, and of the sets in it
calls_of() {
    local name
    systemd-analyze syscall-filter --no-pager "$1" | while read -r name _; do
        case $name in
        "$1" | '#'* | '') ;;
        @*) calls_of "$name" ;;
        *) echo "$name" ;;
        esac
    done
}

# start_traced NAME PROGRAM OPTION...
start_traced() {
    start "$1" strace -f -qq -o "$dir/$1.trace" "${@:2}"
}

# All that the programs do while they start, serve, read their files again and end.
units_allow_what_programs_call() {
    local allowed called name pid
    allowed=$(comm -23 <(calls_of @system-service | sort -u) <(calls_of @privileged | sort -u))
    start_traced traced "$build/revdial-proxy" --listen 127.0.0.1:0 --token-file "$dir/tokens" \
        --expose 127.0.0.1:0=web --expose "unix:$dir/traced.sock=web" --watch
    said traced.out 'traced.sock for web' 10 || return
    start_traced agent "$build/revdial-agent" --name web --token-file "$dir/token" \
        --server "http://localhost:$(sed -n '1s/.*://p' "$dir/traced.out")" \
        --target "${address_of[echo]}"
    said agent.log event=session.up 10 || return
    name=$(sed -n 's/^listening on \(.*\) for web/\1/p;T;q' "$dir/traced.out")
    [ "$(client echo_once "$name")" = ping ] || { fail 'no echo'; return; }
    [ "$(client echo_once "unix:$dir/traced.sock")" = ping ] || { fail 'no echo'; return; }
    for name in traced agent; do
        pid=$(pgrep -P "${pid_of[$name]}") || { fail "no child of strace"; return; }
        kill -HUP "$pid"
        said "$name.log" '\.reload' 10 || return
        kill -TERM "$pid"
    done
    await_end agent 10 && await_end traced 10 || return
    called=$(sed -n 's/^[0-9]* *\([a-z_0-9]*\)(.*/\1/p' "$dir"/{traced,agent}.trace | sort -u)
    figures="$(wc -l <<<"$called") system calls"
    called=$(grep -vx execve <<<"$called" | comm -23 - <(echo "$allowed"))
    [ -z "$called" ] || fail "the units forbid: $(tr '\n' ' ' <<<"$called")"
}

# ---- as services ----

group=

# A systemd that has namespaces, a control group, /run, /etc and /usr/local/bin of its own, and
# these units as they are; but nothing else is started before them, and their logs are files in
# /run.
start_systemd() {
    local tree
    tree=$(findmnt -n -t cgroup2 -o TARGET | head -n 1)
    group=$tree/revdial-$$
    mkdir "$group" || { fail 'no control group'; return; }
    cat >"$dir/boot.sh" <<'END_OF_BOOT'
set -e
echo $$ >"$1/cgroup.procs"
exec unshare --mount --pid --fork --kill-child --uts --ipc --net --cgroup --mount-proc sh -ec '
mount --make-rprivate / && mount --make-rshared /
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
cp -a /etc /run/etc && mount --bind /run/etc /etc
mount -t tmpfs -o mode=755 tmpfs /usr/local/bin
install -m 755 "$1"/revdial-proxy "$1"/revdial-agent /usr/local/bin
rm -rf /etc/systemd/system && cp -r "$2" /etc/systemd/system && cp -r "$3" /etc/revdial
chmod -R go+rX /etc/systemd /etc/revdial
ip link set lo up
container=revdial exec /lib/systemd/systemd --system --unit=idle.target --show-status=no \
    --log-target=console' sh "$2" "$3" "$4"
END_OF_BOOT
    write_services && start systemd sh "$dir/boot.sh" "$group" "$build" "$dir/services" \
        "$dir/revdial"
    until_true 20 pid_1_is_there && until_true 20 inside systemctl is-active -q idle.target ||
        fail "$(tail -n 3 "$dir/systemd.log")"
}

pid_1_is_there() { init=$(pgrep -P "${pid_of[systemd]}") && [ "$init" ]; }
inside() { nsenter -t "$init" -m -p -n -u -i -C "$@" 2>>"$dir/inside.log"; }

write_services() {
    local unit
    mkdir -p "$dir/services" "$dir/revdial" && cp "$units"/* "$dir/services" || return
    for unit in idle.target network-online.target; do
        printf '[Unit]\nDefaultDependencies=no\n' >"$dir/services/$unit"
    done
    for unit in "$units"/*; do
        unit=$dir/services/${unit##*/}.d
        mkdir -p "$unit"
        printf '[Unit]\nDefaultDependencies=no\n' >"$unit/test.conf"
    done
    for unit in proxy agent; do
        printf '[Service]\nWatchdogSec=3s\nStandardOutput=%s\nStandardError=%s\n' \
            append:/run/$unit.log append:/run/$unit.log \
            >>"$dir/services/revdial-$unit.service.d/test.conf"
    done
    cp "$dir/token" "$dir/tokens" "$dir/revdial/"
    : >"$dir/revdial/proxy.key"
    cat >"$dir/revdial/proxy.conf" <<'END_OF_CONFIG'
listen = systemd:agents
expose = systemd:web=cam-1
token-file = $CREDENTIALS_DIRECTORY/tokens
END_OF_CONFIG
    cat >"$dir/revdial/agent.conf" <<'END_OF_CONFIG'
server = http://127.0.0.1:7000
name = cam-1
token-file = $CREDENTIALS_DIRECTORY/token
target = 127.0.0.1:9999
END_OF_CONFIG
}

services_start() {
    start echo nsenter -t "$init" -n python3 -uc 'import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(4096):
            self.request.sendall(data)
socketserver.ThreadingTCPServer(("127.0.0.1", 9999), Echo).serve_forever()'
    inside systemctl start revdial-proxy-agents.socket revdial-proxy-web.socket \
        revdial-proxy.service revdial-agent.service &&
        until_true 20 service_echoes || fail "$(inside sh -c 'tail -n 2 /run/*.log')"
}
service_echoes() {
    [ "$(nsenter -t "$init" -n python3 "$here/clients.py" echo_once 127.0.0.1:80 2>&1)" = ping ]
}

property() { inside systemctl show -P "$2" "revdial-$1.service"; }

# Nobody, with system calls that are filtered, and in no namespace of others.
services_are_confined() {
    local name status
    for name in proxy agent; do
        status=$(inside cat "/proc/$(property $name MainPID)/status")
        grep -q '^NoNewPrivs:.1' <<<"$status" && grep -q '^Seccomp:.2' <<<"$status" &&
            grep -q '^CapEff:.0*$' <<<"$status" && ! grep -q '^Uid:.0' <<<"$status" ||
            { fail "$name: $status"; return; }
    done
}

services_reload() {
    inside systemctl reload revdial-proxy.service revdial-agent.service &&
        until_true 10 inside grep -q event=proxy.reload /run/proxy.log &&
        until_true 10 inside grep -q event=agent.reload /run/agent.log && service_echoes ||
        fail 'they do not'
}

is_another() { [ "$(property proxy MainPID)" != "$1" ]; }

# Clients wait in the socket meanwhile.
is_restarted_after() {
    local pid
    pid=$(property proxy MainPID)
    inside kill "-$1" "$pid"
    until_true 30 is_another "$pid" && until_true 40 service_echoes ||
        fail "$(inside sh -c 'tail -n 2 /run/*.log')"
}

# Exit code 2: it would end in the same way again.
wrong_settings_are_not_tried_again() {
    inside sh -c 'echo nonsense = 1 >>/etc/revdial/agent.conf'
    inside systemctl restart revdial-agent.service && { fail 'it starts'; return; }
    [ "$(property agent ActiveState) $(property agent NRestarts)" = 'failed 0' ] ||
        { fail "$(property agent ActiveState), $(property agent NRestarts) restarts"; return; }
    inside sed -i '/nonsense/d' /etc/revdial/agent.conf
    inside systemctl start revdial-agent.service && until_true 20 service_echoes ||
        fail 'it does not come back'
}

# Longer than the watchdog waits: a client is served to its end, and that is no failure.
services_drain() {
    hold_open holder nsenter -t "$init" -n python3 "$here/clients.py" live 127.0.0.1:80 1
    said holder.out '^live 1' 20 || return
    inside systemctl stop --no-block revdial-agent.service
    sleep 5
    let_go holder
    said holder.out '^still 1' 20 && until_true 10 agent_is inactive success || fail \
        "$(tail -n 1 "$dir/holder.out"): $(property agent ActiveState) $(property agent Result)"
    end_now holder
    inside systemctl start revdial-agent.service && until_true 20 service_echoes
}
agent_is() { [ "$(property agent ActiveState) $(property agent Result)" = "$1 $2" ]; }

services_stop() {
    local name
    inside systemctl stop revdial-agent.service revdial-proxy.service || return
    for name in proxy agent; do
        [ "$(property $name ActiveState) $(property $name Result)" = 'inactive success' ] ||
            { fail "$name: $(property $name ActiveState) $(property $name Result)"; return; }
    done
}

end_systemd() {
    end_now echo systemd
    [ -z "$group" ] || until_true 10 group_is_gone || fail 'its control group stays'
}
group_is_gone() {
    find "$group" -depth -type d -exec rmdir {} + 2>/dev/null
    [ ! -e "$group" ]
}

# ---- without anything around it ----

static_build() {
    (cd "$here/../.." && make BUILD="$build/static" CC=musl-gcc TLS=no LDFLAGS=-static CFLAGS=-O1 \
        "$build/static/revdial-proxy" "$build/static/revdial-agent") >"$dir/static.log" 2>&1 ||
        { fail "$(tail -n 3 "$dir/static.log")"; return; }
    if ldd "$build/static/revdial-proxy" >/dev/null 2>&1; then
        fail 'it needs shared libraries'
        return
    fi
    figures="$(stat -c '%s' "$build/static/revdial-proxy") bytes, not stripped"
}

# A root with the program in it, as a container from scratch has, and nobody's privileges: what it
# is told comes from the environment.
runs_in_an_empty_root() {
    local name at
    mkdir -p "$dir/empty" && chmod 755 "$dir" "$dir/empty" || return
    cp "$build"/static/revdial-{proxy,agent} "$dir/empty/"
    chmod 755 "$dir"/empty/*
    start proxy env -i REVDIAL_TOKEN="$token" REVDIAL_LISTEN=127.0.0.1:0 \
        REVDIAL_EXPOSE=127.0.0.1:0=web "$(command -v chroot)" --userspec=65534:65534 \
        "$dir/empty" /revdial-proxy
    said proxy.out 'for web' 5 || return
    start agent env -i REVDIAL_TOKEN="$token" REVDIAL_NAME=web \
        REVDIAL_SERVER="http://$(sed -n '1s/^listening on //p' "$dir/proxy.out")" \
        REVDIAL_TARGET="${address_of[echo]}" "$(command -v chroot)" --userspec=65534:65534 \
        "$dir/empty" /revdial-agent
    said agent.log event=session.up 5 || return
    at=$(sed -n 's/^listening on \(.*\) for web/\1/p' "$dir/proxy.out")
    [ "$(client echo_once "$at")" = ping ] || { fail 'no echo'; return; }
    for name in proxy agent; do
        grep -q '^Uid:.65534' "/proc/${pid_of[$name]}/status" ||
            { fail "$name is somebody"; return; }
    done
    stop agent proxy
}

check 'peers' start_peers peers "$big" || return
check "systemd's units take away what the programs do not need" units_are_hardened
check 'systemd understands the units' units_are_well_formed
check 'the programs call nothing that the units forbid' units_allow_what_programs_call
check 'a systemd of our own' start_systemd && {
    check 'its services start, and a client is served' services_start
    check 'they are nobody, and may do little' services_are_confined
    check 'they reload' services_reload
    check 'a proxy that is killed comes back' is_restarted_after KILL
    check 'one that stands still does, too' is_restarted_after STOP
    check 'wrong settings are not tried again' wrong_settings_are_not_tried_again
    check 'a drain is longer than the watchdog waits' services_drain
    check 'they stop' services_stop
}
check 'nothing of it is left' end_systemd
check 'make CC=musl-gcc TLS=no LDFLAGS=-static' static_build
check 'an empty root is enough' runs_in_an_empty_root
