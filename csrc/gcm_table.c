/* The table of engines, the choice among them, and the parts of a key that all engines share. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "gcm.h"

static const char *const names[VIPSEC_ISA_COUNT] = {
    [VIPSEC_ISA_EVP] = "evp",
    [VIPSEC_ISA_AESNI] = "aesni",
    [VIPSEC_ISA_VAES256] = "vaes256",
    [VIPSEC_ISA_VAES512] = "vaes512",
};

static const struct vipsec_gcm *(*const engines[VIPSEC_ISA_COUNT])(void) = {
    [VIPSEC_ISA_EVP] = gcm_engine_evp,
    [VIPSEC_ISA_AESNI] = gcm_engine_aesni,
    [VIPSEC_ISA_VAES256] = gcm_engine_vaes256,
    [VIPSEC_ISA_VAES512] = gcm_engine_vaes512,
};

const char *vipsec_isa_name(int isa) { return isa >= 0 && isa < VIPSEC_ISA_COUNT ? names[isa] : NULL; }

const struct vipsec_gcm *vipsec_gcm_engine(int isa) {
    if (isa < 0 || isa >= VIPSEC_ISA_COUNT || !cpu_offers((enum vipsec_isa)isa)) {
        return NULL;
    }
    return engines[isa]();
}

static const struct vipsec_gcm *chosen;

static void choose(void) {
    const char *forced = getenv("VIRTIO_IPSEC_ISA");
    for (int isa = VIPSEC_ISA_COUNT - 1; isa >= 0 && chosen == NULL; isa--) {
        if (forced == NULL || strcmp(forced, names[isa]) == 0) {
            chosen = vipsec_gcm_engine(isa);
        }
    }
}

const struct vipsec_gcm *vipsec_gcm_default(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, choose);
    return chosen;
}

int vipsec_gcm_isa(const struct vipsec_gcm *engine) { return (int)engine->isa; }

bool gcm_key_make(const struct vipsec_gcm *engine, struct vipsec_gcm_key *key, struct gcm_powers *powers,
                  const uint8_t *bytes, size_t size) {
    if (size != 16 && size != 24 && size != 32) {
        return false;
    }
    memset(key, 0, sizeof *key);
    memset(powers, 0, sizeof *powers);
    key->powers = powers;
    key->isa = (uint32_t)engine->isa;
    key->rounds = (uint32_t)size / 4 + 6;
    if (!engine->key_init(key, bytes, size)) {
        vipsec_wipe(key, sizeof *key);
        return false;
    }
    return true;
}

void gcm_key_wipe(struct vipsec_gcm_key *key) {
    const struct vipsec_gcm *engine = vipsec_gcm_engine((int)key->isa);
    if (engine != NULL && engine->key_release != NULL) {
        engine->key_release(key);
    }
    vipsec_wipe(key->powers, sizeof *key->powers);
    vipsec_wipe(key, sizeof *key);
}

/* A key on its own. */
struct whole_key {
    struct vipsec_gcm_key key;
    struct gcm_powers powers;
};
static_assert(sizeof(struct whole_key) % GCM_KEY_ALIGN == 0, "as aligned_alloc wants it");

struct vipsec_gcm_key *vipsec_gcm_key_new(const struct vipsec_gcm *engine, const uint8_t *key, size_t key_len) {
    struct whole_key *made = aligned_alloc(GCM_KEY_ALIGN, sizeof *made);
    if (made != NULL && gcm_key_make(engine, &made->key, &made->powers, key, key_len)) {
        return &made->key;
    }
    free(made);
    return NULL;
}

void vipsec_gcm_key_free(struct vipsec_gcm_key *key) {
    if (key != NULL) {
        gcm_key_wipe(key);
        free(key);
    }
}

size_t vipsec_gcm_seal(const struct vipsec_gcm *engine, struct vipsec_gcm_op *ops, size_t count) {
    return engine->seal(ops, count, false);
}

size_t vipsec_gcm_open(const struct vipsec_gcm *engine, struct vipsec_gcm_op *ops, size_t count) {
    return engine->open(ops, count, false);
}
