"""A device of ours behind a vfio-user socket, in threads of its own."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.fast import fast_path
from virtio_ipsec.device.members import SriovGroup
from virtio_ipsec.transport.pci_port import PciPort
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.uplink import open_uplink
from virtio_ipsec.transport.vfio_user.server import VfioUserServer
from virtio_ipsec.transport.virtio_pci.function import PciFunction


@dataclass
class Served:
    """Where it listens, and where the other end of its wire is."""

    path: str
    wire: str
    port: ServedPort
    function: PciFunction

    @property
    def target(self) -> str:
        return f"vfio-user:{self.path}?wire={self.wire}"


def _device(engine: str, config: DeviceConfig | None) -> Device:
    return Device(config or DeviceConfig(), os.urandom, fast_path(engine, os.urandom))


@contextmanager
def served(engine: str = "auto", config: DeviceConfig | None = None) -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as folder:
        wire = f"unix:{folder}/wire"
        port = ServedPort(_device(engine, config), open_uplink(wire), name="served")
        function = PciFunction(port)
        server = VfioUserServer(function, f"{folder}/device", penalty=0)
        control = threading.Thread(target=port.loop.run)
        control.start()
        try:
            yield Served(f"{folder}/device", wire, port, function)
        finally:
            port.loop.ask(server.close)
            port.loop.stop()
            control.join()
            function.close()
            port.close()


@contextmanager
def served_group(
    count: int, engine: str = "auto", config: DeviceConfig | None = None
) -> Iterator[list[Served]]:
    """An owner, which is the first, and its virtual functions."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        made: list[Served] = []
        members = []
        for number in (*range(1, count + 1), 0):
            end = f".vf{number}" if number else ""
            port = ServedPort(
                _device(engine, config), open_uplink(f"unix:{folder}/wire{end}"), name=f"served{end}"
            )
            stack.callback(port.close)
            group = None if number else SriovGroup(members)
            pci = PciPort(port, f"{folder}/device{end}", group=group, virtual=bool(number))
            members.append(pci.member)
            control = threading.Thread(target=port.loop.run)
            stack.callback(control.join)
            stack.callback(port.loop.stop)
            stack.callback(port.loop.ask, pci.close)
            control.start()
            served_one = Served(f"{folder}/device{end}", f"unix:{folder}/wire{end}", port, pci.function)
            made.insert(len(made) if number else 0, served_one)
        yield made
