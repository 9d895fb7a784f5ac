"""A device's virtqueues in memory that another process shares."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from virtio_ipsec.device.rings import Rings
from virtio_ipsec.errors import MemoryAccessError, Reason, RingError
from virtio_ipsec.fastpath import native
from virtio_ipsec.fastpath.rings import FastDeviceQueue, QueueOptions
from virtio_ipsec.ring.base import DeviceQueue
from virtio_ipsec.ring.chain import QueueLayout
from virtio_ipsec.ring.faults import LayoutError
from virtio_ipsec.ring.memory import GuestMemory
from virtio_ipsec.ring.queue import check_areas, device_queue

_barrier = threading.Lock()


def fence() -> None:
    """A full memory barrier, for rings in Python over shared memory: what taking a lock does."""
    with _barrier:
        pass


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """Where a queue lies and begins."""

    layout: QueueLayout
    #: Ring position; None: a new queue.
    state: int | None = None
    #: Offset of its region in the in-flight mapping; None: not tracked.
    inflight: int | None = None
    #: Where its device area counts as lying in the dirty log; None: it is not logged.
    log: int | None = None


def new_queue(
    memory: GuestMemory, place: QueuePlace, features: int, call_fd: int, err_fd: int
) -> DeviceQueue:
    """A queue at its place, in C where that is built. RingError for one that cannot be there, and for what needs C."""
    if native.available():
        options = QueueOptions(call_fd, err_fd, place.state, place.inflight)
        try:
            queue = FastDeviceQueue(memory, place.layout, features, options)
        except LayoutError:
            # C says what is wrong, not where.
            check_areas(memory, place.layout, features)
            raise
        queue.set_log(place.log)
        return queue
    plain = device_queue(memory, place.layout, features)
    if place.state is not None:
        plain.restore(place.state)
    return plain


def is_broken(queue: DeviceQueue) -> bool:
    """Whether the driver has broken the rules of the ring."""
    return queue.faulty if isinstance(queue, FastDeviceQueue) else queue.broken


def discard(queue: DeviceQueue, most: int) -> int:
    """Complete up to ``most`` available buffers, whatever is in them; how many. RingError as the queue has it."""
    for done in range(most):
        chain = queue.pop()
        if chain is None:
            return done
        queue.push(chain, 0)
    return most


class PortRings(Rings):
    """Queues that are made elsewhere, worked off in portions. Everything here is called under the port's lock."""

    def use(self, index: int, queue: DeviceQueue | None) -> None:
        """The queue at this index; None: there is none."""
        if queue is None:
            self._queues.pop(index, None)
            self._interrupts.discard(index)
        else:
            self._queues[index] = queue
        self._show_live()

    def queue(self, index: int) -> DeviceQueue | None:
        """The queue in use at this index."""
        return self._queues.get(index)

    def any_broken(self) -> bool:
        """Whether a driver has broken the rules of any of the queues in use."""
        return any(is_broken(queue) for queue in list(self._queues.values()))

    def work_off(
        self, index: int, most: int, settle: Callable[[], None] = lambda: None
    ) -> tuple[int, list[bytes]]:
        """At most ``most`` buffers of a queue that a driver fills: how many there were, and the frames that leave.

        ``settle`` is called before a buffer is seen to be used: who looks at the ring may rely on what it asked for.
        """
        queue = self._queues.get(index)
        work = self._work(index)
        frames: list[bytes] = []
        done = 0
        if queue is None or work is None or not self.device.is_operating:
            return 0, frames
        try:
            while done < most and (chain := queue.pop()) is not None:
                done += 1
                written = work(chain, frames)
                settle()
                queue.push(chain, written)
                if not self._is_live(index, queue):
                    return done, frames
            if done:
                self._gather(index, queue)
        except (RingError, MemoryAccessError):
            self.device.needs_reset()
        return done, frames

    def discard(self, index: int, queue: DeviceQueue, most: int) -> int:
        """As :meth:`work_off` of a transmit queue that is not enabled: nothing leaves."""
        try:
            done = discard(queue, most)
            if done:
                self.device.context.counters.add("tx_refused_" + Reason.QUEUE_DISABLED.value, done)
                self._gather(index, queue)
        except (RingError, MemoryAccessError):
            self.device.needs_reset()
            return 0
        return done
