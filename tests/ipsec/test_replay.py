"""The window at its exact edges (RFC 4303 3.4.3, A2.1, A2.2)."""

from __future__ import annotations

import pytest

from virtio_ipsec.errors import PacketError, Reason
from virtio_ipsec.ipsec.replay import ReplayWindow

M32 = 2**32


def window(size: int, top: int, *, esn: bool = False) -> ReplayWindow:
    """A window whose numbers left of ``top`` are all unseen."""
    made = ReplayWindow(size, esn=esn)
    made.accept(top)
    return made


def refused(made: ReplayWindow, low: int) -> bool:
    try:
        made.check(low)
    except PacketError as error:
        return error.reason is Reason.REPLAY
    return False


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 63, 64, 65, 1000, 4095, 4096])
def test_left_edge_is_top_minus_size_plus_one(size: int) -> None:
    top = 10_000
    made = window(size, top)
    assert refused(made, top)
    assert refused(made, top - size)  # a window of W+1 would take it
    assert size == 1 or made.check(top - size + 1) == top - size + 1
    assert made.check(top + 1) == top + 1


@pytest.mark.parametrize("jump", [1, 2, 62, 63, 64, 65, 127, 128, 4096, 2**31])
def test_a_jump_keeps_what_was_seen_and_is_still_inside(jump: int) -> None:
    made = window(64, 1000)
    made.accept(990)
    made.accept(1000 + jump)
    for number in (990, 1000):
        assert refused(made, number)
    for number in (989, 991, 999):
        assert refused(made, number) == (number <= 1000 + jump - 64)


def test_sequence_number_zero_is_never_accepted() -> None:
    for top in (0, 1, 5, 63, 64):
        made = ReplayWindow(64)
        if top:
            made.accept(top)
        assert refused(made, 0)
    assert ReplayWindow(64).check(1) == 1


def test_checking_changes_nothing() -> None:
    made = window(64, 100)
    for low in (100, 99, 36, 101, 5000):
        refused(made, low)
        refused(made, low)
    assert made.check(99) == 99
    assert made.top == 100


def test_without_esn_the_last_number_is_the_end() -> None:
    made = window(64, M32 - 1)
    assert made.check(M32 - 2) == M32 - 2
    assert refused(made, 0)
    assert refused(made, 1)


def test_numbers_below_the_first_one_were_never_sent() -> None:
    made = ReplayWindow(64, first=1000)
    assert refused(made, 999)
    assert refused(made, 990)
    made.accept(made.check(1030))
    assert refused(made, 999)
    assert made.check(1000) == 1000


def test_size_zero_accepts_everything_and_knows_the_highest() -> None:
    made = ReplayWindow(0)
    for number in (5, 5, 0, 3, M32 - 1):
        assert made.check(number) == number
        made.accept(number)
    assert made.top == M32 - 1


# (size, T, low half that arrives, whole number or None for a refusal)
ESN_EDGES = [
    # case A: the window lies inside one subspace
    (64, 63, 0, None),  # bottom is 0 itself: the number 0, never sent
    (64, 64, 0, M32),  # left of the window: the next subspace
    (64, 64, 1, 1),
    (64, 100, 37, 37),
    (64, 100, 36, M32 + 36),
    (64, 100, M32 - 1, M32 - 1),
    (64, M32 - 1, M32 - 64, M32 - 64),
    (64, M32 - 1, M32 - 65, 2 * M32 - 65),
    (64, M32 - 1, 0, M32),
    (64, M32 - 1, 5, M32 + 5),
    (64, 5 * M32 + 63, 0, 5 * M32),
    (64, 5 * M32 + 63, M32 - 1, 6 * M32 - 1),
    # case B: it spans two
    (64, M32, M32 - 63, M32 - 63),
    (64, M32, M32 - 64, 2 * M32 - 64),
    (64, M32 + 62, M32 - 1, M32 - 1),
    (64, M32 + 62, M32 - 2, 2 * M32 - 2),
    (64, M32 + 10, 0, M32),
    (64, M32 + 10, 11, M32 + 11),
    (1, M32, M32 - 1, 2 * M32 - 1),  # a window of one never spans two
    (4096, 7 * M32 + 4094, M32 - 1, 7 * M32 - 1),
    (4096, 7 * M32 + 4095, M32 - 1, 8 * M32 - 1),
    # subspace 0: nothing lies before it
    (64, 0, 1, 1),
    (64, 0, M32 - 64, M32 - 64),
    (64, 0, M32 - 63, None),
    (64, 0, M32 - 1, None),
    (64, 62, M32 - 1, None),
    (64, 62, 0, None),
    (64, 63, M32 - 1, M32 - 1),
    # the last subspace: nothing lies behind it
    (64, M32 * M32 - 1, M32 - 2, M32 * M32 - 2),
    (64, M32 * M32 - 1, M32 - 64, M32 * M32 - 64),
    (64, M32 * M32 - 1, M32 - 65, None),
    (64, M32 * M32 - 1, 0, None),
]


@pytest.mark.parametrize(("size", "top", "low", "whole"), ESN_EDGES)
def test_the_upper_half_is_guessed_as_appendix_a2_says(
    size: int, top: int, low: int, whole: int | None
) -> None:
    made = ReplayWindow(size, esn=True)
    if top:
        made.accept(top)
    if whole is None:
        assert refused(made, low)
    else:
        assert made.check(low) == whole


def test_wrapping_the_lower_half_keeps_the_window() -> None:
    made = window(64, M32 - 3, esn=True)
    for expected in range(M32 - 2, M32 + 3):
        assert made.check(expected % M32) == expected
        made.accept(expected)
    for seen in range(M32 - 3, M32 + 3):
        assert refused(made, seen % M32)
    assert made.check(M32 - 4) == M32 - 4


def test_widening_counts_what_nobody_recorded_as_seen() -> None:
    made = window(32, 1000)
    made.accept(980)
    made.resize(64)
    assert refused(made, 980)
    assert made.check(981) == 981
    assert made.check(969) == 969  # the old left edge
    assert refused(made, 968)
    assert refused(made, 937)
    made.accept(made.check(1040))  # 64 wide from now on
    assert made.check(981) == 981
    assert refused(made, 976)
    assert made.check(1001) == 1001


def test_narrowing_and_switching_off_and_on_never_reopens_numbers() -> None:
    made = window(64, 1000)
    made.resize(8)
    assert refused(made, 992)
    assert made.check(993) == 993
    made.resize(64)
    assert refused(made, 992)
    made.resize(0)
    made.accept(made.check(1005))
    made.resize(64)
    for number in (942, 993, 1000, 1005):
        assert refused(made, number)
    assert made.check(1006) == 1006
