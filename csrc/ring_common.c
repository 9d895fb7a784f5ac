/* What both ring formats share: set-up, checks of what is given back, copies, the public calls. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "inflight.h"

static_assert(sizeof(struct vipsec_segment) == 24, "shared with cffi");
static_assert(sizeof(struct vipsec_chain) == 48 && offsetof(struct vipsec_chain, head) == 40, "shared with cffi");
static_assert(sizeof(struct vipsec_queue_config) == 48 && offsetof(struct vipsec_queue_config, call_fd) == 36,
              "shared with cffi");

const char *vipsec_fault_name(int fault) {
    static const char *const names[VIPSEC_FAULT_COUNT] = {
        "", "size", "alignment", "placement", "available_jump", "index", "loop", "duplicate", "overcommit",
        "partial_list", "empty", "zero_length", "too_long", "address", "order", "indirect_not_negotiated",
        "indirect_nested", "indirect_chained", "indirect_length", "used_jump", "used_id", "used_length",
        "used_order", "full", "broken", "memory",
    };
    return fault >= 0 && fault < VIPSEC_FAULT_COUNT ? names[fault] : NULL;
}

/* An eventfd counts up by what is written; one that is full already has a reader to wake. */
static void tell(int fd) {
    const uint64_t one = 1;
    while (fd >= 0 && write(fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

void ring_signal(const struct vipsec_queue *q) { tell(__atomic_load_n(&q->config.call_fd, __ATOMIC_RELAXED)); }

int ring_break(struct vipsec_queue *q, int fault) {
    if (q->fault == 0) {
        q->fault = (uint8_t)fault;
        tell(__atomic_load_n(&q->config.err_fd, __ATOMIC_RELAXED));
    }
    return -fault;
}

uint32_t ring_split_element(struct vipsec_queue *q, struct vipsec_segment *end, uint64_t guest, uint32_t len) {
    if (!memory_inside(q->memory, guest, len)) {
        return 0;
    }
    uint32_t pieces = 0;
    while (len > 0) {
        const struct vipsec_region *region = memory_region(q->memory, guest);
        const uint64_t offset = guest - region->guest_addr, here = region->size - offset;
        const uint32_t step = here < len ? (uint32_t)here : len;
        end[pieces] = (struct vipsec_segment){
            .host = region->host + offset, .guest = guest, .len = step, .continues = pieces > 0};
        pieces++;
        guest += step;
        len -= step;
    }
    return pieces;
}

int ring_table_at(struct vipsec_queue *q, struct ring_table *table, uint64_t guest, uint32_t len, uint32_t limit) {
    if (len == 0 || len % 16 != 0) {
        return VIPSEC_FAULT_INDIRECT_LENGTH;
    }
    const uint32_t entries = len / 16 < limit ? len / 16 : limit;
    const uint8_t *host = ring_host(q, guest, len);
    if (host == NULL && !memory_inside(q->memory, guest, len)) {
        return VIPSEC_FAULT_ADDRESS;
    }
    *table = (struct ring_table){.host = host, .guest = guest, .entries = entries};
    return 0;
}

int ring_pop_many(struct vipsec_queue *q, struct vipsec_chain *chains, uint32_t max) {
    if (q->fault != 0) {
        return -VIPSEC_FAULT_BROKEN;
    }
    if (q->out == 0) {
        q->segments_used = 0;
    }
    max = max < RING_BURST ? max : RING_BURST;
    return q->is_packed ? ring_packed_pop(q, chains, max) : ring_split_pop(q, chains, max);
}

int ring_unpop_last(struct vipsec_queue *q, const struct vipsec_chain *chain) {
    if (q->fault != 0) {
        return -VIPSEC_FAULT_BROKEN;
    }
    if (chain->head >= q->heads || q->holds[chain->head] == 0 || chain->serial != q->serial) {
        return -VIPSEC_FAULT_USED_ORDER;
    }
    q->held -= q->holds[chain->head];
    q->holds[chain->head] = 0;
    q->out--;
    q->serial--;
    q->order_end -= q->in_order;
    if (chain->segments != NULL) {
        q->segments_used = (uint32_t)(chain->segments - q->segments);
    }
    if (q->is_packed) {
        ring_packed_unpop(q, chain);
    } else {
        ring_split_unpop(q, chain);
    }
    return 0;
}

/* Whether a chain may be marked used as the i-th of a call; 0 or the fault of the caller. */
static inline int usable(const struct vipsec_queue *q, const struct vipsec_chain *chain, uint32_t written, size_t i) {
    if (chain->head >= q->heads || chain->descriptors == 0 || q->holds[chain->head] != chain->descriptors) {
        return VIPSEC_FAULT_USED_ID;
    }
    if (q->in_order && (i >= q->out || q->order[(q->order_first + i) & q->order_mask] != chain->head)) {
        return VIPSEC_FAULT_USED_ORDER;
    }
    return written > chain->writable_len ? VIPSEC_FAULT_USED_LENGTH : 0;
}

int ring_push(struct vipsec_queue *q, const struct vipsec_chain *chains, const uint32_t *written, size_t count,
              bool batch) {
    if (q->fault != 0) {
        return -VIPSEC_FAULT_BROKEN;
    }
    uint32_t descriptors = 0;
    for (size_t i = 0; i < count; i++) {
        if (__builtin_expect(usable(q, &chains[i], written[i], i) != 0, 0)) {
            for (size_t j = 0; j < i; j++) {
                q->holds[chains[j].head] = chains[j].descriptors;
            }
            /* A chain that comes twice is judged as if it came once. */
            const int wrong = usable(q, &chains[i], written[i], i);
            return wrong != 0 ? -wrong : -VIPSEC_FAULT_USED_ID;
        }
        q->holds[chains[i].head] = 0;
        descriptors += chains[i].descriptors;
    }
    if (count == 0) {
        return 0;
    }
    q->held -= descriptors;
    q->out -= (uint32_t)count;
    q->order_first += (uint32_t)count;
    if (q->inflight != NULL) {
        inflight_before_use(q, chains, count);
    }
    batch = batch && q->in_order;
    if (q->is_packed) {
        ring_packed_push(q, chains, written, count, batch);
    } else {
        ring_split_push(q, chains, written, count, batch);
    }
    if (q->inflight != NULL) {
        inflight_after_use(q, chains, count);
    }
    return 0;
}

bool ring_should_notify(struct vipsec_queue *q) {
    const uint32_t steps = q->unsignalled;
    q->unsignalled = 0;
    if (steps == 0 || q->fault != 0) {
        return false;
    }
    ring_fence();
    return q->is_packed ? ring_packed_wanted(q, steps) : ring_split_wanted(q, steps);
}

size_t ring_copy_out_pieces(const struct vipsec_chain *chain, uint64_t skip, void *to, size_t len) {
    uint8_t *out = to;
    size_t left = len;
    for (uint32_t i = 0; i < chain->readable && left > 0; i++) {
        const struct vipsec_segment *segment = &chain->segments[i];
        if (skip >= segment->len) {
            skip -= segment->len;
            continue;
        }
        const size_t here = segment->len - (size_t)skip, step = here < left ? here : left;
        memcpy(out, segment->host + skip, step);
        out += step;
        left -= step;
        skip = 0;
    }
    return len - left;
}

size_t ring_copy_in_pieces(struct vipsec_queue *q, const struct vipsec_chain *chain, uint64_t at, const void *from,
                           size_t len) {
    const uint8_t *in = from;
    size_t left = len;
    for (uint32_t i = chain->readable; i < chain->readable + chain->writable && left > 0; i++) {
        const struct vipsec_segment *segment = &chain->segments[i];
        if (at >= segment->len) {
            at -= segment->len;
            continue;
        }
        const size_t here = segment->len - (size_t)at, step = here < left ? here : left;
        ring_copy(segment->host + at, in, step);
        dirty_mark(q->memory, segment->guest + at, step);
        in += step;
        left -= step;
        at = 0;
    }
    return len - left;
}
