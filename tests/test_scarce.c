// Nothing is left behind and nobody hangs when memory, threads or descriptors are short, when
// signals storm, and when many threads do everything at once.
#include "runtime_util.h"

#ifdef __linux__
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif

// ------------------------------------------------------------------------------------------------
// Memory that cannot be had

typedef struct locked_heap {
    pthread_mutex_t lock;
    test_heap heap;
} locked_heap;

static void *locked_alloc(void *ud, void *ptr, size_t old_size, size_t new_size)
{
    locked_heap *h = ud;
    pthread_mutex_lock(&h->lock);
    void *p = test_heap_alloc(&h->heap, ptr, old_size, new_size);
    pthread_mutex_unlock(&h->lock);
    return p;
}

static void heap_world(world *w, locked_heap *h, size_t fail_at, int for_ever)
{
    world_init(w);
    memset(h, 0, sizeof *h);
    pthread_mutex_init(&h->lock, NULL);
    h->heap.fail_at = fail_at;
    h->heap.fail_forever = for_ever;
    w->pcfg.common.alloc = w->acfg.common.alloc = locked_alloc;
    w->pcfg.common.alloc_ud = w->acfg.common.alloc_ud = h;
}

static void heap_is_empty(const locked_heap *h, size_t n)
{
    if (h->heap.live_blocks || h->heap.live_bytes)
        test_fail(__FILE__, __LINE__, "allocation %zu failed: %zu blocks, %zu bytes are left", n,
                  h->heap.live_blocks, h->heap.live_bytes);
}

// Everything once, with retries. Returns 1 if all went well in the end, -1 if it could not start.
static int heap_story(world *w)
{
    revdial_err err = {0};
    char buf[4];
    w->proxy = revdial_proxy_start(&w->pcfg, &err);
    if (!w->proxy) return CHECK_INT(err.code, REVDIAL_ENOMEM) ? -1 : 0;
    revdial_proxy_address(w->proxy, 0, w->address, sizeof w->address);
    snprintf(w->url, sizeof w->url, "http://%s", w->address);
    w->acfg.url = w->url;
    w->agents[0] = revdial_agent_start(&w->acfg, &err);
    if (!w->agents[0]) return CHECK_INT(err.code, REVDIAL_ENOMEM) ? -1 : 0;
    for (int tries = 0; tries < 4; tries++) {
        util_state e = {0};
        int wait_ms = 0, is_up;
        do {  // one that was told to wait by Retry-After is not waited for
            is_up = revdial_proxy_wait(w->proxy, "cam-1", 1, 20) == 1;
            if (util_log_count(&w->states, REVDIAL_BACKOFF, &e) && e.retry_ms >= 1000) return 1;
            wait_ms += 20;
        } while (!is_up && wait_ms < UTIL_WAIT_MS);
        if (!is_up) return 0;
        revdial_stream *st = world_dial(w, "echo", 0, &err);
        int ok = st && revdial_write(st, "ping", 4) == 4 && util_read_all(st, buf, 4) == 4;
        revdial_close(st);
        if (ok) return 1;
    }
    return 0;
}

TEST(U34_whichever_allocation_fails_once_an_error_says_so_or_it_is_tried_again_and_nothing_leaks)
{
    size_t most = 0;  // allocations of a story without failures, the first
    for (size_t n = 0; n <= most && n < 300 && test_failures < 5; n++) {
        world w;
        locked_heap h;
        heap_world(&w, &h, n, 0);
        int result = heap_story(&w);
        if (!result) test_fail(__FILE__, __LINE__, "allocation %zu failed, and nothing goes on", n);
        if (n == 0) most = h.heap.calls;
        world_close(&w);
        heap_is_empty(&h, n);
    }
    CHECK(most > 20);
}

TEST(U34_from_whichever_allocation_on_all_fail_all_calls_return_and_nothing_leaks)
{
    for (size_t n = 1; n < 80 && test_failures < 5; n++) {
        world w;
        locked_heap h;
        revdial_err err = {0};
        heap_world(&w, &h, n, 1);
        w.proxy = revdial_proxy_start(&w.pcfg, &err);
        if (w.proxy) {
            revdial_proxy_address(w.proxy, 0, w.address, sizeof w.address);
            snprintf(w.url, sizeof w.url, "http://%s", w.address);
            w.acfg.url = w.url;
            w.agents[0] = revdial_agent_start(&w.acfg, &err);
            if (w.agents[0] && revdial_proxy_wait(w.proxy, "cam-1", 1, 20) == 1)
                revdial_close(world_dial(&w, "echo", 0, &err));
        }
        world_close(&w);
        heap_is_empty(&h, n);
    }
}

// ------------------------------------------------------------------------------------------------
// Threads, descriptors, signals

TEST(U33_a_thread_that_cannot_be_had_is_an_error_and_nothing_is_left_of_the_attempt)
{
    world w;
    revdial_err err;
    world_init(&w);
    w.pcfg.common.io_threads = 3;
    int fds = util_fds(), threads = util_threads();
    for (int spare = 0; spare < 3; spare++) {
        atomic_store(&util_thread_spare, spare);
        atomic_store(&util_thread_fail, 1);
        CHECK(revdial_proxy_start(&w.pcfg, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_ESYS);
        CHECK_INT(err.sys, EAGAIN);
        CHECK_INT(util_fds(), fds);
        UTIL_EVENTUALLY(util_threads() == threads);
    }
    atomic_store(&util_thread_fail, 0);
    w.pcfg.common.io_threads = 1;
    if (world_open_proxy(&w)) {
        w.acfg.url = w.url;
        atomic_store(&util_thread_spare, 0);
        atomic_store(&util_thread_fail, 1);
        CHECK(revdial_agent_start(&w.acfg, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_ESYS);
        atomic_store(&util_thread_spare, 1);  // the loop has one, the resolver has none at first
        atomic_store(&util_thread_fail, 1);
        CHECK(world_open_agent(&w, 0));
        revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS);
        atomic_store(&util_thread_spare, 0);
        atomic_store(&util_thread_fail, 1);
        CHECK(world_dial(&w, "echo", 0, &err) == NULL);  // no thread for its handler
        CHECK_INT(err.code, REVDIAL_ELIMIT);
        revdial_stream *st = world_dial(&w, "echo", 0, &err);
        CHECK(st != NULL);
        revdial_close(st);
    }
    atomic_store(&util_thread_fail, 0);
    world_close(&w);
}

TEST(U30_a_proxy_without_descriptors_lets_connections_wait_and_its_sessions_live)
{
    world w;
    struct rlimit before, low;
    char buf[1024];
    getrlimit(RLIMIT_NOFILE, &before);
    world_init(&w);
    if (world_open(&w)) {
        int fd = raw_connect(w.address);
        int next = dup(fd);
        close(next);
        low = before;
        low.rlim_cur = (rlim_t)next;
        // The connection above has been accepted, or is accepted with the last descriptor.
        raw_request(buf, sizeof buf, "late", "s3cret", NULL);
        raw_say(fd, buf);
        CHECK(raw_head(fd, buf, sizeof buf) > 0);
        int late = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        next = dup(late);
        close(next);
        low.rlim_cur = (rlim_t)next;
        atomic_store(&util_accepts_without_fd, 0);
        CHECK_INT(setrlimit(RLIMIT_NOFILE, &low), 0);
        struct sockaddr_in at;
        memset(&at, 0, sizeof at);
        at.sin_family = AF_INET;
        at.sin_port = htons((uint16_t)atoi(strrchr(w.address, ':') + 1));
        at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        CHECK_INT(connect(late, (struct sockaddr *)&at, sizeof at), 0);
        raw_request(buf, sizeof buf, "later", "s3cret", NULL);
        raw_say(late, buf);
        revdial_stream *st = world_dial(&w, "echo", 0, NULL);
        if (CHECK(st != NULL)) {
            CHECK_INT(revdial_write(st, "ping", 4), 4);
            CHECK_INT(util_read_all(st, buf, 4), 4);
        }
        revdial_close(st);
        UTIL_EVENTUALLY(atomic_load(&util_accepts_without_fd) >= 2);  // asked again after a pause
        CHECK(!raw_wait(late, POLLIN, 0));
        setrlimit(RLIMIT_NOFILE, &before);
        CHECK(raw_head(late, buf, sizeof buf) > 0);
        CHECK_INT(raw_status(buf), 101);
        close(late);
        close(fd);
    }
    setrlimit(RLIMIT_NOFILE, &before);
    world_close(&w);
}

static void on_alarm(int sig)
{
    (void)sig;
}

TEST(U25_a_storm_of_signals_interrupts_nothing)
{
    struct sigaction ours, before;
    struct itimerval storm = {{0, 100}, {0, 100}}, calm = {{0, 0}, {0, 0}};
    world w;
    memset(&ours, 0, sizeof ours);
    ours.sa_handler = on_alarm;  // no SA_RESTART
    sigaction(SIGALRM, &ours, &before);
    setitimer(ITIMER_REAL, &storm, NULL);
    world_init(&w);
    if (world_open(&w)) {
        for (int i = 0; i < 20; i++) {
            revdial_stream *st = world_dial(&w, "echo", 0, NULL);
            uint8_t out[4096], in[4096];
            if (!CHECK(st != NULL)) break;
            for (uint64_t at = 0; at < 40960; at += sizeof out) {
                util_fill(out, sizeof out, at, 5);
                CHECK_INT(revdial_write(st, out, sizeof out), sizeof out);
                revdial_pollfd p = {st, 0, POLLIN, 0};
                CHECK_INT(revdial_poll(&p, 1, UTIL_WAIT_MS), 1);
                CHECK_INT(util_read_all(st, in, sizeof in), sizeof in);
                CHECK(memcmp(out, in, sizeof in) == 0);
            }
            revdial_stream_set_deadline(st, REVDIAL_RD, 10);
            CHECK_INT(revdial_read(st, in, 1), REVDIAL_ETIMEDOUT);
            int fd = revdial_stream_fd(st);
            if (CHECK(fd >= 0)) close(fd);
        }
    }
    world_close(&w);
    setitimer(ITIMER_REAL, &calm, NULL);
    sigaction(SIGALRM, &before, NULL);
}

WORLD_TEST(U31_a_world_works_as_it_is_in_a_process_of_its_own)
{
    char buf[4];
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    if (CHECK(st != NULL)) {
        CHECK_INT(revdial_write(st, "ping", 4), 4);
        CHECK_INT(util_read_all(st, buf, 4), 4);
        int fd = revdial_stream_fd(st);
        CHECK(fd >= 0 && raw_say(fd, "ping") && raw_read_all(fd, buf, 4));
        close(fd);
    }
}

TEST(U31_it_works_with_descriptors_0_1_and_2_closed)
{
    char self[4096];
    int status = -1;
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    REQUIRE(n > 0);
    self[n] = '\0';
    pid_t pid = fork();
    if (pid == 0) {
        close(0);
        close(1);
        close(2);
        execl(self, self, "U31_a_world_works", (char *)NULL);
        _exit(99);
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

// ------------------------------------------------------------------------------------------------
// U46: places where something is missing. Each is a process of its own, which says where it is in
// the environment: its exit status is that of the one test that it runs.

enum { PLACE_NOT_ALLOWED = 77 };

#ifdef __linux__
static int place_without_getrandom(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getrandom, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof code / sizeof *code, code};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}
#else
static int place_without_getrandom(void)
{
    return 0;
}
#endif

// An empty directory that is gone as soon as we are in it: no /dev, no /etc, no /proc.
static int place_without_files(int is_root)
{
    char dir[] = "/tmp/revdial-test.XXXXXX";
    return mkdtemp(dir) && chdir(dir) == 0 && rmdir(dir) == 0 && (!is_root || chroot(".") == 0);
}

NEW_WORLD_TEST(U46_a_world_works_at_the_place_that_it_is_told)
{
    const char *place = getenv("U46_PLACE");
    int has_files = !place || !strstr(place, "no-files"), ok = 1;
    int has_random = !place || !strstr(place, "no-getrandom");
    revdial_err err = {0};
    if (place && strstr(place, "no-cwd")) ok = place_without_files(0);
    if (ok && !has_files) ok = place_without_files(1);
    if (ok && !has_random) ok = place_without_getrandom();
    if (!ok) _exit(PLACE_NOT_ALLOWED);
    if (!has_files && !has_random) {
        CHECK(revdial_proxy_start(&w->pcfg, &err) == NULL);
        CHECK_INT(err.code, REVDIAL_ESYS);
        CHECK(strstr(err.msg, "randomness") != NULL);
        w->acfg.url = "http://127.0.0.1:1";
        CHECK(revdial_agent_start(&w->acfg, &err) == NULL);
        CHECK(strstr(err.msg, "randomness") != NULL);
        return;
    }
    REQUIRE(world_open(w));
    char buf[4];
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    if (CHECK(st != NULL)) {
        CHECK_INT(revdial_write(st, "ping", 4), 4);
        CHECK_INT(util_read_all(st, buf, 4), 4);
    }
    revdial_close(st);
}

TEST(U46_without_a_directory_files_or_getrandom_it_works_or_says_why)
{
    static const char *const places[] = {"no-cwd", "no-files", "no-getrandom",
                                         "no-files no-getrandom"};
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    REQUIRE(n > 0);
    self[n] = '\0';
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        int status = -1;
        pid_t pid = fork();
        if (pid == 0) {
            setenv("U46_PLACE", places[i], 1);
            setenv("ASAN_OPTIONS", "detect_leaks=0", 1);  // which looks into /proc
            dup2(open("/dev/null", O_WRONLY), 1);
            execl(self, self, "U46_a_world_works", (char *)NULL);
            _exit(99);
        }
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
        }
        if (!WIFEXITED(status) ||
            (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != PLACE_NOT_ALLOWED))
            test_fail(__FILE__, __LINE__, "%s: status %x", places[i], (unsigned)status);
    }
}

NEW_WORLD_TEST(U23_no_descriptor_of_ours_survives_exec_and_a_child_that_exits_hurts_nothing)
{
    char was_open[1024];
    for (int fd = 0; fd < 1024; fd++) was_open[fd] = fcntl(fd, F_GETFD) >= 0;
    REQUIRE(world_open(w));
    revdial_stream *st = world_dial(w, "echo", 0, NULL);
    revdial_stream *other = world_dial(w, "echo", 0, NULL);
    int fd = other ? revdial_stream_fd(other) : -1, ours = 0;
    for (int i = 0; i < 1024; i++) {
        int flags = was_open[i] ? -1 : fcntl(i, F_GETFD);
        ours += flags >= 0;
        if (flags >= 0 && !(flags & FD_CLOEXEC))
            test_fail(__FILE__, __LINE__, "descriptor %d survives exec", i);
    }
    CHECK(ours > 5);
    int status = -1;
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    waitpid(pid, &status, 0);
    char buf[4];
    if (CHECK(st != NULL)) {
        CHECK_INT(revdial_write(st, "ping", 4), 4);
        CHECK_INT(util_read_all(st, buf, 4), 4);
    }
    revdial_close(st);
    close(fd);
}

static void *no_work(void *arg)
{
    return arg;
}

TEST(U45_cycles_of_opening_and_closing_leave_no_descriptor_and_no_thread)
{
    pthread_join(util_thread(no_work, NULL), NULL);  // a sanitizer adds one of its own to the first
    int fds = util_fds(), threads = util_threads();
    for (int i = 0; i < 30; i++) {
        world w;
        world_init(&w);
        w.pcfg.common.io_threads = 1 + (unsigned)i % 3;
        if (world_open(&w)) {
            revdial_stream *st = world_dial(&w, i % 2 ? "echo" : "hold", 0, NULL);
            CHECK(st != NULL);
            if (i % 3) revdial_close(st);
            world_close(&w);
            if (i % 3 == 0) revdial_close(st);
        }
        CHECK_INT(util_fds(), fds);
        UTIL_EVENTUALLY(util_threads() == threads);
    }
}

// ------------------------------------------------------------------------------------------------
// All at once

typedef struct churn {
    world *w;
    atomic_int *stop;
    unsigned seed;
    int turns;
} churn;

static void *churn_dial(void *arg)
{
    churn *c = arg;
    test_rng rng = test_rng_seeded(c->seed);
    static const char *const what[] = {"echo", "hold", "refuse", "reset", "source", "flood"};
    char buf[2000];
    for (int i = 0; i < c->turns; i++) {
        revdial_err err;
        revdial_stream *st = world_dial(c->w, what[test_below(&rng, 6)], 3000, &err);
        if (!st) continue;
        revdial_stream_set_deadline(st, REVDIAL_RDWR, 5);
        revdial_write(st, buf, test_below(&rng, sizeof buf));
        revdial_read(st, buf, sizeof buf);
        if (test_below(&rng, 3) == 0) revdial_reset(st, 64);
        if (test_below(&rng, 4) == 0) {
            int fd = revdial_stream_fd(st);
            if (fd >= 0) {
                close(fd);
                continue;
            }
        }
        revdial_close(st);
    }
    return NULL;
}

static void *churn_watch(void *arg)
{
    churn *c = arg;
    while (!atomic_load(c->stop)) {
        revdial_session *s[8];
        revdial_stats stats;
        revdial_session_info info;
        size_t n = revdial_proxy_list(c->w->proxy, "*", s, 8);
        for (size_t i = 0; i < n && i < 8; i++) {
            revdial_session_get_info(s[i], &info);
            revdial_session_unref(s[i]);
        }
        revdial_proxy_get_stats(c->w->proxy, &stats);
        revdial_agent_get_stats(c->w->agents[0], &stats);
        sched_yield();
    }
    return NULL;
}

TEST(U14_U51_dials_resets_kills_and_questions_from_many_threads_end_well)
{
    world w;
    atomic_int stop = 0;
    churn c[5];
    pthread_t t[5];
    world_init(&w);
    w.pcfg.common.io_threads = 2;
    if (world_open(&w)) {
        w.acfg.instance = "second";
        CHECK(world_open_agent(&w, 1));
        for (int i = 0; i < 5; i++) {
            c[i] = (churn){&w, &stop, (unsigned)i + 1, 60};
            t[i] = util_thread(i == 4 ? churn_watch : churn_dial, &c[i]);
        }
        for (int i = 0; i < 10; i++) {
            revdial_session *s = revdial_agent_wait(w.agents[i % 2], UTIL_WAIT_MS, NULL);
            if (i % 3 == 2)
                revdial_session_drain(s, 5);
            else
                revdial_session_kill(s);
            revdial_session_unref(s);
            util_nap_ms(3);
        }
        for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
        atomic_store(&stop, 1);
        pthread_join(t[4], NULL);
        CHECK(revdial_proxy_wait(w.proxy, "cam-1", 1, UTIL_WAIT_MS) >= 1);
        // The proxy may not have noticed the last kill: that dial fails, the next ones do not.
        revdial_stream *st = NULL;
        UTIL_EVENTUALLY((st = world_dial(&w, "echo", 0, NULL)) != NULL);
        revdial_close(st);
    }
    world_close(&w);
    CHECK_INT(util_log_count(&w.sessions, REVDIAL_UP, NULL),
              util_log_count(&w.sessions, REVDIAL_DOWN, NULL));
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
