"""A load process (``load.py``) as a test sees it, and the station at the other end of its wire, busy all the time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from lab.backend import ROOT
from lab.cases import Case
from lab.processes import spawn, stop, until
from lab.station import Station, number_of, numbered

#: Numbers that one life of the load may use: no two lives share one.
SPAN = 1_000_000


class RunningLoad:
    """Start it with :meth:`start`, as often as it is killed."""

    def __init__(self, folder: Path, socket: Path, case: Case, ring: str, rate: int = 1500) -> None:
        self.folder, self.socket, self.case, self.ring, self.rate = folder, socket, case, ring, rate
        self.lives = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._last: dict[str, int] = {}

    @property
    def log(self) -> Path:
        return self.folder / f"load-{self.lives}.log"

    def start(self) -> None:
        self.lives += 1
        script = Path(__file__).with_name("load.py")
        words = [str(self.socket), str(self.case.number), str(self.lives * SPAN), self.ring, str(self.rate)]
        path = f"{ROOT}:{script.parents[1]}"
        self._last = {"next": self.lives * SPAN, "received": 0}
        self.process = spawn(
            [sys.executable, str(script), *words], self.log, env={**os.environ, "PYTHONPATH": path}, cwd=ROOT
        )

    def counts(self) -> dict[str, int]:
        """What it said last."""
        assert self.process is not None
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        found = [line for line in lines if line.startswith("{") and line.endswith("}")]
        assert self.process.poll() is None, f"the load has ended: {lines[-30:]}"
        return json.loads(found[-1]) if found else self._last

    def sent(self) -> int:
        """How many packets this life has handed to the device."""
        return self.counts()["next"] - self.lives * SPAN

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process)


class Exchange:
    """The station's side in a thread: sends numbered packets, notes which numbers come."""

    def __init__(self, station: Station, rate: int = 500) -> None:
        self.station, self.rate = station, rate
        self.came: Counter[int] = Counter()
        self.highest = -1
        self.damaged = 0
        self.sent = 0
        self._ends = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Exchange:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True
        self._thread.join()

    def _run(self) -> None:
        local, remote = self.station.case.addresses
        due = time.monotonic()
        while not self._ends:
            # One at a time, and what was missed is not made up for: a slow machine must find time to listen.
            if time.monotonic() >= due:
                due = time.monotonic() + 1 / self.rate
                size = 64 + self.sent % 900
                self.station.send(numbered(remote, local, 2000 + self.sent % 7, self.sent, size))
                self.sent += 1
            packet = self.station.receive(0.001)
            if packet is not None:
                number = number_of(packet)
                if number is None:
                    self.damaged += 1
                else:
                    self.came[number] += 1
                    self.highest = max(self.highest, number)

    def await_life(self, load: RunningLoad, timeout: float = 120.0) -> None:
        """Until packets of that load's present life have come."""
        first = load.lives * SPAN
        until(f"life {load.lives} on the wire", lambda: self.highest >= first + 20, timeout, 0.01)

    def await_more(self, packets: int, timeout: float = 120.0) -> None:
        """Until that many more numbers have come."""
        wanted = len(self.came) + packets
        until(f"{packets} more packets on the wire", lambda: len(self.came) >= wanted, timeout, 0.01)
