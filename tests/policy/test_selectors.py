"""The security policy database, judged by packets that scapy makes and by brute force over ipaddress."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.packet import Packet, Raw

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.policy.flows import Action
from virtio_ipsec.policy.selectors import Decision, InboundSa, Outcome, Policy, Range, Rule, Selector

NET4, NET6 = ip_network("10.0.0.0/24"), ip_network("fd00::/64")
HTTP = Selector(remote=ip_network("10.1.0.0/16"), protocol=6, remote_ports=(80, 80))
TO_HTTP = IP(src="10.0.0.1", dst="10.1.2.3") / TCP(sport=1025, dport=80)
FROM_HTTP = IP(src="10.1.2.3", dst="10.0.0.1") / TCP(sport=80, dport=1025)


def protect(selector: Selector, sa: int = 1, priority: int = 0) -> Rule:
    return Rule(selector, Action.PROTECT, sa, priority)


def decided(policy: Policy, packet: Packet) -> Outcome:
    return policy.outbound(bytes(packet)).outcome


# ---- brute force: every field by hand from what scapy dissected -------------------------------------------------


def witness(selector: Selector, packet: Packet, outbound: bool) -> bool:
    """Whether a whole, unfragmented packet matches."""
    ip = packet.getlayer(IP) or packet.getlayer(IPv6)
    ours, theirs = (ip.src, ip.dst) if outbound else (ip.dst, ip.src)
    for network, address in ((selector.local, ours), (selector.remote, theirs)):
        if network is not None and ip_address(address) not in network:
            return False
    kinds = {TCP: 6, UDP: 17, ICMP: 1, ICMPv6ND_NS: 58}
    layer, number = next(((packet[k], n) for k, n in kinds.items() if packet.haslayer(k)), (None, 47))
    if selector.protocol is not None and selector.protocol != number:
        return False
    if number in (6, 17):
        mine, other = (layer.sport, layer.dport) if outbound else (layer.dport, layer.sport)
        return within(selector.local_ports, mine) and within(selector.remote_ports, other)
    return number == 47 or within(selector.icmp, layer.type * 256 + layer.code)


def within(wanted: Range | None, number: int) -> bool:
    return wanted is None or number in range(wanted[0], wanted[1] + 1)


def a_packet(rnd: random.Random) -> Packet:
    hosts = (
        ("10.0.0.1", "10.0.1.1", "10.1.2.3")
        if rnd.random() < 0.5
        else ("fd00::1", "fd00:0:0:1::1", "fe80::1")
    )
    base = IP if "." in hosts[0] else IPv6
    ip = base(src=rnd.choice(hosts), dst=rnd.choice(hosts))
    if base is IPv6 and rnd.random() < 0.3:
        ip = ip / rnd.choice(
            (IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrRouting(), IPv6ExtHdrFragment())
        )
    ports = {"sport": rnd.choice((53, 80, 1000)), "dport": rnd.choice((53, 80, 1000))}
    control = ICMP(type=8, code=0) if base is IP else ICMPv6ND_NS()
    return ip / rnd.choice((TCP(**ports), UDP(**ports), control))


def a_selector(rnd: random.Random) -> Selector:
    networks = [
        None,
        *(ip_network(n) for n in rnd.choice((("10.0.0.0/24", "10.0.0.0/8"), ("fd00::/64", "fd00::/16")))),
    ]
    protocol = rnd.choice((None, 6, 17, 1, 58))
    ports: list[Range | None] = [None, (80, 80), (1, 999), (0, 65535)]
    kinds: list[Range | None] = [None, (0x0800, 0x0800), (0x8500, 0x89FF)]
    has_ports = protocol in (6, 17)
    return Selector(
        rnd.choice(networks), rnd.choice(networks), protocol,
        rnd.choice(ports) if has_ports else None, rnd.choice(ports) if has_ports else None,
        rnd.choice(kinds) if protocol in (1, 58) else None,
    )  # fmt: skip


def test_the_first_match_is_the_one_that_brute_force_finds() -> None:
    rnd = random.Random(1)
    found = set()
    for _ in range(400):
        rules = tuple(
            Rule(a_selector(rnd), Action.PROTECT, number, rnd.randrange(3))
            for number in range(rnd.randrange(8))
        )
        policy = Policy(rules, Action.BYPASS, {7: InboundSa(tuple(rule.selector for rule in rules))})
        for _ in range(4):
            packet = a_packet(rnd)
            raw = bytes(packet)
            for outbound in (True, False):
                fits = [n for n, rule in enumerate(rules) if witness(rule.selector, packet, outbound)]
                best = max(fits, key=lambda n: (rules[n].priority, -n), default=None)
                found.add(best)
                if outbound:
                    outcome = Outcome.BYPASS if best is None else Outcome.PROTECT
                    assert policy.outbound(raw) == Decision(outcome, best, best)
                else:
                    outcome = Outcome.BYPASS if best is None else Outcome.DROP_CLEARTEXT
                    assert policy.inbound_clear(raw) == Decision(outcome, None, best)
                    opened = Outcome.DROP_SELECTOR if best is None else Outcome.BYPASS
                    assert policy.inbound_opened(7, raw).outcome is opened
    assert len(found) > 6


# ---- what the text promises -------------------------------------------------------------------------------------


def test_priority_goes_before_place_and_place_decides_among_equals() -> None:
    everything = Selector()
    policy = Policy(
        (protect(everything, 1), Rule(everything, Action.DROP, priority=5), protect(everything, 3, 5)),
        Action.BYPASS,
    )
    assert policy.outbound(bytes(TO_HTTP)) == Decision(Outcome.DROP_RULE, None, 1)


@pytest.mark.parametrize(
    ("default", "outcome"), [(Action.BYPASS, Outcome.BYPASS), (Action.DROP, Outcome.DROP_DEFAULT)]
)
def test_without_a_match_the_default_decides(default: Action, outcome: Outcome) -> None:
    policy = Policy((protect(HTTP),), default)
    assert policy.outbound(bytes(IP(dst="10.2.0.1") / TCP(dport=80))) == Decision(outcome)
    assert policy.inbound_clear(bytes(IP(src="10.2.0.1") / TCP(sport=80))) == Decision(outcome)


def test_cleartext_that_ought_to_be_protected_is_dropped() -> None:
    policy = Policy((Rule(Selector(protocol=17), Action.BYPASS), protect(HTTP, 4)), Action.BYPASS)
    assert policy.inbound_clear(bytes(FROM_HTTP)) == Decision(Outcome.DROP_CLEARTEXT, None, 1)
    assert policy.inbound_clear(bytes(TO_HTTP)).outcome is Outcome.BYPASS
    assert policy.inbound_clear(bytes(IP(src="10.1.2.3") / UDP(sport=80))) == Decision(
        Outcome.BYPASS, None, 0
    )


def test_an_opened_packet_must_be_one_that_its_sa_is_for() -> None:
    policy = Policy(
        (protect(HTTP),), Action.DROP, {3: InboundSa((HTTP, Selector(local=NET6))), 4: InboundSa(())}
    )
    assert policy.inbound_opened(3, bytes(FROM_HTTP)).outcome is Outcome.BYPASS
    assert policy.inbound_opened(3, bytes(IPv6(dst="fd00::9") / UDP())).outcome is Outcome.BYPASS
    for sa, packet in (
        (3, TO_HTTP),
        (4, FROM_HTTP),
        (5, FROM_HTTP),
        (3, FROM_HTTP.__class__(src="10.1.0.1") / UDP()),
    ):
        assert policy.inbound_opened(sa, bytes(packet)).outcome is Outcome.DROP_SELECTOR


def test_a_tunnel_must_come_from_its_peer() -> None:
    peer = IPv4Address("192.0.2.1")
    policy = Policy((), Action.DROP, {3: InboundSa((Selector(),), peer), 4: InboundSa((Selector(),))})
    packet = bytes(FROM_HTTP)
    assert policy.inbound_opened(3, packet, peer).outcome is Outcome.BYPASS
    assert policy.inbound_opened(4, packet, peer).outcome is Outcome.BYPASS
    assert policy.inbound_opened(4, packet).outcome is Outcome.BYPASS
    for other in (None, peer + 1, ip_address("::ffff:192.0.2.1")):
        assert policy.inbound_opened(3, packet, other).outcome is Outcome.DROP_PEER


FRAGMENTS = [
    IP(src="10.0.0.1", dst="10.1.2.3", proto=6, frag=1) / Raw(bytes(16)),
    IP(src="10.0.0.1", dst="10.1.2.3", flags="MF") / TCP(sport=1025, dport=80),
    IP(src="10.0.0.1", dst="10.1.2.3", proto=6) / Raw(b"\x04\x01\x00"),
]


@pytest.mark.parametrize("packet", FRAGMENTS)
def test_hidden_ports_do_not_get_past_a_rule_that_asks_for_them(packet: Packet) -> None:
    assert decided(Policy((protect(HTTP),), Action.BYPASS), packet) is Outcome.DROP_HIDDEN
    assert decided(Policy((Rule(HTTP, Action.DROP),), Action.BYPASS), packet) is Outcome.DROP_HIDDEN
    # A rule that would let it pass is not taken as meant; the next one decides.
    open_door = Rule(HTTP, Action.BYPASS)
    assert decided(Policy((open_door,), Action.DROP), packet) is Outcome.DROP_DEFAULT
    anything = protect(Selector(protocol=6))
    assert decided(Policy((open_door, anything), Action.DROP), packet) is Outcome.PROTECT
    assert decided(Policy((anything, protect(HTTP, 2)), Action.DROP), packet) is Outcome.PROTECT
    assert (
        decided(Policy((protect(Selector(protocol=17, local_ports=(1, 1))), anything), Action.DROP), packet)
        is Outcome.PROTECT
    )
    assert (
        Policy((), Action.DROP, {1: InboundSa((HTTP,))}).inbound_opened(1, bytes(packet)).outcome
        is Outcome.DROP_SELECTOR
    )


def test_a_range_of_all_ports_asks_for_none() -> None:
    selector = Selector(protocol=6, local_ports=(0, 65535), remote_ports=(0, 65535))
    assert not selector.names_numbers
    assert decided(Policy((protect(selector),), Action.DROP), FRAGMENTS[0]) is Outcome.PROTECT


def test_a_later_fragment_may_hide_its_protocol() -> None:
    later = IPv6(src="fd00::1", dst="fd01::1") / IPv6ExtHdrFragment(offset=3, nh=60) / Raw(bytes(16))
    assert decided(Policy((protect(Selector(protocol=6)),), Action.BYPASS), later) is Outcome.DROP_HIDDEN
    assert decided(Policy((protect(Selector()),), Action.BYPASS), later) is Outcome.PROTECT
    assert (
        decided(Policy((Rule(Selector(protocol=6), Action.BYPASS),), Action.DROP), later)
        is Outcome.DROP_DEFAULT
    )
    known = IPv6(src="fd00::1", dst="fd01::1") / IPv6ExtHdrFragment(offset=3, nh=6) / Raw(bytes(16))
    assert decided(Policy((protect(Selector(protocol=6)),), Action.BYPASS), known) is Outcome.PROTECT
    assert decided(Policy((protect(Selector(protocol=17)),), Action.BYPASS), known) is Outcome.BYPASS


def test_an_atomic_fragment_is_a_whole_packet() -> None:
    packet = IPv6(dst="fd01::1") / IPv6ExtHdrFragment(offset=0, m=0) / TCP(dport=80)
    assert (
        decided(Policy((protect(Selector(protocol=6, remote_ports=(80, 80))),), Action.DROP), packet)
        is Outcome.PROTECT
    )


def test_neighbour_discovery_can_be_let_through_alone() -> None:
    """Types 133 to 137, whichever way they go; other ICMPv6 is protected."""
    discovery = Rule(Selector(protocol=58, icmp=(133 * 256, 137 * 256 + 255)), Action.BYPASS)
    policy = Policy((discovery, protect(Selector(protocol=58))), Action.DROP)
    solicitation = bytes(IPv6(src="fe80::1", dst="ff02::1") / ICMPv6ND_NS())
    echo = bytes(IPv6(src="fe80::1", dst="fe80::2", nh=58) / Raw(b"\x80\0" + bytes(6)))
    assert policy.outbound(solicitation).outcome is Outcome.BYPASS
    assert policy.inbound_clear(solicitation).outcome is Outcome.BYPASS
    assert policy.outbound(echo).outcome is Outcome.PROTECT
    assert policy.inbound_clear(echo).outcome is Outcome.DROP_CLEARTEXT


@pytest.mark.parametrize(
    ("raw", "outcome"),
    [
        (b"", Outcome.NOT_IP),
        (b"\x10" * 40, Outcome.NOT_IP),
        (bytes(IP())[:19], Outcome.DROP_MALFORMED),
        (bytes(IPv6())[:39], Outcome.DROP_MALFORMED),
        (bytes(IPv6(nh=60)), Outcome.DROP_MALFORMED),
        (bytes(IPv6(nh=60) / Raw(b"\x06\x01" + bytes(6))), Outcome.DROP_MALFORMED),
        (bytes(IPv6() / IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop() / TCP()), Outcome.DROP_MALFORMED),
    ],
)
def test_what_is_not_a_sound_ip_packet(raw: bytes, outcome: Outcome) -> None:
    policy = Policy((Rule(Selector(), Action.BYPASS),), Action.BYPASS, {1: InboundSa((Selector(),))})
    assert (
        policy.outbound(raw)
        == policy.inbound_clear(raw)
        == policy.inbound_opened(1, raw)
        == Decision(outcome)
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"local": NET4, "remote": NET6},
        {"protocol": 256},
        {"protocol": -1},
        {"local_ports": (1, 2)},
        {"protocol": 50, "remote_ports": (1, 2)},
        {"protocol": 6, "icmp": (1, 2)},
        {"protocol": 6, "local_ports": (2, 1)},
        {"protocol": 6, "local_ports": (-1, 1)},
        {"protocol": 1, "icmp": (0, 65536)},
    ],
)
def test_selectors_that_cannot_be(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Selector(**fields)  # type: ignore[arg-type]


def test_policies_that_cannot_be() -> None:
    for rules, default in (
        ((), Action.PROTECT),
        ((Rule(Selector(), Action.PROTECT),), Action.DROP),
        ((Rule(Selector(), Action.DROP, 1),), Action.DROP),
        ((Rule(Selector(), Action.DROP, None, -1),), Action.DROP),
    ):
        with pytest.raises(ConfigError):
            Policy(rules, default)
