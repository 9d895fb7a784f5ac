"""Drivers that come to a socket are judged as those in the same process: our own over vhost-user and vfio-user."""

from __future__ import annotations

import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from driver_live import ADDRESS, MEMORY, live_report, pci_link, vhost_link

from virtio_ipsec.cli.main import main
from virtio_ipsec.conformance.reports import master
from virtio_ipsec.conformance.result import Report
from virtio_ipsec.conformance.verdict import Verdict
from virtio_ipsec.driver.config import DriverConfig
from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.transport.monitor import probing
from virtio_ipsec.transport.vhost_user import binding
from virtio_ipsec.transport.vhost_user.frontend import VhostUserLink
from virtio_ipsec.transport.vhost_user.options import PROTOCOL, Options

FACES = ("full", "split", "plain", "refusing")


def without_verdict(report: Report) -> set[str]:
    return {
        case.clauses[0] for case in report.cases if case.verdict in {Verdict.NOT_SEEN, Verdict.UNSUPPORTED}
    }


def notable(report: Report) -> list[tuple[str, str, tuple[str, ...]]]:
    ends = {Verdict.PASS, Verdict.NOT_SEEN, Verdict.UNSUPPORTED}
    return [(c.id, c.reason, tuple(k.seen for k in c.checks)) for c in report.cases if c.verdict not in ends]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_WAIT", 4_000_000)
    monkeypatch.setattr(probing, "_PAUSE", 8_000_000)


def test_over_vfio_user_every_judge_but_one_comes_to_a_verdict() -> None:
    """One administration queue is all that a served device has."""
    report = live_report("vfio-user", FACES, pci_link, address=ADDRESS)
    assert notable(report) == []
    assert without_verdict(report) == {"AVQ-DRV-06"}


def test_over_vhost_user_with_the_binding_registers_are_judged_too() -> None:
    report = live_report("vhost-user", ("full", "split"), vhost_link)
    assert notable(report) == []
    named = {case.clauses[0]: case for case in report.cases}
    for clause in ("BAS-INIT-01", "BAS-INIT-09", "BAS-RESET-03", "NET-IPSEC-DRV-04", "NET-TX-DRV-20"):
        assert named[clause].verdict is Verdict.PASS
    assert named["PCI-CC-DRV-01"].verdict is Verdict.UNSUPPORTED


def test_a_front_end_without_the_binding_is_judged_by_its_queues(tmp_path: Path) -> None:
    def plain(connect: object) -> VhostUserLink:
        protocol = PROTOCOL & ~(1 << binding.PROTOCOL_FEATURE)
        return VhostUserLink(connect, Options(protocol=protocol, memory=MEMORY))  # type: ignore[arg-type]

    report = live_report("vhost-user", ("full",), plain)
    assert notable(report) == []
    named = {case.clauses[0]: case for case in report.cases}
    assert named["BAS-STATUS-01"].verdict is Verdict.UNSUPPORTED
    assert "do not show through this transport" in named["BAS-STATUS-01"].reason
    assert named["NET-TX-DRV-02"].verdict is Verdict.PASS
    assert named["FRM-02"].verdict is Verdict.PASS


def test_the_command_line_judges_who_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, file = tmp_path / "device", tmp_path / "report.json"

    def come() -> None:
        while not path.exists():
            time.sleep(0.005)
        link = VhostUserLink.at(str(path), Options(memory=MEMORY))
        driver = Driver(link, config=DriverConfig(receive_buffers=4, polls=100, poll_timeout=0.05))
        driver.start()
        driver.stop()
        link.close()

    visitor = threading.Thread(target=come)
    visitor.start()
    where = f"vhost-user:{path}"
    assert main(["conformance", "--driver", "--listen", where, "--seconds", "20", "--json", str(file)]) == 0
    visitor.join()
    said = capsys.readouterr()
    assert f"{where}: waiting for a driver; face full" in said.err
    assert said.out.splitlines()[-1].startswith(f"passed: driver {where}, dialect virtio-1.4: 135 cases")
    found = master.read(file)
    assert (found.identity.role, found.identity.target) == ("driver", where)
    assert found.count(Verdict.PASS) > 20


def test_an_interrupted_run_judges_what_was_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    where = str(tmp_path / "device")

    def interrupt() -> None:
        while not Path(where).exists():
            time.sleep(0.005)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    somebody = threading.Thread(target=interrupt)
    somebody.start()
    assert main(["conformance", "--driver", "--listen", where, "--face", "full", "--face", "plain"]) == 1
    somebody.join()
    assert signal.getsignal(signal.SIGINT) is before
    said = capsys.readouterr()
    assert "interrupted: judging what was seen" in said.err
    assert said.err.count("waiting for a driver") == 1
    assert "39 UNSUPPORTED, 96 NOT SEEN" in said.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--listen", "vhost-user:/x"], "--listen is for --driver"),
        (["--driver", "--listen", "tcp:1"], "one of vhost-user:PATH, vfio-user:PATH"),
        (["--driver", "--device", "loopback"], "--device is for devices"),
        (["--driver", "--rough"], "--rough needs --listen"),
        (["--driver", "--only", "no-such"], "no judge matches"),
        (["--driver", "--limit", "5"], "--limit is for devices: leave it out with --driver"),
        (["--driver", "--jobs", "2"], "--jobs is for devices: leave it out with --driver"),
        (["--driver", "--seed", "7"], "--seed is for devices: leave it out with --driver"),
        (["--driver", "--target", "nic.toml"], "--target is for devices: leave it out with --driver"),
        (["--driver", "--wire", "tap:tap0"], "--wire needs --listen"),
        (["--driver", "--probe", "192.0.2.1"], "--probe needs --listen"),
        (["--driver", "--seconds", "1"], "--seconds needs --listen"),
        (["--face", "full"], "--face is for --driver"),
        (["--seconds", "1"], "--seconds is for --driver"),
        (["--driver", "--list", "--html", "list.html"], "--html is for runs: a list is printed"),
        (["--driver", "show", "report.json"], "--driver is for runs: leave it out with show"),
        (["--limit", "5", "diff", "a.json", "b.json"], "--limit is for runs: leave it out with diff"),
        (["--html", "a.html", "explain", "sanity-start"], "--html is for runs: leave it out with explain"),
        (["--driver", "--listen", "vhost-user:/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["conformance", *options]) in (2, 3)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs", "x"], "argument --jobs: 'x' is no whole number above 0"),
        (["--jobs", "0"], "argument --jobs: '0' is no whole number above 0"),
        (["--limit", "x"], "argument --limit: 'x' is no number above 0"),
        (["--driver", "--probe", "::1"], "argument --probe: Expected 4 octets in '::1'"),
    ],
)
def test_what_is_no_value_is_named(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["conformance", *words])
    assert capsys.readouterr().err.splitlines()[-1] == f"virtio-ipsec conformance: error: {message}"


def test_every_judge_is_printed_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--face", "refusing", "--only", "BAS-STATUS-01", "--only", "NET-TX-DRV-02", "--verbose"]
    assert main(["conformance", "--driver", *words]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[:2] for line in said] == [["PASS", "driver-bas-status-01"], ["NOT", "SEEN"]]


def test_a_driver_that_does_not_come_is_no_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = f"vfio-user:{tmp_path}/device"
    assert main(["conformance", "--driver", "--listen", where, "--seconds", "0.05"]) == 1
    assert "NOT SEEN" in capsys.readouterr().out


def test_a_client_that_talks_nonsense_ends_its_face(tmp_path: Path) -> None:
    def nonsense(connect: object) -> socket.socket:
        sock: socket.socket = connect()  # type: ignore[operator]
        sock.sendall(b"\xff" * 64)
        return sock

    class Nobody:
        def __init__(self, *arguments: object) -> None: ...

        def play(self) -> None: ...

    report = live_report("vhost-user", ("full",), nonsense, script=Nobody)  # type: ignore[arg-type]
    assert not report.passed
    assert {case.verdict for case in report.cases} <= {Verdict.NOT_SEEN, Verdict.UNSUPPORTED}
