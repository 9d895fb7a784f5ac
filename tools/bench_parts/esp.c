/*
 * Whole ESP packets, as tools/bench times them: 64 IPv4 packets are protected in tunnel mode and opened again, in
 * place, SAs used round robin. Every packet of every burst is looked at between the timed stretches: it must have
 * been processed, and what comes out of the opening must be what went in.
 */
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "vipsec.h"

enum { PACKETS = 64, ICV = 16, KEY = 16, MARGIN = 14, TRIES = 3 };

struct bench_esp {
    const struct bench_sas *sas;
    int reader;
    uint32_t len, next;
    size_t stride;
    uint8_t *space, *plain, *sealed;
    uint32_t sealed_len[PACKETS];
    struct vipsec_packet packets[PACKETS];
    uint64_t bad;
};

/* AES-128-GCM, tunnel mode over IPv4, window of 64; number `id` has SPI 0x1000 + id and a key of its own. */
static struct vipsec_sa_config config_of(uint32_t id, int direction) {
    struct vipsec_sa_config c = {
        .direction = (uint8_t)direction, .is_tunnel = 1, .tunnel_family = 4, .ttl = 64, .key_len = KEY, .icv_len = ICV,
        .spi = 0x1000 + id, .replay_window = 64, .salt = {1, 2, 3, 4}, .source = {192, 0, 2, 1},
        .destination = {192, 0, 2, 2}, .first_sequence = 1, .iv_base = 0x123456789abcdef0,
    };
    memcpy(c.key, &id, sizeof id);
    memset(c.key + sizeof id, 0x5a, KEY - sizeof id);
    return c;
}

void bench_sas_free(struct bench_sas *s) {
    if (s->table != NULL) vipsec_sa_table_free(s->table);
    free(s);
}

/* `count` SAs in each direction; NULL: no memory. */
struct bench_sas *bench_sas_new(int engine, uint32_t count) {
    struct bench_sas *s = calloc(1, sizeof *s);
    if (s == NULL) return NULL;
    s->table = vipsec_sa_table_new(vipsec_gcm_engine(engine), 0x9e3779b97f4a7c15);
    s->count = count;
    for (uint32_t id = 0; id < count; id++)
        for (int direction = VIPSEC_OUTBOUND; direction <= VIPSEC_INBOUND; direction++) {
            const struct vipsec_sa_config c = config_of(id, direction);
            if (s->table == NULL || vipsec_sa_add(s->table, id, &c) != 0) {
                bench_sas_free(s);
                return NULL;
            }
        }
    return s;
}

/* An IPv4 packet of `len` bytes with another payload for each number. */
static void write_plain(uint8_t *p, uint32_t len, uint32_t number) {
    const uint8_t head[] = {0x45, 0, (uint8_t)(len >> 8), (uint8_t)len, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2};
    memcpy(p, head, sizeof head);
    for (uint32_t i = sizeof head; i < len; i++) p[i] = (uint8_t)(i * 31 + number * 7);
    const uint16_t sum = (uint16_t)~vipsec_checksum_sum(NULL, p, sizeof head);
    p[10] = (uint8_t)(sum >> 8), p[11] = (uint8_t)sum;
}

static uint8_t *place(const struct bench_esp *b, uint32_t i) {
    return b->space + i * b->stride + MARGIN + VIPSEC_HEADROOM;
}

struct bench_esp *bench_esp_new(const struct bench_sas *sas, uint32_t len) {
    struct bench_esp *b = calloc(1, sizeof *b);
    b->sas = sas, b->len = len;
    b->reader = vipsec_reader_register(sas->table);
    b->stride = (len + MARGIN + VIPSEC_HEADROOM + VIPSEC_TAILROOM + 2303) / 2304 * 2304;
    b->space = aligned_alloc(64, b->stride * PACKETS);
    b->sealed = aligned_alloc(64, b->stride * PACKETS);
    b->plain = malloc((size_t)len * PACKETS);
    for (uint32_t i = 0; i < PACKETS; i++) {
        write_plain(b->plain + (size_t)i * len, len, i);
        memcpy(place(b, i), b->plain + (size_t)i * len, len);
    }
    return b;
}

void bench_esp_free(struct bench_esp *b) {
    vipsec_reader_unregister(b->sas->table, b->reader);
    free(b->space), free(b->sealed), free(b->plain), free(b);
}

/* Protects one burst; what that took is added to *out. */
static void protect(struct bench_esp *b, double *out) {
    const double begin = seconds();
    for (uint32_t i = 0; i < PACKETS; i++) {
        b->packets[i] = (struct vipsec_packet){
            .data = place(b, i), .len = b->len, .headroom = VIPSEC_HEADROOM, .tailroom = VIPSEC_TAILROOM, .sa_id = b->next,
        };
        b->next = b->next + 1 == b->sas->count ? 0 : b->next + 1;
    }
    vipsec_esp_outbound(b->sas->table, b->reader, b->packets, PACKETS);
    *out += seconds() - begin;
    for (uint32_t i = 0; i < PACKETS; i++) b->bad += b->packets[i].reason != VIPSEC_REASON_NONE;
}

/* For verification from outside. */
static void keep(struct bench_esp *b) {
    for (uint32_t i = 0; i < PACKETS; i++) {
        b->sealed_len[i] = b->packets[i].len;
        memcpy(b->sealed + i * b->stride, b->packets[i].data, b->packets[i].len);
    }
}

/* Opens the burst that was just protected; what that took is added to *in. */
static void open_again(struct bench_esp *b, double *in) {
    const double begin = seconds();
    vipsec_esp_inbound(b->sas->table, b->reader, b->packets, PACKETS);
    *in += seconds() - begin;
    for (uint32_t i = 0; i < PACKETS; i++) {
        const struct vipsec_packet *p = &b->packets[i];
        b->bad += p->reason != VIPSEC_REASON_NONE || p->len != b->len || p->data != place(b, i) ||
                  memcmp(p->data, b->plain + (size_t)i * b->len, b->len) != 0;
    }
}

/* Nanoseconds per packet out and in: the best of three runs of `passes` bursts. The protected packets of the last
 * burst are kept for bench_esp_sealed. */
void bench_esp_sample(struct bench_esp *b, uint32_t passes, double *out, double *in) {
    *out = *in = 1e30;
    for (int t = 0; t < TRIES && b->bad == 0; t++) {
        double sealing = 0, opening = 0;
        for (uint32_t r = 0; r < passes && b->bad == 0; r++) {
            protect(b, &sealing);
            if (r + 1 == passes) keep(b);
            if (b->bad == 0) open_again(b, &opening);
        }
        sealing *= 1e9 / passes / PACKETS, opening *= 1e9 / passes / PACKETS;
        *out = sealing < *out ? sealing : *out;
        *in = opening < *in ? opening : *in;
    }
}

uint64_t bench_esp_bad(const struct bench_esp *b) { return b->bad; }
const uint8_t *bench_esp_sealed(const struct bench_esp *b, uint32_t i) { return b->sealed + i * b->stride; }
uint32_t bench_esp_sealed_len(const struct bench_esp *b, uint32_t i) { return b->sealed_len[i]; }
const uint8_t *bench_esp_plain(const struct bench_esp *b, uint32_t i) { return b->plain + (size_t)i * b->len; }
