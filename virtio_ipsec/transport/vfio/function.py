"""A PCI function through ``/dev/vfio``, as the driver's side of virtio-pci wants it."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.vfio.addresses import address_of
from virtio_ipsec.transport.vfio.group import full_address, take
from virtio_ipsec.transport.vfio.huge import HugeMemory, physical_address
from virtio_ipsec.transport.vfio.kernel import Ioctl, Request
from virtio_ipsec.transport.vfio_user import payloads
from virtio_ipsec.transport.vfio_user.payloads import RegionFlag
from virtio_ipsec.transport.virtio_pci.access import AccessRefused, DmaMemory, RegionInfo
from virtio_ipsec.transport.virtio_pci.dma import FileMemory


class VfioFunction:
    """The function at ``address``, which has to be bound to vfio-pci. The kernel resets it when it is closed, or when
    this process ends."""

    def __init__(self, address: str, root: Path = Path("/"), ioctl: Ioctl = fcntl.ioctl) -> None:
        self.address = full_address(address)
        self._root = root
        self._held = take(self.address, root, ioctl)
        self._device = self._held.device
        self._regions: dict[int, payloads.RegionInfo] = {}
        self._mapped: dict[int, mmap.mmap] = {}
        try:
            self._info = self._device.device_info()
        except BaseException:
            self._held.close()
            raise

    @property
    def name(self) -> str:
        """As a target names it."""
        return f"vfio:{self.address}"

    @property
    def has_iommu(self) -> bool:
        """Whether an IOMMU keeps the function to the memory that it was given."""
        return self._held.has_iommu

    # Regions.

    def _region(self, region: int) -> payloads.RegionInfo:
        if region not in self._regions:
            exists = 0 <= region < self._info.num_regions
            info = self._device.region_info(region) if exists else payloads.RegionInfo(region)
            self._regions[region] = info
        return self._regions[region]

    def region_info(self, region: int) -> RegionInfo:
        """What a region is."""
        info = self._region(region)
        areas: tuple[tuple[int, int], ...] = ()
        if info.flags & RegionFlag.MMAP:
            areas = tuple((area.offset, area.size) for area in info.areas) or ((0, info.size),)
        readable, writable = bool(info.flags & RegionFlag.READ), bool(info.flags & RegionFlag.WRITE)
        return RegionInfo(info.size, readable, writable, areas)

    def read(self, region: int, offset: int, length: int) -> bytes:
        """Bytes of a region."""
        at = self._at(region, offset, length)
        try:
            data = os.pread(self._device.fd, length, at)
        except OSError as error:
            raise self._failed("read", region, offset, error) from None
        if len(data) != length:
            raise AccessRefused(
                f"{self.name} reads {len(data)} of {length} bytes at {offset:#x} of region {region}"
            )
        return data

    def write(self, region: int, offset: int, data: bytes) -> None:
        """Write bytes of a region."""
        at = self._at(region, offset, len(data))
        try:
            written = os.pwrite(self._device.fd, data, at)
        except OSError as error:
            raise self._failed("write", region, offset, error) from None
        if written != len(data):
            raise AccessRefused(
                f"{self.name} writes {written} of {len(data)} bytes at {offset:#x} of region {region}"
            )

    def _at(self, region: int, offset: int, length: int) -> int:
        info = self._region(region)
        if not 0 <= offset <= offset + length <= info.size:
            raise AccessRefused(f"{self.name} has no {length} bytes at {offset:#x} of region {region}")
        return info.offset + offset

    def _failed(self, verb: str, region: int, offset: int, error: OSError) -> AccessRefused:
        return AccessRefused(
            f"{self.name} {verb} at {offset:#x} of region {region}: {os.strerror(error.errno or 0)}"
        )

    def map_region(self, region: int, offset: int, length: int) -> memoryview | None:
        """Bytes of a region to be written to, where the kernel lets it be mapped."""
        info = self.region_info(region)
        if not any(at <= offset and offset + length <= at + size for at, size in info.mappable):
            return None
        page = offset - offset % mmap.PAGESIZE
        span = -(-(offset + length - page) // mmap.PAGESIZE) * mmap.PAGESIZE
        where = self._region(region).offset + page
        mapped = self._mapped.get(where)
        if mapped is None or len(mapped) < span:
            try:
                mapped = self._mapped[where] = mmap.mmap(self._device.fd, span, offset=where)
            except OSError:
                return None
        return memoryview(mapped)[offset - page : offset - page + length]

    def doorbell(self, region: int, offset: int, length: int, value: int | None = None) -> int | None:
        """None: a doorbell is written to."""
        return None

    # Memory.

    def new_memory(self, size: int) -> DmaMemory:
        """Memory that the function can reach: in huge pages where there is no IOMMU to say where it is, and if possible
        with one, too, which has an entry for each page."""
        if self.has_iommu:
            return FileMemory(self, size, huge=True)
        return HugeMemory(size, physical_address(self._root / "proc/self/pagemap"))

    def map_dma(self, fd: int, offset: int, size: int, iova: int) -> None:
        """Let the function reach a piece of a file."""
        if not self.has_iommu:
            raise AccessRefused(f"{self.name} has no IOMMU: memory is reached where it is")
        with mmap.mmap(fd, size, offset=offset) as mapped:  # the IOMMU holds the pages, not the mapping
            self._held.container.map_dma(address_of(mapped), iova, size)

    def unmap_dma(self, iova: int, size: int) -> None:
        """It must not any more."""
        if self.has_iommu:
            self._held.container.unmap_dma(iova, size)

    # Interrupts.

    def irq_count(self, index: int) -> int:
        """Vectors of an interrupt."""
        return self._device.irq_info(index).count if 0 <= index < self._info.num_irqs else 0

    def set_irqs(self, index: int, start: int, eventfds: Sequence[int | None]) -> None:
        """Have vectors ring these."""
        self._device.set_irqs(index, start, eventfds)

    def unmask_irq(self, index: int) -> None:
        """Let INTx ring again."""
        self._device.unmask_irq(index)

    # The rest.

    def reset(self) -> None:
        """Function level reset, or what the kernel has instead."""
        self._device.call(Request.DEVICE_RESET)

    def reconnect(self) -> None:
        """A function of this machine does not come back by itself: TransportError."""
        raise TransportError(f"{self.name} has stopped answering")

    def filenos(self) -> tuple[int, ...]:
        """Nothing but interrupts."""
        return ()

    def serve(self) -> None:
        """Nothing to listen to."""

    def close(self) -> None:
        """Give the function back; the kernel resets it."""
        self._held.close()
