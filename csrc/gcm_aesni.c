/* AES-GCM with AES-NI and PCLMULQDQ: 16-byte vectors. Also the key schedule of all x86 engines. */
#include "gcm.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("aes,pclmul,ssse3,sse4.1"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("aes,pclmul,ssse3,sse4.1")
#endif

#include "gcm_x86.h"

/* SubWord of FIPS 197 5.2. */
INLINE uint32_t substitute(uint32_t word) {
    return (uint32_t)_mm_cvtsi128_si32(_mm_aeskeygenassist_si128(_mm_set1_epi32((int)word), 0));
}

static void expand_round_keys(struct vipsec_gcm_key *key, const uint8_t *bytes, size_t size) {
    static const uint8_t rcon[10] = {0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x1b, 0x36};
    const size_t words = size / 4, total = ((size_t)key->rounds + 1) * 4;
    uint32_t w[GCM_MAX_ROUND_KEYS * 4];
    memcpy(w, bytes, size);
    for (size_t i = words; i < total; i++) {
        uint32_t t = w[i - 1];
        if (i % words == 0) {
            t = substitute(t);
            t = (t >> 8 | t << 24) ^ rcon[i / words - 1];
        } else if (words > 6 && i % words == 4) {
            t = substitute(t);
        }
        w[i] = w[i - words] ^ t;
    }
    memcpy(key->round_key, w, total * 4);
    vipsec_wipe(w, sizeof w);
}

static __m128i multiply(__m128i a, __m128i b) {
    __m128i middle = _mm_xor_si128(_mm_clmulepi64_si128(a, b, 0x01), _mm_clmulepi64_si128(a, b, 0x10));
    return reduce16(_mm_clmulepi64_si128(a, b, 0x00), middle, _mm_clmulepi64_si128(a, b, 0x11));
}

void gcm_key_expand_x86(struct vipsec_gcm_key *key, const uint8_t *bytes, size_t size) {
    expand_round_keys(key, bytes, size);
    __m128i h = load16(key->round_key[0]);
    for (size_t r = 1; r < key->rounds; r++) {
        h = _mm_aesenc_si128(h, load16(key->round_key[r]));
    }
    h = reverse16(_mm_aesenclast_si128(h, load16(key->round_key[key->rounds])));
    /* H * x: shift left by one bit; a bit that falls out is reduced (without a branch: H is secret). */
    uint64_t low = (uint64_t)_mm_cvtsi128_si64(h), high = (uint64_t)_mm_extract_epi64(h, 1);
    const uint64_t carry = 0 - (high >> 63);
    high = (high << 1 | low >> 63) ^ (carry & 0xc200000000000000ULL);
    low = low << 1 ^ (carry & 1);
    h = _mm_set_epi64x((long long)high, (long long)low);
    __m128i p = h;
    for (size_t k = 1;; k++) {
        store16(key->powers->power[GCM_POWERS - k], p);
        if (k == GCM_POWERS) {
            break;
        }
        p = multiply(p, h);
    }
    memcpy(key->u.power, key->powers->power[GCM_POWERS - GCM_LOW_POWERS], sizeof key->u.power);
}

typedef __m128i vec;
#define BLOCKS 1
#define CHUNK_VECTORS 8
#define ENGINE_ISA VIPSEC_ISA_AESNI
#define ENGINE gcm_engine_aesni

INLINE vec v_zero(void) { return _mm_setzero_si128(); }
INLINE vec v_xor(vec a, vec b) { return _mm_xor_si128(a, b); }
INLINE vec v_xor3(vec a, vec b, vec c) { return _mm_xor_si128(_mm_xor_si128(a, b), c); }
INLINE vec v_add32(vec a, vec b) { return _mm_add_epi32(a, b); }
INLINE vec v_aes(vec s, vec k) { return _mm_aesenc_si128(s, k); }
INLINE vec v_aes_last(vec s, vec k) { return _mm_aesenclast_si128(s, k); }
INLINE vec v_mul_low(vec a, vec b) { return _mm_clmulepi64_si128(a, b, 0x00); }
INLINE vec v_mul_high(vec a, vec b) { return _mm_clmulepi64_si128(a, b, 0x11); }
INLINE vec v_mul_cross(vec a, vec b) { return _mm_clmulepi64_si128(a, b, 0x01); }
INLINE vec v_swap(vec a) { return _mm_shuffle_epi32(a, 0x4e); }
INLINE vec v_reverse(vec a) { return reverse16(a); }
INLINE vec v_all(__m128i x) { return x; }
INLINE vec v_only(__m128i x) { return x; }
INLINE __m128i v_first(vec a) { return a; }
INLINE vec v_load(const uint8_t *p) { return load16(p); }
INLINE void v_store(uint8_t *p, vec x) { store16(p, x); }
INLINE vec v_load_part(const uint8_t *p, size_t n) { return n == 16 ? load16(p) : load_short(p, n); }
INLINE void v_store_part(uint8_t *p, vec x, size_t n) {
    if (n == 16) {
        store16(p, x);
    } else {
        store_short(p, x, n);
    }
}
INLINE vec v_keep(vec x, size_t n) {
    const __m128i index = _mm_set_epi8(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm_and_si128(x, _mm_cmpgt_epi8(_mm_set1_epi8((char)n), index));
}
INLINE vec v_counters(void) { return _mm_set_epi32(0, 0, 0, 1); }
INLINE __m128i v_fold(vec x) { return x; }
INLINE vec v_pack(const __m128i *x) { return x[0]; }
INLINE vec v_fold_lanes(const vec *x) { return x[0]; }
INLINE void v_unpack(__m128i *x, vec a) { x[0] = a; }

#define GROUPS(X) X(64, 2, 4)
#include "gcm_vector.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else
const struct vipsec_gcm *gcm_engine_aesni(void) { return NULL; }
#endif
