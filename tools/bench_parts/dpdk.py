"""dpdk-test-crypto-perf on its software AES-GCM device: the cryptography of a DPDK application, without any ESP."""

from __future__ import annotations

import re
import subprocess

from tools.bench_parts.cells import Cell
from tools.bench_parts.comparators import Program

DEVICE = "crypto_aesni_gcm"
OPERATIONS = 300_000  # per size and sample


class CryptoPerf:
    """One operation at one size; each sample is a run of the program, which measures itself."""

    def __init__(self, program: Program, core: int, other: int, operation: str, size: int) -> None:
        """Work is done on `core`; the program's main thread waits in a loop, on the core `other`."""
        self.cell = Cell("esp", "dpdk", operation, size, 1)
        self.cells = (self.cell,)
        self.environment = program.environment
        self.command = [
            *program.command, "--lcores", f"0@{other},1@{core}", "--main-lcore", "0",
            "--no-huge", "-m", "256", "--no-pci", "--no-telemetry", "--no-shconf", "--vdev", DEVICE, "--",
            "--ptest", "throughput", "--devtype", DEVICE, "--optype", "aead", "--aead-algo", "aes-gcm",
            "--aead-op", operation, "--aead-key-sz", "16", "--aead-iv-sz", "12", "--aead-aad-sz", "8",
            "--digest-sz", "16", "--burst-sz", "32", "--total-ops", str(OPERATIONS), "--silent", "--csv-friendly",
            "--buffer-sz", str(size),
        ]  # fmt: skip
        self.library = ""

    def sample(self) -> None:
        """Run once. SystemExit when the program fails or counts failed operations."""
        done = subprocess.run(self.command, env=self.environment, capture_output=True, text=True, check=False)
        found = re.search(r"library version used: (\S+)", done.stdout + done.stderr)
        self.library = found[1] if found else "unknown"
        lines = [line.split(",") for line in done.stdout.splitlines() if re.match(r"\d+,\d+,", line)]
        if done.returncode or len(lines) != 1:
            raise SystemExit(f"error: dpdk-test-crypto-perf failed:\n{done.stdout}{done.stderr}")
        ((_, size, _, sent, got, *_, millions, _, _),) = lines
        if (int(size), int(sent), int(got)) != (self.cell.size, OPERATIONS, OPERATIONS):
            raise SystemExit(f"error: dpdk-test-crypto-perf lost operations:\n{done.stdout}")
        self.cell.samples.append(1e3 / float(millions))
