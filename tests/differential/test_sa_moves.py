"""SAs that go on elsewhere, in C and in Python: nothing used twice, nothing accepted twice, exactly."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from ipsec_samples import counting_rng

from virtio_ipsec.crypto.algorithms import by_name
from virtio_ipsec.device.engines import AnyInboundSa, AnyOutboundSa, AnySa, protect, unprotect
from virtio_ipsec.errors import ConfigError, PacketError, Reason
from virtio_ipsec.fastpath.esp import FastInboundSa, FastOutboundSa, FastSaTable, accepts
from virtio_ipsec.ipsec.params import BadSaParameters, SaParams
from virtio_ipsec.ipsec.process import find_spi
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa
from virtio_ipsec.ipsec.state import SaState
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.ipsec import IpsecSa, Lifetime
from virtio_ipsec.wire.numbers import Direction, IpsecMode, IpsecOption
from virtio_ipsec.wire.tunnel import TunnelIPv4

TUNNEL = TunnelIPv4(IPv4Address("192.0.2.1"), IPv4Address("198.51.100.2"))
INNER = bytes.fromhex("4500001c000700004011623a0a0100010a02000200010002000800000000")[:28]
SPI = 0x1234ABCD
CBC, GCM, CHACHA = by_name("aes-cbc+hmac-sha2-256-128"), by_name("aes-gcm-16"), by_name("chacha20-poly1305")
MOVES = [(GCM, "c", "c"), (GCM, "c", "python"), (GCM, "python", "c"), (GCM, "python", "python"),
         (CBC, "python", "python"), (CHACHA, "python", "python")]  # fmt: skip
each_move = pytest.mark.parametrize(
    ("suite", "here", "there"), MOVES, ids=lambda each: getattr(each, "name", each)
)


def params(direction: Direction, suite: Any = GCM, **fields: Any) -> SaParams:
    given: dict[str, Any] = {
        "mode": IpsecMode.ESP_TUNNEL, "spi": SPI, "salt": b"salt" if suite.salt_len else bytes(4), "param": TUNNEL,
        "replay_win_sz": 64 if direction is Direction.INBOUND else 0, "cipher_algo": suite.cipher_algo,
        "cipher_key": bytes(range(min(suite.cipher_key_lens))), "auth_algo": suite.auth_algo,
        "auth_key": bytes(range(min(suite.auth_key_lens))),
    }  # fmt: skip
    return SaParams.from_wire(IpsecSa(direction=direction, **given | fields), V14)


class House:
    """A place where SAs live, with IVs of its own."""

    def __init__(self, engine: str, seed: int = 0) -> None:
        self.engine, self.rng = engine, random.Random(seed).randbytes
        self.table = FastSaTable(self.rng)

    def outbound(self, suite: Any = GCM, *, frozen: bool = False, **fields: Any) -> AnyOutboundSa:
        made = params(Direction.OUTBOUND, suite, **fields)
        if self.engine == "c":
            assert accepts(made)
            return FastOutboundSa(self.table, 1, made, self.rng, frozen=frozen)
        return OutboundSa(made, self.rng, frozen=frozen)

    def inbound(self, suite: Any = GCM, *, frozen: bool = False, **fields: Any) -> AnyInboundSa:
        made = params(Direction.INBOUND, suite, **fields)
        if self.engine == "c":
            return FastInboundSa(self.table, 1, made, frozen=frozen)
        return InboundSa(made, frozen=frozen)


def opened(sa: AnyInboundSa, packet: bytes) -> int:
    return unprotect(sa, packet, find_spi(packet)).sequence


def refusal(call: Callable[[], object]) -> Reason:
    with pytest.raises(PacketError) as caught:
        call()
    return caught.value.reason


def iv(packet: bytes) -> bytes:
    return packet[28:36]


@each_move
def test_an_outbound_sa_goes_on_elsewhere(suite: Any, here: str, there: str) -> None:
    source, target = House(here, 1).outbound(suite), House(there, 2).outbound(suite, frozen=True)
    peer = House("python").inbound(suite)
    packets = [protect(source, INNER, 0) for _ in range(5)]
    assert refusal(lambda: protect(target, INNER, 0)) is Reason.HELD
    source.freeze()
    assert refusal(lambda: protect(source, INNER, 0)) is Reason.HELD
    assert refusal(lambda: protect(source, b"\x45", 0)) is Reason.HELD
    state = source.state()
    assert (state.sequence, state.packets, state.refused) == (5, 5, {Reason.HELD: 2})
    target.restore(SaState.from_json(state.to_json()))
    assert (target.state(), target.frozen) == (state, False)
    packets += [protect(target, INNER, 0) for _ in range(5)]
    assert [opened(peer, packet) for packet in packets] == [*range(1, 11)]
    if suite.counter_iv:
        ivs = [int.from_bytes(iv(packet)) for packet in packets]
        assert [(number - ivs[0]) % 2**64 for number in ivs] == [*range(10)]


@each_move
def test_an_inbound_sa_accepts_nothing_twice_elsewhere(suite: Any, here: str, there: str) -> None:
    draw = random.Random(f"{suite.name} {here} {there}")
    sender = House("python").outbound(suite)
    packets = [protect(sender, INNER, 0) for _ in range(120)]
    source, target = House(here).inbound(suite), House(there).inbound(suite, frozen=True)
    arrived = {n for n in range(1, 90) if draw.random() < 0.6} | {90}
    for number in sorted(arrived):
        opened(source, packets[number - 1])
    source.freeze()
    assert refusal(lambda: opened(source, packets[100])) is Reason.HELD
    assert refusal(lambda: opened(target, packets[100])) is Reason.HELD
    target.restore(source.state())
    for number in range(1, 121):
        if number in arrived or number <= 90 - 64:
            assert refusal(lambda n=number: opened(target, packets[n - 1])) is Reason.REPLAY, number
    for number in sorted({*range(91 - 64, 121)} - arrived):
        assert opened(target, packets[number - 1]) == number


@pytest.mark.parametrize("engine", ["c", "python"])
def test_two_records_are_merged_so_that_neither_is_forgotten(engine: str) -> None:
    sender = House("python").outbound()
    packets = [protect(sender, INNER, 0) for _ in range(200)]
    first, second = House(engine).inbound(), House(engine).inbound(replay_win_sz=128)
    for number in (1, 60, 100, 150):
        opened(first, packets[number - 1])
    for number in (50, 90, 100, 140):
        opened(second, packets[number - 1])
    second.restore(first.state())
    acceptable = set()
    for number in range(1, 201):
        with suppress(PacketError):
            acceptable.add(opened(second, packets[number - 1]))
    # The first one told of 87 to 150 only.
    assert acceptable == {*range(87, 201)} - {90, 100, 140, 150}


@pytest.mark.parametrize("engine", ["c", "python"])
def test_nothing_goes_back(engine: str) -> None:
    sa = House(engine).outbound()
    for _ in range(3):
        protect(sa, INNER, 0)
    state = sa.state()
    for wrong in (
        replace(state, sequence=2),
        replace(state, sequence=1 << 32),
        replace(state, iv_base=state.iv_base ^ 1),
    ):
        with pytest.raises(BadSaParameters):
            sa.restore(wrong)
        assert sa.state() == state
    # A mark that was written ahead of use, and counters that only rise.
    sa.restore(replace(state, sequence=1000, packets=1, bytes=state.bytes + 1, refused={Reason.TOO_BIG: 4}))
    assert sa.sequence == 1000
    assert (sa.packets, sa.bytes, sa.stats) == (3, state.bytes + 1, {Reason.TOO_BIG: 4})
    sa.restore(replace(state, sequence=1000, refused={Reason.TOO_BIG: 3}))
    assert sa.stats == {Reason.TOO_BIG: 4}
    receiver = House(engine).inbound()
    receiver.restore(SaState(50, 0, 0))
    for wrong in (SaState(49, 0, 0), SaState(1 << 32, 0, 0)):
        with pytest.raises(BadSaParameters):
            receiver.restore(wrong)
    if engine == "c":
        with pytest.raises(BadSaParameters):
            receiver.restore(SaState(60, 0, 0, window=4097))


@pytest.mark.parametrize("engine", ["c", "python"])
def test_far_jumps_and_the_ends_of_the_number_space(engine: str) -> None:
    last = 2**64 - 1
    sa = House(engine).outbound(options=IpsecOption.ESN)
    sa.restore(SaState(last - 1, 0, 0, iv_base=5))
    protect(sa, INNER, 0)
    assert refusal(lambda: protect(sa, INNER, 0)) is Reason.SEQUENCE_OVERFLOW
    receiver = House(engine).inbound(options=IpsecOption.ESN)
    receiver.restore(SaState(last, 0, 0))
    assert receiver.state().seen == 2**64 - 1
    early = House(engine).inbound()
    early.restore(SaState(3, 0, 0, window=64))  # there are no numbers below 0
    assert early.state().seen == 2**64 - 1 ^ 0b111


@pytest.mark.parametrize("engine", ["c", "python"])
def test_what_is_frozen_stays_so_over_modify_and_is_gone_when_destroyed(engine: str) -> None:
    house = House(engine)
    limited = {"options": IpsecOption.SA_LIFETIME, "life": Lifetime(packets_hard_limit=1)}
    sa = house.outbound()
    sa.freeze()
    sa.update(params(Direction.OUTBOUND, **limited))
    assert refusal(lambda: protect(sa, INNER, 0)) is Reason.HELD
    sa.restore(sa.state())
    protect(sa, INNER, 0)
    assert refusal(lambda: protect(sa, INNER, 0)) is Reason.HARD_LIFETIME
    sa.freeze()
    sa.wipe()
    sa.freeze()
    assert refusal(lambda: protect(sa, INNER, 0)) is Reason.UNKNOWN_SA
    for call in (sa.state, lambda: sa.restore(SaState(9, 0, 0))):
        with pytest.raises(BadSaParameters):
            call()


def test_threads_never_use_a_number_twice_while_the_sa_moves_to_and_fro() -> None:
    """Each thread sends wherever it can; the SA lives in one of two tables."""
    houses = [House("c", 1), House("c", 2)]
    sas: list[AnySa] = [house.outbound(frozen=n == 1) for n, house in enumerate(houses)]
    made: list[list[bytes]] = [[], [], []]
    ending = threading.Event()

    def send(mine: list[bytes]) -> None:
        while not ending.is_set():
            for house in houses:
                results = house.table.protect([(1, INNER, None)] * 16)
                mine += [result.packet for result in results if result.reason is None]

    threads = [threading.Thread(target=send, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for turn in range(40):
        source, target = turn % 2, 1 - turn % 2
        sas[source].freeze()
        state = sas[source].state()
        assert state.packets == state.sequence
        sas[source].wipe()
        sas[target].restore(state)
        sas[source] = houses[source].outbound(frozen=True)
    ending.set()
    for thread in threads:
        thread.join(30)
    ivs = [iv(packet) for mine in made for packet in mine]
    assert len(set(ivs)) == len(ivs) == sas[0].state().sequence


def test_a_state_survives_json_and_nothing_else_is_taken_for_one() -> None:
    state = SaState(2**64 - 1, 1, 2, 3, 4096, (1 << 4096) - 1, {Reason.REPLAY: 7})
    good = state.to_json()
    assert SaState.from_json(good) == state
    bad: list[Any] = [None, [], {}, {**good, "more": 1}, {**good, "sequence": -1}, {**good, "sequence": 2**64},
                      {**good, "packets": True}, {**good, "bytes": "1"}, {**good, "window": 4097},
                      {**good, "seen": 5}, {**good, "seen": ""}, {**good, "seen": "0x1"}, {**good, "seen": "F"},
                      {**good, "seen": "1" * 1025}, {**good, "window": 4095}, {**good, "refused": []},
                      {**good, "refused": {"none": 1}}, {**good, "refused": {"replay": -1}}]  # fmt: skip
    for wrong in bad:
        with pytest.raises(ConfigError):
            SaState.from_json(wrong)


def test_random_ivs_are_of_no_account() -> None:
    sa = OutboundSa(params(Direction.OUTBOUND, CBC), counting_rng())
    protect(sa, INNER, 0)
    assert sa.state().iv_base == 0
