/*
 * Device side of virtqueues, for code that works on guest memory in bursts.
 *
 * Every function here touches guest memory without a guard: the caller has entered a frame of guard.h over
 * queue->memory. A queue belongs to one thread at a time. Each word that the guest can write is loaded once,
 * checked, then used; what was learnt from it stays in private memory.
 */
#ifndef VIPSEC_RING_H
#define VIPSEC_RING_H

#include <string.h>

#include "dirty.h"
#include "memory.h"

enum {
    RING_MAX_SIZE = 32768,
    RING_BURST = 256, /* most chains that one ring_pop_many takes */
    RING_NEXT = 1,   /* flags of a descriptor */
    RING_WRITE = 2,
    RING_INDIRECT = 4,
};

struct vipsec_queue {
    struct vipsec_region recent; /* where the last buffer lay */
    struct vipsec_memory *memory;
    uint64_t *desc;
    union {
        struct {
            const uint16_t *avail; /* flags, idx, ring[size], used_event */
            uint16_t *used;        /* flags, idx */
            uint32_t *used_ring;   /* id, len by turns */
            uint16_t *avail_event;
        } split;
        struct {
            const uint32_t *driver_event;
            uint32_t *device_event;
        } packed;
    } u;
    /* Positions. Split: indices modulo 2^16. Packed: descriptors over two rounds, 0 to 2 x size - 1; in the first
     * round the wrap counter is 1. */
    uint32_t next_avail;
    uint32_t next_used;
    uint32_t seen_avail; /* split: available index as last read */
    uint32_t unsignalled; /* entries (split) or descriptors (packed) pushed since should_notify; saturates */
    uint32_t size;
    uint32_t out;  /* chains popped and not pushed */
    uint32_t held; /* their descriptors */
    bool is_packed, indirect, event_idx, in_order, listening, log_used;
    uint8_t fault;      /* enum vipsec_fault */
    uint64_t serial;    /* pops less unpops: of the chain popped last */
    uint64_t log_addr;  /* log_used: where the device area lies in the dirty log */
    struct inflight *inflight; /* NULL: not tracked */
    uint32_t heads;     /* numbers that a chain can have: the size (split) or 65536 (packed) */
    uint16_t *holds;    /* by head: descriptors of the chain that is out, 0 none */
    uint16_t *order;    /* in_order: heads in the order of pop, a ring of 2^k >= size */
    uint32_t order_mask;
    uint32_t order_first, order_end;
    /* Segments of the chains that are out. Starts anew when none is. */
    struct vipsec_segment *segments;
    struct vipsec_segment *segments_limit; /* a chain that starts here at the latest has room, however long it is */
    uint32_t segments_used;
    struct vipsec_queue_config config;
};

#define RING_HOT static inline __attribute__((always_inline))
#define RING_COLD static __attribute__((noinline, cold))

/* ---- words of guest memory ---------------------------------------------------------------- */

typedef uint64_t ring_loose64 __attribute__((aligned(1), may_alias)); /* indirect tables lie anywhere */
typedef uint64_t ring_half64 __attribute__((aligned(4), may_alias));  /* used elements */

typedef uint64_t ring_vector __attribute__((vector_size(16), aligned(1), may_alias));

#define ring_load(word) __atomic_load_n((word), __ATOMIC_RELAXED)
#define ring_load_acquire(word) __atomic_load_n((word), __ATOMIC_ACQUIRE)
#define ring_store(word, value) __atomic_store_n((word), (value), __ATOMIC_RELAXED)
#define ring_store_release(word, value) __atomic_store_n((word), (value), __ATOMIC_RELEASE)
/* Between a store and a later load of the other side's word. */
#define ring_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)

/* memcpy, without the call where most packets are short. */
static inline void ring_copy(void *to, const void *from, size_t len) {
    uint8_t *const out = to;
    const uint8_t *const in = from;
    if (len - 64 <= 64) { /* all loads, then all stores: halves that overlap */
        const ring_vector *head = (const ring_vector *)in, *tail = (const ring_vector *)(in + len - 64);
        const ring_vector a = head[0], b = head[1], c = head[2], d = head[3];
        const ring_vector e = tail[0], f = tail[1], g = tail[2], h = tail[3];
        ring_vector *to_head = (ring_vector *)out, *to_tail = (ring_vector *)(out + len - 64);
        to_head[0] = a, to_head[1] = b, to_head[2] = c, to_head[3] = d;
        to_tail[0] = e, to_tail[1] = f, to_tail[2] = g, to_tail[3] = h;
    } else {
        memcpy(out, in, len);
    }
}

/* ---- buffers in and out ------------------------------------------------------------------- */

/* Takes up to max (and RING_BURST) buffers, oldest first; their number, or the negated fault that broke the queue. A
 * fault behind sound buffers is found by the next call. Fewer than max does not mean that no more are there: 0 does,
 * unless segments run out, which happens only while chains with indirect tables are out: push or unpop those.
 * chain->segments stay valid until the chain is pushed or given back. */
int ring_pop_many(struct vipsec_queue *q, struct vipsec_chain *chains, uint32_t max);

static inline int ring_pop(struct vipsec_queue *q, struct vipsec_chain *chain) { return ring_pop_many(q, chain, 1); }

/* Gives back the chain popped last, as if it had not been popped; any number of times, youngest first. 0, or
 * -USED_ORDER, -BROKEN. */
int ring_unpop_last(struct vipsec_queue *q, const struct vipsec_chain *chain);

/* Marks chains used; the contract of vipsec_queue_push. */
int ring_push(struct vipsec_queue *q, const struct vipsec_chain *chains, const uint32_t *written, size_t count,
              bool batch);

static inline int ring_push_many(struct vipsec_queue *q, const struct vipsec_chain *chains, const uint32_t *written,
                                 size_t count) {
    return ring_push(q, chains, written, count, false);
}

/* Whether the driver wants to be told of what was pushed since the last call. False for a broken queue. */
bool ring_should_notify(struct vipsec_queue *q);

/* Tells it, through call_fd. Touches no guest memory: best done outside the frame. */
void ring_signal(const struct vipsec_queue *q);

/* Breaks the queue; the first fault stays, and err_fd is told of it. Touches no guest memory. Returns -fault. */
int ring_break(struct vipsec_queue *q, int fault);

/* Copies out of the readable part, from its byte `skip` on, until len bytes or its end; bytes copied. */
size_t ring_copy_out_pieces(const struct vipsec_chain *chain, uint64_t skip, void *to, size_t len);

static inline size_t ring_copy_out(const struct vipsec_chain *chain, uint64_t skip, void *to, size_t len) {
    if (__builtin_expect(chain->readable > 0 && skip + len <= chain->segments->len, 1)) {
        ring_copy(to, chain->segments->host + skip, len);
        return len;
    }
    return ring_copy_out_pieces(chain, skip, to, len);
}

/* Copies into the writable part, from its byte `at` on, until len bytes or its end; bytes copied. */
size_t ring_copy_in_pieces(struct vipsec_queue *q, const struct vipsec_chain *chain, uint64_t at, const void *from,
                           size_t len);

static inline size_t ring_copy_in(struct vipsec_queue *q, const struct vipsec_chain *chain, uint64_t at,
                                  const void *from, size_t len) {
    const struct vipsec_segment *first = chain->segments + chain->readable;
    if (__builtin_expect(chain->writable > 0 && at + len <= first->len, 1)) {
        ring_copy(first->host + at, from, len);
        dirty_mark(q->memory, first->guest + at, len);
        return len;
    }
    return ring_copy_in_pieces(q, chain, at, from, len);
}

/* ---- between the ring_*.c files -------------------------------------------------------------- */

/* The host address of a buffer of this queue that lies in one region, else NULL. len > 0. */
static inline uint8_t *ring_host(struct vipsec_queue *q, uint64_t guest, uint32_t len) {
    uint8_t *host = memory_within(&q->recent, guest, len);
    if (__builtin_expect(host == NULL, 0)) {
        const struct vipsec_region *region = memory_region(q->memory, guest);
        if (region != NULL && (host = memory_within(region, guest, len)) != NULL) {
            q->recent = *region;
        }
    }
    return host;
}

/* A chain while it is walked: locals, as above. An element's own fault is remembered, for a fault of the walk itself
 * goes first. */
struct ring_walk {
    struct vipsec_segment *end; /* behind its last segment */
    uint64_t readable_len, writable_len;
    uint32_t readable, writable;
    uint32_t elements; /* at most the queue's size: RING_NEXT beyond is a loop */
    int fault;         /* first fault of an element */
};

/* Adds the pieces of an element that crosses regions; how many, 0 when it is not inside. */
uint32_t ring_split_element(struct vipsec_queue *q, struct vipsec_segment *end, uint64_t guest, uint32_t len);

/* Adds an element (address, length, device-writable) to it. */
RING_HOT void ring_element(struct vipsec_queue *q, struct ring_walk *walk, uint64_t guest, uint32_t len,
                           bool writable) {
    if (__builtin_expect(walk->fault != 0, 0)) {
        return;
    }
    if (__builtin_expect(len == 0, 0)) {
        walk->fault = VIPSEC_FAULT_ZERO_LENGTH;
        return;
    }
    if (__builtin_expect(walk->readable_len + walk->writable_len + len > UINT64_C(1) << 32, 0)) {
        walk->fault = VIPSEC_FAULT_TOO_LONG;
        return;
    }
    uint32_t pieces = 1;
    uint8_t *host = ring_host(q, guest, len);
    if (__builtin_expect(host != NULL, 1)) {
        *walk->end = (struct vipsec_segment){.host = host, .guest = guest, .len = len};
    } else if ((pieces = ring_split_element(q, walk->end, guest, len)) == 0) {
        walk->fault = VIPSEC_FAULT_ADDRESS;
        return;
    }
    walk->end += pieces;
    if (writable) {
        walk->writable += pieces;
        walk->writable_len += len;
    } else if (__builtin_expect(walk->writable != 0, 0)) {
        walk->fault = VIPSEC_FAULT_ORDER;
    } else {
        walk->readable += pieces;
        walk->readable_len += len;
    }
}

/* An indirect table: where it lies, when that is in one region. */
struct ring_table {
    const uint8_t *host; /* NULL: it crosses regions */
    uint64_t guest;
    uint32_t entries;
};

/* Checks a table; 0 or its fault. At most `limit` entries will be looked at. */
int ring_table_at(struct vipsec_queue *q, struct ring_table *table, uint64_t guest, uint32_t len, uint32_t limit);

/* Reads one entry, once: its address, and the word with its length and flags. */
static inline void ring_table_entry(const struct vipsec_queue *q, const struct ring_table *table, uint32_t index,
                                    uint64_t *address, uint64_t *word) {
    if (__builtin_expect(table->host != NULL, 1)) {
        const volatile ring_loose64 *entry = (const volatile ring_loose64 *)(table->host + (size_t)16 * index);
        *address = entry[0];
        *word = entry[1];
    } else {
        uint64_t copy[2] = {0, 0};
        memory_copy_out(q->memory, table->guest + (uint64_t)16 * index, copy, sizeof copy);
        *address = copy[0];
        *word = copy[1];
    }
}

/* Notes a store into the device area. */
static inline void ring_log_device(const struct vipsec_queue *q, uint64_t offset, uint64_t len) {
    if (__builtin_expect(q->log_used, 0)) {
        dirty_mark(q->memory, q->log_addr + offset, len);
    }
}

/* The counts of a queue while it pops a burst: locals, so that the compiler keeps them in registers. */
struct ring_burst {
    struct vipsec_segment *end; /* behind the segments in use */
    uint64_t serial;
    uint32_t out, held, order_end;
};

static inline struct ring_burst ring_burst_begin(const struct vipsec_queue *q) {
    return (struct ring_burst){.end = q->segments + q->segments_used,
                               .out = q->out,
                               .held = q->held,
                               .serial = q->serial,
                               .order_end = q->order_end};
}

static inline void ring_burst_end(struct vipsec_queue *q, const struct ring_burst *burst) {
    q->segments_used = (uint32_t)(burst->end - q->segments);
    q->out = burst->out;
    q->held = burst->held;
    q->serial = burst->serial;
    q->order_end = burst->order_end;
}

/* Whether the segments that are left are enough for any chain. */
static inline bool ring_room(const struct vipsec_queue *q, const struct ring_burst *burst) {
    return burst->end <= q->segments_limit;
}

/* The walk of a chain ends. `end`: where its segments begin, and from now on where the next ones do. */
static inline void ring_walked(struct vipsec_chain *chain, const struct ring_walk *walk, struct vipsec_segment **end) {
    chain->segments = *end;
    chain->readable_len = walk->readable_len;
    chain->writable_len = walk->writable_len;
    chain->readable = walk->readable;
    chain->writable = walk->writable;
    *end = walk->end;
}

/* A chain of one descriptor in one region, the usual one, in one go; false when this is not such a chain. */
static inline bool ring_single(struct vipsec_queue *q, struct vipsec_chain *chain, struct ring_burst *burst,
                               uint64_t guest, uint32_t len, bool writable) {
    uint8_t *const host = memory_within(&q->recent, guest, len);
    if (len == 0 || host == NULL) {
        return false;
    }
    *burst->end = (struct vipsec_segment){.host = host, .guest = guest, .len = len};
    chain->segments = burst->end;
    chain->readable_len = writable ? 0 : len;
    chain->writable_len = writable ? len : 0;
    chain->readable = !writable;
    chain->writable = writable;
    chain->descriptors = 1;
    burst->end++;
    __builtin_prefetch(host);
    return true;
}

/* Notes a walked chain as out; 0, or the fault of a driver that offers what it cannot have. */
static inline int ring_hold(struct vipsec_queue *q, struct vipsec_chain *chain, struct ring_burst *burst) {
    if (__builtin_expect(q->holds[chain->head] != 0, 0)) {
        return VIPSEC_FAULT_DUPLICATE;
    }
    if (__builtin_expect(burst->held + chain->descriptors > q->size, 0)) {
        return VIPSEC_FAULT_OVERCOMMIT;
    }
    q->holds[chain->head] = chain->descriptors;
    burst->held += chain->descriptors;
    burst->out++;
    chain->serial = ++burst->serial;
    if (q->in_order) {
        q->order[burst->order_end++ & q->order_mask] = chain->head;
    }
    return 0;
}

/* How many of the first chains one entry tells: 1, or the length of a run of wholly written ones. */
static inline size_t ring_run(const struct vipsec_chain *chains, const uint32_t *written, size_t count, bool batch) {
    size_t run = 1;
    while (batch && run < count && written[run - 1] == chains[run - 1].writable_len) {
        run++;
    }
    return run;
}

static inline uint32_t ring_add_unsignalled(uint32_t before, uint32_t more) {
    const uint32_t many = UINT32_C(1) << 16; /* contains every event index */
    return before + more < many ? before + more : many;
}

int ring_split_set_up(struct vipsec_queue *q);
int ring_split_pop(struct vipsec_queue *q, struct vipsec_chain *chains, uint32_t max);
void ring_split_unpop(struct vipsec_queue *q, const struct vipsec_chain *chain);
void ring_split_push(struct vipsec_queue *q, const struct vipsec_chain *chains, const uint32_t *written, size_t count,
                     bool batch);
int ring_split_pending(struct vipsec_queue *q);
bool ring_split_wanted(const struct vipsec_queue *q, uint32_t steps);
void ring_split_listen(struct vipsec_queue *q);
int ring_split_listening(struct vipsec_queue *q);
void ring_split_ignore(struct vipsec_queue *q);

/* Reads the second word of the descriptor at a position; whether it is marked available in that round. */
bool ring_packed_available(const struct vipsec_queue *q, uint32_t position, uint64_t *word);
int ring_packed_set_up(struct vipsec_queue *q);
int ring_packed_pop(struct vipsec_queue *q, struct vipsec_chain *chains, uint32_t max);
void ring_packed_unpop(struct vipsec_queue *q, const struct vipsec_chain *chain);
void ring_packed_push(struct vipsec_queue *q, const struct vipsec_chain *chains, const uint32_t *written, size_t count,
                      bool batch);
int ring_packed_pending(struct vipsec_queue *q);
bool ring_packed_wanted(const struct vipsec_queue *q, uint32_t steps);
void ring_packed_listen(struct vipsec_queue *q);
int ring_packed_listening(struct vipsec_queue *q);
void ring_packed_ignore(struct vipsec_queue *q);
uint32_t ring_packed_state(const struct vipsec_queue *q);

#endif
