/*
 * Frames into receive queues (virtio v1.4 5.1.6.4; the oracle is device/rings.py). A run of frames for one queue is
 * put there in one go: buffers are taken in bursts, filled, and shown to the driver together.
 */
#include "deliver.h"

#include <string.h>

#include "guard.h"
#include "worker.h"

/* Buffers taken off a queue and not yet shown to the driver again: [used, taken) of the worker's are still empty. */
struct taken {
    uint32_t used, taken;
};

/* Shows the driver the buffers that are filled; the others move to the front. */
static void show(struct vipsec_worker *worker, struct vipsec_queue *queue, struct taken *t) {
    struct vipsec_chain *chains = worker->fill_chains;
    if (t->used != 0) {
        ring_push_many(queue, chains, worker->fill_written, t->used);
        worker->notify |= ring_should_notify(queue);
        t->taken -= t->used;
        memmove(chains, chains + t->used, t->taken * sizeof *chains);
        t->used = 0;
    }
}

/* `count` empty buffers at least; takes several at once, `ahead` at most. Those that are filled leave first: the next
 * to be taken may break the queue. */
static bool take(struct vipsec_worker *worker, struct vipsec_queue *queue, struct taken *t, uint32_t count,
                 uint32_t ahead) {
    if (t->used + count <= t->taken) {
        return true;
    }
    show(worker, queue, t);
    const int popped = ring_pop_many(queue, &worker->fill_chains[t->taken], ahead);
    t->taken += popped > 0 ? (uint32_t)popped : 0;
    return popped > 0;
}

/*
 * One frame: as many buffers as it takes, all but the last full, one without MRG_RXBUF (NET-RX-DEV-02..04,
 * NET-RXB-DEV-02). The header lies in the first buffer whole (E17). False: it does not fit, and no buffer is used.
 */
static bool fill(struct vipsec_worker *worker, struct vipsec_queue *queue, struct taken *t, struct rx_ready *ready,
                 uint32_t ahead) {
    const uint32_t header_size = worker->port->config.header_size;
    const uint64_t total = (uint64_t)header_size + ready->len;
    const uint32_t most = port_has(worker->port, FEATURE_MRG_RXBUF) ? queue->size : 1;
    uint64_t room = 0;
    uint32_t count = 0;
    while (room < total && count < most && take(worker, queue, t, count + 1, ahead)) {
        room += worker->fill_chains[t->used + count++].writable_len;
    }
    const struct vipsec_chain *chains = &worker->fill_chains[t->used];
    if (room < total || chains[0].writable_len < header_size) {
        return false;
    }
    store_le16(ready->header + HDR_NUM_BUFFERS_AT, (uint16_t)count);
    ring_copy_in(queue, &chains[0], 0, ready->header, header_size);
    uint32_t at = 0;
    for (uint32_t i = 0, skip = header_size; i < count; i++, skip = 0) {
        const uint32_t copied = (uint32_t)ring_copy_in(queue, &chains[i], skip, ready->frame + at, ready->len - at);
        worker->fill_written[t->used + i] = skip + copied;
        at += copied;
    }
    t->used += count;
    return true;
}

/* A run of frames; how many had no buffer. Inside a guard frame. */
static uint32_t fill_run(struct vipsec_worker *worker, struct vipsec_queue *queue, struct rx_ready *run, uint32_t count) {
    struct taken t = {0, 0};
    uint32_t without = 0;
    for (uint32_t i = 0; i < count; i++) {
        without += !fill(worker, queue, &t, &run[i], count - i);
    }
    while (t.taken > t.used) {
        ring_unpop_last(queue, &worker->fill_chains[--t.taken]);
    }
    show(worker, queue, &t);
    return queue->fault == VIPSEC_FAULT_NONE ? without : 0; /* a broken queue is no lack of buffers */
}

/* The queue under its lock; how many frames had no buffer. */
static uint32_t put_into(struct vipsec_worker *worker, struct vipsec_queue *queue, struct rx_ready *run, uint32_t count) {
    volatile uint32_t without = 0;
    struct guard_frame guard;
    if (guard_enter(&guard, queue->memory) == 0) {
        without = fill_run(worker, queue, run, count);
        guard_leave(&guard);
    } else {
        ring_break(queue, VIPSEC_FAULT_MEMORY);
    }
    if (worker->notify) {
        ring_signal(queue); /* its eventfd lives as long as the queue is the port's */
    }
    return without;
}

static void put_run(struct vipsec_worker *worker, struct rx_ready *run, uint32_t count) {
    struct vipsec_port *port = worker->port;
    const uint32_t pair = run->pair;
    int reason = VIPSEC_REASON_QUEUE_DISABLED;
    uint32_t refused = count;
    worker->notify = false;
    if (pair < port->config.pairs) {
        struct port_rx_queue *place = &port->rx[pair];
        spin_lock(&place->lock);
        if (place->queue != NULL) {
            reason = VIPSEC_REASON_NO_BUFFER;
            refused = put_into(worker, place->queue, run, count);
        }
        spin_unlock(&place->lock);
    }
    worker_count(&worker->counters.rx_refused[reason], refused);
    if (worker->notify) {
        worker_interrupt(worker, 2 * pair);
    }
}

void deliver_ready(struct vipsec_worker *worker) {
    for (uint32_t from = 0, to; from < worker->ready_count; from = to) {
        for (to = from + 1; to < worker->ready_count && worker->ready[to].pair == worker->ready[from].pair;) {
            to++;
        }
        put_run(worker, &worker->ready[from], to - from);
    }
    worker->ready_count = 0;
}

void vipsec_worker_deliver(struct vipsec_worker *worker, uint32_t pair, const uint8_t *buffer, size_t len) {
    const uint32_t header_size = worker->port->config.header_size;
    if (len < header_size || len > UINT32_MAX) {
        worker_count(&worker->counters.rx_refused[VIPSEC_REASON_BAD_HEADER], 1);
        return;
    }
    struct rx_ready ready = {.frame = buffer + header_size, .len = (uint32_t)len - header_size, .pair = pair};
    memcpy(ready.header, buffer, header_size);
    put_run(worker, &ready, 1);
}
