/* AES-GCM with VAES and VPCLMULQDQ on AVX-512: 64-byte vectors, byte masks instead of tails. */
#include "gcm.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(                                                                                          \
    __attribute__((target("avx2,bmi2,aes,pclmul,avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq"))),                \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi2,aes,pclmul,avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq")
#endif

#include "gcm_x86.h"

typedef __m512i vec;
#define BLOCKS 4
#define CHUNK_VECTORS 4
#define ENGINE_ISA VIPSEC_ISA_VAES512
#define ENGINE gcm_engine_vaes512

/* The first n bytes, 0..64. */
INLINE __mmask64 first_bytes(size_t n) { return _bzhi_u64(~0ULL, (unsigned)n); }

INLINE vec v_zero(void) { return _mm512_setzero_si512(); }
INLINE vec v_xor(vec a, vec b) { return _mm512_xor_si512(a, b); }
INLINE vec v_xor3(vec a, vec b, vec c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
INLINE vec v_add32(vec a, vec b) { return _mm512_add_epi32(a, b); }
INLINE vec v_aes(vec s, vec k) { return _mm512_aesenc_epi128(s, k); }
INLINE vec v_aes_last(vec s, vec k) { return _mm512_aesenclast_epi128(s, k); }
INLINE vec v_mul_low(vec a, vec b) { return _mm512_clmulepi64_epi128(a, b, 0x00); }
INLINE vec v_mul_high(vec a, vec b) { return _mm512_clmulepi64_epi128(a, b, 0x11); }
INLINE vec v_mul_cross(vec a, vec b) { return _mm512_clmulepi64_epi128(a, b, 0x01); }
INLINE vec v_swap(vec a) { return _mm512_shuffle_epi32(a, (_MM_PERM_ENUM)0x4e); }
INLINE vec v_all(__m128i x) { return _mm512_broadcast_i32x4(x); }
INLINE vec v_reverse(vec a) {
    return _mm512_shuffle_epi8(a, v_all(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)));
}
INLINE vec v_only(__m128i x) { return _mm512_zextsi128_si512(x); }
INLINE __m128i v_first(vec a) { return _mm512_castsi512_si128(a); }
INLINE vec v_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE void v_store(uint8_t *p, vec x) { _mm512_storeu_si512(p, x); }
INLINE vec v_load_part(const uint8_t *p, size_t n) { return _mm512_maskz_loadu_epi8(first_bytes(n), p); }
INLINE void v_store_part(uint8_t *p, vec x, size_t n) { _mm512_mask_storeu_epi8(p, first_bytes(n), x); }
INLINE vec v_keep(vec x, size_t n) { return _mm512_maskz_mov_epi8(first_bytes(n), x); }
INLINE vec v_counters(void) { return _mm512_set_epi32(0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 1); }
INLINE __m128i v_fold(vec x) {
    __m256i y = _mm256_xor_si256(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    return _mm_xor_si128(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
}
INLINE vec v_pack(const __m128i *x) {
    __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(x[0]), x[1], 1);
    __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(x[2]), x[3], 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
/* Lane i becomes the sum of the four lanes of x[i]. */
INLINE vec v_fold_lanes(const vec *x) {
    vec a = _mm512_xor_si512(_mm512_shuffle_i64x2(x[0], x[1], 0x44), _mm512_shuffle_i64x2(x[0], x[1], 0xee));
    vec b = _mm512_xor_si512(_mm512_shuffle_i64x2(x[2], x[3], 0x44), _mm512_shuffle_i64x2(x[2], x[3], 0xee));
    return _mm512_xor_si512(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xdd));
}
INLINE void v_unpack(__m128i *x, vec a) {
    x[0] = v_first(a);
    x[1] = _mm512_extracti32x4_epi32(a, 1);
    x[2] = _mm512_extracti32x4_epi32(a, 2);
    x[3] = _mm512_extracti32x4_epi32(a, 3);
}

#define GROUPS(X) X(64, 4, 1) X(128, 4, 2) X(256, 4, 4)
#include "gcm_vector.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else
const struct vipsec_gcm *gcm_engine_vaes512(void) { return NULL; }
#endif
