/* What SAs have used up: reading it, freezing them, and going on from it. */
#include <string.h>

#include "sa_table.h"

static_assert(sizeof(struct vipsec_sa_state) == 32 + 8 * VIPSEC_REASON_COUNT, "public");
static_assert(sizeof(struct vipsec_sa_progress) == 40 + 8 * VIPSEC_REASON_COUNT + VIPSEC_MAX_REPLAY_WINDOW / 8, "public");
static_assert(offsetof(struct vipsec_sa_progress, frozen) == 32 + 8 * VIPSEC_REASON_COUNT, "public");

/* ---- reading ------------------------------------------------------------------------------ */

static void read_refused(struct sa *sa, uint64_t refused[VIPSEC_REASON_COUNT]) {
    for (size_t i = 0; i < VIPSEC_REASON_COUNT; i++) {
        refused[i] = sa_get(&sa_rest_of(sa_slot_of(sa))->refused[i]);
    }
}

static void read_state(struct sa *sa, struct vipsec_sa_state *state) {
    struct sa_live *live = sa_live_of(sa);
    memset(state, 0, sizeof *state);
    sa_lock(live);
    state->sequence = sa_get(&live->sequence);
    state->packets = sa_get(&live->packets);
    state->bytes = sa_get(&live->bytes);
    state->soft_expired = sa_soft_expired(sa, live);
    sa_unlock(live);
    read_refused(sa, state->refused);
}

static void read_progress(struct sa *sa, struct vipsec_sa_progress *progress) {
    struct sa_live *live = sa_live_of(sa);
    memset(progress, 0, sizeof *progress);
    progress->frozen = sa_limits_of(sa)->frozen;
    sa_lock(live);
    progress->sequence = sa_get(&live->sequence);
    progress->iv_base = live->iv_base;
    progress->packets = sa_get(&live->packets);
    progress->bytes = sa_get(&live->bytes);
    if (sa_rest_of(sa_slot_of(sa))->direction == VIPSEC_INBOUND) {
        const struct replay_ring *ring = atomic_load(&live->ring);
        progress->window = ring->size;
        for (uint32_t behind = 0; behind < ring->size; behind++) {
            progress->seen[behind / 64] |= (uint64_t)replay_seen(ring, progress->sequence - behind) << behind % 64;
        }
    }
    sa_unlock(live);
    read_refused(sa, progress->refused);
}

/* ---- freezing ----------------------------------------------------------------------------- */

/* A version of the SA that is frozen, or not. When this returns no packet is worked on with the one before. */
static void turn(struct vipsec_sa_table *table, struct sa *now, bool frozen) {
    const int direction = sa_rest_of(sa_slot_of(now))->direction;
    struct sa *next = sa_other(now);
    *next = *now;
    next->to_slot = (int32_t)((intptr_t)sa_slot_of(now) - (intptr_t)next);
    *sa_limits_of(next) = *sa_limits_of(now);
    sa_limits_of(next)->frozen = frozen;
    sa_set_limited(next);
    atomic_store_explicit(sa_place(sa_pages(table, direction), sa_live_of(now)->id), next, memory_order_release);
    sa_table_synchronize(table);
}

/* ---- going on ----------------------------------------------------------------------------- */

/* Whether a number may still arrive, by what the SA knows itself. */
static bool awaited(const struct replay_ring *ring, uint64_t top, uint64_t sequence) {
    return sequence > top || (top - sequence < ring->size && !replay_seen(ring, sequence));
}

/* The window ends at the new top. A number counts as seen unless both records say that it was not. Under the lock. */
static void merge_window(struct sa_live *live, const struct vipsec_sa_progress *from) {
    struct replay_ring *ring = atomic_load(&live->ring);
    const uint64_t before = sa_get(&live->sequence), top = from->sequence;
    struct {
        struct replay_ring ring;
        uint64_t words[VIPSEC_MAX_REPLAY_WINDOW / 64];
    } merged;
    replay_copy(&merged.ring, ring->size, NULL, top);
    for (uint32_t behind = 0; behind < ring->size && behind < from->window && behind <= top; behind++) {
        const uint64_t n = top - behind;
        if ((from->seen[behind / 64] >> behind % 64 & 1) == 0 && awaited(ring, before, n)) {
            replay_set_word(&merged.ring, n, replay_word(&merged.ring, n) & ~(1ULL << (n & 63)));
        }
    }
    replay_copy(ring, ring->size, &merged.ring, top);
}

static void raise_counter(_Atomic uint64_t *counter, uint64_t value) {
    if (sa_get(counter) < value) {
        sa_set(counter, value);
    }
}

/* Whether nothing that was used is used again from there on. Under the lock. */
static bool is_ahead(const struct sa *sa, const struct vipsec_sa_progress *from) {
    const struct sa_slot *slot = sa_slot_of(sa);
    const struct sa_rest *rest = sa_rest_of(slot);
    const uint64_t used = sa_get(&slot->live.sequence), last = (sa->flags & SA_ESN) != 0 ? UINT64_MAX : UINT32_MAX;
    /* IVs are base and number: with another base one that was used could come again. */
    const bool unused = used == rest->first_sequence - 1;
    return from->sequence >= used && from->sequence <= last &&
           (rest->direction == VIPSEC_INBOUND || unused || from->iv_base == slot->live.iv_base);
}

static int restore(struct vipsec_sa_table *table, struct sa *sa, const struct vipsec_sa_progress *from) {
    struct sa_rest *rest = sa_rest_of(sa_slot_of(sa));
    struct sa_live *live = sa_live_of(sa);
    sa_lock(live);
    const bool possible = is_ahead(sa, from) && from->window <= VIPSEC_MAX_REPLAY_WINDOW;
    if (possible) {
        if (rest->direction == VIPSEC_INBOUND) {
            merge_window(live, from);
        } else {
            live->iv_base = from->iv_base;
        }
        sa_set(&live->sequence, from->sequence);
        raise_counter(&live->packets, from->packets);
        raise_counter(&live->bytes, from->bytes);
    }
    sa_unlock(live);
    if (!possible) {
        return VIPSEC_SA_REFUSED;
    }
    for (size_t i = 0; i < VIPSEC_REASON_COUNT; i++) {
        const uint64_t counted = sa_get(&rest->refused[i]);
        if (counted < from->refused[i]) {
            atomic_fetch_add(&rest->refused[i], from->refused[i] - counted); /* others count on meanwhile */
        }
    }
    if (sa_limits_of(sa)->frozen) {
        turn(table, sa, false);
    }
    return VIPSEC_SA_OK;
}

/* ---- what is public ----------------------------------------------------------------------- */

/* `expression` on the SA with that number, under the writers' lock. */
#define WITH_SA(table, direction, id, expression)                                                                  \
    sa_table_lock(table);                                                                                          \
    struct sa *const sa = sa_living((table), (direction), (id));                                                   \
    const int result = sa == NULL ? VIPSEC_SA_MISSING : (expression);                                              \
    sa_table_unlock(table);                                                                                        \
    return result

int vipsec_sa_read(struct vipsec_sa_table *table, int direction, uint32_t id, struct vipsec_sa_state *state) {
    WITH_SA(table, direction, id, (read_state(sa, state), VIPSEC_SA_OK));
}

int vipsec_sa_read_progress(struct vipsec_sa_table *table, int direction, uint32_t id,
                            struct vipsec_sa_progress *progress) {
    WITH_SA(table, direction, id, (read_progress(sa, progress), VIPSEC_SA_OK));
}

int vipsec_sa_freeze(struct vipsec_sa_table *table, int direction, uint32_t id) {
    WITH_SA(table, direction, id, (turn(table, sa, true), VIPSEC_SA_OK));
}

int vipsec_sa_restore(struct vipsec_sa_table *table, int direction, uint32_t id,
                      const struct vipsec_sa_progress *progress) {
    WITH_SA(table, direction, id, restore(table, sa, progress));
}

static void set_ceiling(struct sa *sa, uint64_t ceiling) {
    struct sa_live *live = sa_live_of(sa);
    sa_lock(live);
    sa_set(&live->ceiling, ceiling);
    sa_unlock(live);
}

int vipsec_sa_set_ceiling(struct vipsec_sa_table *table, uint32_t id, uint64_t ceiling) {
    WITH_SA(table, VIPSEC_OUTBOUND, id, (set_ceiling(sa, ceiling), VIPSEC_SA_OK));
}
