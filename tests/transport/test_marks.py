"""Sequence marks: whenever the process dies, its next life begins above everything that was used."""

from __future__ import annotations

import mmap
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ipsec_samples import ipv4

from virtio_ipsec.crypto.algorithms import by_name
from virtio_ipsec.errors import ConfigError, PacketError, Reason
from virtio_ipsec.fastpath.esp import FastInboundSa, FastOutboundSa, FastSaTable
from virtio_ipsec.ipsec.params import SaParams
from virtio_ipsec.ipsec.process import inbound, outbound
from virtio_ipsec.ipsec.sa import InboundSa, OutboundSa
from virtio_ipsec.transport import journal, marks
from virtio_ipsec.transport.journal import StateError
from virtio_ipsec.transport.marks import LEAST_STRIDE, SECOND, Inbound, Marks, Outbound
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.ipsec import IpsecSa, Lifetime
from virtio_ipsec.wire.numbers import Direction, IpsecMode, IpsecOption

UDP = bytes.fromhex("0001000200080000")
GCM = by_name("aes-gcm-16")


def params(direction: Direction = Direction.OUTBOUND, *, key: int = 1, hard: int = 0) -> SaParams:
    sa = IpsecSa(
        mode=IpsecMode.ESP_TRANSPORT, direction=direction, spi=7, salt=b"salt", cipher_algo=GCM.cipher_algo,
        cipher_key=bytes([key]) * 16, replay_win_sz=64 * (direction == Direction.INBOUND),
        options=IpsecOption.SA_LIFETIME if hard else 0, life=Lifetime(packets_hard_limit=hard),
    )  # fmt: skip
    return SaParams.from_wire(sa, V14)


def begin(kept: Marks, given: SaParams) -> OutboundSa:
    """An outbound SA that goes on where the records say."""
    known = kept.known_outbound(given)
    if known is not None:
        given = replace(given, first_sequence=known.mark + 1)
    sa = OutboundSa(given, lambda n: (known.iv_base if known else 0xABCDEF).to_bytes(n))
    kept.keep_outbound(given, sa, sa._iv_base)
    return sa


def use(sa: OutboundSa, count: int) -> None:
    for _ in range(count):
        outbound(sa, ipv4(UDP))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def kept(directory: Path) -> Iterator[Marks]:
    result = Marks(directory, os.urandom, sync=False)
    yield result
    result.close()


def reopened(kept: Marks, directory: Path) -> Marks:
    """What another process finds when this one has died: nothing of ours is written any more."""
    kept._journal.close()
    return Marks(directory, os.urandom, sync=False)


def test_an_sa_holds_its_packets_back_until_its_mark_is_written(kept: Marks) -> None:
    sa = begin(kept, params())
    with pytest.raises(PacketError) as caught:
        use(sa, 1)
    assert caught.value.reason is Reason.HELD
    assert kept.deadline() == 0
    kept.tick(0)
    use(sa, 1)
    assert kept.outbound[kept.key(params())].mark == LEAST_STRIDE


def test_a_crash_continues_behind_the_mark_with_the_same_ivs(kept: Marks, directory: Path) -> None:
    sa = begin(kept, params())
    kept.tick(0)
    use(sa, 5)
    again = reopened(kept, directory)
    assert again.known_outbound(params()) == Outbound(sa._iv_base, LEAST_STRIDE, 0)
    later = begin(again, params())
    again.tick(0)
    use(later, 1)
    assert (later.sequence, later._iv_base) == (LEAST_STRIDE + 1, sa._iv_base)
    again.close()


def test_an_orderly_end_wastes_no_numbers(kept: Marks, directory: Path) -> None:
    sa = begin(kept, params())
    kept.tick(0)
    use(sa, 5)
    kept.close()
    again = Marks(directory, os.urandom)
    assert again.known_outbound(params()) == Outbound(sa._iv_base, 5, sa.bytes)
    again.close()
    with pytest.raises(PacketError):
        use(sa, 1)


def test_what_is_removed_is_remembered_exactly(kept: Marks, directory: Path) -> None:
    sa = begin(kept, params())
    kept.tick(0)
    use(sa, 3)
    sa.wipe()
    kept.release(params())
    kept.release(params())  # of nothing
    assert kept.known_outbound(params()) == Outbound(sa._iv_base, 3, sa.bytes)
    kept.tick(1)
    assert kept.deadline() is None
    again = reopened(kept, directory)
    assert again.known_outbound(params()) == Outbound(sa._iv_base, 3, sa.bytes)
    again.close()


def test_marks_are_raised_when_half_of_a_stride_is_used(kept: Marks) -> None:
    sa = begin(kept, params())
    kept.tick(0)
    half = LEAST_STRIDE // 2
    for second, used, mark in ((1, half - 1, LEAST_STRIDE), (2, half, LEAST_STRIDE + half)):
        sa.sequence = used
        kept.tick(second * SECOND)
        assert kept.outbound[kept.key(params())].mark == mark


def test_a_stride_becomes_a_second_of_traffic_and_has_an_end(kept: Marks) -> None:
    sa, now = begin(kept, params()), 0
    kept.tick(now)
    for _ in range(30):
        sa.sequence += 150_000
        now += SECOND // 20
        kept.tick(now)
    stride = kept.outbound[kept.key(params())].mark - sa.sequence
    assert 1_500_000 < stride <= 3_000_000
    sa.sequence = kept.outbound[kept.key(params())].mark
    sa.sequence += marks.MOST_STRIDE
    kept.tick(now + 1_000_000_000)
    assert kept.outbound[kept.key(params())].mark <= sa.sequence + marks.MOST_STRIDE


def test_with_a_limit_of_packets_little_of_it_is_reserved(kept: Marks) -> None:
    for hard, mark in ((16_000, 1000), (100, 64)):
        given = params(key=hard % 251, hard=hard)
        begin(kept, given)
        kept.tick(kept.deadline() or 0)
        assert kept.outbound[kept.key(given)].mark == mark


def test_idle_sas_are_looked_at_less_often(kept: Marks) -> None:
    sa = begin(kept, params())
    kept.tick(0)
    assert kept.deadline() == marks.LOOK_IDLE
    use(sa, 1)
    kept.tick(1)  # not due
    kept.tick(marks.LOOK_IDLE)
    assert kept.deadline() == marks.LOOK_IDLE + marks.LOOK_EVERY


def test_two_sas_cannot_have_one_key(kept: Marks) -> None:
    begin(kept, params())
    with pytest.raises(ConfigError, match="key and salt of another SA"):
        kept.known_outbound(params())
    assert kept.known_inbound(params(Direction.INBOUND)) is None


def test_used_up_numbers_ask_for_a_new_key(kept: Marks) -> None:
    kept.outbound[kept.key(params())] = Outbound(0, 2**32 - 1)
    with pytest.raises(ConfigError, match="used up: give it a new one"):
        kept.known_outbound(params())


def test_there_is_an_end_to_what_is_remembered(kept: Marks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "MAX_RECORDS", 1)
    kept.outbound["x"] = Outbound(0, 1)
    with pytest.raises(ConfigError, match="knows 1 keys"):
        kept.known_inbound(params())


def test_another_key_salt_or_algorithm_is_another_record(kept: Marks) -> None:
    one = params()
    others = (params(key=2), replace(one, salt=b"pepp"), replace(one, suite=by_name("aes-gmac")))
    assert len({kept.key(each) for each in (one, *others)}) == 4
    assert kept.key(params(Direction.INBOUND)) == kept.key(one)
    assert kept.key(replace(one, spi=8)) == kept.key(one)


def test_nothing_of_a_key_is_in_the_file(kept: Marks, directory: Path) -> None:
    begin(kept, params())
    kept.tick(0)
    text = (directory / "state").read_text()
    assert one_line_of(text, "out ")
    assert params().cipher_key.hex()[:8] not in text
    assert b"salt".hex() not in text


def one_line_of(text: str, start: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith(start))
    return line


def test_inbound_numbers_are_written_once_a_second_while_packets_arrive(kept: Marks, directory: Path) -> None:
    sender, receiver = OutboundSa(params(), bytes), InboundSa(given := params(Direction.INBOUND))
    kept.keep_inbound(given, receiver, lambda: receiver.window.top)
    key = kept.key(given)
    kept.tick(0)
    assert key not in kept.inbound
    for second, expected in ((0.5, None), (1, 6), (1.5, 6), (2, 12)):
        for _ in range(3):
            inbound(receiver, outbound(sender, ipv4(UDP)))
        kept.tick(int(second * SECOND))
        found = kept.inbound.get(key)
        assert (found.top if found else None) == expected
    again = reopened(kept, directory)
    assert again.known_inbound(given) == Inbound(12, 12, kept.inbound[key].octets)
    again.close()


def test_inbound_numbers_are_exact_at_an_orderly_end(kept: Marks, directory: Path) -> None:
    sender, receiver = OutboundSa(params(), bytes), InboundSa(given := params(Direction.INBOUND))
    kept.keep_inbound(given, receiver, lambda: receiver.window.top)
    for _ in range(3):
        inbound(receiver, outbound(sender, ipv4(UDP)))
    kept.release(given)
    kept.close()
    again = Marks(directory, os.urandom)
    assert again.known_inbound(given) == Inbound(3, 3, receiver.bytes)
    again.close()


def test_both_engines_can_be_kept(kept: Marks) -> None:
    table = FastSaTable(os.urandom)
    sender = FastOutboundSa(table, 1, params(), bytes)
    receiver = FastInboundSa(table, 1, given := params(Direction.INBOUND))
    kept.keep_outbound(params(), sender, 0)
    kept.keep_inbound(given, receiver, lambda: receiver.top)
    with pytest.raises(PacketError):
        sender.protect(ipv4(UDP))
    kept.tick(0)
    receiver.unprotect(sender.protect(ipv4(UDP)))
    sender.wipe()
    kept.release(params())
    kept.tick(SECOND)
    assert kept.inbound[kept.key(given)].top == kept.outbound[kept.key(params())].mark == 1


def test_when_nothing_can_be_written_an_sa_stops_at_its_mark(
    kept: Marks, monkeypatch: pytest.MonkeyPatch
) -> None:
    sa = begin(kept, params(hard=1600))
    kept.tick(0)
    use(sa, 60)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", full)
        kept.tick(SECOND)
        assert "No space left on device" in kept.failure
        use(sa, 40)
        with pytest.raises(PacketError) as caught:
            use(sa, 1)
        assert (caught.value.reason, sa.sequence) == (Reason.HELD, 100)
    kept.tick(2 * SECOND)
    assert kept.failure == ""
    use(sa, 1)


def test_ports_are_remembered(kept: Marks, directory: Path) -> None:
    records = [(params(), Outbound(1, 2, 3)), (params(Direction.INBOUND), Inbound(4, 5, 6))]
    kept.record("green", "gone 0123 to somewhere", records)
    again = reopened(kept, directory)
    assert (again.ports, again.ident) == ({"green": "gone 0123 to somewhere"}, kept.ident)
    assert [again.known_outbound(params()), again.known_inbound(params(Direction.INBOUND))] == [
        each for _, each in records
    ]
    again.close()


@pytest.mark.parametrize("line", ["out x", "out x 1 2 3 4", "in x -", "moon x 1", "out"])
def test_lines_of_another_version_are_refused(directory: Path, line: str) -> None:
    written = journal.Journal(directory, os.urandom)
    written.append([line])
    written.close()
    with pytest.raises(StateError, match="line 2 is of another version"):
        Marks(directory, os.urandom)
    with pytest.raises(StateError, match="line 2"):
        Marks(directory, os.urandom)


def live(directory: Path, shown: mmap.mmap) -> None:
    """A life that sends as fast as it can and shows each number and IV before it counts as sent."""
    kept = Marks(directory, os.urandom, sync=False)
    sa, now = begin(kept, params()), 0
    shown[16:24] = sa._iv_base.to_bytes(8)
    shown[24:32] = (sa.sequence + 1).to_bytes(8)
    while True:
        try:
            shown[0:8] = sa.next_sequence().to_bytes(8)
        except PacketError:
            now = kept.deadline() or now
            kept.tick(now)


def test_killed_at_any_moment_the_next_life_begins_above_all_that_was_used(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "LEAST_STRIDE", 3)
    monkeypatch.setattr(marks, "MOST_STRIDE", 3)
    monkeypatch.setattr(journal, "COMPACT_FROM", 300)
    draw = random.Random("kill")
    bases, used = set(), 0
    with mmap.mmap(-1, 4096) as shown:
        for _ in range(30):
            shown[0:32] = bytes(32)
            child = os.fork()
            if child == 0:
                try:
                    live(directory, shown)
                finally:
                    os._exit(1)
            awaited = used + draw.randrange(1, 60)
            while int.from_bytes(shown[0:8]) < awaited:
                time.sleep(0.0002)
            time.sleep(draw.random() * 0.002)
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert os.WTERMSIG(status) == signal.SIGKILL
            first, last = int.from_bytes(shown[24:32]), int.from_bytes(shown[0:8])
            assert first > used
            used = max(used, last)
            bases.add(bytes(shown[16:24]))
    assert used > 300
    assert len(bases) == 1
    assert (directory / "state").stat().st_size < 5000  # many times that was written
