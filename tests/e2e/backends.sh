# Backends in other languages (examples/backends), each as it stands there, behind revdial-proxy.

backends_home=$here/../../examples/backends
backends_built=$build/backends
make_file "$dir/piece" 8
piece_bytes=$((8 << 20))

# What they need is fetched into build/; the versions are those of go.mod and package.json.
build_backend() {
    mkdir -p "$backends_built/node"
    case $1 in
    go) (cd "$backends_home/go" && go build -o "$backends_built/backend" .) >"$dir/got.log" 2>&1 ;;
    node)
        cp "$backends_home"/node/* "$backends_built/node/" &&
            (cd "$backends_built/node" && npm install --no-package-lock --no-audit --no-fund) \
                >"$dir/got.log" 2>&1
        ;;
    esac || fail "$(tail -n 1 "$dir/got.log")"
}

# run_backend LANGUAGE PEER: registers as LANGUAGE-PEER
run_backend() {
    local name=$1-$2
    set -- "$1" "$name" "${address_of[$2]}"
    case $1 in
    python) set -- python3 "$backends_home/backend.py" "$tunnel" "$2" "$3" ;;
    go) set -- "$backends_built/backend" "$tunnel" "$2" "$3" ;;
    node) set -- node "$backends_built/node/backend.mjs" "ws://$tunnel/revdial" "$2" "$3" ;;
    esac
    REVDIAL_TOKEN=$token start "$name" "$@"
    said proxy.log "event=session.up.* name=$name " 10
}

is_short() {
    local file=$backends_home/$1
    figures="$(grep -cvE '^ *$|^ *(//|#|""")' "$file") lines"
    [ "${figures% *}" -le 80 ] || fail "$figures of code"
}

gets_the_file() {
    local got
    got=$(curl -sS --max-time 60 "http://${at[$1-nginx]}/piece" 2>&1 | sha256sum)
    [ "${got%% *}" = "$(sha256 "$dir/piece")" ] || fail "another file came"
}

sends_the_file() {
    local got
    got=$(curl -sS --max-time 60 -T "$dir/piece" "http://${at[$1-upload]}/" 2>&1)
    [ "$got" = "$(sha256 "$dir/piece")" ] || fail "the server saw another file: $got"
}

finishes_first() {
    local got
    got=$(through "${at[$1-sink]}" -N <"$dir/piece")
    [ "${got%% *}" = "$(sha256 "$dir/piece")" ] || fail "the server answered '$got'"
}

gets_100_pages() {
    local got
    got=$(client parallel "${at[$1-nginx]}" /index.html 100 2>&1 | tail -n 3)
    [ "${got% *}" = "100 $(sha256 "$www/index.html")" ] || fail "$got"
}

# Four answers that nobody reads hold up no other stream of the session.
asks_and_reads_nothing() {
    local fds=() fd
    for _ in 1 2 3 4; do
        exec {fd}<>"/dev/tcp/${1%:*}/${1##*:}"
        printf 'GET /piece HTTP/1.0\r\n\r\n' >&"$fd"
        fds+=("$fd")
    done
    echo "stalled ${#fds[@]}"
    read -r
}

goes_on_beside_stalled_streams() {
    hold_open stalled asks_and_reads_nothing "${at[$1-nginx]}"
    said stalled.out '^stalled 4' 10 && gets_the_file "$1"
    local result=$?
    let_go stalled
    await_end stalled 10 && return $result
}

# The target has finished before the client begins: nothing of it is lost.
hears_who_finishes_late() {
    client finish_late "${at[$1-first]}" "$dir/piece" >/dev/null || return
    said peers.out "^first eof $piece_bytes $(sha256 "$dir/piece")" 10
}

resets_before() { count peers.out '^first reset 0 '; }

# One that leaves in the middle has not finished, and its target is not told so.
passes_a_reset_on() {
    local before
    before=$(resets_before)
    hold_client leaving hold "${at[$1-first]}" 1
    said leaving.out '^holding 1' 10 || return
    let_go leaving
    await_end leaving 10 && said peers.out '^first reset 0 ' 10 $((before + 1))
}

# So it is for all streams of a proxy that dies, and the next proxy gets the backend.
survives_its_proxy() {
    local before peer result
    before=$(resets_before)
    hold_client left hold "${at[$1-first]}" 1
    said left.out '^holding 1' 10 || return
    end_now proxy
    said peers.out '^first reset 0 ' 10 $((before + 1))
    result=$?
    let_go left
    await_end left 10 && proxy_at=$tunnel start_backends_proxy && [ $result = 0 ] || return
    for peer in nginx upload sink first; do
        said proxy.log "event=session.up.* name=$1-$peer " 20 || return
    done
    gets_the_file "$1"
}

start_backends_proxy() {
    local language peer options=() names=()
    for language in python go node; do
        for peer in nginx upload sink first; do
            options+=(--expose "127.0.0.1:0=$language-$peer")
            names+=("$language-$peer")
        done
    done
    start_proxy proxy "${options[@]}" || return
    for i in "${!names[@]}"; do at[${names[$i]}]=${exposed[$i]}; done
}
declare -A at

check 'nginx is ready' start_nginx nginx
check 'the other servers are ready' start_peers peers "$big"
cp "$dir/piece" "$www/piece"
check 'the proxy is ready' start_backends_proxy || return
for language in python:backend.py go:go/main.go node:node/backend.mjs; do
    file=${language#*:}
    language=${language%:*}
    check "the backend in $language has at most 80 lines" is_short "$file"
    check "$language has what it needs" build_backend "$language" || continue
    for peer in nginx upload sink first; do
        check "$language registers a backend of $peer" run_backend "$language" "$peer"
    done
    check "$language: curl gets 8 MiB" gets_the_file "$language"
    check "$language: curl sends 8 MiB" sends_the_file "$language"
    check "$language: the client finishes first" finishes_first "$language"
    check "$language: 100 pages are asked for at one time" gets_100_pages "$language"
    check "$language: stalled streams starve no other" goes_on_beside_stalled_streams "$language"
    check "$language: the target finishes first" hears_who_finishes_late "$language"
    check "$language: a client that leaves resets its target" passes_a_reset_on "$language"
    check "$language: a proxy that dies resets targets, and its successor gets the backends" \
        survives_its_proxy "$language"
    end_now "$language-nginx" "$language-upload" "$language-sink" "$language-first"
done
check 'the proxy ends well' stop proxy
