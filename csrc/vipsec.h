/*
 * Public contract of the C fast path. Also read by tools/build_ffi.py as the cffi declarations:
 * apart from the guard and its includes it holds plain declarations and numeric #defines only.
 *
 * Nothing here knows Python. Every function may be called from any thread; what it works on is
 * named in its contract. No function allocates unless its name ends in _new.
 */
#ifndef VIPSEC_H
#define VIPSEC_H
#include <stddef.h>
#include <stdint.h>

/* ---- instruction sets ------------------------------------------------------------------- */

/* In rising order of preference. */
enum vipsec_isa {
    VIPSEC_ISA_EVP,     /* libcrypto, loaded at run time: any CPU */
    VIPSEC_ISA_AESNI,   /* AES-NI, PCLMULQDQ, SSE4.1 */
    VIPSEC_ISA_VAES256, /* VAES, VPCLMULQDQ, AVX2 */
    VIPSEC_ISA_VAES512, /* VAES, VPCLMULQDQ, AVX-512 F, BW, VL, DQ */
    VIPSEC_ISA_COUNT
};

/* An AES-GCM engine: one instruction set's kernels. Constant, lives for ever. */
struct vipsec_gcm;

/* "evp", "aesni", "vaes256", "vaes512"; NULL for a number outside the enum. */
const char *vipsec_isa_name(int isa);

/* The engine of one instruction set; NULL when this machine cannot run it (no such CPU feature,
 * the operating system does not save the registers, or no usable libcrypto). */
const struct vipsec_gcm *vipsec_gcm_engine(int isa);

/* The engine to use: the best one of this machine, or the one that the environment variable
 * VIRTIO_IPSEC_ISA names. Decided at the first call, then the same for the life of the process.
 * NULL when the variable names something unknown or unavailable, or no engine exists: a forced
 * choice is never replaced in silence. */
const struct vipsec_gcm *vipsec_gcm_default(void);

/* The instruction set of an engine (enum vipsec_isa). */
int vipsec_gcm_isa(const struct vipsec_gcm *engine);

/* Version text of the libcrypto behind the evp engine; NULL when none was loaded. */
const char *vipsec_libcrypto_version(void);

/* ---- AES-GCM in batches (NIST SP 800-38D with 96-bit IVs, as RFC 4106 uses it) ------------ */

#define VIPSEC_GCM_MAX_LEN 65536 /* bytes of payload in one operation */
#define VIPSEC_GCM_MAX_AAD 12
#define VIPSEC_GCM_IV_LEN 12

/* A key made ready for one engine: round keys and hash powers. Secret. Constant after it was
 * made: any number of threads may use one key at the same time. */
struct vipsec_gcm_key;

enum vipsec_gcm_result {
    VIPSEC_GCM_OK,
    VIPSEC_GCM_BAD_TAG, /* open only: not authentic; nothing was written */
    VIPSEC_GCM_REFUSED, /* a field outside its range, or a key of another engine; nothing was written */
    VIPSEC_GCM_FAILED   /* evp only: libcrypto reported an error; out is not to be used */
};

/* One packet. 64 bytes, no padding. The caller owns everything; the pointers stay valid during the call. */
struct vipsec_gcm_op {
    const struct vipsec_gcm_key *key;
    const uint8_t *in; /* len bytes, any alignment; may be NULL when len is 0 */
    uint8_t *out;      /* len bytes: equal to in, or not overlapping it */
    uint8_t *tag;      /* tag_len bytes: written by seal, read by open; inside neither in nor out */
    uint32_t len;      /* 0..VIPSEC_GCM_MAX_LEN */
    uint8_t aad_len;   /* 0..VIPSEC_GCM_MAX_AAD; ESP: 8, with extended sequence numbers 12 */
    uint8_t tag_len;   /* 8, 12 or 16 */
    uint8_t result;    /* set by the call: enum vipsec_gcm_result */
    uint8_t reserved;
    uint8_t iv[12];    /* ESP: salt, then the explicit IV */
    uint8_t aad[12];   /* bytes from aad_len on are ignored */
};

/* Makes a key of key_len 16, 24 or 32 bytes ready. NULL: other length, or no memory. */
struct vipsec_gcm_key *vipsec_gcm_key_new(const struct vipsec_gcm *engine, const uint8_t *key, size_t key_len);

/* Wipes and frees. NULL is allowed. No call may be using the key. */
void vipsec_gcm_key_free(struct vipsec_gcm_key *key);

/* Encrypt (seal) or verify and decrypt (open) `count` independent packets, in any internal order:
 * no packet's buffers may overlap those of another one. Keys, lengths, key sizes and tag sizes may
 * all differ within a batch. Returns the number of packets whose result is not VIPSEC_GCM_OK.
 *
 * The caller guarantees that (key, iv) pairs never repeat for seal.
 *
 * open writes plaintext only after the tag was compared: a packet that is not authentic leaves
 * `in`, `out` and `tag` byte for byte as they were. `in` is read twice, so it must be memory that
 * nobody else writes meanwhile: copy out of guest memory first.
 *
 * Time and memory accesses depend on lengths and addresses, never on keys, payload or tags; the
 * verdict itself is public. */
size_t vipsec_gcm_seal(const struct vipsec_gcm *engine, struct vipsec_gcm_op *ops, size_t count);
size_t vipsec_gcm_open(const struct vipsec_gcm *engine, struct vipsec_gcm_op *ops, size_t count);

/* ---- offloads ----------------------------------------------------------------------------- */

/* Ones' complement sum of 16-bit big-endian words, folded (RFC 1071): 0 over zeros only; a zero byte is added to
 * odd data. When `to` is not NULL the bytes are copied there as well; the two must not overlap. */
uint16_t vipsec_checksum_sum(uint8_t *to, const uint8_t *from, size_t len);

/* ---- secrets ------------------------------------------------------------------------------ */

/* Overwrites with zeros; the compiler cannot leave it out. */
void vipsec_wipe(void *memory, size_t size);

/* 1 when the `size` bytes at a and b are equal, else 0, in a time that depends on size alone. */
int vipsec_equal(const void *a, const void *b, size_t size);

#endif
