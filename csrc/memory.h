/* Guest memory: a constant table of regions, and what the SIGBUS guard needs to know of it. */
#ifndef VIPSEC_MEMORY_H
#define VIPSEC_MEMORY_H

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "vipsec.h"

struct vipsec_memory {
    atomic_bool failed;
    size_t count;
    uint8_t *log; /* NULL: nothing is logged */
    uint64_t log_size;
    uint8_t *inflight;
    uint64_t inflight_size;
    size_t adjacent; /* regions that begin where another one ends: a range may go on from one into the next */
    struct vipsec_region region[]; /* by guest address */
};

static_assert(sizeof(struct vipsec_region) == 24, "shared with cffi");

/* The region that holds the guest address; NULL when none does. */
const struct vipsec_region *memory_region(const struct vipsec_memory *memory, uint64_t guest);

/* The host address of a range that lies in this region, else NULL. len > 0. */
static inline uint8_t *memory_within(const struct vipsec_region *region, uint64_t guest, uint64_t len) {
    const uint64_t offset = guest - region->guest_addr; /* huge when guest lies before the region */
    return offset < region->size && len <= region->size - offset ? region->host + offset : NULL;
}

/* Host address of a range in one region, NULL when it is not. len > 0. */
uint8_t *memory_host(const struct vipsec_memory *memory, uint64_t guest, uint64_t len);

/* Whether the range lies inside, if need be across adjacent regions. len > 0. */
bool memory_inside(const struct vipsec_memory *memory, uint64_t guest, uint64_t len);

/* Copies from guest memory, across adjacent regions; false (and nothing copied) when not inside. len > 0. */
bool memory_copy_out(const struct vipsec_memory *memory, uint64_t guest, void *to, size_t len);

/* Whether a host address belongs to what the other side maps for us: the regions, the dirty log, inflight regions. */
bool memory_owns(const struct vipsec_memory *memory, const void *address);

#endif
