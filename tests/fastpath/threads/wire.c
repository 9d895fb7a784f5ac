/*
 * A wire that several threads put frames on while another takes them, and that is closed while they do.
 *
 * Each producer numbers its frames: they arrive in order, whole, and as often as the wire says that it took them. Whoever
 * takes waits for the descriptor: no frame may wait unannounced.
 */
#include <assert.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#undef NDEBUG
#include "vipsec.h"

enum { PRODUCERS = 3, BURST = 8, ROUNDS = 20000, LEN = 200 };

static struct vipsec_wire *wire;
static atomic_int working = PRODUCERS;
static uint64_t put[PRODUCERS], taken[PRODUCERS];

static void *produce(void *argument) {
    const uint8_t me = (uint8_t)(uintptr_t)argument;
    uint8_t octets[BURST][LEN];
    struct vipsec_frame frames[BURST];
    memset(octets, me, sizeof octets);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < BURST; i++) {
            const uint64_t number = put[me] + (uint64_t)i;
            memcpy(octets[i], &number, sizeof number);
            frames[i] = (struct vipsec_frame){.data = octets[i], .len = LEN - me};
        }
        put[me] += vipsec_wire_put(wire, frames, BURST);
    }
    working--;
    return NULL;
}

static size_t consume(void) {
    struct vipsec_frame frames[64];
    const size_t count = vipsec_wire_take(wire, frames, 64);
    for (size_t i = 0; i < count; i++) {
        const uint8_t from = frames[i].data[8];
        uint64_t number;
        memcpy(&number, frames[i].data, sizeof number);
        assert(from < PRODUCERS && frames[i].len == LEN - (uint32_t)from);
        assert(number == taken[from]++);
        assert(frames[i].data[frames[i].len - 1] == from);
    }
    return count;
}

int main(void) {
    pthread_t threads[PRODUCERS];
    uint64_t all = 0;
    wire = vipsec_wire_new();
    assert(wire != NULL);
    struct pollfd ready = {.fd = vipsec_wire_fd(wire), .events = POLLIN};
    for (uintptr_t i = 0; i < PRODUCERS; i++) {
        assert(pthread_create(&threads[i], NULL, produce, (void *)i) == 0);
    }
    while (working != 0) {
        if (poll(&ready, 1, 10) == 1) {
            assert(consume() != 0);
        }
    }
    for (int i = 0; i < PRODUCERS; i++) {
        pthread_join(threads[i], NULL);
    }
    while (poll(&ready, 1, 0) == 1) {
        assert(consume() != 0);
    }
    for (int i = 0; i < PRODUCERS; i++) {
        assert(taken[i] == put[i]);
        all += taken[i];
    }
    struct vipsec_wire_counts counts;
    vipsec_wire_read(wire, &counts);
    assert(counts.taken_frames == all && counts.put_frames == all);
    assert(counts.refused == (uint64_t)PRODUCERS * BURST * ROUNDS - all);
    working = 1;
    assert(pthread_create(&threads[0], NULL, produce, (void *)0) == 0);
    vipsec_wire_close(wire);
    pthread_join(threads[0], NULL);
    vipsec_wire_free(wire);
    printf("%llu frames\n", (unsigned long long)all);
    return 0;
}
