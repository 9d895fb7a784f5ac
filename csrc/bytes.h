/* Integers of stated byte order at any address. Compilers make one instruction of each. */
#ifndef VIPSEC_BYTES_H
#define VIPSEC_BYTES_H

#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define BYTES_BE(bits, value) __builtin_bswap##bits(value)
#define BYTES_LE(bits, value) (value)
#else
#define BYTES_BE(bits, value) (value)
#define BYTES_LE(bits, value) __builtin_bswap##bits(value)
#endif

#define BYTES_PAIR(order, ORDER, bits)                                        \
    static inline uint##bits##_t load_##order##bits(const void *from) {       \
        uint##bits##_t value;                                                 \
        memcpy(&value, from, sizeof value);                                   \
        return BYTES_##ORDER(bits, value);                                    \
    }                                                                         \
    static inline void store_##order##bits(void *to, uint##bits##_t number) { \
        const uint##bits##_t value = BYTES_##ORDER(bits, number);             \
        memcpy(to, &value, sizeof value);                                     \
    }

/* uint16_t load_be16(const void *), void store_be16(void *, uint16_t), and so on. */
BYTES_PAIR(be, BE, 16)
BYTES_PAIR(be, BE, 32)
BYTES_PAIR(be, BE, 64)
BYTES_PAIR(le, LE, 16)
BYTES_PAIR(le, LE, 32)
BYTES_PAIR(le, LE, 64)

#undef BYTES_PAIR

#endif
