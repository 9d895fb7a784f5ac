/* Asking for memory before it is needed. */
#ifndef VIPSEC_FETCH_H
#define VIPSEC_FETCH_H

enum { FETCH_LINE = 64 };

/* gcc takes a function that does nothing but prefetch for one without effect, and drops calls of it: the statement
 * that makes no code is an effect. */
static inline __attribute__((always_inline)) void fetch_line(const void *at) {
    __builtin_prefetch(at);
    __asm__ volatile("");
}

#endif
