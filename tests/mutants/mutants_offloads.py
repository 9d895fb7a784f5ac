"""Devices that segment by hints, take contradictory tunnel requests, or describe merged packets wrongly."""

from __future__ import annotations

from dataclasses import replace

from large_receiver import Coalescing, LargeReceiver
from registry import mutant

from virtio_ipsec.device.offloads import TUNNELS
from virtio_ipsec.device.transmit import Transmitter
from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, GsoType, HdrFlag

# -- transmit ---------------------------------------------------------------------------------------------


class Misreader(Transmitter):
    """Reads another header than the one that was sent."""

    def process(self, buffer: bytes, queue: int) -> list[bytes]:
        codec = self.ctx.header
        if len(buffer) >= codec.size:
            buffer = codec.build(self.misread(codec.parse(buffer), buffer)) + buffer[codec.size :]
        return super().process(buffer, queue)

    def misread(self, hdr: NetHdr, buffer: bytes) -> NetHdr:
        return hdr


@mutant("NET-TX-DEV-05")
class ShortHintRefused(Misreader):
    """A segmentation request needs an hdr_len that covers an Ethernet header."""

    def misread(self, hdr: NetHdr, buffer: bytes) -> NetHdr:
        if hdr.gso_type and hdr.hdr_len < 14 and not hdr.gso_type & TUNNELS:
            raise PacketError(Reason.BAD_GSO)
        return hdr


@mutant("NET-TX-DEV-04")
class HintOutlivesItsPacket(Misreader):
    """After an hdr_len beyond the packet the next large one is lost."""

    __slots__ = ("confused",)

    def misread(self, hdr: NetHdr, buffer: bytes) -> NetHdr:
        was = getattr(self, "confused", False)
        self.confused = bool(hdr.gso_type) and hdr.hdr_len > len(buffer) and hdr.hdr_len == 0xFFFF
        if was and hdr.gso_type:
            raise PacketError(Reason.BAD_GSO)
        # An own packet with a sentinel in between stays confused.
        self.confused = self.confused or (was and not hdr.gso_type)
        return hdr


@mutant("NET-TX-DEV-06")
class TwoTunnels(Misreader):
    """Of two tunnel bits the IPv4 one wins."""

    def misread(self, hdr: NetHdr, buffer: bytes) -> NetHdr:
        both = hdr.gso_type & TUNNELS == TUNNELS
        return replace(hdr, gso_type=hdr.gso_type & ~GsoType.UDP_TUNNEL_IPV6) if both else hdr


@mutant("NET-TX-DEV-08")
class TunnelWithValidData(Misreader):
    """DATA_VALID with a tunnel bit is let pass."""

    def misread(self, hdr: NetHdr, buffer: bytes) -> NetHdr:
        return replace(hdr, flags=hdr.flags & ~HdrFlag.DATA_VALID) if hdr.gso_type & TUNNELS else hdr


@mutant("NET-TX-DEV-07")
class OffsetsWithoutTunnel(Misreader):
    """An outer_th_offset beyond the packet is refused, tunnel or not."""

    def misread(self, hdr: NetHdr, buffer: bytes) -> NetHdr:
        if hdr.outer_th_offset >= len(buffer):
            raise PacketError(Reason.BAD_GSO)
        return hdr


@mutant("NET-TX-DEV-09")
class TunnelFlagAlone(Transmitter):
    """UDP_TUNNEL_CSUM without a tunnel bit is let pass."""

    def check_tunnel_flag(self, hdr: NetHdr) -> None:
        pass


# -- receive ----------------------------------------------------------------------------------------------


def merging(broken: str, *dependants: str):  # type: ignore[no-untyped-def]
    """Register a receiver that merges as a mutant, in a device that offers RSC_EXT."""

    def register(receiver: type[LargeReceiver]) -> type[LargeReceiver]:
        body = {"receiver_class": receiver, "__doc__": receiver.__doc__}
        mutant(broken, *dependants)(type(receiver.__name__, (Coalescing,), body))
        return receiver

    return register


@merging("NET-RX-DEV-06")
class Tso4Unasked(LargeReceiver):
    """TCP over IPv4 is merged, accepted or not."""

    def allowed(self, key: tuple[int, int], tunnel: bool, congested: bool) -> bool:
        return key == (6, 4) and not tunnel and not congested


@merging("NET-RX-DEV-08")
class Tso6Unasked(LargeReceiver):
    """TCP over IPv6 is merged, accepted or not."""

    def allowed(self, key: tuple[int, int], tunnel: bool, congested: bool) -> bool:
        return key == (6, 6) and not congested


@merging("NET-RX-DEV-09")
class UsoUnasked(LargeReceiver):
    """UDP datagrams are merged where checksums may be left open."""

    def allowed(self, key: tuple[int, int], tunnel: bool, congested: bool) -> bool:
        return key[0] == 17 and self.ctx.has(Feature.NET_F_GUEST_CSUM)


@merging("NET-RX-DEV-07")
class FragmentsClaimed(LargeReceiver):
    """Merged datagrams are said to be fragments of one."""

    def adjusted(self, header: NetHdr, frame: bytearray) -> NetHdr:
        datagrams = header.gso_type == GsoType.UDP_L4
        return replace(header, gso_type=GsoType.UDP) if datagrams else header


@merging("NET-RX-DEV-10", "NET-RX-DEV-06")
class TunnelUnasked(LargeReceiver):
    """Tunnelled segments are merged, accepted or not, when the checksum of the tunnel is zero."""

    def allowed(self, key: tuple[int, int], tunnel: bool, congested: bool) -> bool:
        return tunnel or super().allowed(key, tunnel, congested)


@merging("NET-RX-DEV-12")
class CongestionNotMarked(LargeReceiver):
    """The ECN bit is left out."""

    def adjusted(self, header: NetHdr, frame: bytearray) -> NetHdr:
        return replace(header, gso_type=header.gso_type & ~GsoType.ECN)


@merging("NET-RX-DEV-15")
class HeaderChecksumStale(LargeReceiver):
    """The IPv4 header checksum stays that of the first packet."""

    def adjusted(self, header: NetHdr, frame: bytearray) -> NetHdr:
        if frame[14] >> 4 == 4 and not header.gso_type & TUNNELS:
            frame[24] ^= 1
        return header


@merging("NET-RX-DEV-16", "NET-RX-DEV-17")
class NoSeed(LargeReceiver):
    """The open checksum field holds zero."""

    def adjusted(self, header: NetHdr, frame: bytearray) -> NetHdr:
        if not header.flags & HdrFlag.RSC_INFO:
            at = header.csum_start + header.csum_offset
            frame[at : at + 2] = bytes(2)
        return header


@merging("NET-RX-DEV-17")
class StartsAtNetwork(LargeReceiver):
    """csum_start is that of the IP header."""

    def adjusted(self, header: NetHdr, frame: bytearray) -> NetHdr:
        tunnel = header.gso_type & TUNNELS or header.flags & HdrFlag.RSC_INFO
        return header if tunnel else replace(header, csum_start=14)


@merging("NET-RX-DEV-18")
class OtherTunnel(LargeReceiver):
    """The tunnel bit is that of the other IP version."""

    def adjusted(self, header: NetHdr, frame: bytearray) -> NetHdr:
        return replace(header, gso_type=header.gso_type ^ TUNNELS) if header.gso_type & TUNNELS else header


@merging("NET-RX-DEV-19")
class OuterOpenUnasked(LargeReceiver):
    """Outer checksums are left open without the feature."""

    def outer_allowed(self) -> bool:
        return True


@merging("NET-RX-DEV-21")
class NoSize(LargeReceiver):
    """gso_size is zero."""

    def adjusted(self, header: NetHdr, frame: bytearray) -> NetHdr:
        return replace(header, gso_size=0)


@merging("NET-RX-DEV-22")
class SegmentsNotCounted(LargeReceiver):
    """The count of coalesced segments is one short."""

    def adjusted(self, header: NetHdr, frame: bytearray) -> NetHdr:
        rsc = header.flags & HdrFlag.RSC_INFO
        return replace(header, csum_start=header.csum_start - 1) if rsc else header


@merging("NET-RX-DEV-24")
class HeadersTooShort(LargeReceiver):
    """hdr_len is that of the transport header's place."""

    def adjusted(self, header: NetHdr, frame: bytearray) -> NetHdr:
        return replace(header, hdr_len=34)


@merging("NET-RX-DEV-26")
class TunnelIsValid(LargeReceiver):
    """DATA_VALID stands beside a tunnel bit."""

    def adjusted(self, header: NetHdr, frame: bytearray) -> NetHdr:
        tunnel = header.gso_type & TUNNELS
        return replace(header, flags=header.flags | HdrFlag.DATA_VALID) if tunnel else header


@merging("NET-RX-DEV-27")
class OuterSeedMissing(LargeReceiver):
    """The open outer checksum holds the sum of something else."""

    def adjusted(self, header: NetHdr, frame: bytearray) -> NetHdr:
        if header.flags & self.ctx.dialect.flag_udp_tunnel_csum:
            frame[header.outer_th_offset + 6] ^= 1
        return header


@merging("NET-RX-DEV-28")
class OuterChecksumStale(LargeReceiver):
    """An outer checksum without the flag is neither zero nor right."""

    def adjusted(self, header: NetHdr, frame: bytearray) -> NetHdr:
        if header.gso_type & TUNNELS and not header.flags & self.ctx.dialect.flag_udp_tunnel_csum:
            frame[header.outer_th_offset + 6] = 0x55
        return header
