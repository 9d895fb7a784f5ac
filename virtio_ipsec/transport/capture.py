"""What a capture file holds, whatever its format: interfaces, packets, and the one error for bad files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO, Literal, Protocol

from virtio_ipsec.errors import VirtioIpsecError

#: Bytes of one packet that a file may claim: a 64 KB GSO send with its headers fits four times over.
MAX_PACKET = 262_144

ByteOrder = Literal["little", "big"]


class CaptureError(VirtioIpsecError):
    """A capture file that breaks its format. ``offset`` is the byte in the file where it does."""

    def __init__(self, message: str, offset: int | None = None) -> None:
        super().__init__(message if offset is None else f"{message} (at byte {offset} of the file)")
        self.offset = offset


class LinkType(IntEnum):
    """Link types (registry of tcpdump.org) whose frames can be read and written."""

    ETHERNET = 1
    RAW_OPENBSD = 14
    RAW = 101
    IPV4 = 228
    IPV6 = 229

    @property
    def is_ip(self) -> bool:
        """True when a packet starts with its IP header."""
        return self is not LinkType.ETHERNET


#: DLT_RAW was 12 before the registry existed; files with that number are in circulation.
_ALIASES = {12: LinkType.RAW}


def link_type(number: int, offset: int | None = None) -> LinkType:
    """The link type ``number`` stands for; :class:`CaptureError` when it is neither Ethernet nor raw IP."""
    try:
        return _ALIASES.get(number) or LinkType(number)
    except ValueError:
        raise CaptureError(f"link type {number} is neither Ethernet nor raw IP", offset) from None


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface of a capture. ``snaplen`` 0 means no limit."""

    link_type: int = LinkType.ETHERNET
    snaplen: int = 0
    name: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class Packet:
    """One captured packet.

    ``timestamp`` is in nanoseconds since the epoch, None where the format has none (a simple packet block).
    ``original_length`` is the length on the wire, larger than ``len(data)`` when the capture cut the packet.
    ``interface`` indexes the reader's ``interfaces``.
    """

    data: bytes
    timestamp: int | None = 0
    interface: int = 0
    original_length: int = -1
    comments: tuple[str, ...] = ()

    @property
    def wire_length(self) -> int:
        """Length of the packet before it was cut."""
        return len(self.data) if self.original_length < 0 else self.original_length


class CaptureReader(Protocol):
    """Iterates over packets as they are read; ``interfaces`` grows while it does."""

    interfaces: list[Interface]

    def __iter__(self) -> Iterator[Packet]: ...


class CaptureWriter(Protocol):
    """Writes packets one by one; the stream stays open and belongs to the caller."""

    def write(self, packet: Packet) -> None: ...


class Source:
    """Exact reads from a stream, which may be a pipe, and the offset for the error message."""

    def __init__(self, stream: BinaryIO, consumed: bytes = b"") -> None:
        self._stream = stream
        self._ahead = consumed
        self.offset = 0

    def read(self, size: int, what: str) -> bytes:
        """``size`` bytes; :class:`CaptureError` when the file ends first."""
        data = self.read_or_end(size, what)
        if not data and size:
            raise CaptureError(f"the file ends before {what}", self.offset)
        return data

    def read_or_end(self, size: int, what: str) -> bytes:
        """``size`` bytes, or nothing when the file ends exactly here."""
        parts, missing = [self._ahead[:size]], size - len(self._ahead[:size])
        self._ahead = self._ahead[size:]
        while missing and (part := self._stream.read(missing)):
            parts.append(part)
            missing -= len(part)
        data = b"".join(parts)
        if data and missing:
            raise CaptureError(f"the file ends inside {what}, {missing} bytes missing", self.offset)
        self.offset += len(data)
        return data


def check_packet(packet: Packet, interfaces: int) -> None:
    """Refuse a packet that no file of either format can hold."""
    if len(packet.data) > MAX_PACKET:
        raise CaptureError(f"a packet of {len(packet.data)} bytes; at most {MAX_PACKET} can be written")
    if not len(packet.data) <= packet.wire_length < 1 << 32:
        raise CaptureError(f"original length {packet.wire_length} of a packet of {len(packet.data)} bytes")
    if not 0 <= packet.interface < interfaces:
        raise CaptureError(f"interface {packet.interface} is not one of the {interfaces} in this capture")
