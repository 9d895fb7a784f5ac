"""Both sides of a ring against a model made of lists: nothing lost, nothing twice, nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from virtio_ipsec.fastpath.rings import FastDeviceQueue
from virtio_ipsec.ring.base import DeviceQueue
from virtio_ipsec.ring.chain import Chain, Segment
from virtio_ipsec.ring.faults import QueueFull, UsedError
from virtio_ipsec.ring.memory import Allocator, GuestMemory
from virtio_ipsec.ring.queue import Used, allocate_layout, device_queue, driver_queue
from virtio_ipsec.wire.numbers import Feature, mask

POOL = 0x4000
LENGTHS = st.lists(st.integers(1, 40), max_size=3)


@dataclass
class Buffer:
    """What the model knows of one buffer."""

    token: int
    sent: bytes
    reads: list[Segment]
    writes: list[Segment]
    chain: Chain | None = None
    answer: bytes = b""
    descriptors: int = 0
    #: Pops less unpops of the device when this one was popped.
    popped: int = 0
    extra: list[int] = field(default_factory=list)


class Rings(RuleBasedStateMachine):
    """One driver, one device, one ring. A buffer wanders staged -> shown -> taken -> used -> gone."""

    features = 0
    make_device: ClassVar[Callable[..., DeviceQueue]] = staticmethod(device_queue)

    @initialize(size=st.sampled_from([1, 2, 4, 8]), odd=st.integers(1, 9))
    def start(self, size: int, odd: int) -> None:
        packed = self.features >> Feature.F_RING_PACKED & 1
        self.size = odd if packed else size
        self.in_order = self.features >> Feature.F_IN_ORDER & 1
        self.memory = GuestMemory.anonymous(0x8000, 0x10_0000)
        self.allocator = Allocator(0x10_0000, 0x8000)
        self.layout = allocate_layout(self.allocator, self.size, self.features)
        self.spare = self.allocator.available
        self.driver = driver_queue(self.memory, self.layout, self.features, self.allocator)
        self.device = self.make_device(self.memory, self.layout, self.features)
        self.count = self.popped = 0
        self.staged: list[Buffer] = []
        self.shown: list[Buffer] = []
        self.taken: list[Buffer] = []
        self.used: list[Buffer] = []
        # A kick or an interrupt that the other side is owed when it sleeps.
        self.device_awake = self.driver_awake = True

    def place(self, lengths: list[int]) -> list[Segment]:
        return [Segment(self.allocator.alloc(length, 1), length) for length in lengths]

    @rule(reads=LENGTHS, writes=LENGTHS, indirect=st.booleans(), show=st.booleans())
    def add(self, reads: list[int], writes: list[int], indirect: bool, show: bool) -> None:
        indirect = indirect and bool(self.features >> Feature.F_INDIRECT_DESC & 1)
        # What is drawn is cut to what a driver may offer: a rule that does nothing explores nothing.
        reads = reads[: self.size]
        writes = writes[: self.size - len(reads)] if reads else (writes or [1])[: self.size]
        count = len(reads) + len(writes)
        buffer = Buffer(self.count, b"", self.place(reads), self.place(writes))
        buffer.descriptors = 1 if indirect else count
        for segment in buffer.reads:
            data = bytes((self.count * 7 + segment.addr + step) % 256 for step in range(segment.length))
            self.memory.write(segment.addr, data)
            buffer.sent += data
        out = sum(b.descriptors for b in self.staged + self.shown + self.taken + self.used)
        if buffer.descriptors > self.size - out:
            with pytest.raises(QueueFull):
                self.driver.add(buffer.reads, buffer.writes, buffer.token, indirect=indirect)
            self.forget(buffer)
            return
        self.driver.add(buffer.reads, buffer.writes, buffer.token, indirect=indirect)
        self.count += 1
        self.staged.append(buffer)
        if show:
            self.publish()

    def forget(self, buffer: Buffer) -> None:
        for segment in buffer.reads + buffer.writes:
            self.allocator.free(segment.addr)

    @rule()
    def publish(self) -> None:
        self.driver.publish()
        fresh, self.staged = self.staged, []
        self.shown += fresh
        kicked = self.driver.should_kick()
        assert not kicked or fresh
        if fresh and not self.device_awake:
            assert kicked, "the device sleeps and must be told"
        self.device_awake |= kicked

    @rule(most=st.integers(1, 4))
    def take(self, most: int) -> None:
        for _ in range(most):
            chain = self.device.pop()
            if chain is None:
                assert not self.shown
                return
            buffer = self.shown.pop(0)
            assert chain.readable == tuple(buffer.reads)
            assert chain.writable == tuple(buffer.writes)
            assert chain.read(self.memory) == buffer.sent
            self.popped += 1
            buffer.chain, buffer.popped = chain, self.popped
            self.taken.append(buffer)

    @precondition(lambda self: self.taken)
    @rule()
    def give_back(self) -> None:
        buffer = self.taken[-1]
        if buffer.popped != self.popped:
            with pytest.raises(UsedError):
                self.device.unpop(buffer.chain)
            return
        self.device.unpop(buffer.chain)
        self.popped -= 1
        self.shown.insert(0, self.taken.pop())

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), batch=st.booleans())
    def answer(self, data: st.DataObject, batch: bool) -> None:
        if self.in_order:
            chosen = self.taken[: data.draw(st.integers(1, len(self.taken)))]
        else:
            chosen = data.draw(
                st.lists(st.sampled_from(self.taken), min_size=1, unique_by=lambda buffer: buffer.token)
            )
        used = []
        for buffer in chosen:
            room = buffer.chain.writable_len
            length = data.draw(st.sampled_from(sorted({0, room // 2, room})))
            buffer.answer = bytes((buffer.token * 13 + step) % 256 for step in range(length))
            assert buffer.chain.write(self.memory, buffer.answer) == length
            used.append((buffer.chain, length))
            self.taken.remove(buffer)
        self.device.push_many(used, batch=batch)
        self.used += chosen
        notified = self.device.should_notify()
        if not self.driver_awake:
            assert notified, "the driver sleeps and must be told"
        self.driver_awake |= notified

    @rule()
    def collect(self) -> None:
        returned = self.driver.poll()
        assert returned == [Used(buffer.token, len(buffer.answer)) for buffer in self.used]
        for buffer in self.used:
            written = b"".join(self.memory.read(segment.addr, segment.length) for segment in buffer.writes)
            assert written[: len(buffer.answer)] == buffer.answer
            self.forget(buffer)
        self.used = []

    @rule()
    def device_sleeps(self) -> None:
        assert self.device.enable_notifications() is bool(self.shown)
        self.device_awake = bool(self.shown)

    @rule()
    def device_polls_without_notifications(self) -> None:
        self.device.disable_notifications()
        self.device_awake = True

    @rule()
    def driver_sleeps(self) -> None:
        assert self.driver.enable_notifications() is bool(self.used)
        self.driver_awake = bool(self.used)

    @rule()
    def driver_polls_without_notifications(self) -> None:
        self.driver.disable_notifications()
        self.driver_awake = True

    @precondition(lambda self: self.count % 8 == 7)
    @rule()
    def reset(self) -> None:
        self.device.reset()
        lost = self.driver.reset()
        assert lost == [b.token for b in sorted(self.everything(), key=lambda b: b.token)]
        for buffer in self.everything():
            self.forget(buffer)
        self.staged, self.shown, self.taken, self.used = [], [], [], []
        self.device_awake = self.driver_awake = True

    @precondition(lambda self: not self.taken and self.count % 4 == 3)
    @rule()
    def replace_the_device(self) -> None:
        state = self.device.state()
        self.device = self.make_device(self.memory, self.layout, self.features)
        self.device.restore(state)
        self.device_awake = True

    def everything(self) -> list[Buffer]:
        return self.staged + self.shown + self.taken + self.used

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "driver"):
            return
        assert self.driver.free == self.size - sum(buffer.descriptors for buffer in self.everything())
        assert self.driver.outstanding == len(self.shown + self.taken + self.used)
        assert self.device.pending() == len(self.shown)
        assert not self.driver.broken
        assert not self.device.broken

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        self.publish()
        self.take(self.size)
        if self.taken:
            self.device.push_many([(buffer.chain, 0) for buffer in self.taken])
            for buffer in self.taken:
                buffer.answer = b""
            self.used += self.taken
            self.taken = []
        self.collect()
        self.counts_agree()
        assert self.driver.free == self.size
        assert self.allocator.available == self.spare, "a table or segment was lost"


RING_FEATURES = (Feature.F_RING_PACKED, Feature.F_INDIRECT_DESC, Feature.F_EVENT_IDX, Feature.F_IN_ORDER)
for number in range(1 << len(RING_FEATURES)):
    chosen = [feature for bit, feature in enumerate(RING_FEATURES) if number >> bit & 1]
    name = "Rings_" + ("_".join(feature.name for feature in chosen) or "plain")
    for suffix, queue, examples in (("", device_queue, 25), ("_in_C", FastDeviceQueue, 15)):
        members = {"features": mask(*chosen), "make_device": staticmethod(queue)}
        machine = type(name + suffix, (Rings,), members)
        case = machine.TestCase
        case.settings = settings(max_examples=examples, stateful_step_count=40)
        globals()[f"Test{name}{suffix}"] = case
del case, machine
