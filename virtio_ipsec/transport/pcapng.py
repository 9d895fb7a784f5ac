"""pcapng (draft-ietf-opsawg-pcapng): sections, interfaces, enhanced, simple and obsolete packet blocks.

Blocks without packets (name resolution, statistics, secrets, custom) are read over. An interface of an
unsupported link type is an error only when a packet arrives on it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from virtio_ipsec.transport.capture import (
    MAX_PACKET,
    ByteOrder,
    CaptureError,
    Interface,
    Packet,
    Source,
    check_packet,
    link_type,
)

_SECTION = 0x0A0D0D0A
_INTERFACE = 1
_OBSOLETE_PACKET = 2
_SIMPLE = 3
_ENHANCED = 6
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_MAX_BLOCK = 1 << 24

_OPT_END, _OPT_COMMENT = 0, 1
_IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL, _IF_FCSLEN, _IF_TSOFFSET = 2, 3, 9, 13, 14
_NANOSECOND_RESOLUTION = 9


@dataclass(frozen=True, slots=True)
class _Clock:
    """Ticks per second and the seconds added to every timestamp of an interface."""

    rate: int = 1_000_000
    base: int = 0

    def nanoseconds(self, ticks: int) -> int:
        return ticks * 1_000_000_000 // self.rate + self.base * 1_000_000_000


class PcapngReader:
    """Reads a pcapng file from ``stream``. ``interfaces`` numbers the interfaces of all sections in a row."""

    def __init__(self, stream: BinaryIO, consumed: bytes = b"") -> None:
        self._source = Source(stream, consumed)
        self.interfaces: list[Interface] = []
        self._clocks: list[_Clock] = []
        self._first = 0  # number of the present section's interface 0
        self._prefix = "<"
        self._open_section(self._source.read(4, "the section header"))

    def __iter__(self) -> Iterator[Packet]:
        source = self._source
        while head := source.read_or_end(4, "a block type"):
            start = source.offset - 4
            if head == b"\n\r\r\n":
                self._open_section(head)
                continue
            (kind,) = self._unpack("I", head)
            body = self._body(start)
            if kind == _INTERFACE:
                self._add_interface(body, start + 8)
            elif kind == _ENHANCED:
                yield self._enhanced(body, start + 8)
            elif kind == _SIMPLE:
                yield self._simple(body, start + 8)
            elif kind == _OBSOLETE_PACKET:
                yield self._obsolete(body, start + 8)

    def _unpack(self, form: str, data: bytes) -> tuple[int, ...]:
        return struct.unpack(self._prefix + form, data)

    def _body(self, start: int) -> bytes:
        """The rest of the block that starts at ``start``, without its two lengths."""
        (total,) = self._unpack("I", self._source.read(4, "a block length"))
        if total < 12 or total % 4 or total > _MAX_BLOCK:
            raise CaptureError(f"a block length of {total}", start + 4)
        body = self._source.read(total - 12, "a block") if total > 12 else b""
        (again,) = self._unpack("I", self._source.read(4, "the closing block length"))
        if again != total:
            raise CaptureError(
                f"a block opens with length {total} and closes with {again}", start + total - 4
            )
        return body

    def _open_section(self, kind: bytes) -> None:
        start = self._source.offset - 4
        if kind != b"\n\r\r\n":
            raise CaptureError(f"block type {kind.hex()} where a section header belongs", start)
        length = self._source.read(4, "a section header")
        magic = self._source.read(4, "a section header")
        for prefix in "<>":
            if struct.unpack(prefix + "I", magic)[0] == _BYTE_ORDER_MAGIC:
                self._prefix = prefix
                break
        else:
            raise CaptureError(f"byte-order magic {magic.hex()}", start + 8)
        (total,) = self._unpack("I", length)
        if total < 28 or total % 4 or total > _MAX_BLOCK:
            raise CaptureError(f"a section header of length {total}", start + 4)
        rest = self._source.read(total - 12, "a section header")
        (again,) = self._unpack("I", rest[-4:])
        if again != total:
            raise CaptureError(
                f"a block opens with length {total} and closes with {again}", start + total - 4
            )
        major, minor = self._unpack("HH", rest[:4])
        if major != 1 or minor not in (0, 2):
            raise CaptureError(f"pcapng version {major}.{minor}; only 1.0 and 1.2 are known", start + 12)
        self._first = len(self.interfaces)

    def _add_interface(self, body: bytes, offset: int) -> None:
        if len(body) < 8:
            raise CaptureError(f"an interface description of {len(body)} bytes", offset)
        link, _reserved, snaplen = self._unpack("HHI", body[:8])
        text = {_IF_NAME: "", _IF_DESCRIPTION: ""}
        rate, base = 1_000_000, 0
        for code, value in self._options(body[8:], offset + 8):
            if code in text:
                text[code] = _text(value)
            elif code == _IF_TSRESOL:
                self._need(code, value, 1, offset)
                rate = 2 ** (value[0] & 0x7F) if value[0] & 0x80 else 10 ** value[0]
            elif code == _IF_TSOFFSET:
                self._need(code, value, 8, offset)
                (base,) = self._unpack("q", value)
            elif code == _IF_FCSLEN and value != b"\0":
                raise CaptureError(
                    "the frames carry a checksum sequence (FCS), which is not supported", offset
                )
        self.interfaces.append(Interface(link, snaplen, text[_IF_NAME], text[_IF_DESCRIPTION]))
        self._clocks.append(_Clock(rate, base))

    @staticmethod
    def _need(code: int, value: bytes, length: int, offset: int) -> None:
        if len(value) != length:
            raise CaptureError(f"option {code} of {len(value)} bytes where {length} belong", offset)

    def _options(self, data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
        at = 0
        while at < len(data):
            if len(data) - at < 4:
                raise CaptureError("an option is cut off", offset + at)
            code, length = self._unpack("HH", data[at : at + 4])
            if code == _OPT_END:
                return
            if at + 4 + length > len(data):
                raise CaptureError(f"option {code} of {length} bytes reaches past its block", offset + at)
            yield code, data[at + 4 : at + 4 + length]
            at += 4 + length + -length % 4

    def _enhanced(self, body: bytes, offset: int) -> Packet:
        if len(body) < 20:
            raise CaptureError(f"an enhanced packet block of {len(body)} bytes", offset)
        interface, high, low, captured, original = self._unpack("IIIII", body[:20])
        return self._packet(body, offset, interface, high << 32 | low, captured, original)

    def _obsolete(self, body: bytes, offset: int) -> Packet:
        if len(body) < 20:
            raise CaptureError(f"a packet block of {len(body)} bytes", offset)
        interface, _drops, high, low, captured, original = self._unpack("HHIIII", body[:20])
        return self._packet(body, offset, interface, high << 32 | low, captured, original)

    def _packet(
        self, body: bytes, offset: int, interface: int, ticks: int, captured: int, original: int
    ) -> Packet:
        number = self._number(interface, offset)
        if captured > min(original, MAX_PACKET):
            raise CaptureError(f"{captured} captured bytes of a packet of {original}", offset + 12)
        end = 20 + captured
        if end > len(body):
            raise CaptureError(f"{captured} captured bytes do not fit their block", offset + 12)
        comments = tuple(
            _text(value)
            for code, value in self._options(body[end + -captured % 4 :], offset + end + -captured % 4)
            if code == _OPT_COMMENT
        )
        return Packet(body[20:end], self._clocks[number].nanoseconds(ticks), number, original, comments)

    def _simple(self, body: bytes, offset: int) -> Packet:
        number = self._number(0, offset)
        if len(body) < 4:
            raise CaptureError(f"a simple packet block of {len(body)} bytes", offset)
        (original,) = self._unpack("I", body[:4])
        captured = min(original, self.interfaces[number].snaplen or original)
        # The block holds the packet padded to four bytes; the length comes from the interface's limit.
        if len(body) - 4 != captured + -captured % 4 or captured > MAX_PACKET:
            raise CaptureError(f"a simple packet block of {len(body)} bytes for {captured} captured", offset)
        return Packet(body[4 : 4 + captured], None, number, original)

    def _number(self, interface: int, offset: int) -> int:
        number = self._first + interface
        if number >= len(self.interfaces):
            raise CaptureError(f"a packet on interface {interface}, which is not described", offset)
        link_type(self.interfaces[number].link_type, offset)
        return number


class PcapngWriter:
    """Writes one section. Timestamps have nanosecond resolution; a packet without timestamp, comment and
    interface becomes a simple packet block."""

    def __init__(
        self,
        stream: BinaryIO,
        interfaces: Sequence[Interface] = (Interface(),),
        *,
        order: ByteOrder = "little",
        comments: Sequence[str] = (),
        application: str = "virtio-ipsec",
    ) -> None:
        self._stream = stream
        self._prefix = "<" if order == "little" else ">"
        self._interfaces: list[Interface] = []
        options = [(_OPT_COMMENT, _bytes(comment)) for comment in comments]
        if application:
            options.append((4, _bytes(application)))
        body = self._pack("IHHq", _BYTE_ORDER_MAGIC, 1, 0, -1) + self._options(options)
        self._block(_SECTION, body)
        for interface in interfaces:
            self.add_interface(interface)

    def add_interface(self, interface: Interface) -> int:
        """Describe one more interface; returns its number."""
        options = [(_IF_TSRESOL, bytes((_NANOSECOND_RESOLUTION,)))]
        if interface.name:
            options.append((_IF_NAME, _bytes(interface.name)))
        if interface.description:
            options.append((_IF_DESCRIPTION, _bytes(interface.description)))
        head = self._pack("HHI", link_type(interface.link_type), 0, interface.snaplen)
        self._block(_INTERFACE, head + self._options(options))
        self._interfaces.append(interface)
        return len(self._interfaces) - 1

    def write(self, packet: Packet) -> None:
        """Append ``packet``."""
        check_packet(packet, len(self._interfaces))
        data = packet.data + bytes(-len(packet.data) % 4)
        snaplen = self._interfaces[packet.interface].snaplen
        if snaplen and len(packet.data) > snaplen:
            raise CaptureError(f"a packet of {len(packet.data)} bytes on an interface cut at {snaplen}")
        if packet.timestamp is None:
            if packet.interface or packet.comments:
                raise CaptureError("only a packet of interface 0 without comments can lack a timestamp")
            if len(packet.data) != min(packet.wire_length, snaplen or packet.wire_length):
                raise CaptureError("a packet cut short of the interface's limit needs a timestamp")
            self._block(_SIMPLE, self._pack("I", packet.wire_length) + data)
            return
        if not 0 <= packet.timestamp < 1 << 64:
            raise CaptureError(f"timestamp {packet.timestamp} ns does not fit a pcapng file")
        high, low = divmod(packet.timestamp, 1 << 32)
        head = self._pack("IIIII", packet.interface, high, low, len(packet.data), packet.wire_length)
        options = [(_OPT_COMMENT, _bytes(comment)) for comment in packet.comments]
        self._block(_ENHANCED, head + data + self._options(options))

    def _pack(self, form: str, *values: int) -> bytes:
        return struct.pack(self._prefix + form, *values)

    def _options(self, options: Sequence[tuple[int, bytes]]) -> bytes:
        if not options:
            return b""
        parts = [
            self._pack("HH", code, len(value)) + value + bytes(-len(value) % 4) for code, value in options
        ]
        return b"".join(parts) + bytes(4)

    def _block(self, kind: int, body: bytes) -> None:
        length = self._pack("I", 12 + len(body))
        self._stream.write(self._pack("I", kind) + length + body + length)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _bytes(text: str) -> bytes:
    value = text.encode("utf-8", "backslashreplace")
    if len(value) > 0xFFFF:
        raise CaptureError(f"a text of {len(value)} bytes; an option holds 65535")
    return value
