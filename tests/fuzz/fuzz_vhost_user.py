"""A hostile front-end and a hostile guest: any messages, any descriptors, any order, any ring memory.

After each input the connection is gone or stands, nothing that was shared is kept, no thread and no descriptor is left
over, and another port of the same process still carries frames.
"""

from __future__ import annotations

import array
import gc
import logging
import mmap
import os
import random
import socket
import struct
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import cache

from harness import Target, fuzz

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "transport"))

import front_end as say
from guest_rings import IMAGE, MEMORY, QUEUES, filled_rings, layout_rings, ring_features
from served import BASE, PLAIN, Bench, Guest, shared
from test_backend import dpdk, exchange

from virtio_ipsec.errors import RingError
from virtio_ipsec.transport.rings import QueuePlace
from virtio_ipsec.transport.vhost_user.backend import Backend
from virtio_ipsec.wire.numbers import Feature, Status, mask

REQUESTS = (*range(45), 0x49500001, 0x49500002)
#: How often an input is followed by a look at everything.
EVERY = 64
LIFELIKE = PLAIN | mask(Feature.NET_F_CTRL_VQ, Feature.F_INDIRECT_DESC, Feature.NET_F_CSUM)
BINDING = mask(Feature.F_ADMIN_VQ, Feature.NET_F_IPSEC)


class Stage:
    """The port under attack, and a neighbour."""

    def __init__(self) -> None:
        logging.disable(logging.CRITICAL)
        self.path = os.path.join(tempfile.mkdtemp(prefix="fuzz-"), "port.sock")
        self.bench = Bench(start=False)
        self.backend = Backend(self.bench.port, self.path, penalty=0)
        self.neighbour, self.victim = Bench(), Bench(start=False)
        self.runs = 0
        reader, writer = os.pipe()
        left, self._right = socket.socketpair()
        self._left = left
        short = os.memfd_create("short")
        os.ftruncate(short, 100)
        self.fds = (self.bench.guest.fd, short, os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0), writer, reader,
                    left.fileno(), os.open("/dev/zero", os.O_RDWR), os.open("/", os.O_RDONLY))  # fmt: skip
        self.well_behaved()
        gc.collect()
        self.before = self.things()

    def things(self) -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    def check(self) -> None:
        """After an input, the connection being closed."""
        self.bench.until(lambda: not self.backend.is_connected)
        assert self.bench.port.counters()["internal_errors"] == 0
        self.runs += 1
        if self.runs % EVERY == 0:
            exchange(self.neighbour, self.runs)
            self.well_behaved()
            gc.collect()
            fds, threads = self.things()
            assert fds <= self.before[0] + 6, (fds, self.before)
            assert threads <= self.before[1] + 2, (threads, self.before)

    def well_behaved(self) -> None:
        """A front-end that does all right is served."""
        guest, self.bench.guest = self.bench.guest, Guest(PLAIN)
        front = say.FrontEnd(self.bench, self.path)
        dpdk(front)
        exchange(self.bench)
        front.close()
        self.bench.until(lambda: not self.backend.is_connected)
        self.bench.guest.close()
        self.bench.guest = guest


@cache
def stage() -> Stage:
    return Stage()


# Messages: records of request, flags, descriptors, length, payload.


def record(request: int, payload: bytes = b"", fds: bytes = b"", flags: int = 9) -> bytes:
    return bytes((REQUESTS.index(request), flags, len(fds), *fds, len(payload))) + payload


def attach(rng: random.Random) -> list[bytes]:
    """What a front-end says that means well, in small variations."""
    binding = rng.random() < 0.3
    protocol = say.TYPICAL | 1 << 1 | 1 << 12 | (1 << 56 if binding else 0)
    region = struct.pack("<QQQQ", BASE, 4 << 20, say.USER + BASE, 0)
    said = [
        record(1),
        record(16, struct.pack("<Q", protocol)),
        record(3),
        record(5, struct.pack("<II", 1, 0) + region, b"\0")
        if rng.random() < 0.5
        else record(37, bytes(8) + region, b"\0"),
    ]
    if binding:
        features = LIFELIKE | BINDING
        words = [features >> 32 * n & 0xFFFFFFFF for n in range(4)]
        said += [record(39, struct.pack("<Q", 3)), record(0x49500002, struct.pack("<IIII", *words))]
    said += [record(2, struct.pack("<Q", PLAIN | say.PROTOCOL)), record(39, struct.pack("<Q", 11))]
    if rng.random() < 0.4:
        said.append(record(31, struct.pack("<QQHH", 0, 0, 2, 64)))
    for index in rng.sample(range(6), rng.randrange(4)):
        places = [say.USER + BASE + 4096 * (3 * index + n) for n in range(3)]
        said += [
            record(8, struct.pack("<II", index, 1 << rng.randrange(7))),
            record(10, struct.pack("<II", index, rng.choice((0, 1, 0x8000, 0x80008000)))),
            record(9, struct.pack("<IIQQQQ", index, rng.randrange(2), *places, BASE)),
            record(12, struct.pack("<Q", index), bytes([rng.choice((2, 3))])),
            record(13, struct.pack("<Q", index), bytes([rng.choice((2, 3))])),
            record(18, struct.pack("<II", index, 1)),
        ]
    said.append(record(39, struct.pack("<Q", 15)))
    return said


def conversation(rng: random.Random) -> bytes:
    said = attach(rng)
    for _ in range(rng.randrange(6)):
        request = rng.choice(REQUESTS)
        payload = rng.choice(
            (
                b"",
                struct.pack("<Q", rng.getrandbits(64) >> rng.randrange(64)),
                struct.pack("<II", rng.randrange(6), rng.randrange(3)),
                struct.pack("<III", 0, 8, 0) + bytes(8),
            )
        )
        said.insert(
            rng.randrange(len(said) + 1), record(request, payload, rng.randbytes(rng.choice((0, 0, 1, 2))))
        )
    if rng.random() < 0.3:
        rng.shuffle(said)
    return b"".join(said)


def talk(data: bytes) -> None:
    """Say it all, without listening much; then hang up."""
    here = stage()
    front = socket.socket(socket.AF_UNIX)
    front.connect(here.path)
    front.setblocking(False)
    at = 0
    try:
        while at + 4 <= len(data):
            request, flags, count = REQUESTS[data[at] % len(REQUESTS)], data[at + 1], data[at + 2] % 10
            fds = [here.fds[each % len(here.fds)] for each in data[at + 3 : at + 3 + count]]
            at += 3 + count
            size = data[at] if at < len(data) else 0
            payload = data[at + 1 : at + 1 + size]
            at += 1 + size
            said = size if flags & 0x40 else len(payload)
            message = struct.pack("<III", request, flags & 0x3F, said) + payload
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            front.sendmsg([message], ancillary)
            here.bench.port.loop.turn(0)
            if flags & 0x20:
                here.bench.uplink.inject(bytes(60))
            with suppress(BlockingIOError):
                front.recv(4096)
    except (BrokenPipeError, ConnectionResetError, BlockingIOError):
        pass
    here.bench.port.loop.turn(0)
    front.close()
    here.check()


# Ring memory: the first bytes of the guest's memory, and how it goes on changing.


def rings(rng: random.Random) -> bytes:
    """Features, moves, and memory in which a sound driver has set up a transmit, a receive and a control queue."""
    choice = rng.randrange(8)
    image = filled_rings(rng, ring_features(LIFELIKE, choice))
    return bytes((choice,)) + rng.randbytes(12) + image


def work(data: bytes) -> None:
    """Let the port loose on it, change it under its hands, sometimes take it away."""
    here = stage()
    bench = here.victim
    data = data.ljust(13, b"\0")
    choice, moves, image = data[0], data[1:13], data[13 : 13 + IMAGE]
    guest = Guest(ring_features(LIFELIKE, choice), MEMORY)
    layout_rings(guest)
    guest.memory.write(BASE, image)
    bench.guest = guest
    port = bench.port
    port.set_memory(shared(guest.fd, guest.size))
    with port.lock:
        device = port.device
        device.status = Status.ACKNOWLEDGE
        device.status |= Status.DRIVER
        device.write_driver_features(guest.features)
        device.status |= Status.FEATURES_OK
        device.status |= Status.DRIVER_OK
    for index in QUEUES:
        port.set_kick(index, os.dup(guest.kicks[index]))
        port.set_call(index, os.dup(guest.calls[index]))
        port.set_enabled(index, True)
        with suppress(RingError):
            port.start_queue(index, QueuePlace(guest.layouts[index], moves[0] if moves[1] & 1 else None))
    for move in moves[2:]:
        os.eventfd_write(guest.kicks[move % 3], 1)
        if move & 0x10:
            bench.uplink.inject(bytes(12) + b"\x08\x00" + bytes(move))
        if move & 0x20:
            guest.memory.put_u16(BASE + 2 * move, moves[move % 12] << 8 | move)
        if move & 0x40:
            time.sleep(0.0002)
        port.loop.turn(0)
        if move == 0xFF:
            os.ftruncate(guest.fd, 4096)
            break
    time.sleep(0.0005)
    port.loop.turn(0)
    if moves[3] & 1:
        for index in QUEUES:
            if port.started(index):
                port.stop_queue(index)
    port.disconnect()
    bench.uplink.take()
    guest.close()
    here.check()


TARGETS = (Target("messages", conversation, talk, ()), Target("rings", rings, work, ()))

if __name__ == "__main__":
    assert mmap.PAGESIZE == 4096
    sys.exit(fuzz(TARGETS))
