// Signals, and what a process needs before it serves.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "program.h"

// timeout(1) and some supervisors send TERM to a process and then to its group: two signals that
// come within this time are one.
enum { PROG_ONE_SIGNAL_MS = 1000 };

volatile sig_atomic_t prog_hup;
volatile sig_atomic_t prog_usr2;
atomic_int prog_stop;
static volatile sig_atomic_t prog_stop_ms;       // when it was set
static volatile sig_atomic_t prog_wake_fd = -1;  // written to, so that a poll(2) returns

void prog_standard_streams(void)
{
    int fd;
    do fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= 2);
    if (fd > 2) close(fd);
}

// A clock in milliseconds that wraps after 24 days: only differences mean something.
static int prog_now_ms(void)
{
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int)(((uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000) & INT_MAX);
}

static void prog_on_signal(int sig)
{
    int saved = errno;
    if (sig == SIGHUP) {
        prog_hup = 1;
    } else if (sig == SIGUSR2) {
        prog_usr2 = 1;
    } else if (!prog_stop) {
        prog_stop_ms = prog_now_ms();
        prog_stop = 1;
    } else if (((prog_now_ms() - prog_stop_ms) & INT_MAX) >= PROG_ONE_SIGNAL_MS) {
        _exit(PROG_FAILED);
    }
    if (prog_wake_fd >= 0 && write((int)prog_wake_fd, "", 1) < 0) {
        // The pipe is full: then its reader wakes up without this byte.
    }
    errno = saved;
}

static int prog_catch(int sig, void (*handler)(int sig))
{
    struct sigaction act;
    memset(&act, 0, sizeof act);
    sigemptyset(&act.sa_mask);
    act.sa_handler = handler;
    return sigaction(sig, &act, NULL);
}

int prog_catch_requests(void)
{
    if (prog_catch(SIGHUP, prog_on_signal) != 0 || prog_catch(SIGUSR2, prog_on_signal) != 0)
        return -1;
    return prog_catch(SIGUSR1, SIG_IGN);
}

int prog_catch_signals(void)
{
    if (prog_catch(SIGTERM, prog_on_signal) != 0 || prog_catch(SIGINT, prog_on_signal) != 0)
        return -1;
    return prog_catch(SIGPIPE, SIG_IGN);  // the reader of our stdout may go away
}

void prog_signals_block(sigset_t *before)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, before);
}

void prog_signals_restore(const sigset_t *before)
{
    pthread_sigmask(SIG_SETMASK, before, NULL);
}

int prog_thread_start(pthread_t *thread, void *(*run)(void *ud), void *ud)
{
    sigset_t before;
    prog_signals_block(&before);
    errno = pthread_create(thread, NULL, run, ud);
    prog_signals_restore(&before);
    return errno == 0 ? 0 : -1;
}

int prog_cond_open(pthread_cond_t *cond)
{
    pthread_condattr_t attr;
    int r = pthread_condattr_init(&attr);
    if (r != 0) return r;
#ifndef __APPLE__  // which waits for a duration instead
    r = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
#endif
    if (r == 0) r = pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
    return r;
}

int prog_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, int ms)
{
    struct timespec until = {0, 0};
#ifndef __APPLE__
    clock_gettime(CLOCK_MONOTONIC, &until);
#endif
    until.tv_nsec += ms % 1000 * 1000000L;
    until.tv_sec += ms / 1000 + until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
#ifdef __APPLE__
    return pthread_cond_timedwait_relative_np(cond, lock, &until);
#else
    return pthread_cond_timedwait(cond, lock, &until);
#endif
}

int prog_nonblocking(int fd)
{
    return fcntl(fd, F_SETFL, O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ? -1 : 0;
}

int prog_pipe_open(int ends[2])
{
    ends[0] = ends[1] = -1;
    if (pipe(ends) != 0) return -1;
    return prog_nonblocking(ends[0]) == 0 ? prog_nonblocking(ends[1]) : -1;
}

void prog_pipe_close(const int ends[2])
{
    for (int i = 0; i < 2; i++)
        if (ends[i] >= 0) close(ends[i]);
}

void prog_signals_wake(int fd)
{
    prog_wake_fd = fd;
    if (fd >= 0 && (prog_hup || prog_usr2 || prog_stop) && write(fd, "", 1) < 0) {
        // A signal that came before has written since.
    }
}

void prog_raise_descriptor_limit(prog_log *log)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        prog_logf(log, REVDIAL_LOG_WARN, "limit.nofile", "cannot raise it: %s", strerror(errno));
}
