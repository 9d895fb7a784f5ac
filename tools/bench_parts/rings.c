/*
 * The packet path through virtqueues, as tools/bench times it: a driver puts 64 buffers on a split ring, the device
 * takes them through ESP to an uplink that looks at lengths only; and ESP frames from the wire go into receive buffers.
 * What driver and wire do stands outside the timed stretches, and so does the check of every packet.
 */
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "vipsec.h"

enum { PACKETS = 64, RING = 256, TRIES = 3, ETHERNET = 14, BASE = 0x100000, NO_INTERRUPT = 1, WRITE = 2 };

struct descriptor {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
};

/* One virtqueue and the driver's end of it. Buffer i is always descriptor i. */
struct ring {
    struct vipsec_queue *queue;
    struct descriptor *desc;
    uint16_t *avail; /* flags, idx, ring[] */
    uint16_t *used;  /* flags, idx, then {u32 id, u32 len}[] */
    uint8_t *buffers;
    uint16_t seen;
};

struct bench_rings {
    const struct bench_sas *sas;
    uint32_t len, head, next, id_at; /* packet, virtio_net_hdr, next SA, resource_id in the header */
    size_t stride;
    uint8_t *space, *frames, *sealed, *plain;
    uint32_t sealed_len[PACKETS], left; /* of the burst */
    struct vipsec_memory *memory;
    struct ring tx, rx;
    struct vipsec_port *port;
    struct vipsec_worker *worker;
    uint8_t header[64];
    int reader, keep;
    uint64_t bad;
};

static void on_uplink(void *user, struct vipsec_frame *frames, size_t count) {
    struct bench_rings *b = user;
    for (size_t i = 0; i < count; i++, b->left++) {
        b->bad += b->left >= PACKETS || frames[i].len <= ETHERNET + b->len;
        if (!b->keep || b->left >= PACKETS) continue;
        b->sealed_len[b->left] = frames[i].len - ETHERNET;
        memcpy(b->sealed + b->left * b->stride, frames[i].data + ETHERNET, frames[i].len - ETHERNET);
    }
}

static void on_punt_tx(void *user, uint32_t pair, const uint8_t *buffer, size_t len) {
    (void)pair, (void)buffer, (void)len;
    ((struct bench_rings *)user)->bad++;
}

static void on_punt_rx(void *user, struct vipsec_worker *worker, const uint8_t *frame, size_t len,
                       const struct vipsec_rx_state *state) {
    (void)worker, (void)frame, (void)len, (void)state;
    ((struct bench_rings *)user)->bad++;
}

static void on_interrupt(void *user, uint32_t index) {
    (void)index;
    ((struct bench_rings *)user)->bad++; /* the driver has said that it wants none */
}

/* A queue in `at` bytes of the space; its buffers behind it. */
static int make_ring(struct bench_rings *b, struct ring *r, size_t at, uint32_t buffer_len, uint16_t flags) {
    r->desc = (struct descriptor *)(b->space + at);
    r->avail = (uint16_t *)(b->space + at + 4096);
    r->used = (uint16_t *)(b->space + at + 8192);
    r->buffers = b->space + at + 16384;
    r->avail[0] = NO_INTERRUPT;
    for (uint32_t i = 0; i < RING; i++)
        r->desc[i] = (struct descriptor){BASE + at + 16384 + i % PACKETS * b->stride, buffer_len, flags, 0};
    const struct vipsec_queue_config c = {
        .desc = BASE + at, .driver = BASE + at + 4096, .device = BASE + at + 8192, .size = RING, .call_fd = -1, .err_fd = -1,
    };
    int fault;
    r->queue = vipsec_queue_new(b->memory, &c, &fault);
    return r->queue != NULL;
}

/* Makes buffers 0..63 available. */
static void offer(struct ring *r) {
    const uint16_t idx = r->avail[1];
    for (uint16_t i = 0; i < PACKETS; i++) r->avail[2 + (uint16_t)(idx + i) % RING] = i;
    __atomic_store_n(&r->avail[1], (uint16_t)(idx + PACKETS), __ATOMIC_RELEASE);
}

/* Used elements since the last call must be the 64 buffers in their order. */
static int came_back(struct ring *r, uint32_t written) {
    int right = (uint16_t)(__atomic_load_n(&r->used[1], __ATOMIC_ACQUIRE) - r->seen) == PACKETS;
    const uint32_t *elements = (const uint32_t *)(r->used + 2);
    for (uint32_t i = 0; i < PACKETS && right; i++) {
        const uint32_t at = (uint16_t)(r->seen + i) % RING * 2;
        right = elements[at] == i && elements[at + 1] == written;
    }
    r->seen = r->used[1];
    return right;
}

static uint8_t *buffer(const struct bench_rings *b, const struct ring *r, uint32_t i) { return r->buffers + i * b->stride; }
static uint8_t *frame(const struct bench_rings *b, uint32_t i) { return b->frames + i * b->stride + 128; }

void bench_rings_free(struct bench_rings *b) {
    if (b->worker != NULL) vipsec_worker_free(b->worker);
    if (b->port != NULL) vipsec_port_free(b->port);
    if (b->tx.queue != NULL) vipsec_queue_free(b->tx.queue);
    if (b->rx.queue != NULL) vipsec_queue_free(b->rx.queue);
    vipsec_memory_free(b->memory);
    if (b->reader >= 0) vipsec_reader_unregister(b->sas->table, b->reader);
    free(b->space), free(b->frames), free(b->sealed), free(b->plain), free(b);
}

/* `plain`: 64 IPv4 packets of `len` bytes; `header`: the virtio_net_hdr that asks for ESP, resource_id left out.
 * NULL: something refused. */
struct bench_rings *bench_rings_new(const struct bench_sas *sas, const struct vipsec_port_config *config,
                                    const uint8_t *header, const uint8_t *plain, uint32_t len) {
    struct bench_rings *b = calloc(1, sizeof *b);
    b->sas = sas, b->len = len, b->head = config->header_size, b->id_at = config->resource_id_at;
    b->reader = vipsec_reader_register(sas->table);
    memcpy(b->header, header, b->head);
    b->stride = (b->head + len + 512 + 2303) / 2304 * 2304;
    const size_t part = 16384 + (PACKETS * b->stride + 4095) / 4096 * 4096;
    b->space = aligned_alloc(4096, 2 * part);
    b->frames = aligned_alloc(64, b->stride * PACKETS);
    b->sealed = aligned_alloc(64, b->stride * PACKETS);
    b->plain = malloc((size_t)len * PACKETS);
    memset(b->space, 0, 2 * part);
    memcpy(b->plain, plain, (size_t)len * PACKETS);
    const struct vipsec_region region = {BASE, 2 * part, b->space};
    const struct vipsec_port_calls calls = {b, on_uplink, on_interrupt, on_punt_tx, on_punt_rx};
    b->memory = vipsec_memory_new(&region, 1);
    const int made = make_ring(b, &b->tx, 0, b->head + ETHERNET + len, 0) &&
                     make_ring(b, &b->rx, part, (uint32_t)b->stride, WRITE);
    b->port = vipsec_port_new(sas->table, config, &calls);
    if (made && b->port != NULL) {
        vipsec_port_set_queues(b->port, 0, b->rx.queue, b->tx.queue);
        b->worker = vipsec_worker_new(b->port);
    }
    if (b->worker == NULL || b->reader < 0) {
        bench_rings_free(b);
        return NULL;
    }
    return b;
}

static void ethernet(uint8_t *p) {
    static const uint8_t head[ETHERNET] = {2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0};
    memcpy(p, head, ETHERNET);
}

static uint32_t next_sa(struct bench_rings *b) {
    const uint32_t sa = b->next;
    b->next = sa + 1 == b->sas->count ? 0 : sa + 1;
    return sa;
}

static void transmit(struct bench_rings *b, double *took) {
    for (uint32_t i = 0; i < PACKETS; i++) {
        uint8_t *p = buffer(b, &b->tx, i);
        const uint32_t sa = next_sa(b);
        memcpy(p, b->header, b->head);
        memcpy(p + b->id_at, &sa, sizeof sa);
        ethernet(p + b->head);
        memcpy(p + b->head + ETHERNET, b->plain + (size_t)i * b->len, b->len);
    }
    offer(&b->tx);
    b->left = 0;
    const double begin = seconds();
    const size_t done = vipsec_worker_transmit(b->worker, 0, PACKETS);
    *took += seconds() - begin;
    b->bad += done != PACKETS || b->left != PACKETS || !came_back(&b->tx, 0);
}

static void receive(struct bench_rings *b, double *took) {
    struct vipsec_packet packets[PACKETS];
    struct vipsec_frame frames[PACKETS];
    for (uint32_t i = 0; i < PACKETS; i++) {
        packets[i] = (struct vipsec_packet){
            .data = frame(b, i), .len = b->len, .headroom = 128, .tailroom = 256, .sa_id = next_sa(b)};
        memcpy(frame(b, i), b->plain + (size_t)i * b->len, b->len);
    }
    vipsec_esp_outbound(b->sas->table, b->reader, packets, PACKETS);
    for (uint32_t i = 0; i < PACKETS; i++) {
        b->bad += packets[i].reason != VIPSEC_REASON_NONE;
        frames[i] = (struct vipsec_frame){packets[i].data - ETHERNET, packets[i].len + ETHERNET, 0};
        ethernet(frames[i].data);
        memset(buffer(b, &b->rx, i) + b->head, 0, ETHERNET + b->len);
    }
    offer(&b->rx);
    const double begin = seconds();
    vipsec_worker_receive(b->worker, frames, PACKETS);
    *took += seconds() - begin;
    b->bad += !came_back(&b->rx, b->head + ETHERNET + b->len);
    for (uint32_t i = 0; i < PACKETS; i++)
        b->bad += memcmp(buffer(b, &b->rx, i) + b->head + ETHERNET, b->plain + (size_t)i * b->len, b->len) != 0;
}

/* Nanoseconds per packet in each direction: the best of three runs of `passes` bursts. One more burst, not timed, is
 * kept for bench_rings_sealed. */
void bench_rings_sample(struct bench_rings *b, uint32_t passes, double *out, double *in) {
    double ignored = 0;
    *out = *in = 1e30;
    for (int t = 0; t < TRIES && b->bad == 0; t++) {
        double sending = 0, receiving = 0;
        for (uint32_t r = 0; r < passes && b->bad == 0; r++) transmit(b, &sending), receive(b, &receiving);
        sending *= 1e9 / passes / PACKETS, receiving *= 1e9 / passes / PACKETS;
        *out = sending < *out ? sending : *out;
        *in = receiving < *in ? receiving : *in;
    }
    b->keep = 1;
    transmit(b, &ignored);
    b->keep = 0;
}

uint64_t bench_rings_bad(const struct bench_rings *b) { return b->bad; }
const uint8_t *bench_rings_sealed(const struct bench_rings *b, uint32_t i) { return b->sealed + i * b->stride; }
uint32_t bench_rings_sealed_len(const struct bench_rings *b, uint32_t i) { return b->sealed_len[i]; }
