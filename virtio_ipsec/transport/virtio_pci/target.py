"""A virtio PCI function as a target: ``vfio-user:PATH``, ``vfio:0000:bb:dd.f``, each with ``?wire=URI`` behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from virtio_ipsec.errors import ConfigError, TransportError
from virtio_ipsec.transport.uplink import open_uplink
from virtio_ipsec.transport.vfio.function import VfioFunction
from virtio_ipsec.transport.vfio_user.client import VfioUserFunction
from virtio_ipsec.transport.virtio_pci.access import FunctionAccess
from virtio_ipsec.transport.virtio_pci.link import Options, PciLink
from virtio_ipsec.transport.virtio_pci.owner import find_sriov
from virtio_ipsec.transport.virtio_pci.owning import OwnerLink
from virtio_ipsec.transport.wire import Wired
from virtio_ipsec.wire.dialect import Dialect

#: Bytes of memory: room for all rings and for receive buffers of 64 KiB on every queue.
_MEMORY = 16 << 20
_WIRE = "?wire="


class PciTarget(PciLink):
    """The device behind ``access``. Its wire is beside it. ``access`` and ``found`` are its PCI face: regions to read
    and write, and where the structures of virtio lie in them."""

    has_wire = False
    patience = 2.0

    def __init__(self, access: FunctionAccess, dialect: Dialect) -> None:
        self.name = access.name
        self.dialect = dialect
        super().__init__(access, Options(memory=_MEMORY))

    @property
    def details(self) -> Mapping[str, str]:
        """What the function is, and how it interrupts."""
        found = self.found
        return {
            "PCI": f"{found.vendor_id:04x}:{found.device_id:04x}",
            "interrupts": self.interrupt_kind,
            "queues": str(self.num_queues()),
        }

    def reset(self) -> None:
        """Reset the device, over a new connection when the old one was lost."""
        try:
            super().reset()
        except TransportError:
            self.restart()
            super().reset()
        self.interrupts()

    def inject(self, frame: bytes) -> None:
        """No wire is known: TransportError."""
        raise TransportError(f"{self.name} has no wire: see --wire")

    def captured(self) -> list[bytes]:
        """Nothing, for the same reason."""
        return []


class PciOwner(OwnerLink[PciTarget], PciTarget):
    """One whose virtual functions can be reached, each by ``reach`` with its number."""

    def __init__(
        self, access: FunctionAccess, dialect: Dialect, reach: Callable[[int], FunctionAccess]
    ) -> None:
        super().__init__(access, dialect)
        self._access_of = reach

    def _reach(self, number: int) -> PciTarget:
        return PciTarget(self._access_of(number), self.dialect)


def vfio_user(argument: str, dialect: Dialect) -> Any:
    """The function whose server listens at the path that ``argument`` names; its virtual functions, if it has any, are
    at PATH.vf1 and so on. ConfigError for an argument of another form, TransportError when nothing is there."""
    path, wire = _parse(argument, "vfio-user:PATH[?wire=URI]")
    access = VfioUserFunction.at(path)
    if find_sriov(access) is None:
        return _wired(PciTarget(access, dialect), wire)
    return _wired(PciOwner(access, dialect, lambda number: VfioUserFunction.at(f"{path}.vf{number}")), wire)


def vfio(argument: str, dialect: Dialect) -> Any:
    """The function of this machine whose address ``argument`` is; it has to be bound to vfio-pci. Raises as
    :func:`vfio_user`."""
    address, wire = _parse(argument, "vfio:0000:bb:dd.f[?wire=URI]")
    return _wired(PciTarget(VfioFunction(address), dialect), wire)


def _parse(argument: str, form: str) -> tuple[str, str]:
    """What is behind the colon, and the URI of the wire's far end or nothing."""
    where, mark, wire = argument.partition(_WIRE)
    if not where or (mark and not wire):
        raise ConfigError(f"a target of this kind is written {form}")
    return where, wire


def _wired(target: PciTarget, wire: str) -> PciTarget | Wired:
    if not wire:
        return target
    try:
        return Wired(target, open_uplink(wire))
    except BaseException:
        target.close()
        raise
