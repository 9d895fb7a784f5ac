/*
 * ESP outbound (RFC 4303 3.3; tunnel header: RFC 4301 5.1.2, RFC 6040; UDP: RFC 3948). The same refusals in the same
 * order as ipsec/process.py.
 */
#include "checksum.h"
#include "esp.h"

static_assert(sizeof(struct vipsec_packet) == 64 && offsetof(struct vipsec_packet, sequence) == 32, "public");
static_assert(VIPSEC_HEADROOM >= IP_V6_LEN + IP_UDP_LEN + ESP_PREFIX && VIPSEC_TAILROOM >= 3 + 2 + 16, "room");

/*
 * A packet on its way: what `plan` found out, for the headers once the sequence number is taken. Kept in registers:
 * everything here is inlined into one loop, and `flags` may be known to be few.
 */
struct sealing {
    unsigned flags;         /* of the SA */
    uint32_t payload_len;   /* what is protected, without the trailer */
    uint32_t plain_len;     /* with it */
    uint32_t protected_len; /* UDP header, if any, to ICV */
    uint32_t head_len;      /* transport mode: what stays in front of the payload */
    uint32_t protocol_at;   /* transport mode: the byte there that will say ESP or UDP */
    uint32_t addresses_sum; /* transport mode with UDP over IPv6: for the pseudo header */
    uint8_t next_header;
    uint8_t version;
    uint8_t traffic_class;
    bool fixed_size; /* nobody may fragment what comes out */
};

/* What is left to do when the ciphertext is there. */
struct finishing {
    struct vipsec_packet *packet;
    const struct sa *sa;
    uint8_t *udp;          /* header that wants a checksum; NULL: none */
    uint32_t udp_len;
    uint32_t addresses_sum;
};

#define INLINE static inline __attribute__((always_inline))

INLINE uint32_t prefix_len(unsigned flags) { return ESP_PREFIX + ((flags & SA_UDP) != 0 ? IP_UDP_LEN : 0u); }

INLINE void measure(struct sealing *s, const struct sa *sa, uint32_t len, uint8_t next_header) {
    s->payload_len = len;
    s->next_header = next_header;
    s->plain_len = len + esp_padding(len) + 2;
    s->protected_len = prefix_len(s->flags) + s->plain_len + sa->icv_len;
}

/* Whether headers in front of the payload and what follows it fit; `len`: of the packet by its header. */
INLINE bool has_room(const struct sealing *s, const struct sa *sa, const struct vipsec_packet *packet, uint32_t len) {
    const uint32_t front = ((s->flags & SA_TUNNEL) != 0 ? sa->outer_len : 0u) + prefix_len(s->flags);
    return packet->headroom >= front && (uint64_t)packet->tailroom + packet->len >= (uint64_t)len + s->plain_len -
                                                                                        s->payload_len + sa->icv_len;
}

INLINE int plan_tunnel(struct sealing *s, const struct sa *sa, const struct vipsec_packet *packet,
                       const struct ip_header *ip) {
    const uint32_t outer_len = sa->outer_len, mtu = packet->mtu;
    if ((s->flags & SA_DEC_TTL) != 0 && ip->ttl <= 1) {
        return VIPSEC_REASON_TTL_EXPIRED;
    }
    measure(s, sa, ip->len, ip->version == 4 ? IP_IPV4 : IP_IPV6);
    if (s->protected_len + (outer_len == IP_V4_LEN ? IP_V4_LEN : 0u) > IP_MAX_LEN) {
        return VIPSEC_REASON_TOO_BIG;
    }
    /* IPv6 packets are never fragmented on their way: inside IPv4 they count as "do not fragment". */
    const bool copied = ip->version == 6 || (ip->flags_offset & IP_DF) != 0;
    s->fixed_size = outer_len == IP_V6_LEN || ((s->flags & SA_COPY_DF) != 0 ? copied : sa->df != 0);
    if (s->fixed_size && mtu != 0 && outer_len + s->protected_len > mtu) {
        return VIPSEC_REASON_TOO_BIG;
    }
    s->traffic_class = ip->traffic_class;
    return has_room(s, sa, packet, ip->len) ? VIPSEC_REASON_NONE : VIPSEC_REASON_NO_BUFFER;
}

/* The destination that the packet has at the end of its route (RFC 2460 4.4), for the pseudo header; NULL: it cannot
 * be predicted. Types 0 and 2 rotate addresses through the destination. */
static const uint8_t *final_destination(const uint8_t *data, uint32_t head_len) {
    const uint8_t *destination = data + 24;
    uint8_t kind = data[IP_V6_PROTOCOL_AT];
    for (uint32_t at = IP_V6_LEN; at < head_len;) {
        const uint8_t *header = data + at;
        const uint32_t length = kind == IP_FRAGMENT ? 8 : (header[1] + 1u) * 8;
        if (kind == IP_ROUTING && header[3] != 0) {
            const uint32_t hops = (length - 8) / 16;
            if ((header[2] != 0 && header[2] != 2) || length % 16 != 8 || header[3] > hops) {
                return NULL;
            }
            destination = header + 8 + (size_t)16 * (hops - 1);
        }
        kind = header[0];
        at += length;
    }
    return destination;
}

INLINE int plan_transport(struct sealing *s, const struct sa *sa, const struct vipsec_packet *packet,
                          const struct ip_header *ip) {
    struct ip_chain chain;
    const int unsound = ip_chain(packet->data, ip, &chain);
    if (unsound != VIPSEC_REASON_NONE) {
        return unsound;
    }
    if (chain.is_fragment) {
        return VIPSEC_REASON_FRAGMENT;
    }
    s->head_len = chain.split.offset;
    s->protocol_at = chain.split.protocol_at;
    measure(s, sa, ip->len - s->head_len, chain.split.protocol);
    s->fixed_size = ip->version == 6 || (ip->flags_offset & IP_DF) != 0;
    if (s->fixed_size && packet->mtu != 0 && s->head_len + s->protected_len > packet->mtu) {
        return VIPSEC_REASON_TOO_BIG;
    }
    if (s->head_len - (ip->version == 6 ? IP_V6_LEN : 0u) + s->protected_len > IP_MAX_LEN) {
        return VIPSEC_REASON_TOO_BIG;
    }
    if (ip->version == 6 && (s->flags & SA_UDP) != 0) {
        const uint8_t *destination = final_destination(packet->data, s->head_len);
        if (destination == NULL) {
            return VIPSEC_REASON_MALFORMED;
        }
        s->addresses_sum = (uint32_t)checksum_words(packet->data + 8, 4) + checksum_words(destination, 4);
    }
    return has_room(s, sa, packet, ip->len) ? VIPSEC_REASON_NONE : VIPSEC_REASON_NO_BUFFER;
}

/* All that can refuse the packet but limits. Changes nothing. */
INLINE int plan(struct sealing *s, const struct sa *sa, const struct vipsec_packet *packet) {
    struct ip_header ip;
    const int unsound = ip_parse(packet->data, packet->len, &ip);
    if (unsound != VIPSEC_REASON_NONE) {
        return unsound;
    }
    s->version = ip.version;
    return (s->flags & SA_TUNNEL) != 0 ? plan_tunnel(s, sa, packet, &ip) : plan_transport(s, sa, packet, &ip);
}

/* Takes a sequence number and counts the packet: the point of no return. Under the lock. */
INLINE int take(const struct sealing *s, const struct sa *sa, struct sa_live *live, struct vipsec_packet *packet) {
    const uint64_t last = (s->flags & SA_ESN) != 0 ? UINT64_MAX : UINT32_MAX;
    const uint64_t used = sa_get(&live->sequence);
    if (used >= last || used >= sa_get(&live->ceiling)) {
        return used >= last ? VIPSEC_REASON_SEQUENCE_OVERFLOW : VIPSEC_REASON_HELD;
    }
    sa_set(&live->sequence, used + 1);
    sa_count(live, s->plain_len);
    packet->sequence = used + 1;
    packet->soft_expired = sa_soft_expired(sa, live);
    return VIPSEC_REASON_NONE;
}

static void decrement_ttl(uint8_t *inner) {
    if (inner[0] >> 4 == 6) {
        inner[7]--;
        return;
    }
    const uint16_t before = load_be16(inner + 8);
    inner[8]--;
    store_be16(inner + 10, checksum_update(load_be16(inner + 10), before, load_be16(inner + 8)));
}

/* UDP header if wanted, ESP header, IV and trailer around the payload; the operation of the cipher. */
INLINE void wrap(const struct sealing *s, const struct sa *sa, const struct sa_live *live, uint8_t *payload,
                 uint64_t sequence, struct vipsec_gcm_op *op) {
    const uint64_t iv = live->iv_base + sequence;
    const uint32_t padding = esp_padding(s->payload_len), at = 8 * padding;
    uint8_t *esp = payload - ESP_PREFIX;
    esp_fill_op(op, sa, live, payload, s->plain_len, sequence, iv);
    store_be64(esp, (uint64_t)load_be32(sa->spi) << 32 | (uint32_t)sequence);
    store_be64(esp + ESP_HEADER_LEN, iv);
    /* 1, 2, 3, pad length, next header; what is written beyond that makes room for the ICV. */
    const uint64_t trailer = (0x030201 & ((1ULL << at) - 1)) | ((uint64_t)s->next_header << 8 | padding) << at;
    store_le64(payload + s->payload_len, trailer);
    if ((s->flags & SA_UDP) != 0) {
        memcpy(esp - IP_UDP_LEN, sa->ports, sizeof sa->ports);
        store_be32(esp - IP_UDP_LEN + 4, s->protected_len << 16); /* no checksum yet */
    }
}

/* The outer header in front of `behind`. Returns where it begins. */
INLINE uint8_t *write_outer(const struct sealing *s, const struct sa *sa, uint8_t *behind, uint64_t sequence) {
    const unsigned tos = ((s->flags & SA_COPY_DSCP) != 0 ? s->traffic_class & 0xfcu : sa->tos) |
                         ((s->flags & SA_ECN) != 0 ? s->traffic_class & 3u : 0u);
    if (sa->outer_len == IP_V6_LEN) {
        uint8_t *head = behind - IP_V6_LEN;
        memcpy(head, sa->outer, IP_V6_LEN);
        store_be32(head, load_be32(sa->outer) | tos << 20);
        store_be16(head + 4, (uint16_t)s->protected_len);
        return head;
    }
    uint8_t *head = behind - IP_V4_LEN;
    const uint32_t total = IP_V4_LEN + s->protected_len, ident = (uint16_t)sequence;
    const uint32_t flags = s->fixed_size ? IP_DF : 0;
    uint32_t sum = sa->outer_sum + tos + total + ident + flags; /* below 2**19: two folds do */
    sum = (sum & 0xffff) + (sum >> 16);
    sum = ~((sum & 0xffff) + (sum >> 16)) & 0xffff;
    const uint64_t first = (uint64_t)(0x45000000 | tos << 16 | total) << 32 | ident << 16 | flags;
    const uint32_t second = load_be32(sa->outer + 8) | sum;
    uint8_t addresses[8];
    memcpy(addresses, sa->outer + 12, sizeof addresses);
    store_be64(head, first);
    store_be32(head + 8, second);
    memcpy(head + 12, addresses, sizeof addresses);
    return head;
}

/* The header of a transport mode packet, in front of `behind`. Returns where it begins. */
static uint8_t *move_head(const struct sealing *s, const uint8_t *data, uint8_t *behind) {
    uint8_t *head = behind - s->head_len;
    memmove(head, data, s->head_len);
    head[s->protocol_at] = (s->flags & SA_UDP) != 0 ? IP_UDP : IP_ESP;
    if (s->version == 4) {
        store_be16(head + 2, (uint16_t)(s->head_len + s->protected_len));
        checksum_ipv4(head);
    } else {
        store_be16(head + 4, (uint16_t)(s->head_len - IP_V6_LEN + s->protected_len));
    }
    return head;
}

/* Everything but the ciphertext. */
INLINE void write_headers(const struct sealing *s, const struct sa *sa, const struct sa_live *live,
                          struct vipsec_packet *packet, struct vipsec_gcm_op *op, struct finishing *finish) {
    const bool is_tunnel = (s->flags & SA_TUNNEL) != 0;
    const uint64_t sequence = packet->sequence;
    const uint32_t before = packet->len, headroom = packet->headroom, tailroom = packet->tailroom;
    uint8_t *data = packet->data, *payload = is_tunnel ? data : data + s->head_len;
    uint8_t *behind = payload - prefix_len(s->flags), *head;
    if (is_tunnel) {
        if ((s->flags & SA_DEC_TTL) != 0) {
            decrement_ttl(payload);
        }
        head = write_outer(s, sa, behind, sequence);
    } else {
        head = move_head(s, data, behind); /* first: it may reach to where the ESP header goes */
    }
    wrap(s, sa, live, payload, sequence, op);
    const uint32_t forward = (uint32_t)(data - head), len = (uint32_t)(behind - head) + s->protected_len;
    packet->data = head;
    packet->len = len;
    packet->headroom = headroom - forward;
    packet->tailroom = tailroom + before + forward - len;
    finish->packet = packet;
    finish->sa = sa;
    finish->udp = NULL;
    if ((s->flags & SA_UDP) != 0 && (is_tunnel ? sa->outer_len == IP_V6_LEN : s->version == 6)) {
        finish->udp = behind;
        finish->udp_len = s->protected_len;
        finish->addresses_sum = is_tunnel ? checksum_words(head + 8, 8) : s->addresses_sum;
    }
}

/* One packet up to its ciphertext. `held`: the lock at hand, or NULL. */
INLINE int begin(const struct sa *sa, unsigned flags, struct vipsec_packet *packet, struct sa_live **held,
                 struct vipsec_gcm_op *op, struct finishing *finish) {
    struct sealing s = {.flags = flags};
    struct sa_live *live = sa_live_of(sa);
    int reason = plan(&s, sa, packet);
    if (reason != VIPSEC_REASON_NONE && (flags & SA_LIMITED) == 0) {
        return reason;
    }
    *held = sa_hold(*held, live);
    const int stopped = sa_stopped_by(sa, live);
    if (stopped != VIPSEC_REASON_NONE) {
        return stopped;
    }
    if (reason == VIPSEC_REASON_NONE) {
        reason = take(&s, sa, live, packet);
    }
    if (reason == VIPSEC_REASON_NONE) {
        write_headers(&s, sa, live, packet, op, finish);
    }
    return reason;
}

/* RFC 3948 2.1 allows no checksum with IPv4; IPv6 wants one (RFC 8200 8.1), over the ciphertext. */
static void finish_udp(const struct finishing *f) {
    const uint64_t sum = (uint64_t)f->addresses_sum + IP_UDP + f->udp_len + checksum_sum(f->udp, f->udp_len);
    const uint16_t checksum = (uint16_t)~checksum_fold(sum);
    store_be16(f->udp + 6, checksum ? checksum : 0xffff);
}

static void find_sas(struct vipsec_sa_table *table, const struct vipsec_packet *packets, size_t count,
                     const struct sa **sas, bool many) {
    struct sa *_Atomic *places[ESP_BURST];
    if (!many) {
        for (size_t i = 0; i < count; i++) {
            sas[i] = sa_outbound(table, packets[i].sa_id);
        }
        return;
    }
    for (size_t i = 0; i < count; i++) {
        places[i] = sa_place(table->outbound, packets[i].sa_id);
        fetch_line(places[i]);
    }
    for (size_t i = 0; i < count; i++) {
        sas[i] = sa_at(places[i]);
    }
    for (size_t i = 0; i < count && i < ESP_AHEAD; i++) {
        esp_fetch(sas[i], packets[i].len);
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
    struct finishing finishing[ESP_BURST];
    struct vipsec_gcm_op ops[ESP_BURST];
    struct sa_live *held = NULL;
    size_t ready = 0;
    const bool many = sa_many(table);
    find_sas(table, packets, count, sas, many);
    for (size_t i = 0; i < count; i++) {
        const struct sa *sa = sas[i];
        struct vipsec_packet *packet = &packets[i];
        int reason = VIPSEC_REASON_UNKNOWN_SA;
        packet->known = sa != NULL;
        if (not_to_be_tried(packet, first && i == 0 ? NULL : packet - 1)) {
            continue;
        }
        if (many && i + ESP_AHEAD < count) {
            esp_fetch(sas[i + ESP_AHEAD], packets[i + ESP_AHEAD].len);
        }
        if (many && i + ESP_AHEAD / 2 < count) {
            esp_fetch_rest(sas[i + ESP_AHEAD / 2]);
        }
        if (sa != NULL) {
            /* The common kind in a copy of its own, without what the options ask for. */
            const bool plain = (sa->flags & ~(unsigned)(SA_ESN | SA_LIMITED)) == SA_TUNNEL;
            const unsigned flags = plain ? (sa->flags & (SA_ESN | SA_LIMITED)) | SA_TUNNEL : sa->flags;
            reason = plain ? begin(sa, flags, packet, &held, &ops[ready], &finishing[ready])
                           : begin(sa, sa->flags, packet, &held, &ops[ready], &finishing[ready]);
            if (reason != VIPSEC_REASON_NONE) {
                sa_refuse(sa, reason);
            }
        }
        packet->reason = (uint8_t)reason;
        ready += reason == VIPSEC_REASON_NONE;
    }
    if (held != NULL) {
        sa_unlock(held);
    }
    const size_t failed = table->engine->seal(ops, ready, many);
    for (size_t i = 0; i < ready; i++) {
        if (failed != 0 && ops[i].result != VIPSEC_GCM_OK) {
            finishing[i].packet->reason = VIPSEC_REASON_UNKNOWN_SA; /* libcrypto gave up: nothing may be sent */
            sa_refuse(finishing[i].sa, VIPSEC_REASON_UNKNOWN_SA);
        } else if (finishing[i].udp != NULL) {
            finish_udp(&finishing[i]);
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
