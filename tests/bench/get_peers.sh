#!/bin/sh
# Builds the tunnels that no package of Debian brings, into build/bench/peers, for `make bench`.
#     tests/bench/get_peers.sh [frp] [rathole]
# Downloads them from the registries of Go and of Rust, at the versions below. Takes minutes.
# What cannot be had is said and left out; the benchmark does without.
frp=v0.65.0
rathole=0.5.0
limit=${BENCH_GET_SECONDS:-600}
here=${REVDIAL_BUILD:-build}/bench/peers
mkdir -p "$here" && here=$(cd "$here" && pwd) || exit 1
log=$here/get.log
if [ $# -eq 0 ]; then set -- frp rathole; fi

# frp replaces a module by a fork of its own, so `go install` refuses it: it is built where it lies.
get_frp() {
    directory=$(go mod download -json "github.com/fatedier/frp@$frp" |
        sed -n 's/.*"Dir": "\(.*\)",/\1/p')
    [ "$directory" ] && timeout "$limit" go build -C "$directory" -o "$here/" ./cmd/frps ./cmd/frpc
}

# Without --locked: its locked dependencies are too old for today's compiler.
get_rathole() {
    timeout "$limit" cargo install rathole --version "$rathole" --no-default-features \
        --features server,client --root "$here/cargo" && mv "$here/cargo/bin/rathole" "$here/"
    status=$?
    rm -rf "$here/cargo"
    return $status
}

for peer in "$@"; do
    case $peer in
    frp | rathole) ;;
    *)
        echo "get_peers: $peer is not known" >&2
        exit 2
        ;;
    esac
    if "get_$peer" >"$log" 2>&1; then
        echo "$peer: built"
    else
        echo "$peer: not to be had: $(grep -v '^ *$' "$log" | tail -n 1)"
    fi
done
