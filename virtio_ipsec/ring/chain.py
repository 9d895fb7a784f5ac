"""Descriptor chains and the places of ring parts: what both ring formats share.

Policy on zero length: the text neither allows nor forbids a descriptor of length 0 ("zero or more elements",
split-ring and packed-ring, Placing Buffers). No driver needs one and no byte can be moved through it, so a
chain that holds one is refused, as QEMU does, on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from virtio_ipsec.errors import MemoryAccessError
from virtio_ipsec.ring.faults import ChainError, Fault, LayoutError
from virtio_ipsec.ring.memory import GuestMemory
from virtio_ipsec.wire.quick import quick_init

#: Bytes of one descriptor, in a ring or in an indirect table.
DESCRIPTOR_SIZE = 16
#: virtio v1.4 2.7, 2.8: the largest queue size of both formats.
MAX_QUEUE_SIZE = 32768
#: virtio v1.4 2.7.5: a chain holds at most 2^32 bytes. Applied to both formats.
MAX_CHAIN_BYTES = 1 << 32
#: What the 32-bit length of a descriptor or a used entry can say.
MAX_LENGTH = 0xFFFFFFFF

F_NEXT = 1
F_WRITE = 2
F_INDIRECT = 4


@quick_init
@dataclass(frozen=True, slots=True)
class Segment:
    """``length`` bytes of guest memory from ``addr``."""

    addr: int
    length: int


def _total(segments: Sequence[Segment]) -> int:
    # Most parts are one segment.
    return segments[0].length if len(segments) == 1 else sum([segment.length for segment in segments])


@quick_init
@dataclass(frozen=True, slots=True)
class Chain:
    """One buffer that the driver made available, its addresses already checked.

    ``head`` is what a used entry names: the index of the first descriptor (split) or the buffer id (packed).
    """

    head: int
    readable: tuple[Segment, ...]
    writable: tuple[Segment, ...]

    @property
    def readable_len(self) -> int:
        """Bytes of the device-readable part."""
        return _total(self.readable)

    @property
    def writable_len(self) -> int:
        """Bytes of the device-writable part."""
        return _total(self.writable)

    def read(self, memory: GuestMemory, limit: int | None = None) -> bytes:
        """A copy of the device-readable bytes, at most ``limit`` of them.

        Without a limit a guest decides how much is copied (up to 2^32 bytes): look at ``readable_len`` first.
        """
        left = MAX_CHAIN_BYTES if limit is None else limit
        if len(self.readable) == 1:
            (only,) = self.readable
            return memory.read(only.addr, min(only.length, left))
        pieces = []
        for segment in self.readable:
            data = memory.read(segment.addr, min(segment.length, left))
            pieces.append(data)
            left -= len(data)
            if not left:
                break
        return b"".join(pieces)

    def write(self, memory: GuestMemory, data: bytes) -> int:
        """Spreads ``data`` over the device-writable part; returns how many bytes found room."""
        done = 0
        for segment in self.writable:
            if done == len(data):
                break
            piece = data[done : done + segment.length]
            memory.write(segment.addr, piece)
            done += len(piece)
        return done


@dataclass(frozen=True, slots=True)
class QueueLayout:
    """Queue size and the guest addresses of the descriptor, driver and device areas.

    Split: descriptor table, available ring, used ring. Packed: descriptor ring, driver event suppression,
    device event suppression.
    """

    size: int
    desc: int
    driver: int
    device: int


def check_layout(
    memory: GuestMemory, layout: QueueLayout, parts: Sequence[tuple[str, int, int, int]]
) -> None:
    """Raises LayoutError unless each (name, address, alignment, bytes) is aligned and in one region."""
    if not 0 < layout.size <= MAX_QUEUE_SIZE:
        raise LayoutError(Fault.SIZE, f"queue size {layout.size}")
    for name, address, alignment, length in parts:
        if address % alignment:
            raise LayoutError(Fault.ALIGNMENT, f"{name} at {address:#x} is not a multiple of {alignment}")
        try:
            inside = memory.contiguous(address, length) is not None
        except MemoryAccessError as error:
            raise LayoutError(Fault.PLACEMENT, f"{name}: {error}") from error
        if not inside:
            raise LayoutError(Fault.PLACEMENT, f"{name} at {address:#x} crosses from one region into another")


def checked_chain(memory: GuestMemory, head: int, elements: Sequence[tuple[int, int, int]]) -> Chain:
    """The chain of (address, length, writable) elements in their order.

    Refuses what the common rules of both formats forbid: ChainError.
    """
    readable: list[Segment] = []
    writable: list[Segment] = []
    total = 0
    for address, length, is_writable in elements:
        if not length:
            raise ChainError(Fault.ZERO_LENGTH, f"descriptor at {address:#x} has length 0")
        total += length
        if total > MAX_CHAIN_BYTES:
            raise ChainError(Fault.TOO_LONG, "chain holds more than 2^32 bytes")
        try:
            memory.check(address, length)
        except MemoryAccessError as error:
            raise ChainError(Fault.ADDRESS, str(error)) from error
        if is_writable:
            writable.append(Segment(address, length))
        elif writable:
            raise ChainError(Fault.ORDER, "device-readable descriptor after a device-writable one")
        else:
            readable.append(Segment(address, length))
    return Chain(head, tuple(readable), tuple(writable))


def indirect_table(memory: GuestMemory, address: int, length: int, limit: int) -> tuple[memoryview, int]:
    """The table that an indirect descriptor refers to as 64-bit words, and its number of entries.

    At most ``limit`` entries are looked at. A table inside one region is used in place, for each of its
    entries is read once; one that crosses regions is copied.
    """
    if length == 0 or length % DESCRIPTOR_SIZE:
        raise ChainError(Fault.INDIRECT_LENGTH, f"indirect table of {length} bytes")
    entries = min(length // DESCRIPTOR_SIZE, limit)
    try:
        memory.check(address, length)
        if memory.contiguous(address, entries * DESCRIPTOR_SIZE) is None:
            return memoryview(memory.read(address, entries * DESCRIPTOR_SIZE)).cast("Q"), entries
        return memory.words(address, 2 * entries, "Q"), entries
    except MemoryAccessError as error:
        raise ChainError(Fault.ADDRESS, f"indirect table: {error}") from error
