# A page as C: its lines, in an array that ends with NULL.     awk -f page.awk FILE
BEGIN { print "#include <stddef.h>\n\n#include \"page.h\"\n\nconst char *const page_lines[] = {" }
/\\/ {
    print FILENAME ":" FNR ": a backslash, which would need care" >"/dev/stderr"
    exit failed = 1
}
{
    gsub(/"/, "\\\"")
    print "    \"" $0 "\\n\","
}
END {
    if (failed) exit failed
    print "    NULL};"
}
