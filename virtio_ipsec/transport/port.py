"""One device at work: its queues in shared memory, its uplink, who controls it, and the threads in between.

Which transport shows the device to a driver is not known here. The transport calls in the control thread (the one that
runs :attr:`ServedPort.loop`), holds no lock when it does so, and takes :attr:`ServedPort.lock` for what it asks
:attr:`ServedPort.device` itself.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from time import monotonic_ns
from typing import TYPE_CHECKING

from virtio_ipsec.device.device import Device
from virtio_ipsec.errors import DeviceStateError, RingError
from virtio_ipsec.fastpath import native
from virtio_ipsec.fastpath.rings import FastDeviceQueue, fast_memory
from virtio_ipsec.ring.base import DeviceQueue
from virtio_ipsec.ring.memory import GuestMemory
from virtio_ipsec.transport.bells import Bell, check_eventfd
from virtio_ipsec.transport.datapath import NativePath, NativeWork, Surroundings
from virtio_ipsec.transport.exchange import Exchange, Operator, check_features
from virtio_ipsec.transport.lane import SPIN
from virtio_ipsec.transport.lanes import Lanes
from virtio_ipsec.transport.loop import Loop
from virtio_ipsec.transport.rings import PortRings, QueuePlace, new_queue
from virtio_ipsec.transport.upkeep import Upkeep
from virtio_ipsec.transport.uplink import Uplink
from virtio_ipsec.wire.numbers import Feature

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Slot:
    """One queue index."""

    call: Bell = field(default_factory=Bell)
    err: Bell = field(default_factory=Bell)
    kick: int | None = None
    enabled: bool = False
    place: QueuePlace | None = None
    queue: DeviceQueue | None = None


class ServedPort:
    """A device, its uplink and its threads; owns them all from here on, and ``operator`` too.

    Without ``operator`` the driver controls IPsec. ``clock``: monotonic nanoseconds. ConfigError for a device that
    offers the driver what the operator has.
    """

    def __init__(
        self,
        device: Device,
        uplink: Uplink,
        operator: Operator | None = None,
        *,
        name: str = "port",
        clock: Callable[[], int] = monotonic_ns,
        spin: int = SPIN,
    ) -> None:
        if operator is not None:
            check_features(device.offered_features)
        self.name = name
        self.device = device
        self.uplink = uplink
        self.operator = operator
        self.loop = Loop()
        self.lock = threading.RLock()
        #: Called in the control thread when the device's status or configuration may have changed by itself.
        self.on_change: Callable[[], None] = lambda: None
        #: The front-end keeps the control queue to itself: which queues it enables says how many pairs are in use.
        self.pairs_by_enabling = False
        self._memory = GuestMemory.anonymous(4096)
        self._log_view: WriteableBuffer | None = None
        self._inflight: WriteableBuffer | None = None
        self._exchange = Exchange(device, operator, clock)
        self._around = Surroundings(self._exchange, uplink, self.lock)
        self._around.rings = PortRings(self._exchange, self._memory)
        self._around.ring_bells = self._ring_bells
        self._counted: Counter[str] = Counter()
        self._slots = [_Slot() for _ in range(self._around.rings.admin_queue_index + 1)]
        self._lanes = Lanes(name, self._around, self._set_free, spin)
        self._upkeep = Upkeep(self._around, self.loop, self._looked)
        self._commands = self._upkeep.commands
        self._closed = False
        self._lanes.lane(0)
        self._upkeep.look()

    # What the transport asks.

    @property
    def queue_count(self) -> int:
        """Virtqueues, the administration queue included."""
        return len(self._slots)

    @property
    def negotiated(self) -> int:
        """The features in force; 0 before negotiation."""
        return self.device.context.features

    def started(self, index: int) -> bool:
        """Whether the queue has been started and not stopped."""
        return self._slots[index].queue is not None

    # What the transport says, in the control thread.

    def set_memory(self, memory: GuestMemory, places: dict[int, QueuePlace] | None = None) -> None:
        """The guest's memory is this from now on; what was shared before is no longer touched. Started queues go on in
        it, at ``places`` where one is named; RingError when one cannot, and then it has stopped."""
        with self._lanes.parked():
            going = {
                i: replace((places or {}).get(i, slot.place), state=slot.queue.state())
                for i, slot in enumerate(self._slots)
                if slot.queue is not None and slot.place is not None
            }
            for index in going:
                self._forget(index)
            self._memory = memory
            self._share()
            with self.lock:
                self._around.rings = PortRings(self._exchange, memory)
            for index, place in going.items():
                self._make(index, place)

    def extend_memory(self, memory: GuestMemory) -> bool:
        """As :meth:`set_memory`, with less work, where what changes is not where started queues lie. False: it is not
        so simple, and :meth:`set_memory` has to follow."""
        queues = [slot.queue for slot in self._slots if slot.queue is not None]
        with self._lanes.parked(), self.lock:
            if not all(isinstance(queue, FastDeviceQueue) and queue.move(memory) for queue in queues):
                return False
            self._memory = self._around.rings.memory = memory
            self._share()
            return True

    @contextmanager
    def resting(self) -> Iterator[None]:
        """No data queue is worked on meanwhile, so that nobody misses one that is stopped and started again."""
        with self._lanes.parked():
            yield

    def set_log(self, view: WriteableBuffer | None) -> None:
        """The dirty log: stores into guest memory are noted there from now on. Those into rings as their places say."""
        with self._lanes.parked():
            self._log_view = view
            with self.lock:
                self.device.set_leaving(view is not None)
            if native.available():
                fast_memory(self._memory).set_log(view)

    def set_queue_log(self, index: int, used: int | None) -> None:
        """Where a queue's device area counts as lying in the dirty log; None: it is not logged."""
        slot = self._slots[index]
        if slot.place is not None and isinstance(slot.queue, FastDeviceQueue) and slot.place.log != used:
            with self._parked(index):
                slot.place = replace(slot.place, log=used)
                slot.queue.set_log(used)

    def set_inflight(self, view: WriteableBuffer | None) -> None:
        """What the in-flight regions of queues lie in; before those are started that have one."""
        if any(slot.place is not None and slot.place.inflight is not None for slot in self._slots):
            raise DeviceStateError("a queue uses its region of the in-flight buffer")
        self._inflight = view
        self._share()

    def begin(self) -> None:
        """Features have been negotiated: queues can be started. Before the first one."""
        if self._around.path is None and self.device.fast is not None and self.negotiated:
            with self._lanes.parked(), self.lock:
                self._around.path = NativePath(self._around, self.device.fast)
                self._around.path.publish()
                self._lanes.give_work(self._around.path)

    def start_queue(self, index: int, place: QueuePlace) -> None:
        """Take a queue into use. RingError or DeviceStateError when that cannot be."""
        slot = self._slots[index]
        if not self.negotiated or slot.queue is not None:
            raise DeviceStateError(f"queue {index} cannot be started now")
        if place.layout.size > self._around.rings.queue_max_size(index):
            raise DeviceStateError(f"queue {index} cannot have {place.layout.size} entries")
        self.begin()
        with self._parked(index):
            self._make(index, place)

    def stop_queue(self, index: int) -> int:
        """Nothing is done on the queue any more, and nothing is half done; its ring position."""
        with self._parked(index):
            return self._end(index)

    def set_enabled(self, index: int, on: bool) -> None:
        """A queue that is started but not enabled delivers nothing, and what it is to send is discarded."""
        slot = self._slots[index]
        if slot.enabled != on:
            slot.enabled = on
            if slot.queue is not None:
                with self._parked(index):
                    self._show(index)
                self._commands.look(index)

    def set_kick(self, index: int, fd: int | None) -> None:
        """The eventfd that tells of available buffers, owned from here on; None: none, the queue is to be polled."""
        slot = self._slots[index]
        try:
            if fd is not None:
                check_eventfd(fd)
        except Exception:
            os.close(fd)  # type: ignore[arg-type]
            raise
        with self._parked(index) if slot.queue is not None else nullcontext():
            self._unwatch(index)
            if slot.kick is not None:
                os.close(slot.kick)
            slot.kick = fd
            self._watch(index)

    def set_call(self, index: int, fd: int | None) -> None:
        """The eventfd of used buffer notifications, owned from here on. At any time."""
        self._slots[index].call.attach(fd)

    def set_err(self, index: int, fd: int | None) -> None:
        """The eventfd that is told when the queue breaks, owned from here on. At any time."""
        self._slots[index].err.attach(fd)

    def kick(self, index: int) -> None:
        """There are available buffers, for a driver that says so without the eventfd."""
        if not self.started(index):
            return
        if self._is_data(index):
            self._lanes.lane(index >> 1).wake()
        else:
            self._commands.look(index)

    def wake(self) -> None:
        """The device's status has changed: there may be work, of which nobody told while it was not allowed."""
        self._lanes.wake()
        for index in range(len(self._slots)):
            self._commands.look(index)

    def reset(self, *, is_lost: bool = False) -> None:
        """Device reset: queues are forgotten, with them all that the driver had set up. Eventfds stay.

        ``is_lost``: the front-end has not asked where its rings stopped. Then their in-flight records have to tell
        whoever serves it next; otherwise they are void.
        """
        with self._lanes.parked():
            for index in range(len(self._slots)):
                if self.started(index):
                    self._end(index, keeps_record=is_lost)
            with self.lock:
                self.device.reset()
                ended, self._around.path = self._around.path, None
                self._lanes.give_work(self._around.path)
                if ended is not None:
                    self._counted.update(ended.counts())
                    ended.close()

    def disconnect(self) -> None:
        """The driver's side is gone: reset, and nothing that it shared is kept."""
        self.reset(is_lost=True)
        self._inflight = self._log_view = None
        with self._lanes.parked():
            for index, slot in enumerate(self._slots):
                slot.enabled = False
                slot.call.attach(None)
                slot.err.attach(None)
                self._unwatch(index)
                if slot.kick is not None:
                    os.close(slot.kick)
                    slot.kick = None
            with self.lock:
                self.device.set_leaving(False)
                self._memory = GuestMemory.anonymous(4096)
                self._around.rings = PortRings(self._exchange, self._memory)

    # For whoever runs the port.

    def count(self, name: str) -> None:
        """One event more that the transport counts. In the control thread."""
        self._counted[name] += 1

    def counters(self) -> Counter[str]:
        """Event counts since the port was made: the device's, the operator's, and with ``uplink_`` the uplink's."""
        with self.lock:
            found = Counter(self.device.counters())
            found.update(self._counted)
            if self._around.path is not None:
                found.update(self._around.path.counts())
            if self.operator is not None:
                found.update(self.operator.counters())
        found.update({f"uplink_{name}": count for name, count in self.uplink.counters().items()})
        return found

    def close(self) -> None:
        """End the threads and release everything. Not while another thread runs the loop. Raises Stuck when a thread
        does not end; it goes with the process."""
        if self._closed:
            return
        self._closed = True
        self.disconnect()
        self._lanes.close()
        for slot in self._slots:
            slot.call.close()
            slot.err.close()
        self._upkeep.close()
        self.loop.close()
        self.uplink.close()

    # Queues.

    def new_queue(self, index: int, place: QueuePlace, memory: GuestMemory) -> DeviceQueue:
        """A queue at its place. RingError where that cannot be."""
        slot = self._slots[index]
        return new_queue(memory, place, self.negotiated, slot.call.fd, slot.err.fd)

    def _make(self, index: int, place: QueuePlace) -> None:
        """A started queue at its index; its lane is parked."""
        slot = self._slots[index]
        try:
            slot.queue = self.new_queue(index, place, self._memory)
        except RingError:
            slot.place = None
            raise
        slot.place = replace(place, state=None)
        self._show(index)
        self._watch(index)

    def _end(self, index: int, *, keeps_record: bool = False) -> int:
        """The queue has stopped; its ring position."""
        slot = self._slots[index]
        queue = slot.queue
        if queue is None:
            raise DeviceStateError(f"queue {index} is not started")
        self._forget(index)
        if isinstance(queue, FastDeviceQueue) and not keeps_record:
            queue.end_record()
        slot.place = None
        return queue.state()

    def _forget(self, index: int) -> None:
        self._unwatch(index)
        queue, self._slots[index].queue = self._slots[index].queue, None
        self._show(index)
        del queue  # not before nobody works with it

    def _show(self, index: int) -> None:
        """Let the queue, or that there is none, be seen by who works with it."""
        slot = self._slots[index]
        used = slot.queue if slot.enabled else None
        with self.lock:
            self._around.rings.use(index, used)
            if not self._is_data(index):
                return
            pair = index >> 1
            work = self._lanes.work(pair)
            if index & 1:
                work.discarded = None if slot.enabled else slot.queue
            if self._around.path is not None and isinstance(work, NativeWork):
                receive, transmit = (self._around.rings.queue(2 * pair + side) for side in (0, 1))
                self._around.path.set_queues(pair, receive, transmit)
                work.queue = transmit
            self._steer()

    def _steer(self) -> None:
        """See :attr:`pairs_by_enabling`."""
        context = self.device.context
        if not self.pairs_by_enabling or not context.has(Feature.NET_F_MQ):
            return
        pairs = 1
        while pairs < context.config.max_queue_pairs and self._around.rings.queue(2 * pairs) is not None:
            pairs += 1
        if context.steering.queue_pairs != pairs:
            context.steering = replace(context.steering, queue_pairs=pairs)
            if self._around.path is not None:
                self._around.path.publish()

    def _is_data(self, index: int) -> bool:
        """Whether it is a receive or transmit queue, as things are negotiated."""
        return index < min(self._around.rings.control_queue_index, self._around.rings.admin_queue_index)

    def _share(self) -> None:
        """Let C know what belongs to the memory."""
        if self._log_view is not None:
            fast_memory(self._memory).set_log(self._log_view)
        if self._inflight is not None:
            fast_memory(self._memory).set_inflight(self._inflight)

    # Threads.

    @contextmanager
    def _parked(self, index: int) -> Iterator[None]:
        """Nobody works on the queue."""
        if not self._is_data(index):
            yield
            return
        with self._lanes.lane(index >> 1).parked():
            yield

    def _set_free(self) -> None:
        """Whatever the driver's side may have blocked a thread with."""
        for slot in self._slots:
            slot.call.free()
            slot.err.free()

    def _watch(self, index: int) -> None:
        slot = self._slots[index]
        if slot.queue is None:
            return
        if self._is_data(index):
            lane = self._lanes.lane(index >> 1)
            if index & 1:  # who offers buffers to receive into need not say so
                lane.unannounced = slot.kick is None
                if slot.kick is not None:
                    lane.watch(slot.kick, edge=True)
        else:
            self._commands.watch(index, slot.kick)

    def _unwatch(self, index: int) -> None:
        self._commands.unwatch(index)
        kick = self._slots[index].kick
        if kick is not None:
            self._lanes.unwatch(kick)

    def _ring_bells(self, indices: set[int]) -> None:
        for index in indices:
            self._slots[index].call.ring()

    # The control thread's part.

    def publish(self) -> None:
        """From any thread: what was changed in the operator's policy holds for all packets that come after this.
        Happens by itself when the loop has had its turn."""
        self._upkeep.publish()

    def look_soon(self) -> None:
        """From any thread: the control thread has something to look at."""
        self._upkeep.look_soon()

    def _looked(self) -> None:
        """Tell of broken rings in Python (csrc/ rings the eventfds of its own), and of changes."""
        for slot in self._slots:
            if slot.queue is not None and slot.queue.broken and not isinstance(slot.queue, FastDeviceQueue):
                slot.err.ring()
        self.on_change()
