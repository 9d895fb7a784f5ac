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

/* ---- verdicts ----------------------------------------------------------------------------- */

/* Why a packet was not processed: errors.Reason of the Python rooms, same names and order. */
enum vipsec_reason {
    VIPSEC_REASON_NONE = 0,
    VIPSEC_REASON_UNKNOWN_SA,
    VIPSEC_REASON_WRONG_DIRECTION,
    VIPSEC_REASON_HARD_LIFETIME,
    VIPSEC_REASON_SEQUENCE_OVERFLOW,
    VIPSEC_REASON_REPLAY,
    VIPSEC_REASON_BAD_ICV,
    VIPSEC_REASON_BAD_PADDING,
    VIPSEC_REASON_BAD_NEXT_HEADER,
    VIPSEC_REASON_BAD_INNER,
    VIPSEC_REASON_DUMMY,
    VIPSEC_REASON_CONGESTION,
    VIPSEC_REASON_NOT_IPSEC,
    VIPSEC_REASON_FRAGMENT,
    VIPSEC_REASON_MALFORMED,
    VIPSEC_REASON_NOT_IP,
    VIPSEC_REASON_TTL_EXPIRED,
    VIPSEC_REASON_TOO_BIG,
    VIPSEC_REASON_BAD_HEADER,
    VIPSEC_REASON_BAD_CHECKSUM_REQUEST,
    VIPSEC_REASON_BAD_GSO,
    VIPSEC_REASON_FILTERED,
    VIPSEC_REASON_RULE_DROP,
    VIPSEC_REASON_NO_BUFFER,
    VIPSEC_REASON_QUEUE_DISABLED,
    VIPSEC_REASON_COUNT
};

/* ---- frames and stateless offloads ---------------------------------------------------------- */

/* Beside enum vipsec_reason: this is for the Python device to do. */
enum { VIPSEC_PUNT = -1 };

/* Where the headers of an Ethernet frame are: FrameView of device/frame.py. Offsets in bytes from the first byte,
 * 0 where there is no such header. */
struct vipsec_frame_view {
    uint32_t l3;        /* network header, behind all VLAN tags; 0 when the frame is cut short before it */
    uint32_t l4;        /* transport header; 0 on a fragment that is not the first */
    uint32_t end;       /* where the IP packet ends by its own length field */
    uint32_t home;      /* IPv6 home address option, address of a type 2 routing header */
    uint32_t routing;
    uint16_t ethertype; /* after all VLAN tags */
    int16_t protocol;   /* IPv4 Protocol, or Next Header of the last IPv6 extension header; -1 without IP */
    uint8_t version;    /* 4, 6, or 0 when it is not well-formed IP */
    uint8_t fragment;   /* part of a datagram */
    uint8_t extensions; /* IPv6 with extension headers */
    uint8_t reserved;
};

/* Fills `view`. l3, when not 0, is where the network header is known to be: 14..len. `oversize`: the packet is to be
 * segmented, so it reaches to the end of the frame whatever its length field says. */
void vipsec_frame_view(const uint8_t *frame, uint32_t len, uint32_t l3, int oversize, struct vipsec_frame_view *view);

/* What a virtio_net_hdr asks for. */
struct vipsec_offload_request {
    uint8_t flags, gso_type;
    uint16_t gso_size, csum_start, csum_offset;
};

/* Completes the checksum over frame[start..len), whose seed stands at start + offset, in place: enum vipsec_reason. */
int vipsec_offload_checksum(uint8_t *frame, uint32_t len, uint32_t start, uint32_t offset);

/* 1 when the frame is a whole TCP or UDP packet whose checksum (and IPv4 header checksum) is present and right. */
int vipsec_offload_checksum_ok(const uint8_t *frame, const struct vipsec_frame_view *view);

/* Whether `at` may be used as outer_nh_offset: enum vipsec_reason. */
int vipsec_offload_network_header(const uint8_t *frame, uint32_t len, uint32_t at);

#define VIPSEC_MAX_SEGMENTS 4096

/* Cuts a frame as asked, with `features` (bits 0..63) negotiated; l3 is a checked outer_nh_offset or 0. The segments
 * stand behind one another at `out` (`room` bytes), their lengths in `lengths`, which has VIPSEC_MAX_SEGMENTS places.
 * Returns enum vipsec_reason (NO_BUFFER: `room` is too small) or VIPSEC_PUNT; *count is 0 unless NONE, and also 0
 * when no segmentation is asked for. */
int vipsec_offload_segment(const uint8_t *frame, uint32_t len, const struct vipsec_offload_request *request,
                           uint64_t features, uint32_t l3, uint8_t *out, size_t room, uint32_t *lengths,
                           uint32_t *count);

/* ---- secrets ------------------------------------------------------------------------------ */

/* Overwrites with zeros; the compiler cannot leave it out. */
void vipsec_wipe(void *memory, size_t size);

/* 1 when the `size` bytes at a and b are equal, else 0, in a time that depends on size alone. */
int vipsec_equal(const void *a, const void *b, size_t size);

#endif
