/*
 * What is in flight, kept in memory that outlives us (vhost-user, "Inflight I/O tracking"): after a crash the next
 * back-end finds the chains that were taken and not marked used, in their order.
 *
 * The region belongs to the front-end. At work it is only written; what we need of it stands in private memory. It
 * is read once, when it is attached, and believed only as far as it makes sense.
 */
#ifndef VIPSEC_INFLIGHT_H
#define VIPSEC_INFLIGHT_H

#include "ring.h"

enum { INFLIGHT_VERSION = 1, INFLIGHT_ALIGN = 64 };

struct inflight_split_desc {
    uint8_t inflight;
    uint8_t padding[5];
    uint16_t next;
    uint64_t counter;
};

struct inflight_split {
    uint64_t features;
    uint16_t version;
    uint16_t desc_num;
    uint16_t last_batch_head;
    uint16_t used_idx;
    struct inflight_split_desc desc[];
};

struct inflight_packed_desc {
    uint8_t inflight;
    uint8_t padding;
    uint16_t next;
    uint16_t last;
    uint16_t num;
    uint64_t counter;
    uint16_t id;
    uint16_t flags;
    uint32_t len;
    uint64_t addr;
};

struct inflight_packed {
    uint64_t features;
    uint16_t version;
    uint16_t desc_num;
    uint16_t free_head;
    uint16_t old_free_head;
    uint16_t used_idx;
    uint16_t old_used_idx;
    uint8_t used_wrap_counter;
    uint8_t old_used_wrap_counter;
    uint8_t padding[7];
    struct inflight_packed_desc desc[];
};

static_assert(sizeof(struct inflight_split_desc) == 16 && offsetof(struct inflight_split, desc) == 16, "wire layout");
static_assert(sizeof(struct inflight_packed_desc) == 32 && offsetof(struct inflight_packed, desc) == 32,
              "wire layout");

/* A chain that an earlier owner took and did not mark used. */
struct inflight_old {
    uint64_t counter;
    uint16_t head;  /* split: first descriptor. packed: entry of the region */
    uint16_t count; /* packed: descriptors */
    uint32_t first; /* packed: first of them in `copies` */
};

struct inflight {
    struct inflight_split *split; /* one of the two is set */
    struct inflight_packed *packed;
    uint64_t counter;
    /* To be popped before anything new, in this order. */
    struct inflight_old *old;
    uint32_t old_count;
    uint64_t (*copies)[2]; /* packed: their descriptors */
    /* split */
    uint16_t batch_head;
    /* packed: the lists of the region, mirrored */
    uint16_t free_head;
    uint16_t noted;  /* free entries filled by the chain that is being walked */
    uint16_t *next;  /* by entry */
    uint16_t *last;  /* by first entry of a chain */
    uint16_t *entry; /* by buffer id: its first entry */
};

/* Chains of an earlier owner that have not been popped yet. unpop goes back over them: they have the first serials. */
static inline uint64_t inflight_waiting(const struct vipsec_queue *q) {
    return q->inflight != NULL && q->serial < q->inflight->old_count ? q->inflight->old_count - q->serial : 0;
}

/* The next of them. */
static inline const struct inflight_old *inflight_next(const struct vipsec_queue *q) {
    return &q->inflight->old[q->serial];
}

/* Split: a chain is taken, or given back. */
void inflight_split_take(struct inflight *f, uint16_t head);
void inflight_split_return(struct inflight *f, uint16_t head);
/* Packed: one descriptor of a chain while it is walked; then the chain is taken, or not. */
void inflight_packed_note(struct vipsec_queue *q, uint64_t address, uint64_t word);
void inflight_packed_take(struct inflight *f, const struct vipsec_chain *chain);
void inflight_packed_return(struct inflight *f, const struct vipsec_chain *chain);

/* Around the stores that mark chains used. */
void inflight_before_use(struct vipsec_queue *q, const struct vipsec_chain *chains, size_t count);
void inflight_after_use(struct vipsec_queue *q, const struct vipsec_chain *chains, size_t count);

void inflight_free(struct inflight *f);

#endif
