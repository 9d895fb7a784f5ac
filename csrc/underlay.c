/* Making an underlay block, and looking addresses up in it. */
#include "underlay.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static_assert(sizeof(struct vipsec_underlay_address) == 32, "vipsec.h shows it to other languages");
static_assert(sizeof(struct vipsec_underlay_config) == 48, "vipsec.h shows it to other languages");

static void make_key(uint64_t word[UNDERLAY_WORDS], int family, const uint8_t *address) {
    word[0] = (uint64_t)family;
    word[1] = word[2] = 0;
    memcpy(&word[1], address, family == 4 ? 4 : 16);
}

/* Where an address stands, or would. */
static uint32_t place_of(const struct vipsec_underlay *underlay, const uint64_t word[UNDERLAY_WORDS]) {
    uint32_t at = (uint32_t)hash_words(&underlay->secret, word, UNDERLAY_WORDS) & underlay->mask;
    while (underlay->entries[at].word[0] != 0 && memcmp(underlay->entries[at].word, word, 8 * UNDERLAY_WORDS) != 0) {
        at = (at + 1) & underlay->mask;
    }
    return at;
}

const struct vipsec_underlay_address *underlay_find(const struct vipsec_underlay *underlay, int family,
                                                    const uint8_t *address) {
    uint64_t word[UNDERLAY_WORDS];
    make_key(word, family, address);
    const struct underlay_entry *entry = &underlay->entries[place_of(underlay, word)];
    return entry->word[0] != 0 ? &entry->known : NULL;
}

struct vipsec_underlay *vipsec_underlay_new(const struct vipsec_underlay_config *config) {
    uint32_t size = 2;
    if (config->address_count > 1u << 24) {
        return NULL;
    }
    while (size < 2 * (config->address_count + 1)) {
        size *= 2;
    }
    struct vipsec_underlay *made = calloc(1, sizeof *made + size * sizeof made->entries[0]);
    if (made == NULL) {
        return NULL;
    }
    static _Atomic uint64_t last;
    made->number = atomic_fetch_add(&last, 1) + 1;
    made->config = *config;
    made->config.addresses = NULL;
    made->mask = size - 1;
    hash_secret_init(&made->secret, config->hash_seed);
    for (uint32_t i = 0; i < config->address_count; i++) {
        const struct vipsec_underlay_address *known = &config->addresses[i];
        uint64_t word[UNDERLAY_WORDS];
        if (known->family != 4 && known->family != 6) {
            free(made);
            return NULL;
        }
        make_key(word, known->family, known->address);
        struct underlay_entry *entry = &made->entries[place_of(made, word)];
        memcpy(entry->word, word, sizeof word);
        entry->known = *known;
        made->has_narrow |= known->mtu != 0;
    }
    return made;
}

void vipsec_underlay_free(struct vipsec_underlay *underlay) { free(underlay); }
