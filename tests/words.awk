# Finds words of our names' form that name nothing.  awk -f words.awk CODE... revdial.h FILE.md...
# The last files are searched: of revdial.h the comments, of documents everything. All others say
# what exists. "rvd_mux_*" and "rvd_mux_" are fine if a name begins so; revdial_x.h is a file.

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

FNR == 1 { inside = 0 }

# What is a comment of this line, and what is code; block comments are followed across lines.
{
    code = comment = ""
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
                text = substr(text, RSTART + RLENGTH)
            }
        } else {
            code = code text
            text = ""
        }
    }
}
FILENAME ~ /\.md$/ { search($0); next }
FILENAME == "revdial.h" { search(comment); next }
{ learn(code) }
END { exit bad }
