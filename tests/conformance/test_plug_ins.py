"""Targets of installed packages: found by their entry point, and one that is broken spoils nothing but itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtio_ipsec.cli.main import main

MODULE = """
from virtio_ipsec.transport.targets import loopback

def open_target(argument, dialect):
    if argument:
        raise ValueError(argument)
    return loopback("python", dialect)
"""


@pytest.fixture(autouse=True)
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = tmp_path / "vendor-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vendor\nVersion: 1\n")
    (about / "entry_points.txt").write_text(
        "[virtio_ipsec.targets]\nvendor = vendor_of_a_test:open_target\nbroken = no_such_module_at_all:open_target\n"
    )
    (tmp_path / "vendor_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def run(device: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["conformance", "--device", device, "--only", "sanity-start"])
    return code, capfd.readouterr().err


def test_a_target_of_a_package_is_judged(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("vendor", capfd) == (0, "")


def test_a_package_that_cannot_be_imported_spoils_its_own_target_alone(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run("loopback", capfd) == (0, "")
    code, said = run("broken", capfd)
    assert code == 2
    assert said == (
        "virtio-ipsec: error: target broken: no_such_module_at_all:open_target cannot be loaded: "
        "ModuleNotFoundError: No module named 'no_such_module_at_all'\n"
    )


def test_what_a_package_raises_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("vendor:two\nlines", capfd) == (
        3,
        "virtio-ipsec: error: unexpected ValueError: two\\nlines\n",
    )


def test_an_unknown_name_is_told_with_those_of_packages(capfd: pytest.CaptureFixture[str]) -> None:
    code, said = run("nobody", capfd)
    assert code == 2
    assert "known: broken, loopback, loopback-pci, vendor, vfio" in said
