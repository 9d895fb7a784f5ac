/*
 * ESP outbound (RFC 4303 3.3; tunnel header: RFC 4301 5.1.2, RFC 6040; UDP: RFC 3948). The same refusals in the same
 * order as ipsec/process.py.
 */
#include "checksum.h"
#include "esp.h"

static_assert(sizeof(struct vipsec_packet) == 64 && offsetof(struct vipsec_packet, sequence) == 32, "public");
static_assert(VIPSEC_HEADROOM >= IP_V6_LEN + IP_UDP_LEN + ESP_PREFIX && VIPSEC_TAILROOM >= 3 + 2 + 16, "room");

/* A packet on its way: what `plan` found out, for `write` once the sequence number is taken. */
struct sealing {
    struct vipsec_packet *packet;
    const struct sa *sa;
    struct sa_live *live;
    uint8_t *payload;       /* what is protected: the packet, or what follows its header */
    uint32_t payload_len;   /* without the trailer */
    uint32_t plain_len;     /* with it */
    uint32_t protected_len; /* UDP header, if any, to ICV */
    uint32_t head_len;      /* transport mode: what stays in front */
    uint32_t protocol_at;   /* transport mode: the byte there that will say ESP or UDP */
    uint32_t addresses_sum; /* transport mode with UDP over IPv6: for the pseudo header */
    uint8_t next_header;
    uint8_t version;
    uint8_t traffic_class;
    uint8_t reason;
    bool fixed_size; /* nobody may fragment what comes out */
    bool udp_sum;    /* the UDP header wants a checksum */
};

static inline void measure(struct sealing *s, uint8_t *payload, uint32_t len, uint8_t next_header) {
    s->payload = payload;
    s->payload_len = len;
    s->next_header = next_header;
    s->plain_len = len + esp_padding(len) + 2;
    s->protected_len = ESP_PREFIX + s->plain_len + s->sa->icv_len + ((s->sa->flags & SA_UDP) != 0 ? IP_UDP_LEN : 0u);
}

/* Whether headers in front of the payload and what follows it fit; `len`: of the packet by its header. */
static inline bool has_room(const struct sealing *s, uint32_t len, uint32_t outer_len) {
    const struct vipsec_packet *packet = s->packet;
    const uint32_t behind = s->plain_len - s->payload_len + s->sa->icv_len;
    return packet->headroom >= outer_len + (s->protected_len - behind - s->payload_len) &&
           (uint64_t)packet->tailroom + (packet->len - len) >= behind;
}

static inline int plan_tunnel(const struct ip_header *ip, struct sealing *s) {
    const struct sa *sa = s->sa;
    const uint32_t outer_len = sa->outer_len, mtu = s->packet->mtu;
    if ((sa->flags & SA_DEC_TTL) != 0 && ip->ttl <= 1) {
        return VIPSEC_REASON_TTL_EXPIRED;
    }
    measure(s, s->packet->data, ip->len, ip->version == 4 ? IP_IPV4 : IP_IPV6);
    if (s->protected_len + (outer_len == IP_V4_LEN ? IP_V4_LEN : 0u) > IP_MAX_LEN) {
        return VIPSEC_REASON_TOO_BIG;
    }
    /* IPv6 packets are never fragmented on their way: inside IPv4 they count as "do not fragment". */
    const bool copied = ip->version == 6 || (ip->flags_offset & IP_DF) != 0;
    s->fixed_size = outer_len == IP_V6_LEN || ((sa->flags & SA_COPY_DF) != 0 ? copied : sa->df != 0);
    if (s->fixed_size && mtu != 0 && outer_len + s->protected_len > mtu) {
        return VIPSEC_REASON_TOO_BIG;
    }
    s->version = ip->version;
    s->traffic_class = ip->traffic_class;
    return has_room(s, ip->len, outer_len) ? VIPSEC_REASON_NONE : VIPSEC_REASON_NO_BUFFER;
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

static int plan_transport(const struct ip_header *ip, struct sealing *s) {
    uint8_t *data = s->packet->data;
    const uint32_t mtu = s->packet->mtu;
    struct ip_chain chain;
    const int unsound = ip_chain(data, ip, &chain);
    if (unsound != VIPSEC_REASON_NONE) {
        return unsound;
    }
    if (chain.is_fragment) {
        return VIPSEC_REASON_FRAGMENT;
    }
    s->version = ip->version;
    s->head_len = chain.split.offset;
    s->protocol_at = chain.split.protocol_at;
    measure(s, data + s->head_len, ip->len - s->head_len, chain.split.protocol);
    s->fixed_size = ip->version == 6 || (ip->flags_offset & IP_DF) != 0;
    if (s->fixed_size && mtu != 0 && s->head_len + s->protected_len > mtu) {
        return VIPSEC_REASON_TOO_BIG;
    }
    if (s->head_len - (ip->version == 6 ? IP_V6_LEN : 0u) + s->protected_len > IP_MAX_LEN) {
        return VIPSEC_REASON_TOO_BIG;
    }
    if (ip->version == 6 && (s->sa->flags & SA_UDP) != 0) {
        const uint8_t *destination = final_destination(data, s->head_len);
        if (destination == NULL) {
            return VIPSEC_REASON_MALFORMED;
        }
        s->addresses_sum = (uint32_t)checksum_words(data + 8, 4) + checksum_words(destination, 4);
    }
    return has_room(s, ip->len, 0) ? VIPSEC_REASON_NONE : VIPSEC_REASON_NO_BUFFER;
}

/* All that can refuse the packet but limits. Changes nothing. */
static inline int plan(struct sealing *s) {
    struct ip_header ip;
    const int unsound = ip_parse(s->packet->data, s->packet->len, &ip);
    if (unsound != VIPSEC_REASON_NONE) {
        return unsound;
    }
    return (s->sa->flags & SA_TUNNEL) != 0 ? plan_tunnel(&ip, s) : plan_transport(&ip, s);
}

/* Takes a sequence number and counts the packet: the point of no return. Under the lock. */
static inline int take(const struct sealing *s) {
    const struct sa *sa = s->sa;
    struct sa_live *live = s->live;
    const uint64_t last = (sa->flags & SA_ESN) != 0 ? UINT64_MAX : UINT32_MAX;
    const uint64_t used = sa_get(&live->sequence);
    if (used >= last) {
        return VIPSEC_REASON_SEQUENCE_OVERFLOW;
    }
    sa_set(&live->sequence, used + 1);
    sa_count(live, s->plain_len);
    s->packet->sequence = used + 1;
    s->packet->soft_expired = sa_soft_expired(sa, live);
    return VIPSEC_REASON_NONE;
}

static inline void decrement_ttl(uint8_t *inner) {
    if (inner[0] >> 4 == 6) {
        inner[7]--;
        return;
    }
    const uint16_t before = load_be16(inner + 8);
    inner[8]--;
    store_be16(inner + 10, checksum_update(load_be16(inner + 10), before, load_be16(inner + 8)));
}

/* UDP header if wanted, ESP header, IV and trailer around the payload; the operation of the cipher. Returns the
 * first byte written. */
static inline uint8_t *wrap(const struct sealing *s, uint64_t sequence, struct vipsec_gcm_op *op) {
    const struct sa *sa = s->sa;
    uint8_t *esp = s->payload - ESP_PREFIX;
    const uint64_t iv = s->live->iv_base + sequence;
    const uint32_t padding = esp_padding(s->payload_len), at = 8 * padding;
    memcpy(esp, sa->spi, sizeof sa->spi);
    store_be32(esp + 4, (uint32_t)sequence);
    store_be64(esp + ESP_HEADER_LEN, iv);
    /* 1, 2, 3, pad length, next header; what is written beyond that makes room for the ICV. */
    const uint64_t trailer = (0x030201 & ((1ULL << at) - 1)) | ((uint64_t)s->next_header << 8 | padding) << at;
    store_le64(s->payload + s->payload_len, trailer);
    esp_fill_op(op, sa, s->live, s->payload, s->plain_len, sequence, iv);
    if ((sa->flags & SA_UDP) == 0) {
        return esp;
    }
    uint8_t *udp = esp - IP_UDP_LEN;
    memcpy(udp, sa->udp, sizeof sa->udp);
    store_be16(udp + 4, (uint16_t)s->protected_len);
    return udp;
}

/* The outer header in front of `behind`. Returns where it begins. */
static inline uint8_t *write_outer(const struct sealing *s, uint8_t *behind, uint64_t sequence) {
    const struct sa *sa = s->sa;
    const unsigned tos = ((sa->flags & SA_COPY_DSCP) != 0 ? s->traffic_class & 0xfcu : sa->tos) |
                         ((sa->flags & SA_ECN) != 0 ? s->traffic_class & 3u : 0u);
    if (sa->outer_len == IP_V6_LEN) {
        uint8_t *head = behind - IP_V6_LEN;
        memcpy(head, sa->outer, IP_V6_LEN);
        store_be32(head, load_be32(sa->outer) | tos << 20);
        store_be16(head + 4, (uint16_t)s->protected_len);
        return head;
    }
    uint8_t *head = behind - IP_V4_LEN;
    const uint16_t total = (uint16_t)(IP_V4_LEN + s->protected_len), ident = (uint16_t)sequence;
    const uint16_t flags = s->fixed_size ? IP_DF : 0;
    uint32_t sum = (uint32_t)sa->outer_sum + tos + total + ident + flags; /* below 2**19: two folds do */
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    store_be32(head, 0x45000000 | tos << 16 | total);
    store_be32(head + 4, (uint32_t)ident << 16 | flags);
    memcpy(head + 8, sa->outer + 8, IP_V4_LEN - 8);
    store_be16(head + 10, (uint16_t)~sum);
    return head;
}

/* The IP header of a transport mode packet, as far forward as what comes behind it needs. */
static uint8_t *move_head(const struct sealing *s, uint8_t *behind) {
    uint8_t *head = behind - s->head_len;
    head[s->protocol_at] = (s->sa->flags & SA_UDP) != 0 ? IP_UDP : IP_ESP;
    if (s->version == 4) {
        store_be16(head + 2, (uint16_t)(s->head_len + s->protected_len));
        checksum_ipv4(head);
    } else {
        store_be16(head + 4, (uint16_t)(s->head_len - IP_V6_LEN + s->protected_len));
    }
    return head;
}

/* Everything but the ciphertext. */
static inline void write_headers(struct sealing *s, struct vipsec_gcm_op *op) {
    const struct sa *sa = s->sa;
    struct vipsec_packet *packet = s->packet;
    const bool is_tunnel = (sa->flags & SA_TUNNEL) != 0;
    uint8_t *head;
    if (is_tunnel) {
        if ((sa->flags & SA_DEC_TTL) != 0) {
            decrement_ttl(s->payload);
        }
        uint8_t *behind = wrap(s, packet->sequence, op);
        head = write_outer(s, behind, packet->sequence);
    } else {
        const uint32_t shift = ESP_PREFIX + ((sa->flags & SA_UDP) != 0 ? IP_UDP_LEN : 0u);
        memmove(packet->data - shift, packet->data, s->head_len);
        head = move_head(s, wrap(s, packet->sequence, op));
    }
    s->udp_sum = (sa->flags & SA_UDP) != 0 && (is_tunnel ? sa->outer_len == IP_V6_LEN : s->version == 6);
    const uint32_t forward = (uint32_t)(packet->data - head);
    const uint32_t len = (uint32_t)(s->payload - head) + s->plain_len + sa->icv_len;
    packet->tailroom = packet->tailroom + packet->len + forward - len;
    packet->headroom -= forward;
    packet->data = head;
    packet->len = len;
}

/* RFC 3948 2.1 allows no checksum with IPv4; IPv6 wants one (RFC 8200 8.1), over the ciphertext. */
static void finish_udp(const struct sealing *s) {
    uint8_t *udp = s->payload - ESP_PREFIX - IP_UDP_LEN;
    const bool is_tunnel = (s->sa->flags & SA_TUNNEL) != 0;
    const uint64_t addresses = is_tunnel ? checksum_words(s->packet->data + 8, 8) : s->addresses_sum;
    const uint64_t sum = addresses + IP_UDP + s->protected_len + checksum_sum(udp, s->protected_len);
    const uint16_t checksum = (uint16_t)~checksum_fold(sum);
    store_be16(udp + 6, checksum ? checksum : 0xffff);
}

static void find_sas(struct vipsec_sa_table *table, const struct vipsec_packet *packets, size_t count,
                     const struct sa **sas) {
    struct sa *_Atomic *places[ESP_BURST];
    if (!sa_many(table)) {
        for (size_t i = 0; i < count; i++) {
            sas[i] = sa_outbound(table, packets[i].sa_id);
        }
        return;
    }
    for (size_t i = 0; i < count; i++) {
        places[i] = sa_place(table->outbound, packets[i].sa_id);
        __builtin_prefetch(places[i]);
    }
    for (size_t i = 0; i < count; i++) {
        sas[i] = sa_at(places[i]);
        __builtin_prefetch(sas[i]);
    }
    for (size_t i = 0; i < count; i++) {
        if (sas[i] != NULL) {
            esp_prefetch_sa(sas[i], packets[i].len);
        }
    }
}

static void burst(struct vipsec_sa_table *table, struct vipsec_packet *packets, size_t count) {
    const struct sa *sas[ESP_BURST];
    struct sealing sealing[ESP_BURST];
    struct vipsec_gcm_op ops[ESP_BURST];
    size_t known = 0, ready = 0;
    find_sas(table, packets, count, sas);
    /* A locked instruction waits for what was written before it and lets nothing begin behind it. So reading, taking
     * numbers and writing headers are loops of their own. */
    for (size_t i = 0; i < count; i++) {
        packets[i].known = sas[i] != NULL;
        packets[i].reason = VIPSEC_REASON_UNKNOWN_SA;
        if (sas[i] != NULL) {
            struct sealing *s = &sealing[known++];
            s->packet = &packets[i];
            s->sa = sas[i];
            s->live = sa_live_of(sas[i]);
            s->reason = (uint8_t)plan(s);
        }
    }
    struct sa_live *held = NULL;
    for (size_t i = 0; i < known; i++) {
        struct sealing *s = &sealing[i];
        if (s->reason == VIPSEC_REASON_NONE || (s->sa->flags & SA_LIMITED) != 0) {
            held = sa_hold(held, s->live);
            if (sa_used_up(s->sa, held)) {
                s->reason = VIPSEC_REASON_HARD_LIFETIME;
            } else if (s->reason == VIPSEC_REASON_NONE) {
                s->reason = (uint8_t)take(s);
            }
        }
    }
    if (held != NULL) {
        sa_unlock(held);
    }
    for (size_t i = 0; i < known; i++) {
        struct sealing *s = &sealing[i];
        s->packet->reason = s->reason;
        if (s->reason != VIPSEC_REASON_NONE) {
            sa_refuse(s->sa, s->reason);
            continue;
        }
        write_headers(s, &ops[ready]);
        if (ready != i) {
            sealing[ready] = *s;
        }
        ready++;
    }
    const size_t failed = vipsec_gcm_seal(table->engine, ops, ready);
    for (size_t i = 0; i < ready; i++) {
        if (failed != 0 && ops[i].result != VIPSEC_GCM_OK) {
            sealing[i].packet->reason = VIPSEC_REASON_UNKNOWN_SA; /* libcrypto gave up: nothing may be sent */
            sa_refuse(sealing[i].sa, VIPSEC_REASON_UNKNOWN_SA);
        } else if (sealing[i].udp_sum) {
            finish_udp(&sealing[i]);
        }
    }
}

void esp_outbound(struct vipsec_sa_table *table, struct vipsec_packet *packets, size_t count) {
    for (size_t done = 0; done < count; done += ESP_BURST) {
        burst(table, packets + done, count - done < ESP_BURST ? count - done : ESP_BURST);
    }
}

void vipsec_esp_outbound(struct vipsec_sa_table *table, int reader, struct vipsec_packet *packets, size_t count) {
    sa_reader_enter(table, reader);
    esp_outbound(table, packets, count);
    sa_reader_exit(table, reader);
}
