"""How the data queues of a served port are worked off: in C, one worker for each thread, or in Python under its lock.

A path lasts from negotiation to the next reset. What a lane works on is changed while the lane is parked, and what it
takes from the port (device, operator) is taken under the port's lock.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from virtio_ipsec.device.fast import FastPath
from virtio_ipsec.device.fast_rings import port_config
from virtio_ipsec.device.state import Received
from virtio_ipsec.errors import RingError
from virtio_ipsec.fastpath import pipeline
from virtio_ipsec.fastpath.pipeline import RxState, Worker
from virtio_ipsec.fastpath.rings import FastDeviceQueue
from virtio_ipsec.fastpath.wire import Wire
from virtio_ipsec.ring.base import DeviceQueue
from virtio_ipsec.transport.exchange import Exchange
from virtio_ipsec.transport.operator_rules import OperatorRules
from virtio_ipsec.transport.rings import PortRings, is_broken
from virtio_ipsec.transport.uplink import Uplink
from virtio_ipsec.transport.uplinks.crossed import End
from virtio_ipsec.wire.numbers import Feature, has

_log = logging.getLogger(__name__)

#: Buffers and frames that one call works off: as many as it may hand to Python, so that none is dropped for that.
BURST = 256
#: The same while the port's lock is held for all of them.
_LOCKED_BURST = 32
#: Buffers that one call works off when nothing else is to be looked at meanwhile.
_LONG_BURST = 4096
#: How often a call looks at an empty queue before it returns, when nothing else is to be looked at.
_IDLE_POLLS = 256


class Surroundings:
    """What the paths of one port have in common."""

    def __init__(self, exchange: Exchange, uplink: Uplink, lock: threading.RLock) -> None:
        self.exchange = exchange
        self.uplink = uplink
        self.lock = lock
        #: Told, in any thread, when something may have happened that the control thread has to see to.
        self.changed: Callable[[], None] = lambda: None
        #: The path in C of this negotiation. None before it, and where Python does it all.
        self.path: NativePath | None = None
        #: When the control thread means to look at the operator's timers, and what it has published of him.
        self.due: int | None = None
        self.seen = 0
        self.rings: PortRings
        self.ring_bells: Callable[[set[int]], None] = lambda indices: None

    def check_time(self) -> None:
        """After what may have moved the operator's timers, or changed what C knows of him; under the lock."""
        operator = self.exchange.operator
        if operator is not None and (operator.deadline() != self.due or operator.generation != self.seen):
            self.changed()

    def broke(self) -> None:
        """The driver has broken a ring: the device needs a reset."""
        with self.lock:
            if self.exchange.is_operating:
                self.exchange.needs_reset()
        self.changed()


class PythonWork:
    """One lane's part when Python does it all. ``source``: the uplink, for the lane that reads it."""

    def __init__(self, around: Surroundings, pair: int, source: Uplink | None) -> None:
        self._around = around
        self._index = 2 * pair + 1
        self._source = source
        self.discarded: DeviceQueue | None = None

    def round(self) -> int:
        around = self._around
        arrived = self._source.receive(_LOCKED_BURST) if self._source is not None else []
        with around.lock:
            rings, exchange = around.rings, around.exchange
            operating = exchange.is_operating
            done, frames = rings.work_off(self._index, _LOCKED_BURST)
            if self.discarded is not None and exchange.is_operating:
                done += rings.discard(self._index, self.discarded, _LOCKED_BURST)
            for frame in arrived:
                for received in exchange.receive(frame):
                    rings.place(received)
            to_wire, to_guest = exchange.take()
            for received in to_guest:
                rings.place(received)
            due = rings.take_interrupts()
            around.check_time()
            halted = operating and not exchange.is_operating
        around.ring_bells(due)
        if halted:
            around.changed()
        frames += to_wire
        if frames:
            around.uplink.send(frames)
        return done + len(arrived)

    def listen(self) -> bool:
        with self._around.lock:
            queue = self.discarded or self._around.rings.queue(self._index)
            if queue is None or not self._around.exchange.is_operating:
                return False
            try:
                return queue.enable_notifications()
            except RingError:
                self._around.exchange.needs_reset()
                self._around.changed()
                return False

    def unlisten(self) -> None:
        with self._around.lock:
            queue = self.discarded or self._around.rings.queue(self._index)
            if queue is not None and not queue.broken:
                queue.disable_notifications()

    def failed(self, error: Exception) -> None:
        _log.error("an internal error ends the work on queue %d", self._index, exc_info=error)
        self._around.broke()


class NativePath:
    """The C port of one negotiation, and its owner."""

    def __init__(self, around: Surroundings, fast: FastPath) -> None:
        self._around = around
        self._fast = fast
        operator = around.exchange.operator
        config = port_config(around.exchange.context)
        config = replace(config, most_punts=BURST, by_operator=operator is not None)
        self.port = pipeline.Port(fast.sas, config, self, interrupts=False)
        self._rules = OperatorRules(operator) if operator is not None else None
        if operator is None:
            self.port.set_flow(fast.flow)
        self._published: tuple[object, ...] = ()
        self._here = threading.local()
        self._workers: list[Worker] = []
        #: For what the control thread has to deliver.
        self._own = self.new_worker()

    def new_worker(self) -> Worker:
        """For one more thread."""
        worker = Worker(self.port, self._around.uplink.native)
        self._workers.append(worker)
        return worker

    def publish(self) -> None:
        """Tell C what the control plane has changed since the last time. In the control thread, under the lock."""
        context = self._around.exchange.context
        block = self._fast.steering(context.rx_filter, context.steering, context.features)
        checksum = has(context.guest_offloads, Feature.NET_F_GUEST_CSUM)
        news = (block, checksum, context.python_inbound)
        if news != self._published:
            self.port.set_steering(block)
            self.port.set_guest_checksum(checksum)
            if self._rules is None:
                self.port.set_foreign_sas(context.python_inbound)
            self._published = news
        if self._rules is not None:
            self._rules.publish(self.port)

    def set_queues(self, pair: int, receive: DeviceQueue | None, transmit: DeviceQueue | None) -> None:
        """The queues of a pair that are in use; its lane is parked."""
        self.port.set_queues(pair, _handle(receive), _handle(transmit))

    def deliver(self, to_guest: list[Received]) -> None:
        """In the control thread, without the lock."""
        for received in to_guest:
            self._own.deliver(received.queue, received.buffer)

    def enter(self, worker: Worker) -> None:
        """This thread works with that one."""
        self._here.worker = worker

    def counts(self) -> Counter[str]:
        """What C has counted."""
        found: Counter[str] = Counter()
        for worker in self._workers:
            found.update(worker.counts())
        return found

    def close(self) -> None:
        """Nobody works with it any more."""
        for worker in self._workers:
            worker.close()

    # What the C port asks, in the lanes' threads.

    def uplink(self, frames: list[bytes]) -> None:
        """Frames that leave."""
        if frames:
            self._around.uplink.send(frames)

    def interrupt(self, index: int) -> None:
        """Nobody asks: the queues have eventfds."""

    def punt_transmit(self, pair: int, buffer: bytes) -> list[bytes]:
        """What C does not do, Python does."""
        exchange = self._around.exchange
        with self._around.lock:
            frames = exchange.transmit(buffer, pair) if exchange.is_operating else []
            to_wire, to_guest = exchange.take()
            self._around.check_time()
        for received in to_guest:
            self._here.worker.deliver(received.queue, received.buffer)
        return frames + to_wire

    def punt_receive(self, frame: bytes, state: RxState) -> list[tuple[int, bytes]]:
        """What C does not do, or has begun, Python does."""
        exchange = self._around.exchange
        with self._around.lock:
            found = exchange.resume(frame, state) if state.opened else exchange.receive(frame)
            to_wire, to_guest = exchange.take()
            self._around.check_time()
        self.uplink(to_wire)
        return [(received.queue, received.buffer) for received in (*found, *to_guest)]


class NativeWork:
    """One lane's part in C."""

    def __init__(self, around: Surroundings, path: NativePath, pair: int, source: Uplink | None) -> None:
        self._around = around
        self._path = path
        self._pair = pair
        self._source = source
        self._wire = source.inward if isinstance(source, End) and isinstance(source.inward, Wire) else None
        self._worker = path.new_worker()
        self._budget, self._polls = (_LONG_BURST, _IDLE_POLLS) if source is None else (BURST, 0)
        #: The transmit queue that is in use, or the one whose buffers come to nothing.
        self.queue: DeviceQueue | None = None
        self.discarded: DeviceQueue | None = None

    def round(self) -> int:
        around = self._around
        self._path.enter(self._worker)
        done = self._receive(self._source) if self._source is not None else 0
        if around.exchange.is_operating:
            if self.queue is not None:
                sent = self._worker.transmit(self._pair, self._budget, self._polls)
                done += sent
                if not sent and is_broken(self.queue):
                    around.broke()
            elif self.discarded is not None:
                with around.lock:
                    done += around.rings.discard(2 * self._pair + 1, self.discarded, BURST)
                    due = around.rings.take_interrupts()
                around.ring_bells(due)
        return done

    def _receive(self, source: Uplink) -> int:
        """What has arrived; how many frames."""
        around = self._around
        if not around.exchange.is_operating:
            frames = source.receive(BURST)
            with around.lock:
                for frame in frames:
                    around.exchange.receive(frame)
                to_wire, _ = around.exchange.take()
            self._path.uplink(to_wire)
            return len(frames)
        if self._wire is not None:
            done = self._worker.take(self._wire, BURST)
        elif frames := source.receive(BURST):
            self._worker.receive(frames)
            done = len(frames)
        else:
            done = 0
        if done and around.rings.any_broken():
            around.broke()
        return done

    def listen(self) -> bool:
        queue = self.queue or self.discarded
        if queue is None or not self._around.exchange.is_operating:
            return False
        try:
            return queue.enable_notifications()
        except RingError:
            self._around.broke()
            return False

    def unlisten(self) -> None:
        queue = self.queue or self.discarded
        if queue is not None and not is_broken(queue):
            queue.disable_notifications()

    def failed(self, error: Exception) -> None:
        _log.error("an internal error ends the work on queue pair %d", self._pair, exc_info=error)
        self._around.broke()


def _handle(queue: DeviceQueue | None) -> Any:
    return queue.handle if isinstance(queue, FastDeviceQueue) else None
