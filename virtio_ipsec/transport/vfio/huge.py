"""Memory for DMA without an IOMMU: huge pages, which the kernel does not move, at their physical addresses.

A huge page is in one piece for the device too; a ring or a buffer never crosses from one into the next.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from virtio_ipsec.errors import TransportError
from virtio_ipsec.ring.memory import Allocator, GuestMemory, Region
from virtio_ipsec.transport.vfio.addresses import address_of
from virtio_ipsec.transport.vhost_user.shared import HUGE_PAGE, full_fence

#: MAP_HUGETLB, and MAP_HUGE_2MB (asm-generic/hugetlb_encode.h).
_MAP_HUGE: Final = 0x40000 | 21 << 26
#: Of an entry of /proc/PID/pagemap: the page is there; the number of its frame.
_PRESENT: Final = 1 << 63
_FRAME: Final = (1 << 55) - 1
#: Left free at the end of each huge page, so that no free range goes on in the next one.
_GAP: Final = 64


def take_pages(pages: int) -> mmap.mmap:
    """Huge pages, zeroed and present; shared, so that a fork does not have them copied. TransportError."""
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE | _MAP_HUGE
    try:
        return mmap.mmap(-1, pages * HUGE_PAGE, flags=flags)
    except OSError as error:
        raise TransportError(
            f"{pages} huge pages of 2 MiB: {os.strerror(error.errno or 0)}; "
            f"try: echo {pages} > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
        ) from None


class HugeMemory:
    """At least ``size`` zeroed bytes. TransportError when there are too few huge pages, or when the kernel does not
    tell where they are."""

    def __init__(
        self,
        size: int,
        physical: Callable[[int], int],
        take: Callable[[int], mmap.mmap] = take_pages,
    ) -> None:
        pages = -(-size // HUGE_PAGE)
        self._map = take(pages)
        view, begin = memoryview(self._map), address_of(self._map)
        offsets = range(0, pages * HUGE_PAGE, HUGE_PAGE)
        where = [(physical(begin + offset), offset) for offset in offsets]
        self.memory = GuestMemory(
            [Region(address, HUGE_PAGE, view[offset : offset + HUGE_PAGE]) for address, offset in where],
            full_fence,
        )
        self.allocator = Allocator.of([(address, HUGE_PAGE - _GAP) for address, _ in where])

    def close(self) -> None:
        """The pages go when nothing refers to them any more."""


def physical_address(pagemap: Path) -> Callable[[int], int]:
    """What looks addresses of this process up in its ``pagemap``."""

    def look_up(address: int) -> int:
        page = mmap.PAGESIZE
        try:
            with pagemap.open("rb") as file:
                file.seek(address // page * 8)
                (entry,) = struct.unpack("=Q", file.read(8))
        except (OSError, struct.error):
            entry = 0
        if not entry & _PRESENT or not entry & _FRAME:
            raise TransportError("the kernel does not tell physical addresses: CAP_SYS_ADMIN is needed")
        return int(entry & _FRAME) * page + address % page

    return look_up
