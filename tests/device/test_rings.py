"""The device's virtqueues, driven by driver-side queues over the same memory, split and packed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from plane import (
    ALL,
    ETHER,
    MAC,
    SPI,
    TUNNEL4,
    add_rule,
    eth,
    inbound_sa,
    ipv4,
    outbound_sa,
    random_bytes,
    seal,
    unseal,
)
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.device.rings import MAX_TRANSMIT, Rings
from virtio_ipsec.device.state import RxFilter
from virtio_ipsec.errors import DeviceStateError, RingError
from virtio_ipsec.ring.base import DriverQueue
from virtio_ipsec.ring.chain import QueueLayout, Segment
from virtio_ipsec.ring.memory import Allocator, GuestMemory
from virtio_ipsec.ring.queue import allocate_layout, driver_queue
from virtio_ipsec.wire.numbers import (
    AdminStatus,
    CtrlClass,
    CtrlRx,
    Feature,
    FfAction,
    HdrFlag,
    Opcode,
    Status,
    mask,
)

ADMIN = 2 * 8 + 1
HEADER = 32
FRAME = bytes(ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2) / b"payload")
SPLIT = ALL & ~mask(Feature.NET_F_HOST_UFO) | mask(Feature.F_INDIRECT_DESC, Feature.F_RING_RESET)
PACKED = SPLIT | mask(Feature.F_RING_PACKED)
IN_ORDER = PACKED | mask(Feature.F_IN_ORDER, Feature.F_EVENT_IDX)


@dataclass
class Bench:
    """A device, its memory, and the driver's end of whatever queues a test wants."""

    features: int = SPLIT
    size: int = 16
    device: Device = field(init=False)
    queues: dict[int, DriverQueue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.memory = GuestMemory.anonymous(1 << 21, 0x10000)
        self.allocator = Allocator(0x10000, 1 << 21)
        self.device = Device(DeviceConfig(), random_bytes)
        self.device.negotiate(self.features)
        self.device.context.rx_filter = RxFilter(mac=MAC, promisc=True)
        self.rings = Rings(self.device, self.memory)

    def open(self, index: int) -> DriverQueue:
        layout = allocate_layout(self.allocator, self.size, self.features)
        queue = driver_queue(self.memory, layout, self.features, self.allocator)
        self.rings.enable_queue(index, layout)
        self.queues[index] = queue
        return queue

    def place(self, data: bytes, *cuts: int) -> list[Segment]:
        """``data`` in guest memory, split into segments at ``cuts``."""
        edges = [0, *cuts, len(data)]
        segments = []
        for begin, end in pairwise(edges):
            address = self.allocator.alloc(max(end - begin, 1))
            self.memory.write(address, data[begin:end])
            segments.append(Segment(address, end - begin))
        return segments

    def room(self, *lengths: int, fill: bytes = b"\xaa") -> list[Segment]:
        return [self.place(fill * length)[0] for length in lengths]

    def command(self, index: int, data: bytes, room: int = 64) -> bytes:
        """One command through the admin or control queue; what the device wrote."""
        queue = self.queues[index]
        (answer,) = self.room(room)
        queue.add(self.place(data), [answer], "command")
        queue.publish()
        assert self.rings.kick(index) == []
        (used,) = queue.poll()
        return self.memory.read(answer.addr, used.written)

    def send(self, frame: bytes, *cuts: int, queue: int = 1, header: bytes = bytes(HEADER)) -> list[bytes]:
        self.queues[queue].add(self.place(header + frame, *cuts), [], "tx")
        self.queues[queue].publish()
        return self.rings.kick(queue)

    def post(self, *lengths: int, queue: int = 0) -> list[Segment]:
        """Receive buffers of these lengths, one chain each."""
        segments = self.room(*lengths)
        for segment in segments:
            self.queues[queue].add([], [segment], segment)
            self.queues[queue].publish()
        return segments

    def taken(self, queue: int = 0) -> list[bytes]:
        """Contents of the buffers that came back."""
        return [self.memory.read(u.token.addr, u.written) for u in self.queues[queue].poll()]  # type: ignore[attr-defined]

    def counted(self) -> dict[str, int]:
        return dict(self.device.counters())


@pytest.fixture(params=[SPLIT, PACKED, IN_ORDER], ids=["split", "packed", "in-order"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


def test_numbering_of_queues() -> None:
    """INF-44, INF-45 and virtio v1.4 5.1.2: the control queue follows the pairs in use, the admin queue stays."""
    many = Bench().rings
    assert (many.queue_count, many.admin_queue_index, many.control_queue_index) == (17, 17, 16)
    one = Bench(SPLIT & ~mask(Feature.NET_F_MQ)).rings
    assert (one.queue_count, one.admin_queue_index, one.control_queue_index) == (17, 17, 2)
    assert [many.queue_max_size(i) for i in (-1, 0, 16, 17, 18)] == [0, 256, 256, 256, 0]


@pytest.mark.parametrize("cuts", [(), (1,), (31,), (32,), (33,), (12, 40, 50)])
def test_a_transmitted_frame(bench: Bench, cuts: tuple[int, ...]) -> None:
    """FRM-01: header and frame may be cut anywhere."""
    queue = bench.open(1)
    assert bench.send(FRAME, *cuts) == [FRAME]
    assert [used.written for used in queue.poll()] == [0]
    assert bench.rings.take_interrupts() == {1}
    assert bench.rings.interrupts == frozenset()


def test_indirect_buffers(bench: Bench) -> None:
    queue = bench.open(1)
    queue.add(bench.place(bytes(HEADER) + FRAME, 20, 32), [], "tx", indirect=True)
    queue.publish()
    assert bench.rings.kick(1) == [FRAME]


def test_buffers_of_refused_packets_are_completed_too(bench: Bench) -> None:
    """E54: with SECURITY and no SA nothing leaves, and the buffer comes back."""
    queue = bench.open(1)
    header = bytearray(HEADER)
    header[0] = int(HdrFlag.SECURITY)
    assert bench.send(FRAME, header=bytes(header)) == []
    assert bench.send(b"", header=b"short") == []
    assert len(queue.poll()) == 2
    assert bench.counted() == {"tx_refused_unknown_sa": 1, "tx_refused_bad_header": 1}


def test_a_transmit_buffer_beyond_the_limit_is_completed_unread(bench: Bench) -> None:
    queue = bench.open(1)
    (large,) = bench.room(MAX_TRANSMIT + 1)
    queue.add([large], [], "tx")
    queue.publish()
    assert bench.rings.kick(1) == []
    assert len(queue.poll()) == 1
    assert bench.counted() == {"tx_refused_too_big": 1}


def test_writable_parts_of_a_transmit_buffer_stay_untouched(bench: Bench) -> None:
    queue = bench.open(1)
    (extra,) = bench.room(8)
    queue.add(bench.place(bytes(HEADER) + FRAME), [extra], "tx")
    queue.publish()
    assert bench.rings.kick(1) == [FRAME]
    assert [used.written for used in queue.poll()] == [0]
    assert bench.memory.read(extra.addr, 8) == b"\xaa" * 8


def test_frames_of_one_kick_keep_their_order_and_pairs_are_counted_from_zero(bench: Bench) -> None:
    bench.open(1)
    queue = bench.open(7)
    bench.device.context.steering = replace(bench.device.context.steering, queue_pairs=8)
    for number in range(5):
        queue.add(bench.place(bytes(HEADER) + FRAME[:-1] + bytes((number,))), [], number)
    queue.publish()
    assert [frame[-1] for frame in bench.rings.kick(7)] == [0, 1, 2, 3, 4]
    flows = bench.device.context.flows
    assert flows is not None
    assert list(flows._queues.values()) == [3]


def test_one_kick_works_off_one_ring_at_most(bench: Bench) -> None:
    """A driver that adds while the device works cannot hold it."""
    queue = bench.open(1)
    inner = bench.device.transmitter

    class Refilling(type(inner)):  # type: ignore[misc]
        def transmit(self, buffer: bytes, pair: int) -> list[bytes]:
            queue.poll()
            queue.add(bench.place(bytes(HEADER) + FRAME), [], "again")
            queue.publish()
            return super().transmit(buffer, pair)

    bench.device.transmitter = Refilling(bench.device.context)
    assert len(bench.send(FRAME)) == bench.size
    assert bench.rings.pending(1) == 1


def test_a_kick_of_a_receive_queue_or_a_queue_that_is_not_there_does_nothing(bench: Bench) -> None:
    bench.open(0)
    bench.post(100)
    for index in (0, 3, 99, ADMIN):
        assert bench.rings.kick(index) == []
        assert bench.rings.pending(index) == 0
    assert bench.taken() == []


# Receive


def wanted(frame: bytes, buffers: int = 1) -> bytes:
    """Header and frame of a plain frame with a right checksum."""
    return b"\x02" + bytes(9) + buffers.to_bytes(2, "little") + bytes(12) + b"\x0e\0" + bytes(6) + frame


def test_a_received_frame_in_one_buffer(bench: Bench) -> None:
    bench.open(0)
    bench.post(200)
    bench.rings.deliver(FRAME)
    assert bench.taken() == [wanted(FRAME)]
    assert bench.rings.take_interrupts() == {0}


def test_merged_buffers_are_full_but_the_last_and_appear_together(bench: Bench) -> None:
    """NET-RX-DEV-02 to NET-RX-DEV-04."""
    bench.open(0)
    big = FRAME + bytes(300)
    bench.post(100, 40, 150, 200, 77)
    bench.rings.deliver(big)
    pieces = bench.taken()
    assert [len(piece) for piece in pieces] == [100, 40, 150, HEADER + len(big) - 290]
    assert b"".join(pieces) == wanted(big, 4)
    bench.rings.deliver(FRAME)
    assert bench.taken() == []
    assert bench.counted()["rx_refused_no_buffer"] == 1
    bench.post(50)
    bench.rings.deliver(FRAME)
    assert b"".join(bench.taken()) == wanted(FRAME, 2)


def test_a_buffer_that_is_exactly_full(bench: Bench) -> None:
    bench.open(0)
    bench.post(HEADER + len(FRAME), 100)
    bench.rings.deliver(FRAME)
    assert bench.taken() == [wanted(FRAME)]


def test_without_mergeable_buffers_a_frame_takes_one_or_is_dropped() -> None:
    """NET-RXB-DEV-02; the buffer stays for a frame that fits."""
    bench = Bench(SPLIT & ~mask(Feature.NET_F_MRG_RXBUF))
    bench.open(0)
    bench.post(HEADER + len(FRAME), 1000)
    bench.rings.deliver(FRAME + b"x")
    assert bench.taken() == []
    bench.rings.deliver(FRAME)
    assert bench.taken() == [wanted(FRAME)]
    assert bench.counted()["rx_refused_no_buffer"] == 1


def test_a_first_buffer_shorter_than_the_header_is_not_used(bench: Bench) -> None:
    """E17: that is the driver's fault; nothing is written."""
    bench.open(0)
    segments = bench.post(HEADER - 1, 500)
    bench.rings.deliver(FRAME)
    assert bench.taken() == []
    assert bench.memory.read(segments[1].addr, 500) == b"\xaa" * 500
    assert bench.counted()["rx_refused_no_buffer"] == 1


def test_a_frame_without_room_has_used_its_sequence_number(bench: Bench) -> None:
    bench.open(0)
    inbound_sa(bench.device.context, 9)
    add_rule(bench.device.context.filters, FfAction.IPSEC, eth(), ipv4(50))
    inner = bytes(IP(src="10.0.0.1", dst="10.0.0.2") / UDP() / b"inner")
    wire = bytes(ETHER / IP(proto=50) / Raw(seal(inner, 4)))
    bench.rings.deliver(wire)
    assert bench.counted()["rx_refused_no_buffer"] == 1
    bench.post(300)
    bench.rings.deliver(wire)
    (buffer,) = bench.taken()
    assert buffer[0] == 16 | 32
    assert buffer[HEADER:] == wire
    assert bench.counted()["rx_refused_replay"] == 1


def test_only_queues_that_are_enabled_receive(bench: Bench) -> None:
    """NET-FF-DEV-10, and the automatic choice of another queue."""
    bench.open(0)
    bench.open(4)
    bench.post(200, 200)
    bench.post(200, queue=4)
    assert bench.device.context.live_rx_queues == {0, 2}
    rule = add_rule(bench.device.context.filters, FfAction.DIRECT_RX_VQ, eth(), vq_index=4)
    bench.rings.deliver(FRAME)
    assert len(bench.taken(4)) == 1
    bench.rings.reset_queue(4)
    assert not bench.rings.queue_enabled(4)
    bench.rings.deliver(FRAME)
    assert bench.taken() == []
    assert bench.counted()["rx_refused_queue_disabled"] == 1
    filters = bench.device.context.filters
    filters.rules[0] = replace(rule, vq_index=0)
    filters.generation += 1
    bench.rings.deliver(FRAME)
    assert len(bench.taken()) == 1


def test_a_queue_that_steering_does_not_know_to_be_gone_drops(bench: Bench) -> None:
    bench.device.context.live_rx_queues = None
    bench.rings.deliver(FRAME)
    assert bench.counted()["rx_refused_queue_disabled"] == 1


def test_a_reset_queue_starts_anew_where_it_is_put(bench: Bench) -> None:
    """BAS-RESET-04, BAS-RESET-05, BAS-RESET-08."""
    old = bench.open(1)
    old.add(bench.place(bytes(HEADER) + FRAME), [], "left")
    old.publish()
    bench.rings.reset_queue(1)
    assert bench.rings.kick(1) == []
    assert old.poll() == []
    bench.open(1)
    assert bench.send(FRAME) == [FRAME]
    assert old.poll() == []
    assert bench.rings.interrupts == {1}
    bench.rings.reset_queue(1)
    assert bench.rings.interrupts == frozenset()


# Commands


def admin_command(opcode: int) -> bytes:
    return opcode.to_bytes(2, "little") + bytes(22)


def test_admin_commands_run_in_order_with_the_answers_length_as_used_length(bench: Bench) -> None:
    """AVQ-DEV-02, AVQ-DEV-05, AVQ-DEV-07."""
    bench.open(ADMIN)
    answer = bench.command(ADMIN, admin_command(Opcode.LIST_QUERY), room=64)
    assert answer[:8] == bytes(8)
    assert len(answer) == 16
    assert answer[8] & 3 == 3
    assert bench.command(ADMIN, admin_command(Opcode.LIST_QUERY), room=8) == bytes(8)
    failed = bench.command(ADMIN, admin_command(0x7FFF), room=64)
    assert int.from_bytes(failed[:2], "little") == AdminStatus.EINVAL
    queue = bench.queues[ADMIN]
    rooms = bench.room(8, 8, 8)
    for opcode, room in zip((Opcode.LIST_QUERY, 0x7FFF, Opcode.LIST_QUERY), rooms, strict=True):
        queue.add(bench.place(admin_command(opcode), 3), [room], opcode)
    queue.publish()
    bench.rings.kick(ADMIN)
    assert [used.token for used in queue.poll()] == [Opcode.LIST_QUERY, 0x7FFF, Opcode.LIST_QUERY]
    assert [bench.memory.read(r.addr, 2) != bytes(2) for r in rooms] == [False, True, False]
    assert ADMIN in bench.rings.take_interrupts()


def test_an_answer_is_spread_over_the_writable_segments(bench: Bench) -> None:
    queue = bench.open(ADMIN)
    rooms = bench.room(3, 6, 50)
    queue.add(bench.place(admin_command(Opcode.LIST_QUERY)), rooms, "spread")
    queue.publish()
    bench.rings.kick(ADMIN)
    assert [used.written for used in queue.poll()] == [16]
    assert bench.memory.read(rooms[2].addr + 7, 43) == b"\xaa" * 43


def test_control_commands(bench: Bench) -> None:
    control = 16
    bench.open(control)
    assert bench.command(control, bytes((CtrlClass.RX, CtrlRx.ALLMULTI, 1)), room=1) == b"\0"
    assert bench.device.context.rx_filter.allmulti
    assert bench.command(control, b"\xff\xff", room=1) == b"\x01"


def test_queues_without_their_feature_are_not_worked_on() -> None:
    bench = Bench(SPLIT & ~mask(Feature.F_ADMIN_VQ))
    queue = bench.open(ADMIN)
    queue.add(bench.place(admin_command(0)), bench.room(16), "x")
    queue.publish()
    assert bench.rings.kick(ADMIN) == []
    assert queue.poll() == []
    plain = Bench(mask(Feature.F_VERSION_1))
    other = plain.open(2)
    other.add(plain.place(b"\0\0\1"), plain.room(1), "x")
    other.publish()
    assert plain.rings.kick(2) == []
    assert other.poll() == []


def test_a_device_that_stops_within_a_command_touches_the_ring_no_more(bench: Bench) -> None:
    queue = bench.open(ADMIN)

    def stop(readable: bytes, writable_len: int) -> bytes:
        bench.device.needs_reset()
        return bytes(8)

    bench.device.admin = stop  # type: ignore[method-assign]
    for _ in range(2):
        queue.add(bench.place(admin_command(0)), bench.room(8), "x")
    queue.publish()
    bench.rings.kick(ADMIN)
    assert len(queue.poll()) == 1


# Status


def test_nothing_is_consumed_before_driver_ok() -> None:
    """BAS-STATUS-05."""
    bench = Bench()
    device = bench.device
    device.reset()
    device.status = Status.ACKNOWLEDGE
    device.status |= Status.DRIVER
    bench.rings.reset()
    with pytest.raises(DeviceStateError):
        bench.open(1)
    device.write_driver_features(SPLIT)
    device.status |= Status.FEATURES_OK
    transmit, receive = bench.open(1), bench.open(0)
    bench.post(200)
    assert bench.send(FRAME) == []
    bench.rings.deliver(FRAME)
    assert transmit.poll() == receive.poll() == []
    assert bench.rings.pending(1) == 0
    device.status |= Status.DRIVER_OK
    device.context.rx_filter = RxFilter(mac=MAC)
    assert bench.rings.kick(1) == [FRAME]
    bench.rings.deliver(FRAME)
    assert len(bench.taken()) == 1


def test_after_a_reset_no_queue_is_touched(bench: Bench) -> None:
    """BAS-RESET-02."""
    bench.open(1)
    receive = bench.open(0)
    bench.post(200)
    bench.device.reset()
    bench.rings.reset()
    assert bench.send(FRAME) == []
    bench.rings.deliver(FRAME)
    assert receive.poll() == []
    assert bench.rings.interrupts == frozenset()
    assert not bench.rings.queue_enabled(1)


@pytest.mark.parametrize("index", [1, ADMIN, 16])
def test_a_broken_ring_puts_the_device_into_needs_reset(bench: Bench, index: int) -> None:
    """BAS-STATUS-06, BAS-STATUS-07: what came before the fault still leaves."""
    queue = bench.open(index)
    if index == 1:
        queue.add(bench.place(bytes(HEADER) + FRAME), [], "good")
    queue.add(bench.place(b"x"), [], "bad")
    bad = queue.layout.desc + (16 if index == 1 else 0)
    queue.publish()
    bench.memory.put_u64(bad, 1 << 60)
    assert bench.rings.kick(index) == ([FRAME] if index == 1 else [])
    assert bench.device.status & Status.DEVICE_NEEDS_RESET
    assert bench.device.take_config_change()
    assert bench.rings.kick(index) == []


def test_a_broken_receive_ring_does_so_too(bench: Bench) -> None:
    queue = bench.open(0)
    bench.post(100)
    bench.memory.put_u64(queue.layout.desc, 1 << 60)
    bench.rings.deliver(FRAME)
    assert bench.device.status & Status.DEVICE_NEEDS_RESET
    bench.rings.deliver(FRAME)


def test_a_ring_found_broken_by_a_look() -> None:
    bench = Bench()
    queue = bench.open(1)
    bench.memory.put_u16(queue.layout.driver + 2, 5000)
    assert bench.rings.pending(1) == 0
    assert bench.device.status & Status.DEVICE_NEEDS_RESET


def test_queues_that_cannot_be_enabled(bench: Bench) -> None:
    bench.open(1)
    layout = allocate_layout(bench.allocator, 16, bench.features)
    for index, bad in ((1, layout), (18, layout), (-1, layout), (3, replace(layout, size=512))):
        with pytest.raises(DeviceStateError):
            bench.rings.enable_queue(index, bad)
    with pytest.raises(RingError):
        bench.rings.enable_queue(3, QueueLayout(16, 1 << 40, 0, 0))
    assert not bench.rings.queue_enabled(3)


def test_a_driver_that_wants_no_notification_gets_none() -> None:
    bench = Bench()
    queue = bench.open(1)
    queue.disable_notifications()
    bench.send(FRAME)
    assert bench.rings.take_interrupts() == set()
    assert len(queue.poll()) == 1


def test_esp_through_the_ring(bench: Bench) -> None:
    """The whole way: a header naming an SA on a transmitq, ESP on the wire."""
    bench.open(1)
    outbound_sa(bench.device.context, 3, param=TUNNEL4)
    header = bytes((int(HdrFlag.SECURITY),)) + bytes(25) + b"\x03\0\0\0" + b"\x03\x02"
    (out,) = bench.send(FRAME, header=header)
    assert unseal(out[34:])[:3] == (SPI, 1, FRAME[14:])
