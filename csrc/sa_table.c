/* Adding, changing and removing SAs while packets flow; readers; numbers. */
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "checksum.h"
#include "ip.h"
#include "sa_memory.h"
#include "sa_table.h"

static_assert(sizeof(struct vipsec_sa_config) == 152 && offsetof(struct vipsec_sa_config, packets_soft) == 96, "public");

enum {
    LEAST_INDEX_BITS = 6,
    OPTIONS = VIPSEC_OPTION_ESN | VIPSEC_OPTION_UDP_ENCAP | VIPSEC_OPTION_COPY_DSCP | VIPSEC_OPTION_DEC_TTL |
              VIPSEC_OPTION_COPY_DF | VIPSEC_OPTION_ECN | VIPSEC_OPTION_SA_LIFETIME,
    TUNNEL_OPTIONS = VIPSEC_OPTION_COPY_DSCP | VIPSEC_OPTION_DEC_TTL | VIPSEC_OPTION_COPY_DF | VIPSEC_OPTION_ECN,
    DEFAULT_TTL = 64,
};

struct sa_writer {
    pthread_mutex_t lock;
    struct sa_memory memory[2]; /* outbound, inbound: what is often used side by side is side by side */
};

/* ---- grace periods ------------------------------------------------------------------------ */

void sa_table_synchronize(struct vipsec_sa_table *table) {
    const uint64_t now = atomic_fetch_add(&table->epoch, 1) + 1;
    atomic_thread_fence(memory_order_seq_cst);
    for (size_t i = 0; i < VIPSEC_MAX_READERS; i++) {
        for (;;) {
            const uint64_t epoch = atomic_load_explicit(&table->readers[i].epoch, memory_order_acquire);
            if (epoch == 0 || epoch >= now) {
                break;
            }
            sched_yield();
        }
    }
}

int vipsec_reader_register(struct vipsec_sa_table *table) {
    for (int i = 0; i < VIPSEC_MAX_READERS; i++) {
        if (atomic_exchange(&table->readers[i].taken, 1) == 0) {
            return i;
        }
    }
    return -1;
}

void vipsec_reader_unregister(struct vipsec_sa_table *table, int reader) {
    atomic_store(&table->readers[reader].taken, 0);
}

/* ---- index of inbound SAs ----------------------------------------------------------------- */

static struct sa_index *index_new(uint32_t bits) {
    struct sa_index *index = calloc(1, sizeof *index + (sizeof index->entry[0] << bits));
    if (index != NULL) {
        index->shift = 64 - bits;
    }
    return index;
}

static void index_insert(const struct vipsec_sa_table *table, struct sa_index *index, uint64_t entry) {
    const uint64_t last = (1ULL << (64 - index->shift)) - 1;
    uint64_t at = sa_hash(table, (uint32_t)(entry >> 32)) >> index->shift;
    while (atomic_load(&index->entry[at]) != 0) {
        at = (at + 1) & last;
    }
    index->used++;
    index->alive++;
    atomic_store_explicit(&index->entry[at], entry, memory_order_release);
}

/* Room for one entry more, at most half of the places used; the index may become another one. */
static bool index_grow(struct vipsec_sa_table *table) {
    struct sa_index *old = atomic_load(&table->index);
    const uint64_t places = 1ULL << (64 - old->shift);
    if ((old->used + 1ULL) * 2 <= places) {
        return true;
    }
    uint32_t bits = LEAST_INDEX_BITS;
    while (1ULL << bits < (old->alive + 1ULL) * 4) {
        bits++;
    }
    struct sa_index *grown = index_new(bits);
    if (grown == NULL) {
        return false;
    }
    for (uint64_t at = 0; at < places; at++) {
        const uint64_t entry = atomic_load(&old->entry[at]);
        if (entry != 0 && (uint32_t)entry != SA_GONE) {
            index_insert(table, grown, entry);
        }
    }
    atomic_store_explicit(&table->index, grown, memory_order_release);
    sa_table_synchronize(table);
    free(old);
    return true;
}

static void index_remove(struct vipsec_sa_table *table, uint32_t spi) {
    struct sa_index *index = atomic_load(&table->index);
    const uint64_t last = (1ULL << (64 - index->shift)) - 1;
    uint64_t at = sa_hash(table, spi) >> index->shift;
    for (;; at = (at + 1) & last) {
        const uint64_t entry = atomic_load(&index->entry[at]);
        if (entry >> 32 == spi && (uint32_t)entry != SA_GONE) {
            break;
        }
    }
    index->alive--;
    atomic_store(&index->entry[at], (uint64_t)spi << 32 | SA_GONE);
}

/* ---- configuration ------------------------------------------------------------------------- */

static bool acceptable(const struct vipsec_sa_config *config) {
    const bool inbound = config->direction == VIPSEC_INBOUND, esn = (config->options & VIPSEC_OPTION_ESN) != 0;
    const bool outer = !inbound && config->is_tunnel;
    const uint32_t icv_lens = 1u << 8 | 1u << 12 | 1u << 16;
    return (inbound || config->direction == VIPSEC_OUTBOUND) && config->is_tunnel <= 1 && config->spi != 0 &&
           (config->key_len == 16 || config->key_len == 24 || config->key_len == 32) && config->icv_len < 32 &&
           (icv_lens >> config->icv_len & 1) != 0 && (config->options & ~(uint32_t)OPTIONS) == 0 &&
           (config->is_tunnel || (config->options & TUNNEL_OPTIONS) == 0) &&
           (!outer || config->tunnel_family == 4 || config->tunnel_family == 6) &&
           (!outer || (config->dscp < 64 && config->df <= 1 && config->flow_label < 1 << 20)) &&
           config->replay_window <= VIPSEC_MAX_REPLAY_WINDOW && (!inbound || !esn || config->replay_window > 0) &&
           config->first_sequence > 0 && (esn || config->first_sequence <= UINT32_MAX);
}

static uint8_t flags_of(const struct vipsec_sa_config *config) {
    static const struct {
        uint8_t option, flag;
    } same[] = {
        {VIPSEC_OPTION_ESN, SA_ESN},         {VIPSEC_OPTION_UDP_ENCAP, SA_UDP}, {VIPSEC_OPTION_COPY_DSCP, SA_COPY_DSCP},
        {VIPSEC_OPTION_DEC_TTL, SA_DEC_TTL}, {VIPSEC_OPTION_COPY_DF, SA_COPY_DF}, {VIPSEC_OPTION_ECN, SA_ECN},
    };
    unsigned flags = config->is_tunnel ? SA_TUNNEL : 0;
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
        flags |= (config->options & same[i].option) != 0 ? same[i].flag : 0u;
    }
    return (uint8_t)flags;
}

/* The tunnel header as far as it is the same for all packets. */
static void make_outer(struct sa *sa, const struct vipsec_sa_config *config) {
    const uint8_t protocol = (config->options & VIPSEC_OPTION_UDP_ENCAP) != 0 ? IP_UDP : IP_ESP;
    const uint8_t ttl = config->ttl ? config->ttl : DEFAULT_TTL;
    if (config->tunnel_family == 4) {
        sa->outer_len = IP_V4_LEN;
        sa->outer[0] = 0x45;
        sa->outer[8] = ttl;
        sa->outer[9] = protocol;
        memcpy(sa->outer + 12, config->source, 4);
        memcpy(sa->outer + 16, config->destination, 4);
        sa->outer_sum = checksum_words(sa->outer, IP_V4_LEN / 4);
    } else {
        sa->outer_len = IP_V6_LEN;
        store_be32(sa->outer, 6u << 28 | config->flow_label);
        sa->outer[6] = protocol;
        sa->outer[7] = ttl;
        memcpy(sa->outer + 8, config->source, 16);
        memcpy(sa->outer + 24, config->destination, 16);
    }
}

/* The one of the two that `now` is not; NULL: the first. */
static struct sa *make_version(struct sa_slot *slot, const struct sa *now, const struct vipsec_sa_config *config) {
    struct sa_rest *rest = sa_rest_of(slot);
    struct sa *sa = now == NULL ? &slot->sa : sa_other(now);
    memset(sa, 0, sizeof *sa);
    sa->to_slot = (int32_t)((intptr_t)slot - (intptr_t)sa);
    sa->flags = flags_of(config);
    if (config->is_tunnel && config->direction == VIPSEC_OUTBOUND) {
        make_outer(sa, config);
    }
    store_be16(sa->ports, config->udp_sport);
    store_be16(sa->ports + 2, config->udp_dport);
    store_be32(sa->spi, config->spi);
    sa->tos = (uint8_t)(config->dscp << 2);
    sa->df = config->df;
    sa->icv_len = config->icv_len;
    memcpy(sa->salt, now != NULL ? now->salt : config->salt, sizeof sa->salt);
    sa->long_key = slot->key.rounds > 10;
    rest->options = config->options;
    *sa_limits_of(sa) = (struct sa_limits){
        .packets_soft = config->packets_soft,
        .bytes_soft = config->bytes_soft,
        .packets_hard = config->packets_hard,
        .bytes_hard = config->bytes_hard,
        .frozen = now != NULL ? sa_limits_of(now)->frozen : config->frozen != 0,
    };
    sa_set_limited(sa);
    return sa;
}

void sa_table_lock(struct vipsec_sa_table *table) { pthread_mutex_lock(&table->writer->lock); }
void sa_table_unlock(struct vipsec_sa_table *table) { pthread_mutex_unlock(&table->writer->lock); }

/* ---- writers -------------------------------------------------------------------------------- */

/* The place of a number, made if need be; NULL: no memory. */
static struct sa *_Atomic *make_place(struct sa_page *_Atomic *pages, uint32_t id) {
    struct sa_page *_Atomic *page = &pages[id >> SA_PAGE_BITS];
    if (atomic_load(page) == NULL) {
        atomic_store_explicit(page, calloc(1, sizeof(struct sa_page)), memory_order_release);
    }
    return sa_place(pages, id);
}

struct sa_page *_Atomic *sa_pages(struct vipsec_sa_table *table, int direction) {
    return direction == VIPSEC_INBOUND ? table->inbound : table->outbound;
}

static struct sa_memory *memory_of(struct vipsec_sa_table *table, int direction) {
    return &table->writer->memory[direction == VIPSEC_INBOUND];
}

struct sa *sa_living(struct vipsec_sa_table *table, int direction, uint32_t id) {
    if (direction != VIPSEC_OUTBOUND && direction != VIPSEC_INBOUND) {
        return NULL;
    }
    struct sa *_Atomic *place = sa_place(sa_pages(table, direction), id);
    return place == NULL ? NULL : atomic_load(place);
}

/* A ring for windows that do not fit into the SA. NULL: no memory. */
static struct replay_ring *ring_new(uint32_t size) {
    return calloc(1, sizeof(struct replay_ring) + replay_places(size) / 8);
}

static int add(struct vipsec_sa_table *table, uint32_t id, const struct vipsec_sa_config *config) {
    const bool inbound = config->direction == VIPSEC_INBOUND;
    if (sa_living(table, config->direction, id) != NULL ||
        (inbound && sa_number_of(table, config->spi) != VIPSEC_SA_MAX)) {
        return VIPSEC_SA_EXISTS;
    }
    struct sa_memory *memory = memory_of(table, config->direction);
    struct sa *_Atomic *place = make_place(sa_pages(table, config->direction), id);
    struct sa_slot *slot = place == NULL || (inbound && !index_grow(table)) ? NULL : sa_memory_take(memory);
    if (slot == NULL) {
        return VIPSEC_SA_NO_MEMORY;
    }
    struct replay_ring *ring = &slot->live.small;
    if (config->replay_window > SA_SMALL_WINDOW) {
        ring = ring_new(config->replay_window);
    }
    struct sa_rest *rest = sa_rest_of(slot);
    if (ring == NULL || !gcm_key_make(table->engine, &slot->key, &rest->powers, config->key, config->key_len)) {
        atomic_store(&slot->live.ring, ring);
        sa_memory_give(memory, slot);
        return VIPSEC_SA_NO_MEMORY;
    }
    rest->first_sequence = config->first_sequence;
    rest->direction = config->direction;
    atomic_store(&slot->live.sequence, config->first_sequence - 1);
    replay_copy(ring, inbound ? config->replay_window : 0, NULL, config->first_sequence - 1);
    atomic_store(&slot->live.ring, ring);
    if (!inbound) {
        sa_set(&slot->live.ceiling, UINT64_MAX);
    }
    slot->live.iv_base = config->iv_base;
    slot->live.id = id;
    atomic_store_explicit(place, make_version(slot, NULL, config), memory_order_release);
    if (inbound) {
        index_insert(table, atomic_load(&table->index), (uint64_t)config->spi << 32 | (id + 1));
    }
    atomic_fetch_add(&table->count, 1);
    return VIPSEC_SA_OK;
}

/* A window of another size. *old: to be freed when no reader has it; NULL: nothing. */
static bool resize(struct sa_live *live, uint32_t size, struct replay_ring **old) {
    struct replay_ring *from = atomic_load(&live->ring);
    struct {
        struct replay_ring ring;
        uint64_t words[VIPSEC_MAX_REPLAY_WINDOW / 64];
    } copy;
    struct replay_ring *to = &live->small;
    if (size > SA_SMALL_WINDOW && (to = ring_new(size)) == NULL) {
        return false;
    }
    sa_lock(live);
    const uint64_t top = sa_get(&live->sequence);
    replay_copy(&copy.ring, size, from, top); /* from and to may be the same */
    replay_copy(to, size, &copy.ring, top);
    atomic_store_explicit(&live->ring, to, memory_order_release);
    sa_unlock(live);
    *old = from == &live->small ? NULL : from;
    return true;
}

static int modify(struct vipsec_sa_table *table, int direction, uint32_t id, const struct vipsec_sa_config *config) {
    struct sa *now = sa_living(table, direction, id);
    if (now == NULL) {
        return VIPSEC_SA_MISSING;
    }
    struct sa_slot *slot = sa_slot_of(now);
    if (config->direction != direction || config->spi != load_be32(now->spi) || config->icv_len != now->icv_len ||
        config->is_tunnel != (now->flags & SA_TUNNEL) ||
        ((config->options ^ sa_rest_of(slot)->options) & VIPSEC_OPTION_ESN) != 0) {
        return VIPSEC_SA_REFUSED;
    }
    struct replay_ring *old = NULL;
    if (direction == VIPSEC_INBOUND && config->replay_window != atomic_load(&slot->live.ring)->size &&
        !resize(&slot->live, config->replay_window, &old)) {
        return VIPSEC_SA_NO_MEMORY;
    }
    struct sa *next = make_version(slot, now, config);
    atomic_store_explicit(sa_place(sa_pages(table, direction), id), next, memory_order_release);
    sa_table_synchronize(table); /* the version before is free for the next MODIFY */
    free(old);
    return VIPSEC_SA_OK;
}

static int remove_sa(struct vipsec_sa_table *table, int direction, uint32_t id) {
    struct sa *sa = sa_living(table, direction, id);
    if (sa == NULL) {
        return VIPSEC_SA_MISSING;
    }
    if (direction == VIPSEC_INBOUND) {
        index_remove(table, load_be32(sa->spi));
    }
    atomic_store(sa_place(sa_pages(table, direction), id), NULL);
    sa_table_synchronize(table);
    sa_memory_give(memory_of(table, direction), sa_slot_of(sa));
    atomic_fetch_sub(&table->count, 1);
    return VIPSEC_SA_OK;
}

int vipsec_sa_add(struct vipsec_sa_table *table, uint32_t id, const struct vipsec_sa_config *config) {
    if (id >= VIPSEC_SA_MAX || !acceptable(config)) {
        return VIPSEC_SA_REFUSED;
    }
    sa_table_lock(table);
    const int result = add(table, id, config);
    sa_table_unlock(table);
    return result;
}

int vipsec_sa_modify(struct vipsec_sa_table *table, int direction, uint32_t id, const struct vipsec_sa_config *config) {
    if (!acceptable(config)) {
        return VIPSEC_SA_REFUSED;
    }
    sa_table_lock(table);
    const int result = modify(table, direction, id, config);
    sa_table_unlock(table);
    return result;
}

int vipsec_sa_remove(struct vipsec_sa_table *table, int direction, uint32_t id) {
    sa_table_lock(table);
    const int result = remove_sa(table, direction, id);
    sa_table_unlock(table);
    return result;
}

/* ---- the table ------------------------------------------------------------------------------ */

struct vipsec_sa_table *vipsec_sa_table_new(const struct vipsec_gcm *engine, uint64_t hash_seed) {
    struct vipsec_sa_table *table = aligned_alloc(SA_LINE, sizeof *table);
    struct sa_writer *writer = calloc(1, sizeof *writer);
    struct sa_index *index = index_new(LEAST_INDEX_BITS);
    if (table == NULL || writer == NULL || index == NULL || pthread_mutex_init(&writer->lock, NULL) != 0) {
        free(table);
        free(writer);
        free(index);
        return NULL;
    }
    memset(table, 0, sizeof *table);
    table->engine = engine;
    table->seed[0] = hash_seed;
    /* Any odd number does as a factor; this one makes another number of the same seed. */
    table->seed[1] = (hash_seed ^ hash_seed >> 29) * 0x9e3779b97f4a7c15 | 1;
    table->writer = writer;
    atomic_store(&table->index, index);
    atomic_store(&table->epoch, 1);
    return table;
}

static void free_all(struct sa_memory *memory, struct sa_page *_Atomic *pages) {
    for (size_t i = 0; i < SA_PAGES; i++) {
        struct sa_page *page = atomic_load(&pages[i]);
        for (size_t j = 0; page != NULL && j < SA_PAGE_SIZE; j++) {
            struct sa *sa = atomic_load(&page->entry[j]);
            if (sa != NULL) {
                sa_memory_give(memory, sa_slot_of(sa));
            }
        }
        free(page);
    }
    sa_memory_free(memory);
}

void vipsec_sa_table_free(struct vipsec_sa_table *table) {
    if (table == NULL) {
        return;
    }
    free_all(memory_of(table, VIPSEC_OUTBOUND), table->outbound);
    free_all(memory_of(table, VIPSEC_INBOUND), table->inbound);
    pthread_mutex_destroy(&table->writer->lock);
    free(table->writer);
    free(atomic_load(&table->index));
    free(table);
}
