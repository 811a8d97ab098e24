# The rules of style that can be read off the lines.     awk -f tidy.awk FILE...
# Run with LC_ALL=C: a character of several bytes counts as one column here.

function say(what) { printf "%s:%d: %s\n", FILENAME, FNR, what; bad = 1 }
function say_at(line, what) { printf "%s:%d: %s\n", FILENAME, line, what; bad = 1 }

# Parameters in the first pair of parentheses, which may hold others.
function parameters(text,   i, c, depth, count, any) {
    for (i = index(text, "("); i <= length(text); i++) {
        c = substr(text, i, 1)
        if (c == "(") depth++
        else if (c == ")" && --depth == 0) break
        else if (c == "," && depth == 1) count++
        else if (c != " ") any = 1
    }
    return any ? count + 1 : 0
}

function end_file() {
    if (is_header && maps != marks) {
        printf "%s:1: the MAP lists %d sections, the file has %d\n", file, maps, marks
        bad = 1
    }
}

FNR == 1 {
    end_file()
    file = FILENAME
    is_c = FILENAME ~ /\.[ch]$/
    is_header = FILENAME ~ /(^|\/)revdial[a-z_]*\.h$/
    tabs = FILENAME ~ /(^|\/)Makefile$|\.go$/
    wide = FILENAME ~ /\.(md|go)$/                 # tables, and what gofmt leaves
    maps = marks = in_map = impl = thread = commented = body = 0
    signature = ""
}

{
    columns = $0
    gsub(/[\200-\277]/, "", columns)               # all but the first byte of a character
    if (!wide && length(columns) > 100) say("line over 100 columns")
    if (/[ \t]$/) say("trailing blank")
    if (!tabs && /\t/) say("tab")
    if (/(^|[^A-Za-z_])(TO[D]O|FIX[M]E|HA[C]K|XX[X])([^A-Za-z_]|$)/)
        say("unfinished business; open an issue instead")
}
!is_c { next }

# Functions: their braces stand in column 1.
/^[{]/ { body = FNR }
/^[}]/ && body {
    if (FNR - body > 71) say_at(body, "function of " FNR - body - 1 " lines; 70 are allowed")
    body = 0
}

/^[A-Za-z].*\(/ && !/^(TEST|TEST_[A-Z]+)\(/ && signature == "" {
    signature = " "
    began = FNR
    name = $0
    sub(/\(.*/, "", name)
}
signature != "" {
    code = $0
    gsub(/"([^"\\]|\\.)*"/, "", code)
    sub(/\/\/.*/, "", code)
    signature = signature code
    if (code ~ /[;{=]/ || $0 ~ /^\{/) {
        gsub(/__attribute__ *\(\([a-z_]*(\([^()]*\))?\)\)/, "", signature)
        sub(/[;{=].*/, "", signature)
        if (parameters(signature) > 5) say_at(began, "more than 5 parameters")
        signature = ""
    }
}
!is_header { next }

# A state changes in one function, which asserts the arrow that is drawn above the enum.
/->([a-z]+_)?(state|phase|tx|rx) = / && !/out->/ && name !~ /_(become|init|new|alloc|reset)$/ {
    say("a state is set outside of its _become function")
}

# The MAP in the opening comment, and the banners.
!marks {
    text = $0
    sub(/^(\/\/|\/\*| \*)/, "", text)
    n = split(text, word, " ")
    if (n && word[1] == "MAP") in_map = 1
    else if (n && word[1] ~ /^[A-Z][A-Z]+:?$/) in_map = 0
    else if (in_map && n && word[1] ~ /^(api|impl)\.[a-z0-9]+$/) map[++maps] = word[1]
}
/^\/\/ MARK: impl\./ { impl = 1 }
/^\/\/ MARK: / { banner = 1; for_all = 0 }
banner && /^\/\/   thread / { for_all = 1 }
/^\/\/ ====/ { banner = 0 }
/^\/\/ MARK: / && map[++marks] != $3 { say("the MAP says " map[marks] " here, the banner " $3) }

# A comment with a thread line serves the declarations that follow it without a blank line; one in
# a banner serves its whole section.
/^\/\// {
    if (!commented) thread = 0
    commented = 1
    if (/^\/\/   thread /) thread = 1
    next
}
{ commented = 0 }
/^$/ { thread = 0 }
/^REVDIAL_API / && !impl && !thread && !for_all { say("public function without a thread line") }

END { end_file(); exit bad }
