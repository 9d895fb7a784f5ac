/* Ports and workers: making them, and what the control thread changes while they run. */
#include "worker.h"

#include <stdlib.h>
#include <string.h>

static_assert(sizeof(struct vipsec_port_config) == 48, "vipsec.h shows it to other languages");
static_assert(sizeof(struct vipsec_frame) == 16, "vipsec.h shows it to other languages");

static bool config_possible(const struct vipsec_port_config *config) {
    const uint16_t ends[] = {config->hash_at, config->outer_nh_at, config->resource_id_at, config->resource_type_at};
    const uint16_t sizes[] = {6, 2, 4, 2};
    const bool names_sas = (config->features_high >> (FEATURE_IPSEC - 64) & 1) != 0 && !config->by_operator;
    if (names_sas && (config->resource_id_at == VIPSEC_ABSENT || config->resource_type_at == VIPSEC_ABSENT)) {
        return false;
    }
    if (config->pairs == 0 || config->pairs > PORT_MAX_PAIRS || config->header_size < 12 ||
        config->header_size > PORT_MAX_HEADER) {
        return false;
    }
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        if (ends[i] != VIPSEC_ABSENT && ends[i] + sizes[i] > config->header_size) {
            return false;
        }
    }
    return true;
}

struct vipsec_port *vipsec_port_new(struct vipsec_sa_table *table, const struct vipsec_port_config *config,
                                    const struct vipsec_port_calls *calls) {
    if (!config_possible(config)) {
        return NULL;
    }
    struct vipsec_port *port = calloc(1, sizeof *port);
    if (port == NULL) {
        return NULL;
    }
    port->tx = calloc(config->pairs, sizeof *port->tx);
    port->rx = calloc(config->pairs, sizeof *port->rx);
    port->live.words = (config->pairs + 63) / 64;
    port->live_bits = calloc(port->live.words, sizeof *port->live_bits);
    port->live.bits = port->live_bits;
    if (port->tx == NULL || port->rx == NULL || port->live_bits == NULL) {
        vipsec_port_free(port);
        return NULL;
    }
    port->config = *config;
    port->calls = *calls;
    port->table = table;
    return port;
}

void vipsec_port_free(struct vipsec_port *port) {
    if (port == NULL) {
        return;
    }
    free(port->tx);
    free(port->rx);
    free(port->live_bits);
    free(port);
}

void vipsec_port_set_queues(struct vipsec_port *port, uint32_t pair, struct vipsec_queue *rx, struct vipsec_queue *tx) {
    if (pair < port->config.pairs) {
        const uint64_t bit = UINT64_C(1) << (pair & 63);
        spin_lock(&port->rx[pair].lock);
        port->rx[pair].queue = rx;
        spin_unlock(&port->rx[pair].lock);
        if (port->tx[pair] != tx) { /* its worker may be reading it */
            port->tx[pair] = tx;
        }
        if (rx != NULL) {
            atomic_fetch_or(&port->live_bits[pair / 64], bit);
        } else {
            atomic_fetch_and(&port->live_bits[pair / 64], ~bit);
        }
    }
}

void vipsec_port_set_flow(struct vipsec_port *port, struct vipsec_flow_table *flow) { port->flow = flow; }

void vipsec_port_set_foreign_sas(struct vipsec_port *port, uint32_t count) {
    atomic_store_explicit(&port->foreign_sas, count, memory_order_relaxed);
}

void vipsec_port_set_steering(struct vipsec_port *port, const struct vipsec_steering *steering) {
    atomic_store_explicit(&port->rules.steering, steering, memory_order_release);
    sa_table_synchronize(port->table);
}

void vipsec_port_set_policy(struct vipsec_port *port, const struct vipsec_policy *policy) {
    atomic_store_explicit(&port->rules.policy, policy, memory_order_release);
    sa_table_synchronize(port->table);
}

void vipsec_port_set_underlay(struct vipsec_port *port, const struct vipsec_underlay *underlay) {
    atomic_store_explicit(&port->rules.underlay, underlay, memory_order_release);
    sa_table_synchronize(port->table);
}

void vipsec_port_set_guest_csum(struct vipsec_port *port, int on) {
    atomic_store_explicit(&port->guest_csum, on != 0, memory_order_relaxed);
}

struct vipsec_worker *vipsec_worker_new(struct vipsec_port *port) {
    struct vipsec_worker *worker = aligned_alloc(64, (sizeof *worker + 63) & ~(size_t)63);
    if (worker == NULL) {
        return NULL;
    }
    memset(worker, 0, sizeof *worker);
    worker->port = port;
    vipsec_worker_set_uplink(worker, NULL, NULL);
    worker->arena = aligned_alloc(64, ARENA_SIZE);
    worker->segments = aligned_alloc(64, ARENA_SIZE);
    /* Pages that no frame needs are never touched. */
    worker->fill_chains = malloc(RING_MAX_SIZE * sizeof *worker->fill_chains);
    worker->fill_written = malloc(RING_MAX_SIZE * sizeof *worker->fill_written);
    worker->reader = vipsec_reader_register(port->table);
    if (worker->arena == NULL || worker->segments == NULL || worker->fill_chains == NULL ||
        worker->fill_written == NULL || worker->reader < 0) {
        vipsec_worker_free(worker);
        return NULL;
    }
    return worker;
}

void vipsec_worker_set_uplink(struct vipsec_worker *worker,
                              void (*uplink)(void *user, struct vipsec_frame *frames, size_t count), void *user) {
    const struct vipsec_port_calls *calls = &worker->port->calls;
    worker->uplink = uplink != NULL ? uplink : calls->uplink;
    worker->uplink_user = uplink != NULL ? user : calls->user;
}

void vipsec_uplink_null(void *user, struct vipsec_frame *frames, size_t count) {
    (void)user;
    (void)frames;
    (void)count; /* the worker has counted them */
}

static void discard(uint8_t *arena, size_t used) {
    if (arena != NULL) {
        vipsec_wipe(arena, used);
        free(arena);
    }
}

void vipsec_worker_free(struct vipsec_worker *worker) {
    if (worker == NULL) {
        return;
    }
    if (worker->reader >= 0) {
        vipsec_reader_unregister(worker->port->table, worker->reader);
    }
    /* Guest plaintext went through them. */
    discard(worker->arena, worker->arena_most);
    discard(worker->segments, worker->segments_most);
    free(worker->fill_chains);
    free(worker->fill_written);
    free(worker);
}

/* The worker alone writes its counters, in plain 64-bit stores: a reader sees each of them whole. */
void vipsec_worker_read(const struct vipsec_worker *worker, struct vipsec_counters *out) {
    const uint64_t *from = (const uint64_t *)&worker->counters;
    uint64_t *to = (uint64_t *)out;
    for (size_t i = 0; i < sizeof *out / sizeof *to; i++) {
        to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
    }
}
