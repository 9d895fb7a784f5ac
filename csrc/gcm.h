/* Shared by the AES-GCM engines: the function table, the layout of a key, checks of an operation. */
#ifndef VIPSEC_GCM_H
#define VIPSEC_GCM_H

#include <assert.h>
#include <stdbool.h>

#include "vipsec.h"

/* What one instruction set offers. seal and open are the contract of vipsec_gcm_seal/_open. */
struct vipsec_gcm {
    enum vipsec_isa isa;
    bool (*key_init)(struct vipsec_gcm_key *key, const uint8_t *bytes, size_t size); /* size is 16, 24 or 32 */
    void (*key_release)(struct vipsec_gcm_key *key); /* before the wipe; NULL: nothing to release */
    size_t (*seal)(struct vipsec_gcm_op *ops, size_t count);
    size_t (*open)(struct vipsec_gcm_op *ops, size_t count);
};

/* Powers H^48..H^1 of the hash key, so that up to 48 blocks share one reduction. */
enum { GCM_POWERS = 48, GCM_MAX_ROUND_KEYS = 15 };

/*
 * Everything that a short packet needs is contiguous: low powers, header, round keys. For AES-128
 * and payloads up to 64 bytes that is 5 cache lines of the 16.
 *
 * A vector load of powers may run past H^1 into the header and the round keys; the data it is
 * multiplied with is zero there.
 */
struct vipsec_gcm_key {
    union {
        struct {
            uint8_t power[GCM_POWERS][16]; /* power[GCM_POWERS - k] = H^k * x, bytes of the field element reversed */
        } hash;
        struct {
            uint8_t raw[32];
            void *context; /* EVP_CIPHER_CTX, guarded by lock */
            _Alignas(8) uint8_t lock[64];
        } evp;
    } u;
    uint32_t isa;    /* enum vipsec_isa of the engine that made it */
    uint32_t rounds; /* 10, 12, 14 */
    uint64_t reserved;
    uint8_t round_key[GCM_MAX_ROUND_KEYS][16];
};

static_assert(sizeof(struct vipsec_gcm_op) == 64, "one cache line");
static_assert(offsetof(struct vipsec_gcm_op, iv) == 40, "iv is loaded with the 4 bytes behind it");
static_assert(offsetof(struct vipsec_gcm_op, aad) == 52, "aad is loaded with the 4 bytes before it");
static_assert(sizeof(struct vipsec_gcm_key) == 1024, "key layout");
static_assert(offsetof(struct vipsec_gcm_key, isa) == (size_t)GCM_POWERS * 16, "powers end where the header begins");
static_assert(offsetof(struct vipsec_gcm_key, round_key) % 16 == 0, "round keys are aligned");

enum { GCM_KEY_ALIGN = 64 };

/* Whether the kernels may work on this operation: every range that vipsec.h states and memory safety needs. */
static inline bool gcm_op_valid(const struct vipsec_gcm_op *op, enum vipsec_isa isa) {
    const uint32_t tag_lens = 1u << 8 | 1u << 12 | 1u << 16;
    return op->key->isa == (uint32_t)isa && op->len <= VIPSEC_GCM_MAX_LEN && op->aad_len <= VIPSEC_GCM_MAX_AAD &&
           op->tag_len < 32 && (tag_lens >> op->tag_len & 1u) != 0;
}

/* vipsec_gcm_key_new and _free for a key that stands in somebody's structure, GCM_KEY_ALIGN aligned. */
bool gcm_key_make(const struct vipsec_gcm *engine, struct vipsec_gcm_key *key, const uint8_t *bytes, size_t size);
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
