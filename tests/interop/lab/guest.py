"""A virtual machine under QEMU without hardware help, and a command line into it over a virtio serial port."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from lab.processes import spawn, stop


class GuestError(AssertionError):
    """A script failed in the guest, or the guest does not answer."""


def images() -> Path:
    """Where tests/interop/setup leaves the guest images."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "virtio-ipsec" / "guests"


class Guest:
    """One running machine. ``network``: QEMU's words for the network card.

    ``newer`` takes the unpacked newer QEMU and kernel (``setup --newer``). ``disks`` are read-only: /dev/vda, vdb …
    ``reboots``: the machine starts again when its kernel asks for it; without, it ends. ``kernel_words`` go to the
    kernel's command line.
    """

    def __init__(
        self, name: str, folder: Path, network: Sequence[str], *, memory: int = 256, newer: bool = False,
        incoming: str = "", disks: Sequence[Path] = (), reboots: bool = False, kernel_words: str = "",
    ) -> None:  # fmt: skip
        self.name = name
        self.console = folder / f"{name}.console"
        self.log = folder / f"{name}.qemu"
        self._listener = socket.socket(socket.AF_UNIX)
        path = folder / f"{name}.cmd"
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._qmp_path = folder / f"{name}.qmp"
        self._qmp: socket.socket | None = None
        self._qmp_buffer = b""
        self._buffer = b""
        self._command: socket.socket | None = None
        home = images()
        kernel, initrd = ("vmlinuz-new", "initrd-new.gz") if newer else ("vmlinuz", "initrd.gz")
        words = [
            *([str(Path(__file__).parents[1] / "guest" / "qemu-new")] if newer else [find_qemu()]),
            "-accel", "tcg", "-M", "q35,memory-backend=mem0", "-cpu", "max", "-m", str(memory),
            "-object", f"memory-backend-memfd,id=mem0,size={memory}M,share=on",
            "-nodefaults", *([] if reboots else ["-no-reboot"]), "-display", "none", "-serial", f"file:{self.console}",
            "-chardev", f"socket,id=cmd,path={path}", "-device", "virtio-serial-pci",
            "-device", "virtserialport,chardev=cmd,name=command",
            "-qmp", f"unix:{self._qmp_path},server=on,wait=off",
            "-kernel", str(home / kernel), "-initrd", str(home / initrd),
            "-append", f"console=ttyS0 quiet panic=-1 random.trust_cpu=on {kernel_words}", *network,
        ]  # fmt: skip
        for number, disk in enumerate(disks):
            words += ["-drive", f"file={disk},format=raw,if=none,readonly=on,id=disk{number}"]
            words += ["-device", f"virtio-blk-pci,drive=disk{number}"]
        if incoming:
            words += ["-incoming", incoming]
        self.process = spawn(words, self.log)

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        stop(self.process, 2.0)
        for connection in (self._command, self._qmp, self._listener):
            if connection is not None:
                connection.close()

    def wait(self, timeout: float = 240.0) -> Guest:
        """Until the guest takes scripts."""
        self._read_until(b"@@READY", timeout)
        return self

    def run(self, script: str, timeout: float = 180.0) -> str:
        """Run a shell script; its output. GuestError when its status is not 0."""
        status, output = self.attempt(script, timeout)
        if status:
            raise GuestError(f"{self.name}: status {status} of\n{script}\n{output}")
        return output

    def attempt(self, script: str, timeout: float = 180.0) -> tuple[int, str]:
        """Run a shell script; (status, output)."""
        self.send(script)
        return self.answer(timeout)

    def send(self, script: str) -> None:
        """Start a script; :meth:`answer` waits for its end."""
        connection = self._connection(10.0)
        connection.settimeout(10.0)
        connection.sendall(base64.b64encode(script.encode()) + b"\n")

    def answer(self, timeout: float = 180.0) -> tuple[int, str]:
        output, status = self._read_until(b"@@END", timeout)
        return int(status), output.decode(errors="replace").replace("\r", "")

    def qmp(self, command: str, **arguments: object) -> object:
        """One command of QEMU's machine protocol; its return value."""
        if self._qmp is None:
            self._qmp = socket.socket(socket.AF_UNIX)
            self._qmp.connect(str(self._qmp_path))
            self._qmp.settimeout(30.0)
            self._qmp_line()
            self.qmp("qmp_capabilities")
        request = {"execute": command} | ({"arguments": arguments} if arguments else {})
        self._qmp.sendall(json.dumps(request).encode())
        while True:
            answer = self._qmp_line()
            if "error" in answer:
                raise GuestError(f"{self.name}: {command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    def _qmp_line(self) -> dict[str, object]:
        assert self._qmp is not None
        while b"\n" not in self._qmp_buffer:
            data = self._qmp.recv(65536)
            if not data:
                raise GuestError(f"{self.name}: QEMU closed its control socket")
            self._qmp_buffer += data
        line, _, self._qmp_buffer = self._qmp_buffer.partition(b"\n")
        return dict(json.loads(line))

    def _connection(self, timeout: float) -> socket.socket:
        if self._command is None:
            self._listener.settimeout(timeout)
            try:
                self._command, _ = self._listener.accept()
            except TimeoutError:
                raise GuestError(f"{self.name}: QEMU did not start: {self._diagnosis()}") from None
        return self._command

    def _read_until(self, mark: bytes, timeout: float) -> tuple[bytes, bytes]:
        """(what stands before the line that begins with ``mark``, the rest of that line)."""
        limit = time.monotonic() + timeout
        connection = self._connection(timeout)
        while True:
            at = self._buffer.find(mark)
            end = self._buffer.find(b"\n", at) if at >= 0 else -1
            if end >= 0:
                output, line = self._buffer[:at], self._buffer[at + len(mark) : end]
                self._buffer = self._buffer[end + 1 :]
                return output, line.strip()
            connection.settimeout(max(0.01, limit - time.monotonic()))
            try:
                data = connection.recv(65536)
            except TimeoutError:
                raise GuestError(f"{self.name}: no answer in {timeout:g} s: {self._diagnosis()}") from None
            if not data:
                raise GuestError(f"{self.name}: the machine ended: {self._diagnosis()}")
            self._buffer += data

    def _diagnosis(self) -> str:
        texts = [
            path.read_text(errors="replace")[-1500:] for path in (self.log, self.console) if path.exists()
        ]
        return "\n".join(
            [f"(exit status {self.process.poll()})", *texts, self._buffer.decode(errors="replace")]
        )


def find_qemu() -> str:
    found = shutil.which("qemu-system-x86_64")
    if found is None:
        raise GuestError("qemu-system-x86_64 is missing: run tests/interop/setup")
    return found


def plain_card(netdev: str, mac: str, options: str = "") -> list[str]:
    """A network card on one of QEMU's own networks, without offloads: what it sends stands on the wire as it is.
    ``options``: further ones of the card."""
    off = "csum=off,gso=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,"
    off += "host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off"
    kind, _, rest = netdev.partition(",")
    return [
        "-netdev",
        f"{kind},id=n0,{rest}",
        "-device",
        f"virtio-net-pci,netdev=n0,mac={mac},{off},{options}".rstrip(","),
    ]


def vhost_user_card(
    path: Path, mac: str, options: str = "vectors=0", *, reconnect: int = 0, queues: int = 1, listens: bool = False
) -> list[str]:
    """A network card served by a vhost-user back-end that listens on ``path``, or connects to it if QEMU ``listens``.

    ``vectors=0``: QEMU 7.2 crashes when a vhost-user card has MSI-X and there is no hardware help.
    """
    again = f",reconnect={reconnect}" if reconnect else ",server=on" if listens else ""
    words = f"{options},mq=on" if queues > 1 else options
    return [
        "-chardev", f"socket,id=c0,path={path}{again}", "-netdev", f"vhost-user,id=n0,chardev=c0,queues={queues}",
        "-device", f"virtio-net-pci,netdev=n0,mac={mac}" + (f",{words}" if words else ""),
        "-smp", str(queues),
    ]  # fmt: skip


#: Where :func:`vfio_user_card` stands in the guest.
FUNCTION = "0000:00:10.0"


def vfio_user_card(path: Path, *, iommu: bool = False) -> list[str]:
    """A PCI function that another process serves on the socket ``path``; QEMU 11.1 or newer. With an IOMMU in the
    machine the guest's kernel wants ``intel_iommu=on``."""
    device = {"driver": "vfio-user-pci", "addr": "10.0", "socket": {"type": "unix", "path": str(path)}}
    return [*(IOMMU if iommu else []), "-device", json.dumps(device)]


#: An emulated one.
IOMMU = ["-device", "intel-iommu,intremap=on,caching-mode=on"]
