/*
 * SAs used by several threads at a time while another one adds, changes and removes SAs.
 *
 * Each worker protects packets and opens every one of them twice. Whatever the threads do to each other: no sequence
 * number is given out twice, no number is accepted twice, a hard limit of N lets exactly N packets through, counters
 * are what was counted outside, and an SA that was removed is gone, keys and all.
 */
#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#undef NDEBUG
#include "bytes.h"
#include "checksum.h"
#include "sa_table.h"
#include "vipsec.h"

enum {
    WORKERS = 3,
    STABLE = 4,   /* SAs that stay */
    LIMITED = 4,  /* the number of one more, with a hard limit */
    PASSING = 5,  /* numbers from here on come and go */
    NUMBERS = 9,
    BURST = 48,
    ROUNDS = 2500,
    LIMIT = 5000, /* packets; fewer than the workers try */
    LEN = 40,
    ROOM = VIPSEC_HEADROOM + LEN + VIPSEC_TAILROOM,
    MOST = WORKERS * BURST * ROUNDS + 1,
};

static struct vipsec_sa_table *table;
static _Atomic uint8_t given[NUMBERS][MOST], accepted[NUMBERS][MOST];
static _Atomic uint64_t sent[NUMBERS], opened[NUMBERS], refused_out[NUMBERS], refused_in[NUMBERS];
static atomic_int working = WORKERS;

static struct vipsec_sa_config config(int direction, uint32_t number) {
    struct vipsec_sa_config c = {
        .direction = (uint8_t)direction, .is_tunnel = 1, .tunnel_family = 4, .key_len = 16, .icv_len = 16,
        .spi = 1000 + number, .replay_window = direction == VIPSEC_INBOUND ? 4096 : 0, .first_sequence = 1,
    };
    memset(c.key, (int)number + 1, sizeof c.key);
    if (direction == VIPSEC_INBOUND) {
        c.options = VIPSEC_OPTION_UDP_ENCAP; /* allows it, does not demand it */
    }
    if (number == LIMITED && direction == VIPSEC_OUTBOUND) {
        c.packets_hard = LIMIT;
    }
    return c;
}

static void fill(struct vipsec_packet *packet, uint8_t *memory, uint32_t number) {
    uint8_t *data = memory + VIPSEC_HEADROOM;
    memset(data, 0, LEN);
    data[0] = 0x45;
    data[8] = 64;
    store_be16(data + 2, LEN);
    checksum_ipv4(data);
    *packet = (struct vipsec_packet){
        .data = data, .len = LEN, .headroom = VIPSEC_HEADROOM, .tailroom = VIPSEC_TAILROOM, .sa_id = number};
}

static void open_all(int reader, struct vipsec_packet *packets, size_t count) {
    uint64_t numbers[BURST];
    for (size_t i = 0; i < count; i++) {
        numbers[i] = packets[i].sa_id; /* the same at both ends */
    }
    vipsec_esp_inbound(table, reader, packets, count);
    for (size_t i = 0; i < count; i++) {
        const uint64_t number = numbers[i];
        if (packets[i].reason == VIPSEC_REASON_NONE) {
            assert(packets[i].len == LEN && packets[i].data[0] == 0x45);
            if (number < PASSING) {
                assert(atomic_exchange(&accepted[number][packets[i].sequence], 1) == 0);
                atomic_fetch_add(&opened[number], 1);
            }
        } else if (number < PASSING) {
            assert(packets[i].reason == VIPSEC_REASON_REPLAY);
            atomic_fetch_add(&refused_in[number], 1);
        } else {
            assert(packets[i].reason == VIPSEC_REASON_REPLAY || packets[i].reason == VIPSEC_REASON_UNKNOWN_SA ||
                   packets[i].reason == VIPSEC_REASON_BAD_ICV);
        }
    }
}

static void *work(void *argument) {
    static uint8_t memories[WORKERS][2][BURST][ROOM];
    const size_t me = (size_t)(uintptr_t)argument;
    const int reader = vipsec_reader_register(table);
    struct vipsec_packet packets[BURST], copies[BURST];
    assert(reader >= 0);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < BURST; i++) {
            fill(&packets[i], memories[me][0][i], (i * 7 + round) % NUMBERS);
        }
        vipsec_esp_outbound(table, reader, packets, BURST);
        size_t made = 0;
        for (size_t i = 0; i < BURST; i++) {
            const uint32_t number = packets[i].sa_id;
            if (packets[i].reason != VIPSEC_REASON_NONE) {
                assert(number < PASSING ? number == LIMITED && packets[i].reason == VIPSEC_REASON_HARD_LIFETIME
                                        : packets[i].reason == VIPSEC_REASON_UNKNOWN_SA);
                atomic_fetch_add(&refused_out[number], 1);
                continue;
            }
            if (number < PASSING) {
                assert(atomic_exchange(&given[number][packets[i].sequence], 1) == 0);
                atomic_fetch_add(&sent[number], 1);
            }
            copies[made] = packets[i];
            copies[made].data = memories[me][1][i] + (packets[i].data - memories[me][0][i]);
            memcpy(memories[me][1][i], memories[me][0][i], ROOM);
            packets[made++] = packets[i];
        }
        open_all(reader, packets, made);
        open_all(reader, copies, made);
    }
    vipsec_reader_unregister(table, reader);
    atomic_fetch_sub(&working, 1);
    return NULL;
}

/* Adds, changes, reads and removes for as long as the workers work. */
static void *control(void *unused) {
    struct vipsec_sa_state state;
    uint64_t rounds = 0;
    for (; atomic_load(&working) > 0; rounds++) {
        const uint32_t number = PASSING + rounds % (NUMBERS - PASSING), stable = rounds % STABLE;
        struct vipsec_sa_config out = config(VIPSEC_OUTBOUND, number), in = config(VIPSEC_INBOUND, number);
        assert(vipsec_sa_add(table, number, &out) == VIPSEC_SA_OK && vipsec_sa_add(table, number, &in) == VIPSEC_SA_OK);
        out = config(VIPSEC_OUTBOUND, stable);
        in = config(VIPSEC_INBOUND, stable);
        out.ttl = (uint8_t)rounds;
        out.udp_dport = 4500;
        out.options = rounds % 2 ? VIPSEC_OPTION_UDP_ENCAP : VIPSEC_OPTION_COPY_DSCP;
        in.options |= rounds % 2 ? VIPSEC_OPTION_ECN : 0;
        in.replay_window = rounds % 3 ? 4096 : 3000;
        assert(vipsec_sa_modify(table, VIPSEC_OUTBOUND, stable, &out) == VIPSEC_SA_OK);
        assert(vipsec_sa_modify(table, VIPSEC_INBOUND, stable, &in) == VIPSEC_SA_OK);
        assert(vipsec_sa_read(table, VIPSEC_OUTBOUND, stable, &state) == VIPSEC_SA_OK);
        assert(state.packets == state.sequence);
        assert(vipsec_sa_remove(table, VIPSEC_OUTBOUND, number) == VIPSEC_SA_OK);
        assert(vipsec_sa_remove(table, VIPSEC_INBOUND, number) == VIPSEC_SA_OK);
        assert(vipsec_sa_read(table, VIPSEC_INBOUND, number, &state) == VIPSEC_SA_MISSING);
    }
    printf("   esp: %llu rounds of changes while packets flowed\n", (unsigned long long)rounds);
    (void)unused;
    return NULL;
}

static int all_zero(const void *memory, size_t size) {
    const uint8_t *bytes = memory;
    size_t zeros = 0;
    for (size_t i = 0; i < size; i++) {
        zeros += bytes[i] == 0;
    }
    return zeros == size;
}

int main(void) {
    pthread_t threads[WORKERS + 1];
    table = vipsec_sa_table_new(vipsec_gcm_default(), 0x0123456789abcdef);
    assert(table != NULL);
    for (uint32_t number = 0; number < PASSING; number++) {
        struct vipsec_sa_config out = config(VIPSEC_OUTBOUND, number), in = config(VIPSEC_INBOUND, number);
        assert(vipsec_sa_add(table, number, &out) == VIPSEC_SA_OK && vipsec_sa_add(table, number, &in) == VIPSEC_SA_OK);
    }
    for (size_t i = 0; i <= WORKERS; i++) {
        assert(pthread_create(&threads[i], NULL, i < WORKERS ? work : control, (void *)(uintptr_t)i) == 0);
    }
    for (size_t i = 0; i <= WORKERS; i++) {
        pthread_join(threads[i], NULL);
    }
    assert(sent[LIMITED] == LIMIT && refused_out[LIMITED] > 0);
    for (uint32_t number = 0; number < PASSING; number++) {
        struct vipsec_sa_state out, in;
        assert(vipsec_sa_read(table, VIPSEC_OUTBOUND, number, &out) == VIPSEC_SA_OK);
        assert(vipsec_sa_read(table, VIPSEC_INBOUND, number, &in) == VIPSEC_SA_OK);
        assert(out.packets == sent[number] && out.sequence == sent[number]);
        assert(out.refused[VIPSEC_REASON_HARD_LIFETIME] == refused_out[number]);
        assert(in.packets == opened[number] && in.refused[VIPSEC_REASON_REPLAY] == refused_in[number]);
        assert(opened[number] + refused_in[number] == 2 * sent[number] && opened[number] > 0);
        printf("   esp: SA %u: %llu sent, %llu opened once\n", number, (unsigned long long)sent[number],
               (unsigned long long)opened[number]);
    }
    /* What was an SA holds no key any more. */
    const struct sa_slot *slot = sa_slot_of(sa_outbound(table, 0));
    const struct sa_rest *rest = sa_rest_of(slot);
    assert(!all_zero(&slot->key, sizeof slot->key) && !all_zero(&rest->powers, sizeof rest->powers));
    assert(vipsec_sa_remove(table, VIPSEC_OUTBOUND, 0) == VIPSEC_SA_OK);
    assert(all_zero(slot, sizeof *slot) && all_zero(&rest->powers, sizeof rest->powers) &&
           all_zero(&rest->sa, sizeof rest->sa));
    vipsec_sa_table_free(table);
    return 0;
}
