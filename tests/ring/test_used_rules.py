"""Used entries that no correct device writes, and buffers that no correct driver adds."""

from __future__ import annotations

import pytest

from virtio_ipsec.ring.chain import Chain, QueueLayout, Segment
from virtio_ipsec.ring.faults import ChainError, Fault, QueueBroken, QueueFull, UsedError
from virtio_ipsec.ring.memory import Allocator, GuestMemory, OutOfMemory, Region
from virtio_ipsec.ring.packed import PackedDriverQueue
from virtio_ipsec.ring.queue import Used, driver_queue
from virtio_ipsec.ring.split import SplitDriverQueue
from virtio_ipsec.wire.numbers import Feature, mask

B = 0x10000
PACKED = mask(Feature.F_RING_PACKED)
TABLES = mask(Feature.F_INDIRECT_DESC)


@pytest.mark.parametrize(
    ("element", "kind"),
    [
        ((1, 0), Fault.USED_ID),
        ((4, 0), Fault.USED_ID),
        ((0xFFFFFFFF, 0), Fault.USED_ID),
        ((0x10000, 0), Fault.USED_ID),
        ((0, 9), Fault.USED_LENGTH),
        ((0, 0xFFFFFFFF), Fault.USED_LENGTH),
    ],
)
def test_a_split_used_element_is_checked(split, element: tuple[int, int], kind: Fault) -> None:
    queue = SplitDriverQueue(split.memory, split.layout)
    queue.add([Segment(B, 100)], [Segment(B, 8)], "token")
    queue.publish()
    split.use(element)
    with pytest.raises(UsedError) as caught:
        queue.poll()
    assert caught.value.kind is kind
    assert queue.fault is kind


@pytest.mark.parametrize("index", [2, 0x8000, 0xFFFF])
@pytest.mark.parametrize("call", ["poll", "enable_notifications"])
def test_a_split_used_index_that_jumps_is_refused(split, index: int, call: str) -> None:
    queue = SplitDriverQueue(split.memory, split.layout)
    queue.add([], [Segment(B, 8)], "token")
    queue.publish()
    split.poke("<H", 0x6002, index)
    with pytest.raises(UsedError) as caught:
        getattr(queue, call)()
    assert caught.value.kind is Fault.USED_JUMP


def test_one_buffer_cannot_come_back_twice(split) -> None:
    queue = SplitDriverQueue(split.memory, split.layout)
    for token in "ab":
        queue.add([], [Segment(B, 8)], token)
    queue.publish()
    split.use((0, 8), (0, 8))
    with pytest.raises(UsedError) as caught:
        queue.poll()
    assert caught.value.kind is Fault.USED_ID
    # "a" was given back, but nobody got it: the reset lists it.
    assert queue.reset() == ["a", "b"]


def test_a_buffer_that_was_not_published_cannot_come_back(split) -> None:
    queue = SplitDriverQueue(split.memory, split.layout)
    queue.add([], [Segment(B, 8)], "shown")
    queue.publish()
    queue.add([], [Segment(B, 8)], "hidden")
    split.use((1, 8))
    with pytest.raises(UsedError) as caught:
        queue.poll()
    assert caught.value.kind is Fault.USED_ID


@pytest.mark.parametrize(
    ("length", "ident", "kind"),
    [(0, 1, Fault.USED_ID), (0, 0xFFFF, Fault.USED_ID), (9, 0, Fault.USED_LENGTH)],
)
def test_a_packed_used_descriptor_is_checked(packed, length: int, ident: int, kind: Fault) -> None:
    queue = PackedDriverQueue(packed.memory, packed.layout)
    queue.add([Segment(B, 100)], [Segment(B, 8)], "token")
    queue.publish()
    assert packed.read_desc(0)[2] == 0
    packed.use(0, length, ident, wrap=1)
    with pytest.raises(UsedError) as caught:
        queue.poll()
    assert caught.value.kind is kind
    assert queue.reset() == ["token"]


def test_a_packed_used_descriptor_without_any_buffer_is_refused(packed) -> None:
    queue = PackedDriverQueue(packed.memory, packed.layout)
    packed.use(0, 0, 0, wrap=1)
    with pytest.raises(UsedError) as caught:
        queue.poll()
    assert caught.value.kind is Fault.USED_ID


@pytest.mark.parametrize("features", [0, PACKED])
def test_a_broken_driver_queue_does_nothing_until_it_is_reset(split, features: int) -> None:
    queue = driver_queue(split.memory, split.layout, features)
    queue.add([], [Segment(B, 8)], "token")
    queue.publish()
    split.use((3, 0))
    split.poke("<IHH", 0x1008, 0, 3, 0x8080)
    with pytest.raises(UsedError):
        queue.poll()
    calls = [
        queue.poll,
        queue.publish,
        queue.should_kick,
        queue.enable_notifications,
        queue.disable_notifications,
        lambda: queue.add([], [Segment(B, 8)], "more"),
    ]
    for call in calls:
        with pytest.raises(QueueBroken):
            call()
    assert queue.reset() == ["token"]
    assert (queue.broken, queue.free, queue.outstanding) == (False, 4, 0)
    queue.add([], [Segment(B, 8)], "again")


BAD_BUFFERS = {
    "nothing": ([], [], Fault.EMPTY),
    "empty segment": ([Segment(B, 0)], [], Fault.ZERO_LENGTH),
    "negative segment": ([Segment(B, 4)], [Segment(B, -1)], Fault.ZERO_LENGTH),
    "outside": ([], [Segment(0x20000, 1)], Fault.ADDRESS),
    "longer than the queue": ([Segment(B, 1)] * 3, [Segment(B, 1)] * 2, Fault.LOOP),
}


@pytest.mark.parametrize("name", BAD_BUFFERS)
@pytest.mark.parametrize("features", [0, PACKED, TABLES, TABLES | PACKED])
def test_add_refuses_what_no_driver_may_offer(split, features: int, name: str) -> None:
    readable, writable, kind = BAD_BUFFERS[name]
    allocator = Allocator(0x8000, 256)
    queue = driver_queue(split.memory, split.layout, features, allocator)
    before = bytes(split.raw)
    with pytest.raises(ChainError) as caught:
        queue.add(readable, writable, 0, indirect=bool(features & TABLES))
    assert caught.value.kind is kind
    assert not queue.broken
    assert (split.raw, queue.free, allocator.available) == (before, 4, 256)


def test_add_refuses_more_than_32_bits_can_say() -> None:
    class Endless(GuestMemory):
        """Memory that claims to be everywhere."""

        def check(self, address: int, length: int) -> None:
            pass

    queue = SplitDriverQueue(
        Endless([Region(0, 0x10000, bytearray(0x10000))]), QueueLayout(4, 0, 0x100, 0x200)
    )
    queue.add([Segment(0, 0xFFFFFFFF), Segment(0, 1)], [], 0)
    for wrong in ([Segment(0, 1 << 32)], [Segment(0, 0xFFFFFFFF), Segment(0, 2)]):
        with pytest.raises(ChainError) as caught:
            queue.add(wrong, [], 0)
        assert caught.value.kind is Fault.TOO_LONG


def test_add_refuses_tables_that_were_not_negotiated(split) -> None:
    queue = driver_queue(split.memory, split.layout, 0, Allocator(0x8000, 256))
    with pytest.raises(ChainError) as caught:
        queue.add([Segment(B, 1)], [], 0, indirect=True)
    assert caught.value.kind is Fault.INDIRECT_NOT_NEGOTIATED


@pytest.mark.parametrize("features", [0, PACKED])
def test_a_full_queue_says_so_and_stays_sound(split, features: int) -> None:
    queue = driver_queue(split.memory, split.layout, features)
    queue.add([Segment(B, 1)] * 3, [], 0)
    with pytest.raises(QueueFull):
        queue.add([Segment(B, 1)] * 2, [], 1)
    queue.add([Segment(B, 1)], [], 1)
    with pytest.raises(QueueFull):
        queue.add([Segment(B, 1)], [], 2)
    assert (queue.free, queue.broken) == (0, False)


def test_no_room_for_a_table_changes_nothing(split) -> None:
    queue = driver_queue(split.memory, split.layout, TABLES, Allocator(0x8000, 16))
    with pytest.raises(OutOfMemory):
        queue.add([Segment(B, 1)] * 2, [], 0, indirect=True)
    queue.add([Segment(B, 1)], [], 0, indirect=True)
    assert queue.free == 3


@pytest.mark.parametrize("features", [0, PACKED])
def test_the_device_cannot_mark_used_what_it_does_not_have(split, features: int, device_queue) -> None:
    driver = driver_queue(split.memory, split.layout, features)
    device = device_queue(split.memory, split.layout, features)
    for token in range(2):
        driver.add([], [Segment(B, 8)], token)
    driver.publish()
    chain, other = device.pop(), device.pop()
    before = bytes(split.raw)
    cases = [
        ([(Chain(chain.head, (), chain.writable), 0)], Fault.USED_ID),
        ([(Chain(99, (), ()), 0)], Fault.USED_ID),
        ([(other, 0), (chain, 9)], Fault.USED_LENGTH),
        ([(chain, -1)], Fault.USED_LENGTH),
        ([(chain, 8), (chain, 8)], Fault.USED_ID),
        ([(chain, 8), (other, 8), (chain, 8)], Fault.USED_ID),
    ]
    for used, kind in cases:
        with pytest.raises(UsedError) as caught:
            device.push_many(used)
        assert caught.value.kind is kind
        assert split.raw == before
    device.push_many([(other, 8), (chain, 0)])
    device.push_many([])
    assert driver.poll() == [Used(1, 8), Used(0, 0)]
    with pytest.raises(UsedError):
        device.push(chain, 0)
    assert not device.broken
