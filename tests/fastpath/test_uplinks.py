"""Where a worker's frames go without Python: nowhere, or on a wire to another port; and polling."""

from __future__ import annotations

import gc
import os
import select
import threading
import time
from ipaddress import ip_network

import pytest
from ports import Bench
from test_pipeline import ANY, BYPASS, ether, udp

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.fastpath.pipeline import RxState, Uplink, Worker
from virtio_ipsec.fastpath.wire import Wire
from virtio_ipsec.policy.flows import Action
from virtio_ipsec.policy.selectors import InboundSa, Policy, Rule, Selector


def open_port() -> Bench:
    bench = Bench()
    bench.policy(BYPASS)
    return bench


def is_readable(wire: Wire) -> bool:
    return bool(select.select([wire], [], [], 0)[0])


def test_frames_that_go_nowhere_are_counted() -> None:
    bench = open_port()
    worker = Worker(bench.port, Uplink.NULL)
    bench.queue(ether(udp()))
    bench.queue(ether(udp()))
    assert bench.kick(worker=worker) == []
    assert worker.counts() == {"tx_frames": 2, "tx_bytes": 2 * len(ether(udp())), "tx_bypassed": 2}


def test_the_owner_sends_what_it_made_of_a_punted_buffer_itself() -> None:
    bench = open_port()
    bench.punt_transmit = lambda _pair, _buffer: [b"mine"]  # type: ignore[method-assign]
    bench.queue(ether(udp())[:12] + b"\x08\x06" + bytes(28))
    assert bench.kick(worker=Worker(bench.port, Uplink.NULL)) == [b"mine"]


def test_frames_go_over_a_wire_into_another_port_in_order() -> None:
    here, there, wire = open_port(), open_port(), Wire()
    worker = Worker(here.port, wire)
    there.post()
    frames = [ether(udp(data=bytes((n,)) * 20)) for n in range(100)]
    for frame in frames[:60]:
        here.queue(frame)
    assert here.kick(worker=worker) == []
    assert is_readable(wire)
    entry = Worker(there.port)
    assert entry.take(wire, 50) == 50
    assert is_readable(wire)
    assert entry.take(wire, 50) == 10
    assert not is_readable(wire)
    assert entry.take(wire, 50) == 0
    assert [frame for _, frame in there.taken()] == frames[:60]
    assert there.interrupts == [0, 0]
    assert worker.counts()["tx_frames"] == entry.counts()["rx_frames"] == 60
    octets = sum(map(len, frames[:60]))
    assert wire.counts() == {
        "put_frames": 60, "put_octets": octets, "refused": 0, "taken_frames": 60, "taken_octets": octets,
    }  # fmt: skip
    wire.put(frames[60:])
    assert wire.take(99) == frames[60:]


def test_plain_side_and_cipher_side() -> None:
    """What leaves a guest in clear is protected on its way to another port, and opened on its way back."""
    plain, cipher = Bench(), open_port()
    inside = Selector(local=ip_network("10.0.0.0/24"), remote=ip_network("10.0.0.0/24"))
    plain.policy(Policy((Rule(inside, Action.PROTECT, sa=1),), Action.DROP, {1: InboundSa((ANY,))}))
    sa, peer = plain.outbound(1), plain.inbound(1)
    there, back = Wire(), Wire()
    cipher.post()
    plain.post()
    packet = ether(udp())
    plain.queue(packet)
    plain.kick(worker=Worker(plain.port, there))
    assert Worker(cipher.port).take(there, 64) == 1
    ((_, protected),) = cipher.taken()
    assert protected[23] == 50
    assert sa.sequence == 1
    cipher.queue(protected)
    cipher.kick(worker=Worker(cipher.port, back))
    assert Worker(plain.port).take(back, 64) == 1
    assert [frame for _, frame in plain.taken()] == [packet]
    assert peer.top == 1


def test_what_python_makes_of_a_frame_on_a_wire_ends_up_with_the_caller() -> None:
    there, wire = open_port(), Wire()

    def refuse(_frame: bytes, _state: RxState) -> list[tuple[int, bytes]]:
        raise PacketError(Reason.OVERLOAD)

    there.punt_receive = refuse  # type: ignore[method-assign]
    there.inbound(1)
    there.port.set_foreign_sas(1)
    packet = bytearray(udp())
    packet[9] = 51  # AH, which only Python has
    wire.put([ether(bytes(packet[:20]) + b"\x04\x04\0\0" + b"\0\0\0\x07\0\0\0\1" + bytes(12))])
    with pytest.raises(PacketError):
        Worker(there.port).take(wire, 1)


def test_a_wire_lives_as_long_as_it_is_needed() -> None:
    here = open_port()
    worker = Worker(here.port, Wire())
    gc.collect()
    here.queue(ether(udp()))
    assert here.kick(worker=worker) == []


def test_a_wire_is_bounded_in_frames_and_in_octets_and_goes_round() -> None:
    wire = Wire()
    large = [bytes((n,)) * 65_557 for n in range(128)]
    for _ in range(3):  # more than once around
        wire.put(large)
        found: list[bytes] = []
        while some := wire.take(1000):
            found += some
        room = (1 << 23) // (65_557 + 4)
        assert found == large[:room]
    assert wire.counts()["refused"] == 3 * (128 - room)
    wire.put([b""] * 5000)
    assert len(wire.take(5000)) == 4096
    wire.put([bytes((1 << 17) + 1), b"short"])
    assert wire.take(9) == []  # nothing behind a frame that no wire takes, for order


def test_a_wire_that_is_closed_takes_nothing() -> None:
    wire = Wire()
    fd = wire.fileno()
    wire.put([b"waits"])
    wire.close()
    wire.close()
    assert wire.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    wire.put([b"late"])
    assert wire.take(9) == []
    assert wire.counts()["refused"] == 1


def test_polling_ends_with_the_budget_or_after_so_many_looks_in_vain() -> None:
    bench = open_port()
    worker = Worker(bench.port, Uplink.NULL)
    for _ in range(10):
        bench.queue(ether(udp()))
    bench.drivers[1].publish()
    assert worker.transmit(0, 4, idle=1 << 31) == 4
    assert worker.transmit(0, 1000, idle=1000) == 6
    assert worker.transmit(0, 0, idle=5) == 0
    assert worker.transmit(99, 1, idle=1 << 31) == 0


def test_a_polling_worker_sees_what_comes_meanwhile_and_leaves_the_gil_alone() -> None:
    bench = open_port()
    worker = Worker(bench.port, Uplink.NULL)
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(worker.transmit(0, 3, idle=1 << 31)))
    thread.start()
    for _ in range(3):
        time.sleep(0.001)
        bench.queue(ether(udp()))
        bench.drivers[1].publish()
    thread.join(30)
    assert done == [3]


def test_a_broken_queue_is_not_polled() -> None:
    bench = open_port()
    worker = Worker(bench.port, Uplink.NULL)
    bench.queue(ether(udp()))
    bench.break_ring(1, 0)
    bench.drivers[1].publish()
    assert worker.transmit(0, 64, idle=1 << 31) == 0
    assert bench.queues[1].faulty
