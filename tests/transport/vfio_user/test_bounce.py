"""Clients that keep their memory to themselves: rings and buffers by DMA_READ and DMA_WRITE alone."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue

import pytest
import served as bench
import vfio_client as say
from functions import BASE, PLAIN, QUEUE, Host
from test_port import frame
from vfio_client import Client, RemoteHost

from virtio_ipsec.errors import MemoryAccessError
from virtio_ipsec.ring.base import Used
from virtio_ipsec.ring.chain import Segment
from virtio_ipsec.ring.memory import GuestMemory
from virtio_ipsec.transport.bounce import BouncePort
from virtio_ipsec.transport.payload import MessageError
from virtio_ipsec.transport.vfio_user import remote
from virtio_ipsec.transport.vfio_user.connection import Message
from virtio_ipsec.transport.vfio_user.remote import DmaChannel, Interrupted, Range, RemoteMemory
from virtio_ipsec.transport.virtio_pci.tables import CommonCfg
from virtio_ipsec.wire.numbers import Feature, Status, mask

SPLIT, PACKED = PLAIN, PLAIN | mask(Feature.F_RING_PACKED)
TWIN = b'{"capabilities": {"max_msg_fds": 8, "twin_socket": {"supported": true}}}\0'
Heard = tuple[int, int, int, int, bytes]


class Ears(threading.Thread):
    """Reads a socket of the client's: answers for its memory, and keeps what else is said. ``mode``: what it does with
    a command: answer, do so for words of rings alone, say that there is no such memory, or nothing."""

    def __init__(self, sock: socket.socket, memory: GuestMemory) -> None:
        super().__init__(daemon=True)
        self.sock = sock
        self.memory = memory
        self.heard: SimpleQueue[Heard] = SimpleQueue()
        self.mode = "answer"
        self.commands = self.held = 0
        sock.setblocking(True)

    def run(self) -> None:
        with suppress(OSError, EOFError):
            while True:
                number, command, size, flags, error = struct.unpack("<HHIII", self.take(16))
                payload = self.take(size - 16)
                if flags & 0xF:
                    self.heard.put((number, command, flags, error, payload))
                    continue
                self.commands += 1
                if self.mode != "silent" and (self.mode != "rings" or len(payload) > 16 or payload[8] <= 8):
                    self.answer(number, command, flags, payload)
                else:
                    self.held += 1

    def take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def answer(self, number: int, command: int, flags: int, payload: bytes) -> None:
        address, count = struct.unpack_from("<QQ", payload)
        found = b""
        try:
            if self.mode == "refuse":
                raise MemoryAccessError("refused")
            if command == say.DMA_READ:
                found = self.memory.read(address, count)
            else:
                assert command == say.DMA_WRITE
                assert len(payload) == 16 + count
                self.memory.write(address, payload[16:])
        except MemoryAccessError:  # said even to who wants no reply, as QEMU does
            self.sock.sendall(struct.pack("<HHIII", number, command, 16, 0x21, 14))
            return
        if not flags & 0x10:
            self.sock.sendall(
                struct.pack("<HHIII", number, command, 32 + len(found), 1, 0) + payload[:16] + found
            )


class PrivateHost(RemoteHost):
    """A host that shares nothing. ``twin``: commands of the server have a socket of their own."""

    def __init__(self, features: int = SPLIT, *, twin: bool = True, **options: object) -> None:
        self.twin = twin
        self.ears: Ears | None = None
        super().__init__(features, **options)

    def attach(self, client: Client) -> None:
        self.client = client
        self.function = client  # type: ignore[assignment]
        client.version(TWIN if self.twin else b"")
        if self.twin:
            sock = socket.socket(fileno=client.fds.pop())
        else:
            assert not client.fds
            sock = client.sock.dup()
        self.ears = Ears(sock, self.guest.memory)
        self.ears.start()
        if not self.twin:
            client.sock.setblocking(True)
            client.hear = self.hear  # type: ignore[method-assign]
        client.map(None, BASE, self.guest.size)

    def hear(self) -> Heard:
        assert self.ears is not None
        heard = self.ears.heard
        self.until(lambda: not heard.empty())
        return heard.get()

    def end(self) -> None:
        """The client is gone."""
        assert self.ears is not None
        for sock in (self.client.sock, self.ears.sock):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.ears.join(5)
        self.ears.sock.close()
        self.client.close()

    def close(self) -> None:
        self.end()
        super().close()

    @property
    def private_port(self) -> BouncePort:
        assert isinstance(self.port, BouncePort)
        return self.port

    def buffers(self) -> int:
        """To receive into, that the port has: a frame that arrives before any is dropped."""
        return self.private_port._carrier.queues[0]._driver.outstanding

    def told(self, condition: int) -> None:
        """Wait for a bit of the status."""
        self.until(lambda: bool(self.port.device.status & condition))


@contextmanager
def private(features: int = SPLIT, **options: object) -> Iterator[PrivateHost]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "ServedPort", BouncePort)
        host = PrivateHost(features, **options)
    try:
        yield host
    finally:
        host.close()


@pytest.fixture(params=["twin", "single"])
def twin(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "twin")


def both_ways(host: PrivateHost, number: int = 1) -> None:
    if 0 in host.private_port._carrier.queues:
        host.notify(0)
        host.until(lambda: host.buffers() > 2)
    host.send(frame(number), frame(number + 1))
    assert host.bench.captured(2) == [frame(number), frame(number + 1)]
    host.until(lambda: host.guest.reclaim() > 0)
    host.uplink.inject(frame(number + 2), frame(number + 3))
    assert host.bench.received(2) == [frame(number + 2), frame(number + 3)]


@pytest.mark.parametrize("features", [SPLIT, PACKED, PLAIN | mask(Feature.F_IN_ORDER)])
def test_frames_go_both_ways(features: int, twin: bool) -> None:
    with private(features, twin=twin) as host:
        host.negotiate(features)
        for index in (0, 1):
            host.enable(index)
        host.ready()
        host.guest.post()
        for number in range(1, 200, 40):
            both_ways(host, number)


def test_commands_are_answered_and_interrupts_ring(twin: bool) -> None:
    with private(twin=twin) as host:
        host.msix_on()
        ear = os.eventfd(0, os.EFD_NONBLOCK)
        host.negotiate(PLAIN | mask(Feature.F_ADMIN_VQ))
        index = host.get(CommonCfg.admin_queue_index)
        host.enable(index, QUEUE, 1)
        host.client.set_irqs(say.MSIX, 1, 1, say.EVENTFD | say.TRIGGER, ear)  # after the queue is at work
        host.ready()
        answer = host.guest.command(index, struct.pack("<HH12xQ", 0, 1, 0), 16)
        host.notify(index)
        host.until(lambda: bool(bench.select.select([ear], [], [], 0)[0]))
        assert host.guest.drivers[index].poll()
        assert host.guest.memory.read(answer.addr, 2) == b"\x16\0"  # no members: EINVAL
        os.close(ear)


def test_a_doorbell_wakes_who_carries() -> None:
    with private() as host:
        bells = [os.dup(bell.fd) for bell in host.local.doorbells()]
        host.start()
        host.guest.kicks[1], mute = bells[1], host.guest.kicks[1]
        host.guest.send(frame(1))
        assert host.bench.captured(1) == [frame(1)]
        for fd in (mute, bells[0], *bells[2:]):
            os.close(fd)


@pytest.mark.parametrize("features", [SPLIT, PACKED])
def test_a_queue_goes_on_where_it_was_when_memory_is_mapped_again(features: int, twin: bool) -> None:
    with private(features, twin=twin) as host:
        host.negotiate(features)
        for index in (0, 1):
            host.enable(index)
        host.ready()
        host.guest.post()
        for number in range(3):
            both_ways(host, 10 * number)
            host.client.unmap(BASE, host.guest.size)
            assert not host.port.started(0)
            host.client.map(None, BASE, host.guest.size)
            assert host.port.started(0)
        host.client.unmap(BASE, host.guest.size)
        host.client.map(host.guest.fd, BASE, host.guest.size)  # and now it is shared
        both_ways(host, 99)
        assert host.port.device.status & Status.DRIVER_OK


def test_a_queue_can_be_reset_alone() -> None:
    with private() as host:
        host.negotiate(PLAIN | mask(Feature.F_RING_RESET))
        for index in (0, 1):
            host.enable(index)
        host.ready()
        host.guest.post()
        both_ways(host)
        host.put_queue(1, CommonCfg.queue_reset, 1)
        host.enable(1)
        both_ways(host, 7)


def test_rings_in_shared_memory_are_worked_on_in_place_whatever_else_is_mapped() -> None:
    with private() as host:
        assert host.ears is not None
        host.client.unmap(BASE, host.guest.size)
        host.client.map(None, 1 << 40, 1 << 20)
        host.client.map(host.guest.fd, BASE, host.guest.size)
        host.start()
        both_ways(host)
        assert host.ears.commands == 0


@pytest.mark.needs("extension")
def test_shared_memory_that_has_vanished_breaks_the_queue_whose_rings_are_carried() -> None:
    """And not the process, with all that it serves."""
    with private() as host:
        host.start()
        fd = os.memfd_create("vanishes")
        os.ftruncate(fd, 4096)
        host.client.map(fd, 1 << 40, 4096)
        os.ftruncate(fd, 0)
        os.close(fd)
        driver, memory = host.guest.drivers[1], host.guest.memory
        segment = Segment(host.guest.allocator.alloc(80), 80)
        driver.add([segment], (), segment)
        assert memory.u64(host.guest.layouts[1].desc) == segment.addr
        memory.put_u64(host.guest.layouts[1].desc, 1 << 40)
        driver.publish()
        host.notify(1)
        host.told(Status.DEVICE_NEEDS_RESET)


def test_rings_that_are_nowhere_wait_for_memory() -> None:
    with private() as host:
        host.client.unmap(BASE, host.guest.size)
        host.client.map(None, 1 << 40, 1 << 20)
        host.negotiate(PLAIN)
        host.enable(1)
        assert not host.port.started(1)


def test_many_large_buffers_wait_for_room() -> None:
    with private() as host:
        host.negotiate(PLAIN)
        for index in (0, 1):
            host.enable(index)
        host.ready()
        driver = host.guest.drivers[0]
        segment = Segment(host.guest.allocator.alloc(1 << 20), 1 << 20)
        for _ in range(8):  # twice what is ours
            driver.add((), [segment], segment)
        driver.publish()
        host.notify(0)
        host.until(lambda: host.buffers() == 3)
        assert host.ears is not None
        before = host.ears.commands
        host.port._lanes.wake()
        time.sleep(0.02)
        assert host.ears.commands <= before + 12  # nobody asks again and again
        for number in range(8):
            used: list[Used] = []
            host.until(lambda: host.buffers() > 0)
            host.uplink.inject(frame(number))
            host.until(lambda: bool(used.extend(driver.poll()) or used))  # noqa: B023
            assert host.guest.memory.read(segment.addr, used[0].written).endswith(frame(number))


def test_a_buffer_that_was_being_read_is_read_again(twin: bool) -> None:
    with private(twin=twin) as host:
        assert host.ears is not None
        host.start()
        both_ways(host)
        host.ears.mode = "rings"
        host.send(frame(7))
        host.until(lambda: host.ears is not None and host.ears.held > 0)
        host.client.unmap(BASE, host.guest.size)
        host.ears.mode = "answer"
        host.client.map(None, BASE, host.guest.size)
        assert host.bench.captured(1) == [frame(7)]


def test_buffers_wait_for_descriptors_too() -> None:
    """An indirect one takes one of the driver's, and two of ours."""
    features = PLAIN | mask(Feature.F_INDIRECT_DESC, Feature.F_ADMIN_VQ)
    with private(features) as host:
        host.negotiate(features)
        index = host.get(CommonCfg.admin_queue_index)
        host.enable(index, 2)
        host.ready()
        driver = host.guest.drivers[index]
        driver._allocator = host.guest.allocator
        for _ in range(2):
            places = [Segment(host.guest.allocator.alloc(32), 32) for _ in range(2)]
            host.guest.memory.write(places[0].addr, struct.pack("<HH12xQ", 0, 1, 0))
            driver.add([places[0]], [places[1]], places[1], indirect=True)
        driver.publish()
        host.notify(index)
        used: list[Used] = []
        host.until(lambda: bool(used.extend(driver.poll()) or len(used) == 2))


def test_descriptors_of_a_queue_that_is_carried_can_be_exchanged() -> None:
    with private() as host:
        host.start()
        kick, call = os.eventfd(0), os.eventfd(0, os.EFD_NONBLOCK)
        host.port.set_kick(1, os.dup(kick))
        host.port.set_call(1, os.dup(call))
        host.guest.kicks[1], mute = kick, host.guest.kicks[1]
        host.guest.send(frame(1))
        assert host.bench.captured(1) == [frame(1)]
        host.until(lambda: bool(bench.select.select([call], [], [], 0)[0]))
        host.port.set_kick(1, None)
        host.notify(1)
        os.close(mute)
        os.close(call)


def test_memory_in_the_place_of_ours_leaves_no_room_for_it() -> None:
    with private() as host:
        host.client.map(host.guest.fd, (1 << 64) - (3 << 22), 1 << 20)
        host.negotiate(PLAIN)
        host.enable(1)
        assert host.port.device.status & Status.DEVICE_NEEDS_RESET
        assert not host.port.started(1)


def test_an_internal_error_ends_the_work_and_not_the_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> int:
        raise ValueError("a defect")

    with private() as host:
        monkeypatch.setattr("virtio_ipsec.transport.bounce._Bounced.round", fail)
        host.start()
        host.told(Status.DEVICE_NEEDS_RESET)
        assert "a defect" in caplog.text


def test_whoever_blocks_the_thread_is_let_go() -> None:
    with private() as host:
        host.start()
        assert host.private_port._remote is not None
        channel = host.private_port._remote.channel
        host.private_port._set_bounced_free()
        with pytest.raises(Interrupted):
            channel.read(BASE, 1)
        channel.interrupt(False)
        both_ways(host)


def bad_buffer(host: Host, address: int, size: int, *, writable: bool = False) -> None:
    """A buffer that the ring tells of and nobody can use."""
    driver, part = host.guest.drivers[1], Segment(host.guest.allocator.alloc(64), 64)
    driver.add(*(((), [part]) if writable else ([part], ())), part)
    host.guest.memory.write(host.guest.layouts[1].desc, struct.pack("<QI", address, size))
    driver.publish()
    host.notify(1)


@pytest.mark.parametrize(("address", "size"), [(1 << 50, 64), (BASE, (1 << 20) + 1), (BASE, 0)])
def test_a_driver_that_breaks_a_ring_has_to_reset(address: int, size: int) -> None:
    with private() as host:
        host.start()
        bad_buffer(host, address, size)
        host.told(Status.DEVICE_NEEDS_RESET)
        assert host.server.is_connected
        host.guest.drivers.clear()
        host.start()
        both_ways(host)


def test_memory_that_the_client_does_not_have_after_all_breaks_the_queue(twin: bool) -> None:
    with private(twin=twin) as host:
        assert host.ears is not None
        host.start()
        both_ways(host)
        host.ears.mode = "refuse"
        host.send(frame(1))
        host.told(Status.DEVICE_NEEDS_RESET)
        host.ears.mode = "answer"
        host.start()
        both_ways(host)


def test_a_write_that_is_answered_with_an_error_breaks_the_queue() -> None:
    with private() as host:
        host.client.map(None, 1 << 40, 1 << 20)  # said to be there, and is not
        host.start()
        for number in range(QUEUE):
            host.guest.memory.write(host.guest.layouts[0].desc + 16 * number, struct.pack("<Q", 1 << 40))
        host.notify(0)
        host.until(lambda: host.buffers() > 0)
        host.uplink.inject(frame(2))
        host.told(Status.DEVICE_NEEDS_RESET)
        assert host.server.is_connected


def test_memory_that_may_only_be_read_is_not_written() -> None:
    with private() as host:
        host.client.unmap(BASE, host.guest.size)
        host.client.map(None, BASE, host.guest.size, flags=1)
        host.start()
        host.told(Status.DEVICE_NEEDS_RESET)


def test_a_client_that_does_not_answer_is_waited_for_so_long(
    monkeypatch: pytest.MonkeyPatch, twin: bool
) -> None:
    monkeypatch.setattr(remote, "_PATIENCE", 0.02)
    with private(twin=twin) as host:
        assert host.ears is not None
        host.ears.mode = "silent"
        host.start()
        host.told(Status.DEVICE_NEEDS_RESET)


def test_nobody_waits_for_a_client_that_does_not_answer(twin: bool) -> None:
    with private(twin=twin) as host:
        assert host.ears is not None
        host.start()
        both_ways(host)
        host.ears.mode = "silent"
        before = time.monotonic()
        host.notify(1)
        host.put(CommonCfg.device_status, 0)
        host.negotiate(PLAIN)
        host.enable(0)
        host.client.unmap(BASE, host.guest.size)
        host.end()
        host.until(lambda: not host.server.is_connected)
        assert time.monotonic() - before < 4  # less than the patience with one answer
        host.clients.clear()
        host.attach(host.dial())
        host.guest.drivers.clear()
        host.start()
        both_ways(host)


@pytest.mark.parametrize("data", [
    struct.pack("<HHIII", 1, say.DMA_READ, 16, 1, 0),
    struct.pack("<HHIII", 1, say.DMA_READ, 16, 0, 0),
    struct.pack("<HHIII", 1, say.GET_INFO, 16, 1, 0),
    struct.pack("<HHIII", 1, say.DMA_READ, 15, 1, 0),
    b"",
])  # fmt: skip
def test_what_is_wrong_on_the_second_socket_ends_the_connection(data: bytes) -> None:
    with private() as host:
        assert host.ears is not None
        if data:
            host.ears.sock.sendall(data)
        else:
            host.ears.sock.shutdown(socket.SHUT_RDWR)
        host.until(lambda: not host.server.is_connected)
        assert host.counter("protocol_errors") == (1 if data else 0)
        assert host.counter("internal_errors") == 0


def test_the_second_socket_is_for_those_that_want_it_and_take_descriptors() -> None:
    with private(connect=False) as host:
        for data in (b"", TWIN.replace(b"8", b"0"), TWIN.replace(b"true", b"false")):
            client = host.dial()
            assert b"twin" not in client.version(data)
            assert not client.fds
            host.clients.pop().close()
        host.attach(host.dial())


def test_nothing_is_left_of_many_clients() -> None:
    with private(connect=False) as host:
        before = None
        for number in range(12):
            host.attach(host.dial())
            host.negotiate(PLAIN)
            host.put(CommonCfg.device_status, 0)
            host.end()
            host.clients.clear()
            host.until(lambda: not host.server.is_connected)
            if number == 2:
                before = len(os.listdir("/proc/self/fd")), threading.active_count()
        assert before is not None
        assert (len(os.listdir("/proc/self/fd")), threading.active_count()) <= before
        host.attach(host.dial())


# Memory and the channel, alone.


class Line:
    """What a channel says, and a client that answers at once."""

    def __init__(self, most: int = 1 << 20) -> None:
        self.said: list[Message] = []
        self.memory = GuestMemory.anonymous(4096, 0x1000)
        self.channel = DmaChannel(self.send, most)

    def send(self, message: Message) -> None:
        self.said.append(message)
        address, count = struct.unpack_from("<QQ", message.payload)
        if message.command == say.DMA_WRITE:
            self.memory.write(address, message.payload[16:])
        else:
            payload = message.payload + self.memory.read(address, count)
            self.channel.deliver(Message(message.number, message.command, 1, payload))


def test_memory_is_read_and_written_across_ranges_and_in_pieces_that_the_client_takes() -> None:
    line = Line(3)
    shared = memoryview(bytearray(16))
    memory = RemoteMemory([Range(0x2000, 16, shared), Range(0x1FF0, 16, None)], line.channel)
    memory.write(0x1FF9, bytes(range(10)))
    assert [len(each.payload) - 16 for each in line.said] == [3, 3, 1]
    assert memory.read(0x1FF9, 10) == bytes(range(10))
    assert bytes(shared[:3]) == b"\7\10\11"
    assert memory.regions == ((0x1FF0, 16), (0x2000, 16))
    for address, length in ((0x1FEF, 1), (0x2010, 1), (0x2000, 17), (0x2000, -1)):
        with pytest.raises(MemoryAccessError):
            memory.read(address, length)
    assert memory.contiguous(0x1FFF, 2) is None
    with pytest.raises(MemoryAccessError, match="one region"):
        memory.words(0x1FFE, 2, "H")
    words = memory.words(0x1FF0, 4, "I")
    words[2] = 0x01020304
    assert (words[2], memory.u16(0x1FF8)) == (0x01020304, 0x0304)
    assert memory.is_shared(0x2000)
    assert not memory.is_shared(0x1FF0)


def test_a_channel_that_is_interrupted_asks_nothing_and_forgets_what_it_asked() -> None:
    said: list[Message] = []
    channel = DmaChannel(said.append, 100)
    channel.interrupt(True)
    with pytest.raises(Interrupted):
        channel.read(0, 1)
    assert not said
    channel.interrupt(False)
    timer = threading.Timer(0.01, channel.interrupt, (True,))
    timer.start()
    with pytest.raises(Interrupted):
        channel.read(0, 1)
    timer.join()
    answer = Message(said[0].number, say.DMA_READ, 1, struct.pack("<QQ", 0, 1) + b"x")
    channel.deliver(answer)  # too late
    with pytest.raises(MessageError):
        channel.deliver(answer)
    channel.deliver(Message(5, say.DMA_WRITE, 1, bytes(16)))
    assert not channel.failed
    channel.deliver(Message(5, say.DMA_WRITE, 0x21, b"", error=14))
    assert channel.failed


@pytest.mark.parametrize("answer", [
    struct.pack("<QQ", 0x1000, 2) + b"x", struct.pack("<QQ", 0x1001, 1) + b"x",
    struct.pack("<QQ", 0x1000, 2) + b"xy", b"",
])  # fmt: skip
def test_an_answer_to_another_question_is_none(answer: bytes) -> None:
    said: list[Message] = []
    channel = DmaChannel(said.append, 100)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(channel.read(0x1000, 1)))
    reader.start()
    bench.until(lambda: bool(said))
    number = said[0].number
    for wrong in (Message(number, say.DMA_READ, 1, answer), Message(number + 1, say.DMA_READ, 1)):
        with pytest.raises(MessageError):
            channel.deliver(wrong)
    channel.deliver(Message(number, say.DMA_READ, 1, struct.pack("<QQ", 0x1000, 1) + b"y"))
    with pytest.raises(MessageError):
        channel.deliver(Message(number, say.DMA_READ, 1, struct.pack("<QQ", 0x1000, 1) + b"z"))
    reader.join()
    assert found == [b"y"]
