"""The device's end of its virtqueues: buffers in, buffers out, and which queues want an interrupt.

Numbering (virtio v1.4 5.1.2): receiveqN is 2(N-1), transmitqN 2(N-1)+1, the control queue follows the last
pair in use, and the administration queue has a fixed place behind all others, whatever is negotiated.

Nothing is read from or written to a queue before DRIVER_OK (BAS-STATUS-05) or after an error. A driver that
breaks the rules of any ring puts the whole device into DEVICE_NEEDS_RESET: there is no other way to tell it
(BAS-STATUS-06), and a ring whose contents make no sense gives no ground to trust the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.state import DataPlaneContext, Received
from virtio_ipsec.errors import DeviceStateError, MemoryAccessError, Reason, RingError
from virtio_ipsec.fastpath.pipeline import RxState
from virtio_ipsec.ring.base import DeviceQueue
from virtio_ipsec.ring.chain import Chain, QueueLayout
from virtio_ipsec.ring.memory import GuestMemory
from virtio_ipsec.ring.queue import device_queue
from virtio_ipsec.wire.numbers import Feature

#: Largest transmit buffer taken, header included: a 64 KiB packet of any kind with room for its headers. A
#: longer one is completed and dropped.
MAX_TRANSMIT = 1 << 17
#: Bytes of a control or administration command that are looked at; what follows is ignored (AVQ-DEV-02).
MAX_COMMAND = 1 << 20
#: Most that a command's answer can take, for chains that offer more.
MAX_ANSWER = 1 << 20

_NUM_BUFFERS_AT = 10


class ByteDevice(Protocol):
    """The byte level of the device, which is all that the rings need of it."""

    @property
    def config(self) -> DeviceConfig:
        """What it is."""

    @property
    def context(self) -> DataPlaneContext:
        """What its control plane has decided."""

    @property
    def is_operating(self) -> bool:
        """Whether buffers may be consumed."""

    def needs_reset(self) -> None:
        """An error that only a reset cures."""

    def admin(self, readable: bytes, writable_len: int) -> bytes:
        """One administration command."""

    def control(self, readable: bytes, writable_len: int) -> bytes:
        """One control-queue command."""

    def transmit(self, buffer: bytes, queue: int = 0) -> list[bytes]:
        """One transmit buffer to wire frames."""

    def receive(self, frame: bytes) -> list[Received]:
        """One wire frame to receive buffers."""

    def resume(self, frame: bytes, state: RxState) -> list[Received]:
        """The rest of the way of a frame that the fast path has opened."""


class Rings:
    """All virtqueues of one device over one guest memory. Queue numbers are virtqueue indices."""

    def __init__(self, device: ByteDevice, memory: GuestMemory) -> None:
        self.device = device
        self.memory = memory
        self._queues: dict[int, DeviceQueue] = {}
        self._interrupts: set[int] = set()

    # Set-up

    @property
    def queue_count(self) -> int:
        """Virtqueues without the administration queue, as a transport's `num_queues` (INF-44)."""
        return 2 * self.device.config.max_queue_pairs + 1

    @property
    def admin_queue_index(self) -> int:
        """Index of the one administration queue (INF-45)."""
        return self.queue_count

    @property
    def control_queue_index(self) -> int:
        """Index of the control queue: it follows one pair, or all of them with MQ or RSS (virtio v1.4 5.1.2)."""
        context = self.device.context
        many = context.has(Feature.NET_F_MQ) or context.has(Feature.NET_F_RSS)
        return 2 * self.device.config.max_queue_pairs if many else 2

    def queue_max_size(self, index: int) -> int:
        """Largest size of a queue; 0 when there is no such queue."""
        return self.device.config.queue_size if 0 <= index <= self.admin_queue_index else 0

    def queue_enabled(self, index: int) -> bool:
        """Whether the queue is in use."""
        return index in self._queues

    def enable_queue(self, index: int, layout: QueueLayout) -> None:
        """Take a queue into use, with the negotiated ring format.

        DeviceStateError before FEATURES_OK, for a queue that does not exist or is in use already, and for one
        that is too large; RingError for a layout that no ring can have.
        """
        if not self.device.context.features:
            raise DeviceStateError("queues are enabled after FEATURES_OK")
        if not 0 < layout.size <= self.queue_max_size(index) or self.queue_enabled(index):
            raise DeviceStateError(f"queue {index} cannot be enabled with size {layout.size}")
        self._queues[index] = self._new_queue(layout)
        self._show_live()

    def _new_queue(self, layout: QueueLayout) -> DeviceQueue:
        """A queue in the negotiated ring format."""
        return device_queue(self.memory, layout, self.device.context.features)

    def position(self, index: int) -> int:
        """Where a queue in use is, for it to go on there."""
        return self._queues[index].state()

    def go_on(self, index: int, position: int) -> None:
        """A queue in use goes on at ``position``; RingError for one that it cannot have."""
        self._queues[index].restore(position)

    def reset_queue(self, index: int) -> None:
        """Forget one queue: nothing is executed on it until it is enabled anew (BAS-RESET-04, BAS-RESET-05)."""
        self._queues.pop(index, None)
        self._interrupts.discard(index)
        self._show_live()

    def reset(self) -> None:
        """Device reset: forget every queue (BAS-RESET-02); until one is enabled steering assumes them all."""
        self._queues.clear()
        self._interrupts.clear()
        self.device.context.live_rx_queues = None

    def _show_live(self) -> None:
        """Tell steering which receive queues there are."""
        end = self.control_queue_index
        self.device.context.live_rx_queues = {i >> 1 for i in self._queues if not i & 1 and i < end}

    # Notifications

    @property
    def interrupts(self) -> frozenset[int]:
        """Queues with a used buffer notification due."""
        return frozenset(self._interrupts)

    def take_interrupts(self) -> set[int]:
        """As :attr:`interrupts`, and they are settled."""
        due, self._interrupts = self._interrupts, set()
        return due

    # Traffic

    def kick(self, index: int) -> list[bytes]:
        """The driver has made buffers available: work them off; wire frames that this emits, in order.

        At most one ring full is worked off, so that a driver that keeps adding cannot hold the caller;
        :meth:`pending` tells whether something is left.
        """
        queue = self._queues.get(index)
        if queue is None or not self.device.is_operating:
            return []
        work = self._work(index)
        frames: list[bytes] = []
        if work is None:
            return frames
        try:
            for _ in range(queue.size):
                chain = queue.pop()
                if chain is None:
                    break
                queue.push(chain, work(chain, frames))
                if not self._is_live(index, queue):
                    return frames
            self._gather(index, queue)
        except (RingError, MemoryAccessError):
            self.device.needs_reset()
        return frames

    def pending(self, index: int) -> int:
        """Available buffers of a queue that :meth:`kick` works on; 0 for any other."""
        queue = self._queues.get(index)
        if queue is None or not self.device.is_operating or self._work(index) is None:
            return 0
        try:
            return queue.pending()
        except RingError:
            self.device.needs_reset()
            return 0

    def deliver(self, frame: bytes) -> None:
        """A frame from the wire: through the receive path into a receive queue, or dropped and counted.

        A frame for which no buffer is there is dropped after IPsec processing, so its sequence number stays
        marked as seen.
        """
        if not self.device.is_operating:
            return
        for received in self.device.receive(frame):
            self.place(received)

    def place(self, received: Received) -> None:
        """What is for the driver into a receive queue, or dropped and counted."""
        index = 2 * received.queue
        queue = self._queues.get(index)
        if queue is None:
            self.device.context.counters.refuse_rx(Reason.QUEUE_DISABLED)
            return
        try:
            if not self._fill(queue, received.buffer):
                self.device.context.counters.refuse_rx(Reason.NO_BUFFER)
            self._gather(index, queue)
        except (RingError, MemoryAccessError):
            self.device.needs_reset()

    def _work(self, index: int) -> Callable[[Chain, list[bytes]], int] | None:
        """What to do with a chain of this queue, or None when a kick means nothing there."""
        context = self.device.context
        if index == self.admin_queue_index:
            return self._admin if context.has(Feature.F_ADMIN_VQ) else None
        control = self.control_queue_index
        if index == control:
            return self._control if context.has(Feature.NET_F_CTRL_VQ) else None
        if index < control and index & 1:
            return lambda chain, frames: self._transmit(index >> 1, chain, frames)
        return None

    def _is_live(self, index: int, queue: DeviceQueue) -> bool:
        """Whether the queue is still the one at its index and may be worked on: a command can end that."""
        return self.device.is_operating and self._queues.get(index) is queue

    def _gather(self, index: int, queue: DeviceQueue) -> None:
        if queue.should_notify():
            self._interrupts.add(index)

    def _transmit(self, pair: int, chain: Chain, frames: list[bytes]) -> int:
        """Every buffer is completed, whatever became of its packet. Writable parts stay untouched."""
        if chain.readable_len > MAX_TRANSMIT:
            self.device.context.counters.refuse_tx(Reason.TOO_BIG)
        else:
            frames += self.device.transmit(chain.read(self.memory), pair)
        return 0

    def _admin(self, chain: Chain, frames: list[bytes]) -> int:
        return self._command(chain, self.device.admin)

    def _control(self, chain: Chain, frames: list[bytes]) -> int:
        return self._command(chain, self.device.control)

    def _command(self, chain: Chain, run: Callable[[bytes, int], bytes]) -> int:
        """Commands run in the order of the ring; the used length is that of the answer (AVQ-DEV-07, -02)."""
        answer = run(chain.read(self.memory, MAX_COMMAND), min(chain.writable_len, MAX_ANSWER))
        return chain.write(self.memory, answer)

    def _fill(self, queue: DeviceQueue, buffer: bytes) -> bool:
        """Put header and frame into receive buffers; False, and nothing taken, when they do not fit.

        With MRG_RXBUF as many buffers as it needs, all but the last full, shown to the driver together
        (NET-RX-DEV-02 to NET-RX-DEV-04); otherwise one (NET-RXB-DEV-02).
        """
        context = self.device.context
        most = self._most_buffers(queue)
        chains: list[Chain] = []
        room = 0
        while room < len(buffer) and len(chains) < most:
            chain = queue.pop()
            if chain is None:
                break
            chains.append(chain)
            room += chain.writable_len
        # The header lies in the first buffer whole: a shorter one is the driver's fault (ledger E17).
        if room < len(buffer) or chains[0].writable_len < context.header.size:
            for chain in reversed(chains):
                queue.unpop(chain)
            return False
        count = self._num_buffers(chains).to_bytes(2, "little")
        data = buffer[:_NUM_BUFFERS_AT] + count + buffer[_NUM_BUFFERS_AT + 2 :]
        queue.push_many(self._spread(chains, data))
        return True

    def _most_buffers(self, queue: DeviceQueue) -> int:
        """How many buffers a packet may be spread over."""
        return queue.size if self.device.context.has(Feature.NET_F_MRG_RXBUF) else 1

    def _num_buffers(self, chains: list[Chain]) -> int:
        """What the header says about them."""
        return len(chains)

    def _spread(self, chains: list[Chain], data: bytes) -> list[tuple[Chain, int]]:
        """Fill one buffer after the other; each with how much it got."""
        used = []
        at = 0
        for chain in chains:
            written = chain.write(self.memory, data[at:])
            used.append((chain, written))
            at += written
        return used
