/* What an operator's port does to a frame: the oracle is policy/departures.py and policy/arrivals.py. */
#include "operator.h"

#include <string.h>

#include "worker.h"

enum { MAC_LEN = 6, ESP_IN_UDP_PORT = 4500, ICMP = 1, ICMPV6 = 58, TCP_FLAGS_AT = 13, TCP_SYN = 2 };

static const struct vipsec_policy *policy_of(const struct vipsec_worker *worker) {
    return atomic_load_explicit(&worker->port->rules.policy, memory_order_acquire);
}

static const struct vipsec_underlay *underlay_of(const struct vipsec_worker *worker) {
    return atomic_load_explicit(&worker->port->rules.underlay, memory_order_acquire);
}

/* Whether the frame names a VLAN; a tag with a priority alone names none. l3: behind all tags. */
static bool has_vlan(const uint8_t *frame, uint32_t l3) {
    for (uint32_t at = FRAME_ETHERNET_HEADER; at < l3; at += 4) {
        if ((load_be16(frame + at) & 0xfff) != 0) {
            return true;
        }
    }
    return false;
}

/* ICMPv6 messages that know link addresses (router and neighbour discovery, redirects), by their first header. */
static bool is_discovery(const uint8_t *packet, uint32_t len) {
    return packet[0] >> 4 == 6 && packet[IP_V6_PROTOCOL_AT] == ICMPV6 && len > IP_V6_LEN && packet[IP_V6_LEN] >= 133 &&
           packet[IP_V6_LEN] <= 137;
}

/* Whether the packet opens a TCP connection; `end` and `at`: of the packet and of its last header. */
static bool is_syn(int protocol, const uint8_t *packet, uint32_t at, uint32_t end) {
    return protocol == FRAME_TCP && at + TCP_FLAGS_AT < end && (packet[at + TCP_FLAGS_AT] & TCP_SYN) != 0;
}

static const uint8_t *destination_of(const uint8_t *packet) { return packet + (packet[0] >> 4 == 4 ? 16 : 24); }
static const uint8_t *source_of(const uint8_t *packet) { return packet + (packet[0] >> 4 == 4 ? 12 : 8); }

/* ---- towards the wire ---- */

/* Whether the guest takes the port for a gateway to somewhere. */
static bool is_for_port(const struct vipsec_underlay *underlay, const uint8_t *frame) {
    const uint8_t *own = underlay->config.mac;
    return underlay->config.has_mac && memcmp(frame, own, MAC_LEN) == 0 && memcmp(frame + MAC_LEN, own, MAC_LEN) != 0;
}

static bool is_unknown_guest(const struct vipsec_underlay *underlay, const uint8_t *frame) {
    return underlay->config.learns_guest &&
           !(underlay->config.has_guest && memcmp(frame + MAC_LEN, underlay->config.guest_mac, MAC_LEN) == 0);
}

/* A whole TCP or UDP packet without extension headers, as a key; false: it is none. IP without options. */
static bool memo_key(const uint8_t *packet, uint32_t len, uint64_t word[MEMO_WORDS]) {
    uint8_t protocol;
    uint32_t ports;
    if (len >= 28 && packet[0] == 0x45) {
        const uint32_t total = load_be16(packet + 2);
        protocol = packet[IP_V4_PROTOCOL_AT];
        if (total < 28 || total > len || (load_be16(packet + 6) & 0x3fff) != 0) {
            return false;
        }
        memcpy(word, packet + 12, 8);
        word[1] = word[2] = word[3] = 0;
        memcpy(&ports, packet + 20, sizeof ports);
    } else if (len >= 48 && packet[0] >> 4 == 6) {
        const uint32_t payload = load_be16(packet + 4);
        protocol = packet[IP_V6_PROTOCOL_AT];
        if (payload < 8 || payload > len - IP_V6_LEN) {
            return false;
        }
        memcpy(word, packet + 8, 32);
        memcpy(&ports, packet + IP_V6_LEN, sizeof ports);
    } else {
        return false;
    }
    word[4] = ports | (uint64_t)protocol << 32 | (uint64_t)(packet[0] >> 4) << 40;
    return protocol == FRAME_TCP || protocol == FRAME_UDP;
}

/* policy_outbound, remembering. */
static void ask_policy(struct vipsec_worker *worker, const struct vipsec_policy *policy, const uint8_t *packet,
                       uint32_t len, struct vipsec_policy_verdict *verdict) {
    uint64_t word[MEMO_WORDS];
    if (!memo_key(packet, len, word)) {
        policy_outbound(policy, packet, len, verdict);
        return;
    }
    const uint64_t mixed = (word[0] ^ word[1] ^ word[2] ^ word[3] ^ word[4]) * 0x9e3779b97f4a7c15;
    struct operator_memo *memo = &worker->memos[mixed >> 58];
    static_assert(MEMO_SIZE == 1 << (64 - 58), "");
    if (memo->policy != policy_number(policy) || memcmp(memo->word, word, sizeof word) != 0) {
        policy_outbound(policy, packet, len, &memo->verdict);
        memo->policy = policy_number(policy);
        memcpy(memo->word, word, sizeof word);
    }
    *verdict = memo->verdict;
}

/* underlay_find of a peer, remembering. */
static const struct vipsec_underlay_address *ask_way(struct vipsec_worker *worker, const struct vipsec_underlay *underlay,
                                                     int family, const uint8_t *address) {
    struct peer_memo *memo = &worker->peer;
    const size_t size = family == 4 ? 4 : 16;
    if (memo->underlay != underlay->number || memo->family != family || memcmp(memo->address, address, size) != 0) {
        const struct vipsec_underlay_address *found = underlay_find(underlay, family, address);
        memo->underlay = underlay->number;
        memo->family = (uint8_t)family;
        memo->is_known = found != NULL;
        memcpy(memo->address, address, size);
        memo->way = found != NULL ? *found : (struct vipsec_underlay_address){0};
    }
    return memo->is_known ? &memo->way : NULL;
}

/* Octets that the packet will have; payload_len: what of it is protected. */
static uint32_t sealed_size(const struct sa *sa, uint32_t packet_len, uint32_t payload_len) {
    const uint32_t outer = (sa->flags & SA_TUNNEL) != 0 ? sa->outer_len : 0, udp = (sa->flags & SA_UDP) != 0 ? IP_UDP_LEN : 0;
    return outer + udp + ESP_PREFIX + packet_len + esp_padding(payload_len) + 2 + sa->icv_len;
}

/* Whether the SA can have the packet, and nothing else remains to be done. */
static bool is_simple(struct vipsec_worker *worker, const struct vipsec_underlay *underlay, const struct sa *sa, const uint8_t *frame,
                      uint32_t len, struct tx_order *order) {
    const uint8_t *packet = frame + order->l3;
    struct ip_header ip;
    struct ip_chain chain;
    if (ip_parse(packet, len - order->l3, &ip) != VIPSEC_REASON_NONE ||
        ip_chain(packet, &ip, &chain) != VIPSEC_REASON_NONE) {
        return false;
    }
    const struct vipsec_underlay_address *way;
    uint32_t protected_len = ip.len;
    if ((sa->flags & SA_TUNNEL) != 0) {
        const bool v4 = sa->outer_len == IP_V4_LEN;
        way = ask_way(worker, underlay, v4 ? 4 : 6, sa->outer + (v4 ? 16 : 24));
        if (way == NULL || !way->has_path || has_vlan(frame, order->l3) || ((sa->flags & SA_DEC_TTL) != 0 && ip.ttl <= 1)) {
            return false;
        }
        order->readdressed = true;
        memcpy(order->link, way->mac, MAC_LEN);
        memcpy(order->link + MAC_LEN, underlay->config.mac, MAC_LEN);
    } else {
        if (chain.is_fragment || is_for_port(underlay, frame)) {
            return false;
        }
        way = underlay->has_narrow ? underlay_find(underlay, ip.version, destination_of(packet)) : NULL;
        protected_len -= chain.split.offset;
    }
    order->protect = true;
    order->mtu = 0; /* it is looked at here */
    return sealed_size(sa, ip.len, protected_len) <= underlay_mtu(underlay, way) &&
           !(underlay->config.mss_clamp && is_syn(chain.end.protocol, packet, chain.end.offset, ip.len));
}

enum operator_verdict operator_leaving(struct vipsec_worker *worker, const uint8_t *frame, uint32_t len,
                                       struct tx_order *order, uint32_t count, uint64_t bytes) {
    const struct vipsec_policy *policy = policy_of(worker);
    const struct vipsec_underlay *underlay = underlay_of(worker);
    const uint8_t *packet = frame + order->l3;
    struct vipsec_policy_verdict verdict = {.outcome = VIPSEC_POLICY_DROP_DEFAULT};
    if (underlay != NULL && (is_unknown_guest(underlay, frame) ||
                             (underlay->config.has_mac && is_discovery(packet, len - order->l3)))) {
        return OPERATOR_PUNT;
    }
    if (policy != NULL) {
        ask_policy(worker, policy, packet, len - order->l3, &verdict);
    }
    if (verdict.outcome == VIPSEC_POLICY_PROTECT) {
        const struct sa *sa = sa_outbound(worker->port->table, verdict.sa_id);
        order->sa_id = verdict.sa_id;
        order->protect = true;
        if (underlay != NULL && (sa == NULL || !is_simple(worker, underlay, sa, frame, len, order))) {
            return OPERATOR_PUNT;
        }
    } else {
        const bool misdirected =
            underlay != NULL && verdict.outcome == VIPSEC_POLICY_BYPASS && is_for_port(underlay, frame);
        if (misdirected || (underlay != NULL && (verdict.outcome == VIPSEC_POLICY_DROP_HIDDEN ||
                                                 verdict.outcome == VIPSEC_POLICY_DROP_MALFORMED))) {
            return OPERATOR_PUNT;
        }
        worker_count(&worker->counters.tx_policy[verdict.outcome], count);
    }
    worker_count(&worker->counters.tx_frames, count);
    worker_count(&worker->counters.tx_bytes, bytes);
    return order->protect || verdict.outcome == VIPSEC_POLICY_BYPASS ? OPERATOR_GO : OPERATOR_DROP;
}

/* ---- from the wire ---- */

/* Errors from the net may be about packets that the port has protected. */
static bool is_net_error(const struct vipsec_frame *frame, const struct vipsec_frame_view *view) {
    if (view->l4 == 0 || view->l4 >= view->end || (view->protocol != ICMP && view->protocol != ICMPV6)) {
        return false;
    }
    const uint8_t type = frame->data[view->l4];
    return view->version == 4 ? type == 3 || type == 4 || type == 5 || type == 11 || type == 12 : type < 128;
}

/* The SA is to open the packet. */
static void open_with(struct vipsec_worker *worker, struct rx_item *item, const struct vipsec_frame *frame,
                      const struct sa *sa) {
    const struct vipsec_frame_view *view = &item->view;
    const uint8_t *packet = frame->data + view->l3;
    item->kind = RX_OPEN;
    item->is_tunnel = (sa->flags & SA_TUNNEL) != 0;
    item->outer_version = item->is_tunnel ? view->version : 0;
    memcpy(item->outer_source, source_of(packet), view->version == 4 ? 4 : 16);
    item->packet = worker->packet_count;
    worker->packets[worker->packet_count++] =
        (struct vipsec_packet){.data = frame->data + view->l3, .len = view->end - view->l3};
}

/* A whole IP packet whose IPsec header esp_locate has found. */
static void protected_packet(struct vipsec_worker *worker, struct rx_item *item, const struct vipsec_frame *frame,
                             const struct vipsec_underlay *underlay, bool ours) {
    struct vipsec_port *port = worker->port;
    const struct vipsec_esp_found *found = &worker->located[worker->packet_count].header;
    const struct sa *sa = found->protocol == FRAME_ESP ? sa_inbound_by_spi(port->table, found->spi) : NULL;
    if (sa == NULL && atomic_load_explicit(&port->foreign_sas, memory_order_relaxed) != 0) {
        item->kind = RX_PUNT;
        return;
    }
    /* The first octets of a UDP datagram may equal an SPI by chance (E66). */
    if (sa != NULL && found->in_udp && found->udp_dport != load_be16(sa->ports + 2)) {
        sa = NULL;
    }
    if (sa != NULL && (ours || (sa->flags & SA_TUNNEL) == 0)) {
        const bool is_tunnel = underlay != NULL && (sa->flags & SA_TUNNEL) != 0;
        if (is_tunnel && (!underlay->config.has_guest || has_vlan(frame->data, item->view.l3))) {
            item->kind = RX_PUNT;
        } else {
            open_with(worker, item, frame, sa);
        }
    } else if (underlay != NULL && ours && (!found->in_udp || found->udp_dport == ESP_IN_UDP_PORT)) {
        item->kind = RX_DROP;
        item->reason = VIPSEC_REASON_UNKNOWN_SA;
    }
}

void operator_arriving(struct vipsec_worker *worker, struct rx_item *item, const struct vipsec_frame *frame) {
    const struct vipsec_underlay *underlay = underlay_of(worker);
    const struct vipsec_frame_view *view = &item->view;
    const uint8_t *packet = frame->data + view->l3;
    item->kind = RX_PUNT;
    if (view->version == 0) {
        return; /* ARP and its like, and what is malformed */
    }
    const bool has_mac = underlay != NULL && underlay->config.has_mac;
    if (underlay != NULL && (view->fragment || (has_mac && is_discovery(packet, view->end - view->l3)))) {
        return;
    }
    const bool ours = underlay == NULL || (has_mac && underlay_owns(underlay, view->version, destination_of(packet)));
    struct esp_found *located = &worker->located[worker->packet_count];
    item->kind = RX_PLAIN;
    if (esp_locate(packet, view->end - view->l3, located) == VIPSEC_REASON_NONE) {
        protected_packet(worker, item, frame, underlay, ours);
    } else if (underlay != NULL && ours && (view->protocol == FRAME_ESP || view->protocol == FRAME_AH)) {
        item->kind = RX_PUNT;
    }
    if (underlay != NULL && item->kind == RX_PLAIN && is_net_error(frame, view)) {
        item->kind = RX_PUNT;
    }
}

bool operator_strip(const struct vipsec_worker *worker, const struct rx_item *item, const struct vipsec_packet *packet,
                    struct rx_delivery *out) {
    const struct vipsec_underlay *underlay = underlay_of(worker);
    if (underlay == NULL || !item->is_tunnel) {
        return false;
    }
    out->frame = packet->data - FRAME_ETHERNET_HEADER;
    out->len = packet->len + FRAME_ETHERNET_HEADER;
    memcpy(out->frame, underlay->config.guest_mac, MAC_LEN);
    memcpy(out->frame + MAC_LEN, underlay->config.mac, MAC_LEN);
    store_be16(packet->data - 2, ethertype_of(packet->data[0] >> 4));
    frame_view(out->frame, out->len, FRAME_ETHERNET_HEADER, &out->view);
    return true;
}

/* What an SA has opened comes in if it is what the SA is for (RFC 4301 5.2). */
static enum operator_verdict admit_opened(struct vipsec_worker *worker, const struct rx_item *item,
                                          const struct rx_delivery *what) {
    const struct vipsec_policy *policy = policy_of(worker);
    const struct vipsec_underlay *underlay = underlay_of(worker);
    const uint8_t *packet = what->frame + what->view.l3;
    const uint32_t len = what->len - what->view.l3;
    struct vipsec_policy_verdict verdict = {.outcome = VIPSEC_POLICY_DROP_DEFAULT};
    if (policy != NULL) {
        policy_inbound_opened(policy, what->resource_id, packet, len, item->outer_version, item->outer_source, &verdict);
    }
    if (underlay != NULL && verdict.outcome == VIPSEC_POLICY_DROP_SELECTOR && what->view.fragment) {
        return OPERATOR_PUNT; /* the whole datagram may be */
    }
    if (verdict.outcome != VIPSEC_POLICY_BYPASS) {
        worker_count(&worker->counters.rx_policy[verdict.outcome], 1);
        return OPERATOR_DROP;
    }
    if (underlay != NULL && (len > underlay->config.guest_mtu ||
                             (underlay->config.mss_clamp &&
                              is_syn(what->view.protocol, what->frame, what->view.l4, what->view.end)))) {
        return OPERATOR_PUNT;
    }
    return OPERATOR_GO;
}

static enum operator_verdict admit_clear(struct vipsec_worker *worker, const struct rx_delivery *what) {
    const struct vipsec_policy *policy = policy_of(worker);
    const struct vipsec_underlay *underlay = underlay_of(worker);
    struct vipsec_policy_verdict verdict = {.outcome = VIPSEC_POLICY_DROP_DEFAULT};
    if (policy != NULL) {
        policy_inbound_clear(policy, what->frame + what->view.l3, what->len - what->view.l3, &verdict);
    }
    if (underlay != NULL && verdict.outcome == VIPSEC_POLICY_DROP_MALFORMED) {
        return OPERATOR_PUNT;
    }
    worker_count(&worker->counters.rx_policy[verdict.outcome], 1);
    if (verdict.outcome != VIPSEC_POLICY_BYPASS) {
        return OPERATOR_DROP;
    }
    /* What is for the port's link address is for a guest that shares its IP address. */
    if (underlay != NULL && underlay->config.has_mac && underlay->config.has_guest &&
        memcmp(what->frame, underlay->config.mac, MAC_LEN) == 0) {
        memcpy(what->frame, underlay->config.guest_mac, MAC_LEN);
    }
    return OPERATOR_GO;
}

enum operator_verdict operator_admit(struct vipsec_worker *worker, const struct rx_item *item,
                                     const struct rx_delivery *what) {
    return what->opened ? admit_opened(worker, item, what) : admit_clear(worker, what);
}
