/* Memory of SAs. Pages are used when a slot on them is: a port with few SAs has few. */
#include "sa_memory.h"

#include <stdlib.h>
#include <sys/mman.h>

/* A chunk at a multiple of SA_CHUNK_ALIGN. */
static struct sa_chunk *map_chunk(void) {
    const size_t whole = (sizeof(struct sa_chunk) + 4095) & ~(size_t)4095;
    uint8_t *space = mmap(NULL, SA_CHUNK_ALIGN + whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (space == MAP_FAILED) {
        return NULL;
    }
    const size_t before = -(uintptr_t)space & (SA_CHUNK_ALIGN - 1), behind = SA_CHUNK_ALIGN - before;
    if (before != 0) {
        munmap(space, before);
    }
    munmap(space + before + whole, behind);
    return (struct sa_chunk *)(void *)(space + before);
}

static void unmap_chunk(struct sa_chunk *chunk) { munmap(chunk, (sizeof *chunk + 4095) & ~(size_t)4095); }

static bool more(struct sa_memory *memory) {
    struct sa_chunk *chunk = map_chunk();
    if (chunk == NULL) {
        return false;
    }
    if (memory->chunks != NULL) {
        madvise(chunk, sizeof *chunk, MADV_HUGEPAGE); /* only a wish: fewer entries of the TLB */
    }
    chunk->next = memory->chunks;
    memory->chunks = chunk;
    memory->fresh = SA_CHUNK_SLOTS;
    return true;
}

struct sa_slot *sa_memory_take(struct sa_memory *memory) {
    struct sa_slot *slot = memory->free;
    if (slot != NULL) {
        memory->free = sa_rest_of(slot)->next_free;
        sa_rest_of(slot)->next_free = NULL;
        return slot;
    }
    if (memory->fresh == 0 && !more(memory)) {
        return NULL;
    }
    return &memory->chunks->slot[SA_CHUNK_SLOTS - memory->fresh--];
}

void sa_memory_give(struct sa_memory *memory, struct sa_slot *slot) {
    struct sa_rest *rest = sa_rest_of(slot);
    struct replay_ring *ring = atomic_load(&slot->live.ring);
    if (ring != &slot->live.small) {
        free(ring);
    }
    if (slot->key.rounds != 0) {
        gcm_key_wipe(&slot->key);
    }
    vipsec_wipe(slot, sizeof *slot);
    vipsec_wipe(rest, sizeof *rest);
    rest->next_free = memory->free;
    memory->free = slot;
}

void sa_memory_free(struct sa_memory *memory) {
    for (struct sa_chunk *chunk = memory->chunks, *next; chunk != NULL; chunk = next) {
        next = chunk->next;
        unmap_chunk(chunk);
    }
}
