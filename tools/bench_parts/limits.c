/*
 * What the units of this CPU can do: the instruction mix of AES-128-GCM with nothing waiting for anything. 10 AES
 * rounds, 3 carry-less products (Karatsuba) and the cheap instructions around them for every vector of 16, 32 or 64
 * bytes. No code that works on real packets can be faster.
 */
#include "bench.h"

enum { LOOPS = 2000, TRIES = 400, VECTORS = 4 };

#if defined(__x86_64__)
#define CLOBBERED \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", \
        "xmm13", "xmm14", "xmm15"
#define MIX(R, XOR) \
    __asm__ volatile( \
        ".rept 10\n .irp r,0,1,2,3\n vaesenc %%" R "15,%%" R "\\r,%%" R "\\r\n .endr\n .endr\n" \
        ".irp r,4,5,6,7\n vpclmulqdq $0x00,%%" R "15,%%" R "14,%%" R "\\r\n vpclmulqdq $0x11,%%" R "15,%%" R "14,%%" R \
        "8\n vpshufd $0x4e,%%" R "14,%%" R "9\n" XOR " %%" R "9,%%" R "14,%%" R "9\n vpclmulqdq $0x00,%%" R "15,%%" R \
        "9,%%" R "10\n" XOR " %%" R "\\r,%%" R "11,%%" R "11\n" XOR " %%" R "8,%%" R "12,%%" R "12\n" XOR " %%" R \
        "10,%%" R "13,%%" R "13\n .endr\n" \
        ".rept 4\n vpshufb %%" R "15,%%" R "14,%%" R "8\n vpaddd %%" R "15,%%" R "14,%%" R "9\n" XOR " %%" R "9,%%" R \
        "14,%%" R "10\n .endr\n" ::: CLOBBERED)

static void run(unsigned width) {
    for (int i = 0; i < LOOPS; i++) {
        if (width == 64) MIX("zmm", "vpxorq");
        else if (width == 32) MIX("ymm", "vpxor");
        else MIX("xmm", "vpxor");
    }
}
#endif

/* Nanoseconds per byte with vectors of `width` bytes (16, 32, 64: the CPU has the instructions); 0: not known here. */
double bench_limit(unsigned width) {
    double best = 0;
#if defined(__x86_64__)
    for (int t = 0; t < TRIES; t++) {
        const double begin = seconds();
        run(width);
        const double took = (seconds() - begin) * 1e9 / LOOPS / VECTORS / width;
        if (best == 0 || took < best) best = took;
    }
#else
    (void)width;
#endif
    return best;
}

/* A chain of dependent additions: the same work whenever it is called. */
double bench_spin(void) {
    const double begin = seconds();
    uint64_t x = 1;
    for (uint32_t i = 0; i < 300000; i++) {
        x += i;
        __asm__ volatile("" : "+r"(x));
    }
    return seconds() - begin;
}
