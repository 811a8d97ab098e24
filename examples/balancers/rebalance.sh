#!/bin/sh
# Sends agents to the proxies where the balancer wants them now: run it when a proxy has been added,
# or has come back. An agent keeps the connection that it has, so it stays where it was until then.
#     rebalance.sh TOKEN_FILE BALANCER NAME=ADMIN...
#     rebalance.sh admin-token http://10.0.0.9:7000 p1=http://10.0.0.1:7080 p2=http://10.0.0.2:7080
# TOKEN_FILE has the token of --admin-token-file, BALANCER is where agents connect, and NAME what it
# calls the proxy whose --admin is ADMIN. Each agent that has to move is drained: its streams go on
# at the old proxy, and it connects again within half a second. Prints how many these were.
[ $# -ge 3 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
token_file=$1
balancer=$2
shift 2

# What the balancer answers a request that is no upgrade with names the proxy that got it.
owner_of() {
    curl -s -o /dev/null -D - --max-time 10 -H "Owner-Of: $1" "$balancer/revdial" |
        tr -d '\r' | sed -n 's/^[Oo]wner: *//p'
}

# The sessions of a proxy that are up: an id and a name in each line.
sessions_of() {
    curl -sf --max-time 60 "$1/status" |
        sed -n 's/^{"id":"\([0-9a-f]*\)","name":"\([^"]*\)".*"state":"up".*/\1 \2/p'
}

drain() {
    printf 'Authorization: Bearer %s\n' "$(cat "$token_file")" |
        curl -sf -o /dev/null --max-time 10 -H @- -X POST "$1/drain?session=$2"
}

for proxy in "$@"; do
    sessions_of "${proxy#*=}" | while read -r id name; do
        owner=$(owner_of "$name")
        if [ -n "$owner" ] && [ "$owner" != "${proxy%%=*}" ]; then
            drain "${proxy#*=}" "$id" && echo "$name: from ${proxy%%=*} to $owner"
        fi
    done
done
