# The admin port of both programs: health, metrics for a real parser of Prometheus, status as JSON
# and as tables, USR2.

python=python3
python3 -c 'import prometheus_client' 2>/dev/null || python=/usr/bin/python3

# start_admin: a proxy and an agent with two targets, and where their admin ports are: $proxy_admin
# and $agent_admin
start_admin() {
    start_peers peers "$big" || return
    (umask 077 && echo "${token}admin" >"$dir/admin_token")
    exposing web flood echo
    exposes+=(--expose "127.0.0.1:0=cam-1/${address_of[flood]}"
        --expose "127.0.0.1:0=cam-2/${address_of[source]}" --expose 127.0.0.1:0=plain)
    start_proxy proxy "${exposes[@]}" --admin 127.0.0.1:0 --admin-token-file "$dir/admin_token" \
        --admin-host ops.example --connect 127.0.0.1:0 || return
    proxy_admin=$(admin_of proxy)
    start_agent agent --allow '127.0.0.1:*' --admin "unix:$dir/agent.admin" --instance one || return
    agent_admin=unix:$dir/agent.admin
}

admin_of() { sed -n 's,.*event=admin.listening.*http://\(.*\)/.*,\1,p' "$dir/$1.log" | tail -n 1; }

# get ADDRESS PATH CURL_OPTION...
get() {
    local at=$1 path=$2
    shift 2
    case $at in
    unix:*) curl -sS --max-time 5 --unix-socket "${at#unix:}" "$@" "http://localhost$path" ;;
    *) curl -sS --max-time 5 "$@" "http://$at$path" ;;
    esac
}

# answers ADDRESS PATH STATUS PATTERN CURL_OPTION...
answers() {
    local got
    got=$(get "$1" "$2" -w '\n%{http_code}' "${@:5}" 2>&1)
    [ "${got##*$'\n'}" = "$3" ] && [[ "$got" =~ $4 ]] || fail "$1$2 says $got"
}

health() {
    answers "$proxy_admin" /healthz 200 ok && answers "$agent_admin" /healthz 200 ok &&
        answers "$proxy_admin" /readyz 200 '"sessions":1' &&
        answers "$agent_admin" /readyz 200 '"sessions":1'
}

# metric ADDRESS EXPRESSION: v(METRIC, LABEL=VALUE...) is the sum of the samples that have them
metric() {
    get "$1" /metrics | "$python" -c '
import sys
from prometheus_client.parser import text_string_to_metric_families
families = list(text_string_to_metric_families(sys.stdin.read()))
assert len({f.name for f in families}) == len(families) > 10, families
samples = [s for f in families for s in f.samples]
assert len({(s.name, *sorted(s.labels.items())) for s in samples}) == len(samples)
def v(metric, **labels):
    return sum(s.value for s in samples if s.name == metric and labels.items() <= s.labels.items())
names = {f.name for f in families}
def values(label):
    return {s.labels[label] for s in samples if label in s.labels}
sys.exit(0 if eval("(" + sys.argv[1] + ")") else
    "\n".join(map(str, samples)))' "$2" 2>"$dir/metric.err" ||
        fail "not $2: $(tail -n 60 "$dir/metric.err" | grep -v ' 0\.0' | head -c 3000)"
}

metrics_are_true() {
    local answer
    exec 8<>"/dev/tcp/${exposed[1]/:/\/}" && echo hello >&8 && read -r answer <&8
    exec 8>&-
    [ "$answer" = hello ] || { fail "no echo"; return; }
    metric "$proxy_admin" 'v("revdial_sessions", name="web") == 1 == v("revdial_sessions")' &&
        metric "$proxy_admin" 'v("revdial_streams_opened_total", name="web") == 1' &&
        metric "$proxy_admin" 'v("revdial_bytes_total", direction="sent") == 6' &&
        metric "$proxy_admin" 'v("revdial_dial_duration_seconds_count") == 1' &&
        metric "$agent_admin" 'v("revdial_sessions", name="web") == 1' &&
        metric "$agent_admin" 'v("revdial_bytes_total", direction="sent") == 6' || return
    figures="$(get "$proxy_admin" /metrics | grep -vc '^#') samples of the proxy,"
    figures="$figures $(get "$agent_admin" /metrics | grep -vc '^#') of the agent"
}

# Names, instances and paths of strangers are nobody's labels, and failures have reasons.
labels_are_bounded() {
    start_agent_only wrong --name web --target 127.0.0.1:9 --token-file "$dir/admin_token"
    await_end wrong 5 || return
    start_agent stranger --name stranger-1 --instance odd --target 127.0.0.1:9 || return
    metric "$proxy_admin" 'values("name") == {"web", "cam-1", "cam-2", "plain", "other"}' &&
        metric "$proxy_admin" 'v("revdial_sessions", name="other") == 1' &&
        metric "$proxy_admin" \
            'v("revdial_auth_failures_total", scheme="bearer", reason="credentials") == 1' &&
        metric "$proxy_admin" 'v("revdial_handshakes_refused_total", status="401") == 1' || return
    stop stranger && said proxy.log 'session.down.*stranger-1' 5 || return
    metric "$proxy_admin" 'v("revdial_sessions_closed_total", name="other") == 1' &&
        metric "$proxy_admin" 'v("revdial_sessions", name="other") == 0' &&
        ! get "$proxy_admin" /metrics | grep -E 'stranger|odd|127\.0\.0\.1' ||
        fail "a label is a stranger's"
}

# status EXPRESSION ADDRESS: of the JSON as x
status() {
    get "$2" /status | python3 -c '
import json, sys
x = json.load(sys.stdin)
sys.exit(0 if eval("(" + sys.argv[1] + ")") else
    json.dumps(x, indent=1))' "$1" 2>"$dir/status.err" ||
        fail "not $1: $(cat "$dir/status.err")"
}

# An agent whose name gets a label while it is connected counts under it from then on; what it has
# done before stays where it was.
label_comes_later() {
    local at bearer=(-g -X POST -H "Authorization: Bearer ${token}admin")
    start_agent late --name late-1 --allow '127.0.0.1:*' || return
    at=$(echo before | "$build/revdial-proxy" dial "late-1/${address_of[echo]}" \
        --through "$(front_at connect)")
    [ "$at" = before ] && metric "$proxy_admin" 'v("revdial_sessions", name="other") == 1 and
        v("revdial_bytes_total", name="other") == 14' || return
    at=127.0.0.1:$(client port)
    answers "$proxy_admin" "/expose?port=$at=late-1/${address_of[echo]}" 200 listen \
        "${bearer[@]}" && said_by "$at" || return
    metric "$proxy_admin" 'v("revdial_sessions", name="late-1") == 1 and
        v("revdial_sessions", name="other") == 0 and
        v("revdial_bytes_total", name="other") == 14 and
        v("revdial_bytes_total", name="late-1") == 8' &&
        stop late && said proxy.log 'session.down.*late-1' 5 &&
        metric "$proxy_admin" 'v("revdial_bytes_total", name="other") == 14 and
            v("revdial_bytes_total", name="late-1") == 8' || return
    answers "$proxy_admin" "/unexpose?id=$(port_id "$at")" 200 closed "${bearer[@]}"
}

status_is_json() {
    status 'x["sessions"][0]["name"] == "web" and x["sessions"][0]["instance"] == "one" and
        x["sessions"][0]["identity"].startswith("token ") and x["sessions_total"] == 1 and
        x["sessions"][0]["carrier"] == "raw" and not x["draining"]' "$proxy_admin" &&
        status 'x["links"][0]["state"] == "up" and x["links"][0]["url"].endswith("'"$tunnel"'") and
            x["links"][0]["session"] == x["sessions"][0]["id"]' "$agent_admin"
}

# A client that does not read: where its stream waits, on either end, and since when.
is_stuck() {
    status 'x["sessions"][0]["blocked"] == 1 and
        x["sessions"][0]["blocked_streams"][0]["blocked_on"] == "'"$2"'" and
        x["sessions"][0]["blocked_streams"][0]["blocked_ms"] >= 1000' "$1"
}

stuck_streams() {
    local dial
    hold_client holder hold "${exposed[0]}" 1
    said holder.out '^holding' 5 || return
    until_true 10 is_stuck "$agent_admin" "peer's credit" || return
    until_true 10 is_stuck "$proxy_admin" reader || return
    metric "$agent_admin" 'v("revdial_flow_stalls_total") >= 1' || return
    status 'x["sessions"][0]["blocked_streams"][0]["client"].startswith("127.0.0.1:") and
        x["sessions"][0]["blocked_streams"][0]["target"] == "'"${address_of[flood]}"'"' \
        "$proxy_admin" || return
    dial=$(get "$agent_admin" /status | sed -n 's/.*"dial":"\([^"]*\).*/\1/p')
    get "$proxy_admin" /status | grep -q "\"dial\":\"$dial\"" || fail "the ids differ"
    says_table agent --admin "$agent_admin" "$dial +peer's credit +[0-9.]+ s" || return
    figures=$("$build/revdial-agent" status --admin "$agent_admin" | grep "$dial" | tr -s ' ')
}

# The same stream at both ends, and ends that cannot be asked.
asks_both_ends() {
    local dial out
    dial=$(stuck_at web)
    answers "$proxy_admin" "/stream?dial=$dial" 200 \
        '"blocked_on":"reader".*"other":"told","there":.*"blocked_on":"peer.s credit"' || return
    out=$("$build/revdial-proxy" status --admin "$proxy_admin" --dial "$dial" 2>&1)
    grep -Eq '^proxy +reader +[0-9.]+ s' <<<"$out" &&
        grep -Eq "^agent +peer's credit +[0-9.]+ s" <<<"$out" || { fail "$out"; return; }
    answers "$proxy_admin" "/stream?dial=$dial.9" 404 'no such stream' &&
        answers "$proxy_admin" /stream 404 'no such stream' &&
        says proxy 1 '404 no such stream' status --admin "$proxy_admin" --dial 0.1 &&
        says proxy 2 'not the id' status --admin "$proxy_admin" --dial '0 HTTP/1.1' || return
    # The target is a target like any other for those who cannot say which stream.
    says proxy 6 '502.*does not resolve' dial web/stream.revdial.invalid:1 \
        --through "$(front_at connect)" || return
    figures=$(grep ^agent <<<"$out" | tr -s ' ')
}

# front_at OPTION: where the proxy has that front end
front_at() { sed -n "s/^listening on \(.*\) for --$1\$/\1/p" "$dir/proxy.out"; }

# A backend without the question, and one that has stopped.
other_end_is_no_agent() {
    local dial
    start backend env REVDIAL_TOKEN="$token" python3 \
        "$here/../../examples/backends/backend.py" "$tunnel" plain "${address_of[flood]}"
    said proxy.log 'event=session.up.*name=plain' 5 || return
    hold_client gazer hold "${exposed[4]}" 1
    said gazer.out '^holding' 5 && until_true 10 is_stuck_at plain || return
    dial=$(stuck_at plain)
    answers "$proxy_admin" "/stream?dial=$dial" 200 '"other":"unknown","reason":"the other end ' ||
        return
    kill -STOP "${pid_of[agent]}"
    dial=$(stuck_at web)
    answers "$proxy_admin" "/stream?dial=$dial" 200 '"other":"silent","reason":"the other end has' &
    answers "$proxy_admin" /healthz 200 ok || return # meanwhile
    wait $! || { fail 'no verdict about a silent one'; return; }
    kill -CONT "${pid_of[agent]}"
    end_now gazer backend
}

stuck_at() {
    get "$proxy_admin" "/status?name=$1" | sed -n 's/.*"dial":"\([^"]*\).*/\1/p'
}
is_stuck_at() { [ "$(stuck_at "$1")" ]; }

# says_table PROGRAM --admin ADDRESS PATTERN
says_table() {
    local out
    out=$("$build/revdial-$1" status "$2" "$3" 2>&1) || { fail "status: $out"; return; }
    grep -Eq "$4" <<<"$out" || fail "no '$4' in $out"
}

tables() {
    says_table proxy --admin "$proxy_admin" \
        '^[0-9a-f]{16} +web +one +token [0-9a-f]{16} +127.0.0.1:[0-9]+ +up +raw ' &&
        says_table agent --admin "$agent_admin" "^http://$tunnel +up +[0-9]" || return
    "$build/revdial-proxy" status --json "--admin=$proxy_admin" | python3 -m json.tool >/dev/null ||
        { fail "--json is no JSON"; return; }
    REVDIAL_ADMIN=$agent_admin "$build/revdial-agent" status | grep -q 'revdial-agent' ||
        { fail "REVDIAL_ADMIN is ignored"; return; }
    says proxy 2 'status: --admin is missing' status && says proxy 2 'only options' status --frob &&
        says proxy 1 'status: .*refused' status --admin "$(client port)"
}

# A column for each field of /status, and what the counters are.
tables_are_complete() {
    local at
    for at in "$proxy_admin" "$agent_admin"; do
        get "$at" /status >"$dir/status.json" && get "$at" /status.txt >"$dir/status.txt"
        python3 -c '
import json, re, sys
x, text = json.load(open(sys.argv[1])), open(sys.argv[2]).read()
def columns(head):
    line, = [l for l in text.split("\n") if l.startswith(head)]
    return len(re.split(r"  +", line.strip()))
def fields(row):  # without those that others tell: a table of its own, another cell
    return len(set(row) - {"blocked", "blocked_streams", "is_peer", "address"})
for key, head in (("sessions", "SESSION"), ("ports", "PORT"), ("links", "SERVER")):
    if key in x: assert columns(head) == fields(x[key][0]), (key, x[key][0], text)
words = set(re.findall(r"[a-z]+", text[:text.index("SESSION")]))
for key in x["counters"]:
    assert set(key.replace("rx", "received").replace("tx", "sent").replace("auth_failures",
        "wrong_credentials").split("_")) <= words, key' "$dir/status.json" "$dir/status.txt" \
            2>"$dir/status.err" || { fail "$(tail -n 8 "$dir/status.err")"; return; }
    done
}

# The names of metrics that dashboards are made of.
metrics_have_their_names() {
    local both='"revdial_build_info", "revdial_sessions", "revdial_sessions_opened",
        "revdial_sessions_closed", "revdial_streams", "revdial_streams_opened",
        "revdial_streams_reset", "revdial_bytes", "revdial_flow_stalls", "revdial_draining",
        "revdial_session_rtt_seconds"'
    metric "$proxy_admin" "names >= {$both, 'revdial_auth_failures', 'revdial_dials_failed',
        'revdial_dial_duration_seconds'}" &&
        metric "$agent_admin" "names >= {$both, 'revdial_reconnects'}" &&
        metric "$proxy_admin" 'values("reason") <= set("credentials name none".split()) |
            {r for r in values("reason") if r.isupper()}' &&
        metric "$proxy_admin" 'values("direction") == {"received", "sent"}'
}

# fails_to_print PROGRAM OPTION...: to a disk that is full
fails_to_print() {
    local out status
    out=$("$build/revdial-$1" "${@:2}" 2>&1 >/dev/full)
    status=$?
    [ "$status" -eq 1 ] && [[ "$out" =~ stdout ]] || fail "$*: ends with $status: $out"
}

# What a script keeps is all of it, or it hears so.
nothing_is_half_printed() {
    local program
    for program in proxy agent; do
        fails_to_print $program --help && fails_to_print $program --version &&
            fails_to_print $program --config - || return
    done
    fails_to_print proxy status --json --admin "$proxy_admin" &&
        fails_to_print agent status --admin "$agent_admin"
}

# A program that stands still is told from an address that is wrong.
status_of_a_stopped_program() {
    local out
    kill -STOP "${pid_of[agent]}"
    out=$("$build/revdial-agent" status --admin "$agent_admin" 2>&1)
    kill -CONT "${pid_of[agent]}"
    [[ "$out" =~ agent.admin:\ no\ answer\ for\ 10\ s ]] || fail "it says $out"
}

# One that is killed while it answers has not said all.
status_of_a_program_that_dies() {
    start dying python3 -c 'import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
sock, _ = listener.accept()
sock.recv(4096)
sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nrevdial-proxy 0.1.0, pid 1: 9 sess")'
    said dying.out . 5 &&
        says proxy 1 'the answer was cut' status --admin "$(cat "$dir/dying.out")" &&
        await_end dying 10
}

usr2() {
    local pattern='event=status sessions_count=1 streams_count=[0-9]+ .*sent_bytes='
    kill -USR2 "${pid_of[proxy]}" "${pid_of[agent]}"
    kill -USR1 "${pid_of[proxy]}" "${pid_of[agent]}"
    said proxy.log "$pattern" 5 && said agent.log "$pattern" 5
}

# What a page of another site, a rebound name and a caller without the token get.
strangers_get_nothing() {
    answers "$proxy_admin" /status 421 --admin-host -H 'Host: evil.example' &&
        answers "$proxy_admin" /status 200 '"sessions"' -H 'Host: ops.example' &&
        answers "$proxy_admin" /healthz 200 ok -H 'Host: evil.example' &&
        answers "$proxy_admin" /status 405 read -X POST
}

# Only an address of this machine's own is without a word.
# A port that the admin port opens, and what it does not open.
ports_come_and_go() {
    local at bearer=(-g -X POST -H "Authorization: Bearer ${token}admin") port
    at=127.0.0.1:$(client port)
    port="port=$at=web/${address_of[echo]}"
    answers "$proxy_admin" "/expose?$port" 405 POST &&
        answers "$proxy_admin" "/expose?$port" 401 token -X POST &&
        answers "$proxy_admin" "/expose?$port" 403 'another site' "${bearer[@]}" \
            -H 'Origin: http://evil.example' &&
        answers "$proxy_admin" "/expose?$port" 421 Host "${bearer[@]}" -H 'Host: evil.example' &&
        answers "$proxy_admin" "/expose?port=$at=nobody" 404 'nobody is connected' "${bearer[@]}" &&
        answers "$proxy_admin" "/expose?port=${exposed[0]}=web" 409 'in use' "${bearer[@]}" &&
        answers "$proxy_admin" '/expose?port=fd:3=web' 403 'supervisor' "${bearer[@]}" &&
        answers "$proxy_admin" "/expose?port=$at=WEB" 400 'must be 1 to 64' "${bearer[@]}" &&
        answers "$proxy_admin" /expose 400 'ADDRESS=NAME' "${bearer[@]}" &&
        answers "$proxy_admin" "/expose?port=192.0.2.1:80=web" 500 'Cannot assign' "${bearer[@]}" &&
        new_ones_are_refused "$at" || return
    answers "$proxy_admin" "/expose?$port" 200 "\"listen\":\"$at\"" "${bearer[@]}" &&
        said_by "$at" &&
        status 'x["ports_total"] == 7 and [p["from"] for p in x["ports"]][5:] ==
            ["configuration", "admin"] and x["ports"][6]["listen"] == "'"$at"'" and
            x["ports"][6]["name"] == "web"' "$proxy_admin" &&
        says_table proxy --admin "$proxy_admin" "^[0-9]+ +$at +expose +web +[0-9.:]+ +admin" &&
        answers "$proxy_admin" '/unexpose?id=1' 403 'the configuration has' "${bearer[@]}" &&
        answers "$proxy_admin" '/unexpose?id=x' 404 'no such port' "${bearer[@]}" || return
    kill -HUP "${pid_of[proxy]}" && said proxy.log 'event=proxy.reload.*0 ports opened' 5 &&
        said_by "$at" || return # it stays
    answers "$proxy_admin" "/unexpose?id=$(port_id "$at")" 200 closed "${bearer[@]}" &&
        new_ones_are_refused "$at" || fail "the port is still there"
}

port_id() { get "$proxy_admin" /status | sed -n "s/.*\"id\":\([0-9]*\),\"listen\":\"$1\".*/\1/p"; }

public_is_warned_of() {
    ! grep -q admin.public "$dir/proxy.log" || { fail "loopback is warned of"; return; }
    start public "$build/revdial-proxy" --listen 127.0.0.1:0 --token-file "$dir/tokens" \
        --admin 0.0.0.0:0
    said public.log 'level=warn event=admin.public' 5 && stop public
}

wrong_admin() {
    local options=(--listen 127.0.0.1:0 --token-file "$dir/tokens")
    says proxy 2 'admin: .*no:such.*HOST:PORT' "${options[@]}" --admin no:such &&
        says proxy 2 'admin-token-file.*nowhere' "${options[@]}" --admin 0 \
            --admin-token-file /nowhere &&
        says proxy 4 'admin: .*: Address already in use' "${options[@]}" --admin "$proxy_admin"
}

# The page, clicked in Chromium; its pictures stay in $build.
page_works() {
    local got
    start_agent cam-1 --name cam-1 --allow '127.0.0.1:*' &&
        start_agent cam-2 --name cam-2 --allow '127.0.0.1:*' || return
    hold_client gazer hold "${exposed[2]}" 1
    start_client mover read "${exposed[3]}" "$big" 5000000
    said gazer.out '^holding' 5 || return
    got=$(timeout 120 /usr/bin/python3 "$here/page.py" "$proxy_admin" "$dir/admin_token" \
        "$build" "${address_of[echo]}" 2>&1) || { fail "$got"; return; }
    [ "$(grep -c 'event=admin.action.*kick.*403' "$dir/proxy.log")" -ge 1 ] ||
        { fail "no form of another site was refused"; return; }
    figures="Chromium ${got#ok }; $(cd "$build" && ls page-*.png | tr '\n' ' ')"
    end_now gazer mover
    stop cam-1 cam-2
}

not_ready_while_it_drains() {
    kill -TERM "${pid_of[$1]}"
    until_true 10 answers "$2" /readyz 503 '"status":503' || return
    answers "$2" /healthz 200 ok &&
        metric "$2" 'v("revdial_draining") == 1' || return
    let_go holder
    await_end "$1" 10 || return
    [ "$status" -eq 0 ] || fail "it ended with $status"
}

agent_is_not_ready_without_a_session() {
    start_agent_only lonely --target 127.0.0.1:9 --admin 127.0.0.1:0
    said lonely.log event=link.retry 5 || return
    answers "$(admin_of lonely)" /readyz 503 '"sessions":0' &&
        status 'x["links"][0]["state"] in ("backoff", "connecting") and
            "refused" in x["links"][0]["reason"]' "$(admin_of lonely)" || return
    stop lonely
}

check 'programs with --admin' start_admin || return
check '/healthz and /readyz' health
check '/metrics are read by a parser of Prometheus' metrics_are_true
check 'no label comes from strangers' labels_are_bounded
check '/status is JSON' status_is_json
check 'status prints tables' tables
check 'what cannot be printed is an error' nothing_is_half_printed
check 'status names a program that does not answer' status_of_a_stopped_program
check 'tables say all that /status says' tables_are_complete
check 'metrics have the names of dashboards' metrics_have_their_names
check 'status of a program that dies' status_of_a_program_that_dies
check 'USR2 writes a line to the log' usr2
check 'Host, method' strangers_get_nothing
check 'an --admin that cannot be is refused' wrong_admin
check 'an --admin for other machines is warned of' public_is_warned_of
check 'ports come and go' ports_come_and_go
check 'an agent is counted by a label that comes later' label_comes_later
check 'the page, in Chromium' page_works
check 'a stream that is stuck says what it waits for' stuck_streams
check 'the other end of it is asked' asks_both_ends
check 'an end that cannot be asked is named' other_end_is_no_agent
check 'an agent that drains is alive and not ready' not_ready_while_it_drains agent "$agent_admin"
check 'another agent' start_agent agent --allow '127.0.0.1:*'
hold_client holder hold "${exposed[0]}" 1
said holder.out '^holding' 5
check 'a proxy that drains is alive and not ready' not_ready_while_it_drains proxy "$proxy_admin"
check 'an agent without a session is not ready' agent_is_not_ready_without_a_session
