"""``generator``: frames that arrive as fast as they are taken. For benchmarks of what arrives."""

from __future__ import annotations

import os
import struct

from virtio_ipsec.device.checksum import ipv4_checksum
from virtio_ipsec.errors import ConfigError
from virtio_ipsec.fastpath import pipeline
from virtio_ipsec.transport.uplinks.counts import Counts

_SMALLEST = 14 + 20 + 8
_LARGEST = 14 + 65_535
_DEFAULT = 64


def udp_frame(size: int) -> bytes:
    """A broadcast frame of ``size`` bytes with a UDP datagram from 198.18.0.1 to 198.18.0.2, the addresses that RFC
    2544 benchmarks use; UDP checksum 0."""
    length = size - 14
    packet = bytearray(
        struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0x4000, 64, 17, 0) + bytes.fromhex("c6120001c6120002")
    )
    ipv4_checksum(packet, 0)
    ethernet = b"\xff" * 6 + bytes.fromhex("020000000001") + b"\x08\x00"
    return ethernet + bytes(packet) + struct.pack("!HHHH", 9, 9, length - 20, 0) + bytes(size - _SMALLEST)


class Generator:
    """``SIZE`` bytes each (default 64), ``COUNT`` times or without end. What leaves is counted."""

    native = pipeline.Uplink.NULL

    def __init__(self, argument: str = "") -> None:
        self.name = f"generator:{argument}" if argument else "generator"
        size, comma, count = argument.partition(",")
        numbers = (size or str(_DEFAULT), count if comma else "1")
        if not all(number.isdecimal() for number in numbers):
            raise ConfigError(f"{self.name}: not SIZE or SIZE,COUNT")
        length, times = map(int, numbers)
        if not _SMALLEST <= length <= _LARGEST or not times:
            raise ConfigError(f"{self.name}: SIZE is {_SMALLEST} to {_LARGEST} bytes, COUNT at least 1")
        self._frame = udp_frame(length)
        self._left = times if comma else None
        self._counts = Counts()
        self._ready = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Readable until the last one was taken."""
        return self._ready

    def receive(self, most: int) -> list[bytes]:
        """The next ``most`` frames."""
        if self._left is not None:
            if not self._left:
                return []
            most = min(most, self._left)
            self._left -= most
            if not self._left:
                os.eventfd_read(self._ready)
        frames = [self._frame] * most
        self._counts.add("rx", frames)
        return frames

    def send(self, frames: list[bytes]) -> None:
        """Count."""
        self._counts.add("tx", frames)

    def counters(self) -> dict[str, int]:
        """See :class:`Uplink`."""
        return self._counts.read()

    def close(self) -> None:
        """Release the file descriptor."""
        if self._ready >= 0:
            os.close(self._ready)
            self._ready = -1
