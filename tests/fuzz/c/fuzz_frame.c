/*
 * Any frame with any net header through everything of csrc/ that reads frames before and behind IPsec: views,
 * checksums, segmentation, flow filter, steering, operator policy. The frame stands in memory of its own length.
 */
#include <stdlib.h>

#include "flow.h"
#include "offload.h"
#include "policy.h"
#include "steering.h"

enum { HEADER = 16 };

static struct vipsec_flow_table *table;
static struct vipsec_flow_memory *memory;
static struct vipsec_steering *steering[2];
static struct vipsec_policy *policy;

static void check(bool right) {
    if (!right) {
        abort();
    }
}

static void add_rules(void) {
    static const uint8_t mask[74] = {[12] = 255, [13] = 255, [20] = 255, [23] = 15, [40] = 1, [54] = 255, [55] = 255};
    static const struct vipsec_flow_selector chains[][3] = {
        {{1, 14, {0}, mask}, {2, 20, {0}, mask + 14}, {4, 20, {0}, mask + 54}},
        {{1, 14, {0}, mask}, {3, 40, {0}, mask + 14}, {5, 8, {0}, mask + 54}},
        {{1, 14, {0}, mask + 16}, {3, 40, {0}, mask + 14}, {6, 8, {0}, mask + 54}},
        {{1, 14, {0}, mask + 16}, {0}, {0}},
    };
    static const uint8_t keys[74] = {[12] = 8};
    vipsec_flow_set_group(table, 0, 0);
    for (uint32_t i = 0; i < 4; i++) {
        const size_t count = i < 3 ? 3 : 1;
        size_t length = 0;
        int result;
        for (size_t j = 0; j < count; j++) {
            length += chains[i][j].length;
        }
        check(vipsec_flow_set_classifier(table, i, chains[i], count) == VIPSEC_FLOW_OK);
        const struct vipsec_flow_rule_config config = {i, 0, i, 0, 1, (uint8_t)(10 - i)};
        check(vipsec_flow_add_rule(table, &config, keys, length, &result) != NULL);
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    static const uint16_t queues[4] = {0, 1, 2, 3};
    static const struct vipsec_policy_rule rules[] = {
        {.selector = {.family = 4, .local_bits = 8, .local_high = 65535, .remote_high = 65535, .protocol = 6},
         .action = 1},
        {.selector = {.local_low = 80, .local_high = 90, .remote_high = 65535, .protocol = 17}, .action = 2},
        {.selector = {.local_high = 65535, .remote_high = 65535, .protocol = -1}, .action = 0},
    };
    const struct vipsec_policy_config config = {.rules = rules, .rule_count = 3, .default_action = 2};
    struct vipsec_steering_config steer = {.features = 1ull << 57 | 1ull << 18 | 1ull << 19, .hash_types = 511,
                                           .queue_pairs = 4, .table = queues, .table_len = 4, .rss = 1};
    (void)argc;
    (void)argv;
    table = vipsec_flow_table_new(1);
    steer.flows = memory = vipsec_flow_memory_new(2);
    steering[0] = vipsec_steering_new(&steer);
    steer.rss = 0;
    steering[1] = vipsec_steering_new(&steer);
    policy = vipsec_policy_new(&config);
    check(table != NULL && memory != NULL && steering[0] != NULL && steering[1] != NULL && policy != NULL);
    add_rules();
    return 0;
}

static void segment(const uint8_t *frame, uint32_t len, const struct vipsec_offload_request *request, uint32_t l3) {
    struct offload_plan plan;
    uint8_t base;
    if (offload_check(request, UINT64_MAX, &base) != OFFLOAD_OK || base == 0 ||
        offload_plan(frame, len, request, base, l3, &plan) != OFFLOAD_OK) {
        return;
    }
    uint32_t total = 0;
    for (uint32_t i = 0; i < plan.count; i++) {
        const uint32_t size = plan.payload + offload_segment_data(&plan, i);
        struct vipsec_frame_view view;
        uint8_t *out = malloc(size);
        check(offload_segment(&plan, i, out) == size);
        frame_view(out, size, plan.l3, &view);
        check(view.version == plan.version && view.l4 == plan.l4 && view.end == size);
        total += size - plan.payload;
        free(out);
    }
    check(total == plan.body);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < HEADER + FRAME_ETHERNET_HEADER) {
        return 0;
    }
    const struct vipsec_offload_request request = {data[0], data[1], load_le16(data + 2), load_le16(data + 4),
                                                   load_le16(data + 6)};
    const uint32_t len = (uint32_t)(size - HEADER), at = load_le16(data + 8);
    uint8_t *frame = malloc(len);
    struct vipsec_frame_view view;
    struct vipsec_policy_verdict verdict;
    memcpy(frame, data + HEADER, len);
    const bool known = offload_network_header(frame, len, at) == OFFLOAD_OK;
    frame_view(frame, len, known ? at : 0, &view);
    check(view.l3 <= len && view.end <= len && view.l4 <= len && (view.version == 0 || view.end > view.l3));
    const unsigned copy = flow_enter(table);
    flow_match(table, copy, frame, len, &view);
    flow_leave(table, copy);
    for (int i = 0; i < 2; i++) {
        struct steering_hash hash;
        uint32_t queue;
        steering_admits(steering[i], frame, len);
        steering_sent(steering[i], frame, len, data[10] % 4);
        steering_hash(steering[i], frame, &view, &hash);
        check(steering_choose(steering[i], NULL, frame, &view, &hash, &queue) && queue < 4);
    }
    offload_checksum_ok(frame, &view);
    segment(frame, len, &request, known ? at : 0);
    policy_outbound(policy, frame + view.l3, len - view.l3, &verdict);
    policy_inbound_clear(policy, frame + view.l3, len - view.l3, &verdict);
    policy_inbound_opened(policy, data[11], frame + view.l3, len - view.l3, 0, NULL, &verdict);
    offload_checksum(frame, len, request.csum_start, request.csum_offset);
    free(frame);
    return 0;
}
