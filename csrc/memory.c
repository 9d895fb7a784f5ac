/* Guest memory: the table of regions and bounds-checked access. */
#include <stdlib.h>
#include <string.h>

#include "dirty.h"
#include "guard.h"
#include "memory.h"

static int by_address(const void *a, const void *b) {
    const struct vipsec_region *x = a, *y = b;
    return (x->guest_addr > y->guest_addr) - (x->guest_addr < y->guest_addr);
}

/* Each region sound by itself, none reaching into the next one. */
static bool sound(const struct vipsec_region *region, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (region[i].size == 0 || region[i].host == NULL || region[i].size - 1 > UINT64_MAX - region[i].guest_addr) {
            return false;
        }
        if (i > 0 && region[i].guest_addr - region[i - 1].guest_addr < region[i - 1].size) {
            return false;
        }
    }
    return count > 0;
}

struct vipsec_memory *vipsec_memory_new(const struct vipsec_region *regions, size_t count) {
    if (count > SIZE_MAX / 2 / sizeof *regions || !guard_install()) {
        return NULL;
    }
    struct vipsec_memory *made = malloc(sizeof *made + count * sizeof *regions);
    if (made == NULL) {
        return NULL;
    }
    atomic_init(&made->failed, false);
    made->count = count;
    made->adjacent = 0;
    made->log = made->inflight = NULL;
    made->log_size = made->inflight_size = 0;
    if (count > 0) {
        memcpy(made->region, regions, count * sizeof *regions);
        qsort(made->region, count, sizeof *regions, by_address);
    }
    if (!sound(made->region, count)) {
        free(made);
        return NULL;
    }
    for (size_t i = 1; i < count; i++) {
        made->adjacent += made->region[i].guest_addr - made->region[i - 1].guest_addr == made->region[i - 1].size;
    }
    return made;
}

void vipsec_memory_free(struct vipsec_memory *memory) { free(memory); }

int vipsec_memory_failed(const struct vipsec_memory *memory) {
    return atomic_load_explicit(&memory->failed, memory_order_acquire);
}

const struct vipsec_region *memory_region(const struct vipsec_memory *memory, uint64_t guest) {
    size_t low = 0, high = memory->count;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (memory->region[middle].guest_addr <= guest) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low == 0 || guest - memory->region[low - 1].guest_addr >= memory->region[low - 1].size) {
        return NULL;
    }
    return &memory->region[low - 1];
}

uint8_t *memory_host(const struct vipsec_memory *memory, uint64_t guest, uint64_t len) {
    const struct vipsec_region *region = memory_region(memory, guest);
    return region == NULL ? NULL : memory_within(region, guest, len);
}

bool memory_inside(const struct vipsec_memory *memory, uint64_t guest, uint64_t len) {
    if (len - 1 > UINT64_MAX - guest) {
        return false; /* a range does not go on at address 0 */
    }
    for (;;) {
        const struct vipsec_region *region = memory_region(memory, guest);
        if (region == NULL) {
            return false;
        }
        const uint64_t here = region->size - (guest - region->guest_addr);
        if (len <= here) {
            return true;
        }
        guest += here;
        len -= here;
    }
}

bool memory_copy_out(const struct vipsec_memory *memory, uint64_t guest, void *to, size_t len) {
    uint8_t *out = to;
    if (!memory_inside(memory, guest, len)) {
        return false;
    }
    while (len > 0) {
        const struct vipsec_region *region = memory_region(memory, guest);
        const uint64_t offset = guest - region->guest_addr, here = region->size - offset;
        const size_t step = here < len ? (size_t)here : len;
        memcpy(out, region->host + offset, step);
        out += step;
        guest += step;
        len -= step;
    }
    return true;
}

int vipsec_memory_read(struct vipsec_memory *memory, uint64_t guest, uint8_t *to, size_t len) {
    struct guard_frame frame;
    if (guard_enter(&frame, memory) != 0) {
        return -VIPSEC_FAULT_MEMORY;
    }
    const bool inside = memory_copy_out(memory, guest, to, len);
    guard_leave(&frame);
    return inside ? 0 : -VIPSEC_FAULT_ADDRESS;
}

/* Not inlined into its caller, where the frame is. */
static __attribute__((noinline)) bool copy_in(const struct vipsec_memory *memory, uint64_t guest, const uint8_t *from,
                                              size_t len) {
    if (!memory_inside(memory, guest, len)) {
        return false;
    }
    while (len > 0) {
        const struct vipsec_region *region = memory_region(memory, guest);
        const uint64_t offset = guest - region->guest_addr, here = region->size - offset;
        const size_t step = here < len ? (size_t)here : len;
        memcpy(region->host + offset, from, step);
        dirty_mark(memory, guest, step);
        from += step;
        guest += step;
        len -= step;
    }
    return true;
}

int vipsec_memory_write(struct vipsec_memory *memory, uint64_t guest, const uint8_t *from, size_t len) {
    struct guard_frame frame;
    if (guard_enter(&frame, memory) != 0) {
        return -VIPSEC_FAULT_MEMORY;
    }
    const bool inside = copy_in(memory, guest, from, len);
    guard_leave(&frame);
    return inside ? 0 : -VIPSEC_FAULT_ADDRESS;
}

void vipsec_memory_set_log(struct vipsec_memory *memory, uint8_t *log, uint64_t size) {
    memory->log = log;
    memory->log_size = log == NULL ? 0 : size;
}

void vipsec_memory_set_inflight(struct vipsec_memory *memory, uint8_t *mapping, uint64_t size) {
    memory->inflight = mapping;
    memory->inflight_size = mapping == NULL ? 0 : size;
}

static bool within(const void *address, const uint8_t *from, uint64_t size) {
    return (uintptr_t)address - (uintptr_t)from < size;
}

bool memory_owns(const struct vipsec_memory *memory, const void *address) {
    for (size_t i = 0; i < memory->count; i++) {
        if (within(address, memory->region[i].host, memory->region[i].size)) {
            return true;
        }
    }
    return within(address, memory->log, memory->log_size) || within(address, memory->inflight, memory->inflight_size);
}
