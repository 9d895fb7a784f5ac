/*
 * AES-GCM by libcrypto, loaded at run time: for every CPU without an engine of our own. Needs neither
 * its headers nor its presence; only functions whose signature has not changed since OpenSSL 1.1.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#include "gcm.h"

struct context; /* EVP_CIPHER_CTX */
struct method;  /* EVP_CIPHER */
enum { SET_IV_LEN = 0x9, GET_TAG = 0x10, SET_TAG = 0x11 }; /* EVP_CTRL_AEAD_... */

static struct {
    struct context *(*new_context)(void);
    void (*free_context)(struct context *);
    int (*init)(struct context *, const struct method *, void *engine, const uint8_t *key, const uint8_t *iv, int seal);
    int (*update)(struct context *, uint8_t *out, int *out_len, const uint8_t *in, int len);
    int (*final)(struct context *, uint8_t *out, int *out_len);
    int (*control)(struct context *, int type, int number, void *pointer);
    const struct method *(*aes128)(void);
    const struct method *(*aes192)(void);
    const struct method *(*aes256)(void);
    const char *(*version)(int);
    bool loaded;
} crypto;

/* A function pointer is not a void pointer in ISO C; POSIX says that its bits are. */
static bool find(void *library, const char *name, void *target) {
    void *symbol = dlsym(library, name);
    memcpy(target, &symbol, sizeof symbol);
    return symbol != NULL;
}

static void load(void) {
    static const char *const names[] = {"libcrypto.so.4", "libcrypto.so.3", "libcrypto.so.1.1"};
    for (size_t i = 0; i < sizeof names / sizeof names[0] && !crypto.loaded; i++) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        crypto.loaded = library != NULL && find(library, "EVP_CIPHER_CTX_new", &crypto.new_context) &&
                        find(library, "EVP_CIPHER_CTX_free", &crypto.free_context) &&
                        find(library, "EVP_CipherInit_ex", &crypto.init) &&
                        find(library, "EVP_CipherUpdate", &crypto.update) &&
                        find(library, "EVP_CipherFinal_ex", &crypto.final) &&
                        find(library, "EVP_CIPHER_CTX_ctrl", &crypto.control) &&
                        find(library, "EVP_aes_128_gcm", &crypto.aes128) &&
                        find(library, "EVP_aes_192_gcm", &crypto.aes192) &&
                        find(library, "EVP_aes_256_gcm", &crypto.aes256) &&
                        find(library, "OpenSSL_version", &crypto.version);
        if (library != NULL && !crypto.loaded) {
            dlclose(library);
        }
    }
}

static bool available(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load);
    return crypto.loaded;
}

const char *vipsec_libcrypto_version(void) { return available() ? crypto.version(0) : NULL; }

static_assert(sizeof(pthread_mutex_t) <= sizeof(((struct vipsec_gcm_key *)0)->u.evp.lock), "room for the lock");

/* A context holds the state of a packet: one packet at a time per key. */
static pthread_mutex_t *lock_of(const struct vipsec_gcm_key *key) { return (void *)(uintptr_t)key->u.evp.lock; }

static bool make_key(struct vipsec_gcm_key *key, const uint8_t *bytes, size_t size) {
    const struct method *method = size == 16 ? crypto.aes128() : size == 24 ? crypto.aes192() : crypto.aes256();
    struct context *context = crypto.new_context();
    if (context == NULL) {
        return false;
    }
    if (crypto.init(context, method, NULL, bytes, NULL, 1) != 1 ||
        crypto.control(context, SET_IV_LEN, VIPSEC_GCM_IV_LEN, NULL) != 1 ||
        pthread_mutex_init(lock_of(key), NULL) != 0) {
        crypto.free_context(context);
        return false;
    }
    key->u.evp.context = context;
    return true;
}

static void release_key(struct vipsec_gcm_key *key) {
    crypto.free_context(key->u.evp.context); /* wipes its key schedule */
    pthread_mutex_destroy(lock_of(key));
}

/* Starts a packet: IV and AAD. */
static bool begin(const struct vipsec_gcm_op *op, int seal) {
    struct context *context = op->key->u.evp.context;
    int n;
    return crypto.init(context, NULL, NULL, NULL, op->iv, seal) == 1 &&
           (op->aad_len == 0 || crypto.update(context, NULL, &n, op->aad, op->aad_len) == 1);
}

static bool update(const struct vipsec_gcm_op *op, uint8_t *out, const uint8_t *in, size_t len) {
    int n;
    return len == 0 || (crypto.update(op->key->u.evp.context, out, &n, in, (int)len) == 1 && n == (int)len);
}

static enum vipsec_gcm_result seal_one(const struct vipsec_gcm_op *op) {
    uint8_t none[16];
    int n;
    return begin(op, 1) && update(op, op->out, op->in, op->len) &&
                   crypto.final(op->key->u.evp.context, none, &n) == 1 &&
                   crypto.control(op->key->u.evp.context, GET_TAG, op->tag_len, op->tag) == 1
               ? VIPSEC_GCM_OK
               : VIPSEC_GCM_FAILED;
}

/* libcrypto decrypts before it verifies, so the plaintext goes to a private buffer first. */
static enum vipsec_gcm_result open_one(const struct vipsec_gcm_op *op) {
    struct context *context = op->key->u.evp.context;
    uint8_t plain[4096], none[16];
    enum vipsec_gcm_result result = VIPSEC_GCM_FAILED;
    int n;
    bool going = begin(op, 0);
    for (size_t done = 0, part; going && done < op->len; done += part) {
        part = op->len - done < sizeof plain ? op->len - done : sizeof plain;
        going = update(op, plain, op->in + done, part);
    }
    if (going && crypto.control(context, SET_TAG, op->tag_len, op->tag) == 1) {
        result = crypto.final(context, none, &n) == 1 ? VIPSEC_GCM_OK : VIPSEC_GCM_BAD_TAG;
    }
    if (result == VIPSEC_GCM_OK && op->len > 0) {
        if (op->len <= sizeof plain) {
            memcpy(op->out, plain, op->len);
        } else if (!begin(op, 0) || !update(op, op->out, op->in, op->len)) {
            result = VIPSEC_GCM_FAILED;
        }
    }
    vipsec_wipe(plain, op->len < sizeof plain ? op->len : sizeof plain);
    return result;
}

static size_t run(struct vipsec_gcm_op *ops, size_t count, enum vipsec_gcm_result (*one)(const struct vipsec_gcm_op *)) {
    size_t failed = 0;
    for (size_t i = 0; i < count; i++) {
        struct vipsec_gcm_op *op = &ops[i];
        if (gcm_op_valid(op, VIPSEC_ISA_EVP)) {
            pthread_mutex_lock(lock_of(op->key));
            op->result = (uint8_t)one(op);
            pthread_mutex_unlock(lock_of(op->key));
        } else {
            op->result = VIPSEC_GCM_REFUSED;
        }
        failed += op->result != VIPSEC_GCM_OK;
    }
    return failed;
}

static size_t seal(struct vipsec_gcm_op *ops, size_t count, bool far) {
    return (void)far, run(ops, count, seal_one);
}
static size_t open_batch(struct vipsec_gcm_op *ops, size_t count, bool far) {
    return (void)far, run(ops, count, open_one);
}

const struct vipsec_gcm *gcm_engine_evp(void) {
    static const struct vipsec_gcm engine = {VIPSEC_ISA_EVP, make_key, release_key, seal, open_batch};
    return available() ? &engine : NULL;
}
