// A bottleneck between two network namespaces, for real TCP. Needs root and /dev/net/tun.
//   link NS_A ADDRESS_A NS_B ADDRESS_B KBIT DELAY_MS QUEUE_KB LOSS_PERCENT
// Each namespace gets a device "thin" with its address and a route to the other's. Each direction
// has its own rate, queue that drops what it has no room for, delay, and loss. Prints "up"; at TERM
// packets, drops and losses of each direction.
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { SLOTS = 8192, MTU = 1500 };

typedef struct packet {
    int64_t due_ns;
    size_t len;
    uint8_t bytes[MTU];
} packet;

typedef struct direction {
    packet ring[SLOTS];  // in the order of due_ns
    unsigned head, tail;
    int64_t free_ns;  // when all that was taken is sent
    unsigned passed, dropped, lost;
} direction;

static direction ways[2];
static int64_t bit_ps, delay_ns, queue_ns;
static double loss;
static volatile sig_atomic_t is_over;

static void on_term(int number)
{
    (void)number;
    is_over = 1;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

// A device belongs to the namespace in which it is opened.
static int open_end(const char *ns, const char *address, const char *peer)
{
    char text[512];
    struct ifreq ifr = {0};
    int fd, there, home = open("/proc/self/ns/net", O_RDONLY);
    snprintf(text, sizeof text, "/run/netns/%s", ns);
    there = open(text, O_RDONLY);
    if (home < 0 || there < 0 || setns(there, CLONE_NEWNET) != 0) die(text);
    fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    strcpy(ifr.ifr_name, "thin");
    ifr.ifr_flags = IFF_TUN | IFF_NO_PI;
    if (fd < 0 || ioctl(fd, TUNSETIFF, &ifr) != 0) die("/dev/net/tun");
    if (setns(home, CLONE_NEWNET) != 0) die("setns");
    close(home);
    close(there);
    snprintf(text, sizeof text,
             "ip -n %s addr add %s peer %s dev thin && ip -n %s link set thin up mtu %d", ns,
             address, peer, ns, MTU);
    if (system(text) != 0) die("ip");
    return fd;
}

// What the system sends goes into the queue, if there is room.
static void take(int fd, direction *d)
{
    for (;;) {
        packet *p = &d->ring[d->tail % SLOTS];
        ssize_t n = read(fd, p->bytes, MTU);
        int64_t now = now_ns(), start = d->free_ns > now ? d->free_ns : now;
        if (n <= 0) return;
        if (start - now > queue_ns || d->tail - d->head == SLOTS - 1) {
            d->dropped++;
            continue;
        }
        d->free_ns = start + n * 8 * bit_ps / 1000;
        if (drand48() * 100 < loss) {
            d->lost++;
            continue;
        }
        p->len = (size_t)n;
        p->due_ns = d->free_ns + delay_ns;
        d->passed++;
        d->tail++;
    }
}

// Returns when the next packet is due.
static int64_t give(int fd, direction *d)
{
    for (; d->head != d->tail; d->head++) {
        const packet *p = &d->ring[d->head % SLOTS];
        if (p->due_ns > now_ns()) return p->due_ns;
        if (write(fd, p->bytes, p->len) < 0 && errno == EAGAIN) return now_ns() + 1000000;
    }
    return INT64_MAX;
}

static void run(const int fds[2])
{
    struct pollfd polls[2] = {{fds[0], POLLIN, 0}, {fds[1], POLLIN, 0}};
    while (!is_over) {
        int64_t a = give(fds[1], &ways[0]), b = give(fds[0], &ways[1]);
        int64_t wait = (a < b ? a : b) - now_ns();
        if (wait > 100000000) wait = 100000000;
        struct timespec t = {0, wait > 0 ? (long)wait : 0};
        if (ppoll(polls, 2, &t, NULL) < 0 && errno != EINTR) die("ppoll");
        take(fds[0], &ways[0]);
        take(fds[1], &ways[1]);
    }
}

int main(int argc, char **argv)
{
    int fds[2];
    double kbit;
    if (argc != 9) {
        fputs("link NS ADDRESS NS ADDRESS KBIT DELAY_MS QUEUE_KB LOSS_PERCENT\n", stderr);
        return 2;
    }
    kbit = atof(argv[5]);
    bit_ps = (int64_t)(1e9 / kbit);
    delay_ns = (int64_t)(atof(argv[6]) * 1e6);
    queue_ns = (int64_t)(atof(argv[7]) * 8e9 / kbit);
    loss = atof(argv[8]);
    signal(SIGTERM, on_term);
    fds[0] = open_end(argv[1], argv[2], argv[4]);
    fds[1] = open_end(argv[3], argv[4], argv[2]);
    puts("up");
    fflush(stdout);
    run(fds);
    for (int i = 0; i < 2; i++)
        printf("%u passed, %u dropped, %u lost\n", ways[i].passed, ways[i].dropped, ways[i].lost);
    return 0;
}
