/*
 * libFuzzer harness: device queues of csrc/ over memory that a hostile driver wrote and goes on changing.
 *
 * An input is a header (features, size, how the memory is cut into regions, what to attach), STEPS steps, then the
 * inflight region and guest memory. The memory lies between two pages that cannot be touched; AddressSanitizer
 * watches the rest. Checked after each step: what was popped lies inside the regions, and nothing but what a device
 * may write has changed.
 */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#undef NDEBUG
#include "guard.h"
#include "ring.h"

enum {
    PAGE = 4096,
    SIZE = 768,
    STEPS = 40,
    BASE = 0x10000,
    DESC = BASE,
    DRIVER = BASE + 0x100,
    DEVICE = BASE + 0x140,
    INFLIGHT = 576, /* 32 + 32 x 16, to a multiple of 64 */
    MOST = 16,
    HEADER = 8,
};

static uint8_t *guest;  /* SIZE bytes at the end of a page */
static uint8_t inflight[INFLIGHT] __attribute__((aligned(64)));
static uint8_t log_bits[8];

static void set_up(void) {
    uint8_t *pages = mmap(NULL, 3 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages + PAGE, PAGE, PROT_READ | PROT_WRITE) != 0) {
        abort();
    }
    guest = pages + 2 * PAGE - SIZE;
}

/* The chains that are out, as popped, and a copy of their segments. */
static struct vipsec_chain out[4 * MOST];
static uint32_t outs;

static void check_chain(const struct vipsec_chain *chain, uint32_t size) {
    uint64_t total = 0;
    assert(chain->readable + chain->writable > 0 && chain->descriptors > 0 && chain->descriptors <= size);
    for (uint32_t i = 0; i < chain->readable + chain->writable; i++) {
        const struct vipsec_segment *segment = &chain->segments[i];
        assert(segment->len > 0 && segment->len <= SIZE);
        assert(segment->host >= guest && segment->host + segment->len <= guest + SIZE);
        assert(segment->host - guest == (ptrdiff_t)(segment->guest - BASE));
        assert(segment->continues == 0 || (i > 0 && segment[-1].guest + segment[-1].len == segment->guest));
        total += segment->len;
    }
    assert(total == chain->readable_len + chain->writable_len);
}

/* Bytes that the device may write of a ring. */
static int ours(uint32_t offset, uint32_t size, uint32_t flags) {
    if ((flags & VIPSEC_QUEUE_PACKED) != 0) {
        return (offset < 16 * size && offset % 16 >= 8) || (offset >= DEVICE - BASE && offset < DEVICE - BASE + 4);
    }
    return offset >= DEVICE - BASE && offset < DEVICE - BASE + 6 + 8 * size;
}

static void step_once(struct vipsec_queue *q, uint8_t step, uint8_t argument) {
    static uint8_t copy[SIZE], before[SIZE], painted[SIZE];
    uint32_t written[4 * MOST] = {0};
    struct vipsec_chain fresh[MOST];
    memcpy(before, guest, SIZE);
    memset(painted, 0, sizeof painted);
    switch (step % 8) {
    case 0:
    case 1: {
        const uint32_t max = 1 + argument % MOST;
        const int n = outs + max <= 4 * MOST ? ring_pop_many(q, fresh, max) : 0;
        for (int i = 0; i < n; i++) {
            check_chain(&fresh[i], q->size);
            assert(ring_copy_out(&fresh[i], argument % 7, copy, SIZE) <= SIZE);
            out[outs++] = fresh[i];
        }
        break;
    }
    case 2: {
        const uint32_t n = 1 + argument % MOST < outs ? 1 + argument % MOST : outs;
        for (uint32_t i = 0; i < n; i++) {
            const uint64_t room = out[i].writable_len, len = step & 8 ? room : room / 2;
            for (uint32_t k = out[i].readable; k < out[i].readable + out[i].writable; k++) {
                memset(painted + (out[i].segments[k].guest - BASE), 1, out[i].segments[k].len);
            }
            written[i] = (uint32_t)ring_copy_in(q, &out[i], 0, copy, len < SIZE ? len : SIZE);
        }
        if (ring_push(q, out, written, n, (step & 16) != 0) == 0) {
            memmove(out, out + n, (outs - n) * sizeof *out);
            outs -= n;
        }
        ring_should_notify(q);
        break;
    }
    case 3: /* one from the middle */
        if (outs > 0) {
            const uint32_t which = argument % outs;
            if (ring_push(q, &out[which], written, 1, false) == 0) {
                out[which] = out[--outs];
            }
        }
        break;
    case 4:
        if (outs > 0 && ring_unpop_last(q, &out[outs - 1]) == 0) {
            outs--;
        }
        break;
    case 5:
        assert(vipsec_queue_pending(q) <= (int)(2 * q->size));
        break;
    case 6:
        (void)(argument & 1 ? vipsec_queue_notify_enable(q) : vipsec_queue_notify_disable(q));
        break;
    default: /* twice, and one that was never popped */
        if (outs > 0) {
            struct vipsec_chain twice[2] = {out[0], out[0]};
            assert(ring_push(q, twice, written, 2, false) < 0);
        }
        fresh[0] = (struct vipsec_chain){.head = argument, .descriptors = 0};
        assert(ring_push(q, fresh, written, 1, false) < 0);
    }
    for (uint32_t i = 0; i < SIZE; i++) {
        assert(guest[i] == before[i] || painted[i] || ours(i, q->size, q->config.flags));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    uint8_t header[HEADER] = {0}, steps[2 * STEPS] = {0};
    if (guest == NULL) {
        set_up();
    }
    memset(guest, 0, SIZE);
    memset(inflight, 0, sizeof inflight);
    memset(log_bits, 0, sizeof log_bits);
    struct {
        uint8_t *to;
        size_t size;
    } parts[] = {{header, HEADER}, {steps, sizeof steps}, {guest, SIZE}, {inflight, sizeof inflight}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts && len > 0; i++) {
        const size_t n = parts[i].size < len ? parts[i].size : len;
        memcpy(parts[i].to, data, n);
        data += n;
        len -= n;
    }
    const uint32_t flags = header[0] & 31;
    const uint32_t size = flags & VIPSEC_QUEUE_PACKED ? header[1] % 16 + 1u : 1u << header[1] % 5;
    const uint64_t cut = 0x200 + header[2];
    const struct vipsec_region regions[2] = {{BASE + cut, SIZE - cut, guest + cut}, {BASE, cut, guest}};
    const struct vipsec_region whole = {BASE, SIZE, guest};
    struct vipsec_memory *memory =
        header[3] & 1 ? vipsec_memory_new(regions, 2) : vipsec_memory_new(&whole, 1);
    assert(memory != NULL);
    if (header[3] & 2) {
        vipsec_memory_set_log(memory, log_bits, sizeof log_bits);
    }
    vipsec_memory_set_inflight(memory, inflight, sizeof inflight);
    struct vipsec_queue_config config = {
        .desc = DESC, .driver = DRIVER, .device = DEVICE, .size = size, .flags = flags, .call_fd = -1, .err_fd = -1};
    memcpy(&config.state, header + 4, sizeof config.state);
    int fault = 0;
    struct vipsec_queue *q = NULL;
    outs = 0;
    for (uint32_t i = 0; i < STEPS; i++) {
        if (q == NULL) {
            q = vipsec_queue_new(memory, &config, &fault);
            if (q == NULL) {
                assert(fault == VIPSEC_FAULT_INDEX && (flags & VIPSEC_QUEUE_RESUME) != 0);
                break;
            }
            vipsec_queue_set_log(q, header[3] & 4, DEVICE);
            if (header[3] & 8) {
                (void)vipsec_queue_inflight_new(q, 0);
            }
        }
        step_once(q, steps[2 * i], steps[2 * i + 1]);
        /* The driver changes something, chosen by the step and by what stands there. */
        guest[(steps[2 * i] * 37u + steps[2 * i + 1] * 5u + guest[i]) % SIZE] ^= steps[2 * i + 1];
        if (vipsec_queue_fault(q) != 0 || (steps[2 * i] & 0xe0) == 0xe0) { /* crash, or reset */
            vipsec_queue_free(q);
            q = NULL;
            outs = 0;
        }
    }
    vipsec_queue_free(q);
    vipsec_memory_free(memory);
    return 0;
}
