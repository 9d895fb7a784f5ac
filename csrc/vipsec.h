/*
 * Public contract of the C fast path. Also read by tools/build_ffi.py as the cffi declarations:
 * apart from the guard and its includes it holds plain declarations and numeric #defines only.
 *
 * Nothing here knows Python. Every function may be called from any thread; what it works on is
 * named in its contract. No function allocates unless its name ends in _new or its contract says so.
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
    VIPSEC_REASON_OVERLOAD,
    VIPSEC_REASON_HELD,
    VIPSEC_REASON_COUNT
};

/* "unknown_sa", ...; "none" for 0, NULL for a number outside the enum. */
const char *vipsec_reason_name(int reason);

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
/* ---- guest memory ------------------------------------------------------------------------- */

/* `size` bytes of guest-physical addresses from guest_addr, mapped at host. */
struct vipsec_region {
    uint64_t guest_addr;
    uint64_t size;
    uint8_t *host;
};

/* The regions of one guest. Constant once made, apart from what is said below. */
struct vipsec_memory;

/* Copies the table. NULL: no memory, no region, an empty one, one that leaves the 64-bit address space, or two
 * that overlap. Whoever calls keeps the mappings until vipsec_memory_free.
 *
 * Puts a SIGBUS handler in front of the one that is there: the owner of a mapping may truncate the file behind it
 * at any time. The handler acts on faults inside such memory while a call of this library works on it, and hands every
 * other one to the previous handler. Whoever installs another one later hands on to ours; one that does not is itself
 * put behind ours by the next call. */
struct vipsec_memory *vipsec_memory_new(const struct vipsec_region *regions, size_t count);

/* The dirty log of live migration: one bit for each 4 KiB of guest addresses, shared with the front-end. Every store
 * of the library into guest memory is noted there from now on, except stores into the rings, which each queue is told
 * about by vipsec_queue_set_log. NULL ends that. No queue over the memory may be at work meanwhile. */
void vipsec_memory_set_log(struct vipsec_memory *memory, uint8_t *log, uint64_t size);

/* The mapping of the inflight regions of its queues (vhost-user INFLIGHT_SHMFD), or NULL. Before a queue takes its
 * part of it. */
void vipsec_memory_set_inflight(struct vipsec_memory *memory, uint8_t *mapping, uint64_t size);

/* Copies between guest addresses and private memory. 0; or a fault negated: ADDRESS for a range that is not wholly inside
 * (nothing was copied), MEMORY when it has vanished under our hands (some may have been). len > 0. */
int vipsec_memory_read(struct vipsec_memory *memory, uint64_t guest, uint8_t *to, size_t len);
int vipsec_memory_write(struct vipsec_memory *memory, uint64_t guest, const uint8_t *from, size_t len);

/* No queue may be left over it. NULL is allowed. */
void vipsec_memory_free(struct vipsec_memory *memory);

/* 1 when an access failed because the mapping had lost its backing; stays so. */
int vipsec_memory_failed(const struct vipsec_memory *memory);

/* ---- virtqueues, device side (virtio v1.4 2.7 split, 2.8 packed) ----------------------------- */

/* What can be wrong with a queue, in the order of ring/faults.py. Calls return them negated. */
enum vipsec_fault {
    VIPSEC_FAULT_NONE,
    VIPSEC_FAULT_SIZE, /* layout handed over at set-up */
    VIPSEC_FAULT_ALIGNMENT,
    VIPSEC_FAULT_PLACEMENT,
    VIPSEC_FAULT_AVAILABLE_JUMP, /* what a driver made available */
    VIPSEC_FAULT_INDEX,
    VIPSEC_FAULT_LOOP,
    VIPSEC_FAULT_DUPLICATE,
    VIPSEC_FAULT_OVERCOMMIT,
    VIPSEC_FAULT_PARTIAL_LIST,
    VIPSEC_FAULT_EMPTY,
    VIPSEC_FAULT_ZERO_LENGTH,
    VIPSEC_FAULT_TOO_LONG,
    VIPSEC_FAULT_ADDRESS,
    VIPSEC_FAULT_ORDER,
    VIPSEC_FAULT_INDIRECT_NOT_NEGOTIATED,
    VIPSEC_FAULT_INDIRECT_NESTED,
    VIPSEC_FAULT_INDIRECT_CHAINED,
    VIPSEC_FAULT_INDIRECT_LENGTH,
    VIPSEC_FAULT_USED_JUMP, /* what a device marked used */
    VIPSEC_FAULT_USED_ID,
    VIPSEC_FAULT_USED_LENGTH,
    VIPSEC_FAULT_USED_ORDER,
    VIPSEC_FAULT_FULL, /* use of the queue */
    VIPSEC_FAULT_BROKEN,
    VIPSEC_FAULT_MEMORY, /* guest memory lost its backing */
    VIPSEC_FAULT_COUNT
};

/* The values of ring/faults.py: "available_jump" and so on; "" for none, NULL outside the enum. */
const char *vipsec_fault_name(int fault);

#define VIPSEC_QUEUE_PACKED 1    /* VIRTIO_F_RING_PACKED */
#define VIPSEC_QUEUE_INDIRECT 2  /* VIRTIO_F_INDIRECT_DESC */
#define VIPSEC_QUEUE_EVENT_IDX 4 /* VIRTIO_F_EVENT_IDX */
#define VIPSEC_QUEUE_IN_ORDER 8  /* VIRTIO_F_IN_ORDER */
#define VIPSEC_QUEUE_RESUME 16   /* continue at `state`; without it the queue is new and state is ignored */

struct vipsec_queue_config {
    uint64_t desc; /* guest addresses: descriptor area, driver area, device area */
    uint64_t driver;
    uint64_t device;
    uint32_t size;  /* 1..32768; split: a power of two */
    uint32_t flags; /* VIPSEC_QUEUE_* */
    uint32_t state; /* vhost-user's vring base. Split: available index. Packed: available offset | wrap << 15,
                     * used offset and wrap in bits 16-31 */
    int32_t call_fd; /* non-blocking eventfd of used buffer notifications, -1 none. Stays the caller's */
    int32_t err_fd;  /* the same, told once when the queue breaks */
    uint32_t reserved;
};

/* Bytes of one buffer that lie together in host memory. Inside the regions: checked. */
struct vipsec_segment {
    uint8_t *host;
    uint64_t guest;
    uint32_t len;
    uint32_t continues; /* 1: rest of the descriptor of the segment before, which crosses regions */
};

/* One buffer that the driver made available: readable segments, then writable ones. */
struct vipsec_chain {
    const struct vipsec_segment *segments;
    uint64_t readable_len; /* bytes; together at most 2^32 */
    uint64_t writable_len;
    uint64_t serial;      /* which pop it was: for unpop */
    uint32_t readable;    /* segments */
    uint32_t writable;
    uint16_t head;        /* what a used entry names: first descriptor (split) or buffer id (packed) */
    uint16_t descriptors; /* held in the ring */
    uint32_t reserved;
};

/* The device side of one virtqueue. One thread at a time; different queues from different threads. */
struct vipsec_queue;

/* NULL with *fault VIPSEC_FAULT_NONE: no memory. Otherwise *fault says what is wrong with the config (or that
 * guest memory has vanished). Asks for available buffer notifications, which is all it writes. */
struct vipsec_queue *vipsec_queue_new(struct vipsec_memory *memory, const struct vipsec_queue_config *config,
                                      int *fault);
void vipsec_queue_free(struct vipsec_queue *queue);

/* The queue goes on in other memory, in which its rings are the same bytes at the same guest addresses. 0, and nothing has
 * changed: they are not, or chains are out, or the queue keeps an inflight record, or more regions touch each other than
 * in the memory that it is in. */
int vipsec_queue_move(struct vipsec_queue *queue, struct vipsec_memory *memory);

/* What broke the queue (enum vipsec_fault). A broken queue answers everything with -VIPSEC_FAULT_BROKEN. */
int vipsec_queue_fault(const struct vipsec_queue *queue);

/* Other eventfds than those of the config, -1 for none. Any thread; one that is being told at this moment may still be
 * told through the old ones: the caller keeps them open until whoever uses the queue has come back once, or puts the new
 * one in the old one's place with dup2. */
void vipsec_queue_set_fds(struct vipsec_queue *queue, int call_fd, int err_fd);

/* Ring position, as `state` of the config. Chains still out count as taken. */
uint32_t vipsec_queue_state(const struct vipsec_queue *queue);

/* Notes stores into the rings in the dirty log, or no longer. used_addr: where the device area counts as lying
 * (vhost-user's log_guest_addr). */
void vipsec_queue_set_log(struct vipsec_queue *queue, int enabled, uint64_t used_addr);

/* Bytes of the inflight region of one queue of this size and these VIPSEC_QUEUE_* flags; a multiple of 64. */
uint64_t vipsec_inflight_size(uint32_t size, uint32_t flags);

/* Keeps a record of what is in flight in the region at `offset` of the memory's inflight mapping; before the first pop.
 * A region of zeros begins a new record. Otherwise what an earlier owner of the queue had taken and not marked used is
 * popped again, before anything new and in its order, and the ring positions follow from the record, whatever `state`
 * said. Returns the number of such chains, or negated: what is wrong with the region (nothing has changed), or
 * VIPSEC_FAULT_COUNT when there is no memory. */
int vipsec_queue_inflight_new(struct vipsec_queue *queue, uint64_t offset);

/* The queue has stopped: when nothing is in flight its record is void, and whoever attaches to the region next begins a
 * new one at the position that he names. Nothing but vipsec_queue_state and vipsec_queue_free may follow. */
void vipsec_queue_inflight_end(struct vipsec_queue *queue);

/* Takes the next buffer: 1, 0 when there is none, or the fault that broke the queue, negated. The segments are
 * valid until the next call of vipsec_queue_pop on this queue. */
int vipsec_queue_pop(struct vipsec_queue *queue, struct vipsec_chain *chain);

/* Gives back the chain popped last; 0 or -VIPSEC_FAULT_USED_ORDER, -VIPSEC_FAULT_BROKEN. */
int vipsec_queue_unpop(struct vipsec_queue *queue, const struct vipsec_chain *chain);

/* Buffers available now, or a fault negated. */
int vipsec_queue_pending(struct vipsec_queue *queue);

/* Marks chains used, written[i] bytes of chain i being valid: the driver sees all of them or none. With batch, and
 * IN_ORDER, a run of wholly written chains is told by the entry of the chain that ends it. 0, or a fault negated
 * (USED_ID, USED_ORDER, USED_LENGTH: the caller is wrong, nothing was changed). Reads nothing but head, descriptors
 * and writable_len of the chains. */
int vipsec_queue_push(struct vipsec_queue *queue, const struct vipsec_chain *chains, const uint32_t *written,
                      size_t count, int batch);

/* Whether the driver wants to be told of what was pushed since the last call: 1, 0, or a fault negated. */
int vipsec_queue_should_notify(struct vipsec_queue *queue);

/* The same, and tells it through call_fd. */
int vipsec_queue_notify(struct vipsec_queue *queue);

/* Asks the driver to notify; 1 when buffers are there already, 0, or a fault negated. */
int vipsec_queue_notify_enable(struct vipsec_queue *queue);

/* Says that notifications are not needed. 0, or a fault negated. */
int vipsec_queue_notify_disable(struct vipsec_queue *queue);
/* ---- flow filter ----------------------------------------------------------------------------- */

/* Groups, classifiers and rules of one device (virtio v1.4 5.1.6.6). Any number of threads look up while one changes
 * it; a change holds for every packet looked up after it returns. */
struct vipsec_flow_table;

/* hash_seed: 64 random bits, so that nobody can choose rules or packets that collide. NULL: no memory. */
struct vipsec_flow_table *vipsec_flow_table_new(uint64_t hash_seed);

/* With all its rules. NULL is allowed. No call may be using it. */
void vipsec_flow_table_free(struct vipsec_flow_table *table);

enum vipsec_flow_result {
    VIPSEC_FLOW_OK,
    VIPSEC_FLOW_NO_MEMORY,
    VIPSEC_FLOW_UNKNOWN, /* no such group or classifier */
    VIPSEC_FLOW_BUSY,    /* rules use it */
    VIPSEC_FLOW_REFUSED  /* keys of the wrong length; more selectors than fit */
};

#define VIPSEC_FLOW_MAX_SELECTORS 4

struct vipsec_flow_selector {
    uint8_t type, length; /* SelectorType; octets of mask. Unknown types and too long masks match no packet */
    uint8_t reserved[6];
    const uint8_t *mask;
};

struct vipsec_flow_rule_config {
    uint32_t rule_id, group_id, classifier_id;
    uint16_t vq_index;
    uint8_t action, priority;
};

/* What a look-up finds. */
struct vipsec_flow_verdict {
    uint32_t rule_id;
    uint16_t vq_index;
    uint8_t action; /* FfAction */
    uint8_t priority;
    uint8_t selects_udp; /* a selector of its classifier is UDP */
    uint8_t reserved[3];
};

struct vipsec_flow_rule;

/* All return enum vipsec_flow_result; nothing is changed unless it is OK. They may allocate, and wait for look-ups
 * that have begun: not to be called by a thread that is inside one. set makes a new one or changes one: a group's
 * priority at any time, a classifier while no rule uses it. */
int vipsec_flow_set_group(struct vipsec_flow_table *table, uint32_t id, uint32_t priority);
int vipsec_flow_remove_group(struct vipsec_flow_table *table, uint32_t id);
int vipsec_flow_set_classifier(struct vipsec_flow_table *table, uint32_t id,
                               const struct vipsec_flow_selector *selectors, size_t count);
int vipsec_flow_remove_classifier(struct vipsec_flow_table *table, uint32_t id);

/* `keys`: as many octets as the classifier has mask octets. NULL and *result when it was not added. */
struct vipsec_flow_rule *vipsec_flow_add_rule(struct vipsec_flow_table *table,
                                              const struct vipsec_flow_rule_config *config, const uint8_t *keys,
                                              size_t key_len, int *result);

/* Takes it away and frees it. */
void vipsec_flow_remove_rule(struct vipsec_flow_table *table, struct vipsec_flow_rule *rule);

/* The rule of one frame: 1 and *verdict, or 0. l3 as for vipsec_frame_view. */
int vipsec_flow_match(struct vipsec_flow_table *table, const uint8_t *frame, uint32_t len, uint32_t l3,
                      struct vipsec_flow_verdict *verdict);

/* The same for a batch: found[i] says whether verdicts[i] was set. */
void vipsec_flow_match_many(struct vipsec_flow_table *table, const uint8_t *const *frames, const uint32_t *lens,
                            size_t count, struct vipsec_flow_verdict *verdicts, uint8_t *found);

/* ---- receive filter, hash and steering ------------------------------------------------------- */

#define VIPSEC_MAX_FLOWS 4096

/* Which transmit queue each of the VIPSEC_MAX_FLOWS flows used last was sent on, for automatic steering. Any thread. */
struct vipsec_flow_memory;
struct vipsec_flow_memory *vipsec_flow_memory_new(uint64_t hash_seed);
void vipsec_flow_memory_free(struct vipsec_flow_memory *memory);

/* A frame of the driver leaves on transmit queue number `queue`. */
void vipsec_flow_memory_sent(struct vipsec_flow_memory *memory, const uint8_t *frame, uint32_t len, uint32_t queue);
uint32_t vipsec_flow_memory_count(struct vipsec_flow_memory *memory);

/* rx_mode */
#define VIPSEC_RX_PROMISC 1
#define VIPSEC_RX_ALLMULTI 2
#define VIPSEC_RX_ALLUNI 4
#define VIPSEC_RX_NOMULTI 8
#define VIPSEC_RX_NOUNI 16
#define VIPSEC_RX_NOBCAST 32

/* RxFilter and Steering of device/state.py. Arrays are copied. */
struct vipsec_steering_config {
    uint64_t features;  /* negotiated bits 0..63 */
    uint64_t hash_seed; /* random: nobody can choose MAC addresses that collide */
    struct vipsec_flow_memory *flows; /* stays the caller's, outlives the block; NULL: nothing is learned */
    const uint8_t *unicast, *multicast; /* 6 octets each */
    const uint16_t *vlans;
    const uint8_t *key;
    const uint16_t *table; /* receive queue numbers (0-based pair index) */
    uint32_t unicast_count, multicast_count, vlan_count, key_len;
    uint32_t table_len; /* a power of two when rss is set */
    uint32_t hash_types, queue_pairs;
    uint16_t unclassified_queue;
    uint8_t rss, rx_mode;
    uint8_t mac[6];
    uint8_t reserved[2];
};

/* A block of configuration, constant once made. NULL: no memory, no queue pair, or a table of a wrong length. */
struct vipsec_steering;
struct vipsec_steering *vipsec_steering_new(const struct vipsec_steering_config *config);
void vipsec_steering_free(struct vipsec_steering *steering);

/* 1 when receive mode, MAC table and VLAN table let the frame (14 octets or more) through. */
int vipsec_steering_admits(const struct vipsec_steering *steering, const uint8_t *frame, uint32_t len);

/* The receive queue of a frame, or -1 when there is none to put it on; and the packet's hash, 0 and 0 without one.
 * `live`: bits of the queues that are enabled; NULL for all. */
int64_t vipsec_steering_choose(const struct vipsec_steering *steering, const uint64_t *live, size_t live_words,
                               const uint8_t *frame, uint32_t len, uint32_t *hash_value, uint32_t *hash_report);

/* The hash of RSS over at most 9 words of 4 octets; `portable`: without special instructions. */
uint32_t vipsec_toeplitz(const uint8_t *key, size_t key_len, const uint8_t *data, size_t words, int portable);

/* ---- security associations: ESP with AES-GCM (RFC 4303, RFC 4106) --------------------------- */

#define VIPSEC_SA_MAX 1048576 /* numbers of SAs per direction: 0..VIPSEC_SA_MAX - 1 */
#define VIPSEC_MAX_READERS 128
#define VIPSEC_MAX_REPLAY_WINDOW 4096
#define VIPSEC_OUTBOUND 1
#define VIPSEC_INBOUND 2

/* struct vipsec_sa_config.options: IpsecOption of virtio v1.4 */
#define VIPSEC_OPTION_ESN 1
#define VIPSEC_OPTION_UDP_ENCAP 2
#define VIPSEC_OPTION_COPY_DSCP 4
#define VIPSEC_OPTION_DEC_TTL 8
#define VIPSEC_OPTION_COPY_DF 16
#define VIPSEC_OPTION_ECN 32
#define VIPSEC_OPTION_SA_LIFETIME 64

enum vipsec_sa_result {
    VIPSEC_SA_OK = 0,
    VIPSEC_SA_EXISTS = -1,    /* the number is taken, or inbound the SPI */
    VIPSEC_SA_NO_MEMORY = -2,
    VIPSEC_SA_REFUSED = -3,   /* a field outside its range, or MODIFY of what is fixed */
    VIPSEC_SA_MISSING = -4    /* no SA has that number */
};

/* What an SA is made of. The caller wipes it. 152 bytes. */
struct vipsec_sa_config {
    uint8_t direction;      /* VIPSEC_OUTBOUND, VIPSEC_INBOUND */
    uint8_t is_tunnel;      /* 0 transport mode, 1 tunnel mode */
    uint8_t tunnel_family;  /* outbound tunnel mode: 4, 6; else ignored, like the rest of the outer header */
    uint8_t dscp;           /* of the outer header, 0..63, unless option COPY_DSCP */
    uint8_t df;             /* of the outer IPv4 header: 0, 1, unless option COPY_DF */
    uint8_t ttl;            /* of the outer header; 0: 64 */
    uint8_t key_len;        /* 16, 24, 32 */
    uint8_t icv_len;        /* 8, 12, 16 */
    uint32_t spi;           /* not 0 */
    uint32_t options;       /* VIPSEC_OPTION_... */
    uint32_t flow_label;    /* of the outer IPv6 header, 20 bits */
    uint32_t replay_window; /* inbound, packets; 0: no check, which forbids ESN */
    uint16_t udp_sport;     /* UDP encapsulation, outbound */
    uint16_t udp_dport;
    uint8_t salt[4];
    uint8_t source[16];     /* of the outer header, network order; IPv4: the first 4 bytes */
    uint8_t destination[16];
    uint8_t key[32];
    uint64_t packets_soft;  /* limits; 0: none */
    uint64_t bytes_soft;
    uint64_t packets_hard;
    uint64_t bytes_hard;
    uint64_t first_sequence; /* first number to send, or that may arrive; 1 unless a dialect says otherwise */
    uint64_t iv_base;        /* outbound: the explicit IV is iv_base + sequence number */
    uint32_t frozen;         /* 1: begins as after vipsec_sa_freeze. Not looked at by modify */
    uint32_t reserved;
};

/* What an SA has done, at one moment. 256 bytes. */
struct vipsec_sa_state {
    uint64_t sequence; /* outbound: the number used last; inbound: the highest one that was authenticated */
    uint64_t packets;  /* that passed every check */
    uint64_t bytes;    /* of their ESP plaintext, trailer included */
    uint32_t soft_expired;
    uint32_t reserved;
    uint64_t refused[VIPSEC_REASON_COUNT]; /* packets by enum vipsec_reason */
};

/* SAs of one port. Packets flow while SAs come and go; only vipsec_sa_table_free wants to be alone. */
struct vipsec_sa_table;

/* hash_seed: unpredictable, so that nobody can choose SPIs that collide. NULL: no memory. */
struct vipsec_sa_table *vipsec_sa_table_new(const struct vipsec_gcm *engine, uint64_t hash_seed);
void vipsec_sa_table_free(struct vipsec_sa_table *table);

/* 0 or a negative enum vipsec_sa_result. All allocate or wait: never on a packet's way, and never inside a read
 * section (between enter and exit of a reader), which they would wait for. They exclude each other. */
int vipsec_sa_add(struct vipsec_sa_table *table, uint32_t id, const struct vipsec_sa_config *config);

/* Changes options (not ESN), outer header, ports, limits and window size. What is fixed must be as it was, except
 * key, salt, first_sequence, iv_base and frozen, which are not looked at. Counters, sequence numbers and what the window
 * has seen stay; numbers that a wider window newly covers count as seen. */
int vipsec_sa_modify(struct vipsec_sa_table *table, int direction, uint32_t id, const struct vipsec_sa_config *config);

/* The SA is gone for packets that come after, its keys are wiped and its memory is free when the call returns. */
int vipsec_sa_remove(struct vipsec_sa_table *table, int direction, uint32_t id);

int vipsec_sa_read(struct vipsec_sa_table *table, int direction, uint32_t id, struct vipsec_sa_state *state);

/* Outbound: packets that would need a sequence number above `ceiling` are VIPSEC_REASON_HELD from now on, exactly. An SA
 * begins without a ceiling: UINT64_MAX. */
int vipsec_sa_set_ceiling(struct vipsec_sa_table *table, uint32_t id, uint64_t ceiling);

/* All that an SA has used up: what it takes to go on elsewhere, or after a crash, with the same key. 776 bytes. */
struct vipsec_sa_progress {
    uint64_t sequence; /* as in struct vipsec_sa_state */
    uint64_t iv_base;  /* outbound */
    uint64_t packets;
    uint64_t bytes;
    uint64_t refused[VIPSEC_REASON_COUNT];
    uint32_t frozen;   /* 1: vipsec_sa_freeze. Of no meaning to restore */
    uint32_t window;   /* inbound: how many numbers `seen` tells about, at most VIPSEC_MAX_REPLAY_WINDOW */
    uint64_t seen[VIPSEC_MAX_REPLAY_WINDOW / 64]; /* bit n of the whole: number `sequence` - n has arrived */
};

/* From now on every packet of the SA is VIPSEC_REASON_HELD: when the call returns no thread is at work on one that is
 * not, so that what vipsec_sa_read_progress then tells is final. vipsec_sa_restore ends that. */
int vipsec_sa_freeze(struct vipsec_sa_table *table, int direction, uint32_t id);

/* All of it at one moment. */
int vipsec_sa_read_progress(struct vipsec_sa_table *table, int direction, uint32_t id,
                            struct vipsec_sa_progress *progress);

/* The SA goes on from there, and is no longer frozen. Nothing that it has used itself, or that `progress` tells of, can
 * be used again: no sequence number and IV outbound, no number accepted twice inbound, and counters do not go back.
 * VIPSEC_SA_REFUSED, and no change: `sequence` is below that of the SA or beyond what it can have, or an outbound SA
 * that has used numbers would get another iv_base. */
int vipsec_sa_restore(struct vipsec_sa_table *table, int direction, uint32_t id,
                      const struct vipsec_sa_progress *progress);

/* Each thread that processes packets has a reader of its own: 0..VIPSEC_MAX_READERS - 1, or -1 when all are taken. */
int vipsec_reader_register(struct vipsec_sa_table *table);
void vipsec_reader_unregister(struct vipsec_sa_table *table, int reader);

/* ---- ESP in batches --------------------------------------------------------------------------- */

#define VIPSEC_HEADROOM 64 /* outer IPv6 header, UDP, ESP header, IV */
#define VIPSEC_TAILROOM 32 /* padding, trailer, ICV */

/* One IP packet in memory that nobody else writes, worked on in place. 64 bytes. */
struct vipsec_packet {
    uint8_t *data;        /* its IP header; moved by the call */
    uint32_t len;         /* bytes from there on; what lies behind the length in the IP header is cut off */
    uint32_t headroom;    /* writable bytes in front of data; VIPSEC_HEADROOM is always enough */
    uint32_t tailroom;    /* writable bytes behind data + len; VIPSEC_TAILROOM is always enough */
    uint32_t mtu;         /* outbound: bytes that a result which nobody may fragment can have; 0: any number */
    uint32_t sa_id;       /* outbound: number of the SA; inbound, set when known: number of the SA found */
    uint8_t reason;       /* set: enum vipsec_reason */
    uint8_t soft_expired; /* set, when processed, inbound also when known: a soft limit is reached */
    uint8_t next_header;  /* set, inbound, when processed: what the payload is */
    uint8_t known;        /* set: an SA was found; its counters have this packet */
    uint64_t sequence;    /* set, when processed: sequence number, 64 bits */
    uint8_t follows;      /* outbound: 1: a part of what the packet before is part of; when that was refused this one
                           * is not tried. The first packet of a call does so when `skipped` says that the one before was */
    uint8_t skipped;      /* set, outbound: not tried; reason is that of the packet before, and nothing was counted */
    uint8_t reserved[6];
    uint64_t user[2];     /* the caller's */
};

/*
 * Protects, or checks and opens, `count` packets in their order. A refused packet keeps data, len and all its bytes,
 * takes no sequence number and is counted in its SA. (One that was authentic and is refused for what is inside it, a
 * limit, or another thread's copy is encrypted again, to what it was.)
 *
 * headroom and tailroom follow data and len. Too little room: VIPSEC_REASON_NO_BUFFER.
 */
void vipsec_esp_outbound(struct vipsec_sa_table *table, int reader, struct vipsec_packet *packets, size_t count);
void vipsec_esp_inbound(struct vipsec_sa_table *table, int reader, struct vipsec_packet *packets, size_t count);

/* The outermost IPsec header of a packet, whatever its SA. 32 bytes. */
struct vipsec_esp_found {
    uint32_t spi;
    uint32_t sequence;  /* as on the wire */
    uint32_t offset;    /* of the ESP or AH header */
    uint32_t end;       /* behind the last byte that belongs to it */
    uint16_t udp_sport; /* 0 without UDP encapsulation */
    uint16_t udp_dport;
    uint8_t protocol;   /* 50 ESP, 51 AH */
    uint8_t in_udp;
    uint8_t reserved[10];
};

/* Finds it: plain, behind IPv6 extension headers, or in UDP (ESP only). VIPSEC_REASON_NONE, or why there is none. */
int vipsec_esp_find(const uint8_t *packet, size_t len, struct vipsec_esp_found *found);
/* ---- operator policy -------------------------------------------------------------------------- */

/* What becomes of a packet: Outcome of policy/selectors.py. The first three are also actions of rules. */
enum vipsec_policy_outcome {
    VIPSEC_POLICY_BYPASS,
    VIPSEC_POLICY_PROTECT,
    VIPSEC_POLICY_DROP_RULE,
    VIPSEC_POLICY_DROP_DEFAULT,
    VIPSEC_POLICY_DROP_HIDDEN,
    VIPSEC_POLICY_DROP_CLEARTEXT,
    VIPSEC_POLICY_DROP_SELECTOR,
    VIPSEC_POLICY_DROP_PEER,
    VIPSEC_POLICY_DROP_MALFORMED,
    VIPSEC_POLICY_NOT_IP,
    VIPSEC_POLICY_OUTCOME_COUNT
};

/* Which packets: local is the source of what leaves and the destination of what arrives. */
struct vipsec_policy_selector {
    uint8_t local[16], remote[16]; /* IPv4: the first 4 octets */
    uint16_t local_low, local_high; /* ports of ours, 0..65535 for any; ICMP: type * 256 + code, either way */
    uint16_t remote_low, remote_high;
    int16_t protocol; /* -1: any. TCP, UDP, DCCP, SCTP, UDP-Lite when ports are named, ICMP when types are */
    uint8_t family;   /* 4, 6; 0 for both, without addresses */
    uint8_t local_bits, remote_bits; /* of the addresses that are compared */
    uint8_t reserved[3];
};

struct vipsec_policy_rule {
    struct vipsec_policy_selector selector;
    uint32_t priority; /* higher first; equal ones as they stand */
    uint32_t sa_id;    /* outbound SA of PROTECT */
    uint8_t action;    /* VIPSEC_POLICY_BYPASS, _PROTECT, _DROP_RULE */
    uint8_t reserved[7];
};

/* What inbound SA sa_id may bring; an SA has as many of these as it needs. */
struct vipsec_policy_inbound {
    struct vipsec_policy_selector selector;
    uint32_t sa_id;
};

/* The source that the tunnel header of an inbound SA must have; an SA without an entry may have any. */
struct vipsec_policy_peer {
    uint32_t sa_id;
    uint8_t family; /* 4 or 6 */
    uint8_t reserved[3];
    uint8_t address[16];
};

struct vipsec_policy_config {
    uint64_t hash_seed; /* random */
    const struct vipsec_policy_rule *rules;
    const struct vipsec_policy_inbound *inbound;
    const struct vipsec_policy_peer *peers;
    uint32_t rule_count, inbound_count, peer_count;
    uint8_t default_action; /* BYPASS or DROP_RULE */
    uint8_t reserved[3];
};

/* Constant once made; the arrays are copied. NULL: no memory, or a field outside what is said above. */
struct vipsec_policy;
struct vipsec_policy *vipsec_policy_new(const struct vipsec_policy_config *config);
void vipsec_policy_free(struct vipsec_policy *policy);

#define VIPSEC_POLICY_OUTBOUND 0
#define VIPSEC_POLICY_INBOUND_CLEAR 1
#define VIPSEC_POLICY_INBOUND_OPENED 2
#define VIPSEC_POLICY_NO_RULE 0xffffffff

struct vipsec_policy_verdict {
    uint32_t sa_id; /* of PROTECT, else 0 */
    uint32_t rule;  /* place of the rule that decided, or VIPSEC_POLICY_NO_RULE */
    uint8_t outcome;
    uint8_t reserved[3];
};

/* What becomes of one IP packet; returns verdict->outcome. sa_id, outer_version (4, 6 or 0 without a tunnel header)
 * and outer_source matter for packets that inbound SA sa_id has opened. */
int vipsec_policy_decide(const struct vipsec_policy *policy, int direction, uint32_t sa_id, const uint8_t *packet,
                         uint32_t len, int outer_version, const uint8_t *outer_source,
                         struct vipsec_policy_verdict *verdict);

/* ---- the networks at the ends of an operator's port ---------------------------------------------- */

/* An IP address that matters there. 32 bytes. */
struct vipsec_underlay_address {
    uint8_t address[16]; /* IPv4: the first 4 octets */
    uint32_t mtu;        /* octets of IP packet that the way there carries; 0: as the link */
    uint8_t mac[6];      /* has_path: of the next hop */
    uint8_t family;      /* 4, 6 */
    uint8_t is_own;      /* the port's: what is for it is opened by tunnels */
    uint8_t has_path;    /* tunnel packets to it can leave */
    uint8_t reserved[3];
};

struct vipsec_underlay_config {
    uint64_t hash_seed; /* random */
    const struct vipsec_underlay_address *addresses; /* each once */
    uint32_t address_count;
    uint32_t mtu;         /* octets of IP packet that the wire carries */
    uint32_t guest_mtu;   /* and the guest takes */
    uint8_t mac[6];       /* the port's */
    uint8_t guest_mac[6];
    uint8_t has_mac;      /* 0: there are no tunnels */
    uint8_t has_guest;    /* guest_mac is known */
    uint8_t learns_guest; /* by what it sends: frames from elsewhere are Python's */
    uint8_t mss_clamp;    /* SYN segments through SAs are Python's */
    uint8_t reserved[4];
};

/* Constant once made; the array is copied. NULL: no memory, or an address of no family. */
struct vipsec_underlay;
struct vipsec_underlay *vipsec_underlay_new(const struct vipsec_underlay_config *config);
void vipsec_underlay_free(struct vipsec_underlay *underlay);

/* ---- the packet path of one device --------------------------------------------------------- */

struct vipsec_worker;

/* One Ethernet frame in private memory. */
struct vipsec_frame {
    uint8_t *data;
    uint32_t len;
    uint32_t reserved;
};

/* The part of virtio_net_hdr that every negotiated size has (virtio v1.4 5.1.6). Little-endian. */
struct vipsec_net_hdr {
    uint8_t flags;
    uint8_t gso_type;
    uint16_t hdr_len;
    uint16_t gso_size;
    uint16_t csum_start;
    uint16_t csum_offset;
    uint16_t num_buffers;
};

#define VIPSEC_ABSENT 0xffff /* offset of a header field that the negotiated header does not have */

/* What negotiation has fixed until the next reset. Offsets are those in virtio_net_hdr. */
struct vipsec_port_config {
    uint64_t features_low; /* negotiated features 0..63, 64..127 */
    uint64_t features_high;
    uint32_t pairs;        /* queue pairs that exist */
    uint32_t mtu;          /* octets of an IP packet on the wire; 0: no limit */
    uint32_t most_punts;   /* packets that one call hands to Python; what goes beyond is dropped. 0: any number. From
                            * 64 on a transmit call ends before that, with budget left */
    uint16_t header_size;
    uint16_t hash_at;      /* hash_value, hash_report 4 octets on */
    uint16_t outer_nh_at;
    uint16_t resource_id_at;
    uint16_t resource_type_at;
    uint8_t flag_security;
    uint8_t flag_security_err;
    uint8_t flag_soft_expiry;
    uint8_t flag_tunnel_csum;
    uint8_t type_required; /* transmit: resource_type 0 is refused */
    uint8_t open_unasked;  /* receive: an SA is looked for without a rule */
    uint8_t drop_errors;   /* receive: what fails IPsec is dropped, not delivered as an error */
    uint8_t by_operator;   /* a policy decides about IPsec; the driver knows nothing of it */
};

/*
 * With by_operator: what leaves is protected, left alone or dropped as the policy says (frames that are not IP are
 * Python's to judge); what arrives is opened when there is an SA for it, has then to be what that SA is for and from its
 * peer, and may otherwise come in only where the policy bypasses. Without a policy nothing passes.
 *
 * With an underlay tunnel packets get link headers of their own: towards the peer's next hop, towards the guest; and only
 * those for an address of the port are opened. Python's are then: fragments on the way in, packets that hide what a rule
 * asks for, that get too large, that have a VLAN and want a tunnel, neighbour discovery, ICMP errors, peers without a
 * path, SAs that are not in the table. Without one, link headers stay as they are and every address counts as the port's.
 */

/* Event counts. Nothing ever counts down. */
struct vipsec_counters {
    uint64_t tx_frames, tx_bytes, tx_sealed;
    uint64_t rx_frames, rx_bytes, rx_opened, rx_not_ipsec;
    uint64_t tx_punted, rx_punted;
    uint64_t tx_refused[VIPSEC_REASON_COUNT];
    uint64_t rx_refused[VIPSEC_REASON_COUNT];
    /* by_operator: frames by what the policy made of them; those that were protected or opened are not in BYPASS. */
    uint64_t tx_policy[VIPSEC_POLICY_OUTCOME_COUNT];
    uint64_t rx_policy[VIPSEC_POLICY_OUTCOME_COUNT];
};

/* A received frame that C has begun to work on: what Python has to know to go on. */
struct vipsec_rx_state {
    uint32_t opened;      /* 1: IPsec has been taken off, the rules are to be asked once more (IPSEC_RECIRCULATE); or, at
                           * an operator's port, the policy is */
    uint32_t resource_id; /* of the SA that opened it */
    uint32_t soft_expired;
    uint32_t l3;          /* offset of the IP header */
    uint32_t outer_version; /* of the tunnel header, 0: there was none */
    uint8_t outer_source[16];
};

/* What a port calls. Each call happens outside all locks and read sections; the memory shown is valid during
 * the call only. */
struct vipsec_port_calls {
    void *user;
    /* Frames that leave, in order; theirs to overwrite. */
    void (*uplink)(void *user, struct vipsec_frame *frames, size_t count);
    /* The driver of virtqueue `index` wants to be told; NULL when eventfds do that. */
    void (*interrupt)(void *user, uint32_t index);
    /* A transmit buffer (virtio_net_hdr and frame) that the fast path does not do. What it becomes belongs
     * behind the frames that uplink has seen so far. */
    void (*punt_tx)(void *user, uint32_t pair, const uint8_t *buffer, size_t len);
    /* A frame from the wire that the fast path does not do; may call vipsec_worker_deliver. */
    void (*punt_rx)(void *user, struct vipsec_worker *worker, const uint8_t *frame, size_t len,
                    const struct vipsec_rx_state *state);
};

/* A port: rings on one side, an uplink on the other, SAs between. NULL: no memory, or a configuration that cannot
 * be. The table outlives the port. */
struct vipsec_port;
struct vipsec_port *vipsec_port_new(struct vipsec_sa_table *table, const struct vipsec_port_config *config,
                                    const struct vipsec_port_calls *calls);

/* No worker may be left. Does not free what was set with vipsec_port_set_*. */
void vipsec_port_free(struct vipsec_port *port);

/* Queues of pair 0..pairs-1; NULL takes one away. The port does not own them. A receive queue may be exchanged while
 * workers run: on return none uses the old one any more. A transmit queue not while a worker serves it. */
void vipsec_port_set_queues(struct vipsec_port *port, uint32_t pair, struct vipsec_queue *rx, struct vipsec_queue *tx);

/* The flow filter; NULL for none. Before the first worker is made. The port does not own it. */
void vipsec_port_set_flow(struct vipsec_port *port, struct vipsec_flow_table *flow);

/* What frames are filtered, hashed and steered by, and the operator's rules; NULL for none. On return no worker uses
 * the old one any more. Any thread but one that is inside a call of the port. */
void vipsec_port_set_steering(struct vipsec_port *port, const struct vipsec_steering *steering);
void vipsec_port_set_policy(struct vipsec_port *port, const struct vipsec_policy *policy);
void vipsec_port_set_underlay(struct vipsec_port *port, const struct vipsec_underlay *underlay);

/* Whether DATA_VALID may be reported (GUEST_CSUM, which the driver can switch off and on). */
void vipsec_port_set_guest_csum(struct vipsec_port *port, int on);

/* How many inbound SAs Python has that are not in the table: while there are none, a packet whose SA is not in the
 * table is nobody's, and Python is not asked. */
void vipsec_port_set_foreign_sas(struct vipsec_port *port, uint32_t count);

/* One thread's scratch memory, place among the readers and counters. NULL: no memory, or too many. */
struct vipsec_worker *vipsec_worker_new(struct vipsec_port *port);
void vipsec_worker_free(struct vipsec_worker *worker);

/* Where this worker's frames go instead of to the port's uplink; NULL: to that again. Not while it works. Frames of
 * punted buffers are with whoever made them. */
void vipsec_worker_set_uplink(struct vipsec_worker *worker,
                              void (*uplink)(void *user, struct vipsec_frame *frames, size_t count), void *user);

/* Uplinks that need nobody: one that ends here, and a wire, which `user` is. */
void vipsec_uplink_null(void *user, struct vipsec_frame *frames, size_t count);
void vipsec_uplink_wire(void *user, struct vipsec_frame *frames, size_t count);

/* Works off at most `budget` buffers of the transmit queue of `pair`. Returns how many. A queue that breaks the
 * ring rules, or whose memory vanished, has a fault afterwards; frames of buffers taken before leave. */
size_t vipsec_worker_transmit(struct vipsec_worker *worker, uint32_t pair, size_t budget);

/* The same, but looks again when the queue is empty, until it was so `idle` times running (some ten nanoseconds each). */
size_t vipsec_worker_poll(struct vipsec_worker *worker, uint32_t pair, size_t budget, uint32_t idle);

/* Frames from the wire, into receive queues. The frames are worked on in place: their octets afterwards mean
 * nothing. */
void vipsec_worker_receive(struct vipsec_worker *worker, struct vipsec_frame *frames, size_t count);

/* One buffer (virtio_net_hdr and frame) into the receive queue of `pair`, or it is dropped and counted. */
void vipsec_worker_deliver(struct vipsec_worker *worker, uint32_t pair, const uint8_t *buffer, size_t len);

/* A wire inside the process. Any threads put frames on it, one at a time takes them. NULL: no memory or descriptors. */
struct vipsec_wire;
struct vipsec_wire *vipsec_wire_new(void);

/* Nobody uses it any more. */
void vipsec_wire_free(struct vipsec_wire *wire);

/* A descriptor that is readable while frames wait, until the wire is closed. */
int vipsec_wire_fd(const struct vipsec_wire *wire);

/* How many of the frames found room; the others are dropped and counted. */
size_t vipsec_wire_put(struct vipsec_wire *wire, const struct vipsec_frame *frames, size_t count);

/* Some of the frames that wait, in order, at most `most`; how many. Their octets may be overwritten, and last until the next
 * are taken. */
size_t vipsec_wire_take(struct vipsec_wire *wire, struct vipsec_frame *frames, size_t most);

/* The same, into the worker's port: vipsec_worker_receive. Returns how many. */
size_t vipsec_worker_take(struct vipsec_worker *worker, struct vipsec_wire *wire, size_t most);

/* What waits is dropped, and what is put on it from now on. */
void vipsec_wire_close(struct vipsec_wire *wire);

/* Since the beginning; `refused`: frames that found no room. */
struct vipsec_wire_counts {
    uint64_t put_frames, put_octets, refused, taken_frames, taken_octets;
};
void vipsec_wire_read(struct vipsec_wire *wire, struct vipsec_wire_counts *out);

/* A snapshot; any thread. */
void vipsec_worker_read(const struct vipsec_worker *worker, struct vipsec_counters *out);

/* ---- secrets ------------------------------------------------------------------------------ */

/* Overwrites with zeros; the compiler cannot leave it out. */
void vipsec_wipe(void *memory, size_t size);

/* 1 when the `size` bytes at a and b are equal, else 0, in a time that depends on size alone. */
int vipsec_equal(const void *a, const void *b, size_t size);

#endif
