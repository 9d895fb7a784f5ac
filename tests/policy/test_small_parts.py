"""Segment sizes, rates, paths and the table of neighbours."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from virtio_ipsec.policy import neighbours, path_mtu
from virtio_ipsec.policy.mss import clamp
from virtio_ipsec.policy.neighbours import REFRESH, RETRY, Neighbours
from virtio_ipsec.policy.path_mtu import AGE, PathMtus
from virtio_ipsec.policy.rate import SECOND, TokenBucket

PEER, OTHER, SIX = IPv4Address("192.0.2.2"), IPv4Address("192.0.2.3"), IPv6Address("2001:db8::2")
MAC, NEW = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
NOW = 10**12


@pytest.mark.parametrize("version", [IP, IPv6])
@pytest.mark.parametrize(
    "options",
    [
        [("MSS", 1460)],
        [("NOP", None), ("MSS", 1460), ("NOP", None)],
        [("WScale", 7), ("MSS", 9000), ("SAckOK", b"")],
        [("Timestamp", (1, 2)), ("NOP", None), ("MSS", 1460)],
    ],
)
def test_the_segment_size_is_lowered_and_the_checksum_stays_right(
    version: type[Packet], options: list[tuple[str, object]]
) -> None:
    packet = bytes(version() / TCP(flags="S", options=options) / b"data")
    most = 1400 - (40 if version is IP else 60)
    clamped = version(clamp(packet, 1400))
    assert dict(clamped[TCP].options)["MSS"] == most
    written = clamped[TCP].chksum
    del clamped[TCP].chksum
    assert version(bytes(clamped))[TCP].chksum == written
    again = version(packet)
    del again[TCP].chksum
    again[TCP].options = [(name, most if name == "MSS" else value) for name, value in options]
    assert clamp(packet, 1400) == bytes(again)


UNCHANGED = {
    "fits": IP() / TCP(flags="S", options=[("MSS", 1360)]),
    "no SYN": IP() / TCP(flags="A", options=[("MSS", 1460)]),
    "no option": IP() / TCP(flags="S"),
    "UDP": IP() / UDP() / bytes(40),
    "fragment": IP(flags="MF") / TCP(flags="S", options=[("MSS", 1460)]),
    "short": IP(proto=6) / bytes(TCP(flags="S"))[:19],
    "a length of one": IP() / TCP(flags="S", dataofs=6) / b"\x05\x01\x02\x04",
    "a length too great": IP() / TCP(flags="S", dataofs=6) / b"\x02\x05\x05\xb4",
    "no length": IP() / TCP(flags="S", dataofs=6) / b"\x01\x01\x01\x02",
    "the end": IP() / TCP(flags="S", dataofs=7) / b"\x00\x00\x00\x00\x02\x04\x05\xb4",
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_anything_else_stays_as_it_is(name: str) -> None:
    packet = bytes(UNCHANGED[name])
    assert clamp(packet, 1400) == packet


def test_an_mtu_without_room_for_a_segment_changes_nothing() -> None:
    packet = bytes(IP() / TCP(flags="S", options=[("MSS", 1460)]))
    assert clamp(packet, 40) == packet


@given(st.integers(1, 1000), st.integers(1, 50), st.lists(st.integers(0, SECOND), max_size=80))
def test_a_bucket_never_gives_more_than_its_rate_and_burst(rate: int, burst: int, steps: list[int]) -> None:
    bucket, now, given_at = TokenBucket(rate, burst), NOW, []
    for step in steps:
        now += step
        if bucket.take(now):
            given_at.append(now)
    for first in range(len(given_at)):
        for last in range(first, len(given_at)):
            allowed = burst + 1 + (given_at[last] - given_at[first]) // (SECOND // rate)
            assert last - first + 1 <= allowed


def test_a_bucket_fills_again() -> None:
    bucket = TokenBucket(2, 1)
    assert [bucket.take(NOW), bucket.take(NOW), bucket.take(NOW + SECOND)] == [True, False, True]


def test_a_path_is_lowered_and_comes_back() -> None:
    paths = PathMtus()
    assert paths.get(PEER, 1500) == 1500
    assert paths.lower(PEER, 1400, 1500, NOW)
    assert not paths.lower(PEER, 1400, 1500, NOW)
    assert not paths.lower(PEER, 1450, 1500, NOW + 1)
    assert (paths.get(PEER, 1500), paths.get(PEER, 1300), paths.get(OTHER, 1500)) == (1400, 1300, 1500)
    assert paths.deadline() == NOW + AGE
    assert not paths.tick(NOW + AGE - 1)
    assert paths.tick(NOW + AGE)
    assert (paths.get(PEER, 1500), paths.deadline()) == (1500, None)


def test_no_report_makes_a_path_tiny() -> None:
    paths = PathMtus()
    assert paths.lower(PEER, 68, 1500, NOW)
    assert paths.lower(SIX, 100, 1500, NOW)
    assert (paths.get(PEER, 1500), paths.get(SIX, 1500)) == (552, 1280)


def test_a_router_that_does_not_say_is_guessed_at() -> None:
    paths = PathMtus()
    assert paths.lower(PEER, 0, 1500, NOW)
    assert paths.get(PEER, 1500) == 1492
    assert paths.lower(PEER, 0, 1492, NOW)
    assert paths.get(PEER, 1500) == 1006
    assert paths.lower(OTHER, 0, 100, NOW) is False


def test_the_oldest_path_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_mtu, "MAX_PATHS", 2)
    paths = PathMtus()
    for address in (PEER, OTHER, SIX):
        paths.lower(address, 1400, 1500, NOW)
    assert [paths.get(address, 1500) for address in (PEER, OTHER, SIX)] == [1500, 1400, 1400]


def test_a_neighbour_is_asked_three_times_and_given_up() -> None:
    table: Neighbours[str] = Neighbours()
    assert table.wait(PEER, "packet", 1, NOW) == []
    now = NOW
    for _ in range(3):
        due = table.tick(now)
        assert due.questions == [(PEER, None)]
        assert due.given_up == []
        assert table.tick(now).questions == []
        assert table.deadline() == now + RETRY
        now += RETRY
    due = table.tick(now)
    assert (due.questions, due.given_up, due.lost) == ([], ["packet"], False)
    assert table.deadline() is None


def test_what_waited_goes_in_its_order_once_the_answer_is_there() -> None:
    table: Neighbours[str] = Neighbours()
    table.wait(PEER, "first", 1, NOW)
    table.wait(PEER, "second", 1, NOW)
    assert table.learn(PEER, MAC, NOW) == (["first", "second"], True)
    assert table.learn(PEER, MAC, NOW) == ([], False)
    assert (table.mac(PEER), table.known()) == (MAC, {PEER: MAC})


def test_nobody_is_learnt_who_was_not_asked_for_and_no_group() -> None:
    table: Neighbours[str] = Neighbours()
    assert table.learn(PEER, MAC, NOW) == ([], False)
    table.wait(PEER, "packet", 1, NOW)
    for mac in (b"\xff" * 6, b"\x33\x33" + MAC[2:], bytes(6)):
        assert table.learn(PEER, mac, NOW) == ([], False)
    assert table.mac(PEER) is None


def test_a_known_neighbour_is_confirmed_alone_and_forgotten_when_it_falls_silent() -> None:
    table: Neighbours[str] = Neighbours()
    table.wait(PEER, "packet", 1, NOW)
    table.learn(PEER, MAC, NOW)
    assert table.deadline() == NOW + REFRESH
    assert table.tick(NOW + REFRESH).questions == [(PEER, MAC)]
    table.learn(PEER, MAC, NOW + REFRESH + 5)
    now = NOW + 2 * REFRESH + 5
    for _ in range(3):
        assert table.tick(now).questions == [(PEER, MAC)]
        assert table.mac(PEER) == MAC
        now += RETRY
    assert table.tick(now).lost
    assert table.mac(PEER) is None


def test_an_address_moves_unless_the_message_says_that_it_must_not() -> None:
    table: Neighbours[str] = Neighbours()
    table.wait(PEER, "packet", 6, NOW)
    table.learn(PEER, MAC, NOW, override=False)
    assert table.learn(PEER, NEW, NOW, override=False) == ([], False)
    assert table.learn(PEER, NEW, NOW) == ([], True)
    assert table.mac(PEER) == NEW


def test_queues_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MAX_WAITING_PER_HOP", 2)
    monkeypatch.setattr(neighbours, "MAX_WAITING", 3)
    monkeypatch.setattr(neighbours, "MAX_HOPS", 2)
    table: Neighbours[int] = Neighbours()
    assert [table.wait(PEER, number, 1, NOW) for number in range(3)] == [[], [], [0]]
    assert table.wait(OTHER, 3, 1, NOW) == []
    assert table.wait(OTHER, 4, 1, NOW) == [3]
    assert table.wait(SIX, 5, 1, NOW) == [5]
    assert table.learn(OTHER, MAC, NOW)[0] == [4]
    assert table.keep({OTHER}) == [1, 2]
    assert table.wait(OTHER, 6, 1, NOW) == []


def test_queues_are_bounded_in_octets_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MAX_OCTETS_PER_HOP", 100)
    monkeypatch.setattr(neighbours, "MAX_OCTETS", 150)
    table: Neighbours[str] = Neighbours()
    assert [table.wait(PEER, item, 40, NOW) for item in "abc"] == [[], [], ["a"]]
    assert table.wait(PEER, "d", 90, NOW) == ["b", "c"]
    assert table.wait(OTHER, "e", 60, NOW) == []
    assert table.wait(OTHER, "f", 101, NOW) == ["e", "f"]
    assert table.learn(PEER, MAC, NOW)[0] == ["d"]
    assert [table.wait(OTHER, item, 50, NOW) for item in "gh"] == [[], []]
    assert table.wait(SIX, "i", 50, NOW) == []
    assert table.wait(SIX, "j", 1, NOW) == ["i"]
