/* Packed virtqueues, device side (virtio v1.4 2.8). The second word of a descriptor (len, id, flags) is one load and
 * one store, so flags never show without the fields they vouch for. */
#include "inflight.h"

enum {
    AVAIL = 1 << 7,
    USED = 1 << 15,
    MARKS = AVAIL | USED,
    EVENT_DISABLE = 1,
    EVENT_DESC = 2,
};

static uint32_t advance(const struct vipsec_queue *q, uint32_t position, uint32_t steps) {
    position += steps; /* at most one turn, 2 x size */
    return position < 2 * q->size ? position : position - 2 * q->size;
}

static uint32_t slot(const struct vipsec_queue *q, uint32_t position) {
    return position < q->size ? position : position - q->size;
}

/* Offset in bits 0-14, wrap counter in bit 15. */
static uint32_t encode(const struct vipsec_queue *q, uint32_t position) {
    return position < q->size ? position | 1u << 15 : position - q->size;
}

/* The position of offset and wrap counter; outside the ring when the offset is. */
static uint32_t decode(const struct vipsec_queue *q, uint32_t word) {
    return (word & 0x7fff) + ((word >> 15 & 1) != 0 ? 0 : q->size);
}

uint32_t ring_packed_state(const struct vipsec_queue *q) {
    return encode(q, q->next_avail) | encode(q, q->next_used) << 16;
}

static int resume(struct vipsec_queue *q) {
    const uint32_t state = q->config.state, size = q->size;
    const uint32_t available = decode(q, state & UINT16_MAX), used = decode(q, state >> 16);
    const uint32_t held = (available + 2 * size - used) % (2 * size);
    if ((state & 0x7fff) >= size || (state >> 16 & 0x7fff) >= size || held > size) {
        return VIPSEC_FAULT_INDEX;
    }
    q->next_avail = available;
    q->next_used = used;
    q->held = held; /* what an earlier owner of the queue took is still in the ring */
    q->unsignalled = 2 * size;
    return 0;
}

int ring_packed_set_up(struct vipsec_queue *q) {
    const struct vipsec_queue_config *c = &q->config;
    if (c->desc % 16 != 0) {
        return VIPSEC_FAULT_ALIGNMENT;
    }
    uint8_t *const desc = memory_host(q->memory, c->desc, (uint64_t)16 * q->size);
    if (desc == NULL) {
        return VIPSEC_FAULT_PLACEMENT;
    }
    const uint64_t event[2] = {c->driver, c->device};
    uint8_t *host[2];
    for (int i = 0; i < 2; i++) {
        if (event[i] % 4 != 0) {
            return VIPSEC_FAULT_ALIGNMENT;
        }
        host[i] = memory_host(q->memory, event[i], 4);
        if (host[i] == NULL) {
            return VIPSEC_FAULT_PLACEMENT;
        }
    }
    if ((uintptr_t)desc % 8 != 0 || ((uintptr_t)host[0] | (uintptr_t)host[1]) % 4 != 0) {
        return VIPSEC_FAULT_ALIGNMENT; /* of the mapping: words must not tear */
    }
    q->desc = (uint64_t *)(void *)desc;
    q->u.packed.driver_event = (const uint32_t *)(void *)host[0];
    q->u.packed.device_event = (uint32_t *)(void *)host[1];
    const int wrong = (c->flags & VIPSEC_QUEUE_RESUME) != 0 ? resume(q) : 0;
    if (wrong == 0) {
        ring_packed_listen(q);
    }
    return wrong;
}

static inline bool available(const struct vipsec_queue *q, uint32_t position, uint64_t *word) {
    *word = ring_load_acquire(&q->desc[(size_t)2 * slot(q, position) + 1]);
    return (*word >> 48 & MARKS) == (position < q->size ? AVAIL : USED);
}

bool ring_packed_available(const struct vipsec_queue *q, uint32_t position, uint64_t *word) {
    return available(q, position, word);
}

static int walk_table(struct vipsec_queue *q, struct ring_walk *of_chain, uint64_t guest, uint32_t len) {
    struct ring_table table;
    struct ring_walk walk = *of_chain;
    /* One entry more than allowed is counted: enough to refuse what is too long. */
    const int wrong = ring_table_at(q, &table, guest, len, q->size + 1);
    if (wrong != 0) {
        return wrong;
    }
    if (table.entries > q->size) {
        return VIPSEC_FAULT_LOOP;
    }
    for (uint32_t index = 0; index < table.entries; index++) {
        uint64_t address, word;
        ring_table_entry(q, &table, index, &address, &word);
        /* Only RING_WRITE counts in a table (virtio v1.4 2.8.7). */
        ring_element(q, &walk, address, (uint32_t)word, (word >> 48 & RING_WRITE) != 0);
    }
    *of_chain = walk;
    return walk.fault;
}

/* Collects the list whose first descriptor has these words, from the ring or from the copies of an old chain; 0 or the
 * driver's fault. Each step adds an element, of which there are at most as many as the queue has entries. */
static int walk_list(struct vipsec_queue *q, struct vipsec_chain *chain, struct vipsec_segment **end, uint32_t position,
                     uint64_t address, uint64_t word, const struct inflight_old *old) {
    struct ring_walk walk = {.end = *end};
    for (uint32_t count = 1;; count++) {
        if (q->inflight != NULL && old == NULL) {
            inflight_packed_note(q, address, word);
        }
        const uint32_t flags = (uint32_t)(word >> 48);
        chain->head = (uint16_t)(word >> 32);
        chain->descriptors = (uint16_t)count;
        if ((flags & RING_INDIRECT) != 0) {
            if (!q->indirect) {
                return VIPSEC_FAULT_INDIRECT_NOT_NEGOTIATED;
            }
            if ((flags & RING_NEXT) != 0 || count > 1) {
                return VIPSEC_FAULT_INDIRECT_CHAINED;
            }
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
        position = advance(q, position, 1);
        if (old != NULL ? count == old->count : !available(q, position, &word)) {
            return VIPSEC_FAULT_PARTIAL_LIST;
        }
        if (old != NULL) {
            address = q->inflight->copies[old->first + count][0];
            word = q->inflight->copies[old->first + count][1];
        } else {
            address = ring_load(&q->desc[(size_t)2 * slot(q, position)]);
        }
    }
}

RING_HOT int walk(struct vipsec_queue *q, struct vipsec_chain *chain, struct ring_burst *burst, uint32_t position,
                       uint64_t word) {
    const uint64_t address = ring_load(&q->desc[(size_t)2 * slot(q, position)]);
    const uint32_t flags = (uint32_t)(word >> 48);
    if (__builtin_expect((flags & (RING_NEXT | RING_INDIRECT)) == 0 && q->inflight == NULL, 1) &&
        ring_single(q, chain, burst, address, (uint32_t)word, (flags & RING_WRITE) != 0)) {
        chain->head = (uint16_t)(word >> 32);
        return 0;
    }
    if (q->inflight != NULL) {
        q->inflight->noted = 0;
    }
    struct vipsec_segment *end = burst->end; /* not &burst->end: that would keep the burst in memory */
    const int wrong = walk_list(q, chain, &end, position, address, word, NULL);
    burst->end = end;
    return wrong;
}

static void set_event(struct vipsec_queue *q, uint32_t event) {
    ring_store(q->u.packed.device_event, event);
    ring_log_device(q, 0, 4);
}

/* Asks for a notification at the next buffer. */
static void ask(struct vipsec_queue *q) {
    set_event(q, q->event_idx ? encode(q, q->next_avail) | (uint32_t)EVENT_DESC << 16 : UINT32_C(0));
}

/* A chain that an earlier owner took: its place in the ring is behind us. */
RING_COLD int pop_old(struct vipsec_queue *q, struct vipsec_chain *chain) {
    const struct inflight_old *old = inflight_next(q);
    const uint64_t *first = q->inflight->copies[old->first];
    struct ring_burst burst = ring_burst_begin(q);
    if (!ring_room(q, &burst)) {
        return 0;
    }
    int wrong = walk_list(q, chain, &burst.end, 0, first[0], first[1], old);
    if (wrong == 0 && chain->descriptors != old->count) {
        wrong = VIPSEC_FAULT_PARTIAL_LIST; /* the record is longer than its list */
    }
    wrong = wrong != 0 ? wrong : ring_hold(q, chain, &burst);
    if (wrong != 0) {
        return ring_break(q, wrong);
    }
    q->inflight->entry[chain->head] = old->head;
    ring_burst_end(q, &burst);
    return 1;
}

int ring_packed_pop(struct vipsec_queue *q, struct vipsec_chain *chains, uint32_t max) {
    if (__builtin_expect(inflight_waiting(q) > 0, 0)) {
        return pop_old(q, chains);
    }
    uint32_t position = q->next_avail, done = 0;
    struct ring_burst burst = ring_burst_begin(q);
    for (; done < max && ring_room(q, &burst); done++) {
        struct vipsec_chain *chain = &chains[done];
        uint64_t word;
        if (!available(q, position, &word)) {
            break;
        }
        const struct ring_burst before = burst;
        int wrong = walk(q, chain, &burst, position, word);
        wrong = wrong != 0 ? wrong : ring_hold(q, chain, &burst);
        if (__builtin_expect(wrong != 0, 0)) {
            burst = before;
            if (done == 0) {
                return ring_break(q, wrong);
            }
            break; /* the sound ones first: the next call meets it again */
        }
        if (__builtin_expect(q->inflight != NULL, 0)) {
            inflight_packed_take(q->inflight, chain);
        }
        position = advance(q, position, chain->descriptors);
    }
    ring_burst_end(q, &burst);
    q->next_avail = position;
    if (q->listening && q->event_idx && done > 0) {
        ask(q);
        ring_fence();
    }
    return (int)done;
}

/* How many buffers are available now: a walk over the flags. */
int ring_packed_pending(struct vipsec_queue *q) {
    uint32_t position = q->next_avail;
    int buffers = 0;
    uint64_t word;
    for (uint32_t left = q->size - q->held; left > 0 && available(q, position, &word); left--) {
        buffers += (word >> 48 & RING_NEXT) == 0;
        position = advance(q, position, 1);
    }
    return buffers;
}

void ring_packed_unpop(struct vipsec_queue *q, const struct vipsec_chain *chain) {
    if (inflight_waiting(q) > 0) {
        return; /* one of an earlier owner, which comes again first */
    }
    if (q->inflight != NULL) {
        inflight_packed_return(q->inflight, chain);
    }
    /* The event structure keeps asking for what follows the chain: that is what a caller waits for. */
    q->next_avail = advance(q, q->next_avail, 2 * q->size - chain->descriptors);
}

/* Notes a store into the ring, which is the descriptor area: its guest address is the only one it has. */
static inline void log_entry(const struct vipsec_queue *q, uint32_t position) {
    if (__builtin_expect(q->log_used, 0)) {
        dirty_mark(q->memory, q->config.desc + (uint64_t)16 * slot(q, position), 16);
    }
}

void ring_packed_push(struct vipsec_queue *q, const struct vipsec_chain *chains, const uint32_t *written, size_t count,
                      bool batch) {
    uint32_t position = q->next_used, descriptors = 0;
    uint64_t first = 0;
    for (size_t i = 0; i < count;) {
        const size_t run = ring_run(chains + i, written + i, count - i, batch), last = i + run - 1;
        const uint64_t flags = (written[last] != 0 ? RING_WRITE : 0u) | (position < q->size ? (unsigned)MARKS : 0u);
        const uint64_t word = written[last] | (uint64_t)chains[last].head << 32 | flags << 48;
        if (i == 0) {
            first = word;
        } else {
            ring_store(&q->desc[(size_t)2 * slot(q, position) + 1], word);
        }
        log_entry(q, position);
        for (; i <= last; i++) {
            position = advance(q, position, chains[i].descriptors);
            descriptors += chains[i].descriptors;
        }
    }
    /* The driver polls the first one: it becomes visible last (virtio v1.4 2.8.9). */
    ring_store_release(&q->desc[(size_t)2 * slot(q, q->next_used) + 1], first);
    log_entry(q, q->next_used);
    q->unsignalled = ring_add_unsignalled(q->unsignalled, descriptors);
    q->next_used = position;
}

/* What the text reserves (flags 3, DESC without EVENT_IDX, an offset beyond the ring) counts as asking: a
 * notification too many is harmless, a lost one is not. */
bool ring_packed_wanted(const struct vipsec_queue *q, uint32_t steps) {
    const uint32_t event = ring_load(q->u.packed.driver_event), flags = event >> 16 & 3, round = 2 * q->size;
    if (flags == EVENT_DISABLE) {
        return false;
    }
    if (flags != EVENT_DESC || !q->event_idx || (event & 0x7fff) >= q->size || steps >= round) {
        return true;
    }
    return (decode(q, event & UINT16_MAX) + round - q->next_used + steps) % round < steps;
}

void ring_packed_listen(struct vipsec_queue *q) {
    q->listening = true;
    ask(q);
}

int ring_packed_listening(struct vipsec_queue *q) {
    uint64_t word;
    return available(q, q->next_avail, &word);
}

void ring_packed_ignore(struct vipsec_queue *q) {
    q->listening = false;
    set_event(q, (uint32_t)EVENT_DISABLE << 16);
}
