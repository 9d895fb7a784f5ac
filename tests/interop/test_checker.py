"""The judge of captures finds each fault that it looks for, and nothing in a clean capture."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from lab.cases import CASES, PROTECTED, Case, configuration
from lab.checker import Checker, Reassembly, check
from lab.station import numbered, sas_of

from virtio_ipsec.ipsec import ip
from virtio_ipsec.ipsec.process import outbound
from virtio_ipsec.ipsec.sa import OutboundSa
from virtio_ipsec.policy.config import parse
from virtio_ipsec.transport.pcap import Interface, Packet, create_capture

ETHERNET = bytes(12) + b"\x08\x00"
ETHERNET_6 = bytes(12) + b"\x86\xdd"


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


GCM = case_of("tunnel GCM-128")


def sender(case: Case = GCM, base: int = 0) -> OutboundSa:
    """With ``base`` for counter IVs; IVs that are random otherwise count from there, too."""
    numbers = count(base)
    return OutboundSa(
        parse(configuration([case])).outbound(case.number).params, lambda n: next(numbers).to_bytes(n)
    )


def plain(number: int, case: Case = GCM, size: int = 64) -> bytes:
    return numbered(*case.addresses, 1000, number, size)


def frames(sa: OutboundSa, packets: int) -> list[bytes]:
    return [ETHERNET + outbound(sa, plain(number)) for number in range(packets)]


def judged(wire: list[bytes], case: Case = GCM) -> dict[str, int]:
    checker = Checker(sas_of((case,)), PROTECTED)
    for frame in wire:
        checker.frame(frame)
    return dict(checker.report.problem_counts)


def test_a_clean_capture_has_no_problem() -> None:
    checker = Checker(sas_of((GCM,)), PROTECTED)
    for frame in frames(sender(), 5):
        checker.frame(frame)
    checker.report.require_clean()
    counts = checker.report.sas[GCM.outbound_spi]
    assert (counts.packets, counts.lowest, counts.highest, counts.gaps) == (5, 1, 5, 0)


@pytest.mark.parametrize("case", [case for case in CASES if case.inner == 4], ids=lambda case: case.name)
def test_every_protection_is_opened(case: Case) -> None:
    sa = sender(case)
    ethernet = ETHERNET if case.outer == 4 else ETHERNET_6
    assert judged([ethernet + outbound(sa, plain(number, case)) for number in range(3)], case) == {}


def test_a_packet_seen_twice_is_found() -> None:
    wire = frames(sender(), 3)
    assert judged([*wire, wire[1]]) == {"sequence twice": 1}


def test_an_old_number_under_a_new_iv_is_found() -> None:
    """As after a crash that lost the count: far behind the window."""
    assert judged(frames(sender(), 100) + frames(sender(base=1000), 1)) == {"sequence twice": 1}


def test_an_iv_seen_twice_is_found_under_different_numbers() -> None:
    late = sender(base=2**64 - 10)
    late.sequence = 10
    assert judged(frames(sender(), 1) + frames(late, 1)) == {"IV twice": 1}


def test_an_iv_seen_twice_is_found_on_two_sas_with_one_key() -> None:
    first, second = sas_of((GCM,))
    twin = replace(
        second, cipher_key=first.cipher_key, salt=first.salt, direction=first.direction, param=first.param
    )
    checker = Checker([first, twin])
    twins = [
        OutboundSa(parse(configuration([GCM])).outbound(GCM.number).params, lambda n: bytes(n))
        for _ in range(2)
    ]
    twins[1].params = replace(twins[1].params, spi=twin.spi)
    for sa in twins:
        checker.frame(frames(sa, 1)[0])
    assert checker.report.problem_counts == {"IV twice": 1}


def test_a_changed_bit_is_found() -> None:
    wire = frames(sender(), 1)
    damaged = wire[0][:-1] + bytes([wire[0][-1] ^ 1])
    assert judged([damaged]) == {"refused by a receiver": 1}


def test_clear_text_is_found() -> None:
    assert judged([ETHERNET + plain(1)]) == {"in the clear": 1}


def test_a_wrong_inner_checksum_is_found() -> None:
    packet = plain(1)
    broken = packet[:-1] + bytes([packet[-1] ^ 1])
    assert judged([ETHERNET + outbound(sender(), broken)]) == {"inner packet": 1}


def test_a_number_far_behind_the_window_is_refused_as_a_peer_would() -> None:
    wire = frames(sender(), 100)
    assert judged([*wire[1:], wire[0]]) == {"refused by a receiver": 1}


def fragments(packet: bytes) -> list[bytes]:
    cut = 20 + 64
    first = packet[:2] + cut.to_bytes(2) + packet[4:6] + b"\x20\x00" + packet[8:10] + bytes(2) + packet[12:20]
    rest = (
        packet[:2]
        + (20 + len(packet) - cut).to_bytes(2)
        + packet[4:6]
        + b"\x00\x08"
        + packet[8:10]
        + bytes(2)
    )
    rest += packet[12:20]
    heads = [head[:10] + ip.checksum(head).to_bytes(2) + head[12:] for head in (first, rest)]
    return [heads[0] + packet[20:cut], heads[1] + packet[cut:]]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_outer_fragments_are_put_together(order: tuple[int, int]) -> None:
    parts = fragments(outbound(sender(), plain(1, size=300)))
    assert judged([ETHERNET + parts[at] for at in order]) == {}
    together = Reassembly()
    whole = [together.add(parts[at]) for at in order]
    assert whole[0] is None
    assert whole[1] == outbound(sender(), plain(1, size=300))


def test_a_capture_file_is_read_by_interface(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    with path.open("wb") as stream:
        writer = create_capture(stream, "pcapng", [Interface(name="device"), Interface(name="peer")])
        for number, frame in enumerate(frames(sender(), 4)):
            writer.write(Packet(frame, number, number % 2))
    sas = sas_of((GCM,))
    assert check(path, sas).sas[GCM.outbound_spi].packets == 4
    assert check(path, sas, interfaces=frozenset({"device"})).sas[GCM.outbound_spi].packets == 2
