"""A driver that breaks the rules of a packed ring breaks its queue, in bounded time, and nothing else."""

from __future__ import annotations

import pytest

from virtio_ipsec.ring.chain import Segment
from virtio_ipsec.ring.faults import ChainError, Fault, QueueBroken
from virtio_ipsec.ring.packed import PackedDeviceQueue
from virtio_ipsec.wire.numbers import Feature, mask

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 0x80, 0x8000
WITH_TABLES = mask(Feature.F_INDIRECT_DESC)

B = 0x10000
# name: (descriptors from slot 0 (addr, len, id, flags), indirect table at 0x8000, kind)
BAD_LISTS = {
    "a round of next flags": ([(B, 1, 0, AVAIL | NEXT)] * 3, [], Fault.PARTIAL_LIST),
    "second part not available": ([(B, 1, 0, AVAIL | NEXT), (B, 1, 0, 0)], [], Fault.PARTIAL_LIST),
    "second part used": ([(B, 1, 0, AVAIL | NEXT), (B, 1, 0, AVAIL | USED)], [], Fault.PARTIAL_LIST),
    "address outside": ([(0x20000, 1, 0, AVAIL)], [], Fault.ADDRESS),
    "address wraps": ([((1 << 64) - 1, 2, 0, AVAIL)], [], Fault.ADDRESS),
    "readable after writable": ([(B, 1, 0, AVAIL | WRITE | NEXT), (B, 1, 0, AVAIL)], [], Fault.ORDER),
    "zero length": ([(B, 0, 0, AVAIL)], [], Fault.ZERO_LENGTH),
    "indirect with next": (
        [(0x8000, 16, 0, AVAIL | INDIRECT | NEXT), (B, 1, 0, AVAIL)],
        [(B, 1, 0, 0)],
        Fault.INDIRECT_CHAINED,
    ),
    "indirect after direct": (
        [(B, 1, 0, AVAIL | NEXT), (0x8000, 16, 0, AVAIL | INDIRECT)],
        [(B, 1, 0, 0)],
        Fault.INDIRECT_CHAINED,
    ),
    "empty table": ([(0x8000, 0, 0, AVAIL | INDIRECT)], [], Fault.INDIRECT_LENGTH),
    "table of 17 bytes": ([(0x8000, 17, 0, AVAIL | INDIRECT)], [], Fault.INDIRECT_LENGTH),
    "table outside": ([(0x20000, 16, 0, AVAIL | INDIRECT)], [], Fault.ADDRESS),
    "table of 4 GiB": ([(0x8000, 0xFFFFFFF0, 0, AVAIL | INDIRECT)], [], Fault.ADDRESS),
    "four in a table of a queue of three": (
        [(0x8000, 64, 0, AVAIL | INDIRECT)],
        [(B, 1, 0, 0)] * 4,
        Fault.LOOP,
    ),
    "zero length in a table": ([(0x8000, 16, 0, AVAIL | INDIRECT)], [(B, 0, 0, 0)], Fault.ZERO_LENGTH),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_a_bad_list_breaks_the_queue(packed, name: str, packed_device) -> None:
    descriptors, table, kind = BAD_LISTS[name]
    for slot, descriptor in enumerate(descriptors):
        packed.desc(slot, *descriptor)
    packed.table(table)
    queue = packed_device(packed.memory, packed.layout, WITH_TABLES)
    before = bytes(packed.raw)
    with pytest.raises(ChainError) as caught:
        queue.pop()
    assert caught.value.kind is kind
    assert queue.fault is kind
    assert packed.raw == before


def test_a_list_that_changes_its_marks_while_it_is_read_ends_after_one_round(packed) -> None:
    class Chasing:
        """A descriptor ring in which whatever is looked at is available in the round looked for."""

        reads = 0

        def __getitem__(self, index: int) -> int:
            Chasing.reads += 1
            if index % 2 == 0:
                return B
            slot_reads = (Chasing.reads // 2) // 3
            return 1 | (NEXT | (USED if slot_reads % 2 else AVAIL)) << 48

    queue = PackedDeviceQueue(packed.memory, packed.layout)
    queue._parts.desc = Chasing()
    with pytest.raises(ChainError) as caught:
        queue.pop()
    assert caught.value.kind is Fault.LOOP
    assert Chasing.reads <= 2 * 4


def test_an_indirect_descriptor_without_the_feature_breaks_the_queue(packed, packed_device) -> None:
    packed.desc(0, 0x8000, 16, 0, AVAIL | INDIRECT)
    queue = packed_device(packed.memory, packed.layout)
    with pytest.raises(ChainError) as caught:
        queue.pop()
    assert caught.value.kind is Fault.INDIRECT_NOT_NEGOTIATED


def test_a_buffer_id_that_is_still_out_cannot_come_again(packed, packed_device) -> None:
    packed.desc(0, B, 1, 7, AVAIL)
    packed.desc(1, B, 1, 7, AVAIL)
    queue = packed_device(packed.memory, packed.layout)
    queue.pop()
    with pytest.raises(ChainError) as caught:
        queue.pop()
    assert caught.value.kind is Fault.DUPLICATE


def test_more_descriptors_than_the_ring_has_cannot_be_out(packed, packed_device) -> None:
    queue = packed_device(packed.memory, packed.layout)
    for slot in range(3):
        packed.desc(slot, B, 1, slot, AVAIL)
        queue.pop()
    packed.desc(0, B, 1, 9, USED)
    assert queue.pending() == 0
    with pytest.raises(ChainError) as caught:
        queue.pop()
    assert caught.value.kind is Fault.OVERCOMMIT


def test_a_broken_queue_does_nothing_until_it_is_reset(packed, packed_device) -> None:
    packed.desc(0, B, 4, 0, AVAIL)
    packed.desc(1, B, 0, 1, AVAIL)
    queue = packed_device(packed.memory, packed.layout)
    good = queue.pop()
    with pytest.raises(ChainError):
        queue.pop()
    before = bytes(packed.raw)
    calls = [
        queue.pop,
        queue.pending,
        lambda: queue.push(good, 0),
        lambda: queue.unpop(good),
        queue.should_notify,
        queue.enable_notifications,
        queue.disable_notifications,
    ]
    for call in calls:
        with pytest.raises(QueueBroken):
            call()
    assert packed.raw == before
    packed.desc(1, B, 0, 1, 0)
    queue.reset()
    assert queue.pop().readable == (Segment(B, 4),)
    assert queue.pop() is None
