"""Queues whose rings lie where only messages reach: what is in them is carried to rings of our own, and back.

The port works on its own rings as on any. A thread takes what the driver makes available, reads it, and makes it
available there; what has been used there is written back and marked used for the driver. So nobody but that thread ever
waits for the client.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, cast

from virtio_ipsec.errors import MemoryAccessError, RingError
from virtio_ipsec.ring.base import DeviceQueue
from virtio_ipsec.ring.chain import Chain, Segment
from virtio_ipsec.ring.faults import ChainError, Fault, LayoutError
from virtio_ipsec.ring.memory import Allocator, GuestMemory, OutOfMemory, Region
from virtio_ipsec.ring.queue import allocate_layout, check_areas, device_queue, driver_queue
from virtio_ipsec.transport.bells import Bell
from virtio_ipsec.transport.lane import Lane
from virtio_ipsec.transport.mapping import Unusable, memory_of
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.rings import QueuePlace, fence
from virtio_ipsec.transport.vfio_user.remote import Interrupted, RemoteMemory
from virtio_ipsec.wire.numbers import Feature, has

_log = logging.getLogger(__name__)

#: Bytes of our own for the ring and the buffers of one queue, and most of either part of one buffer.
_SPAN: Final = 1 << 22
_MOST: Final = 1 << 20
#: Buffers that are carried in one go.
_BURST: Final = 32
#: Ring positions of a queue that has not been at work, split and packed.
_FRESH: Final = {False: 0, True: 0x80008000}


class _Bounced:
    """One queue: ``remote`` its driver's memory, ``area`` ours. Its two rings have the same format."""

    def __init__(self, place: QueuePlace, features: int, remote: RemoteMemory, area: Region) -> None:
        self.remote = remote
        self._place = place
        self._features = features
        self._local = GuestMemory([area], fence)
        self._allocator = Allocator(area.address, area.size)
        # A buffer takes two descriptors at most, one for each part.
        self.layout = allocate_layout(self._allocator, max(2, place.layout.size), features)
        self._driver = driver_queue(self._local, self.layout, features)
        #: Made in the thread: it reads the driver's memory.
        self._device: DeviceQueue | None = None
        #: With the port, oldest first, by head; and what has come back and is not marked used yet.
        self._out: dict[int, Chain] = {}
        self._done: deque[tuple[Chain, bytes]] = deque()
        self.to_port = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.from_port = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        #: The driver's.
        self.kick: int | None = None
        self.call = Bell()
        self.is_broken = False
        #: There was no room for the next buffer, nor will there be before one comes back.
        self._is_full = False

    def close(self) -> None:
        """Nobody works with it any more. ``kick`` is somebody else's by now."""
        os.close(self.to_port)
        os.close(self.from_port)
        self.call.close()

    # In the thread.

    def round(self) -> int:
        """Carry what is there; how many buffers. RingError and MemoryAccessError break it."""
        device = self._device or self._open()
        return self._give(device) + self._bring(device)

    def listen(self) -> bool:
        """Ask both sides to be told of more; whether there is some already."""
        device = self._device or self._open()
        more = self._driver.enable_notifications()
        return more if self._is_full else device.enable_notifications() | more

    def _open(self) -> DeviceQueue:
        self.remote.channel.failed = False
        device = device_queue(self.remote, self._place.layout, self._features)
        if self._place.state is not None:
            device.restore(self._place.state)
        self._device = device
        return device

    def _give(self, device: DeviceQueue) -> int:
        """From the driver to the port."""
        given = 0
        while not self._is_full and given < _BURST and (chain := device.pop()) is not None:
            try:
                fits = self._carry(chain)
            except Interrupted:
                device.unpop(chain)
                raise
            if fits:
                given += 1
            else:
                device.unpop(chain)
                self._is_full = bool(self._out)
                break
        return given

    def _carry(self, chain: Chain) -> bool:
        """Whether there is room for it now."""
        sizes = chain.readable_len, chain.writable_len
        if max(sizes) > _MOST:
            raise ChainError(Fault.TOO_LONG, f"a buffer of {sizes[0]} and {sizes[1]} bytes")
        if self._driver.free < sum(1 for size in sizes if size):
            return False
        parts: list[Segment] = []
        try:
            parts += [Segment(self._allocator.alloc(size), size) for size in sizes[:1] if size]
            parts += [Segment(self._allocator.alloc(size), size) for size in sizes[1:] if size]
            if sizes[0]:
                data = b"".join(self.remote.read(each.addr, each.length) for each in chain.readable)
                self._local.write(parts[0].addr, data)
        except (OutOfMemory, MemoryAccessError) as error:
            self._free(parts)
            if isinstance(error, OutOfMemory):
                return False
            raise
        split = bool(sizes[0])
        self._driver.add(parts[:split], parts[split:], (chain, parts))
        self._out[chain.head] = chain
        self._driver.publish()
        if self._driver.should_kick():
            os.eventfd_write(self.to_port, 1)
        return True

    def _free(self, parts: Iterable[Segment]) -> None:
        for part in parts:
            self._allocator.free(part.addr)

    def _bring(self, device: DeviceQueue) -> int:
        """From the port to the driver."""
        for used in self._driver.poll():
            chain, parts = cast(tuple[Chain, list[Segment]], used.token)
            self._done.append((chain, self._local.read(parts[-1].addr, used.written)))
            self._free(parts)
            del self._out[chain.head]
            self._is_full = False
        brought = len(self._done)
        while self._done:
            chain, data = self._done[0]
            at = 0
            for segment in chain.writable:
                piece = data[at : at + segment.length]
                self.remote.write(segment.addr, piece)
                at += len(piece)
            device.push(chain, len(data))
            self._done.popleft()
        if self.remote.channel.failed:
            raise MemoryAccessError("the client has no such memory, or does not let it be written")
        if brought:
            try:
                wanted = device.should_notify()
            except Interrupted:  # who has not been asked may want it
                wanted = True
            if wanted:
                self.call.ring()
        return brought

    # In the control thread, with the other one parked and the port's queue stopped.

    def stop(self) -> int:
        """What has come back is marked used, what has not is given back; the position of the driver's ring."""
        device = self._device
        if device is None:
            fresh = _FRESH[has(self._features, Feature.F_RING_PACKED)]
            return fresh if self._place.state is None else self._place.state
        if not self.is_broken:
            self._bring(device)
            for chain in reversed(self._out.values()):
                device.unpop(chain)
        return device.state()


class _Carrier:
    """The thread's work: all queues of a port that are carried. ``broke``: told of the index of one that broke."""

    def __init__(self, broke: Callable[[int, Exception], None]) -> None:
        self.queues: dict[int, _Bounced] = {}
        self._broke = broke

    def round(self) -> int:
        return sum(self._of(index, _Bounced.round) for index in self.queues)

    def listen(self) -> bool:
        waiting = [self._of(index, _Bounced.listen) for index in self.queues]
        return any(waiting)

    def unlisten(self) -> None:
        """Being told too often is cheaper than to say so, which takes a message."""

    def failed(self, error: Exception) -> None:
        for index, queue in self.queues.items():
            queue.is_broken = True
            self._broke(index, error)

    def _of(self, index: int, do: Callable[[_Bounced], int]) -> int:
        queue = self.queues[index]
        if queue.is_broken:
            return 0
        try:
            return do(queue)
        except Interrupted:
            return 0
        except (RingError, MemoryAccessError) as error:
            queue.is_broken = True
            self._broke(index, error)
            return 0


class BouncePort(ServedPort):
    """A served port whose client may keep memory to itself (:meth:`set_remote`)."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._remote: RemoteMemory | None = None
        self._direct = memory_of(())
        self._areas: dict[int, Region] = {}
        self._carrier = _Carrier(self._queue_broke)
        self._lane_of_bounced: Lane | None = None

    def set_remote(self, remote: RemoteMemory | None) -> None:
        """Memory for the rings of queues that are started from now on, where what is shared does not hold them."""
        self._remote = remote

    def set_memory(self, memory: GuestMemory, places: dict[int, QueuePlace] | None = None) -> None:
        self._direct = memory
        super().set_memory(self._with_areas(), places)

    def extend_memory(self, memory: GuestMemory) -> bool:
        if self._areas or not super().extend_memory(memory):
            return False
        self._direct = memory
        return True

    def start_queue(self, index: int, place: QueuePlace) -> None:
        remote, layout = self._remote, place.layout
        if remote is None or all(
            remote.is_shared(part) for part in (layout.desc, layout.driver, layout.device)
        ):
            super().start_queue(index, place)
        else:
            self._start_bounced(index, place, remote)

    def stop_queue(self, index: int) -> int:
        queue = self._carrier.queues.get(index)
        if queue is None:
            return super().stop_queue(index)
        with self._alone(queue) as lane:
            super().stop_queue(index)
            del self._carrier.queues[index]
            lane.unwatch(queue.from_port)
            if queue.kick is not None:
                lane.unwatch(queue.kick)
            try:
                state = queue.stop()
            except (RingError, MemoryAccessError) as error:
                self._queue_broke(index, error)
                state = _FRESH[has(self.negotiated, Feature.F_RING_PACKED)]
        super().set_kick(index, queue.kick)
        super().set_call(index, os.dup(queue.call.fd))
        self._release(index, queue)
        return state

    def set_kick(self, index: int, fd: int | None) -> None:
        queue = self._carrier.queues.get(index)
        if queue is None:
            super().set_kick(index, fd)
            return
        with self._alone(queue) as lane:
            old, queue.kick = queue.kick, fd
            for each, change in ((old, lane.unwatch), (fd, partial(lane.watch, edge=True))):
                if each is not None:
                    change(each)
        if old is not None:
            os.close(old)

    def set_call(self, index: int, fd: int | None) -> None:
        queue = self._carrier.queues.get(index)
        if queue is None:
            super().set_call(index, fd)
        else:
            queue.call.attach(fd)

    def kick(self, index: int) -> None:
        if index in self._carrier.queues:
            self._bounced_lane().wake()
        else:
            super().kick(index)

    def reset(self, *, is_lost: bool = False) -> None:
        for index in list(self._carrier.queues):
            self.stop_queue(index)
        super().reset(is_lost=is_lost)

    def disconnect(self) -> None:
        super().disconnect()
        self._remote, self._direct = None, memory_of(())

    def close(self) -> None:
        super().close()
        lane, self._lane_of_bounced = self._lane_of_bounced, None
        if lane is not None:
            lane.close()

    # Inside.

    def _with_areas(self) -> GuestMemory:
        """What is shared, and what is ours of queues that are carried."""
        if not self._areas:
            return self._direct
        regions = [Region(address, len(view), view) for address, view in self._direct.views]
        return memory_of((*regions, *self._areas.values()))

    def _start_bounced(self, index: int, place: QueuePlace, remote: RemoteMemory) -> None:
        check_areas(remote, place.layout, self.negotiated)
        # Above all that a guest has; where it has not, the queue cannot be started.
        area = Region((1 << 64) - (index + 2) * _SPAN, _SPAN, mmap.mmap(-1, _SPAN))
        queue = _Bounced(place, self.negotiated, remote, area)
        self._areas[index] = area
        slot = self._slots[index]
        queue.kick = None if slot.kick is None else os.dup(slot.kick)
        queue.call.attach(os.dup(slot.call.fd))
        try:
            super().set_memory(self._with_areas())
            super().set_kick(index, os.dup(queue.to_port))
            super().set_call(index, os.dup(queue.from_port))
            super().start_queue(index, QueuePlace(queue.layout))
        except BaseException as error:
            super().set_kick(index, queue.kick)
            super().set_call(index, os.dup(queue.call.fd))
            self._release(index, queue)
            if isinstance(error, Unusable):
                raise LayoutError(Fault.PLACEMENT, str(error)) from None
            raise
        with self._alone(queue) as lane:
            self._carrier.queues[index] = queue
            lane.watch(queue.from_port, edge=True)
            if queue.kick is not None:
                lane.watch(queue.kick, edge=True)

    def _release(self, index: int, queue: _Bounced) -> None:
        del self._areas[index]
        super().set_memory(self._with_areas())
        queue.close()

    def _bounced_lane(self) -> Lane:
        if self._lane_of_bounced is None:
            self._lane_of_bounced = Lane(f"{self.name}-bounce", self._carrier, self._set_bounced_free)
        return self._lane_of_bounced

    @contextmanager
    def _alone(self, queue: _Bounced) -> Iterator[Lane]:
        """The thread is parked. It may be waiting for the client, whom only this one hears."""
        lane = self._bounced_lane()
        channel = queue.remote.channel
        channel.interrupt(True)
        try:
            with lane.parked():
                yield lane
        finally:
            channel.interrupt(False)
            lane.wake()

    def _set_bounced_free(self) -> None:
        for queue in list(self._carrier.queues.values()):
            queue.remote.channel.interrupt(True)
            queue.call.free()

    def _queue_broke(self, index: int, error: Exception) -> None:
        """From either thread: the device needs a reset."""
        _log.warning("%s: queue %d: %s", self.name, index, str(error))
        with self.lock:
            self.device.needs_reset()
        self.look_soon()
