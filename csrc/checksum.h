/*
 * The Internet checksum (RFC 1071).
 *
 * A "sum" is the ones' complement sum of 16-bit big-endian words, folded to 16 bits: 0 over zeros only, else
 * 1..0xffff. A "checksum" is the complement of a sum. Odd data counts as if a zero byte followed.
 */
#ifndef VIPSEC_CHECKSUM_H
#define VIPSEC_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

#include "bytes.h"

/* Folds a plain addition of sums and words. 0 stays 0, nothing else becomes 0. */
static inline uint16_t checksum_fold(uint64_t total) {
    total = (total & 0xffffffff) + (total >> 32);
    total = (total & 0xffff) + (total >> 16 & 0xffff) + (total >> 32);
    total = (total & 0xffff) + (total >> 16);
    return (uint16_t)((total & 0xffff) + (total >> 16));
}

/* Sum of `len` bytes at any address. */
uint16_t checksum_sum(const uint8_t *data, size_t len);

/* The same while copying; the two must not overlap. */
uint16_t checksum_copy(uint8_t *to, const uint8_t *from, size_t len);

/* Sum of a few 32-bit words, without a call: headers and addresses. */
static inline uint16_t checksum_words(const uint8_t *data, size_t words) {
    uint64_t total = 0;
    for (size_t i = 0; i < words; i++) {
        total += load_be32(data + 4 * i);
    }
    return checksum_fold(total);
}

/* Sum of the pseudo header of TCP and UDP: source and destination as they stand in the IP header (8 bytes for
 * IPv4, 32 for IPv6), protocol, length of header and data. */
static inline uint16_t checksum_pseudo(const uint8_t *addresses, size_t size, uint8_t protocol, uint32_t length) {
    return checksum_fold((uint64_t)checksum_words(addresses, size / 4) + protocol + length);
}

/* Writes the header checksum of the IPv4 header; its IHL must be true. */
static inline void checksum_ipv4(uint8_t *header) {
    store_be16(header + 10, 0);
    store_be16(header + 10, (uint16_t)~checksum_words(header, header[0] & 15));
}

/* A checksum after one aligned 16-bit word that it covers has changed. A wrong one stays wrong (RFC 1624 (3)). */
static inline uint16_t checksum_update(uint16_t checksum, uint16_t old, uint16_t new) {
    return (uint16_t)~checksum_fold((uint64_t)(uint16_t)~checksum + (uint16_t)~old + new);
}

#endif
