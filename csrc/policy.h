/*
 * What an operator's port does to each packet: policy/selectors.py, with its rules hashed.
 *
 * Rules that look at the same parts of a packet (prefix lengths, protocol or not, which exact ports) share a hash
 * table; ranges are compared behind it. A packet costs one look-up for each combination of parts in use, not for each
 * rule. Packets that hide a field go through tables of their own, in which the rules that ask for it are replaced by
 * what becomes of such packets; so a fragment costs no more than another packet.
 *
 * A policy is constant once made; whoever replaces it frees the old one when nobody uses it any more. Packets are
 * private memory.
 */
#ifndef VIPSEC_POLICY_H
#define VIPSEC_POLICY_H

#include <assert.h>
#include <stdbool.h>

#include "bytes.h"
#include "vipsec.h"

static_assert(sizeof(struct vipsec_policy_selector) == 48, "layout");
static_assert(offsetof(struct vipsec_policy_selector, protocol) == 40, "layout");
static_assert(sizeof(struct vipsec_policy_rule) == 64, "layout");
static_assert(sizeof(struct vipsec_policy_inbound) == 52, "layout");
static_assert(sizeof(struct vipsec_policy_peer) == 24, "layout");
static_assert(sizeof(struct vipsec_policy_verdict) == 12, "layout");

/* Another number for each policy that the process makes, never 0. */
uint64_t policy_number(const struct vipsec_policy *policy);

/* What to do with an IP packet that wants to leave. */
void policy_outbound(const struct vipsec_policy *policy, const uint8_t *packet, uint32_t len,
                     struct vipsec_policy_verdict *verdict);

/* Whether an IP packet that arrived without protection may come in. */
void policy_inbound_clear(const struct vipsec_policy *policy, const uint8_t *packet, uint32_t len,
                          struct vipsec_policy_verdict *verdict);

/* Whether the packet that inbound SA sa_id opened may come in. outer_source: source address (4 or 16 octets, by
 * outer_version 4 or 6) of its tunnel header, outer_version 0 without one. */
void policy_inbound_opened(const struct vipsec_policy *policy, uint32_t sa_id, const uint8_t *packet, uint32_t len,
                           int outer_version, const uint8_t *outer_source, struct vipsec_policy_verdict *verdict);

#endif
