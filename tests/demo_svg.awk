# Draws what `make demo` prints.     make demo | awk -f tests/demo_svg.awk >tests/demo.svg
function escaped(text) {
    gsub(/&/, "\\&amp;", text)
    gsub(/</, "\\&lt;", text)
    gsub(/>/, "\\&gt;", text)
    return text
}

function put(text, colour) {
    rows[++count] = sprintf("<tspan x=\"16\" y=\"%d\" fill=\"%s\">%s</tspan>", 10 + 20 * count,
                            colour, escaped(text))
    if (length(text) > widest) widest = length(text)
}

BEGIN { put("$ make demo", "#7ee787") }
/^demo: / {
    sub(/^demo: /, "")
    gsub(/  +/, " ")
    put($0, /through the tunnel/ ? "#ffffff" : "#c9d1d9")
}
END {
    width = 32 + 8.4 * widest
    height = 22 + 20 * count
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\">\n", width, height
    print "<rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#0d1117\"/>"
    print "<text font-family=\"monospace\" font-size=\"14\" xml:space=\"preserve\">"
    for (i = 1; i <= count; i++) print rows[i]
    print "</text>\n</svg>"
}
