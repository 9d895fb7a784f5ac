"""Both sides of a packed ring against bytes laid out by hand from virtio v1.4 2.8."""

from __future__ import annotations

import pytest

from virtio_ipsec.fastpath.rings import FastDeviceQueue
from virtio_ipsec.ring.chain import Chain, QueueLayout, Segment
from virtio_ipsec.ring.faults import Fault, LayoutError
from virtio_ipsec.ring.memory import Allocator, GuestMemory, Region
from virtio_ipsec.ring.packed import PackedDeviceQueue, PackedDriverQueue
from virtio_ipsec.ring.queue import Used, allocate_layout, driver_queue
from virtio_ipsec.wire.numbers import Feature, mask

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 0x80, 0x8000
WITH_TABLES = mask(Feature.F_INDIRECT_DESC)
PACKED = mask(Feature.F_RING_PACKED)


def test_the_device_reads_a_list_over_the_end_of_the_ring(packed, packed_device) -> None:
    packed.desc(0, 0x10000, 5, 9, AVAIL)
    packed.desc(1, 0x10010, 6, 9, AVAIL)
    queue = packed_device(packed.memory, packed.layout)
    assert queue.pending() == 2
    first, second = queue.pop(), None
    assert first == Chain(9, (Segment(0x10000, 5),), ())
    packed.desc(1, 0x10010, 6, 4, AVAIL)
    second = queue.pop()
    assert second.head == 4
    queue.push(first, 0)
    # Used: both marks equal the wrap counter, no WRITE because nothing was written; the address stays.
    assert packed.read_desc(0) == (0x10000, 0, 9, AVAIL | USED)
    queue.push(second, 0)
    # Slot 2 in the first round, slots 0 and 1 in the second: marks swap.
    packed.desc(2, 0x10020, 7, 777, AVAIL | NEXT)
    packed.desc(0, 0x10030, 8, 777, USED | NEXT | WRITE)
    packed.desc(1, 0x10040, 9, 0xFFFF, USED | WRITE)
    third = queue.pop()
    assert third == Chain(0xFFFF, (Segment(0x10020, 7),), (Segment(0x10030, 8), Segment(0x10040, 9)))
    assert queue.pop() is None
    queue.push(third, 17)
    assert packed.read_desc(2) == (0x10020, 17, 0xFFFF, AVAIL | USED | WRITE)
    # The next used descriptor would be slot 2 of the second round: marks 0.
    packed.desc(2, 0x10050, 1, 2, USED | WRITE)
    queue.push(queue.pop(), 1)
    assert packed.read_desc(2) == (0x10050, 1, 2, WRITE)
    # Third round: the counter is 1 again.
    packed.desc(0, 0x10060, 1, 3, AVAIL)
    assert queue.pop().head == 3


@pytest.mark.parametrize("flags", [0, USED, AVAIL | USED])
def test_what_is_not_marked_available_is_not_taken(packed, flags: int, packed_device) -> None:
    packed.desc(0, 0x10000, 5, 0, flags)
    queue = packed_device(packed.memory, packed.layout)
    assert queue.pop() is None
    assert queue.pending() == 0


def test_used_descriptors_are_written_in_the_order_of_completion(packed, packed_device) -> None:
    packed.desc(0, 0x10000, 4, 10, AVAIL | WRITE | NEXT)
    packed.desc(1, 0x10000, 4, 10, AVAIL | WRITE)
    packed.desc(2, 0x10000, 4, 11, AVAIL | WRITE)
    queue = packed_device(packed.memory, packed.layout)
    pair, single = queue.pop(), queue.pop()
    queue.push(single, 1)
    assert packed.read_desc(0)[1:] == (1, 11, AVAIL | USED | WRITE)
    queue.push(pair, 2)
    # One descriptor was used by `single`, so the pair is told in slot 1.
    assert packed.read_desc(1)[1:] == (2, 10, AVAIL | USED | WRITE)
    assert packed.read_desc(2)[1:] == (4, 11, AVAIL | WRITE)


def test_an_indirect_table_is_sequential_and_only_its_write_flags_count(packed, packed_device) -> None:
    packed.desc(0, 0x8000, 48, 5, AVAIL | INDIRECT | WRITE)
    packed.table(
        [
            (0x10000, 3, 99, NEXT | INDIRECT | AVAIL | USED),
            (0x10010, 4, 98, 0),
            (0x10020, 5, 97, WRITE | NEXT),
        ]
    )
    queue = packed_device(packed.memory, packed.layout, WITH_TABLES)
    assert queue.pop() == Chain(5, (Segment(0x10000, 3), Segment(0x10010, 4)), (Segment(0x10020, 5),))


def test_merged_buffers_become_visible_by_the_first_descriptor_last(packed) -> None:
    for slot in range(3):
        packed.desc(slot, 0x10000, 16, slot, AVAIL | WRITE)
    queue = PackedDeviceQueue(packed.memory, packed.layout)
    chains = [queue.pop() for _ in range(3)]
    stores: list[int] = []

    class Watched:
        """The descriptor ring, noting each store."""

        def __init__(self, words: memoryview) -> None:
            self.words = words

        def __setitem__(self, index: int, value: int) -> None:
            stores.append(index)
            self.words[index] = value

    queue._parts.desc = Watched(queue._parts.desc)
    queue.push_many([(chains[0], 16), (chains[1], 16), (chains[2], 3)])
    # Words 1, 3, 5: len, id and flags of slots 0, 1, 2; each is one store.
    assert stores == [5, 3, 1]
    assert [packed.read_desc(slot)[1:] for slot in range(3)] == [
        (16, 0, AVAIL | USED | WRITE),
        (16, 1, AVAIL | USED | WRITE),
        (3, 2, AVAIL | USED | WRITE),
    ]


def test_the_driver_shows_the_first_descriptor_last(packed) -> None:
    queue = PackedDriverQueue(packed.memory, packed.layout)
    queue.add([Segment(0x10000, 4)], [Segment(0x10010, 8)], "a")
    queue.add([], [Segment(0x10020, 2)], "b")
    # Not published: the slot that the device polls is untouched, so it sees nothing.
    assert packed.read_desc(0)[1:] == (0, 0, 0)
    assert packed.read_desc(1)[3] == AVAIL | WRITE
    queue.publish()
    first, second, third = (packed.read_desc(slot) for slot in range(3))
    assert (first[:2], first[3]) == ((0x10000, 4), AVAIL | NEXT)
    assert (second[:2], second[3]) == ((0x10010, 8), AVAIL | WRITE)
    assert (third[:2], third[3]) == ((0x10020, 2), AVAIL | WRITE)
    ids = second[2], third[2]
    assert ids[0] != ids[1]
    assert queue.free == 0
    # Completed in the other order: b in slot 0, a in slot 1.
    packed.use(0, 2, ids[1], wrap=1)
    assert queue.poll() == [Used("b", 2)]
    packed.use(1, 5, ids[0], wrap=1)
    assert queue.poll() == [Used("a", 5)]
    assert queue.free == 3
    # Second round: AVAIL is 0 and USED is 1.
    queue.add([Segment(0x10030, 1)], [], "c")
    queue.publish()
    addr, length, ident, flags = packed.read_desc(0)
    assert (addr, length, flags) == (0x10030, 1, USED)
    packed.use(0, 12345, ident, wrap=0, write=0)
    # Without the WRITE flag the length is reserved and ignored.
    assert queue.poll() == [Used("c", 0)]


def test_a_batch_of_lists_is_shown_back_to_front(packed) -> None:
    queue = PackedDriverQueue(packed.memory, packed.layout)
    for token in range(3):
        queue.add([Segment(0x10000, 1)], [], token)
    stores: list[int] = []

    class Watched:
        """The descriptor ring, noting each store."""

        def __setitem__(self, index: int, value: int) -> None:
            stores.append(index)

    queue._parts.desc = Watched()
    queue.publish()
    assert stores == [5, 3, 1]


def test_the_driver_builds_an_indirect_table(packed) -> None:
    allocator = Allocator(0x8000, 0x1000)
    queue = PackedDriverQueue(packed.memory, packed.layout, WITH_TABLES, allocator)
    queue.add([Segment(0x10000, 4), Segment(0x10010, 5)], [Segment(0x10020, 6)], 1, indirect=True)
    queue.publish()
    table, length, ident, flags = packed.read_desc(0)
    assert (table % 16, length, flags) == (0, 48, INDIRECT | AVAIL)
    assert [packed.peek("<QIHH", table + 16 * index) for index in range(3)] == [
        (0x10000, 4, 0, 0),
        (0x10010, 5, 0, 0),
        (0x10020, 6, 0, WRITE),
    ]
    packed.use(0, 6, ident, wrap=1)
    assert queue.poll() == [Used(1, 6)]
    assert allocator.available == 0x1000


def test_the_driver_zeroes_the_areas(packed) -> None:
    packed.raw[0x1000:0x7000] = bytes([0xFF]) * 0x6000
    PackedDriverQueue(packed.memory, packed.layout)
    assert not any(packed.raw[0x1000:0x1030] + packed.raw[0x4000:0x4004] + packed.raw[0x6000:0x6004])
    assert packed.raw[0x1030] == packed.raw[0x4004] == packed.raw[0x6004] == 0xFF


@pytest.mark.parametrize(
    ("layout", "kind"),
    [
        (QueueLayout(0, 0x1000, 0x4000, 0x6000), Fault.SIZE),
        (QueueLayout(32769, 0x1000, 0x4000, 0x6000), Fault.SIZE),
        (QueueLayout(3, 0x1008, 0x4000, 0x6000), Fault.ALIGNMENT),
        (QueueLayout(3, 0x1000, 0x4002, 0x6000), Fault.ALIGNMENT),
        (QueueLayout(3, 0x1000, 0x4000, 0x6001), Fault.ALIGNMENT),
        (QueueLayout(3, 0x1FFE0, 0x4000, 0x6000), Fault.PLACEMENT),
        (QueueLayout(3, 0x1000, 0x20000, 0x6000), Fault.PLACEMENT),
        (QueueLayout(3, 0x1000, 0x4000, 0x20000), Fault.PLACEMENT),
    ],
)
@pytest.mark.parametrize("side", [PackedDeviceQueue, PackedDriverQueue, FastDeviceQueue])
def test_impossible_layouts_are_refused(packed, side: type, layout: QueueLayout, kind: Fault) -> None:
    before = bytes(packed.raw)
    with pytest.raises(LayoutError) as caught:
        side(packed.memory, layout, PACKED)
    assert caught.value.kind is kind
    assert packed.raw == before


def test_a_ring_across_two_regions_is_refused(packed_device) -> None:
    memory = GuestMemory([Region(0, 0x1010, bytearray(0x1010)), Region(0x1010, 0x8000, bytearray(0x8000))])
    with pytest.raises(LayoutError) as caught:
        packed_device(memory, QueueLayout(3, 0x1000, 0x4000, 0x6000))
    assert caught.value.kind is Fault.PLACEMENT


@pytest.mark.parametrize("size", [1, 2, 1000, 32768])
def test_any_size_up_to_32768_works_round_after_round(size: int, device_queue) -> None:
    memory = GuestMemory.anonymous(1 << 20)
    allocator = Allocator(0, 1 << 20)
    layout = allocate_layout(allocator, size, PACKED)
    buffer = allocator.alloc(16)
    driver, device = driver_queue(memory, layout, PACKED), device_queue(memory, layout, PACKED)
    for _ in range(3 if size < 32768 else 2):
        for token in range(size):
            driver.add([Segment(buffer, 16)], [], token)
        driver.publish()
        assert device.pending() == size
        device.push_many([(device.pop(), 0) for _ in range(size)])
        assert driver.poll() == [Used(token, 0) for token in range(size)]
