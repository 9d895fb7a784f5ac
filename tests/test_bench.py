"""tools/bench: what it concludes from its samples, and where it looks for packages."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

import pytest

from tools.bench_parts import comparators, plot, targets, vhost
from tools.bench_parts.cells import Cell, Quiet, ratio


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
