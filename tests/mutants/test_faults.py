"""Random faults: they are made as they say, drawn the same way each time, and the reviewed list is about them."""

from __future__ import annotations

import ast
from functools import cache

import pytest

from tools.mutant_parts import reviewed
from tools.mutant_parts.faults import every, faults, modules, mutated, path_of, sample

ROOMS = ("device",)


@cache
def names() -> list[str]:
    """Of all faults in these rooms."""
    return [fault.name for fault in every(ROOMS)]


def test_names_are_unique_and_draws_repeat() -> None:
    assert len(set(names())) == len(names()) > 2000
    assert sample(20, 5, ROOMS) == sample(20, 5, ROOMS) != sample(20, 6, ROOMS)


def test_a_fault_changes_one_statement() -> None:
    for fault in faults("device.status"):
        before = ast.unparse(ast.parse(path_of(fault.module).read_text())).splitlines()
        after = ast.unparse(mutated(fault.module, fault.number)).splitlines()
        assert len(before) == len(after)
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
        assert fault.lines.start > 0


def test_a_default_is_the_business_of_whoever_calls_the_function() -> None:
    name = "device.frame: def view(frame: bytes | bytearray, l3: int=0) -> FrameView:  ->  "
    fault = next(fault for fault in faults("device.frame") if fault.name.startswith(name))
    source = path_of(fault.module).read_text().splitlines()
    assert source[fault.lines[0] - 1].startswith("def view(")
    assert "return FrameView(" in source[fault.lines[-1] - 1]
    assert fault.inside


@pytest.mark.parametrize("review", reviewed.load(), ids=lambda review: review.reason[:40])
def test_what_is_reviewed_exists(review: reviewed.Review) -> None:
    gone = [
        pattern for pattern in review.patterns if not any(reviewed._fits(pattern, name) for name in names())
    ]
    assert gone == []
    assert review.reason.endswith(".")


def test_only_modules_of_the_device_are_drawn_from() -> None:
    assert {module.partition(".")[0] for module in modules(ROOMS)} == {"device"}


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("a: b", "a: b", True),
        ("a: b", "a: bc", False),
        ("a.*: raise *-> pass", "a.f: raise X() -> pass", True),
        ("a.*: raise *-> pass", "a.f: raise X() -> raise Y()", False),
        ("ab*b", "ab", False),
    ],
)
def test_patterns(pattern: str, name: str, fits: bool) -> None:
    assert reviewed._fits(pattern, name) is fits
