"""Devices that complete checksums or cut packets in ways that do not fit together."""

from __future__ import annotations

from dataclasses import replace

from registry import mutant

from virtio_ipsec.device.transmit import Transmitter
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, GsoType, HdrFlag, has

ECN = 0x80


class OtherPieces(Transmitter):
    """Spoils what leaves of requests of one type."""

    kind = 0

    def spoiled(self, frames: list[bytes], hdr: NetHdr) -> list[bytes]:
        return frames

    def asked(self, hdr: NetHdr) -> NetHdr:
        return hdr

    def process(self, buffer: bytes, queue: int) -> list[bytes]:
        codec = self.ctx.header
        hdr = codec.parse(buffer[: codec.size].ljust(codec.size, b"\0"))
        if hdr.gso_type != self.kind or hdr.flags & self._security:
            return super().process(buffer, queue)
        buffer = codec.build(self.asked(hdr)) + buffer[codec.size :]
        return self.spoiled(super().process(buffer, queue), hdr)


def changed(frame: bytes, at: int, octet: int) -> bytes:
    return frame[:at] + bytes((octet,)) + frame[at + 1 :]


@mutant("INF-53")
class OddOctetForgotten(OtherPieces):
    """Of an odd number of octets the last does not count for the checksum."""

    def process(self, buffer: bytes, queue: int) -> list[bytes]:
        codec = self.ctx.header
        hdr = codec.parse(buffer[: codec.size].ljust(codec.size, b"\0"))
        frame = buffer[codec.size :]
        odd = (len(frame) - hdr.csum_start) % 2
        if (
            not hdr.flags & HdrFlag.NEEDS_CSUM
            or hdr.gso_type
            or not odd
            or not has(self.ctx.features, Feature.NET_F_CSUM)
        ):
            return super().process(buffer, queue)
        return [left + frame[-1:] for left in super().process(buffer[:-1], queue)]


@mutant("INF-54", "NET-TX-DEV-05", "NET-TX-DEV-04")
class LastTcp4SegmentLost(OtherPieces):
    """The last segment of TCP over IPv4 does not leave."""

    kind = GsoType.TCPV4

    def spoiled(self, frames: list[bytes], hdr: NetHdr) -> list[bytes]:
        return frames[:-1]


@mutant("INF-54")
class OneIdentification(OtherPieces):
    """All segments of TCP over IPv4 have one Identification."""

    kind = GsoType.TCPV4

    def spoiled(self, frames: list[bytes], hdr: NetHdr) -> list[bytes]:
        return [frame[:18] + frames[0][18:20] + frame[20:] for frame in frames]


@mutant("INF-54")
class OneSequenceNumber(OtherPieces):
    """All segments of TCP over IPv6 have one sequence number."""

    kind = GsoType.TCPV6

    def spoiled(self, frames: list[bytes], hdr: NetHdr) -> list[bytes]:
        at = hdr.csum_start + 4
        return [frame[:at] + frames[0][at : at + 4] + frame[at + 4 :] for frame in frames]


@mutant("INF-54")
class WholeUdpLength(OtherPieces):
    """The UDP header of every datagram has the length of the large one."""

    kind = GsoType.UDP_L4

    def process(self, buffer: bytes, queue: int) -> list[bytes]:
        self._whole = len(buffer)
        return super().process(buffer, queue)

    def spoiled(self, frames: list[bytes], hdr: NetHdr) -> list[bytes]:
        at = hdr.csum_start + 4
        whole = (self._whole - self.ctx.header.size - hdr.csum_start).to_bytes(2)
        return [frame[:at] + whole + frame[at + 2 :] for frame in frames]


@mutant("INF-54")
class CongestionAnsweredTwice(OtherPieces):
    """CWR is in every segment."""

    kind = GsoType.TCPV6 | ECN

    def spoiled(self, frames: list[bytes], hdr: NetHdr) -> list[bytes]:
        at = hdr.csum_start + 13
        return [changed(frame, at, frame[at] | 0x80) for frame in frames]


@mutant("INF-54")
class MoreToCome(OtherPieces):
    """The last fragment over IPv4 says that more follow."""

    kind = GsoType.UDP

    def spoiled(self, frames: list[bytes], hdr: NetHdr) -> list[bytes]:
        last = frames[-1]
        return [*frames[:-1], changed(last, 20, last[20] | 0x20)] if last[14] >> 4 == 4 else frames


@mutant("INF-54")
class FragmentsApart(OtherPieces):
    """Fragments over IPv6 do not share an Identification."""

    kind = GsoType.UDP

    def spoiled(self, frames: list[bytes], hdr: NetHdr) -> list[bytes]:
        if frames[0][14] >> 4 != 6 or frames[0][20] != 44:
            return frames
        return [changed(frame, 61, (frame[61] + at) & 255) for at, frame in enumerate(frames)]


def _larger(kind: int) -> type[OtherPieces]:
    class Larger(OtherPieces):
        """Pieces are eight octets longer than asked for."""

        def asked(self, hdr: NetHdr) -> NetHdr:
            return replace(hdr, gso_size=hdr.gso_size + 8)

    Larger.kind = kind
    return Larger


@mutant("INF-55")
class LongerTcp4(_larger(GsoType.TCPV4)):  # type: ignore[misc]
    """Segments of TCP over IPv4 are longer than gso_size."""


@mutant("INF-55")
class LongerTcp6(_larger(GsoType.TCPV6)):  # type: ignore[misc]
    """Segments of TCP over IPv6 are longer than gso_size."""


@mutant("INF-55")
class LongerUdp(_larger(GsoType.UDP_L4)):  # type: ignore[misc]
    """Datagrams are longer than gso_size."""


@mutant("INF-55")
class LongerFragments(_larger(GsoType.UDP)):  # type: ignore[misc]
    """Fragments are longer than gso_size."""


@mutant("INF-56", "INF-57")
class OuterLengthOfAll(OtherPieces):
    """The outer UDP header of every segment has the length of the first."""

    kind = GsoType.TCPV4 | GsoType.UDP_TUNNEL_IPV4

    def spoiled(self, frames: list[bytes], hdr: NetHdr) -> list[bytes]:
        at = hdr.outer_th_offset + 4
        return [frame[:at] + frames[0][at : at + 2] + frame[at + 2 :] for frame in frames]


@mutant("INF-57")
class OuterSumLeft(OtherPieces):
    """The outer checksum of the first segment is left open."""

    kind = GsoType.TCPV6 | GsoType.UDP_TUNNEL_IPV6

    def spoiled(self, frames: list[bytes], hdr: NetHdr) -> list[bytes]:
        if not hdr.flags & HdrFlag.UDP_TUNNEL_CSUM:
            return frames
        at = hdr.outer_th_offset + 6
        return [changed(frames[0], at, frames[0][at] ^ 1), *frames[1:]]
