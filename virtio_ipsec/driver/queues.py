"""The driver's use of its virtqueues: requests (admin, control), packets to send, buffers to receive into.

Buffers belong to the device until they come back or the device is reset; nothing here frees or reuses one
before (BAS-INIT-10, -11). In each chain the readable part comes first, in one descriptor each (FRM-02, -03).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar, cast

from virtio_ipsec.driver.errors import DriverError, QueueFull
from virtio_ipsec.driver.link import Link
from virtio_ipsec.driver.receive import Fault
from virtio_ipsec.errors import TransportError
from virtio_ipsec.ring.base import DriverQueue
from virtio_ipsec.ring.chain import Segment
from virtio_ipsec.wire.net_header import NetHdrCodec

Token = TypeVar("Token")


class RequestQueue:
    """One request at a time, with the answer awaited: administration and control virtqueue.

    ``polls`` times ``poll_timeout`` seconds are given to the device. The buffers are kept between requests;
    the readable one is cleared as soon as the device is done with it, for it may hold keys (E82).
    """

    def __init__(self, link: Link, index: int, ring: DriverQueue, *, polls: int, poll_timeout: float) -> None:
        self._link = link
        self._index = index
        self._ring = ring
        self._polls = polls
        self._timeout = poll_timeout
        self._buffers: dict[bool, tuple[int, int]] = {}
        self._stuck = False

    def request(self, readable: bytes, writable_len: int) -> bytes:
        """Send ``readable``; what the device wrote, at most ``writable_len`` bytes.

        TransportError when no answer comes: the buffers then stay with the device and the queue is unusable
        until the device is reset.
        """
        if self._stuck:
            raise TransportError(f"queue {self._index} has an unanswered request: reset the device")
        memory = self._link.memory
        source, target = self._buffer(False, len(readable)), self._buffer(True, writable_len)
        memory.write(source, readable)
        self._ring.add([Segment(source, len(readable))], [Segment(target, writable_len)], None)
        self._stuck = True
        self._ring.publish()
        if self._ring.should_kick():
            self._link.kick(self._index)
        written = self._wait()
        self._stuck = False
        memory.write(source, bytes(len(readable)))
        answer = memory.read(target, written)
        memory.write(target, bytes(len(answer)))
        return answer

    def release(self) -> None:
        """Clear and free the buffers, after the device has been reset."""
        for address, room in self._buffers.values():
            self._link.memory.write(address, bytes(room))
            self._link.allocator.free(address)
        self._buffers.clear()

    def _wait(self) -> int:
        for attempt in range(self._polls + 1):
            if attempt:
                self._link.poll(self._timeout)
            for used in self._ring.poll():
                return used.written
        raise TransportError(f"no answer on queue {self._index}")

    def _buffer(self, writable: bool, size: int) -> int:
        address, room = self._buffers.get(writable, (0, 0))
        if room < size:
            if room:
                self._link.allocator.free(address)
            room = max(size, 512)
            address = self._link.allocator.alloc(room, 16)
            self._buffers[writable] = address, room
        return address


class TransmitQueue(Generic[Token]):
    """Packets on their way. ``done`` is called with the token of each packet that the device has consumed."""

    def __init__(self, link: Link, index: int, ring: DriverQueue, done: Callable[[Token], None]) -> None:
        self._link = link
        self._index = index
        self._ring = ring
        self._done = done

    @property
    def waiting(self) -> int:
        """Packets that were placed and not taken back; each takes one descriptor."""
        return self._ring.size - self._ring.free

    def put(self, buffer: bytes, token: Token) -> None:
        """Place one header and frame; :meth:`flush` shows it to the device. QueueFull when there is no room
        even after reaping. When this raises, nothing was placed, and ``done`` never hears of the token."""
        self.reap()
        if not self._ring.free:
            self._link.poll(0)
            self.reap()
            if not self._ring.free:
                raise QueueFull(f"transmit queue {self._index} is full")
        address = self._link.allocator.alloc(len(buffer), 16)
        self._link.memory.write(address, buffer)
        self._ring.add([Segment(address, len(buffer))], [], (address, token))

    def flush(self) -> None:
        """Show the device what was placed, and take back what it has consumed."""
        self._ring.publish()
        if self._ring.should_kick():
            self._link.kick(self._index)
        self.reap()

    def release(self) -> None:
        """Take everything back, after the device or the queue has been reset."""
        for lost in self._ring.reset():
            address, token = cast("tuple[int, Token]", lost)
            self._link.allocator.free(address)
            self._done(token)

    def reap(self) -> None:
        """Take back what the device has consumed."""
        for used in self._ring.poll():
            address, token = cast("tuple[int, Token]", used.token)
            self._link.allocator.free(address)
            self._done(token)


class ReceiveQueue:
    """Receive buffers of one size, given to the device again as soon as their packet has been copied out."""

    def __init__(
        self,
        link: Link,
        index: int,
        ring: DriverQueue,
        header: NetHdrCodec,
        size: int,
        *,
        mergeable: bool,
        refused: Callable[[Fault], None],
    ) -> None:
        if size < header.size:
            raise DriverError(f"a receive buffer of {size} bytes does not hold a header of {header.size}")
        self._link = link
        self._index = index
        self._ring = ring
        self._header = header
        self._size = size
        self._mergeable = mergeable
        self._refused = refused
        self._parts: list[bytes] = []
        self._expected = 0

    def fill(self, count: int) -> None:
        """Add up to ``count`` new buffers and tell the device."""
        for _ in range(min(count, self._ring.free)):
            self._add(self._link.allocator.alloc(self._size, 16))
        self._kick()

    def release(self) -> None:
        """Take all buffers back, after the device or the queue has been reset."""
        for address in self._ring.reset():
            self._link.allocator.free(cast("int", address))
        self._parts = []

    def collect(self) -> list[bytes]:
        """Complete packets, header and frame, in the order in which they arrived."""
        packets = []
        used = self._ring.poll()
        for each in used:
            address = cast("int", each.token)
            packet = self._take(self._link.memory.read(address, each.written))
            if packet is not None:
                packets.append(packet)
            self._add(address)
        if used:
            self._kick()
        return packets

    def _take(self, data: bytes) -> bytes | None:
        """One used buffer; the packet when it is the last one of it. Without MRG_RXBUF that is always so."""
        if not self._parts:
            if len(data) < self._header.size:
                self._refused(Fault.SHORT)
                return None
            count = self._header.parse(data).num_buffers if self._mergeable else 1
            if not 0 < count <= self._ring.size:
                self._refused(Fault.BAD_NUM_BUFFERS)
                return None
            self._expected = count
        self._parts.append(data)
        if len(self._parts) < self._expected:
            return None
        packet, self._parts = b"".join(self._parts), []
        return packet

    def _add(self, address: int) -> None:
        self._ring.add([], [Segment(address, self._size)], address)

    def _kick(self) -> None:
        self._ring.publish()
        if self._ring.should_kick():
            self._link.kick(self._index)
