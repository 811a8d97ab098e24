// With -DTEST_HELGRIND the atomics of C11 tell helgrind what they are: it sees plain loads where
// there are atomic ones. It neither checks them nor misses that what was written before a store is
// seen after a load. GCC only.    make helgrind
#ifndef REVDIAL_TEST_HELGRIND_H
#define REVDIAL_TEST_HELGRIND_H

#include <stdatomic.h>
#include <valgrind/helgrind.h>

#undef atomic_compare_exchange_strong
#undef atomic_exchange
#undef atomic_exchange_explicit
#undef atomic_fetch_add
#undef atomic_fetch_add_explicit
#undef atomic_fetch_sub
#undef atomic_fetch_sub_explicit
#undef atomic_load
#undef atomic_load_explicit
#undef atomic_store
#undef atomic_store_explicit

// One atomic access: what came before it in other threads has happened, and before what follows.
#define HELGRIND_SEEN(p, expression) \
    __extension__({ \
        VALGRIND_HG_DISABLE_CHECKING((p), sizeof *(p)); \
        ANNOTATE_HAPPENS_BEFORE(p); \
        __auto_type helgrind_value_ = (expression); \
        ANNOTATE_HAPPENS_AFTER(p); \
        helgrind_value_; \
    })
// A load tells nobody anything.
#define HELGRIND_LOAD(p) \
    __extension__({ \
        VALGRIND_HG_DISABLE_CHECKING((p), sizeof *(p)); \
        __auto_type helgrind_value_ = __atomic_load_n((p), __ATOMIC_SEQ_CST); \
        ANNOTATE_HAPPENS_AFTER(p); \
        helgrind_value_; \
    })

#define atomic_compare_exchange_strong(p, from, to) \
    HELGRIND_SEEN(p, \
                  __atomic_compare_exchange_n(p, from, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
#define atomic_exchange(p, v) HELGRIND_SEEN(p, __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST))
#define atomic_exchange_explicit(p, v, order) atomic_exchange(p, v)
#define atomic_fetch_add(p, v) HELGRIND_SEEN(p, __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST))
#define atomic_fetch_add_explicit(p, v, order) atomic_fetch_add(p, v)
#define atomic_fetch_sub(p, v) HELGRIND_SEEN(p, __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST))
#define atomic_fetch_sub_explicit(p, v, order) atomic_fetch_sub(p, v)
#define atomic_load(p) HELGRIND_LOAD(p)
#define atomic_load_explicit(p, order) HELGRIND_LOAD(p)
#define atomic_store(p, v) ((void)atomic_exchange(p, v))
#define atomic_store_explicit(p, v, order) ((void)atomic_exchange(p, v))

#endif
