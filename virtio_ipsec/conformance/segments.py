"""Large packets with a request to cut them, and whether what leaves is that packet in pieces, each whole in itself."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from virtio_ipsec.conformance.frames import TCP, UDP, checksum
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import GsoType, HdrFlag

FIN, SYN, PSH, ACK, ECE, CWR = 1, 2, 8, 16, 64, 128
#: Where a transport header has its checksum.
SUM_AT = {TCP: 16, UDP: 6}
FRAGMENT_HEADER = 44
_MORE = 0x2000
_HEADERS = {0, 43, 60}


@dataclass(frozen=True, slots=True)
class Large:
    """A packet for the device to cut. ``link``: everything in front of the IP header, ``network``: the IP header with
    options or extension headers, ``transport``: the TCP or UDP header, checksum not filled in. ``hosts``: the addresses
    that the checksum sums. ``outer``: the packet around it, when it travels in a UDP tunnel."""

    link: bytes
    network: bytes
    transport: bytes
    payload: bytes
    version: int
    protocol: int
    hosts: tuple[bytes, bytes]
    outer: Large | None = None

    @property
    def headers(self) -> int:
        """Octets in front of the payload."""
        return self.start + len(self.transport)

    @property
    def start(self) -> int:
        """Offset of the transport header."""
        return len(self.link) + len(self.network)

    def frame(self, *, outer_open: bool = False, outer_of: int = 0) -> bytes:
        """What the driver queues: the checksum field holds the sum of the pseudo header, lengths are those of the whole
        packet. With a tunnel the outer checksum is zero, or left open as well, or, with the outer length, that of every
        piece of ``outer_of`` octets."""
        inner = self._part()
        if self.outer is None:
            return self.link + inner
        # What is in front of the inner packet within the tunnel belongs to the outer payload.
        tunnel = replace(self.outer, payload=self.outer.payload + inner)
        whole = tunnel.link + tunnel._part()
        at = tunnel.start + 4
        if outer_of:
            return whole[:at] + self._outer_end(outer_of) + whole[at + 4 :]
        return whole if outer_open else whole[: at + 2] + bytes(2) + whole[at + 4 :]

    def _outer_end(self, size: int) -> bytes:
        """Length and checksum of the outer UDP header around a piece of ``size`` octets: the same for each, for what
        changes in the inner headers is made up for by their checksums."""
        assert self.outer is not None  # noqa: S101 - only called for a tunnel
        piece = replace(self, payload=self.payload[:size])
        inner = completed(piece._part(), len(self.network), SUM_AT[self.protocol])
        tunnel = replace(self.outer, payload=self.outer.payload + inner)
        outer = completed(tunnel._part(), len(tunnel.network), SUM_AT[UDP])
        at = len(tunnel.network) + 4
        return outer[at : at + 4]

    def _part(self) -> bytes:
        """The IP packet with its lengths and an open checksum."""
        length = len(self.transport) + len(self.payload)
        head = bytearray(self.transport)
        if self.protocol == UDP:
            head[4:6] = length.to_bytes(2)
        seed = pseudo_sum(self, length)
        at = SUM_AT[self.protocol]
        head[at : at + 2] = seed.to_bytes(2)
        return with_length(self.network, self.version, length) + bytes(head) + self.payload

    def header(self, kind: int, size: int, **fields: int) -> NetHdr:
        """The request to cut it into pieces of ``size`` octets."""
        shift = 0
        if self.outer is not None:
            shift = self.outer.headers + len(self.outer.payload)
            tunnel = GsoType.UDP_TUNNEL_IPV4 if self.version == 4 else GsoType.UDP_TUNNEL_IPV6
            fields = {"outer_th_offset": self.outer.start, "inner_nh_offset": shift, **fields}
            kind |= tunnel
        at = shift + self.start
        flags = HdrFlag.NEEDS_CSUM | fields.pop("flags", 0)
        return NetHdr(
            flags=flags,
            gso_type=kind,
            hdr_len=at + len(self.transport),
            gso_size=size,
            csum_start=at,
            csum_offset=SUM_AT[self.protocol],
            **fields,
        )


def completed(packet: bytes, start: int, offset: int) -> bytes:
    """A packet whose checksum from ``start`` on was left open."""
    at = start + offset
    return packet[:at] + (checksum(packet[start:]) or 0xFFFF).to_bytes(2) + packet[at + 2 :]


def pseudo_sum(large: Large, length: int) -> int:
    """The sum of the pseudo header, as a driver leaves it in an open checksum field."""
    source, target = large.hosts
    tail = (
        struct.pack("!BBH", 0, large.protocol, length)
        if large.version == 4
        else struct.pack("!I3xB", length, large.protocol)
    )
    return ~checksum(source + target + tail) & 0xFFFF


def with_length(network: bytes, version: int, length: int) -> bytes:
    """The IP header for ``length`` octets behind it, IPv4 with its checksum."""
    if version == 6:
        return network[:4] + (len(network) - 40 + length).to_bytes(2) + network[6:]
    head = network[:2] + (len(network) + length).to_bytes(2) + network[4:10] + bytes(2) + network[12:]
    return head[:10] + checksum(head).to_bytes(2) + head[12:]


@dataclass(frozen=True, slots=True)
class Piece:
    """A segment that left, its fields read; ``wrong`` says what does not fit together in it."""

    payload: bytes
    sequence: int
    flags: int
    ident: int
    wrong: tuple[str, ...]


def read(large: Large, frame: bytes, *, unsummed: bool = False) -> Piece:
    """One segment of ``large``, compared with its headers. ``unsummed``: a checksum of zero means none."""
    at = large.start
    link, network = frame[: len(large.link)], frame[len(large.link) : at]
    head, payload = frame[at : large.headers], frame[large.headers :]
    if len(head) < len(large.transport):
        return Piece(b"", 0, 0, 0, (f"{len(frame)} octets are shorter than the headers",))
    wrong = [] if link == large.link else ["link header"]
    length = len(head) + len(payload)
    ident = int.from_bytes(network[4:6]) if large.version == 4 else 0
    wanted = large.network
    if large.version == 4:
        wanted = wanted[:4] + network[4:6] + wanted[6:]
    if network != with_length(wanted, large.version, length):
        wrong.append(f"IP header {network.hex()}")
    sum_at = SUM_AT[large.protocol]
    found = int.from_bytes(head[sum_at : sum_at + 2])
    body = head[:sum_at] + bytes(2) + head[sum_at + 2 :] + payload
    source, target = large.hosts
    tail = (
        struct.pack("!BBH", 0, large.protocol, length)
        if large.version == 4
        else struct.pack("!I3xB", length, large.protocol)
    )
    right = checksum(source + target + tail + body)
    if found not in ({right, 0xFFFF} if right == 0 else {right}) and not (unsummed and not found):
        wrong.append(f"checksum {found:#06x}, not {right:#06x}")
    if large.protocol == UDP and found == 0 and not unsummed:
        wrong.append("a UDP checksum of zero means none")
    sequence = flags = 0
    same = head[:sum_at] + head[sum_at + 2 :]
    mine = large.transport[:sum_at] + large.transport[sum_at + 2 :]
    if large.protocol == TCP:
        sequence, flags = int.from_bytes(head[4:8]), head[13]
        same, mine = (part[:4] + part[8:13] + part[14:] for part in (same, mine))
    else:
        if int.from_bytes(head[4:6]) != length:
            wrong.append(f"UDP length {int.from_bytes(head[4:6])}, not {length}")
        same, mine = (part[:4] + part[6:] for part in (same, mine))
    if same != mine:
        wrong.append(f"transport header {head.hex()}")
    return Piece(payload, sequence, flags, ident, tuple(wrong))


@dataclass(slots=True)
class Findings:
    """What is wrong with segments: as packets of their own, in their lengths, in the outer checksums left open."""

    wrong: list[str]
    lengths: list[str]
    outer_sums: list[str]


def judge(large: Large, size: int, left: Sequence[bytes], *, outer_summed: bool = False) -> Findings:
    """Compare these frames with the segments of ``large`` in pieces of ``size``."""
    found = Findings([], [], [])
    pieces = []
    for number, frame in enumerate(left):
        rest = frame
        if large.outer is not None:
            outer = read(large.outer, frame, unsummed=not outer_summed)
            for text in outer.wrong:
                place = found.outer_sums if outer_summed and "checksum" in text else found.wrong
                place.append(f"segment {number}, outer {text}")
            inside = large.outer.payload
            if outer.payload[: len(inside)] != inside:
                found.wrong.append(f"segment {number}: tunnel header")
            rest = outer.payload[len(inside) :]
        piece = read(large, rest)
        found.wrong += [f"segment {number}: {text}" for text in piece.wrong]
        pieces.append(piece)
    lengths = [len(piece.payload) for piece in pieces]
    if b"".join(piece.payload for piece in pieces) != large.payload:
        found.wrong.append(f"payload in pieces of {lengths}")
    elif any(length != size for length in lengths[:-1]) or lengths[-1] > size or 0 in lengths:
        found.lengths.append(f"{lengths}, not {size} each")
    if large.protocol == TCP:
        found.wrong += _tcp(large, pieces)
    if large.version == 4 and len({piece.ident for piece in pieces}) < len(pieces):
        found.wrong.append("two segments have one Identification")
    return found


def _tcp(large: Large, pieces: Sequence[Piece]) -> Iterator[str]:
    """Sequence numbers follow the payload; FIN is that of the last segment, CWR that of the first (RFC 3168)."""
    sequence, flags = int.from_bytes(large.transport[4:8]), large.transport[13]
    for number, piece in enumerate(pieces):
        if piece.sequence != sequence & 0xFFFF_FFFF:
            yield f"segment {number}: sequence number {piece.sequence:#x}"
        sequence += len(piece.payload)
        wanted = flags
        if number:
            wanted &= ~CWR
        if number < len(pieces) - 1:
            wanted &= ~FIN
        # PSH may be repeated.
        if (piece.flags ^ wanted) & ~PSH or (number == len(pieces) - 1 and (piece.flags ^ wanted) & PSH):
            yield f"segment {number}: flags {piece.flags:#x}"


# -- fragments --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fragment:
    """An IP fragment: ``headers`` in front of its data without what makes it one, position, and whether more follow."""

    headers: bytes
    data: bytes
    at: int
    more: bool
    ident: int


def fragment(frame: bytes, link: int, version: int) -> Fragment | str:
    """Read a fragment whose IP header is at ``link``; what is wrong with it instead."""
    ip = frame[link:]
    if version == 4:
        size = (ip[0] & 15) * 4
        if int.from_bytes(ip[2:4]) != len(ip) or checksum(ip[:size]):
            return "IPv4 length or checksum"
        field = int.from_bytes(ip[6:8])
        return Fragment(
            ip[:size], ip[size:], (field & 0x1FFF) * 8, bool(field & _MORE), int.from_bytes(ip[4:6])
        )
    if int.from_bytes(ip[4:6]) != len(ip) - 40:
        return "IPv6 payload length"
    pointer, at = 6, 40
    while ip[pointer] in _HEADERS and at + 8 <= len(ip):
        pointer, at = at, at + (ip[at + 1] + 1) * 8
    if ip[pointer] != FRAGMENT_HEADER:
        return "no Fragment header"
    field = int.from_bytes(ip[at + 2 : at + 4])
    headers = ip[:pointer] + ip[at : at + 1] + ip[pointer + 1 : at]
    if ip[at + 1] or field & 6:
        return "reserved bits of the Fragment header"
    return Fragment(
        headers, ip[at + 8 :], field & 0xFFF8, bool(field & 1), int.from_bytes(ip[at + 4 : at + 8])
    )


def options(header: bytes) -> list[bytes]:
    """The options of an IPv4 header, without those that only fill."""
    found, at = [], 20
    while at < len(header) and header[at]:
        if header[at] == 1:
            at += 1
            continue
        length = max(header[at + 1], 2) if at + 1 < len(header) else 1
        found.append(header[at : at + length])
        at += length
    return found
