/* Life of a queue, and the public calls: the internal ones inside a guard frame. */
#include <stdlib.h>

#include "guard.h"
#include "inflight.h"

/* Room for the bookkeeping of a queue of this size. */
static bool allocate(struct vipsec_queue *q) {
    uint32_t room = 1;
    while (room < q->size) {
        room *= 2;
    }
    if (q->memory->adjacent >= UINT32_MAX / 2 / RING_MAX_SIZE) {
        return false;
    }
    q->order_mask = room - 1;
    q->heads = q->is_packed ? UINT16_MAX + 1u : q->size;
    /* Each descriptor may cross all boundaries. Beside one such chain, room for a usual one in each entry. */
    const uint32_t longest = q->size * (uint32_t)(q->memory->adjacent + 1);
    q->holds = calloc(q->heads, sizeof *q->holds);
    q->order = q->in_order ? calloc(room, sizeof *q->order) : NULL;
    q->segments = calloc((size_t)longest + q->size, sizeof *q->segments);
    q->segments_limit = q->segments + q->size;
    return q->holds != NULL && q->segments != NULL && (q->order != NULL || !q->in_order);
}

static int set_up(struct vipsec_queue *q) {
    struct guard_frame frame;
    if (guard_enter(&frame, q->memory) != 0) {
        return VIPSEC_FAULT_MEMORY;
    }
    const int wrong = q->is_packed ? ring_packed_set_up(q) : ring_split_set_up(q);
    guard_leave(&frame);
    return wrong;
}

struct vipsec_queue *vipsec_queue_new(struct vipsec_memory *memory, const struct vipsec_queue_config *config,
                                      int *fault) {
    *fault = VIPSEC_FAULT_NONE;
    if (config->size == 0 || config->size > RING_MAX_SIZE) {
        *fault = VIPSEC_FAULT_SIZE;
        return NULL;
    }
    struct vipsec_queue *q = aligned_alloc(64, (sizeof *q + 63) / 64 * 64);
    if (q == NULL) {
        return NULL;
    }
    *q = (struct vipsec_queue){
        .memory = memory,
        .recent = memory->region[0],
        .size = config->size,
        .is_packed = (config->flags & VIPSEC_QUEUE_PACKED) != 0,
        .indirect = (config->flags & VIPSEC_QUEUE_INDIRECT) != 0,
        .event_idx = (config->flags & VIPSEC_QUEUE_EVENT_IDX) != 0,
        .in_order = (config->flags & VIPSEC_QUEUE_IN_ORDER) != 0,
        .config = *config,
    };
    if (!allocate(q) || (*fault = set_up(q)) != 0) {
        vipsec_queue_free(q);
        return NULL;
    }
    return q;
}

/* Whether the bytes at this host address are those at the guest address in that memory. */
static bool stays(const struct vipsec_memory *memory, uint64_t guest, uint64_t len, const void *host) {
    return memory_host(memory, guest, len) == host;
}

int vipsec_queue_move(struct vipsec_queue *q, struct vipsec_memory *memory) {
    const struct vipsec_queue_config *c = &q->config;
    const uint64_t size = q->size;
    if (q->out > 0 || q->inflight != NULL || memory->adjacent > q->memory->adjacent) {
        return 0; /* chains point into the memory; segments have room for so many boundaries */
    }
    const bool same = q->is_packed ? stays(memory, c->driver, 4, q->u.packed.driver_event) &&
                                         stays(memory, c->device, 4, q->u.packed.device_event)
                                   : stays(memory, c->driver, 6 + 2 * size, q->u.split.avail) &&
                                         stays(memory, c->device, 6 + 8 * size, q->u.split.used);
    if (!same || !stays(memory, c->desc, 16 * size, q->desc)) {
        return 0;
    }
    q->memory = memory;
    q->recent = memory->region[0];
    return 1;
}

void vipsec_queue_free(struct vipsec_queue *q) {
    if (q != NULL) {
        inflight_free(q->inflight);
        free(q->holds);
        free(q->order);
        free(q->segments);
        free(q);
    }
}

void vipsec_queue_set_log(struct vipsec_queue *q, int enabled, uint64_t used_addr) {
    q->log_used = enabled != 0;
    q->log_addr = used_addr;
}

void vipsec_queue_set_fds(struct vipsec_queue *q, int call_fd, int err_fd) {
    __atomic_store_n(&q->config.call_fd, call_fd, __ATOMIC_RELAXED);
    __atomic_store_n(&q->config.err_fd, err_fd, __ATOMIC_RELAXED);
}

int vipsec_queue_fault(const struct vipsec_queue *q) { return q->fault; }

uint32_t vipsec_queue_state(const struct vipsec_queue *q) {
    return q->is_packed ? ring_packed_state(q) : q->next_avail;
}

/* The body of a public call: `expression` inside a frame, unless the queue is broken. */
#define GUARDED(q, expression)                                                                                     \
    struct guard_frame frame;                                                                                      \
    if ((q)->fault != 0) {                                                                                         \
        return -VIPSEC_FAULT_BROKEN;                                                                               \
    }                                                                                                              \
    if (guard_enter(&frame, (q)->memory) == 0) {                                                                   \
        const int answer = (expression);                                                                           \
        guard_leave(&frame);                                                                                       \
        return answer;                                                                                             \
    }                                                                                                              \
    return ring_break((q), VIPSEC_FAULT_MEMORY)

int vipsec_queue_pop(struct vipsec_queue *q, struct vipsec_chain *chain) {
    q->segments_used = 0;
    GUARDED(q, ring_pop(q, chain));
}

int vipsec_queue_unpop(struct vipsec_queue *q, const struct vipsec_chain *chain) {
    GUARDED(q, ring_unpop_last(q, chain));
}

static int pending(struct vipsec_queue *q) {
    const int fresh = q->is_packed ? ring_packed_pending(q) : ring_split_pending(q);
    return fresh < 0 ? fresh : fresh + (int)inflight_waiting(q);
}

int vipsec_queue_pending(struct vipsec_queue *q) {
    GUARDED(q, pending(q));
}

int vipsec_queue_push(struct vipsec_queue *q, const struct vipsec_chain *chains, const uint32_t *written, size_t count,
                      int batch) {
    GUARDED(q, ring_push(q, chains, written, count, batch != 0));
}

int vipsec_queue_should_notify(struct vipsec_queue *q) { GUARDED(q, ring_should_notify(q)); }

int vipsec_queue_notify(struct vipsec_queue *q) {
    const int wanted = vipsec_queue_should_notify(q);
    if (wanted == 1) {
        ring_signal(q);
    }
    return wanted;
}

static int start_listening(struct vipsec_queue *q) {
    if (q->is_packed) {
        ring_packed_listen(q);
    } else {
        ring_split_listen(q);
    }
    ring_fence();
    const int fresh = q->is_packed ? ring_packed_listening(q) : ring_split_listening(q);
    return fresh == 0 && inflight_waiting(q) > 0 ? 1 : fresh;
}

static int stop_listening(struct vipsec_queue *q) {
    if (q->is_packed) {
        ring_packed_ignore(q);
    } else {
        ring_split_ignore(q);
    }
    return 0;
}

int vipsec_queue_notify_enable(struct vipsec_queue *q) { GUARDED(q, start_listening(q)); }

int vipsec_queue_notify_disable(struct vipsec_queue *q) { GUARDED(q, stop_listening(q)); }
