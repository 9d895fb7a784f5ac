"""Transmit headers: size, flags, segmentation types and lengths (virtio v1.4 5.1.6.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from virtio_ipsec.conformance.monitor.headers import TCP, frame_headers, ip_headers, is_sum_right
from virtio_ipsec.conformance.monitor.judge import Finding, judge
from virtio_ipsec.conformance.monitor.life import Life, Packet, Run
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, GsoType, HdrFlag

TUNNEL = int(GsoType.UDP_TUNNEL_IPV4 | GsoType.UDP_TUNNEL_IPV6)
HOST_GSO = (
    Feature.NET_F_HOST_TSO4,
    Feature.NET_F_HOST_TSO6,
    Feature.NET_F_HOST_UFO,
    Feature.NET_F_HOST_USO,
)
_SIZES = (12, 20, 24, 26, 32)
_ECN_FLAGS = 0xC0  # CWR and ECE


def base(header: NetHdr) -> int:
    """gso_type without its flag bits."""
    return header.gso_type & ~(TUNNEL | GsoType.ECN)


def segmented(run: Run) -> Iterator[tuple[Life, Packet, NetHdr]]:
    """Packets that the device is to segment."""
    return ((life, packet, header) for life, packet, header in run.packets() if base(header))


@judge("NET-TX-DRV-01", when="a frame that can be recognised was sent")
def header_size(run: Run) -> Iterator[Finding]:
    """The frame begins behind a header of the negotiated size.

    Judged by where an Ethernet header is found: at the negotiated size, or at that of another header.
    """
    for life in run.lives:
        size = life.header.size
        for packet in life.packets:
            others = [
                other for other in _SIZES if other != size and frame_headers(packet.raw[other:]).is_plausible
            ]
            if packet.headers.is_plausible or others:
                seen = f"a frame behind {size if packet.headers.is_plausible else others[0]} bytes"
                yield Finding(
                    packet.headers.is_plausible, f"the frame behind a header of {size} bytes", seen, packet.at
                )


@judge("NET-TX-DRV-02", when="a packet was sent")
def num_buffers(run: Run) -> Iterator[Finding]:
    """num_buffers is zero in every transmit header."""
    for _, packet, header in run.packets():
        yield Finding(header.num_buffers == 0, "num_buffers 0", f"{header.num_buffers}", packet.at)


@judge("NET-TX-DRV-03", when="a packet was sent without VIRTIO_NET_F_CSUM")
def flags_without_csum(run: Run) -> Iterator[Finding]:
    """Without VIRTIO_NET_F_CSUM flags are zero, the SECURITY bit aside, and checksums are complete."""
    for life, packet, header in run.packets():
        if life.has(Feature.NET_F_CSUM):
            continue
        allowed = run.dialect.flag_security if life.has(Feature.NET_F_IPSEC) else 0
        yield Finding(header.flags & ~allowed == 0, "flags 0", f"{header.flags:#x}", packet.at)
        if packet.headers.transport:
            right = is_sum_right(packet.frame, packet.headers)
            yield Finding(right, "a complete transport checksum", "a wrong one", packet.at, advisory=True)


@judge("NET-TX-DRV-04", when="a packet gave outer_nh_offset")
def outer_network_offset(run: Run) -> Iterator[Finding]:
    """A nonzero outer_nh_offset points at an IP header."""
    for life, packet, header in run.packets():
        at = header.outer_nh_offset
        if life.has(Feature.NET_F_OUT_NET_HEADER) and at:
            version = packet.frame[at] >> 4 if at < len(packet.frame) else 0
            yield Finding(
                at == packet.headers.network or version in (4, 6),
                f"an IP header at outer_nh_offset {at}",
                f"version {version} there",
                packet.at,
            )


def _gso_needs(gso: GsoType, feature: Feature) -> Callable[[Run], Iterator[Finding]]:
    def body(run: Run) -> Iterator[Finding]:
        for life, packet, header in run.packets():
            if not life.has(feature):
                yield Finding(
                    base(header) != gso,
                    f"no gso_type {gso.name} without {feature.name}",
                    f"gso_type {header.gso_type:#x}",
                    packet.at,
                )

    body.__doc__ = f"gso_type {gso.name} only with VIRTIO_{feature.name}."
    return body


for _clause, _gso, _feature in (
    ("NET-TX-DRV-05", GsoType.TCPV4, Feature.NET_F_HOST_TSO4),
    ("NET-TX-DRV-06", GsoType.TCPV6, Feature.NET_F_HOST_TSO6),
    ("NET-TX-DRV-07", GsoType.UDP, Feature.NET_F_HOST_UFO),
    ("NET-TX-DRV-08", GsoType.UDP_L4, Feature.NET_F_HOST_USO),
):
    judge(_clause, when=f"a packet was sent without VIRTIO_{_feature.name}")(_gso_needs(_gso, _feature))


@judge("NET-TX-DRV-09", when="a TCP packet with CWR or ECE was given for segmentation")
def ecn(run: Run) -> Iterator[Finding]:
    """Segmentation of TCP packets with CWR or ECE needs HOST_ECN (else a warning), and the ECN bit of gso_type."""
    for life, packet, header in segmented(run):
        found = packet.headers
        if base(header) not in (GsoType.TCPV4, GsoType.TCPV6) or header.gso_type & TUNNEL:
            continue
        if found.protocol != TCP or not found.transport:
            continue
        if packet.frame[found.transport + 13] & _ECN_FLAGS:
            if life.has(Feature.NET_F_HOST_ECN):
                has_bit = bool(header.gso_type & GsoType.ECN)
                yield Finding(has_bit, "the ECN bit", f"gso_type {header.gso_type:#x}", packet.at)
            else:
                yield Finding(
                    False, "no such packet without HOST_ECN", "CWR or ECE is set", packet.at, advisory=True
                )


@judge("NET-TX-DRV-21", when="a packet was sent without any host segmentation feature")
def gso_none(run: Run) -> Iterator[Finding]:
    """gso_type is NONE when no host segmentation feature is negotiated."""
    for life, packet, header in run.packets():
        if not any(life.has(feature) for feature in HOST_GSO):
            yield Finding(header.gso_type == 0, "gso_type NONE", f"{header.gso_type:#x}", packet.at)


@judge("NET-TX-DRV-22", when="a packet was given for segmentation")
def gso_complete(run: Run) -> Iterator[Finding]:
    """A segmentation request asks for the checksum and gives a segment size."""
    for _, packet, header in segmented(run):
        asks = bool(header.flags & HdrFlag.NEEDS_CSUM)
        yield Finding(asks, "NEEDS_CSUM", f"flags {header.flags:#x}", packet.at)
        yield Finding(header.gso_size > 0, "a gso_size", "0", packet.at)


def _header_length(packet: Packet, header: NetHdr) -> int | None:
    """The length of all headers, through the inner ones where there is a tunnel; None when it cannot be told."""
    found = packet.headers
    if header.gso_type & TUNNEL:
        found = ip_headers(packet.frame, header.inner_nh_offset)
    return found.payload if found.transport else None


@judge("NET-TX-DRV-23", when="a packet was given for segmentation with VIRTIO_NET_F_GUEST_HDRLEN")
def exact_header_length(run: Run) -> Iterator[Finding]:
    """With VIRTIO_NET_F_GUEST_HDRLEN hdr_len of a segmentation request is the exact length of the headers."""
    for life, packet, header in segmented(run):
        wanted = _header_length(packet, header)
        if life.has(Feature.NET_F_GUEST_HDRLEN) and wanted is not None:
            yield Finding(header.hdr_len == wanted, f"hdr_len {wanted}", f"{header.hdr_len}", packet.at)


@judge(
    "NET-TX-DRV-24",
    when="a packet was sent with host segmentation negotiated, whose hdr_len need not be exact",
)
def enough_header_length(run: Run) -> Iterator[Finding]:
    """hdr_len is not shorter than the headers: of a packet that is not segmented, or without GUEST_HDRLEN."""
    for life, packet, header in run.packets():
        exact = life.has(Feature.NET_F_GUEST_HDRLEN) and base(header)
        wanted = _header_length(packet, header)
        if not exact and wanted is not None and any(life.has(feature) for feature in HOST_GSO):
            yield Finding(
                header.hdr_len >= wanted, f"hdr_len {wanted} or more", f"{header.hdr_len}", packet.at
            )


@judge("NET-TX-DRV-30", when="VIRTIO_NET_F_GUEST_HDRLEN was offered, and accepted or packets were segmented")
def accepts_header_length(run: Run) -> Iterator[Finding]:
    """GUEST_HDRLEN is accepted by a driver that knows exact header lengths."""
    for life in run.lives:
        if life.accepted is None or not life.offered >> Feature.NET_F_GUEST_HDRLEN & 1:
            continue
        at = life.begin + len(life.events) - 1
        if life.accepted >> Feature.NET_F_GUEST_HDRLEN & 1:
            yield Finding(True, "the feature accepted", "accepted", at)
            continue
        wanted = [
            (packet, header.hdr_len == _header_length(packet, header))
            for packet, header in ((p, p.header) for p in life.packets)
            if header is not None and base(header)
        ]
        if wanted:
            exact = all(is_exact for _, is_exact in wanted)
            yield Finding(
                not exact,
                "GUEST_HDRLEN accepted",
                f"not accepted, and hdr_len exact in {len(wanted)} requests",
                wanted[0][0].at,
            )


@judge("NET-TX-DRV-31", when="a packet was sent")
def no_receive_flags(run: Run) -> Iterator[Finding]:
    """DATA_VALID and RSC_INFO are never set on transmit."""
    wrong = HdrFlag.DATA_VALID | HdrFlag.RSC_INFO
    for _, packet, header in run.packets():
        yield Finding(
            not header.flags & wrong, "neither DATA_VALID nor RSC_INFO", f"flags {header.flags:#x}", packet.at
        )


@judge("NET-TX-DRV-32", when="a packet with a UDP-tunnel bit was sent")
def no_valid_tunnel(run: Run) -> Iterator[Finding]:
    """DATA_VALID never stands together with a UDP-tunnel bit."""
    for _, packet, header in run.packets():
        if header.gso_type & TUNNEL:
            valid = bool(header.flags & HdrFlag.DATA_VALID)
            yield Finding(not valid, "no DATA_VALID", f"flags {header.flags:#x}", packet.at)
