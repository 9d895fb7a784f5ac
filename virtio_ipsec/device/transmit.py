"""From a transmit buffer to wire frames (virtio v1.4 5.1.6.2 and IPsec Operation, outbound).

Order: header checks, then checksum or segmentation, then one IPsec packet for each frame, with its own
sequence number and IV (ledger E62). Refused packets are counted by reason and leave nothing on the wire; a
packet marked SECURITY never leaves in clear (E54, E60). When an SA ends in the middle of a segmented packet
(hard lifetime, last sequence number), the segments it still protected are sent and the others are not, so that
exactly as many packets leave as the limit allows.
"""

from __future__ import annotations

from virtio_ipsec.device import offloads
from virtio_ipsec.device.checksum import complete_checksum
from virtio_ipsec.device.engines import AnyOutboundSa, protect
from virtio_ipsec.device.frame import ETHERNET_HEADER, IPV4, IPV6, network_offset, view
from virtio_ipsec.device.state import DataPlaneContext
from virtio_ipsec.device.steering import FlowMemory
from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, GsoType, HdrFlag, ResourceType

_ETHERTYPES = {4: IPV4.to_bytes(2, "big"), 6: IPV6.to_bytes(2, "big")}
_VERSIONS = {IPV4: 4, IPV6: 6}
_NEEDS_CSUM = int(HdrFlag.NEEDS_CSUM)
_UFO = int(GsoType.UDP)
_OUTBOUND_TYPE = int(ResourceType.NET_IPSEC_OUTB_SA)
_INBOUND_TYPE = int(ResourceType.NET_IPSEC_INB_SA)


class Transmitter:
    """The transmit path of one device; all state is in the context."""

    __slots__ = ("_security", "_tunnel_csum", "ctx")

    def __init__(self, ctx: DataPlaneContext) -> None:
        self.ctx = ctx
        # Plain ints: arithmetic on enum members costs a microsecond each.
        self._security = int(ctx.dialect.flag_security)
        self._tunnel_csum = int(ctx.dialect.flag_udp_tunnel_csum)

    def transmit(self, buffer: bytes, queue: int) -> list[bytes]:
        """Wire frames for one buffer (header + frame) of transmit queue number ``queue``; never raises."""
        try:
            frames = self.process(buffer, queue)
        except PacketError as error:
            self.ctx.counters.refuse_tx(error.reason)
            return []
        self.ctx.counters.add("tx_frames", len(frames))
        self.ctx.counters.add("tx_bytes", sum(map(len, frames)))
        return frames

    def process(self, buffer: bytes, queue: int) -> list[bytes]:
        """As :meth:`transmit`, but a refusal is a PacketError."""
        ctx = self.ctx
        size = ctx.header.size
        if len(buffer) < size:
            raise PacketError(Reason.BAD_HEADER, "the buffer ends within the header")
        hdr = ctx.header.parse(buffer)
        frame = buffer[size:]
        if len(frame) < ETHERNET_HEADER:
            raise PacketError(Reason.MALFORMED, "no Ethernet header")
        self.check_tunnel_flag(hdr)
        base = offloads.check_gso(hdr, ctx.features)
        sa = self.security_association(hdr)
        l3 = self.network_header(hdr, frame) if base or sa else 0
        if base:
            if sa and base == _UFO:
                raise PacketError(Reason.BAD_GSO, "IP fragmentation of a packet to be protected (E62)")
            frames = offloads.segment(frame, hdr, base, ctx.features, ctx.rng, l3)
        else:
            frames = [self.checksummed(hdr, frame)]
        self.learn(frame, queue)
        return self.protect_all(sa, frames, l3) if sa else frames

    def check_tunnel_flag(self, hdr: NetHdr) -> None:
        """UDP_TUNNEL_CSUM without a tunnel bit is refused (NET-TX-DEV-09), negotiated or not."""
        if hdr.flags & self._tunnel_csum and not hdr.gso_type & offloads.TUNNELS:
            raise PacketError(Reason.BAD_GSO, "UDP_TUNNEL_CSUM without a tunnel")

    def security_association(self, hdr: NetHdr) -> AnyOutboundSa | None:
        """The SA that the header asks for; None when it asks for none.

        Without SECURITY the resource fields are not looked at (NET-TX-DEV-11); without IPSEC negotiated the
        flag is an unknown one (E61).
        """
        ctx = self.ctx
        if not hdr.flags & self._security or not ctx.has(Feature.NET_F_IPSEC):
            return None
        kind = hdr.resource_type
        if kind == _INBOUND_TYPE:
            raise PacketError(Reason.WRONG_DIRECTION, "the header names an inbound SA")
        if kind != _OUTBOUND_TYPE and (kind or ctx.dialect.tx_resource_type_required):
            raise PacketError(Reason.UNKNOWN_SA, f"resource_type {kind:#x}")
        sa = ctx.outbound.get(hdr.resource_id)
        if sa is None:
            raise PacketError(Reason.UNKNOWN_SA, f"no outbound SA {hdr.resource_id}")
        return sa

    def network_header(self, hdr: NetHdr, frame: bytes) -> int:
        """`outer_nh_offset` when it may be used (NET-TX-DEV-03), else 0: the device looks for itself.

        It is used only where the network header matters, and there it must point behind the EtherType of the
        IP version that it points at; a packet with a wrong one is refused. So is one whose EtherType says that
        IP is elsewhere: with an offset into a tunnel the outer packet would pass for a link header and leave in
        clear.
        """
        at = hdr.outer_nh_offset
        if not at or not self.ctx.has(Feature.NET_F_OUT_NET_HEADER):
            return 0
        if at < ETHERNET_HEADER or at >= len(frame):
            raise PacketError(Reason.BAD_HEADER, "outer_nh_offset is outside the packet")
        if _VERSIONS.get(frame[at - 2] << 8 | frame[at - 1]) != frame[at] >> 4:
            raise PacketError(Reason.BAD_HEADER, "outer_nh_offset does not point at an IP header")
        seen, ethertype = network_offset(frame)
        if ethertype in _VERSIONS and seen != at:
            raise PacketError(Reason.BAD_HEADER, "outer_nh_offset is not that of the outer IP header")
        return at

    def checksummed(self, hdr: NetHdr, frame: bytes) -> bytes:
        """``frame`` with its checksum completed when that is asked for and CSUM is negotiated.

        csum_start and csum_offset are not looked at otherwise (NET-TX-DEV-02).
        """
        if not hdr.flags & _NEEDS_CSUM or not self.ctx.has(Feature.NET_F_CSUM):
            return frame
        data = bytearray(frame)
        complete_checksum(data, hdr.csum_start, hdr.csum_offset)
        return bytes(data)

    def learn(self, frame: bytes, queue: int) -> None:
        """Remember the flow's queue while automatic steering is at work (virtio v1.4 5.1.6.5.5)."""
        steering = self.ctx.steering
        if steering.queue_pairs > 1 and not steering.rss:
            if self.ctx.fast is not None:
                self.ctx.fast.flows.sent(frame, queue)
                return
            if self.ctx.flows is None:
                self.ctx.flows = FlowMemory()
            self.ctx.flows.sent(frame, view(frame), queue)

    def protect_all(self, sa: AnyOutboundSa, frames: list[bytes], l3: int) -> list[bytes]:
        """Each frame protected on its own; the first refusal ends the list."""
        protected = []
        for frame in frames:
            try:
                protected.append(self.protect(sa, frame, l3))
            except PacketError as error:
                if not protected:
                    raise
                self.ctx.counters.refuse_tx(error.reason)
                break
        self.ctx.counters.add("tx_sealed", len(protected))
        return protected

    def protect(self, sa: AnyOutboundSa, frame: bytes, l3: int) -> bytes:
        """One frame through IPsec: Ethernet header and tags stay, EtherType follows IP version (E64)."""
        if not l3:
            l3, ethertype = network_offset(frame)
            if ethertype not in _VERSIONS or len(frame) == l3 or frame[l3] >> 4 != _VERSIONS[ethertype]:
                raise PacketError(Reason.NOT_IP, "only IP packets can be protected")
        # Too long for the MTU and not to be fragmented: dropped, before it takes a sequence number (E65).
        packet = protect(sa, frame[l3:], self.ctx.config.mtu)
        return frame[: l3 - 2] + _ETHERTYPES[packet[0] >> 4] + packet
