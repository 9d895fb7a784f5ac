/*
 * Two workers transmit and receive while a third thread adds, changes and removes SAs, replaces policy, underlay and steering,
 * changes rules and exchanges the receive queues under them: for ThreadSanitizer, and true on its own: no packet is
 * counted twice or not at all, and the SA that stays has processed as many as left and came.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "../guest.h"

enum {
    WORKERS = 2,
    CHANGES = 400,
    ROUNDS = 300, /* at least, of each worker */
    BUFFER = 256,
    HEADER = 36,
    SIZE = 8 * GUEST_AREA + 4 * GUEST_RING * BUFFER,
    BASE = 0x40000,
};
#define FEATURE(bit) (UINT64_C(1) << ((bit) & 63))

static uint8_t *guest;
static struct vipsec_memory *memory;
static struct vipsec_sa_table *table;
static struct vipsec_flow_table *flow;
static struct vipsec_port *port;
static struct vipsec_worker *workers[WORKERS];
static struct guest_ring tx[WORKERS], rx[WORKERS];
static struct vipsec_queue *tx_queue[WORKERS], *rx_queue[WORKERS];
static atomic_int done;
static atomic_long rounds[WORKERS], offered, received, left_by_first;
static _Thread_local uint8_t kept[64][BUFFER];
static _Thread_local uint32_t kept_len[64], kept_count;

#define REQUIRE(what)                                              \
    do {                                                           \
        if (!(what)) {                                             \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what); \
            exit(1);                                               \
        }                                                          \
    } while (0)

static uint8_t *buffer_of(uint32_t ring, uint32_t number) {
    return guest + 8 * GUEST_AREA + (size_t)(ring * GUEST_RING + number) * BUFFER;
}
static uint64_t address_of(const uint8_t *at) { return BASE + (uint64_t)(at - guest); }

static void uplink(void *user, struct vipsec_frame *frames, size_t count) {
    (void)user;
    for (size_t i = 0; i < count; i++) {
        const struct vipsec_frame *frame = &frames[i];
        if (frame->len > 42 && frame->data[23] == 50 && load_be32(frame->data + 34) == 0x1000) {
            atomic_fetch_add(&left_by_first, 1);
        }
        if (kept_count < 64 && frame->len <= BUFFER) {
            memcpy(kept[kept_count], frame->data, frame->len);
            kept_len[kept_count++] = frame->len;
        }
    }
}

static void punt_tx(void *user, uint32_t pair, const uint8_t *buffer, size_t len) {
    (void)user, (void)pair, (void)buffer, (void)len;
}

static void punt_rx(void *user, struct vipsec_worker *worker, const uint8_t *frame, size_t len,
                    const struct vipsec_rx_state *state) {
    (void)user, (void)worker, (void)frame, (void)len, (void)state;
}

static struct vipsec_sa_config sa_config(uint32_t id, uint8_t direction, uint64_t soft) {
    return (struct vipsec_sa_config){
        .direction = direction, .is_tunnel = 1, .tunnel_family = 4, .key_len = 16, .icv_len = 16, .spi = 0x1000 + id,
        .first_sequence = 1, .source = {192, 0, 2, 1}, .destination = {192, 0, 2, 2}, .replay_window = 4096,
        .options = VIPSEC_OPTION_SA_LIFETIME, .packets_soft = soft};
}

static struct vipsec_policy *make_policy(uint32_t sa_id) {
    const struct vipsec_policy_selector any = {.protocol = -1, .local_high = 0xffff, .remote_high = 0xffff};
    const struct vipsec_policy_rule rules[2] = {
        {.selector = {.protocol = 17, .local_high = 0xffff, .remote_low = 7, .remote_high = 7},
         .sa_id = sa_id, .action = VIPSEC_POLICY_PROTECT, .priority = 2},
        {.selector = any, .sa_id = 0, .action = VIPSEC_POLICY_PROTECT, .priority = 1}};
    const struct vipsec_policy_inbound inbound = {.selector = any, .sa_id = 0};
    const struct vipsec_policy_config made = {.hash_seed = 3, .rules = rules, .inbound = &inbound, .rule_count = 2,
                                              .inbound_count = 1, .default_action = VIPSEC_POLICY_DROP_RULE};
    return vipsec_policy_new(&made);
}

/* The port's packets come back to it: the peer's address is one of its own. */
static struct vipsec_underlay *make_underlay(uint32_t turn) {
    struct vipsec_underlay_address addresses[3] = {
        {.address = {192, 0, 2, 2}, .family = 4, .is_own = 1, .has_path = 1, .mac = {2, 0, 0, 0, 0, (uint8_t)turn}, .mtu = 1400},
        {.address = {192, 0, 2, 1}, .family = 4, .is_own = 1},
        {.address = {10, 0, 1, (uint8_t)turn}, .family = 4, .mtu = 1300}};
    const struct vipsec_underlay_config made = {
        .hash_seed = turn, .addresses = addresses, .address_count = turn % 7 ? 3 : 1, .mtu = 1500, .guest_mtu = 1500,
        .mac = {2, 9}, .has_mac = 1, .guest_mac = {2, 7}, .has_guest = turn % 5 != 0, .mss_clamp = turn & 1};
    return vipsec_underlay_new(&made);
}

static void offer_transmit(uint32_t self, uint32_t number) {
    struct guest_ring *ring = &tx[self];
    uint8_t *buffer = buffer_of(self, ring->place), *frame = buffer + HEADER;
    memset(buffer, 0, HEADER + 80);
    buffer[0] = 8; /* SECURITY */
    store_le32(buffer + 28, number % 8 == 0 ? 1 : 0);
    store_le16(buffer + 32, 0x203);
    frame[0] = 2;
    store_be16(frame + 12, 0x0800);
    frame[14] = 0x45;
    store_be16(frame + 16, 66);
    frame[22] = 64;
    frame[23] = 17;
    store_be32(frame + 26, 0x0a000001 + self);
    store_be32(frame + 30, 0x0a000100 + number % 16);
    store_be16(frame + 34, 1000);
    store_be16(frame + 36, number % 8 == 0 ? 7 : 9);
    store_be16(frame + 38, 46);
    const struct guest_piece piece = {address_of(buffer), HEADER + 80, false};
    if (guest_offer(ring, &piece, 1)) {
        atomic_fetch_add(&offered, 1);
    }
}

static void *work(void *which) {
    const uint32_t self = which != NULL;
    uint32_t written;
    while (!atomic_load(&done)) {
        struct vipsec_frame frames[64];
        kept_count = 0;
        for (uint32_t i = 0; i < 32; i++) {
            offer_transmit(self, i);
        }
        vipsec_worker_transmit(workers[self], self, 64);
        while (guest_take(&tx[self], &written) >= 0) {
        }
        for (uint32_t i = 0; i < kept_count; i++) {
            frames[i] = (struct vipsec_frame){.data = kept[i], .len = kept_len[i]};
        }
        atomic_fetch_add(&received, kept_count);
        vipsec_worker_receive(workers[self], frames, kept_count);
        atomic_fetch_add(&rounds[self], 1);
    }
    return NULL;
}

static struct vipsec_queue *start(struct guest_ring *ring, uint32_t area, bool packed) {
    int fault;
    guest_ring_start(ring, guest + area * GUEST_AREA, GUEST_RING, packed);
    const struct vipsec_queue_config config = guest_ring_config(ring, BASE + area * GUEST_AREA, 0);
    struct vipsec_queue *queue = vipsec_queue_new(memory, &config, &fault);
    REQUIRE(queue != NULL);
    return queue;
}

/* The driver's side of a receive queue, and now and then another queue in its place. */
static void serve(uint32_t pair, bool exchange, uint32_t turn) {
    uint32_t written;
    if (exchange) {
        struct vipsec_queue *const before = rx_queue[pair];
        rx_queue[pair] = start(&rx[pair], 2 + 2 * pair + turn % 2, turn % 4 < 2);
        vipsec_port_set_queues(port, pair, rx_queue[pair], tx_queue[pair]);
        vipsec_queue_free(before);
    }
    while (guest_take(&rx[pair], &written) >= 0) {
        REQUIRE(written > HEADER && written <= BUFFER);
    }
    for (;;) {
        const struct guest_piece piece = {address_of(buffer_of(2 + pair, rx[pair].place)), BUFFER, true};
        if (!guest_offer(&rx[pair], &piece, 1)) {
            break;
        }
    }
}

static struct vipsec_policy *policy;
static struct vipsec_underlay *underlay;
static struct vipsec_steering *steering;
static struct vipsec_flow_rule *rule;

static void change(uint32_t turn) {
    const uint8_t protocol[34] = {[23] = 99};
    const struct vipsec_flow_rule_config config = {.rule_id = turn, .group_id = 1, .classifier_id = 1, .action = 1};
    const uint16_t queues[2] = {(uint16_t)(turn % 2), 1};
    const struct vipsec_steering_config steer = {.features = FEATURE(60), .queue_pairs = 2, .rss = 1, .table = queues,
                                                 .table_len = 2, .rx_mode = VIPSEC_RX_PROMISC};
    struct vipsec_sa_config sa = sa_config(1, VIPSEC_OUTBOUND, 0);
    int result;
    if (turn % 2 == 0) {
        REQUIRE(vipsec_sa_add(table, 1, &sa) == VIPSEC_SA_OK);
    } else {
        REQUIRE(vipsec_sa_remove(table, VIPSEC_OUTBOUND, 1) == VIPSEC_SA_OK);
    }
    sa = sa_config(0, turn % 3 ? VIPSEC_OUTBOUND : VIPSEC_INBOUND, turn);
    REQUIRE(vipsec_sa_modify(table, sa.direction, 0, &sa) == VIPSEC_SA_OK);
    struct vipsec_policy *const fresh = make_policy(turn % 5);
    vipsec_port_set_policy(port, fresh);
    vipsec_policy_free(policy);
    policy = fresh;
    struct vipsec_underlay *const around = turn % 11 ? make_underlay(turn) : NULL;
    vipsec_port_set_underlay(port, around);
    vipsec_underlay_free(underlay);
    underlay = around;
    struct vipsec_steering *const other = vipsec_steering_new(&steer);
    REQUIRE(other != NULL);
    vipsec_port_set_steering(port, other);
    vipsec_steering_free(steering);
    steering = other;
    if (rule != NULL) {
        vipsec_flow_remove_rule(flow, rule);
        rule = NULL;
    } else {
        REQUIRE((rule = vipsec_flow_add_rule(flow, &config, protocol, sizeof protocol, &result)) != NULL);
    }
    vipsec_port_set_guest_csum(port, turn & 1);
    for (uint32_t pair = 0; pair < WORKERS; pair++) {
        serve(pair, turn % 8 == pair, turn / 8);
    }
}

static uint64_t sum(const uint64_t *counts, size_t count) {
    uint64_t total = 0;
    for (size_t i = 0; i < count; i++) {
        total += counts[i];
    }
    return total;
}

static void check(bool by_operator) {
    uint64_t out = 0, in = 0, opened = 0;
    struct vipsec_sa_state state;
    for (uint32_t i = 0; i < WORKERS; i++) {
        struct vipsec_counters c;
        vipsec_worker_read(workers[i], &c);
        /* An operator's port counts what the guest sends, whatever becomes of it. */
        out += c.tx_frames + c.tx_punted + (by_operator ? 0 : sum(c.tx_refused, VIPSEC_REASON_COUNT));
        in += c.rx_frames + c.rx_punted + sum(c.rx_refused, VIPSEC_REASON_COUNT) +
              sum(c.rx_policy, VIPSEC_POLICY_OUTCOME_COUNT) - c.rx_policy[VIPSEC_POLICY_BYPASS] -
              c.rx_refused[VIPSEC_REASON_NO_BUFFER];
        opened += c.rx_opened;
    }
    REQUIRE(out == (uint64_t)atomic_load(&offered));
    REQUIRE(in == (uint64_t)atomic_load(&received));
    REQUIRE(vipsec_sa_read(table, VIPSEC_OUTBOUND, 0, &state) == VIPSEC_SA_OK);
    REQUIRE(state.packets == (uint64_t)atomic_load(&left_by_first) && state.packets == state.sequence);
    REQUIRE(vipsec_sa_read(table, VIPSEC_INBOUND, 0, &state) == VIPSEC_SA_OK);
    REQUIRE(state.packets == opened && opened > 0);
    printf("%ld buffers out, %ld frames in, %lu opened\n", atomic_load(&offered), atomic_load(&received),
           (unsigned long)opened);
}

static void run(bool by_operator, bool packed) {
    const uint8_t all[34] = {[23] = 255};
    const struct vipsec_flow_selector selectors[2] = {{1, 14, {0}, all}, {2, 20, {0}, all + 14}};
    const struct vipsec_port_config config = {
        .features_low = FEATURE(15) | FEATURE(60), .features_high = by_operator ? 0 : FEATURE(70), .pairs = WORKERS,
        .header_size = HEADER, .hash_at = VIPSEC_ABSENT, .outer_nh_at = VIPSEC_ABSENT, .resource_id_at = 28,
        .resource_type_at = 32, .flag_security = 8, .flag_security_err = 16, .flag_soft_expiry = 32, .type_required = 1,
        .open_unasked = 1, .drop_errors = 1, .by_operator = by_operator};
    const struct vipsec_port_calls calls = {.uplink = uplink, .punt_tx = punt_tx, .punt_rx = punt_rx};
    pthread_t threads[WORKERS];
    atomic_store(&done, 0);
    atomic_store(&offered, 0);
    atomic_store(&received, 0);
    atomic_store(&left_by_first, 0);
    table = vipsec_sa_table_new(vipsec_gcm_default(), 1);
    flow = vipsec_flow_table_new(1);
    port = vipsec_port_new(table, &config, &calls);
    REQUIRE(table != NULL && flow != NULL && port != NULL);
    vipsec_flow_set_group(flow, 1, 1);
    vipsec_flow_set_classifier(flow, 1, selectors, 2);
    vipsec_port_set_flow(port, flow);
    for (uint8_t direction = VIPSEC_OUTBOUND; direction <= VIPSEC_INBOUND; direction++) {
        const struct vipsec_sa_config sa = sa_config(0, direction, 0);
        REQUIRE(vipsec_sa_add(table, 0, &sa) == VIPSEC_SA_OK);
    }
    for (uint32_t i = 0; i < WORKERS; i++) {
        atomic_store(&rounds[i], 0);
        tx_queue[i] = start(&tx[i], i, packed);
        rx_queue[i] = NULL;
        workers[i] = vipsec_worker_new(port);
        REQUIRE(workers[i] != NULL);
        serve(i, true, 0);
    }
    change(0);
    for (size_t i = 0; i < WORKERS; i++) {
        pthread_create(&threads[i], NULL, work, i > 0 ? &threads : NULL);
    }
    uint32_t turn = 1;
    while (turn < CHANGES || atomic_load(&rounds[0]) < ROUNDS || atomic_load(&rounds[1]) < ROUNDS || turn % 2 != 0) {
        change(turn++);
    }
    atomic_store(&done, 1);
    for (size_t i = 0; i < WORKERS; i++) {
        pthread_join(threads[i], NULL);
    }
    check(by_operator);
    for (uint32_t i = 0; i < WORKERS; i++) {
        vipsec_worker_free(workers[i]);
        vipsec_queue_free(rx_queue[i]);
        vipsec_queue_free(tx_queue[i]);
    }
    vipsec_port_free(port);
    vipsec_policy_free(policy);
    vipsec_underlay_free(underlay);
    vipsec_steering_free(steering);
    vipsec_flow_table_free(flow);
    policy = NULL;
    underlay = NULL;
    steering = NULL;
    rule = NULL;
    vipsec_sa_table_free(table);
}

int main(void) {
    guest = aligned_alloc(4096, (SIZE + 4095) / 4096 * 4096);
    memory = vipsec_memory_new(&(struct vipsec_region){BASE, SIZE, guest}, 1);
    REQUIRE(guest != NULL && memory != NULL);
    run(false, false);
    run(true, true);
    vipsec_memory_free(memory);
    free(guest);
    return 0;
}
