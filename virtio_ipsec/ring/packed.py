"""Packed virtqueues (virtio v1.4 2.8), device side and driver side.

A ring position counts descriptors over two rounds, 0 to 2 x size - 1: its first half is the round in which
the wrap counter is 1. A descriptor is two 64-bit words, (addr) and (len, id, flags): the second one is read
by one load and written by one store, so flags never show without the fields they vouch for.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence

from virtio_ipsec.ring.base import DeviceQueue, DriverQueue, Posted, Used
from virtio_ipsec.ring.chain import (
    DESCRIPTOR_SIZE,
    F_INDIRECT,
    F_NEXT,
    F_WRITE,
    Chain,
    QueueLayout,
    check_layout,
    checked_chain,
    indirect_table,
)
from virtio_ipsec.ring.faults import ChainError, Fault, LayoutError
from virtio_ipsec.ring.memory import GuestMemory

F_AVAIL = 1 << 7
F_USED = 1 << 15
_MARKS = F_AVAIL | F_USED
EVENT_ENABLE = 0
EVENT_DISABLE = 1
EVENT_DESC = 2
_DESCRIPTOR = struct.Struct("<QIHH")


def packed_parts(layout: QueueLayout) -> tuple[tuple[str, int, int, int], ...]:
    """(name, address, alignment, bytes) of the three parts (virtio v1.4 2.8.10.1, table)."""
    return (
        ("descriptor ring", layout.desc, 16, 16 * layout.size),
        ("driver event suppression", layout.driver, 4, 4),
        ("device event suppression", layout.device, 4, 4),
    )


class _Parts:
    """The three parts of a packed virtqueue as words, and the arithmetic of positions."""

    __slots__ = ("desc", "device_event", "driver_event", "size")

    def __init__(self, memory: GuestMemory, layout: QueueLayout) -> None:
        check_layout(memory, layout, packed_parts(layout))
        self.size = layout.size
        self.desc = memory.words(layout.desc, 2 * layout.size, "Q")
        self.driver_event = memory.words(layout.driver, 1, "I")
        self.device_event = memory.words(layout.device, 1, "I")

    def advance(self, position: int, steps: int) -> int:
        """The position ``steps`` descriptors later."""
        return (position + steps) % (2 * self.size)

    def encode(self, position: int) -> int:
        """Offset in bits 0-14, wrap counter in bit 15."""
        return position | 1 << 15 if position < self.size else position - self.size

    def decode(self, word: int) -> int:
        """The position of offset and wrap counter; may lie outside the ring when the offset does."""
        return (word & 0x7FFF) + (0 if word >> 15 & 1 else self.size)

    def wanted(self, event: int, position: int, steps: int, event_idx: bool) -> bool:
        """Whether an event structure asks to be told of the ``steps`` descriptors before ``position``.

        What the text reserves (flags 3, DESC without EVENT_IDX, an offset beyond the ring) counts as asking:
        a notification too many is harmless, a lost one is not.
        """
        flags = event >> 16 & 3
        if flags == EVENT_DISABLE:
            return False
        if flags != EVENT_DESC or not event_idx or event & 0x7FFF >= self.size:
            return True
        return (self.decode(event & 0xFFFF) - position + steps) % (2 * self.size) < steps

    def ask(self, event_idx: bool, position: int) -> int:
        """The event structure that asks for a notification when ``position`` is reached."""
        return self.encode(position) | EVENT_DESC << 16 if event_idx else EVENT_ENABLE << 16


class PackedDeviceQueue(DeviceQueue):
    """Device side of a packed virtqueue. ``Chain.head`` is the buffer id, any 16-bit number."""

    def reset(self, layout: QueueLayout | None = None) -> None:
        layout = layout or self._layout
        self._parts = _Parts(self._memory, layout)
        self._layout = layout
        self._outstanding = {}
        self._held = 0
        self._next_avail = 0
        self._next_used = 0
        #: Descriptors marked used since ``should_notify`` last looked.
        self._unsignalled = 0
        self._fault = None
        self._arm()

    def pop(self) -> Chain | None:
        self._refuse_when_broken()
        word = self._available(self._next_avail)
        if word is None:
            return None
        try:
            chain, descriptors = self._walk(word)
            self._hold(chain, descriptors)
        except ChainError as error:
            self._fault = error.kind
            raise
        self._move(descriptors)
        return chain

    def _move(self, descriptors: int) -> None:
        self._next_avail = self._parts.advance(self._next_avail, descriptors)
        if self._listening and self._event_idx:
            self._parts.device_event[0] = self._parts.ask(True, self._next_avail)
            self._memory.fence()

    def _available(self, position: int) -> int | None:
        """The second word of the descriptor at ``position`` when it is marked available in this round."""
        size = self._layout.size
        if position < size:
            word = self._parts.desc[2 * position + 1]
            return word if word >> 48 & _MARKS == F_AVAIL else None
        word = self._parts.desc[2 * (position - size) + 1]
        return word if word >> 48 & _MARKS == F_USED else None

    def _walk(self, word: int) -> tuple[Chain, int]:
        """Collects the list whose first descriptor has this second word, and counts its descriptors.

        Terminates: a chain has at most queue size elements, and each step adds one.
        """
        size = self._layout.size
        elements: list[tuple[int, int, int]] = []
        position, count = self._next_avail, 0
        while True:
            address = self._parts.desc[2 * (position % size)]
            length, flags = word & 0xFFFFFFFF, word >> 48
            count += 1
            if flags & F_INDIRECT:
                if not self._indirect_allowed:
                    raise ChainError(
                        Fault.INDIRECT_NOT_NEGOTIATED, f"descriptor {position % size} is indirect"
                    )
                if flags & F_NEXT or count > 1:
                    raise ChainError(Fault.INDIRECT_CHAINED, "indirect descriptor in a chained list")
                # One entry more than allowed is looked at: enough to refuse what is too long.
                table, entries = indirect_table(self._memory, address, length, size + 1)
                for index in range(entries):
                    entry = table[2 * index + 1]
                    # Only F_WRITE counts in a table (virtio v1.4 2.8.7).
                    elements.append((table[2 * index], entry & 0xFFFFFFFF, entry >> 48 & F_WRITE))
                break
            elements.append((address, length, flags & F_WRITE))
            if len(elements) > size or not flags & F_NEXT:
                break
            position = self._parts.advance(position, 1)
            following = self._available(position)
            if following is None:
                raise ChainError(
                    Fault.PARTIAL_LIST, f"descriptor {position % size} of a list is not available"
                )
            word = following
        if len(elements) > size:
            raise ChainError(Fault.LOOP, f"chain of more than {size} descriptors")
        return checked_chain(self._memory, word >> 32 & 0xFFFF, elements), count

    def pending(self) -> int:
        """How many buffers are available now: the heads and tails found by a walk over the flags."""
        self._refuse_when_broken()
        position, buffers = self._next_avail, 0
        for _ in range(self._layout.size - self._held):
            word = self._available(position)
            if word is None:
                break
            buffers += not word >> 48 & F_NEXT
            position = self._parts.advance(position, 1)
        return buffers

    def unpop(self, chain: Chain) -> None:
        # The event structure keeps asking for what follows the chain: that is what a caller waits for.
        self._next_avail = self._parts.advance(self._next_avail, -self._release_last(chain))

    def push_many(self, used: Sequence[tuple[Chain, int]], *, batch: bool = False) -> None:
        size = self._layout.size
        position = self._next_used
        words: list[tuple[int, int]] = []
        for head, written, _, descriptors in self._retire(used, batch):
            flags = (F_WRITE if written else 0) | (_MARKS if position < size else 0)
            words.append((2 * (position % size) + 1, written | head << 32 | flags << 48))
            position = self._parts.advance(position, descriptors)
            self._unsignalled += descriptors
        # The driver polls the first one: it becomes visible last (virtio v1.4 2.8.9).
        for slot, word in reversed(words):
            self._parts.desc[slot] = word
        self._next_used = position

    def should_notify(self) -> bool:
        self._refuse_when_broken()
        steps, self._unsignalled = self._unsignalled, 0
        if not steps:
            return False
        self._memory.fence()
        return self._parts.wanted(self._parts.driver_event[0], self._next_used, steps, self._event_idx)

    def _arm(self) -> None:
        self._listening = True
        self._parts.device_event[0] = self._parts.ask(self._event_idx, self._next_avail)

    def enable_notifications(self) -> bool:
        self._refuse_when_broken()
        self._arm()
        self._memory.fence()
        return self._available(self._next_avail) is not None

    def disable_notifications(self) -> None:
        self._refuse_when_broken()
        self._listening = False
        self._parts.device_event[0] = EVENT_DISABLE << 16

    def state(self) -> int:
        return self._parts.encode(self._next_avail) | self._parts.encode(self._next_used) << 16

    def restore(self, state: int) -> None:
        size = self._layout.size
        available, used = self._parts.decode(state & 0xFFFF), self._parts.decode(state >> 16)
        inside = all(offset & 0x7FFF < size for offset in (state, state >> 16)) and 0 <= state < 1 << 32
        held = (available - used) % (2 * size)
        if not inside or held > size:
            raise LayoutError(Fault.INDEX, f"ring position {state:#x} in a queue of {size}")
        self.reset()
        self._next_avail, self._next_used = available, used
        # What an earlier owner of the queue took is still in the ring.
        self._held = held
        self._unsignalled = 2 * size
        self._arm()


class PackedDriverQueue(DriverQueue):
    """Driver side of a packed virtqueue."""

    def _setup(self, layout: QueueLayout) -> None:
        self._parts = _Parts(self._memory, layout)
        for _, address, _, length in packed_parts(layout):
            self._memory.write(address, bytes(length))
        self._layout = layout
        self._ids = deque(range(layout.size))
        self._free = layout.size
        #: Where the next descriptor is written; ``_avail`` follows when it is published.
        self._next_free = 0
        self._avail = 0
        self._next_used = 0
        #: First descriptors of prepared lists, held back: index and value of the second word.
        self._firsts: list[tuple[int, int]] = []
        self._unkicked = 0
        self._listening = True

    def _table_bytes(self, elements: Sequence[tuple[int, int, bool]]) -> bytes:
        return b"".join(
            _DESCRIPTOR.pack(address, length, 0, F_WRITE if writable else 0)
            for address, length, writable in elements
        )

    def _place(self, elements: Sequence[tuple[int, int, bool]], table: int | None) -> tuple[int, list[int]]:
        head = self._ids.popleft()
        if table is not None:
            shown = [(table, len(elements) * DESCRIPTOR_SIZE, F_INDIRECT)]
        else:
            last = len(elements) - 1
            shown = [
                (address, length, (F_WRITE if writable else 0) | (F_NEXT if step < last else 0))
                for step, (address, length, writable) in enumerate(elements)
            ]
        desc, size = self._parts.desc, self._layout.size
        slots: list[int] = []
        for address, length, kind in shown:
            slot = self._next_free % size
            flags = kind | (F_AVAIL if self._next_free < size else F_USED)
            word = length | head << 32 | flags << 48
            desc[2 * slot] = address
            if slots:
                desc[2 * slot + 1] = word
            else:
                self._firsts.append((2 * slot + 1, word))
            slots.append(slot)
            self._next_free = self._parts.advance(self._next_free, 1)
        return head, slots

    def _expose(self, staged: Sequence[Posted]) -> None:
        # The device polls the first one: it becomes visible last.
        for index, word in reversed(self._firsts):
            self._parts.desc[index] = word
        self._firsts = []
        self._unkicked += sum([len(posted.descriptors) for posted in staged])
        self._avail = self._next_free

    def should_kick(self) -> bool:
        self._refuse_when_broken()
        steps, self._unkicked = self._unkicked, 0
        if not steps:
            return False
        self._memory.fence()
        return self._parts.wanted(self._parts.device_event[0], self._avail, steps, self._event_idx)

    def _next_word(self) -> int | None:
        """The second word of the next used descriptor, when the device has written it."""
        size = self._layout.size
        word = self._parts.desc[2 * (self._next_used % size) + 1]
        return word if word >> 48 & _MARKS == (_MARKS if self._next_used < size else 0) else None

    def poll(self) -> list[Used]:
        self._refuse_when_broken()
        while (word := self._next_word()) is not None:
            while word is not None:
                # Without F_WRITE the length is reserved and ignored (virtio v1.4 2.8.4).
                written = word & 0xFFFFFFFF if word >> 48 & F_WRITE else 0
                batch = self._take_used(word >> 32 & 0xFFFF, written)
                steps = sum([len(posted.descriptors) for posted in batch])
                self._next_used = self._parts.advance(self._next_used, steps)
                word = self._next_word()
            if not self._listening:
                break
            self._arm()
        return self._hand_out()

    def _reclaim(self, posted: Posted) -> None:
        self._ids.append(posted.head)

    def _arm(self) -> None:
        self._listening = True
        self._parts.driver_event[0] = self._parts.ask(self._event_idx, self._next_used)
        self._memory.fence()

    def enable_notifications(self) -> bool:
        self._refuse_when_broken()
        self._arm()
        return self._next_word() is not None

    def disable_notifications(self) -> None:
        self._refuse_when_broken()
        self._listening = False
        self._parts.driver_event[0] = EVENT_DISABLE << 16

    def state(self) -> int:
        return self._parts.encode(self._avail) | self._parts.encode(self._next_used) << 16
