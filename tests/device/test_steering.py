"""RX filter, Toeplitz hash by the published suite, RSS and automatic steering."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rss_vectors import KEY, V4, V6
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    HAO,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Pad1,
    PadN,
)
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from virtio_ipsec.device import steering
from virtio_ipsec.device.frame import view
from virtio_ipsec.device.state import RxFilter, Steering
from virtio_ipsec.wire.numbers import Feature, HashReport, HashType, mask

ALL_TYPES = int(~HashType(0))
ETHER = Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02")


def bitwise(key: bytes, data: bytes) -> int:
    """The definition: slide the key by one bit for each input bit."""
    result = 0
    window = int.from_bytes(key, "big")
    bits = len(key) * 8
    for index, byte in enumerate(data):
        for bit in range(8):
            if byte & (0x80 >> bit):
                result ^= window >> (bits - 32 - index * 8 - bit) & 0xFFFFFFFF
    return result


def hashed(packet: Packet | bytes, types: int = ALL_TYPES) -> tuple[int, int]:
    raw = bytes(packet)
    return steering.packet_hash(raw, view(raw), types, KEY)


@pytest.mark.parametrize(("source", "sport", "target", "dport", "addresses", "with_ports"), V4)
def test_published_ipv4_hashes(
    source: str, sport: int, target: str, dport: int, addresses: int, with_ports: int
) -> None:
    ip = ETHER / IP(src=source, dst=target)
    for transport, report, kind in (
        (TCP(sport=sport, dport=dport), HashReport.TCPV4, HashType.TCPV4),
        (UDP(sport=sport, dport=dport), HashReport.UDPV4, HashType.UDPV4),
    ):
        assert hashed(ip / transport) == (with_ports, report)
        assert hashed(ip / transport, kind | HashType.IPV4) == (with_ports, report)
        assert hashed(ip / transport, ALL_TYPES & ~kind) == (addresses, HashReport.IPV4)
        assert hashed(ip / transport, ALL_TYPES & ~(kind | HashType.IPV4)) == (0, 0)
    assert hashed(ip / Raw(b"data")) == (addresses, HashReport.IPV4)
    tuple4 = IPv4Address(source).packed + IPv4Address(target).packed
    assert steering.toeplitz(KEY).hash(tuple4) == addresses


@pytest.mark.parametrize(("source", "sport", "target", "dport", "addresses", "with_ports"), V6)
def test_published_ipv6_hashes(
    source: str, sport: int, target: str, dport: int, addresses: int, with_ports: int
) -> None:
    ip = ETHER / IPv6(src=source, dst=target)
    for transport, report, report_ex in (
        (TCP(sport=sport, dport=dport), HashReport.TCPV6, HashReport.TCPV6_EX),
        (UDP(sport=sport, dport=dport), HashReport.UDPV6, HashReport.UDPV6_EX),
    ):
        assert hashed(ip / transport) == (with_ports, report)
        assert hashed(ip / transport, HashType.IPV6) == (addresses, HashReport.IPV6)
        extended = ip / IPv6ExtHdrHopByHop() / transport
        assert hashed(extended) == (with_ports, report_ex)
        assert hashed(extended, HashType.IP_EX | HashType.IPV6) == (addresses, HashReport.IPV6_EX)
        # Without an extended type the extension headers are skipped.
        plain = HashType.TCPV6 | HashType.UDPV6 | HashType.IPV6
        assert hashed(extended, plain) == (with_ports, report)
        assert hashed(extended, HashType.IPV6) == (addresses, HashReport.IPV6)
        assert hashed(extended, HashType.TCPV4) == (0, 0)


def test_mobile_ipv6_addresses_replace_those_of_the_header() -> None:
    """The published IPv6 result again, the addresses now in home address option and type 2 routing header."""
    source, sport, target, dport, addresses, with_ports = V6[0]
    options = IPv6ExtHdrDestOpt(options=[Pad1(), PadN(optdata=b"\0"), HAO(hoa=source)])
    routing = IPv6ExtHdrRouting(type=2, addresses=[target], segleft=1)
    packet = ETHER / IPv6(src="fd00::1", dst="fd00::2") / routing / options / TCP(sport=sport, dport=dport)
    assert hashed(packet) == (with_ports, HashReport.TCPV6_EX)
    assert hashed(packet, HashType.IP_EX) == (addresses, HashReport.IPV6_EX)
    # A type without EX reads the fixed header.
    data = IPv6Address("fd00::1").packed + IPv6Address("fd00::2").packed
    assert hashed(packet, HashType.IPV6) == (bitwise(KEY, data), HashReport.IPV6)


@pytest.mark.parametrize(
    "options", [b"\xc9\x10" + bytes(4), b"\x01", bytes(5) + b"\x01", b"\xc9\x08" + bytes(8) + b"\x01\x00" * 2]
)
def test_a_damaged_home_address_option_is_no_home_address(options: bytes) -> None:
    body = options.ljust(-(-(len(options) + 2) // 8) * 8 - 2, b"\0")
    header = bytes((6, (len(body) + 2) // 8 - 1)) + body
    raw = bytes(ETHER / IPv6(src="fd00::1", dst="fd00::2", nh=60) / Raw(header + bytes(TCP())))
    data = IPv6Address("fd00::1").packed + IPv6Address("fd00::2").packed
    assert hashed(raw, HashType.IP_EX) == (bitwise(KEY, data), HashReport.IPV6_EX)


@given(st.binary(min_size=40, max_size=40), st.binary(max_size=36))
def test_the_table_hash_is_the_bitwise_one(key: bytes, data: bytes) -> None:
    assert steering.Toeplitz(key).hash(data) == bitwise(key, data)


def test_a_short_key_continues_with_zeros_and_a_long_one_is_cut() -> None:
    data = bytes(range(36))
    assert steering.Toeplitz(KEY[:20]).hash(data) == bitwise(KEY[:20] + bytes(20), data)
    assert steering.Toeplitz(KEY + b"more").hash(data) == bitwise(KEY, data)
    assert steering.Toeplitz(b"").hash(data) == 0


@pytest.mark.parametrize(
    "packet",
    [
        ETHER / IP(src="1.2.3.4", dst="5.6.7.8", flags="MF") / UDP() / b"xx",
        ETHER / IP(src="1.2.3.4", dst="5.6.7.8", frag=10, proto=17) / Raw(b"x" * 20),
        ETHER / IP(src="1.2.3.4", dst="5.6.7.8", proto=17) / Raw(b"abc"),
    ],
)
def test_fragments_hash_alike_by_their_addresses(packet: Packet) -> None:
    data = IPv4Address("1.2.3.4").packed + IPv4Address("5.6.7.8").packed
    assert hashed(packet) == (bitwise(KEY, data), HashReport.IPV4)


def test_an_atomic_fragment_is_a_whole_packet() -> None:
    ip = ETHER / IPv6(src="fd00::1", dst="fd00::2")
    whole = hashed(ip / IPv6ExtHdrHopByHop() / UDP(sport=1, dport=2))
    assert hashed(ip / IPv6ExtHdrFragment() / UDP(sport=1, dport=2)) == whole
    first = hashed(ip / IPv6ExtHdrFragment(m=1) / UDP(sport=1, dport=2))
    later = hashed(ip / IPv6ExtHdrFragment(offset=4, nh=17) / Raw(b"data"))
    assert first == later
    assert first[1] == HashReport.IPV6_EX


@pytest.mark.parametrize("raw", [b"", b"x" * 13, bytes(ETHER / b"no IP"), bytes(ETHER / IP() / TCP())[:33]])
def test_what_is_no_ip_has_no_hash(raw: bytes) -> None:
    assert hashed(raw) == (0, 0)


def test_supported_types_are_all_of_the_table() -> None:
    assert steering.SUPPORTED_HASH_TYPES == ALL_TYPES


# Receive filter

CTRL = mask(
    Feature.NET_F_CTRL_VQ,
    Feature.NET_F_CTRL_RX,
    Feature.NET_F_CTRL_RX_EXTRA,
    Feature.NET_F_CTRL_VLAN,
    Feature.NET_F_MAC,
)
MINE = bytes.fromhex("020000000001")
LISTED = bytes.fromhex("020000000007")
OTHER = bytes.fromhex("020000000099")
GROUP = bytes.fromhex("01005e000001")
OTHER_GROUP = bytes.fromhex("01005e000002")
BROADCAST = b"\xff" * 6
EVERYONE = (MINE, LISTED, OTHER, GROUP, OTHER_GROUP, BROADCAST)
BASE = RxFilter(mac=MINE, unicast=frozenset({LISTED}), multicast=frozenset({GROUP}), vlans=frozenset({5}))


@pytest.mark.parametrize(
    ("modes", "admitted"),
    [
        ({}, {MINE, LISTED, GROUP, BROADCAST}),
        ({"allmulti": True}, {MINE, LISTED, GROUP, OTHER_GROUP, BROADCAST}),
        ({"alluni": True}, {MINE, LISTED, OTHER, GROUP, BROADCAST}),
        ({"nomulti": True}, {MINE, LISTED, BROADCAST}),
        ({"nomulti": True, "allmulti": True}, {MINE, LISTED, BROADCAST}),
        ({"nouni": True}, {GROUP, BROADCAST}),
        ({"nouni": True, "alluni": True}, {GROUP, BROADCAST}),
        ({"nobcast": True}, {MINE, LISTED, GROUP}),
        ({"nobcast": True, "allmulti": True}, {MINE, LISTED, GROUP, OTHER_GROUP}),
        ({"nobcast": True, "nouni": True, "nomulti": True}, set()),
        ({"promisc": True, "nobcast": True, "nouni": True, "nomulti": True}, set(EVERYONE)),
    ],
)
def test_receive_modes(modes: dict[str, bool], admitted: set[bytes]) -> None:
    rx = replace(BASE, **modes)
    assert {mac for mac in EVERYONE if steering.admits(mac + MINE + b"\x08\x00", rx, CTRL)} == admitted


def test_without_control_of_it_nothing_is_filtered() -> None:
    assert all(steering.admits(mac + MINE + b"\x08\x00", BASE, 0) for mac in EVERYONE)


def test_without_an_address_the_device_knows_it_takes_every_unicast_frame() -> None:
    features = CTRL & ~mask(Feature.NET_F_MAC)
    assert steering.admits(OTHER + MINE + b"\x08\x00", BASE, features)
    assert not steering.admits(OTHER_GROUP + MINE + b"\x08\x00", BASE, features)
    known = features | mask(Feature.NET_F_CTRL_MAC_ADDR)
    assert not steering.admits(OTHER + MINE + b"\x08\x00", BASE, known)


@pytest.mark.parametrize(("vlan", "admitted"), [(5, True), (6, False), (0, True)])
def test_vlan_table(vlan: int, admitted: bool) -> None:
    raw = bytes(ETHER / Dot1Q(vlan=vlan, prio=7, dei=1) / b"x")
    assert steering.admits(raw, BASE, CTRL) is admitted
    assert steering.admits(raw, replace(BASE, promisc=True), CTRL)
    assert steering.admits(raw, BASE, CTRL & ~mask(Feature.NET_F_CTRL_VLAN))


def test_a_tag_that_is_cut_off_is_not_admitted() -> None:
    assert not steering.admits(MINE + MINE + b"\x81\x00\x00", BASE, CTRL)


# Queue choice

FLOW = bytes(ETHER / IP(src="9.9.9.9", dst="10.0.0.1") / UDP(sport=53, dport=4000))
REPLY_OF = bytes(ETHER / IP(src="10.0.0.1", dst="9.9.9.9") / UDP(sport=4000, dport=53))


def choose(
    conf: Steering, flows: steering.FlowMemory, raw: bytes = FLOW, live: set[int] | None = None
) -> int | None:
    packet = steering.packet_hash(raw, view(raw), conf.hash_types, conf.key)
    return steering.choose_queue(conf, flows, live, raw, view(raw), packet)


def test_rss_takes_the_queue_of_the_table_and_drops_for_a_reset_one() -> None:
    table = tuple(range(8))
    conf = Steering(queue_pairs=8, rss=True, hash_types=ALL_TYPES, key=KEY, table=table, unclassified_queue=3)
    value, report = hashed(FLOW)
    assert report == HashReport.UDPV4
    flows = steering.FlowMemory()
    assert choose(conf, flows) == value & 7
    assert choose(conf, flows, live={value & 7}) == value & 7
    assert choose(conf, flows, live=set(range(8)) - {value & 7}) is None
    assert choose(conf, flows, bytes(ETHER / b"unclassified")) == 3
    assert choose(replace(conf, hash_types=0), flows) == 3
    assert choose(conf, flows, bytes(ETHER / b"unclassified"), live={1}) is None


def test_automatic_steering_returns_a_flow_to_the_queue_it_was_sent_on() -> None:
    flows = steering.FlowMemory()
    conf = Steering(queue_pairs=8)
    for queue in (5, 2):
        flows.sent(REPLY_OF, view(REPLY_OF), queue)
        assert choose(conf, flows) == queue
    assert len(flows) == 1
    # The driver now uses fewer pairs.
    assert choose(replace(conf, queue_pairs=2), flows) in (0, 1)
    assert choose(Steering(), flows) == 0
    six = bytes(ETHER / IPv6(src="fd00::1", dst="fd00::2") / TCP(sport=1, dport=2))
    back = bytes(ETHER / IPv6(src="fd00::2", dst="fd00::1") / TCP(sport=2, dport=1))
    flows.sent(back, view(back), 7)
    assert choose(conf, flows, six) == 7
    ping = bytes(ETHER / IP(src="1.1.1.1", dst="2.2.2.2") / ICMP())
    pong = bytes(ETHER / IP(src="2.2.2.2", dst="1.1.1.1") / ICMP(type=0))
    flows.sent(ping, view(ping), 6)
    assert choose(conf, flows, pong) == 6


def test_frames_without_ip_are_not_learned() -> None:
    flows = steering.FlowMemory()
    flows.sent(bytes(ETHER / b"arp"), view(bytes(ETHER / b"arp")), 1)
    assert len(flows) == 0


def test_an_unknown_flow_keeps_to_one_queue_and_flows_spread() -> None:
    flows = steering.FlowMemory()
    conf = Steering(queue_pairs=4)
    seen = set()
    for port in range(64):
        raw = bytes(ETHER / IP(src="9.9.9.9", dst="10.0.0.1") / UDP(sport=port, dport=4000))
        first = choose(conf, flows, raw)
        assert choose(conf, flows, raw) == first
        seen.add(first)
    assert seen == {0, 1, 2, 3}


def test_automatic_steering_moves_to_another_queue_when_one_is_reset() -> None:
    flows = steering.FlowMemory()
    conf = Steering(queue_pairs=4)
    flows.sent(REPLY_OF, view(REPLY_OF), 2)
    assert choose(conf, flows, live={2, 3}) == 2
    assert choose(conf, flows, live={3}) == 3
    assert choose(conf, flows, live={6}) is None
    assert choose(conf, flows, live=set()) is None
    assert choose(Steering(), flows, live={1}) is None


def test_the_memory_of_flows_is_bounded_and_forgets_the_oldest() -> None:
    flows = steering.FlowMemory()
    base = bytearray(REPLY_OF)
    for number in range(steering.MAX_FLOWS + 1):
        base[34:36] = number.to_bytes(2, "big")
        flows.sent(bytes(base), view(base), 1)
    assert len(flows) == steering.MAX_FLOWS
    base[34:36] = (0).to_bytes(2, "big")
    first = bytes(base)
    assert flows.queue_of(steering.flow_key(first, view(first), sent=True)) is None
