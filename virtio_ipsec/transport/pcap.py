"""Capture files: classic pcap, and the door to both formats (:func:`open_capture`, :func:`create_capture`).

Classic pcap has four variants (two byte orders; microseconds or nanoseconds) that the magic number tells
apart. Readers are strict: what breaks the format is a :class:`CaptureError` with the offset, never a guess.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from virtio_ipsec.transport.capture import (
    MAX_PACKET,
    ByteOrder,
    CaptureError,
    CaptureReader,
    CaptureWriter,
    Interface,
    LinkType,
    Packet,
    Source,
    check_packet,
    link_type,
)
from virtio_ipsec.transport.pcapng import PcapngReader, PcapngWriter

__all__ = [
    "CaptureError",
    "CaptureReader",
    "CaptureWriter",
    "Interface",
    "LinkType",
    "Packet",
    "PcapReader",
    "PcapWriter",
    "PcapngReader",
    "PcapngWriter",
    "create_capture",
    "open_capture",
]

_MICROSECONDS = 0xA1B2C3D4
_NANOSECONDS = 0xA1B23C4D
_SECTION_HEADER = bytes.fromhex("0a0d0d0a")
_GZIP = bytes.fromhex("1f8b")
_FCS_PRESENT = 0x0400_0000

#: magic as it lies in the file -> (byte order, nanoseconds per tick)
_VARIANTS: dict[bytes, tuple[ByteOrder, int]] = {
    _MICROSECONDS.to_bytes(4, "little"): ("little", 1000),
    _MICROSECONDS.to_bytes(4, "big"): ("big", 1000),
    _NANOSECONDS.to_bytes(4, "little"): ("little", 1),
    _NANOSECONDS.to_bytes(4, "big"): ("big", 1),
}


class PcapReader:
    """Reads a classic pcap file from ``stream``, one packet at a time."""

    def __init__(self, stream: BinaryIO, consumed: bytes = b"") -> None:
        self._source = Source(stream, consumed)
        magic = self._source.read(4, "the magic number")
        if magic not in _VARIANTS:
            raise CaptureError(f"magic number {magic.hex()} is not that of a pcap file", 0)
        order, self._tick = _VARIANTS[magic]
        prefix = "<" if order == "little" else ">"
        self._record = struct.Struct(prefix + "IIII")
        header = self._source.read(20, "the file header")
        major, minor, _zone, _digits, snaplen, network = struct.unpack(prefix + "HHiIII", header)
        if (major, minor) != (2, 4):
            raise CaptureError(f"pcap version {major}.{minor}; only 2.4 is known", 4)
        if network & _FCS_PRESENT:
            raise CaptureError("the frames carry a checksum sequence (FCS), which is not supported", 20)
        self.interfaces = [Interface(link_type(network & 0xFFFF, 20), snaplen)]

    def __iter__(self) -> Iterator[Packet]:
        source = self._source
        while head := source.read_or_end(16, "a packet header"):
            start = source.offset - 16
            seconds, fraction, captured, original = self._record.unpack(head)
            if fraction * self._tick >= 1_000_000_000:
                raise CaptureError(f"a timestamp with {fraction} ticks in its second", start + 4)
            if captured > min(original, MAX_PACKET):
                raise CaptureError(f"{captured} captured bytes of a packet of {original}", start + 8)
            data = source.read(captured, "a packet") if captured else b""
            yield Packet(data, seconds * 1_000_000_000 + fraction * self._tick, 0, original)


class PcapWriter:
    """Writes a classic pcap file of one link type; nanosecond timestamps unless told otherwise."""

    def __init__(
        self,
        stream: BinaryIO,
        interface: Interface | None = None,
        *,
        nanoseconds: bool = True,
        order: ByteOrder = "little",
    ) -> None:
        interface = interface or Interface()
        self._stream = stream
        self._tick = 1 if nanoseconds else 1000
        prefix = "<" if order == "little" else ">"
        self._record = struct.Struct(prefix + "IIII")
        magic = _NANOSECONDS if nanoseconds else _MICROSECONDS
        snaplen = interface.snaplen or MAX_PACKET
        network = link_type(interface.link_type)
        stream.write(struct.pack(prefix + "IHHiIII", magic, 2, 4, 0, 0, snaplen, network))

    def write(self, packet: Packet) -> None:
        """Append ``packet``. Comments have no place in this format and are left out; a packet without a
        timestamp gets zero."""
        check_packet(packet, 1)
        seconds, rest = divmod(packet.timestamp or 0, 1_000_000_000)
        if not 0 <= seconds < 1 << 32:
            raise CaptureError(f"timestamp {packet.timestamp} ns does not fit a pcap file")
        head = self._record.pack(seconds, rest // self._tick, len(packet.data), packet.wire_length)
        self._stream.write(head + packet.data)


def open_capture(stream: BinaryIO) -> CaptureReader:
    """A reader for ``stream``, of the format that its first four bytes announce."""
    head = b""
    while len(head) < 4 and (part := stream.read(4 - len(head))):
        head += part
    if head == _SECTION_HEADER:
        return PcapngReader(stream, head)
    if head in _VARIANTS:
        return PcapReader(stream, head)
    if not head:
        raise CaptureError("the file is empty", 0)
    if head.startswith(_GZIP):
        raise CaptureError("the file is compressed with gzip: decompress it first", 0)
    raise CaptureError(f"neither pcap nor pcapng: the file starts with {head.hex()}", 0)


def create_capture(stream: BinaryIO, form: str, interfaces: Sequence[Interface]) -> CaptureWriter:
    """A writer of format ``form`` ("pcap" or "pcapng") for ``interfaces`` (pcap holds exactly one)."""
    if form == "pcapng":
        return PcapngWriter(stream, interfaces)
    if form != "pcap":
        raise CaptureError(f"capture format {form!r} is neither 'pcap' nor 'pcapng'")
    if len(interfaces) != 1:
        raise CaptureError(f"{len(interfaces)} interfaces do not fit a pcap file: write pcapng")
    return PcapWriter(stream, interfaces[0])
