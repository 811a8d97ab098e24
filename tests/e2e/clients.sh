# Software that people put behind such a tunnel: PostgreSQL, redis, a site with HTTP/2, a browser.

# In namespaces of its own, with its files in memory: nothing of it stays. It refuses to be root.
start_postgres() {
    local port script bin
    port=$(client port)
    bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)
    script='"$0/initdb" -D "$1/pg" -U test -A trust -N >/dev/null && exec "$0/postgres" -D "$1/pg" \
        -p "$2" -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off \
        -c dynamic_shared_memory_type=mmap'
    if [ "$(id -u)" -eq 0 ]; then
        start postgres unshare -m -i sh -c \
            'mount -t tmpfs -o mode=1777 tmpfs /run && cd / && exec "$@"' sh setpriv \
            --reuid=nobody --regid=nogroup --clear-groups sh -c "$script" "$bin" /run "$port"
    else
        start postgres sh -c "$script" "$bin" "$dir" "$port"
    fi
    said postgres.log 'ready to accept connections' 30 || return
    address_of[postgres]=127.0.0.1:$port
}

start_redis() {
    local port
    port=$(client port)
    start redis redis-server --bind 127.0.0.1 --port "$port" --save '' --dir "$dir"
    said redis.out 'Ready to accept connections' 10 || return
    address_of[redis]=127.0.0.1:$port
}

# Its name is site.test, and its protocol HTTP/2.
start_site() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 \
        -subj /CN=site.test -addext subjectAltName=DNS:site.test -keyout "$dir/site.key" \
        -out "$dir/site.pem" 2>"$dir/openssl.log" ||
        { fail "$(tail -n 1 "$dir/openssl.log")"; return; }
    start_nginx site ssl http2 "; ssl_certificate $dir/site.pem; ssl_certificate_key $dir/site.key"
}

start_pages() {
    start pages python3 "$here/browser.py" serve
    said pages.out '^http' 10 || return
    address_of[pages]=127.0.0.1:$(sed -n 's/^http //p' "$dir/pages.out")
}

start_ways() {
    mkdir -p "$dir/live"
    exposing web postgres redis pages
    start_proxy proxy "${exposes[@]}" --sockets "$dir/live" --sni 127.0.0.1:0 \
        --http 127.0.0.1:0 --route "site.test=web/${address_of[site]}" \
        --route 'page.test=web' --route 'pictures.test=pictures' || return
    said proxy.out 'for --http$' 5 || return
    sni=$(sed -n 's/^listening on \(.*\) for --sni$/\1/p' "$dir/proxy.out")
    front=$(sed -n 's/^listening on \(.*\) for --http$/\1/p' "$dir/proxy.out")
    start_agent web --target "${address_of[pages]}" --allow '127.0.0.1:*' &&
        start_agent pictures --name pictures --target "${address_of[pages]}" &&
        start_agent db --name db --target "${address_of[postgres]}" &&
        start_agent cache --name cache --target "${address_of[redis]}"
}

# ---- PostgreSQL ----

# psql finds a Unix socket by a directory and a name of its own.
psql_by_socket() { psql -X -q -A -t -v ON_ERROR_STOP=1 -h "$dir/pg" -U test -d postgres "$@" 2>&1; }
psql_by_port() {
    psql -X -q -A -t -v ON_ERROR_STOP=1 -h "${exposed[0]%:*}" -p "${exposed[0]##*:}" -U test \
        -d postgres "$@" 2>&1
}

answers() { [ "$1" = "$2" ] || fail "it is '$1', not '$2'"; }

copies_a_table() {
    local rows=100000
    seq 1 $rows | awk '{ print $1 "\t" $1 * 7919 % 1000003 "\tthe text of row " $1 }' >"$dir/rows"
    answers "$(psql_by_port -c 'create table t (n int primary key, m int, s text)' \
        -c "\\copy t from '$dir/rows'" -c 'select count(*) from t')" $rows || return
    psql_by_socket -c '\copy (select * from t order by n) to stdout' >"$dir/rows.back" || return
    cmp -s "$dir/rows" "$dir/rows.back" || { fail "the table came back as another one"; return; }
    figures="$(($(stat -c %s "$dir/rows") / 1000)) kB each way"
}

# A notification comes with the next answer, if it has come.
is_notified() {
    echo 'select 1;' >&"${fifo_of[listener]}"
    grep -q 'notification "door" with payload "open"' "$dir/listener.out"
}

is_told_by_another() {
    hold_open listener psql -X -h "$dir/pg" -U test -d postgres
    echo "listen door; select 'listens';" >&"${fifo_of[listener]}"
    said listener.out listens 10 && psql_by_port -c "notify door, 'open'" || return
    until_true 10 is_notified || { fail "it says $(tail -n 3 "$dir/listener.out")"; return; }
    let_go listener
    await_end listener 10
}

# psql asks for that on a connection of its own.
cancels_a_query() {
    start sleeper psql -X -h "$dir/pg" -U test -d postgres -c 'select pg_sleep(60)'
    until_true 10 is_asleep || { fail 'the query does not run'; return; }
    kill -INT "${pid_of[sleeper]}"
    said sleeper.log 'canceling statement due to user request' 10 && await_end sleeper 10
}
is_asleep() {
    local query="select 1 from pg_stat_activity where query ~ '^select pg_sleep'"
    [ "$(psql_by_port -c "$query")" = 1 ]
}

# ---- redis ----

redis() { redis-cli -h "${exposed[1]%:*}" -p "${exposed[1]##*:}" "$@" 2>&1; }

pipelines() {
    local got
    got=$(seq 1 50000 | awk '{ printf "*3\r\n$3\r\nSET\r\n$6\r\n%06d\r\n$4\r\ndata\r\n", $1 }' |
        redis --pipe | tail -n 1)
    answers "$got" 'errors: 0, replies: 50000' && answers "$(redis dbsize)" 50000 || return
    got=$(redis-benchmark -h "${exposed[1]%:*}" -p "${exposed[1]##*:}" -q -n 50000 -P 16 -c 50 \
        -t set,get 2>&1 | tr '\r' '\n' | grep -c 'requests per second')
    answers "$got" 2
}

publishes() {
    start subscriber redis-cli -h "${exposed[1]%:*}" -p "${exposed[1]##*:}" subscribe news
    said subscriber.out '^subscribe' 10 || return
    answers "$(redis-cli -s "$dir/live/cache.sock" publish news 'it works')" 1 &&
        said subscriber.out '^it works' 10 && end_now subscriber
}

# ---- HTTP/2, and a browser ----

fetch_site() {
    curl -sS --max-time 60 --cacert "$dir/site.pem" --resolve "site.test:${sni##*:}:${sni%:*}" "$@"
}

speaks_http2() {
    local url=https://site.test:${sni##*:}
    answers "$(fetch_site -w '%{http_version}' "$url/")" "$(cat "$www/index.html")
2" || return
    fetch_site -o "$dir/site.got" "$url/file" || return
    cmp -s "$dir/site.got" "$www/file" || { fail 'the file came as another one'; return; }
    fetch_site -v -Z --parallel-max 20 -o "$dir/page.#1" "$url/?[1-20]" 2>"$dir/curl.log" ||
        { fail "$(tail -n 1 "$dir/curl.log")"; return; }
    answers "$(cat "$dir"/page.* | sort | uniq -c | sed 's/^ *//')" "20 $(cat "$www/index.html")" &&
        answers "$(grep -c 'SSL connection using' "$dir/curl.log")" 1
}

browses() {
    local got
    got=$(timeout 120 /usr/bin/python3 "$here/browser.py" open "$front" http://page.test/ 2>&1) ||
        { fail "$(echo "$got" | tail -n 1)"; return; }
    figures="Chromium ${got#ok }"
}

# python's http.server answers 501 to a PUT that it has not read, and closes.
early_answers_arrive() {
    local at got i
    head -c 20000000 /dev/zero >"$dir/upload"
    for i in 1 2 3 4 5; do
        for at in "${exposed[2]}" "$front"; do
            got=$(curl -sS --max-time 20 -H 'Host: page.test' -H 'Expect:' -T "$dir/upload" \
                -o /dev/null -w '%{http_code}' "http://$at/" 2>&1)
            [[ "$got" = *501 ]] || { fail "curl through $at: $got"; return; }
        done
    done
    figures="10 of 10"
}

for tool in psql=postgresql redis-server=redis-server redis-cli=redis-tools setpriv=util-linux; do
    is_here "${tool%=*}" "${tool#*=}" ||
        check "${tool%=*} is here" is_here "${tool%=*}" "${tool#*=}"
done
make_file "$www/file" 8
check 'PostgreSQL is up' start_postgres
check 'redis is up' start_redis
check 'a site with HTTP/2 is up' start_site
check 'pages for a browser are up' start_pages
check 'proxy and agents are up' start_ways || return
mkdir -p "$dir/pg" && ln -sf "$dir/live/db.sock" "$dir/pg/.s.PGSQL.5432"
check 'psql: COPY in by a port, out by a socket' copies_a_table
check 'psql: LISTEN and NOTIFY' is_told_by_another
check 'psql: a query is cancelled' cancels_a_query
check 'redis: pipelining, 50 clients' pipelines
check 'redis: publish and subscribe' publishes
check 'a site with HTTP/2, by its name in TLS' speaks_http2
check 'a browser: files, WebSocket, events by Host' browses
check 'an answer before the end of an upload' early_answers_arrive
check 'PostgreSQL and the programs end well' stop postgres db cache pictures web proxy
