/*
 * Rules come and go while two threads look packets up and learn flows: for ThreadSanitizer, and true on its own: one
 * rule never goes and is the best for its packet, so that every look-up finds it.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "flow.h"
#include "steering.h"

enum { CHANGES = 4000, RULES = 200 };

static struct vipsec_flow_table *table;
static struct vipsec_flow_memory *memory;
static struct vipsec_steering *steering;
static atomic_int done;
static atomic_long looked, wrong;

static void *look(void *number) {
    uint8_t frame[60] = {0};
    frame[12] = 8;
    frame[14] = 0x45;
    frame[17] = 46;
    frame[23] = 17;
    while (!atomic_load(&done)) {
        struct vipsec_frame_view views[8];
        struct flow_item items[8];
        const unsigned copy = flow_enter(table);
        for (size_t i = 0; i < 8; i++) {
            frame_view(frame, sizeof frame, 0, &views[i]);
            items[i] = (struct flow_item){frame, &views[i], sizeof frame, NULL};
        }
        flow_match_many(table, copy, items, 8);
        const struct vipsec_flow_verdict *one = flow_match(table, copy, frame, sizeof frame, &views[0]);
        for (size_t i = 0; i < 8; i++) {
            atomic_fetch_add(&wrong, items[i].verdict != one || one == NULL || one->rule_id != 0);
        }
        flow_leave(table, copy);
        struct steering_hash hash;
        uint32_t queue;
        frame[37] = (uint8_t)(frame[37] + 1);
        steering_sent(steering, frame, sizeof frame, (uint32_t)(number != NULL));
        steering_hash(steering, frame, &views[0], &hash);
        atomic_fetch_add(&wrong, !steering_choose(steering, NULL, frame, &views[0], &hash, &queue) || queue > 1);
        atomic_fetch_add(&looked, 1);
    }
    return NULL;
}

static struct vipsec_flow_rule *add(uint32_t id, uint32_t classifier, uint8_t priority, uint32_t value) {
    uint8_t keys[14] = {0};
    int result;
    store_be32(keys + 6, value);
    keys[12] = 8;
    const struct vipsec_flow_rule_config config = {id, 1 + id % 2, classifier, 0, 1, priority};
    struct vipsec_flow_rule *rule = vipsec_flow_add_rule(table, &config, keys, sizeof keys, &result);
    if (rule == NULL) {
        abort();
    }
    return rule;
}

int main(void) {
    static struct vipsec_flow_rule *rules[RULES];
    const uint8_t all[14] = {255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255};
    const uint8_t kind[14] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255};
    const struct vipsec_flow_selector exact = {1, 14, {0}, all}, coarse = {1, 14, {0}, kind};
    struct vipsec_steering_config learning = {.queue_pairs = 2};
    pthread_t threads[2];
    uint32_t random = 1;
    table = vipsec_flow_table_new(7);
    memory = vipsec_flow_memory_new(7);
    learning.flows = memory;
    steering = vipsec_steering_new(&learning);
    vipsec_flow_set_group(table, 1, 10);
    vipsec_flow_set_group(table, 2, 5);
    vipsec_flow_set_classifier(table, 1, &exact, 1);
    vipsec_flow_set_classifier(table, 2, &coarse, 1);
    struct vipsec_flow_rule *stays = add(0, 1, 255, 0);
    for (size_t i = 0; i < 2; i++) {
        pthread_create(&threads[i], NULL, look, i > 0 ? &threads : NULL);
    }
    for (int i = 0; i < CHANGES || atomic_load(&looked) < 100; i++) {
        random = random * 1664525 + 1013904223;
        struct vipsec_flow_rule **rule = &rules[(random >> 8) % RULES];
        if (*rule != NULL) {
            vipsec_flow_remove_rule(table, *rule);
            *rule = NULL;
        } else {
            *rule = add(2 + (random >> 20), 1 + (random >> 4 & 1), (uint8_t)(random >> 24 & 127), random >> 28);
        }
        if (i % 100 == 0) {
            vipsec_flow_set_group(table, 2, (uint32_t)i / 100 % 9);
        }
    }
    atomic_store(&done, 1);
    for (size_t i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
    }
    vipsec_flow_remove_rule(table, stays);
    vipsec_flow_table_free(table);
    vipsec_steering_free(steering);
    vipsec_flow_memory_free(memory);
    printf("%ld look-ups, %ld wrong\n", atomic_load(&looked), atomic_load(&wrong));
    return atomic_load(&wrong) != 0;
}
