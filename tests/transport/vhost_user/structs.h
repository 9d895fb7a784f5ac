/* The structures of the vhost-user text ("Message Specification"), as C. Independent of messages.py. */
#include <stdint.h>

struct vring_state {
    uint32_t index, num;
};
struct vring_addr {
    uint32_t index, flags;
    uint64_t descriptor, used, available, log;
};
struct region {
    uint64_t guest_address, size, user_address, mmap_offset;
};
struct memory {
    uint32_t num_regions, padding;
    struct region regions[8];
};
struct single_region {
    uint64_t padding;
    struct region region;
};
struct log {
    uint64_t size, offset;
};
struct config {
    uint32_t offset, size, flags;
    uint8_t data[256];
};
struct inflight {
    uint64_t mmap_size, mmap_offset;
    uint16_t num_queues, queue_size;
};
struct message {
    uint32_t request, flags, size;
    union {
        uint64_t u64;
        struct vring_state state;
        struct vring_addr addr;
        struct memory memory;
        struct single_region single;
        struct log log;
        struct config config;
        struct inflight inflight;
    } payload;
} __attribute__((packed));
