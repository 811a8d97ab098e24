// The engine without sockets.
//     build/bench/engine JOB COUNT       runs COUNT frames, prints how many it did in a second
//     build/bench/engine memory COUNT    opens COUNT streams, prints the bytes of one of them
// The frames that come in are made before the clock starts, and come 64 KiB at a time, as a socket
// gives them. Two runs of different COUNT under callgrind, subtracted, are the instructions of one
// frame: tests/bench/engine.sh does that.
#define REVDIAL_IMPLEMENTATION
#define REVDIAL_NO_RUNTIME
#include "../../revdial.h"

#include "bench.h"

enum { HEAD_BYTES = 12, CHUNK_BYTES = 65536, FRAME_BYTES_MAX = 16384 - HEAD_BYTES };
enum { TYPE_DATA, TYPE_WINDOW };
enum { FLAG_SYN = 1 };

// What happens to a frame.
typedef enum engine_way {
    WAY_READ,    // comes in, is copied out
    WAY_PEEK,    // comes in, is looked at where it lies
    WAY_WRITE,   // is copied in, goes out
    WAY_RESERVE  // is written in place, goes out
} engine_way;

typedef struct engine_job {
    const char *name;
    engine_way way;
    uint32_t bytes;
    uint32_t active;  // streams that take turns
    uint32_t idle;    // streams that do nothing
    const char *what;
} engine_job;

static const engine_job jobs[] = {
    {"in64", WAY_READ, 64, 1, 0, "64 bytes in and read"},
    {"in64-1000", WAY_READ, 64, 1000, 0, "the same, 1000 streams in turn"},
    {"in64-idle", WAY_READ, 64, 1, 10000, "the same on 1 stream beside 10000 idle ones"},
    {"in64-peek", WAY_PEEK, 64, 1, 0, "64 bytes in, used in place"},
    {"out64", WAY_WRITE, 64, 1, 0, "64 bytes written and out, each by itself"},
    {"out64-1000", WAY_WRITE, 64, 1000, 0, "the same, 1000 streams in turn, 64 KiB at a time"},
    {"out64-idle", WAY_WRITE, 64, 1, 10000, "the same on 1 stream beside 10000 idle ones"},
    {"in16k", WAY_READ, FRAME_BYTES_MAX, 1, 0, "16 KiB in and read"},
    {"in16k-peek", WAY_PEEK, FRAME_BYTES_MAX, 1, 0, "16 KiB in, used in place"},
    {"out16k", WAY_WRITE, FRAME_BYTES_MAX, 1, 0, "16 KiB written and out"},
    {"out16k-place", WAY_RESERVE, FRAME_BYTES_MAX, 1, 0, "16 KiB written in place and out"},
};

typedef struct engine_bench {
    revdial_engine *e;
    const engine_job *job;
    uint8_t *frames;  // whole frames of all active streams
    size_t frames_len;
    uint8_t buf[CHUNK_BYTES];
    uint64_t left;  // frames still to count
} engine_bench;

static size_t put_head(uint8_t *at, int type, int flags, uint32_t id, uint32_t len)
{
    const uint8_t head[HEAD_BYTES] = {0,
                                      (uint8_t)type,
                                      0,
                                      (uint8_t)flags,
                                      (uint8_t)(id >> 24),
                                      (uint8_t)(id >> 16),
                                      (uint8_t)(id >> 8),
                                      (uint8_t)id,
                                      (uint8_t)(len >> 24),
                                      (uint8_t)(len >> 16),
                                      (uint8_t)(len >> 8),
                                      (uint8_t)len};
    memcpy(at, head, sizeof head);
    return sizeof head;
}

static void take_output(engine_bench *b)
{
    struct iovec iov[16];
    int n;
    while ((n = revdial_engine_output(b->e, iov, 16)) > 0) {
        size_t total = 0;
        for (int i = 0; i < n; i++) total += iov[i].iov_len;
        revdial_engine_sent(b->e, total);
    }
}

static void take_payload(engine_bench *b, uint32_t id)
{
    const void *at;
    ptrdiff_t n;
    if (b->job->way == WAY_PEEK) {
        while ((n = revdial_engine_peek(b->e, id, &at)) > 0)
            revdial_engine_consume(b->e, id, (size_t)n);
        return;
    }
    while ((n = revdial_engine_read(b->e, id, b->buf, sizeof b->buf)) == sizeof b->buf) continue;
    if (n < 0 && n != REVDIAL_EAGAIN) bench_die("read: %s", revdial_strerror((int)n));
}

static void take_events(engine_bench *b)
{
    revdial_event ev;
    while (revdial_engine_event(b->e, &ev)) {
        if (ev.type == REVDIAL_EV_READABLE) take_payload(b, ev.id);
        if (ev.type == REVDIAL_EV_OPEN && revdial_engine_accept(b->e, ev.id) != 0)
            bench_die("cannot accept stream %u", ev.id);
        if (ev.type == REVDIAL_EV_DEAD) bench_die("the session is dead: %s", ev.text);
    }
}

static void feed(engine_bench *b, const uint8_t *bytes, size_t len)
{
    for (size_t at = 0; at < len;) {
        ptrdiff_t used = revdial_engine_input(b->e, bytes + at, len - at, 1);
        if (used < 0) bench_die("input: %s", revdial_strerror((int)used));
        at += (size_t)used;
        take_events(b);
    }
}

// The peer opens the streams and, as reading is not all we do, gives them credit without end.
static void open_streams(engine_bench *b, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint8_t frame[HEAD_BYTES];
        feed(b, frame, put_head(frame, TYPE_WINDOW, FLAG_SYN, 2 * i + 1, 0));
        take_output(b);
    }
}

static void give_credit(engine_bench *b, uint64_t bytes)
{
    for (uint32_t i = 0; i < b->job->active; i++) {
        uint8_t frame[HEAD_BYTES];
        feed(b, frame, put_head(frame, TYPE_WINDOW, 0, 2 * i + 1, (uint32_t)bytes));
    }
}

static void make_frames(engine_bench *b)
{
    uint32_t one = HEAD_BYTES + b->job->bytes;
    size_t count = b->job->active > 1 ? b->job->active : CHUNK_BYTES / one;
    b->frames = bench_alloc(count, one);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t id = 2 * (i % b->job->active) + 1;
        b->frames_len += put_head(b->frames + b->frames_len, TYPE_DATA, 0, id, b->job->bytes);
        b->frames_len += b->job->bytes;
    }
}

static void run_in(engine_bench *b)
{
    size_t one = HEAD_BYTES + b->job->bytes, at = 0;
    while (b->left > 0) {
        size_t len = b->frames_len - at < CHUNK_BYTES ? b->frames_len - at : CHUNK_BYTES;
        if (len > b->left * one) len = (size_t)b->left * one;
        len -= len % one;
        feed(b, b->frames + at, len);
        take_output(b);
        b->left -= len / one;
        at = at + len < b->frames_len ? at + len : 0;
    }
}

static void write_frame(engine_bench *b, uint32_t id)
{
    size_t len = b->job->bytes;
    ptrdiff_t n;
    void *at;
    if (b->job->way == WAY_WRITE) {
        n = revdial_engine_write(b->e, id, b->buf, len);
    } else {
        n = revdial_engine_reserve(b->e, id, &at, len);
        if (n > 0) revdial_engine_commit(b->e, id, (size_t)n);
    }
    if (n != (ptrdiff_t)len) bench_die("wrote %td of %zu bytes", n, len);
}

// Many streams write what 64 KiB hold before it is sent, as in an event loop with many events at
// hand. One stream sends at once: what it writes in a row would leave as one frame.
static void run_out(engine_bench *b)
{
    uint32_t batch = b->job->active > 1 ? CHUNK_BYTES / (HEAD_BYTES + b->job->bytes) : 1;
    uint32_t stream = 0;
    uint64_t credit = 0;
    while (b->left > 0) {
        if (credit < CHUNK_BYTES) {
            credit = UINT64_C(1) << 30;
            give_credit(b, credit);
        }
        for (uint32_t i = 0; i < batch && b->left > 0; i++, b->left--) {
            write_frame(b, 2 * stream + 1);
            credit -= b->job->bytes;
            stream = stream + 1 < b->job->active ? stream + 1 : 0;
        }
        take_output(b);
        take_events(b);
    }
}

static void start_engine(engine_bench *b)
{
    revdial_engine_config cfg = {.role = REVDIAL_ROLE_BACKEND, .upgraded = 1, .seed = 1};
    revdial_err err = {0};
    cfg.limits.max_streams = 1 << 20;
    b->e = revdial_engine_new(&cfg, 0, &err);
    if (!b->e) bench_die("%s", err.msg);
    take_events(b);
}

static int run_job(const engine_job *job, uint64_t count)
{
    engine_bench b = {.job = job, .left = count};
    start_engine(&b);
    make_frames(&b);
    open_streams(&b, job->active + job->idle);
    int64_t began = bench_now_ns();
    if (job->way == WAY_READ || job->way == WAY_PEEK)
        run_in(&b);
    else
        run_out(&b);
    double seconds = (double)(bench_now_ns() - began) / 1e9;
    revdial_engine_info info;
    revdial_engine_get_info(b.e, &info);
    if (info.rx_frames + info.tx_frames < count) bench_die("%s: frames are missing", job->name);
    printf("%s per_s=%.0f MBps=%.0f what=\"%s\"\n", job->name, (double)count / seconds,
           (double)count * job->bytes / seconds / BENCH_MB, job->what);
    revdial_engine_free(b.e);
    free(b.frames);
    return 0;
}

static int run_memory(uint32_t count)
{
    static const engine_job none = {"memory", WAY_READ, 0, 1, 0, ""};
    engine_bench b = {.job = &none};
    revdial_engine_info before, after;
    start_engine(&b);
    open_streams(&b, 16);
    revdial_engine_get_info(b.e, &before);
    revdial_engine_free(b.e);
    start_engine(&b);
    open_streams(&b, 16 + count);
    revdial_engine_get_info(b.e, &after);
    printf("memory streams=%u bytes_each=%.1f\n", count,
           (double)(after.memory_bytes - before.memory_bytes) / count);
    revdial_engine_free(b.e);
    return 0;
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 10) : 1000000;
    if (!strcmp(name, "memory")) return run_memory((uint32_t)count);
    for (size_t i = 0; i < sizeof jobs / sizeof jobs[0]; i++)
        if (!strcmp(name, jobs[i].name)) return run_job(&jobs[i], count);
    fprintf(stderr, "usage: engine JOB COUNT\njobs: memory");
    for (size_t i = 0; i < sizeof jobs / sizeof jobs[0]; i++) fprintf(stderr, " %s", jobs[i].name);
    fputc('\n', stderr);
    return 2;
}
