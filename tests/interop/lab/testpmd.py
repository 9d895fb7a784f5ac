"""DPDK's testpmd with a virtio-user port: a vhost-user front-end that knows nothing of us."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

from lab.processes import spawn, until


class TestPmd:
    """One process on the socket of a back-end. ``devargs``: words of the virtio-user device.

    ``mode``: what it does with what arrives: ``5tswap`` sends it back with addresses and ports exchanged,
    ``rxonly`` counts it, ``txonly`` makes UDP packets of its own between the two ``addresses``.
    """

    __test__ = False  # the name is the program's

    def __init__(
        self, folder: Path, socket: Path, mac: str, *, devargs: str = "", queues: int = 1, mode: str = "5tswap",
        addresses: tuple[str, str] | None = None, size: int = 0, peer_mac: str = "", name: str = "testpmd",
    ) -> None:  # fmt: skip
        self.log = folder / f"{name}.log"
        self.socket = socket
        device = f"net_virtio_user0,path={socket},mac={mac},queues={queues}" + (
            f",{devargs}" if devargs else ""
        )
        self.command = [
            "dpdk-testpmd", "-l", "0-1", "--no-huge", "-m", "128", "--no-pci", "--no-telemetry",
            "--single-file-segments", "--file-prefix", f"{name}{id(self):x}", "--vdev", device, "--",
            f"--forward-mode={mode}", "--auto-start", "--port-topology=loop", "--total-num-mbufs=4096",
            "--no-mlockall", "--no-flush-rx", f"--rxq={queues}", f"--txq={queues}", "--stats-period=1",
        ]  # fmt: skip
        if addresses is not None:
            self.command.append(f"--tx-ip={addresses[0]},{addresses[1]}")
        if size:
            self.command.append(f"--txpkts={size}")
        if peer_mac:
            self.command.append(f"--eth-peer=0,{peer_mac}")
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> TestPmd:
        self.process = process = spawn(self.command, self.log)

        def started() -> bool:
            assert process.poll() is None, f"testpmd ended:\n{self.text()[-3000:]}"
            return "packet forwarding" in self.text() or "Port statistics" in self.text()

        until("testpmd forwards", started, timeout=40.0)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> str:
        """SIGINT, which makes it print its counters; the log."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(10.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.text()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def received_per_queue(self) -> dict[int, int]:
        """After :meth:`stop`: packets that each receive queue brought."""
        found = re.findall(
            r"Forward Stats for RX Port= 0/Queue= ?(\d+).*?\n\s*RX-packets: (\d+)", self.text()
        )
        single = re.search(r"Forward statistics for port 0\s*-+\n\s*RX-packets: (\d+)", self.text())
        if not found and single:
            return {0: int(single[1])}
        return {int(queue): int(count) for queue, count in found}
