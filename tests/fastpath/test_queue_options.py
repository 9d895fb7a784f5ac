"""What a back-end over shared memory gives a C queue: eventfds, a position to go on at, dirty log, inflight region."""

from __future__ import annotations

import os
import struct
import weakref
from typing import Any

import pytest

from virtio_ipsec.fastpath import native
from virtio_ipsec.fastpath.rings import FastDeviceQueue, QueueOptions, fast_memory, inflight_size
from virtio_ipsec.ring.base import DriverQueue
from virtio_ipsec.ring.chain import QueueLayout, Segment
from virtio_ipsec.ring.faults import ChainError, Fault, LayoutError
from virtio_ipsec.ring.memory import GuestMemory
from virtio_ipsec.ring.queue import driver_queue
from virtio_ipsec.wire.numbers import Feature, mask

PACKED = mask(Feature.F_RING_PACKED)
LAYOUT = QueueLayout(8, 0x1000, 0x2000, 0x3000)
SIZE = 0x10000
B = 0x8000
FORMATS = pytest.mark.parametrize("features", [0, PACKED])


def eventfd() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def told(fd: int) -> int:
    """How often the eventfd was written to since the last time."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


class Ends:
    """Both ends of a queue."""

    def __init__(self, features: int) -> None:
        self.features = features
        self.memory = GuestMemory.anonymous(SIZE)
        self.driver: DriverQueue = driver_queue(self.memory, LAYOUT, features)
        self.device: FastDeviceQueue

    def open(self, **options: Any) -> FastDeviceQueue:
        self.device = FastDeviceQueue(self.memory, LAYOUT, self.features, QueueOptions(**options))
        return self.device

    def offer(self, *tokens: int) -> None:
        for token in tokens:
            self.driver.add([Segment(B + 16 * token, 4)], [Segment(B + 16 * token + 4, 8)], token)
        self.driver.publish()

    def use(self) -> None:
        chain = self.device.pop()
        assert chain is not None
        self.device.push(chain, 0)

    def used(self) -> list[object]:
        return [each.token for each in self.driver.poll()]


@FORMATS
def test_the_driver_is_told_through_the_eventfd_when_it_wants_to_be(features: int) -> None:
    ends, call = Ends(features), eventfd()
    ends.open(call_fd=call)
    ends.driver.enable_notifications()
    ends.offer(0, 1)
    ends.use()
    assert ends.device.notify()
    assert told(call) == 1
    ends.driver.disable_notifications()
    ends.use()
    assert not ends.device.notify()
    assert told(call) == 0
    os.close(call)


@FORMATS
def test_the_eventfds_can_be_exchanged_and_stay_over_a_reset(features: int) -> None:
    ends, first, second, error = Ends(features), eventfd(), eventfd(), eventfd()
    ends.open(call_fd=first)
    ends.driver.enable_notifications()
    ends.device.set_fds(second, error)
    ends.device.restore(ends.device.state())
    ends.offer(0)
    ends.use()
    assert ends.device.notify()
    assert (told(first), told(second)) == (0, 1)
    ends.offer(1)
    ends.memory.put_u64(LAYOUT.desc + 2 * 16, SIZE)
    with pytest.raises(ChainError):
        ends.device.pop()
    assert (told(second), told(error)) == (0, 1)
    ends.device.set_fds(None, None)
    for fd in (first, second, error):
        os.close(fd)


@FORMATS
def test_a_queue_goes_on_where_another_one_stopped(features: int) -> None:
    ends = Ends(features)
    ends.open()
    for token in range(5):
        ends.offer(token)
        ends.use()
        assert ends.used() == [token]
    ends.offer(5, 6)
    state = ends.device.state()
    ends.open(state=state)
    assert ends.device.state() == state
    ends.use()
    ends.use()
    assert ends.used() == [5, 6]
    # A reset begins anew: the position was that of the beginning.
    ends.device.reset()
    assert ends.device.state() == (1 << 15 | 1 << 31 if features else 0)


def test_a_position_that_cannot_be_is_refused() -> None:
    with pytest.raises(LayoutError):
        Ends(PACKED).open(state=9)
    with pytest.raises(LayoutError):
        Ends(0).open(state=1 << 32)
    with pytest.raises(LayoutError):
        Ends(0).open(state=-1)


@FORMATS
def test_stores_are_logged_where_the_used_ring_counts_as_lying(features: int) -> None:
    ends, log = Ends(features), bytearray(32)
    ends.open()
    fast_memory(ends.memory).set_log(log)
    ends.device.set_log(0x5000)
    ends.offer(0)
    ends.use()
    pages = {at * 8 + bit for at, octet in enumerate(log) for bit in range(8) if octet >> bit & 1}
    assert (LAYOUT.desc >> 12 if features else 5) in pages
    with pytest.raises(BufferError):
        log.append(0)  # C points at it
    log[:] = bytes(32)
    ends.device.set_log(None)
    ends.offer(1)
    ends.use()
    assert log == bytes(32)
    fast_memory(ends.memory).set_log(None)
    log.append(0)


@FORMATS
def test_what_was_in_flight_is_popped_again(features: int) -> None:
    ends = Ends(features)
    size = inflight_size(LAYOUT.size, features)
    region = bytearray(2 * size)
    fast_memory(ends.memory).set_inflight(region)
    ends.open(inflight=size)
    assert ends.device.recovered == 0
    ends.offer(0, 1, 2)
    lost = [ends.device.pop(), ends.device.pop()]
    # A crash: what a front-end knows is the used index.
    ends.open(inflight=size, state=0x8000_8000 if features else 0)
    assert ends.device.recovered == 2
    assert [ends.device.pop(), ends.device.pop()] == lost
    assert bytes(region[:size]) == bytes(size)
    struct.pack_into("<H", region, size + 8, 9)
    with pytest.raises(LayoutError) as caught:
        ends.open(inflight=size)
    assert caught.value.kind is Fault.SIZE


def test_a_lack_of_memory_for_the_record_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ffi, lib = native.extension()

    class Poor:
        def __getattr__(self, name: str) -> Any:
            return (
                (lambda *_: -lib.VIPSEC_FAULT_COUNT)
                if name == "vipsec_queue_inflight_new"
                else getattr(lib, name)
            )

    monkeypatch.setattr(native, "extension", lambda: (ffi, Poor()))
    with pytest.raises(MemoryError):
        Ends(0).open(inflight=0)


def test_the_memory_stays_as_long_as_somebody_has_a_queue_over_it() -> None:
    ends = Ends(0)
    handle = ends.open().handle
    alive = weakref.ref(ends.memory)
    _, lib = native.extension()
    del ends
    assert alive() is None
    assert lib.vipsec_queue_notify_enable(handle) == 0
