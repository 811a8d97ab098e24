# Ways to authenticate: curl is the client that nobody here wrote.

password="pa ss:$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')"
printf '%s\n' "$password" >"$dir/password"
ha1=$(printf %s "carol:revdial:$password" | sha256sum | cut -d ' ' -f 1)

auth_lines() {
    printf '%s\n' '# who may register' "digest,basic web,probe-* alice $password" \
        "bearer  probe-*  -  $token" "digest web,probe-* carol ha1:$ha1"
}

# curl_asks STATUS OPTION...: what curl gets when it asks to register as probe-1. After a 101 it
# would wait for ever.
curl_asks() {
    local want=$1 got
    shift
    got=$(printf '%s' "${login:+user=\"$login\"}" | curl -sS -m 1 -K - -o /dev/null -D "$dir/head" \
        --http1.1 -H 'Connection: Upgrade' -H 'Upgrade: revdial' -H 'Revdial-Name: probe-1' \
        -w '%{http_code}' "$@" "http://$tunnel/revdial" 2>/dev/null)
    [ "$got" = "$want" ] || fail "curl $* says $got, not $want: $(tr '\r\n' '  ' <"$dir/head")"
}

open_proxy() {
    auth_lines >"$dir/auth"
    start proxy "$build/revdial-proxy" --listen 127.0.0.1:0 --auth-file "$dir/auth" \
        --expose "127.0.0.1:0=web/${address_of[httpd]}" "$@"
    said proxy.out '^listening on .* for' 5 || return
    tunnel=$(sed -n '1s/^listening on //p' "$dir/proxy.out")
    mapfile -t exposed < <(sed -n 's/^listening on \(.*\) for .*$/\1/p' "$dir/proxy.out")
}

curl_digest() {
    login="alice:$password" curl_asks 101 --digest || return
    grep -q '^Authentication-Info: rspauth="' "$dir/head" || { fail "no rspauth"; return; }
    login="carol:$password" curl_asks 101 --digest || return
    login="carol:$password" curl_asks 101 --anyauth || return  # it takes the strongest
    grep -q '^Authentication-Info' "$dir/head" || { fail "--anyauth was not Digest"; return; }
    login="alice:${password}x" curl_asks 401 --digest || return
    login="nobody:$password" curl_asks 401 --digest || return
    figures=$(grep -c '^WWW-Authenticate' "$dir/head")
    [ "$figures" -eq 6 ] || { fail "$figures challenges in two answers"; return; }
    figures=$(curl --version | head -n 1 | cut -d ' ' -f 1,2)
}

curl_basic_and_bearer() {
    login="alice:$password" curl_asks 101 --basic || return
    login="alice:x$password" curl_asks 401 --basic || return
    login="carol:$password" curl_asks 401 --basic || return  # her line has digest only
    curl_asks 101 -H "Authorization: Bearer $token" || return
    curl_asks 401 -H "Authorization: Bearer ${token}0"
}

agent_with() {
    start agent "$build/revdial-agent" --server "http://$tunnel" --name web "$@"
}

page_through() { curl -sS -m 5 -o /dev/null "http://${exposed[0]}/" 2>"$dir/curl.err"; }

digest_end_to_end() {
    agent_with --auth digest --user alice --token-file "$dir/password" \
        --allow "${address_of[httpd]}" || return
    said agent.log 'event=session.up' 5 || return
    page_through || { fail "no page: $(cat "$dir/curl.err")"; return; }
    [ "$(count agent.log 'event=link.retry')" -eq 0 ] || fail "the challenge counted as a failure"
}

# Looks through all memory of a process that can be written to.
memory_has() {
    python3 - "${pid_of[$1]}" "$2" <<'END_OF_PYTHON'
import sys
pid, path = sys.argv[1:]
secret = open(path, "rb").read().strip()
for line in open(f"/proc/{pid}/maps"):
    span, rights = line.split()[:2]
    if "w" not in rights or "[v" in line:
        continue
    at, end = (int(x, 16) for x in span.split("-"))
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        memory.seek(at)
        if secret in (memory.read(end - at) or b""):
            print(line.strip())
            sys.exit(0)
sys.exit(1)
END_OF_PYTHON
}

# no_secret_left FILE: neither what is in it, nor its base64 behind "alice:"
no_secret_left() {
    local name where file
    printf 'alice:%s' "$(cat "$1")" | base64 -w 0 >"$dir/coded"
    for name in proxy agent; do
        for file in "$1" "$dir/coded"; do
            where=$(memory_has "$name" "$file") &&
                { fail "in the memory of $name: $where"; return; }
            grep -qFf "$file" "$dir/$name.log" "$dir/$name.out" "/proc/${pid_of[$name]}/cmdline" &&
                { fail "in what $name says"; return; }
        done
    done
    where=$(memory_has agent <(printf %s "$1")) || fail "the scan finds no argument"
}

# The same for an agent that has come up by another scheme. no_secret_left_by SCHEME FILE OPTION...
no_secret_left_by() {
    local scheme=$1 file=$2
    shift 2
    agent_with --auth "$scheme" --token-file "$file" --target 127.0.0.1:9 --log-level debug "$@"
    said agent.log 'event=session.up' 5 || return
    no_secret_left "$file" || return
    stop agent
}

hup() { kill -HUP "${pid_of[$1]}"; }

hup_drops_who_is_gone() {
    auth_lines | grep -v alice >"$dir/auth"
    hup proxy
    said proxy.log 'event=session.revoked.*name=web' 5 || return
    said agent.log 'event=link.retry' 5 || return
    login="alice:$password" curl_asks 401 --digest || return
    login="carol:$password" curl_asks 101 --digest || return
    auth_lines >"$dir/auth"
    echo 'digest web' >>"$dir/auth"
    hup proxy
    said proxy.log 'event=config.refused.*auth:5: .*SCHEMES' 5 || return
    login="carol:$password" curl_asks 101 --digest || return
    auth_lines >"$dir/auth"
    hup proxy
    said proxy.log 'event=proxy.reload' 5 3 || return
    login="alice:$password" curl_asks 101 --digest || return
    end_now agent  # it waits half a minute before it tries again
}

hup_drops_a_changed_secret() {
    agent_with --auth digest --user carol --token-file "$dir/password" --target 127.0.0.1:9
    said agent.log 'event=session.up' 5 || return
    auth_lines | sed "s/ha1:.*/ha1:$(printf %064d 7)/" >"$dir/auth"
    hup proxy
    said proxy.log 'event=session.revoked.*name=web' 5 2 || return
    login="carol:$password" curl_asks 401 --digest || return
    login="alice:$password" curl_asks 101 --digest || return
    auth_lines >"$dir/auth"
    hup proxy
    said proxy.log 'event=proxy.reload' 5 5 || return
    end_now agent
}

hup_reads_the_allow_list() {
    echo '# nothing yet' >"$dir/allowed"
    agent_with --auth digest --user carol --token-file "$dir/password" --allow-file "$dir/allowed"
    said agent.log 'event=session.up' 5 || return
    page_through && { fail "a target that nothing allows was reached"; return; }
    echo "${address_of[httpd]}" >"$dir/allowed"
    hup agent
    said agent.log 'event=agent.reload' 5 || return
    page_through || { fail "no page: $(cat "$dir/curl.err")"; return; }
    echo 'nonsense' >"$dir/allowed"
    hup agent
    said agent.log 'event=config.refused.*allowed:1: .*port.*nonsense' 5 || return
    page_through || { fail "a wrong file was taken"; return; }
    : >"$dir/allowed"
    hup agent
    said agent.log 'event=agent.reload' 5 3 || return
    page_through && { fail "still allowed"; return; }
    stop agent
}

wrong_password_ends_an_agent() {
    echo wrong >"$dir/wrong"
    agent_with --auth digest --user alice --token-file "$dir/wrong" --target 127.0.0.1:9
    await_end agent 5 || return
    [ "$status" -eq 3 ] || { fail "ends with $status"; return; }
    said agent.log 'credentials missing or wrong' 1
}

guessing_is_slow() {
    local i
    for i in 1 2 3; do login="alice:guess$i" curl_asks 401 --basic || return; done
    login="alice:guess" curl_asks 429 --basic || return
    grep -qi '^Retry-After: 5' "$dir/head" || { fail "no Retry-After"; return; }
    login="alice:$password" curl_asks 429 --basic || return
    login="alice:$password" curl_asks 101 --basic --interface 127.0.0.9
}

# ---- --auth-url ----

# start_endpoint [CERTIFICATE KEY]
start_endpoint() {
    start endpoint python3 "$here/endpoint.py" "$@"
    said endpoint.out . 10 || return
    address_of[endpoint]=$(cat "$dir/endpoint.out")
}

# asks STATUS NAME [AUTHORIZATION]: what is answered to who asks to register this name, and leaves
asks() {
    local line=
    exec {fd}<>"/dev/tcp/${tunnel%:*}/${tunnel##*:}" || { fail 'no connection'; return; }
    printf '%s\r\n' 'GET /revdial HTTP/1.1' 'Host: x' 'Connection: Upgrade' 'Upgrade: revdial' \
        "Revdial-Name: $2" ${3:+"Authorization: $3"} '' >&"$fd"
    read -r -t 30 line <&"$fd"
    exec {fd}>&-
    [[ "$line" == "HTTP/1.1 $1 "* ]] ||
        fail "$2 $3: ${line%$'\r'}, not $1: $(tail -n 2 "$dir/proxy.log")"
}

basic() { echo "Basic $(printf %s "$1" | base64 -w 0)"; }

open_external() {
    printf '%s\n' "auth-file = $dir/auth" "auth-url = http://${address_of[endpoint]}/may?x=1" \
        'listen = 127.0.0.1:0' 'http = 127.0.0.1:0' 'route = *=*' 'auth-failures = 0' "$@" \
        >"$dir/external.conf"
    auth_lines >"$dir/auth"
    start proxy "$build/revdial-proxy" --config "$dir/external.conf"
    said proxy.out '^listening on .* for' 5 || return
    tunnel=$(sed -n '1s/^listening on //p' "$dir/proxy.out")
}

in_token=ext-in-$token
echo "$in_token" >"$dir/external"

endpoint_decides() {
    asks 101 cam-1 "Bearer $in_token" || return
    said endpoint.log "^/may.x=1 Authorization=Bearer $in_token Revdial-Name=cam-1 .*=127.0.0.1:" \
        1 || return
    asks 101 cam-2 "$(basic "bob:$in_token")" || return
    said proxy.log 'event=session.up.* name=cam-2 .*identity=bob' 5 || return
    asks 403 cam-1 'Bearer ext-denied' || return
    asks 401 cam-1 'Bearer ext-nobody' || return
    asks 401 cam-1 "$(basic bob:x)" || return
    figures=$(count endpoint.log .)
    asks 401 cam-1 || return  # nothing to ask about
    asks 101 probe-1 "Bearer $token" || return
    asks 101 web "$(basic "alice:$password")" || return
    asks 403 cam-1 "Bearer $token" || return  # its row decides
    [ "$figures" -eq "$(count endpoint.log .)" ] || fail "it was asked what the file knows"
}

endpoint_says_more() {
    asks 101 named "Bearer $in_token" || return
    said proxy.log 'event=session.up.* name=named .*identity=somebody' 5 || return
    asks 101 hinted "Bearer $in_token" || return
    said proxy.log 'event=session.up.* name=hinted .*identity=hinted' 5 || return
    start agent "$build/revdial-agent" --server "http://$tunnel" --name brief --target 127.0.0.1:9 \
        --token-file "$dir/external"
    said proxy.log 'event=session.draining.* name=brief .*expired' 10 || return
    end_now agent
    start_agent agent --name single --target 127.0.0.1:9 --token-file "$dir/external" || return
    asks 503 single "Bearer $in_token" || return
    said proxy.log 'event=session.refused.* name=single .*as its credential permits' 5 || return
    end_now agent
}

# jwt CLAIMS KEY: signed by HS256
jwt() {
    python3 -c 'import base64, hmac, sys
def part(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
text = part(b"{\"alg\":\"HS256\",\"typ\":\"JWT\"}") + "." + part(sys.argv[1].encode())
print(text + "." + part(hmac.digest(sys.argv[2].encode(), text.encode(), "sha256")))' "$@"
}

# claims NAME SECONDS
claims() { printf '{"sub":"carol","name":"%s","exp":%d}' "$1" $(($(date +%s) + $2)); }

jwt_admits() {
    asks 101 jwt "Bearer $(jwt "$(claims jwt 60)" key)" &&
        said proxy.log 'event=session.up.* name=jwt .*identity=carol' 5 &&
        asks 401 jwt "Bearer $(jwt "$(claims jwt 60)" another)" &&
        asks 401 jwt "Bearer $(jwt "$(claims jwt -1)" key)" &&
        asks 403 jwt "Bearer $(jwt "$(claims other 60)" key)"
}

outages_let_nobody_in() {
    local how
    for how in error moved garbage status lines zero huge closed nothing twice soon \
        fast wrong hints; do
        asks 503 "$how" "Bearer $in_token" || return
    done
    said proxy.log 'event=auth.outage .*http://[0-9.:]*/may cannot say.*answers 500' 1 || return
    asks 101 cam-1 "Bearer $in_token"
}

# If the question stopped the loop, nobody could come in before the question times out.
question_stops_nobody() {
    asks 101 waits "Bearer $in_token" &
    local waiting=$!
    said endpoint.log 'Revdial-Name=waits' 10 || return
    asks 101 probe-1 "Bearer $token" || return
    asks 101 cam-1 "Bearer $in_token" || return
    curl -sS "http://${address_of[endpoint]}/release" || return
    wait "$waiting" || fail 'the question was not answered any more'
}

# The proxy does not stay for an answer: nobody registers any more. So no question is out of time.
question_holds_up_no_end() {
    open_external 'auth-timeout = 9s' || return
    local before
    before=$(count endpoint.log Revdial-Name=slow)
    start agent "$build/revdial-agent" --server "http://$tunnel" --name slow \
        --target 127.0.0.1:9 --token-file "$dir/external"
    said endpoint.log Revdial-Name=slow 10 $((before + 1)) && stop proxy || return
    ! grep event=auth.outage "$dir/proxy.log" || fail 'it has waited for the answer'
}

# got STATUS HOST: what --http answers to a request for that host
got() {
    local code
    code=$(curl -sS -o /dev/null -w '%{http_code}' -H "Host: $2" "http://$http/" 2>&1)
    [ "$code" = "$1" ] || fail "$2: $code, not $1"
}

serves() { got 200 "$1"; }
serves_not() { got 404 "$1"; }

# Two that are silent take all the time that an agent has, so its next attempt asks them last.
silent_endpoints_come_last() {
    local name
    start_full || return
    echo 'listen = 127.0.0.1:0' >"$dir/external.conf"
    for name in full full endpoint; do
        printf '%s\n' "[group g$((++groups))]" "auth-url = http://${address_of[$name]}/"
    done >>"$dir/external.conf"
    start proxy "$build/revdial-proxy" --config "$dir/external.conf"
    said proxy.out '^listening' 5 || return
    tunnel=$(sed -n '1s/^listening on //p' "$dir/proxy.out")
    start_agent_only agent --name cam-1 --target 127.0.0.1:9 --token-file "$dir/external" &&
        said agent.log 'event=session.up' 60
}
groups=0

# Hosts come from the line, from the section of a group and from the endpoint; an agent that goes
# takes its hosts with it, and one whose line gets others comes back with these.
hosts_come_with_agents() {
    local http to=${address_of[httpd]}
    printf '%s\n' "hosts=blog.example,*.blog.example blog $token" >"$dir/blogs"
    echo "cam $token-2" >"$dir/cams"
    printf '%s\n' 'listen = 127.0.0.1:0' 'http = 127.0.0.1:0' "token-file = $dir/blogs" \
        "auth-url = http://${address_of[endpoint]}/" '[group cams]' "token-file = $dir/cams" \
        'hosts = cam.example' >"$dir/hosts.conf"
    start proxy "$build/revdial-proxy" --config "$dir/hosts.conf"
    said proxy.out '^listening on .* for' 5 || return
    tunnel=$(sed -n '1s/^listening on //p' "$dir/proxy.out")
    http=$(sed -n 's/^listening on \(.*\) for --http$/\1/p' "$dir/proxy.out")
    got 404 blog.example || return
    start_agent blog --name blog --target "$to" || return
    got 200 blog.example && got 200 a.blog.example && got 404 shop.example || return
    start_agent shop --name shop --target "$to" --token-file "$dir/external" || return
    echo "$token-2" >"$dir/cam"
    start_agent cam --name cam --target "$to" --token-file "$dir/cam" || return
    got 200 x.shop.example && got 200 cam.example && got 404 x.cam.example || return
    stop blog || return
    until_true 10 serves_not blog.example || { fail 'the host has stayed'; return; }
    echo 'hosts = lens.example' >>"$dir/hosts.conf"
    hup proxy
    until_true 20 serves lens.example || { fail 'no other host'; return; }
    got 200 cam.example && got 200 shop.example || return
    sed -i 's/^hosts = cam/hosts = eye/' "$dir/hosts.conf"
    hup proxy
    until_true 20 serves eye.example || { fail 'no other host'; return; }
    got 404 cam.example || return
    end_now shop cam
    until_true 10 serves_not shop.example || fail 'the host has stayed'
}

no_secret_of_external() {
    local where
    where=$(memory_has proxy "$dir/external") &&
        { fail "in the memory of the proxy: $where"; return; }
    grep -q "$in_token" "$dir/proxy.log" && fail 'in the log'
    [ -z "$why" ]
}

hup_changes_the_endpoint() {
    sed -i "s,^auth-url.*,auth-url = http://127.0.0.1:1/," "$dir/external.conf"
    hup proxy
    said proxy.log 'event=proxy.reload' 5 || return
    asks 503 cam-1 "Bearer $in_token" || return
    asks 101 probe-1 "Bearer $token" || return
    sed -i "s,^auth-url.*,auth-url = ftp://127.0.0.1/," "$dir/external.conf"
    hup proxy
    said proxy.log 'event=config.refused.*http://' 5 || return
    sed -i "s,^auth-url.*,," "$dir/external.conf"
    hup proxy
    said proxy.log 'event=proxy.reload' 5 3 || return
    asks 401 cam-1 "Bearer $in_token"
}

# The query may be a secret, and a name that begins as one of this machine is none of it.
cleartext_is_said() {
    local before host
    for host in 127.0.0.1.example localhost.example; do
        before=$(count proxy.log 'event=proxy.reload')
        echo "auth-url = http://$host/may?key=hidden" >>"$dir/external.conf"
        hup proxy
        said proxy.log 'event=proxy.reload' 5 $((before + 1)) &&
            said proxy.log "event=auth.cleartext .*http://$host/may:" 1 || return
        sed -i "s,^auth-url.*,," "$dir/external.conf"
    done
    [ "$(count proxy.log hidden)" -eq 0 ] || fail "the log has $(grep hidden "$dir/proxy.log")"
}

# The same where not even a connection comes, to three endpoints one after the other.
connection_holds_up_no_end() {
    local endpoint=${address_of[endpoint]} url
    start full python3 "$here/broken.py" full
    said full.out listening 10 || return
    address_of[endpoint]=127.0.0.1:$(sed 's/listening //' "$dir/full.out")
    url="auth-url = http://${address_of[endpoint]}/"
    open_external 'auth-timeout = 9s' '[group a]' "$url" '[group b]' "$url" ||
        { address_of[endpoint]=$endpoint; return; }
    start agent "$build/revdial-agent" --server "http://$tunnel" --name slow \
        --target 127.0.0.1:9 --token-file "$dir/external"
    if until_true 10 connects_to "${address_of[endpoint]}"; then
        stop proxy agent
    else
        fail 'the proxy connects to no endpoint'
    fi
    address_of[endpoint]=$endpoint
    end_now full
    [ -z "$why" ]
}

# connects_to ADDRESS: does the proxy?
connects_to() { ss -Htnp state syn-sent "dst $1" | grep -q "pid=${pid_of[proxy]},"; }

silence_is_an_outage() {
    open_external 'auth-timeout = 300ms' || return
    asks 503 slow "Bearer $in_token" || return
    asks 503 drips "Bearer $in_token" || return
    said proxy.log 'event=auth.outage .*in time' 1 2
}

endpoint_by_tls() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
        -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout "$dir/endpoint.key" \
        -out "$dir/endpoint.pem" 2>/dev/null || { fail 'no certificate'; return; }
    start_endpoint "$dir/endpoint.pem" "$dir/endpoint.key" || return
    address_of[endpoint]=localhost:${address_of[endpoint]#*:}
    open_external || return
    asks 503 cam-1 "Bearer $in_token" || return  # no TLS there
    sed -i "s,http://,https://," "$dir/external.conf"
    hup proxy
    said proxy.log 'event=proxy.reload' 5 || return
    asks 503 cam-1 "Bearer $in_token" || return
    said proxy.log 'event=auth.outage .*TLS: ' 1 || return
    echo "auth-ca = $dir/endpoint.pem" >>"$dir/external.conf"
    hup proxy
    said proxy.log 'event=proxy.reload' 5 2 || return
    asks 101 cam-1 "Bearer $in_token"
}

check "the http.server of python is ready" start_http_server
check "proxy with an auth file starts" open_proxy --auth-failures 0
check "curl --digest and --anyauth" curl_digest
check "curl --basic, Bearer" curl_basic_and_bearer
check "agent --auth digest" digest_end_to_end
check "no secret in memory, logs, command lines" no_secret_left "$dir/password"
stop agent
check "the same with Basic" no_secret_left_by basic "$dir/password" --user alice
check "the same with Bearer" no_secret_left_by bearer "$dir/token" --name probe-2
check "agent --auth digest again" digest_end_to_end
check "HUP drops who is gone, a wrong file nobody" hup_drops_who_is_gone
check "HUP drops who had a secret that is another now" hup_drops_a_changed_secret
check "HUP reads the agent's allow list" hup_reads_the_allow_list
check "a wrong password ends an agent with 3" wrong_password_ends_an_agent
end_now proxy
check "proxy starts again" open_proxy --auth-failures 3
check "429 after three guesses, for one address" guessing_is_slow
end_now proxy
check "an endpoint for --auth-url" start_endpoint
check "a proxy with it" open_external
check "the endpoint decides what the file does not know" endpoint_decides
check "it says who this is, and for how long" endpoint_says_more
check "it checks a JWT, whose subject is the identity" jwt_admits
check "by its outages nobody gets in" outages_let_nobody_in
check "a question that waits stops nobody" question_stops_nobody
check "what it was asked is not in memory or logs" no_secret_of_external
check "HUP changes the endpoint" hup_changes_the_endpoint
check "an endpoint in clear text is named, and its query is not" cleartext_is_said
end_now proxy
check "an endpoint that is silent" silence_is_an_outage
end_now proxy
check "the end of a proxy waits for no answer" question_holds_up_no_end
check "and for no connection" connection_holds_up_no_end
end_now agent proxy
check "agents of a group get in while others' endpoints are silent" silent_endpoints_come_last
end_now proxy agent full
check "hosts come and go with agents" hosts_come_with_agents
end_now proxy endpoint
"$build/revdial-proxy" --version | grep -q 'no TLS' || check "an endpoint by https" endpoint_by_tls
