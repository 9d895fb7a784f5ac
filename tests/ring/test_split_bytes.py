"""Both sides of a split ring against bytes laid out by hand from virtio v1.4 2.7."""

from __future__ import annotations

import pytest

from virtio_ipsec.errors import ConfigError
from virtio_ipsec.fastpath.rings import FastDeviceQueue
from virtio_ipsec.ring.chain import Chain, QueueLayout, Segment
from virtio_ipsec.ring.faults import Fault, LayoutError
from virtio_ipsec.ring.memory import Allocator, GuestMemory, Region
from virtio_ipsec.ring.queue import Used, allocate_layout, driver_queue, free_layout
from virtio_ipsec.ring.split import SplitDeviceQueue, SplitDriverQueue
from virtio_ipsec.wire.numbers import Feature, mask

NEXT, WRITE, INDIRECT = 1, 2, 4
WITH_TABLES = mask(Feature.F_INDIRECT_DESC)


def test_the_device_reads_a_chain_and_writes_a_used_element(split, split_device) -> None:
    split.raw[0x10000:0x10005] = b"hello"
    split.desc(3, 0x10000, 3, NEXT, 1)
    split.desc(1, 0x10003, 2, NEXT, 0)
    split.desc(0, 0x10100, 2, WRITE | NEXT, 2)
    split.desc(2, 0x10200, 8, WRITE, 0xFFFF)
    split.offer(3)
    queue = split_device(split.memory, split.layout)
    assert queue.pending() == 1
    chain = queue.pop()
    assert chain == Chain(
        3, (Segment(0x10000, 3), Segment(0x10003, 2)), (Segment(0x10100, 2), Segment(0x10200, 8))
    )
    assert (chain.readable_len, chain.writable_len) == (5, 10)
    assert chain.read(split.memory) == b"hello"
    assert chain.write(split.memory, b"answer") == 6
    assert split.raw[0x10100:0x10103] == b"an\0"
    assert split.raw[0x10200:0x10205] == b"swer\0"
    assert queue.pop() is None
    queue.push(chain, 6)
    assert split.used() == (0, 1, [(3, 6), (0, 0), (0, 0), (0, 0)], 0)


def test_reading_stops_at_a_limit_and_writing_at_the_room(split) -> None:
    split.raw[0x10000:0x10006] = b"abcdef"
    chain = Chain(0, (Segment(0x10000, 4), Segment(0x10004, 2)), (Segment(0x10100, 3),))
    assert [chain.read(split.memory, limit) for limit in (0, 3, 4, 5, 6, 99)] == [
        b"",
        b"abc",
        b"abcd",
        b"abcde",
        b"abcdef",
        b"abcdef",
    ]
    assert chain.write(split.memory, b"123456") == 3
    assert split.raw[0x10100:0x10104] == b"123\0"
    assert Chain(0, (), (Segment(0, 1),)).read(split.memory) == b""


def test_indices_run_on_past_the_ring_and_past_65535(split, split_device) -> None:
    split.poke("<H", 0x4002, 65534)
    split.poke("<H", 0x6002, 65534)
    queue = split_device(split.memory, split.layout)
    queue.restore(65534)
    for index in range(4):
        split.desc(index, 0x10000 + 16 * index, 16, WRITE)
    split.offer(2, 0, 3, 1)
    chains = [queue.pop() for _ in range(4)]
    assert [chain.head for chain in chains] == [2, 0, 3, 1]
    assert queue.state() == 2
    queue.push_many([(chain, 16) for chain in reversed(chains)])
    flags, idx, ring, _ = split.used()
    # 65534 % 4 == 2: the first element goes to entry 2.
    assert (flags, idx, ring) == (0, 2, [(0, 16), (2, 16), (1, 16), (3, 16)])


def test_an_indirect_table_may_follow_direct_descriptors_and_its_own_write_flag_is_ignored(
    split, split_device
) -> None:
    split.desc(0, 0x10000, 4, NEXT, 2)
    split.desc(2, 0x8000, 48, INDIRECT | WRITE)
    split.table([(0x10010, 1, NEXT, 2), (0, 0, 0, 0), (0x10020, 2, WRITE, 0)])
    split.offer(0)
    chain = split_device(split.memory, split.layout, WITH_TABLES).pop()
    assert chain == Chain(0, (Segment(0x10000, 4), Segment(0x10010, 1)), (Segment(0x10020, 2),))


def test_an_indirect_table_may_be_larger_than_the_queue_and_lie_at_any_address(split, split_device) -> None:
    split.desc(0, 0x8003, 16 * 9, INDIRECT)
    split.table([(0x10000, 1, NEXT, 8)], at=0x8003)
    split.table([(0x10001, 1, 0, 0)], at=0x8003 + 8 * 16)
    split.offer(0)
    chain = split_device(split.memory, split.layout, WITH_TABLES).pop()
    assert chain.readable == (Segment(0x10000, 1), Segment(0x10001, 1))


def test_an_indirect_table_may_cross_regions(split, split_device) -> None:
    memory = GuestMemory(
        [
            Region(0, 0x8008, memoryview(split.raw)[:0x8008]),
            Region(0x8008, 0x17FF8, memoryview(split.raw)[0x8008:]),
        ]
    )
    split.desc(0, 0x8000, 32, INDIRECT)
    split.table([(0x10000, 1, NEXT, 1), (0x10001, 7, 0, 0)])
    split.offer(0)
    chain = split_device(memory, split.layout, WITH_TABLES).pop()
    assert chain.readable == (Segment(0x10000, 1), Segment(0x10001, 7))


def test_merged_buffers_become_visible_by_one_index_update(split) -> None:
    for index in range(3):
        split.desc(index, 0x10000 + 16 * index, 16, WRITE)
    split.offer(0, 1, 2)
    queue = SplitDeviceQueue(split.memory, split.layout)
    seen: list[int] = []

    class Watched:
        """The used index, noting each store and what the ring held then."""

        def __init__(self, words: memoryview) -> None:
            self.words = words

        def __setitem__(self, index: int, value: int) -> None:
            seen.append((index, value, split.used()[2][:3]))
            self.words[index] = value

    queue._parts.used_head = Watched(queue._parts.used_head)
    queue.push_many([(queue.pop(), 16), (queue.pop(), 16), (queue.pop(), 5)])
    assert seen == [(1, 3, [(0, 16), (1, 16), (2, 5)])]


def test_the_driver_writes_descriptors_then_the_ring_then_the_index(split) -> None:
    queue = SplitDriverQueue(split.memory, split.layout)
    queue.add([Segment(0x10000, 4)], [Segment(0x10010, 8), Segment(0x10020, 9)], "a")
    queue.add([], [Segment(0x10030, 1)], "b")
    assert split.avail()[1] == 0
    assert queue.free == 0
    assert queue.outstanding == 0
    queue.publish()
    flags, idx, *ring = split.avail()
    assert (flags, idx) == (0, 2)
    assert queue.outstanding == 2
    first = split.read_desc(ring[0])
    assert first[:3] == (0x10000, 4, NEXT)
    second = split.read_desc(first[3])
    assert second[:3] == (0x10010, 8, WRITE | NEXT)
    third = split.read_desc(second[3])
    assert third == (0x10020, 9, WRITE, 0)
    assert split.read_desc(ring[1]) == (0x10030, 1, WRITE, 0)
    assert len({ring[0], first[3], second[3], ring[1]}) == 4
    split.use((ring[1], 1), (ring[0], 17))
    assert queue.poll() == [Used("b", 1), Used("a", 17)]
    assert queue.poll() == []
    assert (queue.free, queue.outstanding) == (4, 0)


def test_the_driver_builds_an_indirect_table(split) -> None:
    allocator = Allocator(0x8000, 0x1000)
    queue = SplitDriverQueue(split.memory, split.layout, WITH_TABLES, allocator)
    queue.add([Segment(0x10000, 4), Segment(0x10010, 5)], [Segment(0x10020, 6)], 1, indirect=True)
    queue.publish()
    head = split.avail()[2]
    table, length, flags, _ = split.read_desc(head)
    assert (table % 16, length, flags) == (0, 48, INDIRECT)
    assert [split.peek("<QIHH", table + 16 * index) for index in range(3)] == [
        (0x10000, 4, NEXT, 1),
        (0x10010, 5, NEXT, 2),
        (0x10020, 6, WRITE, 0),
    ]
    assert queue.free == 3
    split.use((head, 6))
    assert queue.poll() == [Used(1, 6)]
    assert allocator.available == 0x1000


def test_the_driver_zeroes_the_areas(split) -> None:
    split.raw[0x1000:0x7000] = bytes([0xFF]) * 0x6000
    SplitDriverQueue(split.memory, split.layout)
    assert not any(split.raw[0x1000 : 0x1000 + 64])
    assert not any(split.raw[0x4000 : 0x4000 + 6 + 2 * 4])
    assert not any(split.raw[0x6000 : 0x6000 + 6 + 8 * 4])
    assert split.raw[0x1040] == split.raw[0x400E] == split.raw[0x6026] == 0xFF


def test_indirect_tables_need_an_allocator(split) -> None:
    queue = SplitDriverQueue(split.memory, split.layout, WITH_TABLES)
    with pytest.raises(ConfigError):
        queue.add([Segment(0x10000, 1)], [], 0, indirect=True)
    assert queue.free == 4


@pytest.mark.parametrize(
    ("layout", "kind"),
    [
        (QueueLayout(0, 0x1000, 0x4000, 0x6000), Fault.SIZE),
        (QueueLayout(3, 0x1000, 0x4000, 0x6000), Fault.SIZE),
        (QueueLayout(65536, 0x1000, 0x4000, 0x6000), Fault.SIZE),
        (QueueLayout(4, 0x1008, 0x4000, 0x6000), Fault.ALIGNMENT),
        (QueueLayout(4, 0x1000, 0x4001, 0x6000), Fault.ALIGNMENT),
        (QueueLayout(4, 0x1000, 0x4000, 0x6002), Fault.ALIGNMENT),
        (QueueLayout(4, 0x1FFD0, 0x4000, 0x6000), Fault.PLACEMENT),
        (QueueLayout(4, 0x1000, 0x1FFF4, 0x6000), Fault.PLACEMENT),
        (QueueLayout(4, 0x1000, 0x4000, 0x1FFDC), Fault.PLACEMENT),
        (QueueLayout(4, 0x1000, 0x4000, (1 << 64) - 4), Fault.PLACEMENT),
    ],
)
@pytest.mark.parametrize("side", [SplitDeviceQueue, SplitDriverQueue, FastDeviceQueue])
def test_impossible_layouts_are_refused(split, side: type, layout: QueueLayout, kind: Fault) -> None:
    before = bytes(split.raw)
    with pytest.raises(LayoutError) as caught:
        side(split.memory, layout)
    assert caught.value.kind is kind
    assert split.raw == before


def test_the_least_aligned_layout_that_just_fits_is_accepted(split, split_device) -> None:
    split_device(split.memory, QueueLayout(4, 0x1FFC0, 0x4002, 0x6004))
    # 6 + 8 x 4 = 38 bytes: a used ring at the last multiple of 4 that leaves room for them.
    split_device(split.memory, QueueLayout(4, 0x1010, 0x1FFF2, 0x1FFD8))


def test_a_ring_part_across_two_regions_is_refused(split_device) -> None:
    memory = GuestMemory([Region(0, 0x1010, bytearray(0x1010)), Region(0x1010, 0x8000, bytearray(0x8000))])
    with pytest.raises(LayoutError) as caught:
        split_device(memory, QueueLayout(4, 0x1000, 0x4000, 0x6000))
    assert caught.value.kind is Fault.PLACEMENT


def test_a_queue_of_32768_entries_works(device_queue) -> None:
    memory = GuestMemory.anonymous(1 << 20)
    allocator = Allocator(0, 1 << 20)
    layout = allocate_layout(allocator, 32768, 0)
    buffer = allocator.alloc(16)
    driver, device = driver_queue(memory, layout, 0), device_queue(memory, layout, 0)
    for token in range(32768):
        driver.add([Segment(buffer, 16)], [], token)
    driver.publish()
    assert device.pending() == 32768
    device.push_many([(device.pop(), 0) for _ in range(32768)])
    assert driver.poll() == [Used(token, 0) for token in range(32768)]
    free_layout(allocator, layout)
    allocator.free(buffer)
    assert allocator.available == 1 << 20


def test_a_queue_of_one_entry_works(split, split_device) -> None:
    layout = QueueLayout(1, 0x1000, 0x4000, 0x6000)
    driver, device = SplitDriverQueue(split.memory, layout), split_device(split.memory, layout)
    for token in range(3):
        driver.add([], [Segment(0x10000, 4)], token)
        driver.publish()
        device.push(device.pop(), 4)
        assert driver.poll() == [Used(token, 4)]
