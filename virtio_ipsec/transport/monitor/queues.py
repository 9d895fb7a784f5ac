"""Virtqueues of a device with somebody who looks on: reads the driver's part of the ring, and changes nothing.

What the device does goes through classes of its own queues that tell a :class:`Watch`; what the driver does is found
by looking at the ring's memory, at each chance: a notification, a buffer taken, the end of the queue.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from virtio_ipsec.errors import MemoryAccessError, RingError
from virtio_ipsec.fastpath.rings import FastDeviceQueue
from virtio_ipsec.ring.base import DeviceQueue
from virtio_ipsec.ring.chain import DESCRIPTOR_SIZE, F_INDIRECT, F_NEXT, Chain, QueueLayout
from virtio_ipsec.ring.memory import GuestMemory
from virtio_ipsec.ring.packed import F_AVAIL, F_USED, PackedDeviceQueue
from virtio_ipsec.ring.split import SplitDeviceQueue
from virtio_ipsec.transport.monitor.events import (
    Altered,
    Broken,
    Descriptor,
    Descriptors,
    Event,
    Exposed,
    Recorder,
    Returned,
    Taken,
    Withdrawn,
    answer_without_secrets,
    without_secrets,
)
from virtio_ipsec.wire.numbers import Feature, has

_ENTRY = struct.Struct("<QIHH")
_MARKS = F_AVAIL | F_USED
#: Octets of one buffer that are kept: the longest packet with its header, and any command with room to spare.
_KEPT = 1 << 17
#: Entries of an indirect table that are looked at.
_MOST_ENTRIES = 1024


@dataclass(frozen=True, slots=True)
class Shown:
    """A buffer made available. ``slot``: index in the available ring, or position in a packed one."""

    place: int
    slot: int
    head: int
    descriptors: Descriptors


class _Reader:
    """How one ring format is read."""

    def __init__(self, memory: GuestMemory, layout: QueueLayout) -> None:
        self.memory = memory
        self._layout = layout

    def _entry(self, address: int, *, nested: bool = False) -> tuple[Descriptor, int]:
        """A descriptor and its last field: ``next`` (split) or the flags (packed)."""
        where, length, third, fourth = _ENTRY.unpack(self.memory.read(address, DESCRIPTOR_SIZE))
        return Descriptor(where, length, third, nested), fourth

    def _table(self, address: int, length: int) -> list[tuple[Descriptor, int]]:
        count = min(length // DESCRIPTOR_SIZE, _MOST_ENTRIES)
        return [self._entry(address + at * DESCRIPTOR_SIZE, nested=True) for at in range(count)]


class SplitReader(_Reader):
    """A split ring. Slots are available indices."""

    def first(self, state: int) -> int:
        """The slot that a device begins at."""
        return state & 0xFFFF

    def fresh(self, slot: int) -> tuple[int, int]:
        """How many buffers are available from ``slot`` on, and the available index."""
        index = self.memory.u16(self._layout.driver + 2)
        return (index - slot) & 0xFFFF, index

    def next(self, slot: int, descriptors: Descriptors) -> int:
        """The slot behind."""
        return (slot + 1) & 0xFFFF

    def is_there(self, slot: int) -> bool:
        """Withdrawal shows in the available index."""
        return True

    def read(self, slot: int) -> tuple[int, Descriptors]:
        """Head and descriptors of the buffer at ``slot``."""
        head = self.memory.u16(self._layout.driver + 4 + 2 * (slot % self._layout.size))
        found: list[Descriptor] = []
        index = head
        while index < self._layout.size and len(found) <= self._layout.size:
            entry, following = self._entry(self._layout.desc + index * DESCRIPTOR_SIZE)
            found.append(entry)
            if entry.flags & F_INDIRECT:
                found += self._chain(self._table(entry.address, entry.length))
            if not entry.flags & F_NEXT:
                break
            index = following
        return head, tuple(found)

    @staticmethod
    def _chain(table: list[tuple[Descriptor, int]]) -> list[Descriptor]:
        """The entries of an indirect table in the order of their links."""
        found: list[Descriptor] = []
        index = 0
        while index < len(table) and len(found) < len(table):
            entry, following = table[index]
            found.append(entry)
            if not entry.flags & F_NEXT:
                break
            index = following
        return found


class PackedReader(_Reader):
    """A packed ring. Slots count descriptors over two rounds; the first one has wrap counter 1."""

    def first(self, state: int) -> int:
        word = state & 0xFFFF
        return word & 0x7FFF if word >> 15 else (word & 0x7FFF) + self._layout.size

    def fresh(self, slot: int) -> tuple[int, int]:
        return int(self.is_there(slot)), slot

    def next(self, slot: int, descriptors: Descriptors) -> int:
        steps = sum(not each.nested for each in descriptors)
        return (slot + max(steps, 1)) % (2 * self._layout.size)

    def is_there(self, slot: int) -> bool:
        """Whether the descriptor there is marked available in this round."""
        wanted = F_AVAIL if slot < self._layout.size else F_USED
        return self._flags(slot) & _MARKS == wanted

    def _flags(self, slot: int) -> int:
        at = self._layout.desc + (slot % self._layout.size) * DESCRIPTOR_SIZE
        return self.memory.u16(at + 14)

    def read(self, slot: int) -> tuple[int, Descriptors]:
        found: list[Descriptor] = []
        head = 0
        for step in range(self._layout.size):
            at = self._layout.desc + ((slot + step) % self._layout.size) * DESCRIPTOR_SIZE
            entry, flags = self._entry(at)
            head = entry.flags  # the third field is the buffer id here
            found.append(replace(entry, flags=flags & ~_MARKS))
            if flags & F_INDIRECT:
                table = self._table(entry.address, entry.length)
                found += [replace(each, flags=inner & ~_MARKS) for each, inner in table]
            if not flags & F_NEXT:
                break
        return head, tuple(found)


class Watch:
    """Who looks on at one queue. ``is_admin``: its buffers are administration commands, which may hold keys.

    ``look_around`` looks at the other queues: what was made available there before a command is seen before it.
    """

    def __init__(
        self,
        recorder: Recorder,
        index: int,
        memory: GuestMemory,
        queue: DeviceQueue,
        *,
        features: int,
        is_admin: bool,
        look_around: Callable[[], None] = lambda: None,
    ) -> None:
        kind = PackedReader if has(features, Feature.F_RING_PACKED) else SplitReader
        self._recorder = recorder
        self._index = index
        self._memory = memory
        self._size = queue.layout.size
        self._reader: SplitReader | PackedReader = kind(memory, queue.layout)
        self._slot = self._reader.first(queue.state())
        self._is_admin = is_admin
        self._look_around = look_around
        self._place = 0
        #: Available and not taken, oldest first.
        self._waiting: deque[Shown] = deque()
        #: Taken and not used, by head; with what was read.
        self._held: dict[int, tuple[Shown, bytes]] = {}
        #: Nothing in the ring makes sense any more.
        self._lost = False

    def _note(self, event: Event, octets: int = 0) -> None:
        if self._is_admin:
            self._recorder.note(event, octets)
        else:
            self._recorder.note_packet(event, octets)

    def move(self, memory: GuestMemory) -> None:
        """The queue goes on in this memory."""
        self._memory = self._reader.memory = memory

    def look(self) -> None:
        """See what the driver has done to the ring."""
        with self._recorder.lock:
            try:
                self._look()
            except MemoryAccessError:
                self._lost = True

    def _look(self) -> None:
        if self._lost:
            return
        for at, shown in enumerate(self._waiting):
            if not self._reader.is_there(shown.slot):
                self._recorder.note(Withdrawn(self._index, shown.place, shown.place))
                self._lost = True
                return
            self._waiting[at] = self._compared(shown)
        while True:
            count, index = self._reader.fresh(self._slot)
            if not count:
                return
            if count > self._size:
                self._recorder.note(Withdrawn(self._index, self._slot, index))
                self._lost = True
                return
            head, descriptors = self._reader.read(self._slot)
            shown = Shown(self._place, self._slot, head, descriptors)
            self._waiting.append(shown)
            self._note(Exposed(self._index, self._place, head, descriptors))
            self._place += 1
            self._slot = self._reader.next(self._slot, descriptors)
            if len(self._waiting) > self._size:
                self._lost = True
                return

    def _compared(self, shown: Shown) -> Shown:
        """``shown`` as it is now; that it is another one is noted."""
        now = self._reader.read(shown.slot)
        if now == (shown.head, shown.descriptors):
            return shown
        self._recorder.note(Altered(self._index, shown.head, shown.descriptors, now[1]))
        return replace(shown, head=now[0], descriptors=now[1])

    # What the device's queue does.

    def pop(self, pop: Callable[[], Chain | None]) -> Chain | None:
        """``pop`` of the queue."""
        with self._recorder.lock:
            if self._is_admin:
                self._look_around()
            self.look()
            try:
                chain = pop()
            except RingError as error:
                found = self._waiting[0].descriptors if self._waiting else ()
                kind = getattr(error, "kind", None)
                self._recorder.note(Broken(self._index, kind.value if kind else str(error), found))
                raise
            if chain is not None:
                self._took(chain)
            return chain

    def _took(self, chain: Chain) -> None:
        if not self._waiting:
            self.look()
        shown = self._waiting.popleft() if self._waiting else Shown(self._place, 0, chain.head, ())
        data = chain.read(self._memory, _KEPT) if chain.readable else b""
        self._held[chain.head] = shown, data
        if chain.readable:
            if self._is_admin:
                data = without_secrets(data, self._recorder.dialect)
            taken = Taken(self._index, shown.place, chain.head, shown.descriptors, data, chain.writable_len)
            self._note(taken, len(data))

    def unpop(self, chain: Chain) -> None:
        """After ``unpop`` of the queue."""
        with self._recorder.lock:
            shown, _ = self._held.pop(chain.head)
            self._waiting.appendleft(shown)

    def push(self, used: Sequence[tuple[Chain, int]]) -> None:
        """Before buffers are marked used: from then on they are the driver's."""
        with self._recorder.lock:
            for chain, written in used:
                # In a packed ring a used descriptor may lie where an older buffer's descriptors were.
                is_oldest = next(iter(self._held), None) == chain.head
                held = self._held.pop(chain.head, None)
                if held is None:
                    continue
                shown, sent = held
                if shown.descriptors and is_oldest and not self._lost:
                    try:
                        self._compared(shown)
                    except MemoryAccessError:
                        self._lost = True
                data = _written(chain, self._memory, min(written, _KEPT))
                if self._is_admin:
                    data = answer_without_secrets(sent, data, self._recorder.dialect)
                self._note(Returned(self._index, shown.place, chain.head, data), len(data))


def _written(chain: Chain, memory: GuestMemory, count: int) -> bytes:
    """The first ``count`` bytes of the writable part."""
    pieces = []
    for segment in chain.writable:
        piece = memory.read(segment.addr, min(segment.length, count))
        pieces.append(piece)
        count -= len(piece)
        if not count:
            break
    return b"".join(pieces)


class Watched(DeviceQueue):
    """Before a kind of queue among the bases of a class: a queue that tells its watch."""

    watch: Watch

    # What `super()` finds is that kind of queue, which mypy cannot know.

    def pop(self) -> Chain | None:
        return self.watch.pop(super().pop)  # type: ignore[safe-super]

    def unpop(self, chain: Chain) -> None:
        super().unpop(chain)  # type: ignore[safe-super]
        self.watch.unpop(chain)

    def push_many(self, used: Sequence[tuple[Chain, int]], *, batch: bool = False) -> None:
        self.watch.push(used)
        super().push_many(used, batch=batch)  # type: ignore[safe-super]


class WatchedSplit(Watched, SplitDeviceQueue):
    """A split queue."""


class WatchedPacked(Watched, PackedDeviceQueue):
    """A packed queue."""


class WatchedFast(Watched, FastDeviceQueue):
    """A queue of csrc/."""

    def move(self, memory: GuestMemory) -> bool:
        if not super().move(memory):
            return False
        self.watch.move(memory)
        return True


def watched(memory: GuestMemory, layout: QueueLayout, features: int) -> Watched:
    """A queue in Python whose watch is still to come. Raises LayoutError."""
    kind = WatchedPacked if has(features, Feature.F_RING_PACKED) else WatchedSplit
    return kind(memory, layout, features)
