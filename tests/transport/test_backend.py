"""Conversations that front-ends have with the back-end, in their orders, and what goes wrong in them."""

from __future__ import annotations

import gc
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import front_end as say
import pytest
from front_end import PROTOCOL, TYPICAL, FrontEnd
from served import BASE, BUFFER, PATIENCE, PLAIN, QUEUE, Bench, Guest
from test_port import frame

from virtio_ipsec.errors import TransportError
from virtio_ipsec.transport.vhost_user.backend import Backend
from virtio_ipsec.wire.numbers import Feature, mask

PACKED = PLAIN | mask(Feature.F_RING_PACKED)


@contextmanager
def served(features: int = PLAIN, **options: object) -> Iterator[tuple[Bench, Backend, str]]:
    path = say.socket_path()
    bench = Bench(features, start=False, **options)  # type: ignore[arg-type]
    backend = Backend(bench.port, path, penalty=0)
    try:
        yield bench, backend, path
    finally:
        backend.close()
        bench.close()
        say.remove(path)


@contextmanager
def connected(features: int = PLAIN, **options: object) -> Iterator[tuple[Bench, FrontEnd]]:
    with served(features, **options) as (bench, _, path):
        front = FrontEnd(bench, path)
        try:
            yield bench, front
        finally:
            front.close()


def qemu(front: FrontEnd, features: int = PLAIN, base: int = 0, fresh: bool = True) -> None:
    """QEMU 11 with a typical set of protocol features, as logged: call descriptors and ENABLE before all else, memory
    by slots, FEATURES_OK before ACKNOWLEDGE and DRIVER, need_reply on what concerns rings."""
    offered = front.ask(say.GET_FEATURES)
    assert offered & PROTOCOL
    front.acknowledge(TYPICAL)
    assert front.ask(say.GET_QUEUE_NUM) >= 1
    assert front.ask(say.GET_SLOTS) >= 8
    front.say(say.SET_OWNER)
    front.ask(say.GET_FEATURES)
    for index in (0, 1):
        if fresh:
            front.guest.queue(index)
        front.file(say.CALL, index, front.guest.calls[index], ack=True)
        assert front.file(say.ERR, index, None, ack=True) == 0
    for index in (0, 1):
        assert front.state(say.ENABLE, index, 1, ack=True) == 0
    front.u64(say.SET_FEATURES, features | PROTOCOL)
    assert front.ask(say.GET_STATUS) == 0
    front.u64(say.SET_STATUS, 8)
    assert front.say(say.ADD_REGION, bytes(8) + front.region(), front.guest.fd, ack=True) == 0
    for index in (0, 1):
        front.state(say.NUM, index, front.guest.layouts[index].size)
        front.state(say.BASE_OF, index, base)
        front.addr(index)
        assert front.file(say.KICK, index, front.guest.kicks[index], ack=True) == 0
        assert front.file(say.CALL, index, front.guest.calls[index], ack=True) == 0
    assert front.ask(say.GET_STATUS) == 8
    front.u64(say.SET_STATUS, 15)
    for index in (0, 1):
        assert front.state(say.ENABLE, index, 1, ack=True) == 0


def dpdk(front: FrontEnd, features: int = PLAIN, base: int = 0, fresh: bool = True) -> None:
    """DPDK 22.11 virtio-user: owner first, need_reply on SET_STATUS and SET_MEM_TABLE, transmit queues last, kick
    before call, ENABLE at the end; packed rings begin at 0x8000."""
    front.say(say.SET_OWNER)
    front.ask(say.GET_FEATURES)
    front.acknowledge(1 << 0 | 1 << 3 | 1 << 16)
    if fresh:
        for index in (0, 1):
            front.guest.queue(index)
            front.file(say.CALL, index, front.guest.calls[index])
    for status in (0, 1, 3):
        assert front.u64(say.SET_STATUS, status, ack=True) == 0
    front.u64(say.SET_FEATURES, features | PROTOCOL)
    assert front.u64(say.SET_STATUS, 11, ack=True) == 0
    assert front.ask(say.GET_STATUS) == 11
    assert front.mem_table(ack=True) == 0
    for index in (0, 1):
        front.state(say.NUM, index, front.guest.layouts[index].size)
        front.state(say.BASE_OF, index, base)
        front.addr(index)
        front.file(say.KICK, index, front.guest.kicks[index])
    for index in (0, 1):
        front.state(say.ENABLE, index, 1)
    assert front.u64(say.SET_STATUS, 15, ack=True) == 0


def old(front: FrontEnd, features: int = PLAIN, base: int = 0, fresh: bool = True) -> None:
    """A front-end from before protocol features: rings are enabled from the start."""
    front.ask(say.GET_FEATURES)
    front.say(say.SET_OWNER)
    front.u64(say.SET_FEATURES, features)
    front.mem_table()
    for index in (0, 1):
        front.ring(index, base, fresh=fresh)


def exchange(bench: Bench, first: int = 0) -> None:
    """Frames go both ways."""
    bench.guest.post()
    sent = [frame(first + n) for n in range(20)]
    bench.guest.send(*sent)
    assert bench.captured(20) == sent
    arriving = [frame(first + 100 + n, 300) for n in range(20)]
    bench.uplink.inject(*arriving)
    assert bench.received(20) == arriving
    bench.until(lambda: not bench.guest.reclaim() and not bench.guest.drivers[1]._outstanding)


@pytest.mark.parametrize("script", [qemu, dpdk, old])
@pytest.mark.parametrize("engine", ["c", "python"])
def test_front_ends_attach_in_their_own_order(script: object, engine: str) -> None:
    with connected(engine=engine) as (bench, front):
        script(front)  # type: ignore[operator]
        exchange(bench)
        state = {index: front.base(index) for index in (0, 1)}
        assert state[1] == 20


@pytest.mark.parametrize(("script", "base"), [(qemu, 0x80008000), (dpdk, 0x8000)])
def test_packed_rings_begin_where_the_front_end_means_it(script: object, base: int) -> None:
    with connected(PACKED) as (bench, front):
        script(front, PACKED, base)  # type: ignore[operator]
        exchange(bench)
        assert front.base(1) == 0x80148014


# What is said once everything runs.


def test_a_front_end_may_stop_and_start_its_rings_again() -> None:
    with connected() as (bench, front):
        qemu(front)
        exchange(bench)
        bases = {index: front.base(index) for index in (0, 1)}
        front.u64(say.SET_STATUS, 0)
        assert front.ask(say.GET_STATUS) == 0
        assert {index: front.base(index) for index in (0, 1)} == bases
        front.u64(say.SET_FEATURES, PLAIN | PROTOCOL)
        front.u64(say.SET_STATUS, 8)
        for index in (0, 1):
            front.ring(index, bases[index], fresh=False)
        front.u64(say.SET_STATUS, 15)
        exchange(bench, 1000)


def test_memory_slots_come_and_go_under_way() -> None:
    with connected() as (bench, front):
        qemu(front)
        extra = os.memfd_create("slot")
        os.ftruncate(extra, 1 << 20)
        high = 1 << 40
        region = struct.pack("<QQQQ", high, 1 << 20, high, 0)
        assert front.say(say.ADD_REGION, bytes(8) + region, extra, ack=True) == 0
        exchange(bench)
        shifted = struct.pack("<QQQQ", high + 4096, 1 << 19, high, 0)
        assert front.say(say.ADD_REGION, bytes(8) + shifted, extra, ack=True) == 1  # overlaps
        assert (
            front.say(say.REMOVE_REGION, bytes(8) + region, extra, ack=True) == 0
        )  # with a descriptor, as some do
        assert front.say(say.REMOVE_REGION, bytes(8) + region, ack=True) == 1
        exchange(bench, 1000)
        # Without its memory a ring cannot go on.
        assert front.say(say.REMOVE_REGION, bytes(8) + front.region(), ack=True) == 1
        exchange(bench, 2000)
        os.close(extra)


def test_a_file_that_takes_no_memory_takes_no_end_of_address_space() -> None:
    """Which belongs to other ports, too."""
    with connected() as (bench, front):
        qemu(front)
        sparse = os.memfd_create("sparse")
        os.ftruncate(sparse, 1 << 42)
        region = struct.pack("<QQQQ", 1 << 42, 1 << 42, 1 << 42, 0)
        assert front.say(say.ADD_REGION, bytes(8) + region, sparse, ack=True) == 1
        region = struct.pack("<QQQQ", 1 << 42, 1 << 41, 1 << 42, 0)
        assert front.say(say.ADD_REGION, bytes(8) + region, sparse, ack=True) == 0
        os.close(sparse)
        exchange(bench)


def test_a_region_that_each_queue_pair_adds_is_there_until_all_have_removed_it() -> None:
    """As QEMU 7.2 does it with several queue pairs."""
    with connected() as (bench, front):
        qemu(front)
        own = bytes(8) + front.region()
        assert front.say(say.ADD_REGION, own, front.guest.fd, ack=True) == 0
        assert front.say(say.ADD_REGION, own, front.guest.fd, ack=True) == 0
        exchange(bench)
        # The same addresses in another file are another region.
        other = os.memfd_create("other")
        os.ftruncate(other, os.fstat(front.guest.fd).st_size)
        assert front.say(say.ADD_REGION, own, other, ack=True) == 1
        os.close(other)
        assert [front.say(say.REMOVE_REGION, own, ack=True) for _ in range(2)] == [0, 0]
        exchange(bench, 1000)
        assert front.say(say.REMOVE_REGION, own, ack=True) == 1  # its rings are at work
        exchange(bench, 2000)


@pytest.mark.parametrize(
    "message",
    {
        "no such ring": lambda f: f.state(say.NUM, 99, 16, ack=True),
        "size 0": lambda f: f.state(say.NUM, 2, 0, ack=True),
        "size too large": lambda f: f.state(say.NUM, 2, 32768, ack=True),
        "size at work": lambda f: f.state(say.NUM, 1, 16, ack=True),
        "base at work": lambda f: f.state(say.BASE_OF, 1, 0, ack=True),
        "enable 2": lambda f: f.state(say.ENABLE, 1, 2, ack=True),
        "mtu": lambda f: f.u64(say.MTU, 65535, ack=True),
        "status": lambda f: f.u64(say.SET_STATUS, 0x100, ack=True),
        "features at work": lambda f: f.u64(say.SET_FEATURES, PLAIN & ~1 | PROTOCOL | 1, ack=True),
        "write config": lambda f: f.say(say.SET_CONFIG, struct.pack("<III", 0, 6, 0) + bytes(6), ack=True),
        "no file": lambda f: f.say(say.ADD_REGION, bytes(8) + f.region(1 << 40), f.guest.kicks[0], ack=True),
        "short file": lambda f: f.say(
            say.ADD_REGION, bytes(8) + f.region(1 << 40, 1 << 30), f.guest.fd, ack=True
        ),
        "moved": lambda f: f.say(
            say.ADDR, struct.pack("<IIQQQQ", 1, 0, say.USER, say.USER, say.USER, 0), ack=True
        ),
        "no channel": lambda f: f.say(say.CHANNEL, b"", f.guest.fd, ack=True),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_cannot_be_obeyed_is_refused_and_changes_nothing(message: tuple[str, object]) -> None:
    with connected() as (bench, front):
        qemu(front)
        assert message[1](front) == 1  # type: ignore[operator]
        exchange(bench)
        assert bench.port.counters()["protocol_errors"] == 0


HOSTILE = {
    "unknown request": lambda f: f.say(99),
    "reply": lambda f: f.raw(struct.pack("<III", 1, 5, 0)),
    "version": lambda f: f.raw(struct.pack("<III", 1, 2, 0)),
    "huge": lambda f: f.raw(struct.pack("<III", 5, 1, 1 << 30)),
    "short payload": lambda f: f.say(say.SET_FEATURES, b"\0"),
    "long payload": lambda f: f.say(say.SET_OWNER, bytes(8)),
    "descriptors with nothing": lambda f: f.say(say.SET_OWNER, b"", f.guest.fd),
    "too many descriptors": lambda f: f.say(say.SET_MEM_TABLE, struct.pack("<II", 0, 0), *[f.guest.fd] * 9),
    "regions without descriptors": lambda f: f.say(say.SET_MEM_TABLE, struct.pack("<II", 1, 0) + f.region()),
    "regions that lie": lambda f: f.say(say.SET_MEM_TABLE, struct.pack("<II", 7, 0) + f.region(), f.guest.fd),
    "features beyond": lambda f: f.u64(say.SET_FEATURES, 1 << 63 | 1 << 41),
    "protocol features beyond": lambda f: f.u64(say.SET_PROTOCOL, 1 << 40),
    "binding without its needs": lambda f: f.u64(say.SET_PROTOCOL, 1 << 56),
    "binding not acknowledged": lambda f: f.raw(struct.pack("<III", 0x49500001, 1, 0)),
    "kick without descriptor": lambda f: f.say(say.KICK, struct.pack("<Q", 1)),
    "kick with pipe": lambda f: f.file(say.KICK, 1, f.pipe),
    "call with file": lambda f: f.file(say.CALL, 1, f.guest.fd),
    "kick for ring 200": lambda f: f.file(say.KICK, 200, f.guest.kicks[0]),
    "index beyond eight bits": lambda f: f.u64(say.CALL, 1 << 20 | 0x100),
    "ring outside memory": lambda f: outside(f),
    "misplaced ring": lambda f: misplaced(f),
    "log without descriptor": lambda f: f.raw(struct.pack("<IIIQQ", 6, 1, 16, 4096, 0)),
    "inflight for no ring": lambda f: f.raw(struct.pack("<IIIQQHH", 31, 1, 20, 0, 0, 0, 64)),
    "inflight of no size": lambda f: f.say(say.SET_INFLIGHT, struct.pack("<QQHH", 0, 0, 2, 64), f.guest.fd),
    "end within a message": lambda f: (f.raw(b"\1\0\0"), f.sock.shutdown(1)),
    "garbage": lambda f: f.raw(bytes(range(256)) * 8),
}


def outside(front: FrontEnd) -> None:
    front.state(say.NUM, 2, 16)
    front.say(say.ADDR, struct.pack("<IIQQQQ", 2, 0, 1, 2, 3, 0))
    front.file(say.KICK, 2, front.guest.kicks[0])


def misplaced(front: FrontEnd) -> None:
    front.state(say.NUM, 2, 16)
    front.say(say.ADDR, struct.pack("<IIQQQQ", 2, 0, *[say.USER + say.BASE + 1] * 3, 0))
    front.file(say.KICK, 2, front.guest.kicks[0])


@pytest.mark.parametrize("attack", HOSTILE.items(), ids=lambda item: item[0])
def test_what_the_protocol_does_not_allow_ends_the_connection_and_nothing_else(
    attack: tuple[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    with served() as (bench, backend, path), connected() as (other, its):
        dpdk(its)
        FrontEnd(bench, path).close()  # one that is gone at once
        first = FrontEnd(bench, path)
        qemu(first)
        first.close()
        bench.until(lambda: not backend.is_connected)
        gc.collect()  # what other tests have left
        open_before = len(os.listdir("/proc/self/fd"))
        front = FrontEnd(bench, path)
        qemu(front, fresh=False)
        reader, front.pipe = os.pipe()  # type: ignore[attr-defined]
        attack[1](front)  # type: ignore[operator]
        assert front.is_closed()
        bench.until(lambda: not backend.is_connected)
        os.close(reader)
        os.close(front.pipe)  # type: ignore[attr-defined]
        front.close()
        assert len(os.listdir("/proc/self/fd")) == open_before
        ended = [record for record in caplog.records if "disconnected" in record.message]
        assert len(ended) == bench.port.counters()["protocol_errors"] <= 1
        assert bench.port.counters()["internal_errors"] == 0
        exchange(other)
        again = FrontEnd(bench, path)
        bench.guest = again.guest = Guest(PLAIN)
        qemu(again)
        exchange(bench)
        again.close()


def test_many_connections_leave_nothing() -> None:
    with served() as (bench, backend, path):
        for turn in range(60):
            front = FrontEnd(bench, path)
            if turn == 20:
                before = len(os.listdir("/proc/self/fd")), threading.active_count()
            (qemu if turn % 2 else dpdk)(front, fresh=turn == 0)
            if turn % 3 == 0:
                front.say(99)
            front.close()
            bench.until(lambda: not backend.is_connected)
        front = FrontEnd(bench, path)
        dpdk(front, fresh=False)
        after = len(os.listdir("/proc/self/fd")), threading.active_count()
        front.close()
        assert after[0] <= before[0] + 8  # those of a connection that stands
        assert after[1] == before[1]
        assert bench.port.counters()["connections"] == 61


def test_one_front_end_waits_for_the_other() -> None:
    with served() as (bench, _, path):
        first, second = FrontEnd(bench, path), FrontEnd(bench, path)
        assert first.ask(say.GET_FEATURES)
        second.raw(struct.pack("<III", 1, 1, 0))
        bench.port.loop.turn(0.01)
        with pytest.raises(BlockingIOError):
            second.sock.recv(1)
        first.close()
        assert second.hear(say.GET_FEATURES)
        second.close()


def test_a_client_finds_its_front_end_whenever_that_comes() -> None:
    path = say.socket_path()
    bench = Bench(start=False)
    backend = Backend(bench.port, path, client=True)
    try:
        for turn in range(2):
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                listener.listen()
                listener.setblocking(False)
                bench.until(lambda: backend.is_connected)
                sock, _ = listener.accept()
                front = FrontEnd(bench, sock=sock)
                bench.guest = front.guest = Guest(PLAIN)
                dpdk(front)
                exchange(bench, 100 * turn)
                front.close()
                os.unlink(path)
                bench.until(lambda: not backend.is_connected)
    finally:
        backend.close()
        bench.close()
        say.remove(path)


def test_the_socket_is_for_its_owner_and_goes_with_the_back_end() -> None:
    with served() as (bench, _, path):
        assert os.stat(path).st_mode & 0o777 == 0o600
        with pytest.raises(TransportError, match="busy"):
            Backend(bench.port, path)
    assert not os.path.exists(path)


# Recovery and migration, which need rings in C.


@pytest.mark.parametrize("features", [PLAIN, PACKED], ids=["split", "packed"])
def test_what_was_taken_and_not_given_back_is_done_by_the_next_back_end(features: int) -> None:
    with served(features) as (bench, backend, path):
        front = FrontEnd(bench, path)
        bench.guest.queue(1)
        front.acknowledge(TYPICAL | 1 << 12)
        front.u64(say.SET_FEATURES, features | PROTOCOL)
        size, offset, rings, entries = struct.unpack_from(
            "<QQHH", front.say(say.GET_INFLIGHT, struct.pack("<QQHH", 0, 0, 2, QUEUE))
        )
        (buffer,) = front.fds
        assert (offset, rings, entries) == (0, 2, QUEUE)
        assert os.fstat(buffer).st_size == size
        front.mem_table()
        front.u64(say.SET_STATUS, 15)
        front.state(say.ENABLE, 1, 1)
        front.ring(1, 0x80008000 if features & PACKED & ~PLAIN else 0, fresh=False)
        bench.guest.send(*[frame(n) for n in range(5)])
        assert bench.captured(5) == [frame(n) for n in range(5)]
        # Somebody dies with chains in his hands.
        queue = bench.port._slots[1].queue
        assert queue is not None
        with bench.port._parked(1):
            bench.guest.send(*[frame(n) for n in range(5, 9)])
            chains = [queue.pop() for _ in range(3)]
            assert all(chains)
            region = mmap.mmap(buffer, size)
            left = region[:]
            backend.close()
        region[:] = left
        bench.until(lambda: True)
        again = Backend(bench.port, path)
        front.close()
        front = FrontEnd(bench, path)
        front.acknowledge(TYPICAL | 1 << 12)
        front.u64(say.SET_FEATURES, features | PROTOCOL)
        front.say(say.SET_INFLIGHT, struct.pack("<QQHH", size, 0, 2, QUEUE), buffer)
        front.mem_table()
        front.u64(say.SET_STATUS, 15)
        front.state(say.ENABLE, 1, 1)
        front.ring(1, 0x80008000 if features & PACKED & ~PLAIN else 5, fresh=False)
        assert bench.captured(4) == [frame(n) for n in range(5, 9)]
        bench.until(lambda: not bench.guest.reclaim() and not bench.guest.drivers[1]._outstanding)
        os.close(buffer)
        front.close()
        again.close()


def dirty(log: mmap.mmap) -> set[int]:
    """Pages that are marked; they are not any more afterwards."""
    found = {8 * at + bit for at, byte in enumerate(log[:]) for bit in range(8) if byte >> bit & 1}
    log[:] = bytes(len(log))
    return found


def test_what_is_written_is_noted_in_the_dirty_log() -> None:
    with connected() as (bench, front):
        qemu(front)
        bench.guest.post()
        fd = os.memfd_create("log")
        pages = (BASE + bench.guest.size) // 4096
        os.ftruncate(fd, 4096 + pages // 8)
        log = mmap.mmap(fd, 0)
        (answer,) = struct.unpack("<Q", front.say(say.SET_LOG_BASE, struct.pack("<QQ", pages // 8, 4096), fd))
        assert answer == 0
        bench.uplink.inject(frame(1))
        assert bench.received(1) == [frame(1)]
        assert not dirty(log)  # not before LOG_ALL
        front.u64(say.SET_FEATURES, PLAIN | PROTOCOL | say.LOG_ALL)
        used = 3 * 4096
        assert front.addr(0, 1, used, ack=True) == 0
        pages = bench.guest.size // 4096
        before = {index: bench.guest.memory.read(BASE + 4096 * index, 4096) for index in range(pages)}
        bench.uplink.inject(*[frame(n, 1400) for n in range(10)])
        assert len(bench.received(10)) == 10
        changed = {
            BASE // 4096 + index
            for index, page in before.items()
            if bench.guest.memory.read(BASE + 4096 * index, 4096) != page
        }
        device_area = bench.guest.layouts[0].device // 4096
        found = {page - 4096 * 8 for page in dirty(log)}  # the log begins a page into its file
        assert used // 4096 in found
        assert changed - {device_area} <= found | {bench.guest.layouts[0].driver // 4096}
        assert len(found) <= 1 + QUEUE * BUFFER // 4096
        front.u64(say.SET_FEATURES, PLAIN | PROTOCOL)
        bench.uplink.inject(frame(2))
        assert bench.received(1) == [frame(2)]
        os.close(fd)


def test_the_channel_of_the_back_end_tells_of_changes() -> None:
    with connected() as (bench, front):
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        qemu(front)
        assert front.say(say.CHANNEL, b"", theirs.fileno(), ack=True) == 0
        theirs.close()
        bench.port.device.set_link(False)
        bench.port.look_soon()
        bench.until(lambda: True)
        ours.settimeout(PATIENCE)
        bench.port.loop.turn(0)
        assert ours.recv(12) == struct.pack("<III", 2, 1, 0)
        offset, size, _ = struct.unpack_from(
            "<III", front.say(say.GET_CONFIG, struct.pack("<III", 6, 2, 0) + bytes(2))
        )
        assert (offset, size) == (6, 2)
        (_, size, _) = struct.unpack(
            "<III", front.say(say.GET_CONFIG, struct.pack("<III", 255, 2, 0) + bytes(2))
        )
        assert size == 0
        ours.close()


def test_a_front_end_that_broke_the_protocol_waits_before_it_comes_again() -> None:
    path = say.socket_path()
    bench = Bench(start=False)
    backend = Backend(bench.port, path, penalty=50_000_000)
    try:
        front = FrontEnd(bench, path)
        front.say(99)
        assert front.is_closed()
        begin = time.monotonic()
        again = FrontEnd(bench, path)
        assert again.ask(say.GET_FEATURES)
        assert time.monotonic() - begin > 0.04
        for closed in (front, again):
            closed.close()
    finally:
        backend.close()
        bench.close()
        say.remove(path)


def test_refusals_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with connected() as (bench, front):
        front.acknowledge(TYPICAL)
        for _ in range(40):
            assert front.state(say.NUM, 99, 1, ack=True) == 1
        assert bench.port.counters()["refused_messages"] == 40
        assert sum("refused" in record.message for record in caplog.records) == 10
