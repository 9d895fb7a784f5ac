/* Wiping and comparing secrets. */
#include <string.h>

#include "vipsec.h"

void vipsec_wipe(void *memory, size_t size) {
    if (size > 0) {
        memset(memory, 0, size);
    }
    __asm__ volatile("" : : "r"(memory) : "memory"); /* the zeros are observed, so they are written */
}

int vipsec_equal(const void *a, const void *b, size_t size) {
    const volatile uint8_t *x = a, *y = b;
    uint32_t difference = 0;
    for (size_t i = 0; i < size; i++) {
        difference |= (uint32_t)(x[i] ^ y[i]);
    }
    return (int)(1u & (difference - 1u) >> 8);
}
