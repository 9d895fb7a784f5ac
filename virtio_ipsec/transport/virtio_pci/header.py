"""Where things lie in a function of ours: header and capabilities of its configuration space, the parts of its BARs.

A driver finds all of it by walking the capabilities; nothing here is known to the driver side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from virtio_ipsec.transport.virtio_pci import tables
from virtio_ipsec.transport.virtio_pci.config_space import ConfigSpace
from virtio_ipsec.transport.virtio_pci.tables import (
    CapabilityId,
    Command,
    ExpressCap,
    ExtendedId,
    Header,
    MsixCap,
    Region,
    Structure,
    StructureCap,
    VirtioCap,
)

#: BARs that there are.
STRUCTURES_BAR: Final = Region.BAR0
MSIX_BAR: Final = Region.BAR1
#: Bytes between two notification addresses: room for notifications with data.
MULTIPLIER: Final = 4
_PAGE: Final = 0x1000
#: Offsets in the first BAR. Each structure has pages of its own.
COMMON: Final = 0
ISR: Final = _PAGE
DEVICE: Final = 2 * _PAGE
NOTIFY: Final = 3 * _PAGE
ISR_SIZE: Final = 4
DEVICE_SIZE: Final = _PAGE

#: As QEMU's virtio functions have it.
_SUBSYSTEM_ID: Final = 0x1100
_PIN_A: Final = 1
#: Error reporting, relaxed ordering, payload and request sizes, no snoop; and the bit that starts a reset.
_DEVICE_CONTROL: Final = 0x78FF | tables.EXPRESS_START_FLR
#: 2.5 GT/s, one lane; what there is is in use.
_LINK: Final = 0x011
_ARI_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of what depends on the number of queues and vectors, and where the pending bit array lies in its BAR."""

    notify_size: int
    structures_size: int
    table_size: int
    pba: int
    pba_size: int
    msix_size: int

    @classmethod
    def of(cls, queues: int, vectors: int) -> Layout:
        """For so many queues and MSI-X vectors."""
        notify = MULTIPLIER * queues
        table = tables.MSIX_ENTRY_SIZE * vectors
        pba = -(-table // 0x800) * 0x800
        pba_size = -(-vectors // 64) * 8
        return cls(notify, _power(NOTIFY + notify), table, pba, pba_size, _power(pba + pba_size))


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Offsets in the configuration space of those that do something."""

    msix: int
    express: int
    pci_cfg: int


def build(config: ConfigSpace, layout: Layout, vectors: int, *, virtual: bool) -> Capabilities:
    """Header and capabilities of a virtio network function (4.1.2, 4.1.4). ``virtual``: without INTx."""
    _put_header(config, virtual=virtual)
    config.add_bar(Header.BASE_ADDRESS_0, STRUCTURES_BAR, layout.structures_size)
    config.add_bar(Header.BASE_ADDRESS_0, MSIX_BAR, layout.msix_size)
    multiplier = MULTIPLIER.to_bytes(4, "little")
    for cap in (
        StructureCap(Structure.COMMON_CFG, STRUCTURES_BAR, COMMON, tables.COMMON_CFG_SIZE),
        StructureCap(Structure.ISR_CFG, STRUCTURES_BAR, ISR, ISR_SIZE),
        StructureCap(Structure.DEVICE_CFG, STRUCTURES_BAR, DEVICE, DEVICE_SIZE),
        StructureCap(Structure.NOTIFY_CFG, STRUCTURES_BAR, NOTIFY, layout.notify_size, extra=multiplier),
    ):
        config.add_capability(cap.build(0))
    return Capabilities(_add_msix(config, layout, vectors), _add_express(config), _add_pci_cfg(config))


def _put_header(config: ConfigSpace, *, virtual: bool) -> None:
    for register, value in (
        (Header.VENDOR_ID, tables.VENDOR_ID),
        (Header.DEVICE_ID, tables.DEVICE_ID_BASE + tables.NETWORK_DEVICE),
        (Header.REVISION_ID, tables.FIRST_REVISION_ID),
        (Header.CLASS_CODE, tables.CLASS_ETHERNET),
        (Header.SUBSYSTEM_VENDOR_ID, tables.VENDOR_ID),
        (Header.SUBSYSTEM_ID, _SUBSYSTEM_ID),
        (Header.INTERRUPT_PIN, 0 if virtual else _PIN_A),
    ):
        config.put(register, value)
    commands = Command.MEMORY | Command.MASTER | (Command(0) if virtual else Command.INTX_DISABLE)
    config.put(Header.COMMAND, 0, commands)
    config.put(Header.CACHE_LINE_SIZE, 0, 0xFF)
    config.put(Header.INTERRUPT_LINE, 0, 0 if virtual else 0xFF)


def _add_msix(config: ConfigSpace, layout: Layout, vectors: int) -> int:
    place = config.add_capability(bytes([CapabilityId.MSIX]).ljust(tables.MSIX_CAP_SIZE, b"\0"))
    config.put(MsixCap.CONTROL, vectors - 1, tables.MSIX_ENABLE | tables.MSIX_MASK_ALL, base=place)
    config.put(MsixCap.TABLE, MSIX_BAR, base=place)
    config.put(MsixCap.PBA, layout.pba | MSIX_BAR, base=place)
    return place


def _add_express(config: ConfigSpace) -> int:
    """An endpoint, which can be reset alone."""
    place = config.add_capability(bytes([CapabilityId.EXPRESS]).ljust(tables.EXPRESS_CAP_SIZE, b"\0"))
    config.put(ExpressCap.FLAGS, tables.EXPRESS_VERSION, base=place)
    config.put(ExpressCap.DEVICE_CAP, tables.EXPRESS_ROLE_BASED_ERRORS | tables.EXPRESS_FLR, base=place)
    config.put(ExpressCap.DEVICE_CONTROL, 0, _DEVICE_CONTROL, base=place)
    config.put(ExpressCap.LINK_CAP, _LINK, base=place)
    config.put(ExpressCap.LINK_STATUS, _LINK, base=place)
    return place


def _add_pci_cfg(config: ConfigSpace) -> int:
    data = StructureCap(Structure.PCI_CFG, 0, 0, 0, extra=bytes(4)).build(0)
    writable = bytearray(len(data))
    for register in (VirtioCap.bar, VirtioCap.offset_, VirtioCap.length):
        writable[register.offset : register.end] = b"\xff" * register.width
    writable[tables.CFG_DATA :] = b"\xff" * 4
    return config.add_capability(data, bytes(writable))


def add_ari(config: ConfigSpace) -> None:
    """What an owner of virtual functions and they themselves have, for there may be more than eight (PCI Express
    7.8.7)."""
    config.add_extended(ExtendedId.ARI, _ARI_VERSION, tables.ARI_CAP_SIZE)


def _power(size: int) -> int:
    """The size of a BAR with room for so much."""
    return max(_PAGE, 1 << (size - 1).bit_length())
