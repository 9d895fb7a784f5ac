"""The driver side of all virtqueues of a device under test, with buffers that show every byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from virtio_ipsec.conformance.target import Target
from virtio_ipsec.conformance.trace import Trace
from virtio_ipsec.ring.chain import QueueLayout, Segment
from virtio_ipsec.ring.packed import packed_parts
from virtio_ipsec.ring.queue import DriverQueue, allocate_layout, driver_queue, free_layout
from virtio_ipsec.ring.split import split_parts
from virtio_ipsec.wire.numbers import Feature, has

#: Entries per queue: enough for every case, small enough for targets with little memory.
QUEUE_SIZE = 64


@dataclass(slots=True)
class Buffer:
    """One buffer given to the device. After completion ``written`` is the used length and ``content`` the
    whole writable part as it lies in memory, including what the device did not write."""

    queue: int
    readable: tuple[Segment, ...]
    writable: tuple[Segment, ...]
    completed: bool = False
    written: int = 0
    content: bytes = b""


class Queues:
    """Virtqueues by index. Nothing is posted or kicked unless a case asks for it."""

    def __init__(self, target: Target, trace: Trace) -> None:
        self._target = target
        self._trace = trace
        self._queues: dict[int, DriverQueue] = {}
        self._taken: dict[int, int] = {}
        self._layouts: list[QueueLayout] = []
        self.features = 0

    def forget(self) -> None:
        """After a device reset: give all memory back and know no queue."""
        for address in self._taken:
            self._target.allocator.free(address)
        for layout in self._layouts:
            free_layout(self._target.allocator, layout)
        self._taken = {}
        self._layouts = []
        self._queues = {}
        self.features = 0

    def indices(self) -> list[int]:
        """The queues that exist: data and control queues, then the first administration virtqueue."""
        found = list(range(self._target.num_queues()))
        admin = self._target.admin_queue_index()
        return [*found, admin] if has(self.features, Feature.F_ADMIN_VQ) and admin not in found else found

    def enable_all(self, features: int) -> None:
        """Set up every queue for these negotiated features."""
        self.features = features
        for index in self.indices():
            self.enable(index)

    def enable(self, index: int, size: int = QUEUE_SIZE) -> None:
        """Set up one queue, anew if it was reset."""
        size = min(size, self._target.queue_max_size(index))
        layout = allocate_layout(self._target.allocator, size, self.features)
        self._layouts.append(layout)
        # The driver side zeroes the ring, so it exists before the device is told.
        queue = driver_queue(self._target.memory, layout, self.features, self._target.allocator)
        self._target.enable_queue(index, layout)
        self._queues[index] = queue

    def drop(self, index: int) -> None:
        """Forget a queue that was reset."""
        del self._queues[index]

    def submit(
        self,
        index: int,
        readable: bytes | Sequence[bytes] = b"",
        writable: int | Sequence[int] = 0,
        *,
        fill: int = 0xAA,
        kick: bool = True,
    ) -> Buffer:
        """Post one buffer: readable bytes, then writable room filled with ``fill``; one descriptor each, or
        one per element of a sequence. Kicks unless told not to."""
        pieces = [readable] if isinstance(readable, bytes) else list(readable)
        rooms = [writable] if isinstance(writable, int) else list(writable)
        buffer = Buffer(
            index,
            tuple(self._place(piece) for piece in pieces if piece),
            tuple(self._place(bytes((fill,)) * room) for room in rooms if room),
        )
        queue = self._queues[index]
        queue.add(buffer.readable, buffer.writable, buffer)
        queue.publish()
        if kick:
            self.kick(index)
        return buffer

    def repeat(self, index: int, readable: Segment, count: int) -> None:
        """Post ``count`` buffers that all are these bytes, which :meth:`keep` has put into memory, and kick."""
        queue = self._queues[index]
        for _ in range(count):
            queue.add((readable,), (), Buffer(index, (), ()))
        queue.publish()
        self.kick(index)

    def keep(self, data: bytes) -> Segment:
        """Put bytes into memory that stay there until the device is reset."""
        return self._place(data)

    def _place(self, data: bytes) -> Segment:
        address = self._target.allocator.alloc(len(data))
        self._taken[address] = len(data)
        self._target.memory.write(address, data)
        return Segment(address, len(data))

    def kick(self, index: int) -> None:
        """Notify the device of a queue."""
        self._target.kick(index)

    def collect(self, index: int) -> list[Buffer]:
        """Buffers that the device has completed since the last call; their memory is free again."""
        done = []
        for used in self._queues[index].poll():
            buffer = used.token
            assert isinstance(buffer, Buffer)  # noqa: S101 - only `submit` makes tokens
            buffer.content = self.content(buffer)
            buffer.completed, buffer.written = True, used.written
            for part in (*buffer.readable, *buffer.writable):
                self._target.allocator.free(part.addr)
                del self._taken[part.addr]
            done.append(buffer)
        return done

    @property
    def enabled(self) -> frozenset[int]:
        """Indices of the queues that are set up."""
        return frozenset(self._queues)

    def memory(self, *indices: int) -> bytes:
        """Everything that lies in the rings of these queues (of all, if none is named) and in the buffers of all, to
        see whether the device writes. In the rings of a queue in use it may at any time: it says whether it wants to
        be notified."""
        read = self._target.memory.read
        packed = has(self.features, Feature.F_RING_PACKED)
        parts = packed_parts if packed else split_parts
        layouts = [self._queues[index].layout for index in indices] if indices else self._layouts
        areas = [(address, length) for one in layouts for _, address, _, length in parts(one)]
        return b"".join(read(address, length) for address, length in (*areas, *self._taken.items()))

    def content(self, buffer: Buffer) -> bytes:
        """The writable part of a buffer that is not completed, as it lies in memory now."""
        return b"".join(self._target.memory.read(part.addr, part.length) for part in buffer.writable)

    def state(self, index: int) -> DriverQueue:
        """The queue itself, for cases about rings."""
        return self._queues[index]
