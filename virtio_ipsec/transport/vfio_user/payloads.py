"""What vfio-user messages carry, as values; `layouts.py` has the bytes.

Written after the protocol's text (QEMU, ``docs/interop/vfio-user.rst``); what it takes from VFIO is named as in
``<linux/vfio.h>``. ``argsz`` of a command is the room for its answer's payload, of an answer the room that all of it
takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Final

#: Most bytes moved by one message, and most that ``max_data_xfer_size`` may ask for.
MAX_TRANSFER: Final = 1 << 20
#: Most bytes of one write of REGION_WRITE_MULTI, and most writes of one message (QEMU's number: the text has none).
MULTI_DATA: Final = 8
MAX_WRITES: Final = 200
#: Most areas or doorbells of one region, and most interrupts set at once.
MAX_PARTS: Final = 2048
#: ``VFIO_PCI_NUM_REGIONS`` and ``VFIO_PCI_NUM_IRQS``.
NUM_REGIONS: Final = 9
NUM_IRQS: Final = 5


class DmaFlag(IntFlag):
    """``flags`` of DMA_MAP."""

    READ = 1
    WRITE = 2


class UnmapFlag(IntFlag):
    """``flags`` of DMA_UNMAP, as VFIO has them (``VFIO_DMA_UNMAP_FLAG_``)."""

    GET_DIRTY_BITMAP = 1
    ALL = 2


class DeviceFlag(IntFlag):
    """``VFIO_DEVICE_FLAGS_``."""

    RESET = 1
    PCI = 2


class RegionFlag(IntFlag):
    """``VFIO_REGION_INFO_FLAG_``."""

    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


class IrqFlag(IntFlag):
    """``VFIO_IRQ_INFO_``."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


class SetFlag(IntFlag):
    """``VFIO_IRQ_SET_``: one of DATA and one of ACTION."""

    DATA_NONE = 1
    DATA_BOOL = 2
    DATA_EVENTFD = 4
    ACTION_MASK = 8
    ACTION_UNMASK = 0x10
    ACTION_TRIGGER = 0x20

    DATA = DATA_NONE | DATA_BOOL | DATA_EVENTFD
    ACTION = ACTION_MASK | ACTION_UNMASK | ACTION_TRIGGER


class FeatureFlag(IntFlag):
    """``flags`` of DEVICE_FEATURE: the number of a feature, then what to do with it."""

    MASK = 0xFFFF
    GET = 0x10000
    SET = 0x20000
    PROBE = 0x40000


@dataclass(frozen=True, slots=True)
class DmaMap:
    """``size`` bytes of client memory at ``address``, found at ``offset`` of the file that may come with it."""

    flags: int
    offset: int
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class DmaUnmap:
    """A range that DMA_MAP named."""

    flags: int
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What sort of device it is (:class:`DeviceFlag`), and how many regions and kinds of interrupts it has."""

    flags: int = 0
    num_regions: int = 0
    num_irqs: int = 0
    argsz: int = 16


@dataclass(frozen=True, slots=True)
class Area:
    """A part of a region that can be mapped; ``offset`` counts from the region's begin."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """A region (:class:`RegionFlag`). ``offset`` belongs to the file that comes along when it can be mapped; with
    ``areas`` (the capability SPARSE_MMAP) only there. ``argsz`` is what the whole of the answer takes: one that is
    larger than the asker allowed comes without ``areas``."""

    index: int
    flags: int = 0
    size: int = 0
    offset: int = 0
    areas: tuple[Area, ...] = ()
    argsz: int = 32


@dataclass(frozen=True, slots=True)
class IoEventFd:
    """A part of a region whose writes come by an eventfd, the ``fd_index``-th of the message."""

    offset: int
    size: int
    fd_index: int
    type: int = 0
    flags: int = 0
    datamatch: int = 0


@dataclass(frozen=True, slots=True)
class RegionIoFds:
    """The eventfds of a region. ``count`` without ``parts``: the asker allowed less than ``argsz``."""

    index: int
    count: int = 0
    parts: tuple[IoEventFd, ...] = ()
    flags: int = 0
    argsz: int = 16


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """A kind of interrupts (:class:`IrqFlag`)."""

    index: int
    flags: int = 0
    count: int = 0
    argsz: int = 16


@dataclass(frozen=True, slots=True)
class IrqSet:
    """What is to be done (:class:`SetFlag`) with ``count`` interrupts from ``start``."""

    flags: int
    index: int
    start: int
    count: int
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class RegionAccess:
    """``count`` bytes at ``offset`` of a region; ``data`` in a write and in the answer to a read."""

    offset: int
    region: int
    count: int
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class DmaAccess:
    """``count`` bytes at a DMA address; ``data`` in a write and in the answer to a read."""

    address: int
    count: int
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class DeviceFeature:
    """A device feature (:class:`FeatureFlag`)."""

    flags: int
    data: bytes = b""
    argsz: int = 8


@dataclass(frozen=True, slots=True)
class MigrationData:
    """A piece of migration data, or how much of it is wanted."""

    size: int
    data: bytes = b""
