/* Receive filter, packet hash, RSS and automatic steering. */
#include "steering.h"

#include <pthread.h>
#include <stdlib.h>

#include "hash.h"
#include "toeplitz.h"

enum { F_MAC = 5, F_CTRL_RX = 18, F_CTRL_VLAN = 19, F_CTRL_MAC_ADDR = 23, F_HASH_REPORT = 57 };
enum { REPORT_IPV4 = 1, TCPV4, UDPV4, REPORT_IPV6, TCPV6, UDPV6, IPV6_EX, TCPV6_EX, UDPV6_EX };

static_assert(sizeof(struct vipsec_steering_config) == 104, "layout");

struct vipsec_steering {
    uint32_t rx_mode, hash_types;
    uint32_t queue_pairs;
    uint16_t unclassified_queue;
    bool rss, hashes, filters_vlans, filters_macs, knows_mac;
    uint32_t table_mask;
    const uint16_t *table;
    struct vipsec_flow_memory *flows;
    uint64_t mac;
    const uint64_t *macs; /* open addressing, 0 is free; unicast and multicast together */
    size_t macs_mask;
    struct hash_secret secret;
    struct toeplitz toeplitz;
    uint64_t vlans[4096 / 64];
    uint64_t room[];
};

/* A MAC address as a number that is not 0. */
static uint64_t mac_number(const uint8_t *mac) {
    return (uint64_t)load_be16(mac) << 32 | load_be32(mac + 2) | 1ull << 63;
}

static bool in_macs(const struct vipsec_steering *s, uint64_t mac) {
    for (size_t at = hash_words(&s->secret, &mac, 1) & s->macs_mask; s->macs[at] != 0; at = (at + 1) & s->macs_mask) {
        if (s->macs[at] == mac) {
            return true;
        }
    }
    return false;
}

/* Those of the list that are group addresses, or those that are not: the others can match nothing. */
static void add_macs(const struct vipsec_steering *s, uint64_t *macs, const uint8_t *list, size_t count, int group) {
    for (size_t i = 0; i < count; i++) {
        if ((list[6 * i] & 1) != group) {
            continue;
        }
        const uint64_t mac = mac_number(list + 6 * i);
        size_t at = hash_words(&s->secret, &mac, 1) & s->macs_mask;
        while (macs[at] != 0) {
            at = (at + 1) & s->macs_mask;
        }
        macs[at] = mac;
    }
}

struct vipsec_steering *vipsec_steering_new(const struct vipsec_steering_config *config) {
    const size_t table_len = config->table_len, macs = (size_t)config->unicast_count + config->multicast_count;
    size_t slots = 2;
    while (slots < 2 * macs + 1) {
        slots *= 2;
    }
    if (config->queue_pairs == 0 || (config->rss && (table_len == 0 || (table_len & (table_len - 1)) != 0))) {
        return NULL;
    }
    const size_t table_words = (table_len + 3) / 4;
    struct vipsec_steering *s = calloc(1, sizeof *s + 8 * (slots + table_words));
    if (s == NULL) {
        return NULL;
    }
    uint16_t *table = (uint16_t *)(void *)(s->room + slots);
    const uint64_t features = config->features;
    s->rx_mode = config->rx_mode;
    s->hash_types = config->hash_types;
    s->queue_pairs = config->queue_pairs;
    s->unclassified_queue = config->unclassified_queue;
    s->rss = config->rss != 0;
    s->hashes = s->rss || (features >> F_HASH_REPORT & 1) != 0;
    s->filters_vlans = (features >> F_CTRL_VLAN & 1) != 0;
    s->filters_macs = (features >> F_CTRL_RX & 1) != 0;
    s->knows_mac = (features >> F_MAC & 1) != 0 || (features >> F_CTRL_MAC_ADDR & 1) != 0;
    s->flows = config->flows;
    s->mac = mac_number(config->mac);
    s->macs = s->room;
    s->macs_mask = slots - 1;
    hash_secret_init(&s->secret, config->hash_seed);
    add_macs(s, s->room, config->unicast, config->unicast_count, 0);
    add_macs(s, s->room, config->multicast, config->multicast_count, 1);
    toeplitz_init(&s->toeplitz, config->key, config->key_len);
    for (size_t i = 0; i < config->vlan_count; i++) {
        if (config->vlans[i] < 4096) {
            s->vlans[config->vlans[i] / 64] |= 1ull << config->vlans[i] % 64;
        }
    }
    if (table_len > 0) {
        memcpy(table, config->table, 2 * table_len);
        s->table_mask = (uint32_t)table_len - 1;
    }
    s->table = table;
    return s;
}

void vipsec_steering_free(struct vipsec_steering *steering) { free(steering); }

bool steering_admits(const struct vipsec_steering *s, const uint8_t *frame, uint32_t len) {
    if (s == NULL || (s->rx_mode & VIPSEC_RX_PROMISC) != 0) {
        return true;
    }
    if (s->filters_vlans && load_be16(frame + 12) == 0x8100) {
        if (len < 18) {
            return false;
        }
        const uint32_t vlan = load_be16(frame + 14) & 0xfffu;
        if (vlan != 0 && (s->vlans[vlan / 64] >> vlan % 64 & 1) == 0) {
            return false;
        }
    }
    if (!s->filters_macs) {
        return true;
    }
    const uint64_t target = mac_number(frame);
    if (target << 16 == UINT64_MAX << 16) {
        return (s->rx_mode & VIPSEC_RX_NOBCAST) == 0;
    }
    if ((frame[0] & 1) != 0) {
        return (s->rx_mode & VIPSEC_RX_NOMULTI) == 0 &&
               ((s->rx_mode & VIPSEC_RX_ALLMULTI) != 0 || in_macs(s, target));
    }
    if ((s->rx_mode & VIPSEC_RX_NOUNI) != 0) {
        return false;
    }
    return (s->rx_mode & VIPSEC_RX_ALLUNI) != 0 || target == s->mac || !s->knows_mac || in_macs(s, target);
}

struct endpoints {
    const uint8_t *source, *target, *ports; /* ports NULL: not to be seen */
    size_t size;                            /* of an address, in words */
};

/* Over addresses and ports if that type is enabled, else over the addresses if that one is. */
static bool hash_as(const struct vipsec_steering *s, const struct endpoints *e, uint16_t with_ports, uint16_t without,
                    struct steering_hash *hash) {
    uint32_t words[TOEPLITZ_MAX_WORDS];
    size_t count = 0;
    if (e->ports != NULL && with_ports != 0 && (s->hash_types >> (with_ports - 1) & 1) != 0) {
        hash->report = with_ports;
    } else if ((s->hash_types >> (without - 1) & 1) != 0) {
        hash->report = without;
    } else {
        return false;
    }
    for (size_t i = 0; i < e->size; i++) {
        words[i] = load_be32(e->source + 4 * i);
        words[e->size + i] = load_be32(e->target + 4 * i);
        count += 2;
    }
    if (hash->report == with_ports) {
        words[count++] = load_be32(e->ports);
    }
    hash->value = toeplitz_hash(&s->toeplitz, words, count);
    return true;
}

void steering_hash(const struct vipsec_steering *s, const uint8_t *frame, const struct vipsec_frame_view *view,
                   struct steering_hash *hash) {
    *hash = (struct steering_hash){0};
    if (s == NULL || !s->hashes || view->version == 0 || s->hash_types == 0) {
        return;
    }
    const uint8_t *ip = frame + view->l3;
    const uint32_t l4 = frame_transport(view);
    const uint8_t *ports = l4 != 0 && l4 + 4 <= view->end ? frame + l4 : NULL;
    const bool tcp = view->protocol == FRAME_TCP, udp = view->protocol == FRAME_UDP;
    if (view->version == 4) {
        const struct endpoints e = {ip + 12, ip + 16, ports, 1};
        hash_as(s, &e, tcp ? TCPV4 : udp ? UDPV4 : 0, REPORT_IPV4, hash);
        return;
    }
    if (view->extensions) {
        const struct endpoints e = {view->home != 0 ? frame + view->home : ip + 8,
                                    view->routing != 0 ? frame + view->routing : ip + 24, ports, 4};
        if (hash_as(s, &e, tcp ? TCPV6_EX : udp ? UDPV6_EX : 0, IPV6_EX, hash)) {
            return;
        }
    }
    const struct endpoints e = {ip + 8, ip + 24, ports, 4};
    hash_as(s, &e, tcp ? TCPV6 : udp ? UDPV6 : 0, REPORT_IPV6, hash);
}

/* ---- automatic steering ------------------------------------------------------------------ */

static uint32_t crc_table[4][256];

static void make_crc_table(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++) {
            value = value >> 1 ^ (0xedb88320 & (0 - (value & 1)));
        }
        crc_table[0][i] = value;
    }
    for (size_t t = 1; t < 4; t++) {
        for (size_t i = 0; i < 256; i++) {
            crc_table[t][i] = crc_table[t - 1][i] >> 8 ^ crc_table[0][crc_table[t - 1][i] & 255];
        }
    }
}

/* CRC-32 of zlib, four octets a turn. */
static uint32_t crc32(const uint8_t *data, size_t len) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    uint32_t crc = 0xffffffff;
    pthread_once(&once, make_crc_table);
    for (; len >= 4; len -= 4, data += 4) {
        crc ^= load_le32(data);
        crc = crc_table[3][crc & 255] ^ crc_table[2][crc >> 8 & 255] ^ crc_table[1][crc >> 16 & 255] ^
              crc_table[0][crc >> 24];
    }
    for (; len > 0; len--, data++) {
        crc = crc >> 8 ^ crc_table[0][(crc ^ *data) & 255];
    }
    return ~crc;
}

/* Bits of the enabled queues number 64 * word and up, those from `pairs` on left out. */
static uint64_t live_word(const struct steering_live *live, size_t word, uint32_t pairs) {
    const uint64_t bits = word < live->words ? atomic_load_explicit(&live->bits[word], memory_order_relaxed) : 0;
    return (word + 1) * 64 > pairs ? bits & ((1ull << pairs % 64) - 1) : bits;
}

static bool is_live(const struct steering_live *live, uint32_t queue) {
    return live == NULL || (live_word(live, queue / 64, UINT32_MAX) >> queue % 64 & 1) != 0;
}

/* The enabled queue below `pairs` whose place among them is `number` modulo their count; false when there is none. */
static bool other_queue(const struct steering_live *live, uint32_t pairs, uint32_t number, uint32_t *queue) {
    uint32_t count = 0;
    for (size_t word = 0; word * 64 < pairs; word++) {
        count += (uint32_t)__builtin_popcountll(live_word(live, word, pairs));
    }
    if (count == 0) {
        return false;
    }
    uint32_t left = number % count;
    for (size_t word = 0; word * 64 < pairs; word++) {
        for (uint64_t bits = live_word(live, word, pairs); bits != 0; bits &= bits - 1) {
            *queue = (uint32_t)(word * 64) + (uint32_t)__builtin_ctzll(bits);
            if (left-- == 0) {
                return true;
            }
        }
    }
    return false; /* queues went between the two looks */
}

bool steering_choose(const struct vipsec_steering *s, const struct steering_live *live, const uint8_t *frame,
                     const struct vipsec_frame_view *view, const struct steering_hash *hash, uint32_t *queue) {
    struct flow_key key = {.len = 0};
    *queue = 0;
    if (s != NULL && s->rss) {
        *queue = hash->report != 0 ? s->table[hash->value & s->table_mask] : s->unclassified_queue;
        return is_live(live, *queue);
    }
    const uint32_t pairs = s != NULL ? s->queue_pairs : 1;
    if (pairs > 1) {
        flow_key(frame, view, false, &key);
        const int32_t known = s->flows != NULL ? flow_memory_queue(s->flows, &key) : -1;
        /* An unknown flow keeps to one queue, so that its packets stay in order. */
        *queue = known >= 0 && (uint32_t)known < pairs ? (uint32_t)known : crc32(key.octets, key.len) % pairs;
    }
    return is_live(live, *queue) || other_queue(live, pairs, crc32(key.octets, key.len), queue);
}

void steering_sent(const struct vipsec_steering *s, const uint8_t *frame, uint32_t len, uint32_t queue) {
    if (s != NULL && s->queue_pairs > 1 && !s->rss && s->flows != NULL) {
        vipsec_flow_memory_sent(s->flows, frame, len, queue);
    }
}

int64_t vipsec_steering_choose(const struct vipsec_steering *steering, const uint64_t *live, size_t live_words,
                               const uint8_t *frame, uint32_t len, uint32_t *hash_value, uint32_t *hash_report) {
    struct vipsec_frame_view view;
    struct steering_hash hash;
    uint32_t queue;
    const struct steering_live enabled = {live_words, (const _Atomic uint64_t *)live};
    frame_view(frame, len, 0, &view);
    steering_hash(steering, frame, &view, &hash);
    *hash_value = hash.value;
    *hash_report = hash.report;
    return steering_choose(steering, live != NULL ? &enabled : NULL, frame, &view, &hash, &queue) ? (int64_t)queue : -1;
}

int vipsec_steering_admits(const struct vipsec_steering *steering, const uint8_t *frame, uint32_t len) {
    return steering_admits(steering, frame, len);
}
