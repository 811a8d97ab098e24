// revdial.h compiled against the simulated world: each call of the system that it makes by RVD_SYS
// is fault_call, which is sim_call or fails; its threads, locks and heap are the world's, and what
// waits or opens a descriptor by any other name does not link.
#ifndef REVDIAL_TEST_WORLD_NAMES_H
#define REVDIAL_TEST_WORLD_NAMES_H

#include "world_faults.h"

static void world_assert(const char *what, int line)
{
    world_fail("revdial.h:%d asserts %s", line, what);
    if (!wd.self) abort();
    wait_now(-1, "nothing: it has failed");
}

#define RVD_SYS(call) fault_##call
#define REVDIAL_ASSERT(c) ((c) ? (void)0 : world_assert(#c, __LINE__))
#define REVDIAL_SELF_CHECK

#define pthread_t sim_pthread_t
#define pthread_mutex_t sim_pthread_mutex_t
#define pthread_cond_t sim_pthread_cond_t
#define pthread_create sim_pthread_create
#define pthread_join sim_pthread_join
#define pthread_detach sim_pthread_detach
#define pthread_self sim_pthread_self
#define pthread_equal sim_pthread_equal
#define pthread_sigmask sim_pthread_sigmask
#define pthread_mutex_init fault_pthread_mutex_init
#define pthread_mutex_destroy sim_pthread_mutex_destroy
#define pthread_mutex_lock sim_pthread_mutex_lock
#define pthread_mutex_trylock sim_pthread_mutex_trylock
#define pthread_mutex_unlock sim_pthread_mutex_unlock
#define pthread_cond_init fault_pthread_cond_init
#define pthread_cond_destroy sim_pthread_cond_destroy
#define pthread_cond_wait sim_pthread_cond_wait
#define pthread_cond_signal sim_pthread_cond_signal
#define pthread_cond_broadcast sim_pthread_cond_broadcast
#define sched_yield sim_sched_yield
#define munmap sim_munmap
#define gethostname sim_gethostname
#define freeaddrinfo sim_freeaddrinfo
#define realloc fault_realloc
#define free sim_free

// Made directly, none of these would be simulated.
#define accept world_does_not_have_accept
#define accept4 world_does_not_have_accept4
#define clock_gettime world_does_not_have_clock_gettime
#define close world_does_not_have_close
#define connect world_does_not_have_connect
#define epoll_create1 world_does_not_have_epoll_create1
#define epoll_ctl world_does_not_have_epoll_ctl
#define epoll_wait world_does_not_have_epoll_wait
#define eventfd world_does_not_have_eventfd
#define getaddrinfo world_does_not_have_getaddrinfo
#define getrandom world_does_not_have_getrandom
#define listen world_does_not_have_listen
#define nanosleep world_does_not_have_nanosleep
#define poll world_does_not_have_poll
#define pthread_cond_timedwait world_does_not_have_pthread_cond_timedwait
#define read world_does_not_have_read
#define readv world_does_not_have_readv
#define recv world_does_not_have_recv
#define recvmsg world_does_not_have_recvmsg
#define select world_does_not_have_select
#define send world_does_not_have_send
#define sendmsg world_does_not_have_sendmsg
#define sleep world_does_not_have_sleep
#define socket world_does_not_have_socket
#define splice world_does_not_have_splice
#define syscall world_does_not_have_syscall
#define usleep world_does_not_have_usleep
#define write world_does_not_have_write

#define REVDIAL_IMPLEMENTATION
#include "revdial.h"

#undef free
#undef realloc

#endif
