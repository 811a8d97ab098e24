# What the programs run in: systemd's units with what they take away, and a root with nothing else.

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
check 'make CC=musl-gcc TLS=no LDFLAGS=-static' static_build
check 'an empty root is enough' runs_in_an_empty_root
