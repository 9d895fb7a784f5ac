/*
 * What transmit does before IPsec: device/offloads.py and the header rules of device/transmit.py.
 *
 * Results are enum vipsec_reason, or OFFLOAD_PUNT for what only the Python device does: segmentation inside UDP
 * tunnels and UDP fragmentation. The frame is private memory: it is read more than once.
 */
#ifndef VIPSEC_OFFLOAD_H
#define VIPSEC_OFFLOAD_H

#include "checksum.h"
#include "frame.h"

enum { OFFLOAD_OK = VIPSEC_REASON_NONE, OFFLOAD_PUNT = VIPSEC_PUNT };

/* gso_type */
enum { OFFLOAD_TCPV4 = 1, OFFLOAD_UFO = 3, OFFLOAD_TCPV6 = 4, OFFLOAD_UDP_L4 = 5, OFFLOAD_TUNNELS = 0x60,
       OFFLOAD_ECN = 0x80 };
/* flags of the net header that mean the same in both dialects */
enum { OFFLOAD_NEEDS_CSUM = 1, OFFLOAD_DATA_VALID = 2 };

/* More pieces, or more bytes in all, are refused: device/pieces.py. */
enum { OFFLOAD_MAX_PIECES = VIPSEC_MAX_SEGMENTS, OFFLOAD_MAX_BYTES = 1 << 20 };

static_assert(sizeof(struct vipsec_offload_request) == 8, "layout");

/* The rules that need no look at the frame. `features`: negotiated bits 0..63. *base: 0, or what to segment.
 * The caller has refused UDP_TUNNEL_CSUM without a tunnel bit (its bit differs between dialects). */
int offload_check(const struct vipsec_offload_request *request, uint64_t features, uint8_t *base);

/* Whether `at` (not 0) may be used as outer_nh_offset: NONE or BAD_HEADER (NET-TX-DEV-03). */
int offload_network_header(const uint8_t *frame, uint32_t len, uint32_t at);

/* Completes the checksum over frame[start..len) at start + offset, where its seed stands. */
int offload_checksum(uint8_t *frame, uint32_t len, uint32_t start, uint32_t offset);

/* Whether the frame is a whole TCP or UDP packet with a checksum that is present and right, and so is an IPv4
 * header's own (device/checksum.py). */
bool offload_checksum_ok(const uint8_t *frame, const struct vipsec_frame_view *view);

/* How a frame is cut. Sums are those of the headers without what changes from segment to segment. */
struct offload_plan {
    const uint8_t *frame; /* as queued; not changed, stays while segments are made */
    uint32_t l3, l4;
    uint32_t payload;  /* where the data begins = bytes of headers that each segment repeats */
    uint32_t body;     /* bytes of data */
    uint32_t size;     /* most bytes of data in one segment */
    uint32_t count;    /* segments, at least 1 */
    uint32_t sequence; /* TCP */
    uint16_t ident;    /* IPv4 */
    uint8_t version, protocol;
    uint8_t flags;     /* TCP control bits as queued */
    uint16_t network_sum, transport_sum;
};

/* Checks the packet against what `base` (of offload_check, not 0) claims. `l3`: a checked outer_nh_offset or 0.
 * NONE or BAD_GSO. */
int offload_plan(const uint8_t *frame, uint32_t len, const struct vipsec_offload_request *request, uint8_t base,
                 uint32_t l3, struct offload_plan *plan);

/* Bytes of data in segment number `index`. */
static inline uint32_t offload_segment_data(const struct offload_plan *plan, uint32_t index) {
    return index + 1 < plan->count ? plan->size : plan->body - index * plan->size;
}

/* Headers of segment `index`, finished but for the transport checksum: plan->payload bytes at `out`. Then the
 * caller puts the data behind them and its sum into the checksum. */
void offload_segment_headers(const struct offload_plan *plan, uint32_t index, uint8_t *out);
void offload_segment_finish(const struct offload_plan *plan, uint32_t index, uint8_t *out, uint16_t data_sum);

/* The whole segment; returns its length, at most plan->payload + plan->size. */
static inline uint32_t offload_segment(const struct offload_plan *plan, uint32_t index, uint8_t *out) {
    const uint32_t data = offload_segment_data(plan, index);
    offload_segment_headers(plan, index, out);
    offload_segment_finish(plan, index, out,
                           checksum_copy(out + plan->payload,
                                         plan->frame + plan->payload + (size_t)index * plan->size, data));
    return plan->payload + data;
}

#endif
