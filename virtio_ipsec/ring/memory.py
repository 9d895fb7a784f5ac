"""Guest memory as both sides of a ring see it: regions of guest-physical addresses, each access checked.

Words are accessed in the host's order, by loads and stores of the word's own size, so that another thread or
process never sees half an index; this is why a little-endian host is required (virtio v1.4: fields in
virtqueues are little-endian).
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from virtio_ipsec.errors import ConfigError, MemoryAccessError, VirtioIpsecError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ADDRESS_LIMIT = 1 << 64
WORD_SIZES = {"H": 2, "I": 4, "Q": 8}


class OutOfMemory(VirtioIpsecError):
    """The allocator's region has no free range of the wanted size."""


@dataclass(frozen=True, slots=True)
class Region:
    """``size`` bytes of guest-physical memory from ``address``, backed by the first bytes of ``buffer``."""

    address: int
    size: int
    buffer: WriteableBuffer = field(repr=False)


def no_fence() -> None:
    """Within one thread program order is enough."""


class GuestMemory:
    """Bounds-checked access to guest-physical addresses.

    A range may cross from one region into an adjacent one. Every method raises
    :class:`~virtio_ipsec.errors.MemoryAccessError` for a range that is not wholly inside the regions, and
    then nothing was read or written. Reads return copies. An empty range touches nothing and is always
    allowed.

    ``fence`` is called where the specification wants a barrier between a store and a later load (publishing
    an index, then reading the other side's suppression field). A transport that shares the memory with
    another thread or process passes one.
    """

    def __init__(self, regions: Iterable[Region], fence: Callable[[], None] = no_fence) -> None:
        if sys.byteorder != "little":
            raise ConfigError("ring memory needs a little-endian host")
        self.fence = fence
        spans: list[tuple[int, int, memoryview]] = []
        for region in sorted(regions, key=lambda r: r.address):
            view = memoryview(region.buffer).cast("B")
            if view.readonly or not 0 < region.size <= len(view):
                raise MemoryAccessError(f"{region} is not backed by that many writable bytes")
            end = region.address + region.size
            if region.address < 0 or end > ADDRESS_LIMIT:
                raise MemoryAccessError(f"{region} leaves the 64-bit address space")
            if spans and spans[-1][1] > region.address:
                raise MemoryAccessError(f"{region} overlaps another region")
            spans.append((region.address, end, view[: region.size]))
        if not spans:
            raise MemoryAccessError("guest memory has no region")
        self._spans = spans
        self._starts = [span[0] for span in spans]
        self._recent = spans[0]

    @classmethod
    def anonymous(cls, size: int, address: int = 0) -> GuestMemory:
        """One zeroed region of ``size`` bytes of our own."""
        return cls([Region(address, size, bytearray(size))])

    @property
    def regions(self) -> tuple[tuple[int, int], ...]:
        """(address, size) of each region, by address."""
        return tuple((start, end - start) for start, end, _ in self._spans)

    @property
    def views(self) -> tuple[tuple[int, memoryview], ...]:
        """(address, the bytes themselves) of each region, by address."""
        return tuple((start, view) for start, _, view in self._spans)

    def _pieces(self, address: int, length: int) -> list[memoryview]:
        pieces: list[memoryview] = []
        if length < 0:
            raise MemoryAccessError(f"length {length} at {address:#x}")
        stop = address + length
        while address < stop:
            index = bisect_right(self._starts, address) - 1
            if index < 0 or address >= self._spans[index][1]:
                raise MemoryAccessError(f"{address:#x} ({stop - address} bytes) is outside guest memory")
            start, end, view = self._recent = self._spans[index]
            upto = min(stop, end)
            pieces.append(view[address - start : upto - start])
            address = upto
        return pieces

    def check(self, address: int, length: int) -> None:
        """Only the check: :class:`MemoryAccessError` unless the whole range is inside."""
        start, end, _ = self._recent
        if not (start <= address and length >= 0 and address + length <= end):
            self._pieces(address, length)

    def read(self, address: int, length: int) -> bytes:
        """A copy of ``length`` bytes."""
        start, end, view = self._recent
        if start <= address and length >= 0 and address + length <= end:
            return view[address - start : address - start + length].tobytes()
        return b"".join(self._pieces(address, length))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Stores ``data``, all of it or nothing."""
        start, end, view = self._recent
        if start <= address and address + len(data) <= end:
            view[address - start : address - start + len(data)] = data
            return
        offset = 0
        for piece in self._pieces(address, len(data)):
            piece[:] = data[offset : offset + len(piece)]
            offset += len(piece)

    def contiguous(self, address: int, length: int) -> memoryview | None:
        """The bytes themselves, not a copy; None when the range is inside but crosses regions."""
        pieces = self._pieces(address, length)
        return pieces[0] if len(pieces) == 1 else None

    def words(self, address: int, count: int, word: Literal["H", "I", "Q"]) -> memoryview:
        """The memory itself as ``count`` words: ``word`` is "H" (16 bits), "I" (32) or "Q" (64).

        Checked here once; an access to an element is one load or store. The range must lie in one region.
        """
        view = self.contiguous(address, count * WORD_SIZES[word])
        if view is None:
            raise MemoryAccessError(f"{address:#x} ({count} words) must lie in one region")
        return view.cast(word)

    def u16(self, address: int) -> int:
        """The le16 at ``address``."""
        return int.from_bytes(self.read(address, 2), "little")

    def u32(self, address: int) -> int:
        """The le32 at ``address``."""
        return int.from_bytes(self.read(address, 4), "little")

    def u64(self, address: int) -> int:
        """The le64 at ``address``."""
        return int.from_bytes(self.read(address, 8), "little")

    def put_u16(self, address: int, value: int) -> None:
        """Stores a le16."""
        self.write(address, value.to_bytes(2, "little"))

    def put_u32(self, address: int, value: int) -> None:
        """Stores a le32."""
        self.write(address, value.to_bytes(4, "little"))

    def put_u64(self, address: int, value: int) -> None:
        """Stores a le64."""
        self.write(address, value.to_bytes(8, "little"))


class Allocator:
    """Hands out address ranges of ``[address, address + size)`` to a driver; first fit, free ranges merge.

    It never touches the memory: contents are what the last user left.
    """

    def __init__(self, address: int, size: int) -> None:
        self._free = [(address, size)]
        self._taken: dict[int, int] = {}

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Allocator:
        """Of several (address, size) ranges; what is handed out lies in one of them, if none touches another."""
        first, *others = sorted(ranges)
        made = cls(*first)
        made._free += others
        return made

    @property
    def available(self) -> int:
        """Free bytes, not necessarily in one range."""
        return sum(size for _, size in self._free)

    def alloc(self, size: int, align: int = 16) -> int:
        """The address of ``size`` bytes, a multiple of ``align`` (a power of two). Raises OutOfMemory."""
        if size <= 0 or align <= 0 or align & (align - 1):
            raise ConfigError(f"cannot allocate {size} bytes aligned to {align}")
        for index, (start, room) in enumerate(self._free):
            if room < size:
                continue
            address = -(-start // align) * align
            tail = start + room - (address + size)
            if tail >= 0:
                pieces = ((start, address - start), (address + size, tail))
                self._free[index : index + 1] = [piece for piece in pieces if piece[1]]
                self._taken[address] = size
                return address
        raise OutOfMemory(f"no free range of {size} bytes aligned to {align}")

    def free(self, address: int) -> None:
        """Gives back what ``alloc`` returned; anything else raises MemoryAccessError."""
        taken = self._taken.pop(address, None)
        if taken is None:
            raise MemoryAccessError(f"{address:#x} is not allocated")
        insort(self._free, (address, taken))
        index = max(bisect_left(self._free, (address, taken)) - 1, 0)
        while index + 1 < len(self._free):
            (start, size), (following, extra) = self._free[index], self._free[index + 1]
            if start + size == following:
                self._free[index : index + 2] = [(start, size + extra)]
            elif following > address:
                break
            else:
                index += 1
