"""Hostile ring memory: whatever the other side writes, only declared errors, bounded steps, no stray store.

An input is: features, queue size, 24 steps, and 512 bytes of guest memory (descriptors first, then driver
area, device area, an indirect table and buffers), so that a small mutation hits something that matters.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

from harness import Target, fuzz

from virtio_ipsec.fastpath.rings import FastDeviceQueue
from virtio_ipsec.ring.chain import Chain, QueueLayout, Segment
from virtio_ipsec.ring.faults import (
    ChainError,
    KindedRingError,
    LayoutError,
    QueueBroken,
    QueueFull,
    UsedError,
)
from virtio_ipsec.ring.memory import Allocator, GuestMemory, OutOfMemory, Region
from virtio_ipsec.ring.queue import DeviceQueue, device_queue, driver_queue
from virtio_ipsec.wire.numbers import Feature, mask

RING_FEATURES = (Feature.F_RING_PACKED, Feature.F_INDIRECT_DESC, Feature.F_EVENT_IDX, Feature.F_IN_ORDER)
BASE, SIZE, STEPS = 0x1000, 512, 24
DESC, DRIVER, DEVICE, TABLE, BUFFERS = BASE, BASE + 0x80, BASE + 0xA0, BASE + 0x100, BASE + 0x180


def parse(data: bytes) -> tuple[int, QueueLayout, bytes, bytearray]:
    """Features, layout, steps and memory of any input."""
    data = data.ljust(2 + STEPS, b"\0")
    features = mask(*(feature for bit, feature in enumerate(RING_FEATURES) if data[0] >> bit & 1))
    size = data[1] % 8 + 1 if data[0] & 1 else 1 << data[1] % 4
    image = bytearray(data[2 + STEPS : 2 + STEPS + SIZE].ljust(SIZE, b"\0"))
    return features, QueueLayout(size, DESC, DRIVER, DEVICE), data[2 : 2 + STEPS], image


def guest(image: bytearray) -> GuestMemory:
    """The memory in two adjacent regions: tables and buffers may cross from one into the other."""
    cut = TABLE - BASE + 24
    return GuestMemory(
        [Region(BASE, cut, memoryview(image)[:cut]), Region(BASE + cut, SIZE - cut, memoryview(image)[cut:])]
    )


def well_formed(rng: random.Random) -> bytes:
    """An input whose memory a correct driver has filled."""
    head = bytes([rng.randrange(16), rng.randrange(8)]) + rng.randbytes(STEPS)
    features, layout, _, image = parse(head)
    memory = guest(image)
    driver = driver_queue(memory, layout, features, Allocator(TABLE, BUFFERS - TABLE))
    for token in range(rng.randrange(6)):
        kinds = [rng.random() < 0.5 for _ in range(rng.randrange(1, 4))]
        segments = [Segment(rng.randrange(BUFFERS, BASE + SIZE - 16), rng.randrange(1, 16)) for _ in kinds]
        indirect = bool(features & mask(Feature.F_INDIRECT_DESC)) and rng.random() < 0.5
        reads = [segment for segment, write in zip(segments, kinds, strict=True) if not write]
        writes = [segment for segment, write in zip(segments, kinds, strict=True) if write]
        try:
            driver.add(reads, writes, token, indirect=indirect)
        except (ChainError, QueueFull, OutOfMemory):
            break
    driver.publish()
    return head + image


def own_bytes(layout: QueueLayout, features: int) -> set[int]:
    """Offsets of what a device may write of the ring."""
    if features & mask(Feature.F_RING_PACKED):
        entries = {16 * slot + byte for slot in range(layout.size) for byte in range(8, 16)}
        return {DESC - BASE + offset for offset in entries} | set(range(DEVICE - BASE, DEVICE - BASE + 4))
    return set(range(DEVICE - BASE, DEVICE - BASE + 6 + 8 * layout.size))


def check_chain(memory: GuestMemory, queue: DeviceQueue, chain: Chain) -> None:
    segments = chain.readable + chain.writable
    assert 0 < len(segments) <= queue.size
    for segment in segments:
        assert segment.length > 0
        memory.check(segment.addr, segment.length)
    assert len(chain.read(memory)) == chain.readable_len


def run_device(data: bytes) -> None:
    """A device works on memory that a hostile driver goes on changing."""
    features, layout, steps, image = parse(data)
    memory = guest(image)
    queue = device_queue(memory, layout, features)
    allowed = own_bytes(layout, features)
    taken: list[Chain] = []

    def push(step: int) -> None:
        used = [(chain, chain.writable_len if step & 64 else 0) for chain in taken[: 1 + step // 128]]
        queue.push_many(used, batch=bool(step & 32))
        del taken[: len(used)]

    def pop(step: int) -> None:
        chain = queue.pop()
        if chain is not None:
            check_chain(memory, queue, chain)
            taken.append(chain)

    def unpop(step: int) -> None:
        if taken:
            queue.unpop(taken[-1])
            taken.pop()

    def listen(step: int) -> None:
        (queue.enable_notifications if step & 8 else queue.disable_notifications)()

    def count(step: int) -> None:
        assert 0 <= queue.pending() <= queue.size

    def restore(step: int) -> None:
        state = queue.state() ^ (step >> 3 if step & 128 else 0)
        queue.restore(state)
        assert queue.state() == state
        taken.clear()

    actions: list[Callable[[int], None]] = [pop, pop, pop, push, unpop, listen, count, restore]
    for step in steps:
        before = bytes(image)
        broken = queue.broken
        try:
            actions[step % 8](step)
            queue.should_notify()
        except QueueBroken:
            assert broken
            queue.reset()
            taken.clear()
        except ChainError:
            assert queue.broken
            assert not broken
        except (LayoutError, UsedError):
            # A position that cannot be, or IN_ORDER asked for what is not the oldest: nothing was written.
            assert bytes(image) == before
        changed = {offset for offset in range(SIZE) if image[offset] != before[offset]}
        assert changed <= allowed, f"stray store at {sorted(changed - allowed)}"
        # The other side changes something, chosen by the step and by what stands there.
        image[(step * 37 + image[step]) % SIZE] ^= step


def run_driver(data: bytes) -> None:
    """A driver works on a ring whose device writes what it likes."""
    features, layout, steps, image = parse(data)
    lies = bytes(image)
    memory = guest(image)
    allocator = Allocator(TABLE, BUFFERS - TABLE)
    queue = driver_queue(memory, layout, features, allocator)
    rooms: dict[int, int] = {}
    for number, step in enumerate(steps):
        try:
            if step & 1:
                writes = [Segment(BUFFERS, 1 + step % 32)] * (step >> 1 & 1)
                queue.add(
                    [Segment(BUFFERS, 1 + step % 16)] * (1 + step // 100),
                    writes,
                    number,
                    indirect=bool(step & 4 and features & mask(Feature.F_INDIRECT_DESC)),
                )
                rooms[number] = sum(segment.length for segment in writes)
            if step & 8:
                queue.publish()
                queue.should_kick()
            (queue.enable_notifications if step & 16 else queue.disable_notifications)()
            for used in queue.poll():
                assert 0 <= used.written <= rooms.pop(used.token)
        except (QueueFull, ChainError, OutOfMemory):
            assert number not in rooms
        except QueueBroken:
            assert queue.broken
            lost = queue.reset()
            assert sorted(lost) == sorted(rooms)
            assert len(set(lost)) == len(lost)
            rooms.clear()
        except UsedError:
            assert queue.broken
        assert 0 <= queue.free <= queue.size
        # The device lies about a few bytes of what it owns.
        for offset in (step * 5, step * 11 + 2):
            where = (DEVICE if offset & 64 or not step & 128 else DESC) - BASE + offset % 64
            image[where] = lies[(where + number) % SIZE] if step & 32 else image[where] ^ 1 << step % 8
    lost = queue.reset()
    assert sorted(lost) == sorted(rooms)
    assert queue.free == queue.size
    assert allocator.available == BUFFERS - TABLE


class Device:
    """One implementation at work on its own copy of the memory, and what it says."""

    def __init__(
        self, make: Callable[..., DeviceQueue], layout: QueueLayout, features: int, image: bytes
    ) -> None:
        self.image = bytearray(image)
        self.queue = make(guest(self.image), layout, features)
        self.taken: list[Chain] = []

    def act(self, step: int) -> object:
        """One call, chosen by the step: its answer, or the kind of its error."""
        try:
            return self._act(step)
        except KindedRingError as error:
            if isinstance(error, QueueBroken):
                self.queue.reset()
                self.taken.clear()
            return type(error), error.kind

    def _act(self, step: int) -> object:
        queue, taken = self.queue, self.taken
        if step % 8 < 3:
            chain = queue.pop()
            if chain is not None:
                taken.append(chain)
            return chain
        if step % 8 == 3:
            used = [taken[(step >> 4) % len(taken)]] if taken and step & 8 else taken[: 1 + step // 128]
            queue.push_many(
                [(chain, chain.writable_len + (step == 131) if step & 64 else 0) for chain in used],
                batch=bool(step & 32),
            )
            self.taken = [chain for chain in taken if chain not in used]
            return len(used)
        if step % 8 == 4 and taken:
            queue.unpop(taken[-1])
            taken.pop()
            return None
        if step % 8 == 5:
            return queue.enable_notifications() if step & 8 else queue.disable_notifications()
        if step % 8 == 7:
            queue.restore(queue.state() ^ (step >> 3 if step & 128 else 0))
            taken.clear()
        return queue.pending()

    def seen(self) -> object:
        """Everything that can be seen of it."""
        return bytes(self.image), self.queue.fault, self.queue.state(), [chain.head for chain in self.taken]


def run_both(data: bytes) -> None:
    """The C rings do what the Python rings do, whatever the driver writes."""
    features, layout, steps, image = parse(data)
    both = [Device(make, layout, features, image) for make in (device_queue, FastDeviceQueue)]
    for step in steps:
        first, second = ((each.act(step), each.queue.broken or each.queue.should_notify()) for each in both)
        assert first == second, f"step {step}: {first} in Python, {second} in C"
        assert both[0].seen() == both[1].seen()
        for each in both:
            each.image[(step * 37 + each.image[step]) % SIZE] ^= step


TARGETS = (
    Target("device", seed=well_formed, run=run_device, declared=()),
    Target("both", seed=well_formed, run=run_both, declared=()),
    Target("driver", seed=well_formed, run=run_driver, declared=()),
)

if __name__ == "__main__":
    sys.exit(fuzz(TARGETS))
