/* Split virtqueues, device side (virtio v1.4 2.7): reads descriptor table and available ring, writes the used ring. */
#include "inflight.h"

enum {
    NO_NOTIFY = 1,
    NO_INTERRUPT = 1,
    TABLE_LIMIT = 1 << 16, /* `next` has 16 bits: entries of an indirect table beyond this cannot be reached */
    ALWAYS = 1 << 16,      /* so many entries contain every event index */
};

/* Where the driver's next index is to be told of. */
static void move_event(struct vipsec_queue *q, uint32_t index) {
    ring_store(q->u.split.avail_event, (uint16_t)index);
    ring_log_device(q, 4 + (uint64_t)8 * q->size, 2);
}

static void set_flags(struct vipsec_queue *q, uint16_t flags) {
    ring_store(&q->u.split.used[0], flags);
    ring_log_device(q, 0, 2);
}

int ring_split_set_up(struct vipsec_queue *q) {
    const struct vipsec_queue_config *c = &q->config;
    const uint32_t size = q->size;
    if ((size & (size - 1)) != 0) {
        return VIPSEC_FAULT_SIZE;
    }
    const struct {
        uint64_t address, alignment, length, host_alignment;
    } parts[3] = {
        {c->desc, 16, (uint64_t)16 * size, 8},
        {c->driver, 2, 6 + (uint64_t)2 * size, 2},
        {c->device, 4, 6 + (uint64_t)8 * size, 4},
    };
    uint8_t *host[3];
    for (int i = 0; i < 3; i++) {
        if (parts[i].address % parts[i].alignment != 0) {
            return VIPSEC_FAULT_ALIGNMENT;
        }
        host[i] = memory_host(q->memory, parts[i].address, parts[i].length);
        if (host[i] == NULL) {
            return VIPSEC_FAULT_PLACEMENT;
        }
        if ((uintptr_t)host[i] % parts[i].host_alignment != 0) {
            return VIPSEC_FAULT_ALIGNMENT; /* of the mapping: words must not tear */
        }
    }
    q->desc = (uint64_t *)(void *)host[0];
    q->u.split.avail = (const uint16_t *)(void *)host[1];
    q->u.split.used = (uint16_t *)(void *)host[2];
    q->u.split.used_ring = (uint32_t *)(void *)(host[2] + 4);
    q->u.split.avail_event = (uint16_t *)(void *)(host[2] + 4 + (size_t)8 * size);
    if ((c->flags & VIPSEC_QUEUE_RESUME) != 0) {
        if (c->state > UINT16_MAX) {
            return VIPSEC_FAULT_INDEX;
        }
        q->next_avail = q->seen_avail = c->state;
        q->next_used = ring_load(&q->u.split.used[1]);
        q->unsignalled = ALWAYS;
    }
    ring_split_listen(q);
    return 0;
}

/* Reads the available index; how many buffers are available, or more than the ring has for an index that jumps. */
static uint32_t look(struct vipsec_queue *q, uint16_t *seen) {
    *seen = ring_load_acquire(&q->u.split.avail[1]);
    return (*seen - q->next_avail) & UINT16_MAX;
}

/* Like look, and that is what is available. */
static int fresh(struct vipsec_queue *q) {
    uint16_t seen;
    const uint32_t count = look(q, &seen);
    if (count > q->size) {
        return ring_break(q, VIPSEC_FAULT_AVAILABLE_JUMP);
    }
    q->seen_avail = seen;
    return (int)count;
}

int ring_split_pending(struct vipsec_queue *q) { return fresh(q); }

/* The rest of a chain that enters an indirect table. */
static int walk_table(struct vipsec_queue *q, struct ring_walk *of_chain, uint64_t guest, uint32_t len) {
    struct ring_table table;
    struct ring_walk walk = *of_chain;
    const int wrong = ring_table_at(q, &table, guest, len, TABLE_LIMIT);
    if (wrong != 0) {
        return wrong;
    }
    for (uint32_t index = 0;;) {
        uint64_t address, word;
        if (index >= table.entries) {
            return VIPSEC_FAULT_INDEX;
        }
        ring_table_entry(q, &table, index, &address, &word);
        const uint32_t flags = (uint32_t)(word >> 32) & UINT16_MAX;
        if ((flags & RING_INDIRECT) != 0) {
            return VIPSEC_FAULT_INDIRECT_NESTED;
        }
        if (++walk.elements > q->size) {
            return VIPSEC_FAULT_LOOP;
        }
        ring_element(q, &walk, address, (uint32_t)word, (flags & RING_WRITE) != 0);
        if ((flags & RING_NEXT) == 0) {
            *of_chain = walk;
            return walk.fault;
        }
        index = (uint32_t)(word >> 48);
    }
}

/* Collects the chain that starts at its head; 0 or the driver's fault. Each step adds an element, of which there are
 * at most as many as the queue has entries, or enters the only indirect table. */
static int walk_direct(struct vipsec_queue *q, struct vipsec_chain *chain, struct vipsec_segment **end,
                       uint64_t address, uint64_t word) {
    struct ring_walk walk = {.end = *end};
    for (uint32_t direct = 1;; direct++) {
        const uint32_t flags = (uint32_t)(word >> 32) & UINT16_MAX, index = (uint32_t)(word >> 48);
        chain->descriptors = (uint16_t)direct;
        if ((flags & RING_INDIRECT) != 0) {
            if (!q->indirect) {
                return VIPSEC_FAULT_INDIRECT_NOT_NEGOTIATED;
            }
            if ((flags & RING_NEXT) != 0) {
                return VIPSEC_FAULT_INDIRECT_CHAINED;
            }
            /* RING_WRITE of this descriptor is to be ignored (virtio v1.4 2.7.5.3.2). */
            const int wrong = walk_table(q, &walk, address, (uint32_t)word);
            ring_walked(chain, &walk, end);
            return wrong;
        }
        if (++walk.elements > q->size) {
            return VIPSEC_FAULT_LOOP;
        }
        ring_element(q, &walk, address, (uint32_t)word, (flags & RING_WRITE) != 0);
        if ((flags & RING_NEXT) == 0) {
            ring_walked(chain, &walk, end);
            return walk.fault;
        }
        if (index >= q->size) {
            return VIPSEC_FAULT_INDEX;
        }
        address = ring_load(&q->desc[(size_t)2 * index]);
        word = ring_load(&q->desc[(size_t)2 * index + 1]);
    }
}

/* A head taken from the available ring, and its descriptor. */
struct first {
    uint64_t address, word;
    uint16_t head;
};

/* Loads the descriptor; what it leads to is on its way into the cache while others are loaded. */
RING_HOT void load_first(struct vipsec_queue *q, struct first *first) {
    if (first->head < q->size) {
        first->address = ring_load(&q->desc[(size_t)2 * first->head]);
        first->word = ring_load(&q->desc[(size_t)2 * first->head + 1]);
        __builtin_prefetch(memory_within(&q->recent, first->address, 1));
    }
}

RING_HOT int walk_chain(struct vipsec_queue *q, struct vipsec_chain *chain, struct ring_burst *burst,
                        const struct first *first) {
    chain->head = first->head;
    if (__builtin_expect(chain->head >= q->size, 0)) {
        return VIPSEC_FAULT_INDEX;
    }
    const uint64_t address = first->address, word = first->word;
    const uint32_t flags = (uint32_t)(word >> 32);
    if (__builtin_expect((flags & (RING_NEXT | RING_INDIRECT)) == 0, 1) &&
        ring_single(q, chain, burst, address, (uint32_t)word, (flags & RING_WRITE) != 0)) {
        return 0;
    }
    struct vipsec_segment *end = burst->end; /* not &burst->end: that would keep the burst in memory */
    const int wrong = walk_direct(q, chain, &end, address, word);
    burst->end = end;
    return wrong;
}

/* The rest of ring_split_pop for a chain that an earlier owner took: its place in the available ring is behind us. */
RING_COLD int pop_old(struct vipsec_queue *q, struct vipsec_chain *chain) {
    struct ring_burst burst = ring_burst_begin(q);
    if (!ring_room(q, &burst)) {
        return 0;
    }
    struct first first = {.head = inflight_next(q)->head};
    load_first(q, &first);
    int wrong = walk_chain(q, chain, &burst, &first);
    wrong = wrong != 0 ? wrong : ring_hold(q, chain, &burst);
    if (wrong != 0) {
        return ring_break(q, wrong);
    }
    ring_burst_end(q, &burst);
    return 1;
}

int ring_split_pop(struct vipsec_queue *q, struct vipsec_chain *chains, uint32_t max) {
    if (__builtin_expect(inflight_waiting(q) > 0, 0)) {
        return pop_old(q, chains);
    }
    const uint32_t mask = q->size - 1;
    uint32_t available = (q->seen_avail - q->next_avail) & UINT16_MAX;
    if (available == 0) {
        const int count = fresh(q);
        if (count <= 0) {
            return count;
        }
        available = (uint32_t)count;
    } else if (available < max) {
        uint16_t seen;
        const uint32_t count = look(q, &seen);
        if (count >= available && count <= q->size) { /* anything else is a fault once these are taken */
            q->seen_avail = seen;
            available = count;
        }
    }
    max = available < max ? available : max;
    struct first firsts[RING_BURST];
    for (uint32_t i = 0; i < max; i++) {
        firsts[i].head = ring_load(&q->u.split.avail[2 + ((q->next_avail + i) & mask)]);
        __builtin_prefetch(&q->desc[(size_t)2 * (firsts[i].head & mask)]);
    }
    for (uint32_t i = 0; i < max; i++) {
        load_first(q, &firsts[i]);
    }
    struct ring_burst burst = ring_burst_begin(q);
    uint32_t done = 0;
    for (; done < max && ring_room(q, &burst); done++) {
        struct vipsec_chain *chain = &chains[done];
        const struct ring_burst before = burst;
        int wrong = walk_chain(q, chain, &burst, &firsts[done]);
        wrong = wrong != 0 ? wrong : ring_hold(q, chain, &burst);
        if (__builtin_expect(wrong != 0, 0)) {
            burst = before;
            if (done == 0) {
                return ring_break(q, wrong);
            }
            break; /* the sound ones first: the next call meets it again */
        }
        if (__builtin_expect(q->inflight != NULL, 0)) {
            inflight_split_take(q->inflight, chain->head);
        }
    }
    ring_burst_end(q, &burst);
    q->next_avail = (q->next_avail + done) & UINT16_MAX;
    if (q->listening && q->event_idx && done > 0) {
        move_event(q, q->next_avail);
        ring_fence();
    }
    return (int)done;
}

void ring_split_unpop(struct vipsec_queue *q, const struct vipsec_chain *chain) {
    if (inflight_waiting(q) > 0) {
        return; /* one of an earlier owner, which comes again first */
    }
    if (q->inflight != NULL) {
        inflight_split_return(q->inflight, chain->head);
    }
    q->next_avail = (q->next_avail - 1) & UINT16_MAX;
    if (q->listening && q->event_idx) {
        move_event(q, q->seen_avail);
    }
}

void ring_split_push(struct vipsec_queue *q, const struct vipsec_chain *chains, const uint32_t *written, size_t count,
                     bool batch) {
    const uint32_t mask = q->size - 1;
    uint32_t position = q->next_used;
    for (size_t i = 0; i < count;) {
        const size_t run = ring_run(chains + i, written + i, count - i, batch), last = i + run - 1;
        *(volatile ring_half64 *)(void *)&q->u.split.used_ring[(size_t)2 * (position & mask)] =
            chains[last].head | (uint64_t)written[last] << 32;
        position += (uint32_t)run;
        i += run;
    }
    q->unsignalled = ring_add_unsignalled(q->unsignalled, (uint32_t)count);
    q->next_used = position & UINT16_MAX;
    ring_store_release(&q->u.split.used[1], (uint16_t)position);
    if (__builtin_expect(q->log_used, 0)) {
        const uint32_t first = (position - (uint32_t)count) & mask, to_end = q->size - first;
        const uint32_t ahead = count < to_end ? (uint32_t)count : to_end;
        ring_log_device(q, 4 + (uint64_t)8 * first, (uint64_t)8 * ahead);
        ring_log_device(q, 4, (uint64_t)8 * (count - ahead));
        ring_log_device(q, 0, 4);
    }
}

bool ring_split_wanted(const struct vipsec_queue *q, uint32_t steps) {
    if (!q->event_idx) {
        return (ring_load(&q->u.split.avail[0]) & NO_INTERRUPT) == 0;
    }
    const uint16_t event = ring_load(&q->u.split.avail[2 + q->size]);
    return ((q->next_used - event - 1) & UINT16_MAX) < steps;
}

void ring_split_listen(struct vipsec_queue *q) {
    q->listening = true;
    set_flags(q, 0);
    if (q->event_idx) {
        move_event(q, q->seen_avail);
    }
}

int ring_split_listening(struct vipsec_queue *q) {
    const int count = fresh(q);
    return count > 0 ? 1 : count;
}

void ring_split_ignore(struct vipsec_queue *q) {
    q->listening = false;
    if (!q->event_idx) { /* else flags stay 0, and the event index that is not moved on falls behind */
        set_flags(q, NO_NOTIFY);
    }
}
