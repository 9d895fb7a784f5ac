"""``virtio-ipsec serve`` as a program of its own, as an operator runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from lab.processes import spawn, stop, until

ROOT = Path(__file__).parents[3]


class Backend:
    """One ``serve`` process. Files stand below ``folder``: config, sockets, log; ``state`` outlives the process.
    ``protocol`` is the option that names the socket."""

    def __init__(
        self, folder: Path, config: str, uplink: str, *, name: str = "port", state: Path | None = None,
        options: tuple[str, ...] = (), protocol: str = "--socket",
    ) -> None:  # fmt: skip
        self.folder = folder
        self.socket = folder / f"{name}.sock"
        self.control = folder / f"{name}.ctl"
        self.log = folder / f"{name}.log"
        path = folder / f"{name}.toml"
        path.write_text(config)
        path.chmod(0o600)
        self.command = [
            sys.executable, "-m", "virtio_ipsec", "serve", protocol, str(self.socket), "--uplink", uplink,
            "--config", str(path), "--control", str(self.control), *options,
        ]  # fmt: skip
        if state is not None:
            self.command += ["--state", str(state)]
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Backend:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            stop(self.process)

    def start(self) -> Backend:
        """Until it takes front-ends."""
        begin = self.log.stat().st_size if self.log.exists() else 0
        self.process = process = spawn(self.command, self.log, cwd=ROOT)

        def listens() -> bool:
            assert process.poll() is None, f"serve ended with status {process.returncode}:\n{self.log_tail()}"
            return b"serving" in self.log.read_bytes()[begin:]

        until("serve listens", listens, 60)
        return self

    def kill(self) -> None:
        """As a crash would: SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def log_tail(self, size: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""

    def ctl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``virtio-ipsec ctl`` on this port's control socket."""
        command = [sys.executable, "-m", "virtio_ipsec", "ctl", "--control", str(self.control), *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert not check or done.returncode == 0, (
            f"{words}: status {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done

    def counters(self) -> dict[str, object]:
        return dict(json.loads(self.ctl("--json", "counters").stdout))
