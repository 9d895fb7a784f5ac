"""Devices whose virtqueues do not stop, do not start anew, or handle commands wrongly."""

from __future__ import annotations

from typing import Any

from registry import mutant

from virtio_ipsec.device.rings import Rings
from virtio_ipsec.ring.base import DeviceQueue
from virtio_ipsec.ring.chain import Chain, QueueLayout
from virtio_ipsec.ring.queue import device_queue
from virtio_ipsec.wire.numbers import Feature, mask


@mutant("BAS-STATUS-05")
class NotifiesTooEarly(Rings):
    """A notification comes back for every kick before DRIVER_OK."""

    def kick(self, index: int) -> list[bytes]:
        if self.device.context.features and not self.device.is_operating:
            self._interrupts.add(index)
        return super().kick(index)


@mutant("BAS-STATUS-05")
class FillsTooEarly(Rings):
    """Receive buffers are used before DRIVER_OK."""

    def deliver(self, frame: bytes) -> None:
        queue = self._queues.get(0)
        if queue is not None and not self.device.is_operating:
            chain = queue.pop()
            if chain is not None:
                header = bytes(self.device.context.header.size)
                queue.push(chain, chain.write(self.memory, header + frame))
            return
        super().deliver(frame)


@mutant("BAS-RESET-02")
class WritesAfterReset(Rings):
    """Old receive buffers are filled after a reset."""

    _old: Any = None

    def reset(self) -> None:
        self._old = self._queues.get(0)
        super().reset()

    def deliver(self, frame: bytes) -> None:
        if self._old is not None and not self._queues:
            chain = self._old.pop()
            if chain is not None:
                self._old.push(chain, chain.write(self.memory, frame))
        super().deliver(frame)


@mutant("BAS-RESET-02")
class NotifiesAfterReset(Rings):
    """A kick after a reset is answered by a notification."""

    def kick(self, index: int) -> list[bytes]:
        if not self._queues:
            self._interrupts.add(index)
        return super().kick(index)


@mutant("BAS-RESET-04")
class QueueResetDoesNotStop(Rings):
    """A queue that was reset goes on until it is enabled again."""

    def reset_queue(self, index: int) -> None:
        self._gone = getattr(self, "_gone", set()) | {index}

    def enable_queue(self, index: int, layout: QueueLayout) -> None:
        if index in getattr(self, "_gone", set()):
            self._gone.discard(index)
            super().reset_queue(index)
        super().enable_queue(index, layout)

    def reset(self) -> None:
        self._gone: set[int] = set()
        super().reset()


@mutant("BAS-RESET-05", "BAS-RESET-08")
class QueueResetKeepsPositions(Rings):
    """A queue that is enabled again goes on at its old available index."""

    def reset_queue(self, index: int) -> None:
        queue = self._queues.get(index)
        if queue is not None:
            self._kept = getattr(self, "_kept", {}) | {index: queue.state()}
        super().reset_queue(index)

    def enable_queue(self, index: int, layout: QueueLayout) -> None:
        super().enable_queue(index, layout)
        kept = getattr(self, "_kept", {}).pop(index, None)
        if kept is not None:
            self._queues[index].restore(kept)

    def reset(self) -> None:
        self._kept: dict[int, int] = {}
        super().reset()


@mutant("BAS-RESET-08")
class QueueResetKeepsSize(Rings):
    """A queue that is enabled again still has its old size."""

    def enable_queue(self, index: int, layout: QueueLayout) -> None:
        first = self._sizes.setdefault(index, layout.size)
        super().enable_queue(index, QueueLayout(first, layout.desc, layout.driver, layout.device))

    def reset(self) -> None:
        self._sizes: dict[int, int] = {}
        super().reset()

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._sizes = {}


@mutant("INF-44")
class AdminQueueAmongTheOthers(Rings):
    """num_queues counts the administration queue."""

    @property
    def queue_count(self) -> int:
        return super().queue_count + 1

    @property
    def admin_queue_index(self) -> int:
        return self.queue_count - 1


@mutant("INF-45")
class AdminQueueElsewhere(Rings):
    """Nothing answers on the announced index."""

    def _work(self, index: int) -> Any:
        return None if index == self.admin_queue_index else super()._work(index)


@mutant("AVQ-DEV-07")
class LastCommandFirst(Rings):
    """Commands that wait together are processed in the opposite order."""

    def kick(self, index: int) -> list[bytes]:
        queue = self._queues.get(index)
        ready = queue is not None and self.device.is_operating
        if queue is None or not ready or index != self.admin_queue_index or queue.pending() < 2:
            return super().kick(index)
        chains = []
        while (chain := queue.pop()) is not None:
            chains.append(chain)
        for chain in reversed(chains):
            queue.push(chain, self._admin(chain, []))
        return []


class FirstPieces(Rings):
    """Commands are read from the first descriptor, answers written to it."""

    readable = writable = 64

    def _command(self, chain: Chain, run: Any) -> int:
        cut = Chain(chain.head, chain.readable[: self.readable], chain.writable[: self.writable])
        return super()._command(cut, run)


@mutant("FRM-01")
class OneReadableDescriptor(FirstPieces):
    """Only the first descriptor of a command is read."""

    readable = 1


@mutant("FRM-01")
class OneWritableDescriptor(FirstPieces):
    """Only the first descriptor of the room is written."""

    writable = 1


@mutant("FRM-01")
class FewDescriptors(FirstPieces):
    """No more than 16 descriptors of a command are read."""

    readable = 16


@mutant("AVQ-DEV-02", "INF-38")
class UsedLengthIsRoom(Rings):
    """The used length of an answer that is a bare status is that of the whole room."""

    def _command(self, chain: Chain, run: Any) -> int:
        written = super()._command(chain, run)
        return chain.writable_len if written == 8 else written


@mutant("AVQ-DEV-03", "RO-DEV-09", "RO-DEV-10", "INF-39")
class PaddingNotWritten(Rings):
    """The padding behind an answer counts as written and is not."""

    def _command(self, chain: Chain, run: Any) -> int:
        readable = chain.read(self.memory)
        answer = run(readable, chain.writable_len)
        is_query = readable[:1] == b"\x0b" and len(answer) == 208
        chain.write(self.memory, answer[:204] if is_query else answer)
        return len(answer)


@mutant("AVQ-DEV-03", "NET-FF-DEV-02")
class TrailingZerosLeftOut(Rings):
    """Zero words at the end of an answer are neither written nor counted."""

    def _command(self, chain: Chain, run: Any) -> int:
        answer = run(chain.read(self.memory), chain.writable_len)
        while len(answer) > 8 and answer[-8:] == bytes(8):
            answer = answer[:-8]
        return chain.write(self.memory, answer)


# -- order ------------------------------------------------------------------------------------------------


@mutant("BAS-RSVD-09")
class FirstBufferLast(Rings):
    """The first of several transmit buffers comes back with the next kick, IN_ORDER or not."""

    _late: Chain | None = None

    def _new_queue(self, layout: QueueLayout) -> DeviceQueue:
        self._late = None
        return device_queue(self.memory, layout, self.device.context.features & ~mask(Feature.F_IN_ORDER))

    def kick(self, index: int) -> list[bytes]:
        queue = self._queues.get(index)
        in_order = self.device.context.has(Feature.F_IN_ORDER)
        if index != 1 or queue is None or not in_order or not self.device.is_operating:
            return super().kick(index)
        if self._late is not None:
            queue.push(self._late, 0)
        self._late = queue.pop() if queue.pending() > 1 else None
        return super().kick(index)


@mutant("NET-RX-DEV-04")
class LastBufferLater(Rings):
    """The last of more than two buffers becomes used with the next packet."""

    _late: tuple[Chain, int] | None = None

    def _fill(self, queue: DeviceQueue, buffer: bytes) -> bool:
        if self._late is not None:
            queue.push(*self._late)
            self._late = None
        return super()._fill(queue, buffer)

    def reset(self) -> None:
        self._late = None
        super().reset()

    def reset_queue(self, index: int) -> None:
        self._late = None
        super().reset_queue(index)

    def _spread(self, chains: list[Chain], data: bytes) -> list[tuple[Chain, int]]:
        used = super()._spread(chains, data)
        if len(used) > 2:
            self._late = used.pop()
        return used


# -- notifications ----------------------------------------------------------------------------------------


class QuietAbout(Rings):
    """Some queues notify nobody."""

    def is_quiet(self, index: int) -> bool:
        """Which."""
        raise NotImplementedError

    def _gather(self, index: int, queue: DeviceQueue) -> None:
        if not self.is_quiet(index):
            super()._gather(index, queue)


@mutant("INF-63")
class QuietAboutCommands(QuietAbout):
    """Nobody is told of commands that are done."""

    def is_quiet(self, index: int) -> bool:
        return index in {self.control_queue_index, self.admin_queue_index}


@mutant("INF-63")
class QuietAboutPackets(QuietAbout):
    """Nobody is told of packets."""

    def is_quiet(self, index: int) -> bool:
        return index < self.control_queue_index
