# Finds words of our names' form that name nothing.  awk -f words.awk CODE... revdial.h FILE.md...
# The last files are searched: of revdial.h the comments, of documents everything. All others say
# what exists. "rvd_mux_*" and "rvd_mux_" are fine if a name begins so; revdial_x.h is a file.
#
# Also finds the forms of sentences that have to be read twice: in documents, in the comments of
# revdial.h and in texts of the programs.

function learn(text,   name) {
    while (match(text, /[A-Za-z_][A-Za-z0-9_]*/)) {
        name = substr(text, RSTART, RLENGTH)
        text = substr(text, RSTART + RLENGTH)
        if (name ~ /^(rvd|revdial|RVD|REVDIAL)_/) known[name] = 1
    }
}

function begins_a_name(prefix,   name) {
    for (name in known) if (index(name, prefix) == 1) return 1
    return 0
}

function is_file(name) { return (getline ignored < name) >= 0 }

function search(text,   name, before, rest) {
    while (match(text, /(rvd|revdial|RVD|REVDIAL)_[A-Za-z0-9_]+/)) {
        before = RSTART > 1 ? substr(text, RSTART - 1, 1) : ""
        name = substr(text, RSTART, RLENGTH)
        rest = substr(text, RSTART + RLENGTH)
        text = rest
        if (before ~ /[A-Za-z0-9_]/ || name in known) continue
        if (rest ~ /^\.[a-z]/) {
            sub(/^\./, "", rest)
            match(rest, /^[a-z]+/)
            if (is_file(name "." substr(rest, 1, RLENGTH))) continue
        }
        if ((rest ~ /^[*<{]/ || name ~ /_$/) && begins_a_name(name)) continue
        printf "%s:%d: %s does not exist\n", FILENAME, FNR, name
        bad = 1
    }
}

BEGIN {
    riddle = "who|whoever|likewise|lest|but for|for want of|would have it|so (long|many|much|often)"
    riddle = "(^|[^a-z0-9_.])(" riddle ")([^a-z0-9_]|$)"
}

# "Who may register" is a question; a client that does something is "a client that".
function read_once(text,   form) {
    text = tolower(text)
    gsub(/`[^`]*`|who[ -]may/, "", text)
    if (!match(text, riddle)) return
    form = substr(text, RSTART, RLENGTH)
    gsub(/^[^a-z]+|[^a-z]+$/, "", form)
    printf "%s:%d: \"%s\": say it in plain words\n", FILENAME, FNR, form
    bad = 1
}

FNR == 1 { inside = is_code = 0 }

# What is a comment of this line, and what is code; block comments are followed across lines.
{
    code = comment = texts = ""
    text = $0
    gsub(/'\\?.'/, "' '", text)
    while (text != "") {
        if (inside) {
            at = index(text, "*/")
            comment = comment " " (at ? substr(text, 1, at - 1) : text)
            text = at ? substr(text, at + 2) : ""
            inside = !at
        } else if (match(text, /"([^"\\]|\\.)*"|\/\/|\/\*/)) {
            code = code substr(text, 1, RSTART - 1)
            start = substr(text, RSTART, 2)
            if (start == "//") { comment = comment substr(text, RSTART + 2); text = "" }
            else if (start == "/*") { inside = 1; text = substr(text, RSTART + 2) }
            else {
                code = code substr(text, RSTART, RLENGTH)
                texts = texts " " substr(text, RSTART, RLENGTH)
                text = substr(text, RSTART + RLENGTH)
            }
        } else {
            code = code text
            text = ""
        }
    }
}
FILENAME ~ /\.md$/ {
    if (/^```/) is_code = !is_code
    else if (!is_code) read_once($0)
    search($0)
    next
}
FILENAME == "revdial.h" {
    read_once(comment)
    search(comment)
    next
}
FILENAME ~ /^examples/ { read_once(texts) }
{ learn(code) }
END { exit bad }
