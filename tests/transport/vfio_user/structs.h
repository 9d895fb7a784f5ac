/* The structures that the vfio-user text adds to those of VFIO, as C. Independent of layouts.py. */
#include <linux/vfio.h>
#include <stdint.h>

struct header {
    uint16_t id, cmd;
    uint32_t size, flags, error;
};
struct dma_map {
    uint32_t argsz, flags;
    uint64_t offset, address, size;
};
struct dma_unmap {
    uint32_t argsz, flags;
    uint64_t address, size;
};
struct device_info {
    uint32_t argsz, flags, num_regions, num_irqs;
};
struct ioeventfd {
    uint64_t offset, size;
    uint32_t fd_index, type, flags, padding;
    uint64_t datamatch;
};
struct io_fds {
    uint32_t argsz, flags, index, count;
    struct ioeventfd part[2];
};
struct region_access {
    uint64_t offset;
    uint32_t region, count;
    uint8_t data[8];
};
struct dma_access {
    uint64_t address, count;
    uint8_t data[8];
};
struct writes {
    uint64_t count;
    struct region_access write[2];
};
struct device_feature {
    uint32_t argsz, flags;
    uint8_t data[8];
};
struct sparse_region {
    struct vfio_region_info info;
    struct vfio_region_info_cap_sparse_mmap cap;
    struct vfio_region_sparse_mmap_area area[2];
};
