# Bytes through the tunnel are the same at the other end, whoever sends them and however they end.

make_file "$dir/piece" 8
piece_bytes=$(stat -c %s "$dir/piece")
piece_sha=$(sha256 "$dir/piece")
head -c 20000 "$big" >"$www/small/page"
for i in $(seq 500); do ln -s page "$www/small/$i"; done

exposed_peers=(nginx httpd sshd upload closing source sink first echo)
start_tunnel() {
    local peer i options=()
    for peer in "${exposed_peers[@]}"; do
        options+=(--expose "127.0.0.1:0=web/${address_of[$peer]:-127.0.0.1:9}")
    done
    start_proxy proxy "${options[@]}" || return
    for i in "${!exposed_peers[@]}"; do at[${exposed_peers[$i]}]=${exposed[$i]}; done
    start_agent agent --allow '127.0.0.1:*'
}
declare -A at

gets_a_page() {
    local got
    got=$(curl -sS --max-time 10 "http://${at[$1]}/" 2>&1)
    [ "$got" = "$(cat "$www/index.html")" ] || fail "got '$got'"
}

downloads() {
    local sums
    sums=$(curl -sS --max-time 60 -o >(sha256sum >"$dir/sum") \
        -w '%{size_download} %{speed_download}' "http://${at[$1]}/${2-big}" 2>&1)
    until_true 10 [ -s "$dir/sum" ]
    [ "$(cut -d ' ' -f 1 "$dir/sum")" = "$big_sha" ] || { fail "another file came: $sums"; return; }
    figures="${sums%% *} bytes, $((${sums##* } / 1000000)) MB/s"
}

uploads() {
    local got
    got=$(curl -sS --max-time 60 -T "$big" -w '%{size_upload} %{speed_upload}' \
        "http://${at[upload]}/" 2>&1)
    [ "${got%%$'\n'*}" = "$big_sha" ] || { fail "the server saw another file: $got"; return; }
    got=${got##*$'\n'}
    figures="${got%% *} bytes, $((${got##* } / 1000000)) MB/s"
}

# curl has at most 300 at one time; clients.py opens all of them before it asks the first.
gets_500_with_curl() {
    local got
    mkdir -p "$dir/got"
    got=$(curl -sS --max-time 60 --parallel --parallel-immediate --parallel-max 300 \
        -o "$dir/got/#1" "http://${at[nginx]}/small/[1-500]" 2>&1)
    got=$(cat "$dir"/got/* | sha256sum)
    [ "$got" = "$(for _ in $(seq 500); do cat "$www/small/page"; done | sha256sum)" ] ||
        fail "$(find "$dir/got" -type f | wc -l) files came, not all of them right"
}

gets_500_at_one_time() {
    local got
    got=$(client parallel "${at[nginx]}" /small/page 500 2>&1 | tail -n 3)
    figures=${got##* }
    [ "${got% *}" = "500 $(sha256 "$www/small/page")" ] || { fail "$got"; return; }
    figures="$figures ms for all"
}

ssh_through() {
    timeout 30 ssh -F /dev/null -i "$dir/id" -o IdentitiesOnly=yes -o BatchMode=yes \
        -o LogLevel=ERROR -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
        -p "${at[sshd]##*:}" "$(id -un)@127.0.0.1" "$@"
}

shows_an_ssh_banner() {
    local banner
    banner=$(through "${at[sshd]}" -N </dev/null | head -n 1)
    figures=${banner%$'\r'}
    case $banner in SSH-2.0-*) ;; *) fail "the banner is '$banner'" ;; esac
}

runs_a_command_by_ssh() {
    local got
    got=$(ssh_through 'echo hi' 2>&1)
    [ "$got" = hi ] || fail "$got; $(tail -n 1 "$dir/sshd.log")"
}

copies_by_ssh() {
    local got
    got=$(ssh_through sha256sum <"$dir/piece" 2>&1)
    [ "${got%% *}" = "$piece_sha" ] || { fail "there: $got"; return; }
    got=$(ssh_through cat "$dir/piece" 2>&1 | sha256sum)
    [ "${got%% *}" = "$piece_sha" ] || { fail "back: $got"; return; }
    figures="$piece_bytes bytes each way"
}

client_finishes_first() {
    local got
    got=$(through "${at[sink]}" -N <"$dir/piece")
    figures=$got
    [ "$got" = "$piece_sha $piece_bytes" ] || fail "the server answered '$got'"
}

server_finishes_first() {
    local got
    got=$(client finish_late "${at[first]}" "$dir/piece" 2>&1)
    [ "$got" = "I have finished" ] || { fail "the client got '$got'"; return; }
    said peers.out '^first' 10 || return
    figures=$(grep '^first .* ' "$dir/peers.out" | grep -v '^first [0-9]*$' | tail -n 1)
    [ "$figures" = "first eof $piece_bytes $piece_sha" ] || fail "the server saw '$figures'"
}

reads_to_eof_with_nc() {
    local got
    got=$(through "${at[source]}" -N -d | sha256sum)
    [ "${got%% *}" = "$big_sha" ] || fail "another file came"
}

check 'nginx is ready' start_nginx nginx
check 'sshd is ready' start_sshd
check 'the http.server of python is ready' start_http_server
check 'the other servers are ready' start_peers peers "$big"
check 'proxy and agent are ready' start_tunnel || return
check 'curl gets a page of nginx' gets_a_page nginx
check 'curl gets a page of http.server' gets_a_page httpd
check 'curl gets 1 GiB of nginx' downloads nginx
check 'curl gets 1 GiB of http.server' downloads httpd
check 'curl gets 1 GiB that only the end delimits' downloads closing ''
check 'curl sends 1 GiB' uploads
check 'curl gets 500 pages in parallel' gets_500_with_curl
check '500 pages are asked for at one time' gets_500_at_one_time
check 'nc sees the banner of sshd' shows_an_ssh_banner
check 'ssh runs a command' runs_a_command_by_ssh
check 'ssh copies a file there and back' copies_by_ssh
check 'nc -N finishes, then the server answers' client_finishes_first
check 'the server finishes, then the client sends' server_finishes_first
check 'nc reads 1 GiB to EOF' reads_to_eof_with_nc
check 'proxy and agent end well' stop agent proxy
