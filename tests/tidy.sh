#!/bin/sh
# The rules of style that a machine can check.     tests/tidy.sh [DIRECTORY]
#   lines     columns, blanks, tabs, unfinished business, length and parameters of functions; in
#             revdial.h: the MAP is the MARKs, every public function says which thread may call it,
#             a state is changed by one function
#   words     revdial_* and rvd_* words in comments of revdial.h and in documents exist; no riddles
#   places    nothing at the top level but what belongs there
#   version   the numbers and the string say the same
#   resets    the specification's table of reset codes is that of revdial.h
#   vectors   the sentences that stand above the bytes in tests/vectors stand in the specification
#   links     files that documents name or link to exist; README.md has at most 20,000 bytes
#   readme    ```c blocks of the documents compile; with int main they link, too. One without is
#             tried as a file's text, then as a function's body that has p (proxy), a (agent),
#             s (session), st (stream), e (engine), err and buf. The example in the opening comment
#             of revdial.h is a block as well.
here=$(dirname "$0")
root=${1:-.}
CC=${CC:-cc}
here=$(cd "$here" && pwd)
cd "$root" || exit 1
tmp=build/readme
header=revdial.h
specification=tests/vectors/README.md
documents="README.md examples/README.md tests/README.md $specification"
passed=0
failed=0
export LC_ALL=C
rm -rf "$tmp"
mkdir -p "$tmp" || exit 1

# Counts a check; its findings are in $tmp/found.
verdict() {
    if [ -s "$tmp/found" ]; then
        cat "$tmp/found"
        echo "FAIL $1"
        failed=$((failed + 1))
    else
        echo "ok $1"
        passed=$((passed + 1))
    fi
}

: >"$tmp/found"
for file in "$header" $documents LICENSE Makefile; do
    if [ ! -r "$file" ]; then echo "$file:1: cannot be read"; fi
done >"$tmp/found"
find . \( -path ./build -o -path ./.git \) -prune -o -type f \( -name '*.[ch]' -o -name '*.sh' \
    -o -name '*.awk' -o -name '*.py' -o -name '*.go' -o -name '*.mjs' -o -name '*.md' \
    -o -name Makefile \
    -o -path './.ci/*' \) -print | sed 's,^\./,,' | sort >"$tmp/files"
xargs awk -f "$here/tidy.awk" <"$tmp/files" >>"$tmp/found"
verdict lines

: >"$tmp/found"
{
    cat "$header" revdial_tls.h
    $CC -I. -DREVDIAL_IMPLEMENTATION -x c -E -P "$header" 2>/dev/null
} >"$tmp/known.c"
awk -f "$here/words.awk" "$tmp/known.c" $(find examples -name '*.[ch]') "$header" $documents \
    >"$tmp/found" 2>/dev/null
verdict words

: >"$tmp/found"
for file in *; do
    case $file in
    revdial.h | revdial_tls.h | tests | examples | Makefile | README.md | LICENSE | build) ;;
    *) echo "$file: not at the top level, please" >>"$tmp/found" ;;
    esac
done
verdict places

awk '
    /^#define REVDIAL_VERSION_(MAJOR|MINOR|PATCH) / { v = v (v == "" ? "" : ".") $3 }
    /^#define REVDIAL_VERSION_STRING / { gsub(/"/, "", $3); string = $3; line = FNR }
    END {
        if (v == "" || v != string)
            printf "%s:%d: the version is %s, the string says %s\n", FILENAME, line + 0, v, string
    }' "$header" >"$tmp/found"
verdict version

# The specification's table of reset codes has each of REVDIAL_RESETS, with its text.
awk -F'|' '
    FILENAME ~ /\.md$/ {
        if (/^#/) inside = /^## Reset codes/
        for (i = 2; inside && i < NF; i += 2) text[$i + 0] = $(i + 1)
        next
    }
    /^#define REVDIAL_RESETS/ { resets = 1 }
    resets && /X\([A-Z_]+, [0-9]+, "/ {
        split($0, x, /, |"/)
        if (index(text[x[2]], " " x[4]) != 1)
            printf "%s:1: no reset code %d, \"%s\", in the table\n", ARGV[1], x[2], x[4]
    }
    !/\\$/ { resets = 0 }
' "$specification" "$header" >"$tmp/found"
verdict resets

# The specification and the comments of the vectors as one line each, blanks and list marks undone.
# Above bytes that are not of one sentence the first comment says how the file is written.
awk '
    function judge() {
        if (said != "" && !index(text, said)) print where ": not in " ARGV[1] ":" said
        said = ""
    }
    FNR == 1 { judge(); explains = FILENAME !~ /handshake|refusal/ }
    FILENAME == ARGV[1] { sub(/^(- )?  */, ""); sub(/^- /, ""); text = text " " $0; next }
    !/^# / { judge(); explains = 0; next }
    explains { next }
    { if (said == "") where = FILENAME ":" FNR; said = said substr($0, 2) }
    END { judge() }
' "$specification" tests/vectors/*.txt >"$tmp/found"
verdict vectors

# [text](file) of each document, without a place in the file. Other sites are not asked.
for document in $documents; do
    grep -on '](\([^)#:]*\)[#)]' "$document" | sed 's/\(.*\):](\([^)#]*\).*/\1 \2/' |
        while read -r line file; do
            if [ -z "$file" ] || [ -e "$(dirname "$document")/$file" ]; then continue; fi
            echo "$document:$line: $file does not exist"
        done
done >"$tmp/found"
for file in $(cat $documents | grep -oh '`\(tests\|examples\)/[^` ]*`' | tr -d '`' | sort -u); do
    if [ ! -e "$file" ]; then echo "README.md:1: a document names $file, which does not exist"; fi
done >>"$tmp/found"
if [ "$(wc -c <README.md)" -gt 20000 ]; then
    echo "README.md:1: over 20,000 bytes: more than a visitor reads" >>"$tmp/found"
fi
verdict links

: >"$tmp/found"
awk -v dir="$tmp" -f "$here/blocks.awk" "$header" $documents 2>/dev/null
printf '#define REVDIAL_IMPLEMENTATION\n#include "%s"\n' "$header" >"$tmp/impl.c"
flags='-Wall -Wextra -Werror -I. -pthread'
for block in "$tmp"/block_*.c; do
    [ -r "$block" ] || continue
    if grep -q 'int main' "$block"; then
        also=
        if ! grep -q 'define REVDIAL_IMPLEMENTATION' "$block"; then also=$tmp/impl.c; fi
        if ! $CC $flags -o "${block%.c}" "$block" $also 2>"$tmp/diagnostics"; then
            grep -E 'error|undefined' "$tmp/diagnostics" >>"$tmp/found"
        fi
        continue
    fi
    { echo '#include "revdial_tls.h"'; cat "$block"; } >"$tmp/text.c"
    if $CC $flags -fsyntax-only "$tmp/text.c" 2>/dev/null; then continue; fi
    {
        printf '#include <poll.h>\n#include <stdio.h>\n#include <string.h>\n#include <unistd.h>\n'
        printf '#include "revdial_tls.h"\n'
        printf 'void body(revdial_proxy *p, revdial_agent *a, revdial_session *s,\n'
        printf '          revdial_stream *st, revdial_engine *e, revdial_err err, char *buf);\n'
        printf 'void body(revdial_proxy *p, revdial_agent *a, revdial_session *s,\n'
        printf '          revdial_stream *st, revdial_engine *e, revdial_err err, char *buf)\n{\n'
        printf '(void)p, (void)a, (void)s, (void)st, (void)e, (void)err, (void)buf;\n'
        cat "$block"
        printf '}\n'
    } >"$tmp/body.c"
    if ! $CC $flags -Wno-unused -fsyntax-only "$tmp/body.c" 2>"$tmp/diagnostics"; then
        grep error "$tmp/diagnostics" >>"$tmp/found"
    fi
done
verdict readme

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
