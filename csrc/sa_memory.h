/* Where SAs are: slots with what belongs to them, used again when an SA is gone. For one writer at a time. */
#ifndef VIPSEC_SA_MEMORY_H
#define VIPSEC_SA_MEMORY_H

#include "sa.h"

struct sa_memory {
    struct sa_slot *free;
    struct sa_chunk *chunks;
    uint32_t fresh; /* slots of the first chunk in the list that nobody has had */
};

/* All zero, with its rest; NULL: no memory. */
struct sa_slot *sa_memory_take(struct sa_memory *memory);

/* Wipes it. */
void sa_memory_give(struct sa_memory *memory, struct sa_slot *slot);

void sa_memory_free(struct sa_memory *memory);

#endif
