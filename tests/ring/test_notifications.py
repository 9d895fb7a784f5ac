"""Notification suppression of both formats, against the text's rule told entry by entry."""

from __future__ import annotations

import pytest

from virtio_ipsec.ring.chain import Segment
from virtio_ipsec.ring.memory import GuestMemory, Region
from virtio_ipsec.ring.packed import PackedDriverQueue
from virtio_ipsec.ring.queue import device_queue, driver_queue
from virtio_ipsec.ring.split import SplitDriverQueue
from virtio_ipsec.wire.numbers import Feature, mask

EVENT = mask(Feature.F_EVENT_IDX)
PACKED = mask(Feature.F_RING_PACKED)
AVAIL, USED, WRITE = 0x80, 0x8000, 2
ENABLE, DISABLE, DESC = 0, 1, 2
B = 0x10000


def fill_split(split) -> None:
    for index in range(split.size):
        split.desc(index, B, 4, WRITE)


def split_round(split, queue, count: int) -> None:
    """Makes ``count`` one-descriptor buffers available, takes them and marks them used."""
    (idx,) = split.peek("<H", 0x4002)
    split.offer(*[(idx + step) % split.size for step in range(count)])
    queue.push_many([(queue.pop(), 4) for _ in range(count)])


def test_split_device_follows_the_no_interrupt_flag_and_ignores_used_event(split, split_device) -> None:
    fill_split(split)
    queue = split_device(split.memory, split.layout)
    split.poke("<H", 0x400C, 3)  # used_event: to be ignored
    split_round(split, queue, 1)
    assert queue.should_notify() is True
    assert queue.should_notify() is False, "nothing was pushed since"
    split.poke("<H", 0x4000, 1)
    split_round(split, queue, 1)
    assert queue.should_notify() is False


@pytest.mark.parametrize("start", [0, 65533])
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_split_device_notifies_exactly_when_the_used_event_entry_is_written(
    split, start: int, batch: int, split_device
) -> None:
    for event_after in range(-3, 9):
        split.raw[:] = bytes(len(split.raw))
        fill_split(split)
        split.poke("<H", 0x4002, start)
        split.poke("<H", 0x6002, start)
        queue = split_device(split.memory, split.layout, EVENT)
        queue.restore(start)
        split_round(split, queue, 1)
        assert queue.should_notify() is True, "after a restore the first answer is yes"
        split.poke("<H", 0x4000, 1)  # the flag's lower bit is to be ignored
        split.poke("<H", 0x400C, (start + 1 + event_after) % 65536)
        for first in (0, batch):
            split_round(split, queue, batch)
            written = range(first, first + batch)
            assert queue.should_notify() is (event_after in written)


def test_split_device_notifies_at_first_use_when_used_event_is_0(split, split_device) -> None:
    fill_split(split)
    queue = split_device(split.memory, split.layout, EVENT)
    split_round(split, queue, 1)
    assert queue.should_notify() is True
    for _ in range(16384):
        split_round(split, queue, 4)
        # 65536 entries on, the entry with index 0 comes again.
    assert queue.should_notify() is True


def test_split_device_asks_for_kicks_by_flag(split, split_device) -> None:
    queue = split_device(split.memory, split.layout)
    queue.disable_notifications()
    assert split.used()[0] == 1
    assert queue.enable_notifications() is False
    assert split.used()[0] == 0
    fill_split(split)
    split.offer(0)
    assert queue.enable_notifications() is True


def test_split_device_asks_for_kicks_by_avail_event_and_keeps_flags_0(split, split_device) -> None:
    fill_split(split)
    queue = split_device(split.memory, split.layout, EVENT)
    split.offer(0, 1)
    queue.pop()
    assert split.used()[3] == 1
    queue.pop()
    assert split.used()[3] == 2
    queue.disable_notifications()
    split.offer(2, 3)
    queue.pop()
    assert (split.used()[0], split.used()[3]) == (0, 2)
    assert queue.enable_notifications() is True
    # One more is there already; what matters is the entry after it.
    assert split.used()[3] == 4
    assert split.used()[0] == 0


def test_split_driver_follows_the_no_notify_flag_and_ignores_avail_event(split) -> None:
    queue = SplitDriverQueue(split.memory, split.layout)
    split.poke("<H", 0x6024, 3)
    queue.add([Segment(B, 1)], [], 0)
    assert queue.should_kick() is False, "nothing was published"
    queue.publish()
    assert queue.should_kick() is True
    assert queue.should_kick() is False
    split.poke("<H", 0x6000, 1)
    queue.add([Segment(B, 1)], [], 0)
    queue.publish()
    assert queue.should_kick() is False


def test_split_driver_kicks_exactly_when_the_avail_event_entry_is_written(split) -> None:
    for event in range(5):
        queue = SplitDriverQueue(split.memory, split.layout, EVENT)
        split.poke("<H", 0x6000, 1)  # the flag's lower bit is to be ignored
        split.poke("<H", 0x6024, event)
        for written in ((0, 1), (2,), (3,)):
            for _ in written:
                queue.add([Segment(B, 1)], [], 0)
            queue.publish()
            assert queue.should_kick() is (event in written)


def test_split_driver_asks_by_flag_or_by_used_event(split) -> None:
    queue = SplitDriverQueue(split.memory, split.layout)
    queue.disable_notifications()
    assert split.avail()[0] == 1
    assert queue.enable_notifications() is False
    assert split.avail()[0] == 0
    queue = SplitDriverQueue(split.memory, split.layout, EVENT)
    queue.disable_notifications()
    assert (split.avail()[0], split.avail()[-1]) == (0, 0xFFFF)
    for token in range(2):
        queue.add([Segment(B, 1)], [], token)
    queue.publish()
    split.use((0, 0))
    assert queue.enable_notifications() is True
    assert split.avail()[-1] == 0
    assert len(queue.poll()) == 1
    assert (split.avail()[0], split.avail()[-1]) == (0, 1), "poll moves the event on"
    queue.disable_notifications()
    split.use((1, 0))
    assert len(queue.poll()) == 1
    assert split.avail()[-1] == 0, "and leaves it alone when nobody listens"


def packed_use(packed, queue, position: int, ident: int = 0) -> None:
    """One descriptor made available at ``position`` (over two rounds), taken and used."""
    packed.desc(position % 3, B, 4, ident, WRITE | (AVAIL if position % 6 < 3 else USED))
    queue.push(queue.pop(), 4)


def test_packed_device_follows_enable_and_disable(packed, packed_device) -> None:
    queue = packed_device(packed.memory, packed.layout)
    packed_use(packed, queue, 0)
    assert queue.should_notify() is True
    assert queue.should_notify() is False
    packed.poke("<HH", 0x4000, 0, DISABLE)
    packed_use(packed, queue, 1)
    assert queue.should_notify() is False


@pytest.mark.parametrize("event", range(6))
def test_packed_device_notifies_exactly_at_the_event_descriptor(packed, event: int, packed_device) -> None:
    queue = packed_device(packed.memory, packed.layout, EVENT)
    wrap = event < 3
    packed.poke("<HH", 0x4000, event % 3 | wrap << 15, DESC)
    answers = []
    for position in range(12):
        packed_use(packed, queue, position)
        answers.append(queue.should_notify())
    assert answers == [position % 6 == event for position in range(12)]


def test_packed_device_notifies_for_an_event_inside_a_list_or_batch(packed, packed_device) -> None:
    queue = packed_device(packed.memory, packed.layout, EVENT)
    packed.poke("<HH", 0x4000, 1 | 1 << 15, DESC)
    packed.desc(0, B, 1, 0, AVAIL | 1)
    packed.desc(1, B, 1, 0, AVAIL)
    queue.push(queue.pop(), 0)
    assert queue.should_notify() is True
    for position in range(2, 14):
        packed_use(packed, queue, position)
    assert queue.should_notify() is True, "more than two rounds passed"


@pytest.mark.parametrize(
    ("features", "event"),
    [(0, (1 | 1 << 15, DESC)), (EVENT, (0, 3)), (0, (0, 3)), (EVENT, (3 | 1 << 15, DESC))],
    ids=["DESC not negotiated", "flags 3", "flags 3", "offset beyond the ring"],
)
def test_reserved_event_values_count_as_enabled(
    packed, features: int, event: tuple[int, int], packed_device
) -> None:
    queue = packed_device(packed.memory, packed.layout, features)
    packed.poke("<HH", 0x4000, *event)
    packed_use(packed, queue, 0)
    assert queue.should_notify() is True


def test_packed_device_writes_its_event_structure(packed, packed_device) -> None:
    queue = packed_device(packed.memory, packed.layout)
    queue.disable_notifications()
    assert packed.device_event() == (0, DISABLE)
    assert queue.enable_notifications() is False
    assert packed.device_event() == (0, ENABLE)
    queue = packed_device(packed.memory, packed.layout, EVENT)
    assert packed.device_event() == (0 | 1 << 15, DESC)
    for position in range(4):
        packed_use(packed, queue, position)
    assert packed.device_event() == (1, DESC)
    queue.disable_notifications()
    assert packed.device_event()[1] == DISABLE
    packed.desc(1, B, 4, 0, USED)
    assert queue.enable_notifications() is True
    assert packed.device_event() == (1, DESC)


def test_a_restored_device_asks_for_what_comes_next(split, packed, split_device, packed_device) -> None:
    queue = split_device(split.memory, split.layout, EVENT)
    split.poke("<H", 0x6000, 1)
    queue.restore(9)
    assert (split.used()[0], split.used()[3]) == (0, 9)
    queue = packed_device(packed.memory, packed.layout, EVENT)
    queue.restore(0x0001_0002)
    assert packed.device_event() == (2, DESC)


def test_packed_driver_kicks_by_the_device_event_structure(packed) -> None:
    queue = PackedDriverQueue(packed.memory, packed.layout, EVENT)
    answers = []
    packed.poke("<HH", 0x6000, 2 | 1 << 15, DESC)
    for slot, flags in ((0, DESC), (1, DESC), (2, DESC)):
        packed.poke("<H", 0x6002, flags)
        queue.add([Segment(B, 1)], [], slot)
        queue.publish()
        answers += [queue.should_kick(), queue.should_kick()]
    assert answers == [False, False, False, False, True, False]
    for flags, answer in ((DISABLE, False), (ENABLE, True)):
        queue = PackedDriverQueue(packed.memory, packed.layout)
        packed.poke("<HH", 0x6000, 0, flags)
        queue.add([Segment(B, 1)], [], 0)
        queue.publish()
        assert queue.should_kick() is answer


def test_packed_driver_writes_its_event_structure(packed) -> None:
    queue = PackedDriverQueue(packed.memory, packed.layout, EVENT)
    queue.disable_notifications()
    assert packed.driver_event() == (0, DISABLE)
    queue.add([Segment(B, 1)], [], 0)
    queue.publish()
    assert queue.enable_notifications() is False
    assert packed.driver_event() == (0 | 1 << 15, DESC)
    packed.use(0, 0, packed.read_desc(0)[2], wrap=1)
    assert queue.enable_notifications() is True
    assert len(queue.poll()) == 1
    assert packed.driver_event() == (1 | 1 << 15, DESC)
    queue.disable_notifications()
    queue.add([Segment(B, 1)], [], 0)
    queue.publish()
    packed.use(1, 0, packed.read_desc(1)[2], wrap=1)
    assert len(queue.poll()) == 1
    assert packed.driver_event()[1] == DISABLE
    queue = PackedDriverQueue(packed.memory, packed.layout)
    queue.enable_notifications()
    assert packed.driver_event() == (0, ENABLE)


@pytest.mark.parametrize("features", [0, EVENT, PACKED, PACKED | EVENT])
def test_each_suppression_field_is_read_after_a_fence(split, features: int) -> None:
    """Publishing and looking are ordered: the fence runs between the index store and the field's load."""
    log: list[str] = []
    memory = GuestMemory([Region(0, len(split.raw), split.raw)], fence=lambda: log.append("fence"))
    driver = driver_queue(memory, split.layout, features)
    device = device_queue(memory, split.layout, features)

    class Logged:
        """Words that note what happens to them."""

        def __init__(self, name: str, words: memoryview) -> None:
            self.name, self.words = name, words

        def __getitem__(self, index: int) -> int:
            log.append(f"load {self.name}")
            return self.words[index]

        def __setitem__(self, index: int, value: int) -> None:
            log.append(f"store {self.name}")
            self.words[index] = value

    for queue in (driver, device):
        for name in queue._parts.__slots__:
            if name != "size":
                setattr(queue._parts, name, Logged(name, getattr(queue._parts, name)))
    driver.add([], [Segment(B, 4)], 0)
    driver.publish()
    log.clear()
    driver.should_kick()
    assert log[0] == "fence"
    assert len(log) == 2
    device.push(device.pop(), 4)
    log.clear()
    device.should_notify()
    assert log[0] == "fence"
    assert len(log) == 2
    for queue in (driver, device):
        log.clear()
        queue.enable_notifications()
        assert log.index("fence") < len(log) - 1
        assert log[-1].startswith("load")
