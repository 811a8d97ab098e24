# --http with real software: each request goes where its Host says, bodies are the same at the other
# end, and what two readers could understand differently is refused.

peers() { python3 "$here/http_peers.py" "$@"; }

start_origin() {
    start "$1" python3 "$here/http_peers.py" origin
    said "$1.out" '^http' 10 || return
    address_of[$1]=127.0.0.1:$(sed -n 's/^http //p' "$dir/$1.out")
}

start_two_backends() {
    start_origin origin && start_nginx nginx || return
    start_proxy proxy --http 127.0.0.1:0 --http "unix:$dir/front.sock" \
        --route a.test=web --route b.test=nginx --route '*.dyn.test=*' \
        --route no.test=web/127.0.0.1:9 --access-log "$@" || return
    front=${exposed[0]}
    start_agent agent --target "${address_of[origin]}" --access-log &&
        start_agent_only other --name nginx --target "${address_of[nginx]}" &&
        said other.log 'event=session.up' 5
}

# get_two PATH PATH: on one connection
get_two() {
    curl -sS --max-time 20 -H 'Host: a.test' "http://$front$1" \
        --next -sS --max-time 20 -H 'Host: a.test' "http://$front$2"
}

# get HOST PATH OPTION...: curl through the front end
get() { curl -sS --max-time 20 -H "Host: $1" "${@:3}" "http://$front$2" 2>&1; }

is() { [ "$1" = "$2" ] || fail "got '$1', not '$2'"; }

one_connection_many_hosts() {
    local got
    got=$(curl -sSv --max-time 20 -H 'Host: a.test' "http://$front/1" \
        --next -H 'Host: b.test' "http://$front/" --next -H 'Host: zz.test' "http://$front/" \
        --next -H 'Host: A.TEST.:80' "http://$front/2" 2>"$dir/curl.log")
    is "$got" "GET /1 a.test
$(cat "$www/index.html")
no backend serves this host
GET /2 A.TEST.:80" || return
    [ "$(grep -c 'Re-using existing connection' "$dir/curl.log")" = 3 ] ||
        fail "curl took more than one connection"
}

pipelined_in_order() {
    local got
    got=$(peers raw "$front" 'GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\n' \
        'GET /2 HTTP/1.1\r\nHost: zz\r\n\r\nGET /chunks HTTP/1.1\r\nHost: a.test\r\n\r\n' \
        'GET /3 HTTP/1.1\r\nHost: a.test\r\n\r\n' |
        grep -E '^GET|^no backend|^after|^\[' | tr -d '\r' | tr '\n' ' ')
    is "$got" 'GET /1 a.test no backend serves this host after GET /3 a.test [FIN] '
}

# A request's traceparent is in both logs and reaches the target; one that is malformed is logged
# nowhere.
is_traced() {
    local trace=00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
    [[ "$(fields_of -H "traceparent: $trace")" = *"|traceparent: $trace|"* ]] ||
        { fail 'the target does not get it'; return; }
    said proxy.log "event=http.request .* traceparent=$trace" 5 &&
        said agent.log "event=stream.open .* traceparent=$trace" 5 &&
        said agent.log "event=stream.end .* traceparent=$trace" 5 || return
    fields_of -H "traceparent: x$trace" >/dev/null
    said proxy.log 'request="GET a.test/fields"' 5 2 || return
    ! grep -q 'traceparent=x' "$dir/proxy.log" "$dir/agent.log" || fail 'a malformed one is logged'
}

uploads() {
    local how
    for how in 'Expect:' 'Transfer-Encoding: chunked' 'Expect: 100-continue'; do
        is "$(get a.test /sum -H "$how" -T "$dir/hundred")" "$hundred_sha $hundred_bytes" || return
    done
    is "$(get a.test /sum -0 -T "$dir/hundred")" "$hundred_sha $hundred_bytes"
}

downloads_hundred() {
    local got
    local version
    for version in --http1.1 --http1.0; do
        get b.test /hundred $version -o "$dir/http.got" || return
        is "$(sha256 "$dir/http.got")" "$hundred_sha" || return
    done
}

other_forms() {
    is "$(get b.test /index.html -I | head -n 1 | tr -d '\r')" 'HTTP/1.1 200 OK' || return
    is "$(get a.test /hints -i | grep -c '^HTTP/1.1 [12]0')" 2 || return
    is "$(get a.test /hints -0 -i | grep -c '^HTTP/1.1 [12]0')" 1 || return
    is "$(get a.test / -X OPTIONS --request-target '*')" 'OPTIONS * a.test' || return
    is "$(get a.test /until-close)" 'until the end' || return
    is "$(get a.test /chunks --raw -H 'TE: trailers' -H 'Connection: TE' | tr -d '\r' | tail -n 2 |
        head -n 1)" 'X-Sum: 1' || return
    is "$(get a.test /refuse -o /dev/null -w '%{http_code}' -H 'Expect: 100-continue' \
        -T "$dir/hundred")" 413
}

# Answers of small servers, one after the other on one stream, and the second one is its last.
sloppy_answers() {
    is "$(get_two /sloppy-length /sloppy-chunks)" 'sloppysloppy' || return
    is "$(get_two /sloppy-chunks /1)" 'sloppyGET /1 a.test' || return
    is "$(get a.test /sloppy-length -0 -w '%{http_code}')" 'sloppy999' || return
    is "$(get a.test /sloppy-chunks -0)" 'sloppy' || return
    is "$(get a.test /sloppy-chunks --raw -i -H 'TE: trailers' -H 'Connection: TE' |
        tr '\r\n' '||')" 'HTTP/1.1 200 OK||Transfer-Encoding: chunked||||'\
'6||sloppy||0||X-Sum: 1||||'
}

fields_of() { get a.test /fields "$@" | tr '\n' '|'; }

hop_fields() {
    local got
    got=$(fields_of -H 'Connection: x-mine' -H 'X-Mine: 1' -H 'Proxy: http://evil' \
        -H 'X-Forwarded-For: 1.1.1.1' -H 'X-Forwarded-Proto: https' -H 'Accept:' -H 'User-Agent:')
    is "$got" 'host: a.test|x-forwarded-for: 127.0.0.1|x-forwarded-host: a.test|'\
'x-forwarded-proto: http|'
}

# A client of a Unix socket has no address that the backend could be told.
by_a_unix_socket() {
    is "$(fields_of --unix-socket "$dir/front.sock" -H 'Accept:' -H 'User-Agent:')" \
        'host: a.test|x-forwarded-host: a.test|x-forwarded-proto: http|' || return
    is "$(get a.test /sum --unix-socket "$dir/front.sock" -T "$dir/hundred")" \
        "$hundred_sha $hundred_bytes"
}

# A client that finishes before its request is complete has left, wherever that is.
half_requests() {
    local part
    for part in '' '5\r\nhel' '5\r\nhello\r\n0\r\n' '5\r\nhello\r\n0\r\nX-Sum: 1'; do
        is "$(peers raw "$front" \
            "PUT /sum HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n$part")" \
            '[FIN]' || return
    done
}

# What a backend keeps open is used again by the same client, and by no other.
streams_of_their_own() {
    local before after
    before=$(get a.test /connections)
    after=$(get_two /1 /connections | tail -n 1)
    [ "$((after - before))" = 1 ] || { fail "from $before to $after connections"; return; }
    # After an answer that nobody asked for, the stream is not used again.
    is "$(get_two /two-answers /1)" "mineGET /1 a.test" || return
    # One that the backend has closed meanwhile is not noticed.
    is "$(get_two /once /1)" "onceGET /1 a.test"
}

errors_say_the_phase() {
    is "$(get x.dyn.test / -w '%{http_code}')" \
        'dial: the backend of this host is not connected
503' || return
    is "$(get no.test / -w '%{http_code}')" \
        'dial: the backend of this host may not connect to its target
403' || return
    is "$(get a.test /bad -w '%{http_code}')" \
        'response: it has several Content-Lengths
502' || return
    start_agent lonely --name lonely --target "127.0.0.1:$(client port)" || return
    is "$(get lonely.dyn.test / -w '%{http_code}')" \
        'dial: the backend of this host could not connect to its target
502' || return
    said proxy.log 'event=http.request .*lonely.dyn.test/.*status=502' 5 && stop lonely
}

comes_later() {
    is "$(get later.dyn.test / -o /dev/null -w '%{http_code}')" 503 || return
    start_agent later --name later --target "${address_of[origin]}" || return
    is "$(get later.dyn.test /1)" 'GET /1 later.dyn.test' && stop later
}

upgrades() { is "$(peers websocket "$1" a.test)" 'same 1118677 bytes'; }
events_at_once() { is "$(peers events "$1" a.test)" "3 events b'0\\r\\n\\r\\n'"; }

cut_responses() {
    local i
    hold_open cut python3 "$here/http_peers.py" cut "$front" a.test
    for i in 1 2 3 4 5 6; do
        echo >&"${fifo_of[cut]}"
        said cut.out '^waits' 10 "$i" || return
        end_now agent
        echo >&"${fifo_of[cut]}"
        said cut.out '^cut' 10 "$i" || return
        start_agent agent --target "${address_of[origin]}" || return
    done
    let_go cut
    await_end cut 5
}

cut_after_all_bytes() {
    is "$(peers late "$front" a.test)" $'RST after 100000 bytes\nRST after 100000 bytes'
}

# The target sees no end that its client has not sent, and sends nothing more for nobody.
client_vanishes() {
    local before
    before=$(get a.test /resets)
    peers vanish "$front" a.test || return
    until_true 5 has_resets $((before + 3)) || fail "$(get a.test /resets) resets, not 3 more"
}
has_resets() { [ "$(get a.test /resets)" = "$1" ]; }

# nginx is asked the same questions. Nothing that it refuses may pass here, nor may we see more
# messages in one than it does.
start_judge() {
    local port
    port=$(client port)
    judge=127.0.0.1:$port
    cat >"$dir/judge.conf" <<END_OF_CONFIG
daemon off;
master_process off;
pid $dir/judge.pid;
error_log stderr;
user $(id -un) $(id -gn);
events { worker_connections 1024; }
http {
    access_log off;
    client_body_temp_path $dir/judge.body;
    proxy_temp_path $dir/judge.proxy;
    fastcgi_temp_path $dir/judge.fastcgi;
    uwsgi_temp_path $dir/judge.uwsgi;
    scgi_temp_path $dir/judge.scgi;
    server {
        listen $judge;
        server_name a.test;
        location / {
            proxy_pass http://${1:-${address_of[origin]}};
            proxy_http_version 1.1;
            proxy_ignore_client_abort on;
            client_max_body_size 0;
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_set_header Connection \$http_connection;
            proxy_set_header Upgrade \$http_upgrade;
            proxy_set_header Host \$http_host;
            proxy_set_header X-Forwarded-For \$http_x_forwarded_for;
        }
    }
    server {
        listen $judge default_server;
        return 404;
    }
}
END_OF_CONFIG
    start judge nginx -e stderr -c "$dir/judge.conf"
    until_true 5 curl -s -o /dev/null "http://$judge/" || fail "$(tail -n 1 "$dir/judge.log")"
}

corpus_as_nginx() {
    local ours theirs name bad=0 all=0
    peers statuses "$front" "$here/http_corpus.txt" >"$dir/ours" || return
    peers statuses "$judge" "$here/http_corpus.txt" >"$dir/theirs" || return
    while IFS=$'\t' read -r ours name theirs _; do
        all=$((all + 1))
        case $name in
        good:*) [ "$ours" = "${ours#4}" ] && [ "$ours" = "$theirs" ] && continue ;;
        *) case $ours in 4?? | 505 | closed) continue ;; esac ;;
        esac
        bad=$((bad + 1))
        why="$name: $ours, nginx $theirs"
    done < <(paste "$dir/ours" "$dir/theirs")
    figures="$all messages"
    [ "$bad" = 0 ] && [ "$all" -gt 100 ] || fail "$bad of $all: $why"
}

# What comes through another proxy is the same, and what that lets pass is still refused here.
behind_nginx() {
    start_judge "$front" || return
    is "$(curl -sS -H 'Host: a.test' "http://$judge/1")" 'GET /1 a.test' || return
    is "$(curl -sS -H 'Host: a.test' -T "$dir/hundred" "http://$judge/sum")" \
        "$hundred_sha $hundred_bytes" || return
    upgrades "$judge" && events_at_once "$judge" && corpus_behind "$judge"
}

# start_balancer [SERVER_OPTION [LINE]]
start_balancer() {
    local port
    port=$(client port)
    balancer=127.0.0.1:$port
    cat >"$dir/balancer.cfg" <<END_OF_CONFIG
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout tunnel 1h
    option forwardfor
listen front
    bind $balancer
    ${2:-}
    server proxy $front ${1:-}
END_OF_CONFIG
    start balancer haproxy -db -f "$dir/balancer.cfg"
    until_true 5 curl -s -o /dev/null "http://$balancer/" || fail "$(tail -n 1 "$dir/balancer.log")"
}

behind_haproxy() {
    start_balancer || return
    is "$(curl -sS -H 'Host: a.test' "http://$balancer/1")" 'GET /1 a.test' || return
    is "$(curl -sS -H 'Host: a.test' -T "$dir/hundred" "http://$balancer/sum")" \
        "$hundred_sha $hundred_bytes" || return
    upgrades "$balancer" && events_at_once "$balancer" && corpus_behind "$balancer"
}

# No message of the corpus may become two for us and one for the other: each request that we have
# answered well is one whose answer its own client has seen.
corpus_behind() {
    local bad before seen answered
    before=$(count proxy.log 'event=http.request .*status=2')
    peers statuses "$1" "$here/http_corpus.txt" >"$dir/behind" || return
    bad=$(awk -F '\t' '$1 ~ /\+2/ && $2 != "good: two requests"' "$dir/behind" | head -n 1)
    [ -z "$bad" ] || { fail "$bad"; return; }
    seen=$(cut -f 1 "$dir/behind" | tr + '\n' | grep -c '^2')
    said proxy.log 'event=http.request .*status=2' 5 $((before + seen)) || return
    answered=$(($(count proxy.log 'event=http.request .*status=2') - before))
    figures="$(wc -l <"$dir/behind") messages, $seen requests"
    [ "$seen" -gt 10 ] && [ "$seen" = "$answered" ] ||
        fail "$answered requests were answered, $seen answers came"
}

# The client's connection is idle, and its stream with it.
agent_ends() {
    local fd answer
    exec {fd}<>"/dev/tcp/${front%:*}/${front##*:}" || return
    printf 'GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\n' >&"$fd"
    read -r answer <&"$fd" && is "${answer%$'\r'}" 'HTTP/1.1 200 OK' && stop agent
    exec {fd}>&-
}

trusted() {
    printf '%s\n' 'route = a.test=web' 'trusted-proxies = 127.0.0.0/8' >"$dir/http.conf"
    start_proxy trusting --config "$dir/http.conf" --http 127.0.0.1:0 || return
    front=${exposed[0]}
    start_agent faithful --target "${address_of[origin]}" || return
    case $(fields_of -H 'X-Forwarded-For: 1.1.1.1' -H 'X-Forwarded-Proto: https') in
    *'x-forwarded-for: 1.1.1.1, 127.0.0.1|'*'x-forwarded-proto: https|'*) ;;
    *) fail "$(fields_of -H 'X-Forwarded-For: 1.1.1.1')" ;;
    esac
}

reloads() {
    is "$(get z.test /1)" 'no backend serves this host' || return
    printf '%s\n' 'route = *.test=web' >"$dir/http.conf"
    kill -HUP "${pid_of[trusting]}"
    said trusting.log 'event=proxy.reload' 5 || return
    is "$(get z.test /1)" 'GET /1 z.test' || return
    case $(fields_of -H 'X-Forwarded-For: 1.1.1.1') in
    *'x-forwarded-for: 127.0.0.1|'*) stop faithful trusting ;;
    *) fail "$(fields_of -H 'X-Forwarded-For: 1.1.1.1')" ;;
    esac
}

# What the backend is told of a client that comes from 127.0.0.3 by this address.
told_by() {
    curl -sS --max-time 20 --interface 127.0.0.3 -H 'Host: a.test' \
        -H 'X-Forwarded-For: 6.6.6.6' "http://$1/fields" | grep '^x-forwarded-[fp]' | tr '\n' '|'
}

proxy_header() {
    local got
    start_proxy headed --http 127.0.0.1:0 --route a.test=web --trusted-proxies 127.0.0.1 \
        --http-proxy-header || return
    start_agent faithful --target "${address_of[origin]}" || return
    got=$(peers raw "${exposed[0]}" 'PROXY TCP4 203.0.113.9 127.0.0.1 5 80\r\n' \
        'GET /fields HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n')
    case $got in *'x-forwarded-for: 203.0.113.9'*) ;; *) fail "$got" ;; esac
}

# The header alone counts: a balancer that passes on bytes has not looked at the fields.
both_say_who() {
    front=${exposed[0]}
    end_now balancer
    start_balancer 'send-proxy-v2' 'http-request set-header X-Forwarded-Proto https' || return
    is "$(told_by "$balancer")" 'x-forwarded-for: 127.0.0.3|x-forwarded-proto: http|' || return
    # Whoever is not trusted cannot send one, and the trusted one's is a request without the option.
    is "$(curl -sS --max-time 20 --interface 127.0.0.3 --haproxy-protocol -o /dev/null \
        -w '%{http_code}' -H 'Host: a.test' "http://$front/1")" 400 || return
    stop faithful headed || return
    start_proxy plain --http 127.0.0.1:0 --route a.test=web --trusted-proxies 127.0.0.1 &&
        start_agent faithful --target "${address_of[origin]}" || return
    front=${exposed[0]}
    is "$(curl -sS --max-time 20 --haproxy-protocol -o /dev/null -w '%{http_code}' \
        -H 'Host: a.test' "http://$front/1")" 400 || return
    end_now balancer
    start_balancer '' 'http-request set-header X-Forwarded-Proto https' || return
    is "$(told_by "$balancer")" \
        'x-forwarded-for: 6.6.6.6, 127.0.0.3, 127.0.0.1|x-forwarded-proto: https|'
}

start_jumping() { start_proxy jumping --http 127.0.0.1:0 --route a.test=web; }

# What is on its way, in any direction, takes as long as those take who move it: here 50 minutes, in
# which a head and a response are overdue. What one side has finished has an hour.
pauses_end_nothing() {
    with_clocks start_jumping || return
    start_agent faithful --target "${address_of[origin]}" || return
    hold_open pauses python3 "$here/http_peers.py" pauses "${exposed[0]}" a.test
    said pauses.out '^waits' 30 && jump proxy 0 3000 || return
    echo >&"${fifo_of[pauses]}"
    said pauses.out '^went on' 60 && jump proxy 0 9000 || return
    echo >&"${fifo_of[pauses]}"
    let_go pauses
    await_end pauses 30 || return
    is "$(tr '\n' ' ' <"$dir/pauses.out")" \
        'waits 408 504 went on: download upload slow_target tunnel finished: RST ' || return
    end_now faithful
    stop jumping
}

# What a proxy that ends has taken from its agents still goes to clients who take their time.
takes_last_bytes_out() {
    start_proxy ending --http 127.0.0.1:0 --route a.test=web --access-log --drain 20s &&
        start_agent faithful --target "${address_of[origin]}" || return
    hold_open last python3 "$here/http_peers.py" last "${exposed[0]}" a.test "$dir/ending.log"
    said last.out '^waits' 30 && until_quiet 20 ending faithful || return
    echo >&"${fifo_of[last]}"
    said last.out '^left' 30 && kill -TERM "${pid_of[ending]}" || return
    said ending.log 'event=session.down' 10 || return
    let_go last
    await_end last 30 && is "$(tail -n 1 "$dir/last.out")" whole || return
    await_end ending 10 && is "$status" 0
}

# Responses that begin while the proxy drains say that no other one follows on their connection. A
# request that has begun before is dialled for before the agents are told.
answers_while_it_drains() {
    start_proxy ending --http 127.0.0.1:0 --route a.test=web --drain 20s &&
        start_agent faithful --target "${address_of[origin]}" || return
    start drained python3 "$here/http_peers.py" drain "${exposed[0]}" a.test \
        "${address_of[origin]}" "$dir/faithful.log"
    said drained.out '^waits' 20 && kill -TERM "${pid_of[ending]}" || return
    await_end drained 20 && is "$(tail -n 3 "$dir/drained.out" | tr '\n' ' ')" \
        "half HTTP/1.1 200 OK later ['Connection: close'] \
twice [('200', ''), ('', 'Connection: close')] FIN " || return
    await_end ending 10 && is "$status" 0
}

# When --drain has ended, clients see no end that nobody has sent.
cuts_what_is_late() {
    end_now faithful
    start_proxy ending --http 127.0.0.1:0 --route a.test=web --access-log --drain 100ms &&
        start_agent faithful --target "${address_of[origin]}" || return
    start ends python3 "$here/http_peers.py" ends "${exposed[0]}" a.test
    said ends.out '^open' 20 && kill -TERM "${pid_of[ending]}" || return
    await_end ends 20 && is "$(tail -n 1 "$dir/ends.out")" RST || return
    await_end ending 10 && is "$status" 0 || return
    is "$(count ending.log 'event=http.request .* why=')" 20
}

make_file "$dir/hundred" 100
ln -sf "$dir/hundred" "$www/hundred"
hundred_bytes=$(stat -c %s "$dir/hundred")
hundred_sha=$(sha256 "$dir/hundred")

check 'a front end for two agents' start_two_backends
check 'each request of a connection goes by its Host' one_connection_many_hosts
check 'pipelined requests are answered in order' pipelined_in_order
check 'traceparent is in both logs' is_traced
check '100 MB up: by length, in chunks, 100-continue' uploads
check '100 MB down, HTTP/1.1 and 1.0' downloads_hundred
check 'HEAD, 1xx, until close, trailers, early answer' other_forms
check 'answers that break rules, but are clear' sloppy_answers
check 'fields for one hop, and what a client claims' hop_fields
check 'clients of a Unix socket' by_a_unix_socket
check 'a request that ends too early' half_requests
check 'a kept stream is one client'"'"'s, and is clean' streams_of_their_own
check 'errors say in which phase it failed' errors_say_the_phase
check 'a backend that registers later' comes_later
check 'a WebSocket echo' upgrades "$front"
check 'server-sent events arrive one by one' events_at_once "$front"
check 'a response that was cut never looks complete' cut_responses
check 'a client gets what came before a cut' cut_after_all_bytes
check 'a client that leaves cuts what is on its way' client_vanishes
check 'nginx as the judge' start_judge
check 'nothing passes that nginx refuses' corpus_as_nginx
end_now judge
check 'behind nginx' behind_nginx
check 'behind HAProxy' behind_haproxy
check 'an agent ends, though its streams are kept' agent_ends
check 'the proxy ends well' stop other proxy
check 'a proxy that is trusted knows the client' trusted
check 'HUP reads routes again, and whom to trust' reloads
check 'a PROXY header says who the client is' proxy_header
check 'HAProxy sends both a PROXY header and fields' both_say_who
stop faithful plain
check 'a proxy that ends brings the last bytes' takes_last_bytes_out
end_now faithful
check 'requests of kept connections while it drains' answers_while_it_drains
check 'a proxy that ends cuts what is late' cuts_what_is_late
end_now faithful
check 'what is on its way may pause' pauses_end_nothing
