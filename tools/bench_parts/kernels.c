/*
 * What tools/bench times: bursts of AES-GCM packets, the way an ESP sender or receiver makes them. Built on the
 * spot, with OpenSSL and ipsec-mb when their headers are there; loaded by tools/bench.
 *
 * Each engine gets the same work per packet: choose the SA round robin, write AAD (SPI, sequence number) and nonce
 * (salt, IV), then seal or open 64 packets from one buffer to another. For open, the packets were sealed before by
 * another implementation, and the verdict of each one counts.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "vipsec.h"
#ifdef WITH_OPENSSL
#include <openssl/evp.h>
#include <openssl/crypto.h>
#endif
#ifdef WITH_IPSEC_MB
#include <intel-ipsec-mb.h>
#endif

enum { OPENSSL = 100, IPSEC_MB = 101, MARGIN = 14, PACKETS = 64, AAD_LEN = 8, TAG_LEN = 16 };

/*
 * SAs of one engine. Each has a key object of its own; the 64 key values repeat, so that one set of 64 sealed packets
 * can be opened by any number of SAs.
 */
struct bench_keys {
    int engine;
    uint32_t key_len, sas;
    uint8_t value[PACKETS][32];
    const struct vipsec_gcm *own;
    struct vipsec_gcm_key **own_keys;
    void *foreign_keys;
};

struct bench {
    const struct bench_keys *keys;
    int opening;
    uint32_t len, next_sa;
    size_t stride;
    uint64_t sequence, bad;
    struct vipsec_gcm_op *ops;
    uint8_t *in, *out, *tags;
};

#ifdef WITH_IPSEC_MB
static IMB_MGR *manager; /* with the code that it chooses for this CPU */

static void start_ipsec_mb(void) {
    IMB_ARCH arch;
    if (manager != NULL) return;
    manager = alloc_mb_mgr(0);
    init_mb_mgr_auto(manager, &arch);
}

/* Its version and which of its code paths it runs: what it is on one CPU it is not on another. */
static const char *ipsec_mb_version(void) {
    static char text[160];
    const char *type = "", *description = "";
    start_ipsec_mb();
#if IMB_VERSION_NUM >= 0x10500
    imb_get_arch_type_string(manager, &type, &description);
#endif
    snprintf(text, sizeof text, "%s %s: %s", imb_get_version_str(), type, description);
    return text;
}
#endif

const char *bench_version(int engine) {
#ifdef WITH_OPENSSL
    if (engine == OPENSSL) return OpenSSL_version(OPENSSL_VERSION);
#endif
#ifdef WITH_IPSEC_MB
    if (engine == IPSEC_MB) return ipsec_mb_version();
#endif
    return vipsec_isa_name(engine) != NULL && vipsec_gcm_engine(engine) != NULL ? vipsec_isa_name(engine) : NULL;
}

static void put32(uint8_t *p, uint32_t x) {
    x = __builtin_bswap32(x);
    memcpy(p, &x, 4);
}

struct bench_keys *bench_keys_new(int engine, uint32_t key_len, uint32_t sas) {
    struct bench_keys *k = calloc(1, sizeof *k);
    k->engine = engine, k->key_len = key_len, k->sas = sas;
    for (size_t i = 0; i < sizeof k->value; i++) k->value[i / 32][i % 32] = (uint8_t)(i * 7 + i / 251 * 13);
    if (engine < VIPSEC_ISA_COUNT) {
        k->own = vipsec_gcm_engine(engine);
        k->own_keys = calloc(sas, sizeof *k->own_keys);
        for (uint32_t i = 0; i < sas; i++) k->own_keys[i] = vipsec_gcm_key_new(k->own, k->value[i % PACKETS], key_len);
    }
#ifdef WITH_OPENSSL
    if (engine == OPENSSL) {
        const EVP_CIPHER *c = key_len == 16 ? EVP_aes_128_gcm() : key_len == 24 ? EVP_aes_192_gcm() : EVP_aes_256_gcm();
        EVP_CIPHER_CTX **contexts = calloc(sas, sizeof *contexts);
        for (uint32_t i = 0; i < sas; i++) {
            contexts[i] = EVP_CIPHER_CTX_new();
            EVP_CipherInit_ex(contexts[i], c, NULL, k->value[i % PACKETS], NULL, 1);
        }
        k->foreign_keys = contexts;
    }
#endif
#ifdef WITH_IPSEC_MB
    if (engine == IPSEC_MB) {
        start_ipsec_mb();
        struct gcm_key_data *keys = aligned_alloc(64, (sizeof *keys * sas + 63) / 64 * 64);
        for (uint32_t i = 0; i < sas; i++) {
            if (key_len == 16) IMB_AES128_GCM_PRE(manager, k->value[i % PACKETS], &keys[i]);
            else if (key_len == 24) IMB_AES192_GCM_PRE(manager, k->value[i % PACKETS], &keys[i]);
            else IMB_AES256_GCM_PRE(manager, k->value[i % PACKETS], &keys[i]);
        }
        k->foreign_keys = keys;
    }
#endif
    return k;
}

void bench_keys_free(struct bench_keys *k) {
    for (uint32_t i = 0; i < k->sas && k->own_keys != NULL; i++) vipsec_gcm_key_free(k->own_keys[i]);
#ifdef WITH_OPENSSL
    for (uint32_t i = 0; i < k->sas && k->engine == OPENSSL; i++)
        EVP_CIPHER_CTX_free(((EVP_CIPHER_CTX **)k->foreign_keys)[i]);
#endif
    free(k->foreign_keys), free(k->own_keys), free(k);
}

/* Everything but the cryptography. For open, packet i is always sealed with key value i. */
static inline void prepare(struct bench *b, uint32_t i) {
    struct vipsec_gcm_op *op = &b->ops[i];
    const uint32_t sa = b->next_sa;
    b->next_sa = sa + 1 == b->keys->sas ? 0 : sa + 1;
    const uint32_t spi = b->opening ? sa % PACKETS + 1 : sa + 1;
    const uint64_t sequence = b->opening ? i + 1u : ++b->sequence;
    op->key = b->keys->own_keys != NULL ? b->keys->own_keys[sa] : (const void *)(uintptr_t)(sa + 1);
    op->in = b->in + i * b->stride + MARGIN;
    op->out = b->out + i * b->stride + MARGIN;
    op->tag = b->tags + i * TAG_LEN;
    op->len = b->len;
    op->aad_len = AAD_LEN;
    op->tag_len = TAG_LEN;
    put32(op->aad, spi);
    put32(op->aad + 4, (uint32_t)sequence);
    put32(op->iv, spi);
    put32(op->iv + 4, (uint32_t)(sequence >> 32));
    put32(op->iv + 8, (uint32_t)sequence);
}

/* `len` bytes of payload; the number of SAs divides 64 or is a multiple of it. */
struct bench *bench_new(const struct bench_keys *keys, int opening, uint32_t len) {
    struct bench *b = calloc(1, sizeof *b);
    b->keys = keys, b->opening = opening, b->len = len;
    b->stride = (len + MARGIN + 2303) / 2304 * 2304;
    b->ops = aligned_alloc(64, sizeof *b->ops * PACKETS);
    b->in = aligned_alloc(64, b->stride * PACKETS);
    b->out = aligned_alloc(64, b->stride * PACKETS);
    b->tags = calloc(PACKETS, TAG_LEN);
    memset(b->ops, 0, sizeof *b->ops * PACKETS);
    memset(b->out, 1, b->stride * PACKETS);
    for (size_t i = 0; i < b->stride * PACKETS; i++) b->in[i] = (uint8_t)(i * 31 + i / 256);
    for (uint32_t i = 0; i < PACKETS; i++) prepare(b, i);
    b->next_sa = 0;
    return b;
}

void bench_free(struct bench *b) {
    free(b->ops), free(b->in), free(b->out), free(b->tags), free(b);
}

#ifdef WITH_IPSEC_MB
static int tags_equal(const uint8_t *a, const uint8_t *b) {
    uint64_t x[2], y[2];
    memcpy(x, a, 16), memcpy(y, b, 16);
    return ((x[0] ^ y[0]) | (x[1] ^ y[1])) == 0;
}

static void one_ipsec_mb(struct bench *b, const struct vipsec_gcm_op *op) {
    const struct gcm_key_data *key = (struct gcm_key_data *)b->keys->foreign_keys + ((uintptr_t)op->key - 1);
    struct gcm_context_data context;
    uint8_t got[16];
    if (!b->opening) {
        if (b->keys->key_len == 16) IMB_AES128_GCM_ENC(manager, key, &context, op->out, op->in, op->len, op->iv, op->aad, 8, op->tag, 16);
        else if (b->keys->key_len == 24) IMB_AES192_GCM_ENC(manager, key, &context, op->out, op->in, op->len, op->iv, op->aad, 8, op->tag, 16);
        else IMB_AES256_GCM_ENC(manager, key, &context, op->out, op->in, op->len, op->iv, op->aad, 8, op->tag, 16);
        return;
    }
    if (b->keys->key_len == 16) IMB_AES128_GCM_DEC(manager, key, &context, op->out, op->in, op->len, op->iv, op->aad, 8, got, 16);
    else if (b->keys->key_len == 24) IMB_AES192_GCM_DEC(manager, key, &context, op->out, op->in, op->len, op->iv, op->aad, 8, got, 16);
    else IMB_AES256_GCM_DEC(manager, key, &context, op->out, op->in, op->len, op->iv, op->aad, 8, got, 16);
    b->bad += !tags_equal(got, op->tag);
}
#endif

#ifdef WITH_OPENSSL
static void one_openssl(struct bench *b, const struct vipsec_gcm_op *op) {
    EVP_CIPHER_CTX *c = ((EVP_CIPHER_CTX **)b->keys->foreign_keys)[(uintptr_t)op->key - 1];
    int n;
    if (b->opening) {
        EVP_DecryptInit_ex(c, NULL, NULL, NULL, op->iv);
        EVP_DecryptUpdate(c, NULL, &n, op->aad, 8);
        EVP_DecryptUpdate(c, op->out, &n, op->in, (int)op->len);
        EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_SET_TAG, 16, op->tag);
        b->bad += EVP_DecryptFinal_ex(c, op->out + n, &n) <= 0;
    } else {
        EVP_EncryptInit_ex(c, NULL, NULL, NULL, op->iv);
        EVP_EncryptUpdate(c, NULL, &n, op->aad, 8);
        EVP_EncryptUpdate(c, op->out, &n, op->in, (int)op->len);
        EVP_EncryptFinal_ex(c, op->out + n, &n);
        EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_GET_TAG, 16, op->tag);
    }
}
#endif

/* All 64 packets; our engines take them in one call. */
static void pass(struct bench *b) {
    const struct bench_keys *k = b->keys;
    for (uint32_t i = 0; i < PACKETS; i++) prepare(b, i);
    if (k->own != NULL)
        b->bad += b->opening ? vipsec_gcm_open(k->own, b->ops, PACKETS) : vipsec_gcm_seal(k->own, b->ops, PACKETS);
#ifdef WITH_IPSEC_MB
    for (uint32_t i = 0; k->engine == IPSEC_MB && i < PACKETS; i++) one_ipsec_mb(b, &b->ops[i]);
#endif
#ifdef WITH_OPENSSL
    for (uint32_t i = 0; k->engine == OPENSSL && i < PACKETS; i++) one_openssl(b, &b->ops[i]);
#endif
    __asm__ volatile("" : : "r"(b->ops) : "memory");
}

/* Nanoseconds per packet: the best of `tries` runs of `passes` times 64 packets. */
double bench_sample(struct bench *b, uint32_t passes, uint32_t tries) {
    double best = 1e30;
    for (uint32_t t = 0; t < tries; t++) {
        const double begin = seconds();
        for (uint32_t r = 0; r < passes; r++) pass(b);
        const double took = (seconds() - begin) * 1e9 / passes / PACKETS;
        best = took < best ? took : best;
    }
    return best;
}

uint64_t bench_bad(const struct bench *b) { return b->bad; }

/* Views of packet i of the last pass, for verification from outside. */
const uint8_t *bench_key(const struct bench *b, uint32_t i) {
    uint32_t spi;
    memcpy(&spi, b->ops[i].aad, 4);
    return b->keys->value[(__builtin_bswap32(spi) - 1) % PACKETS];
}
struct vipsec_gcm_op *bench_op(struct bench *b, uint32_t i) { return &b->ops[i]; }
uint8_t *bench_in(struct bench *b, uint32_t i) { return b->in + i * b->stride + MARGIN; }
