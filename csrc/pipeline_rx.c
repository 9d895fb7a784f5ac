/*
 * From the uplink to the receive queues (virtio v1.4 5.1.6.4, IPsec Operation inbound; the oracle is
 * device/receive.py and device/rings.py).
 *
 * Stages, each over a batch: filter and rules, ESP, then frame by frame header, queue and ring. A frame that needs an SA
 * which is not in C, or IPsec a second time, goes to Python in its turn.
 */
#include <string.h>

#include "deliver.h"
#include "esp.h"
#include "offload.h"
#include "operator.h"
#include "worker.h"

enum { ACTION_DROP = 1, ACTION_DIRECT = 2, ACTION_IPSEC = 3, ACTION_IPSEC_RECIRCULATE = 4 };
enum { ESP_IN_UDP_PORT = 4500 };

static void drop(struct vipsec_worker *worker, int reason) { worker_count(&worker->counters.rx_refused[reason], 1); }

static const struct vipsec_flow_verdict *match(const struct vipsec_worker *worker, const uint8_t *frame, uint32_t len,
                                               const struct vipsec_frame_view *view) {
    const struct vipsec_flow_table *flow = worker->port->flow;
    return flow == NULL ? NULL : flow_match(flow, worker->flow_copy, frame, len, view);
}

static void enter(struct vipsec_worker *worker) {
    sa_reader_enter(worker->port->table, worker->reader);
    if (worker->port->flow != NULL) {
        worker->flow_copy = flow_enter(worker->port->flow);
    }
}

static void leave(struct vipsec_worker *worker) {
    if (worker->port->flow != NULL) {
        flow_leave(worker->port->flow, worker->flow_copy);
    }
    sa_reader_exit(worker->port->table, worker->reader);
}

/* ---- first look ---- */

static bool is_ipsec_action(uint32_t action) { return action == ACTION_IPSEC || action == ACTION_IPSEC_RECIRCULATE; }

/*
 * Whether a UDP datagram is ESP at all: its first bytes may equal an SPI by chance (RFC 3948, E66). A rule that looks at
 * UDP says so, and with an SA any other rule, too (E78). Else the port decides: that of the SA, or the registered one.
 */
static bool is_for_ipsec(const struct rx_item *item, const struct esp_found *found, const struct sa *sa) {
    if (item->has_rule && (sa != NULL || item->verdict.selects_udp)) {
        return true;
    }
    return found->header.udp_dport == (sa != NULL ? load_be16(sa->ports + 2) : ESP_IN_UDP_PORT);
}

/* A frame that a rule (`required`) or the dialect wants opened. */
static void look_for_sa(struct vipsec_worker *worker, struct rx_item *item, const struct vipsec_frame *frame,
                        bool required) {
    struct vipsec_port *port = worker->port;
    const struct vipsec_frame_view *view = &item->view;
    item->kind = RX_PLAIN;
    if (view->version == 0 || !port_has(port, FEATURE_IPSEC)) {
        return;
    }
    struct esp_found *located = &worker->located[worker->packet_count];
    if (esp_locate(frame->data + view->l3, view->end - view->l3, located) != VIPSEC_REASON_NONE) {
        if (required && (view->protocol == FRAME_ESP || view->protocol == FRAME_AH) && !view->fragment) {
            item->kind = RX_FAIL;
            item->reason = VIPSEC_REASON_MALFORMED;
        } else {
            worker_count(&worker->counters.rx_not_ipsec, 1);
        }
        return;
    }
    const struct sa *sa = located->header.protocol == FRAME_ESP ? sa_inbound_by_spi(port->table, located->header.spi) : NULL;
    if (sa == NULL && atomic_load_explicit(&port->foreign_sas, memory_order_relaxed) != 0) {
        item->kind = RX_PUNT;
    } else if (located->header.in_udp && !is_for_ipsec(item, located, sa)) {
        worker_count(&worker->counters.rx_not_ipsec, 1);
    } else if (sa != NULL) {
        item->kind = RX_OPEN;
        item->packet = worker->packet_count;
        worker->packets[worker->packet_count++] = (struct vipsec_packet){
            .data = frame->data + view->l3,
            .len = view->end - view->l3,
        };
    } else if (required) {
        item->kind = RX_FAIL;
        item->reason = VIPSEC_REASON_UNKNOWN_SA;
    }
}

/* Whether rules have to be asked about the frame; else its fate is settled. */
static bool look_at_link(struct vipsec_worker *worker, struct rx_item *item, const struct vipsec_frame *frame) {
    const struct vipsec_port *port = worker->port;
    const struct vipsec_steering *steering = atomic_load_explicit(&port->rules.steering, memory_order_acquire);
    item->kind = RX_DROP;
    item->has_rule = false;
    if (frame->len < FRAME_ETHERNET_HEADER) {
        item->reason = VIPSEC_REASON_MALFORMED;
        return false;
    }
    if (port->config.by_operator) { /* what arrives is not yet what the guest gets to see */
        frame_view(frame->data, frame->len, 0, &item->view);
        operator_arriving(worker, item, frame);
        return false;
    }
    if (!steering_admits(steering, frame->data, frame->len)) {
        item->reason = VIPSEC_REASON_FILTERED;
        return false;
    }
    frame_view(frame->data, frame->len, 0, &item->view);
    return true;
}

static void obey(struct vipsec_worker *worker, struct rx_item *item, const struct vipsec_frame *frame,
                 const struct vipsec_flow_verdict *rule) {
    item->kind = RX_PLAIN;
    item->has_rule = rule != NULL;
    if (rule == NULL) {
        if (worker->port->config.open_unasked) {
            look_for_sa(worker, item, frame, false);
        }
        return;
    }
    item->verdict = *rule;
    if (rule->action == ACTION_DROP) {
        item->kind = RX_DROP;
        item->reason = VIPSEC_REASON_RULE_DROP;
    } else if (is_ipsec_action(rule->action)) {
        look_for_sa(worker, item, frame, true);
    }
}

/*
 * Filter and rules for a batch; the rules are looked up together, so that many of them cost little more than few. Returns
 * how many frames: up to the first that goes to Python, so that nothing behind it is opened before it.
 */
static size_t look(struct vipsec_worker *worker, const struct vipsec_frame *frames, size_t count) {
    const struct vipsec_flow_table *flow = worker->port->flow;
    struct flow_item asked[PORT_BATCH];
    uint8_t which[PORT_BATCH];
    size_t number = 0;
    for (size_t i = 0; i < count; i++) {
        struct rx_item *item = &worker->rx[i];
        if (look_at_link(worker, item, &frames[i])) {
            asked[number] = (struct flow_item){.frame = frames[i].data, .view = &item->view, .len = frames[i].len};
            which[number++] = (uint8_t)i;
        } else if (item->kind == RX_PUNT) {
            count = i + 1;
        }
    }
    if (flow != NULL) {
        flow_match_many(flow, worker->flow_copy, asked, number);
    }
    for (size_t i = 0; i < number; i++) {
        obey(worker, &worker->rx[which[i]], &frames[which[i]], asked[i].verdict);
        if (worker->rx[which[i]].kind == RX_PUNT) {
            return which[i] + 1u;
        }
    }
    return count;
}

/* ---- after ESP ---- */

/* Python goes on with the frame. No rule and no SA is looked at across the call. */
static void punt(struct vipsec_worker *worker, const uint8_t *frame, uint32_t len, const struct vipsec_rx_state *state) {
    const struct vipsec_port_calls *calls = &worker->port->calls;
    if (!worker_may_punt(worker)) {
        drop(worker, VIPSEC_REASON_OVERLOAD);
        return;
    }
    worker_count(&worker->counters.rx_punted, 1);
    leave(worker);
    deliver_ready(worker); /* what came before goes first */
    calls->punt_rx(calls->user, worker, frame, len, state);
    enter(worker);
}

/* Whether there is a receive queue for the pair. */
static bool is_live(const struct vipsec_port *port, uint32_t pair) {
    return pair < port->config.pairs &&
           (atomic_load_explicit(&port->live_bits[pair / 64], memory_order_relaxed) >> (pair & 63) & 1) != 0;
}

/* Whether anything is to be delivered; false: dropped and counted. `queue`: as a rule directs. */
static bool direct(struct vipsec_worker *worker, const struct vipsec_flow_verdict *rule, struct rx_delivery *out) {
    if (rule == NULL || rule->action != ACTION_DIRECT) {
        return true;
    }
    out->directed = true;
    out->queue = rule->vq_index >> 1;
    if (!is_live(worker->port, out->queue)) {
        drop(worker, VIPSEC_REASON_QUEUE_DISABLED);
        return false;
    }
    return true;
}

/* Marks the frame as in error, its bytes as they are, or drops it where so configured (E53). */
static bool fail(struct vipsec_worker *worker, int reason, const struct vipsec_packet *packet, struct rx_delivery *out) {
    const struct vipsec_port_config *config = &worker->port->config;
    drop(worker, reason);
    if (config->drop_errors || config->by_operator) {
        return false;
    }
    if (packet != NULL) {
        out->resource_id = packet->sa_id;
        out->resource_type = RESOURCE_INBOUND_SA;
        out->flags = packet->soft_expired ? config->flag_soft_expiry : 0;
    }
    out->flags |= config->flag_security | config->flag_security_err;
    return true;
}

/* Puts the link header in front of what came out of the packet. */
static void strip(const struct vipsec_frame *frame, const struct rx_item *item, const struct vipsec_packet *packet,
                  struct rx_delivery *out) {
    const uint32_t l3 = item->view.l3;
    out->frame = packet->data - l3;
    out->len = packet->len + l3;
    memmove(out->frame, frame->data, l3 - 2);
    store_be16(packet->data - 2, ethertype_of(packet->data[0] >> 4));
    frame_view(out->frame, out->len, l3, &out->view);
}

/* What an SA made of a frame: true to go on with the delivery. */
static bool opened(struct vipsec_worker *worker, const struct vipsec_frame *frame, const struct rx_item *item,
                   struct rx_delivery *out) {
    struct vipsec_port *port = worker->port;
    const struct vipsec_packet *packet = &worker->packets[item->packet];
    switch (packet->reason) {
    case VIPSEC_REASON_NONE:
        break;
    case VIPSEC_REASON_NOT_IPSEC:
        worker_count(&worker->counters.rx_not_ipsec, !port->config.by_operator);
        return true;
    case VIPSEC_REASON_DUMMY: /* authenticated, and to vanish (RFC 4303 2.6, RFC 6040 4.2) */
    case VIPSEC_REASON_CONGESTION:
        drop(worker, packet->reason);
        return false;
    default:
        return fail(worker, packet->reason, packet->known ? packet : NULL, out);
    }
    worker_count(&worker->counters.rx_opened, 1);
    out->resource_id = packet->sa_id;
    out->opened = true;
    if (port->config.by_operator) {
        out->soft_expired = packet->soft_expired != 0;
        if (!operator_strip(worker, item, packet, out)) {
            strip(frame, item, packet, out);
        }
        return true;
    }
    strip(frame, item, packet, out);
    out->flags = port->config.flag_security | (packet->soft_expired ? port->config.flag_soft_expiry : 0);
    out->resource_type = RESOURCE_INBOUND_SA;
    if (!item->has_rule || item->verdict.action != ACTION_IPSEC_RECIRCULATE) {
        return true;
    }
    /* Once more through the rules; the action of this pass is final (E58). */
    const struct vipsec_flow_verdict *rule = match(worker, out->frame, out->len, &out->view);
    if (rule != NULL && rule->action == ACTION_DROP) {
        drop(worker, VIPSEC_REASON_RULE_DROP);
        return false;
    }
    if (rule != NULL && is_ipsec_action(rule->action)) {
        const struct vipsec_rx_state state = {
            .opened = 1, .resource_id = packet->sa_id, .soft_expired = packet->soft_expired, .l3 = item->view.l3};
        punt(worker, out->frame, out->len, &state);
        return false;
    }
    return direct(worker, rule, out);
}

/* ---- delivery ---- */

/* The header, in front of the frame. */
static void write_header(const struct vipsec_worker *worker, const struct rx_delivery *what, const struct steering_hash *hash,
                         uint8_t *header) {
    const struct vipsec_port *port = worker->port;
    const struct vipsec_port_config *config = &port->config;
    uint8_t flags = what->flags;
    /* Nothing is vouched for in a packet that is delivered as an error. */
    if ((flags & config->flag_security_err) == 0 &&
        atomic_load_explicit(&port->guest_csum, memory_order_relaxed) != 0 &&
        offload_checksum_ok(what->frame, &what->view)) {
        flags |= HDR_DATA_VALID;
    }
    memset(header, 0, config->header_size);
    header[HDR_FLAGS_AT] = flags;
    if (config->hash_at != VIPSEC_ABSENT && port_has(port, FEATURE_HASH_REPORT)) {
        store_le32(header + config->hash_at, hash->value);
        store_le16(header + config->hash_at + 4, hash->report);
    }
    if (config->outer_nh_at != VIPSEC_ABSENT && port_has(port, FEATURE_OUT_NET_HEADER) && what->view.version != 0 &&
        what->view.l3 <= 0xffff) {
        store_le16(header + config->outer_nh_at, (uint16_t)what->view.l3);
    }
    if (config->resource_id_at != VIPSEC_ABSENT && !config->by_operator) {
        store_le32(header + config->resource_id_at, what->resource_id);
        store_le16(header + config->resource_type_at, what->resource_type);
    }
}

/* ---- one frame to its end; inside a read section, which ends while Python is asked ---- */

static void deliver(struct vipsec_worker *worker, struct rx_delivery *what) {
    struct vipsec_port *port = worker->port;
    if (port_has(port, FEATURE_MTU) && port->config.mtu != 0 && what->len - what->view.l3 > port->config.mtu) {
        drop(worker, VIPSEC_REASON_TOO_BIG); /* NET-CFG-DEV-05 */
        return;
    }
    const struct vipsec_steering *steering = atomic_load_explicit(&port->rules.steering, memory_order_acquire);
    struct steering_hash hash = {0};
    steering_hash(steering, what->frame, &what->view, &hash);
    if (!what->directed && !steering_choose(steering, &port->live, what->frame, &what->view, &hash, &what->queue)) {
        drop(worker, VIPSEC_REASON_QUEUE_DISABLED);
        return;
    }
    struct rx_ready *ready = &worker->ready[worker->ready_count++];
    ready->frame = what->frame;
    ready->len = what->len;
    ready->pair = what->queue;
    write_header(worker, what, &hash, ready->header);
    worker_count(&worker->counters.rx_frames, 1);
    worker_count(&worker->counters.rx_bytes, what->len);
}

/* At an operator's port; false: dropped and counted, or with Python. */
static bool admitted(struct vipsec_worker *worker, const struct rx_item *item, const struct rx_delivery *what) {
    const enum operator_verdict verdict = operator_admit(worker, item, what);
    if (verdict == OPERATOR_PUNT) {
        struct vipsec_rx_state state = {.opened = what->opened, .resource_id = what->resource_id, .l3 = what->view.l3,
                                        .soft_expired = what->soft_expired, .outer_version = item->outer_version};
        memcpy(state.outer_source, item->outer_source, sizeof state.outer_source);
        punt(worker, what->frame, what->len, &state);
    }
    if (verdict != OPERATOR_GO) {
        return false;
    }
    const struct vipsec_steering *steering =
        atomic_load_explicit(&worker->port->rules.steering, memory_order_acquire);
    if (!steering_admits(steering, what->frame, what->len)) {
        drop(worker, VIPSEC_REASON_FILTERED);
        return false;
    }
    return true;
}

static void finish(struct vipsec_worker *worker, const struct rx_item *item, const struct vipsec_frame *frame) {
    struct rx_delivery what = {.frame = frame->data, .len = frame->len, .view = item->view};
    switch (item->kind) {
    case RX_DROP:
        drop(worker, item->reason);
        return;
    case RX_PUNT:
        punt(worker, frame->data, frame->len, &(struct vipsec_rx_state){0});
        return;
    case RX_OPEN:
        if (!opened(worker, frame, item, &what)) {
            return;
        }
        break;
    case RX_FAIL:
        if (!fail(worker, item->reason, NULL, &what)) {
            return;
        }
        break;
    default:
        if (!direct(worker, item->has_rule ? &item->verdict : NULL, &what)) {
            return;
        }
    }
    if (!worker->port->config.by_operator || admitted(worker, item, &what)) {
        deliver(worker, &what);
    }
}

void vipsec_worker_receive(struct vipsec_worker *worker, struct vipsec_frame *frames, size_t count) {
    struct vipsec_port *port = worker->port;
    worker_begin(worker);
    while (count != 0) {
        enter(worker);
        const size_t batch = look(worker, frames, count < PORT_BATCH ? count : PORT_BATCH);
        esp_inbound_located(port->table, worker->packets, worker->located, worker->packet_count);
        for (size_t i = 0; i < batch; i++) {
            finish(worker, &worker->rx[i], &frames[i]);
        }
        leave(worker);
        deliver_ready(worker);
        worker->packet_count = 0;
        frames += batch;
        count -= batch;
    }
}
