/* Ethernet, VLAN tags, IPv4, IPv6 with its extension headers. */
#include "frame.h"

enum { HOP_BY_HOP = 0, ROUTING = 43, FRAGMENT = 44, DESTINATION = 60, MOBILITY = 135, HIP = 139, SHIM6 = 140 };
enum { PAD1 = 0, HOME_ADDRESS = 0xc9 };

static bool is_tag(uint16_t ethertype) { return ethertype == 0x8100 || ethertype == 0x88a8 || ethertype == 0x9100; }

uint32_t frame_network_offset(const uint8_t *frame, uint32_t len, uint16_t *ethertype) {
    for (uint32_t at = FRAME_ETHERNET_HEADER; at <= len; at += 4) {
        *ethertype = load_be16(frame + at - 2);
        if (!is_tag(*ethertype)) {
            return at;
        }
    }
    *ethertype = 0;
    return 0;
}

static void ipv4(const uint8_t *frame, uint32_t len, bool oversize, struct vipsec_frame_view *view) {
    const uint32_t size = len - view->l3;
    const uint8_t *ip = frame + view->l3;
    if (size < 20 || ip[0] >> 4 != 4) {
        return;
    }
    const uint32_t header = (ip[0] & 15u) * 4, total = oversize ? size : load_be16(ip + 2);
    if (header < 20 || header > total || total > size) {
        return;
    }
    const uint32_t field = load_be16(ip + 6);
    view->version = 4;
    view->protocol = ip[9];
    view->l4 = (field & 0x1fff) == 0 ? view->l3 + header : 0;
    view->end = view->l3 + total;
    view->fragment = (field & 0x3fff) != 0;
}

/* Extension headers of the common form (RFC 6564): next header, length in 8-octet units less one. */
static bool is_chained(uint8_t protocol) {
    switch (protocol) {
    case HOP_BY_HOP:
    case ROUTING:
    case DESTINATION:
    case MOBILITY:
    case HIP:
    case SHIM6: return true;
    default: return false;
    }
}

/* Offset of the address in a Home Address option (RFC 6275 6.3) between at and end, or 0. */
static uint32_t home_address(const uint8_t *frame, uint32_t at, uint32_t end) {
    while (at < end) {
        if (frame[at] == PAD1) {
            at += 1;
            continue;
        }
        if (at + 2 > end) {
            return 0;
        }
        const uint32_t length = frame[at + 1];
        if (frame[at] == HOME_ADDRESS && length == 16 && at + 18 <= end) {
            return at + 2;
        }
        at += 2 + length;
    }
    return 0;
}

struct walk {
    uint32_t at, end, home, routing;
    uint8_t protocol;
    bool fragment, later; /* part of a datagram; and not its first part */
};

/* Walks the extension headers; false when one of them is cut short. */
static bool walk(const uint8_t *frame, struct walk *w) {
    while (is_chained(w->protocol) || w->protocol == FRAGMENT) {
        const uint8_t *header = frame + w->at;
        uint32_t length = 8;
        if (w->at + 8 > w->end) {
            return false;
        }
        if (w->protocol == FRAGMENT) {
            const uint32_t field = load_be16(header + 2);
            /* An atomic fragment (RFC 6946) has offset 0 and M 0: it is a whole packet. */
            w->fragment = w->fragment || (field & 0xfff9) != 0;
            if ((field & 0xfff8) != 0) {
                w->protocol = header[0];
                w->later = true;
                return true;
            }
        } else {
            length = (header[1] + 1u) * 8;
            if (w->at + length > w->end) {
                return false;
            }
            if (w->protocol == ROUTING && header[2] == 2 && length == 24) {
                w->routing = w->at + 8;
            } else if (w->protocol == DESTINATION) {
                const uint32_t found = home_address(frame, w->at + 2, w->at + length);
                w->home = found != 0 ? found : w->home;
            }
        }
        w->protocol = header[0];
        w->at += length;
    }
    return true;
}

static void ipv6(const uint8_t *frame, uint32_t len, bool oversize, struct vipsec_frame_view *view) {
    const uint8_t *ip = frame + view->l3;
    if (len - view->l3 < 40 || ip[0] >> 4 != 6) {
        return;
    }
    struct walk w = {.at = view->l3 + 40, .protocol = ip[6]};
    w.end = oversize ? len : w.at + load_be16(ip + 4);
    if (w.end > len) {
        return;
    }
    if (is_chained(w.protocol) || w.protocol == FRAGMENT) {
        if (!walk(frame, &w)) {
            return;
        }
        view->extensions = 1;
    }
    view->version = 6;
    view->protocol = w.protocol;
    view->l4 = w.later ? 0 : w.at;
    view->end = w.end;
    view->fragment = w.fragment;
    view->home = w.home;
    view->routing = w.routing;
}

static void look(const uint8_t *frame, uint32_t len, uint32_t l3, bool oversize, struct vipsec_frame_view *view) {
    uint16_t ethertype;
    if (l3 != 0) {
        ethertype = load_be16(frame + l3 - 2);
    } else {
        l3 = frame_network_offset(frame, len, &ethertype);
    }
    *view = (struct vipsec_frame_view){.l3 = l3, .ethertype = ethertype, .protocol = -1};
    if (ethertype == FRAME_IPV4) {
        ipv4(frame, len, oversize, view);
    } else if (ethertype == FRAME_IPV6) {
        ipv6(frame, len, oversize, view);
    }
}

void frame_view(const uint8_t *frame, uint32_t len, uint32_t l3, struct vipsec_frame_view *view) {
    look(frame, len, l3, false, view);
}

void frame_view_oversize(const uint8_t *frame, uint32_t len, uint32_t l3, struct vipsec_frame_view *view) {
    look(frame, len, l3, true, view);
}

void vipsec_frame_view(const uint8_t *frame, uint32_t len, uint32_t l3, int oversize, struct vipsec_frame_view *view) {
    look(frame, len, l3, oversize != 0, view);
}
