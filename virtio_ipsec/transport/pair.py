"""Two devices with their wires crossed, a driver on each, and a tap on everything that passes.

pair = Pair(left_device, right_device)
pair.start()
pair.left.driver.send(frame, sa)
packets = pair.right.receive()
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from virtio_ipsec.device.device import Device
from virtio_ipsec.driver import Driver, DriverConfig, Offload, Received, SaHandle
from virtio_ipsec.driver.transmit import PLAIN
from virtio_ipsec.errors import VirtioIpsecError
from virtio_ipsec.transport.capture import Interface, LinkType, Packet
from virtio_ipsec.transport.loopback import Loopback
from virtio_ipsec.wire.dialect import V14, Dialect


class Where(StrEnum):
    """Where a frame was seen."""

    LEFT = "left guest"
    WIRE = "wire"
    RIGHT = "right guest"


@dataclass(frozen=True, slots=True)
class Seen:
    """One frame at one tap. ``time`` in nanoseconds since the epoch; ``sender`` is the side that sent it."""

    where: Where
    sender: Where
    frame: bytes
    time: int
    comment: str = ""


class End:
    """One side of a pair: a loopback link, the driver on it, and what its guest sends and receives."""

    def __init__(
        self, pair: Pair, where: Where, device: Device, dialect: Dialect, config: DriverConfig
    ) -> None:
        self._pair = pair
        self.where = where
        self.link = Loopback(device, wire=self._emit)
        self.driver = Driver(self.link, dialect, config=config)

    def _emit(self, frame: bytes) -> None:
        self._pair.carry(self.where, frame)

    def send(
        self, frame: bytes, sa: SaHandle | None = None, *, offload: Offload = PLAIN, queue: int = 0
    ) -> None:
        """Send through the driver and let the frames cross the wire; the guest's frame is recorded."""
        seen, mark = self._pair.seen, len(self._pair.seen)
        self._pair.see(self.where, self.where, frame, "GSO" if offload.gso_size else "")
        try:
            self.driver.send(frame, sa, offload=offload, queue=queue)
        except VirtioIpsecError:
            del seen[mark]  # it was never sent
            raise
        self._pair.settle()

    def receive(self) -> list[Received]:
        """What the driver has received; recorded."""
        packets = self.driver.receive()
        sender = Where.RIGHT if self.where is Where.LEFT else Where.LEFT
        for packet in packets:
            state = "IPsec error" if packet.error else "protected" if packet.protected else ""
            self._pair.see(self.where, sender, packet.frame, state)
        return packets


class Pair:
    """Two devices back to back. Frames cross the wire in order, after the device that sent them is done.

    ``now`` gives nanoseconds for the records. ``on_wire`` may change a frame on its way: it returns the
    frames that arrive instead (none: lost).
    """

    def __init__(
        self,
        left: Device,
        right: Device,
        *,
        dialect: Dialect = V14,
        config: DriverConfig | None = None,
        now: Callable[[], int] = time.time_ns,
        on_wire: Callable[[bytes], list[bytes]] | None = None,
    ) -> None:
        config = config or DriverConfig()
        self._now = now
        self.on_wire = on_wire
        self.seen: list[Seen] = []
        self._crossing: deque[tuple[Where, bytes]] = deque()
        self.left = End(self, Where.LEFT, left, dialect, config)
        self.right = End(self, Where.RIGHT, right, dialect, config)

    def start(self) -> None:
        """Start both drivers."""
        self.left.driver.start()
        self.right.driver.start()

    def see(self, where: Where, sender: Where, frame: bytes, comment: str = "") -> None:
        """Record a frame."""
        self.seen.append(Seen(where, sender, frame, self._now(), comment))

    def carry(self, sender: Where, frame: bytes) -> None:
        """Take a frame that left a device; :meth:`settle` delivers it."""
        self.see(Where.WIRE, sender, frame)
        self._crossing.append((sender, frame))

    def settle(self) -> None:
        """Deliver what is on the wire."""
        while self._crossing:
            sender, frame = self._crossing.popleft()
            target = self.right if sender is Where.LEFT else self.left
            for arriving in [frame] if self.on_wire is None else self.on_wire(frame):
                target.link.inject(arriving)

    def capture(self) -> tuple[tuple[Interface, ...], list[Packet]]:
        """Everything seen, as the interfaces and packets of a capture file: left guest, wire, right guest."""
        interfaces = tuple(Interface(LinkType.ETHERNET, 0, where.value) for where in Where)
        numbers = {where: number for number, where in enumerate(Where)}
        packets = [
            Packet(
                seen.frame,
                seen.time,
                numbers[seen.where],
                comments=(f"from {seen.sender}" + (f": {seen.comment}" if seen.comment else ""),),
            )
            for seen in self.seen
        ]
        return interfaces, packets
