"""What judges and prober know of packets, against scapy."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from random import Random
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1Q, Ether

from virtio_ipsec.conformance.monitor.headers import (
    frame_headers,
    is_ipv4_sum_right,
    is_sum_right,
    ones_sum,
    pseudo_sum,
)
from virtio_ipsec.conformance.monitor.judge import Finding, Judge, judge, load_judges
from virtio_ipsec.conformance.monitor.life import Run
from virtio_ipsec.conformance.monitor.report import judge_trace
from virtio_ipsec.conformance.monitor.script import answer_to
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.driver.receive import ReceivedPacket
from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.monitor import events
from virtio_ipsec.transport.monitor.events import Recorder
from virtio_ipsec.transport.monitor.faces import FACES, Questions, make_device
from virtio_ipsec.transport.monitor.prober import PEER_MACS, Prober, Question
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.numbers import Feature, mask

OURS = IPv4Address("192.0.2.10")
FRAMES = {
    "tcp4": (Ether() / IP() / TCP() / (b"x" * 11), 14, 34, 54),
    "udp4 with options": (Ether() / IP(options=[IPOption_Router_Alert()]) / UDP() / b"x", 14, 38, 46),
    "tcp4 with options": (Ether() / IP() / TCP(options=[("MSS", 1460)]) / b"abc", 14, 34, 58),
    "tagged": (Ether() / Dot1Q(vlan=5) / IP() / UDP() / b"abc", 18, 38, 46),
    "tcp6": (Ether() / IPv6() / TCP() / (b"x" * 4), 14, 54, 74),
    "udp6 behind an extension header": (Ether() / IPv6() / IPv6ExtHdrDestOpt() / UDP() / b"abcd", 14, 62, 70),
}


@pytest.mark.parametrize("name", FRAMES)
def test_headers_lie_where_scapy_puts_them_and_sums_are_its(name: str) -> None:
    packet, network, transport, payload = FRAMES[name]
    frame = bytes(packet)
    found = frame_headers(frame)
    assert (found.is_plausible, found.network, found.transport, found.payload) == (
        True,
        network,
        transport,
        payload,
    )
    assert found.end == len(frame)
    assert is_sum_right(frame, found)
    assert found.version == 6 or is_ipv4_sum_right(frame, network)
    wrong = bytearray(frame)
    wrong[found.sum_at] ^= 1
    assert not is_sum_right(bytes(wrong), found)
    # The sum of the pseudo header is what is missing from a checksum of zero.
    open_ = bytearray(frame)
    open_[found.sum_at : found.sum_at + 2] = b"\0\0"
    total = ones_sum(pseudo_sum(frame, found).to_bytes(2, "big"), bytes(open_[transport:]))
    assert total ^ 0xFFFF == int.from_bytes(frame[found.sum_at : found.sum_at + 2], "big")


@pytest.mark.parametrize(
    ("frame", "plausible"),
    [
        (b"short", False),
        (bytes(60), False),
        (bytes(12) + b"\x08\x00" + bytes(40), False),
        (bytes(12) + b"\x08\x06" + bytes(40), True),
        (bytes(Ether() / IP(frag=5, proto=6) / bytes(40)), True),
        (bytes(Ether() / IPv6() / IPv6ExtHdrFragment(offset=5) / bytes(40)), True),
        (bytes(Ether() / IP() / TCP())[:40], True),
        (bytes(Ether() / IP(proto=50) / bytes(8)), True),
        (bytes(12) + b"\x08\x00\x45", True),
    ],
)
def test_what_is_no_whole_packet_has_no_transport_header(frame: bytes, plausible: bool) -> None:
    found = frame_headers(frame)
    assert (found.is_plausible, found.transport, found.sum_at) == (plausible, 0, 0)


def test_an_absent_udp_checksum_over_ipv4_is_complete() -> None:
    frame = bytes(Ether() / IP() / UDP(chksum=0) / b"abc")
    assert is_sum_right(frame, frame_headers(frame))


@pytest.fixture
def prober() -> Prober:
    face = FACES["plain"]
    questions = Questions(face, rough=False)
    return Prober(make_device(face, V14, questions, Random(1).randbytes), questions, Recorder(V14), OURS)


def test_the_prober_answers_for_its_own_addresses_only(prober: Prober) -> None:
    mac = "02:00:00:00:00:01"
    for number, peer in enumerate(prober.peers):
        asked = Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=mac, psrc=str(OURS), pdst=str(peer))
        (reply,) = map(Ether, prober.hear(bytes(asked)))
        assert (reply.dst, reply[ARP].op, reply[ARP].psrc) == (mac, 2, str(peer))
        assert reply[ARP].hwsrc == reply.src == PEER_MACS[number].hex(":")
        assert (reply[ARP].hwdst, reply[ARP].pdst) == (mac, str(OURS))
    assert prober.hear(bytes(Ether() / ARP(pdst="192.0.2.99"))) == []
    assert prober.hear(bytes(Ether() / IP() / UDP())) == []


@pytest.mark.parametrize("damaged", [False, True])
def test_a_probe_is_a_syn_and_the_stack_answers_what_it_believes(prober: Prober, damaged: bool) -> None:
    frame = prober.ask(Question("plain", peer=1, damaged=damaged))
    asked = Ether(frame)
    assert (asked[IP].src, asked[IP].dst, asked[TCP].flags) == ("192.0.2.12", "192.0.2.10", "S")
    assert asked.dst == "02:00:00:00:00:01"
    again = Ether(frame)
    del again[IP].chksum
    del again[TCP].chksum
    assert (bytes(again) == frame) is not damaged
    received: Any = ReceivedPacket(frame, 0, 0, False, False, False, None, False, checksum_valid=False)
    answer = answer_to(received)
    if damaged:
        assert answer is None
        return
    assert answer is not None
    reset = Ether(answer)
    assert (reset[IP].src, reset[IP].dst, reset[TCP].flags) == ("192.0.2.10", "192.0.2.12", "RA")
    assert reset[TCP].ack == asked[TCP].seq + 1
    assert (reset[TCP].sport, reset[TCP].dport) == (asked[TCP].dport, asked[TCP].sport)
    del reset[IP].chksum
    del reset[TCP].chksum
    assert bytes(reset) == answer


def test_a_face_without_a_feature_is_without_it() -> None:
    face = FACES["full"].without(Feature.NET_F_CSUM, Feature.NET_F_GUEST_UDP_TUNNEL_GSO)
    gone = mask(Feature.NET_F_CSUM, Feature.NET_F_GUEST_UDP_TUNNEL_GSO)
    assert not (face.features | face.beyond) & gone


def test_a_judge_that_fails_is_an_error_and_ends_nothing() -> None:
    def declared(run: Run) -> Iterator[Finding]:
        raise TransportError("declared")

    def undeclared(run: Run) -> Iterator[Finding]:
        raise ValueError("a defect")

    judges = [
        Judge(f"j-{number}", "t", "t", ("FRM-02",), "never", frozenset(), body)
        for number, body in enumerate((declared, undeclared))
    ]
    report = judge_trace(Recorder(V14), "nobody", judges=judges)
    assert [(case.verdict, case.reason) for case in report.cases] == [
        (Verdict.ERROR, "TransportError: declared"),
        (Verdict.ERROR, "unexpected ValueError: a defect"),
    ]


def test_a_clause_has_one_judge() -> None:
    assert load_judges()
    with pytest.raises(ValueError, match="there is one already"):

        @judge("FRM-02", when="ever")
        def second(run: Run) -> Iterator[Finding]:
            """A second one."""
            yield from ()


def test_a_flood_of_packets_hides_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST", 3)
    monkeypatch.setattr(events, "MOST_PACKETS", 2)
    monkeypatch.setattr(events, "MOST_OCTETS", 100)
    recorder = Recorder(V14)
    recorder.note_packet(events.Returned(0, 0, 0, bytes(90)), 90)
    recorder.note_packet(events.Returned(0, 1, 0, bytes(20)), 20)  # too many octets
    recorder.note_packet(events.Returned(0, 2, 0, b""))
    recorder.note_packet(events.Returned(0, 3, 0, b""))  # too many
    for _ in range(4):
        recorder.note(events.Kicked(0))
    assert len(recorder.events) == 5
    assert recorder.dropped == 3
    assert judge_trace(recorder, "flood").identity.details["events not kept"] == "3"
