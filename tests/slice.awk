# Blanks sections out of revdial.h, so that every line keeps its number.
#     awk -v last=SECTION -f slice.awk     what comes after impl.SECTION
#     awk -v cut="A B" -f slice.awk        impl.A and impl.B
# Conditionals stay, because one may open in a section that goes and close in one that stays.

BEGIN {
    n = split(cut, names, " ")
    for (i = 1; i <= n; i++) gone["impl." names[i]] = 1
}
FNR == 1 { print "#line 1 \"" FILENAME "\"" }
/^\/\/ MARK: / {
    blank = ($3 in gone) || (last && after)
    if (last && $3 == "impl." last) after = 1
}
blank && !/^# *(if|ifdef|ifndef|else|elif|endif)/ { print ""; next }
{ print }
