"""The embedded device as a PCI function in this process, with our driver's link in front of it: a target."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.fast import fast_path
from virtio_ipsec.device.members import SriovGroup
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.targets import engine_and_members
from virtio_ipsec.transport.uplinks.crossed import crossed
from virtio_ipsec.transport.virtio_pci.direct import DirectAccess
from virtio_ipsec.transport.virtio_pci.function import PciFunction
from virtio_ipsec.transport.virtio_pci.link import Options, PciLink
from virtio_ipsec.transport.virtio_pci.member import VirtualFunction
from virtio_ipsec.transport.virtio_pci.owning import OwnerLink
from virtio_ipsec.wire.dialect import Dialect

#: Bytes of memory: room for all rings and for receive buffers of 64 KiB on every queue.
_MEMORY = 16 << 20
_BURST = 4096


class EmbeddedFunction:
    """``device`` as a PCI function, with a wire whose other end is ``far``. Packets have threads of their own, as
    behind any port; the rest is done when somebody waits."""

    def __init__(
        self,
        device: Device,
        function_class: Callable[..., PciFunction] = PciFunction,
        *,
        members: SriovGroup | None = None,
        virtual: bool = False,
    ) -> None:
        near, self.far = crossed("device", "test bed")
        self.port = ServedPort(device, near, name="loopback")
        self.function = function_class(self.port, members=members, virtual=virtual)

    def close(self) -> None:
        """Let go of all of it."""
        self.function.close()
        self.port.close()
        self.far.close()


class PciLoopback(PciLink):
    """All of virtio over PCI but the bus, in front of ``embedded``, which belongs to it from here on."""

    name = "loopback-pci"
    has_wire = True
    patience = 2.0
    #: Packets of the longest run of a case, for about half a second.
    long_run = 6_000

    def __init__(self, embedded: EmbeddedFunction) -> None:
        self.embedded = embedded
        self.dialect = embedded.port.device.config.dialect
        try:
            super().__init__(DirectAccess(embedded.function), Options(memory=_MEMORY))
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
        self.embedded.far.send([frame])

    def captured(self) -> list[bytes]:
        """Frames that have left."""
        return self.embedded.far.receive(_BURST)

    def close(self) -> None:
        """Let go of all of it."""
        super().close()
        self._release()

    def _release(self) -> None:
        self.embedded.close()


class _Member(PciLoopback):
    """A virtual function, which stays its owner's."""

    def _release(self) -> None:
        self.captured()


class PciLoopbackOwner(OwnerLink[PciLoopback], PciLoopback):
    """One with virtual functions around ``devices``."""

    def __init__(self, device: Device, devices: Sequence[Device]) -> None:
        self._embedded = [EmbeddedFunction(each, virtual=True) for each in devices]
        group = SriovGroup([VirtualFunction(each.function) for each in self._embedded], stoppable=True)
        super().__init__(EmbeddedFunction(device, members=group))

    def _reach(self, number: int) -> PciLoopback:
        return _Member(self._embedded[number - 1])

    def _release(self) -> None:
        super()._release()
        for each in self._embedded:
            each.close()


def loopback_pci(argument: str, dialect: Dialect) -> PciLoopback:
    """A target around a device made here that does all it can; ``argument`` as for
    :func:`~virtio_ipsec.transport.targets.loopback`. Raises ConfigError for another."""
    engine, members = engine_and_members(argument)
    config = DeviceConfig(dialect=dialect)

    def device(number: int) -> Device:
        mac = (int.from_bytes(config.mac) ^ number).to_bytes(6)
        return Device(replace(config, mac=mac), os.urandom, fast_path(engine, os.urandom))

    if not members:
        return PciLoopback(EmbeddedFunction(device(0)))
    return PciLoopbackOwner(device(0), [device(number) for number in range(1, members + 1)])
