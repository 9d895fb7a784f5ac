/*
 * Compares one AES-GCM engine with the aesni engine, without an operating system: so that an instruction set which
 * this CPU lacks can be checked in an emulator that has it. Built a second time as an ordinary program (-DHOSTED),
 * whose digest over all output must come out the same on the real CPU, where the tests compare that engine with
 * OpenSSL.
 */
#include <string.h>

#include "gcm.h"

#ifdef HOSTED
#include <stdio.h>
#include <stdlib.h>
static void put(char c) { putchar(c); }
static void forget_keys(void) {}
static void halt(void) {}
#else
enum { COM1 = 0x3f8 };
static void out8(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static uint8_t in8(uint16_t port) {
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static void put(char c) {
    while ((in8(COM1 + 5) & 0x20) == 0) {
    }
    out8(COM1, (uint8_t)c);
}
static void serial_8n1(void) {
    out8(COM1 + 3, 0x83);
    out8(COM1, 1);
    out8(COM1 + 1, 0);
    out8(COM1 + 3, 3);
}
static void halt(void) {
    for (;;) {
        __asm__ volatile("hlt");
    }
}

void *memcpy(void *to, const void *from, size_t size) {
    void *result = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
    return result;
}
void *memset(void *to, int value, size_t size) {
    void *result = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
    return result;
}
int strcmp(const char *a, const char *b) {
    while (*a != 0 && *a == *b) {
        a++, b++;
    }
    return (uint8_t)*a - (uint8_t)*b;
}
char *getenv(const char *name) { return (void)name, NULL; }
int pthread_once(int *once, void (*function)(void)) {
    if (*once == 0) {
        *once = 1;
        function();
    }
    return 0;
}

/* Keys of one batch; all are forgotten together. */
static _Alignas(64) uint8_t heap[64 * (sizeof(struct vipsec_gcm_key) + sizeof(struct gcm_powers))];
static size_t used;
void *aligned_alloc(size_t alignment, size_t size) {
    (void)alignment;
    void *made = heap + used;
    used += size;
    return used <= sizeof heap ? made : NULL;
}
void free(void *memory) { (void)memory; }
static void forget_keys(void) { used = 0; }
#endif

const struct vipsec_gcm *gcm_engine_evp(void) { return NULL; }

static void text(const char *s) {
    while (*s != 0) {
        put(*s++);
    }
}

static void number(uint64_t x) {
    char digits[21];
    size_t i = sizeof digits - 1;
    digits[i] = 0;
    do {
        digits[--i] = (char)('0' + x % 10);
        x /= 10;
    } while (x > 0);
    text(digits + i);
}

static uint32_t random32(void) { /* xorshift64 */
    static uint64_t state = 88172645463325252ULL;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

static void fill(uint8_t *p, size_t size) {
    for (size_t i = 0; i < size; i++) {
        p[i] = (uint8_t)random32();
    }
}

static bool differ(const uint8_t *a, const uint8_t *b, size_t size) { return vipsec_equal(a, b, size) == 0; }

static bool all_are(const uint8_t *p, size_t size, uint8_t value) {
    uint32_t other = 0;
    for (size_t i = 0; i < size; i++) {
        other |= (uint32_t)(p[i] ^ value);
    }
    return other == 0;
}

enum { MOST = 12, SLACK = 192, ROOM = VIPSEC_GCM_MAX_LEN + SLACK, BEFORE = 0x77, AROUND = 0x55 };
static uint8_t plain[MOST][ROOM], reference[MOST][ROOM], output[MOST][ROOM];
static uint8_t keys[MOST][32], reference_tag[MOST][16], tag[MOST][16];
static struct vipsec_gcm_op reference_ops[MOST], ops[MOST];
static uint64_t packets, errors, digest = 0xcbf29ce484222325ULL; /* FNV-1a */

static void add_to_digest(const uint8_t *p, size_t size) {
    for (size_t i = 0; i < size; i++) {
        digest = (digest ^ p[i]) * 0x100000001b3ULL;
    }
}

static void expect(bool holds, const char *what, const struct vipsec_gcm_op *op) {
    packets++;
    if (!holds && errors++ < 20) {
        text("WRONG: ");
        text(what);
        text(", bytes ");
        number(op->len);
        text(", rounds ");
        number(op->key->rounds);
        text("\n");
    }
}

static void draw(const struct vipsec_gcm *witness, const struct vipsec_gcm *engine, size_t i, uint32_t len) {
    const size_t key_len = 16 + 8 * (size_t)(random32() % 3), align = random32() % 64;
    struct vipsec_gcm_op op = {.len = len, .tag_len = (uint8_t)(8 + 4 * (random32() % 3))};
    op.aad_len = (uint8_t)(random32() % 3 == 0 ? random32() % 13 : random32() % 2 ? 8 : 12);
    fill(op.iv, sizeof op.iv);
    fill(op.aad, sizeof op.aad);
    fill(keys[i], sizeof keys[i]);
    fill(plain[i], len);
    memset(reference[i], BEFORE, len + SLACK);
    memset(output[i], BEFORE, len + SLACK);
    memset(reference_tag[i], BEFORE, 16);
    memset(tag[i], BEFORE, 16);
    op.in = plain[i];
    reference_ops[i] = ops[i] = op;
    reference_ops[i].key = vipsec_gcm_key_new(witness, keys[i], key_len);
    reference_ops[i].out = reference[i] + align;
    reference_ops[i].tag = reference_tag[i];
    ops[i].key = vipsec_gcm_key_new(engine, keys[i], key_len);
    ops[i].out = output[i] + align;
    ops[i].tag = tag[i];
    if (random32() % 2 == 0) {
        memcpy(ops[i].out, plain[i], len);
        ops[i].in = ops[i].out;
    }
}

/* One bit wrong in a third of the packets; half are opened in place. reference[] keeps what arrived. */
static bool spoil(size_t i) {
    struct vipsec_gcm_op *op = &ops[i];
    const bool forged = random32() % 3 == 0;
    const size_t align = (size_t)(op->out - output[i]);
    const uint8_t bit = (uint8_t)(1u << random32() % 8);
    if (forged && op->len > 0 && random32() % 2 == 0) {
        op->out[random32() % op->len] ^= bit;
    } else if (forged) {
        tag[i][random32() % op->tag_len] ^= bit;
    }
    memcpy(reference[i], output[i], op->len + SLACK);
    op->in = op->out;
    if (random32() % 2 == 0) {
        op->in = reference[i] + align;
        memset(output[i], AROUND, op->len + SLACK);
    }
    return forged;
}

/* Seals `count` packets with both engines, then opens them. Lengths: `len`, or below `most` when len is negative. */
static void batch(const struct vipsec_gcm *witness, const struct vipsec_gcm *engine, size_t count, uint32_t most, long len) {
    bool forged[MOST];
    size_t forgeries = 0;
    for (size_t i = 0; i < count; i++) {
        draw(witness, engine, i, len >= 0 ? (uint32_t)len : random32() % most);
    }
    const size_t failed = vipsec_gcm_seal(witness, reference_ops, count) + vipsec_gcm_seal(engine, ops, count);
    expect(failed == 0, "seal", &ops[0]);
    for (size_t i = 0; i < count; i++) {
        expect(!differ(reference[i], output[i], ops[i].len + SLACK) && !differ(reference_tag[i], tag[i], 16), "sealed", &ops[i]);
        add_to_digest(ops[i].out, ops[i].len);
        add_to_digest(tag[i], 16);
        forged[i] = spoil(i);
        forgeries += forged[i];
    }
    expect(vipsec_gcm_open(engine, ops, count) == forgeries, "count of forgeries", &ops[0]);
    for (size_t i = 0; i < count; i++) {
        const struct vipsec_gcm_op *op = &ops[i];
        const bool in_place = op->in == op->out;
        const size_t align = (size_t)(op->out - output[i]), behind = SLACK - align;
        const uint8_t around = in_place ? BEFORE : AROUND;
        bool right = op->result == (forged[i] ? VIPSEC_GCM_BAD_TAG : VIPSEC_GCM_OK);
        right &= all_are(output[i], align, around) && all_are(op->out + op->len, behind, around);
        if (!forged[i]) {
            right &= !differ(op->out, plain[i], op->len);
        } else {
            right &= in_place ? !differ(output[i], reference[i], op->len + SLACK) : all_are(output[i], op->len + SLACK, AROUND);
        }
        expect(right, forged[i] ? "forged" : "opened", op);
        add_to_digest(op->out, op->len);
        vipsec_gcm_key_free((void *)(uintptr_t)reference_ops[i].key);
        vipsec_gcm_key_free((void *)(uintptr_t)op->key);
    }
    forget_keys();
}

static void check(const struct vipsec_gcm *witness, const struct vipsec_gcm *engine) {
    static const uint32_t most[] = {65, 129, 257, 300, 800, 3000};
    static const long large[] = {1420, 1500, 2048, 4096, 8900, 65535, 65536};
    for (long len = 0; len <= 600; len++) {
        batch(witness, engine, 1, 0, len);
        batch(witness, engine, 4, 0, len);
    }
    for (long turn = 32; turn < 32 + 4 * 48; turn += 48) { /* blocks: where the sums are reduced */
        for (long delta = -40; delta <= 40; delta++) {
            batch(witness, engine, 2, 0, turn * 16 + delta);
        }
    }
    for (size_t i = 0; i < 600; i++) {
        batch(witness, engine, 1 + random32() % MOST, most[random32() % 6], -1);
    }
    for (size_t i = 0; i < sizeof large / sizeof large[0]; i++) {
        batch(witness, engine, 1, 0, large[i]);
        batch(witness, engine, 3, 0, large[i]);
    }
}

static void report(const char *name, const struct vipsec_gcm *engine) {
    const struct vipsec_gcm *witness = vipsec_gcm_engine(VIPSEC_ISA_AESNI);
    if (witness == NULL || engine == NULL) {
        text("NOT OFFERED\n");
    } else {
        check(witness, engine);
    }
    text(name);
    text(" checks ");
    number(packets);
    text(" errors ");
    number(errors);
    text(" digest ");
    number(digest);
    text("\nEND\n");
}

#ifdef HOSTED
int main(int count, char **words) {
    const int isa = count > 1 ? atoi(words[1]) : VIPSEC_ISA_AESNI;
    report("engine", vipsec_gcm_engine(isa));
    halt();
    return errors != 0 || packets == 0;
}
#else
void kmain(void) {
    serial_8n1();
    report("engine", vipsec_gcm_engine(VIPSEC_ISA_VAES512));
    halt();
}
#endif
