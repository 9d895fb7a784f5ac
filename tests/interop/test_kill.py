"""``kill -9`` of either side under load, at random moments: nothing is used twice, nothing arrives damaged."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from lab.backend import Backend
from lab.cases import (
    CASES,
    GUEST_MAC,
    PEER_MAC,
    PROTECTED,
    SERVER_PORT,
    configuration,
    guest_script,
    peer_script,
)
from lab.checker import Report, check
from lab.guest import Guest, plain_card, vhost_user_card
from lab.processes import until
from lab.running_load import SPAN, Exchange, RunningLoad
from lab.station import Station, number_of, sas_of
from lab.wire import Wire
from lab.xfrm import kernel_errors, ping

pytestmark = [pytest.mark.guests, pytest.mark.interop("setpriv")]

#: How often; the release is judged with 200.
KILLS = int(os.environ.get("VIRTIO_IPSEC_KILLS", "12"))
CASE = next(case for case in CASES if case.name == "tunnel GCM-128")
QUEUE = 256


@contextmanager
def served(folder: Path) -> Iterator[tuple[Wire, Backend]]:
    """A back-end for the case, and its wire."""
    with (
        Wire(folder / "wire.pcapng", "device", "peer") as wire,
        Backend(
            folder, configuration([CASE]), wire.ports["device"].uplink, state=folder / "state"
        ) as backend,
    ):
        yield wire, backend


def judge(folder: Path) -> tuple[Report, list[int]]:
    """The wire's report, and the numbers of the packets that left, in their order."""
    left: list[int] = []

    def inner(spi: int, packet: bytes) -> None:
        if spi == CASE.outbound_spi:
            number = number_of(packet)
            assert number is not None, f"damaged: {packet[:80].hex()}"
            left.append(number)

    report = check(folder / "wire.pcapng", sas_of((CASE,)), PROTECTED, inner)
    report.require_clean()
    return report, left


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_the_back_end_is_killed(tmp_path: Path, ring: str) -> None:
    moments = random.Random(ring)
    with (
        served(tmp_path) as (wire, backend),
        Station(wire.ports["peer"], CASE) as station,
        Exchange(station) as exchange,
    ):
        load = RunningLoad(tmp_path, backend.socket, CASE, ring)
        load.start()
        try:
            exchange.await_more(100)
            for _ in range(KILLS):
                time.sleep(moments.uniform(0.0, 0.2))
                backend.kill()
                backend.start()
                exchange.await_more(50)
            counts = load.counts()
            sent = load.sent()
            came = dict(exchange.came)
        finally:
            load.stop()
    assert counts["lives"] == KILLS + 1
    assert (counts["damaged"], counts["doubled"], exchange.damaged) == (0, 0, 0)
    assert counts["received"] > 0
    assert not station.refused, "the peer's window has refused packets"
    _, left = judge(tmp_path)
    doubles = len(left) - len(set(left))
    print(
        f"{ring}: {KILLS} kills, {sent} packets sent, {len(set(left))} left, {doubles} twice, {len(came)} came"
    )
    assert doubles <= KILLS * QUEUE
    assert_order_but_for_resubmission(left)


def assert_order_but_for_resubmission(left: list[int]) -> None:
    """Between two crashes numbers rise. A crash may go back, by what was in flight at most."""
    backwards = [(a, b) for a, b in pairwise(left) if b <= a]
    assert len(backwards) <= KILLS, f"{len(backwards)} times out of order: {backwards[:5]}"
    assert all(a - b <= QUEUE for a, b in backwards)


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_the_front_end_is_killed(tmp_path: Path, ring: str) -> None:
    moments = random.Random(ring)
    with (
        served(tmp_path) as (wire, backend),
        Station(wire.ports["peer"], CASE) as station,
        Exchange(station) as exchange,
    ):
        load = RunningLoad(tmp_path, backend.socket, CASE, ring)
        held: list[tuple[int, int]] = []
        try:
            for _ in range(KILLS):
                load.start()
                exchange.await_life(load)
                time.sleep(moments.uniform(0.0, 0.2))
                counts = load.counts()
                assert (counts.get("damaged", 0), counts.get("doubled", 0)) == (0, 0)
                held.append((handles(backend.pid), threads(backend.pid)))
                load.kill()
            load.start()
            exchange.await_life(load)
        finally:
            load.stop()
        assert exchange.damaged == 0
        assert not station.refused
        assert max(held) <= max(held[:3]), f"descriptors and threads grow: {held}"
    _, left = judge(tmp_path)
    assert len(left) == len(set(left)), "a packet left twice"
    lives = {number // SPAN for number in left}
    assert lives == set(range(1, KILLS + 2))
    print(f"{ring}: {KILLS} kills, {len(left)} packets left, descriptors and threads {held[0]} .. {held[-1]}")


@pytest.mark.interop("qemu-system-x86_64")
def test_a_stock_guest_outlives_its_back_end(tmp_path: Path) -> None:
    """QEMU connects again by itself; the guest's driver notices nothing, its TCP connection goes on."""
    with (
        served(tmp_path) as (wire, backend),
        Guest(
            "guest", tmp_path, vhost_user_card(backend.socket, GUEST_MAC, "vectors=0", reconnect=1)
        ) as guest,
        Guest("peer", tmp_path, plain_card(wire.ports["peer"].netdev, PEER_MAC)) as peer,
    ):
        guest.wait().run(guest_script([CASE]))
        peer.wait().run(peer_script([CASE]))
        assert not ping(guest, CASE.addresses[1])
        guest.send(f"timeout 200 traffic fetch {CASE.addresses[1]} {SERVER_PORT} 20000000")
        for _ in range(3):
            at = wire.counts["peer"]
            until("the transfer goes on", lambda at=at: wire.counts["peer"] > at + 500, 180)  # type: ignore[misc]
            backend.kill()
            backend.start()
        status, output = guest.answer(240.0)
        assert status == 0, output
        assert "ok 20000000" in output
        assert not ping(peer, CASE.addresses[0])
        assert kernel_errors(peer) == ""
    check(tmp_path / "wire.pcapng", sas_of((CASE,)), PROTECTED).require_clean()


def handles(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))
