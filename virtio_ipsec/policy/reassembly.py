"""Putting fragments together again (RFC 791 3.2, RFC 815, RFC 8200 4.5), within bounds of memory and time.

Fragments that overlap end their datagram (RFC 5722): what came and what still comes of it is dropped until it is
forgotten. An exact duplicate is ignored.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec import ip
from virtio_ipsec.policy.rate import SECOND

TIMEOUT = 30 * SECOND
MAX_DATAGRAMS = 256
MAX_OCTETS = 4 << 20
MAX_PIECES = 256  # of one datagram: enough for 64 KiB over the smallest path that is believed in

_Key = tuple[object, ...]
_BEFORE = frozenset({ip.HOP_BY_HOP, ip.ROUTING, ip.DESTINATION_OPTIONS})
_FRAGMENT_HEADER_LEN = 8
_NOT_ECT, _CE = 0, 3


@dataclass(slots=True)
class _Datagram:
    until: int
    pieces: list[tuple[int, bytes]] = field(
        default_factory=list
    )  # (offset, octets), in order, without overlap
    head: bytes = b""  # of the fragment at offset 0
    protocol: int = 0
    names_next: int = 0
    total: int | None = None
    held: int = 0
    marks: int = 0  # bit n: a fragment had ECN n
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Fragment:
    """A part of a datagram. ``head``: its headers without the fragment header; ``names_next``: where they name what
    follows, ``protocol``."""

    identity: tuple[bytes, ...]
    head: bytes
    names_next: int
    protocol: int
    offset: int
    more: bool
    payload: bytes
    mark: int


def read_fragment(packet: ip.Packet) -> Fragment | None:
    """The packet as a fragment; None when it is none. An atomic fragment (RFC 6946) is a whole datagram.

    PacketError MALFORMED when extension headers in front of a fragment header are damaged.
    """
    data, mark = packet.data, packet.traffic_class & 3
    if packet.version == 4:
        offset, more = (packet.flags_offset & 0x1FFF) * 8, bool(packet.flags_offset & 0x2000)
        if not offset and not more:
            return None
        end = packet.header_len
        return Fragment(
            (data[12:20], data[4:6], data[9:10]),
            data[:end],
            ip.IPV4_PROTOCOL_AT,
            packet.protocol,
            offset,
            more,
            data[end:],
            mark,
        )
    protocol, at, names_next = packet.protocol, ip.IPV6_HEADER_LEN, ip.IPV6_NEXT_HEADER_AT
    while protocol in _BEFORE:
        length = (data[at + 1] + 1) * 8 if len(data) >= at + 8 else 0
        if not length or len(data) < at + length:
            raise PacketError(Reason.MALFORMED, "IPv6 extension header exceeds the packet")
        protocol, names_next, at = data[at], at, at + length
    if protocol != ip.FRAGMENT:
        return None
    end = at + _FRAGMENT_HEADER_LEN
    if len(data) < end:
        raise PacketError(Reason.MALFORMED, "IPv6 fragment header is cut short")
    word = int.from_bytes(data[at + 2 : at + 4])
    if not word & 0xFFF9:
        return None
    return Fragment(
        (data[8:40], data[at + 4 : end]),
        data[:at],
        names_next,
        data[at],
        word & 0xFFF8,
        bool(word & 1),
        data[end:],
        mark,
    )


class Reassembler:
    """Datagrams in the making. ``context`` tells apart fragments that must not be mixed: of other SAs, other VLANs."""

    def __init__(self) -> None:
        self._datagrams: dict[_Key, _Datagram] = {}  # oldest first
        self._octets = 0
        self.expired = 0  # datagrams that were never whole
        self.evicted = 0  # datagrams that gave way to newer ones

    def __len__(self) -> int:
        return len(self._datagrams)

    @property
    def octets(self) -> int:
        """Held at this moment."""
        return self._octets

    def add(self, piece: Fragment, now: int, context: object = None) -> bytes | None:
        """The whole datagram once its last missing fragment is there, else None.

        PacketError FRAGMENT for a fragment that cannot belong to any datagram, overlaps another one or is of a datagram
        that was given up.
        """
        key = (context, *piece.identity)
        datagram = self._datagrams.get(key)
        if datagram is None:
            self._make_room()
            datagram = self._datagrams[key] = _Datagram(now + TIMEOUT)
        if datagram.refused:
            raise PacketError(Reason.FRAGMENT, "of a datagram that was given up")
        try:
            news = _take(datagram, piece)
        except PacketError:
            self._octets -= datagram.held
            self._datagrams[key] = _Datagram(datagram.until, refused=True)
            raise
        if not news:
            return None
        datagram.marks |= 1 << piece.mark
        self._octets += news
        if datagram.total is None or datagram.held < datagram.total:
            self._bound(key)
            return None
        self._forget(key)
        return _whole(datagram)

    def tick(self, now: int) -> None:
        """Give up what is old."""
        for key in [key for key, datagram in self._datagrams.items() if datagram.until <= now]:
            self.expired += not self._datagrams[key].refused
            self._forget(key)

    def deadline(self) -> int | None:
        """When :meth:`tick` has something to do next."""
        return next((datagram.until for datagram in self._datagrams.values()), None)

    def _forget(self, key: _Key) -> None:
        self._octets -= self._datagrams.pop(key).held

    def _make_room(self) -> None:
        if len(self._datagrams) >= MAX_DATAGRAMS:
            self.evicted += 1
            self._forget(next(iter(self._datagrams)))

    def _bound(self, newest: _Key) -> None:
        while self._octets > MAX_OCTETS:
            oldest = next(iter(self._datagrams))
            if oldest == newest:
                return  # one datagram has at most 64 KiB
            self.evicted += 1
            self._forget(oldest)


def _take(datagram: _Datagram, piece: Fragment) -> int:
    """Adds the piece; how many octets are new. PacketError when it contradicts the others."""
    begin, end = piece.offset, piece.offset + len(piece.payload)
    if not piece.payload or (piece.more and end % 8):
        raise PacketError(Reason.FRAGMENT, "a fragment of an impossible length")
    if len(piece.head) + end > ip.MAX_LENGTH:
        raise PacketError(Reason.FRAGMENT, "the datagram would exceed its length field")
    at = bisect_left(datagram.pieces, begin, key=lambda each: each[0])
    if at < len(datagram.pieces) and datagram.pieces[at] == (begin, piece.payload):
        return 0
    if at < len(datagram.pieces) and datagram.pieces[at][0] < end:
        raise PacketError(Reason.FRAGMENT, "fragments overlap")
    if at and datagram.pieces[at - 1][0] + len(datagram.pieces[at - 1][1]) > begin:
        raise PacketError(Reason.FRAGMENT, "fragments overlap")
    last = datagram.pieces[-1] if datagram.pieces else (0, b"")
    if datagram.total is not None and (end > datagram.total or not piece.more):
        raise PacketError(Reason.FRAGMENT, "a datagram with two ends")
    if not piece.more and last[0] + len(last[1]) > end:
        raise PacketError(Reason.FRAGMENT, "a fragment behind the last one")
    if len(datagram.pieces) >= MAX_PIECES:
        raise PacketError(Reason.FRAGMENT, "a datagram of too many fragments")
    if not piece.more:
        datagram.total = end
    if not begin:
        datagram.head, datagram.names_next, datagram.protocol = piece.head, piece.names_next, piece.protocol
    datagram.pieces.insert(at, (begin, piece.payload))
    datagram.held += len(piece.payload)
    return len(piece.payload)


def _whole(datagram: _Datagram) -> bytes:
    """The datagram with the header of its first fragment; marks of congestion are kept (RFC 3168 5.3)."""
    head = bytearray(datagram.head)
    if head[0] >> 4 == 4:
        head[6:8] = (int.from_bytes(head[6:8]) & 0xC000).to_bytes(2)
    if datagram.marks >> _CE & 1:
        if datagram.marks >> _NOT_ECT & 1:
            raise PacketError(
                Reason.CONGESTION, "a fragment met congestion, another one does not understand marks"
            )
        head[1] |= _CE if head[0] >> 4 == 4 else _CE << 4
    payload = b"".join(octets for _, octets in datagram.pieces)
    return ip.header_for(bytes(head), datagram.names_next, datagram.protocol, len(payload)) + payload
