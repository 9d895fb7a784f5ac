/*
 * libFuzzer harness: the whole packet path, between virtqueues whose driver is hostile and a wire that is hostile.
 *
 * An input is a program. It chooses the port (ring format, features, whose policy), offers buffers, spoils guest memory
 * (also from inside the port's calls, between two stages of a batch), sends frames of its own and frames that left
 * before, changed or not, and changes SAs, rules and queues. The guest's memory lies between pages that cannot be
 * touched, AddressSanitizer watches the rest. Checked besides: what the counters say against what the calls saw, and
 * that nothing of a buffer marked SECURITY leaves in clear.
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#undef NDEBUG
#include "../../fastpath/guest.h"

enum {
    PAGE = 4096,
    PAIRS = 2,
    QUEUES = 2 * PAIRS,
    BUFFERS = 8,       /* of each queue, BUFFER bytes each */
    BUFFER = 2048,
    SIZE = QUEUES * (GUEST_AREA + BUFFERS * BUFFER),
    BASE = 0x40000,
    KEPT = 16,         /* frames that left, to come back */
    FRAME_MAX = 4096,
    HEADER_MAX = 36,
    SA_COUNT = 4,
};
#define FEATURE(bit) (UINT64_C(1) << ((bit) & 63))
#define SECRET "SECRETSECRETSECR"

/* ---- the input ---- */

static const uint8_t *input;
static size_t left;

static uint32_t take8(void) { return left == 0 ? 0 : (left--, *input++); }

static uint32_t take16(void) {
    const uint32_t high = take8();
    return high << 8 | take8();
}

/* ---- the world ---- */

static uint8_t *guest;
static struct vipsec_memory *memory;
static struct guest_ring rings[QUEUES];
static struct vipsec_queue *queues[QUEUES];
static struct vipsec_sa_table *table;
static struct vipsec_flow_table *flow;
static struct vipsec_flow_rule *rule;
static struct vipsec_steering *steering[2];
static struct vipsec_policy *policies[2];
static struct vipsec_underlay *underlays[2];
static struct vipsec_port *port;
static struct vipsec_worker *worker;
static struct vipsec_port_config config;
static uint32_t ring_flags;
static bool spoilt; /* guest memory was changed behind a buffer that was offered: its marks say nothing */
static uint8_t kept[KEPT][FRAME_MAX];
static uint32_t kept_len[KEPT], kept_next;
static uint64_t sent, sent_bytes, punts_tx, punts_rx; /* seen since `before` */
static struct vipsec_counters before;

static uint64_t address_of(const uint8_t *at) { return BASE + (uint64_t)(at - guest); }
static uint8_t *buffer_of(uint32_t queue, uint32_t number) {
    return guest + QUEUES * GUEST_AREA + (queue * BUFFERS + number % BUFFERS) * BUFFER;
}

static void spoil(void) {
    const uint32_t at = take16() % SIZE;
    guest[at] ^= (uint8_t)take8();
    spoilt = true;
}

/* ---- what the port calls ---- */

static void uplink(void *user, struct vipsec_frame *frames, size_t count) {
    (void)user;
    for (size_t i = 0; i < count; i++) {
        const struct vipsec_frame *frame = &frames[i];
        assert(frame->len >= 14);
        sent++;
        sent_bytes += frame->len;
        const uint32_t len = frame->len < FRAME_MAX ? frame->len : FRAME_MAX;
        memcpy(kept[kept_next], frame->data, len);
        memcpy(&(uint8_t[1]){0}, frame->data + frame->len - 1, 1); /* AddressSanitizer looks at the end */
        kept_len[kept_next] = len;
        kept_next = (kept_next + 1) % KEPT;
        assert(spoilt || memmem(frame->data, frame->len, SECRET, 16) == NULL);
    }
    if (take8() % 16 == 0) {
        spoil();
    }
}

static void interrupt(void *user, uint32_t index) {
    (void)user;
    assert(index < QUEUES);
}

static void punt_tx(void *user, uint32_t pair, const uint8_t *buffer, size_t len) {
    static uint8_t copy[1 << 17];
    (void)user;
    assert(pair < PAIRS && len <= sizeof copy);
    memcpy(copy, buffer, len);
    punts_tx++;
    if (take8() % 8 == 0) { /* a reset from inside */
        vipsec_port_set_queues(port, pair, NULL, NULL);
    }
}

static void punt_rx(void *user, struct vipsec_worker *from, const uint8_t *frame, size_t len,
                    const struct vipsec_rx_state *state) {
    static uint8_t answer[HEADER_MAX + FRAME_MAX];
    (void)user;
    assert(len >= 14 && (state->opened == 0 || state->l3 >= 14));
    punts_rx++;
    memcpy(answer + config.header_size, frame, len < FRAME_MAX ? len : FRAME_MAX);
    vipsec_worker_deliver(from, take8() % (PAIRS + 1), answer, take16() % sizeof answer);
}

/* ---- setting up ---- */

static void add_sas(void) {
    for (uint32_t id = 0; id < SA_COUNT; id++) {
        struct vipsec_sa_config sa = {
            .direction = VIPSEC_OUTBOUND, .is_tunnel = id != 1, .tunnel_family = id == 2 ? 6 : 4, .key_len = 16,
            .icv_len = 16, .spi = 0x1000 + id, .salt = {1, 2, 3, 4}, .first_sequence = 1, .iv_base = 7,
            .source = {192, 0, 2, 1}, .destination = {192, 0, 2, 2}};
        sa.options = id == 2 ? VIPSEC_OPTION_UDP_ENCAP | VIPSEC_OPTION_ECN | VIPSEC_OPTION_DEC_TTL
                             : id == 3 ? VIPSEC_OPTION_ESN | VIPSEC_OPTION_SA_LIFETIME : 0;
        sa.udp_sport = sa.udp_dport = 4500;
        sa.packets_hard = id == 3 ? 20 : 0;
        (void)vipsec_sa_remove(table, VIPSEC_OUTBOUND, id);
        (void)vipsec_sa_remove(table, VIPSEC_INBOUND, id);
        assert(vipsec_sa_add(table, id, &sa) == VIPSEC_SA_OK);
        sa.direction = VIPSEC_INBOUND;
        sa.replay_window = id == 0 ? 0 : 64;
        assert(vipsec_sa_add(table, id, &sa) == VIPSEC_SA_OK);
    }
}

static struct vipsec_policy *make_policy(uint8_t action) {
    const struct vipsec_policy_selector any = {.protocol = -1, .local_high = 0xffff, .remote_high = 0xffff};
    struct vipsec_policy_rule rules[3] = {{.selector = any, .sa_id = 0, .action = VIPSEC_POLICY_PROTECT, .priority = 9},
                                          {.selector = any, .sa_id = 2, .action = VIPSEC_POLICY_PROTECT, .priority = 8},
                                          {.selector = any, .action = action, .priority = 1}};
    rules[0].selector.protocol = 17;
    rules[0].selector.remote_low = 100;
    rules[0].selector.remote_high = 5000;
    rules[1].selector.family = 6;
    struct vipsec_policy_inbound inbound[SA_COUNT];
    for (uint32_t id = 0; id < SA_COUNT; id++) {
        inbound[id] = (struct vipsec_policy_inbound){.selector = any, .sa_id = id};
    }
    const struct vipsec_policy_peer peers[1] = {{.sa_id = 0, .family = 4, .address = {192, 0, 2, 1}}};
    const struct vipsec_policy_config made = {.hash_seed = 5, .rules = rules, .inbound = inbound, .peers = peers,
                                              .rule_count = 3, .inbound_count = SA_COUNT, .peer_count = 1,
                                              .default_action = VIPSEC_POLICY_DROP_RULE};
    return vipsec_policy_new(&made);
}

static struct vipsec_underlay *make_underlay(bool clamp) {
    struct vipsec_underlay_address addresses[4] = {
        {.address = {192, 0, 2, 2}, .family = 4, .is_own = 1, .has_path = 1, .mac = {2, 1}, .mtu = clamp ? 600 : 0},
        {.address = {192, 0, 2, 1}, .family = 4, .is_own = 1},
        {.address = {192, 0, 2, 2}, .family = 6, .has_path = 1, .is_own = 1, .mac = {2, 2}},
        {.address = {10, 0, 0, 2}, .family = 4, .mtu = 500}};
    const struct vipsec_underlay_config made = {
        .hash_seed = 3, .addresses = addresses, .address_count = 4, .mtu = 1500, .guest_mtu = clamp ? 1000 : 65535,
        .mac = {2}, .has_mac = 1, .guest_mac = {0}, .has_guest = 1, .learns_guest = clamp, .mss_clamp = clamp};
    return vipsec_underlay_new(&made);
}

static void change_rule(uint8_t action) {
    const uint8_t keys[14 + 20] = {[12] = 8, [14 + 9] = 50};
    const struct vipsec_flow_rule_config made = {.rule_id = 1, .group_id = 1, .classifier_id = 1, .action = action,
                                                 .vq_index = (uint16_t)(action * 2), .priority = 1};
    int result;
    if (rule != NULL) {
        vipsec_flow_remove_rule(flow, rule);
    }
    rule = vipsec_flow_add_rule(flow, &made, keys, sizeof keys, &result);
    assert(rule != NULL);
}

static void set_up(void) {
    static const uint8_t ether[14] = {[12] = 255, [13] = 255}, ip[20] = {[9] = 255};
    const struct vipsec_flow_selector selectors[2] = {{1, 14, {0}, ether}, {2, 20, {0}, ip}};
    static const uint8_t key[40] = {1, 2, 3};
    static const uint16_t queue_of[2] = {0, 1};
    const size_t pages = (SIZE + PAGE - 1) / PAGE;
    uint8_t *mapped = mmap(NULL, (pages + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert(mapped != MAP_FAILED && mprotect(mapped + PAGE, pages * PAGE, PROT_READ | PROT_WRITE) == 0);
    guest = mapped + PAGE + pages * PAGE - SIZE;
    memory = vipsec_memory_new(&(struct vipsec_region){BASE, SIZE, guest}, 1);
    table = vipsec_sa_table_new(vipsec_gcm_default(), 1);
    flow = vipsec_flow_table_new(1);
    assert(memory != NULL && table != NULL && flow != NULL);
    vipsec_flow_set_group(flow, 1, 1);
    vipsec_flow_set_classifier(flow, 1, selectors, 2);
    struct vipsec_steering_config steer = {
        .features = FEATURE(57), .flows = vipsec_flow_memory_new(1), .queue_pairs = PAIRS, .key = key, .key_len = 40,
        .hash_types = 63, .rx_mode = VIPSEC_RX_PROMISC};
    steering[0] = vipsec_steering_new(&steer);
    steer.rss = 1;
    steer.table = queue_of;
    steer.table_len = 2;
    steering[1] = vipsec_steering_new(&steer);
    policies[0] = make_policy(VIPSEC_POLICY_BYPASS);
    policies[1] = make_policy(VIPSEC_POLICY_DROP_RULE);
    underlays[0] = make_underlay(false);
    underlays[1] = make_underlay(true);
    assert(underlays[0] != NULL && underlays[1] != NULL);
    assert(steering[0] != NULL && steering[1] != NULL && policies[0] != NULL && policies[1] != NULL);
}

static void start_queue(uint32_t index) {
    uint8_t *area = guest + index * GUEST_AREA;
    int fault;
    vipsec_port_set_queues(port, index / 2, index & 1 ? queues[index - 1] : NULL, index & 1 ? NULL : queues[index + 1]);
    vipsec_queue_free(queues[index]);
    guest_ring_start(&rings[index], area, GUEST_MOST, (ring_flags & VIPSEC_QUEUE_PACKED) != 0);
    const struct vipsec_queue_config made = guest_ring_config(&rings[index], address_of(area), ring_flags);
    queues[index] = vipsec_queue_new(memory, &made, &fault);
    assert(queues[index] != NULL);
    vipsec_port_set_queues(port, index / 2, queues[index & ~1u], queues[index | 1]);
}

/* The ports that there are; making one costs more than most inputs. Bits: see below. */
static const uint16_t kinds[] = {0x000, 0x001, 0x045, 0x063, 0x007, 0x085, 0x0d1, 0x009,
                                 0x10f, 0x11f, 0x108, 0x10b, 0x017, 0x022, 0x046, 0x0e4};
enum { KINDS = sizeof kinds / sizeof *kinds };

static void make_port(uint32_t choice) {
    config = (struct vipsec_port_config){
        .features_low = FEATURE(0) | FEATURE(11) | FEATURE(12) | FEATURE(13) | FEATURE(56) |
                        (choice & 1 ? FEATURE(15) : 0) | (choice & 2 ? FEATURE(57) : 0),
        .features_high = (choice & 4 ? FEATURE(69) : 0) | (choice & 8 ? 0 : FEATURE(70)),
        .pairs = PAIRS, .mtu = choice & 16 ? 1500 : 0, .header_size = HEADER_MAX, .hash_at = 12, .outer_nh_at = 20,
        .resource_id_at = 28, .resource_type_at = 32, .flag_security = 8, .flag_security_err = 16,
        .flag_soft_expiry = 32, .flag_tunnel_csum = 64, .type_required = choice >> 5 & 1, .open_unasked = choice >> 6 & 1,
        .drop_errors = choice >> 7 & 1, .by_operator = choice >> 8 & 1,
        .most_punts = choice & 1 ? 2 : 0};
    const struct vipsec_port_calls calls = {
        .uplink = uplink, .interrupt = interrupt, .punt_tx = punt_tx, .punt_rx = punt_rx};
    port = vipsec_port_new(table, &config, &calls);
    assert(port != NULL);
    vipsec_port_set_flow(port, flow);
    worker = vipsec_worker_new(port);
    assert(worker != NULL);
}

static void start_port(void) {
    static struct vipsec_worker *workers[KINDS];
    static struct vipsec_port *ports[KINDS];
    static struct vipsec_port_config configs[KINDS];
    const uint32_t kind = take8() % KINDS, choice = take8();
    if (workers[kind] == NULL) {
        make_port(kinds[kind]);
        ports[kind] = port;
        workers[kind] = worker;
        configs[kind] = config;
    }
    port = ports[kind];
    worker = workers[kind];
    config = configs[kind];
    ring_flags = choice & 15;
    vipsec_port_set_steering(port, steering[choice >> 4 & 1]);
    vipsec_port_set_policy(port, policies[choice >> 5 & 1]);
    vipsec_port_set_underlay(port, choice & 1 ? underlays[choice >> 1 & 1] : NULL);
    vipsec_port_set_guest_csum(port, choice >> 6 & 1);
    vipsec_port_set_foreign_sas(port, choice >> 7 & 1);
    vipsec_worker_read(worker, &before);
    for (uint32_t index = 0; index < QUEUES; index++) {
        queues[index] = NULL;
    }
    for (uint32_t index = 0; index < QUEUES; index++) {
        start_queue(index);
    }
}

/* ---- frames ---- */

/* An Ethernet frame with UDP or TCP in IP, filled with `fill`; its length. */
static uint32_t compose(uint8_t *out, uint32_t kind, uint32_t data, const char *fill) {
    const bool v6 = kind & 1, tcp = kind & 2;
    const uint32_t l2 = kind & 4 ? 18 : 14, l3_len = v6 ? 40 : 20, l4_len = tcp ? 20 : 8;
    uint8_t *ip = out + l2, *l4 = ip + l3_len;
    memset(out, 0, l2 + l3_len + l4_len);
    out[0] = 2;
    store_be16(out + 12, kind & 4 ? 0x8100 : 0);
    store_be16(ip - 2, v6 ? 0x86dd : 0x0800);
    if (v6) {
        ip[0] = 0x60;
        store_be16(ip + 4, (uint16_t)(l4_len + data));
        ip[6] = tcp ? 6 : 17;
        ip[7] = 64;
        ip[23] = ip[39] = 1;
    } else {
        ip[0] = 0x45;
        store_be16(ip + 2, (uint16_t)(20 + l4_len + data));
        ip[8] = 64;
        ip[9] = tcp ? 6 : 17;
        store_be32(ip + 12, 0x0a000001);
        store_be32(ip + 16, 0x0a000002);
        uint64_t sum = 0;
        for (uint32_t i = 0; i < 20; i += 2) {
            sum += load_be16(ip + i);
        }
        sum = (sum & 0xffff) + (sum >> 16);
        store_be16(ip + 10, (uint16_t)~sum);
    }
    store_be16(l4, 1000);
    store_be16(l4 + 2, kind & 8 ? 443 : 7);
    if (tcp) {
        l4[12] = 0x50;
        l4[13] = 0x19;
    } else {
        store_be16(l4 + 4, (uint16_t)(8 + data));
    }
    for (uint32_t i = 0; i < data; i++) {
        l4[l4_len + i] = (uint8_t)fill[i % 16];
    }
    return l2 + l3_len + l4_len + data;
}

static void offer_transmit(uint32_t pair) {
    struct guest_ring *ring = &rings[2 * pair + 1];
    uint8_t *buffer = buffer_of(2 * pair + 1, ring->place), *frame = buffer + config.header_size;
    const uint32_t kind = take8(), how = take8(), count = 1 + (how >> 4) % 3;
    if (ring->free < count) {
        return; /* that buffer is still the device's */
    }
    const bool secure = kind & 16;
    const bool marked = secure && !config.by_operator && (config.features_high & FEATURE(70)) != 0;
    memset(buffer, 0, config.header_size);
    uint32_t len = compose(frame, kind, 16 + take8() * 5 % 1500, marked ? SECRET : "0123456789abcdef");
    const uint32_t l4 = (kind & 4 ? 18u : 14u) + (kind & 1 ? 40u : 20u);
    buffer[0] = (uint8_t)((secure ? 8 : 0) | (how & 1));
    buffer[1] = (uint8_t)(how & 2 ? (how & 1 ? (kind & 2 ? (kind & 1 ? 4 : 1) : 5) : how >> 2) : 0);
    store_le16(buffer + 4, (uint16_t)(1 + take8() * 3));
    store_le16(buffer + 6, (uint16_t)(how & 0x40 ? take8() : l4));
    store_le16(buffer + 8, (uint16_t)(how & 0x80 ? take8() : kind & 2 ? 16 : 6));
    store_le32(buffer + 28, kind >> 5);
    store_le16(buffer + 32, (uint16_t)(kind == 255 ? 0 : 0x203));
    len += config.header_size;
    if (kind % 16 == 15) { /* octets of the input, anywhere */
        for (uint32_t i = take8() % 16; i > 0; i--) {
            const uint32_t at = take16() % len;
            buffer[at] = (uint8_t)take8();
        }
        spoilt = true; /* the marks may be gone */
    }
    struct guest_piece pieces[GUEST_MOST];
    uint32_t at = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t end = i + 1 == count ? len : at + 1 + take8() % (len - at - (count - i));
        pieces[i] = (struct guest_piece){address_of(buffer + at), end - at, false};
        at = end;
    }
    guest_offer(ring, pieces, count);
}

static void offer_receive(uint32_t pair) {
    struct guest_ring *ring = &rings[2 * pair];
    const uint32_t len = 1 + take16() % BUFFER;
    const struct guest_piece piece = {address_of(buffer_of(2 * pair, ring->place)), len, true};
    guest_offer(ring, &piece, 1);
}

static void receive(void) {
    static uint8_t frames[80][FRAME_MAX];
    struct vipsec_frame batch[80];
    const uint32_t count = 1 + (take8() % 8 == 0 ? take8() % 80 : take8() % 3);
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *frame = frames[i];
        const uint32_t kind = take8();
        uint32_t len;
        if (kind & 0x80) {
            len = kept_len[kind % KEPT];
            memcpy(frame, kept[kind % KEPT], len);
        } else if (kind & 0x40) {
            len = kind % 64 < left ? kind % 64 : (uint32_t)left;
            memcpy(frame, input, len);
            input += len;
            left -= len;
        } else {
            len = compose(frame, kind, 16 + take8() * 5, "0123456789abcdef");
        }
        if ((kind & 0x20) != 0 && len > 0) {
            frame[take16() % len] ^= (uint8_t)take8();
            len -= take8() % 16 == 0 ? take16() % len : 0;
        }
        /* Exactly as large as it is, for AddressSanitizer. */
        batch[i] = (struct vipsec_frame){.data = malloc(len + !len), .len = len};
        memcpy(batch[i].data, frame, len);
    }
    vipsec_worker_receive(worker, batch, count);
    for (uint32_t i = 0; i < count; i++) {
        free(batch[i].data);
    }
}

static void reap(void) {
    uint32_t written;
    for (uint32_t index = 0; index < QUEUES; index++) {
        while (guest_take(&rings[index], &written) >= 0) {
            assert(spoilt || written <= BUFFER);
        }
    }
}

static void control(void) {
    const uint32_t what = take8(), id = what >> 3 & 3;
    switch (what % 8) {
    case 0: vipsec_port_set_policy(port, what & 8 ? policies[what >> 4 & 1] : NULL); break;
    case 1: vipsec_port_set_steering(port, what & 8 ? steering[what >> 4 & 1] : NULL); break;
    case 2: change_rule((uint8_t)(1 + id)); break;
    case 3: add_sas(); break;
    case 4: vipsec_sa_remove(table, 1 + (what >> 5 & 1), id); break;
    case 5: start_queue(id); break;
    case 6: vipsec_port_set_queues(port, id & 1, NULL, NULL); break;
    default:
        vipsec_port_set_foreign_sas(port, what >> 3 & 1);
        vipsec_port_set_underlay(port, what & 16 ? underlays[what >> 5 & 1] : NULL);
    }
}

/* By the operator's policy. */
static uint64_t rx_dropped(const struct vipsec_counters *counts) {
    uint64_t total = 0;
    for (size_t i = VIPSEC_POLICY_DROP_RULE; i < VIPSEC_POLICY_OUTCOME_COUNT; i++) {
        total += counts->rx_policy[i];
    }
    return total;
}

static void check_counts(void) {
    struct vipsec_counters counts;
    vipsec_worker_read(worker, &counts);
    if (config.by_operator) {
        assert(counts.tx_sealed - before.tx_sealed + counts.tx_policy[VIPSEC_POLICY_BYPASS] -
                   before.tx_policy[VIPSEC_POLICY_BYPASS] == sent);
    } else {
        assert(counts.tx_frames - before.tx_frames == sent && counts.tx_bytes - before.tx_bytes == sent_bytes);
    }
    assert(counts.tx_punted - before.tx_punted == punts_tx && counts.rx_punted - before.rx_punted == punts_rx);
    assert(counts.tx_sealed <= counts.tx_frames && counts.rx_opened <= counts.rx_frames + counts.rx_punted +
           counts.rx_refused[VIPSEC_REASON_FILTERED] + counts.rx_refused[VIPSEC_REASON_RULE_DROP] + rx_dropped(&counts) +
           counts.rx_refused[VIPSEC_REASON_QUEUE_DISABLED]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    if (guest == NULL) {
        set_up();
    }
    input = data;
    left = len;
    memset(guest, 0, SIZE);
    memset(kept_len, 0, sizeof kept_len);
    spoilt = false;
    sent = sent_bytes = punts_tx = punts_rx = kept_next = 0;
    add_sas();
    start_port();
    change_rule((uint8_t)(1 + take8() % 4));
    for (uint32_t steps = 0; left > 0 && steps < 200; steps++) {
        const uint32_t what = take8(), pair = what >> 3 & 1;
        switch (what % 8) {
        case 0:
        case 1: offer_transmit(pair); break;
        case 2: offer_receive(pair); break;
        case 3: assert(vipsec_worker_transmit(worker, pair, take8()) <= 255); break;
        case 4: receive(); break;
        case 5: what & 16 ? control() : reap(); break;
        case 6: reap(); break;
        default: spoil();
        }
        check_counts();
    }
    for (uint32_t index = 0; index < QUEUES; index++) {
        vipsec_port_set_queues(port, index / 2, NULL, NULL);
        vipsec_queue_free(queues[index]);
    }
    return 0;
}
