/* Shared by the AES-GCM engines: the function table, the layout of a key, checks of an operation. */
#ifndef VIPSEC_GCM_H
#define VIPSEC_GCM_H

#include <assert.h>
#include <stdbool.h>

#include "fetch.h"
#include "vipsec.h"

/* What one instruction set offers. seal and open are the contract of vipsec_gcm_seal/_open. `far`: keys come from
 * memory, so their round keys are fetched ahead; the caller has fetched what gcm_fetch_powers is for. */
struct vipsec_gcm {
    enum vipsec_isa isa;
    bool (*key_init)(struct vipsec_gcm_key *key, const uint8_t *bytes, size_t size); /* size is 16, 24 or 32 */
    void (*key_release)(struct vipsec_gcm_key *key); /* before the wipe; NULL: nothing to release */
    size_t (*seal)(struct vipsec_gcm_op *ops, size_t count, bool far);
    size_t (*open)(struct vipsec_gcm_op *ops, size_t count, bool far);
};

/* Powers H^48..H^1 of the hash key, so that up to 48 blocks share one reduction. */
enum { GCM_POWERS = 48, GCM_LOW_POWERS = 8, GCM_MAX_ROUND_KEYS = 15 };

/* What packets beyond the shortest need. */
struct gcm_powers {
    uint8_t power[GCM_POWERS][16]; /* power[GCM_POWERS - k] = H^k * x, bytes of the field element reversed */
    uint8_t behind[64];            /* of any value: see below */
};

/*
 * Everything that a short packet needs is contiguous: the low powers once more, header, round keys. For AES-128 and
 * payloads up to 64 bytes that is 5 cache lines.
 *
 * A vector load of powers may run past H^1 into what is behind; the data it is multiplied with is zero there.
 */
struct vipsec_gcm_key {
    union {
        uint8_t power[GCM_LOW_POWERS][16]; /* H^8..H^1 */
        struct {
            void *context; /* EVP_CIPHER_CTX, guarded by lock */
            _Alignas(8) uint8_t lock[64];
        } evp;
    } u;
    uint32_t isa;    /* enum vipsec_isa of the engine that made it */
    uint32_t rounds; /* 10, 12, 14 */
    struct gcm_powers *powers;
    uint8_t round_key[GCM_MAX_ROUND_KEYS][16];
};

static_assert(sizeof(struct vipsec_gcm_op) == 64, "one cache line");
static_assert(offsetof(struct vipsec_gcm_op, iv) == 40, "iv is loaded with the 4 bytes behind it");
static_assert(offsetof(struct vipsec_gcm_op, aad) == 52, "aad is loaded with the 4 bytes before it");
static_assert(sizeof(struct vipsec_gcm_key) == 384, "key layout");
static_assert(offsetof(struct vipsec_gcm_key, isa) == (size_t)GCM_LOW_POWERS * 16, "the header is behind the powers");
static_assert(offsetof(struct vipsec_gcm_key, round_key) % 16 == 0, "round keys are aligned");

/* Up to GCM_SHORT bytes the low powers do. */
enum { GCM_KEY_ALIGN = FETCH_LINE, GCM_SHORT = 64 };

/* Asks for the hash powers that a packet of this length needs. */
static inline void gcm_fetch_powers(const struct vipsec_gcm_key *key, const struct gcm_powers *powers, uint32_t len) {
    const uint8_t *from = key->u.power[0], *end = from + sizeof key->u.power;
    if (len > GCM_SHORT) {
        end = powers->behind;
        from = end - 16 * (len / 16 + 2 < GCM_POWERS ? len / 16 + 2 : GCM_POWERS);
    }
    for (; from < end; from += FETCH_LINE) {
        fetch_line(from);
    }
}

/* Asks for the round keys of AES-128. */
static inline void gcm_fetch_round_keys(const struct vipsec_gcm_key *key) {
    fetch_line(&key->isa);
    fetch_line((const uint8_t *)&key->isa + FETCH_LINE);
    fetch_line((const uint8_t *)&key->isa + 2 * FETCH_LINE);
}

/* Whether the kernels may work on this operation: every range that vipsec.h states and memory safety needs. */
static inline bool gcm_op_valid(const struct vipsec_gcm_op *op, enum vipsec_isa isa) {
    const uint32_t tag_lens = 1u << 8 | 1u << 12 | 1u << 16;
    return op->key->isa == (uint32_t)isa && op->len <= VIPSEC_GCM_MAX_LEN && op->aad_len <= VIPSEC_GCM_MAX_AAD &&
           op->tag_len < 32 && (tag_lens >> op->tag_len & 1u) != 0;
}

/* vipsec_gcm_key_new and _free for a key that stands in somebody's structures, GCM_KEY_ALIGN aligned. */
bool gcm_key_make(const struct vipsec_gcm *engine, struct vipsec_gcm_key *key, struct gcm_powers *powers,
                  const uint8_t *bytes, size_t size);
void gcm_key_wipe(struct vipsec_gcm_key *key);

/* Key schedule and hash powers for the three x86 engines; needs AES-NI and PCLMULQDQ. */
void gcm_key_expand_x86(struct vipsec_gcm_key *key, const uint8_t *bytes, size_t size);

/* NULL where the source file is empty (another architecture) or libcrypto cannot be used. */
const struct vipsec_gcm *gcm_engine_aesni(void);
const struct vipsec_gcm *gcm_engine_vaes256(void);
const struct vipsec_gcm *gcm_engine_vaes512(void);
const struct vipsec_gcm *gcm_engine_evp(void);

/* cpu.c: whether CPU and operating system offer what the engine's instructions need. */
bool cpu_offers(enum vipsec_isa isa);

#endif
