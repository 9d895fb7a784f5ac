/*
 * The flow filter: device/flow_filter.py with its rules hashed per (group, classifier), so that a packet costs one
 * extraction and one look-up for each of these pairs, however many rules there are.
 *
 * There are two copies of everything that readers look at. Readers use the active one; a change goes into the other
 * one, which then becomes active, and, once no reader is left in the old one, into that as well. So a change costs
 * what it changes, and readers never wait.
 */
#ifndef VIPSEC_FLOW_H
#define VIPSEC_FLOW_H

#include <pthread.h>
#include <stdatomic.h>

#include "frame.h"
#include "hash.h"

enum { FLOW_MAX_WORDS = HASH_MAX_WORDS };

static_assert(sizeof(struct vipsec_flow_verdict) == 12, "layout");
static_assert(offsetof(struct vipsec_flow_selector, mask) == 8 && sizeof(struct vipsec_flow_selector) == 16, "layout");
static_assert(sizeof(struct vipsec_flow_rule_config) == 16, "layout");

struct flow_classifier;
struct flow_pair;

/* The pairs in the order in which they are tried. */
struct flow_index {
    struct flow_pair **pairs;
    size_t count;
};

struct vipsec_flow_table {
    atomic_uint active; /* copy number: 0 or 1 */
    struct flow_index index[2];
    struct hash_secret secret;
    struct {
        _Alignas(64) atomic_uint inside;
    } readers[2];
    /* What follows belongs to the writer. */
    _Alignas(64) pthread_mutex_t lock;
    struct flow_group *groups;
    struct flow_classifier *classifiers;
    struct flow_pair *pairs;
    size_t pair_count;
};

/* Enters a stretch in which rules may be looked up and verdicts looked at; returns the copy to use. One per batch.
 * Within it the same thread must not change the table. */
static inline unsigned flow_enter(struct vipsec_flow_table *table) {
    for (;;) {
        const unsigned copy = atomic_load(&table->active);
        atomic_fetch_add(&table->readers[copy].inside, 1);
        if (atomic_load(&table->active) == copy) {
            return copy;
        }
        atomic_fetch_sub(&table->readers[copy].inside, 1); /* a writer may have been waiting for us since */
    }
}

static inline void flow_leave(struct vipsec_flow_table *table, unsigned copy) {
    atomic_fetch_sub_explicit(&table->readers[copy].inside, 1, memory_order_release);
}

/* Whether there is a rule at all. */
static inline bool flow_any(const struct vipsec_flow_table *table, unsigned copy) {
    return table->index[copy].count != 0;
}

/* The one rule whose action applies to the frame (private memory), or NULL. Valid until flow_leave. */
const struct vipsec_flow_verdict *flow_match(const struct vipsec_flow_table *table, unsigned copy,
                                             const uint8_t *frame, uint32_t len, const struct vipsec_frame_view *view);

/* One frame of a batch. */
struct flow_item {
    const uint8_t *frame;
    const struct vipsec_frame_view *view;
    uint32_t len;
    const struct vipsec_flow_verdict *verdict; /* set: as flow_match returns it */
};

/* flow_match for a batch: memory that is far away is fetched for all of them at the same time. */
void flow_match_many(const struct vipsec_flow_table *table, unsigned copy, struct flow_item *items, size_t count);

/* ---- between flow.c, flow_table.c and flow_half.c --------------------------------------------- */

/* 8 octets of a header and which of their bits are compared. */
struct flow_word {
    uint64_t mask; /* as it stands in memory */
    uint8_t selector, at;
    bool next_header; /* the word that holds IPv6's Next Header */
};

struct flow_classifier {
    struct flow_classifier *next;
    uint32_t id;
    uint32_t key_len; /* octets of a rule's keys */
    uint32_t users;   /* rules */
    bool never;       /* a selector that no packet has */
    bool udp;
    uint8_t selectors, words;
    uint8_t type[VIPSEC_FLOW_MAX_SELECTORS], length[VIPSEC_FLOW_MAX_SELECTORS];
    struct flow_word word[FLOW_MAX_WORDS];
};

struct vipsec_flow_rule {
    struct vipsec_flow_verdict verdict;
    uint64_t key[FLOW_MAX_WORDS];
    struct vipsec_flow_rule *next[2]; /* rules with the same key and lower priority, in each copy */
    struct flow_pair *pair;
    uint64_t hash;
};

/* All that a look-up reads of a rule, so that it misses the caches once. */
struct flow_slot {
    struct vipsec_flow_verdict verdict;
    uint32_t tag; /* upper half of the hash, made odd; 0: free */
    uint64_t key[];
};

/* One copy of a pair's rules: open addressing, linear probing. */
struct flow_half {
    uint8_t *slots; /* struct flow_slot, `stride` bytes each */
    size_t mask, stride;
    uint32_t highest; /* priority of its best rule */
    /* What follows is the writer's. */
    uint32_t top_id; /* the lowest id among the rules of that priority, unless */
    bool top_open;   /* nobody has asked since it went */
    struct vipsec_flow_rule **rules; /* the best rule of each slot */
    size_t used;
    uint32_t count[256]; /* rules by priority */
    uint8_t *spare_slots; /* room to grow into, got before a change begins */
    struct vipsec_flow_rule **spare_rules;
    size_t spare_mask;
};

static inline struct flow_slot *flow_slot(const struct flow_half *half, size_t number) {
    return (struct flow_slot *)(void *)(half->slots + number * half->stride);
}

static inline uint32_t flow_tag(uint64_t hash) { return (uint32_t)(hash >> 32) | 1; }

/* Gets the room that one more rule may need; false: no memory. Readers of this copy may go on. */
bool flow_half_reserve(struct flow_half *half, size_t words);
void flow_half_drop_spare(struct flow_half *half);

/* With no reader in this copy. Both say whether the best rule may be another one now. */
bool flow_half_insert(struct flow_half *half, unsigned copy, struct vipsec_flow_rule *rule, size_t words);
bool flow_half_remove(struct flow_half *half, unsigned copy, struct vipsec_flow_rule *rule, size_t words);

/* The lowest id among the rules of the highest priority. */
uint32_t flow_half_top_id(struct flow_half *half);
void flow_half_free(struct flow_half *half);

struct flow_group {
    struct flow_group *next;
    uint32_t id, priority;
    uint32_t users; /* rules */
};

/* The rules of one group that use one classifier. */
struct flow_pair {
    struct flow_half half[2];
    struct flow_classifier *classifier;
    struct flow_group *group;
    struct flow_pair *next;
};

#endif
