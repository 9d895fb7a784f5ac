"""The allocator against a model that marks bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from virtio_ipsec.ring.memory import Allocator, OutOfMemory


@given(
    st.integers(0, 100),
    st.lists(st.tuples(st.integers(1, 60), st.sampled_from([1, 2, 16, 64]), st.integers(0, 3))),
)
def test_no_byte_is_handed_out_twice_and_all_come_back(start: int, steps: list[tuple[int, int, int]]) -> None:
    allocator = Allocator(start, 256)
    taken: dict[int, int] = {}
    for size, align, release in steps:
        try:
            address = allocator.alloc(size, align)
        except OutOfMemory:
            held = {byte for at, length in taken.items() for byte in range(at, at + length)}
            fits = (at for at in range(start, start + 256 - size + 1) if at % align == 0)
            assert all(held & set(range(at, at + size)) for at in fits)
        else:
            assert address % align == 0
            assert start <= address
            assert address + size <= start + 256
            assert all(address + size <= at or at + length <= address for at, length in taken.items())
            taken[address] = size
        if release == 0 and taken:
            oldest = next(iter(taken))
            del taken[oldest]
            allocator.free(oldest)
        assert allocator.available == 256 - sum(taken.values())
    for address in taken:
        allocator.free(address)
    assert allocator.alloc(256, 1) == start
