/*
 * SAs that move between two tables while several threads send and receive with them.
 *
 * Each worker sends wherever its SA lives at that moment and offers every packet twice to both receivers. Whatever the
 * threads do to each other: no IV is used twice, none is left out, no packet is accepted twice, and no state that was
 * read when the SA was frozen changes afterwards.
 */
#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#undef NDEBUG
#include "bytes.h"
#include "checksum.h"
#include "vipsec.h"

enum {
    WORKERS = 3,
    TABLES = 2,
    BURST = 32,
    ROUNDS = 3000,
    LEN = 40,
    NUMBER = 5,
    ROOM = VIPSEC_HEADROOM + LEN + VIPSEC_TAILROOM,
    MOST = WORKERS * TABLES * BURST * ROUNDS + 1,
};
#define IV_BASE 0xfffffffffffffff0 /* wraps soon */

static struct vipsec_sa_table *tables[TABLES];
static _Atomic uint8_t used[MOST], accepted[MOST];
static _Atomic uint64_t sent, opened;
static atomic_int working = WORKERS;

static struct vipsec_sa_config config(int direction, uint64_t iv_base) {
    struct vipsec_sa_config c = {
        .direction = (uint8_t)direction, .is_tunnel = 1, .tunnel_family = 4, .key_len = 16, .icv_len = 16, .spi = 1000,
        .replay_window = direction == VIPSEC_INBOUND ? 4096 : 0, .first_sequence = 1, .iv_base = iv_base, .frozen = 1,
    };
    memset(c.key, 7, sizeof c.key);
    return c;
}

static void fill(struct vipsec_packet *packet, uint8_t *memory) {
    uint8_t *data = memory + VIPSEC_HEADROOM;
    memset(data, 0, LEN);
    data[0] = 0x45;
    data[8] = 64;
    store_be16(data + 2, LEN);
    checksum_ipv4(data);
    *packet = (struct vipsec_packet){
        .data = data, .len = LEN, .headroom = VIPSEC_HEADROOM, .tailroom = VIPSEC_TAILROOM, .sa_id = NUMBER};
}

static void receive(const int *readers, const struct vipsec_packet *packets, size_t count, uint8_t (*memory)[ROOM]) {
    struct vipsec_packet copies[BURST];
    for (int turn = 0; turn < 2 * TABLES; turn++) {
        for (size_t i = 0; i < count; i++) {
            copies[i] = packets[i];
            copies[i].data = memory[i];
            memcpy(memory[i], packets[i].data, packets[i].len);
        }
        vipsec_esp_inbound(tables[turn % TABLES], readers[turn % TABLES], copies, count);
        for (size_t i = 0; i < count; i++) {
            if (copies[i].reason == VIPSEC_REASON_NONE) {
                assert(copies[i].len == LEN && atomic_exchange(&accepted[copies[i].sequence], 1) == 0);
                atomic_fetch_add(&opened, 1);
            } else {
                assert(copies[i].reason == VIPSEC_REASON_REPLAY || copies[i].reason == VIPSEC_REASON_HELD ||
                       copies[i].reason == VIPSEC_REASON_UNKNOWN_SA);
            }
        }
    }
}

static void *work(void *argument) {
    static uint8_t memories[WORKERS][2][BURST][ROOM];
    const size_t me = (size_t)(uintptr_t)argument;
    int readers[TABLES];
    for (int t = 0; t < TABLES; t++) {
        readers[t] = vipsec_reader_register(tables[t]);
        assert(readers[t] >= 0);
    }
    for (uint32_t round = 0; round < ROUNDS * TABLES; round++) {
        const int t = round % TABLES;
        struct vipsec_packet packets[BURST];
        size_t made = 0;
        for (uint32_t i = 0; i < BURST; i++) {
            fill(&packets[i], memories[me][0][i]);
        }
        vipsec_esp_outbound(tables[t], readers[t], packets, BURST);
        for (size_t i = 0; i < BURST; i++) {
            if (packets[i].reason != VIPSEC_REASON_NONE) {
                assert(packets[i].reason == VIPSEC_REASON_HELD || packets[i].reason == VIPSEC_REASON_UNKNOWN_SA);
                continue;
            }
            const uint64_t iv = load_be64(packets[i].data + 20 + 8) - IV_BASE;
            assert(iv == packets[i].sequence && iv < MOST && atomic_exchange(&used[iv], 1) == 0);
            packets[made++] = packets[i];
        }
        atomic_fetch_add(&sent, made);
        receive(readers, packets, made, memories[me][1]);
    }
    for (int t = 0; t < TABLES; t++) {
        vipsec_reader_unregister(tables[t], readers[t]);
    }
    atomic_fetch_sub(&working, 1);
    return NULL;
}

static void add(int t, int direction, uint64_t iv_base) {
    const struct vipsec_sa_config c = config(direction, iv_base);
    assert(vipsec_sa_add(tables[t], NUMBER, &c) == VIPSEC_SA_OK);
}

static void same(const struct vipsec_sa_progress *a, const struct vipsec_sa_progress *b) {
    assert(a->sequence == b->sequence && a->iv_base == b->iv_base && a->packets == b->packets && a->bytes == b->bytes);
    assert(a->window == b->window && memcmp(a->seen, b->seen, sizeof a->seen) == 0);
}

static void move(int from, int to, int direction) {
    struct vipsec_sa_progress first, second;
    assert(vipsec_sa_freeze(tables[from], direction, NUMBER) == VIPSEC_SA_OK);
    assert(vipsec_sa_read_progress(tables[from], direction, NUMBER, &first) == VIPSEC_SA_OK);
    assert(vipsec_sa_restore(tables[to], direction, NUMBER, &first) == VIPSEC_SA_OK);
    assert(vipsec_sa_read_progress(tables[from], direction, NUMBER, &second) == VIPSEC_SA_OK);
    same(&first, &second);
    assert(vipsec_sa_remove(tables[from], direction, NUMBER) == VIPSEC_SA_OK);
    add(from, direction, 0x1234567890); /* where it may come back to; with another base of IVs */
}

static void *control(void *unused) {
    uint64_t moves = 0;
    for (; atomic_load(&working) > 0; moves++) {
        const int from = (int)(moves % TABLES);
        move(from, (from + 1) % TABLES, VIPSEC_OUTBOUND);
        move(from, (from + 1) % TABLES, VIPSEC_INBOUND);
    }
    printf("   move: %llu moves while packets flowed\n", (unsigned long long)moves);
    *(uint64_t *)unused = moves;
    return NULL;
}

int main(void) {
    pthread_t threads[WORKERS + 1];
    uint64_t moves = 0;
    for (int t = 0; t < TABLES; t++) {
        tables[t] = vipsec_sa_table_new(vipsec_gcm_default(), 0x0123456789abcdef + (uint64_t)t);
        assert(tables[t] != NULL);
        add(t, VIPSEC_OUTBOUND, IV_BASE);
        add(t, VIPSEC_INBOUND, 0);
    }
    for (int direction = VIPSEC_OUTBOUND; direction <= VIPSEC_INBOUND; direction++) {
        struct vipsec_sa_progress begin;
        assert(vipsec_sa_read_progress(tables[0], direction, NUMBER, &begin) == VIPSEC_SA_OK && begin.frozen);
        assert(vipsec_sa_restore(tables[0], direction, NUMBER, &begin) == VIPSEC_SA_OK);
    }
    for (size_t i = 0; i <= WORKERS; i++) {
        void *const argument = i < WORKERS ? (void *)(uintptr_t)i : &moves;
        assert(pthread_create(&threads[i], NULL, i < WORKERS ? work : control, argument) == 0);
    }
    for (size_t i = 0; i <= WORKERS; i++) {
        pthread_join(threads[i], NULL);
    }
    struct vipsec_sa_progress end;
    assert(vipsec_sa_read_progress(tables[moves % TABLES], VIPSEC_OUTBOUND, NUMBER, &end) == VIPSEC_SA_OK);
    assert(!end.frozen && end.sequence == sent && end.packets == sent && sent > 0 && opened > 0);
    for (uint64_t n = 1; n <= sent; n++) {
        assert(used[n]);
    }
    assert(vipsec_sa_read_progress(tables[moves % TABLES], VIPSEC_INBOUND, NUMBER, &end) == VIPSEC_SA_OK);
    assert(end.packets == opened);
    printf("   move: %llu sent, %llu opened, none twice\n", (unsigned long long)sent, (unsigned long long)opened);
    vipsec_sa_table_free(tables[0]);
    vipsec_sa_table_free(tables[1]);
    return 0;
}
