/*
 * libFuzzer harness: ESP of csrc/ on packets from a hostile network and from a hostile peer.
 *
 * An input is HEADER bytes that choose an SA and what is done, then a packet:
 *   RAW        the packet as it comes off the wire
 *   AUTHENTIC  the bytes are plaintext under a right ICV, behind an IP header that the input makes, too
 *   OUTBOUND   the packet is protected first, then opened
 *
 * Every packet stands in a block of exactly the size that the contract asks for, so that AddressSanitizer sees each
 * access outside. Checked: what comes out is one IP packet with true lengths; what is refused has kept all its bytes
 * and is counted once; nothing is opened twice.
 */
#include <assert.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#undef NDEBUG
#include "bytes.h"
#include "checksum.h"
#include "vipsec.h"

enum { HEADER = 8, SPI = 0x31323334, RAW = 0, AUTHENTIC = 1, OUTBOUND = 2, KINDS = 3, MOST = 3000 };

/* The header bytes. */
struct choice {
    uint8_t kind;    /* remainder by KINDS; upper bits: how many bytes of the input are the IP header */
    uint8_t options; /* 7 bits; the eighth: tunnel mode */
    uint8_t shape;   /* ICV length, outer family, key length, direction of things */
    uint8_t window;
    uint32_t sequence;
};

static struct vipsec_sa_table *table;
static int reader;

static struct vipsec_sa_config config_of(const struct choice *choice, int direction) {
    static const uint8_t icv_lens[] = {16, 12, 8, 16}, key_lens[] = {16, 24, 32, 16};
    static const uint32_t windows[] = {0, 1, 64, 65, 128, 1024, 4095, 4096};
    struct vipsec_sa_config c = {
        .direction = (uint8_t)direction,
        .is_tunnel = choice->options >> 7,
        .tunnel_family = choice->shape & 16 ? 6 : 4,
        .icv_len = icv_lens[choice->shape & 3],
        .key_len = key_lens[choice->shape >> 2 & 3],
        .df = choice->shape >> 5 & 1,
        .spi = SPI,
        .options = choice->options & 0x7f,
        .replay_window = direction == VIPSEC_INBOUND ? windows[choice->window % 8] : 0,
        .packets_soft = choice->window >> 3 & 3,
        .packets_hard = choice->window >> 5 & 3,
        .first_sequence = 1,
        .udp_sport = 4500,
        .udp_dport = 4500,
    };
    if (!c.is_tunnel) {
        c.options &= VIPSEC_OPTION_ESN | VIPSEC_OPTION_UDP_ENCAP | VIPSEC_OPTION_SA_LIFETIME;
    }
    if (c.replay_window == 0 && direction == VIPSEC_INBOUND) {
        c.options &= ~(uint32_t)VIPSEC_OPTION_ESN;
    }
    memset(c.key, 0x42, sizeof c.key);
    return c;
}

/* What can be said of any packet that was let through. */
static void check_ip(const struct vipsec_packet *packet) {
    assert(packet->len >= 20);
    if (packet->data[0] >> 4 == 4) {
        assert(load_be16(packet->data + 2) == packet->len);
    } else {
        assert(packet->data[0] >> 4 == 6 && load_be16(packet->data + 4) + 40u == packet->len);
    }
}

static uint64_t refused(int direction) {
    struct vipsec_sa_state state;
    uint64_t sum = 0;
    assert(vipsec_sa_read(table, direction, 0, &state) == VIPSEC_SA_OK);
    for (size_t i = 0; i < VIPSEC_REASON_COUNT; i++) {
        sum += state.refused[i];
    }
    return sum;
}

/* One packet through one direction, in a block of its own; the result is a new block, or NULL. */
static uint8_t *pass(int direction, const uint8_t *bytes, size_t len, size_t *result_len) {
    const size_t headroom = direction == VIPSEC_OUTBOUND ? VIPSEC_HEADROOM : 0;
    const size_t tailroom = direction == VIPSEC_OUTBOUND ? VIPSEC_TAILROOM : 0;
    uint8_t *block = malloc(headroom + len + tailroom + !len), *result = NULL;
    struct vipsec_packet packet = {
        .data = block + headroom, .len = (uint32_t)len, .headroom = (uint32_t)headroom, .tailroom = (uint32_t)tailroom};
    const uint64_t before = refused(direction);
    memset(block, 0, headroom + len + tailroom);
    memcpy(packet.data, bytes, len);
    (direction == VIPSEC_OUTBOUND ? vipsec_esp_outbound : vipsec_esp_inbound)(table, reader, &packet, 1);
    assert(packet.reason < VIPSEC_REASON_COUNT);
    assert(refused(direction) - before == (packet.reason != VIPSEC_REASON_NONE && packet.known));
    assert(packet.data - packet.headroom == block);
    assert(packet.headroom + packet.len + packet.tailroom == headroom + len + tailroom);
    if (packet.reason == VIPSEC_REASON_NONE) {
        check_ip(&packet);
        result = malloc(packet.len);
        memcpy(result, packet.data, packet.len);
        *result_len = packet.len;
    } else {
        assert(packet.len == len && memcmp(packet.data, bytes, len) == 0);
    }
    free(block);
    return result;
}

/* A packet whose ICV is right: `head_len` bytes of input behind a fixed IPv6 or IPv4 header, then ESP around the rest. */
static size_t authentic(const struct choice *choice, const struct vipsec_sa_config *sa, const uint8_t *bytes, size_t len,
                        uint8_t *out) {
    const size_t extra = len < (choice->kind >> 4 & 3) * 8u ? 0 : (choice->kind >> 4 & 3) * 8u;
    const bool v6 = (choice->shape & 64) != 0, udp = (choice->shape & 128) != 0;
    const uint32_t plain_len = (uint32_t)(len - extra) & ~3u;
    uint8_t *at = out + (v6 ? 40 : 20), *esp;
    struct vipsec_gcm_op op = {.len = plain_len, .tag_len = sa->icv_len};
    memset(out, 0, 64);
    at += extra; /* extension headers, or IPv4 options */
    memcpy(at - extra, bytes, extra);
    esp = udp ? at + 8 : at;
    store_be32(esp, SPI);
    store_be32(esp + 4, choice->sequence);
    memset(esp + 8, 7, 8);
    memcpy(esp + 16, bytes + extra, plain_len);
    const size_t esp_len = 16 + plain_len + sa->icv_len, total = (size_t)(esp - out) + esp_len;
    if (udp) {
        memset(at, 0, 8);
        store_be16(at + 4, (uint16_t)(8 + esp_len));
    }
    if (v6) {
        store_be32(out, 6u << 28 | (uint32_t)(choice->window & 3) << 20);
        store_be16(out + 4, (uint16_t)(total - 40));
        out[6] = extra ? choice->window : udp ? 17 : 50;
    } else {
        out[0] = (uint8_t)(0x45 + extra / 4);
        out[1] = choice->window & 3;
        store_be16(out + 2, (uint16_t)total);
        out[9] = udp ? 17 : 50;
        checksum_ipv4(out);
    }
    struct vipsec_gcm_key *key = vipsec_gcm_key_new(vipsec_gcm_default(), sa->key, sa->key_len);
    op.key = key;
    op.in = op.out = esp + 16;
    op.tag = esp + 16 + plain_len;
    memcpy(op.iv + 4, esp + 8, 8);
    memcpy(op.aad, esp, 4);
    op.aad_len = (sa->options & VIPSEC_OPTION_ESN) != 0 ? 12 : 8;
    store_be32(op.aad + op.aad_len - 4, choice->sequence);
    assert(vipsec_gcm_seal(vipsec_gcm_default(), &op, 1) == 0);
    vipsec_gcm_key_free(key);
    return total;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t made[MOST + 200];
    struct choice choice;
    if (size < HEADER || size > MOST) {
        return 0;
    }
    memcpy(&choice, data, HEADER);
    data += HEADER;
    size -= HEADER;
    if (table == NULL) {
        table = vipsec_sa_table_new(vipsec_gcm_default(), 1);
        reader = vipsec_reader_register(table);
    }
    struct vipsec_sa_config in = config_of(&choice, VIPSEC_INBOUND), out = config_of(&choice, VIPSEC_OUTBOUND);
    out.options = (out.options & ~(uint32_t)VIPSEC_OPTION_ESN) | (in.options & VIPSEC_OPTION_ESN);
    assert(vipsec_sa_add(table, 0, &in) == VIPSEC_SA_OK && vipsec_sa_add(table, 0, &out) == VIPSEC_SA_OK);
    size_t len = size, opened_len;
    uint8_t *sealed = NULL, *opened;
    const uint8_t *packet = data;
    if (choice.kind % KINDS == OUTBOUND) {
        packet = sealed = pass(VIPSEC_OUTBOUND, data, size, &len);
    } else if (choice.kind % KINDS == AUTHENTIC) {
        len = authentic(&choice, &in, data, size, made);
        packet = made;
    }
    if (packet != NULL && (opened = pass(VIPSEC_INBOUND, packet, len, &opened_len)) != NULL) {
        free(opened);
        opened = pass(VIPSEC_INBOUND, packet, len, &opened_len);
        assert(opened == NULL || in.replay_window == 0);
        free(opened);
    }
    free(sealed);
    assert(vipsec_sa_remove(table, VIPSEC_INBOUND, 0) == VIPSEC_SA_OK);
    assert(vipsec_sa_remove(table, VIPSEC_OUTBOUND, 0) == VIPSEC_SA_OK);
    return 0;
}
