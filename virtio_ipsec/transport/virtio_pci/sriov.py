"""The SR-IOV capability of an owner of virtual functions."""

from __future__ import annotations

import logging
from typing import Final

from virtio_ipsec.device.members import SriovGroup
from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.virtio_pci import tables
from virtio_ipsec.transport.virtio_pci.config_space import ConfigSpace
from virtio_ipsec.transport.virtio_pci.header import MSIX_BAR, STRUCTURES_BAR, Layout
from virtio_ipsec.transport.virtio_pci.tables import (
    BAR_ADDRESS_MASK,
    ExtendedId,
    SriovCap,
    SriovControl,
)

_log = logging.getLogger(__name__)

_VERSION: Final = 1
_SMALLEST_PAGE: Final = 0x1000


class Sriov:
    """The SR-IOV capability (SR-IOV 3.3) of the owner of ``group``; ``layout``: of a virtual function's BARs.

    NumVFs is fixed while ``VF Enable`` is set, and never above TotalVFs. A virtual function that does not answer is its
    own client's doing and not to be felt by the owner's: it is logged, ``VF Enable`` stays clear, and none is there.
    """

    def __init__(self, config: ConfigSpace, group: SriovGroup, layout: Layout) -> None:
        self._config = config
        self._group = group
        self._bars = {STRUCTURES_BAR: layout.structures_size, MSIX_BAR: layout.msix_size}
        self._enabled = False
        self._num_vfs = 0
        self._page = 1
        total = group.total_vfs
        base = self._base = config.add_extended(ExtendedId.SRIOV, _VERSION, tables.SRIOV_CAP_SIZE)
        config.put(
            SriovCap.CONTROL, 0, SriovControl.VF_ENABLE | SriovControl.VF_MEMORY | SriovControl.ARI, base=base
        )
        for register, value in (
            (SriovCap.INITIAL_VFS, total),
            (SriovCap.TOTAL_VFS, total),
            (SriovCap.FIRST_VF_OFFSET, 1),
            (SriovCap.VF_STRIDE, 1),
            (SriovCap.VF_DEVICE_ID, tables.DEVICE_ID_BASE + tables.NETWORK_DEVICE),
            (SriovCap.SUPPORTED_PAGE_SIZES, tables.SRIOV_PAGE_SIZES),
        ):
            config.put(register, value, base=base)
        config.put(SriovCap.NUM_VFS, 0, 0xFFFF, base=base)
        config.put(SriovCap.SYSTEM_PAGE_SIZE, self._page, tables.SRIOV_PAGE_SIZES, base=base)
        self._size_bars()
        for register, call in (
            (SriovCap.CONTROL, self._control),
            (SriovCap.NUM_VFS, self._number),
            (SriovCap.SYSTEM_PAGE_SIZE, self._page_size),
        ):
            config.on_write(base + register.offset, register.width, call)

    def disable(self) -> None:
        """Function level reset: without virtual functions, and the registers are to be reset."""
        self._num_vfs, self._page = 0, 1
        self._size_bars()
        if self._enabled:
            self._enabled = False
            self._vanish()

    def _number(self) -> None:
        wanted = self._config.value(SriovCap.NUM_VFS, self._base)
        if not self._enabled and wanted <= self._group.total_vfs:
            self._num_vfs = wanted
        self._config.set(SriovCap.NUM_VFS, self._num_vfs, self._base)

    def _control(self) -> None:
        on = bool(self._config.value(SriovCap.CONTROL, self._base) & SriovControl.VF_ENABLE)
        if on == self._enabled:
            return
        self._enabled = on and self._appear()
        if not on:
            self._vanish()

    def _appear(self) -> bool:
        try:
            self._group.enable(self._num_vfs)
        except TransportError as error:
            _log.warning("no virtual functions: %s", str(error))
            control = self._config.value(SriovCap.CONTROL, self._base)
            self._config.set(SriovCap.CONTROL, control & ~SriovControl.VF_ENABLE, self._base)
            return False
        return True

    def _vanish(self) -> None:
        """Whoever does not answer vanishes when it comes to it, and is asked again before any appears."""
        try:
            self._group.disable()
        except TransportError as error:
            _log.warning("virtual functions: %s", str(error))

    def _page_size(self) -> None:
        """One bit of those that are supported, and not while there are virtual functions (SR-IOV 3.3.13)."""
        wanted = self._config.value(SriovCap.SYSTEM_PAGE_SIZE, self._base)
        if not self._enabled and wanted and not wanted & (wanted - 1):
            self._page = wanted
            self._size_bars()
        self._config.set(SriovCap.SYSTEM_PAGE_SIZE, self._page, self._base)

    def _size_bars(self) -> None:
        """One virtual function's share, which is whole pages."""
        page = _SMALLEST_PAGE * self._page
        for bar, size in self._bars.items():
            register = SriovCap[f"VF_BAR_{bar}"]
            self._config.set_writable(register, BAR_ADDRESS_MASK & ~(max(size, page) - 1), self._base)
