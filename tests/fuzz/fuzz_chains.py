"""Fuzz the device behind its rings: whatever guest memory holds, no call raises and nothing else is written.

An input is the feature choice, some wire frames' lengths, and 8 KiB of guest memory with one queue of each kind
in fixed places. The device kicks all queues and receives frames, twice, with the memory changed in between.
"""

from __future__ import annotations

import random
import sys
from itertools import pairwise
from pathlib import Path

from harness import Target, fuzz

sys.path.insert(0, str(Path(__file__).parents[1] / "device"))

import plane

from virtio_ipsec.device.config import DeviceConfig
from virtio_ipsec.device.device import Device
from virtio_ipsec.errors import RingError
from virtio_ipsec.ring.chain import QueueLayout, Segment
from virtio_ipsec.ring.faults import ChainError, QueueFull
from virtio_ipsec.ring.memory import Allocator, GuestMemory, OutOfMemory, Region
from virtio_ipsec.ring.queue import driver_queue
from virtio_ipsec.wire.numbers import Feature, Opcode, Status, mask

BASE, SIZE, QUEUE = 0x1000, 8192, 8
ADMIN, CONTROL, RECEIVE, TRANSMIT = 17, 16, 0, 1
QUEUES = (RECEIVE, TRANSMIT, CONTROL, ADMIN)
AREA = 0x100
TABLES, BUFFERS = BASE + len(QUEUES) * AREA * 2, BASE + 0x1000
#: Memory on both sides of the guest's that no access may reach.
GUARD = 64
CHOICES = (Feature.F_RING_PACKED, Feature.F_EVENT_IDX, Feature.F_IN_ORDER, Feature.NET_F_MRG_RXBUF)
FIXED = plane.ALL & ~mask(Feature.NET_F_MRG_RXBUF, Feature.NET_F_HOST_UFO) | mask(Feature.F_INDIRECT_DESC)

CONFIG = DeviceConfig(queue_size=QUEUE)


def features_of(choice: int) -> int:
    return FIXED | mask(*(feature for bit, feature in enumerate(CHOICES) if choice >> bit & 1))


def layout_of(slot: int) -> QueueLayout:
    at = BASE + slot * AREA * 2
    return QueueLayout(QUEUE, at, at + 0x80, at + 0x100)


def place(rng: random.Random, memory: GuestMemory, data: bytes) -> list[Segment]:
    """``data`` somewhere in the buffers, in one to three segments."""
    at = rng.randrange(BUFFERS, BASE + SIZE - len(data))
    memory.write(at, data)
    edges = sorted({0, len(data), *(rng.randrange(len(data)) for _ in range(rng.randrange(3)))})
    return [Segment(at + a, b - a) for a, b in pairwise(edges)]


def room(rng: random.Random) -> list[Segment]:
    length = rng.choice((1, 8, 31, 32, 64, 300))
    return [Segment(rng.randrange(BUFFERS, BASE + SIZE - length), length)]


def readable(rng: random.Random, index: int) -> bytes:
    """What a driver sends on this queue."""
    if index == TRANSMIT:
        return rng.choice((bytes(32), rng.randbytes(32))) + plane.MAC * 2 + b"\x08\0" + rng.randbytes(60)
    if index == CONTROL:
        return bytes((rng.randrange(6), rng.randrange(3), 1, 0))
    opcode = rng.choice([int(o) for o in Opcode])
    return opcode.to_bytes(2, "little") + bytes(22) + rng.choice((bytes(8), rng.randbytes(200)))


def image(rng: random.Random) -> bytes:
    """An input whose memory a correct driver has filled."""
    choice = rng.randrange(16)
    raw = bytearray(SIZE)
    memory = GuestMemory([Region(BASE, SIZE, raw)])
    tables = Allocator(TABLES, BUFFERS - TABLES)
    for slot, index in enumerate(QUEUES):
        queue = driver_queue(memory, layout_of(slot), features_of(choice), tables)
        for token in range(rng.randrange(5)):
            reads = [] if index == RECEIVE else place(rng, memory, readable(rng, index))
            writes = [] if index == TRANSMIT else room(rng)
            try:
                queue.add(reads, writes, token, indirect=rng.random() < 0.4)
            except (ChainError, QueueFull, OutOfMemory):
                break
        queue.publish()
    return bytes((choice, *rng.randbytes(4))) + raw


def run(data: bytes) -> None:
    """One life of a device over this memory."""
    choice, lengths, rest = data[0] if data else 0, data[1:5].ljust(4, b"\0"), data[5:]
    whole = bytearray(b"\xa5" * GUARD + rest[:SIZE].ljust(SIZE, b"\0") + b"\xa5" * GUARD)
    device = Device(CONFIG, plane.random_bytes)
    device.negotiate(features_of(choice))
    device.memory = GuestMemory([Region(BASE, SIZE, memoryview(whole)[GUARD : GUARD + SIZE])])
    for slot, index in enumerate(QUEUES):
        try:
            device.enable_queue(index, layout_of(slot))
        except RingError:
            return
    for turn in range(2):
        for index in QUEUES:
            device.kick(index)
            assert device.pending(index) <= QUEUE
        for length in lengths[2 * turn : 2 * turn + 2]:
            device.deliver(plane.MAC * 2 + b"\x08\0" + bytes(length * 4))
        whole[GUARD + length % SIZE] ^= 0xFF
    stopped = bool(device.status & Status.DEVICE_NEEDS_RESET)
    assert device.is_operating is not stopped
    assert device.take_interrupts() <= set(QUEUES)
    assert whole[:GUARD] == whole[-GUARD:] == b"\xa5" * GUARD
    device.reset()
    assert not any(device.queue_enabled(index) for index in QUEUES)


TARGETS = [Target("chains", image, run, declared=())]

if __name__ == "__main__":
    sys.exit(fuzz(TARGETS))
