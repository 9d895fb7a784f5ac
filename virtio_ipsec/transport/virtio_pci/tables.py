"""Registers and structures of a virtio PCI function: offsets, widths, who may write them, bits and identifiers.

Sources: virtio v1.4 4.1 (names are its own), PCI Local Bus 3.0, PCI Express Base 5.0, SR-IOV 1.1 (names as in Linux's
``pci_regs.h``). All numbers are little-endian. The device side and the driver side share this and nothing else.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from typing import Final

from virtio_ipsec.wire.numbers import Feature

#: PCI Vendor ID of virtio devices, and what is added to a Virtio Device ID to get the PCI Device ID (4.1.2).
VENDOR_ID: Final = 0x1AF4
DEVICE_ID_BASE: Final = 0x1040
#: Virtio Device ID of the network device.
NETWORK_DEVICE: Final = 1
#: Smallest Subsystem Device ID and Revision ID that tell legacy drivers to keep away (4.1.2.1).
FIRST_SUBSYSTEM_ID: Final = 0x40
FIRST_REVISION_ID: Final = 1
#: Base class, subclass and interface of an Ethernet controller.
CLASS_ETHERNET: Final = 0x020000

#: Bytes of the configuration space of a PCI Express function, and where the part begins that conventional PCI lacks.
CONFIG_SIZE: Final = 0x1000
EXTENDED_CAPABILITIES: Final = 0x100
#: Bytes of the header; capabilities come behind it.
HEADER_SIZE: Final = 0x40
BARS: Final = 6

#: A vector that is none (4.1.5.1.2).
NO_VECTOR: Final = 0xFFFF
#: Most vectors of an MSI-X table.
MAX_VECTORS: Final = 0x800
#: Feature words that 128 bits take.
FEATURE_WORDS: Final = 4


class Region(IntEnum):
    """What of a function can be read and written."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7


class Access(Enum):
    """What the driver may do with a register."""

    READ = "read-only"
    WRITE = "read-write"


class Register(Enum):
    """A named place: ``offset`` from the structure's beginning and ``width`` in bytes, and what the driver may do."""

    def __init__(self, offset: int, width: int, access: Access = Access.READ) -> None:
        self.offset = offset
        self.width = width
        self.access = access

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.offset + self.width


class Header(Register):
    """Configuration space header of type 0 (PCI 6.1)."""

    VENDOR_ID = (0x00, 2)
    DEVICE_ID = (0x02, 2)
    COMMAND = (0x04, 2, Access.WRITE)
    STATUS = (0x06, 2, Access.WRITE)
    REVISION_ID = (0x08, 1)
    CLASS_CODE = (0x09, 3)
    CACHE_LINE_SIZE = (0x0C, 1, Access.WRITE)
    LATENCY_TIMER = (0x0D, 1)
    HEADER_TYPE = (0x0E, 1)
    BIST = (0x0F, 1)
    BASE_ADDRESS_0 = (0x10, 4, Access.WRITE)
    BASE_ADDRESS_1 = (0x14, 4, Access.WRITE)
    BASE_ADDRESS_2 = (0x18, 4, Access.WRITE)
    BASE_ADDRESS_3 = (0x1C, 4, Access.WRITE)
    BASE_ADDRESS_4 = (0x20, 4, Access.WRITE)
    BASE_ADDRESS_5 = (0x24, 4, Access.WRITE)
    CARDBUS_CIS = (0x28, 4)
    SUBSYSTEM_VENDOR_ID = (0x2C, 2)
    SUBSYSTEM_ID = (0x2E, 2)
    ROM_ADDRESS = (0x30, 4)
    CAPABILITY_LIST = (0x34, 1)
    INTERRUPT_LINE = (0x3C, 1, Access.WRITE)
    INTERRUPT_PIN = (0x3D, 1)
    MIN_GNT = (0x3E, 1)
    MAX_LAT = (0x3F, 1)


class Command(IntFlag):
    """Bits of the command register."""

    IO = 0x001
    MEMORY = 0x002
    MASTER = 0x004
    INTX_DISABLE = 0x400


class DeviceState(IntFlag):
    """Bits of the status register of the header."""

    INTERRUPT = 0x08
    CAP_LIST = 0x10


class BarBit(IntFlag):
    """Low bits of a base address register (PCI 6.2.5.1)."""

    IO = 0x1
    MEM_64 = 0x4
    PREFETCHABLE = 0x8


#: Which bits of a memory base address register are address.
BAR_ADDRESS_MASK: Final = 0xFFFFFFF0


class CapabilityId(IntEnum):
    """First byte of a capability in the first 256 bytes; the second one is the offset of the next, 0 at the end."""

    VENDOR = 0x09
    EXPRESS = 0x10
    MSIX = 0x11


class ExtendedId(IntEnum):
    """Low 16 bits of the first word of an extended capability; then 4 bits version, 12 bits offset of the next."""

    ARI = 0x0E
    SRIOV = 0x10


def extended_header(kind: int, version: int, following: int) -> int:
    """The first word of an extended capability; ``following``: offset of the next one, 0 when it is the last."""
    return kind | version << 16 | following << 20


# Capabilities of virtio (4.1.4).


class Structure(IntEnum):
    """``cfg_type``: what a vendor capability points at."""

    COMMON_CFG = 1
    NOTIFY_CFG = 2
    ISR_CFG = 3
    DEVICE_CFG = 4
    PCI_CFG = 5
    SHARED_MEMORY_CFG = 8
    VENDOR_CFG = 9


class VirtioCap(Register):
    """``struct virtio_pci_cap``, and what follows it in those that are longer.

    For PCI_CFG ``bar``, ``offset``, ``length`` and ``pci_cfg_data`` are the driver's to write, which the access given
    here does not say.
    """

    cap_vndr = (0, 1)
    cap_next = (1, 1)
    cap_len = (2, 1)
    cfg_type = (3, 1)
    bar = (4, 1)
    id = (5, 1)
    offset_ = (8, 4)
    length = (12, 4)


#: Bytes of ``struct virtio_pci_cap``, ``virtio_pci_cap64``, ``virtio_pci_notify_cap`` and ``virtio_pci_cfg_cap``.
CAP_SIZE: Final = 16
CAP64_SIZE: Final = 24
NOTIFY_CAP_SIZE: Final = 20
CFG_CAP_SIZE: Final = 20
#: ``offset_hi`` and ``length_hi`` of a 64 bit capability; ``notify_off_multiplier``; ``pci_cfg_data``.
CAP64_OFFSET_HI: Final = 16
CAP64_LENGTH_HI: Final = 20
NOTIFY_MULTIPLIER: Final = 16
CFG_DATA: Final = 16
#: Widths that a PCI_CFG capability may be set to.
CFG_WIDTHS: Final = (1, 2, 4)

_CAP: Final = struct.Struct("<BBBBBB2xII")


@dataclass(frozen=True, slots=True)
class StructureCap:
    """A ``struct virtio_pci_cap``: where a structure lies. ``extra``: what follows, as far as ``cap_len`` says."""

    kind: int
    bar: int
    offset: int
    length: int
    id: int = 0
    extra: bytes = b""

    def build(self, following: int) -> bytes:
        """Its bytes; ``following``: offset of the next capability, 0 when it is the last."""
        size = CAP_SIZE + len(self.extra)
        head = (CapabilityId.VENDOR, following, size, self.kind, self.bar, self.id, self.offset, self.length)
        return _CAP.pack(*head) + self.extra

    @classmethod
    def parse(cls, data: bytes) -> StructureCap | None:
        """From ``data``, which begins with it; None when it is too short to be one. ``extra`` ends where data ends."""
        if len(data) < CAP_SIZE or data[VirtioCap.cap_len.offset] < CAP_SIZE:
            return None
        _, _, size, kind, bar, ident, offset, length = _CAP.unpack_from(data)
        return cls(kind, bar, offset, length, ident, bytes(data[CAP_SIZE:size]))


# Structures that the capabilities point at.


class CommonCfg(Register):
    """``struct virtio_pci_common_cfg`` (4.1.4.3). 64 bit fields are two of 32 bits, each to be accessed alone."""

    device_feature_select = (0x00, 4, Access.WRITE)
    device_feature = (0x04, 4)
    driver_feature_select = (0x08, 4, Access.WRITE)
    driver_feature = (0x0C, 4, Access.WRITE)
    config_msix_vector = (0x10, 2, Access.WRITE)
    num_queues = (0x12, 2)
    device_status = (0x14, 1, Access.WRITE)
    config_generation = (0x15, 1)
    queue_select = (0x16, 2, Access.WRITE)
    queue_size = (0x18, 2, Access.WRITE)
    queue_msix_vector = (0x1A, 2, Access.WRITE)
    queue_enable = (0x1C, 2, Access.WRITE)
    queue_notify_off = (0x1E, 2)
    queue_desc_lo = (0x20, 4, Access.WRITE)
    queue_desc_hi = (0x24, 4, Access.WRITE)
    queue_driver_lo = (0x28, 4, Access.WRITE)
    queue_driver_hi = (0x2C, 4, Access.WRITE)
    queue_device_lo = (0x30, 4, Access.WRITE)
    queue_device_hi = (0x34, 4, Access.WRITE)
    queue_notif_config_data = (0x38, 2)
    queue_reset = (0x3A, 2, Access.WRITE)
    admin_queue_index = (0x3C, 2)
    admin_queue_num = (0x3E, 2)


COMMON_CFG_SIZE: Final = 0x40
#: Bytes without which no driver can do.
COMMON_CFG_LEAST: Final = CommonCfg.queue_notif_config_data.offset
#: Fields that exist only when a feature has been negotiated.
FIELD_NEEDS: Final = {
    CommonCfg.queue_notif_config_data: Feature.F_NOTIF_CONFIG_DATA,
    CommonCfg.queue_reset: Feature.F_RING_RESET,
    CommonCfg.admin_queue_index: Feature.F_ADMIN_VQ,
    CommonCfg.admin_queue_num: Feature.F_ADMIN_VQ,
}


class Isr(IntFlag):
    """Bits of the ISR status byte (4.1.4.5)."""

    QUEUE = 1
    CONFIG = 2


def notification(value: int, next_off: int = 0, next_wrap: int = 0) -> int:
    """The 32 bits of an available buffer notification with F_NOTIFICATION_DATA (4.1.5.2)."""
    return value | next_off << 16 | next_wrap << 31


# Capabilities of PCI.


class MsixCap(Register):
    """MSI-X capability (PCI 6.8.2)."""

    ID = (0x00, 1)
    NEXT = (0x01, 1)
    CONTROL = (0x02, 2, Access.WRITE)
    TABLE = (0x04, 4)
    PBA = (0x08, 4)


MSIX_CAP_SIZE: Final = 12
#: In CONTROL: the number of vectors less one; all are masked; on. In TABLE and PBA: the BAR; the rest is the offset.
MSIX_SIZE_MASK: Final = 0x07FF
MSIX_MASK_ALL: Final = 0x4000
MSIX_ENABLE: Final = 0x8000
MSIX_BIR_MASK: Final = 0x7


class MsixEntry(Register):
    """One row of the MSI-X table."""

    ADDRESS_LO = (0x0, 4, Access.WRITE)
    ADDRESS_HI = (0x4, 4, Access.WRITE)
    DATA = (0x8, 4, Access.WRITE)
    CONTROL = (0xC, 4, Access.WRITE)


MSIX_ENTRY_SIZE: Final = 16
MSIX_ENTRY_MASKED: Final = 1


class ExpressCap(Register):
    """PCI Express capability, version 2 (PCI Express 7.5.3)."""

    ID = (0x00, 1)
    NEXT = (0x01, 1)
    FLAGS = (0x02, 2)
    DEVICE_CAP = (0x04, 4)
    DEVICE_CONTROL = (0x08, 2, Access.WRITE)
    DEVICE_STATUS = (0x0A, 2)
    LINK_CAP = (0x0C, 4)
    LINK_CONTROL = (0x10, 2, Access.WRITE)
    LINK_STATUS = (0x12, 2)
    DEVICE_CAP_2 = (0x24, 4)
    DEVICE_CONTROL_2 = (0x28, 2, Access.WRITE)
    LINK_CAP_2 = (0x2C, 4)
    LINK_CONTROL_2 = (0x30, 2, Access.WRITE)
    LINK_STATUS_2 = (0x32, 2)


EXPRESS_CAP_SIZE: Final = 0x3C
EXPRESS_VERSION: Final = 2
#: In DEVICE_CAP: errors are reported by role, which every function says; it can be reset alone. In DEVICE_CONTROL:
#: do that (reads 0).
EXPRESS_ROLE_BASED_ERRORS: Final = 0x00008000
EXPRESS_FLR: Final = 0x10000000
EXPRESS_START_FLR: Final = 0x8000


class AriCap(Register):
    """ARI extended capability (PCI Express 7.8.7): function numbers up to 255."""

    HEADER = (0x00, 4)
    CAP = (0x04, 2)
    CONTROL = (0x06, 2)


ARI_CAP_SIZE: Final = 8


class SriovCap(Register):
    """SR-IOV extended capability (SR-IOV 3.3)."""

    HEADER = (0x00, 4)
    CAP = (0x04, 4)
    CONTROL = (0x08, 2, Access.WRITE)
    STATUS = (0x0A, 2)
    INITIAL_VFS = (0x0C, 2)
    TOTAL_VFS = (0x0E, 2)
    NUM_VFS = (0x10, 2, Access.WRITE)
    FUNCTION_LINK = (0x12, 1)
    FIRST_VF_OFFSET = (0x14, 2)
    VF_STRIDE = (0x16, 2)
    VF_DEVICE_ID = (0x1A, 2)
    SUPPORTED_PAGE_SIZES = (0x1C, 4)
    SYSTEM_PAGE_SIZE = (0x20, 4, Access.WRITE)
    VF_BAR_0 = (0x24, 4, Access.WRITE)
    VF_BAR_1 = (0x28, 4, Access.WRITE)
    VF_BAR_2 = (0x2C, 4, Access.WRITE)
    VF_BAR_3 = (0x30, 4, Access.WRITE)
    VF_BAR_4 = (0x34, 4, Access.WRITE)
    VF_BAR_5 = (0x38, 4, Access.WRITE)
    MIGRATION_STATE = (0x3C, 4)


SRIOV_CAP_SIZE: Final = 0x40


class SriovControl(IntFlag):
    """Bits of the SR-IOV control register."""

    VF_ENABLE = 0x01
    VF_MEMORY = 0x08
    ARI = 0x10


#: Pages of 4, 8, 64, 256 KiB, 1 and 4 MiB, which every SR-IOV function supports; a bit n is 2 ** (n + 12) bytes.
SRIOV_PAGE_SIZES: Final = 0x553
