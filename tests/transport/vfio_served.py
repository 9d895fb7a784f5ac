"""A device of ours behind a vfio-user socket, in threads of its own."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.fast import fast_path
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


@contextmanager
def served(engine: str = "auto", config: DeviceConfig | None = None) -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as folder:
        device = Device(config or DeviceConfig(), os.urandom, fast_path(engine, os.urandom))
        wire = f"unix:{folder}/wire"
        port = ServedPort(device, open_uplink(wire), name="served")
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
