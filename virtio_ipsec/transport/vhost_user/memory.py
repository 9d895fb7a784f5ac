"""What a front-end shares by file descriptor: guest memory, the dirty log, the in-flight buffer."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace

from virtio_ipsec.errors import MemoryAccessError, TransportError
from virtio_ipsec.fastpath import native
from virtio_ipsec.fastpath.memory import SharedMemory
from virtio_ipsec.ring.memory import GuestMemory, Region
from virtio_ipsec.transport.rings import fence
from virtio_ipsec.transport.vhost_user.messages import MemoryRegion

#: Most regions of a guest.
MAX_REGIONS = 64
#: Most bytes in one of them: address space is shared with other ports.
_LARGEST = 1 << 42


class Unusable(TransportError):
    """What the front-end wants to share cannot be used."""


def map_shared(fd: int, size: int, offset: int) -> memoryview:
    """``size`` bytes from ``offset`` of a file, shared. The descriptor stays the caller's. Raises Unusable."""
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise Unusable("shared memory is no file")
        # Huge pages can be mapped whole only; what is mapped too much is not used.
        page = max(about.st_blksize, mmap.ALLOCATIONGRANULARITY)
        if not 0 < size <= _LARGEST or not 0 <= offset <= _LARGEST or offset + size > about.st_size:
            raise Unusable(f"{size:#x} bytes at {offset:#x} of a file of {about.st_size:#x}")
        begin = offset - offset % page
        end = min(-(-(offset + size) // page) * page, about.st_size)
        mapping = mmap.mmap(fd, end - begin, offset=begin)
    except OSError as error:
        raise Unusable(f"shared memory cannot be mapped: {os.strerror(error.errno or 0)}") from None
    except (ValueError, OverflowError) as error:
        raise Unusable(f"shared memory cannot be mapped: {error}") from None
    mapping.madvise(mmap.MADV_DONTDUMP)
    return memoryview(mapping)[offset - begin : offset - begin + size]


@dataclass(frozen=True, slots=True)
class _Mapped:
    """``added``: how often; it goes when it has been removed as often."""

    region: MemoryRegion
    view: memoryview
    file: tuple[int, int]
    added: int = 1


class MemoryTable:
    """The regions of one front-end. A table is replaced as a whole: what is wrong with a new one changes nothing."""

    def __init__(self, mapped: tuple[_Mapped, ...] = ()) -> None:
        self._mapped = mapped
        regions = [Region(each.region.guest_address, each.region.size, each.view) for each in mapped]
        kind = SharedMemory if native.available() else GuestMemory
        try:
            self.memory = kind(regions, fence) if regions else GuestMemory.anonymous(4096, (1 << 64) - 4096)
        except MemoryAccessError as error:
            raise Unusable(str(error)) from None

    @classmethod
    def of(cls, regions: Iterable[MemoryRegion], fds: Iterable[int]) -> MemoryTable:
        """A new table; the descriptors stay the caller's. Raises Unusable."""
        return cls(tuple(_map(region, fd) for region, fd in zip(regions, fds, strict=True)))

    def __len__(self) -> int:
        return len(self._mapped)

    def with_region(self, region: MemoryRegion, fd: int) -> MemoryTable:
        """The table with one region more. Raises Unusable.

        QEMU 7.2 adds every region once for each queue pair, and removes it as often: the same again is counted.
        """
        for each in self._mapped:
            if each.region == region and each.file == _file(fd):
                return self._with(each, added=each.added + 1)
        if len(self) == MAX_REGIONS:
            raise Unusable(f"more than {MAX_REGIONS} memory regions")
        return MemoryTable((*self._mapped, _map(region, fd)))

    def without_region(self, region: MemoryRegion) -> MemoryTable:
        """The table without the one that has these addresses and this size. Raises Unusable."""
        for each in self._mapped:
            if replace(each.region, mmap_offset=region.mmap_offset) == region:
                return self._with(each, added=each.added - 1)
        raise Unusable(f"no memory region at {region.guest_address:#x}")

    def _with(self, changed: _Mapped, added: int) -> MemoryTable:
        mapped = (replace(each, added=added) if each is changed else each for each in self._mapped)
        return MemoryTable(tuple(each for each in mapped if each.added))

    def guest_address(self, user: int) -> int:
        """Where the front-end's address lies in guest memory. Raises Unusable."""
        for each in self._mapped:
            if 0 <= user - each.region.user_address < each.region.size:
                return each.region.guest_address + user - each.region.user_address
        raise Unusable(f"user address {user:#x} is in no memory region")


def _map(region: MemoryRegion, fd: int) -> _Mapped:
    if region.guest_address + region.size > 1 << 64 or region.user_address + region.size > 1 << 64:
        raise Unusable(f"a memory region at {region.guest_address:#x} leaves the address space")
    return _Mapped(region, map_shared(fd, region.size, region.mmap_offset), _file(fd))


def _file(fd: int) -> tuple[int, int]:
    """Which file a descriptor stands for."""
    about = os.fstat(fd)
    return about.st_dev, about.st_ino
