"""Memory and rings as one front-end's messages describe them: what has been said about each, and which are at work.

A ring starts as soon as everything that it needs has come, in whatever order.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from virtio_ipsec.errors import DeviceStateError, RingError, TransportError
from virtio_ipsec.fastpath.rings import inflight_size
from virtio_ipsec.ring.chain import QueueLayout
from virtio_ipsec.transport.mapping import Unusable, map_shared
from virtio_ipsec.transport.payload import MessageError
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.rings import QueuePlace
from virtio_ipsec.transport.vhost_user.memory import MAX_REGIONS, MemoryTable
from virtio_ipsec.transport.vhost_user.messages import (
    VRING_F_LOG,
    Inflight,
    MemoryRegion,
    VringAddress,
    VringFile,
    VringState,
)
from virtio_ipsec.wire.numbers import Feature, has


class Refused(TransportError):
    """A message that is understood and cannot be obeyed. Nothing has changed."""


@dataclass(slots=True)
class Answer:
    """What goes back."""

    value: Any
    fds: tuple[int, ...] = field(default=())


@dataclass(slots=True)
class Vring:
    """What has been said about one ring."""

    size: int = 0
    base: int = 0
    address: VringAddress | None = None
    #: SET_VRING_KICK has come since the ring was last stopped.
    has_kick: bool = False


@dataclass(slots=True)
class _Buffer:
    """The in-flight buffer: its bytes, and how many belong to each ring."""

    view: memoryview
    region: int
    rings: int
    entries: int


class RingSet:
    """All rings of one connection. ``fds``: descriptors of the message at hand; whoever uses one takes it out."""

    def __init__(self, port: ServedPort, fds: list[int]) -> None:
        self._port = port
        self._fds = fds
        self._rings = [Vring() for _ in range(port.queue_count)]
        self._table = MemoryTable()
        self._buffer: _Buffer | None = None

    def forget(self) -> None:
        """What the driver has said; memory and descriptors stay."""
        for ring in self._rings:
            ring.size, ring.address, ring.has_kick = 0, None, False

    def enable_all(self, on: bool) -> None:
        """As SET_VRING_ENABLE for each ring."""
        for index in range(len(self._rings)):
            self._port.set_enabled(index, on)

    def any_started(self) -> bool:
        """Whether a ring is at work."""
        return any(self._port.started(index) for index in range(len(self._rings)))

    def release(self) -> None:
        """Let go of what was shared; the port no longer uses it."""
        self._table = MemoryTable()
        self._buffer = None

    # Memory.

    def set_mem_table(self, regions: tuple[MemoryRegion, ...]) -> None:
        if len(regions) != len(self._fds):
            raise MessageError(f"{len(regions)} memory regions with {len(self._fds)} file descriptors")
        self._use(MemoryTable.of(regions, self._fds))

    def add_region(self, region: MemoryRegion) -> None:
        self._use(self._table.with_region(region, self._fds[0]))

    def remove_region(self, region: MemoryRegion) -> None:
        self._use(self._table.without_region(region))

    def _use(self, table: MemoryTable) -> None:
        """The guest's memory is this now. Rings at work go on in it, if they can."""
        places = {
            index: self._place(table, ring)
            for index, ring in enumerate(self._rings)
            if self._port.started(index)
        }
        self._port.set_memory(table.memory, places)
        self._table = table
        self.start()

    def get_slots(self, _: None) -> Answer:
        return Answer(MAX_REGIONS)

    # Rings.

    def _ring(self, index: int) -> Vring:
        if not 0 <= index < len(self._rings):
            raise Refused(f"there is no ring {index}")
        return self._rings[index]

    def _stopped(self, index: int) -> Vring:
        ring = self._ring(index)
        if self._port.started(index):
            raise Refused(f"ring {index} is at work")
        return ring

    def set_num(self, state: VringState) -> None:
        ring = self._stopped(state.index)
        if not 0 < state.num <= self._port.device.config.queue_size:
            raise Refused(f"ring {state.index} of {state.num} entries")
        ring.size = state.num

    def set_addr(self, address: VringAddress) -> None:
        ring = self._ring(address.index)
        if self._port.started(address.index):
            before = ring.address
            if before is None or _places(before) != _places(address):
                raise Refused(f"ring {address.index} is at work and cannot be moved")
            self._port.set_queue_log(address.index, _used_log(address))
        ring.address = address
        self.start()

    def set_base(self, state: VringState) -> None:
        self._stopped(state.index).base = state.num

    def get_base(self, state: VringState) -> Answer:
        ring = self._ring(state.index)
        self._stop_ring(state.index)
        self._port.set_kick(state.index, None)
        ring.has_kick = False
        return Answer(VringState(state.index, ring.base))

    def set_kick(self, file: VringFile) -> None:
        self._ring(file.index).has_kick = True
        self._port.set_kick(file.index, self._eventfd(file))
        self.start()

    def set_call(self, file: VringFile) -> None:
        self._ring(file.index)
        self._port.set_call(file.index, self._eventfd(file))

    def set_err(self, file: VringFile) -> None:
        self._ring(file.index)
        self._port.set_err(file.index, self._eventfd(file))

    def _eventfd(self, file: VringFile) -> int | None:
        if file.has_fd != bool(self._fds):
            raise MessageError(
                f"ring {file.index}: the message says otherwise about a file descriptor than it does"
            )
        return self._fds.pop(0) if file.has_fd else None

    def set_enable(self, state: VringState) -> None:
        self._ring(state.index)
        if state.num > 1:
            raise Refused(f"ring {state.index} can be enabled with 1 or disabled with 0")
        self._port.set_enabled(state.index, bool(state.num))

    def start(self) -> None:
        """Whatever has all it needs begins."""
        port = self._port
        if not port.negotiated or not len(self._table):
            return
        for index, ring in enumerate(self._rings):
            if ring.size and ring.address is not None and ring.has_kick and not port.started(index):
                try:
                    port.start_queue(index, self._place(self._table, ring))
                except (RingError, DeviceStateError, Unusable) as error:
                    ring.has_kick = False  # not again before it is set up anew
                    raise Refused(f"ring {index}: {error}") from error

    def _place(self, table: MemoryTable, ring: Vring) -> QueuePlace:
        address = ring.address
        if address is None:
            raise Refused("a ring without addresses")
        layout = QueueLayout(
            ring.size,
            table.guest_address(address.descriptor),
            table.guest_address(address.available),
            table.guest_address(address.used),
        )
        index = address.index
        packed = has(self._port.negotiated, Feature.F_RING_PACKED)
        return QueuePlace(
            layout,
            position(ring.base, packed=packed),
            self._inflight_offset(index, ring.size),
            _used_log(address),
        )

    def _stop_ring(self, index: int) -> None:
        if self._port.started(index):
            self._rings[index].base = self._port.stop_queue(index)

    def stop_all(self) -> None:
        for index in range(len(self._rings)):
            self._stop_ring(index)

    # What outlives us.

    def get_inflight(self, wanted: Inflight) -> Answer:
        region, rings = self._regions(wanted)
        size = region * rings
        fd = os.memfd_create("vhost-user-inflight", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            self._use_buffer(_Buffer(map_shared(fd, size, 0), region, rings, wanted.queue_size))
        except BaseException:
            os.close(fd)
            raise
        return Answer(Inflight(size, 0, rings, wanted.queue_size), (fd,))

    def set_inflight(self, given: Inflight) -> None:
        region, rings = self._regions(given)
        if given.mmap_size < region * rings:
            raise Refused(f"an in-flight buffer of {given.mmap_size} bytes for {rings} rings")
        view = map_shared(self._fds[0], given.mmap_size, given.mmap_offset)
        self._use_buffer(_Buffer(view, region, rings, given.queue_size))

    def _regions(self, buffer: Inflight) -> tuple[int, int]:
        """Bytes for each ring, and how many rings."""
        if not 0 < buffer.num_queues <= len(self._rings):
            raise Refused(f"an in-flight buffer for {buffer.num_queues} rings")
        if not 0 < buffer.queue_size <= self._port.device.config.queue_size:
            raise Refused(f"an in-flight buffer for rings of {buffer.queue_size} entries")
        return inflight_size(buffer.queue_size, self._port.negotiated), buffer.num_queues

    def _use_buffer(self, buffer: _Buffer) -> None:
        self._port.set_inflight(buffer.view)
        self._buffer = buffer

    def _inflight_offset(self, index: int, entries: int) -> int | None:
        buffer = self._buffer
        if buffer is None or index >= buffer.rings:
            return None
        if entries > buffer.entries:
            raise Refused(f"ring {index} is larger than its part of the in-flight buffer")
        return index * buffer.region


def position(base: int, *, packed: bool) -> int:
    """The ring position that SET_VRING_BASE means. DPDK leaves out the used half of a packed ring's; as nothing is in
    flight where a ring starts, it is the available half. QEMU sends both."""
    if not packed:
        return base & 0xFFFF
    return base | base << 16 if base < 1 << 16 else base


def _places(address: VringAddress) -> tuple[int, int, int]:
    return address.descriptor, address.available, address.used


def _used_log(address: VringAddress) -> int | None:
    return address.log if address.flags & VRING_F_LOG else None
