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
 * With many SAs, what a burst will touch is fetched ahead: no more at a time than the core can wait for, while it works
 * on other packets. AHEAD packets before its turn the lines that change, at its turn those of the key: the cipher comes
 * after the whole burst. The first line of struct sa is there in both.
 */
enum { ESP_AHEAD = 8 };

static inline void esp_prefetch_live(const struct sa *sa) {
    if (sa != NULL) {
        __builtin_prefetch(sa_live_of(sa), 1);
        if (sa->flags & SA_LIMITED) {
            __builtin_prefetch(&sa->packets_soft);
        }
    }
}

static inline void esp_prefetch_key(const struct sa *sa, uint32_t len) {
    const uint8_t *key = (const uint8_t *)sa_key_of(sa_live_of(sa));
    /* Powers for four blocks, AAD and lengths; round keys of AES-128. */
    const uint8_t *at = key + offsetof(struct vipsec_gcm_key, round_key) - 144;
    __builtin_prefetch(at);
    __builtin_prefetch(at + 64);
    __builtin_prefetch(at + 128);
    __builtin_prefetch(at + 192);
    __builtin_prefetch(at + 256);
    for (uint32_t covered = 128; covered < len && at > key; covered += 64) {
        at -= 64;
        __builtin_prefetch(at);
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
