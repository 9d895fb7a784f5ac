/* ESP on batches of packets, for callers who are inside a read section of the table. */
#ifndef VIPSEC_ESP_H
#define VIPSEC_ESP_H

#include "ip.h"
#include "sa_table.h"

enum {
    ESP_BURST = 64, /* packets that go through one call of the cipher */
    ESP_HEADER_LEN = 8,
    ESP_IV_LEN = 8,
    ESP_PREFIX = ESP_HEADER_LEN + ESP_IV_LEN,
};

/* What an ESP or AH header is found behind. */
struct esp_found {
    struct vipsec_esp_found header;
    uint32_t head_end;    /* where the IP header with its extension headers ends */
    uint32_t protocol_at; /* the byte there that says ESP, AH or UDP */
    uint32_t hole;        /* offset of an atomic Fragment header, which counts as taken away; 0: none */
    uint32_t hole_named_at; /* the byte in front that says that it is one */
    uint8_t version;
    uint8_t header_len;
    uint8_t traffic_class;
};

/* The outermost IPsec header: plain, behind IPv6 extension headers, or in UDP. 0 or enum vipsec_reason. */
int esp_locate(const uint8_t *packet, size_t len, struct esp_found *found);

/* vipsec_esp_outbound and vipsec_esp_inbound without their read section. */
void esp_outbound(struct vipsec_sa_table *table, struct vipsec_packet *packets, size_t count);
void esp_inbound(struct vipsec_sa_table *table, struct vipsec_packet *packets, size_t count);

/* Bytes of padding that make payload and trailer a multiple of 4 (RFC 4303 2.4). */
static inline uint32_t esp_padding(uint32_t payload_len) { return -(payload_len + 2) & 3; }

/* Brings the lines of an SA that a packet of `len` bytes will touch; the SA's own lines are there. */
static inline void esp_prefetch_sa(const struct sa *sa, uint32_t len) {
    const uint8_t *key = (const uint8_t *)sa->key;
    const uint8_t *at = key + offsetof(struct vipsec_gcm_key, round_key) - 144;
    __builtin_prefetch(sa->live, 1);
    __builtin_prefetch(at);
    __builtin_prefetch(at + 64);
    __builtin_prefetch(at + 128);
    __builtin_prefetch(at + 192);
    __builtin_prefetch(at + 256);
    __builtin_prefetch(key + sizeof *sa->key - 1);
    for (; len > 96 && at > key; len -= 64 < len ? 64 : len) {
        at -= 64;
        __builtin_prefetch(at);
    }
}

/* What a packet's operation has in common both ways. */
static inline void esp_fill_op(struct vipsec_gcm_op *op, const struct sa *sa, uint8_t *esp, uint32_t len,
                               uint64_t sequence) {
    uint8_t *payload = esp + ESP_PREFIX;
    op->key = sa->key;
    op->in = payload;
    op->out = payload;
    op->tag = payload + len;
    op->len = len;
    op->tag_len = sa->icv_len;
    memcpy(op->iv, sa->salt, sizeof sa->salt);
    memcpy(op->iv + sizeof sa->salt, esp + ESP_HEADER_LEN, ESP_IV_LEN);
    memcpy(op->aad, sa->spi, sizeof sa->spi);
    /* RFC 4106 5: SPI, sequence number; all 64 bits of it with ESN. */
    if (sa->flags & SA_ESN) {
        store_be64(op->aad + 4, sequence);
        op->aad_len = 12;
    } else {
        store_be32(op->aad + 4, (uint32_t)sequence);
        op->aad_len = 8;
    }
}

#endif
