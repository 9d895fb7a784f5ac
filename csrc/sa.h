/*
 * One security association in memory. A packet needs, side by side in a slot:
 *
 *   struct sa        what the configuration says, made ready for headers. Constant once readers can see it: MODIFY
 *                    fills the other one of the two that an SA has and turns the table's pointer to it.
 *   struct sa_live   sequence number, counters, replay window: one for the life of the SA, under a lock of its own.
 *                    One locked instruction per packet makes all of it exact; an atomic addition each would be three.
 *   the key          round keys and low hash powers.
 *
 * Everything else is in struct sa_rest. With many SAs most of a slot comes from memory for each packet, which is what
 * their number costs: so slots are small, of whole lines, and slots made one after the other are neighbours.
 */
#ifndef VIPSEC_SA_H
#define VIPSEC_SA_H

#include <stdatomic.h>
#include <stddef.h>

#include "gcm.h"
#include "replay.h"
#include "spin.h"

enum { SA_LINE = 64, SA_OUTER_MAX = 40, SA_SMALL_WINDOW = 64 };

enum sa_flag {
    SA_TUNNEL = 1,
    SA_ESN = 2,
    SA_UDP = 4,
    SA_COPY_DSCP = 8,
    SA_DEC_TTL = 16,
    SA_COPY_DF = 32,
    SA_ECN = 64,
    SA_LIMITED = 128, /* any limit is not 0, or the SA is frozen */
};

struct sa_live {
    _Atomic uint32_t lock;
    uint32_t id;
    _Atomic uint64_t sequence; /* outbound: used last; inbound: highest authenticated */
    _Atomic uint64_t packets;
    _Atomic uint64_t bytes;
    uint64_t iv_base;                 /* outbound */
    struct replay_ring *_Atomic ring; /* inbound: &small, or allocated */
    struct replay_ring small;
    union {
        uint64_t small_words[SA_SMALL_WINDOW / 64]; /* inbound */
        _Atomic uint64_t ceiling;                   /* outbound: the last number that may be used for now */
    };
};

struct sa {
    uint8_t outer[SA_OUTER_MAX]; /* template of the tunnel header: 20 or 40 bytes */
    uint8_t ports[4];            /* of the UDP header */
    int32_t to_slot;             /* bytes from here */
    uint8_t spi[4];              /* network order */
    uint8_t salt[4];
    uint16_t outer_sum; /* of the IPv4 template */
    uint8_t outer_len;  /* 20, 40; 0: transport mode or inbound */
    uint8_t flags;
    uint8_t tos;        /* configured DSCP, ECN 0 */
    uint8_t df;
    uint8_t icv_len;
    uint8_t long_key; /* not of AES-128 */
};

struct sa_limits {
    uint64_t packets_soft, bytes_soft, packets_hard, bytes_hard;
    uint32_t frozen; /* 1: refuses everything */
    uint32_t reserved;
};

struct sa_slot {
    _Alignas(SA_LINE) struct sa sa;
    struct sa_live live;
    struct vipsec_gcm_key key;
};

struct sa_rest {
    struct gcm_powers powers;
    _Alignas(SA_LINE) struct sa sa; /* after every other MODIFY it is this one that counts */
    struct sa_limits limits[2];     /* of the slot's struct sa, of this one */
    _Atomic uint64_t refused[VIPSEC_REASON_COUNT];
    uint64_t first_sequence;
    struct sa_slot *next_free;
    uint32_t options;
    uint8_t direction;
};

/* Slots are made so many at a time. From the address of one part of an SA follow those of the others. */
enum { SA_CHUNK_SLOTS = 4096, SA_CHUNK_ALIGN = 8 << 20 };

struct sa_chunk {
    struct sa_slot slot[SA_CHUNK_SLOTS]; /* a page of the larger size that most machines have */
    struct sa_rest rest[SA_CHUNK_SLOTS];
    struct sa_chunk *next;
};

static_assert(sizeof(struct sa_live) == SA_LINE, "everything that changes per packet in one line");
static_assert(offsetof(struct sa_live, small_words) == offsetof(struct sa_live, small) + sizeof(struct replay_ring), "");
static_assert(sizeof(struct sa) == SA_LINE && sizeof(struct sa_slot) == 512, "no gaps");
static_assert(offsetof(struct sa_slot, key) == offsetof(struct sa_slot, live) + sizeof(struct sa_live), "neighbours");
static_assert(offsetof(struct sa_slot, key) % GCM_KEY_ALIGN == 0, "the key is aligned when the slot is");
static_assert(sizeof(struct sa_chunk) <= SA_CHUNK_ALIGN, "a chunk is found by its address");

static inline struct sa_chunk *sa_chunk_of(const void *part) {
    return (struct sa_chunk *)((uintptr_t)part & ~((uintptr_t)SA_CHUNK_ALIGN - 1));
}

/* Which of the two it is. */
static inline unsigned sa_which(const struct sa *sa) {
    return ((uintptr_t)sa & (SA_CHUNK_ALIGN - 1)) >= offsetof(struct sa_chunk, rest);
}

/* Its slot, without a look at it. */
static inline struct sa_slot *sa_slot_by_address(const struct sa *sa) {
    if (sa_which(sa) == 0) {
        return (struct sa_slot *)(uintptr_t)sa;
    }
    struct sa_chunk *chunk = sa_chunk_of(sa);
    return &chunk->slot[((uintptr_t)sa - (uintptr_t)chunk->rest) / sizeof chunk->rest[0]];
}

static inline struct sa_slot *sa_slot_of(const struct sa *sa) {
    return (struct sa_slot *)((uintptr_t)sa + (uintptr_t)(intptr_t)sa->to_slot);
}

static inline struct sa_rest *sa_rest_of(const struct sa_slot *slot) {
    struct sa_chunk *chunk = sa_chunk_of(slot);
    return &chunk->rest[slot - chunk->slot];
}

/* The other one of the two that an SA has. */
static inline struct sa *sa_other(const struct sa *sa) {
    struct sa_slot *slot = sa_slot_of(sa);
    return sa_which(sa) == 0 ? &sa_rest_of(slot)->sa : &slot->sa;
}

static inline struct sa_limits *sa_limits_of(const struct sa *sa) {
    return &sa_rest_of(sa_slot_of(sa))->limits[sa_which(sa)];
}

static inline struct sa_live *sa_live_of(const struct sa *sa) { return &sa_slot_of(sa)->live; }
static inline const struct vipsec_gcm_key *sa_key_of(const struct sa_live *live) { return (const void *)(live + 1); }

static inline void sa_lock(struct sa_live *live) { spin_lock(&live->lock); }
static inline void sa_unlock(struct sa_live *live) { spin_unlock(&live->lock); }

/* Moves from one lock to the next: packets of one SA behind one another take it once. */
static inline struct sa_live *sa_hold(struct sa_live *held, struct sa_live *live) {
    if (held != live) {
        if (held != NULL) {
            sa_unlock(held);
        }
        sa_lock(live);
    }
    return live;
}

/* SA_LIMITED if the version is. */
static inline void sa_set_limited(struct sa *sa) {
    const struct sa_limits *l = sa_limits_of(sa);
    const bool limited = (l->packets_soft | l->bytes_soft | l->packets_hard | l->bytes_hard | l->frozen) != 0;
    sa->flags = (uint8_t)(limited ? sa->flags | SA_LIMITED : sa->flags & ~SA_LIMITED);
}

/* Counters are written under the lock only; without it a value read is a guess. */
static inline uint64_t sa_get(const _Atomic uint64_t *counter) {
    return atomic_load_explicit(counter, memory_order_relaxed);
}
static inline void sa_set(_Atomic uint64_t *counter, uint64_t value) {
    atomic_store_explicit(counter, value, memory_order_relaxed);
}

/* A limit of N lets N packets through, or the packet with which N bytes are reached (RFC 4301 4.4.2.1). */
static inline bool sa_reached(uint64_t counter, uint64_t limit) { return limit != 0 && counter >= limit; }

/* What forbids another packet, or VIPSEC_REASON_NONE. */
static inline int sa_stopped_by(const struct sa *sa, const struct sa_live *live) {
    if ((sa->flags & SA_LIMITED) == 0) {
        return VIPSEC_REASON_NONE;
    }
    const struct sa_limits *limits = sa_limits_of(sa);
    if (limits->frozen) {
        return VIPSEC_REASON_HELD;
    }
    return sa_reached(sa_get(&live->packets), limits->packets_hard) ||
                   sa_reached(sa_get(&live->bytes), limits->bytes_hard)
               ? VIPSEC_REASON_HARD_LIFETIME
               : VIPSEC_REASON_NONE;
}

static inline bool sa_soft_expired(const struct sa *sa, const struct sa_live *live) {
    if ((sa->flags & SA_LIMITED) == 0) {
        return false;
    }
    const struct sa_limits *limits = sa_limits_of(sa);
    return sa_reached(sa_get(&live->packets), limits->packets_soft) ||
           sa_reached(sa_get(&live->bytes), limits->bytes_soft);
}

/* One packet more, under the lock. */
static inline void sa_count(struct sa_live *live, uint64_t octets) {
    sa_set(&live->packets, sa_get(&live->packets) + 1);
    sa_set(&live->bytes, sa_get(&live->bytes) + octets);
}

static inline void sa_refuse(const struct sa *sa, int reason) {
    atomic_fetch_add_explicit(&sa_rest_of(sa_slot_of(sa))->refused[reason], 1, memory_order_relaxed);
}

#endif
