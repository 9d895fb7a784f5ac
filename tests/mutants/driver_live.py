"""Our driver before a watched device at a socket, in threads of this process."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address
from random import Random
from typing import Any

from virtio_ipsec.conformance.monitor.report import judge_trace
from virtio_ipsec.conformance.monitor.script import ADDRESS, Script
from virtio_ipsec.conformance.monitor.script_members import CONFIG
from virtio_ipsec.conformance.result import Report
from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.monitor.events import Recorder
from virtio_ipsec.transport.monitor.faces import FACES
from virtio_ipsec.transport.monitor.listen import Invitation, receive_drivers
from virtio_ipsec.transport.vfio_user.client import VfioUserFunction
from virtio_ipsec.transport.vhost_user.frontend import VhostUserLink
from virtio_ipsec.transport.vhost_user.options import Options as VhostOptions
from virtio_ipsec.transport.virtio_pci.link import Options, PciLink
from virtio_ipsec.wire.dialect import V14

MEMORY = 8 << 20
Connect = Callable[[], socket.socket]


class Patient(Script):
    """The script, whose device answers in its own time."""

    config = replace(CONFIG, polls=100, poll_timeout=0.05)


class OwnerLink(PciLink):
    """A link that leads to the function's virtual ones, too."""

    path = ""

    def member(self, number: int) -> PciLink:
        return PciLink(VfioUserFunction.at(f"{self.path}.vf{number}"), Options(memory=MEMORY))


def pci_link(connect: Connect, kind: type[PciLink] = OwnerLink) -> PciLink:
    def noted() -> socket.socket:
        sock = connect()
        paths.append(sock.getpeername())
        return sock

    paths: list[str] = []
    link = kind(VfioUserFunction(noted), Options(memory=MEMORY))
    if isinstance(link, OwnerLink):
        link.path = paths[0]
    return link


def vhost_link(connect: Connect) -> VhostUserLink:
    return VhostUserLink(connect, VhostOptions(memory=MEMORY))


def live_report(
    way: str,
    faces: Iterable[str],
    open_link: Callable[[Connect], Any],
    *,
    script: type[Script] = Patient,
    address: IPv4Address | None = None,
) -> Report:
    """What the judges say of ``script`` before these faces."""
    recorder = Recorder(V14)
    chosen = [FACES[name] for name in faces]

    def ask(actor: Script) -> None:
        goal, end = recorder.rounds + 1, time.monotonic() + 20
        while address is not None and recorder.rounds < goal and time.monotonic() < end:
            actor.receive()
            actor.link.poll(0.01)

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/device"

        def connect() -> socket.socket:
            end = time.monotonic() + 5
            while True:
                sock = socket.socket(socket.AF_UNIX)
                try:
                    sock.connect(path)
                except OSError:
                    sock.close()
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.002)
                else:
                    return sock

        ready = threading.Semaphore(0)
        invitation = Invitation(f"{way}:{path}", address=address, rough=True)
        told: Callable[[str], None] = lambda text: ready.release()  # noqa: E731
        server = threading.Thread(target=receive_drivers, args=(invitation, chosen, recorder, told))
        server.start()
        for _ in chosen:
            assert ready.acquire(timeout=5)
            link = open_link(connect)
            script(link, V14, Random(1).randbytes, ask).play()
            with suppress(TransportError):
                link.close()
        server.join(5)
        assert not server.is_alive()
    return judge_trace(recorder, way)


__all__ = ["ADDRESS", "Connect", "Patient", "live_report", "pci_link", "vhost_link"]
