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

const struct vipsec_flow_verdict *flow_match(const struct vipsec_flow_table *table, unsigned copy,
                                             const uint8_t *frame, uint32_t len, const struct vipsec_frame_view *view) {
    const struct flow_index *index = &table->index[copy];
    const struct vipsec_flow_verdict *best = NULL;
    const struct flow_group *group = NULL;
    for (size_t i = 0; i < index->count; i++) {
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
        for (size_t at = hash & half->mask; half->slots[at].rule != NULL; at = (at + 1) & half->mask) {
            const struct flow_slot *slot = &half->slots[at];
            if (slot->hash == hash && same(slot->rule->key, words, classifier->words)) {
                if (best == NULL || slot->rule->verdict.priority > best->priority) {
                    best = &slot->rule->verdict;
                    group = pair->group;
                }
                break;
            }
        }
    }
    return best;
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
