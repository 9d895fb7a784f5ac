"""Reset, saved positions, giving chains back."""

from __future__ import annotations

import pytest

from virtio_ipsec.ring.chain import QueueLayout, Segment
from virtio_ipsec.ring.faults import ChainError, Fault, LayoutError, UsedError
from virtio_ipsec.ring.memory import Allocator
from virtio_ipsec.ring.queue import Used, driver_queue
from virtio_ipsec.wire.numbers import Feature, mask

B = 0x10000
PACKED = mask(Feature.F_RING_PACKED)
EVENT = mask(Feature.F_EVENT_IDX)
BOTH = pytest.mark.parametrize("features", [0, PACKED, EVENT, PACKED | EVENT])


def pair(split, features: int, device_queue):
    return (
        driver_queue(split.memory, split.layout, features),
        device_queue(split.memory, split.layout, features),
    )


@BOTH
def test_a_reset_queue_starts_anew_in_another_place_and_size(split, features: int, device_queue) -> None:
    driver, device = pair(split, features, device_queue)
    for token in range(3):
        driver.add([], [Segment(B, 8)], token)
        if token < 2:
            driver.publish()
    stale = device.pop()
    device.push(device.pop(), 8)
    layout = QueueLayout(2, 0x2000, 0x5000, 0x7000)
    device.reset(layout)
    assert driver.reset(layout) == [0, 1, 2]
    device.reset()
    assert (driver.layout, device.layout, driver.size, device.size) == (layout, layout, 2, 2)
    assert device.pop() is None
    with pytest.raises(UsedError):
        device.push(stale, 0)
    for token in range(5):
        driver.add([], [Segment(B, 8)], token)
        driver.publish()
        device.push(device.pop(), 8)
        assert driver.poll() == [Used(token, 8)]
    assert driver.free == 2


def test_a_driver_reset_frees_indirect_tables(split) -> None:
    allocator = Allocator(0x8000, 256)
    driver = driver_queue(split.memory, split.layout, mask(Feature.F_INDIRECT_DESC), allocator)
    driver.add([Segment(B, 1)], [], "shown", indirect=True)
    driver.publish()
    driver.add([Segment(B, 1)], [], "staged", indirect=True)
    assert driver.reset() == ["shown", "staged"]
    assert allocator.available == 256


@BOTH
def test_reset_to_an_impossible_layout_is_refused(split, features: int, device_queue) -> None:
    driver, device = pair(split, features, device_queue)
    for queue in (driver, device):
        with pytest.raises(LayoutError):
            queue.reset(QueueLayout(4, 0x1001, 0x4000, 0x6000))
        assert queue.layout == split.layout


@BOTH
def test_another_device_queue_continues_where_the_first_one_stopped(
    split, features: int, device_queue
) -> None:
    driver, device = pair(split, features, device_queue)
    for token in range(23):
        driver.add([Segment(B, 1)], [Segment(B, 8)], token)
        driver.publish()
        driver.should_kick()
        chain = device.pop()
        device.push(chain, 8)
        assert device.should_notify()
        assert driver.poll() == [Used(token, 8)]
        state = device.state()
        device = device_queue(split.memory, split.layout, features)
        device.restore(state)
        assert device.state() == state
        assert device.pop() is None


def test_a_split_position_is_the_available_index(split, device_queue) -> None:
    driver, device = pair(split, 0, device_queue)
    assert (driver.state(), device.state()) == (0, 0)
    driver.add([], [Segment(B, 8)], 0)
    driver.publish()
    device.push(device.pop(), 8)
    assert (device.state(), driver.state()) == (1, 1)
    driver.poll()
    assert driver.state() == 1 | 1 << 16


def test_a_packed_position_holds_both_offsets_and_wrap_counters(packed, device_queue) -> None:
    driver, device = pair(packed, PACKED, device_queue)
    assert driver.state() == device.state() == 0x8000_8000
    for token in range(3):
        driver.add([], [Segment(B, 8)], token)
    assert driver.state() & 0xFFFF == 0x8000, "not published yet"
    driver.publish()
    assert driver.state() & 0xFFFF == 0x0000
    chains = [device.pop() for _ in range(3)]
    assert device.state() == 0x8000_0000
    device.push(chains[0], 0)
    assert device.state() == 0x8001_0000
    driver.poll()
    assert driver.state() == 0x8001_0000


def test_what_was_taken_before_a_packed_restore_still_counts(packed, device_queue) -> None:
    driver, device = pair(packed, PACKED, device_queue)
    for token in range(3):
        driver.add([], [Segment(B, 8)], token)
    driver.publish()
    device.pop()
    device.pop()
    other = device_queue(packed.memory, packed.layout, PACKED)
    other.restore(device.state())
    assert other.pending() == 1
    assert other.pop().head == 2
    assert other.pending() == 0


@pytest.mark.parametrize(
    ("features", "state"),
    [
        (0, -1),
        (0, 0x10000),
        (PACKED, -1),
        (PACKED, 1 << 32),
        (PACKED, 0x8000_8003),
        (PACKED, 0x8003_8000),
        (PACKED, 0x8001_8000),
        (PACKED, 0x0001_8002),
    ],
)
def test_an_impossible_position_is_refused(packed, features: int, state: int, device_queue) -> None:
    size = 3 if features else 4
    device = device_queue(packed.memory, QueueLayout(size, 0x1000, 0x4000, 0x6000), features)
    with pytest.raises(LayoutError) as caught:
        device.restore(state)
    assert caught.value.kind is Fault.INDEX


@BOTH
def test_a_restored_queue_knows_nothing_of_earlier_chains_and_faults(
    split, features: int, device_queue
) -> None:
    driver, device = pair(split, features, device_queue)
    driver.add([], [Segment(B, 8)], 0)
    driver.publish()
    state = device.state()
    stale = device.pop()
    device.restore(state)
    with pytest.raises(UsedError):
        device.push(stale, 8)
    fresh = device.pop()
    device.push(fresh, 8)
    split.poke("<H", 0x4002, 99)
    split.poke("<QIHH", 0x1010, B, 0, 1, 0x80)
    with pytest.raises(ChainError):
        device.pop()
    device.restore(device.state())
    assert not device.broken


def test_giving_back_moves_the_event_index_only_when_it_is_in_use(split, device_queue) -> None:
    for features, listening in ((0, True), (EVENT, False)):
        driver, device = pair(split, features, device_queue)
        if not listening:
            device.disable_notifications()
        driver.add([], [Segment(B, 8)], 0)
        driver.publish()
        split.poke("<H", 0x6024, 0x7777)
        device.unpop(device.pop())
        assert split.used()[3] == 0x7777


@BOTH
def test_chains_given_back_are_taken_again(split, features: int, device_queue) -> None:
    driver, device = pair(split, features, device_queue)
    taken = 0
    for token in range(9):
        driver.add([Segment(B, 1)], [Segment(B, 8)], token)
        driver.publish()
        before = device.state()
        chain = device.pop()
        device.unpop(chain)
        assert device.state() == before
        assert device.pending() == 1
        with pytest.raises(UsedError):
            device.push(chain, 0)
        again = device.pop()
        assert again == chain
        device.push(again, 8)
        taken += len(driver.poll())
    assert taken == 9


@BOTH
def test_only_the_chain_popped_last_can_be_given_back(split, features: int, device_queue) -> None:
    driver, device = pair(split, features, device_queue)
    for token in range(2):
        driver.add([], [Segment(B, 8)], token)
    driver.publish()
    first, second = device.pop(), device.pop()
    with pytest.raises(UsedError) as caught:
        device.unpop(first)
    assert caught.value.kind is Fault.USED_ORDER
    device.unpop(second)
    device.unpop(first)
    with pytest.raises(UsedError):
        device.unpop(first)
    assert device.pending() == 2


@BOTH
def test_a_chain_cannot_be_given_back_when_a_later_one_is_used(split, features: int, device_queue) -> None:
    driver, device = pair(split, features, device_queue)
    for token in range(2):
        driver.add([], [Segment(B, 8)], token)
    driver.publish()
    first, second = device.pop(), device.pop()
    device.push(second, 8)
    with pytest.raises(UsedError) as caught:
        device.unpop(first)
    assert caught.value.kind is Fault.USED_ORDER
    device.push(first, 8)
    assert driver.poll() == [Used(1, 8), Used(0, 8)]
    assert device.pop() is None


@pytest.mark.parametrize("features", [EVENT, PACKED | EVENT])
def test_a_device_that_gave_chains_back_is_told_of_new_ones(split, features: int, device_queue) -> None:
    driver, device = pair(split, features, device_queue)
    driver.add([], [Segment(B, 8)], 0)
    driver.publish()
    assert driver.should_kick()
    chain = device.pop()
    assert device.pop() is None
    device.unpop(chain)
    driver.add([], [Segment(B, 8)], 1)
    driver.publish()
    assert driver.should_kick()
