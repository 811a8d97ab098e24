// Host names for many that ask at once, where the resolver is slow or does not answer.
#include "runtime_util.h"

enum { SLOW = 100 };

typedef struct asking {
    rvd_loop_task task;
    rvd_lookup lookup;
    rvd_sys_addr found[4];
    util_gate *told;
} asking;

typedef struct desk {
    rvd_lookup_desk *d;
    rvd_loop *loop;
    util_gate told;
    asking slow[2][SLOW], one;
    int entered, was_entered;  // of the resolver, before the test
    int threads;               // with that of the loop and of a sanitizer
} desk;

static void on_told(rvd_loop_task *task)
{
    util_gate_add(RVD_BASE_OWNER(task, asking, task)->told, 1);
}

static int ask(desk *k, asking *a, uint64_t asker, const char *host)
{
    rvd_sys_endpoint e = {.kind = RVD_SYS_NAME, .port = 80};
    memset(a, 0, sizeof *a);
    a->task.run = on_told;
    a->told = &k->told;
    a->lookup.loop = k->loop;
    a->lookup.done = &a->task;
    a->lookup.out = a->found;
    a->lookup.max = 4;
    snprintf(e.host, sizeof e.host, "%s", host);
    return rvd_lookup_begin(k->d, &a->lookup, asker, &e);
}

// Each a name of its own; of one zone, or each of a zone of its own.
static void ask_slow(desk *k, asking *all, uint64_t asker, int is_one_zone)
{
    for (int i = 0; i < SLOW; i++) {
        char host[64];
        snprintf(host, sizeof host, is_one_zone ? "x%d.slow.test" : "x.x%d.%dslow.test", i, i);
        CHECK_INT(ask(k, &all[i], asker, host), 0);
    }
}

// How many lookups are in the resolver once no more get there.
static int in_resolver(desk *k, int at_least)
{
    CHECK(util_gate_wait(&util_resolver_entered, k->was_entered + at_least));
    return util_gate_count(&util_resolver_entered) - k->was_entered;
}

static int open_desk(desk *k)
{
    memset(k, 0, sizeof *k);
    util_gate_init(&k->told);
    util_gate_add(&util_resolver_open, -util_gate_count(&util_resolver_open));
    k->was_entered = util_gate_count(&util_resolver_entered);
    k->d = rvd_lookup_open();
    k->loop = rvd_loop_new(NULL, NULL, NULL);
    if (!CHECK(k->d && k->loop) || !CHECK_INT(rvd_loop_start(k->loop), 0)) return 0;
    k->threads = util_threads();
    return 1;
}

// The resolver answers from here on; what it is asked is over when no thread is left.
static void close_desk(desk *k)
{
    for (int i = 0; i < SLOW; i++)
        for (int who = 0; who < 2; who++)
            if (k->slow[who][i].lookup.loop) rvd_lookup_cancel(k->d, &k->slow[who][i].lookup);
    rvd_lookup_close(k->d);  // though threads are in the resolver
    rvd_loop_stop(k->loop);
    rvd_loop_join(k->loop);
    rvd_loop_free(k->loop);
    util_gate_add(&util_resolver_open, 1);
    UTIL_EVENTUALLY(util_threads() == k->threads - 1);
}

TEST(an_asker_whose_lookups_hang_leaves_places_to_the_next_one)
{
    static desk k;
    if (open_desk(&k)) {
        ask_slow(&k, k.slow[0], 1, 0);
        CHECK_INT(in_resolver(&k, RVD_LOOKUP_PLACES / 2), RVD_LOOKUP_PLACES / 2);
        ask_slow(&k, k.slow[1], 2, 0);
        CHECK(in_resolver(&k, RVD_LOOKUP_PLACES / 2 + 16) < RVD_LOOKUP_PLACES);
        CHECK_INT(ask(&k, &k.one, 3, "loop.test"), 0);
        CHECK(util_gate_wait(&k.told, 1));
        CHECK_INT(k.one.lookup.result, 1);
        CHECK_INT(ntohs(((struct sockaddr_in *)&k.one.found[0].ss)->sin_port), 80);
        close_desk(&k);
    }
}

TEST(a_zone_that_is_dead_leaves_places_to_the_other_names_of_the_same_asker)
{
    static desk k;
    if (open_desk(&k)) {
        ask_slow(&k, k.slow[0], 1, 1);
        CHECK(in_resolver(&k, RVD_LOOKUP_PLACES / 4) < RVD_LOOKUP_PLACES / 2);
        CHECK_INT(ask(&k, &k.one, 1, "loop.test"), 0);
        CHECK(util_gate_wait(&k.told, 1));
        CHECK_INT(k.one.lookup.result, 1);
        close_desk(&k);
    }
}

TEST(what_is_urgent_waits_for_no_place)
{
    static desk k;
    if (open_desk(&k)) {
        for (int i = 0; i < SLOW; i++) {
            char host[32];
            snprintf(host, sizeof host, "x%d.slow.test", i);
            CHECK_INT(ask(&k, &k.slow[0][i], RVD_LOOKUP_URGENT, host), 0);
        }
        CHECK_INT(in_resolver(&k, SLOW), SLOW);
        close_desk(&k);
    }
}

TEST(a_name_that_many_want_is_looked_up_once_and_told_to_all)
{
    static desk k;
    if (open_desk(&k)) {
        for (int i = 0; i < SLOW; i++) CHECK_INT(ask(&k, &k.slow[0][i], 1, "slow.test"), 0);
        CHECK_INT(in_resolver(&k, 1), 1);
        util_gate_add(&util_resolver_open, 1);
        CHECK(util_gate_wait(&k.told, SLOW));
        for (int i = 0; i < SLOW; i++) CHECK_INT(k.slow[0][i].lookup.result, -ENOENT);
        CHECK_INT(in_resolver(&k, 1), 1);
        close_desk(&k);
    }
}

TEST(a_lookup_that_is_given_up_while_it_waits_is_never_made)
{
    static desk k;
    if (open_desk(&k)) {
        ask_slow(&k, k.slow[0], 1, 0);
        int in = in_resolver(&k, RVD_LOOKUP_PLACES / 2);
        for (int i = 0; i < SLOW; i++) {
            CHECK_INT(rvd_lookup_cancel(k.d, &k.slow[0][i].lookup), 1);
            CHECK_INT(rvd_lookup_cancel(k.d, &k.slow[0][i].lookup), 0);
        }
        CHECK(rvd_base_link_is_alone(&k.d->waiting));
        util_gate_add(&util_resolver_open, 1);
        CHECK_INT(ask(&k, &k.one, 1, "loop.test"), 0);
        CHECK(util_gate_wait(&k.told, 1));
        CHECK_INT(in_resolver(&k, in), in);
        CHECK_INT(util_gate_count(&k.told), 1);
        close_desk(&k);
    }
}

TEST(names_that_wait_are_bounded_and_without_a_thread_none_is_looked_up)
{
    static desk k;
    static asking more[RVD_LOOKUP_WAITING];
    char host[64];
    if (open_desk(&k)) {
        atomic_store(&util_thread_spare, 0);
        atomic_store(&util_thread_fail, 1);
        CHECK_INT(ask(&k, &k.one, 1, "loop.test"), -EAGAIN);
        ask_slow(&k, k.slow[0], 1, 0);
        int refused = 0;
        for (int i = 0; i < RVD_LOOKUP_WAITING; i++) {
            snprintf(host, sizeof host, "more%d.slow.test", i);
            refused += ask(&k, &more[i], 1, host) == -EAGAIN;
        }
        CHECK(refused > 0);
        CHECK_INT(ask(&k, &k.one, 2, "loop.test"), 0);
        CHECK(util_gate_wait(&k.told, 1));
        for (int i = 0; i < RVD_LOOKUP_WAITING; i++) rvd_lookup_cancel(k.d, &more[i].lookup);
        close_desk(&k);
    }
}

static void *nothing(void *arg)
{
    return arg;
}

int main(int argc, char **argv)
{
    pthread_join(util_thread(nothing, NULL), NULL);  // a race detector adds its own to the first
    return test_main(argc, argv);
}
