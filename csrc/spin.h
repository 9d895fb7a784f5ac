/* A lock for a few instructions, that nobody sleeps on. 0: free. */
#ifndef VIPSEC_SPIN_H
#define VIPSEC_SPIN_H

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

/* Between two looks at what another thread will change. */
static inline void spin_pause(void) {
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
}

static inline void spin_lock(_Atomic uint32_t *lock) {
    unsigned spins = 0;
    while (atomic_exchange_explicit(lock, 1, memory_order_acquire) != 0) {
        while (atomic_load_explicit(lock, memory_order_relaxed) != 0) {
            if (++spins % 128 == 0) {
                sched_yield(); /* whoever holds it may have lost its processor */
            }
        }
    }
}

static inline void spin_unlock(_Atomic uint32_t *lock) { atomic_store_explicit(lock, 0, memory_order_release); }

#endif
