"""What the report says beside a verdict: how far it can be trusted."""

from __future__ import annotations

from random import Random

from virtio_ipsec.cli.conformance import _summary
from virtio_ipsec.conformance.bench import THIN, Bench
from virtio_ipsec.conformance.case import Case
from virtio_ipsec.conformance.reports.text import to_markdown
from virtio_ipsec.conformance.runner import identity_of, report_of, run_case
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.transport.loopback_target import LoopbackTarget

LOST = "plain frames were lost on the way: what did not arrive may have been lost, too"
FRAME = b"\xff" * 6 + b"\2" * 6 + b"\x88\xb6" + bytes(46)


class Lossy(LoopbackTarget):
    """Every second frame that arrives is lost."""

    patience = 0.04

    def __init__(self) -> None:
        super().__init__(Device(DeviceConfig(max_queue_pairs=2), Random(1).randbytes))
        self.count = 0

    def inject(self, frame: bytes) -> None:
        self.count += 1
        if self.count % 2:
            super().inject(frame)


class Deaf(Lossy):
    """None arrives."""

    def inject(self, frame: bytes) -> None: ...


def receives(bench: Bench) -> None:
    bench.start()
    bench.packets.post()
    came = bench.packets.receive(FRAME)
    bench.check("ADM-DEV-05", len(came) == 1, "the frame")


CASE = Case("receives", "A frame is received.", "doc", ("ADM-DEV-05",), frozenset(), receives)


def test_a_case_whose_sentinel_was_lost_says_so_whatever_its_verdict() -> None:
    target = Lossy()
    result = run_case(CASE, target, 0)
    assert (result.verdict, result.reason) == (Verdict.PASS, LOST)
    report = report_of(identity_of(target), [result], seed=0, seconds=0.0)
    assert f"PASS receives: {LOST}" in _summary(report, partial=True)
    assert f"| receives | {LOST} |" in to_markdown(report)


def test_a_device_that_delivers_none_of_four_sentinels_is_wedged() -> None:
    result = run_case(CASE, Deaf(), 0)
    assert (result.verdict, result.reason) == (
        Verdict.WEDGED,
        "no answer: an injected plain frame is not delivered",
    )


def test_a_slow_target_is_tried_with_samples_when_half_of_the_time_is_over() -> None:
    def sweeps(bench: Bench) -> None:
        tried = bench.sweep(range(100))
        bench.check("ADM-DEV-05", len(tried) in (THIN, 100), "items")
        bench.check("ADM-DEV-05", (tried[0], tried[-1]) == (0, 99), "both ends")
        bench.check("ADM-DEV-05", len(tried) == THIN, "samples")

    case = Case("sweeps", "A sweep.", "doc", ("ADM-DEV-05",), frozenset(), sweeps)
    late = run_case(case, Lossy(), 0, limit=0.0)
    assert late.verdict is Verdict.PASS
    assert late.reason.startswith("the target is slow")
    in_time = run_case(case, Lossy(), 0, limit=60.0)
    assert (in_time.verdict, in_time.reason) == (Verdict.FAIL, "")


def test_octets_that_were_seen_are_hex() -> None:
    def sees(bench: Bench) -> None:
        for seen in (b"\x02V", [b"", b"\x88"], ["", 1], (1, 2)):
            bench.check("ADM-DEV-05", False, "nothing", seen)

    device = LoopbackTarget(Device(DeviceConfig(), Random(1).randbytes))
    found = run_case(Case("sees", "Title", "doc", ("ADM-DEV-05",), frozenset(), sees), device, 0)
    assert [check.seen for check in found.checks] == ["0256", "[nothing, 88]", "['', 1]", "(1, 2)"]
