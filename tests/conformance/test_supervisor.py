"""A run in processes of its own: hung, dying and vanishing targets end in verdicts, never in a hung suite."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from threading import Thread

import pytest

from virtio_ipsec.cli.conformance import _summary
from virtio_ipsec.cli.main import main
from virtio_ipsec.conformance import bed, runner, sas, supervisor
from virtio_ipsec.conformance.bench import Bench
from virtio_ipsec.conformance.case import Case
from virtio_ipsec.conformance.reports.junit import to_junit
from virtio_ipsec.conformance.reports.master import from_json, to_json
from virtio_ipsec.conformance.reports.page import to_html
from virtio_ipsec.conformance.reports.text import to_markdown
from virtio_ipsec.conformance.result import CaseResult, Report
from virtio_ipsec.conformance.target import Target, open_target
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.errors import ConfigError, TransportError
from virtio_ipsec.transport.loopback_target import LoopbackTarget
from virtio_ipsec.wire.dialect import V14

LOOPBACK = partial(open_target, "loopback:python", V14)


def make(name: str, body: object) -> Case:
    assert callable(body)
    return Case(name, f"Title of {name}", "doc", ("ADM-DEV-05",), frozenset(), body)


def good(bench: Bench) -> None:
    bench.start()
    bench.check("ADM-DEV-05", bench.admin.list_query().ok, "status OK")


def never_ends(bench: Bench) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    time.sleep(60)


def kills_its_process(bench: Bench) -> None:
    os._exit(7)


def verdicts(report: Report) -> dict[str, tuple[Verdict, str]]:
    return {case.id: (case.verdict, case.reason) for case in report.cases}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_case_without_end_is_wedged_and_the_others_are_judged(jobs: int) -> None:
    cases = [
        make("hangs", never_ends),
        make("dies", kills_its_process),
        *(make(f"good{n}", good) for n in range(6)),
    ]
    report = supervisor.run(supervisor.Plan(LOOPBACK, cases, jobs=jobs, limit=0.7))
    assert verdicts(report) == {
        "hangs": (Verdict.WEDGED, "no end within 0.7 s"),
        "dies": (Verdict.WEDGED, "its process ended with code 7"),
        **{f"good{n}": (Verdict.PASS, "") for n in range(6)},
    }
    assert not report.passed


#: Seconds: enough to come to where each of the cases below hangs.
LIMIT = 0.8
KEY, SALT = bytes(range(0x40, 0x50)), bytes(range(0x51, 0x55))


class Mute(LoopbackTarget):
    """Nothing is done with what is put on its queues."""

    patience = 60.0

    def kick(self, index: int) -> None: ...

    def poll(self, timeout: float) -> None:
        time.sleep(timeout)


def sends_a_command(bench: Bench) -> None:
    bench.start()
    bench.check("ADM-DEV-05", bool(bench.features), "features")
    bench.packets.send(b"frame")


def creates_an_sa(bench: Bench) -> None:
    bench.start()
    sas.install(bench, 1, sas.make(bench, suite="aes-gcm-16", key_octets=16, cipher_key=KEY, salt=SALT))


def spins(bench: Bench) -> None:
    bench.trace.add("note", "the last that was done")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    os.kill(os.getpid(), signal.SIGSTOP)


def test_what_a_case_was_at_when_its_time_ran_out_is_evidence_in_every_format() -> None:
    """The last exchange, what was waited for, and the lines of code; no key of a command that is not answered."""
    device = Device(DeviceConfig(), bytes)
    cases = [make("command", creates_an_sa), make("frame", sends_a_command), make("stopped", spins)]
    plan = supervisor.Plan(lambda: nullcontext(Mute(device)), cases, jobs=3, limit=LIMIT)  # type: ignore[arg-type]
    report = supervisor.run(plan)
    found = {case.id: case for case in report.cases}
    assert {case.verdict for case in report.cases} == {Verdict.WEDGED}
    assert found["command"].reason == f"no end within {LIMIT} s; it was waiting: administration command"
    sent, where = found["command"].events[-2:]
    assert (sent.kind, sent.summary) == ("admin", "RESOURCE_OBJ_CREATE: no answer")
    assert any("cipher_key" in line and "**" in line for line in sent.lines)
    assert where.summary == "where it was when the time had run out"
    assert where.lines[0].startswith("test_supervisor.py:")
    assert any("conformance/bench.py" in line and "wait" in line for line in where.lines)
    assert "transmit buffer" in found["frame"].reason
    assert [check.verdict for check in found["frame"].checks] == [Verdict.PASS]
    assert found["frame"].events[-2].kind == "transmit"
    assert found["stopped"].reason == f"no end within {LIMIT} s, and its process does not say where it is"
    assert found["stopped"].events == ()
    assert from_json(json.loads(json.dumps(to_json(report)))).cases == report.cases
    for text in (_summary(report, partial=False), to_html(report), to_markdown(report), to_junit(report)):
        assert "RESOURCE_OBJ_CREATE: no answer" in text
        assert "where it was when the time had run out" in text
        assert KEY.hex() not in text
        assert SALT.hex() not in text


def test_a_target_on_which_nothing_ends_is_left_alone() -> None:
    cases = [make(f"dies{n}", kills_its_process) for n in range(8)]
    report = supervisor.run(supervisor.Plan(LOOPBACK, cases))
    assert {case.verdict for case in report.cases} == {Verdict.WEDGED}
    assert sum(case.reason.endswith("this one was not tried") for case in report.cases) == 3


def test_a_device_that_goes_away_is_wedged_and_opened_anew() -> None:
    class Mortal(LoopbackTarget):
        gone = False

        def reset(self) -> None:
            if self.gone:
                raise TransportError("nobody is there")
            super().reset()

    def kills(bench: Bench) -> None:
        bench.start()
        bench.admin.list_query()
        bench.target.gone = True  # type: ignore[attr-defined]
        raise TransportError("the connection is gone")

    def opened() -> AbstractContextManager[Target]:
        return nullcontext(Mortal(Device(DeviceConfig(), bytes)))  # type: ignore[return-value]

    cases = [make("kills", kills), *(make(f"good{n}", good) for n in range(3))]
    report = supervisor.run(supervisor.Plan(opened, cases))
    reason = "TransportError: the connection is gone; the device does not answer any more: nobody is there"
    assert verdicts(report) == {
        "kills": (Verdict.WEDGED, reason),
        **{f"good{n}": (Verdict.PASS, "") for n in range(3)},
    }
    assert report.cases[-1].events[-1].summary.startswith("LIST_QUERY: OK")


def test_a_device_that_cannot_be_reset_ends_the_run_where_it_hangs() -> None:
    cases = [make("dies", kills_its_process), make("good", good)]
    seed = next(n for n in range(9) if runner.order_of(cases, n)[0].id == "dies")
    report = supervisor.run(supervisor.Plan(LOOPBACK, cases, seed=seed, reopen=False))
    assert verdicts(report)["good"] == (Verdict.WEDGED, "the device hung in dies and cannot be reset")


def test_what_other_processes_are_at_when_the_run_is_given_up_is_judged(tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def dies_beside_the_other(bench: Bench) -> None:
        while not begun.exists():
            time.sleep(0.01)
        os._exit(7)

    def takes_longer(bench: Bench) -> None:
        begun.touch()
        time.sleep(0.1)
        good(bench)

    cases = [make("dies", dies_beside_the_other), make("longer", takes_longer)]
    report = supervisor.run(supervisor.Plan(LOOPBACK, cases, jobs=2, reopen=False))
    assert verdicts(report) == {
        "dies": (Verdict.WEDGED, "its process ended with code 7"),
        "longer": (Verdict.PASS, ""),
    }


def test_a_process_that_dies_between_two_cases_is_no_end_of_the_run(tmp_path: Path) -> None:
    """The first one is free, and waits for the last sanity run, while the second one works."""
    begun, heard, died = (tmp_path / name for name in ("begun", "heard", "died"))

    def await_file(file: Path) -> None:
        while not file.exists():
            time.sleep(0.01)

    def dies_later(bench: Bench) -> None:
        await_file(begun)
        good(bench)

        def die() -> None:
            await_file(heard)
            died.write_text(str(os.getpid()))
            os._exit(7)

        Thread(target=die, daemon=True).start()

    def outlives_it(bench: Bench) -> None:
        begun.touch()
        await_file(died)
        time.sleep(0.1)
        good(bench)

    def hear(number: int, total: int, result: CaseResult) -> None:
        if result.id == "dies":
            heard.touch()

    cases = [make(runner.SANITY, good), make("dies", dies_later), make("outlives", outlives_it)]
    seed = next(n for n in range(9) if runner.order_of(cases, n)[1].id == "dies")
    report = supervisor.run(supervisor.Plan(LOOPBACK, cases, seed=seed, jobs=2), hear)
    assert verdicts(report) == {
        "dies": (Verdict.PASS, ""),
        "outlives": (Verdict.PASS, ""),
        runner.SANITY: (Verdict.WEDGED, "its process ended with code 7"),
    }


def test_errors_of_a_target_need_not_be_made_again_from_their_text() -> None:
    class OwnError(TransportError):
        def __init__(self, register: int, found: int) -> None:
            super().__init__(f"register {register:#x} is {found}")

    @contextmanager
    def refuses() -> Iterator[Target]:
        raise OwnError(0x10, 3)
        yield  # makes it a generator

    with pytest.raises(TransportError, match="register 0x10 is 3"):
        supervisor.run(supervisor.Plan(refuses, [make("good", good)]))


@pytest.mark.parametrize("kind", [ConnectionResetError, BrokenPipeError, EOFError])
def test_a_connection_that_breaks_when_a_target_is_opened_is_told(kind: type[Exception]) -> None:
    """Not only that the process has ended: the pipe to the suite is another one."""

    @contextmanager
    def breaks() -> Iterator[Target]:
        raise kind("to the device")
        yield  # makes it a generator

    with pytest.raises(TransportError, match=f"unexpected {kind.__name__}: to the device"):
        supervisor.run(supervisor.Plan(breaks, [make("good", good)]))


@pytest.mark.parametrize("features", ["abc", -1, 1 << 128, None])
def test_features_that_cannot_be_are_an_error_of_the_target(features: object) -> None:
    class Odd(LoopbackTarget):
        def device_features(self) -> int:
            return features  # type: ignore[return-value]

    with pytest.raises(TransportError, match="the target's features are no 128 bits"):
        runner.identity_of(Odd(Device(DeviceConfig(), bytes)))


def test_details_of_a_target_are_text_in_a_report() -> None:
    class Versioned(LoopbackTarget):
        details = {"firmware": 3, "serial": b"x"}  # type: ignore[dict-item] # noqa: RUF012

    details = runner.identity_of(Versioned(Device(DeviceConfig(), bytes))).details
    assert details == {"firmware": "3", "serial": "b'x'"}


def test_a_target_that_does_not_open_again_ends_the_run_where_it_was_lost(tmp_path: Path) -> None:
    opened = tmp_path / "opened"

    @contextmanager
    def once() -> Iterator[Target]:
        if opened.exists():
            raise TransportError("nobody listens")
        opened.touch()
        with LOOPBACK() as target:
            yield target

    cases = [make("dies", kills_its_process), make("good", good)]
    seed = next(n for n in range(9) if runner.order_of(cases, n)[0].id == "dies")
    report = supervisor.run(supervisor.Plan(once, cases, seed=seed))
    reason = "the target does not open any more: nobody listens"
    assert verdicts(report)["good"] == (Verdict.WEDGED, reason)
    with pytest.raises(TransportError, match="nobody listens"):
        supervisor.run(supervisor.Plan(once, cases))


def test_a_target_whose_opening_never_ends_cannot_be_reached() -> None:
    @contextmanager
    def slow() -> Iterator[Target]:
        time.sleep(60)
        with LOOPBACK() as target:
            yield target

    with pytest.raises(TransportError, match="does not open: no end within"):
        supervisor.run(supervisor.Plan(slow, [make("good", good)], limit=0.3))


def test_processes_find_what_one_process_finds() -> None:
    cases = runner.select("virtio-1.4", ["cap*", "sanity*", "tx-*"])
    seen: list[str] = []
    plan = supervisor.Plan(LOOPBACK, cases, seed=5, jobs=2)
    apart = to_json(supervisor.run(plan, lambda n, total, result: seen.append(result.id)))
    with LOOPBACK() as target:
        together = to_json(runner.run(target, cases, seed=5))
    for document in (apart, together):
        del document["seconds"]
        for case in document["cases"]:
            del case["seconds"]
    assert apart == together
    assert seen[0] == seen[-1] == runner.SANITY


BED = """
device = "loopback:python"
capture = false
patience = 1
long_run = 300
[details]
vendor = "Example"
[[deviation]]
names = "ADM-DEV-05"
reason = "because"
"""


def test_a_target_file_describes_the_bed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setting = bed.parse(BED)
    with bed.open_bed(setting, V14) as target:
        assert not target.has_wire
        assert (target.patience, Bench(target, Random(1), make("good", good)).long_run) == (1.0, 300)
        assert target.details["vendor"] == "Example"
        assert target.details["device"] == "Device"
        target.reset()
    file = tmp_path / "nic.toml"
    file.write_text(BED)
    assert main(["conformance", "--target", str(file), "--only", "sanity*", "--only", "ADM-DEV-05"]) == 0
    assert main(["conformance", "--target", str(file), "--only", "tx-unknown-flags"]) == 1
    out = capsys.readouterr().out
    assert "UNSUPPORTED tx-unknown-flags: the test bed has no wire" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("device = 5", "device must be a string"),
        ("reset = 1", "reset must be true or false"),
        ("color = 'red'", "file: color is not known here"),
        ("patience = -1", "patience must be a number from 0 to 3600"),
        ("patience = true", "patience must be a number"),
        ("long_run = 0", "long_run must be a whole number from 1 to 10000000"),
        ("details = 5", "details must be a table"),
        ("details.vendor = 5", "vendor must be a string"),
        ("deviation = 5", r"deviation must be written as \[\[deviation\]\]"),
        ("deviation = [5]", "deviation must be written as"),
        ("[[deviation]]\nnames = 'NOT-A-CLAUSE'\nreason = 'x'", "neither a clause nor a case"),
        ("[[deviation]]\nnames = 'ADM-DEV-05'\nreason = ' '", "deviation 1: reason is empty"),
        ("[[deviation]]\nnames = 'ADM-DEV-05'", "deviation 1: reason is missing"),
        ("[[deviation]]\nnames = 'ADM-DEV-05'\nmood = 'x'", "deviation 1: mood is not known"),
        ("device", "not TOML"),
    ],
)
def test_a_bad_target_file_is_refused_with_the_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bed.parse(text)


def test_a_target_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        bed.read(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        bed.read(tmp_path / "latin.toml")


def test_of_two_runs_of_a_case_the_graver_one_stands() -> None:
    with LOOPBACK() as target:
        fine = runner.run_case(make("sanity-start", good), target, 0)
        identity = runner.identity_of(target)
    without, hung = (replace(fine, verdict=verdict) for verdict in (Verdict.UNSUPPORTED, Verdict.WEDGED))
    for results in ([without, hung], [hung, without], [fine, hung], [hung, fine]):
        report = runner.report_of(identity, results, seed=0, seconds=0)
        assert [case.verdict for case in report.cases] == [Verdict.WEDGED]
        assert not report.passed


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-1"])
def test_a_driver_is_not_awaited_for_times_that_there_are_not(
    tmp_path: Path, seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = f"vfio-user:{tmp_path}/s"
    with pytest.raises(SystemExit, match="2"):
        main(["conformance", "--driver", "--listen", where, f"--seconds={seconds}"])
    assert f"argument --seconds: '{seconds}' is no number above 0\n" in capsys.readouterr().err


def test_a_terminal_gets_no_control_characters_of_a_target(capfd: pytest.CaptureFixture[str]) -> None:
    def speaks(bench: Bench) -> None:
        raise TransportError("\x1b[31mred\x00")

    report = supervisor.run(supervisor.Plan(LOOPBACK, [make("speaks", speaks)]))
    assert "\x1b" in verdicts(report)["speaks"][1]
    assert "\N{REPLACEMENT CHARACTER}[31mred" in _summary(report, partial=True)
    assert not set("\x00\x1b") & set(_summary(report, partial=True))
