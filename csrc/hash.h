/*
 * Keyed hash of a few 64-bit words, for tables whose keys a stranger chooses: pairs of words are multiplied under
 * secret offsets (NH of UMAC, RFC 4418 5.2), so that without the secret nobody can pick keys that collide.
 */
#ifndef VIPSEC_HASH_H
#define VIPSEC_HASH_H

#include <stddef.h>
#include <stdint.h>

enum { HASH_MAX_WORDS = 10 };

struct hash_secret {
    uint64_t key[HASH_MAX_WORDS + 2];
};

/* Spreads the caller's random seed (splitmix64). */
static inline void hash_secret_init(struct hash_secret *secret, uint64_t seed) {
    for (size_t i = 0; i < HASH_MAX_WORDS + 2; i++) {
        seed += 0x9e3779b97f4a7c15;
        uint64_t z = seed;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        secret->key[i] = z ^ z >> 31;
    }
}

__extension__ typedef unsigned __int128 hash_wide;

static inline uint64_t hash_fold(hash_wide product) { return (uint64_t)product ^ (uint64_t)(product >> 64); }

/* `count` is at most HASH_MAX_WORDS, and always the same for one table. */
static inline uint64_t hash_words(const struct hash_secret *secret, const uint64_t *words, size_t count) {
    const uint64_t *key = secret->key;
    hash_wide total = 0;
    size_t i = 0;
    for (; i + 1 < count; i += 2) {
        total += (hash_wide)(words[i] + key[i]) * (words[i + 1] + key[i + 1]);
    }
    if (i < count) {
        total += (hash_wide)words[i] * (key[i] | 1);
    }
    const uint64_t low = (uint64_t)total, high = (uint64_t)(total >> 64);
    return hash_fold((hash_wide)(low ^ key[HASH_MAX_WORDS]) * (high ^ key[HASH_MAX_WORDS + 1]));
}

#endif
