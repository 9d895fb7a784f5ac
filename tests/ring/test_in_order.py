"""VIRTIO_F_IN_ORDER: descriptors in ring order, batches told by one used entry, on both sides."""

from __future__ import annotations

import pytest

from virtio_ipsec.ring.chain import Segment
from virtio_ipsec.ring.faults import Fault, UsedError
from virtio_ipsec.ring.memory import Allocator
from virtio_ipsec.ring.packed import PackedDriverQueue
from virtio_ipsec.ring.queue import Used
from virtio_ipsec.ring.split import SplitDriverQueue
from virtio_ipsec.wire.numbers import Feature, mask

ORDERED = mask(Feature.F_IN_ORDER)
NEXT, WRITE = 1, 2
AVAIL, USED = 0x80, 0x8000
B = 0x10000


def test_the_split_driver_uses_descriptors_in_ring_order(split) -> None:
    queue = SplitDriverQueue(split.memory, split.layout, ORDERED)
    position = 0
    for count in (1, 3, 2, 2, 3, 1, 4, 3):
        queue.add([Segment(B, 1)] * count, [], count)
        queue.publish()
        (idx,) = split.peek("<H", 0x4002)
        (head,) = split.peek("<H", 0x4004 + 2 * ((idx - 1) % 4))
        assert head == position % 4
        for _ in range(count - 1):
            *_, flags, following = split.read_desc(position % 4)
            # next is x + 1, and 0 behind the last descriptor of the table.
            assert (flags, following) == (NEXT, (position + 1) % 4)
            position += 1
        position += 1
        split.use((head, 0))
        assert queue.poll() == [Used(count, 0)]


def test_an_indirect_table_is_sequential(split) -> None:
    features = ORDERED | mask(Feature.F_INDIRECT_DESC)
    queue = SplitDriverQueue(split.memory, split.layout, features, Allocator(0x8000, 256))
    queue.add([Segment(B, 1)], [Segment(B, 2), Segment(B, 3)], 0, indirect=True)
    queue.publish()
    table = split.read_desc(0)[0]
    assert [split.peek("<H", table + 16 * index + 14)[0] for index in range(2)] == [1, 2]


def test_the_split_driver_understands_a_batch_told_by_its_last_entry(split) -> None:
    queue = SplitDriverQueue(split.memory, split.layout, ORDERED)
    for token, length in enumerate((10, 20, 30)):
        queue.add([], [Segment(B, length)], token)
    queue.publish()
    # One element at the offset of the first buffer of the batch, the index moves by the batch's size.
    split.poke("<II", 0x6004, 1, 7)
    split.poke("<H", 0x6002, 2)
    assert queue.poll() == [Used(0, 10), Used(1, 7)]
    split.poke("<II", 0x6004 + 16, 2, 30)
    split.poke("<H", 0x6002, 3)
    assert queue.poll() == [Used(2, 30)]
    assert queue.free == 4


def test_a_batch_larger_than_the_index_says_is_refused(split) -> None:
    queue = SplitDriverQueue(split.memory, split.layout, ORDERED)
    for token in range(3):
        queue.add([], [Segment(B, 4)], token)
    queue.publish()
    split.use((2, 4))
    with pytest.raises(UsedError) as caught:
        queue.poll()
    assert caught.value.kind is Fault.USED_ORDER
    assert queue.broken
    assert queue.reset() == [0, 1, 2]


def test_the_split_device_tells_wholly_written_runs_by_one_entry(split, split_device) -> None:
    for index in range(4):
        split.desc(index, B, 8, WRITE)
    split.offer(0, 1, 2, 3)
    queue = split_device(split.memory, split.layout, ORDERED)
    chains = [queue.pop() for _ in range(4)]
    # 0 and 1 are full and lead to 2, which is not full and so must have an entry; 3 stands alone.
    queue.push_many([(chains[0], 8), (chains[1], 8), (chains[2], 5), (chains[3], 8)], batch=True)
    _, idx, ring, _ = split.used()
    assert (idx, ring[0], ring[3]) == (4, (2, 5), (3, 8))
    assert ring[1] == ring[2] == (0, 0)


def test_the_split_device_tells_every_entry_unless_asked(split, split_device) -> None:
    for index in range(2):
        split.desc(index, B, 8, WRITE)
    split.offer(0, 1)
    queue = split_device(split.memory, split.layout, ORDERED)
    queue.push_many([(queue.pop(), 8), (queue.pop(), 8)])
    assert split.used()[2][:2] == [(0, 8), (1, 8)]


def test_the_packed_device_tells_every_buffer_unless_asked(packed, packed_device) -> None:
    for slot in range(2):
        packed.desc(slot, B, 8, 40 + slot, AVAIL | WRITE)
    queue = packed_device(packed.memory, packed.layout, ORDERED)
    queue.push_many([(queue.pop(), 8), (queue.pop(), 8)])
    assert [packed.read_desc(slot)[2:] for slot in range(2)] == [
        (40, AVAIL | USED | WRITE),
        (41, AVAIL | USED | WRITE),
    ]


def test_batching_needs_the_feature(split, split_device) -> None:
    for index in range(2):
        split.desc(index, B, 8, WRITE)
    split.offer(0, 1)
    queue = split_device(split.memory, split.layout)
    queue.push_many([(queue.pop(), 8), (queue.pop(), 8)], batch=True)
    assert split.used()[2][:2] == [(0, 8), (1, 8)]


def test_the_packed_device_tells_a_batch_by_one_descriptor_and_skips(packed, packed_device) -> None:
    for slot in range(3):
        packed.desc(slot, B, 8, 40 + slot, AVAIL | WRITE)
    queue = packed_device(packed.memory, packed.layout, ORDERED)
    chains = [queue.pop() for _ in range(3)]
    queue.push_many([(chains[0], 8), (chains[1], 3)], batch=True)
    assert packed.read_desc(0) == (B, 3, 41, AVAIL | USED | WRITE)
    assert packed.read_desc(1) == (B, 8, 41, AVAIL | WRITE)
    queue.push(chains[2], 8)
    assert packed.read_desc(2) == (B, 8, 42, AVAIL | USED | WRITE)


def test_the_packed_driver_understands_a_batch(packed) -> None:
    queue = PackedDriverQueue(packed.memory, packed.layout, ORDERED)
    queue.add([Segment(B, 1)], [Segment(B, 10)], "a")
    queue.add([], [Segment(B, 20)], "b")
    queue.publish()
    packed.use(0, 7, packed.read_desc(2)[2], wrap=1)
    assert queue.poll() == [Used("a", 10), Used("b", 7)]
    assert queue.free == 3
    queue.add([Segment(B, 1)], [], "c")
    queue.publish()
    packed.use(0, 0, packed.read_desc(0)[2], wrap=0, write=0)
    assert queue.poll() == [Used("c", 0)]


@pytest.mark.parametrize("order", [(1,), (1, 0), (0, 2), (0, 0)])
def test_the_device_cannot_use_buffers_out_of_order(split, order: tuple[int, ...], split_device) -> None:
    for index in range(3):
        split.desc(index, B, 8, WRITE)
    split.offer(0, 1, 2)
    queue = split_device(split.memory, split.layout, ORDERED)
    chains = [queue.pop() for _ in range(3)]
    with pytest.raises(UsedError) as caught:
        queue.push_many([(chains[index], 8) for index in order])
    assert caught.value.kind is Fault.USED_ORDER
    assert not queue.broken
    assert split.used()[1] == 0
    queue.push_many([(chain, 8) for chain in chains])
    assert split.used()[1] == 3


def test_more_used_entries_than_buffers_are_refused_in_order_too(split, split_device) -> None:
    split.desc(0, B, 8, WRITE)
    split.offer(0)
    queue = split_device(split.memory, split.layout, ORDERED)
    chain = queue.pop()
    with pytest.raises(UsedError):
        queue.push_many([(chain, 8), (chain, 8)])
    queue.push(chain, 8)
