/* Dirty log of live migration (vhost-user, "Migration"): one bit for each page of guest memory that was written. */
#ifndef VIPSEC_DIRTY_H
#define VIPSEC_DIRTY_H

#include "memory.h"

enum { DIRTY_PAGE_BITS = 12 };

/* Notes len bytes from the guest address as written: after the store, or the page may be copied without it and then
 * never again. Addresses beyond the log are left out: nobody can ask for them. */
static inline void dirty_pages(const struct vipsec_memory *memory, uint64_t guest, uint64_t len) {
    const uint64_t last = (guest + len - 1) >> DIRTY_PAGE_BITS;
    for (uint64_t page = guest >> DIRTY_PAGE_BITS; page <= last && page / 8 < memory->log_size; page++) {
        __atomic_fetch_or(&memory->log[page / 8], (uint8_t)(1u << page % 8), __ATOMIC_SEQ_CST);
    }
}

static inline void dirty_mark(const struct vipsec_memory *memory, uint64_t guest, uint64_t len) {
    if (__builtin_expect(memory->log != NULL, 0) && len > 0) {
        dirty_pages(memory, guest, len);
    }
}

#endif
