"""Checksum completion and segmentation of what the driver sends (virtio v1.4 5.1.6.2).

Everything here refuses by :class:`~virtio_ipsec.errors.PacketError`, with ``BAD_CHECKSUM_REQUEST`` or
``BAD_GSO``. ``hdr_len`` is never looked at: the headers are (NET-TX-DEV-05). Checksum seeds are taken as the
driver gave them, that is the pseudo header sum of the packet as queued, and corrected for each segment's
length; so a routing header's final destination, which only the driver needs to know, stays right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from virtio_ipsec.device.checksum import complete_checksum, ipv4_checksum
from virtio_ipsec.device.frame import (
    IPV4,
    IPV6,
    PROTO_TCP,
    PROTO_UDP,
    FrameView,
    ipv4_view,
    ipv6_view,
    network_offset,
)
from virtio_ipsec.device.pieces import pieces
from virtio_ipsec.device.ufo import fragment_udp
from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, GsoType, HdrFlag, has

# Plain ints: arithmetic on enum members costs a microsecond each on this path.
_NEEDS_CSUM = int(HdrFlag.NEEDS_CSUM)
_TUNNEL4 = int(GsoType.UDP_TUNNEL_IPV4)
#: Both tunnel bits of `gso_type`.
TUNNELS = _TUNNEL4 | int(GsoType.UDP_TUNNEL_IPV6)
_ECN = int(GsoType.ECN)
_UFO = int(GsoType.UDP)

_FIN_PSH = 0x09
_CWR = 0x80


@dataclass(frozen=True, slots=True)
class _Kind:
    """What one base `gso_type` demands: the feature, IP versions, protocol and checksum field's place."""

    feature: Feature
    versions: tuple[int, ...]
    protocol: int
    checksum: int


_KINDS = {
    int(GsoType.TCPV4): _Kind(Feature.NET_F_HOST_TSO4, (4,), PROTO_TCP, 16),
    int(GsoType.TCPV6): _Kind(Feature.NET_F_HOST_TSO6, (6,), PROTO_TCP, 16),
    int(GsoType.UDP): _Kind(Feature.NET_F_HOST_UFO, (4, 6), PROTO_UDP, 6),
    int(GsoType.UDP_L4): _Kind(Feature.NET_F_HOST_USO, (4, 6), PROTO_UDP, 6),
}


def check_gso(hdr: NetHdr, features: int) -> int:
    """The base `gso_type` of ``hdr`` (0: no segmentation), after the refusal rules of the device.

    The two tunnel rules hold whatever was negotiated (NET-TX-DEV-06, NET-TX-DEV-08); a type whose feature was
    not negotiated, or GSO without NEEDS_CSUM or `gso_size`, is refused because a driver must not send it.
    """
    gso = hdr.gso_type
    if not gso:
        return 0
    base = gso & ~(TUNNELS | _ECN)
    tunnel = gso & TUNNELS
    if tunnel == TUNNELS:
        raise PacketError(Reason.BAD_GSO, "both tunnel bits are set")
    if not base or (tunnel and hdr.flags & HdrFlag.DATA_VALID):
        raise PacketError(Reason.BAD_GSO, "tunnel or ECN bit without segmentation, or with DATA_VALID")
    kind = _KINDS.get(base)
    if kind is None or not has(features, kind.feature):
        raise PacketError(Reason.BAD_GSO, f"gso_type {gso:#x} is unknown or not negotiated")
    if tunnel and (base == _UFO or not has(features, Feature.NET_F_HOST_UDP_TUNNEL_GSO)):
        raise PacketError(Reason.BAD_GSO, "tunnel segmentation not negotiated, or of UFO")
    if gso & _ECN and (kind.protocol != PROTO_TCP or not has(features, Feature.NET_F_HOST_ECN)):
        raise PacketError(Reason.BAD_GSO, "ECN bit not negotiated, or not on TCP")
    if not hdr.flags & _NEEDS_CSUM or not hdr.gso_size:
        raise PacketError(Reason.BAD_GSO, "segmentation without NEEDS_CSUM or gso_size")
    return base


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where to cut: offsets of the headers to replicate, and how many bytes each segment carries.

    ``tunnel_l3`` is the outer network header of a UDP tunnel, or 0 when there is no tunnel.
    """

    l3: int
    version: int
    l4: int
    protocol: int
    checksum: int
    payload: int
    size: int
    tunnel_l3: int = 0
    tunnel_version: int = 0
    outer_th: int = 0
    outer_checksum: bool = False


def segment(
    frame: bytes, hdr: NetHdr, base: int, features: int, rng: Callable[[int], bytes], l3: int = 0
) -> list[bytes]:
    """Cut ``frame`` as ``hdr`` asks; ``base`` is what :func:`check_gso` returned and not 0.

    ``l3`` is a checked `outer_nh_offset`, or 0 to find the network header here. The frames carry finished
    checksums. ``rng`` supplies the Identification of IPv6 fragments.
    """
    plan = _plan(frame, hdr, base, features, l3)
    if base == _UFO:
        return fragment_udp(frame, plan.l3, plan.version, plan.l4, plan.size, rng)
    count = pieces(len(frame) - plan.payload, plan.size, plan.payload)
    return [_segment(frame, plan, index, index == count - 1) for index in range(count)]


def _plan(frame: bytes, hdr: NetHdr, base: int, features: int, l3: int) -> _Plan:
    """Check the packet against what its `gso_type` claims and find its headers; PacketError(BAD_GSO)."""
    kind = _KINDS[base]
    outer = inner = _network(frame, l3)
    tunneled = bool(hdr.gso_type & TUNNELS)
    if tunneled:
        inner_at = hdr.inner_nh_offset
        if outer.fragment or outer.protocol != PROTO_UDP or hdr.outer_th_offset != outer.l4:
            raise PacketError(Reason.BAD_GSO, "outer_th_offset is not the outer UDP header")
        if not outer.l4 + 8 <= inner_at < len(frame):
            raise PacketError(Reason.BAD_GSO, "inner_nh_offset is not within the tunnel")
        wanted = ipv4_view if hdr.gso_type & _TUNNEL4 else ipv6_view
        inner = wanted(frame, inner_at, oversize=True)
    l4 = inner.transport
    if inner.version not in kind.versions or inner.protocol != kind.protocol or not l4:
        raise PacketError(Reason.BAD_GSO, "the packet is not of the type that gso_type names")
    if hdr.csum_start != l4 or hdr.csum_offset != kind.checksum:
        raise PacketError(Reason.BAD_GSO, "csum_start and csum_offset are not the transport checksum")
    payload = l4 + (20 if kind.protocol == PROTO_TCP else 8)
    if payload <= len(frame) and kind.protocol == PROTO_TCP:
        payload = l4 + (frame[l4 + 12] >> 4) * 4
        if payload < l4 + 20:
            raise PacketError(Reason.BAD_GSO, "TCP data offset below 5")
    if payload > len(frame):
        raise PacketError(Reason.BAD_GSO, "truncated transport header")
    largest = min(hdr.gso_size, len(frame) - payload) + payload - outer.l3 - (40 if outer.version == 6 else 0)
    if largest > 0xFFFF and base != _UFO:
        raise PacketError(Reason.BAD_GSO, "a segment would exceed its length field")
    plan = _Plan(inner.l3, inner.version, l4, kind.protocol, kind.checksum, payload, hdr.gso_size)
    return _with_tunnel(frame, hdr, features, plan, outer) if tunneled else plan


def _with_tunnel(frame: bytes, hdr: NetHdr, features: int, plan: _Plan, outer: FrameView) -> _Plan:
    """Add the outer headers. A finished outer checksum fits only segments that are all equally long."""
    offload = bool(hdr.flags & HdrFlag.UDP_TUNNEL_CSUM)
    if offload and not has(features, Feature.NET_F_HOST_UDP_TUNNEL_GSO_CSUM):
        raise PacketError(Reason.BAD_GSO, "outer checksum offload was not negotiated")
    at = outer.l4
    if not offload and frame[at + 6 : at + 8] != b"\0\0":
        body = len(frame) - plan.payload
        length = plan.payload - at + min(plan.size, body)
        if (body > plan.size and body % plan.size) or frame[at + 4] << 8 | frame[at + 5] != length:
            raise PacketError(Reason.BAD_GSO, "outer UDP checksum does not hold for every segment")
    return replace(
        plan, tunnel_l3=outer.l3, tunnel_version=outer.version, outer_th=at, outer_checksum=offload
    )


def _network(frame: bytes, l3: int) -> FrameView:
    """The (outer) network header, reaching to the end of the frame."""
    ethertype = frame[l3 - 2] << 8 | frame[l3 - 1] if l3 else 0
    if not l3:
        l3, ethertype = network_offset(frame)
    if ethertype == IPV4:
        return ipv4_view(frame, l3, oversize=True)
    if ethertype == IPV6:
        return ipv6_view(frame, l3, oversize=True)
    raise PacketError(Reason.BAD_GSO, "segmentation of a frame that is not IP")


def _segment(frame: bytes, plan: _Plan, index: int, last: bool) -> bytes:
    """Segment number ``index``: headers as queued, then what each protocol wants changed, then checksums."""
    start = plan.payload + index * plan.size
    out = bytearray(frame[: plan.payload])
    out += frame[start : start + plan.size]
    l4 = plan.l4
    length = len(out) - l4
    if plan.protocol == PROTO_TCP:
        sequence = int.from_bytes(out[l4 + 4 : l4 + 8], "big") + index * plan.size
        out[l4 + 4 : l4 + 8] = (sequence & 0xFFFFFFFF).to_bytes(4, "big")
        # What ends the data stands in the last segment, the answer to congestion in the first (RFC 3168).
        if not last:
            out[l4 + 13] &= ~_FIN_PSH & 0xFF
        if index:
            out[l4 + 13] &= ~_CWR & 0xFF
    else:
        out[l4 + 4 : l4 + 6] = length.to_bytes(2, "big")
    _set_ip_length(out, plan.l3, plan.version, index)
    _reseed(out, l4 + plan.checksum, length - (len(frame) - l4))
    complete_checksum(out, l4, plan.checksum)
    if plan.tunnel_l3:
        outer = plan.outer_th
        length = len(out) - outer
        out[outer + 4 : outer + 6] = length.to_bytes(2, "big")
        _set_ip_length(out, plan.tunnel_l3, plan.tunnel_version, index)
        if plan.outer_checksum:
            _reseed(out, outer + 6, length - (len(frame) - outer))
            complete_checksum(out, outer, 6)
    return bytes(out)


def _reseed(out: bytearray, at: int, difference: int) -> None:
    """Correct a pseudo header sum for another transport length."""
    seed = (int.from_bytes(out[at : at + 2], "big") + difference) % 0xFFFF
    out[at : at + 2] = seed.to_bytes(2, "big")


def _set_ip_length(out: bytearray, l3: int, version: int, index: int) -> None:
    """Length of segment ``index``; for IPv4 also its Identification, counted up, and the header checksum."""
    if version == 6:
        out[l3 + 4 : l3 + 6] = (len(out) - l3 - 40).to_bytes(2, "big")
        return
    out[l3 + 2 : l3 + 4] = (len(out) - l3).to_bytes(2, "big")
    ident = int.from_bytes(out[l3 + 4 : l3 + 6], "big") + index
    out[l3 + 4 : l3 + 6] = (ident & 0xFFFF).to_bytes(2, "big")
    ipv4_checksum(out, l3)
