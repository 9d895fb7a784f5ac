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

/* The same for packets whose headers esp_locate has found. */
void esp_inbound_located(struct vipsec_sa_table *table, struct vipsec_packet *packets,
                         const struct esp_found *located, size_t count);

/* Bytes of padding that make payload and trailer a multiple of 4 (RFC 4303 2.4). */
static inline uint32_t esp_padding(uint32_t payload_len) { return -(payload_len + 2) & 3; }

/*
 * With many SAs, what a burst will touch is fetched ahead: never more at a time than the core can wait for, and all the
 * time, so that memory works while the core does. ESP_AHEAD packets before its turn what headers need and the hash
 * powers, half way what only some SAs need. The cipher asks for the round keys by itself.
 */
enum { ESP_AHEAD = 8 };

static inline void esp_fetch(const struct sa *sa, uint32_t len) {
    if (sa != NULL) {
        const struct sa_slot *slot = sa_slot_by_address(sa);
        fetch_line(sa);
        fetch_line(&slot->live);
        gcm_fetch_powers(&slot->key, &sa_rest_of(slot)->powers, len);
    }
}

static inline void esp_fetch_rest(const struct sa *sa) {
    if (sa != NULL) {
        if (sa->flags & SA_LIMITED) {
            fetch_line(sa_limits_of(sa));
        }
        if (sa->long_key) {
            fetch_line(sa_slot_of(sa)->key.round_key[GCM_MAX_ROUND_KEYS - 1]);
        }
    }
}

/* The cipher's operation on the `len` bytes of plaintext or ciphertext at `payload`, in place. */
static inline void esp_fill_op(struct vipsec_gcm_op *op, const struct sa *sa, const struct sa_live *live,
                               uint8_t *payload, uint32_t len, uint64_t sequence, uint64_t iv) {
    const bool esn = (sa->flags & SA_ESN) != 0;
    /* Nonce: salt, IV. AAD (RFC 4106 5): SPI, sequence number; all 64 bits of it with ESN. Three words in a row. */
    uint8_t *at = (uint8_t *)op + offsetof(struct vipsec_gcm_op, iv);
    store_be64(at, (uint64_t)load_be32(sa->salt) << 32 | iv >> 32);
    store_be64(at + 8, iv << 32 | load_be32(sa->spi));
    store_be64(at + 16, esn ? sequence : sequence << 32);
    op->key = sa_key_of(live);
    op->in = payload;
    op->out = payload;
    op->tag = payload + len;
    op->len = len;
    op->aad_len = esn ? 12 : 8;
    op->tag_len = sa->icv_len;
}

#endif
