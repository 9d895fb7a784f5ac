"""A function under test as its registers show it: read and written one by one, in their own widths."""

from __future__ import annotations

from functools import cached_property

from virtio_ipsec.conformance.verdict import Unsupported
from virtio_ipsec.transport.virtio_pci.access import FunctionAccess
from virtio_ipsec.transport.virtio_pci.discovery import walk, walk_extended
from virtio_ipsec.transport.virtio_pci.tables import (
    BARS,
    EXTENDED_CAPABILITIES,
    CapabilityId,
    CommonCfg,
    ExtendedId,
    Region,
    Structure,
    StructureCap,
)


class Registers:
    """Capabilities are found anew for each case; nothing is written to find them."""

    def __init__(self, access: FunctionAccess) -> None:
        self._access = access

    def common_capabilities(self) -> tuple[StructureCap, ...]:
        """All that name a common configuration structure in a BAR, in the order of the list."""
        config = self._access.read(Region.CONFIG, 0, EXTENDED_CAPABILITIES)
        found = (StructureCap.parse(config[at:]) for kind, at in walk(config) if kind == CapabilityId.VENDOR)
        return tuple(
            cap for cap in found if cap is not None and cap.kind == Structure.COMMON_CFG and cap.bar < BARS
        )

    @property
    def has_sriov(self) -> bool:
        """Whether the function has the SR-IOV extended capability."""
        return any(kind == ExtendedId.SRIOV for kind, _ in walk_extended(self._access))

    @cached_property
    def _common(self) -> StructureCap:
        found = self.common_capabilities()
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
