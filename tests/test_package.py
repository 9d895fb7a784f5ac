"""The wheel works without the repository: data folders are in it, and both halves of the main job run."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contents of a wheel built from a copy of what git would give, in a folder of their own.

    Built as on a machine without a C compiler: the package works there too. What has one is what all other tests use.
    """
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(source)],
        check=True, env={**os.environ, "CC": "false"},
    )  # fmt: skip
    (wheel,) = out.glob("*.whl")
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(wheel).extractall(folder)
    assert not [*folder.glob("virtio_ipsec/fastpath/*.so")]
    return folder


def run_verb(unpacked: Path, cwd: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    program = "import virtio_ipsec; from virtio_ipsec.cli.main import main; print(virtio_ipsec.__file__); exit(main())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *words],
        cwd=cwd, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(str(unpacked))
    return done.stdout


def test_the_data_folders_are_in_the_wheel(unpacked: Path) -> None:
    package = unpacked / "virtio_ipsec"
    for name in (
        "py.typed",
        "spec/clauses.json",
        "spec/layouts.json",
        "spec/ambiguities.md",
        "spec/report.schema.json",
        "conformance/reports/page.js",
        "frames/frames.pcap",
    ):
        assert (package / name).is_file(), name


def test_conformance_runs_from_the_wheel(unpacked: Path, tmp_path: Path) -> None:
    assert "passed: loopback" in run_verb(unpacked, tmp_path, "conformance", "--only", "NET-IPSEC-*")


def test_the_demo_runs_from_the_wheel(unpacked: Path, tmp_path: Path) -> None:
    assert "every frame arrived as it was sent" in run_verb(unpacked, tmp_path, "demo", "--out", "here")
    assert (tmp_path / "here" / "demo.pcapng").is_file()
