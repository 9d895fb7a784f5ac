/*
 * The SAs of a port: outbound by number, inbound by SPI. Readers never block; writers (add, modify, remove) exclude
 * each other and wait until no reader can hold what they took away.
 *
 * A reader's read section begins with sa_reader_enter and ends with sa_reader_exit: one per batch. SAs found inside
 * it stay whole until it ends. No waiting, and no call of a writer, inside.
 */
#ifndef VIPSEC_SA_TABLE_H
#define VIPSEC_SA_TABLE_H

#include "bytes.h"
#include "sa.h"

enum {
    SA_PAGE_BITS = 10,
    SA_PAGE_SIZE = 1 << SA_PAGE_BITS,
    SA_PAGES = VIPSEC_SA_MAX / SA_PAGE_SIZE,
    SA_FEW = 256,
};

struct sa_page {
    struct sa *_Atomic entry[SA_PAGE_SIZE];
};

/* An entry of the index of inbound SAs: SPI in the upper half, number + 1 in the lower; 0 free, SA_GONE removed. */
#define SA_GONE 0xffffffffULL

struct sa_index {
    uint32_t shift; /* the hash's upper bits choose the entry; 1 << (64 - shift) entries */
    uint32_t used;  /* not free; a quarter is always free */
    uint32_t alive;
    _Atomic uint64_t entry[];
};

struct sa_reader {
    _Alignas(SA_LINE) _Atomic uint64_t epoch; /* of the table when the section began; 0: outside */
    _Atomic uint32_t taken;
};

struct sa_writer; /* lock, memory of the slots: sa_table.c */

struct vipsec_sa_table {
    const struct vipsec_gcm *engine;
    uint64_t seed[2];
    struct sa_index *_Atomic index;
    _Atomic uint32_t count; /* of SAs, both directions */
    struct sa_writer *writer;
    _Alignas(SA_LINE) _Atomic uint64_t epoch;
    struct sa_reader readers[VIPSEC_MAX_READERS];
    struct sa_page *_Atomic outbound[SA_PAGES];
    struct sa_page *_Atomic inbound[SA_PAGES];
};

static inline void sa_reader_enter(struct vipsec_sa_table *table, int reader) {
    const uint64_t now = atomic_load_explicit(&table->epoch, memory_order_acquire);
    atomic_store_explicit(&table->readers[reader].epoch, now, memory_order_relaxed);
    /* The epoch is visible before any entry is read: either the writer sees us, or we see what it wrote. */
    atomic_thread_fence(memory_order_seq_cst);
}

/* Returns when every read section that had begun before the call has ended. */
void sa_table_synchronize(struct vipsec_sa_table *table);

/* Writers: between lock and unlock nobody adds, changes or removes. Not inside a read section. */
void sa_table_lock(struct vipsec_sa_table *table);
void sa_table_unlock(struct vipsec_sa_table *table);

/* The live SA with this number; NULL: none. Under the writers' lock. */
struct sa *sa_living(struct vipsec_sa_table *table, int direction, uint32_t id);
struct sa_page *_Atomic *sa_pages(struct vipsec_sa_table *table, int direction);

static inline void sa_reader_exit(struct vipsec_sa_table *table, int reader) {
    atomic_store_explicit(&table->readers[reader].epoch, 0, memory_order_release);
}

/* The place of SA number `id`, to be read later; NULL when there is none. */
static inline struct sa *_Atomic *sa_place(struct sa_page *_Atomic *pages, uint32_t id) {
    if (id >= VIPSEC_SA_MAX) {
        return NULL;
    }
    struct sa_page *page = atomic_load_explicit(&pages[id >> SA_PAGE_BITS], memory_order_acquire);
    return page == NULL ? NULL : &page->entry[id & (SA_PAGE_SIZE - 1)];
}

static inline const struct sa *sa_at(struct sa *_Atomic *place) {
    return place == NULL ? NULL : atomic_load_explicit(place, memory_order_acquire);
}

/* NULL: no such SA. */
static inline const struct sa *sa_outbound(struct vipsec_sa_table *table, uint32_t id) {
    return sa_at(sa_place(table->outbound, id));
}

/* Whether it pays to fetch what a burst of packets will touch before it is touched: not when a cache near the core
 * has it all. */
static inline bool sa_many(const struct vipsec_sa_table *table) {
    return atomic_load_explicit(&table->count, memory_order_relaxed) > SA_FEW;
}

static inline uint64_t sa_hash(const struct vipsec_sa_table *table, uint32_t spi) {
    const unsigned __int128 product = (unsigned __int128)(spi ^ table->seed[0]) * table->seed[1];
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Where the search for an SPI begins. */
static inline const _Atomic uint64_t *sa_index_place(struct vipsec_sa_table *table, uint32_t spi) {
    const struct sa_index *index = atomic_load_explicit(&table->index, memory_order_acquire);
    return &index->entry[sa_hash(table, spi) >> index->shift];
}

/* The number of the inbound SA with this SPI, or VIPSEC_SA_MAX. */
static inline uint32_t sa_number_of(struct vipsec_sa_table *table, uint32_t spi) {
    const struct sa_index *index = atomic_load_explicit(&table->index, memory_order_acquire);
    const uint64_t last = (1ULL << (64 - index->shift)) - 1;
    for (uint64_t at = sa_hash(table, spi) >> index->shift;; at = (at + 1) & last) {
        const uint64_t entry = atomic_load_explicit(&index->entry[at], memory_order_acquire);
        if (entry == 0) {
            return VIPSEC_SA_MAX;
        }
        if (entry >> 32 == spi && (uint32_t)entry != SA_GONE) {
            return (uint32_t)entry - 1;
        }
    }
}

/* NULL: no such SA. */
static inline const struct sa *sa_inbound_by_spi(struct vipsec_sa_table *table, uint32_t spi) {
    const struct sa *sa = sa_at(sa_place(table->inbound, sa_number_of(table, spi)));
    /* A number may have been given to another SA since the index was read. */
    return sa != NULL && load_be32(sa->spi) == spi ? sa : NULL;
}

#endif
