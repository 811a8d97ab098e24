# A man page from what a program says of itself.
#     revdial-proxy --help | awk -v version="$(revdial-proxy --version)" -f man.awk
function text(s) {
    gsub(/\\/, "\\e", s)
    gsub(/-/, "\\-", s)
    return s ~ /^[.']/ ? "\\&" s : s
}

function section(name) {
    print ".SH " name
    in_section = name
}

NR == 1 {
    name = $1
    split(version, words)
    print ".TH " toupper(name) " 1 \"\" \"revdial " words[2] "\""
    section("NAME")
    sub(/^[^ ]* /, "")
    print name " \\- " text($0)
    next
}
/^$/ {
    is_blank = 1
    next
}
{
    is_paragraph = is_blank
    is_blank = 0
}
/^Usage: / {
    section("SYNOPSIS")
    print ".nf\n" text(substr($0, 8)) "\n.fi"
    next
}
/^Options:$/ { section("OPTIONS"); next }
/^Exit codes: / {
    section("EXIT STATUS")
    print text(substr($0, 13))
    next
}
/^Examples:$/ { section("EXAMPLES"); next }
in_section == "OPTIONS" && /^  --/ {
    match(substr($0, 3), /  +/)
    print ".TP"
    print ".B " text(RSTART ? substr($0, 3, RSTART - 1) : substr($0, 3))
    if (RSTART) print text(substr($0, 2 + RSTART + RLENGTH))
    next
}
in_section == "OPTIONS" && /^[^ ]/ { section("NOTES"); is_paragraph = 0 }
in_section == "EXAMPLES" && /^  [^ ]/ { print ".PP\n" text(substr($0, 3)); next }
in_section == "EXAMPLES" { print ".nf\n" text($0) "\n.fi"; next }
is_paragraph { print ".PP" }
{
    sub(/^ */, "")
    print text($0)
}
