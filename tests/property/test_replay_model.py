"""The replay window against a model that is a plain set of numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec.replay import ReplayWindow

M32 = 2**32
SIZES = st.one_of(st.integers(1, 4096), st.sampled_from([1, 2, 32, 64, 4095, 4096]))
# Mostly near the edges of the window and around its width, sometimes anywhere.
STEPS = st.one_of(
    st.integers(-5, 5), st.integers(-4200, 4200), st.sampled_from([M32 - 1, M32, -M32]), st.integers(0, M32)
)


class Model:
    """RFC 4303 in sets: what was authenticated, and the highest of it."""

    def __init__(self, size: int, first: int, limit: int) -> None:
        self.size, self.limit = size, limit
        self.top = first - 1
        self.seen: set[int] = set()
        self.lost = self.top  # up to here nobody knows: never sent, or fallen out of a narrower window

    def accepts(self, sequence: int) -> bool:
        in_space = self.lost < sequence < self.limit and sequence >= 1
        return in_space and sequence > self.top - self.size and sequence not in self.seen

    def record(self, sequence: int) -> None:
        self.seen.add(sequence)
        self.top = max(self.top, sequence)

    def resize(self, size: int) -> None:
        self.lost = max(self.lost, self.top - self.size)
        self.size = size
        self.lost = max(self.lost, self.top - size)

    def whole(self, low: int) -> int | None:
        """The number that has this lower half and lies nearest to the window: in it, or the next above it."""
        bottom = self.top - self.size + 1
        candidate = bottom + (low - bottom) % M32  # the only one within 2**32 from the left edge
        return candidate if 0 <= candidate < self.limit else None


def verdict(window: ReplayWindow, low: int) -> int | None:
    try:
        return window.check(low)
    except PacketError as error:
        return None if error.reason is Reason.REPLAY else -1


@given(size=SIZES, steps=st.lists(st.tuples(STEPS, st.booleans()), max_size=60))
def test_32_bit_windows_agree_with_a_set(size: int, steps: list[tuple[int, bool]]) -> None:
    window, model = ReplayWindow(size), Model(size, 1, M32)
    for step, authentic in steps:
        sequence = max(0, min(M32 - 1, model.top + step))
        assert verdict(window, sequence) == (sequence if model.accepts(sequence) else None)
        if authentic and model.accepts(sequence):
            window.accept(sequence)
            model.record(sequence)
        assert window.top == model.top


@given(
    size=SIZES,
    first=st.one_of(
        st.just(1),
        st.integers(1, 5000),
        st.integers(M32 - 5000, M32 + 5000),
        st.integers(2**64 - 5000, 2**64 - 1),
    ),
    steps=st.lists(st.tuples(STEPS, st.booleans()), max_size=60),
)
def test_64_bit_windows_agree_with_a_set(size: int, first: int, steps: list[tuple[int, bool]]) -> None:
    window, model = ReplayWindow(size, esn=True, first=first), Model(size, first, 2**64)
    for step, authentic in steps:
        low = (model.top + step) % M32
        whole = model.whole(low)
        expected = whole if whole is not None and model.accepts(whole) else None
        assert verdict(window, low) == expected
        if authentic and expected is not None:
            window.accept(expected)
            model.record(expected)
        assert window.top == model.top


@given(
    sizes=st.lists(SIZES, min_size=2, max_size=8),
    esn=st.booleans(),
    bursts=st.lists(st.lists(st.integers(-4200, 200), max_size=25), min_size=8, max_size=8),
)
def test_resizing_never_lets_a_number_in_twice(sizes: list[int], esn: bool, bursts: list[list[int]]) -> None:
    window, model = ReplayWindow(sizes[0], esn=esn), Model(sizes[0], 1, M32)
    for size, burst in zip(sizes, bursts, strict=False):
        window.resize(size)
        model.resize(size)
        for step in burst:
            sequence = max(1, model.top + step)
            taken = verdict(window, sequence) == sequence
            assert taken == model.accepts(sequence)
            if taken:
                window.accept(sequence)
                model.record(sequence)
