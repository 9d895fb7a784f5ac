/* Inflight tracking: attaching a region, recovery, and the records of normal work. */
#include "inflight.h"

#include <stdlib.h>

#include "guard.h"

uint64_t vipsec_inflight_size(uint32_t size, uint32_t flags) {
    const bool is_packed = (flags & VIPSEC_QUEUE_PACKED) != 0;
    const uint64_t bytes = is_packed
                               ? sizeof(struct inflight_packed) + (uint64_t)size * sizeof(struct inflight_packed_desc)
                               : sizeof(struct inflight_split) + (uint64_t)size * sizeof(struct inflight_split_desc);
    return (bytes + INFLIGHT_ALIGN - 1) / INFLIGHT_ALIGN * INFLIGHT_ALIGN;
}

void inflight_free(struct inflight *f) {
    if (f != NULL) {
        free(f->old);
        free(f->copies);
        free(f->next);
        free(f->last);
        free(f->entry);
        free(f);
    }
}

static int by_counter(const void *a, const void *b) {
    const struct inflight_old *x = a, *y = b;
    return (x->counter > y->counter) - (x->counter < y->counter);
}

/* ---- split ----------------------------------------------------------------------------------- */

static void start_split(struct vipsec_queue *q, struct inflight *f) {
    memset(f->split->desc, 0, q->size * sizeof f->split->desc[0]);
    f->split->features = 0;
    f->split->desc_num = (uint16_t)q->size;
    f->split->last_batch_head = 0;
    f->split->used_idx = (uint16_t)q->next_used;
    ring_store_release(&f->split->version, (uint16_t)INFLIGHT_VERSION);
}

/* 0, or the fault of a region that makes no sense. */
static int recover_split(struct vipsec_queue *q, struct inflight *f) {
    struct inflight_split *region = f->split;
    const uint16_t used = (uint16_t)q->next_used;
    const uint32_t batch = (uint16_t)(used - ring_load(&region->used_idx));
    if (batch > q->size) {
        return VIPSEC_FAULT_USED_JUMP;
    }
    uint16_t index = f->batch_head = ring_load(&region->last_batch_head);
    for (uint32_t i = 0; i < batch; i++) {
        if (index >= q->size) {
            return VIPSEC_FAULT_INDEX;
        }
        ring_store(&region->desc[index].inflight, (uint8_t)0);
        index = ring_load(&region->desc[index].next);
    }
    ring_store(&region->used_idx, used);
    for (uint32_t i = 0; i < q->size; i++) {
        if (ring_load(&region->desc[i].inflight) != 0) {
            f->old[f->old_count++] =
                (struct inflight_old){.counter = ring_load(&region->desc[i].counter), .head = (uint16_t)i};
        }
    }
    q->next_avail = q->seen_avail = (uint16_t)(used + f->old_count);
    return 0;
}

void inflight_split_take(struct inflight *f, uint16_t head) {
    ring_store(&f->split->desc[head].counter, f->counter++);
    ring_store_release(&f->split->desc[head].inflight, (uint8_t)1);
}

void inflight_split_return(struct inflight *f, uint16_t head) {
    ring_store(&f->split->desc[head].inflight, (uint8_t)0);
}

/* ---- packed ---------------------------------------------------------------------------------- */

static uint16_t offset_of(const struct vipsec_queue *q, uint32_t position) {
    return (uint16_t)(position < q->size ? position : position - q->size);
}

/* Free list, used index and wrap counter: the state that a crash falls back to. */
static void commit_packed(const struct vipsec_queue *q, const struct inflight *f) {
    ring_store_release(&f->packed->old_free_head, f->free_head);
    ring_store(&f->packed->old_used_idx, offset_of(q, q->next_used));
    ring_store(&f->packed->old_used_wrap_counter, (uint8_t)(q->next_used < q->size));
}

static void publish_packed(const struct vipsec_queue *q, const struct inflight *f, uint32_t used) {
    ring_store_release(&f->packed->free_head, f->free_head);
    ring_store_release(&f->packed->used_idx, offset_of(q, used));
    ring_store(&f->packed->used_wrap_counter, (uint8_t)(used < q->size));
}

static void start_packed(struct vipsec_queue *q, struct inflight *f) {
    memset(f->packed->desc, 0, q->size * sizeof f->packed->desc[0]);
    for (uint32_t i = 0; i < q->size; i++) {
        f->next[i] = (uint16_t)(i + 1);
        f->packed->desc[i].next = f->next[i];
    }
    f->packed->features = 0;
    f->packed->desc_num = (uint16_t)q->size;
    publish_packed(q, f, q->next_used);
    commit_packed(q, f);
    ring_store_release(&f->packed->version, (uint16_t)INFLIGHT_VERSION);
}

/* Which of the two states holds, the one before the last batch or the one behind it; as a position. */
static int settle_packed(struct vipsec_queue *q, struct inflight *f) {
    struct inflight_packed *region = f->packed;
    const uint16_t old_used = ring_load(&region->old_used_idx), new_used = ring_load(&region->used_idx);
    const bool old_wrap = ring_load(&region->old_used_wrap_counter) != 0;
    const bool new_wrap = ring_load(&region->used_wrap_counter) != 0;
    const uint16_t old_free = ring_load(&region->old_free_head), new_free = ring_load(&region->free_head);
    if (old_used >= q->size || new_used >= q->size) {
        return VIPSEC_FAULT_INDEX;
    }
    q->next_used = old_used + (old_wrap ? 0 : q->size);
    f->free_head = old_free;
    if (old_used != new_used || old_wrap != new_wrap) {
        uint64_t word;
        if (!ring_packed_available(q, q->next_used, &word)) { /* the driver has seen the batch */
            q->next_used = new_used + (new_wrap ? 0 : q->size);
            f->free_head = new_free;
        }
    }
    return 0;
}

/* Copies the descriptors of a chain that starts at this entry. Each entry is seen once: in one chain or free. */
static int copy_chain(struct vipsec_queue *q, struct inflight *f, uint8_t *seen, uint32_t head, uint32_t *copied) {
    const struct inflight_packed_desc *desc = f->packed->desc;
    struct inflight_old *old = &f->old[f->old_count++];
    *old = (struct inflight_old){.counter = ring_load(&desc[head].counter),
                                 .head = (uint16_t)head,
                                 .count = ring_load(&desc[head].num),
                                 .first = *copied};
    if (old->count == 0) {
        return VIPSEC_FAULT_EMPTY;
    }
    for (uint32_t i = 0, index = head; i < old->count; i++, index = f->next[index]) {
        if (index >= q->size || seen[index]) {
            return VIPSEC_FAULT_INDEX;
        }
        seen[index] = 1;
        f->last[head] = (uint16_t)index;
        f->copies[*copied][0] = ring_load(&desc[index].addr);
        f->copies[*copied][1] = ring_load(&desc[index].len) | (uint64_t)ring_load(&desc[index].id) << 32 |
                                (uint64_t)ring_load(&desc[index].flags) << 48;
        ++*copied;
    }
    return 0;
}

static int recover_packed(struct vipsec_queue *q, struct inflight *f, uint8_t *seen) {
    struct inflight_packed *region = f->packed;
    const int wrong = settle_packed(q, f);
    if (wrong != 0) {
        return wrong;
    }
    for (uint32_t i = 0; i < q->size; i++) {
        f->next[i] = ring_load(&region->desc[i].next);
    }
    uint32_t free_entries = 0, copied = 0;
    for (uint32_t index = f->free_head; index < q->size; index = f->next[index], free_entries++) {
        if (seen[index]) {
            return VIPSEC_FAULT_LOOP;
        }
        seen[index] = 1;
        ring_store(&region->desc[index].inflight, (uint8_t)0);
    }
    for (uint32_t i = 0; i < q->size; i++) {
        if (!seen[i] && ring_load(&region->desc[i].inflight) != 0) {
            const int bad = copy_chain(q, f, seen, i, &copied);
            if (bad != 0) {
                return bad;
            }
        }
    }
    if (free_entries + copied != q->size) {
        return VIPSEC_FAULT_INDEX; /* entries that are in no list */
    }
    publish_packed(q, f, q->next_used);
    commit_packed(q, f);
    q->next_avail = (q->next_used + copied) % (2 * q->size);
    q->held = 0; /* they are popped once more */
    return 0;
}

void inflight_packed_note(struct vipsec_queue *q, uint64_t address, uint64_t word) {
    struct inflight *f = q->inflight;
    uint32_t index = f->free_head;
    if (f->noted > 0 && index < q->size) {
        index = f->next[f->last[index]];
    }
    if (index < q->size) { /* else the driver offers more than the ring has, and is about to be told */
        struct inflight_packed_desc *desc = &f->packed->desc[index];
        ring_store(&desc->addr, address);
        ring_store(&desc->len, (uint32_t)word);
        ring_store(&desc->id, (uint16_t)(word >> 32));
        ring_store(&desc->flags, (uint16_t)(word >> 48));
        f->noted++;
        f->last[f->free_head] = (uint16_t)index;
    }
}

void inflight_packed_take(struct inflight *f, const struct vipsec_chain *chain) {
    const uint16_t head = f->free_head, last = f->last[head];
    struct inflight_packed_desc *desc = &f->packed->desc[head];
    f->entry[chain->head] = head;
    f->noted = 0;
    ring_store(&desc->num, chain->descriptors);
    ring_store(&desc->last, last);
    ring_store(&desc->counter, f->counter++);
    ring_store_release(&desc->inflight, (uint8_t)1);
    f->free_head = f->next[last];
    ring_store_release(&f->packed->free_head, f->free_head);
    ring_store_release(&f->packed->old_free_head, f->free_head);
}

static void release_entries(struct inflight *f, uint16_t buffer) {
    const uint16_t head = f->entry[buffer], last = f->last[head];
    f->next[last] = f->free_head;
    ring_store(&f->packed->desc[last].next, f->free_head);
    f->free_head = head;
}

void inflight_packed_return(struct inflight *f, const struct vipsec_chain *chain) {
    const uint16_t head = f->entry[chain->head];
    release_entries(f, chain->head);
    ring_store_release(&f->packed->desc[head].inflight, (uint8_t)0);
    ring_store_release(&f->packed->free_head, f->free_head);
    ring_store_release(&f->packed->old_free_head, f->free_head);
}

/* ---- both ------------------------------------------------------------------------------------ */

void inflight_before_use(struct vipsec_queue *q, const struct vipsec_chain *chains, size_t count) {
    struct inflight *f = q->inflight;
    uint32_t used = q->next_used;
    for (size_t i = 0; i < count; i++) {
        if (f->packed != NULL) {
            release_entries(f, chains[i].head);
            used += chains[i].descriptors;
        } else {
            ring_store(&f->split->desc[chains[i].head].next, f->batch_head);
            f->batch_head = chains[i].head;
        }
    }
    if (f->packed != NULL) {
        publish_packed(q, f, used % (2 * q->size));
    } else {
        ring_store_release(&f->split->last_batch_head, f->batch_head);
    }
}

void inflight_after_use(struct vipsec_queue *q, const struct vipsec_chain *chains, size_t count) {
    struct inflight *f = q->inflight;
    for (size_t i = 0; i < count; i++) {
        if (f->packed != NULL) {
            ring_store_release(&f->packed->desc[f->entry[chains[i].head]].inflight, (uint8_t)0);
        } else {
            ring_store_release(&f->split->desc[chains[i].head].inflight, (uint8_t)0);
        }
    }
    if (f->packed != NULL) {
        commit_packed(q, f);
    } else {
        ring_store_release(&f->split->used_idx, (uint16_t)q->next_used);
    }
}

/* Room for the private side; NULL: no memory. */
static struct inflight *inflight_new(const struct vipsec_queue *q, uint8_t *region) {
    struct inflight *f = calloc(1, sizeof *f);
    if (f == NULL) {
        return NULL;
    }
    f->old = calloc(q->size, sizeof *f->old);
    bool complete = f->old != NULL;
    if (q->is_packed) {
        f->packed = (struct inflight_packed *)(void *)region;
        f->copies = calloc(q->size, sizeof *f->copies);
        f->next = calloc(q->size, sizeof *f->next);
        f->last = calloc(q->size, sizeof *f->last);
        f->entry = calloc(q->heads, sizeof *f->entry);
        complete = complete && f->copies != NULL && f->next != NULL && f->last != NULL && f->entry != NULL;
    } else {
        f->split = (struct inflight_split *)(void *)region;
    }
    if (!complete) {
        inflight_free(f);
        return NULL;
    }
    return f;
}

/* Reads or begins the region; 0 or its fault. */
static int attach(struct vipsec_queue *q, struct inflight *f, uint8_t *seen) {
    const uint16_t version = ring_load_acquire(q->is_packed ? &f->packed->version : &f->split->version);
    const uint16_t entries = ring_load(q->is_packed ? &f->packed->desc_num : &f->split->desc_num);
    if (version == 0) {
        if (q->is_packed) {
            start_packed(q, f);
        } else {
            start_split(q, f);
        }
        return 0;
    }
    if (version != INFLIGHT_VERSION || entries != q->size) {
        return VIPSEC_FAULT_SIZE;
    }
    const int wrong = q->is_packed ? recover_packed(q, f, seen) : recover_split(q, f);
    if (wrong == 0) { /* the position may have moved */
        if (q->is_packed) {
            ring_packed_listen(q);
        } else {
            ring_split_listen(q);
        }
    }
    if (wrong == 0 && f->old_count > 0) {
        qsort(f->old, f->old_count, sizeof *f->old, by_counter);
        f->counter = f->old[f->old_count - 1].counter + 1;
    }
    return wrong;
}

static int attach_guarded(struct vipsec_queue *q, struct inflight *f, uint8_t *seen) {
    struct guard_frame frame;
    if (guard_enter(&frame, q->memory) != 0) {
        return VIPSEC_FAULT_MEMORY;
    }
    const int wrong = attach(q, f, seen);
    guard_leave(&frame);
    return wrong;
}

int vipsec_queue_inflight_new(struct vipsec_queue *q, uint64_t offset) {
    const uint64_t room = q->memory->inflight_size, wanted = vipsec_inflight_size(q->size, q->config.flags);
    if (q->fault != 0) {
        return -VIPSEC_FAULT_BROKEN;
    }
    if (wanted > room || offset > room - wanted || q->serial != 0 || q->inflight != NULL) {
        return -VIPSEC_FAULT_PLACEMENT;
    }
    uint8_t *const region = q->memory->inflight + offset;
    if ((uintptr_t)region % 8 != 0) {
        return -VIPSEC_FAULT_ALIGNMENT;
    }
    struct inflight *f = inflight_new(q, region);
    uint8_t *seen = calloc(q->size, 1);
    const struct vipsec_queue before = *q;
    const int wrong = f != NULL && seen != NULL ? attach_guarded(q, f, seen) : VIPSEC_FAULT_COUNT;
    free(seen);
    if (wrong != 0) {
        *q = before;
        inflight_free(f);
        return wrong == VIPSEC_FAULT_MEMORY ? ring_break(q, wrong) : -wrong;
    }
    q->inflight = f;
    return (int)f->old_count;
}

void vipsec_queue_inflight_end(struct vipsec_queue *q) {
    struct guard_frame frame;
    if (q->inflight == NULL || q->out != 0 || inflight_waiting(q) != 0 || q->fault != 0) {
        return;
    }
    if (guard_enter(&frame, q->memory) == 0) {
        ring_store_release(q->is_packed ? &q->inflight->packed->version : &q->inflight->split->version, (uint16_t)0);
        guard_leave(&frame);
    }
}
