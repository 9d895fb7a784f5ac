/*
 * The anti-replay window and the upper half of extended sequence numbers (RFC 4303 3.4.3, appendix A2).
 *
 * A window of W accepts exactly the numbers T-W+1 .. T and everything above T, T being the highest number that was
 * authenticated. The bit of a number stands at its remainder by the ring's size, a power of two and at least W: a
 * place is taken over only when the number that had it has left the window.
 *
 * Words are atomic because `replay_check` is also called without the SA's lock, before a packet is authenticated:
 * then it is a guess, and the call under the lock afterwards decides.
 */
#ifndef VIPSEC_REPLAY_H
#define VIPSEC_REPLAY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The words of the ring stand behind it. */
struct replay_ring {
    _Atomic uint32_t mask; /* numbers it has place for, less one: a power of two, 64 at least */
    _Atomic uint32_t size; /* W; 0: no check */
};

static inline uint64_t replay_word(const struct replay_ring *ring, uint64_t sequence) {
    const _Atomic uint64_t *words = (const void *)(ring + 1);
    return atomic_load_explicit(&words[(sequence & ring->mask) / 64], memory_order_relaxed);
}

static inline void replay_set_word(struct replay_ring *ring, uint64_t sequence, uint64_t word) {
    _Atomic uint64_t *words = (void *)(ring + 1);
    atomic_store_explicit(&words[(sequence & ring->mask) / 64], word, memory_order_relaxed);
}

static inline bool replay_seen(const struct replay_ring *ring, uint64_t sequence) {
    return (replay_word(ring, sequence) >> (sequence & 63) & 1) != 0;
}

static inline void replay_mark(struct replay_ring *ring, uint64_t sequence) {
    replay_set_word(ring, sequence, replay_word(ring, sequence) | 1ULL << (sequence & 63));
}

/*
 * The whole number of a packet that carries `low`; false: left of the window, seen, or outside the 64-bit space.
 * RFC 4303 A2.2: the window lies in one subspace of 2**32 numbers (A) or spans two (B).
 */
static inline bool replay_check(const struct replay_ring *ring, uint64_t top, bool esn, uint32_t low,
                                uint64_t *sequence) {
    const uint32_t size = ring->size;
    *sequence = low;
    if (size == 0) {
        return true;
    }
    if (esn) {
        const int64_t bottom = (int64_t)(uint32_t)top - (int64_t)size + 1;
        int64_t high = (int64_t)(top >> 32);
        if (bottom >= 0) {
            high += low < bottom;
        } else {
            high -= low >= (uint32_t)bottom;
        }
        if (high < 0 || high > UINT32_MAX) {
            return false;
        }
        *sequence = (uint64_t)high << 32 | low;
    }
    return *sequence > top || (top - *sequence < size && !replay_seen(ring, *sequence));
}

/* Records a number that replay_check returned and that was authenticated. Returns the new top. */
static inline uint64_t replay_accept(struct replay_ring *ring, uint64_t top, uint64_t sequence) {
    if (sequence > top) {
        const uint64_t ahead = sequence - top;
        if (ahead > ring->mask) {
            for (uint64_t n = 0; n <= ring->mask; n += 64) {
                replay_set_word(ring, n, 0);
            }
        } else {
            /* The numbers between were not seen: their places still hold what left the window. */
            for (uint64_t n = top + 1, last;; n = last + 1) {
                last = (n | 63) < sequence ? n | 63 : sequence;
                const uint64_t fresh = (~0ULL >> (63 - (last - n))) << (n & 63);
                replay_set_word(ring, n, replay_word(ring, n) & ~fresh);
                if (last == sequence) {
                    break;
                }
            }
        }
        top = sequence;
    }
    replay_mark(ring, sequence);
    return top;
}

/* Places that a window of `size` needs. */
static inline uint32_t replay_places(uint32_t size) {
    uint32_t places = 64;
    while (places < size) {
        places *= 2;
    }
    return places;
}

/* Makes `to` a window of `size` that knows what `from` has seen; everything else below `top` counts as seen. `from`
 * NULL: nothing was recorded. `to` has room for replay_places(size). */
static inline void replay_copy(struct replay_ring *to, uint32_t size, const struct replay_ring *from, uint64_t top) {
    to->mask = replay_places(size) - 1;
    to->size = size;
    for (uint64_t n = 0; n <= to->mask; n += 64) {
        replay_set_word(to, n, ~0ULL);
    }
    const uint32_t before = from == NULL ? 0 : from->size, known = before < size ? before : size;
    for (uint64_t behind = 0; behind < known; behind++) {
        const uint64_t n = top - behind;
        if (!replay_seen(from, n)) {
            replay_set_word(to, n, replay_word(to, n) & ~(1ULL << (n & 63)));
        }
    }
}

#endif
