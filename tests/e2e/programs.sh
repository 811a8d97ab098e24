# What the operator of the two programs relies on: options, exit codes, signals, what they log.

helps() {
    local program option
    for program in proxy agent; do
        says $program 0 'Usage: revdial-'$program'.*--token-file FILE.*Exit codes:' --help || return
        says $program 0 '^revdial-'$program' [0-9.]+(, mbedTLS [0-9.]+)?$' --version || return
        figures="$figures $program $("$build/revdial-$program" --help | grep -c '^  --') options"
    done
}

# The options of a program: those of the README's table, and all, as --help writes them.
option_rows() {
    sed -n 's/^| `\(--[^`]*\)` | \('"$1"'\|both\) |.*/\1/p' "$here/../../README.md" |
        tr -d '\\' | sort
}
option_helps() {
    "$build/revdial-$1" --help |
        sed -n 's/^  \(--[a-z-]*\( [^ ]\+\)\?\)\(  .*\)\?$/\1/p' | sort
}

# What the documents call an option, in their tables, sentences and commands.
options_named() {
    (cd "$here/../.." && grep -ohE '(^|[^-a-z])--[a-z][a-z-]*' README.md examples/README.md \
        tests/README.md) | sed 's/^[^-]//' | sort -u
}

readme_has_options_of_help() {
    local program wrong
    for program in proxy agent; do
        wrong=$(comm -23 <(option_rows $program) <(option_helps $program))
        [ -z "$wrong" ] || { fail "$program --help does not have $wrong"; return; }
        figures="$figures $program $(option_rows $program | wc -l)"
    done
    wrong=$(comm -23 <(options_named) \
        <({ option_helps proxy; option_helps agent; } | sed 's/ .*//' | sort -u))
    [ -z "$wrong" ] || fail "no program has $wrong"
    wrong=$({ option_rows proxy; option_rows agent; } | sort -u | wc -l)
    [ "$wrong" -eq 10 ] || fail "the table in README.md has $wrong options, not ten"
}

# Each line: the program, what it must name, and the options.
bad_options() {
    local program pattern options count=0
    local agent="--server http://127.0.0.1:1 --name web --target 127.0.0.1:80"
    agent="$agent --token-file $dir/token"
    local only="${agent#--server http://127.0.0.1:1 }"
    while read -r program pattern options; do
        eval "says $program 2 '$pattern' $options" || return
        count=$((count + 1))
    done <<'END_OF_LIST'
proxy --listen
proxy --frobnicate --frobnicate
proxy --listen --listen
proxy --token-file --listen 127.0.0.1:0 --expose 127.0.0.1:0=web
proxy --token-file.*nowhere --listen 127.0.0.1:0 --token-file /nowhere/at/all
proxy --expose.*nobody --listen 127.0.0.1:0 --token-file "$dir/tokens" --expose nobody
proxy --expose.*already --listen 127.0.0.1:0 --token-file "$dir/tokens" --expose 80=a --expose 80=b
proxy --connect.*already --listen 127.0.0.1:0 --token-file "$dir/tokens" --expose 80=a --connect 80
proxy --expose.*UPPER --listen 127.0.0.1:0 --token-file "$dir/tokens" --expose 8080=UPPER
proxy --drain.*soon --drain soon
proxy --io-threads.*0 --io-threads 0
proxy --pick.*best --pick best
proxy --wait.*yes.or.no.*maybe --wait=maybe
proxy unexpected.*web web
proxy --token-file.*--auth-file --listen 127.0.0.1:0
proxy --auth-file.*nowhere --listen 127.0.0.1:0 --auth-file /nowhere
proxy --auth-file.*:1:.*SCHEMES --listen 127.0.0.1:0 --auth-file "$dir/tokens"
agent --user:.missing $agent --auth digest
agent --user:.needs.*alice $agent --user alice
agent --user:.*a:b $agent --auth basic --user a:b
agent --auth.*ntlm --auth ntlm
agent allow.*nowhere $agent --allow-file /nowhere
agent --server
agent --name --server http://127.0.0.1:1
agent --target --server http://127.0.0.1:1 --name web --token-file "$dir/token"
agent --target:.*host.is.missing.*80 $agent --target 80
agent --target:.*port.must.be.from.1 $agent --target x:0
agent --token-file.*nowhere --server unix:/x --name web --target 127.0.0.1:80 --token-file /nowhere
agent --proxy-protocol.*3 --proxy-protocol 3
agent --keepalive.*15 --keepalive 15
agent --keepalive.*100.*20ms --keepalive 20ms
proxy --keepalive.*100.*99ms --keepalive 99ms
proxy http://a:80 --listen 127.0.0.1:0 --token-file "$dir/tokens" --expose 0=web/http://a:80
proxy a:b:c --listen 127.0.0.1:0 --token-file "$dir/tokens" --expose 0=web/a:b:c
proxy --origin:.*ops.test/ --listen 127.0.0.1:0 --token-file "$dir/tokens" --origin http://ops.test/
proxy --path:.must.begin.*revdial --listen 127.0.0.1:0 --token-file "$dir/tokens" --path revdial
agent http://a:80 $agent --target http://a:80
agent --via.*login $agent --via http://user:password@127.0.0.1:1
agent --via.*--via-file $agent --via http://127.0.0.1:1 --via-file "$dir/token"
agent --via-file.*nowhere $agent --via-file /nowhere
agent --via:.there.is.no.TLS $agent --via https://127.0.0.1:1
agent --via-file:.not.http $agent --via-file "$dir/token"
agent --via:.only.a.server $agent --server unix:/x --via http://127.0.0.1:1
agent --all-addresses:.not.with $agent --all-addresses --via http://127.0.0.1:1
agent ftp --server ftp://127.0.0.1:1 --name web --token-file "$dir/token" --target 127.0.0.1:80
proxy is.--listen.meant --lisen 127.0.0.1:0
agent is.--token-file.meant --tokn-file x
agent --server:.*65535.*99999 $agent --server http://127.0.0.1:99999
proxy two.dashes -listen 127.0.0.1:0
proxy --listen:.needs.a.value --listen --expose 127.0.0.1:0=web
proxy --unix-mode.*99 --unix-mode 99
proxy write.HOST:PORT --listen 7000 --token-file "$dir/tokens"
proxy without.the.scheme --listen tcp://127.0.0.1:0 --token-file "$dir/tokens"
proxy at.most.10. --listen "unix:/$(printf %150s | tr ' ' x)" --token-file "$dir/tokens"
agent without.the.scheme $agent --target http://x:80
agent --name:.*UPPER $agent --name UPPER
agent --insecure-cleartext $only --server http://192.0.2.1:1
agent --server-name:.neither.*a.b $agent --server-name "a b"
proxy --congestion:.*none --listen 127.0.0.1:0 --token-file "$dir/tokens" --congestion none
proxy --expose:.target: --listen 127.0.0.1:0 --token-file "$dir/tokens" --expose 0=web/x
proxy --allow-from:.*x --listen 127.0.0.1:0 --token-file "$dir/tokens" --expose 0=web --allow-from x
proxy --trusted-proxies.*x --listen 0:0 --token-file "$dir/tokens" --http 0 --trusted-proxies x
agent --allow:.the.port.*nonsense $agent --allow nonsense
END_OF_LIST
    figures="$count wrong command lines"
}

# In the log of a proxy that works: a mode that is too wide, nothing exposed, an option given twice.
warnings() {
    cp "$dir/tokens" "$dir/wide" && chmod 644 "$dir/wide" || return
    start warned "$build/revdial-proxy" --listen 127.0.0.1:0 --token-file "$dir/wide" \
        --drain 1s --drain 2s
    said warned.log "event=secret.readable.*$dir/wide" 5 && said warned.log event=expose.none 1 &&
        said warned.log 'event=option.repeated.*--drain' 1 && said warned.out listening 5 &&
        stop warned || return
    start warned "$build/revdial-proxy" --listen 127.0.0.1:0 --token-file "$dir/tokens" \
        --expose 127.0.0.1:0=web
    said warned.out 'for web' 5 && stop warned || return
    [ "$(count warned.log level=warn)" -eq 0 ] || fail "$(grep level=warn "$dir/warned.log")"
}

# Unix sockets have the mode that was asked for, whatever the umask.
unix_mode() {
    local got
    start moded "$build/revdial-proxy" --listen "unix:$dir/moded" --token-file "$dir/tokens" \
        --expose "unix:$dir/moded2=web" --unix-mode 0666
    said moded.out 'for web' 5 || return
    got=$(stat -c %a "$dir/moded" "$dir/moded2" | tr '\n' ' ')
    [ "$got" = "666 666 " ] || { fail "the modes are $got"; return; }
    stop moded
}

# [::] takes IPv4, and the agent there is called by its IPv4 address.
v6_takes_v4() {
    start both "$build/revdial-proxy" --listen '[::]:0' --token-file "$dir/tokens"
    said both.out '^listening on' 5 || return
    local port
    port=$(sed -n '1s/.*://p' "$dir/both.out")
    start both_agent "$build/revdial-agent" --server "http://127.0.0.1:$port" --name web \
        --token-file "$dir/token" --target 127.0.0.1:9
    said both.log 'event=session.up.*peer=127\.0\.0\.1:' 5 && stop both_agent both
}

# Each line is an object, and a client's lines share an id in both logs.
json_logs() {
    local json=(--log-format json --access-log) where
    start told "$build/revdial-proxy" --listen 127.0.0.1:0 --token-file "$dir/tokens" \
        --expose 127.0.0.1:0=web "${json[@]}"
    said told.out 'for web' 5 || return
    where=$(sed -n '1s/^listening on //p' "$dir/told.out")
    start told_agent "$build/revdial-agent" --server "http://$where" --name web \
        --token-file "$dir/token" --target "${address_of[nginx]}" "${json[@]}"
    said told.log session.up 5 || return
    where=$(sed -n 's/^listening on \(.*\) for web/\1/p' "$dir/told.out")
    curl -sS -o /dev/null "http://$where/" || return
    said told.log stream.end 5 && said told_agent.log stream.end 5 && stop told_agent told || return
    figures=$(python3 -c '
import json, sys
ends = [[x for x in map(json.loads, open(name)) if x["event"] == "stream.end"][-1]
        for name in sys.argv[1:]]
assert all(type(x["to_client_bytes"]) is int and x["to_client_bytes"] > 0 for x in ends), ends
assert all(ends[0][key] == ends[1][key] for key in ("session", "dial", "name", "client")), ends
print(ends[0]["dial"])' "$dir/told.log" "$dir/told_agent.log" 2>&1) || fail "$figures"
}

# The token of "web" only; what it must not do is be another name.
start_programs() {
    start_nginx nginx || return
    start_nginx nginx1 proxy_protocol && start_nginx nginx2 proxy_protocol || return
    start_peers peers "$big" || return
    rm -f "$dir/exposed.sock"
    web_token=w$token
    echo "web,pool,v1,v2,unix $web_token" >"$dir/web_tokens"
    echo "$web_token" >"$dir/web_token"
    start_web_proxy
}

start_web_proxy() {
    start proxy "$build/revdial-proxy" --token-file "$dir/web_tokens" --verbose --drain 60s \
        --listen "${web_at:-127.0.0.1:0}" --listen "unix:$dir/tunnel.sock" \
        --expose 127.0.0.1:0=web --expose "unix:$dir/exposed.sock=web" --expose 127.0.0.1:0=pool \
        --expose 127.0.0.1:0=v1 --expose 127.0.0.1:0=v2 \
        --expose "127.0.0.1:0=web/${address_of[source]}" --expose 127.0.0.1:0=unix
    said proxy.out '^listening on' 5 || return
    tunnel=$(sed -n '1s/^listening on //p' "$dir/proxy.out")
    web_at=$tunnel
    mapfile -t exposed < <(sed -n 's/^listening on \(.*\) for .*$/\1/p' "$dir/proxy.out")
}

# start_web_agent NAME OPTION...
start_web_agent() {
    start "$1" "$build/revdial-agent" --server "http://$tunnel" --name web --verbose \
        --token-file "$dir/web_token" --target "${address_of[nginx]}" --allow '127.0.0.1:*' \
        --drain 60s "${@:2}"
    said "$1.log" event=session.up 5
}

listening_lines() {
    local lines
    lines=$(sed "s,$dir/,,; s/:[0-9]*\( for.*\)\?$/:PORT\1/; s/listening on //" "$dir/proxy.out" |
        tr '\n' '|')
    [ "$lines" = "127.0.0.1:PORT|unix:tunnel.sock|127.0.0.1:PORT for web|unix:exposed.sock for web|\
127.0.0.1:PORT for pool|127.0.0.1:PORT for v1|127.0.0.1:PORT for v2|127.0.0.1:PORT for web|\
127.0.0.1:PORT for unix|" ] || fail "$lines"
}

address_in_use() {
    local rest=(--token-file "$dir/tokens" --listen)
    says proxy 4 "$tunnel.*in use" "${rest[@]}" "$tunnel" || return
    says proxy 4 'tunnel.sock.*in use' "${rest[@]}" "unix:$dir/tunnel.sock" || return
    says proxy 4 "nowhere.invalid:1.*(host|server)" "${rest[@]}" nowhere.invalid:1 || return
    says proxy 4 'no such address' "${rest[@]}" 192.0.2.1:1 || return
    rest+=(127.0.0.1:0 --expose)
    says proxy 4 "${exposed[0]}.*in use" "${rest[@]}" "${exposed[0]}=web" || return
    says proxy 4 'exposed.sock.*in use' "${rest[@]}" "unix:$dir/exposed.sock=web"
}

rejected() {
    local options=(--server "http://$tunnel" --target 127.0.0.1:9)
    echo "x$token" >"$dir/wrong_token"
    says agent 3 'link.stopped' "${options[@]}" --name web --token-file "$dir/wrong_token" || return
    says agent 3 'link.stopped' "${options[@]}" --name other --token-file "$dir/web_token" || return
    said proxy.log 'event=session.refused' 1 2
}

unix_socket() {
    local got
    got=$(curl -sS --max-time 5 --unix-socket "$dir/exposed.sock" http://anything/ 2>&1)
    [ "$got" = "$(cat "$www/index.html")" ] || { fail "got $got"; return; }
}

# The agent dials the proxy through a Unix socket, and its target is one, too.
all_unix() {
    start unix_agent "$build/revdial-agent" --server "unix:$dir/tunnel.sock" --name unix \
        --token-file "$dir/web_token" --target "unix:$dir/nginx.sock"
    said unix_agent.log event=session.up 5 || return
    got=$(curl -sS --max-time 5 "http://${exposed[6]}/" 2>&1)
    [ "$got" = "$(cat "$www/index.html")" ] || { fail "got $got"; return; }
    stop unix_agent
}

# fails_with_descriptors N PROGRAM OPTION...: not many more than stdin, stdout and stderr
fails_with_descriptors() {
    local out status
    out=$(timeout 10 sh -c 'ulimit -n $0 && exec "$@"' "$1" "$build/revdial-$2" "${@:3}" 2>&1)
    status=$?
    [ "$status" -eq 1 ] || { fail "it ends with $status: $out"; return; }
    figures=$(sed -n 's/.* reason="\(.*\)"$/\1/p' <<<"$out")
    [ "$figures" ] || fail "it says $out"
}

# Whoever reads the addresses must not wait for ever.
# As under "2>&1 | logger", when that has stopped.
nobody_reads() {
    mkfifo "$dir/full" && exec 9<>"$dir/full" || return
    timeout 1 cat /dev/zero >&9
    start unread sh -c 'exec "$@" >&9' - "$build/revdial-proxy" \
        --listen "unix:$dir/unread.sock" --token-file "$dir/web_tokens"
    start behind sh -c 'exec "$@" >&9' - "$build/revdial-agent" --name web \
        --server "unix:$dir/unread.sock" --token-file "$dir/web_token" \
        --forward 127.0.0.1:0=127.0.0.1:9
    said behind.log 'is not read.*for 127.0.0.1:9' 5 && said behind.log session.up 5 &&
        said unread.log 'is not read' 5 || return
    kill -HUP "${pid_of[unread]}" && said unread.log proxy.reload 5 && stop behind unread
    exec 9>&-
}

cannot_announce() {
    local out status
    out=$(timeout 10 "$build/revdial-proxy" --listen 127.0.0.1:0 --token-file "$dir/tokens" \
        2>&1 >/dev/full)
    status=$?
    [ "$status" -eq 1 ] && [[ "$out" =~ "cannot print" ]] || fail "it ends with $status: $out"
}

ends_with_int() {
    start_web_agent interrupted --instance interrupted && kill -INT "${pid_of[interrupted]}" &&
        await_end interrupted 5 || return
    [ "$status" -eq 0 ] || { fail "the agent ended with $status"; return; }
    start other "$build/revdial-proxy" --listen 127.0.0.1:0 --token-file "$dir/tokens"
    said other.out '^listening on' 5 && kill -INT "${pid_of[other]}" && await_end other 5 || return
    [ "$status" -eq 0 ] || fail "the proxy ended with $status"
}

# proxy_header VERSION: nginx sees the address that curl had
proxy_header() {
    local got at=${exposed[$(($1 + 2))]}
    start_web_agent "v$1" --name "v$1" --target "${address_of[nginx$1]}" --proxy-protocol "$1" ||
        return
    got=$(curl -sS --max-time 5 --interface 127.0.0.5 -w '%{local_ip}:%{local_port}' \
        "http://$at/" 2>&1)
    got=${got##*$'\n'}
    until_true 2 grep -q "^$got /" "$dir/nginx$1.access" ||
        { fail "curl was $got, nginx saw $(tail -n 1 "$dir/nginx$1.access")"; return; }
    figures="$got"
    stop "v$1"
}

# Who answers 30 connections, and how often each.
who_answers() {
    local i
    for i in $(seq 30); do through "${exposed[2]}" -N -d; done | sort | uniq -c | tr -s ' \n' ' '
}

round_robin() {
    local name got
    for name in ann bob cid; do
        start_web_agent "$name" --name pool --instance "$name" \
            --target "${address_of[$name]}" || return
    done
    figures=$(who_answers)
    [ "$figures" = " 10 ann 10 bob 10 cid " ] || { fail "30 connections went to:$figures"; return; }
    stop bob || return
    got=$(who_answers)
    figures="$figures; without bob$got"
    [ "$got" = " 15 ann 15 cid " ] || { fail "$figures"; return; }
    stop ann cid
}

# A download that takes about two seconds, for what happens meanwhile.
start_download() {
    start_client download read "${exposed[5]}" "$big" "${1:-500000000}"
    said download.out '^reading' 10
}

agent_drains() {
    start_web_agent agent && start_download || return
    kill -TERM "${pid_of[agent]}"
    said proxy.log 'event=session.draining.*name=web' 2 || return
    new_ones_are_refused "${exposed[0]}" || { fail "a new connection was served"; return; }
    is_running agent || { fail "the agent did not wait"; return; }
    kill -HUP "${pid_of[agent]}" && said agent.log 'event=agent.reload.*limits' 1 &&
        kill -USR2 "${pid_of[agent]}" && said agent.log event=status 1 || return
    download_is_whole && await_end agent 2 || return
    [ "$status" -eq 0 ] || fail "the agent ended with $status"
}

proxy_drains() {
    start_web_agent agent && start_download || return
    kill -TERM "${pid_of[proxy]}"
    said proxy.log 'event=proxy.draining' 2 || return
    new_ones_are_refused "${exposed[0]}" || { fail "a new connection was served"; return; }
    is_running proxy || { fail "the proxy did not wait"; return; }
    download_is_whole && await_end proxy 2 || return
    [ "$status" -eq 0 ] || { fail "the proxy ended with $status"; return; }
    [ ! -e "$dir/exposed.sock" ] && [ ! -e "$dir/tunnel.sock" ] || fail "a socket file stayed"
}

term_ends() { ! kill -TERM "${pid_of[$1]}" 2>/dev/null; }

# second_term PROGRAM: while it waits for a download, which then ends with an error. Two that come
# together, as timeout(1) sends them, are one.
second_term() {
    local since=$EPOCHREALTIME
    start_download 40000000 || return
    kill -USR1 "${pid_of[$1]}" && kill -USR2 "${pid_of[$1]}"
    kill -TERM "${pid_of[$1]}" && kill -TERM "${pid_of[$1]}"
    said proxy.log 'event=(proxy|session).draining' 2 || return
    is_running "$1" || { fail "the first two, or USR1 or USR2, ended it"; return; }
    since=$EPOCHREALTIME
    until_true 5 term_ends "$1" || { fail "many do not end it"; return; }
    await_end "$1" 2 || return
    figures="after $(milliseconds_since "$since") ms"
    [ "$status" -eq 1 ] || { fail "it ended with $status"; return; }
    said download.out '[0-9] (same|different) ' 60 || return
    [[ "$(tail -n 1 "$dir/download.out")" =~ ^[0-9]+\ same\ reset\  ]] ||
        fail "the download ended with: $(tail -n 1 "$dir/download.out")"
}

# While it waits for a download: who has no credential any more is waited for no longer.
draining_proxy_heeds_signals() {
    local at port
    echo "web $token" >"$dir/drain_tokens"
    start drained "$build/revdial-proxy" --listen 127.0.0.1:0 --token-file "$dir/drain_tokens" \
        --drain 60s --expose "127.0.0.1:0=web/${address_of[source]}"
    said drained.out '^listening on .* for web' 5 || return
    at=$(sed -n '1s/^listening on //p' "$dir/drained.out")
    port=$(sed -n 's/^listening on \(.*\) for web$/\1/p' "$dir/drained.out")
    start revoked "$build/revdial-agent" --server "http://$at" --name web --target 127.0.0.1:9 \
        --token-file "$dir/token" --allow '127.0.0.1:*'
    said revoked.log event=session.up 5 || return
    start_client cut read "$port" "$big" 4000000
    said cut.out '^reading' 10 && kill -TERM "${pid_of[drained]}" &&
        said drained.log event=proxy.draining 5 && kill -USR2 "${pid_of[drained]}" &&
        said drained.log 'event=status.*streams_count=1' 5 || return
    echo "[ t0ken" >"$dir/drain_tokens" && kill -HUP "${pid_of[drained]}" &&
        said drained.log 'proxy.reload.*nothing was changed' 5 || return
    echo "web other$token" >"$dir/drain_tokens" && kill -HUP "${pid_of[drained]}" &&
        said drained.log event=session.revoked 5 && await_end drained 5 || return
    [ "$status" -eq 0 ] || { fail "the proxy ended with $status"; return; }
    said cut.out ' reset ' 30 && end_now revoked
}

# The token is wrong when the agent starts, and is mended before there is a proxy to ask.
token_is_read_again() {
    echo "x$token" >"$dir/late_token"
    start late "$build/revdial-agent" --server "http://$tunnel" --name web \
        --token-file "$dir/late_token" --target "${address_of[nginx]}"
    said late.log 'event=link.retry' 5 || return
    cp "$dir/web_token" "$dir/late_token"
    start_web_proxy && said late.log event=session.up 10
}

drain_is_bounded() {
    start_web_agent short --name v1 --target "${address_of[flood]}" --drain 500ms || return
    start_client flooded read "${exposed[3]}" "$big" 40000000
    said flooded.out '^reading' 5 || return
    kill -TERM "${pid_of[short]}"
    local since=$EPOCHREALTIME
    await_end short 3 || return
    figures="ended with $status after $(milliseconds_since "$since") ms"
    said flooded.out ' reset ' 30
}

# Neither command lines nor logs have them, and -v was on.
no_secrets() {
    local found
    found=$(grep -lFf "$dir/token" /proc/[0-9]*/cmdline 2>/dev/null | head -n 1)
    [ -z "$found" ] || { fail "ps shows: $(tr '\0' ' ' <"$found")"; return; }
    found=$(grep -lF "$token" "$dir"/*.log "$dir"/*.out)
    [ -z "$found" ] || { fail "it is in $found"; return; }
    figures="$(cat "$dir"/*.log "$dir"/*.out | wc -l) lines of logs"
}

check '--help and --version' helps
check 'options that the documents name are those of --help' readme_has_options_of_help
check 'wrong options are named, exit code 2' bad_options
check 'secrets that all can read, and no --expose, are warned of' warnings
check 'proxy and servers are ready' start_programs || return
check '"listening on" for each address' listening_lines
check 'an address in use, or of nobody here, exit code 4' address_in_use
check 'a wrong token or name, exit code 3' rejected
for descriptors in 4 6 7; do
    check "a proxy with $descriptors descriptors, exit code 1" \
        fails_with_descriptors $descriptors proxy --listen 127.0.0.1:0 --token-file "$dir/tokens"
done
check 'an agent with 4 descriptors, exit code 1' fails_with_descriptors 4 agent \
    --server "http://$tunnel" --name web --target 127.0.0.1:9 --token-file "$dir/web_token"
check 'addresses that cannot be printed, exit code 1' cannot_announce
check 'programs whose stdout is a full pipe are up, and TERM ends them' nobody_reads
check 'INT is as good as TERM, exit code 0' ends_with_int
check 'an agent of that proxy' start_web_agent agent
check 'curl --unix-socket' unix_socket
check 'Unix sockets have the mode of --unix-mode' unix_mode
check '[::] takes IPv4' v6_takes_v4
check 'a client can be followed through JSON logs' json_logs
check 'Unix sockets all the way' all_unix
check 'nginx sees the client by PROXY v1' proxy_header 1
check 'nginx sees the client by PROXY v2' proxy_header 2
check 'three agents of one name take turns' round_robin
check 'the agent ends well' stop agent
check 'TERM lets the download of an agent end, HUP and USR2 are heeded' agent_drains
check 'TERM lets the download of a proxy end' proxy_drains
end_now agent
check 'another proxy' start_web_proxy
check 'the drain of an agent is bounded' drain_is_bounded
check 'an agent' start_web_agent agent
check 'two TERMs are one, a later one ends the agent, exit code 1' second_term agent
check 'another agent' start_web_agent agent
check 'two TERMs are one, a later one ends the proxy, exit code 1' second_term proxy
end_now agent
check 'HUP and USR2 are heeded while the proxy drains' draining_proxy_heeds_signals
check 'a token file is read before each attempt' token_is_read_again
check 'no secret in ps or logs' no_secrets
check 'all end well' stop late proxy
