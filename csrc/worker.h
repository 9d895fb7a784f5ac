/* What both directions of a worker need: counters that others may read, and the place of header fields. */
#ifndef VIPSEC_WORKER_H
#define VIPSEC_WORKER_H
#include "bytes.h"
#include "port.h"

/* flags of virtio_net_hdr, and where its fields are (virtio v1.4 5.1.6). */
enum { HDR_NEEDS_CSUM = 1, HDR_DATA_VALID = 2 };
enum {
    HDR_FLAGS_AT = offsetof(struct vipsec_net_hdr, flags),
    HDR_GSO_TYPE_AT = offsetof(struct vipsec_net_hdr, gso_type),
    HDR_GSO_SIZE_AT = offsetof(struct vipsec_net_hdr, gso_size),
    HDR_CSUM_START_AT = offsetof(struct vipsec_net_hdr, csum_start),
    HDR_CSUM_OFFSET_AT = offsetof(struct vipsec_net_hdr, csum_offset),
    HDR_NUM_BUFFERS_AT = offsetof(struct vipsec_net_hdr, num_buffers),
};
static_assert(sizeof(struct vipsec_net_hdr) == 12, "the smallest header");

/* Resource types of SAs (virtio v1.4 5.1.6.8). */
enum { RESOURCE_OUTBOUND_SA = 0x203, RESOURCE_INBOUND_SA = 0x204 };

static inline void worker_count(uint64_t *counter, uint64_t amount) {
    __atomic_store_n(counter, *counter + amount, __ATOMIC_RELAXED);
}

/* At the beginning of a call: how much of it Python can be given. */
static inline void worker_begin(struct vipsec_worker *worker) {
    const uint32_t most = worker->port->config.most_punts;
    worker->punts_left = most != 0 ? most : UINT32_MAX;
}

static inline bool worker_may_punt(struct vipsec_worker *worker) {
    return worker->punts_left != 0 && worker->punts_left-- != 0;
}

static inline bool port_has(const struct vipsec_port *port, unsigned feature) {
    const struct vipsec_port_config *config = &port->config;
    return ((feature < 64 ? config->features_low : config->features_high) >> (feature & 63) & 1) != 0;
}

/* Feature bits that the packet path looks at. */
enum {
    FEATURE_CSUM = 0,
    FEATURE_MTU = 3,
    FEATURE_MRG_RXBUF = 15,
    FEATURE_HASH_REPORT = 57,
    FEATURE_OUT_NET_HEADER = 69,
    FEATURE_IPSEC = 70
};

/* Tells whoever made the port that the driver of virtqueue `index` wants to be told. */
static inline void worker_interrupt(const struct vipsec_worker *worker, uint32_t index) {
    const struct vipsec_port_calls *calls = &worker->port->calls;
    if (calls->interrupt != NULL) {
        calls->interrupt(calls->user, index);
    }
}

static inline uint16_t ethertype_of(uint8_t ip_version) { return ip_version == 4 ? FRAME_IPV4 : FRAME_IPV6; }

#endif
