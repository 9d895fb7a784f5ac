/* Where the headers of an Ethernet frame are: device/frame.py, octet for octet. Nothing here refuses a frame. */
#ifndef VIPSEC_FRAME_H
#define VIPSEC_FRAME_H

#include <assert.h>
#include <stdbool.h>

#include "bytes.h"
#include "vipsec.h"

enum { FRAME_ETHERNET_HEADER = 14, FRAME_IPV4 = 0x0800, FRAME_IPV6 = 0x86dd };
enum { FRAME_TCP = 6, FRAME_UDP = 17, FRAME_ESP = 50, FRAME_AH = 51 };

static_assert(sizeof(struct vipsec_frame_view) == 28, "layout");
static_assert(offsetof(struct vipsec_frame_view, ethertype) == 20, "layout");
static_assert(offsetof(struct vipsec_frame_view, version) == 24, "layout");

static inline bool frame_is_ip(uint16_t ethertype) { return ethertype == FRAME_IPV4 || ethertype == FRAME_IPV6; }

/* Offset of the network header after any number of VLAN tags, and its EtherType; 0 and 0 when cut short. */
uint32_t frame_network_offset(const uint8_t *frame, uint32_t len, uint16_t *ethertype);

/* The headers of `frame`. l3, when not 0, is where the network header is known to be: 14..len. */
void frame_view(const uint8_t *frame, uint32_t len, uint32_t l3, struct vipsec_frame_view *view);

/* The same for a packet that is to be segmented: it reaches to the end of the frame whatever its length says. */
void frame_view_oversize(const uint8_t *frame, uint32_t len, uint32_t l3, struct vipsec_frame_view *view);

/* Offset of the transport header of an unfragmented packet, else 0. */
static inline uint32_t frame_transport(const struct vipsec_frame_view *view) { return view->fragment ? 0 : view->l4; }

#endif
