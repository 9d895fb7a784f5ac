/* What the CPU and the operating system offer, asked once. */
#include "gcm.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdatomic.h>

enum {
    KNOWN = 1u << 31, /* the other bits are valid */
};

/* XCR0 says which registers the operating system saves and restores. */
static uint64_t xcr0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static bool has(uint32_t word, uint32_t bits) { return (word & bits) == bits; }

static uint32_t ask(void) {
    uint32_t eax, ebx, ecx, edx, found = 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) {
        return 0;
    }
    const uint32_t sse = ecx, osxsave = 1u << 27, avx = 1u << 28;
    if (!has(sse, bit_AES | bit_PCLMUL | bit_SSSE3 | bit_SSE4_1)) {
        return 0;
    }
    found |= 1u << VIPSEC_ISA_AESNI;
    if (!has(sse, osxsave | avx) || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
        return found;
    }
    const uint64_t saved = xcr0(), ymm = 0x6, zmm = 0xe6;
    if (!has(ecx, bit_VAES | bit_VPCLMULQDQ) || !has(ebx, bit_AVX2) || (saved & ymm) != ymm) {
        return found;
    }
    found |= 1u << VIPSEC_ISA_VAES256;
    if (has(ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ) && (saved & zmm) == zmm) {
        found |= 1u << VIPSEC_ISA_VAES512;
    }
    return found;
}

bool cpu_offers(enum vipsec_isa isa) {
    static _Atomic uint32_t answer; /* racing first calls store the same value */
    uint32_t found = atomic_load_explicit(&answer, memory_order_relaxed);
    if (found == 0) {
        found = ask() | (uint32_t)KNOWN | 1u << VIPSEC_ISA_EVP;
        atomic_store_explicit(&answer, found, memory_order_relaxed);
    }
    return (found >> isa & 1u) != 0;
}

#else

bool cpu_offers(enum vipsec_isa isa) { return isa == VIPSEC_ISA_EVP; }

#endif
