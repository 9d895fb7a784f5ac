/* The outermost IPsec header of a packet: ipsec/process.py find_spi. */
#include "esp.h"

static_assert(sizeof(struct vipsec_esp_found) == 32, "public");

/* ESP in UDP: where it begins and ends. The checksum is not looked at: the ICV covers more, and NAT may have spoilt it
 * (RFC 3948 2.1). IKE and keepalives are no IPsec. */
static int in_udp(const uint8_t *data, uint32_t len, uint32_t *begin, uint32_t *end, struct vipsec_esp_found *found) {
    const uint32_t at = *begin;
    if (len < at + IP_UDP_LEN) {
        return VIPSEC_REASON_MALFORMED;
    }
    const uint32_t length = load_be16(data + at + 4);
    if (length < IP_UDP_LEN || at + length > len) {
        return VIPSEC_REASON_MALFORMED;
    }
    *begin = at + IP_UDP_LEN;
    *end = at + length;
    const bool keepalive = length == IP_UDP_LEN + 1 && data[*begin] == 0xff;
    const bool non_esp = length >= IP_UDP_LEN + 4 && load_be32(data + *begin) == 0;
    if (keepalive || non_esp) {
        return VIPSEC_REASON_NOT_IPSEC;
    }
    found->udp_sport = load_be16(data + at);
    found->udp_dport = load_be16(data + at + 2);
    found->in_udp = 1;
    return VIPSEC_REASON_NONE;
}

/* The extension headers, as they are once an atomic Fragment header is gone. */
static int chain_of_whole(const uint8_t *data, const struct ip_header *ip, struct ip_chain *chain,
                          struct esp_found *found) {
    const int reason = ip_chain(data, ip, chain);
    found->hole = 0;
    if (reason != VIPSEC_REASON_NONE) {
        return reason;
    }
    if (chain->is_fragment) {
        return VIPSEC_REASON_FRAGMENT; /* IPsec comes after reassembly */
    }
    if (chain->fragment_at == 0) {
        return VIPSEC_REASON_NONE;
    }
    found->hole = chain->fragment_at;
    found->hole_named_at = chain->named_at;
    if (ip->len == IP_V6_LEN + 8 && data[found->hole] == IP_HOP_BY_HOP) {
        return VIPSEC_REASON_MALFORMED; /* what is left says that it is a jumbogram */
    }
    return ip_walk(data, ip->len, ip_first(ip), found->hole, chain);
}

int esp_locate(const uint8_t *packet, size_t len, struct esp_found *found) {
    struct ip_header ip;
    struct ip_chain chain;
    int reason = ip_parse(packet, len, &ip);
    if (reason == VIPSEC_REASON_NONE) {
        reason = chain_of_whole(packet, &ip, &chain, found);
    }
    if (reason != VIPSEC_REASON_NONE) {
        return reason;
    }
    struct vipsec_esp_found *header = &found->header;
    *header = (struct vipsec_esp_found){.protocol = chain.end.protocol};
    uint32_t begin = chain.end.offset, end = ip.len;
    if (header->protocol == IP_UDP) {
        header->protocol = IP_ESP;
        reason = in_udp(packet, ip.len, &begin, &end, header);
        if (reason != VIPSEC_REASON_NONE) {
            return reason;
        }
    }
    if (header->protocol != IP_ESP && header->protocol != IP_AH) {
        return VIPSEC_REASON_NOT_IPSEC;
    }
    const uint32_t least = header->protocol == IP_ESP ? 8 : 12, spi_at = header->protocol == IP_ESP ? 0 : 4;
    if (end - begin < least) {
        return VIPSEC_REASON_MALFORMED;
    }
    header->spi = load_be32(packet + begin + spi_at);
    header->sequence = load_be32(packet + begin + spi_at + 4);
    if (header->spi == 0) {
        return VIPSEC_REASON_NOT_IPSEC; /* never sent (RFC 4303 2.1) */
    }
    header->offset = begin;
    header->end = end;
    found->head_end = chain.end.offset;
    found->protocol_at = chain.end.protocol_at;
    found->version = ip.version;
    found->header_len = ip.header_len;
    found->traffic_class = ip.traffic_class;
    return VIPSEC_REASON_NONE;
}

int vipsec_esp_find(const uint8_t *packet, size_t len, struct vipsec_esp_found *found) {
    struct esp_found located;
    const int reason = esp_locate(packet, len, &located);
    *found = reason == VIPSEC_REASON_NONE ? located.header : (struct vipsec_esp_found){0};
    return reason;
}
