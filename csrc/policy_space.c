/* Building a policy's tables and searching them. */
#include "policy_space.h"

#include <stdatomic.h>
#include <stdlib.h>

static inline bool same(const uint64_t *a, const uint64_t *b, uint32_t words) {
    uint64_t difference = 0;
    for (uint32_t i = 0; i < words; i++) {
        difference |= a[i] ^ b[i];
    }
    return difference == 0;
}

const struct policy_entry *policy_space_find(const struct policy_space *space, const struct policy_key *key) {
    const struct policy_entry *best = NULL;
    for (uint32_t t = 0; t < space->table_count; t++) {
        const struct policy_table *table = &space->tables[t];
        uint64_t words[POLICY_WORDS];
        if (best != NULL && best->order < table->first) {
            break;
        }
        for (uint32_t i = 0; i < space->words; i++) {
            words[i] = key->word[i] & table->mask[i];
        }
        const uint64_t hash = hash_words(space->secret, words, space->words);
        const uint32_t tag = (uint32_t)(hash >> 32);
        for (size_t at = hash & table->slot_mask; table->slots[at].entry != 0; at = (at + 1) & table->slot_mask) {
            const struct policy_slot *slot = &table->slots[at];
            const struct policy_entry *entry = policy_entry(space, slot->entry - 1);
            if (slot->tag != tag || !same(entry->word, words, space->words)) {
                continue;
            }
            while (entry != NULL && (key->number[0] < entry->low[0] || key->number[0] > entry->high[0] ||
                                     key->number[1] < entry->low[1] || key->number[1] > entry->high[1])) {
                entry = entry->next != 0 ? policy_entry(space, entry->next - 1) : NULL;
            }
            if (entry != NULL && (best == NULL || entry->order < best->order)) {
                best = entry;
            }
            break;
        }
    }
    return best;
}

const struct vipsec_policy_peer *policy_peer(const struct vipsec_policy *policy, uint32_t sa_id) {
    const uint64_t word = sa_id;
    for (uint32_t at = (uint32_t)hash_words(&policy->secret, &word, 1) & policy->peer_mask;
         policy->peers[at].family != 0; at = (at + 1) & policy->peer_mask) {
        if (policy->peers[at].sa_id == sa_id) {
            return &policy->peers[at];
        }
    }
    return NULL;
}

/* ---- building ----------------------------------------------------------------------------- */

/* A selector with what becomes of the packets that match, and of those that hide what it asks for. */
struct wish {
    struct vipsec_policy_selector selector;
    uint32_t order, rule, sa_id, key_sa;
    uint32_t priority;
    uint8_t outcome;
    uint8_t when_hidden; /* VIPSEC_POLICY_BYPASS: passed over */
};

static void prefix_mask(uint8_t *mask, unsigned bits) {
    for (; bits >= 8; bits -= 8) {
        *mask++ = 0xff;
    }
    if (bits > 0) {
        *mask = (uint8_t)(0xff00 >> bits);
    }
}

static bool any_number(uint16_t low, uint16_t high) { return low == 0 && high == 0xffff; }

/* Turns a wish into an entry and the mask of its table; false when the space has no place for it. */
static bool make_entry(const struct wish *wish, enum policy_hidden hidden, bool ipv6, bool keyed_by_sa,
                       struct policy_entry *entry, uint64_t *mask) {
    const struct vipsec_policy_selector *s = &wish->selector;
    const bool numbers = !any_number(s->local_low, s->local_high) || !any_number(s->remote_low, s->remote_high);
    bool protocol = s->protocol >= 0, asks = false;
    struct policy_key key = {.word = {0}}, masks = {.word = {0}};
    uint8_t local[16] = {0}, remote[16] = {0};
    if (s->family != 0 && s->family != (ipv6 ? 6 : 4)) {
        return false;
    }
    entry->low[0] = entry->low[1] = 0;
    entry->high[0] = entry->high[1] = 0xffff;
    entry->order = wish->order;
    entry->rule = wish->rule;
    entry->sa_id = wish->sa_id;
    entry->next = 0;
    entry->outcome = wish->outcome;
    if (hidden == POLICY_PROTOCOL_HIDDEN) {
        asks = protocol;
        protocol = false;
    } else if (hidden == POLICY_NUMBERS_HIDDEN) {
        asks = numbers;
    } else {
        entry->low[0] = s->local_low;
        entry->high[0] = s->local_high;
        entry->low[1] = s->remote_low;
        entry->high[1] = s->remote_high;
        for (int i = 0; i < 2; i++) {
            if (entry->low[i] == entry->high[i]) {
                key.number[i] = entry->low[i];
                masks.number[i] = 0xffff;
            }
        }
    }
    if (asks) {
        if (wish->when_hidden == VIPSEC_POLICY_BYPASS) {
            return false;
        }
        entry->outcome = wish->when_hidden;
        entry->sa_id = 0;
    }
    prefix_mask(local, s->local_bits);
    prefix_mask(remote, s->remote_bits);
    policy_key_words(&key, wish->key_sa, protocol ? (uint8_t)s->protocol : 0, ipv6, s->local, s->remote);
    policy_key_words(&masks, keyed_by_sa ? UINT32_MAX : 0, protocol ? 0xff : 0, ipv6, local, remote);
    for (size_t i = 0; i < POLICY_WORDS; i++) {
        mask[i] = masks.word[i];
    }
    for (size_t i = 0; i < (ipv6 ? POLICY_WORDS : POLICY_WORDS_IPV4); i++) {
        entry->word[i] = key.word[i] & mask[i];
    }
    return true;
}

static uint32_t table_of(struct policy_space *space, const uint64_t *mask, uint32_t order) {
    uint32_t t = 0;
    while (t < space->table_count && memcmp(space->tables[t].mask, mask, sizeof space->tables[t].mask) != 0) {
        t++;
    }
    if (t == space->table_count) {
        memcpy(space->tables[t].mask, mask, sizeof space->tables[t].mask);
        space->tables[t].first = order;
        space->table_count++;
    }
    space->tables[t].used++;
    return t;
}

/* Entries come in from the last to the first, so that each goes to the head of its chain. */
static void insert(const struct policy_space *space, uint32_t number) {
    struct policy_entry *entry = policy_entry(space, number);
    const struct policy_table *table = &space->tables[entry->table];
    const uint64_t hash = hash_words(space->secret, entry->word, space->words);
    const uint32_t tag = (uint32_t)(hash >> 32);
    size_t at = hash & table->slot_mask;
    for (; table->slots[at].entry != 0; at = (at + 1) & table->slot_mask) {
        const struct policy_slot *slot = &table->slots[at];
        if (slot->tag == tag && same(policy_entry(space, slot->entry - 1)->word, entry->word, space->words)) {
            entry->next = slot->entry;
            break;
        }
    }
    table->slots[at] = (struct policy_slot){tag, number + 1};
}

/* `wishes` stand in the order of trial. False: no memory. */
static bool space_build(struct policy_space *space, const struct hash_secret *secret, const struct wish *wishes,
                        size_t count, enum policy_hidden hidden, bool ipv6, bool keyed_by_sa) {
    size_t slots = 0;
    space->secret = secret;
    space->words = ipv6 ? POLICY_WORDS : POLICY_WORDS_IPV4;
    /* Of IPv4, one entry for each cache line. */
    space->stride = (sizeof(struct policy_entry) + 8 * space->words + 15) / 16 * 16;
    space->entries = aligned_alloc(64, ((count + 1) * space->stride + 63) / 64 * 64);
    space->tables = calloc(count + 1, sizeof *space->tables);
    if (space->entries == NULL || space->tables == NULL) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        uint64_t mask[POLICY_WORDS];
        struct policy_entry *entry = policy_entry(space, space->entry_count);
        if (make_entry(&wishes[i], hidden, ipv6, keyed_by_sa, entry, mask)) {
            entry->table = table_of(space, mask, entry->order);
            space->entry_count++;
        }
    }
    for (uint32_t t = 0; t < space->table_count; t++) {
        size_t size = 2;
        while (size < 2 * (size_t)space->tables[t].used) {
            size *= 2;
        }
        space->tables[t].slot_mask = size - 1;
        slots += size;
    }
    space->slots = calloc(slots + 1, sizeof *space->slots);
    if (space->slots == NULL) {
        return false;
    }
    slots = 0;
    for (uint32_t t = 0; t < space->table_count; t++) {
        space->tables[t].slots = space->slots + slots;
        slots += space->tables[t].slot_mask + 1;
    }
    for (uint32_t number = space->entry_count; number > 0; number--) {
        insert(space, number - 1);
    }
    return true;
}

static int by_priority(const void *a, const void *b) {
    const struct wish *x = a, *y = b;
    return x->priority != y->priority ? (x->priority > y->priority ? -1 : 1) : (x->rule < y->rule ? -1 : 1);
}

static bool build_all(struct policy_space *spaces, const struct hash_secret *secret, struct wish *wishes, size_t count,
                      bool keyed_by_sa) {
    qsort(wishes, count, sizeof *wishes, by_priority);
    for (size_t i = 0; i < count; i++) {
        wishes[i].order = (uint32_t)i;
    }
    for (int hidden = 0; hidden < POLICY_HIDDEN_COUNT; hidden++) {
        for (int ipv6 = 0; ipv6 < 2; ipv6++) {
            if (!space_build(&spaces[hidden * 2 + ipv6], secret, wishes, count, (enum policy_hidden)hidden, ipv6 != 0,
                             keyed_by_sa)) {
                return false;
            }
        }
    }
    return true;
}

static bool peers_build(struct vipsec_policy *policy, const struct vipsec_policy_config *config) {
    uint32_t size = 2;
    while (size < 2 * (config->peer_count + 1)) {
        size *= 2;
    }
    policy->peers = calloc(size, sizeof *policy->peers);
    policy->peer_mask = size - 1;
    for (size_t i = 0; policy->peers != NULL && i < config->peer_count; i++) {
        const uint64_t word = config->peers[i].sa_id;
        uint32_t at = (uint32_t)hash_words(&policy->secret, &word, 1) & policy->peer_mask;
        while (policy->peers[at].family != 0) {
            at = (at + 1) & policy->peer_mask;
        }
        policy->peers[at] = config->peers[i];
    }
    return policy->peers != NULL;
}

static bool config_valid(const struct vipsec_policy_config *config) {
    bool valid = config->default_action != VIPSEC_POLICY_PROTECT && config->default_action <= VIPSEC_POLICY_DROP_RULE;
    for (size_t i = 0; i < config->rule_count; i++) {
        valid = valid && policy_selector_valid(&config->rules[i].selector) &&
                config->rules[i].action <= VIPSEC_POLICY_DROP_RULE;
    }
    for (size_t i = 0; i < config->inbound_count; i++) {
        valid = valid && policy_selector_valid(&config->inbound[i].selector);
    }
    for (size_t i = 0; i < config->peer_count; i++) {
        valid = valid && (config->peers[i].family == 4 || config->peers[i].family == 6);
    }
    return valid;
}

struct vipsec_policy *vipsec_policy_new(const struct vipsec_policy_config *config) {
    const size_t most = config->rule_count > config->inbound_count ? config->rule_count : config->inbound_count;
    if (!config_valid(config)) {
        return NULL;
    }
    struct vipsec_policy *policy = calloc(1, sizeof *policy);
    struct wish *wishes = calloc(most + 1, sizeof *wishes);
    bool made = policy != NULL && wishes != NULL;
    if (made) {
        static _Atomic uint64_t last;
        policy->number = atomic_fetch_add(&last, 1) + 1;
        hash_secret_init(&policy->secret, config->hash_seed);
        policy->default_outcome =
            config->default_action == VIPSEC_POLICY_BYPASS ? VIPSEC_POLICY_BYPASS : VIPSEC_POLICY_DROP_DEFAULT;
        for (uint32_t i = 0; i < config->rule_count; i++) {
            const struct vipsec_policy_rule *rule = &config->rules[i];
            wishes[i] = (struct wish){.selector = rule->selector, .rule = i, .priority = rule->priority,
                                      .sa_id = rule->action == VIPSEC_POLICY_PROTECT ? rule->sa_id : 0,
                                      .outcome = rule->action};
            wishes[i].when_hidden =
                rule->action == VIPSEC_POLICY_BYPASS ? VIPSEC_POLICY_BYPASS : VIPSEC_POLICY_DROP_HIDDEN;
        }
        made = build_all(policy->rules, &policy->secret, wishes, config->rule_count, false);
    }
    if (made) {
        for (uint32_t i = 0; i < config->inbound_count; i++) {
            wishes[i] = (struct wish){.selector = config->inbound[i].selector, .rule = i,
                                      .key_sa = config->inbound[i].sa_id, .outcome = VIPSEC_POLICY_BYPASS};
        }
        made = build_all(policy->opened, &policy->secret, wishes, config->inbound_count, true) &&
               peers_build(policy, config);
    }
    free(wishes);
    if (!made) {
        vipsec_policy_free(policy);
        return NULL;
    }
    return policy;
}

void vipsec_policy_free(struct vipsec_policy *policy) {
    if (policy == NULL) {
        return;
    }
    for (int i = 0; i < POLICY_HIDDEN_COUNT * 2; i++) {
        struct policy_space *spaces[] = {&policy->rules[i], &policy->opened[i]};
        for (int j = 0; j < 2; j++) {
            free(spaces[j]->entries);
            free(spaces[j]->tables);
            free(spaces[j]->slots);
        }
    }
    free(policy->peers);
    free(policy);
}
