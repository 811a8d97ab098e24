# nginx and HAProxy in front of a proxy, configured by the very lines of examples/README.md, and
# what must get through them. Sourced by the parts that need it.

make_file "$www/medium" "${medium_mb:-192}"
medium_sha=$(sha256 "$www/medium")
head -c 20000 "$big" >"$www/small/page"

# The document's block in that language, with a port that is free and the tunnel's address.
readme_block() {
    awk -v fence="\`\`\`$1" '$0 == fence { inside = 1; next } /^```/ { inside = 0 } inside' \
        "$here/../../examples/README.md" |
        sed "s/127\.0\.0\.1:7000/$tunnel/; s/bind :8000/bind $front/"
}

# start_front nginx|haproxy [SED_SCRIPT]: at $front, with a configuration changed by the script
start_front() {
    "configure_$1" "${2:-}" >"$dir/$1.front" || return
    case $1 in
    nginx) start front nginx -e stderr -c "$dir/nginx.front" ;;
    haproxy) start front haproxy -db -f "$dir/haproxy.front" ;;
    esac
    until_true 5 front_answers || fail "$1: $(tail -n 1 "$dir/front.log")"
}

front_answers() {
    [ "$(curl -sk --http1.1 -o /dev/null -w '%{http_code}' \
        "$front_scheme://$front/revdial")" = 426 ]
}
front_scheme=http

configure_haproxy() { readme_block haproxy | sed "$1"; }

configure_nginx() {
    sed "$1" <<END_OF_CONFIG
daemon off;
master_process off;
pid $dir/front.pid;
error_log stderr;
user $(id -un) $(id -gn);
events { worker_connections 4096; }
http {
    access_log off;
    client_body_temp_path $dir/front.body;
    proxy_temp_path $dir/front.proxy;
    fastcgi_temp_path $dir/front.fastcgi;
    uwsgi_temp_path $dir/front.uwsgi;
    scgi_temp_path $dir/front.scgi;
    server {
        listen $front;
$(readme_block nginx)
    }
}
END_OF_CONFIG
}

copies() {
    local got sum
    got=$(curl -sS --max-time 60 -o >(sha256sum >"$dir/sum") -w '%{speed_download}' \
        "http://${exposed[0]}/medium" 2>&1)
    until_true 10 [ -s "$dir/sum" ]
    read -r sum _ <"$dir/sum"
    [ "$sum" = "$medium_sha" ] || { fail "another file came: $got"; return; }
    rm -f "$dir/sum"
    figures="down $((got / 1000000)) MB/s"
    got=$(curl -sS --max-time 60 -T "$www/medium" -w '%{speed_upload}' "http://${exposed[1]}/" 2>&1)
    [ "${got%%$'\n'*}" = "$medium_sha" ] || { fail "another file went: $got"; return; }
    figures="$figures, up $((${got##*$'\n'} / 1000000)) MB/s"
}

many_pages() {
    local got
    got=$(client parallel "${exposed[0]}" /small/page 200 2>&1 | tail -n 3)
    figures="${got##* } ms"
    [ "${got% *}" = "200 $(sha256 "$www/small/page")" ] || fail "$got"
}

finishes_first() {
    local got
    got=$(through "${exposed[2]}" -N <"$www/medium")
    [ "$got" = "$medium_sha $(stat -c %s "$www/medium")" ] || fail "the server answered '$got'"
}
