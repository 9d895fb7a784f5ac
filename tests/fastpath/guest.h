/*
 * A driver of virtqueues of both formats, for C programs that test the device side: it keeps no rule by itself that the
 * caller does not ask for, and offers descriptors one after the other around the ring.
 */
#ifndef TEST_GUEST_H
#define TEST_GUEST_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "bytes.h"
#include "vipsec.h"

enum { GUEST_RING = 64, GUEST_AREA = 0x1000, GUEST_DRIVER = 0x800, GUEST_DEVICE = 0xc00, GUEST_MOST = 8 };

/* One end of a queue: its three areas stand in GUEST_AREA bytes from `area`. */
struct guest_ring {
    uint8_t *area;
    uint32_t size;
    bool packed;
    uint16_t place, round; /* next descriptor; packed: wrap counter */
    uint16_t available;    /* split: index */
    uint16_t seen, seen_place, seen_round;
    uint32_t free;
    uint8_t held[GUEST_RING]; /* descriptors of the buffer whose number this is */
};

struct guest_piece {
    uint64_t address;
    uint32_t len;
    bool writable;
};

static inline void guest_ring_start(struct guest_ring *ring, uint8_t *area, uint32_t size, bool packed) {
    memset(area, 0, GUEST_AREA);
    *ring = (struct guest_ring){
        .area = area, .size = size, .packed = packed, .round = 1, .seen_round = 1, .free = size};
}

static inline struct vipsec_queue_config guest_ring_config(const struct guest_ring *ring, uint64_t address,
                                                           uint32_t flags) {
    return (struct vipsec_queue_config){
        .desc = address, .driver = address + GUEST_DRIVER, .device = address + GUEST_DEVICE, .size = ring->size,
        .flags = flags | (ring->packed ? VIPSEC_QUEUE_PACKED : 0u), .call_fd = -1, .err_fd = -1};
}

static inline uint16_t guest_flags(const struct guest_ring *ring, const struct guest_piece *piece, bool more) {
    const unsigned round = ring->packed ? (ring->round ? 1u << 7 : 1u << 15) : 0;
    return (uint16_t)((more ? 1u : 0u) | (piece->writable ? 2u : 0u) | round);
}

/* Offers one buffer of at most GUEST_MOST pieces; false: no room. Shown to the device at once. */
static inline bool guest_offer(struct guest_ring *ring, const struct guest_piece *pieces, uint32_t count) {
    if (ring->free < count || count == 0) {
        return false;
    }
    const uint16_t head = ring->place;
    uint64_t first = 0; /* shown last: of a packed ring it is what makes the buffer available */
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *desc = ring->area + 16 * ring->place;
        const uint64_t flags = guest_flags(ring, &pieces[i], i + 1 < count);
        const uint64_t next = (ring->place + 1u) % ring->size;
        const uint64_t word = pieces[i].len | (ring->packed ? (uint64_t)head << 32 | flags << 48 : flags << 32 | next << 48);
        __atomic_store_n((uint64_t *)(void *)desc, pieces[i].address, __ATOMIC_RELAXED);
        if (i == 0) {
            first = word;
        } else {
            __atomic_store_n((uint64_t *)(void *)(desc + 8), word, __ATOMIC_RELAXED);
        }
        if (++ring->place == ring->size) {
            ring->place = 0;
            ring->round ^= 1;
        }
    }
    __atomic_store_n((uint64_t *)(void *)(ring->area + 16 * head + 8), first, __ATOMIC_RELEASE);
    if (!ring->packed) {
        uint16_t *driver = (uint16_t *)(void *)(ring->area + GUEST_DRIVER);
        __atomic_store_n(&driver[2 + ring->available % ring->size], head, __ATOMIC_RELAXED);
        __atomic_store_n(&driver[1], ++ring->available, __ATOMIC_RELEASE);
    }
    ring->held[head] = (uint8_t)count;
    ring->free -= count;
    return true;
}

/* Takes back one buffer: its number (the place of its first descriptor), or -1. */
static inline int guest_take(struct guest_ring *ring, uint32_t *written) {
    uint32_t head;
    if (ring->packed) {
        const uint8_t *desc = ring->area + 16 * ring->seen_place;
        const uint64_t word = __atomic_load_n((const uint64_t *)(const void *)(desc + 8), __ATOMIC_ACQUIRE);
        if ((word >> 55 & 1) != ring->seen_round || word >> 63 != ring->seen_round) {
            return -1;
        }
        head = (uint16_t)(word >> 32);
        *written = (uint32_t)word;
    } else {
        const uint16_t *used = (const uint16_t *)(const void *)(ring->area + GUEST_DEVICE);
        if (__atomic_load_n(&used[1], __ATOMIC_ACQUIRE) == ring->seen) {
            return -1;
        }
        const uint8_t *entry = ring->area + GUEST_DEVICE + 4 + 8 * (ring->seen++ % ring->size);
        head = load_le32(entry);
        *written = load_le32(entry + 4);
    }
    if (head >= ring->size || ring->held[head] == 0) {
        return -1; /* a ring that was spoilt */
    }
    ring->seen_place = (uint16_t)(ring->seen_place + ring->held[head]);
    if (ring->seen_place >= ring->size) {
        ring->seen_place = (uint16_t)(ring->seen_place - ring->size);
        ring->seen_round ^= 1;
    }
    ring->free += ring->held[head];
    ring->held[head] = 0;
    return (int)head;
}

#endif
