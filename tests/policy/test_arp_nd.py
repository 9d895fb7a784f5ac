"""Questions and answers about Ethernet addresses; scapy reads what we write and writes what we read."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    in6_getnsma,
    in6_getnsmac,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet
from scapy.utils6 import inet_ntop, inet_pton

from virtio_ipsec.ipsec import ip
from virtio_ipsec.policy import arp, nd

MINE, YOURS = bytes.fromhex("0200000000fe"), bytes.fromhex("020000000001")
A4, B4 = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
A6, B6 = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2:3456")


def text(mac: bytes) -> str:
    return mac.hex(":")


def test_an_arp_question_is_one_to_scapy() -> None:
    for to, target in ((None, "ff:ff:ff:ff:ff:ff"), (YOURS, text(YOURS))):
        frame = Ether(arp.request(MINE, A4, B4, to) if to else arp.request(MINE, A4, B4))
        assert (frame.dst, frame.src, frame.type) == (target, text(MINE), 0x0806)
        assert (frame[ARP].op, frame[ARP].hwtype, frame[ARP].ptype) == (1, 1, 0x800)
        assert (frame[ARP].hwsrc, frame[ARP].psrc, frame[ARP].pdst) == (text(MINE), str(A4), str(B4))
        assert frame[ARP].hwdst == "00:00:00:00:00:00"


def test_an_arp_answer_answers_the_question_that_scapy_asked() -> None:
    question = ARP(op=1, hwsrc=text(YOURS), psrc=str(B4), pdst=str(A4))
    asked = arp.read(bytes(question) + bytes(18))
    assert asked == arp.ArpPacket(arp.REQUEST, YOURS, B4, A4)
    answer = Ether(arp.reply(MINE, asked))
    assert answer[ARP].answers(question)
    assert (answer.dst, answer[ARP].hwdst, answer[ARP].pdst) == (text(YOURS), text(YOURS), str(B4))
    assert (answer[ARP].hwsrc, answer[ARP].psrc) == (text(MINE), str(A4))


def test_what_is_no_arp_for_ipv4_is_not_read() -> None:
    for other in (ARP(hwtype=6), ARP(ptype=0x86DD), ARP(hwlen=8), ARP(plen=16), ARP(op=3)):
        assert arp.read(bytes(other)) is None
    assert arp.read(bytes(ARP(op=1))[:27]) is None
    probe = arp.read(bytes(ARP(op=1, psrc="0.0.0.0", pdst=str(A4))))  # noqa: S104
    assert probe is not None
    assert not probe.claims


def test_a_solicitation_is_one_to_scapy() -> None:
    everybody = Ether(nd.solicitation(MINE, A6, B6))
    group = in6_getnsma(inet_pton(10, str(B6)))
    assert everybody[IPv6].dst == inet_ntop(10, group)
    assert everybody.dst == in6_getnsmac(group)
    alone = Ether(nd.solicitation(MINE, A6, B6, YOURS))
    assert (alone.dst, alone[IPv6].dst) == (text(YOURS), str(B6))
    for frame in (everybody, alone):
        assert (frame[IPv6].src, frame[IPv6].hlim, frame[ICMPv6ND_NS].tgt) == (str(A6), 255, str(B6))
        assert frame[ICMPv6NDOptSrcLLAddr].lladdr == text(MINE)
        written = frame[ICMPv6ND_NS].cksum
        del frame[ICMPv6ND_NS].cksum
        assert Ether(bytes(frame))[ICMPv6ND_NS].cksum == written


def test_an_advertisement_answers_who_asked_and_who_probes() -> None:
    asked = nd.read(bytes(solicited()))
    assert asked == nd.NdMessage(nd.SOLICITATION, B6, nd.solicited_node(A6), A6, YOURS)
    answer = Ether(nd.advertisement(MINE, asked, YOURS))
    assert (answer.dst, answer[IPv6].src, answer[IPv6].dst, answer[IPv6].hlim) == (
        text(YOURS),
        str(A6),
        str(B6),
        255,
    )
    body = answer[ICMPv6ND_NA]
    assert (body.tgt, body.R, body.S, body.O) == (str(A6), 0, 1, 1)
    assert answer[ICMPv6NDOptDstLLAddr].lladdr == text(MINE)
    probe = nd.read(
        bytes(IPv6(src="::", dst=str(nd.solicited_node(A6)), hlim=255) / ICMPv6ND_NS(tgt=str(A6)))
    )
    assert probe is not None
    answer = Ether(nd.advertisement(MINE, probe, YOURS))
    assert (answer.dst, answer[IPv6].dst, answer[ICMPv6ND_NA].S) == ("33:33:00:00:00:01", "ff02::1", 0)


def solicited(**fields: object) -> Packet:
    changed = {"src": str(B6), "dst": str(nd.solicited_node(A6)), "hlim": 255, **fields}
    return IPv6(**changed) / ICMPv6ND_NS(tgt=str(A6)) / ICMPv6NDOptSrcLLAddr(lladdr=text(YOURS))


def advertised(**fields: object) -> Packet:
    body = ICMPv6ND_NA(tgt=str(B6), **fields) / ICMPv6NDOptDstLLAddr(lladdr=text(YOURS))
    return IPv6(src=str(B6), dst=str(A6), hlim=255) / body


def test_an_advertisement_of_scapy_is_read() -> None:
    assert nd.read(bytes(advertised(R=0, S=1, O=1))) == nd.NdMessage(
        nd.ADVERTISEMENT, B6, A6, B6, YOURS, nd.SOLICITED | nd.OVERRIDE
    )


REFUSED = {
    "from afar": solicited(hlim=254),
    "code": IPv6(src=str(B6), dst=str(A6), hlim=255) / ICMPv6ND_NS(tgt=str(A6), code=1),
    "checksum": IPv6(src=str(B6), dst=str(A6), hlim=255) / ICMPv6ND_NS(tgt=str(A6), cksum=1),
    "short": IPv6(src=str(B6), dst=str(A6), hlim=255, nh=58) / bytes(ICMPv6ND_NS(tgt=str(A6)))[:20],
    "multicast target": IPv6(src=str(B6), dst=str(A6), hlim=255) / ICMPv6ND_NS(tgt="ff02::1"),
    "probe with address": solicited(src="::"),
    "probe to one": IPv6(src="::", dst=str(A6), hlim=255) / ICMPv6ND_NS(tgt=str(A6)),
    "option of no length": IPv6(src=str(B6), dst=str(A6), hlim=255)
    / ICMPv6ND_NS(tgt=str(A6))
    / b"\x01\x00"
    / bytes(6),
    "option too long": IPv6(src=str(B6), dst=str(A6), hlim=255)
    / ICMPv6ND_NS(tgt=str(A6))
    / b"\x01\x02"
    / bytes(6),
    "option cut": IPv6(src=str(B6), dst=str(A6), hlim=255) / ICMPv6ND_NS(tgt=str(A6)) / b"\x01",
    "solicited to all": IPv6(src=str(B6), dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=str(B6), S=1),
    "echo": IPv6(src=str(B6), dst=str(A6), hlim=255) / ICMPv6EchoRequest(data=bytes(20)),
    "behind options": IPv6(src=str(B6), dst=str(A6), hlim=255)
    / IPv6ExtHdrDestOpt()
    / ICMPv6ND_NS(tgt=str(A6)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_messages_that_nobody_may_believe_are_not_read(name: str) -> None:
    data = bytes(REFUSED[name])
    ip.parse(data)  # well-formed as a packet
    assert nd.read(data) is None
