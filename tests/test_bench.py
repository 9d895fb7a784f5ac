"""tools/bench: what it concludes from its samples, and where it looks for packages."""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from vfio_served import served

from tools.bench_parts import comparators, device, feeders, plot, targets, vhost
from tools.bench_parts.__main__ import main
from tools.bench_parts.cells import Cell, Quiet, ratio
from tools.bench_parts.native import Native
from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.features import IMPLEMENTED
from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.transport.loopback import Loopback
from virtio_ipsec.transport.targets import loopback
from virtio_ipsec.wire.dialect import V14
from virtio_ipsec.wire.numbers import Feature, mask


def test_a_target_that_was_not_measured_is_not_met() -> None:
    assert not targets.MB_64.met
    assert targets.show([]).count(targets.NOT_MEASURED) == len(targets.TABLE)


@pytest.mark.parametrize(
    ("target", "reached", "verdict"),
    [
        (targets.MB_64, 0.99, "MISSED"),
        (targets.MB_64, 1.0, "met"),
        (targets.MB_64, 1.3, "aim reached"),
        (targets.ESP_SAS, 1.5, "MISSED"),
        (targets.ESP_SAS, 1.4, "met"),
        (targets.ESP_SAS, 1.1, "aim reached"),
        (targets.ESP_PYTHON, 5000.0, "met"),
    ],
)
def test_verdicts(target: targets.Target, reached: float, verdict: str) -> None:
    assert target.measured(reached).verdict == verdict
    assert verdict in targets.show([target.measured(reached)])


def test_a_ratio_is_that_of_the_shortest_samples() -> None:
    ours = Cell("kernels", "vaes256", "seal", 64, 64, [10.0, 12.0, 40.0])
    theirs = Cell("kernels", "ipsec-mb", "seal", 64, 64, [20.0, 24.0, 25.0])
    made = ratio(theirs, ours)
    assert (made.best, made.median) == (2.0, 2.0)
    assert ours.gbits == pytest.approx(51.2)


def test_disturbed_rounds_are_told() -> None:
    samples = iter([1.0, 1.01, 2.0, 1.0])
    quiet = Quiet(lambda: next(samples))
    for _ in range(4):
        quiet.look()
    assert quiet.disturbed() == 0.25
    assert "noisy" in str(quiet)


def test_another_suite_comes_from_the_machines_own_sources() -> None:
    text = (
        "Types: deb deb-src\n# a remark\nURIs: http://mirror.example/debian\nSuites: bookworm\n  bookworm-updates\n"
        "Components: main\nSigned-By: /usr/share/keyrings/some.gpg\n\nTypes: deb\nURIs: http://other.example/\n"
        "Suites: stable\nComponents: main\n"
    )
    first, second = comparators.stanzas(text)
    assert first["Suites"].split() == ["bookworm", "bookworm-updates"]
    assert (first["URIs"], second["URIs"]) == ("http://mirror.example/debian", "http://other.example/")


def test_packages_that_are_unpacked() -> None:
    kept = ["dpdk-dev_22.11_amd64.deb", "librte-eal23_22.11_amd64.deb", "libfdt1_1.6-4_amd64.deb"]
    left = [
        "libelf-dev_0.188-2.1_amd64.deb",
        "systemd_252_amd64.deb",
        "libsystemd0_252_amd64.deb",
        "udev_252.deb",
    ]
    assert [name for name in kept + left if comparators.KEEP.match(name)] == kept


def test_the_plot_is_well_formed_and_labels_do_not_collide() -> None:
    series = {f"engine <{n}>": [(64.0, 1.0 + n / 100), (8900.0, 30.0 + n / 100)] for n in range(6)}
    page = plot.draw([plot.Chart("seal", "bytes", "Gbit/s", series)], "heading & more", ["foot"])
    root = ElementTree.fromstring(page)  # noqa: S314 our own text
    labels = [e for e in root.iter("{http://www.w3.org/2000/svg}text") if (e.text or "").startswith("engine")]
    heights = sorted(float(e.attrib["y"]) for e in labels)
    assert len(heights) == 6
    assert all(b - a >= 14 for a, b in itertools.pairwise(heights))


def vhost_cells(ours: float, theirs: float) -> list[Cell]:
    """Nanoseconds per packet of `serve` and of testpmd behind the same driver, the same at both sizes."""
    return [
        Cell("vhost", engine, work, size, 1, [took, took])
        for size in vhost.SIZES
        for engine, work, took in (
            ("serve", "virtio-user", ours),
            ("testpmd", "virtio-user", theirs),
            ("serve", "own driver", ours / 2),
            ("serve", "driver's SA", ours),
            ("serve", "over vfio-user", ours * 1.25),
        )
    ]


def test_a_served_port_is_judged_behind_the_driver_that_the_comparator_has() -> None:
    program = comparators.Program(["testpmd"], {}, "1")
    small, large, pci = vhost.judge(vhost_cells(100.0, 60.0), program)
    assert (small.row, small.reached, small.verdict) == ("6", pytest.approx(0.6), "met")
    assert (large.row, large.reached) == ("7", pytest.approx(1420 * 8 / 50))
    assert "20.00 Mpps from our own driver" in small.note
    assert (pci.row, pci.reached, pci.verdict) == ("11", pytest.approx(0.8), "MISSED")
    assert "vfio-user 8.00 Mpps, vhost-user 10.00 Mpps" in pci.note
    assert [row.reached for row in vhost.judge([], None)] == [None, None, None]
    assert "testpmd" in vhost.judge([], None)[0].note


def test_packets_that_were_lost_or_not_sealed_end_the_measurement() -> None:
    vhost.check_counts({"tx_frames": 70, "tx_sealed": 70}, 70, "driver")
    vhost.check_counts({"tx_frames": 70, "tx_protected": 70}, 75, "driver", 5)
    for counted in (
        {"tx_frames": 70},
        {"tx_frames": 70, "tx_sealed": 69},
        {"tx_frames": 70, "tx_sealed": 70, "tx_refused_overload": 1},
        {"tx_frames": 71, "tx_sealed": 71},
        {},
    ):
        with pytest.raises(SystemExit, match="driver sent 70"):
            vhost.check_counts(counted, 70, "driver")


def test_frames_of_the_served_port_have_the_size_that_is_told() -> None:
    assert len(vhost.frame(64)) == 64
    assert len(vhost.frame(1420)) == 1434
    assert vhost.frame(1420, 1) != vhost.frame(1420, 2)


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> Native:
    """What is measured in C."""
    return Native(tmp_path_factory.mktemp("loops"), device.LOOPS)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch, loops: Native) -> Iterator[None]:
    """One short sample of each, and all CPUs afterwards."""
    monkeypatch.setattr(device, "Native", lambda *_: loops)
    monkeypatch.setattr(device, "TIMED", 0.02)
    monkeypatch.setattr(device, "WARM", 0.0)
    cores = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, cores)


def bench(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tools/bench", "--rounds", "1", *words])
    return main()


def test_a_device_over_vfio_user_is_measured_with_its_esp(
    quickly: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served() as device_there:
        code = bench(monkeypatch, "--device", device_there.target, "--json", str(tmp_path / "made.json"))
    assert code == 0
    shown = capsys.readouterr().out
    assert "64 packets of each size are taken from the wire and looked at" in shown
    made = json.loads((tmp_path / "made.json").read_text())
    assert [(cell["size"], cell["work"], cell["sas"]) for cell in made["cells"]] == [
        (64, "transmit, ESP", 1),
        (1420, "transmit, ESP", 1),
    ]
    assert made["device"]["sa_pairs"] > 0
    assert made["device"]["has_esp"]


def test_a_device_without_ipsec_is_measured_without(
    quickly: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = DeviceConfig(features=IMPLEMENTED & ~mask(Feature.NET_F_IPSEC, Feature.NET_F_OUT_NET_HEADER))
    with served(config=config) as device_there:
        bench(monkeypatch, "--device", f"vfio-user:{device_there.path}", "--sizes", "256")
    shown = capsys.readouterr().out
    assert "no IPsec (VIRTIO_NET_F_IPSEC and its capabilities on an administration virtqueue)" in shown
    assert "no wire (--wire)" in shown
    assert "256 B transmit  " in shown
    assert "SAs created" not in shown


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--device", "vfio:0000:ff:1f.7"], "error: vfio:0000:ff:1f.7: there is no PCI function 0000:ff:1f.7"),
        (["--device", "loopback", "--wire", "null"], "error: loopback: target loopback has a wire of its own"),
    ],
)
def test_a_device_that_cannot_be_measured_is_an_error_in_a_line(
    quickly: None, monkeypatch: pytest.MonkeyPatch, words: list[str], reason: str
) -> None:
    with pytest.raises(SystemExit) as raised:
        bench(monkeypatch, *words)
    assert str(raised.value).startswith(reason)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--device loopback admin", "--device is measured alone"),
        ("--device loopback --sizes 63", "are 64 to 4096"),
        ("--device loopback --rounds 0", "argument --rounds: '0' is no whole number above 0"),
        ("--device loopback --core 9999", "--core 9999: this process may use"),
        ("admin --wire null", "--wire is for --device"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, reason: str
) -> None:
    with pytest.raises(SystemExit) as raised:
        bench(monkeypatch, *words.split())
    assert raised.value.code == 2
    assert reason in capsys.readouterr().err


class Rung(Loopback):
    """A device whose doorbell is a register in memory."""

    register = memoryview(bytearray(b"\xff\xff")).cast("H")

    def kick_word(self, index: int) -> memoryview:
        return self.register


def test_a_mapped_doorbell_is_written_the_number_of_the_queue(loops: Native) -> None:
    link = Rung(loopback("python", V14).device)
    driver: Driver = feeders.started(link)

    def watch() -> None:
        while link.register[0] == 0xFFFF:
            time.sleep(0.001)
        link.kick(link.register[0])

    watcher = threading.Thread(target=watch)
    watcher.start()
    feeder = feeders.Feeder(loops, driver, 64)
    feeder.run(30, 8)
    watcher.join()
    feeder.close()
    assert link.register[0] == 1
    assert feeder.sent == len(link.captured()) == 8
