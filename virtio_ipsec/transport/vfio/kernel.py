"""The ioctls of ``<linux/vfio.h>`` that a program needs, on descriptors of ``/dev/vfio``.

Device, region and interrupt structures are those that vfio-user has taken over, and are laid out there.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, Final, TypeVar

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.payload import Layout
from virtio_ipsec.transport.vfio_user.layouts import DEVICE_INFO, IRQ_INFO, IRQ_SET, REGION_INFO
from virtio_ipsec.transport.vfio_user.payloads import DeviceInfo, IrqInfo, IrqSet, RegionInfo, SetFlag
from virtio_ipsec.transport.virtio_pci.access import AccessRefused

T = TypeVar("T")
#: As :func:`fcntl.ioctl`: descriptor, request, and bytes to change, or a number.
Ioctl = Callable[[int, int, Any], int]
API_VERSION: Final = 0
_ARGSZ: Final = struct.Struct("=I")
#: Far more than a region's answer has.
_MOST: Final = 1 << 16


class Request(IntEnum):
    """Ioctl numbers: ``_IO(VFIO_TYPE, VFIO_BASE + n)``."""

    GET_API_VERSION = 0x3B64
    CHECK_EXTENSION = 0x3B65
    SET_IOMMU = 0x3B66
    GROUP_GET_STATUS = 0x3B67
    GROUP_SET_CONTAINER = 0x3B68
    GROUP_GET_DEVICE_FD = 0x3B6A
    DEVICE_GET_INFO = 0x3B6B
    DEVICE_GET_REGION_INFO = 0x3B6C
    DEVICE_GET_IRQ_INFO = 0x3B6D
    DEVICE_SET_IRQS = 0x3B6E
    DEVICE_RESET = 0x3B6F
    IOMMU_MAP_DMA = 0x3B71
    IOMMU_UNMAP_DMA = 0x3B72


class Iommu(IntEnum):
    """``VFIO_*_IOMMU``: what a container is set to."""

    TYPE1V2 = 3
    NOIOMMU = 8


GROUP_VIABLE: Final = 1
DMA_READ_WRITE: Final = 3
_STATUS: Final = struct.Struct("=II")
_MAP: Final = struct.Struct("=IIQQQ")
_UNMAP: Final = struct.Struct("=IIQQ")


class Descriptor:
    """One open file of VFIO. AccessRefused for an ioctl that fails, with what was asked."""

    def __init__(self, fd: int, ioctl: Ioctl = fcntl.ioctl) -> None:
        self.fd = fd
        self._ioctl = ioctl

    def close(self) -> None:
        """Close it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def call(self, request: Request, argument: bytearray | int = 0) -> int:
        """One ioctl; what a bytearray holds is changed in place."""
        try:
            return self._ioctl(self.fd, request, argument)
        except OSError as error:
            raise AccessRefused(f"VFIO {request.name}: {os.strerror(error.errno or 0)}") from None

    def _ask(self, request: Request, layout: Layout[T], value: T) -> T:
        """The answer of an ioctl that says how long it wants to be."""
        asked = layout.build(value)
        size = len(asked)
        for _ in range(2):
            buffer = bytearray(asked.ljust(size, b"\0"))
            _ARGSZ.pack_into(buffer, 0, size)
            self.call(request, buffer)
            (needed,) = _ARGSZ.unpack_from(buffer)
            if needed <= size:
                return layout.parse(bytes(buffer))
            size = min(needed, _MOST)
        raise TransportError(f"VFIO {request.name} does not say how long its answer is")

    # A container.

    def map_dma(self, address: int, iova: int, size: int) -> None:
        """Let the devices of the container reach memory of this process."""
        self.call(Request.IOMMU_MAP_DMA, bytearray(_MAP.pack(_MAP.size, DMA_READ_WRITE, address, iova, size)))

    def unmap_dma(self, iova: int, size: int) -> None:
        """They must not any more."""
        self.call(Request.IOMMU_UNMAP_DMA, bytearray(_UNMAP.pack(_UNMAP.size, 0, iova, size)))

    # A group.

    def is_viable(self) -> bool:
        """Whether all devices of the group are in hands of VFIO."""
        status = bytearray(_STATUS.pack(_STATUS.size, 0))
        self.call(Request.GROUP_GET_STATUS, status)
        return bool(_STATUS.unpack(status)[1] & GROUP_VIABLE)

    # A device.

    def device_info(self) -> DeviceInfo:
        """What sort of device it is."""
        return self._ask(Request.DEVICE_GET_INFO, DEVICE_INFO, DeviceInfo())

    def region_info(self, index: int) -> RegionInfo:
        """Where a region lies in the file."""
        return self._ask(Request.DEVICE_GET_REGION_INFO, REGION_INFO, RegionInfo(index))

    def irq_info(self, index: int) -> IrqInfo:
        """What an interrupt can do."""
        return self._ask(Request.DEVICE_GET_IRQ_INFO, IRQ_INFO, IrqInfo(index))

    def set_irqs(self, index: int, start: int, eventfds: Sequence[int | None]) -> None:
        """Have vectors ring these; without any, the interrupt is off."""
        flags = SetFlag.ACTION_TRIGGER | (SetFlag.DATA_EVENTFD if eventfds else SetFlag.DATA_NONE)
        data = struct.pack(f"={len(eventfds)}i", *(-1 if fd is None else fd for fd in eventfds))
        self._set_irq(flags, index, start, len(eventfds), data)

    def unmask_irq(self, index: int) -> None:
        """Let vector 0 ring again."""
        self._set_irq(SetFlag.ACTION_UNMASK | SetFlag.DATA_NONE, index, 0, 1, b"")

    def _set_irq(self, flags: int, index: int, start: int, count: int, data: bytes) -> None:
        asked = IRQ_SET.build(IrqSet(flags, index, start, count, data))
        self.call(Request.DEVICE_SET_IRQS, bytearray(asked))
