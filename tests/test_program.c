// What the two programs share: files with tokens, and the log.
#include "revdial.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

#include "test.h"

// The wall clock is ahead of that of the system.
static time_t wall_ahead_s;

static int wall_gettime(clockid_t id, struct timespec *t)
{
    int r = clock_gettime(id, t);
    if (id == CLOCK_REALTIME) t->tv_sec += wall_ahead_s;
    return r;
}

#define clock_gettime wall_gettime

#include "../examples/program/log.c"
#include "../examples/program/files.c"
#include "../examples/program/signals.c"
#include "../examples/program/values.c"
#include "../examples/proxy/credentials.c"
#include "../examples/proxy/fetch.c"
#include "../examples/proxy/hosts.c"
#include "../examples/proxy/pick.c"
#include "../examples/proxy/quota.c"
#include "../examples/proxy/routes.c"

TEST(F31_a_thread_that_waits_does_not_care_what_the_wall_clock_is_set_to)
{
    static const time_t jumps[] = {365 * 86400, -365 * 86400};
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    for (size_t i = 0; i < 2; i++) {
        pthread_cond_t cond;
        int64_t began_ms = fetch_now_ms();
        wall_ahead_s = jumps[i];
        CHECK_INT(prog_cond_open(&cond), 0);
        pthread_mutex_lock(&lock);
        while (prog_cond_wait(&cond, &lock, 20) == 0) continue;
        pthread_mutex_unlock(&lock);
        wall_ahead_s = 0;
        CHECK(fetch_now_ms() - began_ms >= 20);
        pthread_cond_destroy(&cond);
    }
}

// What opening the file says; its first token in token.
static int file_says(const char *path, char token[64], char msg[240])
{
    prog_file f;
    revdial_err err = {0};
    int r = prog_file_open(&f, path, &err);
    const char *first = r == 0 ? prog_file_next(&f) : NULL;
    snprintf(token, 64, "%s", first ? first : "");
    snprintf(msg, 240, "%s", err.msg);
    prog_file_close(&f);
    return r;
}

static void file_write(const char *path, const char *text, size_t len)
{
    FILE *f = fopen(path, "w");
    if (!f) abort();
    for (size_t i = 0; i < len; i++) fputc(text[i % strlen(text)], f);
    if (fclose(f) != 0) abort();
}

TEST(U42_a_file_with_tokens_is_a_file_of_bounded_size_and_nothing_else_hangs)
{
    char dir[] = "/tmp/revdial-test.XXXXXX", path[64], fifo[64], token[64], msg[240];
    REQUIRE(mkdtemp(dir) != NULL);
    snprintf(path, sizeof path, "%s/tokens", dir);
    snprintf(fifo, sizeof fifo, "%s/fifo", dir);
    CHECK_INT(mkfifo(fifo, 0600), 0);
    file_write(path, "# mine\ns3cret\n", 14);
    CHECK_INT(file_says(path, token, msg), 0);
    CHECK_STR(token, "s3cret");
    file_write(path, "\xEF\xBB\xBFs3cret\n", 10);
    CHECK_INT(file_says(path, token, msg), 0);
    CHECK_STR(token, "s3cret");
    const char *const bad[] = {"/nowhere/at/all", dir, fifo, "/dev/zero", "/dev/null", ""};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (file_says(bad[i], token, msg) == 0 || !strstr(msg, bad[i]) || strlen(msg) < 3)
            test_fail(__FILE__, __LINE__, "\"%s\": \"%s\"", bad[i], msg);
        if (i == 2) CHECK(strstr(msg, "not a regular file") != NULL);
    }
    file_write(path, "s3cret\n", (1 << 20) + 1);
    CHECK_INT(file_says(path, token, msg), -1);
    CHECK(strstr(msg, "over 1 MiB") != NULL);
    file_write(path, "s3cret\n", (1 << 20) - 1);
    CHECK_INT(file_says(path, token, msg), 0);
    chmod(path, 0);
    if (geteuid() != 0) CHECK_INT(file_says(path, token, msg), -1);
    unlink(path);
    unlink(fifo);
    rmdir(dir);
}

// The library knows the rules of rows; the program says in which line one is broken.
TEST(a_line_that_lets_nobody_in_is_refused_with_its_number)
{
    static const struct {
        int is_auth;
        const char *line, *says;
    } lines[] = {{0, "cam-[12] t0ken", "[ ]"},
                 {0, "Cam-* t0ken", "names"},
                 {0, "cam-1 two words", "token"},
                 {0, "cam-1 sha256:00", "64 hex digits"},
                 {1, "basic cam-[12] alice pass word", "[ ]"},
                 {1, "bearer cam-1 - two words", "token"},
                 {1, "bearer,,basic cam-1 bob ha1:00", "ha1"},
                 {1, "basic cam-1 a:b password", "user"},
                 {1, "mtls cam-1 CN=cam-1 s3cret", "secret"},
                 {1, "mtls - CN=cam-1", "names"},
                 {1, "mtls cam-1 cam-1.example", "DNS:"},
                 {0, "cam-1, cam-2 t0ken", "blank"},
                 {0, "cam-1 ,cam-2 t0ken", "blank"},
                 {1, "digest cam-1, cam-2 alice pass word", "blank"},
                 {1, "basic, digest cam-1 alice pass word", "blank"},
                 {0, "hosts=a.example, cam-1 t0ken", "blank"},
                 {0, "hosts= cam-1 t0ken", "hosts"},
                 {0, "hosts=a:80 cam-1 t0ken", "hosts"},
                 {1, "hosts=*,a.example basic cam-1 alice pass word", "hosts"},
                 {1, "hosts=a.example group=x basic cam-1 alice pass word", "SCHEMES"},
                 {0, "hosts=a.example,*.b.example t0ken", NULL},
                 {1, "hosts=a.example digest,basic cam-1 alice pass word", NULL},
                 {1, "group=x hosts=a.example mtls cam-1 CN=cam-1", NULL},
                 {0, "cam-1,,cam-?,a*z t0ken", NULL},
                 {1, ",basic,,digest cam-1,,cam-? alice pass word", NULL},
                 {1, "mtls cam-1 CN=cam-1", NULL}};
    char path[] = "/tmp/revdial-test.XXXXXX", text[128];
    int fd = mkstemp(path);
    REQUIRE(fd >= 0);
    close(fd);
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        token_paths paths = {lines[i].is_auth ? NULL : path, lines[i].is_auth ? path : NULL};
        token_table table = {0};
        revdial_err err = {0};
        snprintf(text, sizeof text, "# these\n%s\n", lines[i].line);
        file_write(path, text, strlen(text));
        CHECK_INT(token_table_read(&table, &paths, &err), lines[i].says ? -1 : 0);
        if (lines[i].says && (!strstr(err.msg, lines[i].says) || !strstr(err.msg, ":2: ")))
            test_fail(__FILE__, __LINE__, "\"%s\": \"%s\"", lines[i].line, err.msg);
        token_table_free(&table);
    }
    unlink(path);
}

// ------------------------------------------------------------------------------------------------
// Endpoints that are asked who may register

TEST(a_url_that_cannot_be_asked_is_refused)
{
    static const struct {
        const char *url, *host;
        int port;
        const char *path;  // NULL: it is refused
    } rows[] = {{"http://auth.example", "auth.example", 80, ""},
                {"https://Auth.example/may?x=1", "auth.example", 443, "/may?x=1"},
                {"https://[::1]:8443/", "::1", 8443, "/"},
                {"http://127.0.0.1:7000/a", "127.0.0.1", 7000, "/a"},
                {"auth.example", NULL, 0, NULL},
                {"ftp://auth.example", NULL, 0, NULL},
                {"HTTP://auth.example", NULL, 0, NULL},
                {"http://", NULL, 0, NULL},
                {"http://:80/", NULL, 0, NULL},
                {"http://auth.example:0/", NULL, 0, NULL},
                {"http://auth.example:x/", NULL, 0, NULL},
                {"http://user:pass@auth.example/", NULL, 0, NULL},
                {"http://auth.example?x", NULL, 0, NULL},
                {"http://auth.example/#top", NULL, 0, NULL},
                {"http://auth.example/a b", NULL, 0, NULL},
                {"http://auth.example/a\r\nX: y", NULL, 0, NULL}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        fetch_url url;
        const char *problem = fetch_url_parse(&url, rows[i].url);
        if (!problem != (rows[i].path != NULL))
            test_fail(__FILE__, __LINE__, "\"%s\": %s", rows[i].url, problem ? problem : "good");
        if (problem || !rows[i].path) continue;
        CHECK_STR(url.at.host, rows[i].host);
        CHECK_INT(url.at.port, rows[i].port);
        CHECK_STR(url.path, rows[i].path);
    }
}

TEST(a_field_of_an_answer_is_one_printable_text_or_nothing)
{
    static const char head[] =
        "HTTP/1.1 200 OK\r\nrevdial-group: \t cams \t\r\nA: 1\r\na: 2\r\nEmpty:\r\n"
        "Bad: a\tb\r\nHigh: \xC3\xA9\r\nLong: 12345678\r\nXA: no\r\n";
    char value[8] = "";
    CHECK_INT(fetch_field(head, "Revdial-Group", value, sizeof value), 1);
    CHECK_STR(value, "cams");
    CHECK_INT(fetch_field(head, "A", value, sizeof value), -1);
    CHECK_INT(fetch_field(head, "Empty", value, sizeof value), 1);
    CHECK_STR(value, "");
    CHECK_INT(fetch_field(head, "Bad", value, sizeof value), -1);
    CHECK_INT(fetch_field(head, "High", value, sizeof value), -1);
    CHECK_INT(fetch_field(head, "Long", value, sizeof value), -1);
    CHECK_INT(fetch_field(head, "Grou", value, sizeof value), 0);
    CHECK_INT(status_of("HTTP/1.1 200 OK\r\n"), 200);
    CHECK_INT(status_of("HTTP/1.0 401\r\n"), 401);
    CHECK_INT(status_of("HTTP/2 200 OK\r\n"), -1);
    CHECK_INT(status_of("HTTP/1.1 2000\r\n"), -1);
    CHECK_INT(status_of("HTTP/1.1 20\r\n"), -1);
    CHECK_INT(status_of("\r\n"), -1);
    CHECK(has_good_lines(head));
    CHECK(!has_good_lines("HTTP/1.1 200 OK\r\nA: 1\n\r\n"));
    CHECK(!has_good_lines("HTTP/1.1 200 OK\nA: 1\r\n"));
    CHECK(!has_good_lines("HTTP/1.1 200 OK\r\nA: 1\r\n folded\r\n"));
    CHECK(!has_good_lines("HTTP/1.1 200 OK\r\nA B: 1\r\n"));
    CHECK(!has_good_lines("HTTP/1.1 200 OK\r\n: 1\r\n"));
}

// ------------------------------------------------------------------------------------------------
// The log

// A line as the program writes it, from behind its time on.
static const char *line_of(prog_line *line, enum prog_log_format format, const char *msg)
{
    prog_line_make(line, format, REVDIAL_LOG_WARN, "x.y", msg);
    line->text[line->len] = '\0';
    return strchr(line->text, 'Z');
}

TEST(a_line_of_the_log_has_its_fields_in_each_format)
{
    static const char msg[] =
        "name=cam-1 dial=00c0.1 sent_bytes=5 reason=\"a \\\"b\\\" =c\\n\" n=7";
    prog_line line;
    CHECK_STR(line_of(&line, PROG_LOG_LOGFMT, msg),
              "Z level=warn event=x.y name=cam-1 dial=00c0.1 sent_bytes=5 "
              "reason=\"a \\\"b\\\" =c\\n\" n=7\n");
    CHECK_STR(line_of(&line, PROG_LOG_TEXT, msg), "Z warn x.y: name=cam-1 dial=00c0.1 sent_bytes=5 "
                                                  "reason=\"a \\\"b\\\" =c\\n\" n=7\n");
    CHECK_STR(line_of(&line, PROG_LOG_JSON, msg),
              "Z\",\"level\":\"warn\",\"event\":\"x.y\",\"name\":\"cam-1\",\"dial\":\"00c0.1\","
              "\"sent_bytes\":5,\"reason\":\"a \\\"b\\\" =c\\n\",\"n\":\"7\"}\n");
    CHECK_STR(line_of(&line, PROG_LOG_JSON, ""), "Z\",\"level\":\"warn\",\"event\":\"x.y\"}\n");
    CHECK_STR(line_of(&line, PROG_LOG_LOGFMT, ""), "Z level=warn event=x.y\n");
}

// Reads what the log writes until its end. Checks that the numbers of its lines ascend.
typedef struct log_reader {
    int fd, lines, dropped, in_order;
} log_reader;

static void log_reader_line(log_reader *r, const char *text, int *last)
{
    const char *number = strstr(text, "reason=");
    const char *dropped = strstr(text, "dropped_count=");
    if (dropped) r->dropped += atoi(dropped + strlen("dropped_count="));
    if (!number) return;
    r->in_order &= atoi(number + strlen("reason=")) == *last + r->dropped + 1;
    *last = atoi(number + strlen("reason=")) - r->dropped;
    r->lines++;
}

static void *log_reader_run(void *arg)
{
    log_reader *r = arg;
    FILE *f = fdopen(r->fd, "r");
    char text[512];
    int last = -1;
    while (f && fgets(text, sizeof text, f)) log_reader_line(r, text, &last);
    if (f) fclose(f);
    return NULL;
}

TEST(a_log_that_nobody_reads_holds_up_nobody_and_says_what_it_has_dropped)
{
    enum { LINES = 20000 };  // a pipe and the queue hold less than two thousand
    static prog_log log;
    log_reader r = {.in_order = 1};
    pthread_t reader;
    int p[2];
    REQUIRE(pipe(p) == 0);
    prog_log_open(&log, REVDIAL_LOG_INFO, PROG_LOG_LOGFMT);
    log.fd = p[1];
    REQUIRE(prog_log_start(&log) == 0);
    for (int i = 0; i < LINES; i++) prog_logf(&log, REVDIAL_LOG_INFO, "x.y", "%d", i);
    r.fd = p[0];
    REQUIRE(pthread_create(&reader, NULL, log_reader_run, &r) == 0);
    CHECK_INT(prog_log_finish(&log, 7), 7);
    close(p[1]);
    pthread_join(reader, NULL);
    CHECK(r.dropped > 0 && r.lines > 0);
    CHECK_INT(r.lines + r.dropped, LINES);
    CHECK_INT(r.in_order, 1);
}

// The disk has room for that many bytes. Returns for how many it had.
static rlim_t limit_files(rlim_t bytes)
{
    struct rlimit limit;
    rlim_t before;
    CHECK_INT(getrlimit(RLIMIT_FSIZE, &limit), 0);
    before = limit.rlim_cur;
    limit.rlim_cur = bytes;
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &limit), 0);
    return before;
}

TEST(lines_that_a_full_disk_does_not_take_are_counted_once_it_takes_others)
{
    static const char said[] = " level=warn event=log.dropped dropped_count=4\nno\n";
    static prog_log log;
    char text[256] = "", *at;
    rlim_t before;
    FILE *f = tmpfile();
    REQUIRE(f != NULL && signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
    prog_log_open(&log, REVDIAL_LOG_INFO, PROG_LOG_LOGFMT);
    log.fd = fileno(f);
    before = limit_files(4);
    prog_log_deliver(&log, "ab\ncd\nef\n", 9);
    prog_log_deliver(&log, "gh\nij\n", 6);
    limit_files(before);
    prog_log_deliver(&log, "no\n", 3);
    prog_log_deliver(&log, "yes\n", 4);
    rewind(f);
    CHECK(fread(text, 1, sizeof text - 1, f) > 0);
    fclose(f);
    CHECK(strncmp(text, "ab\nc\nts=", 8) == 0);
    at = strchr(text, 'Z');
    CHECK(at && strncmp(at + 1, said, sizeof said - 1) == 0);
    CHECK(at && strcmp(at + sizeof said, "yes\n") == 0);
}

TEST(a_signal_wakes_who_asked_for_it_whatever_other_pipes_there_are)
{
    int mine[2], other[2];
    char byte;
    REQUIRE(prog_pipe_open(mine) == 0);
    prog_signals_wake(mine[1]);
    REQUIRE(prog_pipe_open(other) == 0 && prog_catch_requests() == 0);
    CHECK(raise(SIGUSR2) == 0 && prog_usr2 == 1);
    CHECK_INT(read(mine[0], &byte, 1), 1);
    CHECK_INT(read(other[0], &byte, 1), -1);
    prog_pipe_close(other);
    CHECK(raise(SIGHUP) == 0 && prog_hup == 1);
    CHECK_INT(read(mine[0], &byte, 1), 1);
    prog_signals_wake(-1);
    prog_pipe_close(mine);
}

TEST(a_signal_that_came_before_anybody_could_be_woken_wakes_who_asks_then)
{
    int mine[2];
    char byte;
    REQUIRE(prog_pipe_open(mine) == 0 && prog_catch_requests() == 0);
    prog_hup = prog_usr2 = 0;
    prog_signals_wake(mine[1]);
    CHECK_INT(read(mine[0], &byte, 1), -1);
    prog_signals_wake(-1);
    CHECK(raise(SIGUSR1) == 0 && raise(SIGHUP) == 0 && prog_hup == 1);
    prog_signals_wake(mine[1]);
    CHECK_INT(read(mine[0], &byte, 1), 1);
    prog_signals_wake(-1);
    prog_hup = 0;
    prog_pipe_close(mine);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv);
}
