"""Checksum requests and UDP tunnels on transmit (virtio v1.4 5.1.6.2)."""

from __future__ import annotations

from collections.abc import Iterator

from virtio_ipsec.conformance.monitor.headers import (
    UDP,
    Headers,
    ip_headers,
    is_ipv4_sum_right,
    ones_sum,
    pseudo_sum,
)
from virtio_ipsec.conformance.monitor.judge import Finding, judge
from virtio_ipsec.conformance.monitor.judges.transmit import TUNNEL, base
from virtio_ipsec.conformance.monitor.life import Life, Packet, Run
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, GsoType, HdrFlag

_GSO = Feature.NET_F_HOST_UDP_TUNNEL_GSO
_GSO_CSUM = Feature.NET_F_HOST_UDP_TUNNEL_GSO_CSUM


def tunnelled(run: Run) -> Iterator[tuple[Life, Packet, NetHdr]]:
    """Packets with a UDP-tunnel bit."""
    return (each for each in run.packets() if each[2].gso_type & TUNNEL)


def innermost(packet: Packet, header: NetHdr) -> Headers:
    """The headers that the checksum fields are about."""
    if header.gso_type & TUNNEL and header.inner_nh_offset:
        return ip_headers(packet.frame, header.inner_nh_offset)
    return packet.headers


def requested(run: Run) -> Iterator[tuple[Life, Packet, NetHdr, Headers]]:
    """Packets whose transport checksum the device is to complete."""
    for life, packet, header in run.packets():
        if header.flags & HdrFlag.NEEDS_CSUM and life.has(Feature.NET_F_CSUM):
            yield life, packet, header, innermost(packet, header)


@judge("NET-TX-DRV-18", when="a checksum request was made for a packet with an IPv4 header")
def earlier_sums(run: Run) -> Iterator[Finding]:
    """The IPv4 header checksums in front of csum_start are right.

    Of a packet that is segmented the note of the text demands nothing in front of the transport header.
    """
    for _, packet, header, inner in requested(run):
        for found in {packet.headers, inner}:
            if found.version == 4 and found.network < header.csum_start and not base(header):
                right = is_ipv4_sum_right(packet.frame, found.network)
                yield Finding(right, "a right IPv4 header checksum", "a wrong one", packet.at)


@judge("NET-TX-DRV-19", when="a checksum request was made")
def pseudo_header(run: Run) -> Iterator[Finding]:
    """The checksum field holds the sum of the pseudo header."""
    for _, packet, _, inner in requested(run):
        if inner.transport:
            wanted = pseudo_sum(packet.frame, inner)
            seen = int.from_bytes(packet.frame[inner.sum_at : inner.sum_at + 2], "big")
            yield Finding(seen % 0xFFFF == wanted % 0xFFFF, f"{wanted:#06x}", f"{seen:#06x}", packet.at)


@judge("NET-TX-DRV-20", when="a checksum request was made")
def checksum_offsets(run: Run) -> Iterator[Finding]:
    """Summing from csum_start to the packet's end, into csum_start + csum_offset, completes the checksum.

    The sum of the pseudo header is put in first as it should be: what the driver put there is another clause's.
    """
    for _, packet, header, inner in requested(run):
        if not inner.transport:
            continue
        data = bytearray(packet.frame)
        data[inner.sum_at : inner.sum_at + 2] = pseudo_sum(packet.frame, inner).to_bytes(2, "big")
        start, at = header.csum_start, header.csum_start + header.csum_offset
        if at + 2 <= len(data):
            data[at : at + 2] = (ones_sum(bytes(data[start:])) ^ 0xFFFF).to_bytes(2, "big")
        seed = pseudo_sum(packet.frame, inner).to_bytes(2, "big")
        right = ones_sum(seed, bytes(data[inner.transport : inner.end])) == 0xFFFF
        yield Finding(
            right,
            f"a right checksum at {inner.sum_at} with csum_start {inner.transport}",
            f"a wrong one with csum_start {start} and csum_offset {header.csum_offset}",
            packet.at,
        )


@judge("NET-TX-DRV-10", "NET-TX-DRV-28", when="a packet was sent without VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO")
def tunnel_feature(run: Run) -> Iterator[Finding]:
    """UDP-tunnel bits only with VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO."""
    for life, packet, header in run.packets():
        if not life.has(_GSO):
            yield Finding(
                not header.gso_type & TUNNEL, "no tunnel bit", f"gso_type {header.gso_type:#x}", packet.at
            )


@judge("NET-TX-DRV-11", when="a packet with a UDP-tunnel bit was sent with the feature negotiated")
def tunnel_version(run: Run) -> Iterator[Finding]:
    """The UDP-tunnel bit agrees with the IP version of the inner header."""
    for life, packet, header in tunnelled(run):
        at = header.inner_nh_offset
        if life.has(_GSO) and header.gso_type & TUNNEL != TUNNEL and 0 < at < len(packet.frame):
            version = packet.frame[at] >> 4
            wanted = GsoType.UDP_TUNNEL_IPV4 if version == 4 else GsoType.UDP_TUNNEL_IPV6
            yield Finding(
                bool(header.gso_type & wanted),
                f"{wanted.name} for inner version {version}",
                f"gso_type {header.gso_type:#x}",
                packet.at,
            )


def _outer_sum(packet: Packet) -> tuple[int, bool]:
    """The outer UDP checksum, and whether it asks for nothing: zero, or right as it stands or for each segment."""
    found = packet.headers
    value = int.from_bytes(packet.frame[found.sum_at : found.sum_at + 2], "big")
    if not value:
        return 0, True
    data = packet.frame[found.transport : found.end]
    return value, ones_sum(pseudo_sum(packet.frame, found).to_bytes(2, "big"), data) == 0xFFFF


def _has_outer_udp(packet: Packet) -> bool:
    return packet.headers.protocol == UDP and packet.headers.transport > 0


@judge(
    "NET-TX-DRV-12",
    when="a UDP-tunnel segmentation request was made with both features, or its checksum flag was set",
)
def tunnel_checksum_request(run: Run) -> Iterator[Finding]:
    """Outer checksums are left open only with both tunnel features, and then the tunnel-checksum flag says so."""
    flag = run.dialect.flag_udp_tunnel_csum
    for life, packet, header in tunnelled(run):
        both = life.has(_GSO) and life.has(_GSO_CSUM)
        if header.flags & flag:
            yield Finding(both, "both tunnel features", f"flags {header.flags:#x} without them", packet.at)
        elif both and _has_outer_udp(packet):
            value, done = _outer_sum(packet)
            yield Finding(done, "the flag with an open outer checksum", f"{value:#06x}, no flag", packet.at)


@judge(
    "NET-TX-DRV-13", "NET-TX-DRV-29", when="a packet was sent without VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO_CSUM"
)
def tunnel_checksum_feature(run: Run) -> Iterator[Finding]:
    """The tunnel-checksum flag only with VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO_CSUM."""
    flag = run.dialect.flag_udp_tunnel_csum
    for life, packet, header in run.packets():
        if not life.has(_GSO_CSUM):
            yield Finding(not header.flags & flag, "no such flag", f"flags {header.flags:#x}", packet.at)


@judge("NET-TX-DRV-14", when="a packet with a UDP-tunnel bit was sent")
def tunnel_not_fragmented(run: Run) -> Iterator[Finding]:
    """A UDP-tunnel bit never stands with the UDP fragmentation type."""
    for _, packet, header in tunnelled(run):
        yield Finding(
            base(header) != GsoType.UDP,
            "another type than UDP",
            f"gso_type {header.gso_type:#x}",
            packet.at,
        )


@judge("NET-TX-DRV-15", when="a packet with a UDP-tunnel bit was sent")
def one_tunnel_bit(run: Run) -> Iterator[Finding]:
    """Never both UDP-tunnel bits."""
    for _, packet, header in tunnelled(run):
        yield Finding(
            header.gso_type & TUNNEL != TUNNEL, "one tunnel bit", f"gso_type {header.gso_type:#x}", packet.at
        )


@judge("NET-TX-DRV-16", when="a packet with the tunnel-checksum flag was sent with the feature negotiated")
def tunnel_flag_needs_bit(run: Run) -> Iterator[Finding]:
    """The tunnel-checksum flag only together with a UDP-tunnel bit."""
    for life, packet, header in run.packets():
        if life.has(_GSO_CSUM) and header.flags & run.dialect.flag_udp_tunnel_csum:
            yield Finding(
                bool(header.gso_type & TUNNEL), "a tunnel bit", f"gso_type {header.gso_type:#x}", packet.at
            )


@judge("NET-TX-DRV-25", when="a packet with a UDP-tunnel bit was sent with the feature negotiated")
def tunnel_offsets(run: Run) -> Iterator[Finding]:
    """outer_th_offset is that of the outer UDP header, inner_nh_offset that of the inner IP header."""
    for life, packet, header in tunnelled(run):
        if not life.has(_GSO):
            continue
        outer = packet.headers.transport if _has_outer_udp(packet) else None
        yield Finding(
            header.outer_th_offset == outer,
            f"outer_th_offset {outer}",
            f"{header.outer_th_offset}",
            packet.at,
        )
        inner = innermost(packet, header)
        behind = outer is not None and header.inner_nh_offset >= outer + 8
        yield Finding(
            behind and inner.transport == header.csum_start,
            "an IP header at inner_nh_offset, its transport header at csum_start",
            f"inner_nh_offset {header.inner_nh_offset}, csum_start {header.csum_start}",
            packet.at,
        )


@judge(
    "NET-TX-DRV-26",
    when="a UDP-tunnel packet with the tunnel-checksum flag was sent with the feature negotiated",
)
def outer_pseudo_header(run: Run) -> Iterator[Finding]:
    """With the tunnel-checksum flag the outer UDP checksum field holds the sum of the outer pseudo header."""
    for life, packet, header in tunnelled(run):
        flagged = header.flags & run.dialect.flag_udp_tunnel_csum
        if life.has(_GSO_CSUM) and flagged and _has_outer_udp(packet):
            value, _ = _outer_sum(packet)
            wanted = pseudo_sum(packet.frame, packet.headers)
            yield Finding(value % 0xFFFF == wanted % 0xFFFF, f"{wanted:#06x}", f"{value:#06x}", packet.at)


@judge("NET-TX-DRV-27", when="a UDP-tunnel segmentation request was made without HOST_UDP_TUNNEL_GSO_CSUM")
def outer_sum_without_feature(run: Run) -> Iterator[Finding]:
    """Without the tunnel-checksum feature the outer UDP checksum is zero or final.

    Final for each segment can be a sum that is not that of the whole: it is accepted where the payload is a multiple
    of gso_size and the outer length is a segment's.
    """
    for life, packet, _ in tunnelled(run):
        if life.has(_GSO) and not life.has(_GSO_CSUM) and _has_outer_udp(packet):
            value, done = _outer_sum(packet)
            length = int.from_bytes(
                packet.frame[packet.headers.transport + 4 : packet.headers.transport + 6], "big"
            )
            of_segment = length < packet.headers.end - packet.headers.transport
            yield Finding(done or of_segment, "0 or a final checksum", f"{value:#06x}", packet.at)
