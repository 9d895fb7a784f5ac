"""The memory regions of a front-end."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

from virtio_ipsec.ring.memory import Region
from virtio_ipsec.transport.mapping import MOST_SHARED, Unusable, map_shared, memory_of
from virtio_ipsec.transport.vhost_user.messages import MemoryRegion

#: Most regions of a guest.
MAX_REGIONS = 64

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
        self.memory = memory_of(
            Region(each.region.guest_address, each.region.size, each.view) for each in mapped
        )

    @classmethod
    def of(cls, regions: Iterable[MemoryRegion], fds: Iterable[int]) -> MemoryTable:
        """A new table; the descriptors stay the caller's. Raises Unusable."""
        regions = tuple(regions)
        _check_size(regions)
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
        _check_size((*(each.region for each in self._mapped), region))
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


def _check_size(regions: Iterable[MemoryRegion]) -> None:
    size = sum(region.size for region in regions)
    if size > MOST_SHARED:
        raise Unusable(f"{size:#x} bytes of memory")


def _map(region: MemoryRegion, fd: int) -> _Mapped:
    if region.guest_address + region.size > 1 << 64 or region.user_address + region.size > 1 << 64:
        raise Unusable(f"a memory region at {region.guest_address:#x} leaves the address space")
    return _Mapped(region, map_shared(fd, region.size, region.mmap_offset), _file(fd))


def _file(fd: int) -> tuple[int, int]:
    """Which file a descriptor stands for."""
    about = os.fstat(fd)
    return about.st_dev, about.st_ino
