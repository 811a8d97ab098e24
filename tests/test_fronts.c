// The front ends of revdial-proxy: what a client says, and where it leads. Parsers get their bytes
// whole, one at a time, and cut short.
#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#include "test.h"

#include "../examples/proxy/routes.c"

// ------------------------------------------------------------------------------------------------
// Destinations

// "HOST|PORT" as it was read, or what is wrong.
static const char *host_says(const char *text, char says[ROUTE_TARGET_SIZE])
{
    route_host h;
    const char *problem = route_host_parse(&h, text, strlen(text));
    snprintf(says, ROUTE_TARGET_SIZE, "%s|%d", h.host, h.port);
    return problem ? problem : says;
}

TEST(a_destination_is_a_name_or_an_address_with_a_port_or_without)
{
    static const char *const good[][2] = {{"cam.example", "cam.example|-1"},
                                          {"CAM.Example.:80", "cam.example|80"},
                                          {"a_b-c:0", "a_b-c|0"},
                                          {"10.0.0.1:65535", "10.0.0.1|65535"},
                                          {"[FD00::1]:22", "fd00::1|22"},
                                          {"[::1]", "::1|-1"},
                                          {"x:00080", "x|80"}};
    static const char *const bad[] = {
        "",       ".",          ":80",     "a..b:80",   ".a:80",   "a:",      "a:65536",
        "a:-1",   "a:8x",       "a:80:80", "::1",       "[::1",    "[::1]80", "[::1]x:80",
        "[a]:80", "[10.0.0.1]", "a b:80",  "a/b",       "[::g]:1", "a%b:1",   "a:000080",
        "[]:80",  "user@a:80",  "a\x80:1", "fd00::1:22"};
    char says[ROUTE_TARGET_SIZE], name[300];
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        CHECK_STR(host_says(good[i][0], says), good[i][1]);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (host_says(bad[i], says) == says) test_fail(__FILE__, __LINE__, "takes %s", bad[i]);
    memset(name, 'a', sizeof name);
    name[253] = '\0';
    CHECK(host_says(name, says) == says);
    name[253] = 'a';
    name[254] = '\0';
    CHECK_STR(host_says(name, says), "no host name is that long");
}

TEST(a_byte_that_ends_a_text_is_in_no_host_name)
{
    route_host h;
    CHECK(route_host_parse(&h, "cam\0.evil", 9) != NULL);
    CHECK(route_host_set(&h, "\0", 1, 80) != NULL);
}

TEST(a_destination_is_written_as_a_target_and_port_0_as_none)
{
    char target[ROUTE_TARGET_SIZE];
    route_host h;
    CHECK(!route_host_parse(&h, "[::1]:80", 8));
    route_host_target(&h, target);
    CHECK_STR(target, "[::1]:80");
    CHECK(!route_host_parse(&h, "Cam.:80", 7));
    route_host_target(&h, target);
    CHECK_STR(target, "cam:80");
    h.port = 0;
    route_host_target(&h, target);
    CHECK_STR(target, "");
}

// ------------------------------------------------------------------------------------------------
// Routes

// Fills a table; the test fails where a route is refused.
static void routes_fill(route_table *t, const char *const *specs)
{
    for (; *specs; specs++) {
        const char *problem = route_add(t, *specs);
        if (problem) test_fail(__FILE__, __LINE__, "%s \"%s\"", problem, *specs);
    }
}

// "NAME", "NAME/TARGET", or "none".
static const char *route_says(const route_table *t, const char *to, char says[400])
{
    route_choice c;
    route_host h;
    const char *problem = route_host_parse(&h, to, strlen(to));
    if (problem) return problem;
    if (!route_find(t, &h, &c)) return "none";
    snprintf(says, 400, "%s%s%s", c.name, c.has_target ? "/" : "", c.target);
    return says;
}

TEST(the_most_specific_route_counts_whatever_the_order)
{
    static const char *const specs[] = {"*=rest",
                                        "*.example=other",
                                        "*.cams.example=cams",
                                        "cam.cams.example=one",
                                        "cam.cams.example:22=ssh/127.0.0.1:22",
                                        "10.0.0.0/8=ten",
                                        "10.1.0.0/16=eleven",
                                        "10.1.0.0/16:80-90=web",
                                        "10.1.2.3=host",
                                        "[fd00::]/8:443=six",
                                        "cam-*.lab.example=lab",
                                        NULL};
    static const char *const rows[][2] = {{"cam.cams.example:80", "one"},
                                          {"CAM.cams.example.:22", "ssh/127.0.0.1:22"},
                                          {"cam.cams.example", "one"},
                                          {"2.cams.example", "cams"},
                                          {"a.b.cams.example:1", "cams"},
                                          {"cams.example", "other"},
                                          {"example", "rest"},
                                          {"xexample:1", "rest"},
                                          {"cam-7.lab.example", "lab"},
                                          {"cam-.lab.example", "other"},
                                          {"10.9.9.9:80", "ten"},
                                          {"10.1.9.9", "eleven"},
                                          {"10.1.9.9:90", "web"},
                                          {"10.1.9.9:91", "eleven"},
                                          {"10.1.2.3:80", "host"},
                                          {"11.1.2.3:80", "rest"},
                                          {"[fd12::1]:443", "six"},
                                          {"[fd12::1]:444", "rest"}};
    char says[400];
    for (int backwards = 0; backwards < 2; backwards++) {
        route_table t = {0};
        const size_t count = sizeof specs / sizeof *specs - 1;
        for (size_t i = 0; i < count; i++)
            CHECK(!route_add(&t, specs[backwards ? count - 1 - i : i]));
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
            if (strcmp(route_says(&t, rows[i][0], says), rows[i][1]) != 0)
                test_fail(__FILE__, __LINE__, "%s leads to %s", rows[i][0],
                          route_says(&t, rows[i][0], says));
        route_table_free(&t);
    }
}

TEST(a_star_in_a_name_is_one_label_of_the_host)
{
    static const char *const specs[] = {"*.cams.example=*", "*.lab=lab/*.internal:80",
                                        "cam-*.shop=shop-*", "*=*/", NULL};
    static const char *const rows[][2] = {
        {"7.cams.example", "7"},       {"A.CAMS.example:80", "a"},
        {"a.b.cams.example", "none"},  {"printer.lab:443", "lab/printer.internal:80"},
        {"a.printer.lab:443", "none"}, {"cam-12.shop", "shop-12"},
        {"cam-7", "cam-7/"},           {"10.0.0.1:80", "none"},
        {"[::1]:80", "none"}};
    char says[400], host[300];
    route_table t = {0};
    routes_fill(&t, specs);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        CHECK_STR(route_says(&t, rows[i][0], says), rows[i][1]);
    snprintf(host, sizeof host, "%065d.cams.example", 1);  // no agent can have that name
    CHECK_STR(route_says(&t, host, says), "none");
    route_table_free(&t);
}

TEST(a_wrong_route_is_refused_with_what_would_be_right)
{
    static const char *const rows[][2] = {
        {"cam.example", "PATTERN=NAME"},
        {"=web", "PATTERN is missing"},
        {"cam.example=", "1 to 64"},
        {"cam.example=Web", "1 to 64"},
        {"cam.example=a b", "1 to 64"},
        {"a.*.b.*=web", "at most one *"},
        {"cam?.example=web", "at most one *"},
        {"unix:/x=web", "host name"},
        {"fd00::/8=web", "brackets"},
        {"10.0.0.0/33=web", "bits"},
        {"10.0.0.*=web", "NET/BITS"},
        {"a..b=web", "dots"},
        {"a:99999=web", "65535"},
        {"a:0=web", "port 0"},
        {"http://a=web", "scheme"},
        {"cam.example=*", "that has none"},
        {"10.0.0.0/8=*", "that has none"},
        {"*.example=a*b*", "only one *"},
        {"*.example=web/*:*", "only one *"},
        {"cam.example=web/80", "HOST:PORT"},
        {"cam.example=web/x:0", "HOST:PORT"},
        {"cam.example=web/x:1-2", "HOST:PORT"},
        {"cam.example=web/10.0.0.0/8:80", "HOST:PORT"},
        {"cam.example=web/unix:x", "unix:/PATH"},
    };
    route_table t = {0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *problem = route_add(&t, rows[i][0]);
        if (!problem || !strstr(problem, rows[i][1]))
            test_fail(__FILE__, __LINE__, "%s: %s", rows[i][0], problem ? problem : "is taken");
    }
    CHECK_INT(t.count, 0);
    CHECK(!route_add(&t, "cam.example=web/unix:/run/x"));
    CHECK(!route_add(&t, "cam.example:80=web/[::1]:80"));
    CHECK_STR(route_add(&t, "CAM.example=other"), "there are two routes for");
    route_table_free(&t);
}

TEST(a_client_may_name_an_agent_where_no_route_but_the_default_decides)
{
    static const char *const specs[] = {"*=rest", "10.0.0.0/8=ten", "own.example=own/", NULL};
    route_table t = {0}, none = {0};
    route_choice c;
    route_host name = {"x.example", 80}, net = {"10.0.0.1", 22}, own = {"own.example", 22};
    route_host zero = {"web", 0};
    routes_fill(&t, specs);
    CHECK_INT(route_decide(&t, &name, "web", &c), ROUTE_FOUND);
    CHECK_STR(c.name, "web");
    CHECK_STR(c.target, "x.example:80");
    CHECK_INT(route_decide(&t, &name, NULL, &c), ROUTE_FOUND);
    CHECK_STR(c.name, "rest");
    CHECK_STR(c.target, "x.example:80");
    CHECK_INT(route_decide(&t, &net, "web", &c), ROUTE_FOUND);
    CHECK_STR(c.name, "ten");
    CHECK_STR(c.target, "10.0.0.1:22");
    CHECK_INT(route_decide(&t, &own, "", &c), ROUTE_FOUND);
    CHECK_STR(c.name, "own");
    CHECK_STR(c.target, "");  // the agent's own
    CHECK_INT(route_decide(&none, &name, NULL, &c), ROUTE_NEEDS_NAME);
    CHECK_INT(route_decide(&none, &name, "", &c), ROUTE_NEEDS_NAME);
    CHECK_INT(route_decide(&none, &name, "No Name", &c), ROUTE_BAD_NAME);
    CHECK_INT(route_decide(&none, &zero, "web", &c), ROUTE_FOUND);
    CHECK_STR(c.target, "");
    route_table_free(&t);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
