"""Split virtqueues (virtio v1.4 2.7), device side and driver side.

The parts are used in place, as words: a descriptor is two 64-bit words (addr; len, flags, next), an available
entry one 16-bit word, a used element one 64-bit word (id, len).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence

from virtio_ipsec.ring.base import DeviceQueue, DriverQueue, Posted, Used
from virtio_ipsec.ring.chain import (
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

NO_NOTIFY = 1
NO_INTERRUPT = 1
_DESCRIPTOR = struct.Struct("<QIHH")
# Flags in the second word of a descriptor.
_NEXT, _WRITE = F_NEXT << 32, F_WRITE << 32
#: ``next`` has 16 bits: entries of an indirect table beyond this cannot be reached.
_TABLE_LIMIT = 1 << 16
#: So many entries contain every event index: the next question is answered with yes.
_ALWAYS = 1 << 16


def split_parts(layout: QueueLayout) -> tuple[tuple[str, int, int, int], ...]:
    """(name, address, alignment, bytes) of the three parts (virtio v1.4 2.7, table)."""
    return (
        ("descriptor table", layout.desc, 16, 16 * layout.size),
        ("available ring", layout.driver, 2, 6 + 2 * layout.size),
        ("used ring", layout.device, 4, 6 + 8 * layout.size),
    )


def _need_event(event: int, new: int, steps: int) -> bool:
    """Whether the ``steps`` entries up to index ``new`` include the one at index ``event`` (modulo 2^16)."""
    return (new - event - 1) & 0xFFFF < steps


class _Parts:
    """The three parts of a split virtqueue as words."""

    __slots__ = ("avail", "avail_event", "desc", "used", "used_head")

    def __init__(self, memory: GuestMemory, layout: QueueLayout) -> None:
        size = layout.size
        if size & (size - 1):
            raise LayoutError(Fault.SIZE, f"queue size {size} is not a power of two")
        check_layout(memory, layout, split_parts(layout))
        self.desc = memory.words(layout.desc, 2 * size, "Q")
        # flags, idx, ring[size], used_event
        self.avail = memory.words(layout.driver, 3 + size, "H")
        # flags, idx | ring[size] | avail_event
        self.used_head = memory.words(layout.device, 2, "H")
        self.used = memory.words(layout.device + 4, size, "Q")
        self.avail_event = memory.words(layout.device + 4 + 8 * size, 1, "H")


class SplitDeviceQueue(DeviceQueue):
    """Device side of a split virtqueue: reads descriptor table and available ring, writes the used ring."""

    def reset(self, layout: QueueLayout | None = None) -> None:
        layout = layout or self._layout
        self._parts = _Parts(self._memory, layout)
        self._layout = layout
        self._mask = layout.size - 1
        self._outstanding = {}
        self._held = 0
        self._next_avail = 0
        #: Available index as last read: entries before it were made available.
        self._seen_avail = 0
        self._used = 0
        self._unsignalled = 0
        self._fault = None
        self._arm()

    def pop(self) -> Chain | None:
        self._refuse_when_broken()
        position = self._next_avail
        if position == self._seen_avail and not self._fresh():
            return None
        try:
            chain, descriptors = self._walk(self._parts.avail[2 + (position & self._mask)])
            self._hold(chain, descriptors)
        except ChainError as error:
            self._fault = error.kind
            raise
        self._next_avail = position = (position + 1) & 0xFFFF
        if self._listening and self._event_idx:
            self._parts.avail_event[0] = position
            self._memory.fence()
        return chain

    def _fresh(self) -> int:
        """Reads the available index; how many buffers are available."""
        seen = self._parts.avail[1]
        count = (seen - self._next_avail) & 0xFFFF
        if count > self._layout.size:
            self._break(Fault.AVAILABLE_JUMP, f"available index {seen} at {self._next_avail}")
        self._seen_avail = seen
        return count

    def pending(self) -> int:
        self._refuse_when_broken()
        return self._fresh()

    def _walk(self, head: int) -> tuple[Chain, int]:
        """Collects the chain that starts at ``head``, and counts its descriptors in the table.

        Terminates: a chain has at most queue size elements, and each step adds one or enters the only indirect
        table.
        """
        size = self._layout.size
        elements: list[tuple[int, int, int]] = []
        table, entries, nested = self._parts.desc, size, False
        index, direct = head, 0
        while True:
            if index >= entries:
                raise ChainError(Fault.INDEX, f"descriptor {index} in a table of {entries}")
            address, word = table[2 * index], table[2 * index + 1]
            length, flags = word & 0xFFFFFFFF, word >> 32
            if not nested:
                direct += 1
            if flags & F_INDIRECT:
                if nested:
                    raise ChainError(Fault.INDIRECT_NESTED, "indirect descriptor in an indirect table")
                if not self._indirect_allowed:
                    raise ChainError(Fault.INDIRECT_NOT_NEGOTIATED, f"descriptor {index} is indirect")
                if flags & F_NEXT:
                    raise ChainError(Fault.INDIRECT_CHAINED, f"descriptor {index} is indirect and has a next")
                # F_WRITE of this descriptor is to be ignored (virtio v1.4 2.7.5.3.2).
                table, entries = indirect_table(self._memory, address, length, _TABLE_LIMIT)
                index, nested = 0, True
                continue
            elements.append((address, length, flags & F_WRITE))
            if len(elements) > size:
                raise ChainError(Fault.LOOP, f"chain of more than {size} descriptors")
            if not flags & F_NEXT:
                return checked_chain(self._memory, head, elements), direct
            index = word >> 48

    def unpop(self, chain: Chain) -> None:
        self._release_last(chain)
        self._next_avail = (self._next_avail - 1) & 0xFFFF
        if self._listening and self._event_idx:
            self._parts.avail_event[0] = self._seen_avail

    def push_many(self, used: Sequence[tuple[Chain, int]], *, batch: bool = False) -> None:
        position = self._used
        for head, written, chains, _ in self._retire(used, batch):
            self._parts.used[position & self._mask] = head | written << 32
            position += chains
        if position == self._used:
            return
        self._unsignalled += position - self._used
        self._used = self._parts.used_head[1] = position & 0xFFFF

    def should_notify(self) -> bool:
        self._refuse_when_broken()
        steps, self._unsignalled = self._unsignalled, 0
        if not steps:
            return False
        self._memory.fence()
        if self._event_idx:
            return _need_event(self._parts.avail[2 + self._layout.size], self._used, steps)
        return not self._parts.avail[0] & NO_INTERRUPT

    def _arm(self) -> None:
        self._listening = True
        self._parts.used_head[0] = 0
        if self._event_idx:
            self._parts.avail_event[0] = self._seen_avail

    def enable_notifications(self) -> bool:
        self._refuse_when_broken()
        self._arm()
        self._memory.fence()
        return self._fresh() > 0

    def disable_notifications(self) -> None:
        self._refuse_when_broken()
        self._listening = False
        if not self._event_idx:
            # With EVENT_IDX flags stay 0, and the event index that is not moved on falls behind.
            self._parts.used_head[0] = NO_NOTIFY

    def state(self) -> int:
        return self._next_avail

    def restore(self, state: int) -> None:
        if not 0 <= state <= 0xFFFF:
            raise LayoutError(Fault.INDEX, f"available index {state}")
        self.reset()
        self._next_avail = self._seen_avail = state
        self._used = self._parts.used_head[1]
        self._unsignalled = _ALWAYS
        self._arm()


class SplitDriverQueue(DriverQueue):
    """Driver side of a split virtqueue: writes descriptor table and available ring, reads the used ring."""

    def _setup(self, layout: QueueLayout) -> None:
        self._parts = _Parts(self._memory, layout)
        for _, address, _, length in split_parts(layout):
            self._memory.write(address, bytes(length))
        self._layout = layout
        self._mask = layout.size - 1
        #: Free descriptors in the order of use; with IN_ORDER that is always ring order.
        self._free_list = deque(range(layout.size))
        self._free = layout.size
        self._avail = 0
        self._next_used = 0
        self._unkicked = 0
        self._listening = True

    def _table_bytes(self, elements: Sequence[tuple[int, int, bool]]) -> bytes:
        last = len(elements) - 1
        return b"".join(
            _DESCRIPTOR.pack(
                address,
                length,
                (F_WRITE if writable else 0) | (F_NEXT if index < last else 0),
                index + 1 if index < last else 0,
            )
            for index, (address, length, writable) in enumerate(elements)
        )

    def _place(self, elements: Sequence[tuple[int, int, bool]], table: int | None) -> tuple[int, list[int]]:
        desc = self._parts.desc
        if table is not None:
            index = self._free_list.popleft()
            desc[2 * index] = table
            desc[2 * index + 1] = len(elements) * _DESCRIPTOR.size | F_INDIRECT << 32
            return index, [index]
        indices = [self._free_list.popleft() for _ in elements]
        link = 0  # F_NEXT and where to, in place: nothing behind the last element
        for index, (address, length, writable) in zip(reversed(indices), reversed(elements), strict=True):
            desc[2 * index] = address
            desc[2 * index + 1] = length | (_WRITE | link if writable else link)
            link = _NEXT | index << 48
        return indices[0], indices

    def _expose(self, staged: Sequence[Posted]) -> None:
        avail = self._parts.avail
        for step, posted in enumerate(staged, self._avail):
            avail[2 + (step & self._mask)] = posted.head
        self._unkicked += len(staged)
        self._avail = avail[1] = (self._avail + len(staged)) & 0xFFFF

    def should_kick(self) -> bool:
        self._refuse_when_broken()
        steps, self._unkicked = self._unkicked, 0
        if not steps:
            return False
        self._memory.fence()
        if self._event_idx:
            return _need_event(self._parts.avail_event[0], self._avail, steps)
        return not self._parts.used_head[0] & NO_NOTIFY

    def poll(self) -> list[Used]:
        self._refuse_when_broken()
        while count := self._count_used():
            while count:
                element = self._parts.used[self._next_used & self._mask]
                batch = self._take_used(element & 0xFFFFFFFF, element >> 32, count)
                count -= len(batch)
                self._next_used = (self._next_used + len(batch)) & 0xFFFF
            if not self._listening:
                break
            self._arm()
        return self._hand_out()

    def _count_used(self) -> int:
        index = self._parts.used_head[1]
        count = (index - self._next_used) & 0xFFFF
        if count > len(self._outstanding):
            self._break(Fault.USED_JUMP, f"used index {index} at {self._next_used}")
        return count

    def _reclaim(self, posted: Posted) -> None:
        self._free_list.extend(posted.descriptors)

    def _arm(self) -> None:
        self._listening = True
        if self._event_idx:
            self._parts.avail[2 + self._layout.size] = self._next_used
        else:
            self._parts.avail[0] = 0
        self._memory.fence()

    def enable_notifications(self) -> bool:
        self._refuse_when_broken()
        self._arm()
        return self._count_used() > 0

    def disable_notifications(self) -> None:
        self._refuse_when_broken()
        self._listening = False
        if self._event_idx:
            # As far away as an index can be; flags must stay 0.
            self._parts.avail[2 + self._layout.size] = (self._next_used - 1) & 0xFFFF
        else:
            self._parts.avail[0] = NO_INTERRUPT

    def state(self) -> int:
        return self._avail | self._next_used << 16
