"""tshark, which knows nothing of us, decrypts the demo's capture and finds every ESP integrity check good."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

from virtio_ipsec.cli.main import main

pytestmark = pytest.mark.interop("tshark")

FIELDS = (
    "ip.proto",
    "esp.spi",
    "esp.icv_good",
    "esp.icv_bad",
    "ah.spi",
    "ah.sequence",
    "udp.dstport",
    "tcp.dstport",
)
WIRE = 1  # number of the interface "wire" in the capture


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def rows(demo: Path) -> list[dict[str, str]]:
    """One dict per frame on the wire; a field that occurs twice (outer and inner) has a comma."""
    options = ["-o", "esp.enable_encryption_decode:TRUE", "-o", "esp.enable_authentication_check:TRUE"]
    for line in (demo / "demo.esp_sa").read_text().splitlines():
        if not line.startswith("#"):
            options += ["-o", f"uat:esp_sa:{line}"]
    command = [
        "tshark",
        "-n",
        "-r",
        str(demo / "demo.pcapng"),
        "-Y",
        f"frame.interface_id == {WIRE}",
        "-T",
        "fields",
    ]
    for name in FIELDS:
        command += ["-e", name]
    done = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
    return [dict(zip(FIELDS, line.split("\t"), strict=True)) for line in done.stdout.splitlines()]


def test_every_esp_packet_has_a_good_icv(rows: list[dict[str, str]]) -> None:
    esp = [row for row in rows if row["esp.spi"]]
    assert len(esp) > 500
    assert Counter((row["esp.icv_good"], row["esp.icv_bad"]) for row in esp) == {("1", "0"): len(esp)}


def test_the_inner_packets_are_seen(rows: list[dict[str, str]]) -> None:
    """Decryption shows the ports of the frames that were sent."""
    inner = [row for row in rows if row["esp.spi"]]
    assert sum("5001" in row["tcp.dstport"] for row in inner) > 300
    assert sum("5002" in row["udp.dstport"] for row in inner) >= 16


def test_ah_packets_are_dissected_with_running_numbers(rows: list[dict[str, str]]) -> None:
    numbers: dict[str, list[int]] = {}
    for row in rows:
        if row["ah.spi"]:
            numbers.setdefault(row["ah.spi"], []).append(int(row["ah.sequence"]))
    assert len(numbers) == 4
    for seen in numbers.values():
        assert seen == list(range(1, len(seen) + 1))


def test_capinfos_accepts_the_capture(demo: Path) -> None:
    done = subprocess.run(["capinfos", str(demo / "demo.pcapng")], check=True, capture_output=True, text=True)
    assert "Number of interfaces in file: 3" in done.stdout
