"""A hostile client of the vfio-user server, and a hostile guest behind it: any commands, any descriptors, any
registers, any DMA mappings, any ring memory, in any order.

After each input the connection is gone, nothing that was shared is kept, nothing was logged as an error of ours, no
thread, descriptor or mapping is left over, and another port of the same process still carries frames.
"""

from __future__ import annotations

import array
import gc
import logging
import os
import random
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from functools import cache

from harness import Target, fuzz

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "transport"))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "transport", "virtio_pci"))

import served
import vfio_client as say
from functions import BASE, PLAIN
from guest_rings import IMAGE, MEMORY, QUEUES, filled_rings, layout_rings, ring_features
from served import Bench, Guest
from test_backend import exchange
from vfio_client import RemoteHost

from virtio_ipsec.transport.bounce import BouncePort
from virtio_ipsec.transport.virtio_pci.tables import (
    MSIX_ENABLE,
    Command,
    CommonCfg,
    Header,
    MsixCap,
    Region,
    Register,
    Structure,
)
from virtio_ipsec.wire.numbers import Feature, mask

#: How much of its memory a client keeps to itself: nothing, the rings, or all.
KEEPS = (0, 0, 4096, MEMORY)
#: How often an input is followed by a look at everything.
EVERY = 32
LIFELIKE = PLAIN | mask(Feature.NET_F_CTRL_VQ, Feature.F_INDIRECT_DESC, Feature.NET_F_CSUM, Feature.F_ADMIN_VQ)


class Errors(logging.Handler):
    """What is logged as an error of ours."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(logging.Formatter().format(record))


class Stage:
    """The function under attack, and a neighbour."""

    def __init__(self) -> None:
        self._log = logging.getLogger("virtio_ipsec")
        self._log.propagate, self._before = False, self._log.propagate
        self.errors = Errors()
        self._log.addHandler(self.errors)
        served.ServedPort, before = BouncePort, served.ServedPort  # type: ignore[misc]
        self.host = RemoteHost(connect=False)
        served.ServedPort = before  # type: ignore[misc]
        self.bench = self.host.bench
        self.neighbour = Bench()
        self.runs = 0
        reader, writer = os.pipe()
        self._sockets = socket.socketpair()
        short = os.memfd_create("short")
        os.ftruncate(short, 100)
        self.guest = Guest(LIFELIKE, MEMORY)
        self.fds = (self.guest.fd, short, os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0), writer, reader,
                    self._sockets[0].fileno(), os.open("/dev/zero", os.O_RDWR), os.open("/", os.O_RDONLY))  # fmt: skip
        self.well_behaved()
        gc.collect()
        self.before = self.things()

    def close(self) -> None:
        """Nothing is left of it."""
        for fd in self.fds:
            if fd not in (self.guest.fd, self._sockets[0].fileno()):
                os.close(fd)
        for each in self._sockets:
            each.close()
        self.guest.close()
        self.host.guest = self.host.bench.guest = Guest(PLAIN)
        self.host.close()
        self.neighbour.close()
        self._log.removeHandler(self.errors)
        self._log.propagate = self._before

    def things(self) -> tuple[int, int, int]:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            shared = sum("memfd:guest" in line for line in maps)
        return len(os.listdir("/proc/self/fd")), threading.active_count(), shared

    def check(self) -> None:
        """After an input, the connection being closed."""
        self.bench.until(lambda: not self.host.server.is_connected)
        assert not self.errors.found, self.errors.found
        assert not any(self.host.port.started(index) for index in range(self.host.port.queue_count))
        self.bench.uplink.take()
        self.runs += 1
        if self.runs % EVERY == 0:
            exchange(self.neighbour, self.runs)
            self.well_behaved()
            gc.collect()
            now = self.things()
            assert all(one <= other + 2 for one, other in zip(now, self.before, strict=True)), (now, self.before)

    def well_behaved(self) -> None:
        """A client that does all right is served."""
        host = self.host
        host.guest = host.bench.guest = Guest(PLAIN)
        host.attach(host.dial())
        host.start()
        host.send(b"\2" * 60)
        assert host.bench.captured(1) == [b"\2" * 60]
        host.clients.pop().close()
        host.function = host.local
        self.bench.until(lambda: not host.server.is_connected)
        host.guest.close()


@cache
def stage() -> Stage:
    return Stage()


# Commands: records of command, flags, descriptors, length, payload.


def record(command: int, payload: bytes = b"", fds: bytes = b"", flags: int = 0) -> bytes:
    return bytes((command, flags, len(fds), *fds)) + struct.pack("<H", len(payload)) + payload


def access(region: int, offset: int, data: bytes | int) -> bytes:
    """A write of bytes, or a read of so many."""
    if isinstance(data, int):
        return record(say.READ, struct.pack("<QII", offset, region, data))
    return record(say.WRITE, struct.pack("<QII", offset, region, len(data)) + data)


def config(register: Register, value: int, base: int = 0) -> bytes:
    return access(Region.CONFIG, base + register.offset, value.to_bytes(register.width, "little"))


def common(register: CommonCfg, value: int) -> bytes:
    cap = stage().host.structures[Structure.COMMON_CFG]
    return access(cap.bar, cap.offset + register.offset, value.to_bytes(register.width, "little"))


def notify(index: int, data: bytes = b"\0\0") -> bytes:
    cap = stage().host.structures[Structure.NOTIFY_CFG]
    return access(cap.bar, cap.offset + 4 * index, data)


def dma_map(address: int, size: int, offset: int = 0, flags: int = 3, fds: bytes = b"\0") -> bytes:
    return record(say.DMA_MAP, struct.pack("<IIQQQ", 32, flags, offset, address, size), fds)


def set_irqs(index: int, start: int, count: int, flags: int, fds: bytes = b"", data: bytes = b"") -> bytes:
    return record(say.SET_IRQS, struct.pack("<IIIII", 20, flags, index, start, count) + data, fds)


def attach(features: int, *, keeps: int = 0) -> list[bytes]:
    """What a client and its driver say that mean well. The first ``keeps`` bytes of memory, of which rings take less
    than a page, come without a descriptor."""
    guest = Guest(features, MEMORY)
    layout_rings(guest)
    said = [
        record(say.VERSION, b"\0\0\1\0" + say.PROPOSAL),
        *([dma_map(BASE, keeps, fds=b"")] if keeps else []),
        *([dma_map(BASE + keeps, MEMORY - keeps, keeps)] if keeps < MEMORY else []),
        record(say.GET_INFO, struct.pack("<IIII", 16, 0, 0, 0)),
        record(say.REGION_INFO, struct.pack("<IIIIQQ", 32, 0, 0, 0, 0, 0)),
        record(say.IO_FDS, struct.pack("<IIII", 4096, 0, 0, 0)),
        set_irqs(say.MSIX, 0, 2, say.EVENTFD | say.TRIGGER, b"\2\3"),
        set_irqs(say.INTX, 0, 1, say.EVENTFD | say.TRIGGER, b"\2"),
        set_irqs(say.INTX, 0, 1, say.EVENTFD | say.UNMASK, b"\3"),
        config(Header.COMMAND, Command.MEMORY | Command.MASTER),
        config(MsixCap.CONTROL, MSIX_ENABLE, stage().host.msix),
    ]
    said += [common(CommonCfg.device_status, status) for status in (0, 1, 3)]
    for number in range(4):
        said.append(common(CommonCfg.driver_feature_select, number))
        said.append(common(CommonCfg.driver_feature, features >> 32 * number & 0xFFFFFFFF))
    said.append(common(CommonCfg.device_status, 11))
    for index in QUEUES:
        layout = guest.layouts[index]
        said += [common(CommonCfg.queue_select, index), common(CommonCfg.queue_size, layout.size)]
        for name, address in (("desc", layout.desc), ("driver", layout.driver), ("device", layout.device)):
            said += [common(CommonCfg[f"queue_{name}_lo"], address), common(CommonCfg[f"queue_{name}_hi"], 0)]
        said += [common(CommonCfg.queue_msix_vector, index), common(CommonCfg.queue_enable, 1)]
    said.append(common(CommonCfg.device_status, 15))
    guest.close()
    return said


def stray(rng: random.Random) -> bytes:
    """One command that nobody asked for."""
    places = (0, 0x1000, 0x2000, 0x3000, 0x3FFC, rng.randrange(0x4000), rng.getrandbits(64))
    choice = rng.randrange(9)
    if choice == 0:
        return access(rng.randrange(10), rng.choice(places), rng.choice((1, 2, 4, 8, 64, 4096, 1 << 32 - 1)))
    if choice == 1:
        return access(rng.randrange(10), rng.choice(places), rng.randbytes(rng.choice((1, 2, 4, 8, 64))))
    if choice == 2:
        register = rng.choice(list(CommonCfg))
        return common(register, rng.getrandbits(8 * register.width) >> rng.randrange(8 * register.width))
    if choice == 3:
        address = rng.choice((0, BASE, BASE - 4096, BASE + MEMORY, BASE + MEMORY + 4096, rng.getrandbits(64)))
        size = rng.choice((0, 4096, MEMORY, rng.getrandbits(64)))
        return dma_map(address, size, rng.choice((0, 1, 4096)), rng.randrange(5), rng.randbytes(rng.randrange(3)))
    if choice == 4:
        size = rng.choice((MEMORY, 4096, 0))
        address = rng.choice((0, BASE, BASE - 4096, BASE + MEMORY, BASE + MEMORY + 4096))
        return record(say.DMA_UNMAP, struct.pack("<IIQQ", 24, rng.randrange(3), address, size))
    if choice == 5:
        count = rng.randrange(4)
        return set_irqs(
            rng.randrange(6), rng.randrange(7), count, rng.getrandbits(6),
            rng.randbytes(rng.choice((0, count))), bytes(rng.choice((0, count))),
        )  # fmt: skip
    if choice == 6:
        writes = [
            struct.pack("<QIIQ", rng.choice(places), rng.randrange(9), rng.randrange(10), rng.getrandbits(64))
            for _ in range(rng.randrange(4))
        ]
        return record(say.WRITE_MULTI, struct.pack("<Q", len(writes)) + b"".join(writes))
    if choice == 7:
        return rng.choice((record(say.RESET), notify(rng.randrange(6), rng.randbytes(rng.choice((2, 4))))))
    return record(rng.randrange(256), rng.randbytes(rng.randrange(40)), rng.randbytes(rng.randrange(3)))


def conversation(rng: random.Random) -> bytes:
    features = LIFELIKE ^ rng.choice((0, mask(Feature.F_RING_PACKED), mask(Feature.F_NOTIFICATION_DATA)))
    said = attach(features, keeps=rng.choice(KEEPS))
    for _ in range(rng.randrange(12)):
        said.insert(rng.randrange(len(said) + 1), stray(rng))
    if rng.random() < 0.2:
        rng.shuffle(said)
    return b"".join(said)


class Voice:
    """A connection that says records without listening much."""

    def __init__(self) -> None:
        self.stage = stage()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(self.stage.host.path)
        self.socket.setblocking(False)
        self.number = 0
        self.heard = b""

    def say(self, data: bytes) -> None:
        """Records, as far as the connection stands."""
        at = 0
        with suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            while at + 5 <= len(data):
                command, flags, count = data[at], data[at + 1], data[at + 2] % 18
                fds = [self.stage.fds[each % len(self.stage.fds)] for each in data[at + 3 : at + 3 + count]]
                at += 3 + count
                size = int.from_bytes(data[at : at + 2], "little")
                payload = data[at + 2 : at + 2 + size]
                at += 2 + size
                said = size if flags & 0x40 else len(payload)
                head = struct.pack("<HHIII", self.number, command, 16 + said, flags & 0x3F, 0)
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                self.socket.sendmsg([head + payload], ancillary)
                self.number = self.number + 1 & 0xFFFF
                self.turn()

    def turn(self) -> None:
        """Answers are not looked at; what is asked of the guest's memory is answered, more or less."""
        self.stage.bench.port.loop.turn(0)
        with suppress(OSError):
            self.heard += self.socket.recv(1 << 16)
        while len(self.heard) >= 16:
            number, command, size, flags, _ = struct.unpack_from("<HHIII", self.heard)
            if len(self.heard) < size:
                break
            payload, self.heard = self.heard[16:size], self.heard[size:]
            if command == say.DMA_READ and not flags:
                self.answer(number, *struct.unpack("<QQ", payload))

    def answer(self, number: int, address: int, count: int) -> None:
        """One that is right, short, none, or late."""
        odd = number % 31
        data = os.pread(self.stage.guest.fd, count, (address - BASE) % MEMORY).ljust(count, b"\0")
        payload = struct.pack("<QQ", address, count) + (data if odd != 7 else data[1:])
        if odd != 9:
            flags = 0x21 if odd == 8 else 1
            head = struct.pack("<HHIII", number, say.DMA_READ, 16 + len(payload), flags, 14)
            with suppress(OSError):
                self.socket.sendall(head + payload)

    def end(self) -> None:
        self.stage.bench.port.loop.turn(0)
        self.socket.close()
        self.stage.check()


def talk(data: bytes) -> None:
    """Say it all, then hang up."""
    voice = Voice()
    voice.say(data)
    voice.end()


# Ring memory: the first bytes of the guest's memory, and how it and its mappings go on changing.


def rings(rng: random.Random) -> bytes:
    """Features, moves, and memory in which a sound driver has set up a receive, a transmit and a control queue."""
    choice = rng.randrange(32)
    image = filled_rings(rng, ring_features(LIFELIKE, choice))
    return bytes((choice,)) + rng.randbytes(12) + image


def work(data: bytes) -> None:
    """Let the function loose on it, change it under its hands, take it away or put something else there."""
    here = stage()
    data = data.ljust(13, b"\0")
    choice, moves, image = data[0], data[1:13], data[13 : 13 + IMAGE]
    os.ftruncate(here.guest.fd, 0)
    os.ftruncate(here.guest.fd, MEMORY)
    os.pwrite(here.guest.fd, image, 0)
    voice = Voice()
    voice.say(b"".join(attach(ring_features(LIFELIKE, choice), keeps=KEEPS[choice >> 3 & 3])))
    for move in moves:
        voice.say(notify(move % 4, move.to_bytes(2 + (move & 2), "little")))
        if move & 0x10:
            here.bench.uplink.inject(bytes(12) + b"\x08\x00" + bytes(move))
        if move & 0x20:
            os.pwrite(here.guest.fd, bytes((move, moves[move % 12])), 2 * move)
        if move & 0x40:
            time.sleep(0.0002)
            voice.turn()
        if move & 0x88 == 0x80:
            voice.say(record(say.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, BASE, MEMORY)))
            voice.say(dma_map(BASE, MEMORY, 0, 3 if move & 4 else 1))
        if move & 0x88 == 0x88:
            index = move & 3
            voice.say(common(CommonCfg.queue_select, index) + common(CommonCfg.queue_reset, 1))
        if move == 0xFF:
            os.ftruncate(here.guest.fd, 4096)
            for index in QUEUES:
                voice.say(notify(index, bytes(2)))
            break
    time.sleep(0.0005)
    voice.end()


TARGETS = (Target("messages", conversation, talk, ()), Target("rings", rings, work, ()))

if __name__ == "__main__":
    sys.exit(fuzz(TARGETS))
