"""A guest in front of a served port and a wire behind it, in one process, over memory and eventfds that both map."""

from __future__ import annotations

import mmap
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.fast import fast_path
from virtio_ipsec.device.features import IMPLEMENTED
from virtio_ipsec.fastpath import native
from virtio_ipsec.fastpath.memory import SharedMemory
from virtio_ipsec.ring.base import DriverQueue
from virtio_ipsec.ring.chain import QueueLayout, Segment
from virtio_ipsec.ring.memory import Allocator, GuestMemory, Region
from virtio_ipsec.ring.queue import allocate_layout, driver_queue
from virtio_ipsec.transport.exchange import Operator
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.rings import QueuePlace, fence
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, Status, mask

PLAIN = mask(Feature.F_VERSION_1, Feature.NET_F_MAC, Feature.NET_F_MRG_RXBUF, Feature.F_EVENT_IDX)
BASE = 0x10000
SIZE = 4 << 20
QUEUE = 64
BUFFER = 2048
PATIENCE = 5.0


class ListUplink:
    """A wire held in two lists."""

    name = "list"
    native = None

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()
        self.sent: list[bytes] = []
        self.is_closed = False

    def fileno(self) -> int:
        return self._event

    def inject(self, *frames: bytes) -> None:
        with self._lock:
            self._waiting += frames
            os.eventfd_write(self._event, 1)

    def receive(self, most: int) -> list[bytes]:
        with self._lock:
            found = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            if found and not self._waiting:
                os.eventfd_read(self._event)
            return found

    def send(self, frames: list[bytes]) -> None:
        with self._lock:
            self.sent += frames

    def take(self) -> list[bytes]:
        with self._lock:
            found, self.sent = self.sent, []
            return found

    def counters(self) -> dict[str, int]:
        return {"tx_frames": len(self.sent)}

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            os.close(self._event)


def until(
    what: Callable[[], bool], loop: Callable[[], None] | None = None, patience: float = PATIENCE
) -> None:
    """Wait for it; the control thread's loop is turned meanwhile, if there is one to turn."""
    limit = time.monotonic() + patience
    while not what():
        assert time.monotonic() < limit, "did not happen in time"
        if loop is not None:
            loop()
        time.sleep(0.0002)


def has_ended(sock: socket.socket) -> bool:
    """Whether the other side has closed a connection; what it said before is not looked at."""
    try:
        return not sock.recv(4096)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def shared(fd: int, size: int = SIZE, base: int = BASE) -> GuestMemory:
    """One mapping of guest memory, as a back-end has it."""
    kind = SharedMemory if native.available() else GuestMemory
    return kind([Region(base, size, mmap.mmap(fd, size))], fence)


class Guest:
    """The driver side: memory, rings, eventfds."""

    def __init__(self, features: int = PLAIN, size: int = SIZE) -> None:
        self.features = features
        self.header = V14.net_hdr(features)
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, size)
        self.size = size
        self.memory = GuestMemory([Region(BASE, size, mmap.mmap(self.fd, size))], fence)
        self.allocator = Allocator(BASE, size)
        self.drivers: dict[int, DriverQueue] = {}
        self.layouts: dict[int, QueueLayout] = {}
        self.kicks: dict[int, int] = {}
        self.calls: dict[int, int] = {}
        self.sent: list[Segment] = []

    def queue(self, index: int, entries: int = QUEUE) -> QueueLayout:
        layout = allocate_layout(self.allocator, entries, self.features)
        self.layouts[index] = layout
        self.drivers[index] = driver_queue(self.memory, layout, self.features, self.allocator)
        self.kicks[index] = os.eventfd(0, os.EFD_NONBLOCK)
        self.calls[index] = os.eventfd(0, os.EFD_NONBLOCK)
        return layout

    def post(self, index: int = 0, count: int = QUEUE, size: int = BUFFER) -> None:
        """Offer receive buffers."""
        driver = self.drivers[index]
        for _ in range(min(count, driver.free)):
            segment = Segment(self.allocator.alloc(size), size)
            driver.add((), [segment], segment)
        driver.publish()

    def send(self, *frames: bytes, index: int = 1, header: NetHdr = NetHdr()) -> None:  # noqa: B008
        """Queue frames and kick, if that is wanted."""
        driver = self.drivers[index]
        for frame in frames:
            data = self.header.build(header) + frame
            segment = Segment(self.allocator.alloc(len(data)), len(data))
            self.memory.write(segment.addr, data)
            driver.add([segment], (), segment)
        driver.publish()
        self.kick(index)

    def kick(self, index: int) -> None:
        if self.drivers[index].should_kick():
            os.eventfd_write(self.kicks[index], 1)

    def reclaim(self, index: int = 1) -> int:
        """Used transmit buffers."""
        used = self.drivers[index].poll()
        for each in used:
            self.allocator.free(each.token.addr)  # type: ignore[attr-defined]
        return len(used)

    def taken(self, index: int = 0) -> list[bytes]:
        """Frames on a receive queue."""
        found: list[bytes] = []
        data, missing = b"", 0
        for used in self.drivers[index].poll():
            segment: Segment = used.token  # type: ignore[assignment]
            piece = self.memory.read(segment.addr, used.written)
            self.allocator.free(segment.addr)
            if not missing:
                missing = max(1, self.header.parse(piece).num_buffers)
            data, missing = data + piece, missing - 1
            if not missing:
                found.append(data[self.header.size :])
                data = b""
        return found

    def called(self, index: int, seconds: float = PATIENCE) -> bool:
        """Whether a used buffer notification comes in time; it is settled."""
        ready, _, _ = select.select([self.calls[index]], [], [], seconds)
        if ready:
            os.eventfd_read(self.calls[index])
        return bool(ready)

    def command(self, index: int, readable: bytes, room: int) -> Segment:
        """A command on the control or administration queue; where its answer will be."""
        query = Segment(self.allocator.alloc(len(readable)), len(readable))
        answer = Segment(self.allocator.alloc(room), room)
        self.memory.write(query.addr, readable)
        self.drivers[index].add([query], [answer], answer)
        self.drivers[index].publish()
        self.kick(index)
        return answer

    def close(self) -> None:
        for fd in (self.fd, *self.kicks.values(), *self.calls.values()):
            os.close(fd)


class Bench:
    """Guest, port and wire. The port's loop is turned by :meth:`until`."""

    def __init__(
        self,
        features: int = PLAIN,
        *,
        engine: str = "auto",
        operator: Operator | None = None,
        pairs: int = 2,
        start: bool = True,
        offer: int = IMPLEMENTED,
        **config: object,
    ) -> None:
        self.guest = Guest(features)
        self.uplink = ListUplink()
        device = Device(
            DeviceConfig(max_queue_pairs=pairs, features=offer, **config),  # type: ignore[arg-type]
            os.urandom,
            fast_path(engine, os.urandom),
        )
        self.port = ServedPort(device, self.uplink, operator, name="test")
        if start:
            self.negotiate()
            for index in (0, 1):
                self.start(index)
            self.guest.post()

    def attach(self, operator: Operator) -> None:
        """The same with somebody in control, whose SAs are in the device's tables."""
        self.port.close()
        self.uplink = ListUplink()
        self.port = ServedPort(self.port.device, self.uplink, operator, name="test")

    def negotiate(self, extra: int = 0) -> None:
        device = self.port.device
        self.port.set_memory(shared(self.guest.fd, self.guest.size))
        with self.port.lock:
            for bit in (Status.ACKNOWLEDGE, Status.DRIVER):
                device.status |= bit
            device.write_driver_features(self.guest.features | extra)
            device.status |= Status.FEATURES_OK
            assert device.status & Status.FEATURES_OK
            device.status |= Status.DRIVER_OK

    def start(self, index: int, entries: int = QUEUE, state: int | None = None) -> None:
        guest = self.guest
        layout = guest.layouts[index] if state is not None else guest.queue(index, entries)
        self.port.set_kick(index, os.dup(guest.kicks[index]))
        self.port.set_call(index, os.dup(guest.calls[index]))
        self.port.set_enabled(index, True)
        self.port.start_queue(index, QueuePlace(layout, state))

    def until(self, what: Callable[[], bool], patience: float = PATIENCE) -> None:
        until(what, lambda: self.port.loop.turn(0), patience)

    def captured(self, count: int) -> list[bytes]:
        """Frames that left."""
        found: list[bytes] = []

        def enough() -> bool:
            found.extend(self.uplink.take())
            return len(found) >= count

        self.until(enough)
        return found

    def received(self, count: int, index: int = 0) -> list[bytes]:
        """Frames that the guest got."""
        found: list[bytes] = []

        def enough() -> bool:
            found.extend(self.guest.taken(index))
            return len(found) >= count

        self.until(enough)
        return found

    def close(self) -> None:
        self.port.close()
        self.guest.close()
