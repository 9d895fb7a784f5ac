/* Checksum completion, and TCP and UDP segmentation. */
#include "offload.h"

enum { HOST_TSO4 = 11, HOST_TSO6 = 12, HOST_ECN = 13, HOST_USO = 56 };
enum { FIN_PSH = 0x09, CWR = 0x80 };

static bool has(uint64_t features, int bit) { return (features >> bit & 1) != 0; }

int offload_check(const struct vipsec_offload_request *request, uint64_t features, uint8_t *base) {
    const uint8_t gso = request->gso_type;
    int feature;
    *base = 0;
    if (gso == 0) {
        return OFFLOAD_OK;
    }
    if ((gso & OFFLOAD_TUNNELS) != 0) {
        return OFFLOAD_PUNT;
    }
    switch (gso & ~OFFLOAD_ECN) {
    case OFFLOAD_UFO: return OFFLOAD_PUNT;
    case OFFLOAD_TCPV4: feature = HOST_TSO4; break;
    case OFFLOAD_TCPV6: feature = HOST_TSO6; break;
    case OFFLOAD_UDP_L4: feature = HOST_USO; break;
    default: return VIPSEC_REASON_BAD_GSO;
    }
    if (!has(features, feature) ||
        ((gso & OFFLOAD_ECN) != 0 && (feature == HOST_USO || !has(features, HOST_ECN))) ||
        (request->flags & OFFLOAD_NEEDS_CSUM) == 0 || request->gso_size == 0) {
        return VIPSEC_REASON_BAD_GSO;
    }
    *base = gso & (uint8_t)~OFFLOAD_ECN;
    return OFFLOAD_OK;
}

static int version_of(uint16_t ethertype) { return ethertype == FRAME_IPV4 ? 4 : ethertype == FRAME_IPV6 ? 6 : -1; }

int offload_network_header(const uint8_t *frame, uint32_t len, uint32_t at) {
    uint16_t ethertype;
    if (at < FRAME_ETHERNET_HEADER || at >= len || version_of(load_be16(frame + at - 2)) != frame[at] >> 4) {
        return VIPSEC_REASON_BAD_HEADER;
    }
    /* With an offset into a tunnel the outer packet would pass for a link header and leave in clear. */
    const uint32_t seen = frame_network_offset(frame, len, &ethertype);
    return frame_is_ip(ethertype) && seen != at ? VIPSEC_REASON_BAD_HEADER : OFFLOAD_OK;
}

/* Every protocol reads 0 and 0xffff alike, and UDP needs the latter. */
static void store_checksum(uint8_t *at, uint16_t sum) {
    const uint16_t value = (uint16_t)~sum;
    store_be16(at, value != 0 ? value : 0xffff);
}

int offload_checksum(uint8_t *frame, uint32_t len, uint32_t start, uint32_t offset) {
    if ((uint64_t)start + offset + 2 > len) {
        return VIPSEC_REASON_BAD_CHECKSUM_REQUEST;
    }
    store_checksum(frame + start + offset, checksum_sum(frame + start, len - start));
    return OFFLOAD_OK;
}

bool offload_checksum_ok(const uint8_t *frame, const struct vipsec_frame_view *view) {
    const uint32_t l4 = frame_transport(view);
    if (l4 == 0 || (view->protocol != FRAME_TCP && view->protocol != FRAME_UDP)) {
        return false;
    }
    const uint8_t *ip = frame + view->l3;
    uint32_t length = view->end - l4;
    uint32_t addresses = 32, at = 8;
    if (view->version == 4) {
        if (checksum_words(ip, ip[0] & 15) != 0xffff) {
            return false;
        }
        addresses = 8;
        at = 12;
    }
    if (view->protocol == FRAME_UDP) {
        if (length < 8 || load_be16(frame + l4 + 6) == 0) {
            return false;
        }
        const uint32_t stated = load_be16(frame + l4 + 4);
        if (stated < 8 || stated > length) {
            return false;
        }
        length = stated;
    } else if (length < 20) {
        return false;
    }
    const uint16_t pseudo = checksum_pseudo(ip + at, addresses, (uint8_t)view->protocol, length);
    return checksum_fold((uint64_t)pseudo + checksum_sum(frame + l4, length)) == 0xffff;
}

int offload_plan(const uint8_t *frame, uint32_t len, const struct vipsec_offload_request *request, uint8_t base,
                 uint32_t l3, struct offload_plan *plan) {
    const uint8_t protocol = base == OFFLOAD_UDP_L4 ? FRAME_UDP : FRAME_TCP;
    const uint32_t field = protocol == FRAME_TCP ? 16 : 6, least = protocol == FRAME_TCP ? 20 : 8;
    struct vipsec_frame_view view;
    frame_view_oversize(frame, len, l3, &view);
    const uint32_t l4 = frame_transport(&view);
    const bool version = base == OFFLOAD_TCPV4 ? view.version == 4 : base == OFFLOAD_TCPV6 ? view.version == 6 : true;
    if (l4 == 0 || !version || view.protocol != protocol || request->csum_start != l4 ||
        request->csum_offset != field || l4 + least > len) {
        return VIPSEC_REASON_BAD_GSO;
    }
    const uint32_t header = protocol == FRAME_TCP ? (frame[l4 + 12] >> 4) * 4u : least, payload = l4 + header;
    if (header < least || payload > len) {
        return VIPSEC_REASON_BAD_GSO;
    }
    const uint32_t body = len - payload, size = request->gso_size, fixed = view.version == 6 ? 40 : 0;
    const uint32_t count = body > size ? (body + size - 1) / size : 1;
    if ((body < size ? body : size) + payload - view.l3 - fixed > 0xffff || count > OFFLOAD_MAX_PIECES ||
        body + (uint64_t)count * payload > OFFLOAD_MAX_BYTES) {
        return VIPSEC_REASON_BAD_GSO;
    }
    const uint8_t *th = frame + l4;
    *plan = (struct offload_plan){.frame = frame, .l3 = view.l3, .l4 = l4, .payload = payload, .body = body,
                                  .size = size, .count = count, .version = view.version, .protocol = protocol};
    /* ~x is -x in this arithmetic: the fields that change are taken out. The driver's seed counts the length of
     * the whole, each segment's own goes in instead. */
    uint64_t sum = (uint64_t)checksum_words(th, header / 4) + (uint16_t)~checksum_fold(len - l4);
    if (protocol == FRAME_TCP) {
        plan->sequence = load_be32(th + 4);
        plan->flags = th[13];
        sum += (uint16_t)~checksum_fold(plan->sequence) + (uint64_t)(uint16_t)~plan->flags;
    } else {
        sum += (uint16_t)~load_be16(th + 4);
    }
    plan->transport_sum = checksum_fold(sum);
    if (view.version == 4) {
        const uint8_t *ip = frame + view.l3;
        plan->ident = load_be16(ip + 4);
        plan->network_sum = checksum_fold((uint64_t)checksum_words(ip, ip[0] & 15) + (uint16_t)~load_be16(ip + 2) +
                                          (uint16_t)~plan->ident + (uint16_t)~load_be16(ip + 10));
    }
    return OFFLOAD_OK;
}

/* What ends the data stands in the last segment, the answer to congestion in the first (RFC 3168). */
static uint8_t flags_of(const struct offload_plan *plan, uint32_t index) {
    uint8_t flags = plan->flags;
    if (index + 1 < plan->count) {
        flags &= (uint8_t)~FIN_PSH;
    }
    return index > 0 ? flags & (uint8_t)~CWR : flags;
}

void offload_segment_headers(const struct offload_plan *plan, uint32_t index, uint8_t *out) {
    const uint32_t len = plan->payload + offload_segment_data(plan, index);
    uint8_t *ip = out + plan->l3, *th = out + plan->l4;
    memcpy(out, plan->frame, plan->payload);
    if (plan->version == 4) {
        const uint16_t total = (uint16_t)(len - plan->l3), ident = (uint16_t)(plan->ident + index);
        store_be16(ip + 2, total);
        store_be16(ip + 4, ident);
        store_be16(ip + 10, (uint16_t)~checksum_fold((uint64_t)plan->network_sum + total + ident));
    } else {
        store_be16(ip + 4, (uint16_t)(len - plan->l3 - 40));
    }
    if (plan->protocol == FRAME_TCP) {
        store_be32(th + 4, plan->sequence + index * plan->size);
        th[13] = flags_of(plan, index);
    } else {
        store_be16(th + 4, (uint16_t)(len - plan->l4));
    }
}

void offload_segment_finish(const struct offload_plan *plan, uint32_t index, uint8_t *out, uint16_t data_sum) {
    const uint32_t length = plan->payload - plan->l4 + offload_segment_data(plan, index);
    uint8_t *th = out + plan->l4;
    uint64_t sum = (uint64_t)plan->transport_sum + data_sum + length;
    if (plan->protocol == FRAME_TCP) {
        sum += (uint64_t)(plan->sequence + index * plan->size) + flags_of(plan, index);
        store_checksum(th + 16, checksum_fold(sum));
    } else {
        store_checksum(th + 6, checksum_fold(sum + length));
    }
}

/* ---- the public face --------------------------------------------------------------------- */

int vipsec_offload_checksum(uint8_t *frame, uint32_t len, uint32_t start, uint32_t offset) {
    return offload_checksum(frame, len, start, offset);
}

int vipsec_offload_checksum_ok(const uint8_t *frame, const struct vipsec_frame_view *view) {
    return offload_checksum_ok(frame, view);
}

int vipsec_offload_network_header(const uint8_t *frame, uint32_t len, uint32_t at) {
    return offload_network_header(frame, len, at);
}

int vipsec_offload_segment(const uint8_t *frame, uint32_t len, const struct vipsec_offload_request *request,
                           uint64_t features, uint32_t l3, uint8_t *out, size_t room, uint32_t *lengths,
                           uint32_t *count) {
    struct offload_plan plan;
    uint8_t base;
    *count = 0;
    int result = offload_check(request, features, &base);
    if (result != OFFLOAD_OK || base == 0) {
        return result;
    }
    result = offload_plan(frame, len, request, base, l3, &plan);
    if (result != OFFLOAD_OK) {
        return result;
    }
    for (uint32_t i = 0; i < plan.count; i++) {
        const uint32_t need = plan.payload + offload_segment_data(&plan, i);
        if (need > room) {
            return VIPSEC_REASON_NO_BUFFER;
        }
        lengths[i] = offload_segment(&plan, i, out);
        out += need;
        room -= need;
    }
    *count = plan.count;
    return OFFLOAD_OK;
}
