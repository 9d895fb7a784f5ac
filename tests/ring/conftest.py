"""Rings laid out by hand from the text of virtio v1.4 2.7 and 2.8, sharing no code with the package.

The places are fixed and deliberately apart: descriptors at 0x1000, driver area at 0x4000, device area at
0x6000, buffers from 0x10000, indirect tables from 0x8000.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from virtio_ipsec.fastpath.rings import FastDeviceQueue
from virtio_ipsec.ring.base import DeviceQueue
from virtio_ipsec.ring.chain import QueueLayout
from virtio_ipsec.ring.memory import GuestMemory
from virtio_ipsec.ring.queue import device_queue as python_queue
from virtio_ipsec.wire.numbers import Feature, mask

MakeQueue = Callable[..., DeviceQueue]

DESC, DRIVER, DEVICE, TABLES, BUFFERS = 0x1000, 0x4000, 0x6000, 0x8000, 0x10000
NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 0x80, 0x8000


class HandMade:
    """Bytes of one queue, poked and peeked with struct."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.raw = bytearray(0x20000)
        self.memory = GuestMemory([(_region(self.raw))])
        self.layout = QueueLayout(size, DESC, DRIVER, DEVICE)

    def poke(self, form: str, address: int, *values: int) -> None:
        struct.pack_into(form, self.raw, address, *values)

    def peek(self, form: str, address: int) -> tuple[int, ...]:
        return struct.unpack_from(form, self.raw, address)


class HandSplit(HandMade):
    """struct virtq_desc, virtq_avail, virtq_used."""

    def desc(self, index: int, addr: int, length: int, flags: int = 0, following: int = 0) -> None:
        self.poke("<QIHH", DESC + 16 * index, addr, length, flags, following)

    def table(self, entries: list[tuple[int, int, int, int]], at: int = TABLES) -> None:
        for index, entry in enumerate(entries):
            self.poke("<QIHH", at + 16 * index, *entry)

    def offer(self, *heads: int) -> None:
        (idx,) = self.peek("<H", DRIVER + 2)
        for step, head in enumerate(heads):
            self.poke("<H", DRIVER + 4 + 2 * ((idx + step) % self.size), head)
        self.poke("<H", DRIVER + 2, (idx + len(heads)) % 65536)

    def use(self, *elements: tuple[int, int]) -> None:
        (idx,) = self.peek("<H", DEVICE + 2)
        for step, element in enumerate(elements):
            self.poke("<II", DEVICE + 4 + 8 * ((idx + step) % self.size), *element)
        self.poke("<H", DEVICE + 2, (idx + len(elements)) % 65536)

    def read_desc(self, index: int) -> tuple[int, ...]:
        return self.peek("<QIHH", DESC + 16 * index)

    def avail(self) -> tuple[int, ...]:
        """flags, idx, ring[size], used_event."""
        return self.peek(f"<HH{self.size}HH", DRIVER)

    def used(self) -> tuple[int, int, list[tuple[int, int]], int]:
        """flags, idx, ring[size], avail_event."""
        flags, idx, *rest = self.peek(f"<HH{2 * self.size}IH", DEVICE)
        return flags, idx, list(zip(rest[:-1:2], rest[1:-1:2], strict=True)), rest[-1]


class HandPacked(HandMade):
    """struct pvirtq_desc and pvirtq_event_suppress."""

    def desc(self, slot: int, addr: int, length: int, ident: int, flags: int) -> None:
        self.poke("<QIHH", DESC + 16 * slot, addr, length, ident, flags)

    def table(self, entries: list[tuple[int, int, int, int]], at: int = TABLES) -> None:
        for index, entry in enumerate(entries):
            self.poke("<QIHH", at + 16 * index, *entry)

    def read_desc(self, slot: int) -> tuple[int, ...]:
        """addr, len, id, flags."""
        return self.peek("<QIHH", DESC + 16 * slot)

    def use(self, slot: int, length: int, ident: int, wrap: int, write: int = WRITE) -> None:
        self.poke("<IHH", DESC + 16 * slot + 8, length, ident, write | (AVAIL | USED) * wrap)

    def driver_event(self) -> tuple[int, ...]:
        return self.peek("<HH", DRIVER)

    def device_event(self) -> tuple[int, ...]:
        return self.peek("<HH", DEVICE)


def _region(raw: bytearray):
    from virtio_ipsec.ring.memory import Region

    return Region(0, len(raw), raw)


@pytest.fixture
def split() -> HandSplit:
    """A split queue of 4 entries."""
    return HandSplit(4)


@pytest.fixture
def packed() -> HandPacked:
    """A packed queue of 3 entries: not a power of two."""
    return HandPacked(3)


@pytest.fixture(params=["python", "c"])
def device_queue(request: pytest.FixtureRequest) -> MakeQueue:
    """Makes device queues (memory, layout, features) of one implementation: a test that takes it runs on both."""
    made = python_queue if request.param == "python" else FastDeviceQueue
    return lambda memory, layout, features=0: made(memory, layout, features)


@pytest.fixture
def split_device(device_queue: MakeQueue) -> MakeQueue:
    """As `device_queue`, for tests of the split format."""
    return device_queue


@pytest.fixture
def packed_device(device_queue: MakeQueue) -> MakeQueue:
    """As `device_queue`, with the packed format negotiated."""
    return lambda memory, layout, features=0: device_queue(
        memory, layout, features | mask(Feature.F_RING_PACKED)
    )
