/*
 * What an operator's port knows of the networks at its ends: its own addresses, how tunnel packets reach their peers, who
 * the guest is. A block is constant once made; the port's control thread replaces it (policy/operator.py, Snapshot).
 */
#ifndef VIPSEC_UNDERLAY_H
#define VIPSEC_UNDERLAY_H

#include <stdbool.h>

#include "hash.h"
#include "vipsec.h"

enum { UNDERLAY_WORDS = 3 };

struct underlay_entry {
    uint64_t word[UNDERLAY_WORDS]; /* family (0: free), address */
    struct vipsec_underlay_address known;
};

struct vipsec_underlay {
    struct vipsec_underlay_config config; /* without its pointer */
    struct hash_secret secret;
    uint64_t number; /* no other block of the process has had it */
    uint32_t mask;
    bool has_narrow; /* some address has an MTU of its own */
    struct underlay_entry entries[]; /* open addressing */
};

/* What is known of an address (4 or 16 octets by family), or NULL. */
const struct vipsec_underlay_address *underlay_find(const struct vipsec_underlay *underlay, int family,
                                                    const uint8_t *address);

static inline bool underlay_owns(const struct vipsec_underlay *underlay, int family, const uint8_t *address) {
    const struct vipsec_underlay_address *known = underlay_find(underlay, family, address);
    return known != NULL && known->is_own;
}

/* Octets of IP packet that the way to a known or unknown (NULL) address carries. */
static inline uint32_t underlay_mtu(const struct vipsec_underlay *underlay, const struct vipsec_underlay_address *known) {
    return known != NULL && known->mtu != 0 ? known->mtu : underlay->config.mtu;
}

#endif
