/*
 * Which frames the driver gets and on which receive queue: device/steering.py.
 *
 * A block is constant once made; whoever replaces it frees the old one when nobody uses it any more. NULL for a block
 * stands for no filter and one queue. Frames are private memory.
 */
#ifndef VIPSEC_STEERING_H
#define VIPSEC_STEERING_H

#include <stdatomic.h>

#include "flow_memory.h"
#include "frame.h"

struct steering_hash {
    uint32_t value;
    uint16_t report; /* HashReport; 0: no hash */
};

/* Receive queues that are enabled, bit by bit; those beyond `words` * 64 are not. */
struct steering_live {
    size_t words;
    const _Atomic uint64_t *bits;
};

/* Whether receive mode, MAC table and VLAN table let the frame (14 octets or more) through. */
bool steering_admits(const struct vipsec_steering *steering, const uint8_t *frame, uint32_t len);

/* The packet's hash, when RSS or HASH_REPORT wants one. */
void steering_hash(const struct vipsec_steering *steering, const uint8_t *frame, const struct vipsec_frame_view *view,
                   struct steering_hash *hash);

/* The receive queue of a frame that no rule has directed; false when there is none to put it on. `live` NULL: all
 * queues are enabled. */
bool steering_choose(const struct vipsec_steering *steering, const struct steering_live *live, const uint8_t *frame,
                     const struct vipsec_frame_view *view, const struct steering_hash *hash, uint32_t *queue);

/* A frame of the driver (as queued, 14 octets or more) leaves on transmit queue `queue`: learned while automatic
 * steering is at work. */
void steering_sent(const struct vipsec_steering *steering, const uint8_t *frame, uint32_t len, uint32_t queue);

#endif
