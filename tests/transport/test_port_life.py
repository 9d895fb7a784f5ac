"""What happens to a served port: queues that stop and go on, memory that moves or vanishes, drivers against rules."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from served import BASE, PLAIN, QUEUE, SIZE, Bench, shared
from test_port import frame

from virtio_ipsec.errors import ConfigError, TransportError
from virtio_ipsec.ring.memory import Allocator
from virtio_ipsec.transport import lane
from virtio_ipsec.transport.port import ServedPort
from virtio_ipsec.transport.rings import QueuePlace
from virtio_ipsec.wire.numbers import Feature, Status, mask

CONTROLLED = PLAIN | mask(Feature.NET_F_CTRL_VQ, Feature.NET_F_MQ)


@pytest.fixture(params=["c", "python"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(engine=request.param)
    yield made
    made.close()


def transmit(bench: Bench, first: int, count: int = 20) -> None:
    sent = [frame(first + n) for n in range(count)]
    bench.guest.send(*sent)
    assert bench.captured(count) == sent
    bench.until(lambda: not bench.guest.reclaim() and not bench.guest.drivers[1]._outstanding)


def test_a_stopped_queue_goes_on_where_it_was(bench: Bench) -> None:
    transmit(bench, 0)
    state = bench.port.stop_queue(1)
    assert state == 20
    bench.guest.send(frame(100))
    time.sleep(0.01)
    assert bench.uplink.take() == []
    bench.port.start_queue(1, QueuePlace(bench.guest.layouts[1], state))
    assert bench.captured(1) == [frame(100)]
    transmit(bench, 200)
    assert bench.port.stop_queue(0) == 0


def test_stopping_under_load_loses_nothing_and_does_nothing_twice(bench: Bench) -> None:
    sent, seen = 0, []
    state = 0
    for _ in range(20):
        room = bench.guest.drivers[1].free
        bench.guest.send(*[frame(sent + n) for n in range(min(room, 16))])
        sent += min(room, 16)
        state = bench.port.stop_queue(1)
        seen += bench.uplink.take()
        assert state == len(seen)
        bench.port.start_queue(1, QueuePlace(bench.guest.layouts[1], state))
        bench.guest.reclaim()
    seen += bench.captured(sent - len(seen))
    assert seen == [frame(n) for n in range(sent)]


def test_memory_may_be_mapped_anew_while_queues_are_at_work(bench: Bench) -> None:
    for turn in range(4):
        bench.guest.send(frame(turn))
        bench.port.set_memory(shared(bench.guest.fd))
        assert bench.captured(1) == [frame(turn)]
        bench.uplink.inject(frame(50 + turn))
        assert bench.received(1) == [frame(50 + turn)]


def test_a_queue_that_is_not_enabled_discards(bench: Bench) -> None:
    bench.port.set_enabled(1, False)
    bench.guest.send(*[frame(n) for n in range(10)])
    bench.until(lambda: not bench.guest.reclaim() and not bench.guest.drivers[1]._outstanding)
    assert bench.uplink.take() == []
    assert bench.port.counters()["tx_refused_queue_disabled"] == 10
    bench.port.set_enabled(0, False)
    bench.uplink.inject(frame(1))
    bench.until(lambda: bench.port.counters()["rx_refused_queue_disabled"] == 1)
    for index in (0, 1):
        bench.port.set_enabled(index, True)
    transmit(bench, 300)
    bench.uplink.inject(frame(2))
    assert bench.received(1) == [frame(2)]


def test_the_driver_is_told_what_was_used(bench: Bench) -> None:
    for index in (0, 1):
        assert not bench.guest.drivers[index].enable_notifications()
    bench.guest.send(frame(1))
    assert bench.guest.called(1)
    bench.uplink.inject(frame(2))
    assert bench.guest.called(0)
    # A front-end may give another descriptor at any time.
    other = os.eventfd(0, os.EFD_NONBLOCK)
    bench.port.set_call(1, os.dup(other))
    bench.guest.reclaim()
    bench.guest.drivers[1].enable_notifications()
    bench.guest.send(frame(3))
    bench.until(lambda: _rang(other))
    assert not bench.guest.called(1, 0)
    os.close(other)


def _rang(fd: int) -> bool:
    try:
        return os.eventfd_read(fd) > 0
    except BlockingIOError:
        return False


def test_a_queue_without_a_kick_descriptor_is_polled(bench: Bench) -> None:
    bench.port.set_kick(1, None)
    driver = bench.guest.drivers[1]
    kicks, bench.guest.kicks[1] = bench.guest.kicks[1], os.eventfd(0, os.EFD_NONBLOCK)
    transmit(bench, 0)
    assert driver is bench.guest.drivers[1]
    os.close(kicks)


def test_a_driver_that_breaks_a_ring_stops_its_own_port_until_reset(bench: Bench) -> None:
    other = Bench()
    err = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        bench.port.set_err(1, os.dup(err))
        layout = bench.guest.layouts[1]
        bench.guest.memory.put_u16(layout.driver + 2, 5 + QUEUE)  # more than the ring holds
        bench.guest.kick(1)
        os.eventfd_write(bench.guest.kicks[1], 1)
        bench.until(lambda: bool(bench.port.device.status & Status.DEVICE_NEEDS_RESET))
        bench.until(lambda: _rang(err))
        bench.uplink.inject(frame(1))
        bench.until(lambda: bench.port.counters()["rx_not_operating"] == 1)
        transmit(other, 0)
        bench.port.reset()
        bench.negotiate()
        for index in (0, 1):
            bench.start(index)
        transmit(bench, 0)
    finally:
        os.close(err)
        other.close()


def test_memory_that_vanishes_stops_its_own_port() -> None:
    victim, other = Bench(CONTROLLED), Bench()
    try:
        victim.start(4)
        os.ftruncate(victim.guest.fd, 0)
        for index in (1, 4):
            os.eventfd_write(victim.guest.kicks[index], 1)
        victim.uplink.inject(frame(1))
        victim.until(lambda: bool(victim.port.device.status & Status.DEVICE_NEEDS_RESET))
        transmit(other, 0)
    finally:
        victim.close()
        other.close()


def test_a_command_whose_memory_vanishes_ends_nothing_but_its_device() -> None:
    victim = Bench(CONTROLLED)
    try:
        victim.start(4)
        # The ring lies in the part that stays, the command in the one that goes.
        victim.guest.allocator = Allocator(BASE + SIZE // 2, SIZE // 2)
        kick, victim.guest.kicks[4] = victim.guest.kicks[4], os.eventfd(0, os.EFD_NONBLOCK)
        victim.guest.command(4, bytes(2), 1)
        os.ftruncate(victim.guest.fd, SIZE // 2)
        os.eventfd_write(kick, 1)
        os.close(kick)
        victim.until(lambda: bool(victim.port.device.status & Status.DEVICE_NEEDS_RESET))
    finally:
        victim.close()


def test_who_hangs_in_a_full_eventfd_is_set_free(bench: Bench) -> None:
    call = os.eventfd(0, os.EFD_NONBLOCK)
    bench.port.set_call(1, os.dup(call))
    os.eventfd_write(call, 2**64 - 2)
    os.set_blocking(call, True)  # theirs and ours
    bench.guest.drivers[1].enable_notifications()
    bench.guest.send(frame(1))
    bench.until(lambda: bool(bench.guest.reclaim()))
    assert bench.port.counters()["connections"] == 0  # nobody else waits with it
    begin = time.monotonic()
    bench.port.reset()
    assert time.monotonic() - begin < 3
    assert bench.captured(1) == [frame(1)]
    os.close(call)


def test_only_eventfds_are_rung(bench: Bench) -> None:
    for give in (bench.port.set_call, bench.port.set_err, bench.port.set_kick):
        reader, writer = os.pipe()
        with pytest.raises(TransportError, match="no eventfd"):
            give(1, writer)
        os.close(reader)
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(writer)
    transmit(bench, 0)


def test_the_control_queue_works_in_the_control_thread() -> None:
    bench = Bench(CONTROLLED)
    try:
        bench.start(4)
        answer = bench.guest.command(4, b"\x04\x00" + struct.pack("<H", 2), 1)  # MQ, VQ_PAIRS_SET
        bench.until(lambda: bool(bench.guest.drivers[4].poll()))
        assert bench.guest.memory.read(answer.addr, 1) == b"\0"
        assert bench.port.device.context.steering.queue_pairs == 2
        assert bench.guest.called(4)
    finally:
        bench.close()


def test_a_control_queue_that_announces_nothing_is_looked_at() -> None:
    bench = Bench(CONTROLLED)
    try:
        bench.start(4)
        bench.port.set_kick(4, None)
        answer = bench.guest.command(4, b"\x04\x00" + struct.pack("<H", 2), 1)
        bench.until(lambda: bool(bench.guest.drivers[4].poll()))
        assert bench.guest.memory.read(answer.addr, 1) == b"\0"
    finally:
        bench.close()


def test_more_commands_than_a_portion_are_all_run() -> None:
    bench = Bench(CONTROLLED)
    try:
        bench.start(4)
        for _ in range(30):
            bench.guest.command(4, b"\x04\x00" + struct.pack("<H", 2), 1)
        bench.until(lambda: not bench.guest.drivers[4].poll() and not bench.guest.drivers[4]._outstanding)
    finally:
        bench.close()


def test_a_device_that_offers_ipsec_is_not_the_operators() -> None:
    bench = Bench(start=False)
    try:
        with pytest.raises(ConfigError, match="ADMIN_VQ"):
            ServedPort(bench.port.device, bench.uplink, object())  # type: ignore[arg-type]
    finally:
        bench.close()


def test_two_queue_pairs_have_two_threads() -> None:
    bench = Bench(CONTROLLED)
    try:
        bench.port.pairs_by_enabling = True
        for index in (2, 3):
            bench.start(index)
        assert bench.port.device.context.steering.queue_pairs == 2
        assert {"test-0", "test-1"} <= {thread.name for thread in threading.enumerate()}
        for index in (1, 3):
            bench.guest.send(*[frame(100 * index + n) for n in range(30)], index=index)
        seen = bench.captured(60)
        assert [f for f in seen if f in {frame(100 + n) for n in range(30)}] == [
            frame(100 + n) for n in range(30)
        ]
        assert sorted(seen) == sorted([frame(100 * index + n) for index in (1, 3) for n in range(30)])
        bench.port.set_enabled(2, False)
        assert bench.port.device.context.steering.queue_pairs == 1
    finally:
        bench.close()


def test_a_port_leaves_nothing_behind() -> None:
    def things() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    Bench().close()
    before = things()
    for engine in ("c", "python") * 3:
        bench = Bench(engine=engine)
        transmit(bench, 0)
        bench.close()
        os_left = things()
        # The guest's own mapping goes with the guest.
        del bench
    assert os_left[1] == before[1]
    assert things()[0] <= before[0] + 4


def test_a_thread_that_never_comes_back_is_reported() -> None:
    bench = Bench()
    release = threading.Event()
    bench.uplink.send = lambda frames: release.wait() and None  # type: ignore[method-assign]
    bench.guest.send(frame(1))
    bench.until(lambda: bool(bench.guest.reclaim()))
    patience, lane._PATIENCE = lane._PATIENCE, 0.005
    try:
        with pytest.raises(lane.Stuck):
            bench.port.stop_queue(1)
    finally:
        lane._PATIENCE = patience
        release.set()
        bench.close()


def test_an_error_of_our_own_stops_the_device_and_burns_no_processor(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    calls = []

    def fail(most: int) -> list[bytes]:
        calls.append(most)
        raise ZeroDivisionError

    bench.uplink.receive = fail  # type: ignore[method-assign]
    bench.uplink.inject(frame(1))
    bench.until(lambda: bool(bench.port.device.status & Status.DEVICE_NEEDS_RESET))
    time.sleep(0.05)
    assert len(calls) == 1
    assert "internal error" in caplog.text
    bench.close()
