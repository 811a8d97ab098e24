// A thin link with a deep queue, for real TCP: a router that this machine's own packets pass.
//     build/bench/router MBIT_PER_S ONE_WAY_MS QUEUE_KB
// Prints "link NEAR FAR": who connects to FAR reaches what listens on NEAR, which is this machine,
// over a device of its own. Each direction has its rate, its delay and a queue that drops what does
// not fit. Needs /dev/net/tun and the right to set up a device (root).
//
// A packet that comes out of the device is for FAR. It goes back into it with source and
// destination exchanged: then it is from FAR and for NEAR, and the checksums are what they were.
#include "bench.h"

#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>

#include <linux/if_tun.h>

enum { MTU = 1500, PACKETS = 1 << 15, PORTS = 1 << 16 };

typedef struct router_packet {
    int64_t due_ns;
    uint32_t len;
    uint8_t bytes[MTU];
} router_packet;

typedef struct router_way {
    router_packet *ring;  // in the order of due_ns
    uint32_t first, end;
    int64_t free_ns;  // when the link has sent what it was given
} router_way;

typedef struct router {
    int fd;
    double bytes_per_ns;
    int64_t delay_ns;
    double queue;
    router_way ways[2];
    uint8_t is_server[PORTS];  // somebody has connected to this port
} router;

static void device_call(int fd, unsigned long what, struct ifreq *r, const char *name)
{
    if (ioctl(fd, what, r) < 0) bench_die("router: %s: %s", name, strerror(errno));
}

static void device_address(int fd, struct ifreq *r, unsigned long what, const char *text)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    inet_pton(AF_INET, text, &to.sin_addr);
    memcpy(&r->ifr_addr, &to, sizeof to);
    device_call(fd, what, r, text);
}

// Returns the device's descriptor.
static int device_new(const char *near, const char *far)
{
    struct ifreq r = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK), s = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || s < 0) bench_die("router: /dev/net/tun: %s", strerror(errno));
    snprintf(r.ifr_name, IFNAMSIZ, "thin%%d");
    device_call(fd, TUNSETIFF, &r, "TUNSETIFF");
    device_address(s, &r, SIOCSIFADDR, near);
    device_address(s, &r, SIOCSIFDSTADDR, far);
    device_address(s, &r, SIOCSIFNETMASK, "255.255.255.255");
    r.ifr_qlen = 10000;
    device_call(s, SIOCSIFTXQLEN, &r, "queue");
    r.ifr_flags = IFF_UP | IFF_RUNNING | IFF_POINTOPOINT;
    device_call(s, SIOCSIFFLAGS, &r, "up");
    close(s);
    return fd;
}

// Exchanges source and destination, and tells which way the packet goes: 1 towards the port that
// somebody has connected to. -1: it is no TCP over IPv4.
static int packet_turn(router *r, uint8_t *p, uint32_t len)
{
    uint8_t source[4];
    const uint8_t *tcp = p + 4 * (p[0] & 15u);
    unsigned to;
    if (len < 40 || p[0] >> 4 != 4 || p[9] != IPPROTO_TCP || tcp + 20 > p + len) return -1;
    memcpy(source, p + 12, 4);
    memcpy(p + 12, p + 16, 4);
    memcpy(p + 16, source, 4);
    to = (unsigned)tcp[2] << 8 | tcp[3];
    if ((tcp[13] & 18) == 2) r->is_server[to] = 1;  // SYN without ACK
    return r->is_server[to];
}

static void way_add(router *r, router_way *w, const uint8_t *bytes, uint32_t len)
{
    int64_t now = bench_now_ns(), from = w->free_ns > now ? w->free_ns : now;
    router_packet *p = &w->ring[w->end % PACKETS];
    if ((double)(from - now) * r->bytes_per_ns > r->queue || w->end - w->first == PACKETS) return;
    w->free_ns = from + (int64_t)(len / r->bytes_per_ns);
    p->due_ns = w->free_ns + r->delay_ns;
    p->len = len;
    memcpy(p->bytes, bytes, len);
    w->end++;
}

static void router_take(router *r)
{
    uint8_t bytes[MTU];
    ssize_t n;
    while ((n = read(r->fd, bytes, sizeof bytes)) > 0) {
        int way = packet_turn(r, bytes, (uint32_t)n);
        if (way >= 0) way_add(r, &r->ways[way], bytes, (uint32_t)n);
    }
}

// Hands over what is due. Returns when there is more.
static int64_t router_give(router *r)
{
    int64_t next = INT64_MAX;
    for (int i = 0; i < 2; i++) {
        router_way *w = &r->ways[i];
        for (; w->first != w->end; w->first++) {
            const router_packet *p = &w->ring[w->first % PACKETS];
            if (p->due_ns > bench_now_ns()) {
                if (p->due_ns < next) next = p->due_ns;
                break;
            }
            if (write(r->fd, p->bytes, p->len) < 0 && errno != EAGAIN)
                bench_die("router: %s", strerror(errno));
        }
    }
    return next;
}

static void router_run(router *r)
{
    struct pollfd p = {.fd = r->fd, .events = POLLIN};
    for (;;) {
        int64_t wait = router_give(r) - bench_now_ns();
        struct timespec t = {.tv_nsec = wait < 0 ? 0 : wait < 999999999 ? wait : 999999999};
        if (ppoll(&p, 1, &t, NULL) < 0 && errno != EINTR) bench_die("router: poll");
        router_take(r);
    }
}

int main(int argc, char **argv)
{
    static router r;
    char near[32], far[32];
    int net = getpid() % 250 + 1;
    if (argc != 4) bench_die("usage: router MBIT_PER_S ONE_WAY_MS QUEUE_KB");
    r.bytes_per_ns = atof(argv[1]) / 8000;
    r.delay_ns = (int64_t)(atof(argv[2]) * 1e6);
    r.queue = atof(argv[3]) * 1000;
    for (int i = 0; i < 2; i++) r.ways[i].ring = bench_alloc(PACKETS, sizeof *r.ways[i].ring);
    snprintf(near, sizeof near, "10.77.%d.1", net);
    snprintf(far, sizeof far, "10.77.%d.2", net);
    r.fd = device_new(near, far);
    printf("link %s %s\n", near, far);
    fflush(stdout);
    router_run(&r);
}
