# revdial.h for suites and programs that link with one compiled implementation. Every line keeps its
# number. Functions that are inline stay as they are.
#     awk -v open=1 -f hollow.awk revdial.h   functions are no longer static: to compile it once
#     awk -f hollow.awk revdial.h             and have no bodies: to include it
FNR == 1 { print "#line 1 \"" FILENAME "\"" }
/^#ifdef REVDIAL_IMPLEMENTATION/ { is_impl = 1 }
/^[A-Za-z]/ { is_function = is_impl && /^[^=;]*\(/ && !/RVD_BASE_FAST|inline / }
/^[A-Za-z]/ && is_function { sub(/static /, "") }
/^{/ && is_function && !open {
    is_body = 1
    print ";"
    next
}
{ print is_body ? "" : $0 }
/^}/ { is_body = 0 }
