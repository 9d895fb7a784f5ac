"""Device side of virtqueues over csrc/: what `ring/` does, byte for byte and fault for fault.

The C pipeline works on the same queues in bursts without Python in between; this face is for the queues that
Python owns, and for the tests that hold both implementations to one meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from virtio_ipsec.errors import MemoryAccessError
from virtio_ipsec.fastpath import native
from virtio_ipsec.ring.base import DeviceQueue
from virtio_ipsec.ring.chain import MAX_LENGTH, Chain, QueueLayout, Segment
from virtio_ipsec.ring.faults import Fault, LayoutError, UsedError
from virtio_ipsec.ring.memory import ADDRESS_LIMIT, GuestMemory
from virtio_ipsec.wire.numbers import Feature, has

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class FastMemory:
    """The regions of a :class:`GuestMemory` as csrc/ sees them; made once for each by :func:`fast_memory`."""

    __slots__ = ("_buffers", "_inflight", "_log", "handle")

    def __init__(self, memory: GuestMemory) -> None:
        ffi, lib = native.extension()
        views = memory.views
        self._buffers = [ffi.from_buffer("uint8_t[]", view, require_writable=True) for _, view in views]
        regions: Any = ffi.new("struct vipsec_region[]", len(views))
        for region, (address, view), buffer in zip(regions, views, self._buffers, strict=True):
            region.guest_addr, region.size, region.host = address, len(view), buffer
        handle = lib.vipsec_memory_new(regions, len(views))
        if handle == ffi.NULL:
            raise MemoryAccessError("csrc/ cannot take these regions")
        #: ``struct vipsec_memory *``, valid as long as this object.
        self.handle = ffi.gc(handle, lib.vipsec_memory_free)
        #: What C points at besides the regions.
        self._log: Any = None
        self._inflight: Any = None

    def set_log(self, log: WriteableBuffer | None) -> None:
        """The dirty log (one bit for each 4 KiB of guest addresses) that stores are noted in from now on, except those
        into rings: see :meth:`FastDeviceQueue.set_log`. No queue over the memory may be at work meanwhile."""
        _, lib = native.extension()
        view = _writable(log)
        lib.vipsec_memory_set_log(self.handle, *view)
        self._log = view

    def set_inflight(self, mapping: WriteableBuffer | None) -> None:
        """What the inflight regions of queues lie in (:attr:`QueueOptions.inflight`). Queues that have a region in the
        mapping before this one must be gone."""
        _, lib = native.extension()
        view = _writable(mapping)
        lib.vipsec_memory_set_inflight(self.handle, *view)
        self._inflight = view

    @property
    def failed(self) -> bool:
        """Whether a mapping lost its backing while csrc/ worked on it."""
        _, lib = native.extension()
        return bool(lib.vipsec_memory_failed(self.handle))


def _writable(buffer: WriteableBuffer | None) -> tuple[Any, int]:
    """The buffer as C sees it, and its size. It cannot be resized or closed while the former is alive."""
    ffi, _ = native.extension()
    if buffer is None:
        return ffi.NULL, 0
    view: Any = ffi.from_buffer("uint8_t[]", buffer, require_writable=True)
    return view, len(view)


def inflight_size(size: int, features: int) -> int:
    """Octets of the inflight region of one queue of ``size`` entries; a multiple of 64."""
    _, lib = native.extension()
    packed = lib.VIPSEC_QUEUE_PACKED if has(features, Feature.F_RING_PACKED) else 0
    return int(lib.vipsec_inflight_size(size, packed))


_memories: WeakKeyDictionary[GuestMemory, FastMemory] = WeakKeyDictionary()


def fast_memory(memory: GuestMemory) -> FastMemory:
    """The C side of this memory."""
    made = _memories.get(memory)
    if made is None:
        made = _memories[memory] = FastMemory(memory)
    return made


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """How a queue begins, and who is told of what it does. The file descriptors stay the caller's."""

    #: Non-blocking eventfd of used buffer notifications; C tells it by itself.
    call_fd: int | None = None
    #: The same, told once when the queue breaks.
    err_fd: int | None = None
    #: Ring position to go on at, as :meth:`DeviceQueue.state` gives it; None: a new queue.
    state: int | None = None
    #: Where the queue's region lies in the inflight mapping of its memory (:meth:`FastMemory.set_inflight`).
    inflight: int | None = None


class FastDeviceQueue(DeviceQueue):
    """Device side of a split or packed virtqueue in C.

    Differs from the classes of `ring/` in two ways: its barriers are real ones, whatever ``memory.fence`` is, and
    memory whose backing vanishes breaks the queue (:attr:`Fault.MEMORY`) instead of ending the process.
    """

    def __init__(
        self,
        memory: GuestMemory,
        layout: QueueLayout,
        features: int = 0,
        options: QueueOptions = QueueOptions(),
    ) -> None:
        self._fast = fast_memory(memory)
        self._options = options
        self._begin: tuple[int | None, int | None] = (options.state, options.inflight)
        #: Buffers that an earlier owner of the ring had taken and not marked used: they are popped again first.
        self.recovered = 0
        _, lib = native.extension()
        flags = (
            (Feature.F_RING_PACKED, lib.VIPSEC_QUEUE_PACKED),
            (Feature.F_INDIRECT_DESC, lib.VIPSEC_QUEUE_INDIRECT),
            (Feature.F_EVENT_IDX, lib.VIPSEC_QUEUE_EVENT_IDX),
            (Feature.F_IN_ORDER, lib.VIPSEC_QUEUE_IN_ORDER),
        )
        self._flags = sum(flag for feature, flag in flags if has(features, feature))
        super().__init__(memory, layout, features)

    @property
    def handle(self) -> Any:
        """``struct vipsec_queue *``, valid until the next reset or restore."""
        return self._handle

    @property
    def faulty(self) -> bool:
        """Whether the queue is broken, be it that C alone knows."""
        _, lib = native.extension()
        return self.broken or bool(lib.vipsec_queue_fault(self._handle))

    def reset(self, layout: QueueLayout | None = None) -> None:
        (state, inflight), self._begin = self._begin, (None, None)
        self._start(layout or self._layout, state)
        if inflight is not None:
            self._recover(inflight)

    def restore(self, state: int) -> None:
        self._start(self._layout, state)

    def move(self, memory: GuestMemory) -> bool:
        """Go on in this memory, whose owner has changed something else in it than where the rings are. False when it is
        not so simple: nothing has changed, another queue has to take this one's place."""
        _, lib = native.extension()
        fast = fast_memory(memory)
        if not lib.vipsec_queue_move(self._handle, fast.handle):
            return False
        self._memory, self._fast, self._kept[0] = memory, fast, fast
        return True

    def set_fds(self, call_fd: int | None, err_fd: int | None) -> None:
        """Other eventfds; see ``vipsec_queue_set_fds`` for when the old ones may be closed."""
        _, lib = native.extension()
        self._options = replace(self._options, call_fd=call_fd, err_fd=err_fd)
        lib.vipsec_queue_set_fds(self._handle, *_numbers(self._options))

    def set_log(self, used: int | None) -> None:
        """Note stores into the rings in the memory's dirty log: ``used`` is where the device area counts as lying
        (vhost-user's ``log_guest_addr``); None: no longer. Ends with :meth:`reset` and :meth:`restore`."""
        _, lib = native.extension()
        lib.vipsec_queue_set_log(self._handle, used is not None, used or 0)

    def notify(self) -> bool:
        """:meth:`should_notify`, and tell ``call_fd`` if so."""
        self._refuse_when_broken()
        _, lib = native.extension()
        return bool(self._checked(lib.vipsec_queue_notify(self._handle)))

    def _start(self, layout: QueueLayout, state: int | None) -> None:
        ffi, lib = native.extension()
        if state is not None and not 0 <= state < 1 << 32:
            raise LayoutError(Fault.INDEX, f"ring position {state:#x}")
        places = (layout.desc, layout.driver, layout.device)
        if not 0 < layout.size <= 0xFFFFFFFF:
            raise LayoutError(Fault.SIZE, f"queue size {layout.size}")
        if not all(0 <= address < ADDRESS_LIMIT for address in places):
            raise LayoutError(Fault.PLACEMENT, f"{layout} leaves the 64-bit address space")
        config: Any = ffi.new("struct vipsec_queue_config *")
        resume = 0 if state is None else lib.VIPSEC_QUEUE_RESUME
        config.size, config.flags, config.state = layout.size, self._flags | resume, state or 0
        config.desc, config.driver, config.device = places
        config.call_fd, config.err_fd = _numbers(self._options)
        fault: Any = ffi.new("int *")
        handle = lib.vipsec_queue_new(self._fast.handle, config, fault)
        if handle == ffi.NULL:
            if fault[0] == 0:
                raise MemoryError
            raise LayoutError(_kind(fault[0]), f"{layout}, position {state or 0:#x}")
        #: What the handle needs, whoever is the last to hold it.
        self._kept = kept = [self._fast]
        self._handle = ffi.gc(handle, lambda queue: _free_queue(queue, kept))
        self._layout = layout
        self._fault = None
        #: What is out, by head: the chain handed out and its C twin.
        self._taken: dict[int, tuple[Chain, Any]] = {}

    def _recover(self, inflight: int) -> None:
        _, lib = native.extension()
        answer = lib.vipsec_queue_inflight_new(self._handle, inflight)
        if answer == -lib.VIPSEC_FAULT_COUNT:
            raise MemoryError
        if answer < 0:
            raise LayoutError(_kind(-answer), f"inflight region at {inflight:#x}")
        self.recovered = answer

    def end_record(self) -> None:
        """The queue has stopped for good: with nothing in flight, its in-flight record is void."""
        _, lib = native.extension()
        lib.vipsec_queue_inflight_end(self._handle)

    def pop(self) -> Chain | None:
        self._refuse_when_broken()
        ffi, lib = native.extension()
        taken: Any = ffi.new("struct vipsec_chain *")
        if not self._checked(lib.vipsec_queue_pop(self._handle, taken)):
            return None
        readable = _segments(taken.segments, 0, taken.readable)
        chain = Chain(taken.head, readable, _segments(taken.segments, taken.readable, taken.writable))
        # Valid until the next pop only.
        taken.segments = ffi.NULL
        self._taken[chain.head] = (chain, taken)
        return chain

    def unpop(self, chain: Chain) -> None:
        self._refuse_when_broken()
        _, lib = native.extension()
        held = self._taken.get(chain.head)
        if held is None or held[0] is not chain or lib.vipsec_queue_unpop(self._handle, held[1]) < 0:
            raise UsedError(Fault.USED_ORDER, f"buffer {chain.head} is not the one popped last")
        del self._taken[chain.head]

    def pending(self) -> int:
        self._refuse_when_broken()
        _, lib = native.extension()
        return self._checked(lib.vipsec_queue_pending(self._handle))

    def push_many(self, used: Sequence[tuple[Chain, int]], *, batch: bool = False) -> None:
        self._refuse_when_broken()
        ffi, lib = native.extension()
        chains: Any = ffi.new("struct vipsec_chain[]", len(used))
        lengths: Any = ffi.new("uint32_t[]", len(used))
        for index, (chain, written) in enumerate(used):
            held = self._taken.get(chain.head)
            # A chain of old keeps 0 descriptors, which no chain has: refused as not with the device.
            if held is not None and held[0] is chain:
                chains[index] = held[1][0]
            if 0 <= written <= MAX_LENGTH:
                lengths[index] = written
            else:
                lengths[index], chains[index].writable_len = 1, 0
        answer = lib.vipsec_queue_push(self._handle, chains, lengths, len(used), batch)
        if answer < 0:
            kind = _kind(-answer)
            if kind is Fault.MEMORY:
                self._checked(answer)
            raise UsedError(kind, f"cannot mark {len(used)} buffers used, the first is {used[0][0].head}")
        for chain, _ in used:
            del self._taken[chain.head]

    def should_notify(self) -> bool:
        self._refuse_when_broken()
        _, lib = native.extension()
        return bool(self._checked(lib.vipsec_queue_should_notify(self._handle)))

    def enable_notifications(self) -> bool:
        self._refuse_when_broken()
        _, lib = native.extension()
        return bool(self._checked(lib.vipsec_queue_notify_enable(self._handle)))

    def disable_notifications(self) -> None:
        self._refuse_when_broken()
        _, lib = native.extension()
        self._checked(lib.vipsec_queue_notify_disable(self._handle))

    def state(self) -> int:
        _, lib = native.extension()
        return int(lib.vipsec_queue_state(self._handle))

    def _checked(self, answer: int) -> int:
        """The answer of a C call, or the error that has broken the queue."""
        if answer < 0:
            self._break(_kind(-answer), "found by csrc/")
        return answer


def _free_queue(queue: Any, _memory: list[FastMemory]) -> None:
    """The memory goes after its queues."""
    _, lib = native.extension()
    lib.vipsec_queue_free(queue)


def _numbers(options: QueueOptions) -> tuple[int, int]:
    """The eventfds as C has them."""
    return tuple(-1 if fd is None else fd for fd in (options.call_fd, options.err_fd))  # type: ignore[return-value]


def _segments(segments: Any, first: int, count: int) -> tuple[Segment, ...]:
    """The descriptors behind ``count`` segments: one that crosses regions is several."""
    found: list[Segment] = []
    for segment in segments[first : first + count]:
        if segment.continues:
            last = found.pop()
            found.append(Segment(last.addr, last.length + segment.len))
        else:
            found.append(Segment(segment.guest, segment.len))
    return tuple(found)


def _kind(fault: int) -> Fault:
    ffi, lib = native.extension()
    text: Any = ffi.string(lib.vipsec_fault_name(fault))
    return Fault(text.decode())
