"""The two sides of a virtqueue, whatever its format, and the bookkeeping that both formats share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from virtio_ipsec.errors import ConfigError, MemoryAccessError
from virtio_ipsec.ring.chain import DESCRIPTOR_SIZE, MAX_CHAIN_BYTES, MAX_LENGTH, Chain, QueueLayout, Segment
from virtio_ipsec.ring.faults import ChainError, Fault, QueueBroken, QueueFull, UsedError
from virtio_ipsec.ring.memory import Allocator, GuestMemory
from virtio_ipsec.wire.numbers import Feature, has
from virtio_ipsec.wire.quick import quick_init


class _Queue:
    """What both sides have: a place, negotiated features, and a fault that only a reset clears."""

    def __init__(self, memory: GuestMemory, layout: QueueLayout, features: int) -> None:
        self._memory = memory
        self._indirect_allowed = has(features, Feature.F_INDIRECT_DESC)
        self._event_idx = has(features, Feature.F_EVENT_IDX)
        self._in_order = has(features, Feature.F_IN_ORDER)
        self._fault: Fault | None = None
        self._layout = layout

    @property
    def layout(self) -> QueueLayout:
        """Size and addresses in use."""
        return self._layout

    @property
    def size(self) -> int:
        """Entries of the ring, and the longest chain."""
        return self._layout.size

    @property
    def broken(self) -> bool:
        """Whether the other side broke the ring rules: nothing works until ``reset``."""
        return self._fault is not None

    @property
    def fault(self) -> Fault | None:
        """What broke the queue."""
        return self._fault

    def _refuse_when_broken(self) -> None:
        if self._fault is not None:
            raise QueueBroken(Fault.BROKEN, f"by {self._fault.value}; reset the queue first")


class DeviceQueue(_Queue, ABC):
    """The device side.

    Each field in guest memory is read once: copied, then checked, then used. A driver that breaks the rules
    makes ``pop`` (or what counts buffers) raise :class:`ChainError`; from then on every call but ``reset`` raises
    :class:`QueueBroken`. Set-up raises :class:`LayoutError`.
    """

    def __init__(self, memory: GuestMemory, layout: QueueLayout, features: int = 0) -> None:
        super().__init__(memory, layout, features)
        #: Popped and not yet pushed, oldest first, by head: chain, descriptors it holds in the ring, which pop it was.
        self._outstanding: dict[int, tuple[Chain, int, int]] = {}
        #: Pops less unpops.
        self._popped = 0
        self._held = 0
        self.reset(layout)

    @abstractmethod
    def reset(self, layout: QueueLayout | None = None) -> None:
        """Back to the state of a new queue, in the same or another place (virtio v1.4 2.6.1).

        Chains popped before are void. Asks for available buffer notifications, which is the one thing it
        writes.
        """

    @abstractmethod
    def pop(self) -> Chain | None:
        """Takes the next available buffer; None when there is none."""

    @abstractmethod
    def unpop(self, chain: Chain) -> None:
        """Gives back the chain popped last, as if it had not been popped."""

    @abstractmethod
    def pending(self) -> int:
        """How many buffers are available now."""

    @abstractmethod
    def push_many(self, used: Sequence[tuple[Chain, int]], *, batch: bool = False) -> None:
        """Marks (chain, bytes written) pairs used; the driver sees all of them or none.

        With IN_ORDER the chains must be the oldest ones in their order, and ``batch`` lets a run of wholly
        written chains be told by the entry of the chain that ends it (virtio v1.4 2.7.9, 2.8.8). Not every
        driver copes with that, so it is not the default. Raises :class:`UsedError`, then nothing is changed.
        """

    @abstractmethod
    def should_notify(self) -> bool:
        """Whether the driver wants a used buffer notification for what was pushed since the last call."""

    @abstractmethod
    def enable_notifications(self) -> bool:
        """Asks the driver to notify; True when buffers are available already (look before you sleep)."""

    @abstractmethod
    def disable_notifications(self) -> None:
        """Tells the driver that available buffer notifications are not needed; a hint only."""

    @abstractmethod
    def state(self) -> int:
        """Ring position as vhost-user's vring base.

        Split: the available index. Packed: available offset in bits 0-14 and its wrap counter in bit 15, used
        offset and wrap counter in bits 16-31. Chains still out count as taken: push or unpop them first.
        """

    @abstractmethod
    def restore(self, state: int) -> None:
        """Resets the queue, then continues at ``state``; split takes its used index from the ring.

        Raises :class:`LayoutError` for a position that the queue cannot have.
        """

    def push(self, chain: Chain, written: int) -> None:
        """Marks one chain used, ``written`` bytes from the start of its writable part being valid."""
        self.push_many(((chain, written),))

    def _break(self, kind: Fault, message: str) -> NoReturn:
        self._fault = kind
        raise ChainError(kind, message)

    def _hold(self, chain: Chain, descriptors: int) -> None:
        """Notes a popped chain. A sound driver never offers more descriptors than the ring has."""
        if chain.head in self._outstanding:
            raise ChainError(Fault.DUPLICATE, f"buffer {chain.head} is still with the device")
        if self._held + descriptors > self._layout.size:
            raise ChainError(Fault.OVERCOMMIT, f"more than {self._layout.size} descriptors are available")
        self._popped += 1
        self._outstanding[chain.head] = (chain, descriptors, self._popped)
        self._held += descriptors

    def _release_last(self, chain: Chain) -> int:
        """Forgets the chain popped last; returns its descriptors."""
        self._refuse_when_broken()
        held = self._outstanding.get(chain.head)
        # One popped later may be used already: the ring position before it is then no longer ours to go back to.
        if held is None or held[0] is not chain or held[2] != self._popped:
            raise UsedError(Fault.USED_ORDER, f"buffer {chain.head} is not the one popped last")
        del self._outstanding[chain.head]
        self._popped -= 1
        self._held -= held[1]
        return held[1]

    def _retire(self, used: Sequence[tuple[Chain, int]], batch: bool) -> list[tuple[int, int, int, int]]:
        """Checks and forgets chains; returns the entries to write: (head, written, chains, descriptors)."""
        self._refuse_when_broken()
        outstanding = self._outstanding
        entries: list[tuple[int, int, int, int]] = []
        complete = False
        in_order = iter(outstanding.values()) if self._in_order else None
        for chain, written in used:
            held = outstanding.get(chain.head)
            if held is None or held[0] is not chain:
                raise UsedError(Fault.USED_ID, f"buffer {chain.head} is not with the device")
            if in_order is not None and next(in_order, None) is not held:
                raise UsedError(Fault.USED_ORDER, f"buffer {chain.head} is used out of order")
            room = chain.writable_len
            if not 0 <= written <= room or written > MAX_LENGTH:
                raise UsedError(Fault.USED_LENGTH, f"{written} bytes written of {room}")
            if batch and in_order is not None and complete:
                _, _, chains, descriptors = entries.pop()
                entries.append((chain.head, written, chains + 1, descriptors + held[1]))
            else:
                entries.append((chain.head, written, 1, held[1]))
            complete = written == room
        if len(used) > 1 and len({chain.head for chain, _ in used}) < len(used):
            raise UsedError(Fault.USED_ID, "one buffer twice")
        for chain, _ in used:
            self._held -= outstanding.pop(chain.head)[1]
        return entries


@quick_init
@dataclass(frozen=True, slots=True)
class Used:
    """A buffer that came back: the token given to ``add`` and the bytes that the device has written."""

    token: object
    written: int


@dataclass(slots=True)
class Posted:
    """Driver-side record of a buffer: its id in the ring, and what it takes to give everything back."""

    head: int
    token: object
    room: int
    descriptors: list[int]
    table: int | None


class DriverQueue(_Queue, ABC):
    """The driver side.

    ``add`` prepares buffers, ``publish`` shows them to the device at once, ``should_kick`` says whether it
    wants to be told, ``poll`` collects what was used. ``allocator`` is needed for indirect tables only.
    The ring areas are zeroed at set-up, so a queue is made before the device is told about it. A device that
    breaks the rules makes ``poll`` raise :class:`UsedError`; from then on every call but ``reset`` raises
    :class:`QueueBroken`.
    """

    def __init__(
        self, memory: GuestMemory, layout: QueueLayout, features: int = 0, allocator: Allocator | None = None
    ) -> None:
        super().__init__(memory, layout, features)
        self._allocator = allocator
        #: Added, not published.
        self._staged: list[Posted] = []
        #: With the device, oldest first, by head.
        self._outstanding: dict[int, Posted] = {}
        #: Came back, but a later entry broke the queue before they were handed out.
        self._returned: list[Used] = []
        self._free = 0
        self._setup(layout)

    @property
    def free(self) -> int:
        """Free descriptors in the ring."""
        return self._free

    @property
    def outstanding(self) -> int:
        """Buffers that the device has and has not yet marked used."""
        return len(self._outstanding)

    def add(
        self,
        readable: Sequence[Segment],
        writable: Sequence[Segment],
        token: object,
        *,
        indirect: bool = False,
    ) -> None:
        """Prepares a buffer of device-readable, then device-writable segments; ``publish`` shows it.

        ``indirect`` puts the descriptors into a table of their own, so that the ring spends one. Raises
        :class:`QueueFull` when too few descriptors are free and :class:`ChainError` for a buffer that no
        driver may offer; then nothing has changed.
        """
        self._refuse_when_broken()
        elements = self._checked_elements(readable, writable)
        if indirect and not self._indirect_allowed:
            raise ChainError(Fault.INDIRECT_NOT_NEGOTIATED, "indirect descriptors were not negotiated")
        if (1 if indirect else len(elements)) > self._free:
            raise QueueFull(Fault.FULL, f"{len(elements)} descriptors wanted, {self._free} free")
        table = None
        if indirect:
            if self._allocator is None:
                raise ConfigError("indirect descriptors need an allocator for their tables")
            table = self._allocator.alloc(len(elements) * DESCRIPTOR_SIZE, DESCRIPTOR_SIZE)
            self._memory.write(table, self._table_bytes(elements))
        head, descriptors = self._place(elements, table)
        self._free -= len(descriptors)
        room = sum([segment.length for segment in writable])
        self._staged.append(Posted(head, token, room, descriptors, table))

    def publish(self) -> None:
        """Makes everything added visible to the device, all of it at once."""
        self._refuse_when_broken()
        if self._staged:
            self._expose(self._staged)
            for posted in self._staged:
                self._outstanding[posted.head] = posted
            self._staged = []

    @abstractmethod
    def should_kick(self) -> bool:
        """Whether the device wants a notification for what was published since the last call."""

    @abstractmethod
    def poll(self) -> list[Used]:
        """Everything the device has marked used since the last call, in its order.

        Buffers that an IN_ORDER device skipped count as wholly written. An entry that breaks the rules is
        raised at once; what came back before it in the same call is then among the tokens of ``reset``.
        """

    @abstractmethod
    def enable_notifications(self) -> bool:
        """Asks for used buffer notifications; True when something is used already (poll before you sleep)."""

    @abstractmethod
    def disable_notifications(self) -> None:
        """Tells the device that used buffer notifications are not needed; a hint only."""

    @abstractmethod
    def state(self) -> int:
        """Ring position in the form of :meth:`DeviceQueue.state`, as published.

        Its low 16 bits are next_off and next_wrap of a notification with NOTIFICATION_DATA (virtio v1.4 2.9).
        """

    def reset(self, layout: QueueLayout | None = None) -> list[object]:
        """Back to a new queue, in the same or another place, after the device has reset its side.

        Returns the tokens of all buffers that ``poll`` had not handed out, oldest first.
        """
        self._setup(layout or self._layout)
        lost = [*self._outstanding.values(), *self._staged]
        for posted in lost:
            self._free_table(posted)
        tokens = [*(used.token for used in self._hand_out()), *(posted.token for posted in lost)]
        self._outstanding = {}
        self._staged = []
        self._fault = None
        return tokens

    @abstractmethod
    def _setup(self, layout: QueueLayout) -> None:
        """Checks the layout, zeroes the areas, resets the indices."""

    @abstractmethod
    def _table_bytes(self, elements: Sequence[tuple[int, int, bool]]) -> bytes:
        """An indirect table of (address, length, writable) elements."""

    @abstractmethod
    def _place(self, elements: Sequence[tuple[int, int, bool]], table: int | None) -> tuple[int, list[int]]:
        """Writes descriptors, invisible yet; returns the head and the ring descriptors taken."""

    @abstractmethod
    def _expose(self, staged: Sequence[Posted]) -> None:
        """Makes prepared buffers visible."""

    @abstractmethod
    def _reclaim(self, posted: Posted) -> None:
        """Takes the ring descriptors of a returned buffer back."""

    def _checked_elements(
        self, readable: Sequence[Segment], writable: Sequence[Segment]
    ) -> list[tuple[int, int, bool]]:
        """The (address, length, writable) elements of a buffer that a driver may offer."""
        count = len(readable) + len(writable)
        if not count:
            raise ChainError(Fault.EMPTY, "a buffer has at least one segment")
        if count > self._layout.size:
            raise ChainError(Fault.LOOP, f"{count} segments in a queue of {self._layout.size}")
        elements: list[tuple[int, int, bool]] = []
        total = 0
        for segments, is_writable in ((readable, False), (writable, True)):
            for segment in segments:
                length = segment.length
                if length <= 0:
                    raise ChainError(Fault.ZERO_LENGTH, f"{segment} has no bytes")
                try:
                    self._memory.check(segment.addr, length)
                except MemoryAccessError as error:
                    raise ChainError(Fault.ADDRESS, str(error)) from error
                total += length
                if length > MAX_LENGTH or total > MAX_CHAIN_BYTES:
                    raise ChainError(Fault.TOO_LONG, "segment or buffer of more than its 32 bits can say")
                elements.append((segment.addr, length, is_writable))
        return elements

    def _break(self, kind: Fault, message: str) -> NoReturn:
        self._fault = kind
        raise UsedError(kind, message)

    def _take_used(self, head: int, written: int, most: int | None = None) -> list[Posted]:
        """Takes back the buffers that a used entry stands for; the last one is ``head``.

        That is more than one only with IN_ORDER; ``most`` bounds how many.
        """
        last = self._outstanding.get(head)
        if last is None:
            self._break(Fault.USED_ID, f"buffer {head} is not with the device")
        if written > last.room:
            self._break(Fault.USED_LENGTH, f"buffer {head}: {written} bytes written of {last.room}")
        batch = [last]
        if self._in_order:
            batch = []
            for posted in self._outstanding.values():
                batch.append(posted)
                if posted is last:
                    break
            if most is not None and len(batch) > most:
                self._break(Fault.USED_ORDER, f"buffer {head} ends a batch of {len(batch)}, {most} were used")
        for posted in batch:
            del self._outstanding[posted.head]
            self._reclaim(posted)
            self._free += len(posted.descriptors)
            self._free_table(posted)
            self._returned.append(Used(posted.token, written if posted is last else posted.room))
        return batch

    def _hand_out(self) -> list[Used]:
        returned, self._returned = self._returned, []
        return returned

    def _free_table(self, posted: Posted) -> None:
        if posted.table is not None and self._allocator is not None:
            self._allocator.free(posted.table)
