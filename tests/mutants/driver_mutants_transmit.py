"""Drivers whose transmit headers are wrong."""

from __future__ import annotations

from dataclasses import replace

from driver_registry import Wrong, driver_mutant

from virtio_ipsec.conformance.frames import UDP, Shape
from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.driver.features import SUPPORTED
from virtio_ipsec.ring.chain import Segment
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, GsoType, HdrFlag, ResourceType, mask

TUNNEL = int(GsoType.UDP_TUNNEL_IPV4 | GsoType.UDP_TUNNEL_IPV6)
FLAGS = TUNNEL | int(GsoType.ECN)
TUNNEL_GSO = (Feature.NET_F_HOST_UDP_TUNNEL_GSO, Feature.NET_F_HOST_UDP_TUNNEL_GSO_CSUM)
Packet = tuple[NetHdr, bytes]


class Plain(Wrong):
    """Sends packets that are not cut up."""

    only = ("send_plain",)


class Segmented(Wrong):
    """Sends packets to be cut up."""

    only = ("send_for_segmentation",)

    def retyped(self, header: NetHdr, old: int, new: int) -> NetHdr:
        base = header.gso_type & ~FLAGS
        return replace(header, gso_type=header.gso_type - base + new) if base == old else header


class Tunnelled(Wrong):
    """Sends packets in VXLAN to be cut up."""

    only = ("send_tunnelled",)


class Protected(Wrong):
    """Sends packets of SAs."""

    only = ("create_sas", "send_protected")


@driver_mutant("NET-TX-DRV-01")
class ShortHeader(Plain):
    """The header has 12 bytes whatever is negotiated."""

    def buffer(self, buffer: bytes) -> bytes:
        return buffer[:12] + buffer[self.driver._header.size :]


@driver_mutant("NET-TX-DRV-02")
class NumBuffersOne(Plain):
    """num_buffers is 1."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, num_buffers=1), frame


@driver_mutant("NET-TX-DRV-03", face="plain")
class FlagsWithoutChecksums(Plain):
    """A flag is set without VIRTIO_NET_F_CSUM."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, flags=0x80), frame


@driver_mutant("NET-TX-DRV-04")
class NetworkOffsetBeside(Plain):
    """outer_nh_offset points into the IP header."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, outer_nh_offset=header.outer_nh_offset + 1), frame


@driver_mutant("NET-TX-DRV-05", without=(Feature.NET_F_HOST_TSO4, *TUNNEL_GSO))
class Tso4Unasked(Segmented):
    """TCPv4 segmentation without its feature."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return self.retyped(header, GsoType.TCPV6, GsoType.TCPV4), frame


@driver_mutant("NET-TX-DRV-06", without=(Feature.NET_F_HOST_TSO6, *TUNNEL_GSO))
class Tso6Unasked(Segmented):
    """TCPv6 segmentation without its feature."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return self.retyped(header, GsoType.TCPV4, GsoType.TCPV6), frame


@driver_mutant("NET-TX-DRV-07")
class UfoUnasked(Segmented):
    """UDP fragmentation without its feature."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return self.retyped(header, GsoType.UDP_L4, GsoType.UDP), frame


@driver_mutant("NET-TX-DRV-08", without=(Feature.NET_F_HOST_USO, *TUNNEL_GSO))
class UsoUnasked(Segmented):
    """UDP segmentation without its feature."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return self.retyped(header, GsoType.TCPV4, GsoType.UDP_L4), frame


@driver_mutant("NET-TX-DRV-09")
class EcnForgotten(Segmented):
    """TCP with CWR is to be cut up, and gso_type does not say so."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, gso_type=header.gso_type & ~GsoType.ECN), frame


class TunnelBit(Segmented):
    """A tunnel bit on packets without a tunnel."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, gso_type=header.gso_type | GsoType.UDP_TUNNEL_IPV4), frame


@driver_mutant("NET-TX-DRV-10", "NET-TX-DRV-28", without=TUNNEL_GSO)
class TunnelUnasked(TunnelBit):
    """A tunnel bit without its feature."""


@driver_mutant("NET-TX-DRV-28", "NET-TX-DRV-10", without=TUNNEL_GSO)
class TunnelUnaskedAgain(TunnelBit):
    """The same, for the sentence that says it again."""


@driver_mutant("NET-TX-DRV-11")
class TunnelVersionsSwapped(Tunnelled):
    """The tunnel bit is that of the other IP version."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, gso_type=header.gso_type ^ TUNNEL), frame


@driver_mutant("NET-TX-DRV-12")
class TunnelFlagForgotten(Tunnelled):
    """The outer checksum is left open, and no flag says so."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, flags=header.flags & ~HdrFlag.UDP_TUNNEL_CSUM), frame


class TunnelFlag(Tunnelled):
    """The tunnel-checksum flag on every tunnelled packet."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, flags=header.flags | HdrFlag.UDP_TUNNEL_CSUM), frame


@driver_mutant("NET-TX-DRV-13", "NET-TX-DRV-12", "NET-TX-DRV-29", without=TUNNEL_GSO[1:])
class TunnelFlagUnasked(TunnelFlag):
    """The tunnel-checksum flag without its feature."""


@driver_mutant("NET-TX-DRV-29", "NET-TX-DRV-12", "NET-TX-DRV-13", without=TUNNEL_GSO[1:])
class TunnelFlagUnaskedAgain(TunnelFlag):
    """The same, for the sentence that says it again."""


@driver_mutant("NET-TX-DRV-14", "NET-TX-DRV-07")
class TunnelFragmented(Tunnelled):
    """UDP fragmentation in a tunnel."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, gso_type=header.gso_type & TUNNEL | GsoType.UDP), frame


@driver_mutant("NET-TX-DRV-15")
class BothTunnelBits(Tunnelled):
    """Both tunnel bits."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, gso_type=header.gso_type | TUNNEL), frame


@driver_mutant("NET-TX-DRV-16")
class TunnelFlagAlone(Plain):
    """The tunnel-checksum flag on a packet without a tunnel."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, flags=header.flags | HdrFlag.UDP_TUNNEL_CSUM), frame


@driver_mutant("NET-TX-DRV-18")
class WrongIpSum(Plain):
    """The IPv4 header checksum is wrong where the transport's is left open."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        if header.flags and frame[12:14] == b"\x08\0":
            frame = frame[:24] + bytes((frame[24] ^ 1,)) + frame[25:]
        return header, frame


@driver_mutant("NET-TX-DRV-19")
class NoPseudoHeader(Plain):
    """The checksum field is zero where the sum of the pseudo header belongs."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        at = header.csum_start + header.csum_offset
        return header, frame[:at] + b"\0\0" + frame[at + 2 :] if at else frame


@driver_mutant("NET-TX-DRV-20")
class ChecksumOffsetBeside(Plain):
    """csum_offset is two bytes too large."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return (replace(header, csum_offset=header.csum_offset + 2) if header.flags else header), frame


@driver_mutant("NET-TX-DRV-21", face="plain")
class GsoUnasked(Plain):
    """gso_type has a bit where nothing is negotiated."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, gso_type=int(GsoType.ECN)), frame


@driver_mutant("NET-TX-DRV-22")
class NoSegmentSize(Segmented):
    """gso_size is 0."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, gso_size=0), frame


@driver_mutant("NET-TX-DRV-23")
class LongHeaderLength(Segmented):
    """hdr_len is longer than the headers."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, hdr_len=header.hdr_len + 4), frame


@driver_mutant("NET-TX-DRV-24")
class NoHeaderLength(Plain):
    """hdr_len is 0."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, hdr_len=0), frame


@driver_mutant("NET-TX-DRV-25")
class OuterOffsetBeside(Tunnelled):
    """outer_th_offset points behind the ports."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, outer_th_offset=header.outer_th_offset + 4), frame


class OuterSum(Tunnelled):
    """The outer checksum is some number."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        if self.wrong(header):
            at = header.outer_th_offset + 6
            frame = frame[:at] + b"\x12\x34" + frame[at + 2 :]
        return header, frame

    def wrong(self, header: NetHdr) -> bool:
        return True


@driver_mutant("NET-TX-DRV-26")
class WrongOuterSeed(OuterSum):
    """With the flag the outer checksum is not the pseudo header's sum."""

    def wrong(self, header: NetHdr) -> bool:
        return bool(header.flags & HdrFlag.UDP_TUNNEL_CSUM)


@driver_mutant("NET-TX-DRV-27", without=TUNNEL_GSO[1:])
class OpenOuterSum(OuterSum):
    """Without the feature the outer checksum is neither zero nor final."""


@driver_mutant("NET-TX-DRV-30")
class HeaderLengthUnaccepted(Segmented):
    """GUEST_HDRLEN is not accepted, and every hdr_len is exact."""

    config = replace(Wrong.config, wanted=SUPPORTED & ~mask(Feature.NET_F_GUEST_HDRLEN))


@driver_mutant("NET-TX-DRV-31")
class RscInfoSent(Plain):
    """RSC_INFO on transmit."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, flags=header.flags | HdrFlag.RSC_INFO), frame


@driver_mutant("NET-TX-DRV-32", "NET-TX-DRV-31")
class ValidTunnel(Tunnelled):
    """DATA_VALID with a tunnel bit."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, flags=header.flags | HdrFlag.DATA_VALID), frame


@driver_mutant("NET-TX-DRV-33", "NET-TX-DRV-34")
class ProtectedTooEarly(Plain):
    """SECURITY before there is any SA."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        kind = ResourceType.NET_IPSEC_OUTB_SA
        return replace(header, flags=header.flags | HdrFlag.SECURITY, resource_type=kind), frame


class WrongSa(Protected):
    """resource_id is that of no SA."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, resource_id=header.resource_id + 1000), frame


@driver_mutant("NET-TX-DRV-34")
class NoSuchSa(WrongSa):
    """resource_id is that of no SA."""


@driver_mutant("RFC-06", "NET-TX-DRV-34")
class NoSuchSaRfc(WrongSa):
    """The same in the other dialect, whose clause says the same."""


@driver_mutant("INF-04", without=(Feature.NET_F_IPSEC,))
class ProtectedUnasked(Plain):
    """SECURITY without VIRTIO_NET_F_IPSEC."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, flags=header.flags | HdrFlag.SECURITY), frame


@driver_mutant("RFC-05")
class FlagOfTheOtherDialect(Protected):
    """SECURITY is 16, as in v1.4."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, flags=header.flags & ~8 | 16), frame


@driver_mutant("RFC-07")
class InboundType(Protected):
    """resource_type is that of inbound SAs."""

    def packet(self, header: NetHdr, frame: bytes) -> Packet:
        return replace(header, resource_type=int(ResourceType.NET_IPSEC_INB_SA)), frame


class BoundlessDriver(Driver):
    """Knows no MTU."""

    @property
    def mtu(self) -> int:
        return 65535


@driver_mutant("NET-IPSEC-DRV-07")
class BeyondTheMtu(Wrong):
    """A packet of the MTU's length is protected, and is longer then."""

    only = ("create_sas", "send_long")
    driver_class = BoundlessDriver

    def send_long(self) -> None:
        for sa in self.outbound:
            self.send(self.frame(Shape(4, UDP), bytes(1472)), sa)


@driver_mutant("FRM-03")
class ManyDescriptors(Plain):
    """A packet lies in pieces of 16 octets."""

    def tamper(self) -> None:
        for queue in self.driver._transmit:

            def put(buffer: bytes, token: object, queue: object = queue) -> None:
                address = self.link.allocator.alloc(len(buffer), 16)
                self.link.memory.write(address, buffer)
                pieces = [
                    Segment(address + at, min(16, len(buffer) - at)) for at in range(0, len(buffer), 16)
                ]
                queue._ring.add(pieces, [], (address, token))  # type: ignore[attr-defined]

            queue.put = put  # type: ignore[method-assign]
