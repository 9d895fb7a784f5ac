"""Guest memory checks every range; the allocator never hands out a byte twice."""

from __future__ import annotations

import mmap
import sys

import pytest

from virtio_ipsec.errors import ConfigError, MemoryAccessError
from virtio_ipsec.ring.memory import Allocator, GuestMemory, OutOfMemory, Region


@pytest.fixture
def memory() -> GuestMemory:
    """Two adjacent regions, a hole, and one that ends where the address space ends."""
    return GuestMemory(
        [
            Region((1 << 64) - 16, 16, bytearray(16)),
            Region(0x1000, 16, bytearray(range(16))),
            Region(0x1010, 16, bytearray(range(16, 32))),
        ]
    )


def test_regions_are_listed_by_address(memory: GuestMemory) -> None:
    assert memory.regions == ((0x1000, 16), (0x1010, 16), ((1 << 64) - 16, 16))


def test_a_range_may_cross_into_an_adjacent_region(memory: GuestMemory) -> None:
    assert memory.read(0x100E, 4) == bytes([14, 15, 16, 17])
    memory.write(0x100F, b"\xaa\xbb")
    assert memory.read(0x100E, 4) == bytes([14, 0xAA, 0xBB, 17])
    assert memory.u64(0x100C) == int.from_bytes(bytes([12, 13, 14, 0xAA, 0xBB, 17, 18, 19]), "little")


def test_a_read_is_a_copy(memory: GuestMemory) -> None:
    before = memory.read(0x1000, 4)
    memory.write(0x1000, b"zzzz")
    assert before == bytes(range(4))


@pytest.mark.parametrize(
    ("address", "length"),
    [
        (0x0FFF, 1),
        (0x0FFF, 2),
        (0x1000, 33),
        (0x101F, 2),
        (0x1020, 1),
        ((1 << 64) - 16, 17),
        ((1 << 64) - 1, 2),
        ((1 << 64), 1),
        ((1 << 64) - 1, (1 << 64) - 1),
        (0x1000, 1 << 64),
        (-1, 1),
        (-1, 2),
        (0x1000, -1),
    ],
)
def test_outside_ranges_are_refused_and_touch_nothing(memory: GuestMemory, address: int, length: int) -> None:
    before = [memory.read(start, size) for start, size in memory.regions]
    with pytest.raises(MemoryAccessError):
        memory.read(address, length)
    with pytest.raises(MemoryAccessError):
        memory.check(address, length)
    with pytest.raises(MemoryAccessError):
        memory.contiguous(address, length)
    if 0 < length < 64:
        with pytest.raises(MemoryAccessError):
            memory.write(address, bytes([0xEE]) * length)
    assert before == [memory.read(start, size) for start, size in memory.regions]


def test_the_last_bytes_of_the_address_space_can_be_used(memory: GuestMemory) -> None:
    memory.write((1 << 64) - 2, b"ok")
    assert memory.read((1 << 64) - 2, 2) == b"ok"


def test_an_empty_range_touches_nothing_and_is_allowed_anywhere(memory: GuestMemory) -> None:
    assert memory.read(0x7777_0000, 0) == b""
    memory.write(0x7777_0000, b"")
    memory.check(0x7777_0000, 0)


@pytest.mark.parametrize(("width", "value"), [(16, 0x1234), (32, 0x12345678), (64, 0x123456789ABCDEF0)])
def test_typed_accessors_are_little_endian(memory: GuestMemory, width: int, value: int) -> None:
    around = memory.read(0x100C, 1), memory.read(0x100D + width // 8, 1)
    getattr(memory, f"put_u{width}")(0x100D, value)
    assert getattr(memory, f"u{width}")(0x100D) == value
    assert memory.read(0x100D, width // 8) == value.to_bytes(width // 8, "little")
    assert around == (memory.read(0x100C, 1), memory.read(0x100D + width // 8, 1))


def test_words_are_the_memory_itself(memory: GuestMemory) -> None:
    words = memory.words(0x1002, 3, "H")
    assert list(words) == [0x0302, 0x0504, 0x0706]
    words[1] = 0xBEEF
    assert memory.read(0x1004, 2) == b"\xef\xbe"


def test_words_do_not_cross_regions(memory: GuestMemory) -> None:
    assert memory.contiguous(0x100C, 8) is None
    with pytest.raises(MemoryAccessError):
        memory.words(0x100C, 1, "Q")


def test_a_shared_mapping_serves_as_region() -> None:
    with mmap.mmap(-1, 4096) as mapping:
        memory = GuestMemory([Region(0x4000, 4096, mapping)])
        memory.put_u32(0x4FFC, 7)
        assert mapping[0xFFC:] == b"\x07\0\0\0"
        del memory


def test_a_region_may_use_the_start_of_a_larger_buffer() -> None:
    memory = GuestMemory([Region(0, 4, bytearray(8))])
    with pytest.raises(MemoryAccessError):
        memory.read(4, 1)


@pytest.mark.parametrize(
    "regions",
    [
        [],
        [Region(0, 0, bytearray(4))],
        [Region(0, 5, bytearray(4))],
        [Region(-4, 4, bytearray(4))],
        [Region((1 << 64) - 3, 4, bytearray(4))],
        [Region(0, 4, bytes(4))],
        [Region(0, 4, bytearray(4)), Region(3, 4, bytearray(4))],
    ],
    ids=["none", "empty", "too small a buffer", "negative", "beyond 2^64", "read only", "overlap"],
)
def test_impossible_regions_are_refused(regions: list[Region]) -> None:
    with pytest.raises(MemoryAccessError):
        GuestMemory(regions)


def test_a_big_endian_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(ConfigError):
        GuestMemory.anonymous(16)


def test_buffer_contents_stay_out_of_repr() -> None:
    assert "secret" not in repr(Region(0, 6, bytearray(b"secret")))


def test_the_allocator_aligns_and_merges_what_comes_back() -> None:
    allocator = Allocator(0x1004, 0x2000)
    first = allocator.alloc(10)
    page = allocator.alloc(16, 4096)
    second = allocator.alloc(20, 2)
    assert (first, page, second) == (0x1010, 0x2000, 0x101A)
    for address in (page, first, second):
        allocator.free(address)
    assert allocator.available == 0x2000
    assert allocator.alloc(0x2000, 1) == 0x1004


def test_an_exhausted_allocator_says_so() -> None:
    allocator = Allocator(0, 32)
    allocator.alloc(16)
    with pytest.raises(OutOfMemory):
        allocator.alloc(17)
    assert allocator.alloc(16) == 16


@pytest.mark.parametrize(("size", "align"), [(0, 16), (-1, 16), (8, 0), (8, 24), (8, -16)])
def test_nonsense_allocations_are_refused(size: int, align: int) -> None:
    with pytest.raises(ConfigError):
        Allocator(0, 64).alloc(size, align)


def test_freeing_twice_or_something_else_is_refused() -> None:
    allocator = Allocator(0, 64)
    address = allocator.alloc(16)
    allocator.free(address)
    for wrong in (address, 8):
        with pytest.raises(MemoryAccessError):
            allocator.free(wrong)
    assert allocator.available == 64
