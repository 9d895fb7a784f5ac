"""What a segmentation request may rest on: headers, not hints; and the tunnel requests that a device refuses."""

from __future__ import annotations

import struct
from dataclasses import replace

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.frames import TCP, Shape, checksum, pseudo_header
from virtio_ipsec.conformance.packets import PEER_MAC
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, GsoType, HdrFlag

ETHERNET, IPV4, TCP_HEADER = 14, 20, 20
SEGMENT = 500
#: What a driver that asks for tunnel segmentation accepts with it (virtio v1.4 5.1.3.1).
TUNNELS = (
    Feature.NET_F_CSUM,
    Feature.NET_F_HOST_TSO4,
    Feature.NET_F_HOST_TSO6,
    Feature.NET_F_HOST_USO,
    Feature.NET_F_HOST_UDP_TUNNEL_GSO,
)
TUNNEL_BITS = GsoType.UDP_TUNNEL_IPV4 | GsoType.UDP_TUNNEL_IPV6


def _open_checksum(packet: bytes, at: int) -> bytes:
    """An IPv4 TCP packet whose checksum field holds the sum of the pseudo header: the device completes it."""
    seed = ~checksum(pseudo_header(4, TCP, len(packet) - IPV4)) & 0xFFFF
    return packet[:at] + seed.to_bytes(2) + packet[at + 2 :]


def _large(bench: Bench, payload: int = 3 * SEGMENT - 100) -> tuple[bytes, NetHdr]:
    """A frame of several TCP segments, and a header that asks for them, hdr_len as it ought to be."""
    packet = _open_checksum(frames.packet(bench.octets(payload), Shape(4, TCP)), IPV4 + 16)
    header = NetHdr(
        flags=HdrFlag.NEEDS_CSUM,
        gso_type=GsoType.TCPV4,
        hdr_len=ETHERNET + IPV4 + TCP_HEADER,
        gso_size=SEGMENT,
        csum_start=ETHERNET + IPV4,
        csum_offset=16,
    )
    return frames.ethernet(packet, PEER_MAC, bench.packets.mac), header


def _payload(left: list[bytes]) -> bytes:
    """What the segments carry together."""
    return b"".join(frames.ip_of(frame)[IPV4 + TCP_HEADER :] for frame in left)


@case("tx-header-length-is-a-hint", "NET-TX-DEV-05", needs=("wire",))
def tx_header_length_is_a_hint(bench: Bench) -> None:
    """Without VIRTIO_NET_F_GUEST_HDRLEN the segments of a large packet do not depend on hdr_len.

    One large TCP packet is sent with hdr_len as it ought to be, with 0, with 1 and with 0xffff: the same segments
    leave each time.
    """
    bench.start(want=(Feature.NET_F_CSUM, Feature.NET_F_HOST_TSO4), without=(Feature.NET_F_GUEST_HDRLEN,))
    frame, header = _large(bench)
    right = bench.packets.transmit(frame, header)
    whole = len(right) == 3 and _payload(right) == frame[ETHERNET + IPV4 + TCP_HEADER :]
    bench.require("NET-TX-DEV-05", whole, "three segments leave", f"{len(right)} frames")
    for hint in (0, 1, 0xFFFF):
        left = bench.packets.transmit(frame, replace(header, hdr_len=hint))
        same = len(left) == len(right) and all(map(bench.same, right, left))
        bench.check("NET-TX-DEV-05", same, f"hdr_len {hint}: the same segments leave", f"{len(left)} frames")


@case("tx-header-length-nonsense", "NET-TX-DEV-04", needs=("wire",))
def tx_header_length_nonsense(bench: Bench) -> None:
    """With VIRTIO_NET_F_GUEST_HDRLEN an absurd hdr_len harms nothing but its own packet.

    The device may take hdr_len for the size of the headers. A large packet with a hdr_len beyond its end is sent;
    whatever becomes of it, the next one leaves in whole segments.
    """
    bench.start(want=(Feature.NET_F_CSUM, Feature.NET_F_HOST_TSO4, Feature.NET_F_GUEST_HDRLEN))
    frame, header = _large(bench)
    for hint in (0, 0xFFFF):
        bench.packets.transmit(frame, replace(header, hdr_len=hint))
        left = bench.packets.transmit(frame, header)
        whole = _payload(left) == frame[ETHERNET + IPV4 + TCP_HEADER :]
        bench.check("NET-TX-DEV-04", whole, f"after hdr_len {hint} the next packet leaves whole", len(left))


def _tunnelled(bench: Bench) -> tuple[bytes, NetHdr]:
    """A frame with a TCP packet in a UDP tunnel (VXLAN), and a header that asks for its segments."""
    inner = _open_checksum(frames.packet(bench.octets(2 * SEGMENT), Shape(4, TCP)), IPV4 + 16)
    vxlan = struct.pack("!II", 0x0800_0000, 42 << 8)
    outer = frames.packet(vxlan + PEER_MAC + bench.packets.mac + b"\x08\0" + inner, Shape(dport=4789))
    outer = outer[: IPV4 + 6] + bytes(2) + outer[IPV4 + 8 :]  # no outer UDP checksum
    inner_at = ETHERNET + IPV4 + 8 + 8 + ETHERNET
    header = NetHdr(
        flags=HdrFlag.NEEDS_CSUM,
        gso_type=GsoType.TCPV4 | GsoType.UDP_TUNNEL_IPV4,
        hdr_len=inner_at + IPV4 + TCP_HEADER,
        gso_size=SEGMENT,
        csum_start=inner_at + IPV4,
        csum_offset=16,
        outer_th_offset=ETHERNET + IPV4,
        inner_nh_offset=inner_at,
    )
    return frames.ethernet(outer, PEER_MAC, bench.packets.mac), header


@case("tx-tunnel-refusals", "NET-TX-DEV-06", "NET-TX-DEV-08", "NET-TX-DEV-09", needs=("wire",))
def tx_tunnel_refusals(bench: Bench) -> None:
    """A tunnel request that contradicts itself is refused, and the next packet is not.

    Both tunnel bits; a tunnel bit without NEEDS_CSUM, with DATA_VALID, and without a segmentation type; the flag of
    the outer checksum without a tunnel bit. Nothing leaves, the buffers come back, and the right request, sent in
    between, leaves in two segments.
    """
    bench.start(want=(*TUNNELS, Feature.NET_F_HOST_UDP_TUNNEL_GSO_CSUM))
    frame, good = _tunnelled(bench)
    right = bench.packets.transmit(frame, good)
    bench.require("NET-TX-DEV-08", len(right) == 2, "two segments of a right request leave", len(right))
    codec = bench.packets.codec

    def altered(**fields: int) -> bytes:
        return codec.build(replace(good, **fields))

    needs, valid = HdrFlag.NEEDS_CSUM, HdrFlag.DATA_VALID
    attempts = (
        ("NET-TX-DEV-06", "both tunnel bits", altered(gso_type=GsoType.TCPV4 | TUNNEL_BITS)),
        ("NET-TX-DEV-08", "a tunnel bit without NEEDS_CSUM", altered(flags=0)),
        ("NET-TX-DEV-08", "a tunnel bit with DATA_VALID", altered(flags=needs | valid)),
        ("NET-TX-DEV-08", "a tunnel bit with gso_type NONE", altered(gso_type=GsoType.UDP_TUNNEL_IPV4)),
        (
            "NET-TX-DEV-09",
            "UDP_TUNNEL_CSUM without a tunnel bit",
            altered(flags=needs | HdrFlag.UDP_TUNNEL_CSUM, gso_type=GsoType.TCPV4),
        ),
        (
            "NET-TX-DEV-09",
            "UDP_TUNNEL_CSUM in a plain packet",
            codec.build(NetHdr(flags=HdrFlag.UDP_TUNNEL_CSUM)),
        ),
    )
    for clause, what, header in attempts:
        left = bench.packets.transmit(frame, header)
        bench.check(clause, not left, f"{what}: nothing leaves", f"{len(left)} frames")
        again = bench.packets.transmit(frame, good)
        same = [len(one) for one in again] == [len(one) for one in right]
        bench.check(clause, same, f"{what}: the next packet leaves", f"{len(again)} frames")


@case("tx-tunnel-offsets-unused", "NET-TX-DEV-07", needs=("wire",))
def tx_tunnel_offsets_unused(bench: Bench) -> None:
    """Without a tunnel bit the tunnel offsets are not used.

    Nonsense in outer_th_offset and inner_nh_offset: a plain frame leaves as it is, a large one in the segments in
    which it leaves with zeros there.
    """
    bench.start(want=TUNNELS)
    plain = frames.ethernet(frames.packet(bench.octets(40)), PEER_MAC, bench.packets.mac)
    frame, header = _large(bench)
    right = bench.packets.transmit(frame, header)
    for outer, inner in ((0xFFF1, 0xFFF2), (1, 0), (0, 3)):
        what = f"outer_th_offset {outer}, inner_nh_offset {inner}"
        offsets = NetHdr(outer_th_offset=outer, inner_nh_offset=inner)
        left = bench.packets.transmit(plain, offsets)
        unchanged = len(left) == 1 and bench.same(plain, left[0])
        bench.check("NET-TX-DEV-07", unchanged, f"{what}: a plain frame leaves as it is", len(left))
        asked = replace(header, outer_th_offset=outer, inner_nh_offset=inner)
        left = bench.packets.transmit(frame, asked)
        same = len(left) == len(right) > 1 and all(map(bench.same, right, left))
        bench.check("NET-TX-DEV-07", same, f"{what}: the same segments leave", f"{len(left)} frames")
