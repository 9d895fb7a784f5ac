"""The embedded device as a PCI function in this process, with our driver's link in front of it: a target."""

from __future__ import annotations

import os
from collections.abc import Mapping

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.fast import fast_path
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.uplinks.crossed import crossed
from virtio_ipsec.transport.virtio_pci.direct import DirectAccess
from virtio_ipsec.transport.virtio_pci.function import PciFunction
from virtio_ipsec.transport.virtio_pci.link import Options, PciLink
from virtio_ipsec.wire.dialect import Dialect

#: Bytes of memory: room for all rings and for receive buffers of 64 KiB on every queue.
_MEMORY = 16 << 20
_BURST = 4096


class PciLoopback(PciLink):
    """All of virtio over PCI but the bus. Packets have threads of their own, as behind any port; the rest is done when
    somebody waits."""

    name = "loopback-pci"
    has_wire = True
    patience = 2.0

    def __init__(self, device: Device, function_class: type[PciFunction] = PciFunction) -> None:
        near, self._far = crossed("device", "test bed")
        self._port = ServedPort(device, near, name="loopback")
        self.function = function_class(self._port)
        self.dialect = device.config.dialect
        try:
            super().__init__(DirectAccess(self.function), Options(memory=_MEMORY))
        except BaseException:
            self._release()
            raise

    @property
    def details(self) -> Mapping[str, str]:
        """What the function is."""
        return {"interrupts": self.interrupt_kind, "queues": str(self.num_queues())}

    def reset(self) -> None:
        """Reset the device; frames and interrupts of its earlier life are forgotten."""
        super().reset()
        self.captured()
        self.interrupts()

    def inject(self, frame: bytes) -> None:
        """A frame arrives from the wire."""
        self._far.send([frame])

    def captured(self) -> list[bytes]:
        """Frames that have left."""
        return self._far.receive(_BURST)

    def close(self) -> None:
        """Let go of all of it."""
        super().close()
        self._release()

    def _release(self) -> None:
        self.function.close()
        self._port.close()
        self._far.close()


def loopback_pci(argument: str, dialect: Dialect) -> PciLoopback:
    """A target around a device made here that does all it can; ``argument`` as for :func:`fast_path`, "auto" when left
    out. ConfigError for an engine that there is not."""
    fast = fast_path(argument or "auto", os.urandom)
    return PciLoopback(Device(DeviceConfig(dialect=dialect), os.urandom, fast))
