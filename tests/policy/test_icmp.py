"""ICMP errors as scapy reads them, about whom none is sent, and which ones from the net are read."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, ICMPerror, IPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_Redirect,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPerror6,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.packet import Packet

from virtio_ipsec.ipsec import ip
from virtio_ipsec.policy.icmp import IcmpError, Problem, error, may_answer, read_error

ME4, ME6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
FOUR = IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2) / bytes(1400)
SIX = IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=1, dport=2) / bytes(1400)


def parsed(packet: Packet) -> ip.Packet:
    return ip.parse(bytes(packet))


def right_sum(packet: Packet, layer: type[Packet], name: str) -> bool:
    written = getattr(packet[layer], name)
    delattr(packet[layer], name)
    return getattr(type(packet)(bytes(packet))[layer], name) == written


@pytest.mark.parametrize(
    ("problem", "kind"),
    [(Problem.TOO_BIG, (3, 4)), (Problem.UNREACHABLE, (3, 1)), (Problem.TTL_EXPIRED, (11, 0))],
)
def test_an_ipv4_error_quotes_what_fits_into_576_octets(problem: Problem, kind: tuple[int, int]) -> None:
    made = error(parsed(FOUR), problem, ME4, 1400)
    read = IP(made)
    assert (len(made), read.src, read.dst, read.ttl) == (576, str(ME4), "10.0.0.1", 64)
    assert (read[ICMP].type, read[ICMP].code) == kind
    assert (read[IPerror].src, read[IPerror].dst) == ("10.0.0.1", "10.0.0.2")
    if problem is Problem.TOO_BIG:
        assert read[ICMP].nexthopmtu == 1400
    assert right_sum(IP(made), ICMP, "chksum")
    assert right_sum(IP(made), IP, "chksum")


@pytest.mark.parametrize(
    ("problem", "layer"),
    [
        (Problem.TOO_BIG, ICMPv6PacketTooBig),
        (Problem.UNREACHABLE, ICMPv6DestUnreach),
        (Problem.TTL_EXPIRED, ICMPv6TimeExceeded),
    ],
)
def test_an_ipv6_error_quotes_what_fits_into_1280_octets(problem: Problem, layer: type[Packet]) -> None:
    made = error(parsed(SIX), problem, ME6, 1400)
    read = IPv6(made)
    assert (len(made), read.src, read.dst) == (1280, str(ME6), "fd00::1")
    assert read[layer].code == problem.value[1][1]
    assert read[IPerror6].dst == "fd00::2"
    if problem is Problem.TOO_BIG:
        assert read[layer].mtu == 1400
    assert right_sum(IPv6(made), layer, "cksum")


SILENT = {
    "an error": IP(src="10.0.0.1") / ICMP(type=3) / ICMPerror(),
    "an empty ICMP": IP(src="10.0.0.1", proto=1),
    "a group": IP(src="10.0.0.1", dst="224.0.0.1") / UDP(),
    "everybody": IP(src="10.0.0.1", dst="255.255.255.255") / UDP(),
    "a later fragment": IP(src="10.0.0.1", frag=1) / b"x",
    "nobody": IP(src="0.0.0.0") / UDP(),  # noqa: S104
    "from a group": IP(src="224.0.0.1") / UDP(),
    "from itself": IP(src="127.0.0.1") / UDP(),
    "from class E": IP(src="250.0.0.1") / UDP(),
    "v6 error": IPv6(src="fd00::1") / ICMPv6PacketTooBig(),
    "v6 redirect": IPv6(src="fd00::1") / ICMPv6ND_Redirect(),
    "v6 group": IPv6(src="fd00::1", dst="ff02::1") / UDP(),
    "v6 nobody": IPv6(src="::") / UDP(),
    "v6 from a group": IPv6(src="ff02::1") / UDP(),
    "v6 later fragment": IPv6(src="fd00::1") / IPv6ExtHdrFragment(offset=1, nh=17) / b"x",
    "v6 empty ICMP": IPv6(src="fd00::1", nh=58),
}  # fmt: skip


@pytest.mark.parametrize("name", SILENT)
def test_no_error_is_sent_about(name: str) -> None:
    assert not may_answer(parsed(SILENT[name]), Problem.UNREACHABLE)


SPOKEN = {
    "udp": FOUR,
    "echo": IP(src="10.0.0.1") / ICMP(),
    "a first fragment": IP(src="10.0.0.1", flags="MF") / UDP(),
    "v6": SIX,
    "v6 echo": IPv6(src="fd00::1") / ICMPv6EchoRequest(),
    "v6 first fragment": IPv6(src="fd00::1") / IPv6ExtHdrFragment(m=1, nh=17) / UDP(),
    "v6 options": IPv6(src="fd00::1") / IPv6ExtHdrHopByHop() / TCP(),
}


@pytest.mark.parametrize("name", SPOKEN)
def test_an_error_is_sent_about(name: str) -> None:
    assert may_answer(parsed(SPOKEN[name]), Problem.UNREACHABLE)


def test_who_sends_to_an_ipv6_group_is_told_that_a_packet_is_too_big() -> None:
    packet = parsed(SILENT["v6 group"])
    assert may_answer(packet, Problem.TOO_BIG)
    assert not may_answer(packet, Problem.TTL_EXPIRED)


def test_errors_from_the_net_are_read() -> None:
    four = IP(dst=str(ME4)) / ICMP(type=3, code=4, nexthopmtu=1300) / bytes(FOUR)[:28]
    assert read_error(parsed(four)) == IcmpError(4, 3, 4, 1300, bytes(FOUR)[:28])
    six = IPv6(dst=str(ME6)) / ICMPv6PacketTooBig(mtu=1300) / bytes(SIX)[:48]
    found = read_error(parsed(six))
    assert found == IcmpError(6, 2, 0, 1300, bytes(SIX)[:48])
    assert found.mtu == 1300
    other = read_error(parsed(IP() / ICMP(type=11) / bytes(FOUR)[:28]))
    assert other is not None
    assert other.mtu is None
    assert read_error(parsed(IPv6() / ICMPv6TimeExceeded() / bytes(SIX)[:48])).mtu is None  # type: ignore[union-attr]


UNREAD = {
    "echo": IP() / ICMP() / bytes(28),
    "udp": FOUR,
    "short": IP() / ICMP(type=3, code=4) / bytes(FOUR)[:19],
    "quotes IPv6": IP() / ICMP(type=3, code=4) / bytes(SIX)[:48],
    "checksum": IP() / ICMP(type=3, code=4, chksum=1) / bytes(FOUR)[:28],
    "fragment": IP(flags="MF") / ICMP(type=3, code=4) / bytes(FOUR)[:28],
    "v6 echo": IPv6() / ICMPv6EchoRequest(data=bytes(SIX)[:48]),
    "v6 checksum": IPv6() / ICMPv6PacketTooBig(cksum=1) / bytes(SIX)[:48],
    "v6 short": IPv6() / ICMPv6PacketTooBig() / bytes(SIX)[:39],
    "v6 quotes IPv4": IPv6() / ICMPv6PacketTooBig() / bytes(FOUR)[:48],
    "too short": IP(proto=1) / b"\x03\x04",
}  # fmt: skip


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_no_error_is_not_read_as_one(name: str) -> None:
    assert read_error(parsed(UNREAD[name])) is None
