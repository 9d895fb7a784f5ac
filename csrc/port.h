/* One device's packet path: what its workers share, and what one worker has to itself. */
#ifndef VIPSEC_PORT_H
#define VIPSEC_PORT_H
#include <stdatomic.h>

#include "esp.h"
#include "flow.h"
#include "frame.h"
#include "policy.h"
#include "ring.h"
#include "spin.h"
#include "steering.h"
#include "underlay.h"
#include "vipsec.h"

enum {
    PORT_BATCH = 64,          /* packets in flight through one stage: their headers and keys stay in the caches */
    PORT_MAX_PAIRS = 32768,   /* receive queues: virtqueue indices have 16 bits */
    PORT_MAX_BUFFER = 1 << 17, /* largest transmit buffer, header included */
    PORT_MAX_HEADER = 64       /* octets of virtio_net_hdr, whatever is negotiated */
};

/* Room in front of and behind a frame in the arena. */
enum { ARENA_HEADROOM = 128, ARENA_TAILROOM = 64, ARENA_SIZE = 1 << 20 };

/* A receive queue is written by whichever worker got the frame. */
struct port_rx_queue {
    _Atomic uint32_t lock;
    struct vipsec_queue *queue; /* only under the lock: it may be taken away at any time */
};

/* Replaced by the control thread, read by workers inside a read section of the SA table. */
struct port_rules {
    const struct vipsec_steering *_Atomic steering;
    const struct vipsec_policy *_Atomic policy;
    const struct vipsec_underlay *_Atomic underlay;
};

struct vipsec_port {
    struct vipsec_port_config config;
    struct vipsec_sa_table *table;
    struct vipsec_port_calls calls;
    struct vipsec_flow_table *flow; /* NULL: no flow filter */
    struct port_rules rules;
    _Atomic uint32_t guest_csum;
    _Atomic uint32_t foreign_sas; /* inbound SAs that Python has and the table has not */
    struct vipsec_queue **tx;
    struct port_rx_queue *rx;
    struct steering_live live; /* receive queues that there are */
    _Atomic uint64_t *live_bits;
};

/* How a frame leaves. */
struct tx_order {
    bool protect;
    uint32_t sa_id;
    uint32_t l3;             /* offset of the IP header where that matters, else 0 */
    uint32_t mtu;            /* octets that a result which nobody may fragment can have; 0: any number */
    bool readdressed;        /* a tunnel packet gets a link header of its own */
    uint8_t link[12];        /* readdressed: next hop, own address */
};

enum { TX_MAX_LINK = 64, TX_TOO_LONG = PORT_MAX_BUFFER + 1 };
enum tx_kind { TX_PLAIN, TX_PROTECT };

/* A frame on its way out. */
struct tx_item {
    uint8_t *frame;
    uint32_t len;
    uint32_t l2; /* octets in front of the IP header */
    uint32_t packet; /* TX_PROTECT: which of the worker's packets */
    uint8_t kind;
    uint8_t link[TX_MAX_LINK]; /* those octets: the outer header is built where they stood */
};

/* A transmit buffer. */
struct tx_raw {
    uint8_t *buffer; /* virtio_net_hdr, then the frame; ARENA_HEADROOM in front */
    uint32_t len;    /* or TX_TOO_LONG */
};

enum rx_kind { RX_PLAIN, RX_OPEN, RX_FAIL, RX_PUNT, RX_DROP };

/* A frame on its way in. */
struct rx_item {
    struct vipsec_frame_view view;
    struct vipsec_flow_verdict verdict; /* of the rule that applies, if has_rule */
    uint32_t packet;                    /* RX_OPEN: which of the worker's packets */
    bool has_rule;
    uint8_t kind;
    uint8_t reason;
    bool is_tunnel;           /* RX_OPEN at an operator's port: the SA is in tunnel mode */
    uint8_t outer_version;    /* then: of the tunnel header, 0 without one */
    uint8_t outer_source[16];
};

/* What is delivered: a frame and what the header says of it. */
struct rx_delivery {
    uint8_t *frame;
    uint32_t len;
    struct vipsec_frame_view view;
    uint32_t resource_id;
    uint16_t resource_type;
    uint8_t flags;
    bool opened;
    bool soft_expired;
    bool directed;
    uint32_t queue;
};

/* A frame with its header, to be put into a receive queue. */
struct rx_ready {
    const uint8_t *frame;
    uint32_t len;
    uint32_t pair;
    uint8_t header[PORT_MAX_HEADER];
};

/*
 * What the policy said to a packet with these addresses, protocol and ports, and how a peer is reached: packets of one
 * connection follow one another. Blocks have a number of their own, so that nothing outlives the one it is from.
 */
enum { MEMO_WORDS = 5, MEMO_SIZE = 64 };

struct operator_memo {
    uint64_t policy; /* its number; 0: nothing */
    uint64_t word[MEMO_WORDS];
    struct vipsec_policy_verdict verdict;
};

struct peer_memo {
    uint64_t underlay; /* its number; 0: nothing */
    uint8_t address[16];
    uint8_t family;
    bool is_known;
    struct vipsec_underlay_address way;
};

struct vipsec_worker {
    struct vipsec_port *port;
    void (*uplink)(void *user, struct vipsec_frame *frames, size_t count);
    void *uplink_user;
    int reader;
    uint32_t punts_left; /* of this call */
    uint32_t raw_count, item_count, packet_count;
    size_t segments_used;
    uint8_t *arena;    /* transmit buffers as they came */
    uint8_t *segments; /* what was cut from them */
    size_t arena_most, segments_most; /* how far they were ever used */
    uint8_t last_reason; /* of the last packet of the batch before */
    bool notify;
    struct tx_raw raw[PORT_BATCH];
    struct tx_item items[PORT_BATCH];
    struct rx_item rx[PORT_BATCH];
    struct vipsec_packet packets[PORT_BATCH];
    struct vipsec_frame frames[PORT_BATCH];
    struct vipsec_chain chains[PORT_BATCH];
    uint32_t written[PORT_BATCH];
    /* receive */
    struct esp_found located[PORT_BATCH];
    uint32_t ready_count;
    struct rx_ready ready[PORT_BATCH];
    struct vipsec_chain *fill_chains; /* buffers taken off a receive queue: as many as the largest has */
    uint32_t *fill_written;
    unsigned flow_copy;
    struct operator_memo memos[MEMO_SIZE];
    struct peer_memo peer;
    struct vipsec_counters counters;
};

#endif
