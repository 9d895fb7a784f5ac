/* A hash table of fixed size whose entries also stand in the order of their last use. */
#include "flow_memory.h"

#include <pthread.h>
#include <stdlib.h>

#include "hash.h"

enum { BUCKETS = 2 * VIPSEC_MAX_FLOWS, NONE = 0xffff };

static_assert(VIPSEC_MAX_FLOWS < NONE, "numbers of entries have 16 bits");
static_assert((int)FLOW_KEY_WORDS <= (int)HASH_MAX_WORDS, "a key fits the hash");

struct entry {
    uint64_t key[FLOW_KEY_WORDS];
    uint32_t queue;
    uint16_t bucket, chain; /* its bucket; the next entry of that */
    uint16_t newer, older;
};

struct vipsec_flow_memory {
    pthread_mutex_t lock;
    struct hash_secret secret;
    uint32_t used;
    uint16_t newest, oldest;
    uint16_t bucket[BUCKETS];
    struct entry entry[VIPSEC_MAX_FLOWS];
};

struct vipsec_flow_memory *vipsec_flow_memory_new(uint64_t hash_seed) {
    struct vipsec_flow_memory *memory = calloc(1, sizeof *memory);
    if (memory == NULL) {
        return NULL;
    }
    pthread_mutex_init(&memory->lock, NULL);
    hash_secret_init(&memory->secret, hash_seed);
    memset(memory->bucket, 0xff, sizeof memory->bucket);
    memory->newest = memory->oldest = NONE;
    return memory;
}

void vipsec_flow_memory_free(struct vipsec_flow_memory *memory) {
    if (memory != NULL) {
        pthread_mutex_destroy(&memory->lock);
        free(memory);
    }
}

void flow_key(const uint8_t *frame, const struct vipsec_frame_view *view, bool sent, struct flow_key *key) {
    const uint32_t size = view->version == 4 ? 4 : 16, l4 = frame_transport(view);
    uint8_t *to = key->octets;
    memset(key, 0, sizeof *key);
    if (view->version == 0) {
        return;
    }
    const uint8_t *source = frame + view->l3 + (view->version == 4 ? 12 : 8), *target = source + size;
    *to++ = (uint8_t)view->protocol;
    memcpy(to, sent ? target : source, size);
    memcpy(to + size, sent ? source : target, size);
    to += 2 * size;
    if (l4 != 0 && (view->protocol == FRAME_TCP || view->protocol == FRAME_UDP) && l4 + 4 <= view->end) {
        memcpy(to, frame + l4 + (sent ? 2 : 0), 2);
        memcpy(to + 2, frame + l4 + (sent ? 0 : 2), 2);
        to += 4;
    }
    key->len = (uint8_t)(to - key->octets);
    key->octets[FLOW_KEY_SIZE - 1] = key->len;
}

static uint16_t find(const struct vipsec_flow_memory *memory, const uint64_t *words, uint16_t bucket) {
    uint16_t at = memory->bucket[bucket];
    while (at != NONE && memcmp(memory->entry[at].key, words, FLOW_KEY_SIZE) != 0) {
        at = memory->entry[at].chain;
    }
    return at;
}

static uint16_t bucket_of(const struct vipsec_flow_memory *memory, const struct flow_key *key, uint64_t *words) {
    memcpy(words, key->octets, FLOW_KEY_SIZE);
    return (uint16_t)(hash_words(&memory->secret, words, FLOW_KEY_WORDS) % BUCKETS);
}

static void unlink_use(struct vipsec_flow_memory *memory, uint16_t at) {
    const struct entry *entry = &memory->entry[at];
    *(entry->newer == NONE ? &memory->newest : &memory->entry[entry->newer].older) = entry->older;
    *(entry->older == NONE ? &memory->oldest : &memory->entry[entry->older].newer) = entry->newer;
}

static void link_use(struct vipsec_flow_memory *memory, uint16_t at) {
    struct entry *entry = &memory->entry[at];
    entry->newer = NONE;
    entry->older = memory->newest;
    *(entry->older == NONE ? &memory->oldest : &memory->entry[entry->older].newer) = at;
    memory->newest = at;
}

/* A free entry: a fresh one, or that of the flow that was not used for longest. */
static uint16_t take(struct vipsec_flow_memory *memory) {
    if (memory->used < VIPSEC_MAX_FLOWS) {
        return (uint16_t)memory->used++;
    }
    const uint16_t at = memory->oldest;
    uint16_t *link = &memory->bucket[memory->entry[at].bucket];
    unlink_use(memory, at);
    while (*link != at) {
        link = &memory->entry[*link].chain;
    }
    *link = memory->entry[at].chain;
    return at;
}

void flow_memory_sent(struct vipsec_flow_memory *memory, const struct flow_key *key, uint32_t queue) {
    uint64_t words[FLOW_KEY_WORDS];
    if (key->len == 0) {
        return;
    }
    const uint16_t bucket = bucket_of(memory, key, words);
    pthread_mutex_lock(&memory->lock);
    uint16_t at = find(memory, words, bucket);
    if (at != NONE) {
        unlink_use(memory, at);
    } else {
        at = take(memory);
        memcpy(memory->entry[at].key, words, FLOW_KEY_SIZE);
        memory->entry[at].bucket = bucket;
        memory->entry[at].chain = memory->bucket[bucket];
        memory->bucket[bucket] = at;
    }
    memory->entry[at].queue = queue;
    link_use(memory, at);
    pthread_mutex_unlock(&memory->lock);
}

int32_t flow_memory_queue(struct vipsec_flow_memory *memory, const struct flow_key *key) {
    uint64_t words[FLOW_KEY_WORDS];
    const uint16_t bucket = bucket_of(memory, key, words);
    pthread_mutex_lock(&memory->lock);
    const uint16_t at = find(memory, words, bucket);
    const int32_t queue = at == NONE ? -1 : (int32_t)memory->entry[at].queue;
    pthread_mutex_unlock(&memory->lock);
    return queue;
}

/* ---- the public face --------------------------------------------------------------------- */

void vipsec_flow_memory_sent(struct vipsec_flow_memory *memory, const uint8_t *frame, uint32_t len, uint32_t queue) {
    struct vipsec_frame_view view;
    struct flow_key key;
    frame_view(frame, len, 0, &view);
    flow_key(frame, &view, true, &key);
    flow_memory_sent(memory, &key, queue);
}

uint32_t vipsec_flow_memory_count(struct vipsec_flow_memory *memory) {
    pthread_mutex_lock(&memory->lock);
    const uint32_t used = memory->used;
    pthread_mutex_unlock(&memory->lock);
    return used;
}
