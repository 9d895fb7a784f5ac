/* First match among selectors, by hash tables: between policy.c and policy_space.c. */
#ifndef VIPSEC_POLICY_SPACE_H
#define VIPSEC_POLICY_SPACE_H

#include "hash.h"
#include "policy.h"

/* Words of a key: SA and protocol; both numbers; local and remote address (one word for IPv4, four for IPv6). */
enum { POLICY_WORDS = 6, POLICY_WORDS_IPV4 = 3 };

/* Which fields of a packet cannot be seen. */
enum policy_hidden { POLICY_SEEN, POLICY_NUMBERS_HIDDEN, POLICY_PROTOCOL_HIDDEN, POLICY_HIDDEN_COUNT };

struct policy_key {
    uint64_t word[POLICY_WORDS];
    uint16_t number[2];
};

struct policy_entry {
    uint16_t low[2], high[2];
    uint32_t order; /* place in the order of trial */
    uint32_t rule;  /* place in the caller's list */
    uint32_t sa_id;
    uint32_t next; /* number of the next entry with the same words, in order, plus 1; 0 for none */
    uint32_t table;
    uint8_t outcome;
    uint64_t word[]; /* masked; as many as the space has */
};

struct policy_slot {
    uint32_t tag;   /* upper half of the hash */
    uint32_t entry; /* number + 1; 0: free */
};

/* The entries that look at the same parts of a packet. */
struct policy_table {
    uint64_t mask[POLICY_WORDS];
    uint32_t first; /* lowest order among its entries */
    uint32_t used;
    size_t slot_mask;
    struct policy_slot *slots;
};

/* The tables by their lowest order. */
struct policy_space {
    struct policy_table *tables;
    uint8_t *entries; /* struct policy_entry, `stride` bytes each */
    size_t stride;
    struct policy_slot *slots;
    const struct hash_secret *secret;
    uint32_t table_count, entry_count;
    uint32_t words;
};

static inline struct policy_entry *policy_entry(const struct policy_space *space, uint32_t number) {
    return (struct policy_entry *)(void *)(space->entries + number * space->stride);
}

struct vipsec_policy {
    uint64_t number; /* no other policy of the process has had it */
    struct hash_secret secret;
    uint8_t default_outcome;
    uint32_t peer_mask;
    struct vipsec_policy_peer *peers; /* open addressing by sa_id, family 0 is free */
    /* [hidden * 2 + IPv6] */
    struct policy_space rules[POLICY_HIDDEN_COUNT * 2], opened[POLICY_HIDDEN_COUNT * 2];
};

bool policy_selector_valid(const struct vipsec_policy_selector *selector);

static inline void policy_key_words(struct policy_key *key, uint32_t sa_id, uint8_t protocol, bool ipv6,
                                    const uint8_t *local, const uint8_t *remote) {
    key->word[0] = (uint64_t)sa_id << 8 | protocol;
    key->word[1] = (uint64_t)key->number[0] << 16 | key->number[1];
    if (ipv6) {
        memcpy(&key->word[2], local, 16);
        memcpy(&key->word[4], remote, 16);
    } else {
        memcpy(&key->word[2], local, 4);
        memcpy((uint8_t *)&key->word[2] + 4, remote, 4);
    }
}

/* The first entry that matches, or NULL. */
const struct policy_entry *policy_space_find(const struct policy_space *space, const struct policy_key *key);

/* The peer of an inbound SA, or NULL when any will do. */
const struct vipsec_policy_peer *policy_peer(const struct vipsec_policy *policy, uint32_t sa_id);

#endif
