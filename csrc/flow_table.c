/* Changing the rules of a flow filter: see flow.h for how that goes on while packets are looked up. */
#include "flow.h"

#include <sched.h>
#include <stdlib.h>

static const uint8_t header_sizes[] = {0, 14, 20, 40, 20, 8, 8}; /* by selector type */

enum { TYPE_IPV6 = 3, TYPE_UDP = 5 };

struct vipsec_flow_table *vipsec_flow_table_new(uint64_t hash_seed) {
    struct vipsec_flow_table *table = aligned_alloc(64, sizeof *table);
    if (table == NULL) {
        return NULL;
    }
    memset(table, 0, sizeof *table);
    hash_secret_init(&table->secret, hash_seed);
    pthread_mutex_init(&table->lock, NULL);
    return table;
}

/* ---- the order of the pairs ---------------------------------------------------------------- */

static bool comes_first(struct flow_pair *a, struct flow_pair *b, unsigned copy) {
    struct flow_half *x = &a->half[copy], *y = &b->half[copy];
    if (a->group != b->group) {
        return a->group->priority > b->group->priority ||
               (a->group->priority == b->group->priority && a->group->id < b->group->id);
    }
    return x->highest > y->highest || (x->highest == y->highest && flow_half_top_id(x) < flow_half_top_id(y));
}

/* Puts one pair where its best rule wants it; the others are in order. */
static void index_place(struct flow_index *index, unsigned copy, struct flow_pair *pair) {
    size_t at = 0;
    while (at < index->count && index->pairs[at] != pair) {
        at++;
    }
    if (at < index->count) {
        index->count--;
        memmove(index->pairs + at, index->pairs + at + 1, (index->count - at) * sizeof(struct flow_pair *));
    }
    if (pair->half[copy].used == 0) {
        return;
    }
    at = index->count++;
    for (; at > 0 && comes_first(pair, index->pairs[at - 1], copy); at--) {
        index->pairs[at] = index->pairs[at - 1];
    }
    index->pairs[at] = pair;
}

/* ---- changes ------------------------------------------------------------------------------- */

struct change {
    enum { ADD, REMOVE, REORDER } kind; /* REORDER: the priority of a group has changed */
    struct vipsec_flow_rule *rule;
    struct flow_pair **longer[2]; /* ADD of a new pair: arrays of the indexes with room for it */
};

static void apply(struct vipsec_flow_table *table, const struct change *change, unsigned copy) {
    struct flow_index *index = &table->index[copy];
    if (change->kind == REORDER) {
        index->count = 0;
        for (struct flow_pair *pair = table->pairs; pair != NULL; pair = pair->next) {
            index_place(index, copy, pair);
        }
        return;
    }
    struct flow_pair *pair = change->rule->pair;
    const size_t words = pair->classifier->words;
    if (change->longer[copy] != NULL) {
        if (index->count > 0) {
            memcpy(change->longer[copy], index->pairs, index->count * sizeof(struct flow_pair *));
        }
        free(index->pairs);
        index->pairs = change->longer[copy];
    }
    if ((change->kind == ADD ? flow_half_insert : flow_half_remove)(&pair->half[copy], copy, change->rule, words)) {
        index_place(index, copy, pair);
    }
}

static void carry_out(struct vipsec_flow_table *table, const struct change *change) {
    const unsigned old = atomic_load(&table->active), new = 1 - old;
    apply(table, change, new);
    atomic_store(&table->active, new);
    while (atomic_load(&table->readers[old].inside) != 0) {
        sched_yield();
    }
    apply(table, change, old);
}

static struct flow_group *find_group(const struct vipsec_flow_table *table, uint32_t id) {
    struct flow_group *group = table->groups;
    while (group != NULL && group->id != id) {
        group = group->next;
    }
    return group;
}

static struct flow_classifier *find_classifier(const struct vipsec_flow_table *table, uint32_t id) {
    struct flow_classifier *classifier = table->classifiers;
    while (classifier != NULL && classifier->id != id) {
        classifier = classifier->next;
    }
    return classifier;
}

int vipsec_flow_set_group(struct vipsec_flow_table *table, uint32_t id, uint32_t priority) {
    pthread_mutex_lock(&table->lock);
    struct flow_group *group = find_group(table, id);
    if (group == NULL) {
        group = calloc(1, sizeof *group);
        if (group != NULL) {
            *group = (struct flow_group){.next = table->groups, .id = id};
            table->groups = group;
        }
    }
    if (group != NULL && group->priority != priority) {
        group->priority = priority;
        carry_out(table, &(struct change){.kind = REORDER});
    }
    pthread_mutex_unlock(&table->lock);
    return group != NULL ? VIPSEC_FLOW_OK : VIPSEC_FLOW_NO_MEMORY;
}

int vipsec_flow_remove_group(struct vipsec_flow_table *table, uint32_t id) {
    int result = VIPSEC_FLOW_UNKNOWN;
    pthread_mutex_lock(&table->lock);
    for (struct flow_group **link = &table->groups; *link != NULL; link = &(*link)->next) {
        struct flow_group *group = *link;
        if (group->id == id) {
            result = group->users > 0 ? VIPSEC_FLOW_BUSY : VIPSEC_FLOW_OK;
            if (result == VIPSEC_FLOW_OK) {
                *link = group->next;
                free(group);
            }
            break;
        }
    }
    pthread_mutex_unlock(&table->lock);
    return result;
}

/* ---- classifiers --------------------------------------------------------------------------- */

/* The 8-octet words that cover a header of `size` octets; the last two may overlap. */
static size_t word_count(size_t size) { return (size + 7) / 8; }

static uint8_t word_at(size_t size, size_t number) {
    return (uint8_t)(number + 1 < word_count(size) ? 8 * number : size - 8);
}

/* Reads word `number` of a header of which `given` octets are there, the others being zero. Octets that the word
 * before it has as well are left out. */
static uint64_t read_word(const uint8_t *header, size_t given, size_t size, size_t number) {
    uint8_t octets[8] = {0};
    const size_t at = word_at(size, number);
    for (size_t i = 8 * number - at; i < 8 && at + i < given; i++) {
        octets[i] = header[at + i];
    }
    uint64_t word;
    memcpy(&word, octets, 8);
    return word;
}

/* Fills a classifier; false when its keys would be longer than a rule's room. */
static bool compile(struct flow_classifier *made, const struct vipsec_flow_selector *selectors, size_t count) {
    if (count > VIPSEC_FLOW_MAX_SELECTORS) {
        return false;
    }
    made->selectors = (uint8_t)count;
    for (size_t i = 0; i < count; i++) {
        const struct vipsec_flow_selector *selector = &selectors[i];
        const size_t size = selector->type < sizeof header_sizes ? header_sizes[selector->type] : 0;
        made->type[i] = selector->type;
        made->length[i] = selector->length;
        made->key_len += selector->length;
        made->udp = made->udp || selector->type == TYPE_UDP;
        if (size == 0 || selector->length > size) {
            made->never = true;
            continue;
        }
        for (size_t number = 0; number < word_count(size); number++) {
            const uint64_t mask = read_word(selector->mask, selector->length, size, number);
            if (mask == 0) {
                continue;
            }
            if (made->words == FLOW_MAX_WORDS) {
                return false;
            }
            made->word[made->words++] = (struct flow_word){mask, (uint8_t)i, word_at(size, number),
                                                           selector->type == TYPE_IPV6 && number == 0};
        }
    }
    return true;
}

int vipsec_flow_set_classifier(struct vipsec_flow_table *table, uint32_t id,
                               const struct vipsec_flow_selector *selectors, size_t count) {
    struct flow_classifier *made = calloc(1, sizeof *made);
    int result = VIPSEC_FLOW_OK;
    if (made == NULL) {
        return VIPSEC_FLOW_NO_MEMORY;
    }
    made->id = id;
    pthread_mutex_lock(&table->lock);
    struct flow_classifier *old = find_classifier(table, id);
    if (old != NULL && old->users > 0) {
        result = VIPSEC_FLOW_BUSY;
    } else if (!compile(made, selectors, count)) {
        result = VIPSEC_FLOW_REFUSED;
    } else if (old != NULL) {
        made->next = old->next;
        *old = *made;
    } else {
        made->next = table->classifiers;
        table->classifiers = made;
        made = NULL;
    }
    pthread_mutex_unlock(&table->lock);
    free(made);
    return result;
}

int vipsec_flow_remove_classifier(struct vipsec_flow_table *table, uint32_t id) {
    int result = VIPSEC_FLOW_UNKNOWN;
    pthread_mutex_lock(&table->lock);
    for (struct flow_classifier **link = &table->classifiers; *link != NULL; link = &(*link)->next) {
        struct flow_classifier *classifier = *link;
        if (classifier->id == id) {
            result = classifier->users > 0 ? VIPSEC_FLOW_BUSY : VIPSEC_FLOW_OK;
            if (result == VIPSEC_FLOW_OK) {
                *link = classifier->next;
                free(classifier);
            }
            break;
        }
    }
    pthread_mutex_unlock(&table->lock);
    return result;
}

/* ---- rules --------------------------------------------------------------------------------- */

static void rule_key(struct vipsec_flow_rule *rule, const struct flow_classifier *classifier, const uint8_t *keys) {
    size_t starts[VIPSEC_FLOW_MAX_SELECTORS], at = 0;
    for (size_t i = 0; i < classifier->selectors; i++) {
        starts[i] = at;
        at += classifier->length[i];
    }
    for (size_t i = 0; i < classifier->words; i++) {
        const struct flow_word *word = &classifier->word[i];
        const size_t size = header_sizes[classifier->type[word->selector]];
        const size_t number = word->at == size - 8 ? word_count(size) - 1 : word->at / 8u;
        rule->key[i] = word->mask & read_word(keys + starts[word->selector], classifier->length[word->selector],
                                              size, number);
    }
}

static void unlink_pair(struct vipsec_flow_table *table, struct flow_pair *pair) {
    struct flow_pair **link = &table->pairs;
    while (*link != pair) {
        link = &(*link)->next;
    }
    *link = pair->next;
    table->pair_count--;
    for (int copy = 0; copy < 2; copy++) {
        flow_half_free(&pair->half[copy]);
    }
    free(pair);
}

/* Adds with everything at hand or not at all. */
static bool add(struct vipsec_flow_table *table, struct vipsec_flow_rule *rule, struct flow_group *group,
                struct flow_classifier *classifier) {
    struct change change = {.kind = ADD, .rule = rule};
    struct flow_pair *pair = table->pairs;
    while (pair != NULL && (pair->group != group || pair->classifier != classifier)) {
        pair = pair->next;
    }
    const bool new = pair == NULL;
    bool ready = true;
    if (new) {
        pair = calloc(1, sizeof *pair);
        if (pair == NULL) {
            return false;
        }
        pair->group = group;
        pair->classifier = classifier;
        pair->next = table->pairs;
        table->pairs = pair;
        table->pair_count++;
        for (int copy = 0; copy < 2; copy++) {
            change.longer[copy] = malloc(table->pair_count * sizeof(struct flow_pair *));
            ready = ready && change.longer[copy] != NULL;
        }
    }
    ready = ready && flow_half_reserve(&pair->half[0], classifier->words) &&
            flow_half_reserve(&pair->half[1], classifier->words);
    if (!ready) {
        flow_half_drop_spare(&pair->half[0]);
        free(change.longer[0]);
        free(change.longer[1]);
        if (new) {
            unlink_pair(table, pair);
        }
        return false;
    }
    rule->pair = pair;
    group->users++;
    classifier->users++;
    carry_out(table, &change);
    return true;
}

struct vipsec_flow_rule *vipsec_flow_add_rule(struct vipsec_flow_table *table,
                                              const struct vipsec_flow_rule_config *config, const uint8_t *keys,
                                              size_t key_len, int *result) {
    struct vipsec_flow_rule *rule = calloc(1, sizeof *rule);
    if (rule == NULL) {
        *result = VIPSEC_FLOW_NO_MEMORY;
        return NULL;
    }
    pthread_mutex_lock(&table->lock);
    struct flow_group *group = find_group(table, config->group_id);
    struct flow_classifier *classifier = find_classifier(table, config->classifier_id);
    if (group == NULL || classifier == NULL) {
        *result = VIPSEC_FLOW_UNKNOWN;
    } else if (key_len != classifier->key_len) {
        *result = VIPSEC_FLOW_REFUSED;
    } else {
        rule->verdict = (struct vipsec_flow_verdict){config->rule_id, config->vq_index, config->action,
                                                     config->priority, classifier->udp, {0}};
        rule_key(rule, classifier, keys);
        rule->hash = hash_words(&table->secret, rule->key, classifier->words);
        *result = add(table, rule, group, classifier) ? VIPSEC_FLOW_OK : VIPSEC_FLOW_NO_MEMORY;
    }
    pthread_mutex_unlock(&table->lock);
    if (*result != VIPSEC_FLOW_OK) {
        free(rule);
        return NULL;
    }
    return rule;
}

void vipsec_flow_remove_rule(struct vipsec_flow_table *table, struct vipsec_flow_rule *rule) {
    pthread_mutex_lock(&table->lock);
    struct flow_pair *pair = rule->pair;
    carry_out(table, &(struct change){.kind = REMOVE, .rule = rule});
    pair->group->users--;
    pair->classifier->users--;
    if (pair->half[0].used == 0) {
        unlink_pair(table, pair);
    }
    pthread_mutex_unlock(&table->lock);
    free(rule);
}

void vipsec_flow_table_free(struct vipsec_flow_table *table) {
    if (table == NULL) {
        return;
    }
    while (table->pairs != NULL) {
        const struct flow_half *half = &table->pairs->half[0];
        for (size_t i = 0; i <= half->mask; i++) {
            for (struct vipsec_flow_rule *rule = half->rules[i], *next; rule != NULL; rule = next) {
                next = rule->next[0];
                free(rule);
            }
        }
        unlink_pair(table, table->pairs);
    }
    for (struct flow_group *group = table->groups, *next; group != NULL; group = next) {
        next = group->next;
        free(group);
    }
    for (struct flow_classifier *classifier = table->classifiers, *next; classifier != NULL; classifier = next) {
        next = classifier->next;
        free(classifier);
    }
    free(table->index[0].pairs);
    free(table->index[1].pairs);
    pthread_mutex_destroy(&table->lock);
    free(table);
}
