/* Shared by the timing loops. */
#ifndef BENCH_H
#define BENCH_H
#include <stdint.h>
#include <time.h>

struct vipsec_sa_table;

/* `count` SAs in each direction, made by bench_sas_new. */
struct bench_sas {
    struct vipsec_sa_table *table;
    uint32_t count;
};

static inline double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#endif
