"""The memory that a client lets its function reach: what DMA_MAP has said and DMA_UNMAP has not taken back."""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from virtio_ipsec.ring.memory import ADDRESS_LIMIT, GuestMemory, Region
from virtio_ipsec.transport.arena import ARENA_SIZE, Arena
from virtio_ipsec.transport.mapping import Unusable, map_shared, memory_of
from virtio_ipsec.transport.vfio_user.messages import Refused
from virtio_ipsec.transport.vfio_user.payloads import DmaFlag, DmaMap, DmaUnmap, UnmapFlag
from virtio_ipsec.transport.vfio_user.remote import DmaChannel, Range, RemoteMemory

#: Most mappings of a client. An IOMMU has each page mapped: some 540 for each queue pair of 1024 entries of Linux's
#: driver, and what is being sent.
MAX_MAPS: Final = 8192
#: Each costs the process one or two of its own, of which Linux grants 65,530: so many are there for all clients.
_ALL_MAPS: Final = 30_000
#: Bytes of memory that may only be read, of all mappings, that are put within reach: such memory is mapped so that
#: stores stay here (as those into a ROM do nothing), and each page stored into costs a page. Firmware and option ROMs
#: are small; behind an IOMMU it is what is being sent, 64 MiB for each queue pair of 1024 entries of 64 KiB.
_MOST_READ_ONLY: Final = 1 << 30
#: Bytes of all mappings of a client that come with a descriptor and lie in no arena. A file takes no memory for its
#: size: without a limit one client, of 65 that a process may have, takes the address space of all.
_MOST_DIRECT: Final = 1 << 40
#: Arenas of one client, for what it maps in small pieces: their address space is shared with other ports.
_MAX_ARENAS: Final = 16
#: A plain number: the complement of a flag has no bits that have no name.
_ANY_ACCESS: Final = int(DmaFlag.READ | DmaFlag.WRITE)


def share_of_maps(clients: int) -> int:
    """Mappings that each of so many clients of one process may have."""
    return min(MAX_MAPS, _ALL_MAPS // clients)


@dataclass(frozen=True, slots=True)
class _Mapped:
    """One range; without ``view`` its bytes are not shared. ``arena``: what it lies in, if need be beside others."""

    asked: DmaMap
    view: memoryview | None
    arena: Arena | None = None

    @property
    def begin(self) -> int:
        return self.asked.address

    @property
    def end(self) -> int:
        return self.asked.address + self.asked.size

    @property
    def direct(self) -> int:
        """Bytes of address space of its own."""
        return 0 if self.view is None or self.arena is not None else self.asked.size

    @property
    def read_only(self) -> int:
        """Bytes within reach that may only be read."""
        return 0 if self.view is None or self.asked.flags & DmaFlag.WRITE else self.asked.size


@dataclass(frozen=True, slots=True)
class _Run:
    """Bytes within reach without a gap, in the client's addresses and in ours: a mapping, or neighbours in an arena."""

    begin: int
    end: int
    view: memoryview
    arena: Arena | None = None

    @classmethod
    def within(cls, arena: Arena, begin: int, end: int) -> _Run:
        return cls(begin, end, arena.view(begin, end - begin), arena)


_Runs = tuple[_Run, ...]


class DmaTable:
    """The mappings of one client, ``most`` of them. A table is replaced as a whole: what is refused changes nothing."""

    def __init__(self, most: int = MAX_MAPS) -> None:
        self._most = most
        #: By address.
        self._mapped: tuple[_Mapped, ...] = ()
        self._runs: _Runs = ()
        self._read_only = 0
        #: By address; those of the tables before this one too.
        self._arenas: dict[int, Arena] = {}

    def _next(self, mapped: tuple[_Mapped, ...], runs: _Runs, read_only: int) -> DmaTable:
        made = DmaTable(self._most)
        made._mapped, made._runs, made._read_only, made._arenas = mapped, runs, read_only, self._arenas
        return made

    def __len__(self) -> int:
        return len(self._mapped)

    @property
    def memory(self) -> GuestMemory | None:
        """What is shared; None: nothing. Made anew each time."""
        regions = [Region(run.begin, run.end - run.begin, run.view) for run in self._runs]
        return memory_of(regions) if regions else None

    def remote(self, channel: DmaChannel) -> RemoteMemory | None:
        """All of it, what is not shared by messages; None when all of it is shared."""
        if all(each.view is not None or not each.asked.flags for each in self._mapped):
            return None
        return RemoteMemory(
            (
                Range(each.begin, each.asked.size, each.view, bool(each.asked.flags & DmaFlag.WRITE))
                for each in self._mapped
                if each.asked.flags
            ),
            channel,
        )

    def with_map(self, asked: DmaMap, fd: int | None) -> DmaTable:
        """One range more; the descriptor stays the caller's. Raises Refused."""
        if not asked.size or asked.address + asked.size > ADDRESS_LIMIT or asked.flags & ~_ANY_ACCESS:
            raise Refused(errno.EINVAL, f"{asked}")
        place = self._place(asked.address)
        if any(
            each.begin < asked.address + asked.size and asked.address < each.end
            for each in self._mapped[max(place - 1, 0) : place + 1]
        ):
            raise Refused(errno.EEXIST, f"{asked.address:#x} ({asked.size:#x} bytes) is mapped already")
        if len(self) == self._most:
            raise Refused(errno.ENOSPC, f"more than {self._most} DMA mappings")
        try:
            made = self._made(asked, fd)
        except Unusable as error:
            raise Refused(errno.EINVAL, str(error)) from None
        mapped = (*self._mapped[:place], made, *self._mapped[place:])
        runs = self._runs
        if made.view is not None:
            runs = _joined(runs, _Run(made.begin, made.end, made.view, made.arena))
        return self._next(mapped, runs, self._read_only + made.read_only)

    def without(self, asked: DmaUnmap) -> DmaTable:
        """One range less, or all of them. Raises Refused."""
        if asked.flags not in (0, UnmapFlag.ALL):
            raise Refused(errno.EOPNOTSUPP, f"DMA_UNMAP with flags {asked.flags:#x}")
        if asked.flags & UnmapFlag.ALL:
            if asked.address or asked.size:
                raise Refused(errno.EINVAL, "DMA_UNMAP of all that names a range")
            return DmaTable(self._most)
        place = self._place(asked.address)
        found = self._mapped[place] if place < len(self) else None
        if found is None or (found.begin, found.asked.size) != (asked.address, asked.size):
            raise Refused(errno.ENOENT, f"{asked.address:#x} ({asked.size:#x} bytes) is no DMA mapping")
        mapped = (*self._mapped[:place], *self._mapped[place + 1 :])
        runs = self._runs if found.view is None else _parted(self._runs, found.begin, found.end)
        return self._next(mapped, runs, self._read_only - found.read_only)

    def let_go(self, asked: DmaUnmap) -> None:
        """What :meth:`without` leaves out is not mapped either; when nobody works in it any more."""
        gone = self._mapped
        if not asked.flags & UnmapFlag.ALL:
            place = self._place(asked.address)
            gone = self._mapped[place : place + 1]
        for each in gone:
            if each.arena is not None:
                each.arena.take(each.begin, each.asked.size)

    def _place(self, address: int) -> int:
        """Of the first range that does not begin below the address."""
        return bisect_left(self._mapped, address, key=lambda each: each.begin)

    def _made(self, asked: DmaMap, fd: int | None) -> _Mapped:
        if fd is None or not asked.flags:
            return _Mapped(asked, None)
        copied = not asked.flags & DmaFlag.WRITE
        if copied and self._read_only + asked.size > _MOST_READ_ONLY:
            return _Mapped(asked, None)
        address, size = asked.address, asked.size
        arena = self._arena(address) if Arena.suits(fd, address, size, asked.offset) else None
        if arena is None:
            if sum(each.direct for each in self._mapped) + size > _MOST_DIRECT:
                raise Refused(errno.ENOSPC, f"more than {_MOST_DIRECT:#x} bytes of memory")
            return _Mapped(asked, map_shared(fd, size, asked.offset, copied=copied))
        arena.put(fd, address, size, asked.offset, copied=copied)
        return _Mapped(asked, arena.view(address, size), arena)

    def _arena(self, address: int) -> Arena | None:
        """The one of this address; None when there are so many, or there is no room for one."""
        begin = address - address % ARENA_SIZE
        if begin not in self._arenas and len(self._arenas) < _MAX_ARENAS:
            with suppress(Unusable):
                self._arenas[begin] = Arena(begin)
        return self._arenas.get(begin)


def _joined(runs: _Runs, made: _Run) -> _Runs:
    """One more, which is one with its neighbours where they are neighbours in this process too."""
    first = last = bisect_left(runs, made.begin, key=lambda each: each.begin)
    begin, end, arena = made.begin, made.end, made.arena
    if arena is not None:
        if first and runs[first - 1].arena is arena and runs[first - 1].end == begin:
            first -= 1
            begin = runs[first].begin
        if last < len(runs) and runs[last].arena is arena and runs[last].begin == end:
            end = runs[last].end
            last += 1
        made = _Run.within(arena, begin, end)
    return (*runs[:first], made, *runs[last:])


def _parted(runs: _Runs, begin: int, end: int) -> _Runs:
    """Without these bytes, which lie in one of them."""
    at = bisect_right(runs, begin, key=lambda each: each.begin) - 1
    run = runs[at]
    rest: _Runs = ()
    if run.arena is not None:
        parts = ((run.begin, begin), (end, run.end))
        rest = tuple(_Run.within(run.arena, *part) for part in parts if part[0] < part[1])
    return (*runs[:at], *rest, *runs[at + 1 :])
