# Several proxies: an agent that follows the addresses of a name.

# What proxies.test leads to, for the agent alone. hosts ADDRESS...
hosts() { printf '%s proxies.test\n' "$@" >"$dir/hosts"; }

# One proxy on each address, and an agent of all that the name has: the first two.
start_everywhere() {
    local n
    port=$(client port)
    hosts 127.0.0.2 127.0.0.3
    for n in 2 3 4; do
        proxy_at=127.0.0.$n:$port start_proxy "proxy$n" --expose "127.0.0.1:0=web" || return
        address_of[proxy$n]=${exposed[0]}
    done
    agent_in=(unshare -m sh -c 'mount --bind "$0" /etc/hosts && exec "$@"' "$dir/hosts")
    server_url=http://proxies.test:$port start_agent_only agent --all-addresses \
        --resolve-interval 1s --target "${address_of[echo]}"
    agent_in=()
    said agent.log 'event=session.up' 10 2 && is_served proxy2 && is_served proxy3 &&
        is_not_served proxy4
}

is_served() {
    [ "$(client echo_once "${address_of[$1]}")" = ping ] || fail "no echo through $1"
}

is_not_served() {
    [[ "$(client refused "${address_of[$1]}")" =~ ^reset ]] || fail "a client of $1 is not reset"
}

# The address of proxy2 goes, and that of proxy4 comes. A connection through proxy2 goes on.
follows_the_name() {
    hold_client held live "${address_of[proxy2]}" 1
    said held.out '^live 1$' 10 || return
    hosts 127.0.0.3 127.0.0.4
    said agent.log "event=session.up .*address=127.0.0.4:$port" 20 &&
        said agent.log "event=session.draining .*address=127.0.0.2:$port" 20 &&
        said proxy2.log 'event=session.draining' 20 || return
    is_not_served proxy2 && is_served proxy3 && is_served proxy4 || return
    let_go held
    said held.out '^still 1$' 10 && await_end held 10 &&
        said proxy2.log 'event=session.down' 20
}

start_peers peers "$www/index.html" || exit 1
check 'an agent at all addresses of a name' start_everywhere
check 'one address goes, another one comes' follows_the_name
end_now agent proxy2 proxy3 proxy4 peers
