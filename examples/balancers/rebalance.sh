#!/bin/sh
# Sends agents to the proxies where the balancer wants them now: run it when a proxy has been added,
# or has come back. An agent keeps the connection that it has, so it stays where it was until then.
#     rebalance.sh TOKEN_FILE BALANCER NAME=ADMIN...
#     rebalance.sh admin-token http://10.0.0.9:7000 p1=http://10.0.0.1:7080 p2=http://10.0.0.2:7080
# TOKEN_FILE has the token of --admin-token-file, BALANCER is where agents connect, and NAME what it
# calls the proxy whose --admin is ADMIN. Each agent that has to move is drained: its streams go on
# at the old proxy, and it connects again within half a second. Prints which these were. Run it
# until it prints nothing: the old workers of a balancer that reloads may still send some where they
# were.
[ $# -ge 3 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
token=$(cat "$1") || exit 1
balancer=$2
shift 2

# Makes the requests of a configuration of curl, of which there may be none.
ask_all() {
    asked=$(cat)
    [ -z "$asked" ] || printf '%s\n' "$asked" | curl -s -K -
}

# sessions_of ADMIN AFTER: the next 1000 sessions after that id: an id, a name, whether it is a
# peer, and a state in each line
sessions_of() {
    curl -sf --max-time 60 "$1/status?after=$2" | sed -n '/^{"id":"/{
        s/^{"id":"\([^"]*\)","name":"\([^"]*\)","is_peer":\([a-z]*\),/\1 \2 \3 /
        s/ "instance":.*"state":"\([a-z]*\)".*/ \1/p
    }'
}

# The owner of each name among these sessions: what the balancer answers a request that is no
# upgrade with names the proxy that got it. All requests are one curl's, on one connection.
owners_of() {
    awk -v at="$balancer/revdial" '$3 == "false" && $4 == "up" && !seen[$2]++ {
        if (count++) print "next"
        printf "url = \"%s\"\nheader = \"Owner-Of: %s\"\nmax-time = 10\n", at, $2
        printf "output = /dev/null\ndump-header = -\nwrite-out = \"asked %s\\n\"\n", $2
    }' | ask_all | tr -d '\r' | awk 'tolower($1) == "owner:" { owner = $2 }
        $1 == "asked" && owner { print $2, owner; owner = "" }'
}

# drain_others NAME ADMIN: those of owners, then "-", then sessions, that belong elsewhere. The
# token is in no command line.
drain_others() {
    TOKEN=$token awk -v self="$1" -v at="$2" '$1 == "-" { is_session = 1; next }
        !is_session { owner[$1] = $2; next }
        $3 == "false" && $4 == "up" && ($2 in owner) && owner[$2] != self {
            if (count++) print "next"
            printf "url = \"%s/drain?session=%s\"\nrequest = POST\nmax-time = 10\n", at, $1
            printf "header = \"Authorization: Bearer %s\"\noutput = /dev/null\n", ENVIRON["TOKEN"]
            printf "write-out = \"%%{http_code} %s: from %s to %s\\n\"\n", $2, self, owner[$2]
        }' | ask_all | sed -n 's/^200 //p'
}

for proxy in "$@"; do
    after=0
    while page=$(sessions_of "${proxy#*=}" "$after") && [ -n "$page" ]; do
        after=$(printf '%s\n' "$page" | sed -n '$s/ .*//p')
        { printf '%s\n' "$page" | owners_of; printf '%s\n' - "$page"; } |
            drain_others "${proxy%%=*}" "${proxy#*=}"
    done
done
