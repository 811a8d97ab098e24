# The pages examples/from-*.md: their commands are run as they stand there, each page in a network
# of its own, and must print what the page says.

# The commands of a page as a script. What a command prints goes to a file of its own.
script_of() {
    awk '
        /^```/ { is_code = !is_code; next }
        !is_code { next }
        /^\$ / { n++; sub(/^\$ /, ""); is_command = 1 }
        is_command { command = command $0 "\n" }
        is_command && !/\\$/ { print command; command = ""; is_command = 0; next }
        is_command { next }
        { print >> (prefix ".want") }
    ' prefix="$2" "$1"
}

# What a page has started in the background may be a child of a subshell that is gone.
is_deserted() { [ -z "$(ip netns pids "$1")" ]; }
end_all_in() {
    ip netns pids "$1" | xargs -r kill 2>/dev/null
    until_true 10 is_deserted "$1" || ip netns pids "$1" | xargs -r kill -KILL
}

follows() {
    local page=$1 home=$dir/seed-$1 ns
    ns=rvd-seed-$$-$page
    mkdir -p "$home" && ip netns add "$ns" && ip -n "$ns" link set lo up ||
        { fail 'no network of its own'; return; }
    namespaces+=("$ns")
    : >"$home.want"
    script_of "$here/../../examples/from-$page.md" "$home" >"$home.sh"
    (cd "$home" && PATH=$build:$PATH timeout 60 ip netns exec "$ns" bash "$home.sh") \
        >"$home.got" 2>"$home.log" </dev/null
    end_all_in "$ns"
    cmp -s "$home.want" "$home.got" ||
        fail "it printed $(tr '\n' ';' <"$home.got"), and: $(tail -n 2 "$home.log" | tr '\n' ' ')"
}

for page in "$here"/../../examples/from-*.md; do
    page=${page##*/from-}
    check "the page for users of ${page%.md}" follows "${page%.md}"
done
