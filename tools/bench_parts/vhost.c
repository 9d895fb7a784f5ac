/*
 * A driver that does nothing but send: it keeps the transmit virtqueue of a device full of the same buffers, as fast
 * as they come back.
 */
#include <stdint.h>
#include <unistd.h>

#include "bench.h"

enum { BATCH = 32, NO_NOTIFY = 1 };

/* How the device is notified: an eventfd, else a mapped register of 16 bits and what is written to it, else a call. */
struct bench_bell {
    int fd;
    void *word;
    uint16_t value;
    void (*call)(void);
};

/* The driver's end of a split virtqueue without VIRTIO_F_EVENT_IDX. Buffer i is descriptor i, filled already. */
struct bench_feed {
    uint16_t *avail;         /* flags, idx, ring[] */
    volatile uint16_t *used; /* flags, idx, then {u32 id, u32 len}[] */
    uint32_t size;
    struct bench_bell bell;
    uint16_t offered, seen;
    uint16_t free[32768];
    uint32_t free_count;
    uint64_t sent, bad; /* buffers that came back; those that had not been given or were written to */
    uint8_t out[32768];
};

size_t bench_feed_size(void) { return sizeof(struct bench_feed); }

/* Both areas stand as a new queue has them. */
void bench_feed_init(struct bench_feed *f, uint8_t *avail, uint8_t *used, uint32_t size, const struct bench_bell *bell) {
    __builtin_memset(f, 0, sizeof *f);
    f->avail = (uint16_t *)avail;
    f->used = (uint16_t *)used;
    f->size = size;
    f->bell = *bell;
    for (uint32_t i = 0; i < size; i++) f->free[f->free_count++] = (uint16_t)i;
    f->avail[0] = 1; /* no interrupts */
}

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void take_back(struct bench_feed *f) {
    const uint16_t idx = __atomic_load_n(&f->used[1], __ATOMIC_ACQUIRE);
    const volatile uint32_t *elements = (const volatile uint32_t *)(f->used + 2);
    for (; f->seen != idx; f->seen++) {
        const uint32_t at = f->seen % f->size * 2, id = elements[at];
        if (id >= f->size || !f->out[id] || elements[at + 1] != 0) {
            f->bad++;
            continue;
        }
        f->out[id] = 0;
        f->free[f->free_count++] = (uint16_t)id;
        f->sent++;
    }
}

static void ring(const struct bench_bell *bell) {
    const uint64_t one = 1;
    if (bell->fd >= 0) (void)!write(bell->fd, &one, sizeof one);
    else if (bell->word) *(volatile uint16_t *)bell->word = bell->value;
    else bell->call();
}

static void offer(struct bench_feed *f, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        const uint16_t id = f->free[--f->free_count];
        f->out[id] = 1;
        f->avail[2 + f->offered++ % f->size] = id;
    }
    __atomic_store_n(&f->avail[1], f->offered, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!(f->used[0] & NO_NOTIFY)) ring(&f->bell);
}

/* Sends for `duration` seconds, then waits up to a second for what is out; how many came back in the meantime, and
 * `rate`, buffers per second while it sent. `most`: buffers to send, 0 for as many as go. */
uint64_t bench_feed_run(struct bench_feed *f, double duration, uint64_t most, double *rate) {
    const uint64_t before = f->sent;
    uint64_t given = 0;
    const double begin = seconds();
    double now = begin;
    for (uint32_t turn = 0; now < begin + duration && (most == 0 || given < most); turn++) {
        take_back(f);
        uint32_t count = f->free_count;
        if (most != 0 && count > most - given) count = (uint32_t)(most - given);
        if (count >= BATCH || (most != 0 && count > 0)) {
            offer(f, count);
            given += count;
        } else {
            relax();
        }
        if (turn % 64 == 0) now = seconds();
    }
    take_back(f);
    now = seconds();
    *rate = (double)(f->sent - before) / (now - begin);
    for (const double limit = now + 1; f->free_count < f->size && seconds() < limit;) take_back(f);
    f->bad += f->size - f->free_count;
    return f->sent - before;
}

uint64_t bench_feed_bad(const struct bench_feed *f) { return f->bad; }
