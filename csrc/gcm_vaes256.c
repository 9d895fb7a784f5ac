/* AES-GCM with VAES and VPCLMULQDQ on AVX2: 32-byte vectors. */
#include "gcm.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi2,aes,pclmul,vaes,vpclmulqdq"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi2,aes,pclmul,vaes,vpclmulqdq")
#endif

#include "gcm_x86.h"

typedef __m256i vec;
#define BLOCKS 2
#define CHUNK_VECTORS 8
#define ENGINE_ISA VIPSEC_ISA_VAES256
#define ENGINE gcm_engine_vaes256

INLINE vec v_join(__m128i low, __m128i high) { return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1); }

INLINE vec v_zero(void) { return _mm256_setzero_si256(); }
INLINE vec v_xor(vec a, vec b) { return _mm256_xor_si256(a, b); }
INLINE vec v_xor3(vec a, vec b, vec c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
INLINE vec v_add32(vec a, vec b) { return _mm256_add_epi32(a, b); }
INLINE vec v_aes(vec s, vec k) { return _mm256_aesenc_epi128(s, k); }
INLINE vec v_aes_last(vec s, vec k) { return _mm256_aesenclast_epi128(s, k); }
INLINE vec v_mul_low(vec a, vec b) { return _mm256_clmulepi64_epi128(a, b, 0x00); }
INLINE vec v_mul_high(vec a, vec b) { return _mm256_clmulepi64_epi128(a, b, 0x11); }
INLINE vec v_mul_cross(vec a, vec b) { return _mm256_clmulepi64_epi128(a, b, 0x01); }
INLINE vec v_swap(vec a) { return _mm256_shuffle_epi32(a, 0x4e); }
INLINE vec v_all(__m128i x) { return _mm256_broadcastsi128_si256(x); }
INLINE vec v_reverse(vec a) {
    return _mm256_shuffle_epi8(a, v_all(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)));
}
INLINE vec v_only(__m128i x) { return _mm256_zextsi128_si256(x); }
INLINE __m128i v_first(vec a) { return _mm256_castsi256_si128(a); }
INLINE vec v_load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE void v_store(uint8_t *p, vec x) { _mm256_storeu_si256((__m256i *)p, x); }
INLINE vec v_load_part(const uint8_t *p, size_t n) {
    if (n == 32) {
        return v_load(p);
    }
    return n >= 16 ? v_join(load16(p), load_short(p + 16, n - 16)) : v_only(load_short(p, n));
}
INLINE void v_store_part(uint8_t *p, vec x, size_t n) {
    if (n == 32) {
        v_store(p, x);
    } else if (n >= 16) {
        store16(p, v_first(x));
        store_short(p + 16, _mm256_extracti128_si256(x, 1), n - 16);
    } else {
        store_short(p, v_first(x), n);
    }
}
INLINE vec v_keep(vec x, size_t n) {
    const vec index = _mm256_set_epi8(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11,
                                      10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm256_and_si256(x, _mm256_cmpgt_epi8(_mm256_set1_epi8((char)n), index));
}
INLINE vec v_counters(void) { return _mm256_set_epi32(0, 0, 0, 2, 0, 0, 0, 1); }
INLINE __m128i v_fold(vec x) { return _mm_xor_si128(v_first(x), _mm256_extracti128_si256(x, 1)); }
INLINE vec v_pack(const __m128i *x) { return v_join(x[0], x[1]); }
INLINE vec v_fold_lanes(const vec *x) {
    return _mm256_xor_si256(_mm256_permute2x128_si256(x[0], x[1], 0x20), _mm256_permute2x128_si256(x[0], x[1], 0x31));
}
INLINE void v_unpack(__m128i *x, vec a) {
    x[0] = v_first(a);
    x[1] = _mm256_extracti128_si256(a, 1);
}

#define GROUPS(X) X(64, 4, 2) X(128, 2, 4)
#include "gcm_vector.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else
const struct vipsec_gcm *gcm_engine_vaes256(void) { return NULL; }
#endif
