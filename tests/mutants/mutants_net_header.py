"""Devices that use what they must not in the net header, or write what they must not into it."""

from __future__ import annotations

from dataclasses import replace

from registry import mutant

from virtio_ipsec.device.checksum import complete_checksum
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.receive import Packet, Receiver
from virtio_ipsec.device.rings import Rings
from virtio_ipsec.device.transmit import Transmitter
from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec.sa import OutboundSa
from virtio_ipsec.ring.base import DeviceQueue
from virtio_ipsec.ring.chain import Chain
from virtio_ipsec.wire.net_header import RFC_20, RFC_26, V14_20, V14_24, V14_32, NetHdr, NetHdrCodec
from virtio_ipsec.wire.numbers import Feature, HdrFlag, ResourceType, has


@mutant("NET-TX-DEV-01")
class UnknownFlagRefused(Transmitter):
    """A packet with an unknown flag is dropped."""

    def process(self, buffer: bytes, queue: int) -> list[bytes]:
        if buffer[0] & 0x80:
            raise PacketError(Reason.BAD_HEADER)
        return super().process(buffer, queue)


@mutant("INF-06", "NET-TX-DEV-01")
class SecurityAlwaysKnown(Transmitter):
    """SECURITY asks for an SA although the feature is off."""

    def security_association(self, hdr: NetHdr) -> OutboundSa | None:
        if hdr.flags & self.ctx.dialect.flag_security and not self.ctx.has(Feature.NET_F_IPSEC):
            raise PacketError(Reason.UNKNOWN_SA)
        return super().security_association(hdr)


@mutant("NET-TX-DEV-02")
class ChecksumAlwaysCompleted(Transmitter):
    """csum_start and csum_offset are used without NEEDS_CSUM when they lie within the frame."""

    def checksummed(self, hdr: NetHdr, frame: bytes) -> bytes:
        if hdr.csum_start and hdr.csum_start + hdr.csum_offset + 2 <= len(frame):
            data = bytearray(frame)
            complete_checksum(data, hdr.csum_start, hdr.csum_offset)
            return bytes(data)
        return super().checksummed(hdr, frame)


@mutant("NET-TX-DEV-03", "NET-TX-INT-02")
class OffsetAlwaysUsed(Transmitter):
    """outer_nh_offset is used although the feature is off."""

    def network_header(self, hdr: NetHdr, frame: bytes) -> int:
        if not hdr.outer_nh_offset:
            return 0
        if not 14 <= hdr.outer_nh_offset < len(frame) or frame[hdr.outer_nh_offset] >> 4 not in (4, 6):
            raise PacketError(Reason.BAD_HEADER)
        return hdr.outer_nh_offset


@mutant("NET-TX-DEV-11")
class ResourceAlwaysUsed(Transmitter):
    """A packet that names a live SA is sealed, SECURITY or not."""

    def security_association(self, hdr: NetHdr) -> OutboundSa | None:
        if hdr.resource_type == ResourceType.NET_IPSEC_OUTB_SA and hdr.resource_id in self.ctx.outbound:
            return self.ctx.outbound[hdr.resource_id]
        return super().security_association(hdr)


@mutant("RFC-11")
class ResourceAlwaysUsedInRfc(ResourceAlwaysUsed):
    """The same in the older dialect."""


# -- header size ------------------------------------------------------------------------------------------


class OtherHeader(Device):
    """After feature negotiation the header may be another one."""

    def _adopt(self, features: int) -> None:
        super()._adopt(features)
        self.context.header = self.other(features)

    def other(self, features: int) -> NetHdrCodec:
        return self.context.header


@mutant("INF-01")
class HeaderEndsAtTunnelOffsets(OtherHeader):
    """Without OUT_NET_HEADER the header has 24 octets, IPsec or not."""

    def other(self, features: int) -> NetHdrCodec:
        ipsec = has(features, Feature.NET_F_IPSEC) and not has(features, Feature.NET_F_OUT_NET_HEADER)
        return V14_24 if ipsec else super().other(features)


@mutant("NET-RXB-DRV-04")
class HashesBeforeTunnels(OtherHeader):
    """With hash reports and tunnel segmentation the header has 20 octets."""

    def other(self, features: int) -> NetHdrCodec:
        hashes = has(features, Feature.NET_F_HASH_REPORT)
        return V14_20 if hashes and self.context.header is V14_24 else super().other(features)


@mutant("RFC-01")
class HeaderGrowsWithHashes(OtherHeader):
    """With hash reports the resource header lies as far back as in v1.4."""

    def other(self, features: int) -> NetHdrCodec:
        hashes = has(features, Feature.NET_F_HASH_REPORT) and has(features, Feature.NET_F_IPSEC)
        return V14_32 if hashes else super().other(features)


@mutant("RFC-03")
class HashHeaderAsLongAsIpsec(OtherHeader):
    """With hash reports the header has 26 octets, IPsec or not."""

    def other(self, features: int) -> NetHdrCodec:
        return RFC_26 if self.context.header is RFC_20 else super().other(features)


@mutant("RFC-02")
class TypeBeforeId(Receiver):
    """With hash reports resource_type is written in front of resource_id."""

    def header(self, packet: Packet, hashed: tuple[int, int]) -> bytes:
        head = super().header(packet, hashed)
        if not self.ctx.has(Feature.NET_F_HASH_REPORT):
            return head
        return head[:20] + head[24:26] + head[20:24]


# -- receive ----------------------------------------------------------------------------------------------


class Rewriter(Receiver):
    """Receives rightly and then changes the header."""

    def header(self, packet: Packet, hashed: tuple[int, int]) -> bytes:
        codec = self.ctx.header
        return codec.build(self.rewritten(codec.parse(super().header(packet, hashed)), packet))

    def rewritten(self, hdr: NetHdr, packet: Packet) -> NetHdr:
        return hdr

    def has(self, feature: Feature) -> bool:
        return self.ctx.has(feature)


@mutant("NET-RX-DEV-05", "INF-06", "NET-RX-DEV-25")
class DataAlwaysValid(Rewriter):
    """DATA_VALID is set although GUEST_CSUM is off."""

    def rewritten(self, hdr: NetHdr, packet: Packet) -> NetHdr:
        return replace(hdr, flags=hdr.flags | HdrFlag.DATA_VALID) if packet.headers.version else hdr


@mutant("NET-RX-DEV-11")
class FlagEightAlways(Rewriter):
    """UDP_TUNNEL_CSUM is set on every IP packet that is not marked otherwise."""

    def rewritten(self, hdr: NetHdr, packet: Packet) -> NetHdr:
        return replace(hdr, flags=hdr.flags or 8) if packet.headers.version == 6 else hdr


@mutant("NET-RX-DEV-13")
class OffsetWithoutFeature(Rewriter):
    """outer_nh_offset is written although OUT_NET_HEADER is off."""

    def rewritten(self, hdr: NetHdr, packet: Packet) -> NetHdr:
        off = self.has(Feature.NET_F_IPSEC) and not self.has(Feature.NET_F_OUT_NET_HEADER)
        return replace(hdr, outer_nh_offset=14) if off else hdr


@mutant("NET-RX-DEV-20")
class SegmentsClaimed(Rewriter):
    """A TCP segment is delivered as one of several."""

    def rewritten(self, hdr: NetHdr, packet: Packet) -> NetHdr:
        return replace(hdr, gso_type=1) if packet.headers.protocol == 6 else hdr


@mutant("NET-RX-DEV-23")
class CoalescingClaimed(Rewriter):
    """RSC_INFO is set on TCP segments although the feature is off."""

    def rewritten(self, hdr: NetHdr, packet: Packet) -> NetHdr:
        tcp = packet.headers.protocol == 6 and not self.has(Feature.NET_F_RSC_EXT)
        return replace(hdr, flags=hdr.flags | HdrFlag.RSC_INFO) if tcp else hdr


@mutant("NET-RX-DEV-30", "INF-06")
class EspAlwaysMarked(Rewriter):
    """SECURITY is set on every ESP packet, whether it met IPsec or not."""

    def rewritten(self, hdr: NetHdr, packet: Packet) -> NetHdr:
        esp = packet.headers.protocol == 50
        return replace(hdr, flags=hdr.flags | self.ctx.dialect.flag_security) if esp else hdr


@mutant("RFC-15", "INF-06", "RFC-20", "RFC-21")
class EspAlwaysMarkedInRfc(EspAlwaysMarked):
    """The same in the older dialect."""


@mutant("INF-06", "NET-RX-DEV-30")
class EspMarkedWithoutFeature(Rewriter):
    """ESP packets are marked as failed while IPsec is off."""

    def rewritten(self, hdr: NetHdr, packet: Packet) -> NetHdr:
        off = packet.headers.protocol == 50 and not self.has(Feature.NET_F_IPSEC)
        return replace(hdr, flags=hdr.flags | self.ctx.dialect.error_flags) if off else hdr


@mutant("NET-RX-INT-01")
class OffsetOfTransport(Rewriter):
    """outer_nh_offset points at the transport header."""

    def rewritten(self, hdr: NetHdr, packet: Packet) -> NetHdr:
        return replace(hdr, outer_nh_offset=packet.headers.l4) if hdr.outer_nh_offset else hdr


# -- buffers ----------------------------------------------------------------------------------------------


@mutant("NET-RXB-DEV-01", "NET-RX-DEV-02")
class OneBufferClaimed(Rings):
    """num_buffers is 1 however many buffers there are, when the last of them is full."""

    def _num_buffers(self, chains: list[Chain]) -> int:
        return 1 if len(chains) == 3 else len(chains)


@mutant("NET-RX-DEV-03")
class BufferNotFilled(Rings):
    """The first of several buffers is left one octet short where the last has room for it."""

    def _spread(self, chains: list[Chain], data: bytes) -> list[tuple[Chain, int]]:
        if len(chains) == 1 or sum(chain.writable_len for chain in chains) == len(data):
            return super()._spread(chains, data)
        short = chains[0].writable_len - 1
        chains[0].write(self.memory, data[:short])
        return [(chains[0], short), *super()._spread(chains[1:], data[short:])]


@mutant("NET-RXB-DEV-02")
class AlwaysMerged(Rings):
    """A packet is spread over several buffers although merging is off."""

    def _most_buffers(self, queue: DeviceQueue) -> int:
        return queue.size


@mutant("NET-RX-DEV-01")
class NoCountWithoutMerging(Rings):
    """num_buffers is 0 while merging is off."""

    def _num_buffers(self, chains: list[Chain]) -> int:
        return len(chains) if self.device.context.has(Feature.NET_F_MRG_RXBUF) else 0
