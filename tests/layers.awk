# The names of revdial.h.     awk -f layers.awk revdial.h revdial.h revdial.h
#
# A private name carries its section: rvd_<section>_..., RVD_<SECTION>_... A section may name its
# own and those of the sections in its banner's "uses:", which stand further up. Only impl.base may
# define names without a section (rvd_heap): everybody may name those. A public function is a door
# that every section further down may use.
#
# Reads the file three times: sections, definitions, uses. It goes by lines, so it is a lint; the
# slices of layers.sh are the proof.

function say(what) { printf "%s:%d: [%s] %s\n", FILENAME, FNR, here, what; bad = 1 }
function may_use(section) { return section == here || (here, section) in uses }

# The section that a private name carries, or ""
function section_of(name,   part) {
    part = tolower(name)
    sub(/^rvd_/, "", part)
    sub(/_.*/, "", part)
    return part in order ? part : ""
}

# Notes that this section defines the name; pass 1.
function define(name,   section) {
    if (name ~ /^revdial_/) { if (!(name in home)) home[name] = here; return }
    if (name !~ /^(rvd|RVD)_/) return
    section = section_of(name)
    if (section == "" && here != "base") say("defines " name ", which carries no section's name")
    else if (section != "" && section != here) say("defines " name ", a name of " section)
    else home[name] = here
}

FNR == 1 { here = ""; signature = ""; pass++ }

pass == 1 && /^\/\/ MARK: impl\./ { order[substr($3, 6)] = FNR }

/^\/\/ MARK: impl\./ {                              # "// MARK: impl.mux  uses: base wire"
    here = substr($3, 6)
    if (pass == 1 && $4 != "uses:") say("the banner has no uses:")
    for (i = 5; i <= NF; i++) {
        if (pass == 2 && (!($i in order) || order[$i] >= FNR))
            say("uses " $i ", which is not above")
        uses[here, $i] = 1
    }
    next
}
pass == 1 || here == "" { next }                    # the public half may name anything public

{                                                   # what is left is code
    line = $0
    gsub(/'\\?.'/, "' '", line)
    gsub(/"([^"\\]|\\.)*"/, "\"\"", line)
    sub(/\/\/.*/, "", line)
}

# Definitions. A function's is known by the brace in column 1 that follows.
pass == 2 && line ~ /^[A-Za-z].*\(/ && line !~ /^typedef/ {
    signature = line
    gsub(/__attribute__ *\(\([a-z_]*(\([^()]*\))?\)\)/, "", signature)
    sub(/\(.*/, "", signature)
    sub(/ *$/, "", signature)
    sub(/.*[ *]/, "", signature)
}
pass == 2 && (line ~ /^\{/ || line ~ /^[A-Za-z].*\).*\{/) && signature != "" { define(signature) }
pass == 2 && (line ~ /^[{}]/ || line ~ /;[ ]*$/) { signature = "" }
pass == 2 && match(line, /^# *define +(rvd|RVD)_[A-Za-z0-9_]+/) {
    name = substr(line, RSTART, RLENGTH)
    sub(/.* /, "", name)
    define(name)
}
pass == 2 && match(line, /^(typedef +)?(struct|union|enum) +rvd_[a-z0-9_]+/) {
    name = substr(line, RSTART, RLENGTH)
    sub(/.* /, "", name)
    if (line !~ /\(/ && line !~ /=/) define(name)
}
pass == 2 && match(line, /^\} *rvd_[a-z0-9_]+;/) {
    name = substr(line, RSTART, RLENGTH)
    gsub(/[} ;]/, "", name)
    define(name)
}

# Uses
pass == 3 {
    rest = line
    before = ""
    while (match(rest, /(rvd|RVD|revdial)_[A-Za-z0-9_]+/)) {
        if (RSTART > 1) before = substr(rest, RSTART - 1, 1)
        name = substr(rest, RSTART, RLENGTH)
        rest = substr(rest, RSTART + RLENGTH)
        if (before ~ /[A-Za-z0-9_]/) { before = "x"; continue }
        before = "x"
        if (name ~ /^revdial_/) {
            if (name in home && order[home[name]] > order[here])
                say("names " name " of " home[name] ", further down")
            continue
        }
        section = section_of(name)
        if (section == "" && name in home) section = home[name]
        if (section == "") say("names " name ", which carries no section's name")
        else if (!may_use(section)) say("may not use " name)
    }
}
END { exit bad }
