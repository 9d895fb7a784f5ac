"""What leaves of packets with an open checksum or a request to cut them: every octet of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.frames import ETHERTYPES, HOSTS, TCP, UDP, Shape, checksum
from virtio_ipsec.conformance.packets import PEER_MAC
from virtio_ipsec.conformance.segments import (
    ACK,
    CWR,
    ECE,
    FIN,
    PSH,
    Large,
    judge,
    pseudo_sum,
)
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, GsoType, HdrFlag, has

GSO_ECN = 0x80
VXLAN = struct.pack("!II", 0x0800_0000, 42 << 8)
#: Sizes of segments and of payloads: even, odd, one octet; exactly, one more, one less, and less than one segment.
CUTS = ((500, 1500), (500, 1501), (500, 999), (333, 1000), (1, 3), (1000, 700))
#: Pieces of the longest packet: few, and within the MTU of any wire.
LONG = 1220
TYPES = {
    TCP: {4: (GsoType.TCPV4, Feature.NET_F_HOST_TSO4), 6: (GsoType.TCPV6, Feature.NET_F_HOST_TSO6)},
    UDP: {4: (GsoType.UDP_L4, Feature.NET_F_HOST_USO), 6: (GsoType.UDP_L4, Feature.NET_F_HOST_USO)},
}


# -- packets ----------------------------------------------------------------------------------------------


def new_large(
    bench: Bench, version: int, protocol: int, payload: int, *, extra: bytes = b"", vlan: bool = False
) -> Large:
    """A packet between the documentation hosts; ``extra``: IPv4 options or whole IPv6 extension headers."""
    packet = frames.packet(b"", Shape(version, protocol, ident=0xFFFE))
    size = 20 if version == 4 else 40
    network, transport = packet[:size], packet[size:]
    if version == 4 and extra:
        network = bytes((0x45 + len(extra) // 4,)) + network[1:] + extra
    elif extra:
        last = _last_of(extra)
        chain = extra[:last] + bytes((protocol,)) + extra[last + 1 :]
        network = network[:6] + chain[-1:] + network[7:] + chain[:-1]
    link = PEER_MAC + bench.packets.mac + ETHERTYPES[version].to_bytes(2)
    link = frames.tagged(link, 7) if vlan else link
    return Large(link, network, transport, bench.octets(payload), version, protocol, HOSTS[version])


def _last_of(chain: bytes) -> int:
    """Offset of the next-header octet of the last extension header; ``chain`` ends in the number of its first."""
    at = 0
    while at + (chain[at + 1] + 1) * 8 < len(chain) - 1:
        at += (chain[at + 1] + 1) * 8
    return at


def new_chain(*headers: tuple[int, bytes]) -> bytes:
    """Extension headers (number, contents), and behind them the number of the first."""
    found = b""
    for place, (_, contents) in enumerate(headers):
        following = headers[place + 1][0] if place + 1 < len(headers) else 0
        found += bytes((following, (len(contents) + 2) // 8 - 1)) + contents
    return found + bytes((headers[0][0],))


PADDING = bytes((1, 4, 0, 0, 0, 0))


def _tcp(large: Large, *, flags: int = ACK, more: bytes = b"", sequence: int = 1000) -> Large:
    """With these flags, options and sequence number."""
    head = large.transport
    head = (
        head[:4] + sequence.to_bytes(4) + head[8:12] + bytes(((5 + len(more) // 4) << 4, flags)) + head[14:]
    )
    return replace(large, transport=head + more)


def _cut(bench: Bench, what: str, large: Large, kind: int, size: int, **fields: int) -> None:
    """Send it and check what leaves."""
    summed = bool(fields.get("flags", 0) & HdrFlag.UDP_TUNNEL_CSUM)
    left = bench.packets.transmit(large.frame(outer_open=summed), large.header(kind, size, **fields))
    found = judge(large, size, left, outer_summed=summed)
    text = f"{what}, {len(large.payload)} octets in pieces of {size}"
    if "INF-55" in bench.case.clauses:
        bench.check("INF-55", not found.lengths, f"{text}: none is longer", found.lengths)
    if large.outer is None:
        bench.check("INF-54", not found.wrong, f"{text}: leaves as segments", found.wrong[:4])
    else:
        bench.check("INF-56", not found.wrong, f"{text}: leaves as segments", found.wrong[:4])
        if summed:
            sums = found.outer_sums
            bench.check("INF-57", not sums, f"{text}: outer checksums are completed", sums[:4])


# -- checksums --------------------------------------------------------------------------------------------


@case("tx-checksum", "INF-53", needs=("wire",))
def tx_checksum(bench: Bench) -> None:
    """A packet with NEEDS_CSUM leaves with its checksum completed, and is otherwise as it was sent.

    TCP and UDP over both IP versions, even and odd lengths, with a VLAN tag; a UDP packet whose sum is zero; and the
    rule as such on frames that are not IP: any start, any offset, the last octets of the frame.
    """
    bench.start(want=(Feature.NET_F_CSUM,))
    for version in (4, 6):
        for protocol in (TCP, UDP):
            for payload, vlan in ((40, False), (41, False), (64, True)):
                large = new_large(bench, version, protocol, payload, vlan=vlan)
                header = replace(large.header(0, 0), hdr_len=0)
                left = bench.packets.transmit(large.frame(), header)
                # One piece that holds everything; an Identification is not drawn anew.
                found = judge(large, len(large.payload), left).wrong
                what = f"IPv{version}, protocol {protocol}, {payload} octets{', tagged' if vlan else ''}"
                bench.check("INF-53", not found, f"{what}: the checksum is completed", found)
    rest = new_large(bench, 4, UDP, 40)
    body = bytearray(rest.payload)
    body[-2:] = bytes(2)
    total = checksum(_summed(replace(rest, payload=bytes(body))))
    body[-2:] = total.to_bytes(2)
    large = replace(rest, payload=bytes(body))
    left = bench.packets.transmit(large.frame(), replace(large.header(0, 0), hdr_len=0))
    found = judge(large, len(large.payload), left).wrong
    bench.check("INF-53", not found, "a sum of zero leaves as 0xffff in UDP", found)
    for length, start, offset in ((60, 14, 0), (80, 20, 6), (61, 33, 2), (90, 60, 28), (100, 14, 84)):
        data = PEER_MAC + bench.packets.mac + b"\x88\xb6" + bench.octets(length - 14)
        header = NetHdr(flags=HdrFlag.NEEDS_CSUM, csum_start=start, csum_offset=offset)
        at = start + offset
        value = checksum(data[start:])
        left = bench.packets.transmit(data, header)
        wanted = {data[:at] + each.to_bytes(2) + data[at + 2 :] for each in (value, value or 0xFFFF)}
        what = f"{length} octets, start {start}, offset {offset}"
        bench.check("INF-53", len(left) == 1 and left[0] in wanted, f"{what}: completed there", left[:1])


def _summed(large: Large) -> bytes:
    """What the checksum of a packet sums, its own field left out."""
    length = len(large.transport) + len(large.payload)
    source, target = large.hosts
    head = large.transport[:4] + length.to_bytes(2) + bytes(2)
    return source + target + struct.pack("!BBH", 0, UDP, length) + head + large.payload


# -- segments ---------------------------------------------------------------------------------------------


def _segments(bench: Bench, version: int, protocol: int) -> None:
    kind, feature = TYPES[protocol][version]
    offset = Feature.NET_F_OUT_NET_HEADER
    with_offset = has(bench.target.device_features(), offset)
    bench.start(want=(Feature.NET_F_CSUM, feature, *((offset,) if with_offset else ())))
    for size, payload in CUTS:
        _cut(bench, "plain", new_large(bench, version, protocol, payload), kind, size)
    most = new_large(bench, version, protocol, 0)
    room = 0xFFFF - len(most.transport) - (len(most.network) if version == 4 else 0)
    _cut(bench, "the longest", replace(most, payload=bench.octets(room)), kind, LONG)
    _cut(bench, "a small sum", _small_sum(new_large(bench, version, protocol, 1200)), kind, 500)
    tagged = new_large(bench, version, protocol, 1200, vlan=True)
    _cut(bench, "with a VLAN tag", tagged, kind, 500)
    if with_offset:
        _cut(bench, "with outer_nh_offset", tagged, kind, 500, outer_nh_offset=len(tagged.link))
        plain = new_large(bench, version, protocol, 1200)
        _cut(bench, "with outer_nh_offset", plain, kind, 500, outer_nh_offset=len(plain.link))
    if version == 4:
        extra = new_large(bench, 4, protocol, 1200, extra=b"\x94\x04\0\0\x01\x01\x01\0")
        _cut(bench, "with IPv4 options", extra, kind, 500)
    else:
        for chain in (
            new_chain((60, PADDING)),
            new_chain((0, PADDING), (60, PADDING + bytes((1, 6)) + bytes(6))),
        ):
            extra = new_large(bench, 6, protocol, 1200, extra=chain)
            _cut(bench, "with extension headers", extra, kind, 500)
    if protocol == TCP:
        for large in _tcp_variants(bench, version):
            _cut(bench, f"flags {large.transport[13]:#x}", large, kind, 500)


def _small_sum(large: Large) -> Large:
    """From another host, so that the sum of the pseudo header is less than the packet's length: corrected for a
    segment, which is shorter, it goes through zero."""
    source, target = large.hosts
    whole = len(large.transport) + len(large.payload)
    over = pseudo_sum(large, whole) - whole // 2
    last = (int.from_bytes(source[-2:]) - over) % 0xFFFF
    hosts = source[:-2] + last.to_bytes(2), target
    at = 12 if large.version == 4 else 8
    network = large.network[:at] + hosts[0] + large.network[at + len(source) :]
    return replace(large, network=network, hosts=hosts)


def _tcp_variants(bench: Bench, version: int) -> Iterator[Large]:
    """Flags that belong to one segment, options, and a sequence number that wraps."""
    plain = new_large(bench, version, TCP, 1700)
    yield _tcp(plain, flags=ACK | FIN | PSH)
    yield _tcp(plain, flags=ACK | PSH, more=b"\x01\x01\x08\x0a" + bench.octets(8))
    yield _tcp(plain, flags=ACK, more=b"\x01" * 40, sequence=0xFFFF_FF00)


@case("tx-segments-tcp4", "INF-54", "INF-55", needs=("wire",))
def tx_segments_tcp4(bench: Bench) -> None:
    """A large TCP packet over IPv4 leaves as segments, each with right lengths, numbers and checksums.

    Several sizes of segments and payloads, the longest packet that there can be; IPv4 options, TCP options, a VLAN tag;
    FIN, PSH; a sequence number that wraps. Payloads put together are the payload sent, headers are repeated, no segment
    is longer than gso_size.
    """
    _segments(bench, 4, TCP)


@case("tx-segments-tcp6", "INF-54", "INF-55", needs=("wire",))
def tx_segments_tcp6(bench: Bench) -> None:
    """A large TCP packet over IPv6 leaves as segments, each with right lengths, numbers and checksums.

    As over IPv4; instead of IPv4 options there are extension headers.
    """
    _segments(bench, 6, TCP)


@case("tx-segments-udp", "INF-54", "INF-55", needs=("wire",))
def tx_segments_udp(bench: Bench) -> None:
    """A large UDP packet with UDP_L4 leaves as datagrams, each with right lengths and checksums.

    Over IPv4 and IPv6, with options and extension headers, several sizes.
    """
    for version in (4, 6):
        _segments(bench, version, UDP)


@case("tx-segments-ecn", "INF-54", needs=("wire",))
def tx_segments_ecn(bench: Bench) -> None:
    """Of a large TCP packet with the ECN bit the first segment alone answers congestion (CWR).

    CWR and ECE over IPv4 and IPv6: ECE is repeated (RFC 3168 6.1).
    """
    bench.start(
        want=(Feature.NET_F_CSUM, Feature.NET_F_HOST_TSO4, Feature.NET_F_HOST_TSO6, Feature.NET_F_HOST_ECN)
    )
    for version in (4, 6):
        large = _tcp(new_large(bench, version, TCP, 1500), flags=ACK | CWR | ECE)
        kind = TYPES[TCP][version][0] | GSO_ECN
        _cut(bench, f"IPv{version} with CWR", large, kind, 500)


def _tunnelled(bench: Bench, version: int, protocol: int, outer_version: int, payload: int) -> Large:
    """A packet in VXLAN."""
    inner = new_large(bench, version, protocol, payload)
    packet = frames.packet(b"", Shape(outer_version, UDP, sport=5555, dport=4789, ident=0x0FFF))
    size = 20 if outer_version == 4 else 40
    link = PEER_MAC + bench.packets.mac + ETHERTYPES[outer_version].to_bytes(2)
    hosts = HOSTS[outer_version]
    # The inner link header travels as payload of the tunnel.
    outer = Large(link, packet[:size], packet[size:], VXLAN + inner.link, outer_version, UDP, hosts)
    return replace(inner, link=b"", outer=outer)


@case("tx-segments-tunnel", "INF-56", "INF-57", needs=("wire",))
def tx_segments_tunnel(bench: Bench) -> None:
    """A large packet in a UDP tunnel leaves as segments, each in a tunnel of its own.

    TCP and UDP over both IP versions in both; with no outer checksum, with one that the device completes, and with one
    that the driver has computed for all segments, which are equally long then. Inner and outer lengths, numbers and
    checksums of every segment are right.
    """
    types = [feature for kinds in TYPES.values() for _, feature in kinds.values()]
    wanted = (Feature.NET_F_CSUM, *dict.fromkeys(types), Feature.NET_F_HOST_UDP_TUNNEL_GSO)
    sums = Feature.NET_F_HOST_UDP_TUNNEL_GSO_CSUM
    with_sums = has(bench.target.device_features(), sums)
    bench.start(want=(*wanted, *((sums,) if with_sums else ())))
    for outer in (4, 6):
        for version in (4, 6):
            for protocol in (TCP, UDP):
                kind = TYPES[protocol][version][0]
                what = f"IPv{version}, protocol {protocol}, in UDP over IPv{outer}"
                for size, payload in ((500, 1400), (500, 1001), (400, 800)):
                    large = _tunnelled(bench, version, protocol, outer, payload)
                    if outer == 4 or not with_sums:
                        _cut(bench, what, large, kind, size)
                    if with_sums:
                        flags = int(HdrFlag.UDP_TUNNEL_CSUM)
                        _cut(bench, f"{what}, summed", large, kind, size, flags=flags)
    bench.start(want=wanted, without=(sums,))
    for outer in (4, 6):
        for version in (4, 6):
            for protocol in (TCP, UDP):
                large = _tunnelled(bench, version, protocol, outer, 1200)
                for size in (400, 1200):
                    header = large.header(TYPES[protocol][version][0], size)
                    left = bench.packets.transmit(large.frame(outer_of=size), header)
                    found = judge(large, size, left, outer_summed=True)
                    wrong = (found.wrong + found.lengths + found.outer_sums)[:4]
                    what = f"IPv{version}, protocol {protocol}, in UDP over IPv{outer} with a checksum"
                    text = f"{what}, 1200 octets in pieces of {size}: leaves as segments"
                    bench.check("INF-56", not wrong, text, wrong)


@case("tx-segments-contradictory", "INF-54", "INF-53", needs=("wire",))
def tx_segments_contradictory(bench: Bench) -> None:
    """A request that does not fit its packet harms nothing but that packet.

    What a driver must not send: types that there are not or that are for another packet, sizes of zero, checksums
    elsewhere or beyond the end, headers that are cut short, frames that are not IP, buffers too short for a header.
    Whatever becomes of them, the next large packet leaves in its segments, and a plain one as it is.
    """
    types = [feature for kinds in TYPES.values() for _, feature in kinds.values()]
    bench.start(want=(Feature.NET_F_CSUM, *dict.fromkeys(types)))
    tcp = new_large(bench, 4, TCP, 1200)
    good = tcp.header(GsoType.TCPV4, 500)
    whole = tcp.frame()
    codec = bench.packets.codec
    short_tcp = whole[:46] + b"\x40" + whole[47:]
    long_tcp = whole[:46] + b"\xf0" + whole[47:]
    attempts = [
        *(
            (f"gso_type {kind}", replace(good, gso_type=kind), whole)
            for kind in (2, 6, 0x1F, GsoType.TCPV6, 5)
        ),
        ("gso_size 0", replace(good, gso_size=0), whole),
        *(
            (f"csum_start {at}", replace(good, csum_start=at), whole)
            for at in (0, 33, 35, len(whole), 0xFFFF)
        ),
        *((f"csum_offset {at}", replace(good, csum_offset=at), whole) for at in (0, 6, 0xFFFF)),
        ("without NEEDS_CSUM", replace(good, flags=0), whole),
        ("ECN, not accepted", replace(good, gso_type=GsoType.TCPV4 | GSO_ECN), whole),
        ("ECN on UDP", replace(good, gso_type=GsoType.UDP_L4 | GSO_ECN), whole),
        *((f"{end} octets", good, whole[:end]) for end in range(0, 56, 3)),
        ("a TCP header of 16 octets", good, short_tcp),
        ("a TCP header beyond the packet", good, long_tcp[:70]),
        ("not IP", good, whole[:12] + b"\x88\xb6" + whole[14:]),
        ("an IPv6 EtherType", good, whole[:12] + b"\x86\xdd" + whole[14:]),
        *((f"a checksum at {at}", NetHdr(1, csum_start=at, csum_offset=off), whole) for at, off in _OUTSIDE),
    ]
    for what, header, frame in attempts:
        bench.packets.send(frame, header)
        _still_alive(bench, what, tcp)
    for octets in (b"\0", bytes(codec.size - 1), bytes(codec.size)):
        bench.packets.send(b"", octets)
        _still_alive(bench, f"a buffer of {len(octets)} octets", tcp)


_OUTSIDE = ((0xFFFF, 0), (0, 0xFFFF), (0xFFFF, 0xFFFF), (1253, 0), (1240, 13))


def _still_alive(bench: Bench, what: str, large: Large) -> None:
    """After this request good ones are carried out."""
    bench.packets.emitted()  # what it made
    found = judge(large, 500, bench.packets.transmit(large.frame(), large.header(GsoType.TCPV4, 500)))
    bench.check("INF-54", not found.wrong, f"after {what}: a large packet leaves in segments", found.wrong)
    small = new_large(bench, 4, UDP, 40)
    found = judge(small, 40, bench.packets.transmit(small.frame(), replace(small.header(0, 0), hdr_len=0)))
    bench.check("INF-53", not found.wrong, f"after {what}: a checksum is completed", found.wrong)
