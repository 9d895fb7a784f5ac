/* The hash of RSS for one key: the XOR of the 32-bit windows of the key that start at each set bit of the input. */
#ifndef VIPSEC_TOEPLITZ_H
#define VIPSEC_TOEPLITZ_H

#include <stddef.h>
#include <stdint.h>

enum { TOEPLITZ_MAX_WORDS = 9, TOEPLITZ_MAX_KEY = 4 * TOEPLITZ_MAX_WORDS + 4 };

/* The 64 bits of the key that a 32-bit word of input meets, the first of them lowest: the hash of that word stands,
 * its bits in reverse, in bits 31..62 of their carry-less product. */
struct toeplitz {
    uint64_t window[TOEPLITZ_MAX_WORDS];
};

/* A key shorter than the input needs is continued with zero bits; what is longer than TOEPLITZ_MAX_KEY is cut. */
void toeplitz_init(struct toeplitz *toeplitz, const uint8_t *key, size_t key_len);

/* Hash of `count` words of 4 octets, read as big-endian numbers; at most TOEPLITZ_MAX_WORDS. */
uint32_t toeplitz_hash(const struct toeplitz *toeplitz, const uint32_t *words, size_t count);

/* The same without special instructions. */
uint32_t toeplitz_hash_portable(const struct toeplitz *toeplitz, const uint32_t *words, size_t count);

#endif
