"""`serve` that is killed, and `serve` that hands over: what is on the wire, whoever sends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from managed import config_of
from operator_ports import GUEST, HOST
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from virtio_ipsec.driver.driver import Driver
from virtio_ipsec.transport.control_client import ControlClient
from virtio_ipsec.transport.uplink import Uplink, open_uplink
from virtio_ipsec.transport.vhost_user.frontend import VhostUserLink

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0


class Service:
    """A `serve` with everything that can be told apart by ``name``, the wire and a driver."""

    def __init__(self, folder: Path, name: str, *words: str) -> None:
        config = folder / "port.toml"
        config.write_text(config_of("a"))
        config.chmod(0o600)
        self.socket, self.control, wire = (str(folder / f"{name}.{what}") for what in ("sock", "ctl", "wire"))
        command = [
            sys.executable, "-m", "virtio_ipsec", "serve", "--config", str(config), "--socket", self.socket,
            "--uplink", f"unix:{wire}", "--control", self.control, "--state", str(folder / f"{name}.state"), *words,
        ]  # fmt: skip
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            begin = self.log.stat().st_size
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        wait_for(lambda: "serving" in self.log.read_text()[begin:] or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()
        self.wire: Uplink = open_uplink(f"unix:{wire}")
        self.driver = Driver(VhostUserLink.at(self.socket))
        self.driver.start()

    def send(self, count: int = 1) -> None:
        packet = IP(src=HOST["a"], dst=HOST["b"]) / UDP(sport=1, dport=2) / b"hello"
        for _ in range(count):
            self.driver.send(bytes(Ether(src=GUEST["a"], dst="02:00:00:00:0a:fe") / packet))

    def arrived(self) -> list[tuple[int, int]]:
        """(sequence number, IV) of the ESP packets that are on the wire by now."""
        frames = [frame for frame in self.wire.receive(1000) if frame[12:14] == b"\x08\x00" and frame[23] == 50]
        return [(int.from_bytes(frame[38:42]), int.from_bytes(frame[42:50])) for frame in frames]

    def arrive(self, count: int = 1) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []

        def enough() -> bool:
            found.extend(self.arrived())
            return len(found) >= count

        wait_for(enough)
        return found

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self.driver.link.close()
        self.wire.close()
        return code


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    running: list[Service] = []

    def start(name: str, *words: str) -> Service:
        running.append(Service(tmp_path, name, *words))
        return running[-1]

    yield start
    for each in running:
        if each.process.poll() is None:
            assert each.end(signal.SIGTERM) == 0
        assert "Traceback" not in each.log.read_text()


def wait_for(done: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_killed_service_goes_on_above_all_that_it_sent(serve: Callable[..., Service]) -> None:
    seen: list[tuple[int, int]] = []
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        service = serve("only")
        service.send(5)
        found = service.arrive(5)
        assert min(found) > max(seen, default=(0, 0))
        seen += found
        service.end(number)
        seen += service.arrived()
    sequences, ivs = ([each[at] for each in seen] for at in (0, 1))
    assert len(set(sequences)) == len(set(ivs)) == len(seen)
    assert len({(iv - sequence) % 2**64 for sequence, iv in seen}) == 1  # one base for the life of the key
    assert sequences[:5] == [1, 2, 3, 4, 5]
    assert sequences[10] == sequences[9] + 1  # after the orderly end


def test_two_services_hand_over_and_one_of_them_sends(serve: Callable[..., Service], tmp_path: Path) -> None:
    source, target = serve("source"), serve("target", "--await-handover")
    target.send(3)
    source.send(3)
    assert [sequence for sequence, _ in source.arrive(3)] == [1, 2, 3]
    command = [
        sys.executable,
        "-m",
        "virtio_ipsec",
        "ctl",
        "--control",
        source.control,
        "handover",
        "--to",
        "target.ctl",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True
    )
    assert done.stdout.startswith(f"owner {target.control}".encode())
    source.send(3)
    target.send(3)
    assert [sequence for sequence, _ in target.arrive(3)] == [4, 5, 6]
    with ControlClient(source.control) as client:
        wait_for(lambda: client.call("counters")["counters"]["tx_frames"] == 6)
    assert source.arrived() == []
    source.end(signal.SIGKILL)
    again = serve("source")
    again.send(3)
    with ControlClient(again.control) as client:
        wait_for(lambda: client.call("counters")["counters"].get("tx_drop_held") == 3)
    target.send(1)
    assert [sequence for sequence, _ in target.arrive(1)] == [7]
    assert again.arrived() == []
