"""The suite's reading of segments and fragments, on pieces that scapy has made: foreign ones are right, spoiled ones
are not."""

from __future__ import annotations

import pytest
from scapy.layers import inet
from scapy.layers.inet import IP, UDP
from scapy.layers.inet import fragment as cut4
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import Ether

from virtio_ipsec.conformance.frames import HOSTS, TCP
from virtio_ipsec.conformance.segments import Fragment, Large, fragment, judge, options

LINK = bytes(12) + b"\x08\0"


def tcp_segments(version: int) -> tuple[Large, list[bytes]]:
    """Two segments as scapy builds them, and the large packet that they come from."""
    kind = {4: b"\x08\0", 6: b"\x86\xdd"}[version]
    link = bytes(12) + kind
    payload = bytes(range(150))
    frames = []
    for at in (0, 100):
        over = (
            IP(src="198.51.100.1", dst="198.51.100.2", id=7 + at)
            if version == 4
            else IPv6(src="2001:db8:1::1", dst="2001:db8:1::2")
        )
        flags = "A" if at == 0 else "FA"
        packet = over / inet.TCP(sport=1, dport=2, seq=5 + at, flags=flags) / payload[at : at + 100]
        frames.append(link + bytes(packet))
    size = 20 if version == 4 else 40
    network, head = frames[0][14 : 14 + size], frames[0][14 + size :][:20]
    head = head[:13] + b"\x11" + head[14:]
    return Large(link, network, head, payload, version, TCP, HOSTS[version]), frames


@pytest.mark.parametrize("version", [4, 6])
def test_segments(version: int) -> None:
    large, frames = tcp_segments(version)
    found = judge(large, 100, frames)
    assert (found.wrong, found.lengths) == ([], [])
    assert judge(large, 99, frames).lengths
    assert judge(large, 100, frames[:1]).wrong
    for at in range(len(frames[0])):
        spoiled = frames[0][:at] + bytes((frames[0][at] ^ 1,)) + frames[0][at + 1 :]
        assert judge(large, 100, [spoiled, frames[1]]).wrong, f"octet {at}"


def test_fragments_over_ipv4() -> None:
    packet = IP(src="198.51.100.1", dst="198.51.100.2", id=9) / UDP(sport=1, dport=2) / bytes(2000)
    found = [fragment(LINK + bytes(piece), 14, 4) for piece in cut4(packet, 800)]
    whole = [one for one in found if isinstance(one, Fragment)]
    assert len(whole) == len(found) == 3
    assert b"".join(one.data for one in whole) == bytes(packet)[20:]
    assert [(one.at, one.more) for one in whole] == [(0, True), (800, True), (1600, False)]
    assert {one.ident for one in whole} == {9}


def test_fragments_over_ipv6() -> None:
    packet = IPv6(src="2001:db8:1::1", dst="2001:db8:1::2") / IPv6ExtHdrFragment(id=77)
    packet = packet / UDP(sport=1, dport=2) / bytes(2000)
    pieces = [bytes(Ether() / piece) for piece in fragment6(packet, 856)]
    whole = [one for one in (fragment(piece, 14, 6) for piece in pieces) if isinstance(one, Fragment)]
    assert len(whole) == len(pieces) == 3
    assert {one.ident for one in whole} == {77}
    assert [one.at for one in whole] == [0, len(whole[0].data), 2 * len(whole[0].data)]
    assert [one.more for one in whole] == [True, True, False]
    assert whole[0].headers[6] == 17


def test_options_without_fillers() -> None:
    alert, stamp = b"\x94\x04\0\0", b"\x44\x08\x05\0" + bytes(4)
    assert options(bytes(20) + b"\x01" + stamp + alert + b"\x01\0\0") == [stamp, alert]
    assert options(bytes(20)) == []
