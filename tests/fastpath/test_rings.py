"""The C rings where they do more than ring/: regions, vanishing memory, dirty log, inflight regions, bursts.

That they do what ring/ does is told by tests/ring and tests/property/test_ring_model.py, which run on both.
"""

from __future__ import annotations

import mmap
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from virtio_ipsec.errors import MemoryAccessError
from virtio_ipsec.fastpath import native
from virtio_ipsec.fastpath.rings import FastDeviceQueue, FastMemory, fast_memory
from virtio_ipsec.ring.base import DriverQueue
from virtio_ipsec.ring.chain import Chain, QueueLayout, Segment
from virtio_ipsec.ring.faults import ChainError, Fault, LayoutError
from virtio_ipsec.ring.memory import Allocator, GuestMemory, Region
from virtio_ipsec.ring.queue import driver_queue
from virtio_ipsec.wire.numbers import Feature, mask

ROOT = Path(__file__).parents[2]
COMPILER = next((path for path in map(shutil.which, ("gcc", "cc", "clang")) if path), None)
PACKED = mask(Feature.F_RING_PACKED)
TABLES = mask(Feature.F_INDIRECT_DESC)
EVENT = mask(Feature.F_EVENT_IDX)
ORDERED = mask(Feature.F_IN_ORDER)
PAGE = 4096
LAYOUT = QueueLayout(8, 0x1000, 0x2000, 0x3000)
B = 0x8000
SIZE = 0x10000
NORESERVE = 0x4000  # mmap.MAP_NORESERVE of later Pythons

ffi: Any
lib: Any
ffi, lib = native.extension()


# ---- names and memory


def test_the_faults_of_both_implementations_have_the_same_names() -> None:
    names = [ffi.string(lib.vipsec_fault_name(number)).decode() for number in range(lib.VIPSEC_FAULT_COUNT)]
    assert names == ["", *Fault]
    assert lib.vipsec_fault_name(-1) == lib.vipsec_fault_name(lib.VIPSEC_FAULT_COUNT) == ffi.NULL


@pytest.mark.parametrize(
    "regions",
    [
        [],
        [(0, 0)],
        [(0, 16), (15, 16)],
        [(32, 16), (0, 33)],
        [((1 << 64) - 8, 9)],
    ],
)
def test_regions_that_cannot_be_are_refused(regions: list[tuple[int, int]]) -> None:
    buffer = ffi.new("uint8_t[]", 64)
    table = ffi.new("struct vipsec_region[]", [(address, size, buffer) for address, size in regions])
    assert lib.vipsec_memory_new(table, len(regions)) == ffi.NULL


def test_a_region_needs_a_mapping() -> None:
    assert lib.vipsec_memory_new(ffi.new("struct vipsec_region[]", [(0, 16, ffi.NULL)]), 1) == ffi.NULL


def test_the_last_addresses_of_all_can_be_used() -> None:
    raw = bytearray(0x1000)
    start = (1 << 64) - len(raw)
    memory = GuestMemory([Region(0, 0x4000, bytearray(0x4000)), Region(start, len(raw), raw)])
    driver = driver_queue(memory, LAYOUT, 0)
    device = FastDeviceQueue(memory, LAYOUT)
    driver.add([Segment((1 << 64) - 4, 4)], [], 0)
    driver.publish()
    assert device.pop().readable == (Segment((1 << 64) - 4, 4),)
    # One byte more goes on at address 0, which is a region too, and is refused all the same.
    memory.write(LAYOUT.desc + 16 + 8, struct.pack("<IHH", 5, 0, 0))
    memory.write(LAYOUT.desc + 16, struct.pack("<Q", (1 << 64) - 4))
    memory.write(LAYOUT.driver + 2, struct.pack("<HHH", 2, 0, 1))
    with pytest.raises(ChainError) as caught:
        device.pop()
    assert caught.value.kind is Fault.ADDRESS


def test_memory_that_csrc_cannot_take_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def __getattr__(self, name: str) -> Any:
            return (lambda *_: ffi.NULL) if name == "vipsec_memory_new" else getattr(lib, name)

    monkeypatch.setattr(native, "extension", lambda: (ffi, Refusing()))
    with pytest.raises(MemoryAccessError):
        FastMemory(GuestMemory.anonymous(16))


def test_one_memory_has_one_c_side() -> None:
    memory = GuestMemory.anonymous(SIZE)
    assert fast_memory(memory) is fast_memory(memory)
    assert not fast_memory(memory).failed


@pytest.mark.parametrize("features", [0, PACKED])
def test_buffers_may_cross_regions_and_keep_their_descriptors(features: int) -> None:
    raw = bytearray(SIZE)
    cuts = [0, 0x8010, 0x8018, 0x8020, SIZE]
    memory = GuestMemory([Region(a, b - a, memoryview(raw)[a:b]) for a, b in pairwise(cuts)])
    driver, device = driver_queue(memory, LAYOUT, features), FastDeviceQueue(memory, LAYOUT, features)
    reads = [Segment(0x8000, 16), Segment(0x8010, 8), Segment(0x800F, 100)]
    driver.add(reads, [Segment(0x8017, 2), Segment(0x8019, 2)], 0)
    # The longest chain there is, each descriptor in as many pieces as can be.
    driver.publish()
    chain = device.pop()
    assert chain.readable == tuple(reads)
    assert chain.writable == (Segment(0x8017, 2), Segment(0x8019, 2))
    device.push(chain, 4)
    assert len(driver.poll()) == 1
    driver.add([Segment(0x8000, 0x40)] * 8, [], 1)
    driver.publish()
    assert device.pop().readable == (Segment(0x8000, 0x40),) * 8


@pytest.mark.parametrize("features", [0, PACKED])
def test_a_queue_moves_to_memory_that_has_its_rings_where_they_are(features: int) -> None:
    raw = memoryview(bytearray(SIZE))
    areas = (LAYOUT.desc, LAYOUT.driver, LAYOUT.device)
    rings = [Region(area, PAGE, raw[area:]) for area in areas]
    first, second = (Region(begin, PAGE, raw[begin:]) for begin in (0x8000, 0xA000))
    everything = GuestMemory([*rings, first, second])

    def queues() -> tuple[DriverQueue, FastDeviceQueue]:
        memory = GuestMemory([*rings, first])
        return driver_queue(everything, LAYOUT, features), FastDeviceQueue(memory, LAYOUT, features)

    def offer(driver: DriverQueue, region: Region) -> None:
        driver.add([Segment(region.address, 8)], [], region)
        driver.publish()

    driver, device = queues()
    offer(driver, first)
    chain = device.pop()
    assert chain is not None
    assert not device.move(everything)  # it is out
    device.push(chain, 0)
    for area in areas:
        others = [Region(at, PAGE, bytearray(PAGE) if at == area else raw[at:]) for at in areas]
        assert not device.move(GuestMemory([*others, second]))
        assert not device.move(GuestMemory([*(ring for ring in rings if ring.address != area), second]))
    assert not device.move(GuestMemory([*rings, second, Region(0, PAGE, raw)]))  # a boundary more
    offer(driver, first)
    handle = device.handle
    assert device.move(GuestMemory([*rings, second]))
    assert device.handle == handle
    with pytest.raises(ChainError, match="address"):
        device.pop()

    driver, device = queues()
    assert device.move(GuestMemory([*rings, second]))
    for _ in range(2 * LAYOUT.size):
        offer(driver, second)
        chain = device.pop()
        assert chain is not None
        device.push(chain, 0)
        assert len(driver.poll()) == 1


def test_a_chain_holds_at_most_4_gib() -> None:
    room = mmap.mmap(-1, (1 << 32) + 0x10000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    memory = GuestMemory([Region(0, len(room), room)])
    for first, verdict in ((1, None), (2, Fault.TOO_LONG)):
        room[0x1000:0x1020] = struct.pack("<QIHHQIHH", 0, first, 1, 1, 16, 0xFFFFFFFF, 0, 0)
        room[0x2000:0x2006] = struct.pack("<HHH", 0, 1, 0)
        queue = FastDeviceQueue(memory, QueueLayout(2, 0x1000, 0x2000, 0x3000))
        if verdict is None:
            assert queue.pop().readable_len == 1 << 32
        else:
            with pytest.raises(ChainError) as caught:
                queue.pop()
            assert caught.value.kind is verdict


@pytest.mark.parametrize(
    ("layout", "kind"),
    [
        (QueueLayout(-1, 0x1000, 0x2000, 0x3000), Fault.SIZE),
        (QueueLayout(1 << 32, 0x1000, 0x2000, 0x3000), Fault.SIZE),
        (QueueLayout(8, -16, 0x2000, 0x3000), Fault.PLACEMENT),
        (QueueLayout(8, 0x1000, 1 << 64, 0x3000), Fault.PLACEMENT),
    ],
)
def test_layouts_beyond_what_c_can_say_are_refused(layout: QueueLayout, kind: Fault) -> None:
    with pytest.raises(LayoutError) as caught:
        FastDeviceQueue(GuestMemory.anonymous(SIZE), layout)
    assert caught.value.kind is kind


@pytest.mark.parametrize("features", [0, PACKED])
def test_a_mapping_whose_words_would_tear_is_refused(features: int) -> None:
    raw = bytearray(SIZE + 1)
    memory = GuestMemory([Region(0, SIZE, memoryview(raw)[1:])])
    with pytest.raises(LayoutError) as caught:
        FastDeviceQueue(memory, LAYOUT, features)
    assert caught.value.kind is Fault.ALIGNMENT


# ---- notification through eventfds


@pytest.mark.parametrize("features", [0, PACKED])
def test_eventfds_are_told(features: int) -> None:
    raw = bytearray(SIZE)
    memory = GuestMemory([Region(0, SIZE, raw)])
    driver = driver_queue(memory, LAYOUT, features)
    call, err = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    config = ffi.new("struct vipsec_queue_config *", {"size": LAYOUT.size, "call_fd": call, "err_fd": err})
    config.desc, config.driver, config.device = LAYOUT.desc, LAYOUT.driver, LAYOUT.device
    config.flags = lib.VIPSEC_QUEUE_PACKED if features else 0
    queue = lib.vipsec_queue_new(fast_memory(memory).handle, config, ffi.new("int *"))
    chain = ffi.new("struct vipsec_chain *")

    def one_round() -> int:
        driver.add([], [Segment(B, 8)], 0)
        driver.publish()
        assert lib.vipsec_queue_pop(queue, chain) == 1
        assert lib.vipsec_queue_push(queue, chain, ffi.new("uint32_t[]", [8]), 1, 0) == 0
        return int(lib.vipsec_queue_notify(queue))

    assert one_round() == 1
    assert os.eventfd_read(call) == 1
    driver.disable_notifications()
    assert one_round() == 0
    with pytest.raises(BlockingIOError):
        os.eventfd_read(call)
    driver.add([Segment(B, 1)], [], 0)
    driver.publish()
    raw[LAYOUT.desc : LAYOUT.desc + 16 * LAYOUT.size : 16] = b"\xff" * LAYOUT.size
    raw[LAYOUT.desc + 7 : LAYOUT.desc + 16 * LAYOUT.size : 16] = b"\xff" * LAYOUT.size
    assert lib.vipsec_queue_pop(queue, chain) < 0
    assert os.eventfd_read(err) == 1
    assert lib.vipsec_queue_notify(queue) < 0
    assert lib.vipsec_queue_pop(queue, chain) < 0
    with pytest.raises(BlockingIOError):
        os.eventfd_read(err)
    assert lib.vipsec_queue_fault(queue) == list(Fault).index(Fault.ADDRESS) + 1
    lib.vipsec_queue_free(queue)
    lib.vipsec_queue_free(ffi.NULL)
    os.close(call)
    os.close(err)


# ---- vanishing memory


class Shared:
    """Guest memory over a file that can be truncated."""

    def __init__(self, size: int = SIZE) -> None:
        self.file = os.memfd_create("guest")
        os.ftruncate(self.file, size)
        self.map = mmap.mmap(self.file, size)
        self.memory = GuestMemory([Region(0, size, self.map)])

    def truncate(self, size: int) -> None:
        os.ftruncate(self.file, size)


CALLS = {
    "pop": lambda queue, chain: queue.pop(),
    "push": lambda queue, chain: queue.push(chain, 8),
    "pending": lambda queue, chain: queue.pending(),
    "enable": lambda queue, chain: queue.enable_notifications(),
    "disable": lambda queue, chain: queue.disable_notifications(),
}


@pytest.mark.parametrize("features", [0, PACKED])
@pytest.mark.parametrize("call", CALLS)
def test_memory_that_vanishes_breaks_its_queue_only(features: int, call: str) -> None:
    gone, kept = Shared(), Shared()
    queues = []
    for shared in (gone, kept):
        driver = driver_queue(shared.memory, LAYOUT, features)
        queue = FastDeviceQueue(shared.memory, LAYOUT, features)
        for token in range(2):
            driver.add([], [Segment(B, 8)], token)
        driver.publish()
        queues.append((queue, queue.pop()))
    gone.truncate(0)
    queue, chain = queues[0]
    with pytest.raises(ChainError) as caught:
        CALLS[call](queue, chain)
    assert caught.value.kind is queue.fault is Fault.MEMORY
    assert fast_memory(gone.memory).failed
    with pytest.raises(LayoutError) as refused:
        queue.reset()
    assert refused.value.kind is Fault.MEMORY
    queue, chain = queues[1]
    CALLS[call](queue, chain)
    assert queue.fault is None
    assert not fast_memory(kept.memory).failed


def test_a_truncation_under_load_stops_its_own_queue_only() -> None:
    stop = threading.Event()
    rounds = [0, 0]
    faults: list[Fault | None] = [None, None]
    both = [Shared(), Shared()]
    for shared in both:
        driver = driver_queue(shared.memory, LAYOUT, 0)
        for token in range(8):
            driver.add([Segment(B, 64)], [], token)
        driver.publish()

    def work(number: int) -> None:
        queue = FastDeviceQueue(both[number].memory, LAYOUT)
        try:
            while not stop.is_set():
                queue.reset()
                while queue.pop() is not None:
                    pass
                rounds[number] += 1
        except (ChainError, LayoutError) as error:
            faults[number] = error.kind

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    while min(rounds) < 10:
        pass
    both[0].truncate(0)
    threads[0].join(30)
    assert faults[0] is Fault.MEMORY
    before = rounds[1]
    while rounds[1] < before + 10:
        pass
    stop.set()
    threads[1].join(30)
    assert faults == [Fault.MEMORY, None]


def test_a_bus_error_elsewhere_goes_to_the_handler_before() -> None:
    """The guard takes only what is its own: any other SIGBUS still ends the process."""
    program = (
        "import ctypes, mmap, os, sys\n"
        "from virtio_ipsec.fastpath.rings import fast_memory\n"
        "from virtio_ipsec.ring.memory import GuestMemory\n"
        "fast_memory(GuestMemory.anonymous(64))\n"
        "if sys.argv[1] == 'access':\n"
        "    file = os.memfd_create('x'); os.ftruncate(file, 4096)\n"
        "    room = mmap.mmap(file, 4096); os.ftruncate(file, 0); room[0]\n"
        "else:\n"
        "    import signal; os.kill(os.getpid(), signal.SIGBUS)\n"
        "print('still here')\n"
    )
    # AddressSanitizer, when the extension was built with it, would be the handler before.
    environment = {**os.environ, "ASAN_OPTIONS": f"{os.environ.get('ASAN_OPTIONS', '')}:handle_sigbus=0"}
    for how in ("access", "kill"):
        for handler in ("", "import faulthandler; faulthandler.enable()\n"):
            done = subprocess.run(
                [sys.executable, "-c", handler + program, how],
                cwd=ROOT, env=environment, capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == -7, (how, handler, done.stderr)
            assert "still here" not in done.stdout
            assert ("Fatal Python error: Bus error" in done.stderr) is bool(handler)


# ---- dirty log


def logged(memory: GuestMemory, pages: int) -> Any:
    """A log for this many pages, attached."""
    bits = ffi.new("uint8_t[]", (pages + 7) // 8)
    lib.vipsec_memory_set_log(fast_memory(memory).handle, bits, len(bits))
    return bits


def dirty(bits: Any) -> set[int]:
    """The pages noted so far; the log is empty afterwards."""
    pages = {8 * index + bit for index, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1}
    ffi.memmove(bits, bytes(len(bits)), len(bits))
    return pages


@pytest.mark.parametrize("features", [0, EVENT, PACKED, PACKED | EVENT])
def test_stores_into_the_rings_are_logged(features: int) -> None:
    memory = GuestMemory.anonymous(0x40000)
    # Rings that lie across pages: 1024 used elements are two pages.
    size = 1024
    layout = QueueLayout(size, 0x10000, 0x20000, 0x30000)
    driver, device = driver_queue(memory, layout, features), FastDeviceQueue(memory, layout, features)
    bits = logged(memory, 0x80)
    used = 0x50000  # log_guest_addr: where the device area counts as lying
    assert dirty(bits) == set()
    lib.vipsec_queue_set_log(device.handle, 1, used)
    device.disable_notifications()
    device.enable_notifications()
    event = (used + 4 + 8 * size) >> 12 if features == EVENT else used >> 12
    assert dirty(bits) >= {event}
    for turn in range(2 * size // 128 + 1):
        for token in range(128):
            driver.add([], [Segment(B, 8)], token)
        driver.publish()
        chains = [device.pop() for _ in range(128)]
        dirty(bits)
        device.push_many([(chain, 0) for chain in chains])
        first = turn * 128 % size
        if features & PACKED:
            assert dirty(bits) == {(layout.desc + 16 * first) >> 12, (layout.desc + 16 * first + 2047) >> 12}
        else:
            begin = used + 4 + 8 * first
            assert dirty(bits) == {used >> 12, begin >> 12, (begin + 1023) >> 12}
        assert len(driver.poll()) == 128
    lib.vipsec_queue_set_log(device.handle, 0, 0)
    device.disable_notifications()
    assert dirty(bits) == set()


def test_a_burst_around_the_end_of_the_used_ring_is_logged_whole() -> None:
    memory = GuestMemory.anonymous(0x40000)
    layout = QueueLayout(1024, 0x10000, 0x20000, 0x30000)
    driver, device = driver_queue(memory, layout, 0), FastDeviceQueue(memory, layout)
    for count in (1000, 100):
        bits = logged(memory, 0x40)
        lib.vipsec_queue_set_log(device.handle, 1, layout.device)
        for token in range(count):
            driver.add([], [Segment(B, 8)], token)
        driver.publish()
        device.push_many([(device.pop(), 0) for _ in range(count)])
        driver.poll()
    assert dirty(bits) == {0x30, 0x31, 0x32}


def test_a_short_log_is_not_written_beyond_its_end() -> None:
    memory = GuestMemory.anonymous(0x40000)
    layout = QueueLayout(8, 0x10000, 0x20000, 0x30000)
    driver, device = driver_queue(memory, layout, 0), FastDeviceQueue(memory, layout)
    guarded = ffi.new("uint8_t[]", 64)
    lib.vipsec_memory_set_log(fast_memory(memory).handle, guarded + 8, 2)
    lib.vipsec_queue_set_log(device.handle, 1, layout.device)
    driver.add([], [Segment(B, 8)], 0)
    driver.publish()
    device.push(device.pop(), 8)
    assert bytes(ffi.buffer(guarded)) == bytes(64)
    lib.vipsec_memory_set_log(fast_memory(memory).handle, ffi.NULL, 1 << 40)
    driver.add([], [Segment(B, 8)], 0)
    driver.publish()
    device.push(device.pop(), 8)


def test_a_log_that_vanishes_breaks_the_queue() -> None:
    memory = GuestMemory.anonymous(SIZE)
    driver, device = driver_queue(memory, LAYOUT, 0), FastDeviceQueue(memory, LAYOUT)
    log = Shared(PAGE)
    lib.vipsec_memory_set_log(fast_memory(memory).handle, ffi.from_buffer(log.map), PAGE)
    lib.vipsec_queue_set_log(device.handle, 1, LAYOUT.device)
    driver.add([], [Segment(B, 8)], 0)
    driver.publish()
    chain = device.pop()
    log.truncate(0)
    with pytest.raises(ChainError) as caught:
        device.push(chain, 8)
    assert caught.value.kind is Fault.MEMORY


# ---- inflight regions: the layouts of the vhost-user text, by hand

SPLIT_HEAD, SPLIT_DESC = struct.Struct("<QHHHH"), struct.Struct("<B5xHQ")
PACKED_HEAD, PACKED_DESC = struct.Struct("<QHHHHHHBB7x3x"), struct.Struct("<BxHHHQHHIQ")


class Tracked:
    """A queue with its record, driver and memory; ``crash`` leaves only what is shared."""

    def __init__(self, features: int, size: int = 8) -> None:
        self.features = features
        self.memory = GuestMemory.anonymous(SIZE)
        self.layout = QueueLayout(size, 0x1000, 0x2000, 0x3000)
        flags = lib.VIPSEC_QUEUE_PACKED if features & PACKED else 0
        self.region = bytearray(64 + lib.vipsec_inflight_size(size, flags))
        lib.vipsec_memory_set_inflight(
            fast_memory(self.memory).handle, ffi.from_buffer(self.region), len(self.region)
        )
        self.driver: DriverQueue = driver_queue(self.memory, self.layout, features, Allocator(0x4000, 0x2000))
        self.start(None)

    def start(self, state: int | None) -> None:
        self.device = FastDeviceQueue(self.memory, self.layout, self.features)
        if state is not None:
            self.device.restore(state)
        self.recovered = lib.vipsec_queue_inflight_new(self.device.handle, 64)

    def crash(self) -> None:
        """What a front-end does then: it takes the used index as the base (packed: what it last knew)."""
        used = self.memory.u16(0x3002) if not self.features & PACKED else 0x8000_8000
        self.start(used)

    def offer(self, *tokens: int, parts: int = 1) -> None:
        for token in tokens:
            indirect = bool(self.features & TABLES and token % 3)
            reads, writes = [Segment(B + 16 * token, 4)] * parts, [Segment(B + 16 * token + 4, 8)]
            self.driver.add(reads, writes, token, indirect=indirect)
        self.driver.publish()

    def head(self) -> tuple[int, ...]:
        form = PACKED_HEAD if self.features & PACKED else SPLIT_HEAD
        return form.unpack_from(self.region, 64)

    def entry(self, index: int) -> tuple[int, ...]:
        if self.features & PACKED:
            return PACKED_DESC.unpack_from(self.region, 64 + 32 + 32 * index)
        return SPLIT_DESC.unpack_from(self.region, 64 + 16 + 16 * index)


FORMATS = pytest.mark.parametrize("features", [0, PACKED, ORDERED, PACKED | ORDERED])


def test_the_size_of_a_region_is_that_of_its_layout() -> None:
    assert (SPLIT_HEAD.size, SPLIT_DESC.size, PACKED_HEAD.size, PACKED_DESC.size) == (16, 16, 32, 32)
    assert lib.vipsec_inflight_size(1024, 0) == 16 + 16 * 1024 + 48
    assert lib.vipsec_inflight_size(3, 0) == 64
    assert lib.vipsec_inflight_size(1024, lib.VIPSEC_QUEUE_PACKED) == 32 + 32 * 1024 + 32


def test_a_split_record_byte_by_byte() -> None:
    t = Tracked(0)
    assert t.recovered == 0
    assert t.head() == (0, 1, 8, 0, 0)
    t.offer(0, 1, 2)
    chains = [t.device.pop() for _ in range(3)]
    heads = [chain.head for chain in chains]
    assert [t.entry(head) for head in heads] == [(1, 0, 0), (1, 0, 1), (1, 0, 2)]
    t.device.push_many([(chains[2], 0), (chains[0], 0)])
    assert t.head() == (0, 1, 8, heads[0], 2)
    assert t.entry(heads[2])[0] == 0
    assert t.entry(heads[0])[:2] == (0, heads[2])
    assert t.entry(heads[1]) == (1, 0, 1)
    t.offer(3)
    fresh = t.device.pop()
    assert t.entry(fresh.head)[0] == 1
    t.device.unpop(fresh)
    assert t.entry(fresh.head)[0] == 0
    assert t.entry(heads[1]) == (1, 0, 1)


def test_a_packed_record_byte_by_byte() -> None:
    t = Tracked(PACKED)
    assert t.head() == (0, 1, 8, 0, 0, 0, 0, 1, 1)
    assert [t.entry(index)[1] for index in range(8)] == [1, 2, 3, 4, 5, 6, 7, 8]
    t.offer(0, 1)
    first, second = t.device.pop(), t.device.pop()
    assert t.head() == (0, 1, 8, 4, 4, 0, 0, 1, 1)
    # inflight, next, last, num, counter, id, flags, len, addr
    assert t.entry(0) == (1, 1, 1, 2, 0, first.head, 0x80 | 1, 4, B)
    assert t.entry(1)[5:] == (first.head, 0x80 | 2, 8, B + 4)
    assert t.entry(2)[:5] == (1, 3, 3, 2, 1)
    t.device.push(first, 8)
    # Its entries lead the free list again; the used position is two descriptors on.
    assert t.head() == (0, 1, 8, 0, 0, 2, 2, 1, 1)
    assert t.entry(0)[:3] == (0, 1, 1)
    assert t.entry(1)[1] == 4
    t.device.push(second, 8)
    assert t.head() == (0, 1, 8, 2, 2, 4, 4, 1, 1)
    assert t.entry(3)[1] == 0


@FORMATS
def test_what_was_in_flight_comes_again_first_and_in_order(features: int) -> None:
    t = Tracked(features)
    t.offer(0, 1, 2)
    before = [t.device.pop() for _ in range(3)]
    t.device.push(before[0], 8)
    position = t.device.state()
    t.offer(3)
    t.crash()
    assert t.recovered == 2
    assert t.device.state() == position
    assert t.device.pending() == 3
    assert t.device.enable_notifications()
    again = [t.device.pop(), t.device.pop()]
    assert again == before[1:]
    # Going back over them and on again.
    t.device.unpop(again.pop())
    t.device.unpop(again.pop())
    assert t.device.state() == position
    again = [t.device.pop() for _ in range(3)]
    assert again[:2] == before[1:]
    assert t.device.pop() is None
    t.device.unpop(again[2])
    assert t.device.pending() == 1
    again[2] = t.device.pop()
    t.device.push_many([(chain, 8) for chain in again])
    assert [used.token for used in t.driver.poll()] == [0, 1, 2, 3]
    t.crash()
    assert t.recovered == 0
    assert t.device.pop() is None


@pytest.mark.parametrize("features", [0, PACKED, TABLES, PACKED | TABLES, PACKED | EVENT])
def test_crashes_at_any_time_lose_and_repeat_nothing(features: int) -> None:
    """Chains wander free -> offered -> taken -> used; a crash leaves each where it is."""
    rng = random.Random(7)
    t = Tracked(features, 7 if features & PACKED else 8)
    offered: list[int] = []
    taken: list[tuple[int, Chain]] = []
    returned: list[int] = []
    newest: tuple[int, Chain] | None = None
    newest_is_old = False
    old = 0  # of an earlier life and not popped in this one
    crashes = token = 0
    for _ in range(3000):
        choice = rng.random()
        if choice < 0.3:
            parts = rng.randrange(1, 3)
            if t.driver.free > parts:
                t.offer(token % 512, parts=parts)
                offered.append(token % 512)
                token += 1
        elif choice < 0.6:
            chain = t.device.pop()
            assert (chain is None) is (not offered)
            if chain is not None:
                assert chain.readable[0].addr == B + 16 * offered[0]
                newest, newest_is_old = (offered.pop(0), chain), old > 0
                old -= newest_is_old
                taken.append(newest)
        elif choice < 0.85 and taken:
            some = rng.sample(taken, rng.randrange(1, len(taken) + 1))
            t.device.push_many([(chain, 0) for _, chain in some])
            taken = [one for one in taken if one not in some]
            returned += [number for number, _ in some]
        elif choice < 0.9 and taken and taken[-1] is newest:
            offered.insert(0, taken[-1][0])
            t.device.unpop(taken.pop()[1])
            old += newest_is_old
            newest = None
        elif choice < 0.95:
            assert [used.token for used in t.driver.poll()] == returned
            returned = []
        else:
            t.crash()
            crashes += 1
            old += len(taken)
            assert t.recovered == old
            offered = [number for number, _ in taken] + offered
            taken = []
        assert t.device.pending() == len(offered)
    assert crashes > 100
    assert token > 300


def test_a_split_batch_that_was_told_but_not_noted_is_completed() -> None:
    t = Tracked(0)
    t.offer(0, 1, 2, 3)
    chains = [t.device.pop() for _ in range(4)]
    t.device.push(chains[3], 0)
    before = bytes(t.region)
    t.device.push_many([(chains[2], 0), (chains[0], 0)])
    after = bytes(t.region)
    # The crash came between the used index and the rest: the list of the batch is there, the marks are old.
    t.region[:] = before
    t.region[64 + 12 : 64 + 14] = after[64 + 12 : 64 + 14]
    for chain in (chains[2], chains[0]):
        at = 64 + 16 + 16 * chain.head + 6
        t.region[at : at + 2] = after[at : at + 2]
    t.crash()
    assert t.recovered == 1
    assert t.device.pop() == chains[1]
    assert t.head()[-1] == 3


@pytest.mark.parametrize("told", [False, True])
def test_a_packed_batch_is_completed_or_rolled_back(told: bool) -> None:
    t = Tracked(PACKED)
    t.offer(0, 1, 2)
    chains = [t.device.pop() for _ in range(3)]
    ring, before = t.memory.read(0x1000, 128), bytes(t.region)
    t.device.push_many([(chains[2], 0), (chains[0], 0)])
    after = bytes(t.region)
    # The crash came behind (told) or in front of the store that shows the batch: free list, used index and wrap
    # counter are new, their old copies and the marks are not.
    t.region[:] = before
    for first, size in ((12, 2), (16, 2), (20, 1)):
        t.region[64 + first : 64 + first + size] = after[64 + first : 64 + first + size]
    for index in range(8):
        at = 64 + 32 + 32 * index + 2
        t.region[at : at + 2] = after[at : at + 2]
    if not told:
        t.memory.write(0x1000, ring)
    t.crash()
    assert t.recovered == (1 if told else 3)
    assert [t.device.pop() for _ in range(t.recovered)] == (chains[1:2] if told else chains)
    assert t.device.pop() is None
    if told:
        assert [used.token for used in t.driver.poll()] == [2, 0]


CORRUPT = {
    "another version": (0, 8, 2, Fault.SIZE),
    "another size": (0, 10, 7, Fault.SIZE),
    "used index far away": (0, 14, 0x7FFF, Fault.USED_JUMP),
    "packed version": (PACKED, 8, 3, Fault.SIZE),
    "used offset beyond the ring": (PACKED, 18, 8, Fault.INDEX),
    "new used offset beyond the ring": (PACKED, 16, 99, Fault.INDEX),
    "a free list that runs in a circle": (PACKED, 32 + 32 * 7 + 2, 6, Fault.LOOP),
    "a free list into a chain": (PACKED, 32 + 32 * 7 + 2, 0, Fault.LOOP),
    "a chain of no descriptors": (PACKED, 32 + 6, 0, Fault.EMPTY),
    "a chain longer than its list": (PACKED, 32 + 6, 3, Fault.INDEX),
    "a chain that leaves the ring": (PACKED, 32 + 2, 0xFFFF, Fault.INDEX),
    "a lost entry": (PACKED, 14, 8, Fault.INDEX),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_a_record_that_makes_no_sense_is_refused_and_changes_nothing(name: str) -> None:
    features, at, value, kind = CORRUPT[name]
    t = Tracked(features)
    t.offer(0, 1)
    t.device.pop()
    struct.pack_into("<H", t.region, 64 + at, value)
    t.crash()
    assert t.recovered == -(list(Fault).index(kind) + 1)
    # Without a record the queue works as it would have.
    assert t.device.fault is None
    assert t.device.pop() is not None


def test_a_split_batch_list_that_leaves_the_ring_is_refused() -> None:
    t = Tracked(0)
    t.offer(0)
    t.device.pop()
    struct.pack_into("<HH", t.region, 64 + 12, 8, 0xFFFF)
    t.crash()
    assert t.recovered == -(list(Fault).index(Fault.INDEX) + 1)


@pytest.mark.parametrize("features", [0, PACKED])
def test_where_and_when_a_record_can_be_attached(features: int) -> None:
    t = Tracked(features)
    refused = -(list(Fault).index(Fault.PLACEMENT) + 1)
    assert lib.vipsec_queue_inflight_new(t.device.handle, 64) == refused, "there is one already"
    assert not t.device.move(t.memory)
    fresh = FastDeviceQueue(t.memory, t.layout, features)
    for offset in (65, 128, 1 << 40, (1 << 64) - 1):
        assert lib.vipsec_queue_inflight_new(fresh.handle, offset) == refused
    assert lib.vipsec_queue_inflight_new(fresh.handle, 4) == -(list(Fault).index(Fault.ALIGNMENT) + 1)
    t.offer(0)
    fresh.pop()
    assert lib.vipsec_queue_inflight_new(fresh.handle, 0) == refused, "it has begun"
    lib.vipsec_memory_set_inflight(fast_memory(t.memory).handle, ffi.NULL, 1 << 20)
    other = FastDeviceQueue(t.memory, t.layout, features)
    assert lib.vipsec_queue_inflight_new(other.handle, 0) == refused


@pytest.mark.parametrize("features", [0, PACKED])
def test_a_recovered_chain_is_checked_like_any_other(features: int) -> None:
    t = Tracked(features)
    t.offer(0)
    t.device.pop()
    # The guest (split) or the region's owner (packed) has put an address outside into it.
    if features:
        struct.pack_into("<Q", t.region, 64 + 32 + 24, SIZE)
    else:
        t.memory.put_u64(0x1000, SIZE)
    t.crash()
    assert t.recovered == 1
    with pytest.raises(ChainError) as caught:
        t.device.pop()
    assert caught.value.kind is Fault.ADDRESS
    assert lib.vipsec_queue_inflight_new(t.device.handle, 64) < 0


@pytest.mark.parametrize(("num", "kind"), [(1, Fault.PARTIAL_LIST), (3, Fault.PARTIAL_LIST)])
def test_a_recorded_packed_list_that_is_cut_short_or_too_long_is_a_fault(num: int, kind: Fault) -> None:
    t = Tracked(PACKED)
    t.offer(0)
    t.device.pop()
    # inflight, next, last, num: the free list is made to fit.
    struct.pack_into("<H", t.region, 64 + 32 + 6, num)
    free = 1 if num == 1 else 3
    struct.pack_into("<HH", t.region, 64 + 12, free, free)
    t.crash()
    assert t.recovered == 1
    with pytest.raises(ChainError) as caught:
        t.device.pop()
    assert caught.value.kind is kind


def test_a_record_that_vanishes_breaks_the_queue() -> None:
    memory = GuestMemory.anonymous(SIZE)
    driver, device = driver_queue(memory, LAYOUT, PACKED), FastDeviceQueue(memory, LAYOUT, PACKED)
    region = Shared(PAGE)
    lib.vipsec_memory_set_inflight(fast_memory(memory).handle, ffi.from_buffer(region.map), PAGE)
    late = FastDeviceQueue(memory, LAYOUT, PACKED)
    assert lib.vipsec_queue_inflight_new(device.handle, 0) == 0
    driver.add([], [Segment(B, 8)], 0)
    driver.publish()
    region.truncate(0)
    with pytest.raises(ChainError) as caught:
        device.pop()
    assert caught.value.kind is Fault.MEMORY
    assert lib.vipsec_queue_inflight_new(late.handle, 0) == -(list(Fault).index(Fault.MEMORY) + 1)
    assert lib.vipsec_queue_fault(late.handle) == list(Fault).index(Fault.MEMORY) + 1


# ---- what only C can do


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of rings/check.c; with sanitizers when the compiler has them."""
    assert COMPILER is not None, "the extension was built, so there is a compiler"
    program = tmp_path_factory.mktemp("rings") / "check"
    sources = [
        *sorted((ROOT / "csrc").glob("ring*.c")),
        *(ROOT / "csrc" / f"{n}.c" for n in ("inflight", "memory", "guard")),
    ]
    command = [COMPILER, "-std=c11", "-D_GNU_SOURCE", "-O1", "-g", f"-I{ROOT / 'csrc'}", "-o", program]
    rest = [ROOT / "tests" / "fastpath" / "rings" / "check.c", *sources, "-lpthread"]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    if subprocess.run([*command, *sanitizers, *rest], env=PLAIN, capture_output=True).returncode:
        subprocess.run([*command, *rest], env=PLAIN, check=True)
    return program


# Not the sanitizer run-time that an instrumented extension needs: the program has its own.
PLAIN = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}


@pytest.mark.parametrize("what", [("bursts",), ("vanish",), ("hostile", "1")], ids=lambda what: what[0])
def test_in_c(check: Path, what: tuple[str, ...]) -> None:
    done = subprocess.run([check, *what], capture_output=True, text=True, env=PLAIN, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
