/*
 * 128-bit pieces that the three x86 engines share. Include after the target pragma of the file.
 *
 * Field elements are held byte-reversed and multiplied by x (H is stored as H * x), so that a
 * product of two needs no shift before the reduction (Gueron and Kounavis, "Intel carry-less
 * multiplication instruction and its usage for computing the GCM mode").
 */
#ifndef VIPSEC_GCM_X86_H
#define VIPSEC_GCM_X86_H

#include <immintrin.h>
#include <string.h>

#include "gcm.h"

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* The reduction polynomial in the reversed representation. */
#define GCM_POLY _mm_set_epi64x((long long)0xc200000000000000ULL, 1)

INLINE __m128i load16(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
INLINE void store16(void *p, __m128i x) { _mm_storeu_si128((__m128i *)p, x); }

INLINE uint64_t load_u64(const uint8_t *p) {
    uint64_t x;
    memcpy(&x, p, 8);
    return x;
}

INLINE uint64_t load_u32(const uint8_t *p) {
    uint32_t x;
    memcpy(&x, p, 4);
    return x;
}

INLINE __m128i reverse16(__m128i x) {
    return _mm_shuffle_epi8(x, _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}

/* n bytes, 0..15, zero-extended; reads those bytes only. */
INLINE __m128i load_short(const uint8_t *p, size_t n) {
    uint64_t low = 0, high = 0;
    if (n >= 8) {
        low = load_u64(p);
        high = load_u64(p + n - 8) >> 1 >> (127 - 8 * n); /* bytes 8..n-1; none when n is 8 */
    } else if (n >= 4) {
        low = load_u32(p) | load_u32(p + n - 4) << (8 * (n - 4));
    } else if (n > 0) {
        low = (uint64_t)p[0] | (uint64_t)p[n / 2] << (8 * (n / 2)) | (uint64_t)p[n - 1] << (8 * (n - 1));
    }
    return _mm_set_epi64x((long long)high, (long long)low);
}

/* The first n bytes, 0..15. */
INLINE void store_short(uint8_t *p, __m128i x, size_t n) {
    uint64_t low = (uint64_t)_mm_cvtsi128_si64(x);
    if (n >= 8) {
        uint64_t high = (uint64_t)_mm_extract_epi64(x, 1);
        uint64_t last = n == 8 ? low : low >> (8 * (n - 8)) | high << (8 * (16 - n));
        memcpy(p, &low, 8);
        memcpy(p + n - 8, &last, 8);
    } else if (n >= 4) {
        uint32_t first = (uint32_t)low, last = (uint32_t)(low >> (8 * (n - 4)));
        memcpy(p, &first, 4);
        memcpy(p + n - 4, &last, 4);
    } else {
        for (size_t i = 0; i < n; i++) {
            p[i] = (uint8_t)(low >> (8 * i));
        }
    }
}

/* Powers H^k, H^(k-1), ... stand behind one another. */
INLINE const uint8_t *power(const struct vipsec_gcm_key *key, size_t k) {
    return (const uint8_t *)key->powers + (GCM_POWERS - k) * 16;
}

/* The same for k up to `most`, which is known when this is compiled: from the key's own lines if they have them. */
INLINE const uint8_t *power_up_to(size_t most, const struct vipsec_gcm_key *key, size_t k) {
    return most <= GCM_LOW_POWERS ? (const uint8_t *)key + (GCM_LOW_POWERS - k) * 16 : power(key, k);
}

/* IV and block counter 1, the counter block that encrypts the tag. */
INLINE __m128i first_counter(const struct vipsec_gcm_op *op) {
    return _mm_insert_epi32(load16((const uint8_t *)op + offsetof(struct vipsec_gcm_op, iv)), 0x01000000, 3);
}

/* For each AAD length: byte 15 - i of the reversed block comes from byte 4 + i of the load, the rest is zero. */
#define Z 0x80
static const uint8_t aad_shuffle[VIPSEC_GCM_MAX_AAD + 1][16] = {
    {Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z},     {Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, 4},
    {Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, 5, 4},     {Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, 6, 5, 4},
    {Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, 7, 6, 5, 4},     {Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, 8, 7, 6, 5, 4},
    {Z, Z, Z, Z, Z, Z, Z, Z, Z, Z, 9, 8, 7, 6, 5, 4},     {Z, Z, Z, Z, Z, Z, Z, Z, Z, 10, 9, 8, 7, 6, 5, 4},
    {Z, Z, Z, Z, Z, Z, Z, Z, 11, 10, 9, 8, 7, 6, 5, 4},   {Z, Z, Z, Z, Z, Z, Z, 12, 11, 10, 9, 8, 7, 6, 5, 4},
    {Z, Z, Z, Z, Z, Z, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4}, {Z, Z, Z, Z, Z, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4},
    {Z, Z, Z, Z, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4},
};
#undef Z

/* The AAD block, reversed. An AAD of no bytes is a zero block with weight zero: it changes nothing. */
INLINE __m128i aad_block(const struct vipsec_gcm_op *op) {
    __m128i x = load16((const uint8_t *)op + offsetof(struct vipsec_gcm_op, aad) - 4);
    return _mm_shuffle_epi8(x, load16(aad_shuffle[op->aad_len]));
}

/* The block of both lengths in bits, reversed. */
INLINE __m128i length_block(const struct vipsec_gcm_op *op) {
    return _mm_set_epi64x((long long)op->aad_len * 8, (long long)op->len * 8);
}

INLINE void write_tag(const struct vipsec_gcm_op *op, __m128i tag) {
    if (op->tag_len == 16) {
        store16(op->tag, tag);
    } else {
        store_short(op->tag, tag, op->tag_len);
    }
}

/* Whether the first tag_len bytes are those of the packet; no early exit. */
INLINE bool tag_matches(const struct vipsec_gcm_op *op, __m128i tag) {
    __m128i got = op->tag_len == 16 ? load16(op->tag) : load_short(op->tag, op->tag_len);
    __m128i differs = _mm_xor_si128(got, tag);
    if (op->tag_len != 16) {
        /* Bytes behind tag_len do not count. */
        const __m128i index = _mm_set_epi8(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        differs = _mm_and_si128(differs, _mm_cmpgt_epi8(_mm_set1_epi8((char)op->tag_len), index));
    }
    return _mm_testz_si128(differs, differs) != 0;
}

/* low + middle * 2^64 + high * 2^128 modulo the polynomial. */
INLINE __m128i reduce16(__m128i low, __m128i middle, __m128i high) {
    __m128i t = _mm_clmulepi64_si128(GCM_POLY, low, 0x01);
    middle = _mm_xor_si128(middle, _mm_xor_si128(_mm_shuffle_epi32(low, 0x4e), t));
    t = _mm_clmulepi64_si128(GCM_POLY, middle, 0x01);
    return _mm_xor_si128(_mm_xor_si128(high, t), _mm_shuffle_epi32(middle, 0x4e));
}

#endif
