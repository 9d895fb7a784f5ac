"""Available buffer notifications (virtio v1.4 4.1.5.2): the doorbell of a queue, and what is written to it.

Without F_NOTIFICATION_DATA 16 bits, with it 32, of which the upper half says where the ring ends. That is read from the
ring itself: what the driver made available stands there.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from typing import Final, Literal

from virtio_ipsec.ring.chain import DESCRIPTOR_SIZE, QueueLayout
from virtio_ipsec.ring.memory import GuestMemory
from virtio_ipsec.transport.virtio_pci.access import FunctionAccess
from virtio_ipsec.transport.virtio_pci.discovery import Place
from virtio_ipsec.transport.virtio_pci.tables import notification
from virtio_ipsec.wire.numbers import Feature, has

#: Where the available ring keeps its index; where a packed descriptor keeps its flags, and the flag of the driver.
_AVAIL_INDEX: Final = 2
_FLAGS: Final = 14
_AVAILABLE: Final = 1 << 7


class Position:
    """Where the next entry of a ring will be written: ``next_off`` in bits 0 to 14, ``next_wrap`` in bit 15."""

    def __init__(self, memory: GuestMemory, layout: QueueLayout, features: int) -> None:
        self._memory = memory
        self._layout = layout
        self._is_packed = has(features, Feature.F_RING_PACKED)
        self._next = 0
        self._wrap = 1

    def now(self) -> int:
        """Behind all that is available."""
        if not self._is_packed:
            return self._memory.u16(self._layout.driver + _AVAIL_INDEX)
        for _ in range(self._layout.size):
            at = self._layout.desc + DESCRIPTOR_SIZE * self._next + _FLAGS
            if bool(self._memory.u16(at) & _AVAILABLE) != bool(self._wrap):
                break
            self._next += 1
            if self._next == self._layout.size:
                self._next, self._wrap = 0, self._wrap ^ 1
        return self._next | self._wrap << 15


class Doorbell:
    """Rings for one queue at ``place``, whose length is the width of the write: through an eventfd, in mapped memory,
    or by a write to the region. ``value`` is what tells the queues apart; ``position`` goes with F_NOTIFICATION_DATA.
    """

    def __init__(self, access: FunctionAccess, place: Place, value: int, position: Position | None) -> None:
        self._access = access
        self._place = place
        self._value = value
        self._position = position
        #: The eventfd, for drivers that are not written in Python; None: there is none.
        self.fd = access.doorbell(place.region, place.offset, place.length, value)
        #: The register itself, where it is mapped.
        self.word: memoryview | None = None
        if self.fd is None and place.offset % place.length == 0:
            word: Literal["H", "I"] = "H" if place.length == 2 else "I"
            view = access.map_region(place.region, place.offset, place.length)
            self.word = None if view is None else view.cast(word)

    def ring(self) -> None:
        """Tell the device."""
        if self.fd is not None:
            # A counter that is full says it already. It is the device's too, which may have made it block.
            poller = select.poll()
            poller.register(self.fd, select.POLLOUT)
            if poller.poll(0):
                with suppress(BlockingIOError):
                    os.eventfd_write(self.fd, 1)
            return
        value = self._value
        if self._position is not None:
            value = notification(value, self._position.now())
        if self.word is not None:
            self.word[0] = value
        else:
            data = value.to_bytes(self._place.length, "little")
            self._access.write(self._place.region, self._place.offset, data)

    def close(self) -> None:
        """Let mapped memory go."""
        if self.word is not None:
            self.word.release()
            self.word = None
