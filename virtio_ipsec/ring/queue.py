"""The right kind of virtqueue for the negotiated features."""

from __future__ import annotations

from virtio_ipsec.ring.base import DeviceQueue, DriverQueue, Used
from virtio_ipsec.ring.chain import QueueLayout, check_layout
from virtio_ipsec.ring.memory import Allocator, GuestMemory
from virtio_ipsec.ring.packed import PackedDeviceQueue, PackedDriverQueue, packed_parts
from virtio_ipsec.ring.split import SplitDeviceQueue, SplitDriverQueue, split_parts
from virtio_ipsec.wire.numbers import Feature, has

__all__ = [
    "DeviceQueue",
    "DriverQueue",
    "Used",
    "allocate_layout",
    "check_areas",
    "device_queue",
    "driver_queue",
    "free_layout",
]


def device_queue(memory: GuestMemory, layout: QueueLayout, features: int) -> DeviceQueue:
    """Device side of a queue. ``features`` is the negotiated word; raises LayoutError."""
    kind = PackedDeviceQueue if has(features, Feature.F_RING_PACKED) else SplitDeviceQueue
    return kind(memory, layout, features)


def driver_queue(
    memory: GuestMemory, layout: QueueLayout, features: int, allocator: Allocator | None = None
) -> DriverQueue:
    """Driver side of a queue; zeroes its areas. ``features`` is the negotiated word; raises LayoutError."""
    kind = PackedDriverQueue if has(features, Feature.F_RING_PACKED) else SplitDriverQueue
    return kind(memory, layout, features, allocator)


def check_areas(memory: GuestMemory, layout: QueueLayout, features: int) -> None:
    """Raises LayoutError, which says where, unless the three areas are aligned and each lies in one region."""
    check_layout(memory, layout, _areas(layout, features))


def _areas(layout: QueueLayout, features: int) -> tuple[tuple[str, int, int, int], ...]:
    """(name, address, alignment, bytes) of the three areas."""
    return packed_parts(layout) if has(features, Feature.F_RING_PACKED) else split_parts(layout)


def allocate_layout(allocator: Allocator, size: int, features: int) -> QueueLayout:
    """Room for the three areas of a queue of ``size`` entries; give it back with :func:`free_layout`."""
    wanted = _areas(QueueLayout(size, 0, 0, 0), features)
    desc, driver, device = [allocator.alloc(length, alignment) for _, _, alignment, length in wanted]
    return QueueLayout(size, desc, driver, device)


def free_layout(allocator: Allocator, layout: QueueLayout) -> None:
    """Gives the areas back, once the queue is reset and nobody uses them."""
    for address in (layout.desc, layout.driver, layout.device):
        allocator.free(address)
