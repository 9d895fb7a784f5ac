/* Sums in the order of the machine: the bytes of the folded result are swapped at the end (RFC 1071 2 (B)). */
#include "checksum.h"

#include <stdbool.h>

#include "vipsec.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { VECTOR_FROM = 64 }; /* bytes from which the vector loop pays */

/* What sum and copy share; `to` NULL: only sum. Always inlined, so that the test of `to` costs nothing. */
static inline __attribute__((always_inline)) uint64_t plain(uint8_t *to, const uint8_t *from, size_t len) {
    uint64_t total = 0, other = 0; /* each takes 2^32 words of 32 bits without overflow */
    for (; len >= 16; len -= 16, from += 16) {
        uint64_t a, b;
        memcpy(&a, from, 8);
        memcpy(&b, from + 8, 8);
        if (to != NULL) {
            memcpy(to, &a, 8);
            memcpy(to + 8, &b, 8);
            to += 16;
        }
        total += (a & 0xffffffff) + (a >> 32);
        other += (b & 0xffffffff) + (b >> 32);
    }
    total += other;
    for (; len >= 4; len -= 4, from += 4) {
        uint32_t word;
        memcpy(&word, from, 4);
        if (to != NULL) {
            memcpy(to, &word, 4);
            to += 4;
        }
        total += word;
    }
    if (len > 0) {
        uint8_t rest[4] = {from[0], len > 1 ? from[1] : 0, len > 2 ? from[2] : 0, 0};
        uint32_t word;
        memcpy(&word, rest, 4);
        if (to != NULL) {
            memcpy(to, rest, len);
        }
        total += word;
    }
    return total;
}

static inline uint16_t finish(uint64_t total) {
    const uint16_t native = checksum_fold(total);
    return load_be16(&native);
}

#if defined(__x86_64__)

#define AVX2 __attribute__((target("avx2")))

/* 32 bytes into a total: the low and the high half of each 64-bit lane are added apart, so nothing ever carries out. */
AVX2 static inline __attribute__((always_inline)) __m256i step(__m256i total, uint8_t *to, const uint8_t *from) {
    const __m256i low = _mm256_set1_epi64x(0xffffffff);
    const __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)from);
    if (to != NULL) {
        _mm256_storeu_si256((__m256i *)(void *)to, x);
    }
    return _mm256_add_epi64(total, _mm256_add_epi64(_mm256_and_si256(x, low), _mm256_srli_epi64(x, 32)));
}

AVX2 static inline __attribute__((always_inline)) uint64_t vector(uint8_t *to, const uint8_t *from, size_t len) {
    const bool copy = to != NULL;
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    for (; len >= 128; len -= 128, from += 128) {
        a = step(a, to, from);
        b = step(b, copy ? to + 32 : NULL, from + 32);
        c = step(c, copy ? to + 64 : NULL, from + 64);
        d = step(d, copy ? to + 96 : NULL, from + 96);
        to = copy ? to + 128 : NULL;
    }
    for (; len >= 32; len -= 32, from += 32) {
        a = step(a, to, from);
        to = copy ? to + 32 : NULL;
    }
    uint64_t lanes[4];
    _mm256_storeu_si256((__m256i *)(void *)lanes, _mm256_add_epi64(_mm256_add_epi64(a, b), _mm256_add_epi64(c, d)));
    return lanes[0] + lanes[1] + lanes[2] + lanes[3] + plain(to, from, len);
}

AVX2 static uint64_t vector_sum(const uint8_t *from, size_t len) {
    return vector(NULL, from, len);
}

AVX2 static uint64_t vector_copy(uint8_t *to, const uint8_t *from, size_t len) {
    return vector(to, from, len);
}

uint16_t checksum_sum(const uint8_t *data, size_t len) {
    if (len >= VECTOR_FROM && __builtin_cpu_supports("avx2")) {
        return finish(vector_sum(data, len));
    }
    return finish(plain(NULL, data, len));
}

uint16_t checksum_copy(uint8_t *to, const uint8_t *from, size_t len) {
    if (len >= VECTOR_FROM && __builtin_cpu_supports("avx2")) {
        return finish(vector_copy(to, from, len));
    }
    return finish(plain(to, from, len));
}

#else

uint16_t checksum_sum(const uint8_t *data, size_t len) { return finish(plain(NULL, data, len)); }

uint16_t checksum_copy(uint8_t *to, const uint8_t *from, size_t len) { return finish(plain(to, from, len)); }

#endif

uint16_t vipsec_checksum_sum(uint8_t *to, const uint8_t *from, size_t len) {
    return to != NULL ? checksum_copy(to, from, len) : checksum_sum(from, len);
}
