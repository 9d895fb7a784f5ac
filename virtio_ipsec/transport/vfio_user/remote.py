"""Client memory that comes without a descriptor: every byte is asked for by DMA_READ or told by DMA_WRITE.

One thread reads and writes; the answers come in the control thread, which reads the socket. It may stop who waits for
one at any time (:meth:`DmaChannel.interrupt`), for instance because it is about to wait for that thread itself.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, cast

from virtio_ipsec.errors import MemoryAccessError, TransportError
from virtio_ipsec.ring.memory import WORD_SIZES, GuestMemory, Region
from virtio_ipsec.transport.mapping import memory_of
from virtio_ipsec.transport.payload import MessageError
from virtio_ipsec.transport.rings import fence
from virtio_ipsec.transport.vfio_user.connection import Message, command
from virtio_ipsec.transport.vfio_user.layouts import DMA_DATA, DMA_RANGE
from virtio_ipsec.transport.vfio_user.messages import Command
from virtio_ipsec.transport.vfio_user.payloads import MAX_TRANSFER, DmaAccess

#: Seconds that a client has to answer.
_PATIENCE = 5.0
#: What stands for bytes that cannot be had in place.
_ELSEWHERE = memoryview(b"")


class Interrupted(MemoryAccessError):
    """Somebody wants the reading thread; nothing is wrong."""


class DmaChannel:
    """Commands of the server. ``send``: how they leave, from any thread; ``most``: bytes that one may move."""

    def __init__(self, send: Callable[[Message], None], most: int) -> None:
        self._send = send
        self._most = max(1, min(most, MAX_TRANSFER))
        self._change = threading.Condition()
        self._number = 0
        self._wanted: int | None = None
        self._asked = DmaAccess(0, 0)
        self._answer: Message | None = None
        #: Numbers of questions whose answers nobody waits for any more.
        self._abandoned: set[int] = set()
        self._interrupted = False
        #: A write was answered with an error.
        self.failed = False

    # In the thread that reads and writes.

    def read(self, address: int, count: int) -> bytes:
        """Bytes of the client's memory. MemoryAccessError when there is no answer, Interrupted when somebody wants
        that."""
        return b"".join(self._read(at, size) for at, size in self._parts(address, count))

    def write(self, address: int, data: bytes) -> None:
        """Store them; as with any posted write, what comes of it shows later (:attr:`failed`)."""
        for at, size in self._parts(address, len(data)):
            piece = DmaAccess(at, size, data[at - address : at - address + size])
            self._say(command(self._next(), Command.DMA_WRITE, DMA_DATA.build(piece), no_reply=True))

    def _parts(self, address: int, count: int) -> Iterator[tuple[int, int]]:
        for at in range(address, address + count, self._most):
            yield at, min(self._most, address + count - at)

    def _next(self) -> int:
        self._number = self._number + 1 & 0xFFFF
        return self._number

    def _say(self, message: Message) -> None:
        try:
            self._send(message)
        except TransportError as error:
            raise MemoryAccessError(f"client memory cannot be reached: {error}") from None

    def _read(self, address: int, count: int) -> bytes:
        number = self._next()
        with self._change:
            if self._interrupted:
                raise Interrupted(f"{address:#x} is not read now")
            self._wanted, self._asked = number, DmaAccess(address, count)
            self._abandoned.discard(number)
        self._say(command(number, Command.DMA_READ, DMA_RANGE.build(self._asked)))
        with self._change:
            came = self._change.wait_for(lambda: self._answer is not None or self._interrupted, _PATIENCE)
            answer, self._answer, self._wanted = self._answer, None, None
            if answer is None:
                self._abandoned.add(number)
                if not came:
                    raise MemoryAccessError(f"the client does not answer for {address:#x}")
                raise Interrupted(f"{address:#x} is not read now")
        if answer.is_error:
            raise MemoryAccessError(f"the client has no {count} bytes at {address:#x}")
        return DMA_DATA.parse(answer.payload).data

    # In the control thread.

    def deliver(self, answer: Message) -> None:
        """An answer has come. MessageError for one to no question, or to another one."""
        if answer.command == Command.DMA_WRITE:
            self.failed |= answer.is_error
            return
        with self._change:
            if answer.command == Command.DMA_READ and answer.number in self._abandoned:
                self._abandoned.discard(answer.number)
                return
            if (
                answer.command != Command.DMA_READ
                or answer.number != self._wanted
                or self._answer is not None
            ):
                raise MessageError(f"an answer to no question: {answer.command}")
            if not answer.is_error and replace(DMA_DATA.parse(answer.payload), data=b"") != self._asked:
                raise MessageError(f"an answer to another question than {self._asked}")
            self._answer = answer
            self._change.notify_all()

    def interrupt(self, on: bool) -> None:
        """Whoever waits, or is about to, gets Interrupted, until it is off again."""
        with self._change:
            self._interrupted = on
            self._change.notify_all()


@dataclass(frozen=True, slots=True)
class Range:
    """Client memory; ``view``: its bytes, where they are shared. ``writable`` matters where they are not."""

    address: int
    size: int
    view: memoryview | None
    writable: bool = True

    @property
    def end(self) -> int:
        return self.address + self.size


class RemoteMemory(GuestMemory):
    """All that a client has mapped, shared or not, for rings in Python."""

    def __init__(self, ranges: Iterable[Range], channel: DmaChannel) -> None:
        self.fence = fence
        self.channel = channel
        self._ranges = sorted(ranges, key=lambda each: each.address)
        self._begins = [each.address for each in self._ranges]

    @property
    def regions(self) -> tuple[tuple[int, int], ...]:
        """(address, size) of each range, by address."""
        return tuple((each.address, each.size) for each in self._ranges)

    @cached_property
    def _shared(self) -> GuestMemory:
        """What is shared, of which the client may take away what is behind it: then no byte of a view can be touched
        from here, where that ends the process."""
        return memory_of(
            Region(each.address, each.size, each.view) for each in self._ranges if each.view is not None
        )

    def _parts(self, address: int, length: int) -> list[tuple[Range, int, int]]:
        """Each range that the bytes lie in: where in it they begin, and how many."""
        parts: list[tuple[Range, int, int]] = []
        stop = address + length
        while address < stop:
            index = bisect_right(self._begins, address) - 1
            if index < 0 or address >= self._ranges[index].end:
                raise MemoryAccessError(f"{address:#x} ({stop - address} bytes) is outside guest memory")
            found = self._ranges[index]
            upto = min(stop, found.end)
            parts.append((found, address - found.address, upto - address))
            address = upto
        return parts

    def is_shared(self, address: int) -> bool:
        """Whether no message is needed to reach this byte, for it is shared, or there is none."""
        try:
            return self._parts(address, 1)[0][0].view is not None
        except MemoryAccessError:
            return True

    def check(self, address: int, length: int) -> None:
        """Only the check."""
        if length < 0:
            raise MemoryAccessError(f"length {length} at {address:#x}")
        self._parts(address, length)

    def read(self, address: int, length: int) -> bytes:
        """A copy of ``length`` bytes."""
        self.check(address, length)
        return b"".join(
            self.channel.read(found.address + begin, size)
            if found.view is None
            else self._shared.read(found.address + begin, size)
            for found, begin, size in self._parts(address, length)
        )

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Stores ``data``, all of it or nothing."""
        parts = self._parts(address, len(data))
        if not all(found.writable for found, _, _ in parts):
            raise MemoryAccessError(f"{address:#x} ({len(data)} bytes) can only be read")
        at = 0
        for found, begin, size in parts:
            piece = bytes(data[at : at + size])
            if found.view is None:
                self.channel.write(found.address + begin, piece)
            else:
                self._shared.write(found.address + begin, piece)
            at += size

    def contiguous(self, address: int, length: int) -> memoryview | None:
        """Whether the bytes lie in one range: their place, or where they are not shared no place at all."""
        parts = self._parts(address, length)
        if len(parts) != 1:
            return None
        found, begin, size = parts[0]
        return _ELSEWHERE if found.view is None else found.view[begin : begin + size]

    def words(self, address: int, count: int, word: Literal["H", "I", "Q"]) -> memoryview:
        """The memory as words, each access to one of which is a message."""
        size = WORD_SIZES[word]
        if len(self._parts(address, count * size)) != 1:
            raise MemoryAccessError(f"{address:#x} ({count} words) must lie in one region")
        return cast(memoryview, _Words(self, address, size))


class _Words:
    """What a ring does with a view of its own memory."""

    def __init__(self, memory: RemoteMemory, address: int, size: int) -> None:
        self._memory = memory
        self._address = address
        self._size = size

    def __getitem__(self, index: int) -> int:
        return int.from_bytes(self._memory.read(self._address + index * self._size, self._size), "little")

    def __setitem__(self, index: int, value: int) -> None:
        self._memory.write(self._address + index * self._size, value.to_bytes(self._size, "little"))
