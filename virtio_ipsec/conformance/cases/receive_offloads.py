"""What a device may leave undone, or put together, in packets that it delivers, and how it says so.

A device is free to do none of this: then the cases that need it are UNSUPPORTED.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.frames import TCP, UDP, Shape, checksum, ip_of
from virtio_ipsec.conformance.packets import PEER_MAC, RxFrame
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.wire.numbers import Feature, GsoType, HdrFlag, has

TUNNEL_BITS = GsoType.UDP_TUNNEL_IPV4 | GsoType.UDP_TUNNEL_IPV6
ETHERNET = 14
#: Octets of TCP or UDP payload in one packet of a run.
PIECE = 400
RUN = 4
CWR, ECE, ACK = 0x80, 0x40, 0x10
CHECKSUM_AT = {TCP: 16, UDP: 6}
VXLAN = struct.pack("!II", 0x0800_0000, 42 << 8)
#: What a driver can accept of this, in the order of what requires what.
WANTED = (
    Feature.NET_F_GUEST_CSUM,
    Feature.NET_F_GUEST_TSO4,
    Feature.NET_F_GUEST_TSO6,
    Feature.NET_F_GUEST_ECN,
    Feature.NET_F_GUEST_UFO,
    Feature.NET_F_GUEST_USO4,
    Feature.NET_F_GUEST_USO6,
    Feature.NET_F_GUEST_UDP_TUNNEL_GSO,
    Feature.NET_F_GUEST_UDP_TUNNEL_GSO_CSUM,
    Feature.NET_F_GUEST_HDRLEN,
)
#: Segmentation type -> (clause, one of the features that it needs).
TYPES = {
    GsoType.TCPV4: ("NET-RX-DEV-06", (Feature.NET_F_GUEST_TSO4,)),
    GsoType.UDP: ("NET-RX-DEV-07", (Feature.NET_F_GUEST_UFO,)),
    GsoType.TCPV6: ("NET-RX-DEV-08", (Feature.NET_F_GUEST_TSO6,)),
    GsoType.UDP_L4: ("NET-RX-DEV-09", (Feature.NET_F_GUEST_USO4, Feature.NET_F_GUEST_USO6)),
}


# -- traffic ----------------------------------------------------------------------------------------------


def _tunnelled(bench: Bench, inner: bytes, version: int, sum_outer: bool) -> bytes:
    kind = frames.ETHERTYPES[inner[0] >> 4].to_bytes(2)
    outer = frames.packet(
        VXLAN + bench.packets.mac + PEER_MAC + kind + inner, Shape(version, sport=5555, dport=4789)
    )
    at = 20 if version == 4 else 40
    return outer if sum_outer else outer[: at + 6] + bytes(2) + outer[at + 8 :]


def _runs(bench: Bench) -> Iterator[list[bytes]]:
    """Runs of IP packets that a device could put together, or leave a checksum open in."""
    for version in (4, 6):
        for flags in (ACK, ACK | ECE, ACK | CWR):
            yield [
                frames.packet(
                    bench.octets(PIECE), Shape(version, TCP, flags=flags, sequence=1 + n * PIECE, ident=n)
                )
                for n in range(RUN)
            ]
        yield [frames.packet(bench.octets(PIECE), Shape(version, ident=n)) for n in range(RUN)]
        for sum_outer in (False, True):
            if version == 6 and not sum_outer:
                continue
            inner = [
                frames.packet(bench.octets(PIECE), Shape(4, TCP, flags=ACK, sequence=1 + n * PIECE, ident=n))
                for n in range(RUN)
            ]
            yield [_tunnelled(bench, one, version, sum_outer) for one in inner]
    good = frames.packet(bench.octets(PIECE), Shape(4, TCP))
    yield [good[:36] + bytes((good[36] ^ 1,)) + good[37:]]  # a wrong TCP checksum
    tunnel = _tunnelled(bench, good, 4, sum_outer=True)
    yield [tunnel[:26] + bytes((tunnel[26] ^ 1,)) + tunnel[27:]]  # a wrong outer UDP checksum
    yield [good[:10] + bytes((good[10] ^ 1,)) + good[11:]]  # a wrong IPv4 header checksum


def _delivered(bench: Bench, features: tuple[Feature, ...]) -> list[RxFrame]:
    """What a device with these features makes of all the traffic."""
    bench.start(want=features)
    bench.packets.post(count=24)
    came: list[RxFrame] = []
    for run in _runs(bench):
        came += bench.packets.receive(
            *(frames.ethernet(packet, bench.packets.mac, PEER_MAC) for packet in run)
        )
        bench.packets.top_up()
    return came


def _offered(bench: Bench, *more: Feature) -> tuple[Feature, ...]:
    offered = bench.target.device_features()
    return tuple(feature for feature in (*WANTED, *more) if has(offered, feature))


def _those(came: list[RxFrame], kind: Callable[[RxFrame], bool], what: str) -> list[RxFrame]:
    found = [rx for rx in came if kind(rx)]
    if not found:
        raise Unsupported(f"the device delivered no packet with {what}")
    return found


# -- packets as delivered ---------------------------------------------------------------------------------


def _transport_at(frame: bytes) -> tuple[int, int, int]:
    """(IP version, protocol, offset of the transport header) of a frame without tags and extension headers."""
    version = frame[ETHERNET] >> 4
    if version == 4:
        return 4, frame[ETHERNET + 9], ETHERNET + (frame[ETHERNET] & 15) * 4
    return 6, frame[ETHERNET + 6], ETHERNET + 40


def _pseudo(frame: bytes, at: int = ETHERNET) -> bytes:
    """The pseudo header of the IP packet at ``at``."""
    end = at + len(ip_of(frame[at - ETHERNET :]))
    if frame[at] >> 4 == 4:
        header = (frame[at] & 15) * 4
        return frame[at + 12 : at + 20] + struct.pack("!BBH", 0, frame[at + 9], end - at - header)
    return frame[at + 8 : at + 40] + struct.pack("!I3xB", end - at - 40, frame[at + 6])


def _ipv4_header_right(frame: bytes, at: int = ETHERNET) -> bool:
    return frame[at] >> 4 != 4 or checksum(frame[at : at + (frame[at] & 15) * 4]) == 0


def _gso(rx: RxFrame) -> int:
    return rx.header.gso_type & ~(TUNNEL_BITS | GsoType.ECN)


def _shown(rx: RxFrame) -> str:
    head = rx.header
    return (
        f"flags {head.flags:#x}, gso_type {head.gso_type:#x}, gso_size {head.gso_size}, "
        f"csum {head.csum_start}+{head.csum_offset}, {len(rx.frame)} octets"
    )


# -- cases ------------------------------------------------------------------------------------------------


@case(
    "rx-segmentation-types",
    *(clause for clause, _ in TYPES.values()),
    "NET-RX-DEV-10",
    needs=("wire",),
)
def rx_segmentation_types(bench: Bench) -> None:
    """No packet is delivered with a segmentation type that the driver has not accepted.

    Runs of TCP segments, datagrams and tunnelled segments, over IPv4 and IPv6, arrive without any of the features,
    with all of them, and with all but those of one type.
    """
    every = _offered(bench)
    sets = [(), every]
    for _, needed in TYPES.values():
        # What is left out takes with it what requires it.
        kept = tuple(f for f in every if f not in needed)
        dependent = {
            Feature.NET_F_GUEST_ECN,
            Feature.NET_F_GUEST_UDP_TUNNEL_GSO,
            Feature.NET_F_GUEST_UDP_TUNNEL_GSO_CSUM,
        }
        sets.append(tuple(f for f in kept if f not in dependent))
    for features in bench.sweep(sets):
        came = _delivered(bench, features)
        for kind, (clause, needed) in TYPES.items():
            wrong = [rx for rx in came if _gso(rx) == kind and not set(needed) & set(features)]
            names = " or ".join(f.name for f in needed)
            bench.check(
                clause, not wrong, f"no gso_type {kind.name} without {names}", list(map(_shown, wrong))
            )
        tunnels = Feature.NET_F_GUEST_UDP_TUNNEL_GSO in features
        wrong = [rx for rx in came if rx.header.gso_type & TUNNEL_BITS and not tunnels]
        what = "no UDP tunnel bit without NET_F_GUEST_UDP_TUNNEL_GSO"
        bench.check("NET-RX-DEV-10", not wrong, what, list(map(_shown, wrong)))


@case("rx-open-checksum", "NET-RX-DEV-15", "NET-RX-DEV-16", "NET-RX-DEV-17", needs=("wire",))
def rx_open_checksum(bench: Bench) -> None:
    """A checksum that the device leaves open can be completed as the header says, and those in front are right.

    All traffic with all offered features: packets with NEEDS_CSUM, without a tunnel, are completed by
    csum_start and csum_offset and verified.
    """
    came = _delivered(bench, _offered(bench))

    def is_open(rx: RxFrame) -> bool:
        return bool(rx.header.flags & HdrFlag.NEEDS_CSUM) and not rx.header.gso_type & TUNNEL_BITS

    for rx in _those(came, is_open, "NEEDS_CSUM"):
        frame, start = rx.frame, rx.header.csum_start
        field = start + rx.header.csum_offset
        _, protocol, at = _transport_at(frame)
        inside = at <= start and field + 2 <= len(frame)
        right = inside and start == at and rx.header.csum_offset == CHECKSUM_AT.get(protocol)
        if start > at:  # inside a tunnel: the inner packet's
            right = inside and frame[at : at + 4] != b""
        bench.check(
            "NET-RX-DEV-15", _ipv4_header_right(frame), "the IPv4 header checksum is right", _shown(rx)
        )
        bench.require("NET-RX-DEV-17", right, "csum_start and csum_offset name the checksum", _shown(rx))
        end = ETHERNET + len(ip_of(frame))
        network = ETHERNET if start == at else at + 8 + len(VXLAN) + ETHERNET
        pseudo = _pseudo(frame, network)
        seed = ~checksum(pseudo) & 0xFFFF
        found = int.from_bytes(frame[field : field + 2])
        bench.check(
            "NET-RX-DEV-16",
            found == seed,
            f"the checksum field holds the pseudo header's sum {seed:#x}",
            hex(found),
        )
        completed = checksum(frame[start:end])
        whole = frame[start:field] + completed.to_bytes(2) + frame[field + 2 : end]
        bench.check(
            "NET-RX-DEV-17",
            checksum(pseudo + whole) == 0,
            "the sum from csum_start on completes the checksum",
            f"{completed:#06x}; {_shown(rx)}",
        )


@case("rx-large-packets", "NET-RX-DEV-12", "NET-RX-DEV-21", "NET-RX-DEV-24", "NET-RX-DEV-26", needs=("wire",))
def rx_large_packets(bench: Bench) -> None:
    """A packet that the device has put together says so: NEEDS_CSUM, gso_size, hdr_len, and ECN where it is.

    Runs of segments arrive with all offered features. A packet whose gso_type is not NONE carries NEEDS_CSUM
    and a gso_size; one with CWR needs VIRTIO_NET_F_GUEST_ECN and the ECN bit; hdr_len ought to cover the headers.
    """
    features = _offered(bench)
    for rx in _those(_delivered(bench, features), lambda rx: bool(_gso(rx)), "a segmentation type"):
        head, frame = rx.header, rx.frame
        marked = bool(head.flags & HdrFlag.NEEDS_CSUM) and head.gso_size > 0
        bench.check("NET-RX-DEV-21", marked, "NEEDS_CSUM and a gso_size with a gso_type", _shown(rx))
        both = bool(head.flags & HdrFlag.DATA_VALID) and bool(head.gso_type & TUNNEL_BITS)
        bench.check("NET-RX-DEV-26", not both, "no DATA_VALID with a tunnel bit", _shown(rx))
        if head.gso_type & TUNNEL_BITS:
            continue
        _, protocol, at = _transport_at(frame)
        if protocol == TCP:
            congested = bool(frame[at + 13] & CWR)
            bit = bool(head.gso_type & GsoType.ECN)
            allowed = not congested or (bit and Feature.NET_F_GUEST_ECN in features)
            bench.check(
                "NET-RX-DEV-12", allowed, "CWR only with GUEST_ECN, marked by the ECN bit", _shown(rx)
            )
        headers = at + (8 if protocol == UDP else (frame[at + 12] >> 4) * 4)
        bench.check(
            "NET-RX-DEV-24",
            head.hdr_len >= headers,
            f"hdr_len covers {headers} octets of headers",
            head.hdr_len,
            advisory=True,
        )


@case(
    "rx-large-tunnelled-packets",
    "NET-RX-DEV-18",
    "NET-RX-DEV-19",
    "NET-RX-DEV-27",
    "NET-RX-DEV-28",
    needs=("wire",),
)
def rx_large_tunnelled_packets(bench: Bench) -> None:
    """A packet put together inside a UDP tunnel names its headers, and its outer checksum is as the flag says.

    Tunnelled runs arrive with all offered features, and without VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO_CSUM.
    """
    every = _offered(bench)
    fewer = tuple(f for f in every if f is not Feature.NET_F_GUEST_UDP_TUNNEL_GSO_CSUM)
    came = [(features, rx) for features in (every, fewer) for rx in _delivered(bench, features)]
    found = [(features, rx) for features, rx in came if rx.header.gso_type & TUNNEL_BITS]
    if not found:
        raise Unsupported("the device delivered no packet with a tunnel bit")
    for features, rx in found:
        head, frame = rx.header, rx.frame
        version, protocol, at = _transport_at(frame)
        inner = at + 8 + len(VXLAN) + ETHERNET
        bit = GsoType.UDP_TUNNEL_IPV4 if frame[inner] >> 4 == 4 else GsoType.UDP_TUNNEL_IPV6
        named = head.gso_type & TUNNEL_BITS == bit and (head.outer_th_offset, head.inner_nh_offset) == (
            at,
            inner,
        )
        offered = Feature.NET_F_GUEST_UDP_TUNNEL_GSO in features
        bench.require(
            "NET-RX-DEV-18",
            protocol == UDP and offered and named,
            "the bit of the inner version, and both offsets",
            f"{_shown(rx)}, offsets {head.outer_th_offset}, {head.inner_nh_offset}",
        )
        field = int.from_bytes(frame[at + 6 : at + 8])
        flagged = bool(head.flags & bench.dialect.flag_udp_tunnel_csum)
        accepted = Feature.NET_F_GUEST_UDP_TUNNEL_GSO_CSUM in features
        bench.check(
            "NET-RX-DEV-19", accepted or not flagged, "UDP_TUNNEL_CSUM only with its feature", _shown(rx)
        )
        pseudo = _pseudo(frame)
        if flagged:
            seed = ~checksum(pseudo) & 0xFFFF
            bench.check(
                "NET-RX-DEV-27", field == seed, f"the outer field holds the sum {seed:#x}", hex(field)
            )
        else:
            datagram = frame[at : ETHERNET + len(ip_of(frame))]
            right = (field == 0 and version == 4) or checksum(pseudo + datagram) == 0
            bench.check("NET-RX-DEV-28", right, "the outer UDP checksum is zero or complete", hex(field))


@case("rx-coalesced", "NET-RX-DEV-22", needs=("wire",))
def rx_coalesced(bench: Bench) -> None:
    """With VIRTIO_NET_F_RSC_EXT a coalesced packet carries RSC_INFO and counts its segments in csum_start.

    Runs of TCP segments arrive with the feature. The count of duplicate acknowledgements, in csum_offset, is zero.
    """
    needed = (Feature.NET_F_HOST_TSO4, Feature.NET_F_HOST_TSO6, Feature.NET_F_CSUM)
    offered = bench.target.device_features()
    if not has(offered, Feature.NET_F_RSC_EXT):
        raise Unsupported("the device does not offer NET_F_RSC_EXT")
    extra = tuple(f for f in needed if has(offered, f))
    came = _delivered(bench, (*_offered(bench), *extra, Feature.NET_F_RSC_EXT))

    def is_coalesced(rx: RxFrame) -> bool:
        return _gso(rx) in {GsoType.TCPV4, GsoType.TCPV6} and not rx.header.gso_type & TUNNEL_BITS

    for rx in _those(came, is_coalesced, "coalesced segments"):
        _, _, at = _transport_at(rx.frame)
        payload = ETHERNET + len(ip_of(rx.frame)) - at - (rx.frame[at + 12] >> 4) * 4
        right = (rx.header.csum_start, rx.header.csum_offset) == (-(-payload // PIECE), 0)
        bench.check(
            "NET-RX-DEV-22",
            bool(rx.header.flags & HdrFlag.RSC_INFO) and right,
            f"RSC_INFO and the count of {payload // PIECE} segments",
            _shown(rx),
        )
