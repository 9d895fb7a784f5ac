/* Which transmit queue each flow last used, for automatic steering: FlowMemory of device/steering.py. */
#ifndef VIPSEC_FLOW_MEMORY_H
#define VIPSEC_FLOW_MEMORY_H

#include "frame.h"

enum { FLOW_KEY_SIZE = 40, FLOW_KEY_WORDS = FLOW_KEY_SIZE / 8 };

/* Protocol, source, destination and ports of a packet, in octets from the first on, then zeros. The last octet is
 * `len` again, so that no two keys of different length are alike. */
struct flow_key {
    uint8_t octets[FLOW_KEY_SIZE];
    uint8_t len; /* 0: not IP, no flow */
};

/* The flow of a frame, seen from the peer's side of it when it was `sent`. */
void flow_key(const uint8_t *frame, const struct vipsec_frame_view *view, bool sent, struct flow_key *key);

/* A frame of this flow left on transmit queue number `queue`. Any thread. */
void flow_memory_sent(struct vipsec_flow_memory *memory, const struct flow_key *key, uint32_t queue);

/* The queue of this flow, or -1. Any thread. */
int32_t flow_memory_queue(struct vipsec_flow_memory *memory, const struct flow_key *key);

#endif
