/* Carry-less multiplication where the CPU has it. */
#include "toeplitz.h"

#include "bytes.h"
#include "vipsec.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

void toeplitz_init(struct toeplitz *toeplitz, const uint8_t *key, size_t key_len) {
    memset(toeplitz, 0, sizeof *toeplitz);
    for (size_t word = 0; word < TOEPLITZ_MAX_WORDS; word++) {
        for (size_t i = 0; i < 64; i++) {
            const size_t bit = 32 * word + i;
            if (bit / 8 < key_len && bit / 8 < TOEPLITZ_MAX_KEY) {
                toeplitz->window[word] |= (uint64_t)(key[bit / 8] >> (7 - bit % 8) & 1) << i;
            }
        }
    }
}

static uint32_t finish(uint64_t product) {
    uint32_t x = (uint32_t)(product >> 31);
    x = (x >> 1 & 0x55555555) | (x & 0x55555555) << 1;
    x = (x >> 2 & 0x33333333) | (x & 0x33333333) << 2;
    x = (x >> 4 & 0x0f0f0f0f) | (x & 0x0f0f0f0f) << 4;
    return __builtin_bswap32(x);
}

uint32_t toeplitz_hash_portable(const struct toeplitz *toeplitz, const uint32_t *words, size_t count) {
    uint64_t product = 0;
    for (size_t i = 0; i < count; i++) {
        for (int bit = 0; bit < 32; bit++) {
            product ^= (toeplitz->window[i] << bit) & (0 - (uint64_t)(words[i] >> bit & 1));
        }
    }
    return finish(product);
}

#if defined(__x86_64__)

__attribute__((target("pclmul,sse2"))) static uint32_t carry_less(const struct toeplitz *toeplitz,
                                                                  const uint32_t *words, size_t count) {
    __m128i product = _mm_setzero_si128();
    for (size_t i = 0; i < count; i++) {
        const __m128i window = _mm_cvtsi64_si128((long long)toeplitz->window[i]);
        product = _mm_xor_si128(product, _mm_clmulepi64_si128(window, _mm_cvtsi64_si128(words[i]), 0));
    }
    return finish((uint64_t)_mm_cvtsi128_si64(product));
}

uint32_t toeplitz_hash(const struct toeplitz *toeplitz, const uint32_t *words, size_t count) {
    return (__builtin_cpu_supports("pclmul") ? carry_less : toeplitz_hash_portable)(toeplitz, words, count);
}

#else

uint32_t toeplitz_hash(const struct toeplitz *toeplitz, const uint32_t *words, size_t count) {
    return toeplitz_hash_portable(toeplitz, words, count);
}

#endif

uint32_t vipsec_toeplitz(const uint8_t *key, size_t key_len, const uint8_t *data, size_t words, int portable) {
    struct toeplitz toeplitz;
    uint32_t numbers[TOEPLITZ_MAX_WORDS];
    if (words > TOEPLITZ_MAX_WORDS) {
        words = TOEPLITZ_MAX_WORDS;
    }
    toeplitz_init(&toeplitz, key, key_len);
    for (size_t i = 0; i < words; i++) {
        numbers[i] = load_be32(data + 4 * i);
    }
    return (portable ? toeplitz_hash_portable : toeplitz_hash)(&toeplitz, numbers, words);
}
