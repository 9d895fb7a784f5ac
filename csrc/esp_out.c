/*
 * ESP outbound (RFC 4303 3.3; tunnel header: RFC 4301 5.1.2, RFC 6040; UDP: RFC 3948). The same refusals in the same
 * order as ipsec/process.py.
 */
#include "checksum.h"
#include "esp.h"

static_assert(sizeof(struct vipsec_packet) == 64 && offsetof(struct vipsec_packet, sequence) == 32, "public");
static_assert(VIPSEC_HEADROOM >= IP_V6_LEN + IP_UDP_LEN + ESP_PREFIX && VIPSEC_TAILROOM >= 3 + 2 + 16, "room");

/* A packet between its headers being written and its ciphertext being there. */
struct sealing {
    struct vipsec_packet *packet;
    const struct sa *sa;
    uint8_t *udp;        /* header whose checksum is still to come (IPv6 only); NULL: none */
    uint32_t udp_len;
    uint32_t pseudo_sum; /* of the addresses */
};

/* What the packet will be. */
struct shape {
    uint32_t payload_len; /* what is protected, without the trailer */
    uint32_t plain_len;   /* with it */
    uint32_t protected_len; /* UDP header, if any, to ICV */
    uint8_t next_header;
};

static inline struct shape shape_of(const struct sa *sa, uint32_t payload_len, uint8_t next_header) {
    struct shape shape = {payload_len, payload_len + esp_padding(payload_len) + 2, 0, next_header};
    shape.protected_len =
        ESP_PREFIX + shape.plain_len + sa->icv_len + ((sa->flags & SA_UDP) != 0 ? IP_UDP_LEN : 0u);
    return shape;
}

static inline bool has_room(const struct vipsec_packet *packet, uint32_t len, uint32_t front, uint32_t behind) {
    return packet->headroom >= front && (uint64_t)packet->tailroom + (packet->len - len) >= behind;
}

/* Takes a sequence number and counts the packet: the point of no return. */
static inline int take(const struct sa *sa, uint32_t octets, struct vipsec_packet *packet) {
    struct sa_live *live = sa->live;
    const uint64_t last = (sa->flags & SA_ESN) != 0 ? UINT64_MAX : UINT32_MAX;
    int reason = VIPSEC_REASON_NONE;
    sa_lock(live);
    const uint64_t used = sa_get(&live->sequence);
    if (sa_used_up(sa)) {
        reason = VIPSEC_REASON_HARD_LIFETIME;
    } else if (used >= last) {
        reason = VIPSEC_REASON_SEQUENCE_OVERFLOW;
    } else {
        sa_set(&live->sequence, used + 1);
        sa_count(live, octets);
        packet->sequence = used + 1;
        packet->soft_expired = sa_soft_expired(sa);
    }
    sa_unlock(live);
    return reason;
}

/* UDP header if wanted, ESP header, IV and trailer around the payload; the operation of the cipher. Returns the
 * first byte written. */
static inline uint8_t *wrap(const struct sa *sa, const struct shape *shape, uint8_t *payload, uint64_t sequence,
                            struct vipsec_gcm_op *op) {
    uint8_t *esp = payload - ESP_PREFIX;
    const uint32_t padding = esp_padding(shape->payload_len), at = 8 * padding;
    memcpy(esp, sa->spi, sizeof sa->spi);
    store_be32(esp + 4, (uint32_t)sequence);
    store_be64(esp + ESP_HEADER_LEN, sa->iv_base + sequence);
    /* 1, 2, 3, pad length, next header; what is written beyond that makes room for the ICV. */
    const uint64_t trailer = (0x030201 & ((1ULL << at) - 1)) | ((uint64_t)shape->next_header << 8 | padding) << at;
    store_le64(payload + shape->payload_len, trailer);
    esp_fill_op(op, sa, esp, shape->plain_len, sequence);
    if ((sa->flags & SA_UDP) == 0) {
        return esp;
    }
    uint8_t *udp = esp - IP_UDP_LEN;
    memcpy(udp, sa->udp, sizeof sa->udp);
    store_be16(udp + 4, (uint16_t)shape->protected_len);
    return udp;
}

static inline void decrement_ttl(const struct ip_header *ip, uint8_t *inner) {
    if (ip->version == 6) {
        inner[7]--;
        return;
    }
    const uint16_t before = load_be16(inner + 8);
    inner[8]--;
    store_be16(inner + 10, checksum_update(load_be16(inner + 10), before, load_be16(inner + 8)));
}

/* The outer header in front of `behind`, around the packet `inner`. */
static inline uint8_t *write_outer(const struct sa *sa, const struct ip_header *inner, uint8_t *behind, uint32_t len,
                                   bool fixed_size, uint64_t sequence) {
    const unsigned tos = ((sa->flags & SA_COPY_DSCP) != 0 ? inner->traffic_class & 0xfcu : sa->tos) |
                         ((sa->flags & SA_ECN) != 0 ? inner->traffic_class & 3u : 0u);
    if (sa->outer_len == IP_V6_LEN) {
        uint8_t *head = behind - IP_V6_LEN;
        memcpy(head, sa->outer, IP_V6_LEN);
        store_be32(head, load_be32(head) | tos << 20);
        store_be16(head + 4, (uint16_t)len);
        return head;
    }
    uint8_t *head = behind - IP_V4_LEN;
    const uint16_t total = (uint16_t)(IP_V4_LEN + len), ident = (uint16_t)sequence, flags = fixed_size ? IP_DF : 0;
    memcpy(head, sa->outer, IP_V4_LEN);
    head[1] = (uint8_t)tos;
    store_be16(head + 2, total);
    store_be16(head + 4, ident);
    store_be16(head + 6, flags);
    store_be16(head + 10, (uint16_t)~checksum_fold((uint64_t)sa->outer_sum + tos + total + ident + flags));
    return head;
}

static inline void moved(struct vipsec_packet *packet, uint8_t *head, uint32_t len) {
    const uint64_t whole = (uint64_t)packet->headroom + packet->len + packet->tailroom;
    packet->headroom -= (uint32_t)(packet->data - head);
    packet->data = head;
    packet->len = len;
    packet->tailroom = (uint32_t)(whole - packet->headroom - len);
}

static inline int tunnel(const struct sa *sa, const struct ip_header *ip, struct sealing *s, struct vipsec_gcm_op *op) {
    struct vipsec_packet *packet = s->packet;
    const struct shape shape = shape_of(sa, ip->len, ip->version == 4 ? IP_IPV4 : IP_IPV6);
    const uint32_t outer_len = sa->outer_len, front = outer_len + shape.protected_len - shape.plain_len - sa->icv_len;
    if ((sa->flags & SA_DEC_TTL) != 0 && ip->ttl <= 1) {
        return VIPSEC_REASON_TTL_EXPIRED;
    }
    if (shape.protected_len + (outer_len == IP_V4_LEN ? IP_V4_LEN : 0u) > IP_MAX_LEN) {
        return VIPSEC_REASON_TOO_BIG;
    }
    /* IPv6 packets are never fragmented on their way: inside IPv4 they count as "do not fragment". */
    const bool copied = ip->version == 6 || (ip->flags_offset & IP_DF) != 0;
    const bool fixed = outer_len == IP_V6_LEN || ((sa->flags & SA_COPY_DF) != 0 ? copied : sa->df != 0);
    if (fixed && packet->mtu != 0 && outer_len + shape.protected_len > packet->mtu) {
        return VIPSEC_REASON_TOO_BIG;
    }
    if (!has_room(packet, ip->len, front, shape.plain_len - ip->len + sa->icv_len)) {
        return VIPSEC_REASON_NO_BUFFER;
    }
    const int reason = take(sa, shape.plain_len, packet);
    if (reason != VIPSEC_REASON_NONE) {
        return reason;
    }
    if ((sa->flags & SA_DEC_TTL) != 0) {
        decrement_ttl(ip, packet->data);
    }
    uint8_t *behind = wrap(sa, &shape, packet->data, packet->sequence, op);
    uint8_t *head = write_outer(sa, ip, behind, shape.protected_len, fixed, packet->sequence);
    if (outer_len == IP_V6_LEN && (sa->flags & SA_UDP) != 0) {
        s->udp = behind;
        s->udp_len = shape.protected_len;
        s->pseudo_sum = checksum_words(head + 8, 8);
    }
    moved(packet, head, outer_len + shape.protected_len);
    return VIPSEC_REASON_NONE;
}

/* The destination that the packet has at the end of its route (RFC 2460 4.4), for the pseudo header; false: it cannot
 * be predicted. Types 0 and 2 rotate addresses through the destination. */
static bool final_destination(const uint8_t *data, uint32_t head_len, const uint8_t **destination) {
    *destination = data + 24;
    uint8_t kind = data[IP_V6_PROTOCOL_AT];
    for (uint32_t at = IP_V6_LEN; at < head_len;) {
        const uint8_t *header = data + at;
        const uint32_t length = kind == IP_FRAGMENT ? 8 : (header[1] + 1u) * 8;
        if (kind == IP_ROUTING && header[3] != 0) {
            const uint32_t hops = (length - 8) / 16;
            if ((header[2] != 0 && header[2] != 2) || length % 16 != 8 || header[3] > hops) {
                return false;
            }
            *destination = header + 8 + (size_t)16 * (hops - 1);
        }
        kind = header[0];
        at += length;
    }
    return true;
}

static int transport(const struct sa *sa, const struct ip_header *ip, struct sealing *s, struct vipsec_gcm_op *op) {
    struct vipsec_packet *packet = s->packet;
    struct ip_chain chain;
    const int unsound = ip_chain(packet->data, ip, &chain);
    if (unsound != VIPSEC_REASON_NONE) {
        return unsound;
    }
    if (chain.is_fragment) {
        return VIPSEC_REASON_FRAGMENT;
    }
    const uint32_t head_len = chain.split.offset;
    const struct shape shape = shape_of(sa, ip->len - head_len, chain.split.protocol);
    const bool fixed = ip->version == 6 || (ip->flags_offset & IP_DF) != 0;
    if (fixed && packet->mtu != 0 && head_len + shape.protected_len > packet->mtu) {
        return VIPSEC_REASON_TOO_BIG;
    }
    if (head_len - (ip->version == 6 ? IP_V6_LEN : 0u) + shape.protected_len > IP_MAX_LEN) {
        return VIPSEC_REASON_TOO_BIG;
    }
    const uint8_t *destination = NULL;
    const bool udp_sum = ip->version == 6 && (sa->flags & SA_UDP) != 0;
    if (udp_sum && !final_destination(packet->data, head_len, &destination)) {
        return VIPSEC_REASON_MALFORMED;
    }
    const uint32_t shift = shape.protected_len - shape.plain_len - sa->icv_len;
    if (!has_room(packet, ip->len, shift, shape.plain_len - shape.payload_len + sa->icv_len)) {
        return VIPSEC_REASON_NO_BUFFER;
    }
    const int reason = take(sa, shape.plain_len, packet);
    if (reason != VIPSEC_REASON_NONE) {
        return reason;
    }
    if (udp_sum) {
        s->pseudo_sum = (uint32_t)checksum_words(packet->data + 8, 4) + checksum_words(destination, 4);
    }
    uint8_t *payload = packet->data + head_len, *head = packet->data - shift;
    memmove(head, packet->data, head_len);
    uint8_t *behind = wrap(sa, &shape, payload, packet->sequence, op);
    head[chain.split.protocol_at] = (sa->flags & SA_UDP) != 0 ? IP_UDP : IP_ESP;
    if (ip->version == 4) {
        store_be16(head + 2, (uint16_t)(head_len + shape.protected_len));
        checksum_ipv4(head);
    } else {
        store_be16(head + 4, (uint16_t)(head_len - IP_V6_LEN + shape.protected_len));
    }
    if (udp_sum) {
        s->udp = behind;
        s->udp_len = shape.protected_len;
    }
    moved(packet, head, head_len + shape.protected_len);
    return VIPSEC_REASON_NONE;
}

/* Everything but the cipher. What is refused is as it was, and so is its SA. */
static inline int prepare(const struct sa *sa, struct sealing *s, struct vipsec_gcm_op *op) {
    struct ip_header ip;
    if (sa_used_up(sa)) {
        return VIPSEC_REASON_HARD_LIFETIME;
    }
    const int unsound = ip_parse(s->packet->data, s->packet->len, &ip);
    if (unsound != VIPSEC_REASON_NONE) {
        return unsound;
    }
    return (sa->flags & SA_TUNNEL) != 0 ? tunnel(sa, &ip, s, op) : transport(sa, &ip, s, op);
}

/* RFC 3948 2.1 allows no checksum with IPv4; IPv6 wants one (RFC 8200 8.1), over the ciphertext. */
static void finish_udp(const struct sealing *s) {
    const uint64_t sum = (uint64_t)s->pseudo_sum + IP_UDP + s->udp_len + checksum_sum(s->udp, s->udp_len);
    const uint16_t checksum = (uint16_t)~checksum_fold(sum);
    store_be16(s->udp + 6, checksum ? checksum : 0xffff);
}

static void find_sas(struct vipsec_sa_table *table, const struct vipsec_packet *packets, size_t count,
                     const struct sa **sas) {
    struct sa *_Atomic *places[ESP_BURST];
    for (size_t i = 0; i < count; i++) {
        places[i] = sa_place(table->outbound, packets[i].sa_id);
        __builtin_prefetch(places[i]);
    }
    for (size_t i = 0; i < count; i++) {
        sas[i] = sa_at(places[i]);
        __builtin_prefetch(sas[i]);
        __builtin_prefetch(sas[i] + 1);
    }
    for (size_t i = 0; i < count; i++) {
        if (sas[i] != NULL) {
            esp_prefetch_sa(sas[i], packets[i].len);
        }
    }
}

/* A further part of something whose last part was refused. */
static inline bool not_to_be_tried(struct vipsec_packet *packet, const struct vipsec_packet *before) {
    if (!packet->follows) {
        packet->skipped = 0;
    } else if (before != NULL) {
        packet->skipped = before->reason != VIPSEC_REASON_NONE;
        packet->reason = before->reason;
    }
    return packet->skipped != 0;
}

static void burst(struct vipsec_sa_table *table, struct vipsec_packet *packets, size_t count, bool first) {
    const struct sa *sas[ESP_BURST];
    struct sealing sealing[ESP_BURST];
    struct vipsec_gcm_op ops[ESP_BURST];
    size_t ready = 0;
    find_sas(table, packets, count, sas);
    for (size_t i = 0; i < count; i++) {
        struct vipsec_packet *packet = &packets[i];
        packet->known = sas[i] != NULL;
        if (not_to_be_tried(packet, first && i == 0 ? NULL : packet - 1)) {
            continue;
        }
        if (sas[i] == NULL) {
            packet->reason = VIPSEC_REASON_UNKNOWN_SA;
            continue;
        }
        struct sealing *s = &sealing[ready];
        s->packet = packet;
        s->sa = sas[i];
        s->udp = NULL;
        packet->reason = (uint8_t)prepare(sas[i], s, &ops[ready]);
        if (packet->reason == VIPSEC_REASON_NONE) {
            ready++;
        } else {
            sa_refuse(sas[i], packet->reason);
        }
    }
    const size_t failed = vipsec_gcm_seal(table->engine, ops, ready);
    for (size_t i = 0; i < ready; i++) {
        if (failed != 0 && ops[i].result != VIPSEC_GCM_OK) {
            sealing[i].packet->reason = VIPSEC_REASON_UNKNOWN_SA; /* libcrypto gave up: nothing may be sent */
            sa_refuse(sealing[i].sa, VIPSEC_REASON_UNKNOWN_SA);
        } else if (sealing[i].udp != NULL) {
            finish_udp(&sealing[i]);
        }
    }
}

void esp_outbound(struct vipsec_sa_table *table, struct vipsec_packet *packets, size_t count) {
    for (size_t done = 0; done < count; done += ESP_BURST) {
        burst(table, packets + done, count - done < ESP_BURST ? count - done : ESP_BURST, done == 0);
    }
}

void vipsec_esp_outbound(struct vipsec_sa_table *table, int reader, struct vipsec_packet *packets, size_t count) {
    sa_reader_enter(table, reader);
    esp_outbound(table, packets, count);
    sa_reader_exit(table, reader);
}
