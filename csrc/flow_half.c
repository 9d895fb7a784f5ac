/* One copy of a pair's rules. */
#include "flow.h"

#include <stdlib.h>

enum { FIRST_SLOTS = 8 };

static bool better(const struct vipsec_flow_rule *a, const struct vipsec_flow_rule *b) {
    const struct vipsec_flow_verdict *x = &a->verdict, *y = &b->verdict;
    return x->priority > y->priority || (x->priority == y->priority && x->rule_id < y->rule_id);
}

/* The slot of this rule's key: the one that holds it, or the free one where it goes. */
static size_t locate(const struct flow_half *half, const struct vipsec_flow_rule *rule, size_t words) {
    for (size_t at = rule->hash & half->mask;; at = (at + 1) & half->mask) {
        const struct vipsec_flow_rule *there = half->rules[at];
        if (there == NULL || (there->hash == rule->hash && memcmp(there->key, rule->key, words * 8) == 0)) {
            return at;
        }
    }
}

/* Makes the slot show what rules[at] says. */
static void show(struct flow_half *half, size_t at, size_t words) {
    const struct vipsec_flow_rule *rule = half->rules[at];
    struct flow_slot *slot = flow_slot(half, at);
    if (rule == NULL) {
        slot->tag = 0;
        return;
    }
    slot->verdict = rule->verdict;
    slot->tag = flow_tag(rule->hash);
    memcpy(slot->key, rule->key, 8 * words);
}

void flow_half_drop_spare(struct flow_half *half) {
    free(half->spare_slots);
    free(half->spare_rules);
    half->spare_slots = NULL;
    half->spare_rules = NULL;
}

bool flow_half_reserve(struct flow_half *half, size_t words) {
    if (half->slots != NULL && (half->used + 1) * 4 <= (half->mask + 1) * 3) {
        return true;
    }
    const size_t slots = half->slots == NULL ? FIRST_SLOTS : (half->mask + 1) * 2;
    half->spare_slots = calloc(slots, sizeof(struct flow_slot) + 8 * words);
    half->spare_rules = calloc(slots, sizeof(struct vipsec_flow_rule *));
    half->spare_mask = slots - 1;
    if (half->spare_slots == NULL || half->spare_rules == NULL) {
        flow_half_drop_spare(half);
        return false;
    }
    return true;
}

static void half_grow(struct flow_half *half, size_t words) {
    struct vipsec_flow_rule **old = half->rules;
    const size_t slots = old == NULL ? 0 : half->mask + 1;
    free(half->slots);
    half->slots = half->spare_slots;
    half->rules = half->spare_rules;
    half->mask = half->spare_mask;
    half->stride = sizeof(struct flow_slot) + 8 * words;
    half->spare_slots = NULL;
    half->spare_rules = NULL;
    for (size_t i = 0; i < slots; i++) {
        if (old[i] != NULL) {
            const size_t at = locate(half, old[i], words);
            half->rules[at] = old[i];
            show(half, at, words);
        }
    }
    free(old);
}

bool flow_half_insert(struct flow_half *half, unsigned copy, struct vipsec_flow_rule *rule, size_t words) {
    if (half->spare_slots != NULL) {
        half_grow(half, words);
    }
    const size_t at = locate(half, rule, words);
    const struct vipsec_flow_verdict *verdict = &rule->verdict;
    const bool first = half->used == 0;
    struct vipsec_flow_rule **link = &half->rules[at];
    if (*link == NULL) {
        half->used++;
    }
    while (*link != NULL && better(*link, rule)) {
        link = &(*link)->next[copy];
    }
    rule->next[copy] = *link;
    *link = rule;
    show(half, at, words);
    half->count[verdict->priority]++;
    /* While the top is open no other pair has this priority: index_place would have asked. */
    if (!first && (verdict->priority < half->highest ||
                   (verdict->priority == half->highest && (half->top_open || verdict->rule_id > half->top_id)))) {
        return false;
    }
    half->highest = verdict->priority;
    half->top_id = verdict->rule_id;
    half->top_open = false;
    return true;
}

uint32_t flow_half_top_id(struct flow_half *half) {
    if (half->top_open) {
        half->top_open = false;
        half->top_id = UINT32_MAX;
        for (size_t i = 0; i <= half->mask; i++) {
            const struct flow_slot *slot = flow_slot(half, i);
            if (slot->tag != 0 && slot->verdict.priority == half->highest && slot->verdict.rule_id < half->top_id) {
                half->top_id = slot->verdict.rule_id;
            }
        }
    }
    return half->top_id;
}

/* Closes the gap of an emptied slot, so that every entry can be reached from where its hash points. */
static void close_gap(struct flow_half *half, size_t gap, size_t words) {
    for (size_t at = (gap + 1) & half->mask; half->rules[at] != NULL; at = (at + 1) & half->mask) {
        const size_t home = half->rules[at]->hash & half->mask;
        if (((at - home) & half->mask) >= ((at - gap) & half->mask)) {
            half->rules[gap] = half->rules[at];
            show(half, gap, words);
            gap = at;
        }
    }
    half->rules[gap] = NULL;
    show(half, gap, words);
}

bool flow_half_remove(struct flow_half *half, unsigned copy, struct vipsec_flow_rule *rule, size_t words) {
    const size_t at = locate(half, rule, words);
    struct vipsec_flow_rule **link = &half->rules[at];
    while (*link != rule) {
        link = &(*link)->next[copy];
    }
    *link = rule->next[copy];
    show(half, at, words);
    if (half->rules[at] == NULL) {
        close_gap(half, at, words);
        half->used--;
    }
    half->count[rule->verdict.priority]--;
    if (rule->verdict.priority < half->highest || (!half->top_open && rule->verdict.rule_id != half->top_id)) {
        return false;
    }
    while (half->highest > 0 && half->count[half->highest] == 0) {
        half->highest--;
    }
    half->top_open = true;
    return true;
}

void flow_half_free(struct flow_half *half) {
    free(half->slots);
    free(half->rules);
    flow_half_drop_spare(half);
}
