"""Cutting and joining IP packets. scapy is the other side; hypothesis shuffles, repeats and overlaps."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, IPOption_NOP, IPOption_RR, IPOption_Security, defragment
from scapy.layers.inet import fragment as scapy_cut
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    defragment6,
    fragment6,
)
from scapy.packet import Packet, Raw

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec import ip
from virtio_ipsec.policy import reassembly
from virtio_ipsec.policy.fragments import split
from virtio_ipsec.policy.reassembly import TIMEOUT, Fragment, Reassembler, read_fragment

OPTIONS = [IPOption_Security(), IPOption_NOP(), IPOption_RR(length=7, pointer=4, routers=["192.0.2.9"])]
NOW = 10**12


def four(size: int, **fields: object) -> bytes:
    return bytes(
        IP(src="10.0.0.1", dst="10.0.0.2", id=7, **fields)
        / UDP(sport=1, dport=2)
        / bytes(i % 251 for i in range(size))
    )


def six(size: int, *headers: Packet) -> bytes:
    packet = IPv6(src="fd00::1", dst="fd00::2")
    for header in headers:
        packet /= header.copy()
    return bytes(packet / UDP(sport=1, dport=2) / bytes(i % 251 for i in range(size)))


def part(data: bytes) -> Fragment:
    found = read_fragment(ip.parse(data))
    assert found is not None
    return found


def join(pieces: list[bytes], made: Reassembler | None = None) -> list[bytes]:
    made = made or Reassembler()
    return [whole for piece in pieces if (whole := made.add(part(piece), NOW)) is not None]


@pytest.mark.parametrize("mtu", [1500, 576, 100])
def test_scapy_joins_what_is_cut(mtu: int) -> None:
    packet = four(4000)
    pieces = split(packet, mtu, 0)
    assert all(len(piece) <= mtu for piece in pieces)
    assert all(len(piece) > mtu - 8 for piece in pieces[:-1])
    (whole,) = defragment([IP(piece) for piece in pieces])
    assert whole[UDP].payload.load == IP(packet)[UDP].payload.load
    pieces = split(six(4000), max(mtu, 200), 99)
    assert {IPv6(piece)[IPv6ExtHdrFragment].id for piece in pieces} == {99}
    assert bytes(defragment6([IPv6(piece) for piece in pieces])[UDP]) == six(4000)[40:]


def test_joining_is_the_inverse_of_cutting() -> None:
    routing = IPv6ExtHdrRouting(addresses=["fd00::9"])
    for packet in (
        four(4000),
        four(3000, options=OPTIONS),
        six(4000),
        six(4000, IPv6ExtHdrHopByHop()),
        six(4000, IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), routing, IPv6ExtHdrDestOpt()),
        six(4000, IPv6ExtHdrDestOpt()),
    ):
        assert join(split(packet, 1280, 5)) == [packet]


def test_what_scapy_cuts_is_joined() -> None:
    packet = four(4000)
    assert join([bytes(piece) for piece in scapy_cut(IP(packet), 1000)]) == [packet]
    packet6 = IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrFragment(id=3) / UDP(bytes(four(4000)[20:]))
    (whole,) = join([bytes(piece) for piece in fragment6(packet6, 1280)])
    assert whole[40:] == four(4000)[20:]
    assert whole[6] == 17


def test_options_are_copied_where_they_ask_for_it() -> None:
    first, *later = (IP(piece) for piece in split(four(3000, options=OPTIONS), 1000, 0))
    assert [option.option for option in first.options[:3]] == [2, 1, 7]
    for piece in later:
        assert piece.ihl == 8
        assert piece.options[0].option == 2
        assert 7 not in [option.option for option in piece.options]
    damaged = bytearray(four(3000, options=OPTIONS))
    damaged[21] = 0  # an option without length
    assert [IP(piece).ihl for piece in split(bytes(damaged), 1000, 0)] == [10, 5, 5, 5]


def test_a_fragment_can_be_cut_again_and_what_fits_stays() -> None:
    first, second, *rest = split(four(4000), 1500, 0)
    assert join([*split(second, 400, 0), *rest, first]) == [four(4000)]
    assert split(first, 1500, 0) == [first]
    assert all(IP(piece).flags.DF for piece in split(four(4000, flags="DF"), 1500, 0))


def test_an_atomic_fragment_is_a_whole_packet() -> None:
    packet = six(2000, IPv6ExtHdrFragment(id=1))
    assert read_fragment(ip.parse(packet)) is None
    assert read_fragment(ip.parse(four(10))) is None
    assert join(split(packet, 1280, 2)) == [six(2000)]


PACKETS = [four(3000), six(3000), four(30000)]


@given(st.sampled_from(range(len(PACKETS))), st.sampled_from([1280, 1500, 2500]), st.data())
def test_fragments_join_in_any_order_with_duplicates(which: int, mtu: int, data: st.DataObject) -> None:
    pieces = split(PACKETS[which], mtu, 7)
    numbers = list(range(len(pieces)))
    extra = data.draw(st.lists(st.sampled_from(numbers), max_size=len(pieces) - 1))
    order = data.draw(st.permutations(numbers + extra))
    assert join([pieces[number] for number in order])[:1] == [PACKETS[which]]


PIECES = st.tuples(st.integers(0, 8), st.integers(0, 20), st.sampled_from(["", "MF"]), st.integers(0, 20))


@given(st.lists(st.tuples(PIECES, st.integers(0, TIMEOUT // 4)), min_size=1, max_size=40))
def test_whatever_comes_memory_is_bounded_and_counted(
    steps: list[tuple[tuple[int, int, str, int], int]],
) -> None:
    made, now = Reassembler(), NOW
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"MAX_DATAGRAMS": 4, "MAX_OCTETS": 400, "MAX_PIECES": 5}.items():
            patch.setattr(reassembly, name, value)
        for (number, offset, flags, size), time in steps:
            found = read_fragment(
                ip.parse(bytes(IP(id=number, frag=offset, flags=flags) / Raw(bytes(size * 4))))
            )
            now += time
            if found is not None:
                with suppress(PacketError):
                    whole = made.add(found, now)
                    assert whole is None or read_fragment(ip.parse(whole)) is None
            assert len(made) <= 4
            assert made.octets <= 400
            assert made.octets == sum(datagram.held for datagram in made._datagrams.values())
    made.tick(now + TIMEOUT)
    assert (len(made), made.octets, made.deadline()) == (0, 0, None)


def raw(offset: int, size: int, *, more: bool = True, fill: int = 0, **fields: object) -> bytes:
    flags = "MF" if more else ""
    return bytes(
        IP(src="10.0.0.1", dst="10.0.0.2", id=7, proto=17, frag=offset // 8, flags=flags, **fields)
        / Raw(bytes([fill]) * size)
    )


CONTRADICTIONS = {
    "overlap behind": [raw(0, 16), raw(8, 16)],
    "overlap in front": [raw(8, 16), raw(0, 16)],
    "other octets": [raw(0, 16), raw(0, 16, fill=1)],
    "inside": [raw(0, 32), raw(8, 8)],
    "around": [raw(8, 8), raw(0, 32)],
    "two ends": [raw(16, 8, more=False), raw(24, 8, more=False)],
    "behind the end": [raw(8, 8, more=False), raw(16, 8)],
    "end before": [raw(16, 8), raw(8, 8, more=False)],
    "an odd length": [raw(0, 15)],
    "nothing": [raw(8, 0)],
    "too long": [raw(65528, 16, more=False)],
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_datagram_that_contradicts_itself_is_given_up(name: str) -> None:
    made = Reassembler()
    *before, last = CONTRADICTIONS[name]
    for piece in before:
        assert made.add(part(piece), NOW) is None
    for piece in (last, raw(0, 8), raw(8, 8, more=False)):  # the rest comes too late
        with pytest.raises(PacketError, match=r"^.*$") as caught:
            made.add(part(piece), NOW)
        assert caught.value.reason is Reason.FRAGMENT
    assert made.octets == 0
    made.tick(NOW + TIMEOUT)
    assert (len(made), made.expired) == (0, 0)
    assert join([raw(0, 8), raw(8, 8, more=False)], made)


def test_a_datagram_of_very_many_pieces_is_given_up() -> None:
    made = Reassembler()
    for number in range(reassembly.MAX_PIECES):
        assert made.add(part(raw(8 * number, 8)), NOW) is None
    with pytest.raises(PacketError, match="too many"):
        made.add(part(raw(8 * reassembly.MAX_PIECES, 8)), NOW)
    assert made.octets == 0


def test_what_is_not_complete_in_time_is_forgotten() -> None:
    made = Reassembler()
    first, second, third = split(four(4000), 1500, 0)
    made.add(part(first), NOW)
    made.add(part(second), NOW + TIMEOUT - 1)
    assert made.deadline() == NOW + TIMEOUT
    made.tick(NOW + TIMEOUT - 1)
    assert len(made) == 1
    made.tick(NOW + TIMEOUT)
    assert made.add(part(third), NOW + TIMEOUT) is None
    assert made.expired == 1


def test_the_oldest_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reassembly, "MAX_DATAGRAMS", 2)
    made = Reassembler()
    for number in (1, 2, 3):
        made.add(part(bytes(IP(id=number, flags="MF") / bytes(8))), NOW)
    assert made.evicted == 1
    rest = [part(bytes(IP(id=number, frag=1) / bytes(8))) for number in (3, 2, 1)]
    assert [made.add(each, NOW) is not None for each in rest] == [True, True, False]


def test_octets_in_the_making_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reassembly, "MAX_OCTETS", 100)
    made = Reassembler()
    for number in range(9):
        made.add(part(bytes(IP(id=number, flags="MF") / Raw(bytes(40)))), NOW)
    assert (made.octets, made.evicted) == (80, 7)
    monkeypatch.setattr(reassembly, "MAX_OCTETS", 20)  # one datagram may be in the making in any case
    made.add(part(bytes(IP(id=9, flags="MF") / Raw(bytes(40)))), NOW)
    assert (len(made), made.octets) == (1, 40)


def test_fragments_of_different_contexts_and_datagrams_are_not_mixed() -> None:
    made = Reassembler()
    first, second = split(four(2000), 1500, 0)
    assert made.add(part(first), NOW, "one") is None
    assert made.add(part(second), NOW, "two") is None
    for changed in ({"src": "10.0.0.3"}, {"dst": "10.0.0.3"}, {"id": 8}, {"proto": 6}):
        other = IP(second)
        for name, value in changed.items():
            setattr(other, name, value)
        del other.chksum
        assert made.add(part(bytes(other)), NOW, "one") is None
    assert made.add(part(second), NOW, "one") == four(2000)


@pytest.mark.parametrize(
    ("marks", "result"), [((0, 0), 0), ((2, 2), 2), ((2, 3), 3), ((3, 1), 3), ((3, 3), 3), ((1, 2), 1)]
)
def test_a_mark_of_congestion_is_kept(marks: tuple[int, int], result: int) -> None:
    pieces = [raw(0, 8, tos=marks[0]), raw(8, 8, more=False, tos=marks[1])]
    assert IP(join(pieces)[0]).tos == result
    sixes = [IPv6(piece) for piece in split(six(2000), 1280, 1)]
    for piece, mark in zip(sixes, marks, strict=True):
        piece.tc = mark
    assert IPv6(join([bytes(piece) for piece in sixes])[0]).tc == result


def test_congestion_met_by_who_does_not_understand_ends_the_datagram() -> None:
    made = Reassembler()
    made.add(part(raw(0, 8, tos=0)), NOW)
    with pytest.raises(PacketError) as caught:
        made.add(part(raw(8, 8, more=False, tos=3)), NOW)
    assert caught.value.reason is Reason.CONGESTION
    assert made.octets == 0


@pytest.mark.parametrize("cut", [44, 50])
def test_damaged_extension_headers_are_malformed(cut: int) -> None:
    packet = bytearray(six(100, IPv6ExtHdrHopByHop(), IPv6ExtHdrFragment(m=1, id=1))[:cut])
    packet[4:6] = (cut - 40).to_bytes(2)
    with pytest.raises(PacketError) as caught:
        read_fragment(ip.parse(bytes(packet)))
    assert caught.value.reason is Reason.MALFORMED
