"""A device that puts runs of TCP segments and UDP datagrams together, as it may: the embedded one never does.

What a run has in common decides where it goes on; anything else that arrives ends it. The mutants break what the
merged packet says of itself.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable
from dataclasses import replace

from virtio_ipsec.conformance.frames import checksum
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.features import acceptable
from virtio_ipsec.device.receive import Receiver
from virtio_ipsec.device.state import DataPlaneContext, Received
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, GsoType, HdrFlag, mask

L2, TCP, UDP = 14, 6, 17
VXLAN_PORT, TO_INNER = 4789, 8 + 8 + 14
CWR = 0x80
NEEDS = {
    (TCP, 4): Feature.NET_F_GUEST_TSO4,
    (TCP, 6): Feature.NET_F_GUEST_TSO6,
    (UDP, 4): Feature.NET_F_GUEST_USO4,
    (UDP, 6): Feature.NET_F_GUEST_USO6,
}
TYPES = {(TCP, 4): GsoType.TCPV4, (TCP, 6): GsoType.TCPV6, (UDP, 4): GsoType.UDP_L4, (UDP, 6): GsoType.UDP_L4}


class Place:
    """Where the headers of an IP packet in a frame are."""

    def __init__(self, frame: bytes, at: int = L2) -> None:
        self.at = at
        self.version = frame[at] >> 4
        self.protocol = frame[at + (9 if self.version == 4 else 6)]
        self.l4 = at + (20 if self.version == 4 else 40)
        self.payload = self.l4 + (20 if self.protocol == TCP else 8)
        length = int.from_bytes(frame[at + 2 : at + 4] if self.version == 4 else frame[at + 4 : at + 6])
        self.end = at + length + (0 if self.version == 4 else 40)

    def whole(self, frame: bytes) -> bool:
        """Whether the packet is all there, behind headers without options."""
        return frame[self.at] in {0x45, 0x60} and self.payload <= self.end <= len(frame)

    def pseudo(self, frame: bytes) -> bytes:
        length = self.end - self.l4
        if self.version == 4:
            return frame[self.at + 12 : self.at + 20] + struct.pack("!BBH", 0, self.protocol, length)
        return frame[self.at + 8 : self.at + 40] + struct.pack("!I3xB", length, self.protocol)

    def right(self, frame: bytes) -> bool:
        """Whether all checksums of it are right."""
        if self.version == 4 and checksum(frame[self.at : self.at + 20]):
            return False
        return checksum(self.pseudo(frame) + frame[self.l4 : self.end]) == 0


class LargeReceiver(Receiver):
    """Merges what the driver accepts merged."""

    __slots__ = ("_kind", "_run")

    def __init__(self, ctx: DataPlaneContext) -> None:
        super().__init__(ctx)
        self._run: list[bytes] = []
        self._kind: Hashable = None

    # What the mutants change.

    def allowed(self, key: tuple[int, int], tunnel: bool, congested: bool) -> bool:
        """Whether the driver accepts this merged."""
        wanted = [NEEDS[key]]
        if tunnel:
            wanted.append(Feature.NET_F_GUEST_UDP_TUNNEL_GSO)
        if congested:
            wanted.append(Feature.NET_F_GUEST_ECN)
        return all(map(self.ctx.has, wanted))

    def outer_allowed(self) -> bool:
        """Whether the outer checksum of a tunnel may stay open."""
        return self.ctx.has(Feature.NET_F_GUEST_UDP_TUNNEL_GSO_CSUM)

    def adjusted(self, header: NetHdr, frame: bytearray) -> NetHdr:
        """The header as it is delivered."""
        return header

    # Merging.

    def receive(self, frame: bytes) -> list[Received]:
        kind = self.kind(frame)
        if kind is not None and kind == self._kind:
            self._run.append(frame)
            return []
        done = self.flush()
        if kind is None:
            return done + super().receive(frame)
        self._run, self._kind = [frame], kind
        return done

    def flush(self) -> list[Received]:
        run, self._run, self._kind = self._run, [], None
        if len(run) < 2:
            return [received for frame in run for received in super(LargeReceiver, self).receive(frame)]
        return [self.merged(run)]

    def kind(self, frame: bytes) -> Hashable:
        """What the packets of a run have in common; None for a frame that is delivered as it is."""
        if len(frame) < 80 or frame[12:14] not in {b"\x08\0", b"\x86\xdd"} or frame[L2 + 9] in {0, 50, 51}:
            return None
        outer = Place(frame)
        if outer.protocol not in {TCP, UDP} or not outer.whole(frame):
            return None
        tunnel = outer.protocol == UDP and int.from_bytes(frame[outer.l4 + 2 : outer.l4 + 4]) == VXLAN_PORT
        if tunnel and len(frame) < outer.l4 + TO_INNER + 40:
            return None
        inner = Place(frame, outer.l4 + TO_INNER) if tunnel else outer
        summed = any(frame[outer.l4 + 6 : outer.l4 + 8])
        if not inner.whole(frame):
            return None
        if (inner.protocol, inner.version) not in NEEDS or not inner.right(frame):
            return None
        if tunnel and summed and not (outer.right(frame) and self.outer_allowed()):
            return None
        congested = inner.protocol == TCP and bool(frame[inner.l4 + 13] & CWR)
        if not self.allowed((inner.protocol, inner.version), tunnel, congested):
            return None
        return (
            tunnel,
            summed,
            frame[outer.l4 : outer.l4 + 4],
            frame[inner.l4 : inner.l4 + 4],
            frame[inner.l4 + 13] if inner.protocol == TCP else 0,
            len(frame),
        )

    def merged(self, run: list[bytes]) -> Received:
        outer = Place(run[0])
        tunnel = outer.protocol == UDP and int.from_bytes(run[0][outer.l4 + 2 : outer.l4 + 4]) == VXLAN_PORT
        inner = Place(run[0], outer.l4 + TO_INNER) if tunnel else outer
        frame = bytearray(run[0][: inner.end])
        for more in run[1:]:
            frame += more[inner.payload : inner.end]
        grown = len(frame) - inner.end
        for place in {outer.at: outer, inner.at: inner}.values():
            field = place.at + (2 if place.version == 4 else 4)
            frame[field : field + 2] = (int.from_bytes(frame[field : field + 2]) + grown).to_bytes(2)
            if place.version == 4:
                frame[place.at + 10 : place.at + 12] = bytes(2)
                total = checksum(bytes(frame[place.at : place.at + 20]))
                frame[place.at + 10 : place.at + 12] = total.to_bytes(2)
            place.end += grown
            if place.protocol == UDP and (place is outer and tunnel):
                length = int.from_bytes(frame[place.l4 + 4 : place.l4 + 6]) + grown
                frame[place.l4 + 4 : place.l4 + 6] = length.to_bytes(2)
        offset = 16 if inner.protocol == TCP else 6
        self.leave_open(frame, inner, offset)
        flags = int(HdrFlag.NEEDS_CSUM)
        if tunnel and any(frame[outer.l4 + 6 : outer.l4 + 8]):
            self.leave_open(frame, outer, 6)
            flags |= self.ctx.dialect.flag_udp_tunnel_csum
        gso = int(TYPES[inner.protocol, inner.version])
        if inner.protocol == TCP and frame[inner.l4 + 13] & CWR:
            gso |= GsoType.ECN
        if tunnel:
            gso |= GsoType.UDP_TUNNEL_IPV4 if inner.version == 4 else GsoType.UDP_TUNNEL_IPV6
        header = NetHdr(
            flags=flags,
            gso_type=gso,
            hdr_len=inner.payload,
            gso_size=Place(run[0], inner.at).end - inner.payload,
            csum_start=inner.l4,
            csum_offset=offset,
            num_buffers=1,
            outer_th_offset=outer.l4 if tunnel else 0,
            inner_nh_offset=inner.at if tunnel else 0,
        )
        if self.ctx.has(Feature.NET_F_RSC_EXT) and inner.protocol == TCP and not tunnel:
            header = replace(header, flags=flags | HdrFlag.RSC_INFO, csum_start=len(run), csum_offset=0)
        header = self.adjusted(header, frame)
        return Received(0, self.ctx.header.build(header) + bytes(frame))

    @staticmethod
    def leave_open(frame: bytearray, place: Place, offset: int) -> None:
        """Put the sum of the pseudo header into the checksum field."""
        seed = ~checksum(place.pseudo(bytes(frame))) & 0xFFFF
        frame[place.l4 + offset : place.l4 + offset + 2] = seed.to_bytes(2)


#: What the embedded device does not offer, for it would never do it.
MORE = mask(
    Feature.NET_F_RSC_EXT, Feature.NET_F_GUEST_UDP_TUNNEL_GSO, Feature.NET_F_GUEST_UDP_TUNNEL_GSO_CSUM
)


class Coalescing(Device):
    """Offers coalescing and merged tunnels besides."""

    @property
    def offered_features(self) -> int:
        return super().offered_features | MORE

    def accepts(self, word: int) -> bool:
        return acceptable(word, self.offered_features)


class LargeDevice(Coalescing):
    """The device that does all of it rightly."""

    receiver_class = LargeReceiver
