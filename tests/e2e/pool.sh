# Of two agents of one name one is sick: the other one serves all clients, and soon.

clients=100
patience_ms=1500

# start_pool PICK: the proxy, and two agents with two targets: an echo, and one that speaks first
start_pool() {
    start_peers peers "$big" || return
    exposing web echo ann
    start_proxy proxy "${exposes[@]}" --pick "$1" || return
    start_agent one --instance one --allow '127.0.0.1:*' &&
        start_agent two --instance two --allow '127.0.0.1:*'
}

# all_are_served ADDRESS FIRST: by whom and how soon is in $figures
all_are_served() {
    local served slowest
    read -r served slowest < <(client rush "$1" "$clients" "$2")
    figures="$served of $clients served, the slowest after $slowest ms"
    [ "$served" = "$clients" ] && [ "$slowest" -le "$patience_ms" ] || fail "$figures"
}

one_freezes() {
    local heard
    all_are_served "$1" "$2" || return
    heard=$figures
    kill -STOP "${pid_of[one]}"
    all_are_served "$1" "$2"
    local code=$?
    kill -CONT "${pid_of[one]}"
    figures="before: $heard; while it is frozen: $figures"
    return $code
}

# At one of them nobody listens where it is to connect to.
one_has_no_target() {
    start_peers peers "$big" || return
    start_proxy proxy --expose 127.0.0.1:0=web --pick "$1" || return
    start_agent one --target "127.0.0.1:$(client port)" &&
        start_agent two --target "${address_of[echo]}" || return
    all_are_served "${exposed[0]}" hello
}

for pick in round-robin least-streams; do
    check "$pick: proxy, agents and servers are ready" start_pool "$pick" || return
    check "$pick: one freezes, clients that wait" one_freezes "${exposed[1]}" ''
    check "$pick: one freezes, clients that speak first" one_freezes "${exposed[0]}" hello
    end_now proxy one two peers
    check "$pick: the target of one refuses" one_has_no_target "$pick"
    end_now proxy one two peers
done
