/*
 * From a transmit queue to the uplink (virtio v1.4 5.1.6.2; the oracle is device/transmit.py).
 *
 * Stages, each over a batch: take buffers off the ring and copy them (the only stretch that touches guest memory),
 * look at headers, finish checksums and cut segments, ESP, uplink. The fast path does what well-formed packets need;
 * everything else goes to Python before anything was changed or counted, so the refusals are written down once.
 */
#include <string.h>

#include "esp.h"
#include "guard.h"
#include "offload.h"
#include "operator.h"
#include "worker.h"

/* ---- the end of the way: ESP over what has gathered, then the uplink ---- */

static void refuse(struct vipsec_worker *worker, int reason) { worker_count(&worker->counters.tx_refused[reason], 1); }

/* The link header, kept aside because the outer header was built where it stood, goes in front of the packet. */
static void put_link_header(const struct tx_item *item, const struct vipsec_packet *packet, struct vipsec_frame *out) {
    out->data = packet->data - item->l2;
    out->len = packet->len + item->l2;
    memcpy(out->data, item->link, item->l2);
    store_be16(packet->data - 2, ethertype_of(packet->data[0] >> 4));
}

/*
 * Protects and sends what has gathered; inside a read section, which ends while the uplink is called. When a segment
 * of a buffer is refused, those behind it in the same buffer are not tried: exactly as many packets leave as a limit
 * allows, and one refusal is counted.
 */
static void flush(struct vipsec_worker *worker) {
    struct vipsec_port *port = worker->port;
    if (worker->item_count == 0) {
        return;
    }
    if (worker->packet_count != 0) {
        esp_outbound(port->table, worker->packets, worker->packet_count);
    }
    size_t frames = 0, sealed = 0, bytes = 0;
    for (uint32_t i = 0; i < worker->item_count; i++) {
        const struct tx_item *item = &worker->items[i];
        struct vipsec_frame *out = &worker->frames[frames];
        if (item->kind == TX_PROTECT) {
            const struct vipsec_packet *packet = &worker->packets[item->packet];
            if (packet->reason != VIPSEC_REASON_NONE) {
                if (!packet->skipped) {
                    refuse(worker, packet->reason);
                }
                continue;
            }
            put_link_header(item, packet, out);
            sealed++;
        } else {
            out->data = item->frame;
            out->len = item->len;
        }
        bytes += out->len;
        frames++;
    }
    /* A buffer may go on in the next batch. */
    worker->last_reason = worker->packet_count != 0 ? worker->packets[worker->packet_count - 1].reason : 0;
    worker->item_count = worker->packet_count = 0;
    worker->segments_used = 0;
    if (!port->config.by_operator) { /* there they count as the guest sends them */
        worker_count(&worker->counters.tx_frames, frames);
        worker_count(&worker->counters.tx_bytes, bytes);
    }
    worker_count(&worker->counters.tx_sealed, sealed);
    if (frames != 0) {
        sa_reader_exit(port->table, worker->reader);
        worker->uplink(worker->uplink_user, worker->frames, frames);
        sa_reader_enter(port->table, worker->reader);
    }
}

/* ---- one frame, ready but for ESP ---- */

/* `more`: a further frame of the same buffer. */
static void gather(struct vipsec_worker *worker, uint8_t *frame, uint32_t len, const struct tx_order *order, bool more) {
    if (worker->item_count == PORT_BATCH) {
        flush(worker);
    }
    struct tx_item *item = &worker->items[worker->item_count++];
    item->frame = frame;
    item->len = len;
    item->kind = TX_PLAIN;
    if (!order->protect) {
        return;
    }
    item->kind = TX_PROTECT;
    if (order->readdressed) {
        item->l2 = FRAME_ETHERNET_HEADER;
        memcpy(item->link, order->link, sizeof order->link);
    } else {
        item->l2 = order->l3;
        memcpy(item->link, frame, TX_MAX_LINK); /* a frame in the arena has that much room behind it */
    }
    item->packet = worker->packet_count;
    /* An operator drops frame by frame; a driver's buffer is refused once, and what it began ends there. */
    const bool follows = more && !worker->port->config.by_operator;
    worker->packets[worker->packet_count++] = (struct vipsec_packet){
        .data = frame + order->l3,
        .len = len - order->l3,
        .headroom = ARENA_HEADROOM,
        .tailroom = ARENA_TAILROOM,
        .mtu = order->mtu,
        .sa_id = order->sa_id,
        .follows = follows,
        .skipped = follows && worker->last_reason != VIPSEC_REASON_NONE, /* looked at in the first packet of a call */
        .reason = worker->last_reason,
    };
}

/* ---- headers ---- */

/*
 * The network header's offset when the packet is IP as its EtherType says and the header, if it gives an offset, gives
 * that one; else 0 (device/transmit.py network_header and protect: the refusal is Python's).
 */
static uint32_t ip_offset(const struct vipsec_port *port, const uint8_t *header, const uint8_t *frame, uint32_t len) {
    uint16_t ethertype;
    const uint32_t l3 = frame_network_offset(frame, len, &ethertype);
    const uint32_t version = ethertype == FRAME_IPV4 ? 4 : ethertype == FRAME_IPV6 ? 6 : 0;
    if (version == 0 || l3 >= len || l3 > TX_MAX_LINK || frame[l3] >> 4 != version) {
        return 0;
    }
    if (port->config.outer_nh_at != VIPSEC_ABSENT && port_has(port, FEATURE_OUT_NET_HEADER)) {
        const uint32_t given = load_le16(header + port->config.outer_nh_at);
        if (given != 0 && given != l3) {
            return 0;
        }
    }
    return l3;
}

/* Whether the fast path protects the packet, or leaves it as it is; false: Python has to look at it. */
static bool security(const struct vipsec_port *port, const uint8_t *header, struct tx_order *order) {
    const struct vipsec_port_config *config = &port->config;
    const bool asked = (header[HDR_FLAGS_AT] & config->flag_security) != 0 && port_has(port, FEATURE_IPSEC);
    order->protect = asked && !config->by_operator;
    if (!order->protect) {
        return true;
    }
    const uint32_t type = load_le16(header + config->resource_type_at);
    order->sa_id = load_le32(header + config->resource_id_at);
    return (type == RESOURCE_OUTBOUND_SA || (type == 0 && !config->type_required)) &&
           sa_outbound(port->table, order->sa_id) != NULL;
}

/* What a frame of `len` octets takes in an arena. */
static size_t arena_room(size_t len) { return (ARENA_HEADROOM + len + ARENA_TAILROOM + 63) & ~(size_t)63; }

static bool room_for_segment(const struct vipsec_worker *worker, size_t need) {
    return worker->segments_used + need <= ARENA_SIZE && worker->item_count < PORT_BATCH;
}

/* Whether the checksum field lies in the frame, and not in the headers that say where IP is. */
static bool sum_fits(const struct vipsec_offload_request *request, uint32_t len, const struct tx_order *order) {
    const uint32_t at = (uint32_t)request->csum_start + request->csum_offset;
    return at + 2 <= len && (order->l3 == 0 || at > order->l3);
}

/* Whether it is the checksum of a TCP or UDP packet, where that has to be. */
static bool sum_is_plain(const struct vipsec_offload_request *request, const uint8_t *frame, uint32_t len,
                         const struct tx_order *order) {
    struct ip_header ip;
    struct ip_chain chain;
    const uint8_t *packet = frame + order->l3;
    if (ip_parse(packet, len - order->l3, &ip) != VIPSEC_REASON_NONE ||
        ip_chain(packet, &ip, &chain) != VIPSEC_REASON_NONE || request->csum_start != order->l3 + chain.end.offset) {
        return false;
    }
    return (chain.end.protocol == FRAME_TCP && request->csum_offset == 16) ||
           (chain.end.protocol == FRAME_UDP && request->csum_offset == 6);
}

/* Automatic steering sees what is sent (as it was queued). */
static void learn(struct vipsec_worker *worker, const struct tx_raw *raw, uint32_t pair) {
    const struct vipsec_port *port = worker->port;
    const struct vipsec_steering *steering = atomic_load_explicit(&port->rules.steering, memory_order_acquire);
    steering_sent(steering, raw->buffer + port->config.header_size, raw->len - port->config.header_size, pair);
}

/* Makes segment `index`; where, and how long. */
static uint8_t *make_segment(struct vipsec_worker *worker, const struct offload_plan *plan, uint32_t index, uint32_t *len) {
    const size_t most = arena_room((size_t)plan->payload + plan->size);
    if (!room_for_segment(worker, most)) {
        flush(worker);
    }
    uint8_t *out = worker->segments + worker->segments_used + ARENA_HEADROOM;
    worker->segments_used += most;
    if (worker->segments_most < worker->segments_used) {
        worker->segments_most = worker->segments_used;
    }
    *len = offload_segment(plan, index, out);
    return out;
}

/*
 * All segments of a buffer. At an operator's port the first one decides: they differ in nothing that rules look at, none
 * is longer, and they share one fate when rules are replaced meanwhile. False: to Python.
 */
static bool cut(struct vipsec_worker *worker, const struct tx_raw *raw, const struct offload_plan *plan,
                struct tx_order *order, uint32_t pair) {
    uint32_t len;
    uint8_t *segment = make_segment(worker, plan, 0, &len);
    if (worker->port->config.by_operator) {
        const enum operator_verdict verdict = operator_leaving(
            worker, segment, len, order, plan->count, (uint64_t)plan->count * plan->payload + plan->body);
        if (verdict != OPERATOR_GO) {
            worker->segments_used -= arena_room((size_t)plan->payload + plan->size);
            if (verdict == OPERATOR_DROP) {
                learn(worker, raw, pair);
            }
            return verdict == OPERATOR_DROP;
        }
    }
    learn(worker, raw, pair);
    gather(worker, segment, len, order, false);
    for (uint32_t i = 1; i < plan->count; i++) {
        segment = make_segment(worker, plan, i, &len);
        gather(worker, segment, len, order, true);
    }
    return true;
}

/* A frame that leaves as it is. */
static bool send_whole(struct vipsec_worker *worker, const struct tx_raw *raw, uint8_t *frame, uint32_t len,
                       const struct vipsec_offload_request *sum, struct tx_order *order, uint32_t pair) {
    enum operator_verdict verdict = OPERATOR_GO;
    if (worker->port->config.by_operator) {
        /* The policy looks first: what the checksum changes must be nothing that it has seen. */
        if (sum != NULL && !sum_is_plain(sum, frame, len, order)) {
            return false;
        }
        verdict = operator_leaving(worker, frame, len, order, 1, len);
    }
    if (verdict == OPERATOR_PUNT) {
        return false;
    }
    learn(worker, raw, pair);
    if (verdict == OPERATOR_GO) {
        if (sum != NULL) {
            offload_checksum(frame, len, sum->csum_start, sum->csum_offset);
        }
        gather(worker, frame, len, order, false);
    }
    return true;
}

/* Everything up to ESP; false, and nothing changed, when Python has to do it. */
static bool prepare(struct vipsec_worker *worker, const struct tx_raw *raw, uint32_t pair) {
    const struct vipsec_port *port = worker->port;
    const struct vipsec_port_config *config = &port->config;
    const uint8_t *header = raw->buffer;
    const uint32_t least = (uint32_t)config->header_size + FRAME_ETHERNET_HEADER;
    if (raw->len < least || (header[HDR_FLAGS_AT] & config->flag_tunnel_csum) != 0) {
        return false;
    }
    uint8_t *frame = raw->buffer + config->header_size;
    const uint32_t len = raw->len - config->header_size;
    const struct vipsec_offload_request request = {
        .flags = header[HDR_FLAGS_AT],
        .gso_type = header[HDR_GSO_TYPE_AT],
        .gso_size = load_le16(header + HDR_GSO_SIZE_AT),
        .csum_start = load_le16(header + HDR_CSUM_START_AT),
        .csum_offset = load_le16(header + HDR_CSUM_OFFSET_AT),
    };
    struct tx_order order = {.mtu = config->mtu};
    uint8_t base = 0;
    struct offload_plan plan;
    if (offload_check(&request, config->features_low, &base) != OFFLOAD_OK || !security(port, header, &order)) {
        return false;
    }
    const bool needs_ip = base != 0 || order.protect || config->by_operator;
    if (needs_ip && (order.l3 = ip_offset(port, header, frame, len)) == 0) {
        return false;
    }
    const bool sum = base == 0 && (request.flags & HDR_NEEDS_CSUM) != 0 && port_has(port, FEATURE_CSUM);
    if (base != 0 && offload_plan(frame, len, &request, base, order.l3, &plan) != OFFLOAD_OK) {
        return false;
    }
    if (sum && !sum_fits(&request, len, &order)) {
        return false;
    }
    return base != 0 ? cut(worker, raw, &plan, &order, pair)
                     : send_whole(worker, raw, frame, len, sum ? &request : NULL, &order, pair);
}

/* ---- the ring ---- */

/* Takes buffers and completes them: their octets are ours from here on. Inside a guard frame. */
static uint32_t fetch(struct vipsec_worker *worker, struct vipsec_queue *queue, uint32_t most) {
    worker->raw_count = 0;
    const int popped = ring_pop_many(queue, worker->chains, most);
    uint32_t taken = popped > 0 ? (uint32_t)popped : 0;
    size_t used = 0;
    for (uint32_t i = 0; i < taken; i++) {
        const struct vipsec_chain *chain = &worker->chains[i];
        struct tx_raw *raw = &worker->raw[i];
        raw->len = chain->readable_len > PORT_MAX_BUFFER ? TX_TOO_LONG : (uint32_t)chain->readable_len;
        if (raw->len == TX_TOO_LONG) {
            continue;
        }
        const size_t need = arena_room(raw->len);
        if (used + need > ARENA_SIZE) {
            while (taken > i) {
                ring_unpop_last(queue, &worker->chains[--taken]);
            }
            break;
        }
        raw->buffer = worker->arena + used + ARENA_HEADROOM;
        used += need;
        if (worker->arena_most < used) {
            worker->arena_most = used;
        }
        ring_copy_out(chain, 0, raw->buffer, raw->len);
    }
    memset(worker->written, 0, taken * sizeof *worker->written);
    if (taken != 0 && ring_push_many(queue, worker->chains, worker->written, taken) != 0) {
        taken = 0;
    }
    worker->raw_count = taken;
    return taken;
}

static uint32_t fetch_guarded(struct vipsec_worker *worker, struct vipsec_queue *queue, uint32_t pair, uint32_t most) {
    struct guard_frame frame;
    worker->notify = false;
    if (guard_enter(&frame, queue->memory) == 0) {
        if (fetch(worker, queue, most) != 0) {
            worker->notify = ring_should_notify(queue);
        }
        guard_leave(&frame);
    } else {
        ring_break(queue, VIPSEC_FAULT_MEMORY);
        worker->raw_count = 0;
    }
    if (worker->notify) {
        ring_signal(queue);
        worker_interrupt(worker, 2 * pair + 1);
    }
    return worker->raw_count;
}

/* One buffer: as far as its frames, or to Python behind what came before it, so that packets of one SA stay in order. */
static void work_off(struct vipsec_worker *worker, const struct tx_raw *raw, uint32_t pair) {
    const struct vipsec_port *port = worker->port;
    if (raw->len == TX_TOO_LONG) {
        refuse(worker, VIPSEC_REASON_TOO_BIG);
    } else if (!prepare(worker, raw, pair)) {
        if (!worker_may_punt(worker)) {
            refuse(worker, VIPSEC_REASON_OVERLOAD);
            return;
        }
        flush(worker);
        worker_count(&worker->counters.tx_punted, 1);
        sa_reader_exit(port->table, worker->reader);
        port->calls.punt_tx(port->calls.user, pair, raw->buffer, raw->len);
        sa_reader_enter(port->table, worker->reader);
    }
}

/* One batch; how many buffers it had. */
static uint32_t transmit_some(struct vipsec_worker *worker, struct vipsec_queue *queue, uint32_t pair, size_t budget) {
    struct vipsec_port *port = worker->port;
    const uint32_t count = fetch_guarded(worker, queue, pair, budget < PORT_BATCH ? (uint32_t)budget : PORT_BATCH);
    if (count != 0) {
        sa_reader_enter(port->table, worker->reader);
        for (uint32_t i = 0; i < count; i++) {
            work_off(worker, &worker->raw[i], pair);
        }
        flush(worker);
        sa_reader_exit(port->table, worker->reader);
    }
    return count;
}

/* Whether Python may be given a whole batch more; else the call ends rather than drop. */
static bool may_go_on(const struct vipsec_worker *worker) {
    return worker->punts_left >= PORT_BATCH || worker->port->config.most_punts < PORT_BATCH;
}

size_t vipsec_worker_poll(struct vipsec_worker *worker, uint32_t pair, size_t budget, uint32_t idle) {
    struct vipsec_port *port = worker->port;
    struct vipsec_queue *const queue = pair < port->config.pairs ? port->tx[pair] : NULL;
    size_t done = 0;
    uint32_t empty = 0;
    worker_begin(worker);
    /* A punted packet's way may lead to a reset, which takes the queue away. */
    while (queue != NULL && queue == port->tx[pair] && done < budget && may_go_on(worker)) {
        const uint32_t count = transmit_some(worker, queue, pair, budget - done);
        done += count;
        if (count != 0) {
            empty = 0;
        } else if (empty++ >= idle || queue->fault != VIPSEC_FAULT_NONE) {
            break;
        } else {
            spin_pause();
        }
    }
    return done;
}

size_t vipsec_worker_transmit(struct vipsec_worker *worker, uint32_t pair, size_t budget) {
    return vipsec_worker_poll(worker, pair, budget, 0);
}
