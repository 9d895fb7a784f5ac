"""The match engine against a linear matcher written from the text, and each rule of what a selector sees."""

from __future__ import annotations

import random

import pytest
from plane import ETHER, SPI, add_rule, esp, eth, ipv4, ipv6, udp
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1Q
from scapy.packet import Packet, Raw

from virtio_ipsec.device.flow_filter import FlowFilter
from virtio_ipsec.device.frame import view
from virtio_ipsec.device.state import FilterObjects
from virtio_ipsec.wire.flow_filter import FfClassifier, FfGroup, FfRule, Selector
from virtio_ipsec.wire.numbers import FfAction, SelectorType

PAYLOAD = Raw(SPI.to_bytes(4, "big") + b"\0\0\0\x01" + bytes(40))
ESP4 = ETHER / IP(src="10.0.0.1", dst="10.0.0.2", proto=50) / PAYLOAD
ESP6 = ETHER / IPv6(src="fd00::1", dst="fd00::2", nh=50) / PAYLOAD


def match(filters: FilterObjects, packet: Packet | bytes) -> FfRule | None:
    raw = bytes(packet)
    return FlowFilter(filters).match(raw, view(raw))


# The witness: headers by offset, one rule after the other, bit by bit.


def headers_of(raw: bytes) -> dict[int, bytes]:
    """Selector type -> the bytes that it compares, for untagged frames with sound lengths."""
    found = {int(SelectorType.ETH): raw[:14]}
    kind = raw[12:14]
    if kind == b"\x08\x00":
        head = (raw[14] & 15) * 4
        found[int(SelectorType.IPV4)] = raw[14:34]
        protocol, at = raw[23], 14 + head
        if (raw[20] << 8 | raw[21]) & 0x1FFF:
            return found
    elif kind == b"\x86\xdd":
        protocol, at = raw[20], 54
        while protocol in (0, 43, 44, 60):
            here = protocol
            protocol, length = raw[at], 8 if here == 44 else 8 + 8 * raw[at + 1]
            if here == 44 and (raw[at + 2] << 8 | raw[at + 3]) >> 3:
                found[int(SelectorType.IPV6)] = raw[14:20] + bytes((protocol,)) + raw[21:54]
                return found
            at += length
        found[int(SelectorType.IPV6)] = raw[14:20] + bytes((protocol,)) + raw[21:54]
    else:
        return found
    size = {6: (SelectorType.TCP, 20), 17: (SelectorType.UDP, 8), 50: (SelectorType.ESP, 8)}.get(protocol)
    if size and len(raw) >= at + size[1]:
        found[int(size[0])] = raw[at : at + size[1]]
    return found


def linear(filters: FilterObjects, raw: bytes) -> tuple[int, int] | None:
    """(group priority, rule priority) of the first match in the order of the text."""
    found = headers_of(raw)
    for group_id, group in sorted(filters.groups.items(), key=lambda g: -g[1].group_priority):
        for rule in sorted(filters.rules.values(), key=lambda r: -r.rule_priority):
            if rule.group_id != group_id:
                continue
            at = 0
            for selector in filters.classifiers[rule.classifier_id].selectors:
                key = rule.keys[at : at + len(selector.mask)]
                at += len(selector.mask)
                have = found.get(int(selector.type), b"")
                if len(have) < len(key) or any(
                    (h ^ k) & m for h, k, m in zip(have, key, selector.mask, strict=False)
                ):
                    break
            else:
                return group.group_priority, rule.rule_priority
    return None


def random_packet(rng: random.Random) -> bytes:
    address = f"10.0.0.{rng.randrange(4)}"
    if rng.random() < 0.5:
        ip: Packet = IP(
            src=address, dst="10.0.0.9", tos=rng.randrange(4), options=[IPOption_NOP()] * rng.randrange(5)
        )
        if rng.random() < 0.1:
            ip.frag = 3
    else:
        ip = IPv6(src="fd00::" + str(rng.randrange(4)), dst="fd00::9")
        if rng.random() < 0.4:
            ip = ip / IPv6ExtHdrHopByHop()
        if rng.random() < 0.4:
            ip = ip / IPv6ExtHdrDestOpt()
        if rng.random() < 0.2:
            ip = ip / IPv6ExtHdrFragment(offset=rng.choice((0, 5)), m=1)
    choice = rng.randrange(4)
    if choice == 0:
        ip = ip / TCP(sport=rng.randrange(3), dport=rng.randrange(3), flags=rng.choice("SAF"))
    elif choice == 1:
        ip = ip / UDP(sport=rng.randrange(3), dport=rng.randrange(3))
    elif choice == 2:
        last = ip.lastlayer()
        if isinstance(last, IP):
            last.proto = 50
        else:
            last.nh = 50
        ip = ip / Raw(rng.randrange(3).to_bytes(4, "big") + bytes(8))
    else:
        last = ip.lastlayer()
        if isinstance(last, IP):
            last.proto = 99
        else:
            last.nh = 99
        ip = ip / Raw(b"x" * rng.randrange(30))
    return bytes(ETHER / ip)


SIZES = {1: 14, 2: 20, 3: 40, 4: 20, 5: 8, 6: 8}


def random_filters(rng: random.Random, packets: list[bytes]) -> FilterObjects:
    """Rules whose keys are cut from packets, so that many match."""
    filters = FilterObjects()
    for ident in range(rng.randrange(1, 4)):
        filters.groups[ident] = FfGroup(rng.choice((5, 10, 15)) + ident)
    for ident in range(rng.randrange(1, 6)):
        types = [1]
        if rng.random() < 0.8:
            types.append(rng.choice((2, 3)))
            if rng.random() < 0.6:
                types.append(rng.choice((4, 5, 6)))
        masks = []
        for kind in types:
            bits = bytearray(SIZES[kind])
            for _ in range(rng.randrange(3)):
                bits[rng.randrange(len(bits))] = rng.choice((0xFF, 0xF0, 0x01))
            if kind == 1 and len(types) > 1:
                bits[12:14] = b"\xff\xff"
            masks.append(Selector(kind, 1, bytes(bits)))
        filters.classifiers[ident] = FfClassifier(tuple(masks))
    priorities = rng.sample(range(256), 40)
    for ident in range(rng.randrange(1, 40)):
        classifier = rng.randrange(len(filters.classifiers))
        sample = headers_of(rng.choice(packets))
        keys = b"".join(
            sample.get(int(s.type), bytes(SIZES[int(s.type)]))
            for s in filters.classifiers[classifier].selectors
        )
        filters.rules[ident] = FfRule(
            rng.randrange(len(filters.groups)), classifier, priorities[ident], FfAction.DROP, 0, keys
        )
    return filters


def test_the_engine_finds_what_a_linear_search_finds() -> None:
    rng = random.Random(20)
    matches = 0
    for _ in range(60):
        packets = [random_packet(rng) for _ in range(20)]
        filters = random_filters(rng, packets)
        for raw in packets:
            rule = match(filters, raw)
            want = linear(filters, raw)
            matches += want is not None
            if rule is None:
                assert want is None, raw.hex()
            else:
                assert want == (filters.groups[rule.group_id].group_priority, rule.rule_priority), raw.hex()
    assert 300 < matches < 1150


def test_groups_then_rules_by_falling_priority() -> None:
    """NET-FF-DEV-12 and NET-FF-DEV-13."""
    filters = FilterObjects()
    low = add_rule(filters, FfAction.DROP, eth(), group=4, priority=255)
    assert match(filters, ESP4) is low
    high = add_rule(filters, FfAction.DROP, eth(), group=5, priority=1)
    assert match(filters, ESP4) is high
    better = add_rule(filters, FfAction.DROP, eth(), ipv4(), group=5, priority=2)
    assert match(filters, ESP4) is better
    assert match(filters, ETHER / IP() / UDP()) is high
    assert match(filters, ESP6) is None


def test_equal_priorities_take_the_lower_id() -> None:
    filters = FilterObjects()
    first = add_rule(filters, FfAction.DROP, eth(), ipv4())
    add_rule(filters, FfAction.DROP, eth())
    assert match(filters, ESP4) is first


def test_rules_without_their_group_or_classifier_do_nothing() -> None:
    filters = FilterObjects()
    add_rule(filters, FfAction.DROP, eth(), group=1)
    add_rule(filters, FfAction.DROP, eth(), group=2)
    del filters.groups[1]
    del filters.classifiers[1]
    assert match(filters, ESP4) is None


def test_key_bits_outside_the_mask_do_not_count() -> None:
    """The key is masked like the packet (INF-28)."""
    filters = FilterObjects()
    selector, _ = eth()
    rule = add_rule(filters, FfAction.DROP, (selector, b"\x55" * 12 + b"\x08\x00"))
    assert match(filters, ESP4) is rule


def test_a_partial_mask_compares_single_bits() -> None:
    filters = FilterObjects()
    multicast = (Selector(SelectorType.ETH, 1, b"\x01" + bytes(13)), b"\x01" + bytes(13))
    rule = add_rule(filters, FfAction.DROP, multicast)
    assert match(filters, ESP4) is None
    assert match(filters, b"\x33" + bytes(ESP4)[1:]) is rule


@pytest.mark.parametrize(("packet", "network"), [(ESP4, ipv4()), (ESP6, ipv6())])
def test_spi_match(packet: Packet, network: tuple[Selector, bytes]) -> None:
    """INF-31: the ESP selector is the first eight bytes of the ESP header."""
    kind = eth(0x0800 if packet is ESP4 else 0x86DD)
    filters = FilterObjects()
    add_rule(filters, FfAction.IPSEC, kind, network, esp(SPI + 1))
    assert match(filters, packet) is None
    rule = add_rule(filters, FfAction.IPSEC, kind, network, esp(SPI))
    assert match(filters, packet) is rule


def test_a_transport_selector_needs_its_protocol_whatever_the_key_says() -> None:
    """A key for Protocol 50 over a UDP selector: an ESP packet has no UDP header to compare."""
    filters = FilterObjects()
    blank = (Selector(SelectorType.UDP, 0, bytes(8)), bytes(8))
    add_rule(filters, FfAction.DROP, eth(), ipv4(50), blank)
    assert match(filters, ESP4) is None


def test_ipv4_options_are_no_part_of_the_selector_and_do_not_hide_the_transport() -> None:
    filters = FilterObjects()
    rule = add_rule(filters, FfAction.DROP, eth(), ipv4(17), udp(53))
    ip = IP(src="1.1.1.1", dst="2.2.2.2", options=[IPOption_NOP()] * 8)
    assert match(filters, ETHER / ip / UDP(dport=53)) is rule
    assert match(filters, ETHER / ip / UDP(dport=54)) is None


def test_ipv6_next_header_is_that_of_the_last_extension_header() -> None:
    """INF-32."""
    filters = FilterObjects()
    rule = add_rule(filters, FfAction.DROP, eth(0x86DD), ipv6(17), udp(53))
    ip = ETHER / IPv6(src="fd00::1", dst="fd00::2")
    for chain in (ip, ip / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(), ip / IPv6ExtHdrFragment()):
        assert match(filters, chain / UDP(dport=53)) is rule
    hop = FilterObjects()
    add_rule(hop, FfAction.DROP, eth(0x86DD), ipv6(0))
    assert match(hop, ip / IPv6ExtHdrHopByHop() / UDP(dport=53)) is None


def test_ah_is_where_the_walk_ends() -> None:
    """E69: inbound AH is selected by Next Header 51."""
    filters = FilterObjects()
    rule = add_rule(filters, FfAction.IPSEC, eth(0x86DD), ipv6(51))
    ah = Raw(bytes((17, 4)) + bytes(22))
    assert match(filters, ETHER / IPv6(nh=51) / ah) is rule
    assert match(filters, ETHER / IPv6() / IPv6ExtHdrDestOpt(nh=51) / ah) is rule


def test_single_tcp_control_bits() -> None:
    bits = bytearray(20)
    bits[13] = 0x02
    syn = (Selector(SelectorType.TCP, 0, bytes(bits)), bytes(bits))
    filters = FilterObjects()
    rule = add_rule(filters, FfAction.DROP, eth(), ipv4(6), syn)
    assert match(filters, ETHER / IP() / TCP(flags="SA")) is rule
    assert match(filters, ETHER / IP() / TCP(flags="A")) is None


def test_only_the_first_fragment_shows_a_transport_header() -> None:
    """E65."""
    filters = FilterObjects()
    ports = add_rule(filters, FfAction.DROP, eth(), ipv4(17), udp(53), priority=2)
    addresses = add_rule(filters, FfAction.DROP, eth(), ipv4(17))
    first = ETHER / IP(flags="MF") / UDP(dport=53)
    later = ETHER / IP(frag=1, proto=17) / Raw(bytes(UDP(dport=53)))
    assert match(filters, first) is ports
    assert match(filters, later) is addresses


def test_a_tagged_frame_shows_its_tag_as_ethertype_and_nothing_behind_it() -> None:
    filters = FilterObjects()
    add_rule(filters, FfAction.DROP, eth(), ipv4(17), priority=9)
    add_rule(filters, FfAction.DROP, eth(0x8100), ipv4(17), priority=8)
    tag = add_rule(filters, FfAction.DROP, eth(0x8100))
    assert match(filters, ETHER / Dot1Q(vlan=3) / IP() / UDP()) is tag


@pytest.mark.parametrize(
    "raw",
    [
        bytes(ESP4)[:13],
        bytes(ESP4)[:33],
        bytes(ESP4)[:40],
        bytes(ESP6)[:50],
        bytes(ESP6)[:60],
        bytes(ETHER / IP(len=24, proto=50) / PAYLOAD),
        bytes(ETHER / IP(len=19, proto=50) / PAYLOAD),
        bytes(ETHER / IP(ihl=4, proto=50) / PAYLOAD),
        bytes(ETHER / IP(version=6, proto=50) / PAYLOAD),
        bytes(ETHER / IPv6(version=4, nh=50) / PAYLOAD),
        bytes(ETHER / IPv6(nh=60) / Raw(b"\x32\xff" + bytes(30))),
        bytes(ETHER / IPv6(nh=60, plen=4) / Raw(b"\x32\x00" + bytes(30))),
    ],
)
def test_packets_whose_lengths_cannot_be_true_match_no_ip_rule(raw: bytes) -> None:
    filters = FilterObjects()
    for kind, network in ((eth(), ipv4()), (eth(0x86DD), ipv6())):
        add_rule(filters, FfAction.IPSEC, kind, network, (Selector(SelectorType.ESP, 0, bytes(8)), bytes(8)))
    assert match(filters, raw) is None


def test_a_short_frame_does_not_match_an_ethernet_rule() -> None:
    filters = FilterObjects()
    rule = add_rule(filters, FfAction.DROP, (Selector(SelectorType.ETH, 0, bytes(14)), bytes(14)))
    assert match(filters, b"x" * 13) is None
    assert match(filters, b"x" * 14) is rule


@pytest.mark.parametrize("selector", [Selector(9, 0, bytes(4)), Selector(SelectorType.IPV4, 0, bytes(21))])
def test_what_no_packet_has_matches_nothing(selector: Selector) -> None:
    filters = FilterObjects()
    add_rule(filters, FfAction.DROP, eth(), (selector, bytes(len(selector.mask))))
    assert match(filters, ESP4) is None


def test_ten_thousand_rules_are_one_look_up_per_classifier() -> None:
    """Cost by count of operations, not by clock: a match consults one table, whatever its size."""
    filters = FilterObjects()
    filters.groups[0] = FfGroup(1)
    selectors = tuple(selector for selector, _ in (eth(), ipv4(), esp()))
    filters.classifiers[0] = FfClassifier(selectors)
    for number in range(10_000):
        keys = b"".join(key for _, key in (eth(), ipv4(), esp(number + 1)))
        filters.rules[number] = FfRule(0, 0, 1, FfAction.IPSEC, 0, keys)
    engine = FlowFilter(filters)

    class Counting(dict[int, FfRule]):
        lookups = 0

        def get(self, key: int, default: FfRule | None = None) -> FfRule | None:  # type: ignore[override]
            Counting.lookups += 1
            return super().get(key, default)

    for group in engine._groups:
        for table in group:
            table.rules = Counting(table.rules)
    for number in (0, 4999, 9999):
        raw = bytes(ETHER / IP(proto=50) / Raw((number + 1).to_bytes(4, "big") + bytes(20)))
        assert engine.match(raw, view(raw)) is filters.rules[number]
    assert Counting.lookups == 3
