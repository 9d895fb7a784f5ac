"""The driver's side of SR-IOV: a physical function whose virtual functions are switched on and off."""

from __future__ import annotations

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.virtio_pci.access import FunctionAccess
from virtio_ipsec.transport.virtio_pci.discovery import walk_extended
from virtio_ipsec.transport.virtio_pci.tables import (
    CONFIG_SIZE,
    SRIOV_CAP_SIZE,
    ExtendedId,
    Region,
    SriovCap,
    SriovControl,
)


def find_sriov(access: FunctionAccess) -> int | None:
    """Where the SR-IOV capability begins; None: the function has none."""
    found = next((at for kind, at in walk_extended(access) if kind == ExtendedId.SRIOV), None)
    return None if found is None or found + SRIOV_CAP_SIZE > CONFIG_SIZE else found


class VirtualFunctions:
    """Those of the function behind ``access``, whose SR-IOV capability lies at ``base``.

    The driver negotiates F_SR_IOV before it enables any, and may then do so whatever is reset (BAS-RSVD-05). While its
    commands for the group are under way VF Enable stays set (ADM-DRV-10).
    """

    def __init__(self, access: FunctionAccess, base: int) -> None:
        self._access = access
        self._base = base

    @property
    def total(self) -> int:
        """How many there can be."""
        return self._get(SriovCap.TOTAL_VFS)

    @property
    def enabled(self) -> int:
        """How many there are: NumVFs while VF Enable is set."""
        return self._get(SriovCap.NUM_VFS) if self._get(SriovCap.CONTROL) & SriovControl.VF_ENABLE else 0

    def enable(self, count: int) -> None:
        """Set NumVFs, which may be 0, and VF Enable. TransportError when the function does not take them."""
        self._put(SriovCap.NUM_VFS, count)
        control = self._get(SriovCap.CONTROL) | SriovControl.VF_ENABLE | SriovControl.VF_MEMORY
        self._put(SriovCap.CONTROL, control)
        if not self._get(SriovCap.CONTROL) & SriovControl.VF_ENABLE or self._get(SriovCap.NUM_VFS) != count:
            raise TransportError(
                f"{self._access.name} does not enable {count} virtual functions of {self.total}"
            )

    def disable(self) -> None:
        """Clear VF Enable: they vanish."""
        control = self._get(SriovCap.CONTROL) & ~(SriovControl.VF_ENABLE | SriovControl.VF_MEMORY)
        self._put(SriovCap.CONTROL, control)
        if self._get(SriovCap.CONTROL) & SriovControl.VF_ENABLE:
            raise TransportError(f"{self._access.name} keeps its virtual functions")

    def _get(self, register: SriovCap) -> int:
        data = self._access.read(Region.CONFIG, self._base + register.offset, register.width)
        return int.from_bytes(data, "little")

    def _put(self, register: SriovCap, value: int) -> None:
        data = value.to_bytes(register.width, "little")
        self._access.write(Region.CONFIG, self._base + register.offset, data)
