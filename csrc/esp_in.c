/*
 * ESP inbound (RFC 4303 3.4; tunnel exit: RFC 6040; UDP: RFC 3948). The same refusals in the same order as
 * ipsec/process.py, packet by packet, although a whole burst is decrypted at once:
 *
 *   prepare   guesses, without the SA's lock, what the sequence number will be, and makes the cipher's operation
 *   (cipher)  all that may be authentic
 *   settle    decides under the lock, in the order of the packets. Where packets before it have moved the window so
 *             far that the guess was wrong, the packet is opened again by itself.
 */
#include "checksum.h"
#include "esp.h"

/* ---- one packet ------------------------------------------------------------------------------ */

struct opening {
    struct vipsec_packet *packet;
    const struct sa *sa;
    struct sa_live *live;
    uint64_t sequence;  /* what the operation was made for */
    uint32_t plain_len; /* 0: an impossible length */
    uint32_t id;
    bool tried; /* the operation went through the cipher */
    uint8_t reason;
    struct esp_found found;
};

/* What an authentic payload stands for. */
struct outcome {
    uint32_t len; /* of the payload that counts */
    int reason;
    uint8_t next_header;
    int8_t mark; /* congestion mark that the inner packet gets; -1: as it is */
};

/* RFC 6040 figure 4: [inner][outer], -1: the packet is dropped. 0 Not-ECT, 1 ECT(1), 2 ECT(0), 3 CE. */
static const int8_t decapsulated[4][4] = {{0, 0, 0, -1}, {1, 1, 1, 3}, {2, 1, 2, 3}, {3, 3, 3, 3}};

/* RFC 4303 2.7: in transport mode padding for traffic flow confidentiality can only be told from the payload when the
 * next layer has a length: UDP or IP-in-IP, possibly behind extension headers. A length that makes no sense is left to
 * the layer that it belongs to. */
static uint32_t without_tfc(const uint8_t *payload, uint32_t len, uint8_t next_header) {
    struct ip_chain chain;
    struct ip_header ip;
    if (ip_walk(payload, len, (struct ip_place){0, 0, next_header}, 0, &chain) != VIPSEC_REASON_NONE) {
        return len;
    }
    const uint32_t at = chain.end.offset;
    if (chain.end.protocol == IP_UDP && at + 6 <= len) {
        const uint32_t length = load_be16(payload + at + 4);
        return length >= IP_UDP_LEN && at + length < len ? at + length : len;
    }
    if ((chain.end.protocol == IP_IPV4 || chain.end.protocol == IP_IPV6) &&
        ip_parse(payload + at, len - at, &ip) == VIPSEC_REASON_NONE) {
        return at + ip.len;
    }
    return len;
}

static inline bool padding_is_right(const uint8_t *padding, uint32_t len) {
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < len; i++) {
        wrong |= padding[i] ^ (i + 1);
    }
    return wrong == 0;
}

/* Looks at an authentic plaintext; writes nothing. */
static inline struct outcome judge(const struct opening *o, const uint8_t *plain) {
    const uint32_t padding = plain[o->plain_len - 2];
    struct outcome out = {0, VIPSEC_REASON_NONE, plain[o->plain_len - 1], -1};
    if (padding + 2 > o->plain_len || !padding_is_right(plain + o->plain_len - 2 - padding, padding)) {
        out.reason = VIPSEC_REASON_BAD_PADDING;
        return out;
    }
    out.len = o->plain_len - 2 - padding;
    if (out.next_header == IP_NO_NEXT_HEADER) {
        out.reason = VIPSEC_REASON_DUMMY;
        return out;
    }
    if ((o->sa->flags & SA_TUNNEL) == 0) {
        out.len = without_tfc(plain, out.len, out.next_header);
        return out;
    }
    if (out.next_header != IP_IPV4 && out.next_header != IP_IPV6) {
        out.reason = VIPSEC_REASON_BAD_NEXT_HEADER;
        return out;
    }
    struct ip_header inner;
    if (ip_parse(plain, out.len, &inner) != VIPSEC_REASON_NONE ||
        inner.version != (out.next_header == IP_IPV4 ? 4 : 6)) {
        out.reason = VIPSEC_REASON_BAD_INNER;
        return out;
    }
    out.len = inner.len; /* without padding for traffic flow confidentiality */
    if ((o->sa->flags & SA_ECN) != 0) {
        out.mark = decapsulated[inner.traffic_class & 3][o->found.traffic_class & 3];
        out.reason = out.mark < 0 ? VIPSEC_REASON_CONGESTION : VIPSEC_REASON_NONE;
    }
    return out;
}

static inline void set_mark(uint8_t *inner, unsigned mark) {
    const uint16_t before = load_be16(inner);
    const bool v4 = inner[0] >> 4 == 4;
    const uint16_t after = (uint16_t)(v4 ? (before & ~3u) | mark : (before & ~0x30u) | mark << 4);
    if (before != after) {
        store_be16(inner, after);
        if (v4) {
            store_be16(inner + 10, checksum_update(load_be16(inner + 10), before, after));
        }
    }
}

/* Puts the IP header of a transport mode packet in front of its payload. Returns where it begins. */
static uint8_t *rejoin(const struct esp_found *found, uint8_t *data, uint8_t *payload, uint32_t len,
                       uint8_t next_header) {
    uint32_t head_len = found->head_end, protocol_at = found->protocol_at;
    uint8_t *head;
    if (found->hole != 0) {
        const uint32_t rest = found->head_end - found->hole - 8;
        head_len -= 8;
        protocol_at -= protocol_at > found->hole ? 8 : 0;
        head = payload - head_len;
        const uint8_t kind = data[found->hole];
        memmove(payload - rest, data + found->hole + 8, rest);
        memmove(head, data, found->hole);
        head[found->hole_named_at] = kind;
    } else {
        head = payload - head_len;
        memmove(head, data, head_len);
    }
    head[protocol_at] = next_header;
    if (found->version == 4) {
        store_be16(head + 2, (uint16_t)(head_len + len));
        checksum_ipv4(head);
    } else {
        store_be16(head + 4, (uint16_t)(head_len - IP_V6_LEN + len));
    }
    return head;
}

static inline void deliver(const struct opening *o, const struct outcome *out) {
    struct vipsec_packet *packet = o->packet;
    const uint32_t whole = packet->len;
    uint8_t *payload = packet->data + o->found.header.offset + ESP_PREFIX, *begin = payload;
    if ((o->sa->flags & SA_TUNNEL) == 0) {
        begin = rejoin(&o->found, packet->data, payload, out->len, out->next_header);
    } else if (out->mark >= 0) {
        set_mark(payload, (unsigned)out->mark);
    }
    const uint32_t cut = (uint32_t)(begin - packet->data), len = (uint32_t)(payload - begin) + out->len;
    packet->data = begin;
    packet->len = len;
    packet->headroom += cut;
    packet->tailroom += whole - cut - len;
    packet->next_header = out->next_header;
    packet->sequence = o->sequence;
}

/* ---- a burst --------------------------------------------------------------------------------- */

static inline void make_op(const struct opening *o, struct vipsec_gcm_op *op) {
    uint8_t *esp = o->packet->data + o->found.header.offset;
    esp_fill_op(op, o->sa, o->live, esp + ESP_PREFIX, o->plain_len, o->sequence,
                load_be64(esp + ESP_HEADER_LEN));
}

static inline bool guess(const struct opening *o, uint64_t *sequence) {
    const struct sa_live *live = o->live;
    const struct replay_ring *ring = atomic_load_explicit(&live->ring, memory_order_acquire);
    return replay_check(ring, sa_get(&live->sequence), (o->sa->flags & SA_ESN) != 0,
                        o->found.header.sequence, sequence);
}

/* Refusals that need neither sequence number nor lock; otherwise the operation, if the packet may pass. */
static inline int prepare(struct opening *o, struct vipsec_gcm_op *op) {
    const struct vipsec_esp_found *header = &o->found.header;
    const struct sa *sa = o->sa;
    if (header->in_udp && (sa->flags & SA_UDP) == 0) {
        return VIPSEC_REASON_NOT_IPSEC;
    }
    if (o->found.version == 4 && checksum_words(o->packet->data, o->found.header_len / 4u) != 0xffff) {
        return VIPSEC_REASON_MALFORMED; /* wrong checksum in the outer header */
    }
    const uint32_t size = header->end - header->offset, around = ESP_PREFIX + sa->icv_len;
    o->plain_len = size > around && (size - around) % 4 == 0 ? size - around : 0;
    o->tried = guess(o, &o->sequence) && o->plain_len != 0;
    if (o->tried) {
        make_op(o, op);
    }
    return VIPSEC_REASON_NONE;
}

/* The verdict, under the lock. `again`: the guess was wrong; nothing is decided. */
static inline int decide(struct opening *o, const struct outcome *out, bool authentic, bool *again) {
    struct sa_live *live = o->live;
    uint64_t sequence;
    *again = false;
    o->packet->soft_expired = sa_soft_expired(o->sa, live);
    if (o->reason != VIPSEC_REASON_NONE) {
        return o->reason;
    }
    const int stopped = sa_stopped_by(o->sa, live);
    if (stopped != VIPSEC_REASON_NONE) {
        return stopped;
    }
    if (!guess(o, &sequence)) {
        return VIPSEC_REASON_REPLAY;
    }
    if (o->plain_len == 0) {
        return VIPSEC_REASON_MALFORMED;
    }
    if (!o->tried || sequence != o->sequence) {
        o->sequence = sequence;
        *again = true;
        return VIPSEC_REASON_NONE;
    }
    if (!authentic) {
        return VIPSEC_REASON_BAD_ICV;
    }
    struct replay_ring *ring = atomic_load_explicit(&live->ring, memory_order_relaxed);
    sa_set(&live->sequence, replay_accept(ring, sa_get(&live->sequence), sequence));
    /* Dummies and congested packets passed every check and are discarded all the same. */
    if (out->reason == VIPSEC_REASON_NONE || out->reason == VIPSEC_REASON_DUMMY ||
        out->reason == VIPSEC_REASON_CONGESTION) {
        sa_count(live, o->plain_len);
        o->packet->soft_expired = sa_soft_expired(o->sa, live);
    }
    return out->reason;
}

/* Opens the packet under the number that `decide` found, which another guess may have been before. */
static bool open_again(const struct vipsec_gcm *engine, struct opening *o, bool was_opened, struct vipsec_gcm_op *op) {
    if (was_opened) {
        vipsec_gcm_seal(engine, op, 1); /* the same bytes under the same number: as it arrived */
    }
    o->tried = true;
    make_op(o, op);
    return vipsec_gcm_open(engine, op, 1) == 0;
}

/* Verdicts in the order of the packets; `ops`: what the cipher did, in the same order, and one more to work with. */
static void settle(const struct vipsec_gcm *engine, struct opening *openings, size_t count,
                   struct vipsec_gcm_op *ops) {
    struct outcome outcomes[ESP_BURST];
    struct vipsec_gcm_op *own[ESP_BURST];
    struct sa_live *held = NULL;
    for (size_t i = 0, used = 0; i < count; i++) {
        struct opening *o = &openings[i];
        own[i] = o->tried ? &ops[used++] : &ops[ESP_BURST];
        if (o->tried && own[i]->result == VIPSEC_GCM_OK) {
            outcomes[i] = judge(o, own[i]->out);
        }
    }
    for (size_t i = 0; i < count; i++) {
        struct opening *o = &openings[i];
        bool authentic = o->tried && own[i]->result == VIPSEC_GCM_OK, again;
        held = sa_hold(held, o->live);
        while (o->reason = (uint8_t)decide(o, &outcomes[i], authentic, &again), again) {
            sa_unlock(held);
            authentic = open_again(engine, o, authentic, own[i]);
            if (authentic) {
                outcomes[i] = judge(o, own[i]->out);
            }
            sa_lock(held);
        }
    }
    if (held != NULL) {
        sa_unlock(held);
    }
    for (size_t i = 0; i < count; i++) {
        struct opening *o = &openings[i];
        o->packet->reason = o->reason;
        if (o->reason == VIPSEC_REASON_NONE) {
            deliver(o, &outcomes[i]);
            continue;
        }
        sa_refuse(o->sa, o->reason);
        if (o->tried && own[i]->result == VIPSEC_GCM_OK) {
            vipsec_gcm_seal(engine, own[i], 1); /* no plaintext of a refused packet stays */
        }
    }
}

/* Locates each packet's header, unless `known` has it. Returns how many have one that may belong to an SA here. */
static size_t locate_all(struct vipsec_sa_table *table, struct vipsec_packet *packets, const struct esp_found *known,
                         size_t count, struct opening *openings, bool many) {
    size_t located = 0;
    for (size_t i = 0; i < count; i++) {
        struct opening *o = &openings[located];
        int reason = VIPSEC_REASON_NONE;
        if (known != NULL) {
            o->found = known[i];
        } else {
            reason = esp_locate(packets[i].data, packets[i].len, &o->found);
        }
        o->packet = &packets[i];
        packets[i].known = 0;
        packets[i].reason = (uint8_t)(reason == VIPSEC_REASON_NONE ? VIPSEC_REASON_UNKNOWN_SA : reason);
        if (reason == VIPSEC_REASON_NONE && o->found.header.protocol == IP_ESP) {
            located++;
            if (many) {
                fetch_line((const void *)sa_index_place(table, o->found.header.spi));
            }
        }
    }
    return located;
}

static void find_sas(struct vipsec_sa_table *table, struct opening *openings, size_t count, bool many) {
    struct sa *_Atomic *places[ESP_BURST];
    for (size_t i = 0; i < count; i++) {
        openings[i].id = sa_number_of(table, openings[i].found.header.spi);
        places[i] = sa_place(table->inbound, openings[i].id);
        if (many) {
            fetch_line(places[i]);
        }
    }
    for (size_t i = 0; i < count; i++) {
        openings[i].sa = sa_at(places[i]);
    }
}

static inline void fetch(const struct opening *o) {
    const struct vipsec_esp_found *header = &o->found.header;
    esp_fetch(o->sa, header->end - header->offset - ESP_PREFIX - 16);
}

/* All that are to be opened, and their operations. Returns how many; they move to the front. */
static size_t prepare_all(struct opening *openings, size_t count, struct vipsec_gcm_op *ops, size_t *tried, bool many) {
    size_t found = 0;
    for (size_t i = 0; many && i < count && i < ESP_AHEAD; i++) {
        fetch(&openings[i]);
    }
    for (size_t i = 0; i < count; i++) {
        struct opening *o = &openings[found];
        if (many && i + ESP_AHEAD < count) {
            fetch(&openings[i + ESP_AHEAD]);
        }
        if (many && i + ESP_AHEAD / 2 < count) {
            esp_fetch_rest(openings[i + ESP_AHEAD / 2].sa);
        }
        const struct sa *sa = openings[i].sa;
        /* A number may have been given to another SA since the index was read. */
        if (sa == NULL || load_be32(sa->spi) != openings[i].found.header.spi) {
            continue;
        }
        if (found != i) {
            *o = openings[i];
        }
        o->packet->known = 1;
        o->packet->sa_id = o->id;
        o->live = sa_live_of(sa);
        o->tried = false;
        o->reason = (uint8_t)prepare(o, &ops[*tried]);
        *tried += o->tried;
        found++;
    }
    return found;
}

static void burst(struct vipsec_sa_table *table, struct vipsec_packet *packets, const struct esp_found *known,
                  size_t count) {
    struct opening openings[ESP_BURST];
    struct vipsec_gcm_op ops[ESP_BURST + 1];
    size_t tried = 0;
    const bool many = sa_many(table);
    const size_t located = locate_all(table, packets, known, count, openings, many);
    find_sas(table, openings, located, many);
    const size_t found = prepare_all(openings, located, ops, &tried, many);
    table->engine->open(ops, tried, many);
    settle(table->engine, openings, found, ops);
}

void esp_inbound(struct vipsec_sa_table *table, struct vipsec_packet *packets, size_t count) {
    for (size_t done = 0; done < count; done += ESP_BURST) {
        burst(table, packets + done, NULL, count - done < ESP_BURST ? count - done : ESP_BURST);
    }
}

void esp_inbound_located(struct vipsec_sa_table *table, struct vipsec_packet *packets,
                         const struct esp_found *located, size_t count) {
    for (size_t done = 0; done < count; done += ESP_BURST) {
        burst(table, packets + done, located + done, count - done < ESP_BURST ? count - done : ESP_BURST);
    }
}

void vipsec_esp_inbound(struct vipsec_sa_table *table, int reader, struct vipsec_packet *packets, size_t count) {
    sa_reader_enter(table, reader);
    esp_inbound(table, packets, count);
    sa_reader_exit(table, reader);
}
