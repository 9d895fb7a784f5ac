/*
 * The rings of csrc/ where Python is too slow or cannot look: against a driver on another thread, over memory that
 * is truncated meanwhile, and in bursts. Run by test_rings.py, with sanitizers where the compiler has them.
 *
 *     check hostile SECONDS | vanish | bursts
 */
#undef NDEBUG
#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "guard.h"
#include "ring.h"

enum { PAGE = 4096, PAGES = 16, ROOM = PAGES * PAGE, BASE = 0x100000, SIZE = 16 };
enum { DESC = 0, DRIVER = 0x400, DEVICE = 0x600, TABLES = 0x800, BUFFERS = 2 * PAGE };

/* Guest memory between two stretches that cannot be touched, over a file when fd is not -1. */
static uint8_t *map(int fd) {
    uint8_t *around = mmap(NULL, ROOM + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert(around != MAP_FAILED);
    uint8_t *at = mmap(around + PAGE, ROOM, PROT_READ | PROT_WRITE, MAP_FIXED | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED), fd, 0);
    assert(at == around + PAGE);
    return at;
}

static struct vipsec_memory *memory_of(uint8_t *guest) {
    const struct vipsec_region region = {BASE, ROOM, guest};
    struct vipsec_memory *memory = vipsec_memory_new(&region, 1);
    assert(memory != NULL);
    return memory;
}

static struct vipsec_queue *queue_of(struct vipsec_memory *memory, uint32_t flags, int err_fd) {
    const struct vipsec_queue_config config = {.desc = BASE + DESC,
                                               .driver = BASE + DRIVER,
                                               .device = BASE + DEVICE,
                                               .size = SIZE,
                                               .flags = flags,
                                               .call_fd = -1,
                                               .err_fd = err_fd};
    int fault;
    return vipsec_queue_new(memory, &config, &fault);
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

/* ---- a driver that changes everything under our feet -------------------------------------------- */

struct scribbler {
    uint8_t *guest;
    uint32_t flags;
    int stop;
};

static void word(uint8_t *at, uint64_t value) { __atomic_store_n((uint64_t *)(void *)at, value, __ATOMIC_RELAXED); }

/* Mostly sound values, so that walks get far before they meet another one. */
static uint64_t any_descriptor(uint64_t *state, uint32_t flags, int second) {
    const uint64_t r = next_random(state);
    if (r % 64 == 0) {
        return next_random(state);
    }
    if (!second) {
        return r % 8 == 1 ? BASE + TABLES + r / 64 % 16 * 64 : BASE + BUFFERS + r / 64 % 1024 * 16;
    }
    const uint64_t kind = r / 64 % 16 < 12 ? r / 64 % 4 : RING_INDIRECT;
    const uint64_t len = kind == RING_INDIRECT ? 64 : r / 1024 % 256 + 1;
    if ((flags & VIPSEC_QUEUE_PACKED) != 0) {
        return len | (r / 4096 % SIZE) << 32 | (kind | (r >> 20 & 1 ? UINT64_C(0x80) : UINT64_C(0x8000))) << 48;
    }
    return len | kind << 32 | (r / 4096 % SIZE) << 48;
}

static void *scribble(void *argument) {
    struct scribbler *s = argument;
    uint64_t state = 88172645463325252u;
    while (!__atomic_load_n(&s->stop, __ATOMIC_RELAXED)) {
        const uint64_t r = next_random(&state);
        const uint64_t entry = r / 16 % SIZE;
        switch (r % 8) {
        case 0:
        case 1:
            word(s->guest + DESC + 16 * entry, any_descriptor(&state, s->flags, 0));
            break;
        case 2:
        case 3:
            word(s->guest + DESC + 16 * entry + 8, any_descriptor(&state, s->flags, 1));
            break;
        case 4:
            word(s->guest + TABLES + r / 16 % 128 * 8, any_descriptor(&state, s->flags & ~1u, (int)(r / 16 % 2)));
            break;
        case 5: /* available entries; used_event, or the driver's event structure */
            __atomic_store_n((uint16_t *)(void *)(s->guest + DRIVER + r / 16 % 24 * 2), (uint16_t)(r >> 32 & 15),
                             __ATOMIC_RELAXED);
            break;
        default: { /* a few more are available, now and then too many */
            const uint16_t used = __atomic_load_n((uint16_t *)(void *)(s->guest + DEVICE + 2), __ATOMIC_RELAXED);
            const uint16_t more = (uint16_t)(r >> 40 & 1023) == 0 ? 9999 : (uint16_t)(r >> 40) % (SIZE / 2);
            __atomic_store_n((uint16_t *)(void *)(s->guest + DRIVER + 2), (uint16_t)(used + more), __ATOMIC_RELAXED);
        }
        }
    }
    return NULL;
}

static void sleep_a_moment(void) {
    const struct timespec moment = {0, 1000};
    nanosleep(&moment, NULL);
}

/* One queue's life against it; counts the chains popped. */
static void suffer(struct vipsec_memory *memory, uint8_t *guest, uint32_t flags, uint64_t *state, uint64_t *popped) {
    static struct vipsec_chain chains[SIZE];
    static uint32_t written[SIZE];
    static uint8_t copy[1 << 16];
    struct vipsec_queue *q = queue_of(memory, flags, -1);
    assert(q != NULL);
    ((uint16_t *)(void *)(guest + DEVICE))[1] = 0; /* a new driver starts with the queue */
    ((uint16_t *)(void *)(guest + DRIVER))[1] = 0;
    struct guard_frame frame;
    if (guard_enter(&frame, memory) != 0) {
        abort();
    }
    for (int turn = 0; turn < 1000; turn++) {
        const int n = ring_pop_many(q, chains, SIZE);
        if (n < 0) {
            break;
        }
        if (n == 0 && turn % 16 == 15) { /* both may share one CPU: let the driver have it */
            sleep_a_moment();
        }
        for (int i = 0; i < n; i++) {
            const struct vipsec_chain *c = &chains[i];
            uint64_t total = 0;
            for (uint32_t k = 0; k < c->readable + c->writable; k++) {
                const struct vipsec_segment *piece = &c->segments[k];
                assert(piece->host >= guest && piece->host + piece->len <= guest + ROOM && piece->len > 0);
                assert(piece->host == guest + (piece->guest - BASE));
                total += piece->len;
            }
            assert(total == c->readable_len + c->writable_len && c->readable + c->writable <= SIZE);
            assert(ring_copy_out(c, 0, copy, sizeof copy) == (c->readable_len < sizeof copy ? c->readable_len : sizeof copy));
            const uint64_t len = next_random(state) % (c->writable_len + 1);
            written[i] = (uint32_t)ring_copy_in(q, c, 0, copy, len < sizeof copy ? len : sizeof copy);
        }
        *popped += (uint64_t)n;
        if (n > 1 && next_random(state) % 4 == 0) {
            assert(ring_unpop_last(q, &chains[n - 1]) == 0);
            assert(ring_push_many(q, chains, written, (size_t)n - 1) == 0);
        } else {
            assert(ring_push_many(q, chains, written, (size_t)n) == 0);
        }
        (void)ring_should_notify(q);
    }
    guard_leave(&frame);
    vipsec_queue_free(q);
}

static void hostile(double how_long) {
    uint8_t *const guest = map(-1);
    struct vipsec_memory *memory = memory_of(guest);
    uint64_t state = 1;
    for (uint32_t flags = 0; flags < 8; flags++) { /* packed, indirect, event index */
        struct scribbler s = {.guest = guest, .flags = flags};
        pthread_t driver;
        assert(pthread_create(&driver, NULL, scribble, &s) == 0);
        uint64_t popped = 0, lives = 0;
        /* On a busy machine the driver may not get its turn for a while: time without it proves nothing. */
        const double begin = seconds();
        for (double now = begin; now - begin < how_long / 8 || (popped < 100 && now - begin < 60); now = seconds()) {
            lives++;
            suffer(memory, guest, flags | VIPSEC_QUEUE_IN_ORDER * (lives & 1), &state, &popped);
            sleep_a_moment();
        }
        __atomic_store_n(&s.stop, 1, __ATOMIC_RELAXED);
        pthread_join(driver, NULL);
        printf("flags %u: %llu queues, %llu chains\n", flags, (unsigned long long)lives, (unsigned long long)popped);
        assert(popped >= 100 && lives > 1);
    }
    assert(!vipsec_memory_failed(memory));
    vipsec_memory_free(memory);
}

/* ---- memory that goes away ------------------------------------------------------------------------ */

struct worker {
    uint8_t *guest;
    struct vipsec_memory *memory;
    uint64_t rounds;
    int err_fd;
    int stop;
    int fault;
};

/* Works off a split queue whose driver offers everything for ever: the device itself moves the index on. */
static void *work(void *argument) {
    struct worker *w = argument;
    static _Thread_local struct vipsec_chain chains[SIZE];
    const uint32_t written[SIZE] = {0};
    struct vipsec_queue *q = queue_of(w->memory, 0, w->err_fd);
    assert(q != NULL);
    while (!__atomic_load_n(&w->stop, __ATOMIC_RELAXED) && vipsec_queue_fault(q) == 0) {
        uint8_t copy[64];
        struct guard_frame outer, frame;
        if (guard_enter(&outer, w->memory) != 0) {
            abort(); /* the inner frame is nearer */
        }
        if (guard_enter(&frame, w->memory) == 0) {
            uint16_t *index = (uint16_t *)(void *)(w->guest + DRIVER + 2);
            *index = (uint16_t)(*index + SIZE);
            const int n = ring_pop_many(q, chains, SIZE);
            for (int i = 0; i < n; i++) {
                ring_copy_out(&chains[i], 0, copy, sizeof copy);
            }
            assert(n <= 0 || ring_push_many(q, chains, written, (size_t)n) == 0);
            (void)ring_should_notify(q);
            guard_leave(&frame);
        } else {
            ring_break(q, VIPSEC_FAULT_MEMORY);
        }
        guard_leave(&outer);
        __atomic_fetch_add(&w->rounds, 1, __ATOMIC_RELAXED);
    }
    w->fault = vipsec_queue_fault(q);
    vipsec_queue_free(q);
    return NULL;
}

static void offer_everything(uint8_t *guest) {
    for (uint64_t i = 0; i < SIZE; i++) {
        word(guest + DESC + 16 * i, BASE + BUFFERS + i * 64);
        word(guest + DESC + 16 * i + 8, 64);
        ((uint16_t *)(void *)(guest + DRIVER))[2 + i] = (uint16_t)i;
    }
}

static uint64_t rounds_of(struct worker *w) { return __atomic_load_n(&w->rounds, __ATOMIC_RELAXED); }

static void vanish(void) {
    struct worker workers[2] = {{0}, {0}};
    pthread_t threads[2];
    int files[2];
    for (int i = 0; i < 2; i++) {
        files[i] = memfd_create("guest", 0);
        assert(files[i] >= 0 && ftruncate(files[i], ROOM) == 0);
        workers[i].guest = map(files[i]);
        workers[i].memory = memory_of(workers[i].guest);
        workers[i].err_fd = eventfd(0, EFD_NONBLOCK);
        offer_everything(workers[i].guest);
        assert(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
    }
    while (rounds_of(&workers[0]) < 100 || rounds_of(&workers[1]) < 100) {
    }
    /* Buffers first, then everything: either is enough. */
    assert(ftruncate(files[0], PAGE) == 0);
    pthread_join(threads[0], NULL);
    assert(workers[0].fault == VIPSEC_FAULT_MEMORY && vipsec_memory_failed(workers[0].memory));
    uint64_t told = 0;
    assert(read(workers[0].err_fd, &told, sizeof told) == sizeof told && told == 1);
    assert(ftruncate(files[0], 0) == 0);
    assert(queue_of(workers[0].memory, 0, -1) == NULL);
    const uint64_t before = rounds_of(&workers[1]);
    while (rounds_of(&workers[1]) < before + 100) {
    }
    __atomic_store_n(&workers[1].stop, 1, __ATOMIC_RELAXED);
    pthread_join(threads[1], NULL);
    assert(workers[1].fault == 0 && !vipsec_memory_failed(workers[1].memory));
    printf("one queue stopped, the other went on: %llu rounds\n", (unsigned long long)rounds_of(&workers[1]));
    for (int i = 0; i < 2; i++) {
        vipsec_memory_free(workers[i].memory);
    }
}

/* ---- bursts ------------------------------------------------------------------------------------------ */

static void make_available(uint8_t *guest, uint32_t flags, uint32_t first, uint32_t count) {
    for (uint32_t i = first; i < first + count; i++) {
        const uint64_t entry = i % SIZE, kind = i % 3 == 0 ? RING_WRITE : 0;
        word(guest + DESC + 16 * entry, BASE + BUFFERS + entry * 256);
        if ((flags & VIPSEC_QUEUE_PACKED) != 0) {
            word(guest + DESC + 16 * entry + 8,
                 (100 + entry) | (uint64_t)(40000 + i % 97) << 32 | (kind | (i / SIZE % 2 == 0 ? UINT64_C(0x80) : UINT64_C(0x8000))) << 48);
        } else {
            word(guest + DESC + 16 * entry + 8, (100 + entry) | kind << 32);
            ((uint16_t *)(void *)(guest + DRIVER))[2 + entry] = (uint16_t)entry;
        }
    }
    ((uint16_t *)(void *)(guest + DRIVER))[1] = (uint16_t)(flags & 1 ? 0 : first + count);
}

static void burst(uint32_t flags) {
    struct vipsec_chain chains[SIZE];
    const uint32_t written[SIZE] = {0};
    uint8_t *const guest = map(-1);
    struct vipsec_memory *memory = memory_of(guest);
    struct vipsec_queue *q = queue_of(memory, flags, -1);
    uint32_t next = 0;
    for (uint32_t turn = 0; turn < 400; turn++) {
        const uint32_t count = 1 + turn * 7 % SIZE;
        make_available(guest, flags, next, count);
        uint32_t got = 0;
        while (got < count) {
            const int n = ring_pop_many(q, chains + got, 1 + turn % 5);
            assert(n > 0);
            got += (uint32_t)n;
        }
        assert(ring_pop(q, &chains[0]) == 0);
        for (uint32_t i = 0; i < count; i++) {
            const uint64_t entry = (next + i) % SIZE, len = 100 + entry;
            assert(chains[i].segments->guest == BASE + BUFFERS + entry * 256);
            assert(chains[i].readable_len == ((next + i) % 3 == 0 ? 0 : len));
            assert(chains[i].head == (flags & 1 ? 40000 + (next + i) % 97 : entry));
        }
        assert(ring_push_many(q, chains, written, count) == 0);
        if (flags & 1) {
            const uint32_t last = 8 + 16 * (next % SIZE);
            uint64_t told;
            memcpy(&told, guest + DESC + last, 8);
            assert((told >> 32 & 0xffff) == 40000 + next % 97);
            assert((told >> 48) == (next / SIZE % 2 == 0 ? 0x8080u : 0u));
        } else {
            assert(((uint16_t *)(void *)(guest + DEVICE))[1] == (uint16_t)(next + count));
        }
        next += count;
    }
    /* A bad buffer behind good ones: the good ones come first, the next call meets it. */
    make_available(guest, flags, next, 4);
    word(guest + DESC + 16 * ((next + 2) % SIZE), BASE + ROOM);
    assert(ring_pop_many(q, chains, SIZE) == 2);
    assert(vipsec_queue_fault(q) == 0);
    assert(ring_push_many(q, chains, written, 2) == 0);
    assert(ring_pop_many(q, chains, SIZE) == -VIPSEC_FAULT_ADDRESS);
    assert(ring_pop_many(q, chains, SIZE) == -VIPSEC_FAULT_BROKEN);
    assert(ring_push_many(q, chains, written, 1) == -VIPSEC_FAULT_BROKEN);
    vipsec_queue_free(q);
    vipsec_memory_free(memory);
    munmap(guest - PAGE, ROOM + 2 * PAGE);
}

/* Copies at every edge of a chain in pieces. */
static void copies(void) {
    uint8_t *const guest = map(-1);
    struct vipsec_memory *memory = memory_of(guest);
    struct vipsec_queue *q = queue_of(memory, 0, -1);
    const uint32_t lens[4] = {5, 64, 200, 3};
    uint32_t total = 0;
    for (uint32_t part = 0; part < 2; part++) { /* readable, then writable */
        for (uint32_t i = 0; i < 4; i++) {
            const uint64_t index = 4 * part + i, flags = (part ? RING_WRITE : 0) | (index < 7 ? RING_NEXT : 0);
            word(guest + DESC + 16 * index, BASE + BUFFERS + index * 512);
            word(guest + DESC + 16 * index + 8, lens[i] | flags << 32 | (index + 1) << 48);
            total += part == 0 ? lens[i] : 0;
        }
    }
    uint8_t plain[512], copy[512];
    for (uint32_t i = 0, at = 0; i < 4; i++) {
        for (uint32_t k = 0; k < lens[i]; k++, at++) {
            plain[at] = guest[BUFFERS + i * 512 + k] = (uint8_t)(at * 7 + 1);
        }
    }
    ((uint16_t *)(void *)(guest + DRIVER))[1] = 1;
    struct vipsec_chain chain;
    assert(ring_pop(q, &chain) == 1 && chain.readable_len == total && chain.writable_len == total);
    for (uint32_t skip = 0; skip <= total + 1; skip++) {
        for (uint32_t len = 0; len <= total + 2; len++) {
            const uint32_t there = skip < total ? total - skip : 0, wanted = len < there ? len : there;
            memset(copy, 0xee, sizeof copy);
            assert(ring_copy_out(&chain, skip, copy, len) == wanted);
            assert(memcmp(copy, plain + skip, wanted) == 0 && copy[wanted] == 0xee);
            if (len % 16 == skip % 16) {
                for (uint32_t i = 4; i < 8; i++) {
                    memset(guest + BUFFERS + i * 512, 0xdd, 512);
                }
                assert(ring_copy_in(q, &chain, skip, plain, len) == wanted);
                for (uint32_t i = 0, at = 0; i < 4; i++) {
                    for (uint32_t k = 0; k < lens[i]; k++, at++) {
                        const int inside = at >= skip && at < skip + wanted;
                        assert(guest[BUFFERS + (4 + i) * 512 + k] == (inside ? plain[at - skip] : 0xdd));
                    }
                    assert(guest[BUFFERS + (4 + i) * 512 + lens[i]] == 0xdd);
                }
            }
        }
    }
    vipsec_queue_free(q);
    vipsec_memory_free(memory);
}

int main(int count, char **arguments) {
    const char *what = count > 1 ? arguments[1] : "";
    if (strcmp(what, "hostile") == 0 && count == 3) {
        hostile(atof(arguments[2]));
    } else if (strcmp(what, "vanish") == 0) {
        vanish();
    } else if (strcmp(what, "bursts") == 0) {
        for (uint32_t flags = 0; flags < 16; flags++) {
            if ((flags & VIPSEC_QUEUE_INDIRECT) == 0) {
                burst(flags);
            }
        }
        copies();
    } else {
        fprintf(stderr, "usage: check hostile SECONDS | vanish | bursts\n");
        return 2;
    }
    return 0;
}
