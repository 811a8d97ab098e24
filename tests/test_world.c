// A simulation of the whole: proxies, agents, targets, clients, resolvers and hostile peers in one
// process and in virtual time, on the runtime of revdial.h as it is: its threads are fibers under a
// scheduler that a seed drives, its system calls go to a simulated system.
//
//     build/test_world                     a thousand seeds, a few of them twice
//     build/test_world --seeds 0 20000     a range, and how often it met what it has to meet
//     build/test_world --seed 17 --trace   one seed, every step on stderr
//     build/test_world --sweep 3           all failures of a small scenario, in 3 orders of threads
//     build/test_world --sweep 3 unix      where all sockets are Unix sockets
//
// A seed that fails is played again with operations left out, as long as it fails in the same way:
// what is printed is the shortest script found.
#define REVDIAL_IMPLEMENTATION  // by world_names.h, against the simulated system
#include "world_cut.h"
#include "world_shrink.h"
#include "world_sweep.h"

enum {
    WORLD_SEEDS = 20000,  // of a thorough run
    WORLD_MARKED = 1000,  // so many meet everything
    WORLD_TWICE = 20,
    WORLD_FAILURES = 5  // no more are looked for
};

static uint64_t world_seed;  // that runs

static void world_report(script *s, const char *why)
{
    printf("seed %llu: %s\n", (unsigned long long)s->seed, why);
    shrink(s, why);
    script_print(s);
    fflush(stdout);
}

static int world_seeds(uint64_t first, uint64_t last)
{
    int failed = 0;
    for (world_seed = first; world_seed < last && failed < WORLD_FAILURES; world_seed++) {
        static script s;
        uint64_t hash;
        char why[600];
        script_of(&s, world_seed);
        if (world_run(&s, 0, &hash, why, sizeof why)) continue;
        world_report(&s, why);
        failed++;
    }
    return failed;
}

static void script_keep(script *s, const char *list)
{
    int count = 0;
    for (int i = 0; i < s->count; i++) {
        int is_kept = 0;
        for (const char *at = list; *at; at += strcspn(at, ","), at += *at == ',')
            is_kept |= *at >= '0' && *at <= '9' && atoi(at) == i;
        if (is_kept) s->ops[count++] = s->ops[i];
    }
    s->count = count;
}

// A script that failed once. It has the operations themselves: what a seed draws may change.
static void world_again(uint64_t seed, unsigned simple, const op *ops, int count)
{
    static script s;
    uint64_t hash;
    char why[600];
    memset(&s, 0, sizeof s);
    s.seed = seed;
    s.simple = simple;
    s.is_calm = s.may_refuse = (simple & SIMPLE_CALM) != 0;
    s.count = count;
    memcpy(s.ops, ops, (size_t)count * sizeof *ops);
    if (!world_run(&s, 0, &hash, why, sizeof why)) test_fail(__FILE__, __LINE__, "%s", why);
}

TEST(a_loop_that_closes_a_session_waits_for_the_thread_that_reads_it)
{
    static const op ops[] = {{OP_FORGET, 34, 887350, 18245926457744421420u},
                             {OP_DIAL, 36, 28, 7210700904879610526u}};
    world_again(132, SIMPLE_PLAN | SIMPLE_MORE | SIMPLE_V4, ops, 2);
}

TEST(a_limit_of_descriptors_that_was_raised_counts_for_the_next_stream)
{
    static const op ops[] = {{OP_DESCRIPTORS, 9, 17, 4258288896393578021u},
                             {OP_DIAL, 13, 433395, 18421596885352768907u},
                             {OP_DIAL, 14, 2572, 3618729397818412439u}};
    world_again(3779, SIMPLE_TURNS | SIMPLE_CALLS | SIMPLE_MORE | SIMPLE_V4, ops, 3);
}

TEST(a_proxy_that_drains_waits_for_clients_that_have_not_taken_all_that_their_session_brought)
{
    static const op ops[] = {{OP_DIAL, 1, 2950, 6881857392746047848u},
                             {OP_DIAL, 2, 2657, 8329771120359974718u},
                             {OP_DIAL, 3, 343, 599272960547431559u},
                             {OP_CLIENT, 4, 581, 14878846716124747549u},
                             {OP_CLIENT, 5, 2447, 917203864857252144u},
                             {OP_CLIENT, 7, 2611, 18017984479319002503u},
                             {OP_PROXY_FINISHES, 11, 1943, 18345221909051710457u},
                             {OP_DIAL, 12, 1748443, 9166946168518914657u},
                             {OP_DRAIN, 15, 152, 11498962951366546367u}};
    world_again(6361,
                SIMPLE_TURNS | SIMPLE_CALLS | SIMPLE_PLAN | SIMPLE_MORE | SIMPLE_V4 | SIMPLE_CALM,
                ops, 9);
}

TEST(an_agent_that_stops_is_not_held_up_by_a_proxy_that_takes_no_bytes)
{
    static const op ops[] = {{OP_FORGET, 0, 2139, 9105040294630366503u},
                             {OP_DRAIN, 1, 1628, 223827649424689156u},
                             {OP_CLIENT, 2, 902903, 11834798131503828816u},
                             {OP_CLIENT, 3, 613, 7866503132705225031u},
                             {OP_MEMORY, 4, 2447, 10729148479708404559u},
                             {OP_PROXY_FINISHES, 5, 1469, 9917330766425868639u},
                             {OP_PROXY_FINISHES, 6, 2852, 2692923678743258971u},
                             {OP_AGENT_FINISHES, 7, 0, 2909130426696539711u},
                             {OP_KILL, 8, 2336, 5741951524501061448u},
                             {OP_RESOLVER, 9, 3897, 12271478315006417607u},
                             {OP_PROXY, 10, 7, 4357516103590173000u},
                             {OP_DIAL, 12, 2173, 8378078928487372635u},
                             {OP_CLIENT, 13, 1024, 5571694968461174115u},
                             {OP_CLIENT, 15, 2267, 10278317656438887877u},
                             {OP_CLIENT, 18, 2374, 17075674788108968770u},
                             {OP_FORGET, 19, 931, 2613842202145179386u}};
    world_again(4532, SIMPLE_MORE | SIMPLE_V4, ops, 16);
}

TEST(a_thread_that_reads_on_when_its_proxy_has_started_again_is_not_counted_as_idle)
{
    static const op ops[] = {{OP_DIAL, 6, 2027, 2151760236054530764u},
                             {OP_PROXY_FINISHES, 19, 982, 11633688970956766452u},
                             {OP_DRAIN, 31, 2560, 4444947786504425625u}};
    world_again(4244, SIMPLE_TURNS | SIMPLE_CALLS | SIMPLE_LINKS | SIMPLE_V4 | SIMPLE_CALM, ops, 3);
}

TEST(a_relay_that_has_passed_EOF_on_does_not_reset_at_once)
{
    static const op ops[] = {{OP_DIAL, 0, 0, 14420755876896287401u},
                             {OP_LIMITS, 1, 2053, 6656538303286961262u},
                             {OP_DIAL, 2, 2641, 18063528355755091768u},
                             {OP_SHARE, 3, 779, 14928943297308003530u},
                             {OP_CLIENT, 4, 4094, 12097103008767546098u},
                             {OP_SHARE, 5, 1737, 4053744448393296695u},
                             {OP_SHARE, 14, 770, 5149613408654962553u},
                             {OP_DIAL, 15, 480, 1338676374873517325u}};
    world_again(2376, SIMPLE_CALLS | SIMPLE_CALM, ops, 8);
}

TEST(every_seed_keeps_every_promise)
{
    memset(marks_hit, 0, sizeof marks_hit);
    // Under a sanitizer each takes ten times as long.
    uint64_t seeds = FIBER_ASAN || FIBER_TSAN  ? WORLD_MARKED / 5
                     : getenv("TEST_THOROUGH") ? WORLD_SEEDS
                                               : WORLD_MARKED;
    CHECK_INT(world_seeds(0, seeds), 0);
    for (int m = 0; m < MARKS && !test_failures && seeds >= WORLD_MARKED; m++)
        if (!marks_hit[m]) test_fail(__FILE__, __LINE__, "no seed met: %s", mark_kinds[m].name);
}

TEST(the_same_seed_is_the_same_run)
{
    for (uint64_t seed = 0; seed < WORLD_TWICE; seed++) {
        static script s;
        uint64_t one, two;
        char why[600];
        script_of(&s, seed);
        world_run(&s, 0, &one, why, sizeof why);
        world_run(&s, 0, &two, why, sizeof why);
        if (one != two)
            test_fail(__FILE__, __LINE__, "seed %llu runs in two ways", (unsigned long long)seed);
    }
}

// ---- peers that do not keep to the records of a transport

// Each of them came as far as it had to before it broke.
static void check_cuts(int is_fake)
{
    static const enum mark flaws[] = {MARK_RECORD_BAD_SUM, MARK_RECORD_BAD_TYPE,
                                      MARK_RECORD_TOO_LONG, MARK_RECORD_OUT_OF_TURN};
    size_t count = cut_play(is_fake), reached = 0;
    for (int p = 0; p < PLACES; p++)
        reached += marks_hit[(is_fake ? MARK_FAKE_HELLO : MARK_BROKEN_HELLO) + p];
    CHECK(count > 1000);
    CHECK(reached >= count);
    for (int i = 0; i < 4; i++) CHECK(marks_hit[flaws[i]] >= 2 * PLACES);
    CHECK(!is_fake || marks_hit[MARK_FAKE_SESSION_UP] >= marks_hit[MARK_FAKE_SESSION]);
}

TEST(a_record_cut_at_any_byte_is_soon_gone_from_a_proxy_and_no_other_session_notices)
{
    check_cuts(0);
}

TEST(a_record_cut_at_any_byte_is_soon_gone_from_an_agent_and_no_other_session_notices)
{
    check_cuts(1);
}

// ---- a small scenario with one call that fails

static uint64_t sweep_one_in(void)
{
    if (FIBER_TSAN) return 30;  // each takes fifteen times as long
    return getenv("TEST_THOROUGH") ? 1 : 16;
}

TEST(whatever_call_fails_where_an_agent_serves_a_target_nothing_crashes_leaks_lies_or_lasts)
{
    CHECK(sweep_way(SWEEP_TARGET, 0, sweep_one_in()) > 10);
}

TEST(whatever_call_fails_over_a_websocket_and_a_name_nothing_crashes_leaks_lies_or_lasts)
{
    CHECK(sweep_way(SWEEP_NAME, 0, sweep_one_in()) > 10);
}

TEST(whatever_call_fails_where_a_handler_serves_nothing_crashes_leaks_lies_or_lasts)
{
    CHECK(sweep_way(SWEEP_HANDLER, 0, sweep_one_in()) > 10);
}

TEST(whatever_call_fails_where_transfers_go_through_pipes_nothing_crashes_leaks_lies_or_lasts)
{
    CHECK(sweep_way(SWEEP_BULK, 0, 10 * sweep_one_in()) > 10);
}

TEST(whatever_call_fails_under_a_transport_nothing_crashes_leaks_lies_or_lasts)
{
    CHECK(sweep_way(SWEEP_RECORDS, 0, sweep_one_in()) > 10);
}

TEST(whatever_call_fails_where_all_addresses_are_ipv6_nothing_crashes_leaks_lies_or_lasts)
{
    CHECK(sweep_way(SWEEP_V6, 0, sweep_one_in()) > 10);
}

TEST(whatever_call_fails_where_ports_take_both_families_nothing_crashes_leaks_lies_or_lasts)
{
    CHECK(sweep_way(SWEEP_BOTH, 0, sweep_one_in()) > 10);
}

TEST(whatever_call_fails_where_all_are_unix_sockets_nothing_crashes_leaks_lies_or_lasts)
{
    CHECK(sweep_way(SWEEP_UNIX, 0, sweep_one_in()) > 10);
}

TEST(a_unix_socket_that_cannot_be_listened_to_leaves_no_path)
{
    for (int i = 0; i < FAULT_ERROR_COUNT; i++) {
        enum fault_call call = fault_errors[i].call;
        sweep s = {.way = SWEEP_UNIX, .error = &fault_errors[i], .how = SWEEP_EVER};
        if (call != FAULT_fchmodat && call != FAULT_listen) continue;
        for (s.nth = 1; s.nth < 6; s.nth++) sweep_one(&s, 0);
    }
}

TEST(a_call_whose_send_fails_does_not_try_again_until_its_session_has_ended)
{
    const struct fault_error *e = fault_errors;
    while (e->call != FAULT_send || e->error != ETIMEDOUT) e++;
    sweep s = {.way = SWEEP_V6, .error = e, .how = SWEEP_WHILE};
    for (s.nth = 1; s.nth < 120; s.nth++) sweep_one(&s, 0);
}

TEST(a_transfer_that_has_to_arrive_waits_until_both_ends_have_the_same_session)
{
    sweep s = {.way = SWEEP_TARGET, .is_broken = 1};
    sweep_one(&s, 0);
}

TEST(short_reads_and_writes_and_signals_in_every_call_lose_nothing)
{
    for (int way = 0; way < SWEEP_WAYS; way++) sweep_interrupted((enum sweep_way)way);
}

// All of it, or one way of it, in several orders of threads.
static int world_sweeps(unsigned seeds, const char *only)
{
    int failed = 0;
    unsigned runs = 0;
    for (unsigned seed = 0; seed < seeds; seed++)
        for (int way = 0; way < SWEEP_WAYS; way++) {
            if (only && strcmp(only, sweep_ways[way])) continue;
            test_failures = 0;
            runs += sweep_way((enum sweep_way)way, seed, 1);
            failed += test_failures;
        }
    printf("%u runs\n%d passed, %d failed\n", runs, runs && !failed, failed);
    return failed || !runs;
}

// CALL ERROR NTH HOW WAY SEED, as a failure's report names it.
static int world_fault(int argc, char **argv)
{
    sweep s = {.nth = (unsigned)atoi(argv[4]), .seed = strtoull(argv[7], NULL, 10)};
    for (int i = 0; i < FAULT_ERROR_COUNT; i++)
        if (!strcmp(fault_calls[fault_errors[i].call].name, argv[2]) &&
            !strcmp(fault_errors[i].name, argv[3]))
            s.error = &fault_errors[i];
    while (s.how < SWEEP_EVER && strcmp(sweep_hows[s.how], argv[5])) s.how++;
    while (s.way < SWEEP_WAYS - 1 && strcmp(sweep_ways[s.way], argv[6])) s.way++;
    int ok = sweep_one(&s, argc > 8);
    printf("%s\n%d passed, %d failed\n", sw.told, ok, !ok);
    return !ok;
}

// A crash says which seed it was.
static void world_on_crash(int sig)
{
    char text[80];
    int n =
        snprintf(text, sizeof text, "seed %llu: signal %d\n", (unsigned long long)world_seed, sig);
    fwrite(text, 1, (size_t)n, stderr);
    signal(sig, SIG_DFL);
    raise(sig);
}

static int world_usage(void)
{
    fprintf(stderr, "usage: test_world [--seeds FIRST END | --seed N [--keep LIST] [--simple N] "
                    "[--trace] | --sweep SEEDS [WAY] | --fault CALL ERROR NTH HOW WAY SEED "
                    "[--trace]] | [test...]\n");
    return 2;
}

// One seed, as a failure's report names it.
static int world_replay(int argc, char **argv)
{
    static script s;
    uint64_t hash;
    char why[600];
    int trace = 0;
    script_of(&s, strtoull(argv[2], NULL, 10));
    for (int i = 3; i < argc; i++) {
        if (!strcmp(argv[i], "--trace"))
            trace = 1;
        else if (!strcmp(argv[i], "--keep") && i + 1 < argc)
            script_keep(&s, argv[++i]);
        else if (!strcmp(argv[i], "--simple") && i + 1 < argc)
            s.simple = (unsigned)atoi(argv[++i]);
        else
            return world_usage();
    }
    int ok = world_run(&s, trace, &hash, why, sizeof why);
    printf("%s%shash %016llx, %llu switches, %llu calls\n%d passed, %d failed\n", why,
           ok ? "" : "\n", (unsigned long long)hash, (unsigned long long)wd.steps,
           (unsigned long long)wd.calls, ok, !ok);
    return !ok;
}

int main(int argc, char **argv)
{
    static char stack[65536];
    stack_t own = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction crash = {.sa_handler = world_on_crash, .sa_flags = SA_ONSTACK};
    sigaltstack(&own, NULL);
    if (!FIBER_ASAN && !FIBER_TSAN) {
        sigaction(SIGSEGV, &crash, NULL);
        sigaction(SIGABRT, &crash, NULL);
    }
    if (argc < 2 || argv[1][0] != '-') return test_main(argc, argv);
    if (!strcmp(argv[1], "--seed") && argc > 2) return world_replay(argc, argv);
    if (!strcmp(argv[1], "--sweep") && (argc == 3 || argc == 4))
        return world_sweeps((unsigned)atoi(argv[2]), argv[3]);
    if (!strcmp(argv[1], "--fault") && argc >= 8) return world_fault(argc, argv);
    if (strcmp(argv[1], "--seeds") || argc != 4) return world_usage();
    uint64_t first = strtoull(argv[2], NULL, 10);
    int failed = world_seeds(first, strtoull(argv[3], NULL, 10));
    double seconds = (double)clock() / CLOCKS_PER_SEC;
    for (int m = 0; m < MARKS; m++)
        printf("%-24s %llu\n", mark_kinds[m].name, (unsigned long long)marks_hit[m]);
    printf("%.0f seeds for each second of processor time\n",
           (double)(world_seed - first) / (seconds > 0 ? seconds : 1));
    printf("%d passed, %d failed\n", failed == 0, failed != 0);
    return failed != 0;
}
