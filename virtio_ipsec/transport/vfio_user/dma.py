"""The memory that a client lets its function reach: what DMA_MAP has said and DMA_UNMAP has not taken back."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

from virtio_ipsec.ring.memory import ADDRESS_LIMIT, GuestMemory, Region
from virtio_ipsec.transport.mapping import Unusable, map_shared, memory_of
from virtio_ipsec.transport.vfio_user.messages import Refused
from virtio_ipsec.transport.vfio_user.payloads import DmaFlag, DmaMap, DmaUnmap, UnmapFlag
from virtio_ipsec.transport.vfio_user.remote import DmaChannel, Range, RemoteMemory

#: Most mappings of a client. Each costs the process one of its own, of which Linux grants 65,530.
MAX_MAPS: Final = 1024
#: Bytes of memory that may only be read, of all mappings, that are put within reach: such memory is mapped so that
#: stores stay here (as those into a ROM do nothing), and each page stored into costs a page. What guests have of it
#: (firmware, option ROMs) is small.
_MOST_READ_ONLY: Final = 1 << 26
#: A plain number: the complement of a flag has no bits that have no name.
_ANY_ACCESS: Final = int(DmaFlag.READ | DmaFlag.WRITE)


@dataclass(frozen=True, slots=True)
class _Mapped:
    """One range; without ``view`` its bytes are not shared."""

    asked: DmaMap
    view: memoryview | None

    @property
    def end(self) -> int:
        return self.asked.address + self.asked.size


class DmaTable:
    """The mappings of one client. A table is replaced as a whole: what is refused changes nothing."""

    def __init__(self, mapped: tuple[_Mapped, ...] = ()) -> None:
        self._mapped = mapped

    def __len__(self) -> int:
        return len(self._mapped)

    @property
    def memory(self) -> GuestMemory | None:
        """What is shared; None: nothing. Made anew each time."""
        regions = [
            Region(each.asked.address, each.asked.size, each.view)
            for each in self._mapped
            if each.view is not None
        ]
        return memory_of(regions) if regions else None

    def remote(self, channel: DmaChannel) -> RemoteMemory | None:
        """All of it, what is not shared by messages; None when all of it is shared."""
        if all(each.view is not None or not each.asked.flags for each in self._mapped):
            return None
        return RemoteMemory(
            (
                Range(each.asked.address, each.asked.size, each.view, bool(each.asked.flags & DmaFlag.WRITE))
                for each in self._mapped
                if each.asked.flags
            ),
            channel,
        )

    def with_map(self, asked: DmaMap, fd: int | None) -> DmaTable:
        """One range more; the descriptor stays the caller's. Raises Refused."""
        if not asked.size or asked.address + asked.size > ADDRESS_LIMIT or asked.flags & ~_ANY_ACCESS:
            raise Refused(errno.EINVAL, f"{asked}")
        if any(
            each.asked.address < asked.address + asked.size and asked.address < each.end
            for each in self._mapped
        ):
            raise Refused(errno.EEXIST, f"{asked.address:#x} ({asked.size:#x} bytes) is mapped already")
        if len(self) == MAX_MAPS:
            raise Refused(errno.ENOSPC, f"more than {MAX_MAPS} DMA mappings")
        try:
            return DmaTable((*self._mapped, _Mapped(asked, self._view(asked, fd))))
        except Unusable as error:
            raise Refused(errno.EINVAL, str(error)) from None

    def without(self, asked: DmaUnmap) -> DmaTable:
        """One range less, or all of them. Raises Refused."""
        if asked.flags not in (0, UnmapFlag.ALL):
            raise Refused(errno.EOPNOTSUPP, f"DMA_UNMAP with flags {asked.flags:#x}")
        if asked.flags & UnmapFlag.ALL:
            if asked.address or asked.size:
                raise Refused(errno.EINVAL, "DMA_UNMAP of all that names a range")
            return DmaTable()
        rest = tuple(
            each
            for each in self._mapped
            if (each.asked.address, each.asked.size) != (asked.address, asked.size)
        )
        if len(rest) == len(self):
            raise Refused(errno.ENOENT, f"{asked.address:#x} ({asked.size:#x} bytes) is no DMA mapping")
        return DmaTable(rest)

    def _view(self, asked: DmaMap, fd: int | None) -> memoryview | None:
        if fd is None or not asked.flags:
            return None
        read_only = not asked.flags & DmaFlag.WRITE
        if read_only and self._read_only + asked.size > _MOST_READ_ONLY:
            return None
        return map_shared(fd, asked.size, asked.offset, copied=read_only)

    @property
    def _read_only(self) -> int:
        """Bytes within reach that may only be read."""
        views = (each.view for each in self._mapped if not each.asked.flags & DmaFlag.WRITE)
        return sum(len(view) for view in views if view is not None)
