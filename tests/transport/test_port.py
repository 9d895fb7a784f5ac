"""A served port with a guest that shares memory with it: both datapaths, all kinds of rings."""

from __future__ import annotations

import mmap
import os
import select
from collections.abc import Iterator

import pytest
from served import PLAIN, QUEUE, Bench

from virtio_ipsec.errors import MemoryAccessError
from virtio_ipsec.fastpath import native
from virtio_ipsec.fastpath.memory import SharedMemory
from virtio_ipsec.ring.memory import Region
from virtio_ipsec.transport.rings import QueuePlace
from virtio_ipsec.wire.numbers import Feature, Status, mask

MAC = bytes.fromhex("020000000001")
PEER = bytes.fromhex("020000000002")


def frame(number: int, size: int = 60) -> bytes:
    return (MAC + PEER + b"\x88\xb5" + number.to_bytes(4, "big")).ljust(size, b"\0")


@pytest.fixture(params=["c", "python"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bench(engine: str) -> Iterator[Bench]:
    made = Bench(engine=engine)
    yield made
    made.close()


RINGS = {
    "split": PLAIN,
    "no-event": PLAIN & ~mask(Feature.F_EVENT_IDX),
    "packed": PLAIN | mask(Feature.F_RING_PACKED),
    "in-order": PLAIN | mask(Feature.F_IN_ORDER),
    "packed-in-order": PLAIN | mask(Feature.F_RING_PACKED, Feature.F_IN_ORDER),
}


@pytest.mark.parametrize("features", RINGS.values(), ids=RINGS.keys())
def test_frames_go_both_ways(engine: str, features: int) -> None:
    bench = Bench(features, engine=engine)
    try:
        for turn in range(3):
            sent = [frame(1000 * turn + n) for n in range(40)]
            bench.guest.send(*sent)
            assert bench.captured(40) == sent
            bench.until(lambda: bench.guest.reclaim() == 0 and not bench.guest.drivers[1]._outstanding)
            arriving = [frame(500 + n, 200) for n in range(40)]
            bench.uplink.inject(*arriving)
            assert bench.received(40) == arriving
            bench.guest.post()
    finally:
        bench.close()


@pytest.mark.parametrize("features", [RINGS["split"], RINGS["packed"]], ids=["split", "packed"])
def test_without_the_extension_rings_are_pythons(features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: False)
    bench = Bench(features, engine="python")
    try:
        sent = [frame(n) for n in range(20)]
        bench.guest.send(*sent)
        assert bench.captured(20) == sent
        bench.until(lambda: not bench.guest.reclaim() and not bench.guest.drivers[1]._outstanding)
        state = bench.port.stop_queue(1)
        bench.port.start_queue(1, QueuePlace(bench.guest.layouts[1], state))
        bench.guest.send(*sent)
        assert bench.captured(20) == sent
        bench.uplink.inject(*sent)
        assert bench.received(20) == sent
        err = os.eventfd(0, os.EFD_NONBLOCK)
        bench.port.set_err(1, os.dup(err))
        bench.guest.memory.write(bench.guest.layouts[1].desc, (b"\xff" * 15 + b"\x7f") * QUEUE)
        bench.guest.memory.put_u16(bench.guest.layouts[1].driver + 2, 3000)
        os.eventfd_write(bench.guest.kicks[1], 1)
        bench.until(lambda: bool(bench.port.device.status & Status.DEVICE_NEEDS_RESET))
        bench.until(lambda: bool(select.select([err], [], [], 0)[0]))
        os.close(err)
    finally:
        bench.close()


def test_memory_is_copied_by_csrc_and_checked() -> None:
    fd = os.memfd_create("memory")
    os.ftruncate(fd, 8192)
    mapping = mmap.mmap(fd, 8192)
    memory = SharedMemory([Region(0x1000, 4096, memoryview(mapping)[:4096]),
                           Region(0x2000, 4096, memoryview(mapping)[4096:])])  # fmt: skip
    memory.write(0x1FFE, b"over")
    assert memory.read(0x1FFC, 8) == b"\0\0over\0\0"
    assert memory.read(0x1000, 0) == b""
    memory.write(0x1000, b"")
    for address, length in ((0xFFF, 2), (0x2FFF, 2), (0x4000, 1)):
        with pytest.raises(MemoryAccessError):
            memory.read(address, length)
        with pytest.raises(MemoryAccessError):
            memory.write(address, bytes(length))
    os.ftruncate(fd, 4096)
    with pytest.raises(MemoryAccessError, match="vanished"):
        memory.read(0x2000, 4)
    with pytest.raises(MemoryAccessError, match="vanished"):
        memory.write(0x2000, b"gone")
    os.close(fd)
