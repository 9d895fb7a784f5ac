/*
 * What tools/bench times: bursts of AES-GCM packets, the way an ESP sender or receiver makes them. Built on the
 * spot, with OpenSSL and ipsec-mb when their headers are there; loaded by tools/bench.
 *
 * Each engine gets the same work per packet: choose the SA round robin, write AAD (SPI, sequence number) and nonce
 * (salt, IV), then seal or open 64 packets from one buffer to another. For open, the packets were sealed before by
 * another implementation, and the verdict of each one counts.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vipsec.h"
#ifdef WITH_OPENSSL
#include <openssl/evp.h>
#include <openssl/crypto.h>
#endif
#ifdef WITH_IPSEC_MB
#include <intel-ipsec-mb.h>
#endif

enum { OPENSSL = 100, IPSEC_MB = 101, NOTHING = 102, MARGIN = 14 };

struct bench {
    int engine, opening;
    uint32_t key_len, len, sas, packets, burst, next_sa;
    size_t stride;
    uint64_t sequence;
    const struct vipsec_gcm *own;
    struct vipsec_gcm_op *ops;
    uint8_t *in, *out, *tags, *keys;
    struct vipsec_gcm_key **own_keys;
    void *foreign_keys;
    uint64_t bad;
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
    if (engine == NOTHING) return "";
    return vipsec_isa_name(engine) != NULL && vipsec_gcm_engine(engine) != NULL ? vipsec_isa_name(engine) : NULL;
}

static void put32(uint8_t *p, uint32_t x) {
    x = __builtin_bswap32(x);
    memcpy(p, &x, 4);
}

/* Everything but the cryptography. */
static inline void prepare(struct bench *b, uint32_t i) {
    struct vipsec_gcm_op *op = &b->ops[i];
    const uint32_t sa = b->next_sa;
    b->next_sa = sa + 1 == b->sas ? 0 : sa + 1;
    const uint64_t sequence = b->opening ? i + 1u : ++b->sequence;
    op->key = b->own_keys != NULL ? b->own_keys[sa] : (const void *)(uintptr_t)(sa + 1);
    op->in = b->in + i * b->stride + MARGIN;
    op->out = b->out + i * b->stride + MARGIN;
    op->tag = b->tags + i * 16;
    op->len = b->len;
    op->aad_len = 8;
    op->tag_len = 16;
    put32(op->aad, sa + 1);
    put32(op->aad + 4, (uint32_t)sequence);
    put32(op->iv, sa + 1);
    put32(op->iv + 4, (uint32_t)(sequence >> 32));
    put32(op->iv + 8, (uint32_t)sequence);
}

struct bench *bench_new(int engine, int opening, uint32_t key_len, uint32_t len, uint32_t sas, uint32_t burst) {
    struct bench *b = calloc(1, sizeof *b);
    b->engine = engine, b->opening = opening, b->key_len = key_len, b->len = len, b->sas = sas, b->burst = burst;
    b->packets = 64;
    b->stride = (len + MARGIN + 2303) / 2304 * 2304;
    b->ops = aligned_alloc(64, sizeof *b->ops * b->packets);
    b->in = aligned_alloc(64, b->stride * b->packets);
    b->out = aligned_alloc(64, b->stride * b->packets);
    b->tags = calloc(b->packets, 16);
    b->keys = malloc(32u * sas);
    memset(b->ops, 0, sizeof *b->ops * b->packets);
    memset(b->out, 1, b->stride * b->packets);
    for (size_t i = 0; i < b->stride * b->packets; i++) b->in[i] = (uint8_t)(i * 31 + i / 256);
    for (uint32_t i = 0; i < 32 * sas; i++) b->keys[i] = (uint8_t)(i * 7 + i / 251 * 13);
    if (engine < VIPSEC_ISA_COUNT) {
        b->own = vipsec_gcm_engine(engine);
        b->own_keys = calloc(sas, sizeof *b->own_keys);
        for (uint32_t i = 0; i < sas; i++) b->own_keys[i] = vipsec_gcm_key_new(b->own, b->keys + 32 * i, key_len);
    }
#ifdef WITH_OPENSSL
    if (engine == OPENSSL) {
        const EVP_CIPHER *c = key_len == 16 ? EVP_aes_128_gcm() : key_len == 24 ? EVP_aes_192_gcm() : EVP_aes_256_gcm();
        EVP_CIPHER_CTX **contexts = calloc(sas, sizeof *contexts);
        for (uint32_t i = 0; i < sas; i++) {
            contexts[i] = EVP_CIPHER_CTX_new();
            EVP_CipherInit_ex(contexts[i], c, NULL, b->keys + 32 * i, NULL, !opening);
        }
        b->foreign_keys = contexts;
    }
#endif
#ifdef WITH_IPSEC_MB
    if (engine == IPSEC_MB) {
        start_ipsec_mb();
        struct gcm_key_data *keys = aligned_alloc(64, sizeof *keys * sas);
        for (uint32_t i = 0; i < sas; i++) {
            if (key_len == 16) IMB_AES128_GCM_PRE(manager, b->keys + 32 * i, &keys[i]);
            else if (key_len == 24) IMB_AES192_GCM_PRE(manager, b->keys + 32 * i, &keys[i]);
            else IMB_AES256_GCM_PRE(manager, b->keys + 32 * i, &keys[i]);
        }
        b->foreign_keys = keys;
    }
#endif
    for (uint32_t i = 0; i < b->packets; i++) prepare(b, i);
    b->next_sa = 0;
    return b;
}

void bench_free(struct bench *b) {
    for (uint32_t i = 0; i < b->sas && b->own_keys != NULL; i++) vipsec_gcm_key_free(b->own_keys[i]);
#ifdef WITH_OPENSSL
    for (uint32_t i = 0; i < b->sas && b->engine == OPENSSL; i++) EVP_CIPHER_CTX_free(((EVP_CIPHER_CTX **)b->foreign_keys)[i]);
#endif
    free(b->foreign_keys), free(b->own_keys), free(b->ops), free(b->in), free(b->out), free(b->tags), free(b->keys);
    free(b);
}

#ifdef WITH_IPSEC_MB
static int tags_equal(const uint8_t *a, const uint8_t *b) {
    uint64_t x[2], y[2];
    memcpy(x, a, 16), memcpy(y, b, 16);
    return ((x[0] ^ y[0]) | (x[1] ^ y[1])) == 0;
}

static void one_ipsec_mb(struct bench *b, const struct vipsec_gcm_op *op) {
    const struct gcm_key_data *key = (struct gcm_key_data *)b->foreign_keys + ((uintptr_t)op->key - 1);
    struct gcm_context_data context;
    uint8_t got[16];
    if (!b->opening) {
        if (b->key_len == 16) IMB_AES128_GCM_ENC(manager, key, &context, op->out, op->in, op->len, op->iv, op->aad, 8, op->tag, 16);
        else if (b->key_len == 24) IMB_AES192_GCM_ENC(manager, key, &context, op->out, op->in, op->len, op->iv, op->aad, 8, op->tag, 16);
        else IMB_AES256_GCM_ENC(manager, key, &context, op->out, op->in, op->len, op->iv, op->aad, 8, op->tag, 16);
        return;
    }
    if (b->key_len == 16) IMB_AES128_GCM_DEC(manager, key, &context, op->out, op->in, op->len, op->iv, op->aad, 8, got, 16);
    else if (b->key_len == 24) IMB_AES192_GCM_DEC(manager, key, &context, op->out, op->in, op->len, op->iv, op->aad, 8, got, 16);
    else IMB_AES256_GCM_DEC(manager, key, &context, op->out, op->in, op->len, op->iv, op->aad, 8, got, 16);
    b->bad += !tags_equal(got, op->tag);
}
#endif

#ifdef WITH_OPENSSL
static void one_openssl(struct bench *b, const struct vipsec_gcm_op *op) {
    EVP_CIPHER_CTX *c = ((EVP_CIPHER_CTX **)b->foreign_keys)[(uintptr_t)op->key - 1];
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

/* All 64 packets, `burst` of them per call of the engine. */
static void round_trip(struct bench *b) {
    for (uint32_t at = 0; at < b->packets; at += b->burst) {
        for (uint32_t i = at; i < at + b->burst; i++) prepare(b, i);
        if (b->own != NULL) {
            b->bad += b->opening ? vipsec_gcm_open(b->own, b->ops + at, b->burst)
                                 : vipsec_gcm_seal(b->own, b->ops + at, b->burst);
        }
#ifdef WITH_IPSEC_MB
        for (uint32_t i = at; b->engine == IPSEC_MB && i < at + b->burst; i++) one_ipsec_mb(b, &b->ops[i]);
#endif
#ifdef WITH_OPENSSL
        for (uint32_t i = at; b->engine == OPENSSL && i < at + b->burst; i++) one_openssl(b, &b->ops[i]);
#endif
        __asm__ volatile("" : : "r"(b->ops) : "memory");
    }
    if (b->opening) b->next_sa = 0;
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Nanoseconds per packet: the best of `tries` runs of `rounds` times 64 packets. */
double bench_sample(struct bench *b, uint32_t rounds, uint32_t tries) {
    double best = 1e30;
    for (uint32_t t = 0; t < tries; t++) {
        const double begin = seconds();
        for (uint32_t r = 0; r < rounds; r++) round_trip(b);
        const double took = (seconds() - begin) * 1e9 / rounds / b->packets;
        best = took < best ? took : best;
    }
    return best;
}

uint64_t bench_bad(const struct bench *b) { return b->bad; }

/* Views of packet i of the last round, for verification from outside. */
const uint8_t *bench_key(const struct bench *b, uint32_t i) {
    uint32_t spi;
    memcpy(&spi, b->ops[i].aad, 4);
    return b->keys + 32 * (__builtin_bswap32(spi) - 1);
}
struct vipsec_gcm_op *bench_op(struct bench *b, uint32_t i) { return &b->ops[i]; }
uint8_t *bench_in(struct bench *b, uint32_t i) { return b->in + i * b->stride + MARGIN; }
