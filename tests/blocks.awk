# Writes the C of documents to DIR/block_N.c.     awk -v dir=DIR -f blocks.awk revdial.h FILE.md...
# Of Markdown the blocks fenced as ```c; of the header the example in the opening comment, which
# begins with a line of the preprocessor and ends with the brace that closes main.

function begin(line) {
    out = dir "/block_" ++blocks ".c"
    printf "#line %d \"%s\"\n", line, FILENAME > out
}
function end() { close(out); out = "" }

FILENAME ~ /\.md$/ && /^```/ {
    if (out) end()
    else if (/^```c$/ && !other) begin(FNR + 1)
    else other = !other
    next
}
FILENAME ~ /\.md$/ { if (out) print > out; next }

/^\/\/ MARK: |^#/ { done = 1 }                       # the opening comment is over
done { next }
{
    text = $0
    sub(/^(\/\/| \*)/, "", text)
    if (!out && text ~ /^ +# *(define|include) /) {
        begin(FNR)
        match(text, /^ +/)
        indent = RLENGTH
    }
    if (out) {
        body = substr(text, indent + 1)
        print body > out
        if (body ~ /int main/) in_main = 1
        if (in_main && body ~ /^}/) { end(); done = 1 }
    }
}
