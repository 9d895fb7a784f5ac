"""A function under test as its registers show it: read and written one by one, in their own widths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.transport.virtio_pci.access import FunctionAccess
from virtio_ipsec.transport.virtio_pci.discovery import walk, walk_extended
from virtio_ipsec.transport.virtio_pci.tables import (
    BARS,
    CFG_DATA,
    EXTENDED_CAPABILITIES,
    MSIX_ENABLE,
    CapabilityId,
    CommonCfg,
    ExtendedId,
    MsixCap,
    Region,
    Register,
    Structure,
    StructureCap,
    VirtioCap,
)


class Registers:
    """Capabilities are found anew for each case; nothing is written to find them."""

    def __init__(self, access: FunctionAccess) -> None:
        self._access = access

    def structures(self, kind: Structure) -> tuple[StructureCap, ...]:
        """The capabilities that name such a structure in a BAR, in the order of the list."""
        return tuple(cap for _, cap in self._structures(kind))

    def _structures(self, kind: Structure) -> Iterator[tuple[int, StructureCap]]:
        config = self._access.read(Region.CONFIG, 0, EXTENDED_CAPABILITIES)
        for ident, at in walk(config):
            cap = StructureCap.parse(config[at:]) if ident == CapabilityId.VENDOR else None
            if cap is not None and cap.kind == kind and cap.bar < BARS:
                yield at, cap

    @cached_property
    def msix(self) -> int | None:
        """Where the MSI-X capability begins; None: there is none."""
        config = self._access.read(Region.CONFIG, 0, EXTENDED_CAPABILITIES)
        return next((at for ident, at in walk(config) if ident == CapabilityId.MSIX), None)

    def config(self, register: Register, base: int = 0) -> int:
        """What a register of the configuration space shows."""
        data = self._access.read(Region.CONFIG, base + register.offset, register.width)
        return int.from_bytes(data, "little")

    def set_config(self, register: Register, value: int, base: int = 0) -> None:
        """Write it."""
        data = value.to_bytes(register.width, "little")
        self._access.write(Region.CONFIG, base + register.offset, data)

    @contextmanager
    def without_msix(self) -> Iterator[None]:
        """Inside, MSI-X is disabled. Unsupported when it cannot be, or when there is none: then the test bed uses INTx,
        and the ISR status with it."""
        if self.msix is None:
            raise Unsupported("the function has no MSI-X to be switched off")
        control = self.config(MsixCap.CONTROL, self.msix)
        self.set_config(MsixCap.CONTROL, control & ~MSIX_ENABLE, self.msix)
        try:
            if self.config(MsixCap.CONTROL, self.msix) & MSIX_ENABLE:
                raise Unsupported("the test bed keeps MSI-X enabled")
            yield
        finally:
            self.set_config(MsixCap.CONTROL, control, self.msix)

    def take_isr(self) -> int:
        """Read the ISR status. Unsupported when there is none."""
        found = self.structures(Structure.ISR_CFG)
        if not found:
            raise Unsupported("the function lists no ISR status")
        return self._access.read(found[0].bar, found[0].offset, 1)[0]

    @contextmanager
    def window(self, register: CommonCfg) -> Iterator[tuple[int, int]]:
        """Inside, the capability for access through the configuration space points at a register: where its data is
        there, and how wide. Unsupported when there is no such capability."""
        found = next(self._structures(Structure.PCI_CFG), None)
        if found is None:
            raise Unsupported("the function lists no access through the configuration space")
        at, common = found[0], self._common
        self.set_config(VirtioCap.bar, common.bar, at)
        self.set_config(VirtioCap.offset_, common.offset + register.offset, at)
        self.set_config(VirtioCap.length, register.width, at)
        yield at + CFG_DATA, register.width
        self.set_config(VirtioCap.length, 0, at)

    def read_window(self, register: CommonCfg) -> int:
        """A register through the configuration space."""
        with self.window(register) as (at, width):
            return int.from_bytes(self._access.read(Region.CONFIG, at, width), "little")

    def write_window(self, register: CommonCfg, value: int) -> None:
        """Write a register through the configuration space."""
        with self.window(register) as (at, width):
            self._access.write(Region.CONFIG, at, value.to_bytes(width, "little"))

    @property
    def has_sriov(self) -> bool:
        """Whether the function has the SR-IOV extended capability."""
        return any(kind == ExtendedId.SRIOV for kind, _ in walk_extended(self._access))

    @cached_property
    def _common(self) -> StructureCap:
        found = self.structures(Structure.COMMON_CFG)
        if not found:
            raise Unsupported("the function lists no common configuration structure")
        return found[0]

    def has(self, register: CommonCfg) -> bool:
        """Whether the structure is long enough for it."""
        return register.end <= self._common.length

    def get(self, register: CommonCfg) -> int:
        """What it shows. Unsupported when the structure ends before it."""
        if not self.has(register):
            raise Unsupported(f"the common configuration ends before {register.name}")
        at = self._common.offset + register.offset
        return int.from_bytes(self._access.read(self._common.bar, at, register.width), "little")

    def put(self, register: CommonCfg, value: int) -> None:
        """Write it. Unsupported when the structure ends before it."""
        if not self.has(register):
            raise Unsupported(f"the common configuration ends before {register.name}")
        at = self._common.offset + register.offset
        self._access.write(self._common.bar, at, value.to_bytes(register.width, "little"))

    def of(self, index: int, register: CommonCfg) -> int:
        """What a register of a queue shows."""
        self.put(CommonCfg.queue_select, index)
        return self.get(register)
