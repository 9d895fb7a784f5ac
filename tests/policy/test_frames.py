"""Whole frames by a configuration: what is sealed, passed and dropped, and that Ethernet follows the inner packet."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1Q, Ether

from virtio_ipsec.policy.config import parse
from virtio_ipsec.policy.flows import Action, Flow, first_match
from virtio_ipsec.policy.frames import Gateway
from virtio_ipsec.policy.selectors import Selector

SAS = """
[[sa]]
id = 1
direction = "outbound"
mode = "esp-tunnel"
spi = 0x1001
algorithm = "aes-gcm-16"
key = "000102030405060708090a0b0c0d0e0f"
salt = "a0a1a2a3"
tunnel = { src = "2001:db8::1", dst = "2001:db8::2" }

[[sa]]
id = 1
direction = "inbound"
mode = "esp-tunnel"
spi = 0x1001
algorithm = "aes-gcm-16"
key = "000102030405060708090a0b0c0d0e0f"
salt = "a0a1a2a3"

[[flow]]
match = { dst = "10.0.0.9" }
action = "drop"

[[flow]]
match = { src = "10.0.0.0/24", protocol = "udp", dport = 53 }
action = "protect"
sa = 1

[[flow]]
match = { src = "fd00::/64" }
action = "protect"
sa = 1
"""
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")


@pytest.fixture
def gateway() -> Gateway:
    return Gateway(parse(SAS), lambda n: bytes(range(n)))


def test_a_sealed_frame_opens_to_itself(gateway: Gateway) -> None:
    plain = bytes(ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1000, dport=53) / b"question")
    sealed = gateway.seal(plain)
    assert sealed.what == "sealed"
    assert sealed.frame is not None
    outer = Ether(sealed.frame)
    assert outer.type == 0x86DD
    assert (outer[IPv6].src, outer[IPv6].nh) == ("2001:db8::1", 50)
    assert b"question" not in sealed.frame
    assert gateway.open(sealed.frame).frame == plain


def test_tags_stay_in_front(gateway: Gateway) -> None:
    inner = IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=1, dport=2) / b"x"
    plain = bytes(ETHER / Dot1Q(vlan=5) / inner)
    sealed = gateway.seal(plain).frame
    assert sealed is not None
    assert sealed[12:16] == plain[12:16]
    assert gateway.open(sealed).frame == plain


def test_a_raw_ip_capture_has_no_ethernet_header(gateway: Gateway) -> None:
    plain = bytes(IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=1, dport=2) / b"x")
    sealed = gateway.seal(plain, raw_ip=True).frame
    assert sealed is not None
    assert sealed[0] >> 4 == 6
    assert gateway.open(sealed, raw_ip=True).frame == plain


def test_what_no_flow_matches_passes_and_drops_are_counted(gateway: Gateway) -> None:
    arp = bytes(ETHER / ARP())
    other = bytes(ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1, dport=53))
    dropped = bytes(ETHER / IP(src="10.0.0.1", dst="10.0.0.9") / ICMP())
    broken = bytes(ETHER) + b"\x45\x00\xff\xff"
    assert gateway.seal(arp).frame == arp
    assert gateway.seal(other).frame == other
    assert gateway.seal(dropped).frame is None
    assert gateway.seal(ETHER.dst.encode()[:6] + bytes(6) + b"\x08\x00" + broken[14:]).frame is None
    assert gateway.seal(b"short").frame == b"short"
    assert gateway.counts == {"not IP": 2, "passed": 1, "dropped: flow": 1, "dropped: malformed": 1}


def test_a_replayed_or_damaged_frame_is_dropped(gateway: Gateway) -> None:
    plain = bytes(ETHER / IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=1, dport=2) / b"x")
    sealed = gateway.seal(plain).frame
    assert sealed is not None
    damaged = sealed[:-1] + bytes((sealed[-1] ^ 1,))
    assert gateway.open(damaged).what == "dropped: bad_icv"
    assert gateway.open(sealed).what == "opened"
    assert gateway.open(sealed).what == "dropped: replay"


def test_an_unknown_spi_passes_untouched(gateway: Gateway) -> None:
    frame = bytes(ETHER / IP(src="10.0.0.1", dst="10.0.0.2", proto=50) / (b"\0\0\x77\x77" + bytes(40)))
    assert gateway.open(frame).what == "passed"
    assert gateway.open(frame).frame == frame


def test_a_fragment_matches_no_selector_with_ports() -> None:
    flows = [
        Flow(Action.DROP, (Selector(protocol=17, remote_ports=(53, 53)),)),
        Flow(Action.BYPASS, (Selector(protocol=17),)),
    ]
    whole = IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=53)
    fragment = IP(src="10.0.0.1", dst="10.0.0.2", flags="MF") / UDP(sport=1, dport=53)
    six = IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrFragment(m=1, nh=17) / UDP(sport=1, dport=53)
    assert first_match(flows, bytes(whole)) is flows[0]
    assert first_match(flows, bytes(fragment)) is flows[1]
    assert first_match(flows, bytes(six)) is flows[1]
    assert first_match(flows[:1], bytes(IP(src="10.0.0.1", dst="10.0.0.2") / TCP(dport=53))) is None


def test_networks_of_the_other_family_do_not_match() -> None:
    flow = next(f for f in parse(SAS).flows if f.sa == 1 and f.selectors[0].protocol is None)
    packet = bytes(IP(src="10.0.0.1", dst="10.0.0.2") / ICMP())
    assert first_match([flow], packet) is None
