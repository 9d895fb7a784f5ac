/* Looking up the rule of a frame. */
#include "flow.h"

enum { ETH = 1, IPV4, IPV6, TCP, UDP, ESP };

/* Where the header that a selector of this type looks at begins, or NULL when the packet has no such. */
static const uint8_t *header(uint8_t type, const uint8_t *frame, uint32_t len, const struct vipsec_frame_view *view) {
    uint8_t protocol;
    uint32_t size;
    switch (type) {
    case ETH: return len >= FRAME_ETHERNET_HEADER ? frame : NULL;
    case IPV4: return view->version == 4 && view->l3 == FRAME_ETHERNET_HEADER ? frame + view->l3 : NULL;
    case IPV6: return view->version == 6 && view->l3 == FRAME_ETHERNET_HEADER ? frame + view->l3 : NULL;
    case TCP: protocol = FRAME_TCP; size = 20; break;
    case UDP: protocol = FRAME_UDP; size = 8; break;
    default: protocol = FRAME_ESP; size = 8; break;
    }
    return view->l4 != 0 && view->protocol == protocol && view->l4 + size <= view->end ? frame + view->l4 : NULL;
}

/* The words that the classifier compares; false when the packet has no such headers. */
static bool extract(const struct flow_classifier *classifier, const uint8_t *frame, uint32_t len,
                    const struct vipsec_frame_view *view, uint64_t *words) {
    const uint8_t *headers[VIPSEC_FLOW_MAX_SELECTORS];
    if (classifier->never) {
        return false;
    }
    for (size_t i = 0; i < classifier->selectors; i++) {
        headers[i] = header(classifier->type[i], frame, len, view);
        if (headers[i] == NULL) {
            return false;
        }
    }
    for (size_t i = 0; i < classifier->words; i++) {
        const struct flow_word *word = &classifier->word[i];
        uint64_t value;
        memcpy(&value, headers[word->selector] + word->at, sizeof value);
        if (word->next_header && view->extensions) {
            const uint8_t protocol = (uint8_t)view->protocol;
            memcpy((uint8_t *)&value + 6, &protocol, 1);
        }
        words[i] = value & word->mask;
    }
    return true;
}

static bool same(const uint64_t *a, const uint64_t *b, size_t words) {
    uint64_t difference = 0;
    for (size_t i = 0; i < words; i++) {
        difference |= a[i] ^ b[i];
    }
    return difference == 0;
}

/* The slot of one pair that holds these words, or NULL. */
static const struct flow_slot *find(const struct flow_half *half, const uint64_t *words, size_t count, uint64_t hash) {
    const uint32_t tag = flow_tag(hash);
    for (size_t at = hash & half->mask;; at = (at + 1) & half->mask) {
        const struct flow_slot *slot = flow_slot(half, at);
        if (slot->tag == 0) {
            return NULL;
        }
        if (slot->tag == tag && same(slot->key, words, count)) {
            return slot;
        }
    }
}

/* The look-up from pair number `from` on, after those before it gave `best`. */
static inline const struct vipsec_flow_verdict *look_on(const struct vipsec_flow_table *table, unsigned copy,
                                                        const uint8_t *frame, uint32_t len,
                                                        const struct vipsec_frame_view *view, size_t from,
                                                        const struct vipsec_flow_verdict *best) {
    const struct flow_index *index = &table->index[copy];
    const struct flow_group *group = from > 0 ? index->pairs[from - 1]->group : NULL;
    for (size_t i = from; i < index->count; i++) {
        const struct flow_pair *pair = index->pairs[i];
        const struct flow_half *half = &pair->half[copy];
        const struct flow_classifier *classifier = pair->classifier;
        uint64_t words[FLOW_MAX_WORDS];
        if (best != NULL && (pair->group != group || best->priority >= half->highest)) {
            return best;
        }
        if (!extract(classifier, frame, len, view, words)) {
            continue;
        }
        const uint64_t hash = hash_words(&table->secret, words, classifier->words);
        const struct flow_slot *slot = find(half, words, classifier->words, hash);
        if (slot != NULL && (best == NULL || slot->verdict.priority > best->priority)) {
            best = &slot->verdict;
            group = pair->group;
        }
    }
    return best;
}

const struct vipsec_flow_verdict *flow_match(const struct vipsec_flow_table *table, unsigned copy,
                                             const uint8_t *frame, uint32_t len, const struct vipsec_frame_view *view) {
    return look_on(table, copy, frame, len, view, 0, NULL);
}

enum { BATCH = 32 };

/* What the first pair compares of each packet. */
struct probe {
    uint64_t words[FLOW_MAX_WORDS];
    uint64_t hash;
    bool there;
};

void flow_match_many(const struct vipsec_flow_table *table, unsigned copy, struct flow_item *items, size_t count) {
    const struct flow_index *index = &table->index[copy];
    struct probe probes[BATCH];
    for (size_t i = 0; index->count == 0 && i < count; i++) {
        items[i].verdict = NULL;
    }
    for (size_t done = 0; index->count > 0 && done < count; done += BATCH) {
        const struct flow_half *half = &index->pairs[0]->half[copy];
        const struct flow_classifier *classifier = index->pairs[0]->classifier;
        const size_t some = count - done < BATCH ? count - done : BATCH;
        for (size_t i = 0; i < some; i++) {
            const struct flow_item *item = &items[done + i];
            struct probe *probe = &probes[i];
            probe->there = extract(classifier, item->frame, item->len, item->view, probe->words);
            if (probe->there) {
                probe->hash = hash_words(&table->secret, probe->words, classifier->words);
                const struct flow_slot *slot = flow_slot(half, probe->hash & half->mask);
                __builtin_prefetch(slot);
                __builtin_prefetch((const uint8_t *)slot + half->stride - 1);
            }
        }
        for (size_t i = 0; i < some; i++) {
            struct flow_item *item = &items[done + i];
            const struct flow_slot *slot =
                probes[i].there ? find(half, probes[i].words, classifier->words, probes[i].hash) : NULL;
            const struct vipsec_flow_verdict *best = slot != NULL ? &slot->verdict : NULL;
            item->verdict = look_on(table, copy, item->frame, item->len, item->view, 1, best);
        }
    }
}

void vipsec_flow_match_many(struct vipsec_flow_table *table, const uint8_t *const *frames, const uint32_t *lens,
                            size_t count, struct vipsec_flow_verdict *verdicts, uint8_t *found) {
    const unsigned copy = flow_enter(table);
    for (size_t done = 0; done < count; done += BATCH) {
        struct vipsec_frame_view views[BATCH];
        struct flow_item items[BATCH];
        const size_t some = count - done < BATCH ? count - done : BATCH;
        for (size_t i = 0; i < some; i++) {
            items[i] = (struct flow_item){frames[done + i], &views[i], lens[done + i], NULL};
            frame_view(frames[done + i], lens[done + i], 0, &views[i]);
        }
        flow_match_many(table, copy, items, some);
        for (size_t i = 0; i < some; i++) {
            found[done + i] = items[i].verdict != NULL;
            if (items[i].verdict != NULL) {
                verdicts[done + i] = *items[i].verdict;
            }
        }
    }
    flow_leave(table, copy);
}

int vipsec_flow_match(struct vipsec_flow_table *table, const uint8_t *frame, uint32_t len, uint32_t l3,
                      struct vipsec_flow_verdict *verdict) {
    struct vipsec_frame_view view;
    frame_view(frame, len, l3, &view);
    const unsigned copy = flow_enter(table);
    const struct vipsec_flow_verdict *found = flow_match(table, copy, frame, len, &view);
    if (found != NULL) {
        *verdict = *found;
    }
    flow_leave(table, copy);
    return found != NULL;
}
