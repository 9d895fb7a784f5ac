/*
 * An operator's port: what policy/operator.py makes of frames, as far as it can be told from constant blocks (policy,
 * underlay). What needs memory of other packets, an answer to somebody, or is rare, is Python's, before anything of it
 * was changed or counted.
 */
#ifndef VIPSEC_OPERATOR_H
#define VIPSEC_OPERATOR_H

#include "port.h"

enum operator_verdict { OPERATOR_GO, OPERATOR_DROP, OPERATOR_PUNT };

/* How a frame of the guest leaves, whose IP header stands at order->l3: the first of `count` of a buffer, `bytes` in all.
 * Counted unless it is Python's. What the transport checksum is does not matter. */
enum operator_verdict operator_leaving(struct vipsec_worker *worker, const uint8_t *frame, uint32_t len,
                                       struct tx_order *order, uint32_t count, uint64_t bytes);

/* A frame from the wire, item->view filled in: sets item->kind, and what goes with it. */
void operator_arriving(struct vipsec_worker *worker, struct rx_item *item, const struct vipsec_frame *frame);

/* Puts the port's own link header in front of what came out of a tunnel; false: it keeps the one it came with. */
bool operator_strip(const struct vipsec_worker *worker, const struct rx_item *item, const struct vipsec_packet *packet,
                    struct rx_delivery *out);

/* Whether a frame may come in. Counted, unless it is Python's or what->opened. */
enum operator_verdict operator_admit(struct vipsec_worker *worker, const struct rx_item *item,
                                     const struct rx_delivery *what);

#endif
