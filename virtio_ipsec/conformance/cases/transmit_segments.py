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
    Fragment,
    Large,
    fragment,
    judge,
    options,
    with_length,
)
from virtio_ipsec.wire.net_header import NetHdr
from virtio_ipsec.wire.numbers import Feature, GsoType, HdrFlag, has

GSO_ECN = 0x80
VXLAN = struct.pack("!II", 0x0800_0000, 42 << 8)
#: Sizes of segments and of payloads: even, odd, one octet; exactly, one more, one less, and less than one segment.
CUTS = ((500, 1500), (500, 1501), (500, 999), (333, 1000), (1, 3), (1000, 700))
TYPES = {
    TCP: {4: (GsoType.TCPV4, Feature.NET_F_HOST_TSO4), 6: (GsoType.TCPV6, Feature.NET_F_HOST_TSO6)},
    UDP: {4: (GsoType.UDP_L4, Feature.NET_F_HOST_USO), 6: (GsoType.UDP_L4, Feature.NET_F_HOST_USO)},
}


# -- packets ----------------------------------------------------------------------------------------------


def _large(
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


def _chain(*headers: tuple[int, bytes]) -> bytes:
    """Extension headers (number, contents), and behind them the number of the first."""
    found = b""
    for place, (_, contents) in enumerate(headers):
        following = headers[place + 1][0] if place + 1 < len(headers) else 0
        found += bytes((following, (len(contents) + 2) // 8 - 1)) + contents
    return found + bytes((headers[0][0],))


PADDING = bytes((1, 4, 0, 0, 0, 0))
ROUTE = bytes((2, 0)) + bytes(4)


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
                large = _large(bench, version, protocol, payload, vlan=vlan)
                header = replace(large.header(0, 0), hdr_len=0)
                left = bench.packets.transmit(large.frame(), header)
                # One piece that holds everything; an Identification is not drawn anew.
                found = judge(large, len(large.payload), left).wrong
                what = f"IPv{version}, protocol {protocol}, {payload} octets{', tagged' if vlan else ''}"
                bench.check("INF-53", not found, f"{what}: the checksum is completed", found)
    rest = _large(bench, 4, UDP, 40)
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
    bench.start(want=(Feature.NET_F_CSUM, feature))
    for size, payload in CUTS:
        _cut(bench, "plain", _large(bench, version, protocol, payload), kind, size)
    _cut(bench, "with a VLAN tag", _large(bench, version, protocol, 1200, vlan=True), kind, 500)
    if version == 4:
        extra = _large(bench, 4, protocol, 1200, extra=b"\x94\x04\0\0\x01\x01\x01\0")
        _cut(bench, "with IPv4 options", extra, kind, 500)
    else:
        for chain in (_chain((60, PADDING)), _chain((0, PADDING), (60, PADDING + bytes((1, 6)) + bytes(6)))):
            extra = _large(bench, 6, protocol, 1200, extra=chain)
            _cut(bench, "with extension headers", extra, kind, 500)
    if protocol == TCP:
        for large in _tcp_variants(bench, version):
            _cut(bench, f"flags {large.transport[13]:#x}", large, kind, 500)


def _tcp_variants(bench: Bench, version: int) -> Iterator[Large]:
    """Flags that belong to one segment, options, and a sequence number that wraps."""
    plain = _large(bench, version, TCP, 1700)
    yield _tcp(plain, flags=ACK | FIN | PSH)
    yield _tcp(plain, flags=ACK | PSH, more=b"\x01\x01\x08\x0a" + bench.octets(8))
    yield _tcp(plain, flags=ACK, more=b"\x01" * 40, sequence=0xFFFF_FF00)


@case("tx-segments-tcp4", "INF-54", "INF-55", needs=("wire",))
def tx_segments_tcp4(bench: Bench) -> None:
    """A large TCP packet over IPv4 leaves as segments, each with right lengths, numbers and checksums.

    Several sizes of segments and payloads; IPv4 options, TCP options, a VLAN tag; FIN, PSH; a sequence number that
    wraps. Payloads put together are the payload sent, headers are repeated, no segment is longer than gso_size.
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
        large = _tcp(_large(bench, version, TCP, 1500), flags=ACK | CWR | ECE)
        kind = TYPES[TCP][version][0] | GSO_ECN
        _cut(bench, f"IPv{version} with CWR", large, kind, 500)


def _tunnelled(bench: Bench, version: int, protocol: int, outer_version: int, payload: int) -> Large:
    """A packet in VXLAN."""
    inner = _large(bench, version, protocol, payload)
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

    TCP and UDP over both IP versions in both; with no outer checksum, and with one that the device completes. Inner
    and outer lengths, numbers and checksums of every segment are right.
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


# -- fragments --------------------------------------------------------------------------------------------


def _fragments(bench: Bench, large: Large, size: int) -> tuple[list[Fragment], list[str], list[str]]:
    """What leaves of a request to fragment, what is wrong with it, and what with its lengths."""
    left = bench.packets.transmit(large.frame(), large.header(GsoType.UDP, size))
    read = [fragment(frame, len(large.link), large.version) for frame in left]
    wrong = [f"fragment {at}: {one}" for at, one in enumerate(read) if isinstance(one, str)]
    found = [one for one in read if isinstance(one, Fragment)]
    if any(frame[: len(large.link)] != large.link for frame in left):
        wrong.append("link header")
    lengths = [str(len(one.data)) for one in found if len(one.data) > size]
    if wrong or not found:
        return found, wrong or ["nothing leaves"], lengths
    if len({one.ident for one in found}) > 1:
        wrong.append("fragments of one packet differ in Identification")
    place = 0
    for at, one in enumerate(found):
        last = at == len(found) - 1
        if one.at != place or one.more is last:
            wrong.append(f"fragment {at}: offset {one.at}, more {one.more}")
        if len(one.data) % 8 and not last:
            wrong.append(f"fragment {at}: {len(one.data)} octets")
        place += len(one.data)
    if len(found) > -(-place // (size & ~7)):
        lengths.append(f"{len(found)} fragments, more than it takes")
    return found, wrong, lengths


def _reassembled(large: Large, found: list[Fragment]) -> list[str]:
    """What is wrong with the datagram that the fragments make; nothing when it is the one that was sent."""
    whole = found[0].headers + b"".join(one.data for one in found)
    size = len(large.network)
    network = whole[:size]
    if large.version == 4:
        network = network[:6] + large.network[6:8] + network[8:]
    network = with_length(network, large.version, len(large.transport) + len(large.payload))
    return judge(replace(large, link=b""), len(large.payload), [network + whole[size:]]).wrong


@case("tx-fragments-ipv4", "INF-54", "INF-55", needs=("wire",))
def tx_fragments_ipv4(bench: Bench) -> None:
    """A large UDP packet over IPv4 with gso_type UDP leaves as IP fragments of one datagram.

    Several sizes, one that is no multiple of eight; with IPv4 options, of which the later fragments carry those that
    are to be copied (RFC 791 3.1). The fragments put together are the datagram sent, with its checksum.
    """
    bench.start(want=(Feature.NET_F_CSUM, Feature.NET_F_HOST_UFO))
    alert, stamp = b"\x94\x04\0\0", b"\x44\x08\x05\0" + bytes(4)
    for extra in (b"", alert, stamp, b"\x01" + stamp + alert + b"\x01\0\0", b"\x01\x01\x01" + alert + b"\0"):
        for size, payload in ((800, 2000), (804, 2400), (8, 40), (1200, 1192), (1200, 1193), (1000, 500)):
            large = _large(bench, 4, UDP, payload, extra=extra)
            found, wrong, lengths = _fragments(bench, large, size)
            wrong = wrong or _reassembled(large, found)
            copied = [one for one in options(large.network) if one[0] & 0x80]
            if any(options(one.headers) != copied for one in found[1:]):
                wrong.append("options of later fragments")
            text = f"{payload} octets in pieces of {size}, options {extra.hex() or 'none'}"
            bench.check("INF-54", not wrong, f"{text}: leaves as fragments", wrong[:3])
            bench.check("INF-55", not lengths, f"{text}: none is longer", lengths)


@case("tx-fragments-ipv6", "INF-54", "INF-55", needs=("wire",))
def tx_fragments_ipv6(bench: Bench) -> None:
    """A large UDP packet over IPv6 with gso_type UDP leaves as IP fragments of one datagram.

    Several sizes; without extension headers and with some, those that every hop reads in front of the Fragment header
    (RFC 8200 4.5). The fragments put together are the datagram sent; two datagrams differ in Identification.
    """
    bench.start(want=(Feature.NET_F_CSUM, Feature.NET_F_HOST_UFO))
    # (extension headers, how many octets of them stand in front of the Fragment header)
    chains = (
        (b"", 0),
        (_chain((0, PADDING)), 8),
        (_chain((60, PADDING)), 0),
        (_chain((0, PADDING), (60, PADDING)), 8),
        (_chain((60, PADDING), (43, ROUTE)), 16),
        (_chain((0, PADDING), (43, ROUTE), (60, PADDING)), 16),
    )
    idents = []
    for extra, front in chains:
        for size, payload in ((800, 2000), (804, 2400), (8, 40), (1200, 1192), (1200, 1193)):
            large = _large(bench, 6, UDP, payload, extra=extra)
            found, wrong, lengths = _fragments(bench, large, size)
            wrong = wrong or _reassembled(large, found)
            if any(len(one.headers) != 40 + front for one in found):
                wrong.append("place of the Fragment header")
            idents += [one.ident for one in found[:1]]
            text = (
                f"{payload} octets in pieces of {size}, {len(extra) and len(extra) - 1} octets of extensions"
            )
            bench.check("INF-54", not wrong, f"{text}: leaves as fragments", wrong[:3])
            bench.check("INF-55", not lengths, f"{text}: none is longer", lengths)
    bench.check(
        "INF-54", len(set(idents)) == len(idents), "every datagram has its own Identification", idents
    )
