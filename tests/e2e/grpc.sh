# gRPC's own test server behind NAT: its calls through an exposed port, and the channels of
# examples/grpc through --sockets.

# serve_grpc NAME...: a server each, and an agent that registers it; of NAME.N as NAME
serve_grpc() {
    local name target
    for name in "$@"; do
        start "server-$name" "$build/grpc-peer" serve "$name"
        said "server-$name.out" '^serving on' 10 || return
        target=$(sed -n 's/^serving on //p' "$dir/server-$name.out")
        start_agent "agent-$name" --name "${name%.*}" --target "$target" || return
    done
}

calls_work() {
    local got
    got=$(timeout 60 "$build/grpc-peer" calls "${exposed[0]}" 2>&1)
    figures=$(echo "$got" | tr '\n' ',')
    [ "$figures" = 'unary,client streaming,server streaming,both ways,cancel,deadline,' ] ||
        fail "$(echo "$got" | tail -n 1)"
}

# tell COMMAND: what the program of the channels answers is in $answer
tell() {
    local before
    before=$(wc -l <"$dir/channels.out")
    echo "$*" >&"${fifo_of[channels]}"
    until_true 20 answered "$before" "${1}" || fail "no answer to $*: $(cat "$dir/channels.log")"
}
answered() {
    answer=$(tail -n +$(($1 + 1)) "$dir/channels.out" | grep "^$2 ")
    [ "$answer" ]
}

# is_told EVENT KEY COUNT: so often, and no more
is_told() {
    said channels.out "^$1 $2\$" 10 "$3" || return
    figures="$(count channels.out "^$1") $1"
    [ "$(count channels.out "^$1 $2\$")" = "$3" ] || fail "more often: $(cat "$dir/channels.out")"
}

# answers COMMAND -- SHARES: also when a backend has only just come or gone
answers() {
    local line="$*"
    until_true 10 is_answer "${line#* -- }" ${line%% -- *} || { fail "it is $answer"; return; }
    figures=$answer
}
is_answer() { tell "${@:2}" && [ "$answer" = "$2 $1" ]; }

start_channels() {
    hold_open channels "$build/grpc-peer" channels "$dir/channels"
    is_told opened cam-1 1 && is_told opened cam-2 1
}

has_no_long_example() {
    local file
    for file in channels registry; do
        figures+="$(grep -cvE '^ *$|^//' "$here/../../examples/grpc/$file.go") lines, "
        [ "$(grep -cvE '^ *$|^//' "$here/../../examples/grpc/$file.go")" -le 60 ] || fail "$figures"
    done
}

has_keys() {
    tell keys
    figures=$answer
    [ "$answer" = "keys $*" ] || fail "it is $answer"
}

mkdir -p "$dir/channels"
check 'AsChannel and KeyAsChannel have at most 60 lines' has_no_long_example
check 'the gRPC server and client build' build_grpc || return
check 'the proxy is ready' start_proxy proxy --sockets "$dir/channels" --expose 127.0.0.1:0=cam-1
check 'two gRPC servers are backends' serve_grpc cam-1 cam-2
check 'the four kinds of calls, cancel and deadline' calls_work
check 'a program sees which backends there are' start_channels
check 'AsChannel gives each call to the next' answers all -- cam-1=30 cam-2=30
check 'KeyAsChannel gives all to one' answers key cam-2 -- cam-2=20
check 'a third server registers' serve_grpc cam-3
check 'the program is told' is_told opened cam-3 1
check 'it lists them' has_keys cam-1 cam-2 cam-3
check 'it gets its share, without a new channel' answers all -- cam-1=20 cam-2=20 cam-3=20
check 'an agent leaves' stop agent-cam-1
check 'the program is told of that, too' is_told closed cam-1 1
check 'the others share its calls' answers all -- cam-2=30 cam-3=30
check 'two servers of one key register' serve_grpc cam-4 cam-4.b
check 'KeyAsChannel gives each call to the next of the key' answers key cam-4 -- cam-4.b=10 cam-4=10
check 'the machine of one dies' end_now agent-cam-4.b
check 'KeyAsChannel goes on with the other' answers key cam-4 -- cam-4=20
check 'the key is still there' is_told closed cam-4 0
check 'the channels of keys close' tell close
check 'agents and proxy end well' stop agent-cam-2 agent-cam-3 agent-cam-4 proxy
