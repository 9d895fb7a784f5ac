"""Programs that a test starts, and that end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def spawn(command: Sequence[str], log: Path, **options: object) -> subprocess.Popen[bytes]:
    """Start a program that the kernel kills if we die. Its output goes to the file ``log``."""
    with log.open("ab") as stream:
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            **options,
        )


def stop(process: subprocess.Popen[bytes], patience: float = 10.0) -> int:
    """Ask it to end, kill it when it does not; its exit status."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


@contextmanager
def running(command: Sequence[str], log: Path, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    process = spawn(command, log, **options)
    try:
        yield process
    finally:
        stop(process)


def until(what: str, holds: Callable[[], object], timeout: float = 20.0, pause: float = 0.05) -> None:
    """Wait for a condition. AssertionError when it does not come."""
    limit = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > limit:
            raise AssertionError(f"{what}: not within {timeout:g} s")
        time.sleep(pause)


def processor_seconds(pid: int) -> float:
    """User and system time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
