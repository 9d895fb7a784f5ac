"""What leaves of UDP packets that are to be cut into IP fragments: put together again, they are the packet sent."""

from __future__ import annotations

from dataclasses import replace

from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.cases.transmit_segments import PADDING, new_chain, new_large
from virtio_ipsec.conformance.frames import UDP
from virtio_ipsec.conformance.segments import Fragment, Large, fragment, judge, options, with_length
from virtio_ipsec.wire.numbers import Feature, GsoType

#: A routing header of no segments left.
ROUTE = bytes((2, 0)) + bytes(4)


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
    route = b"\x07\x07\x04" + bytes(4) + b"\x01"
    mixed = b"\x01" + stamp + alert + b"\x01\0\0", b"\x01\x01\x01" + alert + b"\0"
    for extra in (b"", alert, stamp, route, *mixed):
        for size, payload in ((800, 2000), (805, 2400), (8, 40), (1200, 1192), (1200, 1193), (1000, 500)):
            large = new_large(bench, 4, UDP, payload, extra=extra)
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
        (new_chain((0, PADDING)), 8),
        (new_chain((60, PADDING)), 0),
        (new_chain((0, PADDING), (60, PADDING)), 8),
        (new_chain((60, PADDING), (43, ROUTE)), 16),
        (new_chain((0, PADDING), (43, ROUTE), (60, PADDING)), 16),
    )
    idents = []
    for extra, front in chains:
        for size, payload in ((800, 2000), (804, 2400), (8, 40), (1200, 1192), (1200, 1193)):
            large = new_large(bench, 6, UDP, payload, extra=extra)
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


@case("tx-fragments-contradictory", "INF-54", needs=("wire",))
def tx_fragments_contradictory(bench: Bench) -> None:
    """A request to fragment that cannot be carried out harms nothing but its packet.

    What a driver must not send: pieces of less than eight octets, a datagram that has a Fragment header already, one
    that is longer than any, extension headers that reach beyond the packet. Whatever becomes of them, the next large
    packet leaves as fragments.
    """
    bench.start(want=(Feature.NET_F_CSUM, Feature.NET_F_HOST_UFO))
    four, six = (new_large(bench, version, UDP, 1200) for version in (4, 6))
    already = new_large(bench, 6, UDP, 1200, extra=new_chain((44, bytes(6))))
    chained = new_large(bench, 6, UDP, 1200, extra=new_chain((0, PADDING)))
    beyond = bytearray(chained.frame())
    beyond[len(chained.link) + 41] = 0xFF
    attempts = [
        *((f"pieces of {size} octets", one, one.frame(), size) for one in (four, six) for size in (0, 1, 7)),
        ("a Fragment header", already, already.frame(), 500),
        ("a datagram beyond 65535 octets", four, four.frame() + bytes(0xFFFF), 1400),
        ("a datagram beyond 65535 octets", six, six.frame() + bytes(0xFFFF), 1400),
        ("an extension header beyond the packet", chained, bytes(beyond), 500),
    ]
    for what, large, frame, size in attempts:
        bench.packets.send(frame, large.header(GsoType.UDP, size))
        bench.packets.emitted()  # what it made
        for next_one in (four, six):
            _, wrong, _ = _fragments(bench, next_one, 800)
            text = f"IPv{large.version}, after {what}: IPv{next_one.version} leaves as fragments"
            bench.check("INF-54", not wrong, text, wrong[:3])
