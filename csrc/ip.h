/*
 * IPv4 and IPv6 as far as ESP reads them: lengths, extension headers, fragments. Works on packets that begin at
 * the IP header, in memory that nobody else writes. Verdicts are enum vipsec_reason; 0 is good.
 */
#ifndef VIPSEC_IP_H
#define VIPSEC_IP_H

#include <stdbool.h>

#include "bytes.h"
#include "vipsec.h"

enum {
    IP_HOP_BY_HOP = 0,
    IP_IPV4 = 4,
    IP_UDP = 17,
    IP_IPV6 = 41,
    IP_ROUTING = 43,
    IP_FRAGMENT = 44,
    IP_ESP = 50,
    IP_AH = 51,
    IP_NO_NEXT_HEADER = 59,
    IP_DESTINATION_OPTIONS = 60,

    IP_V4_LEN = 20,
    IP_V6_LEN = 40,
    IP_V4_PROTOCOL_AT = 9,
    IP_V6_PROTOCOL_AT = 6,
    IP_UDP_LEN = 8,
    IP_DF = 0x4000,
    IP_MAX_LEN = 0xffff,
};

struct ip_header {
    uint32_t len;          /* of the packet, by its header */
    uint16_t flags_offset; /* IPv4 flags and fragment offset, 0 for IPv6 */
    uint8_t version;
    uint8_t header_len;    /* IPv4: with options; IPv6: 40 */
    uint8_t traffic_class;
    uint8_t ttl;
    uint8_t protocol;
};

/* Where a protocol begins, and which byte says what it is. */
struct ip_place {
    uint32_t offset;
    uint32_t protocol_at;
    uint8_t protocol;
};

/* What stands between an IPv6 header and the first protocol that is no extension header. */
struct ip_chain {
    struct ip_place end;   /* that protocol */
    struct ip_place split; /* where a transport mode header goes (RFC 4303 3.1.1): only destination options behind */
    uint32_t fragment_at;  /* first Fragment header; 0: none */
    uint32_t named_at;     /* the byte that says that it is one */
    bool is_fragment;      /* one that is not atomic (RFC 6946) */
};

/* Reads the IP header of the packet: VIPSEC_REASON_NOT_IP, _MALFORMED. Jumbograms are refused. */
static inline int ip_parse(const uint8_t *data, size_t len, struct ip_header *ip) {
    const unsigned version = len > 0 ? data[0] >> 4 : 0;
    if (version == 4) {
        if (len < IP_V4_LEN) {
            return VIPSEC_REASON_MALFORMED;
        }
        ip->version = 4;
        ip->header_len = (uint8_t)((data[0] & 15) * 4);
        ip->traffic_class = data[1];
        ip->len = load_be16(data + 2);
        ip->flags_offset = load_be16(data + 6);
        ip->ttl = data[8];
        ip->protocol = data[IP_V4_PROTOCOL_AT];
        const bool sound = ip->header_len >= IP_V4_LEN && ip->header_len <= ip->len && ip->len <= len;
        return sound ? VIPSEC_REASON_NONE : VIPSEC_REASON_MALFORMED;
    }
    if (version == 6) {
        if (len < IP_V6_LEN) {
            return VIPSEC_REASON_MALFORMED;
        }
        ip->version = 6;
        ip->header_len = IP_V6_LEN;
        ip->traffic_class = (uint8_t)(load_be16(data) >> 4);
        ip->len = IP_V6_LEN + (uint32_t)load_be16(data + 4);
        ip->flags_offset = 0;
        ip->protocol = data[IP_V6_PROTOCOL_AT];
        ip->ttl = data[7];
        const bool jumbogram = ip->len == IP_V6_LEN && ip->protocol == IP_HOP_BY_HOP;
        return !jumbogram && ip->len <= len ? VIPSEC_REASON_NONE : VIPSEC_REASON_MALFORMED;
    }
    return VIPSEC_REASON_NOT_IP;
}

/*
 * Walks the extension headers that begin at `from`, of `len` bytes in all: VIPSEC_REASON_MALFORMED. Hop-by-hop
 * options are an extension header only directly behind the fixed header (RFC 8200 4.1).
 *
 * `without`: offset of a Fragment header that counts as taken away, as reassembly does with an atomic one; else 0.
 */
static inline int ip_walk(const uint8_t *data, size_t len, struct ip_place from, uint32_t without,
                          struct ip_chain *chain) {
    struct ip_place at = from;
    bool first = true;
    *chain = (struct ip_chain){.split = from};
    while (at.protocol == IP_ROUTING || at.protocol == IP_FRAGMENT || at.protocol == IP_DESTINATION_OPTIONS ||
           (at.protocol == IP_HOP_BY_HOP && first)) {
        const uint8_t kind = at.protocol;
        if (len < (size_t)at.offset + 8) {
            return VIPSEC_REASON_MALFORMED;
        }
        const uint8_t *header = data + at.offset;
        const uint32_t length = kind == IP_FRAGMENT ? 8 : (header[1] + 1u) * 8;
        if (len < (size_t)at.offset + length) {
            return VIPSEC_REASON_MALFORMED;
        }
        at.protocol = header[0];
        if (kind == IP_FRAGMENT && without != 0 && at.offset == without) {
            at.offset += 8;
            continue;
        }
        if (kind == IP_FRAGMENT) {
            chain->is_fragment |= (load_be16(header + 2) & 0xfff9) != 0;
            if (chain->fragment_at == 0) {
                chain->fragment_at = at.offset;
                chain->named_at = at.protocol_at;
            }
        }
        at.protocol_at = at.offset;
        at.offset += length;
        first = false;
        if (kind != IP_DESTINATION_OPTIONS) {
            chain->split = at;
        }
    }
    chain->end = at;
    return VIPSEC_REASON_NONE;
}

/* The place of the first header behind the fixed one. */
static inline struct ip_place ip_first(const struct ip_header *ip) {
    return (struct ip_place){ip->header_len, ip->version == 4 ? IP_V4_PROTOCOL_AT : IP_V6_PROTOCOL_AT, ip->protocol};
}

/* What stands between the header of a whole packet and its payload; for IPv4 nothing. */
static inline int ip_chain(const uint8_t *data, const struct ip_header *ip, struct ip_chain *chain) {
    const struct ip_place first = ip_first(ip);
    if (ip->version == 4) {
        *chain = (struct ip_chain){first, first, 0, 0, (ip->flags_offset & 0x3fff) != 0};
        return VIPSEC_REASON_NONE;
    }
    return ip_walk(data, ip->len, first, 0, chain);
}

#endif
