"""The replay window, number by number (INF-19), and what moves it."""

from __future__ import annotations

from dataclasses import replace

from virtio_ipsec.conformance import frames
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import case
from virtio_ipsec.conformance.datapath import INBOUND, DataPath, Sa
from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.wire.numbers import IpsecMode, IpsecOption

WINDOW = 64


class Numbers:
    """An inbound SA to which packets of chosen sequence numbers are sent."""

    def __init__(self, path: DataPath, sa: Sa) -> None:
        self.path = path
        self.sa = sa
        self.plain = frames.packet(path.bench.octets(16))

    def passes(self, number: int, *, spoil: bool = False) -> bool:
        """Whether a packet of this number, sealed anew, is opened; ``spoil`` breaks its ICV."""
        sealed = bytearray(self.sa.peer.at(number).seal(self.plain))
        sealed[-1] ^= spoil
        came = self.path.receive(bytes(sealed))
        return any(self.path.is_opened(rx, self.plain) for rx in came)

    def check(self, number: int, wanted: bool, why: str, clause: str = "INF-19") -> None:
        """Record whether the number passes as it should."""
        seen = self.passes(number)
        expected = f"number {number}, {why}, is {'accepted' if wanted else 'refused'}"
        self.path.bench.check(clause, seen == wanted, expected, "accepted" if seen else "refused")


def _numbers(bench: Bench, window: int) -> Numbers:
    path = DataPath(bench)
    path.need(IpsecMode.ESP_TUNNEL)
    if path.caps.modes[IpsecMode.ESP_TUNNEL].max_replay_win_sz < WINDOW:
        raise Unsupported(f"the device offers no replay window of {WINDOW}")
    return Numbers(path, path.inbound(replay_win_sz=window))


@case("ipsec-replay-window-edges", "INF-19", needs=("admin", "ipsec", "wire"))
def window_edges(bench: Bench) -> None:
    """A window of 64 accepts exactly the last 64 numbers, each once, and everything above.

    After number 100: 100 again, 99, 99 again, 37 which is the last inside, 36 which is outside (its acceptance,
    a window of one more, is reported: ledger E107), 35 which is outside in every reading, 101 and a jump.
    """
    numbers = _numbers(bench, WINDOW)
    top = 100
    bottom = top - WINDOW + 1
    numbers.check(top, True, "the first")
    numbers.check(top, False, "a repetition of the highest")
    numbers.check(top - 1, True, "inside the window")
    numbers.check(top - 1, False, "a repetition inside the window")
    numbers.check(bottom, True, "the left edge")
    numbers.check(bottom, False, "a repetition at the left edge")
    one_more = numbers.passes(bottom - 1)
    bench.reading("E107", "one number more than the window" if one_more else "exactly the window")
    numbers.check(bottom - 2, False, "left of the window")
    numbers.check(1, False, "far left of the window")
    numbers.check(top + 1, True, "one above")
    numbers.check(top + 1 + 10 * WINDOW, True, "a jump ahead")
    numbers.check(top + 2, False, "left behind by the jump")
    numbers.check(top + 10 * WINDOW, True, "one below the new highest")


@case("ipsec-replay-order", "INF-19", needs=("admin", "ipsec", "wire"))
def order(bench: Bench) -> None:
    """Packets inside the window may come in any order; none is accepted twice.

    Numbers 1 to 40 in random order, then all of them again.
    """
    numbers = _numbers(bench, WINDOW)
    sequence = list(range(1, 41))
    bench.rng.shuffle(sequence)
    accepted = [number for number in sequence if numbers.passes(number)]
    bench.check("INF-19", accepted == sequence, "all numbers of a window are accepted in any order", accepted)
    again = [number for number in sequence if numbers.passes(number)]
    bench.check("INF-19", not again, "none of them is accepted again", again)


@case("ipsec-replay-off", "INF-19", needs=("admin", "ipsec", "wire"))
def off(bench: Bench) -> None:
    """With a window of zero the replay check is off: repetitions and old numbers are accepted.

    Numbers 5000, 5000 again and 1.
    """
    numbers = _numbers(bench, 0)
    for number, why in ((5000, "the first"), (5000, "a repetition"), (1, "an old one")):
        numbers.check(number, True, why)


@case("ipsec-replay-largest-window", "INF-19", needs=("admin", "ipsec", "wire"))
def largest_window(bench: Bench) -> None:
    """The largest window of the capability works as wide as it says.

    Numbers at the top, at the left edge, there again, and one further left.
    """
    path = DataPath(bench)
    path.need(IpsecMode.ESP_TUNNEL)
    size = path.caps.modes[IpsecMode.ESP_TUNNEL].max_replay_win_sz
    numbers = Numbers(path, path.inbound(replay_win_sz=size))
    top = 2 * size + 1
    numbers.check(top, True, "the first")
    numbers.check(top - size + 1, True, "the left edge")
    numbers.check(top - size + 1, False, "a repetition at the left edge")
    numbers.check(top - size - 1, False, "left of the window")


@case("ipsec-replay-forged", "INF-19", needs=("admin", "ipsec", "wire"))
def forged(bench: Bench) -> None:
    """A packet that is not authentic moves nothing: neither does its number count as seen, nor the window move.

    A forged packet with number 20, then 20; a forged one with 1000, then 21.
    """
    numbers = _numbers(bench, WINDOW)
    numbers.check(10, True, "the first")
    for number, good in ((20, 20), (1000, 21)):
        opened = numbers.passes(number, spoil=True)
        bench.check("INF-19", not opened, f"a forged packet of number {number} is not opened")
        numbers.check(good, True, f"after a forged packet of number {number}")


@case("ipsec-replay-esn", "INF-19", "INF-21", needs=("admin", "ipsec", "wire"))
def esn(bench: Bench) -> None:
    """With ESN the window works alike, and a number far below means the next 2^32, which nobody has sent.

    Sequence numbers 100, 100 again, 37, 30 and 101 under a window of 64.
    """
    path = DataPath(bench)
    path.need(IpsecMode.ESP_TUNNEL, IpsecOption.ESN)
    numbers = Numbers(path, path.inbound(options=IpsecOption.ESN, replay_win_sz=WINDOW))
    numbers.check(100, True, "the first")
    numbers.check(100, False, "a repetition")
    numbers.check(37, True, "the left edge")
    numbers.check(30, False, "left of the window", "INF-21")
    numbers.check(101, True, "one above", "INF-21")


@case("ipsec-replay-over-modify", "INF-39", needs=("admin", "ipsec", "modify_query", "wire"))
def over_modify(bench: Bench) -> None:
    """MODIFY does not clear the replay window (ledger E40): what was seen stays seen when the window widens.

    Number 10 is accepted, the window is set from 32 to 64 by MODIFY, 10 comes again.
    """
    numbers = _numbers(bench, 32)
    numbers.check(10, True, "the first", "INF-39")
    sa = numbers.sa
    wider = replace(sa.value, replay_win_sz=WINDOW, obj_id=sa.id)
    reply = bench.admin.modify(INBOUND, sa.id, bench.dialect.sa.build(wider))
    bench.require("INF-39", reply.ok, "MODIFY of the replay window succeeds", reply)
    numbers.check(10, False, "seen before MODIFY", "INF-39")
    numbers.check(11, True, "new after MODIFY", "INF-39")
    numbers.check(80, True, "ahead after MODIFY", "INF-39")
    numbers.check(30, True, "inside the wider window only", "INF-39")
